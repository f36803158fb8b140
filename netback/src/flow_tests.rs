//! Interfaces whose frontend stalls, hurries or goes, with threads and a real tap.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::testing::FakeGuest;
use devices::xen::xenbus::BackendDevice;

use crate::protocol::{Gso, GsoKind, TXF_CSUM_BLANK};
use crate::queue::Clock;
use crate::testing::{enter_network_namespace, tcp_frame, wait};
use crate::vif_tests::{LINUX, OKAY, PAGE, PLAIN, Rig, assert_all_given_back, blank, ethernet};

/// A clock that only the test moves.
fn clock() -> (Clock, Arc<Mutex<Instant>>) {
    let now = Arc::new(Mutex::new(Instant::now()));
    let shared = Arc::clone(&now);
    (Clock::new(move || *shared.lock().unwrap()), now)
}

#[test]
fn a_frontend_that_posts_no_pages_loses_frames_then_the_carrier_and_recovers() {
    let mut rig = Rig::new(1500, 1);
    let (clock, now) = clock();
    let Rig { guest, device, host, pairs } = rig;
    rig = Rig { guest, device: device.with_clock(clock), host, pairs };
    rig.connect(1, false, LINUX);
    let pass = |rig: &Rig, seconds| {
        *now.lock().unwrap() += Duration::from_secs(seconds);
        rig.guest.send(rig.pairs[0].tx_port);
    };
    (0..5).for_each(|i| rig.host.send(PLAIN, &ethernet(60 + i)).unwrap());
    wait("an event to be asked for", || rig.guest.read_u32(rig.pairs[0].rx.frames[0], 4) == 18);
    let wakeups = rig.counter("wakeups");
    pass(&rig, 9);
    wait("a look at the clock", || rig.counter("wakeups") > wakeups);
    assert_eq!(rig.counter("rx_drops"), 0);
    pass(&rig, 1);
    wait("the frames to be dropped", || rig.counter("rx_drops") == 5);
    assert!(rig.host.has_carrier() && rig.device.take_update().is_none());
    // Pages have been missing for a minute, though what waits now is new.
    pass(&rig, 51);
    rig.host.send(PLAIN, &ethernet(70)).unwrap();
    wait("the cable to be pulled out", || {
        rig.device.take_update();
        !rig.host.has_carrier()
    });
    assert!(rig.guest.domain.kick.read().is_ok(), "the main thread was told");
    wait("the frame to be dropped", || rig.counter("rx_drops") == 6);
    // The other direction goes on.
    rig.transmit(0, &ethernet(60), PAGE, 0, None);
    assert_eq!(rig.statuses(0, 1), [OKAY]);
    rig.post(0, 60);
    wait("the cable to be plugged in", || {
        rig.device.take_update();
        rig.host.has_carrier()
    });
    rig.host.notice_carrier();
    rig.host.send(PLAIN, &ethernet(71)).unwrap();
    assert_eq!(rig.receive(0).frame, ethernet(71));
    rig.disconnect();
    assert_all_given_back(&rig.guest);
}

#[test]
fn a_burst_of_32_packets_takes_at_most_four_system_calls_each_way() {
    let mut rig = Rig::new(1500, 1);
    rig.guest.delivery.offer_notifiers();
    rig.connect(1, true, LINUX);
    let settled = |rig: &Rig| {
        let mut last = 0;
        wait("the queue to sleep", || {
            let calls = rig.counter("system_calls") + rig.counter("wakeups");
            std::thread::sleep(Duration::from_millis(30));
            std::mem::replace(&mut last, calls) == calls
        });
        rig.counter("system_calls")
    };
    // Frames wait until there are pages, so that they are there at once.
    for i in 0..32 {
        rig.host.send(PLAIN, &ethernet(60 + i)).unwrap();
    }
    let before = settled(&rig);
    rig.post(0, 256);
    (0..32).for_each(|i| assert_eq!(rig.receive(0).frame, ethernet(60 + i)));
    let between = settled(&rig);
    for i in 0..32 {
        rig.put_packet(0, 60 + i, &[(0, &ethernet(60 + i))], 0, None);
    }
    rig.push_tx(0);
    assert_eq!(rig.statuses(0, 32), [OKAY; 32]);
    let after = settled(&rig);
    // The first frames are not expected: two, and four, come before the many.
    assert!(between - before <= 6, "{} system calls", between - before);
    assert!(after - between <= 4, "{} system calls", after - between);
    assert_eq!(rig.counter("rx_copied"), 32);
}

#[test]
fn without_io_uring_everything_works_as_well() {
    let mut rig = Rig::new(1500, 1);
    let Rig { guest, device, host, pairs } = rig;
    rig = Rig { guest, device: device.without_io_uring(), host, pairs };
    rig.connect(1, true, LINUX);
    rig.post(0, 200);
    for i in 0..40 {
        rig.transmit(0, &ethernet(60 + i), PAGE, 0, None);
        assert_eq!(rig.host.receive().1, ethernet(60 + i));
        rig.host.send(PLAIN, &ethernet(100 + i)).unwrap();
        assert_eq!(rig.receive(0).frame, ethernet(100 + i));
    }
    let gso = Some(Gso { size: 1448, kind: GsoKind::TcpV4 });
    let frame = tcp_frame(false, 30_000);
    rig.host.send(blank(false, gso).emit(), &frame).unwrap();
    assert_eq!(rig.receive(0).frame, frame);
    rig.disconnect();
    assert_all_given_back(&rig.guest);
}

#[test]
fn a_storm_of_connects_with_packets_under_way_leaves_no_page_in_use() {
    let mut rig = Rig::new(1500, 2);
    rig.guest = FakeGuest::new(16384);
    let large = tcp_frame(false, 20_000);
    let gso = Some(Gso { size: 1448, kind: GsoKind::TcpV4 });
    for round in 0..20 {
        let queues = 1 + round % 2;
        rig.connect(queues, round % 3 == 0, LINUX);
        for queue in 0..queues {
            rig.post(queue, 60 + round);
            (0..8).for_each(|_| rig.transmit(queue, &large, 100, TXF_CSUM_BLANK, gso));
            (0..20).for_each(|i| rig.transmit(queue, &ethernet(60 + i), PAGE, 0, None));
        }
        for i in 0..40 {
            let _ = rig.host.send(PLAIN, &ethernet(60 + i));
            let _ = rig.host.send(blank(false, gso).emit(), &large);
        }
        // Nothing is waited for: the frontend goes as if its kernel had been replaced.
        rig.disconnect();
        assert_all_given_back(&rig.guest);
        for pair in &rig.pairs {
            assert!(pair.posted.iter().all(|(_, gref)| rig.guest.grant_flags(*gref) == 1));
        }
    }
    rig.connect(1, false, LINUX);
    rig.post(0, 60);
    rig.host.send(PLAIN, &ethernet(99)).unwrap();
    assert_eq!(rig.receive(0).frame, ethernet(99));
}

#[test]
fn an_interface_is_gone_with_its_device_and_its_name_is_free() {
    enter_network_namespace();
    for round in 0..20 {
        let mut rig = Rig::in_namespace(1500, 1);
        rig.connect(1, true, LINUX);
        rig.post(0, 60);
        // The thread sleeps, and listens to the tap.
        rig.host.send(PLAIN, &ethernet(60 + round)).unwrap();
        assert_eq!(rig.receive(0).frame, ethernet(60 + round));
    }
}
