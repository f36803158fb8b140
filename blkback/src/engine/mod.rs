//! What moves the bytes between guest pages and a storage.
//!
//! Two engines: [`Uring`] for storages that are a descriptor, and [`Threads`] for image formats and for hosts
//! where io_uring is not permitted. A queue's thread sleeps inside its engine and nowhere else: for
//! completions, for events of the frontend, for the order to stop, and until a time.

mod pool;
mod threads;
mod uring;

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

pub use threads::Threads;
pub use uring::Uring;

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

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// From the storage into memory.
    Read,
    /// From memory to the storage.
    Write,
    /// What was written is on stable storage when this ends. No memory.
    Flush,
    /// So many bytes are of no more use. No memory.
    Discard(u64),
}

/// The end of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As given to [`Engine::start`].
    pub token: u16,
    /// Bytes done, which may be fewer than asked for, or the errno.
    pub result: Result<usize, i32>,
}

impl Completion {
    fn new(token: u16, result: i32) -> Self {
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

/// Runs operations on one storage.
pub trait Engine {
    /// Starts an operation at byte `offset` of the storage. It may wait inside the engine until
    /// [`Engine::wait`]. At most one operation of a token is under way.
    ///
    /// # Safety
    /// The array `buffers` and the memory it names stay valid until the completion has been returned, or for
    /// ever if it never is.
    unsafe fn start(&mut self, token: u16, op: Op, offset: u64, buffers: &[IoVec]);

    /// Sends off what was started. Then it sleeps until there is something to do, as long as `sleep` says; it
    /// may return early. An error means that the engine is of no further use.
    fn wait(&mut self, sleep: Sleep) -> io::Result<()>;

    /// Adds the completions so far to `done`.
    fn completions(&mut self, done: &mut Vec<Completion>);

    /// Writes the eventfd `fd` at the start of the next [`Engine::wait`], before what is started from now on. False: the
    /// caller has to do it. The descriptor stays open until then.
    fn notify(&mut self, _fd: RawFd) -> bool {
        false
    }

    /// System calls of the queue's thread since this was asked last.
    fn system_calls(&mut self) -> u64 {
        0
    }
}

impl<E: Engine + ?Sized> Engine for Box<E> {
    unsafe fn start(&mut self, token: u16, op: Op, offset: u64, buffers: &[IoVec]) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).start(token, op, offset, buffers) }
    }
    fn wait(&mut self, sleep: Sleep) -> io::Result<()> {
        (**self).wait(sleep)
    }
    fn completions(&mut self, done: &mut Vec<Completion>) {
        (**self).completions(done);
    }
    fn notify(&mut self, fd: RawFd) -> bool {
        (**self).notify(fd)
    }
    fn system_calls(&mut self) -> u64 {
        (**self).system_calls()
    }
}
