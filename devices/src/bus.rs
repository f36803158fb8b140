//! How emulated devices are reached and what they reach: registers, interrupt lines, time.
//!
//! A device is a value behind a mutex. The board maps its regions, in I/O space or in memory, and calls it from vCPU
//! threads; its timers call it from the main thread. Nothing here knows of KVM.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Which of a device's sets of registers is meant: a number that the device gave it.
pub type Region = u8;

/// A device as its registers.
pub trait Registers: Send {
    /// The guest reads `data.len()` bytes (1, 2 or 4; in memory up to 8) at `offset` of `region`. `data` is all ones
    /// when called, as on a bus where nothing answers.
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]);
    /// The guest writes `data.len()` bytes at `offset` of `region`.
    fn write(&mut self, region: Region, offset: u64, data: &[u8]);
    /// A timer of the device expired: see [`Timer`]. It may come late or in vain.
    fn expired(&mut self) {}
    /// The machine is reset: as after power on.
    fn reset(&mut self);
}

/// A device that the board and the timers share.
pub type Shared<T = dyn Registers> = Arc<Mutex<T>>;

/// An interrupt line of a device.
pub trait IrqLine: Send + Sync {
    /// Sets the line's level. The same level again changes nothing.
    fn set(&self, high: bool);
}

/// The time of a device, and one alarm. Who wants more alarms takes the earliest.
pub trait Timer: Send + Sync {
    /// Nanoseconds since the machine was started, monotonic.
    fn now(&self) -> u64;
    /// [`Registers::expired`] is to be called at this time ([`Timer::now`]), or not at all. Replaces what was said
    /// before. A time that has passed: at once, but not from within this call.
    fn arm(&self, at: Option<u64>);
}

struct Range {
    len: u64,
    device: Shared,
    region: Region,
}

/// An address space of registers: ranges that do not overlap.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<BTreeMap<u64, Range>>,
}

impl Bus {
    /// Maps `len` bytes of a device's `region` at `base`; false: it would overlap another range, or the end of the space.
    pub fn map(&self, base: u64, len: u64, device: &Shared, region: Region) -> bool {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let Some(end) = base.checked_add(len) else { return false };
        let before = ranges.range(..end).next_back();
        if len == 0 || before.is_some_and(|(start, range)| start + range.len > base) {
            return false;
        }
        ranges.insert(base, Range { len, device: Arc::clone(device), region });
        true
    }

    /// Takes away what is mapped at `base`.
    pub fn unmap(&self, base: u64) {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner).remove(&base);
    }

    /// Takes away what is mapped at `base`, if it is this device's.
    pub fn unmap_of(&self, base: u64, device: &Shared) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        if ranges.get(&base).is_some_and(|range| Arc::ptr_eq(&range.device, device)) {
            ranges.remove(&base);
        }
    }

    /// Takes everything away.
    pub fn clear(&self) {
        let ranges = std::mem::take(&mut *self.ranges.write().unwrap_or_else(PoisonError::into_inner));
        // Devices end outside of the lock.
        drop(ranges);
    }

    fn find(&self, addr: u64, len: usize) -> Option<(Shared, Region, u64)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (base, range) = ranges.range(..=addr).next_back()?;
        let offset = addr - base;
        // An access across the end goes to the device that it begins in, which sees an offset inside its registers.
        let inside = offset < range.len && len > 0;
        inside.then(|| (Arc::clone(&range.device), range.region, offset))
    }

    /// A read of the guest; all ones if nothing is there.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, region, offset)) = self.find(addr, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).read(region, offset, data);
        }
    }

    /// A write of the guest; lost if nothing is there.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((device, region, offset)) = self.find(addr, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(region, offset, data);
        }
    }
}

/// The bytes of a little-endian register of up to eight bytes that an access at `offset` reads; zeros beyond it.
pub fn read_le(value: u64, offset: u64, data: &mut [u8]) {
    let shift = |n: usize| u32::try_from((offset + n as u64) * 8).unwrap_or(u32::MAX);
    for (n, byte) in data.iter_mut().enumerate() {
        *byte = (value.checked_shr(shift(n)).unwrap_or(0) & 0xff) as u8;
    }
}

/// What a little-endian write of up to eight bytes means.
pub fn value_le(data: &[u8]) -> u64 {
    data.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Default)]
    struct Echo(Vec<(Region, u64, Vec<u8>)>);

    impl Registers for Echo {
        fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
            read_le(0x1100 + u64::from(region), offset, data);
        }
        fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
            self.0.push((region, offset, data.to_vec()));
        }
        fn reset(&mut self) {
            self.0.clear();
        }
    }

    #[test]
    fn an_access_reaches_the_range_that_it_begins_in() {
        let bus = Bus::default();
        let echo = Arc::new(Mutex::new(Echo::default()));
        let device: Shared = Arc::clone(&echo) as _;
        assert!(bus.map(0x100, 8, &device, 1));
        assert!(bus.map(0x108, 1, &device, 2));
        for (base, len) in [(0x107, 1), (0xff, 2), (0xff, 0x100), (0x108, 1), (u64::MAX, 2), (0x200, 0)] {
            assert!(!bus.map(base, len, &device, 3), "{base:#x} {len}");
        }
        let mut data = [0; 2];
        for (addr, value) in
            [(0x100, 0x1101), (0x101, 0x0011), (0x108, 0x1102), (0x109, 0xffff), (0xff, 0xffff)]
        {
            bus.read(addr, &mut data);
            assert_eq!(u16::from_le_bytes(data), value, "{addr:#x}");
        }
        bus.write(0x107, &[1, 2]);
        bus.write(0x109, &[3]);
        bus.unmap(0x100);
        bus.write(0x107, &[4]);
        assert_eq!(echo.lock().unwrap().0, [(1, 7, vec![1, 2])]);
    }

    #[test]
    fn registers_are_little_endian() {
        let mut data = [0; 4];
        read_le(0x1122_3344_5566_7788, 6, &mut data);
        assert_eq!(data, [0x22, 0x11, 0, 0]);
        assert_eq!(value_le(&[1, 2, 3]), 0x03_02_01);
    }
}
