//! Five million distinct keys against one limit: the longest that a single charge takes, the memory, and what the others notice.

#![allow(clippy::expect_used, clippy::disallowed_methods, reason = "a bench measures time itself, and stops when it cannot be set up")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeward::live::limits::{Algorithm, KEYS, Key, KeyBuilder, Limits, Terms};
use edgeward::request::{Clock, Now};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const FLOOD: u64 = 5_000_000;

fn key(number: u64) -> Key {
    let mut key = KeyBuilder::default();
    key.part(0, &number.to_le_bytes());
    key.finish()
}

/// MiB in memory.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("the memory of this process");
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() / 256
}

fn spread(mut took: Vec<Duration>) -> String {
    took.sort_unstable();
    let at = |share: f64| took.get(((took.len() - 1) as f64 * share) as usize).copied().unwrap_or_default();
    format!("median {:?}, 99.99% {:?}, longest {:?}", at(0.5), at(0.999_9), at(1.0))
}

fn flood(name: &str, terms: Terms) {
    let limits = Arc::new(Limits::default());
    let began = Instant::now();
    let clock: Clock = Arc::new(move || Now { monotonic: began.elapsed(), unix: Duration::ZERO });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime");
    runtime.spawn(Limits::maintain(Arc::downgrade(&limits), clock));

    let timed = |key: &Key| {
        let before = began.elapsed();
        let standing = limits.charge(key, &terms, 1, before);
        (standing, began.elapsed() - before)
    };
    let spent = key(u64::MAX);
    while timed(&spent).0.admitted {}
    let mut took = vec![Duration::MAX; FLOOD as usize];
    let before = resident();
    let (mut admitted, mut most, mut spent_again) = (0, 0, 0);
    for (number, took) in (0..FLOOD).zip(&mut took) {
        let standing;
        (standing, *took) = timed(&key(number));
        admitted += u64::from(standing.admitted);
        if number % 100_000 == 0 {
            most = most.max(resident());
            spent_again += u64::from(timed(&spent).0.admitted);
            // A real-time priority keeps other processes out of the figures, and is taken away from who never pauses.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let flooded = began.elapsed();
    println!("{name}: {FLOOD} keys in {flooded:.1?}, {admitted} admitted, at most {KEYS} held");
    println!(
        "  memory {before} MiB before, {most} MiB at most, {} keys held; the key at its limit got in {spent_again} times",
        limits.keys()
    );
    println!("  a charge of the flood: {}", spread(took));
    let mut took = Vec::new();
    while began.elapsed() < flooded + Duration::from_secs(15) {
        took.push(timed(&spent).1);
        std::thread::sleep(Duration::from_micros(20));
    }
    println!("  a charge beside the upkeep: {}; {} keys and {} MiB left", spread(took), limits.keys(), resident());
}

fn main() {
    for (name, limit, window, algorithm) in [
        ("sliding_window, 100/m", 100, 60, Algorithm::SlidingWindow),
        ("fixed_window, 1000/30d", 1_000, 30 * 86_400, Algorithm::FixedWindow),
        ("token_bucket, 1/m, burst 100", 1, 60, Algorithm::TokenBucket { burst: 100 }),
    ] {
        flood(name, Terms { limit, window: Duration::from_secs(window), algorithm });
    }
}
