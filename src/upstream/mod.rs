//! Which backend serves a request, and what the proxy needs to speak with it.

pub mod echo;
mod schedule;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ahash::RandomState;
use arc_swap::ArcSwap;
use crossbeam_utils::CachePadded;
use openssl::pkey::{PKey, Private};
use openssl::sha::Sha256;
use openssl::x509::X509;
use thread_local::ThreadLocal;

use crate::config::{self, Balance, Builtin, Problem, Retries, UpstreamTimeouts};
use crate::live::LiveState;
use crate::live::backends::{Backend, Backends, Check, InFlight, Server, Upkeep};
use crate::net;
use crate::request::Rejection;
use schedule::{Schedule, Turn};

/// The name of [`Service::Oauth`] among upstreams. No name of an operator's has a colon.
pub const OAUTH: &str = "edgeward:oauth";

/// An upstream as a snapshot holds it. Compiling one changes nothing for the running one of the same name; [`activate`](Self::activate) does.
#[derive(Debug)]
pub struct Upstream {
    /// The name in the configuration.
    pub name: Arc<str>,
    /// Set when edgeward itself answers; there is no backend to choose then.
    pub builtin: Option<Service>,
    /// Absent: plain TCP.
    pub tls: Option<Tls>,
    /// Whether to speak HTTP/2.
    pub http2: bool,
    /// How long to wait for a backend.
    pub timeouts: UpstreamTimeouts,
    /// Absent: never.
    pub retries: Option<Retries>,
    /// Two upstreams share kept connections only when this is the same. It covers the authorities and our certificate, which Pingora's own key of a
    /// connection leaves out: without it, a connection verified for one upstream would serve another that trusts somebody else.
    pub group_key: u64,
    balance: Balance,
    servers: Vec<(Arc<Server>, u32)>,
    upkeep: Arc<Upkeep>,
    backends: Arc<Backends>,
    schedule: ArcSwap<Schedule>,
    /// Of each thread its own: threads that took turns together would all write to one place.
    turns: ThreadLocal<CachePadded<AtomicU64>>,
}

/// A service inside edgeward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Answers with the request.
    Echo,
    /// Gives tokens, and tells clients who gives them: the issuer's endpoints and the metadata of resources.
    Oauth,
}

/// How the backends prove who they are, and we to them. There is always a name to verify.
#[derive(Clone)]
pub struct Tls {
    /// The name to ask for and verify.
    pub server_name: Arc<str>,
    /// Whom to trust; absent: the authorities of the system.
    pub ca: Option<Arc<Box<[X509]>>>,
    /// Our certificate chain and key.
    pub client: Option<(Vec<X509>, PKey<Private>)>,
}

/// A backend that was chosen for a request. It counts as in flight until this is dropped.
#[derive(Debug)]
pub struct Chosen {
    /// Where to connect.
    pub address: SocketAddr,
    _in_flight: InFlight,
}

impl Upstream {
    /// Compiles an upstream, or lists all that is wrong with it.
    pub fn compile(name: &Arc<str>, config: &config::Upstream, live: &LiveState) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let (tls, own_tls) = match &config.tls {
            Some(config) => match compile_tls(config, &mut problems) {
                Some((tls, own)) => (Some(tls), Some(own)),
                None => return Err(problems),
            },
            None => (None, None),
        };
        let backends = live.backends.find_or_create(name, Backends::default);
        let servers: Vec<_> = config.servers.iter().map(|server| (backends.server(&server.host, server.port), server.weight)).collect();
        let check = config.health.as_ref().map(|health| Check {
            path: health.path.clone(),
            interval: health.interval,
            timeout: health.timeout,
            healthy: health.healthy,
            unhealthy: health.unhealthy,
            tls: own_tls,
        });
        Ok(Self {
            name: name.clone(),
            builtin: config.builtin.map(|Builtin::Echo| Service::Echo),
            group_key: group_key(name, config.tls.as_ref()),
            tls,
            http2: config.http2,
            timeouts: config.timeouts.clone(),
            retries: config.retries.clone(),
            balance: config.balance,
            upkeep: Arc::new(Upkeep { upstream: name.clone(), servers: servers.iter().map(|(server, _)| server.clone()).collect(), check }),
            schedule: ArcSwap::from_pointee(Schedule::unmade()),
            turns: ThreadLocal::new(),
            servers,
            backends,
        })
    }

    /// The upstream of edgeward's own routes.
    pub fn oauth(live: &LiveState) -> Result<Self, Vec<Problem>> {
        let second = Duration::from_secs(1);
        let config = config::Upstream {
            servers: Vec::new(),
            builtin: None,
            balance: Balance::RoundRobin,
            tls: None,
            health: None,
            timeouts: UpstreamTimeouts { connect: second, response: 10 * second, idle: 10 * second },
            retries: None,
            http2: false,
        };
        Ok(Self { builtin: Some(Service::Oauth), ..Self::compile(&OAUTH.into(), &config, live)? })
    }

    /// Makes the upkeep look after this upstream's servers with its settings. Called once, when its snapshot takes effect.
    pub fn activate(&self) {
        self.backends.apply(self.upkeep.clone());
    }

    /// What is known of the backends, for metrics and readiness.
    pub fn backends(&self) -> &Arc<Backends> {
        &self.backends
    }

    /// A backend that is well and not among the tried ones.
    pub fn choose(&self, tried: &[SocketAddr]) -> Result<Chosen, Rejection> {
        let schedule = self.schedule();
        let turn = self.turn();
        let chosen = match self.balance {
            Balance::RoundRobin => schedule.next(turn),
            Balance::Random => schedule.random(turn),
            Balance::LeastRequests => schedule.less_busy(turn, tried),
        };
        let untried = |backend: &&Arc<Backend>| !tried.contains(&backend.address());
        let backend = chosen.filter(untried).or_else(|| schedule.all_from(turn).find(untried)).ok_or(Rejection::NoHealthyUpstream)?;
        Ok(Chosen { address: backend.address(), _in_flight: backend.begin() })
    }

    /// Started anywhere, so that threads, and gateways that start together, do not all send their first requests to the first server.
    fn turn(&self) -> Turn {
        let own = self.turns.get_or(|| AtomicU64::new(RandomState::new().hash_one(&self.name)).into());
        let turn = own.load(Ordering::Relaxed);
        own.store(turn.wrapping_add(1), Ordering::Relaxed);
        Turn(turn)
    }

    /// The schedule over what is well now. It is remade by the first request after a change, at the cost of one pass over the backends.
    fn schedule(&self) -> arc_swap::Guard<Arc<Schedule>> {
        let schedule = self.schedule.load();
        // Read before the backends are: what changes meanwhile is seen by the next request.
        let changes = self.backends.changes();
        if schedule.is_of(changes) {
            return schedule;
        }
        let checked = self.upkeep.check.is_some();
        self.schedule.store(Arc::new(Schedule::new(changes, &self.servers, |backend| !checked || backend.is_well())));
        self.schedule.load()
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// The same settings twice: parsed for the proxy's connections, and for the health checks'.
fn compile_tls(config: &config::UpstreamTls, problems: &mut Vec<Problem>) -> Option<(Tls, net::http::Tls)> {
    if config.server_name.is_empty() {
        problems.push(Problem::at(&config.server_name.place, "a name to verify is required: without one, anybody could answer"));
    }
    let ca = config.ca.as_ref().and_then(|file| certificates(file, problems));
    let client = config.client.as_ref().and_then(|certificate| {
        let chain = certificates(&certificate.chain, problems)?;
        let Ok(key) = PKey::private_key_from_pem(certificate.key.expose()) else {
            problems.push(Problem::at(&certificate.key.place, "not an unencrypted private key in PEM"));
            return None;
        };
        let belongs = chain.first().and_then(|leaf| leaf.public_key().ok()).is_some_and(|public| public.public_eq(&key));
        if !belongs {
            problems.push(Problem::at(&certificate.key.place, "this key does not belong to the certificate"));
        }
        Some((chain, key))
    });
    let own = net::http::Tls {
        ca: config.ca.as_ref().map(|file| file.bytes.to_vec()),
        client: config.client.as_ref().map(|certificate| (certificate.chain.bytes.to_vec(), certificate.key.value.clone())),
        server_name: Some(config.server_name.to_string()),
        connect_to: None,
    };
    let tls = Tls { server_name: config.server_name.value.clone(), ca: ca.map(|ca| Arc::new(ca.into_boxed_slice())), client };
    problems.is_empty().then_some((tls, own))
}

fn certificates(file: &config::File, problems: &mut Vec<Problem>) -> Option<Vec<X509>> {
    match X509::stack_from_pem(&file.bytes) {
        Ok(certificates) if !certificates.is_empty() => Some(certificates),
        _ => {
            problems.push(Problem::at(&file.place, "no certificate in PEM in this file"));
            None
        }
    }
}

fn group_key(name: &str, tls: Option<&config::UpstreamTls>) -> u64 {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(name.as_bytes());
    if let Some(tls) = tls {
        part(tls.server_name.as_bytes());
        part(tls.ca.as_ref().map_or(&[], |file| &file.bytes));
        part(tls.client.as_ref().map_or(&[], |certificate| &certificate.chain.bytes));
        part(tls.client.as_ref().map_or(&[], |certificate| certificate.key.expose()));
    }
    let [a, b, c, d, e, f, g, h, ..] = hash.finish();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{At, Certificate, File, Health, Place, UpstreamServer, UpstreamTls};
    use crate::secret::Secret;

    fn place(path: &str) -> Place {
        Place { file: "edgeward.yaml".into(), line: 1, column: 1, path: path.into() }
    }

    fn config(servers: &[&str], balance: Balance) -> config::Upstream {
        let servers = servers.iter().map(|server| {
            let (host, port) = server.rsplit_once(':').unwrap();
            UpstreamServer { host: At { value: host.into(), place: place("servers") }, port: port.parse().unwrap(), weight: 1 }
        });
        config::Upstream {
            servers: servers.collect(),
            builtin: None,
            balance,
            tls: None,
            health: None,
            timeouts: UpstreamTimeouts { connect: Duration::from_secs(1), response: Duration::from_secs(1), idle: Duration::from_secs(1) },
            retries: None,
            http2: false,
        }
    }

    fn compile(config: &config::Upstream) -> Upstream {
        Upstream::compile(&"orders".into(), config, &LiveState::default()).unwrap()
    }

    fn file(bytes: &[u8], path: &str) -> File {
        File { path: path.into(), bytes: bytes.into(), place: place(path) }
    }

    fn tls(ca: Option<&str>, client: Option<(&str, &str)>) -> UpstreamTls {
        UpstreamTls {
            server_name: At { value: "orders.internal".into(), place: place("tls.server_name") },
            ca: ca.map(|ca| file(ca.as_bytes(), "tls.ca")),
            client: client.map(|(chain, key)| Certificate {
                chain: file(chain.as_bytes(), "tls.client.chain"),
                key: At { value: Secret::new(key.into()), place: place("tls.client.key") },
            }),
        }
    }

    fn certificate() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["orders.internal".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    const ALL: [Balance; 3] = [Balance::RoundRobin, Balance::Random, Balance::LeastRequests];

    #[test]
    fn what_was_tried_is_not_chosen_again_and_then_there_is_none() {
        for balance in ALL {
            let upstream = compile(&config(&["10.0.0.1:80", "10.0.0.2:80", "[2001:db8::1]:80"], balance));
            for _ in 0..50 {
                let mut tried = Vec::new();
                for _ in 0..3 {
                    let chosen = upstream.choose(&tried).unwrap();
                    assert!(!tried.contains(&chosen.address), "{balance:?}");
                    tried.push(chosen.address);
                }
                assert_eq!(upstream.choose(&tried).unwrap_err(), Rejection::NoHealthyUpstream);
            }
        }
    }

    #[test]
    fn a_name_that_never_resolved_and_a_builtin_have_no_backend() {
        for balance in ALL {
            assert_eq!(compile(&config(&["orders.invalid:80"], balance)).choose(&[]).unwrap_err(), Rejection::NoHealthyUpstream);
            assert_eq!(compile(&config(&[], balance)).choose(&[]).unwrap_err(), Rejection::NoHealthyUpstream);
        }
    }

    #[test]
    fn a_chosen_backend_is_in_flight_until_it_is_dropped() {
        let upstream = compile(&config(&["10.0.0.1:80"], Balance::RoundRobin));
        upstream.activate();
        let in_flight = || upstream.backends().status().iter().map(|status| status.in_flight).collect::<Vec<_>>();
        let (first, second) = (upstream.choose(&[]).unwrap(), upstream.choose(&[]).unwrap());
        assert_eq!(in_flight(), [2]);
        drop(first);
        assert_eq!(in_flight(), [1]);
        drop(second);
        assert_eq!(in_flight(), [0]);
    }

    #[test]
    fn compiling_a_candidate_changes_nothing_for_the_running_one() {
        let live = LiveState::default();
        let running = Upstream::compile(&"orders".into(), &config(&["10.0.0.1:80"], Balance::RoundRobin), &live).unwrap();
        running.activate();
        let held = running.choose(&[]).unwrap();
        let candidate = Upstream::compile(&"orders".into(), &config(&["10.0.0.1:80", "10.0.0.2:80"], Balance::RoundRobin), &live).unwrap();
        assert_eq!(running.backends().status().len(), 1);
        assert!((0..10).all(|_| running.choose(&[]).unwrap().address == held.address));

        candidate.activate();
        let status = candidate.backends().status();
        assert_eq!(status.iter().map(|status| status.in_flight).collect::<Vec<_>>(), [1, 0], "what is in flight survives");
        assert!((0..10).all(|_| running.choose(&[]).unwrap().address == held.address), "a request keeps the servers it started with");
    }

    #[test]
    fn connections_are_shared_only_between_equal_trust() {
        let ((ca, key), (other, other_key)) = (certificate(), certificate());
        let plain = config(&["10.0.0.1:443"], Balance::RoundRobin);
        let with = |tls: UpstreamTls| config::Upstream { tls: Some(tls), ..plain.clone() };
        let variants = [
            plain.clone(),
            with(tls(None, None)),
            with(tls(Some(&ca), None)),
            with(tls(Some(&other), None)),
            with(tls(Some(&ca), Some((&ca, &key)))),
            with(tls(Some(&ca), Some((&other, &other_key)))),
        ];
        let keys: std::collections::HashSet<u64> = variants.iter().map(|config| compile(config).group_key).collect();
        assert_eq!(keys.len(), variants.len());
        let other_name = Upstream::compile(&"payments".into(), &plain, &LiveState::default()).unwrap().group_key;
        assert!(!keys.contains(&other_name));
        assert_eq!(compile(&variants[4]).group_key, compile(&variants[4]).group_key, "a reload keeps its connections");
    }

    #[test]
    fn every_problem_with_certificates_is_listed_at_its_place() {
        let ((chain, _), (_, other_key)) = (certificate(), certificate());
        let cases = [
            (tls(Some("not PEM"), None), vec!["tls.ca"]),
            (tls(Some(""), None), vec!["tls.ca"]),
            (tls(Some("no"), Some(("no", "no"))), vec!["tls.ca", "tls.client.chain"]),
            (tls(None, Some((&chain, "no"))), vec!["tls.client.key"]),
            (tls(None, Some((&chain, &other_key))), vec!["tls.client.key"]),
            (
                UpstreamTls { server_name: At { value: "".into(), place: place("tls.server_name") }, ..tls(None, None) },
                vec!["tls.server_name"],
            ),
        ];
        for (tls, expected) in cases {
            let config = config::Upstream { tls: Some(tls), ..config(&["10.0.0.1:443"], Balance::RoundRobin) };
            let problems = Upstream::compile(&"orders".into(), &config, &LiveState::default()).unwrap_err();
            let places: Vec<_> = problems.iter().map(|problem| problem.place.path.to_string()).collect();
            assert_eq!(places, expected);
        }
    }

    #[tokio::test]
    async fn an_upstream_without_a_well_backend_refuses_and_without_checks_does_not() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let health =
            Health { path: "/".into(), interval: Duration::from_millis(10), timeout: Duration::from_secs(5), healthy: 1, unhealthy: 1 };
        let unchecked = config(&[&closed], Balance::RoundRobin);
        let checked = config::Upstream { health: Some(health), ..unchecked.clone() };
        let live = LiveState::default();
        let upstream = Upstream::compile(&"orders".into(), &checked, &live).unwrap();
        upstream.activate();
        assert!(upstream.choose(&[]).is_ok(), "not checked yet");
        let upkeep = live.backends.unmaintained().remove(0);
        let clock: crate::request::Clock = Arc::new(|| crate::request::Now { monotonic: Duration::ZERO, unix: Duration::ZERO });
        tokio::spawn(Backends::maintain(upkeep, clock));
        while !upstream.backends().is_known() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(upstream.choose(&[]).unwrap_err(), Rejection::NoHealthyUpstream);

        let reloaded = Upstream::compile(&"orders".into(), &unchecked, &live).unwrap();
        reloaded.activate();
        assert!(reloaded.choose(&[]).is_ok());
    }
}
