//! `token_bucket` and `leaky_bucket`: one level per key, which drains at the limit's rate and rises with what is admitted.
//!
//! The token bucket admits while the level stays within the burst. The leaky bucket admits what finds a bounded level before it, and has it
//! wait until that has drained: so requests pass one after the other at a constant rate. All arithmetic is exact: a unit of cost is as many
//! parts as the window has nanoseconds, and in each nanosecond as many parts drain as the limit has units.

use std::time::Duration;

use super::table::Account;
use super::{Pace, Standing, div_ceil};

/// How full the bucket of one key was at a time; packed so that it fills a cache line with its key.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C, packed(8))]
pub(super) struct Level {
    /// In parts.
    level: u128,
    /// In nanoseconds.
    at: u64,
}

/// What a level is held to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bound {
    /// So many units at once.
    Burst(u64),
    /// No more than so many units before it, and no longer than so many nanoseconds of wait.
    Queue(u64, u64),
}

impl Level {
    /// So many units, poured in just now.
    pub(super) fn just_poured(units: u64, pace: Pace, now: u64) -> Self {
        Self { level: parts(units, pace), at: now }
    }

    /// The same units in parts of another window.
    pub(super) fn moved(self, from: Pace, to: Pace, now: u64) -> Self {
        let Self { level, at } = self.aged(from, now);
        let (units, rest) = (level / u128::from(from.window), level % u128::from(from.window));
        let rest = (rest * u128::from(to.window)).div_ceil(from.window.into());
        Self { level: units.saturating_mul(to.window.into()).saturating_add(rest), at }
    }

    /// How many units have not drained, rounded up.
    pub(super) fn units(self, pace: Pace, now: u64) -> u64 {
        div_ceil(self.aged(pace, now).level, pace.window)
    }

    /// Pours in all units or none.
    pub(super) fn charge(&mut self, bound: Bound, pace: Pace, cost: u64, now: u64) -> Standing {
        let Self { level: before, at } = self.aged(pace, now);
        let poured = before.saturating_add(parts(cost, pace));
        // The most that may stand there: with a burst after this request, in a queue before it.
        let (most, met, dearest) = match bound {
            Bound::Burst(burst) => (parts(burst, pace), poured, burst),
            Bound::Queue(queue, longest) => (parts(queue, pace).min(u128::from(longest) * u128::from(pace.limit)), before, pace.limit),
        };
        let admitted = met <= most && cost <= dearest && pace.limit > 0;
        let level = if admitted { poured } else { before };
        *self = Self { level, at };

        // A time that lags behind the account's has longer to wait.
        let lag = at.saturating_sub(now);
        let drained_to = |target: u128| match level.saturating_sub(target) {
            0 => Duration::ZERO,
            parts => Duration::from_nanos(div_ceil(parts, pace.limit).saturating_add(lag)),
        };
        let remaining = match bound {
            Bound::Burst(_) => units_below(most, level, pace),
            // One may still join at the bound itself.
            Bound::Queue(..) if level <= most && pace.limit > 0 => units_below(most, level, pace).saturating_add(1),
            Bound::Queue(..) => 0,
        };
        let retry_after = match bound {
            Bound::Burst(_) => drained_to(most.saturating_sub(parts(cost, pace))),
            Bound::Queue(..) => drained_to(most),
        };
        let wait = match (admitted, bound) {
            (true, Bound::Queue(..)) if before > 0 => Duration::from_nanos(div_ceil(before, pace.limit).saturating_add(lag)),
            _ => Duration::ZERO,
        };
        Standing { admitted, remaining, reset: drained_to(0), retry_after, wait }
    }

    /// Takes back what was poured in at a time.
    pub(super) fn refund(&mut self, bound: Bound, pace: Pace, cost: u64, charged: u64) {
        let poured = parts(cost, pace);
        let taken_back = match bound {
            // What may have drained since is not given back a second time.
            Bound::Burst(_) => poured.saturating_sub(u128::from(self.at.saturating_sub(charged)) * u128::from(pace.limit)),
            // The turn of the last in the queue, and no other: those behind were told theirs, so nobody else could use it at a constant rate.
            Bound::Queue(..) if self.turn_of_the_last(poured, pace) <= charged => poured,
            Bound::Queue(..) => 0,
        };
        self.level = { self.level }.saturating_sub(taken_back);
    }

    /// When the turn comes, or came, of a request that poured in so much and has nobody behind it.
    fn turn_of_the_last(&self, poured: u128, pace: Pace) -> u64 {
        match { self.level }.checked_sub(poured) {
            Some(before) => self.at.saturating_add(div_ceil(before, pace.limit)),
            // A part of it has drained already.
            None => self.at.saturating_sub(u64::try_from((poured - self.level) / u128::from(pace.limit.max(1))).unwrap_or(u64::MAX)),
        }
    }
}

impl Account for Level {
    fn aged(self, pace: Pace, now: u64) -> Self {
        match now.checked_sub(self.at) {
            Some(passed) => Self { level: { self.level }.saturating_sub(u128::from(passed) * u128::from(pace.limit)), at: now },
            None => self,
        }
    }

    fn is_idle(&self) -> bool {
        self.level == 0
    }

    fn weight(&self, pace: Pace, now: u64) -> u128 {
        self.aged(pace, now).level
    }

    fn stricter(self, other: Self, pace: Pace) -> Self {
        let at = self.at.max(other.at);
        let (one, other) = (self.aged(pace, at), other.aged(pace, at));
        Self { level: { one.level }.max(other.level), at }
    }
}

fn parts(units: u64, pace: Pace) -> u128 {
    u128::from(units) * u128::from(pace.window)
}

/// Whole units between a level and what it may reach.
fn units_below(most: u128, level: u128, pace: Pace) -> u64 {
    let parts = most.saturating_sub(level);
    let small = u64::try_from(parts).map(|parts| parts / pace.window);
    small.unwrap_or_else(|_| u64::try_from(parts / u128::from(pace.window)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SECOND, key};
    use super::super::{Algorithm, Limits, Terms};
    use super::*;
    use proptest::prelude::*;

    fn tokens(limit: u64, burst: u64) -> Terms {
        Terms { limit, window: SECOND, algorithm: Algorithm::TokenBucket { burst } }
    }

    fn queue(limit: u64, queue: u64, max_wait: Duration) -> Terms {
        Terms { limit, window: SECOND, algorithm: Algorithm::LeakyBucket { queue, max_wait } }
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_token_bucket_admits_its_burst_and_then_its_rate() {
        let limits = Limits::default();
        let terms = tokens(10, 30);
        let admitted = |at| (0..100).filter(|_| limits.charge(&key("a"), &terms, 1, millis(at)).admitted).count();
        assert_eq!([0, 99, 100, 150, 200, 1_000, 100_000].map(admitted), [30, 0, 1, 0, 1, 8, 30]);
    }

    #[test]
    fn a_rate_that_does_not_divide_the_window_is_exact_in_the_long_run() {
        let limits = Limits::default();
        let terms = Terms { window: Duration::from_nanos(1_000), ..tokens(7, 1) };
        let admitted = (0..70_000).filter(|now| limits.charge(&key("a"), &terms, 1, Duration::from_nanos(*now)).admitted).count();
        assert_eq!(admitted, 70 * 7);
    }

    #[test]
    fn a_cost_is_taken_whole_or_not_and_one_over_the_burst_never() {
        let limits = Limits::default();
        let charge = |cost, at| limits.charge(&key("a"), &tokens(10, 5), cost, millis(at));
        assert!(!charge(6, 0).admitted);
        assert_eq!(charge(4, 0).remaining, 1);
        let refused = charge(4, 0);
        assert_eq!((refused.admitted, refused.remaining, refused.retry_after), (false, 1, millis(300)));
        assert!(!charge(4, 299).admitted);
        assert!(charge(4, 300).admitted);
    }

    #[test]
    fn a_leaky_bucket_gives_turns_in_order_and_refuses_what_the_queue_or_the_patience_does_not_hold() {
        let limits = Limits::default();
        let waits = |terms: &Terms, key: &super::super::Key, at| {
            let standings: Vec<_> = (0..6).map(|_| limits.charge(key, terms, 1, millis(at))).collect();
            standings.iter().map(|standing| standing.admitted.then_some(standing.wait.as_millis())).collect::<Vec<_>>()
        };
        let three = queue(10, 3, SECOND);
        assert_eq!(waits(&three, &key("a"), 0), [Some(0), Some(100), Some(200), Some(300), None, None]);
        assert_eq!(waits(&three, &key("a"), 150), [Some(250), None, None, None, None, None]);
        assert_eq!(waits(&three, &key("a"), 10_000), [Some(0), Some(100), Some(200), Some(300), None, None]);
        assert_eq!(waits(&queue(10, 100, millis(250)), &key("b"), 0), [Some(0), Some(100), Some(200), None, None, None]);
        assert_eq!(waits(&queue(10, 0, SECOND), &key("c"), 0), [Some(0), None, None, None, None, None]);
    }

    #[test]
    fn the_last_in_a_queue_that_leaves_gives_its_turn_back_and_no_other_does() {
        let limits = Limits::default();
        let terms = queue(10, 10, SECOND);
        let charge = |at| limits.charge(&key("a"), &terms, 1, millis(at)).wait + millis(at);
        let leave = |turn| limits.refund(&key("a"), &terms, 1, turn);
        let turns: Vec<_> = (0..4).map(|_| charge(0)).collect();
        assert_eq!(turns, [0, 100, 200, 300].map(millis));
        leave(turns[1]);
        assert_eq!(charge(10), millis(400));
        leave(millis(400));
        leave(turns[3]);
        assert_eq!(charge(20), millis(300));
        // Its turn has begun, nobody is behind it: the rest of it is free.
        leave(millis(300));
        leave(turns[2]);
        assert_eq!(charge(250), millis(250));
        assert_eq!(charge(250), millis(350));
    }

    #[test]
    fn a_token_that_has_come_back_by_itself_is_not_given_back_again() {
        let limits = Limits::default();
        let charge = |at| limits.charge(&key("a"), &tokens(10, 3), 1, millis(at)).remaining;
        let refund = |at| limits.refund(&key("a"), &tokens(10, 3), 1, millis(at));
        assert_eq!(charge(0), 2);
        refund(0);
        assert_eq!(charge(0), 2);
        assert_eq!(charge(100), 2);
        refund(0);
        assert_eq!(charge(100), 1);
    }

    #[test]
    fn a_clock_that_lags_gives_nothing_away() {
        let limits = Limits::default();
        assert_eq!((0..20).filter(|_| limits.charge(&key("a"), &tokens(10, 5), 1, millis(1_000)).admitted).count(), 5);
        assert_eq!(limits.charge(&key("a"), &tokens(10, 5), 1, millis(900)).retry_after, millis(200));
        let terms = queue(10, 5, SECOND);
        assert_eq!(limits.charge(&key("b"), &terms, 1, millis(1_000)).wait, Duration::ZERO);
        assert_eq!(limits.charge(&key("b"), &terms, 1, millis(900)).wait, millis(200));
    }

    #[test]
    fn the_largest_numbers_give_nothing_away() {
        for algorithm in [Algorithm::TokenBucket { burst: 3 }, Algorithm::LeakyBucket { queue: 2, max_wait: Duration::MAX }] {
            for window in [Duration::MAX, Duration::from_nanos(1)] {
                let limits = Limits::default();
                let terms = Terms { limit: 3, window, algorithm };
                let at_once = (0..9).filter(|_| limits.charge(&key("a"), &terms, 1, Duration::MAX).admitted).count();
                assert_eq!(at_once, 3, "{terms:?}");
            }
            let limits = Limits::default();
            let none = Terms { limit: 0, window: SECOND, algorithm };
            assert!(!limits.charge(&key("a"), &none, 1, SECOND).admitted);
            assert!(
                !limits.charge(&key("a"), &Terms { limit: u64::MAX, ..none }, u64::MAX, SECOND).admitted
                    || matches!(algorithm, Algorithm::LeakyBucket { .. })
            );
        }
    }

    proptest! {
        /// In any span as much as the burst and what the rate brings in it, and no less than that allows.
        #[test]
        fn a_token_bucket_agrees_with_a_log_of_all_spans(
            limit in 1u64..20, window in 1u64..200, burst in 0u64..10, steps in proptest::collection::vec((0u64..60, 0u64..4), 1..100),
        ) {
            let limits = Limits::default();
            let terms = Terms { limit, window: Duration::from_nanos(window), algorithm: Algorithm::TokenBucket { burst } };
            let mut log: Vec<(u64, u64)> = Vec::new();
            let admits = |log: &[(u64, u64)], cost: u64, now: u64| {
                cost <= burst && log.iter().enumerate().all(|(from, (began, _))| {
                    let units = log[from..].iter().map(|(_, cost)| cost).sum::<u64>() + cost;
                    units * window <= burst * window + (now - began) * limit
                })
            };
            let mut now = 0;
            for (step, cost) in steps {
                now += step / 10 * (step % 10);
                let standing = limits.charge(&key("a"), &terms, cost, Duration::from_nanos(now));
                prop_assert_eq!(standing.admitted, admits(&log, cost, now));
                if standing.admitted {
                    log.push((now, cost));
                }
                prop_assert!(admits(&log, standing.remaining, now) && !admits(&log, standing.remaining + 1, now));
                let then = now + standing.retry_after.as_nanos() as u64;
                prop_assert!(cost > burst || admits(&log, cost, then));
                prop_assert!(standing.admitted || cost > burst || !standing.retry_after.is_zero());
                prop_assert!(then == now || cost > burst || !admits(&log, cost, then - 1));
                let reset = now + standing.reset.as_nanos() as u64;
                prop_assert!(admits(&log, burst, reset));
                prop_assert!(burst == 0 || reset == now || !admits(&log, burst, reset - 1));
                prop_assert_eq!(standing.wait, Duration::ZERO);
            }
        }

        /// A list of turns, in nanoseconds times the limit so that none is rounded.
        #[test]
        fn a_leaky_bucket_agrees_with_a_list_of_turns(
            limit in 1u64..20, window in 1u64..200, queue in 0u64..6, max_wait in 0u64..400,
            steps in proptest::collection::vec((0u64..60, 1u64..3, any::<bool>()), 1..100),
        ) {
            let limits = Limits::default();
            let algorithm = Algorithm::LeakyBucket { queue, max_wait: Duration::from_nanos(max_wait) };
            let terms = Terms { limit, window: Duration::from_nanos(window), algorithm };
            // The turn and the cost of each that was let in and has not left, the last one last.
            let mut turns: Vec<(u64, u64)> = Vec::new();
            let mut now = 0;
            for (step, cost, leaves) in steps {
                now += step / 10 * (step % 10);
                let free = turns.last().map_or(0, |(turn, cost)| turn + cost * window);
                let turn = free.max(now * limit);
                let wait = turn - now * limit;
                let expected = cost <= limit && wait <= queue * window && wait <= max_wait * limit;
                let standing = limits.charge(&key("a"), &terms, cost, Duration::from_nanos(now));
                prop_assert_eq!(standing.admitted, expected);
                let (mut free, mut remaining) = (if expected { turn + cost * window } else { free }, 0);
                while free.saturating_sub(now * limit) <= (queue * window).min(max_wait * limit) {
                    (free, remaining) = (free.max(now * limit) + window, remaining + 1);
                }
                prop_assert_eq!(standing.remaining, remaining);
                if !expected {
                    prop_assert_eq!(standing.wait, Duration::ZERO);
                    prop_assert!(cost > limit || !standing.retry_after.is_zero());
                    continue;
                }
                prop_assert_eq!(standing.wait, Duration::from_nanos(wait.div_ceil(limit)));
                let waiting = turns.iter().filter(|(turn, _)| *turn > now * limit).count() as u64;
                prop_assert!(wait == 0 || waiting < queue, "{} wait already", waiting);
                turns.push((turn, cost));
                if leaves {
                    limits.refund(&key("a"), &terms, cost, Duration::from_nanos(now) + standing.wait);
                    turns.pop();
                }
            }
        }

        #[test]
        fn whoever_leaves_no_turn_comes_too_early(
            limit in 1u64..20, window in 1u64..200, steps in proptest::collection::vec((0u64..60, 1u64..3, any::<proptest::sample::Index>()), 1..100),
        ) {
            let limits = Limits::default();
            let terms = Terms { limit, window: Duration::from_nanos(window), algorithm: Algorithm::LeakyBucket { queue: 20, max_wait: SECOND } };
            let mut turns: Vec<(u64, u64)> = Vec::new();
            let mut now = 0;
            for (step, cost, who) in steps {
                now += step / 10 * (step % 10);
                if step % 2 == 0 && !turns.is_empty() {
                    let (turn, cost) = turns.remove(who.index(turns.len()));
                    if turn >= now {
                        limits.refund(&key("a"), &terms, cost, Duration::from_nanos(turn));
                    }
                    continue;
                }
                let standing = limits.charge(&key("a"), &terms, cost, Duration::from_nanos(now));
                if standing.admitted {
                    let turn = now + standing.wait.as_nanos() as u64;
                    if let Some((last, cost)) = turns.last() {
                        // As far apart as the cost of the one before asks; each turn is rounded up to a whole nanosecond.
                        prop_assert!((turn + 1 - last) * limit > cost * window, "{} after {}", turn, last);
                    }
                    turns.push((turn, cost));
                }
            }
        }
    }
}
