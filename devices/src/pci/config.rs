//! A configuration space of 256 bytes, header type 0.

use crate::bus::Region;

/// Offsets in the header (PCI 2.1, 6.1).
const VENDOR: usize = 0;
const DEVICE: usize = 2;
const COMMAND: usize = 4;
const REVISION: usize = 8;
const HEADER_TYPE: usize = 14;
const BARS: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const ROM: usize = 0x30;
/// Offset of the register that software keeps the interrupt's number in.
pub const INTERRUPT_LINE: usize = 0x3c;
/// Offset of the register that says which interrupt pin is used: 1 is INTA#.
pub const INTERRUPT_PIN: usize = 0x3d;

/// Bits of the command register: I/O space, memory space, bus master.
const COMMAND_IO: u16 = 1;
const COMMAND_MEMORY: u16 = 2;
const COMMAND_MASTER: u16 = 4;
/// SERR# and INTx disable are remembered as well, parity and special cycles too: software looks whether they stay.
const COMMAND_WRITABLE: u16 = 0x0547;
/// Bit 0 of the ROM's register.
const ROM_ENABLE: u32 = 1;
const ROM_INDEX: usize = 6;

/// Where the registers of a base address register are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O space.
    Io,
    /// 32-bit memory.
    Memory,
    /// 32-bit memory without side effects of reads.
    Prefetchable,
    /// The expansion ROM.
    Rom,
}

/// A base address register that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// 0 to 5, and 6 for the expansion ROM. Also the number of the region for [`crate::bus::Registers`].
    pub index: Region,
    /// I/O or memory.
    pub kind: BarKind,
    /// Address.
    pub base: u64,
    /// Bytes.
    pub len: u64,
}

/// The configuration space of a function: what it holds, and what software may change of it.
#[derive(Clone, Debug)]
pub struct Config {
    bytes: [u8; 256],
    writable: [u8; 256],
    initial: [u8; 256],
    bars: [Option<(BarKind, u32)>; 7],
}

impl Config {
    /// A function of `class` (class, subclass, programming interface as 0xCCSSPP).
    pub fn new(vendor: u16, device: u16, class: u32, revision: u8) -> Self {
        let none = [0; 256];
        let mut config = Self { bytes: none, writable: none, initial: none, bars: [None; 7] };
        config.set_u16(VENDOR, vendor);
        config.set_u16(DEVICE, device);
        config.set_u32(REVISION, class << 8 | u32::from(revision));
        config.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// With the subsystem's ids.
    #[must_use]
    pub fn subsystem(mut self, vendor: u16, device: u16) -> Self {
        self.set_u16(SUBSYSTEM_VENDOR, vendor);
        self.set_u16(SUBSYSTEM, device);
        self
    }

    /// One of several functions of its slot.
    #[must_use]
    pub fn multi_function(mut self) -> Self {
        self.set(HEADER_TYPE, &[0x80]);
        self
    }

    /// Raises INTA# to INTD# (1 to 4).
    #[must_use]
    pub fn interrupt_pin(mut self, pin: u8) -> Self {
        self.set(INTERRUPT_PIN, &[pin]);
        self
    }

    /// With a base address register of `len` bytes, a power of two of at least 4 (I/O), 16 (memory) or 2048 (ROM); index 6
    /// is the ROM's. Anything else is left out.
    #[must_use]
    pub fn bar(mut self, index: Region, kind: BarKind, len: u32) -> Self {
        let least = match kind {
            BarKind::Io => 4,
            BarKind::Memory | BarKind::Prefetchable => 16,
            BarKind::Rom => 2048,
        };
        let index = usize::from(index);
        let fits = (kind == BarKind::Rom) == (index == ROM_INDEX) && len >= least && len.is_power_of_two();
        let Some(slot) = self.bars.get_mut(index).filter(|_| fits) else { return self };
        *slot = Some((kind, len));
        let (flags, mask) = match kind {
            BarKind::Io => (1, !(len - 1)),
            BarKind::Memory => (0, !(len - 1)),
            BarKind::Prefetchable => (8, !(len - 1)),
            BarKind::Rom => (0, !(len - 1) | ROM_ENABLE),
        };
        let at = bar_offset(index);
        self.set_u32(at, flags);
        self.allow(at, &mask.to_le_bytes());
        self
    }

    /// Sets bytes as they are after a reset.
    pub fn set(&mut self, offset: usize, value: &[u8]) {
        for (n, byte) in value.iter().enumerate() {
            if let (Some(now), Some(initial)) =
                (self.bytes.get_mut(offset + n), self.initial.get_mut(offset + n))
            {
                (*now, *initial) = (*byte, *byte);
            }
        }
    }

    /// As [`Config::set`], 16 bits.
    pub fn set_u16(&mut self, offset: usize, value: u16) {
        self.set(offset, &value.to_le_bytes());
    }

    /// As [`Config::set`], 32 bits.
    pub fn set_u32(&mut self, offset: usize, value: u32) {
        self.set(offset, &value.to_le_bytes());
    }

    /// Lets software write the bits of `mask`.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (slot, mask) in self.writable.iter_mut().skip(offset).zip(mask) {
            *slot = *mask;
        }
    }

    /// Changes a byte that software sees, until the next reset.
    pub fn put(&mut self, offset: usize, value: u8) {
        if let Some(byte) = self.bytes.get_mut(offset) {
            *byte = value;
        }
    }

    /// A byte as software reads it; ones beyond the end.
    pub fn get(&self, offset: usize) -> u8 {
        self.bytes.get(offset).copied().unwrap_or(0xff)
    }

    /// 16 bits as software reads them.
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.get(offset), self.get(offset + 1)])
    }

    /// 32 bits as software reads them.
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    /// A read of software's.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = self.get(offset + n);
        }
    }

    /// A write of software's: changes what it may change.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let bytes = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, writable), value) in bytes.zip(data) {
            *byte = *byte & !writable | value & writable;
        }
    }

    /// As after power on.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// Whether the function may read and write memory by itself.
    pub fn is_master(&self) -> bool {
        self.u16(COMMAND) & COMMAND_MASTER != 0
    }

    /// The pin, 0 to 3 for INTA# to INTD#.
    pub fn pin(&self) -> Option<u8> {
        self.get(INTERRUPT_PIN).checked_sub(1)
    }

    /// Class, subclass and programming interface, as 0xCCSSPP.
    pub fn class(&self) -> u32 {
        self.u32(REVISION) >> 8
    }

    /// What answers now: enabled, and with an address.
    pub fn bars(&self) -> impl Iterator<Item = Bar> + '_ {
        let command = self.u16(COMMAND);
        self.bars.iter().enumerate().filter_map(move |(index, bar)| {
            let (kind, len) = (*bar)?;
            let value = self.u32(bar_offset(index));
            let enabled = match kind {
                BarKind::Io => command & COMMAND_IO != 0,
                BarKind::Memory | BarKind::Prefetchable => command & COMMAND_MEMORY != 0,
                BarKind::Rom => command & COMMAND_MEMORY != 0 && value & ROM_ENABLE != 0,
            };
            let (base, len) = (u64::from(value & !(len - 1)), u64::from(len));
            // While software asks for the size, the address is all ones; ports end at 64 K.
            let end = if kind == BarKind::Io { 1 << 16 } else { 0xffff_f000 };
            let index = Region::try_from(index).ok()?;
            (enabled && base != 0 && base + len <= end).then_some(Bar { index, kind, base, len })
        })
    }
}

fn bar_offset(index: usize) -> usize {
    if index == ROM_INDEX { ROM } else { BARS + 4 * index }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config() -> Config {
        Config::new(0x10ec, 0x8139, 0x02_00_00, 0x20)
            .subsystem(0x10ec, 0x8139)
            .interrupt_pin(1)
            .bar(0, BarKind::Io, 256)
            .bar(1, BarKind::Memory, 4096)
            .bar(6, BarKind::Rom, 65536)
    }

    #[test]
    fn the_header_is_that_of_the_specification() {
        let config = config();
        assert_eq!((config.u32(0), config.u32(8), config.u32(0x2c)), (0x8139_10ec, 0x0200_0020, 0x8139_10ec));
        assert_eq!((config.class(), config.pin(), config.u32(0x10)), (0x02_00_00, Some(0), 1));
    }

    #[test]
    fn a_bar_tells_its_size_and_answers_when_enabled() {
        let mut config = config();
        for (at, all, size) in
            [(0x10, 0xffff_ff01u32, 256), (0x14, 0xffff_f000, 4096), (0x30, 0xffff_0001, 65536)]
        {
            config.write(at, &[0xff; 4]);
            assert_eq!(config.u32(at), all, "{size}");
        }
        config.write(4, &[7, 0]);
        assert_eq!(config.bars().count(), 0, "no addresses yet");
        config.write(0x10, &0xc101u32.to_le_bytes());
        config.write(0x14, &0xfebf_1000u32.to_le_bytes());
        config.write(0x30, &0xfebe_0000u32.to_le_bytes());
        let io = Bar { index: 0, kind: BarKind::Io, base: 0xc100, len: 256 };
        let memory = Bar { index: 1, kind: BarKind::Memory, base: 0xfebf_1000, len: 4096 };
        assert_eq!(config.bars().collect::<Vec<_>>(), [io, memory]);
        config.write(0x30, &[1]);
        assert_eq!(config.bars().count(), 3);
        config.write(4, &[5, 0]);
        assert_eq!(config.bars().collect::<Vec<_>>(), [io]);
        assert!(config.is_master());
        config.reset();
        assert_eq!((config.bars().count(), config.is_master()), (0, false));
    }

    #[test]
    fn software_changes_nothing_else() {
        let mut config = config();
        let before = config.clone();
        for at in
            (0..256).filter(|at: &usize| !matches!(*at, 4 | 5 | 0x10..=0x17 | 0x30..=0x33 | INTERRUPT_LINE))
        {
            config.write(at, &[0xff]);
            config.write(at, &[0]);
        }
        assert_eq!(config.bytes, before.bytes);
        config.write(255, &[1, 2, 3, 4]);
        let mut data = [0; 4];
        config.read(254, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff]);
    }
}
