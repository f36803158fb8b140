//! MP table and $PIR, read by a reader of the test's own (MP specification 1.4, chapter 4).

use acpi::{HvmTopology, PIR_FILE};

use crate::guest::{Memory, board, sum, u16_at, u32_at};

fn without_acpi(vcpus: u32) -> HvmTopology {
    HvmTopology { acpi: false, ..board(vcpus) }
}

/// Interrupt entry: type, flags, source bus, source, APIC, input.
type Interrupt = (u8, u16, u8, u8, u8, u8);

#[derive(Debug, Default, PartialEq)]
struct MpTable {
    /// APIC id, version, flags, signature, features.
    processors: Vec<(u8, u8, u8, u32, u32)>,
    buses: Vec<(u8, String)>,
    /// Id, version, flags, address.
    io_apics: Vec<(u8, u8, u8, u32)>,
    io: Vec<Interrupt>,
    local: Vec<Interrupt>,
}

fn read(memory: &Memory) -> MpTable {
    let pointer = &memory.from(memory.find(b"_MP_").unwrap())[..16];
    assert_eq!((pointer[8], pointer[9], sum(pointer)), (1, 4, 0));
    // A configuration table, and no IMCR.
    assert_eq!(pointer[11..], [0; 5]);
    let config = memory.from(u32_at(pointer, 4));
    let config = &config[..usize::from(u16_at(config, 4))];
    assert_eq!((&config[..4], config[6], sum(config)), (&b"PCMP"[..], 4, 0));
    assert_eq!((u32_at(config, 36), u16_at(config, 40)), (0xfee0_0000, 0));
    let mut table = MpTable::default();
    let mut rest = &config[44..];
    let mut last = 0;
    for _ in 0..u16_at(config, 34) {
        let (entry, tail) = rest.split_at(if rest[0] == 0 { 20 } else { 8 });
        assert!(entry[0] >= last, "entries are sorted by type");
        last = entry[0];
        let interrupt = || (entry[1], u16_at(entry, 2), entry[4], entry[5], entry[6], entry[7]);
        match entry[0] {
            0 => table.processors.push((entry[1], entry[2], entry[3], u32_at(entry, 4), u32_at(entry, 8))),
            1 => table.buses.push((entry[1], String::from_utf8(entry[2..].to_vec()).unwrap())),
            2 => table.io_apics.push((entry[1], entry[2], entry[3], u32_at(entry, 4))),
            3 => table.io.push(interrupt()),
            4 => table.local.push(interrupt()),
            kind => panic!("entry of type {kind}"),
        }
        rest = tail;
    }
    assert_eq!(rest, []);
    table
}

#[test]
fn the_table_tells_of_processors_buses_and_apics() {
    let mut board = without_acpi(3);
    board.vcpus[1].online = false;
    let table = read(&Memory::of(&board));
    assert_eq!(table.processors, [(0, 0x14, 3, 0x6f2, 0x0781_abff), (2, 0x14, 1, 0x6f2, 0x0781_abff)]);
    assert_eq!(table.buses, [(0, "PCI   ".into()), (1, "ISA   ".into())]);
    assert_eq!(table.io_apics, [(3, 0x11, 1, 0xfec0_0000)]);
    // ExtINT at the boot processor's LINT0, NMI at everyone's LINT1.
    assert_eq!(table.local, [(3, 0, 1, 0, 0, 0), (1, 0, 1, 0, 0xff, 1)]);
}

#[test]
fn isa_interrupts_have_the_pin_of_their_number_but_for_the_timer() {
    let table = read(&Memory::of(&without_acpi(1)));
    let isa: Vec<_> = table.io.iter().filter(|entry| entry.2 == 1).map(|entry| (entry.3, entry.5)).collect();
    let same = [1, 3, 4, 5, 6, 7, 8, 12, 13, 14, 15].map(|irq| (irq, irq));
    assert_eq!(isa, [&[(0, 2)], &same[..]].concat());
    assert!(
        table.io.iter().filter(|entry| entry.2 == 1).all(|entry| (entry.0, entry.1, entry.4) == (0, 0, 1))
    );
}

#[test]
fn pci_pins_are_where_seabios_routes_them() {
    let table = read(&Memory::of(&without_acpi(1)));
    let pci: Vec<_> = table.io.iter().filter(|entry| entry.2 == 0).copied().collect();
    // Devices 1 (INTA# is the SCI, INTD#), 3, 4, 5: PIRQ (device + pin - 1) % 4 of 10, 10, 11, 11. Active high, level.
    let expected = [(1 << 2, 9), (1 << 2 | 3, 11), (3 << 2, 11), (4 << 2, 11), (5 << 2, 10)];
    assert_eq!(pci, expected.map(|(source, input)| (0, 0xd, 0, source, 1, input)));
}

#[test]
fn a_table_of_many_processors_leaves_the_f_segment() {
    for (vcpus, in_f_segment) in [(1, true), (32, true), (255, false)] {
        let memory = Memory::of(&without_acpi(vcpus));
        let config = u32_at(memory.from(memory.find(b"_MP_").unwrap()), 4);
        assert_eq!(config < 0x10_0000, in_f_segment, "{vcpus} vCPUs");
        assert_eq!(read(&memory).processors.len(), vcpus as usize);
    }
}

#[test]
fn pir_routes_as_the_mp_table_does() {
    for apic in [true, false] {
        let memory = Memory::of(&HvmTopology { apic, ..without_acpi(1) });
        let pir = memory.from(memory.find(b"$PIR").unwrap());
        assert_eq!((u16_at(pir, 4), usize::from(u16_at(pir, 6)), sum(pir)), (0x100, pir.len(), 0));
        assert_eq!((pir[8], pir[9], u16_at(pir, 10), u32_at(pir, 12)), (0, 1 << 3, 0, 0x122e_8086));
        // Bus, device, links of INTA# to INTD#, slot.
        let slots: Vec<_> = pir[32..]
            .chunks_exact(16)
            .map(|slot| (slot[0], slot[1] >> 3, [slot[2], slot[5], slot[8], slot[11]], slot[14]))
            .collect();
        let expected = [
            (0, 1, [0x01, 0x61, 0x62, 0x63], 0),
            (0, 3, [0x62, 0x63, 0x60, 0x61], 3),
            (0, 4, [0x63, 0x60, 0x61, 0x62], 4),
            (0, 5, [0x60, 0x61, 0x62, 0x63], 5),
        ];
        assert_eq!(slots, expected);
        for slot in pir[32..].chunks_exact(16) {
            for link in slot[2..14].chunks_exact(3) {
                let irqs = if link[0] == 1 { 1 << 9 } else { 1 << 5 | 1 << 10 | 1 << 11 };
                assert_eq!(u16_at(link, 1), irqs);
            }
        }
    }
    assert!(board(1).tables().unwrap().files().iter().all(|file| file.name != PIR_FILE));
}
