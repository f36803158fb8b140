//! Events, the log, settings, and how an interface ends.

use super::*;

#[test]
fn xsa_332_a_storm_of_events_costs_its_sender_and_stops_nobody() {
    let mut rig = Rig::new(1500, 2);
    rig.connect(2, true, LINUX);
    const STORM: u64 = 20_000;
    let ports = [rig.pairs[0].tx_port, rig.pairs[0].rx_port];
    for event in 0..STORM {
        rig.guest.send(ports[event as usize % 2]);
        if event % 2000 == 0 {
            rig.transmit(1, &ethernet(60), 4096, 0, None);
            assert_eq!(rig.statuses(1, 1), [OKAY]);
        }
    }
    assert!(rig.counter("wakeups") <= STORM + 100, "more wake-ups than events");
    assert_eq!(rig.counter("tx_packets"), 10);
    assert!(rig.counter("notifications") <= 10, "events for nothing");
    rig.disconnect();
    assert_all_given_back(&rig.guest);
}

#[test]
fn xsa_374_a_malformed_packet_in_queue_0_ends_the_interface_and_leaves_nothing_behind() {
    for ending in 0..4 {
        let mut rig = Rig::new(1500, 2);
        rig.connect(2, true, LINUX);
        rig.post(0, 60);
        rig.post(1, 60);
        let request = TxRequest { gref: GrantRef(8), offset: 0, flags: TXF_MORE_DATA, id: 1, size: 60 };
        rig.pairs[0].tx.put(&rig.guest, &request.emit());
        rig.push_tx(0);
        match ending {
            // The frontend closes when the threads have ended, or before.
            0 => {
                rig.wait_stopped();
                rig.device.disconnect();
            }
            1 => rig.disconnect(),
            // It changes a setting first.
            2 => {
                rig.guest.set_key("xdp-headroom", 256);
                let (guest, device) = (&rig.guest, &mut rig.device);
                wait("the threads to end", || {
                    device.reconfigure(guest);
                    device.is_reconfigured() && device.is_stopped()
                });
            }
            // The interface is taken away.
            _ => {
                let Rig { guest, device, .. } = rig;
                drop(device);
                assert_all_given_back(&guest);
                continue;
            }
        }
        assert_all_given_back(&rig.guest);
        rig.connect(2, true, LINUX);
        rig.transmit(0, &ethernet(61), 4096, 0, None);
        assert_eq!(rig.statuses(0, 1), [OKAY]);
    }
}

#[test]
fn refused_packets_pages_and_requests_do_not_fill_the_log() {
    let lines = log_lines(|| {
        let mut bench = ControlBench::new();
        for round in 0..2000 {
            bench.bench.put(GrantRef(499), 0, round % 100, 0);
            bench.bench.post(GrantRef(499));
            bench.bench.host_sends(&ethernet(60));
            assert!(bench.bench.run());
            bench.bench.statuses();
            bench.bench.responses();
            bench.ask(round as u16, [u32::MAX; 3]);
        }
    });
    assert!((1..=2).contains(&lines), "{lines} lines");
}

/// Does nothing unless the test below starts it, in a process of its own: nobody else writes to the log there.
#[test]
#[ignore = "a part of another test"]
fn breaks_its_rings_again_and_again() {
    let lines = log_lines_of_all_threads(|| {
        let mut rig = Rig::new(1500, 2);
        rig.guest = FakeGuest::new(8192);
        for _ in 0..40 {
            rig.connect(2, true, LINUX);
            rig.put_packet(0, 13, &[(0, &[1; 13])], 0, None);
            rig.push_tx(0);
            assert_eq!(rig.statuses(0, 1), [ERROR]);
            rig.pairs[1].tx.req_prod = 300;
            rig.push_tx(1);
            rig.wait_stopped();
        }
    });
    assert!((2..=MAX_COMPLAINTS).contains(&lines), "{lines} lines");
}

#[test]
fn rings_that_are_broken_again_and_again_do_not_fill_the_log() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "abuse::life::breaks_its_rings_again_and_again"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn a_list_of_groups_is_bounded_however_often_is_joined() {
    let mut bench = Bench::new();
    let mut statuses = Vec::new();
    for n in 0..1000u16 {
        let [a, b] = n.to_be_bytes();
        bench.put_pieces(0, &[&[]], 0, &[[2, 0, 1, 0, 0x5e, 0, a, b, 0, 0, 0, 0]]);
        assert!(bench.run());
        statuses.extend(bench.statuses());
    }
    assert_eq!(statuses.iter().filter(|status| **status == OKAY).count(), 64);
    assert_eq!(statuses.iter().filter(|status| **status == ERROR).count(), 936);
    assert!(bench.sent().is_empty());
}

#[test]
fn settings_that_change_all_the_time_are_bounded_work() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 250);
    for value in 0..5000u32 {
        rig.guest.set_key("xdp-headroom", value.wrapping_mul(0x9e37_79b9));
        rig.guest.set_key("request-multicast-control", value % 3);
        rig.device.reconfigure(&rig.guest);
        if value % 100 == 0 {
            rig.host.send(PLAIN, &ethernet(60)).unwrap();
        }
    }
    for _ in 0..50 {
        assert_eq!(rig.receive(0).frame, ethernet(60));
    }
    rig.disconnect();
    assert_all_given_back(&rig.guest);
}
