//! The engine on io_uring: one system call per batch, in which the thread also sleeps.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::pool::{Job, Pool};
use super::{Completion, Engine, IoVec, Op, Sleep};
use crate::storage::Storage;

const EVENT: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;
const POOL: u64 = u64::MAX - 2;
const NOTIFY: u64 = u64::MAX - 3;
/// What an eventfd is written.
static ONE: u64 = 1;
const ONE_SIZE: u32 = 8;

/// Threads for what would block, and where everything would.
const FEW_THREADS: usize = 4;
const MANY_THREADS: usize = 16;
/// Operations handed to the kernel in one go.
const MAX_BATCH: u32 = 128;
/// From so many operations in the kernel on, one system call waits for several of them, ...
const MANY: usize = 16;
/// ... but not longer than this.
const PATIENCE: Duration = Duration::from_millis(1);

/// io_uring on one storage. Needs Linux 6.1.
///
/// The eventfds of the frontend's event channel and of the order to stop are polled by the same ring
/// (multi-shot), so that waiting for completions is waiting for them. They are never read: a poll reports
/// each write by itself, and the counter that grows meanwhile is of no interest.
///
/// Transfers are asked to fail rather than to block (RWF_NOWAIT): what the kernel cannot start at once, a hole
/// to be filled or a page that is not cached, goes to threads of our own, and so do flushes and discards.
///
/// The file is not registered with the ring, which would spare the kernel a look-up per operation: a ring is
/// taken down some time after its process has ended, and would hold the lock on the image until then. Nor are
/// buffers: that would pin all RAM of the guest, which is given as it is touched.
pub struct Uring {
    ring: IoUring,
    file: types::Fd,
    event: RawFd,
    stop: RawFd,
    enabled: bool,
    arm_event: bool,
    arm_stop: bool,
    arm_pool: bool,
    pool: Pool,
    /// What was started, by token, for another try in the pool.
    jobs: Vec<Option<Job>>,
    in_ring: usize,
    in_pool: usize,
    /// What the guest is notified by, when the kernel refused to write it.
    notifier: RawFd,
    /// Calls of io_uring_enter that were not told yet.
    calls: u64,
    /// A poll that the kernel refused.
    failed: Option<i32>,
    /// Whether the file can fail rather than block: reads, writes.
    nowait: [bool; 2],
    /// What completions() hands to the pool; empty outside of it.
    again: Vec<Job>,
}

impl Uring {
    /// A ring for `slots` operations at a time on `storage`, which is a descriptor. The eventfds stay open as
    /// long as the ring. It may be made on another thread than the one that then uses it.
    pub fn new(storage: Arc<dyn Storage>, event: RawFd, stop: RawFd, slots: u32) -> io::Result<Self> {
        let file = storage.raw().ok_or(io::ErrorKind::Unsupported)?;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_r_disabled()
            .setup_cqsize((slots + 3).next_power_of_two())
            .build((slots + 3).min(MAX_BATCH).next_power_of_two())?;
        Ok(Self {
            ring,
            file: types::Fd(file),
            event,
            stop,
            enabled: false,
            arm_event: true,
            arm_stop: true,
            arm_pool: true,
            pool: Pool::new(storage, FEW_THREADS)?,
            jobs: vec![None; slots as usize],
            in_ring: 0,
            in_pool: 0,
            notifier: -1,
            calls: 0,
            failed: None,
            nowait: [true; 2],
            again: Vec::new(),
        })
    }

    /// The thread that enables the ring is the one that may use it.
    fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// # Safety
    /// As [`Engine::start`].
    unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(entry) }.is_ok() {
            return true;
        }
        // A full batch goes to the kernel before the next one is gathered.
        self.calls += 1;
        if self.enable().is_err() || self.ring.submit().is_err() {
            return false;
        }
        // SAFETY: the caller's promise.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Of an operation that Engine::start was called with, whose caller's promise holds until its completion is
    /// returned.
    fn start_in_pool(&mut self, job: Job) {
        self.in_pool += 1;
        // SAFETY: the promise of start()'s caller.
        unsafe { self.pool.start(job) };
    }

    fn poll(&mut self, fd: RawFd, token: u64) -> bool {
        let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(true);
        // SAFETY: a poll uses no memory of ours.
        unsafe { self.push(&poll.build().user_data(token)) }
    }

    fn enter(&mut self, sleep: Sleep) -> io::Result<()> {
        let end = match sleep {
            Sleep::Never => {
                self.calls += 1;
                return passed(self.ring.submit());
            }
            Sleep::For(time) => Some(time),
            Sleep::Forever => None,
        };
        if self.in_ring >= MANY {
            // Several together make one wake-up, one notification and one batch of new requests. The others stay
            // under way meanwhile: a disk that ran dry until the frontend has answered would be slower.
            passed(self.wait_for(self.in_ring / 2, Some(PATIENCE)))?;
            if !self.is_empty() {
                return Ok(());
            }
        }
        passed(self.wait_for(1, end))
    }

    fn wait_for(&mut self, count: usize, time: Option<Duration>) -> io::Result<usize> {
        self.calls += 1;
        let submitter = self.ring.submitter();
        let Some(time) = time else { return submitter.submit_and_wait(count) };
        submitter.submit_with_args(count, &types::SubmitArgs::new().timespec(&time.into()))
    }

    /// Whether no completion waits to be taken.
    fn is_empty(&self) -> bool {
        // SAFETY: nothing else looks at the completion queue: this thread alone uses the ring, and completions()
        // does not hold it beyond its end.
        unsafe { self.ring.completion_shared() }.is_empty()
    }
}

/// Not an error: the time is over; a signal; or the kernel is short of memory or has completions to hand over
/// first.
fn passed(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Err(e)
            if !matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)) =>
        {
            Err(e)
        }
        _ => Ok(()),
    }
}

impl Engine for Uring {
    unsafe fn start(&mut self, token: u16, op: Op, offset: u64, buffers: &[IoVec]) {
        let job = Job::new(token, op, offset, buffers);
        let len = |one: &IoVec| u32::try_from(one.size()).unwrap_or(u32::MAX);
        let count = u32::try_from(buffers.len()).unwrap_or(u32::MAX);
        let [reads, writes] = self.nowait;
        let entry = match (op, buffers) {
            (Op::Read, _) if !reads => return self.start_in_pool(job),
            (Op::Write, _) if !writes => return self.start_in_pool(job),
            (Op::Flush | Op::Discard(_), _) => return self.start_in_pool(job),
            (Op::Read, [one]) => opcode::Read::new(self.file, one.base(), len(one))
                .offset(offset)
                .rw_flags(libc::RWF_NOWAIT)
                .build(),
            (Op::Write, [one]) => opcode::Write::new(self.file, one.base(), len(one))
                .offset(offset)
                .rw_flags(libc::RWF_NOWAIT)
                .build(),
            (Op::Read, _) => opcode::Readv::new(self.file, buffers.as_ptr().cast(), count)
                .offset(offset)
                .rw_flags(libc::RWF_NOWAIT)
                .build(),
            (Op::Write, _) => opcode::Writev::new(self.file, buffers.as_ptr().cast(), count)
                .offset(offset)
                .rw_flags(libc::RWF_NOWAIT)
                .build(),
        };
        if let Some(slot) = self.jobs.get_mut(usize::from(token)) {
            *slot = Some(job);
        }
        // SAFETY: the caller promises that array and memory stay.
        if unsafe { self.push(&entry.user_data(u64::from(token))) } {
            self.in_ring += 1;
        } else {
            // The kernel is short of memory: slower, but not an error of the guest's.
            self.start_in_pool(job);
        }
    }

    fn wait(&mut self, sleep: Sleep) -> io::Result<()> {
        self.enable()?;
        if let Some(errno) = self.failed {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if self.arm_event {
            self.arm_event = !self.poll(self.event, EVENT);
        }
        if self.arm_stop {
            self.arm_stop = !self.poll(self.stop, STOP);
        }
        if self.arm_pool {
            self.arm_pool = !self.poll(self.pool.event(), POOL);
        }
        let armed = !self.arm_event && !self.arm_stop && !self.arm_pool;
        self.enter(if armed { sleep } else { Sleep::Never })
    }

    fn completions(&mut self, done: &mut Vec<Completion>) {
        let mut again = std::mem::take(&mut self.again);
        for entry in self.ring.completion() {
            let token = entry.user_data();
            if let Ok(token) = u16::try_from(token) {
                self.in_ring -= 1;
                let job = self.jobs.get_mut(usize::from(token)).and_then(Option::take);
                match (-entry.result(), job) {
                    (libc::EAGAIN, Some(job)) => again.push(job),
                    (libc::EOPNOTSUPP, Some(job)) => {
                        let [reads, writes] = &mut self.nowait;
                        *(if job.op == Op::Read { reads } else { writes }) = false;
                        self.pool.max_threads = MANY_THREADS;
                        again.push(job);
                    }
                    _ => done.push(Completion::new(token, entry.result())),
                }
            } else if token == NOTIFY {
                // Only a failure is told.
                // SAFETY: writes eight bytes of a static, to a descriptor that the queue keeps open.
                unsafe { libc::write(self.notifier, (&raw const ONE).cast(), ONE_SIZE as usize) };
            } else if !cqueue::more(entry.flags()) {
                // The poll ended: it was refused, or completions overflowed the ring.
                if entry.result() < 0 {
                    self.failed = Some(-entry.result());
                }
                match token {
                    EVENT => self.arm_event = true,
                    STOP => self.arm_stop = true,
                    _ => self.arm_pool = true,
                }
            }
        }
        for job in again.drain(..) {
            self.start_in_pool(job);
        }
        self.again = again;
        if self.in_pool > 0 {
            self.in_pool -= self.pool.completions(done);
        }
    }

    fn notify(&mut self, fd: RawFd) -> bool {
        self.notifier = fd;
        let write = opcode::Write::new(types::Fd(fd), (&raw const ONE).cast(), ONE_SIZE);
        let entry = write.build().flags(squeue::Flags::SKIP_SUCCESS).user_data(NOTIFY);
        // SAFETY: the eight bytes are a static's.
        unsafe { self.push(&entry) }
    }

    fn system_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }
}

impl Drop for Uring {
    /// Waits for what is under way: the kernel still reads and writes the memory.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_ring > 0 {
            self.completions(&mut done);
            if self.in_ring > 0 && self.enter(Sleep::Forever).is_err() {
                return;
            }
        }
        // What the pool does ends when the pool is dropped.
    }
}
