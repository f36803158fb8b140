//! Guesses that are made less often the more of them were wrong.

use std::time::{Duration, Instant};

/// With so many doubts one occasion in 256 is tried. A wrong guess costs more than a right one saves, so it raises two
/// of them, and a right one lays one.
const MOST_DOUBTS: u32 = 8;

/// In this time a frontend that is at work has answered some responses with new requests.
const GLANCE: Duration = Duration::from_micros(20);

/// Whether something will come as it did before.
#[derive(Debug, Default)]
pub struct Guess {
    doubts: u32,
    /// Occasions that are let pass for now.
    skipped: u32,
}

impl Guess {
    /// Whether to try, this time; [`Guess::came`] then tells what came of it.
    pub fn is_worth_a_try(&mut self) -> bool {
        if self.skipped > 0 {
            self.skipped -= 1;
            return false;
        }
        true
    }

    /// Whether the guess was right.
    pub fn came(&mut self, right: bool) {
        self.doubts = if right { self.doubts.saturating_sub(1) } else { (self.doubts + 2).min(MOST_DOUBTS) };
        self.skipped = (1 << self.doubts) - 1;
    }

    /// Looks at a ring for a moment more, if the frontend was quick to answer the last times. True: something came.
    pub fn glance(&mut self, mut is_filled: impl FnMut() -> bool) -> bool {
        if !self.is_worth_a_try() {
            return false;
        }
        let begun = Instant::now();
        let mut came = false;
        while !came && begun.elapsed() < GLANCE {
            std::hint::spin_loop();
            came = is_filled();
        }
        self.came(came);
        came
    }
}
