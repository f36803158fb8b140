//! The chipset under a guest that writes anything: PCI configuration by mechanism 1, host bridge, ISA bridge, and power
//! management.
//!
//! Input: operations of a tag byte and their arguments, see the match below.

#![no_main]

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use devices::bus::{Registers, Shared, Timer};
use devices::chipset::{
    HostBridge, InterruptRouter, IsaBridge, PIIX_DEVICE, POWER_FUNCTION, POWER_PORTS, Power, PowerBlock,
    PowerConfig, PowerPlaces, PowerSwitch, SEGMENTS, Shadow, ShadowMode,
};
use devices::pc::manual::{ManualLine, ManualTimer};
use devices::pci::{Bar, BarMapper, PciBus, PciFunction};
use libfuzzer_sys::fuzz_target;
use xvmm_fuzz::Input;

/// Region of the power management's registers, and of the SMI command.
const PM: u8 = 0;
const SMI: u8 = POWER_PORTS[0].2;
/// The PM timer's bit 23 changes after 2^23 / 3579545 s; nobody is woken more often.
const HALF: u64 = 2_343_000_000;
/// Sleep enable, and the type, in the control register.
const SLEEP: u16 = 1 << 13;
const TYPE: u16 = 7 << 10;

struct NoBars;

impl BarMapper for NoBars {
    fn map(&self, _: &Shared<dyn PciFunction>, bar: Bar) {
        panic!("{bar:?}: no function has one");
    }
    fn unmap(&self, _: &Shared<dyn PciFunction>, _: Bar) {}
}

/// What the devices have done.
#[derive(Default)]
struct Done {
    shadow: Mutex<[ShadowMode; SEGMENTS]>,
    places: Mutex<[Option<u16>; 2]>,
    resets: AtomicU32,
    offs: AtomicU32,
}

impl Shadow for Done {
    fn set(&self, modes: &[ShadowMode; SEGMENTS]) {
        *self.shadow.lock().expect("a lock") = *modes;
    }
}

impl PowerPlaces for Done {
    fn moved(&self, block: PowerBlock, old: Option<u16>, new: Option<u16>) {
        let mut places = self.places.lock().expect("a lock");
        let place = &mut places[usize::from(block == PowerBlock::SmBus)];
        assert_eq!(*place, old, "it was elsewhere");
        assert!(new.is_none_or(|new| u64::from(new) % block.ports().0 == 0), "{block:?} at {new:?}");
        *place = new;
    }
}

impl PowerSwitch for Done {
    fn reset(&self) {
        self.resets.fetch_add(1, SeqCst);
    }
    fn power_off(&self) {
        self.offs.fetch_add(1, SeqCst);
    }
}

fn address(pci: &mut PciBus, device: u8, function: u8, register: u8) {
    let address = 1 << 31 | u32::from(device) << 11 | u32::from(function) << 8 | u32::from(register & 0xfc);
    pci.write(0, 0, &address.to_le_bytes());
}

fn config(pci: &mut PciBus, device: u8, function: u8, register: u8) -> u32 {
    address(pci, device, function, register);
    let mut data = [0; 4];
    pci.read(0, 4, &mut data);
    u32::from_le_bytes(data)
}

/// A register of 16 bits of the power management.
fn pm(power: &Mutex<Power>, offset: u64) -> u16 {
    let mut data = [0; 2];
    power.lock().expect("a lock").read(PM, offset, &mut data);
    u16::from_le_bytes(data)
}

fuzz_target!(|data: &[u8]| {
    let done = Arc::new(Done::default());
    let (timer, sci) = (Arc::new(ManualTimer::default()), Arc::new(ManualLine::default()));
    let router = InterruptRouter::new(|_| Arc::new(ManualLine::default()));
    let mut pci = PciBus::new(Arc::new(NoBars));
    let host = Arc::new(Mutex::new(HostBridge::new(Arc::clone(&done) as _)));
    let isa = Arc::new(Mutex::new(IsaBridge::new(Arc::clone(&router), Arc::clone(&done) as _)));
    let power = Arc::new(Mutex::new(Power::new(PowerConfig {
        sci: Arc::clone(&sci) as _,
        timer: Arc::clone(&timer) as _,
        switch: Arc::clone(&done) as _,
        places: Arc::clone(&done) as _,
    })));
    pci.add(0, 0, Arc::clone(&host) as _);
    pci.add(PIIX_DEVICE, 0, Arc::clone(&isa) as _);
    pci.add(PIIX_DEVICE, POWER_FUNCTION, Arc::clone(&power) as _);
    let line = router.pci(2, 0);

    let mut input = Input::new(data);
    while !input.is_empty() {
        let tag = input.u8();
        let len = 1 << (tag >> 6).min(2);
        match tag & 7 {
            // Configuration space, of what is there and of what is not.
            0 | 1 => {
                let (device, function) =
                    [(0, 0), (PIIX_DEVICE, 0), (PIIX_DEVICE, POWER_FUNCTION), (tag, tag)]
                        [usize::from(tag >> 4 & 3)];
                let register = input.u8();
                address(&mut pci, device & 31, function & 7, register);
                pci.write(0, 4 + u64::from(register & 3), input.bytes(len));
            }
            // Its ports, whatever is written.
            2 => pci.write(0, u64::from(tag >> 3 & 7), input.bytes(len)),
            // Registers of the power management.
            3 | 4 => {
                let (offset, data) = (u64::from(input.u8() & 63), input.bytes(len));
                let before = done.offs.load(SeqCst);
                power.lock().expect("a lock").write(PM, offset, data);
                let off = done.offs.load(SeqCst) != before;
                // Soft off is asked for by the high byte of the control register alone, with type 0.
                let high = 5_u64.checked_sub(offset).and_then(|at| data.get(usize::try_from(at).ok()?));
                let asked = high.is_some_and(|high| u16::from(*high) << 8 & (SLEEP | TYPE) == SLEEP);
                assert_eq!(off, asked, "{offset} {data:?}");
            }
            5 => {
                let region = [SMI, POWER_PORTS[1].2, 1, tag >> 3][usize::from(tag >> 4 & 3)];
                if region != PM {
                    let mut power = power.lock().expect("a lock");
                    let offset = u64::from(tag >> 3 & 3);
                    power.write(region, offset, input.bytes(len));
                    power.read(region, offset, &mut [0; 4][..len]);
                }
            }
            6 => {
                let until = timer.now().saturating_add(u64::from(input.u32()) << 3);
                let limit = (until - timer.now()) / HALF + 2;
                let woken = timer.run(&mut *power.lock().expect("a lock"), until);
                assert!(u64::from(woken) <= limit, "{woken} times until {until}");
            }
            _ => match tag >> 3 {
                0 => power.lock().expect("a lock").press_button(),
                1 => line.set(tag & 0x40 != 0),
                2 => {
                    host.lock().expect("a lock").reset();
                    isa.lock().expect("a lock").reset();
                    power.lock().expect("a lock").reset();
                }
                _ => isa.lock().expect("a lock").write(0, 0, input.bytes(1)),
            },
        }

        // The functions are what they were.
        assert_eq!(config(&mut pci, 0, 0, 0), 0x1237_8086);
        assert_eq!(config(&mut pci, PIIX_DEVICE, 0, 0), 0x7000_8086);
        assert_eq!(config(&mut pci, PIIX_DEVICE, POWER_FUNCTION, 0), 0x7113_8086);
        // Segments are switched as the registers from 0x59 on say.
        let words = [0x58, 0x5c].map(|register| config(&mut pci, 0, 0, register).to_le_bytes());
        let shadow = *done.shadow.lock().expect("a lock");
        for (half, mode) in (1..).zip(shadow) {
            let byte = words.as_flattened()[1 + half / 2] >> (4 * (half % 2));
            assert_eq!((mode.read, mode.write), (byte & 1 != 0, byte & 2 != 0), "half {half} of {words:x?}");
        }
        // The interrupt is what status, enable and control say, and nobody hears of events that are not enabled.
        let (status, enable, control) = (pm(&power, 0), pm(&power, 2), pm(&power, 4));
        let mut gpe = [0; 4];
        power.lock().expect("a lock").read(POWER_PORTS[1].2, 0, &mut gpe);
        let general = gpe[0] & gpe[2] != 0 || gpe[1] & gpe[3] != 0;
        let wanted = control & 1 != 0 && (status & enable != 0 || general);
        if sci.is_high() != wanted {
            // The timer's carry counts once somebody looks, or is woken by it.
            assert!(!sci.is_high() && status & enable == 1 && !general, "{status:x} {enable:x} {control:x}");
        }
    }
});
