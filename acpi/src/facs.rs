//! FACS: what firmware and operating system share (ACPI 1.0b, 5.2.6; ACPI 6.4, 5.2.10).

/// Bytes of the FACS, and its alignment.
const LEN: usize = 64;
pub(crate) const ALIGN: u32 = 64;
const LEN_OFFSET: usize = 4;
const VERSION_OFFSET: usize = 32;

/// Nobody owns the global lock, and there is no waking vector. `version`: 0 for ACPI 1.0, 2 from 4.0 on. This
/// table has no checksum.
pub(crate) fn facs(version: u8) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    for (to, from) in bytes.iter_mut().zip(b"FACS") {
        *to = *from;
    }
    for (at, value) in [(LEN_OFFSET, 64), (VERSION_OFFSET, version)] {
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
    }
    bytes
}
