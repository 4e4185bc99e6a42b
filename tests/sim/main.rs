//! The simulated service without sockets, in virtual time: golden transcripts, cycles, bad input.
mod cycles;
mod faults;
mod golden;
mod robust;
mod support;
