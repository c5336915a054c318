//! The periods of a quota: calendar days and months in UTC, and rolling ones that are counted in sixtieths.

use std::time::Duration;

use time::{Date, OffsetDateTime};

/// How finely a rolling period is counted: what was charged is remembered for at most this share of the period too long.
const SHARES: u64 = 60;

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;

/// The time for which a quota is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// A calendar day in UTC.
    Day,
    /// A calendar month in UTC.
    Month,
    /// The time up to now, in whole seconds.
    Rolling(Duration),
}

/// What counts at a moment. Times are seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// What was charged before this second is over.
    pub(super) begins: u64,
    /// What was charged from here on was charged by a clock that has been put right since, by more than a period.
    pub(super) horizon: u64,
    /// Where what is charged now is added up.
    pub(super) slot: u64,
}

impl Period {
    /// What counts at this second.
    pub(super) fn window(self, second: u64) -> Window {
        match self {
            Self::Day | Self::Month => {
                let (begins, ends) = self.calendar(second);
                Window { begins, horizon: ends.saturating_add(1), slot: begins }
            }
            Self::Rolling(length) => {
                let (length, share) = shared(length);
                // Inclusive: what was charged late in a second is held for the whole period all the same.
                let begins = second.saturating_sub(length);
                Window { begins, horizon: second.saturating_add(length), slot: second - second % share }
            }
        }
    }

    /// The first second in which what was charged at `second` no longer counts.
    pub(super) fn end_of(self, second: u64) -> u64 {
        match self {
            Self::Day | Self::Month => self.calendar(second).1,
            Self::Rolling(length) => second.saturating_add(shared(length).0).saturating_add(1),
        }
    }

    /// How long what is over is still remembered, for a clock that goes back a little.
    pub(super) fn memory(self) -> u64 {
        match self {
            Self::Day | Self::Month => HOUR,
            Self::Rolling(length) => shared(length).1.min(HOUR),
        }
    }

    /// The day or month of a second.
    fn calendar(self, second: u64) -> (u64, u64) {
        let day = second / DAY;
        let (first, days) = match self {
            Self::Month => {
                let date = i64::try_from(second).ok().and_then(|second| OffsetDateTime::from_unix_timestamp(second).ok());
                let date = date.map_or(Date::MAX, OffsetDateTime::date);
                (day.saturating_sub(u64::from(date.day()) - 1), u64::from(date.month().length(date.year())))
            }
            Self::Day | Self::Rolling(_) => (day, 1),
        };
        (first * DAY, (first + days).saturating_mul(DAY))
    }
}

/// A rolling period and its share, in seconds.
fn shared(length: Duration) -> (u64, u64) {
    let length = length.as_secs().saturating_add(u64::from(length.subsec_nanos() > 0)).max(1);
    (length, length.div_ceil(SHARES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::format_description::well_known::Rfc3339;

    fn second(text: &str) -> u64 {
        u64::try_from(OffsetDateTime::parse(text, &Rfc3339).unwrap().unix_timestamp()).unwrap()
    }

    #[test]
    fn calendar_periods_begin_and_end_at_midnight_in_utc() {
        let rows = [
            (Period::Day, "2026-11-23T00:00:00Z", "2026-11-23T00:00:00Z", "2026-11-24T00:00:00Z"),
            (Period::Day, "2026-11-23T23:59:59Z", "2026-11-23T00:00:00Z", "2026-11-24T00:00:00Z"),
            (Period::Day, "2028-02-28T12:00:00Z", "2028-02-28T00:00:00Z", "2028-02-29T00:00:00Z"),
            (Period::Day, "2028-02-29T12:00:00Z", "2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z"),
            (Period::Day, "1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "1970-01-02T00:00:00Z"),
            (Period::Month, "1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "1970-02-01T00:00:00Z"),
            (Period::Month, "2026-11-01T00:00:00Z", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
            (Period::Month, "2026-12-31T23:59:59Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            (Period::Month, "2026-02-28T23:59:59Z", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"),
            (Period::Month, "2028-02-29T23:59:59Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
            (Period::Month, "2100-02-28T12:00:00Z", "2100-02-01T00:00:00Z", "2100-03-01T00:00:00Z"),
            (Period::Month, "2027-04-30T23:59:59Z", "2027-04-01T00:00:00Z", "2027-05-01T00:00:00Z"),
        ];
        for (period, at, begins, ends) in rows {
            let window = period.window(second(at));
            assert_eq!((window.begins, window.slot, period.end_of(second(at))), (second(begins), second(begins), second(ends)), "{at}");
        }
    }

    #[test]
    fn a_rolling_period_is_counted_in_sixtieths_and_never_shorter_than_it_is() {
        let days = Period::Rolling(Duration::from_secs(30 * DAY));
        let now = second("2026-11-23T13:00:00Z");
        assert_eq!(days.window(now), Window { begins: now - 30 * DAY, horizon: now + 30 * DAY, slot: now - HOUR });
        assert_eq!(days.end_of(now), now + 30 * DAY + 1);
        assert_eq!(Period::Rolling(Duration::from_millis(90_500)).end_of(100), 192);
        assert_eq!(Period::Rolling(Duration::from_millis(1)).window(100), Window { begins: 99, horizon: 101, slot: 100 });
    }

    #[test]
    fn no_time_is_beyond_it() {
        for period in [Period::Day, Period::Month, Period::Rolling(Duration::MAX), Period::Rolling(Duration::ZERO)] {
            for second in [0, 1, u64::from(u32::MAX), 253_402_300_799, 253_402_300_800, u64::MAX - 1, u64::MAX] {
                let window = period.window(second);
                assert!(window.begins <= second && window.slot <= second, "{period:?} {second}");
                assert!(period.end_of(second) >= second, "{period:?} {second}");
            }
        }
    }
}
