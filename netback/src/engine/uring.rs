//! The engine on io_uring: one system call for a batch of frames, in which the thread also sleeps.

use std::io;
use std::os::fd::RawFd;

use devices::ring::{End, Ring};
use io_uring::{opcode, types};

use super::{Completion, Engine, Files, Heard, IoVec, Op, Sleep};

/// Tokens of operations are below.
const EVENTS: u64 = 1 << 32;
const TAP: u64 = 1 << 48;
const CANCEL: u64 = TAP + 1;
/// Operations handed to the kernel in one go; more take several system calls.
const MAX_BATCH: u32 = 128;

/// io_uring on a queue of a tap. Needs a tap that knows RWF_NOWAIT, which Linux has had since 6.4.
///
/// Each operation is done, or refused, while it is submitted: with RWF_NOWAIT neither is left waiting in the kernel, and
/// none goes to a thread of the kernel's. So a batch keeps its order, and no memory is in use between two batches.
///
/// The eventfds are polled by the same ring (multi-shot) and never read: a poll reports each write by itself. The tap is
/// polled once at a time, before a sleep: whoever sends frames has nobody to wake meanwhile.
pub(crate) struct Uring {
    ring: Ring,
    files: Files,
    /// Of the eventfds: a poll is to be started.
    unarmed: Vec<bool>,
    wants: bool,
    /// A poll of the tap is under way.
    listens: bool,
    heard: Heard,
    in_flight: usize,
    /// What the kernel refused to take.
    refused: Vec<Completion>,
    /// A poll that the kernel refused.
    failed: Option<i32>,
}

impl Uring {
    /// A ring on `files` for so many operations at a time. It may be made on another thread than the one that then
    /// uses it.
    pub(crate) fn new(files: Files, slots: u32) -> io::Result<Self> {
        let polls = u32::try_from(files.events.len()).unwrap_or(0) + 1;
        let ring = Ring::new((slots + polls + 2).min(MAX_BATCH), 2 * (slots + polls))?;
        Ok(Self {
            ring,
            unarmed: vec![true; files.events.len()],
            files,
            wants: false,
            listens: false,
            heard: Heard::default(),
            in_flight: 0,
            refused: Vec::new(),
            failed: None,
        })
    }

    fn arm(&mut self) {
        for index in 0..self.unarmed.len() {
            let Some(fd) = self.files.events.get(index).copied() else { continue };
            if self.unarmed.get(index) == Some(&true) && self.ring.poll(fd, EVENTS + index as u64, true) {
                self.unarmed.get_mut(index).into_iter().for_each(|unarmed| *unarmed = false);
            }
        }
        if self.wants && !self.listens {
            self.listens = self.ring.poll(self.files.tap, TAP, false);
        }
    }

    fn enter(&mut self, sleep: Sleep) -> io::Result<()> {
        let armed = self.unarmed.iter().all(|unarmed| !unarmed) && self.wants <= self.listens;
        let sleep = if armed && self.refused.is_empty() { sleep } else { Sleep::Never };
        match sleep {
            Sleep::Never => self.ring.submit(),
            Sleep::For(time) => self.ring.wait(1, Some(time)),
            Sleep::Forever => self.ring.wait(1, None),
        }
    }
}

impl Engine for Uring {
    unsafe fn start(&mut self, token: u16, op: Op, buffers: &[IoVec]) {
        let tap = types::Fd(self.files.tap);
        let (vectors, flags) = (buffers.as_ptr().cast(), libc::RWF_NOWAIT);
        let count = u32::try_from(buffers.len()).unwrap_or(0);
        let entry = match op {
            Op::Read => opcode::Readv::new(tap, vectors, count).rw_flags(flags).build(),
            Op::Write => opcode::Writev::new(tap, vectors, count).rw_flags(flags).build(),
        };
        // SAFETY: the caller promises that array and memory stay.
        if unsafe { self.ring.push(&entry.user_data(token.into())) } {
            self.in_flight += 1;
        } else {
            self.refused.push(Completion { token, result: Err(libc::ENOMEM) });
        }
    }

    fn wait(&mut self, sleep: Sleep) -> io::Result<()> {
        if let Some(errno) = self.failed {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if sleep == Sleep::Never && self.ring.is_submitted() {
            return Ok(());
        }
        if sleep != Sleep::Never {
            self.arm();
        }
        self.enter(sleep)
    }

    fn completions(&mut self, done: &mut Vec<Completion>) {
        while let Some(End { token, result, more }) = self.ring.next() {
            match token {
                TAP => {
                    self.listens = false;
                    match u32::try_from(result) {
                        Ok(events) => self.heard.add(events),
                        Err(_) if !self.wants => {}
                        Err(_) => self.failed = Some(-result),
                    }
                }
                CANCEL => {}
                token if token >= EVENTS => {
                    if !more {
                        // The poll ended: it was refused, or completions overflowed the ring.
                        if result < 0 {
                            self.failed = Some(-result);
                        }
                        let index = usize::try_from(token - EVENTS).unwrap_or(usize::MAX);
                        self.unarmed.get_mut(index).into_iter().for_each(|unarmed| *unarmed = true);
                    }
                }
                token => {
                    self.in_flight -= 1;
                    done.push(Completion::new((token & 0xffff) as u16, result));
                }
            }
        }
        done.append(&mut self.refused);
    }

    fn listen(&mut self, on: bool) {
        // A poll that is under way may end by itself.
        self.wants = on;
    }

    fn heard(&mut self) -> Heard {
        std::mem::take(&mut self.heard)
    }

    fn notify(&mut self, fd: RawFd) -> bool {
        self.ring.notify(fd)
    }

    fn system_calls(&mut self) -> u64 {
        self.ring.system_calls()
    }
}

impl Uring {
    /// Ends the poll of the tap: a ring is taken down some time after it was closed, and would keep the interface.
    fn let_go_of_tap(&mut self) {
        self.wants = false;
        let cancel = opcode::AsyncCancel::new(TAP).build().user_data(CANCEL);
        // SAFETY: it uses no memory of ours.
        if !self.listens || !unsafe { self.ring.push(&cancel) } {
            return;
        }
        let mut done = Vec::new();
        // The poll and the order each have an end; others may come between.
        while self.listens && self.ring.wait(1, None).is_ok() {
            self.completions(&mut done);
        }
    }
}

impl Drop for Uring {
    /// Waits for what is under way: the kernel still reads and writes the memory.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight > 0 {
            self.completions(&mut done);
            if self.in_flight > 0 && self.enter(Sleep::Forever).is_err() {
                return;
            }
        }
        self.let_go_of_tap();
    }
}
