//! Ticks that a guest loses while its vCPUs do not run, or do not take interrupts.

use std::io;

use kvm_bindings::{KVMIO, kvm_reinject_control};
use kvm_ioctls::{Cap, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_REINJECT_CONTROL, KVMIO, 0x71);

/// Ticks of the interval timer that the guest did not take in time come later. It is what KVM does from the start, where
/// it does it at all.
pub(super) fn make_up(vm: &VmFd) -> io::Result<()> {
    if !vm.check_extension(Cap::ReinjectControl) {
        tracing::warn!("KVM does not make up for ticks that the guest loses: its clock may be late");
        return Ok(());
    }
    let control = kvm_reinject_control { pit_reinject: 1, ..Default::default() };
    // SAFETY: the ioctl reads this structure, which outlives the call.
    let result = unsafe { ioctl_with_ref(vm, KVM_REINJECT_CONTROL(), &control) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
