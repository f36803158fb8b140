use super::super::manual::{ManualLine, ManualTimer, inb, outb};
use super::*;

/// 2001-10-25 23:59:58, a Thursday: when XP came.
const START: i64 = 1_004_054_398;
const MS: u64 = SECOND / 1000;

struct Bench {
    rtc: Rtc,
    timer: Arc<ManualTimer>,
    line: Arc<ManualLine>,
}

impl Bench {
    fn at(seconds: i64) -> Self {
        let (timer, line) = (Arc::new(ManualTimer::default()), Arc::new(ManualLine::default()));
        timer.set(5 * SECOND + 300 * MS);
        let start = HostTime { nanos: seconds * SECOND as i64 };
        let rtc = Rtc::new(Arc::clone(&line) as _, Arc::clone(&timer) as _, [0; CMOS_SIZE], start);
        Self { rtc, timer, line }
    }

    fn read(&mut self, register: u8) -> u8 {
        outb(&mut self.rtc, BANK_0, 0, register);
        inb(&mut self.rtc, BANK_0, 1)
    }

    fn write(&mut self, register: u8, value: u8) {
        // Index and data at once, as with a 16-bit instruction.
        self.rtc.write(BANK_0, 0, &[register, value]);
    }

    /// Time passes; how often the device was woken.
    fn pass(&mut self, nanos: u64) -> u32 {
        let until = self.timer.now() + nanos;
        self.timer.run(&mut self.rtc, until)
    }

    fn time(&mut self) -> [u8; 8] {
        TIME.map(|at| self.read(at as u8))
    }
}

#[test]
fn the_time_is_told_in_each_of_four_ways() {
    // Seconds, minutes, hours, weekday, day, month, year, century.
    for (b, time, later) in [
        (0x02, [0x58, 0x59, 0x23, 5, 0x25, 0x10, 0x01, 0x20], [0, 0, 0, 6, 0x26, 0x10, 0x01, 0x20]),
        (0x06, [58, 59, 23, 5, 25, 10, 1, 20], [0, 0, 0, 6, 26, 10, 1, 20]),
        (0x00, [0x58, 0x59, 0x91, 5, 0x25, 0x10, 0x01, 0x20], [0, 0, 0x12, 6, 0x26, 0x10, 0x01, 0x20]),
        (0x04, [58, 59, 0x8b, 5, 25, 10, 1, 20], [0, 0, 12, 6, 26, 10, 1, 20]),
    ] {
        let mut bench = Bench::at(START);
        bench.write(0x0b, b);
        assert_eq!(bench.time(), time, "{b:#x}");
        assert_eq!(bench.pass(2 * SECOND), 0, "no interrupt is enabled");
        assert_eq!(bench.time(), later, "{b:#x}");
    }
}

#[test]
fn hours_of_twelve_go_there_and_back() {
    // Table 3 of the data sheet: 1 to 12, and 0x81 to 0x92 after noon.
    let bcd = |hour: u8| hour / 10 * 16 + hour % 10;
    for hour in 0..24 {
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        let pm = if hour >= 12 { 0x80 } else { 0 };
        for (b, raw) in [(0x00, bcd(twelve) | pm), (0x04, twelve | pm), (0x02, bcd(hour)), (0x06, hour)] {
            let mut bench = Bench::at(0);
            bench.write(0x0b, 0x80 | b);
            bench.write(4, raw);
            bench.write(0x0b, b);
            let of_day = bench.rtc.seconds().rem_euclid(86_400);
            assert_eq!((of_day, bench.read(4)), (i64::from(hour) * 3600, raw), "{b:#x}");
        }
    }
}

#[test]
fn the_guest_sets_the_time_while_updates_are_off() {
    let mut bench = Bench::at(START);
    bench.write(0x0b, 0x92);
    assert_eq!(bench.read(0x0b), 0x82, "SET clears the enable of update interrupts");
    // Leap day of 2024, a Thursday, one second before noon; the guest calls it a Tuesday.
    for (at, value) in [(0, 0x59), (2, 0x59), (4, 0x11), (6, 3), (7, 0x29), (8, 0x02), (9, 0x24)] {
        bench.write(at, value);
    }
    bench.pass(10 * SECOND);
    assert_eq!(bench.read(0x0c) & UF, 0, "nothing was updated");
    assert_eq!(bench.read(0x0a) & UIP, 0);
    bench.write(0x0b, 0x02);
    assert_eq!(bench.time(), [0x59, 0x59, 0x11, 3, 0x29, 0x02, 0x24, 0x20]);
    bench.pass(SECOND);
    assert_eq!(bench.time(), [0, 0, 0x12, 3, 0x29, 0x02, 0x24, 0x20]);
    bench.pass(12 * 3600 * SECOND);
    assert_eq!(bench.time(), [0, 0, 0, 4, 0x01, 0x03, 0x24, 0x20]);
    // The host's time is not forgotten by a reset: the difference stays.
    bench.rtc.reset();
    assert_eq!(bench.time(), [0, 0, 0, 4, 0x01, 0x03, 0x24, 0x20]);
}

#[test]
fn registers_may_be_set_without_stopping_and_hold_nonsense() {
    let mut bench = Bench::at(START);
    bench.write(4, 0x05);
    assert_eq!(bench.time()[..3], [0x58, 0x59, 0x05]);
    for value in 0..=255 {
        for at in TIME {
            bench.write(at as u8, value);
        }
        bench.write(0x0b, 0x80 | (value & 6));
        bench.write(0x0b, value & 6);
        bench.pass(SECOND);
        bench.time();
    }
}

#[test]
fn the_divider_counts_half_a_second_after_its_release() {
    let mut bench = Bench::at(START);
    bench.write(0x0a, 0x76);
    bench.pass(100 * SECOND);
    assert_eq!(bench.time()[0], 0x58);
    bench.write(0x0a, 0x26);
    bench.pass(499 * MS);
    assert_eq!(bench.time()[0], 0x58);
    bench.pass(2 * MS);
    assert_eq!(bench.time()[0], 0x59);
}

#[test]
fn an_update_is_announced() {
    let mut bench = Bench::at(START);
    bench.pass(SECOND - UPDATE - 1);
    assert_eq!(bench.read(0x0a), 0x26);
    bench.pass(1);
    assert_eq!((bench.read(0x0a), bench.read(0)), (0xa6, 0x58));
    bench.pass(UPDATE - 1);
    assert_eq!((bench.read(0x0a), bench.read(0)), (0xa6, 0x58));
    bench.pass(1);
    assert_eq!((bench.read(0x0a), bench.read(0), bench.read(0x0c)), (0x26, 0x59, PF | UF));
    assert_eq!((bench.line.is_high(), bench.read(0x0c)), (false, 0));
    bench.write(0x0a, 0xa6);
    assert_eq!(bench.read(0x0a), 0x26, "UIP is not written");
}

#[test]
fn rates_are_those_of_the_data_sheet() {
    // Table 5: microseconds, for 32.768 kHz, and for the faster time bases.
    let table = [
        (0, 0.0, 0.0),
        (1, 3906.25, 30.517_578),
        (2, 7812.5, 61.035_156),
        (3, 122.070_312, 122.070_312),
        (4, 244.140_625, 244.140_625),
        (5, 488.281_25, 488.281_25),
        (6, 976.562_5, 976.562_5),
        (7, 1953.125, 1953.125),
        (8, 3906.25, 3906.25),
        (9, 7812.5, 7812.5),
        (10, 15_625.0, 15_625.0),
        (11, 31_250.0, 31_250.0),
        (12, 62_500.0, 62_500.0),
        (13, 125_000.0, 125_000.0),
        (14, 250_000.0, 250_000.0),
        (15, 500_000.0, 500_000.0),
    ];
    for (rate, slow, fast) in table {
        for (divider, micros) in [(0x20, slow), (0x10, fast), (0x00, fast)] {
            let mut bench = Bench::at(START);
            bench.write(0x0a, divider | rate);
            bench.write(0x0b, 0x42);
            if rate == 0 {
                assert_eq!(bench.timer.armed(), None);
                continue;
            }
            let mut times = Vec::new();
            for _ in 0..3 {
                let at = bench.timer.armed().unwrap();
                times.push(at as f64);
                bench.pass(at - bench.timer.now());
                assert_eq!((bench.line.rises(), bench.read(0x0c) & !UF), (1, IRQF | PF));
            }
            for pair in times.windows(2) {
                assert!((pair[1] - pair[0] - micros * 1000.0).abs() < 2.0, "rate {rate}: {times:?}");
            }
        }
    }
}

#[test]
fn no_tick_of_a_second_is_lost() {
    let mut bench = Bench::at(START);
    bench.write(0x0b, 0x42);
    let end = bench.timer.now() + SECOND;
    let mut ticks = 0;
    while let Some(at) = bench.timer.armed().filter(|at| *at <= end) {
        bench.timer.run(&mut bench.rtc, at);
        ticks += bench.line.rises();
        bench.read(0x0c);
    }
    assert_eq!(ticks, 1024);
}

#[test]
fn missed_ticks_are_made_up_as_fast_as_the_guest_acknowledges() {
    let mut bench = Bench::at(START);
    bench.write(0x0b, 0x42);
    assert_eq!(bench.pass(SECOND), 1, "an interrupt that waits needs no timer");
    let mut ticks = 0;
    let start = bench.timer.now();
    // Each is acknowledged twice at once, as a guest does that trusts no chip.
    while bench.timer.now() < start + SECOND {
        ticks += bench.line.rises();
        if bench.line.is_high() {
            assert_eq!(bench.read(0x0c) & !UF, IRQF | PF);
            assert_eq!(bench.read(0x0c), 0);
        }
        let at = bench.timer.armed().unwrap();
        bench.timer.run(&mut bench.rtc, at);
    }
    ticks += bench.line.rises();
    assert_eq!((ticks, bench.rtc.owed), (2048, 0));
    // Ten seconds are made up at most; and nothing once the guest wants none.
    bench.read(0x0c);
    bench.pass(3600 * SECOND);
    bench.read(0x00);
    assert_eq!(bench.rtc.owed, 10 * 1024);
    bench.write(0x0b, 0x02);
    bench.write(0x0b, 0x42);
    bench.read(0x0c);
    assert_eq!(bench.rtc.owed, 0);
}

#[test]
fn the_alarm_goes_off_by_pattern() {
    // From 23:59:58: alarm of hours, minutes, seconds, and in how many seconds.
    for (b, alarm, after) in [
        (0x22, [0x00, 0x00, 0x00], 2),
        (0x22, [0x23, 0x59, 0x59], 1),
        (0x22, [0x23, 0x59, 0x58], 86_400),
        (0x22, [0xff, 0xff, 0xff], 1),
        (0x22, [0xc0, 0xc0, 0x30], 32),
        (0x22, [0xff, 0x10, 0x05], 2 + 605),
        (0x22, [0x07, 0xff, 0xff], 2 + 7 * 3600),
        (0x22, [0x07, 0xff, 0x09], 2 + 7 * 3600 + 9),
        (0x22, [0xff, 0x59, 0x57], 3600 - 1),
        (0x26, [7, 30, 15], 2 + 7 * 3600 + 30 * 60 + 15),
        (0x20, [0x12, 0x00, 0x00], 2),
        (0x20, [0x92, 0x00, 0x00], 2 + 12 * 3600),
        (0x24, [0x81, 5, 0], 2 + 13 * 3600 + 300),
    ] {
        let mut bench = Bench::at(START);
        bench.write(0x0b, b);
        for (at, value) in [5, 3, 1].into_iter().zip(alarm) {
            bench.write(at, value);
        }
        let start = bench.timer.now();
        assert_eq!(bench.timer.armed(), Some(start + after * SECOND), "{b:#x} {alarm:x?}");
        bench.pass(after * SECOND - 1);
        assert!(!bench.line.is_high());
        assert_eq!(bench.pass(1), 1);
        assert_eq!((bench.line.rises(), bench.read(0x0c)), (1, IRQF | PF | AF | UF));
    }
    // No such time; and no interrupt asked for, but a flag.
    let mut bench = Bench::at(START);
    bench.write(0x0b, 0x22);
    bench.write(1, 0x60);
    assert_eq!(bench.timer.armed(), None);
    bench.write(0x0b, 0x02);
    for at in [1, 3, 5] {
        bench.write(at, 0);
    }
    bench.pass(SECOND);
    assert_eq!(bench.read(0x0c), PF | UF);
    bench.pass(SECOND);
    assert_eq!((bench.read(0x0c), bench.line.rises()), (PF | AF | UF, 0));
}

#[test]
fn updates_interrupt_once_a_second_until_acknowledged() {
    let mut bench = Bench::at(START);
    bench.write(0x0b, 0x12);
    assert_eq!(bench.pass(5 * SECOND), 1);
    assert_eq!((bench.line.rises(), bench.read(0x0c) & !AF), (1, IRQF | PF | UF));
    assert_eq!(bench.pass(SECOND), 1);
    assert!(bench.line.is_high());
    bench.rtc.reset();
    assert_eq!((bench.line.is_high(), bench.timer.armed(), bench.read(0x0b)), (false, None, 0x02));
}

#[test]
fn a_flag_that_stands_interrupts_when_it_is_enabled() {
    let mut bench = Bench::at(START);
    bench.pass(SECOND);
    bench.read(0x00);
    assert!(!bench.line.is_high());
    bench.write(0x0b, 0x12);
    assert!(bench.line.is_high());
    bench.write(0x0b, 0x02);
    assert!(!bench.line.is_high());
}

#[test]
fn memory_has_two_banks_and_the_index_a_mask_for_nmis() {
    let mut bench = Bench::at(START);
    for at in (14..128).filter(|at| *at != 0x32) {
        bench.write(at, !at);
    }
    for at in 0..128 {
        bench.rtc.write(BANK_1, 0, &[0x80 | at, at]);
    }
    for at in (14..128).filter(|at| *at != 0x32) {
        assert_eq!(bench.read(0x80 | at), !at);
        assert!(bench.rtc.is_nmi_masked());
    }
    for at in 0..128 {
        outb(&mut bench.rtc, BANK_1, 0, at);
        assert_eq!((inb(&mut bench.rtc, BANK_1, 1), inb(&mut bench.rtc, BANK_1, 0)), (at, 0xff));
    }
    for at in [0x0c, 0x0d] {
        bench.write(at, 0x55);
    }
    assert_eq!((bench.read(0x0c), bench.read(0x0d), bench.read(0x7f)), (0, VRT, !0x7f));
    assert!(!bench.rtc.is_nmi_masked());
}

#[test]
fn the_hosts_time_is_told_in_its_zone() {
    let (utc, local) = (HostTime::now(false), HostTime::now(true));
    let zone = zone_offset(utc.nanos / SECOND as i64);
    assert!(zone.abs() <= 14 * 3600);
    let difference = local.nanos - utc.nanos - zone * SECOND as i64;
    assert!((0..60 * SECOND as i64).contains(&difference), "{difference}");
}

#[test]
fn a_call_in_vain_leaves_no_timer_behind() {
    let mut bench = Bench::at(START);
    bench.write(0x0b, 0x42);
    // The interrupt is due, and the call comes before the timer's own.
    bench.timer.advance(SECOND);
    bench.rtc.expired();
    assert_eq!((bench.line.is_high(), bench.timer.armed()), (true, None));
}
