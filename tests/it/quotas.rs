//! Quotas on the running gateway: what ends it, what it ends on, and what operators see of it.

use std::process::Stdio;
use std::time::{Duration, SystemTime};

use edgeward::authenticators::key_format;
use edgeward::live::api_keys::KeyHash;
use serde_json::{Value, json};

use crate::harness::client::{self, Answer};
use crate::harness::gateway::{Folder, Gateway, command};
use crate::harness::until;

const KEY_ID: &str = "acme00";

fn key() -> String {
    key_format::compose("ck_test_", KEY_ID, &[7; 32]).to_string()
}

/// A folder with the key of acme, which has the plan gold.
fn folder() -> Folder {
    let folder = Folder::new();
    let hash: String = KeyHash::of(&key()).0.iter().map(|byte| format!("{byte:02x}")).collect();
    folder.write("keys.yaml", format!("keys:\n  - {{id: {KEY_ID}, sha256: {hash}, consumer: acme, plan: gold}}\n"));
    folder
}

fn config(limits: &str) -> String {
    format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]\nadmin: {{address: \"127.0.0.1:0\"}}\nupstreams: {{demo: {{builtin: echo}}}}\n\
         authenticators: {{partners: {{api_key: {{prefix: ck_test_, keys: {{file: keys.yaml}}}}}}}}\n\
         limits: {{{limits}}}\nplans: {{gold: {{limits: [monthly]}}}}\n\
         routes:\n  - {{name: orders, path: /orders, upstream: demo, policy: {{authenticate: [partners], limits: [daily]}}}}\n  \
         - {{name: reports, path: /reports, upstream: demo, policy: {{authenticate: [partners]}}, cost: 5}}\n"
    )
}

const LIMITS: &str = "daily: {per: [route, consumer], quota: 10/day}, monthly: {per: consumer, quota: 100/month}";

fn ask(gateway: &Gateway, target: &str) -> Answer {
    gateway.get(target, &[("X-API-Key", &key())])
}

/// How many of so many requests are answered 200.
fn admitted(gateway: &Gateway, target: &str, count: usize) -> usize {
    (0..count).filter(|_| ask(gateway, target).status == 200).count()
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

/// A test that is about one day waits for the next rather than meet its beginning.
fn away_from_midnight() {
    let left = 86_400 - now().as_secs() % 86_400;
    if left < 60 {
        std::thread::sleep(Duration::from_secs(left + 1));
    }
}

/// What `edgeward keys show` says, as text or JSON.
fn show(folder: &Folder, format: &[&str]) -> String {
    let arguments = [&["keys", "show", KEY_ID, "-c", "edgeward.yaml"], format].concat();
    let shown = command(&arguments).current_dir(folder.path()).stderr(Stdio::piped()).output().unwrap();
    assert!(shown.status.success(), "{shown:?}");
    String::from_utf8(shown.stdout).unwrap()
}

/// The quotas that `edgeward keys show` lists: name and units used.
fn written(folder: &Folder) -> Vec<(String, u64)> {
    let shown: Value = serde_json::from_str(&show(folder, &["--json"])).unwrap();
    let quotas = shown["quotas"].as_array().unwrap();
    quotas.iter().map(|quota| (quota["limit"].as_str().unwrap().to_owned(), quota["used"].as_u64().unwrap())).collect()
}

fn left(daily: u64, monthly: u64) -> Vec<(String, u64)> {
    vec![("daily".to_owned(), daily), ("monthly".to_owned(), monthly)]
}

#[test]
fn a_quota_that_is_used_up_says_truly_when_to_come_back_and_survives_a_stop_and_a_kill() {
    away_from_midnight();
    let mut gateway = Gateway::start_in(folder(), &config(LIMITS));
    assert_eq!(admitted(&gateway, "/orders", 4), 4);
    gateway.signal("TERM");
    assert!(gateway.wait().success());
    let gateway = Gateway::start_in(gateway.kill(), &config(LIMITS));
    assert_eq!(written(gateway.folder()), left(4, 4), "written down at the end of the process");
    assert_eq!(admitted(&gateway, "/orders", 3), 3);
    until("the charges are written down", || written(gateway.folder()) == left(7, 7));
    let gateway = Gateway::start_in(gateway.kill(), &config(LIMITS));
    assert_eq!(admitted(&gateway, "/orders", 9), 3);

    let refused = ask(&gateway, "/orders");
    let midnight = 86_400 - now().as_secs() % 86_400;
    assert_eq!((refused.status, refused.code()), (429, "quota_exceeded".to_owned()));
    let retry: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((midnight..=midnight + 5).contains(&retry), "{retry}, {midnight} seconds before midnight");
    assert_eq!(refused.header("x-ratelimit-remaining"), Some("0"));
    // The plan holds wherever the caller goes, by the cost of the route; what the day refused took nothing of it.
    assert_eq!(admitted(&gateway, "/reports", 30), 18);
    assert_eq!(ask(&gateway, "/reports").code(), "quota_exceeded");
}

#[test]
fn operators_see_what_is_left() {
    away_from_midnight();
    let limits = "daily: {per: [route, consumer], quota: 10/day}, monthly: {per: consumer, quota: 100/month}, \
                  soft: {per: credential, quota: 1000/30d, mode: shadow}, place: {per: client_ip, quota: 9/day}, \
                  burst: {per: consumer, rate: 50/s}";
    let text = config(limits).replace("limits: [daily]", "limits: [daily, soft, place, burst]");
    let gateway = Gateway::start_in(folder(), &text);
    assert_eq!(admitted(&gateway, "/orders", 4), 4);

    let api = |query: &str| client::get(gateway.admin(), &format!("/api/v1/limits{query}"), &[]);
    let all = api("").json();
    let row = |name: &str| all["limits"].as_array().unwrap().iter().find(|limit| limit["limit"] == name).unwrap().clone();
    let daily = json!({"limit": "daily", "per": ["route", "consumer"], "kind": "quota", "terms": "10/day", "mode": "enforce", "store": "local", "keys": 1});
    assert_eq!(row("daily"), daily);
    assert_eq!(
        (row("soft")["mode"].clone(), row("soft")["terms"].clone(), row("soft")["keys"].clone()),
        (json!("shadow"), json!("1000/30d"), json!(1))
    );
    assert_eq!(
        (row("burst")["kind"].clone(), row("burst")["terms"].clone(), row("burst")["algorithm"].clone()),
        (json!("rate"), json!("50/s"), json!("sliding_window"))
    );
    let of_acme = api("?limit=daily&consumer=acme&route=orders").json();
    assert_eq!((of_acme["used"].clone(), of_acme["left"].clone()), (json!(4), json!(6)));
    assert!((0.0..=86_400.0).contains(&of_acme["reset_seconds"].as_f64().unwrap()));
    assert_eq!(api("?limit=monthly&consumer=acm%65").json()["used"], 4);
    assert_eq!(api("?limit=place&client_ip=127.0.0.1").json()["used"], 4);
    let credential: String = KeyHash::of(&key()).0.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(api(&format!("?limit=soft&credential={credential}")).json()["used"], 4);
    assert_eq!(api("?limit=monthly&consumer=nobody").json()["used"], 0);
    for (query, status, error) in [
        ("?limit=hourly", 404, "there is no such limit"),
        ("?limit=daily&consumer=acme", 400, "`route` is missing, or cannot be one"),
        ("?limit=daily&subject=acme", 400, "the limit does not count by `subject`"),
        ("?limit=place&client_ip=here", 400, "`client_ip` is missing, or cannot be one"),
        ("?limit=soft&credential=abc", 400, "`credential` is missing, or cannot be one"),
        ("?limit=burst&consumer=acme", 400, "the limit is no quota"),
        ("?consumer=acme", 400, "`limit` is missing, to which `consumer` belongs"),
        ("?limit", 400, "the query cannot be read"),
    ] {
        let answer = api(query);
        assert_eq!((answer.status, answer.json()["error"].as_str().unwrap()), (status, error), "{query}");
    }

    until("the charges are written down", || written_of(&gateway, "monthly") == Some(4));
    let text = show(gateway.folder(), &[]);
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("quota:").map(str::trim)).collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert_eq!(lines[0], "place 9/day: counted by client_ip");
    assert!(lines[1].starts_with("daily 10/day on orders: 4 used, 6 left until ") && lines[1].ends_with("T00:00:00Z"), "{text}");
    assert!(lines[2].starts_with("soft 1000/30d: 4 used, 996 left until ") && lines[2].ends_with("Z (shadow)"), "{text}");
    assert!(lines[3].starts_with("monthly 100/month: 4 used, 96 left until ") && lines[3].ends_with("-01T00:00:00Z"), "{text}");
}

/// What `edgeward keys show` says was used of one quota.
fn written_of(gateway: &Gateway, limit: &str) -> Option<u64> {
    let shown: Value = serde_json::from_str(&show(gateway.folder(), &["--json"])).unwrap();
    shown["quotas"].as_array()?.iter().find(|quota| quota["limit"] == limit)?["used"].as_u64()
}

#[test]
fn what_limits_count_is_shown_to_those_who_may_know() {
    let text = config(LIMITS).replace("admin: {address: \"127.0.0.1:0\"}", "admin: {address: \"127.0.0.1:0\", token: {env: TOKEN}}");
    let gateway = Gateway::start_with(folder(), &text, &[("TOKEN", "sesame-sesame-sesame")]);
    let refused = client::get(gateway.admin(), "/api/v1/limits", &[]);
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer realm=\"edgeward admin\"")));
    let admitted = client::get(gateway.admin(), "/api/v1/limits", &[("Authorization", "Bearer sesame-sesame-sesame")]);
    assert_eq!((admitted.status, admitted.header("content-type")), (200, Some("application/json")));
    assert_eq!(
        client::ask(gateway.admin(), client::request("POST", "/api/v1/limits", &[("Authorization", "Bearer sesame-sesame-sesame")], b""))
            .status,
        405
    );
}

#[test]
fn what_was_used_stands_when_the_quota_changes() {
    away_from_midnight();
    let gateway = Gateway::start_in(folder(), &config(LIMITS));
    assert_eq!(admitted(&gateway, "/orders", 6), 6);
    for (generation, terms, expected) in [(2.0, "8/day", 2), (3.0, "9/30d", 1), (4.0, "20/month", 11)] {
        gateway.rewrite(&config(&LIMITS.replace("10/day", terms)));
        until("the change is applied", || gateway.metric("edgeward_config_generation", &[]) == generation);
        assert_eq!(admitted(&gateway, "/orders", 15), expected, "{terms}");
    }
}

#[test]
fn two_gateways_on_one_database_add_up() {
    away_from_midnight();
    let one = Gateway::start_in(folder(), &config(LIMITS));
    let other = folder();
    let database = one.folder().path().join("data/quotas.db");
    let shared = config(LIMITS) + &format!("quotas: {{database: \"{}\"}}\n", database.display());
    let two = Gateway::start_in(other, &shared);
    assert_eq!(admitted(&one, "/orders", 4), 4);
    assert_eq!(admitted(&two, "/orders", 5), 5);
    until("both have written", || written(one.folder()) == left(9, 9));
    // Each hears of the other when it writes itself.
    assert_eq!(admitted(&two, "/orders", 1), 1);
    until("it has written", || written(one.folder()) == left(10, 10));
    until("it has heard", || ask(&two, "/orders").status == 429);
}

#[test]
fn a_database_that_cannot_be_used_stops_the_start_and_the_reload_and_not_the_counting() {
    away_from_midnight();
    let damaged = folder();
    damaged.write("data/quotas.db", "no database".repeat(100));
    damaged.write("edgeward.yaml", config(LIMITS));
    let start = command(&["run", "-c", "edgeward.yaml"]).current_dir(damaged.path()).output().unwrap();
    let said = String::from_utf8(start.stderr).unwrap();
    assert!(!start.status.success() && said.contains("quotas.database: ") && said.contains("quotas.db: file is not a database"), "{said}");
    let check = command(&["check", "-c", "edgeward.yaml"]).current_dir(folder().path()).output().unwrap();
    assert_eq!(check.status.code(), Some(2), "checking makes and needs no database, but a configuration");

    let gateway = Gateway::start_in(folder(), &config(LIMITS));
    gateway.rewrite(&(config(LIMITS) + "quotas: {database: keys.yaml}\n"));
    until("the candidate is refused", || gateway.metric("edgeward_config_current", &[]) == 0.0);
    assert_eq!(admitted(&gateway, "/orders", 3), 3);

    let (here, away) = (gateway.folder().path().join("data/quotas.db"), gateway.folder().path().join("away.db"));
    std::fs::rename(&here, &away).unwrap();
    until("the failure is told", || gateway.metric("edgeward_quotas_failing", &[]) == 1.0);
    assert_eq!(client::get(gateway.admin(), "/readyz", &[]).json()["status"], "degraded");
    assert_eq!(admitted(&gateway, "/orders", 9), 7);
    std::fs::rename(&away, &here).unwrap();
    gateway.rewrite(&config(LIMITS));
    until("it is written down again", || gateway.metric("edgeward_quotas_failing", &[]) == 0.0);
    until("nothing was lost", || written(gateway.folder()) == left(10, 10));
}
