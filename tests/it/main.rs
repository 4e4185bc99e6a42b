//! The relay from outside: real sockets, real processes, the simulator behind it.
#[cfg(test)]
mod access;
#[cfg(test)]
mod accounting;
#[cfg(test)]
mod batches;
#[cfg(test)]
mod broker;
#[cfg(test)]
mod budget;
#[cfg(test)]
mod canary;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod continuity;
#[cfg(test)]
mod credentials;
#[cfg(test)]
mod dial;
#[cfg(test)]
mod doors;
#[cfg(test)]
mod engines;
#[cfg(test)]
mod expert;
#[cfg(test)]
mod handover;
#[cfg(test)]
mod money;
#[cfg(test)]
mod network;
#[cfg(test)]
mod openai;
#[cfg(test)]
mod pages;
#[cfg(test)]
mod path;
#[cfg(test)]
mod phone;
#[cfg(test)]
mod quota;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod routes;
#[cfg(test)]
mod routes_of_calls;
#[cfg(test)]
mod shapes;
#[cfg(test)]
mod simulate;
#[cfg(test)]
mod support;
#[cfg(test)]
mod talk;
#[cfg(test)]
mod text;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod tools;
#[cfg(test)]
mod transcribe;
#[cfg(test)]
mod upstream;
#[cfg(test)]
mod wire;
