//! What a policy asks beside who calls, and what it tells the upstream: conditions, filters, and the headers that are stripped and set.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a bench that cannot be set up has to fail"
)]

mod support;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use edgeward::admit::admit;
use edgeward::authorizers::expression::Language;
use edgeward::config::FilterAction;
use edgeward::metrics::Metrics;
use edgeward::route::filters::{Filter, Filters};
use edgeward::route::rate_limits::Charge;
use futures_util::FutureExt;

use support::NOW;
use support::ways::{Way, gate};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const CONDITIONS: [(&str, &str); 6] = [
    ("method", "request.method == 'GET'"),
    ("network", "inNetwork(client.ip, '203.0.113.0/24')"),
    ("claim", "claims.tenant == 'acme'"),
    ("claim or role", "claims.tenant == 'acme' || 'auditor' in identity.roles"),
    ("claim that may be absent", "!(has(claims.trial) && claims.trial == 'yes' && request.method != 'GET')"),
    ("pattern in a header", "!request.headers['user-agent'].exists(agent, agent.matches('(?i)sqlmap|nikto'))"),
];

fn conditions(c: &mut Criterion) {
    let (gate, language, metrics, way) = (gate(), Language::default(), Metrics::new().expect("metrics"), Way::named("jwt"));
    let caller = way.caller();
    gate.warm(&caller, way.ends);
    gate.request(&caller, |route, request| {
        let admission = admit(route, request, NOW, || 0).now_or_never().expect("it waits for nobody").expect("admitted");
        let identity = admission.identity().map(|identity| &**identity);
        let mut group = c.benchmark_group("condition");
        for (name, text) in CONDITIONS {
            let condition = language.read(text).expect("an expression");
            group.bench_function(name, |b| b.iter(|| assert_eq!(condition.holds(black_box(request), identity), Ok(true))));
        }
        group.finish();
        let mut group = c.benchmark_group("filters");
        for count in [1, 4, 16] {
            let filter = |at: usize| {
                let when = language.read(&format!("request.path == '/{at}'")).expect("an expression");
                Filter::new(&Arc::from("f"), when, FilterAction::Deny, metrics.filter_matches("f", "deny"))
            };
            let filters = Filters::new((0..count).map(filter).collect());
            group.bench_function(count.to_string(), |b| {
                b.iter(|| assert!(filters.check(black_box(request), &mut Charge::new(1, NOW)).is_ok()));
            });
        }
        group.finish();
    });
}

fn forward(c: &mut Criterion) {
    let gate = gate();
    let mut group = c.benchmark_group("forward");
    for name in ["public", "api-key", "jwt", "jwt-whole", "jwt-and-key", "certificate"] {
        let way = Way::named(name);
        let caller = way.caller();
        gate.warm(&caller, way.ends);
        gate.request(&caller, |route, request| {
            let admission = admit(route, request, NOW, || 0).now_or_never().expect("it waits for nobody").expect("admitted");
            let identity = admission.identity().map(|identity| &**identity);
            group.bench_function(name, |b| b.iter(|| gate.forward(route, &caller, black_box(identity))));
        });
    }
    group.finish();
}

criterion_group!(benches, conditions, forward);
criterion_main!(benches);
