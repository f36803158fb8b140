//! Small kernels for the tests.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use super::Class;

/// Linked address of [`Image::linux`].
pub(super) const LINKED: u64 = 0x100_0000;

/// A PT_LOAD of an [`Image`]: address, bytes of the file, bytes of memory, flags.
#[derive(Clone)]
pub(super) struct Load {
    pub(super) paddr: u64,
    pub(super) data: Vec<u8>,
    pub(super) memsz: u64,
    pub(super) flags: u32,
}

/// An ELF image to be written, right or wrong.
#[derive(Clone)]
pub(super) struct Image {
    pub(super) class: Class,
    pub(super) machine: u16,
    pub(super) loads: Vec<Load>,
    /// Xen notes: type and descriptor.
    pub(super) notes: Vec<(u32, Vec<u8>)>,
}

impl Image {
    /// Like a vmlinux: text, data with bss, and an entry 0x50 behind the start.
    pub(super) fn linux() -> Self {
        let text = Load { paddr: LINKED, data: code(0x3000), memsz: 0x3000, flags: 5 };
        let data = Load { paddr: LINKED + 0x20_0000, data: vec![7; 0x800], memsz: 0x4000, flags: 6 };
        Self {
            class: Class::Elf64,
            machine: 62,
            loads: vec![text, data],
            notes: vec![(6, b"linux\0".to_vec()), (18, (LINKED + 0x50).to_le_bytes().to_vec())],
        }
    }

    /// The image in `fixtures/`: long runs, a match over 300 KB back to incompressible bytes, several blocks.
    pub(super) fn fixture() -> Self {
        let mut image = Self::linux();
        let noise: Vec<u8> = (1u32..=300).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
        let data = [&noise[..], &[0; 20_000], &noise, &[0; 280_000], &noise[1..]].concat();
        image.loads[0].data = code(0x400);
        image.loads[1].memsz = data.len() as u64 + 0x1000;
        image.loads[1].data = data;
        image
    }

    /// Like GRUB's PVH image: ELF32 at 1 MiB.
    pub(super) fn grub() -> Self {
        let text = Load { paddr: 0x10_0000, data: code(0x2000), memsz: 0x5000, flags: 7 };
        Self {
            class: Class::Elf32,
            machine: 3,
            loads: vec![text],
            notes: vec![(18, 0x10_0000u32.to_le_bytes().to_vec())],
        }
    }

    /// With PHYS32_RELOC.
    pub(super) fn relocatable(mut self, align: u32, min: u32, max: u32) -> Self {
        self.notes.push((19, [align, min, max].map(u32::to_le_bytes).concat()));
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let wide = self.class == Class::Elf64;
        let (header, stride) = if wide { (64, 56) } else { (52, 32) };
        let word = |out: &mut Vec<u8>, value: u64| {
            if wide {
                out.extend_from_slice(&value.to_le_bytes());
            } else {
                out.extend_from_slice(&(value as u32).to_le_bytes());
            }
        };
        let mut notes = Vec::new();
        for (kind, desc) in &self.notes {
            for value in [4, desc.len() as u32, *kind] {
                notes.extend_from_slice(&value.to_le_bytes());
            }
            notes.extend_from_slice(b"Xen\0");
            notes.extend_from_slice(desc);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        let count = self.loads.len() + 1;
        let mut out = b"\x7fELF".to_vec();
        out.extend_from_slice(&[if wide { 2 } else { 1 }, 1, 1]);
        out.resize(16, 0);
        out.extend_from_slice(&2u16.to_le_bytes());
        out.extend_from_slice(&self.machine.to_le_bytes());
        out.extend_from_slice(&1u32.to_le_bytes());
        word(&mut out, 0);
        word(&mut out, header);
        word(&mut out, 0);
        out.extend_from_slice(&0u32.to_le_bytes());
        for value in [header as u16, stride, count as u16, 0, 0, 0] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        let mut at = header + u64::from(stride) * count as u64;
        let mut program_header = |kind: u32, flags: u32, paddr: u64, filesz: usize, memsz: u64| {
            out.extend_from_slice(&kind.to_le_bytes());
            if wide {
                out.extend_from_slice(&flags.to_le_bytes());
            }
            for value in [at, paddr, paddr, filesz as u64, memsz] {
                word(&mut out, value);
            }
            if !wide {
                out.extend_from_slice(&flags.to_le_bytes());
            }
            word(&mut out, 4);
            at += filesz as u64;
        };
        for load in &self.loads {
            program_header(1, load.flags, load.paddr, load.data.len(), load.memsz);
        }
        program_header(4, 4, 0, notes.len(), notes.len() as u64);
        self.loads.iter().for_each(|load| out.extend_from_slice(&load.data));
        out.extend_from_slice(&notes);
        out
    }
}

/// Something like machine code: calls, whose operands the x86 filter of xz rewrites, and repeated prologues.
fn code(len: usize) -> Vec<u8> {
    let mut code = Vec::new();
    while code.len() < len {
        let target = 0x1000 + code.len() as u32 / 512 * 64;
        code.extend_from_slice(b"\x55\x48\x89\xe5\xe8");
        code.extend_from_slice(&target.wrapping_sub(code.len() as u32 + 4).to_le_bytes());
        code.extend_from_slice(b"\x5d\xc3\x90");
    }
    code.truncate(len);
    code
}

/// Wraps a payload as Linux's build does: two setup sectors, the payload at 716 of the protected-mode code.
pub(super) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 3 * 512 + 716];
    image.extend_from_slice(payload);
    image.resize((image.len() + 100).next_multiple_of(16), 0x90);
    let syssize = ((image.len() - 3 * 512) / 16) as u32;
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x1f1, &[2]);
    put(0x1f4, &syssize.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x248, &716u32.to_le_bytes());
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    image
}

/// Appends the unpacked size.
pub(super) fn sized(mut stream: Vec<u8>, size: usize) -> Vec<u8> {
    stream.extend_from_slice(&(size as u32).to_le_bytes());
    stream
}
