//! The devices at a PC's fixed places, and the screen.

use std::sync::{Arc, Mutex, PoisonError};

use devices::bus::{Bus, IrqLine, Shared};
use devices::chipset::{InterruptRouter, PowerSwitch};
use devices::pc::cmos::Cmos;
use devices::pc::dma::{DMA_PORTS, Dma};
use devices::pc::i8042::{I8042, I8042_PORTS, KEYBOARD_IRQ, MOUSE_IRQ, Ps2Input};
use devices::pc::port92::{PORT92, Port92};
use devices::pc::rtc::{HostTime, RTC_PORTS, Rtc};
use devices::pc::serial::{ByteStream, COM1_IRQ, COM1_PORTS, Uart};
use devices::pc::{Machine as Reset, Ports};
use devices::pci::{PciBus, PciFunction};
use devices::vga::{FIXED_MEMORY, FIXED_PORTS, Vga, VgaConfig};

use super::super::{EarlyOutput, Machine, MachineError};
use super::board::{BoardConfig, failed};
use super::mapper::Mapper;
use super::timers::Timers;

/// The device of bus 0 that the screen is.
const VGA_DEVICE: u8 = 2;
/// MiB of video memory.
const VIDEO_MEMORY: usize = 16;
/// Input for the serial port that waits for the guest.
const INPUT_BYTES: usize = 4 << 10;

/// What devices that can reset the machine do with it. Address line 20 is always open: no guest of today's counts on
/// addresses that wrap.
struct Lines(Arc<dyn PowerSwitch>);

impl Reset for Lines {
    fn reset(&self) {
        self.0.reset();
    }

    fn set_a20(&self, on: bool) {
        tracing::trace!(on, "address line 20");
    }
}

/// What was typed for the serial port.
pub(super) type Typed = Arc<Mutex<Input>>;

/// See above.
#[derive(Default)]
pub(super) struct Input {
    bytes: std::collections::VecDeque<u8>,
    /// There is more where it came from.
    more: bool,
}

/// The serial port's other end: the console.
struct Console {
    machine: std::sync::Weak<Machine>,
    typed: Typed,
}

impl Console {
    fn tell(&self, text: &[u8]) {
        if let Some(early) = self.machine.upgrade().as_ref().and_then(|machine| machine.early.get()) {
            let early: &EarlyOutput = early;
            early(text);
        }
    }
}

impl ByteStream for Console {
    fn send(&mut self, byte: u8) {
        self.tell(&[byte]);
    }

    fn receive(&mut self, buf: &mut [u8]) -> usize {
        let mut typed = self.typed.lock().unwrap_or_else(PoisonError::into_inner);
        let count = buf.len().min(typed.bytes.len());
        for (slot, byte) in buf.iter_mut().zip(typed.bytes.drain(..count)) {
            *slot = byte;
        }
        if count > 0 && std::mem::take(&mut typed.more) {
            drop(typed);
            self.tell(&[]);
        }
        count
    }
}

/// What others reach for.
pub(super) struct Legacy {
    pub(super) keyboard: Shared<I8042>,
    pub(super) vga: Shared<Vga>,
    serial: Shared<Uart>,
    typed: Typed,
}

impl Legacy {
    /// Gives the serial port what was typed; returns how many bytes it has room for.
    pub(super) fn type_in(&self, bytes: &[u8]) -> usize {
        let mut typed = self.typed.lock().unwrap_or_else(PoisonError::into_inner);
        let room = INPUT_BYTES.saturating_sub(typed.bytes.len()).min(bytes.len());
        typed.bytes.extend(bytes.iter().take(room));
        typed.more |= room < bytes.len();
        drop(typed);
        self.serial.lock().unwrap_or_else(PoisonError::into_inner).poll();
        room
    }

    /// Keyboard and mouse.
    pub(super) fn input(&self) -> Ps2Input {
        Ps2Input(Arc::clone(&self.keyboard))
    }
}

fn map(bus: &Bus, device: &Shared, ports: &[Ports]) {
    for Ports { base, len, region } in ports {
        bus.map(*base, *len, device, *region);
    }
}

/// Makes them, and maps their ports.
pub(super) fn build(
    machine: &Arc<Machine>,
    config: &BoardConfig,
    mapper: &Mapper,
    (router, switch, clock_line): (&Arc<InterruptRouter>, &Arc<dyn PowerSwitch>, Arc<dyn IrqLine>),
    timers: &mut Timers,
    pci: &mut PciBus,
) -> Result<Legacy, MachineError> {
    let lines: Arc<dyn Reset> = Arc::new(Lines(Arc::clone(switch)));
    let ports = &mapper.ports;
    let ram = super::super::memory::Layout::PC.ram_ranges(config.memory);
    let part = |n: usize| ram.get(n).map_or(0, |(_, len)| *len);
    let cmos = Cmos {
        memory: part(0),
        memory_above_4g: part(1),
        processors: config.vcpus,
        boot: config.boot.clone(),
        ..Cmos::default()
    };
    let clock = timers.clock().map_err(failed)?;
    let start = HostTime::now(config.localtime);
    let rtc: Shared = Arc::new(Mutex::new(Rtc::new(clock_line, clock, cmos.bytes(), start)));
    timers.belongs_to(&rtc);
    map(ports, &rtc, &RTC_PORTS);

    let clock = timers.clock().map_err(failed)?;
    let (key, mouse) = (router.isa(KEYBOARD_IRQ), router.isa(MOUSE_IRQ));
    let keyboard = Arc::new(Mutex::new(I8042::new(key, mouse, clock, Arc::clone(&lines))));
    let device: Shared = Arc::clone(&keyboard) as _;
    timers.belongs_to(&device);
    map(ports, &device, &I8042_PORTS);

    let device: Shared = Arc::new(Mutex::new(Port92::new(lines)));
    map(ports, &device, &[PORT92]);
    let device: Shared = Arc::new(Mutex::new(Dma::default()));
    map(ports, &device, &DMA_PORTS);

    let typed = Typed::default();
    let stream = Console { machine: Arc::downgrade(machine), typed: Arc::clone(&typed) };
    let serial = Arc::new(Mutex::new(Uart::new(router.isa(COM1_IRQ), Box::new(stream))));
    let device: Shared = Arc::clone(&serial) as _;
    map(ports, &device, &[COM1_PORTS]);

    let card = VgaConfig { memory_mib: VIDEO_MEMORY, rom: config.vgabios.map(<[u8]>::to_vec) };
    let clock = timers.clock().map_err(failed)?;
    let vga = Arc::new(Mutex::new(Vga::new(&card, clock).map_err(failed)?));
    let device: Shared = Arc::clone(&vga) as _;
    timers.belongs_to(&device);
    for (base, len, region) in FIXED_PORTS {
        ports.map(base, len, &device, region);
    }
    for (base, len, region) in FIXED_MEMORY {
        mapper.memory.map(base, len, &device, region);
    }
    let function: Shared<dyn PciFunction> = Arc::clone(&vga) as _;
    pci.add(VGA_DEVICE, 0, function);
    Ok(Legacy { keyboard, vga, serial, typed })
}
