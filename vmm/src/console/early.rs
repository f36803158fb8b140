//! Output that reaches the console from vCPU threads: console_io hypercalls and port 0xE9.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use devices::xen::console::ConsoleRing;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes that wait for the main thread.
pub const EARLY_BYTES: usize = 64 << 10;
/// Places in the ring's output that are remembered. A guest that changes the ring's index with every byte
/// makes a mark per byte: beyond this many, bytes join the mark before them.
const MARKS: usize = 256;

/// Where vCPU threads leave early output. They never wait: what the main thread does not fetch in time is
/// dropped, oldest first.
#[derive(Debug)]
pub struct EarlyOutput {
    ring: ConsoleRing,
    kick: EventFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    /// How many bytes were written while the ring's output stood at which mark.
    runs: VecDeque<Run>,
    lost: usize,
}

#[derive(Debug)]
struct Run {
    len: usize,
    mark: u32,
}

/// A piece of early output, and the ring output that came before it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EarlyPiece {
    /// For [`ConsoleRing::drain_output_until`].
    pub(super) mark: u32,
    /// The guest's bytes.
    pub(super) bytes: Vec<u8>,
}

impl EarlyOutput {
    pub(super) fn new(ring: ConsoleRing) -> io::Result<Self> {
        Ok(Self { ring, kick: EventFd::new(EFD_NONBLOCK)?, state: Mutex::default() })
    }

    /// Adds output of the guest. Never blocks on anything but another vCPU's copy of a few bytes.
    pub fn write(&self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let mark = self.ring.output_mark();
        let mut state = self.lock();
        let was_empty = state.bytes.is_empty() && state.lost == 0;
        state.push(data, mark);
        drop(state);
        if was_empty {
            // Fails only when the counter is full, and then the main thread is woken already.
            let _ = self.kick.write(1);
        }
    }

    /// Wakes the main thread without output: the guest has room for input.
    pub fn wake(&self) {
        let _ = self.kick.write(1);
    }

    /// Becomes readable when there is output to fetch.
    pub(super) fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Fetches all output so far, and how many bytes were dropped before it.
    pub(super) fn take(&self) -> (usize, Vec<EarlyPiece>) {
        let state = std::mem::take(&mut *self.lock());
        let mut bytes = state.bytes.into_iter();
        let piece = |run: Run| EarlyPiece { mark: run.mark, bytes: bytes.by_ref().take(run.len).collect() };
        (state.lost, state.runs.into_iter().map(piece).collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, data: &[u8], mark: u32) {
        let kept = &data[data.len().saturating_sub(EARLY_BYTES)..];
        let excess = (self.bytes.len() + kept.len()).saturating_sub(EARLY_BYTES);
        self.lost += excess + (data.len() - kept.len());
        self.bytes.drain(..excess);
        let mut excess = excess;
        while excess > 0 {
            let Some(run) = self.runs.front_mut() else { break };
            let part = excess.min(run.len);
            (run.len, excess) = (run.len - part, excess - part);
            if run.len == 0 {
                self.runs.pop_front();
            }
        }
        self.bytes.extend(kept);
        let full = self.runs.len() >= MARKS;
        match self.runs.back_mut() {
            Some(run) if run.mark == mark || full => run.len += kept.len(),
            _ => self.runs.push_back(Run { len: kept.len(), mark }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use devices::memory::SharedPages;

    use super::*;

    fn early() -> (Arc<SharedPages>, EarlyOutput) {
        let pages = Arc::new(SharedPages::new("console", 1).unwrap());
        let ring = ConsoleRing::new(Arc::clone(&pages), 0).unwrap();
        (pages, EarlyOutput::new(ring).unwrap())
    }

    #[test]
    fn bytes_carry_the_place_in_the_rings_output() {
        let (pages, early) = early();
        early.write(b"a");
        early.write(b"b");
        pages.u32_at(3084).unwrap().store(7, Ordering::SeqCst);
        early.write(b"c");
        let (lost, pieces) = early.take();
        assert_eq!(lost, 0);
        let piece = |mark, bytes: &[u8]| EarlyPiece { mark, bytes: bytes.to_vec() };
        assert_eq!(pieces, [piece(0, b"ab"), piece(7, b"c")]);
        assert_eq!(early.take(), (0, vec![]));
    }

    #[test]
    fn one_kick_per_batch() {
        let (_pages, early) = early();
        early.write(b"a");
        early.write(b"b");
        assert_eq!(early.kick().read().unwrap(), 1);
        early.take();
        early.write(b"c");
        assert_eq!(early.kick().read().unwrap(), 1);
    }

    #[test]
    fn the_oldest_is_dropped_when_nobody_fetches() {
        let (pages, early) = early();
        for i in 0..EARLY_BYTES + 10 {
            // Every byte with a mark of its own, as a hostile guest would have it.
            pages.u32_at(3084).unwrap().store(i as u32, Ordering::SeqCst);
            early.write(&[i as u8]);
        }
        assert!(early.lock().runs.len() <= MARKS);
        let (lost, pieces) = early.take();
        assert_eq!(lost, 10);
        let bytes: Vec<u8> = pieces.into_iter().flat_map(|p| p.bytes).collect();
        let expected: Vec<u8> = (10..EARLY_BYTES + 10).map(|i| i as u8).collect();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn one_write_larger_than_the_bound_keeps_its_end() {
        let (_pages, early) = early();
        early.write(b"start");
        let mut data = vec![b'.'; EARLY_BYTES + 3];
        data.extend_from_slice(b"end");
        early.write(&data);
        let (lost, pieces) = early.take();
        assert_eq!(lost, 5 + 6);
        let bytes: Vec<u8> = pieces.into_iter().flat_map(|p| p.bytes).collect();
        assert_eq!(bytes.len(), EARLY_BYTES);
        assert!(bytes.ends_with(b"end"));
    }
}
