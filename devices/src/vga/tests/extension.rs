//! DISPI, and the card on the PCI bus.

use super::*;
use crate::pci::{Bar, BarKind};

/// A card that shows a mode, unblanked.
fn mode(width: u16, height: u16, bpp: u16) -> Pc {
    let pc = Pc::in_mode(&MODE_12);
    set(&pc, width, height, bpp, 0x41);
    pc
}

fn set(pc: &Pc, width: u16, height: u16, bpp: u16, enable: u16) {
    for (index, value) in [(4, 0), (1, width), (2, height), (3, bpp), (4, enable)] {
        pc.dispi(index, value);
    }
}

#[test]
fn the_bios_finds_the_interface() {
    let pc = Pc::new();
    assert_eq!(pc.read_dispi(0), 0xb0c5);
    for id in 0xb0c0..=0xb0c5 {
        pc.dispi(0, id);
        assert_eq!(pc.read_dispi(0), id);
    }
    for id in [0xb0bf, 0xb0c6, 0] {
        pc.dispi(0, id);
        assert_eq!(pc.read_dispi(0), 0xb0c5);
    }
    assert_eq!(pc.inw(0x1ce), 0);
    assert_eq!(pc.read_dispi(10), 256, "16 MiB");
    pc.dispi(4, 2);
    assert_eq!([1, 2, 3].map(|index| pc.read_dispi(index)), [1920, 1200, 32]);
    pc.dispi(4, 0);
    assert_eq!([1, 2, 3].map(|index| pc.read_dispi(index)), [640, 480, 8]);
    assert_eq!((pc.read_dispi(11), pc.read_dispi(0xffff)), (0, 0));
}

#[test]
fn sizes_beyond_the_limits_are_not_taken() {
    let pc = Pc::new();
    set(&pc, 800, 600, 16, 0);
    for (index, value) in [(1, 1921), (1, 0), (2, 1201), (2, 0), (3, 12), (3, 64)] {
        pc.dispi(index, value);
    }
    assert_eq!([1, 2, 3].map(|index| pc.read_dispi(index)), [800, 600, 16]);
    pc.dispi(3, 0);
    assert_eq!(pc.read_dispi(3), 8);
    // 1920x1200x32 needs 8.8 MiB.
    let small = Pc::with(VgaConfig { memory_mib: 8, rom: None });
    set(&small, 1920, 1200, 32, 0x41);
    assert_eq!(small.read_dispi(4) & 1, 0);
    set(&small, 1920, 1200, 24, 0x41);
    assert_eq!(small.read_dispi(4), 0x41);
}

#[test]
fn each_depth_shows_its_pixels() {
    // Bytes of a pixel, and what it looks like.
    let table: [(u16, &[u8], u32); 12] = [
        (8, &[200], color(200)),
        (15, &[0xff, 0x7f], 0xffffff),
        (15, &[0x00, 0x7c], 0xff0000),
        (15, &[0xe0, 0x83], 0x00ff00),
        (15, &[0x11, 0x00], 0x00008c),
        (16, &[0x00, 0xf8], 0xff0000),
        (16, &[0xe0, 0x07], 0x00ff00),
        (16, &[0x1f, 0x00], 0x0000ff),
        (16, &[0x21, 0x84], 0x848608),
        (24, &[0x12, 0x34, 0x56], 0x563412),
        (32, &[0x12, 0x34, 0x56, 0x78], 0x563412),
        (32, &[0xff, 0, 0, 0], 0x0000ff),
    ];
    for (bpp, bytes, rgb) in table {
        let mut pc = mode(800, 600, bpp);
        let background = if bpp == 8 { color(0) } else { 0 };
        for (x, y) in [(0, 0), (799, 0), (17, 300), (799, 599)] {
            pc.pages().write((y * 800 + x) * bytes.len(), bytes).unwrap();
        }
        assert_eq!(pc.draw(), (800, 600));
        let lit: Vec<_> = (0..800 * 600).filter(|n| pc.frame.pixels[*n] != background).collect();
        assert_eq!(lit, [0, 799, 300 * 800 + 17, 600 * 800 - 1], "{bpp}");
        assert!(lit.iter().all(|n| pc.frame.pixels[*n] == rgb), "{bpp} {bytes:?}");
    }
}

#[test]
fn planar_modes_use_the_write_modes_in_banks() {
    let mut pc = mode(1024, 768, 4);
    pc.gc(5, 2);
    for (x, y, n) in [(0u64, 0u64, 5u8), (1023, 511, 6), (9, 512, 7), (1023, 767, 8)] {
        let at = y * 128 + x / 8;
        pc.dispi(5, (at >> 16) as u16);
        pc.gc(8, 0x80 >> (x % 8));
        pc.peek(0xa_0000 + (at & 0xffff));
        pc.poke(0xa_0000 + (at & 0xffff), &[n]);
    }
    assert_eq!(pc.draw(), (1024, 768));
    let shown = |n: usize| color(MODE_12.ac[n]);
    let pixels = [pc.pixel(0, 0), pc.pixel(1023, 511), pc.pixel(9, 512), pc.pixel(1023, 767), pc.pixel(1, 0)];
    assert_eq!(pixels, [shown(5), shown(6), shown(7), shown(8), shown(0)]);
    // An offset that is not a multiple of 8 goes dot by dot.
    pc.dispi(6, 1040);
    pc.dispi(8, 3);
    pc.put_planes(0, [0; 4]);
    pc.put_planes(128, [0x10, 0, 0, 0]);
    pc.draw();
    assert_eq!((pc.pixel(1023, 0), pc.pixel(1024 - 3, 0)), (shown(0), shown(0)));
    pc.put_planes(128, [0x20, 0, 0, 0]);
    pc.draw();
    assert_eq!(pc.pixel(1023, 0), shown(1));
}

#[test]
fn the_bank_moves_the_window() {
    let pc = mode(640, 480, 32);
    let window = |offset| Some(Window { base: 0xa_0000, len: 0x1_0000, offset });
    for bank in [0, 1, 255] {
        pc.dispi(5, bank);
        assert_eq!(pc.read_dispi(5), bank);
        assert_eq!(pc.vga.lock().unwrap().window(), window(u64::from(bank) << 16));
        pc.memory.write(0xa_fffc, &[1, 2, 3, bank as u8]);
        let mut bytes = [0; 4];
        pc.pages().read(usize::from(bank) << 16 | 0xfffc, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, bank as u8]);
        pc.memory.read(0xa_fffc, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, bank as u8]);
    }
    pc.dispi(5, 256);
    assert_eq!(pc.read_dispi(5), 255, "there is no such bank");
    assert_eq!(pc.peek(0xb_0000), 0xff);
}

#[test]
fn a_virtual_screen_can_be_panned() {
    let mut pc = mode(640, 480, 16);
    assert_eq!((pc.read_dispi(6), pc.read_dispi(7)), (640, 13107));
    pc.dispi(6, 100);
    assert_eq!(pc.read_dispi(6), 640, "never less than what is shown");
    pc.dispi(6, 1024);
    assert_eq!((pc.read_dispi(6), pc.read_dispi(7)), (1024, 8192));
    pc.pages().write((50 * 1024 + 70) * 2, &[0xff, 0xff]).unwrap();
    pc.dispi(8, 60);
    pc.dispi(9, 49);
    pc.draw();
    assert_eq!((pc.pixel(10, 1), pc.pixel(10, 2)), (0xffffff, 0));
    // What is beyond the end of the memory is black.
    pc.dispi(8, 0xffff);
    pc.dispi(9, 0xffff);
    pc.draw();
    assert!(pc.frame.pixels.iter().all(|pixel| *pixel == 0));
    pc.dispi(8, 0);
    pc.dispi(9, 8191);
    pc.pages().write(16 * 1024 * 1024 - 2048, &[0xff; 2048]).unwrap();
    pc.draw();
    assert_eq!((pc.pixel(639, 0), pc.pixel(0, 1)), (0xffffff, 0));
    // A new mode begins at the first pixel.
    set(&pc, 640, 480, 16, 0xc1);
    assert_eq!((pc.read_dispi(6), pc.read_dispi(8), pc.read_dispi(9)), (640, 0, 0));
}

#[test]
fn switching_on_clears_the_screen_unless_told_not_to() {
    let pc = Pc::new();
    let fill = || pc.pages().write(0, &[0x5a; 640 * 480 * 4 + 4]).unwrap();
    let bytes = || {
        let mut bytes = vec![0; 640 * 480 * 4 + 4];
        pc.pages().read(0, &mut bytes).unwrap();
        bytes
    };
    fill();
    set(&pc, 640, 480, 32, 0xc1);
    assert!(bytes().iter().all(|byte| *byte == 0x5a));
    // It is on already.
    pc.dispi(4, 0x41);
    assert!(bytes().iter().all(|byte| *byte == 0x5a));
    set(&pc, 640, 480, 32, 0x41);
    let bytes = bytes();
    assert!(bytes[..640 * 480 * 4].iter().all(|byte| *byte == 0));
    assert_eq!(bytes[640 * 480 * 4..], [0x5a; 4]);
}

#[test]
fn the_card_is_found_on_the_bus() {
    let pc = Pc::with(VgaConfig { memory_mib: 20, rom: Some(vec![0x55, 0xaa, 80]) });
    let mut vga = pc.vga.lock().unwrap();
    assert_eq!((vga.config().u32(0), vga.config().class()), (0x1111_1234, 0x03_00_00));
    for (offset, value) in [(4, 7), (0x10, 0xe000_0000), (0x18, 0xfebf_0000), (0x30, 0xfebe_0001u32)] {
        vga.write_config(offset, &value.to_le_bytes());
    }
    let bar = |index, kind, base, len| Bar { index, kind, base, len };
    assert_eq!(
        vga.config().bars().collect::<Vec<_>>(),
        [
            bar(0, BarKind::Prefetchable, 0xe000_0000, 32 << 20),
            bar(2, BarKind::Memory, 0xfebf_0000, 4096),
            bar(6, BarKind::Rom, 0xfebe_0000, 4096),
        ]
    );
    assert_eq!(vga.memory(0).unwrap().pages(), 8192);
    let mut data = [0xff; 4];
    vga.write(6, 0, &[1]);
    vga.read(6, 0, &mut data);
    assert_eq!(data, [0x55, 0xaa, 80, 0]);
    // The memory can also be reached by accesses that are trapped.
    vga.write(0, 0x100, &[1, 2, 3, 4]);
    vga.read(0, 0x100, &mut data);
    assert_eq!(data, [1, 2, 3, 4]);
    vga.write(0, u64::MAX, &[1]);
    assert!(Vga::new(&VgaConfig { memory_mib: 16, rom: Some(vec![]) }, Arc::clone(&pc.clock) as _).is_err());
    assert!(vga.memory(2).is_none());
}

#[test]
fn the_registers_are_in_memory_too() {
    let pc = Pc::new();
    let mut vga = pc.vga.lock().unwrap();
    let read = |vga: &mut Vga, offset, len: usize| {
        let mut data = [0xff; 4];
        vga.read(2, offset, &mut data[..len]);
        data
    };
    assert_eq!(read(&mut vga, 0, 4), [0, 0xff, 0xff, 0xff], "EDID");
    assert_eq!(read(&mut vga, 0xfe, 2), [0, 0, 0xff, 0xff]);
    assert_eq!(read(&mut vga, 0x500, 2), [0xc5, 0xb0, 0xff, 0xff]);
    vga.write(2, 0x502, &800u16.to_le_bytes());
    assert_eq!(read(&mut vga, 0x502, 2)[..2], 800u16.to_le_bytes());
    vga.write(2, 0x402, &[1]);
    vga.write(2, 0x414, &[0x0c, 0x12]);
    assert_eq!(read(&mut vga, 0x40c, 1)[0], 1);
    assert_eq!(read(&mut vga, 0x600, 4), [0xff; 4], "nothing is there");
    drop(vga);
    assert_eq!((pc.read_dispi(1), pc.read_crtc(0x0c)), (800, 0x12));
}
