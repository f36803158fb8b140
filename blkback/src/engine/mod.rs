//! What moves the bytes between guest pages and a disk image.
//!
//! Two engines: [`Uring`], and [`Blocking`] for hosts where io_uring is not permitted. A queue's thread
//! sleeps inside its engine and nowhere else: for completions, for events of the frontend, and for the order
//! to stop.

mod blocking;
mod pool;
mod uring;

use std::io;

pub use blocking::Blocking;
pub use uring::Uring;

/// A piece of memory of an operation, as readv and writev take it.
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
    /// From the image into memory.
    Read,
    /// From memory to the image.
    Write,
    /// What was written is on stable storage when this ends (fdatasync). No memory.
    Flush,
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

/// Runs operations on one image.
pub trait Engine {
    /// Starts an operation at byte `offset` of the image. It may wait inside the engine until
    /// [`Engine::wait`]. At most one operation of a token is under way.
    ///
    /// # Safety
    /// The array `buffers` and the memory it names stay valid until the completion has been returned, or for
    /// ever if it never is.
    unsafe fn start(&mut self, token: u16, op: Op, offset: u64, buffers: &[IoVec]);

    /// Sends off what was started. With `block` it then sleeps until there is something to do; it may return
    /// early. An error means that the engine is of no further use.
    fn wait(&mut self, block: bool) -> io::Result<()>;

    /// Adds the completions so far to `done`.
    fn completions(&mut self, done: &mut Vec<Completion>);
}

impl<E: Engine + ?Sized> Engine for Box<E> {
    unsafe fn start(&mut self, token: u16, op: Op, offset: u64, buffers: &[IoVec]) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).start(token, op, offset, buffers) }
    }
    fn wait(&mut self, block: bool) -> io::Result<()> {
        (**self).wait(block)
    }
    fn completions(&mut self, done: &mut Vec<Completion>) {
        (**self).completions(done);
    }
}
