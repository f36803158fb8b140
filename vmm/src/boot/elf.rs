//! ELF32 and ELF64 images with the Xen notes of the PVH entry.
//!
//! Sources: the System V ABI, chapter 4 and 5; Xen's public elfnote.h. Both classes: GRUB's PVH image and the
//! Xen shim are ELF32, Linux is ELF64. Only program headers are read, as a loader does.

use std::ops::Range;

use super::image::Image;
use super::{ImageError, le_u16, le_u32, le_u64};

/// Xen note: 32-bit physical address of the PVH entry.
const NOTE_PHYS32_ENTRY: u32 = 18;
/// Xen note: the image may be moved, and where to.
const NOTE_PHYS32_RELOC: u32 = 19;

/// How every ELF image begins.
pub(super) const MAGIC: &[u8] = b"\x7fELF";
/// The file header of ELF64, the longer one.
const MAX_HEADER: usize = 64;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;

/// Linux has 5 to 6, xen-shim 3. Without a bound a table of 65535 overlapping entries would cost hours.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// Linux's notes take about 500 bytes.
const MAX_NOTES: usize = 1 << 20;

/// Width of an image's ELF structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// ELFCLASS32.
    Elf32,
    /// ELFCLASS64.
    Elf64,
}

/// e_machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    I386,
    X86_64,
}

/// One PT_LOAD entry, in bounds of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// What the file holds of it.
    pub(super) file: Range<usize>,
    /// Where it is linked to run: p_paddr to the end of its bss.
    pub(super) memory: Range<u64>,
    pub(super) executable: bool,
}

/// Where a relocatable image may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Relocation {
    /// Alignment of the image's first byte.
    pub(super) align: u64,
    /// Lowest address of the first byte.
    pub(super) min: u64,
    /// Highest address of the last byte.
    pub(super) max: u64,
}

/// What the loader wants of an image. The segments are sorted, not empty, and do not overlap.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Elf {
    pub(super) class: Class,
    pub(super) machine: Machine,
    pub(super) entry: u32,
    pub(super) relocation: Option<Relocation>,
    pub(super) segments: Vec<Segment>,
}

impl Elf {
    /// From the first byte of the first segment to the end of the last.
    pub(super) fn memory(&self) -> Range<u64> {
        let start = self.segments.first().map_or(0, |segment| segment.memory.start);
        start..self.segments.last().map_or(start, |segment| segment.memory.end)
    }
}

/// A program header of either class.
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

impl ProgramHeader {
    fn read(class: Class, bytes: &[u8]) -> Option<Self> {
        let word = |at| le_u32(bytes, at);
        let short = |at| word(at).map(u64::from);
        let long = |at| le_u64(bytes, at);
        Some(match class {
            Class::Elf32 => Self {
                kind: word(0)?,
                offset: short(4)?,
                paddr: short(12)?,
                filesz: short(16)?,
                memsz: short(20)?,
                flags: word(24)?,
                align: short(28)?,
            },
            Class::Elf64 => Self {
                kind: word(0)?,
                flags: word(4)?,
                offset: long(8)?,
                paddr: long(24)?,
                filesz: long(32)?,
                memsz: long(40)?,
                align: long(48)?,
            },
        })
    }

    /// What it covers of the file.
    fn file(&self, image: &Image) -> Result<Range<usize>, ImageError> {
        let end =
            self.offset.checked_add(self.filesz).ok_or(ImageError::BadElf("a segment's size overflows"))?;
        let actual = image.len() as u64;
        let truncated = ImageError::Truncated { what: "ELF image", expected: end, actual };
        match (usize::try_from(self.offset), usize::try_from(end)) {
            (Ok(start), Ok(end)) if end <= image.len() => Ok(start..end),
            _ => Err(truncated),
        }
    }

    fn segment(&self, image: &Image) -> Result<Segment, ImageError> {
        if self.filesz > self.memsz {
            return Err(ImageError::BadElf("a segment is larger in the file than in memory"));
        }
        let end = self.paddr.checked_add(self.memsz);
        let end = end.ok_or(ImageError::BadElf("a segment's address overflows"))?;
        let executable = self.flags & PF_X != 0;
        Ok(Segment { file: self.file(image)?, memory: self.paddr..end, executable })
    }
}

/// Reads and checks the headers and notes.
pub(super) fn parse(image: &Image) -> Result<Elf, ImageError> {
    let head = image.read(0..image.len().min(MAX_HEADER))?;
    if !head.starts_with(MAGIC) {
        return Err(ImageError::NotAKernel);
    }
    let actual = image.len() as u64;
    let truncated = |expected| ImageError::Truncated { what: "ELF image", expected, actual };
    let class = match head.get(4) {
        Some(1) => Class::Elf32,
        Some(2) => Class::Elf64,
        Some(_) => return Err(ImageError::BadElf("its class is unknown")),
        None => return Err(truncated(64)),
    };
    let (header_size, entry_size) = match class {
        Class::Elf32 => (52, 32),
        Class::Elf64 => (64, 56),
    };
    if head.len() < header_size {
        return Err(truncated(header_size as u64));
    }
    let half = |at| le_u16(&head, at).ok_or(truncated(header_size as u64));
    let machine = match (head.get(5), half(18)?) {
        (Some(1), 3) => Machine::I386,
        (Some(1), 62) => Machine::X86_64,
        (_, other) => return Err(ImageError::OtherMachine(other)),
    };
    // ET_EXEC or ET_DYN: an object file or a module has no addresses yet.
    if !matches!(half(16)?, 2 | 3) {
        return Err(ImageError::BadElf("it is not an executable"));
    }
    let (table, stride, count) = match class {
        Class::Elf32 => (le_u32(&head, 28).map(u64::from), half(42)?, half(44)?),
        Class::Elf64 => (le_u64(&head, 32), half(54)?, half(56)?),
    };
    if count > MAX_PROGRAM_HEADERS {
        return Err(ImageError::BadElf("it has more than 64 program headers"));
    }
    if usize::from(stride) < entry_size {
        return Err(ImageError::BadElf("its program headers are too short"));
    }
    let table = table.ok_or(truncated(header_size as u64))?;
    let table_end = table.checked_add(u64::from(count) * u64::from(stride));
    let table_end = table_end.ok_or(ImageError::BadElf("its program headers overflow"))?;
    let headers = match (usize::try_from(table), usize::try_from(table_end)) {
        (Ok(start), Ok(end)) => image.read(start..end)?,
        _ => return Err(truncated(table_end)),
    };

    let mut segments = Vec::new();
    let mut notes = Notes::default();
    let mut align = 0;
    for bytes in headers.chunks_exact(usize::from(stride)) {
        let header = ProgramHeader::read(class, bytes).ok_or(truncated(table_end))?;
        match header.kind {
            PT_LOAD if header.memsz > 0 => {
                align = align.max(header.align);
                segments.push(header.segment(image)?);
            }
            PT_NOTE => {
                let file = header.file(image)?;
                if file.len() > MAX_NOTES {
                    return Err(ImageError::BadElf("its notes take more than 1 MiB"));
                }
                notes.read(&image.read(file)?, header.align)?;
            }
            _ => {}
        }
    }
    segments.sort_by_key(|segment| segment.memory.start);
    if segments.windows(2).any(|pair| matches!(pair, [a, b] if a.memory.end > b.memory.start)) {
        return Err(ImageError::BadElf("its segments overlap"));
    }
    let entry = notes.entry.ok_or(ImageError::NoPvhEntry)?;
    if !segments.iter().any(|segment| segment.memory.contains(&u64::from(entry))) {
        return Err(ImageError::BadElf("its PVH entry is outside of its segments"));
    }
    let relocation = notes.relocation.map(|note| note.with_default_align(align)).transpose()?;
    Ok(Elf { class, machine, entry, relocation, segments })
}

/// PHYS32_RELOC as it stands in the file: each word may be missing.
#[derive(Clone, Copy, Debug)]
struct RelocationNote {
    align: Option<u32>,
    min: Option<u32>,
    max: Option<u32>,
}

impl RelocationNote {
    /// elfnote.h: no alignment in the note means that of the program headers, if it is a page or more, or 2 MiB.
    fn with_default_align(self, align: u64) -> Result<Relocation, ImageError> {
        let align = match self.align {
            Some(align) => u64::from(align),
            None if align >= 0x1000 => align,
            None => 0x20_0000,
        };
        if !align.is_power_of_two() {
            return Err(ImageError::BadElf("the alignment in its note PHYS32_RELOC is not a power of two"));
        }
        let (min, max) = (self.min.unwrap_or(0), self.max.unwrap_or(u32::MAX));
        Ok(Relocation { align, min: u64::from(min), max: u64::from(max) })
    }
}

/// The Xen notes that matter.
#[derive(Debug, Default)]
struct Notes {
    entry: Option<u32>,
    relocation: Option<RelocationNote>,
}

impl Notes {
    /// Reads the notes of one segment: {u32 name size, u32 desc size, u32 type, name, desc}, each padded.
    fn read(&mut self, notes: &[u8], align: u64) -> Result<(), ImageError> {
        let padding = if align == 8 { 8 } else { 4 };
        let mut rest = notes;
        while let (Some(name_size), Some(desc_size), Some(kind)) =
            (le_u32(rest, 0), le_u32(rest, 4), le_u32(rest, 8))
        {
            let cut = || ImageError::BadElf("a note is cut off");
            let body = rest.get(12..).ok_or_else(cut)?;
            let name = body.get(..name_size as usize).ok_or_else(cut)?;
            // The padding counts from the start of the note, and the last one may lack it.
            let desc_at = (12 + name.len()).next_multiple_of(padding);
            let desc = rest.get(desc_at..).and_then(|rest| rest.get(..desc_size as usize)).ok_or_else(cut)?;
            if name == b"Xen\0" {
                self.xen(kind, desc)?;
            }
            rest = rest.get((desc_at + desc.len()).next_multiple_of(padding)..).unwrap_or_default();
        }
        Ok(())
    }

    fn xen(&mut self, kind: u32, desc: &[u8]) -> Result<(), ImageError> {
        match kind {
            NOTE_PHYS32_ENTRY => {
                let entry = match desc.len() {
                    4 => le_u32(desc, 0),
                    8 => le_u64(desc, 0).and_then(|entry| u32::try_from(entry).ok()),
                    _ => None,
                };
                let entry = entry.ok_or(ImageError::BadElf("its note PHYS32_ENTRY is no 32-bit address"))?;
                self.entry = Some(entry);
            }
            NOTE_PHYS32_RELOC => {
                let word = |at| le_u32(desc, at);
                self.relocation = Some(RelocationNote { align: word(0), min: word(4), max: word(8) });
            }
            _ => {}
        }
        Ok(())
    }
}
