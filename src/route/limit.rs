//! One limit, compiled: whom it counts a request for, and who holds the counts.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use thread_local::ThreadLocal;

use crate::config::{self, Allowance, LimitAlgorithm, LimitKey, LimitMode, LimitOn, LimitStore, OnStoreFailure, WhenMissing};
use crate::live::LiveState;
use crate::live::leases::Hybrid;
use crate::live::limits::concurrency::{Concurrency, Permit};
use crate::live::limits::{Algorithm, Key, KeyBuilder, Limits, Standing, Terms};
use crate::live::quotas::{Ledger, Period, QuotaTerms, Quotas};
use crate::live::shared_limits::SharedLimits;
use crate::metrics::{Counter, Metrics};
use crate::net::redis::Redis;
use crate::request::{Identity, LimitState, Now, Rejection, Request};

/// One limit, shared by every policy and plan that names it.
#[derive(Debug)]
pub struct RateLimit {
    pub(super) name: Arc<str>,
    /// The name again for each thread, whose answers refer to it: one for all would be counted where all cores write.
    names: ThreadLocal<Arc<str>>,
    /// Whether it tells of what it would refuse, and lets it pass.
    pub(super) shadow: bool,
    /// Whether it counts refused credentials.
    pub(super) on_refused: bool,
    pub(super) holder: Holder,
    /// What it refused, or would have.
    pub(super) refusals: Counter,
    pub(super) per: Box<[LimitKey]>,
    ipv6_prefix: u8,
    when_missing: WhenMissing,
    cost: u64,
    is_weighed: bool,
    /// What the headers call the limit, and its window.
    announced: (u64, Option<Duration>),
}

/// Who holds the counts.
#[derive(Debug)]
pub(super) enum Holder {
    /// This process.
    Own(Own),
    /// Redis.
    Redis(Shared),
    /// This process, with what Redis lends it.
    Hybrid(Arc<Hybrid>, Shared),
}

/// Counts that this process holds.
#[derive(Debug)]
pub(super) enum Own {
    Rate(Arc<Limits>, Terms),
    Quota(Quotas, QuotaTerms),
    Concurrency(Arc<Concurrency>, u64),
}

/// Counts that Redis holds, and what holds without it.
#[derive(Debug)]
pub(super) struct Shared {
    /// The name under which they are counted there.
    pub(super) name: Arc<str>,
    pub(super) limits: SharedLimits,
    pub(super) terms: Terms,
    pub(super) on_failure: OnStoreFailure,
    pub(super) fallback: Own,
}

/// Whom a limit counts a request for.
pub(super) enum Subject {
    Key(Key),
    /// The request lacks what the limit is counted by, and the limit says `skip`.
    Exempt,
    /// The same, and the limit says `deny`.
    Missing,
}

/// Where counts are held, for limits that are being compiled.
#[derive(Debug)]
pub struct Stores<'l> {
    /// The counts of this process.
    pub live: &'l LiveState,
    /// The database of its quotas.
    pub quotas: &'l PathBuf,
    /// What is configured as Redis.
    pub redis: Option<(Arc<Redis>, SharedLimits)>,
}

impl RateLimit {
    /// Compiles a limit. Its counts are found by its name; those of a shadow are its own. `None`: it wants a Redis, and there is none.
    pub fn compile(name: &Arc<str>, limit: &config::Limit, stores: &Stores<'_>, metrics: &Metrics) -> Option<Self> {
        let shadow = limit.mode == LimitMode::Shadow;
        // No name has a colon.
        let counted_as: Arc<str> = if shadow { format!("shadow:{name}").into() } else { Arc::clone(name) };
        let own = match limit.allowance {
            Allowance::Rate { rate, algorithm } => {
                Own::Rate(stores.live.limits.find_or_create(&counted_as, Limits::default), terms(rate, algorithm))
            }
            Allowance::Quota(config::Quota { count, period }) => {
                let period = match period {
                    config::Period::Day => Period::Day,
                    config::Period::Month => Period::Month,
                    config::Period::Rolling(length) => Period::Rolling(length),
                };
                let ledger = stores.live.ledgers.find_or_create(stores.quotas, || Ledger::new(stores.quotas));
                Own::Quota(Quotas::new(ledger, &counted_as), QuotaTerms { limit: count, period })
            }
            Allowance::Concurrency(count) => {
                Own::Concurrency(stores.live.concurrency.find_or_create(&counted_as, Concurrency::default), count)
            }
        };
        let holder = match (*limit.store, own) {
            (LimitStore::Local, own) => Holder::Own(own),
            (LimitStore::Redis(on_failure) | LimitStore::Hybrid(on_failure), Own::Rate(limits, terms)) => {
                let (redis, shared) = stores.redis.as_ref()?;
                let fallback = Own::Rate(limits, terms);
                let shared = Shared { name: Arc::clone(&counted_as), limits: shared.clone(), terms, on_failure, fallback };
                match *limit.store {
                    LimitStore::Hybrid(_) => {
                        let id = (Arc::clone(&counted_as), redis.server().clone());
                        let create = || Hybrid::new(counted_as, Arc::clone(redis), metrics.redis.clone());
                        Holder::Hybrid(stores.live.leases.find_or_create(&id, create), shared)
                    }
                    _ => Holder::Redis(shared),
                }
            }
            (LimitStore::Redis(_) | LimitStore::Hybrid(_), Own::Quota(..) | Own::Concurrency(..)) => return None,
        };
        Some(Self {
            name: Arc::clone(name),
            names: ThreadLocal::new(),
            shadow,
            on_refused: limit.on == LimitOn::Refused,
            holder,
            refusals: metrics.limit_refusals(name, if shadow { "shadow" } else { "enforce" }),
            per: limit.per.as_slice().into(),
            ipv6_prefix: limit.ipv6_prefix,
            when_missing: limit.when_missing,
            cost: limit.cost,
            is_weighed: limit.is_weighed(),
            announced: announced(limit.allowance),
        })
    }

    /// How many units a request takes on a route of this cost.
    pub(super) fn units(&self, route_cost: u64) -> u64 {
        if self.is_weighed { self.cost.saturating_mul(route_cost) } else { 1 }
    }

    /// Whether it is known only once the caller is whom to count for.
    pub(super) fn needs_identity(&self) -> bool {
        self.per.iter().any(LimitKey::needs_identity)
    }

    pub(super) fn subject(&self, request: &Request<'_>, identity: Option<&Identity>) -> Subject {
        let mut key = KeyBuilder::default();
        for part in &self.per {
            let present = match part {
                LimitKey::ClientIp => {
                    self.push_address(&mut key, request.client.address);
                    continue;
                }
                LimitKey::Consumer => identity.and_then(|identity| identity.consumer.as_deref()).map(str::as_bytes),
                LimitKey::Subject => identity.and_then(|identity| identity.subject.as_deref()).map(str::as_bytes),
                LimitKey::Credential => identity.map(|identity| identity.credential.as_slice()),
                LimitKey::Route => Some(request.route.as_bytes()),
                LimitKey::Host => Some(request.host.as_bytes()),
                LimitKey::Header(name) => only_value(request, name),
                LimitKey::Path(name) => request.parameters.value(name).map(str::as_bytes),
                LimitKey::Claim(path) => match identity.and_then(|identity| identity.claim(path)) {
                    Some(Value::String(text)) => Some(text.as_bytes()),
                    Some(value @ (Value::Number(_) | Value::Bool(_))) => {
                        key.part(PRESENT, value.to_string().as_bytes());
                        continue;
                    }
                    _ => None,
                },
            };
            match (present, self.when_missing) {
                (Some(present), _) => key.part(PRESENT, present),
                (None, WhenMissing::ClientIp) => self.push_address(&mut key, request.client.address),
                (None, WhenMissing::Skip) => return Subject::Exempt,
                (None, WhenMissing::Deny) => return Subject::Missing,
            }
        }
        Subject::Key(key.finish())
    }

    /// IPv6 by its prefix: whoever has one address of a network has them all.
    pub(super) fn push_address(&self, key: &mut KeyBuilder, address: IpAddr) {
        match address {
            IpAddr::V4(address) => key.part(ADDRESS, &address.octets()),
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.ipv6_prefix.min(128))).unwrap_or(0);
                key.part(ADDRESS, &(u128::from(address) & mask).to_be_bytes());
            }
        }
    }

    /// What the headers say of it.
    pub(super) fn state(&self, standing: Standing) -> LimitState {
        let Standing { remaining, reset, retry_after, .. } = standing;
        let (limit, window) = self.announced;
        let name = Arc::clone(self.names.get_or(|| Arc::from(&*self.name)));
        LimitState { name, limit, remaining: remaining.min(limit), reset, retry_after, window }
    }

    pub(super) fn rejection(&self, standing: Standing) -> Rejection {
        let state = self.state(standing);
        match self.own() {
            Own::Quota(..) => Rejection::QuotaExceeded(state),
            Own::Rate(_, Terms { algorithm: Algorithm::LeakyBucket { .. }, .. }) => Rejection::QueueFull(state),
            Own::Rate(..) | Own::Concurrency(..) => Rejection::RateLimited(state),
        }
    }

    pub(super) fn own(&self) -> &Own {
        match &self.holder {
            Holder::Own(own) => own,
            Holder::Redis(shared) | Holder::Hybrid(_, shared) => &shared.fallback,
        }
    }
}

impl Own {
    /// Counts units, all or none; for requests in flight one, until the permit is dropped.
    pub(super) fn charge(&self, key: &Key, units: u64, now: Now) -> (Standing, Option<Permit>) {
        match self {
            Self::Rate(limits, terms) => (limits.charge(key, terms, units, now.monotonic), None),
            Self::Quota(quotas, terms) => (quotas.charge(key, terms, units, now), None),
            Self::Concurrency(concurrency, limit) => {
                let permit = concurrency.enter(key, *limit);
                let remaining = permit.as_ref().map_or(0, |permit| limit.saturating_sub(permit.in_flight()));
                (in_flight(permit.is_some(), remaining), permit)
            }
        }
    }

    /// Where a key would stand with one more unit, which is not counted.
    pub(super) fn standing(&self, key: &Key, now: Now) -> Standing {
        match self {
            Self::Rate(limits, terms) => limits.standing(key, terms, 1, now.monotonic),
            Self::Quota(quotas, terms) => quotas.standing(key, terms, now),
            Self::Concurrency(..) => in_flight(true, 0),
        }
    }

    /// Takes back what was charged at `now`, and for a turn in a queue its wait.
    pub(super) fn refund(&self, key: &Key, units: u64, now: Now, wait: Duration) {
        match self {
            Self::Rate(limits, terms) => limits.refund(key, terms, units, now.monotonic.saturating_add(wait)),
            Self::Quota(quotas, terms) => quotas.refund(key, terms, units, now),
            // The permit is dropped.
            Self::Concurrency(..) => {}
        }
    }
}

/// When the next of those in flight ends nobody knows; it is worth asking again soon.
fn in_flight(admitted: bool, remaining: u64) -> Standing {
    let soon = Duration::from_secs(1);
    let retry_after = if remaining > 0 { Duration::ZERO } else { soon };
    Standing { admitted, remaining, reset: soon, retry_after, wait: Duration::ZERO }
}

/// The tags of the parts of a key, so that an address in place of a missing header is not taken for a header that holds an address.
pub(super) const PRESENT: u8 = 0;
const ADDRESS: u8 = 1;

/// The value of a header; absent as well when it came twice, as nobody can say which one counts.
fn only_value<'a>(request: &Request<'a>, name: &http::HeaderName) -> Option<&'a [u8]> {
    let mut values = request.headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes().trim_ascii())
}

/// A rate as those know it who count.
pub fn terms(rate: config::Rate, algorithm: LimitAlgorithm) -> Terms {
    let algorithm = match algorithm {
        LimitAlgorithm::FixedWindow => Algorithm::FixedWindow,
        LimitAlgorithm::SlidingWindow => Algorithm::SlidingWindow,
        LimitAlgorithm::TokenBucket { burst } => Algorithm::TokenBucket { burst },
        LimitAlgorithm::LeakyBucket { queue, max_wait } => Algorithm::LeakyBucket { queue, max_wait },
    };
    Terms { limit: rate.count, window: rate.window, algorithm }
}

/// The most that can be left, and the time in which that much comes back; none for what does not come back by itself, and for a month, which
/// has no length.
fn announced(allowance: Allowance) -> (u64, Option<Duration>) {
    match allowance {
        Allowance::Rate { rate, algorithm } => {
            let time_of = |units: u64| rate.window.as_nanos().saturating_mul(units.into()) / u128::from(rate.count.max(1));
            let lasting = |units: u64| Duration::from_nanos(u64::try_from(time_of(units)).unwrap_or(u64::MAX));
            match algorithm {
                LimitAlgorithm::FixedWindow | LimitAlgorithm::SlidingWindow => (rate.count, Some(rate.window)),
                LimitAlgorithm::TokenBucket { burst } => (burst, Some(lasting(burst))),
                LimitAlgorithm::LeakyBucket { queue, max_wait } => {
                    // Those who wait, and one who need not.
                    let in_time = max_wait.as_nanos().saturating_mul(rate.count.into()) / rate.window.as_nanos().max(1);
                    let places = queue.min(u64::try_from(in_time).unwrap_or(u64::MAX)).saturating_add(1);
                    (places, Some(lasting(places)))
                }
            }
        }
        Allowance::Quota(config::Quota { count, period }) => match period {
            config::Period::Day => (count, Some(Duration::from_secs(86_400))),
            config::Period::Month => (count, None),
            config::Period::Rolling(length) => (count, Some(length)),
        },
        Allowance::Concurrency(count) => (count, None),
    }
}
