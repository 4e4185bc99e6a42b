//! The relay from outside: real sockets, real processes, the simulator behind it.
#[cfg(test)]
mod commands;
#[cfg(test)]
mod doors;
#[cfg(test)]
mod path;
#[cfg(test)]
mod support;
#[cfg(test)]
mod talk;
#[cfg(test)]
mod upstream;
#[cfg(test)]
mod wire;
