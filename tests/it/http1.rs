//! Callers over HTTP/1.1: how their bytes are cut into requests, and when the framework takes over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::certificates::Authority;
use crate::harness::client::{Connection, Http2, Tls, Verdict, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::{Origin, Reply, answer};
use crate::harness::until;

const PLAIN: &str = r#"listeners: [{address: "127.0.0.1:0"}]"#;

fn config(origin: &Origin, more: &str) -> String {
    format!(
        r#"
{PLAIN}
admin: {{address: "127.0.0.1:0"}}
upstreams: {{all: {{servers: ["{}"]}}}}
routes: [{{name: all, path: "/{{*rest}}", upstream: all, policy: {{authenticate: public}}}}]
{more}
"#,
        origin.address
    )
}

fn gateway(origin: &Origin, more: &str) -> Gateway {
    Gateway::start(&config(origin, more))
}

/// An origin that answers with the target and the body of a request.
fn mirror() -> Origin {
    Origin::scripted(|request| Reply::Bytes(answer(200, &[], &format!("{} {}", request.target(), String::from_utf8_lossy(&request.body)))))
}

const CHUNKED: &str = "POST /chunked HTTP/1.1\r\nHost: gw.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";

/// `TE` is the framework's.
const FRAMEWORKS: &str =
    "POST /long HTTP/1.1\r\nHost: gw.test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";

#[test]
fn one_connection_may_bring_what_we_serve_and_what_the_framework_serves() {
    let origin = mirror();
    let gateway = gateway(&origin, "");
    let mut connection = Connection::open(gateway.address());
    for (bytes, body) in [
        (request("GET", "/1", &[], b""), "/1 "),
        (request("POST", "/2", &[], b"body"), "/2 body"),
        (CHUNKED.into(), "/chunked hello"),
        (FRAMEWORKS.into(), "/long hello"),
        (request("POST", "/3", &[], b"body"), "/3 body"),
        (b"GET /4 HTTP/1.1\r\nHost: gw.test\r\nTE: trailers\r\n\r\n".to_vec(), "/4 "),
    ] {
        let answer = connection.ask(bytes);
        assert_eq!((answer.status, answer.text()), (200, body));
        assert!(answer.header("date").is_some_and(|date| date.ends_with(" GMT")) && answer.header("x-request-id").is_some());
        assert_eq!(answer.header("connection"), Some("keep-alive"));
    }
    // It is ours again: the framework answers the first of two and closes.
    connection.send([request("GET", "/5", &[], b""), request("GET", "/6", &[], b"")].concat());
    assert_eq!([connection.answer(false).text(), connection.answer(false).text()], ["/5 ", "/6 "]);
    let old = connection.ask("GET /old HTTP/1.0\r\nHost: gw.test\r\n\r\n");
    assert_eq!((old.text(), old.header("connection")), ("/old ", Some("close")));
    assert!(connection.is_closed());
}

#[test]
fn callers_over_http_1_0_get_what_they_understand() {
    let origin = Origin::scripted(|request| match request.target() {
        "/chunked" => Reply::Bytes(
            b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
        ),
        target => Reply::Bytes(answer(200, &[], target)),
    });
    let gateway = gateway(&origin, "");
    let old = |target: &str, more: &str| format!("GET {target} HTTP/1.0\r\nHost: gw.test\r\n{more}\r\n");
    let mut connection = Connection::open(gateway.address());
    for target in ["/1", "/2"] {
        let answer = connection.ask(old(target, "Connection: keep-alive\r\n"));
        assert_eq!((answer.text(), answer.header("connection")), (target, Some("keep-alive")));
    }
    // Without chunks, and with nothing before the answer.
    let answer = connection.ask(old("/chunked", "Connection: keep-alive\r\n"));
    assert_eq!((answer.status, answer.text(), answer.header("connection")), (200, "hello", Some("close")));
    assert_eq!(answer.header("transfer-encoding"), None);
    assert!(connection.is_closed());
    let mut connection = Connection::open(gateway.address());
    assert_eq!(connection.ask(old("/3", "")).header("connection"), Some("close"));
    assert!(connection.is_closed());
}

#[test]
fn requests_that_come_together_are_answered_in_turn() {
    let origin = mirror();
    let gateway = gateway(&origin, "");
    let mut connection = Connection::open(gateway.address());
    let mut bytes = Vec::new();
    for number in 0..50 {
        bytes.extend(request("POST", &format!("/{number}"), &[], &b"x".repeat(number)));
    }
    bytes.extend(CHUNKED.as_bytes());
    connection.send(bytes);
    for number in 0..50 {
        assert_eq!(connection.answer(false).text(), format!("/{number} {}", "x".repeat(number)));
    }
    assert_eq!(connection.answer(false).text(), "/chunked hello");
}

#[test]
fn a_request_is_one_however_it_is_cut() {
    let origin = mirror();
    let gateway = gateway(&origin, "");
    let mut connection = Connection::open(gateway.address());
    for bytes in [request("POST", "/pieces", &[("X-Long", &"x".repeat(100))], b"body"), CHUNKED.into()] {
        for piece in bytes.chunks(7) {
            connection.send(piece);
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(connection.answer(false).text().ends_with(if bytes.ends_with(b"body") { " body" } else { " hello" }));
    }
}

#[test]
fn a_long_head_is_waited_for_and_judged_by_its_limit() {
    let origin = mirror();
    let gateway = gateway(&origin, "server: {limits: {header_bytes: 128KiB}}");
    for (length, status) in [(60_000, 200), (100_000, 200), (140_000, 431)] {
        let answer = Connection::open(gateway.address()).ask(request("GET", "/", &[("X-Long", &"x".repeat(length))], b""));
        assert_eq!(answer.status, status, "{length}");
    }
}

#[test]
fn a_long_answer_comes_whole_by_either_way() {
    let body: &'static str = Box::leak((0..200_000).map(|number| format!("{number:06}\n")).collect::<String>().into_boxed_str());
    let origin = Origin::scripted(move |request| {
        if request.target() == "/length" {
            return Reply::Bytes(answer(200, &[], body));
        }
        let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for piece in body.as_bytes().chunks(30_011) {
            bytes.extend(format!("{:x}\r\n", piece.len()).bytes().chain(piece.iter().copied()).chain(*b"\r\n"));
        }
        bytes.extend(b"0\r\n\r\n");
        Reply::Bytes(bytes)
    });
    let gateway = gateway(&origin, "");
    let mut connection = Connection::open(gateway.address());
    for target in ["/length", "/chunked", "/length"] {
        assert!(connection.ask(request("GET", target, &[], b"")).text() == body, "{target}");
    }
    let head = connection.ask(request("HEAD", "/length", &[], b""));
    assert_eq!(head.header("content-length"), Some(&*body.len().to_string()));
    assert_eq!(connection.ask(request("HEAD", "/chunked", &[], b"")).status, 200);
    assert!(connection.ask(request("GET", "/chunked", &[("Connection", "close")], b"")).text() == body);
    assert!(connection.is_closed());
}

#[test]
fn the_body_of_a_refused_request_is_not_the_next_request() {
    let origin = mirror();
    let gateway = gateway(&origin, "");
    let mut connection = Connection::open(gateway.address());
    // Refused by its path, which leaves open where it ends; by its method, which does not.
    let hidden = request("GET", "/hidden", &[], b"");
    assert_eq!(connection.ask(request("POST", "/%zz", &[], &hidden)).status, 400);
    assert!(connection.is_closed());
    assert!(origin.requests().is_empty());
}

#[test]
fn a_fragment_is_refused_and_not_logged() {
    let origin = mirror();
    let gateway = gateway(&origin, "");
    for target in ["/a#api_key=secret", "/a?x=1#api_key=secret"] {
        assert_eq!(Connection::open(gateway.address()).ask(request("GET", target, &[], b"")).status, 400, "{target}");
    }
    until("both are in the log", || gateway.access_log().iter().filter(|line| line["code"] == "ambiguous_path").count() == 2);
    assert!(gateway.access_log().iter().all(|line| !line.to_string().contains("secret")));
    assert!(origin.requests().is_empty());
}

#[test]
fn a_connection_that_says_nothing_is_closed_in_time() {
    let origin = mirror();
    let gateway = gateway(&origin, "server: {timeouts: {idle: 1s}}");
    let (mut silent, mut kept) = (Connection::open(gateway.address()), Connection::open(gateway.address()));
    assert_eq!(kept.ask(request("GET", "/1", &[], b"")).text(), "/1 ");
    assert!(silent.is_closed() && kept.is_closed());
}

#[test]
fn over_tls_the_callers_are_served_alike_and_the_server_chooses_how_to_encrypt() {
    let origin = mirror();
    let authority = Authority::new("http1");
    let certificate = authority.issue(&["gw.test"]);
    let folder = Folder::new();
    folder.write("chain.pem", &certificate.chain);
    folder.write("key.pem", &certificate.key);
    let listeners = r#"listeners: [{address: "127.0.0.1:0", tls: {certificates: [{chain: chain.pem, key: {file: key.pem}}]}}]"#;
    let gateway = Gateway::start_in(folder, &config(&origin, "").replace(PLAIN, listeners));
    let ca = authority.pem();
    let tls = Tls { ca: &ca, server_name: "gw.test", client: None };
    let mut connection = Connection::open_tls(gateway.address(), &tls).unwrap();
    // This client would rather have AES-256.
    assert_eq!(connection.cipher(), "TLS_AES_128_GCM_SHA256");
    for (bytes, body) in [(request("GET", "/1", &[], b""), "/1 "), (CHUNKED.into(), "/chunked hello"), (FRAMEWORKS.into(), "/long hello")] {
        assert_eq!(connection.ask(bytes).text(), body);
    }
    let fields = [(":method", "GET"), (":scheme", "https"), (":path", "/h2"), (":authority", "gw.test")];
    let verdicts = Http2::open(gateway.address(), &tls).ask_often(&fields, 20);
    assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Answered(200)));
    assert!(origin.last().head.starts_with("GET /h2 HTTP/1.1\r\n") && origin.last().header("x-forwarded-proto") == Some("https"));
}

/// Counted and not timed: of connections that all ask again at once, each is answered about as often as the others.
#[test]
fn connections_are_served_in_turn() {
    const CONNECTIONS: usize = 750;
    const EACH: usize = 10;
    let gateway = Gateway::start(
        r#"
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
server: {threads: 1}
upstreams: {demo: {builtin: echo}}
routes: [{name: only, path: "/only", upstream: demo, policy: {authenticate: public}}]
"#,
    );
    let address = gateway.address();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answered: Vec<usize> = runtime.block_on(async {
        let mut streams = Vec::new();
        for _ in 0..CONNECTIONS {
            streams.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        let all = std::sync::Arc::new(AtomicUsize::new(0));
        let asking = streams.into_iter().map(|mut stream| {
            let all = all.clone();
            tokio::spawn(async move {
                let (mut own, mut answer) = (0, vec![0; 4096]);
                while all.load(Ordering::Relaxed) < CONNECTIONS * EACH {
                    stream.write_all(b"GET /none HTTP/1.1\r\nHost: gw.test\r\n\r\n").await.unwrap();
                    let length = stream.read(&mut answer).await.unwrap();
                    assert!(answer[..length].starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&answer[..length]));
                    all.fetch_add(1, Ordering::Relaxed);
                    own += 1;
                }
                own
            })
        });
        let mut answered = Vec::new();
        for one in asking.collect::<Vec<_>>() {
            answered.push(one.await.unwrap());
        }
        answered
    });
    let (least, most) = (answered.iter().min().unwrap(), answered.iter().max().unwrap());
    // In rounds of 61 tasks, as the runtime has them by itself, it is from 5 to 24.
    assert!(*least >= 7 && *most <= 18, "each {EACH} times on average, from {least} to {most}");
}
