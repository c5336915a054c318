//! How cost grows with what is configured and held: look-ups from ten to a million, and the starts, reloads and memory of the binary.

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
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use edgeward::authenticators::jwt::Jwt;
use edgeward::authenticators::{Accepted, Authenticator, Authenticators, Verdict, key_format};
use edgeward::config::{self, At, ClaimNames, File, KeySource, Location, Place};
use edgeward::jose::{Algorithm as Signing, SigningKey};
use edgeward::live::LiveState;
use edgeward::live::api_keys::{KeyHash, Record, Table};
use edgeward::live::database::Opening;
use edgeward::live::key_store::KeyStore;
use edgeward::live::limits::{Algorithm, Key, KeyBuilder, Limits, Terms};
use edgeward::live::token_cache::TokenCache;
use edgeward::request::{Client, Request};
use edgeward::route::ip_rules::IpRules;
use edgeward::route::router::{Entry, ParametersBuffer, Router};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method};
use ipnet::IpNet;
use serde_json::json;
use support::{NOW, VERIFIER, resident, token, verified};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const COUNTS: [usize; 6] = [10, 100, 1_000, 10_000, 100_000, 1_000_000];

fn main() {
    // First: what the curves give back would be counted against it.
    println!("| verified tokens of 750 bytes and ten claims | MiB | MiB charged | bytes each |\n|---:|---:|---:|---:|");
    memory(50_000);
    println!();
    println!("| ns of one look-up among | 10 | 100 | 1,000 | 10,000 | 100,000 | 1,000,000 |\n|---|---:|---:|---:|---:|---:|---:|");
    curve("routes", 100_000, 100_000, routes);
    curve("networks (CIDRs)", 1_000_000, 100_000, networks);
    curve("API keys", 1_000_000, 100_000, api_keys);
    curve("live keys of a limit", 1_000_000, 100_000, limit_keys);
    curve("verified tokens", 1_000_000, 100_000, tokens);
    curve("issuers, each on a route of its own", 1_000, 10_000, |count| issuers(count, false));
    curve("issuers on one route, the last of them asked", 1_000, 100, |count| issuers(count, true));
    println!("\n| the binary with | start ms | reload ms | MiB | at most MiB |\n|---|---:|---:|---:|---:|");
    for routes in [10, 1_000, 10_000] {
        binary(&format!("{routes} routes"), routes, 0);
    }
    for keys in [10, 10_000, 1_000_000] {
        binary(&format!("{keys} API keys"), 10, keys);
    }
}

/// The time of one look-up in nanoseconds, the best of five rounds: what disturbs a round makes it longer and never shorter.
fn curve<A: FnMut(usize)>(name: &str, most: usize, times: usize, built: impl Fn(usize) -> A) {
    print!("| {name} |");
    for count in COUNTS {
        if count > most {
            print!(" |");
            continue;
        }
        let mut ask = built(count);
        let round = |ask: &mut A| {
            let began = Instant::now();
            // A step that shares no factor with the count meets everything once, in no order.
            (0..times).for_each(|at| ask(at.wrapping_mul(7_368_787) % count));
            began.elapsed()
        };
        let best = (0..6).map(|_| round(&mut ask)).skip(1).min().unwrap_or_default();
        print!(" {} |", best.as_nanos() / times as u128);
        std::io::stdout().flush().expect("stdout");
    }
    println!();
}

fn routes(count: usize) -> impl FnMut(usize) {
    let patterns: Vec<String> = (0..count).map(|at| format!("/service{at}/orders/{{id}}")).collect();
    let entries = patterns.iter().map(|path| Entry { hosts: vec!["*.example.com"], path, methods: &[Method::GET], value: path.len() });
    let router = Router::compile(entries.collect()).expect("sound patterns");
    let paths: Vec<String> = (0..count).map(|at| format!("/service{at}/orders/4711")).collect();
    move |at| {
        let mut parameters = ParametersBuffer::default();
        black_box(router.find("api.example.com", &paths[at], &Method::GET, &mut parameters).is_ok());
    }
}

fn networks(count: usize) -> impl FnMut(usize) {
    // Multiplying by an odd constant spreads them over the whole space, the same ones in each run.
    let address = |at: usize| IpAddr::V4(Ipv4Addr::from((at as u32).wrapping_mul(0x9e37_79b1)));
    let networks: Vec<IpNet> = (0..count).map(|at| IpNet::new(address(at), 28).expect("a prefix")).collect();
    let rules = IpRules::new(&[], Some(&networks));
    move |at| assert!(rules.check(address(at)).is_ok())
}

fn key(number: usize) -> String {
    let mut secret = [7; 32];
    secret[..8].copy_from_slice(&number.to_be_bytes());
    key_format::compose("ck_live_", &key_id(number), &secret).to_string()
}

fn key_id(number: usize) -> String {
    key_format::compose_id(*KeyHash::of(&number.to_string()).0.first_chunk().expect("32 bytes"))
}

/// Two thousand consumers, as a large installation has them.
fn record(number: usize) -> Record {
    Record {
        id: key_id(number).into(),
        sha256: KeyHash::of(&key(number)),
        previous: None,
        consumer: format!("consumer-{}", number % 2_000).into(),
        scopes: vec!["orders:read".into(), "orders:write".into()],
        routes: Vec::new(),
        allow: Vec::new(),
        plan: None,
        created: Some(1_790_000_000),
        not_before: None,
        expires: Some(2_900_000_000),
        revoked: None,
    }
}

fn api_keys(count: usize) -> impl FnMut(usize) {
    let table: Table = (0..count).map(record).collect();
    let hashes: Vec<KeyHash> = (0..count).map(|at| KeyHash::of(&key(at))).collect();
    move |at| assert!(table.find(&hashes[at]).is_some())
}

fn limit_keys(count: usize) -> impl FnMut(usize) {
    let limits = Limits::default();
    let terms = Terms { limit: u64::MAX >> 1, window: Duration::from_secs(1), algorithm: Algorithm::SlidingWindow };
    let keys: Vec<Key> = (0..count)
        .map(|at| {
            let mut key = KeyBuilder::default();
            key.part(0, &at.to_le_bytes());
            key.finish()
        })
        .collect();
    let mut charge = move |at: usize| {
        black_box(limits.charge(&keys[at], &terms, 1, NOW.monotonic));
    };
    (0..count).for_each(&mut charge);
    charge
}

fn tokens(count: usize) -> impl FnMut(usize) {
    let cache = TokenCache::new(1 << 40);
    let tokens: Vec<String> = (0..count).map(token).collect();
    tokens.iter().for_each(|token| drop(cache.insert(verified(token))));
    move |at| {
        black_box(cache.find(&tokens[at]).and_then(|known| cache.find_as(&VERIFIER, known)).is_some());
    }
}

/// Issuers of one token each; `together`: on one route, where the one before the last says that it is not his.
fn issuers(count: usize, together: bool) -> impl FnMut(usize) {
    let key = SigningKey::generate(Signing::Es256, "k").expect("a key");
    let live = LiveState::default();
    let jwts = (0..count).map(|at| Accepted::Authenticator(Arc::new(Authenticator::Jwt(jwt(at, &key, &live)))));
    let routes: Vec<Authenticators> = if together {
        vec![Authenticators::new(Accepted::Any(jwts.collect()), None)]
    } else {
        jwts.map(|jwt| Authenticators::new(jwt, None)).collect()
    };
    let bearers: Vec<HeaderMap> = (if together { count - 1..count } else { 0..count })
        .map(|at| {
            let claims = json!({"iss": issuer(at), "aud": "api://gw", "sub": "alice", "exp": 1_900_000_000u64});
            let token = key.sign(claims.as_object().expect("claims")).expect("signed");
            HeaderMap::from_iter([(http::header::AUTHORIZATION, HeaderValue::try_from(format!("Bearer {token}")).expect("a header"))])
        })
        .collect();
    let client = Client { address: IpAddr::V4(Ipv4Addr::LOCALHOST), through_trusted_proxy: false };
    move |at| {
        let at = at % routes.len();
        let request = Request::new(&Method::GET, "api.example.com", "/", &bearers[at], &client);
        let proven = routes[at].identify(&request, NOW).now_or_never().expect("its keys are here");
        assert!(proven.is_ok());
    }
}

/// What the token cache takes, as the system sees it and as it is charged.
fn memory(count: usize) {
    let key = SigningKey::generate(Signing::Es256, "k").expect("a key");
    let live = LiveState::default();
    let jwt = jwt(0, &key, &live);
    let client = Client { address: IpAddr::V4(Ipv4Addr::LOCALHOST), through_trusted_proxy: false };
    let present = |number: usize| {
        let claims = json!({
            "iss": issuer(0), "aud": "api://gw", "exp": 1_900_000_000u64, "iat": 1_790_000_000u64,
            "sub": format!("auth0|{number:024}"), "jti": format!("{:032x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            "client_id": "mobile-app-production", "scope": "openid profile email orders:read orders:write", "roles": ["customer", "beta"],
            "https://example.com/tenant": format!("{:0>145}", number % 2_000),
        });
        let token = key.sign(claims.as_object().expect("claims")).expect("signed");
        let headers =
            HeaderMap::from_iter([(http::header::AUTHORIZATION, HeaderValue::try_from(format!("Bearer {token}")).expect("a header"))]);
        let request = Request::new(&Method::GET, "api.example.com", "/", &headers, &client);
        assert!(matches!(jwt.authenticate(&request, NOW).now_or_never(), Some(Verdict::Accept(_))));
        token.len()
    };
    // The first thousand pay for what the others find there.
    (0..1_000).for_each(|number| assert!((740..=760).contains(&present(number)), "{} bytes", present(number)));
    let (before, charged) = (resident("self"), live.tokens.bytes());
    (1_000..1_000 + count).for_each(|number| _ = present(number));
    let (held, charged) = (resident("self") - before, live.tokens.bytes() - charged);
    assert_eq!(live.tokens.len(), 1_000 + count);
    println!("| {count} | {} | {} | {} |", held >> 20, charged >> 20, held / count);
}

fn issuer(number: usize) -> String {
    format!("https://issuer-{number}.test")
}

fn jwt(number: usize, key: &SigningKey, live: &LiveState) -> Jwt {
    let place = Place { file: "bench".into(), line: 1, column: 1, path: "jwt".into() };
    let jwks = json!({"keys": [key.to_public_jwk().expect("a JWK")]}).to_string();
    let file = File { path: "jwks.json".into(), bytes: jwks.as_bytes().into(), place: place.clone() };
    let config = config::Jwt {
        issuer: issuer(number).into(),
        audiences: vec!["api://gw".into()],
        keys: At { value: KeySource::JwksFile(file), place },
        algorithms: Vec::new(),
        leeway: Duration::from_secs(30),
        max_lifetime: None,
        typ: None,
        from: vec![Location::Header { name: http::header::AUTHORIZATION, scheme: Some("Bearer".into()) }],
        dpop: config::Dpop { required: false, max_age: Duration::from_secs(60), nonce: None },
        claims: ClaimNames {
            subject: "sub".into(),
            scopes: vec!["scope".into()],
            roles: vec!["roles".into()],
            consumer: "client_id".into(),
            client: "azp".into(),
            plan: "plan".into(),
        },
    };
    Jwt::new(issuer(number).into(), &config, live).expect("sound")
}

/// Starts the binary, waits until it says that it is ready, lets it settle, and reloads it with one more route.
fn binary(name: &str, routes: usize, keys: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    if keys > 0 {
        let records: Vec<Record> = (0..keys).map(record).collect();
        let mut store = KeyStore::open(&path.join("keys.db"), Opening::Create, Duration::from_secs(5)).expect("a store");
        store.insert(&records).expect("new");
    }
    write(path, routes, keys);
    let began = Instant::now();
    let mut running = Running::start(path);
    running.until_ready();
    let started = began.elapsed();
    std::thread::sleep(Duration::from_secs(2));
    let held = resident(&running.child.id().to_string());
    write(path, routes + 1, keys);
    let began = Instant::now();
    running.reload();
    let reloaded = began.elapsed();
    println!("| {name} | {} | {} | {} | {} |", started.as_millis(), reloaded.as_millis(), held >> 20, most(running.child.id()) >> 10);
}

fn write(folder: &Path, routes: usize, keys: usize) {
    let mut text = "listeners: [{address: 127.0.0.1:0}]\nadmin: {address: 127.0.0.1:0}\nupstreams: {demo: {builtin: echo}}\n".to_owned();
    let policy = if keys > 0 { "{authenticate: partners}" } else { "{authenticate: public}" };
    if keys > 0 {
        text += "authenticators: {partners: {api_key: {from: [{header: X-API-Key}], prefix: ck_live_, keys: {database: keys.db}}}}\n";
    }
    text += &format!("policies: {{all: {policy}}}\nroutes:\n");
    for at in 0..routes {
        text +=
            &format!("  - {{name: r{at}, hosts: [api.example.com], path: \"/service{at}/orders/{{id}}\", policy: all, upstream: demo}}\n");
    }
    // Renamed over the old one, so that nobody reads half of it.
    std::fs::write(folder.join("new"), text).expect("written");
    std::fs::rename(folder.join("new"), folder.join("edgeward.yaml")).expect("renamed");
}

/// The most memory that a process has had, in KiB.
fn most(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or_default()
}

struct Running {
    child: Child,
    log: Receiver<serde_json::Value>,
}

impl Running {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_edgeward"))
            .args(["run", "-c", "edgeward.yaml"])
            .current_dir(folder)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        let (said, log) = channel();
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = said.send(serde_json::from_str(&line).unwrap_or_default());
            }
        });
        Self { child, log }
    }

    fn until(&self, holds: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        loop {
            let line = self.log.recv_timeout(Duration::from_secs(120)).expect("it says so");
            if holds(&line) {
                return line;
            }
        }
    }

    fn until_ready(&mut self) {
        let line = self.until(|line| line["message"] == "listening" && line["listener"] == "admin");
        let admin: SocketAddr = line["address"].as_str().expect("text").parse().expect("an address");
        loop {
            let mut answer = String::new();
            if let Ok(mut stream) = TcpStream::connect(admin)
                && stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").is_ok()
                && stream.read_to_string(&mut answer).is_ok()
                && answer.starts_with("HTTP/1.1 200")
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn reload(&self) {
        let sent = Command::new("kill").args(["-s", "HUP", &self.child.id().to_string()]).status().expect("kill");
        assert!(sent.success());
        self.until(|line| line["message"] == "configuration applied");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
