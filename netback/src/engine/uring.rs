//! The engine on io_uring: one system call for a batch of frames, in which the thread also sleeps.

use std::io;
use std::os::fd::RawFd;

use devices::io::entered;
use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::{Completion, Engine, Files, Heard, IoVec, Op, Sleep};

/// Tokens of operations are below.
const EVENTS: u64 = 1 << 32;
const TAP: u64 = u64::MAX;
const NOTIFY: u64 = u64::MAX - 1;
const CANCEL: u64 = u64::MAX - 2;
/// What an eventfd is written.
static ONE: u64 = 1;
const ONE_SIZE: u32 = 8;
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
    ring: IoUring,
    files: Files,
    enabled: bool,
    /// Of the eventfds: a poll is to be started.
    unarmed: Vec<bool>,
    wants: bool,
    /// A poll of the tap is under way.
    listens: bool,
    heard: Heard,
    in_flight: usize,
    calls: u64,
    /// What the kernel refused to take.
    refused: Vec<Completion>,
    /// What the guest is notified by, when the kernel refused to write it.
    notifier: RawFd,
    /// A poll that the kernel refused.
    failed: Option<i32>,
}

impl Uring {
    /// A ring on `files` for so many operations at a time. It may be made on another thread than the one that then
    /// uses it.
    pub(crate) fn new(files: Files, slots: u32) -> io::Result<Self> {
        let polls = u32::try_from(files.events.len()).unwrap_or(0) + 1;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_r_disabled()
            .setup_cqsize((2 * (slots + polls)).next_power_of_two())
            .build((slots + polls + 2).min(MAX_BATCH).next_power_of_two())?;
        Ok(Self {
            ring,
            unarmed: vec![true; files.events.len()],
            files,
            enabled: false,
            wants: false,
            listens: false,
            heard: Heard::default(),
            in_flight: 0,
            calls: 0,
            refused: Vec::new(),
            notifier: -1,
            failed: None,
        })
    }

    /// The thread that enables the ring is the one that may use it.
    fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// # Safety
    /// As [`Engine::start`].
    unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(entry) }.is_ok() {
            return true;
        }
        // A full batch goes to the kernel before the next one is gathered.
        self.calls += 1;
        if self.enable().is_err() || self.ring.submit().is_err() {
            return false;
        }
        // SAFETY: the caller's promise.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    fn poll(&mut self, fd: RawFd, token: u64, multi: bool) -> bool {
        let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(multi);
        // SAFETY: a poll uses no memory of ours.
        unsafe { self.push(&poll.build().user_data(token)) }
    }

    fn arm(&mut self) {
        for index in 0..self.unarmed.len() {
            let Some(fd) = self.files.events.get(index).copied() else { continue };
            if self.unarmed.get(index) == Some(&true) && self.poll(fd, EVENTS + index as u64, true) {
                self.unarmed.get_mut(index).into_iter().for_each(|unarmed| *unarmed = false);
            }
        }
        if self.wants && !self.listens {
            self.listens = self.poll(self.files.tap, TAP, false);
        }
    }

    fn enter(&mut self, sleep: Sleep) -> io::Result<()> {
        let armed = self.unarmed.iter().all(|unarmed| !unarmed) && self.wants <= self.listens;
        let sleep = if armed && self.refused.is_empty() { sleep } else { Sleep::Never };
        let submitter = self.ring.submitter();
        self.calls += 1;
        entered(match sleep {
            Sleep::Never => submitter.submit(),
            Sleep::For(time) => {
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&time.into()))
            }
            Sleep::Forever => submitter.submit_and_wait(1),
        })
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
        if unsafe { self.push(&entry.user_data(token.into())) } {
            self.in_flight += 1;
        } else {
            self.refused.push(Completion { token, result: Err(libc::ENOMEM) });
        }
    }

    fn wait(&mut self, sleep: Sleep) -> io::Result<()> {
        self.enable()?;
        if let Some(errno) = self.failed {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if sleep == Sleep::Never && self.ring.submission().is_empty() {
            return Ok(());
        }
        if sleep != Sleep::Never {
            self.arm();
        }
        self.enter(sleep)
    }

    fn completions(&mut self, done: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            match entry.user_data() {
                TAP => {
                    self.listens = false;
                    match u32::try_from(entry.result()) {
                        Ok(events) => self.heard.add(events),
                        Err(_) if !self.wants => {}
                        Err(_) => self.failed = Some(-entry.result()),
                    }
                }
                NOTIFY => {
                    // Only a failure is told.
                    // SAFETY: writes eight bytes of a static, to a descriptor that the queue keeps open.
                    unsafe { libc::write(self.notifier, (&raw const ONE).cast(), ONE_SIZE as usize) };
                }
                CANCEL => {}
                token if token >= EVENTS => {
                    if !cqueue::more(entry.flags()) {
                        // The poll ended: it was refused, or completions overflowed the ring.
                        if entry.result() < 0 {
                            self.failed = Some(-entry.result());
                        }
                        let index = usize::try_from(token - EVENTS).unwrap_or(usize::MAX);
                        self.unarmed.get_mut(index).into_iter().for_each(|unarmed| *unarmed = true);
                    }
                }
                token => {
                    self.in_flight -= 1;
                    done.push(Completion::new((token & 0xffff) as u16, entry.result()));
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
        self.notifier = fd;
        let write = opcode::Write::new(types::Fd(fd), (&raw const ONE).cast(), ONE_SIZE);
        let entry = write.build().flags(squeue::Flags::SKIP_SUCCESS).user_data(NOTIFY);
        // SAFETY: the eight bytes are a static's.
        unsafe { self.push(&entry) }
    }

    fn system_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }
}

impl Uring {
    /// Ends the poll of the tap: a ring is taken down some time after it was closed, and would keep the interface.
    fn let_go_of_tap(&mut self) {
        self.wants = false;
        let cancel = opcode::AsyncCancel::new(TAP).build().user_data(CANCEL);
        // SAFETY: it uses no memory of ours.
        if !self.listens || !unsafe { self.push(&cancel) } {
            return;
        }
        let mut done = Vec::new();
        // The poll and the order each have an end; others may come between.
        while self.listens && entered(self.ring.submit_and_wait(1)).is_ok() {
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
            if self.in_flight > 0 && (self.enable().is_err() || self.enter(Sleep::Forever).is_err()) {
                return;
            }
        }
        self.let_go_of_tap();
    }
}
