#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;

const BASE: u64 = 0xfc00_0000;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Reads the tables as a guest does: RSDP, XSDT, FADT and from there DSDT.
struct Guest {
    tables: Tables,
    xsdt: Vec<Vec<u8>>,
    dsdt: Vec<u8>,
}

impl Guest {
    fn new(topology: &DomainTopology) -> Self {
        let tables = topology.pvh_tables(BASE).unwrap();
        assert_eq!(tables.rsdp, BASE);
        let rsdp = &tables.bytes[..36];
        assert_eq!((&rsdp[..8], rsdp[15], u32_at(rsdp, 20)), (&b"RSD PTR "[..], 2, 36));
        assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
        let table = |gpa: u64, signature: &[u8]| {
            let at = usize::try_from(gpa - BASE).unwrap();
            let table = tables.bytes[at..at + u32_at(&tables.bytes, at + 4) as usize].to_vec();
            assert_eq!(&table[..4], signature);
            assert_eq!(sum(&table), 0, "checksum of {signature:?}");
            table
        };
        let xsdt = table(u64_at(rsdp, 24), b"XSDT");
        let entries: Vec<u64> = xsdt[36..].chunks_exact(8).map(|entry| u64_at(entry, 0)).collect();
        let xsdt = vec![table(entries[0], b"FACP"), table(entries[1], b"APIC")];
        assert_eq!(entries.len(), 2);
        let dsdt = table(u64_at(&xsdt[0], 140), b"DSDT");
        Self { tables, xsdt, dsdt }
    }

    /// (type, UID, APIC id, flags) of each processor.
    fn processors(&self) -> Vec<(u8, u32, u32, u32)> {
        let mut entries = &self.xsdt[1][44..];
        let mut found = Vec::new();
        while let [kind, len, ..] = *entries {
            let (entry, rest) = entries.split_at(usize::from(len));
            found.push(match kind {
                0 => (kind, entry[2].into(), entry[3].into(), u32_at(entry, 4)),
                _ => (kind, u32_at(entry, 12), u32_at(entry, 4), u32_at(entry, 8)),
            });
            entries = rest;
        }
        found
    }
}

#[test]
fn pointers_lengths_and_checksums_hold_for_any_number_of_vcpus() {
    for vcpus in [1, 64, 300] {
        let guest = Guest::new(&DomainTopology::new(vcpus));
        let other_base = DomainTopology::new(vcpus).pvh_tables(0x1000).unwrap();
        assert_eq!(other_base.bytes.len(), guest.tables.bytes.len());
    }
}

#[test]
fn madt_lists_each_vcpu_by_its_id_and_nothing_else() {
    for vcpus in [1, 64] {
        let guest = Guest::new(&DomainTopology::new(vcpus));
        assert_eq!(guest.processors(), (0..vcpus).map(|id| (0, id, id, 1)).collect::<Vec<_>>());
        assert_eq!(u32_at(&guest.xsdt[1], 36), 0xfee0_0000);
        assert_eq!(u32_at(&guest.xsdt[1], 40), 0, "PCAT_COMPAT");
    }
}

#[test]
fn madt_uses_x2apic_entries_from_id_255_on() {
    let processors = Guest::new(&DomainTopology::new(300)).processors();
    assert_eq!(processors.len(), 300);
    assert_eq!(processors[254], (0, 254, 254, 1));
    assert_eq!(processors[255], (9, 255, 255, 1));
    assert_eq!(processors[299], (9, 299, 299, 1));
}

#[test]
fn madt_takes_apic_ids_and_online_state_from_the_topology() {
    let mut topology = DomainTopology::new(2);
    topology.vcpus[1] = Vcpu { apic_id: 0x1_0000, online: false };
    assert_eq!(Guest::new(&topology).processors(), [(0, 0, 0, 1), (9, 1, 0x1_0000, 2)]);
}

#[test]
fn fadt_denies_vga_rtc_and_keyboard_controller() {
    let fadt = &Guest::new(&DomainTopology::new(1)).xsdt[0];
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    let boot_arch = u16::from_le_bytes([fadt[109], fadt[110]]);
    assert_eq!(boot_arch, 1 << 2 | 1 << 5);
    let hw_reduced = 1 << 20;
    assert_ne!(u32_at(fadt, 112) & hw_reduced, 0);
}

#[test]
fn fadt_names_the_ports_of_the_caller() {
    let mut topology = DomainTopology::new(1);
    topology.ports = PowerPorts { sleep_control: 0x700, sleep_status: 0x701, reset: 0x702 };
    let fadt = &Guest::new(&topology).xsdt[0];
    let register = |at: usize| (fadt[at..at + 4].to_vec(), u64_at(fadt, at + 4));
    assert_eq!(register(244), (vec![1, 8, 0, 1], 0x700));
    assert_eq!(register(256), (vec![1, 8, 0, 1], 0x701));
    assert_eq!(register(116), (vec![1, 8, 0, 1], 0x702));
    assert_eq!((fadt[128], u32_at(fadt, 112) >> 10 & 1), (RESET_VALUE, 1));
}

#[test]
fn dsdt_holds_s5_and_a_device_per_vcpu() {
    let dsdt = Guest::new(&DomainTopology::new(300)).dsdt;
    let count = |needle: &[u8]| dsdt.windows(needle.len()).filter(|window| *window == needle).count();
    assert_eq!(count(b"ACPI0007"), 300);
    // Name (_UID, 0x12b) of device C12B.
    assert_eq!(count(b"\x08_UID\x0b\x2b\x01"), 1);
    // Name (\_S5, Package (4) {5, 0, 0, 0})
    assert_eq!(count(b"\x08\\_S5_\x12\x07\x04\x0a\x05\x00\x00\x00"), 1);
}

#[test]
fn only_s5_with_sleep_enable_powers_off() {
    // What Linux writes: SLP_TYP << 2 | SLP_EN.
    assert!(is_power_off(5 << 2 | 0x20));
    assert!(!is_power_off(5 << 2));
    assert!(!is_power_off(3 << 2 | 0x20));
    assert!(!is_power_off(0));
}

#[test]
fn impossible_topologies_and_addresses_are_refused() {
    let error = |vcpus, base| DomainTopology::new(vcpus).pvh_tables(base).unwrap_err();
    assert_eq!(error(0, BASE), AcpiError::Vcpus(0));
    assert_eq!(error(4097, BASE), AcpiError::Vcpus(4097));
    assert_eq!(error(1, BASE + 8), AcpiError::Base(BASE + 8));
    assert_eq!(error(1, 0xffff_fff0), AcpiError::Base(0xffff_fff0));
    assert_eq!(error(1, u64::MAX - 15), AcpiError::Base(u64::MAX - 15));
}
