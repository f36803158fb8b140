//! What a PC's screen shows: a program of ours draws, and the screenshot has its pixels.

use std::fs::File;
use std::io::BufReader;

use crate::cases::Bench;
use crate::cases::programs::{NAME, Pc};
use crate::program::Program;
use crate::{Result, check, fail};

/// The colours that the VGA's firmware sets, in the order of their numbers.
const COLOURS: [[u8; 3]; 16] = [
    [0, 0, 0],
    [0, 0, 0xaa],
    [0, 0xaa, 0],
    [0, 0xaa, 0xaa],
    [0xaa, 0, 0],
    [0xaa, 0, 0xaa],
    [0xaa, 0x55, 0],
    [0xaa, 0xaa, 0xaa],
    [0x55, 0x55, 0x55],
    [0x55, 0x55, 0xff],
    [0x55, 0xff, 0x55],
    [0x55, 0xff, 0xff],
    [0xff, 0x55, 0x55],
    [0xff, 0x55, 0xff],
    [0xff, 0xff, 0x55],
    [0xff, 0xff, 0xff],
];

// Ports: sequencer, graphics controller, and the index and data of the Bochs extension.
const SEQUENCER: u16 = 0x3c4;
const GRAPHICS: u16 = 0x3ce;
const DISPI: (u16, u16) = (0x1ce, 0x1cf);
// PCI configuration, and the first base address register of the VGA (device 2).
const PCI: (u16, u16) = (0xcf8, 0xcfc);
const VGA_BAR0: u32 = 0x8000_1010;

/// Memory of text modes, of graphics modes, and of the linear frame buffer where the program puts it.
const TEXT: u32 = 0xb_8000;
const WINDOW: u32 = 0xa_0000;
const FRAME: u32 = 0xf000_0000;

/// A picture: width, and the pixels' red, green and blue, row by row.
#[derive(Debug, PartialEq, Eq)]
struct Picture {
    width: usize,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    fn new(width: usize, height: usize, pixel: impl Fn(usize, usize) -> [u8; 3]) -> Picture {
        let rows = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        Picture { width, pixels: rows.map(|(x, y)| pixel(x, y)).collect() }
    }

    fn of(bench: &Bench) -> Result<Picture> {
        let path = bench.folder.join("screen.png");
        bench.xvmm(&["screenshot", NAME, &path.display().to_string()])?;
        let mut decoder = png::Decoder::new(BufReader::new(File::open(&path)?));
        decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
        let mut reader = decoder.read_info()?;
        let mut bytes = vec![0; reader.output_buffer_size().unwrap_or_default()];
        let info = reader.next_frame(&mut bytes)?;
        check!(info.color_type == png::ColorType::Rgb, "the screenshot has {:?}", info.color_type);
        let pixels = bytes.chunks_exact(3).map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
        Ok(Picture { width: info.width as usize, pixels })
    }
}

/// The number as a port's or a register's.
fn low(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// A mode that the program sets, what it draws there, and what is to be seen.
fn cases() -> [(&'static str, Program, Picture); 4] {
    [text(), planar(), chained(), extension()]
}

/// Text mode 3 with a character of our own, blocks and blanks, and all colours.
fn text() -> (&'static str, Program, Picture) {
    /// Rows of the character 0x80.
    const GLYPH: [u8; 16] =
        [0x81, 0x42, 0x24, 0x18, 0x18, 0x24, 0x42, 0x81, 0xff, 0x80, 0xbf, 0xa1, 0xad, 0xa5, 0xbd, 0x01];
    const CHARACTERS: [u8; 4] = [0x80, 0xdb, 0x20, 0x80];
    let attribute = |row: usize| (row % 16) | (row * 3 % 8) << 4;
    let mut program = Program::default().video([3, 0, 0, 0]).video([0x100, 0, 0x2000, 0]);
    // The character goes to plane 2, which text modes hide.
    for (port, value) in
        [(SEQUENCER, 0x402), (SEQUENCER, 0x704), (GRAPHICS, 0x204), (GRAPHICS, 0x005), (GRAPHICS, 0x406)]
    {
        program = program.out16(port, value);
    }
    for (at, rows) in (0..).step_by(4).zip(GLYPH.as_chunks::<4>().0) {
        program = program.poke(WINDOW + 0x80 * 32 + at, u32::from_le_bytes(*rows), 1);
    }
    for (port, value) in
        [(SEQUENCER, 0x302), (SEQUENCER, 0x304), (GRAPHICS, 0x004), (GRAPHICS, 0x1005), (GRAPHICS, 0xe06)]
    {
        program = program.out16(port, value);
    }
    for row in 0..25 {
        let attribute = u8::try_from(attribute(row)).unwrap_or_default();
        let [one, two] = [row % 2, row % 2 + 2].map(|n| CHARACTERS.get(n).copied().unwrap_or_default());
        let cells = u32::from_le_bytes([one, attribute, two, attribute]);
        program = program.fill(TEXT + u32::try_from(row).unwrap_or_default() * 160, cells, 40);
    }
    let picture = Picture::new(720, 400, |x, y| {
        let (row, column) = (y / 16, x / 9);
        let lit = match CHARACTERS.get(row % 2 + column % 2 * 2) {
            // The ninth column of a character repeats the eighth in 0xc0 to 0xdf only.
            Some(0x80) => x % 9 < 8 && GLYPH.get(y % 16).is_some_and(|bits| bits << (x % 9) & 0x80 != 0),
            Some(0xdb) => true,
            _ => false,
        };
        let attribute = attribute(row);
        COLOURS.get(if lit { attribute & 15 } else { attribute >> 4 }).copied().unwrap_or_default()
    });
    ("text mode 3", program.stop(), picture)
}

/// Mode 12h: a band of each colour by planes; in the last one, half of each byte by set/reset and a bit mask, the rest from
/// the latches.
fn planar() -> (&'static str, Program, Picture) {
    const BAND: u32 = 30;
    let mut program = Program::default().video([0x12, 0, 0, 0]);
    for colour in 0..16 {
        program = program.out16(SEQUENCER, low(colour) << 8 | 2);
        let at = WINDOW + u32::try_from(colour).unwrap_or_default() * BAND * 80;
        program = program.fill(at, u32::MAX, BAND * 80 / 4);
    }
    program = program.out16(SEQUENCER, 0xf02);
    for (register, value) in [(0, 5), (1, 0xf), (8, 0xf0)] {
        program = program.out16(GRAPHICS, value << 8 | register);
    }
    let last = WINDOW + 15 * BAND * 80;
    let program = program.peek(last).fill(last, 0, 10);
    let picture = Picture::new(640, 480, |x, y| {
        let masked = y == 450 && x < 320 && x % 8 < 4;
        COLOURS.get(if masked { 5 } else { y / 30 }).copied().unwrap_or_default()
    });
    ("mode 12h", program.stop(), picture)
}

/// Mode 13h, 320x200 with 256 colours, some of the program's own.
fn chained() -> (&'static str, Program, Picture) {
    // Six bits each.
    let colour = |n: usize| [n % 64, 63 - n % 64, n * 5 % 64];
    let mut program = Program::default().video([0x13, 0, 0, 0]);
    for band in 0..20 {
        let (number, [red, green, blue]) = (100 + band, colour(band * 3));
        program = program.video([0x1010, low(number), low(green << 8 | blue), low(red << 8)]);
        let bytes = u32::try_from(number).unwrap_or_default() * 0x0101_0101;
        program = program.fill(WINDOW + u32::try_from(band).unwrap_or_default() * 3200, bytes, 800);
    }
    let wide = |value: usize| u8::try_from(value << 2 | value >> 4).unwrap_or_default();
    // Each pixel is shown as four.
    let picture = Picture::new(640, 400, |_, y| colour(y / 20 * 3).map(wide));
    ("mode 13h", program.stop(), picture)
}

/// 1024x768 with 32 bits, by the registers of the Bochs extension and the linear frame buffer.
fn extension() -> (&'static str, Program, Picture) {
    let colour = |band: usize| [band * 10, 255 - band * 10, band * 7 % 256];
    let mut program = Program::default().out32(PCI.0, VGA_BAR0).out32(PCI.1, FRAME);
    for (register, value) in [(4, 0), (1, 1024), (2, 768), (3, 32), (4, 0x41)] {
        program = program.out16(DISPI.0, register).out16(DISPI.1, value);
    }
    for band in 0..24 {
        let [red, green, blue] = colour(band);
        let at = FRAME + u32::try_from(band).unwrap_or_default() * 32 * 4096;
        let pixel = u32::try_from(red << 16 | green << 8 | blue).unwrap_or_default();
        program = program.fill(at, pixel, 32 * 1024);
    }
    let byte = |value: usize| u8::try_from(value).unwrap_or_default();
    let picture = Picture::new(1024, 768, |_, y| colour(y / 32).map(byte));
    ("a linear mode", program.stop(), picture)
}

/// Screenshots of modes that a program sets have the pixels that it drew.
pub fn screen(bench: &Bench) -> Result<()> {
    for (mode, program, expected) in cases() {
        let pc = Pc::start(bench, &program, &[])?;
        pc.stopped()?;
        let shown = Picture::of(bench)?;
        if shown != expected {
            let size = |picture: &Picture| (picture.width, picture.pixels.len() / picture.width.max(1));
            check!(size(&shown) == size(&expected), "{mode}: the screen has {:?}", size(&shown));
            let wrong = shown.pixels.iter().zip(&expected.pixels).enumerate().filter(|(_, (a, b))| a != b);
            let (count, first) = (wrong.clone().count(), wrong.clone().next());
            return match first {
                Some((at, (is, wanted))) => fail!(
                    "{mode}: {count} pixels are wrong, the first at {}, {} is {is:x?} in place of {wanted:x?}",
                    at % shown.width,
                    at / shown.width
                ),
                None => fail!("{mode}: the pictures differ in their length"),
            };
        }
        bench.xvmm(&["destroy", NAME])?;
        drop(pc);
        bench.nothing_is_left()?;
    }
    Ok(())
}
