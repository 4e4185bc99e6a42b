//! The simulated service without sockets, in virtual time: golden transcripts, cycles, faults, bad input.
#[cfg(test)]
mod cycles;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod rest;
#[cfg(test)]
mod robust;
#[cfg(test)]
mod support;
#[cfg(test)]
mod text;
