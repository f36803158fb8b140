//! The bus master of a channel: three registers, and the table of physical regions (SFF-8038i 1.0).

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::spec::bus_master::{ACTIVE, CAPABLE, END_OF_TABLE, ERROR, INTERRUPT, START, TO_MEMORY};
use crate::memory::GuestRam;

/// Ranges of one step: what one preadv(2) takes. A table of two-byte regions makes steps small, not long.
const MAX_RANGES: usize = 1024;

/// A range of guest memory: address and bytes.
pub(super) type Range = (GuestAddress, usize);

/// The table is not in RAM.
#[derive(Debug)]
pub(super) struct Fault;

/// What a write to the command register changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    Stopped,
}

/// Where in the table the transfer is.
#[derive(Clone, Copy, Debug, Default)]
struct Walk {
    /// Address of the next descriptor.
    next: u32,
    /// The rest of the region.
    address: u64,
    left: usize,
    /// It is the last one.
    last: bool,
}

impl Walk {
    fn fetch(&mut self, ram: &GuestRam) -> Result<(), Fault> {
        let mut descriptor = [0; 8];
        ram.read_slice(&mut descriptor, GuestAddress(self.next.into())).map_err(|_| Fault)?;
        let [a, b, c, d, low, high, _, flags] = descriptor;
        // Regions begin at even addresses and have even lengths; 0 is 64 KiB.
        self.address = u64::from(u32::from_le_bytes([a, b, c, d]) & !1);
        self.left = match usize::from(u16::from_le_bytes([low, high]) & !1) {
            0 => 0x1_0000,
            len => len,
        };
        self.last = u16::from(flags) << 8 & END_OF_TABLE != 0;
        // A table does not cross a boundary of 64 KiB: the counter of the controller has no more bits.
        self.next = self.next & 0xffff_0000 | self.next.wrapping_add(8) & 0xffff;
        Ok(())
    }

    fn take(&mut self, ram: &GuestRam, want: usize) -> Result<(Vec<Range>, usize), Fault> {
        let (mut ranges, mut total) = (Vec::new(), 0);
        while total < want && ranges.len() < MAX_RANGES {
            if self.left == 0 {
                if self.last {
                    break;
                }
                self.fetch(ram)?;
            }
            let len = self.left.min(want - total);
            ranges.push((GuestAddress(self.address), len));
            self.address += len as u64;
            self.left -= len;
            total += len;
        }
        Ok((ranges, total))
    }
}

/// The registers at offsets 0 (command), 2 (status) and 4 to 7 (address of the table).
#[derive(Debug, Default)]
pub(super) struct BusMaster {
    command: u8,
    status: u8,
    table: u32,
    walk: Walk,
}

impl BusMaster {
    pub(super) fn read(&self, offset: u64) -> u8 {
        match offset {
            0 => self.command,
            2 => self.status,
            4 => (self.table & 0xff) as u8,
            5 => (self.table >> 8 & 0xff) as u8,
            6 => (self.table >> 16 & 0xff) as u8,
            7 => (self.table >> 24) as u8,
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u8) -> Change {
        match offset {
            0 => return self.write_command(value),
            2 => {
                let cleared = value & (ERROR | INTERRUPT);
                self.status = self.status & !CAPABLE & !cleared | value & CAPABLE;
            }
            4..=7 => {
                let shift = 8 * (offset & 3);
                self.table = (self.table & !(0xff << shift) | u32::from(value) << shift) & !3;
            }
            _ => {}
        }
        Change::Nothing
    }

    fn write_command(&mut self, value: u8) -> Change {
        let before = self.command & START;
        self.command = value & (START | TO_MEMORY);
        match (before, value & START) {
            (0, START) => {
                self.walk = Walk { next: self.table, ..Walk::default() };
                self.status |= ACTIVE;
                Change::Nothing
            }
            (START, 0) => {
                self.status &= !ACTIVE;
                Change::Stopped
            }
            _ => Change::Nothing,
        }
    }

    /// It is started, and has not come to the end of the table.
    pub(super) fn is_active(&self) -> bool {
        self.status & ACTIVE != 0
    }

    pub(super) fn is_to_memory(&self) -> bool {
        self.command & TO_MEMORY != 0
    }

    /// The drive's interrupt line rose.
    pub(super) fn interrupt(&mut self) {
        self.status |= INTERRUPT;
    }

    /// The transfer cannot go on.
    pub(super) fn fail(&mut self) {
        self.status = self.status & !ACTIVE | ERROR;
    }

    /// The regions are used up.
    pub(super) fn end(&mut self) {
        self.status &= !ACTIVE;
    }

    /// All regions are used up to their ends.
    pub(super) fn is_at_end(&self) -> bool {
        self.walk.last && self.walk.left == 0
    }

    /// The next ranges for at most `want` bytes, a multiple of `unit` together; none: the table ends before a unit is
    /// full. The guest may rewrite the table meanwhile: what comes is what was read, once.
    pub(super) fn take(
        &mut self,
        ram: &Arc<GuestRam>,
        want: usize,
        unit: usize,
    ) -> Result<Vec<Range>, Fault> {
        let mut walk = self.walk;
        let (mut ranges, total) = walk.take(ram, want)?;
        let whole = total - total % unit.max(1);
        if whole != total {
            walk = self.walk;
            let again = walk.take(ram, whole)?;
            if again.1 != whole {
                return Err(Fault);
            }
            ranges = again.0;
        }
        self.walk = walk;
        Ok(ranges)
    }
}
