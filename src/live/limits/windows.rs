//! `fixed_window` and `sliding_window`: two exact counts per key, of the current window and of the one before.
//!
//! Windows stand side by side on the monotonic clock. A fixed one looks at its own count alone; the sliding one adds the share of the previous
//! count that a window ending now still covers, rounded up: never in the caller's favour.

use std::time::Duration;

use super::table::Account;
use super::{Pace, Standing, div_ceil};

/// What was counted of one key.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    /// Which window is the current one.
    index: u64,
    current: u64,
    previous: u64,
}

/// Which of the counts are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Fixed,
    Sliding,
}

impl Counts {
    /// So much, counted just now.
    pub(super) fn just_counted(units: u64, pace: Pace, now: u64) -> Self {
        Self { index: now / pace.window, current: units, previous: 0 }
    }

    /// The same counts in windows of another length: what stands in a window stands in the other one, so nothing is given away.
    pub(super) fn moved(self, from: Pace, to: Pace, now: u64) -> Self {
        Self { index: now / to.window, ..self.aged(from, now) }
    }

    /// How many units are used as a sliding window sees it.
    pub(super) fn used(self, pace: Pace, now: u64) -> u64 {
        let aged = self.aged(pace, now);
        aged.current.saturating_add(aged.covered(pace.window, aged.left(pace, now)))
    }

    /// Counts all units or none.
    pub(super) fn charge(&mut self, view: View, pace: Pace, cost: u64, now: u64) -> Standing {
        *self = self.aged(pace, now);
        let Pace { limit, window } = pace;
        let left = self.left(pace, now);
        let covered = match view {
            View::Fixed => 0,
            View::Sliding => self.covered(window, left),
        };
        let used = self.current.saturating_add(covered);
        let admitted = used.checked_add(cost).is_some_and(|used| used <= limit);
        let taken = if admitted { cost } else { 0 };
        self.current += taken;
        let remaining = limit.saturating_sub(used.saturating_add(taken));
        let reset = match (self.current, covered, view) {
            (0, 0, _) => 0,
            (0, ..) | (_, _, View::Fixed) => left,
            (_, _, View::Sliding) => left.saturating_add(window),
        };
        let retry_after = match limit.checked_sub(cost) {
            Some(_) if remaining >= cost => 0,
            Some(spare) if view == View::Sliding => self.wait_for(spare, window, left),
            // The next window begins with nothing; what costs more than the limit has no time to wait for.
            Some(_) => left,
            None => left.saturating_add(window),
        };
        let [reset, retry_after] = [reset, retry_after].map(Duration::from_nanos);
        Standing { admitted, remaining, reset, retry_after, wait: Duration::ZERO }
    }

    /// Takes back what was counted at a time, while one of the two windows holds it.
    pub(super) fn refund(&mut self, pace: Pace, cost: u64, charged: u64) {
        match self.index.checked_sub(charged / pace.window) {
            Some(0) => self.current = self.current.saturating_sub(cost),
            Some(1) => self.previous = self.previous.saturating_sub(cost),
            _ => {}
        }
    }

    fn turned_to(self, index: u64) -> Self {
        match index.saturating_sub(self.index) {
            0 => self,
            1 => Self { index, current: 0, previous: self.current },
            _ => Self { index, current: 0, previous: 0 },
        }
    }

    /// Nanoseconds until the current window ends; the whole window for a time that lags behind it, which is the strict reading.
    fn left(&self, Pace { window, .. }: Pace, now: u64) -> u64 {
        if now / window < self.index { window } else { window - now % window }
    }

    /// The share of the previous window that the sliding one still covers.
    fn covered(&self, window: u64, left: u64) -> u64 {
        match self.previous {
            0 => 0,
            previous => div_ceil(u128::from(previous) * u128::from(left), window),
        }
    }

    /// Nanoseconds until no more than `spare` units are used, as the sliding window sees it.
    fn wait_for(&self, spare: u64, window: u64, left: u64) -> u64 {
        // How much of a window may be left for no more than `spare` of `count` to be covered still.
        let may_be_left = |spare: u64, count: u64| {
            let may = u128::from(spare) * u128::from(window) / u128::from(count.max(1));
            u64::try_from(may).map_or(window, |may| may.min(window))
        };
        match spare.checked_sub(self.current) {
            Some(spare) => left.saturating_sub(may_be_left(spare, self.previous)),
            None => left.saturating_add(window - may_be_left(spare, self.current)),
        }
    }
}

impl Account for Counts {
    fn aged(self, pace: Pace, now: u64) -> Self {
        self.turned_to(now / pace.window)
    }

    fn is_idle(&self) -> bool {
        (self.current, self.previous) == (0, 0)
    }

    fn weight(&self, pace: Pace, now: u64) -> u128 {
        self.used(pace, now).into()
    }

    fn stricter(self, other: Self, _: Pace) -> Self {
        let index = self.index.max(other.index);
        let (one, other) = (self.turned_to(index), other.turned_to(index));
        Self { index, current: one.current.max(other.current), previous: one.previous.max(other.previous) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SECOND, key};
    use super::super::{Algorithm, Limits, Terms};
    use super::*;
    use proptest::prelude::*;

    fn per_second(limit: u64, algorithm: Algorithm) -> Terms {
        Terms { limit, window: SECOND, algorithm }
    }

    fn sliding(limit: u64) -> Terms {
        per_second(limit, Algorithm::SlidingWindow)
    }

    fn fixed(limit: u64) -> Terms {
        per_second(limit, Algorithm::FixedWindow)
    }

    fn admits(limits: &Limits, terms: &Terms, millis: u64) -> bool {
        limits.charge(&key("a"), terms, 1, Duration::from_millis(millis)).admitted
    }

    #[test]
    fn the_previous_window_counts_by_the_share_that_is_still_covered() {
        let limits = Limits::default();
        let admitted = |millis| (0..100).filter(|_| admits(&limits, &sliding(10), millis)).count();
        assert_eq!([900, 1_000, 1_099, 1_100, 1_500, 1_999, 5_000].map(admitted), [10, 0, 0, 1, 4, 4, 10]);
    }

    #[test]
    fn a_fixed_window_begins_with_nothing() {
        let limits = Limits::default();
        let admitted = |millis| (0..100).filter(|_| admits(&limits, &fixed(10), millis)).count();
        assert_eq!([0, 999, 1_000, 1_999, 2_000].map(admitted), [10, 0, 10, 0, 10]);
    }

    #[test]
    fn a_refused_request_consumes_nothing() {
        let limits = Limits::default();
        let standings: Vec<Standing> = (0..1_000).map(|_| limits.charge(&key("a"), &sliding(2), 1, Duration::ZERO)).collect();
        assert_eq!(standings.iter().filter(|standing| standing.admitted).count(), 2);
        assert!(standings.iter().skip(1).all(|standing| standing.remaining == 0));
        // Two were counted, not a thousand: half of the next window later one of them is out of sight.
        assert!(admits(&limits, &sliding(2), 1_500));
    }

    #[test]
    fn a_refund_takes_back_one_request_also_when_the_window_has_turned() {
        let limits = Limits::default();
        let refund = |millis| limits.refund(&key("a"), &sliding(1), 1, Duration::from_millis(millis));
        assert!(admits(&limits, &sliding(1), 900));
        refund(900);
        assert!(admits(&limits, &sliding(1), 900));
        assert!(!admits(&limits, &sliding(1), 1_000));
        refund(900);
        assert!(admits(&limits, &sliding(1), 1_000));
        assert!(!admits(&limits, &sliding(1), 3_000 - 1_001));
        refund(0);
        assert!(!admits(&limits, &sliding(1), 3_000 - 1_001), "a window that has passed gives nothing back");
    }

    #[test]
    fn a_clock_that_lags_gives_nothing_away() {
        for terms in [sliding(10), fixed(10)] {
            let limits = Limits::default();
            assert!((0..10).all(|_| admits(&limits, &terms, 2_000)));
            assert!(!admits(&limits, &terms, 1_500));
        }
    }

    /// What was admitted of one key, and when, as plainly as it can be written.
    #[derive(Default)]
    struct Log(Vec<(u64, u64)>);

    impl Log {
        fn admits(&self, terms: &Terms, cost: u64, now: u64) -> bool {
            let window = terms.window.as_nanos() as u64;
            let within = |index: u64| self.0.iter().filter(|(at, _)| at / window == index).map(|(_, cost)| cost).sum::<u64>();
            let index = now / window;
            let previous = if index == 0 || terms.algorithm == Algorithm::FixedWindow { 0 } else { within(index - 1) };
            within(index) + (previous * (window - now % window)).div_ceil(window) + cost <= terms.limit
        }
    }

    fn algorithm() -> impl Strategy<Value = Algorithm> {
        prop_oneof![Just(Algorithm::FixedWindow), Just(Algorithm::SlidingWindow)]
    }

    proptest! {
        #[test]
        fn they_agree_with_a_log_and_the_sliding_one_stays_near_an_exact_one(
            algorithm in algorithm(), limit in 0u64..20, window in 1u64..200,
            steps in proptest::collection::vec((0u64..60, 0usize..3, 0u64..4), 1..300),
        ) {
            let limits = Limits::default();
            let terms = Terms { limit, window: Duration::from_nanos(window), algorithm };
            let keys = [key("a"), key("b"), key("c")];
            let mut logs: [Log; 3] = Default::default();
            let mut now = 0;
            for (step, who, cost) in steps {
                now += step / 10 * (step % 10);
                let expected = logs[who].admits(&terms, cost, now);
                let standing = limits.charge(&keys[who], &terms, cost, Duration::from_nanos(now));
                prop_assert_eq!(standing.admitted, expected);
                if expected {
                    logs[who].0.push((now, cost));
                    // An exact log would hold at most `limit` in any window; the blend at most the share of one more.
                    let exact: u64 = logs[who].0.iter().filter(|(at, _)| at + window > now).map(|(_, cost)| cost).sum();
                    let more = if algorithm == Algorithm::FixedWindow { limit } else { limit * (now % window) / window };
                    prop_assert!(cost == 0 || exact <= limit + more, "{} in a window at {}", exact, now);
                }
                prop_assert!(standing.remaining <= limit);
                prop_assert!(standing.reset <= 2 * terms.window);
            }
        }

        #[test]
        fn as_much_as_was_asked_for_is_admitted_after_the_stated_wait_and_not_before(
            algorithm in algorithm(), limit in 1u64..20, window in 1u64..200, steps in proptest::collection::vec((0u64..80, 1u64..4), 1..60),
        ) {
            let limits = Limits::default();
            let terms = Terms { limit, window: Duration::from_nanos(window), algorithm };
            let mut log = Log::default();
            let mut now = 0;
            for (step, cost) in steps {
                now += step / 8;
                let standing = limits.charge(&key("a"), &terms, cost, Duration::from_nanos(now));
                if standing.admitted {
                    log.0.push((now, cost));
                }
                let then = now + standing.retry_after.as_nanos() as u64;
                prop_assert_eq!(log.admits(&terms, cost, then), cost <= limit);
                prop_assert!(then == now || !log.admits(&terms, cost, then - 1));
                let reset = now + standing.reset.as_nanos() as u64;
                prop_assert!(log.admits(&terms, limit, reset));
                prop_assert!(log.admits(&terms, standing.remaining, now) && !log.admits(&terms, standing.remaining + 1, now));
            }
        }
    }
}
