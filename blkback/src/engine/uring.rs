//! The engine on io_uring: one system call per batch, in which the thread also sleeps.

use std::io;
use std::os::fd::RawFd;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::pool::{Job, Pool};
use super::{Completion, Engine, IoVec, Op};

const EVENT: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;
const POOL: u64 = u64::MAX - 2;

/// io_uring on one image. Needs Linux 6.1.
///
/// The eventfds of the frontend's event channel and of the order to stop are polled by the same ring
/// (multi-shot), so that waiting for completions is waiting for them. They are never read: a poll reports
/// each write by itself, and the counter that grows meanwhile is of no interest.
///
/// Transfers are asked to fail rather than to block (RWF_NOWAIT): what the kernel cannot start at once, a hole
/// to be filled or a page that is not cached, goes to threads of our own, and so does fdatasync.
///
/// The image is not registered with the ring, which would spare the kernel a look-up per operation: a ring is
/// taken down some time after its process has ended, and would hold the lock on the image until then.
pub struct Uring {
    ring: IoUring,
    image: types::Fd,
    event: RawFd,
    stop: RawFd,
    enabled: bool,
    arm_event: bool,
    arm_stop: bool,
    arm_pool: bool,
    pool: Pool,
    /// What was started, by token, for another try in the pool.
    jobs: Vec<Option<Job>>,
    /// In the ring, and in the pool.
    in_flight: usize,
    /// A poll that the kernel refused.
    failed: Option<i32>,
    /// Operations that could not even be queued.
    refused: Vec<u16>,
}

impl Uring {
    /// A ring for `slots` operations at a time on `image`. The descriptors stay open as long as the ring. It
    /// may be made on another thread than the one that then uses it.
    pub fn new(image: RawFd, event: RawFd, stop: RawFd, slots: u32) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_r_disabled()
            .build((slots + 3).next_power_of_two())?;
        Ok(Self {
            ring,
            image: types::Fd(image),
            event,
            stop,
            enabled: false,
            arm_event: true,
            arm_stop: true,
            arm_pool: true,
            pool: Pool::new(image)?,
            jobs: vec![None; slots as usize],
            in_flight: 0,
            failed: None,
            refused: Vec::new(),
        })
    }

    /// # Safety
    /// As [`Engine::start`].
    unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(entry) }.is_ok() {
            return true;
        }
        // One operation per slot and two polls fit in, so the queue holds entries that the kernel did not
        // take last time.
        let _ = self.ring.submit();
        // SAFETY: the caller's promise.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    fn poll(&mut self, fd: RawFd, token: u64) -> bool {
        let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(true);
        // SAFETY: a poll uses no memory of ours.
        unsafe { self.push(&poll.build().user_data(token)) }
    }

    fn enter(&mut self, block: bool) -> io::Result<()> {
        match self.ring.submit_and_wait(usize::from(block)) {
            Ok(_) => Ok(()),
            // A signal; or the kernel is short of memory or has completions to hand over first.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

impl Engine for Uring {
    unsafe fn start(&mut self, token: u16, op: Op, offset: u64, buffers: &[IoVec]) {
        let job = Job { token, op, offset, buffers: buffers.as_ptr(), count: buffers.len() };
        if let Some(slot) = self.jobs.get_mut(usize::from(token)) {
            *slot = Some(job);
        }
        let len = u32::try_from(buffers.len()).unwrap_or(u32::MAX);
        let entry = match (op, buffers) {
            (Op::Flush, _) => {
                self.in_flight += 1;
                // SAFETY: the caller's promise.
                return unsafe { self.pool.start(job) };
            }
            (Op::Read, [one]) => {
                let len = u32::try_from(one.size()).unwrap_or(u32::MAX);
                opcode::Read::new(self.image, one.base(), len)
                    .offset(offset)
                    .rw_flags(libc::RWF_NOWAIT)
                    .build()
            }
            (Op::Write, [one]) => {
                let len = u32::try_from(one.size()).unwrap_or(u32::MAX);
                opcode::Write::new(self.image, one.base(), len)
                    .offset(offset)
                    .rw_flags(libc::RWF_NOWAIT)
                    .build()
            }
            (Op::Read, _) => opcode::Readv::new(self.image, buffers.as_ptr().cast(), len)
                .offset(offset)
                .rw_flags(libc::RWF_NOWAIT)
                .build(),
            (Op::Write, _) => opcode::Writev::new(self.image, buffers.as_ptr().cast(), len)
                .offset(offset)
                .rw_flags(libc::RWF_NOWAIT)
                .build(),
        };
        // SAFETY: the caller promises that array and memory stay.
        if unsafe { self.push(&entry.user_data(u64::from(token))) } {
            self.in_flight += 1;
        } else {
            self.refused.push(token);
        }
    }

    fn wait(&mut self, block: bool) -> io::Result<()> {
        if !self.enabled {
            // The thread that enables the ring is the one that may use it.
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
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
        let block = block && self.refused.is_empty() && armed;
        self.enter(block)
    }

    fn completions(&mut self, done: &mut Vec<Completion>) {
        done.extend(self.refused.drain(..).map(|token| Completion { token, result: Err(libc::EBUSY) }));
        for entry in self.ring.completion() {
            let token = entry.user_data();
            if let Ok(token) = u16::try_from(token) {
                let job = self.jobs.get_mut(usize::from(token)).and_then(Option::take);
                match (-entry.result(), job) {
                    (libc::EAGAIN | libc::EOPNOTSUPP, Some(job)) => {
                        // SAFETY: the promise of start()'s caller holds until the completion is returned.
                        unsafe { self.pool.start(job) };
                    }
                    _ => {
                        self.in_flight -= 1;
                        done.push(Completion::new(token, entry.result()));
                    }
                }
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
        self.in_flight -= self.pool.completions(done);
    }
}

impl Drop for Uring {
    /// Waits for what is under way: the kernel still reads and writes the memory.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight > 0 {
            self.completions(&mut done);
            if self.in_flight > 0 && self.enter(true).is_err() {
                return;
            }
        }
    }
}
