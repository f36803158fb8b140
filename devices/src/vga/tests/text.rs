//! Text modes.

use super::*;

/// A font in which line `scan` of character `c` is `c ^ scan * 17`, at `base` of plane 2.
fn glyph(c: u8, scan: usize) -> u8 {
    c ^ (scan as u8).wrapping_mul(17)
}

fn with_font(mode: &Mode, base: usize) -> Pc {
    let pc = Pc::in_mode(mode);
    for c in 0..=255u8 {
        for scan in 0..32 {
            let at = base + usize::from(c) * 32 + scan;
            let [a, b, _, d] = pc.planes(at);
            pc.put_planes(at, [a, b, glyph(c, scan), d]);
        }
    }
    pc
}

fn put(pc: &Pc, cell: usize, character: u8, attribute: u8) {
    pc.poke(0xb_8000 + 2 * cell as u64, &[character, attribute]);
}

/// What the 16 colours are in the modes with the BIOS's palette registers.
fn text_color(n: u8) -> u32 {
    color(TEXT_80.ac[usize::from(n)])
}

/// The dots of a line of a character.
fn dots(bits: u16, width: usize, fore: u32, back: u32) -> Vec<u32> {
    (0..width).map(|n| if bits >> (8 - n) & 1 != 0 { fore } else { back }).collect()
}

fn no_cursor(pc: &Pc) {
    pc.crtc(0x0a, 0x20);
}

#[test]
fn characters_have_nine_dots_and_two_colours() {
    let mut pc = with_font(&TEXT_80, 0);
    no_cursor(&pc);
    put(&pc, 0, b'A', 0x1e);
    put(&pc, 79, 0xbf, 0x07);
    put(&pc, 80 * 24 + 3, 0xc4, 0x70);
    put(&pc, 80 * 24 + 4, 0xdf, 0x4f);
    put(&pc, 80 * 24 + 5, 0xe0, 0x4f);
    assert_eq!(pc.draw(), (720, 400));
    for scan in 0..16 {
        let bits = |c: u8| u16::from(glyph(c, scan)) << 1;
        let ninth = |c: u8| bits(c) | u16::from(glyph(c, scan) & 1);
        let cell = |pc: &Pc, x: usize, y: usize| pc.row(y * 16 + scan)[x * 9..][..9].to_vec();
        assert_eq!(cell(&pc, 0, 0), dots(bits(b'A'), 9, text_color(14), text_color(1)));
        assert_eq!(cell(&pc, 79, 0), dots(bits(0xbf), 9, text_color(7), text_color(0)));
        // The line characters 0xc0 to 0xdf go on to the next cell.
        assert_eq!(cell(&pc, 3, 24), dots(ninth(0xc4), 9, text_color(0), text_color(7)));
        assert_eq!(cell(&pc, 4, 24), dots(ninth(0xdf), 9, text_color(15), text_color(4)));
        assert_eq!(cell(&pc, 5, 24), dots(bits(0xe0), 9, text_color(15), text_color(4)));
        assert_eq!(cell(&pc, 1, 0), dots(bits(0), 9, text_color(0), text_color(0)));
    }
    pc.attribute(0x10, 0x08);
    pc.draw();
    assert_eq!(pc.pixel(3 * 9 + 8, 24 * 16 + 1), text_color(7), "no line graphics");
}

#[test]
fn characters_of_eight_dots_and_forty_columns() {
    let mut pc = with_font(&TEXT_80, 0);
    no_cursor(&pc);
    put(&pc, 79, 0x5a, 0x2f);
    pc.seq(1, 1);
    assert_eq!(pc.draw(), (640, 400));
    let line = dots(u16::from(glyph(0x5a, 5)) << 1, 8, text_color(15), text_color(2));
    assert_eq!(&pc.row(5)[632..], line);

    let mut pc = with_font(&TEXT_40, 0);
    no_cursor(&pc);
    put(&pc, 39, 0x5a, 0x2f);
    put(&pc, 40, 0x5b, 0x2f);
    assert_eq!(pc.draw(), (720, 400));
    let twice = |c: u8, scan: usize| -> Vec<u32> {
        let line = dots(u16::from(glyph(c, scan)) << 1, 9, text_color(15), text_color(2));
        line.into_iter().flat_map(|dot| [dot, dot]).collect()
    };
    assert_eq!(&pc.row(5)[702..], twice(0x5a, 5));
    assert_eq!(&pc.row(21)[..18], twice(0x5b, 5), "the second row begins with cell 40");
}

#[test]
fn more_rows_with_a_font_of_eight_lines() {
    let mut pc = with_font(&TEXT_80, 0);
    no_cursor(&pc);
    pc.crtc(9, 0x47);
    put(&pc, 80 * 49, 0x5a, 0x2f);
    assert_eq!(pc.draw(), (720, 400));
    assert_eq!(pc.row(399)[..9], dots(u16::from(glyph(0x5a, 7)) << 1, 9, text_color(15), text_color(2)));
    // 43 rows of a screen of 350 lines.
    pc.crtc(0x11, 0x0e);
    pc.crtc(0x12, 0x5d);
    assert_eq!(pc.draw(), (720, 350));
}

#[test]
fn attribute_bit_3_chooses_the_second_font() {
    // Map B (bits 4, 1, 0) is for bit 3 clear, A (bits 5, 3, 2) for bit 3 set.
    for (maps, first, second) in [
        (0x00, 0, 0),
        (0x04, 0, 0x4000),
        (0x01, 0x4000, 0),
        (0x0e, 0x8000, 0xc000),
        (0x30, 0x2000, 0x2000),
        (0x27, 0xc000, 0x6000),
    ] {
        let mut pc = Pc::in_mode(&TEXT_80);
        no_cursor(&pc);
        pc.seq(3, maps);
        put(&pc, 0, 3, 0x07);
        put(&pc, 1, 3, 0x0f);
        for (at, bits) in [(second, 0xc3), (first, 0x81)] {
            let [a, b, ..] = pc.planes(at + 3 * 32);
            pc.put_planes(at + 3 * 32, [a, b, bits, 0]);
        }
        pc.draw();
        let bits = if first == second { 0x81 } else { 0xc3 };
        assert_eq!(pc.row(0)[..9], dots(0x102, 9, text_color(7), text_color(0)), "{maps:#x}");
        assert_eq!(pc.row(0)[9..18], dots(bits << 1, 9, text_color(15), text_color(0)), "{maps:#x}");
    }
}

#[test]
fn the_cursor_has_a_shape_and_blinks() {
    let mut pc = with_font(&TEXT_80, 0);
    put(&pc, 81, 0, 0x1e);
    put(&pc, 240, 0, 0x1e);
    for (index, value) in [(0x0a, 13), (0x0b, 14), (0x0e, 0), (0x0f, 81)] {
        pc.crtc(index, value);
    }
    pc.draw();
    let lines = |pc: &Pc| -> Vec<usize> {
        (0..400).filter(|y| pc.row(*y)[9..18] == [text_color(14); 9]).map(|y| y - 16).collect()
    };
    assert_eq!(lines(&pc), [13, 14]);
    // 8 frames of 1/70 s later it is gone, and nothing else has changed.
    pc.clock.0.store(115_000_000, SeqCst);
    assert_eq!(pc.changed(), [29..31]);
    assert!(lines(&pc).is_empty());
    pc.clock.0.store(230_000_000, SeqCst);
    assert_eq!(pc.changed(), [29..31]);
    // Where it goes, two rows change.
    pc.crtc(0x0f, 240);
    assert_eq!(pc.changed(), [29..31, 61..63]);
    for (start, end) in [(0x2d, 14), (14, 13)] {
        pc.crtc(0x0a, start);
        pc.crtc(0x0b, end);
        pc.draw();
        assert!(lines(&pc).is_empty(), "{start} {end}");
    }
    pc.crtc(0x0a, 0);
    pc.crtc(0x0b, 0x20 | 1);
    pc.crtc(0x0f, 80);
    pc.draw();
    assert_eq!(lines(&pc), [0, 1], "skewed by one character");
}

#[test]
fn characters_blink_or_have_bright_backgrounds() {
    let mut pc = with_font(&TEXT_80, 0);
    no_cursor(&pc);
    put(&pc, 0, 0xff, 0x9e);
    pc.draw();
    assert_eq!(pc.row(0)[..9], dots(0x1fe, 9, text_color(14), text_color(1)));
    pc.clock.0.store(230_000_000, SeqCst);
    assert_eq!(pc.changed(), [0..15], "line 15 of the character is empty");
    assert_eq!(pc.row(0)[..9], [text_color(1); 9]);
    pc.attribute(0x10, 0x04);
    pc.refresh();
    assert_eq!(pc.row(0)[..9], dots(0x1fe, 9, text_color(14), text_color(9)));
    // Nothing blinks now.
    pc.clock.0.store(460_000_000, SeqCst);
    assert_eq!(pc.changed(), []);
}

#[test]
fn monochrome_has_underlines() {
    let mut pc = with_font(&TEXT_MONO, 0);
    no_cursor(&pc);
    let cells = [0, 0x01, 0, 0x07, 0, 0x09];
    pc.memory.write(0xb_0000, &cells[..4]);
    pc.memory.write(0xb_0004, &cells[4..]);
    assert_eq!(pc.draw(), (720, 400));
    let mono = |n: u8| color(TEXT_MONO.ac[usize::from(n)]);
    let line = |c, fore, back| dots(u16::from(glyph(c, 13)) << 1, 9, fore, back);
    assert_eq!(pc.row(13)[..9], [mono(1); 9]);
    assert_eq!(pc.row(13)[9..18], line(0, mono(7), mono(0)));
    assert_eq!(pc.row(13)[18..27], [mono(9); 9]);
    assert_eq!(pc.row(12)[..9], dots(u16::from(glyph(0, 12)) << 1, 9, mono(1), mono(0)));
}

#[test]
fn start_panning_preset_row_and_split_move_the_picture() {
    let mut pc = with_font(&TEXT_80, 0);
    no_cursor(&pc);
    for cell in 0..80 * 30 {
        put(&pc, cell, (cell / 80) as u8, 0x07);
    }
    let row_of =
        |row: u8, scan: usize| dots(u16::from(glyph(row, scan)) << 1, 9, text_color(7), text_color(0));
    let at = |pc: &Pc, y: usize| pc.row(y)[..9].to_vec();
    pc.crtc(0x0d, 160);
    pc.draw();
    assert_eq!((at(&pc, 3), at(&pc, 16)), (row_of(2, 3), row_of(3, 0)));
    pc.crtc(8, 5);
    pc.draw();
    assert_eq!((at(&pc, 0), at(&pc, 11)), (row_of(2, 5), row_of(3, 0)));
    // Byte panning adds to the address; the rest of the picture moves to the left.
    pc.crtc(8, 0x25);
    pc.draw();
    assert_eq!(pc.row(0)[79 * 9..], row_of(3, 5));
    // Panning by dots: 8 is none with nine dots, 0 is one.
    pc.crtc(8, 0);
    for (value, dots_out) in [(8, 0), (0, 1), (3, 4), (7, 8)] {
        pc.attribute(0x13, value);
        pc.draw();
        let expected = [row_of(2, 0), row_of(2, 0)].concat()[dots_out..][..9].to_vec();
        assert_eq!(at(&pc, 0), expected, "{value}");
        assert_eq!(pc.row(0)[712..], [row_of(2, 0), row_of(3, 0)].concat()[dots_out + 1..][..8], "{value}");
    }
    // Line compare 99: from line 100 on, the picture is that of address 0, from the first line of a row.
    pc.crtc(7, 0x0f);
    pc.crtc(9, 0x0f);
    pc.crtc(0x18, 99);
    pc.draw();
    let panned = |row, scan| [row_of(row, scan), row_of(row, scan)].concat()[8..17].to_vec();
    assert_eq!((at(&pc, 99), at(&pc, 100), at(&pc, 116)), (panned(8, 3), panned(0, 0), panned(1, 0)));
    pc.attribute(0x10, 0x2c);
    pc.draw();
    assert_eq!((at(&pc, 99), at(&pc, 100)), (panned(8, 3), row_of(0, 0)), "panning ends there");
}
