//! Each way to prove who calls where nothing is new, and what they look things up in: key sets, the verified tokens, the API keys.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a bench that cannot be set up has to fail"
)]

mod support;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use edgeward::jose::{Algorithm, JwkSet, Jws, SigningKey};
use edgeward::live::key_set::{Fetch, KeySet, KeySetId, Source, Upkeep};
use edgeward::live::token_cache::TokenCache;
use edgeward::request::Clock;
use futures_util::FutureExt;
use http::{HeaderValue, Response};
use serde_json::json;

use support::ways::{WAYS, gate};
use support::{NOW, VERIFIER, together, verified};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// From the request to the proof, alone and in the combinations of the policies.
fn warm(c: &mut Criterion) {
    let gate = gate();
    let mut group = c.benchmark_group("authenticator");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(1));
    for way in WAYS.iter().filter(|way| !["public", "public-ip", "api-key-limit", "jwt-whole", "jwt-conditions"].contains(&way.name)) {
        let caller = way.caller();
        gate.warm(&caller, way.ends);
        gate.request(&caller, |route, request| {
            let authenticators = route.policy.authenticators.as_ref().expect("not public");
            group.bench_function(way.name, |b| {
                b.iter(|| authenticators.identify(black_box(request), NOW).now_or_never().expect("it waits for nobody").is_ok());
            });
            for threads in [1, 2, 4, 8] {
                group.bench_function(BenchmarkId::new(format!("{} on threads", way.name), threads), |b| {
                    b.iter_custom(|rounds| {
                        together(threads, rounds, |_, _| {
                            black_box(authenticators.identify(black_box(request), NOW).now_or_never().expect("it waits for nobody")).ok();
                        })
                    });
                });
            }
        });
    }
    group.finish();
}

#[derive(Debug)]
struct Fixed(Bytes);

#[async_trait::async_trait]
impl Fetch for Fixed {
    async fn get(&self, _: &str, _: Option<&HeaderValue>, _: Duration) -> Result<Response<Bytes>, String> {
        Ok(Response::new(self.0.clone()))
    }
}

/// Finding the key of a token in a set of one, ten and a hundred, and getting hold of a set that may be replaced meanwhile.
fn key_sets(c: &mut Criterion) {
    let mut group = c.benchmark_group("key set");
    for keys in [1, 10, 100] {
        let generated: Vec<_> =
            (0..keys).map(|at| SigningKey::generate(Algorithm::Es256, &format!("2026-11-{at}")).expect("a key")).collect();
        let jwks: Vec<_> = generated.iter().map(|key| key.to_public_jwk().expect("a JWK")).collect();
        let document = json!({"keys": jwks}).to_string();
        let set = JwkSet::parse(document.as_bytes()).expect("a set");
        let token = generated[keys - 1].sign(json!({"sub": "alice"}).as_object().expect("claims")).expect("signed");
        let jws = Jws::parse(&token).expect("a token");
        group.bench_function(BenchmarkId::new("by key id", keys), |b| b.iter(|| set.candidates(black_box(&jws.header)).next().is_some()));
        let fingerprint = *set.keys()[keys - 1].fingerprint();
        group.bench_function(BenchmarkId::new("by fingerprint", keys), |b| b.iter(|| set.find(black_box(&fingerprint)).is_some()));
        if keys == 1 {
            let set = kept(document.into());
            group.bench_function("held", |b| b.iter(|| black_box(set.current().as_ref().map(|held| held.generation()))));
        }
    }
    group.finish();
}

/// A set whose first fetch has ended.
fn kept(document: Bytes) -> Arc<KeySet> {
    let id = KeySetId { source: Source::Jwks("https://issuer.test/jwks".into()), ca: None };
    let set = Arc::new(KeySet::new(id, Arc::new(Fixed(document))));
    let day = Duration::from_secs(86_400);
    let _upkeep = set.keep_up(Upkeep { timeout: day, refresh: day, max_stale: day, store: None });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let clock: Clock = Arc::new(|| NOW);
    runtime.block_on(async {
        tokio::spawn(KeySet::maintain(Arc::downgrade(&set), clock));
        set.started(day).await;
    });
    assert!(set.current().is_some());
    set
}

fn tokens(c: &mut Criterion) {
    let mut group = c.benchmark_group("token cache");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(1));
    for tokens in [1, 10_000] {
        let cache = TokenCache::new(1 << 32);
        let find = |token: &str| cache.find(token).and_then(|known| cache.find_as(&VERIFIER, known));
        let known: Vec<String> = (0..tokens).map(support::token).collect();
        known.iter().for_each(|token| drop(cache.insert(verified(token))));
        let unknown: Vec<String> = (0..tokens).map(|at| support::token(at + tokens)).collect();
        for (name, asked, found) in [("hit", &known, true), ("miss", &unknown, false)] {
            let mut turn = asked.iter().cycle();
            group.bench_function(BenchmarkId::new(name, tokens), |b| {
                b.iter(|| assert_eq!(find(black_box(turn.next().expect("endless"))).is_some(), found));
            });
        }
        for threads in [1, 2, 4, 8] {
            // One token is everybody's; of ten thousand each thread is at another.
            group.bench_function(BenchmarkId::new(format!("hit among {tokens} on threads"), threads), |b| {
                b.iter_custom(|rounds| {
                    together(threads, rounds, |thread, round| {
                        let at = (round as usize + thread * known.len() / threads) % known.len();
                        black_box(find(&known[at]));
                    })
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, warm, key_sets, tokens);
criterion_main!(benches);
