//! What a frontend can ask for beyond plain frames, end to end: the control ring, hashing and steering, multicast control,
//! room for XDP.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use devices::testing::{FrontRing, MemoryStore};
use devices::xen::types::{DomId, Port};
use devices::xen::xenbus::{BackendDevice, Store, Xenbus};

use crate::NetDevice;
use crate::control::{CTRL_ENTRY, CTRL_RESPONSE, CtrlRequest};
use crate::hash::{ALL_KINDS, HashConfig};
use crate::protocol::{Gso, GsoKind, RXF_CSUM_BLANK, RXF_EXTRA_INFO, TXF_EXTRA_INFO, TxRequest};
use crate::tap::Tap;
use crate::testing::{assert_checksum, tcp_frame, wait};
use crate::vif_tests::{
    ERROR, LINUX, NULL, OKAY, PAGE, PLAIN, Received, Rig, assert_all_given_back, blank, ethernet,
};

/// The frontend's half of a control ring.
struct Control {
    ring: FrontRing,
    port: Port,
}

impl Control {
    /// To be made between [`Rig::prepare`] and connecting.
    fn offer(rig: &mut Rig) -> Self {
        let ring = FrontRing::new(&mut rig.guest, 1, CTRL_ENTRY);
        let port = rig.guest.alloc_port();
        rig.guest.set_key("ctrl-ring-ref", ring.refs[0].0);
        rig.guest.set_key("event-channel-ctrl", port.0);
        Self { ring, port }
    }

    /// Status and data of the answer.
    fn ask(&mut self, rig: &Rig, kind: u16, data: [u32; 3]) -> (u32, u32) {
        self.ring.put(&rig.guest, &CtrlRequest { id: 9, kind, data }.emit());
        if self.ring.publish(&rig.guest) {
            rig.guest.send(self.port);
        }
        let mut response = None;
        wait("a control response", || {
            response = self.ring.take(&rig.guest, CTRL_RESPONSE);
            response.is_some()
        });
        let response = response.unwrap();
        assert_eq!(response[..4], [9, 0, kind as u8, 0]);
        let word = |at: usize| u32::from_le_bytes(response[at..at + 4].try_into().unwrap());
        (word(4), word(8))
    }

    /// Has all packets hashed with a key of 7s and spread by `mapping`.
    fn hash_all(&mut self, rig: &mut Rig, mapping: &[u32]) -> HashConfig {
        let (frame, gref) = rig.guest.granted_page();
        let size = mapping.len() as u32;
        rig.guest.write(frame, 0, &[7; 40]);
        assert_eq!(self.ask(rig, 7, [1, 0, 0]), (0, 0));
        assert_eq!(self.ask(rig, 1, [0; 3]), (0, ALL_KINDS));
        assert_eq!(self.ask(rig, 2, [ALL_KINDS, 0, 0]), (0, 0));
        assert_eq!(self.ask(rig, 3, [gref.0, 40, 0]), (0, 0));
        assert_eq!(self.ask(rig, 4, [0; 3]), (0, 128));
        assert_eq!(self.ask(rig, 5, [size, 0, 0]), (0, 0));
        rig.guest.write(frame, 0, &mapping.iter().flat_map(|queue| queue.to_le_bytes()).collect::<Vec<_>>());
        assert_eq!(self.ask(rig, 6, [gref.0, size, 0]), (0, 0));
        HashConfig {
            toeplitz: true,
            kinds: ALL_KINDS,
            key: [7; 40],
            mapping: mapping.iter().map(|queue| *queue as u16).collect(),
        }
    }
}

fn connected_with_control(mtu: u16, queues: usize) -> (Rig, Control) {
    let mut rig = Rig::new(mtu, queues);
    rig.prepare(queues, true, LINUX);
    let control = Control::offer(&mut rig);
    rig.device.connect(&rig.guest, &rig.guest.domain).unwrap();
    rig.host.notice_carrier();
    (rig, control)
}

impl Rig {
    /// Posts pages in the first `queues` queues.
    fn post_all(&mut self, queues: usize, pages: usize) {
        for queue in 0..queues {
            self.post(queue, pages);
        }
    }
}

/// A TCP frame of a flow of its own.
fn flow(port: u8, payload: usize) -> Vec<u8> {
    let mut frame = tcp_frame(false, payload);
    frame[37] = port;
    frame
}

fn hash_extra(config: &HashConfig, frame: &[u8]) -> Vec<[u8; 8]> {
    vec![config.hash(frame, frame.len()).unwrap().emit()]
}

#[test]
fn what_is_offered_is_written_down() {
    let rig = Rig::new(1500, 1);
    let keys = rig.device.backend_keys();
    for feature in ["multicast-control", "dynamic-multicast-control", "xdp-headroom", "ctrl-ring"] {
        assert!(keys.contains(&(format!("feature-{feature}"), "1".into())), "{feature}");
    }
}

#[test]
fn a_control_ring_answers_requests_in_order_and_goes_with_the_connection() {
    let (mut rig, mut control) = connected_with_control(1500, 1);
    for _ in 0..300 {
        assert_eq!(control.ask(&rig, 4, [0; 3]), (0, 128));
    }
    assert_eq!(control.ask(&rig, 8, [0; 3]), (1, 0));
    rig.disconnect();
    assert_eq!(rig.guest.domain.events.status(control.port).unwrap().status, 1, "unbound");
    assert_all_given_back(&rig.guest);
}

#[test]
fn a_control_ring_without_an_event_channel_is_refused() {
    let mut rig = Rig::new(1500, 1);
    for (key, value, message) in [
        ("event-channel-ctrl", None, "vif 0: the frontend wrote ctrl-ring-ref but no event-channel-ctrl"),
        ("event-channel-ctrl", Some("4000"), "vif 0: event-channel-ctrl 4000: not a valid port"),
        ("ctrl-ring-ref", Some("500"), "vif 0: ctrl-ring-ref: the ring cannot be mapped"),
    ] {
        rig.prepare(1, false, LINUX);
        Control::offer(&mut rig);
        match value {
            Some(value) => rig.guest.set_key(key, value),
            None => drop(rig.guest.keys.remove(key)),
        }
        let error = rig.device.connect(&rig.guest, &rig.guest.domain).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
        assert!(rig.device.is_stopped());
        assert_all_given_back(&rig.guest);
    }
}

#[test]
fn each_frame_has_its_hash() {
    let (mut rig, mut control) = connected_with_control(1500, 1);
    let config = control.hash_all(&mut rig, &[]);
    rig.post(0, 150);
    for frame in [flow(1, 100), flow(2, 1400), tcp_frame(true, 9)] {
        rig.host.send(PLAIN, &frame).unwrap();
        let received = rig.receive(0);
        assert_eq!((received.flags, received.others), (RXF_EXTRA_INFO, hash_extra(&config, &frame)));
        assert_eq!(received.frame, frame);
    }
    // And a large segment has both.
    let (frame, gso) = (flow(3, 30_000), Some(Gso { size: 1448, kind: GsoKind::TcpV4 }));
    rig.host.send(blank(false, gso).emit(), &frame).unwrap();
    let received = rig.receive(0);
    assert_eq!((received.gso, received.others), (gso, hash_extra(&config, &frame)));
    assert_eq!(received.frame, frame);
    // What is no IP has none.
    rig.host.send(PLAIN, &ethernet(60)).unwrap();
    assert_eq!(rig.receive(0), Received { frame: ethernet(60), slots: vec![60], ..Received::default() });
}

#[test]
fn the_table_decides_which_queue_a_flow_comes_in() {
    let (mut rig, mut control) = connected_with_control(1500, 4);
    let config = control.hash_all(&mut rig, &[3, 1, 2, 0, 1]);
    rig.post_all(4, 200);
    for port in 0..40 {
        let frame = flow(port, 100);
        let queue = config.queue(config.hash(&frame, frame.len()), 4).unwrap();
        rig.host.send(blank(false, None).emit(), &frame).unwrap();
        let received = rig.receive(queue);
        assert_eq!((received.flags & RXF_CSUM_BLANK, received.frame == frame), (RXF_CSUM_BLANK, true));
        assert_eq!(received.others, hash_extra(&config, &frame));
    }
    // Whatever the tap does: not all flows were where they belong.
    assert!(rig.counter("rx_steered") > 0);
    assert_eq!((rig.counter("rx_packets"), rig.counter("rx_drops")), (40, 0));
    // A new table counts from its answer on.
    let config = control.hash_all(&mut rig, &[2]);
    for port in 0..8 {
        rig.host.send(PLAIN, &flow(port, 50)).unwrap();
        assert_eq!(rig.receive(2).others, hash_extra(&config, &flow(port, 50)));
    }
    // A frame without a hash goes with the hash 0.
    rig.host.send(PLAIN, &ethernet(60)).unwrap();
    assert_eq!(rig.receive(2).frame, ethernet(60));
}

#[test]
fn large_frames_are_steered_too() {
    for mtu in [1500, 9000] {
        let (mut rig, mut control) = connected_with_control(mtu, 2);
        rig.post_all(2, 240);
        for queue in [0, 1] {
            let config = control.hash_all(&mut rig, &[queue]);
            let gso = Some(Gso { size: 1448, kind: GsoKind::TcpV4 });
            let frame = flow(5, 50_000);
            rig.host.send(blank(false, gso).emit(), &frame).unwrap();
            let received = rig.receive(queue as usize);
            assert_eq!((received.gso, received.others), (gso, hash_extra(&config, &frame)));
            assert!(received.frame == frame);
            let frame = flow(6, usize::from(mtu) - 100);
            rig.host.send(PLAIN, &frame).unwrap();
            assert!(rig.receive(queue as usize).frame == frame);
        }
    }
}

#[test]
fn frames_for_a_queue_without_pages_wait_bounded() {
    let (mut rig, mut control) = connected_with_control(1500, 2);
    control.hash_all(&mut rig, &[1]);
    rig.post(0, 200);
    for n in 0..2000 {
        rig.host.send(PLAIN, &flow(n as u8, 100)).unwrap();
    }
    // Frames that the kernel hands to queue 0 are taken, and those that queue 1 has no room for are dropped.
    wait("frames to be dropped", || rig.counter("rx_drops") > 0);
    assert_eq!(rig.counter("rx_packets"), 0);
    rig.post(1, 200);
    rig.receive(1);
    rig.disconnect();
    assert_all_given_back(&rig.guest);
}

// Multicast control.

impl Rig {
    /// Joins (2) or leaves (3) a group; the statuses of its slots.
    fn membership(&mut self, queue: usize, kind: u8, address: [u8; 6]) -> Vec<i16> {
        let pair = &mut self.pairs[queue];
        let request =
            TxRequest { gref: devices::xen::GrantRef(0), offset: 0, flags: TXF_EXTRA_INFO, id: 1, size: 0 };
        pair.tx.put(&self.guest, &request.emit());
        pair.tx.put(&self.guest, &[&[kind, 0][..], &address, &[0; 4]].concat());
        self.push_tx(queue);
        self.statuses(queue, 2)
    }

    /// The frontend writes a key, as xenstore tells it.
    fn change_key(&mut self, key: &str, value: impl ToString) {
        self.guest.set_key(key, value);
        self.device.reconfigure(&self.guest);
    }

    /// Sends a frame to `address`, and one that passes in any case; whether the first one came.
    fn hears(&mut self, address: [u8; 6]) -> bool {
        let mut frame = ethernet(100);
        frame[..6].copy_from_slice(&address);
        self.host.send(PLAIN, &frame).unwrap();
        self.host.send(PLAIN, &ethernet(61)).unwrap();
        let first = self.receive(0).frame;
        first == frame && self.receive(0).frame == ethernet(61)
    }
}

const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 9];

#[test]
fn only_listed_multicasts_reach_a_frontend_that_asks_for_that() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 200);
    assert!(rig.hears(GROUP));
    rig.change_key("request-multicast-control", 1);
    assert!(!rig.hears(GROUP));
    assert!(rig.hears([0xff; 6]), "broadcasts are no multicasts");
    assert_eq!(rig.membership(0, 2, GROUP), [OKAY, NULL]);
    assert!(rig.hears(GROUP));
    assert!(!rig.hears([0x33, 0x33, 0, 0, 0, 9]));
    assert_eq!(rig.membership(0, 3, GROUP), [OKAY, NULL]);
    assert!(!rig.hears(GROUP));
    rig.change_key("request-multicast-control", 0);
    assert!(rig.hears(GROUP));
    assert_eq!((rig.counter("rx_filtered"), rig.counter("rx_drops"), rig.counter("tx_errors")), (3, 0, 0));
    assert_eq!(rig.counter("tx_packets"), 0, "requests are no packets");
}

#[test]
fn a_list_is_of_one_connection_and_holds_sixty_four_groups() {
    let mut rig = Rig::new(1500, 1);
    rig.prepare(1, false, LINUX);
    rig.guest.set_key("request-multicast-control", 1);
    rig.device.connect(&rig.guest, &rig.guest.domain).unwrap();
    rig.host.notice_carrier();
    rig.post(0, 100);
    for n in 0..64 {
        assert_eq!(rig.membership(0, 2, [1, 0, 0x5e, 0, 0, n]), [OKAY, NULL]);
    }
    assert_eq!(rig.membership(0, 2, [1, 0, 0x5e, 0, 0, 64]), [ERROR, NULL]);
    assert!(rig.hears([1, 0, 0x5e, 0, 0, 63]) && !rig.hears([1, 0, 0x5e, 0, 0, 64]));
    rig.disconnect();
    rig.connect(1, false, LINUX);
    rig.post(0, 100);
    rig.change_key("request-multicast-control", 1);
    assert!(!rig.hears([1, 0, 0x5e, 0, 0, 63]));
}

// Room for XDP.

/// What a frame has behind a headroom.
fn behind(headroom: u16, frame: &[u8]) -> Received {
    let [a, b] = headroom.to_le_bytes();
    let others = if headroom > 0 { vec![[5, 0, a, b, 0, 0, 0, 0]] } else { Vec::new() };
    let flags = if headroom > 0 { RXF_EXTRA_INFO } else { 0 };
    Received {
        frame: frame.to_vec(),
        flags,
        others,
        headroom,
        slots: vec![frame.len()],
        ..Received::default()
    }
}

impl Rig {
    fn set_headroom(&mut self, headroom: u32) {
        self.change_key("xdp-headroom", headroom);
        let device = &mut self.device;
        wait("the headroom to be in force", || device.is_reconfigured());
    }
}

#[test]
fn data_starts_behind_the_headroom_while_the_frontend_asks_for_it() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 230);
    for (asked, given) in [(0, 0), (256, 256), (0, 0), (64, 64), (100_000, 256), (0, 0)] {
        rig.set_headroom(asked);
        for len in [60, 1514, 61] {
            rig.host.send(PLAIN, &ethernet(len)).unwrap();
            assert_eq!(rig.receive(0), behind(given, &ethernet(len)));
        }
    }
    rig.disconnect();
    assert_all_given_back(&rig.guest);
}

#[test]
fn a_headroom_changes_under_traffic_without_a_frame_lost() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 250);
    for round in 0..60 {
        rig.host.send(PLAIN, &ethernet(100 + round)).unwrap();
        rig.change_key("xdp-headroom", if round % 2 == 0 { 256 } else { 0 });
    }
    for round in 0..60 {
        let received = rig.receive(0);
        assert_eq!(received, behind(received.headroom, &ethernet(100 + round)));
    }
}

#[test]
fn all_queues_go_by_a_headroom_before_it_is_in_force() {
    let mut rig = Rig::new(1500, 4);
    rig.connect(4, true, LINUX);
    rig.post_all(4, 60);
    rig.guest.domain.kick.read().ok();
    rig.change_key("xdp-headroom", 256);
    wait("the main thread to be told", || rig.guest.domain.kick.read().is_ok());
    assert!(rig.device.is_reconfigured());
    for port in 0..32 {
        rig.host.send(PLAIN, &flow(port, 50)).unwrap();
    }
    wait("32 frames", || rig.counter("rx_packets") == 32);
    for queue in 0..4 {
        while rig.pairs[queue].rx.rsp_cons != rig.pairs[queue].rx.rsp_prod(&rig.guest) {
            assert_eq!(rig.receive(queue).headroom, 256);
        }
    }
}

#[test]
fn a_headroom_of_a_frontend_that_connects_counts() {
    let mut rig = Rig::new(1500, 1);
    rig.prepare(1, false, LINUX);
    rig.guest.set_key("xdp-headroom", 256);
    rig.device.connect(&rig.guest, &rig.guest.domain).unwrap();
    rig.host.notice_carrier();
    rig.post(0, 60);
    rig.host.send(PLAIN, &ethernet(60)).unwrap();
    assert_eq!(rig.receive(0), behind(256, &ethernet(60)));
}

#[test]
fn large_segments_come_cut_up_behind_a_headroom() {
    let mut rig = Rig::connected(1500, LINUX);
    rig.post(0, 230);
    rig.set_headroom(256);
    let gso = Some(Gso { size: 1000, kind: GsoKind::TcpV4 });
    rig.host.send(blank(false, gso).emit(), &tcp_frame(false, 4500)).unwrap();
    for len in [1054, 1054, 1054, 1054, 554] {
        let received = rig.receive(0);
        assert_eq!((received.frame.len(), received.gso, received.slots.len()), (len, None, 1));
    }
    rig.set_headroom(0);
    rig.host.send(blank(false, gso).emit(), &tcp_frame(false, 4500)).unwrap();
    assert_eq!(rig.receive(0).gso, gso);
}

#[test]
fn a_jumbo_frame_has_room_before_each_of_its_pages() {
    for features in [LINUX, &["feature-sg"]] {
        let mut rig = Rig::connected(9000, features);
        rig.post(0, 100);
        rig.set_headroom(256);
        for len in [3840, 3841, 9014] {
            rig.host.send(PLAIN, &ethernet(len)).unwrap();
            let received = rig.receive(0);
            assert!(received.frame == ethernet(len) && received.headroom == 256);
            assert!(received.slots.iter().all(|slot| *slot <= PAGE - 256));
        }
        // A checksum is filled in across pages with room in them.
        let frame = tcp_frame(true, 8000);
        rig.host.send(blank(true, None).emit(), &frame).unwrap();
        let received = rig.receive(0);
        if received.flags & RXF_CSUM_BLANK == 0 {
            assert_checksum(&received.frame);
        } else {
            assert!(received.frame == frame && features == LINUX);
        }
    }
}

#[test]
fn headroom_hash_and_offload_come_together() {
    let (mut rig, mut control) = connected_with_control(1500, 2);
    let config = control.hash_all(&mut rig, &[1]);
    rig.set_headroom(256);
    rig.post_all(2, 100);
    for port in 0..10 {
        let frame = flow(port, 500);
        rig.host.send(blank(false, None).emit(), &frame).unwrap();
        let received = rig.receive(1);
        let mut others = hash_extra(&config, &frame);
        others.push([5, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!((received.headroom, received.others), (256, others));
        assert_eq!((received.flags & RXF_CSUM_BLANK, received.frame), (RXF_CSUM_BLANK, frame));
    }
}

#[test]
fn a_jumbo_mtu_is_told_to_the_frontend_and_its_frames_pass_both_ways() {
    for mtu in [9000, 65_521] {
        let mut rig = Rig::connected(mtu, LINUX);
        let key = ("mtu".to_owned(), mtu.to_string());
        assert!(rig.device.frontend_keys().contains(&key) && rig.device.backend_keys().contains(&key));
        rig.post(0, 200);
        let largest = ethernet(usize::from(mtu) + 14);
        for _ in 0..3 {
            rig.transmit(0, &largest, 1000, 0, None);
            assert!(rig.host.receive().1 == largest);
            rig.host.send(PLAIN, &largest).unwrap();
            assert!(rig.receive(0).frame == largest);
        }
        assert_eq!(rig.counter("rx_drops"), 0);
    }
}

#[test]
fn an_xdp_program_comes_and_goes_as_linux_does_it() {
    const FRONT: &str = "/local/domain/1/device/vif/0";
    let mut rig = Rig::new(1500, 2);
    rig.prepare(2, true, LINUX);
    let mut store = MemoryStore::default();
    let mut xenbus = Xenbus::new(DomId(1), rig.guest.domain.clone());
    let spare = NetDevice::new(rig.device.config().clone(), Tap::create("spare", 1).unwrap());
    let device = std::mem::replace(&mut rig.device, spare);
    xenbus.add(&mut store, Box::new(device)).unwrap();
    for (key, value) in &rig.guest.keys {
        store.write(&format!("{FRONT}/{key}"), value);
    }
    let write = |store: &mut MemoryStore, xenbus: &mut Xenbus, key: &str, value: u16| {
        store.write(&format!("{FRONT}/{key}"), &value.to_string());
        xenbus.frontend_changed(store, &format!("{FRONT}/{key}"));
    };
    let back = |store: &MemoryStore| store.read("/local/domain/0/backend/vif/1/0/state").unwrap();
    write(&mut store, &mut xenbus, "state", 4);
    assert_eq!(back(&store), "4");
    rig.host.notice_carrier();
    rig.post_all(2, 200);
    for headroom in [256, 0, 256, 0] {
        // The state first, as xennet_xdp_set() has it.
        write(&mut store, &mut xenbus, "state", 7);
        write(&mut store, &mut xenbus, "xdp-headroom", headroom);
        wait("the backend to be Reconfigured", || {
            let _ = rig.guest.domain.kick.read();
            xenbus.kicked(&mut store);
            back(&store) == "8"
        });
        write(&mut store, &mut xenbus, "state", 4);
        assert_eq!(back(&store), "4");
        // From now on all frames have it, in whatever queue.
        for port in 0..16 {
            rig.host.send(PLAIN, &flow(port, 50)).unwrap();
        }
        for _ in 0..16 {
            let mut queue = 0;
            wait("a frame", || {
                queue = 1 - queue;
                rig.pairs[queue].rx.rsp_cons != rig.pairs[queue].rx.rsp_prod(&rig.guest)
            });
            assert_eq!(rig.receive(queue).headroom, headroom);
        }
    }
}
