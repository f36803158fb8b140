//! The xenbus side of a disk: its keys, connecting and disconnecting.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use devices::xen::event_channel::BackendChannel;
use devices::xen::shared_ring::{BackRing, MAX_PAGES};
use devices::xen::xenbus::{self, BackendDevice, ConnectError, DomainHandle, FrontendKeys, Keys};
use devices::xen::{GrantRef, Port};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::disk::{Backing, Disk};
use crate::engine::{Engine, Threads, Uring};
use crate::limits::LimitGroup;
use crate::protocol::{MAX_INDIRECT_SEGMENTS, Protocol};
use crate::queue::Queue;
use crate::remnant::{Remnant, Rest};

/// Bits of the `info` key (xen/include/public/io/blkif.h, `VDISK_*`).
const VDISK_CDROM: u32 = 1;
const VDISK_REMOVABLE: u32 = 2;
const VDISK_READONLY: u32 = 4;
/// A queue's thread needs little of it.
const STACK_SIZE: usize = 256 * 1024;
/// Queues that are offered unless the configuration says otherwise. Linux takes no more than it has vCPUs.
const DEFAULT_QUEUES: u32 = 4;
/// Queues that can be asked for. Each has a thread and up to 512 requests.
pub const MAX_QUEUES: u32 = 16;

/// How a disk is presented to the guest.
#[derive(Clone, Debug, Default)]
pub struct DiskConfig {
    /// The guest's name for it, "xvda".
    pub vdev: String,
    /// The number of that name in xenstore: 51712 for xvda.
    pub virtual_device: u32,
    /// Refuses writes, even if the image was opened for writing.
    pub readonly: bool,
    /// The disk the guest was started from.
    pub bootable: bool,
    /// The guest is told that it is a CD-ROM drive.
    pub cdrom: bool,
    /// The guest is told that the medium can be removed.
    pub removable: bool,
    /// Discard is offered, if the storage can free anything.
    pub discard: bool,
    /// Queues that are offered, 1 to [`MAX_QUEUES`]; `None`: 4.
    pub queues: Option<u32>,
    /// Requests per second.
    pub iops: Option<u64>,
    /// Bytes per second.
    pub bps: Option<u64>,
    /// Limits that are shared with other disks, besides the disk's own.
    pub limit_group: Option<Arc<LimitGroup>>,
    /// A write that finds no room waits until there is some, instead of failing.
    pub enospc_pause: bool,
}

impl DiskConfig {
    fn max_queues(&self) -> u32 {
        self.queues.unwrap_or(DEFAULT_QUEUES).clamp(1, MAX_QUEUES)
    }
}

/// The running queues of one connection.
#[derive(Debug)]
struct Connection {
    stop: Arc<AtomicBool>,
    wakes: Vec<Arc<EventFd>>,
    /// Threads that have not ended.
    running: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
    /// The rings of queues that have ended, if they are to be kept.
    rests: Arc<Rests>,
    kick: Arc<EventFd>,
}

/// Rings that wait for a [`Remnant`].
#[derive(Debug, Default)]
struct Rests {
    wanted: AtomicBool,
    rings: Mutex<Vec<Rest>>,
}

impl Rests {
    fn put(&self, rest: Option<Rest>) {
        if self.wanted.load(SeqCst) {
            self.rings.lock().unwrap_or_else(PoisonError::into_inner).extend(rest);
        }
    }

    fn take(&self) -> Vec<Rest> {
        std::mem::take(&mut self.rings.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Connection {
    fn stop(&self) {
        self.stop.store(true, SeqCst);
        for wake in &self.wakes {
            let _ = wake.write(1);
        }
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The back half of one disk.
#[derive(Debug)]
pub struct BlockDevice {
    config: DiskConfig,
    disk: Arc<Disk>,
    connection: Option<Connection>,
    /// The log says that io_uring cannot be used: a frontend may connect as often as it likes.
    told: AtomicBool,
}

/// What a queue's thread leaves behind when it ends, however it ends.
struct Ended {
    running: Arc<AtomicUsize>,
    kick: Arc<EventFd>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.running.fetch_sub(1, SeqCst);
        let _ = self.kick.write(1);
    }
}

/// A queue that is ready to run, and what wakes it up to stop.
struct Ready {
    queue: Queue<Box<dyn Engine + Send>>,
    wake: Arc<EventFd>,
}

impl BlockDevice {
    /// A disk that waits for its frontend.
    pub fn new(config: DiskConfig, backing: impl Into<Backing>) -> Self {
        let disk = Arc::new(Disk::new(&config, backing));
        Self::of(config, disk)
    }

    /// The PV half of a disk that an emulated drive shows as well: both have one storage, opened once.
    pub fn of(config: DiskConfig, disk: Arc<Disk>) -> Self {
        Self { config, disk, connection: None, told: AtomicBool::new(false) }
    }

    /// Size, counters and [`Disk::rescan`], for other threads.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Looks at the size of the storage again; see [`Disk::rescan`].
    pub fn rescan(&self) -> io::Result<bool> {
        self.disk.rescan()
    }

    fn engine(&self, event: &EventFd, stop: &EventFd, slots: u32) -> io::Result<Box<dyn Engine + Send>> {
        let (event, stop) = (event.as_raw_fd(), stop.as_raw_fd());
        let storage = self.disk.storage();
        if storage.raw().is_some() {
            match Uring::new(Arc::clone(storage), event, stop, slots) {
                Ok(ring) => return Ok(Box::new(ring)),
                Err(_) if self.told.swap(true, SeqCst) => {}
                Err(e) => tracing::warn!(
                    "vbd {}: io_uring cannot be used ({e}), threads serve the disk, at the cost of more CPU time; it needs Linux 6.1 and kernel.io_uring_disabled=0",
                    self.disk.name()
                ),
            }
        }
        Ok(Box::new(Threads::new(Arc::clone(storage), event, stop)?))
    }

    /// Maps one queue's ring and binds its event channel. `prefix` is where its keys are.
    fn prepare(
        &self,
        frontend: &dyn FrontendKeys,
        domain: &DomainHandle,
        protocol: Protocol,
        prefix: &str,
        order: Option<u32>,
    ) -> Result<Ready, ConnectError> {
        let refs = ring_refs(frontend, prefix, order)?;
        let port = required(frontend, &format!("{prefix}event-channel"))?;
        let host = |what: &str, e: io::Error| ConnectError(format!("the host cannot make {what}: {e}"));
        let ring = BackRing::new(Arc::clone(&domain.grants), &refs, protocol.entry_size());
        let ring = ring.map_err(|e| ConnectError(e.to_string()))?;
        let channel = domain.events.bind_backend(Port(port));
        let channel: BackendChannel =
            channel.map_err(|e| ConnectError(format!("event channel {port} cannot be bound: {e}")))?;
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|e| host("an eventfd", e))?;
        let engine = self.engine(channel.event(), &wake, ring.nr_entries());
        let engine = engine.map_err(|e| host("an I/O engine", e))?;
        let (grants, disk) = (Arc::clone(&domain.grants), Arc::clone(&self.disk));
        let queue = Queue::new(engine, ring, channel, grants, disk, protocol);
        Ok(Ready { queue, wake: Arc::new(wake) })
    }

    /// Starts a thread for each queue. If one cannot be started, those before it are stopped.
    fn start(&mut self, ready: Vec<Ready>, kick: &Arc<EventFd>) -> io::Result<()> {
        let connection = self.connection.insert(Connection {
            stop: Arc::new(AtomicBool::new(false)),
            wakes: ready.iter().map(|ready| Arc::clone(&ready.wake)).collect(),
            running: Arc::new(AtomicUsize::new(0)),
            threads: Vec::new(),
            rests: Arc::default(),
            kick: Arc::clone(kick),
        });
        for (number, Ready { queue, wake }) in ready.into_iter().enumerate() {
            let (stop, rests) = (Arc::clone(&connection.stop), Arc::clone(&connection.rests));
            connection.running.fetch_add(1, SeqCst);
            let ended = Ended { running: Arc::clone(&connection.running), kick: Arc::clone(kick) };
            let name = format!("vbd-{}-{number}", self.config.vdev);
            let thread = Builder::new().name(name).stack_size(STACK_SIZE).spawn(move || {
                // Dropped last, when the queue has given everything back. The engine polls `wake` until then.
                let _ended = ended;
                let _wake = wake;
                rests.put(queue.run_to_rest(&stop));
            });
            match thread {
                Ok(thread) => connection.threads.push(thread),
                Err(e) => {
                    connection.stop();
                    return Err(e);
                }
            }
        }
        Ok(())
    }
}

/// A number in a key of the frontend.
fn number(frontend: &dyn FrontendKeys, key: &str) -> Result<Option<u32>, ConnectError> {
    let Some(text) = frontend.read(key) else { return Ok(None) };
    let parsed = text.trim().parse();
    parsed.map(Some).map_err(|_| ConnectError(format!("the frontend's {key} is not a number")))
}

fn required(frontend: &dyn FrontendKeys, key: &str) -> Result<u32, ConnectError> {
    number(frontend, key)?.ok_or_else(|| ConnectError(format!("the frontend did not write {key}")))
}

/// The grants of a ring of 2^order pages.
fn ring_refs(
    frontend: &dyn FrontendKeys,
    prefix: &str,
    order: Option<u32>,
) -> Result<Vec<GrantRef>, ConnectError> {
    let numbered = |i: u32| required(frontend, &format!("{prefix}ring-ref{i}")).map(GrantRef);
    let plain = format!("{prefix}ring-ref");
    match order {
        // A frontend that knows rings of several pages may number even the only one. Older keys of another driver
        // may be there too: the order says which are meant.
        None => match number(frontend, &plain)? {
            Some(gref) => Ok(vec![GrantRef(gref)]),
            None if frontend.read(&format!("{plain}0")).is_some() => Ok(vec![numbered(0)?]),
            None => Err(ConnectError(format!("the frontend did not write {plain}"))),
        },
        Some(0) if frontend.read(&format!("{plain}0")).is_none() => {
            Ok(vec![GrantRef(required(frontend, &plain)?)])
        }
        Some(order) => (0..1 << order.min(MAX_PAGES.ilog2())).map(numbered).collect(),
    }
}

impl BackendDevice for BlockDevice {
    fn class(&self) -> &'static str {
        "vbd"
    }

    fn index(&self) -> u32 {
        self.config.virtual_device
    }

    /// A CD-ROM is called a disk here, too: Linux's blkfront leaves a `device-type` of "cdrom" to the emulated
    /// drive in every guest with hardware virtualisation, and PVH guests count as such but have none. What it
    /// is the guest learns from `info`.
    fn frontend_keys(&self) -> Keys {
        keys([("virtual-device", self.config.virtual_device.to_string()), ("device-type", "disk".into())])
    }

    /// blkfront reads the number of queues and the size of the ring before it writes its own keys; the rest of
    /// the features when this side is Connected.
    fn backend_keys(&self) -> Keys {
        keys([
            ("params", self.disk.path().display().to_string()),
            ("type", if self.disk.is_block_device() { "phy" } else { "file" }.into()),
            ("dev", self.config.vdev.clone()),
            ("mode", if self.disk.readonly() { "r" } else { "w" }.into()),
            ("device-type", self.device_type().into()),
            ("removable", u8::from(self.config.removable).to_string()),
            ("bootable", u8::from(self.config.bootable).to_string()),
            ("discard-enable", u8::from(self.disk.discard().is_some()).to_string()),
            ("max-ring-page-order", MAX_PAGES.ilog2().to_string()),
            ("multi-queue-max-queues", self.config.max_queues().to_string()),
            ("feature-max-indirect-segments", MAX_INDIRECT_SEGMENTS.to_string()),
        ])
    }

    fn connect(&mut self, frontend: &dyn FrontendKeys, domain: &DomainHandle) -> Result<Keys, ConnectError> {
        if !self.is_stopped() {
            return Err(ConnectError("the former connection has not ended yet".into()));
        }
        let offered = |key: &str, ok: std::ops::RangeInclusive<u32>| match number(frontend, key)? {
            Some(n) if !ok.contains(&n) => {
                Err(ConnectError(format!("the frontend's {key} is {n}, and {} is offered", ok.end())))
            }
            n => Ok(n),
        };
        let order = offered("ring-page-order", 0..=MAX_PAGES.ilog2())?;
        let queues = offered("multi-queue-num-queues", 1..=self.config.max_queues())?.unwrap_or(1);
        let protocol = frontend.read("protocol");
        let protocol = Protocol::from_key(protocol.as_deref()).ok_or_else(|| {
            ConnectError("the frontend's protocol is neither x86_64-abi nor x86_32-abi".into())
        })?;

        // Each queue is made before the first one runs: if one cannot be, nothing has happened.
        let prefix = |queue| if queues == 1 { String::new() } else { format!("queue-{queue}/") };
        let ready = (0..queues)
            .map(|queue| self.prepare(frontend, domain, protocol, &prefix(queue), order))
            .collect::<Result<Vec<_>, _>>()?;
        self.start(ready, &domain.kick)
            .map_err(|e| ConnectError(format!("the host cannot make a thread: {e}")))?;

        self.disk.connected(Arc::clone(&domain.kick));
        let traits = self.disk.traits();
        let mut keys = keys([
            ("feature-flush-cache", "1".into()),
            ("feature-barrier", "1".into()),
            ("feature-discard", u8::from(self.disk.discard().is_some()).to_string()),
            ("sectors", self.disk.sectors().to_string()),
            ("info", self.info().to_string()),
            ("sector-size", traits.logical_block.to_string()),
            ("physical-sector-size", traits.physical_block.to_string()),
        ]);
        if let Some(discard) = self.disk.discard() {
            keys.extend(self::keys([
                ("discard-granularity", discard.granularity.to_string()),
                ("discard-alignment", discard.alignment.to_string()),
                ("discard-secure", "0".into()),
            ]));
        }
        Ok(keys)
    }

    fn disconnect(&mut self) {
        self.disk.disconnected();
        if let Some(connection) = &self.connection {
            connection.rests.wanted.store(false, SeqCst);
            connection.stop();
        }
    }

    fn retire(&mut self) {
        if let Some(connection) = &self.connection {
            connection.rests.wanted.store(true, SeqCst);
            connection.stop();
        }
        self.disk.disconnected();
    }

    fn is_stopped(&mut self) -> bool {
        let Some(connection) = &mut self.connection else { return true };
        if connection.running.load(SeqCst) > 0 {
            return false;
        }
        // They have given everything back and are on their last instructions.
        connection.join();
        if !connection.rests.wanted.load(SeqCst) {
            self.connection = None;
        }
        true
    }

    fn take_remnant(&mut self) -> Option<Box<dyn xenbus::Remnant>> {
        if !self.is_stopped() {
            return None;
        }
        let connection = self.connection.take()?;
        let rests = connection.rests.take();
        if rests.is_empty() {
            return None;
        }
        match Remnant::start(&self.config.vdev, rests, Arc::clone(&connection.kick)) {
            Ok(remnant) => Some(Box::new(remnant)),
            Err(e) => {
                tracing::warn!(
                    "vbd {}: nobody answers what the guest still asks of the disk: the host cannot make a thread: {e}",
                    self.config.vdev
                );
                None
            }
        }
    }

    fn take_update(&mut self) -> Option<Keys> {
        self.connection.as_ref()?;
        let sectors = self.disk.take_resized()?;
        Some(keys([("sectors", sectors.to_string())]))
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.disk.counters().list()
    }
}

impl BlockDevice {
    fn device_type(&self) -> &'static str {
        if self.config.cdrom { "cdrom" } else { "disk" }
    }

    fn info(&self) -> u32 {
        let bit = |set, bit| if set { bit } else { 0 };
        bit(self.config.cdrom, VDISK_CDROM)
            | bit(self.config.removable, VDISK_REMOVABLE)
            | bit(self.disk.readonly(), VDISK_READONLY)
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.stop();
            connection.join();
        }
    }
}

fn keys<const N: usize>(pairs: [(&str, String); N]) -> Keys {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests;
