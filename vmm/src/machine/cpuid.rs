//! CPUID as a Xen HVM guest sees it (xen/include/public/arch-x86/cpuid.h).

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use super::processor::{Processor, Topology};
use super::{MachineError, MachineKind, XEN_VERSION, apicv, viridian};

/// First leaf of the hypervisor range. Linux takes the hypervisor with the highest base, so nothing may stand
/// above it. Beside Hyper-V's leaves, which are first, Xen's are 0x100 further on.
const XEN_BASE: u32 = 0x4000_0000;
const XEN_BASE_BESIDE: u32 = XEN_BASE + 0x100;
/// The MSR with which a guest places the hypercall page, alone and beside Hyper-V, whose first MSR it is.
const HYPERCALL_MSR: u32 = 0x4000_0000;
const HYPERCALL_MSR_BESIDE: u32 = 0x4000_0200;

/// The MSR with which a guest places Xen's hypercall page.
pub(super) fn hypercall_msr(processor: Processor) -> u32 {
    if processor.viridian.is_off() { HYPERCALL_MSR } else { HYPERCALL_MSR_BESIDE }
}

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
    x2apic: bool,
    xen: bool,
    /// Flags of Xen's leaf 4.
    flags: u32,
    processor: Processor,
    topology: Topology,
}

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

impl CpuidTemplate {
    /// What KVM supports on this host, for a guest of `vcpus` vCPUs: cores with one thread each, in the packages of
    /// [`Topology`]; APIC id = vCPU id. Without `xen` it sees no hypervisor.
    pub(super) fn new(
        kvm: &Kvm,
        vcpus: u32,
        kind: MachineKind,
        xen: bool,
        processor: Processor,
    ) -> Result<Self, MachineError> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(MachineError::kvm("CPUID"))?;
        let entries: Vec<_> =
            supported.as_slice().iter().filter(|e| e.function >> 28 != 4).copied().collect();
        Ok(Self::of(&entries, vcpus, kind, xen, processor))
    }

    /// Of what KVM supports, without leaves of hypervisors.
    ///
    /// No PC has an x2APIC: SeaBIOS would switch to it, as it does for more than 255 processors, which it is told of so that
    /// it makes no tables of its own; and a 32-bit kernel would not find its APIC then.
    fn of(
        supported: &[kvm_cpuid_entry2],
        vcpus: u32,
        kind: MachineKind,
        xen: bool,
        processor: Processor,
    ) -> Self {
        let (entries, topology) = (processor.shown(supported), Topology::of(vcpus, processor.model));
        let apic = kind != MachineKind::Pc { apic: false };
        let x2apic = kind == MachineKind::Pvh && processor.has_x2apic();
        let mut flags = LEAF4_VCPU_ID | LEAF4_DOMID;
        if apic {
            flags |= LEAF4_UPCALL_VECTOR | apicv::flags();
        }
        Self { entries, vcpus, apic, x2apic, xen, flags, processor, topology }
    }

    /// Sockets and cores.
    pub(super) fn topology(&self) -> Topology {
        self.topology
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
        let (core_bits, cores) = (self.topology.core_bits(), self.topology.cores);
        let mut entries = Vec::with_capacity(self.entries.len() + 8);
        for entry in &self.entries {
            let mut e = *entry;
            match (e.function, e.index) {
                (1, _) => {
                    e.ebx = (e.ebx & 0xffff) | (cores.min(255) << 16) | (id.min(255) << 24);
                    e.ecx |= FEATURE_1_ECX_HYPERVISOR;
                    if self.x2apic {
                        e.ecx |= FEATURE_1_ECX_X2APIC;
                    } else {
                        e.ecx &= !FEATURE_1_ECX_X2APIC;
                    }
                    if !self.apic {
                        e.edx &= !FEATURE_1_EDX_APIC;
                    }
                    // One-shot timers come from Xen; the deadline timer would only cost exits to set up.
                    e.ecx &= !FEATURE_1_ECX_TSC_DEADLINE;
                    e.edx = if cores > 1 { e.edx | FEATURE_1_EDX_HTT } else { e.edx & !FEATURE_1_EDX_HTT };
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
                    e.ecx = (e.ecx & !0xf0ff) | (core_bits << 12) | (cores - 1).min(255);
                }
                (0x8000_001d, _) if e.eax & 0x1f != 0 => {
                    let level = (e.eax >> 5) & 7;
                    let sharing = if level >= 3 { cores - 1 } else { 0 };
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
        let levels = [[0, 1, 1 << 8, id], [core_bits, cores, (2 << 8) | 1, id], [0, 0, 2, id]];
        for (index, level) in (0u32..).zip(levels).filter(|_| self.apic) {
            entries.push(kvm_cpuid_entry2 { flags: flag, ..leaf(0xb, index, level) });
        }
        let viridian = self.processor.viridian;
        entries.extend(viridian::leaves(viridian, self.vcpus));
        let base = if viridian.is_off() { XEN_BASE } else { XEN_BASE_BESIDE };
        if !self.xen {
            return CpuId::from_entries(&entries).map_err(|_| MachineError::Cpuid(entries.len()));
        }
        let time_flag = |index, regs| kvm_cpuid_entry2 { flags: flag, ..leaf(base + 3, index, regs) };
        entries.push(leaf(base, 0, [base + 4, SIGNATURE[0], SIGNATURE[1], SIGNATURE[2]]));
        entries.push(leaf(base + 1, 0, [XEN_VERSION, 0, 0, 0]));
        entries.push(leaf(base + 2, 0, [1, hypercall_msr(self.processor), 0, 0]));
        entries.push(time_flag(0, [0, TSC_MODE_NEVER_EMULATE, tsc_khz, 0]));
        // KVM fills in the scale (index 1) and the host's frequency (index 2).
        entries.push(time_flag(1, [0; 4]));
        entries.push(time_flag(2, [tsc_khz, 0, 0, 0]));
        entries.push(leaf(base + 4, 0, [self.flags, id, u32::from(domid), 0]));
        CpuId::from_entries(&entries).map_err(|_| MachineError::Cpuid(entries.len()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{CpuModel, Viridian};

    /// A processor that tells of everything.
    fn supported(vendor: &[u8; 12]) -> Vec<kvm_cpuid_entry2> {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        let mut all = vec![leaf(0, 0, [0x1f, word(0), word(8), word(4)]), leaf(1, 0, [u32::MAX; 4])];
        // Data cache of a core, and one that all cores share.
        all.push(leaf(4, 0, [1 << 5 | 1, 0, 0, 0]));
        all.push(leaf(4, 3, [3 << 5 | 3, 0, 0, 0]));
        all.push(leaf(0xb, 0, [u32::MAX; 4]));
        all.push(leaf(0x8000_0000, 0, [0x8000_001e, 0, 0, 0]));
        all.extend([1, 8].map(|n| leaf(0x8000_0000 + n, 0, [u32::MAX; 4])));
        all
    }

    fn shown(
        vendor: &[u8; 12],
        vcpus: u32,
        id: u32,
        kind: MachineKind,
        processor: Processor,
    ) -> Vec<kvm_cpuid_entry2> {
        let template = CpuidTemplate::of(&supported(vendor), vcpus, kind, true, processor);
        template.for_vcpu(id, 7, 1_000_000).unwrap().as_slice().to_vec()
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<[u32; 4]> {
        let e = entries.iter().find(|e| (e.function, e.index) == (function, index))?;
        Some([e.eax, e.ebx, e.ecx, e.edx])
    }

    const PC: MachineKind = MachineKind::Pc { apic: true };
    const XP: Processor = Processor { model: CpuModel::Xp, viridian: Viridian::OFF };

    #[test]
    fn leaves_agree_on_sockets_and_cores() {
        for processor in [Processor::default(), XP] {
            let leaves = shown(b"GenuineIntel", 6, 5, PC, processor);
            let one = find(&leaves, 1, 0).unwrap();
            assert_eq!((one[1] >> 24, one[1] >> 16 & 0xff, one[3] >> 28 & 1), (5, 6, 1));
            // Sharing, and ids of cores in the package: each minus 1.
            let fields = |eax: u32| (eax >> 14 & 0xfff, eax >> 26);
            assert_eq!(fields(find(&leaves, 4, 0).unwrap()[0]), (0, 7));
            assert_eq!(fields(find(&leaves, 4, 3).unwrap()[0]), (7, 7));
            assert_eq!(find(&leaves, 0xb, 0), Some([0, 1, 1 << 8, 5]));
            assert_eq!(find(&leaves, 0xb, 1), Some([3, 6, 2 << 8 | 1, 5]));
            let amd = shown(b"AuthenticAMD", 6, 5, PC, processor);
            assert_eq!(find(&amd, 0x8000_0008, 0).unwrap()[2] & 0xf0ff, 3 << 12 | 5);
        }
        let two_sockets = shown(b"GenuineIntel", 100, 70, PC, XP);
        assert_eq!(find(&two_sockets, 1, 0).unwrap()[1] >> 16 & 0xff, 64);
        assert_eq!(find(&two_sockets, 0xb, 1), Some([6, 64, 2 << 8 | 1, 70]));
    }

    #[test]
    fn without_an_apic_none_is_told() {
        for processor in [Processor::default(), XP] {
            let leaves = shown(b"AuthenticAMD", 1, 0, MachineKind::Pc { apic: false }, processor);
            let one = find(&leaves, 1, 0).unwrap();
            assert_eq!((one[3] & FEATURE_1_EDX_APIC, one[2] & FEATURE_1_ECX_X2APIC), (0, 0));
            assert_eq!(find(&leaves, 0x8000_0001, 0).unwrap()[3] & FEATURE_1_EDX_APIC, 0);
            assert!(find(&leaves, 0xb, 0).is_none());
        }
    }

    #[test]
    fn a_pc_has_no_x2apic() {
        for (kind, expected) in [(MachineKind::Pvh, FEATURE_1_ECX_X2APIC), (PC, 0)] {
            let leaves = shown(b"GenuineIntel", 1, 0, kind, Processor::default());
            assert_eq!(find(&leaves, 1, 0).unwrap()[2] & FEATURE_1_ECX_X2APIC, expected);
        }
    }

    #[test]
    fn xen_comes_behind_hyper_v() {
        let viridian = Processor { viridian: "on".parse().unwrap(), ..XP };
        let leaves = shown(b"GenuineIntel", 1, 0, PC, viridian);
        assert_eq!(find(&leaves, 0x4000_0000, 0).unwrap()[1..], [0x7263_694d, 0x666f_736f, 0x7648_2074]);
        let [last, name @ ..] = find(&leaves, 0x4000_0100, 0).unwrap();
        assert_eq!((last, name), (0x4000_0104, SIGNATURE));
        assert_eq!(find(&leaves, 0x4000_0102, 0).unwrap()[1], 0x4000_0200);
        let alone = shown(b"GenuineIntel", 1, 0, PC, XP);
        assert_eq!(find(&alone, 0x4000_0000, 0).unwrap()[1..], SIGNATURE);
        assert_eq!(find(&alone, 0x4000_0002, 0).unwrap()[1], 0x4000_0000);
    }
}
