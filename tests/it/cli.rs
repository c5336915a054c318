//! The command line, as an operator and an orchestrator use it.

use crate::harness::client;
use crate::harness::gateway::{Folder, Gateway, command};
use crate::harness::origin::{Origin, Reply, answer};
use crate::harness::until;

const DEMO: &str = r#"
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
upstreams: {demo: {builtin: echo}}
routes: [{name: all, path: "/{*rest}", upstream: demo, policy: {authenticate: public}}]
"#;

#[test]
fn health_says_by_its_exit_whether_a_gateway_is_ready() {
    let gateway = Gateway::start(DEMO);
    let health = |url: &str| command(&["health", url]).output().unwrap();
    assert!(health(&format!("http://{}/readyz", gateway.admin())).status.success());

    let failing = Origin::scripted(|_| Reply::Bytes(answer(503, &[], "not ready: no keys")));
    let not_ready = health(&format!("http://{}/readyz", failing.address));
    assert_eq!(not_ready.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&not_ready.stderr).contains("no keys"));

    let address = failing.address;
    drop(failing);
    assert_eq!(health(&format!("http://{address}/readyz")).status.code(), Some(1), "nobody there");
}

#[test]
fn a_gateway_ends_when_it_is_told_to_and_says_what_it_serves_until_then() {
    let mut gateway = Gateway::start(DEMO);
    let seen = gateway.get("/hello?x=1", &[("X-Any", "thing")]);
    assert_eq!(seen.status, 200);
    assert_eq!((seen.json()["path"].as_str(), seen.json()["headers"]["x-any"].as_str()), (Some("/hello"), Some("thing")));
    gateway.signal("TERM");
    assert!(gateway.wait().success());
}

#[test]
fn another_admin_token_is_not_taken_over_in_silence() {
    let folder = Folder::new();
    folder.write("token", "the-first-token-of-the-admin");
    let token = folder.path().join("token");
    let gateway = Gateway::start_in(
        folder,
        &DEMO.replace(r#"admin: {address: "127.0.0.1:0"}"#, r#"admin: {address: "127.0.0.1:0", token: {file: token}}"#),
    );
    let stale = || client::get(gateway.admin(), "/readyz", &[]).json()["config"] == "stale";
    assert!(!stale());
    std::fs::write(token, "the-second-token-of-the-admin").unwrap();
    until("the operator is told that the old token is still good", stale);
}
