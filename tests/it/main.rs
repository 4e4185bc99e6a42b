//! The relay from outside: real sockets, real processes, the simulator behind it.
mod commands;
mod doors;
mod path;
mod support;
mod upstream;
mod wire;
