//! THE DECISION: one request, top to bottom, cheap before dear, local before remote.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use crate::authenticators::Proof;
use crate::request::{BodyDigest, HeaderChange, Identity, LimitState, Now, Rejection, Request};
use crate::route::rate_limits::{Charge, Held, Turn};
use crate::route::{Policy, Route};

/// The permit to forward one request. Only [`admit`] makes one, and the phases that reach an upstream ask for it.
///
/// Each request that waits for its answer has one, so what few need lies elsewhere.
#[derive(Debug)]
pub struct Admission {
    proof: Option<Proof>,
    token: Option<Box<(HeaderName, HeaderValue)>>,
    held: Held,
}

impl Admission {
    /// Who was let in; absent on public routes, and where the policy asks for a credential only when there is one.
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.proof.as_ref().map(|proof| &proof.identity)
    }

    /// What the authenticator decided of the upstream's headers.
    pub fn headers(&self) -> &[HeaderChange] {
        self.proof.as_ref().and_then(|proof| proof.headers.as_deref()).unwrap_or_default()
    }

    /// What tells the upstream who calls, where the route exchanges the credential.
    pub fn token(&self) -> Option<&(HeaderName, HeaderValue)> {
        self.token.as_deref()
    }

    /// What the caller's next proof shall have as its nonce.
    pub fn nonce(&self) -> Option<&HeaderValue> {
        self.proof.as_ref().and_then(|proof| proof.nonce.as_ref())
    }

    /// What the body must hash to before any of it is forwarded.
    pub fn body(&self) -> &[BodyDigest] {
        self.proof.as_ref().map_or(&[], |proof| &proof.body)
    }

    /// The limit nearest to its end, for the answer's headers.
    pub fn limit(&self) -> Option<&LimitState> {
        self.held.nearest.as_ref()
    }

    /// The limits and filters that would have refused the request, were they enforced.
    pub fn shadowed(&self) -> &[Arc<str>] {
        &self.held.shadowed
    }

    /// Takes the permit back from a request whose body is not the one that was proven, and gives back what it took of its limits.
    pub fn withdraw(self) -> Option<Arc<Identity>> {
        if let Some(receipt) = self.held.receipt {
            receipt.give_back();
        }
        self.proof.map(|proof| proof.identity)
    }

    /// Counts the request as in flight no longer: its answer is there, and who has it may come again at once.
    pub fn land(&mut self) {
        self.held.land();
    }

    /// The place in a queue that the request has to wait for before it is forwarded; handed out once.
    pub fn take_turn(&mut self) -> Option<Box<Turn>> {
        self.held.turn.take()
    }
}

/// A refusal, and who was refused where that is known: for the log.
#[derive(Debug)]
pub struct Refusal {
    /// Why.
    pub rejection: Rejection,
    /// Who, when the refusal came after identification.
    pub identity: Option<Arc<Identity>>,
    /// The limits and filters that would have refused it before, were they enforced.
    pub shadowed: Vec<Arc<str>>,
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self { rejection, identity: None, shadowed: Vec::new() }
    }
}

/// Whether this request may go on, and as whom; `random` names a token that is made for its upstream.
pub async fn admit(route: &Route, request: &Request<'_>, now: Now, random: fn() -> u128) -> Result<Admission, Refusal> {
    let mut charge = Charge::new(route.cost, now);
    match decide(route, request, &mut charge, now, random).await {
        Ok((proof, token)) => {
            let provisionally = proof.as_ref().is_some_and(|proof| !proof.body.is_empty());
            Ok(Admission { proof, token, held: charge.into_held(provisionally) })
        }
        Err(refusal) => Err(Refusal { shadowed: charge.into_shadowed(), ..refusal }),
    }
}

/// Who calls, and what the upstream is told in place of the credential. A caller for whom nothing can be told is refused, and has used up nothing.
async fn decide<'p>(
    route: &'p Route,
    request: &Request<'_>,
    charge: &mut Charge<'p>,
    now: Now,
    random: fn() -> u128,
) -> Result<(Option<Proof>, Option<Box<(HeaderName, HeaderValue)>>), Refusal> {
    let policy = &*route.policy;
    let proof = judge(policy, request, charge, now).await?;
    let (Some(exchange), Some(authenticators), Some(Proof { identity, .. })) = (&route.exchange, &policy.authenticators, &proof) else {
        return Ok((proof, None));
    };
    match Box::pin(exchange.obtain(identity, authenticators, request, now, random)).await {
        Ok(token) => Ok((proof, Some(Box::new(token)))),
        Err(rejection) => {
            charge.give_back();
            Err(Refusal { identity: Some(Arc::clone(identity)), ..rejection.into() })
        }
    }
}

async fn judge<'p>(policy: &'p Policy, request: &Request<'_>, charge: &mut Charge<'p>, now: Now) -> Result<Option<Proof>, Refusal> {
    let limits = &policy.rate_limits;
    policy.ip_rules.check(request.client.address)?;
    policy.filters.check(request, charge)?;
    let Some(authenticators) = &policy.authenticators else {
        limits.check_client(request, charge).await?;
        limits.check_identity(request, None, charge).await?;
        return Ok(None);
    };
    limits.check_attempts(request, charge, || authenticators.presents(request))?;
    limits.check_client(request, charge).await?;
    let proof = authenticators.identify(request, now).await.map_err(|rejection| limits.count_refused(request, rejection, now))?;
    let identity = proof.as_ref().map(|proof| &*proof.identity);
    let may = match policy.filters.check_identity(request, identity, charge).and_then(|()| policy.authorizers.authorize(request, identity))
    {
        Ok(()) => limits.check_identity(request, identity, charge).await,
        refused => refused,
    };
    match may {
        Ok(()) => Ok(proof),
        Err(rejection) => Err(Refusal { identity: proof.map(|proof| proof.identity), ..rejection.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticators::key_format;
    use crate::config::{self, System};
    use crate::live::LiveState;
    use crate::live::api_keys::KeyHash;
    use crate::metrics::Metrics;
    use crate::request::Client;
    use crate::route::router::ParametersBuffer;
    use crate::snapshot::{Snapshot, compile};
    use http::{HeaderMap, HeaderName, Method};
    use std::time::Duration;

    fn key(authenticator: &str, consumer: &str) -> String {
        let secret = ["acme", "umbrella", "bad"].iter().position(|known| *known == consumer).unwrap() as u8;
        key_format::compose(&format!("ck_{authenticator}_"), "7f3k2m9q", &[secret; 32]).to_string()
    }

    /// One authenticator per header, each with a good key for acme and one for umbrella; two share `Authorization`.
    fn snapshot(policy: &str) -> Snapshot {
        let folder = tempfile::tempdir().unwrap();
        let mut text = "listeners: [{address: 127.0.0.1:0}]\nupstreams: {demo: {builtin: echo}}\nauthenticators:\n".to_owned();
        for name in ["a", "b", "c", "d"] {
            let from = match name {
                "c" | "d" => "{header: Authorization, scheme: Bearer}".to_owned(),
                _ => format!("{{header: x-{name}}}"),
            };
            let mut keys = "keys:\n".to_owned();
            for consumer in ["acme", "umbrella"] {
                let hash: String = KeyHash::of(&key(name, consumer)).0.iter().map(|byte| format!("{byte:02x}")).collect();
                keys += &format!("  - {{id: {name}{consumer}, sha256: {hash}, consumer: {consumer}, scopes: [{name}]}}\n");
            }
            std::fs::write(folder.path().join(format!("{name}.yaml")), keys).unwrap();
            text += &format!("  {name}: {{api_key: {{from: [{from}], prefix: ck_{name}_, keys: {{file: {name}.yaml}}}}}}\n");
        }
        text += "filters:\n  no-b: {when: \"'x-b' in request.headers\"}\n  not-umbrella: {when: \"identity.consumer == 'umbrella'\", action: deny}\n  \
                 unclear: {when: \"claims.x == 1\"}\n  unclear-counted: {when: \"claims.x == 1\", action: count}\n  \
                 shadowed: {when: \"request.path == '/'\", action: shadow}\n";
        text += &format!("routes: [{{name: r, path: /, policy: {{{policy}}}, upstream: demo}}]\n");
        let path = folder.path().join("edgeward.yaml");
        std::fs::write(&path, text).unwrap();
        let loaded = config::load(&path, &System);
        compile(&loaded.config.unwrap(), &LiveState::default(), &Metrics::new().unwrap()).unwrap()
    }

    /// The authenticators that accepted, the consumer and the scopes; or the code and the reason of the refusal.
    fn decide(snapshot: &Snapshot, presented: &str) -> String {
        let mut headers = HeaderMap::new();
        for word in presented.split_whitespace() {
            let (name, consumer) = word.split_once('=').unwrap();
            let (header, value) = match name {
                "c" | "d" => ("authorization".to_owned(), format!("Bearer {}", key(name, consumer))),
                _ => (format!("x-{name}"), key(name, consumer)),
            };
            headers.append(HeaderName::from_bytes(header.as_bytes()).unwrap(), HeaderValue::from_str(&value).unwrap());
        }
        let client = Client { address: [192, 0, 2, 1].into(), through_trusted_proxy: false };
        let mut parameters = ParametersBuffer::default();
        let route = snapshot.router.find("h", "/", &Method::GET, &mut parameters).unwrap();
        let request = Request::new(&Method::GET, "h", "/", &headers, &client);
        let now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_800_000_000) };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        match runtime.block_on(admit(route, &request, now, || 7)) {
            Ok(admission) => match admission.identity() {
                Some(identity) => {
                    let by: Vec<_> = identity.parts().map(|part| &*part.authenticator).collect();
                    let shadowed: String = admission.shadowed().iter().map(|name| format!(" but for {name}")).collect();
                    let consumer = identity.consumer.as_deref().unwrap_or("nobody");
                    format!("{} is {consumer} may {}{shadowed}", by.join("+"), identity.scopes.join(","))
                }
                None => "anonymous".to_owned(),
            },
            Err(Refusal { rejection, .. }) => {
                format!("{} {}", rejection.code(), rejection.reason().unwrap_or_default()).trim_end().to_owned()
            }
        }
    }

    #[test]
    fn conditions_and_filters_decide_in_their_place() {
        // `path` has no parameter here; what each policy names stands below in `snapshot`.
        for (policy, presented, expected) in [
            ("authenticate: a, authorize: {when: \"identity.consumer == 'acme' && request.method == 'GET'\"}", "a=acme", "a is acme may a"),
            ("authenticate: a, authorize: {when: \"identity.consumer == 'acme'\"}", "a=umbrella", "forbidden condition"),
            ("authenticate: a, authorize: {when: \"claims.tenant == 'acme'\"}", "a=acme", "forbidden expression_missing"),
            ("authenticate: {optional: a}, authorize: {when: \"identity.consumer == 'acme'\"}", "", "credential_missing"),
            ("authenticate: {optional: a}, authorize: {when: \"request.method == 'GET'\"}", "", "anonymous"),
            // A filter refuses before the credential is looked at, good or bad.
            ("authenticate: a, filters: [no-b]", "b=acme", "forbidden filter"),
            ("authenticate: a, filters: [no-b]", "a=bad b=acme", "forbidden filter"),
            ("authenticate: a, filters: [no-b]", "a=acme", "a is acme may a"),
            ("authenticate: public, filters: [no-b]", "b=acme", "forbidden filter"),
            ("authenticate: a, filters: [not-umbrella]", "a=umbrella", "forbidden filter"),
            ("authenticate: a, filters: [not-umbrella]", "a=bad", "credential_invalid"),
            ("authenticate: a, filters: [not-umbrella]", "a=acme", "a is acme may a"),
            // What cannot be told of a request is against it, unless it is only counted.
            ("authenticate: a, filters: [unclear]", "a=acme", "forbidden filter"),
            ("authenticate: a, filters: [unclear-counted, shadowed]", "a=acme", "a is acme may a but for shadowed"),
        ] {
            let decided = decide(&snapshot(policy), presented);
            let decided = if expected == "credential_invalid" { decided.split(' ').next().unwrap() } else { &decided };
            assert_eq!(decided, expected, "{policy}: {presented}");
        }
    }

    #[test]
    fn credentials_combine_as_the_policy_says_and_a_bad_one_is_never_nobody() {
        const INVALID: &str = "credential_invalid";
        const MISSING: &str = "credential_missing";
        type Cases<'a> = &'a [(&'a str, &'a str)];
        let cases: &[(&str, Cases<'_>)] = &[
            (
                "authenticate: [a, b]",
                &[
                    ("a=acme", "a is acme may a"),
                    ("b=acme", "b is acme may b"),
                    ("a=acme b=bad", "a is acme may a"),
                    ("a=bad b=acme", INVALID),
                    ("c=acme", MISSING),
                    ("", MISSING),
                ],
            ),
            (
                "authenticate: {all: [a, b]}",
                &[
                    ("a=acme b=acme", "a+b is acme may a,b"),
                    ("a=acme", MISSING),
                    ("b=acme", MISSING),
                    ("a=acme b=umbrella", "forbidden principals_differ"),
                    ("a=acme b=bad", INVALID),
                    ("a=bad", INVALID),
                    ("", MISSING),
                ],
            ),
            (
                "authenticate: {all: [b, a], principals: different}",
                &[("a=acme b=umbrella", "b+a is umbrella may b,a"), ("a=acme b=bad", INVALID), ("b=acme", MISSING)],
            ),
            (
                "authenticate: {optional: a}",
                &[("a=acme", "a is acme may a"), ("a=bad", INVALID), ("", "anonymous"), ("b=bad", "anonymous")],
            ),
            (
                "authenticate: {all: [a, {optional: c}]}",
                &[("a=acme", "a is acme may a"), ("a=acme c=acme", "a+c is acme may a,c"), ("a=acme c=bad", INVALID), ("c=acme", MISSING)],
            ),
            // What one of two that read `Authorization` accepts is nothing unknown to the other.
            (
                "authenticate: {all: [c, {optional: d}]}",
                &[("c=acme", "c is acme may c"), ("d=acme", MISSING), ("c=bad", INVALID), ("", MISSING)],
            ),
            (
                "authenticate: [{all: [a, b]}, c]",
                &[
                    ("a=acme b=acme", "a+b is acme may a,b"),
                    ("a=acme c=acme", "c is acme may c"),
                    ("a=acme", MISSING),
                    ("a=acme b=bad c=acme", INVALID),
                    ("c=umbrella", "c is umbrella may c"),
                ],
            ),
            (
                "authenticate: {optional: {all: [a, b]}}",
                &[("", "anonymous"), ("a=acme b=acme", "a+b is acme may a,b"), ("a=bad b=acme", INVALID)],
            ),
            ("authenticate: {optional: a}, authorize: {scopes: [a]}", &[("a=acme", "a is acme may a"), ("", MISSING), ("a=bad", INVALID)]),
            ("authenticate: public", &[("a=bad", "anonymous"), ("", "anonymous")]),
        ];
        for (policy, requests) in cases {
            let snapshot = snapshot(policy);
            for (presented, expected) in *requests {
                let decided = decide(&snapshot, presented);
                let decided = if *expected == INVALID { decided.split(' ').next().unwrap() } else { &decided };
                assert_eq!(decided, *expected, "{policy}: {presented}");
            }
        }
    }
}
