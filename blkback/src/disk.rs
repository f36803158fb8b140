//! What the threads of a disk share: the storage, its size, its limits, what happened so far.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::complaints::Complaints;
use vmm_sys_util::eventfd::EventFd;

use crate::device::DiskConfig;
use crate::image::DiskImage;
use crate::limits::LimitGroup;
use crate::protocol::{DiskLimits, SECTOR_SIZE};
use crate::storage::{Discard, Storage, Traits};
use crate::widened::Widened;

/// A storage and what is told about it.
#[derive(Clone, Debug)]
pub struct Backing {
    /// The bytes.
    pub storage: Arc<dyn Storage>,
    /// By what it was opened.
    pub path: PathBuf,
    /// It is a block device, not a file.
    pub block_device: bool,
    /// It cannot be written.
    pub readonly: bool,
}

impl From<DiskImage> for Backing {
    fn from(image: DiskImage) -> Self {
        Self {
            path: image.path().to_owned(),
            block_device: image.is_block_device(),
            readonly: image.readonly(),
            storage: Arc::new(image),
        }
    }
}

/// Counters of a disk since it was made.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests taken from the rings.
    pub requests: AtomicU64,
    /// Reads that were done.
    pub reads: AtomicU64,
    /// Writes that were done, barriers with data among them.
    pub writes: AtomicU64,
    /// Flushes that were done.
    pub flushes: AtomicU64,
    /// Discards that were done.
    pub discards: AtomicU64,
    /// Bytes read by the guest.
    pub bytes_read: AtomicU64,
    /// Bytes written by the guest.
    pub bytes_written: AtomicU64,
    /// Requests refused or failed.
    pub errors: AtomicU64,
    /// Requests whose data went through memory of ours, as direct I/O could not take the guest's.
    pub bounces: AtomicU64,
    /// Times that a queue waited because of a limit.
    pub throttled: AtomicU64,
    /// Times that a write found no room and was held.
    pub held: AtomicU64,
    /// Events sent to the guest.
    pub notifications: AtomicU64,
    /// Times that a queue's thread woke up.
    pub wakeups: AtomicU64,
    /// System calls of the queues' threads to start operations, to wait for them, and to send events.
    pub system_calls: AtomicU64,
}

impl Counters {
    /// Names and values.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("requests", self.requests.load(Relaxed)),
            ("reads", self.reads.load(Relaxed)),
            ("writes", self.writes.load(Relaxed)),
            ("flushes", self.flushes.load(Relaxed)),
            ("discards", self.discards.load(Relaxed)),
            ("bytes_read", self.bytes_read.load(Relaxed)),
            ("bytes_written", self.bytes_written.load(Relaxed)),
            ("errors", self.errors.load(Relaxed)),
            ("bounces", self.bounces.load(Relaxed)),
            ("throttled", self.throttled.load(Relaxed)),
            ("held", self.held.load(Relaxed)),
            ("notifications", self.notifications.load(Relaxed)),
            ("wakeups", self.wakeups.load(Relaxed)),
            ("system_calls", self.system_calls.load(Relaxed)),
        ]
    }
}

/// A disk of a guest, connected or not.
#[derive(Debug)]
pub struct Disk {
    name: String,
    backing: Backing,
    traits: Traits,
    readonly: bool,
    discard: Option<Discard>,
    limits: Vec<Arc<LimitGroup>>,
    enospc_pause: bool,
    sectors: AtomicU64,
    resized: AtomicBool,
    full: AtomicBool,
    /// The main thread of a connected frontend, which is told when the size changed.
    kick: Mutex<Option<Arc<EventFd>>>,
    /// Of all connections.
    complaints: Complaints,
    counters: Counters,
}

impl Disk {
    /// A disk on an opened storage; read-only if either says so.
    pub fn new(config: &DiskConfig, backing: impl Into<Backing>) -> Self {
        let mut backing = backing.into();
        let mut traits = backing.storage.traits();
        if traits.offset_alignment > traits.logical_block {
            backing.storage = Arc::new(Widened::new(backing.storage));
            traits = backing.storage.traits();
        }
        let readonly = config.readonly || backing.readonly;
        let own =
            (config.iops.is_some() || config.bps.is_some()).then(|| LimitGroup::new(config.iops, config.bps));
        let disk = Self {
            name: config.vdev.clone(),
            traits,
            readonly,
            discard: traits.discard.filter(|_| config.discard && !readonly),
            limits: own.into_iter().chain(config.limit_group.clone()).collect(),
            enospc_pause: config.enospc_pause,
            sectors: AtomicU64::new(0),
            resized: AtomicBool::new(false),
            full: AtomicBool::new(false),
            kick: Mutex::default(),
            complaints: Complaints::default(),
            counters: Counters::default(),
            backing,
        };
        // A size that cannot be had now is looked at again with the first requests.
        let size = disk.backing.storage.size().unwrap_or(0);
        disk.sectors.store(disk.whole_sectors(size), SeqCst);
        disk
    }

    /// The guest's name for it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// By what its storage was opened.
    pub fn path(&self) -> &Path {
        &self.backing.path
    }

    /// Whether it is a whole block device of the host.
    pub fn is_block_device(&self) -> bool {
        self.backing.block_device
    }

    /// The bytes.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.backing.storage
    }

    /// What the storage demands.
    pub fn traits(&self) -> &Traits {
        &self.traits
    }

    /// Whether the guest may not write.
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// What the guest may free.
    pub fn discard(&self) -> Option<Discard> {
        self.discard
    }

    /// Capacity in units of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors.load(SeqCst)
    }

    /// What a request is checked against.
    pub fn limits(&self) -> DiskLimits {
        DiskLimits {
            sectors: self.sectors(),
            logical_block: self.traits.logical_block,
            readonly: self.readonly,
            discard: self.discard.is_some(),
        }
    }

    /// Counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Looks at the size of the storage again, after the host resized it; true: it changed, and a connected
    /// frontend is told. A device that has vanished has no size: requests tell that by failing.
    pub fn rescan(&self) -> io::Result<bool> {
        let sectors = self.whole_sectors(self.backing.storage.size()?);
        if sectors == 0 {
            return Ok(false);
        }
        let changed = self.sectors.swap(sectors, SeqCst) != sectors;
        if changed {
            self.resized.store(true, SeqCst);
            if let Some(kick) = &*self.kick() {
                let _ = kick.write(1);
            }
        }
        Ok(changed)
    }

    /// Whether writes wait because the storage is full.
    pub fn is_full(&self) -> bool {
        self.full.load(SeqCst)
    }

    /// Whether a write that finds no room waits for some.
    pub(crate) fn enospc_pause(&self) -> bool {
        self.enospc_pause
    }

    /// A write found no room and waits.
    pub(crate) fn full(&self) {
        self.counters.held.fetch_add(1, Relaxed);
        if !self.full.swap(true, SeqCst) && self.may_complain() {
            let path = self.path().display();
            tracing::warn!(
                "vbd {} ({path}): there is no room left, the guest's writes wait until there is some",
                self.name
            );
        }
    }

    /// A write that waited has been done.
    pub(crate) fn has_room(&self) {
        if self.full.swap(false, SeqCst) && self.may_complain() {
            tracing::info!("vbd {} ({}): there is room again", self.name, self.path().display());
        }
    }

    /// How long the next request has to wait because of a limit.
    pub(crate) fn delay(&self) -> Option<Duration> {
        if self.limits.is_empty() {
            return None;
        }
        let now = Instant::now();
        let delay = self.limits.iter().filter_map(|limit| limit.delay(now)).max();
        if delay.is_some() {
            self.counters.throttled.fetch_add(1, Relaxed);
        }
        delay
    }

    /// A request with so many bytes of data goes.
    pub(crate) fn charge(&self, bytes: u64) {
        for limit in &self.limits {
            limit.charge(bytes);
        }
    }

    /// A frontend is about to be told the size, and wants to hear of the next change through `kick`.
    pub(crate) fn connected(&self, kick: Arc<EventFd>) {
        *self.kick() = Some(kick);
        self.resized.store(false, SeqCst);
    }

    /// The frontend went.
    pub(crate) fn disconnected(&self) {
        *self.kick() = None;
        self.resized.store(false, SeqCst);
        self.full.store(false, SeqCst);
    }

    /// The new capacity, once after each change.
    pub(crate) fn take_resized(&self) -> Option<u64> {
        self.resized.swap(false, SeqCst).then(|| self.sectors())
    }

    /// Whether the log has room for another line that the frontend caused.
    pub(crate) fn may_complain(&self) -> bool {
        self.complaints.may_complain()
    }

    fn kick(&self) -> MutexGuard<'_, Option<Arc<EventFd>>> {
        self.kick.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file may end in a piece of a sector, after a resize by hand: that piece is not part of the disk.
    fn whole_sectors(&self, bytes: u64) -> u64 {
        let block = u64::from(self.traits.logical_block).max(SECTOR_SIZE);
        bytes / block * (block / SECTOR_SIZE)
    }
}
