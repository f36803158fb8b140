//! The high precision event timer: three comparators of one counter.
//!
//! Source: Intel, IA-PC HPET (High Precision Event Timers) Specification 1.0a, section 2.3 (registers), 2.3.9
//! (comparators), 2.4 (interrupts).

use std::sync::Arc;

use super::{Alarm, Line, earlier};
use crate::bus::{IrqLine, Region, Registers, Timer, read_le, value_le};

/// Where its registers are in memory, and how many bytes (region 0).
pub const HPET_BASE: u64 = 0xfed0_0000;
/// As above.
pub const HPET_LEN: u64 = 0x400;

/// Nanoseconds of a tick: 100 MHz.
const TICK: u64 = 10;
const FEMTOSECONDS: u64 = TICK * 1_000_000;
/// Revision 1, three timers, 64 bits, legacy replacement, Intel.
const CAPABILITIES: u64 =
    FEMTOSECONDS << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (TIMERS as u64 - 1) << 8 | 1;
const TIMERS: usize = 3;
/// Low half of the capabilities register: what ACPI's HPET table names the block by.
#[allow(clippy::cast_possible_truncation)]
pub const HPET_BLOCK_ID: u32 = CAPABILITIES as u32;

const REG_CONFIG: u64 = 0x10;
const REG_STATUS: u64 = 0x20;
const REG_COUNTER: u64 = 0xf0;
const REG_TIMERS: u64 = 0x100;
const TIMER_STRIDE: u64 = 0x20;

const CONFIG_ENABLE: u64 = 1;
const CONFIG_LEGACY: u64 = 2;

const TIMER_LEVEL: u64 = 1 << 1;
const TIMER_INTERRUPT: u64 = 1 << 2;
const TIMER_PERIODIC: u64 = 1 << 3;
/// The next write to the comparator of a periodic timer sets the comparator itself; it is cleared by that.
const TIMER_SET_VALUE: u64 = 1 << 6;
const TIMER_32: u64 = 1 << 8;
const TIMER_ROUTE: u32 = 9;
/// What software may write: route, 32-bit mode, value set, periodic, interrupt, level.
const TIMER_WRITABLE: u64 = 0x1f << TIMER_ROUTE | TIMER_32 | TIMER_SET_VALUE | 0xe;
/// Able to be periodic, and of 64 bits.
const TIMER_ABLE: u64 = 1 << 4 | 1 << 5;

/// A periodic timer interrupts no sooner than this after it was last looked at, however short the guest's period is: it
/// must not keep the host busy. Periods that passed in between are one interrupt.
const SHORTEST: u64 = 100_000;

/// Where its interrupts go.
pub struct HpetLines {
    /// Inputs of the I/O APIC, 0 to 31, that software may choose from.
    pub routes: Vec<(u8, Arc<dyn IrqLine>)>,
    /// With legacy replacement: those of the interval timer (ISA 0) and of the clock (ISA 8).
    pub legacy: [Arc<dyn IrqLine>; 2],
    /// Legacy replacement is switched: while it is on, interval timer and clock reach neither line. Called from within
    /// the device, which it must not call back.
    pub replace: Box<dyn Fn(bool) + Send>,
}

#[derive(Clone, Copy)]
struct Comparator {
    config: u64,
    value: u64,
    /// As last written.
    period: u64,
}

impl Comparator {
    const NEW: Self = Self { config: 0, value: u64::MAX, period: 0 };

    fn has(&self, bit: u64) -> bool {
        self.config & bit != 0
    }

    fn mask(&self) -> u64 {
        if self.has(TIMER_32) { u32::MAX.into() } else { u64::MAX }
    }

    /// Ticks until the comparator is met after `counter`: one at least.
    fn distance(&self, counter: u64) -> u64 {
        let distance = self.value.wrapping_sub(counter) & self.mask();
        if distance != 0 { distance } else { self.mask().saturating_add(1) }
    }

    /// The counter has gone from `before` on by `ticks`: whether it met the comparator.
    fn met(&mut self, before: u64, ticks: u64) -> bool {
        let distance = self.distance(before);
        if ticks < distance {
            return false;
        }
        if self.has(TIMER_PERIODIC) && self.period != 0 {
            let periods = (ticks - distance) / self.period + 1;
            self.value = self.value.wrapping_add(periods.wrapping_mul(self.period)) & self.mask();
        }
        true
    }
}

/// The timer block.
pub struct Hpet {
    alarm: Alarm,
    routes: Vec<(u8, Line)>,
    legacy: [Line; 2],
    replace: Box<dyn Fn(bool) + Send>,
    config: u64,
    status: u64,
    timers: [Comparator; TIMERS],
    /// The counter while it stands still.
    halted: u64,
    /// While it runs: ticks of the clock at which it was, or would have been, zero.
    zero: u64,
    /// The counter when comparators were last looked at.
    seen: u64,
}

impl Hpet {
    /// A block that is off.
    pub fn new(timer: Arc<dyn Timer>, lines: HpetLines) -> Self {
        Self {
            alarm: Alarm::new(timer),
            routes: lines.routes.into_iter().map(|(input, line)| (input, Line::new(line))).collect(),
            legacy: lines.legacy.map(Line::new),
            replace: lines.replace,
            config: 0,
            status: 0,
            timers: [Comparator::NEW; TIMERS],
            halted: 0,
            zero: 0,
            seen: 0,
        }
    }

    fn is_enabled(&self) -> bool {
        self.config & CONFIG_ENABLE != 0
    }

    fn is_legacy(&self) -> bool {
        self.config & CONFIG_LEGACY != 0
    }

    fn counter(&self) -> u64 {
        if self.is_enabled() { (self.alarm.now() / TICK).wrapping_sub(self.zero) } else { self.halted }
    }

    /// The line of a timer now.
    fn line(&mut self, n: usize) -> Option<&mut Line> {
        if self.is_legacy() && n < 2 {
            return self.legacy.get_mut(n);
        }
        let route = self.timers.get(n)?.config >> TIMER_ROUTE & 0x1f;
        self.routes.iter_mut().find(|(input, _)| u64::from(*input) == route).map(|(_, line)| line)
    }

    /// Sees which comparators were met.
    fn sync(&mut self) {
        let counter = self.counter();
        let before = std::mem::replace(&mut self.seen, counter);
        let ticks = counter.wrapping_sub(before);
        if !self.is_enabled() || ticks == 0 {
            return;
        }
        for n in 0..TIMERS {
            let Some(timer) = self.timers.get_mut(n) else { continue };
            if !timer.met(before, ticks) {
                continue;
            }
            let (is_level, interrupts) = (timer.has(TIMER_LEVEL), timer.has(TIMER_INTERRUPT));
            if is_level {
                self.status |= 1 << n;
            } else if interrupts && let Some(line) = self.line(n) {
                // An edge.
                line.set(true);
                line.set(false);
            }
        }
    }

    /// Levels, and the time of the next one.
    fn update(&mut self) {
        let mut high = Vec::new();
        for n in 0..TIMERS {
            let raised =
                self.timers.get(n).is_some_and(|timer| timer.has(TIMER_INTERRUPT) && timer.has(TIMER_LEVEL));
            if raised && self.status >> n & 1 != 0 {
                high.push(n);
            }
        }
        // Several timers may share a line: it is high if one of them is.
        let (legacy, timers) = (self.is_legacy(), self.timers);
        let raises = |n: &usize, input: u8| {
            let routed =
                timers.get(*n).is_some_and(|timer| timer.config >> TIMER_ROUTE & 0x1f == u64::from(input));
            routed && !(legacy && *n < 2)
        };
        for (input, line) in &mut self.routes {
            line.set(high.iter().any(|n| raises(n, *input)));
        }
        for (n, line) in self.legacy.iter_mut().enumerate() {
            line.set(legacy && high.contains(&n));
        }
        let at = self.next_event();
        self.alarm.arm(at);
    }

    fn next_event(&self) -> Option<u64> {
        if !self.is_enabled() {
            return None;
        }
        let now = self.alarm.now();
        let mut at = None;
        for (n, timer) in self.timers.iter().enumerate() {
            let pending = timer.has(TIMER_LEVEL) && self.status >> n & 1 != 0;
            if !timer.has(TIMER_INTERRUPT) || pending {
                continue;
            }
            let counted = self.zero.wrapping_add(self.seen);
            let due = counted.checked_add(timer.distance(self.seen)).and_then(|tick| tick.checked_mul(TICK));
            // A single shot may be as near as it likes: there is one for each write of the guest's.
            let soonest = if timer.has(TIMER_PERIODIC) { now.saturating_add(SHORTEST) } else { now };
            at = earlier(at, due.map(|due| due.max(soonest)));
        }
        at
    }

    fn register(&self, register: u64) -> u64 {
        match register {
            0 => CAPABILITIES,
            REG_CONFIG => self.config,
            REG_STATUS => self.status,
            REG_COUNTER => self.counter(),
            _ => {
                let (n, field) = timer_register(register);
                let Some(timer) = self.timers.get(n) else { return 0 };
                match field {
                    0 => {
                        let routes: u64 =
                            self.routes.iter().fold(0, |mask, (input, _)| mask | 1 << (input & 31));
                        routes << 32 | TIMER_ABLE | timer.config
                    }
                    8 => timer.value,
                    // Interrupts as messages are not offered.
                    _ => 0,
                }
            }
        }
    }

    fn set_config(&mut self, value: u64) {
        let (counter, before) = (self.counter(), self.config);
        self.config = value & (CONFIG_ENABLE | CONFIG_LEGACY);
        let changed = before ^ self.config;
        if changed & CONFIG_ENABLE != 0 {
            self.halted = counter;
            self.zero = (self.alarm.now() / TICK).wrapping_sub(counter);
            self.seen = counter;
        }
        if changed & CONFIG_LEGACY != 0 {
            (self.replace)(self.is_legacy());
        }
    }

    /// `mask` has the bits that are written.
    fn set_register(&mut self, register: u64, value: u64, mask: u64) {
        let merged = self.register(register) & !mask | value & mask;
        match register {
            REG_CONFIG => self.set_config(merged),
            REG_STATUS => self.status &= !(value & mask),
            // While it runs, writes to the counter are not defined: they are lost.
            REG_COUNTER if !self.is_enabled() => (self.halted, self.seen) = (merged, merged),
            _ => {
                let (n, field) = timer_register(register);
                let Some(timer) = self.timers.get_mut(n) else { return };
                match field {
                    0 => {
                        timer.config = merged & TIMER_WRITABLE;
                        timer.value &= timer.mask();
                        timer.period &= timer.mask();
                        if !timer.has(TIMER_LEVEL) {
                            self.status &= !(1 << n);
                        }
                    }
                    8 => {
                        let merged = merged & timer.mask();
                        let is_periodic = timer.has(TIMER_PERIODIC);
                        if is_periodic {
                            timer.period = timer.period & !mask & timer.mask() | value & mask & timer.mask();
                        }
                        if !is_periodic || timer.has(TIMER_SET_VALUE) {
                            timer.value = merged;
                        }
                        // Of a value that is written in halves, the upper one is the last.
                        if mask >> 32 != 0 || timer.has(TIMER_32) {
                            timer.config &= !TIMER_SET_VALUE;
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Number of the timer, and the register's offset in it.
fn timer_register(register: u64) -> (usize, u64) {
    let Some(offset) = register.checked_sub(REG_TIMERS) else { return (usize::MAX, 0) };
    (usize::try_from(offset / TIMER_STRIDE).unwrap_or(usize::MAX), offset % TIMER_STRIDE)
}

impl Registers for Hpet {
    fn read(&mut self, _: Region, offset: u64, data: &mut [u8]) {
        self.sync();
        read_le(self.register(offset & !7), offset & 7, data);
        self.update();
    }

    fn write(&mut self, _: Region, offset: u64, data: &[u8]) {
        self.sync();
        let shift = (offset & 7) * 8;
        let bits = data.len().min(8) * 8;
        let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        self.set_register(offset & !7, value_le(data) << shift, mask << shift);
        self.update();
    }

    fn expired(&mut self) {
        self.alarm.expired();
        self.sync();
        self.update();
    }

    fn reset(&mut self) {
        self.set_config(0);
        (self.status, self.timers) = (0, [Comparator::NEW; TIMERS]);
        (self.halted, self.seen) = (0, 0);
        self.update();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
