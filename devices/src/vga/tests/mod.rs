//! A card, a clock that is set by hand, and the register sets of the VGA BIOS's modes.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
// Damage is a list of ranges, often of one.
#![allow(clippy::single_range_in_vec_init)]

mod access;
mod extension;
mod graphics;
mod look;
mod registers;
mod text;

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use super::*;
use crate::bus::{Bus, Registers, Shared, Timer};
use crate::display::{Damage, Frame, Screen};
use crate::memory::SharedPages;
use crate::pci::PciFunction;

#[derive(Default)]
struct Clock(AtomicU64);

impl Timer for Clock {
    fn now(&self) -> u64 {
        self.0.load(SeqCst)
    }
    fn arm(&self, _: Option<u64>) {
        panic!("a screen needs no alarm");
    }
}

/// A machine with a card in it.
struct Pc {
    clock: Arc<Clock>,
    vga: Arc<Mutex<Vga>>,
    ports: Bus,
    memory: Bus,
    screen: VgaScreen,
    frame: Frame,
}

/// A mode as the BIOS's parameter table has it: miscellaneous output, sequencer 1 to 4, CRTC, attribute and graphics
/// controller.
struct Mode {
    misc: u8,
    seq: [u8; 4],
    crtc: [u8; 25],
    ac: [u8; 20],
    gc: [u8; 9],
}

/// IBM VGA BIOS, video parameter table. 80x25 and 40x25 characters of 9x16, colour and monochrome.
const TEXT_80: Mode = Mode {
    misc: 0x67,
    seq: [0x00, 0x03, 0x00, 0x02],
    crtc: [
        0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f,
        0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
    ],
    ac: [0, 1, 2, 3, 4, 5, 0x14, 7, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x0c, 0, 0x0f, 0x08],
    gc: [0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff],
};
const TEXT_40: Mode = Mode {
    seq: [0x08, 0x03, 0x00, 0x02],
    crtc: [
        0x2d, 0x27, 0x28, 0x90, 0x2b, 0xa0, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f,
        0x14, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
    ],
    ..TEXT_80
};
const TEXT_MONO: Mode = Mode {
    misc: 0x66,
    crtc: [
        0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f,
        0x28, 0x0d, 0x96, 0xb9, 0xa3, 0xff,
    ],
    ac: [0, 8, 8, 8, 8, 8, 8, 8, 0x10, 0x18, 0x18, 0x18, 0x18, 0x18, 0x18, 0x18, 0x0e, 0, 0x0f, 0x08],
    gc: [0, 0, 0, 0, 0, 0x10, 0x0a, 0, 0xff],
    ..TEXT_80
};
/// Mode 4: 320x200 in four colours.
const CGA_4: Mode = Mode {
    misc: 0x63,
    seq: [0x09, 0x03, 0x00, 0x02],
    crtc: [
        0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80, 0xbf, 0x1f, 0x00, 0xc1, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x14,
        0x00, 0x96, 0xb9, 0xa2, 0xff,
    ],
    ac: [0, 0x13, 0x15, 0x17, 2, 4, 6, 7, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x01, 0, 0x03, 0],
    gc: [0, 0, 0, 0, 0, 0x30, 0x0f, 0, 0xff],
};
/// Mode 6: 640x200 in two.
const CGA_2: Mode = Mode {
    misc: 0x63,
    seq: [0x01, 0x01, 0x00, 0x06],
    crtc: [
        0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0x00, 0xc1, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28,
        0x00, 0x96, 0xb9, 0xc2, 0xff,
    ],
    ac: [
        0, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x01, 0,
        0x01, 0,
    ],
    gc: [0, 0, 0, 0, 0, 0x00, 0x0d, 0, 0xff],
};
/// 16 colours: modes 0dh (320x200), 0eh (640x200), 10h (640x350) and 12h (640x480).
const MODE_0D: Mode = Mode {
    misc: 0x63,
    seq: [0x09, 0x0f, 0x00, 0x06],
    crtc: [
        0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80, 0xbf, 0x1f, 0x00, 0xc0, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x14,
        0x00, 0x96, 0xb9, 0xe3, 0xff,
    ],
    ac: [0, 1, 2, 3, 4, 5, 6, 7, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x01, 0, 0x0f, 0],
    gc: [0, 0, 0, 0, 0, 0x00, 0x05, 0x0f, 0xff],
};
const MODE_0E: Mode = Mode {
    seq: [0x01, 0x0f, 0x00, 0x06],
    crtc: [
        0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0x00, 0xc0, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28,
        0x00, 0x96, 0xb9, 0xe3, 0xff,
    ],
    ..MODE_0D
};
const MODE_10: Mode = Mode {
    misc: 0xa3,
    seq: [0x01, 0x0f, 0x00, 0x06],
    crtc: [
        0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0x00, 0x40, 0, 0, 0, 0, 0, 0, 0x83, 0x85, 0x5d, 0x28,
        0x0f, 0x63, 0xba, 0xe3, 0xff,
    ],
    ac: [0, 1, 2, 3, 4, 5, 0x14, 7, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x01, 0, 0x0f, 0],
    ..MODE_0D
};
const MODE_12: Mode = Mode {
    misc: 0xe3,
    crtc: [
        0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0b, 0x3e, 0x00, 0x40, 0, 0, 0, 0, 0, 0, 0xea, 0x8c, 0xdf, 0x28,
        0x00, 0xe7, 0x04, 0xe3, 0xff,
    ],
    ..MODE_10
};
/// Mode 13h: 320x200 in 256 colours.
const MODE_13: Mode = Mode {
    misc: 0x63,
    seq: [0x01, 0x0f, 0x00, 0x0e],
    crtc: [
        0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0x00, 0x41, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28,
        0x40, 0x96, 0xb9, 0xa3, 0xff,
    ],
    ac: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0x41, 0, 0x0f, 0],
    gc: [0, 0, 0, 0, 0, 0x40, 0x05, 0x0f, 0xff],
};
/// 320x240 in 256 colours, unchained, as Abrash's articles set it.
const MODE_X: Mode = Mode {
    misc: 0xe3,
    seq: [0x01, 0x0f, 0x00, 0x06],
    crtc: [
        0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0d, 0x3e, 0x00, 0x41, 0, 0, 0, 0, 0, 0, 0xea, 0xac, 0xdf, 0x28,
        0x00, 0xe7, 0x06, 0xe3, 0xff,
    ],
    ..MODE_13
};

impl Pc {
    fn new() -> Self {
        Self::with(VgaConfig::default())
    }

    fn with(config: VgaConfig) -> Self {
        let clock = Arc::new(Clock::default());
        let vga = Arc::new(Mutex::new(Vga::new(&config, Arc::clone(&clock) as _).unwrap()));
        let (ports, memory) = (Bus::default(), Bus::default());
        let device: Shared = Arc::clone(&vga) as _;
        for (base, len, region) in FIXED_PORTS {
            assert!(ports.map(base, len, &device, region));
        }
        for (base, len, region) in FIXED_MEMORY {
            assert!(memory.map(base, len, &device, region));
        }
        let screen = VgaScreen::new(Arc::clone(&vga));
        Self { clock, vga, ports, memory, screen, frame: Frame::default() }
    }

    /// A card in a mode, with a palette in which colour `n` is [`color`].
    fn in_mode(mode: &Mode) -> Self {
        let pc = Self::new();
        pc.set(mode);
        pc.out(0x3c6, 0xff);
        pc.out(0x3c8, 0);
        for n in 0..=255u8 {
            for part in [n & 0x3f, n >> 2, !n & 0x3f] {
                pc.out(0x3c9, part);
            }
        }
        pc
    }

    fn set(&self, mode: &Mode) {
        self.out(0x3c2, mode.misc);
        let crtc = self.crtc_port();
        self.seq(0, 1);
        for (n, value) in (1..).zip(mode.seq) {
            self.seq(n, value);
        }
        self.seq(0, 3);
        self.outw(crtc, 0x11);
        for (n, value) in (0..).zip(mode.crtc) {
            self.crtc(n, value);
        }
        self.inb(crtc + 6);
        for (n, value) in (0..).zip(mode.ac) {
            self.out(0x3c0, n);
            self.out(0x3c0, value);
        }
        self.attribute(0x14, 0);
        for (n, value) in (0..).zip(mode.gc) {
            self.gc(n, value);
        }
    }

    fn crtc_port(&self) -> u16 {
        if self.inb(0x3cc) & 1 != 0 { 0x3d4 } else { 0x3b4 }
    }

    fn out(&self, port: u16, value: u8) {
        self.ports.write(port.into(), &[value]);
    }

    fn outw(&self, port: u16, value: u16) {
        self.ports.write(port.into(), &value.to_le_bytes());
    }

    fn inb(&self, port: u16) -> u8 {
        let mut data = [0];
        self.ports.read(port.into(), &mut data);
        data[0]
    }

    fn inw(&self, port: u16) -> u16 {
        let mut data = [0; 2];
        self.ports.read(port.into(), &mut data);
        u16::from_le_bytes(data)
    }

    fn seq(&self, index: u8, value: u8) {
        self.outw(0x3c4, u16::from_le_bytes([index, value]));
    }

    fn gc(&self, index: u8, value: u8) {
        self.outw(0x3ce, u16::from_le_bytes([index, value]));
    }

    fn crtc(&self, index: u8, value: u8) {
        self.outw(self.crtc_port(), u16::from_le_bytes([index, value]));
    }

    fn read_crtc(&self, index: u8) -> u8 {
        self.out(self.crtc_port(), index);
        self.inb(self.crtc_port() + 1)
    }

    /// Sets a register of the attribute controller, and leaves the palette to the screen.
    fn attribute(&self, index: u8, value: u8) {
        self.inb(self.crtc_port() + 6);
        self.out(0x3c0, index | 0x20);
        self.out(0x3c0, value);
    }

    fn dispi(&self, index: u16, value: u16) {
        self.outw(0x1ce, index);
        self.outw(0x1cf, value);
    }

    fn read_dispi(&self, index: u16) -> u16 {
        self.outw(0x1ce, index);
        self.inw(0x1cf)
    }

    fn poke(&self, address: u64, bytes: &[u8]) {
        for (address, byte) in (address..).zip(bytes) {
            self.memory.write(address, &[*byte]);
        }
    }

    fn peek(&self, address: u64) -> u8 {
        let mut data = [0];
        self.memory.read(address, &mut data);
        data[0]
    }

    /// Video memory, behind the card's back.
    fn pages(&self) -> Arc<SharedPages> {
        self.vga.lock().unwrap().memory(0).unwrap()
    }

    /// Writes the four planes' bytes at `address`.
    fn put_planes(&self, address: usize, planes: [u8; 4]) {
        self.pages().write(4 * address, &planes).unwrap();
    }

    fn planes(&self, address: usize) -> [u8; 4] {
        let mut planes = [0; 4];
        self.pages().read(4 * address, &mut planes).unwrap();
        planes
    }

    fn refresh(&mut self) -> Damage {
        self.screen.refresh(&mut self.frame)
    }

    /// Refreshes, and returns the rows that have changed.
    fn changed(&mut self) -> Vec<std::ops::Range<usize>> {
        match self.refresh() {
            Damage::All => panic!("all of the picture"),
            Damage::Rows(rows) => rows,
        }
    }

    /// Draws all, from a new frame.
    fn draw(&mut self) -> (usize, usize) {
        self.frame = Frame::default();
        assert_eq!(self.refresh(), Damage::All);
        (self.frame.width, self.frame.height)
    }

    fn row(&self, y: usize) -> &[u32] {
        &self.frame.pixels[y * self.frame.width..][..self.frame.width]
    }

    fn pixel(&self, x: usize, y: usize) -> u32 {
        self.row(y)[x]
    }
}

/// What colour `n` of [`Pc::in_mode`]'s palette looks like.
fn color(n: u8) -> u32 {
    let wide = |value: u8| u32::from(value << 2 | value >> 4);
    wide(n & 0x3f) << 16 | wide(n >> 2) << 8 | wide(!n & 0x3f)
}
