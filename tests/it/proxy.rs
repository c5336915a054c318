//! What callers are answered and what is written down: bodies and heads that are too long, early refusals, and secrets that stay secret.

use std::fmt::Write;

use edgeward::jose::Algorithm;
use serde_json::json;

use crate::harness::client::{self, Connection, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::issuer::Issuer;
use crate::harness::origin::Origin;
use crate::harness::until;

const KEY: &str = "partner-key-4f0c2d9e8b7a";

/// A file of keys with this one, for the consumer `acme`.
fn key_file(key: &str) -> String {
    let hash = openssl::sha::sha256(key.as_bytes());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("keys:\n  - {{id: one, sha256: \"{hash}\", consumer: acme}}\n")
}

fn limited(origin: &Origin) -> Gateway {
    let folder = Folder::new();
    folder.write("keys.yaml", key_file(KEY));
    let config = format!(
        r#"
server: {{limits: {{body: 1KiB, header_bytes: 4KiB, headers: 20}}, timeouts: {{body: 300ms}}}}
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{all: {{servers: ["{}"]}}}}
authenticators: {{partners: {{api_key: {{keys: {{file: keys.yaml}}}}}}}}
routes:
  - {{name: closed, path: "/closed/{{*rest}}", upstream: all, policy: {{authenticate: partners}}}}
  - {{name: open, path: "/open/{{*rest}}", upstream: all, policy: {{authenticate: public}}}}
"#,
        origin.address
    );
    Gateway::start_in(folder, &config)
}

fn chunks(sizes: &[usize]) -> String {
    let chunks = sizes.iter().fold(String::new(), |mut chunks, size| {
        let _ = write!(chunks, "{size:x}\r\n{}\r\n", "x".repeat(*size));
        chunks
    });
    format!("POST /open/1 HTTP/1.1\r\nHost: gw.test\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
}

#[test]
fn a_body_that_is_too_long_is_refused_by_its_length_before_it_comes_and_by_its_chunks_as_they_come() {
    let origin = Origin::start();
    let gateway = limited(&origin);
    assert_eq!(gateway.ask(request("POST", "/open/1", &[], &[b'x'; 1024])).status, 200);
    assert_eq!(gateway.ask(chunks(&[1000, 24])).status, 200);
    assert_eq!(origin.last().body.len(), 1024);

    let served = origin.requests().len();
    for target in ["/open/1", "/closed/1"] {
        for length in ["1025", "1073741824", "18446744073709551615"] {
            let mut connection = Connection::open(gateway.address());
            let refused = connection.ask(format!("POST {target} HTTP/1.1\r\nHost: gw.test\r\nContent-Length: {length}\r\n\r\n"));
            assert_eq!((refused.status, refused.code().as_str()), (413, "body_too_large"), "{length}");
            assert!(connection.is_closed(), "nobody waits for the body");
        }
    }
    for sizes in [&[1025][..], &[1000, 25], &[1; 1025]] {
        let refused = gateway.ask(chunks(sizes));
        assert_eq!((refused.status, refused.code().as_str()), (413, "body_too_large"), "{} chunks", sizes.len());
    }
    assert_eq!(origin.requests().len(), served, "the service sees no request whole");
    until("each is counted", || gateway.metric("edgeward_refusals_total", &["code=\"body_too_large\""]) == 9.0);
}

#[test]
fn a_body_that_stops_coming_is_waited_for_a_while() {
    let origin = Origin::start();
    let gateway = limited(&origin);
    let refused = gateway.ask("POST /open/1 HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 10\r\n\r\nhello");
    assert_eq!((refused.status, refused.code().as_str()), (408, "request_timeout"));
    assert!(origin.requests().is_empty());
}

#[test]
fn who_waits_for_100_hears_the_refusal_first() {
    let origin = Origin::start();
    let gateway = limited(&origin);
    let head = |target: &str, length: usize, more: &str| {
        format!("POST {target} HTTP/1.1\r\nHost: gw.test\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n{more}\r\n")
    };
    for (target, length, status) in
        [("/closed/1", 5, 401), ("/closed/1", 5_000_000, 413), ("/open/1", 5_000_000, 413), ("/nowhere", 5, 404)]
    {
        let mut connection = Connection::open(gateway.address());
        let refused = connection.ask(head(target, length, ""));
        // Whether the body still comes nobody can know: the bytes that follow could be it or the next request.
        assert_eq!((refused.status, refused.header("connection")), (status, Some("close")), "{target}");
        assert!(connection.is_closed(), "{target}");
    }
    assert_eq!(origin.connections(), 0);
    for (target, more) in [("/open/1", String::new()), ("/closed/1", format!("X-API-Key: {KEY}\r\n"))] {
        // The expectation is the service's to meet; this one says nothing, and the caller does not wait for it.
        assert_eq!(gateway.ask(head(target, 5, &more) + "hello").status, 200, "{target}");
        assert_eq!((origin.last().header("expect"), &origin.last().body[..]), (Some("100-continue"), &b"hello"[..]));
    }
}

#[test]
fn an_answer_to_head_has_no_body() {
    let origin = Origin::start();
    let gateway = limited(&origin);
    let mut connection = Connection::open(gateway.address());
    for (target, status) in [("/closed/1", 401), ("/nowhere", 404), ("/closed/2", 401)] {
        let refused = connection.ask(request("HEAD", target, &[], b""));
        assert_eq!(refused.status, status);
        assert!(refused.header("content-length").is_some_and(|length| length != "0"), "the length is that of the answer to GET");
    }
    assert_eq!(connection.ask(request("GET", "/open/1", &[], b"")).text(), "origin", "the next answer begins where it should");
    assert_eq!(connection.ask(request("HEAD", "/open/%2f", &[], b"")).status, 400);
    assert!(connection.is_closed(), "not a byte behind the head");
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    let origin = Origin::start();
    let gateway = limited(&origin);
    let lines = |count: usize, length: usize| -> String { (0..count).map(|at| format!("X-{at}: {}\r\n", "x".repeat(length))).collect() };
    let head = |target: &str, lines: &str| format!("GET {target} HTTP/1.1\r\nHost: gw.test\r\n{lines}\r\n");
    assert_eq!(gateway.ask(head("/open/1", &lines(19, 100))).status, 200);
    let served = origin.requests().len();
    for (name, head) in [
        ("one header too many", head("/open/1", &lines(20, 1))),
        ("255 headers", head("/open/1", &lines(254, 1))),
        ("300 headers", head("/open/1", &lines(300, 1))),
        ("a line that is too long", head("/open/1", &lines(1, 5_000))),
        ("lines that are too long together", head("/open/1", &lines(19, 300))),
        ("a target that is too long", head(&format!("/open/{}", "x".repeat(5_000)), "")),
        ("a query that is too long", head(&format!("/open/1?{}", "x".repeat(60_000)), "")),
        ("8,000 cookies", head("/open/1", &format!("Cookie: {}\r\n", "a=b; ".repeat(8_000)))),
    ] {
        let refused = gateway.ask(head);
        assert_eq!((refused.status, refused.code().as_str()), (431, "headers_too_large"), "{name}");
    }
    // Nobody waits for the end of one of 2 MB, and who goes on sending may not hear why.
    let mut connection = Connection::open(gateway.address());
    connection.send(head("/open/1", &lines(1, 2_000_000)));
    assert!(connection.is_closed() || connection.answer(false).status == 431);
    assert_eq!(origin.requests().len(), served);
    assert_eq!(gateway.get("/open/1", &[]).status, 200);
}

#[test]
fn no_secret_is_ever_written_down_or_told() {
    const SHARED: &str = "shared-secret-of-64-bytes-8c1d7e6f5a4b3c2d1e0f9a8b7c6d5e4f3a2b1c";
    const ADMIN: &str = "admin-token-77aa66bb55cc";
    const WRONG: &str = "wrong-key-0a1b2c3d4e5f";
    let (issuer, origin) = (Issuer::start(Algorithm::EdDsa), Origin::start());
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let folder = Folder::new();
    folder.write("keys.yaml", key_file(KEY));
    let config = format!(
        r#"
server: {{limits: {{body: 1KiB}}}}
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0", token: {{env: ADMIN_TOKEN}}}}
upstreams: {{all: {{servers: ["{}"]}}, dead: {{servers: ["{dead}"]}}}}
authenticators:
  customers: {{jwt: {{issuer: "{}", audiences: [all], keys: {{jwks_url: "{}"}}}}}}
  devices: {{jwt: {{issuer: "https://devices.test/", audiences: [all], keys: {{secret: {{env: SHARED}}}}}}}}
  partners: {{api_key: {{from: [{{header: X-API-Key}}, {{query: api_key}}, {{cookie: session}}], keys: {{file: keys.yaml}}}}}}
limits: {{few: {{per: credential, rate: 5/h}}}}
policies: {{all: {{authenticate: [customers, devices, partners]}}}}
routes:
  - {{name: orders, path: "/orders/{{*rest}}", upstream: all, policy: all}}
  - {{name: dead, path: "/dead/{{*rest}}", upstream: dead, policy: all}}
  - {{name: scoped, path: "/scoped/{{*rest}}", upstream: all, policy: {{authenticate: [customers, devices, partners], authorize: {{scopes: [nobody]}}}}}}
  - {{name: few, path: "/few/{{*rest}}", upstream: all, policy: {{authenticate: [customers, devices, partners], limits: [few]}}}}
"#,
        origin.address,
        issuer.url(),
        issuer.jwks_url()
    );
    let gateway = Gateway::start_with(folder, &config, &[("ADMIN_TOKEN", ADMIN), ("SHARED", SHARED)]);
    let token = issuer.token("all", json!({}));
    let expired = issuer.token("all", json!({"exp": 1_000_000_000}));
    until("the keys are there", || gateway.get("/orders/1", &[("Authorization", &format!("Bearer {token}"))]).status == 200);

    let mut told = String::new();
    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    let targets = ["/orders/1", "/nowhere", "/orders/%2f", "/dead/1", "/scoped/1", "/few/1", "http://edgeward.test/orders/1", "/orders/1#"];
    let methods = ["GET", "HEAD", "POST", "TRACE"];
    let malformed = ["", "X-A : b\r\n", "X-A: b\0\r\n", "X-A: b\nX-B: c\r\n", "Expect: all\r\n", "Content-Length: 5000\r\n"];
    for secret in [&token, &expired, KEY, WRONG] {
        let carriers = [
            ("", format!("Authorization: Bearer {secret}\r\n")),
            ("", format!("X-API-Key: {secret}\r\n")),
            ("", format!("X-API-Key: {secret}\r\nX-API-Key: {secret}\r\n")),
            ("", format!("Cookie: a=b; session={secret}\r\n")),
            (&*format!("?api_key={secret}"), String::new()),
            (&*format!("?a=b&api%5Fkey={secret}&c=d"), String::new()),
            (&*format!("?a=b;api_key={secret}"), format!("Cookie: session={secret}\r\n")),
            (&*format!("?api_key={secret}&api_key={secret}"), String::new()),
        ]
        .map(|(query, lines)| (query.to_owned(), lines));
        for (target, method) in targets.iter().flat_map(|target| methods.iter().map(move |method| (target, method))) {
            for (query, lines) in &carriers {
                for line in if *method == "GET" { &malformed[..] } else { &malformed[..1] } {
                    let mut connection = Connection::open(gateway.address());
                    connection.send(format!("{method} {target}{query} HTTP/1.1\r\nHost: edgeward.test\r\n{lines}{line}\r\n"));
                    let answer = connection.answer(*method == "HEAD");
                    *statuses.entry(answer.status).or_default() += 1;
                    let _ = writeln!(told, "{:?} {}", answer.headers, answer.text());
                }
            }
        }
    }
    for status in [200, 400, 401, 403, 404, 413, 429, 502] {
        assert!(statuses.contains_key(&status), "{status} is missing in {statuses:?}");
    }
    let admin = |path: &str, token: &str| client::get(gateway.admin(), path, &[("Authorization", &format!("Bearer {token}"))]);
    assert_eq!(admin("/metrics", WRONG).status, 401);
    for path in ["/metrics", "/readyz", "/healthz", "/config"] {
        told.push_str(admin(path, ADMIN).text());
    }
    gateway.rewrite(&config.replace("api_key: {from", "api_key: {form"));
    gateway.signal("HUP");
    until("a refused candidate is in the log", || gateway.log().iter().any(|line| line["level"] == "ERROR"));
    told.push_str(admin("/readyz", ADMIN).text());
    until("the access log has been written", || gateway.access_log().iter().any(|line| line["query"] == "a=b&api%5Fkey=REDACTED&c=d"));
    let last = format!("/orders/{}", "last");
    gateway.get(&last, &[]);
    until("the access log is at its end", || gateway.access_log().iter().any(|line| line["path"] == last.as_str()));

    let printed = gateway.printed();
    let behind: String = origin.received().iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
    let parts = |token: &str| token.split('.').skip(1).map(str::to_owned).collect::<Vec<_>>();
    let secrets = [vec![KEY.into(), WRONG.into(), SHARED.into(), ADMIN.into()], parts(&token), parts(&expired)].concat();
    for secret in &secrets {
        let line = |text: &str| text.lines().find(|line| line.contains(secret)).map(str::to_owned);
        assert_eq!(line(&printed), None, "in a log");
        assert_eq!(line(&told), None, "told to a caller or an operator");
        // `;` separates nothing: what stands behind it is a part of the parameter before.
        let behind = behind.replace(&format!("?a=b;api_key={secret}"), "");
        assert_eq!(line(&behind), None, "told to the service");
    }
}
