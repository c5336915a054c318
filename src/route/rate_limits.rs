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
    pub turn: Option<Box<Turn>>,
    /// To give back what was taken, where the request may yet be refused.
    pub receipt: Option<Box<Receipt>>,
    /// Given back when the request has ended, whichever way.
    permits: Vec<Permit>,
}

impl Held {
    /// The request is no longer in flight.
    pub fn land(&mut self) {
        self.permits.clear();
    }
}

/// A place in the queue of a leaky bucket.
#[derive(Debug)]
pub struct Turn {
    /// When it comes, on the monotonic clock.
    pub at: Duration,
    receipt: Receipt,
}

/// What a request took of which limits.
#[derive(Debug)]
pub struct Receipt {
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
        let is_attempt = match &rejection {
            Rejection::CredentialInvalid(_) | Rejection::CredentialExpired | Rejection::CredentialRevoked => true,
            // One that lacks nothing but a nonce is no guess: it is how callers get the nonce.
            Rejection::ProofInvalid(_) => true,
            Rejection::AddressDenied | Rejection::Forbidden(_) => true,
            // A redirect is how others ask for a login.
            Rejection::Relayed(relayed) => relayed.status.is_client_error(),
            _ => false,
        };
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

    /// Notes what would have refused the request, were it enforced.
    pub fn note_shadow(&mut self, name: &Arc<str>) {
        self.shadowed.push(Arc::clone(name));
    }

    /// What an admitted request keeps; `provisionally` when it may yet be refused.
    pub fn into_held(self, provisionally: bool) -> Held {
        let at = self.now.monotonic.saturating_add(self.wait);
        let turn = (!self.wait.is_zero()).then(|| Box::new(Turn { at, receipt: self.receipt() }));
        let receipt = provisionally.then(|| Box::new(self.receipt()));
        let nearest = self.nearest.map(|(limit, standing)| limit.state(standing));
        Held { nearest, shadowed: self.shadowed, turn, receipt, permits: self.permits }
    }

    fn receipt(&self) -> Receipt {
        let taken = self.taken.iter().map(|taken| (Arc::clone(taken.limit), taken.key, taken.units, taken.from));
        Receipt { now: self.now, taken: taken.collect() }
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
            // Boxed, so that the many requests of which nobody else is asked do not carry the room that asking takes.
            worst = Box::pin(self.take_remote(&remote)).await?;
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

    /// Gives back what the request has taken so far: it is refused, and not for its credential.
    pub fn give_back(&mut self) {
        self.permits.clear();
        for taken in self.taken.drain(..) {
            refund(taken.limit, &taken.key, taken.units, taken.from, self.now);
        }
    }
}

impl Turn {
    /// Leaves the queue, and gives back what the request took elsewhere: it goes no further.
    pub fn give_up(self) {
        self.receipt.give_back();
    }
}

impl Receipt {
    /// Gives back what the request took: a refused one consumes nothing.
    pub fn give_back(self) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        Allowance, At, Limit, LimitAlgorithm, LimitKey, LimitMode, LimitOn, LimitStore, Period, Place, Quota, Rate, WhenMissing,
    };
    use crate::live::LiveState;
    use crate::metrics::Metrics;
    use crate::request::{Client, Method, Parameters};
    use crate::route::limit::Stores;
    use futures_util::FutureExt;
    use http::{HeaderMap, HeaderName};
    use std::path::PathBuf;

    const SECOND: Duration = Duration::from_secs(1);

    fn limit(per: &[LimitKey], count: u64) -> Limit {
        let place = Place { file: "".into(), line: 1, column: 1, path: "".into() };
        Limit {
            per: per.to_vec(),
            allowance: Allowance::Rate { rate: Rate { count, window: SECOND }, algorithm: LimitAlgorithm::SlidingWindow },
            cost: 1,
            on: LimitOn::Requests,
            mode: LimitMode::Enforce,
            store: At { value: LimitStore::Local, place },
            ipv6_prefix: 64,
            when_missing: WhenMissing::Deny,
        }
    }

    /// What policies are compiled from; quotas are kept in a folder of their own.
    struct Setting {
        live: LiveState,
        metrics: Metrics,
        quotas: PathBuf,
        _folder: tempfile::TempDir,
    }

    impl Setting {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let quotas = folder.path().join("quotas.db");
            Self { live: LiveState::default(), metrics: Metrics::new().unwrap(), quotas, _folder: folder }
        }

        fn limit(&self, name: &str, limit: &Limit) -> Arc<RateLimit> {
            let stores = Stores { live: &self.live, quotas: &self.quotas, redis: None };
            let limit = Arc::new(RateLimit::compile(&name.into(), limit, &stores, &self.metrics).unwrap());
            for (_, ledger) in self.live.ledgers.living() {
                ledger.open(now(0)).unwrap();
            }
            limit
        }

        fn refusals(&self, name: &str, mode: &str) -> u64 {
            self.metrics.limit_refusals(name, mode).get()
        }
    }

    fn compile(limits: &[(&str, Limit)]) -> RateLimits {
        let setting = Setting::new();
        RateLimits::new(limits.iter().map(|(name, limit)| setting.limit(name, limit)).collect(), Arc::default())
    }

    fn now(millis: u64) -> Now {
        Now { monotonic: Duration::from_millis(millis), unix: Duration::from_secs(1_800_000_000) }
    }

    fn identity(consumer: &str) -> Identity {
        Identity {
            consumer: Some(consumer.into()),
            claims: serde_json::from_str(r#"{"tenant": {"id": 7}, "name": "7", "list": ["a"]}"#).unwrap(),
            ..Identity::new(Method::Jwt, "a".into(), [1; 32])
        }
    }

    struct Caller {
        client: Client,
        headers: HeaderMap,
    }

    impl Caller {
        fn new(address: &str) -> Self {
            Self { client: Client { address: address.parse().unwrap(), through_trusted_proxy: false }, headers: HeaderMap::new() }
        }

        fn request(&self) -> Request<'_> {
            let request = Request::new(&http::Method::GET, "h", "/", &self.headers, &self.client);
            Request { route: "orders", parameters: Parameters(&[("id", "7")]), ..request }
        }
    }

    /// Nothing is waited for where nobody asks Redis.
    fn admit(limits: &RateLimits, caller: &Caller, identity: Option<&Identity>, cost: u64, at: u64) -> Result<Held, Rejection> {
        let mut charge = Charge::new(cost, now(at));
        limits.check_client(&caller.request(), &mut charge).now_or_never().unwrap()?;
        limits.check_identity(&caller.request(), identity, &mut charge).now_or_never().unwrap()?;
        Ok(charge.into_held(false))
    }

    fn ask(limits: &RateLimits, caller: &Caller, identity: Option<&Identity>) -> Result<Option<LimitState>, Rejection> {
        admit(limits, caller, identity, 1, 0).map(|held| held.nearest)
    }

    #[test]
    fn a_limit_is_checked_before_identity_unless_its_key_needs_it() {
        let header = LimitKey::Header(HeaderName::from_static("x-tenant"));
        let limits = compile(&[
            ("flood", limit(&[LimitKey::ClientIp], 9)),
            ("mixed", limit(&[LimitKey::Route, LimitKey::Consumer], 9)),
            ("early", limit(&[LimitKey::Route, LimitKey::Host, header, LimitKey::Path("id".into())], 9)),
            ("claim", limit(&[LimitKey::Claim("tenant".into())], 9)),
            ("guesses", Limit { on: LimitOn::Refused, ..limit(&[LimitKey::ClientIp], 9) }),
        ]);
        let names = |limits: &[Arc<RateLimit>]| limits.iter().map(|limit| limit.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&limits.before_identity), ["flood", "early"]);
        assert_eq!(names(&limits.after_identity), ["mixed", "claim"]);
        assert_eq!(names(&limits.on_refused), ["guesses"]);
    }

    #[test]
    fn what_one_limit_refuses_consumes_nothing_of_any_other_whatever_their_kind() {
        let daily = Allowance::Quota(Quota { count: 10, period: Period::Day });
        let limits = compile(&[
            ("flood", limit(&[LimitKey::ClientIp], 10)),
            ("daily", Limit { allowance: daily, ..limit(&[LimitKey::ClientIp], 0) }),
            ("busy", Limit { allowance: Allowance::Concurrency(3), ..limit(&[LimitKey::Route], 0) }),
            ("each", limit(&[LimitKey::Consumer], 2)),
        ]);
        let (caller, acme, umbrella) = (Caller::new("192.0.2.1"), identity("acme"), identity("umbrella"));
        let mut held = Vec::new();
        for expected in [true, true, false, false, false] {
            let answer = admit(&limits, &caller, Some(&acme), 1, 0);
            assert_eq!(answer.is_ok(), expected);
            held.extend(answer);
        }
        let third = admit(&limits, &caller, Some(&umbrella), 1, 0).unwrap();
        assert_eq!(third.nearest.as_ref().map(|state| (&*state.name, state.remaining)), Some(("busy", 0)));
        let Err(Rejection::RateLimited(state)) = ask(&limits, &caller, Some(&umbrella)) else { panic!("a fourth at once") };
        assert_eq!((&*state.name, state.limit, state.window), ("busy", 3, None));
        drop((held, third));
        // Three of ten are used: what was refused took nothing.
        let mut left = Vec::new();
        for consumer in 0..10 {
            left.extend(ask(&limits, &caller, Some(&identity(&consumer.to_string()))).ok().flatten().map(|state| state.remaining));
        }
        assert_eq!(left, [1, 1, 1, 1, 1, 1, 0]);
        let refused = ask(&limits, &caller, Some(&identity("late")));
        let Err(Rejection::QuotaExceeded(state)) = refused else { panic!("{refused:?}") };
        assert_eq!((&*state.name, state.remaining, state.window), ("daily", 0, Some(Duration::from_secs(86_400))));
    }

    #[test]
    fn who_is_refused_for_want_of_a_good_credential_has_consumed_the_limits_before_it() {
        let limits = compile(&[("flood", limit(&[LimitKey::ClientIp], 3))]);
        let caller = Caller::new("192.0.2.1");
        let pass = |_: &i32| limits.check_client(&caller.request(), &mut Charge::new(1, now(0))).now_or_never().unwrap().is_ok();
        assert_eq!((0..10).filter(pass).count(), 3);
    }

    #[test]
    fn a_refusal_names_the_limit_that_refuses_for_longest() {
        let hourly = Allowance::Rate { rate: Rate { count: 1, window: 3_600 * SECOND }, algorithm: LimitAlgorithm::FixedWindow };
        let limits = compile(&[
            ("flood", limit(&[LimitKey::ClientIp], 1)),
            ("hourly", Limit { allowance: hourly, ..limit(&[LimitKey::ClientIp], 0) }),
        ]);
        let caller = Caller::new("192.0.2.1");
        assert!(ask(&limits, &caller, None).is_ok());
        let Err(Rejection::RateLimited(state)) = ask(&limits, &caller, None) else { panic!("admitted") };
        assert_eq!((&*state.name, state.limit, state.remaining, state.retry_after), ("hourly", 1, 0, 3_600 * SECOND));
        assert!(admit(&limits, &caller, None, 1, 3_600_000).is_ok());
    }

    #[test]
    fn a_request_takes_the_cost_of_the_limit_times_that_of_the_route_and_all_of_it_or_nothing() {
        let setting = Setting::new();
        let dear = setting.limit("dear", &Limit { cost: 2, ..limit(&[LimitKey::ClientIp], 10) });
        let limits = RateLimits::new(vec![dear], Arc::default());
        let caller = Caller::new("192.0.2.1");
        let left = |cost| admit(&limits, &caller, None, cost, 0).map(|held| held.nearest.map(|state| state.remaining));
        assert_eq!(left(3), Ok(Some(4)));
        assert!(left(3).is_err());
        assert_eq!(left(2), Ok(Some(0)));
        assert!(left(1).is_err());
    }

    #[test]
    fn a_shadow_counts_for_itself_tells_and_never_refuses() {
        let setting = Setting::new();
        let shadow = |count| Limit { mode: LimitMode::Shadow, ..limit(&[LimitKey::ClientIp], count) };
        let enforced = setting.limit("flood", &limit(&[LimitKey::ClientIp], 3));
        let both = RateLimits::new(vec![setting.limit("flood", &shadow(2)), enforced], Arc::default());
        let caller = Caller::new("192.0.2.1");
        let shadowed: Vec<_> = (0..6).map(|_| admit(&both, &caller, None, 1, 0).map(|held| held.shadowed.len()).ok()).collect();
        assert_eq!(shadowed, [Some(0), Some(0), Some(1), None, None, None]);
        // What is refused by the other one would not have come this far.
        assert_eq!(setting.refusals("flood", "enforce"), 3);
        let missing = Limit { mode: LimitMode::Shadow, ..limit(&[LimitKey::Consumer], 1) };
        let held = admit(&compile(&[("each", missing)]), &caller, None, 1, 0).unwrap();
        assert_eq!((held.shadowed.len(), held.nearest), (1, None));
    }

    #[test]
    fn refused_credentials_use_up_the_limit_of_their_address_and_no_other_request_does() {
        let setting = Setting::new();
        let guesses = setting.limit("guesses", &Limit { on: LimitOn::Refused, ..limit(&[LimitKey::ClientIp], 2) });
        let limits = RateLimits::new(vec![guesses], Arc::default());
        let (caller, other) = (Caller::new("192.0.2.1"), Caller::new("192.0.2.2"));
        let check = |caller: &Caller, presents: bool| {
            limits.check_attempts(&caller.request(), &mut Charge::new(1, now(0)), || presents).map_err(|rejection| rejection.code())
        };
        let fail = |rejection| limits.count_refused(&caller.request(), rejection, now(0)).code();
        for _ in 0..5 {
            assert_eq!(check(&caller, true), Ok(()));
            assert_eq!(fail(Rejection::CredentialMissing), "credential_missing");
            assert_eq!(fail(Rejection::BadRequest("x")), "bad_request");
        }
        assert_eq!(fail(Rejection::CredentialInvalid("x")), "credential_invalid");
        assert_eq!(check(&caller, true), Ok(()));
        assert_eq!(fail(Rejection::CredentialExpired), "credential_expired");
        assert_eq!(check(&caller, true), Err("rate_limited"));
        assert_eq!(check(&caller, false), Ok(()));
        assert_eq!(check(&other, true), Ok(()));
        // Those who were on their way when it was used up.
        assert_eq!(fail(Rejection::CredentialInvalid("x")), "rate_limited");
        assert_eq!(setting.refusals("guesses", "enforce"), 2);
    }

    #[test]
    fn a_plan_is_that_of_the_credential_or_of_the_consumer_or_the_default() {
        let setting = Setting::new();
        let [flood, gold, silver, free] = [("flood", 50), ("gold", 40), ("silver", 30), ("free", 20)]
            .map(|(name, count)| setting.limit(name, &limit(&[LimitKey::Consumer], count)));
        let mut plans = Plans::default();
        let acme: [Arc<str>; 1] = ["acme".into()];
        // `flood` is named by the policy as well, and counts once.
        plans.add(&"gold".into(), [gold, Arc::clone(&flood)].into(), std::iter::empty(), false);
        plans.add(&"silver".into(), [silver].into(), acme.iter(), false);
        plans.add(&"free".into(), [free].into(), std::iter::empty(), true);
        let limits = RateLimits::new(vec![flood], Arc::new(plans));
        let caller = Caller::new("192.0.2.1");
        let with = |consumer: &str, plan: Option<&str>| Identity { plan: plan.map(Into::into), ..identity(consumer) };
        for (who, expected) in [
            (with("umbrella", Some("gold")), "gold 39"),
            (with("acme", Some("gold")), "gold 39"),
            (with("acme", None), "silver 29"),
            (with("globex", None), "free 19"),
        ] {
            let nearest = ask(&limits, &caller, Some(&who)).unwrap().unwrap();
            assert_eq!(format!("{} {}", nearest.name, nearest.remaining), expected);
        }
        let unknown = ask(&limits, &caller, Some(&with("umbrella", Some("platinum"))));
        assert_eq!(unknown, Err(Rejection::Forbidden("plan_unknown")));
        assert_eq!(ask(&limits, &caller, None), Err(Rejection::Forbidden("limit_key_missing")));
        let anybody = compile(&[("flood", limit(&[LimitKey::ClientIp], 9))]);
        assert!(ask(&anybody, &caller, Some(&with("acme", Some("platinum")))).is_ok());
    }

    #[test]
    fn who_comes_early_gets_a_turn_in_the_queue_and_who_gives_it_up_leaves_the_queue() {
        let algorithm = LimitAlgorithm::LeakyBucket { queue: 2, max_wait: 10 * SECOND };
        let smooth =
            Limit { allowance: Allowance::Rate { rate: Rate { count: 1, window: SECOND }, algorithm }, ..limit(&[LimitKey::Host], 0) };
        let limits = compile(&[("smooth", smooth), ("flood", limit(&[LimitKey::ClientIp], 4))]);
        let caller = Caller::new("192.0.2.1");
        let come = || admit(&limits, &caller, None, 1, 0).map(|held| held.turn);
        assert!(come().unwrap().is_none());
        assert_eq!(come().unwrap().map(|turn| turn.at), Some(SECOND));
        let last = come().unwrap().unwrap();
        assert_eq!(last.at, 2 * SECOND);
        let Err(Rejection::QueueFull(state)) = come() else { panic!("a third waits") };
        assert_eq!((state.limit, state.retry_after), (3, SECOND));
        last.give_up();
        // Its place and its part of the other limit are free again.
        assert_eq!(come().unwrap().map(|turn| turn.at), Some(2 * SECOND));
        assert_eq!(admit(&limits, &caller, None, 1, 1_000).unwrap().turn.map(|turn| turn.at), Some(3 * SECOND));
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_a_count() {
        for (prefix, second, shared) in [
            (64, "2001:db8:0:1:ffff::9", true),
            (64, "2001:db8:0:2::1", false),
            (48, "2001:db8:0:2::1", true),
            (128, "2001:db8:0:1::2", false),
            (0, "::1", true),
            (64, "192.0.2.1", false),
        ] {
            let limits = compile(&[("flood", Limit { ipv6_prefix: prefix, ..limit(&[LimitKey::ClientIp], 1) })]);
            assert!(ask(&limits, &Caller::new("2001:db8:0:1::1"), None).is_ok());
            assert_eq!(ask(&limits, &Caller::new(second), None).is_err(), shared, "/{prefix} {second}");
        }
    }

    #[test]
    fn a_request_without_the_key_is_refused_unless_the_limit_says_otherwise() {
        let keys = [
            LimitKey::Header(HeaderName::from_static("x-tenant")),
            LimitKey::Consumer,
            LimitKey::Subject,
            LimitKey::Credential,
            LimitKey::Claim("tenant".into()),
            LimitKey::Path("other".into()),
        ];
        for key in keys {
            let with = |when_missing| compile(&[("each", Limit { when_missing, ..limit(std::slice::from_ref(&key), 1) })]);
            let (caller, other) = (Caller::new("192.0.2.1"), Caller::new("192.0.2.2"));
            assert_eq!(ask(&with(WhenMissing::Deny), &caller, None), Err(Rejection::Forbidden("limit_key_missing")), "{key:?}");
            assert_eq!(ask(&with(WhenMissing::Skip), &caller, None), Ok(None), "{key:?}");
            let by_address = with(WhenMissing::ClientIp);
            assert!(
                ask(&by_address, &caller, None).is_ok()
                    && ask(&by_address, &caller, None).is_err()
                    && ask(&by_address, &other, None).is_ok()
            );
        }
    }

    #[test]
    fn claims_are_counted_by_their_text_and_lists_are_not_counted() {
        let acme = identity("acme");
        let caller = Caller::new("192.0.2.1");
        for (claim, expected) in [("tenant.id", true), ("name", true), ("list", false), ("tenant", false), ("none", false)] {
            let limits = compile(&[("each", limit(&[LimitKey::Claim(claim.into())], 1))]);
            assert_eq!(ask(&limits, &caller, Some(&acme)).is_ok(), expected, "{claim}");
        }
    }

    #[test]
    fn a_header_has_one_count_however_it_is_written_and_none_when_it_comes_twice() {
        let name = HeaderName::from_static("x-tenant");
        let limits = compile(&[("each", limit(&[LimitKey::Header(name.clone())], 1))]);
        let with = |values: &[&'static str]| {
            let mut caller = Caller::new("192.0.2.1");
            for value in values {
                caller.headers.append(&name, http::HeaderValue::from_static(value));
            }
            ask(&limits, &caller, None)
        };
        assert!(with(&["acme"]).is_ok());
        assert!(matches!(with(&["acme "]), Err(Rejection::RateLimited(_))));
        assert_eq!(with(&["other", "acme"]), Err(Rejection::Forbidden("limit_key_missing")));
        assert!(with(&["other"]).is_ok());
    }
}
