//! The structures of a VHD (Microsoft, Virtual Hard Disk Image Format Specification 1.0): numbers are big-endian.

use std::io;

use crate::image::file::ImageFile;
use crate::protocol::SECTOR_SIZE;

/// Bytes of a footer and of its copy at the start of the file.
pub(super) const FOOTER: u64 = FOOTER_BYTES as u64;
/// The same, as the length of an array.
pub(super) const FOOTER_BYTES: usize = 512;
/// Bytes of the header of a dynamic or differencing disk.
pub(super) const HEADER: u64 = HEADER_BYTES as u64;
/// The same, as the length of an array.
pub(super) const HEADER_BYTES: usize = 1024;
/// An entry of the block allocation table that says: not allocated.
pub(super) const UNUSED: u32 = u32::MAX;
/// Entries of the table: a disk of 2 TiB, the largest there is, in blocks of 512 KiB (2 MiB is usual).
const MAX_ENTRIES: u32 = 1 << 22;
/// Bytes of the largest block.
const MAX_BLOCK: u32 = 256 << 20;
/// Sectors of the largest geometry: disks that have it may be larger.
const MAX_GEOMETRY: u64 = 65535 * 16 * 255;
/// Programs whose disks have the size that the footer says. Those of all others have that of the geometry, as in
/// QEMU: "vpc " is Virtual PC, and "qemu" makes both the same.
const CREATORS_WITH_SIZE: [&[u8; 4]; 5] = [b"win ", b"qem2", b"d2v ", b"tap\0", b"wa\0\0"];

/// The kinds of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

/// A checked footer.
#[derive(Clone, Debug)]
pub(super) struct Footer {
    /// As it is in the file.
    pub(super) bytes: [u8; FOOTER_BYTES],
    pub(super) kind: Kind,
    /// Where the header is.
    pub(super) header_offset: u64,
    /// Bytes of the disk.
    pub(super) size: u64,
    /// The disk's identity.
    pub(super) id: [u8; 16],
}

pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|field| field.try_into().ok()).unwrap_or([0; N])
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(field(bytes, at))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(field(bytes, at))
}

/// The complement of the sum of all bytes but the checksum's own four at `at`.
pub(super) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = bytes.iter().enumerate().filter(|(i, _)| !(at..at + 4).contains(i));
    !sum.fold(0u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

impl Footer {
    /// `None`: these bytes are not a footer. `Err`: they are one that cannot be right, a sentence.
    pub(super) fn parse(bytes: &[u8; FOOTER_BYTES]) -> Option<Result<Self, String>> {
        if bytes.get(..8)? != b"conectix" {
            return None;
        }
        if be32(bytes, 64) != checksum(bytes, 64) {
            return Some(Err("the checksum of its footer is wrong".into()));
        }
        let version = be32(bytes, 12);
        if version >> 16 != 1 {
            return Some(Err(format!("its footer has version {version:#x}")));
        }
        let kind = match be32(bytes, 60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => return Some(Err(format!("disk type {other} (2 to 4 are known)"))),
        };
        let [high, low, heads, sectors] = field::<4>(bytes, 56);
        let geometry = u64::from(u16::from_be_bytes([high, low])) * u64::from(heads) * u64::from(sectors);
        let stated = CREATORS_WITH_SIZE.contains(&&field::<4>(bytes, 28));
        let size = if stated || geometry == MAX_GEOMETRY || geometry == 0 {
            be64(bytes, 48)
        } else {
            geometry * SECTOR_SIZE
        };
        let header_offset = be64(bytes, 16);
        Some(Ok(Self { bytes: *bytes, kind, header_offset, size, id: field(bytes, 68) }))
    }

    /// The footer at `offset`, if there is one.
    pub(super) fn read(file: &ImageFile, offset: u64) -> io::Result<Option<Result<Self, String>>> {
        let mut bytes = [0; FOOTER_BYTES];
        file.read(&mut bytes, offset)?;
        Ok(Self::parse(&bytes))
    }
}

/// A place where a parent may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Locator {
    /// "W2ru" and others.
    pub(super) code: [u8; 4],
    pub(super) offset: u64,
    pub(super) len: u32,
    /// Bytes that are kept for it.
    pub(super) space: u64,
}

/// A checked header of a dynamic or differencing disk.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) table_offset: u64,
    pub(super) entries: u32,
    /// Bytes of a block: a power of two.
    pub(super) block: u32,
    pub(super) parent_id: [u8; 16],
    /// The parent's name.
    pub(super) parent_name: String,
    pub(super) locators: Vec<Locator>,
}

impl Header {
    /// Reads and checks it; an inner error is a sentence.
    pub(super) fn read(file: &ImageFile, footer: &Footer, len: u64) -> io::Result<Result<Self, String>> {
        let offset = footer.header_offset;
        if !offset.is_multiple_of(SECTOR_SIZE) || offset < FOOTER || beyond(offset, HEADER, len) {
            return Ok(Err(format!("its header is at byte {offset:#x}, outside of the file")));
        }
        let mut bytes = [0; HEADER_BYTES];
        file.read(&mut bytes, offset)?;
        Ok(Self::parse(&bytes, footer.size, len))
    }

    fn parse(bytes: &[u8; HEADER_BYTES], size: u64, len: u64) -> Result<Self, String> {
        if bytes.get(..8) != Some(b"cxsparse") {
            return Err("it has no header where its footer says".into());
        }
        if be32(bytes, 36) != checksum(bytes, 36) {
            return Err("the checksum of its header is wrong".into());
        }
        let (table_offset, entries, block) = (be64(bytes, 16), be32(bytes, 28), be32(bytes, 32));
        if !block.is_power_of_two() || u64::from(block) < SECTOR_SIZE || block > MAX_BLOCK {
            return Err(format!("blocks of {block} bytes (a power of two up to 256 MiB is possible)"));
        }
        if entries > MAX_ENTRIES {
            return Err(format!("a table of {entries} blocks ({MAX_ENTRIES} are the most)"));
        }
        if u64::from(entries) * u64::from(block) < size {
            return Err(format!("a table of {entries} blocks, too few for {size} bytes"));
        }
        if !table_offset.is_multiple_of(SECTOR_SIZE) || beyond(table_offset, u64::from(entries) * 4, len) {
            return Err(format!("its table is at byte {table_offset:#x}, outside of the file"));
        }
        let name: Vec<u16> = (0..256)
            .map(|i| u16::from_be_bytes(field(bytes, 64 + 2 * i)))
            .take_while(|unit| *unit != 0)
            .collect();
        let locators = (0..8).map(|i| 576 + 24 * i).map(|at| Locator {
            code: field(bytes, at),
            len: be32(bytes, at + 8),
            offset: be64(bytes, at + 16),
            // In sectors; some programs write bytes.
            space: u64::from(be32(bytes, at + 4)) * if be32(bytes, at + 4) < 512 { SECTOR_SIZE } else { 1 },
        });
        Ok(Self {
            table_offset,
            entries,
            block,
            parent_id: field(bytes, 40),
            parent_name: String::from_utf16_lossy(&name),
            locators: locators.filter(|locator| locator.code != [0; 4]).collect(),
        })
    }

    /// Bytes of the bitmap in front of each block: a bit for each sector, in whole sectors.
    pub(super) fn bitmap(&self) -> u64 {
        (u64::from(self.block) / SECTOR_SIZE).div_ceil(8).next_multiple_of(SECTOR_SIZE)
    }

    /// Bytes of a block with its bitmap.
    pub(super) fn whole(&self) -> u64 {
        self.bitmap() + u64::from(self.block)
    }
}

fn beyond(offset: u64, bytes: u64, len: u64) -> bool {
    offset.checked_add(bytes).is_none_or(|end| end > len)
}
