//! Revocation on a fleet: nodes that know what is revoked by a Redis that is killed, emptied, damaged, or not there when they start.

use std::io::Write;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use edgeward::jose::Algorithm;
use edgeward::live::revocations::{Order, Revocation, Source};
use edgeward::net::redis::Server;
use edgeward::secret::Secret;
use serde_json::{Value, json};

use crate::harness::client::{self, Answer};
use crate::harness::gateway::{Folder, Gateway, command};
use crate::harness::issuer::Issuer;
use crate::harness::redis::Redis;
use crate::harness::until;

fn config(issuer: &Issuer, redis: &Redis, more: &str) -> String {
    format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
redis: {{url: "{}"}}
upstreams: {{demo: {{builtin: echo}}}}
revocation: {{redis: fleet{more}}}
authenticators:
  customers: {{jwt: {{issuer: "{}", audiences: [orders], keys: {{jwks_url: "{}"}}}}}}
routes:
  - {{name: orders, path: "/orders", upstream: demo, policy: {{authenticate: customers}}}}
  - {{name: open, path: "/open", upstream: demo, policy: {{authenticate: public}}}}
"#,
        redis.url(),
        issuer.url(),
        issuer.jwks_url()
    )
}

fn node_in(folder: Folder, issuer: &Issuer, redis: &Redis) -> Gateway {
    let node = Gateway::start_in(folder, &config(issuer, redis, ""));
    until("the issuer's keys are there", || ask(&node, &issuer.token("orders", json!({"sub": "probe"}))).status == 200);
    node
}

fn node(issuer: &Issuer, redis: &Redis) -> Gateway {
    node_in(Folder::new(), issuer, redis)
}

fn ask(node: &Gateway, token: &str) -> Answer {
    node.get("/orders", &[("Authorization", &format!("Bearer {token}"))])
}

/// The status and the code of the answer.
fn outcome(node: &Gateway, token: &str) -> (u16, String) {
    let answer = ask(node, token);
    (answer.status, if answer.status == 200 { "ok".to_owned() } else { answer.code() })
}

fn ok() -> (u16, String) {
    (200, "ok".to_owned())
}

fn revoked() -> (u16, String) {
    (401, "credential_revoked".to_owned())
}

fn api(node: &Gateway, method: &str, body: Value) -> Answer {
    let headers = [("Content-Type", "application/json")];
    client::ask(node.admin(), client::request(method, "/api/v1/revocations", &headers, body.to_string().as_bytes()))
}

#[track_caller]
fn revoke(node: &Gateway, body: Value) {
    let answer = api(node, "POST", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn by_command(node: &Gateway, arguments: &[&str], input: &str) -> Output {
    let all = [&["revoke", "-c", "edgeward.yaml"], arguments].concat();
    let mut command = command(&all);
    let piped = command.current_dir(node.folder().path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What is so within a second. The poll takes a quarter of one; the rest is for a machine that is busy with other tests.
#[track_caller]
fn within_a_second(what: &str, so: impl FnMut() -> bool) {
    let began = Instant::now();
    until(what, so);
    assert!(began.elapsed() < Duration::from_secs(1), "{what}: after {:?}", began.elapsed());
}

fn readiness(node: &Gateway) -> (u16, String) {
    let answer = client::get(node.admin(), "/readyz", &[]);
    (answer.status, answer.json()["status"].as_str().unwrap().to_owned())
}

fn failing(node: &Gateway) -> bool {
    node.metric("edgeward_revocations_failing", &[]) == 1.0
}

#[test]
fn what_one_node_revokes_all_refuse_within_a_second_and_after_a_restart_until_one_takes_it_back() {
    let (issuer, redis) = (Issuer::start(Algorithm::Es256), Redis::start());
    let (one, other) = (node(&issuer, &redis), node(&issuer, &redis));
    let (bad, good) = (issuer.token("orders", json!({"jti": "1"})), issuer.token("orders", json!({"jti": "2"})));
    for token in [&bad, &good] {
        assert_eq!((outcome(&one, token), outcome(&other, token)), (ok(), ok()));
    }
    revoke(&one, json!({"token": bad}));
    assert_eq!(outcome(&one, &bad), revoked(), "at once");
    within_a_second("the other node refuses it", || outcome(&other, &bad) == revoked());
    assert_eq!((outcome(&one, &good), outcome(&other, &good)), (ok(), ok()));

    // Beside it another one, by the command line, of one issuer alone, and taken back on the other node.
    let output = by_command(&one, &["--subject", "alice", "--issuer", &issuer.url(), "--before", "now"], "");
    assert!(output.status.success(), "{}", said(&output));
    for node in [&one, &other] {
        within_a_second("the subject is refused", || outcome(node, &good) == revoked());
    }
    let listed = String::from_utf8(by_command(&other, &["--list"], "").stdout).unwrap();
    assert!(listed.lines().count() == 2 && listed.contains("token_sha256") && !listed.contains(&bad[..20]), "{listed}");
    assert_eq!(client::get(other.admin(), "/api/v1/revocations", &[]).json()["count"], 2);

    let one = node_in(one.kill(), &issuer, &redis);
    assert_eq!((outcome(&one, &bad), outcome(&one, &good)), (revoked(), revoked()));
    let alice = json!({"subject": "alice", "issuer": issuer.url()});
    assert_eq!(api(&other, "DELETE", alice.clone()).status, 200);
    assert_eq!(outcome(&other, &good), ok(), "at once");
    within_a_second("it is good again on the other node", || outcome(&one, &good) == ok());
    assert_eq!(api(&one, "DELETE", alice).status, 404);
    assert!(!by_command(&one, &["--undo", "--subject", "alice", "--issuer", &issuer.url()], "").status.success());
    assert_eq!((outcome(&one, &bad), outcome(&other, &bad)), (revoked(), revoked()));

    // Narrower than before, which only the last word can make it.
    revoke(&one, json!({"subject": "alice"}));
    within_a_second("the subject is refused", || outcome(&other, &good) == revoked());
    assert_eq!(api(&one, "DELETE", json!({"subject": "alice"})).status, 200);
    revoke(&one, json!({"subject": "alice", "before": "2020-01-01T00:00:00Z"}));
    within_a_second("no token is as old as that", || outcome(&other, &good) == ok());
    assert!(redis.keys().iter().all(|(key, _)| key.starts_with(b"{edgeward}:")), "one slot: {:?}", redis.keys());
}

#[test]
fn while_redis_is_away_what_is_known_holds_and_nothing_new_is_half_kept() {
    let (issuer, mut redis) = (Issuer::start(Algorithm::Es256), Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]));
    let (one, other) = (node(&issuer, &redis), node(&issuer, &redis));
    let (bad, good) = (issuer.token("orders", json!({"jti": "1"})), issuer.token("orders", json!({"jti": "2"})));
    revoke(&one, json!({"token": bad}));
    within_a_second("the other node refuses it", || outcome(&other, &bad) == revoked());
    redis.kill();
    for node in [&one, &other] {
        until("the failure is told", || failing(node));
        assert_eq!(readiness(node), (200, "degraded".to_owned()));
        assert_eq!((outcome(node, &bad), outcome(node, &good)), (revoked(), ok()));
    }
    let refused = api(&one, "POST", json!({"token": good}));
    assert!(refused.status == 503 && refused.text().contains("Redis"), "{}", refused.text());
    let output = by_command(&one, &["--token", "-"], &good);
    assert!(!output.status.success() && said(&output).contains("Redis"), "{}", said(&output));
    assert_eq!(api(&one, "DELETE", json!({"token": bad})).status, 503);
    assert_eq!((outcome(&one, &bad), outcome(&one, &good)), (revoked(), ok()));

    // A node that knows nothing admits nobody, says why, and is not ready; what is open to anyone is.
    let late = Gateway::launch(Folder::new(), &config(&issuer, &redis, ""), &[]);
    until("the issuer's keys are there", || late.metric("edgeward_jwks_keys", &[]) == 1.0);
    assert_eq!(outcome(&late, &good), (503, "dependency_unavailable".to_owned()));
    assert_eq!((late.get("/open", &[]).status, readiness(&late)), (200, (503, "starting".to_owned())));

    redis.restart();
    until("the late node has read them", || outcome(&late, &good) == ok());
    assert_eq!((outcome(&late, &bad), readiness(&late).0), (revoked(), 200));
    until("they are followed again", || !failing(&one) && !failing(&other));
    revoke(&late, json!({"token": good}));
    for node in [&one, &other] {
        within_a_second("the nodes follow again", || outcome(node, &good) == revoked());
    }
}

#[test]
fn an_emptied_redis_takes_nothing_back_and_is_told_again() {
    let (issuer, mut redis) = (Issuer::start(Algorithm::Es256), Redis::start());
    let (one, other) = (node(&issuer, &redis), node(&issuer, &redis));
    let tokens = ["1", "2", "3"].map(|jti| issuer.token("orders", json!({"jti": jti})));
    revoke(&one, json!({"token": tokens[0]}));
    revoke(&one, json!({"jti": "2"}));
    within_a_second("the other node refuses both", || outcome(&other, &tokens[1]) == revoked());
    let outcomes = |node: &Gateway| [0, 1, 2].map(|at| outcome(node, &tokens[at]));
    let held = || redis.ask::<usize>(&["HLEN", "{edgeward}:revocation:fleet:entries"]);
    redis.tell(&["FLUSHALL"]);
    // The first to come afterwards does not hide that the others are gone.
    let output = by_command(&one, &["--jti", "elsewhere"], "");
    assert!(output.status.success(), "{}", said(&output));
    until("Redis is told again", || held() == 3);
    assert_eq!((outcomes(&one), outcomes(&other)), ([revoked(), revoked(), ok()], [revoked(), revoked(), ok()]));
    let fresh = node(&issuer, &redis);
    assert_eq!(outcomes(&fresh), outcomes(&one));

    // One that was replaced by an empty one meanwhile: it keeps nothing on disk.
    redis.kill();
    until("the failure is told", || failing(&one) && failing(&other) && failing(&fresh));
    redis.restart();
    let held = || redis.ask::<usize>(&["HLEN", "{edgeward}:revocation:fleet:entries"]);
    until("Redis is told again", || held() == 3);
    // Who comes back later than that tells it what was taken back meanwhile: a refusal too many, and never one too few.
    until("they are followed again", || !failing(&one) && !failing(&other) && !failing(&fresh));
    assert_eq!(outcomes(&node(&issuer, &redis)), outcomes(&one));
    assert_eq!(api(&other, "DELETE", json!({"jti": "2"})).status, 200);
    within_a_second("what is taken back afterwards is", || outcome(&one, &tokens[1]) == ok());
}

#[test]
fn a_redis_that_lost_a_part_is_followed_by_nobody() {
    let (issuer, redis) = (Issuer::start(Algorithm::Es256), Redis::start());
    let one = node(&issuer, &redis);
    let (bad, good) = (issuer.token("orders", json!({"jti": "1"})), issuer.token("orders", json!({"jti": "2"})));
    revoke(&one, json!({"token": bad}));
    let keys = redis.keys().into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).filter(|key| key.contains(":revocation:"));
    let keys: Vec<_> = keys.collect();
    for part in ["entries", "state", "changes"] {
        assert!(keys.iter().any(|key| key.ends_with(part)), "{keys:?}");
        redis.tell(&["DEL", &format!("{{edgeward}}:revocation:fleet:{part}")]);
        until("the failure is told", || failing(&one));
        assert_eq!((outcome(&one, &bad), api(&one, "POST", json!({"token": good})).status), (revoked(), 503), "{part}");
        let fresh = Gateway::launch(Folder::new(), &config(&issuer, &redis, ""), &[]);
        until("the issuer's keys are there", || fresh.metric("edgeward_jwks_keys", &[]) == 1.0);
        assert_eq!(outcome(&fresh, &good), (503, "dependency_unavailable".to_owned()), "{part}");
        // Without the rest it is an empty one, and the node that knows makes it whole.
        keys.iter().for_each(|key| redis.tell(&["DEL", key]));
        until("it is followed again", || !failing(&one) && outcome(&fresh, &bad) == revoked());
    }
    redis.tell(&["HSET", "{edgeward}:revocation:fleet:entries", "planet:0:earth", "  7"]);
    redis.tell(&["ZADD", "{edgeward}:revocation:fleet:changes", "99", "planet:0:earth"]);
    redis.tell(&["HSET", "{edgeward}:revocation:fleet:state", "revision", "99"]);
    until("what nobody writes is not followed", || failing(&one));
    assert_eq!(outcome(&one, &bad), revoked());
}

#[test]
fn a_reload_that_would_admit_nobody_is_refused() {
    let (issuer, mut redis) = (Issuer::start(Algorithm::Es256), Redis::start());
    let with = config(&issuer, &redis, "");
    let without = with.replace("revocation: {redis: fleet}", "");
    let node = Gateway::start(&without);
    let token = issuer.token("orders", json!({}));
    until("the issuer's keys are there", || outcome(&node, &token) == ok());
    redis.kill();
    node.rewrite(&with);
    until("the candidate is refused", || node.metric("edgeward_config_current", &[]) == 0.0);
    assert_eq!(outcome(&node, &token), ok());
    redis.restart();
    node.signal("HUP");
    until("it is applied", || node.metric("edgeward_config_generation", &[]) == 2.0);
    assert_eq!(outcome(&node, &token), ok(), "read before it serves");
    revoke(&node, json!({"subject": "alice"}));
    assert_eq!(outcome(&node, &token), revoked());
}

#[test]
fn beyond_the_bound_whoever_revokes_is_told_and_none_is_dropped() {
    let (issuer, redis) = (Issuer::start(Algorithm::Es256), Redis::start());
    let node = Gateway::start(&config(&issuer, &redis, ", entries: 10"));
    let revoke = |jti: &str| api(&node, "POST", json!({"jti": jti}));
    for jti in 0..10 {
        assert_eq!(revoke(&jti.to_string()).status, 200);
    }
    let refused = revoke("one too many");
    assert!(refused.status == 507 && refused.text().contains("`revocation.entries`"), "{}", refused.text());
    let output = by_command(&node, &["--jti", "one too many"], "");
    assert!(!output.status.success() && said(&output).contains("`revocation.entries`"), "{}", said(&output));
    assert_eq!(revoke("3").status, 200, "it is there");
    let metric = |name: &str| node.metric(name, &["fleet"]);
    assert_eq!((metric("edgeward_revocations"), metric("edgeward_revocations_limit")), (10.0, 10.0));
    until("the log warns", || node.log().iter().any(|line| line["level"] == "WARN" && line.to_string().contains("little room left")));
    assert_eq!(api(&node, "DELETE", json!({"jti": "3"})).status, 200);
    assert_eq!(revoke("one too many").status, 200, "there is room again");
}

#[test]
fn what_is_over_is_forgotten_in_redis_too() {
    let redis = Redis::start();
    let may = "~{edgeward}:* +evalsha +eval +get +set +time +select +hget +hmget +hset +hdel +hlen +sadd +srem +scard +zadd +zrem +zcard +zrangebyscore";
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/revocation.md")).unwrap();
    assert!(page.contains(may), "what its user may do is what the page says");
    redis.tell(&[&["ACL", "SETUSER", "gate", "on", ">secret word"][..], &may.split(' ').collect::<Vec<_>>()].concat());
    let (user, password) = (Some("gate".into()), Some(Secret::new("secret word".into())));
    let server = Server { host: "127.0.0.1".into(), port: redis.port(), user, password, database: 0, tls: None };
    let source = Source::Redis { server, name: "fleet".into() };
    let order = |json: Value| serde_json::from_value::<Order>(json).unwrap().revocation(1).unwrap();
    let over = Revocation { expires: Some(1_000), ..order(json!({"jti": "over"})) };
    source.add(&over, 1).unwrap();
    source.add(&order(json!({"subject": "alice"})), 1).unwrap();
    let revoked = source.read_all().unwrap();
    assert_eq!((revoked.len(), &*revoked[0].value), (1, &b"alice"[..]));
    assert!(source.remove(&order(json!({"subject": "alice"}))).unwrap());
    assert!(source.read_all().unwrap().is_empty());
    // That it was taken back is told for a while, and then forgotten as well.
    let told: f64 = redis.ask(&["ZSCORE", "{edgeward}:revocation:fleet:expiries", "subject:0:alice"]);
    assert!(told > 1_790_000_000.0);
    redis.tell(&["ZADD", "{edgeward}:revocation:fleet:expiries", "1000", "subject:0:alice"]);
    source.add(&order(json!({"subject": "bob"})), 1).unwrap();
    for (command, part) in [("HLEN", "entries"), ("SCARD", "taken_back"), ("ZCARD", "changes")] {
        let left: usize = redis.ask(&[command, &format!("{{edgeward}}:revocation:fleet:{part}")]);
        assert_eq!(left, usize::from(part != "taken_back"), "{part}");
    }
}

#[test]
fn more_than_one_page_is_read_whole_and_written_anew_whole() {
    let (issuer, redis) = (Issuer::start(Algorithm::Es256), Redis::start());
    let one = node(&issuer, &redis);
    let all: Vec<Value> = (0..1_100).map(|jti| json!({"jti": jti.to_string()})).collect();
    let mut connection = client::Connection::open(one.admin());
    for body in &all {
        let request = client::request("POST", "/api/v1/revocations", &[("Content-Type", "application/json")], body.to_string().as_bytes());
        connection.send(request);
        assert_eq!(connection.answer(false).status, 200);
    }
    let other = node(&issuer, &redis);
    assert_eq!((one.metric("edgeward_revocations", &[]), other.metric("edgeward_revocations", &[])), (1_100.0, 1_100.0));
    let last = issuer.token("orders", json!({"jti": "1099"}));
    assert_eq!(outcome(&other, &last), revoked());
    redis.tell(&["FLUSHALL"]);
    until("Redis is told again", || redis.ask::<usize>(&["HLEN", "{edgeward}:revocation:fleet:entries"]) == 1_100);
    assert_eq!(outcome(&node(&issuer, &redis), &last), revoked());
}
