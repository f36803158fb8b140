//! The devices' clocks and alarms: one timerfd each, on the main thread's event loop.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use devices::bus::{Shared, Timer};
use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

const SECOND: u64 = 1_000_000_000;

fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec.cast_unsigned() * SECOND + now.tv_nsec.cast_unsigned()
}

/// A clock with an alarm.
#[derive(Debug)]
pub(super) struct AlarmClock {
    fd: OwnedFd,
    start: u64,
    armed: Mutex<Option<u64>>,
}

impl Timer for AlarmClock {
    fn now(&self) -> u64 {
        monotonic().saturating_sub(self.start)
    }

    fn arm(&self, at: Option<u64>) {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        if *armed == at {
            return;
        }
        *armed = at;
        // Zero would switch the timer off.
        let at = at.map_or(0, |at| self.start.saturating_add(at).max(1));
        let part = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let value = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec { tv_sec: part(at / SECOND), tv_nsec: part(at % SECOND) },
        };
        // SAFETY: a timerfd of ours and a valid itimerspec.
        let result = unsafe {
            libc::timerfd_settime(self.fd.as_raw_fd(), libc::TFD_TIMER_ABSTIME, &value, std::ptr::null_mut())
        };
        if result != 0 {
            tracing::warn!(error = %io::Error::last_os_error(), "no alarm for a device");
        }
    }
}

/// All alarms of a machine.
#[derive(Default)]
pub struct Timers {
    list: Vec<(Arc<AlarmClock>, Option<Shared>)>,
    start: Option<u64>,
}

impl Timers {
    /// A clock for the device that [`Timers::belongs_to`] names next.
    pub(super) fn clock(&mut self) -> io::Result<Arc<AlarmClock>> {
        let start = *self.start.get_or_insert_with(monotonic);
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: no preconditions; the result is checked.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let clock = Arc::new(AlarmClock { fd, start, armed: Mutex::new(None) });
        self.list.push((Arc::clone(&clock), None));
        Ok(clock)
    }

    /// The clocks made since the last call are `device`'s.
    pub(super) fn belongs_to(&mut self, device: &Shared) {
        for (_, owner) in self.list.iter_mut().filter(|(_, owner)| owner.is_none()) {
            *owner = Some(Arc::clone(device));
        }
    }
}

impl MutEventSubscriber for Timers {
    fn init(&mut self, ops: &mut EventOps) {
        for (clock, _) in &self.list {
            if let Err(error) = ops.add(Events::new_raw(clock.fd.as_raw_fd(), EventSet::IN)) {
                tracing::error!(?error, "a device has no alarm");
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps) {
        let found = self.list.iter().find(|(clock, _)| clock.fd.as_raw_fd() == events.fd());
        let Some((clock, Some(device))) = found else { return };
        let mut count = [0u8; 8];
        // SAFETY: a descriptor of ours and eight bytes.
        unsafe { libc::read(clock.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        // The device may want the same time again: late or in vain is allowed, never not at all.
        *clock.armed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        device.lock().unwrap_or_else(PoisonError::into_inner).expired();
    }
}
