//! The bytes of an ELF image: unpacked in memory, or still in their file.
//!
//! An image that is not compressed goes from its file straight into guest RAM. By way of a buffer each of its
//! tens of MiB would be cleared and copied once more before the guest starts.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use devices::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::ImageError;

/// Where the image is.
#[derive(Debug)]
pub(super) enum Image {
    Memory(Vec<u8>),
    /// With its length when it was opened. The owner of the file may change it at any time: what was read once
    /// is not read again, but for the segments, which are only the guest's affair.
    File(File, usize),
}

impl Image {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::File(_, len) => *len,
        }
    }

    /// A part of the image; the caller bounds its size.
    pub(super) fn read(&self, range: Range<usize>) -> Result<Cow<'_, [u8]>, ImageError> {
        let truncated = ImageError::Truncated {
            what: "ELF image",
            expected: range.end as u64,
            actual: self.len() as u64,
        };
        if range.start > range.end || range.end > self.len() {
            return Err(truncated);
        }
        match self {
            Self::Memory(bytes) => bytes.get(range).map(Cow::Borrowed).ok_or(truncated),
            Self::File(file, _) => {
                let mut bytes = vec![0; range.len()];
                let done = file.read_exact_at(&mut bytes, range.start as u64);
                done.map_err(|error| ImageError::Unreadable(error.to_string()))?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// Puts a part of the image into guest RAM.
    pub(super) fn load(&self, range: Range<usize>, ram: &GuestRam, gpa: u64) -> Result<(), GuestMemoryError> {
        match self {
            Self::Memory(bytes) => ram.write_slice(bytes.get(range).unwrap_or_default(), GuestAddress(gpa)),
            Self::File(file, _) => {
                let mut file = file.try_clone().map_err(GuestMemoryError::IOError)?;
                file.seek(SeekFrom::Start(range.start as u64)).map_err(GuestMemoryError::IOError)?;
                ram.read_exact_volatile_from(GuestAddress(gpa), &mut file, range.len()).map_err(shorter)
            }
        }
    }
}

/// The end of a file that has just been found long enough.
pub(super) fn shorter(error: GuestMemoryError) -> GuestMemoryError {
    match error {
        GuestMemoryError::PartialBuffer { .. } => {
            GuestMemoryError::IOError(io::Error::other("it became shorter while it was read"))
        }
        error => error,
    }
}
