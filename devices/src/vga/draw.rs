//! A line of the picture, from video memory.

use super::dispi::Depth;
use super::picture::{Cursor, Dots, Line, Linear, Text, VgaMode};

/// Addresses of a plane.
pub(super) const PLANE: usize = 0x1_0000;

/// Each bit of a byte in four bits of its own, the leftmost pixel in the lowest.
#[expect(clippy::indexing_slicing, reason = "worked out by the compiler")]
const SPREAD: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            if byte >> (7 - bit) & 1 != 0 {
                table[byte] |= 1 << (4 * bit);
            }
            bit += 1;
        }
        byte += 1;
    }
    table
};

/// The byte of a plane.
fn plane(word: u32, plane: u32) -> usize {
    (word >> (8 * plane) & 0xff) as usize
}

/// Eight pixels of four bits, the leftmost lowest.
fn planar(word: u32) -> u32 {
    let spread = |n: u32| SPREAD.get(plane(word, n)).copied().unwrap_or(0) << n;
    spread(0) | spread(1) | spread(2) | spread(3)
}

/// Pixels of four bits each, the leftmost lowest, as colours.
fn put16(pixels: u32, palette: &[u32; 16], to: &mut Vec<u32>) {
    for n in 0..8 {
        to.push(palette.get((pixels >> (4 * n) & 15) as usize).copied().unwrap_or(0));
    }
}

impl VgaMode {
    /// Draws a line of `width` pixels into `to`, from the words of the four planes. Returns whether a character in it
    /// blinks.
    pub(super) fn draw(
        &self,
        line: Line,
        memory: &[u32],
        cursor: &Cursor,
        dots: &mut Vec<u32>,
        to: &mut Vec<u32>,
    ) -> bool {
        dots.clear();
        let columns = self.columns + u32::from(line.pan > 0);
        let words = (0..columns).map(|column| memory.get(self.address(line, column)).copied().unwrap_or(0));
        let mut blinks = false;
        match &self.dots {
            Dots::Text(text) => {
                let covered = cursor.column(line, columns);
                for (column, word) in (0..).zip(words) {
                    let cell = Cell { line, word, cursor: covered == Some(column) };
                    blinks |= text.draw(&cell, memory, cursor, &self.palette16, dots);
                }
            }
            Dots::Planar => words.for_each(|word| put16(planar(word), &self.palette16, dots)),
            Dots::Pairs => words.for_each(|word| put16(pairs(word), &self.palette16, dots)),
            Dots::Bytes => words.for_each(|word| {
                for pixel in word.to_le_bytes() {
                    let color = self.palette.get(usize::from(pixel)).copied().unwrap_or(0);
                    dots.extend([color, color]);
                }
            }),
        }
        let shown = dots.iter().skip(line.pan).take(self.columns as usize * self.dots.per_clock());
        to.clear();
        if self.wide {
            to.extend(shown.flat_map(|color| [*color; 2]))
        } else {
            to.extend(shown)
        }
        blinks
    }
}

/// Two bits of planes 0 (2) and then 1 (3) are the lower (upper) bits of eight pixels.
fn pairs(word: u32) -> u32 {
    let half = |low: u32, high: u32| {
        (0..4).fold(0, |pixels, n| {
            let two = |plane: u32| word >> (8 * plane + 6 - 2 * n) & 3;
            pixels | (two(low) | two(high) << 2) << (4 * n)
        })
    };
    half(0, 2) | half(1, 3) << 16
}

struct Cell {
    line: Line,
    /// Character in plane 0, attribute in plane 1.
    word: u32,
    /// The cursor covers this line of it.
    cursor: bool,
}

impl Text {
    fn draw(
        &self,
        cell: &Cell,
        memory: &[u32],
        cursor: &Cursor,
        palette: &[u32; 16],
        to: &mut Vec<u32>,
    ) -> bool {
        let (character, attribute) = (plane(cell.word, 0), plane(cell.word, 1));
        let [font, other] = self.fonts;
        let font = if attribute & 8 != 0 { other } else { font };
        let glyph = memory.get((font + character * 32 + usize::from(cell.line.scan)) % PLANE);
        let glyph = glyph.map_or(0, |word| plane(*word, 2));
        // The ninth dot is background, or as the eighth.
        let ninth = self.line_graphics && (0xc0..0xe0).contains(&character);
        let mut bits = glyph << 1 | (glyph & usize::from(ninth));
        if self.underline == Some(cell.line.scan) && attribute & 0x77 == 1 {
            bits = 0x1ff;
        }
        let blinks = self.blink && attribute & 0x80 != 0;
        if blinks && !cursor.characters {
            bits = 0;
        }
        if cell.cursor {
            bits = 0x1ff;
        }
        let background = if self.blink { attribute >> 4 & 7 } else { attribute >> 4 };
        let color = |index: usize| palette.get(index).copied().unwrap_or(0);
        let (fore, back) = (color(attribute & 15), color(background));
        for n in 0..self.width {
            to.push(if bits >> (8 - n) & 1 != 0 { fore } else { back });
        }
        blinks
    }
}

impl Linear {
    /// Which bytes of video memory row `y` is made of: the first, and how many.
    pub(super) fn row(&self, y: usize) -> (usize, usize) {
        let mode = &self.mode;
        let first = (mode.y + y) * mode.stride + mode.depth.bytes(mode.x);
        // Planar rows may begin within a group of eight.
        let pixels = match mode.depth {
            Depth::Planar => (mode.width + mode.x % 8).next_multiple_of(8),
            _ => mode.width,
        };
        (first, mode.depth.bytes(pixels))
    }

    /// Draws a row into `to`, from the bytes of [`Linear::row`].
    pub(super) fn draw(&self, row: &[u8], dots: &mut Vec<u32>, to: &mut Vec<u32>) {
        let mode = &self.mode;
        to.clear();
        match mode.depth {
            Depth::Planar => {
                dots.clear();
                let palette = self.palette.first_chunk::<16>().unwrap_or(&[0; 16]);
                for word in row.as_chunks::<4>().0 {
                    put16(planar(u32::from_le_bytes(*word)), palette, dots);
                }
                to.extend(dots.iter().skip(mode.x % 8).take(mode.width));
            }
            Depth::Palette => {
                to.extend(
                    row.iter().map(|pixel| self.palette.get(usize::from(*pixel)).copied().unwrap_or(0)),
                );
            }
            Depth::Bits15 => to.extend(row.as_chunks::<2>().0.iter().map(|pixel| {
                let pixel = u32::from(u16::from_le_bytes(*pixel));
                widen(pixel >> 10, 5) << 16 | widen(pixel >> 5, 5) << 8 | widen(pixel, 5)
            })),
            Depth::Bits16 => to.extend(row.as_chunks::<2>().0.iter().map(|pixel| {
                let pixel = u32::from(u16::from_le_bytes(*pixel));
                widen(pixel >> 11, 5) << 16 | widen(pixel >> 5, 6) << 8 | widen(pixel, 5)
            })),
            Depth::Bits24 => {
                to.extend(row.as_chunks::<3>().0.iter().map(|[b, g, r]| u32::from_be_bytes([0, *r, *g, *b])));
            }
            Depth::Bits32 => {
                to.extend(row.as_chunks::<4>().0.iter().map(|pixel| u32::from_le_bytes(*pixel) & 0xff_ffff));
            }
        }
        to.resize(mode.width, 0);
    }
}

/// The lowest `bits` (5 or 6) as eight, so that all ones stay all ones.
fn widen(value: u32, bits: u32) -> u32 {
    let value = value & ((1 << bits) - 1);
    value << (8 - bits) | value >> (2 * bits - 8)
}
