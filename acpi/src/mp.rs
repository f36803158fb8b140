//! The tables of Intel's MultiProcessor Specification 1.4: what tells of APICs where ACPI does not (chapter 4).

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use crate::routing::{
    ACTIVE_HIGH_LEVEL, IO_APIC_ADDRESS, LOCAL_APIC_ADDRESS, PIRQ_IRQS, PciPin, io_apic_pin,
};
use crate::{CpuIdentity, Vcpu, sdt};

/// Specification 1.4.
const SPEC_REV: u8 = 4;

/// Bus ids, which must begin at 0 with PCI's bus 0.
const PCI_BUS: u8 = 0;
const ISA_BUS: u8 = 1;

/// Local APIC: integrated. I/O APIC: 82093AA.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const CPU_ENABLED: u8 = 1 << 0;
const CPU_BOOT: u8 = 1 << 1;
const IO_APIC_ENABLED: u8 = 1 << 0;

/// Interrupt types.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// Destination: all local APICs.
const ALL: u8 = 0xff;

/// MP Floating Pointer Structure.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct FloatingPointer {
    signature: [u8; 4],
    physical_address: U32,
    /// In units of 16 bytes.
    length: u8,
    spec_rev: u8,
    checksum: u8,
    /// Byte 1, 0: there is a configuration table. Byte 2, bit 7 clear: virtual wire mode, no IMCR.
    features: [u8; 5],
}
const _: () = assert!(size_of::<FloatingPointer>() == 16);

/// Offsets of the fields that have to be changed when the table moves.
pub(crate) const PHYSICAL_ADDRESS: usize = std::mem::offset_of!(FloatingPointer, physical_address);
pub(crate) const CHECKSUM: usize = std::mem::offset_of!(FloatingPointer, checksum);
/// Bytes of the floating pointer.
pub(crate) const POINTER_LEN: usize = size_of::<FloatingPointer>();

/// MP Configuration Table Header.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    signature: [u8; 4],
    length: U16,
    spec_rev: u8,
    checksum: u8,
    oem_id: [u8; 8],
    product_id: [u8; 12],
    oem_table: U32,
    oem_table_size: U16,
    entry_count: U16,
    local_apic: U32,
    extended_length: U16,
    extended_checksum: u8,
    reserved: u8,
}
const _: () = assert!(size_of::<Header>() == 44);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Processor {
    kind: u8,
    local_apic_id: u8,
    local_apic_version: u8,
    flags: u8,
    signature: U32,
    features: U32,
    reserved: [u8; 8],
}
const _: () = assert!(size_of::<Processor>() == 20);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct IoApic {
    kind: u8,
    id: u8,
    version: u8,
    flags: u8,
    address: U32,
}
const _: () = assert!(size_of::<IoApic>() == 8);

/// I/O interrupt (kind 3) and local interrupt (kind 4).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Interrupt {
    kind: u8,
    interrupt_type: u8,
    flags: U16,
    source_bus: u8,
    /// PCI: device << 2 | pin.
    source_irq: u8,
    apic_id: u8,
    input: u8,
}
const _: () = assert!(size_of::<Interrupt>() == 8);

/// The floating pointer, for a configuration table at `config`.
pub(crate) fn floating_pointer(config: u32) -> Vec<u8> {
    let mut pointer = FloatingPointer {
        signature: *b"_MP_",
        physical_address: U32::new(config),
        length: 1,
        spec_rev: SPEC_REV,
        checksum: 0,
        features: [0; 5],
    };
    pointer.checksum = sdt::checksum(pointer.as_bytes());
    pointer.as_bytes().to_vec()
}

/// The configuration table of the processors that are online. APIC ids must be below 255: the caller has checked.
/// PCI pins that share a line each have their entry; ISA has none for the lines that the PIRQs are routed to.
pub(crate) fn configuration(vcpus: &[Vcpu], cpu: &CpuIdentity, io_apic_id: u8, pins: &[PciPin]) -> Vec<u8> {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    let mut boot = CPU_BOOT;
    for vcpu in vcpus.iter().filter(|vcpu| vcpu.online) {
        let processor = Processor {
            kind: 0,
            local_apic_id: vcpu.apic_id.to_le_bytes()[0],
            local_apic_version: LOCAL_APIC_VERSION,
            flags: CPU_ENABLED | std::mem::take(&mut boot),
            signature: U32::new(cpu.signature),
            features: U32::new(cpu.features),
            reserved: [0; 8],
        };
        entries.push(processor.as_bytes().to_vec());
    }
    entries.push([&[1, PCI_BUS], &b"PCI   "[..]].concat());
    entries.push([&[1, ISA_BUS], &b"ISA   "[..]].concat());
    let io_apic = IoApic {
        kind: 2,
        id: io_apic_id,
        version: IO_APIC_VERSION,
        flags: IO_APIC_ENABLED,
        address: U32::new(IO_APIC_ADDRESS),
    };
    entries.push(io_apic.as_bytes().to_vec());
    entries.extend(io_interrupts(io_apic_id, pins).iter().map(|entry| entry.as_bytes().to_vec()));
    // The PIC through the boot processor's LINT0, and NMI through everyone's LINT1.
    let boot_apic_id = vcpus.first().map_or(0, |vcpu| vcpu.apic_id.to_le_bytes()[0]);
    for (interrupt_type, apic_id, input) in [(EXT_INT, boot_apic_id, 0), (NMI, ALL, 1)] {
        let entry = Interrupt {
            kind: 4,
            interrupt_type,
            flags: U16::ZERO,
            source_bus: ISA_BUS,
            source_irq: 0,
            apic_id,
            input,
        };
        entries.push(entry.as_bytes().to_vec());
    }
    let count = u16::try_from(entries.len()).unwrap_or(u16::MAX);
    let body = entries.concat();
    let header = Header {
        signature: *b"PCMP",
        length: U16::new(u16::try_from(size_of::<Header>() + body.len()).unwrap_or(u16::MAX)),
        spec_rev: SPEC_REV,
        checksum: 0,
        oem_id: *b"XVMM    ",
        product_id: *b"HVM         ",
        oem_table: U32::ZERO,
        oem_table_size: U16::ZERO,
        entry_count: U16::new(count),
        local_apic: U32::new(LOCAL_APIC_ADDRESS),
        extended_length: U16::ZERO,
        extended_checksum: 0,
        reserved: 0,
    };
    let mut table = [header.as_bytes(), &body].concat();
    let sum = sdt::checksum(&table);
    if let Some(byte) = table.get_mut(std::mem::offset_of!(Header, checksum)) {
        *byte = sum;
    }
    table
}

fn io_interrupts(apic_id: u8, pins: &[PciPin]) -> Vec<Interrupt> {
    let entry = |flags, source_bus, source_irq, input| Interrupt {
        kind: 3,
        interrupt_type: INT,
        flags: U16::new(flags),
        source_bus,
        source_irq,
        apic_id,
        input,
    };
    let mut sources: Vec<(u8, u8)> =
        pins.iter().map(|pin| (pin.device << 2 | pin.pin, pin.route().irq())).collect();
    sources.sort_unstable();
    sources.dedup();
    let pci = sources.iter().map(|(source, irq)| entry(ACTIVE_HIGH_LEVEL, PCI_BUS, *source, *irq));
    let taken = |irq: &u8| PIRQ_IRQS.contains(irq) || sources.iter().any(|(_, used)| used == irq);
    let isa =
        (0..16).filter(|irq| !taken(irq)).filter_map(|irq| Some(entry(0, ISA_BUS, irq, io_apic_pin(irq)?)));
    isa.chain(pci).collect()
}
