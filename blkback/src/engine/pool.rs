//! Threads for what would block the queue: flushes, discards, transfers that the kernel cannot start at once,
//! and everything of storages that are no descriptor.
//!
//! io_uring would do some of it in threads of its own too, but those stay for ever and wake up every five
//! seconds, which a guest that sleeps should not cost the host. Ours sleep until there is work.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Completion, IoVec, Op};
use crate::storage::Storage;

/// Image formats decompress and look up tables on these threads.
const STACK_SIZE: usize = 512 * 1024;

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
    pub(super) fn new(token: u16, op: Op, offset: u64, buffers: &[IoVec]) -> Self {
        Self { token, op, offset, buffers: buffers.as_ptr(), count: buffers.len() }
    }

    /// Its memory.
    ///
    /// # Safety
    /// Only until the completion: the caller of [`super::Engine::start`] promises no more.
    pub(super) unsafe fn buffers<'a>(&self) -> &'a [IoVec] {
        if self.count == 0 {
            return &[];
        }
        // SAFETY: the array is valid until then.
        unsafe { std::slice::from_raw_parts(self.buffers, self.count) }
    }

    /// Does it, blocking.
    ///
    /// # Safety
    /// As [`super::Engine::start`].
    pub(super) unsafe fn run(&self, storage: &dyn Storage) -> Completion {
        // SAFETY: the completion is not made yet.
        let buffers = unsafe { self.buffers() };
        let result = match self.op {
            // SAFETY: and so is the memory that it names.
            Op::Read => unsafe { storage.read_at(buffers, self.offset) },
            // SAFETY: as above.
            Op::Write => unsafe { storage.write_at(buffers, self.offset) },
            Op::Flush => storage.flush().map(|()| 0),
            Op::Discard(len) => storage.discard(self.offset, len).map(|()| 0),
        };
        Completion { token: self.token, result: result.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO)) }
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
    storage: Arc<dyn Storage>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self, completion: Completion) {
        let mut state = self.lock();
        // One event is enough for all that is taken at once.
        let first = state.done.is_empty();
        state.done.push(completion);
        drop(state);
        if first {
            // Fails only when the counter is full, and then the queue is awake already.
            let _ = self.event.write(1);
        }
    }

    fn run(&self, job: Job) {
        // SAFETY: the promise of Pool::start's caller holds until the completion has been returned.
        let completion = unsafe { job.run(&*self.storage) };
        self.done(completion);
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                self.run(job);
                state = self.lock();
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
    pub(super) max_threads: usize,
}

impl Pool {
    /// A pool for operations on `storage`, with at most so many threads.
    pub(super) fn new(storage: Arc<dyn Storage>, max_threads: usize) -> io::Result<Self> {
        let shared = Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            storage,
        };
        Ok(Self { shared: Arc::new(shared), threads: Vec::new(), max_threads })
    }

    /// Written when operations have ended, once for all that [`Pool::completions`] then returns.
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
        let sleeper = state.idle > 0;
        let enough = state.idle >= state.jobs.len() || self.threads.len() >= self.max_threads;
        drop(state);
        if sleeper {
            self.shared.work.notify_one();
        }
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
                while let Some(job) = { self.shared.lock().jobs.pop_front() } {
                    self.shared.run(job);
                }
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
