//! The engine on threads: for image formats, and for hosts that do not permit io_uring.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use super::pool::{Job, Pool};
use super::{Completion, Engine, IoVec, Op, Sleep};
use crate::storage::Storage;

/// Operations of one queue that are done at a time.
const MAX_THREADS: usize = 16;

/// Blocking calls on a storage, several at a time. The queue sleeps in poll(2).
pub struct Threads {
    event: RawFd,
    stop: RawFd,
    pool: Pool,
    in_flight: usize,
    calls: u64,
}

impl Threads {
    /// An engine on `storage` that wakes up when `event` or `stop`, two eventfds that do not block, are
    /// written. The descriptors stay open as long as the engine.
    pub fn new(storage: Arc<dyn Storage>, event: RawFd, stop: RawFd) -> io::Result<Self> {
        Ok(Self { event, stop, pool: Pool::new(storage, MAX_THREADS)?, in_flight: 0, calls: 0 })
    }
}

impl Engine for Threads {
    unsafe fn start(&mut self, token: u16, op: Op, offset: u64, buffers: &[IoVec]) {
        self.in_flight += 1;
        // SAFETY: the caller's promise is the same.
        unsafe { self.pool.start(Job::new(token, op, offset, buffers)) };
    }

    fn wait(&mut self, sleep: Sleep) -> io::Result<()> {
        let timeout = match sleep {
            Sleep::Never => return Ok(()),
            Sleep::Forever => None,
            Sleep::For(time) => Some(timespec(time)),
        };
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [poll(self.event), poll(self.stop), poll(self.pool.event())];
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: array and time outlive the call.
        let ready =
            unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout, std::ptr::null()) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        self.calls += 1 + u64::from(ready.unsigned_abs());
        let mut count = 0u64;
        for fd in fds.iter().filter(|fd| fd.revents != 0) {
            // SAFETY: the read of an eventfd is of eight bytes. It does not block.
            unsafe { libc::read(fd.fd, (&raw mut count).cast(), size_of::<u64>()) };
        }
        Ok(())
    }

    fn completions(&mut self, done: &mut Vec<Completion>) {
        if self.in_flight > 0 {
            self.in_flight -= self.pool.completions(done);
        }
    }

    fn system_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}
