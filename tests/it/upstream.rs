//! Backends behind the real gateway: which one is asked, over what, and what becomes of a request when one is away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use crate::harness::certificates::Authority;
use crate::harness::client::request;
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::{Origin, Recorded, Reply, answer};
use crate::harness::until;

/// A configuration in which every path leads to one upstream.
fn config(upstream: &str) -> String {
    format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{orders: {{{upstream}}}}}
routes: [{{name: all, path: "/{{*rest}}", upstream: orders, policy: {{authenticate: public}}}}]
"#
    )
}

fn closed_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn named(name: &'static str) -> Origin {
    Origin::scripted(move |_| Reply::Bytes(answer(200, &[], name)))
}

#[test]
fn requests_are_shared_by_weight() {
    let (light, heavy) = (named("light"), named("heavy"));
    let config = config(&format!(r#"servers: ["{}", {{address: "{}", weight: 3}}]"#, light.address, heavy.address));
    // Each worker takes turns of its own: of two, each would be a part of a turn ahead or behind.
    let gateway = Gateway::start(&format!("{config}server: {{threads: 1}}\n"));
    for _ in 0..40 {
        assert_eq!(gateway.get("/", &[]).status, 200);
    }
    assert_eq!((light.requests().len(), heavy.requests().len()), (10, 30));
}

#[test]
fn connections_to_a_backend_are_kept() {
    let origin = named("kept");
    let gateway = Gateway::start(&config(&format!(r#"servers: ["{}"], timeouts: {{idle: 60s}}"#, origin.address)));
    for _ in 0..20 {
        assert_eq!(gateway.get("/", &[]).text(), "kept");
    }
    assert!(origin.connections() < 10, "{} connections for 20 requests", origin.connections());
}

#[test]
fn an_unwell_backend_is_left_out_and_comes_back() {
    let status = Arc::new(AtomicU16::new(200));
    let said = status.clone();
    let sick = Origin::scripted(move |request: &Recorded| match request.target() {
        "/health" => Reply::Bytes(answer(said.load(Ordering::Relaxed), &[], "")),
        _ => Reply::Bytes(answer(200, &[], "sick")),
    });
    let well = named("well");
    let health = "health: {path: /health, interval: 500ms, timeout: 500ms, healthy: 2, unhealthy: 2}";
    let gateway = Gateway::start(&config(&format!(r#"servers: ["{}", "{}"], {health}"#, sick.address, well.address)));
    let answers = || -> Vec<String> { (0..10).map(|_| gateway.get("/", &[]).text().to_owned()).collect() };
    assert!(answers().contains(&"sick".to_owned()), "both are asked at first");
    status.store(500, Ordering::Relaxed);
    until("the sick one is left out", || answers().iter().all(|name| name == "well"));
    status.store(200, Ordering::Relaxed);
    until("it comes back", || answers().contains(&"sick".to_owned()));
}

#[test]
fn without_a_well_backend_the_answer_is_503_and_nothing_is_forwarded() {
    let sick = Origin::scripted(|request| match request.target() {
        "/health" => Reply::Bytes(answer(500, &[], "")),
        _ => Reply::Bytes(answer(200, &[], "sick")),
    });
    let gateway =
        Gateway::start(&config(&format!(r#"servers: ["{}"], health: {{path: /health, interval: 500ms, timeout: 500ms}}"#, sick.address)));
    until("it is known to be unwell", || gateway.get("/", &[]).status == 503);
    let before = sick.requests().iter().filter(|request| request.target() != "/health").count();
    let refused = gateway.get("/", &[]);
    assert_eq!((refused.status, refused.code().as_str()), (503, "no_healthy_upstream"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(sick.requests().iter().filter(|request| request.target() != "/health").count(), before);
}

#[test]
fn a_backend_that_cannot_be_reached_is_502_and_a_silent_one_is_504() {
    let silent = Origin::scripted(|_| Reply::Silence(Duration::from_secs(30)));
    let broken = Origin::scripted(|_| Reply::Last(b"not HTTP at all\r\n\r\n".to_vec()));
    let timeouts = "timeouts: {connect: 1s, response: 300ms}";
    for (address, status, code) in
        [(closed_port(), 502, "upstream_unreachable"), (broken.address, 502, "upstream_invalid"), (silent.address, 504, "upstream_timeout")]
    {
        let gateway = Gateway::start(&config(&format!(r#"servers: ["{address}"], {timeouts}"#)));
        let answer = gateway.get("/", &[]);
        assert_eq!((answer.status, answer.code().as_str()), (status, code));
    }
}

#[test]
fn a_backend_that_is_away_is_passed_over_by_a_retry() {
    let here = named("here");
    let retries = "retries: {attempts: 1, on: [connect_failure]}";
    let gateway = Gateway::start(&config(&format!(r#"servers: ["{}", "{}"], {retries}"#, closed_port(), here.address)));
    for _ in 0..10 {
        assert_eq!(gateway.get("/", &[]).text(), "here");
    }
    assert_eq!(here.requests().len(), 10);
}

#[test]
fn an_answer_is_retried_only_when_asking_twice_does_no_harm() {
    let busy = Origin::scripted(|_| Reply::Bytes(answer(503, &[], "busy")));
    let retries = "retries: {attempts: 2, on: [503]}";
    let gateway = Gateway::start(&config(&format!(r#"servers: ["{}", "{}"], {retries}"#, busy.address, busy.address)));
    assert_eq!(gateway.get("/", &[]).status, 503);
    let tries = busy.requests().len();
    assert_eq!(tries, 3);
    assert_eq!(gateway.ask(request("POST", "/", &[], b"pay")).status, 503);
    assert_eq!(busy.requests().len(), tries + 1, "a payment is made once");
}

#[test]
fn a_backend_over_tls_is_verified_and_shown_our_certificate() {
    let (authority, clients, other) = (Authority::new("authority"), Authority::new("clients"), Authority::new("other"));
    let origin = Origin::tls(&authority.issue(&["orders.test"]), Some(&clients.pem()), |_| Reply::Bytes(answer(200, &[], "verified")));
    let client = clients.issue(&["edgeward"]);
    let client_tls = "client: {chain: client.pem, key: {file: client.key}}";
    let cases = [
        (format!("server_name: orders.test, ca: ca.pem, {client_tls}"), 200),
        (format!("server_name: evil.test, ca: ca.pem, {client_tls}"), 502),
        (format!("server_name: orders.test, ca: other.pem, {client_tls}"), 502),
        (format!("server_name: orders.test, {client_tls}"), 502),
        ("server_name: orders.test, ca: ca.pem".to_owned(), 502),
    ];
    for (tls, status) in cases {
        let folder = Folder::new();
        folder.write("ca.pem", authority.pem());
        folder.write("other.pem", other.pem());
        folder.write("client.pem", &client.chain);
        folder.write("client.key", &client.key);
        let gateway = Gateway::start_in(folder, &config(&format!(r#"servers: ["{}"], tls: {{{tls}}}"#, origin.address)));
        let before = origin.requests().len();
        assert_eq!(gateway.get("/", &[]).status, status, "{tls}");
        assert_eq!(origin.requests().len() - before, usize::from(status == 200), "{tls}: only a verified backend sees the request");
    }
}

#[test]
fn a_connection_that_was_verified_for_one_upstream_serves_no_other() {
    let (authority, other) = (Authority::new("authority"), Authority::new("other"));
    let origin = Origin::tls(&authority.issue(&["orders.test"]), None, |_| Reply::Bytes(answer(200, &[], "verified")));
    let folder = Folder::new();
    folder.write("ca.pem", authority.pem());
    folder.write("other.pem", other.pem());
    let address = origin.address;
    // One worker, which takes its own connections first.
    let config = |ca| {
        format!(
            r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
server: {{threads: 1}}
upstreams:
  good: {{servers: ["{address}"], tls: {{server_name: orders.test, ca: {ca}}}}}
  foreign: {{servers: ["{address}"], tls: {{server_name: orders.test, ca: other.pem}}}}
  misnamed: {{servers: ["{address}"], tls: {{server_name: evil.test, ca: ca.pem}}}}
routes:
  - {{name: good, path: "/good", upstream: good, policy: {{authenticate: public}}}}
  - {{name: foreign, path: "/foreign", upstream: foreign, policy: {{authenticate: public}}}}
  - {{name: misnamed, path: "/misnamed", upstream: misnamed, policy: {{authenticate: public}}}}
"#
        )
    };
    let gateway = Gateway::start_in(folder, &config("ca.pem"));
    let statuses = || ["/good", "/foreign", "/good", "/misnamed"].map(|path| gateway.get(path, &[]).status);
    (0..3).for_each(|_| assert_eq!(statuses(), [200, 502, 200, 502]));
    gateway.rewrite(&config("other.pem"));
    until("the other authority counts", || gateway.get("/good", &[]).status == 502);
    (0..3).for_each(|_| assert_eq!(statuses(), [502; 4]));
    gateway.rewrite(&config("ca.pem"));
    until("the first authority counts again", || gateway.get("/good", &[]).status == 200);
    assert_eq!(statuses(), [200, 502, 200, 502]);
}

#[test]
fn a_name_is_resolved_and_other_servers_take_effect_by_a_reload() {
    let (first, second) = (named("first"), named("second"));
    let by_name = |origin: &Origin| config(&format!(r#"servers: ["localhost:{}"]"#, origin.address.port()));
    let gateway = Gateway::start(&by_name(&first));
    until("the name is resolved", || gateway.get("/", &[]).status == 200);
    assert_eq!(gateway.get("/", &[]).text(), "first");
    gateway.rewrite(&by_name(&second));
    until("the second is asked", || gateway.get("/", &[]).body == b"second");
}

#[test]
fn a_retry_asks_the_only_backend_again_and_its_answer_is_the_callers() {
    let busy = Origin::scripted(|request| match request.target() {
        "/broken" => Reply::Bytes(b"NOT-HTTP\r\nSet-Cookie: session=TOPSECRET\r\n\r\n".to_vec()),
        _ => Reply::Bytes(answer(503, &[], "busy")),
    });
    let upstream = format!(r#"servers: ["{}"], retries: {{attempts: 2, on: [connect_failure, 502, 503]}}"#, busy.address);
    let gateway = Gateway::start(&format!("server: {{limits: {{body: 4KiB}}}}\n{}", config(&upstream)));
    // Each try reads the body again, which is no longer for it.
    let answered = gateway.ask(request("PUT", "/", &[], &[b'x'; 3000]));
    assert_eq!((answered.status, answered.text()), (503, "busy"));
    assert_eq!(busy.requests().len(), 3);
    let answered = gateway.get("/broken", &[]);
    assert_eq!((answered.status, answered.code().as_str()), (502, "upstream_invalid"));
    assert_eq!(busy.requests().len(), 6);
    until("the failure is logged", || gateway.printed().contains("the upstream failed"));
    assert!(!gateway.printed().contains("TOPSECRET"), "{}", gateway.printed());
    let bytes_in = gateway.access_log().iter().find(|line| line["method"] == "PUT").unwrap()["bytes_in"].clone();
    assert_eq!(bytes_in, 3000);
    let away = Gateway::start(&config(&format!(r#"servers: ["{}"], retries: {{attempts: 1}}"#, closed_port())));
    assert_eq!(away.get("/", &[]).code(), "upstream_unreachable");
}
