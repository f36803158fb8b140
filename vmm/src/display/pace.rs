//! How often the screen is looked at.

use std::time::{Duration, Instant};

/// Between two looks while the picture changes: 30 times a second.
pub(super) const BUSY: Duration = Duration::from_micros(33_333);
/// Between two looks at a picture that stays the same: 4 times a second.
pub(super) const IDLE: Duration = Duration::from_millis(250);

/// When the next look is due. Each one that finds nothing new makes the next one later, by half the time between them.
#[derive(Debug)]
pub(super) struct Pace {
    last: Option<Instant>,
    interval: Duration,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace { last: None, interval: BUSY }
    }

    /// The screen was looked at.
    pub(super) fn looked(&mut self, now: Instant, changed: bool) {
        self.last = Some(now);
        self.interval = if changed { BUSY } else { (self.interval * 3 / 2).min(IDLE) };
    }

    /// Something is expected to change soon, or somebody has just come.
    pub(super) fn hurry(&mut self) {
        self.interval = BUSY;
    }

    /// How long the next look has to wait.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        match self.last {
            Some(last) => self.interval.saturating_sub(now.saturating_duration_since(last)),
            None => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks within a second from `now` on.
    fn looks(pace: &mut Pace, mut now: Instant, changed: bool) -> u32 {
        let end = now + Duration::from_secs(1);
        let mut looks = 0;
        loop {
            now += pace.wait(now);
            if now >= end {
                return looks;
            }
            pace.looked(now, changed);
            looks += 1;
        }
    }

    #[test]
    fn a_moving_picture_is_looked_at_30_times_a_second_and_a_still_one_4_times() {
        let start = Instant::now();
        let mut pace = Pace::new();
        assert_eq!(looks(&mut pace, start, true), 31);
        let second = |n| start + Duration::from_secs(n);
        assert!(looks(&mut pace, second(1), false) < 10);
        assert_eq!(looks(&mut pace, second(2), false), 4);
        assert!(looks(&mut pace, second(3), true) > 20);
    }

    #[test]
    fn a_hurry_makes_the_next_look_early() {
        let start = Instant::now();
        let mut pace = Pace::new();
        for _ in 0..10 {
            pace.looked(start, false);
        }
        assert_eq!(pace.wait(start), IDLE);
        pace.hurry();
        assert_eq!(pace.wait(start), BUSY);
        assert_eq!(pace.wait(start + BUSY), Duration::ZERO);
    }
}
