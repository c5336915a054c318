//! Limits that a fleet counts together in Redis, charged there in one round trip: exact whatever the number of nodes.
//!
//! All limits of a request are charged by one script, all or none. Redis runs it alone and by its own clock, so neither races between nodes
//! nor their clocks matter. On a cluster one script may touch the keys of one slot only, hence one tag for all of them
//! (`docs/decisions/0011-shared-limits.md`).

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
        // For the histogram alone; no decision reads it.
        let asked = tokio::time::Instant::now();
        let answer = self.redis.run(script, keys, numbers, timeout).await;
        // A call that was never made says nothing of how long one takes.
        if !matches!(answer, Err(CallError::Away)) {
            self.metrics.time.observe(asked.elapsed());
        }
        self.metrics.count(answer.as_ref().err().map(CallError::cause));
        let integers = answer.map_err(|error| Unavailable(error.cause()))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::limits::{KeyBuilder, Limits};
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn name() -> Key {
        KeyBuilder::default().finish()
    }

    #[test]
    fn keys_are_told_apart_by_limit_window_and_algorithm_and_share_a_tag() {
        let terms = |algorithm, window| Terms { limit: 1, window, algorithm };
        let keys = [
            key("a", &name(), terms(Algorithm::FixedWindow, SECOND)),
            key("b", &name(), terms(Algorithm::FixedWindow, SECOND)),
            key("a", &name(), terms(Algorithm::SlidingWindow, SECOND)),
            key("a", &name(), terms(Algorithm::FixedWindow, 2 * SECOND)),
            key("a", &name(), terms(Algorithm::TokenBucket { burst: 1 }, SECOND)),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(key.starts_with(b"{edgeward}:limit:"));
            assert!(keys.iter().skip(at + 1).all(|other| other != key));
        }
        // What only tunes a limit leaves its counts where they are.
        assert_eq!(keys[0], key("a", &name(), Terms { limit: 9, ..terms(Algorithm::FixedWindow, SECOND) }));
    }

    #[test]
    fn an_answer_that_is_not_one_is_no_admission() {
        for wrong in [vec![], vec![1], vec![1, 1, 2, 3], vec![1, 1, 2, 3, 4, 5], vec![-1, 1, 2, 3, 4], vec![1, 1, -2, 3, 4], vec![1; 9]] {
            assert_eq!(parse(&wrong, 1), None, "{wrong:?}");
        }
        assert_eq!(parse(&[7, 1, 2, 3, 4], 1), Some((7, vec![(1, (2, 3, 4))])));
    }

    /// What `charge.lua` keeps of one key, in exact numbers.
    #[derive(Default)]
    struct Count {
        index: u64,
        current: u64,
        previous: u64,
        /// In units times the window's microseconds.
        level: u128,
        at: u64,
    }

    impl Count {
        fn charge(&mut self, terms: Terms, cost: u64, now: u64) -> Standing {
            let window = micros(terms.window);
            let (admitted, state) = match terms.algorithm {
                Algorithm::FixedWindow | Algorithm::SlidingWindow => {
                    let slides = terms.algorithm == Algorithm::SlidingWindow;
                    let turns = now / window - self.index;
                    self.previous = if turns == 0 {
                        self.previous
                    } else if turns == 1 && slides {
                        self.current
                    } else {
                        0
                    };
                    self.current = if turns == 0 { self.current } else { 0 };
                    self.index = now / window;
                    let left = window - now % window;
                    let admitted = self.current + share(self.previous, left, window) + cost <= terms.limit;
                    self.current += if admitted { cost } else { 0 };
                    (admitted, (self.current, self.previous, left))
                }
                Algorithm::TokenBucket { .. } | Algorithm::LeakyBucket { .. } => {
                    let (unit, drained) = (u128::from(window), u128::from(now - self.at) * u128::from(terms.limit));
                    self.level = self.level.saturating_sub(drained);
                    self.at = now;
                    let poured = self.level + u128::from(cost) * unit;
                    let admitted = match terms.algorithm {
                        Algorithm::LeakyBucket { queue, max_wait } => {
                            self.level <= (u128::from(queue) * unit).min(max_wait.as_micros() * u128::from(terms.limit))
                                && cost <= terms.limit
                        }
                        _ => poured <= u128::from(algorithm(terms).1) * unit,
                    };
                    self.level = if admitted { poured } else { self.level };
                    (admitted, (u64::try_from((self.level * 1000).div_ceil(unit)).unwrap(), 0, 0))
                }
            };
            standing(terms, cost, admitted, admitted, state)
        }
    }

    fn any_terms() -> impl Strategy<Value = Terms> {
        let algorithm = prop_oneof![
            Just(Algorithm::FixedWindow),
            Just(Algorithm::SlidingWindow),
            (1..50_u64).prop_map(|burst| Algorithm::TokenBucket { burst }),
            (1..20_u64, 1..30_u32).prop_map(|(queue, wait)| Algorithm::LeakyBucket { queue, max_wait: wait * SECOND / 10 }),
        ];
        (1..40_u64, prop::sample::select(vec![1_u32, 10, 1000]), algorithm).prop_map(|(limit, tenths, algorithm)| Terms {
            limit,
            window: tenths * SECOND / 10,
            algorithm,
        })
    }

    proptest! {
        #[test]
        fn the_fleets_standing_is_that_of_one_node(terms in any_terms(), requests in prop::collection::vec((0..200_u64, 1..4_u64), 1..200)) {
            let (limits, mut count, mut now) = (Limits::default(), Count::default(), 0);
            for (millis, cost) in requests {
                now += millis * 1000;
                let local = limits.charge(&name(), &terms, cost, Duration::from_micros(now));
                let shared = count.charge(terms, cost, now);
                prop_assert_eq!(shared.admitted, local.admitted);
                prop_assert_eq!(shared.remaining, local.remaining);
                // Thousandths of a unit are coarser than nanoseconds.
                let coarse = terms.window / u32::try_from(terms.limit * 500).unwrap() + Duration::from_micros(2);
                for (shared, local) in [(shared.reset, local.reset), (shared.retry_after, local.retry_after), (shared.wait, local.wait)] {
                    prop_assert!(shared.abs_diff(local) <= coarse, "{:?} for {:?}", shared, local);
                }
            }
        }
    }
}
