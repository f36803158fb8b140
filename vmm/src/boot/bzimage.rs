//! The setup header of a bzImage: where the compressed kernel is.
//!
//! Source: Documentation/arch/x86/boot.rst. The file is a boot sector, `setup_sects` sectors of real-mode code,
//! and `syssize * 16` bytes of protected-mode code that hold the payload. A signature of the distribution may
//! follow, so the file may be longer than that, never shorter.

use super::{ImageError, le_u16, le_u32};

const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const INITRD_ADDR_MAX: usize = 0x22c;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const HEADER_END: usize = 0x250;

/// The first protocol with payload_offset and payload_length.
const VERSION_WITH_PAYLOAD: u16 = 0x0208;

/// What the loader wants of a bzImage.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BzImage<'a> {
    /// The compressed kernel and the four bytes of its size.
    pub(super) payload: &'a [u8],
    /// The last address that the initrd may occupy.
    pub(super) initrd_addr_max: u32,
}

/// `None` if the file is no bzImage at all; an error if it is one that is cut off, damaged or too old.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<BzImage<'_>>, ImageError> {
    if le_u16(bytes, BOOT_FLAG) != Some(0xaa55) {
        return Ok(None);
    }
    let actual = bytes.len() as u64;
    let truncated = |expected: u64| ImageError::Truncated { what: "bzImage", expected, actual };
    match bytes.get(HEADER_MAGIC..VERSION) {
        Some(b"HdrS") => {}
        // Any boot sector has the flag: a disk image is no kernel.
        Some(_) => return Ok(None),
        // Only the flag and at most a part of the header: nothing else is as short as that.
        None => return Err(truncated(HEADER_END as u64)),
    }
    let version = le_u16(bytes, VERSION).ok_or(truncated(HEADER_END as u64))?;
    if version < VERSION_WITH_PAYLOAD {
        return Err(ImageError::TooOld(version));
    }
    let field = |offset| le_u32(bytes, offset).ok_or(truncated(HEADER_END as u64));
    let (offset, length) = (field(PAYLOAD_OFFSET)?, field(PAYLOAD_LENGTH)?);
    let (syssize, initrd_addr_max) = (field(SYSSIZE)?, field(INITRD_ADDR_MAX)?);
    // 0 means 4, from the days of the boot floppy.
    let setup_sects = match bytes.get(SETUP_SECTS) {
        None | Some(0) => 4,
        Some(n) => u64::from(*n),
    };

    let protected_mode = (setup_sects + 1) * 512;
    let protected_size = u64::from(syssize) * 16;
    // At most 2^17 + 2^36: no overflow here or below.
    if actual < protected_mode + protected_size {
        return Err(truncated(protected_mode + protected_size));
    }
    let (start, end) = (u64::from(offset), u64::from(offset) + u64::from(length));
    if end > protected_size {
        return Err(ImageError::DamagedHeader("the payload is outside of the kernel"));
    }
    let range = usize::try_from(protected_mode + start)
        .ok()
        .zip(usize::try_from(protected_mode + end).ok())
        .and_then(|(start, end)| bytes.get(start..end));
    match range {
        Some(payload) if !payload.is_empty() => Ok(Some(BzImage { payload, initrd_addr_max })),
        _ => Err(ImageError::DamagedHeader("there is no payload")),
    }
}
