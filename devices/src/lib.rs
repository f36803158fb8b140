//! What a guest sees: the back halves of Xen's shared structures and the emulated devices.
//!
//! No KVM here. Memory, interrupts and time come in through traits, so that each device is tested and
//! fuzzed alone. Everything read from guest memory is copied out once and checked on the copy.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod bucket;
pub mod bus;
pub mod complaints;
pub mod display;
pub mod guess;
pub mod io;
pub mod memory;
pub mod pci;
pub mod ring;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vga;
pub mod xen;
