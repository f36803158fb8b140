//! What a guest's processors are like: model and topology.

use kvm_bindings::kvm_cpuid_entry2;

use crate::config::{CpuModel, Viridian};

/// The processors of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// Which one it is.
    pub model: CpuModel,
    /// What it tells of Hyper-V.
    pub viridian: Viridian,
}

/// Sockets and the cores in each, with one thread per core. The APIC id of a core is its number: its socket is in the
/// bits above [`Topology::core_bits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Sockets, at most two.
    pub sockets: u32,
    /// Cores in each; the second may have fewer.
    pub cores: u32,
}

/// Leaf 4 can tell of so many cores in a socket.
const LEAF_4_CORES: u32 = 64;

impl Topology {
    /// Of a guest with so many vCPUs. They are in one socket: Windows counts sockets, of which its cheapest edition uses
    /// one. Where a processor of the model cannot have so many cores, they are in two.
    pub fn of(vcpus: u32, model: CpuModel) -> Topology {
        if model == CpuModel::Host || vcpus <= LEAF_4_CORES {
            return Topology { sockets: 1, cores: vcpus.max(1) };
        }
        Topology { sockets: 2, cores: vcpus.next_power_of_two() / 2 }
    }

    /// Bits of an APIC id that tell the core.
    pub(super) fn core_bits(self) -> u32 {
        u32::BITS - (self.cores - 1).leading_zeros()
    }
}

/// Windows XP's years: a Core 2 of 2007 (family 6, model 15), or an Athlon MP (family 6, model 6).
const INTEL_SIGNATURE: u32 = 0x6fb;
const AMD_SIGNATURE: u32 = 0x662;
/// The name that the processor tells, 48 bytes.
const NAME: &str = "xvmm virtual processor";

/// Features that processors had by then. Leaf 1: SSE3, SSSE3, CMPXCHG16B, SSE4.1; and in EDX all that is defined but
/// serial number, debug store, thermal control and self snoop.
const LEAF_1_ECX: u32 = 1 | 1 << 9 | 1 << 13 | 1 << 19;
const LEAF_1_EDX: u32 = 0x178b_fbff;
/// Leaf 0x80000001: LAHF in 64-bit mode, several cores, CR8 in 32-bit mode, PREFETCHW; and in EDX SYSCALL, NX, AMD's MMX and
/// FXSAVE extensions, 64-bit mode, 3DNow!, and what AMD repeats of leaf 1.
const EXTENDED_ECX: u32 = 1 | 1 << 1 | 1 << 4 | 1 << 8;
const EXTENDED_EDX: u32 = 0xe3d3_fbff;
/// Leaf 0x80000007: the TSC runs at one rate.
const INVARIANT_TSC: u32 = 1 << 8;

/// The last leaves.
const LAST_BASIC: u32 = 0xb;
const LAST_EXTENDED: u32 = 0x8000_0008;

const INTEL: u32 = u32::from_le_bytes(*b"ntel");
const AMD: u32 = u32::from_le_bytes(*b"cAMD");

impl Processor {
    /// Whether the processor tells of an x2APIC.
    pub(super) fn has_x2apic(self) -> bool {
        self.model == CpuModel::Host
    }

    /// The leaves of what KVM supports that the model has.
    pub(super) fn shown(self, supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
        if self.model == CpuModel::Host {
            return supported.to_vec();
        }
        let vendor = supported.iter().find(|e| e.function == 0).map_or(0, |e| e.ecx);
        supported.iter().filter_map(|entry| xp(vendor, *entry)).collect()
    }
}

/// The leaf as the model `xp` has it, if it has it at all.
fn xp(vendor: u32, mut e: kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
    let signature = if vendor == AMD { AMD_SIGNATURE } else { INTEL_SIGNATURE };
    match e.function {
        0 => e.eax = e.eax.min(LAST_BASIC),
        1 => {
            e.eax = signature;
            // EBX: brand index 0.
            e.ebx &= !0xff;
            e.ecx &= LEAF_1_ECX;
            e.edx &= LEAF_1_EDX;
        }
        // Caches, topology.
        2 | 4 | 0xb => {}
        0x8000_0000 => e.eax = e.eax.min(LAST_EXTENDED),
        0x8000_0001 => {
            // Intel tells no signature here.
            e.eax = if vendor == INTEL { 0 } else { signature };
            e.ebx = 0;
            e.ecx &= EXTENDED_ECX;
            e.edx &= EXTENDED_EDX;
        }
        0x8000_0002..=0x8000_0004 => {
            let at = (e.function - 0x8000_0002) as usize * 16;
            let mut bytes = NAME.bytes().skip(at).chain(std::iter::repeat(0));
            let mut register = || u32::from_le_bytes(std::array::from_fn(|_| bytes.next().unwrap_or(0)));
            (e.eax, e.ebx, e.ecx, e.edx) = (register(), register(), register(), register());
        }
        0x8000_0005 | 0x8000_0006 => {}
        0x8000_0007 => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, e.edx & INVARIANT_TSC),
        0x8000_0008 => (e.ebx, e.edx) = (0, 0),
        _ => return None,
    }
    Some(e)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const XP: Processor = Processor { model: CpuModel::Xp, viridian: Viridian::OFF };
    const HOST: Processor = Processor { model: CpuModel::Host, viridian: Viridian::OFF };
    /// A host with every bit of every leaf.
    fn everything(vendor: &[u8; 12]) -> Vec<kvm_cpuid_entry2> {
        let leaf = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let basic = (0..=0x24).map(|function| leaf(function, 0));
        let extended = (0x8000_0000..=0x8000_0021).map(|function| leaf(function, 0));
        let mut all: Vec<_> = basic.chain(extended).collect();
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        (all[0].eax, all[0].ebx, all[0].edx, all[0].ecx) = (0x24, word(0), word(4), word(8));
        all
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|e| e.function == function).unwrap()
    }

    #[test]
    fn the_model_xp_has_nothing_of_later_years() {
        for (vendor, signature) in [(b"GenuineIntel", 0x6fb), (b"AuthenticAMD", 0x662)] {
            let shown = XP.shown(&everything(vendor));
            let functions: Vec<u32> = shown.iter().map(|e| e.function).collect();
            let expected: Vec<u32> = [0, 1, 2, 4, 0xb].into_iter().chain(0x8000_0000..=0x8000_0008).collect();
            assert_eq!(functions, expected);
            assert_eq!((find(&shown, 0).eax, find(&shown, 0x8000_0000).eax), (0xb, 0x8000_0008));
            let one = find(&shown, 1);
            assert_eq!((one.eax, (one.eax >> 8) & 0xf, one.eax >> 20), (signature, 6, 0));
            // x2APIC, XSAVE, AVX, POPCNT, SSE4.2, VMX, AES and PCLMUL are not there; SSE2 and NX are.
            assert_eq!(
                one.ecx & (1 << 21 | 1 << 26 | 1 << 28 | 1 << 23 | 1 << 20 | 1 << 5 | 1 << 25 | 1 << 1),
                0
            );
            assert_eq!((one.edx >> 26 & 1, find(&shown, 0x8000_0001).edx >> 20 & 1), (1, 1));
            // 1 GiB pages, RDTSCP.
            assert_eq!(find(&shown, 0x8000_0001).edx & (1 << 26 | 1 << 27), 0);
        }
    }

    #[test]
    fn the_name_is_in_three_leaves() {
        let shown = XP.shown(&everything(b"GenuineIntel"));
        let leaves = (0x8000_0002..=0x8000_0004).map(|function| find(&shown, function));
        let bytes: Vec<u8> =
            leaves.flat_map(|e| [e.eax, e.ebx, e.ecx, e.edx]).flat_map(u32::to_le_bytes).collect();
        assert_eq!(String::from_utf8(bytes).unwrap().trim_end_matches('\0'), NAME);
    }

    #[test]
    fn the_model_host_is_what_kvm_supports() {
        let all = everything(b"GenuineIntel");
        assert_eq!(HOST.shown(&all).len(), all.len());
        assert!(HOST.has_x2apic() && !XP.has_x2apic());
    }

    #[test]
    fn there_are_at_most_two_sockets() {
        let xp = |vcpus| {
            let topology = Topology::of(vcpus, CpuModel::Xp);
            (topology.sockets, topology.cores, topology.core_bits())
        };
        assert_eq!((xp(1), xp(2), xp(3)), ((1, 1, 0), (1, 2, 1), (1, 3, 2)));
        assert_eq!((xp(64), xp(65), xp(128), xp(200)), ((1, 64, 6), (2, 64, 6), (2, 64, 6), (2, 128, 7)));
        assert_eq!(Topology::of(200, CpuModel::Host), Topology { sockets: 1, cores: 200 });
        for vcpus in 1..=255 {
            let topology = Topology::of(vcpus, CpuModel::Xp);
            assert_eq!((vcpus - 1) >> topology.core_bits(), topology.sockets - 1, "{vcpus}");
        }
    }
}
