//! What the threads of a disk share: the image, its size, what happened so far.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::image::DiskImage;
use crate::protocol::{DiskLimits, SECTOR_SIZE};

/// Lines that one disk's frontend may cause in the log, over all its connections (XSA-180).
const MAX_COMPLAINTS: u32 = 32;

/// Counters of a disk since it was made.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests taken from the rings.
    pub requests: AtomicU64,
    /// Reads that were done.
    pub reads: AtomicU64,
    /// Writes that were done.
    pub writes: AtomicU64,
    /// Flushes that were done.
    pub flushes: AtomicU64,
    /// Bytes read by the guest.
    pub bytes_read: AtomicU64,
    /// Bytes written by the guest.
    pub bytes_written: AtomicU64,
    /// Requests refused or failed.
    pub errors: AtomicU64,
    /// Events sent to the guest.
    pub notifications: AtomicU64,
    /// Times that a queue's thread woke up.
    pub wakeups: AtomicU64,
}

impl Counters {
    /// Names and values.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("requests", self.requests.load(Relaxed)),
            ("reads", self.reads.load(Relaxed)),
            ("writes", self.writes.load(Relaxed)),
            ("flushes", self.flushes.load(Relaxed)),
            ("bytes_read", self.bytes_read.load(Relaxed)),
            ("bytes_written", self.bytes_written.load(Relaxed)),
            ("errors", self.errors.load(Relaxed)),
            ("notifications", self.notifications.load(Relaxed)),
            ("wakeups", self.wakeups.load(Relaxed)),
        ]
    }
}

/// A disk of a guest, connected or not.
#[derive(Debug)]
pub struct Disk {
    name: String,
    image: DiskImage,
    readonly: bool,
    sectors: AtomicU64,
    resized: AtomicBool,
    kick: Mutex<Option<Arc<EventFd>>>,
    complaints: AtomicU32,
    counters: Counters,
}

impl Disk {
    /// A disk of that name ("xvda") on an opened image; read-only if either says so.
    pub fn new(name: &str, image: DiskImage, readonly: bool) -> Self {
        let readonly = readonly || image.readonly();
        let disk = Self {
            name: name.to_owned(),
            image,
            readonly,
            sectors: AtomicU64::new(0),
            resized: AtomicBool::new(false),
            kick: Mutex::new(None),
            complaints: AtomicU32::new(0),
            counters: Counters::default(),
        };
        disk.sectors.store(disk.whole_sectors(disk.image.size()), SeqCst);
        disk
    }

    /// The guest's name for it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The image.
    pub fn image(&self) -> &DiskImage {
        &self.image
    }

    /// Whether the guest may not write.
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// Capacity in units of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors.load(SeqCst)
    }

    /// What a request is checked against.
    pub fn limits(&self) -> DiskLimits {
        DiskLimits {
            sectors: self.sectors(),
            logical_block: self.image.logical_block(),
            readonly: self.readonly,
        }
    }

    /// Counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Looks at the size of the image again, after the host resized it; true: it changed, and a connected
    /// frontend is told.
    pub fn rescan(&self) -> io::Result<bool> {
        let sectors = self.whole_sectors(self.image.current_size()?);
        let changed = self.sectors.swap(sectors, SeqCst) != sectors;
        if changed {
            self.resized.store(true, SeqCst);
            if let Some(kick) = &*self.kick.lock().unwrap_or_else(PoisonError::into_inner) {
                let _ = kick.write(1);
            }
        }
        Ok(changed)
    }

    /// A frontend is about to be told the size, and wants to hear of the next change through `kick`.
    pub(crate) fn connected(&self, kick: Option<Arc<EventFd>>) {
        *self.kick.lock().unwrap_or_else(PoisonError::into_inner) = kick;
        self.resized.store(false, SeqCst);
    }

    /// The new capacity, once after each change.
    pub(crate) fn take_resized(&self) -> Option<u64> {
        self.resized.swap(false, SeqCst).then(|| self.sectors())
    }

    /// Whether the log has room for another line that the frontend caused.
    pub(crate) fn may_complain(&self) -> bool {
        self.complaints.fetch_update(SeqCst, SeqCst, |n| (n < MAX_COMPLAINTS).then_some(n + 1)).is_ok()
    }

    /// A file may end in a piece of a sector, after a resize by hand: that piece is not part of the disk.
    fn whole_sectors(&self, bytes: u64) -> u64 {
        let block = u64::from(self.image.logical_block()).max(SECTOR_SIZE);
        bytes / block * (block / SECTOR_SIZE)
    }
}
