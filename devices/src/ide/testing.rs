//! A controller without a machine: a medium that is served when the test says so, and a line that is looked at.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, missing_docs, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation)]

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;

use super::{Attachment, Ide, Identity, Place};
use crate::bus::{IrqLine, Registers, value_le};
use crate::medium::{Medium, Op, Request, SECTOR};
use crate::memory::GuestRam;
use crate::pci::PciFunction;

/// A line: its level, and how often it rose.
#[derive(Debug, Default)]
pub struct Line {
    pub high: AtomicBool,
    pub rises: AtomicU32,
}

impl IrqLine for Line {
    fn set(&self, high: bool) {
        if high && !self.high.swap(high, SeqCst) {
            self.rises.fetch_add(1, SeqCst);
        }
        self.high.store(high, SeqCst);
    }
}

/// A medium in memory, of a size that need not be backed: sectors without bytes read as zeros.
#[derive(Default)]
pub struct Manual {
    pub sectors: AtomicU64,
    pub readonly: AtomicBool,
    pub bytes: Mutex<Vec<u8>>,
    pub waiting: Mutex<VecDeque<Request>>,
    /// What was done: operation, sector and bytes.
    pub log: Mutex<Vec<(Op, u64, usize)>>,
    /// A sector that cannot be read or written.
    pub bad: Mutex<Option<u64>>,
    pub cancels: AtomicU32,
}

impl Manual {
    pub fn new(sectors: u64, backed: usize) -> Arc<Self> {
        let bytes = (0..backed * SECTOR).map(|n| (n / SECTOR * 7 + n % 251) as u8).collect();
        let (sectors, bytes) = (AtomicU64::new(sectors), Mutex::new(bytes));
        Arc::new(Self { sectors, bytes, ..Self::default() })
    }

    /// Does the oldest request; false: there is none.
    pub fn serve(&self) -> bool {
        let Some(mut request) = self.waiting.lock().unwrap().pop_front() else { return false };
        let (first, size) = (request.offset / SECTOR as u64, request.memory.size());
        assert_eq!((request.offset % SECTOR as u64, size % SECTOR), (0, 0));
        assert!(first + (size / SECTOR) as u64 <= self.sectors.load(SeqCst).max(first));
        let mut log = self.log.lock().unwrap();
        if log.len() < 1 << 16 {
            log.push((request.op, first, size));
        }
        drop(log);
        let bad = self
            .bad
            .lock()
            .unwrap()
            .is_some_and(|bad| (first..first + (size / SECTOR) as u64).contains(&bad));
        if bad {
            request.finish(Err(io::ErrorKind::Other.into()));
            return true;
        }
        let mut bytes = self.bytes.lock().unwrap();
        let mut at = request.offset as usize;
        for piece in request.memory.pieces() {
            for n in 0..piece.size() {
                let place = piece.base().wrapping_add(n);
                // SAFETY: the request keeps its memory valid, and nobody else uses it.
                unsafe {
                    match request.op {
                        Op::Read => *place = bytes.get(at).copied().unwrap_or(0),
                        Op::Write => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = *place),
                        Op::Flush => {}
                    }
                }
                at += 1;
            }
        }
        drop(bytes);
        request.finish(Ok(()));
        true
    }

    pub fn sector(&self, sector: usize) -> Vec<u8> {
        self.bytes.lock().unwrap()[sector * SECTOR..][..SECTOR].to_vec()
    }
}

impl Medium for Manual {
    fn sectors(&self) -> u64 {
        self.sectors.load(SeqCst)
    }
    fn readonly(&self) -> bool {
        self.readonly.load(SeqCst)
    }
    fn submit(&self, request: Request) {
        self.waiting.lock().unwrap().push_back(request);
    }
    fn cancel(&self) {
        self.cancels.fetch_add(1, SeqCst);
    }
}

/// A controller with RAM from 0 on, a disk as primary master and a CD-ROM drive as secondary master.
pub struct Rig {
    pub ide: Ide,
    pub ram: Arc<GuestRam>,
    pub lines: [Arc<Line>; 2],
    pub disk: Arc<Manual>,
    pub disc: Arc<Manual>,
}

/// Channel numbers.
pub const DISK: u8 = 0;
pub const CD: u8 = 1;

impl Rig {
    /// With 2 MiB of RAM, and a disk of so many sectors.
    pub fn new(sectors: u64) -> Self {
        let ram: Arc<GuestRam> = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap());
        let lines = [Arc::new(Line::default()), Arc::new(Line::default())];
        let irqs = [Arc::clone(&lines[0]) as Arc<dyn IrqLine>, Arc::clone(&lines[1]) as _];
        let mut ide = Ide::new(&ram, irqs);
        let (disk, disc) = (Manual::new(sectors, 512), Manual::new(64, 64));
        disc.readonly.store(true, SeqCst);
        let identity =
            |model: &str| Identity { model: model.into(), serial: "XV00001".into(), firmware: "1.0".into() };
        let place = |channel| Place { channel, unit: 0 };
        assert!(ide.attach(place(0), Attachment::Disk(Arc::clone(&disk) as _), identity("XVMM HARDDISK")));
        assert!(ide.attach(
            place(1),
            Attachment::Cdrom(Some(Arc::clone(&disc) as _)),
            identity("XVMM CD-ROM")
        ));
        let mut rig = Self { ide, ram, lines, disk, disc };
        rig.enable();
        rig
    }

    /// What the firmware does: ports, bus master, and the timing registers.
    pub fn enable(&mut self) {
        self.ide.write_config(4, &[5, 0]);
        self.ide.write_config(0x40, &[0, 0x80, 0, 0x80]);
    }

    pub fn write(&mut self, channel: u8, offset: u64, value: u8) {
        self.ide.write(2 * channel, offset, &[value]);
    }

    pub fn read(&mut self, channel: u8, offset: u64) -> u8 {
        let mut data = [0xff];
        self.ide.read(2 * channel, offset, &mut data);
        data[0]
    }

    pub fn alternate(&mut self, channel: u8) -> u8 {
        let mut data = [0xff];
        self.ide.read(2 * channel + 1, 0, &mut data);
        data[0]
    }

    pub fn control(&mut self, channel: u8, value: u8) {
        self.ide.write(2 * channel + 1, 0, &[value]);
    }

    pub fn bus_master(&mut self, offset: u64, value: u8) {
        self.ide.write(4, offset, &[value]);
    }

    pub fn bus_master_status(&mut self, channel: u8) -> u8 {
        let mut data = [0xff];
        self.ide.read(4, u64::from(channel) * 8 + 2, &mut data);
        data[0]
    }

    /// Features, count, the three address registers and device; then the command.
    pub fn command(&mut self, channel: u8, registers: [u8; 6], code: u8) {
        for (offset, value) in (1..).zip(registers) {
            self.write(channel, offset, value);
        }
        self.write(channel, 7, code);
    }

    /// Does all requests; how many.
    pub fn serve(&self) -> usize {
        std::iter::repeat_with(|| self.disk.serve() || self.disc.serve()).take_while(|served| *served).count()
    }

    /// 16-bit reads of the data register.
    pub fn data(&mut self, channel: u8, bytes: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < bytes {
            let mut data = [0xff; 2];
            self.ide.read(2 * channel, 0, &mut data);
            all.extend(data);
        }
        all
    }

    pub fn put_data(&mut self, channel: u8, bytes: &[u8]) {
        for word in bytes.chunks(2) {
            self.ide.write(2 * channel, 0, word);
        }
    }

    /// Whether the line rose since this was asked last.
    pub fn rose(&self, channel: u8) -> bool {
        self.lines[usize::from(channel)].rises.swap(0, SeqCst) > 0
    }

    /// The registers 1 to 7 as a number each.
    pub fn registers(&mut self, channel: u8) -> [u8; 7] {
        std::array::from_fn(|n| self.read(channel, n as u64 + 1))
    }

    /// A packet, with a limit of `limit` bytes for a block.
    pub fn packet(&mut self, packet: &[u8], limit: u16, dma: bool) {
        let [low, high] = limit.to_le_bytes();
        self.command(CD, [u8::from(dma), 0, 0, low, high, 0], 0xa0);
        let mut bytes = packet.to_vec();
        bytes.resize(12, 0);
        self.put_data(CD, &bytes);
        self.serve();
    }

    /// A packet by PIO, and all that it answers. An error is the sense key.
    pub fn ask(&mut self, packet: &[u8]) -> Result<Vec<u8>, u8> {
        self.packet(packet, 0xfffe, false);
        let mut answer = Vec::new();
        loop {
            let status = self.read(CD, 7);
            if status & 0x08 == 0 {
                return if status & 1 == 0 { Ok(answer) } else { Err(self.read(CD, 1) >> 4) };
            }
            let len = value_le(&[self.read(CD, 4), self.read(CD, 5)]) as usize;
            let bytes = self.data(CD, len);
            answer.extend(&bytes[..len]);
            self.serve();
        }
    }

    /// Key, code and qualifier.
    pub fn sense(&mut self) -> (u8, u8, u8) {
        let sense = self.ask(&[0x03, 0, 0, 0, 18]).unwrap();
        (sense[2], sense[12], sense[13])
    }
}
