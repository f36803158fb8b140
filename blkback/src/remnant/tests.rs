#![allow(clippy::unwrap_used)]
use std::sync::atomic::Ordering::Relaxed;

use devices::xen::GrantRef;
use devices::xen::xenbus::{BackendDevice, Remnant};

use crate::testing::{
    BARRIER, DISCARD, FLUSH, Front, FrontQueue, READ, WRITE, config, image, wait_until, whole,
};
use crate::{BlockDevice, DiskImage};

use super::*;

/// A disk that was connected and is retired.
fn retired(front: &mut Front) -> (tempfile::NamedTempFile, Box<dyn Remnant>) {
    let file = image(64);
    let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
    front.connect(&mut device);
    let (_, gref) = front.guest.granted_page();
    assert_eq!(front.request(READ, 0, &[whole(gref)]), 0);
    device.retire();
    wait_until("the queues did not stop", || device.is_stopped());
    let remnant = device.take_remnant().unwrap();
    drop(device);
    (file, remnant)
}

fn is_free(front: &Front, gref: GrantRef) -> bool {
    front.guest.grant_flags(gref) == 1
}

#[test]
fn each_request_to_a_disk_that_is_gone_is_refused() {
    for protocol in [Protocol::X86_64, Protocol::X86_32] {
        let mut front = Front::new(protocol);
        let (file, remnant) = retired(&mut front);
        // The image is free already.
        let before = std::fs::read(file.path()).unwrap();
        drop(DiskImage::open(file.path(), false).unwrap());
        let (_, gref) = front.guest.granted_page();
        for op in [READ, WRITE, BARRIER, FLUSH] {
            assert_eq!(front.request(op, 0, &[whole(gref)]), -1, "operation {op}");
        }
        assert_eq!(front.indirect(WRITE, 0, &[whole(gref); 20]), -1);
        let id = front.put_discard(0, 0, 8);
        assert_eq!(front.finish(id, DISCARD), -1);
        assert!(!remnant.is_over() && is_free(&front, gref));
        assert!(std::fs::read(file.path()).unwrap() == before);
    }
}

#[test]
fn a_ring_that_is_filled_again_and_again_is_answered() {
    for pages in [1, 16] {
        let mut front = Front::with_rings(Protocol::X86_64, pages, 1);
        let (_file, _remnant) = retired(&mut front);
        for round in 0..20 {
            let mut ids: Vec<u64> = (0..front.ring.nr_entries()).map(|_| front.put(FLUSH, 0, &[])).collect();
            front.publish();
            for id in ids.drain(..) {
                assert_eq!(front.wait_response(), (id, FLUSH, -1), "round {round}");
            }
        }
    }
}

#[test]
fn what_came_between_the_queue_and_the_remnant_is_answered() {
    let file = image(64);
    let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
    let mut front = Front::new(Protocol::X86_64);
    front.connect(&mut device);
    device.retire();
    wait_until("the queue did not stop", || device.is_stopped());
    let id = front.put(FLUSH, 0, &[]);
    front.publish();
    assert_eq!(front.take(), None);
    let _remnant = device.take_remnant().unwrap();
    assert_eq!(front.wait_response(), (id, FLUSH, -1));
    assert_eq!(device.disk().counters().requests.load(Relaxed), 0);
}

#[test]
fn it_is_over_when_the_frontend_has_closed_the_channel_of_each_queue() {
    let mut front = Front::with_rings(Protocol::X86_64, 2, 3);
    let refs: Vec<GrantRef> = front.others.iter().flat_map(|q| q.ring.refs.clone()).collect();
    let refs = [refs, front.ring.refs.clone()].concat();
    let (_file, remnant) = retired(&mut front);
    while front.guest.domain.kick.read().is_ok() {}
    while let Some(other) = front.others.pop() {
        assert_eq!(front.request(FLUSH, 0, &[]), -1);
        front.guest.domain.events.close(front.port).unwrap();
        FrontQueue { ring: front.ring, port: front.port } = other;
    }
    assert_eq!(front.request(FLUSH, 0, &[]), -1);
    assert!(!remnant.is_over() && front.guest.domain.kick.read().is_err());
    front.guest.domain.events.close(front.port).unwrap();
    wait_until("it does not end", || remnant.is_over());
    wait_until("nobody is told", || front.guest.domain.kick.read().is_ok());
    assert!(refs.into_iter().all(|gref| is_free(&front, gref)));
}

#[test]
fn a_remnant_that_is_dropped_holds_nothing() {
    let mut front = Front::with_rings(Protocol::X86_64, 4, 1);
    let (_file, remnant) = retired(&mut front);
    assert!(front.ring.refs.iter().all(|gref| !is_free(&front, *gref)));
    drop(remnant);
    assert!(front.ring.refs.iter().all(|gref| is_free(&front, *gref)));
    // The frontend's port is there for another backend.
    assert!(front.guest.domain.events.bind_backend(front.port).is_ok());
}

#[test]
fn a_frontend_that_breaks_the_ring_is_not_heard_any_more() {
    let mut front = Front::new(Protocol::X86_64);
    let (_file, remnant) = retired(&mut front);
    front.ring.req_prod = front.ring.req_prod.wrapping_add(1000);
    front.ring.publish(&front.guest);
    front.guest.send(front.port);
    wait_until("it does not end", || remnant.is_over());
    assert!(is_free(&front, front.ring.refs[0]));
}

#[test]
fn a_broken_ring_leaves_no_remnant() {
    let file = image(64);
    let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
    let mut front = Front::new(Protocol::X86_64);
    front.connect(&mut device);
    front.ring.req_prod = 1000;
    front.ring.publish(&front.guest);
    front.guest.send(front.port);
    wait_until("the queue did not stop", || device.is_stopped());
    device.retire();
    assert!(device.take_remnant().is_none());
    assert!(is_free(&front, front.ring.refs[0]));
}

#[test]
fn the_frontend_of_each_ring_can_be_sent_an_event() {
    let mut front = Front::with_rings(Protocol::X86_64, 1, 2);
    let (_file, remnant) = retired(&mut front);
    front.guest.delivery.raised.lock().unwrap().clear();
    remnant.notify();
    let mut raised: Vec<u32> =
        front.guest.delivery.raised.lock().unwrap().iter().map(|(port, _)| port.0).collect();
    raised.sort_unstable();
    assert_eq!(raised, [front.port.0, front.others[0].port.0]);
}

#[test]
fn a_disk_that_is_disconnected_after_all_leaves_no_remnant() {
    let file = image(64);
    let mut device = BlockDevice::new(config(false), DiskImage::open(file.path(), false).unwrap());
    let mut front = Front::new(Protocol::X86_64);
    for wait in [false, true] {
        front.connect(&mut device);
        device.retire();
        if wait {
            wait_until("the queue did not stop", || device.is_stopped());
        }
        device.disconnect();
        wait_until("the queue did not stop", || device.is_stopped());
        assert!(is_free(&front, front.ring.refs[0]));
        assert!(device.take_remnant().is_none());
        front.renew();
    }
}
