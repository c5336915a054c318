//! The router at ten and at ten thousand routes, beside `matchit` on the paths that both can match.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that meets the unexpected stops there"
)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use edgeward::route::router::{Entry, ParametersBuffer, Router};
use http::Method;

fn router(c: &mut Criterion) {
    let mut group = c.benchmark_group("router");
    for routes in [10, 10_000] {
        let patterns: Vec<String> = (0..routes)
            .map(|at| match at % 3 {
                0 => format!("/service{}/orders/{{id}}", at / 3),
                1 => format!("/service{}/orders/{{id}}/lines/{{line}}", at / 3),
                _ => format!("/service{}/files/{{*rest}}", at / 3),
            })
            .collect();
        let chosen = routes / 6;
        let paths = [
            format!("/service{chosen}/orders/4711"),
            format!("/service{chosen}/orders/4711/lines/7"),
            format!("/service{chosen}/files/2026/11/report.pdf"),
        ];
        let hosts = vec!["*.example.com", "example.com"];
        let entries = patterns.iter().map(|path| Entry { hosts: hosts.clone(), path, methods: &[Method::GET], value: path.len() });
        let router = Router::compile(entries.collect()).expect("sound patterns");
        group.bench_function(BenchmarkId::new("edgeward", routes), |b| {
            b.iter(|| {
                for path in &paths {
                    let mut parameters = ParametersBuffer::default();
                    let found = router.find(black_box("api.example.com"), black_box(path), &Method::GET, &mut parameters);
                    black_box((found.expect("a route"), parameters.parameters().0.len()));
                }
            });
        });
        let mut matchit = matchit::Router::new();
        for pattern in &patterns {
            matchit.insert(pattern, pattern.len()).expect("sound patterns");
        }
        group.bench_function(BenchmarkId::new("matchit", routes), |b| {
            b.iter(|| {
                for path in &paths {
                    let found = matchit.at(black_box(path)).expect("a route");
                    black_box((found.value, found.params.len()));
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, router);
criterion_main!(benches);
