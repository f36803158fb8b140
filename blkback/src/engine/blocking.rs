//! The engine for hosts that do not permit io_uring: each operation is done where it is started.

use std::io;
use std::os::fd::RawFd;

use super::pool::Job;
use super::{Completion, Engine, IoVec, Op};

/// preadv, pwritev and fdatasync, one operation after the other.
pub struct Blocking {
    image: RawFd,
    event: RawFd,
    stop: RawFd,
    done: Vec<Completion>,
}

impl Blocking {
    /// An engine on `image` that wakes up when `event` or `stop`, two eventfds, are written. The descriptors
    /// stay open as long as the engine.
    pub fn new(image: RawFd, event: RawFd, stop: RawFd) -> Self {
        Self { image, event, stop, done: Vec::new() }
    }
}

impl Engine for Blocking {
    unsafe fn start(&mut self, token: u16, op: Op, offset: u64, buffers: &[IoVec]) {
        let job = Job { token, op, offset, buffers: buffers.as_ptr(), count: buffers.len() };
        let result = job.run(self.image);
        self.done.push(Completion { token, result });
    }

    fn wait(&mut self, block: bool) -> io::Result<()> {
        if !block || !self.done.is_empty() {
            return Ok(());
        }
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [poll(self.event), poll(self.stop)];
        // SAFETY: the array outlives the call.
        if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        let mut count = 0u64;
        for fd in fds.iter().filter(|fd| fd.revents != 0) {
            // SAFETY: the read of an eventfd is of eight bytes. It does not block: the poll saw a count.
            unsafe { libc::read(fd.fd, (&raw mut count).cast(), size_of::<u64>()) };
        }
        Ok(())
    }

    fn completions(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }
}
