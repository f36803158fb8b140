//! What each of the four states has, and which boards have no tables.

use acpi::{
    AcpiError, HvmTopology, MP_CONFIG_FILE, MP_POINTER_FILE, PIR_FILE, PciPin, PmPorts, Profile, RSDP_FILE,
};
use acpi::{TABLES_FILE, Vcpu};

use crate::guest::{Memory, board, names, signatures};

fn state(acpi: bool, apic: bool) -> HvmTopology {
    HvmTopology { acpi, apic, ..board(1) }
}

#[test]
fn each_state_has_its_files() {
    let files = |acpi, apic| names(&state(acpi, apic).tables().unwrap());
    assert_eq!(files(true, true), [RSDP_FILE, TABLES_FILE]);
    assert_eq!(files(true, false), [RSDP_FILE, TABLES_FILE]);
    assert_eq!(files(false, true), [MP_CONFIG_FILE, MP_POINTER_FILE, PIR_FILE]);
    assert_eq!(files(false, false), [PIR_FILE]);
}

#[test]
fn only_the_states_with_apic_name_one() {
    for profile in [Profile::Xp, Profile::Modern] {
        for acpi in [true, false] {
            for apic in [true, false] {
                let memory = Memory::of(&HvmTopology { profile, ..state(acpi, apic) });
                let has = |needle: &[u8]| {
                    memory
                        .0
                        .iter()
                        .any(|(_, bytes)| bytes.windows(needle.len()).any(|window| window == needle))
                };
                assert_eq!(has(&0xfee0_0000u32.to_le_bytes()), apic, "local APIC, acpi {acpi}");
                assert_eq!(has(&0xfec0_0000u32.to_le_bytes()), apic, "I/O APIC, acpi {acpi}");
                assert_eq!(memory.find(b"_MP_").is_some(), apic && !acpi);
                assert_eq!(memory.find(b"RSD PTR ").is_some(), acpi);
                assert_eq!(has(b"FACP"), acpi);
            }
        }
    }
    assert_eq!(signatures(&Memory::of(&state(true, false)).rsdt()), ["FACP"]);
}

#[test]
fn the_io_apics_id_is_no_local_apics() {
    assert_eq!([1, 4, 15, 16].map(|vcpus| board(vcpus).io_apic_id()), [1, 4, 15, 0]);
    let mut sparse = board(2);
    sparse.vcpus[0].apic_id = 2;
    sparse.vcpus[1].apic_id = 0;
    assert_eq!(sparse.io_apic_id(), 1);
}

#[test]
fn impossible_boards_are_refused() {
    let error = |board: HvmTopology| board.tables().unwrap_err();
    let pin = |device, function, pin| PciPin { device, function, pin };
    assert_eq!(error(board(0)), AcpiError::Vcpus(0));
    assert_eq!(error(board(256)), AcpiError::ByteIds(256));
    assert_eq!(
        error(HvmTopology { profile: Profile::Modern, acpi: false, ..board(256) }),
        AcpiError::ByteIds(256)
    );
    assert_eq!(error(HvmTopology { profile: Profile::Modern, ..board(4097) }), AcpiError::Vcpus(4097));
    assert_eq!(error(HvmTopology { apic: false, ..board(2) }), AcpiError::NoApic(2));
    let vcpus = vec![Vcpu { apic_id: 255, online: true }];
    assert_eq!(error(HvmTopology { vcpus, ..board(1) }), AcpiError::ByteIds(1));
    for low_ram_end in [0, 0xfec0_0000] {
        assert_eq!(error(HvmTopology { low_ram_end, ..board(1) }), AcpiError::LowRam(low_ram_end));
    }
    for wrong in [pin(32, 0, 0), pin(0, 8, 0), pin(0, 0, 4)] {
        let PciPin { device, function, pin } = wrong;
        assert_eq!(
            error(HvmTopology { pins: vec![wrong], ..board(1) }),
            AcpiError::PciPin { device, function, pin }
        );
    }
    let ports = PmPorts::default();
    for pm in
        [PmPorts { base: 0x610, ..ports }, PmPorts { smbus: 0, ..ports }, PmPorts { gpe0: 0xafe1, ..ports }]
    {
        assert_eq!(error(HvmTopology { pm, ..board(1) }), AcpiError::PmPorts(pm));
    }
}

#[test]
fn tables_that_reach_past_their_zone_are_refused() {
    let files = board(1).tables().unwrap();
    assert_eq!(files.place(0xf_fff0, 0x10_0000), Err(AcpiError::Base(0xf_fff0)));
    assert_eq!(files.place(0xf_0000, 0xffff_ff00), Err(AcpiError::Base(0xffff_ff00)));
}
