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

pub use devices::io::{Completion, IoVec, Sleep};
pub use threads::Threads;
pub use uring::Uring;

/// What an operation does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Op {
    /// From the storage into memory.
    #[default]
    Read,
    /// From memory to the storage.
    Write,
    /// What was written is on stable storage when this ends. No memory.
    Flush,
    /// So many bytes are of no more use. No memory.
    Discard(u64),
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
