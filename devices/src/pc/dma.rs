//! The two 8237 DMA controllers and their page registers, without a device that would use them: registers read back
//! what software expects when it looks for them, and nothing is transferred.
//!
//! Source: Intel 8237A data sheet; IBM PC/AT Technical Reference, "DMA controller".

use super::{Ports, low, read_each, write_each};
use crate::bus::{Region, Registers};

/// First controller (bytes), second controller (words, at even ports), page registers.
pub const DMA_PORTS: [Ports; 3] = [
    Ports { base: 0x00, len: 0x10, region: FIRST },
    Ports { base: 0xc0, len: 0x20, region: SECOND },
    Ports { base: 0x80, len: 0x10, region: PAGES },
];

const FIRST: Region = 0;
const SECOND: Region = 1;
const PAGES: Region = 2;

/// Requests of software are bits 4 to 7 of the status.
const ALL_MASKED: u8 = 0x0f;

#[derive(Clone, Copy, Default)]
struct Controller {
    /// Address and count of channel 0, of channel 1 and so on: base and current are one without transfers.
    counters: [u16; 8],
    /// The next byte is a high one.
    high: bool,
    command: u8,
    requests: u8,
    mask: u8,
    modes: [u8; 4],
    /// The channel whose mode is read next.
    next_mode: u8,
}

fn bit(value: u8) -> u8 {
    1 << (value & 3)
}

impl Controller {
    fn new() -> Self {
        Self { mask: ALL_MASKED, ..Self::default() }
    }

    /// Registers as after the reset; counters and modes are not touched by it.
    fn clear(&mut self) {
        let (counters, modes) = (self.counters, self.modes);
        *self = Self { counters, modes, ..Self::new() };
    }

    /// Whether this byte of a counter is the high one.
    fn flip(&mut self) -> bool {
        self.high = !self.high;
        !self.high
    }

    fn read(&mut self, register: u8) -> u8 {
        match register {
            0..=7 => {
                let value = self.counters.get(usize::from(register)).copied().unwrap_or(0);
                let high = self.flip();
                low(if high { value >> 8 } else { value })
            }
            8 => self.requests << 4,
            10 => self.command,
            11 => {
                let channel = self.next_mode;
                self.next_mode = (channel + 1) & 3;
                self.modes.get(usize::from(channel)).copied().unwrap_or(0) | 3
            }
            15 => self.mask | 0xf0,
            // Request and temporary register.
            _ => 0,
        }
    }

    fn write(&mut self, register: u8, value: u8) {
        match register {
            0..=7 => {
                let high = self.flip();
                if let Some(counter) = self.counters.get_mut(usize::from(register)) {
                    let [old_low, old_high] = counter.to_le_bytes();
                    *counter = u16::from_le_bytes(if high { [old_low, value] } else { [value, old_high] });
                }
            }
            8 => self.command = value,
            9 if value & 4 != 0 => self.requests |= bit(value),
            9 => self.requests &= !bit(value),
            10 if value & 4 != 0 => self.mask |= bit(value),
            10 => self.mask &= !bit(value),
            11 => {
                if let Some(mode) = self.modes.get_mut(usize::from(value & 3)) {
                    *mode = value & !3;
                }
            }
            12 => self.high = false,
            13 => self.clear(),
            14 => (self.mask, self.next_mode) = (0, 0),
            _ => self.mask = value & ALL_MASKED,
        }
    }
}

/// Both controllers and the page registers.
pub struct Dma {
    controllers: [Controller; 2],
    pages: [u8; 16],
}

impl Default for Dma {
    fn default() -> Self {
        Self { controllers: [Controller::new(); 2], pages: [0; 16] }
    }
}

impl Dma {
    fn access(&mut self, region: Region, port: u64) -> Option<(&mut Controller, u8)> {
        let [first, second] = &mut self.controllers;
        let (controller, port) = match region {
            FIRST => (first, port),
            SECOND if port.is_multiple_of(2) => (second, port / 2),
            _ => return None,
        };
        Some((controller, u8::try_from(port).ok().filter(|port| *port < 16)?))
    }
}

impl Registers for Dma {
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        read_each(offset, data, |port| {
            if region == PAGES {
                return usize::try_from(port).ok().and_then(|n| self.pages.get(n)).copied().unwrap_or(0xff);
            }
            self.access(region, port).map_or(0xff, |(controller, register)| controller.read(register))
        });
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        write_each(offset, data, |port, value| {
            if region == PAGES {
                if let Some(page) = usize::try_from(port).ok().and_then(|n| self.pages.get_mut(n)) {
                    *page = value;
                }
            } else if let Some((controller, register)) = self.access(region, port) {
                controller.write(register, value);
            }
        });
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::super::manual::{inb, outb};
    use super::*;

    #[test]
    fn counters_and_pages_read_back() {
        for (region, step) in [(FIRST, 1), (SECOND, 2)] {
            let mut dma = Dma::default();
            // Between the bytes of one counter another may be accessed: the flip-flop is one for all.
            outb(&mut dma, region, 12 * step, 0);
            for register in 0..8u8 {
                for byte in [register | 0x10, register | 0xa0] {
                    outb(&mut dma, region, u64::from(register) * step, byte);
                }
            }
            for register in 0..8u8 {
                let read: Vec<u8> =
                    (0..2).map(|_| inb(&mut dma, region, u64::from(register) * step)).collect();
                assert_eq!(read, [register | 0x10, register | 0xa0]);
            }
            inb(&mut dma, region, 0);
            outb(&mut dma, region, 12 * step, 0);
            assert_eq!(inb(&mut dma, region, 0), 0x10);
        }
        let mut dma = Dma::default();
        for page in 0..16 {
            outb(&mut dma, PAGES, page, 0x5a ^ low(page));
        }
        assert!((0..16).all(|page| inb(&mut dma, PAGES, page) == 0x5a ^ low(page)));
        assert_eq!(inb(&mut dma, SECOND, 1), 0xff, "odd ports are nobody's");
    }

    #[test]
    fn masks_modes_and_requests_are_bits_of_channels() {
        let mut dma = Dma::default();
        assert_eq!(inb(&mut dma, FIRST, 15), 0xff);
        for (register, value, mask) in
            [(14, 0, 0xf0), (10, 6, 0xf4), (10, 2, 0xf0), (15, 0x05, 0xf5), (13, 0, 0xff), (10, 1, 0xfd)]
        {
            outb(&mut dma, FIRST, register, value);
            assert_eq!(inb(&mut dma, FIRST, 15), mask, "{register} {value:#x}");
        }
        for (value, status) in [(5, 0x20), (7, 0xa0), (1, 0x80)] {
            outb(&mut dma, FIRST, 9, value);
            assert_eq!(inb(&mut dma, FIRST, 8), status);
        }
        for mode in [0x44, 0x49, 0x5a, 0xc3] {
            outb(&mut dma, FIRST, 11, mode);
        }
        outb(&mut dma, FIRST, 14, 0);
        assert_eq!([0; 4].map(|_: u8| inb(&mut dma, FIRST, 11)), [0x47, 0x4b, 0x5b, 0xc3]);
        outb(&mut dma, FIRST, 8, 0x10);
        assert_eq!(inb(&mut dma, FIRST, 10), 0x10);
        dma.reset();
        assert_eq!((inb(&mut dma, FIRST, 10), inb(&mut dma, FIRST, 8)), (0, 0));
    }
}
