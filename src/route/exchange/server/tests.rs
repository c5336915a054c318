//! A server that exchanges tokens: what it may say, how it may fail, and whose token an upstream gets then.

use std::collections::HashMap;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response};
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::config::System;
use crate::live::breaker::State;
use crate::request::Method;

/// What the server does with a question.
#[derive(Debug, Clone)]
enum Reply {
    Says(u16, String),
    /// This status, and when to come again.
    Busy(u16, &'static str),
    Slow(Duration),
    Away,
}

type Form = HashMap<String, String>;

/// A server that answers as a test tells it, and remembers what it was asked.
#[derive(Debug, Default)]
struct Script {
    /// Without one it issues a token that names its subject and audience.
    reply: Mutex<Option<Reply>>,
    asked: Mutex<Vec<(String, Form)>>,
}

impl Script {
    fn says(&self, status: u16, body: impl ToString) {
        *self.reply.lock().unwrap() = Some(Reply::Says(status, body.to_string()));
    }

    fn breaks(&self, reply: Reply) {
        *self.reply.lock().unwrap() = Some(reply);
    }

    fn recovers(&self) {
        *self.reply.lock().unwrap() = None;
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn token_for(form: &Form) -> String {
    let named = ["audience", "resource", "scope"].into_iter().filter_map(|name| form.get(name)).cloned().collect::<Vec<_>>().join("/");
    format!("{}.for.{}", form["subject_token"], named.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
}

#[async_trait::async_trait]
impl Ask for Script {
    async fn ask(&self, request: Request<Bytes>, _: Duration) -> Result<Response<Bytes>, String> {
        let body = String::from_utf8(request.into_body().to_vec()).unwrap();
        let pairs = body.split('&').map(|pair| pair.split_once('=').unwrap());
        let form: Form =
            pairs.map(|(name, value)| (name.to_owned(), percent_decode_str(value).decode_utf8().unwrap().into_owned())).collect();
        let token = token_for(&form);
        self.asked.lock().unwrap().push((body, form));
        let reply = self.reply.lock().unwrap().clone();
        let mut answer = Response::builder();
        let (status, body) = match reply {
            None => (200, issued(&token).to_string()),
            Some(Reply::Says(status, body)) => (status, body),
            Some(Reply::Busy(status, wait)) => {
                answer = answer.header("Retry-After", wait);
                (status, String::new())
            }
            Some(Reply::Slow(pause)) => {
                tokio::time::sleep(pause).await;
                (200, issued(&token).to_string())
            }
            Some(Reply::Away) => return Err("connection refused".to_owned()),
        };
        Ok(answer.status(status).body(Bytes::from(body)).unwrap())
    }
}

fn issued(token: &str) -> Value {
    json!({"access_token": token, "issued_token_type": TokenType::AccessToken.urn(), "token_type": "Bearer", "expires_in": 3600})
}

/// The time at the start of each test, since the epoch.
const START: u64 = 1_800_000_000;

/// A JWT by its outline.
fn ending_at(unix: u64) -> String {
    let part = |members: Value| URL_SAFE_NO_PAD.encode(members.to_string());
    format!("{}.{}.hush", part(json!({"alg": "RS256"})), part(json!({"exp": unix})))
}

struct Gate {
    script: Arc<Script>,
    live: LiveState,
    target: Target,
    started: Instant,
}

fn config(exchange: &str, forward: &str) -> (config::Exchange, config::Forward) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("secret", "hush-hush"), ("actor", "hush/actor="), ("other", "hush-other"), ("jwt", &ending_at(START + 100))] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let path = folder.path().join("edgeward.yaml");
    let text = format!(
        "listeners: [{{address: 127.0.0.1:0}}]\nupstreams: {{orders: {{builtin: echo}}}}\n\
         exchanges: {{sts: {{url: https://sts.test/token, client: {{id: edgeward, secret: {{file: secret}}}}, {exchange}}}}}\n\
         policies: {{p: {{authenticate: a, forward: {{token: exchange, exchange: sts, {forward}}}}}}}\n\
         routes: [{{name: r, path: /, policy: p, upstream: orders}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    let mut config = config::load(&path, &System).config.unwrap();
    (config.exchanges.remove(0).1, config.policies.remove(0).1.forward)
}

impl Gate {
    fn new(exchange: &str, forward: &str) -> Self {
        let (script, live) = (Arc::new(Script::default()), LiveState::default());
        let target = target(&script, &live, "sts", exchange, forward);
        Self { script, live, target, started: Instant::now() }
    }

    /// Another target beside it, of the same server unless it has another name.
    fn beside(&self, name: &str, exchange: &str, forward: &str) -> Target {
        target(&self.script, &self.live, name, exchange, forward)
    }

    fn now(&self) -> Now {
        let passed = self.started.elapsed();
        Now { monotonic: Duration::from_secs(100) + passed, unix: Duration::from_secs(START) + passed }
    }

    async fn asks(&self, token: &str) -> Result<String, Rejection> {
        self.asks_for(&self.target, token, json!({})).await
    }

    async fn asks_for(&self, target: &Target, token: &str, claims: Value) -> Result<String, Rejection> {
        let claims = claims.as_object().unwrap().clone();
        let proven = Identity { claims, ..Identity::new(Method::Jwt, "a".into(), [1; 32]) };
        let value = target.exchange(&proven, token, self.now()).await?;
        assert!(value.is_sensitive() && !format!("{value:?}").contains("for"), "it is not printed");
        Ok(value.to_str().unwrap().strip_prefix("Bearer ").unwrap().to_owned())
    }

    fn failures(&self) -> u64 {
        self.target.server.answers.status().failures
    }
}

fn target(script: &Arc<Script>, live: &LiveState, name: &str, exchange: &str, forward: &str) -> Target {
    let (exchange, forward) = config(exchange, forward);
    let server = TokenServer::asking(Arc::clone(script) as Arc<dyn Ask>, &name.into(), &exchange, live).unwrap();
    server.activate();
    Target::new(Arc::new(server), &forward, &"orders".into())
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn away<T>(outcome: &Result<T, Rejection>) -> bool {
    matches!(outcome, Err(Rejection::DependencyUnavailable { dependency: "exchange", .. }))
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_is_said_as_the_standard_has_it() {
    const TYPE: &str = "urn:ietf:params:oauth:token-type";
    for (exchange, forward, expected) in [
        ("", "", json!({"subject_token_type": format!("{TYPE}:access_token"), "audience": "orders"})),
        ("", "audience: billing", json!({"subject_token_type": format!("{TYPE}:access_token"), "audience": "billing"})),
        (
            "subject_token_type: jwt, requested_token_type: access_token",
            "resource: \"https://orders.test/a?b=c\", scopes: [\"a:b\", c]",
            json!({"subject_token_type": format!("{TYPE}:jwt"), "requested_token_type": format!("{TYPE}:access_token"),
                   "resource": "https://orders.test/a?b=c", "scope": "a:b c"}),
        ),
        (
            "",
            "audience: a&scope=admin, resource: \"https://orders.test/\"",
            json!({"subject_token_type": format!("{TYPE}:access_token"), "audience": "a&scope=admin", "resource": "https://orders.test/"}),
        ),
    ] {
        let gate = Gate::new(exchange, forward);
        gate.asks("t1").await.unwrap();
        let mut form = json!(gate.script.asked.lock().unwrap()[0].1);
        assert_eq!(form["grant_type"], "urn:ietf:params:oauth:grant-type:token-exchange");
        assert_eq!(form["subject_token"], "t1");
        form.as_object_mut().unwrap().retain(|name, _| !["grant_type", "subject_token"].contains(&&**name));
        assert_eq!(form, expected, "{exchange} {forward}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_one_parameter_whatever_it_holds() {
    let gate = Gate::new("", "");
    for token in ["a+b/c==", "a&audience=admin", "a%26scope=x", "a;b#c?d", "a=b=c"] {
        gate.script.says(200, issued("other"));
        assert_eq!(gate.asks(token).await.unwrap(), "other");
        let (body, form) = gate.script.asked.lock().unwrap().last().unwrap().clone();
        assert_eq!((form["subject_token"].as_str(), form["audience"].as_str(), form.len()), (token, "orders", 4), "{body}");
        assert_eq!(body.split('&').count(), 4, "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_acts_is_said_beside_whom_it_is_for() {
    for (exchange, token, kind) in [
        ("actor_token: {file: actor}", "hush/actor=".to_owned(), TokenType::AccessToken),
        ("actor_token: {file: jwt}, actor_token_type: jwt", ending_at(START + 100), TokenType::Jwt),
    ] {
        let gate = Gate::new(exchange, "");
        gate.asks("t1").await.unwrap();
        let (body, form) = gate.script.asked.lock().unwrap()[0].clone();
        assert_eq!((&*form["actor_token"], &*form["actor_token_type"], form.len()), (&*token, kind.urn(), 6), "{body}");
        assert!(!format!("{:?}", gate.target.server.actor).contains("hush"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_is_over_is_not_shown() {
    let gate = Gate::new("actor_token: {file: jwt}", "");
    assert!(gate.asks("known").await.is_ok());
    tokio::time::sleep(seconds(100) - Duration::from_millis(1)).await;
    assert!(gate.asks("t1").await.is_ok());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(away(&gate.asks("t2").await));
    assert_eq!((gate.script.asked(), gate.failures()), (2, 1));
    assert_eq!(gate.target.server.answers.status().last_error.as_deref(), Some("the actor_token is over"));
    assert!(gate.asks("known").await.is_ok(), "what was issued before is the caller's all the same");
}

#[test]
fn what_cannot_be_an_actor_token_is_a_problem_of_the_configuration() {
    for text in ["two words", "a,b", "==", "\u{e9}", &"x".repeat(MAX_TOKEN + 1)] {
        let place = config::Place { file: "edgeward.yaml".into(), line: 1, column: 1, path: "".into() };
        let token = At { value: Secret::new(text.as_bytes().to_vec()), place };
        let problem = Actor::new(&token, TokenType::AccessToken).unwrap_err();
        assert!(problem.to_string().contains("no token") && !problem.to_string().contains(text), "{problem}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_to_come_again_is_passed_on() {
    for (reply, expected) in [
        (Reply::Busy(503, "30"), 30),
        (Reply::Busy(429, "30"), 30),
        (Reply::Busy(503, "0"), 1),
        (Reply::Busy(503, "soon"), 1),
        (Reply::Busy(500, "30"), 1),
        (Reply::Says(503, String::new()), 1),
    ] {
        let gate = Gate::new("breaker: {failures: 2, open: 10s}", "");
        gate.script.breaks(reply.clone());
        let unavailable =
            |wait: u64| Err(Rejection::DependencyUnavailable { dependency: "exchange", retry_after: Duration::from_secs(wait) });
        assert_eq!(gate.asks("t1").await, unavailable(expected), "{reply:?}");
        assert_eq!(gate.asks("t2").await, unavailable(expected.max(10)), "{reply:?}: the breaker's, where that is longer");
        gate.script.recovers();
        tokio::time::sleep(seconds(10)).await;
        assert!(gate.asks("t1").await.is_ok(), "{reply:?}: nobody else is held back");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_exchanged_once_until_the_first_of_three_ends() {
    // The issued token lives for an hour and is used until 10 s before, `ttl` is the operator's, `exp` the caller's.
    for (cache, claims, expires_in, kept) in [
        ("ttl: 100s", json!({}), json!(3600), 100),
        ("ttl: 100s", json!({}), json!(60), 50),
        ("ttl: 100s", json!({"exp": START + 30}), json!(60), 30),
        ("ttl: 100s", json!({"exp": START + 30}), Value::Null, 30),
        ("ttl: 100s", json!({}), Value::Null, 100),
        ("ttl: 100s", json!({"exp": START}), json!(3600), 0),
        ("ttl: 100s", json!({}), json!(9), 0),
        ("ttl: 0s", json!({}), json!(3600), 0),
    ] {
        let gate = Gate::new(&format!("cache: {{{cache}}}"), "");
        let mut answer = issued("x");
        answer["expires_in"] = expires_in.clone();
        answer.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        gate.script.says(200, answer);
        let ask = async || gate.asks_for(&gate.target, "t1", claims.clone()).await.unwrap();
        ask().await;
        if kept > 0 {
            tokio::time::sleep(seconds(kept) - Duration::from_millis(1)).await;
            ask().await;
            assert_eq!(gate.script.asked(), 1, "{cache} {claims} {expires_in}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        ask().await;
        assert_eq!(gate.script.asked(), 2, "{cache} {claims} {expires_in}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_gets_what_was_issued_for_another() {
    let gate = Gate::new("", "");
    let long = "x".repeat(4096);
    let tokens = ["t1".to_owned(), "t2".to_owned(), format!("{long}1"), format!("{long}2"), format!("1{long}"), "t".to_owned()];
    for _ in 0..2 {
        for token in &tokens {
            assert_eq!(gate.asks(token).await.unwrap(), format!("{token}.for.orders"));
        }
    }
    assert_eq!(gate.script.asked(), tokens.len());
    // The same token for another target, or asked for in another way, or by another client.
    let others = [
        gate.beside("sts", "", "audience: billing"),
        gate.beside("sts", "", "resource: \"https://orders\""),
        gate.beside("sts", "", "audience: orders, resource: \"https://orders\""),
        gate.beside("sts", "", "scopes: [a, b]"),
        gate.beside("sts", "", "scopes: [b, a]"),
        gate.beside("sts", "requested_token_type: access_token", ""),
        gate.beside("sts", "subject_token_type: jwt", ""),
        gate.beside("sts", "actor_token: {file: actor}", ""),
        gate.beside("sts", "actor_token: {file: other}", ""),
        gate.beside("sts", "actor_token: {file: actor}, actor_token_type: jwt", ""),
        gate.beside("other", "", ""),
    ];
    for (i, other) in others.iter().enumerate() {
        gate.asks_for(other, "t1", json!({})).await.unwrap();
        assert_eq!(gate.script.asked(), tokens.len() + i + 1, "{other:?}");
    }
    // What was tuned meanwhile is not forgotten.
    let tuned = gate.beside("sts", "cache: {ttl: 1h}, timeout: 1s, breaker: {failures: 1}", "");
    assert_eq!(gate.asks_for(&tuned, "t1", json!({})).await.unwrap(), "t1.for.orders");
    assert_eq!(gate.script.asked(), tokens.len() + others.len());
}

#[tokio::test(start_paused = true)]
async fn many_with_one_new_token_ask_once() {
    let gate = Gate::new("", "");
    gate.script.breaks(Reply::Slow(Duration::from_millis(100)));
    let all = futures_util::future::join_all((0..500).map(|_| gate.asks("t1"))).await;
    assert!(all.iter().all(|outcome| outcome.as_deref() == Ok("t1.for.orders")));
    assert_eq!(gate.script.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_word_against_the_caller_refuses_it_and_is_repeated_for_a_moment() {
    let (invalid, forbidden) = (Rejection::CredentialInvalid, Rejection::Forbidden);
    for (status, error, expected) in [
        (400, "invalid_grant", invalid("exchange_invalid_grant")),
        (400, "invalid_token", invalid("exchange_invalid_token")),
        (400, "invalid_request", forbidden("exchange_invalid_request")),
        (400, "invalid_target", forbidden("exchange_invalid_target")),
        (400, "invalid_scope", forbidden("exchange_invalid_scope")),
        (403, "access_denied", forbidden("exchange_access_denied")),
    ] {
        let gate = Gate::new("cache: {negative_ttl: 10s}", "");
        gate.script.says(status, json!({"error": error, "error_description": "no"}));
        for _ in 0..3 {
            assert_eq!(gate.asks("t1").await, Err(expected.clone()), "{error}");
        }
        assert_eq!((gate.script.asked(), gate.failures()), (1, 0), "{error}");
        gate.script.recovers();
        assert!(gate.asks("t2").await.is_ok(), "another token is another question");
        tokio::time::sleep(seconds(10)).await;
        assert!(gate.asks("t1").await.is_ok(), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_no_answer_lets_nobody_through() {
    let good = issued("x");
    let without = |name: &str| {
        let mut answer = good.clone();
        answer.as_object_mut().unwrap().remove(name);
        answer
    };
    let with = |name: &str, value: Value| {
        let mut answer = good.clone();
        answer[name] = value;
        answer
    };
    let mut bodies: Vec<String> =
        ["access_token", "issued_token_type", "token_type"].iter().map(|name| without(name).to_string()).collect();
    for (name, values) in [
        (
            "access_token",
            json!(["", " ", "a b", "a\r\nX-Admin: 1", "a,b", "\u{e9}", "==", 1, null, ["x"], {"x": 1}, "x".repeat(17 * 1024), "t1"]),
        ),
        ("token_type", json!(["", "N_A", "n_a", "DPoP", "mac", "Bearer ", null, 1, ["Bearer"]])),
        (
            "issued_token_type",
            json!([
                "",
                "access_token",
                "urn:ietf:params:oauth:token-type:refresh_token",
                "urn:ietf:params:oauth:token-type:id_token",
                null,
                1
            ]),
        ),
        ("expires_in", json!([0, -1, "3600", true, null, [60], 1e300])),
    ] {
        bodies.extend(values.as_array().unwrap().iter().map(|value| with(name, value.clone()).to_string()));
    }
    bodies.extend([good.to_string().replace("\"x\"", "\"x\",\"access_token\":\"y\""), format!("[{good}]"), format!("{good}{good}")]);
    bodies.extend(["", "x", "<html>", "null", "{", "{}", "{\"access_token\":\"x\",\"token_type\":\"Bearer\""].map(str::to_owned));
    bodies.push(with("padding", json!("x".repeat(64 * 1024))).to_string());
    for body in bodies {
        let gate = Gate::new("", "");
        gate.script.says(200, &body);
        assert!(away(&gate.asks("t1").await), "{body}");
        assert_eq!(gate.failures(), 1, "{body}");
    }
    for status in [201, 204, 206, 301, 302, 307, 400, 401, 403, 404, 429, 500, 502, 503] {
        let gate = Gate::new("", "");
        gate.script.says(status, &good);
        assert!(away(&gate.asks("t1").await), "{status}");
    }
    // What is said of us is no word against the caller.
    for (status, error) in [
        (400, json!("invalid_client")),
        (401, json!("invalid_client")),
        (401, json!("invalid_grant")),
        (500, json!("invalid_grant")),
        (302, json!("invalid_target")),
        (400, json!("unauthorized_client")),
        (400, json!("unsupported_grant_type")),
        (400, json!("server_error")),
        (400, json!(["invalid_grant"])),
        (400, json!("Invalid_grant")),
        (400, Value::Null),
    ] {
        let gate = Gate::new("", "");
        gate.script.says(status, json!({"error": error}));
        assert!(away(&gate.asks("t1").await), "{status} {error}");
    }
    // One that is as it should be.
    let gate = Gate::new("", "");
    gate.script.says(200, with("token_type", json!("bearer")));
    assert_eq!(gate.asks("t1").await.unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn the_kind_that_was_asked_for_is_the_kind_that_is_taken() {
    for (requested, issued_type, taken) in [
        ("", TokenType::AccessToken, true),
        ("", TokenType::Jwt, true),
        ("requested_token_type: jwt", TokenType::Jwt, true),
        ("requested_token_type: jwt", TokenType::AccessToken, false),
        ("requested_token_type: access_token", TokenType::AccessToken, true),
        ("requested_token_type: access_token", TokenType::Jwt, false),
    ] {
        let gate = Gate::new(requested, "");
        let mut answer = issued("x");
        answer["issued_token_type"] = json!(issued_type.urn());
        gate.script.says(200, answer);
        assert_eq!(gate.asks("t1").await.is_ok(), taken, "{requested} {issued_type:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_left_alone_and_what_it_issued_serves_on() {
    let gate = Gate::new("breaker: {failures: 3, open: 10s}, timeout: 2s, cache: {ttl: 60s}", "");
    assert!(gate.asks("known").await.is_ok());
    gate.script.breaks(Reply::Slow(seconds(30)));
    let began = Instant::now();
    assert!(away(&gate.asks("t0").await));
    assert_eq!(began.elapsed(), seconds(2), "a caller waits no longer");
    gate.script.breaks(Reply::Away);
    for i in 1..10 {
        assert!(away(&gate.asks(&format!("t{i}")).await));
    }
    assert_eq!(gate.script.asked(), 4, "nobody asks");
    assert_eq!(gate.target.server.answers.status().breaker, State::Open);
    assert_eq!(gate.asks("known").await.unwrap(), "known.for.orders");
    gate.script.recovers();
    tokio::time::sleep(seconds(10)).await;
    assert!(gate.asks("t1").await.is_ok(), "one tries it");
    assert_eq!(gate.target.server.answers.status().breaker, State::Closed);
    gate.script.breaks(Reply::Away);
    tokio::time::sleep(seconds(60)).await;
    assert!(away(&gate.asks("known").await), "its time is over, and nobody is let through");
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_told_without_a_token() {
    let gate = Gate::new("", "");
    for (status, body) in [
        (200, json!({"access_token": "secret", "token_type": "Bearer"})),
        (200, issued("secret-caller")),
        (400, json!({"error": "invalid_client", "error_description": "secret"})),
        (400, json!({"error": "secret"})),
    ] {
        gate.script.says(status, body);
        assert!(away(&gate.asks("secret-caller").await));
        let told = gate.target.server.answers.status().last_error.unwrap();
        assert!(!told.contains("secret"), "{told}");
    }
    assert!(!format!("{:?}", gate.target).contains("hush"));
}
