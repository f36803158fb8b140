//! Ports: indexes, masks, flip-flop, palette, protection, status.

use super::*;

#[test]
fn indexed_registers_keep_the_bits_that_exist() {
    let pc = Pc::new();
    pc.out(0x3c2, 1);
    for (port, masks) in
        [(0x3c4, &spec::SEQ_MASKS[..]), (0x3ce, &spec::GC_MASKS[..]), (0x3d4, &[0xff; 25][..])]
    {
        for (index, mask) in masks.iter().enumerate() {
            // The CRTC protects itself with register 11h.
            let value = if port == 0x3d4 && index == 0x11 { 0x7f } else { 0xff };
            pc.outw(port, u16::from_le_bytes([index as u8, value]));
            assert_eq!(pc.inb(port + 1), value & mask, "{port:#x} {index}");
            pc.out(port + 1, 0);
            assert_eq!(pc.inb(port + 1), 0, "{port:#x} {index}");
        }
    }
    for (port, index) in [(0x3c4, 5), (0x3ce, 9), (0x3d4, 0x19)] {
        pc.outw(port, 0xff00 | index);
        assert_eq!((pc.inb(port), pc.inb(port + 1)), (index as u8, 0), "{port:#x}");
    }
}

#[test]
fn the_crtc_answers_where_the_miscellaneous_output_says() {
    let pc = Pc::new();
    for (misc, here, there) in [(1, 0x3d4, 0x3b4), (0, 0x3b4, 0x3d4)] {
        pc.out(0x3c2, misc);
        assert_eq!(pc.inb(0x3cc), misc);
        pc.outw(here, 0x5a0c);
        pc.outw(there, 0xa50c);
        assert_eq!((pc.inw(here), pc.inw(there)), (0x5a0c, 0xffff));
        assert_eq!(pc.inb(there + 6), 0xff);
        pc.out(here + 6, 3);
        assert_eq!(pc.inb(0x3ca), 3);
    }
    assert_eq!(pc.inb(0x3c2), 0x10, "the monitor's sense bit");
}

#[test]
fn crtc_registers_0_to_7_are_protected_but_for_the_line_compare() {
    let pc = Pc::new();
    pc.out(0x3c2, 1);
    for index in 0..0x19 {
        pc.crtc(index, 0x0e);
    }
    pc.crtc(0x11, 0x8e);
    for index in 0..0x19 {
        pc.crtc(index, 0xf1);
    }
    for index in 0..7 {
        assert_eq!(pc.read_crtc(index), 0x0e, "{index}");
    }
    assert_eq!(pc.read_crtc(7), 0x1e, "bit 4 alone has changed");
    for index in 8..0x19 {
        assert_eq!(pc.read_crtc(index), 0xf1, "{index}");
    }
    pc.crtc(0x11, 0x0e);
    pc.crtc(7, 0xf1);
    pc.crtc(0, 0xf1);
    assert_eq!((pc.read_crtc(7), pc.read_crtc(0)), (0xf1, 0xf1));
}

#[test]
fn the_attribute_controller_takes_index_and_data_in_turn() {
    let pc = Pc::new();
    pc.out(0x3c2, 1);
    pc.inb(0x3da);
    let flip_flop = |pc: &Pc| pc.read_crtc(0x24) >> 7;
    assert_eq!(flip_flop(&pc), 0);
    pc.out(0x3c0, 0x11);
    assert_eq!((pc.inb(0x3c0), flip_flop(&pc)), (0x11, 1));
    pc.out(0x3c0, 0x2a);
    assert_eq!((pc.inb(0x3c0), pc.inb(0x3c1), flip_flop(&pc)), (0x11, 0x2a, 0));
    pc.out(0x3c0, 0x31);
    // Input status 1 makes the next write an index again; reading data does not.
    pc.inb(0x3c1);
    assert_eq!(flip_flop(&pc), 1);
    pc.inb(0x3da);
    pc.out(0x3c0, 0x20 | 0x12);
    pc.out(0x3c0, 0xff);
    assert_eq!((pc.inb(0x3c0), pc.inb(0x3c1)), (0x32, 0x3f));
    for (index, mask) in
        [(0, 0x3f), (15, 0x3f), (0x10, 0xef), (0x11, 0xff), (0x13, 0x0f), (0x14, 0x0f), (0x15, 0)]
    {
        pc.attribute(index, 0xff);
        assert_eq!(pc.inb(0x3c1), mask, "{index:#x}");
    }
}

#[test]
fn the_palette_is_written_and_read_in_threes() {
    let pc = Pc::new();
    pc.out(0x3c8, 254);
    assert_eq!((pc.inb(0x3c8), pc.inb(0x3c7)), (254, 0), "writing");
    for value in 0xf1..=0xf9 {
        pc.out(0x3c9, value);
    }
    assert_eq!(pc.inb(0x3c8), 1, "it goes from 255 to 0");
    // A colour is stored with its third part.
    pc.out(0x3c9, 7);
    pc.out(0x3c9, 7);
    pc.out(0x3c7, 254);
    assert_eq!(pc.inb(0x3c7), 3, "reading");
    let values: Vec<u8> = (0..12).map(|_| pc.inb(0x3c9)).collect();
    assert_eq!(values, [0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0, 0, 0]);
    assert_eq!(pc.inb(0x3c8), 2);
    pc.out(0x3c6, 0x5a);
    assert_eq!(pc.inb(0x3c6), 0x5a);
}

#[test]
fn eight_bit_palettes_keep_all_bits() {
    let mut pc = Pc::new();
    pc.dispi(4, 0x20);
    pc.out(0x3c8, 0);
    for value in [0xfe, 0x81, 0x43] {
        pc.out(0x3c9, value);
    }
    pc.out(0x3c7, 0);
    assert_eq!([pc.inb(0x3c9), pc.inb(0x3c9), pc.inb(0x3c9)], [0xfe, 0x81, 0x43]);
    pc.out(0x3c0, 0x20);
    pc.dispi(4, 0x61);
    pc.draw();
    assert_eq!(pc.pixel(0, 0), 0xfe8143);
}

/// Changes of the bits `mask` of input status 1 in a frame's time, seen every microsecond.
fn edges(pc: &Pc, mask: u8, nanoseconds: u64) -> usize {
    let start = pc.clock.0.load(SeqCst);
    let bits: Vec<u8> = (0..nanoseconds / 1000)
        .map(|n| {
            pc.clock.0.store(start + n * 1000, SeqCst);
            pc.inb(0x3da) & mask
        })
        .collect();
    bits.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

#[test]
fn retrace_follows_the_clock_and_the_timing_of_the_mode() {
    let pc = Pc::in_mode(&MODE_12);
    // 800 by 525 dots at 25.175 MHz are 16.683 ms; 480 lines are shown, and the retrace begins with line 490.
    assert_eq!(edges(&pc, 0x08, 167_000_000), 20, "two in each of ten frames");
    assert_eq!(edges(&pc, 0x01, 16_683_000) / 2, 480);
    let line = 800 * 1000 / 25_175 * 1000;
    for (y, column, bits) in
        [(0, 0, 0), (479, 600, 0), (479, 700, 1), (481, 0, 1), (489, 0, 1), (491, 0, 9), (523, 0, 9)]
    {
        let dots = (y * 800 + column) * 1_000_000 / 25_175;
        pc.clock.0.store(dots + 200, SeqCst);
        assert_eq!(pc.inb(0x3da), bits, "{y} {column} {line}");
    }
}

#[test]
fn a_guest_that_waits_for_the_retrace_goes_on_whatever_it_has_set() {
    for fill in [0, 0xff, 0x55, 0xaa] {
        let pc = Pc::new();
        pc.out(0x3c2, 1);
        for index in 0..0x19 {
            pc.crtc(index, if index == 0x11 { 0 } else { fill });
        }
        for mask in [1, 8] {
            pc.clock.0.store(1 << 60, SeqCst);
            assert!(edges(&pc, mask, 400_000_000) >= 2, "{fill:#x} {mask}");
        }
    }
}

#[test]
fn a_reset_sets_all_back() {
    let pc = Pc::in_mode(&MODE_13);
    pc.dispi(4, 0x41);
    pc.vga.lock().unwrap().write_config(4, &[7, 0]);
    assert!(pc.vga.lock().unwrap().window().is_some());
    pc.vga.lock().unwrap().reset();
    assert_eq!((pc.inb(0x3cc), pc.read_dispi(4), pc.vga.lock().unwrap().window()), (0, 0, None));
    assert_eq!(pc.vga.lock().unwrap().config().u16(4), 0);
    pc.out(0x3c2, 1);
    assert_eq!(pc.read_crtc(1), 0);
}
