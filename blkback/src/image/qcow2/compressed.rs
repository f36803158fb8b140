//! Compressed clusters. A bomb has nowhere to go: whatever the stream says, it fills one cluster.

use std::io;

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::header::Compression;

/// Memory that a zstd stream may ask for, as a power of two: four of the largest clusters.
const WINDOW_LOG: u32 = 23;

/// Where a compressed cluster is, as an L2 entry has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Byte in the file.
    pub(super) offset: u64,
    /// Bytes; the stream may end before.
    pub(super) len: u64,
}

impl Place {
    /// From an L2 entry of an image with clusters of `1 << cluster_bits` bytes.
    pub(super) fn of(entry: u64, cluster_bits: u32) -> Self {
        let split = 62 - (cluster_bits - 8);
        let offset = entry & ((1 << split) - 1);
        // The number of sectors after the one that the stream begins in.
        let more = (entry & ((1 << 62) - 1)) >> split;
        Self { offset, len: (more + 1) * 512 - offset % 512 }
    }

    /// The clusters of the file that it lies in: the first, and how many.
    pub(super) fn clusters(self, cluster_bits: u32) -> (u64, u64) {
        let first = self.offset >> cluster_bits;
        let last = (self.offset + self.len - 1) >> cluster_bits;
        (first, last - first + 1)
    }
}

/// Fills one cluster. It is an error if there is less in the stream.
pub(super) fn decompress(kind: Compression, stream: &[u8], cluster: &mut [u8]) -> io::Result<()> {
    let filled = match kind {
        Compression::Deflate => inflate(stream, cluster),
        Compression::Zstd => unzstd(stream, cluster),
    };
    match filled {
        Some(filled) if filled == cluster.len() => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EIO)),
    }
}

fn inflate(stream: &[u8], cluster: &mut [u8]) -> Option<usize> {
    let mut inflater = Decompress::new(false);
    loop {
        let (read, filled) = (inflater.total_in(), inflater.total_out());
        let rest = stream.get(usize::try_from(read).ok()?..)?;
        let room = cluster.get_mut(usize::try_from(filled).ok()?..)?;
        let status = inflater.decompress(rest, room, FlushDecompress::Finish).ok()?;
        let stuck = inflater.total_in() == read && inflater.total_out() == filled;
        if status == Status::StreamEnd || stuck || inflater.total_out() == cluster.len() as u64 {
            return usize::try_from(inflater.total_out()).ok();
        }
    }
}

fn unzstd(stream: &[u8], cluster: &mut [u8]) -> Option<usize> {
    let mut decoder = Decoder::new().ok()?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).ok()?;
    let mut input = InBuffer::around(stream);
    let len = cluster.len();
    let mut output = OutBuffer::around(cluster);
    loop {
        let before = (input.pos(), output.pos());
        let left = decoder.run(&mut input, &mut output).ok()?;
        if left == 0 || output.pos() == len || (input.pos(), output.pos()) == before {
            return Some(output.pos());
        }
    }
}
