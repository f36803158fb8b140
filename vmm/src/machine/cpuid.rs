//! CPUID as a Xen HVM guest sees it (xen/include/public/arch-x86/cpuid.h).

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use super::{MachineError, XEN_VERSION, apicv};

/// First leaf of the hypervisor range. Linux takes the hypervisor with the highest base, so nothing may stand
/// above it.
const XEN_BASE: u32 = 0x4000_0000;
/// The MSR with which a guest places the hypercall page.
pub(super) const HYPERCALL_MSR: u32 = 0x4000_0000;

/// "XenVMMXenVMM" in ebx, ecx, edx.
const SIGNATURE: [u32; 3] = [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e];
const LEAF4_VCPU_ID: u32 = 1 << 3;
const LEAF4_DOMID: u32 = 1 << 4;
const LEAF4_UPCALL_VECTOR: u32 = 1 << 6;
/// TSC mode "never emulate": with an invariant TSC Linux then reads the TSC itself.
const TSC_MODE_NEVER_EMULATE: u32 = 2;

const FEATURE_1_ECX_X2APIC: u32 = 1 << 21;
const FEATURE_1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const FEATURE_1_ECX_HYPERVISOR: u32 = 1 << 31;
const FEATURE_1_EDX_APIC: u32 = 1 << 9;
const FEATURE_1_EDX_HTT: u32 = 1 << 28;

/// What all vCPUs have in common.
#[derive(Clone, Debug)]
pub(super) struct CpuidTemplate {
    entries: Vec<kvm_cpuid_entry2>,
    vcpus: u32,
    apic: bool,
    xen: bool,
    /// Flags of Xen's leaf 4.
    flags: u32,
}

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

impl CpuidTemplate {
    /// What KVM supports on this host, for a guest of `vcpus` vCPUs: one package of `vcpus` cores with one
    /// thread each; APIC id = vCPU id. Without `apic` it has none, without `xen` it sees no hypervisor.
    pub(super) fn new(kvm: &Kvm, vcpus: u32, apic: bool, xen: bool) -> Result<Self, MachineError> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(MachineError::kvm("CPUID"))?;
        let entries = supported.as_slice().iter().filter(|e| e.function >> 28 != 4).copied().collect();
        let mut flags = LEAF4_VCPU_ID | LEAF4_DOMID;
        if apic {
            flags |= LEAF4_UPCALL_VECTOR | apicv::flags();
        }
        Ok(Self { entries, vcpus, apic, xen, flags })
    }

    /// Leaf 1, as far as tables repeat it.
    pub(super) fn identity(&self) -> acpi::CpuIdentity {
        let leaf = self.entries.iter().find(|entry| entry.function == 1);
        leaf.map_or_else(Default::default, |entry| acpi::CpuIdentity {
            signature: entry.eax,
            features: if self.apic { entry.edx } else { entry.edx & !FEATURE_1_EDX_APIC },
        })
    }

    /// The leaves of vCPU `id`.
    pub(super) fn for_vcpu(&self, id: u32, domid: u16, tsc_khz: u32) -> Result<CpuId, MachineError> {
        let amd = self.entries.iter().any(|e| e.function == 0 && e.ecx == u32::from_le_bytes(*b"cAMD"));
        let core_bits = u32::BITS - self.vcpus.saturating_sub(1).leading_zeros();
        let mut entries = Vec::with_capacity(self.entries.len() + 8);
        for entry in &self.entries {
            let mut e = *entry;
            match (e.function, e.index) {
                (1, _) => {
                    e.ebx = (e.ebx & 0xffff) | (self.vcpus.min(255) << 16) | (id.min(255) << 24);
                    e.ecx |= FEATURE_1_ECX_HYPERVISOR | FEATURE_1_ECX_X2APIC;
                    if !self.apic {
                        e.ecx &= !FEATURE_1_ECX_X2APIC;
                        e.edx &= !FEATURE_1_EDX_APIC;
                    }
                    // One-shot timers come from Xen; the deadline timer would only cost exits to set up.
                    e.ecx &= !FEATURE_1_ECX_TSC_DEADLINE;
                    e.edx =
                        if self.vcpus > 1 { e.edx | FEATURE_1_EDX_HTT } else { e.edx & !FEATURE_1_EDX_HTT };
                }
                (0x8000_0001, _) if amd && !self.apic => e.edx &= !FEATURE_1_EDX_APIC,
                (4, _) if e.eax & 0x1f != 0 => {
                    // Bits 25:14: logical processors sharing the cache, 31:26: cores of the package, each minus 1.
                    let level = (e.eax >> 5) & 7;
                    let sharing = if level >= 3 { (1 << core_bits) - 1 } else { 0 };
                    e.eax = (e.eax & 0x3fff)
                        | (sharing.min(0xfff) << 14)
                        | (((1 << core_bits) - 1).min(0x3f) << 26);
                }
                // Rebuilt below; 0x1f would repeat 0xb.
                (0xb | 0x1f, _) => continue,
                (0x8000_0008, _) if amd => {
                    e.ecx = (e.ecx & !0xf0ff) | (core_bits << 12) | (self.vcpus - 1).min(255);
                }
                (0x8000_001d, _) if e.eax & 0x1f != 0 => {
                    let level = (e.eax >> 5) & 7;
                    let sharing = if level >= 3 { self.vcpus - 1 } else { 0 };
                    e.eax = (e.eax & 0x3fff) | (sharing.min(0xfff) << 14);
                }
                (0x8000_001e, _) => {
                    e.eax = id;
                    e.ebx = id & 0xff;
                    e.ecx = 0;
                }
                _ => {}
            }
            entries.push(e);
        }
        // Level 0: threads of a core, level 1: cores of the package.
        let flag = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        let levels = [[0, 1, 1 << 8, id], [core_bits, self.vcpus, (2 << 8) | 1, id], [0, 0, 2, id]];
        for (index, level) in (0u32..).zip(levels).filter(|_| self.apic) {
            entries.push(kvm_cpuid_entry2 { flags: flag, ..leaf(0xb, index, level) });
        }
        if !self.xen {
            return CpuId::from_entries(&entries).map_err(|_| MachineError::Cpuid(entries.len()));
        }
        let time_flag = |index, regs| kvm_cpuid_entry2 { flags: flag, ..leaf(XEN_BASE + 3, index, regs) };
        entries.push(leaf(XEN_BASE, 0, [XEN_BASE + 4, SIGNATURE[0], SIGNATURE[1], SIGNATURE[2]]));
        entries.push(leaf(XEN_BASE + 1, 0, [XEN_VERSION, 0, 0, 0]));
        entries.push(leaf(XEN_BASE + 2, 0, [1, HYPERCALL_MSR, 0, 0]));
        entries.push(time_flag(0, [0, TSC_MODE_NEVER_EMULATE, tsc_khz, 0]));
        // KVM fills in the scale (index 1) and the host's frequency (index 2).
        entries.push(time_flag(1, [0; 4]));
        entries.push(time_flag(2, [tsc_khz, 0, 0, 0]));
        entries.push(leaf(XEN_BASE + 4, 0, [self.flags, id, u32::from(domid), 0]));
        CpuId::from_entries(&entries).map_err(|_| MachineError::Cpuid(entries.len()))
    }
}
