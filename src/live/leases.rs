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
