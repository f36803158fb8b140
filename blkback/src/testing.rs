//! A frontend, a storage and an engine for tests, fuzz targets and benchmarks: no guest, no files.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::indexing_slicing, missing_docs)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::memory::PAGE_SIZE;
use devices::testing::{FakeGuest, FrontRing};
use devices::xen::shared_ring::BackRing;
use devices::xen::xenbus::{BackendDevice, Keys};
use devices::xen::{GrantRef, Port};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::disk::Backing;
use crate::engine::{Completion, Engine, IoVec, Op, Sleep, Threads};
use crate::protocol::{MAX_SEGMENTS, Protocol};
use crate::queue::Queue;
use crate::storage::{Discard, Storage, Traits};
use crate::{BlockDevice, Disk, DiskConfig};

pub const READ: u8 = 0;
pub const WRITE: u8 = 1;
pub const BARRIER: u8 = 2;
pub const FLUSH: u8 = 3;
pub const DISCARD: u8 = 5;
pub const INDIRECT: u8 = 6;

/// 512 bytes that no other `sector` or `salt` has.
pub fn sector_pattern(sector: u64, salt: u8) -> Vec<u8> {
    let mut bytes = vec![salt; 512];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[504..].copy_from_slice(&(!sector).to_le_bytes());
    bytes
}

/// A temporary image whose sectors all differ.
#[cfg(test)]
pub(crate) fn image(sectors: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..sectors).flat_map(|s| sector_pattern(s, 1)).collect();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

/// A loop device on a file.
#[cfg(test)]
pub(crate) struct Loop(pub std::path::PathBuf);

#[cfg(test)]
impl Loop {
    /// With sectors of so many bytes.
    pub(crate) fn new(file: &std::path::Path, sector: u32) -> Self {
        let mut losetup = std::process::Command::new("losetup");
        let output = losetup.args(["-f", "--show", "-b", &sector.to_string()]).arg(file).output().unwrap();
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Self(String::from_utf8(output.stdout).unwrap().trim().into())
    }
}

#[cfg(test)]
impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

pub fn config(readonly: bool) -> DiskConfig {
    DiskConfig {
        vdev: "xvda".into(),
        virtual_device: 51712,
        readonly,
        bootable: true,
        discard: true,
        ..Default::default()
    }
}

/// Waits until `done`, or fails the test.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub gref: GrantRef,
    pub first: u8,
    pub last: u8,
}

pub fn whole(gref: GrantRef) -> Segment {
    Segment { gref, first: 0, last: 7 }
}

/// A disk in memory that fails when it is told to.
#[derive(Debug)]
pub struct Memory {
    pub bytes: Mutex<Vec<u8>>,
    pub traits: Traits,
    /// The errno of all reads, writes, flushes or discards from now on; 0: none.
    pub fail_reads: AtomicI32,
    pub fail_writes: AtomicI32,
    pub fail_flushes: AtomicI32,
    pub fail_discards: AtomicI32,
    pub flushes: AtomicU64,
    /// What was done, in order: 'r', 'w', 'f', 'd'.
    pub log: Mutex<String>,
    pub discarded: Mutex<Vec<(u64, u64)>>,
}

impl Memory {
    pub fn new(sectors: u64) -> Self {
        Self::with_traits(
            sectors,
            Traits {
                logical_block: 512,
                physical_block: 4096,
                discard: Some(Discard { granularity: 4096, alignment: 0 }),
                memory_alignment: 512,
                offset_alignment: 512,
                max_transfer: u32::MAX,
            },
        )
    }

    pub fn with_traits(sectors: u64, traits: Traits) -> Self {
        let mut bytes = Vec::new();
        (0..sectors).for_each(|s| bytes.extend_from_slice(&sector_pattern(s, 1)));
        Self {
            bytes: Mutex::new(bytes),
            traits,
            fail_reads: AtomicI32::new(0),
            fail_writes: AtomicI32::new(0),
            fail_flushes: AtomicI32::new(0),
            fail_discards: AtomicI32::new(0),
            flushes: AtomicU64::new(0),
            log: Mutex::default(),
            discarded: Mutex::default(),
        }
    }

    pub fn backing(self: &Arc<Self>) -> Backing {
        let storage: Arc<dyn Storage> = Arc::clone(self) as _;
        Backing { storage, path: "memory".into(), block_device: false, readonly: false }
    }

    pub fn sectors(&self, sector: u64, count: usize) -> Vec<u8> {
        let start = usize::try_from(sector).unwrap() * 512;
        self.bytes.lock().unwrap()[start..start + count * 512].to_vec()
    }

    fn enter(&self, what: char, fail: &AtomicI32) -> io::Result<()> {
        self.log.lock().unwrap().push(what);
        match fail.load(SeqCst) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn check(&self, buffers: &[IoVec], offset: u64) {
        let (memory, unit) = (self.traits.memory_alignment as usize, self.traits.offset_alignment as usize);
        assert!(offset.is_multiple_of(unit as u64), "offset {offset}");
        for buffer in buffers {
            assert!((buffer.base() as usize).is_multiple_of(memory), "{buffer:?}");
            assert!(buffer.size().is_multiple_of(unit), "{buffer:?}");
        }
    }
}

impl Storage for Memory {
    fn traits(&self) -> Traits {
        self.traits
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }
    fn raw(&self) -> Option<RawFd> {
        None
    }
    unsafe fn read_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        self.enter('r', &self.fail_reads)?;
        self.check(buffers, offset);
        let bytes = self.bytes.lock().unwrap();
        let mut at = usize::try_from(offset).unwrap();
        for buffer in buffers {
            let part = &bytes[at.min(bytes.len())..(at + buffer.size()).min(bytes.len())];
            // SAFETY: the caller's buffers are valid.
            unsafe { buffer.base().copy_from(part.as_ptr(), part.len()) };
            at += part.len();
        }
        Ok(at - usize::try_from(offset).unwrap())
    }
    unsafe fn write_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        self.enter('w', &self.fail_writes)?;
        self.check(buffers, offset);
        let mut bytes = self.bytes.lock().unwrap();
        let mut at = usize::try_from(offset).unwrap();
        for buffer in buffers {
            let part = &mut bytes[at..at + buffer.size()];
            // SAFETY: the caller's buffers are valid.
            unsafe { buffer.base().copy_to(part.as_mut_ptr(), part.len()) };
            at += part.len();
        }
        Ok(at - usize::try_from(offset).unwrap())
    }
    fn flush(&self) -> io::Result<()> {
        self.enter('f', &self.fail_flushes)?;
        self.flushes.fetch_add(1, SeqCst);
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.enter('d', &self.fail_discards)?;
        self.discarded.lock().unwrap().push((offset, len));
        let (start, end) = (usize::try_from(offset).unwrap(), usize::try_from(offset + len).unwrap());
        self.bytes.lock().unwrap()[start..end].fill(0);
        Ok(())
    }
}

/// Does each operation where it is started, and fails if it is asked to touch anything but memory of the guest
/// or a bounce buffer.
pub struct Inline {
    storage: Arc<dyn Storage>,
    ram: std::ops::Range<usize>,
    /// Operations on memory that is not the guest's.
    pub outside: u64,
    done: Vec<Completion>,
}

impl Inline {
    pub fn new(storage: Arc<dyn Storage>, guest: &FakeGuest) -> Self {
        let start = guest.ram.get_host_address(GuestAddress(0)).unwrap() as usize;
        let len: u64 = guest.ram.iter().map(vm_memory::GuestMemoryRegion::len).sum();
        assert_eq!(guest.ram.num_regions(), 1);
        let ram = start..start + usize::try_from(len).unwrap();
        Self { storage, ram, outside: 0, done: Vec::new() }
    }

    fn check(&mut self, buffers: &[IoVec]) {
        let inside = |b: &IoVec| {
            let start = b.base() as usize;
            self.ram.start <= start && start <= self.ram.end && b.size() <= self.ram.end - start
        };
        if buffers.iter().all(inside) {
            return;
        }
        let [one] = buffers else { panic!("several pieces, and not all are the guest's: {buffers:?}") };
        let (start, end) = (one.base() as usize, one.base() as usize + one.size());
        assert!(end <= self.ram.start || self.ram.end <= start, "partly the guest's: {one:?}");
        assert!(start.is_multiple_of(PAGE_SIZE) && one.size() <= 1 << 20, "no bounce buffer: {one:?}");
        self.outside += 1;
    }
}

impl Engine for Inline {
    unsafe fn start(&mut self, token: u16, op: Op, offset: u64, buffers: &[IoVec]) {
        assert!(buffers.iter().all(|b| b.size() > 0), "a piece without bytes");
        assert_eq!(buffers.is_empty(), matches!(op, Op::Flush | Op::Discard(_)), "{op:?}");
        self.check(buffers);
        let result = match op {
            // SAFETY: the caller's promise.
            Op::Read => unsafe { self.storage.read_at(buffers, offset) },
            // SAFETY: the caller's promise.
            Op::Write => unsafe { self.storage.write_at(buffers, offset) },
            Op::Flush => self.storage.flush().map(|()| 0),
            Op::Discard(len) => self.storage.discard(offset, len).map(|()| 0),
        };
        let result = result.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO));
        self.done.push(Completion { token, result });
    }
    fn wait(&mut self, _sleep: Sleep) -> io::Result<()> {
        Ok(())
    }
    fn completions(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }
}

/// One ring of a frontend with its event channel.
pub struct FrontQueue {
    pub ring: FrontRing,
    pub port: Port,
}

/// The frontend: a guest with one ring, or more in [`Front::others`].
pub struct Front {
    pub guest: FakeGuest,
    pub ring: FrontRing,
    pub port: Port,
    /// Queues 1 and on, for tests that use several.
    pub others: Vec<FrontQueue>,
    protocol: Protocol,
    next_id: u64,
}

impl Front {
    pub fn new(protocol: Protocol) -> Self {
        Self::with_rings(protocol, 1, 1)
    }

    /// A frontend with `queues` rings of `pages` pages each.
    pub fn with_rings(protocol: Protocol, pages: usize, queues: u32) -> Self {
        Self::of(FakeGuest::new(1024), protocol, pages, queues)
    }

    /// The same in a guest that the caller made.
    pub fn of(mut guest: FakeGuest, protocol: Protocol, pages: usize, queues: u32) -> Self {
        let ring = FrontRing::new(&mut guest, pages, protocol.entry_size());
        let port = guest.alloc_port();
        if protocol == Protocol::X86_32 {
            guest.set_key("protocol", "x86_32-abi");
        }
        let mut front = Self { guest, ring, port, others: Vec::new(), protocol, next_id: 1000 };
        for _ in 1..queues {
            let ring = FrontRing::new(&mut front.guest, pages, protocol.entry_size());
            let port = front.guest.alloc_port();
            front.others.push(FrontQueue { ring, port });
        }
        front.write_keys();
        front
    }

    /// What xen-blkfront writes before it is Initialised.
    pub fn write_keys(&mut self) {
        let queues = 1 + self.others.len();
        let mut keys = Vec::new();
        if queues > 1 {
            keys.push(("multi-queue-num-queues".into(), queues.to_string()));
        }
        let pages = self.ring.refs.len();
        if pages > 1 {
            keys.push(("ring-page-order".into(), pages.ilog2().to_string()));
        }
        let others = self.others.iter().map(|queue| (&queue.ring, queue.port));
        for (number, (ring, port)) in [(&self.ring, self.port)].into_iter().chain(others).enumerate() {
            let prefix = if queues > 1 { format!("queue-{number}/") } else { String::new() };
            keys.push((format!("{prefix}event-channel"), port.0.to_string()));
            for (page, gref) in ring.refs.iter().enumerate() {
                let page = if pages > 1 { page.to_string() } else { String::new() };
                keys.push((format!("{prefix}ring-ref{page}"), gref.0.to_string()));
            }
        }
        for (key, value) in keys {
            self.guest.set_key(&key, value);
        }
    }

    /// As a driver that is loaded again: a new ring and a new port.
    pub fn renew(&mut self) {
        self.ring = FrontRing::new(&mut self.guest, self.ring.refs.len(), self.protocol.entry_size());
        self.guest.domain.events.close(self.port).unwrap();
        self.port = self.guest.alloc_port();
        self.write_keys();
    }

    pub fn connect(&self, device: &mut BlockDevice) -> Keys {
        device.connect(&self.guest, &self.guest.domain).unwrap()
    }

    /// A queue without a thread, for tests that go step by step with [`Queue::pass`].
    pub fn queue(&self, disk: &Arc<Disk>) -> Queue<Inline> {
        self.queue_on(disk, |_, _| Inline::new(Arc::clone(disk.storage()), &self.guest)).0
    }

    /// A queue on threads with the eventfd that wakes it up to stop.
    pub fn queue_with_stop(&self, disk: &Arc<Disk>) -> (Queue<Threads>, EventFd) {
        self.queue_on(disk, |event, stop| Threads::new(Arc::clone(disk.storage()), event, stop).unwrap())
    }

    /// A queue on the engine that `make` makes, given the descriptors of the channel and of the order to stop.
    pub fn queue_on<E: Engine>(
        &self,
        disk: &Arc<Disk>,
        make: impl FnOnce(RawFd, RawFd) -> E,
    ) -> (Queue<E>, EventFd) {
        let domain = &self.guest.domain;
        let ring = BackRing::new(Arc::clone(&domain.grants), &self.ring.refs, self.protocol.entry_size());
        let channel = domain.events.bind_backend(self.port).unwrap();
        let stop = EventFd::new(EFD_NONBLOCK).unwrap();
        let engine = make(channel.event().as_raw_fd(), stop.as_raw_fd());
        let (grants, disk) = (Arc::clone(&domain.grants), Arc::clone(disk));
        (Queue::new(engine, ring.unwrap(), channel, grants, disk, self.protocol), stop)
    }

    /// Takes an id for a request.
    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// Offsets of id, sector and segments.
    fn layout(&self) -> (usize, usize, usize) {
        match self.protocol {
            Protocol::X86_64 => (8, 16, 24),
            Protocol::X86_32 => (4, 12, 20),
        }
    }

    /// A ring entry whose first two bytes are `op` and `second`, with an id of its own.
    pub fn entry(&mut self, op: u8, second: u8, sector: u64) -> (u64, Vec<u8>) {
        let (id_at, sector_at, _) = self.layout();
        let id = self.id();
        let mut entry = vec![0; self.protocol.entry_size()];
        (entry[0], entry[1]) = (op, second);
        entry[id_at..id_at + 8].copy_from_slice(&id.to_le_bytes());
        entry[sector_at..sector_at + 8].copy_from_slice(&sector.to_le_bytes());
        (id, entry)
    }

    /// Puts a request into the ring without publishing it; its id.
    pub fn put(&mut self, op: u8, sector: u64, segments: &[Segment]) -> u64 {
        let (id, mut entry) = self.entry(op, u8::try_from(segments.len()).unwrap(), sector);
        let at = self.layout().2;
        let list = segment_list(&segments[..segments.len().min(MAX_SEGMENTS)]);
        entry[at..at + list.len()].copy_from_slice(&list);
        self.ring.put(&self.guest, &entry);
        id
    }

    /// An indirect request of `count` segments that are listed in the page `list`.
    pub fn put_indirect(&mut self, op: u8, sector: u64, count: u16, list: GrantRef) -> u64 {
        let (id, mut entry) = self.entry(INDIRECT, op, sector);
        entry[2..4].copy_from_slice(&count.to_le_bytes());
        // After sector and handle, and padding to four bytes.
        let at = self.layout().1 + 12;
        entry[at..at + 4].copy_from_slice(&list.0.to_le_bytes());
        self.ring.put(&self.guest, &entry);
        id
    }

    pub fn put_discard(&mut self, flag: u8, sector: u64, count: u64) -> u64 {
        let (id, mut entry) = self.entry(DISCARD, flag, sector);
        let at = self.layout().1 + 8;
        entry[at..at + 8].copy_from_slice(&count.to_le_bytes());
        self.ring.put(&self.guest, &entry);
        id
    }

    /// Publishes, and sends an event if the backend asked for it.
    pub fn publish(&self) {
        if self.ring.publish(&self.guest) {
            self.guest.send(self.port);
        }
    }

    /// The next response, if there is one: id, operation, status.
    pub fn take(&mut self) -> Option<(u64, u8, i16)> {
        let bytes = self.ring.take(&self.guest, 12)?;
        let id = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        Some((id, bytes[8], i16::from_le_bytes(bytes[10..12].try_into().unwrap())))
    }

    /// Waits for the next response.
    pub fn wait_response(&mut self) -> (u64, u8, i16) {
        let mut response = None;
        wait_until("the backend did not answer", || {
            response = self.take();
            response.is_some()
        });
        response.unwrap()
    }

    /// Publishes the request `id` of the operation `op` and waits for its response: the status.
    pub fn finish(&mut self, id: u64, op: u8) -> i16 {
        self.publish();
        let response = self.wait_response();
        assert_eq!((response.0, response.1), (id, op));
        response.2
    }

    /// One request from start to end: its status.
    pub fn request(&mut self, op: u8, sector: u64, segments: &[Segment]) -> i16 {
        let id = self.put(op, sector, segments);
        self.finish(id, op)
    }

    /// One indirect request from start to end: its status.
    pub fn indirect(&mut self, op: u8, sector: u64, segments: &[Segment]) -> i16 {
        let (frame, list) = self.guest.granted_page();
        self.guest.write(frame, 0, &segment_list(segments));
        let id = self.put_indirect(op, sector, u16::try_from(segments.len()).unwrap(), list);
        self.finish(id, op)
    }
}

/// Segments as they lie in a ring entry or in the page of an indirect request.
pub fn segment_list(segments: &[Segment]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(segments.len() * 8);
    for segment in segments {
        bytes.extend(segment.gref.0.to_le_bytes());
        bytes.extend([segment.first, segment.last, 0, 0]);
    }
    bytes
}
