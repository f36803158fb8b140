//! The PIIX3's ISA bridge: interrupt routing and reset control.
//!
//! Source: Intel 82371SB data sheet, "PIRQRC" (0x60 to 0x63) and "RC - reset control" (port 0xcf9).

use std::sync::Arc;

use super::InterruptRouter;
use super::power::PowerSwitch;
use crate::bus::{Region, Registers};
use crate::pci::{Config, PciFunction};

const PIRQ: usize = 0x60;
const PIRQS: usize = 4;
/// Bit 7: not routed; bits 3 to 0: the interrupt.
const NOT_ROUTED: u8 = 0x80;
/// Interrupts that a PIRQ may be routed to; the others are reserved.
const ROUTABLE: u16 = 0xdef8;
/// Bit 1: hard reset; bit 2: reset when it rises.
const HARD: u8 = 2;
const RESET: u8 = 4;

/// The reset control register: base, length, region.
pub const RESET_PORTS: (u64, u64, Region) = (0xcf9, 1, 0);

/// The bridge. Its region 0 is the reset control register.
pub struct IsaBridge {
    config: Config,
    router: Arc<InterruptRouter>,
    switch: Arc<dyn PowerSwitch>,
    reset_control: u8,
}

impl IsaBridge {
    /// After power on: nothing is routed.
    pub fn new(router: Arc<InterruptRouter>, switch: Arc<dyn PowerSwitch>) -> Self {
        let mut config =
            Config::new(0x8086, 0x7000, 0x06_01_00, 0).multi_function().subsystem(0x1af4, 0x1100);
        config.set(4, &[7, 0, 0, 2]);
        config.set(PIRQ, &[NOT_ROUTED; PIRQS]);
        config.allow(PIRQ, &[0x8f; PIRQS]);
        // ISA timing, X-bus chip selects, top of memory, miscellaneous status: kept, without an effect.
        config.set(0x4c, &[0x4d]);
        config.set_u16(0x4e, 3);
        for at in [0x4c, 0x4e, 0x4f, 0x69, 0x6a, 0x70, 0x80, 0x82] {
            config.allow(at, &[0xff]);
        }
        let mut bridge = Self { config, router, switch, reset_control: 0 };
        bridge.route();
        bridge
    }

    fn route(&mut self) {
        for pirq in 0..PIRQS {
            let value = self.config.get(PIRQ + pirq);
            let routed = value & NOT_ROUTED == 0 && ROUTABLE >> (value & 15) & 1 != 0;
            self.router.route(pirq, routed.then_some(value & 15));
        }
    }
}

impl Registers for IsaBridge {
    fn read(&mut self, _: Region, _: u64, data: &mut [u8]) {
        if let Some(byte) = data.first_mut() {
            *byte = self.reset_control;
        }
    }

    fn write(&mut self, _: Region, _: u64, data: &[u8]) {
        let Some(value) = data.first() else { return };
        let rises = value & !self.reset_control & RESET != 0;
        self.reset_control = value & (HARD | RESET);
        if rises {
            self.switch.reset();
        }
    }

    fn reset(&mut self) {
        self.reset_control = 0;
        self.config.reset();
        self.route();
    }
}

impl PciFunction for IsaBridge {
    fn config(&self) -> &Config {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        self.route();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;
    use crate::bus::IrqLine;

    struct Input(u8, Arc<Mutex<Option<u8>>>);

    impl IrqLine for Input {
        fn set(&self, high: bool) {
            let mut at = self.1.lock().unwrap();
            if high || *at == Some(self.0) {
                *at = high.then_some(self.0);
            }
        }
    }

    #[derive(Default)]
    struct Resets(AtomicU32);

    impl PowerSwitch for Resets {
        fn reset(&self) {
            self.0.fetch_add(1, SeqCst);
        }
        fn power_off(&self) {}
    }

    #[test]
    fn pirqs_go_where_software_routes_them() {
        let at = Arc::new(Mutex::new(None));
        let router = InterruptRouter::new(|irq| Arc::new(Input(irq, Arc::clone(&at))));
        let mut bridge = IsaBridge::new(Arc::clone(&router), Arc::new(Resets::default()));
        let line = router.pci(2, 0);
        line.set(true);
        assert_eq!(*at.lock().unwrap(), None);
        for (value, input) in [
            (11, Some(11)),
            (5, Some(5)),
            (0x85, None),
            (15, Some(15)),
            (0, None),
            (1, None),
            (2, None),
            (8, None),
            (13, None),
            (3, Some(3)),
        ] {
            bridge.write_config(0x61, &[value]);
            assert_eq!(*at.lock().unwrap(), input, "{value:#x}");
        }
        bridge.reset();
        assert_eq!((*at.lock().unwrap(), bridge.config().get(0x61)), (None, 0x80));
    }

    #[test]
    fn the_reset_bit_resets_when_it_rises() {
        let resets = Arc::new(Resets::default());
        let router = InterruptRouter::new(|irq| Arc::new(Input(irq, Arc::default())));
        let mut bridge = IsaBridge::new(router, Arc::clone(&resets) as _);
        for (value, count) in [(2, 0), (6, 1), (6, 1), (0xff, 1), (0, 1), (4, 2)] {
            bridge.write(0, 0, &[value]);
            assert_eq!(resets.0.load(SeqCst), count, "{value:#x}");
            let mut byte = [0xff];
            bridge.read(0, 0, &mut byte);
            assert_eq!(byte, [value & 6]);
        }
    }
}
