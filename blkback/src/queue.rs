//! One ring of a block device: requests in, operations on the image, responses out.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use devices::memory::PAGE_SIZE;
use devices::xen::event_channel::BackendChannel;
use devices::xen::grant_table::{Access, GrantError, GrantTable, PinnedPage};
use devices::xen::shared_ring::{BackRing, RingError};
use vm_memory::VolatileSlice;

use crate::disk::Disk;
use crate::engine::{Completion, Engine, IoVec, Op};
use crate::image::DirectIo;
use crate::protocol::{MAX_SEGMENTS, Operation, Protocol, RawEntry, Request, Response, Status, Transfer};

/// Attempts at an operation that the kernel interrupts or postpones.
const MAX_RETRIES: u8 = 8;
const BOUNCE_SIZE: usize = MAX_SEGMENTS * PAGE_SIZE;

/// What a slot waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    Read,
    Write,
    Flush,
    /// The flush before the data of the same request.
    FlushThenWrite,
}

/// A request under way. Slots are made once per connection; serving a request allocates nothing.
#[derive(Debug)]
struct Slot {
    id: u64,
    opcode: u8,
    phase: Phase,
    retries: u8,
    /// Where the rest of the data goes on the disk, in bytes.
    offset: u64,
    /// Bytes of the rest.
    left: usize,
    /// Bytes of all data.
    total: usize,
    pages: Vec<PinnedPage>,
    /// The rest of the data in memory: guest pages, or the bounce buffer.
    buffers: Vec<IoVec>,
    /// With a bounce buffer in use: the guest's memory.
    bounced: Vec<IoVec>,
    bounce: Option<BounceBuffer>,
}

impl Slot {
    fn new() -> Self {
        Self {
            id: 0,
            opcode: 0,
            phase: Phase::Free,
            retries: 0,
            offset: 0,
            left: 0,
            total: 0,
            pages: Vec::with_capacity(MAX_SEGMENTS),
            buffers: Vec::with_capacity(MAX_SEGMENTS),
            bounced: Vec::new(),
            bounce: None,
        }
    }

    /// Pins the pages of a transfer and lists their memory. On an error nothing stays pinned.
    fn map(&mut self, grants: &GrantTable, transfer: &Transfer, access: Access) -> Result<(), GrantError> {
        self.offset = transfer.offset();
        self.total = transfer.bytes() as usize;
        self.left = self.total;
        for segment in transfer.segments() {
            let page = match grants.pin(segment.gref, access) {
                Ok(page) => page,
                Err(e) => {
                    self.unmap(grants);
                    return Err(e);
                }
            };
            let (base, len) = (page.as_ptr().wrapping_add(segment.offset.into()), segment.len.into());
            self.pages.push(page);
            if !self.buffers.last_mut().is_some_and(|last| last.extend(base, len)) {
                self.buffers.push(IoVec::new(base, len));
            }
        }
        Ok(())
    }

    fn unmap(&mut self, grants: &GrantTable) {
        self.buffers.clear();
        self.bounced.clear();
        for page in self.pages.drain(..) {
            grants.unpin(page);
        }
    }

    /// Direct I/O cannot reach every segment that the protocol can name: those requests go through memory of
    /// our own. On a disk with sectors of 512 bytes that does not happen.
    fn bounce_if_misaligned(&mut self, direct: Option<DirectIo>, access: Access) {
        let Some(direct) = direct else { return };
        let misaligned = |v: &IoVec| {
            !(v.base() as usize).is_multiple_of(direct.memory as usize)
                || !v.size().is_multiple_of(direct.offset as usize)
        };
        if !self.buffers.iter().any(misaligned) {
            return;
        }
        let bounce = self.bounce.get_or_insert_with(BounceBuffer::new);
        self.bounced.append(&mut self.buffers);
        self.buffers.push(IoVec::new(bounce.0.as_ptr(), self.total));
        if access == Access::Read {
            self.copy_bounced(|guest, buffer| guest.copy_to_volatile_slice(buffer));
        }
    }

    /// Calls `copy(guest memory, the same part of the bounce buffer)` for each piece.
    fn copy_bounced(&self, copy: impl Fn(&VolatileSlice, VolatileSlice)) {
        let Some(bounce) = &self.bounce else { return };
        let mut at = 0;
        for piece in &self.bounced {
            if at + piece.size() > BOUNCE_SIZE {
                return;
            }
            // SAFETY: the piece lies in pages that are pinned, and its part in the buffer; both are only
            // touched through volatile accesses, and no operation on either is under way.
            let (guest, buffer) = unsafe {
                (
                    VolatileSlice::new(piece.base(), piece.size()),
                    VolatileSlice::new(bounce.0.as_ptr().add(at), piece.size()),
                )
            };
            copy(&guest, buffer);
            at += piece.size();
        }
    }

    /// Goes on after `done` bytes; true: there is a rest.
    fn advance(&mut self, mut done: usize) -> bool {
        done = done.min(self.left);
        self.left -= done;
        self.offset += done as u64;
        for buffer in &mut self.buffers {
            done -= buffer.advance(done);
        }
        self.buffers.retain(|b| b.size() > 0);
        self.left > 0
    }
}

/// Memory of our own, aligned to pages.
#[derive(Debug)]
struct BounceBuffer(NonNull<u8>);

// SAFETY: the buffer owns its memory.
unsafe impl Send for BounceBuffer {}

impl BounceBuffer {
    fn layout() -> Layout {
        Layout::new::<[[u8; PAGE_SIZE]; MAX_SEGMENTS]>()
            .align_to(PAGE_SIZE)
            .unwrap_or(Layout::new::<[[u8; PAGE_SIZE]; MAX_SEGMENTS]>())
    }

    fn new() -> Self {
        // SAFETY: the layout is not of size 0.
        let memory = NonNull::new(unsafe { alloc_zeroed(Self::layout()) });
        Self(memory.unwrap_or_else(|| std::alloc::handle_alloc_error(Self::layout())))
    }
}

impl Drop for BounceBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in new() with the same layout.
        unsafe { dealloc(self.0.as_ptr(), Self::layout()) };
    }
}

/// The kinds of lines that a connection may write to the log, once each.
#[derive(Clone, Copy)]
enum Complaint {
    Refused = 1,
    Grant = 2,
    Io = 4,
}

/// A connected ring with its engine. Used by one thread.
pub struct Queue<E: Engine> {
    // The engine is dropped first: it waits for the operations that use the slots.
    engine: E,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    completions: Vec<Completion>,
    ring: BackRing,
    channel: BackendChannel,
    grants: Arc<GrantTable>,
    disk: Arc<Disk>,
    protocol: Protocol,
    /// The frontend broke the ring: it is not looked at any more.
    broken: bool,
    complained: u8,
}

impl<E: Engine> Queue<E> {
    /// A queue of `disk` on a mapped ring. The engine must be on the disk's image, and wake up for the
    /// channel's event.
    pub fn new(
        engine: E,
        ring: BackRing,
        channel: BackendChannel,
        grants: Arc<GrantTable>,
        disk: Arc<Disk>,
        protocol: Protocol,
    ) -> Self {
        let count = u16::try_from(ring.nr_entries()).unwrap_or(u16::MAX);
        Self {
            engine,
            slots: (0..count).map(|_| Slot::new()).collect(),
            free: (0..count).rev().collect(),
            completions: Vec::with_capacity(count.into()),
            ring,
            channel,
            grants,
            disk,
            protocol,
            broken: false,
            complained: 0,
        }
    }

    /// Serves the ring until `stop` is set (and the engine woken) or the frontend breaks the ring. Requests
    /// that were taken are finished and answered; only then their pages are given back.
    pub fn run(mut self, stop: &AtomicBool) {
        loop {
            let stopping = stop.load(SeqCst) || self.broken;
            let more = !stopping && self.take_requests();
            self.publish();
            if (stopping || self.broken) && self.idle() {
                return;
            }
            if let Err(e) = self.engine.wait(!more) {
                tracing::error!("vbd {}: the disk stops, as its I/O engine failed: {e}", self.disk.name());
                self.abandon();
                return;
            }
            if !more {
                count(&self.disk.counters().wakeups);
                // As xen-blkback does: a disk that the host grew is larger from the next request on. Once per
                // wake-up, not per request.
                if let Err(e) = self.disk.rescan() {
                    tracing::debug!("vbd {}: its size is not known: {e}", self.disk.name());
                }
            }
            self.finish();
        }
    }

    /// Does what can be done now without sleeping: finishes operations, takes requests. True: there is more.
    pub fn pass(&mut self) -> bool {
        let more = !self.broken && self.take_requests();
        let _ = self.engine.wait(false);
        self.finish();
        self.publish();
        more
    }

    /// Whether no operation is under way.
    pub fn idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Whether the frontend broke the ring.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The engine can no longer tell when the kernel is done with the memory: it is never used again.
    fn abandon(&mut self) {
        if !self.idle() {
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }

    /// Takes what is in the ring, at most a ring full, as a frontend could add requests for ever. True: there
    /// is more. False: the frontend was asked for an event.
    fn take_requests(&mut self) -> bool {
        let mut entry: RawEntry = [0; size_of::<RawEntry>()];
        for _ in 0..self.ring.nr_entries() {
            match self.ring.next_request(&mut entry) {
                Ok(true) => self.dispatch(&entry),
                Ok(false) => match self.ring.final_check() {
                    Ok(true) => {}
                    Ok(false) => return false,
                    Err(e) => return self.give_up(&e),
                },
                Err(e) => return self.give_up(&e),
            }
        }
        true
    }

    fn give_up(&mut self, reason: &RingError) -> bool {
        self.broken = true;
        if self.disk.may_complain() {
            tracing::warn!("vbd {}: the disk stops until it is connected again: {reason}", self.disk.name());
        }
        false
    }

    fn dispatch(&mut self, entry: &RawEntry) {
        count(&self.disk.counters().requests);
        let request = match Request::parse(entry, self.protocol, &self.disk.limits()) {
            Ok(request) => request,
            Err(rejection) => {
                self.complain(Complaint::Refused, &rejection.reason);
                return self.respond(rejection.response());
            }
        };
        let (id, opcode) = (request.id, request.opcode);
        let failed = Response { id, opcode, status: Status::Error };
        // There is a slot for each entry of the ring, and the ring does not hand out more.
        let Some(index) = self.free.pop() else { return self.respond(failed) };
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return self.respond(failed) };
        (slot.id, slot.opcode, slot.retries) = (id, opcode, 0);
        let (phase, data) = match request.operation {
            Operation::Read(transfer) => (Phase::Read, Some((transfer, Access::Write))),
            Operation::Write(transfer) => (Phase::Write, Some((transfer, Access::Read))),
            Operation::Flush(None) => (Phase::Flush, None),
            Operation::Flush(Some(transfer)) => (Phase::FlushThenWrite, Some((transfer, Access::Read))),
        };
        if let Some((transfer, access)) = data {
            if let Err(e) = slot.map(&self.grants, &transfer, access) {
                self.free.push(index);
                self.complain(Complaint::Grant, &e);
                return self.respond(failed);
            }
            slot.bounce_if_misaligned(self.disk.image().direct(), access);
        }
        slot.phase = phase;
        self.start(index);
    }

    fn start(&mut self, index: u16) {
        let Some(slot) = self.slots.get(usize::from(index)) else { return };
        let op = match slot.phase {
            Phase::Free => return,
            Phase::Read => Op::Read,
            Phase::Write => Op::Write,
            Phase::Flush | Phase::FlushThenWrite => Op::Flush,
        };
        let buffers = if op == Op::Flush { &[] } else { slot.buffers.as_slice() };
        // SAFETY: the buffers are pinned guest pages or the slot's bounce buffer. Pages, buffer and array
        // stay as they are until finish() sees the completion: nothing else touches a slot that is not free,
        // and drop order and abandon() hold back the memory when the queue ends.
        unsafe { self.engine.start(index, op, slot.offset, buffers) };
    }

    fn finish(&mut self) {
        let mut done = std::mem::take(&mut self.completions);
        self.engine.completions(&mut done);
        for completion in done.drain(..) {
            self.complete(completion);
        }
        self.completions = done;
    }

    fn complete(&mut self, Completion { token, result }: Completion) {
        let Some(slot) = self.slots.get_mut(usize::from(token)) else { return };
        let (phase, total) = (slot.phase, slot.total);
        let outcome = match (phase, result) {
            (Phase::Free, _) => return,
            (_, Err(libc::EINTR | libc::EAGAIN)) if slot.retries < MAX_RETRIES => {
                slot.retries += 1;
                return self.start(token);
            }
            (_, Err(errno)) => Err(errno),
            (Phase::Flush, Ok(_)) => Ok(()),
            (Phase::FlushThenWrite, Ok(_)) => {
                slot.phase = Phase::Write;
                return self.start(token);
            }
            // The image ends here: it became shorter under us.
            (Phase::Read | Phase::Write, Ok(0)) => Err(libc::EIO),
            (Phase::Read | Phase::Write, Ok(bytes)) => {
                if slot.advance(bytes) {
                    return self.start(token);
                }
                Ok(())
            }
        };
        if phase == Phase::Read && outcome.is_ok() {
            slot.copy_bounced(|guest, buffer| buffer.copy_to_volatile_slice(*guest));
        }
        slot.unmap(&self.grants);
        slot.phase = Phase::Free;
        let (id, opcode) = (slot.id, slot.opcode);
        self.free.push(token);
        let status = match outcome {
            Ok(()) => {
                self.count_success(phase, total as u64);
                Status::Okay
            }
            Err(errno) => {
                self.complain(Complaint::Io, &std::io::Error::from_raw_os_error(errno));
                Status::Error
            }
        };
        self.respond(Response { id, opcode, status });
    }

    fn count_success(&self, phase: Phase, bytes: u64) {
        let counters = self.disk.counters();
        match phase {
            Phase::Read => {
                count(&counters.reads);
                counters.bytes_read.fetch_add(bytes, Relaxed);
            }
            Phase::Write => {
                count(&counters.writes);
                counters.bytes_written.fetch_add(bytes, Relaxed);
            }
            Phase::Flush | Phase::FlushThenWrite | Phase::Free => count(&counters.flushes),
        }
    }

    fn respond(&mut self, response: Response) {
        if response.status != Status::Okay {
            count(&self.disk.counters().errors);
        }
        self.ring.push_response(&response.emit());
    }

    fn publish(&mut self) {
        if self.ring.publish() {
            self.channel.notify();
            count(&self.disk.counters().notifications);
        }
    }

    /// One line per kind and connection, and not many per disk: a frontend must not fill the host's log.
    fn complain(&mut self, kind: Complaint, reason: &dyn std::fmt::Display) {
        let bit = kind as u8;
        if self.complained & bit != 0 {
            return;
        }
        self.complained |= bit;
        if self.disk.may_complain() {
            let what = match kind {
                Complaint::Refused | Complaint::Grant => "a request was refused",
                Complaint::Io => "a request failed",
            };
            let path = self.disk.image().path().display();
            tracing::warn!(
                "vbd {} ({path}): {what}, more of these are not logged: {reason}",
                self.disk.name()
            );
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use devices::xen::GrantRef;

    use super::*;
    use crate::DiskImage;
    use crate::testing::{FLUSH, Front, READ, Segment, WRITE, image, sector_pattern, whole};

    fn disk(sectors: u64) -> (tempfile::NamedTempFile, Arc<Disk>) {
        let file = image(sectors);
        let image = DiskImage::open(file.path(), false).unwrap();
        (file, Arc::new(Disk::new("xvda", image, false)))
    }

    fn statuses(front: &mut Front) -> Vec<i16> {
        std::iter::from_fn(|| front.take()).map(|r| r.2).collect()
    }

    #[test]
    fn a_batch_is_answered_with_one_notification() {
        let (_file, disk) = disk(64);
        let mut front = Front::new(Protocol::X86_64);
        let mut queue = front.queue(&disk);
        let (_, gref) = front.guest.granted_page();
        for sector in 0..10 {
            front.put(READ, sector, &[whole(gref)]);
        }
        front.put(FLUSH, 0, &[]);
        front.publish();
        assert!(!queue.pass());
        assert_eq!(statuses(&mut front), [0; 11]);
        assert_eq!(front.guest.raises(), 1);
        assert!(queue.idle());
    }

    #[test]
    fn a_frontend_that_asks_for_no_event_gets_none() {
        let (_file, disk) = disk(64);
        let mut front = Front::new(Protocol::X86_64);
        let mut queue = front.queue(&disk);
        let (_, gref) = front.guest.granted_page();
        // rsp_event lies behind: the frontend is still working on older responses.
        front.guest.write(front.ring.frames[0], 12, &0u32.to_le_bytes());
        front.put(READ, 0, &[whole(gref)]);
        front.publish();
        queue.pass();
        assert_eq!(front.guest.raises(), 0);
        assert_eq!(statuses(&mut front), [0]);
    }

    #[test]
    fn a_frontend_is_asked_for_an_event_before_the_queue_sleeps() {
        let (_file, disk) = disk(64);
        let mut front = Front::new(Protocol::X86_64);
        let mut queue = front.queue(&disk);
        front.put(FLUSH, 0, &[]);
        front.publish();
        assert!(!queue.pass());
        assert_eq!(front.guest.read_u32(front.ring.frames[0], 4), front.ring.req_prod + 1);
    }

    #[test]
    fn the_request_is_copied_before_it_is_checked() {
        let (_file, disk) = disk(64);
        let mut front = Front::new(Protocol::X86_64);
        let mut queue = front.queue(&disk);
        let (_, gref) = front.guest.granted_page();
        front.put(READ, 0, &[whole(gref)]);
        front.publish();
        assert!(!queue.take_requests());
        // The slot now belongs to the backend; what the frontend does to it changes nothing.
        front.guest.write(front.ring.frames[0], 64, &[0xff; 112]);
        queue.pass();
        let (id, op, status) = front.take().unwrap();
        assert_eq!((id, op, status), (1000, READ, 0));
    }

    #[test]
    fn an_overrun_breaks_the_ring_and_nothing_else() {
        let (_file, disk) = disk(64);
        for ahead in [33, 1000, 0x8000_0000, u32::MAX] {
            let mut front = Front::new(Protocol::X86_64);
            let mut queue = front.queue(&disk);
            front.ring.req_prod = ahead;
            front.ring.publish(&front.guest);
            assert!(!queue.pass(), "{ahead}");
            assert!(queue.is_broken(), "{ahead}");
            assert_eq!(front.ring.rsp_prod(&front.guest), 0);
        }
        assert_eq!(disk.counters().requests.load(Relaxed), 0);
    }

    #[test]
    fn a_ring_full_of_rubbish_is_refused_request_by_request() {
        let (_file, disk) = disk(64);
        let mut front = Front::new(Protocol::X86_64);
        let mut queue = front.queue(&disk);
        for _ in 0..10 {
            for byte in 0..32u8 {
                front.ring.put(&front.guest, &[byte.wrapping_mul(37) | 0x80; 112]);
            }
            front.publish();
            // A full ring might have been followed by more.
            queue.pass();
            assert_eq!(statuses(&mut front), [-2; 32]);
        }
        assert!(!queue.is_broken());
        assert_eq!(disk.counters().errors.load(Relaxed), 320);
    }

    #[test]
    fn the_blocking_engine_serves_sleeps_and_stops() {
        let (_file, disk) = disk(64);
        let mut front = Front::new(Protocol::X86_64);
        let (queue, wake) = front.queue_with_stop(&disk);
        let stop = AtomicBool::new(false);
        let (frame, gref) = front.guest.granted_page();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| queue.run(&stop));
            for sector in 0..50 {
                assert_eq!(front.request(READ, sector, &[Segment { gref, first: 0, last: 0 }]), 0);
                assert!(front.guest.read(frame, 0, 512) == sector_pattern(sector, 1));
            }
            assert_eq!(front.request(FLUSH, 0, &[]), 0);
            assert!(!thread.is_finished());
            stop.store(true, SeqCst);
            wake.write(1).unwrap();
        });
        assert_eq!(front.guest.grant_flags(front.ring.refs[0]), 1);
    }

    /// A generator of numbers that are the same in every run (xorshift).
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % limit
        }
    }

    #[test]
    fn a_frontend_that_writes_anything_anywhere_harms_only_itself() {
        let (_file, disk) = disk(64);
        let mut numbers = Numbers(0x1234_5678_9abc_def1);
        for round in 0..100 {
            let protocol = if round % 2 == 0 { Protocol::X86_64 } else { Protocol::X86_32 };
            let mut front = Front::new(protocol);
            let grefs: Vec<_> = (0..4).map(|_| front.guest.granted_page().1).collect();
            let mut queue = front.queue(&disk);
            for _ in 0..numbers.below(8) {
                for _ in 0..numbers.below(33) {
                    let (op, sector) = (numbers.below(7), numbers.below(70));
                    let segments: Vec<_> = (0..numbers.below(13))
                        .map(|_| Segment {
                            gref: match numbers.below(10) {
                                0 => GrantRef(u32::try_from(numbers.below(1 << 32)).unwrap()),
                                n => grefs[usize::try_from(n).unwrap() % 4],
                            },
                            first: u8::try_from(numbers.below(3)).unwrap(),
                            last: u8::try_from(numbers.below(9)).unwrap(),
                        })
                        .collect();
                    front.put(u8::try_from(op).unwrap(), sector, segments.get(..11).unwrap_or(&segments));
                }
                if numbers.below(20) == 0 {
                    let at = numbers.below(4096 - 8);
                    let junk = numbers.below(u64::MAX).to_le_bytes();
                    front.guest.write(front.ring.frames[0], usize::try_from(at).unwrap(), &junk);
                }
                front.publish();
                queue.pass();
                queue.pass();
                while front.take().is_some_and(|_| front.ring.rsp_cons != front.ring.req_prod) {}
            }
            assert!(queue.idle());
            drop(queue);
            for gref in grefs {
                assert_eq!(front.guest.grant_flags(gref), 1, "round {round}");
            }
        }
        let counters = disk.counters();
        for (name, value) in counters.list() {
            assert!(value > 0 || name == "wakeups", "no {name} in all rounds");
        }
    }

    #[test]
    fn misaligned_pieces_go_through_the_bounce_buffer_both_ways() {
        let mut front = Front::new(Protocol::X86_64);
        let grants = Arc::clone(&front.guest.domain.grants);
        let (a, a_ref) = front.guest.granted_page();
        let (b, b_ref) = front.guest.granted_page();
        let direct = Some(DirectIo { memory: 512, offset: 4096 });
        front.put(
            READ,
            0,
            &[Segment { gref: a_ref, first: 4, last: 7 }, Segment { gref: b_ref, first: 1, last: 4 }],
        );
        let limits = crate::protocol::DiskLimits { sectors: 8, logical_block: 4096, readonly: false };
        let entry = front.guest.read(front.ring.frames[0], 64, 112).try_into().unwrap();
        let Ok(Request { operation: Operation::Read(transfer), .. }) =
            Request::parse(&entry, Protocol::X86_64, &limits)
        else {
            panic!("not a read")
        };
        let mut slot = Slot::new();

        slot.map(&grants, &transfer, Access::Read).unwrap();
        assert_eq!(slot.buffers.len(), 2);
        for s in 0..4 {
            front.guest.write(a, (4 + s) * 512, &sector_pattern(s as u64, 5));
            front.guest.write(b, (1 + s) * 512, &sector_pattern(4 + s as u64, 5));
        }
        slot.bounce_if_misaligned(direct, Access::Read);
        let expected: Vec<u8> = (0..8).flat_map(|s| sector_pattern(s, 5)).collect();
        let [one] = slot.buffers[..] else { panic!("{:?}", slot.buffers) };
        assert_eq!((one.size(), one.base() as usize % 4096), (4096, 0));
        // SAFETY: the bounce buffer, which nobody else uses.
        assert!(unsafe { std::slice::from_raw_parts(one.base(), 4096) } == expected);
        slot.unmap(&grants);

        front.guest.write(a, 0, &[0; 4096]);
        front.guest.write(b, 0, &[0; 4096]);
        slot.map(&grants, &transfer, Access::Write).unwrap();
        slot.bounce_if_misaligned(direct, Access::Write);
        slot.copy_bounced(|guest, buffer| buffer.copy_to_volatile_slice(*guest));
        assert!(front.guest.read(a, 2048, 2048) == expected[..2048]);
        assert!(front.guest.read(b, 512, 2048) == expected[2048..]);
        assert!(front.guest.read(b, 2560, 1536) == [0; 1536]);
        slot.unmap(&grants);
        assert_eq!((front.guest.grant_flags(a_ref), front.guest.grant_flags(b_ref)), (1, 1));
    }

    #[test]
    fn aligned_pieces_are_not_copied() {
        let mut front = Front::new(Protocol::X86_64);
        let grants = Arc::clone(&front.guest.domain.grants);
        let (_, gref) = front.guest.granted_page();
        front.put(WRITE, 0, &[Segment { gref, first: 1, last: 1 }]);
        let limits = crate::protocol::DiskLimits { sectors: 8, logical_block: 512, readonly: false };
        let entry = front.guest.read(front.ring.frames[0], 64, 112).try_into().unwrap();
        let request = Request::parse(&entry, Protocol::X86_64, &limits).unwrap();
        let Operation::Write(transfer) = request.operation else { panic!("{request:?}") };
        let mut slot = Slot::new();
        slot.map(&grants, &transfer, Access::Read).unwrap();
        slot.bounce_if_misaligned(Some(DirectIo { memory: 512, offset: 512 }), Access::Read);
        assert!(slot.bounce.is_none());
        slot.unmap(&grants);
    }

    /// Does at most `step` bytes of each operation, on memory.
    struct Reluctant {
        image: Vec<u8>,
        step: usize,
        done: Vec<Completion>,
        interrupts: u32,
    }

    impl Engine for Reluctant {
        unsafe fn start(&mut self, token: u16, op: Op, offset: u64, buffers: &[IoVec]) {
            if self.interrupts > 0 {
                self.interrupts -= 1;
                return self.done.push(Completion { token, result: Err(libc::EINTR) });
            }
            let (offset, mut bytes) = (usize::try_from(offset).unwrap(), 0);
            for buffer in buffers {
                let len = buffer.size().min(self.step - bytes);
                let part = &mut self.image[offset + bytes..offset + bytes + len];
                match op {
                    // SAFETY: the caller's buffers are valid.
                    Op::Read => unsafe { buffer.base().copy_from(part.as_ptr(), len) },
                    // SAFETY: as above.
                    Op::Write => unsafe { buffer.base().copy_to(part.as_mut_ptr(), len) },
                    Op::Flush => {}
                }
                bytes += len;
            }
            self.done.push(Completion { token, result: Ok(bytes) });
        }
        fn wait(&mut self, _block: bool) -> std::io::Result<()> {
            Ok(())
        }
        fn completions(&mut self, done: &mut Vec<Completion>) {
            done.append(&mut self.done);
        }
    }

    fn reluctant(front: &Front, disk: &Arc<Disk>, step: usize, interrupts: u32) -> Queue<Reluctant> {
        let domain = &front.guest.domain;
        let grants = Arc::clone(&domain.grants);
        let ring = BackRing::new(Arc::clone(&grants), &front.ring.refs, 112).unwrap();
        let channel = domain.events.bind_backend(front.port).unwrap();
        let image = std::fs::read(disk.image().path()).unwrap();
        let engine = Reluctant { image, step, done: Vec::new(), interrupts };
        Queue::new(engine, ring, channel, grants, Arc::clone(disk), Protocol::X86_64)
    }

    #[test]
    fn an_operation_that_is_done_in_pieces_is_continued() {
        let (_file, disk) = disk(64);
        for step in [512, 1000, 4096, 5000] {
            let mut front = Front::new(Protocol::X86_64);
            let mut queue = reluctant(&front, &disk, step, 0);
            let pages: Vec<_> = (0..3).map(|_| front.guest.granted_page()).collect();
            // The pages are not in the order of memory, or they would be one piece.
            let segments: Vec<_> = pages.iter().rev().map(|(_, gref)| whole(*gref)).collect();
            front.put(READ, 8, &segments);
            front.publish();
            let passes =
                std::iter::repeat_with(|| queue.pass()).take_while(|_| front.take().is_none()).count();
            assert!(passes > 0, "done at once");
            for (i, (frame, _)) in (0u64..).zip(pages.iter().rev()) {
                for s in 0..8usize {
                    let expected = sector_pattern(8 + i * 8 + s as u64, 1);
                    assert!(front.guest.read(*frame, s * 512, 512) == expected, "step {step}, page {i}");
                }
            }
        }
    }

    #[test]
    fn an_interrupted_operation_is_tried_again_but_not_for_ever() {
        let (_file, disk) = disk(64);
        for (interrupts, status) in [(3, 0), (1000, -1)] {
            let mut front = Front::new(Protocol::X86_64);
            let mut queue = reluctant(&front, &disk, 4096, interrupts);
            let (_, gref) = front.guest.granted_page();
            front.put(READ, 8, &[whole(gref)]);
            front.publish();
            for _ in 0..20 {
                queue.pass();
            }
            assert_eq!(statuses(&mut front), [status]);
            assert_eq!(front.guest.grant_flags(gref), 1);
        }
    }
}
