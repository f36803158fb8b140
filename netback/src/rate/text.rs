//! The text of a limit, in the grammar of `rate=` in Xen's xl-network-configuration(5).

use std::fmt;
use std::str::FromStr;

use super::Rate;

/// Microseconds between two grants of credit where none are given: 50 ms.
const DEFAULT_INTERVAL: u32 = 50_000;

impl FromStr for Rate {
    type Err = String;

    /// Parses `NUMBER[GMK](B|b)/s[@NUMBER[us|ms|s]]`: K is 1000, b are bits, an interval without a unit is in
    /// microseconds. The error is a sentence.
    fn from_str(text: &str) -> Result<Rate, String> {
        let syntax = || format!("rate `{text}` is not a rate; write one like 10Mb/s, 1MB/s or 250KB/s@20ms");
        let (rate, interval) = match text.split_once('@') {
            Some((rate, interval)) => (rate, Some(interval)),
            None => (text, None),
        };
        let (number, unit) = split_number(rate).ok_or_else(syntax)?;
        let (scale, divisor) = match unit {
            "B/s" => (1, 1),
            "KB/s" => (1000, 1),
            "MB/s" => (1_000_000, 1),
            "GB/s" => (1_000_000_000, 1),
            "b/s" => (1, 8),
            "Kb/s" => (1000, 8),
            "Mb/s" => (1_000_000, 8),
            "Gb/s" => (1_000_000_000, 8),
            _ => return Err(syntax()),
        };
        let large = || format!("rate `{text}` is too large; leave it out, and there is no limit");
        let per_second = number.checked_mul(scale).ok_or_else(large)? / divisor;
        let interval_us = match interval {
            None => DEFAULT_INTERVAL,
            Some(interval) => parse_interval(interval).ok_or_else(|| {
                format!(
                    "rate `{text}`: `{interval}` is not an interval from 1 microsecond to an hour; write one like 50ms"
                )
            })?,
        };
        let bytes = u128::from(per_second) * u128::from(interval_us) / 1_000_000;
        match u64::try_from(bytes) {
            Ok(0) => Err(format!(
                "rate `{text}` is less than a byte in each interval; give a higher rate or a longer interval"
            )),
            Ok(bytes_per_interval) => Ok(Rate { bytes_per_interval, interval_us }),
            Err(_) => Err(large()),
        }
    }
}

/// Microseconds, at most an hour.
fn parse_interval(text: &str) -> Option<u32> {
    let (number, unit) = split_number(text)?;
    let scale = match unit {
        "" | "us" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        _ => return None,
    };
    let us = number.checked_mul(scale)?;
    u32::try_from(us).ok().filter(|us| (1..=3_600_000_000).contains(us))
}

/// The digits at the beginning as a number, and the rest.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, rest))
}

impl fmt::Display for Rate {
    /// The rate so that it is read back as the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The smallest rate that fills the interval, for the parser rounds down.
        let bytes = u128::from(self.bytes_per_interval) * 1_000_000;
        let per_second = bytes.div_ceil(u128::from(self.interval_us.max(1)));
        write!(f, "{per_second}B/s@{}us", self.interval_us)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rates_and_their_credit() {
        let table = [
            // The three of the manual.
            ("10Mb/s", 62_500, 50_000),
            ("250KB/s", 12_500, 50_000),
            ("1MB/s@20ms", 20_000, 20_000),
            ("10Mb/s@50ms", 62_500, 50_000),
            ("1GB/s", 50_000_000, 50_000),
            ("1Gb/s@1s", 125_000_000, 1_000_000),
            ("8Kb/s@1000000", 1000, 1_000_000),
            ("20B/s", 1, 50_000),
            ("160b/s@50000us", 1, 50_000),
            ("10B/s@3s", 30, 3_000_000),
            ("18446744073709551615B/s@1us", 18_446_744_073_709, 1),
            ("1B/s@3600s", 3600, 3_600_000_000),
        ];
        for (text, bytes_per_interval, interval_us) in table {
            let rate = Rate { bytes_per_interval, interval_us };
            assert_eq!(text.parse(), Ok(rate), "{text}");
            assert_eq!(rate.to_string().parse(), Ok(rate), "{text}");
        }
    }

    #[test]
    fn wrong_rates_and_their_sentences() {
        const SYNTAX: &str = "is not a rate; write one like 10Mb/s, 1MB/s or 250KB/s@20ms";
        const INTERVAL: &str = "is not an interval from 1 microsecond to an hour; write one like 50ms";
        const NOTHING: &str = "is less than a byte in each interval; give a higher rate or a longer interval";
        const LARGE: &str = "is too large; leave it out, and there is no limit";
        for (text, why) in [
            ("", SYNTAX),
            ("10", SYNTAX),
            ("10Mb", SYNTAX),
            ("Mb/s", SYNTAX),
            ("10mb/s", SYNTAX),
            ("10TB/s", SYNTAX),
            ("-1MB/s", SYNTAX),
            ("1.5MB/s", SYNTAX),
            ("10 Mb/s", SYNTAX),
            ("10Mb/sec", SYNTAX),
            ("99999999999999999999B/s", SYNTAX),
            ("0MB/s", NOTHING),
            ("7b/s@1s", NOTHING),
            ("19B/s", NOTHING),
            ("99999999999GB/s", LARGE),
        ] {
            assert_eq!(text.parse::<Rate>(), Err(format!("rate `{text}` {why}")));
        }
        for interval in ["", "0", "ms", "50m", "50 ms", "3601s", "-1", "1h", "50ms@50ms"] {
            let text = format!("1MB/s@{interval}");
            let expected = format!("rate `{text}`: `{interval}` {INTERVAL}");
            assert_eq!(text.parse::<Rate>(), Err(expected));
        }
        assert_eq!(
            "18446744073709551615B/s@3600s".parse::<Rate>(),
            Err(format!("rate `18446744073709551615B/s@3600s` {LARGE}"))
        );
    }
}
