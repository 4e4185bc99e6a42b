//! The relay from outside: real sockets, real processes, the simulator behind it.
mod doors;
mod path;
mod support;
mod upstream;
mod wire;
