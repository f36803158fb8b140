//! The IDE controller of a PIIX3 (82371SB, function 1): two channels with two drives each, disks and CD-ROMs.
//!
//! Both channels are in compatibility mode: their ports and interrupts are fixed ([`PORTS`], [`IRQS`]). The bus master
//! is behind base address register 4. A drive reads and writes a [`Medium`], whose requests are done by another thread:
//! no register access waits for a disk.
//!
//! Sources: Intel 82371SB data sheet (290550), ATA/ATAPI-6 (T13/1410D), SFF-8038i 1.0 (bus master), MMC-3 and SPC-2.

mod ata;
mod atapi;
mod bus_master;
mod channel;
mod drive;
mod identify;
mod smart;
mod spec;
mod task_file;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use self::drive::Identity;

use self::channel::Channel;
use self::drive::{Drive, Kind};
use crate::bus::{IrqLine, Region, Registers};
use crate::medium::Medium;
use crate::memory::GuestRam;
use crate::pci::{BarKind, Config, PciFunction};

/// Fixed ports: base, length and region.
pub const PORTS: [(u64, u64, Region); 4] = [(0x1f0, 8, 0), (0x3f6, 1, 1), (0x170, 8, 2), (0x376, 1, 3)];
/// ISA interrupts of the channels.
pub const IRQS: [u8; 2] = [14, 15];
/// The region of the bus master's 16 ports, which is the base address register too.
const BUS_MASTER: Region = 4;

/// IDE timing registers; bit 15 of each word lets the ports of the channel answer.
const TIMING: usize = 0x40;
const DECODE: u16 = 0x8000;
/// Command register of the function, and its bit for ports.
const COMMAND: usize = 4;
const COMMAND_IO: u16 = 1;
/// How long a reset of the machine waits for the last requests.
const RESET_WAIT: Duration = Duration::from_secs(10);

/// Where a drive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// 0 is the primary channel.
    pub channel: usize,
    /// 0 is the master.
    pub unit: usize,
}

impl Place {
    /// Of `hda` (0) to `hdd` (3).
    pub fn of_hd(disk: u32) -> Option<Self> {
        let disk = usize::try_from(disk).ok().filter(|disk| *disk < 4)?;
        Some(Self { channel: disk / 2, unit: disk % 2 })
    }
}

/// What is attached to a channel.
pub enum Attachment {
    /// A hard disk.
    Disk(Arc<dyn Medium>),
    /// A CD-ROM drive, and what is in it.
    Cdrom(Option<Arc<dyn Medium>>),
}

/// Why the medium of a drive could not be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// There is no CD-ROM drive.
    #[error("there is no CD-ROM drive; name the vdev of one")]
    NoDrive,
    /// The guest has locked it.
    #[error("the guest has locked the drive; eject the disc in the guest, or force it")]
    Locked,
}

/// The tray of a CD-ROM drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tray {
    /// It is open: the guest has opened it, or the host has taken the disc out.
    pub open: bool,
    /// The guest does not want the disc to be taken out.
    pub locked: bool,
    /// There is a disc, whether the tray is open or not.
    pub disc: bool,
}

impl Tray {
    /// Whether the host may not change the disc without force.
    pub fn keeps_disc(self) -> bool {
        self.locked && self.disc && !self.open
    }
}

/// The controller.
pub struct Ide {
    config: Config,
    channels: [Arc<Mutex<Channel>>; 2],
}

fn lock(channel: &Mutex<Channel>) -> MutexGuard<'_, Channel> {
    channel.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ide {
    /// A controller without drives. `irqs`: the lines of [`IRQS`].
    pub fn new(ram: &Arc<GuestRam>, irqs: [Arc<dyn IrqLine>; 2]) -> Self {
        let mut config = Config::new(0x8086, 0x7010, 0x01_01_80, 0).bar(BUS_MASTER, BarKind::Io, 16);
        config.allow(TIMING, &[0xff; 5]);
        // Capable of being a bus master, DEVSEL# medium (82371SB, 2.3.4).
        config.set_u16(6, 0x0280);
        let channels = irqs.map(|irq| Arc::new(Mutex::new(Channel::new(irq, Arc::clone(ram)))));
        Self { config, channels }
    }

    /// Attaches a drive, as before power on; false: there is one at this place, or no such place.
    pub fn attach(&mut self, place: Place, what: Attachment, identity: Identity) -> bool {
        let Some(channel) = self.channels.get(place.channel) else { return false };
        let weak = Arc::downgrade(channel);
        let mut channel = lock(channel);
        let Some(slot @ None) = channel.drives.get_mut(place.unit) else { return false };
        let (kind, medium) = match what {
            Attachment::Disk(medium) => (Kind::Disk, Some(medium)),
            Attachment::Cdrom(medium) => (Kind::Cdrom, medium),
        };
        *slot = Some(Drive::new(weak, place.unit, kind, medium, identity));
        true
    }

    /// Puts a disc into a CD-ROM drive, or takes it out (`None`). A drive that the guest has locked keeps its disc unless
    /// `force`, and the guest is told that the button was pressed.
    ///
    /// Returns the disc before, to be dropped when the controller is not locked: it may wait for a request of its own.
    pub fn change_medium(
        &mut self,
        place: Place,
        medium: Option<Arc<dyn Medium>>,
        force: bool,
    ) -> Result<Option<Arc<dyn Medium>>, ChangeError> {
        let mut channel = self.channel(place.channel).ok_or(ChangeError::NoDrive)?;
        let drive = channel.drives.get_mut(place.unit).and_then(Option::as_mut);
        let drive = drive.filter(|drive| drive.is_packet()).ok_or(ChangeError::NoDrive)?;
        drive.change(medium, force)
    }

    /// The tray of a CD-ROM drive.
    pub fn tray(&self, place: Place) -> Option<Tray> {
        let channel = lock(self.channels.get(place.channel)?);
        let drive = channel.drives.get(place.unit)?.as_ref()?;
        let tray =
            Tray { open: drive.atapi.tray_open, locked: drive.atapi.locked, disc: drive.medium.is_some() };
        drive.is_packet().then_some(tray)
    }

    /// Takes all hard disks away, or all but the one at `keep`, for a guest that goes on with PV drivers. CD-ROM drives
    /// stay. What is under way is done or dropped first; a later request of the guest finds no drive.
    pub fn unplug_disks(&mut self, keep: Option<Place>) {
        for (number, channel) in self.channels.iter().enumerate() {
            let mut channel = quiet(lock(channel));
            let kept =
                |drive: &Drive| keep.is_some_and(|place| (place.channel, place.unit) == (number, drive.unit));
            let disk = |drive: &Drive| !drive.is_packet() && !kept(drive);
            let gone: Vec<Drive> =
                channel.drives.iter_mut().filter_map(|drive| drive.take_if(|drive| disk(drive))).collect();
            channel.settle();
            drop(channel);
            // As in change_medium().
            drop(gone);
        }
    }

    /// Whether the ports of a channel answer.
    fn is_decoded(&self, channel: usize) -> bool {
        self.config.u16(COMMAND) & COMMAND_IO != 0 && self.config.u16(TIMING + 2 * channel) & DECODE != 0
    }

    fn channel(&self, number: usize) -> Option<MutexGuard<'_, Channel>> {
        self.channels.get(number).map(|channel| lock(channel))
    }
}

/// Waits, for a while, until no request is under way.
fn quiet(channel: MutexGuard<'_, Channel>) -> MutexGuard<'_, Channel> {
    let quiet: Arc<Condvar> = Arc::clone(&channel.quiet);
    let waited = quiet.wait_timeout_while(channel, RESET_WAIT, |channel| channel.is_under_way());
    waited.unwrap_or_else(PoisonError::into_inner).0
}

impl Registers for Ide {
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        let number = usize::from(region / 2);
        if region == BUS_MASTER {
            for (byte, offset) in data.iter_mut().zip(offset..16) {
                if let Some(channel) = self.channel(usize::from(offset >= 8)) {
                    *byte = channel.bus_master.read(offset & 7);
                }
            }
        } else if self.is_decoded(number)
            && let Some(mut channel) = self.channel(number)
        {
            if region & 1 == 0 { channel.read(offset, data) } else { channel.read_control(data) }
        }
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        let number = usize::from(region / 2);
        if region == BUS_MASTER {
            for (byte, offset) in data.iter().zip(offset..16) {
                if let Some(mut channel) = self.channel(usize::from(offset >= 8)) {
                    channel.write_bus_master(offset & 7, *byte);
                }
            }
        } else if self.is_decoded(number)
            && let Some(mut channel) = self.channel(number)
        {
            if region & 1 == 0 { channel.write(offset, data) } else { channel.write_control(data) }
        }
    }

    /// Waits up to ten seconds for requests that are under way. Memory stays valid for what takes longer.
    fn reset(&mut self) {
        self.config.reset();
        for channel in &self.channels {
            let mut channel = lock(channel);
            channel.reset();
            drop(quiet(channel));
        }
    }
}

impl PciFunction for Ide {
    fn config(&self) -> &Config {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        let master = self.config.is_master();
        for channel in &self.channels {
            lock(channel).set_master(master);
        }
    }
}
