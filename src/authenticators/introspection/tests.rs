//! A server that is asked about tokens: what it may say, how it may fail, and what a request meets then.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::config::{Authenticator, System};
use crate::jose::{Algorithm, SigningKey, jwk};
use crate::live::breaker::State;

/// What the server does with a question.
#[derive(Debug, Clone)]
enum Reply {
    Says(String),
    Status(u16, String),
    Slow(Duration, String),
    Away,
}

/// A server that answers as a test tells it, and remembers what it was asked.
#[derive(Debug, Default)]
struct Server {
    replies: Mutex<HashMap<String, Reply>>,
    broken: Mutex<Option<Reply>>,
    asked: Mutex<Vec<String>>,
}

impl Server {
    fn says(&self, token: &str, body: &str) {
        self.replies.lock().unwrap().insert(token.to_owned(), Reply::Says(body.to_owned()));
    }

    /// From now on every question meets this.
    fn breaks(&self, reply: Reply) {
        *self.broken.lock().unwrap() = Some(reply);
    }

    fn recovers(&self) {
        *self.broken.lock().unwrap() = None;
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

#[async_trait::async_trait]
impl Ask for Server {
    async fn ask(&self, request: http::Request<Bytes>, _: Duration) -> Result<Response<Bytes>, String> {
        let form = String::from_utf8(request.into_body().to_vec()).unwrap();
        let token = form.split('&').find_map(|pair| pair.strip_prefix("token=")).unwrap();
        let token = percent_decode_str(token).decode_utf8().unwrap().into_owned();
        self.asked.lock().unwrap().push(token.clone());
        let broken = self.broken.lock().unwrap().clone();
        let known = self.replies.lock().unwrap().get(&token).cloned();
        let build = |status: u16, body: String| Ok(Response::builder().status(status).body(Bytes::from(body)).unwrap());
        match broken.or(known).unwrap_or(Reply::Says(r#"{"active":false}"#.to_owned())) {
            Reply::Says(body) => build(200, body),
            Reply::Status(status, body) => build(status, body),
            Reply::Slow(pause, body) => {
                tokio::time::sleep(pause).await;
                build(200, body)
            }
            Reply::Away => Err("connection refused".to_owned()),
        }
    }
}

/// The time at the start of each test, since the epoch.
const START: u64 = 1_800_000_000;

struct Gate {
    server: Arc<Server>,
    live: LiveState,
    introspection: Introspection,
    started: Instant,
}

fn config(fields: &str) -> config::Introspection {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "hush-hush").unwrap();
    let path = folder.path().join("edgeward.yaml");
    let client = if fields.contains("client:") { "" } else { "client: {id: edgeward, secret: {file: secret}}," };
    let base = format!("url: https://issuer.test/introspect, {client}");
    let text = format!(
        "listeners: [{{address: 127.0.0.1:0}}]\nupstreams: {{demo: {{builtin: echo}}}}\nauthenticators: {{a: {{introspection: {{{base} {fields}}}}}}}\n\
         routes: [{{name: r, path: /, policy: {{authenticate: [a]}}, upstream: demo}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    match config::load(&path, &System).config.unwrap().authenticators.remove(0).1 {
        Authenticator::Introspection(introspection) => introspection,
        _ => panic!("another authenticator"),
    }
}

impl Gate {
    fn new(fields: &str) -> Self {
        let (server, live) = (Arc::new(Server::default()), LiveState::default());
        let introspection = Introspection::asking(server.clone(), "opaque".into(), &config(fields), &live).unwrap();
        Self { server, live, introspection, started: Instant::now() }
    }

    /// Another authenticator beside it, that asks the same server.
    fn beside(&self, name: &str, fields: &str) -> Introspection {
        Introspection::asking(self.server.clone(), name.into(), &config(fields), &self.live).unwrap()
    }

    fn now(&self) -> Now {
        let passed = self.started.elapsed();
        Now { monotonic: Duration::from_secs(100) + passed, unix: Duration::from_secs(START) + passed }
    }

    async fn asks(&self, token: &str) -> Result<Arc<Identity>, Rejection> {
        self.asks_by(&self.introspection, token).await
    }

    async fn asks_by(&self, introspection: &Introspection, token: &str) -> Result<Arc<Identity>, Rejection> {
        match present(introspection, &[("authorization", &format!("Bearer {token}"))], self.now()).await {
            Verdict::Accept(proof) => Ok(proof.identity),
            Verdict::Reject(rejection) => Err(rejection),
            Verdict::Pass => panic!("it was not judged"),
        }
    }

    fn state(&self) -> State {
        self.introspection.answers.status().breaker
    }
}

async fn present(introspection: &Introspection, lines: &[(&str, &str)], now: Now) -> Verdict {
    let headers: HeaderMap = lines
        .iter()
        .map(|(name, value)| (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect();
    let client = crate::request::Client { address: IpAddr::V4(Ipv4Addr::LOCALHOST), through_trusted_proxy: false };
    introspection.authenticate(&Request::new(&http::Method::GET, "api.example.com", "/", &headers, &client), now).await
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn invalid<T>(reason: &'static str) -> Result<T, Rejection> {
    Err(Rejection::CredentialInvalid(reason))
}

fn away<T: std::fmt::Debug>(outcome: &Result<T, Rejection>) -> bool {
    matches!(outcome, Err(Rejection::DependencyUnavailable { dependency: "introspection", .. }))
}

const ACTIVE: &str = r#"{"active":true,"sub":"alice","client_id":"shop","scope":"orders:read orders:write"}"#;

#[tokio::test(start_paused = true)]
async fn an_active_token_is_who_the_answer_says_and_is_asked_about_once() {
    let gate = Gate::new("");
    gate.server.says("t1", ACTIVE);
    for _ in 0..3 {
        let identity = gate.asks("t1").await.unwrap();
        assert_eq!((identity.method, &*identity.authenticator), (Method::Introspection, "opaque"));
        assert_eq!((identity.subject.as_deref(), identity.consumer.as_deref()), (Some("alice"), Some("shop")));
        assert_eq!(identity.scopes.join(" "), "orders:read orders:write");
        assert_eq!(identity.credential, sha256(b"t1"));
    }
    assert_eq!(gate.server.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn only_the_boolean_true_in_an_object_is_active() {
    let inactive = [
        r#"{"active":false}"#,
        r#"{"active":"true","sub":"alice"}"#,
        r#"{"active":1}"#,
        r#"{"active":null}"#,
        r#"{"active":[true]}"#,
        r#"{"active":{"active":true}}"#,
        r#"{"Active":true}"#,
        r#"{"ACTIVE":true,"active":false}"#,
        r#"{"sub":"alice"}"#,
        "{}",
    ];
    for body in inactive {
        let gate = Gate::new("on_failure: allow");
        gate.server.says("t1", body);
        assert_eq!(gate.asks("t1").await, invalid("inactive"), "{body}");
        assert_eq!(gate.introspection.answers.status().failures, 0);
    }
    let garbled = [
        "[true]",
        "true",
        "\"active\"",
        "",
        "<html>active: true</html>",
        "{\"active\":true",
        "{\"active\":true}}",
        "{\"active\":true} {\"active\":true}",
        r#"{"active":false,"active":true}"#,
        r#"{"active":true,"\u0061ctive":true}"#,
        "\u{feff}{\"active\":true}",
        "{'active':true}",
        "{\"active\":true,\"sub\":\"\\ud800\"}",
        "{\"active\":true,\"exp\":1e999}",
    ];
    for body in garbled {
        let gate = Gate::new("");
        gate.server.says("t1", body);
        assert!(away(&gate.asks("t1").await), "{body}");
        assert_eq!(gate.introspection.answers.status().failures, 1, "{body}");
    }
    for status in [201, 204, 206, 301, 302, 400, 401, 403, 404, 429, 500, 503] {
        let gate = Gate::new("");
        gate.server.breaks(Reply::Status(status, ACTIVE.to_owned()));
        assert!(away(&gate.asks("t1").await), "{status}");
    }
    let gate = Gate::new("");
    gate.server.says("t1", &format!(r#"{{"active":true,"x":"{}"}}"#, "x".repeat(64 * 1024)));
    assert!(away(&gate.asks("t1").await), "a body that is too long");
}

#[tokio::test(start_paused = true)]
async fn a_token_of_another_kind_does_not_come_in() {
    for (members, expected) in [
        (r#""token_type":"Bearer""#, Ok(())),
        (r#""token_type":"bearer","token_use":"access_token","typ":"at+jwt""#, Ok(())),
        (r#""token_type":"access_token""#, Ok(())),
        (r#""token_type":null"#, Ok(())),
        (r#""token_type":"refresh_token""#, invalid("token_type")),
        (r#""token_type":"DPoP""#, invalid("token_type")),
        (r#""token_type":"Bearer","token_use":"refresh_token""#, invalid("token_type")),
        (r#""typ":"Refresh""#, invalid("token_type")),
        (r#""typ":"ID""#, invalid("token_type")),
        (r#""token_type":["Bearer"]"#, invalid("token_type")),
        (r#""typ":"DPoP","cnf":{"x5t#S256":"abc"}"#, invalid("token_type")),
        (r#""token_type":"DPoP","cnf":"jkt""#, invalid("token_type")),
        (r#""token_type":"DPoP","cnf":{"jkt":7}"#, invalid("bound_token")),
        (r#""token_type":"DPoP","cnf":{"jkt":"abc"}"#, invalid("dpop_as_bearer")),
        (r#""cnf":{"jkt":"abc"}"#, invalid("dpop_as_bearer")),
        (r#""cnf":null"#, invalid("bound_token")),
        (r#""sub":"a\r\nX-Role: admin""#, invalid("claim_characters")),
    ] {
        let gate = Gate::new("");
        gate.server.says("t1", &format!(r#"{{"active":true,{members}}}"#));
        for _ in 0..2 {
            assert_eq!(gate.asks("t1").await.map(|_| ()), expected, "{members}");
        }
        assert_eq!(gate.server.asked(), 1, "{members}");
    }
}

/// A caller with a key of its own.
struct Holder(SigningKey);

impl Holder {
    fn new() -> Self {
        Self(SigningKey::generate(Algorithm::Es256, "h").unwrap())
    }

    fn active(&self) -> String {
        let thumbprint = URL_SAFE_NO_PAD.encode(jwk::thumbprint(&self.0.to_public_jwk().unwrap()).unwrap());
        json!({"active": true, "sub": "alice", "token_type": "DPoP", "cnf": {"jkt": thumbprint}}).to_string()
    }

    fn proof(&self, id: &str, token: &str) -> String {
        let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": self.0.to_public_jwk().unwrap()});
        let ath = URL_SAFE_NO_PAD.encode(sha256(token.as_bytes()));
        let claims = json!({"jti": id, "htm": "GET", "htu": "http://api.example.com/", "iat": START, "ath": ath});
        self.0.sign_parts(header.to_string().as_bytes(), claims.to_string().as_bytes()).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_remembered_answer_never_spares_the_proof_of_a_bound_token() {
    let from = "from: [{header: Authorization, scheme: DPoP}, {header: Authorization, scheme: Bearer}]";
    for on_failure in ["{allow_cached: 5m}", "allow"] {
        let gate = Gate::new(&format!("{from}, cache: {{ttl: 10s}}, on_failure: {on_failure}"));
        let (holder, thief) = (Holder::new(), Holder::new());
        gate.server.says("t1", &holder.active());
        let ask = async |scheme: &str, token: &str, proof: &str| {
            let authorization = format!("{scheme} {token}");
            let lines = [("authorization", authorization.as_str()), ("dpop", proof)];
            let lines = if proof.is_empty() { &lines[..1] } else { &lines[..] };
            match present(&gate.introspection, lines, gate.now()).await {
                Verdict::Accept(proof) => proof.identity.subject.as_deref().unwrap_or("nobody").to_owned(),
                Verdict::Reject(rejection) => rejection.reason().unwrap_or(rejection.code()).to_owned(),
                Verdict::Pass => "pass".to_owned(),
            }
        };
        // Asked, remembered, and while the server is away.
        for round in ["asked", "remembered", "away"] {
            if round == "away" {
                gate.server.breaks(Reply::Away);
                tokio::time::advance(seconds(11)).await;
            }
            let good = holder.proof(round, "t1");
            let allowed = if (round, on_failure) == ("away", "allow") { "introspection" } else { "alice" };
            assert_eq!(ask("DPoP", "t1", &good).await, allowed, "{round} {on_failure}");
            if allowed == "alice" {
                assert_eq!(ask("DPoP", "t1", &good).await, "dpop_replayed", "{round}");
                assert_eq!(ask("DPoP", "t1", "").await, "dpop_missing", "{round}");
                assert_eq!(ask("DPoP", "t1", &thief.proof("t", "t1")).await, "dpop_other_key", "{round}");
                assert_eq!(ask("DPoP", "t1", &holder.proof("o", "t2")).await, "dpop_token", "{round}");
            }
            assert_eq!(ask("Bearer", "t1", &holder.proof("b", "t1")).await, "dpop_as_bearer", "{round} {on_failure}");
        }
        assert_eq!(ask("DPoP", "invented", &thief.proof("i", "invented")).await, "introspection", "{on_failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_a_binding_is_required_an_opaque_token_without_one_is_refused() {
    let gate = Gate::new("from: [{header: Authorization, scheme: DPoP}, {header: Authorization, scheme: Bearer}], dpop: {required: true}");
    gate.server.says("t1", ACTIVE);
    for _ in 0..2 {
        assert_eq!(gate.asks("t1").await.map(|_| ()), invalid("dpop_required"));
    }
}

#[tokio::test(start_paused = true)]
async fn issuer_audience_and_times_of_the_answer_are_checked_on_every_hit() {
    let fields = "issuer: https://issuer.test, audiences: [orders, billing]";
    let good = r#""iss":"https://issuer.test","aud":"orders""#;
    let soon = START + 31;
    for (members, expected) in [
        (good.to_owned(), Ok(())),
        (r#""iss":"https://issuer.test","aud":["x","billing"]"#.to_owned(), Ok(())),
        (r#""iss":"https://issuer.test/","aud":"orders""#.to_owned(), invalid("issuer")),
        (r#""aud":"orders""#.to_owned(), invalid("issuer")),
        (r#""iss":["https://issuer.test"],"aud":"orders""#.to_owned(), invalid("issuer")),
        (r#""iss":"https://issuer.test""#.to_owned(), invalid("audience")),
        (r#""iss":"https://issuer.test","aud":[]"#.to_owned(), invalid("audience")),
        (r#""iss":"https://issuer.test","aud":"orders billing""#.to_owned(), invalid("audience")),
        (r#""iss":"https://issuer.test","aud":["orders",5]"#.to_owned(), invalid("audience")),
        (format!(r#"{good},"nbf":{soon}"#), invalid("not_before")),
        (format!(r#"{good},"nbf":{}"#, START + 30), Ok(())),
        (format!(r#"{good},"exp":{START}"#), Err(Rejection::CredentialExpired)),
        (format!(r#"{good},"exp":{}"#, START + 1), Ok(())),
        (format!(r#"{good},"exp":"{}""#, START + 1), invalid("expiry")),
        (format!(r#"{good},"exp":null"#), invalid("expiry")),
        (format!(r#"{good},"nbf":true"#), invalid("not_before")),
    ] {
        let gate = Gate::new(fields);
        gate.server.says("t1", &format!(r#"{{"active":true,{members}}}"#));
        assert_eq!(gate.asks("t1").await.map(|_| ()), expected, "{members}");
        assert_eq!(gate.asks("t1").await.map(|_| ()), expected, "{members}, again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_is_refused_within_the_ttl_and_none_serves_beyond_its_end() {
    let gate = Gate::new("cache: {ttl: 45s, negative_ttl: 10s}");
    gate.server.says("t1", ACTIVE);
    assert!(gate.asks("t1").await.is_ok());
    gate.server.says("t1", r#"{"active":false}"#);
    tokio::time::sleep(seconds(44)).await;
    assert!(gate.asks("t1").await.is_ok(), "as documented");
    tokio::time::sleep(seconds(1)).await;
    assert_eq!(gate.asks("t1").await, invalid("inactive"));

    gate.server.says("t2", &format!(r#"{{"active":true,"exp":{}}}"#, gate.now().unix.as_secs() + 5));
    assert!(gate.asks("t2").await.is_ok());
    tokio::time::sleep(seconds(4)).await;
    assert!(gate.asks("t2").await.is_ok());
    tokio::time::sleep(seconds(1)).await;
    assert_eq!(gate.asks("t2").await, Err(Rejection::CredentialExpired), "although the server still calls it active");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_forward_ends_a_remembered_token() {
    let gate = Gate::new("");
    gate.server.says("t1", &format!(r#"{{"active":true,"exp":{}}}"#, START + 40));
    assert!(gate.asks("t1").await.is_ok());
    let forward = Now { unix: seconds(START + 40), ..gate.now() };
    let verdict = present(&gate.introspection, &[("authorization", "Bearer t1")], forward).await;
    assert!(matches!(verdict, Verdict::Reject(Rejection::CredentialExpired)), "{verdict:?}");
}

#[tokio::test(start_paused = true)]
async fn an_inactive_token_is_asked_about_again_after_its_own_time() {
    let gate = Gate::new("cache: {ttl: 45s, negative_ttl: 10s}");
    assert_eq!(gate.asks("t1").await, invalid("inactive"));
    gate.server.says("t1", ACTIVE);
    tokio::time::sleep(seconds(9)).await;
    assert_eq!(gate.asks("t1").await, invalid("inactive"));
    assert_eq!(gate.server.asked(), 1);
    tokio::time::sleep(seconds(1)).await;
    assert!(gate.asks("t1").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_ttl_of_zero_asks_about_every_request() {
    let gate = Gate::new("cache: {ttl: 0s, negative_ttl: 0s}");
    gate.server.says("t1", ACTIVE);
    for _ in 0..3 {
        assert!(gate.asks("t1").await.is_ok());
        assert!(gate.asks("t2").await.is_err());
    }
    assert_eq!(gate.server.asked(), 6);
}

#[tokio::test(start_paused = true)]
async fn one_token_never_gets_the_answer_of_another() {
    let gate = Gate::new("");
    let long = "x".repeat(MAX_TOKEN - 1);
    let tokens = ["abc", "abd", "ab", "abcd", &format!("{long}a"), &format!("{long}b"), &format!("a{long}"), "ABC"];
    for (i, token) in tokens.iter().enumerate() {
        gate.server.says(token, &format!(r#"{{"active":true,"sub":"user{i}"}}"#));
    }
    for _ in 0..2 {
        for (i, token) in tokens.iter().enumerate() {
            assert_eq!(gate.asks(token).await.unwrap().subject.as_deref(), Some(&*format!("user{i}")));
        }
    }
    assert_eq!(gate.server.asked(), tokens.len());
    assert_eq!(gate.asks(&"x".repeat(MAX_TOKEN + 1)).await, invalid("too_large"));
    assert_eq!(gate.server.asked(), tokens.len(), "nobody is asked about it");
}

#[tokio::test(start_paused = true)]
async fn each_authenticator_applies_its_own_rules_to_the_same_token() {
    let gate = Gate::new("audiences: [orders]");
    let billing = gate.beside("billing", "audiences: [billing]");
    let by_email = gate.beside("by_email", "claims: {subject: email}");
    let elsewhere = gate.beside("opaque", "audiences: [orders], client: {id: other, secret: {file: secret}}");
    gate.server.says("t1", r#"{"active":true,"aud":"orders","sub":"alice","email":"a@example.com"}"#);
    for _ in 0..2 {
        assert_eq!(gate.asks("t1").await.unwrap().subject.as_deref(), Some("alice"));
        assert_eq!(gate.asks_by(&billing, "t1").await, invalid("audience"));
        assert_eq!(gate.asks_by(&by_email, "t1").await.unwrap().subject.as_deref(), Some("a@example.com"));
        assert!(gate.asks_by(&elsewhere, "t1").await.is_ok());
    }
    assert_eq!(gate.server.asked(), 4, "each asks for itself");
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_is_known_unless_the_endpoint_or_the_reading_changed() {
    let gate = Gate::new("cache: {ttl: 45s}");
    gate.server.says("t1", ACTIVE);
    assert!(gate.asks("t1").await.is_ok());
    let tuned = gate.beside("opaque", "cache: {ttl: 5s, entries: 10}, timeout: 1s, breaker: {failures: 1}, on_failure: allow");
    assert!(gate.asks_by(&tuned, "t1").await.is_ok());
    let stricter = gate.beside("opaque", "audiences: [billing]");
    assert_eq!(gate.asks_by(&stricter, "t1").await, invalid("audience"), "a rule that was added holds for what is remembered");
    assert_eq!(gate.server.asked(), 1);
    let other = gate.beside("opaque", "claims: {subject: client_id}");
    assert_eq!(gate.asks_by(&other, "t1").await.unwrap().subject.as_deref(), Some("shop"));
    assert_eq!(gate.server.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn five_hundred_requests_with_one_new_token_ask_once() {
    let gate = Gate::new("");
    gate.server.breaks(Reply::Slow(Duration::from_millis(300), ACTIVE.to_owned()));
    let all = futures_util::future::join_all((0..500).map(|_| gate.asks("t1"))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(gate.server.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_invented_tokens_is_bounded_and_costs_no_good_token_its_place() {
    let gate = Gate::new("cache: {entries: 1000}");
    gate.server.says("t1", ACTIVE);
    assert!(gate.asks("t1").await.is_ok());
    for i in 0..20_000 {
        assert_eq!(gate.asks(&format!("invented-{i}")).await, invalid("inactive"));
    }
    let status = gate.introspection.answers.status();
    assert!(status.bad <= 1000, "{}", status.bad);
    let asked = gate.server.asked();
    assert!(gate.asks("t1").await.is_ok());
    assert_eq!(gate.server.asked(), asked);
    // Against a server that breaks down under it, the flood ends at the breaker.
    gate.server.breaks(Reply::Status(503, String::new()));
    for i in 20_000..40_000 {
        assert!(away(&gate.asks(&format!("invented-{i}")).await));
    }
    assert_eq!(gate.server.asked() - asked, 5);
    assert!(gate.asks("t1").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn while_the_endpoint_is_away_requests_are_refused_in_time_and_then_at_once() {
    for broken in
        [Reply::Away, Reply::Slow(seconds(30), ACTIVE.to_owned()), Reply::Status(500, String::new()), Reply::Says("garbage".into())]
    {
        let gate = Gate::new("timeout: 500ms, breaker: {failures: 3, open: 10s}");
        gate.server.breaks(broken.clone());
        for i in 0..3 {
            assert_eq!(gate.state(), State::Closed);
            let started = Instant::now();
            assert!(away(&gate.asks(&format!("t{i}")).await), "{broken:?}");
            assert!(started.elapsed() <= Duration::from_millis(510), "{broken:?}: {:?}", started.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(gate.state(), State::Open, "{broken:?}");
        let started = Instant::now();
        let refused = gate.asks("t4").await;
        assert!(started.elapsed().is_zero());
        let Err(Rejection::DependencyUnavailable { retry_after, .. }) = refused else { panic!("{refused:?}") };
        assert!(retry_after > seconds(9) && retry_after <= seconds(10), "{retry_after:?}");
        assert_eq!(gate.server.asked(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_flaps_is_probed_once_at_a_time_and_taken_back_by_one_success() {
    let gate = Gate::new("timeout: 500ms, breaker: {failures: 2, open: 5s}");
    gate.server.breaks(Reply::Away);
    for i in 0..2 {
        assert!(away(&gate.asks(&format!("t{i}")).await));
    }
    for round in 0..3 {
        tokio::time::sleep(seconds(5)).await;
        let before = gate.server.asked();
        gate.server.breaks(Reply::Slow(Duration::from_millis(400), "garbage".into()));
        let crowd = (0..300).map(|i| {
            let token = format!("r{round}-{i}");
            let gate = &gate;
            async move { gate.asks(&token).await }
        });
        assert!(futures_util::future::join_all(crowd).await.iter().all(away));
        assert_eq!(gate.server.asked() - before, 1, "one probe");
        assert_eq!(gate.state(), State::Open);
    }
    tokio::time::sleep(seconds(5)).await;
    gate.server.recovers();
    gate.server.says("t1", ACTIVE);
    assert!(gate.asks("t1").await.is_ok());
    assert_eq!(gate.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn deny_refuses_whatever_was_known_before() {
    let gate = Gate::new("cache: {ttl: 10s}, breaker: {failures: 1}");
    gate.server.says("t1", ACTIVE);
    assert!(gate.asks("t1").await.is_ok());
    gate.server.breaks(Reply::Away);
    assert!(gate.asks("t1").await.is_ok(), "what is fresh needs nobody");
    tokio::time::sleep(seconds(10)).await;
    assert!(away(&gate.asks("t1").await));
}

#[tokio::test(start_paused = true)]
async fn allow_cached_serves_the_last_good_answer_for_its_time_and_never_beyond_the_end_of_the_token() {
    let gate = Gate::new("cache: {ttl: 10s, negative_ttl: 1s}, on_failure: {allow_cached: 60s}, breaker: {failures: 1, open: 5s}");
    gate.server.says("t1", ACTIVE);
    gate.server.says("t2", &format!(r#"{{"active":true,"exp":{}}}"#, START + 30));
    for token in ["t1", "t2"] {
        assert!(gate.asks(token).await.is_ok());
    }
    assert_eq!(gate.asks("t3").await, invalid("inactive"));
    gate.server.breaks(Reply::Away);
    tokio::time::sleep(seconds(20)).await;
    assert_eq!(gate.asks("t1").await.unwrap().subject.as_deref(), Some("alice"));
    assert!(gate.asks("t2").await.is_ok());
    assert!(away(&gate.asks("t3").await), "an inactive one is no good answer");
    assert!(away(&gate.asks("t4").await), "nor one that was never seen");
    tokio::time::sleep(seconds(10)).await;
    assert_eq!(gate.asks("t2").await, Err(Rejection::CredentialExpired));
    tokio::time::sleep(seconds(39)).await;
    assert!(gate.asks("t1").await.is_ok());
    tokio::time::sleep(seconds(1)).await;
    assert!(away(&gate.asks("t1").await), "its time is over");
    assert_eq!(gate.introspection.answers.status().excused, 3);

    // As soon as the endpoint is back its word counts, and not what was remembered.
    gate.server.recovers();
    gate.server.says("t1", r#"{"active":false}"#);
    tokio::time::sleep(seconds(5)).await;
    assert_eq!(gate.asks("t1").await, invalid("inactive"));
}

#[tokio::test(start_paused = true)]
async fn allow_lets_in_somebody_of_whom_nothing_is_said() {
    let gate = Gate::new("cache: {ttl: 10s, negative_ttl: 1s}, on_failure: allow, breaker: {failures: 1, open: 5s}");
    gate.server.says("t1", &format!(r#"{{"active":true,"sub":"alice","scope":"admin","exp":{}}}"#, START + 30));
    assert!(gate.asks("t1").await.is_ok());
    assert_eq!(gate.asks("t2").await, invalid("inactive"));
    gate.server.breaks(Reply::Away);
    tokio::time::sleep(seconds(20)).await;
    for token in ["t1", "invented"] {
        let identity = gate.asks(token).await.unwrap();
        assert_eq!(*identity, Identity::new(Method::Introspection, "opaque".into(), sha256(token.as_bytes())));
    }
    assert_eq!(gate.asks("t2").await, invalid("inactive"), "what was heard against a token stands");
    tokio::time::sleep(seconds(10)).await;
    assert_eq!(gate.asks("t1").await, Err(Rejection::CredentialExpired));
}

#[tokio::test(start_paused = true)]
async fn absence_alone_is_passed_on() {
    let gate = Gate::new("from: [{header: Authorization, scheme: Bearer}, {header: X-Token}]");
    for lines in [&[][..], &[("authorization", "Basic eDp5")], &[("x-other", "t1")]] {
        assert!(matches!(present(&gate.introspection, lines, gate.now()).await, Verdict::Pass), "{lines:?}");
    }
    for lines in [&[("authorization", "Bearer a b")][..], &[("authorization", "Bearer")], &[("x-token", "")]] {
        let verdict = present(&gate.introspection, lines, gate.now()).await;
        assert!(matches!(verdict, Verdict::Reject(Rejection::CredentialInvalid("malformed"))), "{lines:?}: {verdict:?}");
    }
    let verdict = present(&gate.introspection, &[("x-token", "a"), ("x-token", "b")], gate.now()).await;
    assert!(matches!(verdict, Verdict::Reject(Rejection::CredentialInvalid(_) | Rejection::BadRequest(_))), "{verdict:?}");
    assert_eq!(gate.server.asked(), 0);
    // A token of three parts is asked about like any other.
    gate.server.says("a.b.c", ACTIVE);
    assert!(gate.asks("a.b.c").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn neither_token_nor_secret_is_printed() {
    let gate = Gate::new("");
    gate.server.says("t0ken", ACTIVE);
    let identity = gate.asks("t0ken").await.unwrap();
    gate.server.breaks(Reply::Says("t0ken".to_owned()));
    let refused = gate.asks("t0ken-2").await;
    let status = gate.introspection.answers.status();
    let shown = format!("{:?} {identity:?} {refused:?} {status:?}", gate.introspection.answers);
    assert!(!shown.contains("t0ken") && !shown.contains("hush"), "{shown}");
}
