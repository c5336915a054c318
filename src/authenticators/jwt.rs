//! JSON Web Tokens (RFC 7519), judged as RFC 8725 asks: the algorithm comes from the operator and the key, every claim is of its type or refused.
//!
//! The order is cheap before dear: size, outline, header, claims, and the signature last. Nothing of a token is believed before its
//! signature was checked; what is read earlier can only refuse it or leave it to another authenticator.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openssl::sha::sha256;
use serde_json::{Map, Value};

use super::Verdict;
use super::credential::{self, Found};
use crate::config::{self, KeySource, Location, Problem};
use crate::jose::claims::Registered;
use crate::jose::jws::{Header, MAX_TOKEN};
use crate::jose::key::Fingerprint;
use crate::jose::{Algorithm, Algorithms, Claims, Fault, JwkSet, Jws};
use crate::live::LiveState;
use crate::live::key_set::{KeySet, KeySetId, Source, Upkeep};
use crate::live::token_cache::{TokenCache, Verified, VerifierId};
use crate::net::http::{Client, Tls};
use crate::request::{Identity, Method, Now, Rejection, Request};

/// The longest value that a claim may give an identity, in bytes: it becomes a header, a key of a limit and a word of the log.
const MAX_VALUE: usize = 4 * 1024;

/// Accepts the tokens of one issuer.
#[derive(Debug)]
pub struct Jwt {
    name: Arc<str>,
    from: Vec<Location>,
    rules: Rules,
    claims: ClaimPaths,
    keys: Keys,
    verifier: VerifierId,
    tokens: Arc<TokenCache>,
}

/// What is judged with every request, cached or not.
#[derive(Debug)]
struct Rules {
    issuer: Arc<str>,
    audiences: Vec<Arc<str>>,
    algorithms: Algorithms,
    leeway: Duration,
    max_lifetime: Option<Duration>,
    typ: Option<Arc<str>>,
}

#[derive(Debug)]
enum Keys {
    Fixed(JwkSet),
    Remote { set: Arc<KeySet>, upkeep: Arc<Upkeep> },
}

#[derive(Debug)]
struct ClaimPaths {
    subject: ClaimPath,
    scopes: Vec<ClaimPath>,
    roles: Vec<ClaimPath>,
    consumer: ClaimPath,
    client: ClaimPath,
    plan: ClaimPath,
}

/// A claim's name, or a dotted path to it. Names such as `https://acme.example/roles` have dots too, so the whole is tried first.
#[derive(Debug)]
struct ClaimPath {
    name: Arc<str>,
    parts: Vec<Box<str>>,
}

/// Why no key of a set vouches for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unproven {
    /// The key that the token names did not make its signature.
    BadSignature,
    /// None of the keys that it may be from did; a newer set might have that key.
    NoSignature,
    /// No key fits it; a newer set might have one.
    UnknownKey,
}

impl Unproven {
    fn reason(self) -> &'static str {
        match self {
            Self::BadSignature | Self::NoSignature => "signature",
            Self::UnknownKey => "unknown_key",
        }
    }
}

impl Jwt {
    /// Builds all that a request will need; everything that stands in the way is a problem.
    pub fn new(name: Arc<str>, config: &config::Jwt, live: &LiveState) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let symmetric = matches!(&config.keys.value, KeySource::Secret(_));
        for algorithm in config.algorithms.iter().filter(|algorithm| algorithm.is_symmetric() != symmetric) {
            let needed = if symmetric { "public keys, and this authenticator has a secret" } else { "a secret, and this authenticator has public keys" };
            problems.push(Problem::at(&algorithm.place, format!("{} needs {needed}", algorithm.label())));
        }
        let algorithms = if config.algorithms.is_empty() && !symmetric {
            Algorithms::asymmetric()
        } else if config.algorithms.is_empty() {
            Algorithm::ALL.into_iter().filter(|algorithm| algorithm.is_symmetric()).collect()
        } else {
            config.algorithms.iter().map(|algorithm| algorithm.value).collect()
        };
        let keys = match Keys::new(config, algorithms, live) {
            Ok(keys) if problems.is_empty() => keys,
            Ok(_) => return Err(problems),
            Err(message) => {
                problems.push(Problem::at(&config.keys.place, message));
                return Err(problems);
            }
        };
        Ok(Self {
            // Debug escapes what it quotes, so no two verifiers write the same text.
            verifier: sha256(format!("{name:?} {} {:?}", keys.identity(), config.claims).as_bytes()),
            name,
            from: config.from.clone(),
            rules: Rules {
                issuer: config.issuer.clone(),
                audiences: config.audiences.clone(),
                algorithms,
                leeway: config.leeway,
                max_lifetime: config.max_lifetime,
                typ: config.typ.as_deref().map(|typ| media_type(typ).into()),
            },
            claims: ClaimPaths::new(&config.claims),
            keys,
            tokens: live.tokens.clone(),
        })
    }

    /// Judges the token of a request. A credential of another shape, and a token of another issuer, are not ours.
    pub async fn authenticate(&self, request: &Request<'_>, now: Now) -> Verdict {
        let token = match credential::find(&self.from, request) {
            Found::Absent => return Verdict::Pass,
            Found::One(token) => token,
            Found::Ambiguous(reason) => return Verdict::Reject(Rejection::BadRequest(reason)),
            Found::Malformed(reason) => return Verdict::Reject(Rejection::CredentialInvalid(reason)),
        };
        match self.judge(&token, now).await {
            Ok(Some(identity)) => Verdict::Accept(identity),
            Ok(None) => Verdict::Pass,
            Err(rejection) => Verdict::Reject(rejection),
        }
    }

    /// The name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where the token may be.
    pub fn locations(&self) -> &[Location] {
        &self.from
    }

    async fn judge(&self, token: &str, now: Now) -> Result<Option<Arc<Identity>>, Rejection> {
        if token.len() > MAX_TOKEN {
            return Err(invalid(Fault::TooLarge));
        }
        if let Some(known) = self.tokens.find(&self.verifier, token)
            && self.keys.still_hold(&known, now)?
        {
            self.rules.check(known.algorithm, known.typ.as_deref(), &known.registered, now)?;
            return Ok(Some(known.identity.clone()));
        }
        if !Jws::has_shape(token) {
            return Ok(None);
        }
        let jws = Jws::parse(token).map_err(invalid)?;
        let Claims { registered, all } = Claims::parse(&jws.payload().map_err(invalid)?).map_err(invalid)?;
        // Several issuers can stand on one route: each leaves the tokens of the others alone. If nobody takes it, it is refused.
        if registered.issuer.as_deref().is_some_and(|issuer| issuer != &*self.rules.issuer) {
            return Ok(None);
        }
        let Header { algorithm, ref typ, .. } = jws.header;
        self.rules.check(algorithm, typ.as_deref(), &registered, now)?;
        // RFC 7800: such a token is worth nothing without proof of its key, and we cannot ask for that proof yet.
        if all.contains_key("cnf") {
            return Err(Rejection::CredentialInvalid("bound_token"));
        }
        let key = self.keys.verify(&jws, now).await?;
        let identity = Arc::new(self.identity(all, &jws)?);
        self.tokens.insert(Verified::new(self.verifier, token, (algorithm, typ.clone()), registered, key, identity.clone()));
        Ok(Some(identity))
    }

    fn identity(&self, claims: Map<String, Value>, jws: &Jws<'_>) -> Result<Identity, Rejection> {
        Ok(Identity {
            method: Method::Jwt,
            authenticator: self.name.clone(),
            subject: self.claims.subject.text(&claims)?,
            consumer: self.claims.consumer.text(&claims)?,
            client: self.claims.client.text(&claims)?,
            key_id: None,
            // RFC 6749 section 3.3: a scope has no space, so an element with one is no scope, and must not become two upstream.
            scopes: words(&self.claims.scopes, &claims, |text| text.split(' ').collect(), |scope| !scope.contains(' '))?,
            roles: words(&self.claims.roles, &claims, |text| vec![text], |_| true)?,
            plan: self.claims.plan.text(&claims)?,
            // Without the signature: of an ECDSA signature anybody can make a second one that is as good, and it must not have a budget of its own.
            credential: sha256(jws.signing_input()),
            claims,
        })
    }
}

impl Rules {
    /// The checks that depend on this moment and this configuration. The expiry is last, so that `CredentialExpired` says that nothing else
    /// was found. It is said whether or not the signature is good: the time stands in the caller's own token, and no secret is told.
    fn check(&self, algorithm: Algorithm, typ: Option<&str>, claims: &Registered, now: Now) -> Result<(), Rejection> {
        let refuse = |reason| Err(Rejection::CredentialInvalid(reason));
        let now = now.unix;
        if !self.algorithms.contains(algorithm) {
            return refuse("algorithm");
        }
        if !self.admits_type(typ) {
            return refuse("type");
        }
        if claims.issuer.as_deref() != Some(&*self.issuer) {
            return refuse("issuer");
        }
        if !claims.audiences.iter().any(|audience| self.audiences.iter().any(|ours| **ours == **audience)) {
            return refuse("audience");
        }
        if claims.not_before.is_some_and(|not_before| not_before > now + self.leeway) {
            return refuse("not_before");
        }
        if claims.issued.is_some_and(|issued| issued > now + self.leeway) {
            return refuse("issued_at");
        }
        let Some(expires) = claims.expires else { return refuse("expiry") };
        if let Some(longest) = self.max_lifetime
            && claims.issued.is_none_or(|issued| expires.saturating_sub(issued) > longest)
        {
            return refuse("lifetime");
        }
        // RFC 7519 section 4.1.4: the present must be before it.
        if now >= expires + self.leeway {
            return Err(Rejection::CredentialExpired);
        }
        Ok(())
    }

    /// RFC 8725 section 3.11: tokens of another kind (logout, DPoP, security events) have a `typ` of their own, and are not for access.
    fn admits_type(&self, typ: Option<&str>) -> bool {
        let is = |wanted: &str| typ.is_some_and(|typ| media_type(typ).eq_ignore_ascii_case(wanted));
        match &self.typ {
            Some(wanted) => is(wanted),
            None => typ.is_none() || is("JWT") || is("at+jwt"),
        }
    }
}

impl Keys {
    fn new(config: &config::Jwt, algorithms: Algorithms, live: &LiveState) -> Result<Self, String> {
        let (source, fetch) = match &config.keys.value {
            KeySource::Secret(secret) => {
                let set = JwkSet::from_secret(secret.expose()).ok_or("the secret is shorter than 32 bytes")?;
                return Self::fixed(set, algorithms);
            }
            KeySource::JwksFile(file) => return Self::fixed(JwkSet::parse(&file.bytes)?, algorithms),
            KeySource::JwksUrl { url, fetch } => (Source::Jwks(url.clone()), fetch),
            KeySource::Discovery { url, fetch } => (Source::Discovery { url: url.clone(), issuer: config.issuer.clone() }, fetch),
        };
        let ca = fetch.ca.as_ref().map(|file| &file.bytes);
        let client = Client::new(&Tls { ca: ca.map(|bytes| bytes.to_vec()), ..Tls::default() })?;
        let id = KeySetId { source, ca: ca.map(|bytes| sha256(bytes)) };
        let set = live.key_sets.find_or_create(&id, || KeySet::new(id.clone(), Arc::new(client)));
        let upkeep = set.keep_up(Upkeep {
            timeout: fetch.timeout,
            refresh: fetch.refresh,
            max_stale: fetch.max_stale,
            store: fetch.store.clone(),
        });
        Ok(Self::Remote { set, upkeep })
    }

    fn fixed(set: JwkSet, algorithms: Algorithms) -> Result<Self, String> {
        if set.keys().is_empty() {
            return Err(format!("no usable key (skipped: {:?})", set.skipped()));
        }
        if set.keys().iter().all(|key| key.algorithms().intersection(algorithms).is_empty()) {
            return Err("no key can verify one of the allowed algorithms".to_owned());
        }
        Ok(Self::Fixed(set))
    }

    /// What tells these keys from those of another verifier.
    fn identity(&self) -> String {
        match self {
            Self::Fixed(set) => format!("{:?}", set.keys().iter().map(|key| key.fingerprint()).collect::<Vec<_>>()),
            Self::Remote { set, .. } => format!("{:?}", set.id()),
        }
    }

    /// Whether the key of a known token still stands for its issuer: rotated out, it proves nothing any more.
    fn still_hold(&self, known: &Verified, now: Now) -> Result<bool, Rejection> {
        // The keys of a file and a secret are part of the verifier's identity.
        let Self::Remote { set, upkeep } = self else { return Ok(true) };
        let current = set.current();
        let held = current.as_ref().filter(|held| held.age(now) <= upkeep.max_stale).ok_or_else(|| away(set, now))?;
        if known.generation.load(Ordering::Relaxed) == held.generation() {
            return Ok(true);
        }
        let holds = held.keys().find(&known.key).is_some();
        if holds {
            known.generation.store(held.generation(), Ordering::Relaxed);
        }
        Ok(holds)
    }

    /// The key that signed, and the generation of the set that held it.
    async fn verify(&self, jws: &Jws<'_>, now: Now) -> Result<(Fingerprint, u64), Rejection> {
        let signature = jws.signature().map_err(invalid)?;
        let refuse = |unproven: Unproven| Rejection::CredentialInvalid(unproven.reason());
        let (set, upkeep) = match self {
            Self::Fixed(set) => return prove(set, jws, &signature).map(|key| (key, 0)).map_err(refuse),
            Self::Remote { set, upkeep } => (set, upkeep),
        };
        let judge = || {
            let current = set.current();
            let held = current.as_ref().filter(|held| held.age(now) <= upkeep.max_stale).ok_or_else(|| away(set, now))?;
            Ok::<_, Rejection>(prove(held.keys(), jws, &signature).map(|key| (key, held.generation())))
        };
        set.started(upkeep.timeout).await;
        let mut found = judge()?;
        if matches!(found, Err(Unproven::NoSignature | Unproven::UnknownKey)) {
            set.ask_for_news(now, upkeep.timeout).await;
            found = judge()?;
        }
        found.map_err(|unproven| match unproven {
            // The issuer may have a key that we could not learn of: that is no verdict on the token.
            Unproven::NoSignature | Unproven::UnknownKey if set.is_failing() => away(set, now),
            unproven => refuse(unproven),
        })
    }
}

/// The key of the set that made the signature.
fn prove(set: &JwkSet, jws: &Jws<'_>, signature: &[u8]) -> Result<Fingerprint, Unproven> {
    let mut unproven = Unproven::UnknownKey;
    for key in set.candidates(&jws.header) {
        if jws.is_signed_by(key, signature) {
            return Ok(*key.fingerprint());
        }
        if key.kid().is_some() && jws.header.kid.is_some() {
            unproven = Unproven::BadSignature;
        } else if unproven == Unproven::UnknownKey {
            unproven = Unproven::NoSignature;
        }
    }
    Err(unproven)
}

fn away(set: &KeySet, now: Now) -> Rejection {
    Rejection::DependencyUnavailable { dependency: "jwks", retry_after: set.retry_after(now) }
}

fn invalid(fault: Fault) -> Rejection {
    Rejection::CredentialInvalid(fault.reason())
}

/// RFC 7515 section 4.1.9: `application/` may be left out.
fn media_type(typ: &str) -> &str {
    match typ.split_at_checked("application/".len()) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case("application/") => rest,
        _ => typ,
    }
}

impl ClaimPaths {
    fn new(names: &config::ClaimNames) -> Self {
        let all = |names: &[Arc<str>]| names.iter().map(ClaimPath::new).collect();
        Self {
            subject: ClaimPath::new(&names.subject),
            scopes: all(&names.scopes),
            roles: all(&names.roles),
            consumer: ClaimPath::new(&names.consumer),
            client: ClaimPath::new(&names.client),
            plan: ClaimPath::new(&names.plan),
        }
    }
}

impl ClaimPath {
    fn new(name: &Arc<str>) -> Self {
        Self { name: name.clone(), parts: name.split('.').map(Into::into).collect() }
    }

    fn find<'c>(&self, claims: &'c Map<String, Value>) -> Option<&'c Value> {
        if let Some(value) = claims.get(&*self.name) {
            return Some(value);
        }
        let (last, way) = self.parts.split_last()?;
        let mut members = claims;
        for part in way {
            members = members.get(&**part)?.as_object()?;
        }
        members.get(&**last)
    }

    /// The claim as one word of an identity. A value that is not a string, or empty, says nothing.
    fn text(&self, claims: &Map<String, Value>) -> Result<Option<Arc<str>>, Rejection> {
        match self.find(claims) {
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(sound(text)?.into())),
            _ => Ok(None),
        }
    }
}

/// The words of all these claims, each once: a string is `split`, a list gives its strings, anything else grants nothing.
fn words(
    paths: &[ClaimPath],
    claims: &Map<String, Value>,
    split: impl Fn(&str) -> Vec<&str>,
    is_one: impl Fn(&str) -> bool,
) -> Result<Vec<Arc<str>>, Rejection> {
    let mut words: Vec<Arc<str>> = Vec::new();
    for path in paths {
        let found: Vec<&str> = match path.find(claims) {
            Some(Value::String(text)) => split(text),
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).filter(|word| is_one(word)).collect(),
            _ => Vec::new(),
        };
        for word in found.into_iter().filter(|word| !word.is_empty()) {
            if !words.iter().any(|known| **known == *word) {
                words.push(sound(word)?.into());
            }
        }
    }
    Ok(words)
}

/// A value that can stand in a header line and a log line. One that cannot was made to break them: the token is refused.
fn sound(text: &str) -> Result<&str, Rejection> {
    if text.len() > MAX_VALUE {
        return Err(Rejection::CredentialInvalid("claim_too_long"));
    }
    if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return Err(Rejection::CredentialInvalid("claim_characters"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticators::{Authenticator, Authenticators};
    use crate::config::{At, ClaimNames, File, KeyFetch, Place};
    use crate::jose::SigningKey;
    use crate::live::key_set::script::{Answer, Issuer, URL, clock, id};
    use crate::request::{Client as Caller, Parameters};
    use crate::secret::Secret;
    use http::{HeaderMap, HeaderValue};
    use serde_json::json;
    use std::sync::LazyLock;

    const ISSUER: &str = "https://issuer.test";
    /// 2027-01-15: between the `iat` and the `exp` of the suite.
    const NOW: u64 = 1_800_000_000;

    static ES256: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate(Algorithm::Es256, "e").unwrap());

    fn at<T>(value: T) -> At<T> {
        At { value, place: Place { file: "t.yaml".into(), line: 1, column: 1, path: "authenticators.a.jwt".into() } }
    }

    fn file(bytes: &[u8]) -> At<KeySource> {
        at(KeySource::JwksFile(File { path: "jwks.json".into(), bytes: bytes.into(), place: at(()).place }))
    }

    fn set_of(keys: &[&SigningKey]) -> String {
        json!({"keys": keys.iter().map(|key| key.to_public_jwk().unwrap()).collect::<Vec<_>>()}).to_string()
    }

    fn config(keys: At<KeySource>) -> config::Jwt {
        let names = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        config::Jwt {
            issuer: ISSUER.into(),
            audiences: names(&["api://gw"]),
            keys,
            algorithms: Vec::new(),
            leeway: Duration::from_secs(30),
            max_lifetime: None,
            typ: None,
            from: vec![Location::Header { name: http::header::AUTHORIZATION, scheme: Some("Bearer".into()) }],
            claims: ClaimNames {
                subject: "sub".into(),
                scopes: names(&["scope", "scp"]),
                roles: names(&["roles", "realm_access.roles"]),
                consumer: "client_id".into(),
                client: "azp".into(),
                plan: "plan".into(),
            },
        }
    }

    fn jwt(config: &config::Jwt) -> Jwt {
        Jwt::new("a".into(), config, &LiveState::default()).unwrap()
    }

    fn es256() -> Jwt {
        jwt(&config(file(set_of(&[&ES256]).as_bytes())))
    }

    fn now(seconds: u64) -> Now {
        Now { monotonic: Duration::from_secs(100), unix: Duration::from_secs(seconds) }
    }

    fn good() -> Value {
        json!({"iss": ISSUER, "aud": "api://gw", "sub": "alice", "iat": NOW - 60, "exp": NOW + 600})
    }

    fn with(claims: Value) -> Value {
        let mut all = good();
        for (name, value) in claims.as_object().unwrap() {
            if value.is_null() {
                all.as_object_mut().unwrap().remove(name);
            } else {
                all[name] = value.clone();
            }
        }
        all
    }

    fn sign(claims: &Value) -> String {
        ES256.sign(claims.as_object().unwrap()).unwrap()
    }

    fn sign_as(header: &str, claims: &Value) -> String {
        ES256.sign_parts(header.as_bytes(), claims.to_string().as_bytes()).unwrap()
    }

    async fn present(authenticator: &Jwt, headers: &HeaderMap, now: Now) -> Verdict {
        let client = Caller { address: [127, 0, 0, 1].into(), through_trusted_proxy: false };
        let request = Request {
            method: &http::Method::GET,
            host: "gw.test",
            path: "/",
            query: None,
            headers,
            client: &client,
            route: "r",
            parameters: Parameters::default(),
        };
        authenticator.authenticate(&request, now).await
    }

    async fn bearer(authenticator: &Jwt, token: &str, now: Now) -> Verdict {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
        present(authenticator, &headers, now).await
    }

    /// The verdict in a word: the subject, `pass`, or the reason.
    fn word(verdict: &Verdict) -> String {
        match verdict {
            Verdict::Accept(identity) => format!("accept {}", identity.subject.as_deref().unwrap_or("nobody")),
            Verdict::Pass => "pass".to_owned(),
            Verdict::Reject(rejection) => rejection.reason().unwrap_or(rejection.code()).to_owned(),
        }
    }

    async fn said(authenticator: &Jwt, token: &str) -> String {
        word(&bearer(authenticator, token, now(NOW)).await)
    }

    #[derive(serde::Deserialize)]
    struct Row {
        id: String,
        jwks: String,
        authorization: OneOrMany,
        expect: String,
        expect_sub: Option<String>,
        strict_typ: Option<String>,
        require_scope_admin: Option<String>,
    }

    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }

    #[tokio::test]
    async fn every_hostile_token_gets_the_verdict_of_its_row() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/jwt-threats");
        let rows = std::fs::read_to_string(folder.join("vectors.jsonl")).unwrap();
        let mut judged = 0;
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for row in rows.lines() {
            let row: Row = serde_json::from_str(row).unwrap();
            let mut settings = config(file(&std::fs::read(folder.join(format!("jwks-{}.json", row.jwks))).unwrap()));
            use Algorithm as A;
            settings.algorithms = [A::Rs256, A::Ps256, A::Es256, A::Es384, A::EdDsa].map(at).to_vec();
            let mut headers = HeaderMap::new();
            let lines = match row.authorization {
                OneOrMany::One(line) => vec![line],
                OneOrMany::Many(lines) => lines,
            };
            let readable = lines.iter().all(|line| {
                HeaderValue::from_bytes(line.as_bytes()).map(|value| headers.append("authorization", value)).is_ok()
            });
            assert!(readable || row.expect == "reject", "{}", row.id);
            let authenticator = Jwt::new("a".into(), &settings, &LiveState::default());
            let expect = |strict: bool| if strict { row.strict_typ.as_deref() } else { Some(row.expect.as_str()) };
            let Ok(authenticator) = authenticator else {
                // A set without one usable key is refused with the configuration.
                assert_eq!(row.expect, "reject", "{}", row.id);
                judged += 1;
                continue;
            };
            let mut strict = settings.clone();
            strict.typ = Some("at+jwt".into());
            for (authenticator, expect) in [(authenticator, expect(false)), (jwt(&strict), expect(true))] {
                let Some(expect) = expect else { continue };
                let began = std::time::Instant::now();
                let verdict = present(&authenticator, &headers, now(NOW)).await;
                assert!(began.elapsed() < Duration::from_millis(200), "{} took {:?}", row.id, began.elapsed());
                *counts.entry(word(&verdict)).or_default() += 1;
                match &verdict {
                    Verdict::Accept(identity) => {
                        assert_ne!(expect, "reject", "{} was accepted", row.id);
                        if let Some(subject) = &row.expect_sub {
                            assert_eq!(identity.subject.as_deref(), Some(&**subject), "{}", row.id);
                        }
                        let text = identity.subject.as_deref().unwrap_or_default();
                        assert!(!text.chars().any(char::is_control), "{}", row.id);
                        if row.require_scope_admin.is_some() {
                            assert!(identity.scopes.iter().all(|scope| **scope != *"admin"), "{}", row.id);
                        }
                    }
                    refused => assert_ne!(expect, "accept", "{} was refused: {refused:?}", row.id),
                }
                // The second time is the cache's.
                assert_eq!(word(&present(&authenticator, &headers, now(NOW)).await), word(&verdict), "{}", row.id);
                // And the list of authenticators makes a refusal of what nobody takes.
                if !matches!(verdict, Verdict::Accept(_)) {
                    let client = Caller { address: [127, 0, 0, 1].into(), through_trusted_proxy: false };
                    let request = Request {
                        method: &http::Method::GET,
                        host: "gw.test",
                        path: "/",
                        query: None,
                        headers: &headers,
                        client: &client,
                        route: "r",
                        parameters: Parameters::default(),
                    };
                    let list = Authenticators::any(vec![Arc::new(Authenticator::Jwt(authenticator))]);
                    let refused = list.identify(&request, now(NOW)).await.unwrap_err();
                    assert!([400, 401].contains(&refused.status().as_u16()), "{}: {refused:?}", row.id);
                }
                judged += 1;
            }
        }
        assert!(judged > 214, "{judged}");
        // The suite must meet the checks it is about, and not one early refusal that hides them all.
        for reason in ["algorithm", "critical", "signature", "unknown_key", "audience", "expiry", "not_before", "malformed", "type"] {
            assert!(counts.contains_key(reason), "{reason} is missing in {counts:?}");
        }
    }

    #[tokio::test]
    async fn each_fault_has_its_own_reason_and_the_caller_sees_one_code() {
        let authenticator = es256();
        let stranger = SigningKey::generate(Algorithm::Es256, "e").unwrap();
        let unknown = SigningKey::generate(Algorithm::Es256, "x").unwrap();
        let claims = good();
        let claims = claims.as_object().unwrap();
        let rsa = SigningKey::generate(Algorithm::Rs256, "e").unwrap();
        for (token, expected) in [
            (sign(&good()), "accept alice"),
            (stranger.sign(claims).unwrap(), "signature"),
            (unknown.sign(claims).unwrap(), "unknown_key"),
            (rsa.sign(claims).unwrap(), "unknown_key"),
            (sign_as(r#"{"alg":"none","kid":"e"}"#, &good()), "algorithm"),
            (sign_as(r#"{"alg":"HS256","kid":"e"}"#, &good()), "algorithm"),
            (sign_as(r#"{"alg":"ES256","kid":"e","crit":["exp"]}"#, &good()), "critical"),
            (sign_as(r#"{"alg":"ES256","kid":"e","zip":"DEF"}"#, &good()), "encoding"),
            (sign_as(r#"{"alg":"ES256","kid":"e","typ":"logout+jwt"}"#, &good()), "type"),
            (sign_as(r#"{"alg":"ES256","kid":"e","typ":"dpop+jwt"}"#, &good()), "type"),
            (sign_as(r#"{"alg":"ES256"}"#, &good()), "accept alice"),
            (ES256.sign_parts(br#"{"alg":"ES256","kid":"e"}"#, b"foo").unwrap(), "malformed"),
            (sign(&with(json!({"iss": null}))), "issuer"),
            (sign(&with(json!({"iss": 5}))), "issuer"),
            (sign(&with(json!({"iss": "https://issuer.test/"}))), "pass"),
            (sign(&with(json!({"aud": "api://gw2"}))), "audience"),
            (sign(&with(json!({"aud": null}))), "audience"),
            (sign(&with(json!({"aud": []}))), "audience"),
            (sign(&with(json!({"aud": ["x", "api://gw"]}))), "accept alice"),
            (sign(&with(json!({"exp": null}))), "expiry"),
            (sign(&with(json!({"exp": "soon"}))), "expiry"),
            (sign(&with(json!({"exp": NOW - 600}))), "credential_expired"),
            (sign(&with(json!({"nbf": NOW + 600}))), "not_before"),
            (sign(&with(json!({"iat": NOW + 600}))), "issued_at"),
            (sign(&with(json!({"sub": "a\r\nX-Role: admin"}))), "claim_characters"),
            (sign(&with(json!({"sub": "a\u{7f}"}))), "claim_characters"),
            (sign(&with(json!({"client_id": "a\0"}))), "claim_characters"),
            (sign(&with(json!({"scope": "a\tb"}))), "claim_characters"),
            (sign(&with(json!({"sub": "a".repeat(4097)}))), "claim_too_long"),
            (sign(&with(json!({"cnf": {"jkt": "x"}}))), "bound_token"),
            (sign(&with(json!({"x": "a".repeat(16_384)}))), "too_large"),
            ("ck_live_7f3k2m9q_abcdef".to_owned(), "pass"),
            ("a.b".to_owned(), "pass"),
            ("a.b.c.d.e".to_owned(), "pass"),
            ("a.b.c".to_owned(), "malformed"),
        ] {
            assert_eq!(said(&authenticator, &token).await, expected, "{token:.120}");
            if let Verdict::Reject(rejection) = bearer(&authenticator, &token, now(NOW)).await {
                assert_eq!(rejection.status(), 401);
                assert!(matches!(rejection, Rejection::CredentialInvalid(_) | Rejection::CredentialExpired));
            }
        }
    }

    #[tokio::test]
    async fn the_leeway_is_exact_to_the_second_at_both_ends_also_for_a_known_token() {
        let authenticator = es256();
        for (claims, moment, expected) in [
            (json!({"exp": NOW}), NOW + 29, "accept alice"),
            (json!({"exp": NOW}), NOW + 30, "credential_expired"),
            (json!({"exp": NOW}), NOW + 31, "credential_expired"),
            (json!({"nbf": NOW}), NOW - 31, "not_before"),
            (json!({"nbf": NOW}), NOW - 30, "accept alice"),
            (json!({"nbf": NOW}), NOW - 29, "accept alice"),
            (json!({"iat": NOW}), NOW - 31, "issued_at"),
            (json!({"iat": NOW}), NOW - 30, "accept alice"),
        ] {
            let token = sign(&with(claims.clone()));
            assert_eq!(word(&bearer(&authenticator, &token, now(moment)).await), expected, "new: {claims} at {moment}");
            let known = sign(&with(claims.clone()));
            let fresh = if claims.get("exp").is_some() { NOW - 10 } else { NOW + 10 };
            assert_eq!(word(&bearer(&authenticator, &known, now(fresh)).await), "accept alice");
            assert_eq!(word(&bearer(&authenticator, &known, now(moment)).await), expected, "known: {claims} at {moment}");
        }
    }

    #[tokio::test]
    async fn a_known_token_is_judged_again_by_the_rules_of_whoever_asks() {
        let live = LiveState::default();
        let settings = config(file(set_of(&[&ES256]).as_bytes()));
        let new = |change: &dyn Fn(&mut config::Jwt)| {
            let mut changed = settings.clone();
            change(&mut changed);
            Jwt::new("a".into(), &changed, &live).unwrap()
        };
        let token = sign(&good());
        assert_eq!(said(&new(&|_| {}), &token).await, "accept alice");
        // All of these share the cached facts: none of what changes is part of the verifier's identity.
        for (authenticator, expected) in [
            (new(&|c| c.audiences = vec!["other".into()]), "audience"),
            (new(&|c| c.issuer = "https://other.test".into()), "issuer"),
            (new(&|c| c.max_lifetime = Some(Duration::from_secs(659))), "lifetime"),
            (new(&|c| c.max_lifetime = Some(Duration::from_secs(660))), "accept alice"),
            (new(&|c| c.typ = Some("at+jwt".into())), "type"),
            (new(&|_| {}), "accept alice"),
        ] {
            let (hits, _) = live.tokens.hits_and_misses();
            assert_eq!(said(&authenticator, &token).await, expected);
            assert_eq!(live.tokens.hits_and_misses().0, hits + 1, "{expected}");
        }
        // Another name or claim mapping makes another identity, and other keys another proof: the facts are not shared.
        let stranger = SigningKey::generate(Algorithm::Es256, "e").unwrap();
        for (authenticator, expected) in [
            (new(&|c| c.claims.subject = "iss".into()), "accept https://issuer.test"),
            (new(&|c| c.keys = file(set_of(&[&stranger]).as_bytes())), "signature"),
        ] {
            let (hits, _) = live.tokens.hits_and_misses();
            assert_eq!(said(&authenticator, &token).await, expected);
            assert_eq!(live.tokens.hits_and_misses().0, hits, "{expected}");
        }
    }

    #[tokio::test]
    async fn a_longest_lifetime_needs_the_time_of_issue() {
        let mut settings = config(file(set_of(&[&ES256]).as_bytes()));
        settings.max_lifetime = Some(Duration::from_secs(600));
        let authenticator = jwt(&settings);
        assert_eq!(said(&authenticator, &sign(&with(json!({"iat": NOW, "exp": NOW + 600})))).await, "accept alice");
        assert_eq!(said(&authenticator, &sign(&with(json!({"iat": NOW, "exp": NOW + 601})))).await, "lifetime");
        assert_eq!(said(&authenticator, &sign(&with(json!({"iat": null, "exp": NOW + 60})))).await, "lifetime");
    }

    #[tokio::test]
    async fn each_issuer_takes_its_own_tokens_with_its_own_keys_also_under_one_kid() {
        let theirs = SigningKey::generate(Algorithm::Es256, "e").unwrap();
        let live = LiveState::default();
        let ours = config(file(set_of(&[&ES256]).as_bytes()));
        let mut other = config(file(set_of(&[&theirs]).as_bytes()));
        other.issuer = "https://other.test".into();
        let (ours, other) = (Jwt::new("a".into(), &ours, &live).unwrap(), Jwt::new("b".into(), &other, &live).unwrap());
        let from_other = with(json!({"iss": "https://other.test"}));
        let theirs_for = |claims: &Value| theirs.sign(claims.as_object().unwrap()).unwrap();
        for (token, by_us, by_other) in [
            (sign(&good()), "accept alice", "pass"),
            (theirs_for(&from_other), "pass", "accept alice"),
            (sign(&from_other), "pass", "signature"),
            (theirs_for(&good()), "signature", "pass"),
        ] {
            assert_eq!((said(&ours, &token).await.as_str(), said(&other, &token).await.as_str()), (by_us, by_other));
        }
    }

    #[tokio::test]
    async fn claims_become_an_identity_by_name_and_path_and_other_types_grant_nothing() {
        let authenticator = es256();
        let claims = with(json!({
            "scope": "read  write read", "scp": ["more", 7, "two words", null, ""], "roles": "admin of all",
            "realm_access": {"roles": ["ops"]}, "client_id": "acme", "azp": "app", "plan": 3, "extra": {"a": [1]},
        }));
        let Verdict::Accept(identity) = bearer(&authenticator, &sign(&claims), now(NOW)).await else { panic!() };
        let text = |words: &[Arc<str>]| words.join("|");
        assert_eq!(text(&identity.scopes), "read|write|more");
        assert_eq!(text(&identity.roles), "admin of all|ops");
        assert_eq!((identity.consumer.as_deref(), identity.client.as_deref(), identity.plan.as_deref()), (Some("acme"), Some("app"), None));
        assert_eq!((identity.method, &*identity.authenticator), (Method::Jwt, "a"));
        assert_eq!(Value::Object(identity.claims.clone()), claims);
        for scope in [json!(7), json!(true), json!({"admin": true}), json!([["admin"]])] {
            let token = sign(&with(json!({"scope": scope, "sub": ["admin"]})));
            let Verdict::Accept(identity) = bearer(&authenticator, &token, now(NOW)).await else { panic!() };
            assert_eq!((identity.scopes.len(), &identity.subject), (0, &None), "{token}");
        }
        let path = ClaimPath::new(&"https://acme.test/roles".into());
        assert_eq!(path.find(json!({"https://acme.test/roles": "x"}).as_object().unwrap()), Some(&json!("x")));
    }

    #[tokio::test]
    async fn a_second_signature_of_one_ecdsa_token_is_the_same_credential() {
        let authenticator = es256();
        let token = sign(&good());
        let (input, signature) = token.rsplit_once('.').unwrap();
        let bytes = crate::jose::base64url(signature.as_bytes()).unwrap();
        let order = openssl::bn::BigNum::from_hex_str("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551").unwrap();
        let s = openssl::bn::BigNum::from_slice(&bytes[32..]).unwrap();
        let other = [&bytes[..32], &(&order - &s).to_vec_padded(32).unwrap()].concat();
        use base64::Engine;
        let malleated = format!("{input}.{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(other));
        let Verdict::Accept(one) = bearer(&authenticator, &token, now(NOW)).await else { panic!() };
        let Verdict::Accept(two) = bearer(&authenticator, &malleated, now(NOW)).await else { panic!("RFC 7518 allows both") };
        assert_eq!(one.credential, two.credential);
    }

    #[tokio::test]
    async fn a_secret_verifies_its_own_algorithms_and_nothing_else() {
        let secret = |bytes: &[u8]| at(KeySource::Secret(Secret::new(bytes.to_vec())));
        let authenticator = jwt(&config(secret(&[7; 32])));
        use jwt_simple::prelude::{HS256Key, HS384Key, JWTClaims, MACLike};
        let claims = || JWTClaims {
            issued_at: None,
            expires_at: Some(jwt_simple::prelude::Duration::from_secs(NOW + 60)),
            invalid_before: None,
            issuer: Some(ISSUER.into()),
            subject: Some("alice".into()),
            audiences: Some(jwt_simple::claims::Audiences::AsString("api://gw".into())),
            jwt_id: None,
            nonce: None,
            custom: jwt_simple::prelude::NoCustomClaims {},
        };
        let token = |key: &[u8]| HS256Key::from_bytes(key).with_key_id("any").authenticate(claims()).unwrap();
        assert_eq!(said(&authenticator, &token(&[7; 32])).await, "accept alice");
        assert_eq!(said(&authenticator, &token(&[8; 32])).await, "signature");
        let longer = HS384Key::from_bytes(&[7; 32]).authenticate(claims()).unwrap();
        assert_eq!(said(&authenticator, &longer).await, "unknown_key");
        assert_eq!(said(&authenticator, &sign(&good())).await, "algorithm");
    }

    #[test]
    fn keys_that_can_verify_nothing_are_a_problem_of_the_configuration() {
        let problems = |settings: &config::Jwt| {
            let problems = Jwt::new("a".into(), settings, &LiveState::default()).err().unwrap_or_default();
            problems.into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("; ")
        };
        let secret = at(KeySource::Secret(Secret::new(vec![7; 31])));
        assert_eq!(problems(&config(secret)), "the secret is shorter than 32 bytes");
        assert!(problems(&config(file(b"<html>"))).contains("JSON"));
        assert!(problems(&config(file(br#"{"keys":[{"kty":"oct","k":"AA"}]}"#))).contains(r#"skipped: {"symmetric": 1}"#));
        let mut settings = config(file(set_of(&[&ES256]).as_bytes()));
        settings.algorithms = vec![at(Algorithm::Hs256), at(Algorithm::Es256)];
        assert_eq!(problems(&settings), "HS256 needs a secret, and this authenticator has public keys");
        settings.algorithms = vec![at(Algorithm::Rs256)];
        assert_eq!(problems(&settings), "no key can verify one of the allowed algorithms");
        let mut settings = config(at(KeySource::Secret(Secret::new(vec![7; 32]))));
        settings.algorithms = vec![at(Algorithm::Es256)];
        assert!(problems(&settings).contains("ES256 needs public keys"));
        settings.algorithms = vec![at(Algorithm::Hs512)];
        assert_eq!(problems(&settings), "no key can verify one of the allowed algorithms");
    }

    /// An authenticator whose issuer is a script, and the upkeep of its keys.
    fn remote(max_stale: u64) -> (Jwt, Arc<Issuer>, LiveState) {
        let (live, issuer) = (LiveState::default(), Arc::new(Issuer::default()));
        let fetch = KeyFetch {
            ca: None,
            timeout: Duration::from_secs(5),
            refresh: Duration::from_secs(300),
            max_stale: Duration::from_secs(max_stale),
            store: None,
        };
        let set = live.key_sets.find_or_create(&id(), || KeySet::new(id(), issuer.clone()));
        let authenticator = Jwt::new("a".into(), &config(at(KeySource::JwksUrl { url: URL.into(), fetch })), &live).unwrap();
        drop(set);
        (authenticator, issuer, live)
    }

    fn maintain(live: &LiveState, clock: &crate::request::Clock) {
        for set in live.key_sets.unmaintained() {
            tokio::spawn(KeySet::maintain(set, clock.clone()));
        }
    }

    fn named(kid: &str) -> (SigningKey, String) {
        let key = SigningKey::generate(Algorithm::Es256, kid).unwrap();
        let claims = with(json!({"exp": NOW + 1_000_000}));
        let token = key.sign(claims.as_object().unwrap()).unwrap();
        (key, token)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_rotated_out_ends_its_cached_tokens_and_a_new_one_is_found_at_once() {
        let (authenticator, issuer, live) = remote(3600);
        let (clock, pause) = (clock(), Duration::from_secs(11));
        let ((old, by_old), (new, by_new)) = (named("old"), named("new"));
        issuer.answers(URL, Answer::Document(set_of(&[&old])));
        maintain(&live, &clock);
        let said = async |token: &str| word(&bearer(&authenticator, token, clock()).await);
        assert_eq!(said(&by_old).await, "accept alice");
        // The overlap: both are good, and the new key is found on its first use.
        issuer.answers(URL, Answer::Document(set_of(&[&old, &new])));
        assert_eq!(said(&by_new).await, "accept alice");
        assert_eq!(said(&by_old).await, "accept alice");
        assert_eq!(issuer.count(URL), 2);
        // The old one is withdrawn: the next document ends its tokens, cached or not.
        issuer.answers(URL, Answer::Document(set_of(&[&new])));
        tokio::time::sleep(Duration::from_secs(320)).await;
        let (hits, _) = live.tokens.hits_and_misses();
        assert_eq!(said(&by_old).await, "unknown_key");
        assert_eq!(live.tokens.hits_and_misses().0, hits + 1, "it was still in the cache");
        assert_eq!(said(&by_new).await, "accept alice");
        // Another key under the old id is not the key that signed.
        let (impostor, _) = named("new");
        issuer.answers(URL, Answer::Document(set_of(&[&impostor])));
        tokio::time::sleep(Duration::from_secs(320)).await;
        assert_eq!(said(&by_new).await, "signature");
        tokio::time::sleep(pause).await;
        assert_eq!(said(&by_new).await, "signature");
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_issuer_is_away_known_keys_serve_until_they_are_too_old() {
        let (authenticator, issuer, live) = remote(3600);
        let clock = clock();
        let ((key, token), (_, by_unknown)) = (named("k"), named("u"));
        issuer.answers(URL, Answer::Away);
        maintain(&live, &clock);
        let ask = async |token: &str| bearer(&authenticator, token, clock()).await;
        // Before the first success nobody can tell a good token from a bad one: 503, not 401 and not 200.
        let Verdict::Reject(rejection) = ask(&token).await else { panic!() };
        assert_eq!((rejection.status().as_u16(), rejection.reason()), (503, Some("jwks")));
        assert!(matches!(rejection, Rejection::DependencyUnavailable { retry_after, .. } if retry_after >= Duration::from_secs(1)));
        issuer.answers(URL, Answer::Document(set_of(&[&key])));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(word(&ask(&token).await), "accept alice");
        assert_eq!(word(&ask(&by_unknown).await), "unknown_key");
        issuer.answers(URL, Answer::Away);
        tokio::time::sleep(Duration::from_secs(3200)).await;
        assert_eq!(word(&ask(&token).await), "accept alice");
        // What we could not ask about is no verdict on the token.
        assert_eq!(word(&ask(&by_unknown).await), "jwks");
        tokio::time::sleep(Duration::from_secs(500)).await;
        assert_eq!(word(&ask(&token).await), "jwks", "cached tokens too");
        issuer.answers(URL, Answer::Document(set_of(&[&key])));
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(word(&ask(&token).await), "accept alice");
    }

    #[tokio::test]
    async fn a_token_without_kid_is_tried_with_every_key_and_doubled_kids_with_each_of_theirs() {
        let doubled = SigningKey::generate(Algorithm::Es256, "e").unwrap();
        let settings = config(file(set_of(&[&doubled, &ES256]).as_bytes()));
        let authenticator = jwt(&settings);
        assert_eq!(said(&authenticator, &sign(&good())).await, "accept alice");
        assert_eq!(said(&authenticator, &sign_as(r#"{"alg":"ES256"}"#, &good())).await, "accept alice");
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/jwt-threats");
        for set in ["jwks-duplicate-kid.json", "jwks-single-rsa-no-kid.json", "jwks-with-unknown-kty.json"] {
            jwt(&config(file(&std::fs::read(folder.join(set)).unwrap())));
        }
    }
}
