//! Model-specific registers that KVM does not know: they read as 0, and writes are lost. A PC's software probes more of
//! them than it checks for, and would die of the fault.

use kvm_bindings::{KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap};
use kvm_ioctls::{Cap, ReadMsrExit, VmFd, WriteMsrExit};

use super::MachineError;

/// Has KVM give accesses to registers that it does not know to [`read`] and [`write`].
pub(super) fn set_up(vm: &VmFd) -> Result<(), MachineError> {
    if !vm.check_extension(Cap::X86UserSpaceMsr) {
        tracing::debug!("KVM keeps accesses to unknown MSRs to itself: they fault in the guest");
        return Ok(());
    }
    let args = [u64::from(KVM_MSR_EXIT_REASON_UNKNOWN), 0, 0, 0];
    let cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, args, ..Default::default() };
    vm.enable_cap(&cap).map_err(MachineError::kvm("unknown MSRs"))
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
