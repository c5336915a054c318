//! DPoP (RFC 9449): a proof, made for this very request, that the caller has the key that its token is bound to.
//!
//! Proofs are for JSON Web Tokens and opaque ones alike: what is bound is said by the token or by its issuer.

mod nonces;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderName, HeaderValue, header};
use openssl::sha::Sha256;

use self::nonces::Nonces;
use super::Challenge;
use crate::config::{self, Location};
use crate::jose::message::sha256;
use crate::jose::{Claims, Jws, json, jwk};
use crate::live::LiveState;
use crate::live::replays::{Replays, Use};
use crate::request::{Now, Rejection, Request, host, path};

const DPOP: HeaderName = HeaderName::from_static("dpop");
/// The authentication scheme of bound tokens.
pub const SCHEME: &str = "DPoP";

/// The algorithms of proofs, as callers are told.
pub const ALGORITHMS: [&str; 4] = ["ES256", "EdDSA", "RS256", "PS256"];

/// Whether the request presents its token as one that is bound (RFC 9449 section 7.1).
pub fn is_claimed(request: &Request<'_>) -> bool {
    let scheme = request.headers.get(header::AUTHORIZATION).and_then(|line| line.as_bytes().split(|byte| *byte == b' ').next());
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME.as_bytes()))
}

/// Where a token is, and where its proof.
pub fn locations(from: &[Location]) -> Vec<Location> {
    let proof = from.iter().any(|location| location.has_scheme(SCHEME)).then_some(Location::Header { name: DPOP, scheme: None });
    from.iter().cloned().chain(proof).collect()
}

/// What judges the proofs that come with the tokens of one authenticator.
#[derive(Debug)]
pub struct Proofs {
    /// Whether a token that nothing binds is refused.
    pub required: bool,
    max_age: Duration,
    /// How far clocks may differ.
    leeway: Duration,
    nonces: Option<Nonces>,
    /// Which were seen.
    seen: Arc<Replays>,
}

impl Proofs {
    /// The proofs for the tokens of the authenticator of this name.
    pub fn new(name: &Arc<str>, config: &config::Dpop, leeway: Duration, live: &LiveState) -> Self {
        Self {
            required: config.required,
            max_age: config.max_age,
            leeway,
            nonces: config.nonce.as_ref().map(|nonce| Nonces::new(nonce, &live.nonce_key)),
            seen: live.replays.find_or_create(name, Replays::default),
        }
    }

    /// What a caller is told to present: a bound token (RFC 9449 section 7.1), any other, or either.
    pub fn challenges(&self, from: &[Location]) -> Vec<Challenge> {
        let takes = |scheme| from.iter().any(|location| location.has_scheme(scheme));
        let bound = takes(SCHEME).then(|| Challenge::token(SCHEME).with("algs", ALGORITHMS.join(" ")));
        let bearer = (bound.is_none() || takes("Bearer") && !self.required).then(|| Challenge::token("Bearer"));
        bound.into_iter().chain(bearer).collect()
    }

    /// Checks the proof of a request by all of RFC 9449 section 4.3, and answers with the nonce for the next one, where that is another. The
    /// token must have been verified, as every proof that is good is remembered.
    ///
    /// # Errors
    /// There is none, or it is of another key, token or request, too old, or was used before.
    pub fn check(&self, thumbprint: &str, token: &str, request: &Request<'_>, now: Now) -> Result<Option<HeaderValue>, Rejection> {
        if !is_claimed(request) {
            return Err(Rejection::CredentialInvalid("dpop_as_bearer"));
        }
        let mut lines = request.headers.get_all(DPOP).iter();
        let proof = match (lines.next(), lines.next()) {
            (Some(line), None) => line.to_str().map_err(|_| MALFORMED)?,
            (None, _) => return refuse("dpop_missing"),
            (Some(_), Some(_)) => return Err(Rejection::BadRequest("credential_repeated")),
        };
        let jws = Jws::parse(proof).map_err(|_| MALFORMED)?;
        if !jws.header.typ.as_deref().is_some_and(|typ| typ.eq_ignore_ascii_case("dpop+jwt")) {
            return refuse("dpop_type");
        }
        // The one place where a key that a token brings is used: it is worth what `cnf.jkt` says of it.
        let header = proof.split('.').next().and_then(|header| json::object(&crate::jose::base64url(header.as_bytes())?));
        let brought = header.as_ref().and_then(|header| header.get("jwk")).ok_or(Rejection::ProofInvalid("dpop_key"))?;
        let key = jwk::parse_key(brought).map_err(|_| Rejection::ProofInvalid("dpop_key"))?;
        if jwk::thumbprint(brought).map(|own| URL_SAFE_NO_PAD.encode(own)).as_deref() != Some(thumbprint) {
            // As in the example of RFC 9449 section 7.1: it is the token that is not good in the hands of this key.
            return Err(Rejection::CredentialInvalid("dpop_other_key"));
        }
        let Claims { registered, all } = Claims::parse(&jws.payload().map_err(|_| MALFORMED)?).map_err(|_| MALFORMED)?;
        let text = |name: &str| all.get(name).map(|value| value.as_str().ok_or(MALFORMED)).transpose();
        let required = |name: &str| text(name)?.ok_or(MALFORMED);
        if required("htm")? != request.method.as_str() {
            return refuse("dpop_method");
        }
        if !is_target(required("htu")?, request) {
            return refuse("dpop_url");
        }
        if required("ath")? != URL_SAFE_NO_PAD.encode(sha256(token.as_bytes())) {
            return refuse("dpop_token");
        }
        let issued = registered.issued.ok_or(MALFORMED)?;
        let ends = issued.saturating_add(self.max_age).saturating_add(self.leeway);
        if issued > now.unix + self.leeway || now.unix > ends {
            return refuse("dpop_time");
        }
        let (id, nonce) = (required("jti")?, text("nonce")?);
        if !jws.signature().is_ok_and(|signature| jws.is_signed_by(&key, &signature)) {
            return refuse("dpop_signature");
        }
        // After the signature: who has a token and not its key is not even told a nonce.
        let next = self.nonces.as_ref().map(|nonces| nonces.check(nonce, now)).transpose()?.flatten();
        let mut once = Sha256::new();
        once.update(&sha256(thumbprint.as_bytes()));
        once.update(id.as_bytes());
        // A part of a second is still time in which it could be used.
        match self.seen.note(&once.finish(), ends.saturating_add(Duration::from_secs(1)), now.unix) {
            Use::First => Ok(next),
            Use::Again => refuse("dpop_replayed"),
            Use::Full => Err(Rejection::Overloaded("replays")),
        }
    }
}

/// Whether `htu` is the URL of the request, query and fragment aside: both in the one form that we have for URLs (RFC 9449 section 4.3, RFC
/// 3986 section 6.2).
fn is_target(htu: &str, request: &Request<'_>) -> bool {
    let whole = htu.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = whole.split_once("://") else { return false };
    let (authority, path) = rest.find('/').and_then(|at| rest.split_at_checked(at)).unwrap_or((rest, "/"));
    let default = if request.scheme == "https" { "443" } else { "80" };
    scheme.eq_ignore_ascii_case(request.scheme)
        && host::canonical(authority).is_ok_and(|host| host == request.host)
        && host::port(authority).unwrap_or(default) == request.port.unwrap_or(default)
        && path::canonical(path.as_bytes()).is_ok_and(|canonical| canonical.path == request.path)
}

fn refuse<T>(reason: &'static str) -> Result<T, Rejection> {
    Err(Rejection::ProofInvalid(reason))
}

const MALFORMED: Rejection = Rejection::ProofInvalid("dpop_malformed");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::{Algorithm, SigningKey};
    use crate::request::Client;
    use http::{HeaderMap, HeaderValue, Method};
    use serde_json::{Value, json};

    const NOW: u64 = 1_700_000_000;
    const TOKEN: &str = "header.payload.signature";

    struct Caller {
        key: SigningKey,
        thumbprint: String,
        proofs: Proofs,
    }

    fn caller(nonce: Option<config::DpopNonce>) -> Caller {
        let key = SigningKey::generate(Algorithm::Es256, "k").unwrap();
        let thumbprint = URL_SAFE_NO_PAD.encode(jwk::thumbprint(&key.to_public_jwk().unwrap()).unwrap());
        let config = config::Dpop { required: false, max_age: Duration::from_secs(60), nonce };
        Caller { key, thumbprint, proofs: Proofs::new(&"a".into(), &config, Duration::from_secs(30), &LiveState::default()) }
    }

    fn header(caller: &Caller) -> Value {
        json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": caller.key.to_public_jwk().unwrap()})
    }

    fn claims(id: &str) -> Value {
        let ath = URL_SAFE_NO_PAD.encode(sha256(TOKEN.as_bytes()));
        json!({"jti": id, "htm": "POST", "htu": "https://api.test/a/b", "iat": NOW, "ath": ath})
    }

    fn with(mut value: Value, name: &str, member: Value) -> Value {
        value[name] = member;
        value
    }

    fn without(mut value: Value, name: &str) -> Value {
        value.as_object_mut().unwrap().remove(name);
        value
    }

    impl Caller {
        fn prove(&self, header: &Value, claims: &Value) -> String {
            self.key.sign_parts(header.to_string().as_bytes(), claims.to_string().as_bytes()).unwrap()
        }

        fn ask(
            &self,
            scheme: &str,
            proofs: &[String],
            target: (&'static str, &str, Option<&str>),
        ) -> Result<Option<HeaderValue>, Rejection> {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", HeaderValue::from_str(&format!("{scheme} {TOKEN}")).unwrap());
            for proof in proofs {
                headers.append(DPOP, HeaderValue::from_str(proof).unwrap());
            }
            let client = Client { address: [127, 0, 0, 1].into(), through_trusted_proxy: false };
            let (scheme, host, port) = target;
            let request = Request { scheme, port, query: Some("q=1"), ..Request::new(&Method::POST, host, "/a/b", &headers, &client) };
            self.proofs.check(&self.thumbprint, TOKEN, &request, Now { monotonic: Duration::ZERO, unix: Duration::from_secs(NOW) })
        }

        fn outcome(&self, header: &Value, claims: &Value) -> &'static str {
            let asked = self.ask("DPoP", &[self.prove(header, claims)], HERE);
            asked.map_or_else(|rejection| rejection.reason().unwrap(), |_| "ok")
        }
    }

    const HERE: (&str, &str, Option<&str>) = ("https", "api.test", Some("443"));

    #[test]
    fn a_proof_is_of_this_key_this_token_and_this_request() {
        let caller = caller(None);
        let good = header(&caller);
        let other = SigningKey::generate(Algorithm::Es256, "k").unwrap();
        for (at, (header, claims, expected)) in [
            (good.clone(), claims("1"), "ok"),
            (good.clone(), claims("1"), "dpop_replayed"),
            (with(good.clone(), "typ", json!("JWT")), claims("2"), "dpop_type"),
            (without(good.clone(), "typ"), claims("2"), "dpop_type"),
            (with(good.clone(), "alg", json!("none")), claims("2"), "dpop_malformed"),
            (with(good.clone(), "alg", json!("HS256")), claims("2"), "dpop_signature"),
            (with(good.clone(), "alg", json!("ES384")), claims("2"), "dpop_signature"),
            (without(good.clone(), "jwk"), claims("2"), "dpop_key"),
            (with(good.clone(), "jwk", caller.key.to_private_jwk().unwrap()), claims("2"), "dpop_key"),
            (with(good.clone(), "jwk", json!({"kty": "oct", "k": "AAAA"})), claims("2"), "dpop_key"),
            (with(good.clone(), "jwk", other.to_public_jwk().unwrap()), claims("2"), "dpop_other_key"),
            (good.clone(), with(claims("2"), "htm", json!("GET")), "dpop_method"),
            (good.clone(), with(claims("2"), "htm", json!("post")), "dpop_method"),
            (good.clone(), without(claims("2"), "htm"), "dpop_malformed"),
            (good.clone(), with(claims("2"), "htu", json!("http://api.test/a/b")), "dpop_url"),
            (good.clone(), with(claims("2"), "htu", json!("https://api.test/a/c")), "dpop_url"),
            (good.clone(), with(claims("2"), "htu", json!("https://api.test.evil/a/b")), "dpop_url"),
            (good.clone(), with(claims("2"), "htu", json!("https://api.test:8443/a/b")), "dpop_url"),
            (good.clone(), with(claims("2"), "htu", json!("/a/b")), "dpop_url"),
            (good.clone(), with(claims("3"), "htu", json!("HTTPS://API.test:443/a/b?x=y#z")), "ok"),
            (good.clone(), with(claims("2"), "ath", json!("AAAA")), "dpop_token"),
            (good.clone(), without(claims("2"), "ath"), "dpop_malformed"),
            (good.clone(), with(claims("2"), "iat", json!(NOW + 31)), "dpop_time"),
            (good.clone(), with(claims("2"), "iat", json!(NOW - 91)), "dpop_time"),
            (good.clone(), with(claims("4"), "iat", json!(NOW - 90)), "ok"),
            (good.clone(), with(claims("4"), "iat", json!(NOW + 30)), "dpop_replayed"),
            (good.clone(), without(claims("2"), "iat"), "dpop_malformed"),
            (good.clone(), without(claims("2"), "jti"), "dpop_malformed"),
            (good.clone(), claims("2"), "ok"),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(caller.outcome(&header, &claims), expected, "{at}: {header} {claims}");
        }
    }

    #[test]
    fn a_bound_token_is_worth_nothing_as_a_bearer_token_nor_without_its_proof() {
        let caller = caller(None);
        let proof = |id: &str| caller.prove(&header(&caller), &claims(id));
        let reason = |scheme: &str, proofs: &[String]| caller.ask(scheme, proofs, HERE).err().and_then(|rejection| rejection.reason());
        assert_eq!(reason("Bearer", &[proof("1")]), Some("dpop_as_bearer"));
        assert_eq!(reason("DPoP", &[]), Some("dpop_missing"));
        assert_eq!(reason("DPoP", &[proof("1"), proof("2")]), Some("credential_repeated"));
        assert_eq!(reason("DPoP", &["junk".to_owned()]), Some("dpop_malformed"));
        let mut forged = proof("1");
        let other = if forged.ends_with("AA") { "BB" } else { "AA" };
        forged.replace_range(forged.len() - 4..forged.len() - 2, other);
        assert_eq!(reason("DPoP", &[forged]), Some("dpop_signature"));
        assert_eq!(reason("dpop", &[proof("1")]), None);
    }

    #[test]
    fn the_url_is_that_of_the_caller_port_and_all_and_has_one_spelling_for_each_server() {
        let caller = caller(None);
        let mut id = 0;
        for (htu, target, expected) in [
            ("https://api.test/a/b", ("https", "api.test", None), "ok"),
            ("https://api.test:443/a/b", ("https", "api.test", None), "ok"),
            ("https://api.test/a/b", ("https", "api.test", Some("443")), "ok"),
            ("https://api.test:8443/a/b", ("https", "api.test", Some("8443")), "ok"),
            ("https://api.test/a/b", ("https", "api.test", Some("8443")), "dpop_url"),
            ("https://api.test:8443/a/b", ("https", "api.test", None), "dpop_url"),
            ("https://api.test:80/a/b", ("https", "api.test", None), "dpop_url"),
            ("http://api.test:80/a/b", ("http", "api.test", None), "ok"),
            ("http://api.test/a/b", ("http", "api.test", Some("80")), "ok"),
            ("http://api.test:443/a/b", ("http", "api.test", Some("443")), "ok"),
            ("http://api.test/a/b", ("https", "api.test", None), "dpop_url"),
            ("https://[2001:db8::1]/a/b", ("https", "[2001:db8::1]", None), "ok"),
            ("https://[2001:db8::1]:8443/a/b", ("https", "[2001:db8::1]", Some("8443")), "ok"),
            ("https://API.TEST/a/b", ("https", "api.test", None), "ok"),
            ("https://api.test./a/b", ("https", "api.test", None), "ok"),
            ("https://user@api.test/a/b", ("https", "api.test", None), "dpop_url"),
            ("https://api.test\\@evil.test/a/b", ("https", "api.test", None), "dpop_url"),
            ("https://evil.test/https://api.test/a/b", ("https", "api.test", None), "dpop_url"),
            ("https://api.test/A/b", ("https", "api.test", None), "dpop_url"),
            ("https://api.test/a/b/", ("https", "api.test", None), "dpop_url"),
            ("https://api.test/a/./x/../%62", ("https", "api.test", None), "ok"),
            ("https://api.test/a/%62%2562", ("https", "api.test", None), "dpop_url"),
            ("https://api.test/a%2Fb", ("https", "api.test", None), "dpop_url"),
            ("https://api.test", ("https", "api.test", None), "dpop_url"),
            ("https://api.test:/a/b", ("https", "api.test", None), "dpop_url"),
            ("https://api.test:0443/a/b", ("https", "api.test", None), "dpop_url"),
            ("https:///a/b", ("https", "api.test", None), "dpop_url"),
            ("https://?/a/b", ("https", "api.test", None), "dpop_url"),
            ("", ("https", "api.test", None), "dpop_url"),
        ] {
            id += 1;
            let proof = caller.prove(&header(&caller), &with(claims(&id.to_string()), "htu", json!(htu)));
            let asked = caller.ask("DPoP", &[proof], target);
            assert_eq!(asked.map_or_else(|rejection| rejection.reason().unwrap(), |_| "ok"), expected, "{htu} at {target:?}");
        }
    }

    #[test]
    fn a_proof_without_our_nonce_is_told_it_only_when_nothing_else_is_wrong() {
        let lifetime = Duration::from_secs(300);
        let caller = caller(Some(config::DpopNonce { lifetime, secret: None }));
        let good = header(&caller);
        let ask = |claims: &Value| caller.ask("DPoP", &[caller.prove(&good, claims)], HERE);
        let Err(Rejection::NonceWanted(nonce)) = ask(&claims("1")) else { panic!("no nonce was asked for") };
        let mine = |id: &str| with(claims(id), "nonce", json!(nonce.to_str().unwrap()));
        // A proof that was not accepted was not used either.
        assert_eq!(ask(&mine("1")), Ok(None));
        assert_eq!(caller.outcome(&good, &mine("1")), "dpop_replayed");
        for (claims, expected) in [
            (with(claims("2"), "nonce", json!("another")), "dpop_nonce"),
            (with(claims("2"), "nonce", json!(7)), "dpop_malformed"),
            (with(claims("2"), "nonce", json!(null)), "dpop_malformed"),
            (with(claims("2"), "htm", json!("GET")), "dpop_method"),
            (with(claims("2"), "iat", json!(NOW - 100)), "dpop_time"),
            (with(mine("2"), "iat", json!(NOW - 100)), "dpop_time"),
        ] {
            assert_eq!(caller.outcome(&good, &claims), expected, "{claims}");
        }
        let stolen = SigningKey::generate(Algorithm::Es256, "k").unwrap();
        let by_thief = stolen.sign_parts(good.to_string().as_bytes(), claims("2").to_string().as_bytes()).unwrap();
        assert_eq!(caller.ask("DPoP", &[by_thief], HERE), Err(Rejection::ProofInvalid("dpop_signature")));
    }

    #[test]
    fn what_is_wrong_with_the_proof_is_told_from_what_is_wrong_with_the_token() {
        let caller = caller(None);
        let good = || caller.prove(&header(&caller), &claims("1"));
        let other = SigningKey::generate(Algorithm::Es256, "k").unwrap();
        let foreign = with(header(&caller), "jwk", other.to_public_jwk().unwrap());
        for (scheme, proof, expected) in [
            ("Bearer", good(), Rejection::CredentialInvalid("dpop_as_bearer")),
            ("DPoP", caller.prove(&foreign, &claims("1")), Rejection::CredentialInvalid("dpop_other_key")),
            ("DPoP", caller.prove(&header(&caller), &with(claims("1"), "htm", json!("GET"))), Rejection::ProofInvalid("dpop_method")),
            ("DPoP", "junk".to_owned(), Rejection::ProofInvalid("dpop_malformed")),
        ] {
            assert_eq!(caller.ask(scheme, &[proof], HERE), Err(expected));
        }
    }
}
