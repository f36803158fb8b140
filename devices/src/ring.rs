//! An io_uring of one thread, as the I/O engines of the back halves use it.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use crate::io::entered;

/// The token of notifications, whose ends nobody sees.
const NOTIFY: u64 = u64::MAX;
/// What an eventfd is written.
static ONE: u64 = 1;
const ONE_SIZE: u32 = 8;

/// A ring whose system calls are counted. Needs Linux 6.1.
///
/// It may be made on one thread and used on another: the one that waits first is the one that may use it.
pub struct Ring {
    ring: IoUring,
    enabled: bool,
    /// Calls of io_uring_enter that were not told yet.
    calls: u64,
    /// What the guest is notified by, when the kernel refused to write it.
    notifier: RawFd,
}

/// The end of an operation, or what a poll has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// As it was pushed with.
    pub token: u64,
    /// As the kernel gives it: a count or bits, or an errno below zero.
    pub result: i32,
    /// The poll goes on.
    pub more: bool,
}

impl Ring {
    /// A ring that takes `batch` operations with one system call, and keeps `ends` until they are taken.
    pub fn new(batch: u32, ends: u32) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_r_disabled()
            .setup_cqsize(ends.next_power_of_two())
            .build(batch.next_power_of_two())?;
        Ok(Self { ring, enabled: false, calls: 0, notifier: -1 })
    }

    fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// Adds an operation to the batch; a full one goes to the kernel first. False: the kernel is short of memory.
    ///
    /// # Safety
    /// The memory that the entry names stays valid until its end was taken from [`Ring::next`].
    pub unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(entry) }.is_ok() {
            return true;
        }
        if self.submit().is_err() {
            return false;
        }
        // SAFETY: the caller's promise.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Asks to be told when `fd` can be read: once, or each time. An eventfd need not be read for that: each write is told.
    pub fn poll(&mut self, fd: RawFd, token: u64, multi: bool) -> bool {
        let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(multi);
        // SAFETY: a poll uses no memory of ours.
        unsafe { self.push(&poll.build().user_data(token)) }
    }

    /// Writes an eventfd, ahead of what is pushed later. It stays open until the ring is dropped.
    pub fn notify(&mut self, fd: RawFd) -> bool {
        self.notifier = fd;
        let write = opcode::Write::new(types::Fd(fd), (&raw const ONE).cast(), ONE_SIZE);
        let entry = write.build().flags(squeue::Flags::SKIP_SUCCESS).user_data(NOTIFY);
        // SAFETY: the eight bytes are a static's.
        unsafe { self.push(&entry) }
    }

    /// Hands the batch to the kernel.
    pub fn submit(&mut self) -> io::Result<()> {
        self.enable()?;
        self.calls += 1;
        entered(self.ring.submit())
    }

    /// Hands the batch to the kernel and sleeps until `count` ends are there, or for the time given.
    pub fn wait(&mut self, count: usize, time: Option<Duration>) -> io::Result<()> {
        self.enable()?;
        self.calls += 1;
        let submitter = self.ring.submitter();
        entered(match time {
            None => submitter.submit_and_wait(count),
            Some(time) => submitter.submit_with_args(count, &types::SubmitArgs::new().timespec(&time.into())),
        })
    }

    /// Whether the batch is empty.
    pub fn is_submitted(&mut self) -> bool {
        self.ring.submission().is_empty()
    }

    /// Whether no end waits to be taken.
    pub fn is_empty(&mut self) -> bool {
        self.ring.completion().is_empty()
    }

    /// Takes an end.
    #[expect(clippy::should_implement_trait, reason = "there is more later")]
    pub fn next(&mut self) -> Option<End> {
        loop {
            let entry = self.ring.completion().next()?;
            if entry.user_data() != NOTIFY {
                let more = cqueue::more(entry.flags());
                return Some(End { token: entry.user_data(), result: entry.result(), more });
            }
            // Only a failure is told.
            // SAFETY: writes eight bytes of a static, to a descriptor that is open as long as the ring.
            unsafe { libc::write(self.notifier, (&raw const ONE).cast(), ONE_SIZE as usize) };
        }
    }

    /// System calls since the last time.
    pub fn system_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }
}
