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
    advise_huge_pages(data, len);
    // SAFETY: `len` zeroed bytes of this layout from the global allocator, owned by nobody else.
    Some(unsafe { Vec::from_raw_parts(data, len, len) })
}

/// Asks for huge pages: tens of MiB that are written once, from start to end, take fewer page faults then. The
/// advice may be refused.
pub(super) fn advise_huge_pages(data: *mut u8, len: usize) {
    const HUGE_PAGE: usize = 2 << 20;
    let (start, end) = (data.addr().next_multiple_of(HUGE_PAGE), (data.addr() + len) & !(HUGE_PAGE - 1));
    if let Some(inside) = end.checked_sub(start).filter(|n| *n > 0) {
        // SAFETY: whole huge pages inside the caller's memory; the advice changes no contents.
        unsafe { libc::madvise(data.with_addr(start).cast(), inside, libc::MADV_HUGEPAGE) };
    }
}

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

    use super::super::testing::{Image, sized};
    use super::*;

    /// Made by the programs that Linux's build calls, see fixtures/make.sh.
    const FIXTURES: [(&str, &[u8]); 7] = [
        ("gzip", include_bytes!("fixtures/vmlinux.gz")),
        ("bzip2", include_bytes!("fixtures/vmlinux.bz2")),
        ("lzma", include_bytes!("fixtures/vmlinux.lzma")),
        ("xz", include_bytes!("fixtures/vmlinux.xz")),
        ("lzo", include_bytes!("fixtures/vmlinux.lzo")),
        ("lz4", include_bytes!("fixtures/vmlinux.lz4")),
        ("zstd", include_bytes!("fixtures/vmlinux.zst")),
    ];

    fn is_corrupt(payload: &[u8]) -> bool {
        matches!(unpack(payload), Err(ImageError::CorruptPayload { .. }))
    }

    #[test]
    fn all_formats_of_linux_unpack() {
        let expected = Image::fixture().bytes();
        for (name, payload) in FIXTURES {
            let (format, image) = unpack(payload).unwrap();
            assert_eq!(format.name(), name);
            assert!(image == expected, "{name}");
        }
    }

    #[test]
    fn a_payload_cut_off_anywhere_is_corrupt() {
        for (name, payload) in FIXTURES {
            let (stream, size) = payload.split_last_chunk::<4>().unwrap();
            for len in (9..stream.len()).step_by(3).chain([stream.len() - 1]) {
                let cut = [&stream[..len], &size[..]].concat();
                assert!(is_corrupt(&cut), "{name} cut to {len} bytes");
            }
        }
    }

    #[test]
    fn a_payload_longer_or_shorter_than_its_size_field_is_corrupt() {
        let len = Image::fixture().bytes().len() as u32;
        for (name, payload) in FIXTURES {
            for wrong in [len - 1, len + 1, 0, 1, len * 2] {
                let mut payload = payload.to_vec();
                let end = payload.len() - 4;
                payload[end..].copy_from_slice(&wrong.to_le_bytes());
                assert!(is_corrupt(&payload), "{name} of {wrong} bytes");
            }
        }
    }

    #[test]
    fn no_single_wrong_byte_makes_a_decoder_panic() {
        for (name, payload) in FIXTURES {
            // lzma and lz4 carry no checksum: what they unpack to is for the ELF loader to judge.
            let checked = !matches!(name, "lzma" | "lz4");
            let expected = Image::fixture().bytes();
            for at in (6..payload.len() - 4).step_by(5) {
                let mut payload = payload.to_vec();
                payload[at] ^= 0x41;
                if let Ok((_, image)) = unpack(&payload) {
                    assert!(!checked || image == expected, "{name}: byte {at} changed the image");
                }
            }
        }
    }

    #[test]
    fn a_bomb_makes_no_more_than_its_size_field() {
        let zeros = vec![0; 64 << 20];
        let bomb = zstd::bulk::compress(&zeros, 1).unwrap();
        assert!(bomb.len() < 64 << 10);
        assert!(is_corrupt(&sized(bomb, 4096)));
        let mut frame = LZ4_LEGACY.to_le_bytes().to_vec();
        let block = lz4_flex::block::compress(&zeros[..LZ4_LEGACY_BLOCK]);
        frame.extend_from_slice(&(block.len() as u32).to_le_bytes());
        frame.extend_from_slice(&block);
        assert!(is_corrupt(&sized(frame, 4096)));
    }

    #[test]
    fn a_dictionary_of_4_gib_is_refused() {
        let mut payload = FIXTURES[2].1.to_vec();
        // The dictionary size of a .lzma header.
        payload[1..5].copy_from_slice(&[0, 0, 0xff, 0xff]);
        assert!(is_corrupt(&payload));
    }

    #[test]
    fn lz4_blocks_and_frames_follow_each_other() {
        let image: Vec<u8> = (0..LZ4_LEGACY_BLOCK * 2 + 1000).map(|i| (i >> 8) as u8).collect();
        let mut frames = Vec::new();
        for (i, block) in image.chunks(LZ4_LEGACY_BLOCK).enumerate() {
            if i != 1 {
                frames.extend_from_slice(&LZ4_LEGACY.to_le_bytes());
            }
            let block = lz4_flex::block::compress(block);
            frames.extend_from_slice(&(block.len() as u32).to_le_bytes());
            frames.extend_from_slice(&block);
        }
        assert!(unpack(&sized(frames, image.len())).unwrap().1 == image);
    }
}
