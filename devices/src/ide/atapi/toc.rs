//! READ TOC/PMA/ATIP: a disc with one data track (MMC-3, 5.23).

use super::{Cdb, Sense};
use crate::ide::drive::Drive;

/// A data track, Q channel with position data.
const CONTROL: u8 = 0x14;
/// The lead-out, as a track number.
const LEAD_OUT: u8 = 0xaa;
/// Frames of a second, and those before block 0.
const FRAMES: u64 = 75;
const PREGAP: u64 = 150;

/// Minute, second and frame of a block; a disc that is longer than a CD can be ends at the last one that has such.
fn msf(block: u64) -> [u8; 3] {
    let frame = (block + PREGAP).min(256 * 60 * FRAMES - 1);
    [frame / FRAMES / 60, frame / FRAMES % 60, frame % FRAMES].map(|n| u8::try_from(n).unwrap_or(u8::MAX))
}

/// An address as the host wants it: of 4 bytes.
fn address(block: u64, as_msf: bool) -> [u8; 4] {
    if as_msf {
        let [minute, second, frame] = msf(block);
        [0, minute, second, frame]
    } else {
        u32::try_from(block).unwrap_or(u32::MAX).to_be_bytes()
    }
}

/// With the length in front.
fn with_length(rest: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(rest.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    bytes.extend(rest);
    bytes
}

impl Drive {
    pub(super) fn read_toc(&self, cdb: &Cdb) -> Result<Vec<u8>, Sense> {
        let blocks = self.blocks()?;
        let as_msf = cdb.byte(1) & 2 != 0;
        // SFF-8020i had the format in the control byte, and Windows still writes it there.
        let format = match cdb.byte(2) & 0x0f {
            0 => cdb.byte(9) >> 6,
            format => format,
        };
        let first = cdb.byte(6);
        match format {
            0 => {
                if first > 1 && first != LEAD_OUT {
                    return Err(Sense::INVALID_FIELD);
                }
                let mut rest = vec![1, 1];
                if first <= 1 {
                    rest.extend([0, CONTROL, 1, 0]);
                    rest.extend(address(0, as_msf));
                }
                rest.extend([0, CONTROL, LEAD_OUT, 0]);
                rest.extend(address(blocks, as_msf));
                Ok(with_length(&rest))
            }
            // The last session, and its first track.
            1 => {
                let mut rest = vec![1, 1, 0, CONTROL, 1, 0];
                rest.extend(address(0, as_msf));
                Ok(with_length(&rest))
            }
            // The entries as they are on the disc: session, control, track 0, point, position, 0, and what the point tells.
            2 => {
                let mut rest = vec![1, 1];
                let points = [(0xa0, [1, 0, 0]), (0xa1, [1, 0, 0]), (0xa2, msf(blocks)), (1, msf(0))];
                for (point, [minute, second, frame]) in points {
                    rest.extend([1, CONTROL, 0, point, 0, 0, 0, 0, minute, second, frame]);
                }
                Ok(with_length(&rest))
            }
            _ => Err(Sense::INVALID_FIELD),
        }
    }
}
