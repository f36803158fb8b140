//! The VGA without a guest: a trapped write to the window in each way, and a look at the screen. Prints a table.
//!
//! A write is timed from where the board has decoded its address to where it is in video memory. What the exit costs is not
//! in it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use devices::bus::{Bus, Shared, Timer};
use devices::display::{Frame, Screen};
use devices::vga::{FIXED_MEMORY, FIXED_PORTS, Vga, VgaConfig, VgaScreen};

struct Stopped;

impl Timer for Stopped {
    fn now(&self) -> u64 {
        0
    }
    fn arm(&self, _: Option<u64>) {}
}

struct Pc {
    ports: Bus,
    memory: Bus,
    screen: VgaScreen,
    frame: Frame,
}

impl Pc {
    fn new() -> Self {
        let config = VgaConfig::default();
        let vga = Arc::new(Mutex::new(Vga::new(&config, Arc::new(Stopped)).unwrap()));
        let (ports, memory) = (Bus::default(), Bus::default());
        let device: Shared = Arc::clone(&vga) as _;
        for (bus, ranges) in [(&ports, &FIXED_PORTS[..]), (&memory, &FIXED_MEMORY)] {
            for (base, len, region) in ranges {
                assert!(bus.map(*base, *len, &device, *region));
            }
        }
        Self { ports, memory, screen: VgaScreen::new(vga), frame: Frame::default() }
    }

    fn set(&self, port: u64, first: u8, values: &[u8]) {
        for (index, value) in (first..).zip(values) {
            self.ports.write(port, &[index, *value]);
        }
    }

    /// 640x480 in 16 colours.
    fn mode_12(&self) {
        self.ports.write(0x3c2, &[0xe3]);
        self.set(0x3c4, 0, &[3, 1, 0x0f, 0, 6]);
        let crtc = [
            0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0b, 0x3e, 0x00, 0x40, 0, 0, 0, 0, 0, 0, 0xea, 0x0c, 0xdf,
            0x28, 0x00, 0xe7, 0x04, 0xe3, 0xff,
        ];
        self.set(0x3d4, 0, &crtc);
        self.ports.read(0x3da, &mut [0]);
        for (index, value) in (0..).zip([0u8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 1, 0, 15]) {
            self.ports.write(0x3c0, &[index]);
            self.ports.write(0x3c0, &[value]);
        }
        self.ports.write(0x3c0, &[0x20]);
        self.set(0x3ce, 0, &[0, 0, 0, 0, 0, 0, 5, 15, 0xff]);
    }

    fn dispi(&self, width: u16, height: u16, bpp: u16) {
        for (index, value) in [(4u16, 0), (1, width), (2, height), (3, bpp), (4, 0x41)] {
            self.ports.write(0x1ce, &index.to_le_bytes());
            self.ports.write(0x1cf, &value.to_le_bytes());
        }
    }

    fn writes(&self, name: &str, bytes: &[u8]) {
        let rounds = 4_000_000u64;
        let start = Instant::now();
        for n in 0..rounds {
            self.memory.write(0xa_0000 + black_box((n * 8) & 0x7fff), black_box(bytes));
        }
        let each = start.elapsed().as_secs_f64() * 1e9 / rounds as f64;
        println!("{name:<42} {each:>8.1} ns");
    }

    fn looks(&mut self, name: &str, mut change: impl FnMut(&Self, u64)) {
        let rounds = 200;
        self.screen.refresh(&mut self.frame);
        let start = Instant::now();
        for n in 0..rounds {
            change(self, n);
            black_box(self.screen.refresh(&mut self.frame));
        }
        let each = start.elapsed().as_secs_f64() * 1e6 / rounds as f64;
        println!("{name:<42} {each:>8.1} us");
    }
}

fn main() {
    let mut pc = Pc::new();
    pc.mode_12();
    pc.writes("write a byte, mode 0", &[0x5a]);
    pc.writes("write 4 bytes, mode 0", &[0x5a; 4]);
    pc.set(0x3ce, 8, &[0x10]);
    pc.writes("write a byte, mode 0 with a bit mask", &[0x5a]);
    pc.set(0x3ce, 5, &[1]);
    pc.writes("write a byte, mode 1", &[0x5a]);
    pc.set(0x3ce, 5, &[2]);
    pc.writes("write a byte, mode 2 with a bit mask", &[0x5a]);
    pc.set(0x3ce, 5, &[3]);
    pc.writes("write a byte, mode 3 with a bit mask", &[0x5a]);
    pc.looks("look at 640x480x4, unchanged", |_, _| {});
    pc.set(0x3ce, 5, &[0, 5, 15, 0xff]);
    pc.looks("look at 640x480x4, one byte changed", |pc, n| pc.memory.write(0xa_2000, &[n as u8]));
    pc.looks("look at 640x480x4, scrolled by a row", |pc, n| pc.set(0x3d4, 0x0d, &[(n % 3 * 80) as u8]));
    pc.dispi(1920, 1200, 32);
    pc.writes("write 4 bytes, banked", &[0x5a; 4]);
    pc.looks("look at 1920x1200x32, unchanged", |_, _| {});
    pc.looks("look at 1920x1200x32, one pixel changed", |pc, n| pc.memory.write(0xa_2000, &[n as u8]));
    pc.looks("look at 1920x1200x32, scrolled by a row", |pc, n| {
        pc.ports.write(0x1ce, &9u16.to_le_bytes());
        pc.ports.write(0x1cf, &((n % 2) as u16).to_le_bytes());
    });
}
