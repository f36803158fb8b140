//! What the bytes of a disk are kept in: a file, a block device, or an image format on top of one.

use std::fmt::Debug;
use std::io;
use std::os::fd::RawFd;

use crate::engine::IoVec;

/// What a storage demands of requests and can do for a guest. It stays as it is while the storage is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Bytes of the smallest unit that can be addressed: 512, or the sectors of a block device.
    pub logical_block: u32,
    /// Bytes of the smallest unit that is written without reading first, at least `logical_block`.
    pub physical_block: u32,
    /// What can be freed; `None`: nothing.
    pub discard: Option<Discard>,
    /// What memory addresses must be multiples of; 1: nothing is demanded.
    pub memory_alignment: u32,
    /// What disk offsets and lengths must be multiples of: more than `logical_block` where direct I/O demands
    /// more than the guest is told. Then a request may have to be widened.
    pub offset_alignment: u32,
    /// Bytes of the largest transfer that the kernel does not split, a multiple of 4096. What it would split it
    /// cannot start without blocking (RWF_NOWAIT).
    pub max_transfer: u32,
}

/// How parts of a storage are given back (the keys `discard-granularity` and `discard-alignment`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Bytes of a unit that can be freed, a multiple of 512. Parts of units may be ignored.
    pub granularity: u32,
    /// Byte offset of the first unit.
    pub alignment: u32,
}

/// The bytes of a disk. Every method blocks until it is done, and may be called by any number of threads at
/// once; what concurrent writes to one place leave there is one of them or a mixture, as on any disk.
///
/// Errors carry the errno that the system gave (`ENOSPC`, `EIO`, ...); corrupt metadata of an image is `EIO`.
pub trait Storage: Send + Sync + Debug {
    /// What it demands and can do.
    fn traits(&self) -> Traits;

    /// Bytes now: the host may resize files and volumes under a running guest.
    fn size(&self) -> io::Result<u64>;

    /// The descriptor on which reads and writes at the same offsets do the same as [`Storage::read_at`] and
    /// [`Storage::write_at`], for engines that do better than to block. `None` for image formats.
    fn raw(&self) -> Option<RawFd>;

    /// Reads from byte `offset` on into the buffers in order. Returns the bytes read: fewer than asked for only
    /// for the reasons that preadv(2) has, 0 only at the end.
    ///
    /// # Safety
    /// The memory that the buffers name stays valid until this returns. The guest may write to it meanwhile.
    unsafe fn read_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize>;

    /// Writes the buffers in order from byte `offset` on. Returns the bytes written.
    ///
    /// # Safety
    /// As [`Storage::read_at`]; what the guest changes meanwhile may be written or not.
    unsafe fn write_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize>;

    /// What was written before is on stable storage when this returns (fdatasync).
    fn flush(&self) -> io::Result<()>;

    /// Frees the range, which may read as anything afterwards; zeroes with everything here. Parts that cannot
    /// be freed stay as they are.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
}
