//! The board: which devices there are, and how they are wired.

use std::io;
use std::sync::{Arc, Mutex, Weak};

use acpi::{CpuIdentity, HvmTopology, PciPin, Smbios};
use devices::bus::{IrqLine, Region, Registers, Shared};
use devices::chipset::{
    DEBUG_PORTS, DebugPort, FW_CFG_PORTS, FwCfg, HostBridge, InterruptRouter, IsaBridge, PIIX_DEVICE,
    POWER_FUNCTION, POWER_PORTS, Power, PowerConfig, PowerSwitch, SCI_IRQ, XEN_DEBUG_PORT,
};
use devices::ide::{self, Attachment, Ide, Identity, Place};
use devices::memory::{PAGE_SIZE, SharedPages};
use devices::pc::cmos::BootDevice;
use devices::pc::hpet::HPET_BLOCK_ID;
use devices::pc::i8042::Ps2Input;
use devices::pc::rtc::RTC_IRQ;
use devices::pci::{PciBus, PciFunction};
use devices::vga::VgaScreen;
use kvm_ioctls::VmFd;

use super::super::memory::{Access, Layout};
use super::super::{Exits, Machine, MachineError, Topology, vcpu::StopSignal};
use super::boot_order;
use super::hpet::{self, Gate};
use super::legacy::{self, Legacy};
use super::mapper::Mapper;
use super::platform::{self, Unplugs};
use super::shadow::ShadowMap;
use super::timers::Timers;
use crate::hypercall::StopReason;

/// Ports of PCI's configuration mechanism 1.
const PCI_PORTS: (u64, u64) = (0xcf8, 8);
/// Offset of the reset control register among them, where only wide accesses are PCI's.
const RESET_OFFSET: u64 = 1;

/// Numbers of fw_cfg's items.
mod item {
    pub(super) const UUID: u16 = 2;
    pub(super) const RAM_SIZE: u16 = 3;
    pub(super) const CPUS: u16 = 5;
    pub(super) const BOOT_MENU: u16 = 0x0e;
    pub(super) const MAX_CPUS: u16 = 0x0f;
    /// With more than 255 processors SeaBIOS makes neither an MP table nor a $PIR of its own.
    pub(super) const NO_TABLES: u16 = 256;
    /// The interval timer is at pin 2 of the I/O APIC.
    pub(super) const IRQ0_OVERRIDE: u16 = 0x8002;
}

/// Kinds of ranges of the memory map that firmware is given.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// States S0 and S5 are there (bit 7), S3 and S4 are not.
const SYSTEM_STATES: [u8; 6] = [0x80, 0, 0, 1, 2, 0x80];

/// What the board is made of.
pub struct BoardConfig<'a> {
    /// Bytes of RAM.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// The machine's UUID.
    pub uuid: [u8; 16],
    /// The firmware: its end is the end of the first 4 GiB.
    pub firmware: &'a [u8],
    /// The screen's firmware, if there is one.
    pub vgabios: Option<&'a [u8]>,
    /// With power management.
    pub acpi: bool,
    /// With APICs.
    pub apic: bool,
    /// The clock shows the host's time zone.
    pub localtime: bool,
    /// What is booted from, in this order.
    pub boot: Vec<BootDevice>,
    /// With an event timer.
    pub hpet: bool,
}

/// A drive of the IDE controller.
pub struct Drive {
    /// Where it is.
    pub place: Place,
    /// What it is.
    pub what: Attachment,
    /// What it says of itself.
    pub identity: Identity,
}

/// Function of the IDE controller, beside the ISA bridge.
const IDE_FUNCTION: u8 = 1;

struct Switch(Arc<StopSignal>);

impl PowerSwitch for Switch {
    fn reset(&self) {
        self.0.set(StopReason::Reboot);
    }

    fn power_off(&self) {
        self.0.set(StopReason::PowerOff);
    }
}

/// An input of KVM's interrupt controllers.
pub(super) struct Input {
    pub(super) vm: Arc<VmFd>,
    pub(super) irq: u32,
}

impl IrqLine for Input {
    fn set(&self, high: bool) {
        if let Err(error) = self.vm.set_irq_line(self.irq, high) {
            tracing::debug!(%error, irq = self.irq, "KVM does not set an interrupt line");
        }
    }
}

/// PCI's ports, and the one among them that is not.
pub(super) struct PciPorts {
    pub(super) pci: PciBus,
    bridge: Arc<Mutex<IsaBridge>>,
}

impl PciPorts {
    fn device(&mut self, offset: u64, len: usize, f: impl FnOnce(&mut dyn Registers)) {
        if (offset, len) == (RESET_OFFSET, 1) {
            f(&mut *self.bridge.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        } else {
            f(&mut self.pci);
        }
    }
}

impl Registers for PciPorts {
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        self.device(offset, data.len(), |device| device.read(region, offset, data));
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        self.device(offset, data.len(), |device| device.write(region, offset, data));
    }

    fn reset(&mut self) {
        self.pci.reset();
    }
}

/// The devices of a PC.
pub struct Board {
    mapper: Arc<Mapper>,
    shadow: Arc<ShadowMap>,
    power: Option<Arc<Mutex<Power>>>,
    ide: Weak<Mutex<Ide>>,
    legacy: Legacy,
}

/// The ways in which a board cannot be made.
pub(super) fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> MachineError {
    MachineError::kvm("a device of the board")(io::Error::other(error))
}

impl Board {
    /// Makes the devices, and gives them to `machine`. Their alarms are `timers`.
    pub fn build(
        machine: &Arc<Machine>,
        config: &BoardConfig,
        drives: Vec<Drive>,
        timers: &mut Timers,
    ) -> Result<Arc<Self>, MachineError> {
        let rom = load_firmware(machine, config.firmware)?;
        let shadow = Arc::new(ShadowMap::new(machine, rom));
        let mapper = Arc::new(Mapper::new(machine));
        let router =
            InterruptRouter::new(|irq| Arc::new(Input { vm: Arc::clone(&machine.vm), irq: irq.into() }));
        let switch: Arc<dyn PowerSwitch> = Arc::new(Switch(Arc::clone(&machine.stop)));

        let bridge = Arc::new(Mutex::new(IsaBridge::new(Arc::clone(&router), Arc::clone(&switch))));
        let mut pci = PciBus::new(Arc::clone(&mapper) as _);
        let host: Shared<dyn PciFunction> = Arc::new(Mutex::new(HostBridge::new(Arc::clone(&shadow) as _)));
        pci.add(0, 0, host);
        pci.add(PIIX_DEVICE, 0, Arc::clone(&bridge) as _);
        let clock_line = Gate::new(router.isa(RTC_IRQ));
        let lines = (&router, &switch, Arc::clone(&clock_line) as _);
        if config.hpet {
            hpet::build(machine, &mapper, &router, clock_line, timers)?;
        }
        let legacy = legacy::build(machine, config, &mapper, lines, timers, &mut pci)?;
        let order = boot_order::paths(&config.boot, &drives);
        let mut ide = Ide::new(&machine.ram, ide::IRQS.map(|irq| router.isa(irq)));
        for Drive { place, what, identity } in drives {
            if !ide.attach(place, what, identity) {
                return Err(failed(format!("two IDE drives at {place:?}")));
            }
        }
        let ide = Arc::new(Mutex::new(ide));
        let drives = Arc::downgrade(&ide);
        let device: Shared = Arc::clone(&ide) as _;
        for (base, len, region) in ide::PORTS {
            mapper.ports.map(base, len, &device, region);
        }
        pci.add(PIIX_DEVICE, IDE_FUNCTION, Arc::clone(&ide) as _);
        let unplugs = Unplugs { ide, nics: Vec::new() };
        let clock = platform::add_device(machine, &router, timers, &mut pci)?;
        let power = if config.acpi {
            let power = PowerConfig {
                sci: router.isa(SCI_IRQ),
                timer: timers.clock().map_err(failed)?,
                switch: Arc::clone(&switch),
                places: Arc::clone(&mapper) as _,
            };
            let power = Arc::new(Mutex::new(Power::new(power)));
            let _ = mapper.power.set(Arc::downgrade(&power));
            let device: Shared = Arc::clone(&power) as _;
            timers.belongs_to(&device);
            for (base, len, region) in POWER_PORTS {
                mapper.ports.map(base, len, &device, region);
            }
            pci.add(PIIX_DEVICE, POWER_FUNCTION, Arc::clone(&power) as _);
            Some(power)
        } else {
            None
        };

        let pins = pci.pins().map(|(device, function, pin)| PciPin { device, function, pin }).collect();
        let mut fw_cfg = fw_cfg(machine, config, pins)?;
        fw_cfg.add_file("bootorder", order).map_err(failed)?;
        let fw_cfg: Shared = Arc::new(Mutex::new(fw_cfg));
        let pci = Arc::new(Mutex::new(PciPorts { pci, bridge }));
        let ports: Shared = Arc::clone(&pci) as _;
        mapper.ports.map(PCI_PORTS.0, PCI_PORTS.1, &ports, 0);
        if let Some(clock) = clock {
            platform::map_ports(&mapper, clock, unplugs, pci);
        }
        let debug = |name| -> Shared {
            Arc::new(Mutex::new(DebugPort::new(Box::new(move |line| tracing::debug!("{name}: {line}")))))
        };
        mapper.ports.map(DEBUG_PORTS.0, DEBUG_PORTS.1, &debug("firmware"), DEBUG_PORTS.2);
        mapper.ports.map(XEN_DEBUG_PORT.0, XEN_DEBUG_PORT.1, &debug("guest"), XEN_DEBUG_PORT.2);
        mapper.ports.map(FW_CFG_PORTS.0, FW_CFG_PORTS.1, &fw_cfg, FW_CFG_PORTS.2);

        let board = Arc::new(Self { mapper, shadow, power, ide: drives, legacy });
        machine.set_exits(Arc::clone(&board) as _);
        Ok(board)
    }

    /// The machine does not run any more: lets go of the devices, which know each other, and so of the disks.
    pub fn finish(&self) {
        self.mapper.ports.clear();
        self.mapper.memory.clear();
    }

    /// Somebody presses the power button. False: there is none, without power management.
    pub fn press_power_button(&self) -> bool {
        let Some(power) = &self.power else { return false };
        power.lock().unwrap_or_else(std::sync::PoisonError::into_inner).press_button();
        true
    }
}

impl Board {
    /// Gives the serial port what was typed; returns how many bytes it took.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        self.legacy.type_in(bytes)
    }

    /// Keyboard and mouse.
    pub fn input(&self) -> Ps2Input {
        self.legacy.input()
    }

    /// The IDE controller, while the machine runs.
    pub fn ide(&self) -> Weak<Mutex<Ide>> {
        Weak::clone(&self.ide)
    }

    /// The screen.
    pub fn screen(&self) -> VgaScreen {
        VgaScreen::new(Arc::clone(&self.legacy.vga))
    }
}

/// Puts the firmware where the processor starts.
fn load_firmware(machine: &Arc<Machine>, firmware: &[u8]) -> Result<Arc<SharedPages>, MachineError> {
    let pages = firmware.len().div_ceil(PAGE_SIZE);
    let rom = Arc::new(SharedPages::new("xvmm-firmware", pages).map_err(MachineError::Memory)?);
    rom.write(pages * PAGE_SIZE - firmware.len(), firmware);
    let gpa = (1 << 32) - (pages * PAGE_SIZE) as u64;
    machine.space.map_pages(&rom, 0, pages, gpa, Access::ReadOnly).map_err(MachineError::Memory)?;
    Ok(rom)
}

fn fw_cfg(machine: &Machine, config: &BoardConfig, pins: Vec<PciPin>) -> Result<FwCfg, MachineError> {
    let mut device = FwCfg::new(Arc::clone(&machine.ram));
    let cpus = u16::try_from(config.vcpus).unwrap_or(u16::MAX).to_le_bytes();
    device.add(item::UUID, config.uuid);
    device.add(item::RAM_SIZE, config.memory.to_le_bytes());
    device.add(item::CPUS, cpus);
    device.add(item::MAX_CPUS, item::NO_TABLES.to_le_bytes());
    device.add(item::BOOT_MENU, 0u16.to_le_bytes());
    device.add(item::IRQ0_OVERRIDE, 1u32.to_le_bytes());
    let mut map = Vec::new();
    let mut range = |start: u64, len: u64, kind: u32| {
        map.extend(start.to_le_bytes());
        map.extend(len.to_le_bytes());
        map.extend(kind.to_le_bytes());
    };
    for (start, len) in Layout::PC.ram_ranges(config.memory) {
        range(start, len, E820_RAM);
    }
    let (start, end) = Layout::PC.reserved();
    range(start, end - start, E820_RESERVED);
    device.add_file("etc/e820", map).map_err(failed)?;
    device.add_file("etc/system-states", SYSTEM_STATES).map_err(failed)?;
    // Without anything to boot from the firmware waits, rather than to start over.
    device.add_file("etc/boot-fail-wait", u32::MAX.to_le_bytes()).map_err(failed)?;
    add_tables(&mut device, (machine.cpu, machine.topology), config, pins)?;
    Ok(device)
}

/// The tables of ACPI, MP and SMBIOS, which the firmware only moves to their places.
fn add_tables(
    device: &mut FwCfg,
    (cpu, processors): (CpuIdentity, Topology),
    config: &BoardConfig,
    pins: Vec<PciPin>,
) -> Result<(), MachineError> {
    let ram = Layout::PC.ram_ranges(config.memory);
    let low_ram_end = ram.first().and_then(|(_, len)| u32::try_from(*len).ok()).unwrap_or(0);
    let topology = HvmTopology {
        cpu,
        pins,
        acpi: config.acpi,
        apic: config.apic,
        hpet: config.hpet.then_some(HPET_BLOCK_ID),
        ..HvmTopology::new(config.vcpus, low_ram_end)
    };
    for (name, bytes) in topology.tables().map_err(failed)?.fw_cfg() {
        device.add_file(name, bytes).map_err(failed)?;
    }
    let smbios = Smbios {
        manufacturer: "Xen".into(),
        product: "HVM domU".into(),
        version: "4.17".into(),
        release_date: "01/01/2024".into(),
        uuid: config.uuid,
        serial: uuid::Uuid::from_bytes(config.uuid).to_string(),
        cpu,
        sockets: u16::try_from(processors.sockets).unwrap_or(u16::MAX),
        cores: u16::try_from(processors.cores).unwrap_or(u16::MAX),
        threads: 1,
        ram: ram.iter().map(|(start, len)| *start..start + len).collect(),
    };
    let tables = smbios.tables();
    device.add_file(acpi::SMBIOS_ANCHOR_FILE, tables.anchor).map_err(failed)?;
    device.add_file(acpi::SMBIOS_TABLES_FILE, tables.tables).map_err(failed)
}

impl Exits for Board {
    fn port_in(&self, port: u16, data: &mut [u8]) {
        self.mapper.ports.read(port.into(), data);
    }

    fn port_out(&self, port: u16, data: &[u8]) {
        self.mapper.ports.write(port.into(), data);
    }

    fn memory_read(&self, addr: u64, data: &mut [u8]) {
        self.mapper.memory.read(addr, data);
    }

    fn memory_write(&self, addr: u64, data: &[u8]) {
        if !self.shadow.write(addr, data) {
            self.mapper.memory.write(addr, data);
        }
    }

    fn triple_fault(&self) -> StopReason {
        StopReason::Reboot
    }
}
