//! Callers that take their time: for a head, for the beginning of a connection, for an answer. Each holds what it holds for so long and no longer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::certificates::Authority;
use crate::harness::client::{Connection, Http2, Tls, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::{Origin, Reply, answer};
use crate::harness::until;

const BEGUN: &str = "GET /late?token=secret HTTP/1.1\r\nHost: gw.test\r\nAuthorization: Bearer secret";

/// `TE` is the framework's.
const FRAMEWORKS: &str = "GET /long HTTP/1.1\r\nHost: gw.test\r\nTE: trailers\r\n\r\n";

fn gateway(origin: &Origin, timeouts: &str) -> (Gateway, String) {
    let authority = Authority::new("slow");
    let certificate = authority.issue(&["gw.test"]);
    let folder = Folder::new();
    folder.write("chain.pem", &certificate.chain);
    folder.write("key.pem", &certificate.key);
    let gateway = Gateway::start_in(
        folder,
        &format!(
            r#"
listeners:
  - {{address: "127.0.0.1:0"}}
  - {{address: "127.0.0.1:0", tls: {{certificates: [{{chain: chain.pem, key: {{file: key.pem}}}}]}}}}
admin: {{address: "127.0.0.1:0"}}
server: {{timeouts: {{{timeouts}}}}}
upstreams: {{all: {{servers: ["{}"]}}}}
routes: [{{name: all, path: "/{{*rest}}", upstream: all, policy: {{authenticate: public}}}}]
"#,
            origin.address
        ),
    );
    (gateway, authority.pem())
}

#[test]
fn a_head_has_its_time_and_no_byte_of_it_prolongs_it() {
    let origin = Origin::start();
    let (gateway, _) = gateway(&origin, "header: 1s");
    // Nothing before, a request that we served, one that the framework served.
    for before in ["", "GET /short HTTP/1.1\r\nHost: gw.test\r\n\r\n", FRAMEWORKS] {
        let mut connection = Connection::open(gateway.address());
        if !before.is_empty() {
            assert_eq!(connection.ask(before).status, 200);
        }
        let served = origin.requests().len();
        connection.send(BEGUN);
        let late = connection.answer(false);
        assert_eq!((late.status, late.code().as_str(), late.header("connection")), (408, "request_timeout", Some("close")), "{before}");
        assert!(connection.is_closed());
        assert_eq!(origin.requests().len(), served);
    }
    // Empty lines before a head are no head that the framework would go on to wait for.
    let mut stream = TcpStream::connect(gateway.address()).unwrap();
    let mut reader = stream.try_clone().unwrap();
    stream.write_all(format!("\r\n\r\n{BEGUN}").as_bytes()).unwrap();
    // Until it is closed, which a deadline for each piece would never do.
    let drips = std::thread::spawn(move || {
        (0..600)
            .take_while(|_| {
                std::thread::sleep(Duration::from_millis(50));
                stream.write_all(b"x").is_ok()
            })
            .count()
    });
    let mut heard = String::new();
    let _ = reader.read_to_string(&mut heard);
    assert!(heard.starts_with("HTTP/1.1 408 "), "{heard}");
    assert!(drips.join().unwrap() < 600);

    until("all are in the log", || gateway.access_log().iter().filter(|line| line["code"] == "request_timeout").count() == 4);
    for line in gateway.access_log().iter().filter(|line| line["code"] == "request_timeout") {
        assert_eq!(
            (&line["method"], &line["path"], &line["status"], &line["client"]),
            (&"GET".into(), &"/late".into(), &408.into(), &"127.0.0.1".into())
        );
    }
    assert_eq!(gateway.metric("edgeward_requests_in_flight", &[]), 0.0);
    assert_eq!(gateway.get("/", &[]).status, 200);
}

#[test]
fn what_is_longer_than_a_head_may_be_is_refused_before_its_end_comes() {
    let origin = Origin::start();
    let (gateway, _) = gateway(&origin, "header: 1h");
    for text in [format!("{BEGUN}{}", "x".repeat(40_000)), "x".repeat(40_000), "\r\n".repeat(20_000)] {
        let mut connection = Connection::open(gateway.address());
        connection.send(text);
        assert_eq!(connection.answer(false).code(), "headers_too_large");
        assert!(connection.is_closed());
    }
}

#[test]
fn a_connection_over_http_2_has_its_time_to_begin() {
    let origin = Origin::start();
    let (gateway, ca) = gateway(&origin, "header: 1s");
    let tls = Tls { ca: &ca, server_name: "gw.test", client: None };
    for begun in ["", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut connection = Connection::open_alpn(gateway.addresses()[1], &tls, b"\x02h2").unwrap();
        connection.send(begun);
        // Who is not closed waits in vain, and says so.
        connection.rest_of_bytes();
    }
    // One that has begun rests for as long as others do.
    let mut rests = Http2::open(gateway.addresses()[1], &tls);
    std::thread::sleep(Duration::from_millis(1500));
    let fields = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "gw.test")];
    rests.begin(&fields, 1);
    assert_eq!(rests.came(1).status, 200);
}

#[test]
fn who_does_not_take_its_answer_is_let_go() {
    let body: &'static str = Box::leak("x".repeat(64 << 20).into_boxed_str());
    let origin = Origin::scripted(move |_| Reply::Bytes(answer(200, &[], body)));
    let (gateway, ca) = gateway(&origin, "body: 1s");
    let mut plain = Connection::open(gateway.address());
    plain.send(request("GET", "/ours", &[], b""));
    let mut long = Connection::open(gateway.address());
    long.send(FRAMEWORKS);
    // Its windows are never opened any further.
    let mut http2 = Http2::open(gateway.addresses()[1], &Tls { ca: &ca, server_name: "gw.test", client: None });
    http2.begin(&[(":method", "GET"), (":scheme", "https"), (":path", "/h2"), (":authority", "gw.test")], 1);
    for path in ["/ours", "/long", "/h2"] {
        until("it is in the log", || gateway.access_log().iter().any(|line| line["path"] == path && line["code"] == "client_closed"));
    }
    let came = http2.came(1);
    assert_eq!((came.status, came.whole), (200, false));
    assert_eq!(gateway.metric("edgeward_requests_in_flight", &[]), 0.0);
}
