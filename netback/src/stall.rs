//! A frontend that posts no pages: what waits for it in the tap is dropped in time, and the cable is pulled out.
//!
//! As Linux's netback does with its own queue (rx_drain_timeout_msecs, rx_stall_timeout_msecs). There is a timer only
//! while frames wait: an interface that nobody sends to wakes nobody.

use std::time::{Duration, Instant};

/// Frames that have waited so long are dropped.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);
/// After so long without pages the interface loses its carrier, until there are some.
pub(crate) const STALL: Duration = Duration::from_secs(60);

/// How long pages have been missing.
#[derive(Debug, Default)]
pub(crate) struct Stall {
    /// Since when frames could not be delivered; not reset by dropping them.
    missing: Option<Instant>,
    /// Since when the frames wait that are in the tap now.
    waiting: Option<Instant>,
    stalled: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Drop what is in the tap.
    pub(crate) drop: bool,
    /// Have the cable pulled out: this is said once.
    pub(crate) unplug: bool,
}

impl Stall {
    /// Frames wait, and there are too few pages.
    pub(crate) fn starved(&mut self, now: Instant) -> Verdict {
        let missing = *self.missing.get_or_insert(now);
        let waiting = *self.waiting.get_or_insert(now);
        let unplug = !self.stalled && now.saturating_duration_since(missing) >= STALL;
        let drop = self.stalled || unplug || now.saturating_duration_since(waiting) >= DRAIN;
        self.stalled |= unplug;
        if drop {
            self.waiting = None;
        }
        Verdict { drop, unplug }
    }

    /// There are enough pages. True: the cable is to be plugged in again.
    pub(crate) fn fed(&mut self) -> bool {
        let stalled = self.stalled;
        *self = Self::default();
        stalled
    }

    /// Whether the cable is out.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// How long until [`Stall::starved`] has something new to say; `None`: nothing waits.
    pub(crate) fn timeout(&self, now: Instant) -> Option<Duration> {
        let end = (self.waiting? + DRAIN).min(self.missing? + STALL);
        Some(end.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Verdict = Verdict { drop: false, unplug: false };
    const DROP: Verdict = Verdict { drop: true, unplug: false };

    #[test]
    fn frames_are_dropped_after_ten_seconds_and_the_cable_is_out_after_sixty() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut stall = Stall::default();
        assert_eq!(stall.timeout(at(0)), None, "nothing waits");
        assert_eq!(stall.starved(at(0)), NOTHING);
        assert_eq!(stall.timeout(at(0)), Some(DRAIN));
        assert_eq!(stall.starved(at(9)), NOTHING);
        assert_eq!(stall.timeout(at(9)), Some(Duration::from_secs(1)));
        assert_eq!(stall.starved(at(10)), DROP);
        assert_eq!(stall.timeout(at(10)), None, "what waited is gone");
        // Others come later: they have their own ten seconds, but pages have been missing all the time.
        assert_eq!(stall.starved(at(55)), NOTHING);
        assert_eq!(stall.timeout(at(55)), Some(Duration::from_secs(5)));
        assert!(!stall.is_stalled());
        assert_eq!(stall.starved(at(60)), Verdict { drop: true, unplug: true });
        assert_eq!(stall.timeout(at(60)), None);
        assert_eq!(stall.starved(at(61)), DROP, "said once");
        assert!(stall.fed() && !stall.is_stalled());
        assert!(!stall.fed());
        assert_eq!(stall.starved(at(100)), NOTHING);
    }
}
