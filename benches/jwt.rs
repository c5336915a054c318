//! What a JWT costs: a signature of each algorithm, the whole judgement of a new token and of a known one, and the choices behind them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a bench that cannot be set up has to fail"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::{Criterion, criterion_group, criterion_main};
use edgeward::authenticators::Verdict;
use edgeward::authenticators::jwt::Jwt;
use edgeward::config::{self, At, ClaimNames, File, KeySource, Location, Place};
use edgeward::jose::{Algorithm, JwkSet, Jws, Key, SigningKey};
use edgeward::live::LiveState;
use edgeward::live::token_cache::TokenCache;
use edgeward::request::{Client, Now, Request};
use http::{HeaderMap, HeaderValue};
use jwt_simple::algorithms::{HS256Key, MACLike};
use openssl::hash::MessageDigest;
use openssl::pkey::{Id, PKey};
use openssl::sign::{Signer, Verifier};
use serde_json::json;

const NOW: Now = Now { monotonic: Duration::from_secs(100), unix: Duration::from_secs(1_800_000_000) };

fn token(key: &SigningKey) -> String {
    let claims = json!({
        "iss": "https://issuer.test", "aud": "api://gw", "sub": "alice", "iat": 1_799_999_000u64, "exp": 1_800_003_600u64,
        "client_id": "acme", "scope": "orders:read orders:write", "jti": "0a4c7d2e-5f3b-4b7e-9a51-3c1d2e4f5a6b",
    });
    key.sign(claims.as_object().unwrap()).unwrap()
}

fn set(key: &SigningKey) -> String {
    json!({"keys": [key.to_public_jwk().unwrap()]}).to_string()
}

fn authenticator(key: &SigningKey, live: &LiveState) -> Jwt {
    let place = Place { file: "bench".into(), line: 1, column: 1, path: "jwt".into() };
    let file = File { path: "jwks.json".into(), bytes: set(key).as_bytes().into(), place: place.clone() };
    let config = config::Jwt {
        issuer: "https://issuer.test".into(),
        audiences: vec!["api://gw".into()],
        keys: At { value: KeySource::JwksFile(file), place },
        algorithms: Vec::new(),
        leeway: Duration::from_secs(30),
        max_lifetime: None,
        typ: None,
        from: vec![Location::Header { name: http::header::AUTHORIZATION, scheme: Some("Bearer".into()) }],
        dpop: config::Dpop { required: false, max_age: Duration::from_secs(60), nonce: None },
        claims: ClaimNames {
            subject: "sub".into(),
            scopes: vec!["scope".into(), "scp".into()],
            roles: vec!["roles".into(), "realm_access.roles".into()],
            consumer: "client_id".into(),
            client: "azp".into(),
            plan: "plan".into(),
        },
    };
    Jwt::new("bench".into(), &config, live).unwrap()
}

fn signatures(c: &mut Criterion) {
    let mut group = c.benchmark_group("signature");
    for algorithm in Algorithm::ALL.into_iter().filter(|algorithm| !algorithm.is_symmetric()) {
        let key = SigningKey::generate(algorithm, "k").unwrap();
        let (set, token) = (JwkSet::parse(set(&key).as_bytes()).unwrap(), token(&key));
        let jws = Jws::parse(&token).unwrap();
        let signature = jws.signature().unwrap();
        let key = &set.keys()[0];
        group.bench_function(algorithm.label(), |b| b.iter(|| assert!(jws.is_signed_by(black_box(key), &signature))));
    }
    group.finish();
}

/// The engines that could have been chosen (docs/decisions/0002).
fn engines(c: &mut Criterion) {
    let key = SigningKey::generate(Algorithm::EdDsa, "k").unwrap();
    let token = token(&key);
    let jws = Jws::parse(&token).unwrap();
    let (message, signature) = (jws.signing_input(), jws.signature().unwrap());
    let point = URL_SAFE_NO_PAD.decode(key.to_public_jwk().unwrap()["x"].as_str().unwrap()).unwrap();
    let openssl = PKey::public_key_from_raw_bytes(&point, Id::ED25519).unwrap();
    let mut group = c.benchmark_group("engine");
    group.bench_function("EdDSA openssl", |b| {
        b.iter(|| assert!(Verifier::new_without_digest(black_box(&openssl)).unwrap().verify_oneshot(&signature, message).unwrap()));
    });
    let ours = Key::from_secret(&[7; 32]).unwrap();
    let tag = HS256Key::from_bytes(&[7; 32]).authentication_tag(message);
    group.bench_function("HS256 jwt-simple", |b| b.iter(|| assert!(ours.verify(Algorithm::Hs256, &black_box(message).into(), &tag))));
    let hmac = PKey::hmac(&[7; 32]).unwrap();
    group.bench_function("HS256 openssl", |b| {
        b.iter(|| {
            let mut out = [0; 32];
            Signer::new(MessageDigest::sha256(), black_box(&hmac)).unwrap().sign_oneshot(&mut out, message).unwrap();
            assert!(openssl::memcmp::eq(&out, &tag));
        });
    });
    group.finish();
}

fn judgement(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let client = Client { address: [203, 0, 113, 9].into(), through_trusted_proxy: false };
    let mut group = c.benchmark_group("judgement");
    for algorithm in [Algorithm::Rs256, Algorithm::Es256] {
        let key = SigningKey::generate(algorithm, "k").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_str(&format!("Bearer {}", token(&key))).unwrap());
        let request = Request::new(&http::Method::GET, "api.example.com", "/orders/7", &headers, &client);
        // A cache too small for any entry makes every token new.
        let none = LiveState { tokens: Arc::new(TokenCache::new(1)), ..LiveState::default() };
        for (name, live) in [("known", LiveState::default()), ("new", none)] {
            let jwt = authenticator(&key, &live);
            group.bench_function(format!("{name} {}", algorithm.label()), |b| {
                b.iter(|| assert!(matches!(runtime.block_on(jwt.authenticate(black_box(&request), NOW)), Verdict::Accept(_))));
            });
            assert_eq!(live.tokens.is_empty(), name == "new");
        }
    }
    group.finish();
}

/// Finding a known token by a keyed fast hash and a comparison, against finding it by SHA-256 (docs/decisions/0004).
fn cache_keys(c: &mut Criterion) {
    let token = token(&SigningKey::generate(Algorithm::Rs256, "k").unwrap());
    let (seeds, other) = (ahash::RandomState::new(), token.clone());
    let mut group = c.benchmark_group("cache key");
    group.bench_function("keyed ahash and comparison", |b| {
        b.iter(|| (seeds.hash_one(black_box(token.as_bytes())), black_box(&token) == black_box(&other)));
    });
    group.bench_function("SHA-256", |b| b.iter(|| openssl::sha::sha256(black_box(token.as_bytes()))));
    group.finish();
}

criterion_group!(benches, signatures, engines, judgement, cache_keys);
criterion_main!(benches);
