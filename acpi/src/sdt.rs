//! The header that all tables but the RSDP begin with (ACPI 6.4, 5.2.6).

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

/// OEMID of all tables.
pub(crate) const OEM_ID: [u8; 6] = *b"XVMM  ";

/// OEM table ids of a PVH and of an HVM guest's tables.
pub(crate) const PVH: [u8; 8] = *b"XVMMPVH ";
pub(crate) const HVM: [u8; 8] = *b"XVMMHVM ";

/// DESCRIPTION_HEADER.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    signature: [u8; 4],
    length: U32,
    revision: u8,
    checksum: u8,
    oem_id: [u8; 6],
    oem_table_id: [u8; 8],
    oem_revision: U32,
    creator_id: [u8; 4],
    creator_revision: U32,
}
const _: () = assert!(size_of::<Header>() == 36);

/// Where a table's checksum is, and where its body begins.
pub(crate) const CHECKSUM: usize = std::mem::offset_of!(Header, checksum);
pub(crate) const BODY: usize = size_of::<Header>();

/// A whole table: header and body. `oem_table_id` is [`PVH`] or [`HVM`].
pub(crate) fn table(signature: [u8; 4], revision: u8, oem_table_id: [u8; 8], body: &[u8]) -> Vec<u8> {
    let len = BODY + body.len();
    let header = Header {
        signature,
        // 4096 processors take less than 200 KiB.
        length: U32::new(u32::try_from(len).unwrap_or(u32::MAX)),
        revision,
        checksum: 0,
        oem_id: OEM_ID,
        oem_table_id,
        oem_revision: U32::new(1),
        creator_id: *b"XVMM",
        creator_revision: U32::new(1),
    };
    let mut table = [header.as_bytes(), body].concat();
    let sum = checksum(&table);
    if let Some(byte) = table.get_mut(CHECKSUM) {
        *byte = sum;
    }
    table
}

/// What makes the sum of `bytes` zero, when it takes the place of a zero.
pub(crate) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}
