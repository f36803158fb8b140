//! Frames both ways, with and without offloads.

use super::*;

// Guest to host.

#[test]
fn a_frame_of_the_guest_arrives_unchanged() {
    let mut rig = Rig::connected(1500, LINUX);
    for len in [14, 60, 61, 1514] {
        rig.transmit(0, &ethernet(len), PAGE, 0, None);
        assert_eq!(rig.host.receive(), (PLAIN, ethernet(len)));
        assert_eq!(rig.statuses(0, 1), [OKAY]);
    }
    assert_eq!((rig.counter("tx_packets"), rig.counter("tx_bytes")), (4, 14 + 60 + 61 + 1514));
}

#[test]
fn a_frame_of_eighteen_slots_arrives_unchanged() {
    let mut rig = Rig::connected(1500, LINUX);
    let frame = ethernet(65535);
    rig.transmit(0, &frame, 100, 0, None);
    assert_eq!(rig.host.receive(), (PLAIN, frame.clone()));
    assert_eq!(rig.statuses(0, 17), [OKAY; 17]);
    let pieces: Vec<_> = frame[..1800].chunks(100).map(|piece| (7, piece)).collect();
    rig.put_packet(0, 1800, &pieces, 0, None);
    rig.push_tx(0);
    assert_eq!(rig.host.receive(), (PLAIN, frame[..1800].to_vec()));
    assert_eq!(rig.statuses(0, 18), [OKAY; 18]);
}

#[test]
fn a_blank_checksum_is_located_for_the_host() {
    let mut rig = Rig::connected(1500, LINUX);
    for v6 in [false, true] {
        let frame = tcp_frame(v6, 777);
        // Split inside the headers; and a frontend that leaves the field empty is helped.
        let mut sent = frame.clone();
        let field = if v6 { 70 } else { 50 };
        sent[field..field + 2].fill(0);
        rig.transmit(0, &sent, 40, TXF_CSUM_BLANK | TXF_DATA_VALIDATED, None);
        let (header, got) = rig.host.receive();
        assert_eq!(VnetHeader::parse(&header), Some(blank(v6, None)));
        assert_eq!(got, frame);
    }
}

#[test]
fn a_large_segment_reaches_the_host_whole() {
    let mut rig = Rig::connected(1500, LINUX);
    for (v6, kind) in [(false, GsoKind::TcpV4), (true, GsoKind::TcpV6)] {
        let frame = tcp_frame(v6, 60_000);
        let gso = Some(Gso { size: 1448, kind });
        rig.transmit(0, &frame, 100, TXF_CSUM_BLANK | TXF_DATA_VALIDATED, gso);
        let (header, got) = rig.host.receive();
        let header = VnetHeader::parse(&header).unwrap();
        assert_eq!((header.csum, header.gso), (blank(v6, None).csum, gso));
        assert_eq!(got, frame);
        let mut statuses = vec![OKAY; 17];
        statuses[1] = NULL;
        assert_eq!(rig.statuses(0, 17), statuses);
    }
}

#[test]
fn offload_that_the_frame_does_not_allow_is_refused() {
    let mut rig = Rig::connected(1500, LINUX);
    let gso = |kind| Some(Gso { size: 1000, kind });
    rig.transmit(0, &ethernet(1000), PAGE, TXF_CSUM_BLANK, None);
    rig.transmit(0, &tcp_frame(false, 3000), PAGE, TXF_CSUM_BLANK, gso(GsoKind::TcpV6));
    assert_eq!(rig.statuses(0, 3), [ERROR, ERROR, NULL]);
    rig.transmit(0, &ethernet(100), PAGE, 0, None);
    assert_eq!(rig.host.receive().1, ethernet(100));
    assert_eq!(rig.counter("tx_errors"), 2);
}

#[test]
fn wrong_requests_are_answered_and_the_next_frame_is_sent() {
    let mut rig = Rig::connected(1500, LINUX);
    let foreign = rig.guest.alloc_page();
    rig.guest.set_grant(GrantRef(400), 1, 5, foreign);
    rig.guest.set_grant(GrantRef(401), 1, 0, 1 << 30);
    let bad = [
        (GrantRef(400), 0, 100, 0),
        (GrantRef(401), 0, 100, 0),
        (GrantRef(500), 0, 100, 0),
        (GrantRef(u32::MAX), 0, 100, 0),
        (GrantRef(8), 4000, 100, 0),
        (GrantRef(8), 65535, 65535, 0),
        (GrantRef(8), 0, 13, 0),
    ];
    for (gref, offset, size, flags) in bad {
        let request = TxRequest { gref, offset, flags, id: 1, size };
        rig.pairs[0].tx.put(&rig.guest, &request.emit());
    }
    rig.transmit(0, &ethernet(60), PAGE, 0, None);
    assert_eq!(rig.host.receive().1, ethernet(60));
    let mut statuses = vec![ERROR; bad.len()];
    statuses.push(OKAY);
    assert_eq!(rig.statuses(0, bad.len() + 1), statuses);
    assert_eq!(rig.counter("tx_errors"), bad.len() as u64);
    rig.disconnect();
    assert_all_given_back(&rig.guest);
}

#[test]
fn a_packet_with_a_bad_page_in_its_middle_gives_the_others_back() {
    let mut rig = Rig::connected(1500, LINUX);
    let frame = ethernet(9000);
    rig.put_packet(0, 9000, &[(0, &frame[..808]), (0, &frame[808..4904]), (0, &frame[4904..])], 0, None);
    // The second piece's grant is taken back before the backend sees the ring.
    let gref = GrantRef(8 + 2 + 1);
    rig.guest.set_grant(gref, 0, 0, 0);
    rig.push_tx(0);
    assert_eq!(rig.statuses(0, 3), [ERROR; 3]);
    rig.disconnect();
    assert_all_given_back(&rig.guest);
}

// Host to guest.

#[test]
fn frames_from_the_host_fill_the_slots_in_order() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 60);
    for len in [60, 1514, 61] {
        rig.host.send(PLAIN, &ethernet(len)).unwrap();
        let received = rig.receive(0);
        assert_eq!(received, Received { frame: ethernet(len), slots: vec![len], ..Received::default() });
    }
    assert_eq!((rig.counter("rx_packets"), rig.counter("rx_bytes")), (3, 60 + 1514 + 61));
}

#[test]
fn a_large_frame_is_spread_over_slots() {
    // Where an extra info might have come, the second slot has the end of the first page: no page is copied.
    let straight = [(9014, vec![4096, 4096, 822]), (4096, vec![4096]), (4097, vec![4096, 1])];
    let with_gap = [(9014, vec![4032, 64, 4096, 822]), (4096, vec![4096]), (4097, vec![4032, 64, 1])];
    for (features, cases) in [(&["feature-sg"][..], straight), (LINUX, with_gap)] {
        let mut rig = Rig::connected(9000, features);
        rig.post(0, 60);
        for (len, slots) in cases {
            rig.host.send(PLAIN, &ethernet(len)).unwrap();
            assert_eq!(rig.receive(0), Received { frame: ethernet(len), slots, ..Received::default() });
        }
        assert_eq!(rig.counter("rx_straight"), 3);
        assert_eq!(rig.counter("rx_copied_bytes"), if features == LINUX { 2 * 64 } else { 0 });
    }
}

#[test]
fn a_frame_too_large_for_a_frontend_without_sg_is_dropped() {
    let mut rig = Rig::connected(9000, &[]);
    rig.post(0, 8);
    rig.host.send(PLAIN, &ethernet(4097)).unwrap();
    rig.host.send(PLAIN, &ethernet(4096)).unwrap();
    assert_eq!(rig.receive(0).frame, ethernet(4096));
    assert_eq!((rig.counter("rx_drops"), rig.counter("rx_packets")), (1, 1));
}

#[test]
fn a_blank_checksum_is_passed_on_to_a_frontend_that_takes_it() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 60);
    for v6 in [false, true] {
        let frame = tcp_frame(v6, 777);
        rig.host.send(blank(v6, None).emit(), &frame).unwrap();
        let received = rig.receive(0);
        assert_eq!(received.flags, RXF_CSUM_BLANK | RXF_DATA_VALIDATED);
        assert_eq!(received.frame, frame);
    }
}

#[test]
fn a_checksum_is_filled_in_for_a_frontend_that_cannot() {
    for features in [&["feature-no-csum-offload"][..], &["feature-sg"]] {
        let mut rig = Rig::connected(9000, features);
        rig.post(0, 60);
        // IPv4 as well where it is not allowed, and over an odd number of bytes.
        for payload in [777, 4000, 8000] {
            if payload < 4000 || features == ["feature-sg"] {
                let frame = tcp_frame(true, payload);
                rig.host.send(blank(true, None).emit(), &frame).unwrap();
                let received = rig.receive(0);
                assert_eq!(received.flags & RXF_CSUM_BLANK, 0);
                assert_checksum(&received.frame);
            }
        }
        rig.host.send(blank(false, None).emit(), &tcp_frame(false, 777)).unwrap();
        let received = rig.receive(0);
        let passed_on = features == ["feature-sg"];
        assert_eq!(received.flags & RXF_CSUM_BLANK != 0, passed_on);
        if !passed_on {
            assert_checksum(&received.frame);
        }
    }
}

#[test]
fn a_frame_behind_a_vlan_tag_gets_its_checksum_filled_in() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 60);
    let frame = tcp_frame(false, 777);
    let tagged = [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat();
    let csum = Some(PartialCsum { start: 38, offset: 16 });
    rig.host.send(VnetHeader { csum, ..VnetHeader::default() }.emit(), &tagged).unwrap();
    let received = rig.receive(0);
    assert_eq!(received.flags, RXF_DATA_VALIDATED);
    let untagged = [&received.frame[..12], &received.frame[16..]].concat();
    assert_checksum(&untagged);
}

#[test]
fn a_large_segment_reaches_the_guest_whole() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 100);
    for (v6, kind) in [(false, GsoKind::TcpV4), (true, GsoKind::TcpV6)] {
        for payload in [2000, 4096, 65_000] {
            let frame = tcp_frame(v6, payload);
            let gso = Some(Gso { size: 1448, kind });
            rig.host.send(blank(v6, gso).emit(), &frame).unwrap();
            let received = rig.receive(0);
            assert_eq!(received.flags, RXF_CSUM_BLANK | RXF_DATA_VALIDATED | RXF_EXTRA_INFO);
            assert_eq!(received.gso, gso);
            assert_eq!(received.frame, frame);
        }
    }
}

#[test]
fn a_large_segment_is_cut_up_for_a_frontend_without_gso() {
    let mut rig = Rig::connected(1500, &["feature-sg", "feature-ipv6-csum-offload"]);
    rig.post(0, 60);
    let gso = Some(Gso { size: 1000, kind: GsoKind::TcpV4 });
    rig.host.send(blank(false, gso).emit(), &tcp_frame(false, 4500)).unwrap();
    let lens: Vec<_> = (0..5).map(|_| rig.receive(0).frame.len()).collect();
    assert_eq!(lens, [1054, 1054, 1054, 1054, 554]);
}

#[test]
fn large_segments_behind_a_vlan_tag_come_cut_up_once_the_first_was_seen() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 60);
    let frame = tcp_frame(false, 3000);
    let tagged = [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat();
    let gso = Some(Gso { size: 1000, kind: GsoKind::TcpV4 });
    let csum = Some(PartialCsum { start: 38, offset: 16 });
    let header = VnetHeader { csum, data_valid: false, gso, hdr_len: 58 }.emit();
    rig.host.send(header, &tagged).unwrap();
    wait("the main thread to be told", || rig.guest.domain.kick.read().is_ok());
    assert_eq!(rig.device.take_update(), None);
    rig.host.send(header, &tagged).unwrap();
    let frames: Vec<_> = (0..3).map(|_| rig.receive(0)).collect();
    assert!(frames.iter().all(|frame| frame.frame.len() == 58 + 1000 && frame.flags & RXF_CSUM_BLANK == 0));
    assert_eq!(rig.counter("rx_drops"), 1);
}

#[test]
fn frames_wait_in_the_tap_until_the_guest_posts_pages_and_wake_nobody() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 17);
    for i in 0..200 {
        rig.host.send(PLAIN, &ethernet(60 + i)).unwrap();
    }
    let wakeups = rig.counter("wakeups");
    assert!(wakeups < 20, "{wakeups} wake-ups for frames that nobody can take");
    assert_eq!(rig.counter("rx_packets"), 0);
    // Now there are 18 for the largest frame, and the backend asked to hear of the last one.
    wait("an event to be asked for", || rig.guest.read_u32(rig.pairs[0].rx.frames[0], 4) == 18);
    assert!(rig.post(0, 230));
    for i in 0..200 {
        assert_eq!(rig.receive(0).frame, ethernet(60 + i));
    }
}

#[test]
fn pages_posted_in_time_cause_no_event() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 60);
    rig.host.send(PLAIN, &ethernet(60)).unwrap();
    rig.receive(0);
    for _ in 0..10 {
        assert!(!rig.post(0, 10), "an event that tells nothing");
    }
}

#[test]
fn an_idle_interface_wakes_nobody() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 60);
    rig.transmit(0, &ethernet(60), PAGE, 0, None);
    rig.statuses(0, 1);
    // A packet that is answered in the pass after the last wake-up: count those that came for it.
    let before = rig.counter("wakeups");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(rig.counter("wakeups") <= before + 1, "woken without a reason");
}

#[test]
fn a_page_that_cannot_be_used_is_answered_in_its_slot() {
    let mut rig = Rig::connected(1500, &[]);
    rig.post(0, 1);
    let read_only = rig.guest.alloc_page();
    let read_only = rig.guest.grant(read_only, true);
    for gref in [GrantRef(499), read_only] {
        let pair = &mut rig.pairs[0];
        let id = pair.posted.len() as u16;
        pair.rx.put(&rig.guest, &RxRequest { id, gref }.emit());
        pair.posted.push((0, gref));
    }
    rig.post(0, 1);
    rig.host.send(PLAIN, &ethernet(60)).unwrap();
    assert_eq!(rig.receive(0).frame, ethernet(60));
    rig.host.send(PLAIN, &ethernet(61)).unwrap();
    for id in [1, 2] {
        let response = rig.response(0);
        assert_eq!((response.id, response.status), (id, ERROR));
    }
    assert_eq!(rig.receive(0).frame, ethernet(61));
    assert_eq!(rig.counter("rx_errors"), 2);
}
