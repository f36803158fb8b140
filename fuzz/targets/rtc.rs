//! The clock and its memory under a guest that does anything at any time.
//!
//! Input: 8 bytes, the time at the start in nanoseconds; then operations: a tag byte and its arguments, see the match
//! below.

#![no_main]

use std::sync::Arc;

use devices::bus::Registers;
use devices::pc::cmos::CMOS_SIZE;
use devices::pc::manual::{ManualLine, ManualTimer, inb};
use devices::pc::rtc::{HostTime, Rtc};
use libfuzzer_sys::fuzz_target;
use xvmm_fuzz::Input;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let (timer, line) = (Arc::new(ManualTimer::default()), Arc::new(ManualLine::default()));
    let start = HostTime { nanos: input.u64().cast_signed() };
    let mut rtc = Rtc::new(Arc::clone(&line) as _, Arc::clone(&timer) as _, [0; CMOS_SIZE], start);
    while !input.is_empty() {
        let tag = input.u8();
        let (region, offset) = (tag >> 3 & 1, u64::from(tag >> 4 & 1));
        match tag % 8 {
            // Index and value at once, as most accesses are.
            0..=2 => rtc.write(region, 0, &[input.u8(), input.u8()]),
            3 => {
                let len = 1 << (tag >> 6).min(2);
                rtc.write(region, offset, input.bytes(len));
            }
            4 => {
                let mut data = [0xff; 4];
                rtc.read(region, offset, &mut data[..1 << (tag >> 6).min(2)]);
            }
            // Time passes, and the device is woken when it wants to be: not without end.
            5 => {
                let until = timer_now(&timer).saturating_add(u64::from(input.u32()) << (tag >> 3 & 7));
                for _ in 0..64 {
                    let Some(at) = timer.armed().filter(|at| *at <= until) else { break };
                    let pending = line.is_high();
                    assert!(!pending, "armed while the interrupt waits to be taken");
                    timer.run(&mut rtc, at);
                }
                timer.advance(until.saturating_sub(timer_now(&timer)));
            }
            // Late, or in vain.
            6 => {
                timer.advance(input.number() >> 16);
                rtc.expired();
            }
            _ if tag >> 3 == 31 => rtc.reset(),
            // What is acknowledged is low until time passes.
            _ => {
                rtc.write(0, 0, &[0x0c]);
                inb(&mut rtc, 0, 1);
                assert!(!line.is_high());
                assert_eq!(inb(&mut rtc, 0, 1), 0);
            }
        }
        rtc.seconds();
    }
});

fn timer_now(timer: &ManualTimer) -> u64 {
    devices::bus::Timer::now(timer)
}
