//! The event timer under a guest that does anything.
//!
//! Input: operations of a tag byte and their arguments, see the match below.

#![no_main]

use std::sync::Arc;

use devices::bus::{IrqLine, Registers, Timer};
use devices::pc::hpet::{Hpet, HpetLines};
use devices::pc::manual::{ManualLine, ManualTimer};
use libfuzzer_sys::fuzz_target;
use xvmm_fuzz::Input;

/// Times that it may wake in a second: ten thousand for each timer, and the single shots.
const MOST: u32 = 30_003;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let timer = Arc::new(ManualTimer::default());
    let line = || Arc::new(ManualLine::default()) as Arc<dyn IrqLine>;
    let lines = HpetLines {
        routes: (0..24).map(|input| (input, line())).collect(),
        legacy: [line(), line()],
        replace: Box::new(|_| {}),
    };
    let mut hpet = Hpet::new(Arc::clone(&timer) as _, lines);
    let mut seconds = 0;
    while !input.is_empty() {
        let tag = input.u8();
        let len = 1 << (tag >> 3 & 3);
        match tag % 8 {
            // A register, whole or in part, or anywhere.
            0..=3 => {
                let near = [0x10, 0x20, 0xf0, 0x100, 0x108, 0x120, 0x128, 0x140, 0x148];
                let offset =
                    if tag & 0x80 == 0 { u64::from(input.u16()) } else { near[usize::from(input.below(9))] };
                let value = input.number().to_le_bytes();
                hpet.write(0, offset % 0x400, &value[..len]);
            }
            4 => {
                let mut data = [0xff; 8];
                hpet.read(0, u64::from(input.u16()) % 0x400, &mut data[..len]);
            }
            5 => {
                timer.advance(input.number() >> 16);
                hpet.expired();
            }
            6 if seconds < 8 => {
                seconds += 1;
                let woken = timer.run(&mut hpet, timer.now().saturating_add(1_000_000_000));
                assert!(woken <= MOST, "{woken} times in a second");
            }
            7 if tag >> 3 == 31 => hpet.reset(),
            _ => {
                let until = timer.now().saturating_add(u64::from(input.u16()));
                timer.run(&mut hpet, until);
            }
        }
    }
});
