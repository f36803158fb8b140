//! The VGA under a guest that writes any register and any memory at any time, and who looks.
//!
//! Input: operations of a tag byte and their arguments, see the match below. Two screens look at the same card: one now and
//! then, one at the end for the first time. Both must show the same.

#![no_main]

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use devices::bus::{Registers, Timer};
use devices::display::{Damage, Frame, Screen};
use devices::pci::PciFunction;
use devices::vga::{
    FIXED_MEMORY, FIXED_PORTS, MAX_HEIGHT, MAX_WIDTH, Mapped, Vga, VgaConfig, VgaScreen, Window,
};
use libfuzzer_sys::fuzz_target;
use xvmm_fuzz::Input;

#[derive(Default)]
struct Clock(AtomicU64);

impl Timer for Clock {
    fn now(&self) -> u64 {
        self.0.load(Relaxed)
    }
    fn arm(&self, _: Option<u64>) {}
}

const MEMORY: u64 = 8 << 20;

#[derive(Default)]
struct Board {
    dirty: Mutex<Vec<usize>>,
    window: Mutex<Option<Window>>,
}

impl Mapped for Board {
    fn take_dirty(&self, pages: &mut [u64]) {
        for page in self.dirty.lock().expect("a lock").drain(..) {
            pages[page / 64] |= 1 << (page % 64);
        }
    }
    fn window(&self, window: Option<Window>) {
        if let Some(Window { base, len, offset }) = window {
            assert!(base >= 0xa_0000 && base + len <= 0xc_0000 && offset + len <= MEMORY);
            assert!((base | len | offset) & 0x7fff == 0);
        }
        *self.window.lock().expect("a lock") = window;
    }
}

thread_local! {
    /// Making a card takes longer than most inputs: it is one, reset and cleared where the last input wrote.
    static CARD: RefCell<Option<(Arc<Clock>, Arc<Board>, Arc<Mutex<Vga>>)>> = const { RefCell::new(None) };
}

fn card() -> (Arc<Clock>, Arc<Board>, Arc<Mutex<Vga>>) {
    CARD.with_borrow_mut(|card| {
        let made = card.get_or_insert_with(|| {
            let (clock, board) = (Arc::new(Clock::default()), Arc::new(Board::default()));
            let config = VgaConfig { memory_mib: 8, rom: Some(vec![0x55; 5000]) };
            let mut vga = Vga::new(&config, Arc::clone(&clock) as _).expect("a card");
            vga.set_mapped(Arc::clone(&board) as _);
            (clock, board, Arc::new(Mutex::new(vga)))
        });
        made.clone()
    })
}

/// Rows that were not told must be as before.
fn check(before: &Frame, frame: &Frame, damage: &Damage) {
    assert!(frame.width <= MAX_WIDTH && frame.height <= MAX_HEIGHT);
    assert_eq!(frame.pixels.len(), frame.width * frame.height);
    let Damage::Rows(rows) = damage else { return };
    assert_eq!((before.width, before.height), (frame.width, frame.height));
    let mut expected = before.clone();
    for rows in rows {
        assert!(rows.start < rows.end && rows.end <= frame.height);
        let pixels = rows.start * frame.width..rows.end * frame.width;
        expected.pixels[pixels.clone()].copy_from_slice(&frame.pixels[pixels]);
    }
    assert!(expected == *frame, "a change was not told");
}

fuzz_target!(|data: &[u8]| {
    let (clock, board, vga) = card();
    vga.lock().expect("a lock").reset();
    let memory = vga.lock().expect("a lock").memory(0).expect("video memory");
    memory.write(0, &vec![0; 1 << 20]).expect("video memory");
    board.dirty.lock().expect("a lock").extend(0..256);
    clock.0.store(0, Relaxed);
    let mut screen = VgaScreen::new(Arc::clone(&vga));
    let mut frame = Frame::default();
    let mut input = Input::new(data);
    let mut looks = 0;
    while !input.is_empty() {
        let tag = input.u8();
        let len = [1, 2, 4, 8][usize::from(tag >> 6)];
        let mut card = vga.lock().expect("a lock");
        match tag % 16 {
            // Registers as a mode is set: port and index in one, and a run of values.
            0..=3 => {
                let port = [0x3c4u16, 0x3ce, 0x3d4, 0x3c0][usize::from(tag % 4)];
                let first = input.below(0x40);
                for (index, value) in (first..).zip(input.bytes(usize::from(tag >> 4) + 1)) {
                    card.write(FIXED_PORTS[0].2, u64::from(port) - 0x3b0, &[index & 0x3f]);
                    let data = port + u16::from(port != 0x3c0);
                    card.write(FIXED_PORTS[0].2, u64::from(data) - 0x3b0, &[*value]);
                }
            }
            4 | 5 => {
                let offset = input.below(0x34).into();
                card.write(FIXED_PORTS[0].2, offset, input.bytes(len));
            }
            6 => {
                let mut data = [0xff; 8];
                card.read(FIXED_PORTS[0].2, input.below(0x34).into(), &mut data[..len]);
            }
            7 | 8 => {
                card.write(FIXED_PORTS[1].2, 0, &[tag >> 4, 0]);
                card.write(FIXED_PORTS[1].2, 1, &input.u16().to_le_bytes());
                card.read(FIXED_PORTS[1].2, 1, &mut [0xff; 2]);
            }
            9 | 10 => {
                let at = u64::from(input.u16()) << (tag >> 4 & 1) | u64::from(tag >> 5 & 1);
                card.write(FIXED_MEMORY[0].2, at, input.bytes(len));
            }
            11 => {
                let mut data = [0xff; 8];
                card.read(FIXED_MEMORY[0].2, input.number(), &mut data[..len]);
            }
            // Any region, any place.
            12 => {
                let (region, at) = (input.below(20), input.number());
                card.write(region, at, input.bytes(len));
                card.read(region, at, &mut [0xff; 8][..len]);
            }
            // Memory that is mapped: through base address register 0 or the window.
            13 => {
                let window = *board.window.lock().expect("a lock");
                let at = match window {
                    Some(window) if tag & 16 != 0 => window.offset + u64::from(input.u16()) % window.len,
                    _ => input.number() % (1 << 20),
                };
                let at = at as usize;
                if memory.write(at, input.bytes(len)).is_some() {
                    let mut dirty = board.dirty.lock().expect("a lock");
                    dirty.extend([at / 4096, (at + len - 1) / 4096]);
                }
            }
            14 => drop(clock.0.fetch_add(u64::from(input.u16()) << 14, Relaxed)),
            // Large pictures take a millisecond or more: not too often.
            _ if looks < 8 => {
                drop(card);
                looks += 1;
                let before = frame.clone();
                // A clone has its pixels elsewhere, so this frame keeps its place.
                let damage = screen.refresh(&mut frame);
                check(&before, &frame, &damage);
            }
            _ => {}
        }
    }
    let before = frame.clone();
    let damage = screen.refresh(&mut frame);
    check(&before, &frame, &damage);
    let mut fresh = Frame::default();
    assert_eq!(VgaScreen::new(Arc::clone(&vga)).refresh(&mut fresh), Damage::All);
    assert!(fresh == frame, "what was drawn bit by bit is not what is drawn at once");
});
