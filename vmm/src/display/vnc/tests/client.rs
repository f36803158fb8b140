//! A viewer for tests: it speaks to a server through a socket, and draws what it gets. The decoders are written from the
//! specifications, and share nothing with the encoders.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};
use flate2::{Decompress, FlushDecompress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::connection::{self, End};
use super::super::peers::{Peers, Stop};
use super::super::pixel::{NATIVE, PixelFormat};
use super::super::{Password, Session, Setup};
use crate::display::Display;
use crate::display::keys::Keymap;
use crate::display::testing::{Recorder, TestScreen};

/// A server without a listening socket: a thread for each viewer of a test.
pub(super) struct Server {
    pub(super) screen: TestScreen,
    pub(super) sink: Arc<Recorder>,
    pub(super) peers: Arc<Peers>,
    setup: Arc<Setup>,
}

impl Server {
    pub(super) fn new(width: usize, height: usize) -> Server {
        Server::with_password(width, height, None)
    }

    pub(super) fn with_password(width: usize, height: usize, password: Option<&str>) -> Server {
        let (screen, sink, display) = (TestScreen::new(width, height), Recorder::new(), Display::new());
        display.connect(Box::new(screen.clone()), Arc::clone(&sink) as _);
        let setup = Arc::new(Setup {
            display: Arc::clone(&display),
            password: password.map(|password| Password::new(password).unwrap()),
            keymap: Arc::new(Keymap::named("us").unwrap()),
            name: "web".into(),
        });
        Server { screen, sink, peers: Arc::default(), setup }
    }

    /// A connection, and the thread that serves it.
    pub(super) fn connect(&self) -> (UnixStream, JoinHandle<End>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let stop = Stop::new(Arc::clone(&wake));
        let id = self.peers.add(stop.clone());
        let (setup, peers) = (Arc::clone(&self.setup), Arc::clone(&self.peers));
        let thread = std::thread::spawn(move || {
            let session =
                Session::new(setup, Arc::clone(&peers), id, *b"not that random!", Arc::clone(&wake));
            let end = connection::serve(Box::new(theirs), session, &stop, &wake, |_| ());
            peers.remove(id);
            end
        });
        (ours, thread)
    }

    /// A viewer that shares, with these encodings.
    pub(super) fn viewer(&self, encodings: &[i32]) -> Client {
        let (stream, thread) = self.connect();
        let mut client = Client::new(stream, thread);
        client.handshake(8, None);
        client.init(true);
        client.set_encodings(encodings);
        client
    }
}

/// What of an update had no pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Note {
    Size(usize, usize),
    ExtendedSize { reason: usize, result: usize, width: usize, height: usize },
    Cursor,
    ExtendedKey,
    Pointer { absolute: bool },
    Leds(u8),
    LastRect,
}

pub(super) struct Client {
    pub(super) stream: UnixStream,
    thread: Option<JoinHandle<End>>,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) name: String,
    pub(super) format: PixelFormat,
    /// As the viewer's own pixel values.
    pub(super) pixels: Vec<u32>,
    pub(super) colour_map: Vec<[u16; 3]>,
    /// Pixels that were drawn, however often.
    pub(super) drawn: usize,
    tight: [Option<Decompress>; 4],
    zrle: Decompress,
    zlib: Decompress,
}

impl Client {
    pub(super) fn new(stream: UnixStream, thread: JoinHandle<End>) -> Client {
        Client {
            stream,
            thread: Some(thread),
            width: 0,
            height: 0,
            name: String::new(),
            format: NATIVE,
            pixels: Vec::new(),
            colour_map: Vec::new(),
            drawn: 0,
            tight: [const { None }; 4],
            zrle: Decompress::new(true),
            zlib: Decompress::new(true),
        }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn u8(&mut self) -> u8 {
        self.bytes(1)[0]
    }

    pub(super) fn u16(&mut self) -> usize {
        u16::from_be_bytes(self.bytes(2).try_into().unwrap()).into()
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).try_into().unwrap())
    }

    /// Nothing more comes: the server has closed.
    pub(super) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).map_or(true, |len| len == 0)
    }

    /// How the server's thread ended.
    pub(super) fn end(mut self) -> End {
        drop(std::mem::replace(&mut self.stream, UnixStream::pair().unwrap().0));
        self.thread.take().unwrap().join().unwrap()
    }

    /// Up to and without ClientInit; the result of authentication, where there is one.
    pub(super) fn handshake(&mut self, minor: u8, password: Option<&str>) -> u32 {
        assert_eq!(self.bytes(12), b"RFB 003.008\n");
        self.send(format!("RFB 003.00{minor}\n").as_bytes());
        let kind = if minor == 3 {
            self.u32()
        } else {
            let count = self.u8();
            let kinds = self.bytes(count.into());
            assert_eq!(kinds.len(), 1);
            self.send(&kinds);
            kinds[0].into()
        };
        match (kind, password) {
            (1, None) if minor < 8 => 0,
            (1, None) => self.u32(),
            (2, Some(password)) => {
                let mut key = [0; 8];
                key[..password.len()].copy_from_slice(password.as_bytes());
                let cipher = Des::new(&key.map(u8::reverse_bits).into());
                let mut answer = self.bytes(16);
                for block in answer.chunks_mut(8) {
                    let block: &mut [u8; 8] = block.try_into().unwrap();
                    cipher.encrypt_block(block.into());
                }
                self.send(&answer);
                self.u32()
            }
            other => panic!("{other:?}"),
        }
    }

    /// ClientInit and ServerInit.
    pub(super) fn init(&mut self, shared: bool) {
        self.send(&[shared.into()]);
        (self.width, self.height) = (self.u16(), self.u16());
        self.format = PixelFormat::parse(&self.bytes(16).try_into().unwrap()).unwrap();
        let len = self.u32();
        self.name = String::from_utf8(self.bytes(len as usize)).unwrap();
        self.pixels = vec![0x5555_5555; self.width * self.height];
    }

    pub(super) fn set_encodings(&mut self, encodings: &[i32]) {
        let mut message = vec![2, 0];
        message.extend(u16::try_from(encodings.len()).unwrap().to_be_bytes());
        encodings.iter().for_each(|encoding| message.extend(encoding.to_be_bytes()));
        self.send(&message);
    }

    pub(super) fn set_format(&mut self, format: PixelFormat) {
        let mut message = vec![0; 4];
        message.extend(format.emit());
        self.send(&message);
        self.format = format;
    }

    pub(super) fn request_area(&mut self, incremental: bool, area: [usize; 4]) {
        let mut message = vec![3, incremental.into()];
        area.iter().for_each(|side| message.extend(u16::try_from(*side).unwrap().to_be_bytes()));
        self.send(&message);
    }

    pub(super) fn request(&mut self, incremental: bool) {
        self.request_area(incremental, [0, 0, self.width, self.height]);
    }

    pub(super) fn key(&mut self, keysym: u32, down: bool) {
        let mut message = vec![4, down.into(), 0, 0];
        message.extend(keysym.to_be_bytes());
        self.send(&message);
    }

    /// Asks for changes until the picture is this one.
    pub(super) fn until(&mut self, expected: &[u32]) {
        while self.pixels != expected {
            self.request(true);
            self.update();
        }
    }

    /// Asks for all, and draws it.
    pub(super) fn full(&mut self) -> Vec<Note> {
        self.request(false);
        self.update()
    }

    /// Draws the next update.
    pub(super) fn update(&mut self) -> Vec<Note> {
        loop {
            match self.u8() {
                0 => break,
                1 => {
                    assert_eq!(self.bytes(3), [0, 0, 0]);
                    let count = self.u16();
                    self.colour_map =
                        (0..count).map(|_| [(); 3].map(|()| u16::try_from(self.u16()).unwrap())).collect();
                }
                other => panic!("message {other}"),
            }
        }
        self.u8();
        let count = self.u16();
        let mut notes = Vec::new();
        for _ in 0..count {
            if let Some(note) = self.rectangle() {
                let last = note == Note::LastRect;
                notes.push(note);
                if last {
                    break;
                }
            }
        }
        notes
    }

    fn rectangle(&mut self) -> Option<Note> {
        let [x, y, width, height] = [(); 4].map(|()| self.u16());
        let encoding = i32::from_be_bytes(self.bytes(4).try_into().unwrap());
        let note = match encoding {
            -224 => Note::LastRect,
            -239 => {
                assert_eq!((width, height), (0, 0));
                Note::Cursor
            }
            -258 => Note::ExtendedKey,
            -257 => Note::Pointer { absolute: x == 1 },
            -261 => Note::Leds(self.u8()),
            -223 => {
                self.resize(width, height);
                Note::Size(width, height)
            }
            -308 => {
                assert_eq!(self.bytes(4), [1, 0, 0, 0]);
                self.bytes(8);
                assert_eq!((self.u16(), self.u16()), (width, height));
                self.bytes(4);
                self.resize(width, height);
                Note::ExtendedSize { reason: x, result: y, width, height }
            }
            _ => {
                let values = self.decode(encoding, width, height);
                assert_eq!(values.len(), width * height);
                assert!(x + width <= self.width && y + height <= self.height, "{x} {y} {width} {height}");
                for (row, values) in values.chunks(width).enumerate() {
                    let start = (y + row) * self.width + x;
                    self.pixels[start..start + width].copy_from_slice(values);
                }
                self.drawn += values.len();
                return None;
            }
        };
        Some(note)
    }

    fn resize(&mut self, width: usize, height: usize) {
        if (self.width, self.height) != (width, height) {
            (self.width, self.height) = (width, height);
            self.pixels = vec![0x5555_5555; width * height];
        }
    }

    fn decode(&mut self, encoding: i32, width: usize, height: usize) -> Vec<u32> {
        let format = self.format;
        let size = usize::from(format.bits / 8);
        match encoding {
            0 => self.bytes(width * height * size).chunks(size).map(|bytes| pixel(&format, bytes)).collect(),
            6 => {
                let len = self.u32() as usize;
                let packed = self.bytes(len);
                let plain = inflate(&mut self.zlib, &packed, width * height * size);
                assert_eq!(plain.len(), width * height * size);
                plain.chunks(size).map(|bytes| pixel(&format, bytes)).collect()
            }
            7 => self.tight(width, height),
            16 => {
                let len = self.u32() as usize;
                let packed = self.bytes(len);
                let plain = inflate(&mut self.zrle, &packed, width * height * 5 + 4096);
                zrle(&format, &plain, width, height)
            }
            other => panic!("encoding {other}"),
        }
    }

    fn tight(&mut self, width: usize, height: usize) -> Vec<u32> {
        assert!(width <= 2048);
        let format = self.format;
        let true_24 = format.true_colour && (format.bits, format.depth, format.max) == (32, 24, [255; 3]);
        let size = if true_24 { 3 } else { usize::from(format.bits / 8) };
        let colour = |bytes: &[u8]| match bytes {
            [r, g, b] => {
                let parts = [r, g, b].into_iter().zip(format.shift);
                parts.map(|(part, shift)| u32::from(*part) << shift).sum()
            }
            bytes => pixel(&format, bytes),
        };
        let control = self.u8();
        for stream in 0..4 {
            if control & (1 << stream) != 0 {
                self.tight[stream] = None;
            }
        }
        if control >> 4 == 8 {
            let bytes = self.bytes(size);
            return vec![colour(&bytes); width * height];
        }
        assert!(control < 0x80, "{control:x}");
        let filter = if control & 0x40 != 0 { self.u8() } else { 0 };
        let palette: Vec<u32> = if filter == 1 {
            let count = usize::from(self.u8()) + 1;
            self.bytes(count * size).chunks(size).map(colour).collect()
        } else {
            assert_eq!(filter, 0);
            Vec::new()
        };
        let len = match palette.len() {
            0 => width * height * size,
            2 => width.div_ceil(8) * height,
            _ => width * height,
        };
        let plain = if len < 12 {
            self.bytes(len)
        } else {
            let mut packed_len = 0;
            for at in 0..3 {
                let byte = usize::from(self.u8());
                packed_len |= (if at < 2 { byte & 0x7f } else { byte }) << (7 * at);
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let packed = self.bytes(packed_len);
            let stream =
                self.tight[usize::from(control >> 4 & 3)].get_or_insert_with(|| Decompress::new(true));
            inflate(stream, &packed, len)
        };
        assert_eq!(plain.len(), len);
        match palette.len() {
            0 => plain.chunks(size).map(colour).collect(),
            2 => plain
                .chunks(width.div_ceil(8))
                .flat_map(|row| {
                    (0..width)
                        .map(|x| palette[usize::from(row[x / 8] >> (7 - x % 8) & 1)])
                        .collect::<Vec<_>>()
                })
                .collect(),
            _ => plain.iter().map(|index| palette[usize::from(*index)]).collect(),
        }
    }
}

fn inflate(stream: &mut Decompress, packed: &[u8], room: usize) -> Vec<u8> {
    let mut plain = Vec::with_capacity(room + 64);
    stream.decompress_vec(packed, &mut plain, FlushDecompress::Sync).unwrap();
    plain
}

/// A pixel as it is on the wire.
fn pixel(format: &PixelFormat, bytes: &[u8]) -> u32 {
    let fold = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
    if format.big_endian { bytes.iter().fold(0, fold) } else { bytes.iter().rev().fold(0, fold) }
}

fn zrle(format: &PixelFormat, plain: &[u8], width: usize, height: usize) -> Vec<u32> {
    let mask = (0..3).fold(0_u32, |mask, c| mask | u32::from(format.max[c]) << format.shift[c]);
    let wide = format.true_colour && format.bits == 32 && format.depth <= 24;
    let (size, low) = match mask {
        mask if wide && mask >> 24 == 0 => (3, true),
        mask if wide && mask & 0xff == 0 => (3, false),
        _ => (usize::from(format.bits / 8), true),
    };
    let mut at = 0;
    let mut next = |len: usize| {
        at += len;
        &plain[at - len..at]
    };
    let colour = |bytes: &[u8]| pixel(format, bytes) << if low { 0 } else { 8 };
    let mut pixels = vec![0; width * height];
    for top in (0..height).step_by(64) {
        for left in (0..width).step_by(64) {
            let (w, h) = (64.min(width - left), 64.min(height - top));
            let kind = usize::from(next(1)[0]);
            let mut tile: Vec<u32> = Vec::new();
            let length = |next: &mut dyn FnMut() -> u8| {
                let mut len = 1;
                loop {
                    let byte = next();
                    len += usize::from(byte);
                    if byte != 255 {
                        return len;
                    }
                }
            };
            match kind {
                0 => (0..w * h).for_each(|_| tile.push(colour(next(size)))),
                1 => tile = vec![colour(next(size)); w * h],
                2..=16 => {
                    let palette: Vec<u32> = (0..kind).map(|_| colour(next(size))).collect();
                    let bits = [1, 2, 4][usize::from(kind > 2) + usize::from(kind > 4)];
                    for _ in 0..h {
                        let row = next((w * bits).div_ceil(8));
                        for x in 0..w {
                            let byte = row[x * bits / 8] >> (8 - bits - x * bits % 8);
                            tile.push(palette[usize::from(byte & ((1 << bits) - 1))]);
                        }
                    }
                }
                128 => {
                    while tile.len() < w * h {
                        let colour = colour(next(size));
                        let len = length(&mut || next(1)[0]);
                        tile.extend(vec![colour; len]);
                    }
                }
                130..=255 => {
                    let palette: Vec<u32> = (0..kind - 128).map(|_| colour(next(size))).collect();
                    while tile.len() < w * h {
                        let index = next(1)[0];
                        let len = if index & 0x80 != 0 { length(&mut || next(1)[0]) } else { 1 };
                        tile.extend(vec![palette[usize::from(index & 0x7f)]; len]);
                    }
                }
                other => panic!("tile {other}"),
            }
            assert_eq!(tile.len(), w * h);
            for (row, tile) in tile.chunks(w).enumerate() {
                let start = (top + row) * width + left;
                pixels[start..start + w].copy_from_slice(tile);
            }
        }
    }
    assert_eq!(at, plain.len());
    pixels
}
