//! Model-specific registers that KVM does not know: they read as 0, and writes are lost. A PC's software probes more of
//! them than it checks for, and would die of the fault.

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap,
};
use kvm_ioctls::{
    Cap, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, ReadMsrExit, VmFd, WriteMsrExit,
};

use super::MachineError;

/// The base address of the local APIC, and whether it is on.
const APIC_BASE: u32 = 0x1b;

/// Has KVM give accesses to registers that it does not know to [`read`] and [`write`]. A guest without `apic` does not
/// find the one that could switch it on.
pub(super) fn set_up(vm: &VmFd, apic: bool) -> Result<(), MachineError> {
    if !vm.check_extension(Cap::X86UserSpaceMsr) {
        tracing::debug!("KVM keeps accesses to unknown MSRs to itself: they fault in the guest");
        return Ok(());
    }
    let args = [u64::from(KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER), 0, 0, 0];
    let cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, args, ..Default::default() };
    vm.enable_cap(&cap).map_err(MachineError::kvm("unknown MSRs"))?;
    if apic {
        return Ok(());
    }
    let range = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: APIC_BASE,
        msr_count: 1,
        bitmap: &[0],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])
        .map_err(MachineError::kvm("the MSR of the APIC"))
}

/// The guest reads.
pub(super) fn read(vcpu: u32, msr: ReadMsrExit<'_>) {
    tracing::trace!(vcpu, index = format_args!("{:#x}", msr.index), "unknown MSR read");
    *msr.data = 0;
    *msr.error = 0;
}

/// The guest writes.
pub(super) fn write(vcpu: u32, msr: WriteMsrExit<'_>) {
    tracing::trace!(vcpu, index = format_args!("{:#x}", msr.index), "unknown MSR written");
    *msr.error = 0;
}
