//! What SMART tells of a disk that is well (ATA/ATAPI-6, 8.54; the attributes as in SFF-8035i 2.0).

/// Attribute numbers, flags, thresholds: raw read errors, starts, reallocated sectors, power-on hours, power cycles,
/// temperature, pending sectors.
const ATTRIBUTES: [(u8, u16, u8); 6] =
    [(1, 0x000b, 16), (3, 0x0007, 24), (4, 0x0012, 0), (5, 0x0033, 5), (12, 0x0032, 0), (197, 0x0022, 0)];
/// Bytes of an entry of either table.
const ENTRY: usize = 12;
/// Revision of both structures.
const REVISION: u16 = 0x0010;
/// Value of an attribute that has never been worse.
const GOOD: u8 = 100;

fn structure(entries: impl Iterator<Item = [u8; ENTRY]>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    bytes.extend(REVISION.to_le_bytes());
    bytes.extend(entries.flatten());
    bytes.resize(511, 0);
    bytes
}

/// The last byte makes the sum of all 0.
pub(super) fn checksum(bytes: &mut Vec<u8>) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes.push(sum.wrapping_neg());
}

/// READ DATA.
pub(super) fn data() -> Vec<u8> {
    let mut bytes = structure(ATTRIBUTES.iter().map(|(id, flags, _)| {
        let [low, high] = flags.to_le_bytes();
        [*id, low, high, GOOD, GOOD, 0, 0, 0, 0, 0, 0, 0]
    }));
    // SMART capability: attributes are saved before power goes, and by themselves.
    if let Some(byte) = bytes.get_mut(368) {
        *byte = 3;
    }
    checksum(&mut bytes);
    bytes
}

/// READ ATTRIBUTE THRESHOLDS.
pub(super) fn thresholds() -> Vec<u8> {
    let entry = |(id, _, threshold): &(u8, u16, u8)| [*id, *threshold, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut bytes = structure(ATTRIBUTES.iter().map(entry));
    checksum(&mut bytes);
    bytes
}
