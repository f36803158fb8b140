//! LZO: the container of the `lzop` program and the LZO1X stream inside.
//!
//! Source of the stream format: Documentation/staging/lzo.rst in Linux. Of the container: lzop's own manual and
//! the files that it writes; all numbers in it are big-endian.

use std::fmt;

/// Begins every file of lzop.
pub(super) const MAGIC: &[u8] = b"\x89LZO\0\r\n\x1a\n";

/// Header flags: which checksums go with a block.
const ADLER32_UNPACKED: u32 = 0x1;
const ADLER32_PACKED: u32 = 0x2;
const CRC32_UNPACKED: u32 = 0x100;
const CRC32_PACKED: u32 = 0x200;
/// Header flags: fields of the header itself.
const EXTRA_FIELD: u32 = 0x40;
const FILTER: u32 = 0x800;

/// The first version with the field "version needed to extract", a level and a 64-bit time.
const VERSION_WITH_LEVEL: u16 = 0x0940;

/// Why a file of lzop does not unpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LzoError {
    Header,
    Short,
    Long,
    BadDistance,
    Checksum,
}

impl std::error::Error for LzoError {}

impl fmt::Display for LzoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "its lzop header is of an unknown kind",
            Self::Short => "it ends too early",
            Self::Long => "it unpacks to more than its size field says",
            Self::BadDistance => "a match reaches before the start",
            Self::Checksum => "a checksum differs",
        })
    }
}

/// Bytes not yet read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], LzoError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(LzoError::Short)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LzoError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(LzoError::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, LzoError> {
        self.array().map(|[byte]| byte)
    }

    fn be_u16(&mut self) -> Result<u16, LzoError> {
        self.array().map(u16::from_be_bytes)
    }

    fn be_u32(&mut self) -> Result<u32, LzoError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A length whose field in the instruction was 0: each zero byte counts 255, the first other byte its value.
    fn long_length(&mut self, base: usize) -> Result<usize, LzoError> {
        let zeros = self.0.iter().position(|byte| *byte != 0).ok_or(LzoError::Short)?;
        self.take(zeros)?;
        // Both are bounded by the length of the file.
        Ok(base + zeros * 255 + usize::from(self.u8()?))
    }
}

/// Output: what is written so far, and room for the rest.
struct Output<'a> {
    buf: &'a mut [u8],
    pos: usize,
}

impl Output<'_> {
    fn literals(&mut self, bytes: &[u8]) -> Result<(), LzoError> {
        let end = self.pos.checked_add(bytes.len()).ok_or(LzoError::Long)?;
        self.buf.get_mut(self.pos..end).ok_or(LzoError::Long)?.copy_from_slice(bytes);
        self.pos = end;
        Ok(())
    }

    /// Repeats `len` bytes from `distance` back; the two may overlap, which repeats a pattern.
    fn copy_match(&mut self, distance: usize, len: usize) -> Result<(), LzoError> {
        let start = self.pos.checked_sub(distance).ok_or(LzoError::BadDistance)?;
        let end = self.pos.checked_add(len).filter(|end| *end <= self.buf.len()).ok_or(LzoError::Long)?;
        // Each turn copies what is there already, so an overlapping match doubles instead of going by bytes.
        while self.pos < end {
            let n = (self.pos - start).min(end - self.pos);
            self.buf.copy_within(start..start + n, self.pos);
            self.pos += n;
        }
        Ok(())
    }
}

/// Unpacks one LZO1X stream, which ends with its end mark and fills `out`.
fn lzo1x(stream: &[u8], out: &mut [u8]) -> Result<(), LzoError> {
    let mut input = Input(stream);
    let mut out = Output { buf: out, pos: 0 };
    // Literals that went before: 0 to 3 of them, or 4 for a longer run. It decides what 0 to 15 mean.
    let mut state = 0;
    // The first byte may be a run of literals in its own coding.
    if let Some(first) = stream.first().filter(|first| **first > 17) {
        input.take(1)?;
        let len = usize::from(*first) - 17;
        out.literals(input.take(len)?)?;
        state = len.min(4);
    }
    loop {
        let code = usize::from(input.u8()?);
        let (distance, len, next) = match code {
            0..=15 if state == 0 => {
                let len = if code == 0 { input.long_length(15)? } else { code };
                out.literals(input.take(len + 3)?)?;
                state = 4;
                continue;
            }
            0..=15 => {
                let (base, len) = if state == 4 { (2049, 3) } else { (1, 2) };
                (base + (usize::from(input.u8()?) << 2 | code >> 2), len, code & 3)
            }
            16..=31 => {
                let len = if code & 7 == 0 { input.long_length(7)? } else { code & 7 };
                let word = usize::from(u16::from_le_bytes(input.array()?));
                let distance = (code & 8) << 11 | word >> 2;
                if distance == 0 {
                    break;
                }
                (0x4000 + distance, len + 2, word & 3)
            }
            32..=63 => {
                let len = if code & 31 == 0 { input.long_length(31)? } else { code & 31 };
                let word = usize::from(u16::from_le_bytes(input.array()?));
                (1 + (word >> 2), len + 2, word & 3)
            }
            // 64 to 127 count from 3, 128 to 255 from 5: the same formula.
            _ => {
                let distance = usize::from(input.u8()?) << 3 | code >> 2 & 7;
                (1 + distance, (code >> 5) + 1, code & 3)
            }
        };
        out.copy_match(distance, len)?;
        out.literals(input.take(next)?)?;
        state = next;
    }
    if out.pos == out.buf.len() { Ok(()) } else { Err(LzoError::Short) }
}

/// Reads the header up to the first block: its flags.
fn header(input: &mut Input<'_>) -> Result<u32, LzoError> {
    if input.take(MAGIC.len())? != MAGIC {
        return Err(LzoError::Header);
    }
    let version = input.be_u16()?;
    let _library_version = input.be_u16()?;
    let with_level = version >= VERSION_WITH_LEVEL;
    if with_level {
        let _needed = input.be_u16()?;
    }
    // 1, 2 and 3 are levels of LZO1X; the other methods of lzop are not LZO.
    if !(1..=3).contains(&input.u8()?) {
        return Err(LzoError::Header);
    }
    if with_level {
        let _level = input.u8()?;
    }
    let flags = input.be_u32()?;
    if flags & FILTER != 0 {
        return Err(LzoError::Header);
    }
    let _mode = input.be_u32()?;
    let _time = input.be_u32()?;
    if with_level {
        let _time_high = input.be_u32()?;
    }
    let name_len = input.u8()?;
    input.take(usize::from(name_len))?;
    let _header_checksum = input.be_u32()?;
    if flags & EXTRA_FIELD != 0 {
        let len = input.be_u32()?;
        input.take(len as usize)?;
        let _checksum = input.be_u32()?;
    }
    Ok(flags)
}

/// Unpacks a file of lzop into `out`, which it must fill exactly.
pub(super) fn unpack(file: &[u8], mut out: &mut [u8]) -> Result<(), LzoError> {
    let mut input = Input(file);
    let flags = header(&mut input)?;
    let checksum = |input: &mut Input<'_>, flag| (flags & flag != 0).then(|| input.be_u32()).transpose();
    loop {
        let unpacked_len = input.be_u32()? as usize;
        if unpacked_len == 0 {
            return if out.is_empty() { Ok(()) } else { Err(LzoError::Short) };
        }
        let packed_len = input.be_u32()? as usize;
        let (adler, crc) = (checksum(&mut input, ADLER32_UNPACKED)?, checksum(&mut input, CRC32_UNPACKED)?);
        let stored = packed_len == unpacked_len;
        // A block that did not shrink is stored as it is, and has one set of checksums.
        if !stored {
            checksum(&mut input, ADLER32_PACKED)?;
            checksum(&mut input, CRC32_PACKED)?;
        }
        let packed = input.take(packed_len)?;
        let (block, rest) = out.split_at_mut_checked(unpacked_len).ok_or(LzoError::Long)?;
        if stored {
            block.copy_from_slice(packed);
        } else {
            lzo1x(packed, block)?;
        }
        if adler.is_some_and(|sum| sum != adler2::adler32_slice(block)) {
            return Err(LzoError::Checksum);
        }
        if let Some(sum) = crc {
            let mut crc = flate2::Crc::new();
            crc.update(block);
            if crc.sum() != sum {
                return Err(LzoError::Checksum);
            }
        }
        out = rest;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

    use super::*;

    fn unpacked(stream: &[u8], len: usize) -> Result<Vec<u8>, LzoError> {
        let mut out = vec![0; len];
        lzo1x(stream, &mut out).map(|()| out)
    }

    const END: [u8; 3] = [0x11, 0, 0];

    #[test]
    fn each_kind_of_instruction_unpacks() {
        let cases: [(&str, &[u8], &[u8]); 8] = [
            ("first literals", &[17 + 5, b'a', b'b', b'c', b'd', b'e'], b"abcde"),
            ("literal run", &[1, b'a', b'b', b'c', b'd'], b"abcd"),
            ("match of 2 after few literals", &[17 + 2, b'a', b'b', 1 << 2, 0], b"abab"),
            ("match of 3 to 4", &[17 + 4, b'a', b'b', b'c', b'd', 0x40 | 0x20 | 3 << 2, 0], b"abcdabcd"),
            ("match of 5 to 8", &[17 + 1, b'x', 0x80 | 0x60, 0], b"xxxxxxxxx"),
            ("match within 16 KiB", &[17 + 4, b'a', b'b', b'c', b'd', 0x20 | 4, 3 << 2, 0], b"abcdabcdab"),
            ("long match", &[17 + 4, b'a', b'b', b'c', b'd', 0x20, 2, 3 << 2, 0], &REPEATED[..4 + 35]),
            ("literals behind a match", &[17 + 1, b'x', 0x40 | 2, 0, b'y', b'z'], b"xxxxyz"),
        ];
        for (name, stream, expected) in cases {
            let stream = [stream, &END].concat();
            assert_eq!(unpacked(&stream, expected.len()).as_deref(), Ok(expected), "{name}");
        }
    }

    const REPEATED: [u8; 64] = {
        let mut bytes = [0; 64];
        let mut i = 0;
        while i < 64 {
            bytes[i] = b"abcd"[i % 4];
            i += 1;
        }
        bytes
    };

    #[test]
    fn far_matches_unpack() {
        // 17 KiB of zeros, then a match of 3 from 2049 back, and one of 3 from 16385 back.
        let run = 17 << 10;
        let (zeros, last) = ((run - 1 - 33) / 255, (run - 1 - 33) % 255);
        let mut stream = vec![17 + 1, 0, 0x20];
        stream.resize(stream.len() + zeros, 0);
        stream.extend_from_slice(&[last as u8, 0, 0, 1, b'a', b'b', b'c', b'd', 0, 0, 0x10 | 1, 1 << 2, 0]);
        stream.extend_from_slice(&END);
        let out = unpacked(&stream, run + 4 + 3 + 3).unwrap();
        assert_eq!(out[run..], *b"abcd\0\0\0\0\0\0");
    }

    #[test]
    fn matches_before_the_start_are_refused() {
        for stream in [&[17 + 1, b'x', 0x40 | 1 << 2, 0][..], &[17 + 1, b'x', 0x40, 1], &[0x11, 1 << 2, 0]] {
            assert_eq!(unpacked(&[stream, &END].concat(), 64), Err(LzoError::BadDistance));
        }
    }

    #[test]
    fn lengths_beyond_input_or_output_are_refused() {
        let long_run = [vec![0x20], vec![0; 1000], vec![1, 0, 0]].concat();
        let long = [&[17 + 1, b'x'][..], &long_run].concat();
        assert_eq!(unpacked(&long, 1000), Err(LzoError::Long));
        assert_eq!(unpacked(&[17 + 5, b'a'], 64), Err(LzoError::Short));
        assert_eq!(unpacked(&[0, 0, 0], 64), Err(LzoError::Short));
        assert_eq!(unpacked(&[17 + 5, b'a', b'b', b'c', b'd', b'e'], 4), Err(LzoError::Long));
        assert_eq!(unpacked(&END, 1), Err(LzoError::Short));
        assert_eq!(unpacked(&[], 0), Err(LzoError::Short));
    }
}
