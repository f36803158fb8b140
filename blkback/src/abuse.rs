//! What a hostile frontend may try, each thing by name. The engine of these tests fails when it is handed memory
//! that is neither the guest's nor a bounce buffer ([`Inline`]).

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use devices::xen::GrantRef;
use devices::xen::xenbus::BackendDevice;

use crate::protocol::Protocol;
use crate::queue::Queue;
use crate::testing::{
    BARRIER, DISCARD, FLUSH, Front, INDIRECT, Inline, Memory, READ, Segment, WRITE, config, sector_pattern,
    segment_list, wait_until, whole,
};
use crate::{BlockDevice, Disk};

const BOTH: [Protocol; 2] = [Protocol::X86_64, Protocol::X86_32];
const ERROR: i16 = -1;
const NOT_SUPPORTED: i16 = -2;

/// A frontend, a queue without a thread, and a disk.
struct Bench {
    memory: Arc<Memory>,
    front: Front,
    queue: Queue<Inline>,
}

fn bench_on(sectors: u64, protocol: Protocol, pages: usize, readonly: bool) -> Bench {
    let memory = Arc::new(Memory::new(sectors));
    let disk = Arc::new(Disk::new(&config(readonly), memory.backing()));
    let front = Front::with_rings(protocol, pages, 1);
    let queue = front.queue(&disk);
    Bench { memory, front, queue }
}

fn bench_of(protocol: Protocol, pages: usize, readonly: bool) -> Bench {
    bench_on(64, protocol, pages, readonly)
}

fn bench() -> Bench {
    bench_of(Protocol::X86_64, 1, false)
}

impl Bench {
    /// Publishes what was put and has it done: the status of each, in order.
    fn run(&mut self) -> Vec<i16> {
        self.front.publish();
        for _ in 0..8 {
            self.queue.pass();
        }
        assert!(self.queue.idle());
        std::iter::from_fn(|| self.front.take()).map(|response| response.2).collect()
    }

    /// What the storage was asked to do meanwhile.
    fn asked(&self) -> String {
        std::mem::take(&mut *self.memory.log.lock().unwrap())
    }

    /// An indirect request with this list.
    fn put_list(&mut self, op: u8, sector: u64, segments: &[Segment]) -> GrantRef {
        let (frame, list) = self.front.guest.granted_page();
        self.front.guest.write(frame, 0, &segment_list(segments));
        self.front.put_indirect(op, sector, u16::try_from(segments.len()).unwrap(), list);
        list
    }

    fn is_free(&self, gref: GrantRef) -> bool {
        self.front.guest.grant_flags(gref) & (8 | 16) == 0
    }
}

#[test]
fn xsa_155_a_request_that_changes_while_it_is_served_is_the_one_that_was_checked() {
    let mut bench = bench();
    let (frame, gref) = bench.front.guest.granted_page();
    bench.front.put(READ, 3, &[Segment { gref, first: 2, last: 2 }]);
    let list = bench.put_list(READ, 4, &[Segment { gref, first: 4, last: 4 }]);
    bench.front.publish();
    assert!(!bench.queue.pass());
    // Both were copied. Slot and list now say something else.
    let ring = bench.front.ring.frames[0];
    bench.front.guest.write(ring, 64 + 1, &[0xff; 7]);
    assert!(bench.is_free(list));
    assert_eq!(bench.run(), [0, 0]);
    assert!(bench.front.guest.read(frame, 1024, 512) == sector_pattern(3, 1));
    assert!(bench.front.guest.read(frame, 2048, 512) == sector_pattern(4, 1));
    for other in [0, 1, 3, 5, 6, 7] {
        assert!(bench.front.guest.read(frame, other * 512, 512) == [0; 512], "sector {other} of the page");
    }
}

#[test]
fn xsa_155_lists_and_entries_that_change_all_the_time_never_leave_the_granted_pages() {
    let mut bench = bench();
    let (frame, gref) = bench.front.guest.granted_page();
    let canary = bench.front.guest.alloc_page();
    bench.front.guest.write(canary, 0, &[0x5a; 4096]);
    let (list_frame, list) = bench.front.guest.granted_page();
    let good = segment_list(&[Segment { gref, first: 0, last: 0 }]);
    let bad = segment_list(&[Segment { gref, first: 7, last: 200 }]);
    let (stop, ram) = (AtomicBool::new(false), Arc::clone(&bench.front.guest.ram));
    let entries = bench.front.ring.frames[0] * 4096 + 64;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use vm_memory::{Bytes, GuestAddress};
            while !stop.load(Relaxed) {
                for (list, count) in [(&good, 1u8), (&bad, 200)] {
                    ram.write_slice(list, GuestAddress(list_frame * 4096)).unwrap();
                    for slot in 0..32 {
                        ram.write_slice(&[count], GuestAddress(entries + slot * 112 + 2)).unwrap();
                    }
                }
            }
        });
        let mut done = 0;
        // The other thread may begin late: one request at least is to meet a good list.
        let mut good_ones = 0;
        let mut rounds = 0;
        while rounds < 2000 || good_ones == 0 && rounds < 2_000_000 {
            bench.front.put_indirect(READ, rounds % 56, 1, list);
            rounds += 1;
            bench.front.publish();
            bench.queue.pass();
            while let Some((_, _, status)) = bench.front.take() {
                assert!(status == 0 || status == ERROR);
                done += 1;
                good_ones += u64::from(status == 0);
            }
        }
        stop.store(true, Relaxed);
        assert_eq!(done, rounds);
    });
    assert!(bench.front.guest.read(canary, 0, 4096) == [0x5a; 4096]);
    assert!(bench.front.guest.read(frame, 0, 512) != [0; 512], "not one request was good");
}

#[test]
fn xsa_197_an_index_that_jumps_breaks_the_ring_before_anything_is_read_from_it() {
    for pages in [1, 16] {
        let size = 32 * u32::try_from(pages).unwrap();
        for jump in [size + 1, size * 2, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            let mut bench = bench_of(Protocol::X86_64, pages, false);
            let (_, gref) = bench.front.guest.granted_page();
            bench.front.put(READ, 0, &[whole(gref)]);
            bench.front.publish();
            bench.queue.pass();
            assert_eq!(bench.front.take().unwrap().2, 0);
            bench.asked();
            // Forwards, and with the last two backwards.
            bench.front.ring.req_prod = bench.front.ring.req_prod.wrapping_add(jump);
            bench.front.publish();
            bench.queue.pass();
            assert!(bench.queue.is_broken(), "{jump:#x}");
            assert_eq!((bench.asked().as_str(), bench.front.take()), ("", None));
            assert!(bench.queue.idle());
        }
    }
}

#[test]
fn xsa_197_the_backend_does_not_believe_its_own_indexes_in_the_page() {
    let mut bench = bench();
    let (_, gref) = bench.front.guest.granted_page();
    let ring = bench.front.ring.frames[0];
    for round in 0..40 {
        bench.front.put(READ, 0, &[whole(gref)]);
        // req_event and rsp_prod.
        bench.front.guest.write(ring, 4, &(round * 77u32).to_le_bytes());
        bench.front.guest.write(ring, 8, &(round * 55u32).to_le_bytes());
        bench.front.ring.publish(&bench.front.guest);
        bench.queue.pass();
        assert_eq!(bench.front.guest.read_u32(ring, 8), round + 1);
    }
    assert!(!bench.queue.is_broken());
    assert_eq!(bench.asked().len(), 40);
}

#[test]
fn xsa_216_a_response_shows_nothing_but_itself() {
    for protocol in BOTH {
        let mut bench = bench_of(protocol, 1, false);
        let ring = bench.front.ring.frames[0];
        let size = protocol.entry_size();
        for (slot, op) in [(0, 98), (1, 99)] {
            bench.front.put(op, 0, &[]);
            // The request has other things where a response has padding.
            bench.front.guest.write(ring, 64 + slot * size + 9, &[0xee; 7]);
        }
        assert_eq!(bench.run(), [NOT_SUPPORTED; 2]);
        for (slot, op) in [(0, 98), (1, 99)] {
            let response = bench.front.guest.read(ring, 64 + slot * size, 16);
            assert_eq!(response[8..], [op, 0, 0xfe, 0xff, 0, 0, 0, 0], "{protocol:?}");
        }
    }
}

#[test]
fn xsa_332_a_storm_of_events_costs_its_sender_and_stops_nobody() {
    let (memory, other) = (Arc::new(Memory::new(64)), Arc::new(Memory::new(64)));
    let mut device = BlockDevice::new(config(false), memory.backing());
    let mut front = Front::new(Protocol::X86_64);
    front.connect(&mut device);
    let mut neighbour = BlockDevice::new(config(false), other.backing());
    let mut quiet = Front::new(Protocol::X86_64);
    quiet.connect(&mut neighbour);
    let (_, gref) = front.guest.granted_page();
    let (_, quiet_gref) = quiet.guest.granted_page();
    const STORM: u64 = 20_000;
    for event in 0..STORM {
        front.guest.send(front.port);
        if event % 1000 == 0 {
            assert_eq!(quiet.request(READ, 0, &[whole(quiet_gref)]), 0);
        }
    }
    assert_eq!(front.request(READ, 0, &[whole(gref)]), 0);
    let counters = device.disk().counters();
    assert!(counters.wakeups.load(Relaxed) <= STORM + 10, "more wake-ups than events");
    assert_eq!(counters.requests.load(Relaxed), 1);
    assert_eq!(front.guest.raises(), 1);
}

#[test]
fn xsa_350_connecting_and_disconnecting_at_once_with_requests_under_way_leaks_nothing() {
    for queues in [1, 4] {
        let memory = Arc::new(Memory::new(64));
        let mut device = BlockDevice::new(config(false), memory.backing());
        let mut front = Front::with_rings(Protocol::X86_64, 2, queues);
        let (_, gref) = front.guest.granted_page();
        for round in 0..60 {
            front.connect(&mut device);
            for sector in 0..20 {
                front.put(if sector % 2 == 0 { WRITE } else { READ }, sector, &[whole(gref)]);
            }
            front.publish();
            device.disconnect();
            // The frontend is there again before the former connection has ended.
            if round % 3 == 0 && !device.is_stopped() {
                assert!(device.connect(&front.guest, &front.guest.domain).is_err());
            }
            device.disconnect();
            wait_until("the queues did not stop", || device.is_stopped());
            let others = front.others.iter().flat_map(|queue| &queue.ring.refs);
            for gref in front.ring.refs.iter().chain(others).chain([&gref]) {
                assert_eq!(front.guest.grant_flags(*gref), 1, "round {round}");
            }
            let others = front.others.iter_mut().map(|queue| &mut queue.ring);
            for ring in std::iter::once(&mut front.ring).chain(others) {
                // A new driver on the same pages: it begins where the page says.
                let rsp_prod = ring.rsp_prod(&front.guest);
                front.guest.write(ring.frames[0], 0, &rsp_prod.to_le_bytes());
                (ring.req_prod, ring.rsp_cons) = (rsp_prod, rsp_prod);
            }
        }
    }
}

#[test]
fn xsa_350_a_device_that_is_dropped_while_it_serves_ends_first() {
    for _ in 0..50 {
        let memory = Arc::new(Memory::new(64));
        let mut device = BlockDevice::new(config(false), memory.backing());
        let mut front = Front::with_rings(Protocol::X86_64, 1, 2);
        front.connect(&mut device);
        let (_, gref) = front.guest.granted_page();
        for sector in 0..32 {
            front.put(READ, sector, &[whole(gref)]);
        }
        front.publish();
        drop(device);
        assert_eq!(front.guest.grant_flags(gref), 1);
        assert_eq!(Arc::strong_count(&memory), 1);
    }
}

#[test]
fn a_segment_outside_its_page_is_refused_before_anything_is_touched() {
    for protocol in BOTH {
        let mut bench = bench_of(protocol, 1, false);
        let (frame, gref) = bench.front.guest.granted_page();
        for (first, last) in [(1, 0), (7, 6), (0, 8), (8, 8), (0, 255), (255, 0), (255, 255)] {
            let segments = [whole(gref), Segment { gref, first, last }];
            for op in [READ, WRITE, FLUSH, BARRIER] {
                bench.front.put(op, 0, &segments);
            }
            bench.put_list(READ, 0, &segments);
            bench.put_list(WRITE, 0, &segments);
            assert_eq!(bench.run(), [ERROR; 6], "{first}..={last}");
        }
        assert_eq!(bench.asked(), "");
        assert!(bench.front.guest.read(frame, 0, 4096) == [0; 4096]);
        assert!(bench.is_free(gref));
    }
}

#[test]
fn counts_of_segments_that_are_not_possible_are_refused() {
    for protocol in BOTH {
        let mut bench = bench_of(protocol, 1, false);
        let (_, gref) = bench.front.guest.granted_page();
        for count in [0, 12, 13, 255] {
            bench.front.put(READ, 0, &vec![whole(gref); count]);
            bench.front.put(WRITE, 0, &vec![whole(gref); count]);
        }
        let (frame, list) = bench.front.guest.granted_page();
        bench.front.guest.write(frame, 0, &segment_list(&vec![Segment { gref, first: 0, last: 0 }; 512]));
        for count in [0, 257, 512, 513, 4096, u16::MAX] {
            bench.front.put_indirect(READ, 0, count, list);
        }
        assert_eq!(bench.run(), [ERROR; 14]);
        assert_eq!(bench.asked(), "");
        // All it can have, and one.
        bench.front.put_indirect(READ, 0, 1, list);
        bench.front.put(READ, 0, &[Segment { gref, first: 0, last: 0 }; 11]);
        assert_eq!(bench.run(), [0, 0]);
    }
}

#[test]
fn grants_that_do_not_permit_it_are_refused_in_every_place() {
    let mut bench = bench();
    let (frame, good) = bench.front.guest.granted_page();
    let target = bench.front.guest.alloc_page();
    let guest = &mut bench.front.guest;
    let readonly = guest.grant(target, true);
    let bad = [
        // Never granted, past the table, of the console and xenstore, and the largest number.
        GrantRef(300),
        GrantRef(100_000),
        GrantRef(0),
        GrantRef(u32::MAX),
        GrantRef(400),
        GrantRef(401),
        GrantRef(402),
        GrantRef(403),
    ];
    // To another domain; a transfer, as it once was; a part of a page; a frame that is not RAM.
    guest.set_grant(GrantRef(400), 1, 7, target);
    guest.set_grant(GrantRef(401), 2, 0, target);
    guest.set_grant(GrantRef(402), 1 | 256, 0, target);
    guest.set_grant(GrantRef(403), 1, 0, 1 << 30);
    for gref in bad {
        bench.front.put(READ, 0, &[whole(good), whole(gref)]);
        bench.front.put(WRITE, 0, &[whole(gref)]);
        bench.front.put(FLUSH, 0, &[whole(gref)]);
        bench.put_list(READ, 0, &[whole(good), whole(gref)]);
        bench.front.put_indirect(READ, 0, 1, gref);
        assert_eq!(bench.run(), [ERROR; 5], "{gref:?}");
        assert!(bench.is_free(good));
    }
    // A read-only grant is no destination, but it may be written from and hold a list.
    bench.front.put(READ, 0, &[whole(readonly)]);
    bench.put_list(READ, 0, &[whole(readonly)]);
    assert_eq!(bench.run(), [ERROR; 2]);
    assert_eq!(bench.asked(), "");
    assert!(bench.front.guest.read(frame, 0, 4096) == [0; 4096]);
    bench.front.guest.write(target, 0, &segment_list(&[whole(good)]));
    bench.front.put(WRITE, 8, &[whole(readonly)]);
    bench.front.put_indirect(READ, 0, 1, readonly);
    assert_eq!(bench.run(), [0, 0]);
}

#[test]
fn a_bad_grant_at_the_end_of_256_gives_back_all_before_it() {
    let mut bench = bench_on(256, Protocol::X86_64, 1, false);
    let pages: Vec<_> = (0..255).map(|_| bench.front.guest.granted_page().1).collect();
    let small = |gref: &GrantRef| Segment { gref: *gref, first: 0, last: 0 };
    let segments: Vec<_> = pages.iter().chain([&GrantRef(u32::MAX)]).map(small).collect();
    let list = bench.put_list(READ, 0, &segments);
    assert_eq!(bench.run(), [ERROR]);
    assert_eq!(bench.asked(), "");
    assert!(pages.iter().chain([&list]).all(|gref| bench.front.guest.grant_flags(*gref) == 1));
}

#[test]
fn a_list_in_the_rings_own_page_is_read_once_and_harms_only_its_ring() {
    let mut bench = bench();
    let ring = bench.front.ring.refs[0];
    let (_, gref) = bench.front.guest.granted_page();
    // The page begins with req_prod and req_event: as a list that is a grant of one sector.
    bench.front.put_indirect(READ, 0, 256, ring);
    bench.front.put(READ, 0, &[whole(gref)]);
    let statuses = bench.run();
    assert_eq!(statuses.len(), 2);
    assert_eq!(statuses[1], 0);
    assert!(!bench.queue.is_broken());
}

#[test]
fn a_list_that_the_request_itself_overwrites_was_copied_before() {
    let mut bench = bench();
    let (frame, list) = bench.front.guest.granted_page();
    bench.front.guest.write(frame, 0, &segment_list(&[whole(list), whole(list)]));
    bench.front.put_indirect(READ, 8, 2, list);
    assert_eq!(bench.run(), [0]);
    assert!(bench.front.guest.read(frame, 0, 512) == sector_pattern(16, 1), "the second part is last");
    assert!(bench.is_free(list));
}

#[test]
fn data_that_is_read_into_the_ring_harms_only_that_ring() {
    let mut bench = bench();
    let (canary_frame, _) = bench.front.guest.granted_page();
    let ring = bench.front.ring.refs[0];
    bench.front.put(READ, 0, &[whole(ring)]);
    bench.front.publish();
    for _ in 0..100 {
        bench.queue.pass();
    }
    assert!(bench.queue.idle());
    assert!(bench.front.guest.read(canary_frame, 0, 4096) == [0; 4096]);
    drop(bench.queue);
    assert_eq!(bench.front.guest.grant_flags(ring), 1);
}

#[test]
fn a_grant_that_is_taken_back_while_it_is_used_stays_the_page_it_was() {
    let mut bench = bench();
    let (frame, gref) = bench.front.guest.granted_page();
    let other = bench.front.guest.alloc_page();
    let ring = bench.front.ring.refs[0];
    let id = bench.front.put(READ, 9, &[whole(gref)]);
    bench.front.publish();
    // The grants of data and ring are torn away behind the backend's back, flags and all.
    bench.front.guest.set_grant(ring, 0, 0, other);
    bench.queue.pass();
    bench.front.guest.set_grant(gref, 1, 0, other);
    assert_eq!(bench.front.take(), Some((id, READ, 0)));
    assert!(bench.front.guest.read(frame, 0, 512) == sector_pattern(9, 1));
    assert!(bench.front.guest.read(other, 0, 4096) == [0; 4096]);
}

#[test]
fn an_indirect_request_holds_reads_and_writes_and_nothing_else() {
    for protocol in BOTH {
        let mut bench = bench_of(protocol, 1, false);
        let (_, gref) = bench.front.guest.granted_page();
        for op in [BARRIER, FLUSH, 4, DISCARD, INDIRECT, 7, 255] {
            bench.put_list(op, 0, &[whole(gref)]);
        }
        assert_eq!(bench.run(), [ERROR; 7]);
        assert_eq!(bench.asked(), "");
    }
}

#[test]
fn data_past_the_end_is_refused_however_the_sum_overflows() {
    for protocol in BOTH {
        let mut bench = bench_of(protocol, 1, false);
        let (_, gref) = bench.front.guest.granted_page();
        for sector in [57, 64, 1 << 32, 1 << 55, (1 << 55) - 1, u64::MAX, u64::MAX - 7, 1 << 63] {
            bench.front.put(READ, sector, &[whole(gref)]);
            bench.front.put(WRITE, sector, &[whole(gref)]);
            bench.put_list(WRITE, sector, &[whole(gref)]);
            bench.front.put(BARRIER, sector, &[whole(gref)]);
            assert_eq!(bench.run(), [ERROR; 4], "sector {sector:#x}");
        }
        assert_eq!(bench.asked(), "");
        bench.front.put(WRITE, 56, &[whole(gref)]);
        assert_eq!(bench.run(), [0]);
    }
}

#[test]
fn a_discard_past_the_end_or_of_nothing_frees_nothing() {
    for protocol in BOTH {
        let mut bench = bench_of(protocol, 1, false);
        let ranges = [
            (57, 8),
            (64, 1),
            (0, 65),
            (0, 0),
            (8, u64::MAX),
            (u64::MAX, 1),
            (u64::MAX, u64::MAX),
            (1 << 55, 1 << 55),
            (1, 1 << 55),
        ];
        for (sector, count) in ranges {
            bench.front.put_discard(0, sector, count);
        }
        assert_eq!(bench.run(), [ERROR; 9]);
        bench.front.put_discard(1, 0, 8);
        assert_eq!(bench.run(), [NOT_SUPPORTED], "secure");
        assert_eq!(bench.asked(), "");
        bench.front.put_discard(0xfe, 0, 64);
        assert_eq!(bench.run(), [0], "other flags mean nothing");
        assert_eq!(*bench.memory.discarded.lock().unwrap(), [(0, 64 * 512)]);
    }
}

#[test]
fn nothing_changes_a_read_only_disk() {
    let mut bench = bench_of(Protocol::X86_64, 1, true);
    let (_, gref) = bench.front.guest.granted_page();
    for op in [WRITE, BARRIER, FLUSH] {
        bench.front.put(op, 0, &[whole(gref)]);
    }
    bench.put_list(WRITE, 0, &[whole(gref)]);
    assert_eq!(bench.run(), [ERROR; 4]);
    // It was not offered.
    bench.front.put_discard(0, 0, 8);
    assert_eq!(bench.run(), [NOT_SUPPORTED]);
    assert_eq!(bench.asked(), "");
    assert!(bench.memory.sectors(0, 1) == sector_pattern(0, 1));
}

#[test]
fn operations_that_do_not_exist_are_answered_as_such() {
    let mut bench = bench();
    let (_, gref) = bench.front.guest.granted_page();
    for op in [4, 7, 8, 127, 128, 255] {
        bench.front.put(op, 0, &[whole(gref)]);
    }
    assert_eq!(bench.run(), [NOT_SUPPORTED; 6]);
    assert_eq!(bench.asked(), "");
}

#[test]
fn a_port_that_is_closed_while_requests_are_under_way_is_not_notified() {
    let mut bench = bench();
    let (_, gref) = bench.front.guest.granted_page();
    bench.front.put(READ, 0, &[whole(gref)]);
    bench.front.publish();
    bench.front.guest.domain.events.close(bench.front.port).unwrap();
    bench.queue.pass();
    assert_eq!(bench.front.take().unwrap().2, 0);
    assert_eq!(bench.front.guest.raises(), 0);
}

#[test]
fn one_broken_ring_leaves_the_other_queues_of_the_disk() {
    let memory = Arc::new(Memory::new(64));
    let mut device = BlockDevice::new(config(false), memory.backing());
    let mut front = Front::with_rings(Protocol::X86_64, 1, 2);
    front.connect(&mut device);
    let (_, gref) = front.guest.granted_page();
    front.ring.req_prod = 1000;
    front.publish();
    front.guest.send(front.port);
    let broken = front.ring.refs[0];
    wait_until("the broken ring is in use", || front.guest.grant_flags(broken) == 1);
    let other = &mut front.others[0];
    std::mem::swap(&mut front.ring, &mut other.ring);
    std::mem::swap(&mut front.port, &mut other.port);
    assert_eq!(front.request(READ, 0, &[whole(gref)]), 0);
    assert!(!device.is_stopped());
    device.disconnect();
    wait_until("the queues did not stop", || device.is_stopped());
}

#[test]
fn requests_of_the_largest_kind_in_every_slot_of_the_largest_ring_are_bounded_and_done() {
    let memory = Arc::new(Memory::new(2048));
    let disk = Arc::new(Disk::new(&config(false), memory.backing()));
    let mut front = Front::with_rings(Protocol::X86_64, 16, 1);
    let mut queue = front.queue(&disk);
    let (frame, list) = front.guest.granted_page();
    let (_, gref) = front.guest.granted_page();
    // One page 256 times: pinned 512 times as often, which is more than can be counted.
    front.guest.write(frame, 0, &segment_list(&vec![whole(gref); 256]));
    for _ in 0..512 {
        front.put_indirect(READ, 0, 256, list);
    }
    front.publish();
    queue.pass();
    let statuses: Vec<_> = std::iter::from_fn(|| front.take()).map(|response| response.2).collect();
    assert_eq!(statuses.len(), 512);
    assert!(statuses.iter().filter(|status| **status == 0).count() >= 100);
    assert!(queue.idle());
    assert_eq!(front.guest.grant_flags(gref), 1);
}
