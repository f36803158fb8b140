//! What moves frames between a queue of a tap and memory.
//!
//! Two engines: [`Uring`], with one system call for a batch of frames, and [`Calls`], with one for each frame, for
//! hosts where io_uring is not permitted. A queue's thread sleeps inside its engine and nowhere else: for completions,
//! for events of the frontend, for frames, for the order to stop, and until a time.

mod calls;
mod uring;

use std::io;
use std::os::fd::RawFd;

pub(crate) use calls::Calls;
pub(crate) use devices::io::{Completion, IoVec, Sleep};
pub(crate) use uring::Uring;

/// What an operation does with a queue of the tap. Neither waits: without a frame, or room for one, it fails with
/// EAGAIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Takes a frame, with its header, into memory; what does not fit is lost.
    Read,
    /// Sends a frame, behind its header.
    Write,
}

/// The descriptors that an engine works with. They stay open as long as it.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// A queue of the tap, which does not block.
    pub(crate) tap: RawFd,
    /// Eventfds that wake it up: event channels, and the order to stop.
    pub(crate) events: Vec<RawFd>,
}

/// Runs operations on one queue of a tap.
pub(crate) trait Engine {
    /// Starts an operation. It may wait inside the engine until [`Engine::wait`]. Operations of one kind are done in the
    /// order in which they were started; at most one of a token is under way.
    ///
    /// # Safety
    /// The array `buffers` and the memory that it names stay valid until the completion has been returned, or for ever
    /// if it never is.
    unsafe fn start(&mut self, token: u16, op: Op, buffers: &[IoVec]);

    /// Sends off what was started. Then it sleeps until there is something to do, as long as `sleep` says; it may
    /// return early. An error means that the engine is of no further use.
    fn wait(&mut self, sleep: Sleep) -> io::Result<()>;

    /// Adds the completions so far to `done`.
    fn completions(&mut self, done: &mut Vec<Completion>);

    /// Whether sleeps end when the tap has a frame. Switched on, they do if it has one already.
    fn listen(&mut self, on: bool);

    /// What was heard of the tap since this was asked last.
    fn heard(&mut self) -> Heard;

    /// Writes the eventfd `fd` at the start of the next [`Engine::wait`], before what is started from now on. False:
    /// the caller has to do it. The descriptor stays open until then.
    fn notify(&mut self, _fd: RawFd) -> bool {
        false
    }

    /// System calls since this was asked last.
    fn system_calls(&mut self) -> u64;
}

/// What an engine heard of its tap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// There may be frames.
    pub(crate) readable: bool,
    /// The interface is gone: nothing will ever be heard again.
    pub(crate) gone: bool,
}

impl Heard {
    /// From poll(2)'s bits.
    fn add(&mut self, events: u32) {
        self.readable = true;
        self.gone |= events & u32::from(libc::POLLERR.unsigned_abs()) != 0;
    }
}

impl<E: Engine + ?Sized> Engine for Box<E> {
    unsafe fn start(&mut self, token: u16, op: Op, buffers: &[IoVec]) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).start(token, op, buffers) }
    }
    fn wait(&mut self, sleep: Sleep) -> io::Result<()> {
        (**self).wait(sleep)
    }
    fn completions(&mut self, done: &mut Vec<Completion>) {
        (**self).completions(done);
    }
    fn listen(&mut self, on: bool) {
        (**self).listen(on);
    }
    fn heard(&mut self) -> Heard {
        (**self).heard()
    }
    fn notify(&mut self, fd: RawFd) -> bool {
        (**self).notify(fd)
    }
    fn system_calls(&mut self) -> u64 {
        (**self).system_calls()
    }
}
