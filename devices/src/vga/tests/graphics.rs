//! Graphics modes of the VGA.

use super::*;

const A: u64 = 0xa_0000;

/// What colour `n` is by way of a mode's palette registers.
fn through(mode: &Mode, n: u8) -> u32 {
    color(mode.ac[usize::from(n)])
}

/// A pixel in each of four planes, as a program of the time writes it: write mode 2 with the bit mask.
fn plot(pc: &Pc, stride: usize, x: usize, y: usize, n: u8) {
    let at = A + (y * stride + x / 8) as u64;
    pc.gc(5, 2);
    pc.gc(8, 0x80 >> (x % 8));
    pc.peek(at);
    pc.poke(at, &[n]);
}

#[test]
fn sixteen_colours_in_all_sizes() {
    let sizes = [(&MODE_0D, 320, 200), (&MODE_0E, 640, 200), (&MODE_10, 640, 350), (&MODE_12, 640, 480)];
    for (mode, width, height) in sizes {
        let mut pc = Pc::in_mode(mode);
        let (across, down) = (640 / width, if height == 200 { 2 } else { 1 });
        let spots: Vec<_> = (0..16u8)
            .map(|n| (usize::from(n) * (width - 1) / 15, usize::from(n) * (height - 1) / 15, n))
            .collect();
        for (x, y, n) in &spots {
            plot(&pc, width / 8, *x, *y, *n);
        }
        assert_eq!(pc.draw(), (640, height * down));
        let mut expected = vec![through(mode, 0); 640 * height * down];
        for (x, y, n) in spots {
            for (dx, dy) in [(0, 0), (across - 1, 0), (0, down - 1), (across - 1, down - 1)] {
                expected[(y * down + dy) * 640 + x * across + dx] = through(mode, n);
            }
        }
        assert!(pc.frame.pixels == expected, "{width}x{height}");
    }
}

#[test]
fn plane_enable_palette_and_colour_select() {
    let mut pc = Pc::in_mode(&MODE_12);
    pc.put_planes(0, [0xff; 4]);
    pc.attribute(0x12, 5);
    pc.draw();
    assert_eq!(pc.pixel(0, 0), through(&MODE_12, 5));
    pc.attribute(0x12, 15);
    // Bits 2 and 3 of the colour select are bits 6 and 7 of the colour; with mode bit 7, 0 and 1 are 4 and 5.
    pc.attribute(0x14, 0x0d);
    pc.draw();
    assert_eq!(pc.pixel(0, 0), color(0xff));
    pc.attribute(0x10, 0x81);
    pc.draw();
    assert_eq!(pc.pixel(0, 0), color(0xdf));
    pc.out(0x3c6, 0x0f);
    pc.draw();
    assert_eq!(pc.pixel(0, 0), color(0x0f), "the mask");
}

#[test]
fn planar_panning_start_and_split() {
    let mut pc = Pc::in_mode(&MODE_12);
    plot(&pc, 80, 3, 0, 9);
    plot(&pc, 80, 645, 0, 10);
    plot(&pc, 80, 5, 70, 11);
    pc.attribute(0x13, 3);
    pc.draw();
    assert_eq!((pc.pixel(0, 0), pc.pixel(2, 1)), (through(&MODE_12, 9), through(&MODE_12, 10)));
    assert_eq!(pc.pixel(639, 0), through(&MODE_12, 0), "address 80 is shown at the right, dots 0 to 2");
    // Row 70 at the top, and from line 301 on row 0.
    pc.crtc(0x0c, ((70 * 80) >> 8) as u8);
    pc.crtc(0x0d, ((70 * 80) & 0xff) as u8);
    pc.crtc(0x11, 0x0c);
    pc.crtc(7, 0x3e);
    pc.crtc(9, 0);
    pc.crtc(0x18, (300 & 0xff) as u8);
    pc.attribute(0x10, 0x21);
    pc.draw();
    assert_eq!(pc.pixel(2, 0), through(&MODE_12, 11));
    assert_eq!((pc.pixel(3, 301), pc.pixel(3, 300)), (through(&MODE_12, 9), through(&MODE_12, 0)));
    // Virtual rows of 1024 pixels.
    pc.crtc(0x13, 64);
    pc.crtc(0x0c, 0);
    pc.crtc(0x0d, 0);
    pc.attribute(0x13, 0);
    plot(&pc, 128, 7, 2, 12);
    pc.draw();
    assert_eq!(pc.pixel(7, 2), through(&MODE_12, 12));
}

#[test]
fn addresses_go_round_at_the_end_of_the_planes() {
    let mut pc = Pc::in_mode(&MODE_12);
    pc.put_planes(0, [0xff, 0, 0, 0]);
    pc.crtc(0x0c, 0xff);
    pc.crtc(0x0d, 0xf0);
    pc.draw();
    assert_eq!((pc.pixel(127, 0), pc.pixel(128, 0)), (through(&MODE_12, 0), through(&MODE_12, 1)));
}

#[test]
fn four_colours_of_the_cga() {
    let mut pc = Pc::in_mode(&CGA_4);
    // Even rows at 0, odd ones 8 KiB on; four pixels in a byte.
    pc.memory.write(0xb_8000, &[0b00_01_10_11, 0b11_00_00_01]);
    pc.poke(0xb_8000 + 0x2000 + 79, &[0b00_00_00_10]);
    pc.poke(0xb_8000 + 80, &[0b01_00_00_00]);
    assert_eq!(pc.draw(), (640, 400));
    let pixels =
        |pc: &Pc, y: usize, from: usize| -> Vec<u32> { pc.row(y).iter().copied().skip(from).collect() };
    let expected: Vec<u32> = [0, 1, 2, 3, 3, 0, 0, 1].iter().flat_map(|n| [through(&CGA_4, *n); 2]).collect();
    for y in 0..2 {
        assert_eq!(pixels(&pc, y, 0)[..16], expected, "each row is two lines");
    }
    for y in 2..4 {
        assert_eq!(pixels(&pc, y, 636), [[through(&CGA_4, 0); 2], [through(&CGA_4, 2); 2]].concat());
    }
    assert_eq!((pc.pixel(0, 4), pc.pixel(2, 4)), (through(&CGA_4, 1), through(&CGA_4, 0)));
}

#[test]
fn two_colours_of_the_cga() {
    let mut pc = Pc::in_mode(&CGA_2);
    pc.poke(0xb_8000, &[0x81]);
    pc.poke(0xb_8000 + 0x2000 + 79, &[1]);
    assert_eq!(pc.draw(), (640, 400));
    let lit: Vec<_> = (0..640 * 400).filter(|n| pc.frame.pixels[*n] == color(0x17)).collect();
    assert_eq!(lit, [0, 7, 640, 647, 2 * 640 + 639, 3 * 640 + 639]);
}

#[test]
fn mode_13h_is_linear() {
    let mut pc = Pc::in_mode(&MODE_13);
    for y in 0..200u64 {
        for x in (0..320u64).step_by(8) {
            let bytes: Vec<u8> = (x..x + 8).map(|x| (x * 3 + y * 7) as u8).collect();
            pc.memory.write(A + y * 320 + x, &bytes);
        }
    }
    assert_eq!(pc.draw(), (640, 400));
    for y in 0..400 {
        for x in 0..640 {
            assert_eq!(pc.pixel(x, y), color((x / 2 * 3 + y / 2 * 7) as u8), "{x} {y}");
        }
    }
    pc.attribute(0x13, 6);
    pc.crtc(0x0d, 80);
    pc.draw();
    assert_eq!(pc.pixel(0, 0), color(3 * 3 + 7), "three pixels to the left, a row up");
}

#[test]
fn mode_x_has_a_pixel_of_four_in_each_plane() {
    let mut pc = Pc::in_mode(&MODE_X);
    for plane in 0..4 {
        pc.seq(2, 1 << plane);
        for y in 0..240 {
            for x in (plane..320).step_by(4).skip(y as usize % 3) {
                pc.poke(A + y * 80 + x / 4, &[(x + y * 5) as u8]);
            }
        }
    }
    assert_eq!(pc.draw(), (640, 480));
    for y in 0..480 {
        for x in (24..640).step_by(7) {
            assert_eq!(pc.pixel(x, y), color((x / 2 + y / 2 * 5) as u8), "{x} {y}");
        }
    }
    // The second page: a start address in units of four pixels.
    pc.crtc(0x0c, 0x4b);
    pc.crtc(0x0d, 1);
    pc.seq(2, 15);
    pc.poke(A + 80 * 240 + 1, &[77]);
    pc.draw();
    assert_eq!(pc.row(1)[..8], [color(77); 8]);
}

#[test]
fn the_screen_is_black_while_it_is_off() {
    let on = |pc: &mut Pc| {
        pc.draw();
        pc.frame.pixels.iter().any(|pixel| *pixel != 0)
    };
    let mut pc = Pc::in_mode(&MODE_12);
    assert!(on(&mut pc), "colour 0 of the palette is not black");
    let size = (pc.frame.width, pc.frame.height);
    pc.seq(1, 0x21);
    assert!(!on(&mut pc));
    assert_eq!((pc.frame.width, pc.frame.height), size);
    pc.seq(1, 1);
    pc.seq(0, 1);
    assert!(!on(&mut pc));
    pc.seq(0, 3);
    pc.crtc(0x17, 0x63);
    assert!(!on(&mut pc));
    pc.crtc(0x17, 0xe3);
    assert!(on(&mut pc));
    pc.inb(0x3da);
    pc.out(0x3c0, 0);
    assert!(!on(&mut pc));
    pc.out(0x3c0, 0);
    pc.out(0x3c0, 0x20);
    assert!(on(&mut pc));
}

#[test]
fn an_absurd_size_is_an_empty_screen() {
    for (h_end, v_end, overflow, mode) in
        [(0xff, 0xdf, 0x3e, 0xe3), (0, 0xdf, 0x3e, 0xe3), (0x4f, 3, 0, 0xe3), (0x4f, 0xff, 0x7e, 0xe7)]
    {
        let mut pc = Pc::in_mode(&MODE_12);
        pc.crtc(0x11, 0);
        for (index, value) in [(1, h_end), (0x12, v_end), (7, overflow), (0x17, mode)] {
            pc.crtc(index, value);
        }
        assert_eq!(pc.draw(), (640, 480), "{h_end} {v_end}");
        assert!(pc.frame.pixels.iter().all(|pixel| *pixel == 0));
    }
    // After power on nothing is set at all.
    assert_eq!(Pc::new().draw(), (640, 480));
}
