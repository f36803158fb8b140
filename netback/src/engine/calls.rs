//! The engine of a system call per frame: for hosts that do not permit io_uring.

use std::io;
use std::os::fd::RawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Completion, Engine, Files, Heard, IoVec, Op, Sleep};

const TOKEN_EVENT: u64 = 0;
const TOKEN_TAP: u64 = 1;

/// readv(2), writev(2) and epoll. All events are edge-triggered: an event costs the one system call that reports it.
#[derive(Debug)]
pub(crate) struct Calls {
    epoll: Epoll,
    tap: RawFd,
    listens: bool,
    wants: bool,
    heard: Heard,
    /// The tap had no frame since the last completions were taken: the next one need not be tried for.
    empty: bool,
    done: Vec<Completion>,
    calls: u64,
}

impl Calls {
    /// An engine on `files`.
    pub(crate) fn new(files: &Files) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for event in &files.events {
            let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, TOKEN_EVENT);
            epoll.ctl(ControlOperation::Add, *event, interest)?;
        }
        epoll.ctl(ControlOperation::Add, files.tap, interest_in_tap(false))?;
        Ok(Self {
            epoll,
            tap: files.tap,
            listens: false,
            wants: false,
            heard: Heard::default(),
            empty: false,
            done: Vec::new(),
            calls: 0,
        })
    }
}

/// Errors are always reported; edge-triggered, once.
fn interest_in_tap(on: bool) -> EpollEvent {
    let interest = if on { EventSet::IN | EventSet::EDGE_TRIGGERED } else { EventSet::EDGE_TRIGGERED };
    EpollEvent::new(interest, TOKEN_TAP)
}

impl Engine for Calls {
    unsafe fn start(&mut self, token: u16, op: Op, buffers: &[IoVec]) {
        let result = match op {
            Op::Read if self.empty => Err(libc::EAGAIN),
            _ => {
                self.calls += 1;
                let count = libc::c_int::try_from(buffers.len()).unwrap_or(0);
                let vectors = buffers.as_ptr().cast();
                let result = match op {
                    // SAFETY: the caller vouches for the array and the memory.
                    Op::Read => unsafe { libc::readv(self.tap, vectors, count) },
                    // SAFETY: as above.
                    Op::Write => unsafe { libc::writev(self.tap, vectors, count) },
                };
                usize::try_from(result)
                    .map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
            }
        };
        self.empty |= op == Op::Read && result == Err(libc::EAGAIN);
        self.done.push(Completion { token, result });
    }

    fn wait(&mut self, sleep: Sleep) -> io::Result<()> {
        let timeout = match sleep {
            // There is something to do: the completions.
            _ if !self.done.is_empty() => return Ok(()),
            Sleep::Never => return Ok(()),
            Sleep::Forever => -1,
            // Not shorter than asked for: who wakes up too early has to sleep again.
            Sleep::For(time) => i32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX),
        };
        if self.listens != self.wants {
            self.listens = self.wants;
            self.calls += 1;
            // Listening again reports a tap that is readable already.
            self.epoll.ctl(ControlOperation::Modify, self.tap, interest_in_tap(self.listens))?;
        }
        let mut events = [EpollEvent::default(); 4];
        self.calls += 1;
        let count = match self.epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        for event in events.iter().take(count).filter(|event| event.data() == TOKEN_TAP) {
            self.heard.add(event.events());
        }
        Ok(())
    }

    fn completions(&mut self, done: &mut Vec<Completion>) {
        self.empty = false;
        done.append(&mut self.done);
    }

    fn listen(&mut self, on: bool) {
        self.wants = on;
    }

    fn heard(&mut self) -> Heard {
        std::mem::take(&mut self.heard)
    }

    fn system_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }
}
