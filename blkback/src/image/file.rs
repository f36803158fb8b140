//! One opened and locked file or block device.
//!
//! Direct I/O demands alignment of memory and offsets that metadata and small sectors do not have. What is
//! misaligned goes through aligned memory of our own here, so that the formats need not care.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{PoisonError, RwLock};

use super::locks::{self, LockedFile, Permissions};
use super::pieces::Pieces;
use super::{Access, CacheMode, DirectIo, Format, ImageError, ImageOptions};
use crate::engine::IoVec;
use crate::storage::Discard;

/// Bytes that go through our own memory at once.
const BOUNCE: usize = 256 << 10;

/// The file.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: LockedFile,
    path: PathBuf,
    access: Access,
    block_device: bool,
    direct: Option<DirectIo>,
    /// Whether a flush reaches the disk.
    durable: bool,
    logical_block: u32,
    physical_block: u32,
    discard: Option<Discard>,
    max_transfer: u32,
    /// Whoever writes a part of a unit of direct I/O has it for himself: the rest of the unit is read and
    /// written again, and what others write there meanwhile would be lost.
    units: RwLock<()>,
}

/// What a file is, whatever the path: device and inode.
pub(super) type Identity = (u64, u64);

impl ImageFile {
    /// Opens and locks it. `seen` are the files of the chain so far; it is an error if this is one of them.
    pub(super) fn open(options: &ImageOptions, seen: &mut Vec<Identity>) -> Result<Self, ImageError> {
        let (path, access) = (options.path.as_path(), options.access);
        let readonly = access == Access::ReadOnly;
        let failed = |reason: io::Error| open_error(path, readonly, reason);
        // Looked at before it is opened, because opening a pipe would wait for its other end.
        let kind = std::fs::metadata(path).map_err(failed)?;
        if kind.is_dir() {
            return Err(ImageError::Directory(path.to_owned()));
        }
        let block_device = kind.file_type().is_block_device();
        if !kind.is_file() && !block_device {
            return Err(ImageError::NotADisk(path.to_owned()));
        }
        if seen.contains(&(kind.dev(), kind.ino())) {
            return Err(ImageError::BackingLoop(path.to_owned()));
        }
        let permissions = Permissions::of(access, options.format);
        // For a block device O_EXCL means: unless the host has it mounted or otherwise claimed.
        let exclusive = if block_device && access == Access::Exclusive { libc::O_EXCL } else { 0 };
        let file = OpenOptions::new().read(true).write(!readonly).custom_flags(exclusive).open(path);
        let file = file.map_err(|reason| {
            // A device that another xvmm writes to is claimed too, but then it is also locked.
            let locked =
                || File::open(path).is_ok_and(|file| locks::conflicts(&file, permissions).unwrap_or(false));
            match reason.raw_os_error() {
                Some(libc::EBUSY) if locked() => ImageError::Locked(path.to_owned()),
                _ => failed(reason),
            }
        })?;
        let opened = file.metadata().map_err(failed)?;
        if !(if block_device { opened.file_type().is_block_device() } else { opened.is_file() }) {
            return Err(ImageError::NotADisk(path.to_owned()));
        }
        seen.push((opened.dev(), opened.ino()));
        let file = locks::lock(file, path, permissions)?;
        Self::measure(file, options, block_device)
            .map_err(|reason| ImageError::Io { path: path.to_owned(), reason })
    }

    fn measure(file: LockedFile, options: &ImageOptions, block_device: bool) -> io::Result<Self> {
        let (logical_block, device_block) = if block_device { block_sizes(&file)? } else { (512, 512) };
        let direct = match options.cache {
            CacheMode::Writeback | CacheMode::Unsafe => None,
            CacheMode::None => {
                // Raw sectors are written as they come, and a VHD ends with one: neither bears being widened.
                let any_unit = options.format == Format::Qcow2;
                let direct = direct_io(&file)
                    .filter(|direct| any_unit || direct.offset <= logical_block)
                    .filter(|_| set_direct(&file).is_ok());
                if direct.is_none() {
                    let path = options.path.display();
                    tracing::info!("disk image {path}: direct I/O is not possible, using the page cache");
                }
                direct
            }
        };
        // A file's own blocks are pages: guests do well to align to them, and need not.
        let physical_block = if block_device { device_block.max(logical_block) } else { 4096 };
        let discard = match (options.access, block_device) {
            (Access::ReadOnly, _) => None,
            // File systems free whole pages.
            (_, false) => Some(Discard { granularity: 4096, alignment: 0 }),
            (_, true) => device_discard(&file),
        };
        // The page cache takes everything.
        let max_transfer = direct.and_then(|_| max_transfer(&file, block_device)).unwrap_or(u32::MAX);
        Ok(Self {
            file,
            path: options.path.clone(),
            access: options.access,
            block_device,
            direct,
            durable: options.cache != CacheMode::Unsafe,
            logical_block,
            physical_block,
            discard,
            max_transfer,
            units: RwLock::new(()),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn readonly(&self) -> bool {
        self.access == Access::ReadOnly
    }

    pub(super) fn block_device(&self) -> bool {
        self.block_device
    }

    pub(super) fn direct(&self) -> Option<DirectIo> {
        self.direct
    }

    pub(super) fn logical_block(&self) -> u32 {
        self.logical_block
    }

    pub(super) fn physical_block(&self) -> u32 {
        self.physical_block
    }

    /// What the file system or the device can free.
    pub(super) fn freeable(&self) -> Option<Discard> {
        self.discard
    }

    /// Bytes of the largest transfer that the kernel does not split.
    pub(super) fn max_transfer(&self) -> u32 {
        self.max_transfer
    }

    /// Bytes of memory and offset alignment that direct I/O demands, or (1, 1).
    pub(super) fn alignment(&self) -> (u32, u32) {
        self.direct.map_or((1, 1), |direct| (direct.memory, direct.offset))
    }

    /// Bytes now.
    pub(super) fn len(&self) -> io::Result<u64> {
        if !self.block_device {
            return Ok(self.file.metadata()?.len());
        }
        let mut bytes = 0u64;
        // SAFETY: BLKGETSIZE64 writes a u64.
        result(unsafe { libc::ioctl(self.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) } as isize)?;
        Ok(bytes)
    }

    /// Makes a file longer or shorter; a device is as it is.
    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        if self.block_device {
            return if len <= self.len()? { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC)) };
        }
        self.file.set_len(len)
    }

    /// Whether a range is known to hold nothing (a hole) and so reads as zeroes. It may be wrong in saying no.
    pub(super) fn is_hole(&self, offset: u64, len: u64) -> bool {
        let Ok(start) = libc::off_t::try_from(offset) else { return false };
        if self.block_device {
            return false;
        }
        // SAFETY: the call takes integers only; nobody uses the file's position.
        let data = unsafe { libc::lseek(self.as_raw_fd(), start, libc::SEEK_DATA) };
        match u64::try_from(data) {
            Ok(data) => data >= offset.saturating_add(len),
            Err(_) => io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO),
        }
    }

    /// preadv(2), once.
    ///
    /// # Safety
    /// As [`crate::storage::Storage::read_at`].
    pub(super) unsafe fn preadv(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        let (count, offset) = vector(buffers, offset)?;
        // SAFETY: the caller promises that the memory is valid; IoVec has the layout of iovec.
        result(unsafe { libc::preadv(self.as_raw_fd(), buffers.as_ptr().cast(), count, offset) })
    }

    /// pwritev(2), once.
    ///
    /// # Safety
    /// As [`crate::storage::Storage::write_at`].
    pub(super) unsafe fn pwritev(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        let (count, offset) = vector(buffers, offset)?;
        // SAFETY: as above.
        result(unsafe { libc::pwritev(self.as_raw_fd(), buffers.as_ptr().cast(), count, offset) })
    }

    /// Reads all of it, whatever the alignment; what lies beyond the end of the file is zeroes.
    ///
    /// # Safety
    /// As [`crate::storage::Storage::read_at`].
    pub(super) unsafe fn read_pieces(&self, mut pieces: Pieces, mut offset: u64) -> io::Result<()> {
        let (memory, unit) = self.alignment();
        if !pieces.aligned(memory, unit) || !offset.is_multiple_of(u64::from(unit)) {
            // SAFETY: passed on.
            return unsafe { self.read_bounced(pieces, offset) };
        }
        while pieces.len() > 0 {
            // SAFETY: passed on.
            let done = match retry(|| unsafe { self.preadv(pieces.batch(), offset) })? {
                0 => {
                    // SAFETY: passed on.
                    unsafe { pieces.zero() };
                    return Ok(());
                }
                done => done,
            };
            pieces.advance(done);
            offset += done as u64;
            if !done.is_multiple_of(unit as usize) {
                // The end of the file within a unit: nothing comes after it.
                // SAFETY: passed on.
                unsafe { pieces.zero() };
                return Ok(());
            }
        }
        Ok(())
    }

    unsafe fn read_bounced(&self, mut pieces: Pieces, mut offset: u64) -> io::Result<()> {
        let unit = u64::from(self.alignment().1);
        let mut buffer = AlignedBuffer::new(bounce_size(pieces.len(), unit));
        while pieces.len() > 0 {
            let start = offset - offset % unit;
            let skip = usize_of(offset - start)?;
            let part = pieces.len().min(buffer.len() - skip);
            let whole =
                usize_of((skip + part) as u64).map(|n| n.next_multiple_of(usize_of(unit).unwrap_or(1)))?;
            let got = buffer.get_mut(0, whole)?;
            // SAFETY: memory of our own.
            unsafe { self.read_pieces(Pieces::of(got), start)? };
            // SAFETY: passed on.
            unsafe { pieces.fill_from(buffer.get_mut(skip, part)?) };
            pieces.advance(part);
            offset += part as u64;
        }
        Ok(())
    }

    /// Writes all of it, whatever the alignment.
    ///
    /// # Safety
    /// As [`crate::storage::Storage::write_at`].
    pub(super) unsafe fn write_pieces(&self, mut pieces: Pieces, mut offset: u64) -> io::Result<()> {
        let (memory, unit) = self.alignment();
        let whole_units = offset.is_multiple_of(unit.into()) && pieces.len().is_multiple_of(unit as usize);
        if !whole_units {
            let _alone = self.units.write().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: passed on.
            return unsafe { self.write_bounced(pieces, offset) };
        }
        let _others = (unit > 1).then(|| self.units.read().unwrap_or_else(PoisonError::into_inner));
        if !pieces.aligned(memory, unit) {
            // SAFETY: passed on.
            return unsafe { self.write_bounced(pieces, offset) };
        }
        while pieces.len() > 0 {
            // SAFETY: passed on.
            let done = retry(|| unsafe { self.pwritev(pieces.batch(), offset) })?;
            if done == 0 {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            pieces.advance(done);
            offset += done as u64;
        }
        Ok(())
    }

    /// Called with the units held.
    unsafe fn write_bounced(&self, mut pieces: Pieces, mut offset: u64) -> io::Result<()> {
        let unit = u64::from(self.alignment().1);
        let size = usize_of(unit)?;
        let mut buffer = AlignedBuffer::new(bounce_size(pieces.len(), unit));
        while pieces.len() > 0 {
            let start = offset - offset % unit;
            let skip = usize_of(offset - start)?;
            let part = pieces.len().min(buffer.len() - skip);
            let whole = (skip + part).next_multiple_of(size);
            if skip > 0 {
                // SAFETY: memory of our own.
                unsafe { self.read_pieces(Pieces::of(buffer.get_mut(0, size)?), start)? };
            }
            if skip + part < whole && (skip == 0 || whole > size) {
                let last = whole - size;
                // SAFETY: memory of our own.
                unsafe { self.read_pieces(Pieces::of(buffer.get_mut(last, size)?), start + last as u64)? };
            }
            // SAFETY: passed on.
            unsafe { pieces.copy_to(buffer.get_mut(skip, part)?) };
            let mut done = 0;
            while done < whole {
                let rest = buffer.get_mut(done, whole - done)?;
                let rest = [IoVec::new(rest.as_mut_ptr(), rest.len())];
                // SAFETY: memory of our own.
                match retry(|| unsafe { self.pwritev(&rest, start + done as u64) })? {
                    0 => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
                    n => done += n,
                }
            }
            pieces.advance(part);
            offset += part as u64;
        }
        Ok(())
    }

    /// Reads memory of our own; zeroes beyond the end of the file.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        // SAFETY: the memory is ours.
        unsafe { self.read_pieces(Pieces::of(buffer), offset) }
    }

    /// Writes memory of our own.
    pub(super) fn write(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        // SAFETY: the memory is ours, and is only read.
        unsafe { self.write_pieces(Pieces::of_const(buffer), offset) }
    }

    /// fdatasync, unless that was declared needless.
    pub(super) fn flush(&self) -> io::Result<()> {
        if !self.durable {
            return Ok(());
        }
        // SAFETY: the call takes a descriptor only.
        result(unsafe { libc::fdatasync(self.as_raw_fd()) } as isize).map(drop)
    }

    /// Frees a range: a file reads as zeroes there afterwards.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
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

    /// Makes a range read as zeroes, by freeing it where that does it.
    pub(super) fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 || (!self.block_device && self.discard(offset, len).is_ok()) {
            return Ok(());
        }
        let zeroes = AlignedBuffer::new(usize_of(len.min(BOUNCE as u64))?);
        let mut at = 0;
        while at < len {
            let part = usize_of((len - at).min(zeroes.len() as u64))?;
            self.write(zeroes.get(0, part)?, offset + at)?;
            at += part as u64;
        }
        Ok(())
    }
}

impl AsRawFd for ImageFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn bounce_size(len: usize, unit: u64) -> usize {
    let unit = usize::try_from(unit).unwrap_or(BOUNCE);
    len.saturating_add(2 * unit).min(BOUNCE.max(2 * unit)).next_multiple_of(unit)
}

fn usize_of(n: u64) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn vector(buffers: &[IoVec], offset: u64) -> io::Result<(libc::c_int, libc::off_t)> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    Ok((buffers.len().try_into().map_err(invalid)?, offset.try_into().map_err(invalid)?))
}

/// What a system call returned, or the errno.
fn result(value: isize) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::Error::last_os_error())
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The error for an errno that opening a path gave.
pub(super) fn open_error(path: &Path, readonly: bool, reason: io::Error) -> ImageError {
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

// linux/fs.h: _IOR(0x12, 114, size_t), _IO(0x12, 104), _IO(0x12, 123), _IO(0x12, 119).
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const BLKSSZGET: libc::c_ulong = 0x1268;
const BLKPBSZGET: libc::c_ulong = 0x127b;
const BLKDISCARD: libc::c_ulong = 0x1277;

/// Logical and physical sector size of a block device.
fn block_sizes(file: &File) -> io::Result<(u32, u32)> {
    let get = |request| -> io::Result<u32> {
        let mut bytes: libc::c_uint = 0;
        // SAFETY: both requests write one int.
        result(unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut bytes) } as isize)?;
        Ok(bytes)
    };
    Ok((get(BLKSSZGET)?, get(BLKPBSZGET)?))
}

/// A number that sysfs tells of a block device (Documentation/ABI/stable/sysfs-block).
fn sysfs_number(device: libc::dev_t, name: &str) -> Option<u32> {
    let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device)));
    let number = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().parse().ok();
    // The queue of a partition is that of its disk.
    number(folder.join(name)).or_else(|| number(folder.join("..").join(name)))
}

/// What a block device can free.
fn device_discard(file: &File) -> Option<Discard> {
    let device = file.metadata().ok()?.rdev();
    let granularity = sysfs_number(device, "queue/discard_granularity")?;
    let alignment = sysfs_number(device, "discard_alignment").unwrap_or(0);
    // 0: the device frees nothing.
    (granularity >= 512 && granularity.is_multiple_of(512)).then_some(Discard { granularity, alignment })
}

/// The largest transfer that the block device, or that of the file's file system, takes in one piece, whatever pages
/// it is in; `None` if that is not known.
fn max_transfer(file: &File, block_device: bool) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let device = if block_device { metadata.rdev() } else { metadata.dev() };
    let bytes = sysfs_number(device, "queue/max_sectors_kb")?.saturating_mul(1024);
    let pages = sysfs_number(device, "queue/max_segments")?.saturating_mul(4096);
    Some(bytes.min(pages) & !4095).filter(|max| *max > 0)
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
    let direct = DirectIo { memory: stat.stx_dio_mem_align.max(1), offset: stat.stx_dio_offset_align };
    // More than a page of either is not worth the copies.
    let usable = |n: u32| n.is_power_of_two() && n as usize <= AlignedBuffer::ALIGNMENT;
    (usable(direct.memory) && usable(direct.offset)).then_some(direct)
}

fn set_direct(file: &File) -> io::Result<()> {
    // SAFETY: F_SETFL takes an int; of the flags it changes only those that are open to change.
    result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_DIRECT) } as isize).map(drop)
}

/// Memory that direct I/O can reach.
#[derive(Debug)]
pub(super) struct AlignedBuffer {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory like a Box does.
unsafe impl Send for AlignedBuffer {}

impl AlignedBuffer {
    /// Bytes that its address is a multiple of: a page, more than any direct I/O that is used demands.
    pub(super) const ALIGNMENT: usize = 4096;

    /// `len` zeroes.
    pub(super) fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1), Self::ALIGNMENT).expect("lengths below isize::MAX");
        // SAFETY: the layout is not of size 0.
        let base = unsafe { alloc_zeroed(layout) };
        Self { base: NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }

    pub(super) fn len(&self) -> usize {
        self.layout.size()
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is allocated with this length, initialised, and borrowed with self.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len()) }
    }

    pub(super) fn get(&self, at: usize, len: usize) -> io::Result<&[u8]> {
        let end = at.checked_add(len);
        end.and_then(|end| self.bytes().get(at..end))
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }

    pub(super) fn get_mut(&mut self, at: usize, len: usize) -> io::Result<&mut [u8]> {
        // SAFETY: as above, borrowed mutably with self.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len()) };
        let end = at.checked_add(len);
        end.and_then(|end| bytes.get_mut(at..end)).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}
