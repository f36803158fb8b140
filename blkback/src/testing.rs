//! A frontend with a disk of its own, for the tests.

#![allow(clippy::unwrap_used, missing_docs)]

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::testing::{FakeGuest, FrontRing};
use devices::xen::shared_ring::BackRing;
use devices::xen::xenbus::{BackendDevice, Keys};
use devices::xen::{GrantRef, Port};
use tempfile::NamedTempFile;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::engine::Blocking;
use crate::protocol::Protocol;
use crate::queue::Queue;
use crate::{BlockDevice, Disk, DiskConfig};

pub(crate) const READ: u8 = 0;
pub(crate) const WRITE: u8 = 1;
pub(crate) const FLUSH: u8 = 3;

/// A temporary image whose sectors all differ.
pub(crate) fn image(sectors: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..sectors).flat_map(|s| sector_pattern(s, 1)).collect();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

/// 512 bytes that no other `sector` or `salt` has.
pub(crate) fn sector_pattern(sector: u64, salt: u8) -> Vec<u8> {
    let mut bytes = vec![salt; 512];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[504..].copy_from_slice(&(!sector).to_le_bytes());
    bytes
}

pub(crate) fn config(readonly: bool) -> DiskConfig {
    DiskConfig { vdev: "xvda".into(), virtual_device: 51712, readonly, bootable: true }
}

/// Waits until `done`, or fails the test.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) struct Segment {
    pub(crate) gref: GrantRef,
    pub(crate) first: u8,
    pub(crate) last: u8,
}

pub(crate) fn whole(gref: GrantRef) -> Segment {
    Segment { gref, first: 0, last: 7 }
}

/// The frontend: a guest with one ring.
pub(crate) struct Front {
    pub(crate) guest: FakeGuest,
    pub(crate) ring: FrontRing,
    pub(crate) port: Port,
    protocol: Protocol,
    next_id: u64,
}

impl Front {
    pub(crate) fn new(protocol: Protocol) -> Self {
        let mut guest = FakeGuest::new(256);
        let ring = FrontRing::new(&mut guest, 1, protocol.entry_size());
        let port = guest.alloc_port();
        guest.set_key("ring-ref", ring.refs[0].0);
        guest.set_key("event-channel", port.0);
        if protocol == Protocol::X86_32 {
            guest.set_key("protocol", "x86_32-abi");
        }
        Self { guest, ring, port, protocol, next_id: 1000 }
    }

    /// As a driver that is loaded again: a new ring and a new port.
    pub(crate) fn renew(&mut self) {
        self.ring = FrontRing::new(&mut self.guest, 1, self.protocol.entry_size());
        self.guest.domain.events.close(self.port).unwrap();
        self.port = self.guest.alloc_port();
        self.guest.set_key("ring-ref", self.ring.refs[0].0);
        self.guest.set_key("event-channel", self.port.0);
    }

    pub(crate) fn connect(&self, device: &mut BlockDevice) -> Keys {
        device.connect(&self.guest, &self.guest.domain).unwrap()
    }

    /// A queue without a thread, for tests that go step by step with [`Queue::pass`].
    pub(crate) fn queue(&self, disk: &Arc<Disk>) -> Queue<Blocking> {
        self.queue_with_stop(disk).0
    }

    /// The same with the eventfd that wakes it up to stop.
    pub(crate) fn queue_with_stop(&self, disk: &Arc<Disk>) -> (Queue<Blocking>, EventFd) {
        let domain = &self.guest.domain;
        let ring = BackRing::new(Arc::clone(&domain.grants), &self.ring.refs, self.protocol.entry_size());
        let channel = domain.events.bind_backend(self.port).unwrap();
        let stop = EventFd::new(EFD_NONBLOCK).unwrap();
        let engine = Blocking::new(disk.image().as_raw_fd(), channel.event().as_raw_fd(), stop.as_raw_fd());
        let (grants, disk) = (Arc::clone(&domain.grants), Arc::clone(disk));
        (Queue::new(engine, ring.unwrap(), channel, grants, disk, self.protocol), stop)
    }

    /// Puts a request into the ring without publishing it; its id.
    pub(crate) fn put(&mut self, op: u8, sector: u64, segments: &[Segment]) -> u64 {
        let (id_at, sector_at, segments_at) = match self.protocol {
            Protocol::X86_64 => (8, 16, 24),
            Protocol::X86_32 => (4, 12, 20),
        };
        let mut entry = vec![0; self.protocol.entry_size()];
        entry[0] = op;
        entry[1] = u8::try_from(segments.len()).unwrap();
        entry[id_at..id_at + 8].copy_from_slice(&self.next_id.to_le_bytes());
        entry[sector_at..sector_at + 8].copy_from_slice(&sector.to_le_bytes());
        for (i, segment) in segments.iter().enumerate() {
            let at = segments_at + i * 8;
            entry[at..at + 4].copy_from_slice(&segment.gref.0.to_le_bytes());
            (entry[at + 4], entry[at + 5]) = (segment.first, segment.last);
        }
        self.ring.put(&self.guest, &entry);
        self.next_id += 1;
        self.next_id - 1
    }

    /// Publishes, and sends an event if the backend asked for it.
    pub(crate) fn publish(&self) {
        if self.ring.publish(&self.guest) {
            self.guest.send(self.port);
        }
    }

    /// The next response, if there is one: id, operation, status.
    pub(crate) fn take(&mut self) -> Option<(u64, u8, i16)> {
        let bytes = self.ring.take(&self.guest, 12)?;
        let id = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        Some((id, bytes[8], i16::from_le_bytes(bytes[10..12].try_into().unwrap())))
    }

    /// Waits for the next response.
    pub(crate) fn wait_response(&mut self) -> (u64, u8, i16) {
        let mut response = None;
        wait_until("the backend did not answer", || {
            response = self.take();
            response.is_some()
        });
        response.unwrap()
    }

    /// One request from start to end: its status.
    pub(crate) fn request(&mut self, op: u8, sector: u64, segments: &[Segment]) -> i16 {
        let id = self.put(op, sector, segments);
        self.publish();
        let response = self.wait_response();
        assert_eq!((response.0, response.1), (id, op));
        response.2
    }
}
