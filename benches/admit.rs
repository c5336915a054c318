//! The whole decision, from the bytes of a head to the head that the upstream is sent, on one thread and on several.

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
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use support::ways::{WAYS, gate};
use support::{Caller, Gate, together};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn pass(gate: &Gate, caller: &Caller) {
    black_box(gate.pass(black_box(caller))).ok();
}

fn whole(c: &mut Criterion) {
    let gate = gate();
    let mut group = c.benchmark_group("admit");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for way in &WAYS {
        let caller = way.caller();
        gate.warm(&caller, way.ends);
        group.bench_function(way.name, |b| b.iter(|| pass(&gate, &caller)));
    }
    group.finish();
}

/// All threads come as one caller, the worst that can be shared: the same route, key, token and count. The time is of one round of all
/// threads, so what shares nothing takes as long with more threads as long as there are cores for them.
fn contention(c: &mut Criterion) {
    let gate = gate();
    let mut group = c.benchmark_group("admit on threads");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(1));
    for way in WAYS.iter().filter(|way| way.ends == "ok") {
        let caller = way.caller();
        gate.warm(&caller, way.ends);
        for threads in [1, 2, 4, 8] {
            group.throughput(Throughput::Elements(threads as u64));
            group.bench_function(BenchmarkId::new(way.name, threads), |b| {
                b.iter_custom(|rounds| together(threads, rounds, |_, _| pass(&gate, &caller)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, whole, contention);
criterion_main!(benches);
