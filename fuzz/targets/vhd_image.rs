//! A VHD from anybody, and a guest that uses it.
//!
//! Input: a byte that chooses a small valid image to start from, or none; then patches of it (a count, and for
//! each an offset and a number) or the whole image; a byte says whether the checksums are made right again; the
//! operations of the guest follow.

#![no_main]

use blkback::Format;
use libfuzzer_sys::fuzz_target;
use xvmm_fuzz::Input;
use xvmm_fuzz::image::{self, Scratch};

const SIZE: u64 = 64 << 10;
const BLOCK: u32 = 8 << 10;

fn checksum(bytes: &mut [u8], at: usize) {
    let Some(field) = bytes.get_mut(at..at + 4) else { return };
    field.fill(0);
    let sum = bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

fn footer(kind: u32) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    bytes[..8].copy_from_slice(b"conectix");
    bytes[11] = 2;
    bytes[12..16].copy_from_slice(&0x10000u32.to_be_bytes());
    bytes[16..24].copy_from_slice(&(if kind == 2 { u64::MAX } else { 512 }).to_be_bytes());
    bytes[28..32].copy_from_slice(b"tap\0");
    bytes[40..48].copy_from_slice(&SIZE.to_be_bytes());
    bytes[48..56].copy_from_slice(&SIZE.to_be_bytes());
    bytes[60..64].copy_from_slice(&kind.to_be_bytes());
    bytes
}

/// Fixed (2), dynamic (3) with one block, or differencing (4) with a parent that is not there.
fn valid(kind: u32) -> Vec<u8> {
    if kind == 2 {
        let mut bytes = vec![0; SIZE as usize];
        bytes.extend(footer(kind));
        return bytes;
    }
    let mut bytes = footer(kind);
    let mut header = vec![0; 1024];
    header[..8].copy_from_slice(b"cxsparse");
    header[8..16].fill(0xff);
    header[16..24].copy_from_slice(&1536u64.to_be_bytes());
    header[24..28].copy_from_slice(&0x10000u32.to_be_bytes());
    header[28..32].copy_from_slice(&8u32.to_be_bytes());
    header[32..36].copy_from_slice(&BLOCK.to_be_bytes());
    if kind == 4 {
        header[65] = b'p';
        header[576..580].copy_from_slice(b"W2ru");
        header[584..588].copy_from_slice(&2u32.to_be_bytes());
        header[592..600].copy_from_slice(&1600u64.to_be_bytes());
    }
    bytes.extend(header);
    bytes.resize(2048, 0xff);
    bytes[1536..1540].copy_from_slice(&4u32.to_be_bytes());
    // The bitmap: half of the sectors are there.
    bytes.extend([0xf0; 2]);
    bytes.resize(2560 + BLOCK as usize, 0);
    bytes.extend(footer(kind));
    bytes
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut bytes = match input.below(4) {
        0 => Vec::new(),
        choice => valid(u32::from(choice) + 1),
    };
    image::patch(&mut input, &mut bytes);
    if input.u8() & 1 == 0 && bytes.len() >= 512 {
        let end = bytes.len() - 512;
        checksum(&mut bytes[end..], 64);
        if end >= 1536 && bytes.starts_with(b"conectix") {
            checksum(&mut bytes[..512], 64);
            checksum(&mut bytes[512..1536], 36);
        }
    }
    let scratch = Scratch::new(&bytes);
    image::play(&mut input, &scratch, Format::Vhd);
});
