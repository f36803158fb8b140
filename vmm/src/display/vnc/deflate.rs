//! A zlib stream (RFC 1950) that goes on from rectangle to rectangle.

use flate2::{Compress, Compression, FlushCompress};

/// One stream.
#[derive(Debug)]
pub(super) struct Deflater(Compress);

impl Deflater {
    /// Begins a stream; `level` is 0 (as it is) to 9 (small).
    pub(super) fn new(level: u32) -> Deflater {
        Deflater(Compress::new(Compression::new(level.min(9)), true))
    }

    /// Adds all of `data`, compressed, to `out`: so much that the other end can unpack all of it.
    pub(super) fn deflate(&mut self, data: &[u8], out: &mut Vec<u8>) {
        let before = self.0.total_in();
        loop {
            let used = usize::try_from(self.0.total_in() - before).unwrap_or(usize::MAX);
            let rest = data.get(used..).unwrap_or_default();
            // Without room left nobody knows whether all came out.
            out.reserve(rest.len() / 2 + 64);
            if self.0.compress_vec(rest, out, FlushCompress::Sync).is_err() {
                return;
            }
            if self.0.total_in() - before >= data.len() as u64 && out.len() < out.capacity() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use flate2::{Decompress, FlushDecompress};

    use super::*;

    #[test]
    fn each_piece_can_be_unpacked_when_it_has_come() {
        for level in [0, 1, 6, 9] {
            let (mut deflater, mut inflater) = (Deflater::new(level), Decompress::new(true));
            let mut random = 1_u32;
            for len in [1_usize, 5, 64, 100, 4096, 70_000, 3, 300_000] {
                let data: Vec<u8> = (0..len)
                    .map(|_| {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        u8::try_from(random >> 24).unwrap() & if len > 80_000 { 255 } else { 3 }
                    })
                    .collect();
                let mut packed = Vec::new();
                deflater.deflate(&data, &mut packed);
                assert!(packed.len() < len + len / 100 + 64, "{len}: {}", packed.len());
                let mut unpacked = Vec::with_capacity(len + 1);
                inflater.decompress_vec(&packed, &mut unpacked, FlushDecompress::Sync).unwrap();
                assert!(unpacked == data, "{len} at {level}");
            }
        }
    }
}
