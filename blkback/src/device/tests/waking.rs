//! When a queue's thread sleeps, what wakes it up, and what that costs.

use super::*;

/// A disk of zeros that the kernel always has at once. A flush takes until it is told to end.
#[derive(Debug)]
struct Zeros {
    file: std::fs::File,
    /// Held by the test while a flush shall last.
    slow: std::sync::Mutex<()>,
    flushes: std::sync::atomic::AtomicU32,
}

impl Zeros {
    fn connected(front: &Front) -> (Arc<Self>, BlockDevice) {
        let file = std::fs::File::open("/dev/zero").unwrap();
        let zeros = Arc::new(Self { file, slow: ().into(), flushes: 0.into() });
        let storage = Arc::clone(&zeros) as _;
        let backing = Backing { storage, path: "zero".into(), block_device: false, readonly: true };
        let mut device = BlockDevice::new(config(true), backing);
        front.connect(&mut device);
        (zeros, device)
    }
}

impl crate::storage::Storage for Zeros {
    fn traits(&self) -> crate::storage::Traits {
        Memory::new(0).traits
    }
    fn size(&self) -> io::Result<u64> {
        Ok(1 << 30)
    }
    fn raw(&self) -> Option<std::os::fd::RawFd> {
        Some(self.file.as_raw_fd())
    }
    unsafe fn read_at(&self, _: &[crate::engine::IoVec], _: u64) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
    unsafe fn write_at(&self, _: &[crate::engine::IoVec], _: u64) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Relaxed);
        drop(self.slow.lock());
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// A frontend on a disk of zeros, with the eventfd that it is notified by.
fn notified() -> (Front, BlockDevice, EventFd) {
    let front = Front::new(Protocol::X86_64);
    front.guest.delivery.offer_notifiers();
    let (_, device) = Zeros::connected(&front);
    let notifier = front.guest.delivery.notifiers.lock().unwrap()[0].2.try_clone().unwrap();
    (front, device, notifier)
}

#[test]
fn at_depth_32_ten_requests_with_their_events_cost_one_system_call() {
    let (mut front, mut device, notifier) = notified();
    let pages: Vec<_> = (0..32).map(|_| front.guest.granted_page().1).collect();
    let rounds = 200;
    for _ in 0..rounds {
        for (sector, gref) in (0..).zip(&pages) {
            front.put(READ, sector, &[whole(*gref)]);
        }
        front.publish();
        for _ in 0..32 {
            assert_eq!(front.wait_response().2, 0);
        }
    }
    device.disconnect();
    wait_stopped(&mut device);
    let counters = device.disk().counters();
    let calls = counters.system_calls.load(Relaxed);
    assert_eq!(counters.requests.load(Relaxed), rounds * 32);
    // The events were sent by the ring, and every one of them.
    assert_eq!(front.guest.raises(), 0);
    assert_eq!(notifier.read().unwrap(), counters.notifications.load(Relaxed));
    assert!(calls * 10 <= rounds * 32, "{calls} system calls for {} requests", rounds * 32);
}

/// Both ends sleep until the other one's event, however requests come: those that end at once, those of threads, few
/// and many, and the next ones with or before the last answers.
#[test]
fn no_event_is_lost_between_ends_that_sleep() {
    let (mut front, mut device, notifier) = notified();
    let (_, gref) = front.guest.granted_page();
    let (mut state, mut under_way) = (88_172_645_463_325_252_u64, 0);
    for _ in 0..20_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let few = [1, 2, 8, 32][(state >> 8) as usize % 4];
        while under_way < few {
            state = state.rotate_left(5);
            if state.is_multiple_of(7) {
                front.put(FLUSH, 0, &[])
            } else {
                front.put(READ, 0, &[whole(gref)])
            };
            under_way += 1;
        }
        front.publish();
        // Some answers, or all of them.
        let rest = if state & 0x100_0000 == 0 { 0 } else { under_way / 2 };
        while under_way > rest {
            if let Some((_, _, status)) = front.take() {
                assert_eq!(status, 0);
                under_way -= 1;
                continue;
            }
            let mut event = libc::pollfd { fd: notifier.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd.
            let ready = unsafe { libc::poll(&raw mut event, 1, 60_000) };
            assert_eq!(ready, 1, "{under_way} requests are not answered");
            notifier.read().unwrap();
        }
    }
    device.disconnect();
    wait_stopped(&mut device);
}

#[test]
fn a_read_does_not_wait_for_the_end_of_a_slow_flush() {
    let mut front = Front::new(Protocol::X86_64);
    let (zeros, _device) = Zeros::connected(&front);
    let (_, gref) = front.guest.granted_page();
    for round in 1..10 {
        // What ends at once lets the queue expect the same of what follows.
        for sector in 0..20 {
            assert_eq!(front.request(READ, sector, &[whole(gref)]), 0);
        }
        let slow = zeros.slow.lock().unwrap();
        let flush = front.put(FLUSH, 0, &[]);
        front.publish();
        wait_until("no flush", || zeros.flushes.load(Relaxed) == round);
        assert_eq!(front.request(READ, 0, &[whole(gref)]), 0);
        drop(slow);
        assert_eq!(front.wait_response(), (flush, FLUSH, 0));
    }
}
