//! The back half of the Xen console ring (xen/include/public/io/console.h): hvc0 of the guest.
//!
//! One page, two byte rings with free-running 32-bit indexes:
//! in\[1024\] @0, out\[2048\] @1024, in_cons @3072, in_prod @3076, out_cons @3080, out_prod @3084,
//! connection u8 @3088 (0 = connected, which is how a zeroed page starts).
//!
//! Nothing is remembered here: all four indexes live in the page, so a guest that starts the ring anew (a boot
//! loader, then a kernel; kexec) is followed without a handshake. That is safe because each index is copied out
//! once per call and the distance of the copies is checked before it is used: a guest that writes nonsense
//! there loses its own output or input, nothing else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::{PAGE_SIZE, SharedPages};

/// Bytes of the ring from the host to the guest.
pub const IN_SIZE: usize = 1024;
/// Bytes of the ring from the guest to the host.
pub const OUT_SIZE: usize = 2048;

const IN: usize = 0;
const OUT: usize = 1024;
const IN_CONS: usize = 3072;
const IN_PROD: usize = 3076;
const OUT_CONS: usize = 3080;
const OUT_PROD: usize = 3084;

/// The back half of a console ring.
///
/// Events are the caller's: it drains when the guest sends one, and sends one when a method here says that the
/// guest has something to look at.
#[derive(Debug, Clone)]
pub struct ConsoleRing {
    pages: Arc<SharedPages>,
    base: usize,
}

impl ConsoleRing {
    /// The ring on page `page_index` of `pages`; `None` if there is no such page.
    pub fn new(pages: Arc<SharedPages>, page_index: usize) -> Option<Self> {
        (page_index < pages.pages()).then(|| Self { base: page_index * PAGE_SIZE, pages })
    }

    /// How far the guest has written, as a mark for [`ConsoleRing::drain_output_until`]. A guess of a hostile
    /// guest: only good for that. Callable from any thread.
    pub fn output_mark(&self) -> u32 {
        self.load(OUT_PROD)
    }

    /// Takes all output that the guest has written, at most [`OUT_SIZE`] bytes in at most two pieces, so that a
    /// guest that writes without end cannot keep the caller here. True: notify the guest, it may wait for
    /// space.
    pub fn drain_output(&mut self, sink: impl FnMut(&[u8])) -> bool {
        self.drain(None, sink)
    }

    /// Takes the output up to `mark`, as [`ConsoleRing::drain_output`] does; nothing if the mark is behind us.
    pub fn drain_output_until(&mut self, mark: u32, sink: impl FnMut(&[u8])) -> bool {
        self.drain(Some(mark), sink)
    }

    fn drain(&mut self, mark: Option<u32>, mut sink: impl FnMut(&[u8])) -> bool {
        let cons = self.load(OUT_CONS);
        let prod = self.load(OUT_PROD);
        let waiting = prod.wrapping_sub(cons);
        if waiting as usize > OUT_SIZE {
            // Indexes that no working frontend can reach. Calling the ring empty makes it work again, should
            // the guest mend its ways.
            self.store(OUT_CONS, prod);
            return true;
        }
        let len = match mark.map(|mark| mark.wrapping_sub(cons)) {
            Some(upto) if upto > waiting => 0,
            Some(upto) => upto,
            None => waiting,
        };
        if len == 0 {
            return false;
        }
        let mut copy = [0; OUT_SIZE];
        let start = cons as usize % OUT_SIZE;
        let first = (len as usize).min(OUT_SIZE - start);
        for (from, len) in [(start, first), (0, len as usize - first)] {
            let Some(piece) = copy.get_mut(..len) else { continue };
            if !piece.is_empty() && self.pages.read(self.base + OUT + from, piece).is_some() {
                sink(piece);
            }
        }
        self.store(OUT_CONS, cons.wrapping_add(len));
        true
    }

    /// Puts input into the ring; returns how much of it there was room for. More than 0: notify the guest. It
    /// sends an event when it has read some, and then the caller offers the rest.
    pub fn push_input(&mut self, data: &[u8]) -> usize {
        let cons = self.load(IN_CONS);
        let mut prod = self.load(IN_PROD);
        if prod.wrapping_sub(cons) as usize > IN_SIZE {
            // As in drain(): the ring is empty from here on.
            prod = cons;
        }
        let room = IN_SIZE.saturating_sub(prod.wrapping_sub(cons) as usize);
        let start = prod as usize % IN_SIZE;
        let len = data.len().min(room);
        let (data, _) = data.split_at(len);
        let (first, second) = data.split_at(len.min(IN_SIZE - start));
        for (to, piece) in [(start, first), (0, second)] {
            if self.pages.write(self.base + IN + to, piece).is_none() {
                return 0;
            }
        }
        if len > 0 {
            // Bounded by IN_SIZE above.
            self.store(IN_PROD, prod.wrapping_add(u32::try_from(len).unwrap_or(0)));
        }
        len
    }

    fn load(&self, offset: usize) -> u32 {
        self.pages.u32_at(self.base + offset).map_or(0, |index| index.load(Ordering::Acquire))
    }

    fn store(&self, offset: usize, value: u32) {
        if let Some(index) = self.pages.u32_at(self.base + offset) {
            index.store(value, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

    use super::*;

    fn ring() -> ConsoleRing {
        ConsoleRing::new(Arc::new(SharedPages::new("console", 2).unwrap()), 1).unwrap()
    }

    fn set(ring: &ConsoleRing, offset: usize, value: u32) {
        ring.store(offset, value);
    }

    /// What a frontend does to print.
    fn print(ring: &ConsoleRing, text: &[u8]) {
        let prod = ring.load(OUT_PROD);
        for (i, byte) in text.iter().enumerate() {
            let at = prod.wrapping_add(i as u32) as usize % OUT_SIZE;
            ring.pages.write(ring.base + OUT + at, &[*byte]).unwrap();
        }
        set(ring, OUT_PROD, prod.wrapping_add(text.len() as u32));
    }

    /// What a frontend does to read.
    fn read(ring: &ConsoleRing) -> Vec<u8> {
        let (cons, prod) = (ring.load(IN_CONS), ring.load(IN_PROD));
        let waiting = prod.wrapping_sub(cons);
        assert!(waiting as usize <= IN_SIZE, "the backend overran the input ring");
        let byte = |i: u32| {
            let mut byte = [0];
            let at = cons.wrapping_add(i) as usize % IN_SIZE;
            ring.pages.read(ring.base + IN + at, &mut byte).unwrap();
            byte[0]
        };
        set(ring, IN_CONS, prod);
        (0..waiting).map(byte).collect()
    }

    fn drained(ring: &mut ConsoleRing) -> Vec<u8> {
        let mut out = Vec::new();
        ring.drain_output(|piece| out.extend_from_slice(piece));
        out
    }

    #[test]
    fn a_page_outside_is_refused() {
        assert!(ConsoleRing::new(Arc::new(SharedPages::new("console", 1).unwrap()), 1).is_none());
    }

    #[test]
    fn output_crosses_the_ring_end_and_the_index_wrap() {
        let mut ring = ring();
        set(&ring, OUT_CONS, u32::MAX - 2);
        set(&ring, OUT_PROD, u32::MAX - 2);
        print(&ring, b"hello, dom0");
        assert_eq!(drained(&mut ring), b"hello, dom0");
        assert_eq!(ring.load(OUT_CONS), ring.load(OUT_PROD));
        assert!(!ring.drain_output(|_| panic!("nothing is left")), "an empty ring asks for no event");
    }

    #[test]
    fn a_full_ring_is_drained_whole_and_asks_for_an_event() {
        let mut ring = ring();
        let text: Vec<u8> = (0..OUT_SIZE).map(|i| i as u8).collect();
        set(&ring, OUT_CONS, 100);
        set(&ring, OUT_PROD, 100);
        print(&ring, &text);
        let mut out = Vec::new();
        assert!(ring.drain_output(|piece| out.extend_from_slice(piece)));
        assert_eq!(out, text);
    }

    #[test]
    fn an_impossible_output_index_empties_the_ring_and_it_works_again() {
        let mut ring = ring();
        for (cons, prod) in [(0, 2049), (0, u32::MAX), (5, 4), (u32::MAX, 2048), (0x8000_0000, 0)] {
            set(&ring, OUT_CONS, cons);
            set(&ring, OUT_PROD, prod);
            assert!(ring.drain_output(|_| panic!("nothing there is output")));
            print(&ring, b"again");
            assert_eq!(drained(&mut ring), b"again", "after {cons} {prod}");
        }
    }

    #[test]
    fn output_is_taken_up_to_a_mark() {
        let mut ring = ring();
        print(&ring, b"before");
        let mark = ring.output_mark();
        print(&ring, b"after");
        let mut out = Vec::new();
        assert!(ring.drain_output_until(mark, |piece| out.extend_from_slice(piece)));
        assert_eq!(out, b"before");
        assert!(!ring.drain_output_until(mark, |_| panic!("taken already")));
        assert!(!ring.drain_output_until(mark.wrapping_sub(3), |_| panic!("behind us")));
        assert!(!ring.drain_output_until(mark.wrapping_add(6), |_| panic!("not written yet")));
        assert_eq!(drained(&mut ring), b"after");
    }

    #[test]
    fn input_that_does_not_fit_stays_with_the_caller() {
        let mut ring = ring();
        set(&ring, IN_CONS, u32::MAX - 10);
        set(&ring, IN_PROD, u32::MAX - 10);
        let typed: Vec<u8> = (0..1500).map(|i| i as u8).collect();
        assert_eq!(ring.push_input(&typed), IN_SIZE);
        assert_eq!(ring.push_input(&typed[IN_SIZE..]), 0);
        assert_eq!(read(&ring), typed[..IN_SIZE]);
        assert_eq!(ring.push_input(&typed[IN_SIZE..]), 1500 - IN_SIZE);
        assert_eq!(read(&ring), typed[IN_SIZE..]);
    }

    #[test]
    fn an_impossible_input_index_restarts_the_ring() {
        let mut ring = ring();
        for (cons, prod) in [(0, 1025), (1, 0), (u32::MAX, 1 << 31), (7, u32::MAX)] {
            set(&ring, IN_CONS, cons);
            set(&ring, IN_PROD, prod);
            assert_eq!(ring.push_input(b"ls\n"), 3);
            assert_eq!(read(&ring), b"ls\n", "after {cons} {prod}");
        }
    }

    #[test]
    fn no_index_reaches_outside_the_page() {
        let mut ring = ring();
        // A pattern on the page before and on the indexes must stay what it is.
        ring.pages.write(0, &[0xa5; PAGE_SIZE]).unwrap();
        for step in 0..5000u32 {
            let value = step.wrapping_mul(0x9e37_79b9);
            set(&ring, OUT_PROD, value);
            set(&ring, OUT_CONS, value.wrapping_sub(step % 2100));
            set(&ring, IN_CONS, value);
            set(&ring, IN_PROD, value.wrapping_add(step % 1100));
            let mut taken = 0;
            ring.drain_output(|piece| taken += piece.len());
            assert!(taken <= OUT_SIZE);
            assert!(ring.push_input(&[0; 3000]) <= IN_SIZE);
        }
        let mut before = vec![0; PAGE_SIZE];
        ring.pages.read(0, &mut before).unwrap();
        assert!(before.iter().all(|b| *b == 0xa5));
    }
}
