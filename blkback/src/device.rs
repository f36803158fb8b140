//! The xenbus side of a disk: its keys, connecting and disconnecting.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{Builder, JoinHandle};

use devices::xen::event_channel::BackendChannel;
use devices::xen::shared_ring::BackRing;
use devices::xen::xenbus::{BackendDevice, ConnectError, DomainHandle, FrontendKeys, Keys};
use devices::xen::{GrantRef, Port};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::disk::Disk;
use crate::engine::{Blocking, Engine, Uring};
use crate::image::DiskImage;
use crate::protocol::Protocol;
use crate::queue::Queue;

/// Bits of the `info` key (xen/include/public/io/blkif.h, `VDISK_*`).
const VDISK_READONLY: u32 = 4;
/// A queue's thread needs little of it.
const STACK_SIZE: usize = 256 * 1024;

/// How a disk is presented to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The guest's name for it, "xvda".
    pub vdev: String,
    /// The number of that name in xenstore: 51712 for xvda.
    pub virtual_device: u32,
    /// Refuses writes, even if the image was opened for writing.
    pub readonly: bool,
    /// The disk the guest was started from.
    pub bootable: bool,
}

/// A running queue.
#[derive(Debug)]
struct Connection {
    stop: Arc<AtomicBool>,
    wake: Arc<EventFd>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Connection {
    fn stop(&self) {
        self.stop.store(true, SeqCst);
        let _ = self.wake.write(1);
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
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
}

/// What a queue's thread leaves behind when it ends, however it ends.
struct Ended {
    ended: Arc<AtomicBool>,
    kick: Arc<EventFd>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        let _ = self.kick.write(1);
    }
}

impl BlockDevice {
    /// A disk that waits for its frontend.
    pub fn new(config: DiskConfig, image: DiskImage) -> Self {
        let disk = Arc::new(Disk::new(&config.vdev, image, config.readonly));
        Self { config, disk, connection: None }
    }

    /// Size, counters and [`Disk::rescan`], for other threads.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Looks at the size of the image again; see [`Disk::rescan`].
    pub fn rescan(&self) -> io::Result<bool> {
        self.disk.rescan()
    }

    fn engine(&self, event: &EventFd, stop: &EventFd, slots: u32) -> Box<dyn Engine + Send> {
        let (image, event, stop) = (self.disk.image().as_raw_fd(), event.as_raw_fd(), stop.as_raw_fd());
        match Uring::new(image, event, stop, slots) {
            Ok(ring) => Box::new(ring),
            Err(e) => {
                tracing::warn!(
                    "vbd {}: io_uring cannot be used ({e}), one request is served at a time; it needs Linux 6.1 and kernel.io_uring_disabled=0",
                    self.disk.name()
                );
                Box::new(Blocking::new(image, event, stop))
            }
        }
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

impl BackendDevice for BlockDevice {
    fn class(&self) -> &'static str {
        "vbd"
    }

    fn index(&self) -> u32 {
        self.config.virtual_device
    }

    fn frontend_keys(&self) -> Keys {
        keys([("virtual-device", self.config.virtual_device.to_string()), ("device-type", "disk".into())])
    }

    fn backend_keys(&self) -> Keys {
        let image = self.disk.image();
        keys([
            ("params", image.path().display().to_string()),
            ("type", if image.is_block_device() { "phy" } else { "file" }.into()),
            ("dev", self.config.vdev.clone()),
            ("mode", if self.disk.readonly() { "r" } else { "w" }.into()),
            ("device-type", "disk".into()),
            ("removable", "0".into()),
            ("bootable", u8::from(self.config.bootable).to_string()),
        ])
    }

    fn connect(&mut self, frontend: &dyn FrontendKeys, domain: &DomainHandle) -> Result<Keys, ConnectError> {
        if !self.is_stopped() {
            return Err(ConnectError("the former connection has not ended yet".into()));
        }
        for (key, offered) in [("ring-page-order", 0), ("multi-queue-num-queues", 1)] {
            if number(frontend, key)?.is_some_and(|n| n != offered) {
                return Err(ConnectError(format!("the frontend's {key} was not offered")));
            }
        }
        // A frontend that knows rings of several pages may number even the only one.
        let ring_ref = match number(frontend, "ring-ref0")? {
            Some(gref) => gref,
            None => required(frontend, "ring-ref")?,
        };
        let port = required(frontend, "event-channel")?;
        let protocol = frontend.read("protocol");
        let protocol = Protocol::from_key(protocol.as_deref()).ok_or_else(|| {
            ConnectError("the frontend's protocol is neither x86_64-abi nor x86_32-abi".into())
        })?;

        let host = |what: &str, e: io::Error| ConnectError(format!("the host cannot make {what}: {e}"));
        let ring = BackRing::new(Arc::clone(&domain.grants), &[GrantRef(ring_ref)], protocol.entry_size());
        let ring = ring.map_err(|e| ConnectError(e.to_string()))?;
        let channel = domain.events.bind_backend(Port(port));
        let channel: BackendChannel =
            channel.map_err(|e| ConnectError(format!("event channel {port} cannot be bound: {e}")))?;
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|e| host("an eventfd", e))?;
        let engine = self.engine(channel.event(), &wake, ring.nr_entries());
        let (grants, disk) = (Arc::clone(&domain.grants), Arc::clone(&self.disk));
        let queue = Queue::new(engine, ring, channel, grants, disk, protocol);

        let mut connection = Connection {
            stop: Arc::new(AtomicBool::new(false)),
            wake: Arc::new(wake),
            ended: Arc::new(AtomicBool::new(false)),
            thread: None,
        };
        let (stop, wake) = (Arc::clone(&connection.stop), Arc::clone(&connection.wake));
        let ended = Ended { ended: Arc::clone(&connection.ended), kick: Arc::clone(&domain.kick) };
        let thread = Builder::new().name(format!("vbd-{}-0", self.config.vdev)).stack_size(STACK_SIZE);
        let thread = thread.spawn(move || {
            // Dropped last, when the queue has given everything back. The engine polls `wake` until then.
            let _ended = ended;
            let _wake = wake;
            queue.run(&stop);
        });
        connection.thread = Some(thread.map_err(|e| host("a thread", e))?);
        self.connection = Some(connection);

        self.disk.connected(Some(Arc::clone(&domain.kick)));
        let info = if self.disk.readonly() { VDISK_READONLY } else { 0 };
        Ok(keys([
            ("feature-flush-cache", "1".into()),
            ("sectors", self.disk.sectors().to_string()),
            ("info", info.to_string()),
            ("sector-size", self.disk.image().logical_block().to_string()),
            ("physical-sector-size", self.disk.image().physical_block().to_string()),
        ]))
    }

    fn disconnect(&mut self) {
        self.disk.connected(None);
        if let Some(connection) = &self.connection {
            connection.stop();
        }
    }

    fn is_stopped(&mut self) -> bool {
        let Some(connection) = &mut self.connection else { return true };
        if !connection.ended.load(SeqCst) {
            return false;
        }
        // It has given everything back and is on its last instructions.
        connection.join();
        self.connection = None;
        true
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
