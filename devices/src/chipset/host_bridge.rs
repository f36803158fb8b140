//! The i440FX's host bridge: what stands between 0xc0000 and 0xfffff.
//!
//! Source: Intel 82441FX (PMC) data sheet, sections 3.2.16 (PAM) and 3.2.21 (SMRAM).

use std::ops::Range;
use std::sync::Arc;

use crate::bus::{Region, Registers};
use crate::pci::{Config, PciFunction};

/// PAM0 to PAM6. The low half of PAM0 is reserved.
const PAM: usize = 0x59;
const PAMS: usize = 7;
/// Bits of a half of a PAM register: reads, and writes, go to RAM.
const READ: u8 = 1;
const WRITE: u8 = 2;
const PAM_WRITABLE: u8 = 0x33;
/// SMRAM control: kept, without an effect.
const SMRAM: usize = 0x72;

/// Segments that are switched one by one.
pub const SEGMENTS: usize = 13;

/// Addresses of segment `index`: 0 is 0xf0000 to 0xfffff, the others are 16 KiB each from 0xc0000 on.
pub fn segment(index: usize) -> Range<u64> {
    match index {
        0 => 0xf_0000..0x10_0000,
        n => {
            let start = 0xc_0000 + 0x4000 * (n as u64 - 1);
            start..start + 0x4000
        }
    }
}

/// Where accesses to a segment go; the rest goes to PCI, where the ROM is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShadowMode {
    /// Reads go to RAM.
    pub read: bool,
    /// Writes go to RAM.
    pub write: bool,
}

/// What switches segments.
pub trait Shadow: Send + Sync {
    /// All segments, in the order of [`segment`]. Called when one has changed.
    fn set(&self, modes: &[ShadowMode; SEGMENTS]);
}

/// The host bridge.
pub struct HostBridge {
    config: Config,
    shadow: Arc<dyn Shadow>,
    modes: [ShadowMode; SEGMENTS],
}

impl HostBridge {
    /// After power on: all segments are ROM.
    pub fn new(shadow: Arc<dyn Shadow>) -> Self {
        // Firmware knows a virtual machine's board by the subsystem's ids.
        let mut config = Config::new(0x8086, 0x1237, 0x06_00_00, 2).subsystem(0x1af4, 0x1100);
        config.allow(PAM, &[PAM_WRITABLE & 0xf0]);
        config.allow(PAM + 1, &[PAM_WRITABLE; PAMS - 1]);
        config.set(SMRAM, &[2]);
        config.allow(SMRAM, &[0x78]);
        Self { config, shadow, modes: [ShadowMode::default(); SEGMENTS] }
    }

    fn update(&mut self) {
        let mut modes = [ShadowMode::default(); SEGMENTS];
        // PAM0's high half, then the low and the high half of each other one.
        for (half, mode) in (1..).zip(&mut modes) {
            let bits = self.config.get(PAM + half / 2) >> (4 * (half % 2));
            *mode = ShadowMode { read: bits & READ != 0, write: bits & WRITE != 0 };
        }
        if modes != self.modes {
            self.modes = modes;
            self.shadow.set(&modes);
        }
    }
}

impl Registers for HostBridge {
    fn read(&mut self, _: Region, _: u64, _: &mut [u8]) {}
    fn write(&mut self, _: Region, _: u64, _: &[u8]) {}

    fn reset(&mut self) {
        self.config.reset();
        self.update();
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &Config {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        self.update();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Log(Mutex<Vec<[ShadowMode; SEGMENTS]>>);

    impl Shadow for Log {
        fn set(&self, modes: &[ShadowMode; SEGMENTS]) {
            self.0.lock().unwrap().push(*modes);
        }
    }

    #[test]
    fn pam_registers_switch_their_segments() {
        // Register, bits, first and last address (data sheet, table 3).
        let table = [
            (0x59, 0x10, 0xf_0000, 0xf_ffff),
            (0x5a, 0x01, 0xc_0000, 0xc_3fff),
            (0x5a, 0x10, 0xc_4000, 0xc_7fff),
            (0x5b, 0x01, 0xc_8000, 0xc_bfff),
            (0x5b, 0x10, 0xc_c000, 0xc_ffff),
            (0x5c, 0x01, 0xd_0000, 0xd_3fff),
            (0x5c, 0x10, 0xd_4000, 0xd_7fff),
            (0x5d, 0x01, 0xd_8000, 0xd_bfff),
            (0x5d, 0x10, 0xd_c000, 0xd_ffff),
            (0x5e, 0x01, 0xe_0000, 0xe_3fff),
            (0x5e, 0x10, 0xe_4000, 0xe_7fff),
            (0x5f, 0x01, 0xe_8000, 0xe_bfff),
            (0x5f, 0x10, 0xe_c000, 0xe_ffff),
        ];
        let log = Arc::new(Log::default());
        let mut bridge = HostBridge::new(Arc::clone(&log) as _);
        for (register, bits, first, last) in table {
            for (factor, mode) in
                [(3, (true, true)), (1, (true, false)), (2, (false, true)), (0, (false, false))]
            {
                bridge.write_config(register, &[bits * factor]);
                let modes = log.0.lock().unwrap().pop().unwrap();
                for (index, now) in modes.into_iter().enumerate() {
                    let hit = segment(index) == (first..last + 1);
                    let expected = if hit { mode } else { (false, false) };
                    assert_eq!((now.read, now.write), expected, "{register:#x} {index}");
                }
            }
        }
    }

    #[test]
    fn only_changes_are_told() {
        let log = Arc::new(Log::default());
        let mut bridge = HostBridge::new(Arc::clone(&log) as _);
        bridge.write_config(0x59, &[0x0f]);
        bridge.write_config(0x72, &[0xff]);
        assert_eq!((bridge.config().get(0x59), bridge.config().get(0x72)), (0, 0x7a));
        assert!(log.0.lock().unwrap().is_empty());
        bridge.write_config(0x58, &[0, 0x30, 0x33, 0]);
        bridge.reset();
        bridge.reset();
        assert_eq!(log.0.lock().unwrap().len(), 2);
    }
}
