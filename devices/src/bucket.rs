//! A token bucket: how much of something there may be in a time.
//!
//! Something passes while the bucket is not empty, and may leave it in debt: so what is larger than the bucket passes
//! too, and the average is exact whatever the sizes. Time is a parameter: who calls says what the clock shows.

use std::time::Duration;

/// A bucket that fills evenly by an amount in a period.
#[derive(Debug)]
pub struct Bucket {
    amount: i128,
    /// Nanoseconds.
    period: i128,
    /// In parts of which one unit has `period`, so that a nanosecond gives `amount`. Below zero: debt.
    level: i128,
    capacity: i128,
}

fn nanos(time: Duration) -> i128 {
    // 584 years; and products with an amount of 64 bits fit.
    time.as_nanos().min(u64::MAX.into()).cast_signed()
}

impl Bucket {
    /// A full bucket that fills by `amount` in `period`, and holds what `burst` gives, or one unit if that is more.
    /// An amount or a period of 0 counts as 1.
    pub fn new(amount: u64, period: Duration, burst: Duration) -> Self {
        let (amount, period) = (i128::from(amount.max(1)), nanos(period).max(1));
        let capacity = (amount * nanos(burst)).max(period);
        Self { amount, period, level: capacity, capacity }
    }

    /// So much time went by.
    pub fn fill(&mut self, time: Duration) {
        self.level = (self.level + self.amount * nanos(time)).min(self.capacity);
    }

    /// Something of this size passes.
    pub fn take(&mut self, amount: u64) {
        self.level = self.level.saturating_sub(i128::from(amount).saturating_mul(self.period));
    }

    /// Until there is something in it.
    pub fn delay(&self) -> Duration {
        if self.level > 0 {
            return Duration::ZERO;
        }
        let nanos = (-self.level) / self.amount + 1;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_amount_in_each_period_whatever_that_is() {
        for (amount, period) in [(1, 3_000_000), (62_500, 50_000), (7, 10), (u64::MAX / 4, 1)] {
            let period = Duration::from_micros(period);
            let mut bucket = Bucket::new(amount, period, period);
            bucket.take(amount);
            assert_eq!(bucket.delay(), Duration::from_nanos(1));
            bucket.take(amount * 3);
            assert_eq!(bucket.delay(), period * 3 + Duration::from_nanos(1));
            bucket.fill(period * 3);
            assert_eq!(bucket.delay(), Duration::from_nanos(1));
            bucket.fill(Duration::from_secs(1 << 40));
            bucket.take(amount);
            assert_eq!(bucket.delay(), Duration::from_nanos(1), "it holds no more than a period gives");
        }
    }
}
