//! Revocation on the running gateway: by the command line, by the administration, and over reloads, restarts and lost databases.

use std::io::Write;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use edgeward::authenticators::key_format;
use edgeward::jose::Algorithm;
use edgeward::live::api_keys::KeyHash;
use serde_json::{Value, json};

use crate::harness::client::{self, Answer};
use crate::harness::gateway::{Folder, Gateway, command};
use crate::harness::issuer::Issuer;
use crate::harness::until;

fn key() -> String {
    key_format::compose("ck_test_", "acme00", &[7; 32]).to_string()
}

fn folder() -> Folder {
    let folder = Folder::new();
    let hash: String = KeyHash::of(&key()).0.iter().map(|byte| format!("{byte:02x}")).collect();
    folder.write("keys.yaml", format!("keys:\n  - {{id: acme00, sha256: {hash}, consumer: acme}}\n"));
    folder
}

fn config(issuer: &Issuer) -> String {
    format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{demo: {{builtin: echo}}}}
revocation: {{database: data/revoked.db}}
authenticators:
  customers: {{jwt: {{issuer: "{}", audiences: [orders], keys: {{jwks_url: "{}"}}}}}}
  partners: {{api_key: {{prefix: ck_test_, keys: {{file: keys.yaml}}}}}}
routes:
  - {{name: orders, path: "/orders", upstream: demo, policy: {{authenticate: [customers, partners]}}}}
  - {{name: both, path: "/both", upstream: demo, policy: {{authenticate: {{all: [partners, customers]}}}}}}
"#,
        issuer.url(),
        issuer.jwks_url()
    )
}

fn start(issuer: &Issuer, folder: Folder) -> Gateway {
    let gateway = Gateway::start_in(folder, &config(issuer));
    until("the issuer's keys are there", || ask(&gateway, &issuer.token("orders", json!({"sub": "probe"}))).status == 200);
    gateway
}

fn ask(gateway: &Gateway, token: &str) -> Answer {
    gateway.get("/orders", &[("Authorization", &format!("Bearer {token}"))])
}

/// The status and the code of the answer.
fn outcome(answer: &Answer) -> (u16, String) {
    (answer.status, if answer.status == 200 { "ok".to_owned() } else { answer.code() })
}

fn ok() -> (u16, String) {
    (200, "ok".to_owned())
}

fn revoked() -> (u16, String) {
    (401, "credential_revoked".to_owned())
}

fn revoke(folder: &Folder, arguments: &[&str], input: &str) -> Output {
    let all = [&["revoke", "-c", "edgeward.yaml"], arguments].concat();
    let mut command = command(&all);
    let piped = command.current_dir(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn must(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

/// What is so within a second. The poll takes a quarter of one; the rest is for a machine that is busy with other tests.
fn within_a_second(what: &str, so: impl FnMut() -> bool) {
    let began = Instant::now();
    until(what, so);
    assert!(began.elapsed() < Duration::from_secs(1), "{what}: after {:?}", began.elapsed());
}

fn challenges(answer: &Answer) -> Vec<&str> {
    answer.headers.iter().filter(|(name, _)| name == "www-authenticate").map(|(_, value)| value.as_str()).collect()
}

#[test]
fn a_token_that_is_remembered_as_good_is_refused_within_a_second_and_after_a_reload_and_a_restart() {
    let issuer = Issuer::start(Algorithm::Es256);
    let gateway = start(&issuer, folder());
    let (bad, good) = (issuer.token("orders", json!({"jti": "1"})), issuer.token("orders", json!({"jti": "2"})));
    for token in [&bad, &bad, &good] {
        assert_eq!(outcome(&ask(&gateway, token)), ok());
    }
    let said = must(revoke(gateway.folder(), &["--token", "-"], &bad));
    assert!(said.starts_with("revoked: {") && said.contains("token_sha256") && !said.contains(&bad[..20]), "{said}");
    within_a_second("the remembered token is refused", || outcome(&ask(&gateway, &bad)) == revoked());
    let refused = ask(&gateway, &bad);
    assert!(challenges(&refused).iter().any(|challenge| challenge.contains("error=\"invalid_token\"")));
    assert_eq!(outcome(&ask(&gateway, &good)), ok());

    gateway.rewrite(&(config(&issuer) + "telemetry: {access_log: {sample: 0.5}}\n"));
    until("the change is applied", || gateway.metric("edgeward_config_generation", &[]) == 2.0);
    assert_eq!((outcome(&ask(&gateway, &bad)), outcome(&ask(&gateway, &good))), (revoked(), ok()));
    let gateway = start(&issuer, gateway.kill());
    assert_eq!((outcome(&ask(&gateway, &bad)), outcome(&ask(&gateway, &good))), (revoked(), ok()));

    let database = gateway.folder().path().join("data/revoked.db");
    let stored = std::fs::read(&database).unwrap();
    assert!(!stored.windows(20).any(|window| window == &bad.as_bytes()[..20]), "no token is written down");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(database).unwrap()) & 0o777, 0o600);
}

#[test]
fn everything_of_a_subject_that_was_issued_before_is_refused_and_what_comes_after_is_not() {
    let issuer = Issuer::start(Algorithm::Es256);
    let gateway = start(&issuer, folder());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let old = issuer.token("orders", json!({"iat": now - 60}));
    let new = issuer.token("orders", json!({"iat": now + 10}));
    let untimed = issuer.token("orders", json!({"iat": null}));
    let bob = issuer.token("orders", json!({"sub": "bob", "iat": now - 60}));
    let all = |gateway: &Gateway| [&old, &new, &untimed, &bob].map(|token| ask(gateway, token).status);
    assert_eq!(all(&gateway), [200; 4]);
    must(revoke(gateway.folder(), &["--subject", "alice", "--issuer", &issuer.url(), "--before", "now"], ""));
    within_a_second("the subject's old tokens are refused", || all(&gateway) == [401, 200, 401, 200]);
    must(revoke(gateway.folder(), &["--subject", "alice", "--issuer", "https://elsewhere.test/"], ""));
    must(revoke(gateway.folder(), &["--undo", "--subject", "alice", "--issuer", &issuer.url()], ""));
    within_a_second("what was taken back is good again", || all(&gateway) == [200; 4]);
    must(revoke(gateway.folder(), &["--issuer", &issuer.url()], ""));
    within_a_second("everything of the issuer is refused", || all(&gateway) == [401; 4]);
    assert_eq!(must(revoke(gateway.folder(), &["--list"], "")).lines().count(), 2);
}

#[test]
fn a_revoked_key_is_refused_like_an_unknown_one_also_beside_a_good_token() {
    let issuer = Issuer::start(Algorithm::Es256);
    let gateway = start(&issuer, folder());
    let token = format!("Bearer {}", issuer.token("orders", json!({})));
    let unknown = key_format::compose("ck_test_", "acme00", &[8; 32]).to_string();
    let alone = |key: &str| gateway.get("/orders", &[("X-API-Key", key)]);
    let beside = || gateway.get("/both", &[("X-API-Key", &key()), ("Authorization", &token)]);
    assert_eq!((alone(&key()).status, beside().status), (200, 200));
    must(revoke(gateway.folder(), &["--key-id", "acme00"], ""));
    within_a_second("the key is refused", || alone(&key()).status == 401);
    let (refused, stranger) = (alone(&key()), alone(&unknown));
    assert_eq!((outcome(&refused), challenges(&refused)), (outcome(&stranger), challenges(&stranger)));
    assert_eq!(beside().status, 401);
}

#[test]
fn the_administration_revokes_at_once_lists_and_takes_back() {
    let issuer = Issuer::start(Algorithm::Es256);
    let gateway = start(&issuer, folder());
    let token = issuer.token("orders", json!({"jti": "7"}));
    let json_type = ("Content-Type", "application/json");
    let api = |method: &str, body: Value| {
        client::ask(gateway.admin(), client::request(method, "/api/v1/revocations", &[json_type], body.to_string().as_bytes()))
    };
    for body in [json!({"token": token}), json!({"jti": "7"}), json!({"client": "nobody"})] {
        assert_eq!(ask(&gateway, &token).status, 200);
        let answer = api("POST", body.clone());
        assert_eq!(answer.status, 200, "{}", answer.text());
        let in_force = body.get("client").is_none();
        assert_eq!(ask(&gateway, &token).status, if in_force { 401 } else { 200 }, "at once: {body}");
        let listed = client::get(gateway.admin(), "/api/v1/revocations", &[]).json();
        assert_eq!((&listed["count"], &listed["revocations"][0]), (&json!(1), &answer.json()));
        assert!(!listed.to_string().contains(&token[..20]));
        assert_eq!((api("DELETE", body.clone()).status, api("DELETE", body).status), (200, 404));
    }
    for (body, status) in [(json!({}), 400), (json!({"subjct": "alice"}), 400), (json!({"subject": "a", "before": "x"}), 400)] {
        assert_eq!(api("POST", body).status, status);
    }
    let body = json!({"subject": "alice"}).to_string();
    let form = client::request("POST", "/api/v1/revocations", &[("Content-Type", "text/plain")], body.as_bytes());
    assert_eq!(client::ask(gateway.admin(), form).status, 415, "a page of another origin could send it");
    assert_eq!(api("PUT", json!({"subject": "alice"})).status, 405);
    assert_eq!(ask(&gateway, &token).status, 200);

    let text = config(&issuer).replace("admin: {address: \"127.0.0.1:0\"}", "admin: {address: \"127.0.0.1:0\", token: {env: TOKEN}}");
    let guarded = Gateway::start_with(folder(), &text, &[("TOKEN", "sesame-sesame-sesame")]);
    let post = |headers: &[(&str, &str)]| client::request("POST", "/api/v1/revocations", headers, body.as_bytes());
    assert_eq!(client::ask(guarded.admin(), post(&[json_type])).status, 401);
    assert_eq!(client::ask(guarded.admin(), post(&[json_type, ("Authorization", "Bearer sesame-sesame-sesame")])).status, 200);
}

#[test]
fn a_database_that_cannot_be_read_stops_the_start_and_the_reload_and_never_forgets() {
    let issuer = Issuer::start(Algorithm::Es256);
    let damaged = folder();
    damaged.write("data/revoked.db", "no database".repeat(100));
    damaged.write("edgeward.yaml", config(&issuer));
    let start_of = command(&["run", "-c", "edgeward.yaml"]).current_dir(damaged.path()).output().unwrap();
    let said = String::from_utf8(start_of.stderr).unwrap();
    assert!(!start_of.status.success() && said.contains("revocation: ") && said.contains("file is not a database"), "{said}");

    let gateway = start(&issuer, folder());
    let token = issuer.token("orders", json!({}));
    must(revoke(gateway.folder(), &["--subject", "alice"], ""));
    within_a_second("the subject is refused", || outcome(&ask(&gateway, &token)) == revoked());
    gateway.rewrite(&config(&issuer).replace("data/revoked.db", "keys.yaml"));
    until("the candidate is refused", || gateway.metric("edgeward_config_current", &[]) == 0.0);
    let (here, away) = (gateway.folder().path().join("data/revoked.db"), gateway.folder().path().join("away.db"));
    std::fs::rename(&here, &away).unwrap();
    until("the failure is told", || gateway.metric("edgeward_revocations_failing", &[]) == 1.0);
    assert_eq!(client::get(gateway.admin(), "/readyz", &[]).json()["status"], "degraded");
    assert_eq!(outcome(&ask(&gateway, &token)), revoked());
    std::fs::rename(&away, &here).unwrap();
    until("it is followed again", || gateway.metric("edgeward_revocations_failing", &[]) == 0.0);
    assert_eq!(outcome(&ask(&gateway, &token)), revoked());
}
