//! Opaque tokens: a server that knows them, misbehaves and comes back, and what callers, the service behind and operators see of it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::client;
use crate::harness::gateway::{Folder, Gateway, command};
use crate::harness::origin::{Origin, Recorded, Reply, answer};
use crate::harness::until;

/// What the server does.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Good,
    Slow,
    Garbled,
    Resets,
    Redirects,
    Failing,
}

struct Server {
    origin: Origin,
    mood: Arc<Mutex<Mood>>,
    revoked: Arc<Mutex<bool>>,
}

impl Server {
    /// Knows the tokens `alice-*`, which may read orders, and calls every other inactive.
    fn start() -> Self {
        let (mood, revoked) = (Arc::new(Mutex::new(Mood::Good)), Arc::new(Mutex::new(false)));
        let (now, withdrawn) = (Arc::clone(&mood), Arc::clone(&revoked));
        let origin = Origin::scripted(move |request| match *now.lock().unwrap() {
            Mood::Good => Reply::Bytes(said(request, *withdrawn.lock().unwrap())),
            Mood::Slow => Reply::Silence(Duration::from_secs(30)),
            Mood::Garbled => Reply::Bytes(answer(200, &[], "<html>{\"active\":true}</html>")),
            Mood::Resets => Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"active\":true".to_vec()),
            Mood::Redirects => Reply::Bytes(answer(302, &[("Location", "/elsewhere")], "{\"active\":true}")),
            Mood::Failing => Reply::Bytes(answer(500, &[], "{\"active\":true}")),
        });
        Self { origin, mood, revoked }
    }

    fn feels(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn asked(&self) -> usize {
        self.origin.requests().len()
    }
}

fn said(request: &Recorded, revoked: bool) -> Vec<u8> {
    let form = String::from_utf8_lossy(&request.body).into_owned();
    let known = form.contains("token=alice-") && !revoked && request.header("authorization") == Some("Basic ZWRnZXdhcmQ6aHVzaC1odXNo");
    let body = if known {
        json!({"active": true, "sub": "alice", "client_id": "shop", "scope": "orders:read", "aud": "orders"})
    } else {
        json!({"active": false})
    };
    answer(200, &[("Content-Type", "application/json")], &body.to_string())
}

fn config(server: &Server, origin: &Origin, fields: &str) -> String {
    format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{orders: {{servers: ["{}"]}}}}
authenticators:
  opaque:
    introspection:
      url: http://{}/introspect
      client: {{id: edgeward, secret: {{file: secret}}}}
      {fields}
routes:
  - {{name: orders, path: "/orders/{{*rest}}", upstream: orders, policy: {{authenticate: opaque, authorize: {{scopes: ["orders:read"]}}}}}}
  - {{name: any, path: "/any", upstream: orders, policy: {{authenticate: opaque}}}}
  - {{name: admins, path: "/admin", upstream: orders, policy: {{authenticate: opaque, authorize: {{scopes: ["admin"]}}}}}}
  - {{name: open, path: "/open", upstream: orders, policy: {{authenticate: public}}}}
"#,
        origin.address, server.origin.address
    )
}

fn start(server: &Server, origin: &Origin, fields: &str) -> Gateway {
    let folder = Folder::new();
    folder.write("secret", "hush-hush");
    Gateway::start_in(folder, &config(server, origin, fields))
}

fn ask(gateway: &Gateway, path: &str, token: &str) -> client::Answer {
    gateway.get(path, &[("Authorization", &format!("Bearer {token}"))])
}

#[test]
fn an_active_token_reaches_the_service_as_an_identity_and_others_do_not() {
    let (server, origin) = (Server::start(), Origin::start());
    let gateway = start(&server, &origin, "");
    for _ in 0..3 {
        assert_eq!(ask(&gateway, "/orders/7", "alice-1").status, 200);
    }
    let seen = origin.last();
    assert_eq!((seen.header("x-user-id"), seen.header("x-client-id")), (Some("alice"), Some("shop")));
    assert_eq!((seen.header("x-auth-method"), seen.header("authorization")), (Some("introspection"), None));
    assert_eq!(server.asked(), 1);
    let asked = server.origin.last();
    assert_eq!(asked.request_line(), "POST /introspect HTTP/1.1");
    assert_eq!(String::from_utf8(asked.body).unwrap(), "token=alice-1&token_type_hint=access_token");

    let before = origin.requests().len();
    let refused = ask(&gateway, "/orders/7", "mallory");
    assert_eq!((refused.status, refused.code().as_str()), (401, "credential_invalid"));
    assert!(refused.header("www-authenticate").unwrap().contains("invalid_token"));
    let missing = gateway.get("/orders/7", &[]);
    assert_eq!((missing.status, missing.code().as_str()), (401, "credential_missing"));
    let poor = ask(&gateway, "/admin", "alice-1");
    assert_eq!((poor.status, poor.code().as_str()), (403, "insufficient_scope"));
    assert_eq!(origin.requests().len(), before, "no refused request is forwarded");

    let answers = |kind: &str| gateway.metric("edgeward_answers", &["authenticator=\"opaque\"", &format!("kind=\"{kind}\"")]);
    assert_eq!((answers("good"), answers("bad")), (1.0, 1.0));
    assert_eq!(gateway.metric("edgeward_breaker_state", &["state=\"closed\""]), 1.0);
    let page = client::get(gateway.admin(), "/metrics", &[]);
    for secret in ["alice-1", "mallory", "hush-hush", "ZWRnZXdhcmQ6aHVzaC1odXNo"] {
        assert!(!gateway.printed().contains(secret) && !page.text().contains(secret), "{secret}");
    }
}

#[test]
fn a_revoked_token_is_refused_within_the_ttl() {
    let (server, origin) = (Server::start(), Origin::start());
    let gateway = start(&server, &origin, "cache: {ttl: 1s, negative_ttl: 1s}");
    assert_eq!(ask(&gateway, "/orders/7", "alice-1").status, 200);
    *server.revoked.lock().unwrap() = true;
    let began = Instant::now();
    until("the token ends", || ask(&gateway, "/orders/7", "alice-1").status == 401);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    *server.revoked.lock().unwrap() = false;
    until("a refusal is not for ever", || ask(&gateway, "/orders/7", "alice-1").status == 200);
}

#[test]
fn many_callers_with_one_new_token_ask_once() {
    let (server, origin) = (Server::start(), Origin::start());
    let gateway = start(&server, &origin, "");
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| assert_eq!(ask(&gateway, "/orders/7", "alice-1").status, 200));
        }
    });
    assert_eq!(server.asked(), 1);
}

#[test]
fn whatever_the_server_does_the_gateway_refuses_in_time_and_recovers() {
    for mood in [Mood::Slow, Mood::Garbled, Mood::Resets, Mood::Redirects, Mood::Failing] {
        let (server, origin) = (Server::start(), Origin::start());
        let gateway = start(&server, &origin, "timeout: 300ms\n      breaker: {failures: 3, open: 1s}\n      cache: {ttl: 60s}");
        assert_eq!(ask(&gateway, "/orders/7", "alice-known").status, 200);
        server.feels(mood);
        for i in 0..8 {
            let began = Instant::now();
            let refused = ask(&gateway, "/orders/7", &format!("alice-{i}"));
            assert_eq!((refused.status, refused.code().as_str()), (503, "dependency_unavailable"));
            assert!(refused.header("retry-after").is_some());
            assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
        }
        assert!((3..=5).contains(&(server.asked() - 1)), "the breaker: {} calls", server.asked() - 1);
        assert_eq!(ask(&gateway, "/orders/7", "alice-known").status, 200, "what is known needs nobody");
        assert_eq!(gateway.get("/open", &[]).status, 200);
        assert_eq!(gateway.metric("edgeward_breaker_state", &["state=\"open\""]), 1.0);
        let ready = client::get(gateway.admin(), "/readyz", &[]);
        assert_eq!((ready.status, ready.json()["status"].as_str()), (200, Some("degraded")));
        server.feels(Mood::Good);
        until("it is taken back", || ask(&gateway, "/orders/7", "alice-new").status == 200);
        assert_eq!(gateway.metric("edgeward_breaker_state", &["state=\"closed\""]), 1.0);
        assert_eq!(client::get(gateway.admin(), "/readyz", &[]).json()["status"], "ready");
        assert_eq!(
            server.origin.requests().iter().filter(|request| request.target() != "/introspect").count(),
            0,
            "no redirect is followed"
        );
    }
}

#[test]
fn a_server_that_is_gone_is_met_as_the_operator_said() {
    for (fields, known, unknown) in
        [("on_failure: deny", 503, 503), ("on_failure: {allow_cached: 60s}", 200, 503), ("on_failure: allow", 200, 200)]
    {
        let (server, origin) = (Server::start(), Origin::start());
        let gateway = start(&server, &origin, &format!("cache: {{ttl: 200ms}}\n      {fields}"));
        assert_eq!(ask(&gateway, "/any", "alice-1").status, 200);
        // The connection that is open ends with the next question; nobody listens for another.
        server.feels(Mood::Resets);
        drop(server);
        std::thread::sleep(Duration::from_millis(250));
        for _ in 0..10 {
            assert_eq!(ask(&gateway, "/any", "alice-1").status, known, "{fields}");
            assert_eq!(ask(&gateway, "/any", "invented").status, unknown, "{fields}");
        }
        if fields.ends_with("allow") {
            let seen = origin.last();
            assert_eq!(
                (seen.header("x-user-id"), seen.header("x-scopes"), seen.header("x-auth-method")),
                (None, None, Some("introspection"))
            );
            let poor = ask(&gateway, "/orders/7", "invented");
            assert_eq!((poor.status, poor.code().as_str()), (403, "insufficient_scope"), "nobody has no scope");
            assert!(gateway.metric("edgeward_answer_excused", &["authenticator=\"opaque\""]) >= 20.0);
        }
    }
}

#[test]
fn a_reload_keeps_what_is_known_and_check_says_what_happens_without_the_server() {
    let (server, origin) = (Server::start(), Origin::start());
    let gateway = start(&server, &origin, "cache: {ttl: 60s}");
    assert_eq!(ask(&gateway, "/any", "alice-1").status, 200);
    gateway.rewrite(&config(&server, &origin, "cache: {ttl: 30s, entries: 10}\n      audiences: [billing]\n      on_failure: allow"));
    until("the rule holds for what is known", || ask(&gateway, "/any", "alice-1").status == 401);
    assert_eq!(server.asked(), 1);

    let check = command(&["check", "-c", "edgeward.yaml"]).current_dir(gateway.folder().path()).output().unwrap();
    let said = String::from_utf8(check.stdout).unwrap();
    assert!(said.contains("WARNING: ANY TOKEN IS LET IN"), "{said}");
}
