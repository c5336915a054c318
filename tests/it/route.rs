//! What a service is told of a caller: only what the gateway has proven, whatever the caller says of itself and however it is written.

use base64::prelude::{BASE64_STANDARD, Engine};
use edgeward::jose::Algorithm;
use serde_json::json;

use crate::harness::certificates::Authority;
use crate::harness::client::{Connection, Http2, Tls, Verdict};
use crate::harness::framing::request_lines;
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::issuer::Issuer;
use crate::harness::origin::{Origin, Recorded};
use crate::harness::until;

/// Whom the caller says it is; nobody else is called that.
const FORGED: &str = "mallory-was-here";

/// The headers that tell a service who calls, and one that a policy sets.
const IDENTITY: [&str; 11] = [
    "X-User-Id",
    "X-Consumer-Id",
    "X-Client-Id",
    "X-Key-Id",
    "X-Scopes",
    "X-Roles",
    "X-Auth-Method",
    "X-Plan",
    "X-Identity-Token",
    "X-Client-Cert-CN",
    "X-Tenant",
];

fn config(issuer: &Issuer, origin: &Origin, tls: &str) -> String {
    format!(
        r#"
listeners: [{{address: "127.0.0.1:0"{tls}}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{all: {{servers: ["{}"]}}}}
authenticators: {{staff: {{jwt: {{issuer: "{}", audiences: [all], keys: {{jwks_url: "{}"}}}}}}}}
routes:
  - {{name: me, path: "/me/{{*rest}}", upstream: all, policy: {{authenticate: staff, forward: {{headers: {{X-Tenant: "{{claims.tenant}}"}}}}}}}}
  - {{name: public, path: "/public/{{*rest}}", upstream: all, policy: {{authenticate: public}}}}
  - {{name: socket, path: /socket, upstream: all, websocket: true, policy: {{authenticate: staff}}}}
  - {{name: elsewhere, path: /elsewhere, upstream: all, policy: {{authenticate: public, allow: [203.0.113.0/24]}}}}
"#,
        origin.address,
        issuer.url(),
        issuer.jwks_url()
    )
}

struct Setting {
    _issuer: Issuer,
    origin: Origin,
    gateway: Gateway,
    token: String,
}

impl Setting {
    fn start() -> Self {
        let (issuer, origin) = (Issuer::start(Algorithm::EdDsa), Origin::start());
        let gateway = Gateway::start(&config(&issuer, &origin, ""));
        let token = format!("Bearer {}", issuer.token("all", json!({"tenant": "acme", "scope": "read"})));
        until("the keys are there", || gateway.get("/me/7", &[("Authorization", &token)]).status == 200);
        Self { _issuer: issuer, origin, gateway, token }
    }

    /// The status of a GET with these header lines, and what the service saw of it.
    fn send(&self, target: &str, authenticated: bool, block: &[u8]) -> (u16, Vec<Recorded>) {
        let before = self.origin.requests().len();
        let authorization = if authenticated { format!("Authorization: {}\r\n", self.token) } else { String::new() };
        let head = format!("GET {target} HTTP/1.1\r\nHost: gw.test\r\n{authorization}");
        let status = Connection::open(self.gateway.address()).ask([head.as_bytes(), block, b"\r\n"].concat()).status;
        (status, self.origin.requests().split_off(before))
    }
}

/// Who the service believes is calling.
fn believed(seen: &Recorded) -> Vec<(&'static str, Vec<&str>)> {
    IDENTITY
        .into_iter()
        .map(|name| (name, seen.headers_like(&name.to_ascii_lowercase())))
        .filter(|(_, values)| !values.is_empty())
        .collect()
}

fn proven() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![("X-User-Id", vec!["alice"]), ("X-Scopes", vec!["read"]), ("X-Auth-Method", vec!["jwt"]), ("X-Tenant", vec!["acme"])]
}

#[test]
fn no_header_of_the_spoofing_collection_changes_who_the_service_believes_is_calling() {
    #[derive(serde::Deserialize)]
    struct Row {
        id: String,
        header_block_b64: String,
        expect: String,
    }
    let setting = Setting::start();
    let (_, plain) = setting.send("/me/7", true, b"");
    assert_eq!(believed(&plain[0]), proven());
    let (mut malformed, mut harmless) = (0, 0);
    for line in include_str!("../data/header-spoof/headers.jsonl").lines() {
        let row: Row = serde_json::from_str(line).unwrap();
        let block = BASE64_STANDARD.decode(&row.header_block_b64).unwrap();
        for (target, authenticated, otherwise) in
            [("/me/7", true, 200), ("/public/7", false, 200), ("/me/7", false, 401), ("/elsewhere", false, 403)]
        {
            let (status, seen) = setting.send(target, authenticated, &block);
            if status == 400 {
                malformed += 1;
                assert!(row.expect.contains("400") || row.expect == "gateway_header_present", "{}: refused, but {}", row.id, row.expect);
                assert!(seen.is_empty(), "{}: {seen:?}", row.id);
                continue;
            }
            harmless += 1;
            assert_ne!(row.expect, "400", "{}", row.id);
            assert_eq!(status, otherwise, "{} at {target}", row.id);
            assert_eq!(seen.len(), usize::from(status == 200), "{} at {target}", row.id);
            let Some(seen) = seen.first() else { continue };
            assert_eq!(believed(seen), if authenticated { proven() } else { Vec::new() }, "{} at {target}", row.id);
            if row.expect == "strip_or_400" {
                let text = String::from_utf8(block.clone()).unwrap();
                for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
                    let folded = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-").to_ascii_lowercase();
                    assert!(!seen.headers_like(&folded).contains(&value.trim()), "{}: {}", row.id, seen.head);
                }
            }
            assert_eq!(seen.header("upgrade"), None, "{}: a route without upgrades passes none on", row.id);
        }
    }
    assert!(malformed > 20 && harmless > 80, "{malformed} malformed, {harmless} harmless");
}

#[test]
fn an_identity_header_is_removed_in_every_spelling_that_some_server_folds_to_it() {
    let setting = Setting::start();
    for name in IDENTITY {
        let mut block = String::new();
        for sign in ["-", "_", ".", "~", "!", "*", "'", "^", "`", "|", "+", "$", "&", "%", "#"] {
            let spelt = name.replace('-', sign);
            for (spelling, value) in [(spelt.clone(), FORGED), (spelt.to_uppercase(), FORGED), (spelt.to_lowercase(), ""), (spelt, "a, b")]
            {
                block.push_str(&format!("{spelling}: {value}\r\n"));
            }
        }
        for (target, authenticated, expected) in [("/me/7", true, proven()), ("/public/7", false, Vec::new())] {
            let (status, seen) = setting.send(target, authenticated, block.as_bytes());
            assert_eq!((status, believed(&seen[0])), (200, expected), "{name} at {target}");
            assert!(!seen[0].head.contains(FORGED), "{}", seen[0].head);
        }
    }
}

#[test]
fn a_caller_cannot_have_a_header_of_the_gateway_taken_away() {
    let setting = Setting::start();
    for name in IDENTITY.into_iter().chain(["X-Request-Id", "Authorization", "X-Forwarded-For", "Host", "Content-Length", "Cookie"]) {
        for block in [
            format!("Connection: {name}\r\n"),
            format!("connection: close, {}\r\n", name.to_lowercase()),
            format!("Connection: keep-alive\r\nConnection: {name}, {name}\r\n{name}: {FORGED}\r\n"),
            format!("Connection: \t{}\t\r\n", name.to_uppercase()),
        ] {
            let (status, seen) = setting.send("/me/7", true, block.as_bytes());
            // A nominated `Authorization` may be gone before it is looked for, and some names may not be nominated at all.
            assert!([200, 400, 401].contains(&status), "{block}: {status}");
            assert_eq!(seen.len(), usize::from(status == 200), "{block}");
            assert!(status == 200 || !IDENTITY.contains(&name), "{block}");
            for seen in &seen {
                assert_eq!(believed(seen), proven(), "{block}");
                for kept in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "host"] {
                    assert_eq!(seen.headers_like(kept).len(), 1, "{block}: {kept}");
                }
                assert!(!seen.head.contains(FORGED), "{block}");
            }
        }
    }
}

#[test]
fn an_upgrade_is_told_the_same_as_any_other_request() {
    let setting = Setting::start();
    let block = format!("Upgrade: websocket\r\nConnection: Upgrade, X-User-Id\r\nX-User-Id: {FORGED}\r\nX_Tenant: {FORGED}\r\n");
    assert_eq!(setting.send("/socket", false, block.as_bytes()).0, 401, "an upgrade needs a credential like any other");
    let (_, seen) = setting.send("/socket", true, block.as_bytes());
    assert_eq!((seen[0].headers_like("x-user-id"), seen[0].headers_like("x-tenant")), (vec!["alice"], vec![]));
}

#[test]
fn trailers_become_no_headers() {
    let setting = Setting::start();
    let trailers: String = IDENTITY.into_iter().chain(["Authorization"]).map(|name| format!("{name}: {FORGED}\r\n")).collect();
    for (target, authorization) in [("/me/7", format!("Authorization: {}\r\n", setting.token)), ("/public/7", String::new())] {
        let head = format!("POST {target} HTTP/1.1\r\nHost: gw.test\r\nTE: trailers\r\nTrailer: X-User-Id\r\n{authorization}");
        let answer = setting.gateway.ask(format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n{trailers}\r\n"));
        assert_eq!((answer.status, setting.origin.last().body.as_slice()), (200, &b"hello"[..]));
        assert_eq!(believed(&setting.origin.last()), if authorization.is_empty() { Vec::new() } else { proven() });
    }
    for bytes in setting.origin.received() {
        request_lines(&bytes).unwrap();
        assert!(!String::from_utf8(bytes).unwrap().contains(FORGED), "not even as trailers");
    }
}

#[test]
fn http_2_carries_nothing_into_a_request_that_http_1_could_not() {
    let authority = Authority::new("authority");
    let certificate = authority.issue(&["gw.test"]);
    let folder = Folder::new();
    folder.write("chain.pem", &certificate.chain);
    folder.write("key.pem", &certificate.key);
    let (issuer, origin) = (Issuer::start(Algorithm::EdDsa), Origin::start());
    let tls = ", tls: {certificates: [{chain: chain.pem, key: {file: key.pem}}]}";
    let mut gateway = Gateway::start_in(folder, &config(&issuer, &origin, tls));
    let ca = authority.pem();
    let open = || Http2::open(gateway.address(), &Tls { ca: &ca, server_name: "gw.test", client: None });
    let token = format!("Bearer {}", issuer.token("all", json!({"tenant": "acme", "scope": "read"})));
    let me = [(":method", "GET"), (":scheme", "https"), (":authority", "gw.test"), (":path", "/me/7")];
    until("the keys are there", || open().ask(&[&me[..], &[("authorization", token.as_str())]].concat(), &[]) == Verdict::Answered(200));

    let forged = [("x-user-id", FORGED), ("x_user_id", FORGED), ("x-tenant", FORGED), ("x.scopes", FORGED), ("x-user-id", "")];
    let trailers = [("x-user-id", FORGED), ("x-scopes", FORGED)];
    for (target, expected) in [("/me/7", proven()), ("/public/7", Vec::new())] {
        let pseudo = [(":method", "POST"), (":scheme", "https"), (":authority", "gw.test"), (":path", target)];
        let credential = [("authorization", token.as_str())];
        let credential = if expected.is_empty() { &[][..] } else { &credential[..] };
        assert_eq!(open().ask(&[&pseudo[..], credential, &forged].concat(), &trailers), Verdict::Answered(200), "{target}");
        assert_eq!(believed(&origin.last()), expected);
        assert!(!origin.last().head.contains(FORGED));
    }

    let asked = origin.requests().len();
    let public = |path| [(":method", "POST"), (":scheme", "https"), (":authority", "gw.test"), (":path", path)];
    let cases: &[(&str, &str, &[(&str, &str)])] = &[
        ("a line break in a value", "/public/7", &[("x-a", "b\r\nX-User-Id: mallory-was-here")]),
        ("an LF in a value", "/public/7", &[("x-a", "b\nX-User-Id: mallory-was-here")]),
        ("a CR in a value", "/public/7", &[("x-a", "b\rc")]),
        ("a NUL in a value", "/public/7", &[("x-a", "b\0c")]),
        ("a line break in a name", "/public/7", &[("x-a: b\r\nx-user-id", "mallory-was-here")]),
        ("a colon in a name", "/public/7", &[("x-user-id: mallory-was-here\r\nx-a", "b")]),
        ("a space in a name", "/public/7", &[("x-user-id ", "mallory-was-here")]),
        ("a name in capitals", "/public/7", &[("X-User-Id", "mallory-was-here")]),
        ("an empty name", "/public/7", &[("", "b")]),
        ("chunks", "/public/7", &[("transfer-encoding", "chunked")]),
        ("a connection", "/public/7", &[("connection", "x-user-id")]),
        ("a connection that is kept alive", "/public/7", &[("keep-alive", "1")]),
        ("an upgrade", "/public/7", &[("upgrade", "h2c")]),
        ("a te beyond trailers", "/public/7", &[("te", "gzip")]),
        ("a length that is not that of the body", "/public/7", &[("content-length", "44")]),
        ("two lengths", "/public/7", &[("content-length", "0"), ("content-length", "0")]),
        ("a length with a plus", "/public/7", &[("content-length", "+0")]),
        ("a pseudo header behind the others", "/public/7", &[("x-a", "b"), (":path", "/me/7")]),
        ("two paths", "/public/7", &[(":path", "/me/7")]),
        ("a pseudo header nobody knows", "/public/7", &[(":evil", "1")]),
        ("another host", "/public/7", &[("host", "a b")]),
        ("two hosts", "/public/7", &[("host", "gw.test"), ("host", "evil.test")]),
        ("a space in the path", "/public/7 HTTP/1.1\r\nX-User-Id: mallory-was-here\r\nX-A: b", &[]),
        ("a path that is a whole request", "/public/7 HTTP/1.1\r\nHost: gw.test\r\n\r\nGET /me/7", &[]),
        ("a path without a slash", "me/7", &[]),
        ("an empty path", "", &[]),
        ("a star for a path", "*", &[]),
    ];
    for (name, path, fields) in cases {
        let verdict = open().ask(&[&public(path)[..], fields].concat(), &[]);
        assert!(matches!(verdict, Verdict::Answered(400 | 404) | Verdict::Reset), "{name}: {verdict:?}");
        assert_eq!(origin.requests().len(), asked, "{name}: {:?}", origin.last());
    }
    // The framework drops a fragment before we see it: what is matched is still what is forwarded.
    assert_eq!(open().ask(&public("/public/7#/../../me/7"), &[]), Verdict::Answered(200));
    assert_eq!(origin.last().target(), "/public/7");
    assert!(gateway.is_alive());
}
