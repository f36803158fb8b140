//! A clock that is set by hand, and an interrupt line that is looked at, for tests and fuzz targets.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, missing_docs)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use crate::bus::{IrqLine, Registers, Timer};

/// A clock that stands still until it is set.
#[derive(Debug, Default)]
pub struct ManualTimer {
    now: AtomicU64,
    armed: Mutex<Option<u64>>,
}

impl ManualTimer {
    pub fn set(&self, now: u64) {
        self.now.store(now, SeqCst);
    }

    pub fn advance(&self, by: u64) {
        self.now.fetch_add(by, SeqCst);
    }

    pub fn armed(&self) -> Option<u64> {
        *self.armed.lock().unwrap()
    }

    /// Lets time pass until `until`, and wakes the device whenever it asked for it. Returns how often.
    pub fn run(&self, device: &mut dyn Registers, until: u64) -> u32 {
        let mut woken = 0;
        while let Some(at) = self.armed().filter(|at| *at <= until) {
            *self.armed.lock().unwrap() = None;
            self.now.fetch_max(at, SeqCst);
            device.expired();
            woken += 1;
        }
        self.now.fetch_max(until, SeqCst);
        woken
    }
}

impl Timer for ManualTimer {
    fn now(&self) -> u64 {
        self.now.load(SeqCst)
    }
    fn arm(&self, at: Option<u64>) {
        *self.armed.lock().unwrap() = at;
    }
}

/// An interrupt line, and how often it rose.
#[derive(Debug, Default)]
pub struct ManualLine {
    high: AtomicBool,
    rises: AtomicU32,
}

impl ManualLine {
    pub fn is_high(&self) -> bool {
        self.high.load(SeqCst)
    }

    /// Rising edges since the last call.
    pub fn rises(&self) -> u32 {
        self.rises.swap(0, SeqCst)
    }
}

impl IrqLine for ManualLine {
    fn set(&self, high: bool) {
        if !self.high.swap(high, SeqCst) && high {
            self.rises.fetch_add(1, SeqCst);
        }
    }
}

/// A machine that remembers what was done to it.
#[derive(Debug, Default)]
pub struct ManualMachine {
    pub resets: AtomicU32,
    pub a20: AtomicBool,
}

impl super::Machine for ManualMachine {
    fn reset(&self) {
        self.resets.fetch_add(1, SeqCst);
    }
    fn set_a20(&self, on: bool) {
        self.a20.store(on, SeqCst);
    }
}

/// Reads a byte of a device.
pub fn inb(device: &mut dyn Registers, region: u8, offset: u64) -> u8 {
    let mut data = [0xff];
    device.read(region, offset, &mut data);
    data[0]
}

/// Writes a byte to a device.
pub fn outb(device: &mut dyn Registers, region: u8, offset: u64, value: u8) {
    device.write(region, offset, &[value]);
}
