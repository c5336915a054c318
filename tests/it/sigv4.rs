//! Requests signed with AWS Signature Version 4: what is forwarded is what was signed, body included.

use std::time::Duration;

use crate::harness::aws::{ACME, Aws, sha256};
use crate::harness::certificates::Authority;
use crate::harness::client::{Answer, Connection, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::{Origin, Reply, answer};
use crate::harness::until;

const KEYS: &str = "keys:\n  - {access_key_id: AKIDACME, secret: {file: acme.secret}, consumer: acme, scopes: [\"orders:read\"]}\n  \
                    - {access_key_id: ASIATEMP, secret: {file: acme.secret}, session_token: {file: token.secret}, consumer: temp}\n";

fn config(origin: &Origin, more: &str) -> String {
    format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{orders: {{servers: ["{}"], retries: {{attempts: 1, on: [connect_failure, 502, 503]}}}}}}
authenticators:
  iam: {{sigv4: {{region: eu-west-1, service: execute-api, keys: {{file: sigv4.yaml}}{more}}}}}
routes:
  - {{name: orders, path: "/orders/{{*rest}}", upstream: orders, policy: {{authenticate: [iam]}}}}
  - {{name: kept, path: "/kept", upstream: orders, policy: {{authenticate: [iam], forward: {{token: keep}}}}}}
"#,
        origin.address
    )
}

fn furnished() -> Folder {
    let folder = Folder::new();
    folder.write("sigv4.yaml", KEYS);
    folder.write("acme.secret", ACME.secret);
    folder.write("token.secret", "TOKEN==");
    folder
}

fn start(origin: &Origin, more: &str) -> Gateway {
    Gateway::start_in(furnished(), &config(origin, more))
}

/// The bytes of a signed request without its body.
fn head(aws: &Aws, method: &str, target: &str, headers: &[(&str, &str)], payload: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let headers = aws.sign(method, target, headers, payload);
    let mut headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    headers.extend(more);
    request(method, target, &headers, b"")
}

fn signed(aws: &Aws, method: &str, target: &str, headers: &[(&str, &str)], payload: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len().to_string();
    let more = [("Content-Length", length.as_str())];
    [head(aws, method, target, headers, payload, if body.is_empty() { &[] } else { &more }), body.to_vec()].concat()
}

fn outcome(answer: &Answer) -> (u16, String) {
    (answer.status, if answer.status == 200 { String::new() } else { answer.code() })
}

fn ok() -> (u16, String) {
    (200, String::new())
}

fn refused() -> (u16, String) {
    (401, "credential_invalid".to_owned())
}

#[test]
fn a_signed_request_reaches_the_service_without_its_signature() {
    let origin = Origin::start();
    let gateway = start(&origin, "");
    let answer = gateway.ask(signed(&ACME, "GET", "/orders/7?b=2&a=1%2F2", &[], &sha256(b""), b""));
    assert_eq!(outcome(&answer), ok());
    let seen = origin.last();
    assert_eq!((seen.target(), seen.header("x-consumer-id")), ("/orders/7?b=2&a=1%2F2", Some("acme")));
    assert_eq!((seen.header("x-key-id"), seen.header("x-auth-method")), (Some("AKIDACME"), Some("sigv4")));
    assert_eq!(seen.header("authorization"), None);

    let link = ACME.presign("GET", "/orders/7", "60", &sha256(b""));
    assert_eq!(gateway.get(&link, &[]).status, 200);
    assert_eq!(origin.last().target(), "/orders/7", "nothing of the signature is forwarded");
    until("the link is in the access log", || gateway.access_log().len() >= 2);
    assert!(!gateway.printed().contains(link.split("X-Amz-Signature=").nth(1).unwrap()));

    let missing = gateway.get("/orders/7", &[]);
    let challenge = Some("AWS4-HMAC-SHA256 realm=\"edgeward\"");
    assert_eq!((missing.code().as_str(), missing.header("www-authenticate")), ("credential_missing", challenge));
    let unknown = gateway.ask(signed(&Aws { id: "NOBODY", ..ACME }, "GET", "/orders/7", &[], &sha256(b""), b""));
    let forged = gateway.ask(signed(&Aws { secret: "wrong", ..ACME }, "GET", "/orders/7", &[], &sha256(b""), b""));
    let shown = |answer: &Answer| answer.text().split("request_id").next().unwrap().to_owned();
    assert_eq!((outcome(&unknown), shown(&unknown)), (refused(), shown(&forged)), "they look the same");
}

#[test]
fn what_was_not_signed_as_it_is_forwarded_is_refused() {
    let origin = Origin::start();
    let gateway = start(&origin, "");
    // What is sent, and what of it was signed.
    for (sent, signed, expected) in [
        ("/orders/a/../7", "/orders/7", ok()),
        ("/orders//7", "/orders/7", ok()),
        ("/orders/./7", "/orders/7", ok()),
        ("/orders/%37", "/orders/7", ok()),
        ("/orders/a%20b", "/orders/a%20b", ok()),
        ("/orders/a/../7", "/orders/a/../7", refused()),
        ("/orders//7", "/orders//7", refused()),
        ("/orders/%37", "/orders/%37", refused()),
        ("/orders/7", "/orders/8", refused()),
        ("/orders/7?a=2", "/orders/7?a=1", refused()),
        ("/orders/7", "/orders/7?a=1", refused()),
        ("/orders/7?a=1&b=2", "/orders/7?b=2&a=1", ok()),
    ] {
        let bytes = String::from_utf8(self::signed(&ACME, "GET", signed, &[], &sha256(b""), b"")).unwrap();
        let answer = gateway.ask(bytes.replacen(signed, sent, 1));
        assert_eq!(outcome(&answer), expected, "{sent} for {signed}");
    }
    for (target, code) in [("/orders/%2e%2e/7", "ambiguous_path"), ("/orders/a%2Fb", "ambiguous_path")] {
        assert_eq!(gateway.ask(signed(&ACME, "GET", target, &[], &sha256(b""), b"")).code(), code, "{target}");
    }
    for ahead in [-960, -301, 302, 960] {
        let answer = gateway.ask(signed(&Aws { ahead, ..ACME }, "GET", "/orders/7", &[], &sha256(b""), b""));
        assert_eq!(answer.status, 401, "{ahead}");
    }
    for (lives, status) in [("604800", 200), ("604801", 401), ("0", 401), ("-1", 401)] {
        assert_eq!(gateway.get(&ACME.presign("GET", "/orders/7", lives, &sha256(b"")), &[]).status, status, "{lives}");
    }
    let past = Aws { ahead: -100, ..ACME };
    assert_eq!(gateway.get(&past.presign("GET", "/orders/7", "60", &sha256(b"")), &[]).code(), "credential_expired");
}

#[test]
fn a_session_token_goes_with_its_key_and_is_kept_where_the_policy_says_so() {
    let origin = Origin::start();
    let gateway = start(&origin, "");
    let temp = Aws { id: "ASIATEMP", ..ACME };
    let token = [("X-Amz-Security-Token", "TOKEN==")];
    assert_eq!(outcome(&gateway.ask(signed(&temp, "GET", "/orders/7", &token, &sha256(b""), b""))), ok());
    let seen = origin.last();
    assert_eq!((seen.header("authorization"), seen.header("x-amz-security-token")), (None, None));
    assert_eq!(outcome(&gateway.ask(signed(&temp, "GET", "/kept", &token, &sha256(b""), b""))), ok());
    let seen = origin.last();
    assert_eq!(seen.header("x-amz-security-token"), Some("TOKEN=="));
    assert!(seen.header("authorization").unwrap().starts_with("AWS4-HMAC-SHA256 "));
    assert_eq!(outcome(&gateway.ask(signed(&temp, "GET", "/orders/7", &[], &sha256(b""), b""))), refused());
    assert_eq!(outcome(&gateway.ask(signed(&ACME, "GET", "/orders/7", &token, &sha256(b""), b""))), refused());
    let link = ACME.presign("GET", "/kept", "60", &sha256(b""));
    assert_eq!(gateway.get(&link, &[]).status, 200);
    assert_eq!(origin.last().target(), link);
}

#[test]
fn a_body_that_was_not_signed_reaches_nobody() {
    let origin = Origin::start();
    let gateway = start(&origin, "");
    for length in [1, 1_000, 65_536, 65_537, 131_072, 300_000, 2_000_000] {
        let body = vec![b'a'; length];
        let mut changed = body.clone();
        changed[length - 1] = b'b';
        let hash = sha256(&body);
        let declared = [("X-Amz-Content-Sha256", hash.as_str())];
        assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &declared, &hash, &body))), ok(), "{length}");
        assert!(origin.last().body == body, "{length}");
        let received = || origin.received().iter().map(Vec::len).sum::<usize>();
        let before = received();
        assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &declared, &hash, &changed))), refused(), "{length}");
        // Of a long one the head was passed on before its body was there.
        let passed = received() - before;
        assert!(passed == 0 || (length > 65_536 && passed < 2_000), "{length}: {passed}");
        // What the signer does not say is hashed here, up to what the gateway reads before it has decided.
        let expected = if length <= 65_536 { ok() } else { refused() };
        assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &[], &hash, &body))), expected, "{length}");
        assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &[], &hash, &changed))), refused(), "{length}");
    }
    let unsigned = [("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")];
    assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &unsigned, "UNSIGNED-PAYLOAD", b"any"))), refused());
    assert_eq!(outcome(&gateway.ask(signed(&ACME, "GET", "/orders/", &[], &sha256(b"x"), b""))), refused(), "no body for a hash of one");
}

#[test]
fn a_body_in_pieces_is_proven_as_a_whole() {
    let origin = Origin::start();
    let gateway = start(&origin, "");
    for (length, size) in [(10, 3), (70_000, 9_000), (1_000_000, 65_536)] {
        let body: Vec<u8> = (0..length).map(|at| b'a' + (at % 26) as u8).collect();
        let hash = sha256(&body);
        for good in [true, false] {
            let mut body = body.clone();
            body[length / 2] = if good { body[length / 2] } else { b'!' };
            let declared = [("X-Amz-Content-Sha256", hash.as_str())];
            let chunks = body.chunks(size).flat_map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
            let head = head(&ACME, "POST", "/orders/", &declared, &hash, &[("Transfer-Encoding", "chunked")]);
            let answer = gateway.ask([head, chunks.collect(), b"0\r\n\r\n".to_vec()].concat());
            assert_eq!(outcome(&answer), if good { ok() } else { refused() }, "{length}");
            assert!(origin.requests().iter().all(|seen| !seen.body.contains(&b'!')));
            assert!(!good || origin.last().body == body, "{length}");
        }
    }
}

#[test]
fn a_body_is_proven_before_an_upstream_that_speaks_http_2_has_any_of_it() {
    let (authority, origin) = (Authority::new("authority"), Origin::start());
    let certificate = authority.issue(&["orders.test"]);
    let folder = Folder::new();
    folder.write("behind.pem", &certificate.chain);
    folder.write("behind.key", &certificate.key);
    let behind = Gateway::start_in(
        folder,
        &format!(
            r#"
listeners: [{{address: "127.0.0.1:0", tls: {{certificates: [{{chain: behind.pem, key: {{file: behind.key}}}}]}}}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{orders: {{servers: ["{}"]}}}}
routes: [{{name: all, path: "/{{*rest}}", upstream: orders, policy: {{authenticate: public}}}}]
"#,
            origin.address
        ),
    );
    let folder = furnished();
    folder.write("ca.pem", authority.pem());
    let servers = format!("servers: [\"{}\"]", behind.address());
    let over_http2 = format!("{servers}, http2: true, tls: {{server_name: orders.test, ca: ca.pem}}");
    let plain = config(&origin, "").replace(&format!("servers: [\"{}\"]", origin.address), &over_http2);
    let gateway = Gateway::start_in(folder, &plain);
    assert_eq!(outcome(&gateway.ask(signed(&ACME, "GET", "/orders/7", &[], &sha256(b""), b""))), ok());
    for length in [5, 65_536, 100_000, 1_000_000] {
        let body = vec![b'a'; length];
        let hash = sha256(&body);
        let declared = [("X-Amz-Content-Sha256", hash.as_str())];
        let chunked = |body: &[u8]| {
            let head = head(&ACME, "POST", "/orders/", &declared, &hash, &[("Transfer-Encoding", "chunked")]);
            [&head, format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n0\r\n\r\n"].concat()
        };
        assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &declared, &hash, &body))), ok(), "{length}");
        assert!(origin.last().body == body, "{length}");
        assert_eq!(outcome(&gateway.ask(chunked(&body))), ok(), "{length} in chunks");
        assert!(origin.last().body == body, "{length} in chunks");
        let changed = vec![b'b'; length];
        assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &declared, &hash, &changed))), refused(), "{length}");
        assert_eq!(outcome(&gateway.ask(chunked(&changed))), refused(), "{length} in chunks");
    }
    assert!(origin.requests().iter().all(|seen| !seen.body.contains(&b'b')), "nothing of a wrong body came through");
}

#[test]
fn an_answer_that_comes_before_the_body_waits_for_its_proof() {
    // An upstream that has made up its mind from the head.
    let hasty = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hasty.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in hasty.incoming() {
            use std::io::{Read, Write};
            let mut stream = stream.unwrap();
            let mut seen = Vec::new();
            let mut buffer = [0; 4096];
            while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
                let read = stream.read(&mut buffer).unwrap();
                if read == 0 {
                    break;
                }
                seen.extend_from_slice(&buffer[..read]);
            }
            stream.write_all(&answer(200, &[], "hasty")).unwrap();
            std::thread::spawn(move || while stream.read(&mut buffer).is_ok_and(|read| read > 0) {});
        }
    });
    let origin = Origin::start();
    let gateway = start(&origin, "");
    gateway.rewrite(&config(&origin, "").replace(&origin.address.to_string(), &address.to_string()));
    until("the other upstream serves", || gateway.metric("edgeward_config_generation", &[]) >= 2.0);
    let body = vec![b'a'; 100_000];
    let hash = sha256(&body);
    let declared = [("X-Amz-Content-Sha256", hash.as_str())];
    for good in [true, false] {
        let mut connection = Connection::open(gateway.address());
        connection.send(head(&ACME, "POST", "/orders/", &declared, &hash, &[("Content-Length", "100000")]));
        connection.send(&body[..90_000]);
        std::thread::sleep(Duration::from_millis(200));
        connection.send(if good { vec![b'a'; 10_000] } else { vec![b'b'; 10_000] });
        assert_eq!(outcome(&connection.answer(false)), if good { ok() } else { refused() });
    }
}

#[test]
fn a_caller_that_waits_to_be_told_to_go_on_is_told() {
    let origin = Origin::start();
    let gateway = start(&origin, "");
    let hash = sha256(b"hello");
    let mut connection = Connection::open(gateway.address());
    let more = [("Expect", "100-continue"), ("Content-Length", "5")];
    connection.send(head(&ACME, "POST", "/orders/", &[("X-Amz-Content-Sha256", &hash)], &hash, &more));
    assert_eq!(connection.answer(false).status, 100);
    connection.send(b"hello");
    assert_eq!(connection.answer(false).status, 200);
    assert_eq!((origin.last().header("expect"), &*origin.last().body), (None, &b"hello"[..]));
}

#[test]
fn a_proven_body_is_sent_again_when_the_upstream_is_asked_again() {
    let origin = Origin::scripted(|seen| match seen.target() {
        "/orders/flaky" if seen.connection == 0 => Reply::Last(answer(503, &[], "")),
        _ => Reply::Bytes(answer(200, &[], "fine")),
    });
    let gateway = start(&origin, "");
    let hash = sha256(b"hello");
    let answer = gateway.ask(signed(&ACME, "PUT", "/orders/flaky", &[("X-Amz-Content-Sha256", &hash)], &hash, b"hello"));
    assert_eq!(answer.status, 200);
    assert!(origin.requests().len() >= 2, "it was asked again");
    assert!(origin.requests().iter().all(|seen| seen.body == b"hello"));
}

#[test]
fn a_signature_that_changes_something_counts_once_where_that_is_wanted() {
    let origin = Origin::start();
    let gateway = start(&origin, ", replay: refuse, unsigned_payload: true");
    let post = signed(&ACME, "POST", "/orders/", &[], &sha256(b"x"), b"x");
    assert_eq!((outcome(&gateway.ask(&post)), outcome(&gateway.ask(&post))), (ok(), refused()));
    let get = signed(&ACME, "GET", "/orders/", &[], &sha256(b""), b"");
    assert_eq!((outcome(&gateway.ask(&get)), outcome(&gateway.ask(&get))), (ok(), ok()));
    gateway.folder().write("sigv4.yaml", KEYS.replace("consumer: acme", "consumer: umbrella"));
    until("the new keys serve", || gateway.ask(&get).status == 200 && origin.last().header("x-consumer-id") == Some("umbrella"));
    assert_eq!(outcome(&gateway.ask(&post)), refused(), "also after a reload");
    let unsigned = [("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")];
    assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &unsigned, "UNSIGNED-PAYLOAD", b"any"))), ok());
}

#[test]
fn a_wrong_body_uses_up_nothing_of_its_signers_budget() {
    let origin = Origin::start();
    let limited = config(&origin, "").replace("authenticate: [iam]}", "authenticate: [iam], limits: [few]}");
    let gateway = Gateway::start_in(furnished(), &format!("{limited}limits: {{few: {{per: consumer, rate: 2/h}}}}\n"));
    for length in [5, 100_000] {
        let hash = sha256(&vec![b'a'; length]);
        let declared = [("X-Amz-Content-Sha256", hash.as_str())];
        for _ in 0..3 {
            let changed = vec![b'b'; length];
            assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &declared, &hash, &changed))), refused(), "{length}");
        }
        assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &declared, &hash, &vec![b'a'; length]))), ok(), "{length}");
    }
    assert_eq!(gateway.ask(signed(&ACME, "GET", "/orders/", &[], &sha256(b""), b"")).status, 429, "two were let through");
}
