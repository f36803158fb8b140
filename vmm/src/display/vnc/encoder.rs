//! From a part of the picture to a rectangle of an update.

use devices::display::Frame;

use super::deflate::Deflater;
use super::pixel::{NATIVE, PixelFormat, Translator};
use super::protocol::{Encoding, put_rectangle};
use super::tight::{self, Tight};
use super::zrle;
use crate::display::Area;

/// The level of compression for viewers that name none.
const LEVEL: u32 = 3;
/// Rows of a rectangle: it is encoded in one go, and takes memory meanwhile.
const ROWS: usize = 64;

/// What is known of a viewer's pixels. The streams of the encodings go on as long as the connection does.
#[derive(Debug)]
pub(super) struct Encoder {
    to: Translator,
    encoding: Encoding,
    level: u32,
    tight: Tight,
    zrle: Option<Deflater>,
    zlib: Option<Deflater>,
    pixels: Vec<u32>,
    plain: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Encoder {
        Encoder {
            to: Translator::new(NATIVE),
            encoding: Encoding::Raw,
            level: LEVEL,
            tight: Tight::default(),
            zrle: None,
            zlib: None,
            pixels: Vec::new(),
            plain: Vec::new(),
        }
    }

    pub(super) fn set_format(&mut self, format: PixelFormat) {
        self.to = Translator::new(format);
    }

    /// The streams of ZRLE and Zlib keep the level that they began with.
    pub(super) fn set_encoding(&mut self, encoding: Encoding, level: Option<u32>) {
        self.encoding = encoding;
        let level = level.unwrap_or(LEVEL);
        if self.level != level {
            self.level = level;
            self.tight.reset();
        }
    }

    /// Cuts an area into the rectangles that are sent, each by one call of [`Encoder::encode`].
    pub(super) fn rectangles(&self, area: Area) -> impl Iterator<Item = Area> + use<> {
        let rows = if self.encoding == Encoding::Tight { ROWS / 2 } else { ROWS };
        area.pieces(tight::WIDTH_MAX, rows)
    }

    /// Adds a rectangle. What is not in the picture is black.
    pub(super) fn encode(&mut self, frame: &Frame, area: Area, out: &mut Vec<u8>) {
        cut(frame, area, &mut self.pixels);
        put_rectangle(area, self.encoding.number(), out);
        self.plain.clear();
        match self.encoding {
            Encoding::Raw => self.pixels.iter().for_each(|pixel| self.to.put(*pixel, out)),
            Encoding::Tight => self.tight.encode(&self.pixels, area.width, &self.to, self.level, out),
            Encoding::Zrle => {
                zrle::encode(&self.pixels, area.width, &self.to, &mut self.plain);
                compress(&mut self.zrle, self.level, &self.plain, out);
            }
            Encoding::Zlib => {
                self.pixels.iter().for_each(|pixel| self.to.put(*pixel, &mut self.plain));
                compress(&mut self.zlib, self.level, &self.plain, out);
            }
        }
    }
}

/// A length of 32 bits, and so many bytes of the stream.
fn compress(stream: &mut Option<Deflater>, level: u32, plain: &[u8], out: &mut Vec<u8>) {
    let mut packed = Vec::new();
    stream.get_or_insert_with(|| Deflater::new(level)).deflate(plain, &mut packed);
    out.extend_from_slice(&u32::try_from(packed.len()).unwrap_or_default().to_be_bytes());
    out.append(&mut packed);
}

/// The pixels of an area, row by row.
fn cut(frame: &Frame, area: Area, pixels: &mut Vec<u32>) {
    pixels.clear();
    let inside = area.and(Area::whole(frame.width, frame.height));
    for y in area.y..area.y + area.height {
        let end = pixels.len() + area.width;
        if area.x == inside.x && y < inside.y + inside.height {
            let start = y * frame.width + area.x;
            pixels.extend_from_slice(frame.pixels.get(start..start + inside.width).unwrap_or_default());
        }
        pixels.resize(end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outside_of_the_picture_is_black() {
        let frame = Frame { width: 3, height: 2, pixels: vec![1, 2, 3, 4, 5, 6] };
        let mut pixels = vec![9];
        cut(&frame, Area { x: 1, y: 0, width: 4, height: 3 }, &mut pixels);
        assert_eq!(pixels, [2, 3, 0, 0, 5, 6, 0, 0, 0, 0, 0, 0]);
        cut(&frame, Area { x: 3, y: 0, width: 1, height: 1 }, &mut pixels);
        assert_eq!(pixels, [0]);
        cut(&frame, Area { x: 0, y: 1, width: 2, height: 1 }, &mut pixels);
        assert_eq!(pixels, [4, 5]);
    }
}
