//! The rate limits of a policy: those whose key needs the identity are checked after it, the others before.
//!
//! A request that one limit refuses has consumed nothing of any other. One that is refused later for another reason keeps what it consumed
//! before its identity was known: guessing credentials is limited as well.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use crate::config::{Allowance, Limit, LimitKey, WhenMissing};
use crate::live::limits::{Algorithm, Key, KeyBuilder, Limits, Standing, Terms};
use crate::request::{Identity, LimitState, Now, Rejection, Request};

/// The limits of one policy.
#[derive(Debug)]
pub struct RateLimits {
    before_identity: Box<[RateLimit]>,
    after_identity: Box<[RateLimit]>,
}

/// What a request consumed before its identity was known.
#[derive(Debug)]
#[must_use = "what a later limit refuses has to be given back"]
pub struct Charge {
    nearest: Option<LimitState>,
    now: Now,
}

impl RateLimits {
    /// Compiles the limits that a policy names, each with its name and its counts.
    pub fn compile<'a>(limits: impl IntoIterator<Item = (&'a Arc<str>, &'a Limit, Arc<Limits>)>) -> Self {
        let limits = limits.into_iter().map(|(name, limit, counts)| RateLimit {
            name: name.clone(),
            per: limit.per.as_slice().into(),
            terms: terms(limit),
            ipv6_prefix: limit.ipv6_prefix,
            when_missing: limit.when_missing,
            counts,
        });
        let (after_identity, before_identity): (Vec<_>, Vec<_>) = limits.partition(|limit| limit.per.iter().any(needs_identity));
        Self { before_identity: before_identity.into(), after_identity: after_identity.into() }
    }

    /// Whether a limit refuses every caller that has no identity, so that it cannot stand on a public route.
    pub fn refuses_the_public(limit: &Limit) -> bool {
        limit.when_missing == WhenMissing::Deny && limit.per.iter().any(needs_identity)
    }

    /// Counts the request against the limits that need no identity.
    ///
    /// Refused with [`Rejection::RateLimited`], or [`Rejection::Forbidden`] when the request lacks what a limit is counted by.
    pub fn check_client(&self, request: &Request<'_>, now: Now) -> Result<Charge, Rejection> {
        charge(&self.before_identity, request, None, now).map(|nearest| Charge { nearest, now })
    }

    /// Counts the request against the limits that need the identity, which is absent on public routes, and says where the limit nearest to
    /// its end stands. When one refuses, what [`check_client`](Self::check_client) counted is given back.
    pub fn check_identity(
        &self,
        request: &Request<'_>,
        identity: Option<&Identity>,
        charged: Charge,
        now: Now,
    ) -> Result<Option<LimitState>, Rejection> {
        match charge(&self.after_identity, request, identity, now) {
            Ok(nearest) => Ok(nearer(charged.nearest, nearest)),
            Err(rejection) => {
                refund(&self.before_identity, request, None, charged.now);
                Err(rejection)
            }
        }
    }
}

/// All or none: what was counted before the one that refuses is given back.
fn charge(limits: &[RateLimit], request: &Request<'_>, identity: Option<&Identity>, now: Now) -> Result<Option<LimitState>, Rejection> {
    let mut nearest = None;
    for (at, limit) in limits.iter().enumerate() {
        let refused = match limit.key(request, identity) {
            Subject::Exempt => continue,
            Subject::Missing => Rejection::Forbidden("limit_key_missing"),
            Subject::Key(key) => {
                let standing = limit.counts.charge(&key, &limit.terms, 1, now.monotonic);
                if standing.admitted {
                    nearest = nearer(nearest, Some(limit.state(standing)));
                    continue;
                }
                Rejection::RateLimited(limit.state(standing))
            }
        };
        refund(limits.get(..at).unwrap_or_default(), request, identity, now);
        return Err(refused);
    }
    Ok(nearest)
}

fn refund(limits: &[RateLimit], request: &Request<'_>, identity: Option<&Identity>, now: Now) {
    for limit in limits {
        if let Subject::Key(key) = limit.key(request, identity) {
            limit.counts.refund(&key, &limit.terms, 1, now.monotonic);
        }
    }
}

fn terms(limit: &Limit) -> Terms {
    let (limit, window) = match limit.allowance {
        Allowance::Rate { rate, .. } => (rate.count, rate.window),
        Allowance::Quota(quota) => (quota.count, std::time::Duration::from_secs(86_400)),
        Allowance::Concurrency(limit) => (limit, std::time::Duration::from_secs(1)),
    };
    Terms { limit, window, algorithm: Algorithm::SlidingWindow }
}

fn nearer(one: Option<LimitState>, other: Option<LimitState>) -> Option<LimitState> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.remaining < one.remaining { other } else { one }),
        (one, other) => one.or(other),
    }
}

fn needs_identity(key: &LimitKey) -> bool {
    match key {
        LimitKey::Consumer | LimitKey::Subject | LimitKey::Credential | LimitKey::Claim(_) => true,
        LimitKey::ClientIp | LimitKey::Route | LimitKey::Host | LimitKey::Header(_) | LimitKey::Path(_) => false,
    }
}

#[derive(Debug)]
struct RateLimit {
    name: Arc<str>,
    per: Box<[LimitKey]>,
    terms: Terms,
    ipv6_prefix: u8,
    when_missing: WhenMissing,
    counts: Arc<Limits>,
}

/// Whom a limit counts a request for.
enum Subject {
    Key(Key),
    /// The request lacks what the limit is counted by, and the limit says `skip`.
    Exempt,
    /// The same, and the limit says `deny`.
    Missing,
}

/// The tags of the parts of a key, so that an address in place of a missing header is not taken for a header that holds an address.
const PRESENT: u8 = 0;
const ADDRESS: u8 = 1;

impl RateLimit {
    fn key(&self, request: &Request<'_>, identity: Option<&Identity>) -> Subject {
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
    fn push_address(&self, key: &mut KeyBuilder, address: IpAddr) {
        match address {
            IpAddr::V4(address) => key.part(ADDRESS, &address.octets()),
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.ipv6_prefix.min(128))).unwrap_or(0);
                key.part(ADDRESS, &(u128::from(address) & mask).to_be_bytes());
            }
        }
    }

    fn state(&self, standing: Standing) -> LimitState {
        let Standing { remaining, reset, retry_after, .. } = standing;
        LimitState { name: self.name.clone(), limit: self.terms.limit, remaining, reset, retry_after, window: self.terms.window }
    }
}

/// The value of a header; absent as well when it came twice, as nobody can say which one counts.
fn only_value<'a>(request: &Request<'a>, name: &http::HeaderName) -> Option<&'a [u8]> {
    let mut values = request.headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes().trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{At, LimitAlgorithm, LimitMode, LimitOn, LimitStore, Place, Rate};
    use crate::request::{Client, Method, Parameters};
    use http::{HeaderMap, HeaderName};
    use std::time::Duration;

    fn limit(per: &[LimitKey], count: u64) -> Limit {
        Limit {
            per: per.to_vec(),
            allowance: Allowance::Rate { rate: Rate { count, window: Duration::from_secs(1) }, algorithm: LimitAlgorithm::SlidingWindow },
            cost: 1,
            on: LimitOn::Requests,
            mode: LimitMode::Enforce,
            store: local(),
            ipv6_prefix: 64,
            when_missing: WhenMissing::Deny,
        }
    }

    fn local() -> At<LimitStore> {
        At { value: LimitStore::Local, place: Place { file: "".into(), line: 1, column: 1, path: "".into() } }
    }

    fn compile(limits: &[(&str, Limit)]) -> RateLimits {
        let names: Vec<Arc<str>> = limits.iter().map(|(name, _)| Arc::from(*name)).collect();
        RateLimits::compile(names.iter().zip(limits).map(|(name, (_, limit))| (name, limit, Arc::default())))
    }

    fn now(millis: u64) -> Now {
        Now { monotonic: Duration::from_millis(millis), unix: Duration::ZERO }
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

    fn ask(limits: &RateLimits, caller: &Caller, identity: Option<&Identity>) -> Result<Option<LimitState>, Rejection> {
        let charge = limits.check_client(&caller.request(), now(0))?;
        limits.check_identity(&caller.request(), identity, charge, now(0))
    }

    #[test]
    fn a_limit_is_checked_before_identity_unless_its_key_needs_it() {
        let header = LimitKey::Header(HeaderName::from_static("x-tenant"));
        let limits = compile(&[
            ("flood", limit(&[LimitKey::ClientIp], 9)),
            ("mixed", limit(&[LimitKey::Route, LimitKey::Consumer], 9)),
            ("early", limit(&[LimitKey::Route, LimitKey::Host, header, LimitKey::Path("id".into())], 9)),
            ("claim", limit(&[LimitKey::Claim("tenant".into())], 9)),
        ]);
        let names = |limits: &[RateLimit]| limits.iter().map(|limit| limit.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&limits.before_identity), ["flood", "early"]);
        assert_eq!(names(&limits.after_identity), ["mixed", "claim"]);
    }

    #[test]
    fn what_a_limit_refuses_consumes_nothing_of_the_others_on_either_side_of_identity() {
        let limits = compile(&[
            ("flood", limit(&[LimitKey::ClientIp], 10)),
            ("route", limit(&[LimitKey::Route], 100)),
            ("each", limit(&[LimitKey::Consumer], 2)),
        ]);
        let (caller, acme, umbrella) = (Caller::new("192.0.2.1"), identity("acme"), identity("umbrella"));
        for expected in [true, true, false, false, false] {
            assert_eq!(ask(&limits, &caller, Some(&acme)).is_ok(), expected);
        }
        let Ok(charge) = limits.check_client(&caller.request(), now(0)) else { panic!("refused") };
        assert_eq!(charge.nearest.as_ref().map(|state| (&*state.name, state.remaining)), Some(("flood", 7)));
        let state = limits.check_identity(&caller.request(), Some(&umbrella), charge, now(0)).unwrap();
        assert_eq!(state.map(|state| (state.name.to_string(), state.remaining)), Some(("each".to_owned(), 1)));
    }

    #[test]
    fn who_is_refused_for_want_of_a_good_credential_has_consumed_the_limits_before_it() {
        let limits = compile(&[("flood", limit(&[LimitKey::ClientIp], 3))]);
        let caller = Caller::new("192.0.2.1");
        let passed = (0..10).filter(|_| limits.check_client(&caller.request(), now(0)).map(drop).is_ok()).count();
        assert_eq!(passed, 3);
    }

    #[test]
    fn a_refusal_says_which_limit_and_when_to_come_back() {
        let limits = compile(&[("flood", limit(&[LimitKey::ClientIp], 1))]);
        let caller = Caller::new("192.0.2.1");
        assert!(ask(&limits, &caller, None).is_ok());
        let Err(Rejection::RateLimited(state)) = ask(&limits, &caller, None) else { panic!("admitted") };
        assert_eq!((&*state.name, state.limit, state.remaining, state.retry_after), ("flood", 1, 0, Duration::from_secs(2)));
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
