//! JSON Web Tokens (RFC 7519), judged as RFC 8725 asks: the algorithm comes from the operator and the key, every claim is of its type or refused.
//!
//! The order is cheap before dear: size, outline, header, claims, and the signature last. Nothing of a token is believed before its
//! signature was checked; what is read earlier can only refuse it or leave it to another authenticator.

mod issuers;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use issuers::Issuers;
use openssl::sha::sha256;

use super::claims::ClaimPaths;
use super::credential::{self, Found};
use super::dpop::{self, Proofs};
use super::{Challenge, Proof, Verdict, confirmation};
use crate::config::{self, KeySource, Location, Problem};
use crate::jose::claims::Registered;
use crate::jose::jws::{Header, MAX_TOKEN};
use crate::jose::key::Fingerprint;
use crate::jose::{Algorithm, Algorithms, Claims, Fault, JwkSet, Jws};
use crate::live::LiveState;
use crate::live::key_set::{KeySet, KeySetId, Source, Upkeep};
use crate::live::oauth_clients::OauthClients;
use crate::live::signing_keys::SigningKeys;
use crate::live::token_cache::{TokenCache, Verified, VerifierId};
use crate::net::http::{Client, Tls};
use crate::request::{Identity, Method, Now, Rejection, Request};

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
    /// Where the token is, and where its proof.
    locations: Vec<Location>,
    proofs: Proofs,
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
    Remote {
        set: Arc<KeySet>,
        upkeep: Arc<Upkeep>,
    },
    /// Those of this gateway's own issuer.
    Own {
        keys: Arc<SigningKeys>,
        clients: Option<Arc<OauthClients>>,
    },
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
        let keys = Keys::new(config, algorithms(config), live).map_err(|message| vec![Problem::at(&config.keys.place, message)])?;
        Ok(Self::with_keys(name, config, keys, live))
    }

    /// Accepts the tokens of this gateway's own issuer; `clients` tell what it has revoked.
    pub fn of_issuer(
        name: Arc<str>,
        config: &config::Jwt,
        keys: Arc<SigningKeys>,
        clients: Option<Arc<OauthClients>>,
        live: &LiveState,
    ) -> Self {
        let mut own = Self::with_keys(name, config, Keys::Own { keys, clients }, live);
        // An identity token is for an upstream: it opens nothing, whatever audience it was made for.
        own.rules.typ.get_or_insert_with(|| "at+jwt".into());
        own
    }

    fn with_keys(name: Arc<str>, config: &config::Jwt, keys: Keys, live: &LiveState) -> Self {
        let algorithms = algorithms(config);
        Self {
            // Debug escapes what it quotes, so no two verifiers write the same text.
            verifier: sha256(format!("{name:?} {} {:?}", keys.identity(), config.claims).as_bytes()),
            proofs: Proofs::new(&name, &config.dpop, config.leeway, live),
            locations: dpop::locations(&config.from),
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
        }
    }

    /// Judges the token of a request. A credential of another shape, and a token of another issuer, are not ours.
    pub async fn authenticate(&self, request: &Request<'_>, now: Now) -> Verdict {
        authenticate(self, |issuer| (*issuer == *self.rules.issuer).then_some(self), request, now).await
    }

    /// Whose tokens it accepts.
    pub fn issuer(&self) -> &Arc<str> {
        &self.rules.issuer
    }

    /// The name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where the token may be, and its proof.
    pub fn locations(&self) -> &[Location] {
        &self.locations
    }

    /// What a caller is told to present.
    pub fn challenges(&self) -> Vec<Challenge> {
        self.proofs.challenges(&self.from)
    }

    /// Where the token may be.
    pub fn token_locations(&self) -> &[Location] {
        &self.from
    }
}

/// Judges the token of a request by whoever is `of` its issuer. All that may be are as `first` in where they look; it judges what names no issuer.
pub async fn authenticate<'j>(first: &'j Jwt, of: impl Fn(&str) -> Option<&'j Jwt>, request: &Request<'_>, now: Now) -> Verdict {
    let token = match credential::find(&first.from, request) {
        Found::Absent => return Verdict::Pass,
        Found::One(token) => token,
        Found::Ambiguous(reason) => return Verdict::Reject(Rejection::BadRequest(reason)),
        Found::Malformed(reason) => return Verdict::Reject(Rejection::CredentialInvalid(reason)),
    };
    match judge(&token, first, of, request, now).await {
        Ok(Some(proof)) => Verdict::Accept(proof),
        Ok(None) => Verdict::Pass,
        Err(rejection) => Verdict::Reject(rejection),
    }
}

async fn judge<'j>(
    token: &str,
    first: &'j Jwt,
    of: impl Fn(&str) -> Option<&'j Jwt>,
    request: &Request<'_>,
    now: Now,
) -> Result<Option<Proof>, Rejection> {
    if token.len() > MAX_TOKEN {
        return Err(invalid(Fault::TooLarge));
    }
    if let Some(known) = first.tokens.find(token) {
        let Some(own) = known.registered.issuer.as_deref().and_then(&of) else { return Ok(None) };
        if let Some(known) = own.tokens.find_as(&own.verifier, known)
            && own.keys.still_hold(&known, now)?
        {
            own.rules.check(known.algorithm, known.typ.as_deref(), &known.registered, now)?;
            let nonce = confirmation::check((token, &known.registered), &own.proofs, request, now)?;
            return Ok(Some(Proof { nonce, ..known.identity.clone().into() }));
        }
    }
    if !Jws::has_shape(token) {
        return Ok(None);
    }
    let jws = Jws::parse(token).map_err(invalid)?;
    let Claims { registered, all } = Claims::parse(&jws.payload().map_err(invalid)?).map_err(invalid)?;
    // Several issuers can stand on one route: each leaves the tokens of the others alone. If nobody takes it, it is refused.
    let Some(own) = registered.issuer.as_deref().map_or(Some(first), of) else { return Ok(None) };
    let Header { algorithm, ref typ, .. } = jws.header;
    own.rules.check(algorithm, typ.as_deref(), &registered, now)?;
    // Boxed: known tokens do not get here, and need not carry its room.
    let key = Box::pin(own.keys.verify(&jws, now)).await?;
    own.keys.check_revoked(&all)?;
    // After the signature: a proof is remembered, and strangers must not fill that memory.
    let nonce = confirmation::check((token, &registered), &own.proofs, request, now)?;
    // Without the signature: of an ECDSA signature anybody can make a second one that is as good, and it must not have a budget of its own.
    let proven = Identity::new(Method::Jwt, own.name.clone(), jws.fingerprint());
    let identity = own.claims.fill_in(proven, all)?;
    let typ = typ.as_deref().map(Arc::from);
    let identity = own.tokens.insert(Verified::new(own.verifier, token, (algorithm, typ), registered, key, identity));
    Ok(Some(Proof { nonce, ..identity.into() }))
}

/// What may sign: what the operator says, else all that the kind of key can.
fn algorithms(config: &config::Jwt) -> Algorithms {
    let symmetric = matches!(config.keys.value, KeySource::Secret(_));
    if config.algorithms.is_empty() {
        return Algorithm::ALL.into_iter().filter(|algorithm| algorithm.is_symmetric() == symmetric).collect();
    }
    config.algorithms.iter().map(|algorithm| algorithm.value).collect()
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
            KeySource::Issuer => return Err("there is no `issuer` in this configuration".to_owned()),
            KeySource::JwksUrl { url, fetch } => (Source::Jwks(url.clone()), fetch),
            KeySource::Discovery { url, fetch } => (Source::Discovery { url: url.clone(), issuer: config.issuer.clone() }, fetch),
        };
        let ca = fetch.ca.as_ref().map(|file| &file.bytes);
        let client = Client::new(&Tls { ca: ca.map(|bytes| bytes.to_vec()), ..Tls::default() })?;
        let id = KeySetId { source, ca: ca.map(|bytes| sha256(bytes)) };
        let set = live.key_sets.find_or_create(&id, || KeySet::new(id.clone(), Arc::new(client)));
        let upkeep =
            set.keep_up(Upkeep { timeout: fetch.timeout, refresh: fetch.refresh, max_stale: fetch.max_stale, store: fetch.store.clone() });
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
            Self::Own { .. } => "issuer".to_owned(),
        }
    }

    /// Whether the key of a known token still stands for its issuer: rotated out, it proves nothing any more.
    fn still_hold(&self, known: &Verified, now: Now) -> Result<bool, Rejection> {
        // The keys of a file and a secret are part of the verifier's identity.
        let (set, upkeep) = match self {
            Self::Fixed(_) => return Ok(true),
            Self::Remote { set, upkeep } => (set, upkeep),
            Self::Own { keys, .. } => {
                self.check_revoked(&known.identity.claims)?;
                // The same number is the same document; another one is judged as if the token were new.
                return Ok(keys.current().as_ref().is_some_and(|held| known.generation.load(Ordering::Relaxed) == held.generation()));
            }
        };
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

    /// Refuses what our own issuer has given to a client that it has revoked.
    fn check_revoked(&self, claims: &serde_json::Map<String, serde_json::Value>) -> Result<(), Rejection> {
        let Self::Own { clients: Some(clients), .. } = self else { return Ok(()) };
        let client = claims.get("client_id").and_then(serde_json::Value::as_str);
        if client.is_some_and(|client| clients.is_revoked(client)) { Err(Rejection::CredentialRevoked) } else { Ok(()) }
    }

    /// The key that signed, and the generation of the set that held it.
    async fn verify(&self, jws: &Jws<'_>, now: Now) -> Result<(Fingerprint, u64), Rejection> {
        let signature = jws.signature().map_err(invalid)?;
        let refuse = |unproven: Unproven| Rejection::CredentialInvalid(unproven.reason());
        let (set, upkeep) = match self {
            Self::Fixed(set) => return prove(set, jws, &signature).map(|key| (key, 0)).map_err(refuse),
            Self::Own { keys, .. } => {
                let held = keys.current();
                let held = held.as_ref().ok_or(Rejection::Internal("no_signing_keys"))?;
                return prove(held.public(), jws, &signature).map(|key| (key, held.generation())).map_err(refuse);
            }
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

#[cfg(test)]
mod tests;
