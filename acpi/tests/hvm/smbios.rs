//! SMBIOS structures, read by a reader of the test's own.

use acpi::{CpuIdentity, Smbios};

use crate::guest::{sum, u16_at, u32_at, u64_at};

fn machine() -> Smbios {
    Smbios {
        manufacturer: "Xen".into(),
        product: "HVM domU".into(),
        version: "4.17".into(),
        release_date: "01/31/2026".into(),
        uuid: [
            0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
        ],
        serial: "00112233-4455-6677-8899-aabbccddeeff".into(),
        cpu: CpuIdentity { signature: 0x6f2, features: 0x0781_abff },
        sockets: 2,
        cores: 2,
        threads: 4,
        ram: vec![0..0xa_0000, 0x10_0000..0x4000_0000],
    }
}

struct Structure {
    kind: u8,
    handle: u16,
    bytes: Vec<u8>,
    strings: Vec<String>,
}

impl Structure {
    fn string(&self, at: usize) -> &str {
        &self.strings[usize::from(self.bytes[at]) - 1]
    }
}

fn read(machine: &Smbios) -> Vec<Structure> {
    let tables = machine.tables();
    let entry = tables.anchor;
    assert_eq!((entry.len(), &entry[..4], entry[5], [entry[6], entry[7]]), (31, &b"_SM_"[..], 31, [2, 8]));
    assert_eq!((sum(&entry), &entry[16..21], sum(&entry[16..]), entry[30]), (0, &b"_DMI_"[..], 0, 0x28));
    assert_eq!((usize::from(u16_at(&entry, 22)), u32_at(&entry, 24)), (tables.tables.len(), 0));
    let mut rest = &tables.tables[..];
    let mut found: Vec<Structure> = Vec::new();
    let mut largest = 0;
    while !rest.is_empty() {
        let len = usize::from(rest[1]);
        let end = (len..).find(|at| rest[*at..*at + 2] == [0, 0]).unwrap() + 2;
        let strings = rest[len..end - 2].split(|byte| *byte == 0).filter(|text| !text.is_empty());
        found.push(Structure {
            kind: rest[0],
            handle: u16_at(rest, 2),
            bytes: rest[..len].to_vec(),
            strings: strings.map(|text| String::from_utf8(text.to_vec()).unwrap()).collect(),
        });
        largest = largest.max(end);
        rest = &rest[end..];
    }
    assert_eq!((found.len(), largest), (u16_at(&entry, 28).into(), u16_at(&entry, 8).into()));
    let mut handles: Vec<_> = found.iter().map(|structure| structure.handle).collect();
    handles.dedup();
    assert_eq!(handles.len(), found.len(), "each handle is used once");
    found
}

fn of(found: &[Structure], kind: u8) -> Vec<&Structure> {
    found.iter().filter(|structure| structure.kind == kind).collect()
}

#[test]
fn structures_have_the_types_and_lengths_of_2_8() {
    let found = read(&machine());
    let kinds: Vec<_> = found.iter().map(|structure| (structure.kind, structure.bytes.len())).collect();
    let expected = [
        (0, 0x18),
        (1, 0x1b),
        (3, 0x16),
        (4, 0x2a),
        (4, 0x2a),
        (16, 0x17),
        (17, 0x28),
        (19, 0x1f),
        (19, 0x1f),
        (32, 0x0b),
        (127, 4),
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn the_system_has_its_names_and_uuid() {
    let found = read(&machine());
    let system = of(&found, 1)[0];
    assert_eq!([4, 5, 6].map(|at| system.string(at)), ["Xen", "HVM domU", "4.17"]);
    assert_eq!(system.string(7), "00112233-4455-6677-8899-aabbccddeeff");
    let wire =
        [0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
    assert_eq!(system.bytes[8..24], wire);
    let bios = of(&found, 0)[0];
    assert_eq!([4, 5, 8].map(|at| bios.string(at)), ["Xen", "4.17", "01/31/2026"]);
    // Bit 4 of the second extension byte: a virtual machine.
    assert_eq!((u64_at(&bios.bytes, 10), &bios.bytes[18..20]), (8, &[0, 0x10][..]));
}

#[test]
fn processors_are_told_by_socket() {
    let found = read(&machine());
    let sockets = of(&found, 4);
    assert_eq!(sockets.iter().map(|socket| socket.string(4)).collect::<Vec<_>>(), ["CPU 0", "CPU 1"]);
    let socket = &sockets[0].bytes;
    assert_eq!(
        (socket[5], u32_at(socket, 8), u32_at(socket, 12), socket[0x18]),
        (3, 0x6f2, 0x0781_abff, 0x41)
    );
    assert_eq!(socket[0x23..0x26], [2, 2, 4]);
}

#[test]
fn memory_is_told_in_all_its_sizes() {
    let found = read(&machine());
    let array = &of(&found, 16)[0].bytes;
    // 1 GiB less the hole of 384 KiB.
    assert_eq!((u32_at(array, 7), u16_at(array, 13)), ((1 << 20) - 384, 1));
    let ranges: Vec<_> =
        of(&found, 19).iter().map(|range| (u32_at(&range.bytes, 4), u32_at(&range.bytes, 8))).collect();
    assert_eq!(ranges, [(0, 639), (1024, (1 << 20) - 1)]);

    // 40 GiB: three devices, and the last one has the rest. Sizes from 32 GiB - 1 MiB on would be extended ones.
    let large = Smbios { ram: vec![0..0xc000_0000, 1 << 32..(1 << 32) + (37 << 30)], ..machine() };
    let found = read(&large);
    let devices: Vec<_> = of(&found, 17).iter().map(|device| u16_at(&device.bytes, 12)).collect();
    assert_eq!(devices, [16384, 16384, 8192]);

    // 5 TiB: extended capacity, sizes and addresses.
    let found = read(&Smbios { ram: std::iter::once(0..5 << 40).collect(), ..machine() });
    let array = &of(&found, 16)[0].bytes;
    assert_eq!((u32_at(array, 7), u64_at(array, 15)), (0x8000_0000, 5 << 40));
    let devices = of(&found, 17);
    assert_eq!(devices.len(), 128);
    assert_eq!((u16_at(&devices[0].bytes, 12), u32_at(&devices[0].bytes, 0x1c)), (0x7fff, 40 << 10));
    let range = &of(&found, 19)[0].bytes;
    assert_eq!((u32_at(range, 4), u64_at(range, 15), u64_at(range, 23)), (u32::MAX, 0, (5 << 40) - 1));
}

#[test]
fn strings_cannot_break_the_structures() {
    let strange = Smbios {
        manufacturer: String::new(),
        product: "a\0\0b\u{e9}".into(),
        serial: "x".repeat(1000),
        sockets: u16::MAX,
        cores: 1000,
        ram: (0..4000).map(|at| at << 20..(at + 1) << 20).collect(),
        ..machine()
    };
    let found = read(&strange);
    let system = of(&found, 1)[0];
    assert_eq!((system.bytes[4], system.string(5), system.string(7).len()), (0, "ab", 64));
    assert_eq!((of(&found, 4).len(), of(&found, 19).len()), (128, 64));
    assert_eq!(of(&found, 4)[0].bytes[0x23], 255);
}
