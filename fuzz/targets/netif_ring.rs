//! Network queues under a hostile frontend, with sockets in place of the tap's queues.
//!
//! Input: a byte that chooses. 0: slots of 12 bytes, taken as packets; others: settings of a frontend with one queue or two
//! (bit 6) and a control ring, then operations, see the match below.

#![no_main]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use std::os::unix::net::UnixDatagram;

use devices::memory::PAGE_SIZE;
use devices::testing::{FakeGuest, FrontRing};
use devices::xen::GrantRef;
use libfuzzer_sys::fuzz_target;
use netback::control::{CTRL_ENTRY, CtrlRequest};
use netback::packet::{Taken, TxPacket};
use netback::protocol::{ETH_HLEN, FATAL_SLOTS, MAX_SLOTS, RX_ENTRY, RxRequest, TX_ENTRY, TxRequest};
use netback::rings::Rings;
use netback::{VNET_HDR, VnetHeader};
use xvmm_fuzz::Input;

const PAGES: usize = 64;
/// Never granted: nothing may be written there.
const CANARY: u64 = 60;
/// GTF_reading and GTF_writing.
const IN_USE: u16 = 8 | 16;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    match input.u8() {
        0 => packets(input.rest()),
        settings => queues(settings, &mut input),
    }
});

fn packets(bytes: &[u8]) {
    let (slots, _) = bytes.as_chunks::<TX_ENTRY>();
    let mut ring = slots.iter();
    let mut packet = TxPacket::default();
    loop {
        let before = ring.len();
        let taken = packet.take(&mut ring);
        let used = before - ring.len();
        match taken {
            Ok(Taken::Nothing) | Err(_) => return,
            Ok(Taken::Bad(_) | Taken::Group(_)) => assert!(used > 0),
            Ok(Taken::Packet) => {
                let pieces = packet.pieces();
                assert!(pieces.len() <= MAX_SLOTS && packet.len() >= ETH_HLEN);
                assert_eq!(pieces.iter().map(|piece| piece.len).sum::<usize>(), packet.len());
                assert!(pieces.iter().all(|piece| piece.len > 0 && piece.offset + piece.len <= PAGE_SIZE));
            }
        }
        assert_eq!(packet.ids().len(), used, "each slot is answered");
        assert!(used <= FATAL_SLOTS + 8);
    }
}

/// The two ends of what stands in for the tap.
fn wire() -> (OwnedFd, UnixDatagram) {
    let mut fds = [0; 2];
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: an array of two; the result is checked.
    let result = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    // SAFETY: new descriptors that nobody else owns.
    let [ours, far] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    (ours, far.into())
}

/// What came out must be a frame whose header is true.
fn sent_frames(far: &UnixDatagram) {
    let mut frame = vec![0; 70_000];
    while let Ok(len) = far.recv(&mut frame) {
        let (header, frame) = frame[..len].split_first_chunk::<VNET_HDR>().expect("a header");
        assert!((ETH_HLEN..=65_535).contains(&frame.len()), "{}", frame.len());
        let header = VnetHeader::parse(header).expect("a header of ours");
        if let Some(csum) = header.csum {
            assert!(usize::from(csum.start) + usize::from(csum.offset) + 2 <= frame.len(), "{header:?}");
        }
        assert!(usize::from(header.hdr_len) <= frame.len(), "{header:?}");
        assert!(header.gso.is_none() || header.csum.is_some(), "{header:?}");
    }
}

/// One queue as the frontend and the wire have it.
struct Queue {
    tx: FrontRing,
    rx: FrontRing,
    far: UnixDatagram,
}

fn queues(settings: u8, input: &mut Input) {
    let mut guest = FakeGuest::new(PAGES);
    let mut ends = Vec::new();
    let mut queues: Vec<Queue> = Vec::new();
    for _ in 0..if settings & 0x40 == 0 { 1 } else { 2 } {
        let (tx, rx) = (FrontRing::new(&mut guest, 1, TX_ENTRY), FrontRing::new(&mut guest, 1, RX_ENTRY));
        let (ours, far) = wire();
        ends.push((ours, (tx.refs[0], rx.refs[0])));
        queues.push(Queue { tx, rx, far });
    }
    let mut control = FrontRing::new(&mut guest, 1, CTRL_ENTRY);
    let grants: Vec<GrantRef> = (0..32)
        .map(|i| {
            let frame = guest.alloc_page();
            guest.grant(frame, i >= 28)
        })
        .collect();
    guest.write(CANARY, 0, &[0x5a; PAGE_SIZE]);
    let mtu = if settings & 0x80 == 0 { 1500 } else { 9000 };
    let mut rings = Rings::several(&guest.domain, ends, settings >> 1, mtu).expect("rings");
    let mut back = rings[0].control(control.refs[0]).expect("a control ring");
    let gref = |input: &mut Input| match input.u8() {
        choice @ 0..224 => grants[usize::from(choice) % grants.len()],
        _ => GrantRef(input.number() as u32),
    };
    let mut forged = false;
    // The queue that what follows is for.
    let mut at = 0;
    'all: while !input.is_empty() {
        let Queue { tx, rx, far } = &mut queues[at];
        match input.below(16) {
            // A slot of a packet.
            0 => {
                let flags = u16::from(input.u8());
                let (offset, size) = (input.number() as u16, input.number() as u16);
                let slot = TxRequest { gref: gref(input), offset, flags, id: 3, size };
                tx.put(&guest, &slot.emit());
            }
            // A slot of any content: an extra info.
            1 => {
                let mut slot = input.bytes(TX_ENTRY).to_vec();
                slot.resize(TX_ENTRY, 0);
                tx.put(&guest, &slot);
            }
            // Pages for frames.
            2 => {
                for _ in 0..input.below(40) {
                    let slot = RxRequest { id: 5, gref: gref(input) };
                    rx.put(&guest, &slot.emit());
                }
            }
            3 => {
                tx.publish(&guest);
                rx.publish(&guest);
            }
            // One of the indexes.
            4 => {
                let choice = input.u8();
                let ring = if choice & 4 == 0 { tx } else { rx };
                let value = input.number() as u32;
                guest.write(ring.frames[0], usize::from(choice & 3) * 4, &value.to_le_bytes());
            }
            // Any grant entry, those of the rings too.
            5 => {
                let gref = GrantRef(8 + u32::from(input.below(44)));
                let flags = input.u16();
                let domid = u16::from(input.u8() / 200);
                let frame = match input.u8() {
                    frame @ 0..60 => frame.into(),
                    // Not RAM.
                    _ => u64::from(input.number() as u32).max(PAGES as u64),
                };
                forged = true;
                guest.set_grant(gref, flags, domid, frame);
            }
            // The content of a page that frames are sent from.
            6 => {
                let frame = 2 + u64::from(input.below(36));
                let at = usize::from(input.u16()) % PAGE_SIZE;
                let len = usize::from(input.u8()).min(PAGE_SIZE - at);
                guest.write(frame, at, input.bytes(len));
            }
            // A frame of the host.
            7 => {
                let header = input.bytes(VNET_HDR);
                let len = usize::from(input.u8());
                let mut frame = [header, input.bytes(len)].concat();
                let more = frame.len() + usize::from(input.number() as u16);
                frame.resize(more, 0x77);
                let _ = far.send(&frame);
            }
            8 => {
                (tx.rsp_cons, rx.rsp_cons) = (tx.rsp_prod(&guest), rx.rsp_prod(&guest));
                sent_frames(far);
            }
            9 => {
                if !rings[at].pass() {
                    break 'all;
                }
                sent_frames(far);
            }
            // The other queue.
            10 => at = (at + 1) % rings.len(),
            // A control request: mostly one that is possible.
            11 => {
                let kind = u16::from(input.u8());
                let first = if kind == 3 || kind == 6 { gref(input).0 } else { input.number() as u32 };
                let data = [first, input.number() as u32, input.number() as u32];
                control.put(&guest, &CtrlRequest { id: 4, kind, data }.emit());
                control.publish(&guest);
                if !back.pass() {
                    break 'all;
                }
                control.rsp_cons = control.rsp_prod(&guest);
            }
            12 => rings[at].set_headroom(input.number() as u16),
            13 => rings[at].filter_multicasts(input.u8() & 1 == 1),
            // A frame of the host whose headers mean something: TCP, of many flows.
            14 => {
                let mut frame = vec![0; VNET_HDR];
                frame.extend(TCP_FRAME);
                let ports = VNET_HDR + 34;
                frame[ports..ports + 2].copy_from_slice(&input.u16().to_le_bytes());
                frame[VNET_HDR] = input.u8();
                let _ = far.send(&frame);
            }
            // All that hashing needs, in one step: any key, both queues.
            _ => {
                for (kind, first) in [(7, 1), (2, u32::from(input.u8() & 15)), (5, 0)] {
                    control.put(&guest, &CtrlRequest { id: 4, kind, data: [first, 0, 0] }.emit());
                }
                let key = CtrlRequest { id: 4, kind: 3, data: [gref(input).0, 40, 0] };
                control.put(&guest, &key.emit());
                control.publish(&guest);
                if !back.pass() {
                    break 'all;
                }
                control.rsp_cons = control.rsp_prod(&guest);
            }
        }
    }
    for (Queue { tx, rx, far }, rings) in queues.iter().zip(&mut rings) {
        tx.publish(&guest);
        rx.publish(&guest);
        rings.pass();
        sent_frames(far);
    }
    drop((rings, back));
    assert!(guest.read(CANARY, 0, PAGE_SIZE) == [0x5a; PAGE_SIZE], "a page that was not granted is written");
    if !forged {
        let own = queues.iter().flat_map(|queue| queue.tx.refs.iter().chain(&queue.rx.refs));
        for gref in grants.iter().chain(own).chain(&control.refs) {
            assert_eq!(guest.grant_flags(*gref) & IN_USE, 0, "{gref:?} is still in use");
        }
    }
}

/// Ethernet, IPv4 and TCP, with four bytes of payload.
const TCP_FRAME: [u8; 58] = [
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 44, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192,
    0, 2, 2, 0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4,
];
