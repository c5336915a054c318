//! DPoP (RFC 9449): a proof, made for this very request, that the caller has the key that its token is bound to.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderName, header};
use openssl::sha::{Sha256, sha256};
use serde_json::Value;

use crate::jose::{Claims, Jws, json, jwk};
use crate::live::replays::{Replays, Use};
use crate::request::{Now, Rejection, Request};

/// The header of a proof.
pub const DPOP: HeaderName = HeaderName::from_static("dpop");

/// The algorithms of proofs, as callers are told.
pub const ALGORITHMS: [&str; 4] = ["ES256", "EdDSA", "RS256", "PS256"];

/// How old a proof may be: callers make one for each request.
const WINDOW: Duration = Duration::from_secs(60);

/// Whether the request presents its token as one that is bound (RFC 9449 section 7.1).
pub fn is_claimed(request: &Request<'_>) -> bool {
    let scheme = request.headers.get(header::AUTHORIZATION).and_then(|line| line.as_bytes().split(|byte| *byte == b' ').next());
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"dpop"))
}

/// What a proof is held against, beside the request.
#[derive(Debug, Clone, Copy)]
pub struct Bound<'a> {
    /// The token, as it was presented.
    pub token: &'a str,
    /// Which proofs were seen.
    pub replays: &'a Replays,
    /// How far clocks may differ.
    pub leeway: Duration,
}

/// Checks the proof of a request by all of RFC 9449 section 4.3; the token must have been verified, as every proof that is good is remembered.
///
/// # Errors
/// There is none, or it is of another key, token or request, too old, or was used before.
pub fn check(thumbprint: &str, bound: Bound<'_>, request: &Request<'_>, now: Now) -> Result<(), Rejection> {
    if !is_claimed(request) {
        return refuse("dpop_as_bearer");
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
    let brought = header.as_ref().and_then(|header| header.get("jwk")).ok_or(Rejection::CredentialInvalid("dpop_key"))?;
    let key = jwk::parse_key(brought).map_err(|_| Rejection::CredentialInvalid("dpop_key"))?;
    if jwk::thumbprint(brought).map(|own| URL_SAFE_NO_PAD.encode(own)).as_deref() != Some(thumbprint) {
        return refuse("dpop_other_key");
    }
    let claims = Claims::parse(&jws.payload().map_err(|_| MALFORMED)?).map_err(|_| MALFORMED)?;
    let text = |name: &str| claims.all.get(name).and_then(Value::as_str).ok_or(MALFORMED);
    if text("htm")? != request.method.as_str() {
        return refuse("dpop_method");
    }
    if !is_target(text("htu")?, request) {
        return refuse("dpop_url");
    }
    if text("ath")? != URL_SAFE_NO_PAD.encode(sha256(bound.token.as_bytes())) {
        return refuse("dpop_token");
    }
    let issued = claims.registered.issued.ok_or(MALFORMED)?;
    let ends = issued.saturating_add(WINDOW).saturating_add(bound.leeway);
    if issued > now.unix + bound.leeway || now.unix > ends {
        return refuse("dpop_time");
    }
    let id = text("jti")?;
    if !jws.signature().is_ok_and(|signature| jws.is_signed_by(&key, &signature)) {
        return refuse("dpop_signature");
    }
    let mut once = Sha256::new();
    once.update(&sha256(thumbprint.as_bytes()));
    once.update(id.as_bytes());
    // A part of a second is still time in which it could be used.
    match bound.replays.note(&once.finish(), ends.saturating_add(Duration::from_secs(1)), now.unix) {
        Use::First => Ok(()),
        Use::Again => refuse("dpop_replayed"),
        Use::Full => Err(Rejection::Overloaded("replays")),
    }
}

/// Whether `htu` is the URL of the request in its canonical form, query and fragment aside (RFC 9449 section 4.3, RFC 3986 section 6.2).
fn is_target(htu: &str, request: &Request<'_>) -> bool {
    let whole = htu.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = whole.split_once("://") else { return false };
    let (authority, path) = rest.find('/').and_then(|at| rest.split_at_checked(at)).unwrap_or((rest, "/"));
    let default = if request.scheme == "https" { ":443" } else { ":80" };
    let bare = |authority: &str| authority.strip_suffix(default).unwrap_or(authority).to_ascii_lowercase();
    scheme.eq_ignore_ascii_case(request.scheme) && bare(authority) == bare(&request.authority()) && path == request.path
}

fn refuse<T>(reason: &'static str) -> Result<T, Rejection> {
    Err(Rejection::CredentialInvalid(reason))
}

const MALFORMED: Rejection = Rejection::CredentialInvalid("dpop_malformed");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::{Algorithm, SigningKey};
    use crate::request::Client;
    use http::{HeaderMap, HeaderValue, Method};
    use serde_json::json;

    const NOW: u64 = 1_700_000_000;
    const TOKEN: &str = "header.payload.signature";

    struct Caller {
        key: SigningKey,
        thumbprint: String,
        replays: Replays,
    }

    fn caller() -> Caller {
        let key = SigningKey::generate(Algorithm::Es256, "k").unwrap();
        let thumbprint = URL_SAFE_NO_PAD.encode(jwk::thumbprint(&key.to_public_jwk().unwrap()).unwrap());
        Caller { key, thumbprint, replays: Replays::default() }
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
        fn ask(&self, scheme: &str, proofs: &[String]) -> Result<(), Rejection> {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", HeaderValue::from_str(&format!("{scheme} {TOKEN}")).unwrap());
            for proof in proofs {
                headers.append(DPOP, HeaderValue::from_str(proof).unwrap());
            }
            let client = Client { address: [127, 0, 0, 1].into(), through_trusted_proxy: false };
            let request = Request {
                scheme: "https",
                port: Some("443"),
                query: Some("q=1"),
                ..Request::new(&Method::POST, "api.test", "/a/b", &headers, &client)
            };
            let bound = Bound { token: TOKEN, replays: &self.replays, leeway: Duration::from_secs(30) };
            check(&self.thumbprint, bound, &request, Now { monotonic: Duration::ZERO, unix: Duration::from_secs(NOW) })
        }

        fn outcome(&self, header: &Value, claims: &Value) -> &'static str {
            let proof = self.key.sign_parts(header.to_string().as_bytes(), claims.to_string().as_bytes()).unwrap();
            self.ask("DPoP", &[proof]).map_or_else(|rejection| rejection.reason().unwrap(), |()| "ok")
        }
    }

    #[test]
    fn a_proof_is_of_this_key_this_token_and_this_request() {
        let caller = caller();
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
        let caller = caller();
        let proof = |id: &str| caller.key.sign_parts(header(&caller).to_string().as_bytes(), claims(id).to_string().as_bytes()).unwrap();
        let reason = |scheme: &str, proofs: &[String]| caller.ask(scheme, proofs).err().and_then(|rejection| rejection.reason());
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
}
