//! The short way to a backend: what it sends and what it makes of answers, good and hostile.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::certificates::Authority;
use crate::harness::client::{Connection, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::{Origin, Recorded, Reply, acceptor, answer};
use crate::harness::until;

fn gateway(origin: &Origin, upstream: &str) -> Gateway {
    gateway_to(origin.address, upstream)
}

pub fn gateway_to(address: std::net::SocketAddr, upstream: &str) -> Gateway {
    gateway_in(Folder::new(), address, upstream)
}

/// Of one thread: each keeps connections to backends of its own, and which one serves a request is chance.
fn gateway_in(folder: Folder, address: std::net::SocketAddr, upstream: &str) -> Gateway {
    Gateway::start_in(
        folder,
        &format!(
            r#"
server: {{threads: 1}}
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{all: {{servers: ["{address}"]{upstream}}}}}
routes: [{{name: all, path: "/{{*rest}}", upstream: all, policy: {{authenticate: public}}}}]
"#
        ),
    )
}

/// A gateway that asks its backend to be one that this authority vouches for.
pub fn verifying(authority: &Authority, address: std::net::SocketAddr, upstream: &str) -> Gateway {
    let folder = Folder::new();
    folder.write("ca.pem", authority.pem());
    gateway_in(folder, address, &format!("{upstream}, tls: {{server_name: orders.test, ca: ca.pem}}"))
}

/// The same origin twice, in the clear and over TLS, each behind a gateway.
pub fn both(upstream: &str, script: impl Fn(&Recorded) -> Reply + Clone + Send + Sync + 'static) -> [(Origin, Gateway); 2] {
    let authority = Authority::new("authority");
    let (clear, tls) = (Origin::scripted(script.clone()), Origin::tls(&authority.issue(&["orders.test"]), None, script));
    let gateways = (gateway(&clear, upstream), verifying(&authority, tls.address, upstream));
    [(clear, gateways.0), (tls, gateways.1)]
}

/// What an origin answers to the path of a request: bytes, and whether the connection ends behind them.
type Answers = &'static [(&'static str, &'static str, bool)];

fn scripted(answers: Answers) -> impl Fn(&Recorded) -> Reply + Clone + Send + Sync + 'static {
    move |recorded| {
        let path = recorded.target();
        match answers.iter().find(|(known, _, _)| *known == path) {
            Some((_, bytes, false)) => Reply::Bytes(bytes.as_bytes().to_vec()),
            Some((_, bytes, true)) => Reply::Last(bytes.as_bytes().to_vec()),
            None => Reply::Bytes(answer(200, &[], path)),
        }
    }
}

#[test]
fn an_answer_is_the_same_by_either_way() {
    let answers: Answers = &[
        ("/length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\n\r\nhello", false),
        ("/chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nhe\r\n3\r\nllo\r\n0\r\nX-T: 1\r\n\r\n", false),
        ("/closed", "HTTP/1.1 200 OK\r\n\r\nhello", true),
        ("/old", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", true),
        ("/none", "HTTP/1.1 204 No Content\r\n\r\n", false),
        ("/unmodified", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false),
        ("/fine", "HTTP/1.1 418 Fine\r\nContent-Length: 5\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nhello", false),
        ("/both", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n", true),
        ("/early", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false),
    ];
    for ((path, _, _), (_origin, gateway)) in
        both("", scripted(answers)).iter().flat_map(|world| answers.iter().map(move |row| (row, world)))
    {
        let mut seen = Vec::new();
        // `TE` takes the long way.
        for more in ["", "TE: trailers\r\n"] {
            let mut connection = Connection::open(gateway.address());
            connection.send(format!("GET {path} HTTP/1.1\r\nHost: gw.test\r\n{more}\r\n"));
            let mut answer = connection.answer(false);
            if answer.status == 103 {
                answer = connection.answer(false);
            }
            let cookies = answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie")).count();
            seen.push((answer.status, answer.text().to_owned(), answer.header("x-a").map(str::to_owned), cookies));
            // The caller's connection goes on behind whatever ended the origin's.
            assert_eq!(connection.ask(request("GET", "/next", &[], b"")).text(), "/next", "{path} {more}");
        }
        assert_eq!(seen[0], seen[1], "{path}");
        let empty = ["/none", "/unmodified"].contains(path);
        assert_eq!(seen[0].1, if empty { "" } else { "hello" }, "{path}");
    }
}

#[test]
fn an_answer_that_could_be_cut_in_two_ways_reaches_nobody_else() {
    let worlds = both(
        "",
        scripted(&[
            ("/lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", false),
            ("/coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", false),
            ("/folded", "HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 0\r\n\r\n", false),
            ("/switch", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", false),
            ("/garbage", "SSH-2.0-OpenSSH_9\r\n\r\n", false),
            ("/nothing", "", true),
            ("/half", "HTTP/1.1 200 OK\r\nContent-Le", true),
            ("/two", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", false),
            ("/short", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", true),
            ("/chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", false),
        ]),
    );
    for (_origin, gateway) in &worlds {
        for path in ["/lengths", "/coding", "/folded", "/switch", "/garbage", "/nothing", "/half"] {
            let refused = gateway.get(path, &[]);
            assert_eq!((refused.status, refused.code().as_str()), (502, "upstream_invalid"), "{path}");
            assert_eq!(gateway.get("/next", &[]).text(), "/next", "{path}");
        }
        assert_eq!(gateway.get("/two", &[]).text(), "hello");
        assert_eq!(gateway.get("/next", &[]).text(), "/next");
        for path in ["/short", "/chunk"] {
            let mut connection = Connection::open(gateway.address());
            connection.send(request("GET", path, &[], b""));
            let told = connection.rest();
            assert!(
                told.contains(" 200 ") && told.contains("hello") && !told.ends_with("0\r\n\r\n"),
                "{path}: the end is not made up: {told}"
            );
            assert_eq!(gateway.get("/next", &[]).text(), "/next", "{path}");
        }
    }
}

#[test]
fn interim_answers_are_passed_on_but_not_for_ever() {
    let endless: &'static str = Box::leak("HTTP/1.1 102 Processing\r\n\r\n".repeat(100).into_boxed_str());
    let origin = Origin::scripted(move |recorded| match recorded.target() {
        "/endless" => Reply::Bytes(endless.as_bytes().to_vec()),
        path => Reply::Bytes(answer(200, &[], path)),
    });
    let gateway = gateway(&origin, "");
    let mut connection = Connection::open(gateway.address());
    connection.send(request("GET", "/endless", &[], b""));
    let last = (0..100).map(|_| connection.answer(false)).find(|answer| answer.status != 102).unwrap();
    assert_eq!((last.status, last.code().as_str()), (502, "upstream_invalid"));
}

#[test]
fn a_kept_connection_that_the_backend_has_closed_costs_no_request() {
    let script = |recorded: &Recorded| match recorded.target() {
        // It does not say that it closes.
        "/last" => Reply::Last(answer(200, &[], "last")),
        _ => Reply::Bytes(answer(200, &[], "more")),
    };
    for (origin, gateway) in both("", script) {
        let mut connection = Connection::open(gateway.address());
        for _ in 0..20 {
            assert_eq!(connection.ask(request("GET", "/last", &[], b"")).text(), "last");
            assert_eq!(connection.ask(request("GET", "/more", &[], b"")).text(), "more");
        }
        assert_eq!(origin.requests().len(), 40, "none was asked twice");
        let before = origin.connections();
        (0..20).for_each(|_| assert_eq!(connection.ask(request("GET", "/more", &[], b"")).text(), "more"));
        assert_eq!(origin.connections(), before, "one that stays open is used again");
    }
}

#[test]
fn a_connection_is_kept_no_longer_than_the_upstream_says() {
    for (origin, gateway) in both(", timeouts: {idle: 1s}", |_: &Recorded| Reply::Bytes(answer(200, &[], "origin"))) {
        gateway.get("/1", &[]);
        gateway.get("/2", &[]);
        assert_eq!(origin.connections(), 1);
        // The time is the gateway's own: nothing tells when it has passed but the outcome.
        until("the connection is too old", || {
            std::thread::sleep(Duration::from_millis(1_100));
            gateway.get("/3", &[]);
            origin.connections() > 1
        });
    }
}

#[test]
fn a_caller_that_hangs_up_is_no_failure_of_the_backend() {
    let script = |recorded: &Recorded| match recorded.target() {
        "/slow" => Reply::Silence(Duration::from_secs(5)),
        _ => Reply::Bytes(answer(200, &[], "well")),
    };
    for (origin, gateway) in both("", script) {
        let mut connection = Connection::open(gateway.address());
        connection.send(request("GET", "/slow", &[], b""));
        until("the origin is asked", || !origin.requests().is_empty());
        drop(connection);
        until("it is noticed at once", || {
            gateway.access_log().iter().any(|line| line["path"] == "/slow" && line["code"] == "client_closed")
        });
        assert_eq!(gateway.metric("edgeward_requests_in_flight", &[]), 0.0);
        assert_eq!(gateway.get("/well", &[]).text(), "well");
    }
}

#[test]
fn an_answer_is_retried_as_the_upstream_says() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let origin = Origin::scripted(|_| match ASKED.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::Bytes(answer(503, &[], "busy")),
        1 => Reply::Last(Vec::new()),
        _ => Reply::Bytes(answer(200, &[], "served")),
    });
    let gateway = gateway(&origin, ", retries: {attempts: 2, on: [502, 503]}");
    assert_eq!(gateway.get("/", &[]).text(), "served");
    assert_eq!(gateway.metric("edgeward_upstream_retries_total", &["route=\"all\""]), 2.0);
}

#[test]
fn the_head_that_a_backend_gets_is_ours() {
    let origin = Origin::start();
    let gateway = gateway(&origin, "");
    let lines =
        "X-User-Id: admin\r\nX_User_Id: admin\r\nAccept: a\r\nAccept: b\r\nCookie: a=1\r\nCookie: b=2\r\nConnection: keep-alive\r\n";
    assert_eq!(gateway.ask(format!("GET /a/../b%20c?d=%20e HTTP/1.1\r\nHost: GW.test:80\r\n{lines}\r\n")).status, 200);
    let asked = origin.last();
    assert_eq!(asked.request_line(), "GET /b%20c?d=%20e HTTP/1.1");
    assert_eq!((asked.header("host"), asked.header("cookie"), asked.header("connection")), (Some("gw.test:80"), Some("a=1; b=2"), None));
    assert_eq!((asked.headers_like("x-user-id").len(), asked.headers_like("accept").len()), (0, 2));
    assert_eq!((asked.header("x-forwarded-for"), asked.header("x-forwarded-host")), (Some("127.0.0.1"), Some("gw.test:80")));
    assert!(asked.header("traceparent").is_some() && asked.header("x-request-id").is_some());
}

#[test]
fn a_short_body_arrives_whole_by_either_way() {
    for (origin, gateway) in both("", |_: &Recorded| Reply::Bytes(answer(200, &[], "origin"))) {
        let mut connection = Connection::open(gateway.address());
        for length in [0, 1, 5_000, 65_536] {
            let body: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            for (method, more) in [("POST", &[][..]), ("PUT", &[]), ("DELETE", &[]), ("POST", &[("TE", "trailers")])] {
                assert_eq!(connection.ask(request(method, "/", more, &body)).text(), "origin", "{method} {length}");
                assert!(origin.last().body == body, "{method} {length} {more:?}");
            }
            // In two pieces: the backend is asked when both are there.
            let before = origin.requests().len();
            let whole = request("POST", "/", &[], &body);
            let (first, second) = whole.split_at(whole.len() - length / 2);
            connection.send(first);
            connection.send(second);
            assert_eq!(connection.answer(false).text(), "origin");
            assert!(origin.last().body == body && origin.requests().len() == before + 1);
        }
    }
}

#[test]
fn of_a_body_that_breaks_off_nothing_is_sent() {
    let origin = Origin::start();
    let gateway = gateway(&origin, "");
    let mut connection = Connection::open(gateway.address());
    connection.send("POST /broken HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 10\r\n\r\nhello");
    drop(connection);
    until("it is noticed", || gateway.access_log().iter().any(|line| line["path"] == "/broken" && line["code"] == "client_closed"));
    assert_eq!(gateway.get("/next", &[]).text(), "origin");
    assert_eq!(origin.requests().iter().map(|request| request.target().to_owned()).collect::<Vec<_>>(), ["/next"]);
    assert_eq!(origin.connections(), 1, "no connection was opened for it");
}

#[test]
fn what_may_not_be_done_twice_is_sent_once() {
    let script = |recorded: &Recorded| match recorded.target() {
        "/eaten" => Reply::Last(Vec::new()),
        _ => Reply::Bytes(answer(200, &[], "more")),
    };
    for (origin, gateway) in both("", script) {
        for (method, path) in [("GET", "/eaten"), ("PUT", "/eaten"), ("POST", "/eaten")] {
            assert_eq!(gateway.get("/more", &[]).text(), "more");
            let before = origin.requests().len();
            let mut connection = Connection::open(gateway.address());
            assert_eq!(connection.ask(request(method, path, &[], b"x")).status, 502, "{method}");
            // On a connection that was kept nobody knows whether the backend had closed it before or because of the request.
            let tries = origin.requests().len() - before;
            assert_eq!(tries, if method == "POST" { 1 } else { 2 }, "{method}");
        }
    }
}

#[test]
fn a_backend_may_answer_before_it_has_the_whole_request() {
    // It reads the head and no more, answers and closes; with so much on its way, a part of it is refused by the system.
    fn hasty(mut stream: impl Read + Write) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => head.extend(byte),
                _ => return,
            }
        }
        let _ =
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig");
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    }
    let authority = Authority::new("authority");
    for tls in [None, Some(acceptor(&authority.issue(&["orders.test"]), None))] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let gateway = if tls.is_some() { verifying(&authority, address, "") } else { gateway_to(address, "") };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                match &tls {
                    Some(tls) => hasty(tls.accept(stream).unwrap()),
                    None => hasty(stream),
                }
            }
        });
        for _ in 0..5 {
            let mut connection = Connection::open(gateway.address());
            connection.send(request("POST", "/", &[], &[b'x'; 65_536]));
            let mut answer = connection.answer(false);
            while answer.status == 100 {
                answer = connection.answer(false);
            }
            assert_eq!((answer.status, answer.text()), (413, "big"));
        }
    }
}
