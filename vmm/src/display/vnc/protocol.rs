//! The messages of the RFB protocol (RFC 6143, and the community's rfbproto for what came later): those of a viewer
//! from bytes, and the parts of ours into bytes.

use super::pixel::PixelFormat;
use crate::display::Area;

/// What we say first. The viewer answers with its own version, which is lower or the same.
pub const VERSION: &[u8; 12] = b"RFB 003.008\n";

/// Encodings that a viewer may name. Real ones name some dozens.
const ENCODINGS_MAX: u16 = 1024;
/// Bytes of text that a viewer may have cut; it is skipped.
const CUT_TEXT_MAX: u32 = 1 << 20;

/// A version of the protocol; others are treated as one of these (RFC 6143, section 7.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The server chooses the security type.
    V3_3,
    /// The viewer chooses it.
    V3_7,
    /// And hears why it is refused.
    V3_8,
}

impl Version {
    /// Parses `RFB xxx.yyy` and a line feed.
    pub fn parse(text: &[u8; 12]) -> Option<Version> {
        let text = std::str::from_utf8(text).ok()?.strip_prefix("RFB ")?.strip_suffix('\n')?;
        let (major, minor) = text.split_once('.')?;
        let number = |text: &str| {
            let digits = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<u16>().ok()).flatten()
        };
        match (number(major)?, number(minor)?) {
            (0..3, _) => None,
            (3, 0..7) => Some(Version::V3_3),
            (3, 7) => Some(Version::V3_7),
            _ => Some(Version::V3_8),
        }
    }
}

/// How pixels are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// Raw in a zlib stream.
    Zlib,
    /// With palettes, in zlib streams.
    Tight,
    /// With palettes and runs, in a zlib stream.
    Zrle,
}

impl Encoding {
    /// Its number in the protocol.
    pub fn number(self) -> i32 {
        match self {
            Encoding::Raw => 0,
            Encoding::Zlib => 6,
            Encoding::Tight => 7,
            Encoding::Zrle => 16,
        }
    }

    fn from_number(number: i32) -> Option<Encoding> {
        [Encoding::Raw, Encoding::Zlib, Encoding::Tight, Encoding::Zrle]
            .into_iter()
            .find(|e| e.number() == number)
    }
}

/// Numbers of pseudo-encodings.
pub mod pseudo {
    /// The size of the picture has changed.
    pub const DESKTOP_SIZE: i32 = -223;
    /// The update ends here.
    pub const LAST_RECT: i32 = -224;
    /// The shape of the pointer, drawn by the viewer.
    pub const CURSOR: i32 = -239;
    /// Positions of the pointer are absolute or relative.
    pub const POINTER_TYPE: i32 = -257;
    /// Keys may come with their scan codes.
    pub const EXTENDED_KEY: i32 = -258;
    /// The lights of the keyboard.
    pub const LED_STATE: i32 = -261;
    /// The size of the picture, with screens, and requests to change it.
    pub const EXTENDED_DESKTOP_SIZE: i32 = -308;
}

/// What a viewer can do besides showing pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called as in `pseudo`")]
pub struct Features {
    pub desktop_size: bool,
    pub extended_desktop_size: bool,
    pub last_rect: bool,
    pub cursor: bool,
    pub pointer_type: bool,
    pub extended_key: bool,
    pub led_state: bool,
}

/// What a viewer says with SetEncodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encodings {
    /// The first of its encodings that we have.
    pub encoding: Encoding,
    /// The level of compression, 0 to 9.
    pub level: Option<u32>,
    /// The rest.
    pub features: Features,
}

impl Encodings {
    /// From the list, the best first.
    fn from_list(list: impl Iterator<Item = i32>) -> Encodings {
        let (mut encoding, mut level, mut features) = (None, None, Features::default());
        for number in list {
            match number {
                pseudo::DESKTOP_SIZE => features.desktop_size = true,
                pseudo::EXTENDED_DESKTOP_SIZE => features.extended_desktop_size = true,
                pseudo::LAST_RECT => features.last_rect = true,
                pseudo::CURSOR => features.cursor = true,
                pseudo::POINTER_TYPE => features.pointer_type = true,
                pseudo::EXTENDED_KEY => features.extended_key = true,
                pseudo::LED_STATE => features.led_state = true,
                -256..=-247 => level = level.or(u32::try_from(number + 256).ok()),
                _ => encoding = encoding.or(Encoding::from_number(number)),
            }
        }
        Encodings { encoding: encoding.unwrap_or(Encoding::Raw), level, features }
    }
}

/// A message of a viewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are called as in the specification")]
pub enum Message {
    /// SetPixelFormat.
    PixelFormat(PixelFormat),
    /// SetEncodings.
    Encodings(Encodings),
    /// FramebufferUpdateRequest.
    UpdateRequest { incremental: bool, area: Area },
    /// KeyEvent.
    Key { down: bool, keysym: u32 },
    /// PointerEvent.
    Pointer { buttons: u8, x: u16, y: u16 },
    /// ClientCutText, whose text follows: so many bytes.
    CutText(usize),
    /// SetDesktopSize.
    SetDesktopSize,
    /// QEMU's extended key event: a scan code besides the symbol.
    ExtendedKey { down: bool, keysym: u32, code: u32 },
}

/// Why a connection ends. One sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not the protocol.
    #[error("it does not speak RFB")]
    Version,
    /// A security type that was not offered.
    #[error("it chose security type {0}, which was not offered")]
    Security(u8),
    /// The password is wrong.
    #[error("its password is wrong")]
    Password,
    /// Another viewer is alone.
    #[error("another viewer does not share the screen")]
    NotShared,
    /// There are too many.
    #[error("there are too many viewers")]
    TooMany,
    /// A message that there is not.
    #[error("it sent a message of unknown type {0}")]
    Message(u8),
    /// A message with values that cannot be.
    #[error("it sent a wrong {0}")]
    Wrong(&'static str),
}

/// Big-endian numbers from the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }
}

/// Takes the first message out of `bytes`: the message and its length. `None`: more bytes are needed, 4 KiB at most.
///
/// # Errors
/// This is no message, and nobody knows where the next one begins.
pub fn parse(bytes: &[u8]) -> Result<Option<(Message, usize)>, Refusal> {
    let mut reader = Reader(bytes);
    let message = parse_message(&mut reader)?;
    Ok(message.map(|message| (message, bytes.len() - reader.0.len())))
}

fn parse_message(reader: &mut Reader) -> Result<Option<Message>, Refusal> {
    let Some(kind) = reader.u8() else { return Ok(None) };
    Ok(match kind {
        0 => match (reader.take::<3>(), reader.take()) {
            (Some(_), Some(format)) => {
                let format = PixelFormat::parse(&format).ok_or(Refusal::Wrong("pixel format"))?;
                Some(Message::PixelFormat(format))
            }
            _ => None,
        },
        2 => {
            let (Some(_), Some(count)) = (reader.u8(), reader.u16()) else { return Ok(None) };
            if count > ENCODINGS_MAX {
                return Err(Refusal::Wrong("number of encodings"));
            }
            let Some((list, rest)) = reader.0.split_at_checked(usize::from(count) * 4) else {
                return Ok(None);
            };
            reader.0 = rest;
            let (numbers, _) = list.as_chunks();
            Some(Message::Encodings(Encodings::from_list(
                numbers.iter().map(|number| i32::from_be_bytes(*number)),
            )))
        }
        3 => update_request(reader),
        4 => key(reader),
        5 => pointer(reader),
        6 => {
            let (Some(_), Some(len)) = (reader.take::<3>(), reader.u32()) else { return Ok(None) };
            // Negative for a form of it that we do not offer; its length all the same.
            let len = len.min(len.wrapping_neg());
            if len > CUT_TEXT_MAX {
                return Err(Refusal::Wrong("length of cut text"));
            }
            Some(Message::CutText(usize::try_from(len).unwrap_or_default()))
        }
        251 => {
            let (Some(_), Some(screens)) = (reader.take::<5>(), reader.u8()) else { return Ok(None) };
            let Some((_, rest)) = reader.0.split_at_checked(1 + usize::from(screens) * 16) else {
                return Ok(None);
            };
            reader.0 = rest;
            Some(Message::SetDesktopSize)
        }
        255 => match reader.u8() {
            None => None,
            Some(0) => extended_key(reader),
            Some(_) => return Err(Refusal::Message(255)),
        },
        other => return Err(Refusal::Message(other)),
    })
}

fn update_request(reader: &mut Reader) -> Option<Message> {
    let incremental = reader.u8()? != 0;
    let mut side = || reader.u16().map(usize::from);
    let area = Area { x: side()?, y: side()?, width: side()?, height: side()? };
    Some(Message::UpdateRequest { incremental, area })
}

fn key(reader: &mut Reader) -> Option<Message> {
    let down = reader.u8()? != 0;
    reader.u16()?;
    Some(Message::Key { down, keysym: reader.u32()? })
}

fn pointer(reader: &mut Reader) -> Option<Message> {
    Some(Message::Pointer { buttons: reader.u8()?, x: reader.u16()?, y: reader.u16()? })
}

fn extended_key(reader: &mut Reader) -> Option<Message> {
    let down = reader.u16()? != 0;
    Some(Message::ExtendedKey { down, keysym: reader.u32()?, code: reader.u32()? })
}

/// Adds the head of a rectangle. Sides beyond 16 bits are cut; no picture has them.
pub(super) fn put_rectangle(area: Area, encoding: i32, out: &mut Vec<u8>) {
    for side in [area.x, area.y, area.width, area.height] {
        out.extend_from_slice(&u16::try_from(side).unwrap_or(u16::MAX).to_be_bytes());
    }
    out.extend_from_slice(&encoding.to_be_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions() {
        for (text, version) in [
            (b"RFB 003.003\n", Some(Version::V3_3)),
            (b"RFB 003.005\n", Some(Version::V3_3)),
            (b"RFB 003.007\n", Some(Version::V3_7)),
            (b"RFB 003.008\n", Some(Version::V3_8)),
            (b"RFB 003.889\n", Some(Version::V3_8)),
            (b"RFB 005.000\n", Some(Version::V3_8)),
            (b"RFB 002.008\n", None),
            (b"RFB 003.+08\n", None),
            (b"RFB 3.8     ", None),
            (b"GET / HTTP/1", None),
        ] {
            assert_eq!(Version::parse(text), version, "{text:?}");
        }
    }

    /// One of each message.
    fn samples() -> Vec<(Vec<u8>, Message)> {
        let mut format = vec![0, 0, 0, 0];
        format.extend(super::super::pixel::NATIVE.emit());
        let mut encodings = vec![2, 0, 0, 4];
        for number in [99, 16, 7, -308] {
            encodings.extend(i32::to_be_bytes(number));
        }
        let features = Features { extended_desktop_size: true, ..Features::default() };
        let encoding = Encodings { encoding: Encoding::Zrle, level: None, features };
        let area = Area { x: 1, y: 2, width: 3, height: 0x405 };
        let mut size = vec![251, 0, 1, 0, 1, 0, 2, 0];
        size.extend([0; 32]);
        vec![
            (format, Message::PixelFormat(super::super::pixel::NATIVE)),
            (encodings, Message::Encodings(encoding)),
            (vec![3, 1, 0, 1, 0, 2, 0, 3, 4, 5], Message::UpdateRequest { incremental: true, area }),
            (vec![4, 1, 0, 0, 0, 0, 0xff, 0x0d], Message::Key { down: true, keysym: 0xff0d }),
            (vec![5, 3, 1, 2, 3, 4], Message::Pointer { buttons: 3, x: 0x102, y: 0x304 }),
            (vec![6, 0, 0, 0, 0, 0, 1, 0], Message::CutText(256)),
            (vec![6, 0, 0, 0, 0xff, 0xff, 0xff, 0xf0], Message::CutText(16)),
            (size, Message::SetDesktopSize),
            (
                vec![255, 0, 0, 1, 0, 0, 0, 0x61, 0, 0, 0, 0x1e],
                Message::ExtendedKey { down: true, keysym: 0x61, code: 0x1e },
            ),
        ]
    }

    #[test]
    fn each_message_is_understood_and_no_part_of_one() {
        for (mut bytes, message) in samples() {
            for len in 0..bytes.len() {
                assert_eq!(parse(&bytes[..len]), Ok(None), "{message:?}");
            }
            let len = bytes.len();
            bytes.push(4);
            assert_eq!(parse(&bytes), Ok(Some((message, len))));
        }
    }

    #[test]
    fn lies_are_refused_as_soon_as_they_are_seen() {
        for (bytes, refusal) in [
            (vec![2, 0, 4, 1], Refusal::Wrong("number of encodings")),
            (vec![6, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff], Refusal::Wrong("length of cut text")),
            (vec![6, 0, 0, 0, 0x80, 0, 0, 0], Refusal::Wrong("length of cut text")),
            (vec![0; 20], Refusal::Wrong("pixel format")),
            (vec![1], Refusal::Message(1)),
            (vec![255, 1], Refusal::Message(255)),
        ] {
            assert_eq!(parse(&bytes), Err(refusal));
        }
    }

    #[test]
    fn the_first_known_encoding_and_level_count() {
        let encodings = Encodings::from_list([5, 7, 16, -250, -256, pseudo::CURSOR].into_iter());
        assert_eq!((encodings.encoding, encodings.level), (Encoding::Tight, Some(6)));
        assert!(encodings.features.cursor && !encodings.features.led_state);
        assert_eq!(Encodings::from_list([1, 2].into_iter()).encoding, Encoding::Raw);
    }
}
