//! The ZRLE encoding (RFC 6143, section 7.7.6).

use super::pixel::Translator;

/// Pixels that a tile is wide and high.
pub(super) const TILE: usize = 64;

/// Colours of the largest palette: with packed pixels, and with runs.
const PACKED_MAX: usize = 16;
const PALETTE_MAX: usize = 127;

const RAW: u8 = 0;
const SOLID: u8 = 1;
const PLAIN_RLE: u8 = 128;

/// Adds the tiles of a rectangle with rows of `width`, as they are before compression.
pub(super) fn encode(pixels: &[u32], width: usize, to: &Translator, out: &mut Vec<u8>) {
    let width = width.max(1);
    let mut tile = Vec::with_capacity(TILE * TILE);
    for rows in pixels.chunks(TILE * width) {
        for x in (0..width).step_by(TILE) {
            tile.clear();
            let columns = x..(x + TILE).min(width);
            for row in rows.chunks(width) {
                tile.extend_from_slice(row.get(columns.clone()).unwrap_or_default());
            }
            encode_tile(&tile, columns.len(), to, out);
        }
    }
}

/// What a tile is made of.
#[derive(Debug, Default)]
struct Census {
    /// Its colours in the order in which they come; more than can be used: none.
    palette: Option<Vec<u32>>,
    /// Runs of one pixel, and longer ones.
    singles: usize,
    runs: usize,
    /// Bytes of the lengths of all runs, and of those of longer runs.
    lengths: usize,
    long_lengths: usize,
}

/// Runs of equal pixels, through the rows.
fn runs(pixels: &[u32]) -> impl Iterator<Item = (u32, usize)> {
    pixels.chunk_by(|a, b| a == b).filter_map(|run| Some((*run.first()?, run.len())))
}

fn census(pixels: &[u32]) -> Census {
    let mut palette = Some(Vec::new());
    let mut census = Census::default();
    for (colour, len) in runs(pixels) {
        let length = (len - 1) / 255 + 1;
        census.lengths += length;
        if len == 1 {
            census.singles += 1;
        } else {
            census.runs += 1;
            census.long_lengths += length;
        }
        if let Some(colours) = palette.as_mut().filter(|colours| !colours.contains(&colour)) {
            if colours.len() == PALETTE_MAX {
                palette = None;
            } else {
                colours.push(colour);
            }
        }
    }
    Census { palette, ..census }
}

fn encode_tile(pixels: &[u32], width: usize, to: &Translator, out: &mut Vec<u8>) {
    let census = census(pixels);
    let colour = to.compact_len();
    let raw = pixels.len() * colour;
    let plain_rle = (census.singles + census.runs) * colour + census.lengths;
    let Some(palette) = census.palette else {
        return if plain_rle < raw { put_runs(pixels, to, out) } else { put_raw(pixels, to, out) };
    };
    if palette.len() <= 1 {
        out.push(SOLID);
        return palette.iter().for_each(|colour| to.put_compact(*colour, out));
    }
    let packed = match bits(palette.len()) {
        Some(bits) => palette.len() * colour + (width * bits).div_ceil(8) * (pixels.len() / width.max(1)),
        None => usize::MAX,
    };
    let palette_rle = palette.len() * colour + census.singles + census.runs + census.long_lengths;
    let best = raw.min(plain_rle).min(packed).min(palette_rle);
    if best == packed {
        put_packed(pixels, width, &palette, to, out);
    } else if best == palette_rle {
        put_palette_runs(pixels, &palette, to, out);
    } else if best == plain_rle {
        put_runs(pixels, to, out);
    } else {
        put_raw(pixels, to, out);
    }
}

/// Bits of a packed pixel.
fn bits(colours: usize) -> Option<usize> {
    match colours {
        0..=2 => Some(1),
        3..=4 => Some(2),
        5..=PACKED_MAX => Some(4),
        _ => None,
    }
}

fn index(palette: &[u32], colour: u32) -> u8 {
    let at = palette.iter().position(|other| *other == colour).unwrap_or_default();
    u8::try_from(at).unwrap_or_default()
}

fn put_raw(pixels: &[u32], to: &Translator, out: &mut Vec<u8>) {
    out.push(RAW);
    pixels.iter().for_each(|pixel| to.put_compact(*pixel, out));
}

fn put_length(len: usize, out: &mut Vec<u8>) {
    let rest = len.saturating_sub(1);
    out.resize(out.len() + rest / 255, 255);
    out.push(u8::try_from(rest % 255).unwrap_or_default());
}

fn put_runs(pixels: &[u32], to: &Translator, out: &mut Vec<u8>) {
    out.push(PLAIN_RLE);
    for (colour, len) in runs(pixels) {
        to.put_compact(colour, out);
        put_length(len, out);
    }
}

fn put_palette_runs(pixels: &[u32], palette: &[u32], to: &Translator, out: &mut Vec<u8>) {
    out.push(PLAIN_RLE | u8::try_from(palette.len()).unwrap_or_default());
    palette.iter().for_each(|colour| to.put_compact(*colour, out));
    for (colour, len) in runs(pixels) {
        let index = index(palette, colour);
        if len == 1 {
            out.push(index);
        } else {
            out.push(index | 0x80);
            put_length(len, out);
        }
    }
}

fn put_packed(pixels: &[u32], width: usize, palette: &[u32], to: &Translator, out: &mut Vec<u8>) {
    let Some(bits) = bits(palette.len()) else { return };
    out.push(u8::try_from(palette.len()).unwrap_or_default());
    palette.iter().for_each(|colour| to.put_compact(*colour, out));
    for row in pixels.chunks(width.max(1)) {
        for pixels in row.chunks(8 / bits) {
            let shifted =
                pixels.iter().enumerate().map(|(at, p)| index(palette, *p) << (8 - bits * (at + 1)));
            out.push(shifted.fold(0, |byte, bits| byte | bits));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pixel::NATIVE;
    use super::*;

    fn encoded(pixels: &[u32], width: usize) -> Vec<u8> {
        let mut out = Vec::new();
        encode(pixels, width, &Translator::new(NATIVE), &mut out);
        out
    }

    #[test]
    fn each_kind_of_tile_is_used_where_it_is_the_smallest() {
        assert_eq!(encoded(&[0x01_0203; 6], 3), [SOLID, 3, 2, 1]);
        // Two colours: a bit each, rows padded.
        assert_eq!(encoded(&[1, 2, 1, 2, 2, 1], 3), [2, 1, 0, 0, 2, 0, 0, 0b0100_0000, 0b1100_0000]);
        // Three colours: two bits each.
        let packed = encoded(&[1, 2, 3, 1, 2, 3, 1, 2], 4);
        assert_eq!(packed, [3, 1, 0, 0, 2, 0, 0, 3, 0, 0, 0b0001_1000, 0b0110_0001]);
        // All different: raw.
        let different: Vec<u32> = (0..200).collect();
        let raw = encoded(&different, 20);
        assert_eq!((raw[0], raw.len()), (RAW, 601));
        // Long runs of many colours.
        let long: Vec<u32> = (0..200).flat_map(|colour| [colour; 20]).collect();
        let plain = encoded(&long, 64);
        assert_eq!((plain[0], &plain[1..9]), (PLAIN_RLE, [0, 0, 0, 19, 1, 0, 0, 19].as_slice()));
        // Runs of few colours that come again.
        let few: Vec<u32> = (0..100).flat_map(|run| [run % 20; 40]).collect();
        let palette = encoded(&few, 64);
        assert_eq!((palette[0], palette.len()), (PLAIN_RLE | 20, 1 + 60 + 100 * 2));
    }

    #[test]
    fn lengths_of_runs() {
        for (len, expected) in [(1, vec![0]), (255, vec![254]), (256, vec![255, 0]), (511, vec![255, 255, 0])]
        {
            let mut out = Vec::new();
            put_length(len, &mut out);
            assert_eq!(out, expected, "{len}");
        }
    }

    #[test]
    fn tiles_go_from_left_to_right_and_then_down() {
        // 65 by 65 pixels: four tiles of one colour each.
        let pixels: Vec<u32> =
            (0..65 * 65).map(|at| u32::from(at % 65 >= 64) + 2 * u32::from(at / 65 >= 64)).collect();
        assert_eq!(encoded(&pixels, 65), [1, 0, 0, 0, 1, 1, 0, 0, 1, 2, 0, 0, 1, 3, 0, 0]);
    }
}
