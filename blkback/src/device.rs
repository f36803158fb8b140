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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::testing::{
        FLUSH, Front, READ, Segment, WRITE, config, image, sector_pattern, wait_until, whole,
    };

    /// A connected disk of `sectors` sectors.
    fn connected(sectors: u64) -> (tempfile::NamedTempFile, BlockDevice, Front) {
        let file = image(sectors);
        let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
        let front = Front::new(Protocol::X86_64);
        front.connect(&mut device);
        (file, device, front)
    }

    fn wait_stopped(device: &mut BlockDevice) {
        wait_until("the queue did not stop", || device.is_stopped());
    }

    fn value(keys: &Keys, key: &str) -> Option<String> {
        keys.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone())
    }

    #[test]
    fn io_uring_serves_the_disk_on_this_host() {
        let file = image(8);
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let disk = DiskImage::open(file.path(), false).unwrap();
        Uring::new(disk.as_raw_fd(), event.as_raw_fd(), event.as_raw_fd(), 32).unwrap();
    }

    #[test]
    fn every_part_of_a_page_is_written_and_read_back() {
        let (file, _device, mut front) = connected(64);
        let (out, out_ref) = front.guest.granted_page();
        let (back, back_ref) = front.guest.granted_page();
        for first in 0..8u8 {
            for last in first..8 {
                let sector = u64::from(first * 8 + last) % 56;
                let count = u64::from(last - first) + 1;
                let at = usize::from(first) * 512;
                let data: Vec<u8> =
                    (0..count).flat_map(|s| sector_pattern(sector + s, first * 8 + last)).collect();
                front.guest.write(out, at, &data);
                front.guest.write(back, 0, &[0xaa; 4096]);
                assert_eq!(front.request(WRITE, sector, &[Segment { gref: out_ref, first, last }]), 0);
                let mut on_disk = vec![0; data.len()];
                file.as_file().read_exact_at(&mut on_disk, sector * 512).unwrap();
                assert!(on_disk == data, "segment {first}..={last} on the disk");
                assert_eq!(front.request(READ, sector, &[Segment { gref: back_ref, first, last }]), 0);
                let page = front.guest.read(back, 0, 4096);
                assert!(page[at..at + data.len()] == data, "segment {first}..={last} read back");
                let others = page[..at].iter().chain(&page[at + data.len()..]);
                assert!(others.copied().all(|b| b == 0xaa), "segment {first}..={last} touched more");
            }
        }
    }

    #[test]
    fn a_request_of_eleven_scattered_pages_keeps_their_order() {
        let (_file, _device, mut front) = connected(200);
        let mut pages: Vec<_> = (0..11).map(|_| front.guest.granted_page()).collect();
        // Neighbours in the guest are not neighbours on the disk, and two are the other way round.
        pages.swap(2, 9);
        pages.swap(4, 5);
        let segments: Vec<_> = pages.iter().map(|(_, gref)| whole(*gref)).collect();
        assert_eq!(front.request(READ, 3, &segments), 0);
        for (i, (frame, _)) in (0u64..).zip(&pages) {
            for s in 0..8usize {
                let sector = 3 + i * 8 + s as u64;
                let read = front.guest.read(*frame, s * 512, 512);
                assert!(read == sector_pattern(sector, 1), "sector {sector}");
            }
        }
    }

    #[test]
    fn a_full_ring_is_answered_completely_many_times() {
        let (_file, device, mut front) = connected(64);
        let pages: Vec<_> = (0..32).map(|_| front.guest.granted_page()).collect();
        for round in 0..50u64 {
            let mut ids: Vec<u64> = pages
                .iter()
                .zip(0u64..)
                .map(|((_, gref), i)| {
                    let op = if (round + i) % 3 == 0 { WRITE } else { READ };
                    front.put(op, i % 56, &[whole(*gref)])
                })
                .collect();
            front.publish();
            while !ids.is_empty() {
                let (id, _, status) = front.wait_response();
                assert_eq!(status, 0);
                let at = ids.iter().position(|i| *i == id).unwrap();
                ids.remove(at);
            }
        }
        assert_eq!(device.disk().counters().requests.load(Relaxed), 50 * 32);
        for (_, gref) in &pages {
            wait_until("a page is still in use", || front.guest.grant_flags(*gref) & 0x18 == 0);
        }
    }

    #[test]
    fn a_32_bit_frontend_is_served() {
        let file = image(64);
        let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
        let mut front = Front::new(Protocol::X86_32);
        front.connect(&mut device);
        let (frame, gref) = front.guest.granted_page();
        for sector in 0..40 {
            assert_eq!(front.request(READ, sector, &[Segment { gref, first: 1, last: 1 }]), 0);
            assert!(front.guest.read(frame, 512, 512) == sector_pattern(sector, 1));
        }
    }

    #[test]
    fn a_flush_is_done_and_counted() {
        let (_file, device, mut front) = connected(8);
        assert_eq!(front.request(FLUSH, 0, &[]), 0);
        assert_eq!(device.disk().counters().flushes.load(Relaxed), 1);
    }

    #[test]
    fn a_flush_with_data_writes_it() {
        let (file, _device, mut front) = connected(8);
        let (frame, gref) = front.guest.granted_page();
        front.guest.write(frame, 0, &sector_pattern(5, 77));
        assert_eq!(front.request(FLUSH, 5, &[Segment { gref, first: 0, last: 0 }]), 0);
        let mut on_disk = [0; 512];
        file.as_file().read_exact_at(&mut on_disk, 5 * 512).unwrap();
        assert!(on_disk[..] == sector_pattern(5, 77));
    }

    #[test]
    fn a_read_only_disk_says_so_and_refuses_writes() {
        let file = image(8);
        let mut device = BlockDevice::new(config(true), DiskImage::open(file.path(), false).unwrap());
        let mut front = Front::new(Protocol::X86_64);
        let keys = front.connect(&mut device);
        assert_eq!(value(&keys, "info").unwrap(), "4");
        assert_eq!(value(&device.backend_keys(), "mode").unwrap(), "r");
        let (_, gref) = front.guest.granted_page();
        assert_eq!(front.request(WRITE, 0, &[whole(gref)]), -1);
        assert_eq!(front.request(READ, 0, &[whole(gref)]), 0);
        assert_eq!(std::fs::read(file.path()).unwrap()[..512], sector_pattern(0, 1));
    }

    #[test]
    fn the_size_is_told_in_sectors_of_512_bytes() {
        let (file, mut device) = {
            let file = image(12);
            let device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
            (file, device)
        };
        let keys = Front::new(Protocol::X86_64).connect(&mut device);
        assert_eq!(value(&keys, "sectors").unwrap(), "12");
        assert_eq!(value(&keys, "sector-size").unwrap(), "512");
        assert_eq!(value(&keys, "info").unwrap(), "0");
        assert_eq!(value(&keys, "feature-flush-cache").unwrap(), "1");
        assert_eq!(value(&device.backend_keys(), "params").unwrap(), file.path().to_str().unwrap());
    }

    #[test]
    fn a_request_past_the_end_fails_and_the_next_one_works() {
        let (_file, _device, mut front) = connected(16);
        let (_, gref) = front.guest.granted_page();
        assert_eq!(front.request(READ, 9, &[whole(gref)]), -1);
        assert_eq!(front.request(READ, 8, &[whole(gref)]), 0);
    }

    #[test]
    fn operations_not_offered_are_answered_as_such() {
        let (_file, _device, mut front) = connected(16);
        let (_, gref) = front.guest.granted_page();
        for op in [2, 5, 6, 99] {
            assert_eq!(front.request(op, 0, &[whole(gref)]), -2, "operation {op}");
        }
    }

    #[test]
    fn a_page_granted_to_another_domain_is_not_touched() {
        let (_file, _device, mut front) = connected(16);
        let frame = front.guest.alloc_page();
        front.guest.set_grant(GrantRef(200), 1, 7, frame);
        assert_eq!(front.request(READ, 0, &[whole(GrantRef(200))]), -1);
        assert_eq!(front.guest.read(frame, 0, 4096), vec![0; 4096]);
    }

    #[test]
    fn a_read_only_grant_is_a_source_but_no_destination() {
        let (_file, _device, mut front) = connected(16);
        let frame = front.guest.alloc_page();
        let gref = front.guest.grant(frame, true);
        assert_eq!(front.request(READ, 0, &[whole(gref)]), -1);
        assert_eq!(front.guest.read(frame, 0, 4096), vec![0; 4096]);
        assert_eq!(front.request(WRITE, 0, &[whole(gref)]), 0);
    }

    #[test]
    fn a_bad_grant_gives_back_the_pages_before_it() {
        let (_file, _device, mut front) = connected(64);
        let (_, good) = front.guest.granted_page();
        assert_eq!(front.request(READ, 0, &[whole(good), whole(GrantRef(u32::MAX))]), -1);
        assert_eq!(front.guest.grant_flags(good), 1);
    }

    #[test]
    fn an_image_that_became_shorter_gives_errors() {
        let (file, device, mut front) = connected(64);
        let (_, gref) = front.guest.granted_page();
        file.as_file().set_len(8 * 512).unwrap();
        assert_eq!(front.request(READ, 32, &[whole(gref)]), -1);
        assert_eq!(front.request(READ, 0, &[whole(gref)]), 0);
        assert_eq!(device.disk().counters().errors.load(Relaxed), 1);
    }

    #[test]
    fn a_ring_with_too_many_requests_ends_only_its_connection() {
        let (_file, mut device, mut front) = connected(64);
        let (_, gref) = front.guest.granted_page();
        assert_eq!(front.request(READ, 0, &[whole(gref)]), 0);
        front.ring.req_prod = front.ring.req_prod.wrapping_add(33);
        front.publish();
        front.guest.send(front.port);
        wait_stopped(&mut device);
        assert_eq!(front.guest.grant_flags(front.ring.refs[0]), 1, "the ring is still in use");
        front.renew();
        front.connect(&mut device);
        assert_eq!(front.request(READ, 0, &[whole(gref)]), 0);
    }

    #[test]
    fn requests_in_flight_at_disconnect_are_answered_and_their_pages_given_back() {
        let (_file, mut device, mut front) = connected(3000);
        let pages: Vec<_> = (0..11).map(|_| front.guest.granted_page()).collect();
        for _ in 0..50 {
            let mut sent = 0;
            for i in 0..32u64 {
                let segments: Vec<_> = pages.iter().map(|(_, gref)| whole(*gref)).collect();
                front.put(if i % 2 == 0 { READ } else { WRITE }, i * 88, &segments);
                sent += 1;
            }
            front.publish();
            front.guest.send(front.port);
            device.disconnect();
            wait_stopped(&mut device);
            // Taken or not: what was taken is answered.
            let answered = std::iter::from_fn(|| front.take()).count();
            assert!(answered <= sent);
            for (_, gref) in &pages {
                assert_eq!(front.guest.grant_flags(*gref), 1);
            }
            front.renew();
            front.connect(&mut device);
        }
    }

    #[test]
    fn a_frontend_connects_again_and_again() {
        let (_file, mut device, mut front) = connected(64);
        let (_, gref) = front.guest.granted_page();
        for _ in 0..20 {
            assert_eq!(front.request(READ, 0, &[whole(gref)]), 0);
            device.disconnect();
            wait_stopped(&mut device);
            assert_eq!(front.guest.grant_flags(front.ring.refs[0]), 1, "the ring is still in use");
            front.renew();
            front.connect(&mut device);
        }
        assert_eq!(front.request(READ, 0, &[whole(gref)]), 0);
        assert_eq!(device.disk().counters().reads.load(Relaxed), 21);
    }

    #[test]
    fn the_end_of_a_queue_is_told_by_a_kick() {
        let (_file, mut device, front) = connected(8);
        let kick = &front.guest.domain.kick;
        assert!(kick.read().is_err(), "kicked while running");
        device.disconnect();
        wait_until("no kick", || kick.read().is_ok());
        assert!(device.is_stopped());
    }

    #[test]
    fn a_sleeping_queue_does_not_wake_up() {
        let (_file, device, mut front) = connected(64);
        let (_, gref) = front.guest.granted_page();
        assert_eq!(front.request(READ, 0, &[whole(gref)]), 0);
        let wakeups = || device.disk().counters().wakeups.load(Relaxed);
        wait_until("the queue went to sleep", || front.guest.read_u32(front.ring.frames[0], 4) == 2);
        let before = wakeups();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(wakeups() <= before + 1, "{} wake-ups without a reason", wakeups() - before);
    }

    #[test]
    fn requests_that_wait_before_connect_are_served() {
        let file = image(16);
        let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
        let mut front = Front::new(Protocol::X86_64);
        let (_, gref) = front.guest.granted_page();
        front.put(READ, 0, &[whole(gref)]);
        front.ring.publish(&front.guest);
        front.connect(&mut device);
        assert_eq!(front.wait_response().2, 0);
    }

    #[test]
    fn a_resized_image_is_told_to_the_frontend() {
        let (file, mut device, mut front) = connected(16);
        assert!(device.take_update().is_none());
        assert!(!device.rescan().unwrap());
        // A piece of a sector at the end does not count.
        file.as_file().set_len(24 * 512 + 100).unwrap();
        assert!(device.disk().rescan().unwrap());
        assert_eq!(front.guest.domain.kick.read().unwrap(), 1);
        assert_eq!(device.take_update().unwrap(), [("sectors".to_owned(), "24".to_owned())]);
        assert!(device.take_update().is_none());
        let (_, gref) = front.guest.granted_page();
        assert_eq!(front.request(READ, 16, &[whole(gref)]), 0);
    }

    #[test]
    fn keys_that_are_missing_or_wrong_are_named() {
        let file = image(16);
        let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
        for (key, bad) in [
            ("ring-ref", None),
            ("ring-ref", Some("x")),
            ("event-channel", None),
            ("event-channel", Some("-1")),
            ("protocol", Some("arm-abi")),
            ("ring-page-order", Some("1")),
            ("multi-queue-num-queues", Some("2")),
        ] {
            let mut front = Front::new(Protocol::X86_64);
            match bad {
                Some(value) => front.guest.set_key(key, value),
                None => drop(front.guest.keys.remove(key)),
            }
            let error = device.connect(&front.guest, &front.guest.domain).unwrap_err();
            assert!(error.0.contains(key), "{key}={bad:?}: {error}");
            assert!(device.is_stopped());
            assert_eq!(front.guest.grant_flags(front.ring.refs[0]), 1);
        }
    }

    #[test]
    fn a_ring_or_port_that_is_not_there_is_an_error() {
        let file = image(16);
        let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
        for key in ["ring-ref", "event-channel"] {
            let mut front = Front::new(Protocol::X86_64);
            front.guest.set_key(key, 4000);
            assert!(device.connect(&front.guest, &front.guest.domain).is_err(), "{key}");
            assert_eq!(front.guest.grant_flags(front.ring.refs[0]), 1);
        }
    }

    #[test]
    fn a_second_connection_waits_for_the_end_of_the_first() {
        let (_file, mut device, front) = connected(16);
        assert!(device.connect(&front.guest, &front.guest.domain).is_err());
    }

    /// A loop device with sectors of 4096 bytes.
    struct Loop(String);

    impl Loop {
        fn new(file: &std::path::Path) -> Self {
            let mut losetup = std::process::Command::new("losetup");
            let output = losetup.args(["-f", "--show", "-b", "4096"]).arg(file).output().unwrap();
            assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
            Self(String::from_utf8(output.stdout).unwrap().trim().to_owned())
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = std::process::Command::new("losetup").arg("-d").arg(&self.0).status();
        }
    }

    #[test]
    #[ignore = "needs root and a free loop device"]
    fn a_device_with_sectors_of_4096_bytes_is_served_in_every_shape() {
        let file = image(64);
        let device = Loop::new(file.path());
        let open = |readonly| DiskImage::open(device.0.as_ref(), readonly);
        let mut block = BlockDevice::new(config(false), open(false).unwrap());
        assert!(matches!(open(false), Err(crate::ImageError::Locked(_))));
        assert!(matches!(open(true), Err(crate::ImageError::Locked(_))));
        let mut front = Front::new(Protocol::X86_64);
        let keys = front.connect(&mut block);
        assert_eq!(value(&keys, "sector-size").unwrap(), "4096");
        assert_eq!(value(&keys, "sectors").unwrap(), "64");
        assert_eq!(value(&block.backend_keys(), "type").unwrap(), "phy");

        let (a, a_ref) = front.guest.granted_page();
        let (_, b_ref) = front.guest.granted_page();
        let (c, c_ref) = front.guest.granted_page();
        assert_eq!(front.request(READ, 1, &[whole(a_ref)]), -1, "not on a boundary");
        // Two sectors of the disk in three pages, one of them in the middle of both.
        let shape = || {
            [(a_ref, 5, 7), (b_ref, 0, 7), (c_ref, 1, 5)].map(|(gref, first, last)| Segment {
                gref,
                first,
                last,
            })
        };
        assert_eq!(front.request(READ, 16, &shape()), 0);
        assert!(front.guest.read(a, 5 * 512, 512) == sector_pattern(16, 1));
        assert!(front.guest.read(c, 512, 512) == sector_pattern(16 + 11, 1));
        front.guest.write(c, 512, &sector_pattern(99, 99));
        assert_eq!(front.request(WRITE, 16, &shape()), 0);
        assert_eq!(front.request(FLUSH, 0, &[]), 0);
        drop(block);
        let mut on_disk = [0; 1024];
        std::fs::File::open(&device.0).unwrap().read_exact_at(&mut on_disk, 26 * 512).unwrap();
        assert!(on_disk[..512] == sector_pattern(26, 1) && on_disk[512..] == sector_pattern(99, 99));
    }

    #[test]
    fn a_dropped_device_ends_its_thread() {
        let (file, device, front) = connected(16);
        drop(device);
        assert_eq!(front.guest.grant_flags(front.ring.refs[0]), 1);
        assert!(DiskImage::open(file.path(), false).is_ok(), "the lock is still held");
    }
}
