//! A CD-ROM drive: packets, sense, and the tray (ATA/ATAPI-6, 8.23 and 9.10; MMC-3; SPC-2).

mod answers;
mod pages;
mod toc;

use std::sync::Arc;

use super::ChangeError;
use super::drive::{Dma, Drive, Place, Task};
use super::spec::command as cmd;
use super::spec::{error, reason};
use crate::medium::{Medium, SECTOR};

/// Bytes of a packet.
const PACKET: usize = 12;
/// Bytes of a block of a data disc, and sectors of 512 bytes of it.
pub(super) const BLOCK: usize = 2048;
const SECTORS: u64 = (BLOCK / SECTOR) as u64;

/// Sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sense(pub(super) u8, pub(super) u8, pub(super) u8);

impl Sense {
    const NONE: Self = Self(0, 0, 0);
    const NO_MEDIUM: Self = Self(2, 0x3a, 1);
    const NO_MEDIUM_TRAY_OPEN: Self = Self(2, 0x3a, 2);
    const READ_ERROR: Self = Self(3, 0x11, 0);
    const INVALID_COMMAND: Self = Self(5, 0x20, 0);
    const OUT_OF_RANGE: Self = Self(5, 0x21, 0);
    const INVALID_FIELD: Self = Self(5, 0x24, 0);
    const INVALID_PARAMETER: Self = Self(5, 0x26, 0);
    const LIST_LENGTH: Self = Self(5, 0x1a, 0);
    const SAVING: Self = Self(5, 0x39, 0);
    const LOCKED: Self = Self(5, 0x53, 2);
    const WRONG_TRACK: Self = Self(5, 0x64, 0);
    const CHANGED: Self = Self(6, 0x28, 0);
    const RESET: Self = Self(6, 0x29, 0);
    const TRANSFER: Self = Self(0x0b, 0x08, 0);
}

/// What a medium event says (MMC-3, table 79), once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Event {
    #[default]
    None = 0,
    EjectRequest = 1,
    NewMedium = 2,
    Removed = 3,
}

/// What outlasts a command.
#[derive(Clone, Debug, Default)]
pub(super) struct Atapi {
    sense: Sense,
    /// To be told with the next command: the drive was reset; the medium may have changed.
    was_reset: bool,
    changed: bool,
    event: Event,
    pub(super) tray_open: bool,
    pub(super) locked: bool,
    // The command under way: bytes of a block, DMA, and the operation that data from the host belong to.
    limit: u16,
    dma: bool,
    pages: pages::Settings,
}

impl Atapi {
    pub(super) fn power_on(medium: bool) -> Self {
        Self { was_reset: true, changed: medium, ..Self::default() }
    }
}

/// An answer, or why there is none.
type Outcome = Result<Reply, Sense>;

enum Reply {
    /// Nothing to be transferred.
    Done,
    /// Bytes for the host, as many as it asked for at most.
    Bytes(Vec<u8>),
    /// Blocks of the disc: first and count.
    Blocks(u64, u64),
    /// So many bytes from the host.
    Wanted(usize),
}

/// The bytes of a packet, whatever its length.
#[derive(Clone, Copy)]
struct Cdb([u8; PACKET]);

impl Cdb {
    fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.byte(at), self.byte(at + 1)])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) << 16 | u32::from(self.u16(at + 2))
    }
}

impl Drive {
    pub(super) fn atapi_command(&mut self, code: u8) {
        match code {
            cmd::PACKET => self.begin_packet(),
            cmd::IDENTIFY_PACKET_DEVICE => {
                let words = self.identify_packet_device();
                self.block = words.len();
                self.data_in(words);
            }
            // What a disk would do tells by failing that this is a packet device (ATA/ATAPI-6, 9.12).
            cmd::IDENTIFY_DEVICE | cmd::READ_SECTORS | cmd::READ_SECTORS_EXT => {
                let device = self.regs.device;
                self.abort();
                self.regs.signature(true);
                self.regs.device = device;
            }
            _ => self.common_command(code),
        }
    }

    fn begin_packet(&mut self) {
        let features = self.regs.features.current;
        // Overlap is not offered.
        if features & 2 != 0 {
            return self.abort();
        }
        self.atapi.dma = features & 1 != 0;
        // An odd limit holds for the last block only; 0 is what drivers write for DMA.
        self.atapi.limit = match self.regs.cylinder() & !1 {
            0 => 0xfffe,
            limit => limit,
        };
        self.block = PACKET;
        self.expect(Task::Packet, PACKET, false);
        self.regs.count.current = reason::COD;
    }

    /// The packet has come.
    pub(super) fn packet(&mut self, bytes: &[u8]) {
        let mut cdb = Cdb([0; PACKET]);
        cdb.0.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        match self.execute(&cdb) {
            Ok(Reply::Done) => self.succeed(),
            Ok(Reply::Bytes(bytes)) if bytes.is_empty() => self.succeed(),
            Ok(Reply::Bytes(bytes)) => {
                if self.atapi.dma {
                    (self.buffer, self.at) = (bytes, 0);
                    self.begin_packet_dma(true, Place::Buffer, 1);
                } else {
                    self.block = self.atapi.limit.into();
                    self.answer(bytes);
                }
            }
            Ok(Reply::Blocks(_, 0)) => self.succeed(),
            Ok(Reply::Blocks(first, count)) => {
                if self.atapi.dma {
                    let (offset, left) = (first * BLOCK as u64, count * BLOCK as u64);
                    self.begin_packet_dma(true, Place::Medium { offset, left }, BLOCK);
                } else {
                    self.read_packet_data(first * SECTORS, count * SECTORS, self.atapi.limit.into());
                }
            }
            Ok(Reply::Wanted(0)) => self.succeed(),
            Ok(Reply::Wanted(len)) => {
                self.buffer = vec![0; len];
                self.at = 0;
                if self.atapi.dma {
                    self.begin_packet_dma(false, Place::Buffer, 1);
                } else {
                    self.task = Task::PacketOut;
                    self.block = self.atapi.limit.into();
                    self.ask();
                }
            }
            Err(sense) => self.check_condition(sense),
        }
    }

    fn begin_packet_dma(&mut self, to_memory: bool, place: Place, unit: usize) {
        self.regs.count.current = if to_memory { reason::IO } else { 0 };
        self.begin_dma(Dma { to_memory, place, unit, flush: false, cut: false });
    }

    /// The data that belong to a packet have come: only MODE SELECT has some.
    pub(super) fn packet_out(&mut self, bytes: &[u8]) {
        match self.atapi.pages.select(bytes) {
            Ok(()) => self.succeed(),
            Err(sense) => self.check_condition(sense),
        }
    }

    /// Ends the command with a sense key; the host asks for the rest by REQUEST SENSE.
    fn check_condition(&mut self, sense: Sense) {
        self.atapi.sense = sense;
        let abort = if matches!(sense.0, 5 | 0x0b) { error::ABRT } else { 0 };
        self.fail(sense.0 << 4 | abort);
    }

    /// The medium could not be read.
    pub(super) fn medium_error(&mut self) {
        self.check_condition(Sense::READ_ERROR);
    }

    /// The data did not get where they should.
    pub(super) fn transfer_error(&mut self) {
        self.check_condition(Sense::TRANSFER);
    }

    /// The disc, if the tray is closed on one.
    fn disc(&self) -> Option<&Arc<dyn Medium>> {
        self.medium.as_ref().filter(|_| !self.atapi.tray_open)
    }

    /// Blocks of the disc.
    fn blocks(&self) -> Result<u64, Sense> {
        match self.disc() {
            Some(disc) => Ok((disc.sectors() / SECTORS).min(u32::MAX.into())),
            None if self.atapi.tray_open => Err(Sense::NO_MEDIUM_TRAY_OPEN),
            None => Err(Sense::NO_MEDIUM),
        }
    }

    fn execute(&mut self, cdb: &Cdb) -> Outcome {
        let operation = cdb.byte(0);
        // INQUIRY, REQUEST SENSE, GET CONFIGURATION and GET EVENT STATUS NOTIFICATION work whatever has happened.
        if !matches!(operation, 0x03 | 0x12 | 0x46 | 0x4a) {
            if std::mem::take(&mut self.atapi.was_reset) {
                return Err(Sense::RESET);
            }
            if self.disc().is_some() && std::mem::take(&mut self.atapi.changed) {
                return Err(Sense::CHANGED);
            }
        }
        let allocation = cdb.u16(7).into();
        let mut reply = match operation {
            // TEST UNIT READY
            0x00 => self.blocks().map(|_| Reply::Done),
            0x03 => Ok(Reply::Bytes(cut(self.request_sense(), cdb.byte(4).into()))),
            0x12 => self.inquiry(cdb),
            0x1b => self.start_stop(cdb.byte(4)),
            // PREVENT ALLOW MEDIUM REMOVAL
            0x1e => {
                self.atapi.locked = cdb.byte(4) & 1 != 0;
                Ok(Reply::Done)
            }
            // READ CAPACITY
            0x25 => self.blocks().map(|blocks| {
                let last = u32::try_from(blocks.saturating_sub(1)).unwrap_or(u32::MAX);
                let mut bytes = last.to_be_bytes().to_vec();
                bytes.extend(2048u32.to_be_bytes());
                Reply::Bytes(bytes)
            }),
            0x28 => self.read(cdb.u32(2), cdb.u16(7).into()),
            0xa8 => self.read(cdb.u32(2), cdb.u32(6)),
            0xbe => self.read_cd(cdb),
            // SEEK
            0x2b => self.read(cdb.u32(2), 0).map(|_| Reply::Done),
            0x43 => self.read_toc(cdb).map(|bytes| Reply::Bytes(cut(bytes, allocation))),
            0x46 => self.get_configuration(cdb).map(|bytes| Reply::Bytes(cut(bytes, allocation))),
            0x4a => self.event_status(cdb).map(|bytes| Reply::Bytes(cut(bytes, allocation))),
            0x51 => self.disc_information(cdb).map(|bytes| Reply::Bytes(cut(bytes, allocation))),
            0x55 => Ok(Reply::Wanted(allocation)),
            0x5a => self.mode_sense(cdb).map(|bytes| Reply::Bytes(cut(bytes, allocation))),
            0xbd => Ok(Reply::Bytes(cut(self.mechanism_status(), cdb.u16(8).into()))),
            // SET CD SPEED: every speed is one.
            0xbb => Ok(Reply::Done),
            _ => Err(Sense::INVALID_COMMAND),
        };
        if operation != 0x03 && reply.is_ok() {
            self.atapi.sense = Sense::NONE;
        }
        // MODE SELECT in the page format only.
        if operation == 0x55 && cdb.byte(1) & 0x11 != 0x10 {
            reply = Err(Sense::INVALID_FIELD);
        }
        reply
    }

    fn read(&self, first: u32, count: u32) -> Outcome {
        let (blocks, first, count) = (self.blocks()?, u64::from(first), u64::from(count));
        // The first block has to exist even if none is read.
        if first >= blocks || first + count > blocks {
            return Err(Sense::OUT_OF_RANGE);
        }
        Ok(Reply::Blocks(first, count))
    }

    /// READ CD: blocks of mode 1, of which the user data can be had.
    fn read_cd(&self, cdb: &Cdb) -> Outcome {
        let count = u32::from_be_bytes([0, cdb.byte(6), cdb.byte(7), cdb.byte(8)]);
        // Expected sector type: any, or mode 1.
        if !matches!(cdb.byte(1) >> 2 & 7, 0 | 2) {
            self.blocks()?;
            return Err(Sense::WRONG_TRACK);
        }
        let (main, subchannel) = (cdb.byte(9), cdb.byte(10) & 7);
        match main {
            _ if subchannel != 0 => Err(Sense::INVALID_FIELD),
            0 => self.read(cdb.u32(2), count).map(|_| Reply::Done),
            0x10 => self.read(cdb.u32(2), count),
            _ => Err(Sense::INVALID_FIELD),
        }
    }

    /// START STOP UNIT: LoEj and Start.
    fn start_stop(&mut self, what: u8) -> Outcome {
        match what & 3 {
            2 => {
                if self.atapi.locked {
                    return Err(Sense::LOCKED);
                }
                self.open_tray();
            }
            3 if self.atapi.tray_open => {
                self.atapi.tray_open = false;
                self.atapi.changed = self.medium.is_some();
                if self.medium.is_some() {
                    self.atapi.event = Event::NewMedium;
                }
            }
            // The motor: 0 and 1.
            1 => drop(self.blocks()?),
            _ => {}
        }
        Ok(Reply::Done)
    }

    fn open_tray(&mut self) {
        if self.disc().is_some() {
            self.atapi.event = Event::Removed;
        }
        self.atapi.tray_open = true;
    }

    /// The host puts a disc in, or takes it out. Returns the old one, unless the guest has locked the tray and it was not
    /// forced; then the guest is told that somebody pressed the button.
    pub(in crate::ide) fn change(
        &mut self,
        medium: Option<Arc<dyn Medium>>,
        force: bool,
    ) -> Result<Option<Arc<dyn Medium>>, ChangeError> {
        if self.atapi.locked && self.disc().is_some() && !force {
            self.atapi.event = Event::EjectRequest;
            return Err(ChangeError::Locked);
        }
        self.atapi.event = match (&medium, self.disc()) {
            (Some(_), _) => Event::NewMedium,
            (None, Some(_)) => Event::Removed,
            (None, None) => self.atapi.event,
        };
        self.atapi.changed = medium.is_some();
        self.atapi.locked = false;
        self.atapi.tray_open = medium.is_none();
        Ok(std::mem::replace(&mut self.medium, medium))
    }

    /// Sense data in the fixed format (SPC-2, 4.5.3). What was not told before goes first.
    fn request_sense(&mut self) -> Vec<u8> {
        let sense = match std::mem::take(&mut self.atapi.sense) {
            Sense::NONE if std::mem::take(&mut self.atapi.was_reset) => Sense::RESET,
            Sense::NONE if self.disc().is_some() && std::mem::take(&mut self.atapi.changed) => Sense::CHANGED,
            sense => sense,
        };
        vec![0x70, 0, sense.0, 0, 0, 0, 0, 10, 0, 0, 0, 0, sense.1, sense.2, 0, 0, 0, 0]
    }
}

fn cut(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    bytes.truncate(len);
    bytes
}
