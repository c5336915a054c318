//! Counting a request: each algorithm by one key, a thousand and a million, on one thread and on several.

#![allow(clippy::expect_used, clippy::disallowed_methods, reason = "a bench measures time itself, and stops when it cannot be set up")]

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use edgeward::live::limits::concurrency::Concurrency;
use edgeward::live::limits::{Algorithm, Key, KeyBuilder, Limits, Terms};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Rates so high that everything passes, and every key stays live.
const TERMS: [(&str, Terms); 4] = [
    ("fixed_window", terms(Algorithm::FixedWindow)),
    ("sliding_window", terms(Algorithm::SlidingWindow)),
    ("token_bucket", terms(Algorithm::TokenBucket { burst: u64::MAX >> 32 })),
    ("leaky_bucket", terms(Algorithm::LeakyBucket { queue: u64::MAX >> 32, max_wait: Duration::from_secs(1 << 30) })),
];

const fn terms(algorithm: Algorithm) -> Terms {
    let limit = match algorithm {
        Algorithm::FixedWindow | Algorithm::SlidingWindow => u64::MAX >> 1,
        Algorithm::TokenBucket { .. } | Algorithm::LeakyBucket { .. } => 1_000,
    };
    Terms { limit, window: Duration::from_secs(60), algorithm }
}

fn key(number: u64) -> Key {
    let mut key = KeyBuilder::default();
    key.part(0, &number.to_le_bytes());
    key.finish()
}

/// The time in which each of the threads does it `iterations` times at once, each beginning elsewhere among the keys.
fn together(threads: usize, iterations: u64, keys: &[Key], each: impl Fn(&Key) + Sync) -> Duration {
    let start = Barrier::new(threads);
    let run = |thread: usize| {
        let mut keys = keys.iter().cycle().skip(thread * keys.len() / threads);
        start.wait();
        let began = Instant::now();
        keys.by_ref().take(iterations as usize).for_each(&each);
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
    group.finish();
}

criterion_group!(benches, limits);
criterion_main!(benches);
