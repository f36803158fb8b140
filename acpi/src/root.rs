//! RSDP, RSDT and XSDT: where the tables are (ACPI 6.4, 5.2.5, 5.2.7 and 5.2.8; ACPI 1.0b, 5.2.3 and 5.2.4).

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
/// Bytes of ACPI 1.0's RSDP, which is the beginning of the later one.
pub(crate) const RSDP_V1_LEN: usize = 20;
const RSDP_LEN_FIELD: U32 = U32::new(36);

/// Offsets of the fields that have to be changed when the tables move.
pub(crate) const RSDP_CHECKSUM: usize = std::mem::offset_of!(Rsdp, checksum);
pub(crate) const RSDP_RSDT: usize = std::mem::offset_of!(Rsdp, rsdt_address);
pub(crate) const RSDP_XSDT: usize = std::mem::offset_of!(Rsdp, xsdt_address);
pub(crate) const RSDP_EXTENDED_CHECKSUM: usize = std::mem::offset_of!(Rsdp, extended_checksum);
const _: () = assert!(RSDP_CHECKSUM == 8 && RSDP_RSDT == 16 && RSDP_XSDT == 24);

/// ACPI 1.0's RSDP: revision 0, an RSDT and nothing else.
pub(crate) fn rsdp_v1(rsdt: u32) -> Vec<u8> {
    let mut bytes = rsdp_with(rsdt, 0, 0).as_bytes().to_vec();
    bytes.truncate(RSDP_V1_LEN);
    bytes
}

/// An RSDP with both: SeaBIOS and programs of its time read the RSDT only.
pub(crate) fn rsdp_v2(rsdt: u32, xsdt: u64) -> Vec<u8> {
    rsdp_with(rsdt, xsdt, 2).as_bytes().to_vec()
}

/// An RSDP without an RSDT: whoever reads revision 2 takes the XSDT.
pub(crate) fn rsdp(xsdt: u64) -> [u8; RSDP_LEN] {
    let rsdp = rsdp_with(0, xsdt, 2);
    zerocopy::transmute!(rsdp)
}

fn rsdp_with(rsdt: u32, xsdt: u64, revision: u8) -> Rsdp {
    let mut rsdp = Rsdp {
        signature: *b"RSD PTR ",
        checksum: 0,
        oem_id: sdt::OEM_ID,
        revision,
        rsdt_address: U32::new(rsdt),
        length: RSDP_LEN_FIELD,
        xsdt_address: U64::new(xsdt),
        extended_checksum: 0,
        reserved: [0; 3],
    };
    rsdp.checksum = sdt::checksum(rsdp.as_bytes().get(..RSDP_V1_LEN).unwrap_or_default());
    rsdp.extended_checksum = sdt::checksum(rsdp.as_bytes());
    rsdp
}

/// The list of all tables but the DSDT, which the FADT points at.
pub(crate) fn xsdt(oem_table_id: [u8; 8], tables: &[u64]) -> Vec<u8> {
    let entries: Vec<u8> = tables.iter().flat_map(|gpa| gpa.to_le_bytes()).collect();
    sdt::table(*b"XSDT", 1, oem_table_id, &entries)
}

/// The same with addresses of 32 bits.
pub(crate) fn rsdt(tables: &[u32]) -> Vec<u8> {
    let entries: Vec<u8> = tables.iter().flat_map(|gpa| gpa.to_le_bytes()).collect();
    sdt::table(*b"RSDT", 1, sdt::HVM, &entries)
}
