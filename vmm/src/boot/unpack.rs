//! The payload of a bzImage: one of the seven compressions that Linux's Kconfig offers.
//!
//! Source: Linux's scripts/Makefile.lib and arch/x86/boot/compressed/Makefile. The build appends the unpacked
//! size, four bytes little-endian, to every stream but gzip's, whose own trailer ends with just that. The size
//! bounds the output, so that no stream, whatever its own headers say, makes more than that.

use std::alloc::{Layout, alloc_zeroed};
use std::io::{self, Read};

use super::{ImageError, MAX_UNPACKED, le_u32, lzo};

/// The most a decoder may allocate for its dictionary, in KiB: xz -9 and lzma -9 take 64 MiB, Linux's own xz call
/// 32 MiB. A hostile header could ask for 4 GiB.
const DICTIONARY_LIMIT_KIB: u32 = 160 << 10;

/// Magic number of an LZ4 legacy frame.
const LZ4_LEGACY: u32 = 0x184c_2102;

/// What every block of an LZ4 legacy frame but the last unpacks to.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

/// How a payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Gzip,
    Bzip2,
    Lzma,
    Xz,
    Lzo,
    Lz4,
    Zstd,
    /// Not compressed.
    Elf,
}

impl Format {
    /// By the magic number.
    pub(super) fn of(payload: &[u8]) -> Option<Self> {
        const MAGIC: [(&[u8], Format); 8] = [
            (b"\x1f\x8b", Format::Gzip),
            (b"BZh", Format::Bzip2),
            // Properties lc=3 lp=0 pb=2, and the low bytes of a dictionary size of 64 KiB or more.
            (b"\x5d\x00\x00", Format::Lzma),
            (b"\xfd7zXZ\0", Format::Xz),
            (lzo::MAGIC, Format::Lzo),
            (b"\x02\x21\x4c\x18", Format::Lz4),
            (b"\x28\xb5\x2f\xfd", Format::Zstd),
            (b"\x7fELF", Format::Elf),
        ];
        MAGIC.iter().find(|(magic, _)| payload.starts_with(magic)).map(|(_, format)| *format)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Elf => "uncompressed",
        }
    }

    /// The error for a payload of this format that does not unpack.
    pub(super) fn corrupt(self, reason: impl ToString) -> ImageError {
        ImageError::CorruptPayload { format: self.name(), reason: reason.to_string() }
    }
}

/// Unpacks a payload that ends with its unpacked size.
pub(super) fn unpack(payload: &[u8]) -> Result<(Format, Vec<u8>), ImageError> {
    let Some(format) = Format::of(payload) else {
        let mut start = [0; 6];
        start.iter_mut().zip(payload).for_each(|(to, from)| *to = *from);
        return Err(ImageError::UnknownCompression(start));
    };
    if format == Format::Elf {
        return Ok((format, payload.to_vec()));
    }
    let Some((stream, size)) = payload.split_last_chunk::<4>() else {
        return Err(format.corrupt("it is too short"));
    };
    let size = u32::from_le_bytes(*size) as usize;
    if size > MAX_UNPACKED {
        return Err(ImageError::TooLarge { size: size as u64, limit: MAX_UNPACKED as u64 });
    }
    let mut out = zeroed(size).ok_or(ImageError::HostMemory(size))?;
    let unpacked = match format {
        Format::Gzip => read_whole(flate2::bufread::GzDecoder::new(payload), &mut out),
        Format::Bzip2 => read_whole(bzip2::bufread::BzDecoder::new(stream), &mut out),
        Format::Lzma => lzma_rust2::LzmaReader::new_mem_limit(stream, DICTIONARY_LIMIT_KIB, None)
            .and_then(|reader| read_whole(reader, &mut out)),
        Format::Xz => {
            let reader = lzma_rust2::XzReader::new_mem_limit(stream, false, DICTIONARY_LIMIT_KIB);
            read_whole(reader, &mut out)
        }
        Format::Lzo => lzo::unpack(stream, &mut out).map_err(io::Error::other),
        Format::Lz4 => unlz4_legacy(stream, &mut out),
        Format::Zstd => unzstd(stream, &mut out),
        Format::Elf => Ok(()),
    };
    unpacked.map_err(|error| format.corrupt(error))?;
    Ok((format, out))
}

/// Zeroed memory, or `None` if the host has none. Pages that stay untouched cost nothing.
fn zeroed(len: usize) -> Option<Vec<u8>> {
    if len == 0 {
        return Some(Vec::new());
    }
    let layout = Layout::array::<u8>(len).ok()?;
    // SAFETY: the layout is not empty.
    let data = unsafe { alloc_zeroed(layout) };
    if data.is_null() {
        return None;
    }
    // Fewer page faults: tens of MiB are written once, from start to end. The advice may be refused.
    let (start, end) = (data.addr().next_multiple_of(HUGE_PAGE), (data.addr() + len) & !(HUGE_PAGE - 1));
    if let Some(inside) = end.checked_sub(start).filter(|n| *n > 0) {
        // SAFETY: the range is inside the allocation, and the advice changes no contents.
        unsafe { libc::madvise(data.with_addr(start).cast(), inside, libc::MADV_HUGEPAGE) };
    }
    // SAFETY: `len` zeroed bytes of this layout from the global allocator, owned by nobody else.
    Some(unsafe { Vec::from_raw_parts(data, len, len) })
}

const HUGE_PAGE: usize = 2 << 20;

/// Fills `out` exactly. The read past the end makes the decoder check its trailer.
fn read_whole(mut reader: impl Read, out: &mut [u8]) -> io::Result<()> {
    reader.read_exact(out).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("it ends too early"),
        _ => error,
    })?;
    match reader.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("it unpacks to more than its size field says")),
    }
}

fn unzstd(stream: &[u8], out: &mut [u8]) -> io::Result<()> {
    match zstd::bulk::decompress_to_buffer(stream, out)? {
        n if n == out.len() => Ok(()),
        n => Err(io::Error::other(format!("it unpacks to {n} bytes instead of {}", out.len()))),
    }
}

/// The frame that `lz4 -l` writes: the magic number, then blocks of {u32 size, data}, each of 8 MiB unpacked.
fn unlz4_legacy(stream: &[u8], out: &mut [u8]) -> io::Result<()> {
    let (mut stream, mut out) = (stream, out);
    while let Some(word) = le_u32(stream, 0) {
        stream = stream.get(4..).unwrap_or_default();
        // Frames may follow each other without a mark of their end.
        if word == LZ4_LEGACY {
            continue;
        }
        let block = stream.split_at_checked(word as usize);
        let (block, rest) = block.ok_or_else(|| io::Error::other("a block is cut off"))?;
        stream = rest;
        let room = out.len().min(LZ4_LEGACY_BLOCK);
        let (now, _) = out.split_at_mut(room);
        let len = lz4_flex::block::decompress_into(block, now).map_err(io::Error::other)?;
        out = out.get_mut(len..).unwrap_or_default();
    }
    match (stream, out) {
        ([], []) => Ok(()),
        ([], _) => Err(io::Error::other("it ends too early")),
        _ => Err(io::Error::other("there are bytes behind its last block")),
    }
}
