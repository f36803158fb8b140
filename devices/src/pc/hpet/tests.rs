use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::super::manual::{ManualLine, ManualTimer};
use super::*;

const MS: u64 = 1_000_000;

struct Bench {
    hpet: Hpet,
    timer: Arc<ManualTimer>,
    /// Inputs 2, 8 and 20, and the two of the legacy.
    lines: [Arc<ManualLine>; 5],
    replaced: Arc<AtomicBool>,
}

impl Bench {
    fn new() -> Self {
        let timer = Arc::new(ManualTimer::default());
        timer.set(123_456_780);
        let lines: [Arc<ManualLine>; 5] = std::array::from_fn(|_| Arc::default());
        let replaced = Arc::new(AtomicBool::default());
        let seen = Arc::clone(&replaced);
        let line = |n: usize| Arc::clone(&lines[n]) as Arc<dyn IrqLine>;
        let wires = HpetLines {
            routes: vec![(2, line(0)), (8, line(1)), (20, line(2))],
            legacy: [line(3), line(4)],
            replace: Box::new(move |on| seen.store(on, SeqCst)),
        };
        Self { hpet: Hpet::new(Arc::clone(&timer) as _, wires), timer, lines, replaced }
    }

    fn read(&mut self, offset: u64) -> u64 {
        let mut data = [0xff; 8];
        self.hpet.read(0, offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u64) {
        self.hpet.write(0, offset, &value.to_le_bytes());
    }

    fn pass(&mut self, nanos: u64) -> u32 {
        self.timer.run(&mut self.hpet, self.timer.now() + nanos)
    }

    fn rises(&self) -> [u32; 5] {
        std::array::from_fn(|n| self.lines[n].rises())
    }
}

#[test]
fn capabilities_are_those_of_the_specification() {
    let mut bench = Bench::new();
    let id = bench.read(0);
    assert_eq!((id >> 32, id >> 16 & 0xffff), (10_000_000, 0x8086));
    assert_eq!((id >> 15 & 1, id >> 13 & 1, id >> 8 & 0x1f, id & 0xff), (1, 1, 2, 1));
    for n in 0..3 {
        // Routes 2, 8 and 20; periodic; 64 bits; no messages.
        assert_eq!(bench.read(0x100 + n * 0x20), 0x0010_0104_0000_0030);
        assert_eq!(bench.read(0x108 + n * 0x20), u64::MAX);
        assert_eq!(bench.read(0x110 + n * 0x20), 0);
        bench.write(0x100 + n * 0x20, u64::MAX);
        assert_eq!(bench.read(0x100 + n * 0x20), 0x0010_0104_0000_3f7e);
    }
    for nothing in [0x28, 0x160, 0x3f8] {
        bench.write(nothing, u64::MAX);
        assert_eq!(bench.read(nothing), 0);
    }
    // Halves, and what lies beyond a register.
    let mut half = [0; 4];
    bench.hpet.read(0, 4, &mut half);
    assert_eq!(u32::from_le_bytes(half), 10_000_000);
}

#[test]
fn the_counter_runs_while_it_is_enabled() {
    let mut bench = Bench::new();
    bench.pass(MS);
    assert_eq!(bench.read(0xf0), 0);
    bench.write(0x10, 1);
    bench.pass(MS);
    assert_eq!(bench.read(0xf0), MS / 10);
    bench.write(0xf0, 5);
    assert_eq!(bench.read(0xf0), MS / 10, "it runs");
    bench.write(0x10, 0);
    bench.pass(MS);
    assert_eq!(bench.read(0xf0), MS / 10);
    bench.hpet.write(0, 0xf4, &1u32.to_le_bytes());
    bench.write(0x10, 1);
    bench.pass(10);
    assert_eq!((bench.read(0xf0), bench.timer.armed()), (1 << 32 | (MS / 10 + 1), None));
}

#[test]
fn a_timer_fires_once_by_an_edge() {
    for (route, line) in [(2u64, 0), (8, 1), (20, 2)] {
        let mut bench = Bench::new();
        bench.write(0x10, 1);
        bench.write(0x100, route << 9 | 4);
        let at = bench.read(0xf0) + 5000;
        bench.write(0x108, at);
        assert_eq!(bench.pass(49_999), 0);
        assert_eq!(bench.rises(), [0; 5]);
        assert_eq!(bench.pass(1), 1);
        let mut rises = [0; 5];
        rises[line] = 1;
        assert_eq!((bench.rises(), bench.read(0x20)), (rises, 0));
        assert_eq!(bench.pass(3600 * 1000 * MS), 0);
    }
    // A route that is not offered, and an interrupt that is not enabled.
    for config in [3 << 9 | 4, 2 << 9] {
        let mut bench = Bench::new();
        bench.write(0x10, 1);
        bench.write(0x100, config);
        bench.write(0x108, 5000);
        bench.pass(MS);
        assert_eq!(bench.rises(), [0; 5]);
    }
}

#[test]
fn a_level_stays_until_its_status_is_cleared() {
    let mut bench = Bench::new();
    bench.write(0x10, 1);
    bench.write(0x120, 20 << 9 | 6);
    bench.write(0x140, 20 << 9 | 6);
    bench.write(0x128, 1000);
    bench.write(0x148, 2000);
    bench.pass(MS);
    assert_eq!((bench.read(0x20), bench.rises()), (6, [0, 0, 1, 0, 0]));
    bench.write(0x20, 2);
    assert_eq!((bench.read(0x20), bench.lines[2].is_high()), (4, true));
    bench.write(0x20, 4);
    assert!(!bench.lines[2].is_high());
}

#[test]
fn a_period_is_kept_and_set_apart_from_the_first_time() {
    let mut bench = Bench::new();
    bench.write(0x10, 1);
    bench.write(0x100, 2 << 9 | 0x4c);
    // The first write sets the comparator, the second one the period.
    bench.write(0x108, 500_000);
    assert_eq!(bench.read(0x100) & 0x40, 0);
    bench.write(0x108, 100_000);
    assert_eq!(bench.read(0x108), 500_000);
    assert_eq!(bench.pass(5 * MS), 1);
    assert_eq!((bench.read(0x108), bench.rises()[0]), (600_000, 1));
    assert_eq!(bench.pass(10 * MS), 10);
    assert_eq!((bench.read(0x108), bench.rises()[0]), (1_600_000, 10));
    // Periods that nobody had time for are one interrupt, and the phase stays.
    bench.timer.advance(10 * MS + MS / 2);
    bench.hpet.expired();
    assert_eq!((bench.read(0x108), bench.rises()[0]), (2_600_000, 1));
}

#[test]
fn the_shortest_period_wakes_no_more_than_ten_thousand_times_a_second() {
    for config in [2 << 9 | 0x4c, 2 << 9 | 0x4e] {
        let mut bench = Bench::new();
        bench.write(0x10, 1);
        bench.write(0x100, config);
        bench.write(0x108, 1);
        bench.write(0x108, 1);
        assert!(bench.pass(1000 * MS) <= 10_000);
        assert!(bench.rises()[0] > 0);
    }
}

#[test]
fn timers_of_32_bits_wrap() {
    let mut bench = Bench::new();
    bench.write(0xf0, 0xffff_fff0);
    bench.write(0x10, 1);
    bench.write(0x100, 2 << 9 | TIMER_32 | 4);
    bench.write(0x108, 0xdead_0000_0010);
    assert_eq!(bench.read(0x108), 0x10);
    bench.pass(0x1f * 10);
    assert_eq!(bench.rises()[0], 0);
    bench.pass(10);
    assert_eq!(bench.rises()[0], 1);
    bench.pass(0xffff_ffff * 10);
    assert_eq!(bench.rises()[0], 0);
    bench.pass(10);
    assert_eq!(bench.rises()[0], 1);
}

#[test]
fn legacy_replacement_takes_the_lines_of_interval_timer_and_clock() {
    let mut bench = Bench::new();
    bench.write(0x10, 3);
    assert!(bench.replaced.load(SeqCst));
    for n in 0..3 {
        bench.write(0x100 + n * 0x20, 20 << 9 | 4);
        bench.write(0x108 + n * 0x20, 100);
    }
    bench.pass(MS);
    assert_eq!(bench.rises(), [0, 0, 1, 1, 1]);
    bench.hpet.reset();
    assert!(!bench.replaced.load(SeqCst));
    assert_eq!((bench.read(0x10), bench.read(0xf0), bench.timer.armed()), (0, 0, None));
}
