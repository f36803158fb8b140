//! The Tight encoding (rfbproto, section "Tight Encoding"), without JPEG and without the gradient filter.

use super::deflate::Deflater;
use super::pixel::Translator;

/// Pixels of the widest rectangle.
pub(super) const WIDTH_MAX: usize = 2048;

/// Stream numbers: what is alike compresses well together.
const FULL_COLOUR: u8 = 0;
const TWO_COLOURS: u8 = 1;
const PALETTE: u8 = 2;

const FILL: u8 = 0x80;
const EXPLICIT_FILTER: u8 = 0x40;
const FILTER_PALETTE: u8 = 1;
/// Data shorter than this are not compressed.
const PLAIN_MAX: usize = 12;

/// The streams of one viewer.
#[derive(Debug, Default)]
pub(super) struct Tight {
    streams: [Option<Deflater>; 3],
    /// Streams that begin anew, and the viewer does not know it yet: a bit each.
    reset: u8,
    scratch: Vec<u8>,
}

impl Tight {
    /// All streams begin anew, as they do when the level is another one.
    pub(super) fn reset(&mut self) {
        for (index, stream) in self.streams.iter_mut().enumerate() {
            if stream.take().is_some() {
                self.reset |= 1 << index;
            }
        }
    }

    /// Adds the pixels of a rectangle with rows of `width`.
    pub(super) fn encode(
        &mut self,
        pixels: &[u32],
        width: usize,
        to: &Translator,
        level: u32,
        out: &mut Vec<u8>,
    ) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let reset = std::mem::take(&mut self.reset);
        match palette(pixels) {
            Some(palette) if palette.len() == 1 => {
                out.push(FILL | reset);
                palette.iter().for_each(|colour| to.put_tight(*colour, out));
            }
            Some(palette) => {
                let stream = if palette.len() == 2 { TWO_COLOURS } else { PALETTE };
                out.extend_from_slice(&[EXPLICIT_FILTER | stream << 4 | reset, FILTER_PALETTE]);
                out.push(u8::try_from(palette.len() - 1).unwrap_or(u8::MAX));
                palette.iter().for_each(|colour| to.put_tight(*colour, out));
                if palette.len() == 2 {
                    pack_bits(pixels, width, palette.first().copied(), &mut scratch);
                } else {
                    let index = Index::new(&palette);
                    scratch.extend(pixels.iter().map(|pixel| index.of(*pixel)));
                }
                self.compress(stream, &scratch, level, out);
            }
            None => {
                out.push(FULL_COLOUR << 4 | reset);
                pixels.iter().for_each(|pixel| to.put_tight(*pixel, &mut scratch));
                self.compress(FULL_COLOUR, &scratch, level, out);
            }
        }
        self.scratch = scratch;
    }

    fn compress(&mut self, stream: u8, data: &[u8], level: u32, out: &mut Vec<u8>) {
        if data.len() < PLAIN_MAX {
            return out.extend_from_slice(data);
        }
        let Some(stream) = self.streams.get_mut(usize::from(stream)) else { return };
        let stream = stream.get_or_insert_with(|| Deflater::new(level));
        let mut packed = Vec::new();
        stream.deflate(data, &mut packed);
        put_length(packed.len(), out);
        out.append(&mut packed);
    }
}

/// One to three bytes of seven bits, the lowest first; the third has eight.
fn put_length(len: usize, out: &mut Vec<u8>) {
    let [low, middle, high] =
        [len & 0x7f, len >> 7 & 0x7f, len >> 14 & 0xff].map(|b| u8::try_from(b).unwrap_or_default());
    match len {
        0..=0x7f => out.push(low),
        0x80..=0x3fff => out.extend_from_slice(&[low | 0x80, middle]),
        _ => out.extend_from_slice(&[low | 0x80, middle | 0x80, high]),
    }
}

/// One bit a pixel, the first one highest; each row begins with a byte.
fn pack_bits(pixels: &[u32], width: usize, zero: Option<u32>, out: &mut Vec<u8>) {
    for row in pixels.chunks(width.max(1)) {
        for pixels in row.chunks(8) {
            let bits =
                pixels.iter().enumerate().map(|(at, pixel)| u8::from(Some(*pixel) != zero) << (7 - at));
            out.push(bits.fold(0, |byte, bit| byte | bit));
        }
    }
}

/// The colours of the pixels in the order in which they come, if they are few: an index pays then.
fn palette(pixels: &[u32]) -> Option<Vec<u32>> {
    let limit = (pixels.len() / 8).clamp(2, 256);
    let mut palette: Vec<u32> = Vec::new();
    let mut seen = Index::default();
    let mut last = None;
    for pixel in pixels {
        if last == Some(*pixel) || seen.contains(*pixel) {
            last = Some(*pixel);
            continue;
        }
        if palette.len() == limit {
            return None;
        }
        seen.insert(*pixel, u8::try_from(palette.len()).unwrap_or(u8::MAX));
        palette.push(*pixel);
        last = Some(*pixel);
    }
    Some(palette)
}

/// From colours to their numbers: a table of 1024 places with open addressing, since there are 256 colours at most.
#[derive(Debug)]
struct Index(Vec<Option<(u32, u8)>>);

impl Default for Index {
    fn default() -> Self {
        Index(vec![None; 1024])
    }
}

impl Index {
    fn new(palette: &[u32]) -> Index {
        let mut index = Index::default();
        for (number, colour) in palette.iter().enumerate() {
            index.insert(*colour, u8::try_from(number).unwrap_or(u8::MAX));
        }
        index
    }

    /// The place of the colour, or the free one for it.
    fn place(&self, colour: u32) -> usize {
        // Multiplicative hashing with 2^32 over the golden ratio; the upper ten bits.
        let mut place = usize::try_from(colour.wrapping_mul(0x9e37_79b1) >> 22).unwrap_or_default();
        while self.0.get(place).copied().flatten().is_some_and(|(other, _)| other != colour) {
            place = (place + 1) % self.0.len();
        }
        place
    }

    fn contains(&self, colour: u32) -> bool {
        self.0.get(self.place(colour)).is_some_and(Option::is_some)
    }

    fn of(&self, colour: u32) -> u8 {
        self.0.get(self.place(colour)).copied().flatten().map_or(0, |(_, number)| number)
    }

    fn insert(&mut self, colour: u32, number: u8) {
        let place = self.place(colour);
        if let Some(entry) = self.0.get_mut(place) {
            *entry = Some((colour, number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_compact() {
        let table: [(usize, &[u8]); 6] = [
            (0, &[0]),
            (127, &[0x7f]),
            (128, &[0x80, 1]),
            (10_000, &[0x90, 0x4e]),
            (16_383, &[0xff, 0x7f]),
            (4_194_303, &[0xff, 0xff, 0xff]),
        ];
        for (len, expected) in table {
            let mut out = Vec::new();
            put_length(len, &mut out);
            assert_eq!(out, expected, "{len}");
        }
    }

    #[test]
    fn a_palette_is_found_where_it_pays() {
        assert_eq!(palette(&[7; 100]), Some(vec![7]));
        assert_eq!(palette(&[1, 2, 1, 2]), Some(vec![1, 2]));
        assert_eq!(palette(&[1, 2, 3, 2]), None);
        let many: Vec<u32> = (0..256).cycle().take(4096).collect();
        assert_eq!(palette(&many).map(|palette| palette.len()), Some(256));
        let too_many: Vec<u32> = (0..257).cycle().take(4096).collect();
        assert_eq!(palette(&too_many), None);
    }

    #[test]
    fn bits_of_a_row_fill_up_its_last_byte() {
        let mut out = Vec::new();
        pack_bits(&[0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1], 10, Some(0), &mut out);
        assert_eq!(out, [0x7f, 0x80, 0x81, 0xc0]);
    }
}
