//! Backends: where the names of an upstream resolve to and which addresses are well, learnt in the background so that no request waits for it.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ahash::RandomState;
use arc_swap::ArcSwap;
use crossbeam_utils::CachePadded;
use http::{HeaderMap, HeaderValue, header};
use thread_local::ThreadLocal;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::live::Registry;
use crate::net::http::{Client, Limits, Tls};
use crate::request::Clock;

/// How often a name is looked up: DNS tells no TTL through the system's resolver, and five seconds is what nginx and HAProxy users know.
const RESOLVE_EVERY: Duration = Duration::from_secs(5);

/// A name with more addresses than this is cut, so that an answer of the DNS cannot fill the memory.
const ADDRESSES_PER_NAME: usize = 64;

/// A health page may be verbose, and is thrown away.
const HEALTH_BODY: usize = 1024 * 1024;

/// What is known of one upstream's servers. It outlives a reload; [`apply`](Backends::apply) says what to look after from now on.
#[derive(Debug, Default)]
pub struct Backends {
    servers: Registry<(Arc<str>, u16), Server>,
    backends: Registry<SocketAddr, Backend>,
    upkeep: ArcSwap<Upkeep>,
    changes: Arc<Changes>,
}

/// What the upkeep looks after: the servers to resolve, and how to check the health of each of their addresses.
#[derive(Debug, Default)]
pub struct Upkeep {
    /// The name of the upstream, for the log.
    pub upstream: Arc<str>,
    /// The servers, in the order of the configuration.
    pub servers: Vec<Arc<Server>>,
    /// Absent: every backend is taken to be well.
    pub check: Option<Check>,
}

/// An active health check: any answer of 2xx or 3xx within the time is a good one.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Path and query to ask for.
    pub path: Arc<str>,
    /// Time between two checks; each is moved by up to a tenth, so that a fleet of gateways does not check in step.
    pub interval: Duration,
    /// Time for a whole answer.
    pub timeout: Duration,
    /// Good checks in a row that make an unwell backend well.
    pub healthy: u32,
    /// Failed checks in a row that make a well backend unwell.
    pub unhealthy: u32,
    /// Present: over TLS, verified as requests are.
    pub tls: Option<Tls>,
}

/// One `host:port` of the configuration and what it resolves to.
#[derive(Debug)]
pub struct Server {
    host: Arc<str>,
    port: u16,
    backends: ArcSwap<Vec<Arc<Backend>>>,
}

/// One address, and how it fares.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    health: AtomicU8,
    /// Checks in a row that speak against `health`.
    against: AtomicU32,
    /// What the requests of each thread refer to, so that those of one core do not write where another's do.
    in_flight: ThreadLocal<InFlight>,
    changes: Arc<Changes>,
}

/// A request that a backend is answering, for as long as this is kept.
pub type InFlight = Arc<CachePadded<()>>;

/// How a backend stands, for metrics, readiness and the dashboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendStatus {
    /// Its address.
    pub address: SocketAddr,
    /// Whether requests are sent to it.
    pub healthy: bool,
    /// Requests that it is answering now.
    pub in_flight: usize,
}

/// Counts what whoever has laid a plan over the backends must know of, and wakes the upkeep when there is other work.
#[derive(Debug, Default)]
struct Changes {
    count: AtomicU64,
    work: Notify,
}

const UNKNOWN: u8 = 0;
const WELL: u8 = 1;
const UNWELL: u8 = 2;

impl Backends {
    /// The server of this host and port. A literal address is there at once, a name after its first look-up.
    pub fn server(&self, host: &Arc<str>, port: u16) -> Arc<Server> {
        self.servers.find_or_create(&(host.clone(), port), || {
            let server = Server { host: host.clone(), port, backends: ArcSwap::default() };
            server.backends.store(Arc::new(server.literal().into_iter().map(|address| self.backend(address)).collect()));
            server
        })
    }

    fn backend(&self, address: SocketAddr) -> Arc<Backend> {
        self.backends.find_or_create(&address, || Backend {
            address,
            health: AtomicU8::new(UNKNOWN),
            against: AtomicU32::new(0),
            in_flight: ThreadLocal::new(),
            changes: self.changes.clone(),
        })
    }

    /// Goes up whenever an address comes or goes and whenever one becomes well or unwell.
    pub fn changes(&self) -> u64 {
        self.changes.count.load(Ordering::Acquire)
    }

    /// Looks after these from now on. Called when a configuration takes effect, never while one is only being judged.
    pub fn apply(&self, upkeep: Arc<Upkeep>) {
        if upkeep.check.is_none() {
            self.backends.living().iter().for_each(|(_, backend)| backend.forget());
        }
        self.upkeep.store(upkeep);
        self.changes.work.notify_one();
    }

    /// How each backend stands, in the order of the configuration.
    pub fn status(&self) -> Vec<BackendStatus> {
        self.upkeep.load().backends().iter().map(|(_, backend)| backend.status()).collect()
    }

    /// Whether every name has been resolved and every backend checked once, so that the first requests find what is there.
    pub fn is_known(&self) -> bool {
        let upkeep = self.upkeep.load();
        let checked = |backend: &Arc<Backend>| upkeep.check.is_none() || backend.health.load(Ordering::Relaxed) != UNKNOWN;
        upkeep.servers.iter().all(|server| !server.backends().is_empty() && server.backends().iter().all(checked))
    }

    /// Resolves and checks until nobody uses these backends any more.
    pub async fn maintain(this: Weak<Self>, _: Clock) {
        let mut tasks = JoinSet::new();
        let mut looked_after = (Arc::new(Upkeep::default()), Vec::new());
        loop {
            let Some(backends) = this.upgrade() else { return };
            let upkeep = backends.upkeep.load_full();
            let addresses = upkeep.backends();
            if !looked_after.0.asks_the_same(&upkeep) || looked_after.1 != addresses {
                // The tasks keep nothing to themselves: what they learn is in the servers and backends, so they can be started afresh.
                tasks.abort_all();
                tasks = JoinSet::new();
                for server in upkeep.servers.iter().filter(|server| server.literal().is_none()) {
                    tasks.spawn(resolve(this.clone(), server.clone(), upkeep.upstream.clone()));
                }
                for (server, backend) in &addresses {
                    if let Some(check) = &upkeep.check {
                        tasks.spawn(watch(server.clone(), backend.clone(), check.clone(), upkeep.upstream.clone()));
                    }
                }
                looked_after = (upkeep, addresses);
            }
            let changes = backends.changes.clone();
            drop(backends);
            changes.work.notified().await;
        }
    }

    /// Takes what a look-up found. Nothing found keeps what was known.
    fn learn(&self, server: &Server, mut found: Vec<SocketAddr>) {
        // A name with both families is most often the same machines twice, and IPv6 is the one that lacks a listener (`localhost`).
        if found.iter().any(SocketAddr::is_ipv4) {
            found.retain(SocketAddr::is_ipv4);
        }
        found.sort_unstable();
        found.dedup();
        found.truncate(ADDRESSES_PER_NAME);
        let known = server.backends();
        if found.is_empty() || found.iter().eq(known.iter().map(|backend| &backend.address)) {
            return;
        }
        server.backends.store(Arc::new(found.into_iter().map(|address| self.backend(address)).collect()));
        self.changes.record();
        self.changes.work.notify_one();
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        self.changes.work.notify_one();
    }
}

impl Upkeep {
    /// Each address once, with the first server that has it.
    fn backends(&self) -> Vec<(Arc<Server>, Arc<Backend>)> {
        let mut seen = HashSet::new();
        let all = self
            .servers
            .iter()
            .flat_map(|server| server.backends().iter().map(|backend| (server.clone(), backend.clone())).collect::<Vec<_>>());
        all.filter(|(_, backend)| seen.insert(backend.address)).collect()
    }

    fn asks_the_same(&self, other: &Self) -> bool {
        self.servers == other.servers && self.check == other.check
    }
}

/// A server is itself, and equal to no other.
impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

/// A backend is itself, and equal to no other.
impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Server {
    /// What it resolves to now; empty as long as its name has never been resolved.
    pub fn backends(&self) -> Arc<Vec<Arc<Backend>>> {
        self.backends.load_full()
    }

    fn literal(&self) -> Option<SocketAddr> {
        let ip = self.host.trim_matches(['[', ']']).parse::<IpAddr>().ok()?;
        Some(SocketAddr::new(ip, self.port))
    }
}

impl Backend {
    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// False only when checks have failed: what has not been checked yet is taken to be well.
    pub fn is_well(&self) -> bool {
        self.health.load(Ordering::Relaxed) != UNWELL
    }

    /// Requests that it is answering now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.iter().map(|own| Arc::strong_count(own).saturating_sub(1)).sum()
    }

    /// One request more, until what this returns is dropped.
    pub fn begin(&self) -> InFlight {
        Arc::clone(self.in_flight.get_or_default())
    }

    fn status(&self) -> BackendStatus {
        BackendStatus { address: self.address, healthy: self.is_well(), in_flight: self.in_flight() }
    }

    /// Takes the outcome of a check, and says whether it turned the backend. The first check decides alone: there is nothing to stay with.
    fn learn(&self, good: bool, check: &Check) -> bool {
        let said = if good { WELL } else { UNWELL };
        let health = self.health.load(Ordering::Relaxed);
        if health == said {
            self.against.store(0, Ordering::Relaxed);
            return false;
        }
        let against = self.against.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let needed = if good { check.healthy } else { check.unhealthy };
        if health != UNKNOWN && against < needed {
            return false;
        }
        self.against.store(0, Ordering::Relaxed);
        self.health.store(said, Ordering::Relaxed);
        self.changes.record();
        true
    }

    fn forget(&self) {
        self.against.store(0, Ordering::Relaxed);
        if self.health.swap(UNKNOWN, Ordering::Relaxed) != UNKNOWN {
            self.changes.record();
        }
    }
}

impl Changes {
    fn record(&self) {
        self.count.fetch_add(1, Ordering::Release);
    }
}

/// Looks a name up for ever. One look-up at a time: the system's resolver cannot be told to stop, and may keep a thread for half a minute.
async fn resolve(backends: Weak<Backends>, server: Arc<Server>, upstream: Arc<str>) {
    let jitter = Jitter::new();
    loop {
        let found = tokio::net::lookup_host((&*server.host, server.port)).await;
        let Some(backends) = backends.upgrade() else { return };
        match found {
            Ok(found) => backends.learn(&server, found.collect()),
            Err(error) => tracing::warn!(%upstream, host = %server.host, %error, "cannot resolve; the last known addresses stay"),
        }
        drop(backends);
        tokio::time::sleep(jitter.around(RESOLVE_EVERY)).await;
    }
}

/// Checks one backend for ever.
async fn watch(server: Arc<Server>, backend: Arc<Backend>, check: Check, upstream: Arc<str>) {
    let scheme = if check.tls.is_some() { "https" } else { "http" };
    let host = check.tls.as_ref().and_then(|tls| tls.server_name.as_deref()).unwrap_or(&server.host);
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    let url = format!("{scheme}://{host}:{}{}", server.port, check.path);
    let tls = Tls { connect_to: Some(backend.address), ..check.tls.clone().unwrap_or_default() };
    let client = match Client::new(&tls) {
        Ok(client) => client,
        // `upstream` has made a client of the same certificates, so this is a fault of ours; a backend that cannot be checked is not well.
        Err(error) => {
            tracing::error!(%upstream, address = %backend.address, %error, "cannot check");
            backend.learn(false, &Check { unhealthy: 0, ..check });
            return;
        }
    };
    // A new connection each time: a backend that no longer accepts connections is not well, though it may still answer on an old one.
    let headers = HeaderMap::from_iter([(header::CONNECTION, HeaderValue::from_static("close"))]);
    let limits = Limits { deadline: check.timeout, body: HEALTH_BODY };
    let jitter = Jitter::new();
    loop {
        let answer = client.get(&url, &headers, limits).await;
        let (good, said) = match &answer {
            Ok(answer) => {
                (answer.status().is_success() || answer.status().is_redirection(), format!("status {}", answer.status().as_u16()))
            }
            Err(error) => (false, error.to_string()),
        };
        if backend.learn(good, &check) {
            tracing::info!(%upstream, address = %backend.address, healthy = good, reason = said, "backend health");
        }
        tokio::time::sleep(jitter.around(check.interval)).await;
    }
}

/// Moves times by up to a tenth. A hash of a counter under a seed of its own is random enough to fall out of step.
struct Jitter(RandomState, AtomicU64);

impl Jitter {
    fn new() -> Self {
        Self(RandomState::new(), AtomicU64::new(0))
    }

    fn around(&self, time: Duration) -> Duration {
        let step = self.0.hash_one(self.1.fetch_add(1, Ordering::Relaxed)) % 201;
        time * (900 + step as u32) / 1000
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, AtomicUsize};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::request::Now;

    fn check(healthy: u32, unhealthy: u32) -> Check {
        Check {
            path: "/health".into(),
            interval: Duration::from_millis(10),
            timeout: Duration::from_secs(5),
            healthy,
            unhealthy,
            tls: None,
        }
    }

    fn upkeep(servers: &[&Arc<Server>], check: Option<Check>) -> Arc<Upkeep> {
        Arc::new(Upkeep { upstream: "orders".into(), servers: servers.iter().map(|server| (*server).clone()).collect(), check })
    }

    fn addresses(server: &Server) -> Vec<String> {
        server.backends().iter().map(|backend| backend.address.to_string()).collect()
    }

    #[test]
    fn thresholds_turn_a_backend_and_a_single_outlier_does_not() {
        // Each letter is a check: g(ood) or b(ad). After it stands what the backend is then.
        let cases = [
            ("the first check decides alone", "b-"),
            ("the first check decides alone when good, too", "g+"),
            ("three bad ones in a row turn it, two good ones turn it back", "g+b+b+b-g-g+"),
            ("a good one in between begins the count anew", "g+b+b+g+b+b+b-"),
            ("a bad one in between begins the count anew", "b-g-b-g-g+"),
        ];
        for (case, story) in cases {
            let backends = Backends::default();
            let backend = backends.backend(([10, 0, 0, 1], 80).into());
            assert!(backend.is_well(), "{case}: what was not checked is taken to be well");
            for step in story.as_bytes().chunks(2) {
                let before = (backend.health.load(Ordering::Relaxed), backends.changes());
                let turned = backend.learn(step[0] == b'g', &check(2, 3));
                assert_eq!(backend.is_well(), step[1] == b'+', "{case}");
                assert_eq!(turned, backend.health.load(Ordering::Relaxed) != before.0, "{case}");
                assert_eq!(turned, backends.changes() > before.1, "{case}: whoever laid a plan hears of each turn and of nothing else");
            }
        }
    }

    #[test]
    fn literal_addresses_are_there_at_once() {
        let backends = Backends::default();
        for (host, expected) in
            [("10.0.0.1", vec!["10.0.0.1:80"]), ("::1", vec!["[::1]:80"]), ("[::1]", vec!["[::1]:80"]), ("orders.internal", vec![])]
        {
            assert_eq!(addresses(&backends.server(&host.into(), 80)), expected);
        }
    }

    #[test]
    fn a_lookup_replaces_the_addresses_and_an_empty_one_keeps_them() {
        let backends = Backends::default();
        let server = backends.server(&"orders.internal".into(), 80);
        let found = |list: &[&str]| list.iter().map(|address| address.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let cases: [(&[&str], &[&str], bool); 5] = [
            (&["10.0.0.2:80", "10.0.0.1:80", "10.0.0.2:80"], &["10.0.0.1:80", "10.0.0.2:80"], true),
            (&["10.0.0.1:80", "10.0.0.2:80"], &["10.0.0.1:80", "10.0.0.2:80"], false),
            (&[], &["10.0.0.1:80", "10.0.0.2:80"], false),
            (&["[::1]:80", "127.0.0.1:80"], &["127.0.0.1:80"], true),
            (&["[::1]:80"], &["[::1]:80"], true),
        ];
        for (answer, expected, changed) in cases {
            let before = backends.changes();
            backends.learn(&server, found(answer));
            assert_eq!(addresses(&server), expected);
            assert_eq!(backends.changes() > before, changed);
        }
        backends.learn(&server, (0..200).map(|i| ([10, 0, 1, i], 80).into()).collect());
        assert_eq!(server.backends().len(), ADDRESSES_PER_NAME);
    }

    #[test]
    fn health_is_kept_by_address_while_a_lookup_still_finds_it() {
        let backends = Backends::default();
        let server = backends.server(&"orders.internal".into(), 80);
        backends.learn(&server, vec![([10, 0, 0, 1], 80).into()]);
        server.backends()[0].learn(false, &check(1, 1));
        backends.learn(&server, vec![([10, 0, 0, 1], 80).into(), ([10, 0, 0, 2], 80).into()]);
        assert_eq!(server.backends().iter().map(|backend| backend.is_well()).collect::<Vec<_>>(), [false, true]);
    }

    /// A server whose status can be set, and which counts the questions to `/health`.
    async fn origin() -> (SocketAddr, Arc<AtomicU16>, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (status, asked) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
        let (answer, count) = (status.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.unwrap_or(0);
                if request[..length].starts_with(b"GET /health HTTP/1.1\r\n") {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                let answer = format!("HTTP/1.1 {} X\r\nContent-Length: 0\r\n\r\n", answer.load(Ordering::Relaxed));
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (address, status, asked)
    }

    fn maintained(backends: &Arc<Backends>) -> tokio::task::JoinHandle<()> {
        let clock: Clock = Arc::new(|| Now { monotonic: Duration::ZERO, unix: Duration::ZERO });
        tokio::spawn(Backends::maintain(Arc::downgrade(backends), clock))
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        for _ in 0..1000 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within ten seconds: {what}");
    }

    #[tokio::test]
    async fn checks_follow_the_backend_down_and_up_again() {
        let (address, status, _) = origin().await;
        let backends = Arc::new(Backends::default());
        let server = backends.server(&"127.0.0.1".into(), address.port());
        backends.apply(upkeep(&[&server], Some(check(2, 2))));
        let _upkeep = maintained(&backends);
        until("known", || backends.is_known()).await;
        assert!(server.backends()[0].is_well());
        for (code, well) in [(500, false), (302, true), (404, false), (204, true), (503, false)] {
            status.store(code, Ordering::Relaxed);
            until(&format!("{code}"), || server.backends()[0].is_well() == well).await;
        }
    }

    #[tokio::test]
    async fn other_settings_take_effect_on_the_running_upkeep_and_keep_what_was_learnt() {
        let (address, status, asked) = origin().await;
        status.store(500, Ordering::Relaxed);
        let backends = Arc::new(Backends::default());
        let server = backends.server(&"127.0.0.1".into(), address.port());
        let _upkeep = maintained(&backends);
        let slow = Check { interval: Duration::from_secs(3600), ..check(2, 2) };
        backends.apply(upkeep(&[&server], Some(slow.clone())));
        until("unwell", || !server.backends()[0].is_well()).await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);

        backends.apply(upkeep(&[&server], Some(check(1000, 2))));
        until("checked often", || asked.load(Ordering::Relaxed) > 5).await;
        assert!(!server.backends()[0].is_well(), "the health outlives the settings");

        backends.apply(upkeep(&[&server], None));
        until("well without checks", || server.backends()[0].is_well()).await;
    }

    #[tokio::test]
    async fn a_name_is_resolved_in_the_background() {
        let backends = Arc::new(Backends::default());
        let server = backends.server(&"localhost".into(), 80);
        let _upkeep = maintained(&backends);
        backends.apply(upkeep(&[&server], None));
        until("resolved", || backends.is_known()).await;
        assert_eq!(addresses(&server), ["127.0.0.1:80"]);
    }

    #[tokio::test]
    async fn upkeep_ends_when_nobody_uses_the_backends() {
        let backends = Arc::new(Backends::default());
        let upkeep = maintained(&backends);
        tokio::task::yield_now().await;
        drop(backends);
        tokio::time::timeout(Duration::from_secs(10), upkeep).await.unwrap().unwrap();
    }
}
