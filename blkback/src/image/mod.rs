//! Disk images: raw files and block devices, qcow2 and VHD, locked against other users.
//!
//! A format is never guessed from the content (XSA-258): a guest that writes a header of another format to a
//! raw disk would choose what the host opens next. An image has the format that its owner states; the files
//! behind it have the format that the image states.

mod error;
mod file;
mod locks;
mod pieces;
mod qcow2;
mod raw;
mod vhd;

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

pub use error::ImageError;

use self::file::{Identity, ImageFile};
use self::pieces::Pieces;
use self::qcow2::Qcow2;
use self::raw::Raw;
use self::vhd::Vhd;
use crate::engine::IoVec;
use crate::storage::{Storage, Traits};

/// What the bytes of an image mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the disk, from the first to the last.
    #[default]
    Raw,
    /// QEMU's format, version 2 or 3 (docs/interop/qcow2.txt of QEMU).
    Qcow2,
    /// Microsoft's and Xen's format: fixed, dynamic or differencing (Virtual Hard Disk Image Format
    /// Specification 1.0).
    Vhd,
}

impl Format {
    /// How to mend a damaged image.
    fn repair(self, path: &Path) -> String {
        match self {
            Self::Qcow2 => {
                format!("repair it with `qemu-img check -r all {}`, or restore a backup", path.display())
            }
            Self::Raw | Self::Vhd => "restore a backup".into(),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "VHD",
        })
    }
}

/// Who else may use an image meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// We read; others may read (`r`).
    ReadOnly,
    /// We write; nobody else uses it (`w`).
    Exclusive,
    /// We write; others that say the same may write too (`w!`). Raw images only.
    Shared,
}

/// Where written data is when the guest hears of it, and when its flush is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Direct I/O, where the file system can do it; a flush reaches the disk.
    #[default]
    None,
    /// The host's page cache; a flush reaches the disk.
    Writeback,
    /// The host's page cache; a flush does nothing. For data that may be lost when the host stops.
    Unsafe,
}

/// How an image is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageOptions {
    /// The file or block device.
    pub path: PathBuf,
    /// What is in it.
    pub format: Format,
    /// Who else may use it.
    pub access: Access,
    /// How it is written.
    pub cache: CacheMode,
}

/// Files of a chain of backing files, with the image itself.
const MAX_CHAIN: usize = 64;

/// What direct I/O (past the page cache) demands of a request, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectIo {
    /// Memory addresses are multiples of this.
    pub memory: u32,
    /// Disk offsets and lengths are multiples of this.
    pub offset: u32,
}

/// An opened and locked disk image with all files behind it. The locks end with it.
#[derive(Debug)]
pub struct DiskImage {
    options: ImageOptions,
    node: Node,
    size: u64,
}

impl DiskImage {
    /// Opens a raw image file or a block device, past the page cache: any number of read-only users, or one
    /// that writes.
    pub fn open(path: &Path, readonly: bool) -> Result<Self, ImageError> {
        let access = if readonly { Access::ReadOnly } else { Access::Exclusive };
        let path = path.to_owned();
        Self::open_with(&ImageOptions { path, format: Format::Raw, access, cache: CacheMode::None })
    }

    /// Opens an image and the files behind it, and locks all of them.
    pub fn open_with(options: &ImageOptions) -> Result<Self, ImageError> {
        let node = Node::open(options, &mut Vec::new())?;
        let size = node.storage().size();
        let size = size.map_err(|reason| ImageError::Io { path: options.path.clone(), reason })?;
        Ok(Self { options: options.clone(), node, size })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.options.path
    }

    /// How it was opened.
    pub fn options(&self) -> &ImageOptions {
        &self.options
    }

    /// Whether it was opened for reading only.
    pub fn readonly(&self) -> bool {
        self.options.access == Access::ReadOnly
    }

    /// Whether it is in a block device, not a file.
    pub fn is_block_device(&self) -> bool {
        self.node.file().block_device()
    }

    /// Bytes of the disk when it was opened, a multiple of 512.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the disk now: the host may resize files and volumes under a running guest.
    pub fn current_size(&self) -> io::Result<u64> {
        self.node.storage().size()
    }

    /// Bytes of the smallest unit that can be addressed: 512, or what the block device says.
    pub fn logical_block(&self) -> u32 {
        self.traits().logical_block
    }

    /// Bytes of the smallest unit that is written without reading first.
    pub fn physical_block(&self) -> u32 {
        self.traits().physical_block
    }

    #[cfg(test)]
    fn node(&self) -> &Node {
        &self.node
    }

    /// What direct I/O demands; `None`: I/O goes through the page cache and demands nothing.
    pub fn direct(&self) -> Option<DirectIo> {
        self.node.file().direct()
    }
}

impl Storage for DiskImage {
    fn traits(&self) -> Traits {
        self.node.storage().traits()
    }

    fn size(&self) -> io::Result<u64> {
        self.node.storage().size()
    }

    fn raw(&self) -> Option<RawFd> {
        self.node.storage().raw()
    }

    unsafe fn read_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        // SAFETY: the caller's promise.
        unsafe { self.node.storage().read_at(buffers, offset) }
    }

    unsafe fn write_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        // SAFETY: the caller's promise.
        unsafe { self.node.storage().write_at(buffers, offset) }
    }

    fn flush(&self) -> io::Result<()> {
        self.node.storage().flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.node.storage().discard(offset, len)
    }
}

/// One image of a chain.
#[derive(Debug)]
enum Node {
    Raw(Raw),
    Qcow2(Box<Qcow2>),
    Vhd(Box<Vhd>),
}

impl Node {
    /// Opens an image and what is behind it; `seen` are the files in front of it.
    fn open(options: &ImageOptions, seen: &mut Vec<Identity>) -> Result<Self, ImageError> {
        if options.format != Format::Raw && options.access == Access::Shared {
            let path = options.path.clone();
            return Err(ImageError::NotShareable { path, format: options.format });
        }
        if seen.len() >= MAX_CHAIN {
            return Err(ImageError::ChainTooLong { path: options.path.clone(), limit: MAX_CHAIN });
        }
        let file = ImageFile::open(options, seen)?;
        match options.format {
            Format::Raw => Raw::new(file).map(Self::Raw),
            Format::Qcow2 => Qcow2::open(file, options, seen).map(|image| Self::Qcow2(Box::new(image))),
            Format::Vhd => vhd::open(file, options, seen),
        }
    }

    fn file(&self) -> &ImageFile {
        match self {
            Self::Raw(raw) => &raw.file,
            Self::Qcow2(image) => &image.file,
            Self::Vhd(image) => &image.file,
        }
    }

    fn storage(&self) -> &dyn Storage {
        match self {
            Self::Raw(raw) => raw,
            Self::Qcow2(image) => image.as_ref(),
            Self::Vhd(image) => image.as_ref(),
        }
    }

    /// Reads all of it, whatever the alignment; zeroes behind the end of the disk.
    ///
    /// # Safety
    /// As [`Storage::read_at`].
    unsafe fn read_pieces(&self, pieces: Pieces, offset: u64) -> io::Result<()> {
        // SAFETY: passed on.
        unsafe {
            match self {
                Self::Raw(raw) => raw.read_pieces(pieces, offset),
                Self::Qcow2(image) => image.read_pieces(pieces, offset),
                Self::Vhd(image) => image.read_pieces(pieces, offset),
            }
        }
    }
}

#[cfg(test)]
mod full;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
