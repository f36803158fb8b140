//! Keyboard controller, keyboard and mouse under a guest and a viewer that do anything.
//!
//! Input: operations of a tag byte and their arguments, see the match below.

#![no_main]

use std::sync::Arc;

use devices::bus::{Registers, Timer};
use devices::display::Input as Event;
use devices::pc::i8042::I8042;
use devices::pc::manual::{ManualLine, ManualMachine, ManualTimer, inb, outb};
use libfuzzer_sys::fuzz_target;
use xvmm_fuzz::Input;

/// Codes of the keyboard, replies, and packets of the mouse that can wait at most; and what a held key repeats while the
/// packets come, one in 25 ms.
const MOST: usize = 17 + 3 + 1 + 5 + PACKETS * 4 + PACKETS * 4;
/// Of each motion that waits.
const PACKETS: usize = 17 * 17;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let timer = Arc::new(ManualTimer::default());
    let lines: [Arc<ManualLine>; 2] = std::array::from_fn(|_| Arc::default());
    let [keyboard, mouse] = lines.clone();
    let machine = Arc::new(ManualMachine::default());
    let mut device = I8042::new(keyboard as _, mouse as _, Arc::clone(&timer) as _, machine as _);
    while !input.is_empty() {
        let tag = input.u8();
        match tag % 8 {
            0 => outb(&mut device, 1, 0, input.u8()),
            1 => outb(&mut device, 0, 0, input.u8()),
            // To the mouse.
            2 => {
                outb(&mut device, 1, 0, 0xd4);
                outb(&mut device, 0, 0, input.u8());
            }
            3 => {
                let status = inb(&mut device, 1, 0);
                assert!(status & 1 != 0 || !lines.iter().any(|line| line.is_high()));
                inb(&mut device, 0, 0);
            }
            4 => {
                let code = if tag & 8 == 0 { input.u8().into() } else { input.u16() };
                device.input(Event::Key { code, down: tag & 16 == 0 });
            }
            5 => device.input(Event::Relative {
                dx: input.u16().cast_signed(),
                dy: input.u16().cast_signed(),
                dz: input.u8().cast_signed(),
                buttons: tag >> 3,
            }),
            6 => {
                // Days at most: the clock of 64 bits does not come to its end.
                timer.advance(input.number() >> (16 + (tag >> 3)));
                device.expired();
            }
            _ if tag >> 3 == 31 => device.reset(),
            // All that waits is read: it has an end, without keys that repeat.
            _ => {
                let mut bytes = 0;
                loop {
                    let before = timer.now();
                    if inb(&mut device, 1, 0) & 1 != 0 {
                        inb(&mut device, 0, 0);
                        bytes += 1;
                        assert!(bytes <= MOST, "{bytes} bytes and no end");
                    }
                    // A key repeats after 30 ms at the earliest, a mouse that is asked to sends every 100 ms.
                    match timer.armed().filter(|at| at.saturating_sub(before) < 30_000_000) {
                        Some(at) => drop(timer.run(&mut device, at)),
                        None if inb(&mut device, 1, 0) & 1 == 0 => break,
                        None => {}
                    }
                }
            }
        }
        assert!(!lines.iter().all(|line| line.is_high()), "one byte, two interrupts");
    }
});
