//! What KVM offers on this machine.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use crate::Result;

const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;
const KVM_CREATE_VM: libc::c_ulong = 0xae01;
const KVM_CREATE_IRQCHIP: libc::c_ulong = 0xae60;
const KVM_CREATE_VCPU: libc::c_ulong = 0xae41;
/// `_IOW(KVMIO, 0x7a, struct kvm_xen_hvm_config)`, 56 bytes.
const KVM_XEN_HVM_CONFIG: libc::c_ulong = 0x4038_ae7a;
const KVM_CHECK_EXTENSION: libc::c_ulong = 0xae03;
const KVM_CAP_NR_VCPUS: i32 = 9;
const KVM_CAP_XEN_HVM: i32 = 38;
const KVM_CAP_MAX_VCPUS: i32 = 66;

/// Bits of `KVM_CAP_XEN_HVM` (Documentation/virt/kvm/api.rst, 8.3).
const XEN_HVM_BITS: [(i32, &str); 9] = [
    (1, "HYPERCALL_MSR"),
    (2, "INTERCEPT_HCALL"),
    (4, "SHARED_INFO"),
    (8, "RUNSTATE"),
    (16, "EVTCHN_2LEVEL"),
    (32, "EVTCHN_SEND"),
    (64, "RUNSTATE_UPDATE_FLAG"),
    (128, "PVCLOCK_TSC_UNSTABLE"),
    (256, "SHARED_INFO_HVA"),
];

/// An open /dev/kvm.
pub struct Kvm(File);

impl Kvm {
    /// Opens /dev/kvm.
    pub fn open() -> Result<Kvm> {
        match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            Ok(file) => Ok(Kvm(file)),
            Err(error) => crate::fail!("/dev/kvm: {error}"),
        }
    }

    /// An empty VM to hold. The kernel rewrites code of its scheduler when the first VM of all comes and when
    /// the last one goes (preempt notifiers), and QEMU's emulation sometimes runs such code while it is being
    /// rewritten: the nested host ends with "Oops: int3". With one more VM it is rewritten once only.
    pub fn empty_vm(&self) -> Result<OwnedFd> {
        // SAFETY: the ioctl takes an integer and writes nowhere.
        let vm = unsafe { libc::ioctl(self.0.as_raw_fd(), KVM_CREATE_VM, 0) };
        if vm < 0 {
            return crate::fail!("KVM makes no VM: {}", std::io::Error::last_os_error());
        }
        // As for the first VM, so for the first with Xen hypercalls (KVM's kvm_xen_enabled): flags
        // INTERCEPT_HCALL, the usual MSR. Where KVM has no support for Xen there is nothing to rewrite.
        let mut config = [0u32; 14];
        (config[0], config[1]) = (2, 0x4000_0000);
        // SAFETY: the ioctl reads 56 bytes.
        unsafe { libc::ioctl(vm, KVM_XEN_HVM_CONFIG, config.as_ptr()) };
        // And so for local APICs that are not enabled (apic_sw_disabled), which come and go with each processor
        // that a guest starts: a vCPU that never runs keeps one. It lives as long as the process.
        // SAFETY: the ioctls take integers and write nowhere.
        unsafe {
            libc::ioctl(vm, KVM_CREATE_IRQCHIP, 0);
            libc::ioctl(vm, KVM_CREATE_VCPU, 0);
        }
        // SAFETY: a descriptor that was just made, owned by nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(vm) })
    }

    /// `KVM_CHECK_EXTENSION`: 0 where the capability is missing.
    pub fn capability(&self, number: i32) -> i32 {
        // SAFETY: the ioctl takes an integer and writes nowhere.
        unsafe { libc::ioctl(self.0.as_raw_fd(), KVM_CHECK_EXTENSION, libc::c_long::from(number)) }
    }

    /// The bits of `KVM_CAP_XEN_HVM`.
    pub fn xen(&self) -> i32 {
        self.capability(KVM_CAP_XEN_HVM)
    }

    /// The most vCPUs of one guest.
    pub fn max_vcpus(&self) -> i32 {
        self.capability(KVM_CAP_MAX_VCPUS)
    }
}

/// True where the processor's own virtualisation is in use (a KVM in software has neither flag).
pub fn processor_virtualises() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default().lines().any(|line| {
        line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "svm" || flag == "vmx")
    })
}

/// Prints what KVM offers.
pub fn probe() -> Result<ExitCode> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("@@ PROBE kernel {}, svm or vmx: {}", release.trim(), processor_virtualises());
    let kvm = Kvm::open()?;
    // SAFETY: the ioctl takes no argument and writes nowhere.
    let version = unsafe { libc::ioctl(kvm.0.as_raw_fd(), KVM_GET_API_VERSION, 0) };
    let xen = kvm.xen();
    let names: Vec<&str> =
        XEN_HVM_BITS.iter().filter(|(bit, _)| xen & bit != 0).map(|(_, name)| *name).collect();
    println!(
        "@@ PROBE KVM API {version}, vCPUs {} recommended, {} at most",
        kvm.capability(KVM_CAP_NR_VCPUS),
        kvm.max_vcpus()
    );
    println!("@@ PROBE KVM_CAP_XEN_HVM {xen:#x} {}", names.join(" "));
    Ok(ExitCode::SUCCESS)
}
