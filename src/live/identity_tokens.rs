//! Identity tokens for upstreams: short-lived, signed once for an identity and an audience, and given out again until half their time is over.
//!
//! What is signed is a function of the identity, so the whole of what it says of the caller is compared on each hit: a hash only finds the
//! place, and nobody gets another's token.

use std::hash::{BuildHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use quick_cache::sync::Cache;
use serde_json::{Map, Value, json};

use super::signing_keys::SigningKeys;
use crate::request::{Identity, Now};

/// At most so many tokens are kept, of some 2 KiB each.
const ENTRIES: usize = 10_000;

/// What tells one mint from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MintId {
    /// The `iss`.
    pub issuer: Arc<str>,
    /// Where the keys are.
    pub directory: PathBuf,
    /// How long a token lives.
    pub ttl: Duration,
}

/// The tokens of one issuer.
pub struct IdentityTokens {
    id: MintId,
    keys: Arc<SigningKeys>,
    minted: Cache<u64, Arc<Minted>>,
    seeds: ahash::RandomState,
}

struct Minted {
    identity: Arc<Identity>,
    audience: Arc<str>,
    /// From then on another is made.
    until: Duration,
    value: HeaderValue,
}

impl std::fmt::Debug for IdentityTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentityTokens").field("id", &self.id).field("minted", &self.minted.len()).finish_non_exhaustive()
    }
}

impl IdentityTokens {
    /// None minted yet.
    pub fn new(id: MintId, keys: Arc<SigningKeys>) -> Self {
        Self { id, keys, minted: Cache::new(ENTRIES), seeds: ahash::RandomState::new() }
    }

    /// The token that tells this audience who calls; `random` names a new one. `None`: nothing can be signed, so nothing may be forwarded.
    pub fn token(&self, identity: &Arc<Identity>, audience: &Arc<str>, now: Now, random: impl FnOnce() -> u128) -> Option<HeaderValue> {
        let place = self.place(identity, audience);
        if let Some(known) = self.minted.get(&place)
            && now.unix < known.until
            // A clock that was set back must not make a token that begins in the future.
            && now.unix + self.id.ttl >= known.until
            && *known.audience == **audience
            && says_the_same(&known.identity, identity)
        {
            return Some(known.value.clone());
        }
        let value = self.mint(identity, audience, now, random())?;
        let until = now.unix + self.id.ttl / 2;
        self.minted.insert(place, Arc::new(Minted { identity: identity.clone(), audience: audience.clone(), until, value: value.clone() }));
        Some(value)
    }

    fn mint(&self, identity: &Identity, audience: &str, now: Now, random: u128) -> Option<HeaderValue> {
        let mut claims = principal(identity);
        let issued = now.unix.as_secs();
        claims.extend([
            ("iss".to_owned(), json!(&*self.id.issuer)),
            ("aud".to_owned(), json!(audience)),
            ("iat".to_owned(), json!(issued)),
            ("exp".to_owned(), json!(issued + self.id.ttl.as_secs())),
            ("jti".to_owned(), json!(format!("{random:032x}"))),
        ]);
        let held = self.keys.current();
        let signed = held.as_ref()?.sign("JWT", &claims, now);
        let token = signed.inspect_err(|error| tracing::error!(%error, "an identity token could not be signed")).ok()?;
        let mut value = HeaderValue::from_str(&token).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    fn place(&self, identity: &Identity, audience: &str) -> u64 {
        let mut hasher = self.seeds.build_hasher();
        audience.hash(&mut hasher);
        for part in identity.parts() {
            (&part.authenticator, &part.subject, &part.consumer, &part.client, &part.scopes).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// What a token says of its principal: the first identity, and as `act` (RFC 8693 section 4.1) whoever else was proven beside it.
fn principal(identity: &Identity) -> Map<String, Value> {
    let mut claims = one(identity);
    claims.insert("auth_method".to_owned(), json!(identity.method.label()));
    claims.insert("amr".to_owned(), identity.parts().map(|part| part.method.label()).collect());
    if !identity.scopes.is_empty() {
        claims.insert("scope".to_owned(), json!(identity.scopes.join(" ")));
    }
    // The nearest actor is outermost; those behind it are within.
    let actor = identity.beside.iter().rev().fold(None, |inner: Option<Map<String, Value>>, part| {
        let mut actor = one(part);
        actor.extend(inner.map(|inner| ("act".to_owned(), Value::Object(inner))));
        Some(actor)
    });
    claims.extend(actor.map(|actor| ("act".to_owned(), Value::Object(actor))));
    claims
}

fn one(identity: &Identity) -> Map<String, Value> {
    // A caller that is no end user is its own subject: a client, a consumer, a key.
    let subject = identity.subject.as_ref().or(identity.client.as_ref()).or(identity.consumer.as_ref()).or(identity.key_id.as_ref());
    let client = identity.client.as_ref();
    let members = [("sub", subject), ("client_id", client), ("azp", client), ("consumer", identity.consumer.as_ref())];
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(&**value?)))).collect()
}

/// Whether two identities make the same token; all that [`principal`] reads is here.
fn says_the_same(a: &Arc<Identity>, b: &Arc<Identity>) -> bool {
    let same = |a: &Identity, b: &Identity| {
        a.method == b.method
            && a.authenticator == b.authenticator
            && a.subject == b.subject
            && a.client == b.client
            && a.consumer == b.consumer
            && a.key_id == b.key_id
            && a.scopes == b.scopes
    };
    Arc::ptr_eq(a, b) || (a.beside.len() == b.beside.len() && a.parts().zip(b.parts()).all(|(a, b)| same(a, b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::{Algorithm, Claims, Jws};
    use crate::live::signing_keys::Terms;
    use crate::request::Method;

    fn at(seconds: u64) -> Now {
        Now { monotonic: Duration::from_secs(seconds), unix: Duration::from_secs(1_800_000_000 + seconds) }
    }

    fn mint(folder: &std::path::Path) -> IdentityTokens {
        let keys = Arc::new(SigningKeys::new(folder.into()));
        let terms = Terms { algorithm: Algorithm::EdDsa, rotate: Duration::from_secs(86_400), overlap: Duration::from_secs(3600) };
        keys.open(terms, at(0)).unwrap();
        let id = MintId { issuer: "https://gw.test".into(), directory: folder.into(), ttl: Duration::from_secs(60) };
        IdentityTokens::new(id, keys)
    }

    fn identity(subject: &str) -> Identity {
        let scopes = ["orders:read".into(), "orders:write".into()].into();
        let new = Identity::new(Method::Jwt, "customers".into(), [7; 32]);
        Identity { subject: Some(subject.into()), client: Some("app".into()), scopes, ..new }
    }

    fn claims(value: &HeaderValue) -> Map<String, Value> {
        let jws = Jws::parse(value.to_str().unwrap()).unwrap();
        Claims::parse(&jws.payload().unwrap()).unwrap().all
    }

    #[test]
    fn a_token_says_who_calls_how_it_was_proven_and_for_whom_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let beside = Identity { consumer: Some("acme".into()), ..Identity::new(Method::ApiKey, "partners".into(), [8; 32]) };
        let both = Arc::new(Identity { beside: vec![Arc::new(beside)], ..identity("alice") });
        let token = mint(folder.path()).token(&both, &"orders".into(), at(0), || 7).unwrap();
        assert!(token.is_sensitive());
        assert_eq!(
            Value::Object(claims(&token)),
            json!({
                "iss": "https://gw.test", "aud": "orders", "sub": "alice", "client_id": "app", "azp": "app", "scope": "orders:read orders:write",
                "auth_method": "jwt", "amr": ["jwt", "api_key"], "act": {"sub": "acme", "consumer": "acme"},
                "iat": 1_800_000_000, "exp": 1_800_000_060, "jti": "00000000000000000000000000000007",
            })
        );
    }

    #[test]
    fn a_token_is_signed_once_until_half_its_time_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = mint(folder.path());
        let audience: Arc<str> = "orders".into();
        let first = tokens.token(&Arc::new(identity("alice")), &audience, at(0), || 1).unwrap();
        // Another credential of the same caller, such as a refreshed token, is the same caller.
        let again = Arc::new(Identity { credential: [9; 32], ..identity("alice") });
        for seconds in [0, 1, 29] {
            assert_eq!(tokens.token(&again, &audience, at(seconds), || unreachable!()).unwrap(), first, "{seconds}");
        }
        let second = tokens.token(&again, &audience, at(30), || 2).unwrap();
        assert_ne!(second, first);
        assert_eq!(claims(&second)["exp"], json!(1_800_000_090));
        // The clock is set back by an hour.
        let back = Now { unix: at(0).unix - Duration::from_secs(3600), ..at(31) };
        assert_eq!(claims(&tokens.token(&again, &audience, back, || 3).unwrap())["iat"], json!(1_800_000_000 - 3600));
    }

    #[test]
    fn nobody_gets_the_token_of_another_caller_or_audience() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = mint(folder.path());
        let audience: Arc<str> = "orders".into();
        let alice = identity("alice");
        let first = tokens.token(&Arc::new(alice.clone()), &audience, at(0), || 1).unwrap();
        assert_ne!(tokens.token(&Arc::new(alice.clone()), &"billing".into(), at(0), || 2).unwrap(), first);
        let others = [
            Identity { subject: Some("bob".into()), ..alice.clone() },
            Identity { client: None, ..alice.clone() },
            Identity { consumer: Some("acme".into()), ..alice.clone() },
            Identity { key_id: Some("k".into()), ..alice.clone() },
            Identity { scopes: ["orders:read".into()].into(), ..alice.clone() },
            Identity { method: Method::Introspection, ..alice.clone() },
            Identity { authenticator: "others".into(), ..alice.clone() },
            Identity { beside: vec![Arc::new(alice.clone())], ..alice.clone() },
        ];
        for other in others {
            assert!(!says_the_same(&Arc::new(alice.clone()), &Arc::new(other.clone())), "{other:?}");
            // Even where the hash leads to the token of another.
            let place = tokens.place(&other, &audience);
            let value = first.clone();
            tokens.minted.insert(
                place,
                Arc::new(Minted { identity: Arc::new(alice.clone()), audience: audience.clone(), until: at(30).unix, value }),
            );
            assert_ne!(tokens.token(&Arc::new(other.clone()), &audience, at(0), || 3).unwrap(), first, "{other:?}");
        }
    }

    #[test]
    fn without_keys_there_is_no_token() {
        let id = MintId { issuer: "i".into(), directory: "/nowhere".into(), ttl: Duration::from_secs(60) };
        let tokens = IdentityTokens::new(id, Arc::new(SigningKeys::new("/nowhere".into())));
        assert!(tokens.token(&Arc::new(identity("alice")), &"orders".into(), at(0), || 1).is_none());
    }
}
