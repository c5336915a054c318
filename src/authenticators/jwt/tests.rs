//! Tokens, hostile and sound, and the verdicts on them.

mod issuers;

use super::*;
use crate::authenticators::{Accepted, Authenticator, Authenticators, Proof};
use crate::config::{At, ClaimNames, File, KeyFetch, Place};
use crate::jose::SigningKey;
use crate::live::key_set::script::{Answer, Issuer, URL, clock, id};
use crate::request::Client as Caller;
use crate::secret::Secret;
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
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
        dpop: config::Dpop { required: false, max_age: Duration::from_secs(60), nonce: None },
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
    let request = Request { route: "r", ..Request::new(&http::Method::GET, "gw.test", "/", headers, &client) };
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
        Verdict::Accept(proof) => format!("accept {}", proof.identity.subject.as_deref().unwrap_or("nobody")),
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
        let readable =
            lines.iter().all(|line| HeaderValue::from_bytes(line.as_bytes()).map(|value| headers.append("authorization", value)).is_ok());
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
            let verdict = present(&authenticator, &headers, now(NOW)).await;
            *counts.entry(word(&verdict)).or_default() += 1;
            match &verdict {
                Verdict::Accept(Proof { identity, .. }) => {
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
                let request = Request { route: "r", ..Request::new(&http::Method::GET, "gw.test", "/", &headers, &client) };
                let list = Authenticators::new(Accepted::Authenticator(Arc::new(Authenticator::Jwt(authenticator))), None);
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
        (sign(&with(json!({"cnf": {"jkt": "x"}}))), "dpop_as_bearer"),
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
        (new(&|c| c.max_lifetime = Some(Duration::from_secs(659))), "lifetime"),
        (new(&|c| c.max_lifetime = Some(Duration::from_secs(660))), "accept alice"),
        (new(&|c| c.typ = Some("at+jwt".into())), "type"),
        (new(&|_| {}), "accept alice"),
    ] {
        let (hits, _) = live.tokens.hits_and_misses();
        assert_eq!(said(&authenticator, &token).await, expected);
        assert_eq!(live.tokens.hits_and_misses().0, hits + 1, "{expected}");
    }
    // What is known to be another issuer's is left to others, as it is when it is new.
    assert_eq!(said(&new(&|c| c.issuer = "https://other.test".into()), &token).await, "pass");
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
    let Verdict::Accept(Proof { identity, .. }) = bearer(&authenticator, &sign(&claims), now(NOW)).await else { panic!() };
    let text = |words: &[Arc<str>]| words.join("|");
    assert_eq!(text(&identity.scopes), "read|write|more");
    assert_eq!(text(&identity.roles), "admin of all|ops");
    assert_eq!((identity.consumer.as_deref(), identity.client.as_deref(), identity.plan.as_deref()), (Some("acme"), Some("app"), None));
    assert_eq!((identity.method, &*identity.authenticator), (Method::Jwt, "a"));
    assert_eq!(Value::Object(identity.claims.clone()), claims);
    for scope in [json!(7), json!(true), json!({"admin": true}), json!([["admin"]])] {
        let token = sign(&with(json!({"scope": scope, "sub": ["admin"]})));
        let Verdict::Accept(Proof { identity, .. }) = bearer(&authenticator, &token, now(NOW)).await else { panic!() };
        assert_eq!((identity.scopes.len(), &identity.subject), (0, &None), "{token}");
    }
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
    let Verdict::Accept(Proof { identity: one, .. }) = bearer(&authenticator, &token, now(NOW)).await else { panic!() };
    let Verdict::Accept(Proof { identity: two, .. }) = bearer(&authenticator, &malleated, now(NOW)).await else {
        panic!("RFC 7518 allows both")
    };
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
    settings.algorithms = vec![at(Algorithm::Rs256)];
    assert_eq!(problems(&settings), "no key can verify one of the allowed algorithms");
    let mut settings = config(at(KeySource::Secret(Secret::new(vec![7; 32]))));
    settings.algorithms = vec![at(Algorithm::Es256)];
    assert_eq!(problems(&settings), "no key can verify one of the allowed algorithms");
    settings.algorithms = vec![at(Algorithm::Hs512)];
    assert_eq!(problems(&settings), "no key can verify one of the allowed algorithms");
}

/// An authenticator whose issuer is a script, and the upkeep of its keys.
fn remote(max_stale: u64) -> (Jwt, Arc<Issuer>, LiveState) {
    let (live, issuer) = (LiveState::default(), Arc::new(Issuer::default()));
    (remote_in(&live, &issuer, max_stale), issuer, live)
}

fn remote_in(live: &LiveState, issuer: &Arc<Issuer>, max_stale: u64) -> Jwt {
    let fetch = KeyFetch {
        ca: None,
        timeout: Duration::from_secs(5),
        refresh: Duration::from_secs(300),
        max_stale: Duration::from_secs(max_stale),
        store: None,
    };
    let set = live.key_sets.find_or_create(&id(), || KeySet::new(id(), issuer.clone()));
    let authenticator = Jwt::new("a".into(), &config(at(KeySource::JwksUrl { url: URL.into(), fetch })), live).unwrap();
    drop(set);
    authenticator
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
async fn a_key_that_was_withdrawn_while_its_issuer_was_left_out_of_the_configuration_ends_its_cached_tokens() {
    let (before, issuer, live) = remote(3600);
    let clock = clock();
    let ((old, by_old), (new, by_new)) = (named("old"), named("new"));
    issuer.answers(URL, Answer::Document(set_of(&[&old])));
    maintain(&live, &clock);
    assert_eq!(word(&bearer(&before, &by_old, clock()).await), "accept alice");
    drop(before);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(live.key_sets.living().is_empty());
    issuer.answers(URL, Answer::Document(set_of(&[&new])));
    let after = remote_in(&live, &issuer, 3600);
    maintain(&live, &clock);
    assert_eq!(word(&bearer(&after, &by_new, clock()).await), "accept alice");
    let (hits, _) = live.tokens.hits_and_misses();
    assert_eq!(word(&bearer(&after, &by_old, clock()).await), "unknown_key");
    assert_eq!(live.tokens.hits_and_misses().0, hits + 1, "it was still in the cache");
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
