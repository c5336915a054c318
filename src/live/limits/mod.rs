//! The limits that one node holds by itself: for each key of a limit what it has used, by one of four algorithms.
//!
//! Keys are kept whole (or as their SHA-256 when long), so two callers never share a count by accident of a hash. Memory is bounded, see
//! [`KEYS`]; `docs/limits.md` says what each algorithm admits at worst and what is forgotten at the bound.

pub mod concurrency;

mod buckets;
mod key;
mod table;
mod windows;

use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::request::Clock;

use buckets::{Bound, Level};
pub use key::{Key, KeyBuilder};
use table::{Room, Table};
use windows::{Counts, View};

/// The most keys of one limit that are held, whatever comes.
pub const KEYS: usize = SHARDS * SHARD_KEYS;

/// So many that threads hardly ever meet in one (with 1,024, two threads with 500 keys each took 65 ns for a charge instead of 38), and that
/// making room in one is done in microseconds.
const SHARDS: usize = 4_096;

/// Seven eighths of a power of two: as much as a table holds before it doubles.
const SHARD_KEYS: usize = 448;

/// How often idle keys are dropped where nobody asks any more, so that their memory comes back.
const UPKEEP: Duration = Duration::from_secs(10);

/// How requests are counted against a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// No more than the limit in each window, which stand side by side.
    FixedWindow,
    /// The same, with the share of the previous window that a window ending now still covers.
    SlidingWindow,
    /// So many at once, and after that as many as the rate brings back.
    TokenBucket {
        /// The most units at once.
        burst: u64,
    },
    /// One after the other at the rate; what comes earlier waits for its turn.
    LeakyBucket {
        /// The most units that one may have before it.
        queue: u64,
        /// The longest that one may wait.
        max_wait: Duration,
    },
}

/// What an operator may tune; not part of a limit's identity. A change keeps what stands, and gives nothing away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Units per window; with a bucket, its steady rate.
    pub limit: u64,
    /// The window; never zero.
    pub window: Duration,
    /// How they are counted.
    pub algorithm: Algorithm,
}

/// Where a key stands after a request was counted or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether the request was counted.
    pub admitted: bool,
    /// Units left now.
    pub remaining: u64,
    /// Time until the whole allowance is back.
    pub reset: Duration,
    /// Time until one more of the same cost is admitted when nobody else asks; zero while enough remains. It says nothing for a cost that
    /// the limit never admits.
    pub retry_after: Duration,
    /// Time until its turn comes, for a request that was admitted to the queue of a leaky bucket; zero otherwise.
    pub wait: Duration,
}

/// What stands of one limit. It is found by the limit's name alone: when its terms change this stays.
#[derive(Debug)]
pub struct Limits {
    shards: Box<[Shard]>,
    hasher: ahash::RandomState,
}

/// On cache lines of its own, so that threads at different shards do not disturb each other.
#[derive(Debug)]
#[repr(align(128))]
struct Shard(Mutex<Ledger>);

impl Default for Limits {
    fn default() -> Self {
        Self::new(SHARD_KEYS)
    }
}

impl Limits {
    fn new(shard_keys: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Shard(Mutex::new(Ledger::new(shard_keys)))).collect();
        Self { shards, hasher: ahash::RandomState::new() }
    }

    /// Counts a request of `key` that costs so many units when its limit admits all of them, and nothing otherwise.
    ///
    /// A cost over the limit, or over the burst of a token bucket, is never admitted. `monotonic` may lag behind that of another thread, in
    /// which case the strict reading holds.
    pub fn charge(&self, key: &Key, terms: &Terms, cost: u64, monotonic: Duration) -> Standing {
        let hash = self.hasher.hash_one(key);
        match self.ledger(hash) {
            Some(mut ledger) => ledger.charge(hash, key, terms, cost, nanos(monotonic), &self.hasher),
            None => Standing::refused(terms),
        }
    }

    /// Where a request of `key` that costs so many units would stand. Nothing is counted.
    pub fn standing(&self, key: &Key, terms: &Terms, cost: u64, monotonic: Duration) -> Standing {
        let hash = self.hasher.hash_one(key);
        match self.ledger(hash) {
            Some(mut ledger) => ledger.standing(hash, key, terms, cost, nanos(monotonic), &self.hasher),
            None => Standing::refused(terms),
        }
    }

    /// Takes back what [`charge`](Self::charge) admitted, for a request that goes no further: `monotonic` is the time it was charged at and
    /// its [`wait`](Standing::wait) on top.
    ///
    /// Nothing is taken back when that would give something away: a window that has passed, what a token bucket has brought back since, and
    /// the turn of one in a queue who has others behind (they were told theirs; it passes unused). Nor when the terms have changed since.
    pub fn refund(&self, key: &Key, terms: &Terms, cost: u64, monotonic: Duration) {
        let hash = self.hasher.hash_one(key);
        if let Some(mut ledger) = self.ledger(hash) {
            ledger.refund(hash, key, terms, cost, nanos(monotonic));
        }
    }

    /// Drops idle keys in the background until nobody holds the limits any more.
    pub async fn maintain(this: Weak<Self>, clock: Clock) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            let mut at = 0;
            // A few at a time: others wait for this thread as well.
            while let Some(limits) = this.upgrade() {
                let Some(shards) = limits.shards.get(at..at + SHARDS / 64) else { break };
                let now = nanos(clock().monotonic);
                shards.iter().for_each(|shard| shard.lock().tidy(now, &limits.hasher));
                at += shards.len();
                drop(limits);
                tokio::task::yield_now().await;
            }
            if this.strong_count() == 0 {
                return;
            }
        }
    }

    /// How many keys are held.
    pub fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().keys()).sum()
    }

    fn ledger(&self, hash: u64) -> Option<MutexGuard<'_, Ledger>> {
        // The table in the shard takes its place from the lowest bits of the same hash and its tag from the highest.
        self.shards.get((hash >> 32) as usize % SHARDS).map(Shard::lock)
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Standing {
    fn refused(terms: &Terms) -> Self {
        Self { admitted: false, remaining: 0, reset: terms.window, retry_after: terms.window, wait: Duration::ZERO }
    }
}

/// How fast units come back, in which all that stands is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pace {
    limit: u64,
    /// In nanoseconds; never zero.
    window: u64,
}

/// The accounts of one shard, all kept at one pace.
#[derive(Debug)]
struct Ledger {
    pace: Pace,
    most: usize,
    accounts: Accounts,
}

/// Fixed and sliding windows keep the same account, and so do the two buckets.
#[derive(Debug)]
enum Accounts {
    Windows(Table<Counts>),
    Buckets(Table<Level>),
}

/// Which account is kept, and how it is read.
#[derive(Debug, Clone, Copy)]
enum Rule {
    Windows(View),
    Buckets(Bound),
}

impl From<&Terms> for Pace {
    fn from(terms: &Terms) -> Self {
        Self { limit: terms.limit, window: nanos(terms.window).max(1) }
    }
}

impl From<Algorithm> for Rule {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::FixedWindow => Self::Windows(View::Fixed),
            Algorithm::SlidingWindow => Self::Windows(View::Sliding),
            Algorithm::TokenBucket { burst } => Self::Buckets(Bound::Burst(burst)),
            Algorithm::LeakyBucket { queue, max_wait } => Self::Buckets(Bound::Queue(queue, nanos(max_wait))),
        }
    }
}

impl Ledger {
    fn new(most: usize) -> Self {
        Self { pace: Pace { limit: 0, window: 1 }, most, accounts: Accounts::Windows(Table::default()) }
    }

    fn charge(&mut self, hash: u64, key: &Key, terms: &Terms, cost: u64, now: u64, hasher: &ahash::RandomState) -> Standing {
        let (pace, rule) = (Pace::from(terms), Rule::from(terms.algorithm));
        self.adopt(pace, rule, now, hasher);
        let room = Room { hasher, most: self.most, pace, now };
        match (&mut self.accounts, rule) {
            (Accounts::Windows(table), Rule::Windows(view)) => table.charge(hash, key, room, |counts| counts.charge(view, pace, cost, now)),
            (Accounts::Buckets(table), Rule::Buckets(bound)) => table.charge(hash, key, room, |level| level.charge(bound, pace, cost, now)),
            // Never, as the rule has just been adopted.
            _ => Standing::refused(terms),
        }
    }

    fn standing(&mut self, hash: u64, key: &Key, terms: &Terms, cost: u64, now: u64, hasher: &ahash::RandomState) -> Standing {
        let (pace, rule) = (Pace::from(terms), Rule::from(terms.algorithm));
        self.adopt(pace, rule, now, hasher);
        match (&self.accounts, rule) {
            (Accounts::Windows(table), Rule::Windows(view)) => table.look(hash, key).charge(view, pace, cost, now),
            (Accounts::Buckets(table), Rule::Buckets(bound)) => table.look(hash, key).charge(bound, pace, cost, now),
            // Never, as the rule has just been adopted.
            _ => Standing::refused(terms),
        }
    }

    fn refund(&mut self, hash: u64, key: &Key, terms: &Terms, cost: u64, charged: u64) {
        let pace = Pace::from(terms);
        match (&mut self.accounts, Rule::from(terms.algorithm)) {
            _ if pace != self.pace => {}
            (Accounts::Windows(table), Rule::Windows(_)) => {
                if let Some(counts) = table.find(hash, key) {
                    counts.refund(pace, cost, charged);
                }
            }
            (Accounts::Buckets(table), Rule::Buckets(bound)) => {
                if let Some(level) = table.find(hash, key) {
                    level.refund(bound, pace, cost, charged);
                }
            }
            _ => {}
        }
    }

    /// Brings what stands to other terms: the units that are used stay used.
    fn adopt(&mut self, pace: Pace, rule: Rule, now: u64, hasher: &ahash::RandomState) {
        let before = self.pace;
        let accounts = match (&self.accounts, rule) {
            (Accounts::Windows(_), Rule::Windows(_)) | (Accounts::Buckets(_), Rule::Buckets(_)) if pace == before => return,
            (Accounts::Windows(table), Rule::Windows(_)) => Accounts::Windows(table.map(hasher, |counts| counts.moved(before, pace, now))),
            (Accounts::Buckets(table), Rule::Buckets(_)) => Accounts::Buckets(table.map(hasher, |level| level.moved(before, pace, now))),
            (Accounts::Windows(table), Rule::Buckets(_)) => {
                Accounts::Buckets(table.map(hasher, |counts| Level::just_poured(counts.used(before, now), pace, now)))
            }
            (Accounts::Buckets(table), Rule::Windows(_)) => {
                Accounts::Windows(table.map(hasher, |level| Counts::just_counted(level.units(before, now), pace, now)))
            }
        };
        *self = Self { pace, accounts, ..*self };
    }

    fn tidy(&mut self, now: u64, hasher: &ahash::RandomState) {
        let room = Room { hasher, most: self.most, pace: self.pace, now };
        match &mut self.accounts {
            Accounts::Windows(table) => table.tidy(room),
            Accounts::Buckets(table) => table.tidy(room),
        }
    }

    fn keys(&self) -> usize {
        match &self.accounts {
            Accounts::Windows(table) => table.len(),
            Accounts::Buckets(table) => table.len(),
        }
    }
}

/// Nanoseconds, of which 64 bits last for centuries.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The quotient, rounded up. Dividing 128 bits is what a charge would cost most, and most numbers are small.
fn div_ceil(number: u128, by: u64) -> u64 {
    let by = by.max(1);
    let small = u64::try_from(number).map(|number| number.div_ceil(by));
    small.unwrap_or_else(|_| u64::try_from(number.div_ceil(by.into())).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    pub(super) const SECOND: Duration = Duration::from_secs(1);

    pub(super) fn key(text: impl AsRef<[u8]>) -> Key {
        let mut key = KeyBuilder::default();
        key.part(0, text.as_ref());
        key.finish()
    }

    fn number(number: u64) -> Key {
        key(number.to_le_bytes())
    }

    const ALGORITHMS: [Algorithm; 4] = [
        Algorithm::FixedWindow,
        Algorithm::SlidingWindow,
        Algorithm::TokenBucket { burst: 10 },
        Algorithm::LeakyBucket { queue: 9, max_wait: Duration::MAX },
    ];

    fn terms(limit: u64, window: Duration, algorithm: Algorithm) -> Terms {
        Terms { limit, window, algorithm }
    }

    fn admitted(limits: &Limits, key: &Key, terms: &Terms, millis: u64) -> usize {
        (0..1_000).filter(|_| limits.charge(key, terms, 1, Duration::from_millis(millis)).admitted).count()
    }

    #[test]
    fn what_stands_of_a_key_fills_a_cache_line_and_a_shard_two_and_a_full_shard_its_table() {
        assert_eq!((Table::<Counts>::ENTRY, Table::<Level>::ENTRY), (64, 64));
        assert_eq!(size_of::<Shard>(), 128);
        assert_eq!(hashbrown::HashTable::<u8>::with_capacity(SHARD_KEYS).capacity(), SHARD_KEYS);
    }

    #[test]
    fn threads_together_never_admit_more_than_the_limit() {
        for algorithm in [
            Algorithm::FixedWindow,
            Algorithm::SlidingWindow,
            Algorithm::TokenBucket { burst: 9_999 },
            Algorithm::LeakyBucket { queue: 9_998, max_wait: Duration::MAX },
        ] {
            let limits = Limits::default();
            let terms = terms(9_999, SECOND, algorithm);
            let total = AtomicU64::new(0);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for _ in 0..5_000 {
                            let standing = limits.charge(&key("a"), &terms, 1, Duration::from_millis(500));
                            total.fetch_add(u64::from(standing.admitted), Ordering::Relaxed);
                        }
                    });
                }
            });
            assert_eq!(total.load(Ordering::Relaxed), 9_999, "{algorithm:?}");
        }
    }

    #[test]
    fn a_change_of_terms_keeps_what_is_used() {
        for before in ALGORITHMS {
            for after in ALGORITHMS {
                for (limit, window) in [(10, 1_000), (8, 1_000), (10, 60_000), (8, 500)] {
                    let limits = Limits::default();
                    let a = key("a");
                    for _ in 0..6 {
                        assert!(limits.charge(&a, &terms(10, SECOND, before), 1, SECOND).admitted);
                    }
                    let after = terms(limit, Duration::from_millis(window), after);
                    let at_once = match after.algorithm {
                        Algorithm::FixedWindow | Algorithm::SlidingWindow => limit,
                        Algorithm::TokenBucket { .. } | Algorithm::LeakyBucket { .. } => 10,
                    };
                    assert_eq!(admitted(&limits, &a, &after, 1_000) as u64, at_once - 6, "{before:?} to {after:?}");
                }
            }
        }
    }

    #[test]
    fn keys_that_never_came_gain_nothing_and_lose_nothing_by_a_change_of_terms() {
        let limits = Limits::default();
        for algorithm in ALGORITHMS {
            assert_eq!(admitted(&limits, &number(1), &terms(10, SECOND, algorithm), 0), if algorithm == ALGORITHMS[0] { 10 } else { 0 });
            assert_eq!(admitted(&limits, &key(format!("{algorithm:?}")), &terms(10, SECOND, algorithm), 0), 10);
        }
    }

    fn room(limits: &Limits) -> usize {
        let of = |accounts: &Accounts| match accounts {
            Accounts::Windows(table) => table.capacity(),
            Accounts::Buckets(table) => table.capacity(),
        };
        limits.shards.iter().map(|shard| of(&shard.lock().accounts)).sum()
    }

    #[test]
    fn a_flood_of_keys_takes_no_more_than_its_room_and_neither_frees_a_key_nor_starves_the_newcomers() {
        for algorithm in ALGORITHMS {
            let limits = Limits::new(7);
            let terms = terms(10, 1_000 * SECOND, algorithm);
            let (spent, half) = (key("spent"), key("half"));
            assert_eq!(admitted(&limits, &spent, &terms, 0), 10);
            (0..5).for_each(|_| assert!(limits.charge(&half, &terms, 1, Duration::ZERO).admitted));
            let newcomers = (0..50_000).filter(|at| limits.charge(&number(*at), &terms, 1, Duration::from_nanos(*at)).admitted).count();
            assert!(room(&limits) <= 7 * SHARDS, "{algorithm:?}");
            // Each has begun with what the least used had, which is one unit for every time that all of the room was taken.
            assert_eq!(newcomers, 50_000, "{algorithm:?}");
            assert_eq!(admitted(&limits, &spent, &terms, 1), 0, "{algorithm:?}");
            assert_eq!(admitted(&limits, &half, &terms, 1), 5, "{algorithm:?}");
            let late: usize = (0..50).map(|at| admitted(&limits, &key(format!("late {at}")), &terms, 1)).sum();
            assert!((250..490).contains(&late), "{algorithm:?}: {late}");
        }
    }

    #[test]
    fn idle_keys_make_room_before_any_count_is_forgotten() {
        for algorithm in ALGORITHMS {
            let limits = Limits::new(28);
            let terms = terms(10, SECOND, algorithm);
            for second in 0..6 {
                // In every third second as many as there is room for, less the chance that puts more in one shard than in another.
                for at in 0..SHARDS as u64 * 7 {
                    limits.charge(&number(second << 32 | at), &terms, 1, Duration::from_secs(3 * second));
                }
                assert!(room(&limits) <= 28 * SHARDS);
                assert_eq!(admitted(&limits, &key(second.to_string()), &terms, 3_000 * second), 10, "{algorithm:?}");
            }
        }
    }

    #[test]
    fn memory_comes_back_when_nobody_asks() {
        for algorithm in ALGORITHMS {
            let limits = Limits::default();
            for stranger in 0..50_000 {
                limits.charge(&number(stranger), &terms(1, SECOND, algorithm), 1, Duration::ZERO);
            }
            assert_eq!(limits.keys(), 50_000);
            limits.shards.iter().for_each(|shard| shard.lock().tidy(nanos(2 * SECOND), &limits.hasher));
            assert_eq!((limits.keys(), room(&limits)), (0, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn upkeep_drops_idle_keys_and_ends_with_the_limits() {
        let limits = Arc::new(Limits::default());
        let terms = terms(1, SECOND, Algorithm::SlidingWindow);
        (0..5_000).for_each(|at| assert!(limits.charge(&number(at), &terms, 1, Duration::ZERO).admitted));
        let began = tokio::time::Instant::now();
        let clock: Clock = Arc::new(move || crate::request::Now { monotonic: began.elapsed(), unix: Duration::ZERO });
        let upkeep = tokio::spawn(Limits::maintain(Arc::downgrade(&limits), clock));
        tokio::time::sleep(UPKEEP + SECOND).await;
        assert_eq!(limits.keys(), 0);
        tokio::time::sleep(2 * UPKEEP).await;
        assert!(!upkeep.is_finished());
        drop(limits);
        upkeep.await.unwrap();
    }

    /// What a caller does to one shard, whose table may be too small.
    #[derive(Debug, Clone)]
    enum Step {
        Charge { who: u64, cost: u64 },
        Leave,
        Tidy,
        Adopt(Terms),
    }

    fn any_terms() -> impl Strategy<Value = Terms> {
        let algorithm = (0usize..4, 0u64..12, 0u64..500).prop_map(|(which, bound, max_wait)| match which {
            0 => Algorithm::FixedWindow,
            1 => Algorithm::SlidingWindow,
            2 => Algorithm::TokenBucket { burst: bound },
            _ => Algorithm::LeakyBucket { queue: bound, max_wait: Duration::from_nanos(max_wait) },
        });
        (1u64..12, 1u64..300, algorithm).prop_map(|(limit, window, algorithm)| terms(limit, Duration::from_nanos(window), algorithm))
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            40 => (0u64..30, 1u64..3).prop_map(|(who, cost)| Step::Charge { who, cost }),
            4 => Just(Step::Leave),
            1 => Just(Step::Tidy),
            1 => any_terms().prop_map(Step::Adopt),
        ]
    }

    proptest! {
        /// Two shards see the same callers: one that must forget most of them, and one that has room for all.
        #[test]
        fn what_is_forgotten_is_in_nobodys_favour(first in any_terms(), steps in proptest::collection::vec((0u64..20, any_step()), 1..150)) {
            let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
            let (mut small, mut ample) = (Ledger::new(4), Ledger::new(SHARD_KEYS));
            let (mut terms, mut now, mut last) = (first, 0, None);
            for (pause, step) in steps {
                now += pause;
                match step {
                    Step::Charge { who, cost } => {
                        let hash = hasher.hash_one(number(who));
                        let strict = small.charge(hash, &number(who), &terms, cost, now, &hasher);
                        prop_assert!(small.keys() <= 7);
                        if strict.admitted {
                            let exact = ample.charge(hash, &number(who), &terms, cost, now, &hasher);
                            prop_assert!(exact.admitted, "{} is over its limit", who);
                            prop_assert!(strict.remaining <= exact.remaining && strict.wait >= exact.wait, "{:?} {:?} {:?}", terms, strict, exact);
                            last = Some((who, cost, terms, now + nanos(strict.wait), now + nanos(exact.wait)));
                        }
                    }
                    Step::Leave => {
                        // By the terms that it was charged by, as a request holds its own: those that serve may be others by now.
                        if let Some((who, cost, charged_by, strict, exact)) = last.take() {
                            let hash = hasher.hash_one(number(who));
                            small.refund(hash, &number(who), &charged_by, cost, strict);
                            ample.refund(hash, &number(who), &charged_by, cost, exact);
                        }
                    }
                    Step::Tidy => small.tidy(now, &hasher),
                    Step::Adopt(other) => {
                        terms = other;
                        for ledger in [&mut small, &mut ample] {
                            ledger.adopt(Pace::from(&terms), terms.algorithm.into(), now, &hasher);
                        }
                    }
                }
            }
        }
    }

    /// What a caller gets who asks for as much as there is in every millisecond from `from` on: the times at which its requests pass.
    fn greedy(limits: &Limits, terms: &Terms, from: u64, millis: u64) -> Vec<u64> {
        let mut passed = Vec::new();
        for now in from..from + millis {
            loop {
                let standing = limits.charge(&number(from), terms, 1, Duration::from_millis(now));
                if !standing.admitted {
                    break;
                }
                passed.push(now + standing.wait.as_millis() as u64);
            }
        }
        passed
    }

    fn most_within(passed: &[u64], span: u64) -> usize {
        let until = |from: u64| passed.partition_point(|at| *at < from + span);
        passed.iter().enumerate().map(|(before, from)| until(*from) - before).max().unwrap_or_default()
    }

    #[test]
    fn the_documented_table_of_what_each_admits_at_worst_is_true() {
        let window = 10_000;
        let docs = include_str!("../../../docs/limits.md");
        let rows = [
            ("`fixed_window`", Algorithm::FixedWindow),
            ("`sliding_window`", Algorithm::SlidingWindow),
            ("`token_bucket`, `burst: 100`", Algorithm::TokenBucket { burst: 100 }),
            ("`token_bucket`, `burst: 10`", Algorithm::TokenBucket { burst: 10 }),
            ("`leaky_bucket`, `queue: 50`", Algorithm::LeakyBucket { queue: 50, max_wait: Duration::MAX }),
        ];
        let lacking = rows.map(|(name, algorithm)| {
            let terms = terms(100, Duration::from_millis(window), algorithm);
            // No beginning is worse than the end of a window; the burst begins a second before.
            let limits = Limits::default();
            let passed = greedy(&limits, &terms, window - 1, 10 * window + 2);
            let edge = greedy(&limits, &terms, window - 1_000, 2_000);
            let numbers = [1, 2_000, window, 10 * window].map(|span| match span {
                2_000 => most_within(&edge, span),
                span => most_within(&passed, span),
            });
            let row = format!("| {name} | {} |", numbers.map(|number| number.to_string()).join(" | "));
            if docs.contains(&row) { String::new() } else { row }
        });
        assert!(lacking.iter().all(String::is_empty), "docs/limits.md lacks\n{}", lacking.join("\n"));
    }

    #[test]
    fn no_other_beginning_is_worse_than_the_end_of_a_window() {
        for algorithm in ALGORITHMS {
            let terms = terms(10, Duration::from_millis(200), algorithm);
            let limits = Limits::default();
            let of = |from| most_within(&greedy(&limits, &terms, from, 800), 200);
            let worst = of(199);
            assert!((0..199).all(|from| of(from) <= worst), "{algorithm:?}");
        }
    }
}
