//! Tokens of a live issuer, from the caller to the service behind, the access log and the metrics.

use std::net::TcpListener;
use std::time::Duration;

use edgeward::jose::Algorithm;
use serde_json::{Value, json};

use crate::harness::client::{Connection, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::issuer::{Issuer, Mood};
use crate::harness::origin::{Origin, Reply, answer};
use crate::harness::until;

fn config(issuer: &Issuer, origin: &Origin) -> String {
    format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}, {{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{orders: {{servers: ["{}"]}}}}
authenticators:
  customers:
    jwt: {{issuer: "{}", audiences: [orders], keys: {{jwks_url: "{}"}}}}
routes:
  - name: orders
    path: "/orders/{{*rest}}"
    upstream: orders
    policy: {{authenticate: [customers], authorize: {{scopes: ["orders:read"]}}}}
"#,
        origin.address,
        issuer.url(),
        issuer.jwks_url()
    )
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[test]
fn a_good_token_reaches_the_service_as_an_identity_and_others_do_not() {
    let (issuer, origin) = (Issuer::start(Algorithm::Es256), Origin::start());
    let gateway = Gateway::start(&config(&issuer, &origin));
    let good = issuer.token("orders", json!({"scope": "orders:read"}));
    until("the keys are there", || gateway.get("/orders/7", &[("Authorization", &bearer(&good))]).status == 200);

    let forged = [("Authorization", &*bearer(&good)), ("X-User-Id", "mallory"), ("x_user_id", "mallory"), ("Connection", "X-User-Id")];
    assert_eq!(gateway.ask(request("GET", "/orders/7", &forged, b"")).status, 200);
    let seen = origin.last();
    assert_eq!((seen.target(), seen.headers_like("x-user-id")), ("/orders/7", vec!["alice"]));
    assert_eq!(seen.header("authorization"), None, "the token stays here");

    let stranger = Issuer::start(Algorithm::Es256);
    let cases = [
        (None, 401, "credential_missing"),
        (Some(good[..good.len() - 4].to_owned()), 401, "credential_invalid"),
        (Some(issuer.token("payments", json!({"scope": "orders:read"}))), 401, "credential_invalid"),
        (Some(issuer.token("orders", json!({"scope": "orders:read", "exp": 1_000_000_000}))), 401, "credential_expired"),
        (Some(stranger.token("orders", json!({"scope": "orders:read", "iss": issuer.url()}))), 401, "credential_invalid"),
        (Some(issuer.token("orders", json!({"scope": "profile"}))), 403, "insufficient_scope"),
    ];
    let asked = origin.requests().len();
    for (token, status, code) in &cases {
        let token = token.as_deref().map(bearer);
        let headers: Vec<_> = token.iter().map(|token| ("Authorization", token.as_str())).collect();
        let answer = gateway.get("/orders/7", &headers);
        assert_eq!((answer.status, answer.code().as_str()), (*status, *code));
        assert!(answer.header("www-authenticate").is_some(), "{code}");
    }
    assert_eq!(origin.requests().len(), asked, "no refused request is forwarded");

    until("each refusal is in the access log", || gateway.access_log().iter().filter(|line| line["code"] != "ok").count() >= cases.len());
    for (_, status, code) in &cases {
        assert!(gateway.access_log().iter().any(|line| line["code"] == *code && line["status"] == *status), "{code}");
        assert!(gateway.metric("edgeward_requests_total", &["route=\"orders\"", &format!("code=\"{code}\"")]) >= 1.0, "{code}");
    }
    assert!(!gateway.printed().contains(&good[..20]), "no credential is ever written down");
}

#[test]
fn tokens_are_good_on_every_listener_and_after_the_issuer_died_and_the_gateway_did_not() {
    let (issuer, origin) = (Issuer::start(Algorithm::EdDsa), Origin::start());
    let gateway = Gateway::start(&config(&issuer, &origin));
    let ask = |gateway: &Gateway, listener: usize, token: &str| {
        let request = request("GET", "/orders/7", &[("Authorization", &bearer(token))], b"");
        crate::harness::client::ask(gateway.addresses()[listener], request).status
    };
    let token = |name: &str| issuer.token("orders", json!({"scope": "orders:read", "jti": name}));
    until("the keys are there", || ask(&gateway, 0, &token("a")) == 200);
    assert_eq!(ask(&gateway, 1, &token("b")), 200);
    issuer.is(Mood::Dead);
    assert_eq!(ask(&gateway, 0, &token("c")), 200, "the last good keys serve");

    let unknowing = Gateway::start_in(gateway.kill(), &config(&issuer, &origin));
    assert_eq!(ask(&unknowing, 0, &token("d")), 503, "a new process has no keys to judge by, and does not guess");
    issuer.is(Mood::Slow(Duration::from_millis(200)));
    until("the keys come when the issuer does", || ask(&unknowing, 0, &token("e")) == 200);
}

#[test]
fn a_broken_candidate_changes_nothing_and_shows_in_a_metric() {
    let (issuer, origin) = (Issuer::start(Algorithm::Es256), Origin::start());
    let sound = config(&issuer, &origin);
    let gateway = Gateway::start_in(Folder::new(), &sound);
    until("the sound one serves", || gateway.metric("edgeward_config_current", &[]) == 1.0);
    gateway.rewrite(&sound.replace("authenticate: [customers]", "authenticate: [customer]"));
    until("the broken one is refused", || gateway.metric("edgeward_config_current", &[]) == 0.0);
    assert_eq!(gateway.get("/orders/7", &[]).code(), "credential_missing");
    gateway.rewrite(&sound);
    until("the sound one is current again", || gateway.metric("edgeward_config_current", &[]) == 1.0);
}

/// A line of the collection of hostile tokens.
#[derive(serde::Deserialize)]
struct Threat {
    id: String,
    jwks: String,
    expect: String,
    authorization: Value,
    expect_sub: Option<String>,
    strict_typ: Option<String>,
    require_scope_admin: Option<Value>,
}

impl Threat {
    /// What is expected at each path that this token is shown to.
    fn expectations(&self) -> Vec<(String, &str)> {
        let strict = self.strict_typ.as_deref().map(|expect| ("/strict".to_owned(), expect));
        let admin = self.require_scope_admin.as_ref().map(|_| ("/admin".to_owned(), "reject"));
        [(format!("/{}", self.jwks), self.expect.as_str())].into_iter().chain(strict).chain(admin).collect()
    }

    fn request(&self, target: &str) -> Vec<u8> {
        let lines = self.authorization.as_array().cloned().unwrap_or_else(|| vec![self.authorization.clone()]);
        let lines: String = lines.iter().map(|line| format!("Authorization: {}\r\n", line.as_str().unwrap())).collect();
        format!("GET {target} HTTP/1.1\r\nHost: gw.test\r\n{lines}\r\n").into_bytes()
    }
}

/// The sets that the tokens of the collection are judged by.
const KEY_SETS: [&str; 5] = ["main", "rsa-no-alg", "weak-rsa-1024", "use-enc", "key-ops-encrypt"];

/// A route with an authenticator of its own for each set, one that insists on a type, and one that asks for a scope.
fn hostile_config(origin: &Origin, issuer: &Origin) -> String {
    let authenticator = |name: &str, set: &str, more: &str| {
        let keys = format!("http://{}/jwks-{set}.json", issuer.address);
        let algorithms = "[RS256, PS256, ES256, ES384, EdDSA]";
        format!(
            "  {name}: {{jwt: {{issuer: 'https://issuer.test', audiences: ['api://gw'], algorithms: {algorithms}, keys: {{jwks_url: '{keys}'}}{more}}}}}\n"
        )
    };
    let route = |name: &str, authenticator: &str, more: &str| {
        format!("  - {{name: {name}, path: /{name}, upstream: all, policy: {{authenticate: {authenticator}{more}}}}}\n")
    };
    let authenticators: String = KEY_SETS.iter().map(|set| authenticator(set, set, "")).collect();
    let routes: String = KEY_SETS.iter().map(|set| route(set, set, "")).collect();
    format!(
        "listeners: [{{address: '127.0.0.1:0'}}]\nadmin: {{address: '127.0.0.1:0'}}\nupstreams: {{all: {{servers: ['{}']}}}}\nauthenticators:\n{authenticators}{}routes:\n{routes}{}{}",
        origin.address,
        authenticator("strict", "main", ", typ: at+jwt"),
        route("strict", "strict", ""),
        route("admin", "main", ", authorize: {scopes: [admin]}"),
    )
}

#[test]
fn every_hostile_token_gets_the_verdict_of_its_row_and_leaves_no_trace_behind() {
    let issuer = Origin::scripted(|request| {
        let file = format!("{}/tests/data/jwt-threats{}", env!("CARGO_MANIFEST_DIR"), request.target());
        Reply::Bytes(answer(200, &[("Content-Type", "application/json")], &std::fs::read_to_string(file).unwrap()))
    });
    // Where the `jku` and `x5u` of the collection point.
    let bait = TcpListener::bind("127.0.0.1:18999").unwrap();
    bait.set_nonblocking(true).unwrap();
    let origin = Origin::start();
    let mut gateway = Gateway::start(&hostile_config(&origin, &issuer).replace('\'', "\""));
    let rows: Vec<Threat> =
        include_str!("../data/jwt-threats/vectors.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let control = rows.iter().find(|row| row.id == "ok-PS256").unwrap();
    until("the keys are there", || gateway.ask(control.request("/main")).status == 200);
    let header_names = |head: &str| -> Vec<String> {
        head.lines().skip(1).filter_map(|line| line.split_once(':')).map(|(name, _)| name.to_ascii_lowercase()).collect()
    };
    let usual = header_names(&origin.last().head);

    let mut connection = Connection::open(gateway.address());
    let (mut accepted, mut refused) = (0, 0);
    for row in &rows {
        for (target, expect) in row.expectations() {
            let before = origin.requests().len();
            let request = row.request(&target);
            let status = if request.len() > 64 * 1024 {
                // Refused while it is still being sent; the answer may be lost with the connection.
                let mut alone = Connection::open(gateway.address());
                alone.send(request);
                if alone.is_closed() { 431 } else { alone.answer(false).status }
            } else {
                let answer = connection.ask(request);
                if answer.header("connection") == Some("close") {
                    connection = Connection::open(gateway.address());
                }
                answer.status
            };
            let seen = origin.requests().split_off(before);
            assert_eq!(seen.len(), usize::from(status == 200), "{} at {target}", row.id);
            let Some(seen) = seen.first() else {
                refused += 1;
                assert_ne!(expect, "accept", "{} at {target}: {status}", row.id);
                // A set without one usable key is like an issuer that is away.
                assert!(
                    [400, 401, 403, 431].contains(&status) || (status == 503 && row.jwks != "main"),
                    "{} at {target}: {status}",
                    row.id
                );
                assert!(status != 403 || target == "/admin", "{} at {target}", row.id);
                continue;
            };
            accepted += 1;
            assert_ne!(expect, "reject", "{} at {target}", row.id);
            let subjects = seen.headers_like("x-user-id");
            assert!(subjects.len() <= 1, "{}: {subjects:?}", row.id);
            if let Some(subject) = &row.expect_sub {
                assert_eq!(subjects, [subject.as_str()], "{}", row.id);
            }
            let unusual: Vec<_> = header_names(&seen.head).into_iter().filter(|name| !usual.contains(name)).collect();
            assert!(unusual.is_empty(), "{}: {unusual:?}", row.id);
        }
    }
    assert!(accepted >= 14 && refused > 170, "{accepted} accepted, {refused} refused");
    assert!(bait.accept().is_err(), "a token's own key was fetched");
    assert!(gateway.is_alive());
    assert_eq!(gateway.metric("edgeward_panics_total", &[]), 0.0);
    until("the access log has been written", || gateway.access_log().len() > accepted + 150);
    assert!(!gateway.printed().contains("eyJ"), "no part of a token is written down");
}
