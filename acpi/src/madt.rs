//! MADT: the processors and their local APICs (ACPI 6.4, 5.2.12).

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use crate::{Vcpu, sdt};

/// Where every local APIC is mapped after reset.
const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;

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

/// A PVH guest's: no PIC (PCAT_COMPAT clear) and no I/O APIC.
pub(crate) fn pvh(vcpus: &[Vcpu]) -> Vec<u8> {
    let mut body = LOCAL_APIC_ADDRESS.to_le_bytes().to_vec();
    body.extend_from_slice(&0u32.to_le_bytes());
    for (uid, vcpu) in (0u32..).zip(vcpus) {
        let flags = U32::new(if vcpu.online { ENABLED } else { ONLINE_CAPABLE });
        let bytes = |value: u32| u8::try_from(value).ok().filter(|byte| u32::from(*byte) < BROADCAST);
        match (bytes(uid), bytes(vcpu.apic_id)) {
            (Some(processor_uid), Some(apic_id)) => {
                let entry = LocalApic { kind: 0, length: 8, processor_uid, apic_id, flags };
                body.extend_from_slice(entry.as_bytes());
            }
            _ => {
                let entry = LocalX2Apic {
                    kind: 9,
                    length: 16,
                    reserved: U16::ZERO,
                    x2apic_id: U32::new(vcpu.apic_id),
                    flags,
                    processor_uid: U32::new(uid),
                };
                body.extend_from_slice(entry.as_bytes());
            }
        }
    }
    // Revision 5 is the first with "online capable".
    sdt::table(*b"APIC", 5, &body)
}
