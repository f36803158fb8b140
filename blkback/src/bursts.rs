//! How many requests come together: a frontend with many threads on few processors sends as many requests as were
//! just answered, and one event for all of them costs it one exit instead of one each.

use std::time::{Duration, Instant};

use devices::guess::Guess;

/// A burst may take this many times as long to come as the last one took to be served.
const SLOWNESS: u32 = 16;
/// No request waits longer than this for others to come.
const LONGEST: Duration = Duration::from_millis(20);

/// Guesses of one ring.
#[derive(Debug)]
pub(crate) struct Bursts {
    /// Since when there is work, and how many requests were answered since.
    began: Instant,
    answered: u32,
    /// What the sleep under way waits for.
    expected: Option<u32>,
    guess: Guess,
}

impl Bursts {
    pub(crate) fn new(now: Instant) -> Self {
        Self { began: now, answered: 0, expected: None, guess: Guess::default() }
    }

    /// A sleep with nothing under way has ended, and so many requests are there.
    pub(crate) fn began(&mut self, now: Instant, pending: u32) {
        self.began = now;
        self.answered = 0;
        if let Some(expected) = self.expected.take() {
            self.guess.came(pending >= expected);
        }
    }

    pub(crate) fn answered(&mut self) {
        self.answered = self.answered.saturating_add(1);
    }

    /// Everything is answered: how many requests to sleep for, and how long, if not for the next one for ever. The ring
    /// has `entries`: more than that came one after the other and were no burst.
    pub(crate) fn expect(&mut self, now: Instant, entries: u32) -> Option<(u32, Duration)> {
        if !(2..=entries).contains(&self.answered) || !self.guess.is_worth_a_try() {
            return None;
        }
        self.expected = Some(self.answered);
        let time = now.saturating_duration_since(self.began) * SLOWNESS;
        Some((self.answered, time.min(LONGEST)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRIES: u32 = 32;

    fn serve(bursts: &mut Bursts, now: &mut Instant, count: u32) -> Option<(u32, Duration)> {
        bursts.began(*now, count);
        (0..count).for_each(|_| bursts.answered());
        *now += Duration::from_micros(10);
        bursts.expect(*now, ENTRIES)
    }

    #[test]
    fn one_request_at_a_time_is_never_waited_for() {
        let mut now = Instant::now();
        let mut bursts = Bursts::new(now);
        for _ in 0..10 {
            assert_eq!(serve(&mut bursts, &mut now, 1), None);
        }
    }

    #[test]
    fn a_burst_is_expected_again_while_it_comes() {
        let mut now = Instant::now();
        let mut bursts = Bursts::new(now);
        for count in [4, 5, 5, 9] {
            assert_eq!(serve(&mut bursts, &mut now, count), Some((count, Duration::from_micros(160))));
        }
    }

    #[test]
    fn wrong_guesses_become_rare() {
        for (right, most) in [(0, 30), (1, 100)] {
            let mut now = Instant::now();
            let mut bursts = Bursts::new(now);
            let mut wrong = 0;
            for round in 0..4096 {
                // Two come together, and after that mostly one and one.
                if serve(&mut bursts, &mut now, 2).is_some() && (right == 0 || round % 2 == 0) {
                    serve(&mut bursts, &mut now, 1);
                    wrong += 1;
                }
            }
            assert!((1..most).contains(&wrong), "{wrong} wrong guesses");
            // They are right again: not at once, and then always.
            (0..2000)
                .for_each(|_| assert!(serve(&mut bursts, &mut now, 2).is_none_or(|(count, _)| count == 2)));
            assert!((0..10).all(|_| serve(&mut bursts, &mut now, 2).is_some()));
        }
    }

    #[test]
    fn a_stream_is_no_burst() {
        let mut now = Instant::now();
        let mut bursts = Bursts::new(now);
        assert_eq!(serve(&mut bursts, &mut now, ENTRIES + 1), None);
        assert!(serve(&mut bursts, &mut now, ENTRIES).is_some());
    }

    #[test]
    fn nobody_waits_long() {
        let now = Instant::now();
        let mut bursts = Bursts::new(now);
        bursts.began(now, 2);
        (0..2).for_each(|_| bursts.answered());
        assert_eq!(bursts.expect(now + Duration::from_secs(1), ENTRIES), Some((2, LONGEST)));
    }
}
