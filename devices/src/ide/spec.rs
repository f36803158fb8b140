//! Registers and commands: ATA/ATAPI-6 (T13/1410D), sections 7 and 8, and SFF-8038i for the bus master.
#![allow(missing_docs)]

/// Status register.
pub(super) mod status {
    pub(crate) const ERR: u8 = 0x01;
    pub(crate) const DRQ: u8 = 0x08;
    /// Seek complete of ATA-3 and before; obsolete since, and still looked at.
    pub(crate) const DSC: u8 = 0x10;
    pub(crate) const DRDY: u8 = 0x40;
    pub(crate) const BSY: u8 = 0x80;
}

/// Error register.
pub(super) mod error {
    pub(crate) const ABRT: u8 = 0x04;
    pub(crate) const IDNF: u8 = 0x10;
    pub(crate) const UNC: u8 = 0x40;
    /// After a reset or EXECUTE DEVICE DIAGNOSTIC: passed.
    pub(crate) const PASSED: u8 = 0x01;
}

/// Device control register.
pub(super) mod control {
    pub(crate) const NIEN: u8 = 0x02;
    pub(crate) const SRST: u8 = 0x04;
    pub(crate) const HOB: u8 = 0x80;
}

/// Device register.
pub(super) mod device {
    pub(crate) const DEV: u8 = 0x10;
    pub(crate) const LBA: u8 = 0x40;
}

/// Interrupt reason, in the sector count register of packet devices.
pub(super) mod reason {
    /// The packet, or the end of the command; else data.
    pub(crate) const COD: u8 = 1;
    /// To the host.
    pub(crate) const IO: u8 = 2;
}

/// Offsets in the command block.
pub(super) mod register {
    pub(crate) const DATA: u64 = 0;
    pub(crate) const FEATURES: u64 = 1;
    pub(crate) const COUNT: u64 = 2;
    pub(crate) const LBA_LOW: u64 = 3;
    pub(crate) const LBA_MID: u64 = 4;
    pub(crate) const LBA_HIGH: u64 = 5;
    pub(crate) const DEVICE: u64 = 6;
    pub(crate) const COMMAND: u64 = 7;
}

/// Command codes.
pub(super) mod command {
    pub(crate) const DEVICE_RESET: u8 = 0x08;
    pub(crate) const READ_SECTORS: u8 = 0x20;
    pub(crate) const READ_SECTORS_NO_RETRY: u8 = 0x21;
    pub(crate) const READ_SECTORS_EXT: u8 = 0x24;
    pub(crate) const READ_DMA_EXT: u8 = 0x25;
    pub(crate) const READ_NATIVE_MAX_EXT: u8 = 0x27;
    pub(crate) const READ_MULTIPLE_EXT: u8 = 0x29;
    pub(crate) const WRITE_SECTORS: u8 = 0x30;
    pub(crate) const WRITE_SECTORS_NO_RETRY: u8 = 0x31;
    pub(crate) const WRITE_SECTORS_EXT: u8 = 0x34;
    pub(crate) const WRITE_DMA_EXT: u8 = 0x35;
    pub(crate) const WRITE_MULTIPLE_EXT: u8 = 0x39;
    pub(crate) const WRITE_DMA_FUA_EXT: u8 = 0x3d;
    pub(crate) const READ_VERIFY: u8 = 0x40;
    pub(crate) const READ_VERIFY_NO_RETRY: u8 = 0x41;
    pub(crate) const READ_VERIFY_EXT: u8 = 0x42;
    pub(crate) const EXECUTE_DEVICE_DIAGNOSTIC: u8 = 0x90;
    pub(crate) const INITIALIZE_DEVICE_PARAMETERS: u8 = 0x91;
    pub(crate) const PACKET: u8 = 0xa0;
    pub(crate) const IDENTIFY_PACKET_DEVICE: u8 = 0xa1;
    pub(crate) const SMART: u8 = 0xb0;
    pub(crate) const READ_MULTIPLE: u8 = 0xc4;
    pub(crate) const WRITE_MULTIPLE: u8 = 0xc5;
    pub(crate) const SET_MULTIPLE: u8 = 0xc6;
    pub(crate) const READ_DMA: u8 = 0xc8;
    pub(crate) const READ_DMA_NO_RETRY: u8 = 0xc9;
    pub(crate) const WRITE_DMA: u8 = 0xca;
    pub(crate) const WRITE_DMA_NO_RETRY: u8 = 0xcb;
    pub(crate) const WRITE_MULTIPLE_FUA_EXT: u8 = 0xce;
    pub(crate) const FLUSH_CACHE: u8 = 0xe7;
    pub(crate) const FLUSH_CACHE_EXT: u8 = 0xea;
    pub(crate) const IDENTIFY_DEVICE: u8 = 0xec;
    pub(crate) const SET_FEATURES: u8 = 0xef;
    pub(crate) const READ_NATIVE_MAX: u8 = 0xf8;
}

/// Bits of the bus master's registers.
pub(super) mod bus_master {
    pub(crate) const START: u8 = 0x01;
    /// To memory: the drive is read.
    pub(crate) const TO_MEMORY: u8 = 0x08;
    pub(crate) const ACTIVE: u8 = 0x01;
    pub(crate) const ERROR: u8 = 0x02;
    pub(crate) const INTERRUPT: u8 = 0x04;
    /// "Drive n is capable of DMA": kept for software.
    pub(crate) const CAPABLE: u8 = 0x60;
    /// Bit 15 of a descriptor's second word.
    pub(crate) const END_OF_TABLE: u16 = 0x8000;
}
