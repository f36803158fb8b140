//! IDENTIFY DEVICE and IDENTIFY PACKET DEVICE (ATA/ATAPI-6, 8.15 and 8.16).

use super::ata::{MAX_LBA28, MAX_MULTIPLE};
use super::drive::Drive;
use super::smart::checksum;

/// ATA/ATAPI-6 and its three predecessors; its revision 3a.
const MAJOR: u16 = 0x0078;
const MINOR: u16 = 0x0019;
/// A word that is valid: bit 14 is one and bit 15 zero.
const VALID: u16 = 0x4000;

struct Words([u16; 256]);

impl Words {
    fn set(&mut self, at: usize, values: &[u16]) {
        for (word, value) in self.0.iter_mut().skip(at).zip(values) {
            *word = *value;
        }
    }

    /// Characters, two in a word, the first one in its upper half.
    fn text(&mut self, at: usize, words: usize, text: &str) {
        let visible = |byte: u8| if (0x20..0x7f).contains(&byte) { byte } else { b' ' };
        let mut bytes = text.bytes().map(visible).chain(std::iter::repeat(b' '));
        for word in self.0.iter_mut().skip(at).take(words) {
            *word = u16::from_be_bytes([bytes.next().unwrap_or(b' '), bytes.next().unwrap_or(b' ')]);
        }
    }

    fn dword(&mut self, at: usize, value: u32) {
        self.set(at, &[(value & 0xffff) as u16, (value >> 16) as u16]);
    }

    /// With the checksum in the last word.
    fn bytes(mut self) -> Vec<u8> {
        self.set(255, &[0x00a5]);
        let mut bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.pop();
        checksum(&mut bytes);
        bytes
    }
}

impl Drive {
    fn identify(&self, general: u16) -> Words {
        let mut words = Words([0; 256]);
        words.set(0, &[general]);
        words.text(10, 10, &self.identity.serial);
        words.text(23, 4, &self.identity.firmware);
        words.text(27, 20, &self.identity.model);
        // PIO mode 2 and the corresponding DMA mode, for those who know no words 64 and up.
        words.set(51, &[0x0200, 0x0200]);
        let mode = self.ata.dma_mode;
        let active = |first: u8| if mode & 0xf0 == first { 0x100u16 << (mode & 7) } else { 0 };
        // Multiword DMA 0 to 2; PIO 3 and 4; cycle times in ns.
        words.set(63, &[0x0007 | active(0x20), 3, 120, 120, 120, 120]);
        words.set(80, &[MAJOR, MINOR]);
        words.set(88, &[0x003f | active(0x40)]);
        // The cable has 80 conductors, and a jumper sets the number of the drive, which passed its diagnostic.
        words.set(93, &[if self.unit == 0 { 0x600b } else { 0x6b00 }]);
        words
    }

    /// 512 bytes.
    pub(super) fn identify_device(&self) -> Vec<u8> {
        let total = self.sectors();
        let default = super::ata::Geometry::of(total);
        let ata = &self.ata;
        let mut words = self.identify(0x0040);
        words.set(1, &[default.cylinders]);
        words.set(3, &[default.heads.into()]);
        words.set(6, &[default.sectors.into()]);
        words.set(47, &[0x8000 | u16::from(MAX_MULTIPLE)]);
        // The data register takes 32 bits; standby timer, IORDY that can be switched off, LBA, DMA.
        words.set(48, &[0x0001, 0x2f00, VALID]);
        // Words 54 to 58, 64 to 70 and 88 are valid.
        words.set(53, &[0x0007]);
        let current = ata.geometry;
        words.set(54, &[current.cylinders, current.heads.into(), current.sectors.into()]);
        words.dword(57, current.capacity());
        words.set(59, &[0x0100 | u16::from(ata.multiple)]);
        words.dword(60, u32::try_from(total.min(MAX_LBA28)).unwrap_or(0));
        // NOP, look-ahead, write cache, power management, SMART.
        let supported = 0x4069;
        // 48-bit addresses, FLUSH CACHE and FLUSH CACHE EXT; FUA.
        words.set(82, &[supported, VALID | 0x3400, VALID | 0x0040]);
        let off = |on: bool, bit: u16| if on { 0 } else { 1 << bit };
        let disabled = off(ata.smart, 0) | off(ata.write_cache, 5) | off(ata.look_ahead, 6);
        words.set(85, &[supported & !disabled, 0x3400, VALID | 0x0040]);
        words.dword(100, (total & 0xffff_ffff) as u32);
        words.set(102, &[(total >> 32 & 0xffff) as u16]);
        words.bytes()
    }

    /// 512 bytes.
    pub(super) fn identify_packet_device(&self) -> Vec<u8> {
        // A CD-ROM drive with a removable medium, packets of 12 bytes, ready for them within 50 us.
        let mut words = self.identify(0x85c0);
        // IORDY that can be switched off, LBA, DMA.
        words.set(49, &[0x0f00, VALID]);
        // Words 64 to 70 and 88 are valid.
        words.set(53, &[0x0006]);
        // NOP, DEVICE RESET, PACKET, power management.
        let supported = 0x4218;
        words.set(82, &[supported, VALID, VALID, supported, 0, VALID]);
        words.bytes()
    }
}
