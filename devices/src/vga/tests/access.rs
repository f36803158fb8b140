//! The window: write modes, read modes, addressing.

use super::*;

const A: u64 = 0xa_0000;

/// A card in mode 12h whose planes hold `old` at address 0, and whose latches hold `latches`.
fn planar(old: [u8; 4], latches: [u8; 4]) -> Pc {
    let pc = Pc::in_mode(&MODE_12);
    pc.put_planes(1, latches);
    pc.put_planes(0, old);
    pc.peek(A + 1);
    pc
}

#[test]
fn write_modes_give_what_the_table_says() {
    let latches = [0x0f, 0x33, 0x55, 0xf0];
    let old = [0xee, 0xdd, 0xcc, 0xbb];
    // Map mask, graphics controller 0, 1, 3, 5, 8; the byte written; planes 0 to 3 afterwards.
    let table = [
        // Mode 0: all planes; only some; rotated; with AND, OR, XOR; with a bit mask.
        ([0x0f, 0, 0, 0x00, 0, 0xff], 0xa5, [0xa5, 0xa5, 0xa5, 0xa5]),
        ([0x06, 0, 0, 0x00, 0, 0xff], 0xa5, [0xee, 0xa5, 0xa5, 0xbb]),
        ([0x0f, 0, 0, 0x03, 0, 0xff], 0xa5, [0xb4, 0xb4, 0xb4, 0xb4]),
        ([0x0f, 0, 0, 0x08, 0, 0xff], 0xa5, [0x05, 0x21, 0x05, 0xa0]),
        ([0x0f, 0, 0, 0x10, 0, 0xff], 0xa5, [0xaf, 0xb7, 0xf5, 0xf5]),
        ([0x0f, 0, 0, 0x18, 0, 0xff], 0xa5, [0xaa, 0x96, 0xf0, 0x55]),
        ([0x0f, 0, 0, 0x00, 0, 0x3c], 0xa5, [0x27, 0x27, 0x65, 0xe4]),
        // Set/reset in planes 0 and 1 (one and zero), the CPU's byte in 2 and 3; it is not rotated.
        ([0x0f, 0x01, 0x03, 0x00, 0, 0xff], 0xa5, [0xff, 0x00, 0xa5, 0xa5]),
        ([0x0f, 0x01, 0x03, 0x01, 0, 0xff], 0xa5, [0xff, 0x00, 0xd2, 0xd2]),
        ([0x0f, 0x0f, 0x0f, 0x18, 0, 0x0f], 0x00, [0x00, 0x3c, 0x5a, 0xff]),
        // Mode 1: the latches, whatever the rest says.
        ([0x0f, 0x0f, 0x0f, 0x1b, 1, 0x00], 0xa5, [0x0f, 0x33, 0x55, 0xf0]),
        ([0x09, 0, 0, 0x00, 1, 0xff], 0xa5, [0x0f, 0xdd, 0xcc, 0xf0]),
        // Mode 2: bits 0 to 3 are the planes; not rotated, set/reset is left out.
        ([0x0f, 0x0f, 0x0f, 0x00, 2, 0xff], 0xa6, [0x00, 0xff, 0xff, 0x00]),
        ([0x0f, 0, 0, 0x01, 2, 0x81], 0x05, [0x8f, 0x32, 0xd5, 0x70]),
        ([0x0f, 0, 0, 0x18, 2, 0xff], 0x0c, [0x0f, 0x33, 0xaa, 0x0f]),
        // Mode 3: set/reset where the rotated byte and the bit mask have ones.
        ([0x0f, 0x05, 0x00, 0x00, 3, 0xff], 0x81, [0x8f, 0x32, 0xd5, 0x70]),
        ([0x0f, 0x05, 0x00, 0x04, 3, 0x0f], 0x18, [0x0f, 0x32, 0x55, 0xf0]),
        ([0x0f, 0x0f, 0x00, 0x18, 3, 0xf0], 0xff, [0xff, 0xc3, 0xa5, 0x00]),
    ];
    for (registers, byte, expected) in table {
        let pc = planar(old, latches);
        let [map_mask, set_reset, enable, rotate, mode, bit_mask] = registers;
        pc.seq(2, map_mask);
        for (index, value) in [(0, set_reset), (1, enable), (3, rotate), (5, mode), (8, bit_mask)] {
            pc.gc(index, value);
        }
        pc.poke(A, &[byte]);
        assert_eq!(pc.planes(0), expected, "{registers:02x?} {byte:#x}");
        assert_eq!(pc.planes(1), latches, "the neighbour stays");
    }
}

#[test]
fn every_write_agrees_with_the_data_sheets_diagram_bit_by_bit() {
    // The same as above, as the diagram of the graphics controller has it for one bit of one plane.
    let bit = |registers: [u8; 6], byte: u8, latch: u8, plane: u8, n: u32| {
        let [_, set_reset, enable, rotate, mode, bit_mask] = registers;
        let rotated = byte.rotate_right(u32::from(rotate & 7)) >> n & 1;
        let (set_reset, enable) = (set_reset >> plane & 1, enable >> plane & 1);
        let latch = latch >> n & 1;
        let data = match mode {
            0 if enable == 1 => set_reset,
            0 => rotated,
            1 => return latch,
            2 => byte >> plane & 1,
            _ => set_reset,
        };
        let select = bit_mask >> n & 1 & if mode == 3 { rotated } else { 1 };
        let data = match rotate >> 3 {
            0 => data,
            1 => data & latch,
            2 => data | latch,
            _ => data ^ latch,
        };
        if select == 1 { data } else { latch }
    };
    let pc = planar([0; 4], [0x1b, 0x2d, 0x4e, 0x87]);
    let mut seed = 1u32;
    for _ in 0..2000 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [a, b, c, d] = seed.to_be_bytes();
        let registers = [a & 15, a >> 4, b & 15, c & 0x1f, b >> 4 & 3, b.rotate_left(3) ^ c];
        let byte = c ^ d.reverse_bits();
        pc.seq(2, registers[0]);
        for (index, at) in [(0, 1), (1, 2), (3, 3), (5, 4), (8, 5)] {
            pc.gc(index, registers[at]);
        }
        let old = pc.planes(0);
        pc.poke(A, &[byte]);
        let mut expected = old;
        for (plane, (slot, latch)) in (0..).zip(expected.iter_mut().zip([0x1b, 0x2d, 0x4e, 0x87])) {
            if registers[0] >> plane & 1 == 1 {
                *slot = (0..8).fold(0, |byte_, n| byte_ | bit(registers, byte, latch, plane, n) << n);
            }
        }
        assert_eq!(pc.planes(0), expected, "{registers:02x?} {byte:#x}");
    }
}

#[test]
fn read_mode_0_reads_the_selected_plane_and_loads_all_latches() {
    let pc = planar([1, 2, 3, 4], [5, 6, 7, 8]);
    for plane in 0..4 {
        pc.gc(4, plane);
        assert_eq!(pc.peek(A), plane + 1);
        assert_eq!(pc.peek(A + 1), plane + 5);
        assert_eq!(pc.read_crtc(0x22), plane + 5, "the latch");
    }
    pc.gc(5, 1);
    pc.peek(A);
    pc.poke(A + 2, &[0]);
    assert_eq!(pc.planes(2), [1, 2, 3, 4], "copied in one go");
}

#[test]
fn read_mode_1_finds_the_pixels_of_a_colour() {
    // Pixels from the left: colours 0 to 7.
    let pc = planar([0x55, 0x33, 0x0f, 0x00], [0; 4]);
    pc.gc(5, 8);
    for (compare, care, expected) in
        [(5, 15, 0x04), (0, 15, 0x80), (8, 15, 0x00), (8, 7, 0x80), (1, 1, 0x55), (3, 3, 0x11), (9, 0, 0xff)]
    {
        pc.gc(2, compare);
        pc.gc(7, care);
        assert_eq!(pc.peek(A), expected, "{compare} {care}");
    }
}

#[test]
fn odd_even_puts_characters_in_plane_0_and_attributes_in_1() {
    let pc = Pc::in_mode(&TEXT_80);
    pc.memory.write(0xb_8000, &[b'A', 0x1f, b'B', 0x2e]);
    assert_eq!(pc.planes(0), [b'A', 0x1f, 0, 0]);
    assert_eq!(pc.planes(1), [0; 4], "every other address is left out");
    assert_eq!(pc.planes(2), [b'B', 0x2e, 0, 0]);
    let mut data = [0; 4];
    pc.memory.read(0xb_8000, &mut data);
    assert_eq!(data, [b'A', 0x1f, b'B', 0x2e]);
    pc.poke(0xb_ffff, &[7]);
    assert_eq!(pc.planes(0x7ffe), [0, 7, 0, 0]);
    // Map mask and read map choose between planes 0/1 and 2/3.
    pc.seq(2, 0x0c);
    pc.gc(4, 2);
    pc.memory.write(0xb_8000, &[1, 2]);
    assert_eq!(pc.planes(0), [b'A', 0x1f, 1, 2]);
    assert_eq!((pc.peek(0xb_8000), pc.peek(0xb_8001)), (1, 2));
    // In 128 KiB, address bit 16 stands for bit 0.
    pc.seq(2, 3);
    pc.gc(6, 2);
    pc.poke(0xb_0004, &[9]);
    assert_eq!(pc.planes(5), [9, 0, 0, 0]);
}

#[test]
fn fonts_are_loaded_as_the_bios_does() {
    let pc = Pc::in_mode(&TEXT_80);
    for (index, value) in [(0, 1), (2, 4), (4, 7), (0, 3)] {
        pc.seq(index, value);
    }
    for (index, value) in [(4, 2), (5, 0), (6, 4)] {
        pc.gc(index, value);
    }
    pc.poke(A + 0x41 * 32, &[0x18, 0x3c]);
    assert_eq!((pc.planes(0x41 * 32), pc.planes(0x41 * 32 + 1)), ([0, 0, 0x18, 0], [0, 0, 0x3c, 0]));
    assert_eq!((pc.peek(A + 0x41 * 32), pc.peek(A + 0x41 * 32 + 1)), (0x18, 0x3c));
}

#[test]
fn chain_4_takes_the_plane_from_the_lowest_address_bits() {
    let pc = Pc::in_mode(&MODE_13);
    pc.memory.write(A + 0x1234, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!((pc.planes(0x1234 / 4), pc.planes(0x1238 / 4)), ([1, 2, 3, 4], [5, 6, 7, 8]));
    assert_eq!(pc.peek(A + 0x1236), 3);
    // The map mask holds.
    pc.seq(2, 0b0101);
    pc.memory.write(A + 0x1234, &[0x11, 0x12, 0x13, 0x14]);
    assert_eq!(pc.planes(0x1234 / 4), [0x11, 2, 0x13, 4]);
    pc.poke(A + 0xffff, &[1]);
    pc.seq(2, 8);
    pc.poke(A + 0xffff, &[9]);
    assert_eq!(pc.planes(0x3fff), [0, 0, 0, 9]);
}

#[test]
fn the_window_answers_where_the_memory_map_says() {
    for (map, base, len) in
        [(0, 0xa_0000, 0x2_0000), (1, 0xa_0000, 0x1_0000), (2, 0xb_0000, 0x8000), (3, 0xb_8000, 0x8000u64)]
    {
        let pc = Pc::in_mode(&MODE_12);
        pc.gc(6, 1 | map << 2);
        for address in [0xa_0000u64, 0xa_ffff, 0xb_0000, 0xb_7fff, 0xb_8000, 0xb_ffff] {
            let inside = (base..base + len).contains(&address);
            let offset = (address.wrapping_sub(base) & 0xffff) as usize;
            pc.put_planes(offset, [0; 4]);
            pc.poke(address, &[0x42]);
            assert_eq!(pc.planes(offset), [if inside { 0x42 } else { 0 }; 4], "{map} {address:#x}");
            assert_eq!(pc.peek(address), if inside { 0x42 } else { 0xff }, "{map} {address:#x}");
        }
        // An access that leaves it is cut off.
        pc.memory.write(0xb_ffff, &[1, 2, 3, 4]);
        // The CPU can be kept out altogether.
        pc.out(0x3c2, MODE_12.misc & !2);
        pc.poke(base, &[0x17]);
        assert_eq!((pc.peek(base), pc.planes(0)[0] == 0x17), (0xff, false));
    }
}
