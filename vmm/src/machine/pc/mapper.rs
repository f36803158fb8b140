//! Where PCI functions, and the power management's registers, answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use devices::bus::{Bus, Shared};
use devices::chipset::{Power, PowerBlock, PowerPlaces};
use devices::memory::PAGE_SIZE;
use devices::pci::{Bar, BarKind, BarMapper, PciFunction};

use super::super::Machine;
use super::super::memory::Access;

/// The two address spaces, and what is mapped into the guest as memory.
pub(super) struct Mapper {
    machine: Weak<Machine>,
    pub(super) ports: Bus,
    pub(super) memory: Bus,
    /// Slots of mapped memory, by address.
    slots: Mutex<BTreeMap<u64, u32>>,
    pub(super) power: OnceLock<Weak<Mutex<Power>>>,
}

impl Mapper {
    pub(super) fn new(machine: &Arc<Machine>) -> Self {
        let (ports, memory) = (Bus::default(), Bus::default());
        Self {
            machine: Arc::downgrade(machine),
            ports,
            memory,
            slots: Mutex::default(),
            power: OnceLock::new(),
        }
    }

    /// Maps a region that is plain memory, read-only. False: it is none, or KVM refuses.
    fn map_memory(&self, function: &Shared<dyn PciFunction>, bar: Bar) -> bool {
        let Some(machine) = self.machine.upgrade() else { return false };
        let pages = function.lock().unwrap_or_else(PoisonError::into_inner).memory(bar.index);
        let Some(pages) = pages else { return false };
        let count = usize::try_from(bar.len).unwrap_or(usize::MAX) / PAGE_SIZE;
        // Where software puts a register is its own affair: over RAM or the interrupt controllers nothing is mapped.
        match machine.space.map_pages(&pages, 0, count.min(pages.pages()), bar.base, Access::ReadOnly) {
            Ok(slot) => {
                self.slots.lock().unwrap_or_else(PoisonError::into_inner).insert(bar.base, slot);
                true
            }
            Err(error) => {
                tracing::debug!(%error, ?bar, "KVM does not map the memory of a PCI device there");
                false
            }
        }
    }
}

impl BarMapper for Mapper {
    fn map(&self, function: &Shared<dyn PciFunction>, bar: Bar) {
        // Memory that can be written has to come to its device, which would not learn of the writes.
        if bar.kind == BarKind::Rom && self.map_memory(function, bar) {
            return;
        }
        let bus = if bar.kind == BarKind::Io { &self.ports } else { &self.memory };
        let device: Shared = Arc::clone(function) as _;
        if !bus.map(bar.base, bar.len, &device, bar.index) {
            tracing::debug!(?bar, "registers of a PCI device are put where others are: they do not answer");
        }
    }

    fn unmap(&self, function: &Shared<dyn PciFunction>, bar: Bar) {
        if bar.kind != BarKind::Io {
            let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&bar.base);
            if let (Some(slot), Some(machine)) = (slot, self.machine.upgrade()) {
                if let Err(error) = machine.space.unmap(slot, bar.base) {
                    tracing::warn!(%error, "KVM does not unmap a PCI device's memory");
                }
                return;
            }
        }
        let device: Shared = Arc::clone(function) as _;
        let bus = if bar.kind == BarKind::Io { &self.ports } else { &self.memory };
        bus.unmap_of(bar.base, &device);
    }
}

impl PowerPlaces for Mapper {
    fn moved(&self, block: PowerBlock, old: Option<u16>, new: Option<u16>) {
        let Some(power) = self.power.get().and_then(Weak::upgrade) else { return };
        let device: Shared = power;
        let (len, region) = block.ports();
        if let Some(old) = old {
            self.ports.unmap_of(old.into(), &device);
        }
        if let Some(new) = new
            && !self.ports.map(new.into(), len, &device, region)
        {
            tracing::debug!(?block, new, "power management is put where other ports are: it does not answer");
        }
    }
}
