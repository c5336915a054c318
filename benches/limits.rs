//! Counting a request: each algorithm by one key, a thousand and a million, on one thread and on several.

#![allow(clippy::expect_used, clippy::disallowed_methods, reason = "a bench measures time itself, and stops when it cannot be set up")]

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use edgeward::live::limits::concurrency::Concurrency;
use edgeward::live::limits::{Algorithm, Key, KeyBuilder, Limits, Terms};
use edgeward::live::quotas::{Ledger, Period, QuotaTerms, Quotas};
use edgeward::request::Now;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Rates so high that everything passes, and every key stays live.
const TERMS: [(&str, Terms); 4] = [
    ("fixed_window", terms(Algorithm::FixedWindow)),
    ("sliding_window", terms(Algorithm::SlidingWindow)),
    ("token_bucket", terms(Algorithm::TokenBucket { burst: 1_000_000_000 })),
    ("leaky_bucket", terms(Algorithm::LeakyBucket { queue: 1_000_000_000, max_wait: Duration::from_secs(1_000_000) })),
];

const fn terms(algorithm: Algorithm) -> Terms {
    let limit = match algorithm {
        Algorithm::FixedWindow | Algorithm::SlidingWindow => u64::MAX >> 1,
        Algorithm::TokenBucket { .. } | Algorithm::LeakyBucket { .. } => 1_000_000,
    };
    Terms { limit, window: Duration::from_secs(1), algorithm }
}

fn key(number: u64) -> Key {
    let mut key = KeyBuilder::default();
    key.part(0, &number.to_le_bytes());
    key.finish()
}

/// The time in which each of the threads does it `iterations` times at once, each with keys of its own as far as there are enough.
fn together(threads: usize, iterations: u64, keys: &[Key], each: impl Fn(&Key) + Sync) -> Duration {
    let start = Barrier::new(threads);
    let run = |thread: usize| {
        let share = keys.len() / threads;
        let keys = keys.get(thread * share..(thread + 1) * share).filter(|share| !share.is_empty()).unwrap_or(keys);
        start.wait();
        let began = Instant::now();
        keys.iter().cycle().take(iterations as usize).for_each(&each);
        began.elapsed()
    };
    std::thread::scope(|scope| {
        let run = &run;
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        running.into_iter().map(|thread| thread.join().expect("a thread that counts")).max().unwrap_or_default()
    })
}

fn limits(c: &mut Criterion) {
    let mut group = c.benchmark_group("limits");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(1));
    let keys: Vec<Key> = (0..1_000_000).map(key).collect();
    for (name, terms) in &TERMS {
        for (many, count) in [("one key", 1), ("1000 keys", 1_000), ("1000000 keys", 1_000_000)] {
            let keys = keys.get(..count).unwrap_or_default();
            let limits = Limits::default();
            let charge = |key: &Key| {
                black_box(limits.charge(black_box(key), terms, 1, Duration::from_secs(1)));
            };
            keys.iter().for_each(charge);
            for threads in [1, 2, 4, 8] {
                group.bench_function(BenchmarkId::new(format!("{name}, {many}"), threads), |b| {
                    b.iter_custom(|iterations| together(threads, iterations, keys, charge));
                });
            }
        }
    }
    let keys = keys.get(..1_000).unwrap_or_default();
    let concurrency = Concurrency::default();
    for threads in [1, 2, 4, 8] {
        group.bench_function(BenchmarkId::new("concurrency, 1000 keys", threads), |b| {
            b.iter_custom(|iterations| together(threads, iterations, keys, |key| drop(black_box(concurrency.enter(key, 10)))));
        });
    }
    quotas(&mut group, keys);
    group.finish();
}

/// A month, which is one slot, and thirty days, which are sixty; what is charged is written behind meanwhile.
fn quotas(group: &mut BenchmarkGroup<'_, WallTime>, keys: &[Key]) {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |second| Now { monotonic: Duration::ZERO, unix: Duration::from_secs(second) };
    let now = at(1_795_392_000);
    for (name, period) in [("month", Period::Month), ("30d", Period::Rolling(Duration::from_secs(30 * 86_400)))] {
        let ledger = Arc::new(Ledger::new(&folder.path().join(name)));
        ledger.open(now).expect("a database");
        let quotas = Quotas::new(Arc::clone(&ledger), &name.into());
        let terms = QuotaTerms { limit: u64::MAX, period };
        for half in 0..60 {
            keys.iter().for_each(|key| {
                quotas.charge(key, &terms, 1, at(1_795_392_000 - half * 43_200));
            });
        }
        for threads in [1, 2] {
            group.bench_function(BenchmarkId::new(format!("quota of a {name}, 1000 keys"), threads), |b| {
                b.iter_custom(|iterations| {
                    together(threads, iterations, keys, |key| {
                        black_box(quotas.charge(black_box(key), &terms, 1, now));
                    })
                });
            });
            ledger.flush();
        }
    }
}

criterion_group!(benches, limits);
criterion_main!(benches);
