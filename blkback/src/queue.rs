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
