//! A disk whose bytes are those of the file, from the first to the last or up to a footer.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::ImageError;
use super::file::ImageFile;
use super::pieces::Pieces;
use crate::engine::IoVec;
use crate::protocol::SECTOR_SIZE;
use crate::storage::{Discard, Storage, Traits};

/// A raw disk.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) file: ImageFile,
    /// Bytes, where the file has more than the disk.
    fixed: Option<u64>,
}

impl Raw {
    /// All of the file.
    pub(super) fn new(file: ImageFile) -> Result<Self, ImageError> {
        let path = || file.path().to_owned();
        let size = file.len().map_err(|reason| ImageError::Io { path: path(), reason })?;
        if size == 0 {
            return Err(ImageError::Empty(path()));
        }
        if size % SECTOR_SIZE != 0 {
            return Err(ImageError::SizeNotAligned { path: path(), size });
        }
        Ok(Self { file, fixed: None })
    }

    /// The first `size` bytes of the file.
    pub(super) fn part(file: ImageFile, size: u64) -> Self {
        Self { file, fixed: Some(size) }
    }

    /// Reads all of it, whatever the alignment; zeroes behind the end of the disk.
    ///
    /// # Safety
    /// As [`Storage::read_at`].
    pub(super) unsafe fn read_pieces(&self, mut pieces: Pieces, offset: u64) -> io::Result<()> {
        let left = self.size()?.saturating_sub(offset);
        let inside = pieces.take(usize::try_from(left).unwrap_or(usize::MAX));
        // SAFETY: passed on.
        unsafe {
            pieces.zero();
            self.file.read_pieces(inside, offset)
        }
    }

    /// Cuts what lies beyond the disk off, where the disk is not all of the file.
    fn bounded(&self, buffers: &[IoVec], offset: u64) -> Option<Pieces> {
        let left = self.fixed?.saturating_sub(offset);
        let mut pieces = Pieces::new(buffers);
        if pieces.len() as u64 <= left {
            return None;
        }
        Some(pieces.take(usize::try_from(left).unwrap_or(usize::MAX)))
    }
}

impl Storage for Raw {
    fn traits(&self) -> Traits {
        let (memory, offset) = self.file.alignment();
        Traits {
            logical_block: self.file.logical_block(),
            physical_block: self.file.physical_block(),
            discard: self.file.freeable(),
            memory_alignment: memory,
            offset_alignment: offset.max(self.file.logical_block()),
            max_transfer: self.file.max_transfer(),
        }
    }

    fn size(&self) -> io::Result<u64> {
        self.fixed.map_or_else(|| self.file.len(), Ok)
    }

    fn raw(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }

    unsafe fn read_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        match self.bounded(buffers, offset) {
            // SAFETY: the caller's promise.
            Some(pieces) => unsafe { self.file.preadv(pieces.list(), offset) },
            // SAFETY: as above.
            None => unsafe { self.file.preadv(buffers, offset) },
        }
    }

    unsafe fn write_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        match self.bounded(buffers, offset) {
            Some(_) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            // SAFETY: the caller's promise.
            None => unsafe { self.file.pwritev(buffers, offset) },
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        match self.fixed {
            Some(size) if end > size => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            _ => self.file.discard(offset, len),
        }
    }
}

/// Bytes of a sector of a disk in an image format.
const SECTOR: u32 = 512;

/// What a disk in an image format demands: nothing, it aligns what direct I/O wants aligned.
pub(super) fn format_traits(file: &ImageFile, granularity: Option<u32>) -> Traits {
    let granularity = granularity.filter(|_| !file.readonly());
    Traits {
        logical_block: SECTOR,
        physical_block: 4096,
        discard: granularity.map(|granularity| Discard { granularity, alignment: 0 }),
        memory_alignment: 1,
        offset_alignment: SECTOR,
        max_transfer: u32::MAX,
    }
}
