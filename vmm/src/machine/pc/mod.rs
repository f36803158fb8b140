//! A PC: KVM's interrupt controllers and interval timer, the chip set's devices, firmware.

mod board;
mod boot_order;
mod hpet;
mod legacy;
mod mapper;
mod platform;
mod shadow;
mod ticks;
mod timers;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_pit_config,
};
use kvm_ioctls::{VcpuFd, VmFd};

pub use board::{Board, BoardConfig, Drive};
pub use timers::Timers;

use super::{MachineError, msr};

/// Pages that Intel's virtualisation needs inside the guest, behind the special pages: a page table and a task segment.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TASK_SEGMENT: usize = 0xfeff_d000;
/// Pins of the I/O APIC: global interrupts 0 to 23.
pub(super) const PINS: u32 = 24;
/// Enables the local APIC, in its base MSR.
const APIC_ENABLE: u64 = 1 << 11;

/// Interrupt controllers, interval timer, unknown MSRs.
pub(super) fn set_up(vm: &VmFd, apic: bool) -> Result<(), MachineError> {
    vm.set_identity_map_address(IDENTITY_MAP).map_err(MachineError::kvm("the identity map"))?;
    vm.set_tss_address(TASK_SEGMENT).map_err(MachineError::kvm("the task segment"))?;
    vm.create_irq_chip().map_err(MachineError::kvm("the interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(MachineError::kvm("the interval timer"))?;
    ticks::make_up(vm).map_err(MachineError::kvm("the interval timer's lost ticks"))?;
    let routing = KvmIrqRouting::from_entries(&routes())
        .map_err(|e| MachineError::kvm("the interrupt routes")(std::io::Error::other(format!("{e:?}"))))?;
    vm.set_gsi_routing(&routing).map_err(MachineError::kvm("the interrupt routes"))?;
    msr::set_up(vm, apic)
}

/// Interrupts 0 to 15 are inputs of both controllers; the timer's is pin 2 of the I/O APIC, where the cascade would be.
pub(super) fn routes() -> Vec<kvm_irq_routing_entry> {
    let route = |gsi, irqchip, pin| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 { irqchip: kvm_irq_routing_irqchip { irqchip, pin } },
        ..Default::default()
    };
    let master = (0..8).filter(|irq| *irq != 2).map(|irq| route(irq, KVM_IRQCHIP_PIC_MASTER, irq));
    let slave = (8..16).map(|irq| route(irq, KVM_IRQCHIP_PIC_SLAVE, irq - 8));
    let pin = |irq| if irq == 0 { 2 } else { irq };
    let io_apic = (0..PINS).filter(|irq| *irq != 2).map(|irq| route(irq, KVM_IRQCHIP_IOAPIC, pin(irq)));
    master.chain(slave).chain(io_apic).collect()
}

/// Switches a vCPU's local APIC off for good: its CPUID does not name it.
pub(super) fn disable_apic(fd: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = fd.get_sregs()?;
    sregs.apic_base &= !APIC_ENABLE;
    fd.set_sregs(&sregs)
}
