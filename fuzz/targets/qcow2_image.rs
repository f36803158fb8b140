//! A qcow2 image from anybody, and a guest that uses it.
//!
//! Input: a byte that chooses a small valid image to start from, or none; then patches of it (a count, and for
//! each an offset and a number) or the whole image; the operations of the guest follow.

#![no_main]

use blkback::Format;
use libfuzzer_sys::fuzz_target;
use xvmm_fuzz::Input;
use xvmm_fuzz::image::{self, Scratch};

const CLUSTER: usize = 512;
const COPIED: u64 = 1 << 63;

/// Version 3 with clusters of 512 bytes: header, refcount table, refcount block, L1, L2, two clusters of data, and a
/// compressed one.
fn valid(version: u32) -> Vec<u8> {
    let mut bytes = vec![0; CLUSTER * 8];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    put(20, &9u32.to_be_bytes());
    put(24, &(64u64 << 10).to_be_bytes());
    put(36, &2u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1u32.to_be_bytes());
    if version == 3 {
        put(96, &4u32.to_be_bytes());
        put(100, &104u32.to_be_bytes());
    }
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..8 {
        put(2 * CLUSTER + cluster * 2, &1u16.to_be_bytes());
    }
    put(3 * CLUSTER, &(4 * CLUSTER as u64 | COPIED).to_be_bytes());
    put(4 * CLUSTER, &(5 * CLUSTER as u64 | COPIED).to_be_bytes());
    put(4 * CLUSTER + 8, &(6 * CLUSTER as u64 | COPIED).to_be_bytes());
    put(4 * CLUSTER + 16, &(7 * CLUSTER as u64 | 1 << 62).to_be_bytes());
    // A stored block of deflate with 507 bytes would not fill the cluster: a run of zeroes does.
    put(7 * CLUSTER, &[0x63, 0x60, 0x18, 0x05, 0xa3, 0x60, 0x14, 0x0c, 0x00]);
    bytes
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut bytes = match input.below(4) {
        0 => Vec::new(),
        1 => valid(2),
        _ => valid(3),
    };
    image::patch(&mut input, &mut bytes);
    let scratch = Scratch::new(&bytes);
    image::play(&mut input, &scratch, Format::Qcow2);
});
