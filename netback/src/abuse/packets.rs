//! What is wrong with packets.

use super::*;

// Slots and chains.

#[test]
fn xsa_39_eighteen_slots_are_a_packet_up_to_twenty_are_refused_and_more_close_the_ring() {
    for slots in [17, 18, 19, 20, 21, 40, 256] {
        let mut bench = Bench::new();
        let frame = ethernet(slots * 15);
        let pieces: Vec<&[u8]> = frame.chunks(15).collect();
        bench.put_pieces(frame.len(), &pieces, 0, &[]);
        let served = bench.run();
        let expected = match slots {
            0..=18 => (true, vec![OKAY; slots], vec![frame]),
            19 | 20 => (true, vec![ERROR; slots], vec![]),
            _ => (false, vec![], vec![]),
        };
        assert_eq!((served, bench.statuses(), bench.sent_frames()), expected, "{slots} slots");
    }
}

#[test]
fn xsa_39_an_index_that_jumps_closes_the_ring_before_anything_is_sent() {
    for jump in [257, 512, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        for transmit in [true, false] {
            let mut bench = Bench::new();
            bench.post_pages(60);
            bench.put_frame(&ethernet(60));
            bench.host_sends(&ethernet(61));
            assert!(bench.run());
            assert_eq!((bench.sent_frames(), bench.responses().len()), (vec![ethernet(60)], 1));
            // Forwards, and with the last two backwards. The receive ring is looked at when there is a frame.
            let ring = if transmit { &mut bench.tx } else { &mut bench.rx };
            ring.req_prod = ring.req_prod.wrapping_add(jump);
            bench.host_sends(&ethernet(4000));
            let mut served = true;
            for _ in 0..40 {
                served &= bench.run();
                bench.host_sends(&ethernet(4000));
            }
            assert!(!served, "{jump:#x}");
            assert!(bench.sent().is_empty() && bench.statuses() == [OKAY]);
        }
    }
}

#[test]
fn the_backend_does_not_believe_its_own_indexes_in_the_page() {
    let mut bench = Bench::new();
    let (tx, rx) = (bench.tx.frames[0], bench.rx.frames[0]);
    for round in 0..40u32 {
        bench.put_frame(&ethernet(60));
        bench.post_pages(1);
        for ring in [tx, rx] {
            bench.guest.write(ring, 4, &(round * 77).to_le_bytes());
            bench.guest.write(ring, 8, &(round * 55).to_le_bytes());
        }
        assert!(bench.run());
        assert_eq!(bench.guest.read_u32(tx, 8), round + 1);
    }
    assert_eq!(bench.sent().len(), 40);
}

#[test]
fn a_packet_that_does_not_end_closes_the_ring() {
    for flags in [TXF_MORE_DATA, TXF_EXTRA_INFO, TXF_MORE_DATA | TXF_EXTRA_INFO] {
        let mut bench = Bench::new();
        let gref = bench.page(0, &ethernet(60));
        bench.put(gref, 0, 60, flags);
        if flags & TXF_EXTRA_INFO != 0 && flags & TXF_MORE_DATA != 0 {
            bench.tx.put(&bench.guest, &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        assert!(!bench.run());
        assert!(bench.sent().is_empty());
    }
}

#[test]
fn extra_infos_that_go_on_for_ever_or_do_not_exist_close_the_ring() {
    for kind in [0, 1, 2, 3, 4, 5, 6, 7, 255] {
        let mut bench = Bench::new();
        let frame = ethernet(60);
        bench.put_pieces(60, &[&frame], 0, &[[kind, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]; 200]);
        assert!(!bench.run(), "{kind}");
        assert!(bench.sent().is_empty());
    }
}

#[test]
fn extra_infos_that_mean_nothing_are_skipped() {
    let mut bench = Bench::new();
    let frame = ethernet(60);
    let extras = [
        [4, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9],
        [5, 1, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0],
        [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    bench.put_pieces(60, &[&frame], 0, &extras);
    assert!(bench.run());
    assert_eq!((bench.statuses(), bench.sent_frames()), (vec![OKAY, NULL, NULL, NULL], vec![frame]));
}

// Lengths and offsets that lie.

#[test]
fn pieces_outside_their_pages_are_refused() {
    for (offset, size) in
        [(0, 4097), (1, 4096), (4095, 60), (4096, 60), (65_535, 60), (0, 65_535), (65_535, 65_535)]
    {
        let mut bench = Bench::new();
        let gref = bench.page(0, &ethernet(60));
        bench.put(gref, offset, size, 0);
        bench.assert_refused(&[ERROR], &format!("{size} bytes at {offset}"));
        // In the second slot as well.
        bench.put(gref, 0, 60 + size.min(60_000), TXF_MORE_DATA);
        bench.put(gref, offset, size.min(60_000), 0);
        bench.assert_refused(&[ERROR; 2], &format!("then {size} bytes at {offset}"));
    }
}

#[test]
fn sizes_that_do_not_add_up_are_refused() {
    for (total, second) in [(100, 101), (14, 15), (0, 1), (100, 65_535)] {
        let mut bench = Bench::new();
        let gref = bench.page(0, &ethernet(60));
        bench.put(gref, 0, total, TXF_MORE_DATA);
        bench.put(gref, 0, second, 0);
        bench.assert_refused(&[ERROR; 2], &format!("{second} of {total}"));
    }
}

#[test]
fn a_header_shorter_than_ethernets_is_refused() {
    for len in 0..14 {
        let mut bench = Bench::new();
        let frame = ethernet(14);
        bench.put_pieces(len, &[&frame[..len]], 0, &[]);
        bench.assert_refused(&[ERROR], &format!("{len} bytes"));
    }
    let mut bench = Bench::new();
    bench.put_frame(&ethernet(14));
    assert!(bench.run());
    assert_eq!(bench.sent_frames(), [ethernet(14)]);
}

#[test]
fn grants_that_do_not_permit_it_are_refused_in_every_slot() {
    let mut bench = Bench::new();
    let foreign = bench.guest.alloc_page();
    bench.guest.set_grant(GrantRef(400), 1, 5, foreign);
    bench.guest.set_grant(GrantRef(401), 1, 0, 1 << 30);
    bench.guest.set_grant(GrantRef(402), 0, 0, foreign);
    for bad in [0, 400, 401, 402, 403, 16_384, u32::MAX].map(GrantRef) {
        for place in 0..3 {
            let good = bench.page(0, &ethernet(20));
            for slot in 0..3 {
                let gref = if slot == place { bad } else { good };
                bench.put(gref, 0, if slot == 0 { 60 } else { 20 }, if slot < 2 { TXF_MORE_DATA } else { 0 });
            }
            bench.assert_refused(&[ERROR; 3], &format!("{bad:?} in slot {place}"));
            assert_eq!(bench.guest.grant_flags(good) & (8 | 16), 0, "a page is still in use");
        }
    }
}

// Offloads.

#[test]
fn segments_of_an_absurd_size_are_refused_or_sent_whole() {
    for (size, kind) in [(0, 1), (1, 1), (7, 2), (1448, 0), (1448, 3), (1448, 255)] {
        let mut bench = Bench::new();
        let frame = tcp_frame(kind == 2, 3000);
        bench.put_pieces(frame.len(), &[&frame], TXF_CSUM_BLANK, &[gso_slot(size, kind, 0)]);
        bench.assert_refused(&[ERROR, NULL], &format!("segments of {size} bytes of kind {kind}"));
    }
    // Larger than the packet: it is none to be cut up.
    for size in [3000, 4000, 65_535] {
        let mut bench = Bench::new();
        let frame = tcp_frame(false, 3000);
        bench.put_pieces(frame.len(), &[&frame], TXF_CSUM_BLANK, &[gso_slot(size, 1, 0)]);
        assert!(bench.run());
        let [(header, got)] = &bench.sent()[..] else { panic!("not one frame") };
        assert!(header.gso.is_none() && *got == frame, "{size}");
    }
    // The smallest one: the kernel makes no more than 8192 of it.
    let mut bench = Bench::new();
    let frame = tcp_frame(false, 3000);
    bench.put_pieces(frame.len(), &[&frame], TXF_CSUM_BLANK, &[gso_slot(8, 1, 0)]);
    assert!(bench.run());
    assert_eq!(bench.sent()[0].0.gso, Some(Gso { size: 8, kind: GsoKind::TcpV4 }));
}

#[test]
fn offloads_of_what_is_no_such_packet_are_refused() {
    let mut udp = tcp_frame(false, 3000);
    udp[23] = 17;
    let mut fragment = tcp_frame(false, 3000);
    fragment[20] = 0x20;
    let mut long = tcp_frame(false, 3000);
    long[16] = 0xff;
    let mut options = tcp_frame(false, 3000);
    options[14] = 0x41;
    let mut offset = tcp_frame(true, 3000);
    offset[54 + 12] = 0x40;
    let mut chain = tcp_frame(true, 3000);
    // Extension headers up to the end.
    chain[20] = 0;
    chain[54..].fill(0);
    for (what, frame, kind) in [
        ("UDP", udp, 1),
        ("TCP of the other version", tcp_frame(false, 3000), 2),
        ("a fragment", fragment, 1),
        ("an IP packet longer than the frame", long, 1),
        ("an IP header of four bytes", options, 1),
        ("a TCP header of 16 bytes", offset, 2),
        ("no IP", ethernet(3000), 1),
        ("a chain of extension headers", chain, 2),
    ] {
        let mut bench = Bench::new();
        bench.put_pieces(frame.len(), &[&frame], TXF_CSUM_BLANK, &[gso_slot(1000, kind, 0)]);
        bench.assert_refused(&[ERROR, NULL], what);
    }
}

#[test]
fn xsa_423_headers_in_the_smallest_pieces_are_put_together() {
    for v6 in [false, true] {
        let frame = tcp_frame(v6, 2000);
        let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
        // 17 slots of a byte each, and the rest; then the other way round.
        let mut small: Vec<&[u8]> = frame[..17].chunks(1).collect();
        small.push(&frame[17..]);
        let (head, tail) = frame.split_at(frame.len() - 17);
        let mut large = vec![head];
        large.extend(tail.chunks(1));
        for pieces in [small, large] {
            let mut bench = Bench::new();
            bench.put_pieces(frame.len(), &pieces, TXF_CSUM_BLANK, &[gso_slot(1000, kind as u8 + 1, 0)]);
            bench.put_pieces(frame.len(), &pieces, 0, &[]);
            assert!(bench.run());
            let [(offloaded, first), (plain, second)] = &bench.sent()[..] else { panic!("not two frames") };
            assert_eq!(
                (offloaded.gso, offloaded.hdr_len),
                (Some(Gso { size: 1000, kind }), if v6 { 74 } else { 54 })
            );
            assert_eq!(*plain, VnetHeader::default());
            assert!(*first == frame && *second == frame);
        }
    }
}

#[test]
fn xsa_423_the_kernel_takes_headers_in_the_smallest_pieces() {
    let mut rig = Rig::connected(1500, LINUX);
    for v6 in [false, true] {
        let frame = tcp_frame(v6, 1400);
        let mut pieces: Vec<(usize, &[u8])> = frame[..17].chunks(1).map(|piece| (3, piece)).collect();
        pieces.push((0, &frame[17..]));
        for flags in [0, TXF_CSUM_BLANK] {
            rig.put_packet(0, frame.len(), &pieces, flags, None);
            rig.push_tx(0);
            assert_eq!(rig.host.receive().1, frame);
            assert_eq!(rig.statuses(0, 18), [OKAY; 18]);
        }
    }
}

#[test]
fn xsa_432_as_many_pieces_as_may_be_of_less_than_the_headers_that_are_copied() {
    for len in [18, 60, HEADER_MAX - 1] {
        // Without offloads it is sent as it is.
        let frame = ethernet(len);
        let mut pieces: Vec<&[u8]> = frame[..17].chunks(1).collect();
        pieces.push(&frame[17..]);
        let mut bench = Bench::new();
        bench.put_pieces(len, &pieces, 0, &[]);
        assert!(bench.run());
        assert_eq!((bench.statuses(), bench.sent_frames()), (vec![OKAY; 18], vec![frame.clone()]));
        // With them there are no headers in it.
        bench.put_pieces(len, &pieces, TXF_CSUM_BLANK, &[]);
        bench.assert_refused(&[ERROR; 18], "no headers");
    }
    // Headers that end with the packet.
    let frame = tcp_frame(true, 0);
    let mut pieces: Vec<&[u8]> = frame[..17].chunks(1).collect();
    pieces.push(&frame[17..]);
    let mut bench = Bench::new();
    bench.put_pieces(frame.len(), &pieces, TXF_CSUM_BLANK, &[]);
    assert!(bench.run());
    assert_eq!(bench.sent_frames(), [frame]);
}

#[test]
fn xsa_448_pieces_of_no_bytes_become_nothing_wherever_they_are() {
    let frame = tcp_frame(false, 1400);
    let (a, b) = frame.split_at(700);
    let empty: &[u8] = &[];
    let shapes: [Vec<&[u8]>; 5] = [
        vec![empty, &frame],
        vec![&frame, empty],
        vec![a, empty, b],
        [vec![empty; 17], vec![&frame]].concat(),
        [vec![&frame[..]], vec![empty; 17]].concat(),
    ];
    let mut rig = Rig::connected(1500, LINUX);
    for pieces in &shapes {
        for flags in [0, TXF_CSUM_BLANK] {
            let mut bench = Bench::new();
            bench.put_pieces(frame.len(), pieces, flags, &[]);
            assert!(bench.run());
            assert_eq!(
                (bench.statuses(), bench.sent_frames()),
                (vec![OKAY; pieces.len()], vec![frame.clone()])
            );
            let placed: Vec<(usize, &[u8])> = pieces.iter().map(|piece| (9, *piece)).collect();
            rig.put_packet(0, frame.len(), &placed, flags, None);
            rig.push_tx(0);
            assert_eq!(rig.host.receive().1, frame);
            assert_eq!(rig.statuses(0, pieces.len()), vec![OKAY; pieces.len()]);
        }
    }
    let mut bench = Bench::new();
    bench.put_pieces(0, &[empty; 18], TXF_CSUM_BLANK, &[gso_slot(1000, 1, 0)]);
    let mut statuses = vec![ERROR; 19];
    statuses[1] = NULL;
    bench.assert_refused(&statuses, "nothing but empty pieces");
}
