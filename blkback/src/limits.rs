//! How much a disk, or a group of disks, may ask of the host per second: two token buckets.
//!
//! A request is let through while both buckets have something in them, and may leave them in debt: so a
//! request larger than a bucket passes too, and the average is exact whatever the sizes. Time is a parameter:
//! who calls says what the clock shows.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use devices::bucket::Bucket;

/// What may be used at once after a pause, as a part of what one second gives.
const BURST: Duration = Duration::from_millis(100);
/// The shortest sleep of a queue that has to wait: what has gathered meanwhile is then served in one go.
const QUANTUM: Duration = Duration::from_millis(1);

fn bucket(rate: u64) -> Bucket {
    Bucket::new(rate, Duration::from_secs(1), BURST)
}

#[derive(Debug)]
struct State {
    iops: Option<Bucket>,
    bps: Option<Bucket>,
    /// Until when the buckets were filled.
    filled: Option<Instant>,
}

/// Limits of one disk, or of several that share them. The queues of all of them use it at once.
#[derive(Debug)]
pub struct LimitGroup {
    state: Mutex<State>,
}

impl LimitGroup {
    /// Requests and bytes per second; `None` is without limit, and 0 counts as 1.
    pub fn new(iops: Option<u64>, bps: Option<u64>) -> Arc<Self> {
        let state = State { iops: iops.map(bucket), bps: bps.map(bucket), filled: None };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// How long the next request has to wait; `None`: it may go.
    pub fn delay(&self, now: Instant) -> Option<Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Queues of several threads may come a little out of order: time does not go back.
        let time = state.filled.map_or(Duration::ZERO, |filled| now.saturating_duration_since(filled));
        if !time.is_zero() || state.filled.is_none() {
            state.filled = Some(now);
        }
        let State { iops, bps, .. } = &mut *state;
        let mut delay = Duration::ZERO;
        for bucket in [iops, bps].into_iter().flatten() {
            bucket.fill(time);
            delay = delay.max(bucket.delay());
        }
        (!delay.is_zero()).then(|| delay.max(QUANTUM))
    }

    /// One request of so many bytes goes.
    pub fn charge(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = &mut state.iops {
            bucket.take(1);
        }
        if let Some(bucket) = &mut state.bps {
            bucket.take(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use super::*;

    /// Requests of `bytes` in turn, as fast as they may go, for `seconds` of a clock that only this moves. Each
    /// sleep is longer than asked for by `late`. How many went.
    fn run(groups: &[&LimitGroup], bytes: u64, seconds: u64, late: Duration) -> u64 {
        let start = Instant::now();
        let (mut now, mut count) = (start, 0);
        while now < start + Duration::from_secs(seconds) {
            match groups.iter().filter_map(|group| group.delay(now)).max() {
                Some(delay) => now += delay + late,
                None => {
                    groups.iter().for_each(|group| group.charge(bytes));
                    count += 1;
                }
            }
        }
        count
    }

    fn assert_within_5_percent(measured: u64, wanted: u64) {
        let (low, high) = (wanted * 95 / 100, wanted * 105 / 100);
        assert!((low..=high).contains(&measured), "{measured} instead of {wanted}");
    }

    #[test]
    fn requests_per_second_are_within_5_percent() {
        for (rate, late, time) in
            [(10, 0, 10), (1000, 100, 10), (1000, 5000, 10), (50_000, 60, 4), (200_000, 1000, 4)]
        {
            let group = LimitGroup::new(Some(rate), None);
            let count = run(&[&group], 4096, time, Duration::from_micros(late));
            assert_within_5_percent(count, rate * time);
        }
    }

    #[test]
    fn bytes_per_second_are_within_5_percent_for_every_size_of_request() {
        for bytes in [512, 4096, 65536, 1 << 20] {
            let group = LimitGroup::new(None, Some(10 << 20));
            let count = run(&[&group], bytes, 20, Duration::from_micros(80));
            assert_within_5_percent(count * bytes, 20 * (10 << 20));
        }
    }

    #[test]
    fn the_stricter_of_two_limits_holds() {
        let group = LimitGroup::new(Some(100), Some(1 << 20));
        assert_within_5_percent(run(&[&group], 512, 20, Duration::ZERO), 2000);
        let group = LimitGroup::new(Some(100), Some(1 << 20));
        assert_within_5_percent(run(&[&group], 65536, 20, Duration::ZERO), 16 * 20);
    }

    #[test]
    fn a_group_limits_the_sum_of_its_disks() {
        let group = LimitGroup::new(Some(1000), None);
        let own = [LimitGroup::new(Some(700), None), LimitGroup::new(Some(700), None)];
        let start = Instant::now();
        let (mut now, mut counts) = (start, [0u64; 2]);
        while now < start + Duration::from_secs(20) {
            let mut wait = Duration::MAX;
            for (count, own) in counts.iter_mut().zip(&own) {
                match own.delay(now).max(group.delay(now)) {
                    Some(delay) => wait = wait.min(delay),
                    None => {
                        own.charge(512);
                        group.charge(512);
                        *count += 1;
                        wait = Duration::ZERO;
                    }
                }
            }
            now += wait;
        }
        assert_within_5_percent(counts.iter().sum(), 20_000);
        assert!(counts.iter().all(|count| *count <= 700 * 21), "{counts:?}");
    }

    #[test]
    fn a_pause_is_worth_a_tenth_of_a_second_and_not_more() {
        let group = LimitGroup::new(Some(1000), None);
        let start = Instant::now();
        let burst = |now| {
            let mut count = 0;
            while group.delay(now).is_none() {
                group.charge(512);
                count += 1;
            }
            count
        };
        assert_eq!(burst(start), 100);
        assert_eq!(burst(start + Duration::from_secs(3600)), 100);
    }

    #[test]
    fn a_request_larger_than_a_second_waits_its_time_and_passes() {
        let group = LimitGroup::new(None, Some(1000));
        let start = Instant::now();
        assert_eq!(group.delay(start), None);
        group.charge(1_000_000);
        let delay = group.delay(start).unwrap();
        assert!((999..=1000).contains(&delay.as_secs()), "{delay:?}");
        assert_eq!(group.delay(start + delay), None);
    }

    #[test]
    fn time_that_goes_back_gives_nothing() {
        let group = LimitGroup::new(Some(10), None);
        let now = Instant::now() + Duration::from_secs(10);
        while group.delay(now).is_none() {
            group.charge(0);
        }
        let waiting = group.delay(now);
        assert_eq!(group.delay(now - Duration::from_secs(5)), waiting);
        assert_eq!(group.delay(now), waiting);
    }

    #[test]
    fn without_limits_nothing_waits() {
        let group = LimitGroup::new(None, None);
        for _ in 0..1000 {
            group.charge(u64::MAX);
        }
        assert_eq!(group.delay(Instant::now()), None);
    }
}
