//! The XP profile against the offsets of the ACPI specification 1.0b.

use acpi::Vcpu;

use crate::guest::{F_SEGMENT, HIGH, Memory, board, signatures, sum, u16_at, u32_at};

#[test]
fn rsdp_is_that_of_5_2_3() {
    let memory = Memory::of(&board(1));
    let rsdp = memory.rsdp();
    assert_eq!(rsdp.len(), 20);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!(sum(rsdp), 0);
    assert_eq!(&rsdp[9..15], b"XVMM  ");
    assert_eq!(rsdp[15], 0);
    assert!(u32_at(rsdp, 16) > HIGH && u32_at(rsdp, 16).is_multiple_of(16));
}

#[test]
fn all_headers_are_those_of_5_2_4() {
    let memory = Memory::of(&board(2));
    let revisions: Vec<_> = memory.all().iter().map(|table| (table[..4].to_vec(), table[8])).collect();
    let expected: Vec<_> =
        [b"FACP", b"APIC", b"DSDT", b"FACS", b"RSDT"].iter().map(|name| name.to_vec()).collect();
    assert_eq!(revisions.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), expected);
    for table in memory.all().into_iter().filter(|table| !table.starts_with(b"FACS")) {
        assert_eq!((u32_at(table, 4) as usize, table[8], sum(table)), (table.len(), 1, 0));
        assert_eq!((&table[10..16], &table[16..24]), (&b"XVMM  "[..], &b"XVMMHVM "[..]));
        assert_eq!((u32_at(table, 24), &table[28..32], u32_at(table, 32)), (1, &b"XVMM"[..], 1));
    }
}

#[test]
fn fadt_is_that_of_5_2_5() {
    let memory = Memory::of(&board(1));
    let fadt = memory.listed(b"FACP").unwrap();
    assert_eq!((fadt.len(), fadt[8]), (116, 1));
    memory.table(u32_at(fadt, 36), b"FACS");
    memory.table(u32_at(fadt, 40), b"DSDT");
    #[rustfmt::skip]
    let expected: [u8; 72] = [
        1, 0, 9, 0,                          // INT_MODEL (multiple APIC), reserved, SCI_INT
        0xb2, 0, 0, 0,                       // SMI_CMD
        0xf1, 0xf0, 0, 0,                    // ACPI_ENABLE, ACPI_DISABLE, S4BIOS_REQ, reserved
        0x00, 0x06, 0, 0,  0, 0, 0, 0,       // PM1a_EVT_BLK, PM1b_EVT_BLK
        0x04, 0x06, 0, 0,  0, 0, 0, 0,       // PM1a_CNT_BLK, PM1b_CNT_BLK
        0, 0, 0, 0,                          // PM2_CNT_BLK
        0x08, 0x06, 0, 0,                    // PM_TMR_BLK
        0xe0, 0xaf, 0, 0,  0, 0, 0, 0,       // GPE0_BLK, GPE1_BLK
        4, 2, 0, 4,                          // PM1_EVT_LEN, PM1_CNT_LEN, PM2_CNT_LEN, PM_TM_LEN
        4, 0, 0, 0,                          // GPE0_BLK_LEN, GPE1_BLK_LEN, GPE1_BASE, reserved
        0xff, 0x0f, 0xff, 0x0f,              // P_LVL2_LAT > 100, P_LVL3_LAT > 1000: neither
        0, 0, 0, 0,  0, 0,                   // FLUSH_SIZE, FLUSH_STRIDE, DUTY_OFFSET, DUTY_WIDTH
        0, 0, 0x32, 0, 0, 0,                 // DAY_ALRM, MON_ALRM, CENTURY, reserved
        0b10_0101, 0, 0, 0,                  // WBINVD, PROC_C1, SLP_BUTTON: none; a fixed power button; RTC_STS
    ];
    assert_eq!(fadt[44..], expected);
}

#[test]
fn fadt_takes_the_ports_and_the_interrupt_model_of_the_board() {
    let mut board = board(1);
    board.pm = acpi::PmPorts { base: 0xb000, smbus: 0xb100, gpe0: 0xafe0 };
    board.apic = false;
    let memory = Memory::of(&board);
    let fadt = memory.listed(b"FACP").unwrap();
    assert_eq!(fadt[44], 0);
    assert_eq!([56, 64, 76].map(|at| u32_at(fadt, at)), [0xb000, 0xb004, 0xb008]);
}

#[test]
fn facs_is_that_of_5_2_6() {
    let memory = Memory::of(&board(1));
    let gpa = u32_at(memory.listed(b"FACP").unwrap(), 36);
    let facs = memory.table(gpa, b"FACS");
    assert_eq!(gpa % 64, 0);
    assert_eq!((facs.len(), &facs[..8]), (64, &b"FACS\x40\0\0\0"[..]));
    assert!(facs[8..].iter().all(|byte| *byte == 0));
}

#[test]
fn madt_is_that_of_5_2_8() {
    let mut board = board(3);
    board.vcpus[2] = Vcpu { apic_id: 4, online: false };
    let memory = Memory::of(&board);
    let madt = memory.listed(b"APIC").unwrap();
    #[rustfmt::skip]
    let expected = [
        0, 0, 0xe0, 0xfe,  1, 0, 0, 0,       // local APICs at 0xfee00000, PCAT_COMPAT
        0, 8, 0, 0,  1, 0, 0, 0,             // processor 0, APIC id 0, enabled
        0, 8, 1, 1,  1, 0, 0, 0,
        0, 8, 2, 4,  0, 0, 0, 0,             // not there
        1, 12, 2, 0,  0, 0, 0xc0, 0xfe,  0, 0, 0, 0, // I/O APIC, id 2, at 0xfec00000, from vector 0 on
        2, 10, 0, 0,  2, 0, 0, 0,  0, 0,     // ISA 0 -> 2, as the bus has it
        2, 10, 0, 5,  5, 0, 0, 0,  0xd, 0,   // active high, level
        2, 10, 0, 9,  9, 0, 0, 0,  0xd, 0,
        2, 10, 0, 10,  10, 0, 0, 0,  0xd, 0,
        2, 10, 0, 11,  11, 0, 0, 0,  0xd, 0,
        4, 6, 0xff, 0, 0, 1,                 // NMI: all processors, LINT1
    ];
    assert_eq!(madt[36..], expected);
}

#[test]
fn dsdt_begins_with_constructs_of_acpi_1_only() {
    let memory = Memory::of(&board(2));
    let dsdt = memory.dsdt();
    let count = |needle: &[u8]| dsdt.windows(needle.len()).filter(|window| *window == needle).count();
    // Name (\_S5, Package (4) {0, 0, 0, 0})
    assert_eq!(count(b"\x08\\_S5_\x12\x06\x04\x00\x00\x00\x00"), 1);
    // Processor (C001, 1, 0, 0) {}
    assert_eq!(count(b"\x5b\x83\x0bC001\x01\0\0\0\0\0"), 1);
    // No sleep state between working and off, no ACPI 2.0 device of a processor, no address of 64 bits.
    for absent in [&b"_S1_"[..], b"_S2_", b"_S3_", b"_S4_", b"ACPI0007", b"\x8a\x2b\0"] {
        assert_eq!(count(absent), 0, "{absent:?}");
    }
}

#[test]
fn hpet_is_there_only_when_the_board_has_one() {
    let mut board = board(1);
    let has = |board: &acpi::HvmTopology| {
        let memory = Memory::of(board);
        let device = b"\x82\x10HPET";
        let in_dsdt = memory.dsdt().windows(4).any(|window| window == &device[2..]);
        (signatures(&memory.rsdt()), in_dsdt)
    };
    assert_eq!(has(&board), (vec!["FACP".into(), "APIC".into()], false));
    board.hpet = Some(0x8086_a201);
    assert_eq!(has(&board), (vec!["FACP".into(), "APIC".into(), "HPET".into()], true));
    let memory = Memory::of(&board);
    let hpet = memory.listed(b"HPET").unwrap();
    assert_eq!((hpet.len(), u32_at(hpet, 36), hpet[40], u32_at(hpet, 44)), (56, 0x8086_a201, 0, 0xfed0_0000));
    assert_eq!(u16_at(hpet, 53), 128);
}

#[test]
fn placed_tables_are_where_they_were_asked_for() {
    let pieces = board(1).tables().unwrap().place(F_SEGMENT + 1, HIGH + 1).unwrap();
    assert_eq!(pieces[0].0, F_SEGMENT + 16);
    assert_eq!(pieces[1].0, HIGH + 64);
}
