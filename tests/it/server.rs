//! The process: how it stops, what it must not lose when it does, and which socket serves what.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::client::{self, Connection, request};
use crate::harness::gateway::{Folder, Gateway, command};
use crate::harness::origin::{Origin, Reply, answer};
use crate::harness::until;

fn config(origin: &Origin) -> String {
    format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{all: {{servers: ["{}"]}}}}
authenticators: {{partners: {{api_key: {{keys: {{database: keys.db}}}}}}}}
routes:
  - {{name: slow, path: "/slow/{{*rest}}", upstream: all, policy: {{authenticate: public}}}}
  - {{name: keyed, path: "/keyed/{{*rest}}", upstream: all, policy: {{authenticate: partners}}}}
"#,
        origin.address
    )
}

/// An origin that takes this long for what is below `/slow`.
fn slow(time: Duration) -> Origin {
    Origin::scripted(move |request| {
        if request.target().starts_with("/slow") {
            std::thread::sleep(time);
        }
        Reply::Bytes(answer(200, &[], request.target()))
    })
}

/// `edgeward keys ...` in a folder, as it prints.
fn keys(folder: &Folder, arguments: &[&str]) -> Value {
    let output = command(&[&["keys"], arguments, &["-c", "edgeward.yaml", "--json"]].concat()).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn whoever_comes_before_the_gateway_serves_is_refused_and_never_reset() {
    let origin = slow(Duration::ZERO);
    // Not where the caller's own sockets are: one of them would be given this very port in time, and be connected with itself.
    let free = TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
    let yaml = config(&origin).replacen("127.0.0.1:0", &free.to_string(), 1);
    let caller = std::thread::spawn(move || {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody was served");
            if TcpStream::connect(free).is_ok() {
                break client::get(free, "/slow/1", &[]).status;
            }
        }
    });
    let gateway = Gateway::start(&yaml);
    assert_eq!(gateway.address(), free);
    assert_eq!(caller.join().unwrap(), 200);
}

#[test]
fn an_address_in_use_is_an_error_that_names_it() {
    for listener in [r#"listeners: [{address: "127.0.0.1:0""#, r#"admin: {address: "127.0.0.1:0""#] {
        let origin = slow(Duration::ZERO);
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let folder = Folder::new();
        folder.write("edgeward.yaml", config(&origin).replace(listener, &listener.replace("127.0.0.1:0", &address)));
        let output = command(&["run", "-c", "edgeward.yaml"]).current_dir(folder.path()).output().unwrap();
        assert!(!output.status.success());
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(printed.contains(&format!("cannot listen on {address}")), "{printed}");
    }
}

#[test]
fn listeners_that_overlap_end_the_start_with_an_error_that_names_one() {
    let origin = slow(Duration::ZERO);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let both = format!(r#"listeners: [{{address: "0.0.0.0:{port}"}}, {{address: "127.0.0.1:{port}""#);
    let folder = Folder::new();
    folder.write("edgeward.yaml", config(&origin).replace(r#"listeners: [{address: "127.0.0.1:0""#, &both));
    let output = command(&["run", "-c", "edgeward.yaml"]).current_dir(folder.path()).output().unwrap();
    assert!(!output.status.success());
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(printed.contains(&format!("cannot listen on 127.0.0.1:{port}")) && !printed.contains("panicked"), "{printed}");
}

#[test]
fn a_gateway_that_is_told_to_stop_ends_what_has_begun_and_begins_nothing() {
    let origin = slow(Duration::from_secs(2));
    let mut gateway = Gateway::start(&config(&origin));
    let mut idle = Connection::open(gateway.address());
    assert_eq!(idle.ask(request("GET", "/nowhere", &[], b"")).status, 404);
    let mut connection = Connection::open(gateway.address());
    connection.send(request("GET", "/slow/1", &[], b""));
    until("the service has been asked", || !origin.requests().is_empty());
    gateway.signal("TERM");
    until("new connections are refused", || TcpStream::connect(gateway.address()).is_err());
    assert!(gateway.is_alive(), "the request in flight is waited for");
    assert_eq!(connection.answer(false).text(), "/slow/1");
    let answered = Instant::now();
    assert!(gateway.wait().success());
    assert!(answered.elapsed() < Duration::from_secs(2), "{:?} after the last answer", answered.elapsed());
    assert!(idle.is_closed());
    until("the last request is in the access log", || gateway.access_log().iter().any(|line| line["path"] == "/slow/1"));
}

#[test]
fn an_idle_gateway_stops_soon_and_an_interrupted_one_at_once() {
    for (signal, in_flight) in [("TERM", false), ("INT", false), ("INT", true)] {
        let origin = slow(Duration::from_secs(10));
        let mut gateway = Gateway::start(&config(&origin));
        let mut connection = Connection::open(gateway.address());
        if in_flight {
            connection.send(request("GET", "/slow/1", &[], b""));
            until("the service has been asked", || !origin.requests().is_empty());
        }
        let told = Instant::now();
        gateway.signal(signal);
        assert!(gateway.wait().success(), "{signal}");
        assert!(told.elapsed() < Duration::from_secs(3), "{signal} took {:?}", told.elapsed());
        assert!(connection.is_closed(), "{signal}");
    }
}

#[test]
fn the_usage_of_keys_survives_a_stop() {
    for signal in ["TERM", "INT"] {
        let origin = slow(Duration::ZERO);
        let mut gateway = Gateway::start(&config(&origin));
        let made = keys(gateway.folder(), &["create", "--consumer", "acme"]);
        let key = made["key"].as_str().unwrap();
        until("the key is known", || gateway.get("/keyed/1", &[("X-API-Key", key)]).status == 200);
        let mut connection = Connection::open(gateway.address());
        for _ in 0..6 {
            assert_eq!(connection.ask(request("GET", "/keyed/2", &[("X-API-Key", key)], b"")).status, 200);
        }
        gateway.signal(signal);
        assert!(gateway.wait().success());
        let listed = keys(gateway.folder(), &["list"]);
        assert_eq!(listed[0]["requests"], 7, "after {signal}: {listed}");
    }
}

#[test]
fn the_administration_is_on_its_own_socket_and_nothing_else_is() {
    let origin = slow(Duration::ZERO);
    let gateway = Gateway::start(&config(&origin));
    let (data, admin) = (gateway.address(), gateway.admin());
    for path in ["/healthz", "/readyz", "/metrics", "/admin", "/keys", "/config", "/debug", "/"] {
        for target in [path.to_owned(), format!("/{path}"), format!("/keyed/..{path}"), format!("http://{admin}{path}")] {
            for host in [data.to_string(), admin.to_string(), "localhost".to_owned(), format!("localhost:{}", admin.port())] {
                let refused =
                    client::get(data, &target, &[("Host", &host), ("X-Forwarded-Host", &admin.to_string()), ("X-Original-URL", path)]);
                assert!([400, 404].contains(&refused.status), "{target} at {host}: {refused:?}");
                assert!(!refused.text().contains("edgeward_"), "{target} at {host}");
            }
        }
    }
    for path in ["/slow/1", "/keyed/1", "//metrics", "/metrics/", "/%6detrics"] {
        assert_eq!(client::get(admin, path, &[("Host", &data.to_string())]).status, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE"] {
        assert_eq!(client::ask(admin, request(method, "/metrics", &[], b"")).status, 405, "{method}");
    }
    assert_eq!(client::get(admin, "/metrics", &[]).status, 200);
    assert!(origin.requests().is_empty());
}

#[test]
fn a_connection_more_than_there_may_be_is_closed_at_once_and_leaves_room_when_it_is_gone() {
    let origin = Origin::start();
    for (limits, bound, most) in [
        ("limits: {connections: 3, connections_per_ip: 5}", "connections", 3),
        ("limits: {connections: 5, connections_per_ip: 3}", "connections_per_ip", 3),
        ("limits: {connections: 4, connections_per_ip: 3}, trusted_proxies: [127.0.0.1]", "connections", 4),
    ] {
        let gateway = Gateway::start(&format!("{}\nserver: {{{limits}}}", config(&origin)));
        let get = || request("GET", "/slow/1", &[], b"");
        let mut open: Vec<_> = (0..most).map(|_| Connection::open(gateway.address())).collect();
        // Also those that say nothing, and those that were asked before.
        assert_eq!(open[0].ask(get()).status, 200, "{limits}");
        until("all are counted", || gateway.metric("edgeward_connections", &[]) == f64::from(most));
        for round in 1..=3 {
            let mut more = Connection::open(gateway.address());
            more.send(get());
            assert!(more.is_closed(), "{limits}");
            until("it is counted", || {
                gateway.metric("edgeward_connections_refused_total", &[&format!("bound=\"{bound}\"")]) == f64::from(round)
            });
        }
        assert_eq!(gateway.metric("edgeward_connections", &[]), f64::from(most), "{limits}");
        assert!(open.iter_mut().all(|connection| connection.ask(get()).status == 200), "{limits}");
        open.pop();
        until("there is room again", || gateway.metric("edgeward_connections", &[]) == f64::from(most - 1));
        assert_eq!(Connection::open(gateway.address()).ask(get()).status, 200, "{limits}");
    }
}
