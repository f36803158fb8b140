//! Hyper-V's interfaces as KVM has them (Hypervisor Top Level Functional Specification 6.0b, chapters 2.4 and appendix).

use kvm_bindings::{
    CpuId, KVM_CAP_HYPERV_SYNIC2, KVM_CAP_SYS_HYPERV_CPUID, KVM_MAX_CPUID_ENTRIES, KVMIO, kvm_cpuid_entry2,
    kvm_cpuid2, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VcpuFd};
use vmm_sys_util::ioctl::ioctl_with_mut_ptr;
use vmm_sys_util::ioctl_iowr_nr;

use super::MachineError;
use crate::config::Viridian;

ioctl_iowr_nr!(KVM_GET_SUPPORTED_HV_CPUID, KVMIO, 0xc1, kvm_cpuid2);

/// First leaf, and how many there are.
const BASE: u32 = 0x4000_0000;
const FEATURES: u32 = BASE + 3;
const RECOMMENDATIONS: u32 = BASE + 4;
const LIMITS: u32 = BASE + 5;
/// "Microsoft Hv" in ebx, ecx, edx; "Hv#1".
const VENDOR: [u32; 3] = [0x7263_694d, 0x666f_736f, 0x7648_2074];
const INTERFACE: u32 = 0x3123_7648;
/// The version that is told: 6.0, build 6002, as Xen tells.
const BUILD: u32 = 0x1772;
const VERSION: u32 = 6 << 16;
/// A spinlock is never worth a notice.
const NO_SPINLOCKS: u32 = u32::MAX;
/// Timers and page for the end of interrupts are looked for under this name of the group.
const SYNIC: &str = "synic";

/// The bits that tell of a group: leaf, register (0: eax, 3: edx), bits.
const BITS: [(&str, u32, usize, u32); 13] = [
    // Hypercalls, index of the processor; timers may be late.
    ("base", FEATURES, 0, 1 << 5 | 1 << 6),
    ("base", RECOMMENDATIONS, 0, 1 << 5),
    ("freq", FEATURES, 0, 1 << 11),
    ("freq", FEATURES, 3, 1 << 8),
    ("time_ref_count", FEATURES, 0, 1 << 1),
    ("reference_tsc", FEATURES, 0, 1 << 9),
    ("hcall_remote_tlb_flush", RECOMMENDATIONS, 0, 1 << 2),
    ("apic_assist", FEATURES, 0, 1 << 4),
    ("crash_ctl", FEATURES, 3, 1 << 10),
    (SYNIC, FEATURES, 0, 1 << 2),
    ("stimer", FEATURES, 0, 1 << 3),
    ("hcall_ipi", RECOMMENDATIONS, 0, 1 << 10),
    ("ex_processor_masks", RECOMMENDATIONS, 0, 1 << 11),
];

/// Checks that KVM has all that is wanted.
pub(super) fn check(kvm: &Kvm, wanted: Viridian) -> Result<(), MachineError> {
    if wanted.is_off() {
        return Ok(());
    }
    if kvm.check_extension_raw(u64::from(KVM_CAP_SYS_HYPERV_CPUID)) <= 0 {
        return Err(MachineError::NoViridian("Hyper-V support (CONFIG_KVM_HYPERV, Linux 5.11)".into()));
    }
    let mut supported =
        CpuId::new(KVM_MAX_CPUID_ENTRIES).map_err(|_| MachineError::Cpuid(KVM_MAX_CPUID_ENTRIES))?;
    // SAFETY: a table of as many entries as its header says, which outlives the call.
    let result =
        unsafe { ioctl_with_mut_ptr(kvm, KVM_GET_SUPPORTED_HV_CPUID(), supported.as_mut_fam_struct_ptr()) };
    if result < 0 {
        return Err(MachineError::kvm("Hyper-V's CPUID leaves")(std::io::Error::last_os_error()));
    }
    let missing = missing(wanted, supported.as_slice());
    if missing.is_empty() { Ok(()) } else { Err(MachineError::NoViridian(missing.join(", "))) }
}

/// The groups that KVM does not have.
fn missing(wanted: Viridian, supported: &[kvm_cpuid_entry2]) -> Vec<&'static str> {
    let has = |function: u32, register: usize, bits: u32| {
        let entry = supported.iter().find(|entry| entry.function == function);
        entry.is_some_and(|e| if register == 0 { e.eax } else { e.edx } & bits == bits)
    };
    let groups = wanted.groups().map(|group| group.name);
    let lacks = |name: &&str| {
        BITS.iter().any(|(group, leaf, register, bits)| group == name && !has(*leaf, *register, *bits))
    };
    groups.filter(lacks).collect()
}

/// The leaves of a guest with so many vCPUs.
pub(super) fn leaves(wanted: Viridian, vcpus: u32) -> Vec<kvm_cpuid_entry2> {
    if wanted.is_off() {
        return Vec::new();
    }
    let bits = |leaf: u32, register: usize| {
        let of = BITS.iter().filter(|bits| wanted.has(bits.0) && (bits.1, bits.2) == (leaf, register));
        of.fold(0, |all, bits| all | bits.3)
    };
    let leaf = |function, [eax, ebx, ecx, edx]: [u32; 4]| kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    vec![
        leaf(BASE, [LIMITS, VENDOR[0], VENDOR[1], VENDOR[2]]),
        leaf(BASE + 1, [INTERFACE, 0, 0, 0]),
        leaf(BASE + 2, [BUILD, VERSION, 0, 0]),
        leaf(FEATURES, [bits(FEATURES, 0), 0, 0, bits(FEATURES, 3)]),
        leaf(RECOMMENDATIONS, [bits(RECOMMENDATIONS, 0), NO_SPINLOCKS, 0, 0]),
        leaf(LIMITS, [vcpus, vcpus, 0, 0]),
    ]
}

/// Switches on what a vCPU has only when it is asked for.
pub(super) fn enable(vcpu: &VcpuFd, wanted: Viridian) -> Result<(), MachineError> {
    if !wanted.has(SYNIC) {
        return Ok(());
    }
    let cap = kvm_enable_cap { cap: KVM_CAP_HYPERV_SYNIC2, ..Default::default() };
    vcpu.enable_cap(&cap).map_err(MachineError::kvm("Hyper-V's interrupt controller (--viridian synic)"))
}

/// Answers a hypercall that KVM leaves to us: there is none of that number (HV_STATUS_INVALID_HYPERCALL_CODE).
pub(super) const UNKNOWN_HYPERCALL: u64 = 2;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn find(entries: &[kvm_cpuid_entry2], function: u32) -> [u32; 4] {
        let e = entries.iter().find(|e| e.function == function).unwrap();
        [e.eax, e.ebx, e.ecx, e.edx]
    }

    #[test]
    fn the_leaves_tell_of_what_was_asked_for() {
        let leaves = leaves("base,freq,stimer".parse().unwrap(), 4);
        let [eax, rest @ ..] = find(&leaves, BASE);
        let name: Vec<u8> = rest.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!((eax, name.as_slice()), (BASE + 5, b"Microsoft Hv".as_slice()));
        assert_eq!(find(&leaves, BASE + 1)[0].to_le_bytes(), *b"Hv#1");
        // Time reference count, synthetic interrupts and timers, hypercalls, index, frequencies.
        assert_eq!(find(&leaves, BASE + 3), [0b1000_0110_1110, 0, 0, 1 << 8]);
        assert_eq!(find(&leaves, BASE + 4), [1 << 5, u32::MAX, 0, 0]);
        assert!(super::leaves(Viridian::OFF, 4).is_empty());
    }

    #[test]
    fn what_kvm_lacks_is_named() {
        let wanted: Viridian = "base,crash_ctl,hcall_ipi,reference_tsc".parse().unwrap();
        let mut supported = leaves(wanted, 1);
        assert!(missing(wanted, &supported).is_empty());
        let features = supported.iter_mut().find(|e| e.function == FEATURES).unwrap();
        (features.eax, features.edx) = (features.eax & !(1 << 9), 0);
        assert_eq!(missing(wanted, &supported), ["reference_tsc", "crash_ctl"]);
        assert_eq!(missing(wanted, &[]).len(), 4);
    }
}
