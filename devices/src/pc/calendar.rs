//! The Gregorian calendar.

/// A second of a day, in no zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime {
    /// Of our era.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

const DAY: i64 = 86_400;
/// Days of 400 years: then the calendar repeats.
const ERA: i64 = 146_097;
/// From 1 March of the year 0 to 1 January 1970.
const TO_EPOCH: i64 = 719_468;

fn small(value: i64) -> u8 {
    u8::try_from(value).unwrap_or(0)
}

impl DateTime {
    /// From seconds since 1 January 1970.
    pub fn from_seconds(seconds: i64) -> Self {
        let (days, of_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // Years begin in March here, so that the leap day is the last.
        let days = days + TO_EPOCH;
        let (era, day) = (days.div_euclid(ERA), days.rem_euclid(ERA));
        let year = (day - day / 1460 + day / 36_524 - day / (ERA - 1)) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        // 153 days are five months from March on.
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Self {
            year: era * 400 + year + i64::from(month <= 2),
            month: small(month),
            day: small(day),
            hour: small(of_day / 3600),
            minute: small(of_day / 60 % 60),
            second: small(of_day % 60),
        }
    }

    /// Seconds since 1 January 1970. A day that the month does not have is one of the next month.
    pub fn seconds(&self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = self.year - i64::from(month <= 2);
        let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
        let month = if month > 2 { month - 3 } else { month + 9 };
        let day = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        let days = era * ERA + 365 * year + year / 4 - year / 100 + day - TO_EPOCH;
        days * DAY + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }

    /// 0 is Sunday.
    pub fn weekday(&self) -> u8 {
        // 1 January 1970 was a Thursday.
        small((self.seconds().div_euclid(DAY) + 4).rem_euclid(7))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(year: i64, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> DateTime {
        DateTime { year, month, day, hour, minute, second }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date, weekday) in [
            (0, at(1970, 1, 1, 0, 0, 0), 4),
            (-1, at(1969, 12, 31, 23, 59, 59), 3),
            (951_782_400, at(2000, 2, 29, 0, 0, 0), 2),
            (951_868_800, at(2000, 3, 1, 0, 0, 0), 3),
            (1_003_968_000, at(2001, 10, 25, 0, 0, 0), 4),
            (4_107_542_399, at(2100, 2, 28, 23, 59, 59), 0),
            (4_107_542_400, at(2100, 3, 1, 0, 0, 0), 1),
        ] {
            assert_eq!(DateTime::from_seconds(seconds), date);
            assert_eq!((date.seconds(), date.weekday()), (seconds, weekday), "{date:?}");
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = DateTime::from_seconds(-DAY * 800_000);
        for day in -799_999..800_000 {
            let date = DateTime::from_seconds(day * DAY);
            assert_eq!(date.seconds(), day * DAY);
            let next = (date.year, date.month, date.day) == (before.year, before.month, before.day + 1);
            let first = date.day == 1 && (28..=31).contains(&before.day);
            assert!(next || first, "{before:?} {date:?}");
            before = date;
        }
    }
}
