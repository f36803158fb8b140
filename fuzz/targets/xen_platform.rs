//! The Xen platform device, the unplug protocol, and the wires of a PCI interrupt, under a guest that writes anything.
//!
//! Input: operations of a tag byte and their arguments, see the match below.

#![no_main]

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use devices::bus::{IrqLine, Region, Registers, Shared, Timer};
use devices::chipset::{InterruptRouter, IsaBridge, PIIX_DEVICE, PowerSwitch};
use devices::ide::Place;
use devices::ide::testing::Rig;
use devices::pci::{Bar, BarMapper, Config, PciBus, PciFunction};
use devices::xen::platform::{Emulated, PlatformDevice, Refused, UnplugPorts, bounded};
use libfuzzer_sys::fuzz_target;
use xvmm_fuzz::Input;

/// Devices of bus 0.
const PLATFORM: u8 = 3;
const NIC: u8 = 4;
/// Product that is refused below build 0x100.
const REFUSED: u16 = 0xffff;
/// A line a second at least, and 64 in the first one.
const LINES: u64 = 32;

struct Card(Config, Arc<dyn IrqLine>);

impl Registers for Card {
    fn read(&mut self, _: Region, _: u64, _: &mut [u8]) {}
    fn write(&mut self, _: Region, _: u64, data: &[u8]) {
        self.1.set(data[0] & 1 != 0);
    }
    fn reset(&mut self) {
        self.0.reset();
        self.1.set(false);
    }
}

impl PciFunction for Card {
    fn config(&self) -> &Config {
        &self.0
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// What is mapped: no more than a range for each register.
#[derive(Default)]
struct Mapped(Mutex<Vec<Bar>>);

impl BarMapper for Mapped {
    fn map(&self, _: &Shared<dyn PciFunction>, bar: Bar) {
        let mut bars = self.0.lock().expect("a lock");
        bars.push(bar);
        assert!(bars.len() <= 4, "{bars:?}");
    }
    fn unmap(&self, _: &Shared<dyn PciFunction>, bar: Bar) {
        let mut bars = self.0.lock().expect("a lock");
        let at = bars.iter().position(|other| *other == bar).expect("it was mapped");
        bars.remove(at);
    }
}

#[derive(Default)]
struct Clock(AtomicU64);

impl Timer for Clock {
    fn now(&self) -> u64 {
        self.0.load(SeqCst)
    }
    fn arm(&self, _: Option<u64>) {}
}

struct Level(Arc<[AtomicBool; 16]>, u8);

impl IrqLine for Level {
    fn set(&self, high: bool) {
        self.0[usize::from(self.1)].store(high, SeqCst);
    }
}

struct NoSwitch;

impl PowerSwitch for NoSwitch {
    fn reset(&self) {}
    fn power_off(&self) {}
}

fn config(pci: &mut PciBus, device: u8, register: u8, data: &[u8]) {
    let address = 1u32 << 31 | u32::from(device) << 11 | u32::from(register & 0xfc);
    pci.write(0, 0, &address.to_le_bytes());
    pci.write(0, 4 + u64::from(register & 3), data);
}

fn id(pci: &mut PciBus, device: u8) -> u32 {
    config(pci, device, 0, &[]);
    let mut data = [0xff; 4];
    pci.read(0, 4, &mut data);
    u32::from_le_bytes(data)
}

fuzz_target!(|data: &[u8]| {
    let clock = Arc::new(Clock::default());
    let lines = Arc::new(AtomicUsize::new(0));
    let levels: Arc<[AtomicBool; 16]> = Arc::default();
    let to = Arc::clone(&levels);
    let router = InterruptRouter::new(move |irq| Arc::new(Level(Arc::clone(&to), irq)));
    let sink = || {
        let lines = Arc::clone(&lines);
        bounded(
            Arc::clone(&clock) as _,
            Box::new(move |line| {
                assert!(line.len() <= 3 * 240, "{}", line.len());
                lines.fetch_add(1, SeqCst);
            }),
        )
    };
    let mapped = Arc::new(Mapped::default());
    let mut pci = PciBus::new(Arc::clone(&mapped) as _);
    let device = Arc::new(Mutex::new(PlatformDevice::new(sink())));
    let card =
        Config::new(0x10ec, 0x8139, 0x020000, 0x20).interrupt_pin(1).bar(0, devices::pci::BarKind::Io, 256);
    let nic = Arc::new(Mutex::new(Card(card, router.pci(NIC, 0))));
    let bridge = Arc::new(Mutex::new(IsaBridge::new(Arc::clone(&router), Arc::new(NoSwitch))));
    pci.add(PIIX_DEVICE, 0, bridge);
    pci.add(PLATFORM, 0, Arc::clone(&device) as _);
    pci.add(NIC, 0, Arc::clone(&nic) as _);
    let pci = Arc::new(Mutex::new(pci));
    let rig = Arc::new(Mutex::new(Rig::new(64)));
    let gone = Arc::new(Mutex::new(Vec::new()));
    let (bus, drives, list) = (Arc::clone(&pci), Arc::clone(&rig), Arc::clone(&gone));
    let unplug = move |what| {
        list.lock().expect("a lock").push(what);
        let mut rig = drives.lock().expect("a lock");
        match what {
            Emulated::Disks => rig.ide.unplug_disks(None),
            Emulated::AuxDisks => rig.ide.unplug_disks(Place::of_hd(0)),
            Emulated::Nics => drop(bus.lock().expect("a lock").remove(NIC, 0)),
        }
    };
    let refused = vec![Refused { product: REFUSED, below: 0x100 }];
    let mut ports = UnplugPorts::new(Box::new(unplug), refused, sink());

    let mut input = Input::new(data);
    while !input.is_empty() {
        let tag = input.u8();
        let len = [1, 2, 4, 8][usize::from(tag >> 6)];
        match tag & 7 {
            // Ports, as they are meant and otherwise.
            0 | 1 => ports.write(0, u64::from(tag >> 3 & 3), input.bytes(len)),
            2 => {
                let mut magic = [0xff; 2];
                ports.read(0, 0, &mut magic);
                let magic = u16::from_le_bytes(magic);
                assert!(magic == 0x49d2 || magic == 0xd249, "{magic:#x}");
                let before = gone.lock().expect("a lock").len();
                ports.write(0, 0, &[tag >> 3, 0]);
                let after = gone.lock().expect("a lock").len();
                assert!(after == before || magic == 0x49d2, "a refused driver unplugged something");
            }
            3 => {
                let mut data = [0xff; 8];
                ports.read(0, u64::from(tag >> 3 & 3), &mut data[..len]);
            }
            4 => {
                let mut device = device.lock().expect("a lock");
                let (region, offset) = (tag >> 3 & 1, input.number());
                device.write(region, offset, input.bytes(len));
                let mut data = [0xff; 8];
                device.read(region, offset, &mut data[..len]);
                assert_eq!(data, [0xff; 8]);
            }
            5 => {
                let device = [PIIX_DEVICE, PLATFORM, NIC, tag][usize::from(tag >> 3 & 3)];
                let register = input.u8();
                config(&mut pci.lock().expect("a lock"), device, register, input.bytes(len.min(4)));
            }
            6 => nic.lock().expect("a lock").write(0, 0, &[tag >> 3]),
            _ => drop(clock.0.fetch_add(u64::from(input.u16()) << 16, SeqCst)),
        }
        let gone = gone.lock().expect("a lock");
        let has = |what| gone.contains(&what);
        let mut pci = pci.lock().expect("a lock");
        assert_eq!(id(&mut pci, PLATFORM), 0x0001_5853);
        assert_eq!(id(&mut pci, NIC) == u32::MAX, has(Emulated::Nics));
        let mut rig = rig.lock().expect("a lock");
        assert_eq!(rig.read(0, 7) == 0xff, has(Emulated::Disks));
        assert_ne!(rig.read(1, 7), 0xff, "a CD-ROM drive stays");
        let seconds = clock.now() / 1_000_000_000;
        assert!(lines.load(SeqCst) as u64 <= 4 * LINES * (seconds + 2));
    }
    // A card that is gone leaves no level behind.
    drop(ports);
    drop(pci);
    drop(nic);
    assert!(levels.iter().all(|level| !level.load(SeqCst)), "a line is high");
});
