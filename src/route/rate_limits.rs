//! The limits of a policy: those that need the identity, and those of the caller's plan, are checked after it, the others before.
//!
//! A request that one limit refuses has consumed nothing of any other. One that is refused later for another reason keeps what it consumed
//! before its identity was known: guessing credentials is limited as well.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::limit::{Holder, RateLimit, Shared, Subject};
use super::plans::Plans;
use crate::config::OnStoreFailure;
use crate::live::limits::concurrency::Permit;
use crate::live::limits::{Key, Standing};
use crate::live::shared_limits::Ask;
use crate::request::{Identity, LimitState, Now, Rejection, Request};

/// When it is worth asking again after Redis did not answer.
const REDIS_RETRY: Duration = Duration::from_secs(1);

/// The limits of one policy.
#[derive(Debug)]
pub struct RateLimits {
    before_identity: Box<[Arc<RateLimit>]>,
    after_identity: Box<[Arc<RateLimit>]>,
    on_refused: Box<[Arc<RateLimit>]>,
    plans: Arc<Plans>,
}

/// What one request has consumed so far.
#[derive(Debug)]
#[must_use = "what a later limit refuses has to be given back"]
pub struct Charge<'p> {
    now: Now,
    /// The cost of the route.
    cost: u64,
    taken: SmallVec<[Taken<'p>; 2]>,
    permits: Vec<Permit>,
    nearest: Option<(&'p RateLimit, Standing)>,
    wait: Duration,
    shadowed: Vec<Arc<str>>,
}

/// Units of one limit.
#[derive(Debug)]
struct Taken<'p> {
    limit: &'p Arc<RateLimit>,
    key: Key,
    units: u64,
    from: By,
}

/// Who counted them.
#[derive(Debug, Clone, Copy)]
enum By {
    /// This process, in a queue so long before their turn.
    Own(Duration),
    /// This process, from what Redis lent it.
    Lease,
    /// Redis, at this time of its own.
    Redis(u64),
}

/// What an admitted request keeps of its limits.
#[derive(Debug, Default)]
pub struct Held {
    /// The limit nearest to its end, for the answer's headers.
    pub nearest: Option<LimitState>,
    /// The limits that would have refused it, were they enforced.
    pub shadowed: Vec<Arc<str>>,
    /// A place in a queue; absent: it need not wait.
    pub turn: Option<Turn>,
    /// Given back when the request has ended, whichever way.
    #[expect(dead_code, reason = "held until it is dropped")]
    permits: Vec<Permit>,
}

/// A place in the queue of a leaky bucket.
#[derive(Debug)]
pub struct Turn {
    /// When it comes, on the monotonic clock.
    pub at: Duration,
    now: Now,
    taken: Vec<(Arc<RateLimit>, Key, u64, By)>,
}

impl RateLimits {
    /// The limits that a policy names, and the plans that its callers may have.
    pub fn new(limits: Vec<Arc<RateLimit>>, plans: Arc<Plans>) -> Self {
        let (on_refused, limits): (Vec<_>, Vec<_>) = limits.into_iter().partition(|limit| limit.on_refused);
        let (after_identity, before_identity): (Vec<_>, Vec<_>) = limits.into_iter().partition(|limit| limit.needs_identity());
        Self { before_identity: before_identity.into(), after_identity: after_identity.into(), on_refused: on_refused.into(), plans }
    }

    /// Refuses a request while too many credentials were refused for the same key (the address, as a rule), before its own is looked at.
    ///
    /// Only asked of requests that present one.
    pub fn check_attempts(&self, request: &Request<'_>, charge: &mut Charge<'_>, presents: impl Fn() -> bool) -> Result<(), Rejection> {
        for limit in &self.on_refused {
            let refused = match (limit.subject(request, None), &limit.holder) {
                (Subject::Exempt, _) => continue,
                (Subject::Missing, _) => Rejection::Forbidden("limit_key_missing"),
                (Subject::Key(key), Holder::Own(own)) => match own.standing(&key, charge.now) {
                    Standing { admitted: true, .. } => continue,
                    standing => limit.rejection(standing),
                },
                // The configuration allows no other; one that did would have to refuse.
                (Subject::Key(_), Holder::Redis(_) | Holder::Hybrid(..)) => Rejection::Internal("limit_store"),
            };
            if !presents() {
                return Ok(());
            }
            limit.refusals.inc();
            if !limit.shadow {
                return Err(refused);
            }
            charge.shadowed.push(Arc::clone(&limit.name));
        }
        Ok(())
    }

    /// Counts a credential that was refused. Whoever finds the limit used up meanwhile is not told whether it was good.
    pub fn count_refused(&self, request: &Request<'_>, rejection: Rejection, now: Now) -> Rejection {
        let is_attempt = matches!(
            rejection,
            Rejection::CredentialInvalid(_)
                | Rejection::CredentialExpired
                | Rejection::CredentialRevoked
                | Rejection::AddressDenied
                | Rejection::Forbidden(_)
        );
        let mut answer = rejection;
        for limit in self.on_refused.iter().filter(|_| is_attempt) {
            if let (Subject::Key(key), Holder::Own(own)) = (limit.subject(request, None), &limit.holder) {
                let (standing, _) = own.charge(&key, 1, now);
                if !standing.admitted && !limit.shadow {
                    limit.refusals.inc();
                    answer = limit.rejection(standing);
                }
            }
        }
        answer
    }

    /// Counts the request against the limits that need no identity.
    ///
    /// Refused with the 429 of the limit, with [`Rejection::Forbidden`] when the request lacks what a limit is counted by, or with
    /// [`Rejection::DependencyUnavailable`].
    pub async fn check_client<'p>(&'p self, request: &Request<'_>, charge: &mut Charge<'p>) -> Result<(), Rejection> {
        charge.take(self.before_identity.iter(), request, None).await
    }

    /// Counts the request against the limits that need the identity, which is absent on public routes, and those of its plan. When one
    /// refuses, everything that the request has consumed is given back.
    pub async fn check_identity<'p>(
        &'p self,
        request: &Request<'_>,
        identity: Option<&Identity>,
        charge: &mut Charge<'p>,
    ) -> Result<(), Rejection> {
        let plan = match identity.map(|identity| self.plans.of(identity)).transpose() {
            Ok(plan) => plan.unwrap_or_default(),
            Err(rejection) => {
                charge.give_back();
                return Err(rejection);
            }
        };
        // One that the policy names as well counts once.
        let of_plan = plan.iter().filter(|limit| !self.names(limit));
        charge.take(self.after_identity.iter().chain(of_plan), request, identity).await
    }

    /// Every limit that a caller's requests are counted against.
    pub(super) fn of_caller(&self, caller: &Identity) -> impl Iterator<Item = &Arc<RateLimit>> {
        let of_plan = self.plans.of(caller).unwrap_or_default().iter().filter(|limit| !self.names(limit));
        self.before_identity.iter().chain(&self.after_identity).chain(of_plan)
    }

    fn names(&self, limit: &Arc<RateLimit>) -> bool {
        self.before_identity.iter().chain(&self.after_identity).any(|named| Arc::ptr_eq(named, limit))
    }
}

impl<'p> Charge<'p> {
    /// Nothing yet, for a request on a route of this cost.
    pub fn new(cost: u64, now: Now) -> Self {
        Self { now, cost, taken: SmallVec::new(), permits: Vec::new(), nearest: None, wait: Duration::ZERO, shadowed: Vec::new() }
    }

    /// The limits that would have refused the request, were they enforced.
    pub fn into_shadowed(self) -> Vec<Arc<str>> {
        self.shadowed
    }

    /// What an admitted request keeps.
    pub fn into_held(self) -> Held {
        let turn = (!self.wait.is_zero()).then(|| Turn {
            at: self.now.monotonic.saturating_add(self.wait),
            now: self.now,
            taken: self.taken.iter().map(|taken| (Arc::clone(taken.limit), taken.key, taken.units, taken.from)).collect(),
        });
        let nearest = self.nearest.map(|(limit, standing)| limit.state(standing));
        Held { nearest, shadowed: self.shadowed, turn, permits: self.permits }
    }

    /// Takes of all these limits or of none; of none also of those before them.
    async fn take(
        &mut self,
        limits: impl Iterator<Item = &'p Arc<RateLimit>>,
        request: &Request<'_>,
        identity: Option<&Identity>,
    ) -> Result<(), Rejection> {
        let taken = self.take_each(limits, request, identity).await;
        if taken.is_err() {
            self.give_back();
        }
        taken
    }

    /// What this process holds first; nobody asks Redis for a request that is refused already.
    async fn take_each(
        &mut self,
        limits: impl Iterator<Item = &'p Arc<RateLimit>>,
        request: &Request<'_>,
        identity: Option<&Identity>,
    ) -> Result<(), Rejection> {
        let mut worst = None;
        let mut remote = Vec::new();
        for limit in limits {
            let key = match limit.subject(request, identity) {
                Subject::Key(key) => key,
                Subject::Missing if !limit.shadow => return Err(Rejection::Forbidden("limit_key_missing")),
                Subject::Missing => {
                    self.shadow(limit);
                    continue;
                }
                Subject::Exempt => continue,
            };
            match &limit.holder {
                Holder::Own(own) => {
                    let (standing, permit) = own.charge(&key, limit.units(self.cost), self.now);
                    self.permits.extend(permit);
                    // On to the last, so that who waits as told is not refused by another.
                    worst = longer(worst, self.record(limit, key, standing, By::Own(standing.wait)));
                }
                Holder::Redis(shared) | Holder::Hybrid(_, shared) => remote.push((limit, shared, key)),
            }
        }
        if worst.is_none() && !remote.is_empty() {
            worst = self.take_remote(&remote).await?;
        }
        match worst {
            None => Ok(()),
            Some((limit, standing)) => {
                limit.refusals.inc();
                Err(limit.rejection(standing))
            }
        }
    }

    /// Leases first, as they hardly ever wait; then one call for all that Redis counts. A shadow is asked by itself: it takes part in no "all
    /// or none".
    async fn take_remote(&mut self, remote: &[(&'p Arc<RateLimit>, &'p Shared, Key)]) -> Result<Worst<'p>, Rejection> {
        let mut worst = None;
        for (limit, shared, key) in remote {
            if let Holder::Hybrid(leases, _) = &limit.holder {
                let ask = Ask { name: &shared.name, key: *key, terms: shared.terms, cost: limit.units(self.cost) };
                let refused = match leases.charge(&shared.limits, ask, self.now).await {
                    Ok(standing) => self.record(limit, *key, standing, By::Lease),
                    Err(_) => self.without_redis(limit, shared, *key)?,
                };
                worst = longer(worst, refused);
            }
        }
        let counted = |shadow| remote.iter().filter(move |(limit, ..)| matches!(limit.holder, Holder::Redis(_)) && limit.shadow == shadow);
        let together: Vec<_> = counted(false).collect();
        if worst.is_none() && !together.is_empty() {
            worst = self.take_redis(&together).await?;
        }
        for alone in counted(true).filter(|_| worst.is_none()) {
            self.take_redis(&[alone]).await?;
        }
        Ok(worst)
    }

    async fn take_redis(&mut self, together: &[&(&'p Arc<RateLimit>, &'p Shared, Key)]) -> Result<Worst<'p>, Rejection> {
        let cost = self.cost;
        let ask = |&&(limit, shared, key): &&(&'p Arc<RateLimit>, &'p Shared, Key)| Ask {
            name: &shared.name,
            key,
            terms: shared.terms,
            cost: limit.units(cost),
        };
        let asks: Vec<_> = together.iter().map(ask).collect();
        let Some((_, first, _)) = together.first() else { return Ok(None) };
        let mut worst = None;
        match first.limits.charge(&asks).await {
            Ok(charge) => {
                let charged = charge.standings.iter().all(|standing| standing.admitted);
                for (&&(limit, _, key), standing) in together.iter().zip(charge.standings) {
                    if charged || !standing.admitted {
                        worst = longer(worst, self.record(limit, key, standing, By::Redis(charge.at)));
                    }
                }
            }
            Err(_) => {
                for &&(limit, shared, key) in together {
                    worst = longer(worst, self.without_redis(limit, shared, key)?);
                }
            }
        }
        Ok(worst)
    }

    /// What the limit says of a Redis that does not answer.
    fn without_redis(&mut self, limit: &'p Arc<RateLimit>, shared: &'p Shared, key: Key) -> Result<Worst<'p>, Rejection> {
        match shared.on_failure {
            OnStoreFailure::Allow => Ok(None),
            OnStoreFailure::Deny if limit.shadow => {
                self.shadow(limit);
                Ok(None)
            }
            OnStoreFailure::Deny => Err(Rejection::DependencyUnavailable { dependency: "redis", retry_after: REDIS_RETRY }),
            OnStoreFailure::Local => {
                let (standing, _) = shared.fallback.charge(&key, limit.units(self.cost), self.now);
                Ok(self.record(limit, key, standing, By::Own(standing.wait)))
            }
        }
    }

    /// Notes what a limit said. One that refuses comes back, unless it is a shadow.
    fn record(&mut self, limit: &'p Arc<RateLimit>, key: Key, standing: Standing, from: By) -> Worst<'p> {
        match (standing.admitted, limit.shadow) {
            (true, shadow) => {
                self.taken.push(Taken { limit, key, units: limit.units(self.cost), from });
                if !shadow {
                    self.wait = self.wait.max(standing.wait);
                    if self.nearest.is_none_or(|(_, nearest)| standing.remaining < nearest.remaining) {
                        self.nearest = Some((&**limit, standing));
                    }
                }
                None
            }
            (false, true) => {
                self.shadow(limit);
                None
            }
            (false, false) => Some((&**limit, standing)),
        }
    }

    fn shadow(&mut self, limit: &RateLimit) {
        limit.refusals.inc();
        self.shadowed.push(Arc::clone(&limit.name));
    }

    fn give_back(&mut self) {
        self.permits.clear();
        for taken in self.taken.drain(..) {
            refund(taken.limit, &taken.key, taken.units, taken.from, self.now);
        }
    }
}

impl Turn {
    /// Leaves the queue, and gives back what the request took elsewhere: it goes no further.
    pub fn give_up(self) {
        for (limit, key, units, from) in &self.taken {
            refund(limit, key, *units, *from, self.now);
        }
    }
}

/// The limit that refuses for longest.
type Worst<'p> = Option<(&'p RateLimit, Standing)>;

fn longer<'p>(one: Worst<'p>, other: Worst<'p>) -> Worst<'p> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.1.retry_after > one.1.retry_after { other } else { one }),
        (one, other) => one.or(other),
    }
}

fn refund(limit: &RateLimit, key: &Key, units: u64, from: By, now: Now) {
    match (&limit.holder, from) {
        (Holder::Own(own), By::Own(wait)) => own.refund(key, units, now, wait),
        (Holder::Redis(shared) | Holder::Hybrid(_, shared), By::Own(wait)) => shared.fallback.refund(key, units, now, wait),
        (Holder::Hybrid(leases, _), _) => leases.refund(key, units, now),
        (Holder::Redis(shared), By::Redis(at)) => {
            shared.limits.refund(&[Ask { name: &shared.name, key: *key, terms: shared.terms, cost: units }], at);
        }
        // Nobody but its own holder counted it.
        (Holder::Own(_) | Holder::Redis(_), _) => {}
    }
}
