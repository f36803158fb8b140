//! What is wrong with what both sides share: pages that change, the control ring, the receive ring.

use super::*;

// Things that change while they are looked at.

#[test]
fn xsa_155_slots_that_change_all_the_time_never_leave_the_granted_page() {
    let mut bench = Bench::new();
    let before = bench.guest.alloc_page();
    let frame = bench.guest.alloc_page();
    let after = bench.guest.alloc_page();
    for canary in [before, after] {
        bench.guest.write(canary, 0, &[CANARY; 4096]);
    }
    bench.guest.write(frame, 0, &[2; 4096]);
    let gref = bench.guest.grant(frame, true);
    let slots = bench.tx.frames[0] * 4096 + 64;
    let good = TxRequest { gref, offset: 0, flags: 0, id: 7, size: 60 }.emit();
    let bad = TxRequest { gref, offset: 4090, flags: 0, id: 7, size: 4000 }.emit();
    let all = |slot: [u8; TX_ENTRY]| (slots, slot.repeat(256));
    let ram = Arc::clone(&bench.guest.ram);
    let mut sent = 0;
    while_changing(&ram, &[all(good), all(bad)], || {
        for _ in 0..3000 {
            bench.tx.put(&bench.guest, &good);
            assert!(bench.run());
            for frame in bench.sent_frames() {
                // A slot may be copied while it changes: a length of one and an offset of the other.
                assert!([60, 4000].contains(&frame.len()) && frame.iter().all(|byte| *byte == 2));
                sent += 1;
            }
        }
    });
    assert!(sent > 0, "not one slot was good");
}

#[test]
fn xsa_155_headers_that_change_all_the_time_are_sent_as_they_were_checked() {
    let mut bench = Bench::new();
    let good = tcp_frame(false, 1400);
    let mut other = tcp_frame(false, 1400);
    // Options, so that TCP is elsewhere; and neither IP nor TCP.
    (other[14], other[46 + 12]) = (0x48, 0x50);
    let page = bench.guest.alloc_page();
    let gref = bench.guest.grant(page, true);
    let at = |bytes: &[u8]| (page * 4096, bytes[..80].to_vec());
    let ram = Arc::clone(&bench.guest.ram);
    bench.guest.write(page, 0, &good);
    let (mut sent, mut refused) = (0, 0);
    while_changing(&ram, &[at(&good), at(&other), at(&[0xff; 80])], || {
        for _ in 0..3000 {
            bench.put(gref, 0, good.len(), TXF_CSUM_BLANK);
            assert!(bench.run());
            for (header, frame) in bench.sent() {
                let headers = Headers::parse(&frame[..HEADER_MAX], frame.len()).unwrap();
                assert_eq!(header.csum.unwrap().start, headers.l4, "the tap was told something else");
                sent += 1;
            }
            refused += bench.statuses().iter().filter(|status| **status == ERROR).count();
        }
    });
    assert!(sent > 0 && sent + refused == 3000, "{sent} sent, {refused} refused");
}

#[test]
fn xsa_155_a_page_that_is_taken_back_while_it_is_used_stays_the_page_it_was() {
    let mut bench = Bench::new();
    bench.post_pages(30);
    assert!(bench.run());
    // The guest ends all grants that it gave, but the rings'.
    for gref in 10..40 {
        bench.guest.set_grant(GrantRef(gref), 0, 0, 0);
    }
    bench.host_sends(&ethernet(100));
    assert!(bench.run());
    assert!(bench.responses().len() <= 30);
}

// The control ring.

#[test]
fn xsa_270_a_table_is_not_written_outside_its_bounds_however_the_sum_overflows() {
    let mut bench = ControlBench::new();
    bench.hash();
    assert_eq!(bench.ask(5, [64, 0, 0]), 0);
    let gref = bench.bench.page(0, &[0; 4096]).0;
    for (len, offset) in [
        (1, 64),
        (65, 0),
        (64, 1),
        (1, u32::MAX),
        (2, u32::MAX),
        (u32::MAX, 1),
        (u32::MAX, u32::MAX),
        (0x4000_0001, 0),
        (0x8000_0000, 0x8000_0000),
        (0, 65),
        (0, u32::MAX),
        (1025, 0),
    ] {
        assert_eq!(bench.ask(6, [gref, len, offset]), 2, "{len} entries from {offset}");
    }
    assert_eq!(bench.ask(6, [gref, 64, 0]), 0);
}

#[test]
fn xsa_270_a_table_that_changes_all_the_time_names_only_queues_that_exist() {
    let mut bench = ControlBench::new();
    bench.hash();
    let page = bench.bench.guest.alloc_page();
    let gref = bench.bench.guest.grant(page, true).0;
    let ram = Arc::clone(&bench.bench.guest.ram);
    let frame = tcp_frame(false, 100);
    bench.bench.post_pages(250);
    let mut received = 0;
    while_changing(&ram, &[(page * 4096, vec![0; 4]), (page * 4096, vec![0xff; 4])], || {
        for _ in 0..200 {
            let status = bench.ask(6, [gref, 1, 0]);
            assert!(status == 0 || status == 2);
            bench.bench.host_sends(&frame);
            assert!(bench.bench.run());
            received += bench.bench.responses().iter().filter(|r| r.flags & RXF_EXTRA_INFO != 0).count();
        }
    });
    // One queue: each frame came in it, until the pages were used up.
    assert!(received > 50, "{received} frames");
}

#[test]
fn a_control_ring_that_jumps_is_closed() {
    for jump in [129, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let mut bench = ControlBench::new();
        bench.hash();
        bench.ring.req_prod = bench.ring.req_prod.wrapping_add(jump);
        bench.ring.publish(&bench.bench.guest);
        assert!(!bench.control.pass(), "{jump:#x}");
        assert!(bench.ring.take(&bench.bench.guest, CTRL_RESPONSE).is_none());
    }
}

#[test]
fn a_key_in_the_control_rings_own_page_is_copied_once() {
    let mut bench = ControlBench::new();
    bench.hash();
    let own = bench.ring.refs[0].0;
    for _ in 0..200 {
        assert_eq!(bench.ask(3, [own, 40, 0]), 0);
    }
    assert_eq!(bench.ask(4, [0; 3]), 0);
}

// The receive ring.

#[test]
fn xsa_392_frames_for_a_guest_without_pages_are_stored_nowhere() {
    let mut bench = Bench::new();
    // Fewer than the largest frame needs.
    bench.post_pages(5);
    let mut taken = 0;
    for n in 0..2000 {
        // What is read from the wire makes room for more.
        taken += usize::from(bench.host_sends(&ethernet(60 + n % 1000)));
        assert!(bench.rings.pass());
    }
    assert!(taken < 2000, "frames that nobody can take were taken");
    bench.post_pages(240);
    assert!(bench.run());
    assert!(bench.responses().len() <= taken);
}

#[test]
fn xsa_392_frames_of_a_real_tap_wait_in_it_and_what_is_too_much_is_dropped_there() {
    let mut rig = Rig::connected(1500, LINUX);
    for n in 0..5000 {
        rig.host.send(PLAIN, &ethernet(60 + n % 500)).unwrap();
    }
    assert_eq!((rig.counter("rx_packets"), rig.counter("rx_drops")), (0, 0));
    assert!(rig.counter("wakeups") < 50, "woken for frames that nobody can take");
    // tx_queue_len of a tap: 1000.
    let mut got = 0;
    while got < 900 {
        rig.pairs[0].posted.clear();
        rig.pairs[0].rx.rsp_cons = rig.pairs[0].rx.rsp_prod(&rig.guest);
        let before = rig.counter("rx_packets");
        let gref = rig.guest.granted_page().1;
        for id in 0..100 {
            rig.pairs[0].rx.put(&rig.guest, &RxRequest { id, gref }.emit());
        }
        if rig.pairs[0].rx.publish(&rig.guest) {
            rig.guest.send(rig.pairs[0].rx_port);
        }
        wait("frames", || rig.counter("rx_packets") > before);
        got = rig.counter("rx_packets");
    }
    assert!(rig.counter("rx_packets") <= 1100, "more than a tap's queue");
}

#[test]
fn pages_that_cannot_be_used_are_answered_and_cost_no_frame() {
    for bad in [0, 10, 400, 401, 16_384, u32::MAX] {
        let mut bench = Bench::new();
        // 10 is for reading only.
        assert_eq!(bench.page(0, &[CANARY; 4096]), GrantRef(10));
        let foreign = bench.guest.alloc_page();
        bench.guest.set_grant(GrantRef(400), 1, 5, foreign);
        bench.guest.write(foreign, 0, &[CANARY; 4096]);
        bench.post_pages(10);
        bench.post(GrantRef(bad));
        bench.post_pages(40);
        assert!(bench.host_sends(&ethernet(99)) && bench.run());
        let statuses: Vec<_> = bench.responses().iter().map(|response| response.status).collect();
        // The pages before it are too few for the largest frame.
        assert_eq!(statuses, [vec![ERROR; 11], vec![99]].concat(), "{bad}");
        for page in [foreign, foreign - 1] {
            assert!(bench.guest.read(page, 0, 4096) == [CANARY; 4096]);
        }
    }
}

#[test]
fn rings_of_nothing_but_bad_pages_are_answered_and_the_frame_waits() {
    let mut bench = Bench::new();
    assert!(bench.host_sends(&ethernet(60)));
    for _ in 0..50 {
        (0..200).for_each(|_| bench.post(GrantRef(499)));
        assert!(bench.run());
        let responses = bench.responses();
        assert!(responses.len() == 200 && responses.iter().all(|response| response.status == ERROR));
    }
    bench.post_pages(40);
    assert!(bench.run());
    assert_eq!(bench.responses()[0].status, 60);
}

#[test]
fn the_rings_own_pages_as_buffers_harm_only_that_ring() {
    for own in 0..2 {
        let mut bench = Bench::new();
        let gref = [bench.tx.refs[0], bench.rx.refs[0]][own];
        let (canary, _) = bench.guest.granted_page();
        bench.guest.write(canary, 0, &[CANARY; 4096]);
        for _ in 0..60 {
            bench.post(gref);
        }
        for _ in 0..30 {
            bench.host_sends(&[0xff; 1514]);
            bench.run();
        }
        assert!(bench.guest.read(canary, 0, 4096) == [CANARY; 4096]);
    }
}

#[test]
fn one_page_posted_many_times_is_filled_many_times() {
    let mut bench = Bench::new();
    let (page, gref) = bench.guest.granted_page();
    for _ in 0..200 {
        bench.post(gref);
    }
    for len in 60..70 {
        bench.host_sends(&ethernet(len));
    }
    assert!(bench.run());
    let lens: Vec<_> = bench.responses().iter().map(|response| response.status).collect();
    assert_eq!(lens, (60..70).collect::<Vec<i16>>());
    assert_eq!(bench.guest.read(page, 0, 14), ethernet(69)[..14]);
    drop(bench.rings);
    assert_eq!(bench.guest.grant_flags(gref), 1);
}
