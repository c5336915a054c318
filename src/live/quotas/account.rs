//! What one key has used of a quota: charges added up by the slot of time in which they were made.
//!
//! A slot says when it was charged last, so the same slots answer for every period: a reload that turns a day into a month loses nothing.

use std::time::Duration;

use super::QuotaTerms;
use super::period::{Period, Window};
use crate::live::limits::Standing;

/// Charges of one key, in the order of time.
#[derive(Debug, Default)]
pub(crate) struct Account {
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
pub(crate) struct Entry {
    /// When its slot begins.
    pub(crate) begins: u64,
    /// When it was charged last.
    pub(crate) last: u64,
    /// The first second in which it counts no longer.
    pub(crate) until: u64,
    /// What was charged, or is to be added to it.
    pub(crate) units: i64,
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
    pub(crate) fn standing(&self, terms: &QuotaTerms, unix: Duration) -> Standing {
        let window = terms.period.window(unix.as_secs());
        self.stand(terms, &window, self.used(&window), 1, unix)
    }

    /// Takes note of what is written down. Whoever knows of more is right: another process has charged as well, or it was not written yet.
    pub(crate) fn merge(&mut self, entry: Entry) {
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
