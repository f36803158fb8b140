//! Threads for what would block the queue: fdatasync, and transfers that the kernel cannot start at once.
//!
//! io_uring would do these in threads of its own too, but those stay for ever and wake up every five seconds,
//! which a guest that sleeps should not cost the host. Ours sleep until there is work.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Completion, IoVec, Op};

/// Threads of one queue at most.
const MAX_THREADS: usize = 4;
const STACK_SIZE: usize = 128 * 1024;

/// One operation, as [`super::Engine::start`] takes it.
#[derive(Clone, Copy)]
pub(super) struct Job {
    pub(super) token: u16,
    pub(super) op: Op,
    pub(super) offset: u64,
    pub(super) buffers: *const IoVec,
    pub(super) count: usize,
}

// SAFETY: the array and the memory stay valid until the completion was returned, on whatever thread: that is
// the promise of Engine::start's caller.
unsafe impl Send for Job {}

impl Job {
    /// Does it on `image`, blocking: bytes done or errno.
    pub(super) fn run(&self, image: RawFd) -> Result<usize, i32> {
        let count = libc::c_int::try_from(self.count).map_err(|_| libc::EINVAL)?;
        let offset = libc::off_t::try_from(self.offset).map_err(|_| libc::EINVAL)?;
        // SAFETY: the caller of Engine::start promises that array and memory are valid.
        let done = unsafe {
            match self.op {
                Op::Read => libc::preadv(image, self.buffers.cast(), count, offset),
                Op::Write => libc::pwritev(image, self.buffers.cast(), count, offset),
                Op::Flush => libc::fdatasync(image) as isize,
            }
        };
        usize::try_from(done).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    done: Vec<Completion>,
    idle: usize,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    event: EventFd,
    image: RawFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                let result = job.run(self.image);
                state = self.lock();
                state.done.push(Completion { token: job.token, result });
                // Fails only when the counter is full, and then the queue is awake already.
                let _ = self.event.write(1);
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

/// The threads of one queue; none before there is work.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool for operations on `image`, a descriptor that stays open as long as the pool.
    pub(super) fn new(image: RawFd) -> io::Result<Self> {
        let shared = Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
            image,
        };
        Ok(Self { shared: Arc::new(shared), threads: Vec::new() })
    }

    /// Written when an operation has ended.
    pub(super) fn event(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    /// Has a thread do the operation.
    ///
    /// # Safety
    /// As [`super::Engine::start`].
    pub(super) unsafe fn start(&mut self, job: Job) {
        let mut state = self.shared.lock();
        state.jobs.push_back(job);
        let enough = state.idle >= state.jobs.len() || self.threads.len() >= MAX_THREADS;
        drop(state);
        self.shared.work.notify_one();
        if enough {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let name = std::thread::current().name().map_or_else(|| "vbd-io".into(), |name| format!("{name}-io"));
        let thread =
            std::thread::Builder::new().name(name).stack_size(STACK_SIZE).spawn(move || shared.serve());
        match thread {
            Ok(thread) => self.threads.push(thread),
            // Then it is done here, late but done.
            Err(_) if self.threads.is_empty() => {
                let mut state = self.shared.lock();
                while let Some(job) = state.jobs.pop_front() {
                    let result = job.run(self.shared.image);
                    state.done.push(Completion { token: job.token, result });
                }
                let _ = self.shared.event.write(1);
            }
            Err(_) => {}
        }
    }

    /// Adds what has ended to `done`; how many.
    pub(super) fn completions(&mut self, done: &mut Vec<Completion>) -> usize {
        let mut state = self.shared.lock();
        let count = state.done.len();
        done.append(&mut state.done);
        count
    }
}

impl Drop for Pool {
    /// Ends the threads; what they do is finished first.
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
