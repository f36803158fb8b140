//! The commands of a disk (ATA/ATAPI-6, section 8), and those that every drive has.

use super::drive::{Dma, Drive, Place, Task, bytes_of};
use super::spec::command as cmd;
use super::spec::error;
use crate::medium::SECTOR;

/// Sectors of the largest block of READ MULTIPLE and WRITE MULTIPLE.
pub(super) const MAX_MULTIPLE: u8 = 16;
/// The most that an address of 28 bits reaches.
pub(super) const MAX_LBA28: u64 = 0x0fff_ffff;

/// Cylinders, heads and sectors of a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) cylinders: u16,
    pub(super) heads: u8,
    pub(super) sectors: u8,
}

impl Geometry {
    /// The default: 16 heads of 63 sectors, at most 16383 cylinders (ATA-5, annex C).
    pub(super) fn of(sectors: u64) -> Self {
        Self::with(sectors, 16, 63)
    }

    fn with(total: u64, heads: u8, sectors: u8) -> Self {
        let cylinder = u64::from(heads) * u64::from(sectors);
        let cylinders = total.checked_div(cylinder).unwrap_or(0).clamp(1, 16383) as u16;
        Self { cylinders, heads, sectors }
    }

    /// Sectors that it reaches.
    pub(super) fn capacity(self) -> u32 {
        u32::from(self.cylinders) * u32::from(self.heads) * u32::from(self.sectors)
    }
}

/// What commands set, and a reset by software leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ata {
    pub(super) geometry: Geometry,
    /// Sectors of a block of the MULTIPLE commands; 0: they are off.
    pub(super) multiple: u8,
    /// Active mode as SET FEATURES names it: 0x20 and up multiword, 0x40 and up Ultra DMA.
    pub(super) dma_mode: u8,
    pub(super) write_cache: bool,
    pub(super) look_ahead: bool,
    pub(super) smart: bool,
    pub(super) standby: bool,
}

impl Default for Ata {
    fn default() -> Self {
        Self {
            geometry: Geometry::of(0),
            multiple: 0,
            dma_mode: 0x22,
            write_cache: true,
            look_ahead: true,
            smart: true,
            standby: false,
        }
    }
}

/// How a command names its sectors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wide {
    Lba28,
    Lba48,
}

impl Drive {
    pub(super) fn sectors(&self) -> u64 {
        self.medium.as_ref().map_or(0, |medium| medium.sectors())
    }

    pub(super) fn set_geometry(&mut self) {
        self.ata.geometry = Geometry::of(self.sectors());
    }

    /// Ends the command with an error that names a sector.
    pub(super) fn fail_at(&mut self, sector: u64, error: u8) {
        self.put_sector(sector);
        self.fail(error);
    }

    /// The registers name `sector`, as the host names sectors.
    fn put_sector(&mut self, sector: u64) {
        if sector > MAX_LBA28 {
            return self.regs.set_lba48(sector);
        }
        if self.regs.is_lba() {
            return self.regs.set_lba28(sector);
        }
        let Geometry { heads, sectors, .. } = self.ata.geometry;
        let (heads, sectors) = (u64::from(heads).max(1), u64::from(sectors).max(1));
        let track = sector / sectors;
        self.regs.low.current = ((sector % sectors + 1) & 0xff) as u8;
        self.regs.set_cylinder(((track / heads) & 0xffff) as u16);
        self.regs.device = self.regs.device & 0xf0 | ((track % heads) & 0x0f) as u8;
    }

    /// The sector that the registers name; `None`: there is no such head or sector.
    fn sector(&self, wide: Wide) -> Option<u64> {
        if wide == Wide::Lba48 {
            return self.regs.is_lba().then(|| self.regs.lba48());
        }
        if self.regs.is_lba() {
            return Some(self.regs.lba28());
        }
        let Geometry { heads, sectors, cylinders } = self.ata.geometry;
        let (cylinder, head, sector) = (self.regs.cylinder(), self.regs.head(), self.regs.low.current);
        let exists = cylinder < cylinders && head < heads && (1..=sectors).contains(&sector);
        let track = u64::from(cylinder) * u64::from(heads) + u64::from(head);
        exists.then(|| track * u64::from(sectors) + u64::from(sector) - 1)
    }

    /// The sectors that a command is about, first and count; it fails if not all of them exist.
    fn extent(&mut self, wide: Wide) -> Option<(u64, u64)> {
        let count = if wide == Wide::Lba48 { self.regs.count48() } else { self.regs.count28() };
        let first = self.sector(wide);
        let exists =
            first.and_then(|first| first.checked_add(count)).is_some_and(|end| end <= self.sectors());
        if !exists {
            self.fail(error::IDNF);
            return None;
        }
        Some((first?, count))
    }

    pub(super) fn ata_command(&mut self, code: u8) {
        use Wide::{Lba28, Lba48};
        let multiple = usize::from(self.ata.multiple) * SECTOR;
        match code {
            cmd::READ_SECTORS | cmd::READ_SECTORS_NO_RETRY => self.pio_read(Lba28, SECTOR),
            cmd::READ_SECTORS_EXT => self.pio_read(Lba48, SECTOR),
            cmd::READ_MULTIPLE => self.pio_read(Lba28, multiple),
            cmd::READ_MULTIPLE_EXT => self.pio_read(Lba48, multiple),
            cmd::WRITE_SECTORS | cmd::WRITE_SECTORS_NO_RETRY => self.pio_write(Lba28, SECTOR, false),
            cmd::WRITE_SECTORS_EXT => self.pio_write(Lba48, SECTOR, false),
            cmd::WRITE_MULTIPLE => self.pio_write(Lba28, multiple, false),
            cmd::WRITE_MULTIPLE_EXT => self.pio_write(Lba48, multiple, false),
            cmd::WRITE_MULTIPLE_FUA_EXT => self.pio_write(Lba48, multiple, true),
            cmd::READ_DMA | cmd::READ_DMA_NO_RETRY => self.dma(Lba28, true, false),
            cmd::READ_DMA_EXT => self.dma(Lba48, true, false),
            cmd::WRITE_DMA | cmd::WRITE_DMA_NO_RETRY => self.dma(Lba28, false, false),
            cmd::WRITE_DMA_EXT => self.dma(Lba48, false, false),
            cmd::WRITE_DMA_FUA_EXT => self.dma(Lba48, false, true),
            cmd::READ_VERIFY | cmd::READ_VERIFY_NO_RETRY => self.verify(Lba28),
            cmd::READ_VERIFY_EXT => self.verify(Lba48),
            // SEEK and RECALIBRATE, with the step rates of the oldest drives.
            0x70..=0x7f => match self.sector(Lba28) {
                Some(sector) if sector < self.sectors() => self.succeed(),
                _ => self.fail(error::IDNF),
            },
            0x10..=0x1f => self.succeed(),
            cmd::INITIALIZE_DEVICE_PARAMETERS => self.initialize_parameters(),
            cmd::SET_MULTIPLE => match self.regs.count.current {
                count @ 0..=MAX_MULTIPLE if count == 0 || count.is_power_of_two() => {
                    self.ata.multiple = count;
                    self.succeed();
                }
                _ => self.abort(),
            },
            cmd::FLUSH_CACHE | cmd::FLUSH_CACHE_EXT => self.finish_write(true),
            cmd::IDENTIFY_DEVICE => {
                let words = self.identify_device();
                self.data_in(words);
            }
            cmd::READ_NATIVE_MAX => {
                let last = self.sectors().min(MAX_LBA28).saturating_sub(1);
                self.regs.set_lba28(last);
                self.succeed();
            }
            cmd::READ_NATIVE_MAX_EXT if self.regs.is_lba() => {
                self.regs.set_lba48(self.sectors().saturating_sub(1));
                self.succeed();
            }
            cmd::SMART => self.smart(),
            _ => self.common_command(code),
        }
    }

    /// What disks and packet devices have in common.
    pub(super) fn common_command(&mut self, code: u8) {
        match code {
            cmd::SET_FEATURES => self.set_features(),
            // STANDBY IMMEDIATE and STANDBY.
            0xe0 | 0xe2 | 0x94 | 0x96 => {
                self.ata.standby = true;
                self.power_down();
            }
            // IDLE IMMEDIATE and IDLE.
            0xe1 | 0xe3 | 0x95 | 0x97 => {
                self.ata.standby = false;
                self.succeed();
            }
            // CHECK POWER MODE.
            0xe5 | 0x98 => {
                self.regs.count.current = if self.ata.standby { 0 } else { 0xff };
                let count = self.regs.count;
                self.succeed();
                self.regs.count = count;
            }
            // SLEEP.
            0xe6 | 0x99 => {
                self.ata.standby = true;
                self.asleep = true;
                self.power_down();
            }
            // NOP (0x00) is among them: it does nothing, and says so by failing.
            _ => self.abort(),
        }
    }

    /// A drive that stops its motor has written its cache before.
    fn power_down(&mut self) {
        let flush = !self.is_packet() && !self.medium.as_ref().is_none_or(|medium| medium.readonly());
        self.finish_write(flush);
    }

    /// Data of our own for the host.
    pub(super) fn data_in(&mut self, bytes: Vec<u8>) {
        self.block = SECTOR;
        self.answer(bytes);
    }

    fn pio_read(&mut self, wide: Wide, block: usize) {
        if block == 0 {
            return self.abort();
        }
        if let Some((first, count)) = self.extent(wide) {
            self.ata.standby = false;
            self.read_sectors(first, count, block);
        }
    }

    fn pio_write(&mut self, wide: Wide, block: usize, flush: bool) {
        if block == 0 || self.refuses_writes() {
            return self.abort();
        }
        if let Some((next, left)) = self.extent(wide) {
            self.ata.standby = false;
            self.block = block;
            let len = bytes_of(left, block);
            let flush = flush || !self.ata.write_cache;
            self.expect(Task::Write { next, left, flush }, len, false);
        }
    }

    fn dma(&mut self, wide: Wide, to_memory: bool, flush: bool) {
        if !to_memory && self.refuses_writes() {
            return self.abort();
        }
        if let Some((first, count)) = self.extent(wide) {
            self.ata.standby = false;
            let size = SECTOR as u64;
            let place = Place::Medium { offset: first * size, left: count * size };
            let flush = !to_memory && (flush || !self.ata.write_cache);
            self.begin_dma(Dma { to_memory, place, unit: SECTOR, flush, cut: false });
        }
    }

    fn refuses_writes(&self) -> bool {
        self.medium.as_ref().is_none_or(|medium| medium.readonly())
    }

    fn verify(&mut self, wide: Wide) {
        if let Some((next, left)) = self.extent(wide) {
            self.ata.standby = false;
            self.task = Task::Verify { next, left };
            self.verify_next();
        }
    }

    fn initialize_parameters(&mut self) {
        let (sectors, heads) = (self.regs.count.current, self.regs.head() + 1);
        if sectors == 0 {
            return self.abort();
        }
        self.ata.geometry = Geometry::with(self.sectors(), heads, sectors);
        self.succeed();
    }

    fn set_features(&mut self) {
        match self.regs.features.current {
            0x02 if !self.is_packet() => self.ata.write_cache = true,
            0x82 if !self.is_packet() => {
                self.ata.write_cache = false;
                // What is in the cache is written first.
                return self.finish_write(true);
            }
            0x03 => match self.regs.count.current {
                // PIO: the default, or with flow control up to mode 4.
                0 | 1 | 0x08..=0x0c => {}
                mode @ (0x20..=0x22 | 0x40..=0x45) => self.ata.dma_mode = mode,
                _ => return self.abort(),
            },
            0x55 if !self.is_packet() => self.ata.look_ahead = false,
            0xaa if !self.is_packet() => self.ata.look_ahead = true,
            // Whether a software reset brings the defaults back: it never does.
            0x66 => {}
            _ => return self.abort(),
        }
        self.succeed();
    }

    /// SMART, of a disk that is well.
    fn smart(&mut self) {
        let operation = self.regs.features.current;
        if self.regs.cylinder() != 0xc24f || !self.ata.smart && operation != 0xd8 {
            return self.abort();
        }
        match operation {
            0xd0 => self.data_in(super::smart::data()),
            0xd1 => self.data_in(super::smart::thresholds()),
            // Attributes are saved by themselves, whatever is asked for.
            0xd2 | 0xd3 => self.succeed(),
            0xd8 | 0xd9 => {
                self.ata.smart = operation == 0xd8;
                self.succeed();
            }
            // RETURN STATUS: the key stays in the registers if no threshold is exceeded.
            0xda => self.succeed(),
            _ => self.abort(),
        }
    }

    /// Reads the medium for a packet device, in blocks of at most `limit` bytes.
    pub(super) fn read_packet_data(&mut self, first: u64, count: u64, limit: usize) {
        self.block = limit;
        self.task = Task::Read { next: first, left: count, ahead: 128 };
        self.read_ahead();
    }
}
