//! Limits that a fleet counts together in Redis, charged there in one round trip: exact whatever the number of nodes.
//!
//! All limits of a request are charged by one script, all or none. Redis runs it alone and by its own clock, so neither races between nodes
//! nor their clocks matter. On a cluster one script may touch the keys of one slot only, hence one tag for all of them
//! (`docs/decisions/0016-shared-limits.md`).

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::limits::{Algorithm, Key, Standing, Terms};
use crate::metrics::RedisMetrics;
use crate::net::redis::{CallError, Redis, Script, TAG};

static CHARGE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("shared_limits/state.lua"), include_str!("shared_limits/charge.lua"))));
static SETTLE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("shared_limits/state.lua"), include_str!("shared_limits/settle.lua"))));

/// How many integers tell a count's state.
const STATE: usize = 3;

/// The limits of one Redis, as one configuration asks them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SharedLimits {
    redis: Arc<Redis>,
    timeout: Duration,
    metrics: RedisMetrics,
}

/// What one limit is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The name of the limit: no two asks of a request share one.
    pub name: &'a str,
    /// What is counted.
    pub key: Key,
    /// How much is allowed.
    pub terms: Terms,
    /// Units, all or none.
    pub cost: u64,
}

/// What Redis said of the asks of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// Where each stands, in the order of the asks. When one is not admitted nothing was charged, also of those that would be.
    pub standings: Vec<Standing>,
    /// When, by the clock of Redis in microseconds since the epoch: what a refund has to tell.
    pub at: u64,
}

/// Redis did not say: what the limit says of that holds, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Redis is unavailable: {0}")]
pub struct Unavailable(pub &'static str);

/// One key's part of a settlement: what a node did with it on its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settlement {
    pub(super) key: Key,
    pub(super) terms: Terms,
    /// Units that were admitted and are charged whatever is left.
    pub(super) debt: u64,
    /// Units of a lease that come back.
    pub(super) back: u64,
    /// When those were taken, by the clock of Redis.
    pub(super) taken: u64,
    /// Units wanted as a lease.
    pub(super) wanted: u64,
}

/// What Redis said to a [`Settlement`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Settled {
    /// Units that are leased.
    pub(super) lease: u64,
    /// When, by the clock of Redis.
    pub(super) at: u64,
    /// Where the key stands for one more unit.
    pub(super) standing: Standing,
    /// Until the units of a window are gone; absent for buckets.
    pub(super) window_left: Option<Duration>,
}

impl SharedLimits {
    /// The limits that this Redis counts; no charge waits longer than the timeout.
    pub fn new(redis: Arc<Redis>, timeout: Duration, metrics: RedisMetrics) -> Self {
        Self { redis, timeout, metrics }
    }

    /// Charges all asks or none, in one round trip.
    ///
    /// # Errors
    /// Redis did not answer within the timeout, or is known to be away, which costs no time. It may have charged all the same.
    pub async fn charge(&self, asks: &[Ask<'_>]) -> Result<Charge, Unavailable> {
        let keys: Vec<_> = asks.iter().map(|ask| key(ask.name, &ask.key, ask.terms)).collect();
        let mut numbers = Vec::with_capacity(asks.len() * 6);
        for ask in asks {
            push_terms(&mut numbers, ask.terms);
            numbers.push(ask.cost);
        }
        let (at, answers) = self.run(&CHARGE, &keys, &numbers, self.timeout).await?;
        let charged = answers.iter().all(|(fits, _)| *fits > 0);
        let standings =
            asks.iter().zip(answers).map(|(ask, (fits, state))| standing(ask.terms, ask.cost, fits > 0, charged, state)).collect();
        Ok(Charge { standings, at })
    }

    /// Takes back what [`charge`](Self::charge) counted at a time of Redis, in the background: nobody waits for it, and when Redis is away
    /// the caller has paid for nothing.
    pub fn refund(&self, asks: &[Ask<'_>], at: u64) {
        let settlements: Vec<_> = asks
            .iter()
            .map(|&Ask { name, key, terms, cost }| (name.to_owned(), Settlement { key, terms, debt: 0, back: cost, taken: at, wanted: 0 }))
            .collect();
        let limits = self.clone();
        tokio::spawn(async move {
            let keys: Vec<_> = settlements.iter().map(|(name, part)| key(name, &part.key, part.terms)).collect();
            let _ = limits.run(&SETTLE, &keys, &settlement_numbers(settlements.iter().map(|(_, part)| part)), limits.timeout).await;
        });
    }

    /// Settles keys of one limit, each for itself.
    pub(super) async fn settle(&self, name: &str, parts: &[Settlement]) -> Result<Vec<Settled>, Unavailable> {
        let keys: Vec<_> = parts.iter().map(|part| key(name, &part.key, part.terms)).collect();
        let (at, answers) = self.run(&SETTLE, &keys, &settlement_numbers(parts.iter()), self.timeout).await?;
        let settled = parts.iter().zip(answers).map(|(part, (lease, state))| {
            let standing = standing(part.terms, 1, true, false, state);
            let window_left = is_window(part.terms).then(|| Duration::from_micros(state.2));
            Settled { lease, at, standing, window_left }
        });
        Ok(settled.collect())
    }

    /// Runs a script, and reads the time and for each key a number and a state.
    async fn run(
        &self,
        script: &Script,
        keys: &[Vec<u8>],
        numbers: &[u64],
        timeout: Duration,
    ) -> Result<(u64, Vec<(u64, State)>), Unavailable> {
        let timer = self.metrics.time.start_timer();
        let answer = self.redis.run(script, keys, numbers, timeout).await;
        match &answer {
            // A call that was never made says nothing of how long one takes.
            Err(CallError::Away) => drop(timer.stop_and_discard()),
            _ => timer.observe_duration(),
        }
        self.metrics.count(answer.as_ref().err().map(CallError::cause));
        let integers = answer.map_err(|error| {
            if matches!(error, CallError::Answer(_)) {
                tracing::warn!(%error, "Redis refused a limit's script");
            }
            Unavailable(error.cause())
        })?;
        parse(&integers, keys.len()).ok_or(Unavailable("answer"))
    }
}

type State = (u64, u64, u64);

fn parse(integers: &[i64], keys: usize) -> Option<(u64, Vec<(u64, State)>)> {
    let (at, rest) = integers.split_first()?;
    let (chunks, []) = rest.as_chunks::<{ STATE + 1 }>() else { return None };
    let natural = |number: i64| u64::try_from(number).ok();
    let answers: Option<Vec<_>> =
        chunks.iter().map(|&[first, a, b, c]| Some((natural(first)?, (natural(a)?, natural(b)?, natural(c)?)))).collect();
    Some((natural(*at)?, answers.filter(|answers| answers.len() == keys)?))
}

/// `{edgeward}:limit:NAME:ALGORITHM:WINDOW:` and the bytes of the key. A count is not carried into other windows, nor from windows to
/// buckets: while a change of the configuration spreads, nodes on both sides of it count apart and not each other's wrongly.
fn key(name: &str, key: &Key, terms: Terms) -> Vec<u8> {
    let (algorithm, ..) = algorithm(terms);
    let mut bytes = format!("{TAG}limit:{name}:{algorithm}:{}:", micros(terms.window)).into_bytes();
    bytes.extend_from_slice(key.as_bytes());
    bytes
}

/// The number of the algorithm in the scripts, a bucket's capacity, and a leaky one's longest wait in microseconds.
fn algorithm(terms: Terms) -> (u64, u64, u64) {
    match terms.algorithm {
        Algorithm::FixedWindow => (0, terms.limit, 0),
        Algorithm::SlidingWindow => (1, terms.limit, 0),
        Algorithm::TokenBucket { burst } => (2, burst, 0),
        Algorithm::LeakyBucket { queue, max_wait } => (3, queue, micros(max_wait)),
    }
}

fn is_window(terms: Terms) -> bool {
    matches!(terms.algorithm, Algorithm::FixedWindow | Algorithm::SlidingWindow)
}

fn push_terms(numbers: &mut Vec<u64>, terms: Terms) {
    let (algorithm, capacity, max_wait) = algorithm(terms);
    numbers.extend([algorithm, terms.limit, micros(terms.window).max(1), capacity, max_wait]);
}

fn settlement_numbers<'a>(parts: impl Iterator<Item = &'a Settlement>) -> Vec<u64> {
    let mut numbers = Vec::new();
    for part in parts {
        push_terms(&mut numbers, part.terms);
        numbers.extend([part.debt, part.back, part.taken, part.wanted]);
    }
    numbers
}

/// What a state comes to for a request of this cost: the same words as those of a limit that is counted here.
fn standing(terms: Terms, cost: u64, admitted: bool, charged: bool, state: State) -> Standing {
    match terms.algorithm {
        Algorithm::FixedWindow | Algorithm::SlidingWindow => window_standing(terms, cost, admitted, state),
        Algorithm::TokenBucket { .. } | Algorithm::LeakyBucket { .. } => bucket_standing(terms, cost, admitted, charged, state),
    }
}

fn window_standing(Terms { limit, window, algorithm }: Terms, cost: u64, admitted: bool, (current, previous, left): State) -> Standing {
    let window = micros(window).max(1);
    let slides = algorithm == Algorithm::SlidingWindow;
    let used = current.saturating_add(share(previous, left, window));
    let remaining = limit.saturating_sub(used);
    let reset = match (current, used) {
        (_, 0) => 0,
        (0, _) => left,
        _ if slides => left.saturating_add(window),
        _ => left,
    };
    // How much of a window may be left for no more than `spare` of `count` to be covered still.
    let may_be_left = |spare: u64, count: u64| match count {
        0 => window,
        _ => (u128::from(spare) * u128::from(window) / u128::from(count)).min(window.into()) as u64,
    };
    let retry_after = match limit.checked_sub(cost) {
        Some(_) if remaining >= cost => 0,
        Some(spare) if slides && current <= spare => left.saturating_sub(may_be_left(spare - current, previous)),
        Some(spare) if slides => left.saturating_add(window - may_be_left(spare, current)),
        Some(_) => left,
        None => left.saturating_add(window),
    };
    Standing {
        admitted,
        remaining,
        reset: Duration::from_micros(reset),
        retry_after: Duration::from_micros(retry_after),
        wait: Duration::ZERO,
    }
}

/// `level` is in thousandths of a unit.
fn bucket_standing(terms: Terms, cost: u64, admitted: bool, charged: bool, (level, ..): State) -> Standing {
    const UNIT: u64 = 1000;
    let (limit, window) = (terms.limit.max(1), micros(terms.window));
    let poured = cost.saturating_mul(UNIT);
    let lasts = |thousandths: u64| Duration::from_micros(share(thousandths, window, limit.saturating_mul(UNIT)));
    let drained_to = |target: u64| lasts(level.saturating_sub(target));
    let (remaining, retry_after, wait) = match terms.algorithm {
        Algorithm::LeakyBucket { queue, max_wait } => {
            let longest = u128::from(micros(max_wait)) * u128::from(limit) * u128::from(UNIT) / u128::from(window.max(1));
            let most = u64::try_from(longest).unwrap_or(u64::MAX).min(queue.saturating_mul(UNIT));
            // One may still join at the bound itself.
            let remaining = most.checked_sub(level).map_or(0, |room| room / UNIT + 1);
            (remaining, drained_to(most), if charged { lasts(level.saturating_sub(poured)) } else { Duration::ZERO })
        }
        _ => {
            let (_, burst, _) = algorithm(terms);
            let most = burst.saturating_mul(UNIT);
            (most.saturating_sub(level) / UNIT, drained_to(most.saturating_sub(poured)), Duration::ZERO)
        }
    };
    Standing { admitted, remaining, reset: drained_to(0), retry_after, wait }
}

/// `part * of / whole`, rounded up.
fn share(part: u64, of: u64, whole: u64) -> u64 {
    u64::try_from((u128::from(part) * u128::from(of)).div_ceil(whole.max(1).into())).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
