//! A whole interface: a frontend played by the test on one side, a real tap on the other.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod connecting;
mod frames;

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
