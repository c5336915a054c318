//! Breaks each value and each key of a full configuration in turn: whatever still compiles must refuse what the sound one refuses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that meets the unexpected stops there"
)]

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edgeward::admit::admit;
use edgeward::config::Source;
use edgeward::jose::{Algorithm, SigningKey};
use edgeward::live::LiveState;
use edgeward::metrics::Metrics;
use edgeward::reload::Candidate;
use edgeward::request::message::{Head, Message};
use edgeward::request::{Now, Rejection, Request};
use edgeward::route::router::ParametersBuffer;
use edgeward::snapshot::Snapshot;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use saphyr_parser::{Event, Parser};
use serde_json::{Value, json};

const CONFIG: &str = r#"
server:
  trusted_proxies: [10.0.0.0/8]
  client_ip_header: X-Forwarded-For
  limits: {header_bytes: 32KiB, headers: 100, body: 1MiB, connections: 0, connections_per_ip: 0}
  timeouts: {header: 10s, body: 30s, idle: 60s, drain: 30s}
listeners:
  - address: 127.0.0.1:8080
admin: {address: 127.0.0.1:9901}
upstreams:
  orders:
    servers: [10.0.0.10:8080, {address: 10.0.0.11:8080, weight: 3}]
    balance: round_robin
    health: {path: /healthz, interval: 5s, timeout: 1s, healthy: 2, unhealthy: 3}
    timeouts: {connect: 1s, response: 30s, idle: 60s}
    retries: {attempts: 2, on: [connect_failure, 502]}
  demo: {builtin: echo}
limits:
  none-left: {per: client_ip, rate: 1/30d, algorithm: sliding_window, ipv6_prefix: 64}
  by-tenant: {per: [route, consumer], rate: 100/s, when_missing: deny}
authenticators:
  customers:
    jwt:
      issuer: https://issuer.test/
      audiences: [orders]
      keys: {jwks_file: jwks.json}
      algorithms: [ES256]
      leeway: 30s
      max_lifetime: 24h
      from: [{header: Authorization, scheme: Bearer}]
      claims: {subject: sub, scopes: [scope], roles: [roles], consumer: client_id, plan: plan}
  shared:
    jwt:
      issuer: https://shared.test/
      audiences: [orders]
      keys: {secret: {env: SHARED}}
      algorithms: [HS256]
  partners:
    api_key: {from: [{header: X-API-Key}], prefix: ck_live_, keys: {file: keys.yaml}}
policies:
  readers:
    limits: [by-tenant]
    authenticate: [customers, shared]
    authorize: {scopes: [orders:read], roles: [clerk], claims: {tenant: [acme]}}
    forward: {headers: {X-Tenant: "{claims.tenant}"}, token: strip}
  partner-api:
    deny: [203.0.113.0/28]
    allow: [203.0.113.0/24]
    authenticate: [partners]
routes:
  - name: orders
    hosts: [api.test, "*.api.test"]
    path: "/orders/{*rest}"
    methods: [GET, POST]
    policy: readers
    rewrite: "/v2/{rest}"
    upstream: orders
    timeouts: {response: 5s}
  - name: partners
    path: "/partners/{id}"
    methods: [GET]
    policy: partner-api
    upstream: orders
  - name: used-up
    path: "/used-up"
    policy: {limits: [none-left], authenticate: public}
    upstream: orders
  - name: open
    path: "/public/{*rest}"
    policy: {authenticate: public}
    upstream: demo
telemetry: {access_log: {sample: 1.0}}
"#;

const NOW: Now = Now { monotonic: Duration::from_secs(1_000), unix: Duration::from_secs(1_800_000_000) };

struct Memory {
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Source for Memory {
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        self.files.get(path).cloned().ok_or_else(|| Error::from(ErrorKind::NotFound))
    }

    fn env(&self, name: &str) -> Option<String> {
        (name == "SHARED").then(|| "a-shared-secret-of-more-than-sixty-four-bytes-so-that-any-hs-algorithm-takes-it".to_owned())
    }
}

fn hex_sha256(text: &str) -> String {
    openssl::sha::sha256(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Everything around the configuration: the files it names, and the requests that it is held against.
struct World {
    files: BTreeMap<PathBuf, Vec<u8>>,
    admitted: Vec<Call>,
    refused: Vec<Call>,
}

#[derive(Debug, Clone)]
struct Call {
    what: &'static str,
    method: Method,
    host: &'static str,
    target: &'static str,
    peer: IpAddr,
    headers: Vec<(&'static str, String)>,
}

fn call(what: &'static str, target: &'static str) -> Call {
    Call { what, method: Method::GET, host: "api.test", target, peer: IpAddr::from([203, 0, 113, 99]), headers: Vec::new() }
}

impl Call {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn bearer(self, token: &str) -> Self {
        self.with("authorization", format!("Bearer {token}"))
    }

    fn from(self, peer: [u8; 4]) -> Self {
        Self { peer: peer.into(), ..self }
    }

    fn by(self, method: Method) -> Self {
        Self { method, ..self }
    }

    fn at(self, host: &'static str) -> Self {
        Self { host, ..self }
    }
}

impl World {
    fn new() -> Self {
        let key = SigningKey::generate(Algorithm::Es256, "k").unwrap();
        let other = SigningKey::generate(Algorithm::Es256, "k").unwrap();
        let sound = json!({"iss": "https://issuer.test/", "aud": "orders", "sub": "alice", "iat": 1_799_999_000, "exp": 1_800_003_600,
            "scope": "orders:read", "roles": ["clerk"], "client_id": "acme", "tenant": "acme"});
        let token = |changes: Value| {
            let mut claims = sound.as_object().unwrap().clone();
            for (name, value) in changes.as_object().unwrap() {
                claims.insert(name.clone(), value.clone());
            }
            key.sign(&claims).unwrap()
        };
        let good = token(json!({}));
        let record = |id: &str, key: &str, rest: &str| format!("  - {{id: {id}, sha256: {}, consumer: acme{rest}}}\n", hex_sha256(key));
        let keys = [
            "keys:\n".to_owned(),
            record("goodkey1", "legacy-good", ""),
            record("expired1", "legacy-expired", ", expires: 2020-01-01T00:00:00Z"),
            record("revoked1", "legacy-revoked", ", revoked: 2020-01-01T00:00:00Z"),
            record("routekey", "legacy-elsewhere", ", routes: [orders]"),
            record("addrkey1", "legacy-address", ", allow: [192.0.2.0/24]"),
        ];
        let jwks = json!({"keys": [key.to_public_jwk().unwrap()]});
        let files = [("jwks.json", jwks.to_string()), ("keys.yaml", keys.concat())];
        let partners = |what, key: &str| call(what, "/partners/7").with("x-api-key", key);
        let orders = |what, changes| call(what, "/orders/7").bearer(&token(changes));
        Self {
            files: files.into_iter().map(|(name, text)| (PathBuf::from(name), text.into_bytes())).collect(),
            admitted: vec![
                call("a good token", "/orders/7").bearer(&good),
                call("a good token below a wildcard", "/orders").at("eu.api.test").bearer(&good),
                partners("a good key", "legacy-good"),
                call("anyone where anyone may enter", "/public/x"),
            ],
            refused: vec![
                call("no token", "/orders/7"),
                call("no token, by another spelling", "/public/../orders/7"),
                call("no token on a wildcard host", "/orders/7").at("eu.api.test"),
                call("a good token by another method", "/orders/7").bearer(&good).by(Method::DELETE),
                call("a good token on another host", "/orders/7").at("other.test").bearer(&good),
                call("a token of nobody's key", "/orders/7").bearer(&other.sign(sound.as_object().unwrap()).unwrap()),
                call("a token without signature", "/orders/7").bearer(good.rsplit_once('.').unwrap().0),
                orders("a foreign issuer", json!({"iss": "https://evil.test/"})),
                orders("a foreign audience", json!({"aud": "billing"})),
                orders("an expired token", json!({"exp": 1_790_000_000})),
                orders("a token of the future", json!({"nbf": 1_900_000_000})),
                orders("a token that lives for years", json!({"exp": 1_900_000_000})),
                orders("no scope", json!({"scope": "profile"})),
                orders("no role", json!({"roles": ["guest"]})),
                orders("another tenant", json!({"tenant": "evil"})),
                orders("a token for a secret that only looks shared", json!({"iss": "https://shared.test/"})),
                call("a key where a token is asked", "/orders/7").with("x-api-key", "legacy-good"),
                call("no key", "/partners/7"),
                call("a token where a key is asked", "/partners/7").bearer(&good),
                partners("an unknown key", "legacy-unknown"),
                partners("an expired key", "legacy-expired"),
                partners("a revoked key", "legacy-revoked"),
                partners("a key for another route", "legacy-elsewhere"),
                partners("a key from another address", "legacy-address"),
                partners("a good key from a network that is not admitted", "legacy-good").from([192, 0, 2, 1]),
                partners("a good key from a denied network", "legacy-good").from([203, 0, 113, 9]),
                partners("an address that nobody vouches for", "legacy-good").from([192, 0, 2, 1]).with("x-forwarded-for", "203.0.113.99"),
                call("a second request where one is admitted", "/used-up"),
                call("nothing there", "/nowhere"),
            ],
        }
    }

    /// The snapshot of a text, if it is sound.
    fn compile(&self, text: &str) -> Option<Snapshot> {
        let mut files = self.files.clone();
        files.insert("edgeward.yaml".into(), text.as_bytes().to_vec());
        Candidate::read(Path::new("edgeward.yaml"), &Memory { files }, &LiveState::default(), &Metrics::new().unwrap())
            .result
            .ok()
            .map(|(_, snapshot)| snapshot)
    }
}

/// The decision that the proxy makes, without the proxy.
fn decide(snapshot: &Snapshot, call: &Call) -> Result<(), Rejection> {
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static(call.host));
    for (name, value) in &call.headers {
        headers.append(HeaderName::from_static(name), value.parse().unwrap());
    }
    let client = snapshot.server.client(call.peer, &headers);
    let head = Head {
        version: Version::HTTP_11,
        method: &call.method,
        authority: None,
        target: call.target.as_bytes(),
        headers: &headers,
        raw: None,
    };
    let message = Message::read(head, snapshot.server.head)?;
    let mut parameters = ParametersBuffer::default();
    let route = snapshot.router.find(&message.host, &message.path, message.method, &mut parameters)?;
    let request = Request {
        method: message.method,
        host: &message.host,
        port: message.port,
        path: &message.path,
        query: message.query,
        headers: &headers,
        body: Some(&[]),
        client: &client,
        certificate: None,
        route: &route.name,
        parameters: parameters.parameters(),
        ..Request::new(message.method, &message.host, &message.path, &headers, &client)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(admit(route, &request, NOW, || 7)).map(|_| ()).map_err(|refusal| refusal.rejection)
}

/// Uses up the one request that the limit admits.
fn warm(snapshot: &Snapshot) {
    let _ = decide(snapshot, &call("the first request where one is admitted", "/used-up"));
}

/// Where each scalar of the text stands, keys and values alike, in bytes.
fn scalars(text: &str) -> Vec<std::ops::Range<usize>> {
    // Every character of the text is one byte.
    assert!(text.is_ascii());
    let events = Parser::new_from_str(text).map(|event| event.unwrap());
    events.filter(|(event, _)| matches!(event, Event::Scalar(..))).map(|(_, span)| span.start.index()..span.end.index()).collect()
}

fn breakages(value: &str) -> Vec<String> {
    let bare = value.trim_matches('"');
    let mut broken: Vec<String> = [
        "",
        "\"\"",
        "~",
        "0",
        "-1",
        "1",
        "99999999999999999999",
        "true",
        "false",
        "*",
        "[]",
        "{}",
        "[x]",
        "{x: y}",
        "!!str x",
        "&a x",
        "*a",
    ]
    .map(str::to_owned)
    .into();
    broken.extend(["x", " ", "/", ".", "0", "\u{e9}", "\\u0000", "\\n"].map(|tail| format!("\"{bare}{tail}\"")));
    broken.extend(["x", "!", "/", "-", "0"].map(|start| format!("\"{start}{bare}\"")));
    broken.push(format!("\"{}\"", bare.to_uppercase()));
    broken.push(format!("{{env: {bare}}}"));
    broken.push(format!("[{value}, {value}]"));
    if bare.len() > 1 {
        broken.push(format!("\"{}\"", &bare[1..]));
        broken.push(format!("\"{}\"", &bare[..bare.len() - 1]));
    }
    broken
}

#[test]
fn no_broken_value_opens_what_the_sound_configuration_closes() {
    let world = World::new();
    let sound = world.compile(CONFIG).expect("the sound configuration compiles");
    warm(&sound);
    for call in &world.admitted {
        assert_eq!(decide(&sound, call), Ok(()), "{}", call.what);
    }
    for call in &world.refused {
        assert!(decide(&sound, call).is_err(), "{}", call.what);
    }

    let (mut tried, mut compiled) = (0, 0);
    for range in scalars(CONFIG) {
        for broken in breakages(&CONFIG[range.clone()]) {
            let (before, after) = (&CONFIG[..range.start], &CONFIG[range.end..]);
            // An empty list of scopes asks for none: that is taken out, not broken.
            let emptied = broken.is_empty() && before.ends_with('[') && after.starts_with(']');
            if emptied || broken == CONFIG[range.clone()] {
                continue;
            }
            let text = format!("{before}{broken}{after}");
            tried += 1;
            let Some(snapshot) = world.compile(&text) else { continue };
            compiled += 1;
            warm(&snapshot);
            for call in &world.refused {
                let line = before.lines().count();
                assert!(decide(&snapshot, call).is_err(), "line {line}: `{}` as `{broken}` admits {}", &CONFIG[range.clone()], call.what);
            }
        }
    }
    assert!(tried > 3_000, "only {tried} mutations were tried");
    // Names, times and addresses that are other than meant are still sound; a test in which nothing compiles would show nothing.
    assert!(compiled > 100, "only {compiled} of {tried} mutations compile");
}
