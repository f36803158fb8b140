//! The console ring under a guest that writes any index at any time.
//!
//! Input: operations of a tag byte and their arguments, see the match below.

#![no_main]

use std::sync::{Arc, LazyLock};

use devices::memory::{PAGE_SIZE, SharedPages};
use devices::xen::console::{ConsoleRing, IN_SIZE, OUT_SIZE};
use libfuzzer_sys::fuzz_target;
use xvmm_fuzz::Input;

/// The ring is the middle page: its neighbours must stay as they are.
static PAGES: LazyLock<Arc<SharedPages>> =
    LazyLock::new(|| Arc::new(SharedPages::new("console", 3).expect("a memfd")));

/// First of the four indexes.
const INDEXES: usize = PAGE_SIZE + 3072;

fuzz_target!(|data: &[u8]| {
    let pages = &*PAGES;
    pages.write(0, &[0x5a; 3 * PAGE_SIZE]).expect("three pages");
    pages.write(PAGE_SIZE, &[0; PAGE_SIZE]).expect("three pages");
    let mut ring = ConsoleRing::new(Arc::clone(pages), 1).expect("three pages");
    let mut input = Input::new(data);
    let mut mark = 0;
    while !input.is_empty() {
        let tag = input.u8();
        let index = INDEXES + usize::from(tag >> 4) % 4 * 4;
        let word = pages.u32_at(index).expect("an index");
        match tag % 8 {
            // The guest sets an index, or moves one on.
            0 => word.store(input.u32(), std::sync::atomic::Ordering::SeqCst),
            1 => drop(word.fetch_add(input.number() as u32, std::sync::atomic::Ordering::SeqCst)),
            // The guest writes anywhere into its page.
            2 => {
                let at = usize::from(input.u16()) % PAGE_SIZE;
                let len = usize::from(input.u8()).min(PAGE_SIZE - at);
                let bytes = input.bytes(len);
                pages.write(PAGE_SIZE + at, bytes).expect("inside the page");
            }
            3 | 4 => {
                let mut drained = 0;
                let sink = |piece: &[u8]| drained += piece.len();
                if tag % 8 == 3 {
                    ring.drain_output(sink)
                } else {
                    ring.drain_output_until(mark, sink)
                };
                assert!(drained <= OUT_SIZE, "one call took {drained} bytes");
            }
            5 => mark = ring.output_mark(),
            6 => mark = input.u32(),
            _ => {
                let bytes = vec![0x33; usize::from(input.u16() % 4096)];
                let pushed = ring.push_input(&bytes);
                assert!(pushed <= bytes.len().min(IN_SIZE), "{pushed} of {} bytes", bytes.len());
            }
        }
    }
    for page in [0, 2] {
        let mut bytes = [0; PAGE_SIZE];
        pages.read(page * PAGE_SIZE, &mut bytes).expect("three pages");
        assert!(bytes == [0x5a; PAGE_SIZE], "page {page} was written to");
    }
});
