//! Counting a request, by many keys and by one, on one thread and on several.

#![allow(clippy::expect_used, clippy::disallowed_methods, reason = "a bench measures time itself, and stops when it cannot be set up")]

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use edgeward::live::limits::{Algorithm, Key, KeyBuilder, Limits, Terms};

const TERMS: Terms = Terms { limit: u64::MAX, window: Duration::from_secs(60), algorithm: Algorithm::SlidingWindow };

fn key(number: u64) -> Key {
    let mut key = KeyBuilder::default();
    key.part(0, &number.to_le_bytes());
    key.finish()
}

/// The time in which each of the threads counts `iterations` requests at once.
fn together(threads: u64, iterations: u64, limits: &Limits, keys: &[Key]) -> Duration {
    let start = Barrier::new(threads as usize);
    let count = |thread: u64| {
        start.wait();
        let began = Instant::now();
        for key in keys.iter().cycle().skip((thread * 997) as usize).take(iterations as usize) {
            black_box(limits.charge(black_box(key), &TERMS, 1, Duration::from_secs(1)));
        }
        began.elapsed()
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || count(thread))).collect();
        running.into_iter().map(|thread| thread.join().expect("a thread that counts")).max().unwrap_or_default()
    })
}

fn limits(c: &mut Criterion) {
    let mut group = c.benchmark_group("limits");
    let keys: Vec<Key> = (0..10_000).map(key).collect();
    for threads in [1, 2, 4, 8] {
        for (name, keys) in [("10000 keys", keys.as_slice()), ("one key", keys.get(..1).unwrap_or_default())] {
            let limits = Limits::default();
            group.bench_function(BenchmarkId::new(name, threads), |b| {
                b.iter_custom(|iterations| together(threads, iterations, &limits, keys));
            });
        }
    }
    let limits = Limits::default();
    let mut next = 0;
    group.bench_function("a flood of new keys", |b| {
        b.iter(|| {
            next += 1;
            black_box(limits.charge(&key(next), &TERMS, 1, Duration::from_secs(1)))
        });
    });
    group.finish();
}

criterion_group!(benches, limits);
criterion_main!(benches);
