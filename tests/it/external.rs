//! Another service decides: what it is shown, what becomes of its answer, and what of a request while it gives none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::client::{Answer, Connection, request};
use crate::harness::gateway::Gateway;
use crate::harness::origin::{Origin, Recorded, Reply, answer};
use crate::harness::until;

/// A gateway on which `/a/...` asks the authorizer, and `/public/...` nobody.
fn gateway(authorizer: &Origin, origin: &Origin, settings: &str) -> Gateway {
    Gateway::start(&format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{all: {{servers: ["{}"]}}}}
authenticators:
  custom: {{external: {{url: "http://{}/check", {settings}}}}}
routes:
  - {{name: a, path: "/a/{{*rest}}", upstream: all, policy: {{authenticate: custom}}}}
  - {{name: b, path: "/b/{{*rest}}", upstream: all, policy: {{authenticate: custom, forward: {{token: keep}}}}}}
  - {{name: public, path: "/public/{{*rest}}", upstream: all, policy: {{authenticate: public}}}}
"#,
        origin.address, authorizer.address
    ))
}

/// The last segment of the path that the authorizer was shown.
fn word(asked: &Recorded) -> String {
    asked.header("x-forwarded-uri").unwrap().rsplit('/').next().unwrap().to_owned()
}

fn all<'a>(answer: &'a Answer, name: &str) -> Vec<&'a str> {
    answer.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
}

#[test]
fn only_a_status_of_2xx_lets_in_whatever_else_comes() {
    let elsewhere = Origin::start();
    let location = format!("http://{}/login", elsewhere.address);
    let authorizer = Origin::scripted(move |asked| match word(asked).as_str() {
        "garbage" => Reply::Last(b"hello, who is there?\r\n\r\n".to_vec()),
        "dead" => Reply::Last(Vec::new()),
        "cut" => Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_vec()),
        "cut-chunk" => Reply::Last(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab".to_vec()),
        "half-head" => Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()),
        "slow" => Reply::Silence(Duration::from_secs(2)),
        "huge-head" => Reply::Last(answer(200, &[("X-Long", &"x".repeat(300_000))], "")),
        "huge-body" => Reply::Last(answer(200, &[], &"x".repeat(70_000))),
        "line-feed" => Reply::Last(b"HTTP/1.1 200 OK\r\nX-Tenant: a\nb\r\n X-User-Id: root\r\n\r\n".to_vec()),
        "switch" => Reply::Last(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".to_vec()),
        "hint" => Reply::Bytes(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_vec()),
        "301" | "302" | "303" | "307" | "308" => Reply::Bytes(answer(word(asked).parse().unwrap(), &[("Location", &location)], "")),
        status => Reply::Bytes(answer(status.parse().unwrap(), &[], "")),
    });
    let origin = Origin::start();
    let gateway = gateway(&authorizer, &origin, "timeout: 300ms, breaker: {failures: 1000}");
    for (word, status, code) in [
        ("200", 200, ""),
        ("204", 200, ""),
        ("206", 200, ""),
        ("301", 301, ""),
        ("302", 302, ""),
        ("303", 303, ""),
        ("307", 307, ""),
        ("308", 308, ""),
        ("401", 401, ""),
        ("403", 403, ""),
        ("hint", 403, ""),
        ("300", 503, "dependency_unavailable"),
        ("304", 503, "dependency_unavailable"),
        ("400", 503, "dependency_unavailable"),
        ("404", 503, "dependency_unavailable"),
        ("407", 503, "dependency_unavailable"),
        ("500", 503, "dependency_unavailable"),
        ("502", 503, "dependency_unavailable"),
        ("599", 503, "dependency_unavailable"),
        ("garbage", 503, "dependency_unavailable"),
        ("dead", 503, "dependency_unavailable"),
        ("cut", 503, "dependency_unavailable"),
        ("cut-chunk", 503, "dependency_unavailable"),
        ("half-head", 503, "dependency_unavailable"),
        ("slow", 503, "dependency_unavailable"),
        ("huge-head", 503, "dependency_unavailable"),
        ("huge-body", 503, "dependency_unavailable"),
        ("line-feed", 503, "dependency_unavailable"),
        ("switch", 503, "dependency_unavailable"),
    ] {
        let before = origin.requests().len();
        let began = Instant::now();
        let answer = gateway.get(&format!("/a/{word}"), &[]);
        assert_eq!(answer.status, status, "{word}");
        if !code.is_empty() {
            assert_eq!(answer.code(), code, "{word}");
            assert!(answer.header("retry-after").is_some(), "{word}");
        }
        assert!(began.elapsed() < Duration::from_millis(1_900), "{word}");
        assert_eq!(origin.requests().len() - before, usize::from(status == 200), "{word}");
    }
    assert!(elsewhere.requests().is_empty(), "no redirect is followed");
}

#[test]
fn the_authorizer_is_shown_the_request_as_it_was_matched_and_a_caller_can_add_nothing() {
    let (authorizer, origin) = (Origin::start(), Origin::start());
    let gateway = gateway(&authorizer, &origin, "send: [Accept, X-Tenant]");
    let spoofed = "X-Forwarded-Method: GET\r\nX-Forwarded-Uri: /public/x\r\nX-Forwarded-Host: evil\r\nX-Forwarded-For: 127.0.0.9\r\n\
                   X-Forwarded-Proto: https\r\nX-Original-Uri: /public/x\r\nX-User-Id: root\r\nX_Forwarded_Uri: /public/x\r\nX-Other: 1\r\n\
                   Connection: X-Forwarded-Uri, Authorization\r\nUser-Agent: probe\r\n";
    let head = format!(
        "POST /a/%6fne/./two//?q=%2e&x HTTP/1.1\r\nHost: Edgeward.Test:81\r\nAuthorization: Bearer abc\r\nCookie: c=\u{e9}\r\n\
         Accept: text/html\r\nX-Tenant: acm\u{e9}\r\n{spoofed}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    );
    assert_eq!(gateway.ask(head.as_bytes()).status, 200);
    let asked = authorizer.last();
    assert_eq!(asked.request_line(), "GET /check HTTP/1.1");
    let mut lines: Vec<_> = asked.head.lines().skip(1).filter(|line| !line.is_empty()).map(str::to_lowercase).collect();
    lines.sort();
    let expected = [
        "accept-encoding: identity".to_owned(),
        "accept: text/html".to_owned(),
        "authorization: bearer abc".to_owned(),
        "cookie: c=\u{e9}".to_owned(),
        format!("host: {}", authorizer.address),
        concat!("user-agent: edgeward/", env!("CARGO_PKG_VERSION")).to_owned(),
        "x-forwarded-for: 127.0.0.1".to_owned(),
        "x-forwarded-host: edgeward.test:81".to_owned(),
        "x-forwarded-method: post".to_owned(),
        "x-forwarded-proto: http".to_owned(),
        "x-forwarded-uri: /a/one/two/?q=%2e&x".to_owned(),
        "x-tenant: acm\u{e9}".to_owned(),
    ];
    assert_eq!(lines, expected);
    assert_eq!((origin.last().target(), origin.last().body), ("/a/one/two/?q=%2e&x", b"hello".to_vec()));

    // Long and odd headers are shown or refused, and never let in unasked.
    let long = "x".repeat(20_000);
    assert_eq!(gateway.get("/a/", &[("X-Tenant", &long)]).status, 200);
    assert_eq!(authorizer.last().header("x-tenant"), Some(long.as_str()));
    assert_eq!(gateway.get("/a/", &[("X-Tenant", &"x".repeat(60_000))]).status, 431);
}

#[test]
fn the_answers_headers_replace_the_callers_and_an_absent_one_removes_them() {
    let authorizer = Origin::scripted(|asked| match word(asked).as_str() {
        "named" => Reply::Bytes(answer(
            200,
            &[
                ("X-Tenant", "acme"),
                ("Remote-User", "alice"),
                ("Remote-Groups", "staff,admins"),
                ("X-Other", "no"),
                ("Connection", "X-Tenant"),
            ],
            "",
        )),
        "empty" => Reply::Bytes(answer(200, &[("X-Tenant", "")], "")),
        _ => Reply::Bytes(answer(200, &[], "")),
    });
    let origin = Origin::start();
    let settings = "copy: [X-Tenant, Remote-User, Authorization], claims: {subject: Remote-User, roles: Remote-Groups}";
    let gateway = gateway(&authorizer, &origin, settings);
    let forged = [("X-Tenant", "evil"), ("x_tenant", "evil"), ("X.Tenant", "evil"), ("Remote-User", "root"), ("REMOTE_USER", "root")];
    for (path, tenant, user) in [
        ("/a/named", Some("acme"), Some("alice")),
        ("/b/named", Some("acme"), Some("alice")),
        ("/a/empty", None, None),
        ("/a/nothing", None, None),
        ("/public/x", None, None),
    ] {
        let credential =
            [("Authorization", "Bearer abc"), ("X-User-Id", "root"), ("X-Roles", "root"), ("Connection", "X-Tenant, X-User-Id")];
        assert_eq!(gateway.get(path, &[&forged[..], &credential[..]].concat()).status, 200);
        let seen = origin.last();
        assert_eq!(seen.headers_like("x-tenant"), Vec::from_iter(tenant), "{path}");
        assert_eq!(seen.headers_like("remote-user"), Vec::from_iter(user), "{path}");
        assert_eq!(seen.headers_like("x-user-id"), Vec::from_iter(user), "{path}");
        assert_eq!(seen.headers_like("x-roles"), Vec::from_iter(user.map(|_| "staff admins")), "{path}");
        assert_eq!(seen.header("x-other"), None, "{path}");
        // Copied and absent: removed, even where the policy keeps the credential.
        assert_eq!(seen.header("authorization").is_some(), path == "/public/x", "{path}");
    }
}

#[test]
fn a_credential_stays_here_unless_the_policy_keeps_it() {
    let (authorizer, origin) = (Origin::start(), Origin::start());
    let gateway = gateway(&authorizer, &origin, "from: [{header: Authorization}, {cookie: session}, {query: key}]");
    for (path, credential, kept) in [("/a/x", ("Authorization", "Basic YTpi"), false), ("/b/x", ("Authorization", "Basic YTpi"), true)] {
        assert_eq!(gateway.get(path, &[credential]).status, 200);
        assert_eq!(origin.last().header("authorization").is_some(), kept, "{path}");
        assert_eq!(authorizer.last().header("authorization"), Some("Basic YTpi"));
    }
    assert_eq!(gateway.get("/a/x", &[("Cookie", "a=1; session=s; b=2")]).status, 200);
    assert_eq!((origin.last().header("cookie"), authorizer.last().header("cookie")), (Some("a=1; b=2"), Some("a=1; session=s; b=2")));
    assert_eq!(gateway.get("/a/x?key=k&y=1", &[]).status, 200);
    assert_eq!((origin.last().target(), authorizer.last().header("x-forwarded-uri")), ("/a/x?y=1", Some("/a/x?key=k&y=1")));
    assert_eq!(gateway.get("/a/x", &[("Authorization", "a b"), ("Authorization", "c d")]).code(), "bad_request");
    assert!(!gateway.printed().contains("key=k"), "no credential is logged");
}

#[test]
fn a_refusal_reaches_the_caller_as_the_authorizer_says_it() {
    let authorizer = Origin::scripted(|asked| match word(asked).as_str() {
        "login" => Reply::Bytes(
            b"HTTP/1.1 302 Found\r\nLocation: https://login.test/?rd=x\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\n\
              Transfer-Encoding: chunked\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Kept: 1\r\n\
              Content-Type: text/html\r\nCache-Control: public\r\nX-Request-Id: theirs\r\n\r\n5\r\nlogin\r\n0\r\n\r\n"
                .to_vec(),
        ),
        "challenge" => Reply::Bytes(answer(401, &[("WWW-Authenticate", "Basic realm=\"x\""), ("WWW-Authenticate", "Bearer")], "who?")),
        "bare" => Reply::Bytes(answer(401, &[], "")),
        _ => Reply::Bytes(answer(403, &[("Content-Type", "application/json")], r#"{"no": 1}"#)),
    });
    let origin = Origin::start();
    let gateway = gateway(&authorizer, &origin, "cache: {}");
    let mut connection = Connection::open(gateway.address());
    let login = connection.ask(request("GET", "/a/login", &[], b""));
    assert_eq!((login.status, login.text()), (302, "login"));
    assert_eq!((all(&login, "location"), all(&login, "set-cookie")), (vec!["https://login.test/?rd=x"], vec!["a=1; Path=/", "b=2"]));
    assert_eq!((login.header("content-type"), login.header("x-kept"), login.header("x-hop")), (Some("text/html"), Some("1"), None));
    assert_eq!((login.header("cache-control"), login.header("transfer-encoding")), (Some("no-store"), None));
    assert_eq!((login.header("content-length"), login.header("keep-alive")), (Some("5"), None));
    assert_ne!(login.header("x-request-id"), Some("theirs"));
    let challenge = connection.ask(request("GET", "/a/challenge", &[], b""));
    assert_eq!((challenge.status, challenge.text()), (401, "who?"));
    assert_eq!(all(&challenge, "www-authenticate"), ["Basic realm=\"x\"", "Bearer"]);
    assert_eq!(connection.ask(request("HEAD", "/a/challenge", &[], b"")).status, 401);
    assert_eq!(all(&connection.ask(request("GET", "/a/bare", &[], b"")), "www-authenticate"), ["External realm=\"edgeward\""]);
    let forbidden = connection.ask(request("POST", "/a/forbidden", &[], b"body"));
    assert_eq!((forbidden.status, forbidden.header("content-type"), forbidden.text()), (403, Some("application/json"), r#"{"no": 1}"#));
    assert!(origin.requests().is_empty());

    until("they are in the access log", || gateway.access_log().len() >= 5);
    for (status, code) in [(302, "redirected"), (401, "credential_invalid"), (403, "forbidden")] {
        assert!(gateway.access_log().iter().any(|line| line["status"] == status && line["code"] == code && line["reason"] == "external"));
        let class = format!("class=\"{}xx\"", status / 100);
        assert!(gateway.metric("edgeward_requests_total", &[&format!("code=\"{code}\""), &class]) >= 1.0, "{code}");
    }
}

#[test]
fn a_decision_is_remembered_by_its_parts_and_asked_for_once_for_all_who_wait() {
    let authorizer = Origin::scripted(|asked| {
        std::thread::sleep(Duration::from_millis(300));
        let good = asked.header("authorization") != Some("bad");
        Reply::Bytes(answer(if good { 200 } else { 403 }, &[("X-Tenant", "t")], ""))
    });
    let origin = Origin::start();
    let settings = "timeout: 5s, copy: [X-Tenant], cache: {by: [credential, route], ttl: 60s, deny_ttl: 1s}";
    let gateway = gateway(&authorizer, &origin, settings);
    let status = |path: &str, token: &str| gateway.get(path, &[("Authorization", token)]).status;
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..40).map(|number| scope.spawn(move || status(&format!("/a/{number}"), "good"))).collect();
        assert!(asking.into_iter().all(|asking| asking.join().unwrap() == 200));
    });
    assert_eq!(authorizer.requests().len(), 1, "one asks for all");
    assert!(origin.requests().iter().all(|seen| seen.header("x-tenant") == Some("t")));
    assert_eq!((status("/a/x", "good"), authorizer.requests().len()), (200, 1));
    assert_eq!((status("/b/x", "good"), authorizer.requests().len()), (200, 2), "another route");
    assert_eq!((status("/a/x", "other"), authorizer.requests().len()), (200, 3), "another credential");
    let with_cookie = gateway.get("/a/x", &[("Authorization", "good"), ("Cookie", "session=1")]).status;
    assert_eq!((with_cookie, authorizer.requests().len()), (200, 4), "another session");
    assert_eq!((status("/a/x", "bad"), status("/a/x", "bad"), authorizer.requests().len()), (403, 403, 5), "refused again, unasked");
    until("a refusal is forgotten sooner", || {
        status("/a/x", "bad");
        authorizer.requests().len() > 5
    });
    assert_eq!((status("/a/x", "good"), authorizer.requests().len()), (200, 6), "than an allowance");
}

#[test]
fn a_login_that_was_begun_for_one_caller_is_not_handed_to_another() {
    let authorizer = Origin::scripted(|asked| {
        std::thread::sleep(Duration::from_millis(200));
        let cookie = format!("login={}", asked.connection);
        Reply::Last(answer(302, &[("Location", "/login"), ("Set-Cookie", &cookie), ("Connection", "close")], ""))
    });
    let origin = Origin::start();
    let gateway = gateway(&authorizer, &origin, "timeout: 5s, cache: {by: [credential]}");
    let cookies: Vec<String> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| gateway.get("/a/x", &[]).header("set-cookie").unwrap().to_owned())).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    let mut different = cookies.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), 8, "{cookies:?}");
}

#[test]
fn an_authorizer_that_is_away_costs_little_and_is_asked_again_when_it_is_back() {
    let away = Arc::new(AtomicBool::new(false));
    let authorizer = Origin::scripted({
        let away = away.clone();
        move |_| if away.load(Ordering::Relaxed) { Reply::Silence(Duration::from_secs(3)) } else { Reply::Bytes(answer(200, &[], "")) }
    });
    let origin = Origin::start();
    let gateway = gateway(&authorizer, &origin, "timeout: 200ms, breaker: {failures: 3, open: 1s}");
    assert_eq!(gateway.get("/a/x", &[]).status, 200);
    away.store(true, Ordering::Relaxed);
    // A caller's patience may end a moment before the call's own: the third failure is then counted after its answer.
    until("the breaker opens", || {
        let asked = authorizer.requests().len();
        assert_eq!(gateway.get("/a/x", &[]).code(), "dependency_unavailable");
        authorizer.requests().len() == asked
    });
    assert_eq!(authorizer.requests().len(), 4, "as many failures as the breaker takes");
    let (asked, began) = (authorizer.requests().len(), Instant::now());
    for _ in 0..5 {
        assert_eq!(gateway.get("/a/x", &[]).code(), "dependency_unavailable");
    }
    assert!(began.elapsed() < Duration::from_millis(900) && authorizer.requests().len() == asked, "the breaker answers");
    away.store(false, Ordering::Relaxed);
    until("it is asked again", || gateway.get("/a/x", &[]).status == 200);
    assert_eq!(gateway.get("/public/x", &[]).status, 200);
}

#[test]
fn what_happens_while_it_is_away_is_the_operators_word() {
    for (settings, known, unknown) in [
        ("on_failure: deny, cache: {ttl: 1s}", 503, 503),
        ("on_failure: {allow_cached: 1h}, cache: {ttl: 1s}", 200, 503),
        ("on_failure: allow", 200, 200),
    ] {
        // Without connections that stay open when it ends.
        let (authorizer, origin) = (Origin::scripted(|_| Reply::Last(answer(200, &[], ""))), Origin::start());
        let gateway = gateway(&authorizer, &origin, &format!("{settings}, copy: [X-Tenant], breaker: {{failures: 1000}}"));
        let status = |token: &str| gateway.get("/a/x", &[("Authorization", token), ("X-Tenant", "evil"), ("X-User-Id", "root")]).status;
        assert_eq!(status("known"), 200);
        drop(authorizer);
        std::thread::sleep(Duration::from_millis(1_100));
        assert_eq!((status("known"), status("unknown")), (known, unknown), "{settings}");
        assert!(origin.requests().iter().all(|seen| seen.headers_like("x-tenant").is_empty() && seen.headers_like("x-user-id").is_empty()));
    }
}

#[test]
fn a_body_is_shown_up_to_its_bound_and_goes_on_whole() {
    let authorizer = Origin::scripted(|asked| Reply::Bytes(answer(if asked.body.ends_with(b"evil") { 403 } else { 200 }, &[], "")));
    let origin = Origin::start();
    let gateway = gateway(&authorizer, &origin, "body: 1KiB");
    let mut connection = Connection::open(gateway.address());
    for body in [&b"hello"[..], &[b'x'; 1024], b""] {
        let answer = connection.ask(request("POST", "/a/x", &[("Content-Type", "text/plain")], body));
        assert_eq!((answer.status, &*origin.last().body, &*authorizer.last().body), (200, body, body));
        assert_eq!(authorizer.last().header("content-type"), Some("text/plain"));
    }
    let chunked = |body: &str| format!("POST /a/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    for (body, whole) in [("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", &b"abcde"[..]), ("0\r\n\r\n", b"")] {
        assert_eq!(connection.ask(chunked(body)).status, 200, "{body:?}");
        assert_eq!((&*origin.last().body, &*authorizer.last().body), (whole, whole));
        assert_eq!(authorizer.last().header("transfer-encoding"), None);
    }
    assert_eq!(connection.ask(request("POST", "/a/x", &[], b"evil")).status, 403);
    assert_eq!(connection.ask(request("GET", "/a/x", &[], b"")).status, 200);
    assert_eq!(connection.ask(request("POST", "/public/x", &[], &[b'x'; 5000])).status, 200);

    let (asked, served) = (authorizer.requests().len(), origin.requests().len());
    assert_eq!(gateway.ask(request("POST", "/a/x", &[], &[b'x'; 1025])).code(), "body_too_large");
    let long = format!("401\r\n{}\r\n0\r\n\r\n", "x".repeat(1025));
    assert_eq!(gateway.ask(chunked(&long)).code(), "body_too_large");
    assert_eq!((authorizer.requests().len(), origin.requests().len()), (asked, served));
}

#[test]
fn a_caller_that_waits_for_leave_to_send_its_body_gets_it_once() {
    // Without connections that are kept: where the origin is slow to close one, the last request would go out on it.
    let (authorizer, origin) = (Origin::start(), Origin::scripted(|_| Reply::Last(answer(200, &[("connection", "close")], ""))));
    let gateway = gateway(&authorizer, &origin, "body: 1KiB");
    let mut connection = Connection::open(gateway.address());
    connection.send("POST /a/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(connection.answer(false).status, 100);
    connection.send("hello");
    assert_eq!(connection.answer(false).status, 200);
    assert_eq!((&*origin.last().body, &*authorizer.last().body), (&b"hello"[..], &b"hello"[..]));
    assert_eq!(origin.last().header("expect"), None);

    let mut connection = Connection::open(gateway.address());
    connection.send("POST /a/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(connection.answer(false).code(), "body_too_large", "no leave for what would be refused");

    // An upstream that fails after the leave was given is still answered for.
    drop(origin);
    let mut connection = Connection::open(gateway.address());
    connection.send("POST /a/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(connection.answer(false).status, 100);
    connection.send("hello");
    assert_eq!(connection.answer(false).code(), "upstream_unreachable");
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for_forever() {
    let (authorizer, origin) = (Origin::start(), Origin::start());
    let yaml = format!(
        "server: {{timeouts: {{body: 1s}}}}\nlisteners: [{{address: \"127.0.0.1:0\"}}]\nadmin: {{address: \"127.0.0.1:0\"}}\n\
         upstreams: {{all: {{servers: [\"{}\"]}}}}\nauthenticators: {{custom: {{external: {{url: \"http://{}/\", body: 1KiB}}}}}}\n\
         routes: [{{name: a, path: /a, upstream: all, policy: {{deny: [192.0.2.0/24], authenticate: custom}}}}]\n",
        origin.address, authorizer.address
    );
    let gateway = Gateway::start(&yaml);
    let mut connection = Connection::open(gateway.address());
    connection.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel");
    assert_eq!(connection.answer(false).code(), "request_timeout");
    let mut connection = Connection::open(gateway.address());
    connection.send("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
    assert_eq!(connection.answer(false).status, 400);
    assert!(authorizer.requests().is_empty() && origin.requests().is_empty());
}

#[test]
fn a_lambda_authorizer_gets_an_event_and_its_answers_are_understood() {
    let authorizer = Origin::scripted(|asked| {
        let event: Value = serde_json::from_slice(&asked.body).unwrap();
        let path = event["rawPath"].as_str().unwrap();
        let policy = |effect: &str, resource: &str| {
            let statement = json!({"Effect": effect, "Action": "execute-api:Invoke", "Resource": resource});
            json!({"principalId": "alice", "policyDocument": {"Version": "2012-10-17", "Statement": [statement]}, "context": {"tenant": "acme"}})
        };
        let said = match path.rsplit('/').next().unwrap() {
            "simple" => json!({"isAuthorized": true, "context": {"tenant": "acme"}}),
            "no" => json!({"isAuthorized": false}),
            "text" => json!({"isAuthorized": "true"}),
            "policy" => policy("Allow", event["routeArn"].as_str().unwrap()),
            "other" => policy("Allow", "arn:aws:execute-api:*/POST/*"),
            "deny" => policy("Deny", "*"),
            "unauthorized" => json!({"errorMessage": "Unauthorized"}),
            "failed" => return Reply::Bytes(answer(500, &[], r#"{"isAuthorized": true}"#)),
            _ => json!({"errorMessage": "boom"}),
        };
        Reply::Bytes(answer(200, &[], &said.to_string()))
    });
    let origin = Origin::start();
    let gateway = gateway(&authorizer, &origin, "response: lambda, claims: {consumer: tenant}, when_missing: pass");
    for (word, status, code) in [
        ("simple", 200, ""),
        ("policy", 200, ""),
        ("no", 403, "forbidden"),
        ("other", 403, "forbidden"),
        ("deny", 403, "forbidden"),
        ("unauthorized", 401, "credential_invalid"),
        ("text", 503, "dependency_unavailable"),
        ("boom", 503, "dependency_unavailable"),
        ("failed", 503, "dependency_unavailable"),
    ] {
        let before = origin.requests().len();
        let answer = gateway.get(&format!("/a/{word}?x=1"), &[("Authorization", "Bearer abc"), ("X-Consumer-Id", "evil")]);
        assert_eq!(answer.status, status, "{word}");
        if status == 200 {
            let seen = origin.last();
            assert_eq!((seen.headers_like("x-consumer-id"), seen.header("authorization")), (vec!["acme"], None));
            assert_eq!(seen.header("x-user-id"), (word == "policy").then_some("alice"));
        } else {
            assert_eq!((answer.code().as_str(), origin.requests().len()), (code, before), "{word}");
        }
    }
    let asked = authorizer.last();
    assert_eq!((asked.request_line(), asked.header("content-type")), ("POST /check HTTP/1.1", Some("application/json")));
    let event: Value = serde_json::from_slice(&asked.body).unwrap();
    assert_eq!(event["requestContext"]["http"]["sourceIp"], "127.0.0.1");
    assert_eq!((&event["identitySource"], &event["rawQueryString"]), (&json!(["Bearer abc"]), &json!("x=1")));

    let asked = authorizer.requests().len();
    assert_eq!(gateway.get("/a/simple", &[]).code(), "credential_missing");
    let odd = b"GET /a/simple HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\r\n\r\n";
    assert_eq!(gateway.ask(odd).code(), "bad_request");
    assert_eq!(authorizer.requests().len(), asked);
}
