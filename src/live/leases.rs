//! `store: hybrid`: this node's share of a limit that Redis counts, taken in leases, so that a request hardly ever waits for Redis.
//!
//! A lease is charged in Redis before it is used, and what is not used comes back. While there is none, a few units are admitted on credit and
//! charged afterwards: that credit is all by which a fleet can admit too much, see [`worst_overshoot`]. Whoever finds neither is charged in
//! Redis as under `store: redis`. Not here: queues, which have one order, so `leaky_bucket` cannot be leased.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use ahash::RandomState;
use dashmap::DashMap;
use tokio::sync::Notify;

use super::limits::{Algorithm, Key, Standing, Terms};
use super::shared_limits::{Ask, Settled, Settlement, SharedLimits, Unavailable};
use crate::metrics::RedisMetrics;
use crate::net::redis::Redis;
use crate::request::{Clock, Now};

/// How many keys of a limit have a lease on a node; those beyond are charged in Redis one by one. About 20 MiB.
const KEYS: usize = 65_536;

/// A key that settles more often takes twice as much at a time; one that settles less often half.
const PACE: Duration = Duration::from_millis(250);

/// What is not used within this time comes back.
const LIFE: Duration = Duration::from_secs(2);

/// How often leases are looked through for units that come back and keys that nobody asks for.
const SWEEP: Duration = Duration::from_millis(500);

/// A limit that is used up is asked again no sooner: in a bucket and a sliding window the next unit may come in a microsecond.
const BREATH: Duration = Duration::from_millis(10);

/// Keys in one settlement: a script of this many runs for less than a millisecond, and nobody else is served by Redis meanwhile.
const KEYS_AT_ONCE: usize = 64;

/// How long a settlement may take: nobody waits for it.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

/// The most that a node has of a limit and has not used yet, as a part of it.
const LEASE_PART: u64 = 16;

/// The most that a node admits on credit, as a part of the limit.
const CREDIT_PART: u64 = 100;

/// What a fleet admits at worst beyond what the limit would in one place, for one key.
///
/// In windows: beyond the limit in any one window, and that much again for each time a node is killed within it. In a token bucket: beyond
/// the burst and the rate, in any span.
pub fn worst_overshoot(nodes: u64, terms: Terms) -> u64 {
    let leased = match terms.algorithm {
        Algorithm::FixedWindow | Algorithm::SlidingWindow => 0,
        // A leased unit may be used while the bucket is full again.
        Algorithm::TokenBucket { .. } | Algorithm::LeakyBucket { .. } => most_leased(terms),
    };
    nodes.saturating_mul(credit(terms).saturating_add(leased))
}

/// What a fleet refuses at worst though it was left, because other nodes have it: it comes back within seconds.
pub fn worst_idle(nodes: u64, terms: Terms) -> u64 {
    nodes.saturating_mul(most_leased(terms))
}

/// Units that a node admits for a key before Redis has heard of them.
fn credit(terms: Terms) -> u64 {
    (capacity(terms) / CREDIT_PART).max(1)
}

fn most_leased(terms: Terms) -> u64 {
    (capacity(terms) / LEASE_PART).max(1)
}

fn capacity(terms: Terms) -> u64 {
    match terms.algorithm {
        Algorithm::TokenBucket { burst } => burst,
        Algorithm::FixedWindow | Algorithm::SlidingWindow | Algorithm::LeakyBucket { .. } => terms.limit,
    }
}

/// The leases of one limit on this node.
#[derive(Debug)]
pub struct Hybrid {
    name: Arc<str>,
    /// What settles in the background; a request asks through that of its own configuration.
    shared: SharedLimits,
    leases: DashMap<Key, Lease, RandomState>,
    /// Keys that have something to settle; each stands here once.
    due: Mutex<VecDeque<Key>>,
    work: Notify,
}

/// One key's. All times are monotonic.
#[derive(Debug, Clone, Copy)]
struct Lease {
    terms: Terms,
    /// Leased and not used, good until.
    units: u64,
    until: Duration,
    /// When the oldest of them was taken, by the clock of Redis.
    taken: u64,
    /// Admitted on credit: what was not charged yet.
    debt: u64,
    /// How many to lease at a time.
    batch: u64,
    /// When this key was last settled.
    settled: Option<Duration>,
    /// Redis has nothing left until.
    refused_until: Duration,
    /// What Redis had left when it was last heard, and when all will be back.
    left: u64,
    reset_at: Duration,
    /// Whether it stands among those that are due, or is being settled.
    is_due: bool,
}

/// What can be said without Redis.
enum Taken {
    Standing(Standing),
    /// Nothing: Redis has to be asked.
    Ask,
}

impl Hybrid {
    /// The leases of the limit of this name, which that Redis counts.
    pub fn new(name: Arc<str>, redis: Arc<Redis>, metrics: RedisMetrics) -> Self {
        let shared = SharedLimits::new(redis, SETTLE_LIMIT, metrics);
        Self { name, shared, leases: DashMap::default(), due: Mutex::default(), work: Notify::new() }
    }

    /// Charges a key: from its lease, or on credit, or else in Redis through `shared`, which only a burst on a cold key has to wait for.
    ///
    /// # Errors
    /// Lease and credit are used up, and Redis did not say.
    pub async fn charge(&self, shared: &SharedLimits, ask: Ask<'_>, now: Now) -> Result<Standing, Unavailable> {
        match self.take(&ask.key, ask.terms, ask.cost, now.monotonic) {
            Taken::Standing(standing) => Ok(standing),
            Taken::Ask => {
                let charge = shared.charge(&[ask]).await?;
                charge.standings.first().copied().ok_or(Unavailable("answer"))
            }
        }
    }

    /// Takes back what [`charge`](Self::charge) admitted, for a request that another limit refused.
    pub fn refund(&self, key: &Key, cost: u64, now: Now) {
        if let Some(mut lease) = self.leases.get_mut(key) {
            if lease.debt >= cost {
                lease.debt -= cost;
            } else if now.monotonic < lease.until {
                lease.units = lease.units.saturating_add(cost).min(most_leased(lease.terms));
            }
        }
    }

    /// How many keys have a lease here.
    pub fn keys(&self) -> usize {
        self.leases.len()
    }

    /// Settles in the background until nobody holds the leases any more.
    pub async fn maintain(this: Weak<Self>, clock: Clock) {
        let mut next_sweep = clock().monotonic + SWEEP;
        while let Some(hybrid) = this.upgrade() {
            let has_more = hybrid.settle(&clock).await;
            let now = clock().monotonic;
            if now >= next_sweep {
                hybrid.sweep(now);
                next_sweep = now + SWEEP;
            } else if !has_more {
                let _ = tokio::time::timeout(next_sweep - now, hybrid.work.notified()).await;
            }
        }
    }

    fn take(&self, key: &Key, terms: Terms, cost: u64, now: Duration) -> Taken {
        let known = self.leases.get_mut(key);
        let mut lease = match known {
            Some(lease) => lease,
            None if self.leases.len() >= KEYS => return Taken::Ask,
            None => self.leases.entry(*key).or_insert_with(|| Lease::new(terms)),
        };
        let taken = lease.take(terms, cost, now);
        let falls_due = lease.falls_due(now) || matches!(taken, Taken::Ask);
        if falls_due && !std::mem::replace(&mut lease.is_due, true) {
            drop(lease);
            self.falls_due(*key);
        }
        taken
    }

    fn falls_due(&self, key: Key) {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).push_back(key);
        self.work.notify_one();
    }

    /// Settles some of the keys that are due; whether there were any.
    async fn settle(&self, clock: &Clock) -> bool {
        let keys: Vec<Key> = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            let some = due.len().min(KEYS_AT_ONCE);
            due.drain(..some).collect()
        };
        let asked = clock().monotonic;
        let parts: Vec<Settlement> = keys.iter().filter_map(|key| Some(self.leases.get_mut(key)?.settlement(*key, asked))).collect();
        if parts.is_empty() {
            return false;
        }
        let settled = self.shared.settle(&self.name, &parts).await;
        let heard = clock().monotonic;
        for (at, part) in parts.iter().enumerate() {
            let Some(mut lease) = self.leases.get_mut(&part.key) else { continue };
            lease.is_due = false;
            // What could not be settled stays owed; the sweep or the next request brings it here again.
            let Some(settled) = settled.as_ref().ok().and_then(|settled| settled.get(at)) else { continue };
            lease.settle(part, settled, asked, heard);
            if lease.falls_due(heard) {
                lease.is_due = true;
                drop(lease);
                self.falls_due(part.key);
            }
        }
        settled.is_ok()
    }

    /// Brings back what is not used, settles what is still owed, and forgets keys that nobody asks for.
    fn sweep(&self, now: Duration) {
        let mut due = Vec::new();
        self.leases.retain(|key, lease| {
            let owes = lease.debt > 0 || (lease.units > 0 && now >= lease.until);
            if owes && !lease.is_due {
                lease.is_due = true;
                due.push(*key);
            }
            owes || lease.is_due
                || lease.units > 0
                || now < lease.refused_until
                || lease.settled.is_some_and(|settled| now < settled + LIFE)
        });
        due.into_iter().for_each(|key| self.falls_due(key));
    }
}

impl Lease {
    fn new(terms: Terms) -> Self {
        Self {
            terms,
            units: 0,
            until: Duration::ZERO,
            taken: u64::MAX,
            debt: 0,
            batch: 0,
            settled: None,
            refused_until: Duration::ZERO,
            left: capacity(terms),
            reset_at: Duration::ZERO,
            is_due: false,
        }
    }

    fn take(&mut self, terms: Terms, cost: u64, now: Duration) -> Taken {
        self.terms = terms;
        let leased = if now < self.until { self.units.min(cost) } else { 0 };
        let owed = cost - leased;
        if owed > 0 && now < self.refused_until {
            return Taken::Standing(self.standing(false, cost, now));
        }
        if owed > credit(terms).saturating_sub(self.debt) {
            return Taken::Ask;
        }
        self.units -= leased;
        self.debt += owed;
        Taken::Standing(self.standing(true, cost, now))
    }

    /// Whether it is time to settle: something is owed, or less than half of what is leased at a time is there.
    fn falls_due(&self, now: Duration) -> bool {
        let leased = if now < self.until { self.units } else { 0 };
        self.debt > 0 || (leased < self.batch.div_ceil(2) && now >= self.refused_until)
    }

    /// As far as this node knows: what Redis had left when it was last heard, and what is leased.
    fn standing(&self, admitted: bool, cost: u64, now: Duration) -> Standing {
        if !admitted {
            let retry_after = self.refused_until.saturating_sub(now);
            let reset = self.reset_at.saturating_sub(now).max(retry_after);
            return Standing { admitted, remaining: 0, reset, retry_after, wait: Duration::ZERO };
        }
        // What was left may be whole again by now.
        let left = if now < self.reset_at { self.left } else { capacity(self.terms) };
        let leased = if now < self.until { self.units } else { 0 };
        let remaining = left.saturating_add(leased).saturating_sub(self.debt).min(capacity(self.terms));
        let reset = if now < self.reset_at { self.reset_at - now } else { self.terms.window };
        let retry_after = if remaining >= cost { Duration::ZERO } else { reset };
        Standing { admitted, remaining, reset, retry_after, wait: Duration::ZERO }
    }

    /// What to ask Redis for now. Units whose time is over leave here: whatever becomes of this call they are not used any more.
    fn settlement(&mut self, key: Key, now: Duration) -> Settlement {
        let back = if now >= self.until { std::mem::take(&mut self.units) } else { 0 };
        let most = most_leased(self.terms);
        self.batch = match self.settled.map(|settled| now.saturating_sub(settled)) {
            // A caller that is seen once needs no lease.
            None => 0,
            // Only what returns: nobody asked since.
            Some(_) if back > 0 && self.debt == 0 => self.batch / 2,
            Some(since) if since < PACE => (self.batch * 2).clamp(1, most),
            Some(since) if since > LIFE => self.batch / 2,
            Some(_) => self.batch.min(most),
        };
        self.settled = Some(now);
        let wanted = self.batch.saturating_sub(self.units);
        Settlement { key, terms: self.terms, debt: self.debt, back, taken: self.taken, wanted }
    }

    fn settle(&mut self, part: &Settlement, settled: &Settled, asked: Duration, heard: Duration) {
        self.debt = self.debt.saturating_sub(part.debt);
        if settled.lease > 0 {
            // Reckoned from before the question: the window of Redis does not end before.
            let until = asked + settled.window_left.map_or(LIFE, |left| left.min(LIFE));
            let fresh = self.units == 0;
            self.until = if fresh { until } else { until.min(self.until) };
            self.taken = if fresh { settled.at } else { settled.at.min(self.taken) };
            self.units = self.units.saturating_add(settled.lease);
        }
        self.left = settled.standing.remaining;
        self.reset_at = heard + settled.standing.reset;
        // Reckoned from after the answer: the window of Redis does not end later.
        self.refused_until = if self.left == 0 { heard + settled.standing.retry_after.max(BREATH) } else { Duration::ZERO };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::limits::KeyBuilder;
    use proptest::prelude::*;

    const MILLI: Duration = Duration::from_millis(1);
    const WINDOW: Duration = Duration::from_secs(1);

    fn terms(limit: u64, algorithm: Algorithm) -> Terms {
        Terms { limit, window: WINDOW, algorithm }
    }

    fn fixed(limit: u64) -> Terms {
        terms(limit, Algorithm::FixedWindow)
    }

    fn key() -> Key {
        KeyBuilder::default().finish()
    }

    fn admits(lease: &mut Lease, terms: Terms, cost: u64, now: Duration) -> Option<bool> {
        match lease.take(terms, cost, now) {
            Taken::Standing(standing) => Some(standing.admitted),
            Taken::Ask => None,
        }
    }

    /// What `settle.lua` does for one key of a fixed window.
    #[derive(Default)]
    struct Window {
        index: u128,
        current: u64,
    }

    impl Window {
        fn turn(&mut self, now: Duration) {
            let index = now.as_micros() / WINDOW.as_micros();
            if index != self.index {
                *self = Self { index, current: 0 };
            }
        }

        fn settle(&mut self, part: &Settlement, now: Duration) -> Settled {
            self.turn(now);
            let began = u64::try_from(self.index * WINDOW.as_micros()).unwrap();
            let back = if part.taken >= began { part.back } else { 0 };
            self.current = self.current.saturating_sub(back) + part.debt;
            let lease = part.wanted.min(part.terms.limit.saturating_sub(self.current).div_ceil(4));
            self.current += lease;
            let left = WINDOW - Duration::from_micros(u64::try_from(now.as_micros() % WINDOW.as_micros()).unwrap());
            let remaining = part.terms.limit.saturating_sub(self.current);
            let retry_after = if remaining > 0 { Duration::ZERO } else { left };
            let standing = Standing { admitted: true, remaining, reset: left, retry_after, wait: Duration::ZERO };
            Settled { lease, at: u64::try_from(now.as_micros()).unwrap(), standing, window_left: Some(left) }
        }

        fn charge(&mut self, limit: u64, cost: u64, now: Duration) -> bool {
            self.turn(now);
            let admitted = self.current + cost <= limit;
            self.current += if admitted { cost } else { 0 };
            admitted
        }
    }

    /// One settlement at once and without a delay.
    fn settle(lease: &mut Lease, window: &mut Window, now: Duration) -> Settlement {
        let part = lease.settlement(key(), now);
        let settled = window.settle(&part, now);
        lease.settle(&part, &settled, now, now);
        part
    }

    #[test]
    fn the_worst_overshoot_is_the_credit_of_every_node() {
        let bucket = |burst| terms(1_000, Algorithm::TokenBucket { burst });
        for (terms, nodes, overshoot, idle) in [
            (fixed(10), 1, 1, 1),
            (fixed(10), 3, 3, 3),
            (fixed(1_000), 3, 30, 186),
            (terms(1_000_000, Algorithm::SlidingWindow), 5, 50_000, 312_500),
            // A bucket may have filled again while a lease is out.
            (bucket(100), 3, 3 + 18, 18),
            (bucket(5), 2, 4, 2),
        ] {
            assert_eq!(worst_overshoot(nodes, terms), overshoot, "{terms:?} on {nodes} nodes");
            assert_eq!(worst_idle(nodes, terms), idle, "{terms:?} on {nodes} nodes");
        }
    }

    #[test]
    fn a_caller_that_is_seen_once_takes_no_lease() {
        let (mut lease, mut window) = (Lease::new(fixed(1_000)), Window::default());
        assert_eq!(admits(&mut lease, fixed(1_000), 1, MILLI), Some(true));
        assert!(lease.falls_due(MILLI));
        let part = settle(&mut lease, &mut window, MILLI);
        assert_eq!((part.debt, part.wanted, window.current), (1, 0, 1));
        assert!(!lease.falls_due(MILLI));
    }

    #[test]
    fn a_lease_grows_while_a_key_is_hot_and_shrinks_when_it_cools() {
        let terms = terms(100_000, Algorithm::TokenBucket { burst: 100_000 });
        let mut lease = Lease::new(terms);
        let grant = |part: &Settlement, now: Duration| Settled {
            lease: part.wanted,
            at: 0,
            standing: Standing { admitted: true, remaining: 50_000, reset: WINDOW, retry_after: Duration::ZERO, wait: Duration::ZERO },
            window_left: Some(WINDOW.saturating_sub(now)),
        };
        let mut now = Duration::ZERO;
        let mut sizes = Vec::new();
        for _ in 0..20 {
            let part = lease.settlement(key(), now);
            let granted = grant(&part, Duration::ZERO);
            lease.settle(&part, &granted, now, now);
            sizes.push(lease.units);
            lease.units = 0;
            now += 10 * MILLI;
        }
        assert!(sizes.is_sorted() && sizes[0] == 0 && sizes[1] == 1, "{sizes:?}");
        assert_eq!(sizes.last(), Some(&most_leased(terms)));
        for _ in 0..20 {
            now += LIFE + MILLI;
            let part = lease.settlement(key(), now);
            lease.settle(&part, &grant(&part, Duration::ZERO), now, now);
        }
        assert_eq!(lease.batch, 0);
    }

    #[test]
    fn what_is_not_used_comes_back() {
        let (terms, mut window) = (Terms { window: 60 * WINDOW, ..fixed(1_000) }, Window::default());
        let mut lease = Lease::new(terms);
        for millis in [1, 2, 3, 4] {
            assert_eq!(admits(&mut lease, terms, 1, millis * MILLI), Some(true));
            settle(&mut lease, &mut window, millis * MILLI);
        }
        let unused = lease.units;
        assert!(unused > 0);
        let end = lease.until;
        assert_eq!(lease.settlement(key(), end).back, unused);
        assert_eq!(lease.units, 0, "and is not used meanwhile");
    }

    #[test]
    fn a_lease_ends_with_its_window() {
        let (terms, mut window) = (fixed(1_000), Window::default());
        let mut lease = Lease::new(terms);
        for millis in [990, 991, 992] {
            admits(&mut lease, terms, 1, millis * MILLI);
            settle(&mut lease, &mut window, millis * MILLI);
        }
        assert!(lease.units > 0 && lease.until <= WINDOW);
        // Credit, not the lease: its units were charged in a window that has passed.
        assert_eq!(admits(&mut lease, terms, 1, WINDOW), Some(true));
        assert_eq!(lease.debt, 1);
        let part = settle(&mut lease, &mut window, WINDOW);
        assert!(part.back > 0);
        assert_eq!(window.current, 1 + lease.units, "nothing of the old window was given back to the new one");
    }

    #[test]
    fn once_nothing_is_left_nobody_asks_until_something_is() {
        let (terms, mut window) = (fixed(5), Window { index: 0, current: 5 });
        let mut lease = Lease::new(terms);
        assert_eq!(admits(&mut lease, terms, 1, MILLI), Some(true), "on credit");
        settle(&mut lease, &mut window, MILLI);
        assert_eq!(window.current, 6);
        for millis in [2, 500, 999] {
            assert_eq!(admits(&mut lease, terms, 1, millis * MILLI), Some(false));
            assert!(!lease.falls_due(millis * MILLI));
        }
        assert_eq!(admits(&mut lease, terms, 1, WINDOW + BREATH), Some(true));
    }

    #[test]
    fn more_than_credit_and_lease_is_asked_of_redis() {
        let mut lease = Lease::new(fixed(1_000));
        assert_eq!(admits(&mut lease, fixed(1_000), 10, MILLI), Some(true));
        assert_eq!(admits(&mut lease, fixed(1_000), 1, MILLI), None);
        assert_eq!(admits(&mut Lease::new(fixed(1_000)), fixed(1_000), 11, MILLI), None);
    }

    #[test]
    fn numbers_never_exceed_the_limit() {
        let (terms, mut window) = (fixed(100), Window::default());
        let mut lease = Lease::new(terms);
        for millis in 1..400 {
            if let Taken::Standing(standing) = lease.take(terms, 1, millis * MILLI) {
                assert!(standing.remaining <= 100, "{standing:?}");
                assert!(standing.admitted || (standing.remaining == 0 && !standing.retry_after.is_zero()), "{standing:?}");
            }
            settle(&mut lease, &mut window, millis * MILLI);
        }
    }

    /// One node: its lease, and the settlement that is under way, with what Redis said to it when it got there.
    struct Node {
        lease: Lease,
        under_way: Option<(Settlement, Duration, Option<Settled>)>,
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Request(usize, u64),
        /// A settlement sets out, reaches Redis, is heard of; or is lost on its way.
        SetOut(usize),
        Reach(usize),
        Hear(usize),
        Lose(usize),
        Kill(usize),
        Wait(u32),
    }

    const NODES: usize = 3;

    fn step() -> impl Strategy<Value = Step> {
        let node = || 0..NODES;
        prop_oneof![
            20 => (node(), 1..4_u64).prop_map(|(node, cost)| Step::Request(node, cost)),
            10 => node().prop_map(Step::SetOut),
            10 => node().prop_map(Step::Reach),
            10 => node().prop_map(Step::Hear),
            1 => node().prop_map(Step::Lose),
            1 => node().prop_map(Step::Kill),
            5 => (0..60_u32).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn no_fleet_admits_more_than_the_limit_and_the_stated_overshoot(limit in 1..400_u64, steps in prop::collection::vec(step(), 1..1_500)) {
            let terms = fixed(limit);
            let fresh = || Node { lease: Lease::new(terms), under_way: None };
            let mut nodes = std::array::from_fn::<_, NODES, _>(|_| fresh());
            let (mut window, mut now) = (Window::default(), Duration::ZERO);
            let (mut admitted, mut kills, mut counted_in) = (0, 0, 0);
            for step in steps {
                if now.as_micros() / WINDOW.as_micros() != counted_in {
                    (admitted, kills, counted_in) = (0, 0, now.as_micros() / WINDOW.as_micros());
                }
                match step {
                    Step::Request(node, cost) => {
                        let asked = admits(&mut nodes[node].lease, terms, cost, now);
                        if asked.unwrap_or_else(|| window.charge(limit, cost, now)) {
                            admitted += cost;
                        }
                    }
                    Step::SetOut(node) => {
                        let node = &mut nodes[node];
                        let owes = node.lease.units > 0 && now >= node.lease.until;
                        if node.under_way.is_none() && (owes || node.lease.falls_due(now)) {
                            node.under_way = Some((node.lease.settlement(key(), now), now, None));
                        }
                    }
                    Step::Reach(node) => {
                        if let Some((part, _, settled @ None)) = &mut nodes[node].under_way {
                            *settled = Some(window.settle(part, now));
                        }
                    }
                    Step::Hear(node) => {
                        if let Some((part, asked, Some(settled))) = &nodes[node].under_way {
                            let (part, asked, settled) = (*part, *asked, *settled);
                            nodes[node].lease.settle(&part, &settled, asked, now);
                            nodes[node].under_way = None;
                        }
                    }
                    Step::Lose(node) => nodes[node].under_way = None,
                    Step::Kill(node) => {
                        nodes[node] = fresh();
                        kills += 1;
                    }
                    Step::Wait(millis) => now += MILLI * millis,
                }
                let most = limit + worst_overshoot(NODES as u64 + kills, terms);
                prop_assert!(admitted <= most, "{admitted} of {most} at {now:?}");
            }
        }
    }
}
