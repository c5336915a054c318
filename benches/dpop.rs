//! What a proof of the holder's key costs: a known token alone, with a proof of each algorithm, with a nonce, and the signature within.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a bench that cannot be set up has to fail"
)]

use std::cell::Cell;
use std::hint::black_box;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use edgeward::authenticators::Verdict;
use edgeward::authenticators::jwt::Jwt;
use edgeward::config::{self, Authenticator, System};
use edgeward::jose::{Algorithm, Jws, SigningKey, jwk};
use edgeward::live::LiveState;
use edgeward::request::{Client, Now, Rejection, Request};
use http::{HeaderMap, HeaderValue, Method};
use openssl::sha::sha256;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const NOW: Now = Now { monotonic: Duration::from_secs(100), unix: Duration::from_secs(1_800_000_000) };

struct Bench {
    issuer: SigningKey,
    runtime: Runtime,
    proofs: Cell<u64>,
}

impl Bench {
    fn jwt(&self, dpop: &str) -> Jwt {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("jwks.json"), json!({"keys": [self.issuer.to_public_jwk().unwrap()]}).to_string()).unwrap();
        let path = folder.path().join("edgeward.yaml");
        let yaml = format!(
            "listeners: [{{address: 127.0.0.1:1}}]
upstreams: {{demo: {{builtin: echo}}}}
authenticators:
  a:
    jwt:
      issuer: https://issuer.test
      audiences: [orders]
      keys: {{jwks_file: jwks.json}}
      from: [{{header: Authorization, scheme: DPoP}}, {{header: Authorization, scheme: Bearer}}]
      dpop: {dpop}
routes: [{{name: r, path: /, policy: {{authenticate: a}}, upstream: demo}}]
"
        );
        std::fs::write(&path, yaml).unwrap();
        let config = config::load(&path, &System).config.unwrap();
        let (name, Authenticator::Jwt(jwt)) = &config.authenticators[0] else { unreachable!() };
        Jwt::new(name.value.clone(), jwt, &LiveState::default()).unwrap()
    }

    fn token(&self, confirmation: Option<&SigningKey>) -> String {
        let mut claims = json!({"iss": "https://issuer.test", "aud": "orders", "sub": "alice", "exp": 1_800_003_600u64});
        if let Some(holder) = confirmation {
            let thumbprint = jwk::thumbprint(&holder.to_public_jwk().unwrap()).unwrap();
            claims["cnf"] = json!({"jkt": URL_SAFE_NO_PAD.encode(thumbprint)});
        }
        self.issuer.sign(claims.as_object().unwrap()).unwrap()
    }

    /// A proof that was not seen before.
    fn proof(&self, holder: &SigningKey, algorithm: Algorithm, token: &str, nonce: Option<&str>) -> String {
        self.proofs.set(self.proofs.get() + 1);
        let header = json!({"typ": "dpop+jwt", "alg": algorithm.label(), "jwk": public(holder)});
        let mut claims = json!({
            "jti": format!("0a4c7d2e-5f3b-4b7e-{:016x}", self.proofs.get()), "htm": "GET", "htu": "https://api.example.com/orders/7",
            "iat": 1_800_000_000u64, "ath": URL_SAFE_NO_PAD.encode(sha256(token.as_bytes())),
        });
        if let Some(nonce) = nonce {
            claims["nonce"] = json!(nonce);
        }
        holder.sign_parts(header.to_string().as_bytes(), claims.to_string().as_bytes()).unwrap()
    }

    fn judge(&self, jwt: &Jwt, scheme: &str, token: &str, proof: Option<&str>) -> Verdict {
        let headers = headers(scheme, token, proof);
        self.judge_headers(jwt, &headers)
    }

    fn judge_headers(&self, jwt: &Jwt, headers: &HeaderMap) -> Verdict {
        let client = Client { address: [203, 0, 113, 9].into(), through_trusted_proxy: false };
        let request = Request { scheme: "https", ..Request::new(&Method::GET, "api.example.com", "/orders/7", headers, &client) };
        self.runtime.block_on(jwt.authenticate(black_box(&request), NOW))
    }
}

/// What callers send of their key: the members that it is made of.
fn public(holder: &SigningKey) -> Value {
    let mut jwk = holder.to_public_jwk().unwrap();
    jwk.as_object_mut().unwrap().retain(|name, _| !["kid", "alg", "use"].contains(&name.as_str()));
    jwk
}

fn headers(scheme: &str, token: &str, proof: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_str(&format!("{scheme} {token}")).unwrap());
    if let Some(proof) = proof {
        headers.insert("dpop", HeaderValue::from_str(proof).unwrap());
    }
    headers
}

fn proofs(c: &mut Criterion) {
    let bench = Bench {
        issuer: SigningKey::generate(Algorithm::Es256, "i").unwrap(),
        runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
        proofs: Cell::new(0),
    };
    let mut group = c.benchmark_group("dpop");
    let (jwt, free) = (bench.jwt("{}"), bench.token(None));
    let bearer = headers("Bearer", &free, None);
    group.bench_function("a known token without", |b| b.iter(|| assert!(matches!(bench.judge_headers(&jwt, &bearer), Verdict::Accept(_)))));
    for algorithm in [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256] {
        let holder = SigningKey::generate(algorithm, "h").unwrap();
        let token = bench.token(Some(&holder));
        for nonces in [false, true] {
            if nonces && algorithm != Algorithm::Es256 {
                continue;
            }
            let jwt = bench.jwt(if nonces { "{nonce: {lifetime: 1d}}" } else { "{}" });
            let nonce = match bench.judge(&jwt, "DPoP", &token, Some(&bench.proof(&holder, algorithm, &token, None))) {
                Verdict::Reject(Rejection::NonceWanted(nonce)) if nonces => Some(nonce.to_str().unwrap().to_owned()),
                Verdict::Accept(_) if !nonces => None,
                other => panic!("{other:?}"),
            };
            let name = format!("with a proof by {}{}", algorithm.label(), if nonces { " and a nonce" } else { "" });
            group.bench_function(name, |b| {
                b.iter_batched_ref(
                    || headers("DPoP", &token, Some(&bench.proof(&holder, algorithm, &token, nonce.as_deref()))),
                    |headers| assert!(matches!(bench.judge_headers(&jwt, headers), Verdict::Accept(_))),
                    BatchSize::SmallInput,
                );
            });
        }
        let proof = bench.proof(&holder, algorithm, &token, None);
        let (jws, key) = (Jws::parse(&proof).unwrap(), jwk::parse_key(&public(&holder)).unwrap());
        let signature = jws.signature().unwrap();
        group.bench_function(format!("the signature alone by {}", algorithm.label()), |b| {
            b.iter(|| assert!(jws.is_signed_by(black_box(&key), &signature)));
        });
    }
    group.finish();
}

criterion_group!(benches, proofs);
criterion_main!(benches);
