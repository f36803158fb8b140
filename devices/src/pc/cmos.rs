//! What firmware finds in the CMOS memory.
//!
//! Source: IBM PC/AT Technical Reference, "Real-time clock/CMOS RAM information"; SeaBIOS, src/hw/rtc.h.

/// Bytes of both banks.
pub const CMOS_SIZE: usize = 256;

const FLOPPIES: usize = 0x10;
const DISK_TYPES: usize = 0x12;
const EQUIPMENT: usize = 0x14;
const BASE_MEMORY: usize = 0x15;
const EXTENDED_MEMORY: usize = 0x17;
/// Extended types of the two disks, then nine bytes of geometry for each.
const DISK_EXTENDED: [usize; 2] = [0x19, 0x1a];
const DISK_GEOMETRY: [usize; 2] = [0x1b, 0x24];
/// The sum of 0x10 to 0x2d, high byte first.
const CHECKSUM: usize = 0x2e;
const EXTENDED_MEMORY_POST: usize = 0x30;
/// Memory from 16 MiB on, in units of 64 KiB.
const MEMORY_16M: usize = 0x34;
/// Third boot device in the upper half; bit 0: a floppy disk need not look bootable.
const BOOT_THIRD: usize = 0x38;
/// How the BIOS translates cylinders: two bits for each ATA disk.
const TRANSLATION: usize = 0x39;
/// First boot device in the lower half, second in the upper one.
const BOOT: usize = 0x3d;
/// Memory above 4 GiB in units of 64 KiB, three bytes.
const MEMORY_4G: usize = 0x5b;
/// Processors but one.
const PROCESSORS: usize = 0x5f;

/// Coprocessor and PS/2 mouse; no floppy drive, a display that has its own BIOS.
const EQUIPMENT_VALUE: u8 = 0x06;
/// "Look at the extended type": and that is the one that users define.
const TYPE_EXTENDED: u8 = 0xf;
const TYPE_USER: u8 = 47;
const TRANSLATE_LBA: u8 = 1;

const MIB: u64 = 1 << 20;

/// What firmware boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootDevice {
    /// A floppy disk.
    Floppy = 1,
    /// The first hard disk.
    Disk = 2,
    /// A CD-ROM.
    Cdrom = 3,
    /// An option ROM of a network card.
    Network = 4,
}

/// How a hard disk is addressed without LBA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders; as many as IDENTIFY tells, at most 16383.
    pub cylinders: u16,
    /// Heads, at most 16.
    pub heads: u8,
    /// Sectors of a track, at most 63.
    pub sectors: u8,
}

/// The machine, as far as CMOS memory tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmos {
    /// Bytes of RAM below 4 GiB, those below 1 MiB among them.
    pub memory: u64,
    /// Bytes of RAM from 4 GiB on.
    pub memory_above_4g: u64,
    /// Processors: at most 256 can be told.
    pub processors: u32,
    /// In this order; the first three count.
    pub boot: Vec<BootDevice>,
    /// The hard disks among master and slave of both channels; CD-ROMs are none.
    pub disks: [Option<Geometry>; 4],
}

fn put(bytes: &mut [u8; CMOS_SIZE], at: usize, value: &[u8]) {
    for (slot, value) in bytes.iter_mut().skip(at).zip(value) {
        *slot = *value;
    }
}

fn word(value: u64) -> [u8; 2] {
    u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes()
}

impl Cmos {
    /// Both banks of 128 bytes. The clock's own registers (0x00 to 0x0d, 0x32) are zero.
    pub fn bytes(&self) -> [u8; CMOS_SIZE] {
        let mut bytes = [0; CMOS_SIZE];
        put(&mut bytes, FLOPPIES, &[0]);
        put(&mut bytes, EQUIPMENT, &[EQUIPMENT_VALUE]);
        put(&mut bytes, BASE_MEMORY, &640u16.to_le_bytes());
        let extended = word(self.memory.saturating_sub(MIB) >> 10);
        put(&mut bytes, EXTENDED_MEMORY, &extended);
        put(&mut bytes, EXTENDED_MEMORY_POST, &extended);
        put(&mut bytes, MEMORY_16M, &word(self.memory.saturating_sub(16 * MIB) >> 16));
        let above = (self.memory_above_4g >> 16).min(0xff_ffff).to_le_bytes();
        put(&mut bytes, MEMORY_4G, above.get(..3).unwrap_or_default());
        let others = u8::try_from(self.processors.saturating_sub(1)).unwrap_or(u8::MAX);
        put(&mut bytes, PROCESSORS, &[others]);
        let boot = |n: usize| self.boot.get(n).map_or(0, |device| *device as u8);
        put(&mut bytes, BOOT, &[boot(0) | boot(1) << 4]);
        put(&mut bytes, BOOT_THIRD, &[boot(2) << 4]);
        self.put_disks(&mut bytes);
        let sum: u16 = bytes.iter().take(CHECKSUM).skip(FLOPPIES).copied().map(u16::from).sum();
        put(&mut bytes, CHECKSUM, &sum.to_be_bytes());
        bytes
    }

    fn put_disks(&self, bytes: &mut [u8; CMOS_SIZE]) {
        let (mut types, mut translation) = (0, 0);
        for (n, disk) in self.disks.iter().enumerate() {
            let Some(disk) = disk else { continue };
            if disk.cylinders > 1024 {
                translation |= TRANSLATE_LBA << (2 * n);
            }
            let (Some(extended), Some(geometry)) = (DISK_EXTENDED.get(n), DISK_GEOMETRY.get(n)) else {
                continue;
            };
            types |= if n == 0 { TYPE_EXTENDED << 4 } else { TYPE_EXTENDED };
            put(bytes, *extended, &[TYPE_USER]);
            let [low, high] = disk.cylinders.to_le_bytes();
            let control = 0xc0 | u8::from(disk.heads > 8) << 3;
            // Cylinders, heads, write precompensation (none), control byte, landing zone, sectors.
            let nine = [low, high, disk.heads, 0xff, 0xff, control, low, high, disk.sectors];
            put(bytes, *geometry, &nine);
        }
        put(bytes, DISK_TYPES, &[types]);
        put(bytes, TRANSLATION, &[translation]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_finds_memory_processors_and_boot_order() {
        let cmos = Cmos {
            memory: 512 * MIB,
            memory_above_4g: 3 << 30,
            processors: 4,
            boot: vec![BootDevice::Cdrom, BootDevice::Disk, BootDevice::Network],
            ..Cmos::default()
        };
        let bytes = cmos.bytes();
        for (at, value) in [
            (0x10, &[0][..]),
            (0x12, &[0]),
            (0x14, &[6]),
            (0x15, &[0x80, 0x02]),
            (0x17, &[0xff, 0xff]),
            (0x30, &[0xff, 0xff]),
            (0x34, &[0x00, 0x1f]),
            (0x38, &[0x40, 0, 0]),
            (0x3d, &[0x23]),
            (0x5b, &[0x00, 0xc0, 0x00]),
            (0x5f, &[3]),
        ] {
            assert_eq!(&bytes[at..at + value.len()], value, "{at:#x}");
        }
        let small = Cmos { memory: 8 * MIB, processors: 1, ..Cmos::default() }.bytes();
        assert_eq!((&small[0x17..0x19], &small[0x34..0x36]), (&[0x00, 0x1c][..], &[0, 0][..]));
        let huge = Cmos { memory: 4 << 30, memory_above_4g: u64::MAX, ..Cmos::default() }.bytes();
        assert_eq!((&huge[0x34..0x36], &huge[0x5b..0x5e]), (&[0x00, 0xff][..], &[0xff; 3][..]));
    }

    #[test]
    fn disks_are_of_the_type_that_users_define() {
        let large = Geometry { cylinders: 16383, heads: 16, sectors: 63 };
        let tiny = Geometry { cylinders: 306, heads: 4, sectors: 17 };
        let bytes = Cmos { disks: [Some(large), Some(tiny), None, Some(large)], ..Cmos::default() }.bytes();
        assert_eq!(bytes[0x12], 0xff);
        assert_eq!(bytes[0x19..0x1b], [47, 47]);
        assert_eq!(bytes[0x1b..0x24], [0xff, 0x3f, 16, 0xff, 0xff, 0xc8, 0xff, 0x3f, 63]);
        assert_eq!(bytes[0x24..0x2d], [0x32, 1, 4, 0xff, 0xff, 0xc0, 0x32, 1, 17]);
        assert_eq!(bytes[0x39], 0b01_00_00_01);
        let sum: u16 = bytes[0x10..0x2e].iter().map(|byte| u16::from(*byte)).sum();
        assert_eq!(bytes[0x2e..0x30], sum.to_be_bytes());
        assert_eq!(Cmos { disks: [None, Some(tiny), None, None], ..Cmos::default() }.bytes()[0x12], 0x0f);
    }
}
