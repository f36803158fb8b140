//! The command block registers of a drive. Those that the 48-bit commands use remember the value before the last one.

use super::spec::{device, register};

/// A register of two entries: what was written last, and before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fifo {
    pub(super) current: u8,
    pub(super) previous: u8,
}

impl Fifo {
    pub(super) fn write(&mut self, value: u8) {
        *self = Self { current: value, previous: self.current };
    }

    fn put(&mut self, value: u64, high: u32) {
        self.current = (value & 0xff) as u8;
        self.previous = (value >> high & 0xff) as u8;
    }
}

/// What the host writes before a command.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TaskFile {
    pub(super) features: Fifo,
    pub(super) count: Fifo,
    pub(super) low: Fifo,
    pub(super) mid: Fifo,
    pub(super) high: Fifo,
    pub(super) device: u8,
}

impl TaskFile {
    /// The registers after a reset: the signature of a disk or of a packet device (ATA/ATAPI-6, 9.12).
    pub(super) fn signature(&mut self, packet: bool) {
        let (mid, high) = if packet { (0x14, 0xeb) } else { (0, 0) };
        let at = |current| Fifo { current, previous: 0 };
        *self = Self { features: at(0), count: at(1), low: at(1), mid: at(mid), high: at(high), device: 0 };
    }

    pub(super) fn write(&mut self, offset: u64, value: u8) {
        match offset {
            register::FEATURES => self.features.write(value),
            register::COUNT => self.count.write(value),
            register::LBA_LOW => self.low.write(value),
            register::LBA_MID => self.mid.write(value),
            register::LBA_HIGH => self.high.write(value),
            register::DEVICE => self.device = value,
            _ => {}
        }
    }

    /// Count, LBA registers and device; `previous`: what the bit HOB asks for.
    pub(super) fn read(&self, offset: u64, previous: bool) -> u8 {
        let fifo = match offset {
            register::COUNT => self.count,
            register::LBA_LOW => self.low,
            register::LBA_MID => self.mid,
            register::LBA_HIGH => self.high,
            // Bits 7 and 5 are obsolete, and ones (ATA-3, 7.2.8).
            register::DEVICE => return self.device | 0xa0,
            _ => return 0xff,
        };
        if previous { fifo.previous } else { fifo.current }
    }

    pub(super) fn is_lba(&self) -> bool {
        self.device & device::LBA != 0
    }

    /// Head, or bits 24 to 27 of the address.
    pub(super) fn head(&self) -> u8 {
        self.device & 0x0f
    }

    pub(super) fn cylinder(&self) -> u16 {
        u16::from_le_bytes([self.mid.current, self.high.current])
    }

    pub(super) fn set_cylinder(&mut self, cylinder: u16) {
        [self.mid.current, self.high.current] = cylinder.to_le_bytes();
    }

    pub(super) fn lba28(&self) -> u64 {
        let bytes = [self.low.current, self.mid.current, self.high.current, self.head()];
        u32::from_le_bytes(bytes).into()
    }

    pub(super) fn lba48(&self) -> u64 {
        let (low, mid, high) = (self.low, self.mid, self.high);
        let bytes = [low.current, mid.current, high.current, low.previous, mid.previous, high.previous, 0, 0];
        u64::from_le_bytes(bytes)
    }

    pub(super) fn set_lba28(&mut self, lba: u64) {
        for (register, shift) in [(&mut self.low, 0), (&mut self.mid, 8), (&mut self.high, 16)] {
            register.current = (lba >> shift & 0xff) as u8;
        }
        self.device = self.device & 0xf0 | (lba >> 24 & 0x0f) as u8;
    }

    pub(super) fn set_lba48(&mut self, lba: u64) {
        self.low.put(lba, 24);
        self.mid.put(lba >> 8, 24);
        self.high.put(lba >> 16, 24);
    }

    /// Sectors of a 28-bit command: 0 is 256.
    pub(super) fn count28(&self) -> u64 {
        if self.count.current == 0 { 256 } else { self.count.current.into() }
    }

    /// Sectors of a 48-bit command: 0 is 65536.
    pub(super) fn count48(&self) -> u64 {
        match u16::from_le_bytes([self.count.current, self.count.previous]) {
            0 => 65536,
            count => count.into(),
        }
    }
}
