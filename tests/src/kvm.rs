//! What KVM offers on this machine.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use crate::Result;

const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;
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
