#![allow(clippy::unwrap_used)]
use devices::xen::GrantRef;

use super::*;
use crate::DiskImage;
use crate::engine::IoVec;
use crate::testing::{
    BARRIER, DISCARD, FLUSH, Front, INDIRECT, Memory, READ, Segment, WRITE, config, image, sector_pattern,
    segment_list, wait_until, whole,
};

fn disk(sectors: u64) -> (tempfile::NamedTempFile, Arc<Disk>) {
    let file = image(sectors);
    let image = DiskImage::open(file.path(), false).unwrap();
    (file, Arc::new(Disk::new(&config(false), image)))
}

/// A disk in memory, with a configuration of the test's own.
fn memory(sectors: u64, change: impl FnOnce(&mut crate::DiskConfig)) -> (Arc<Memory>, Arc<Disk>) {
    let memory = Arc::new(Memory::new(sectors));
    let mut config = config(false);
    change(&mut config);
    let disk = Arc::new(Disk::new(&config, memory.backing()));
    (memory, disk)
}

fn statuses(front: &mut Front) -> Vec<i16> {
    std::iter::from_fn(|| front.take()).map(|r| r.2).collect()
}

#[test]
fn a_batch_is_answered_with_one_notification() {
    let (_file, disk) = disk(64);
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    let (_, gref) = front.guest.granted_page();
    for sector in 0..10 {
        front.put(READ, sector, &[whole(gref)]);
    }
    front.put(FLUSH, 0, &[]);
    front.publish();
    assert!(!queue.pass());
    assert_eq!(statuses(&mut front), [0; 11]);
    assert_eq!(front.guest.raises(), 1);
    assert!(queue.idle());
}

#[test]
fn a_frontend_that_asks_for_no_event_gets_none() {
    let (_file, disk) = disk(64);
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    let (_, gref) = front.guest.granted_page();
    // rsp_event lies behind: the frontend is still working on older responses.
    front.guest.write(front.ring.frames[0], 12, &0u32.to_le_bytes());
    front.put(READ, 0, &[whole(gref)]);
    front.publish();
    queue.pass();
    assert_eq!(front.guest.raises(), 0);
    assert_eq!(statuses(&mut front), [0]);
}

#[test]
fn a_frontend_is_asked_for_an_event_before_the_queue_sleeps() {
    let (_file, disk) = disk(64);
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    front.put(FLUSH, 0, &[]);
    front.publish();
    assert!(!queue.pass());
    assert_eq!(front.guest.read_u32(front.ring.frames[0], 4), front.ring.req_prod + 1);
}

#[test]
fn the_request_is_copied_before_it_is_checked() {
    let (_file, disk) = disk(64);
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    let (_, gref) = front.guest.granted_page();
    front.put(READ, 0, &[whole(gref)]);
    front.publish();
    assert_eq!(queue.take_requests(), Sleep::Forever);
    // The slot now belongs to the backend; what the frontend does to it changes nothing.
    front.guest.write(front.ring.frames[0], 64, &[0xff; 112]);
    queue.pass();
    let (id, op, status) = front.take().unwrap();
    assert_eq!((id, op, status), (1000, READ, 0));
}

#[test]
fn an_overrun_breaks_the_ring_and_nothing_else() {
    let (_file, disk) = disk(64);
    for ahead in [33, 1000, 0x8000_0000, u32::MAX] {
        let mut front = Front::new(Protocol::X86_64);
        let mut queue = front.queue(&disk);
        front.ring.req_prod = ahead;
        front.ring.publish(&front.guest);
        assert!(!queue.pass(), "{ahead}");
        assert!(queue.is_broken(), "{ahead}");
        assert_eq!(front.ring.rsp_prod(&front.guest), 0);
    }
    assert_eq!(disk.counters().requests.load(Relaxed), 0);
}

#[test]
fn a_ring_full_of_rubbish_is_refused_request_by_request() {
    let (_file, disk) = disk(64);
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    for _ in 0..10 {
        for byte in 0..32u8 {
            front.ring.put(&front.guest, &[byte.wrapping_mul(37) | 0x80; 112]);
        }
        front.publish();
        // A full ring might have been followed by more.
        queue.pass();
        assert_eq!(statuses(&mut front), [-2; 32]);
    }
    assert!(!queue.is_broken());
    assert_eq!(disk.counters().errors.load(Relaxed), 320);
}

#[test]
fn the_engine_on_threads_serves_sleeps_and_stops() {
    let (_file, disk) = disk(64);
    let mut front = Front::new(Protocol::X86_64);
    let (queue, wake) = front.queue_with_stop(&disk);
    let stop = AtomicBool::new(false);
    let (frame, gref) = front.guest.granted_page();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| queue.run(&stop));
        for sector in 0..50 {
            assert_eq!(front.request(READ, sector, &[Segment { gref, first: 0, last: 0 }]), 0);
            assert!(front.guest.read(frame, 0, 512) == sector_pattern(sector, 1));
        }
        assert_eq!(front.request(FLUSH, 0, &[]), 0);
        assert!(!thread.is_finished());
        stop.store(true, SeqCst);
        wake.write(1).unwrap();
    });
    assert_eq!(front.guest.grant_flags(front.ring.refs[0]), 1);
}

/// A generator of numbers that are the same in every run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn a_frontend_that_writes_anything_anywhere_harms_only_itself() {
    let (_memory, disk) = memory(64, |_| {});
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    for round in 0..100 {
        let protocol = if round % 2 == 0 { Protocol::X86_64 } else { Protocol::X86_32 };
        let mut front = Front::with_rings(protocol, 1 << (round % 3), 1);
        let grefs: Vec<_> = (0..4).map(|_| front.guest.granted_page().1).collect();
        let (list_frame, list) = front.guest.granted_page();
        let mut queue = front.queue(&disk);
        for _ in 0..numbers.below(8) {
            for _ in 0..numbers.below(u64::from(front.ring.nr_entries()) + 1) {
                let (op, sector) = (u8::try_from(numbers.below(8)).unwrap(), numbers.below(70));
                let segments: Vec<_> = (0..numbers.below(13))
                    .map(|_| Segment {
                        gref: match numbers.below(10) {
                            0 => GrantRef(u32::try_from(numbers.below(1 << 32)).unwrap()),
                            n => grefs[usize::try_from(n).unwrap() % 4],
                        },
                        first: u8::try_from(numbers.below(3)).unwrap(),
                        last: u8::try_from(numbers.below(9)).unwrap(),
                    })
                    .collect();
                match op {
                    INDIRECT => {
                        front.guest.write(list_frame, 0, &segment_list(&segments));
                        let count = u16::try_from(numbers.below(14)).unwrap();
                        let op = u8::try_from(numbers.below(3)).unwrap();
                        front.put_indirect(op, sector, count, list);
                    }
                    DISCARD => {
                        front.put_discard(u8::from(numbers.below(5) == 0), sector, numbers.below(20));
                    }
                    op => {
                        front.put(op, sector, &segments);
                    }
                }
            }
            if numbers.below(20) == 0 {
                let at = numbers.below(4096 - 8);
                let junk = numbers.below(u64::MAX).to_le_bytes();
                front.guest.write(front.ring.frames[0], usize::try_from(at).unwrap(), &junk);
            }
            front.publish();
            // A barrier holds back what follows it, for some passes each.
            for _ in 0..2000 {
                queue.pass();
            }
            while front.take().is_some_and(|_| front.ring.rsp_cons != front.ring.req_prod) {}
        }
        assert!(queue.idle());
        drop(queue);
        for gref in grefs {
            assert_eq!(front.guest.grant_flags(gref), 1, "round {round}");
        }
    }
    let counters = disk.counters();
    for (name, value) in counters.list() {
        let never = ["bounces", "throttled", "held", "wakeups"].contains(&name);
        assert_eq!(value == 0, never, "{name} is {value} after all rounds");
    }
}

/// Does at most `step` bytes of each operation, on memory.
struct Reluctant {
    image: Vec<u8>,
    step: usize,
    done: Vec<Completion>,
    interrupts: u32,
}

impl Engine for Reluctant {
    unsafe fn start(&mut self, token: u16, op: Op, offset: u64, buffers: &[IoVec]) {
        if self.interrupts > 0 {
            self.interrupts -= 1;
            return self.done.push(Completion { token, result: Err(libc::EINTR) });
        }
        let (offset, mut bytes) = (usize::try_from(offset).unwrap(), 0);
        for buffer in buffers {
            let len = buffer.size().min(self.step - bytes);
            let part = &mut self.image[offset + bytes..offset + bytes + len];
            match op {
                // SAFETY: the caller's buffers are valid.
                Op::Read => unsafe { buffer.base().copy_from(part.as_ptr(), len) },
                // SAFETY: as above.
                Op::Write => unsafe { buffer.base().copy_to(part.as_mut_ptr(), len) },
                Op::Flush | Op::Discard(_) => {}
            }
            bytes += len;
        }
        self.done.push(Completion { token, result: Ok(bytes) });
    }
    fn wait(&mut self, _sleep: Sleep) -> std::io::Result<()> {
        Ok(())
    }
    fn completions(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }
}

fn reluctant(front: &Front, disk: &Arc<Disk>, step: usize, interrupts: u32) -> Queue<Reluctant> {
    let image = std::fs::read(disk.path()).unwrap();
    front.queue_on(disk, |_, _| Reluctant { image, step, done: Vec::new(), interrupts }).0
}

#[test]
fn an_operation_that_is_done_in_pieces_is_continued() {
    let (_file, disk) = disk(64);
    for step in [512, 1000, 4096, 5000] {
        let mut front = Front::new(Protocol::X86_64);
        let mut queue = reluctant(&front, &disk, step, 0);
        let pages: Vec<_> = (0..3).map(|_| front.guest.granted_page()).collect();
        // The pages are not in the order of memory, or they would be one piece.
        let segments: Vec<_> = pages.iter().rev().map(|(_, gref)| whole(*gref)).collect();
        front.put(READ, 8, &segments);
        front.publish();
        let passes = std::iter::repeat_with(|| queue.pass()).take_while(|_| front.take().is_none()).count();
        assert!(passes > 0, "done at once");
        for (i, (frame, _)) in (0u64..).zip(pages.iter().rev()) {
            for s in 0..8usize {
                let expected = sector_pattern(8 + i * 8 + s as u64, 1);
                assert!(front.guest.read(*frame, s * 512, 512) == expected, "step {step}, page {i}");
            }
        }
    }
}

#[test]
fn an_interrupted_operation_is_tried_again_but_not_for_ever() {
    let (_file, disk) = disk(64);
    for (interrupts, status) in [(3, 0), (1000, -1)] {
        let mut front = Front::new(Protocol::X86_64);
        let mut queue = reluctant(&front, &disk, 4096, interrupts);
        let (_, gref) = front.guest.granted_page();
        front.put(READ, 8, &[whole(gref)]);
        front.publish();
        for _ in 0..20 {
            queue.pass();
        }
        assert_eq!(statuses(&mut front), [status]);
        assert_eq!(front.guest.grant_flags(gref), 1);
    }
}

#[test]
fn an_indirect_request_of_256_scattered_pages_keeps_their_order() {
    let (_memory, disk) = memory(4096, |_| {});
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    let mut pages: Vec<_> = (0..256).map(|_| front.guest.granted_page()).collect();
    pages.reverse();
    let (frame, list) = front.guest.granted_page();
    let segments: Vec<_> = pages.iter().map(|(_, gref)| whole(*gref)).collect();
    front.guest.write(frame, 0, &segment_list(&segments));
    let id = front.put_indirect(READ, 9, 256, list);
    front.publish();
    queue.pass();
    assert_eq!(front.take(), Some((id, READ, 0)));
    for (page, (frame, gref)) in (0u64..).zip(&pages) {
        for s in 0..8usize {
            let expected = sector_pattern(9 + page * 8 + s as u64, 1);
            assert!(front.guest.read(*frame, s * 512, 512) == expected, "page {page}");
        }
        assert_eq!(front.guest.grant_flags(*gref), 1);
    }
    assert_eq!(front.guest.grant_flags(list), 1);
    assert_eq!((queue.engine().outside, disk.counters().bounces.load(Relaxed)), (0, 0));
}

#[test]
fn a_barrier_waits_for_what_came_before_and_is_on_the_disk_before_what_follows() {
    let (memory, disk) = memory(64, |_| {});
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    let (_, gref) = front.guest.granted_page();
    for op in [WRITE, READ, BARRIER, WRITE, READ] {
        front.put(op, 0, &[whole(gref)]);
    }
    let empty = front.put(BARRIER, 0, &[]);
    front.put(READ, 0, &[whole(gref)]);
    front.publish();
    for _ in 0..10 {
        queue.pass();
    }
    assert_eq!(statuses(&mut front), [0; 7]);
    assert_eq!(*memory.log.lock().unwrap(), "wrfwfwrfr");
    assert_eq!(empty, 1005);
    assert!(queue.idle());
}

#[test]
fn a_barrier_that_cannot_be_flushed_has_failed_and_lets_others_pass() {
    let (memory, disk) = memory(64, |_| {});
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    let (_, gref) = front.guest.granted_page();
    memory.fail_flushes.store(libc::EIO, SeqCst);
    front.put(BARRIER, 0, &[whole(gref)]);
    front.put(READ, 0, &[whole(gref)]);
    front.publish();
    for _ in 0..4 {
        queue.pass();
    }
    assert_eq!(statuses(&mut front), [-1, 0]);
    // Not written before what it stands behind is safe.
    assert_eq!(*memory.log.lock().unwrap(), "fr");
}

#[test]
fn a_discard_reaches_the_storage_and_its_errors_the_frontend() {
    let (memory, disk) = memory(64, |_| {});
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    front.put_discard(0, 8, 16);
    front.publish();
    queue.pass();
    assert_eq!(statuses(&mut front), [0]);
    assert_eq!(*memory.discarded.lock().unwrap(), [(8 * 512, 16 * 512)]);
    for (errno, status) in [(libc::EIO, -1), (libc::EOPNOTSUPP, -2)] {
        memory.fail_discards.store(errno, SeqCst);
        front.put_discard(0, 8, 16);
        front.publish();
        queue.pass();
        assert_eq!(statuses(&mut front), [status]);
    }
    assert_eq!(disk.counters().discards.load(Relaxed), 1);
}

#[test]
fn a_vanished_device_gives_errors_that_are_counted_and_logged_once() {
    let (memory, disk) = memory(64, |_| {});
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    let (_, gref) = front.guest.granted_page();
    for fail in [&memory.fail_reads, &memory.fail_writes, &memory.fail_flushes] {
        fail.store(libc::ENODEV, SeqCst);
    }
    for round in 1..=100 {
        front.put(READ, 0, &[whole(gref)]);
        front.put(WRITE, 0, &[whole(gref)]);
        front.put(FLUSH, 0, &[]);
        front.publish();
        queue.pass();
        assert_eq!(statuses(&mut front), [-1; 3]);
        assert_eq!(disk.counters().errors.load(Relaxed), round * 3);
    }
    memory.fail_reads.store(0, SeqCst);
    front.put(READ, 0, &[whole(gref)]);
    front.publish();
    queue.pass();
    assert_eq!(statuses(&mut front), [0]);
}

#[test]
fn without_enospc_pause_a_full_disk_is_an_error() {
    let (memory, disk) = memory(64, |_| {});
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    let (_, gref) = front.guest.granted_page();
    memory.fail_writes.store(libc::ENOSPC, SeqCst);
    front.put(WRITE, 0, &[whole(gref)]);
    front.put(READ, 0, &[whole(gref)]);
    front.publish();
    queue.pass();
    assert_eq!(statuses(&mut front), [-1, 0]);
    assert!(!disk.is_full());
}

#[test]
fn with_enospc_pause_a_write_waits_for_room() {
    let (memory, disk) = memory(64, |config| config.enospc_pause = true);
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    let (frame, gref) = front.guest.granted_page();
    memory.fail_writes.store(libc::ENOSPC, SeqCst);
    front.guest.write(frame, 0, &sector_pattern(5, 50));
    let write = front.put(WRITE, 5, &[Segment { gref, first: 0, last: 0 }]);
    let read = front.put(READ, 0, &[Segment { gref, first: 1, last: 1 }]);
    front.publish();
    for _ in 0..5 {
        queue.pass();
    }
    assert_eq!(front.take(), Some((read, READ, 0)), "reads go on");
    assert_eq!(front.take(), None);
    assert!(disk.is_full());
    assert_eq!(disk.counters().errors.load(Relaxed), 0);
    // There is room, and its time comes.
    memory.fail_writes.store(0, SeqCst);
    queue.retry_now();
    queue.pass();
    assert_eq!(front.take(), Some((write, WRITE, 0)));
    assert!(!disk.is_full());
    assert!(memory.sectors(5, 1) == sector_pattern(5, 50));
}

#[test]
fn a_held_write_is_tried_again_by_itself_and_fails_when_the_queue_stops() {
    let (memory, disk) = memory(64, |config| config.enospc_pause = true);
    let mut front = Front::new(Protocol::X86_64);
    let (queue, wake) = front.queue_with_stop(&disk);
    let stop = AtomicBool::new(false);
    let (_, gref) = front.guest.granted_page();
    memory.fail_writes.store(libc::ENOSPC, SeqCst);
    std::thread::scope(|scope| {
        scope.spawn(|| queue.run(&stop));
        let id = front.put(WRITE, 0, &[whole(gref)]);
        front.publish();
        wait_until("the write was not held", || disk.is_full());
        memory.fail_writes.store(0, SeqCst);
        assert_eq!(front.wait_response(), (id, WRITE, 0));

        memory.fail_writes.store(libc::ENOSPC, SeqCst);
        let id = front.put(WRITE, 0, &[whole(gref)]);
        front.publish();
        wait_until("the write was not held", || disk.is_full());
        stop.store(true, SeqCst);
        wake.write(1).unwrap();
        assert_eq!(front.wait_response(), (id, WRITE, -1));
    });
    assert_eq!(front.guest.grant_flags(gref), 1);
}

#[test]
fn a_throttled_queue_leaves_requests_in_the_ring_in_their_order() {
    let (memory, disk) = memory(64, |config| config.iops = Some(10));
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    let (_, gref) = front.guest.granted_page();
    // The burst is one request.
    let ids: Vec<_> = (0..4).map(|sector| front.put(READ, sector, &[whole(gref)])).collect();
    front.publish();
    let Sleep::For(delay) = queue.take_requests() else { panic!("not throttled") };
    assert!(delay <= Duration::from_millis(100));
    queue.pass();
    assert_eq!(front.take(), Some((ids[0], READ, 0)));
    assert!(disk.counters().throttled.load(Relaxed) > 0);
    assert!(memory.log.lock().unwrap().len() < 4, "the limit did not hold");
    wait_until("the rest was not done", || {
        queue.pass();
        memory.log.lock().unwrap().len() == 4
    });
    queue.pass();
    let order: Vec<_> = std::iter::from_fn(|| front.take()).map(|r| r.0).collect();
    assert_eq!(order, ids[1..]);
}

#[test]
fn what_a_limit_keeps_in_the_ring_is_refused_when_the_queue_stops() {
    for protocol in [Protocol::X86_64, Protocol::X86_32] {
        let (_memory, disk) = memory(64, |config| config.iops = Some(1));
        let mut front = Front::new(protocol);
        let (queue, wake) = front.queue_with_stop(&disk);
        let stop = AtomicBool::new(false);
        let (_, gref) = front.guest.granted_page();
        let ids: Vec<_> = (0..32).map(|sector| front.put(READ, sector, &[whole(gref)])).collect();
        front.publish();
        std::thread::scope(|scope| {
            scope.spawn(|| queue.run(&stop));
            wait_until("nothing was answered", || front.ring.rsp_prod(&front.guest) != 0);
            stop.store(true, SeqCst);
            wake.write(1).unwrap();
        });
        let mut answers: Vec<_> = std::iter::from_fn(|| front.take()).collect();
        // In any order: the second follows the first at once, as a limit may be left in debt.
        answers.sort_unstable();
        assert_eq!(answers.iter().map(|answer| answer.0).collect::<Vec<_>>(), ids);
        assert!(answers.iter().any(|answer| answer.2 == -1), "the limit did not hold");
        assert_eq!(front.guest.grant_flags(gref), 1);
    }
}

#[test]
fn a_throttled_queue_sleeps_and_wakes_up_by_itself() {
    let (_memory, disk) = memory(64, |config| config.iops = Some(100));
    let mut front = Front::new(Protocol::X86_64);
    let (queue, wake) = front.queue_with_stop(&disk);
    let stop = AtomicBool::new(false);
    let (_, gref) = front.guest.granted_page();
    std::thread::scope(|scope| {
        scope.spawn(|| queue.run(&stop));
        for sector in 0..30 {
            front.put(READ, sector, &[whole(gref)]);
        }
        front.publish();
        for _ in 0..30 {
            assert_eq!(front.wait_response().2, 0);
        }
        stop.store(true, SeqCst);
        wake.write(1).unwrap();
    });
    // 20 of them had to wait, and each wait was one sleep, give or take.
    let wakeups = disk.counters().wakeups.load(Relaxed);
    assert!(wakeups < 150, "{wakeups} wake-ups: it did not sleep");
}

/// A disk with sectors of 4096 bytes, which the protocol can name parts of.
const NATIVE: crate::storage::Traits = crate::storage::Traits {
    logical_block: 4096,
    physical_block: 4096,
    discard: None,
    memory_alignment: 512,
    offset_alignment: 4096,
    max_transfer: u32::MAX,
};

#[test]
fn misaligned_memory_is_bounced_both_ways_and_aligned_memory_is_not() {
    let memory = Arc::new(Memory::with_traits(64, NATIVE));
    let disk = Arc::new(Disk::new(&config(false), memory.backing()));
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    let (a, a_ref) = front.guest.granted_page();
    let (b, b_ref) = front.guest.granted_page();
    let bounces = |queue: &Queue<_>| {
        let engine: &crate::testing::Inline = queue.engine();
        assert_eq!(engine.outside, disk.counters().bounces.load(Relaxed));
        engine.outside
    };
    front.put(READ, 8, &[whole(a_ref)]);
    front.publish();
    queue.pass();
    assert_eq!((statuses(&mut front), bounces(&queue)), (vec![0], 0));

    let split = [Segment { gref: a_ref, first: 4, last: 7 }, Segment { gref: b_ref, first: 1, last: 4 }];
    front.guest.write(a, 0, &[7; 4096]);
    front.guest.write(b, 0, &[7; 4096]);
    front.put(READ, 16, &split);
    front.publish();
    queue.pass();
    assert_eq!((statuses(&mut front), bounces(&queue)), (vec![0], 1));
    let expected = memory.sectors(16, 8);
    assert!(front.guest.read(a, 2048, 2048) == expected[..2048]);
    assert!(front.guest.read(b, 512, 2048) == expected[2048..]);
    assert!(front.guest.read(a, 0, 2048) == [7; 2048] && front.guest.read(b, 2560, 1536) == [7; 1536]);

    front.guest.write(a, 2048, &[8; 2048]);
    front.put(WRITE, 24, &split);
    front.publish();
    queue.pass();
    assert_eq!((statuses(&mut front), bounces(&queue)), (vec![0], 2));
    assert!(memory.sectors(24, 4) == [8; 2048] && memory.sectors(28, 4) == expected[2048..]);
    assert_eq!((front.guest.grant_flags(a_ref), front.guest.grant_flags(b_ref)), (1, 1));
}

#[test]
fn bounce_buffers_are_bounded_and_every_request_gets_its_turn() {
    let memory = Arc::new(Memory::with_traits(4096, NATIVE));
    let disk = Arc::new(Disk::new(&config(false), memory.backing()));
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    let (frame, list) = front.guest.granted_page();
    let pages: Vec<_> = (0..255).map(|_| front.guest.granted_page().1).collect();
    let mut segments: Vec<_> = pages.iter().map(|gref| whole(*gref)).collect();
    // The first and the last page are halves: every sector of the disk lies in two pages.
    segments[0].first = 4;
    segments.push(Segment { gref: pages[0], first: 0, last: 3 });
    front.guest.write(frame, 0, &segment_list(&segments));
    for _ in 0..32 {
        front.put_indirect(READ, 0, 256, list);
    }
    front.publish();
    assert_eq!(queue.take_requests(), Sleep::Forever);
    assert!(queue.bounced <= MAX_BOUNCED, "{}", queue.bounced);
    assert_eq!(queue.starved.len(), 32 - 4);
    for _ in 0..10 {
        queue.pass();
    }
    assert_eq!(statuses(&mut front), [0; 32]);
    assert_eq!((queue.bounced, disk.counters().bounces.load(Relaxed)), (0, 32));
}

#[test]
fn what_was_answered_together_is_expected_together() {
    let (_memory, disk) = memory(64, |_| {});
    let mut front = Front::new(Protocol::X86_64);
    let mut queue = front.queue(&disk);
    let (_, gref) = front.guest.granted_page();
    let put = |front: &mut Front, count: u64| {
        for sector in 0..count {
            front.put(READ, sector, &[whole(gref)]);
        }
        front.ring.publish(&front.guest)
    };
    assert!(put(&mut front, 1));
    queue.pass();
    assert_eq!(queue.take_requests(), Sleep::Forever);
    assert!(put(&mut front, 4), "one alone is not expected again");
    queue.pass();
    assert!(matches!(queue.take_requests(), Sleep::For(time) if time <= Duration::from_millis(20)));
    assert!(!put(&mut front, 3), "an event for three of four");
    assert!(put(&mut front, 1), "no event for the fourth");
    queue.pass();
    // The time was over, and only two had come.
    assert!(matches!(queue.take_requests(), Sleep::For(_)));
    assert!(!put(&mut front, 2));
    queue.pass();
    assert_eq!(queue.take_requests(), Sleep::Forever);
    assert!(put(&mut front, 1));
    queue.pass();
    assert_eq!(std::iter::from_fn(|| front.take()).filter(|answer| answer.2 == 0).count(), 12);
}
