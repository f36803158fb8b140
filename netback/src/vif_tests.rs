//! A whole interface: a frontend played by the test on one side, a real tap on the other.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use devices::testing::{FakeGuest, FrontRing};
use devices::xen::types::{GrantRef, Port};
use devices::xen::xenbus::BackendDevice;

use crate::protocol::{
    Gso, GsoKind, RX_ENTRY, RXF_CSUM_BLANK, RXF_DATA_VALIDATED, RXF_EXTRA_INFO, RXF_MORE_DATA, RxRequest,
    RxResponse, TX_ENTRY, TXF_CSUM_BLANK, TXF_DATA_VALIDATED, TXF_EXTRA_INFO, TXF_MORE_DATA, TxRequest,
};
use crate::tap::{PartialCsum, Tap, VnetHeader};
use crate::testing::{HostSide, assert_checksum, enter_network_namespace, tcp_frame, wait};
use crate::{NetDevice, VifConfig};

pub(crate) const PAGE: usize = 4096;
pub(crate) const PLAIN: [u8; 10] = [0; 10];
/// What xen-netfront of Linux writes.
pub(crate) const LINUX: &[&str] =
    &["feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload"];
pub(crate) const OKAY: i16 = 0;
pub(crate) const ERROR: i16 = -1;
pub(crate) const DROPPED: i16 = -2;
pub(crate) const NULL: i16 = 1;

/// One queue pair as a frontend has it.
pub(crate) struct Pair {
    pub(crate) tx: FrontRing,
    pub(crate) rx: FrontRing,
    pub(crate) tx_port: Port,
    pub(crate) rx_port: Port,
    /// Pages posted to receive, by id.
    pub(crate) posted: Vec<(u64, GrantRef)>,
    pub(crate) next_id: u16,
}

pub(crate) struct Rig {
    pub(crate) guest: FakeGuest,
    pub(crate) device: NetDevice,
    pub(crate) host: HostSide,
    pub(crate) pairs: Vec<Pair>,
}

/// A received frame: its bytes, the flags of its first slot, its segmentation, its other extra infos, the room before
/// its data, and bytes per slot.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Received {
    pub(crate) frame: Vec<u8>,
    pub(crate) flags: u16,
    pub(crate) gso: Option<Gso>,
    pub(crate) others: Vec<[u8; RX_ENTRY]>,
    pub(crate) headroom: u16,
    pub(crate) slots: Vec<usize>,
}

impl Rig {
    pub(crate) fn new(mtu: u16, queues: usize) -> Self {
        enter_network_namespace();
        Self::in_namespace(mtu, queues)
    }

    /// In the namespace that this thread is in.
    pub(crate) fn in_namespace(mtu: u16, queues: usize) -> Self {
        let tap = Tap::create("vif1.0", queues).unwrap();
        let host = HostSide::up("vif1.0", mtu.into());
        let config = VifConfig {
            index: 0,
            mac: "00:16:3e:00:00:01".parse().unwrap(),
            vifname: "vif1.0".into(),
            toolstack: Default::default(),
            mtu,
            rate: None,
        };
        Self { guest: FakeGuest::new(2048), device: NetDevice::new(config, tap), host, pairs: Vec::new() }
    }

    /// An interface of one queue, connected, with `features` of the frontend.
    pub(crate) fn connected(mtu: u16, features: &[&str]) -> Self {
        let mut rig = Self::new(mtu, 1);
        rig.connect(1, false, features);
        rig
    }

    pub(crate) fn prepare(&mut self, queues: usize, split: bool, features: &[&str]) {
        let guest = &mut self.guest;
        guest.keys.clear();
        for key in ["request-rx-copy", "feature-rx-notify"].iter().chain(features) {
            guest.set_key(key, 1);
        }
        if queues > 1 {
            guest.set_key("multi-queue-num-queues", queues);
        }
        self.pairs.clear();
        for index in 0..queues {
            let prefix = if queues == 1 { String::new() } else { format!("queue-{index}/") };
            let (tx, rx) = (FrontRing::new(guest, 1, TX_ENTRY), FrontRing::new(guest, 1, RX_ENTRY));
            guest.set_key(&format!("{prefix}tx-ring-ref"), tx.refs[0].0);
            guest.set_key(&format!("{prefix}rx-ring-ref"), rx.refs[0].0);
            let tx_port = guest.alloc_port();
            let rx_port = if split { guest.alloc_port() } else { tx_port };
            if split {
                guest.set_key(&format!("{prefix}event-channel-tx"), tx_port.0);
                guest.set_key(&format!("{prefix}event-channel-rx"), rx_port.0);
            } else {
                guest.set_key(&format!("{prefix}event-channel"), tx_port.0);
            }
            self.pairs.push(Pair { tx, rx, tx_port, rx_port, posted: Vec::new(), next_id: 100 });
        }
    }

    pub(crate) fn connect(&mut self, queues: usize, split: bool, features: &[&str]) {
        self.prepare(queues, split, features);
        self.device.connect(&self.guest, &self.guest.domain).unwrap();
        self.host.notice_carrier();
    }

    pub(crate) fn disconnect(&mut self) {
        self.device.disconnect();
        self.wait_stopped();
    }

    pub(crate) fn wait_stopped(&mut self) {
        let device = &mut self.device;
        wait("the queues to stop", || device.is_stopped());
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.device.counters().into_iter().find(|(n, _)| *n == name).unwrap().1
    }

    /// Puts `pieces` (offset, bytes) of a packet of `size` bytes into the transmit ring.
    pub(crate) fn put_packet(
        &mut self,
        queue: usize,
        size: usize,
        pieces: &[(usize, &[u8])],
        flags: u16,
        gso: Option<Gso>,
    ) {
        let pair = &mut self.pairs[queue];
        for (index, (offset, bytes)) in pieces.iter().enumerate() {
            let frame = self.guest.alloc_page();
            let gref = self.guest.grant(frame, true);
            self.guest.write(frame, *offset, bytes);
            let mut request = TxRequest { gref, offset: *offset as u16, flags: 0, id: pair.next_id, size: 0 };
            request.size = if index == 0 { size } else { bytes.len() } as u16;
            if index == 0 {
                request.flags |= flags | if gso.is_some() { TXF_EXTRA_INFO } else { 0 };
            }
            if index + 1 < pieces.len() {
                request.flags |= TXF_MORE_DATA;
            }
            pair.next_id += 1;
            pair.tx.put(&self.guest, &request.emit());
            if let (0, Some(gso)) = (index, gso) {
                pair.tx.put(&self.guest, &[&gso.emit()[..], &[0; 4]].concat());
            }
        }
    }

    /// Transmits a frame, cut up into pages; its first `first` bytes are in the first one.
    pub(crate) fn transmit(
        &mut self,
        queue: usize,
        frame: &[u8],
        first: usize,
        flags: u16,
        gso: Option<Gso>,
    ) {
        let (head, rest) = frame.split_at(first.min(frame.len()));
        let pieces: Vec<_> =
            std::iter::once((64, head)).chain(rest.chunks(PAGE).map(|piece| (0, piece))).collect();
        self.put_packet(queue, frame.len(), &pieces, flags, gso);
        self.push_tx(queue);
    }

    pub(crate) fn push_tx(&mut self, queue: usize) {
        let pair = &self.pairs[queue];
        if pair.tx.publish(&self.guest) {
            self.guest.send(pair.tx_port);
        }
    }

    /// Status of the next `n` transmit responses.
    pub(crate) fn statuses(&mut self, queue: usize, n: usize) -> Vec<i16> {
        let (tx, guest) = (&mut self.pairs[queue].tx, &self.guest);
        let mut statuses = Vec::new();
        wait("transmit responses", || {
            while let Some(response) = tx.take(guest, 4) {
                statuses.push(i16::from_le_bytes([response[2], response[3]]));
            }
            statuses.len() >= n
        });
        statuses
    }

    /// Posts `n` pages to receive into; true: the backend wanted an event.
    pub(crate) fn post(&mut self, queue: usize, n: usize) -> bool {
        let pair = &mut self.pairs[queue];
        for _ in 0..n {
            let (frame, gref) = self.guest.granted_page();
            let id = pair.posted.len() as u16;
            pair.rx.put(&self.guest, &RxRequest { id, gref }.emit());
            pair.posted.push((frame, gref));
        }
        let event = pair.rx.publish(&self.guest);
        if event {
            self.guest.send(pair.rx_port);
        }
        event
    }

    /// The next receive response, which must be in the slot of request `slot`.
    pub(crate) fn response(&mut self, queue: usize) -> RxResponse {
        let (rx, guest) = (&mut self.pairs[queue].rx, &self.guest);
        let mut response = None;
        wait("a receive response", || {
            response = rx.take(guest, RX_ENTRY);
            response.is_some()
        });
        RxResponse::parse(response.unwrap().first_chunk().unwrap())
    }

    /// Takes a frame as a frontend does, checking that responses are in the slots of their requests and that
    /// the pages were given back.
    pub(crate) fn receive(&mut self, queue: usize) -> Received {
        let mut received = Received::default();
        loop {
            let slot = self.pairs[queue].rx.rsp_cons;
            let response = self.response(queue);
            assert_eq!(u32::from(response.id), slot, "response {response:?} in slot {slot}");
            assert!(response.status > 0, "{response:?}");
            let (frame, gref) = self.pairs[queue].posted[slot as usize];
            assert_eq!(self.guest.grant_flags(gref), 1, "page {slot} is still in use");
            let bytes = self.guest.read(frame, response.offset.into(), response.status as usize);
            if received.slots.is_empty() {
                received.flags = response.flags & !RXF_MORE_DATA;
                received.headroom = response.offset;
                let mut more = response.flags & RXF_EXTRA_INFO != 0;
                while more {
                    let (rx, guest) = (&mut self.pairs[queue].rx, &self.guest);
                    let extra: [u8; RX_ENTRY] = rx.take(guest, RX_ENTRY).unwrap().try_into().unwrap();
                    more = extra[1] != 0;
                    let extra = [&[extra[0], 0], &extra[2..]].concat().try_into().unwrap();
                    received.add_extra(extra);
                }
            }
            assert_eq!(response.offset, received.headroom, "all pages have the same room");
            received.slots.push(bytes.len());
            received.frame.extend(bytes);
            if response.flags & RXF_MORE_DATA == 0 {
                return received;
            }
        }
    }
}

impl Received {
    /// As a frontend does: the last one of a type counts.
    fn add_extra(&mut self, extra: [u8; RX_ENTRY]) {
        if extra[0] == 1 {
            let kind = [GsoKind::TcpV4, GsoKind::TcpV6][usize::from(extra[4]) - 1];
            self.gso = Some(Gso { size: u16::from_le_bytes([extra[2], extra[3]]), kind });
        } else {
            self.others.retain(|other| other[0] != extra[0]);
            self.others.push(extra);
        }
    }
}

/// Asserts that no grant of the guest is in use.
pub(crate) fn assert_all_given_back(guest: &FakeGuest) {
    for gref in 8..512 {
        let flags = guest.grant_flags(GrantRef(gref));
        assert_eq!(flags & (8 | 16), 0, "grant reference {gref} is still in use: {flags:#x}");
    }
}

pub(crate) fn ethernet(len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|i| (i * 13 + i / 256) as u8).collect();
    // Two unicast addresses and a type of no protocol.
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
    frame
}

pub(crate) fn blank(v6: bool, gso: Option<Gso>) -> VnetHeader {
    let start = if v6 { 54 } else { 34 };
    let csum = Some(PartialCsum { start, offset: 16 });
    VnetHeader { csum, data_valid: false, gso, hdr_len: gso.map_or(0, |_| start + 20) }
}

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

// Connecting.

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
