//! SMBIOS 2.8: what the machine is called, its processors and its memory (DMTF DSP0134 2.8, chapters 5 to 7).

use std::ops::Range;

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use crate::{CpuIdentity, sdt};

/// fw_cfg's file with the entry point. SeaBIOS sets the address and the checksums.
pub const SMBIOS_ANCHOR_FILE: &str = "etc/smbios/smbios-anchor";
/// fw_cfg's file with the structures.
pub const SMBIOS_TABLES_FILE: &str = "etc/smbios/smbios-tables";

/// Handles: those of the first structure of each kind. Numbers of their own, so that one does not change with
/// another kind's count.
const BIOS_HANDLE: u16 = 0x0000;
const SYSTEM_HANDLE: u16 = 0x0100;
const CHASSIS_HANDLE: u16 = 0x0300;
const PROCESSOR_HANDLE: u16 = 0x0400;
const ARRAY_HANDLE: u16 = 0x1000;
const MEMORY_HANDLE: u16 = 0x1100;
const MAPPED_HANDLE: u16 = 0x1300;
const BOOT_HANDLE: u16 = 0x2000;
const END_HANDLE: u16 = 0x7f00;

/// No structure of that kind, or none told.
const NO_HANDLE: U16 = U16::new(0xffff);
const NO_ERROR_HANDLE: U16 = U16::new(0xfffe);

const MIB: u64 = 1 << 20;
/// A memory device has at most so much, so that there are few.
const DEVICE_BYTES: u64 = 16 << 30;
/// At most so many devices, mapped ranges and sockets are told, so that the structures stay below 64 KiB.
const MAX_DEVICES: u64 = 128;
const MAX_RANGES: usize = 64;
const MAX_SOCKETS: u16 = 128;
/// Size fields of 16 and 32 bits that point at the extended ones.
const EXTENDED_SIZE: u16 = 0x7fff;
const EXTENDED_CAPACITY: u32 = 0x8000_0000;
const EXTENDED_ADDRESS: u32 = 0xffff_ffff;

/// At most so many bytes of a string: older guests want no more.
const MAX_STRING: usize = 64;

/// What a guest can read about its machine. Empty strings are "not told".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smbios {
    /// Of system, chassis and processors.
    pub manufacturer: String,
    /// The product.
    pub product: String,
    /// Of product and firmware.
    pub version: String,
    /// When that was, MM/DD/YYYY.
    pub release_date: String,
    /// Of the machine.
    pub uuid: [u8; 16],
    /// The machine's serial number: the UUID as text, for instance.
    pub serial: String,
    /// CPUID leaf 1.
    pub cpu: CpuIdentity,
    /// Processor sockets; at least 1. Windows XP uses two.
    pub sockets: u16,
    /// Cores and threads of each socket; at most 255 are told.
    pub cores: u16,
    /// See `cores`.
    pub threads: u16,
    /// Guest-physical addresses of RAM.
    pub ram: Vec<Range<u64>>,
}

/// The contents of the two files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmbiosTables {
    /// The entry point, 31 bytes.
    pub anchor: Vec<u8>,
    /// The structures.
    pub tables: Vec<u8>,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct EntryPoint {
    anchor: [u8; 4],
    checksum: u8,
    length: u8,
    major: u8,
    minor: u8,
    max_structure_size: U16,
    revision: u8,
    formatted: [u8; 5],
    intermediate_anchor: [u8; 5],
    intermediate_checksum: u8,
    table_length: U16,
    table_address: U32,
    structures: U16,
    bcd_revision: u8,
}
const _: () = assert!(size_of::<EntryPoint>() == 31);
const INTERMEDIATE: usize = std::mem::offset_of!(EntryPoint, intermediate_anchor);
const _: () = assert!(INTERMEDIATE == 16);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Bios {
    vendor: u8,
    version: u8,
    start_segment: U16,
    release_date: u8,
    rom_size: u8,
    characteristics: U64,
    extension: [u8; 2],
    /// System BIOS and embedded controller, 255: none.
    releases: [u8; 4],
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct System {
    manufacturer: u8,
    product: u8,
    version: u8,
    serial: u8,
    uuid: [u8; 16],
    wake_up: u8,
    sku: u8,
    family: u8,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Chassis {
    manufacturer: u8,
    kind: u8,
    version: u8,
    serial: u8,
    asset_tag: u8,
    boot_up_state: u8,
    power_supply_state: u8,
    thermal_state: u8,
    security: u8,
    oem: U32,
    height: u8,
    power_cords: u8,
    elements: u8,
    element_length: u8,
    sku: u8,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Processor {
    socket: u8,
    kind: u8,
    family: u8,
    manufacturer: u8,
    signature: U32,
    features: U32,
    version: u8,
    voltage: u8,
    external_clock: U16,
    max_speed: U16,
    current_speed: U16,
    status: u8,
    upgrade: u8,
    caches: [U16; 3],
    serial: u8,
    asset_tag: u8,
    part_number: u8,
    cores: u8,
    cores_enabled: u8,
    threads: u8,
    characteristics: U16,
    family_2: U16,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MemoryArray {
    location: u8,
    usage: u8,
    error_correction: u8,
    max_capacity: U32,
    error_handle: U16,
    devices: U16,
    extended_max_capacity: U64,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MemoryDevice {
    array_handle: U16,
    error_handle: U16,
    total_width: U16,
    data_width: U16,
    size: U16,
    form_factor: u8,
    device_set: u8,
    locator: u8,
    bank: u8,
    kind: u8,
    kind_detail: U16,
    speed: U16,
    manufacturer: u8,
    serial: u8,
    asset_tag: u8,
    part_number: u8,
    attributes: u8,
    extended_size: U32,
    configured_speed: U16,
    voltages: [U16; 3],
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MappedAddress {
    start: U32,
    end: U32,
    array_handle: U16,
    partition_width: u8,
    extended_start: U64,
    extended_end: U64,
}

const HEADER_LEN: usize = 4;
const _: () = assert!(HEADER_LEN + size_of::<Bios>() == 0x18);
const _: () = assert!(HEADER_LEN + size_of::<System>() == 0x1b);
const _: () = assert!(HEADER_LEN + size_of::<Chassis>() == 0x16);
const _: () = assert!(HEADER_LEN + size_of::<Processor>() == 0x2a);
const _: () = assert!(HEADER_LEN + size_of::<MemoryArray>() == 0x17);
const _: () = assert!(HEADER_LEN + size_of::<MemoryDevice>() == 0x28);
const _: () = assert!(HEADER_LEN + size_of::<MappedAddress>() == 0x1f);

/// The strings of one structure; a field holds the number of its string, from 1 on, or 0.
#[derive(Default)]
struct Strings(Vec<Vec<u8>>);

impl Strings {
    fn add(&mut self, text: &str) -> u8 {
        let bytes: Vec<u8> =
            text.bytes().filter(|byte| (b' '..=b'~').contains(byte)).take(MAX_STRING).collect();
        if bytes.is_empty() {
            return 0;
        }
        self.0.push(bytes);
        u8::try_from(self.0.len()).unwrap_or(0)
    }
}

/// The structures, one after the other.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    structures: u16,
    largest: u16,
}

impl Table {
    fn add(&mut self, kind: u8, handle: u16, body: &[u8], strings: Strings) {
        let start = self.bytes.len();
        let len = u8::try_from(HEADER_LEN + body.len()).unwrap_or(u8::MAX);
        self.bytes.extend_from_slice(&[kind, len]);
        self.bytes.extend_from_slice(&handle.to_le_bytes());
        self.bytes.extend_from_slice(body);
        if strings.0.is_empty() {
            self.bytes.push(0);
        }
        for string in strings.0 {
            self.bytes.extend_from_slice(&string);
            self.bytes.push(0);
        }
        self.bytes.push(0);
        self.structures = self.structures.saturating_add(1);
        self.largest = self.largest.max(u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX));
    }
}

fn byte(value: u16) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

impl Smbios {
    /// Entry point and structures of types 0, 1, 3, 4, 16, 17, 19, 32 and 127.
    pub fn tables(&self) -> SmbiosTables {
        let mut table = Table::default();
        self.names(&mut table);
        self.processors(&mut table);
        self.memory(&mut table);
        // No error on the way here.
        table.add(32, BOOT_HANDLE, &[0; 7], Strings::default());
        table.add(127, END_HANDLE, &[], Strings::default());
        SmbiosTables { anchor: entry_point(&table), tables: table.bytes }
    }

    fn names(&self, table: &mut Table) {
        let mut strings = Strings::default();
        let bios = Bios {
            vendor: strings.add(&self.manufacturer),
            version: strings.add(&self.version),
            start_segment: U16::new(0xe800),
            release_date: strings.add(&self.release_date),
            rom_size: 0,
            // "Characteristics are not told", and in the extension "this is a virtual machine".
            characteristics: U64::new(1 << 3),
            extension: [0, 1 << 4],
            releases: [0, 0, 0xff, 0xff],
        };
        table.add(0, BIOS_HANDLE, bios.as_bytes(), strings);

        let mut strings = Strings::default();
        let system = System {
            manufacturer: strings.add(&self.manufacturer),
            product: strings.add(&self.product),
            version: strings.add(&self.version),
            serial: strings.add(&self.serial),
            uuid: wire_uuid(self.uuid),
            // Power switch.
            wake_up: 6,
            sku: 0,
            family: 0,
        };
        table.add(1, SYSTEM_HANDLE, system.as_bytes(), strings);

        let mut strings = Strings::default();
        let chassis = Chassis {
            manufacturer: strings.add(&self.manufacturer),
            // Other.
            kind: 1,
            version: strings.add(&self.version),
            serial: strings.add(&self.serial),
            asset_tag: 0,
            // Safe, safe, safe; unknown.
            boot_up_state: 3,
            power_supply_state: 3,
            thermal_state: 3,
            security: 2,
            oem: U32::ZERO,
            height: 0,
            power_cords: 0,
            elements: 0,
            element_length: 0,
            sku: 0,
        };
        table.add(3, CHASSIS_HANDLE, chassis.as_bytes(), strings);
    }

    fn processors(&self, table: &mut Table) {
        for socket in 0..self.sockets.clamp(1, MAX_SOCKETS) {
            let mut strings = Strings::default();
            let processor = Processor {
                socket: strings.add(&format!("CPU {socket}")),
                // Central processor, of another family than those listed.
                kind: 3,
                family: 1,
                manufacturer: strings.add(&self.manufacturer),
                signature: U32::new(self.cpu.signature),
                features: U32::new(self.cpu.features),
                version: strings.add(&self.version),
                voltage: 0,
                external_clock: U16::ZERO,
                max_speed: U16::ZERO,
                current_speed: U16::ZERO,
                // In its socket, and enabled.
                status: 1 << 6 | 1,
                upgrade: 1,
                caches: [NO_HANDLE; 3],
                serial: 0,
                asset_tag: 0,
                part_number: 0,
                cores: byte(self.cores),
                cores_enabled: byte(self.cores),
                threads: byte(self.threads),
                // Unknown.
                characteristics: U16::new(1 << 1),
                family_2: U16::new(1),
            };
            table.add(4, PROCESSOR_HANDLE.saturating_add(socket), processor.as_bytes(), strings);
        }
    }

    fn memory(&self, table: &mut Table) {
        let len = |range: &Range<u64>| range.end.saturating_sub(range.start);
        let total = self.ram.iter().map(len).fold(0u64, u64::saturating_add);
        let device = DEVICE_BYTES.max(total.div_ceil(MAX_DEVICES));
        let devices = total.div_ceil(device);
        let kib = u32::try_from(total >> 10).ok().filter(|kib| *kib < EXTENDED_CAPACITY);
        let array = MemoryArray {
            // Other; system memory; no error correction.
            location: 1,
            usage: 3,
            error_correction: 3,
            max_capacity: U32::new(kib.unwrap_or(EXTENDED_CAPACITY)),
            error_handle: NO_ERROR_HANDLE,
            devices: U16::new(u16::try_from(devices).unwrap_or(u16::MAX)),
            extended_max_capacity: U64::new(if kib.is_some() { 0 } else { total }),
        };
        table.add(16, ARRAY_HANDLE, array.as_bytes(), Strings::default());

        let mut left = total;
        for (number, handle) in (0..devices).zip(MEMORY_HANDLE..) {
            let mib = left.min(device) / MIB;
            left = left.saturating_sub(device);
            let short = u16::try_from(mib).ok().filter(|mib| *mib < EXTENDED_SIZE);
            let extended = if short.is_some() { 0 } else { u32::try_from(mib).unwrap_or(u32::MAX >> 1) };
            let mut strings = Strings::default();
            let device = MemoryDevice {
                array_handle: U16::new(ARRAY_HANDLE),
                error_handle: NO_ERROR_HANDLE,
                total_width: U16::new(0xffff),
                data_width: U16::new(0xffff),
                size: U16::new(short.unwrap_or(EXTENDED_SIZE)),
                // DIMM of RAM, other type.
                form_factor: 9,
                device_set: 0,
                locator: strings.add(&format!("DIMM {number}")),
                bank: 0,
                kind: 7,
                kind_detail: U16::new(1 << 1),
                speed: U16::ZERO,
                manufacturer: strings.add(&self.manufacturer),
                serial: 0,
                asset_tag: 0,
                part_number: 0,
                attributes: 0,
                extended_size: U32::new(extended),
                configured_speed: U16::ZERO,
                voltages: [U16::ZERO; 3],
            };
            table.add(17, handle, device.as_bytes(), strings);
        }

        let ranges = self.ram.iter().filter(|range| !range.is_empty());
        for (range, handle) in ranges.take(MAX_RANGES).zip(MAPPED_HANDLE..) {
            let last = range.end - 1;
            let kib = |address: u64| u32::try_from(address >> 10).ok().filter(|kib| *kib < EXTENDED_ADDRESS);
            let (start, end, extended) = match (kib(range.start), kib(last)) {
                (Some(start), Some(end)) => (start, end, [0, 0]),
                _ => (EXTENDED_ADDRESS, EXTENDED_ADDRESS, [range.start, last]),
            };
            let [extended_start, extended_end] = extended.map(U64::new);
            let mapped = MappedAddress {
                start: U32::new(start),
                end: U32::new(end),
                array_handle: U16::new(ARRAY_HANDLE),
                partition_width: 1,
                extended_start,
                extended_end,
            };
            table.add(19, handle, mapped.as_bytes(), Strings::default());
        }
    }
}

/// Time-low, time-mid and time-high are little-endian (since 2.6, section 7.2.1).
fn wire_uuid(uuid: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = uuid;
    let [i, j, k, l, m, n, o, p] = rest;
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

/// With the address 0.
fn entry_point(table: &Table) -> Vec<u8> {
    let mut entry = EntryPoint {
        anchor: *b"_SM_",
        checksum: 0,
        length: 31,
        major: 2,
        minor: 8,
        max_structure_size: U16::new(table.largest),
        revision: 0,
        formatted: [0; 5],
        intermediate_anchor: *b"_DMI_",
        intermediate_checksum: 0,
        table_length: U16::new(u16::try_from(table.bytes.len()).unwrap_or(u16::MAX)),
        table_address: U32::ZERO,
        structures: U16::new(table.structures),
        bcd_revision: 0x28,
    };
    entry.intermediate_checksum = sdt::checksum(entry.as_bytes().get(INTERMEDIATE..).unwrap_or_default());
    entry.checksum = sdt::checksum(entry.as_bytes());
    entry.as_bytes().to_vec()
}
