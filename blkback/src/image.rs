//! Disk images: raw files and block devices, locked against other users.
//!
//! A format is never guessed (XSA-258): an image is what its bytes are, from the first to the last.
//!
//! Locks are open-file-description locks on the bytes that QEMU uses for the same purpose, so that each of
//! the two programs respects the other. Byte 100 + n is locked shared by whoever uses permission n, byte
//! 200 + n by whoever does not share permission n with others. Conflicts are found by asking whether an
//! exclusive lock would be possible: after the own locks are taken, so that of two programs that start at
//! once at least one sees the other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::engine::IoVec;
use crate::protocol::SECTOR_SIZE;
use crate::storage::{Discard, Storage, Traits};

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
    /// The file has no bytes.
    #[error("disk image {path} is empty; give it a size, if it is a file with `truncate -s 10G {path}`", path = .0.display())]
    Empty(PathBuf),
    /// The size is not a whole number of sectors.
    #[error(
        "disk image {0} has {size} bytes, which is not a multiple of 512; extend it with `truncate -s %512 {0}`, \
         or convert it if it is not a raw image",
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
    /// Anything else.
    #[error("disk image {0} cannot be opened: {reason}", .path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
}

/// What direct I/O (past the page cache) demands of a request, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectIo {
    /// Memory addresses are multiples of this.
    pub memory: u32,
    /// Disk offsets and lengths are multiples of this.
    pub offset: u32,
}

/// An opened and locked disk image. The lock ends with it.
#[derive(Debug)]
pub struct DiskImage {
    file: File,
    path: PathBuf,
    readonly: bool,
    block_device: bool,
    size: u64,
    logical_block: u32,
    physical_block: u32,
    direct: Option<DirectIo>,
}

impl DiskImage {
    /// Opens a raw image file or a block device, and locks it: any number of read-only users, or one that
    /// writes.
    pub fn open(path: &Path, readonly: bool) -> Result<Self, ImageError> {
        let failed = |reason: io::Error| open_error(path, readonly, reason);
        // Looked at before it is opened, because opening a pipe would wait for its other end.
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if kind.is_dir() {
            return Err(ImageError::Directory(path.to_owned()));
        }
        let block_device = kind.is_block_device();
        if !kind.is_file() && !block_device {
            return Err(ImageError::NotADisk(path.to_owned()));
        }
        // For a block device O_EXCL means: unless the host has it mounted or otherwise claimed.
        let exclusive = if block_device && !readonly { libc::O_EXCL } else { 0 };
        let file = OpenOptions::new().read(true).write(!readonly).custom_flags(exclusive).open(path);
        let file = file.map_err(|reason| {
            // A device that another xvmm writes to is claimed too, but then it is also locked.
            let locked = || File::open(path).is_ok_and(|file| conflicts(&file, readonly).unwrap_or(false));
            match reason.raw_os_error() {
                Some(libc::EBUSY) if locked() => ImageError::Locked(path.to_owned()),
                _ => failed(reason),
            }
        })?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !(if block_device { kind.is_block_device() } else { kind.is_file() }) {
            return Err(ImageError::NotADisk(path.to_owned()));
        }
        lock(&file, path, readonly)?;
        Self::measure(file, path, readonly, block_device)
    }

    fn measure(file: File, path: &Path, readonly: bool, block_device: bool) -> Result<Self, ImageError> {
        let io = |reason| ImageError::Io { path: path.to_owned(), reason };
        let size = size_of_file(&file, block_device).map_err(io)?;
        if size == 0 {
            return Err(ImageError::Empty(path.to_owned()));
        }
        if size % SECTOR_SIZE != 0 {
            return Err(ImageError::SizeNotAligned { path: path.to_owned(), size });
        }
        let (logical_block, device_block) =
            if block_device { block_sizes(&file).map_err(io)? } else { (512, 512) };
        let direct = match direct_io(&file) {
            Some(direct) if direct.offset <= logical_block && set_direct(&file).is_ok() => Some(direct),
            _ => {
                tracing::info!(
                    "disk image {}: direct I/O is not possible, using the page cache",
                    path.display()
                );
                None
            }
        };
        // A file's own blocks are pages: guests do well to align to them, and need not.
        let physical_block = if block_device { device_block.max(logical_block) } else { 4096 };
        let path = path.to_owned();
        Ok(Self { file, path, readonly, block_device, size, logical_block, physical_block, direct })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was opened for reading only.
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// Whether it is a block device, not a file.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Bytes when it was opened, a multiple of 512.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes now: the host may resize files and volumes under a running guest.
    pub fn current_size(&self) -> io::Result<u64> {
        size_of_file(&self.file, self.block_device)
    }

    /// Bytes of the smallest unit that can be addressed: 512, or what the block device says.
    pub fn logical_block(&self) -> u32 {
        self.logical_block
    }

    /// Bytes of the smallest unit that is written without reading first.
    pub fn physical_block(&self) -> u32 {
        self.physical_block
    }

    /// What direct I/O demands; `None`: I/O goes through the page cache and demands nothing.
    pub fn direct(&self) -> Option<DirectIo> {
        self.direct
    }
}

impl Storage for DiskImage {
    fn traits(&self) -> Traits {
        let (memory, offset) = self.direct.map_or((1, 512), |direct| (direct.memory, direct.offset));
        // Files free whole pages; devices say by themselves what they ignore.
        let granularity = if self.block_device { self.physical_block } else { 4096 };
        Traits {
            logical_block: self.logical_block,
            physical_block: self.physical_block,
            discard: (!self.readonly).then_some(Discard { granularity, alignment: 0 }),
            memory_alignment: memory,
            offset_alignment: offset.max(self.logical_block),
        }
    }

    fn size(&self) -> io::Result<u64> {
        self.current_size()
    }

    fn raw(&self) -> Option<RawFd> {
        Some(self.as_raw_fd())
    }

    unsafe fn read_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        let (count, offset) = vector(buffers, offset)?;
        // SAFETY: the caller promises that the memory is valid; IoVec has the layout of iovec.
        result(unsafe { libc::preadv(self.as_raw_fd(), buffers.as_ptr().cast(), count, offset) })
    }

    unsafe fn write_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        let (count, offset) = vector(buffers, offset)?;
        // SAFETY: as above.
        result(unsafe { libc::pwritev(self.as_raw_fd(), buffers.as_ptr().cast(), count, offset) })
    }

    fn flush(&self) -> io::Result<()> {
        // SAFETY: the call takes a descriptor only.
        result(unsafe { libc::fdatasync(self.as_raw_fd()) } as isize).map(drop)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.block_device {
            let range = [offset, len];
            // SAFETY: BLKDISCARD reads two u64.
            return result(unsafe { libc::ioctl(self.as_raw_fd(), BLKDISCARD, range.as_ptr()) } as isize)
                .map(drop);
        }
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let cut = |n| libc::off_t::try_from(n).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
        // SAFETY: the call takes integers only.
        result(unsafe { libc::fallocate(self.as_raw_fd(), mode, cut(offset)?, cut(len)?) } as isize).map(drop)
    }
}

fn vector(buffers: &[IoVec], offset: u64) -> io::Result<(libc::c_int, libc::off_t)> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    Ok((buffers.len().try_into().map_err(invalid)?, offset.try_into().map_err(invalid)?))
}

/// What a system call returned, or the errno.
fn result(value: isize) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::Error::last_os_error())
}

impl AsRawFd for DiskImage {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn open_error(path: &Path, readonly: bool, reason: io::Error) -> ImageError {
    let path = path.to_owned();
    match reason.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => ImageError::Missing(path),
        Some(libc::EROFS | libc::ETXTBSY) => ImageError::NotWritable { path, reason },
        Some(libc::EBUSY) => ImageError::InUseByHost(path),
        // Only the attempt tells a file that may be read from one that may not.
        Some(libc::EACCES | libc::EPERM) if !readonly && File::open(&path).is_ok() => {
            ImageError::NotWritable { path, reason }
        }
        Some(libc::EACCES | libc::EPERM) => ImageError::NotPermitted(path),
        _ => ImageError::Io { path, reason },
    }
}

// Permissions as QEMU numbers them; the lock byte is the base plus this number.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
const USED_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;

/// The permissions that we use.
fn used(readonly: bool) -> &'static [i64] {
    if readonly { &[CONSISTENT_READ] } else { &[CONSISTENT_READ, WRITE] }
}

/// The permissions that we do not share.
const UNSHARED: [i64; 2] = [WRITE, RESIZE];

fn lock(file: &File, path: &Path, readonly: bool) -> Result<(), ImageError> {
    let no_locks = |reason| ImageError::NoLocks { path: path.to_owned(), reason };
    let used = used(readonly).iter().map(|p| USED_BASE + p);
    for byte in used.chain(UNSHARED.map(|p| UNSHARED_BASE + p)) {
        match lock_byte(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte) {
            Ok(_) => {}
            // Somebody holds the byte exclusively, which QEMU never does: it is locked all the same.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Err(ImageError::Locked(path.to_owned()));
            }
            Err(e) => return Err(no_locks(e)),
        }
    }
    if conflicts(file, readonly).map_err(no_locks)? {
        Err(ImageError::Locked(path.to_owned()))
    } else {
        Ok(())
    }
}

/// Whether somebody does not share what we use, or uses what we do not share.
fn conflicts(file: &File, readonly: bool) -> io::Result<bool> {
    let used = used(readonly).iter().map(|p| UNSHARED_BASE + p);
    for byte in used.chain(UNSHARED.map(|p| USED_BASE + p)) {
        let lock = lock_byte(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)?;
        if i32::from(lock.l_type) != libc::F_UNLCK {
            return Ok(true);
        }
    }
    Ok(false)
}

fn lock_byte(file: &File, command: libc::c_int, kind: libc::c_int, byte: i64) -> io::Result<libc::flock> {
    let short = |value: libc::c_int| libc::c_short::try_from(value).map_err(io::Error::other);
    let mut lock = libc::flock {
        l_type: short(kind)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: both commands take a pointer to a flock, which outlives the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock)
}

fn size_of_file(file: &File, block_device: bool) -> io::Result<u64> {
    if !block_device {
        return Ok(file.metadata()?.len());
    }
    let mut bytes = 0u64;
    // SAFETY: BLKGETSIZE64 writes a u64.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes)
}

// linux/fs.h: _IOR(0x12, 114, size_t), _IO(0x12, 104), _IO(0x12, 123), _IO(0x12, 119).
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const BLKSSZGET: libc::c_ulong = 0x1268;
const BLKPBSZGET: libc::c_ulong = 0x127b;
const BLKDISCARD: libc::c_ulong = 0x1277;

/// Logical and physical sector size of a block device.
fn block_sizes(file: &File) -> io::Result<(u32, u32)> {
    let get = |request| {
        let mut bytes: libc::c_uint = 0;
        // SAFETY: both requests write one int.
        if unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut bytes) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(bytes)
    };
    Ok((get(BLKSSZGET)?, get(BLKPBSZGET)?))
}

/// What direct I/O on the file demands; `None` if it is not possible, or the kernel (before 6.1) or the file
/// system does not tell.
fn direct_io(file: &File) -> Option<DirectIo> {
    // SAFETY: all zeroes is a valid statx record.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string, and the record outlives the call.
    let result = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut stat)
    };
    if result < 0 || stat.stx_mask & libc::STATX_DIOALIGN == 0 || stat.stx_dio_offset_align == 0 {
        return None;
    }
    Some(DirectIo { memory: stat.stx_dio_mem_align.max(1), offset: stat.stx_dio_offset_align })
}

fn set_direct(file: &File) -> io::Result<()> {
    // SAFETY: F_SETFL takes an int; of the flags it changes only those that are open to change.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_DIRECT) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    #[test]
    fn a_file_of_whole_sectors_is_a_disk() {
        let file = file(5 * 512);
        let image = DiskImage::open(file.path(), false).unwrap();
        assert_eq!((image.size(), image.logical_block(), image.readonly()), (5 * 512, 512, false));
        assert!(!image.is_block_device());
    }

    #[test]
    fn a_missing_file_is_told_with_its_path() {
        let error = DiskImage::open(Path::new("/nowhere/disk.img"), false).unwrap_err();
        assert!(matches!(error, ImageError::Missing(_)));
        assert!(error.to_string().contains("/nowhere/disk.img"), "{error}");
    }

    #[test]
    fn a_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = DiskImage::open(dir.path(), true).unwrap_err();
        assert!(matches!(error, ImageError::Directory(_)), "{error}");
    }

    #[test]
    fn a_character_device_is_refused() {
        let error = DiskImage::open(Path::new("/dev/zero"), true).unwrap_err();
        assert!(matches!(error, ImageError::NotADisk(_)), "{error}");
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_its_other_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a valid C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let error = DiskImage::open(&path, true).unwrap_err();
        assert!(matches!(error, ImageError::NotADisk(_)), "{error}");
    }

    #[test]
    fn an_empty_file_is_refused() {
        let error = DiskImage::open(file(0).path(), false).unwrap_err();
        assert!(matches!(error, ImageError::Empty(_)), "{error}");
    }

    #[test]
    fn a_piece_of_a_sector_is_refused() {
        let error = DiskImage::open(file(1000).path(), false).unwrap_err();
        assert!(matches!(error, ImageError::SizeNotAligned { size: 1000, .. }), "{error}");
    }

    #[test]
    fn system_errors_become_their_own_kinds() {
        let file = file(512);
        let error = |readonly, errno| open_error(file.path(), readonly, io::Error::from_raw_os_error(errno));
        assert!(matches!(error(false, libc::EROFS), ImageError::NotWritable { .. }));
        // The file can be read, so it is the writing that is not permitted.
        assert!(matches!(error(false, libc::EACCES), ImageError::NotWritable { .. }));
        assert!(matches!(error(true, libc::EACCES), ImageError::NotPermitted(_)));
        assert!(matches!(error(false, libc::EBUSY), ImageError::InUseByHost(_)));
        assert!(matches!(error(false, libc::EIO), ImageError::Io { .. }));
    }

    #[test]
    fn one_writer_excludes_everybody_else() {
        let file = file(512);
        let writer = DiskImage::open(file.path(), false).unwrap();
        assert!(matches!(DiskImage::open(file.path(), false), Err(ImageError::Locked(_))));
        assert!(matches!(DiskImage::open(file.path(), true), Err(ImageError::Locked(_))));
        drop(writer);
        assert!(DiskImage::open(file.path(), false).is_ok());
    }

    #[test]
    fn readers_share_and_exclude_a_writer() {
        let file = file(512);
        let _readers =
            [DiskImage::open(file.path(), true).unwrap(), DiskImage::open(file.path(), true).unwrap()];
        assert!(matches!(DiskImage::open(file.path(), false), Err(ImageError::Locked(_))));
    }

    /// Somebody else's lock on one byte.
    fn foreign_lock(file: &tempfile::NamedTempFile, byte: i64) -> File {
        let other = File::open(file.path()).unwrap();
        lock_byte(&other, libc::F_OFD_SETLK, libc::F_RDLCK, byte).unwrap();
        other
    }

    #[test]
    fn the_bytes_that_qemu_locks_are_respected() {
        // Byte, and whether a reader and a writer may have the image all the same.
        let cases = [
            (100, true, true),   // reads
            (101, false, false), // writes
            (103, false, false), // resizes
            (200, false, false), // lets nobody read
            (201, true, false),  // lets nobody write
            (203, true, true),   // lets nobody resize
        ];
        for (byte, reader, writer) in cases {
            let file = file(512);
            let _other = foreign_lock(&file, byte);
            assert_eq!(DiskImage::open(file.path(), true).is_ok(), reader, "reader, byte {byte}");
            assert_eq!(DiskImage::open(file.path(), false).is_ok(), writer, "writer, byte {byte}");
        }
    }

    #[test]
    fn the_bytes_that_qemu_asks_for_are_locked() {
        for (readonly, expected) in [(true, &[100, 201, 203][..]), (false, &[100, 101, 201, 203])] {
            let file = file(512);
            let _image = DiskImage::open(file.path(), readonly).unwrap();
            let other = File::open(file.path()).unwrap();
            let locked = |byte: &i64| {
                let lock = lock_byte(&other, libc::F_OFD_GETLK, libc::F_WRLCK, *byte).unwrap();
                i32::from(lock.l_type) != libc::F_UNLCK
            };
            let locked: Vec<i64> = (0..300).filter(locked).collect();
            assert_eq!(locked, expected, "readonly: {readonly}");
        }
    }

    #[test]
    fn current_size_follows_the_file() {
        let file = file(512);
        let image = DiskImage::open(file.path(), true).unwrap();
        file.as_file().set_len(2048).unwrap();
        assert_eq!((image.size(), image.current_size().unwrap()), (512, 2048));
    }
}
