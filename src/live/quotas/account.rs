//! What one key has used of a quota: charges added up by the slot of time in which they were made.
//!
//! A slot says when it was charged last, so the same slots answer for every period: a reload that turns a day into a month loses nothing.

use std::time::Duration;

use super::QuotaTerms;
use super::period::{Period, Window};
use crate::live::limits::Standing;

/// Charges of one key, in the order of time.
#[derive(Debug, Default, Clone)]
pub(super) struct Account {
    slots: Vec<Slot>,
    /// Whether the key is among those that are to be written down.
    listed: bool,
}

/// Times are seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    begins: u64,
    /// When it was charged last: all of it counts as charged then.
    last: u64,
    /// The first second in which it counts no longer, by the period under which it was charged.
    until: u64,
    used: u64,
    /// What is to be added to what is written down; `Some(0)` when only a time has changed.
    unwritten: Option<i64>,
}

/// A slot as it is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// When its slot begins.
    pub(super) begins: u64,
    /// When it was charged last.
    pub(super) last: u64,
    /// The first second in which it counts no longer.
    pub(super) until: u64,
    /// What was charged, or is to be added to it.
    pub(super) units: i64,
}

impl Account {
    /// Charges `cost` when the quota has as much left.
    pub(super) fn charge(&mut self, terms: &QuotaTerms, cost: u64, unix: Duration) -> Standing {
        let second = unix.as_secs();
        let window = terms.period.window(second);
        let used = self.used(&window);
        let admitted = terms.limit.checked_sub(used).is_some_and(|left| cost <= left);
        if admitted {
            self.add(terms.period, &window, second, cost);
        }
        let used = if admitted { used.saturating_add(cost) } else { used };
        Standing { admitted, ..self.stand(terms, &window, used, cost, unix) }
    }

    /// Takes back what was charged at `unix`.
    pub(super) fn refund(&mut self, period: Period, cost: u64, unix: Duration) {
        let begins = period.window(unix.as_secs()).slot;
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.begins == begins) {
            let cost = cost.min(slot.used);
            slot.used -= cost;
            slot.unwritten = Some(slot.unwritten.unwrap_or(0).saturating_sub_unsigned(cost));
        }
    }

    /// Where the key stands; `admitted` says whether one more would be.
    pub(super) fn standing(&self, terms: &QuotaTerms, unix: Duration) -> Standing {
        let window = terms.period.window(unix.as_secs());
        self.stand(terms, &window, self.used(&window), 1, unix)
    }

    /// Takes note of what is written down. Whoever knows of more is right: another process has charged as well, or it was not written yet.
    pub(super) fn merge(&mut self, entry: Entry) {
        let Entry { begins, last, until, units } = entry;
        let written = u64::try_from(units).unwrap_or(0);
        match self.slots.iter_mut().find(|slot| slot.begins == begins) {
            Some(slot) => {
                slot.used = slot.used.max(written.saturating_add_signed(slot.unwritten.unwrap_or(0)));
                slot.last = slot.last.max(last);
                slot.until = slot.until.max(until);
            }
            None => self.insert(Slot { begins, last, until, used: written, unwritten: None }),
        }
    }

    /// What is to be written down, and is taken for written from now on.
    pub(super) fn take_unwritten(&mut self) -> impl Iterator<Item = Entry> + '_ {
        self.listed = false;
        self.slots.iter_mut().filter_map(|slot| {
            let Slot { begins, last, until, .. } = *slot;
            Some(Entry { begins, last, until, units: slot.unwritten.take()? })
        })
    }

    /// Takes back what could not be written.
    pub(super) fn give_back(&mut self, entry: Entry) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.begins == entry.begins) {
            slot.unwritten = Some(slot.unwritten.unwrap_or(0).saturating_add(entry.units));
        }
    }

    /// Forgets what is written down and has counted no longer for `memory` seconds. Says whether anything is left.
    pub(super) fn forget(&mut self, second: u64, memory: u64) -> bool {
        self.slots.retain(|slot| slot.unwritten.is_some() || slot.until.saturating_add(memory) > second);
        !self.slots.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether the key has to be put on the list of those to be written down; it is taken for listed from now on.
    pub(super) fn lists(&mut self) -> bool {
        // The slot that was charged is most likely the last one.
        let lists = !self.listed && self.slots.iter().rev().any(|slot| slot.unwritten.is_some());
        self.listed |= lists;
        lists
    }

    fn used(&self, window: &Window) -> u64 {
        self.slots.iter().filter(|slot| slot.counts(window)).fold(0, |used, slot| used.saturating_add(slot.used))
    }

    fn add(&mut self, period: Period, window: &Window, second: u64, cost: u64) {
        let until = period.end_of(second);
        if let Some(slot) = self.slots.iter_mut().rev().find(|slot| slot.begins == window.slot) {
            slot.last = slot.last.max(second);
            slot.until = slot.until.max(until);
            slot.used = slot.used.saturating_add(cost);
            slot.unwritten = Some(slot.unwritten.unwrap_or(0).saturating_add_unsigned(cost));
            return;
        }
        self.forget(second, period.memory());
        self.slots.retain(|slot| slot.unwritten.is_some() || slot.begins < window.horizon);
        // What counts under this period must last as long as it does, also where another one was in force when it was charged.
        for slot in self.slots.iter_mut().filter(|slot| slot.counts(window) && slot.until < period.end_of(slot.last)) {
            slot.until = period.end_of(slot.last);
            slot.unwritten.get_or_insert(0);
        }
        let unwritten = Some(0_i64.saturating_add_unsigned(cost));
        self.insert(Slot { begins: window.slot, last: second, until, used: cost, unwritten });
    }

    /// Most keys have one slot: no room is made for more.
    fn insert(&mut self, slot: Slot) {
        let at = self.slots.partition_point(|other| other.begins < slot.begins);
        self.slots.reserve_exact(1);
        self.slots.insert(at, slot);
    }

    fn stand(&self, terms: &QuotaTerms, window: &Window, used: u64, wanted: u64, unix: Duration) -> Standing {
        let remaining = terms.limit.saturating_sub(used);
        let until = |second: u64| Duration::from_secs(second).saturating_sub(unix);
        let counting = || self.slots.iter().filter(|slot| slot.counts(window)).map(|slot| (slot.used, terms.period.end_of(slot.last)));
        let whole = match (counting().map(|(_, end)| end).max(), terms.period) {
            (Some(end), _) => end,
            (None, Period::Day | Period::Month) => terms.period.end_of(unix.as_secs()),
            (None, Period::Rolling(_)) => unix.as_secs(),
        };
        let mut lacking = wanted.saturating_sub(remaining);
        let mut enough = unix.as_secs();
        for (used, end) in counting() {
            if lacking == 0 {
                break;
            }
            lacking = lacking.saturating_sub(used);
            enough = enough.max(end);
        }
        // More than the quota ever has: there is no good time to come back.
        let enough = if lacking > 0 { whole } else { enough };
        Standing { admitted: wanted <= remaining, remaining, reset: until(whole), retry_after: until(enough), wait: Duration::ZERO }
    }
}

impl Slot {
    fn counts(&self, window: &Window) -> bool {
        self.last >= window.begins && self.begins < window.horizon
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: u64 = 3_600;
    const DAY: u64 = 24 * HOUR;
    /// 2026-11-23T00:00:00Z.
    const MONDAY: u64 = 1_795_392_000;
    /// 2026-12-01T00:00:00Z.
    const DECEMBER: u64 = 1_796_083_200;

    fn daily(limit: u64) -> QuotaTerms {
        QuotaTerms { limit, period: Period::Day }
    }

    fn monthly(limit: u64) -> QuotaTerms {
        QuotaTerms { limit, period: Period::Month }
    }

    fn rolling(limit: u64, seconds: u64) -> QuotaTerms {
        QuotaTerms { limit, period: Period::Rolling(Duration::from_secs(seconds)) }
    }

    fn charge(account: &mut Account, terms: QuotaTerms, cost: u64, second: u64) -> Standing {
        account.charge(&terms, cost, Duration::from_secs(second))
    }

    /// How many of these are admitted at a second, one by one.
    fn admitted(account: &mut Account, terms: QuotaTerms, second: u64) -> usize {
        (0..1_000).filter(|_| charge(account, terms, 1, second).admitted).count()
    }

    fn remaining(account: &Account, terms: QuotaTerms, second: u64) -> u64 {
        account.standing(&terms, Duration::from_secs(second)).remaining
    }

    #[test]
    fn a_cost_is_charged_whole_or_not_at_all_and_the_wait_is_for_that_cost() {
        let mut account = Account::default();
        assert_eq!(charge(&mut account, daily(10), 7, MONDAY).remaining, 3);
        let refused = charge(&mut account, daily(10), 4, MONDAY + HOUR);
        assert_eq!((refused.admitted, refused.remaining, refused.retry_after), (false, 3, Duration::from_secs(23 * HOUR)));
        let last = charge(&mut account, daily(10), 3, MONDAY + HOUR);
        assert_eq!((last.admitted, last.remaining, last.reset), (true, 0, Duration::from_secs(23 * HOUR)));
        // One that never fits is told of the period's end as well, and is refused then too.
        assert_eq!(charge(&mut account, daily(10), 11, MONDAY).retry_after, Duration::from_secs(DAY));
        assert!(!charge(&mut account, daily(10), 11, MONDAY + DAY).admitted);
    }

    #[test]
    fn a_refund_takes_back_what_was_charged_when_it_was_charged() {
        let mut account = Account::default();
        assert_eq!(admitted(&mut account, daily(3), MONDAY + DAY - 1), 3);
        assert_eq!(admitted(&mut account, daily(3), MONDAY + DAY), 3);
        account.refund(Period::Day, 1, Duration::from_secs(MONDAY + DAY - 1));
        assert_eq!(remaining(&account, daily(3), MONDAY + DAY), 0);
        account.refund(Period::Day, 1, Duration::from_secs(MONDAY + DAY));
        assert_eq!(remaining(&account, daily(3), MONDAY + DAY), 1);
        account.refund(Period::Day, 9, Duration::from_secs(MONDAY + DAY));
        assert_eq!(remaining(&account, daily(3), MONDAY + DAY), 3);
    }

    #[test]
    fn what_was_used_stands_when_the_quota_changes() {
        let mut account = Account::default();
        assert_eq!(admitted(&mut account, daily(60), MONDAY + HOUR), 60);
        assert_eq!(remaining(&account, daily(50), MONDAY + HOUR), 0);
        assert_eq!(remaining(&account, daily(100), MONDAY + HOUR), 40);
        // A day's use counts in its month, also after the day is over and was forgotten by days.
        assert_eq!(admitted(&mut account, monthly(100), MONDAY + 2 * HOUR), 40);
        account.take_unwritten().for_each(drop);
        assert!(account.forget(MONDAY + 3 * DAY, 0));
        assert_eq!(remaining(&account, monthly(100), DECEMBER - 1), 0);
        assert_eq!(remaining(&account, monthly(100), DECEMBER), 100);
        // A month's use counts in the day of the change, and no longer.
        assert_eq!(remaining(&account, daily(100), MONDAY + 3 * HOUR), 0);
        assert_eq!(remaining(&account, daily(100), MONDAY + DAY), 100);
        assert_eq!(remaining(&account, rolling(100, 2 * HOUR), MONDAY + 3 * HOUR), 0);
        assert_eq!(remaining(&account, rolling(100, 2 * HOUR), MONDAY + 4 * HOUR + 1), 100);
    }

    #[test]
    fn a_clock_that_goes_back_over_midnight_frees_nothing_and_locks_out_for_no_longer_than_it_went() {
        let (before, after) = (MONDAY - 1, MONDAY + 1);
        let mut account = Account::default();
        assert_eq!(admitted(&mut account, daily(10), before), 10);
        assert_eq!(admitted(&mut account, daily(10), after), 10);
        for _ in 0..5 {
            assert_eq!(admitted(&mut account, daily(10), before), 0);
            assert_eq!(admitted(&mut account, daily(10), after), 0);
        }
        // What was charged too early stands against the day in which it was charged, and against none after it.
        let mut account = Account::default();
        assert_eq!(admitted(&mut account, daily(10), after), 10);
        assert_eq!(admitted(&mut account, daily(10), before), 0);
        assert_eq!(admitted(&mut account, daily(10), MONDAY + DAY), 10);
    }

    #[test]
    fn what_a_clock_charged_that_was_wrong_by_more_than_a_period_is_dropped() {
        for terms in [daily(10), monthly(10), rolling(10, DAY)] {
            let mut account = Account::default();
            assert_eq!(admitted(&mut account, terms, MONDAY + 1_500 * DAY), 10);
            assert_eq!(admitted(&mut account, terms, MONDAY), 10, "{terms:?}");
            assert_eq!(admitted(&mut account, terms, MONDAY), 0, "{terms:?}");
        }
    }

    #[test]
    fn an_account_holds_no_more_slots_than_a_period_has() {
        let mut account = Account::default();
        for hour in 0..10_000 {
            charge(&mut account, rolling(u64::MAX, 30 * DAY), 1, MONDAY + hour * HOUR);
            account.take_unwritten().for_each(drop);
        }
        assert!(account.slots.len() <= 62, "{}", account.slots.len());
        for day in 0..1_000 {
            charge(&mut account, daily(u64::MAX), 1, MONDAY + 10_000 * HOUR + day * DAY);
            account.take_unwritten().for_each(drop);
        }
        assert!(account.slots.len() <= 2 && account.slots.capacity() <= 64, "{}", account.slots.len());
        assert!(!account.forget(MONDAY + 2_000 * DAY, HOUR));
        assert_eq!(size_of::<Slot>(), 48);
    }

    fn period() -> impl Strategy<Value = Period> {
        prop_oneof![
            Just(Period::Day),
            Just(Period::Month),
            (1_u64..400).prop_map(|seconds| Period::Rolling(Duration::from_secs(seconds))),
            Just(Period::Rolling(Duration::from_secs(30 * DAY))),
        ]
    }

    /// Steps of time from nothing to two months, in milliseconds.
    fn step() -> impl Strategy<Value = u64> {
        (0_u32..33, 0_u64..256).prop_map(|(size, fine)| ((1_u64 << size) - 1) * fine / 200)
    }

    proptest! {
        #[test]
        fn it_never_admits_more_than_a_log_of_every_charge_and_refuses_at_most_a_sixtieth_too_long(
            period in period(), limit in 1_u64..30, steps in proptest::collection::vec((step(), 1_u64..6), 1..120),
        ) {
            let terms = QuotaTerms { limit, period };
            let mut account = Account::default();
            let mut log: Vec<(u64, u64)> = vec![];
            let mut millis = MONDAY * 1_000;
            let within = |log: &[(u64, u64)], since: u64| log.iter().filter(|(at, _)| *at >= since).map(|(_, cost)| cost).sum::<u64>();
            for (step, cost) in steps {
                millis += step;
                let standing = account.charge(&terms, cost, Duration::from_millis(millis));
                // What certainly counts, and what may.
                let (certain, possible) = match period {
                    Period::Rolling(length) => {
                        let (length, share) = (length.as_millis() as u64, (length.as_secs().div_ceil(60) * 1_000));
                        (within(&log, millis - length + 1), within(&log, millis - length - share - 1_000))
                    }
                    _ => {
                        let begins = period.window(millis / 1_000).begins * 1_000;
                        (within(&log, begins), within(&log, begins))
                    }
                };
                if standing.admitted {
                    prop_assert!(certain + cost <= limit);
                    log.push((millis, cost));
                } else {
                    prop_assert!(possible + cost > limit);
                }
                prop_assert!(standing.remaining <= limit);
            }
        }

        #[test]
        fn the_same_cost_is_admitted_after_the_stated_wait_and_not_before(
            period in period(), limit in 1_u64..30, steps in proptest::collection::vec((step(), 1_u64..6), 1..60),
        ) {
            let terms = QuotaTerms { limit, period };
            let mut account = Account::default();
            let mut now = Duration::from_secs(MONDAY);
            for (step, cost) in steps {
                now += Duration::from_millis(step);
                let standing = account.charge(&terms, cost, now);
                let admits = |wait: Duration, cost| account.clone().charge(&terms, cost, now + wait).admitted;
                if cost <= limit {
                    prop_assert!(admits(standing.retry_after, cost));
                    prop_assert!(standing.retry_after.is_zero() || !admits(standing.retry_after - Duration::from_nanos(1), cost));
                }
                prop_assert!(admits(standing.reset, limit));
                prop_assert!(standing.remaining == limit || !admits(standing.reset - Duration::from_nanos(1), limit));
            }
        }

        #[test]
        fn a_clock_that_goes_back_by_no_more_than_what_is_remembered_frees_nothing(
            period in period(), limit in 1_u64..30,
            steps in proptest::collection::vec((step(), 0_u64..1_000, 1_u64..6), 1..120),
        ) {
            let terms = QuotaTerms { limit, period };
            let mut account = Account::default();
            let mut log: Vec<(u64, u64)> = vec![];
            let mut latest = MONDAY;
            for (step, back, cost) in steps {
                latest += step / 1_000;
                let second = latest - period.memory() * back / 1_000;
                let standing = charge(&mut account, terms, cost, second);
                // The hours are written down meanwhile.
                account.take_unwritten().for_each(drop);
                if standing.admitted {
                    log.push((second, cost));
                    let window = period.window(second);
                    let same = |at: u64| match period {
                        Period::Rolling(_) => at >= window.begins && at <= second,
                        _ => period.window(at) == window,
                    };
                    let used: u64 = log.iter().filter(|(at, _)| same(*at)).map(|(_, cost)| cost).sum();
                    prop_assert!(used <= limit, "{used} at {second}");
                }
            }
        }
    }
}
