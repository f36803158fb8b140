//! The modern profile against the offsets of the ACPI specification 6.4.

use acpi::{HvmTopology, Profile, RESET_CONTROL_VALUE, Vcpu};

use crate::guest::{Memory, board, signatures, sum, u16_at, u32_at, u64_at};

fn modern(vcpus: u32) -> HvmTopology {
    HvmTopology { profile: Profile::Modern, ..board(vcpus) }
}

#[test]
fn rsdp_has_an_rsdt_and_an_xsdt_with_the_same_tables() {
    let memory = Memory::of(&modern(1));
    let rsdp = memory.rsdp();
    assert_eq!((rsdp.len(), rsdp[15], u32_at(rsdp, 20)), (36, 2, 36));
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    assert_eq!(signatures(&memory.xsdt()), ["FACP", "APIC"]);
    assert_eq!(memory.xsdt(), memory.rsdt());
}

#[test]
fn fadt_is_that_of_5_2_9() {
    let memory = Memory::of(&modern(1));
    let fadt = memory.listed(b"FACP").unwrap();
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 4));
    assert_eq!((fadt[45], u16_at(fadt, 46)), (1, 9));
    // Legacy devices and 8042; VGA and RTC are not denied.
    assert_eq!(u16_at(fadt, 109), 0b11);
    // WBINVD, PROC_C1, SLP_BUTTON, RESET_REG_SUP; not hardware-reduced.
    assert_eq!(u32_at(fadt, 112), 1 | 1 << 2 | 1 << 5 | 1 << 10);
    let register = |at: usize| (fadt[at..at + 4].to_vec(), u64_at(fadt, at + 4));
    assert_eq!((register(116), fadt[128]), ((vec![1, 8, 0, 1], 0xcf9), RESET_CONTROL_VALUE));
    // The FACS has one address, the DSDT has it in both fields.
    memory.table(u32_at(fadt, 36), b"FACS");
    assert_eq!(u64_at(fadt, 132), 0);
    assert_eq!(u64_at(fadt, 140), u64::from(u32_at(fadt, 40)));
}

#[test]
fn fadts_generic_addresses_agree_with_the_ports() {
    let memory = Memory::of(&modern(1));
    let fadt = memory.listed(b"FACP").unwrap();
    let blocks = [(148, 56, 88), (172, 64, 89), (208, 76, 91), (220, 80, 92)];
    for (generic, port, len) in blocks {
        assert_eq!(fadt[generic], 1, "space at {generic}");
        assert_eq!(fadt[generic + 1], fadt[len] * 8, "width at {generic}");
        assert_eq!(u64_at(fadt, generic + 4), u64::from(u32_at(fadt, port)), "address at {generic}");
    }
    for absent in [160, 184, 196, 232] {
        assert_eq!(fadt[absent..absent + 12], [0; 12]);
    }
}

#[test]
fn madt_has_x2apic_entries_and_their_nmi_where_ids_need_them() {
    let mut board = modern(256);
    board.vcpus[1] = Vcpu { apic_id: 1, online: false };
    let memory = Memory::of(&board);
    let madt = memory.listed(b"APIC").unwrap();
    assert_eq!(madt[8], 5);
    let mut entries = &madt[44..];
    let mut found = Vec::new();
    while let [kind, len, ..] = *entries {
        found.push((kind, &entries[..usize::from(len)]));
        entries = &entries[usize::from(len)..];
    }
    assert_eq!(found.iter().filter(|(kind, _)| *kind == 0).count(), 255);
    // "Online capable" is of revision 5.
    assert_eq!(found[1].1, [0, 8, 1, 1, 2, 0, 0, 0]);
    let of =
        |kind| found.iter().filter(|(found, _)| *found == kind).map(|(_, entry)| *entry).collect::<Vec<_>>();
    assert_eq!(of(9), [[9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 255, 0, 0, 0]]);
    assert_eq!(of(10), [[10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]]);
    assert_eq!(of(2).len(), 5);
    // No id is left below 16.
    assert_eq!(of(1)[0][2], 0);
}

#[test]
fn dsdt_has_processor_devices_of_64_bit_tables() {
    let memory = Memory::of(&modern(2));
    let dsdt = memory.dsdt();
    assert_eq!(dsdt[8], 2);
    assert_eq!(dsdt.windows(8).filter(|window| window == b"ACPI0007").count(), 2);
    assert!(!dsdt.windows(2).any(|window| window == b"\x5b\x83"));
}
