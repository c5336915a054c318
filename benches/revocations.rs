//! What the question costs whether a proven identity was revoked, which every request asks, remembered or not (the figures of docs/revocation.md).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that meets the unexpected stops there"
)]

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use edgeward::live::revocations::{Revocation, Revocations};
use edgeward::request::{Identity, Method, Now};
use rusqlite::Connection;
use serde_json::json;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const NOW: Now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_800_000_000) };

const ISSUER: &str = "https://login.example.com/";

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut criterion = Criterion::default().configure_from_args();
    for count in [0, 10, 1_000, 1_000_000] {
        let path = folder.path().join(format!("{count}.db"));
        let revocations = Revocations::in_database(&path, usize::MAX);
        revocations.open(NOW).expect("a new database");
        fill(&path, count);
        let (before, started) = (resident(), Instant::now());
        let revocations = Revocations::in_database(&path, usize::MAX);
        revocations.open(NOW).expect("readable");
        let (took, bytes) = (started.elapsed(), resident().saturating_sub(before));
        assert_eq!(revocations.len(), count);
        println!("{count} revocations: read in {took:?}, {} bytes each", bytes / count.max(1));
        check(&mut criterion, &revocations, count);
        if count > 0 {
            add_one(&mut criterion, &revocations, count);
        }
    }
    criterion.final_summary();
}

/// Tokens with everything that can be revoked of one: six questions. A thousand in turn, so that they are in no processor's cache by chance alone.
fn check(criterion: &mut Criterion, revocations: &Revocations, count: usize) {
    let identities: Vec<Identity> = (0..1_000).map(|n| identity(&format!("good-{n}"))).collect();
    let mut group = criterion.benchmark_group("revocations");
    let mut turn = identities.iter().cycle();
    group.bench_function(BenchmarkId::new("check", count), |bencher| {
        bencher.iter(|| {
            let identity = turn.next().expect("endless");
            assert!(revocations.check(black_box(identity)).is_ok());
        });
    });
    group.finish();
    if count > 0 {
        assert!(revocations.check(&identity(&(count - 1).to_string())).is_err());
    }
}

/// What it costs to revoke one more: in the database, synced to the disk, and in the table.
fn add_one(criterion: &mut Criterion, revocations: &Revocations, count: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut next = 0;
    criterion.bench_function(&format!("revoke_one_more/{count}"), |bencher| {
        bencher.iter(|| {
            next += 1;
            let revocation = Revocation::of_id(&format!("more-{next}"), ISSUER, NOW.unix.as_secs(), NOW.unix.as_secs());
            runtime.block_on(revocations.add(revocation)).expect("writable");
        });
    });
}

fn identity(jti: &str) -> Identity {
    let mut identity = Identity::new(Method::Jwt, "customers".into(), openssl::sha::sha256(jti.as_bytes()));
    identity.subject = Some("6f1c2d3e-4b5a-4c6d-8e7f-9a0b1c2d3e4f".into());
    identity.client = Some("shop".into());
    let claims = json!({"iss": ISSUER, "sub": "6f1c2d3e-4b5a-4c6d-8e7f-9a0b1c2d3e4f", "aud": "orders", "jti": jti, "iat": 1_800_000_000,
        "exp": 1_800_000_900, "scope": "orders:read orders:write", "client_id": "shop"});
    identity.claims = claims.as_object().expect("an object").clone();
    identity
}

/// Writes revocations of each kind in one transaction: a million by themselves would take the time of a million syncs.
fn fill(path: &Path, count: usize) {
    let connection = Connection::open(path).expect("open");
    connection.execute_batch("BEGIN").expect("begin");
    {
        let sql = "INSERT INTO revocation (kind, value, issuer, before, expires, revoked, revision) VALUES (?1, ?2, ?3, NULL, NULL, 1, ?4)";
        let mut statement = connection.prepare(sql).expect("the table");
        for n in 0..count {
            // Mostly tokens by their ids, as a fleet has them, and some of every other kind.
            let kind = match n % 20 {
                0 => "token",
                1 => "subject",
                2 => "client",
                3 => "key_id",
                4 => "issuer",
                _ => "jti",
            };
            let value = if kind == "token" { openssl::sha::sha256(&n.to_be_bytes()).to_vec() } else { n.to_string().into_bytes() };
            let issuer = if kind == "jti" { ISSUER } else { "" };
            statement.execute(rusqlite::params![kind, value, issuer, i64::try_from(n + 1).expect("small")]).expect("new");
        }
        connection.execute("UPDATE revocation_change SET revision = ?1", [i64::try_from(count).expect("small")]).expect("the counter");
    }
    connection.execute_batch("COMMIT").expect("commit");
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).map_or(0, |pages| pages * 4096)
}
