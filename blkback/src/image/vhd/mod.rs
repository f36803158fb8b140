//! VHD images: Xen's and Microsoft's format ("vpc" in QEMU), fixed, dynamic and differencing.
//!
//! A fixed disk is raw, with a footer behind it. The others have a header, a table of blocks, and the blocks in
//! any order, each behind a bitmap of the sectors that were written; the footer is at the end of the file, and a
//! copy at its start. What a differencing disk does not have is in its parent.
//!
//! When a block is added to a file, the footer goes to the new end first, then the bitmap is written where the
//! footer was. The table refers to the block from the next flush on, after the disk has the rest. So a process
//! that is killed leaves a sound image at any moment, with a block behind the last one in use at most; it is cut
//! off when the image is opened again.

mod layout;
mod parent;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::layout::{FOOTER, Footer, HEADER, Header, Kind, UNUSED};
use super::file::{Identity, ImageFile};
use super::pieces::Pieces;
use super::raw::{Raw, format_traits};
use super::{Format, ImageError, ImageOptions, Node};
use crate::engine::IoVec;
use crate::protocol::SECTOR_SIZE;
use crate::storage::{Storage, Traits};

/// Bytes of bitmaps in memory.
const BITMAPS: usize = 4 << 20;
/// New blocks that the table in the file does not have yet.
const MAX_NEW: usize = 256;
/// A sector, as the length of an array.
const SECTOR_BYTES: usize = 512;
/// Sectors that are written together the first time, with what the parent has beside what is to be written: those
/// of a byte of the bitmap. The format has no such rule, but libvhdi takes what follows a written sector in its
/// byte for written too.
const GROUP: u64 = 8;
/// Data of new blocks begins at a multiple of this, so that direct I/O and holes fit.
const ALIGNMENT: u64 = 4096;

fn damaged() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// An open dynamic or differencing disk.
#[derive(Debug)]
pub(super) struct Vhd {
    pub(super) file: ImageFile,
    footer: Footer,
    header: Header,
    parent: Option<Box<Node>>,
    state: Mutex<State>,
    /// One at a time writes to sectors that were not written before. Taken before the state.
    filling: Mutex<()>,
    /// One flush at a time. Taken before the state.
    syncing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// Sectors where the blocks are.
    table: Vec<u32>,
    /// Entries that are not in the file yet.
    new: BTreeSet<usize>,
    /// Where the footer is, and the next block goes.
    end: u64,
    /// Bitmaps as they are in the file.
    bitmaps: HashMap<usize, Box<[u8]>>,
}

/// Opens an image of any kind.
pub(super) fn open(
    file: ImageFile,
    options: &ImageOptions,
    seen: &mut Vec<Identity>,
) -> Result<Node, ImageError> {
    let path = options.path.clone();
    let io = |reason| ImageError::Io { path: path.clone(), reason };
    let corrupt = |what| ImageError::Corrupt { path: path.clone(), format: Format::Vhd, what };
    let len = file.len().map_err(io)?;
    let (footer, at_end) =
        find_footer(&file, len).map_err(io)?.map_err(corrupt)?.ok_or_else(|| ImageError::WrongFormat {
            path: path.clone(),
            format: Format::Vhd,
            what: "it ends without the footer of a VHD".into(),
        })?;
    if footer.size == 0 {
        return Err(ImageError::Empty(path));
    }
    if !footer.size.is_multiple_of(SECTOR_SIZE) {
        return Err(ImageError::SizeNotAligned { path, size: footer.size });
    }
    if footer.kind == Kind::Fixed {
        if footer.size > len.saturating_sub(FOOTER) {
            return Err(corrupt(format!("a disk of {} bytes in a file of {len}", footer.size)));
        }
        return Ok(Node::Raw(Raw::part(file, footer.size)));
    }
    let header = Header::read(&file, &footer, len).map_err(io)?.map_err(corrupt)?;
    let table = read_table(&file, &header).map_err(io)?;
    let end = check_table(&footer, &header, &table, len).map_err(corrupt)?;
    let parent = match footer.kind {
        Kind::Differencing => Some(Box::new(parent::open(&file, &header, options, seen)?)),
        _ => None,
    };
    let mut state = State { table, new: BTreeSet::new(), end, bitmaps: HashMap::new() };
    let blocks = state.table.iter().any(|entry| *entry != UNUSED);
    if at_end && !blocks {
        // Other programs keep data of their own between the table and the footer.
        state.end = len - FOOTER;
    }
    let tidy = at_end && state.end + FOOTER == len;
    if !tidy && !file.readonly() && !file.block_device() {
        // Left by somebody who was stopped while he added a block.
        tracing::info!("disk image {}: its footer is put to where the data ends", path.display());
        file.write(&footer.bytes, state.end).map_err(io)?;
        file.flush().map_err(io)?;
        file.set_len(state.end + FOOTER).map_err(io)?;
    }
    let (state, filling, syncing) = (Mutex::new(state), Mutex::new(()), Mutex::new(()));
    Ok(Node::Vhd(Box::new(Vhd { file, footer, header, parent, state, filling, syncing })))
}

/// The footer, and whether it is the one at the end of the file.
///
/// That one decides if it is there: the first sector of a fixed disk is the guest's, who could write a copy of a
/// footer there that makes the file a differencing disk with a parent of his choice.
fn find_footer(file: &ImageFile, len: u64) -> io::Result<Result<Option<(Footer, bool)>, String>> {
    if len < FOOTER {
        return Ok(Ok(None));
    }
    let at_end = Footer::read(file, len / SECTOR_SIZE * SECTOR_SIZE - FOOTER)?;
    if let Some(Ok(footer)) = at_end {
        return Ok(Ok(Some((footer, len.is_multiple_of(SECTOR_SIZE)))));
    }
    Ok(match (Footer::read(file, 0)?, at_end) {
        (Some(Ok(copy)), _) if copy.kind != Kind::Fixed => Ok(Some((copy, false))),
        (_, Some(Err(sentence))) | (Some(Err(sentence)), _) => Err(sentence),
        _ => Ok(None),
    })
}

fn read_table(file: &ImageFile, header: &Header) -> io::Result<Vec<u32>> {
    let mut bytes = vec![0; header.entries as usize * 4];
    file.read(&mut bytes, header.table_offset)?;
    let (entries, _) = bytes.as_chunks::<4>();
    Ok(entries.iter().map(|entry| u32::from_be_bytes(*entry)).collect())
}

/// Where the last block ends, if they all lie in the file and none over anything else; or a sentence.
fn check_table(footer: &Footer, header: &Header, table: &[u32], len: u64) -> Result<u64, String> {
    let mut ranges = vec![
        (0, FOOTER),
        (footer.header_offset, footer.header_offset + HEADER),
        (header.table_offset, header.table_offset + table.len() as u64 * 4),
    ];
    let metadata = ranges.iter().map(|(_, end)| *end).max().unwrap_or(0);
    let locators = header.locators.iter().map(|locator| locator.offset.saturating_add(locator.space));
    let metadata = locators.filter(|end| *end <= len).fold(metadata, u64::max).next_multiple_of(SECTOR_SIZE);
    let blocks = table.iter().filter(|entry| **entry != UNUSED).map(|entry| u64::from(*entry) * SECTOR_SIZE);
    ranges.extend(blocks.map(|start| (start, start + header.whole())));
    ranges.sort_unstable();
    let mut end = 0;
    for (start, stop) in ranges {
        if start < end {
            return Err(format!("the block at byte {start:#x} overlaps something else"));
        }
        if stop > len {
            return Err(format!("the block at byte {start:#x} lies beyond the end of the file"));
        }
        end = stop;
    }
    Ok(end.max(metadata))
}

impl Vhd {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block(&self) -> u64 {
        self.header.block.into()
    }

    /// The block of a byte of the disk, and the byte within it.
    fn place(&self, offset: u64) -> io::Result<(usize, u64)> {
        let index = usize::try_from(offset / self.block()).map_err(|_| damaged())?;
        Ok((index, offset % self.block()))
    }

    /// Where a block's bitmap is in the file.
    fn start(&self, state: &State, index: usize) -> io::Result<Option<u64>> {
        let entry = state.table.get(index).copied().ok_or_else(damaged)?;
        Ok((entry != UNUSED).then_some(u64::from(entry) * SECTOR_SIZE))
    }

    /// The bitmap of a block that is at `start`.
    fn bitmap<'a>(&self, state: &'a mut State, index: usize, start: u64) -> io::Result<&'a mut Box<[u8]>> {
        let bytes = usize::try_from(self.header.bitmap()).map_err(|_| damaged())?;
        if !state.bitmaps.contains_key(&index) {
            if (state.bitmaps.len() + 1) * bytes > BITMAPS {
                // They are in the file as they are here.
                state.bitmaps.clear();
            }
            let mut bitmap = vec![0; bytes];
            self.file.read(&mut bitmap, start)?;
            state.bitmaps.insert(index, bitmap.into());
        }
        state.bitmaps.get_mut(&index).ok_or_else(damaged)
    }

    /// Where the disk's data from `offset` on is, for how many of `len` bytes; `None`: not in this file.
    fn look_up(&self, offset: u64, len: u64) -> io::Result<(Option<u64>, u64)> {
        let (index, within) = self.place(offset)?;
        let len = len.min(self.block() - within);
        let mut state = self.lock();
        let Some(start) = self.start(&state, index)? else { return Ok((None, len)) };
        let bitmap = self.bitmap(&mut state, index, start)?;
        let first = within / SECTOR_SIZE;
        let here = is_set(bitmap, first);
        let last = (within + len - 1) / SECTOR_SIZE;
        let mut sector = first + 1;
        while sector <= last && is_set(bitmap, sector) == here {
            sector += 1;
        }
        let len = (sector * SECTOR_SIZE - within).min(len);
        Ok((here.then_some(start + self.header.bitmap() + within), len))
    }

    /// Reads all of it, whatever the alignment; zeroes behind the end of the disk.
    ///
    /// # Safety
    /// As [`Storage::read_at`].
    pub(super) unsafe fn read_pieces(&self, mut pieces: Pieces, mut offset: u64) -> io::Result<()> {
        let left = usize::try_from(self.footer.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut inside = pieces.take(left);
        // SAFETY: passed on.
        unsafe { pieces.zero() };
        while inside.len() > 0 {
            let (place, len) = self.look_up(offset, inside.len() as u64)?;
            let part = inside.take(usize::try_from(len).map_err(|_| damaged())?);
            // SAFETY: passed on.
            unsafe {
                match (place, &self.parent) {
                    (Some(place), _) => self.file.read_pieces(part, place)?,
                    (None, Some(parent)) => parent.read_pieces(part, offset)?,
                    (None, None) => part.zero(),
                }
            }
            offset += len;
        }
        Ok(())
    }

    /// Where a block is, after it was added if it was not there.
    fn own_block(&self, state: &mut State, index: usize) -> io::Result<u64> {
        if let Some(start) = self.start(state, index)? {
            return Ok(start);
        }
        let bitmap = self.header.bitmap();
        let start = (state.end + bitmap).next_multiple_of(ALIGNMENT) - bitmap;
        let end = start + self.header.whole();
        let entry = u32::try_from(start / SECTOR_SIZE).ok().filter(|entry| *entry != UNUSED);
        let entry = entry.ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))?;
        if self.file.block_device() {
            // It is as long as it is, and may hold anything. The footer is the copy at its start.
            if end > self.file.len()? {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            self.file.zero(start + bitmap, self.block())?;
        } else {
            self.file.write(&self.footer.bytes, end)?;
        }
        // Sectors of a dynamic disk that are not written are zeroes in either case; programs that do not look at
        // the bitmap find them as such. In a differencing disk they are the parent's.
        let fill = if self.parent.is_some() { 0 } else { 0xff };
        let mut bytes = vec![0; usize::try_from(start - state.end + bitmap).map_err(|_| damaged())?];
        let at = usize::try_from(start - state.end).map_err(|_| damaged())?;
        if let Some(bitmap) = bytes.get_mut(at..) {
            bitmap.fill(fill);
        }
        self.file.write(&bytes, state.end)?;
        state.bitmaps.remove(&index);
        *state.table.get_mut(index).ok_or_else(damaged)? = entry;
        state.new.insert(index);
        state.end = end;
        Ok(start)
    }

    /// Sectors of the bitmap's bytes that these sectors of a block are in.
    fn group(&self, first: u64, last: u64) -> (u64, u64) {
        (first / GROUP * GROUP, (last / GROUP * GROUP + GROUP).min(self.block() / SECTOR_SIZE) - 1)
    }

    fn are_set(&self, index: usize, start: u64, (first, last): (u64, u64)) -> io::Result<bool> {
        let mut state = self.lock();
        let bitmap = self.bitmap(&mut state, index, start)?;
        Ok((first..=last).all(|sector| is_set(bitmap, sector)))
    }

    /// Writes within a block that is at `start`.
    ///
    /// # Safety
    /// As [`Storage::write_at`].
    unsafe fn write_block(&self, part: Pieces, index: usize, start: u64, within: u64) -> io::Result<()> {
        let (first, last) = (within / SECTOR_SIZE, (within + part.len() as u64 - 1) / SECTOR_SIZE);
        let group = self.group(first, last);
        let place = start + self.header.bitmap() + within;
        if self.are_set(index, start, group)? {
            // SAFETY: passed on.
            return unsafe { self.file.write_pieces(part, place) };
        }
        // Nobody else writes to a group that is not whole, or this would write over it.
        let _alone = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        for sector in (group.0..first).chain(last + 1..=group.1) {
            if !self.are_set(index, start, (sector, sector))? {
                let mut bytes = [0; SECTOR_BYTES];
                if let Some(parent) = &self.parent {
                    let offset = index as u64 * self.block() + sector * SECTOR_SIZE;
                    // SAFETY: memory of our own.
                    unsafe { parent.read_pieces(Pieces::of(&mut bytes), offset)? };
                }
                self.file.write(&bytes, start + self.header.bitmap() + sector * SECTOR_SIZE)?;
            }
        }
        // SAFETY: passed on.
        unsafe { self.file.write_pieces(part, place)? };
        self.set_bits(index, start, group)
    }

    /// Notes in the bitmap that sectors of a block are there.
    fn set_bits(&self, index: usize, start: u64, (first, last): (u64, u64)) -> io::Result<()> {
        let mut state = self.lock();
        let bitmap = self.bitmap(&mut state, index, start)?;
        let mut changed = bitmap.clone();
        for sector in first..=last {
            let at = usize::try_from(sector / 8).map_err(|_| damaged())?;
            if let Some(byte) = changed.get_mut(at) {
                *byte |= 0x80 >> (sector % 8);
            }
        }
        // The sectors of the bitmap that these bits are in.
        let bits = SECTOR_SIZE * 8;
        let (from, to) = (first / bits * SECTOR_SIZE, (last / bits + 1) * SECTOR_SIZE);
        let range =
            usize::try_from(from).map_err(|_| damaged())?..usize::try_from(to).map_err(|_| damaged())?;
        self.file.write(changed.get(range).ok_or_else(damaged)?, start + from)?;
        *bitmap = changed;
        Ok(())
    }

    /// Writes the table's new entries, after what they refer to.
    fn sync(&self) -> io::Result<()> {
        let _alone = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        // Sectors of the table with new entries, as they are to be written, and which entries those are.
        let mut sectors: Vec<(u64, Vec<u8>)> = Vec::new();
        let new = {
            let state = self.lock();
            let per_sector = 128;
            let numbers: BTreeSet<usize> = state.new.iter().map(|index| index / per_sector).collect();
            for number in numbers {
                let entries = state.table.iter().skip(number * per_sector).take(per_sector);
                let bytes = entries.flat_map(|entry| entry.to_be_bytes()).collect();
                sectors.push((self.header.table_offset + number as u64 * SECTOR_SIZE, bytes));
            }
            state.new.clone()
        };
        self.file.flush()?;
        if new.is_empty() {
            return Ok(());
        }
        for (offset, bytes) in &sectors {
            self.file.write(bytes, *offset)?;
        }
        self.file.flush()?;
        self.lock().new.retain(|index| !new.contains(index));
        Ok(())
    }
}

fn is_set(bitmap: &[u8], sector: u64) -> bool {
    let byte = usize::try_from(sector / 8).ok().and_then(|at| bitmap.get(at));
    byte.is_some_and(|byte| byte & 0x80 >> (sector % 8) != 0)
}

impl Drop for Vhd {
    fn drop(&mut self) {
        if self.file.readonly() || self.lock().new.is_empty() {
            return;
        }
        if let Err(error) = self.sync() {
            tracing::error!(
                "disk image {}: cannot be closed properly ({error}); what was written since the last flush is lost",
                self.file.path().display()
            );
        }
    }
}

impl Storage for Vhd {
    fn traits(&self) -> Traits {
        let holes = u32::try_from(ALIGNMENT).ok().filter(|_| !self.file.block_device());
        format_traits(&self.file, holes)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.footer.size)
    }

    fn raw(&self) -> Option<std::os::fd::RawFd> {
        None
    }

    unsafe fn read_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.footer.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let pieces = Pieces::new(buffers).take(left);
        let len = pieces.len();
        // SAFETY: the caller's promise.
        unsafe { self.read_pieces(pieces, offset)? };
        Ok(len)
    }

    unsafe fn write_at(&self, buffers: &[IoVec], mut offset: u64) -> io::Result<usize> {
        if self.file.readonly() {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let all = Pieces::new(buffers).len();
        let left = usize::try_from(self.footer.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut pieces = Pieces::new(buffers).take(left);
        let done = pieces.len();
        if done == 0 && all > 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        // A bit stands for a sector: what has less than one has no place here.
        if !offset.is_multiple_of(SECTOR_SIZE) || !(done as u64).is_multiple_of(SECTOR_SIZE) {
            return Err(invalid());
        }
        while pieces.len() > 0 {
            let (index, within) = self.place(offset)?;
            let len = (pieces.len() as u64).min(self.block() - within);
            let start = self.own_block(&mut self.lock(), index)?;
            let part = pieces.take(usize::try_from(len).map_err(|_| damaged())?);
            // SAFETY: the caller's promise.
            unsafe { self.write_block(part, index, start, within)? };
            offset += len;
        }
        if self.lock().new.len() > MAX_NEW {
            self.sync()?;
        }
        Ok(done)
    }

    fn flush(&self) -> io::Result<()> {
        if self.file.readonly() { Ok(()) } else { self.sync() }
    }

    /// Blocks stay where they are; the file system's blocks under them are freed.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= self.footer.size).ok_or_else(invalid)?;
        if self.file.readonly() {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let mut at = offset;
        while at < end && !self.file.block_device() {
            let (index, within) = self.place(at)?;
            let len = (end - at).min(self.block() - within);
            let start = self.start(&self.lock(), index)?;
            if let Some(start) = start {
                let place = start + self.header.bitmap() + within;
                let from = place.next_multiple_of(ALIGNMENT);
                let to = (place + len) / ALIGNMENT * ALIGNMENT;
                if from < to {
                    self.file.discard(from, to - from)?;
                }
            }
            at += len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
