//! The address rules of a policy at ten and at a hundred thousand prefixes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that meets the unexpected stops there"
)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use edgeward::route::ip_rules::IpRules;
use ipnet::IpNet;

fn ip_rules(c: &mut Criterion) {
    let mut group = c.benchmark_group("ip_rules");
    // Multiplying by an odd constant spreads prefixes and addresses over the whole space, the same ones in each run.
    let spread = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let v4 = |at: u64| IpAddr::V4(Ipv4Addr::from((spread(at) >> 32) as u32));
    let v6 = |at: u64| IpAddr::V6(Ipv6Addr::from(u128::from(spread(at)) << 64));
    for prefixes in [10, 100_000] {
        for (family, length, address) in [("v4", 28, &v4 as &dyn Fn(u64) -> IpAddr), ("v6", 56, &v6)] {
            let networks: Vec<IpNet> = (0..prefixes).map(|at| IpNet::new(address(at), length).expect("a prefix")).collect();
            let addresses: Vec<IpAddr> = (0..4096).map(|at| address(at * 7 + 3)).collect();
            let rules = IpRules::new(&networks, None);
            let mut asked = addresses.iter().cycle();
            group.bench_function(BenchmarkId::new(family, prefixes), |b| {
                b.iter(|| asked.next().map(|address| rules.check(black_box(*address)).is_ok()));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, ip_rules);
criterion_main!(benches);
