//! One ring of a block device: requests in, operations on the storage, responses out.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use devices::guess::Guess;
use devices::xen::event_channel::BackendChannel;
use devices::xen::grant_table::{Access, GrantTable};
use devices::xen::shared_ring::{BackRing, RingError};

use crate::bursts::Bursts;
use crate::disk::Disk;
use crate::engine::{Completion, Engine, Op, Sleep};
use crate::protocol::{Operation, Protocol, RawEntry, Request, Response, Segment, Status};
use crate::remnant::Rest;
use crate::slot::{Kind, Phase, Slot};

/// Attempts at an operation that the kernel interrupts or postpones.
const MAX_RETRIES: u8 = 8;
/// Memory of bounce buffers of one queue at a time, at least one request's. A frontend may have 512 requests of
/// 1 MiB under way, all of them misaligned.
const MAX_BOUNCED: usize = 4 << 20;
/// A write that found no room is tried again after so long.
const RETRY_HELD: Duration = Duration::from_secs(1);
/// What ends with the call that starts it has ended before that call begins to sleep: a sleep of this length tells it
/// from the rest, which the next requests must not wait for.
const NEAR: Duration = Duration::from_micros(20);
/// A frontend that is awake may see so many answers of a batch before the rest of them.
const SHOWN: usize = 4;
/// The size of the storage is looked at with a wake-up, but not more often than this.
const RESCAN: Duration = Duration::from_millis(100);

/// The kinds of lines that a connection may write to the log, once each.
#[derive(Clone, Copy)]
enum Complaint {
    Refused = 1,
    Grant = 2,
    Io = 4,
}

/// A barrier under way: what came before it is finished first, and what follows stays in the ring.
struct Barrier {
    token: u16,
    started: bool,
}

/// A connected ring with its engine. Used by one thread.
pub struct Queue<E: Engine> {
    // The engine is dropped first: it waits for the operations that use the slots.
    engine: E,
    slots: Box<[Slot]>,
    /// The last one given back is the next one taken: with few requests at a time, few slots have memory.
    free: Vec<u16>,
    completions: Vec<Completion>,
    /// Of the request that is looked at.
    segments: Vec<Segment>,
    ring: BackRing,
    channel: BackendChannel,
    /// Notifies the guest when the engine writes it.
    notifier: Option<RawFd>,
    grants: Arc<GrantTable>,
    disk: Arc<Disk>,
    protocol: Protocol,
    barrier: Option<Barrier>,
    /// Bytes of all bounce buffers, and the requests that wait until there may be more.
    bounced: usize,
    starved: VecDeque<(u16, Access)>,
    /// Writes that found no room, and when they are tried again.
    held: Vec<u16>,
    retry_at: Instant,
    bursts: Bursts,
    /// The sleep under way is one with nothing to finish.
    resting: bool,
    /// The thread may wait for a time: it is its own.
    sleeps: bool,
    /// What was started will have ended with the call that starts it, as on storage that has nothing to wait for; and
    /// that is being tried.
    near: Guess,
    nearing: bool,
    /// The frontend answers responses at once; and there are some that it had no time for yet.
    quick: Guess,
    answered: bool,
    /// When the size was looked at.
    rescanned: Instant,
    /// Nothing is taken any more, and nothing is held.
    stopping: bool,
    /// The frontend broke the ring: it is not looked at any more.
    broken: bool,
    complained: u8,
}

impl<E: Engine> Queue<E> {
    /// A queue of `disk` on a mapped ring. The engine must be on the disk's storage, and wake up for the
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
        let now = Instant::now();
        Self {
            engine,
            slots: (0..count).map(|_| Slot::new()).collect(),
            free: (0..count).rev().collect(),
            completions: Vec::new(),
            segments: Vec::new(),
            ring,
            notifier: channel.notifier(),
            channel,
            grants,
            disk,
            protocol,
            barrier: None,
            bounced: 0,
            starved: VecDeque::new(),
            held: Vec::new(),
            retry_at: now,
            bursts: Bursts::new(now),
            resting: false,
            sleeps: false,
            near: Guess::default(),
            nearing: false,
            quick: Guess::default(),
            answered: false,
            rescanned: now,
            stopping: false,
            broken: false,
            complained: 0,
        }
    }

    /// Serves the ring until `stop` is set (and the engine woken) or the frontend breaks the ring. Requests
    /// that were taken are finished and answered; only then their pages are given back.
    pub fn run(self, stop: &AtomicBool) {
        drop(self.run_to_rest(stop));
    }

    /// As [`Queue::run`]. Returns the ring, unless the frontend broke it or the engine failed.
    pub(crate) fn run_to_rest(mut self, stop: &AtomicBool) -> Option<Rest> {
        self.sleeps = true;
        loop {
            // Before new requests are started: the guest has work to do meanwhile.
            self.publish();
            let mut sleep = Sleep::Forever;
            if stop.load(SeqCst) || self.broken {
                self.stop();
            } else {
                sleep = self.take_requests();
            }
            self.publish();
            if (self.stopping || self.broken) && self.idle() {
                // What the engine was told to notify.
                let _ = self.engine.wait(Sleep::Never);
                let Self { engine, ring, channel, protocol, broken, .. } = self;
                // It is given descriptors of the channel.
                drop(engine);
                return (!broken).then(|| Rest { ring, channel: Arc::new(channel), protocol });
            }
            let started = self.under_way() > 0;
            if let Err(e) = self.engine.wait(self.until_retry(sleep)) {
                tracing::error!("vbd {}: the disk stops, as its I/O engine failed: {e}", self.disk.name());
                self.abandon();
                return None;
            }
            self.disk.counters().system_calls.fetch_add(self.engine.system_calls(), Relaxed);
            if sleep != Sleep::Never {
                count(&self.disk.counters().wakeups);
                self.rescan();
            }
            self.finish();
            let ended = self.under_way() == 0;
            if std::mem::take(&mut self.nearing) {
                self.near.came(ended);
            }
            if started && !ended {
                self.bursts.began(Instant::now(), u32::MAX);
            }
        }
    }

    /// Does what can be done now without sleeping: finishes operations, takes requests. True: there is more.
    pub fn pass(&mut self) -> bool {
        let sleep = if self.broken { Sleep::Forever } else { self.take_requests() };
        let _ = self.engine.wait(Sleep::Never);
        self.finish();
        self.publish();
        sleep == Sleep::Never
    }

    /// Whether no operation is under way.
    pub fn idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Requests that the engine will tell the end of.
    fn under_way(&self) -> usize {
        self.slots.len() - self.free.len() - self.held.len() - self.starved.len()
    }

    /// Whether the frontend broke the ring.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Has writes that found no room tried again with the next pass, for tests that do not wait for their time.
    #[cfg(any(test, feature = "testing"))]
    pub fn retry_now(&mut self) {
        self.retry_at = Instant::now();
    }

    /// The engine, for tests that look at what it was asked to do.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// No more requests are taken, and writes that found no room fail: nobody may be left to make some. What the
    /// frontend sent before, and a limit or a barrier kept in the ring, is refused: Linux waits for every answer
    /// before it lets go of a disk, and with that for ever.
    fn stop(&mut self) {
        if !std::mem::replace(&mut self.stopping, true) && !self.broken {
            self.refuse_rest();
        }
        for token in std::mem::take(&mut self.held) {
            self.complete(Completion { token, result: Err(libc::ENOSPC) });
        }
    }

    /// Refuses what is in the ring now, with one look at it: a frontend that goes on sending is not heard.
    fn refuse_rest(&mut self) {
        let mut entry: RawEntry = [0; size_of::<RawEntry>()];
        for _ in 0..self.ring.pending().unwrap_or(0) {
            if !self.ring.next_request(&mut entry).unwrap_or(false) {
                return;
            }
            count(&self.disk.counters().requests);
            self.respond(Request::refusal(&entry, self.protocol));
        }
    }

    /// The engine can no longer tell when the kernel is done with the memory: it is never used again.
    fn abandon(&mut self) {
        if !self.idle() {
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }

    /// As xen-blkback does: a disk that the host grew is larger from some request on.
    fn rescan(&mut self) {
        let now = Instant::now();
        if now.saturating_duration_since(self.rescanned) < RESCAN {
            return;
        }
        self.rescanned = now;
        if let Err(e) = self.disk.rescan() {
            tracing::debug!("vbd {}: its size is not known: {e}", self.disk.name());
        }
    }

    /// Takes what is in the ring, at most a ring full, as a frontend could add requests for ever. How long to
    /// sleep: not at all, if there is more; for some time, if a limit forbids to take more. Otherwise the
    /// frontend was asked for an event, or the end of a barrier is what has to be waited for.
    fn take_requests(&mut self) -> Sleep {
        let mut entry: RawEntry = [0; size_of::<RawEntry>()];
        let mut answered = std::mem::take(&mut self.answered);
        if std::mem::take(&mut self.resting) {
            let pending = self.ring.pending().unwrap_or(0);
            self.bursts.began(Instant::now(), pending);
        }
        for taken in 0..=self.ring.nr_entries() {
            if self.barrier.is_some() {
                return Sleep::Forever;
            }
            match self.ring.pending() {
                Ok(0) => {
                    let under_way = self.under_way() > 0;
                    if under_way && self.sleeps {
                        if std::mem::take(&mut answered)
                            && self.quick.glance(|| self.ring.pending().is_ok_and(|count| count > 0))
                        {
                            continue;
                        }
                        // The end of what was just started is near, and will have us look again. If it is not, the
                        // frontend is asked for an event then.
                        self.nearing = taken > 0 && self.near.is_worth_a_try();
                        if self.nearing {
                            return Sleep::For(NEAR);
                        }
                    }
                    let burst = if under_way {
                        None
                    } else {
                        self.bursts.expect(Instant::now(), self.ring.nr_entries())
                    };
                    match self.ring.final_check_for(burst.map_or(1, |(count, _)| count)) {
                        Ok(true) => self.bursts.began(Instant::now(), u32::MAX),
                        Ok(false) => {
                            self.resting = !under_way;
                            return burst.map_or(Sleep::Forever, |(_, time)| Sleep::For(time));
                        }
                        Err(e) => return self.give_up(&e),
                    }
                }
                Ok(_) => {}
                Err(e) => return self.give_up(&e),
            }
            if taken == self.ring.nr_entries() {
                break;
            }
            // What waits for its turn waits in the ring: so it stays in order.
            if let Some(delay) = self.disk.delay() {
                return Sleep::For(delay);
            }
            match self.ring.next_request(&mut entry) {
                Ok(true) => self.dispatch(&entry),
                Ok(false) => {}
                Err(e) => return self.give_up(&e),
            }
        }
        Sleep::Never
    }

    fn give_up(&mut self, reason: &RingError) -> Sleep {
        self.broken = true;
        if self.disk.may_complain() {
            tracing::warn!("vbd {}: the disk stops until it is connected again: {reason}", self.disk.name());
        }
        Sleep::Forever
    }

    fn dispatch(&mut self, entry: &RawEntry) {
        count(&self.disk.counters().requests);
        let grants = &self.grants;
        let limits = self.disk.limits();
        let request = Request::parse(entry, self.protocol, &limits, &mut self.segments, |gref, list| {
            let page = grants.pin(gref, Access::Read)?;
            if let Some(slice) = grants.slice(&page, 0, list.len()) {
                slice.copy_to(list);
            }
            grants.unpin(page);
            Ok(())
        });
        let request = match request {
            Ok(request) => request,
            Err(rejection) => {
                self.disk.charge(0);
                self.complain(Complaint::Refused, &rejection.reason);
                return self.respond(rejection.response());
            }
        };
        let (id, opcode) = (request.id, request.opcode);
        let failed = Response { id, opcode, status: Status::Error };
        // There is a slot for each entry of the ring, and the ring does not hand out more.
        let Some(index) = self.free.pop() else { return self.respond(failed) };
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return self.respond(failed) };
        (slot.id, slot.opcode, slot.retries, slot.barrier) = (id, opcode, 0, false);
        (slot.offset, slot.total, slot.held) = (0, 0, false);
        let (kind, phase, data) = match request.operation {
            Operation::Read(transfer) => (Kind::Read, Phase::Read, Some((transfer, Access::Write))),
            Operation::Write(transfer) => (Kind::Write, Phase::Write, Some((transfer, Access::Read))),
            Operation::Flush(None) | Operation::Barrier(None) => (Kind::Flush, Phase::Flush, None),
            Operation::Flush(Some(transfer)) | Operation::Barrier(Some(transfer)) => {
                (Kind::Write, Phase::FlushThenWrite, Some((transfer, Access::Read)))
            }
            Operation::Discard { offset, len } => {
                slot.offset = offset;
                slot.discarded = len;
                (Kind::Discard, Phase::Discard, None)
            }
        };
        let mut bounce = None;
        if let Some((transfer, access)) = data {
            self.disk.charge(transfer.bytes().into());
            if let Err(e) = slot.map(&self.grants, &transfer, &self.segments, access) {
                self.free.push(index);
                self.complain(Complaint::Grant, &e);
                return self.respond(failed);
            }
            bounce = slot.is_misaligned(self.disk.traits()).then_some(access);
        } else {
            self.disk.charge(0);
        }
        (slot.kind, slot.phase) = (kind, phase);
        if matches!(request.operation, Operation::Barrier(_)) {
            slot.barrier = true;
            self.barrier = Some(Barrier { token: index, started: false });
        }
        match bounce {
            Some(access) => {
                self.starved.push_back((index, access));
                self.feed();
            }
            None => self.begin(index),
        }
    }

    /// Starts a request, unless it is a barrier that has to wait.
    fn begin(&mut self, index: u16) {
        let alone = self.free.len() + 1 == self.slots.len();
        if let Some(barrier) = &mut self.barrier
            && barrier.token == index
        {
            if !alone || barrier.started {
                return;
            }
            barrier.started = true;
        }
        self.start(index);
    }

    /// Gives bounce buffers to those that wait for one, in order, as far as there may be more.
    fn feed(&mut self) {
        while let Some((index, access)) = self.starved.front().copied() {
            let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
            if self.bounced > 0 && self.bounced + slot.total > MAX_BOUNCED {
                return;
            }
            count(&self.disk.counters().bounces);
            self.bounced += slot.bounce(access);
            self.starved.pop_front();
            self.begin(index);
        }
    }

    fn start(&mut self, index: u16) {
        let Some(slot) = self.slots.get(usize::from(index)) else { return };
        let (op, buffers) = match slot.phase {
            Phase::Free => return,
            Phase::Read => (Op::Read, slot.buffers()),
            Phase::Write => (Op::Write, slot.buffers()),
            Phase::Flush | Phase::FlushThenWrite => (Op::Flush, &[][..]),
            Phase::Discard => (Op::Discard(slot.discarded), &[][..]),
        };
        // SAFETY: the buffers are pinned guest pages or the slot's bounce buffer. Pages, buffer and array
        // stay as they are until finish() sees the completion: nothing else touches a slot that is not free,
        // and drop order and abandon() hold back the memory when the queue ends.
        unsafe { self.engine.start(index, op, slot.offset, buffers) };
    }

    fn finish(&mut self) {
        self.retry_held();
        let mut done = std::mem::take(&mut self.completions);
        self.engine.completions(&mut done);
        for (number, completion) in done.drain(..).enumerate() {
            self.complete(completion);
            // A frontend that is awake has work to do while the others of a batch are answered.
            if number % SHOWN == SHOWN - 1 {
                self.ring.show();
            }
        }
        self.completions = done;
        self.feed();
        if let Some(Barrier { token, started: false }) = self.barrier
            && !self.starved.iter().any(|(index, _)| *index == token)
        {
            self.begin(token);
        }
    }

    fn complete(&mut self, Completion { token, result }: Completion) {
        let Some(slot) = self.slots.get_mut(usize::from(token)) else { return };
        let phase = slot.phase;
        let outcome = match (phase, result) {
            (Phase::Free, _) => return,
            (_, Err(libc::EINTR | libc::EAGAIN)) if slot.retries < MAX_RETRIES => {
                slot.retries += 1;
                return self.start(token);
            }
            // Not a flush: what the kernel could not write then, it does not try to write again.
            (Phase::Write, Err(libc::ENOSPC | libc::EDQUOT))
                if self.disk.enospc_pause() && !self.stopping =>
            {
                return self.hold(token);
            }
            (_, Err(errno)) => Err(errno),
            (Phase::Flush | Phase::Discard, Ok(_)) => Ok(()),
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
                if slot.barrier && phase == Phase::Write {
                    slot.phase = Phase::Flush;
                    return self.start(token);
                }
                Ok(())
            }
        };
        if phase == Phase::Read && outcome.is_ok() {
            slot.copy_to_guest();
        }
        self.bounced -= slot.unmap(&self.grants);
        slot.phase = Phase::Free;
        let (id, opcode, kind, total, barrier) = (slot.id, slot.opcode, slot.kind, slot.total, slot.barrier);
        if slot.held && outcome.is_ok() {
            self.disk.has_room();
        }
        self.free.push(token);
        if barrier {
            self.barrier = None;
        }
        let status = match outcome {
            Ok(()) => {
                self.count_success(kind, total as u64);
                Status::Okay
            }
            Err(errno) => {
                self.complain(Complaint::Io, &std::io::Error::from_raw_os_error(errno));
                // Then the frontend does not ask for it again.
                if kind == Kind::Discard && errno == libc::EOPNOTSUPP {
                    Status::NotSupported
                } else {
                    Status::Error
                }
            }
        };
        self.respond(Response { id, opcode, status });
    }

    /// The disk is full, and the guest is to wait until there is room.
    fn hold(&mut self, token: u16) {
        if self.held.is_empty() {
            self.retry_at = Instant::now() + RETRY_HELD;
        }
        if let Some(slot) = self.slots.get_mut(usize::from(token)) {
            slot.held = true;
        }
        self.held.push(token);
        self.disk.full();
    }

    fn retry_held(&mut self) {
        if self.held.is_empty() || Instant::now() < self.retry_at {
            return;
        }
        for token in std::mem::take(&mut self.held) {
            self.start(token);
        }
    }

    fn until_retry(&self, sleep: Sleep) -> Sleep {
        if self.held.is_empty() {
            return sleep;
        }
        let time = self.retry_at.saturating_duration_since(Instant::now());
        match sleep {
            Sleep::Never => Sleep::Never,
            Sleep::For(other) => Sleep::For(time.min(other)),
            Sleep::Forever => Sleep::For(time),
        }
    }

    fn count_success(&self, kind: Kind, bytes: u64) {
        let counters = self.disk.counters();
        match kind {
            Kind::Read => {
                count(&counters.reads);
                counters.bytes_read.fetch_add(bytes, Relaxed);
            }
            Kind::Write => {
                count(&counters.writes);
                counters.bytes_written.fetch_add(bytes, Relaxed);
            }
            Kind::Flush => count(&counters.flushes),
            Kind::Discard => count(&counters.discards),
        }
    }

    fn respond(&mut self, response: Response) {
        if response.status != Status::Okay {
            count(&self.disk.counters().errors);
        }
        self.bursts.answered();
        self.answered = true;
        self.ring.push_response(&response.emit());
    }

    fn publish(&mut self) {
        if self.ring.publish() {
            if !self.notifier.is_some_and(|fd| self.engine.notify(fd)) {
                self.channel.notify();
                count(&self.disk.counters().system_calls);
            }
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
            let path = self.disk.path().display();
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
mod tests;
