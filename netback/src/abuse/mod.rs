//! What a hostile frontend may try, each thing by name. Mostly against the rings of a queue with a socket in place of the
//! tap, step by step; where a thread or the kernel matters, against a whole interface.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod life;
mod packets;
mod shared;

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use devices::complaints::MAX_COMPLAINTS;
use devices::memory::GuestRam;
use devices::testing::{FakeGuest, FrontRing, log_lines, log_lines_of_all_threads};
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

/// A frontend with a control ring.
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
