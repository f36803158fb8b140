//! A drive: registers, the data on their way, and the request to the medium that is under way.
//!
//! A drive has at most one request under way, and is busy until it is done. A reset in between waits for it: then the
//! result is dropped, and the drive comes back with its signature.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::ata::Ata;
use super::atapi::Atapi;
use super::channel::Channel;
use super::spec::command as cmd;
use super::spec::{error, reason, status};
use super::task_file::TaskFile;
use crate::medium::{Medium, Memory, Op, Request, SECTOR};

/// Sectors of 512 bytes that a PIO read asks of the medium at once.
const READ_AHEAD: u64 = 128;
/// Bytes of one request of a DMA transfer.
pub(super) const MAX_CHUNK: u64 = 1 << 20;

/// Bytes of so many sectors, at most `most`.
pub(super) fn bytes_of(sectors: u64, most: usize) -> usize {
    usize::try_from(sectors).unwrap_or(usize::MAX).saturating_mul(SECTOR).min(most)
}

/// What a drive says of itself. What is too long is cut off; characters are ASCII from 0x20 to 0x7e.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// At most 40 characters.
    pub model: String,
    /// At most 20 characters.
    pub serial: String,
    /// Version of the firmware, at most 8 characters.
    pub firmware: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Disk,
    Cdrom,
}

/// What the drive does once the data in the buffer, or a request, is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Nothing,
    /// The buffer is read by the host, and that is all.
    Answer,
    /// Sectors of 512 bytes for the host: `left` are still on the medium, from `next` on.
    Read {
        next: u64,
        left: u64,
        ahead: u64,
    },
    /// Sectors from the host; the block in the buffer begins at `next`, and `left` are still to come with it.
    Write {
        next: u64,
        left: u64,
        flush: bool,
    },
    /// Sectors that are read for nothing.
    Verify {
        next: u64,
        left: u64,
    },
    /// What was written goes to stable storage, then the command is done.
    Flush,
    /// The bus master moves the data.
    Dma,
    /// The host writes the packet of a command.
    Packet,
    /// The host writes what belongs to the packet.
    PacketOut,
}

/// Where the data of a DMA transfer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On the medium: byte offset and bytes.
    Medium { offset: u64, left: u64 },
    /// In the buffer.
    Buffer,
}

/// A DMA transfer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dma {
    /// From the drive to memory.
    pub(super) to_memory: bool,
    pub(super) place: Place,
    /// Bytes that are moved in one piece: a sector.
    pub(super) unit: usize,
    /// A flush follows.
    pub(super) flush: bool,
    /// The bus master was stopped while a request was under way.
    pub(super) cut: bool,
}

pub(super) struct Drive {
    // What it is.
    channel: Weak<Mutex<Channel>>,
    pub(super) unit: usize,
    pub(super) kind: Kind,
    pub(super) identity: Identity,
    pub(super) medium: Option<Arc<dyn Medium>>,
    // Its registers.
    pub(super) regs: TaskFile,
    pub(super) status: u8,
    pub(super) error: u8,
    /// It wants to interrupt.
    pub(super) irq: bool,
    // What it does.
    pub(super) task: Task,
    pub(super) buffer: Vec<u8>,
    pub(super) at: usize,
    /// Where the block that the host may read or write now ends.
    end: usize,
    /// Bytes of a block.
    pub(super) block: usize,
    pub(super) dma: Option<Dma>,
    under_way: bool,
    /// SRST is set.
    held: bool,
    resetting: bool,
    pub(super) asleep: bool,
    // What survives commands.
    pub(super) ata: Ata,
    pub(super) atapi: Atapi,
}

impl Drive {
    pub(super) fn new(
        channel: Weak<Mutex<Channel>>,
        unit: usize,
        kind: Kind,
        medium: Option<Arc<dyn Medium>>,
        identity: Identity,
    ) -> Self {
        let mut drive = Self {
            channel,
            unit,
            kind,
            identity,
            medium,
            regs: TaskFile::default(),
            status: 0,
            error: 0,
            irq: false,
            task: Task::Nothing,
            buffer: Vec::new(),
            at: 0,
            end: 0,
            block: SECTOR,
            dma: None,
            under_way: false,
            held: false,
            resetting: false,
            asleep: false,
            ata: Ata::default(),
            atapi: Atapi::default(),
        };
        drive.power_on();
        drive
    }

    pub(super) fn is_packet(&self) -> bool {
        self.kind == Kind::Cdrom
    }

    pub(super) fn is_busy(&self) -> bool {
        self.status & status::BSY != 0
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// DRDY, and the bit that was "seek complete" of a disk.
    fn ready(&self) -> u8 {
        if self.is_packet() { status::DRDY } else { status::DRDY | status::DSC }
    }

    // Resets

    /// As after power on; a request under way is waited for.
    pub(super) fn power_on(&mut self) {
        self.ata = Ata::default();
        self.atapi = Atapi::power_on(self.medium.is_some());
        self.set_geometry();
        self.begin_reset(false);
    }

    /// SRST is set (`held`) or cleared; or DEVICE RESET.
    pub(super) fn begin_reset(&mut self, held: bool) {
        self.drop_transfer();
        self.irq = false;
        self.asleep = false;
        self.held = held;
        self.resetting = true;
        self.status = status::BSY;
        if self.under_way
            && let Some(medium) = &self.medium
        {
            medium.cancel();
        }
        self.end_reset();
    }

    fn end_reset(&mut self) {
        if self.resetting && !self.held && !self.under_way {
            self.resetting = false;
            self.sign();
        }
    }

    /// The signature, and the state of a drive that has passed its diagnostic.
    pub(super) fn sign(&mut self) {
        self.regs.signature(self.is_packet());
        self.error = error::PASSED;
        // A packet device becomes ready with its first command (ATA/ATAPI-6, 9.12).
        self.status = if self.is_packet() { 0 } else { self.ready() };
    }

    /// What was being transferred is forgotten.
    pub(super) fn drop_transfer(&mut self) {
        self.task = Task::Nothing;
        self.dma = None;
        self.buffer = Vec::new();
        (self.at, self.end) = (0, 0);
    }

    // The end of a command

    pub(super) fn succeed(&mut self) {
        self.drop_transfer();
        self.status = self.ready();
        if self.is_packet() {
            self.error = 0;
            self.regs.count.current = reason::IO | reason::COD;
        }
        self.irq = true;
    }

    pub(super) fn fail(&mut self, error: u8) {
        self.drop_transfer();
        self.status = self.ready() | status::ERR;
        self.error = error;
        if self.is_packet() {
            self.regs.count.current = reason::IO | reason::COD;
        }
        self.irq = true;
    }

    pub(super) fn abort(&mut self) {
        self.fail(error::ABRT);
    }

    // Commands

    /// The command register is written.
    pub(super) fn command(&mut self, code: u8) {
        if code == cmd::DEVICE_RESET && self.is_packet() && !self.held {
            self.begin_reset(false);
            return;
        }
        // A drive that sleeps wants a reset.
        if self.is_busy() || self.asleep {
            return;
        }
        self.drop_transfer();
        self.irq = false;
        self.error = 0;
        match self.kind {
            Kind::Disk => self.ata_command(code),
            Kind::Cdrom => self.atapi_command(code),
        }
    }

    // PIO

    /// The host may read the next block of the buffer.
    fn offer(&mut self) {
        self.end = (self.at + self.block).min(self.buffer.len());
        self.status = self.ready() | status::DRQ;
        self.irq = true;
        if self.is_packet() {
            let len = u16::try_from(self.end - self.at).unwrap_or(u16::MAX);
            self.regs.set_cylinder(len);
            self.regs.count.current = reason::IO;
        }
    }

    /// The host is to read `bytes`.
    pub(super) fn answer(&mut self, bytes: Vec<u8>) {
        self.task = Task::Answer;
        (self.buffer, self.at) = (bytes, 0);
        self.offer();
    }

    /// The host is to write `len` bytes, which it is told by an interrupt if `irq`.
    pub(super) fn expect(&mut self, task: Task, len: usize, irq: bool) {
        self.task = task;
        self.buffer = vec![0; len];
        (self.at, self.end) = (0, len.min(self.block));
        self.status = self.ready() | status::DRQ;
        self.irq |= irq;
    }

    /// The data register is read: what is not there stays as it is.
    pub(super) fn read_data(&mut self, data: &mut [u8]) {
        if !matches!(self.task, Task::Answer | Task::Read { .. }) || self.status & status::DRQ == 0 {
            return;
        }
        let block = self.buffer.get(self.at..self.end).unwrap_or_default();
        let len = block.len().min(data.len());
        // The last word of an odd length.
        data.fill(0);
        data.iter_mut().zip(block).for_each(|(byte, value)| *byte = *value);
        self.at += len;
        if self.at < self.end {
            return;
        }
        if self.at < self.buffer.len() {
            self.offer();
        } else if let Task::Read { left: 1.., .. } = self.task {
            self.read_ahead();
        } else if self.is_packet() {
            self.succeed();
        } else {
            self.drop_transfer();
            self.status = self.ready();
        }
    }

    /// The data register is written.
    pub(super) fn write_data(&mut self, data: &[u8]) {
        let writing = matches!(self.task, Task::Write { .. } | Task::Packet | Task::PacketOut);
        if !writing || self.status & status::DRQ == 0 {
            return;
        }
        let block = self.buffer.get_mut(self.at..self.end).unwrap_or_default();
        let len = block.len().min(data.len());
        block.iter_mut().zip(data).for_each(|(byte, value)| *byte = *value);
        self.at += len;
        if self.at < self.end {
            return;
        }
        if self.at < self.buffer.len() {
            self.ask();
            return;
        }
        let bytes = std::mem::take(&mut self.buffer);
        match self.task {
            Task::Write { next, .. } => self.submit(Op::Write, next * SECTOR as u64, Memory::own(bytes)),
            Task::Packet => self.packet(&bytes),
            Task::PacketOut => self.packet_out(&bytes),
            _ => {}
        }
    }

    /// The host is to write the next block of what belongs to a packet.
    pub(super) fn ask(&mut self) {
        self.end = (self.at + self.block).min(self.buffer.len());
        self.regs.set_cylinder(u16::try_from(self.end - self.at).unwrap_or(u16::MAX));
        self.regs.count.current = 0;
        self.status = self.ready() | status::DRQ;
        self.irq = true;
    }

    // The medium

    /// Starts a request. The drive is busy until it is done.
    pub(super) fn submit(&mut self, op: Op, offset: u64, memory: Memory) {
        let Some(medium) = self.medium.clone() else {
            self.abort();
            return;
        };
        self.status = status::BSY;
        self.under_way = true;
        let (channel, unit) = (self.channel.clone(), self.unit);
        let done = move |result, memory| {
            let Some(channel) = channel.upgrade() else { return };
            channel.lock().unwrap_or_else(PoisonError::into_inner).done(unit, result, memory);
        };
        medium.submit(Request { op, offset, memory, done: Box::new(done) });
    }

    /// Reads sectors for the host: as many as a PIO read is ahead.
    pub(super) fn read_ahead(&mut self) {
        if let Task::Read { next, left, ahead } = self.task {
            let count = left.min(ahead);
            let memory = Memory::own(vec![0; bytes_of(count, usize::MAX)]);
            self.submit(Op::Read, next * SECTOR as u64, memory);
        }
    }

    /// Begins a PIO read, in blocks of `block` bytes.
    pub(super) fn read_sectors(&mut self, next: u64, left: u64, block: usize) {
        self.block = block;
        // Whole blocks, so that none is shorter than it has to be.
        let sectors = (block / SECTOR).max(1) as u64;
        self.task = Task::Read { next, left, ahead: READ_AHEAD.next_multiple_of(sectors) };
        self.read_ahead();
    }

    pub(super) fn verify_next(&mut self) {
        match self.task {
            Task::Verify { left: 0, .. } => self.succeed(),
            Task::Verify { next, left } => {
                let bytes = bytes_of(left.min(READ_AHEAD), usize::MAX);
                self.submit(Op::Read, next * SECTOR as u64, Memory::own(vec![0; bytes]));
            }
            _ => {}
        }
    }

    /// The command is done but for a flush, if one is wanted.
    pub(super) fn finish_write(&mut self, flush: bool) {
        if flush {
            self.drop_transfer();
            self.task = Task::Flush;
            self.submit(Op::Flush, 0, Memory::own(Vec::new()));
        } else {
            self.succeed();
        }
    }

    /// The request under way is done.
    pub(super) fn done(&mut self, result: io::Result<()>, memory: Memory) {
        self.under_way = false;
        if self.resetting {
            self.end_reset();
            return;
        }
        let ok = result.is_ok();
        if let Err(reason) = result {
            tracing::debug!("IDE drive {}: {reason}", self.unit);
        }
        match self.task {
            Task::Read { next, left, ahead } => self.read_done(ok, memory, (next, left, ahead)),
            Task::Write { next, left, flush } => {
                let count = (memory.size() / SECTOR) as u64;
                let (next, left) = if ok { (next + count, left.saturating_sub(count)) } else { (next, left) };
                match (ok, left) {
                    (false, _) => self.fail_at(next, error::ABRT),
                    (true, 0) => self.finish_write(flush),
                    (true, _) => {
                        let len = bytes_of(left, self.block);
                        self.expect(Task::Write { next, left, flush }, len, true);
                    }
                }
            }
            Task::Verify { next, .. } if !ok => self.fail_at(next, error::UNC),
            Task::Verify { next, left } => {
                let count = (memory.size() / SECTOR) as u64;
                self.task = Task::Verify { next: next + count, left: left.saturating_sub(count) };
                self.verify_next();
            }
            Task::Dma => self.dma_moved(ok, memory.size() as u64),
            Task::Flush if ok => self.succeed(),
            _ => self.abort(),
        }
    }

    fn read_done(&mut self, ok: bool, memory: Memory, (next, left, ahead): (u64, u64, u64)) {
        let count = (memory.size() / SECTOR) as u64;
        if ok {
            self.task = Task::Read { next: next + count, left: left.saturating_sub(count), ahead };
            (self.buffer, self.at) = (memory.into_own(), 0);
            self.offer();
            return;
        }
        // The host gets the blocks before the bad one.
        let least = (self.block / SECTOR).max(1) as u64;
        if self.is_packet() {
            self.medium_error();
        } else if count > least {
            self.task = Task::Read { next, left, ahead: least };
            self.read_ahead();
        } else {
            self.fail_at(next, error::UNC);
        }
    }

    // DMA

    /// The bus master is to move data.
    pub(super) fn begin_dma(&mut self, dma: Dma) {
        self.task = Task::Dma;
        self.dma = Some(dma);
        self.await_dma();
    }

    /// Nothing is under way until the bus master is started.
    fn await_dma(&mut self) {
        self.status = self.ready() | status::DRQ;
    }

    /// The transfer, if it waits for the bus master.
    pub(super) fn waiting_dma(&self) -> Option<Dma> {
        self.dma.filter(|_| self.task == Task::Dma && !self.under_way && !self.resetting)
    }

    /// The bus master was stopped: what is under way ends the command.
    pub(super) fn cut_dma(&mut self) {
        let under_way = self.under_way;
        if let Some(dma) = &mut self.dma {
            dma.cut |= under_way;
        }
    }

    /// The bus master cannot reach the memory.
    pub(super) fn dma_fault(&mut self) {
        if self.is_packet() { self.transfer_error() } else { self.abort() }
    }

    fn dma_moved(&mut self, ok: bool, bytes: u64) {
        let Some(dma) = &mut self.dma else { return };
        let Place::Medium { offset, left } = &mut dma.place else { return };
        if !ok {
            let (sector, to_memory) = (*offset / SECTOR as u64, dma.to_memory);
            if self.is_packet() {
                self.medium_error();
            } else {
                self.fail_at(sector, if to_memory { error::UNC } else { error::ABRT });
            }
            return;
        }
        if dma.cut {
            self.dma_fault();
            return;
        }
        *offset += bytes;
        *left = left.saturating_sub(bytes);
        self.await_dma();
    }

    /// All data were moved.
    pub(super) fn end_dma(&mut self) {
        let Some(dma) = self.dma.take() else { return };
        if self.is_packet() && !dma.to_memory {
            let bytes = std::mem::take(&mut self.buffer);
            self.packet_out(&bytes);
        } else {
            self.finish_write(dma.flush);
        }
    }
}
