//! Pixel formats (RFC 6143, section 7.4).

/// How a viewer wants its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelFormat {
    /// Bits of a pixel on the wire: 8, 16 or 32.
    pub bits: u8,
    /// Of these, how many mean something.
    pub depth: u8,
    /// The most significant byte comes first.
    pub big_endian: bool,
    /// Pixels are red, green and blue; otherwise indexes of a colour map.
    pub true_colour: bool,
    /// The largest value of red, green and blue.
    pub max: [u16; 3],
    /// How far red, green and blue are shifted to the left.
    pub shift: [u8; 3],
}

/// Ours: 0x00RRGGBB, little-endian.
pub const NATIVE: PixelFormat = PixelFormat {
    bits: 32,
    depth: 24,
    big_endian: false,
    true_colour: true,
    max: [255; 3],
    shift: [16, 8, 0],
};

/// The colour map that viewers get who want one: entry `0bBBGGGRRR`.
const MAP_MAX: [u16; 3] = [7, 7, 3];
const MAP_SHIFT: [u8; 3] = [0, 3, 6];

impl PixelFormat {
    /// Parses the 16 bytes of a PIXEL_FORMAT. `None`: there is no such format.
    pub fn parse(bytes: &[u8; 16]) -> Option<PixelFormat> {
        let [bits, depth, big_endian, true_colour, r0, r1, g0, g1, b0, b1, r, g, b, _, _, _] = *bytes;
        let format = PixelFormat {
            bits,
            depth,
            big_endian: big_endian != 0,
            true_colour: true_colour != 0,
            max: [[r0, r1], [g0, g1], [b0, b1]].map(u16::from_be_bytes),
            shift: [r, g, b],
        };
        format.is_sound().then_some(format)
    }

    fn is_sound(&self) -> bool {
        let fits = |(max, shift): (&u16, &u8)| {
            let width = u32::from(self.bits);
            let used = u16::BITS - max.leading_zeros();
            *max > 0 && (max & max.wrapping_add(1)) == 0 && u32::from(*shift) + used <= width
        };
        matches!(self.bits, 8 | 16 | 32)
            && (1..=self.bits).contains(&self.depth)
            && (!self.true_colour || self.max.iter().zip(&self.shift).all(fits))
    }

    /// The 16 bytes of it.
    pub fn emit(&self) -> [u8; 16] {
        let [[r0, r1], [g0, g1], [b0, b1]] = self.max.map(u16::to_be_bytes);
        let [r, g, b] = self.shift;
        let (big_endian, true_colour) = (self.big_endian.into(), self.true_colour.into());
        [self.bits, self.depth, big_endian, true_colour, r0, r1, g0, g1, b0, b1, r, g, b, 0, 0, 0]
    }
}

/// The three bytes of a pixel that carry its colour, where the fourth one does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compact {
    /// All bytes are sent.
    No,
    /// The least significant three.
    Low,
    /// The most significant three.
    High,
}

/// Makes a viewer's pixels of 0x00RRGGBB.
#[derive(Debug)]
pub struct Translator {
    format: PixelFormat,
    tables: [[u32; 256]; 3],
    compact: Compact,
    /// Tight sends red, green and blue as three bytes.
    tight: bool,
    native: bool,
}

impl Translator {
    /// For a viewer with this format.
    pub fn new(format: PixelFormat) -> Translator {
        let (max, shift) = if format.true_colour { (format.max, format.shift) } else { (MAP_MAX, MAP_SHIFT) };
        let channel = |channel: usize| {
            let max = u32::from(max.get(channel).copied().unwrap_or_default());
            let shift = shift.get(channel).copied().unwrap_or_default();
            std::array::from_fn(|value| {
                let value = u32::try_from(value).unwrap_or_default();
                ((value * max + 127) / 255).checked_shl(shift.into()).unwrap_or_default()
            })
        };
        let tables: [[u32; 256]; 3] = [channel(0), channel(1), channel(2)];
        let mask = tables.iter().flatten().fold(0, |mask, value| mask | value);
        let wide = format.true_colour && format.bits == 32 && format.depth <= 24;
        let compact = match mask {
            mask if wide && mask & 0xff00_0000 == 0 => Compact::Low,
            mask if wide && mask & 0xff == 0 => Compact::High,
            _ => Compact::No,
        };
        let tight = format.true_colour && format.bits == 32 && format.depth == 24 && format.max == [255; 3];
        let native = format.true_colour
            && format.bits == 32
            && format.max == NATIVE.max
            && format.shift == NATIVE.shift;
        Translator { format, tables, compact, tight, native }
    }

    /// The format.
    pub fn format(&self) -> &PixelFormat {
        &self.format
    }

    fn value(&self, rgb: u32) -> u32 {
        if self.native {
            return rgb & 0x00ff_ffff;
        }
        let [_, r, g, b] = rgb.to_be_bytes().map(usize::from);
        let [red, green, blue] = &self.tables;
        let of = |table: &[u32; 256], index: usize| table.get(index).copied().unwrap_or_default();
        of(red, r) | of(green, g) | of(blue, b)
    }

    /// Writes a PIXEL.
    pub fn put(&self, rgb: u32, out: &mut Vec<u8>) {
        let value = self.value(rgb);
        match (self.format.bits, self.format.big_endian) {
            (32, false) => out.extend_from_slice(&value.to_le_bytes()),
            (32, true) => out.extend_from_slice(&value.to_be_bytes()),
            (16, big_endian) => {
                let [low, high, ..] = value.to_le_bytes();
                out.extend_from_slice(&if big_endian { [high, low] } else { [low, high] });
            }
            _ => out.push(value.to_le_bytes()[0]),
        }
    }

    /// Writes a CPIXEL, as ZRLE has it (RFC 6143, section 7.7.5).
    pub fn put_compact(&self, rgb: u32, out: &mut Vec<u8>) {
        if self.compact == Compact::No {
            return self.put(rgb, out);
        }
        let [b0, b1, b2, b3] = self.value(rgb).to_le_bytes();
        let (low, middle, high) = if self.compact == Compact::Low { (b0, b1, b2) } else { (b1, b2, b3) };
        out.extend_from_slice(&if self.format.big_endian {
            [high, middle, low]
        } else {
            [low, middle, high]
        });
    }

    /// Bytes of a CPIXEL.
    pub fn compact_len(&self) -> usize {
        if self.compact == Compact::No { usize::from(self.format.bits / 8) } else { 3 }
    }

    /// Writes a TPIXEL, as Tight has it.
    pub fn put_tight(&self, rgb: u32, out: &mut Vec<u8>) {
        if !self.tight {
            return self.put(rgb, out);
        }
        let [_, r, g, b] = rgb.to_be_bytes();
        out.extend_from_slice(&[r, g, b]);
    }

    /// The message SetColourMapEntries, for a viewer that wants a colour map.
    pub fn colour_map() -> Vec<u8> {
        let mut message = vec![1, 0, 0, 0, 1, 0];
        for entry in 0..256_u32 {
            for (max, shift) in MAP_MAX.iter().zip(MAP_SHIFT) {
                let max = u32::from(*max);
                let value = ((entry >> shift) & max) * 0xffff / max;
                message.extend_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_be_bytes());
            }
        }
        message
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn written(format: PixelFormat, rgb: u32) -> [Vec<u8>; 3] {
        let translator = Translator::new(format);
        let mut out = [Vec::new(), Vec::new(), Vec::new()];
        translator.put(rgb, &mut out[0]);
        translator.put_compact(rgb, &mut out[1]);
        translator.put_tight(rgb, &mut out[2]);
        assert_eq!(out[1].len(), translator.compact_len());
        out
    }

    #[test]
    fn pixels_of_all_kinds() {
        let rgb565 = PixelFormat { bits: 16, depth: 16, max: [31, 63, 31], shift: [11, 5, 0], ..NATIVE };
        let bgr233 = PixelFormat { bits: 8, depth: 8, max: [7, 7, 3], shift: [0, 3, 6], ..NATIVE };
        let big = PixelFormat { big_endian: true, ..NATIVE };
        let high = PixelFormat { shift: [24, 16, 8], ..NATIVE };
        let ten = PixelFormat { depth: 30, max: [1023; 3], shift: [20, 10, 0], ..NATIVE };
        let table: [(PixelFormat, u32, [&[u8]; 3]); 8] = [
            (NATIVE, 0xff12_3456, [&[0x56, 0x34, 0x12, 0], &[0x56, 0x34, 0x12], &[0x12, 0x34, 0x56]]),
            (big, 0x12_3456, [&[0, 0x12, 0x34, 0x56], &[0x12, 0x34, 0x56], &[0x12, 0x34, 0x56]]),
            (high, 0x12_3456, [&[0, 0x56, 0x34, 0x12], &[0x56, 0x34, 0x12], &[0x12, 0x34, 0x56]]),
            (
                PixelFormat { big_endian: true, ..high },
                0x12_3456,
                [&[0x12, 0x34, 0x56, 0], &[0x12, 0x34, 0x56], &[0x12, 0x34, 0x56]],
            ),
            (rgb565, 0xff_0080, [&[0x10, 0xf8], &[0x10, 0xf8], &[0x10, 0xf8]]),
            (
                PixelFormat { big_endian: true, ..rgb565 },
                0xff_0080,
                [&[0xf8, 0x10], &[0xf8, 0x10], &[0xf8, 0x10]],
            ),
            (bgr233, 0xff_00ff, [&[0b1100_0111], &[0b1100_0111], &[0b1100_0111]]),
            (ten, 0xff_0000, [&[0, 0, 0xf0, 0x3f], &[0, 0, 0xf0, 0x3f], &[0, 0, 0xf0, 0x3f]]),
        ];
        for (format, rgb, expected) in table {
            assert_eq!(written(format, rgb), expected.map(<[u8]>::to_vec), "{format:?}");
        }
    }

    #[test]
    fn formats_go_there_and_back_and_wrong_ones_are_none() {
        assert_eq!(PixelFormat::parse(&NATIVE.emit()), Some(NATIVE));
        let wrong = [
            PixelFormat { bits: 24, ..NATIVE },
            PixelFormat { bits: 0, depth: 0, ..NATIVE },
            PixelFormat { depth: 33, ..NATIVE },
            PixelFormat { depth: 0, ..NATIVE },
            PixelFormat { shift: [25, 8, 0], ..NATIVE },
            PixelFormat { shift: [255, 8, 0], ..NATIVE },
            PixelFormat { max: [0, 255, 255], ..NATIVE },
            PixelFormat { max: [254, 255, 255], ..NATIVE },
            PixelFormat { max: [0xffff; 3], shift: [17, 0, 0], ..NATIVE },
            PixelFormat { bits: 8, depth: 8, ..NATIVE },
        ];
        for format in wrong {
            assert_eq!(PixelFormat::parse(&format.emit()), None, "{format:?}");
        }
    }

    #[test]
    fn a_colour_map_is_made_up() {
        let mapped =
            PixelFormat { bits: 8, depth: 8, true_colour: false, max: [0; 3], shift: [99; 3], ..NATIVE };
        let mapped = PixelFormat::parse(&mapped.emit()).unwrap();
        let index = usize::from(written(mapped, 0xff_8000)[0][0]);
        let map = Translator::colour_map();
        assert_eq!(map.len(), 6 + 256 * 6);
        assert_eq!(map[6 + index * 6..][..6], [0xff, 0xff, 0x92, 0x48, 0, 0]);
    }
}
