//! System control port A: address line 20 and a fast reset.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference, "System Control Port A".

use std::sync::Arc;

use super::{Machine, Ports};
use crate::bus::{Region, Registers};

/// The port.
pub const PORT92: Ports = Ports { base: 0x92, len: 1, region: 0 };

const RESET: u8 = 1;
const A20: u8 = 2;
/// The lights of the disks and the lock of the password are remembered; the rest is the watchdog's and reads as zero.
const KEPT: u8 = 0xca;

/// The port's register. Address line 20 is open from the start, as firmware expects it here.
pub struct Port92 {
    machine: Arc<dyn Machine>,
    value: u8,
}

impl Port92 {
    /// The port of `machine`.
    pub fn new(machine: Arc<dyn Machine>) -> Self {
        Self { machine, value: A20 }
    }
}

impl Registers for Port92 {
    fn read(&mut self, _: Region, offset: u64, data: &mut [u8]) {
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.value;
        }
    }

    fn write(&mut self, _: Region, offset: u64, data: &[u8]) {
        let (0, Some(value)) = (offset, data.first()) else { return };
        let before = self.value;
        self.value = value & (KEPT | RESET);
        if (before ^ value) & A20 != 0 {
            self.machine.set_a20(value & A20 != 0);
        }
        // The reset is a pulse upon the bit's rise.
        if value & !before & RESET != 0 {
            self.machine.reset();
        }
    }

    fn reset(&mut self) {
        self.value = A20;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use super::super::manual::{ManualMachine, inb, outb};
    use super::*;

    #[test]
    fn the_port_resets_once_and_opens_the_gate() {
        let machine = Arc::new(ManualMachine::default());
        let mut port = Port92::new(Arc::clone(&machine) as _);
        assert_eq!(inb(&mut port, 0, 0), 2);
        for (value, read, resets) in [(0x00, 0x00, 0), (0xff, 0xcb, 1), (0x03, 0x03, 1), (0, 0, 1), (1, 1, 2)]
        {
            outb(&mut port, 0, 0, value);
            assert_eq!((inb(&mut port, 0, 0), machine.resets.load(SeqCst)), (read, resets), "{value:#x}");
            assert_eq!(machine.a20.load(SeqCst), value & 2 != 0);
        }
        port.reset();
        assert_eq!(inb(&mut port, 0, 0), 2);
    }
}
