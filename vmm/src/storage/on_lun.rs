//! A storage on the disk of an iSCSI target.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use blkback::Backing;
use blkback::engine::IoVec;
use blkback::storage::{Storage, Traits};

use super::IscsiDisk;

/// A storage, and the session that it needs. Fields are dropped in their order: the device is closed before
/// the session is.
#[derive(Debug)]
struct OnLun {
    storage: Arc<dyn Storage>,
    _disk: IscsiDisk,
}

impl IscsiDisk {
    /// The backing that was opened on the disk, with the disk: the session lasts as long as the backing.
    pub fn under(self, backing: Backing) -> Backing {
        let storage = Arc::new(OnLun { storage: backing.storage, _disk: self });
        Backing { storage, ..backing }
    }
}

impl Storage for OnLun {
    fn traits(&self) -> Traits {
        self.storage.traits()
    }

    fn size(&self) -> io::Result<u64> {
        self.storage.size()
    }

    fn raw(&self) -> Option<RawFd> {
        self.storage.raw()
    }

    unsafe fn read_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        // SAFETY: the caller promises what the storage demands.
        unsafe { self.storage.read_at(buffers, offset) }
    }

    unsafe fn write_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        // SAFETY: the caller promises what the storage demands.
        unsafe { self.storage.write_at(buffers, offset) }
    }

    fn flush(&self) -> io::Result<()> {
        self.storage.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.storage.discard(offset, len)
    }
}
