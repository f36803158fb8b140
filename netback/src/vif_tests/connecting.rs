//! Connecting, reconnecting, and what ends a connection.

use super::*;

#[test]
fn a_frontend_reconnects_twenty_times() {
    let mut rig = Rig::new(1500, 1);
    rig.guest = FakeGuest::new(8192);
    for round in 0..20 {
        rig.connect(1, round % 2 == 0, if round % 3 == 0 { &[] } else { LINUX });
        rig.post(0, 30);
        rig.transmit(0, &ethernet(60 + round), PAGE, 0, None);
        assert_eq!(rig.host.receive().1, ethernet(60 + round));
        rig.host.send(PLAIN, &ethernet(100 + round)).unwrap();
        assert_eq!(rig.receive(0).frame, ethernet(100 + round));
        rig.disconnect();
        assert_eq!(rig.guest.domain.events.status(rig.pairs[0].tx_port).unwrap().status, 1, "unbound");
        for pair in &rig.pairs {
            for (_, gref) in &pair.posted {
                assert_eq!(rig.guest.grant_flags(*gref), 1);
            }
        }
    }
}

#[test]
fn what_the_tap_kept_of_an_earlier_connection_is_not_delivered() {
    let mut rig = Rig::connected(1500, LINUX);
    // No pages: the frame stays in the tap.
    rig.host.send(blank(false, None).emit(), &tcp_frame(false, 500)).unwrap();
    rig.disconnect();
    rig.connect(1, false, &["feature-no-csum-offload"]);
    rig.post(0, 30);
    rig.host.send(PLAIN, &ethernet(77)).unwrap();
    assert_eq!(rig.receive(0).frame, ethernet(77));
}

#[test]
fn split_event_channels_are_each_notified_for_their_ring() {
    let mut rig = Rig::new(1500, 1);
    rig.connect(1, true, LINUX);
    rig.post(0, 30);
    let raised =
        |rig: &Rig| rig.guest.delivery.raised.lock().unwrap().iter().map(|r| r.0).collect::<Vec<_>>();
    rig.transmit(0, &ethernet(60), PAGE, 0, None);
    rig.guest.wait_raised(0);
    assert_eq!(raised(&rig), [rig.pairs[0].tx_port]);
    rig.host.send(PLAIN, &ethernet(60)).unwrap();
    rig.guest.wait_raised(1);
    assert_eq!(raised(&rig), [rig.pairs[0].tx_port, rig.pairs[0].rx_port]);
    // Counted after they are sent.
    wait("two notifications", || rig.counter("notifications") == 2);
}

#[test]
fn each_queue_has_its_rings() {
    let mut rig = Rig::new(1500, 4);
    assert!(rig.device.backend_keys().contains(&("multi-queue-max-queues".into(), "4".into())));
    for queues in [4, 1, 3] {
        rig.connect(queues, true, LINUX);
        for queue in 0..queues {
            rig.post(queue, 60);
            rig.transmit(queue, &ethernet(60 + queue), PAGE, 0, None);
            assert_eq!(rig.host.receive().1, ethernet(60 + queue));
        }
        let before = rig.counter("rx_packets");
        // Each flow goes to one of the queues; whichever, no queue that nobody reads gets any.
        for port in 0..32u8 {
            let mut frame = tcp_frame(false, 100);
            frame[37] = port;
            rig.host.send(PLAIN, &frame).unwrap();
        }
        wait("32 frames", || rig.counter("rx_packets") == before + 32);
        rig.disconnect();
    }
}

#[test]
fn a_tap_that_is_deleted_drops_frames_and_stops_cleanly() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 60);
    rig.host.delete();
    rig.transmit(0, &ethernet(60), PAGE, 0, None);
    assert_eq!(rig.statuses(0, 1), [DROPPED]);
    assert_eq!(rig.counter("tx_drops"), 1);
    rig.disconnect();
    assert_all_given_back(&rig.guest);
    rig.prepare(1, false, LINUX);
    let error = rig.device.connect(&rig.guest, &rig.guest.domain).unwrap_err().to_string();
    assert!(error.starts_with("vif 0: the tap vif1.0 cannot be set up"), "{error}");
}

#[test]
fn an_interface_that_is_down_drops_frames_until_it_is_up_again() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.host.set_up(false);
    rig.transmit(0, &ethernet(60), PAGE, 0, None);
    assert_eq!(rig.statuses(0, 1), [DROPPED]);
    rig.host.set_up(true);
    rig.transmit(0, &ethernet(61), PAGE, 0, None);
    assert_eq!(rig.statuses(0, 1), [OKAY]);
}

#[test]
fn a_frontend_that_misses_something_is_told_what() {
    let mut rig = Rig::new(1500, 2);
    let cases = [
        ("request-rx-copy", None, "vif 0: the frontend must write 1 to request-rx-copy"),
        ("request-rx-copy", Some("0"), "vif 0: the frontend must write 1 to request-rx-copy"),
        ("feature-rx-notify", None, "vif 0: the frontend must write 1 to feature-rx-notify"),
        ("tx-ring-ref", None, "vif 0: the frontend wrote no grant reference to tx-ring-ref"),
        ("rx-ring-ref", Some("-1"), "vif 0: the frontend wrote no grant reference to rx-ring-ref"),
        ("rx-ring-ref", Some("500"), "vif 0: rx-ring-ref: the ring cannot be mapped"),
        ("event-channel", None, "vif 0: the frontend wrote no event channel"),
        ("event-channel", Some("4000"), "vif 0: event-channel 4000: not a valid port"),
        ("multi-queue-num-queues", Some("3"), "vif 0: the frontend wants \"3\" queues, but 1 to 2"),
        ("multi-queue-num-queues", Some("0"), "vif 0: the frontend wants \"0\" queues"),
        ("multi-queue-num-queues", Some("2"), "vif 0: the frontend wrote no grant reference to queue-0/tx-"),
    ];
    for (key, value, message) in cases {
        rig.prepare(1, false, LINUX);
        match value {
            Some(value) => rig.guest.set_key(key, value),
            None => drop(rig.guest.keys.remove(key)),
        }
        let error = rig.device.connect(&rig.guest, &rig.guest.domain).unwrap_err().to_string();
        assert!(error.starts_with(message), "{key}: {error}");
        assert!(rig.device.is_stopped());
        assert_all_given_back(&rig.guest);
    }
}

#[test]
fn a_connected_device_can_be_dropped() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 60);
    let Rig { guest, device, .. } = rig;
    drop(device);
    assert_all_given_back(&guest);
}

#[test]
fn an_impossible_ring_is_closed_and_everything_given_back() {
    for case in 0..4 {
        let mut rig = Rig::connected(1500, LINUX);
        rig.post(0, 40);
        rig.transmit(0, &ethernet(60), PAGE, 0, None);
        assert_eq!(rig.statuses(0, 1), [OKAY]);
        let pair = &mut rig.pairs[0];
        let mut request = TxRequest { gref: GrantRef(8), offset: 0, flags: 0, id: 1, size: 60 };
        match case {
            0 => pair.tx.req_prod = pair.tx.req_prod.wrapping_add(300),
            1 => {
                request.flags = TXF_MORE_DATA;
                pair.tx.put(&rig.guest, &request.emit());
            }
            2 => {
                request.flags = TXF_EXTRA_INFO;
                pair.tx.put(&rig.guest, &request.emit());
                pair.tx.put(&rig.guest, &[9; 12]);
            }
            // The receive ring; frames from the host make the backend look at it.
            _ => {
                pair.rx.req_prod = pair.rx.req_prod.wrapping_add(1000);
                pair.rx.publish(&rig.guest);
                (0..60).for_each(|_| drop(rig.host.send(PLAIN, &ethernet(60))));
            }
        }
        rig.push_tx(0);
        rig.wait_stopped();
        assert!(rig.guest.domain.kick.read().is_ok(), "the main thread is told");
        assert_all_given_back(&rig.guest);
        // The frontend may try again.
        rig.connect(1, false, LINUX);
        rig.transmit(0, &ethernet(61), PAGE, 0, None);
        assert_eq!(rig.statuses(0, 1), [OKAY]);
    }
}

#[test]
fn one_impossible_ring_ends_all_queues_and_unplugs_the_cable() {
    let mut rig = Rig::new(1500, 2);
    rig.connect(2, true, LINUX);
    rig.pairs[1].tx.req_prod = 300;
    rig.push_tx(1);
    // Only the threads' word: asking is_stopped() would clear up as after a disconnect.
    wait("both queues to end", || {
        rig.device.take_update();
        rig.guest.domain.events.status(rig.pairs[0].tx_port).unwrap().status == 1 && !rig.host.has_carrier()
    });
    rig.wait_stopped();
    assert_all_given_back(&rig.guest);
}

#[test]
fn absurd_keys_are_refused_or_harmless_and_the_next_frontend_is_served() {
    let mut rig = Rig::new(1500, 2);
    rig.guest = FakeGuest::new(8192);
    let long = "9".repeat(4096);
    // The first ring and the first port of a frontend, said again.
    let (ring, port) = ("RING", "PORT");
    let cases: &[&[(&str, &str)]] = &[
        &[("multi-queue-num-queues", &long)],
        &[("multi-queue-num-queues", "-1")],
        &[("multi-queue-num-queues", "1e0")],
        &[("tx-ring-ref", "99999999999999999999")],
        &[("tx-ring-ref", "0x8")],
        &[("tx-ring-ref", "8 9")],
        &[("tx-ring-ref", "0")],
        &[("rx-ring-ref", ring)],
        &[("event-channel-rx", port)],
        &[("event-channel-rx", "0")],
        &[("event-channel-tx", "4294967295"), ("event-channel", port)],
        &[("ctrl-ring-ref", ring)],
        &[("ctrl-ring-ref", ring), ("event-channel-ctrl", port)],
        &[("ctrl-ring-ref", "4294967295"), ("event-channel-ctrl", "4095")],
        &[("xdp-headroom", "4294967295"), ("request-multicast-control", "2")],
        &[("xdp-headroom", "-256"), ("request-multicast-control", &long)],
        &[("xdp-headroom", &long), ("feature-sg", "\u{fffd}"), ("feature-gso-tcpv4", "")],
    ];
    for keys in cases {
        rig.prepare(1, true, LINUX);
        for (key, value) in *keys {
            let value = match *value {
                "RING" => rig.pairs[0].tx.refs[0].0.to_string(),
                "PORT" => rig.pairs[0].tx_port.0.to_string(),
                other => other.to_owned(),
            };
            rig.guest.set_key(key, value);
        }
        let connected = rig.device.connect(&rig.guest, &rig.guest.domain).is_ok();
        assert_eq!(connected, rig.device.connection_runs(), "{keys:?}");
        rig.disconnect();
        assert_all_given_back(&rig.guest);
        rig.connect(1, true, LINUX);
        rig.transmit(0, &ethernet(60), PAGE, 0, None);
        assert_eq!(rig.statuses(0, 1), [OKAY], "after {keys:?}");
        rig.disconnect();
    }
}
