//! RSDP and XSDT: where the tables are (ACPI 6.4, 5.2.5 and 5.2.8).

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use crate::sdt;

/// Root System Description Pointer, revision 2.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Rsdp {
    signature: [u8; 8],
    /// Of the first 20 bytes, which is all of the ACPI 1.0 structure.
    checksum: u8,
    oem_id: [u8; 6],
    revision: u8,
    rsdt_address: U32,
    length: U32,
    xsdt_address: U64,
    extended_checksum: u8,
    reserved: [u8; 3],
}
const _: () = assert!(size_of::<Rsdp>() == RSDP_LEN);

/// Bytes of the RSDP.
pub(crate) const RSDP_LEN: usize = 36;
const RSDP_V1_LEN: usize = 20;
const RSDP_LEN_FIELD: U32 = U32::new(36);

/// An RSDP without an RSDT: whoever reads revision 2 takes the XSDT.
pub(crate) fn rsdp(xsdt: u64) -> [u8; RSDP_LEN] {
    let mut rsdp = Rsdp {
        signature: *b"RSD PTR ",
        checksum: 0,
        oem_id: sdt::OEM_ID,
        revision: 2,
        rsdt_address: U32::ZERO,
        length: RSDP_LEN_FIELD,
        xsdt_address: U64::new(xsdt),
        extended_checksum: 0,
        reserved: [0; 3],
    };
    rsdp.checksum = sdt::checksum(rsdp.as_bytes().get(..RSDP_V1_LEN).unwrap_or_default());
    rsdp.extended_checksum = sdt::checksum(rsdp.as_bytes());
    zerocopy::transmute!(rsdp)
}

/// The list of all tables but the DSDT, which the FADT points at.
pub(crate) fn xsdt(tables: &[u64]) -> Vec<u8> {
    let entries: Vec<u8> = tables.iter().flat_map(|gpa| gpa.to_le_bytes()).collect();
    sdt::table(*b"XSDT", 1, &entries)
}
