//! What the monitor says of itself: 128 bytes of EDID 1.4, with 1024x768 as the size that it likes best.
//!
//! Source: VESA Enhanced EDID Standard, release A, revision 2; VESA DMT 1.13 for the timing.

use super::{MAX_HEIGHT, MAX_WIDTH};

/// Bytes of it.
pub(super) const LEN: usize = 128;

/// 1024x768 at 60 Hz: 65 MHz, blanking of 320 pixels and 38 lines, sync after 24 pixels for 136 and after 3 lines for 6;
/// image of 320 by 240 mm; separate syncs, both negative.
const DETAILED: [u8; 18] = [
    0x64, 0x19, 0x00, 0x40, 0x41, 0x00, 0x26, 0x30, 0x18, 0x88, 0x36, 0x00, 0x40, 0xf0, 0x10, 0x00, 0x00,
    0x18,
];

/// Sizes in pixels; the ratio's code (0 16:10, 1 4:3, 2 5:4, 3 16:9); all at 60 Hz.
const STANDARD: [(u16, u8); 8] =
    [(1920, 0), (1920, 3), (1680, 0), (1600, 1), (1440, 0), (1280, 2), (1280, 0), (1152, 1)];

/// The block.
pub(super) fn block() -> [u8; LEN] {
    let mut bytes = Vec::with_capacity(LEN);
    bytes.extend([0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    // "XVM" in five bits a letter, product 1, no serial number, made in 2024.
    let letters = b"XVM".iter().fold(0u16, |id, letter| id << 5 | u16::from(letter - b'@'));
    bytes.extend(letters.to_be_bytes());
    bytes.extend([1, 0, 0, 0, 0, 0, 0, 34, 1, 4]);
    // Digital, 8 bits a colour; 32 x 24 cm; gamma 2.2; RGB 4:4:4, sRGB, the first timing is preferred.
    bytes.extend([0xa0, 32, 24, 120, 0x06]);
    // The chromaticity of sRGB.
    bytes.extend([0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
    // 640x480, 800x600 and 1024x768 at 60 Hz.
    bytes.extend([0x21, 0x08, 0x00]);
    for (width, ratio) in STANDARD {
        bytes.extend([u8::try_from(width / 8 - 31).unwrap_or(0), ratio << 6]);
    }
    bytes.extend(DETAILED);
    // Limits: 50 to 125 Hz, 30 to 160 kHz, up to 300 MHz.
    bytes.extend([0, 0, 0, 0xfd, 0, 50, 125, 30, 160, 30, 0, 10, 32, 32, 32, 32, 32, 32]);
    bytes.extend([0, 0, 0, 0xfc, 0]);
    bytes.extend(*b"xvmm\n        ");
    // An empty descriptor, and no extension.
    bytes.extend([0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes.push(sum.wrapping_neg());
    let mut block = [0; LEN];
    for (to, from) in block.iter_mut().zip(bytes) {
        *to = from;
    }
    block
}

// Every size it names can be set.
static_assertions::const_assert!(MAX_WIDTH >= 1920 && MAX_HEIGHT >= 1200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_sound() {
        let block = block();
        assert_eq!(block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!((block[18], block[19], block[126]), (1, 4, 0));
        assert_eq!(u16::from_be_bytes([block[8], block[9]]), 24 << 10 | 22 << 5 | 13);
        let timing = &block[54..72];
        let twelve = |low: usize, high: usize, shift: u8| {
            u16::from(timing[low]) | u16::from(timing[high] >> shift & 15) << 8
        };
        assert_eq!(u16::from_le_bytes([timing[0], timing[1]]), 6500);
        assert_eq!((twelve(2, 4, 4), twelve(3, 4, 0)), (1024, 320));
        assert_eq!((twelve(5, 7, 4), twelve(6, 7, 0)), (768, 38));
        assert_eq!((timing[8], timing[9], timing[10]), (24, 136, 3 << 4 | 6));
        let widths: Vec<usize> = (0..8).map(|n| (usize::from(block[38 + 2 * n]) + 31) * 8).collect();
        assert_eq!(widths, [1920, 1920, 1680, 1600, 1440, 1280, 1280, 1152]);
    }
}
