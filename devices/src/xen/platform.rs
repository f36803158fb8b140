//! The Xen platform device of an HVM guest, and the ports by which its PV drivers unplug the emulated devices.
//!
//! The device (PCI 5853:0001) tells drivers that this is a Xen guest, lends its interrupt pin to events
//! (`HVM_PARAM_CALLBACK_IRQ`), and has 16 MiB of addresses without anything behind them, where guests put the frames of
//! their grant table. Fixed ports 0x10 to 0x13 (xen docs/misc/hvm-emulated-unplug.pandoc):
//!
//! | access | meaning |
//! |---|---|
//! | read 16 bits at 0x10 | 0x49d2: there is the protocol; 0xd249: this driver is not to be used |
//! | read 8 bits at 0x12 | version of the protocol: 1 |
//! | write 16 bits at 0x12 | number of the product that the driver is |
//! | write 32 bits at 0x10 | number of its build |
//! | write 16 bits at 0x10 | what is unplugged, see [`Emulated`] |
//! | write 8 bits at 0x12 | a character for the host's log |
//! | 8 bits at 0x10 | flags, which are only remembered |

use std::sync::Arc;
use std::time::Duration;

use crate::bucket::Bucket;
use crate::bus::{Region, Registers, Timer, read_le, value_le};
use crate::chipset::{DebugPort, LineSink};
use crate::pci::{BarKind, Config, PciFunction};

/// The fixed ports: base, length, region.
pub const UNPLUG_PORTS: (u64, u64, Region) = (0x10, 4, 0);
/// Region of the device's I/O ports, and of its memory: the numbers of its base address registers.
pub const PORTS: Region = 0;
/// See [`PORTS`].
pub const MEMORY: Region = 1;

/// "The protocol is there", and the answer to a driver that is not to be used.
const MAGIC: u16 = 0x49d2;
const REFUSED: u16 = 0xd249;
const VERSION: u8 = 1;
/// Offset of the port of the log among the device's own.
const LOG_OFFSET: u64 = 8;
/// Bytes of I/O space and of memory.
const PORT_BYTES: u32 = 256;
const MEMORY_BYTES: u32 = 16 << 20;

/// Lines of the guest's that pass in a second; as many more may come at once.
const LINES: u64 = 32;
const SECOND: Duration = Duration::from_secs(1);

/// Emulated devices that a guest unplugs. The numbers are the bits of the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// All IDE disks; no CD-ROM drive.
    Disks = 1,
    /// All network cards.
    Nics = 2,
    /// All IDE disks but the first drive of the first channel. [`Emulated::Disks`] takes precedence.
    AuxDisks = 4,
}

/// Takes emulated devices away. Called with one of the two kinds of disks at most.
pub type Unplug = Box<dyn FnMut(Emulated) + Send>;

/// PV drivers that are not to be used: a product, and the first build of it that may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Number of the product (xen docs/misc/hvm-emulated-unplug.pandoc, "product numbers").
    pub product: u16,
    /// Builds below this one are refused.
    pub below: u32,
}

/// Lets a bounded number of lines in a second through to `sink`, and says how many it did not.
pub fn bounded(clock: Arc<dyn Timer>, mut sink: LineSink) -> LineSink {
    let mut bucket = Bucket::new(LINES, SECOND, SECOND);
    let (mut last, mut dropped) = (clock.now(), 0u64);
    Box::new(move |line| {
        let now = clock.now();
        bucket.fill(Duration::from_nanos(now.saturating_sub(last)));
        last = now;
        if !bucket.delay().is_zero() {
            dropped += 1;
            return;
        }
        bucket.take(1);
        if dropped > 0 {
            sink(&format!("({dropped} lines left out)"));
            dropped = 0;
        }
        sink(line);
    })
}

/// The fixed ports.
pub struct UnplugPorts {
    unplug: Unplug,
    refused: Vec<Refused>,
    log: DebugPort,
    flags: u8,
    product: u16,
    is_refused: bool,
}

impl UnplugPorts {
    /// What drivers print goes to `sink`. Those that `refused` names are told so, and unplug nothing.
    pub fn new(unplug: Unplug, refused: Vec<Refused>, sink: LineSink) -> Self {
        Self { unplug, refused, log: DebugPort::new(sink), flags: 0, product: 0, is_refused: false }
    }

    fn unplug(&mut self, mask: u16) {
        if self.is_refused {
            return;
        }
        let has = |what: Emulated| mask & what as u16 != 0;
        if has(Emulated::Disks) {
            (self.unplug)(Emulated::Disks);
        } else if has(Emulated::AuxDisks) {
            (self.unplug)(Emulated::AuxDisks);
        }
        if has(Emulated::Nics) {
            (self.unplug)(Emulated::Nics);
        }
    }
}

impl Registers for UnplugPorts {
    fn read(&mut self, _: Region, offset: u64, data: &mut [u8]) {
        let value = match (offset, data.len()) {
            (0, 1) => self.flags.into(),
            (0, 2) if self.is_refused => REFUSED.into(),
            (0, 2) => MAGIC.into(),
            (2, 1) => VERSION.into(),
            _ => return,
        };
        read_le(value, 0, data);
    }

    fn write(&mut self, _: Region, offset: u64, data: &[u8]) {
        let value = value_le(data);
        match (offset, data.len()) {
            (0, 1) => self.flags = (value & 0xff) as u8,
            (0, 2) => self.unplug((value & 0xffff) as u16),
            (0, 4) => {
                let product = self.product;
                let is_old = |refused: &Refused| refused.product == product && value < refused.below.into();
                self.is_refused = self.refused.iter().any(is_old);
            }
            (2, 1) => self.log.write(0, 0, data),
            (2, 2) => self.product = (value & 0xffff) as u16,
            _ => {}
        }
    }

    fn reset(&mut self) {
        (self.flags, self.product, self.is_refused) = (0, 0, false);
        self.log.reset();
    }
}

/// The device on the PCI bus.
pub struct PlatformDevice {
    config: Config,
    log: DebugPort,
}

impl PlatformDevice {
    /// What drivers print goes to `sink`.
    pub fn new(sink: LineSink) -> Self {
        let config = Config::new(0x5853, 1, 0xff_80_00, 1)
            .subsystem(0x5853, 1)
            .interrupt_pin(1)
            .bar(PORTS, BarKind::Io, PORT_BYTES)
            .bar(MEMORY, BarKind::Prefetchable, MEMORY_BYTES);
        Self { config, log: DebugPort::new(sink) }
    }
}

impl Registers for PlatformDevice {
    /// Nothing answers: neither a port, nor memory where the guest has put no page.
    fn read(&mut self, _: Region, _: u64, _: &mut [u8]) {}

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        if (region, offset, data.len()) == (PORTS, LOG_OFFSET, 1) {
            self.log.write(0, 0, data);
        }
    }

    fn reset(&mut self) {
        self.config.reset();
        self.log.reset();
    }
}

impl PciFunction for PlatformDevice {
    fn config(&self) -> &Config {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
    }
}

#[cfg(test)]
#[path = "platform/tests.rs"]
mod tests;
