//! Limits that a fleet counts in Redis, against a real one that is killed, paused, emptied, filled up and otherwise mistreated.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use edgeward::live::limits::{Algorithm, Key, KeyBuilder, Limits, Terms};
use edgeward::live::shared_limits::{Ask, Charge, SharedLimits, Unavailable};
use edgeward::metrics::Metrics;
use edgeward::net::http::Tls;
use edgeward::net::redis::{Redis as Connection, Script, Server, Standing};
use edgeward::secret::Secret;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio::runtime::Runtime;

use crate::harness::certificates::Authority;
use crate::harness::client;
use crate::harness::gateway::{Gateway, command};
use crate::harness::redis::Redis;
use crate::harness::until;

/// Longer than a busy machine takes, so that only a Redis that does not answer meets it.
const TIMEOUT: Duration = Duration::from_millis(500);

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::FixedWindow,
    Algorithm::SlidingWindow,
    Algorithm::TokenBucket { burst: 100 },
    Algorithm::LeakyBucket { queue: 99, max_wait: HOUR },
];

/// One node of a fleet: its connection, and the runtime that keeps it.
struct Node {
    runtime: Runtime,
    connection: Arc<Connection>,
    limits: SharedLimits,
}

impl Node {
    fn new(server: Server) -> Self {
        let runtime = Runtime::new().unwrap();
        let connection = Arc::new(Connection::new(server).unwrap());
        runtime.spawn(Connection::maintain(Arc::downgrade(&connection)));
        let limits = SharedLimits::new(Arc::clone(&connection), TIMEOUT, Metrics::new().unwrap().redis);
        Self { runtime, connection, limits }
    }

    /// A node that has reached its Redis.
    #[track_caller]
    fn of(redis: &Redis) -> Self {
        let node = Self::new(server(redis.port()));
        node.comes_up();
        node
    }

    #[track_caller]
    fn comes_up(&self) {
        until("Redis is there", || self.connection.standing() == Standing::Up);
    }

    /// What is wrong, once something is.
    #[track_caller]
    fn fault(&self) -> String {
        let mut fault = String::new();
        until("Redis is away", || match self.connection.standing() {
            Standing::Away(what) => {
                fault = what;
                true
            }
            _ => false,
        });
        fault
    }

    fn charge(&self, asks: &[Ask<'_>]) -> Result<Charge, Unavailable> {
        self.runtime.block_on(self.limits.charge(asks))
    }

    /// Whether one request of the key is admitted.
    #[track_caller]
    fn admits(&self, name: &str, terms: Terms) -> bool {
        self.charge(&[ask(name, "a", terms)]).unwrap().standings[0].admitted
    }
}

fn server(port: u16) -> Server {
    Server { host: "127.0.0.1".into(), port, user: None, password: None, database: 0, tls: None }
}

fn key(text: &str) -> Key {
    let mut key = KeyBuilder::default();
    key.part(0, text.as_bytes());
    key.finish()
}

fn ask<'a>(name: &'a str, of: &str, terms: Terms) -> Ask<'a> {
    Ask { name, key: key(of), terms, cost: 1 }
}

fn hourly(limit: u64, algorithm: Algorithm) -> Terms {
    Terms { limit, window: HOUR, algorithm }
}

#[test]
fn three_nodes_at_once_admit_exactly_the_limit() {
    let redis = Redis::start();
    let nodes = [Node::of(&redis), Node::of(&redis), Node::of(&redis)];
    for algorithm in ALGORITHMS {
        let terms = hourly(100, algorithm);
        let admitted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = nodes
                .iter()
                .flat_map(|node| [node, node])
                .map(|node| scope.spawn(move || (0..60).filter(|_| node.admits("limit", terms)).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 100, "{algorithm:?}");
    }
}

#[test]
fn every_key_has_a_time_to_live_and_one_tag() {
    let redis = Redis::start();
    let node = Node::of(&redis);
    for algorithm in ALGORITHMS {
        node.admits("limit", hourly(100, algorithm));
    }
    let keys: Vec<_> = redis.keys().into_iter().filter(|(key, _)| key.starts_with(b"{edgeward}:limit:")).collect();
    assert_eq!(keys.len(), ALGORITHMS.len());
    let longest = i64::try_from(2 * HOUR.as_millis()).unwrap();
    for (key, left) in redis.keys() {
        assert!(key.starts_with(b"{edgeward}:"), "{key:?}");
        assert!((0..=longest + 1).contains(&left), "{} lives for {left} ms", String::from_utf8_lossy(&key));
    }
    // And they go: nothing is left of a window and a bucket of a tenth of a second.
    let redis = Redis::start();
    let node = Node::of(&redis);
    for algorithm in ALGORITHMS {
        node.admits("limit", Terms { limit: 100, window: SECOND / 10, algorithm });
    }
    until("the keys are gone", || !redis.keys().iter().any(|(key, _)| key.starts_with(b"{edgeward}:limit:")));
}

#[test]
fn several_limits_are_charged_together_or_not_at_all() {
    let redis = Redis::start();
    let node = Node::of(&redis);
    for algorithm in ALGORITHMS {
        let (wide, narrow) = (hourly(100, algorithm), hourly(3, Algorithm::FixedWindow));
        let name = format!("{algorithm:?}");
        let asks = [ask("wide", &name, wide), ask("narrow", &name, narrow)];
        let admitted = |charge: &Charge| charge.standings.iter().map(|standing| standing.admitted).collect::<Vec<_>>();
        for _ in 0..3 {
            assert_eq!(admitted(&node.charge(&asks).unwrap()), [true, true]);
        }
        let left = node.charge(&asks).unwrap();
        assert_eq!(admitted(&left), [true, false], "{algorithm:?}");
        for _ in 0..10 {
            let again = node.charge(&asks).unwrap();
            assert_eq!(again.standings[0].remaining, left.standings[0].remaining, "{algorithm:?}: a refused request consumed something");
        }
    }
}

#[test]
fn a_cost_is_taken_whole_and_given_back_whole() {
    let redis = Redis::start();
    let node = Node::of(&redis);
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow, Algorithm::TokenBucket { burst: 10 }] {
        let ask = |cost| [Ask { cost, ..ask("limit", "a", hourly(10, algorithm)) }];
        let first = node.charge(&ask(7)).unwrap();
        assert_eq!((first.standings[0].admitted, first.standings[0].remaining), (true, 3), "{algorithm:?}");
        let second = node.charge(&ask(4)).unwrap().standings[0];
        assert!(!second.admitted && second.remaining == 3 && !second.retry_after.is_zero(), "{algorithm:?}: {second:?}");
        assert!(!node.charge(&ask(11)).unwrap().standings[0].admitted, "{algorithm:?}: more than the limit ever has");
        node.runtime.block_on(async { node.limits.refund(&ask(7), first.at) });
        until("the refund is there", || node.charge(&ask(10)).unwrap().standings[0].admitted);
    }
}

#[test]
fn what_comes_back_after_its_window_comes_back_to_nobody() {
    let redis = Redis::start();
    let node = Node::of(&redis);
    let terms = Terms { limit: 2, window: SECOND, algorithm: Algorithm::FixedWindow };
    let asks = [ask("limit", "a", terms)];
    let charge = node.charge(&asks).unwrap();
    std::thread::sleep(charge.standings[0].reset + Duration::from_millis(5));
    assert_eq!(node.charge(&asks).unwrap().standings[0].remaining, 1);
    node.runtime.block_on(async { node.limits.refund(&asks, charge.at) });
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(node.charge(&asks).unwrap().standings[0].remaining, 0);
}

#[test]
fn requests_of_a_queue_are_told_their_turn() {
    let redis = Redis::start();
    let node = Node::of(&redis);
    let terms = Terms { limit: 10, window: 10 * SECOND, algorithm: Algorithm::LeakyBucket { queue: 3, max_wait: HOUR } };
    let standings: Vec<_> = (0..5).map(|_| node.charge(&[ask("limit", "a", terms)]).unwrap().standings[0]).collect();
    for (place, standing) in standings.iter().take(4).enumerate() {
        let expected = SECOND * u32::try_from(place).unwrap();
        assert!(standing.admitted && standing.wait <= expected && standing.wait + SECOND / 2 > expected, "{place}: {standing:?}");
    }
    assert!(!standings[4].admitted && !standings[4].retry_after.is_zero(), "{:?}", standings[4]);
}

#[test]
fn while_it_is_killed_nobody_waits_and_when_it_is_back_so_is_the_limit() {
    let mut redis = Redis::start();
    let node = Node::of(&redis);
    let terms = hourly(1_000, Algorithm::SlidingWindow);
    assert!(node.admits("limit", terms));
    redis.kill();
    let began = Instant::now();
    for _ in 0..1_000 {
        assert!(node.charge(&[ask("limit", "a", terms)]).is_err());
    }
    assert!(began.elapsed() < SECOND, "a thousand refusals took {:?}", began.elapsed());
    let fault = node.fault();
    assert!(!fault.is_empty());
    redis.restart();
    node.comes_up();
    assert!(node.admits("limit", terms));
}

#[test]
fn while_it_stands_still_few_wait_for_the_timeout_and_then_nobody() {
    let redis = Redis::start();
    let node = Node::of(&redis);
    let terms = hourly(1_000, Algorithm::SlidingWindow);
    assert!(node.admits("limit", terms));
    redis.pause();
    let mut waits = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        assert!(node.charge(&[ask("limit", "a", terms)]).is_err());
        waits.push(began.elapsed());
    }
    let waited = waits.iter().filter(|wait| **wait > TIMEOUT / 5).count();
    assert!(waited <= 3, "{waited} waited: {waits:?}");
    assert!(waits.iter().all(|wait| *wait < TIMEOUT + SECOND / 4), "{waits:?}");
    redis.resume();
    node.comes_up();
    assert!(node.admits("limit", terms));
}

#[test]
fn an_emptied_redis_and_flushed_scripts_cost_the_counts_and_no_request() {
    let redis = Redis::start();
    let node = Node::of(&redis);
    let terms = hourly(2, Algorithm::FixedWindow);
    assert!(node.admits("limit", terms) && node.admits("limit", terms) && !node.admits("limit", terms));
    redis.tell(&["SCRIPT", "FLUSH"]);
    assert!(!node.admits("limit", terms), "the script is brought back, the count stands");
    redis.tell(&["FLUSHALL"]);
    assert!(node.admits("limit", terms));
    assert_eq!(node.connection.standing(), Standing::Up);
}

#[test]
fn a_key_that_is_not_ours_concerns_itself_alone() {
    let redis = Redis::start();
    let node = Node::of(&redis);
    for (name, algorithm) in ["fixed", "sliding", "token", "leaky"].into_iter().zip(ALGORITHMS) {
        let terms = hourly(10, algorithm);
        assert!(node.admits(name, terms));
        let (ours, _) = redis.keys().into_iter().find(|(key, _)| key.windows(name.len()).any(|part| part == name.as_bytes())).unwrap();
        let mut connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
        for (verb, value) in [("SET", "not a count"), ("DEL", ""), ("RPUSH", "a list")] {
            let mut command = redis::cmd(verb);
            command.arg(&ours);
            if !value.is_empty() {
                command.arg(value);
            }
            command.exec(&mut connection).unwrap();
            let expected = if verb == "DEL" { Ok(true) } else { Err(Unavailable("answer")) };
            let asked = node.charge(&[ask(name, "a", terms)]).map(|charge| charge.standings[0].admitted);
            assert_eq!(asked, expected, "{name} after {verb}");
            if verb == "DEL" {
                redis::cmd("DEL").arg(&ours).exec(&mut connection).unwrap();
            }
            // Nothing is charged of the others when one cannot be.
            let both = node.charge(&[ask("other", "a", terms), ask(name, "a", terms)]);
            assert_eq!(both.is_ok(), verb == "DEL");
            if verb == "DEL" {
                redis::cmd("DEL").arg(&ours).exec(&mut connection).unwrap();
            }
        }
    }
    assert!(node.admits("elsewhere", hourly(10, Algorithm::FixedWindow)));
    assert_eq!(node.connection.standing(), Standing::Up);
}

#[test]
fn a_full_redis_is_away_until_it_has_room() {
    let redis = Redis::start();
    let node = Node::of(&redis);
    let terms = hourly(10, Algorithm::SlidingWindow);
    assert!(node.admits("limit", terms));
    redis.tell(&["CONFIG", "SET", "maxmemory", "1"]);
    assert!(node.charge(&[ask("limit", "a", terms)]).is_err());
    let fault = node.fault();
    assert!(fault.contains("OOM"), "{fault}");
    redis.tell(&["CONFIG", "SET", "maxmemory", "0"]);
    node.comes_up();
    assert!(node.admits("limit", terms));
}

#[test]
fn a_replica_is_away_until_it_is_the_master() {
    let (redis, master) = (Redis::start(), Redis::start());
    let node = Node::of(&redis);
    let terms = hourly(10, Algorithm::SlidingWindow);
    redis.tell(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    until("it is refused", || node.charge(&[ask("limit", "a", terms)]).is_err());
    let fault = node.fault();
    assert!(fault.to_lowercase().contains("read") || fault.contains("MASTERDOWN") || fault.contains("LOADING"), "{fault}");
    redis.tell(&["REPLICAOF", "NO", "ONE"]);
    node.comes_up();
    assert!(node.admits("limit", terms));
}

#[test]
fn who_may_not_write_is_away_and_no_password_is_shown() {
    let redis = Redis::start();
    redis.tell(&["ACL", "SETUSER", "gate", "on", ">secret word", "~{edgeward}:*", "+evalsha", "+eval", "+get", "+set", "+time"]);
    redis.tell(&["ACL", "SETUSER", "reader", "on", ">secret word", "~*", "+@read", "+evalsha", "+eval", "+time"]);
    redis.tell(&["ACL", "SETUSER", "default", "resetpass", ">other secret"]);
    let login = |user: Option<&str>, password: Option<&str>| Server {
        user: user.map(Into::into),
        password: password.map(|password| Secret::new(password.into())),
        ..server(redis.port())
    };
    let terms = hourly(10, Algorithm::SlidingWindow);
    for server in [login(Some("gate"), Some("secret word")), login(None, Some("other secret"))] {
        let node = Node::new(server);
        node.comes_up();
        assert!(node.admits("limit", terms));
    }
    for server in [
        login(None, None),
        login(None, Some("secret wort")),
        login(Some("gate"), Some("secret wort")),
        login(Some("nobody"), Some("secret word")),
        login(Some("reader"), Some("secret word")),
    ] {
        let node = Node::new(server);
        let fault = node.fault();
        assert!(!fault.contains("secret"), "{fault}");
        assert!(!format!("{:?}", node.connection).contains("secret wor"), "{:?}", node.connection);
        assert_eq!(node.charge(&[ask("limit", "a", terms)]), Err(Unavailable("away")));
    }
}

#[test]
fn over_tls_the_certificate_must_be_the_hosts() {
    let authority = Authority::new("ours");
    let (_redis, port) = Redis::start_tls(&authority.issue(&["localhost"]));
    let trusting = |host: &str, ca: &Authority| Server {
        host: host.into(),
        tls: Some(Tls { ca: Some(ca.pem().into_bytes()), ..Tls::default() }),
        ..server(port)
    };
    let node = Node::new(trusting("localhost", &authority));
    node.comes_up();
    assert!(node.admits("limit", hourly(1, Algorithm::FixedWindow)));
    for wrong in [trusting("127.0.0.1", &authority), trusting("localhost", &Authority::new("another"))] {
        let fault = Node::new(wrong).fault();
        assert!(fault.starts_with("TLS failed"), "{fault}");
    }
}

#[test]
fn in_a_cluster_the_node_that_holds_our_slot_is_found_and_followed() {
    let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
    let (first, second) = (Redis::start_with(&options), Redis::start_with(&options));
    let slot: u16 = first.ask(&["CLUSTER", "KEYSLOT", "{edgeward}:limit"]);
    let range = |redis: &Redis, from: u16, to: u16| {
        if from <= to {
            redis.tell(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]);
        }
    };
    // Ours is on the second, and one more: who loses the last becomes a replica.
    range(&first, 0, slot - 1);
    range(&first, slot + 2, 16383);
    range(&second, slot, slot + 1);
    first.tell(&["CLUSTER", "MEET", "127.0.0.1", &second.port().to_string()]);
    for redis in [&first, &second] {
        until("the cluster is whole", || redis.ask::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    }
    let terms = hourly(3, Algorithm::FixedWindow);
    let (node, other) = (Node::of(&first), Node::of(&second));
    let asks = [ask("one", "a", terms), ask("two", "b", hourly(100, Algorithm::TokenBucket { burst: 5 }))];
    assert!(node.charge(&asks).unwrap().standings.iter().all(|standing| standing.admitted));
    assert_eq!(other.charge(&asks).unwrap().standings[0].remaining, 1, "both count in one place");

    // The slot moves while it is used.
    for (verb, redis, peer) in [("IMPORTING", &first, &second), ("MIGRATING", &second, &first)] {
        redis.tell(&["CLUSTER", "SETSLOT", &slot.to_string(), verb, &peer.ask::<String>(&["CLUSTER", "MYID"])]);
    }
    let port = first.port().to_string();
    for (key, _) in second.keys() {
        let mut command = redis::cmd("MIGRATE");
        command.arg("127.0.0.1").arg(&port).arg(&key).arg(0).arg(5000);
        command.exec(&mut redis::Client::open(second.url()).unwrap().get_connection().unwrap()).unwrap();
    }
    let owner: String = first.ask(&["CLUSTER", "MYID"]);
    for redis in [&first, &second] {
        redis.tell(&["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &owner]);
    }
    until("it is followed", || node.charge(&asks).is_ok());
    node.comes_up();
    assert_eq!(node.charge(&asks).unwrap().standings[0].remaining, 0, "the counts moved along");
}

/// The charging script on a clock of the test's: the last two numbers.
fn charge_at_given_times() -> Script {
    let text = concat!(include_str!("../../src/live/shared_limits/state.lua"), include_str!("../../src/live/shared_limits/charge.lua"));
    let asked = "redis.call('TIME')";
    assert_eq!(text.matches(asked).count(), 1);
    Script::new(text.replace(asked, "{ARGV[#ARGV - 1], ARGV[#ARGV]}").leak())
}

#[test]
fn the_script_admits_exactly_what_one_node_would() {
    let redis = Redis::start();
    let node = Node::of(&redis);
    let script = charge_at_given_times();
    let mut runner = TestRunner::new(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() });
    // A rate of powers of two, so that the doubles of Lua are exact and both must agree to the last unit.
    let window = Duration::from_micros(1 << 20);
    let strategy = (0..4_usize, 0..7_u32, prop::collection::vec((0..400_000_u64, 1..4_u64), 1..120));
    let case = Cell::new(0);
    let tried = runner.run(&strategy, |(algorithm, power, requests)| {
        let numbers = [(0, 0, 0), (1, 0, 0), (2, 24, 0), (3, 9, 700_000)][algorithm];
        let algorithm = match numbers {
            (0, ..) => Algorithm::FixedWindow,
            (1, ..) => Algorithm::SlidingWindow,
            (2, burst, _) => Algorithm::TokenBucket { burst },
            (_, queue, wait) => Algorithm::LeakyBucket { queue, max_wait: Duration::from_micros(wait) },
        };
        let terms = Terms { limit: 1 << power, window, algorithm };
        let (local, mut now) = (Limits::default(), 0);
        case.set(case.get() + 1);
        for (pause, cost) in requests {
            now += pause;
            let expected = local.charge(&key("a"), &terms, cost, Duration::from_micros(now)).admitted;
            let (kind, capacity, wait) = numbers;
            let numbers = [kind, terms.limit, 1 << 20, capacity, wait, cost, now / 1_000_000, now % 1_000_000];
            let keys = [format!("{{edgeward}}:case:{}", case.get()).into_bytes()];
            let answer = node.runtime.block_on(node.connection.run::<Vec<i64>>(&script, &keys, &numbers, 10 * SECOND)).unwrap();
            prop_assert_eq!(answer[1] == 1, expected, "{:?} at {} for {}", terms, now, cost);
        }
        Ok(())
    });
    tried.unwrap();
}

#[test]
fn a_clock_that_is_set_back_gives_nothing_away_and_locks_nobody_out() {
    let redis = Redis::start();
    let node = Node::of(&redis);
    let script = charge_at_given_times();
    for (kind, capacity) in [(0, 0), (1, 0), (2, 10)] {
        let keys = [format!("{{edgeward}}:clock:{kind}").into_bytes()];
        let admitted = |seconds: u64| {
            (0..20)
                .filter(|_| {
                    let numbers = [kind, 10, 10_000_000, capacity, 0, 1, seconds, 0];
                    node.runtime.block_on(node.connection.run::<Vec<i64>>(&script, &keys, &numbers, 10 * SECOND)).unwrap()[1] == 1
                })
                .count()
        };
        let at = 1_000_000;
        assert_eq!(admitted(at), 10);
        for back in [1, 10, 3_600] {
            assert_eq!(admitted(at - back), 0, "algorithm {kind}, {back} s back");
        }
        assert!(admitted(at - 3_600 + 21) == 10, "algorithm {kind}: two windows later all is there again");
    }
}

/// A gateway with a route for each way to do without Redis, one for each store, and one whose limit is local.
fn gateway(redis: &Redis, timeout: &str) -> Gateway {
    let limit = |name: &str, terms: &str| format!("  {name}: {{per: route, {terms}}}\n");
    let shared = "algorithm: fixed_window, store: redis, on_store_failure";
    let limits = [
        limit("counts", &format!("rate: 5/d, {shared}: local")),
        limit("opens", &format!("rate: 5/d, {shared}: allow")),
        limit("closes", &format!("rate: 5/d, {shared}: deny")),
        limit("lends", "rate: 5/d, algorithm: fixed_window, store: hybrid, on_store_failure: deny"),
        limit("apart", "rate: 1000000/s"),
    ];
    let routes = ["counts", "opens", "closes", "lends", "apart"]
        .map(|name| format!("  - {{name: {name}, path: /{name}, upstream: echo, policy: {{authenticate: public, limits: [{name}]}}}}\n"));
    let gateway = Gateway::start(&format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]\nadmin: {{address: \"127.0.0.1:0\"}}\nredis: {{url: \"{}\", timeout: {timeout}}}\n\
         upstreams: {{echo: {{builtin: echo}}}}\nlimits:\n{}routes:\n{}",
        redis.url(),
        limits.concat(),
        routes.concat()
    ));
    until("Redis is reached", || gateway.metric("edgeward_redis_up", &[]) == 1.0);
    gateway
}

/// How many of so many requests of a path were answered with each status.
fn statuses(gateway: &Gateway, path: &str, count: usize) -> BTreeMap<u16, usize> {
    let mut statuses = BTreeMap::new();
    for _ in 0..count {
        *statuses.entry(gateway.get(path, &[]).status).or_default() += 1;
    }
    statuses
}

fn readiness(gateway: &Gateway) -> String {
    client::get(gateway.admin(), "/readyz", &[]).json()["status"].as_str().unwrap().to_owned()
}

/// Load on every route from the beginning of a mishap to its end. Nobody may wait longer than the timeout, with room for a busy machine, and
/// on the route without Redis nothing may go wrong.
fn under_load(gateway: &Gateway, mishap: impl FnOnce()) -> BTreeMap<(&'static str, u16), usize> {
    let ended = AtomicBool::new(false);
    let seen = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for path in ["/counts", "/opens", "/closes", "/lends", "/apart"] {
            let (ended, seen) = (&ended, &seen);
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let answer = gateway.get(path, &[]);
                    assert!(began.elapsed() < 3 * SECOND, "{path} took {:?}", began.elapsed());
                    if answer.status == 503 {
                        assert_eq!(answer.code(), "dependency_unavailable");
                        assert!(answer.header("retry-after").is_some());
                    }
                    *seen.lock().unwrap().entry((path, answer.status)).or_default() += 1;
                }
            });
        }
        mishap();
        ended.store(true, Ordering::Relaxed);
    });
    let seen = seen.into_inner().unwrap();
    assert!(seen.keys().all(|&(path, status)| path != "/apart" || status == 200), "{seen:?}");
    seen
}

#[test]
fn with_redis_killed_each_limit_does_what_it_says_and_comes_back() {
    let mut redis = Redis::start();
    let gateway = gateway(&redis, "200ms");
    for path in ["/counts", "/opens", "/closes"] {
        assert_eq!(statuses(&gateway, path, 8), BTreeMap::from([(200, 5), (429, 3)]), "{path}");
    }
    assert_eq!(readiness(&gateway), "ready");
    let seen = under_load(&gateway, || {
        redis.kill();
        until("it is noticed", || gateway.metric("edgeward_redis_up", &[]) == 0.0);
        std::thread::sleep(SECOND);
    });
    let of = |path, status| seen.get(&(path, status)).copied().unwrap_or(0);
    assert_eq!(of("/counts", 200), 5, "the count of this node begins with the failure: {seen:?}");
    assert!(of("/counts", 429) > 0 && of("/counts", 503) == 0, "{seen:?}");
    assert!(of("/opens", 200) > 5 && of("/opens", 503) == 0, "{seen:?}");
    assert!(of("/closes", 503) > 0 && of("/closes", 200) == 0, "{seen:?}");
    assert_eq!(readiness(&gateway), "degraded");
    redis.restart();
    until("it is back", || gateway.metric("edgeward_redis_up", &[]) == 1.0);
    assert_eq!(readiness(&gateway), "ready");
    for path in ["/counts", "/opens", "/closes"] {
        assert_eq!(statuses(&gateway, path, 8), BTreeMap::from([(200, 5), (429, 3)]), "{path}: an empty Redis counts from the beginning");
    }
}

#[test]
fn with_redis_standing_still_few_wait_and_each_limit_does_what_it_says() {
    let redis = Redis::start();
    let gateway = gateway(&redis, "200ms");
    for path in ["/counts", "/opens", "/closes"] {
        assert_eq!(statuses(&gateway, path, 5), BTreeMap::from([(200, 5)]), "{path}");
    }
    let seen = under_load(&gateway, || {
        redis.pause();
        until("it is noticed", || gateway.metric("edgeward_redis_up", &[]) == 0.0);
        std::thread::sleep(SECOND);
        redis.resume();
        until("it is back", || gateway.metric("edgeward_redis_up", &[]) == 1.0);
    });
    let of = |path, status| seen.get(&(path, status)).copied().unwrap_or(0);
    assert_eq!(of("/counts", 200), 5, "{seen:?}");
    assert!(of("/opens", 200) > 0 && of("/opens", 503) == 0, "{seen:?}");
    assert!(of("/closes", 503) > 0 && of("/closes", 200) == 0, "{seen:?}");
    let waited = gateway.metric("edgeward_redis_calls_total", &["outcome=\"deadline\""]);
    assert!((1.0..=12.0).contains(&waited), "{waited} calls waited for the timeout");
    // What Redis knew before it stood still it knows again.
    for path in ["/counts", "/opens", "/closes"] {
        assert_eq!(statuses(&gateway, path, 3), BTreeMap::from([(429, 3)]), "{path}");
    }
}

#[test]
fn with_redis_emptied_under_load_the_limits_begin_anew_and_no_request_fails() {
    let redis = Redis::start();
    let gateway = gateway(&redis, "2s");
    let seen = under_load(&gateway, || {
        std::thread::sleep(SECOND / 2);
        redis.tell(&["FLUSHALL"]);
        redis.tell(&["SCRIPT", "FLUSH"]);
        std::thread::sleep(SECOND / 2);
    });
    let of = |path, status| seen.get(&(path, status)).copied().unwrap_or(0);
    for path in ["/counts", "/opens", "/closes"] {
        assert_eq!(of(path, 200), 10, "{path}: five before and five after: {seen:?}");
        assert_eq!(of(path, 503), 0, "{path}: {seen:?}");
    }
}

#[test]
fn two_gateways_share_what_redis_counts_and_check_says_how_far_it_can_be_off() {
    let redis = Redis::start();
    let nodes = [gateway(&redis, "2s"), gateway(&redis, "2s")];
    let admitted: usize = (0..10).map(|at| statuses(&nodes[at % 2], "/counts", 1).get(&200).copied().unwrap_or(0)).sum();
    assert_eq!(admitted, 5);
    let admitted: usize = (0..20)
        .map(|at| {
            std::thread::sleep(Duration::from_millis(20));
            statuses(&nodes[at % 2], "/lends", 1).get(&200).copied().unwrap_or(0)
        })
        .sum();
    assert!((5..=7).contains(&admitted), "{admitted} of five and a credit of one for each node");
    let path = nodes[0].folder().path().join("edgeward.yaml");
    let output = command(&["check", "-c", path.to_str().unwrap()]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let url = redis.url();
    for line in [
        format!("counts: counted in {url}/0, exactly; while that is away each node counts alone"),
        format!("opens: counted in {url}/0, exactly; while that is away it does NOT hold"),
        format!(
            "lends: counted in {url}/0 and lent to the nodes: each may admit 1 beyond the 5 at worst and leave 1 unused; while that is away 503"
        ),
    ] {
        assert!(printed.contains(&line), "{line}\n{printed}");
    }
}

#[test]
fn a_gateway_that_never_reaches_redis_serves_and_says_so() {
    let mut redis = Redis::start();
    let url = redis.url();
    redis.kill();
    let gateway = Gateway::start(&format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]\nadmin: {{address: \"127.0.0.1:0\"}}\nredis: {{url: \"{url}\"}}\n\
         upstreams: {{echo: {{builtin: echo}}}}\nlimits: {{few: {{per: route, rate: 2/d, store: redis}}}}\n\
         routes: [{{name: all, path: /, upstream: echo, policy: {{authenticate: public, limits: [few]}}}}]\n"
    ));
    until("it is degraded", || readiness(&gateway) == "degraded");
    assert_eq!(statuses(&gateway, "/", 5), BTreeMap::from([(200, 2), (429, 3)]));
    redis.restart();
    until("it is ready", || readiness(&gateway) == "ready");
}

#[test]
fn what_is_asked_before_the_first_connection_waits_for_it() {
    let redis = Redis::start();
    let connection = Arc::new(Connection::new(server(redis.port())).unwrap());
    let limits = SharedLimits::new(Arc::clone(&connection), 10 * SECOND, Metrics::new().unwrap().redis);
    let runtime = Runtime::new().unwrap();
    let upkeep = Arc::downgrade(&connection);
    runtime.spawn(async move {
        tokio::time::sleep(SECOND / 10).await;
        Connection::maintain(upkeep).await;
    });
    let charge = runtime.block_on(limits.charge(&[ask("limit", "a", hourly(1, Algorithm::FixedWindow))]));
    assert!(charge.unwrap().standings[0].admitted);
}
