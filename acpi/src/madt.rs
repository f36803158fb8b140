//! MADT: the processors, their local APICs and the I/O APIC (ACPI 6.4, 5.2.12; ACPI 1.0b, 5.2.8).

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use crate::routing::{ACTIVE_HIGH_LEVEL, IO_APIC_ADDRESS, LEVEL_IRQS, LOCAL_APIC_ADDRESS, io_apic_pin};
use crate::{Profile, Vcpu, sdt};

/// There is a PIC too, which has to be masked.
const PCAT_COMPAT: u32 = 1 << 0;

/// Local APIC flags.
const ENABLED: u32 = 1 << 0;
const ONLINE_CAPABLE: u32 = 1 << 1;

/// Processor UID and APIC id of the short entry are bytes, and 255 means all processors.
const BROADCAST: u32 = 255;

/// Processor Local APIC.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct LocalApic {
    kind: u8,
    length: u8,
    processor_uid: u8,
    apic_id: u8,
    flags: U32,
}
const _: () = assert!(size_of::<LocalApic>() == 8);

/// Processor Local x2APIC.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct LocalX2Apic {
    kind: u8,
    length: u8,
    reserved: U16,
    x2apic_id: U32,
    flags: U32,
    processor_uid: U32,
}
const _: () = assert!(size_of::<LocalX2Apic>() == 16);

/// I/O APIC.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct IoApic {
    kind: u8,
    length: u8,
    id: u8,
    reserved: u8,
    address: U32,
    gsi_base: U32,
}
const _: () = assert!(size_of::<IoApic>() == 12);

/// Interrupt Source Override.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct SourceOverride {
    kind: u8,
    length: u8,
    /// ISA.
    bus: u8,
    irq: u8,
    gsi: U32,
    flags: U16,
}
const _: () = assert!(size_of::<SourceOverride>() == 10);

/// Of all processors' local APICs, input LINT1 is the NMI; polarity and trigger mode as the bus has them.
const LOCAL_APIC_NMI: [u8; 6] = [4, 6, 0xff, 0, 0, 1];
const LOCAL_X2APIC_NMI: [u8; 12] = [10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0];

/// The entry of processor `uid`. `offline` are the flags of one that is not there yet.
fn processor(uid: u32, vcpu: &Vcpu, offline: u32) -> Vec<u8> {
    let flags = U32::new(if vcpu.online { ENABLED } else { offline });
    let byte = |value: u32| u8::try_from(value).ok().filter(|byte| u32::from(*byte) < BROADCAST);
    match (byte(uid), byte(vcpu.apic_id)) {
        (Some(processor_uid), Some(apic_id)) => {
            LocalApic { kind: 0, length: 8, processor_uid, apic_id, flags }.as_bytes().to_vec()
        }
        _ => LocalX2Apic {
            kind: 9,
            length: 16,
            reserved: U16::ZERO,
            x2apic_id: U32::new(vcpu.apic_id),
            flags,
            processor_uid: U32::new(uid),
        }
        .as_bytes()
        .to_vec(),
    }
}

/// A PVH guest's: no PIC (PCAT_COMPAT clear) and no I/O APIC.
pub(crate) fn pvh(vcpus: &[Vcpu]) -> Vec<u8> {
    let mut body = [LOCAL_APIC_ADDRESS.to_le_bytes(), [0; 4]].concat();
    body.extend((0u32..).zip(vcpus).flat_map(|(uid, vcpu)| processor(uid, vcpu, ONLINE_CAPABLE)));
    // Revision 5 is the first with "online capable".
    sdt::table(*b"APIC", 5, sdt::PVH, &body)
}

/// An HVM guest's: PIC, I/O APIC, and how ISA interrupts reach it.
pub(crate) fn hvm(profile: Profile, vcpus: &[Vcpu], io_apic_id: u8) -> Vec<u8> {
    let (revision, offline) = match profile {
        Profile::Xp => (1, 0),
        Profile::Modern => (5, ONLINE_CAPABLE),
    };
    let mut body = [LOCAL_APIC_ADDRESS.to_le_bytes(), PCAT_COMPAT.to_le_bytes()].concat();
    let mut x2apic = false;
    for (uid, vcpu) in (0u32..).zip(vcpus) {
        let entry = processor(uid, vcpu, offline);
        x2apic |= entry.len() == size_of::<LocalX2Apic>();
        body.extend(entry);
    }
    let io_apic = IoApic {
        kind: 1,
        length: 12,
        id: io_apic_id,
        reserved: 0,
        address: U32::new(IO_APIC_ADDRESS),
        gsi_base: U32::ZERO,
    };
    body.extend_from_slice(io_apic.as_bytes());
    for irq in 0..16 {
        let level = LEVEL_IRQS.contains(&irq);
        let Some(pin) = io_apic_pin(irq).filter(|pin| *pin != irq || level) else { continue };
        let entry = SourceOverride {
            kind: 2,
            length: 10,
            bus: 0,
            irq,
            gsi: U32::new(pin.into()),
            flags: U16::new(if level { ACTIVE_HIGH_LEVEL } else { 0 }),
        };
        body.extend_from_slice(entry.as_bytes());
    }
    body.extend_from_slice(&LOCAL_APIC_NMI);
    if x2apic {
        body.extend_from_slice(&LOCAL_X2APIC_NMI);
    }
    sdt::table(*b"APIC", revision, sdt::HVM, &body)
}
