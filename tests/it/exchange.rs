//! Token exchange with an outside server: what it is asked, what the service behind gets in place of the caller's token, and what callers meet
//! while the server misbehaves, refuses or is away.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use edgeward::authenticators::key_format;
use edgeward::jose::Algorithm;
use edgeward::live::api_keys::KeyHash;
use serde_json::{Value, json};

use crate::harness::client::{self, Answer, request};
use crate::harness::gateway::{Folder, Gateway, command};
use crate::harness::issuer::Issuer;
use crate::harness::origin::{Origin, Recorded, Reply, answer};
use crate::harness::until;

/// What the server does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Good,
    Slow,
    Garbled,
    Resets,
    Redirects,
    Failing,
    Huge,
    /// Asks to be left alone for so many seconds.
    Busy(&'static str),
    /// The caller's own token comes back.
    Echoes,
    /// Says what it issued to be something else.
    Mislabels(&'static str, &'static str),
    /// Refuses with this word.
    Refuses(u16, &'static str),
}

struct Server {
    origin: Origin,
    mood: Arc<Mutex<Mood>>,
}

impl Server {
    /// Issues `issued-N` for the Nth question.
    fn start() -> Self {
        let mood = Arc::new(Mutex::new(Mood::Good));
        let (now, count) = (Arc::clone(&mood), Mutex::new(0));
        let origin = Origin::scripted(move |request| {
            let number = {
                let mut count = count.lock().unwrap();
                *count += 1;
                *count
            };
            let mood = *now.lock().unwrap();
            reply(request, mood, number)
        });
        Self { origin, mood }
    }

    fn feels(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn asked(&self) -> usize {
        self.origin.requests().len()
    }
}

const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

fn reply(request: &Recorded, mood: Mood, number: usize) -> Reply {
    let mut said =
        json!({"access_token": format!("issued-{number}"), "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 300});
    let says = |status, said: &Value| Reply::Bytes(answer(status, &[("Content-Type", "application/json")], &said.to_string()));
    match mood {
        // Long enough for a crowd to gather.
        Mood::Good => {
            std::thread::sleep(Duration::from_millis(20));
            says(200, &said)
        }
        Mood::Slow => Reply::Silence(Duration::from_secs(30)),
        Mood::Garbled => Reply::Bytes(answer(200, &[], "<html>access_token</html>")),
        Mood::Resets => Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"access_token\":\"x\"".to_vec()),
        Mood::Redirects => Reply::Bytes(answer(307, &[("Location", "/elsewhere")], &said.to_string())),
        Mood::Failing => says(500, &said),
        Mood::Huge => {
            said["padding"] = json!("x".repeat(200 * 1024));
            says(200, &said)
        }
        Mood::Busy(wait) => Reply::Bytes(answer(503, &[("Retry-After", wait)], "")),
        Mood::Echoes => {
            let form = String::from_utf8_lossy(&request.body).into_owned();
            said["access_token"] = json!(form.split('&').find_map(|pair| pair.strip_prefix("subject_token=")).unwrap());
            says(200, &said)
        }
        Mood::Mislabels(name, value) => {
            said[name] = json!(value);
            says(200, &said)
        }
        Mood::Refuses(status, error) => says(status, &json!({"error": error, "error_description": "for a reason"})),
    }
}

fn key() -> String {
    key_format::compose("ck_test_", "acme00", &[7; 32]).to_string()
}

fn config(issuer: &Issuer, server: &Server, origin: &Origin, fields: &str) -> String {
    format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{orders: {{servers: ["{}"], timeouts: {{connect: 10s}}}}}}
revocation: {{database: data/revoked.db}}
limits: {{few: {{per: client_ip, rate: 2/1h}}, fewer: {{per: subject, rate: 2/1h}}}}
authenticators:
  customers:
    jwt: {{issuer: "{}", audiences: [gateway], keys: {{jwks_url: "{}"}}, from: [{{header: Authorization, scheme: Bearer}}, {{query: access_token}}]}}
  partners: {{api_key: {{prefix: ck_test_, keys: {{file: keys.yaml}}}}}}
  second: {{api_key: {{prefix: ck_test_, keys: {{file: keys.yaml}}, from: [{{header: X-Second-Key}}]}}}}
exchanges:
  sts:
    url: http://{}/token
    client: {{id: edgeward, secret: {{file: secret}}}}
    {fields}
policies:
  told: {{authenticate: customers, forward: {{token: exchange, exchange: sts}}}}
routes:
  - {{name: orders, path: "/orders/{{*rest}}", upstream: orders, policy: told}}
  - {{name: other, path: /other, upstream: orders, policy: {{authenticate: customers, forward: {{token: exchange, exchange: sts, audience: billing, scopes: [read]}}}}}}
  - {{name: mixed, path: /mixed, upstream: orders, policy: {{authenticate: [partners, customers], forward: {{token: exchange, exchange: sts}}}}}}
  - {{name: both, path: /both, upstream: orders, policy: {{authenticate: {{all: [partners, customers]}}, forward: {{token: exchange, exchange: sts}}}}}}
  - {{name: nested, path: /nested, upstream: orders, policy: {{authenticate: {{all: [partners, {{all: [second, customers]}}]}}, forward: {{token: exchange, exchange: sts}}}}}}
  - {{name: maybe, path: /maybe, upstream: orders, policy: {{authenticate: {{optional: customers}}, forward: {{token: exchange, exchange: sts}}}}}}
  - {{name: limited, path: /limited, upstream: orders, policy: {{authenticate: customers, limits: [few, fewer], forward: {{token: exchange, exchange: sts}}}}}}
  - {{name: open, path: /open, upstream: orders, policy: {{authenticate: public}}}}
"#,
        origin.address,
        issuer.url(),
        issuer.jwks_url(),
        server.origin.address
    )
}

/// A gateway between callers, the issuer of their tokens, the server that exchanges them, and the service behind.
struct Stage {
    issuer: Issuer,
    server: Server,
    origin: Origin,
    gateway: Gateway,
}

impl Stage {
    fn new(fields: &str) -> Self {
        let (issuer, server, origin) = (Issuer::start(Algorithm::Es256), Server::start(), Origin::start());
        let folder = Folder::new();
        folder.write("secret", "hush-hush");
        let hash: String = KeyHash::of(&key()).0.iter().map(|byte| format!("{byte:02x}")).collect();
        folder.write("keys.yaml", format!("keys:\n  - {{id: acme00, sha256: {hash}, consumer: acme}}\n"));
        let gateway = Gateway::start_in(folder, &config(&issuer, &server, &origin, fields));
        Self { issuer, server, origin, gateway }
    }

    fn token(&self, subject: &str) -> String {
        self.issuer.token("gateway", json!({"sub": subject, "jti": subject}))
    }

    fn ask(&self, path: &str, token: &str) -> Answer {
        self.gateway.get(path, &[("Authorization", &format!("Bearer {token}"))])
    }

    /// What the service behind saw in `Authorization` of the latest request.
    fn seen(&self) -> Option<String> {
        self.origin.last().header("authorization").map(str::to_owned)
    }

    fn is_ready(&self) -> String {
        client::get(self.gateway.admin(), "/readyz", &[]).json()["status"].as_str().unwrap().to_owned()
    }
}

#[test]
fn the_service_gets_the_issued_token_and_never_the_callers() {
    let stage = Stage::new("");
    let (alice, bob) = (stage.token("alice"), stage.token("bob"));
    for _ in 0..3 {
        assert_eq!(stage.ask("/orders/7", &alice).status, 200);
        assert_eq!(stage.seen().as_deref(), Some("Bearer issued-1"));
    }
    let asked = stage.server.origin.last();
    assert_eq!(asked.request_line(), "POST /token HTTP/1.1");
    assert_eq!(asked.header("authorization"), Some("Basic ZWRnZXdhcmQ6aHVzaC1odXNo"));
    assert_eq!(
        String::from_utf8(asked.body).unwrap(),
        format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token={alice}\
             &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aaccess_token&audience=orders"
        )
    );
    // Another caller, and the same one for another service.
    assert_eq!(stage.ask("/orders/7", &bob).status, 200);
    assert_eq!(stage.seen().as_deref(), Some("Bearer issued-2"));
    assert_eq!(stage.ask("/other", &alice).status, 200);
    assert_eq!(stage.seen().as_deref(), Some("Bearer issued-3"));
    let form = String::from_utf8(stage.server.origin.last().body).unwrap();
    assert!(form.ends_with("&audience=billing&scope=read"), "{form}");
    assert_eq!(stage.ask("/orders/8", &alice).status, 200);
    assert_eq!((stage.seen().as_deref(), stage.server.asked()), (Some("Bearer issued-1"), 3));

    // However the caller presents it, and whatever it says beside it.
    assert_eq!(stage.gateway.get(&format!("/orders/7?a=b&access_token={alice}"), &[("Authorization", "Basic eDp5")]).status, 200);
    assert_eq!((stage.seen().as_deref(), stage.origin.last().target()), (Some("Bearer issued-1"), "/orders/7?a=b"));
    let nominated =
        [("authorization", &*format!("bearer {alice}")), ("Connection", "authorization, close"), ("X-Identity-Token", "forged")];
    assert_eq!(stage.gateway.get("/orders/7", &nominated).status, 200);
    assert_eq!(stage.origin.last().headers_like("authorization"), ["Bearer issued-1"]);
    assert_eq!(stage.origin.last().header("x-identity-token"), None);
    assert_eq!(stage.origin.last().header("x-user-id"), Some("alice"));
    let post = request("POST", "/orders/7", &[("Authorization", &format!("Bearer {alice}"))], b"body");
    assert_eq!((stage.gateway.ask(post).status, &stage.origin.last().body[..]), (200, &b"body"[..]));
    for connection in stage.origin.received() {
        let text = String::from_utf8_lossy(&connection).into_owned();
        assert!(!text.contains(&alice) && !text.contains(&bob), "{text}");
    }

    let metric = |name: &str, label: &str| stage.gateway.metric(name, &["exchange=\"sts\"", label]);
    assert_eq!(metric("edgeward_exchange_answers", "kind=\"issued\""), 3.0);
    assert_eq!(metric("edgeward_exchange_calls", "outcome=\"answered\""), 3.0);
    assert_eq!(metric("edgeward_exchange_requests", "answer=\"asked\""), 3.0);
    assert_eq!(metric("edgeward_exchange_breaker_state", "state=\"closed\""), 1.0);
    let page = client::get(stage.gateway.admin(), "/metrics", &[]);
    for secret in [&*alice, &*bob, "issued-", "hush-hush", "ZWRnZXdhcmQ6aHVzaC1odXNo"] {
        assert!(!stage.gateway.printed().contains(secret) && !page.text().contains(secret), "{secret}");
    }
}

#[test]
fn only_a_token_can_be_exchanged_and_nobody_else_goes_on_without() {
    let stage = Stage::new("");
    let (alice, key) = (stage.token("alice"), key());
    let refused = stage.gateway.get("/mixed", &[("X-API-Key", &key)]);
    assert_eq!((refused.status, refused.code().as_str()), (403, "forbidden"));
    until("the log says why", || {
        stage.gateway.access_log().iter().any(|line| line["reason"] == "exchange_no_token" && line["consumer"] == "acme")
    });
    assert_eq!(stage.ask("/mixed", &alice).status, 200);
    assert_eq!(stage.seen().as_deref(), Some("Bearer issued-1"));
    // The token of the two.
    let both = [("X-API-Key", &*key), ("Authorization", &*format!("Bearer {alice}"))];
    assert_eq!(stage.gateway.get("/both", &both).status, 200);
    assert_eq!((stage.seen().as_deref(), stage.origin.last().header("x-api-key")), (Some("Bearer issued-1"), None));
    // However deep it stands.
    let nested = [both[0], both[1], ("X-Second-Key", &*key)];
    assert_eq!(stage.gateway.get("/nested", &both).code(), "credential_missing");
    assert_eq!(stage.gateway.get("/nested", &nested).status, 200);
    let seen = stage.origin.last();
    assert_eq!((seen.header("authorization"), seen.header("x-second-key")), (Some("Bearer issued-1"), None));
    assert_eq!(seen.header("x-auth-method"), Some("api_key api_key jwt"));
    assert_eq!(stage.ask("/maybe", &alice).status, 200);
    assert_eq!(stage.seen().as_deref(), Some("Bearer issued-1"));
    // Of nobody there is nothing to exchange.
    assert_eq!(stage.gateway.get("/maybe", &[("Authorization", "Basic eDp5")]).status, 200);
    assert_eq!(stage.origin.last().header("x-user-id"), None);
    let before = (stage.origin.requests().len(), stage.server.asked());
    assert_eq!(stage.ask("/maybe", "no-token").status, 401);
    assert_eq!(stage.ask("/orders/7", &stage.issuer.token("elsewhere", json!({}))).status, 401);
    assert_eq!(stage.gateway.get("/orders/7", &[]).code(), "credential_missing");
    assert_eq!((stage.origin.requests().len(), stage.server.asked()), before, "who is refused is not asked about");
}

#[test]
fn many_callers_with_one_new_token_ask_once() {
    let stage = Stage::new("timeout: 10s");
    let alice = stage.token("alice");
    assert_eq!(stage.ask("/orders/7", &stage.token("first")).status, 200);
    std::thread::scope(|scope| {
        for _ in 0..500 {
            scope.spawn(|| assert_eq!(stage.ask("/orders/7", &alice).status, 200));
        }
    });
    assert_eq!(stage.server.asked(), 2);
    let seen = stage.origin.requests();
    assert_eq!(seen.iter().filter(|request| request.header("authorization") == Some("Bearer issued-2")).count(), 500);
}

#[test]
fn whatever_the_server_does_nobody_goes_on_without_a_token_and_it_is_taken_back() {
    let moods = [
        Mood::Slow,
        Mood::Garbled,
        Mood::Resets,
        Mood::Redirects,
        Mood::Failing,
        Mood::Huge,
        Mood::Echoes,
        Mood::Mislabels("token_type", "N_A"),
        Mood::Mislabels("issued_token_type", "urn:ietf:params:oauth:token-type:refresh_token"),
        Mood::Mislabels("access_token", "x\r\nX-Admin: 1"),
        Mood::Refuses(401, "invalid_client"),
        Mood::Refuses(400, "unauthorized_client"),
    ];
    let stage = Stage::new("timeout: 300ms\n    breaker: {failures: 3, open: 1s}\n    cache: {ttl: 60s}");
    let known = stage.token("known");
    assert_eq!(stage.ask("/orders/7", &known).status, 200);
    for (round, mood) in moods.into_iter().enumerate() {
        stage.server.feels(mood);
        let before = (stage.origin.requests().len(), stage.server.asked());
        for i in 0..8 {
            let began = Instant::now();
            let refused = stage.ask("/orders/7", &stage.token(&format!("alice-{round}-{i}")));
            assert_eq!((refused.status, refused.code().as_str()), (503, "dependency_unavailable"), "{mood:?}");
            assert!(refused.header("retry-after").is_some());
            assert!(began.elapsed() < Duration::from_millis(1500), "{mood:?}: {:?}", began.elapsed());
        }
        assert_eq!(stage.origin.requests().len(), before.0, "{mood:?}: nothing is forwarded");
        let calls = stage.server.asked() - before.1;
        assert!((3..=5).contains(&calls), "{mood:?}: the breaker: {calls} calls");
        assert_eq!(stage.ask("/orders/7", &known).status, 200, "what is known needs nobody");
        assert_eq!(stage.seen().as_deref(), Some("Bearer issued-1"));
        assert_eq!(stage.gateway.get("/open", &[]).status, 200);
        assert_eq!(stage.gateway.metric("edgeward_exchange_breaker_state", &["state=\"open\""]), 1.0);
        assert_eq!(stage.is_ready(), "degraded");
        stage.server.feels(Mood::Good);
        until("it is taken back", || stage.ask("/orders/7", &stage.token(&format!("new-{round}"))).status == 200);
        assert_eq!(stage.is_ready(), "ready");
    }
    assert!(stage.server.origin.requests().iter().all(|request| request.target() == "/token"), "no redirect is followed");
}

#[test]
fn a_word_against_the_caller_is_a_refusal_and_costs_no_budget() {
    let stage = Stage::new("cache: {negative_ttl: 1s}");
    let alice = stage.token("alice");
    for (status, error, expected) in [
        (400, "invalid_grant", (401, "credential_invalid")),
        (400, "invalid_request", (403, "forbidden")),
        (400, "invalid_target", (403, "forbidden")),
        (403, "access_denied", (403, "forbidden")),
    ] {
        stage.server.feels(Mood::Refuses(status, error));
        let before = stage.server.asked();
        until("what was said before is over", || {
            let _ = stage.ask("/limited", &alice);
            stage.server.asked() > before
        });
        for _ in 0..3 {
            let refused = stage.ask("/limited", &alice);
            assert_eq!((refused.status, refused.code().as_str()), expected, "{error}");
            let challenged = refused.header("www-authenticate").is_some_and(|challenge| challenge.contains("invalid_token"));
            assert_eq!(challenged, expected.0 == 401, "{error}");
        }
        let reason = format!("exchange_{error}");
        until("the log says why", || stage.gateway.access_log().iter().any(|line| line["reason"] == *reason && line["subject"] == "alice"));
    }
    assert_eq!(stage.origin.requests().len(), 0);
    assert_eq!(stage.gateway.metric("edgeward_exchange_breaker_state", &["state=\"closed\""]), 1.0, "the server is well");
    // The whole of both limits is left.
    stage.server.feels(Mood::Good);
    until("a refusal is not for ever", || stage.ask("/limited", &alice).status == 200);
    assert_eq!(stage.ask("/limited", &alice).status, 200);
    assert_eq!(stage.ask("/limited", &alice).code(), "rate_limited");
    // So it is while the server is away.
    let stage = Stage::new("timeout: 200ms\n    breaker: {failures: 2, open: 500ms}");
    stage.server.feels(Mood::Failing);
    for _ in 0..5 {
        assert_eq!(stage.ask("/limited", &stage.token("alice")).status, 503);
    }
    stage.server.feels(Mood::Good);
    until("it is back", || stage.ask("/orders/7", &stage.token("alice")).status == 200);
    assert_eq!([(); 3].map(|()| stage.ask("/limited", &stage.token("alice")).status), [200, 200, 429]);
}

#[test]
fn callers_are_told_when_the_server_wants_to_be_asked_again() {
    let stage = Stage::new("breaker: {failures: 1000}");
    for (wait, told) in [("7", "7"), ("0", "1"), ("100000000", "3600"), ("later", "1")] {
        stage.server.feels(Mood::Busy(wait));
        let refused = stage.ask("/orders/7", &stage.token("alice"));
        assert_eq!((refused.code().as_str(), refused.header("retry-after")), ("dependency_unavailable", Some(told)), "{wait}");
    }
}

#[test]
fn the_server_is_told_who_acts_for_the_caller_as_the_file_has_it_now() {
    let stage = Stage::new("actor_token: {file: secret}\n    actor_token_type: jwt");
    let alice = stage.token("alice");
    let acting = |token: &str| {
        let form = String::from_utf8(stage.server.origin.last().body).unwrap();
        form.contains(&format!("&actor_token={token}&actor_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt&"))
    };
    assert_eq!(stage.ask("/orders/7", &alice).status, 200);
    assert!(acting("hush-hush"));
    std::fs::write(stage.gateway.folder().path().join("secret"), "hush-anew").unwrap();
    until("another acts", || stage.ask("/orders/7", &alice).status == 200 && acting("hush-anew"));
    assert_eq!((stage.seen().as_deref(), stage.server.asked()), (Some("Bearer issued-2"), 2));
}

#[test]
fn a_revoked_token_does_not_go_on_by_what_is_remembered_of_it() {
    let stage = Stage::new("cache: {ttl: 1h}");
    let (alice, bob) = (stage.token("alice"), stage.token("bob"));
    assert_eq!((stage.ask("/orders/7", &alice).status, stage.ask("/orders/7", &bob).status), (200, 200));
    let line = ["revoke", "-c", "edgeward.yaml", "--jti", "alice"];
    let revoked = command(&line).current_dir(stage.gateway.folder().path()).output().unwrap();
    assert!(revoked.status.success(), "{revoked:?}");
    until("the token is refused", || stage.ask("/orders/7", &alice).status == 401);
    assert_eq!(stage.ask("/orders/7", &alice).code(), "credential_revoked");
    assert_eq!(stage.ask("/orders/7", &bob).status, 200);
    // So does one whose own time is over, whatever the issued one's.
    let short = stage.issuer.token("gateway", json!({"sub": "carol", "exp": unix() - 25}));
    assert_eq!(stage.ask("/orders/7", &short).status, 200, "within the leeway of 30 s");
    until("its time is over", || stage.ask("/orders/7", &short).status == 401);
    assert_eq!(stage.ask("/orders/7", &short).code(), "credential_expired");
}

fn unix() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn an_opaque_token_is_exchanged_as_well() {
    let (server, origin) = (Server::start(), Origin::start());
    let issuer = Origin::scripted(|request| {
        let known = String::from_utf8_lossy(&request.body).contains("token=opaque-alice");
        let said = if known { json!({"active": true, "sub": "alice"}) } else { json!({"active": false}) };
        Reply::Bytes(answer(200, &[], &said.to_string()))
    });
    let folder = Folder::new();
    folder.write("secret", "hush-hush");
    let gateway = Gateway::start_in(
        folder,
        &format!(
            r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{orders: {{servers: ["{}"]}}}}
authenticators: {{opaque: {{introspection: {{url: "http://{}/i", client: {{id: e, secret: {{file: secret}}}}, from: [{{header: X-Token}}, {{cookie: session}}]}}}}}}
exchanges: {{sts: {{url: "http://{}/token", client: {{id: e, secret: {{file: secret}}}}, subject_token_type: jwt}}}}
routes: [{{name: r, path: /, upstream: orders, policy: {{authenticate: opaque, forward: {{token: exchange, exchange: sts, resource: "https://orders.test/"}}}}}}]
"#,
            origin.address, issuer.address, server.origin.address
        ),
    );
    for headers in [[("X-Token", "opaque-alice"), ("X_Token", "opaque-alice")], [("Cookie", "a=b; session=opaque-alice"), ("A", "b")]] {
        assert_eq!(gateway.get("/", &headers).status, 200);
        let seen = origin.last();
        assert_eq!((seen.header("authorization"), seen.header("x-user-id")), (Some("Bearer issued-1"), Some("alice")));
        assert!(!seen.head.contains("opaque-alice"), "{}", seen.head);
    }
    assert_eq!(gateway.get("/", &[("X-Token", "opaque-mallory")]).status, 401);
    assert_eq!(server.asked(), 1);
    let form = String::from_utf8(server.origin.last().body).unwrap();
    assert!(form.contains("token-type%3Ajwt&resource=https%3A%2F%2Forders.test%2F") && !form.contains("audience"), "{form}");
}

#[test]
fn a_reload_keeps_what_was_issued_and_check_says_what_happens_without_the_server() {
    let stage = Stage::new("");
    let alice = stage.token("alice");
    assert_eq!(stage.ask("/orders/7", &alice).status, 200);
    let reloaded = config(&stage.issuer, &stage.server, &stage.origin, "cache: {ttl: 1m, entries: 10}\n    timeout: 1s");
    stage.gateway.rewrite(&reloaded);
    until("the change is applied", || stage.gateway.metric("edgeward_config_generation", &[]) == 2.0);
    assert_eq!((stage.ask("/orders/7", &alice).status, stage.server.asked()), (200, 1));
    // What is asked for otherwise is asked for anew.
    stage.gateway.rewrite(&reloaded.replace("exchange: sts}", "exchange: sts, scopes: [more]}"));
    until("the change is applied", || stage.gateway.metric("edgeward_config_generation", &[]) == 3.0);
    assert_eq!((stage.ask("/orders/7", &alice).status, stage.server.asked()), (200, 2));

    let check = command(&["check", "-c", "edgeward.yaml"]).current_dir(stage.gateway.folder().path()).output().unwrap();
    let said = String::from_utf8(check.stdout).unwrap();
    for part in [
        "tokens are exchanged by sts, and who is proven by anything else is refused",
        "sts: tokens are exchanged at http://",
        "what was issued is used for 1m; away after 1s for a request, or after 5 failures for 10s; then 503",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
