//! The clock with its battery: MC146818, and the CMOS memory behind it.
//!
//! Source: Motorola MC146818A data sheet; Dallas DS12887 for the century and the time base; Intel PIIX4 for the
//! extended bank at ports 0x72 and 0x73.
//!
//! Nothing ticks here. Flags are what has happened since they were last looked at; a timer is armed only for an
//! interrupt that is enabled and not yet pending.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::calendar::DateTime;
use super::cmos::CMOS_SIZE;
use super::{Alarm, Line, Ports, SECOND, earlier, low, read_each, write_each};
use crate::bus::{IrqLine, Region, Registers, Timer};

/// Ports of the two banks of memory: an index and a data port each.
pub const RTC_PORTS: [Ports; 2] =
    [Ports { base: 0x70, len: 2, region: BANK_0 }, Ports { base: 0x72, len: 2, region: BANK_1 }];
/// ISA interrupt of the clock.
pub const RTC_IRQ: u8 = 8;

const BANK_0: Region = 0;
const BANK_1: Region = 1;

const SECONDS_ALARM: usize = 1;
const MINUTES_ALARM: usize = 3;
const HOURS_ALARM: usize = 5;
const REGISTER_A: usize = 10;
const REGISTER_B: usize = 11;
const REGISTER_C: usize = 12;
const REGISTER_D: usize = 13;
/// Indexes of seconds, minutes, hours, day of the week (1 is Sunday), day, month, year, century.
const TIME: [usize; 8] = [0, 2, 4, 6, 7, 8, 9, 0x32];

/// Register A: an update is near or under way.
const UIP: u8 = 0x80;
/// Register A: stages of the divider that are held in reset.
const DIVIDER: u8 = 0x70;
const DIVIDER_RESET: u8 = 0x60;
const RATE: u8 = 0x0f;

/// Register B: no updates, enable of three interrupts (as in register C), binary, 24 hours.
const SET: u8 = 0x80;
const DM: u8 = 0x04;
const H24: u8 = 0x02;

/// Register C: request, and its three causes.
const IRQF: u8 = 0x80;
const PF: u8 = 0x40;
const AF: u8 = 0x20;
const UF: u8 = 0x10;
const CAUSES: u8 = PF | AF | UF;

/// Register D: the battery is good.
const VRT: u8 = 0x80;

/// In an alarm register: any value will do.
const ANY: u8 = 0xc0;
/// In a register of hours of 12: afternoon.
const PM: u8 = 0x80;

/// Cycles of the crystal in a second.
const CRYSTAL: u64 = 32_768;
/// UIP is set 244 µs before an update, and an update takes 1984 µs (table 4 of the data sheet).
const UPDATE: u64 = 2_228_000;
/// From the release of the divider to the first update.
const AFTER_RELEASE: u64 = SECOND / 2;
/// Periodic interrupts that a guest did not take are kept for this many seconds: what it slept longer is lost, and it
/// gets no storm of them.
const OWED_SECONDS: u64 = 10;
/// Between the acknowledgement of an interrupt and the next one that makes up for a lost one: at most this, and at
/// most a quarter of the period. Some guests read register C twice; at once, the second read would swallow it.
const MAKE_UP: u64 = SECOND / 1000;

/// What a clock that the guest sees shows at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTime {
    /// Nanoseconds since 1 January 1970 of the zone that the clock keeps.
    pub nanos: i64,
}

impl HostTime {
    /// The host's time: of its zone (as Windows likes it) or UTC.
    pub fn now(localtime: bool) -> Self {
        let nanos = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
        let zone = if localtime { zone_offset(nanos / SECOND.cast_signed()) } else { 0 };
        Self { nanos: nanos.saturating_add(zone.saturating_mul(SECOND.cast_signed())) }
    }
}

/// Seconds east of UTC of the host's zone at that time.
fn zone_offset(seconds: i64) -> i64 {
    // SAFETY: a struct of numbers and a pointer, for which zero is a value.
    let mut time: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to values of ours.
    let known = unsafe { !libc::localtime_r(&raw const seconds, &raw mut time).is_null() };
    if known { time.tm_gmtoff } else { 0 }
}

/// The clock.
pub struct Rtc {
    line: Line,
    alarm: Alarm,
    /// Bank 0 and bank 1. The clock's own registers: alarm, A and B are kept here, the time is not.
    ram: [u8; CMOS_SIZE],
    index: [u8; 2],
    causes: u8,
    /// The divider shows [`Timer::now`] and this.
    phase: u64,
    /// The time in seconds is that of the divider and this.
    offset: i64,
    /// Days from the date's own day of the week to the one that the guest set.
    weekday: u8,
    /// The time as its registers hold it while it stands still.
    held: Option<[u8; 8]>,
    /// Flags are right up to this time.
    synced: u64,
    /// Periodic interrupts to be made up, and when the next of them is due.
    owed: u64,
    make_up: Option<u64>,
}

impl Rtc {
    /// A clock that shows `start` now, with `cmos` as its memory.
    pub fn new(irq: Arc<dyn IrqLine>, timer: Arc<dyn Timer>, cmos: [u8; CMOS_SIZE], start: HostTime) -> Self {
        let now = timer.now();
        let mut rtc = Self {
            line: Line::new(irq),
            alarm: Alarm::new(timer),
            ram: cmos,
            index: [0; 2],
            causes: 0,
            phase: 0,
            offset: 0,
            weekday: 0,
            held: None,
            synced: now,
            owed: 0,
            make_up: None,
        };
        rtc.put(REGISTER_A, 0x26);
        rtc.put(REGISTER_B, H24);
        let nanos = SECOND.cast_signed();
        rtc.set_phase(now, start.nanos.rem_euclid(nanos).cast_unsigned());
        rtc.offset = start.nanos.div_euclid(nanos) - rtc.divider_seconds(now);
        rtc
    }

    /// The time that the clock shows, in seconds since 1970: what the guest made of the host's.
    pub fn seconds(&self) -> i64 {
        match &self.held {
            Some(held) => self.decode(held).seconds(),
            None => self.second_at(self.alarm.now()),
        }
    }

    /// Whether the guest does not want to be interrupted by NMIs.
    pub fn is_nmi_masked(&self) -> bool {
        self.index[0] & 0x80 != 0
    }

    fn byte(&self, at: usize) -> u8 {
        self.ram.get(at).copied().unwrap_or(0xff)
    }

    fn put(&mut self, at: usize, value: u8) {
        if let Some(byte) = self.ram.get_mut(at) {
            *byte = value;
        }
    }

    // The divider, and what counts with it.

    fn divider(&self, now: u64) -> u64 {
        now.saturating_add(self.phase)
    }

    fn divider_seconds(&self, now: u64) -> i64 {
        (self.divider(now) / SECOND).cast_signed()
    }

    /// Lets the divider show `nanos` of a second now.
    fn set_phase(&mut self, now: u64, nanos: u64) {
        self.phase = (nanos + SECOND - now % SECOND) % SECOND;
    }

    fn divider_runs(&self) -> bool {
        self.byte(REGISTER_A) & DIVIDER_RESET != DIVIDER_RESET
    }

    fn second_at(&self, now: u64) -> i64 {
        self.divider_seconds(now).saturating_add(self.offset)
    }

    /// When the divider has come to so many seconds of the clock.
    fn time_of_second(&self, second: i64) -> Option<u64> {
        let divider = u64::try_from(second.checked_sub(self.offset)?).ok()?.checked_mul(SECOND)?;
        divider.checked_sub(self.phase)
    }

    /// Cycles of the crystal between two periodic interrupts (table 5 of the data sheet).
    fn period(&self) -> Option<u64> {
        let a = self.byte(REGISTER_A);
        let slow = a & DIVIDER >= 0x20;
        match a & RATE {
            0 => None,
            rate @ 1..=2 if slow => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Periods that the divider has counted.
    fn ticks(&self, now: u64, period: u64) -> u64 {
        let cycles = u128::from(self.divider(now)) * u128::from(CRYSTAL) / u128::from(SECOND);
        u64::try_from(cycles / u128::from(period)).unwrap_or(u64::MAX)
    }

    fn time_of_tick(&self, tick: u64, period: u64) -> Option<u64> {
        let nanos = u128::from(tick) * u128::from(period) * u128::from(SECOND);
        u64::try_from(nanos.div_ceil(u128::from(CRYSTAL))).ok()?.checked_sub(self.phase)
    }

    // The time in its registers.

    fn encode_number(&self, value: u8) -> u8 {
        if self.byte(REGISTER_B) & DM != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decode_number(&self, value: u8) -> u8 {
        if self.byte(REGISTER_B) & DM != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.byte(REGISTER_B) & H24 != 0 {
            return self.encode_number(hour);
        }
        let of_12 = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode_number(of_12) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.byte(REGISTER_B) & H24 != 0 {
            return self.decode_number(value).min(23);
        }
        self.decode_number(value & !PM) % 12 + if value & PM != 0 { 12 } else { 0 }
    }

    fn encode(&self, second: i64) -> [u8; 8] {
        let time = DateTime::from_seconds(second);
        let year = time.year.rem_euclid(10_000).cast_unsigned();
        [
            self.encode_number(time.second),
            self.encode_number(time.minute),
            self.encode_hour(time.hour),
            (time.weekday() + self.weekday) % 7 + 1,
            self.encode_number(time.day),
            self.encode_number(time.month),
            self.encode_number(low(year % 100)),
            self.encode_number(low(year / 100)),
        ]
    }

    fn decode(&self, held: &[u8; 8]) -> DateTime {
        let [second, minute, hour, _, day, month, year, century] = *held;
        DateTime {
            year: i64::from(self.decode_number(century)) * 100 + i64::from(self.decode_number(year)),
            month: self.decode_number(month).clamp(1, 12),
            day: self.decode_number(day).clamp(1, 31),
            hour: self.decode_hour(hour),
            minute: self.decode_number(minute).min(59),
            second: self.decode_number(second).min(59),
        }
    }

    fn time_registers(&self, now: u64) -> [u8; 8] {
        self.held.unwrap_or_else(|| self.encode(self.second_at(now)))
    }

    /// Goes on from what the registers hold.
    fn take_over(&mut self, now: u64, held: [u8; 8]) {
        let time = self.decode(&held);
        self.offset = time.seconds().saturating_sub(self.divider_seconds(now));
        let weekday = held[3].saturating_sub(1) % 7;
        self.weekday = (weekday + 7 - time.weekday()) % 7;
    }

    /// The next second after `after` at which the alarm goes off.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let fits = |at: usize, value: u8| {
            let wanted = self.byte(at);
            wanted >= ANY || wanted == value
        };
        let start = after.checked_add(1)?;
        let (day, of_day) = (start.div_euclid(86_400), start.rem_euclid(86_400));
        let in_hour = |hour: i64, from: i64| {
            let minutes = (from / 60..60)
                .filter(|minute| fits(MINUTES_ALARM, self.encode_number(low(minute.cast_unsigned()))));
            for minute in minutes {
                let from = if minute == from / 60 { from % 60 } else { 0 };
                let second = (from..60)
                    .find(|second| fits(SECONDS_ALARM, self.encode_number(low(second.cast_unsigned()))));
                if let Some(second) = second {
                    return Some(hour * 3600 + minute * 60 + second);
                }
            }
            None
        };
        // The hour that has begun, those after it, and its beginning tomorrow.
        let first = of_day / 3600;
        for hour in first..=first + 24 {
            let from = if hour == first { of_day % 3600 } else { 0 };
            if fits(HOURS_ALARM, self.encode_hour(low((hour % 24).cast_unsigned())))
                && let Some(second) = in_hour(hour, from)
            {
                return day.checked_mul(86_400)?.checked_add(second);
            }
        }
        None
    }

    // Flags and interrupts.

    /// Notes what has happened until now.
    fn sync(&mut self) -> u64 {
        let now = self.alarm.now().max(self.synced);
        let last = std::mem::replace(&mut self.synced, now);
        if now > last && self.divider_runs() {
            if let Some(period) = self.period() {
                let ticks = self.ticks(now, period).saturating_sub(self.ticks(last, period));
                self.tick(ticks, period);
            }
            let (before, after) = (self.second_at(last), self.second_at(now));
            if self.held.is_none() && after > before {
                self.causes |= UF;
                if self.next_alarm(before).is_some_and(|at| at <= after) {
                    self.causes |= AF;
                }
            }
        }
        if self.make_up.is_some_and(|at| at <= now) && self.causes & PF == 0 && self.owed > 0 {
            self.owed -= 1;
            self.causes |= PF;
            self.make_up = None;
        }
        now
    }

    /// So many periods ended.
    fn tick(&mut self, ticks: u64, period: u64) {
        if ticks == 0 {
            return;
        }
        let missed = if self.causes & PF == 0 { ticks - 1 } else { ticks };
        self.causes |= PF;
        if self.byte(REGISTER_B) & PF != 0 {
            let most = (OWED_SECONDS * CRYSTAL / period).max(1);
            self.owed = self.owed.saturating_add(missed).min(most);
        }
    }

    /// Sets the line, and arms the timer for what would change it.
    fn update(&mut self, now: u64) {
        let enabled = self.byte(REGISTER_B) & CAUSES;
        let pending = self.causes & enabled != 0;
        self.line.set(pending);
        let mut at = None;
        if !pending && self.divider_runs() {
            if enabled & PF != 0
                && let Some(period) = self.period()
            {
                let next = self.ticks(now, period).checked_add(1);
                at = next.and_then(|tick| self.time_of_tick(tick, period));
                at = earlier(at, self.make_up);
            }
            if self.held.is_none() {
                let second = self.second_at(now);
                if enabled & UF != 0 {
                    at = earlier(at, second.checked_add(1).and_then(|next| self.time_of_second(next)));
                }
                if enabled & AF != 0 {
                    at = earlier(at, self.next_alarm(second).and_then(|next| self.time_of_second(next)));
                }
            }
        }
        self.alarm.arm(at);
    }

    /// Reading register C acknowledges.
    fn acknowledge(&mut self, now: u64) -> u8 {
        let request = if self.line.is_high() { IRQF } else { 0 };
        let causes = std::mem::take(&mut self.causes);
        if causes & PF != 0 && self.owed > 0 {
            let quarter = self.period().map_or(0, |period| period * SECOND / CRYSTAL / 4);
            self.make_up = Some(now + quarter.min(MAKE_UP));
        }
        request | causes
    }

    fn forget_missed(&mut self) {
        (self.owed, self.make_up) = (0, None);
    }

    fn read_register(&mut self, at: usize) -> u8 {
        let now = self.sync();
        self.update(now);
        if let Some(n) = TIME.iter().position(|place| *place == at) {
            return self.time_registers(now).get(n).copied().unwrap_or(0xff);
        }
        match at {
            REGISTER_A => {
                let near = self.divider(now) % SECOND >= SECOND - UPDATE;
                self.byte(at) | if near && self.held.is_none() { UIP } else { 0 }
            }
            REGISTER_C => {
                let value = self.acknowledge(now);
                self.update(now);
                value
            }
            REGISTER_D => VRT,
            _ => self.byte(at),
        }
    }

    fn write_register(&mut self, at: usize, value: u8) {
        let now = self.sync();
        if let Some(n) = TIME.iter().position(|place| *place == at) {
            let mut time = self.time_registers(now);
            if let Some(register) = time.get_mut(n) {
                *register = value;
            }
            match &mut self.held {
                Some(held) => *held = time,
                None => self.take_over(now, time),
            }
        } else {
            match at {
                REGISTER_A => self.write_a(now, value & !UIP),
                REGISTER_B => self.write_b(now, value),
                REGISTER_C | REGISTER_D => {}
                _ => self.put(at, value),
            }
        }
        self.update(now);
    }

    fn write_a(&mut self, now: u64, value: u8) {
        let ran = self.divider_runs();
        if (self.byte(REGISTER_A) ^ value) & (RATE | DIVIDER) != 0 {
            self.forget_missed();
        }
        let time = self.time_registers(now);
        self.put(REGISTER_A, value);
        match (ran, self.divider_runs()) {
            (true, false) => self.held = Some(time),
            (false, true) => {
                self.set_phase(now, AFTER_RELEASE);
                self.release(now);
            }
            _ => {}
        }
    }

    fn write_b(&mut self, now: u64, value: u8) {
        // Updates that are switched off interrupt no more.
        let value = if value & SET != 0 { value & !UF } else { value };
        if value & PF == 0 {
            self.forget_missed();
        }
        let time = self.time_registers(now);
        self.put(REGISTER_B, value);
        if value & SET != 0 {
            self.held = Some(time);
        } else {
            self.release(now);
        }
    }

    /// The time goes on, unless something else holds it.
    fn release(&mut self, now: u64) {
        if self.byte(REGISTER_B) & SET == 0
            && self.divider_runs()
            && let Some(held) = self.held.take()
        {
            self.take_over(now, held);
        }
    }
}

impl Registers for Rtc {
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        read_each(offset, data, |port| match (region, port) {
            (BANK_0, 1) => self.read_register(usize::from(self.index[0] & 0x7f)),
            (BANK_1, 1) => self.byte(usize::from(self.index[1] & 0x7f) + CMOS_SIZE / 2),
            _ => 0xff,
        });
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        write_each(offset, data, |port, value| match (region, port) {
            (BANK_0, 0) => self.index[0] = value,
            (BANK_1, 0) => self.index[1] = value,
            (BANK_0, 1) => self.write_register(usize::from(self.index[0] & 0x7f), value),
            (BANK_1, 1) => self.put(usize::from(self.index[1] & 0x7f) + CMOS_SIZE / 2, value),
            _ => {}
        });
    }

    fn expired(&mut self) {
        self.alarm.expired();
        let now = self.sync();
        self.update(now);
    }

    /// The battery keeps time and memory; interrupts are off.
    fn reset(&mut self) {
        let now = self.sync();
        self.causes = 0;
        self.index = [0; 2];
        // The square wave goes off as well.
        self.write_b(now, self.byte(REGISTER_B) & !(CAUSES | 0x08));
        self.update(now);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
mod tests;
