//! What API keys cost: the look-up among ten, a thousand and a million, and starting with a million (the figures of docs/api-keys.md).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that meets the unexpected stops there"
)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use edgeward::authenticators::api_key::ApiKey;
use edgeward::authenticators::{Verdict, key_format};
use edgeward::config::{self, At, KeyStore, Location, Place};
use edgeward::live::LiveState;
use edgeward::live::api_keys::{ApiKeys, KeyHash, Record, Source};
use edgeward::live::database::Opening;
use edgeward::live::key_store;
use edgeward::request::{Client, Now, Request};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const NOW: Now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_800_000_000) };

const GENERATE: &str = "EDGEWARD_BENCH_GENERATE";

fn main() {
    // In a process of its own, so that what it frees is not taken for the memory of the keys.
    if let (Some(path), Ok(count)) = (std::env::var_os(GENERATE), std::env::var("COUNT")) {
        return generate(Path::new(&path), count.parse().expect("a number"));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut criterion = Criterion::default().configure_from_args();
    for count in [10, 1_000, 1_000_000] {
        let path = folder.path().join(format!("{count}.db"));
        let itself = std::env::current_exe().expect("a path");
        let generated = Command::new(itself).env(GENERATE, &path).env("COUNT", count.to_string()).status().expect("runs");
        assert!(generated.success());
        let (before, started) = (resident(), Instant::now());
        let live = LiveState::default();
        let api_key = ApiKey::new("partners".into(), &configuration(&path), &live);
        let keys = live.api_keys.find_or_create(&Source::Database(path.clone()), || ApiKeys::new(Source::Database(path.clone())));
        keys.refresh().expect("readable");
        let (took, bytes) = (started.elapsed(), resident().saturating_sub(before));
        println!("{count} keys: read in {took:?}, {} MiB, {} bytes per key", bytes >> 20, bytes / count);
        look_up(&mut criterion, &api_key, count);
        change_one(&mut criterion, &keys, &path, count);
    }
    criterion.final_summary();
}

fn look_up(criterion: &mut Criterion, api_key: &ApiKey, count: usize) {
    let client = Client { address: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), through_trusted_proxy: false };
    let mut group = criterion.benchmark_group("api_key");
    // A hundred keys in turn for the warm case; ten thousand across the table for one that does not fit the processor's cache.
    for (case, spread, known) in [("warm", 100, true), ("scattered", 10_000, true), ("unknown", 100, false)] {
        let presented: Vec<HeaderMap> = (0..spread)
            .map(|n: usize| {
                let key = if known { key(n * (count / spread).max(1) % count) } else { key(count + n) };
                HeaderMap::from_iter([(HeaderName::from_static("x-api-key"), HeaderValue::from_str(&key).expect("ASCII"))])
            })
            .collect();
        let mut turn = presented.iter().cycle();
        group.bench_function(BenchmarkId::new(case, count), |bencher| {
            bencher.iter(|| {
                let headers = turn.next().expect("endless");
                let request = Request { route: "orders", ..Request::new(&Method::GET, "h", "/", headers, &client) };
                let verdict = api_key.authenticate(black_box(&request), NOW);
                assert_eq!(matches!(verdict, Verdict::Accept(_)), known);
            });
        });
    }
    group.finish();
}

/// What the gateway pays when another process adds one key: noticing, reading and adding it.
fn change_one(criterion: &mut Criterion, keys: &ApiKeys, path: &Path, count: usize) {
    let mut store = key_store::KeyStore::open(path, Opening::Existing, Duration::from_secs(5)).expect("open");
    let mut next = count;
    criterion.bench_function(&format!("follow_one_new_key/{count}"), |bencher| {
        bencher.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                store.insert(&[record(next)]).expect("new");
                next += 1;
                let started = Instant::now();
                keys.refresh().expect("readable");
                took += started.elapsed();
            }
            took
        });
    });
    criterion.bench_function(&format!("poll_without_news/{count}"), |bencher| bencher.iter(|| keys.refresh().expect("readable")));
}

fn generate(path: &Path, count: usize) {
    let mut store = key_store::KeyStore::open(path, Opening::Create, Duration::from_secs(5)).expect("create");
    let records: Vec<Record> = (0..count).map(record).collect();
    let started = Instant::now();
    store.insert(&records).expect("new");
    println!("{count} keys: imported in {:?}, {} MiB on disk", started.elapsed(), std::fs::metadata(path).map_or(0, |m| m.len()) >> 20);
}

fn key(n: usize) -> String {
    let mut secret = [7; 32];
    secret[..8].copy_from_slice(&n.to_be_bytes());
    key_format::compose("ck_live_", &id(n), &secret).to_string()
}

/// In no order, as those of real keys.
fn id(n: usize) -> String {
    key_format::compose_id(*KeyHash::of(&n.to_string()).0.first_chunk().expect("32 bytes"))
}

/// Two thousand consumers with a handful of rights each, as a large installation has them.
fn record(n: usize) -> Record {
    let consumer = n % 2_000;
    Record {
        id: id(n).into(),
        sha256: KeyHash::of(&key(n)),
        previous: None,
        consumer: format!("consumer-{consumer}").into(),
        scopes: vec!["orders:read".into(), "orders:write".into()],
        routes: vec!["orders".into(), format!("route-{}", consumer % 50).into()],
        allow: vec!["203.0.113.0/24".parse().expect("a network")],
        plan: Some("gold".into()),
        created: Some(1_790_000_000),
        not_before: None,
        expires: Some(1_900_000_000),
        revoked: None,
    }
}

fn configuration(path: &Path) -> config::ApiKey {
    let place = Place { file: Arc::from("bench"), line: 1, column: 1, path: Arc::from("") };
    config::ApiKey {
        from: vec![Location::Header { name: HeaderName::from_static("x-api-key"), scheme: None }],
        prefix: "ck_live_".into(),
        keys: At { value: KeyStore::Database(PathBuf::from(path)), place },
    }
}

/// The resident memory of this process in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).map_or(0, |pages| pages * 4096)
}
