//! The protocol as hvm-emulated-unplug tells it, and the device's configuration space.

#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::*;
use crate::pci::Bar;

type Seen<T> = Arc<Mutex<Vec<T>>>;

/// A product that is refused below build 7, and one that is not.
const OLD: u16 = 9;
const LINUX: u16 = 3;

struct Bench {
    ports: UnplugPorts,
    unplugged: Seen<Emulated>,
    lines: Seen<String>,
}

fn sink(lines: &Seen<String>) -> LineSink {
    let lines = Arc::clone(lines);
    Box::new(move |line| lines.lock().unwrap().push(line.to_owned()))
}

impl Bench {
    fn new() -> Self {
        let (unplugged, lines) = (Seen::default(), Seen::default());
        let to = Arc::clone(&unplugged);
        let unplug: Unplug = Box::new(move |what| to.lock().unwrap().push(what));
        let refused = vec![Refused { product: OLD, below: 7 }];
        let ports = UnplugPorts::new(unplug, refused, sink(&lines));
        Self { ports, unplugged, lines }
    }

    fn read(&mut self, offset: u64, len: usize) -> u64 {
        let mut data = vec![0xff; len];
        self.ports.read(0, offset, &mut data);
        value_le(&data)
    }

    fn write(&mut self, offset: u64, value: u32, len: usize) {
        self.ports.write(0, offset, &value.to_le_bytes()[..len]);
    }

    fn driver(&mut self, product: u16, build: u32) -> u64 {
        self.write(2, product.into(), 2);
        self.write(0, build, 4);
        self.read(0, 2)
    }

    fn unplugged(&self) -> Vec<Emulated> {
        std::mem::take(&mut *self.unplugged.lock().unwrap())
    }
}

#[test]
fn a_driver_finds_the_protocol() {
    let mut bench = Bench::new();
    assert_eq!((bench.read(0, 2), bench.read(2, 1)), (0x49d2, 1));
    assert_eq!(bench.driver(LINUX, 0), 0x49d2);
    assert_eq!((bench.read(0, 4), bench.read(2, 2), bench.read(1, 1)), (0xffff_ffff, 0xffff, 0xff));
}

#[test]
fn the_mask_says_what_is_unplugged() {
    use Emulated::{AuxDisks, Disks, Nics};
    let table: [(u16, &[Emulated]); 8] = [
        (0, &[]),
        (1, &[Disks]),
        (2, &[Nics]),
        (3, &[Disks, Nics]),
        (4, &[AuxDisks]),
        (5, &[Disks]),
        (6, &[AuxDisks, Nics]),
        (0xfff8, &[]),
    ];
    let mut bench = Bench::new();
    for (mask, expected) in table {
        bench.write(0, mask.into(), 2);
        assert_eq!(bench.unplugged(), expected, "{mask:#x}");
    }
    // Other widths are other things.
    bench.write(0, 3, 1);
    bench.write(0, 3, 4);
    bench.write(2, 3, 2);
    bench.write(2, 3, 1);
    assert_eq!(bench.unplugged(), []);
}

#[test]
fn a_refused_driver_is_told_and_unplugs_nothing() {
    let mut bench = Bench::new();
    assert_eq!(bench.driver(OLD, 6), 0xd249);
    bench.write(0, 3, 2);
    assert_eq!(bench.unplugged(), []);
    assert_eq!(
        (bench.driver(OLD, 7), bench.driver(OLD, 0), bench.driver(LINUX, 0)),
        (0x49d2, 0xd249, 0x49d2)
    );
    bench.write(0, 1, 2);
    assert_eq!(bench.unplugged(), [Emulated::Disks]);
    bench.driver(OLD, 1);
    bench.ports.reset();
    assert_eq!(bench.read(0, 2), 0x49d2);
}

#[test]
fn flags_are_remembered_until_a_reset() {
    let mut bench = Bench::new();
    bench.write(0, 1, 1);
    assert_eq!(bench.read(0, 1), 1);
    bench.ports.reset();
    assert_eq!(bench.read(0, 1), 0);
}

#[test]
fn drivers_print_lines() {
    let mut bench = Bench::new();
    b"XEN| hello\r\n".iter().for_each(|byte| bench.write(2, u32::from(*byte), 1));
    let mut device = PlatformDevice::new(sink(&bench.lines));
    b"again\n".iter().for_each(|byte| device.write(PORTS, LOG_OFFSET, &[*byte]));
    b"lost\n".iter().for_each(|byte| device.write(PORTS, 0, &[*byte]));
    b"lost\n".iter().for_each(|byte| device.write(MEMORY, LOG_OFFSET, &[*byte]));
    assert_eq!(*bench.lines.lock().unwrap(), ["XEN| hello", "again"]);
}

struct Clock(AtomicU64);

impl Timer for Clock {
    fn now(&self) -> u64 {
        self.0.load(SeqCst)
    }
    fn arm(&self, _: Option<u64>) {}
}

#[test]
fn lines_are_bounded_in_time() {
    let clock = Arc::new(Clock(AtomicU64::new(5)));
    let lines = Seen::default();
    let mut log = bounded(Arc::clone(&clock) as _, sink(&lines));
    (0..1000).for_each(|_| log("x"));
    assert_eq!(lines.lock().unwrap().len(), 32);
    clock.0.fetch_add(1_000_000_000, SeqCst);
    (0..1000).for_each(|_| log("y"));
    let lines = lines.lock().unwrap();
    assert_eq!((lines.len(), lines[32].as_str(), lines[33].as_str()), (65, "(968 lines left out)", "y"));
}

#[test]
fn the_device_is_what_drivers_look_for() {
    let mut device = PlatformDevice::new(Box::new(|_| {}));
    let ids = [(0, 0x0001_5853), (8, 0xff80_0001), (0x2c, 0x0001_5853), (0x10, 1), (0x14, 8), (0x18, 0)];
    for (at, value) in ids {
        assert_eq!(device.config().u32(at), value, "{at:#x}");
    }
    assert_eq!((device.config().pin(), device.config().get(14)), (Some(0), 0));
    for (at, size) in [(0x10, 0xffff_ff01), (0x14, 0xff00_0008u32)] {
        device.write_config(at, &[0xff; 4]);
        assert_eq!(device.config().u32(at), size);
    }
    device.write_config(0x10, &0xc000u32.to_le_bytes());
    device.write_config(0x14, &0xf000_0000u32.to_le_bytes());
    device.write_config(4, &[3, 0]);
    let bars = [
        Bar { index: 0, kind: BarKind::Io, base: 0xc000, len: 256 },
        Bar { index: 1, kind: BarKind::Prefetchable, base: 0xf000_0000, len: 16 << 20 },
    ];
    assert_eq!(device.config().bars().collect::<Vec<_>>(), bars);
    let mut data = [0xff; 8];
    device.write(MEMORY, 0, &[1, 2, 3, 4]);
    device.read(MEMORY, 0, &mut data);
    device.read(PORTS, 0, &mut data[..4]);
    assert_eq!(data, [0xff; 8]);
    device.reset();
    assert_eq!(device.config().bars().count(), 0);
}
