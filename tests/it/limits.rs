//! Limits on the running gateway: exact under load, all or none, and given back on every way a request can end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use edgeward::authenticators::key_format;
use edgeward::jose::Algorithm;
use edgeward::live::api_keys::KeyHash;
use serde_json::json;

use crate::harness::certificates::Authority;
use crate::harness::client::{Answer, Connection, Http2, Tls, Verdict, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::issuer::Issuer;
use crate::harness::origin::{Origin, Reply, answer};
use crate::harness::until;

/// Windows stand on the clock of the process, so that none of an hour ends within a test.
fn config(limits: &str, policies: &str) -> String {
    let mut text = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]\nadmin: {{address: \"127.0.0.1:0\"}}\nserver: {{trusted_proxies: [127.0.0.1]}}\n\
         upstreams: {{demo: {{builtin: echo}}, gone: {{servers: [\"127.0.0.1:1\"]}}}}\nlimits: {{{limits}}}\nroutes:\n"
    );
    for line in policies.lines() {
        let (name, rest) = line.trim().split_once(": ").unwrap();
        text += &format!("  - {{name: {name}, path: /{name}, upstream: demo, {rest}}}\n");
    }
    text
}

fn number(answer: &Answer, header: &str) -> u64 {
    answer.header(header).unwrap_or_else(|| panic!("no {header}: {answer:?}")).parse().unwrap()
}

/// The statuses of so many requests, one after the other.
fn statuses(gateway: &Gateway, target: &str, headers: &[(&str, &str)], count: usize) -> Vec<u16> {
    (0..count).map(|_| gateway.get(target, headers).status).collect()
}

/// How many of so many requests are answered 200.
fn admitted(gateway: &Gateway, target: &str, headers: &[(&str, &str)], count: usize) -> usize {
    statuses(gateway, target, headers, count).into_iter().filter(|status| *status == 200).count()
}

#[test]
fn a_limit_admits_exactly_its_number_when_two_hundred_ask_at_once() {
    for algorithm in ["fixed_window", "sliding_window", "token_bucket"] {
        let limit = format!("all: {{per: host, rate: 100/h, algorithm: {algorithm}}}");
        let gateway = Gateway::start(&config(&limit, "all: policy: {authenticate: public, limits: [all]}"));
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..200).map(|_| scope.spawn(|| gateway.get("/all", &[]))).collect();
            asking.into_iter().map(|asking| asking.join().unwrap()).collect()
        });
        let (good, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
        assert_eq!(good.len(), 100, "{algorithm}");
        let left: BTreeSet<u64> = good.iter().map(|answer| number(answer, "x-ratelimit-remaining")).collect();
        // Each says what was left after itself; a bucket of 100 per hour may have filled by less than one meanwhile.
        assert_eq!(left, (0..100).collect(), "{algorithm}");
        for answer in refused {
            assert_eq!((answer.status, &*answer.code()), (429, "rate_limited"));
            assert_eq!((number(answer, "x-ratelimit-limit"), number(answer, "x-ratelimit-remaining")), (100, 0));
            assert!((1..=7_200).contains(&number(answer, "retry-after")), "{answer:?}");
            assert!(answer.header("ratelimit").unwrap().starts_with("\"all\";r=0;t="));
            assert_eq!(answer.header("ratelimit-policy"), Some("\"all\";q=100;w=3600"));
        }
        assert_eq!(gateway.metric("edgeward_limit_refusals_total", &["limit=\"all\"", "mode=\"enforce\""]), 100.0);
    }
}

/// The same with a second listener, over TLS, and the authority to trust there.
fn with_tls(yaml: &str) -> (Gateway, String) {
    let authority = Authority::new("limits");
    let certificate = authority.issue(&["gw.test"]);
    let folder = Folder::new();
    folder.write("chain.pem", &certificate.chain);
    folder.write("key.pem", &certificate.key);
    let yaml = yaml.replace(
        "listeners: [{address: \"127.0.0.1:0\"}]",
        "listeners: [{address: \"127.0.0.1:0\"}, {address: \"127.0.0.1:0\", tls: {certificates: [{chain: chain.pem, key: {file: key.pem}}]}}]",
    );
    (Gateway::start_in(folder, &yaml), authority.pem())
}

fn get(path: &str) -> [(&str, &str); 4] {
    [(":method", "GET"), (":scheme", "https"), (":path", path), (":authority", "gw.test")]
}

#[test]
fn streams_of_one_http2_connection_count_like_connections() {
    let yaml = config("all: {per: client_ip, rate: 60/h}", "all: policy: {authenticate: public, limits: [all]}");
    let (gateway, ca) = with_tls(&yaml);
    assert_eq!(admitted(&gateway, "/all", &[], 20), 20);
    let verdicts = Http2::open(gateway.addresses()[1], &Tls { ca: &ca, server_name: "gw.test", client: None }).ask_often(&get("/all"), 100);
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Answered(200)).count(), 40);
    assert!(!verdicts.contains(&Verdict::Reset));
    assert_eq!(gateway.get("/all", &[]).status, 429);
}

#[test]
fn what_one_limit_refuses_is_counted_by_none_and_the_headers_speak_of_the_nearest() {
    let gateway = Gateway::start(&config(
        "few: {per: host, rate: 3/h}, many: {per: client_ip, rate: 10/h}, daily: {per: client_ip, quota: 12/day}, once: {per: route, quota: 1/day}",
        "both: policy: {authenticate: public, limits: [many, few, daily]}\n\
         many: policy: {authenticate: public, limits: [many, daily]}\n\
         dear: cost: 4, policy: {authenticate: public, limits: [daily]}\n\
         once: policy: {authenticate: public, limits: [once]}",
    ));
    assert_eq!(statuses(&gateway, "/both", &[], 8), [200, 200, 200, 429, 429, 429, 429, 429]);
    let next = gateway.get("/many", &[]);
    assert_eq!((next.status, number(&next, "x-ratelimit-limit"), number(&next, "x-ratelimit-remaining")), (200, 10, 6));
    assert_eq!(admitted(&gateway, "/many", &[], 12), 6);
    // Ten of twelve are used, and this would take four.
    let dear = gateway.get("/dear", &[]);
    assert_eq!((dear.status, dear.code().as_str()), (429, "quota_exceeded"));
    assert_eq!(number(&dear, "x-ratelimit-remaining"), 2);
    let last = gateway.get("/once", &[]);
    assert_eq!((last.status, last.header("ratelimit-policy")), (200, Some("\"once\";q=1;w=86400")));
    let over = gateway.get("/once", &[]);
    assert_eq!(over.code(), "quota_exceeded");
    assert!((1..=86_400).contains(&number(&over, "retry-after")));
    until("the log names it", || gateway.access_log().iter().any(|line| line["code"] == "quota_exceeded" && line["limit"] == "once"));
}

#[test]
fn a_caller_that_waits_as_it_was_told_is_admitted() {
    for algorithm in ["fixed_window", "sliding_window", "token_bucket"] {
        let limit = format!("all: {{per: host, rate: 3/2s, algorithm: {algorithm}}}");
        let gateway = Gateway::start(&config(&limit, "all: policy: {authenticate: public, limits: [all]}"));
        let refused = std::iter::repeat_with(|| gateway.get("/all", &[])).take(20).find(|answer| answer.status == 429).unwrap();
        std::thread::sleep(Duration::from_secs(number(&refused, "retry-after")));
        assert_eq!(gateway.get("/all", &[]).status, 200, "{algorithm}");
    }
}

#[test]
fn a_shadow_refuses_nobody_and_tells_in_the_metrics_and_the_log() {
    let gateway =
        Gateway::start(&config("flood: {per: client_ip, rate: 2/h, mode: shadow}", "all: policy: {authenticate: public, limits: [flood]}"));
    let answers: Vec<_> = (0..5).map(|_| gateway.get("/all", &[])).collect();
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.header("x-ratelimit-limit").is_none()));
    assert_eq!(gateway.metric("edgeward_limit_refusals_total", &["limit=\"flood\"", "mode=\"shadow\""]), 3.0);
    let told = || gateway.access_log().iter().filter(|line| line["shadow_refusals"] == "flood").count();
    until("the log tells", || told() == 3);
}

/// A file of keys: consumer and plan; and the keys.
fn keys(of: &[(&str, Option<&str>)]) -> (String, Vec<String>) {
    let mut file = "keys:\n".to_owned();
    let mut keys = Vec::new();
    for (index, (consumer, plan)) in of.iter().enumerate() {
        let key = key_format::compose("ck_test_", &format!("{consumer}00"), &[index as u8; 32]).to_string();
        let hash: String = KeyHash::of(&key).0.iter().map(|byte| format!("{byte:02x}")).collect();
        let plan = plan.map_or(String::new(), |plan| format!(", plan: {plan}"));
        file += &format!("  - {{id: {consumer}00, sha256: {hash}, consumer: {consumer}{plan}}}\n");
        keys.push(key);
    }
    (file, keys)
}

#[test]
fn guessing_keys_is_slowed_and_hurts_nobody_at_another_address() {
    let (file, keys) = keys(&[("acme", None)]);
    let folder = Folder::new();
    folder.write("keys.yaml", file);
    let yaml = config(
        "guesses: {per: client_ip, rate: 3/h, on: refused}, flood: {per: client_ip, rate: 30/h}",
        "all: policy: {authenticate: partners, limits: [guesses, flood]}",
    ) + "authenticators: {partners: {api_key: {prefix: ck_test_, keys: {file: keys.yaml}}}}\n";
    let gateway = Gateway::start_in(folder, &yaml);
    let from = |address: &'static str, key: Option<&str>| {
        let mut headers = vec![("X-Forwarded-For", address)];
        headers.extend(key.map(|key| ("X-API-Key", key)));
        gateway.get("/all", &headers)
    };
    let (here, elsewhere) = ("192.0.2.1", "192.0.2.2");
    assert_eq!(from(here, Some(&keys[0])).status, 200);
    let guesses: Vec<_> = (0..6).map(|guess| from(here, Some(&format!("ck_test_guess_{guess}")))).collect();
    assert_eq!(guesses.iter().map(|answer| answer.status).collect::<Vec<_>>(), [401, 401, 401, 429, 429, 429]);
    assert!(number(&guesses[5], "retry-after") > 0);
    // A good key behind the same address waits as well, as nobody looks at it; who presents none is told what it was told before.
    assert_eq!(from(here, Some(&keys[0])).code(), "rate_limited");
    assert_eq!(from(here, None).code(), "credential_missing");
    let good = from(elsewhere, Some(&keys[0]));
    assert_eq!((good.status, number(&good, "x-ratelimit-limit")), (200, 30));
    assert_eq!(from(elsewhere, None).code(), "credential_missing");
}

#[test]
fn those_in_flight_are_counted_until_they_end_however_they_end() {
    let origin = Origin::scripted(|request| match request.target() {
        "/hold" => Reply::Silence(Duration::from_secs(60)),
        "/cut" => Reply::Silence(Duration::ZERO),
        _ => Reply::Bytes(answer(200, &[], "origin")),
    });
    let yaml = config(
        "few: {per: host, concurrency: 2}, one: {per: route, concurrency: 1}",
        "hold: policy: {authenticate: public, limits: [few]}\n\
         fast: policy: {authenticate: public, limits: [few]}\n\
         cut: policy: {authenticate: public, limits: [few, one]}\n\
         gone: policy: {authenticate: public, limits: [few, one]}\n\
         again: policy: {authenticate: public, limits: [one]}",
    );
    let yaml = yaml
        .replace("demo: {builtin: echo}", &format!("demo: {{servers: [\"{}\"]}}", origin.address))
        .replace("path: /gone, upstream: demo", "path: /gone, upstream: gone");
    let gateway = Gateway::start(&yaml);
    let holding: Vec<_> = (0..2)
        .map(|_| {
            let mut connection = Connection::open(gateway.address());
            connection.send(request("GET", "/hold", &[], b""));
            connection
        })
        .collect();
    until("both are held", || origin.requests().len() == 2);
    let third = gateway.get("/fast", &[]);
    assert_eq!((third.status, third.code().as_str(), third.header("ratelimit-policy")), (429, "rate_limited", Some("\"few\";q=2")));
    // They hang up in the middle of it.
    drop(holding);
    until("one is let in again", || gateway.get("/fast", &[]).status == 200);
    until("both have left", || gateway.get("/fast", &[]).header("x-ratelimit-remaining") == Some("1"));
    assert_eq!(statuses(&gateway, "/gone", &[], 4), [502; 4]);
    assert_eq!(statuses(&gateway, "/cut", &[], 4), [502; 4]);
    assert_eq!(gateway.get("/fast", &[]).header("x-ratelimit-remaining"), Some("1"));
    // Who asks one after the other is never two.
    assert_eq!(statuses(&gateway, "/again", &[], 50), [200; 50]);
}

#[test]
fn a_queue_lets_pass_one_after_the_other_in_order_and_who_hangs_up_leaves_it() {
    let origin = Origin::start();
    let yaml = config(
        "smooth: {per: route, rate: 4/s, algorithm: leaky_bucket, queue: 3, max_wait: 5s}, slow: {per: route, rate: 1/3s, algorithm: leaky_bucket, queue: 1, max_wait: 5s}",
        "smooth: policy: {authenticate: public, limits: [smooth]}\nslow: policy: {authenticate: public, limits: [slow]}",
    );
    let gateway = Gateway::start(&yaml.replace("demo: {builtin: echo}", &format!("demo: {{servers: [\"{}\"]}}", origin.address)));
    let began = Instant::now();
    let mut callers = Vec::new();
    for turn in 0..4 {
        let mut caller = Connection::open(gateway.address());
        caller.send(request("GET", &format!("/smooth?{turn}"), &[], b""));
        callers.push(caller);
        std::thread::sleep(Duration::from_millis(20));
    }
    let refused = gateway.get("/smooth?4", &[]);
    assert_eq!((refused.status, refused.code().as_str()), (429, "queue_full"));
    assert!(callers.iter_mut().all(|caller| caller.answer(false).status == 200));
    assert!(began.elapsed() >= Duration::from_millis(740), "{:?}", began.elapsed());
    let seen: Vec<_> = origin.requests().iter().map(|request| request.target().to_owned()).collect();
    assert_eq!(seen, ["/smooth?0", "/smooth?1", "/smooth?2", "/smooth?3"]);
    let waited = || gateway.access_log().into_iter().filter_map(|line| line["queued_us"].as_u64()).collect::<Vec<_>>();
    until("the log tells who waited", || waited().len() == 3);
    assert!(waited().iter().all(|wait| (100_000..2_000_000).contains(wait)), "{:?}", waited());

    // One waits with its body unread, and leaves.
    assert_eq!(gateway.get("/slow?0", &[]).status, 200);
    let began = Instant::now();
    let mut caller = Connection::open(gateway.address());
    caller.send(b"POST /slow?1 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(gateway.get("/slow?2", &[]).code(), "queue_full");
    drop(caller);
    until("it is known to have left", || gateway.access_log().iter().any(|line| line["code"] == "client_closed"));
    assert!(began.elapsed() < Duration::from_millis(2_500), "too slow a machine to tell: {:?}", began.elapsed());
    assert_eq!(gateway.get("/slow?3", &[]).status, 200);
    let seen: Vec<_> = origin.requests().iter().skip(4).map(|request| request.target().to_owned()).collect();
    assert_eq!(seen, ["/slow?0", "/slow?3"]);
}

#[test]
fn a_stream_that_is_reset_leaves_the_queue() {
    let origin = Origin::start();
    let yaml = config(
        "slow: {per: route, rate: 1/3s, algorithm: leaky_bucket, queue: 1, max_wait: 5s}",
        "slow: policy: {authenticate: public, limits: [slow]}",
    );
    let (gateway, ca) = with_tls(&yaml.replace("demo: {builtin: echo}", &format!("demo: {{servers: [\"{}\"]}}", origin.address)));
    assert_eq!(gateway.get("/slow?0", &[]).status, 200);
    let mut connection = Http2::open(gateway.addresses()[1], &Tls { ca: &ca, server_name: "gw.test", client: None });
    let began = Instant::now();
    connection.begin(&get("/slow?1"), 1);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(gateway.get("/slow?2", &[]).code(), "queue_full");
    connection.reset(1);
    until("it is known to have left", || gateway.access_log().iter().any(|line| line["code"] == "client_closed"));
    assert!(began.elapsed() < Duration::from_millis(2_500), "too slow a machine to tell: {:?}", began.elapsed());
    assert_eq!(gateway.get("/slow?3", &[]).status, 200);
    let seen: Vec<_> = origin.requests().iter().map(|request| request.target().to_owned()).collect();
    assert_eq!(seen, ["/slow?0", "/slow?3"]);
}

#[test]
fn a_plan_is_chosen_by_key_by_claim_by_consumer_or_by_default() {
    let issuer = Issuer::start(Algorithm::EdDsa);
    let (file, keys) = keys(&[("acme", Some("gold")), ("globex", None), ("initech", None), ("hooli", Some("platinum"))]);
    let folder = Folder::new();
    folder.write("keys.yaml", file);
    let yaml = config(
        "five: {per: consumer, rate: 5/h}, three: {per: consumer, rate: 3/h}, one: {per: consumer, rate: 1/h}",
        "all: policy: {authenticate: [partners, tokens]}\nopen: policy: {authenticate: public}",
    ) + &format!(
        "plans: {{gold: {{limits: [five]}}, silver: {{limits: [three], consumers: [globex]}}, free: {{limits: [one], default: true}}}}\n\
         authenticators:\n  partners: {{api_key: {{prefix: ck_test_, keys: {{file: keys.yaml}}}}}}\n  \
         tokens: {{jwt: {{issuer: \"{}\", audiences: [all], keys: {{jwks_url: \"{}\"}}}}}}\n",
        issuer.url(),
        issuer.jwks_url()
    );
    let gateway = Gateway::start_in(folder, &yaml);
    let token = |claims| format!("Bearer {}", issuer.token("all", claims));
    until("the keys are there", || gateway.get("/all", &[("Authorization", &token(json!({"client_id": "first"})))]).status != 503);
    for (key, expected) in [(&keys[0], 5), (&keys[1], 3), (&keys[2], 1)] {
        assert_eq!(admitted(&gateway, "/all", &[("X-API-Key", key)], 8), expected);
    }
    assert_eq!(admitted(&gateway, "/all", &[("Authorization", &token(json!({"client_id": "umbrella", "plan": "gold"})))], 8), 5);
    assert_eq!(admitted(&gateway, "/all", &[("Authorization", &token(json!({"client_id": "stark"})))], 8), 1);
    assert_eq!(gateway.get("/all", &[("X-API-Key", &keys[3])]).code(), "forbidden");
    until("the log says why", || gateway.access_log().iter().any(|line| line["reason"] == "plan_unknown"));
    assert_eq!(gateway.get("/open", &[]).status, 200);
}

#[test]
fn counts_stand_when_the_configuration_changes_and_a_shadow_that_is_enforced_begins_anew() {
    let of = |rate: &str, mode: &str| {
        config(
            &format!("all: {{per: host, rate: {rate}}}, tried: {{per: client_ip, rate: 2/h, mode: {mode}}}"),
            "all: policy: {authenticate: public, limits: [all]}\ntried: policy: {authenticate: public, limits: [tried]}",
        )
    };
    let gateway = Gateway::start(&of("10/h", "shadow"));
    assert_eq!(admitted(&gateway, "/all", &[], 6), 6);
    assert_eq!(admitted(&gateway, "/tried", &[], 6), 6);
    gateway.rewrite(&of("8/h", "enforce"));
    until("the change is applied", || gateway.metric("edgeward_config_generation", &[]) > 1.0);
    assert_eq!(admitted(&gateway, "/all", &[], 6), 2);
    assert_eq!(admitted(&gateway, "/tried", &[], 6), 2);
}
