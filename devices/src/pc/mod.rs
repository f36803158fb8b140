//! What a PC/AT has at fixed addresses: clock, keyboard, mouse, serial port, DMA, event timer; and a USB tablet.
//!
//! Port 0x61 (speaker, refresh toggle) and the interval timer behind it are KVM's, as are the interrupt controllers.
//!
//! | device | ports or address | interrupt |
//! |---|---|---|
//! | [`rtc::Rtc`] | 0x70 to 0x73 | 8 |
//! | [`i8042::I8042`] | 0x60, 0x64 | 1, 12 |
//! | [`port92::Port92`] | 0x92 | |
//! | [`serial::Uart`] | 0x3f8 to 0x3ff | 4 |
//! | [`dma::Dma`] | 0x00 to 0x0f, 0x80 to 0x8f, 0xc0 to 0xdf | |
//! | [`hpet::Hpet`] | memory at 0xfed0_0000 | any, or 0 and 8 |

use std::sync::Arc;

use crate::bus::{IrqLine, Region, Timer};

pub mod calendar;
pub mod cmos;
pub mod dma;
pub mod hpet;
pub mod i8042;
mod keyboard;
#[cfg(any(test, feature = "testing"))]
pub mod manual;
mod mouse;
pub mod port92;
pub mod rtc;
pub mod scancodes;
pub mod serial;

/// A second in nanoseconds.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// Ports of a device at a fixed place: what [`crate::bus::Bus::map`] wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// First of them.
    pub base: u64,
    /// How many.
    pub len: u64,
    /// The device's name for them.
    pub region: Region,
}

/// What a device can do to the machine. It is called from within the device: it must not call back, only take note.
pub trait Machine: Send + Sync {
    /// The processors' reset line is pulsed.
    fn reset(&self);
    /// Address line 20 is let through, or held at zero.
    fn set_a20(&self, on: bool);
}

/// An interrupt line that knows its level.
pub(crate) struct Line {
    irq: Arc<dyn IrqLine>,
    high: bool,
}

impl Line {
    pub(crate) fn new(irq: Arc<dyn IrqLine>) -> Self {
        Self { irq, high: false }
    }

    pub(crate) fn set(&mut self, high: bool) {
        if self.high != high {
            self.high = high;
            self.irq.set(high);
        }
    }

    pub(crate) fn is_high(&self) -> bool {
        self.high
    }
}

/// A timer that knows what it is armed for.
pub(crate) struct Alarm {
    timer: Arc<dyn Timer>,
    /// Unknown after it expired, which may have been in vain.
    at: Option<Option<u64>>,
}

impl Alarm {
    pub(crate) fn new(timer: Arc<dyn Timer>) -> Self {
        Self { timer, at: Some(None) }
    }

    pub(crate) fn now(&self) -> u64 {
        self.timer.now()
    }

    pub(crate) fn arm(&mut self, at: Option<u64>) {
        if self.at != Some(at) {
            self.at = Some(at);
            self.timer.arm(at);
        }
    }

    /// What it was armed for is over.
    pub(crate) fn expired(&mut self) {
        self.at = None;
    }
}

/// The earlier of two times, if there are any.
pub(crate) fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// A wide access to byte-wide ports, as the ISA bus makes it: one byte after the other, at following ports.
pub(crate) fn read_each(offset: u64, data: &mut [u8], mut read: impl FnMut(u64) -> u8) {
    for (at, byte) in (offset..).zip(data) {
        *byte = read(at);
    }
}

/// As [`read_each`].
pub(crate) fn write_each(offset: u64, data: &[u8], mut write: impl FnMut(u64, u8)) {
    for (at, byte) in (offset..).zip(data) {
        write(at, *byte);
    }
}

/// The low byte.
pub(crate) fn low(value: impl Into<u64>) -> u8 {
    (value.into() & 0xff) as u8
}
