//! The serial port under a guest that does anything, and somebody who types.
//!
//! Input: operations, each a tag byte and its arguments, see the match below.

#![no_main]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use devices::bus::Registers;
use devices::pc::manual::{ManualLine, inb};
use devices::pc::serial::{ByteStream, Uart};
use libfuzzer_sys::fuzz_target;
use xvmm_fuzz::Input;

#[derive(Clone, Default)]
struct Line(Arc<Mutex<(VecDeque<u8>, usize)>>);

impl ByteStream for Line {
    fn send(&mut self, _: u8) {
        self.0.lock().expect("no panic before").1 += 1;
    }

    fn receive(&mut self, buf: &mut [u8]) -> usize {
        let (typed, _) = &mut *self.0.lock().expect("no panic before");
        let count = buf.len().min(typed.len());
        buf.iter_mut().zip(typed.drain(..count)).for_each(|(to, byte)| *to = byte);
        count
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let (line, stream) = (Arc::new(ManualLine::default()), Line::default());
    let mut uart = Uart::new(Arc::clone(&line) as _, Box::new(stream.clone()));
    let mut written = 0;
    while !input.is_empty() {
        let tag = input.u8();
        let (offset, len) = (u64::from(tag >> 3 & 7), 1usize << (tag >> 6).min(2));
        match tag % 8 {
            0..=2 => {
                written += len;
                uart.write(
                    0,
                    offset,
                    &input.bytes(len).iter().copied().chain([0; 4]).take(len).collect::<Vec<_>>(),
                );
            }
            3..=5 => {
                let mut data = [0xff; 4];
                uart.read(0, offset, &mut data[..len]);
            }
            6 => {
                let len = usize::from(tag >> 3);
                stream.0.lock().expect("no panic before").0.extend(input.bytes(len));
                uart.poll();
            }
            _ if tag >> 3 == 31 => uart.reset(),
            // Without any interrupt enabled the line is low.
            _ => {
                uart.write(0, 3, &[0]);
                uart.write(0, 1, &[0]);
                assert!(!line.is_high());
                assert_eq!(inb(&mut uart, 0, 2) & 1, 1, "an interrupt is pending, and none is enabled");
            }
        }
        assert!(stream.0.lock().expect("no panic before").1 <= written, "more was sent than written");
    }
});
