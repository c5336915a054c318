//! Streams to backends over HTTP/2: what passes in both directions, how each side ends it, and what is asked again.

use std::io::{Read, Write};
use std::net::TcpListener;

use h2::Reason;

use super::http2::{World, head, whole};
use crate::harness::aws::{ACME, sha256};
use crate::harness::certificates::Authority;
use crate::harness::client::{Came, Connection, Http2, Verdict, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::{Origin, Reply, answer};
use crate::harness::streams::Streams;
use crate::harness::until;

fn world(service: &Streams, upstream: &str, more: &str) -> World {
    // One worker, which has one connection.
    World::before(Folder::new(), &servers(service, upstream), "authenticate: public", &format!("server: {{threads: 1{more}}}"))
}

fn servers(service: &Streams, more: &str) -> String {
    format!(r#"servers: ["{}"], http2: true{more}"#, service.address)
}

fn grpc(path: &str) -> Vec<(&str, &str)> {
    [&head("POST", path)[..], &[("te", "trailers"), ("content-type", "application/grpc")]].concat()
}

fn with_trailers(body: &str) -> Came {
    Came { trailers: true, ..whole(200, body) }
}

/// The code of the request for this path, once it is in the log.
fn code(world: &World, path: &str) -> String {
    let mut code = None;
    until("it is in the log", || {
        let line = world.gateway.access_log().into_iter().find(|line| line["path"] == path);
        code = line.map(|line| line["code"].as_str().unwrap().to_owned());
        code.is_some()
    });
    code.unwrap()
}

#[test]
fn a_stream_arrives_as_it_was_sent_and_its_answer_with_what_stands_behind_it() {
    let service = Streams::start();
    let world = world(&service, "", "");
    let mut connection = world.open();
    let (call, long) = (grpc("/all/echo"), "x".repeat(50_000));
    let sized = [&head("PUT", "/all/echo")[..], &[("content-length", "4")]].concat();
    let pieces =
        [&long.as_bytes()[..16_000], &long.as_bytes()[16_000..32_000], &long.as_bytes()[32_000..48_000], &long.as_bytes()[48_000..]];
    for (at, (fields, body, expected)) in [
        (&call[..], &[&b"mess"[..], b"age"][..], with_trailers("message")),
        (&call, &[b""], with_trailers("")),
        (&call, &[b"message", b""], with_trailers("message")),
        (&call, &pieces, with_trailers(&long)),
        (&sized, &[b"bo", b"dy"], whole(200, "body")),
        (&head("GET", "/all/echo"), &[], whole(200, "")),
        (&head("GET", "/all/hasty"), &[], whole(200, "")),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = 2 * at as u32 + 1;
        connection.begin_with(fields, stream, body);
        assert_eq!(connection.came(stream), expected, "{at}");
        let seen = service.last();
        assert_eq!((seen.body.len(), seen.whole), (body.concat().len(), true), "{at}");
        assert_eq!((&*seen.authority, seen.headers.get("host")), ("gw.test", None));
        assert!(seen.headers.contains_key("x-request-id") && seen.headers.contains_key("x-forwarded-for"), "{:?}", seen.headers);
    }
    assert_eq!(service.seen().iter().map(|seen| seen.connection).max(), Some(0), "they share a connection");
    until("each is in the log once", || world.gateway.access_log().len() == 7);
    let log = world.gateway.access_log();
    assert_eq!((&log[0]["code"], &log[0]["status"]), (&"ok".into(), &200.into()));
    assert_eq!((&log[0]["bytes_in"], &log[0]["bytes_out"]), (&7.into(), &7.into()), "{}", log[0]);
}

#[test]
fn nothing_behind_a_body_says_who_calls() {
    let service = Streams::start();
    let world = world(&service, "", "");
    let forged = [("x-user-id", "mallory"), ("x-consumer-id", "mallory")];
    assert_eq!(world.open().ask(&[&grpc("/all/echo")[..], &forged].concat(), &forged), Verdict::Answered(200));
    let seen = service.last();
    assert_eq!((seen.body, seen.whole, seen.trailers), (b"hello".to_vec(), true, None));
    assert!(forged.iter().all(|(name, _)| !seen.headers.contains_key(*name)));
}

#[test]
fn a_body_of_another_length_than_it_says_reaches_no_backend_as_a_whole() {
    let service = Streams::start();
    let world = world(&service, "", "");
    for (length, body) in [("4", &b"longer"[..]), ("10", b"short")] {
        let mut connection = world.open();
        connection.begin_with(&[&head("PUT", "/all/echo")[..], &[("content-length", length)]].concat(), 1, &[body]);
        assert_ne!(connection.came(1).status, 200, "{length}");
    }
    assert!(service.seen().iter().all(|seen| !seen.whole));
}

#[test]
fn both_bodies_pass_each_other_piece_by_piece() {
    let service = Streams::start();
    let world = world(&service, "", "");
    let mut connection = world.open();
    connection.begin_open(&grpc("/all/talks"), 1);
    for (said, answered) in [(&b"one"[..], &b"ONE"[..]), (b"two", b"TWO"), (b"three", b"THREE")] {
        connection.piece(1, said, false);
        assert_eq!(connection.next_piece(1).unwrap(), answered);
    }
    // Its end comes alone.
    connection.piece(1, b"", true);
    assert_eq!(connection.came(1), Came { status: 0, ..whole(0, "") });
    assert!(service.last().whole);
}

#[test]
fn who_ends_a_stream_early_ends_it_for_the_other() {
    let service = Streams::start();
    let world = world(&service, "", "");
    let mut connection = world.open();
    connection.begin_open(&grpc("/all/silent"), 1);
    until("the service is asked", || service.seen().len() == 1);
    connection.reset(1);
    until("the service is told", || service.last().given_up == Some(Reason::CANCEL));
    assert_eq!(code(&world, "/all/silent"), "client_closed");

    connection.begin_open(&grpc("/all/talks"), 3);
    connection.piece(3, b"a", false);
    assert_eq!(connection.next_piece(3).unwrap(), b"A");
    connection.reset(3);
    until("the service is told", || service.last().given_up == Some(Reason::CANCEL));
    assert_eq!(code(&world, "/all/talks"), "client_closed");

    connection.begin(&head("GET", "/all/resets"), 5);
    assert!(connection.came(5).whole, "an answer of ours");
    assert_eq!(code(&world, "/all/resets"), "upstream_invalid");

    connection.begin(&head("GET", "/all/breaks"), 7);
    assert_eq!(connection.came(7), Came { whole: false, ..whole(200, "half") }, "never as if that had been all");
    assert_eq!(code(&world, "/all/breaks"), "upstream_invalid");

    // An answer that does not wait for the body is whole, and the rest of the body is nobody's.
    connection.begin_open(&grpc("/all/hasty"), 9);
    assert_eq!(connection.came(9), whole(200, ""));
    assert_eq!(code(&world, "/all/hasty"), "ok");
    connection.begin(&head("GET", "/all/echo"), 11);
    assert_eq!(connection.came(11), whole(200, ""), "the connections go on");
    assert_eq!(service.connections(), 1);
}

/// A backend that says in one write that its answer is whole and that it wants no more of the request, as gRPC services do that refuse a stream.
#[test]
fn an_answer_that_has_ended_is_whole_though_a_reset_comes_with_its_end() {
    const HEADERS: &[u8] = &[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88];
    const LAST_HEADERS: &[u8] = &[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];
    const DATA: &[u8] = &[0, 0, 2, 0, 0, 0, 0, 0, 1, b'o', b'k'];
    const LAST_DATA: &[u8] = &[0, 0, 2, 0, 1, 0, 0, 0, 1, b'o', b'k'];
    const NO_ERROR: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    const INTERNAL_ERROR: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 2];
    for (said, heard) in [
        ([LAST_HEADERS, &[], NO_ERROR], &[("HEADERS", true)][..]),
        ([HEADERS, LAST_DATA, NO_ERROR], &[("HEADERS", false), ("DATA", true)]),
        ([HEADERS, DATA, NO_ERROR], &[("HEADERS", false), ("DATA", false), ("RST_STREAM", true)]),
        ([HEADERS, DATA, INTERNAL_ERROR], &[("HEADERS", false), ("DATA", false), ("RST_STREAM", true)]),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
            stream.read_exact(&mut [0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()]).unwrap();
            let mut kind = 0;
            while kind != 1 {
                let mut head = [0; 9];
                stream.read_exact(&mut head).unwrap();
                kind = head[3];
                stream.read_exact(&mut vec![0; usize::from(head[1]) << 8 | usize::from(head[2])]).unwrap();
            }
            stream.write_all(&said.concat()).unwrap();
            while stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}
        });
        let world = World::before(Folder::new(), &format!(r#"servers: ["{address}"], http2: true"#), "authenticate: public", "");
        let mut connection = world.open();
        connection.begin_open(&grpc("/all/refused"), 1);
        assert_eq!(connection.frames(1), heard, "{said:?}");
    }
}

#[test]
fn what_a_backend_has_not_looked_at_is_asked_again_and_nothing_else() {
    let service = Streams::start();
    let world = world(&service, "", "");
    let mut connection = world.open();
    connection.begin(&head("GET", "/all/echo"), 1);
    assert_eq!(connection.came(1), whole(200, ""));
    // Refused on a connection that served others before.
    connection.begin_with(&grpc("/all/refuses"), 3, &[b"message"]);
    assert_eq!(connection.came(3), with_trailers("message"));
    assert_eq!(service.seen().len(), 3);
    assert_eq!(service.connections(), 2);
    // A connection that is being closed takes no more.
    for (stream, path) in [(5, "/all/leaves"), (7, "/all/leaves"), (9, "/all/echo")] {
        connection.begin_with(&grpc(path), stream, &[b"x"]);
        assert_eq!(connection.came(stream), with_trailers("x"), "{path}");
    }
    connection.begin_with(&grpc("/all/always-refuses"), 11, &[b"x"]);
    connection.came(11);
    assert_eq!(service.seen().iter().filter(|seen| seen.path == "/all/always-refuses").count(), 3);
    // What was looked at, and may have had its effect.
    connection.begin_with(&grpc("/all/resets"), 13, &[b"x"]);
    connection.came(13);
    assert_eq!(service.seen().iter().filter(|seen| seen.path == "/all/resets").count(), 1);
}

#[test]
fn connections_are_as_many_as_their_streams_need_and_no_longer_than_they_are_used() {
    let service = Streams::start();
    let world = world(&service, ", timeouts: {idle: 500ms}", "");
    let mut callers = [world.open(), world.open()];
    for (at, caller) in callers.iter_mut().enumerate() {
        (0..60).for_each(|stream| caller.begin(&head("GET", "/all/silent"), 2 * stream + 1));
        until("they are at the service", || service.seen().len() == 60 * (at + 1));
    }
    assert_eq!(service.connections(), 2, "a hundred on each");
    drop(callers);
    until("nobody needs them", || service.closed() == 2);
    let mut connection = world.open();
    connection.begin(&head("GET", "/all/echo"), 1);
    assert_eq!(connection.came(1), whole(200, ""));
    assert_eq!(service.connections(), 3);
}

#[test]
fn retries_send_the_body_again_and_only_what_may_be_repeated() {
    let service = Streams::start();
    let world = world(&service, ", retries: {attempts: 1, on: [connect_failure, 503]}", "");
    let mut connection = world.open();
    connection.begin_with(&head("PUT", "/all/busy"), 1, &[b"bo", b"dy"]);
    assert_eq!(connection.came(1), whole(200, "body"));
    assert_eq!(service.seen().len(), 2);
    connection.begin_with(&head("POST", "/all/2/busy"), 3, &[b"body"]);
    connection.came(3);
    assert_eq!(service.seen().len(), 3, "a POST is not sent twice");
    // More than is kept.
    let piece = vec![b'x'; 15_000];
    connection.begin_open(&head("PUT", "/all/3/busy"), 5);
    for at in 1..=5 {
        connection.piece(5, &piece, at == 5);
        until("there is room for the next", || service.last().body.len() == at * piece.len());
    }
    assert!(connection.came(5).whole);
    assert_eq!((service.seen().len(), service.last().whole), (4, true), "none is sent with half a body");
}

#[test]
fn bounds_hold_on_streams() {
    let service = Streams::start();
    let world = world(&service, ", timeouts: {response: 300ms}", ", limits: {body: 10B}");
    let mut connection = world.open();
    connection.begin_with(&grpc("/all/echo"), 1, &[b"0123456789"]);
    assert_eq!(connection.came(1), with_trailers("0123456789"));
    connection.begin_with(&grpc("/all/2/echo"), 3, &[b"0123456789", b"0"]);
    connection.came(3);
    assert_eq!(code(&world, "/all/2/echo"), "body_too_large");
    connection.begin(&head("GET", "/all/silent"), 5);
    connection.came(5);
    assert_eq!(code(&world, "/all/silent"), "upstream_timeout");
    until("the service is told", || service.last().given_up == Some(Reason::CANCEL));
    drop(service);
    (0..20).for_each(|at| connection.begin(&head("GET", "/all/4/echo"), 2 * at + 7));
    let unreachable = || world.gateway.access_log().iter().filter(|line| line["code"] == "upstream_unreachable").count();
    until("each is told, whoever asked for the connection", || unreachable() == 20);
}

#[test]
fn who_waits_to_be_told_and_who_does_not_speak_http_2_are_served_as_before() {
    let service = Streams::start();
    let world = world(&service, "", "");
    let mut connection = world.open();
    connection.begin_with(&[&head("PUT", "/all/echo")[..], &[("expect", "100-continue")]].concat(), 1, &[b"body"]);
    assert_eq!(connection.came(1), whole(200, "body"));

    // A backend that does not speak it is no backend.
    let http1 = Origin::start();
    let world = World::before(Folder::new(), &format!(r#"servers: ["{}"], http2: true"#, http1.address), "authenticate: public", "");
    let mut connection = world.open();
    connection.begin(&head("GET", "/all/echo"), 1);
    connection.came(1);
    assert_eq!(code(&world, "/all/echo"), "upstream_invalid");
}

#[test]
fn a_backend_over_tls_is_verified_and_speaks_http_2_or_is_none() {
    let [ours, foreign] = ["ours", "foreign"].map(Authority::new);
    let origin = Origin::scripted(|request| Reply::Bytes(answer(200, &[], &String::from_utf8_lossy(&request.body))));
    let folder = Folder::new();
    let certificate = ours.issue(&["orders.test"]);
    folder.write("chain.pem", &certificate.chain);
    folder.write("key.pem", &certificate.key);
    let behind = Gateway::start_in(
        folder,
        &format!(
            r#"
listeners: [{{address: "127.0.0.1:0", tls: {{certificates: [{{chain: chain.pem, key: {{file: key.pem}}}}]}}}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{all: {{servers: ["{}"]}}}}
routes: [{{name: all, path: "/{{*rest}}", upstream: all, policy: {{authenticate: public}}}}]
"#,
            origin.address
        ),
    );
    let http1 = Origin::tls(&certificate, None, |_| Reply::Bytes(answer(200, &[], "over HTTP/1.1")));
    let folder = Folder::new();
    folder.write("ours.pem", ours.pem());
    folder.write("foreign.pem", foreign.pem());
    let (mut upstreams, mut routes) = (String::new(), String::new());
    for (name, address, server_name, ca) in [
        ("good", behind.address(), "orders.test", "ours.pem"),
        ("foreign", behind.address(), "orders.test", "foreign.pem"),
        ("misnamed", behind.address(), "gw.test", "ours.pem"),
        ("old", http1.address, "orders.test", "ours.pem"),
    ] {
        upstreams += &format!(r#"{name}: {{servers: ["{address}"], http2: true, tls: {{server_name: {server_name}, ca: {ca}}}}}, "#);
        routes += &format!(r#"{{name: {name}, path: "/{name}/{{*rest}}", upstream: {name}, policy: {{authenticate: public}}}}, "#);
    }
    let world = World::with(folder, &format!("upstreams: {{{upstreams}}}\nroutes: [{routes}]\nserver: {{threads: 1}}"));
    let (mut http2, mut http1) = (world.open(), Connection::open_tls(world.gateway.address(), &world.tls()).unwrap());
    for (at, (path, expected)) in [
        ("/good/1", "ok"),
        ("/foreign/2", "upstream_unreachable"),
        ("/misnamed/3", "upstream_unreachable"),
        ("/old/4", "upstream_unreachable"),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = 2 * at as u32 + 1;
        http2.begin_with(&grpc(path), stream, &[b"bo", b"dy"]);
        let came = http2.came(stream);
        assert_eq!(code(&world, path), expected, "{path}");
        assert!(expected != "ok" || came == whole(200, "body"), "{came:?}");
        let path = format!("{path}/http1");
        let answer = http1.ask(request("POST", &path, &[("host", "gw.test")], b"body"));
        assert_eq!(code(&world, &path), expected, "as the framework sees it");
        if answer.status != 200 {
            http1 = Connection::open_tls(world.gateway.address(), &world.tls()).unwrap();
        }
    }
}

#[test]
fn a_body_is_proven_before_the_backend_has_any_of_it() {
    let service = Streams::start();
    let folder = Folder::new();
    folder.write("sigv4.yaml", "keys: [{access_key_id: AKIDACME, secret: {file: acme.secret}, consumer: acme}]\n");
    folder.write("acme.secret", ACME.secret);
    let iam = "authenticators: {iam: {sigv4: {region: eu-west-1, service: execute-api, keys: {file: sigv4.yaml}}}}";
    let world = World::before(folder, &servers(&service, ""), "authenticate: [iam]", iam);
    let mut connection = world.open();
    let mut stream = 1;
    let mut ask = |connection: &mut Http2, path: &str, proven: &[u8], pieces: &[&[u8]]| {
        let hash = sha256(proven);
        let signed = ACME.sign("POST", path, &[("host", "gw.test"), ("x-amz-content-sha256", &hash)], &hash);
        let signed: Vec<_> = signed.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect();
        let more = signed.iter().filter(|(name, _)| name != "host").map(|(name, value)| (&**name, &**value));
        connection.begin_with(&head("POST", path).into_iter().chain(more).collect::<Vec<_>>(), stream, pieces);
        stream += 2;
        connection.came(stream - 2)
    };
    let came = ask(&mut connection, "/all/echo", b"abcd", &[b"ab", b"cd"]);
    assert_eq!(came, whole(200, "abcd"));
    assert_eq!(service.last().headers["x-consumer-id"], "acme");
    ask(&mut connection, "/all/2/echo", b"abcd", &[b"ab", b"ce"]);
    assert_eq!(code(&world, "/all/2/echo"), "credential_invalid");
    // A service that answers at once: its answer waits for the proof.
    assert_eq!(ask(&mut connection, "/all/hasty", b"abcd", &[b"ab", b"cd"]), whole(200, ""));
    let came = ask(&mut connection, "/all/4/hasty", b"abcd", &[b"ab", b"ce"]);
    assert_eq!((came.status, code(&world, "/all/4/hasty")), (0, "credential_invalid".to_owned()));
    assert!(service.seen().iter().all(|seen| !seen.body.contains(&b'e')), "nothing of a wrong body came through");
}
