#![allow(clippy::unwrap_used)]
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::DiskImage;
use crate::testing::{
    BARRIER, DISCARD, FLUSH, Front, Loop, Memory, READ, Segment, WRITE, config, image, sector_pattern,
    wait_until, whole,
};

mod waking;

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
    let disk = Arc::new(DiskImage::open(file.path(), false).unwrap());
    Uring::new(disk, event.as_raw_fd(), event.as_raw_fd(), 32).unwrap();
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
    for op in [4, 7, 99] {
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
        // Taken or not: each is answered.
        let answered = std::iter::from_fn(|| front.take()).count();
        assert_eq!(answered, sent);
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
        ("ring-page-order", Some("5")),
        ("ring-page-order", Some("4294967295")),
        ("ring-page-order", Some("1")),
        ("multi-queue-num-queues", Some("0")),
        ("multi-queue-num-queues", Some("5")),
        ("multi-queue-num-queues", Some("2")),
    ] {
        let mut front = Front::new(Protocol::X86_64);
        match bad {
            Some(value) => front.guest.set_key(key, value),
            None => drop(front.guest.keys.remove(key)),
        }
        let error = device.connect(&front.guest, &front.guest.domain).unwrap_err();
        // What was offered needs more keys, and those are missing.
        let named = match (key, bad) {
            ("ring-page-order", Some("1")) => "ring-ref0",
            ("multi-queue-num-queues", Some("2")) => "queue-0/ring-ref",
            _ => key,
        };
        assert!(error.0.contains(named), "{key}={bad:?}: {error}");
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

#[test]
#[ignore = "needs root and a free loop device"]
fn a_device_with_sectors_of_4096_bytes_is_served_in_every_shape() {
    let file = image(64);
    let device = Loop::new(file.path(), 4096);
    let open = |readonly| DiskImage::open(&device.0, readonly);
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
        [(a_ref, 5, 7), (b_ref, 0, 7), (c_ref, 1, 5)].map(|(gref, first, last)| Segment { gref, first, last })
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

#[test]
fn the_features_are_offered_where_blkfront_looks_for_them() {
    let file = image(16);
    let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
    let early = device.backend_keys();
    assert_eq!(value(&early, "max-ring-page-order").unwrap(), "4");
    assert_eq!(value(&early, "multi-queue-max-queues").unwrap(), "4");
    assert_eq!(value(&early, "feature-max-indirect-segments").unwrap(), "256");
    let late = Front::new(Protocol::X86_64).connect(&mut device);
    assert_eq!(value(&late, "feature-flush-cache").unwrap(), "1");
    assert_eq!(value(&late, "feature-barrier").unwrap(), "1");
    assert_eq!(value(&late, "feature-discard").unwrap(), "1");
    assert_eq!(value(&late, "discard-granularity").unwrap(), "4096");
    assert_eq!(value(&late, "discard-alignment").unwrap(), "0");
    assert_eq!(value(&late, "discard-secure").unwrap(), "0");
    for keys in [early, late] {
        assert_eq!(value(&keys, "feature-persistent"), None);
    }
}

#[test]
fn discard_is_offered_only_if_it_is_wanted_and_possible() {
    let connect = |change: &dyn Fn(&mut DiskConfig, &mut Memory)| {
        let (mut config, mut memory) = (config(false), Memory::new(16));
        change(&mut config, &mut memory);
        let mut device = BlockDevice::new(config, Arc::new(memory).backing());
        let mut front = Front::new(Protocol::X86_64);
        let keys = front.connect(&mut device);
        let id = front.put_discard(0, 0, 8);
        (value(&keys, "feature-discard").unwrap(), front.finish(id, DISCARD))
    };
    assert_eq!(connect(&|_, _| {}), ("1".into(), 0));
    assert_eq!(connect(&|config, _| config.discard = false), ("0".into(), -2));
    assert_eq!(connect(&|_, memory| memory.traits.discard = None), ("0".into(), -2));
    assert_eq!(connect(&|config, _| config.readonly = true), ("0".into(), -2));
}

#[test]
fn secure_discard_is_refused_as_not_supported() {
    let (_file, _device, mut front) = connected(16);
    let id = front.put_discard(1, 0, 8);
    assert_eq!(front.finish(id, DISCARD), -2);
}

#[test]
fn a_cdrom_says_so() {
    let file = image(16);
    let config = DiskConfig { cdrom: true, removable: true, readonly: true, ..config(false) };
    let mut device = BlockDevice::new(config, DiskImage::open(file.path(), true).unwrap());
    assert_eq!(value(&device.frontend_keys(), "device-type").unwrap(), "disk");
    assert_eq!(value(&device.backend_keys(), "device-type").unwrap(), "cdrom");
    assert_eq!(value(&device.backend_keys(), "removable").unwrap(), "1");
    let keys = Front::new(Protocol::X86_64).connect(&mut device);
    assert_eq!(value(&keys, "info").unwrap(), "7");
}

#[test]
fn sector_sizes_are_those_of_the_storage() {
    for (logical, physical) in [(512, 512), (512, 4096), (4096, 4096)] {
        let mut memory = Memory::new(16);
        (memory.traits.logical_block, memory.traits.physical_block) = (logical, physical);
        memory.traits.offset_alignment = logical;
        let mut device = BlockDevice::new(config(false), Arc::new(memory).backing());
        let keys = Front::new(Protocol::X86_64).connect(&mut device);
        assert_eq!(value(&keys, "sector-size").unwrap(), logical.to_string());
        assert_eq!(value(&keys, "physical-sector-size").unwrap(), physical.to_string());
        assert_eq!(value(&keys, "sectors").unwrap(), "16");
    }
}

#[test]
fn rings_of_every_size_are_served_until_each_slot_was_used() {
    for protocol in [Protocol::X86_64, Protocol::X86_32] {
        for pages in [1, 2, 4, 8, 16] {
            let file = image(64);
            let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
            let mut front = Front::with_rings(protocol, pages, 1);
            front.connect(&mut device);
            let entries = front.ring.nr_entries();
            assert_eq!(entries, 32 * u32::try_from(pages).unwrap());
            let (_, gref) = front.guest.granted_page();
            for _ in 0..2 {
                let mut ids: Vec<_> =
                    (0..entries).map(|i| front.put(READ, (i % 57).into(), &[whole(gref)])).collect();
                front.publish();
                while !ids.is_empty() {
                    let (id, _, status) = front.wait_response();
                    assert_eq!(status, 0);
                    ids.remove(ids.iter().position(|i| *i == id).unwrap());
                }
            }
        }
    }
}

#[test]
fn a_ring_of_one_page_may_have_an_order_or_a_number() {
    let file = image(16);
    let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
    for (order, numbered) in [(None, true), (Some("0"), false), (Some("0"), true)] {
        let mut front = Front::new(Protocol::X86_64);
        if let Some(order) = order {
            front.guest.set_key("ring-page-order", order);
        }
        if numbered {
            let gref = front.guest.keys.remove("ring-ref").unwrap();
            front.guest.set_key("ring-ref0", gref);
        }
        front.connect(&mut device);
        assert_eq!(front.request(FLUSH, 0, &[]), 0);
        device.disconnect();
        wait_stopped(&mut device);
    }
}

#[test]
fn each_queue_has_its_ring_its_channel_and_its_thread() {
    let file = image(64);
    let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
    let mut front = Front::with_rings(Protocol::X86_64, 4, 4);
    front.connect(&mut device);
    assert_eq!(device.connection.as_ref().unwrap().threads.len(), 4);
    let (frame, gref) = front.guest.granted_page();
    for queue in 0..4u64 {
        assert_eq!(front.request(READ, queue, &[Segment { gref, first: 0, last: 0 }]), 0);
        assert!(front.guest.read(frame, 0, 512) == sector_pattern(queue, 1), "queue {queue}");
        // The next one is the one that the helpers use.
        let next = &mut front.others[usize::try_from(queue % 3).unwrap()];
        std::mem::swap(&mut front.ring, &mut next.ring);
        std::mem::swap(&mut front.port, &mut next.port);
    }
    device.disconnect();
    wait_stopped(&mut device);
    let others = front.others.iter().flat_map(|queue| &queue.ring.refs);
    for gref in front.ring.refs.iter().chain(others) {
        assert_eq!(front.guest.grant_flags(*gref), 1, "a ring is still in use");
    }
}

#[test]
fn a_queue_that_cannot_be_made_leaves_the_others_unmade() {
    let file = image(64);
    let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
    for (key, bad) in [("queue-3/ring-ref", "4000"), ("queue-3/event-channel", "4000")] {
        let mut front = Front::with_rings(Protocol::X86_64, 1, 4);
        front.guest.set_key(key, bad);
        assert!(device.connect(&front.guest, &front.guest.domain).is_err(), "{key}");
        assert!(device.is_stopped());
        for ring in front.others.iter().map(|queue| &queue.ring).chain([&front.ring]) {
            assert_eq!(front.guest.grant_flags(ring.refs[0]), 1);
        }
    }
}

#[test]
fn two_queues_with_one_event_channel_are_refused() {
    let file = image(64);
    let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
    let mut front = Front::with_rings(Protocol::X86_64, 1, 2);
    front.guest.set_key("queue-1/event-channel", front.port.0);
    assert!(device.connect(&front.guest, &front.guest.domain).is_err());
    assert!(device.is_stopped());
}

#[test]
fn an_image_format_is_served_by_threads_with_every_operation() {
    let memory = Arc::new(Memory::new(64));
    let mut device = BlockDevice::new(config(false), memory.backing());
    let mut front = Front::new(Protocol::X86_64);
    front.connect(&mut device);
    let (frame, gref) = front.guest.granted_page();
    front.guest.write(frame, 0, &sector_pattern(9, 9));
    let segment = [Segment { gref, first: 0, last: 0 }];
    for op in [WRITE, BARRIER, FLUSH] {
        assert_eq!(front.request(op, 9, &segment), 0);
    }
    assert!(memory.sectors(9, 1) == sector_pattern(9, 9));
    assert_eq!(front.indirect(READ, 10, &segment), 0);
    assert!(front.guest.read(frame, 0, 512) == sector_pattern(10, 1));
    let id = front.put_discard(0, 8, 8);
    assert_eq!(front.finish(id, DISCARD), 0);
    assert!(memory.sectors(8, 8) == [0; 4096]);
}

#[test]
fn io_uring_and_threads_do_a_megabyte_in_one_request() {
    let file = image(2048 + 8);
    let image = DiskImage::open(file.path(), false).unwrap();
    let memory = Arc::new(Memory::new(2048 + 8));
    let devices = [BlockDevice::new(config(false), image), BlockDevice::new(config(false), memory.backing())];
    for mut device in devices {
        let mut front = Front::new(Protocol::X86_64);
        front.connect(&mut device);
        let mut pages: Vec<_> = (0..256).map(|_| front.guest.granted_page()).collect();
        pages.reverse();
        let segments: Vec<_> = pages.iter().map(|(_, gref)| whole(*gref)).collect();
        assert_eq!(front.indirect(READ, 8, &segments), 0);
        for (page, (frame, _)) in (0u64..).zip(&pages) {
            assert!(front.guest.read(*frame, 0, 512) == sector_pattern(8 + page * 8, 1), "page {page}");
        }
        assert_eq!(front.indirect(WRITE, 0, &segments), 0);
        assert_eq!(front.indirect(READ, 2040, &segments[..1]), 0);
        assert!(front.guest.read(pages[0].0, 0, 512) == sector_pattern(2048, 1));
        let counters = device.disk().counters();
        assert_eq!(counters.bytes_written.load(Relaxed), 1 << 20);
        assert_eq!((counters.requests.load(Relaxed), counters.bounces.load(Relaxed)), (3, 0));
    }
}

#[test]
fn a_disk_whose_storage_takes_larger_units_only_is_written_in_sectors() {
    let mut memory = Memory::new(64);
    memory.traits.offset_alignment = 4096;
    let memory = Arc::new(memory);
    let mut device = BlockDevice::new(config(false), memory.backing());
    let mut front = Front::new(Protocol::X86_64);
    let keys = front.connect(&mut device);
    assert_eq!(value(&keys, "sector-size").unwrap(), "512");
    let (frame, gref) = front.guest.granted_page();
    for sector in 0..64u8 {
        let at = usize::from(sector % 8) * 512;
        front.guest.write(frame, at, &sector_pattern(sector.into(), 200));
        let segment = Segment { gref, first: sector % 8, last: sector % 8 };
        front.put(WRITE, sector.into(), &[segment]);
        if sector % 8 == 7 {
            front.publish();
            (0..8).for_each(|_| assert_eq!(front.wait_response().2, 0));
        }
    }
    for sector in 0..64 {
        assert!(memory.sectors(sector, 1) == sector_pattern(sector, 200), "sector {sector}");
    }
    assert_eq!(front.request(READ, 13, &[Segment { gref, first: 2, last: 2 }]), 0);
    assert!(front.guest.read(frame, 1024, 512) == sector_pattern(13, 200));
}

/// Lets io_uring_setup fail with EPERM in this thread and those that it starts, as a sandbox does.
fn forbid_io_uring() {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        // The number of the system call is at the start of what the filter looks at.
        step(LOAD, 0, 0, 0),
        step(JUMP_IF_EQUAL, 0, 1, u32::try_from(libc::SYS_io_uring_setup).unwrap()),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: program and filter live until the call returns.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn where_io_uring_is_forbidden_threads_serve_the_disk() {
    let file = image(64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            forbid_io_uring();
            let event = EventFd::new(EFD_NONBLOCK).unwrap().as_raw_fd();
            let disk = Arc::new(DiskImage::open(file.path(), false).unwrap());
            assert!(Uring::new(disk, event, event, 32).is_err());
            let image = DiskImage::open(file.path(), true).unwrap();
            let mut device = BlockDevice::new(config(true), image);
            let mut front = Front::with_rings(Protocol::X86_64, 4, 2);
            front.connect(&mut device);
            let (frame, gref) = front.guest.granted_page();
            for sector in 0..64 {
                assert_eq!(front.request(READ, sector, &[Segment { gref, first: 0, last: 0 }]), 0);
                assert!(front.guest.read(frame, 0, 512) == sector_pattern(sector, 1));
            }
            assert_eq!(front.request(FLUSH, 0, &[]), 0);
        });
    });
}
