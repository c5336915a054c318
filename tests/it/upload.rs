//! Bodies that are passed on as they come, as they are long or nobody knows how long: what passes, and how each side ends it.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::direct::{both, gateway_to, verifying};
use super::http2::{World, head, whole};
use crate::harness::certificates::Authority;
use crate::harness::client::{Connection, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::{Origin, Recorded, Reply, acceptor, answer};
use crate::harness::until;

const LONG: usize = 1_000_000;

/// A request for this method and path but for its body.
fn head_of(method: &str, path: &str, length: usize) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: gw.test\r\nContent-Length: {length}\r\n\r\n")
}

/// Serves each connection, once its head was read, by a script that is told which one it is: in the clear, and over TLS.
fn services(
    script: impl Fn(&mut dyn Connected, usize) + Clone + Send + Sync + 'static,
    upstream: &str,
) -> [(Arc<AtomicUsize>, Gateway); 2] {
    let authority = Authority::new("authority");
    [None, Some(acceptor(&authority.issue(&["orders.test"]), None))].map(|tls| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let gateway = if tls.is_some() { verifying(&authority, address, upstream) } else { gateway_to(address, upstream) };
        let (script, asked) = (script.clone(), Arc::<AtomicUsize>::default());
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut stream: Box<dyn Connected> = match &tls {
                    Some(tls) => Box::new(tls.accept(stream).unwrap()),
                    None => Box::new(stream),
                };
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                    head.extend(byte);
                }
                script(&mut *stream, count.fetch_add(1, Ordering::Relaxed));
            }
        });
        (asked, gateway)
    })
}

trait Connected: Read + Write {}

impl<S: Read + Write> Connected for S {}

#[test]
fn it_arrives_whole_and_both_connections_go_on() {
    for (origin, gateway) in both("", |_: &Recorded| Reply::Bytes(answer(200, &[], "origin"))) {
        let mut connection = Connection::open(gateway.address());
        for length in [65_537, LONG, 5_000_000] {
            let body: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let sent = request("POST", "/", &[], &body);
            let (first, second) = sent.split_at(sent.len() - length / 2);
            connection.send(first);
            connection.send(second);
            assert_eq!(connection.answer(false).text(), "origin", "{length}");
            assert!(origin.last().body == body, "{length}");
            assert_eq!(connection.ask(request("GET", "/next", &[], b"")).text(), "origin");
        }
        assert_eq!((origin.requests().len(), origin.connections()), (6, 1));
        let line = &gateway.access_log()[0];
        assert_eq!((&line["bytes_in"], &line["code"]), (&65_537.into(), &"ok".into()), "{line}");
    }
}

#[test]
fn the_answer_may_come_before_the_body_has_ended_and_go_on_with_it() {
    let echo = |stream: &mut dyn Connected, _| {
        let mut left = LONG;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while left > 0 {
            let mut piece = [0; 8_000];
            let length = stream.read(&mut piece).unwrap();
            left -= length;
            let _ = stream.write_all(format!("{length:x}\r\n").as_bytes());
            let _ = stream.write_all(&piece[..length]).and_then(|()| stream.write_all(b"\r\n"));
        }
        let _ = stream.write_all(b"0\r\n\r\n").and_then(|()| stream.flush());
        let _ = stream.read(&mut [0]);
    };
    for (_, gateway) in services(echo, "") {
        let mut connection = Connection::open(gateway.address());
        connection.send(head_of("POST", "/echo", LONG));
        for _ in 0..10 {
            connection.send([b'x'; LONG / 10]);
        }
        let answer = connection.answer(false);
        assert!(answer.status == 200 && answer.body == [b'x'; LONG], "{}", answer.body.len());
        until("it is well", || gateway.access_log().iter().any(|line| line["path"] == "/echo" && line["code"] == "ok"));
    }
}

#[test]
fn a_backend_that_wants_no_more_of_it_says_so() {
    let early = |stream: &mut dyn Connected, _| {
        let _ = stream.read(&mut [0; 1_000]);
        let _ = stream.write_all(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig");
        let _ = stream.flush();
        let _ = std::io::copy(stream, &mut std::io::sink());
    };
    for (_, gateway) in services(early, "") {
        for _ in 0..3 {
            let mut connection = Connection::open(gateway.address());
            connection.send(head_of("POST", "/", 5 * LONG));
            connection.send([b'x'; LONG / 4]);
            let answer = connection.answer(false);
            assert_eq!((answer.status, answer.text()), (413, "big"));
            assert!(connection.is_closed(), "what would follow may be the rest of it");
        }
    }
}

#[test]
fn one_that_waits_to_be_asked_for_is_asked_for_by_the_backend_or_not_at_all() {
    let script = |stream: &mut dyn Connected, number| {
        if number == 0 {
            let _ = stream.write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno").and_then(|()| stream.flush());
            let _ = stream.read(&mut [0]);
            return;
        }
        let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").and_then(|()| stream.flush());
        let mut body = vec![0; if number == 1 { 5 } else { LONG }];
        stream.read_exact(&mut body).unwrap();
        assert!(body.iter().all(|byte| *byte == b'x'));
        let _ = stream.write_all(&answer(200, &[("Connection", "close")], "served")).and_then(|()| stream.flush());
    };
    for (_, gateway) in services(script, "") {
        let head = |length| format!("POST / HTTP/1.1\r\nHost: gw.test\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n");
        let mut connection = Connection::open(gateway.address());
        connection.send(head(5));
        let refused = connection.answer(false);
        assert_eq!((refused.status, refused.text(), refused.header("connection")), (417, "no", Some("close")));
        assert!(connection.is_closed());
        let mut connection = Connection::open(gateway.address());
        for length in [5, LONG] {
            connection.send(head(length));
            assert_eq!(connection.answer(false).status, 100, "{length}");
            connection.send(vec![b'x'; length]);
            let answer = connection.answer(false);
            assert_eq!((answer.status, answer.text(), answer.header("connection")), (200, "served", Some("keep-alive")), "{length}");
        }
    }
}

#[test]
fn one_that_breaks_off_is_no_request_to_the_backend_and_no_failure_of_it() {
    for (origin, gateway) in both("", |_: &Recorded| Reply::Bytes(answer(200, &[], "origin"))) {
        let mut connection = Connection::open(gateway.address());
        connection.send(head_of("PUT", "/broken", LONG));
        connection.send([b'x'; LONG / 2]);
        until("it is passed on as it comes", || origin.received().iter().any(|bytes| bytes.len() > LONG / 2));
        drop(connection);
        until("it is noticed", || gateway.access_log().iter().any(|line| line["path"] == "/broken" && line["code"] == "client_closed"));
        assert_eq!(gateway.get("/next", &[]).text(), "origin");
        assert_eq!(origin.requests().iter().map(|request| request.target().to_owned()).collect::<Vec<_>>(), ["/next"]);
        assert_eq!(origin.connections(), 2, "where it broke off nothing else is sent");
    }
}

#[test]
fn it_is_sent_to_another_backend_only_while_nothing_of_it_has_come() {
    // The first connection ends with the head of its request, or with the beginning of the body.
    for (read, tries) in [(0, 2), (1_000, 1)] {
        let script = move |stream: &mut dyn Connected, number| {
            let mut piece = vec![0; read];
            if number == 0 {
                let _ = stream.read_exact(&mut piece);
                return;
            }
            let _ = stream.read_exact(&mut vec![0; LONG]);
            let _ = stream.write_all(&answer(200, &[], "served")).and_then(|()| stream.flush());
            let _ = stream.read(&mut [0]);
        };
        for (asked, gateway) in services(script, ", retries: {attempts: 1, on: [502]}") {
            let mut connection = Connection::open(gateway.address());
            connection.send(head_of("PUT", "/", LONG));
            if read == 0 {
                until("it was asked", || asked.load(Ordering::Relaxed) > 0);
            }
            connection.send([b'x'; LONG]);
            let answer = connection.answer(false);
            assert_eq!(answer.status, if tries == 2 { 200 } else { 502 });
            assert_eq!(asked.load(Ordering::Relaxed), tries);
        }
    }
}

#[test]
fn one_that_stops_coming_is_waited_for_as_the_server_says_and_not_as_the_upstream_does() {
    let origin = Origin::start();
    let gateway = Gateway::start(&format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
server: {{timeouts: {{body: 1s}}}}
upstreams: {{all: {{servers: ["{}"], timeouts: {{response: 100ms}}}}}}
routes: [{{name: all, path: "/{{*rest}}", upstream: all, policy: {{authenticate: public}}}}]
"#,
        origin.address
    ));
    let mut connection = Connection::open(gateway.address());
    connection.send(head_of("POST", "/slow", LONG));
    connection.send([b'x'; 70_000]);
    std::thread::sleep(Duration::from_millis(300));
    connection.send([b'x'; 70_000]);
    let answer = connection.answer(false);
    assert_eq!((answer.status, answer.code().as_str()), (408, "request_timeout"));
    assert!(connection.is_closed() && origin.requests().is_empty());
}

#[test]
fn over_http_2_one_of_another_length_than_it_says_reaches_no_backend_as_a_whole() {
    let origin = Origin::start();
    let world = World::before(Folder::new(), &format!(r#"servers: ["{}"]"#, origin.address), "authenticate: public", "");
    for (length, body) in [("65537", 65_535), ("100000", 0), ("66000", 60_000)] {
        let mut connection = world.open();
        let pieces: Vec<Vec<u8>> = vec![b'x'; body].chunks(16_000).map(<[u8]>::to_vec).collect();
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        connection.begin_with(&[&head("PUT", "/all/upload")[..], &[("content-length", length)]].concat(), 1, &pieces);
        assert_ne!(connection.came(1).status, 200, "{length}");
    }
    assert!(origin.requests().is_empty());
    let mut connection = world.open();
    connection.begin(&head("GET", "/all/next"), 1);
    assert_eq!(connection.came(1), whole(200, "origin"));
}

/// A body in chunks of so many bytes.
fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let chunks = body.chunks(size).flat_map(|chunk| [format!("{:x};x=y\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
    chunks.chain(*b"0\r\nX-User-Id: admin\r\n\r\n").collect()
}

#[test]
fn one_of_unknown_length_arrives_in_chunks_and_nothing_behind_it_does() {
    const HEAD: &str = "POST /chunked HTTP/1.1\r\nHost: gw.test\r\nTransfer-Encoding: Chunked\r\n\r\n";
    for (origin, gateway) in both("", |_: &Recorded| Reply::Bytes(answer(200, &[], "origin"))) {
        let mut connection = Connection::open(gateway.address());
        for (length, size) in [(0, 1), (1, 1), (5, 5), (1_000, 7), (70_000, 30_000), (LONG, LONG)] {
            let body: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            for step in [usize::MAX, 1_000] {
                let bytes = [HEAD.as_bytes(), &chunked(&body, size), &request("GET", "/next", &[], b"")].concat();
                bytes.chunks(step.min(bytes.len())).for_each(|piece| connection.send(piece));
                assert_eq!((connection.answer(false).status, connection.answer(false).status), (200, 200), "{length} {size}");
                let [.., asked, next] = &origin.requests()[..] else { panic!() };
                assert!(asked.body == body && asked.header("transfer-encoding") == Some("chunked"), "{length} {size} {}", asked.head);
                assert_eq!((asked.header("content-length"), next.target()), (None, "/next"));
            }
        }
        assert_eq!(origin.connections(), 1);
        assert!(origin.received().iter().all(|bytes| !String::from_utf8_lossy(bytes).contains("admin")));
    }
}

#[test]
fn chunks_that_could_be_cut_in_two_ways_end_with_their_connection() {
    let origin = Origin::start();
    let gateway = gateway_to(origin.address, "");
    for body in [
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n \r\n",
        "5\r\nhello\r\n0\r\nA: b\n\r\n",
    ] {
        let mut connection = Connection::open(gateway.address());
        connection.send(format!("POST / HTTP/1.1\r\nHost: gw.test\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
        connection.send(request("GET", "/smuggled", &[], b""));
        let answer = connection.answer(false);
        assert_eq!((answer.status, answer.header("connection")), (400, Some("close")), "{body:?}");
        assert!(connection.is_closed());
    }
    assert_eq!(gateway.get("/next", &[]).text(), "origin");
    assert_eq!(origin.requests().iter().map(|request| request.target().to_owned()).collect::<Vec<_>>(), ["/next"]);
}

#[test]
fn over_http_2_one_without_a_length_arrives_in_chunks() {
    let origin = Origin::start();
    let world = World::before(Folder::new(), &format!(r#"servers: ["{}"]"#, origin.address), "authenticate: public", "");
    let mut connection = world.open();
    for (at, pieces) in [&[&b"hello"[..]][..], &[b"he", b"", b"llo"], &[b"hello", b""], &[b""]].into_iter().enumerate() {
        let stream = 2 * at as u32 + 1;
        connection.begin_with(&head("POST", "/all/chunks"), stream, pieces);
        assert_eq!(connection.came(stream), whole(200, "origin"));
        let asked = origin.last();
        assert_eq!((asked.body, asked.head.contains("transfer-encoding: chunked")), (pieces.concat(), true));
    }
    // No body at all has neither a length nor chunks.
    connection.begin(&head("POST", "/all/none"), 9);
    assert_eq!(connection.came(9), whole(200, "origin"));
    let asked = origin.last();
    assert_eq!((asked.header("transfer-encoding"), asked.header("content-length")), (None, None));
    assert_eq!(origin.connections(), 1);
}
