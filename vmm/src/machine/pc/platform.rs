//! What PV drivers find on a PC: the Xen platform device, and the ports that unplug emulated devices.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use devices::bus::{Region, Registers, Shared, Timer};
use devices::chipset::{InterruptRouter, LineSink};
use devices::ide::{Ide, Place};
use devices::pci::PciBus;
use devices::xen::platform::{Emulated, PlatformDevice, UNPLUG_PORTS, UnplugPorts, bounded};

use super::super::delivery::KvmDelivery;
use super::super::{Machine, MachineError};
use super::board::{PciPorts, failed};
use super::mapper::Mapper;
use super::timers::Timers;

/// The device of bus 0 that the platform device is.
pub(super) const PLATFORM_DEVICE: u8 = 3;

/// What can be unplugged. A reset of the machine makes everything anew, and so plugs it in again.
pub(super) struct Unplugs {
    /// Whose hard disks go.
    pub(super) ide: Shared<Ide>,
    /// Network cards: their devices of bus 0.
    pub(super) nics: Vec<u8>,
}

/// The timer of vCPU 0 while events come by an interrupt line.
struct LineTimer(Weak<KvmDelivery>);

impl Registers for LineTimer {
    fn read(&mut self, _: Region, _: u64, _: &mut [u8]) {}
    fn write(&mut self, _: Region, _: u64, _: &[u8]) {}
    fn expired(&mut self) {
        if let Some(delivery) = self.0.upgrade() {
            delivery.timer_expired();
        }
    }
    fn reset(&mut self) {}
}

fn log(clock: &Arc<dyn Timer>) -> LineSink {
    bounded(Arc::clone(clock), Box::new(|line| tracing::debug!("PV drivers: {line}")))
}

/// Adds the device, and tells those who deliver events of the board. `None`: the guest sees no Xen, and so no such device.
pub(super) fn add_device(
    machine: &Arc<Machine>,
    router: &Arc<InterruptRouter>,
    timers: &mut Timers,
    pci: &mut PciBus,
) -> Result<Option<Arc<dyn Timer>>, MachineError> {
    let Some(delivery) = &machine.xen else { return Ok(None) };
    let clock: Arc<dyn Timer> = timers.clock().map_err(failed)?;
    delivery.set_board(Arc::clone(router), Arc::clone(&clock));
    let timer: Shared = Arc::new(Mutex::new(LineTimer(Arc::downgrade(delivery))));
    timers.belongs_to(&timer);
    if !pci.add(PLATFORM_DEVICE, 0, Arc::new(Mutex::new(PlatformDevice::new(log(&clock))))) {
        return Err(failed("two PCI devices in the place of the platform device"));
    }
    Ok(Some(clock))
}

/// Maps the fixed ports. They are no part of the device on the bus: who unplugs a card locks the bus, whose accesses lock
/// its devices.
pub(super) fn map_ports(mapper: &Mapper, clock: Arc<dyn Timer>, unplugs: Unplugs, pci: Shared<PciPorts>) {
    let unplug = move |what| {
        tracing::debug!(?what, "the guest unplugs emulated devices");
        let ide = || unplugs.ide.lock().unwrap_or_else(PoisonError::into_inner);
        match what {
            Emulated::Disks => ide().unplug_disks(None),
            Emulated::AuxDisks => ide().unplug_disks(Place::of_hd(0)),
            Emulated::Nics => {
                let mut ports = pci.lock().unwrap_or_else(PoisonError::into_inner);
                for device in &unplugs.nics {
                    ports.pci.remove(*device, 0);
                }
            }
        }
    };
    let ports: Shared = Arc::new(Mutex::new(UnplugPorts::new(Box::new(unplug), Vec::new(), log(&clock))));
    mapper.ports.map(UNPLUG_PORTS.0, UNPLUG_PORTS.1, &ports, UNPLUG_PORTS.2);
}
