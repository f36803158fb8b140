//! Why a disk image cannot be used.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::Format;

/// Why a disk image cannot be used.
#[derive(Debug, Error)]
pub enum ImageError {
    /// There is no such file.
    #[error("disk image {path}: there is no such file; make it with `truncate -s 10G {path}` or correct the path", path = .0.display())]
    Missing(PathBuf),
    /// The path is a directory.
    #[error("disk image {path} is a directory; name a file or a block device", path = .0.display())]
    Directory(PathBuf),
    /// A character device, a pipe or a socket.
    #[error("disk image {path} is neither a file nor a block device; name one of these", path = .0.display())]
    NotADisk(PathBuf),
    /// The file has no bytes, or the image no sectors.
    #[error("disk image {path} is empty; give it a size, if it is a raw file with `truncate -s 10G {path}`", path = .0.display())]
    Empty(PathBuf),
    /// The size is not a whole number of sectors.
    #[error(
        "disk image {0} has {size} bytes, which is not a multiple of 512; extend it with `truncate -s %512 {0}`, \
         or state its format if it is not a raw image",
        .path.display()
    )]
    SizeNotAligned {
        /// The image.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// It can be read and not written.
    #[error("disk image {0} cannot be written ({reason}); change that or attach it read-only", .path.display())]
    NotWritable {
        /// The image.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// It cannot even be read.
    #[error("disk image {path} may not be opened by this user; change its owner or mode, or start as another user", path = .0.display())]
    NotPermitted(PathBuf),
    /// Another process uses it in a way that does not go together with ours. Who that is the caller may know.
    #[error("disk image {path} is in use by another process; stop that one, or attach the image read-only in both", path = .0.display())]
    Locked(PathBuf),
    /// The host itself uses the block device.
    #[error("disk image {path} is in use by the host (mounted, or part of a volume group or an array); release it first", path = .0.display())]
    InUseByHost(PathBuf),
    /// The file system has no locks.
    #[error("disk image {0} cannot be locked ({reason}); mount its file system with support for locks", .path.display())]
    NoLocks {
        /// The image.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// Several writers cannot agree on the metadata of an image format.
    #[error(
        "disk image {0}: {format} has no shared writing (w!), its metadata has one writer; share a raw image",
        .path.display()
    )]
    NotShareable {
        /// The image.
        path: PathBuf,
        /// Its format.
        format: Format,
    },
    /// The bytes are not of the format that was stated.
    #[error(
        "disk image {0} is not {format}: {what}; state the format that it has (`qemu-img info` tells), or raw",
        .path.display()
    )]
    WrongFormat {
        /// The image.
        path: PathBuf,
        /// The format that was stated.
        format: Format,
        /// What shows it.
        what: String,
    },
    /// The format has more than is served here.
    #[error("disk image {0} {what}, which is not supported; {way_out}", .path.display())]
    Unsupported {
        /// The image.
        path: PathBuf,
        /// "is encrypted".
        what: String,
        /// What to do.
        way_out: String,
    },
    /// The metadata contradicts itself, or the file.
    #[error("disk image {0} is a damaged {format} image: {what}; {way_out}", .path.display(), way_out = .format.repair(.path))]
    Corrupt {
        /// The image.
        path: PathBuf,
        /// Its format.
        format: Format,
        /// What is wrong.
        what: String,
    },
    /// Somebody found damage before and marked the image.
    #[error(
        "disk image {path} is marked as damaged; repair it with `qemu-img check -r all {path}`, or attach it read-only",
        path = .0.display()
    )]
    MarkedCorrupt(PathBuf),
    /// A backing file whose format would have to be guessed (XSA-258).
    #[error(
        "disk image {0} does not state the format of its backing file {backing}; \
         state it with `qemu-img rebase -u -b {backing} -F FORMAT {0}`",
        .path.display()
    )]
    BackingFormatMissing {
        /// The image.
        path: PathBuf,
        /// Its backing file as it is written there.
        backing: String,
    },
    /// A backing chain that comes back to a file of its own.
    #[error("disk image {path} is its own backing file, directly or through others; give it another with `qemu-img rebase -u`", path = .0.display())]
    BackingLoop(PathBuf),
    /// More files than anybody needs.
    #[error(
        "disk image {0} has a chain of more than {limit} backing files; shorten it with `qemu-img commit` or `qemu-img rebase`",
        .path.display()
    )]
    ChainTooLong {
        /// The first file beyond the limit.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A backing file cannot be used.
    #[error("disk image {0} has a backing file that cannot be used: {reason}", .path.display())]
    Backing {
        /// The image.
        path: PathBuf,
        /// Why the backing file cannot be used.
        reason: Box<ImageError>,
    },
    /// None of the places that a differencing VHD names has its parent.
    #[error(
        "disk image {0} needs its parent, and none is where it says ({tried}); put the parent beside it under that name",
        .path.display()
    )]
    ParentMissing {
        /// The image.
        path: PathBuf,
        /// The places.
        tried: String,
    },
    /// Anything else.
    #[error("disk image {0} cannot be opened: {reason}", .path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
}
