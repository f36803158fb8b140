//! A queue pair without a thread: the test plays the frontend, the kernel and the clock.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::testing::{FakeGuest, FrontRing};
use devices::xen::shared_ring::BackRing;
use devices::xen::types::GrantRef;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::engine::{Completion, Engine, Heard, IoVec, Op, Sleep};
use crate::protocol::{
    Gso, GsoKind, RX_ENTRY, RXF_EXTRA_INFO, RXF_MORE_DATA, RxRequest, RxResponse, TX_ENTRY, TXF_CSUM_BLANK,
    TXF_EXTRA_INFO, TXF_MORE_DATA, TxRequest,
};
use crate::queue::{Clock, Counters, Features, Link, Pair, Requests};
use crate::rate::{Credit, Rate};
use crate::rx::Rx;
use crate::steering::{Settings, View};
use crate::tap::{PartialCsum, Tap, VNET_HDR, VnetHeader};
use crate::testing::tcp_frame;
use crate::tx::Tx;

const PAGE: usize = 4096;
const ALL: Features = Features { sg: true, csum4: true, csum6: true, gso4: true, gso6: true };

/// What the kernel does with a tap.
#[derive(Debug, Default)]
struct Kernel {
    /// For the guest, behind their headers.
    frames: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    pending: Vec<(u16, Op, Vec<IoVec>)>,
    done: Vec<Completion>,
    /// All that was started: what, and where.
    log: Vec<(Op, Vec<Range<usize>>)>,
    /// Waits that end without an end of what is under way.
    slow: usize,
    /// Pages that are in use as long as something is under way.
    in_use: Vec<GrantRef>,
    waits_in_use: usize,
}

/// Shared with the test, and with the guest whose grants it looks at.
#[derive(Clone, Debug)]
struct Fake(Arc<Mutex<Kernel>>, Arc<devices::xen::grant_table::GrantTable>);

impl Fake {
    fn grant_flags(&self, gref: GrantRef) -> u16 {
        let flags = self.1.frames().u16_at(gref.0 as usize * 8).unwrap();
        flags.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl Engine for Fake {
    unsafe fn start(&mut self, token: u16, op: Op, buffers: &[IoVec]) {
        let mut kernel = self.0.lock().unwrap();
        let place = |b: &IoVec| b.base() as usize..b.base() as usize + b.size();
        kernel.log.push((op, buffers.iter().map(place).collect()));
        kernel.pending.push((token, op, buffers.to_vec()));
    }

    fn wait(&mut self, _: Sleep) -> io::Result<()> {
        let mut kernel = self.0.lock().unwrap();
        if kernel.slow > 0 && !kernel.pending.is_empty() {
            kernel.slow -= 1;
            for gref in &kernel.in_use {
                assert_ne!(self.grant_flags(*gref) & 8, 0, "{gref:?} was given back too early");
            }
            kernel.waits_in_use += 1;
            return Ok(());
        }
        for (token, op, buffers) in std::mem::take(&mut kernel.pending) {
            let result = if op == Op::Write {
                let mut frame = Vec::new();
                for buffer in &buffers {
                    // SAFETY: the memory stays valid until the completion.
                    frame.extend(unsafe { std::slice::from_raw_parts(buffer.base(), buffer.size()) });
                }
                let len = frame.len();
                kernel.sent.push(frame);
                Ok(len)
            } else if let Some(frame) = kernel.frames.pop_front() {
                let mut rest = &frame[..];
                for buffer in &buffers {
                    let (part, others) = rest.split_at(rest.len().min(buffer.size()));
                    // SAFETY: as above.
                    unsafe { buffer.base().copy_from(part.as_ptr(), part.len()) };
                    rest = others;
                }
                Ok(frame.len() - rest.len())
            } else {
                Err(libc::EAGAIN)
            };
            kernel.done.push(Completion { token, result });
        }
        Ok(())
    }

    fn completions(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.0.lock().unwrap().done);
    }

    fn listen(&mut self, _: bool) {}

    fn heard(&mut self) -> Heard {
        Heard::default()
    }

    fn system_calls(&mut self) -> u64 {
        0
    }
}

/// A frame to the guest: its bytes, its segmentation, slots of data, types of its extra infos.
type Seen = (Vec<u8>, Option<Gso>, usize, Vec<u8>);

struct Rig {
    guest: FakeGuest,
    kernel: Arc<Mutex<Kernel>>,
    pair: Pair<Fake>,
    counters: Arc<Counters>,
    settings: Arc<Settings>,
    now: Arc<Mutex<Instant>>,
    tx: FrontRing,
    rx: FrontRing,
    /// Frame numbers of the pages in the receive ring, by slot.
    posted: Vec<(u64, GrantRef)>,
}

impl Rig {
    fn new(features: Features, mtu: u16, rate: Option<Rate>) -> Self {
        let mut guest = FakeGuest::new(2048);
        let (tx, rx) = (FrontRing::new(&mut guest, 1, TX_ENTRY), FrontRing::new(&mut guest, 1, RX_ENTRY));
        let now = Arc::new(Mutex::new(Instant::now()));
        let clock = Arc::clone(&now);
        let (counters, settings) = (Arc::<Counters>::default(), Arc::new(Settings::new(1).unwrap()));
        let view = View::new(Arc::clone(&settings), 0);
        let mut fds = [0; 2];
        let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: an array of two; the result is checked.
        assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }, 0);
        // SAFETY: new descriptors that nobody else owns.
        let [near, _far] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let link = Link {
            tap: Arc::new(Tap::stand_in(near)),
            queue: 0,
            grants: Arc::clone(&guest.domain.grants),
            counters: Arc::clone(&counters),
            requests: Arc::new(Requests::new(Arc::clone(&guest.domain.kick))),
            settings: Arc::clone(&settings),
            credit: rate.map(|rate| Arc::new(Credit::new(rate))),
            clock: Clock::new(move || *clock.lock().unwrap()),
        };
        let ring = |ring: &FrontRing, entry| {
            BackRing::new(Arc::clone(&guest.domain.grants), &ring.refs, entry).unwrap()
        };
        let (back_tx, back_rx) = (ring(&tx, TX_ENTRY), ring(&rx, RX_ENTRY));
        let kernel = Arc::<Mutex<Kernel>>::default();
        let fake = Fake(Arc::clone(&kernel), Arc::clone(&guest.domain.grants));
        let pair = Pair::new(link, Tx::new(back_tx), Rx::new(back_rx, features, mtu, view), fake);
        Self { guest, kernel, pair, counters, settings, now, tx, rx, posted: Vec::new() }
    }

    fn count(&self, which: fn(&Counters) -> &std::sync::atomic::AtomicU64) -> u64 {
        which(&self.counters).load(std::sync::atomic::Ordering::SeqCst)
    }

    fn post(&mut self, count: usize) {
        for _ in 0..count {
            let (frame, gref) = self.guest.granted_page();
            let id = self.posted.len() as u16;
            self.rx.put(&self.guest, &RxRequest { id, gref }.emit());
            self.posted.push((frame, gref));
        }
        self.rx.publish(&self.guest);
    }

    fn transmit(&mut self, frame: &[u8], flags: u16, gso: Option<Gso>) {
        let parts: Vec<_> = frame.chunks(PAGE).collect();
        for (index, part) in parts.iter().enumerate() {
            let page = self.guest.alloc_page();
            self.guest.write(page, 0, part);
            let gref = self.guest.grant(page, true);
            let mut request = TxRequest { gref, offset: 0, flags: 0, id: 1, size: part.len() as u16 };
            if index == 0 {
                request.size = frame.len() as u16;
                request.flags = flags | if gso.is_some() { TXF_EXTRA_INFO } else { 0 };
            }
            request.flags |= if index + 1 < parts.len() { TXF_MORE_DATA } else { 0 };
            self.tx.put(&self.guest, &request.emit());
            if let (0, Some(gso)) = (index, gso) {
                self.tx.put(&self.guest, &[&gso.emit()[..], &[0; 4]].concat());
            }
        }
        self.tx.publish(&self.guest);
    }

    /// What the thread does until it would sleep: for how long.
    fn run(&mut self) -> Sleep {
        self.pair.hear_the_tap();
        loop {
            self.pair.collect();
            self.pair.publish();
            let sleep = self.pair.start().unwrap();
            if self.pair.idle() && sleep != Sleep::Never {
                self.pair.publish();
                return sleep;
            }
            self.pair.wait(sleep).unwrap();
        }
    }

    /// A frame as a frontend takes it: bytes, and slots of data and of extra infos.
    fn receive(&mut self) -> Option<Seen> {
        let (mut bytes, mut gso, mut slots, mut extras) = (Vec::new(), None, 0, Vec::new());
        loop {
            let slot = self.rx.rsp_cons;
            let response = self.rx.take(&self.guest, RX_ENTRY)?;
            let response = RxResponse::parse(response.first_chunk().unwrap());
            assert_eq!(u32::from(response.id), slot, "{response:?}");
            assert!(response.status > 0, "{response:?}");
            let (frame, gref) = self.posted[slot as usize];
            assert_eq!(self.guest.grant_flags(gref), 1, "page {slot} is still in use");
            bytes.extend(self.guest.read(frame, response.offset.into(), response.status as usize));
            slots += 1;
            let mut more = response.flags & RXF_EXTRA_INFO != 0;
            assert!(!more || slots == 1);
            while more {
                let extra = self.rx.take(&self.guest, RX_ENTRY).unwrap();
                more = extra[1] & 1 != 0;
                extras.push(extra[0]);
                if extra[0] == 1 {
                    let kind = [GsoKind::TcpV4, GsoKind::TcpV6][usize::from(extra[4]) - 1];
                    gso = Some(Gso { size: u16::from_le_bytes([extra[2], extra[3]]), kind });
                }
            }
            if response.flags & RXF_MORE_DATA == 0 {
                assert!(slots <= 18, "{slots} slots");
                return Some((bytes, gso, slots, extras));
            }
        }
    }

    /// Whether memory that the kernel was given is the guest's.
    fn is_guests(&self, place: &Range<usize>) -> bool {
        let ram = self.guest.ram.get_host_address(GuestAddress(0)).unwrap() as usize;
        (ram..ram + 2048 * PAGE).contains(&place.start) && place.end <= ram + 2048 * PAGE
    }
}

fn plain(len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|i| (i * 13 + i / 256) as u8).collect();
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
    frame
}

fn large(payload: usize) -> (Vec<u8>, Gso, Vec<u8>) {
    let (frame, gso) = (tcp_frame(false, payload), Gso { size: 1448, kind: GsoKind::TcpV4 });
    let csum = Some(PartialCsum { start: 34, offset: 16 });
    let header = VnetHeader { csum, data_valid: false, gso: Some(gso), hdr_len: 54 }.emit();
    let with_header = [&header[..], &frame].concat();
    (frame, gso, with_header)
}

fn with_plain_header(frame: &[u8]) -> Vec<u8> {
    [&[0; VNET_HDR][..], frame].concat()
}

#[test]
fn packets_of_the_guest_go_out_of_its_own_memory_but_for_checked_headers() {
    let mut rig = Rig::new(ALL, 1500, None);
    let (frame, gso, with_header) = large(60_000);
    rig.transmit(&frame, TXF_CSUM_BLANK, Some(gso));
    rig.transmit(&plain(1514), 0, None);
    rig.transmit(&plain(64), 0, None);
    rig.run();
    let kernel = rig.kernel.lock().unwrap();
    assert!(kernel.sent == [with_header, with_plain_header(&plain(1514)), with_plain_header(&plain(64))]);
    let writes: Vec<_> = kernel.log.iter().filter(|(op, _)| *op == Op::Write).collect();
    assert_eq!(writes.len(), 3);
    for ((_, places), own) in writes.iter().zip([2, 1, 1]) {
        assert!(places[..own].iter().all(|place| !rig.is_guests(place)));
        assert!(places.len() > own && places[own..].iter().all(|place| rig.is_guests(place)), "{places:?}");
    }
    // The header of the tap, and the 54 bytes of the packet's.
    assert_eq!([writes[0].1[0].len(), writes[0].1[1].len(), writes[1].1[0].len()], [VNET_HDR, 54, VNET_HDR]);
    assert_eq!(rig.count(|c| &c.tx_copied_bytes), 54);
}

#[test]
fn large_segments_are_read_into_the_guests_memory_and_nothing_of_them_is_copied() {
    let mut rig = Rig::new(ALL, 1500, None);
    rig.post(256);
    let (frame, gso, with_header) = large(65_000);
    // The first one is not expected.
    rig.kernel.lock().unwrap().frames = vec![with_header.clone(); 11].into();
    rig.run();
    for number in 0..11 {
        let (bytes, got, _, extras) = rig.receive().unwrap();
        assert!(bytes == frame && got == Some(gso), "frame {number}");
        assert!(extras.iter().all(|kind| *kind == 1));
    }
    assert_eq!(rig.count(|c| &c.rx_straight), 11);
    assert_eq!(rig.count(|c| &c.rx_copied), 0);
    // The beginnings of the first two, which were read at once.
    assert_eq!(rig.count(|c| &c.rx_copied_bytes), 2 * 2048);
    let kernel = rig.kernel.lock().unwrap();
    let straight: Vec<_> = kernel.log.iter().filter(|(_, places)| places[1].len() != 2048).collect();
    assert!(straight.len() >= 9);
    for (_, places) in straight {
        let (first, rest) = places.split_first().unwrap();
        let (last, pages) = rest.split_last().unwrap();
        assert_eq!((first.len(), last.len()), (VNET_HDR, 1), "the header, and where too long a frame shows");
        assert!(pages.iter().all(|place| rig.is_guests(place)));
        assert!(pages.iter().map(Range::len).sum::<usize>() >= 65_535 + 14 + 8);
    }
}

#[test]
fn small_frames_are_read_many_at_once_and_copied_once() {
    for features in [ALL, Features { sg: true, csum4: true, ..Features::default() }, Features::default()] {
        let mut rig = Rig::new(features, 1500, None);
        rig.post(256);
        let frames: Vec<_> = (0..120).map(|number| plain(60 + number * 12)).collect();
        rig.kernel.lock().unwrap().frames = frames.iter().map(|frame| with_plain_header(frame)).collect();
        rig.run();
        for frame in &frames {
            assert_eq!(rig.receive().unwrap(), (frame.clone(), None, 1, vec![]));
        }
        assert_eq!(rig.receive(), None);
        let bytes: usize = frames.iter().map(Vec::len).sum();
        assert_eq!((rig.count(|c| &c.rx_copied), rig.count(|c| &c.rx_straight)), (120, 0));
        assert_eq!(rig.count(|c| &c.rx_copied_bytes), bytes as u64);
        // What would not fit the memory of ours would have gone to the guest's.
        let kernel = rig.kernel.lock().unwrap();
        for (_, places) in &kernel.log {
            assert_eq!([places[0].len(), places[1].len()], [VNET_HDR, 2048]);
            assert!(places[2..places.len() - 1].iter().all(|place| rig.is_guests(place)));
        }
    }
}

#[test]
fn large_frames_among_small_ones_are_where_they_belong() {
    let mut rig = Rig::new(ALL, 1500, None);
    rig.post(250);
    // So that many are read at once.
    let small: Vec<_> = (0..12).map(|number| plain(100 + number)).collect();
    rig.kernel.lock().unwrap().frames = small.iter().map(|frame| with_plain_header(frame)).collect();
    rig.run();
    small.iter().for_each(|frame| assert_eq!(rig.receive().unwrap().0, *frame));
    let payloads = [None, Some(3000), Some(65_000), None, None, Some(2000), Some(40_000), None];
    let frames = (0..).zip(payloads).map(|(number, payload)| match payload {
        None => (plain(80 + number), None, with_plain_header(&plain(80 + number))),
        Some(payload) => {
            let (frame, gso, with_header) = large(payload);
            (frame, Some(gso), with_header)
        }
    });
    let frames: Vec<_> = frames.collect();
    rig.kernel.lock().unwrap().frames = frames.iter().map(|frame| frame.2.clone()).collect();
    rig.run();
    for (number, (frame, gso, _)) in frames.iter().enumerate() {
        let (bytes, got, ..) = rig.receive().unwrap_or_else(|| panic!("frame {number} is missing"));
        assert!(bytes == *frame && got == *gso, "frame {number}: {} bytes, {got:?}", bytes.len());
    }
    // Each large one lost at most its first bytes to the copy.
    assert!(rig.count(|c| &c.rx_copied_bytes) <= 20 * 2048);
    assert_eq!(rig.count(|c| &c.rx_drops), 0);
}

#[test]
fn frames_that_no_mtu_allows_are_dropped_once_and_then_read_straight() {
    let mut rig = Rig::new(ALL, 1500, None);
    rig.post(250);
    let frames: Vec<_> = [100, 9000, 9000, 101].map(|len| with_plain_header(&plain(len))).into();
    rig.kernel.lock().unwrap().frames = [&frames[..], &frames[1..]].concat().into();
    rig.run();
    let mut got = Vec::new();
    while let Some((bytes, _, slots, _)) = rig.receive() {
        assert!(bytes == plain(bytes.len()) && slots <= 5);
        got.push(bytes.len());
    }
    let (lost, straight) = (rig.count(|c| &c.rx_drops), rig.count(|c| &c.rx_straight));
    assert!(lost <= 2 && straight >= 2, "{lost} lost, {straight} straight, {got:?}");
    assert_eq!(got.len() as u64, 7 - lost);
}

#[test]
fn a_headroom_is_left_free_and_said_with_each_frame() {
    let mut rig = Rig::new(ALL, 1500, None);
    rig.settings.set_headroom(256);
    rig.post(250);
    let (frame, gso, with_header) = large(60_000);
    let small = plain(300);
    rig.kernel.lock().unwrap().frames =
        vec![with_plain_header(&small), with_header.clone(), with_header, with_plain_header(&small)].into();
    rig.run();
    assert_eq!(rig.receive().unwrap(), (small.clone(), None, 1, vec![5]));
    for _ in 0..2 {
        let (bytes, got, _, extras) = rig.receive().unwrap();
        assert!(bytes == frame && got == Some(gso) && extras.contains(&5) && extras.contains(&1));
    }
    assert_eq!(rig.receive().unwrap().3, [5]);
    let offset = rig.guest.read(rig.rx.frames[0], 64 + 2, 2);
    assert_eq!(offset, 256u16.to_le_bytes());
}

#[test]
fn pages_are_given_back_when_the_kernel_is_done_with_them_and_not_before() {
    let mut rig = Rig::new(ALL, 1500, None);
    rig.post(40);
    rig.transmit(&plain(9000), 0, None);
    rig.pair.hear_the_tap();
    assert_eq!(rig.pair.start().unwrap(), Sleep::Forever);
    assert!(!rig.pair.idle());
    let grefs: Vec<_> = (8..60).map(GrantRef).filter(|gref| rig.guest.grant_flags(*gref) & 8 != 0).collect();
    assert!(grefs.len() > 40, "{}", grefs.len());
    {
        let mut kernel = rig.kernel.lock().unwrap();
        (kernel.slow, kernel.in_use) = (5, grefs.clone());
        kernel.frames.push_back(with_plain_header(&plain(100)));
    }
    let Rig { guest, kernel, pair, .. } = rig;
    drop(pair);
    assert_eq!(kernel.lock().unwrap().waits_in_use, 5);
    assert!(grefs.iter().all(|gref| guest.grant_flags(*gref) & (8 | 16) == 0));
}

/// Packets of `size` bytes as fast as they may go, for 20 seconds of a clock that only this moves. Each sleep is longer
/// than asked for by `late`. Bytes that went.
fn limited(rate: Rate, size: usize, late: Duration) -> u64 {
    let mut rig = Rig::new(ALL, 1500, Some(rate));
    // Nothing else has a time.
    rig.post(40);
    let end = *rig.now.lock().unwrap() + Duration::from_secs(20);
    let page = rig.guest.alloc_page();
    let gref = rig.guest.grant(page, true);
    loop {
        let parts = size.div_ceil(PAGE);
        while rig.tx.req_prod.wrapping_sub(rig.tx.rsp_cons) as usize + parts <= 256 {
            for part in 0..parts {
                let len = if part == 0 { size } else { PAGE.min(size - part * PAGE) };
                let flags = if part + 1 < parts { TXF_MORE_DATA } else { 0 };
                let request = TxRequest { gref, offset: 0, flags, id: 1, size: len as u16 };
                rig.tx.put(&rig.guest, &request.emit());
            }
        }
        rig.tx.publish(&rig.guest);
        let sleep = rig.run();
        while rig.tx.take(&rig.guest, 4).is_some() {}
        rig.kernel.lock().unwrap().sent.clear();
        let mut now = rig.now.lock().unwrap();
        if let Sleep::For(time) = sleep {
            *now += time + late;
        }
        if *now >= end {
            break;
        }
    }
    rig.count(|c| &c.tx_bytes)
}

#[test]
fn a_limited_guest_sends_what_it_may_within_5_percent() {
    for (bytes_per_interval, interval_us, size) in [
        // 10Mb/s@50ms, 100Mb/s@50ms, 500kB/s@1s, 64 kB/s@20ms
        (62_500, 50_000, 1514),
        (62_500, 50_000, 61_440),
        (625_000, 50_000, 61_440),
        (500_000, 1_000_000, 1514),
        (1_280, 20_000, 1514),
    ] {
        let rate = Rate { bytes_per_interval, interval_us };
        let wanted = bytes_per_interval * 20_000_000 / u64::from(interval_us);
        for late in [0, 60, 2000] {
            let sent = limited(rate, size, Duration::from_micros(late));
            // And one interval's bytes at the start.
            let most = (wanted + bytes_per_interval) * 105 / 100;
            assert!(
                (wanted * 95 / 100..=most).contains(&sent),
                "{rate:?}, {size}: {sent} instead of {wanted}"
            );
        }
    }
}

#[test]
fn without_a_limit_and_without_packets_nothing_has_a_time() {
    let mut rig = Rig::new(ALL, 1500, Some(Rate { bytes_per_interval: 1000, interval_us: 50_000 }));
    rig.post(100);
    assert_eq!(rig.run(), Sleep::Forever);
    rig.transmit(&plain(1500), 0, None);
    assert_eq!(rig.run(), Sleep::Forever, "it went on credit");
    rig.transmit(&plain(1500), 0, None);
    assert!(matches!(rig.run(), Sleep::For(time) if time > Duration::from_millis(20)));
}
