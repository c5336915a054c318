//! Requests that two parties could read in two ways, sent to the real gateway byte by byte: one reading reaches the service, or none.

use base64::prelude::{BASE64_STANDARD, Engine};
use edgeward::jose::Algorithm;
use edgeward::request::path;
use serde_json::json;

use crate::harness::client::{Answer, Connection, request};
use crate::harness::framing::request_lines;
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::issuer::Issuer;
use crate::harness::origin::{Origin, Reply, answer};
use crate::harness::until;

/// `/open` and all below is for anyone, `/admin` and all below for those with a token.
fn config(issuer: &Issuer, origin: &Origin) -> String {
    format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{all: {{servers: ["{}"]}}}}
authenticators: {{staff: {{jwt: {{issuer: "{}", audiences: [all], keys: {{jwks_url: "{}"}}}}}}}}
policies: {{anyone: {{authenticate: public}}, staff: {{authenticate: staff}}}}
routes:
  - {{name: open, path: /open, upstream: all, policy: anyone}}
  - {{name: public, path: "/public/{{*rest}}", upstream: all, policy: anyone}}
  - {{name: admin, path: /admin, upstream: all, policy: staff}}
  - {{name: admins, path: "/admin/{{*rest}}", upstream: all, policy: staff}}
  - {{name: socket, path: /socket, upstream: all, policy: anyone, websocket: true}}
"#,
        origin.address,
        issuer.url(),
        issuer.jwks_url()
    )
}

/// An origin that answers with the target it was asked for, so that an answer tells whose it is.
fn echo() -> Origin {
    Origin::scripted(|request| Reply::Bytes(answer(200, &[], request.target())))
}

fn start() -> (Issuer, Origin, Gateway) {
    let (issuer, origin) = (Issuer::start(Algorithm::EdDsa), echo());
    let gateway = Gateway::start(&config(&issuer, &origin));
    let token = bearer(&issuer);
    until("the keys are there", || gateway.get("/admin", &[("Authorization", &token)]).status == 200);
    (issuer, origin, gateway)
}

fn bearer(issuer: &Issuer) -> String {
    format!("Bearer {}", issuer.token("all", json!({})))
}

/// Every answer until the gateway closes.
fn answers(gateway: &Gateway, bytes: impl AsRef<[u8]>) -> Vec<Answer> {
    let mut connection = Connection::open(gateway.address());
    connection.send(bytes);
    let mut answers = Vec::new();
    while !connection.is_closed() {
        answers.push(connection.answer(false));
    }
    answers
}

#[test]
fn no_spelling_of_a_path_opens_what_it_stands_for_in_any_reading() {
    #[derive(serde::Deserialize)]
    struct Row {
        id: String,
        target_b64: String,
        reaches_admin_under: Vec<String>,
    }
    let (issuer, origin, gateway) = start();
    let authorization = format!("Authorization: {}\r\n", bearer(&issuer));
    let rows = include_str!("../data/path-confusion/targets.jsonl");
    let (mut refused, mut asked, mut served) = (0, 0, 0);
    for line in rows.lines() {
        let row: Row = serde_json::from_str(line).unwrap();
        let target = BASE64_STANDARD.decode(&row.target_b64).unwrap();
        for authorization in ["", &authorization] {
            let before = origin.requests().len();
            let head = format!(" HTTP/1.1\r\nHost: gw.test\r\n{authorization}\r\n");
            let mut connection = Connection::open(gateway.address());
            let status = connection.ask([b"GET ", &target[..], head.as_bytes()].concat()).status;
            let seen: Vec<_> = origin.requests().split_off(before);
            match status {
                400 | 404 => refused += 1,
                401 => asked += 1,
                200 => served += 1,
                _ => panic!("{}: {status}", row.id),
            }
            assert_eq!(seen.len(), usize::from(status == 200), "{}", row.id);
            for request in seen {
                let forwarded = request.target();
                let (path, _) = forwarded.split_once('?').unwrap_or((forwarded, ""));
                assert_eq!(path::canonical(path.as_bytes()).unwrap().path, path, "{}: what is forwarded is in the one form", row.id);
                let protected = path == "/admin" || path.starts_with("/admin/");
                assert!(protected || row.reaches_admin_under.is_empty(), "{}: forwarded as {forwarded}", row.id);
                assert_eq!(protected, !authorization.is_empty() && request.header("x-user-id") == Some("alice"), "{}: {forwarded}", row.id);
            }
        }
    }
    assert!(refused > 50 && asked > 5 && served > 5, "{refused} refused, {asked} asked for a credential, {served} served");
}

/// What is written in the tables below, as bytes: `⏎` ends a line, `→` is a whole request for what nobody here may see.
fn bytes(written: &str) -> Vec<u8> {
    written.replace('→', "GET /admin HTTP/1.1⏎Host: gw.test⏎⏎").replace('⏎', "\r\n").into_bytes()
}

/// The same, after the first lines of a POST where it has none of its own.
fn posted(written: &str) -> Vec<u8> {
    let first = written.split('⏎').next().unwrap_or_default();
    let whole = first.contains("open") || first.contains("/socket");
    bytes(&if whole { written.to_owned() } else { format!("POST /open HTTP/1.1⏎Host: gw.test⏎{written}") })
}

/// Refused at the head: 400 and the end of the connection, and the origin hears nothing.
const TWO_ENDS: &[(&str, &str)] = &[
    ("CL.TE", "Content-Length: 4⏎Transfer-Encoding: chunked⏎⏎0⏎⏎→"),
    ("TE.CL", "Transfer-Encoding: chunked⏎Content-Length: 4⏎⏎2d⏎→0⏎⏎"),
    ("CL.TE with a length of zero", "Content-Length: 0⏎Transfer-Encoding: chunked⏎⏎0⏎⏎"),
    ("CL.TE in capitals", "CONTENT-LENGTH: 4⏎TRANSFER-ENCODING: CHUNKED⏎⏎0⏎⏎→"),
    ("CL.TE with a tab before the coding", "Content-Length: 4⏎Transfer-Encoding:\tchunked⏎⏎0⏎⏎→"),
    ("CL.TE, the length last and behind others", "Transfer-Encoding: chunked⏎X-A: b⏎Content-Length: 4⏎⏎0⏎⏎→"),
    ("a length that is not one, and chunked", "Content-Length: x⏎Transfer-Encoding: chunked⏎⏎0⏎⏎→"),
    ("an empty length, and chunked", "Content-Length:⏎Transfer-Encoding: chunked⏎⏎0⏎⏎→"),
    ("two lengths, and chunked", "Content-Length: 4⏎Content-Length: 5⏎Transfer-Encoding: chunked⏎⏎0⏎⏎→"),
    ("gzip, chunked", "Transfer-Encoding: gzip, chunked⏎⏎0⏎⏎→"),
    ("identity, chunked", "Transfer-Encoding: identity, chunked⏎⏎0⏎⏎→"),
    ("chunked, identity", "Transfer-Encoding: chunked, identity⏎⏎0⏎⏎→"),
    ("chunked, chunked", "Transfer-Encoding: chunked, chunked⏎⏎0⏎⏎→"),
    ("two lines of chunked", "Transfer-Encoding: chunked⏎Transfer-Encoding: chunked⏎⏎0⏎⏎→"),
    ("chunked and then identity", "Transfer-Encoding: chunked⏎Transfer-Encoding: identity⏎⏎0⏎⏎→"),
    ("identity and then chunked", "Transfer-Encoding: identity⏎Transfer-Encoding: chunked⏎⏎0⏎⏎→"),
    ("only identity", "Transfer-Encoding: identity⏎Content-Length: 4⏎⏎0⏎⏎→"),
    ("an unknown coding", "Transfer-Encoding: xchunked⏎⏎0⏎⏎→"),
    ("chunked with a parameter", "Transfer-Encoding: chunked;q=1⏎⏎0⏎⏎→"),
    ("chunked in quotes", "Transfer-Encoding: \"chunked\"⏎⏎0⏎⏎→"),
    ("chunked behind a comma", "Transfer-Encoding: ,chunked⏎⏎0⏎⏎→"),
    ("chunked before a comma", "Transfer-Encoding: chunked,⏎⏎0⏎⏎→"),
    ("an empty coding", "Transfer-Encoding:⏎⏎0⏎⏎→"),
    ("a coding with a vertical tab", "Transfer-Encoding: \u{b}chunked⏎⏎0⏎⏎→"),
    ("a coding with a NUL", "Transfer-Encoding: chunked\0⏎⏎0⏎⏎→"),
    ("a coding beyond ASCII", "Transfer-Encoding: c\u{212a}unked⏎⏎0⏎⏎→"),
    ("a folded coding", "Transfer-Encoding:⏎ chunked⏎⏎0⏎⏎→"),
    ("a fold behind the coding", "Transfer-Encoding: chunked⏎ , identity⏎⏎0⏎⏎→"),
    ("a space before the colon of the coding", "Transfer-Encoding : chunked⏎⏎0⏎⏎→"),
    ("a tab before the colon of the coding", "Transfer-Encoding\t: chunked⏎⏎0⏎⏎→"),
    ("a space before the name of the coding", " Transfer-Encoding: chunked⏎⏎0⏎⏎→"),
    ("a coding hidden behind a bare LF", "X-A: b\nTransfer-Encoding: chunked⏎⏎0⏎⏎→"),
    ("a coding hidden behind a bare CR", "X-A: b\rTransfer-Encoding: chunked⏎⏎0⏎⏎→"),
    ("a coding that ends in a bare LF", "Transfer-Encoding: chunked\n⏎0⏎⏎→"),
    ("two lengths", "Content-Length: 0⏎Content-Length: 44⏎⏎→"),
    ("two lengths alike", "Content-Length: 5⏎Content-Length: 5⏎⏎hello→"),
    ("a list of lengths", "Content-Length: 5, 44⏎⏎hello→"),
    ("a list of lengths alike", "Content-Length: 5, 5⏎⏎hello→"),
    ("a length with a plus", "Content-Length: +5⏎⏎hello→"),
    ("a length below zero", "Content-Length: -5⏎⏎hello→"),
    ("a length in hexadecimal", "Content-Length: 0x5⏎⏎hello→"),
    ("a length with an underscore", "Content-Length: 1_0⏎⏎hellohello→"),
    ("a length with a point", "Content-Length: 5.0⏎⏎hello→"),
    ("a length with an exponent", "Content-Length: 5e0⏎⏎hello→"),
    ("a length with a space in it", "Content-Length: 5 0⏎⏎hello→"),
    ("a length in quotes", "Content-Length: \"5\"⏎⏎hello→"),
    ("a length without a value", "Content-Length:⏎⏎→"),
    ("a length beyond 64 bits", "Content-Length: 18446744073709551621⏎⏎hello→"),
    ("a length in the digits of another script", "Content-Length: \u{665}⏎⏎hello→"),
    ("a space before the colon of the length", "Content-Length : 5⏎⏎hello→"),
    ("a folded length", "Content-Length: 5⏎ 0⏎⏎hello→"),
    ("a length behind a bare LF", "X-A: b\nContent-Length: 44⏎⏎→"),
    ("lines that end in a bare LF", "GET /open HTTP/1.1\nHost: gw.test\n\n"),
    ("an empty line of a bare LF", "Content-Length: 0⏎\n→"),
    ("a NUL in a value", "X-A: a\0b⏎⏎"),
    ("a NUL in a name", "X\0A: b⏎⏎"),
    ("a name that is empty", ": b⏎⏎"),
    ("a line without a colon", "X-A⏎⏎"),
    ("a fold", "X-A: a⏎ b⏎⏎"),
    ("a fold with a tab", "X-A: a⏎\tContent-Length: 44⏎⏎→"),
    ("an upgrade with a length", "GET /socket HTTP/1.1⏎Host: gw.test⏎Upgrade: websocket⏎Connection: Upgrade⏎Content-Length: 44⏎⏎→"),
    (
        "an upgrade with chunks",
        "GET /socket HTTP/1.1⏎Host: gw.test⏎Upgrade: websocket⏎Connection: Upgrade⏎Transfer-Encoding: chunked⏎⏎0⏎⏎→",
    ),
    ("an expectation nobody knows", "Expect: 200-ok⏎Content-Length: 44⏎⏎→"),
    ("chunks in HTTP/1.0", "POST /open HTTP/1.0⏎Host: gw.test⏎Transfer-Encoding: chunked⏎⏎0⏎⏎→"),
    ("chunks in HTTP/1.0 that stay open", "POST /open HTTP/1.0⏎Host: gw.test⏎Connection: keep-alive⏎Transfer-Encoding: chunked⏎⏎0⏎⏎→"),
    ("no host", "GET /open HTTP/1.1⏎⏎"),
    ("two hosts", "GET /open HTTP/1.1⏎Host: gw.test⏎Host: evil.test⏎⏎"),
    ("two hosts alike", "GET /open HTTP/1.1⏎Host: gw.test⏎Host: gw.test⏎⏎"),
    ("an empty host", "GET /open HTTP/1.1⏎Host:⏎⏎"),
    ("a list of hosts", "GET /open HTTP/1.1⏎Host: gw.test, evil.test⏎⏎"),
    ("a host with user information", "GET /open HTTP/1.1⏎Host: evil@gw.test⏎⏎"),
    ("a host with a path", "GET /open HTTP/1.1⏎Host: gw.test/admin⏎⏎"),
    ("a host with a space", "GET /open HTTP/1.1⏎Host: gw.test evil.test⏎⏎"),
    ("a host with an empty port", "GET /open HTTP/1.1⏎Host: gw.test:⏎⏎"),
    ("an absolute target of another host", "GET http://evil.test/open HTTP/1.1⏎Host: gw.test⏎⏎"),
    ("an absolute target with user information", "GET http://gw.test@evil.test/open HTTP/1.1⏎Host: gw.test⏎⏎"),
    ("an absolute target of another port", "GET http://gw.test:81/open HTTP/1.1⏎Host: gw.test⏎⏎"),
    ("an absolute target of another scheme", "GET file:///open HTTP/1.1⏎Host: gw.test⏎⏎"),
    ("a target without a slash", "GET open HTTP/1.1⏎Host: gw.test⏎X-A: /⏎ /⏎⏎"),
    ("two spaces before the target", "GET  /open HTTP/1.1⏎Host: gw.test⏎⏎"),
    ("a fragment", "GET /open#/../admin HTTP/1.1⏎Host: gw.test⏎⏎"),
    ("a fragment behind a query", "GET /open?a#b HTTP/1.1⏎Host: gw.test⏎⏎"),
    ("an absolute target with a fragment", "GET http://gw.test/open#a HTTP/1.1⏎Host: gw.test⏎⏎"),
    ("a tab before the target", "GET\t/open HTTP/1.1⏎Host: gw.test⏎⏎"),
    ("a version of one digit", "GET /open HTTP/1⏎Host: gw.test⏎⏎"),
    ("a version of three digits", "GET /open HTTP/1.10⏎Host: gw.test⏎⏎"),
    ("version 2 in the text of version 1", "GET /open HTTP/2.0⏎Host: gw.test⏎⏎"),
    ("a version in small letters", "GET /open http/1.1⏎Host: gw.test⏎⏎"),
    ("a request without a version", "GET /open⏎⏎"),
    ("trace", "TRACE /open HTTP/1.1⏎Host: gw.test⏎⏎"),
];

/// Refused in the middle of the body, or read as one request: the origin hears the beginning of one request, or a whole one.
const BAD_CHUNKS: &[(&str, &str)] = &[
    ("a size with 0x", "0x5⏎hello⏎0⏎⏎→"),
    ("a size with a plus", "+5⏎hello⏎0⏎⏎→"),
    ("a size below zero", "-5⏎hello⏎0⏎⏎→"),
    ("a size with an underscore", "1_0⏎hellohellohello!⏎0⏎⏎→"),
    ("a size that begins with an underscore", "_5⏎hello⏎0⏎⏎→"),
    ("a size of 17 digits", "10000000000000005⏎hello⏎0⏎⏎→"),
    ("a size of 16 digits", "ffffffffffffffff⏎hello⏎0⏎⏎→"),
    ("a size of 17 zeros and a digit", "000000000000000005⏎hello⏎0⏎⏎→"),
    ("an empty size", "⏎hello⏎0⏎⏎→"),
    ("a size behind a space", " 5⏎hello⏎0⏎⏎→"),
    ("a size before a space", "5 ⏎hello⏎0⏎⏎→"),
    ("a size before a tab", "5\t⏎hello⏎0⏎⏎→"),
    ("a size with a letter beyond f", "5g⏎hello⏎0⏎⏎→"),
    ("a size with a NUL", "5\0⏎hello⏎0⏎⏎→"),
    ("a size in the digits of another script", "\u{665}⏎hello⏎0⏎⏎→"),
    ("a size that ends in a bare LF", "5\nhello⏎0⏎⏎→"),
    ("a size that ends in a bare CR", "5\rhello⏎0⏎⏎→"),
    ("a chunk that ends in a bare LF", "5⏎hello\n0⏎⏎→"),
    ("a chunk that ends in a bare CR", "5⏎hello\r0⏎⏎→"),
    ("a chunk that ends in two other bytes", "5⏎helloxx0⏎⏎→"),
    ("a chunk longer than its size", "3⏎hello⏎0⏎⏎→"),
    ("an extension with a bare LF in it", "5;a\nb⏎hello⏎0⏎⏎→"),
    ("an extension that hides the end", "5;a=\"⏎hello⏎0⏎⏎→"),
    ("an extension that ends in a bare LF", "5;a=b\nhello⏎0⏎⏎→"),
    ("an extension that hides a chunk", "2;\nxx\r\n2d⏎→0⏎⏎"),
    ("an extension on the last chunk that ends in a bare LF", "0;a\n⏎→"),
    ("a last chunk that ends in bare LFs", "0\n\n→"),
    ("a last chunk whose empty line is a bare LF", "0⏎\n→"),
    ("a last chunk of many zeros", "0000000000000000000000⏎⏎→"),
    ("a trailer that looks like framing", "0⏎Transfer-Encoding: chunked⏎Content-Length: 44⏎⏎→"),
    ("a trailer that ends in a bare LF", "0⏎X-A: b\n⏎→"),
    ("a trailer without a colon", "0⏎GET /admin HTTP/1.1⏎⏎→"),
];

/// Read in one way, whatever stands behind.
const SOUND: &[(&str, &str)] = &[
    ("a length", "Content-Length: 5⏎⏎hello"),
    ("a length with zeros before it", "Content-Length: 005⏎⏎hello"),
    ("chunks", "Transfer-Encoding: chunked⏎⏎5⏎hello⏎0⏎⏎"),
    ("chunks in capitals", "Transfer-Encoding: Chunked⏎⏎5⏎hello⏎0⏎⏎"),
    ("chunks with an extension", "Transfer-Encoding: chunked⏎⏎5;a=b⏎hello⏎0⏎⏎"),
    ("chunks with a trailer", "Transfer-Encoding: chunked⏎⏎5⏎hello⏎0⏎X-A: b⏎⏎"),
    ("a size with zeros before it", "Transfer-Encoding: chunked⏎⏎005⏎hello⏎00⏎⏎"),
];

#[test]
fn a_request_that_could_end_in_two_places_ends_the_connection() {
    let (_issuer, origin, mut gateway) = start();
    let asked = origin.requests().len();
    for (name, written) in TWO_ENDS {
        let answers = answers(&gateway, posted(written));
        assert!(matches!(&answers[..], [] | [Answer { status: 400, .. }]), "{name}: {answers:?}");
        assert_eq!(origin.requests().len(), asked, "{name} reached the service");
    }
    let mut served = asked;
    for (at, (name, written)) in BAD_CHUNKS.iter().enumerate() {
        // The last request ends the connection, whatever became of those before.
        let last = "GET /public/last HTTP/1.1⏎Host: gw.test⏎Connection: close⏎⏎";
        let answers = answers(&gateway, posted(&format!("Transfer-Encoding: chunked⏎⏎{written}{last}")));
        let mut statuses = answers.iter().map(|answer| answer.status);
        assert!(matches!(statuses.next(), None | Some(200 | 400)), "{name}: {answers:?}");
        // A second request, where one is seen, is judged as what it is: one without a credential.
        assert!(statuses.all(|status| matches!(status, 200 | 400 | 401)), "{name}: {answers:?}");
        // Whatever was left on a pooled connection would come out here.
        let target = format!("/public/{at}");
        assert_eq!(gateway.get(&target, &[]).text(), target, "{name}: another caller gets its own answer");
        served += 1 + answers.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(origin.requests().len(), served, "{name}: the service saw {:?}", origin.last());
    }
    for bytes in origin.received() {
        let lines = request_lines(&bytes).unwrap();
        assert!(lines[1..].iter().all(|line| !line.contains("/admin")), "{lines:?}");
    }
    assert!(gateway.is_alive());
    assert_eq!(gateway.metric("edgeward_panics_total", &[]), 0.0);
}

#[test]
fn a_request_with_one_end_is_passed_on_whole_and_the_next_on_the_connection_is_judged_alone() {
    let (_issuer, origin, gateway) = start();
    for (name, written) in SOUND {
        let mut connection = Connection::open(gateway.address());
        assert_eq!(connection.ask(posted(written)).status, 200, "{name}");
        let seen = origin.last();
        assert_eq!((seen.target(), seen.body.as_slice()), ("/open", &b"hello"[..]), "{name}");
        assert_eq!(connection.ask(request("GET", "/admin", &[], b"")).code(), "credential_missing", "{name}");
    }
    for bytes in origin.received() {
        request_lines(&bytes).unwrap();
    }
}

#[test]
fn the_body_of_a_refused_request_is_never_the_next_request() {
    let (issuer, origin, gateway) = start();
    let asked = origin.requests().len();
    let hidden = request("GET", "/admin/hidden", &[("Authorization", &bearer(&issuer))], b"");
    let mut connection = Connection::open(gateway.address());
    for _ in 0..3 {
        assert_eq!(connection.ask(request("POST", "/admin", &[], &hidden)).code(), "credential_missing");
    }
    assert_eq!(connection.ask(request("GET", "/open", &[], b"")).text(), "/open", "the connection goes on with the next request");

    // In pieces, the body last: what comes late is still the body.
    let whole = request("POST", "/admin", &[], &hidden);
    let (head, body) = whole.split_at(whole.len() - hidden.len());
    assert_eq!(connection.ask(head).code(), "credential_missing");
    connection.send(body);
    assert_eq!(connection.ask(request("GET", "/public/late", &[], b"")).text(), "/public/late");

    let chunked = [b"POST /admin HTTP/1.1\r\nHost: gw.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &hidden[..]].concat();
    let statuses: Vec<_> = answers(&gateway, chunked).iter().map(|answer| answer.status).collect();
    assert!(matches!(statuses[..], [401]), "what has no length is not waited for: {statuses:?}");
    let targets: Vec<_> = origin.requests().split_off(asked).iter().map(|request| request.target().to_owned()).collect();
    assert_eq!(targets, ["/open", "/public/late"]);
}

#[test]
fn pipelined_requests_are_judged_one_by_one() {
    let (issuer, origin, gateway) = start();
    let token = bearer(&issuer);
    let good = request("GET", "/admin/good", &[("Authorization", &token)], b"");
    let bad = request("GET", "/admin/bad", &[], b"");
    for (pair, statuses) in [([&good, &bad], [200, 401]), ([&bad, &good], [401, 200]), ([&good, &good], [200, 200])] {
        let asked = origin.requests().len();
        let mut connection = Connection::open(gateway.address());
        connection.send([&pair[0][..], &pair[1][..]].concat());
        assert_eq!(connection.answer(false).status, statuses[0]);
        // Whether a second request is served that came before the first answer is a choice; whose answer it gets is none.
        if !connection.is_closed() {
            assert_eq!(connection.answer(false).status, statuses[1]);
        }
        assert!(origin.requests().split_off(asked).iter().all(|request| request.target() == "/admin/good"));
    }
}

#[test]
fn bytes_behind_an_upgrade_reach_nobody_before_the_service_has_agreed() {
    let (_issuer, origin, gateway) = start();
    let head = "GET /socket HTTP/1.1⏎Host: gw.test⏎Upgrade: websocket⏎Connection: Upgrade⏎Sec-WebSocket-Version: 13⏎Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==⏎⏎→";
    let mut connection = Connection::open(gateway.address());
    assert_eq!(connection.ask(bytes(head)).text(), "/socket", "the service went on without an upgrade");
    assert_eq!(origin.last().header("upgrade"), Some("websocket"));
    // Once more, so that a pooled connection would show what was left on it.
    assert_eq!(gateway.get("/public/next", &[]).text(), "/public/next");
    for bytes in origin.received() {
        assert!(request_lines(&bytes).unwrap().iter().skip(1).all(|line| !line.contains("/admin")));
    }
    let tunnel = answers(&gateway, "CONNECT gw.test:443 HTTP/1.1\r\nHost: gw.test:443\r\n\r\nGET /open HTTP/1.1\r\nHost: gw.test\r\n\r\n");
    assert!(tunnel.first().is_none_or(|answer| [400, 405].contains(&answer.status)), "{tunnel:?}");
}

#[test]
fn what_a_service_sends_too_much_is_nobody_elses_answer() {
    let origin = Origin::scripted(|request| match request.target() {
        "/public/two" => Reply::Bytes([answer(200, &[], "one"), answer(200, &[], "evil")].concat()),
        "/public/early" => Reply::Bytes([&b"HTTP/1.1 103 Early Hints\r\n\r\n"[..], &answer(200, &[], "early")].concat()),
        "/public/long" => Reply::Bytes([answer(200, &[], "long"), b"evil".to_vec()].concat()),
        "/public/short" => Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort".to_vec()),
        target => Reply::Bytes(answer(200, &[], target)),
    });
    let issuer = Issuer::start(Algorithm::EdDsa);
    let gateway = Gateway::start(&config(&issuer, &origin));
    for round in 0..3 {
        for (target, body) in [("/public/two", "one"), ("/public/long", "long")] {
            assert_eq!(gateway.get(target, &[]).text(), body);
            let next = format!("/public/next/{round}");
            assert_eq!(gateway.get(&next, &[]).text(), next, "after {target}");
        }
        let mut connection = Connection::open(gateway.address());
        connection.send(request("GET", "/public/early", &[], b""));
        let first = connection.answer(false);
        let last = if first.status < 200 { connection.answer(false) } else { first };
        assert_eq!(last.text(), "early");
        let mut connection = Connection::open(gateway.address());
        connection.send(request("GET", "/public/short", &[], b""));
        let whole = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| connection.answer(false)));
        assert!(whole.is_err(), "an answer that was cut short is not made whole");
    }
}

#[test]
fn one_address_is_ruled_on_limited_logged_and_forwarded() {
    let origin = echo();
    let start = |trusted: &str| {
        Gateway::start(&format!(
            r#"
server: {{trusted_proxies: {trusted}}}
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{all: {{servers: ["{}"]}}}}
limits: {{one: {{per: client_ip, rate: 1/h}}}}
routes:
  - {{name: inside, path: /inside, upstream: all, policy: {{authenticate: public, allow: [10.0.0.0/8]}}}}
  - {{name: once, path: /once, upstream: all, policy: {{authenticate: public, limits: [one]}}}}
  - {{name: open, path: /open, upstream: all, policy: {{authenticate: public}}}}
"#,
            origin.address
        ))
    };
    let ask =
        |gateway: &Gateway, target: &str, chain: &str| gateway.get(target, &[("X-Forwarded-For", chain), ("X-Real-IP", "10.9.9.9")]).status;
    let logged = |gateway: &Gateway, client: &str| {
        until("the access log names the caller", || {
            gateway.access_log().iter().any(|line| line["client"] == client && line["path"] == "/open")
        });
    };

    let alone = start("[]");
    for chain in ["10.0.0.1", "127.0.0.1, 10.0.0.1", "::ffff:10.0.0.1"] {
        assert_eq!(ask(&alone, "/inside", chain), 403, "a stranger's word on its address counts for nothing: {chain}");
    }
    assert_eq!([ask(&alone, "/once", "10.0.0.1"), ask(&alone, "/once", "10.0.0.2")], [200, 429], "nor does it make another caller of it");
    assert_eq!(ask(&alone, "/open", "10.0.0.1"), 200);
    assert_eq!((origin.last().header("x-forwarded-for"), origin.last().header("x-real-ip")), (Some("127.0.0.1"), None));
    logged(&alone, "127.0.0.1");

    let behind = start("[127.0.0.0/8]");
    for (chain, status) in [("10.0.0.1", 200), ("::ffff:10.0.0.1", 200), ("10.0.0.1, 203.0.113.7", 403), ("10.0.0.1, x", 403), ("", 403)] {
        assert_eq!(ask(&behind, "/inside", chain), status, "{chain}");
    }
    let once =
        ["198.51.100.1", "203.0.113.9, 198.51.100.1", "198.51.100.1, 127.0.0.2", "198.51.100.2"].map(|chain| ask(&behind, "/once", chain));
    assert_eq!(once, [200, 429, 429, 200]);
    assert_eq!(ask(&behind, "/open", "10.0.0.1, 203.0.113.7"), 200);
    assert_eq!(origin.last().header("x-forwarded-for"), Some("10.0.0.1, 203.0.113.7, 127.0.0.1"));
    logged(&behind, "203.0.113.7");
}

#[test]
fn no_log_that_can_be_asked_for_holds_a_credential() {
    let origin = Origin::start();
    let yaml = format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{all: {{servers: ["{}"]}}}}
routes: [{{name: all, path: "/{{*rest}}", upstream: all, policy: {{authenticate: public}}}}]
"#,
        origin.address
    );
    let gateway = Gateway::start_with(Folder::new(), &yaml, &[("RUST_LOG", "trace")]);
    let mut connection = Connection::open(gateway.address());
    // By either way to the backend: `TE` takes the long one.
    for more in [&[][..], &[("TE", "trailers")]] {
        let sent = [&[("Authorization", "Bearer hush-1"), ("Cookie", "session=hush-2")], more].concat();
        assert_eq!(connection.ask(request("POST", "/", &sent, b"hush-3")).status, 200);
    }
    let (log, access) = (gateway.log(), gateway.access_log());
    // The framework is heard, as it is not unless asked for.
    assert!(access.len() == 2 && log.iter().any(|line| line["message"] == "Server starting"), "{log:?}");
    for line in log.iter().chain(&access) {
        assert!(!line.to_string().contains("hush"), "{line}");
    }
}
