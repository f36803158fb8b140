//! Files that SeaBIOS, or the caller in its place, moves to where a guest looks for them, and the script that says
//! how: fw_cfg's `etc/table-loader`.
//!
//! The script is a list of commands of 128 bytes, executed in order: ALLOCATE a file's place, ADD_POINTER (add the
//! address of one file to a field of another), ADD_CHECKSUM (make the sum of a range zero). All numbers are
//! little-endian. Source: the description of the interface in SeaBIOS, `src/fw/romfile_loader.h`.

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

use crate::{AcpiError, sdt};

/// The file with the script.
pub const LOADER_SCRIPT: &str = "etc/table-loader";

const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;

/// Bytes of a file's name, with at least one zero at the end.
const NAME_LEN: usize = 56;
const COMMAND_LEN: usize = 128;

/// SeaBIOS aligns to this at least.
const MIN_ALIGN: u32 = 16;

/// Where a file goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Below 4 GiB, at the end of the low RAM; reserved in the memory map.
    High = 1,
    /// 0xf0000 to 0xfffff, where RSDP, MP floating pointer and $PIR are looked for. About 1 KiB is free there.
    FSegment = 2,
}

/// A file of fw_cfg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RomFile {
    /// As in fw_cfg's directory: at most 55 bytes.
    pub name: &'static str,
    /// The contents. A field that points into a file is the offset there, before the address is added.
    pub bytes: Vec<u8>,
    /// Where the file goes.
    pub zone: Zone,
    /// A power of two.
    pub align: u32,
}

/// What is done when all files have their places.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fixup {
    /// The address of `to` is added to the number of `size` bytes at `at` of `file`.
    Pointer { file: &'static str, at: u32, size: u8, to: &'static str },
    /// The byte `at` of `file` changes so that the sum of `len` bytes from `start` on is zero.
    Checksum { file: &'static str, at: u32, start: u32, len: u32 },
}

/// Files and what links them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RomFiles {
    files: Vec<RomFile>,
    fixups: Vec<Fixup>,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Allocate {
    command: U32,
    file: [u8; NAME_LEN],
    align: U32,
    zone: u8,
    rest: [u8; 63],
}
const _: () = assert!(size_of::<Allocate>() == COMMAND_LEN);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct AddPointer {
    command: U32,
    /// The file that holds the pointer, and the one that it points at.
    file: [u8; NAME_LEN],
    to: [u8; NAME_LEN],
    offset: U32,
    size: u8,
    rest: [u8; 7],
}
const _: () = assert!(size_of::<AddPointer>() == COMMAND_LEN);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct AddChecksum {
    command: U32,
    file: [u8; NAME_LEN],
    offset: U32,
    start: U32,
    len: U32,
    rest: [u8; 56],
}
const _: () = assert!(size_of::<AddChecksum>() == COMMAND_LEN);

fn name(name: &str) -> [u8; NAME_LEN] {
    let mut bytes = [0; NAME_LEN];
    for (to, from) in bytes.iter_mut().take(NAME_LEN - 1).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

impl RomFiles {
    pub(crate) fn add(&mut self, name: &'static str, zone: Zone, align: u32, bytes: Vec<u8>) {
        self.files.push(RomFile { name, bytes, zone, align });
    }

    pub(crate) fn pointer(&mut self, file: &'static str, at: u32, size: u8, to: &'static str) {
        self.fixups.push(Fixup::Pointer { file, at, size, to });
    }

    pub(crate) fn checksum(&mut self, file: &'static str, at: u32, start: u32, len: u32) {
        self.fixups.push(Fixup::Checksum { file, at, start, len });
    }

    /// The files, without the script.
    pub fn files(&self) -> &[RomFile] {
        &self.files
    }

    /// What fw_cfg has to offer for SeaBIOS to do it all: names and contents, the script last. Nothing if there are
    /// no files.
    pub fn fw_cfg(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut files: Vec<_> = self.files.iter().map(|file| (file.name, file.bytes.clone())).collect();
        if !files.is_empty() {
            files.push((LOADER_SCRIPT, self.script()));
        }
        files
    }

    fn script(&self) -> Vec<u8> {
        let mut script = Vec::new();
        for file in &self.files {
            let command = Allocate {
                command: U32::new(ALLOCATE),
                file: name(file.name),
                align: U32::new(file.align),
                zone: file.zone as u8,
                rest: [0; 63],
            };
            script.extend_from_slice(command.as_bytes());
        }
        for fixup in &self.fixups {
            match *fixup {
                Fixup::Pointer { file, at, size, to } => {
                    let command = AddPointer {
                        command: U32::new(ADD_POINTER),
                        file: name(file),
                        to: name(to),
                        offset: U32::new(at),
                        size,
                        rest: [0; 7],
                    };
                    script.extend_from_slice(command.as_bytes());
                }
                Fixup::Checksum { file, at, start, len } => {
                    let command = AddChecksum {
                        command: U32::new(ADD_CHECKSUM),
                        file: name(file),
                        offset: U32::new(at),
                        start: U32::new(start),
                        len: U32::new(len),
                        rest: [0; 56],
                    };
                    script.extend_from_slice(command.as_bytes());
                }
            }
        }
        script
    }

    /// The files as they are in guest memory, each with its guest-physical address, for a machine whose firmware
    /// does not run the script: those of the F segment from `f_segment` on, the others from `high` on.
    ///
    /// Errors: [`AcpiError::Base`] if they do not end below 1 MiB and 4 GiB.
    pub fn place(&self, f_segment: u32, high: u32) -> Result<Vec<(u32, Vec<u8>)>, AcpiError> {
        let mut next = [u64::from(f_segment), u64::from(high)];
        let mut placed = Vec::new();
        for file in &self.files {
            let [f_segment, high] = &mut next;
            let (next, end) = match file.zone {
                Zone::FSegment => (f_segment, 1 << 20),
                Zone::High => (high, 1 << 32),
            };
            let gpa = next.next_multiple_of(u64::from(file.align.max(MIN_ALIGN)));
            *next = gpa + file.bytes.len() as u64;
            match u32::try_from(gpa) {
                Ok(gpa) if *next <= end => placed.push((gpa, file.bytes.clone())),
                _ => return Err(AcpiError::Base(gpa)),
            }
        }
        for fixup in &self.fixups {
            self.apply(fixup, &mut placed);
        }
        Ok(placed)
    }

    /// `placed` has the files' order. A fixup that does not fit its file changes nothing, as in SeaBIOS.
    fn apply(&self, fixup: &Fixup, placed: &mut [(u32, Vec<u8>)]) {
        let index = |name| self.files.iter().position(|file| file.name == name);
        match *fixup {
            Fixup::Pointer { file, at, size, to } => {
                let address = index(to).and_then(|to| placed.get(to)).map(|(gpa, _)| u64::from(*gpa));
                let place = index(file).and_then(|file| placed.get_mut(file));
                let (Some(address), Some((_, bytes))) = (address, place) else { return };
                let Some(field) = range_mut(bytes, at, u32::from(size)) else { return };
                let mut value = [0; 8];
                for (to, from) in value.iter_mut().zip(&*field) {
                    *to = *from;
                }
                let value = u64::from_le_bytes(value).wrapping_add(address).to_le_bytes();
                for (to, from) in field.iter_mut().zip(value) {
                    *to = from;
                }
            }
            Fixup::Checksum { file, at, start, len } => {
                let Some((_, bytes)) = index(file).and_then(|file| placed.get_mut(file)) else { return };
                let Some(sum) = range_mut(bytes, start, len).map(|range| sdt::checksum(range)) else {
                    return;
                };
                if let Some([byte]) = range_mut(bytes, at, 1) {
                    *byte = byte.wrapping_add(sum);
                }
            }
        }
    }
}

fn range_mut(bytes: &mut [u8], at: u32, len: u32) -> Option<&mut [u8]> {
    bytes.get_mut(at as usize..)?.get_mut(..len as usize)
}
