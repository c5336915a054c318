//! Tokens: accepted is only what an issuer signed, and only when it says what it must.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use edgeward::authenticators::{Proof, Verdict, jwt::Jwt};
use edgeward::config::{At, Authenticator, KeySource};
use edgeward::jose::{Algorithm, Claims, Jws, SigningKey};
use edgeward::live::{LiveState, token_cache::TokenCache};
use edgeward::request::{Client, Identity, Now, Rejection, Request};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::Value;

const ISSUER: &str = "https://issuer.test";
const AUDIENCE: &str = "api://gw";
/// Between the `iat` and the `exp` of the vectors.
const NOW: u64 = 1_800_000_000;
const LEEWAY: u64 = 30;

/// The tokens that the issuer is known to have signed.
static GOOD: LazyLock<Vec<String>> = LazyLock::new(|| {
    let rows = include_str!("../../tests/data/jwt-threats/vectors.jsonl").lines().map(|row| serde_json::from_str::<Value>(row).unwrap());
    let good = rows.filter(|row| row["expect"] == "accept" && row["jwks"] == "main");
    good.map(|row| row["authorization"].as_str().unwrap().split_once(' ').unwrap().1.to_owned()).collect()
});

/// One of the issuer's keys, to say anything in its name.
static SIGNER: LazyLock<SigningKey> = LazyLock::new(|| {
    let keys: Value = serde_json::from_str(include_str!("../../tests/data/jwt-threats/private-keys-TEST-ONLY.json")).unwrap();
    SigningKey::from_pem(keys["ec1"].as_str().unwrap().as_bytes(), Algorithm::Es256, "ec1").unwrap()
});

static AUTHENTICATOR: LazyLock<Jwt> = LazyLock::new(|| {
    let jwks = include_bytes!("../../tests/data/jwt-threats/jwks-main.json");
    let yaml = format!(
        "listeners: [{{address: 127.0.0.1:1}}]
upstreams: {{echo: {{builtin: echo}}}}
authenticators: {{a: {{jwt: {{issuer: {ISSUER}, audiences: ['{AUDIENCE}'], keys: {{jwks_file: jwks.json}}}}}}}}
policies: {{p: {{authenticate: a}}}}
routes: [{{name: r, path: /, policy: p, upstream: echo}}]"
    );
    let source = super::config::Memory(vec![("edgeward.yaml", yaml.as_bytes()), ("jwks.json", jwks)]);
    let config = edgeward::config::load("edgeward.yaml".as_ref(), &source).config.unwrap();
    let Some((At { value: name, .. }, Authenticator::Jwt(jwt))) = config.authenticators.first() else { unreachable!() };
    assert!(matches!(jwt.keys.value, KeySource::JwksFile(_)));
    let live = LiveState { tokens: Arc::new(TokenCache::new(1 << 16)), ..LiveState::default() };
    Jwt::new(name.clone(), jwt, &live).unwrap()
});

/// One line is a token. Of more, the first is a header and the rest a payload, which is signed, and given the signatures of others.
pub fn run(data: &[u8]) {
    let Some(at) = data.iter().position(|byte| *byte == b'\n') else {
        if let Ok(token) = std::str::from_utf8(data) {
            check_text(token);
            check_unsigned(token);
        }
        return;
    };
    let (header, payload) = (&data[..at], &data[at + 1..]);
    check_signed(header, payload);
    let input = format!("{}.{}", BASE64_URL_SAFE_NO_PAD.encode(header), BASE64_URL_SAFE_NO_PAD.encode(payload));
    check_unsigned(&format!("{input}."));
    // One of RSA and one of ECDSA.
    for (_, signature) in
        [GOOD.first(), GOOD.iter().min_by_key(|token| token.len())].into_iter().flatten().filter_map(|token| token.rsplit_once('.'))
    {
        check_unsigned(&format!("{input}.{signature}"));
    }
}

fn judge(token: &str, now: u64) -> Verdict {
    let Ok(value) = HeaderValue::from_str(&format!("Bearer {token}")) else { return Verdict::Pass };
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
    let client = Client { address: [127, 0, 0, 1].into(), through_trusted_proxy: false };
    let request = Request::new(&Method::GET, "gw.test", "/", &headers, &client);
    let now = Now { monotonic: Duration::from_secs(100), unix: Duration::from_secs(now) };
    AUTHENTICATOR.authenticate(&request, now).now_or_never().expect("keys of a file are not waited for")
}

/// What parses has one spelling: its parts encoded again are itself.
fn check_text(token: &str) {
    let Ok(jws) = Jws::parse(token) else { return };
    assert!(Jws::has_shape(token), "{token}");
    let (input, signature) = token.rsplit_once('.').unwrap();
    assert_eq!(jws.signing_input(), input.as_bytes());
    if let Ok(bytes) = jws.signature() {
        assert_eq!(BASE64_URL_SAFE_NO_PAD.encode(bytes), signature);
    }
    if let Ok(bytes) = jws.payload() {
        assert_eq!(Some(&*BASE64_URL_SAFE_NO_PAD.encode(&bytes)), input.split_once('.').map(|(_, payload)| payload));
        let _ = Claims::parse(&bytes);
    }
}

/// Anybody can make a second good signature out of one of ECDSA, so it is what was signed that must be known.
fn check_unsigned(token: &str) {
    // RFC 9110 section 11.4: any number of spaces may part the scheme and the token.
    let token = token.trim_start_matches(' ');
    if let Verdict::Accept(Proof { identity, .. }) = judge(token, NOW) {
        let input = |token: &str| token.rsplit_once('.').map(|(input, _)| input.to_owned());
        assert!(GOOD.iter().any(|good| good == token || (input(good) == input(token) && token.len() < 300)), "accepted {token}");
        check_end(token, &identity);
    }
}

fn check_signed(header: &[u8], payload: &[u8]) {
    let token = SIGNER.sign_parts(header, payload).unwrap();
    match judge(&token, NOW) {
        Verdict::Accept(Proof { identity, .. }) => {
            check_said(header, payload, &identity);
            check_end(&token, &identity);
        }
        Verdict::Pass => {}
        Verdict::Reject(rejection) => {
            assert_eq!(rejection.status(), http::StatusCode::UNAUTHORIZED, "{rejection:?}");
            assert!(!says_all(header, payload), "{rejection:?}: {:?}", String::from_utf8_lossy(payload));
        }
    }
}

/// The rules again, for whoever trusts the JSON: an accepted token keeps every one.
fn check_said(header: &[u8], payload: &[u8], identity: &Identity) {
    let header: Value = serde_json::from_slice(header).unwrap();
    assert_eq!(header["alg"], "ES256");
    assert!(header.get("kid").is_none_or(|kid| kid == "ec1"), "{header}");
    assert!(["crit", "b64", "enc", "zip", "cty"].iter().all(|name| header.get(name).is_none()), "{header}");
    if let Some(typ) = header.get("typ") {
        let typ = typ.as_str().unwrap().to_ascii_lowercase();
        assert!(["jwt", "at+jwt"].contains(&typ.strip_prefix("application/").unwrap_or(&typ)), "{header}");
    }
    let claims: Value = serde_json::from_slice(payload).unwrap();
    assert_eq!(claims["iss"], ISSUER);
    assert!(claims["aud"] == AUDIENCE || claims["aud"].as_array().is_some_and(|list| list.iter().any(|one| one == AUDIENCE)));
    assert!(claims["exp"].as_f64().unwrap() + LEEWAY as f64 > NOW as f64, "{claims}");
    for early in ["nbf", "iat"] {
        assert!(claims.get(early).is_none_or(|time| time.as_f64().unwrap() <= (NOW + LEEWAY) as f64), "{claims}");
    }
    assert!(claims.get("cnf").is_none(), "{claims}");
    assert_eq!(identity.claims.len(), claims.as_object().unwrap().len());
    assert_eq!(identity.subject.as_deref(), claims["sub"].as_str());
    let texts = [&identity.subject, &identity.consumer, &identity.client, &identity.plan].into_iter().flatten().map(|text| &**text);
    for text in texts.chain(identity.scopes.iter().chain(&*identity.roles).map(|text| &**text)) {
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
    assert!(identity.scopes.iter().all(|scope| !scope.contains(' ') && !scope.is_empty()), "{:?}", identity.scopes);
}

/// Whether this is the plainest sound token, which must be accepted: a gateway that refuses everything proves nothing.
fn says_all(header: &[u8], payload: &[u8]) -> bool {
    header == br#"{"alg":"ES256"}"# && payload == format!(r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","exp":{}}}"#, NOW + 60).as_bytes()
}

/// A token that was good, and is remembered, ends all the same.
fn check_end(token: &str, identity: &Identity) {
    assert!(
        matches!(judge(token, NOW), Verdict::Accept(again) if again.identity.claims == identity.claims),
        "the second verdict is another"
    );
    let end = identity.claims["exp"].as_f64().unwrap().ceil() as u64 + LEEWAY;
    assert!(matches!(judge(token, end), Verdict::Reject(Rejection::CredentialExpired)), "{token} at {end}");
}
