//! What only a PVH guest's machine has: no interrupt controller but the local APICs, three ports, an entry point.

use std::sync::{Arc, Weak};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap, kvm_regs, kvm_segment,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{Exits, Machine, MachineError, RESET_PORT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT};
use crate::boot::BootEntry;
use crate::hypercall::{Platform, StopReason};

/// Early output of kernels with earlyprintk=xen.
const DEBUG_PORT: u16 = 0xe9;
/// Counters of a PC's interval timer, which a PVH guest does not have.
const PIT_COUNTERS: u16 = 0x40;
const PIT_COUNTERS_END: u16 = 0x42;

/// The local APICs are KVM's; a PVH guest has no IOAPIC, so no pins.
pub(super) fn set_up(vm: &VmFd) -> Result<(), MachineError> {
    let cap = |cap, args0, what| {
        let cap = kvm_enable_cap { cap, args: [args0, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&cap).map_err(MachineError::kvm(what))
    };
    cap(KVM_CAP_SPLIT_IRQCHIP, 0, "the local APICs")?;
    let x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    cap(KVM_CAP_X2APIC_API, u64::from(x2apic), "x2APIC")
}

/// The ports of a PVH guest.
pub(super) struct PvhPorts(Weak<Machine>);

impl PvhPorts {
    pub(super) fn new(machine: &Arc<Machine>) -> Self {
        Self(Arc::downgrade(machine))
    }
}

impl Exits for PvhPorts {
    fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(match port {
            DEBUG_PORT => 0xe9,
            // A counter that stands still at 0: Linux gives up its TSC calibration at the first look. With
            // all ones it looks 100,000 times, an exit each.
            PIT_COUNTERS..=PIT_COUNTERS_END => 0,
            SLEEP_STATUS_PORT => 0,
            // Nothing answers on other ports: all ones, as on a bus without a device.
            _ => 0xff,
        });
    }

    fn port_out(&self, port: u16, data: &[u8]) {
        let Some(machine) = self.0.upgrade() else { return };
        match (port, data) {
            (DEBUG_PORT, text) => machine.early_output(text),
            (SLEEP_CONTROL_PORT, [value]) if acpi::is_power_off(*value) => machine.stop(StopReason::PowerOff),
            (RESET_PORT, [acpi::RESET_VALUE]) => machine.stop(StopReason::Reboot),
            _ => {}
        }
    }

    fn memory_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn memory_write(&self, _: u64, _: &[u8]) {}

    fn triple_fault(&self) -> StopReason {
        StopReason::Crash
    }
}

/// The state at a PVH entry point (xen/docs/misc/pvh.pandoc): 32-bit protected mode without paging, flat
/// segments, EBX = start_info.
pub(super) fn set_state(fd: &VcpuFd, entry: &BootEntry) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = fd.get_sregs()?;
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(8, 0xb);
    for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss, &mut sregs.fs, &mut sregs.gs] {
        *data = flat(16, 3);
    }
    sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, present: 1, selector: 24, ..Default::default() };
    sregs.cr0 = 0x11;
    sregs.cr4 = 0;
    sregs.efer = 0;
    fd.set_sregs(&sregs)?;
    fd.set_regs(&kvm_regs { rip: entry.entry_gpa, rbx: entry.start_info, rflags: 2, ..Default::default() })
}
