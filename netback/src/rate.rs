//! How many bytes an interface may send: the key `rate` of its backend, as Xen's netback applies it.

mod text;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use devices::bucket::Bucket;
use serde::{Deserialize, Serialize};

/// The shortest sleep of a queue that has to wait: what has gathered meanwhile is then sent in one go.
const QUANTUM: Duration = Duration::from_millis(1);

/// A limit on what the guest sends. One interval's bytes may go at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes in each interval, at least 1.
    pub bytes_per_interval: u64,
    /// Microseconds, at least 1.
    pub interval_us: u32,
}

impl Rate {
    /// The value of the key.
    pub(crate) fn key(&self) -> String {
        format!("{},{}", self.bytes_per_interval, self.interval_us)
    }
}

/// What is left to all queues of an interface.
#[derive(Debug)]
pub(crate) struct Credit {
    state: Mutex<(Bucket, Option<Instant>)>,
}

impl Credit {
    pub(crate) fn new(rate: Rate) -> Self {
        let interval = Duration::from_micros(rate.interval_us.into());
        let bucket = Bucket::new(rate.bytes_per_interval, interval, interval);
        Self { state: Mutex::new((bucket, None)) }
    }

    /// How long the next packet has to wait; `None`: it may go.
    pub(crate) fn delay(&self, now: Instant) -> Option<Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (bucket, filled) = &mut *state;
        // The clocks of several queues may come a little out of order: time does not go back.
        if let Some(time) = now.checked_duration_since(*filled.get_or_insert(now)) {
            bucket.fill(time);
            *filled = Some(now);
        }
        let delay = bucket.delay();
        (!delay.is_zero()).then(|| delay.max(QUANTUM))
    }

    /// A packet of so many bytes goes.
    pub(crate) fn charge(&self, bytes: usize) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.take(bytes as u64);
    }
}
