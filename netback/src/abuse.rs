//! What a hostile frontend may try, each thing by name. Mostly against the rings of a queue with a socket in place of the
//! tap, step by step; where a thread or the kernel matters, against a whole interface.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use devices::memory::GuestRam;
use devices::testing::{FakeGuest, FrontRing, log_lines};
use devices::xen::types::GrantRef;
use devices::xen::xenbus::BackendDevice;
use vm_memory::{Bytes, GuestAddress};

use crate::control::{CTRL_ENTRY, CTRL_RESPONSE, CtrlRequest};
use crate::headers::{HEADER_MAX, Headers};
use crate::protocol::{
    Gso, GsoKind, RX_ENTRY, RXF_EXTRA_INFO, RxRequest, RxResponse, TX_ENTRY, TXF_CSUM_BLANK, TXF_EXTRA_INFO,
    TXF_MORE_DATA, TxRequest,
};
use crate::rings::{Control, Rings};
use crate::tap::{VNET_HDR, VnetHeader};
use crate::testing::{tcp_frame, wait};
use crate::vif_tests::{ERROR, LINUX, NULL, OKAY, PLAIN, Rig, assert_all_given_back, ethernet};

/// What a page holds that must never be sent or written.
const CANARY: u8 = 0x5a;

/// A frontend, the rings of a queue without a thread, and the far end of what stands in for the tap.
struct Bench {
    guest: FakeGuest,
    tx: FrontRing,
    rx: FrontRing,
    rings: Rings,
    far: UnixDatagram,
}

impl Bench {
    fn new() -> Self {
        let mut guest = FakeGuest::new(512);
        let (tx, rx) = (FrontRing::new(&mut guest, 1, TX_ENTRY), FrontRing::new(&mut guest, 1, RX_ENTRY));
        let (ours, far) = UnixDatagram::pair().unwrap();
        for end in [&ours, &far] {
            end.set_nonblocking(true).unwrap();
        }
        // All that Linux's frontend can do.
        let rings = Rings::new(&guest.domain, ours.into(), (tx.refs[0], rx.refs[0]), 31, 1500).unwrap();
        Self { guest, tx, rx, rings, far }
    }

    /// A page with these bytes at `offset`, granted for reading.
    fn page(&mut self, offset: usize, bytes: &[u8]) -> GrantRef {
        let frame = self.guest.alloc_page();
        self.guest.write(frame, offset, bytes);
        self.guest.grant(frame, true)
    }

    fn put(&mut self, gref: GrantRef, offset: usize, size: usize, flags: u16) {
        let request = TxRequest { gref, offset: offset as u16, flags, id: 7, size: size as u16 };
        self.tx.put(&self.guest, &request.emit());
    }

    /// A packet of one page.
    fn put_frame(&mut self, frame: &[u8]) {
        let gref = self.page(0, frame);
        self.put(gref, 0, frame.len(), 0);
    }

    /// A packet of `total` bytes, cut into `pieces`, with extra infos.
    fn put_pieces(&mut self, total: usize, pieces: &[&[u8]], flags: u16, extras: &[[u8; TX_ENTRY]]) {
        for (index, piece) in pieces.iter().enumerate() {
            let gref = self.page(5, piece);
            let more = if index + 1 < pieces.len() { TXF_MORE_DATA } else { 0 };
            let extra = if extras.is_empty() { 0 } else { TXF_EXTRA_INFO };
            if index == 0 {
                self.put(gref, 5, total, flags | more | extra);
                extras.iter().for_each(|extra| self.tx.put(&self.guest, extra));
            } else {
                self.put(gref, 5, piece.len(), more);
            }
        }
    }

    /// Has everything done; false: the rings were closed.
    fn run(&mut self) -> bool {
        self.tx.publish(&self.guest);
        self.rx.publish(&self.guest);
        (0..8).all(|_| self.rings.pass())
    }

    /// Statuses of the transmit responses.
    fn statuses(&mut self) -> Vec<i16> {
        let next = || self.tx.take(&self.guest, 4);
        std::iter::from_fn(next).map(|r| i16::from_le_bytes([r[2], r[3]])).collect()
    }

    /// Frames that were sent, with their headers.
    fn sent(&self) -> Vec<(VnetHeader, Vec<u8>)> {
        let mut bytes = vec![0; 70_000];
        let next = || {
            let len = self.far.recv(&mut bytes).ok()?;
            let (header, frame) = bytes[..len].split_first_chunk::<VNET_HDR>().unwrap();
            Some((VnetHeader::parse(header).unwrap(), frame.to_vec()))
        };
        std::iter::from_fn(next).collect()
    }

    fn sent_frames(&self) -> Vec<Vec<u8>> {
        self.sent().into_iter().map(|(_, frame)| frame).collect()
    }

    /// What was put is refused with these statuses and nothing of it is sent; the next frame is.
    fn assert_refused(&mut self, statuses: &[i16], what: &str) {
        self.put_frame(&ethernet(77));
        assert!(self.run(), "{what}");
        let got = self.statuses();
        assert_eq!(got.split_last(), Some((&OKAY, statuses)), "{what}");
        assert_eq!(self.sent_frames(), [ethernet(77)], "{what}");
    }

    fn post(&mut self, gref: GrantRef) {
        self.rx.put(&self.guest, &RxRequest { id: 3, gref }.emit());
    }

    fn post_pages(&mut self, n: usize) {
        for _ in 0..n {
            let (_, gref) = self.guest.granted_page();
            self.post(gref);
        }
    }

    /// A frame of the host; false: the wire is full of those that were not taken.
    fn host_sends(&self, frame: &[u8]) -> bool {
        self.far.send(&[&PLAIN, frame].concat()).is_ok()
    }

    fn responses(&mut self) -> Vec<RxResponse> {
        let next = || self.rx.take(&self.guest, RX_ENTRY);
        std::iter::from_fn(next).map(|r| RxResponse::parse(r.first_chunk().unwrap())).collect()
    }
}

fn gso_slot(size: u16, kind: u8, flags: u8) -> [u8; TX_ENTRY] {
    let [a, b] = size.to_le_bytes();
    [1, flags, a, b, kind, 0, 0, 0, 0, 0, 0, 0]
}

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

// Things that change while they are looked at.

/// Writes what `writes` lists (address, bytes) again and again while `run` runs.
fn while_changing(ram: &GuestRam, writes: &[(u64, Vec<u8>)], run: impl FnOnce()) {
    /// Ends the thread, in a failing test too.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                for (address, bytes) in writes {
                    ram.write_slice(bytes, GuestAddress(*address)).unwrap();
                }
            }
        });
        run();
    });
}

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

struct ControlBench {
    bench: Bench,
    ring: FrontRing,
    control: Control,
}

impl ControlBench {
    fn new() -> Self {
        let mut bench = Bench::new();
        let ring = FrontRing::new(&mut bench.guest, 1, CTRL_ENTRY);
        let control = bench.rings.control(ring.refs[0]).unwrap();
        Self { bench, ring, control }
    }

    fn ask(&mut self, kind: u16, data: [u32; 3]) -> u32 {
        self.ring.put(&self.bench.guest, &CtrlRequest { id: 1, kind, data }.emit());
        self.ring.publish(&self.bench.guest);
        assert!(self.control.pass());
        let response = self.ring.take(&self.bench.guest, CTRL_RESPONSE).unwrap();
        u32::from_le_bytes(response[4..8].try_into().unwrap())
    }

    /// Has frames hashed, by a table of one entry.
    fn hash(&mut self) {
        for (kind, data) in [(7, [1, 0, 0]), (2, [15, 0, 0]), (5, [1, 0, 0])] {
            assert_eq!(self.ask(kind, data), 0);
        }
    }
}

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

// Events, the log, and the life of an interface.

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
