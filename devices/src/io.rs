//! What the I/O engines of the back halves have in common.

use std::io;
use std::time::Duration;

/// A piece of memory of an operation, as readv(2) and writev(2) take it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct IoVec(libc::iovec);

// SAFETY: the pointer is only handed to the kernel, which does not mind the thread.
unsafe impl Send for IoVec {}

impl IoVec {
    /// `len` bytes from `base`.
    pub fn new(base: *mut u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: base.cast(), iov_len: len })
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.0.iov_len
    }

    /// Where it starts.
    pub fn base(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Makes it longer by `len`, if that starts where this ends: neighbouring pages become one piece.
    pub fn extend(&mut self, base: *mut u8, len: usize) -> bool {
        let adjacent = self.base().wrapping_add(self.size()) == base;
        if adjacent {
            self.0.iov_len += len;
        }
        adjacent
    }

    /// Takes up to `len` bytes from its start away; how many.
    pub fn advance(&mut self, len: usize) -> usize {
        let len = len.min(self.size());
        *self = Self::new(self.base().wrapping_add(len), self.size() - len);
        len
    }
}

/// The end of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As given to the engine with the operation.
    pub token: u16,
    /// Bytes done, which may be fewer than asked for, or the errno.
    pub result: Result<usize, i32>,
}

impl Completion {
    /// Of an operation whose result is told as the kernel tells it: a count, or an errno below zero.
    pub fn new(token: u16, result: i32) -> Self {
        Self { token, result: usize::try_from(result).map_err(|_| result.wrapping_neg()) }
    }
}

/// How long to sleep for want of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// Not at all.
    Never,
    /// At most so long.
    For(Duration),
    /// Until there is something.
    Forever,
}

/// Of a call of io_uring_enter. Not an error: the time is over; a signal; or the kernel is short of memory or has
/// completions to hand over first.
pub fn entered(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Err(e)
            if !matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)) =>
        {
            Err(e)
        }
        _ => Ok(()),
    }
}
