//! The only wiring: listeners, the proxy, the administration, and the housekeeper that keeps live facts fresh.

mod workers;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{IntoRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use pingora::apps::HttpServerOptions;
use pingora::listeners::{L4BufferSettings, ListenerConfig, TcpSocketOptions};
use pingora::server::configuration::ServerConf;
use pingora::server::{ExecutionPhase, Server, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};
use pingora::services::listening::Service;
use tokio::net::TcpSocket;

use crate::admin::Admin;
use crate::config::{Config, System};
use crate::live::leases::Hybrid;
use crate::live::limits::Limits;
use crate::live::oauth_clients::OauthClients;
use crate::live::quotas::Ledger;
use crate::live::revocations::Revocations;
use crate::live::signing_keys::SigningKeys;
use crate::live::{LiveState, api_keys, backends, key_set};
use crate::metrics::Metrics;
use crate::net;
use crate::net::redis::Redis;
use crate::proxy::{self, AccessLog, Front, Gateway, OwnServices, Pools};
use crate::reload::{Candidate, Occasion, Reloader, open_stores};
use crate::request::{Clock, Now};
use crate::snapshot::Slot;
use crate::upstream::echo;
use workers::Workers;

/// Idle connections kept to all upstreams together, per worker: fewer than the callers' concurrency costs 1.2 to 1.4 times.
const POOL: usize = 1024;

/// What is read at once of a connection under TLS, in bytes: a whole record, whose head alone would be asked for otherwise (RFC 8446 section 5.2).
const TLS_READ_BUFFER: usize = 16 * 1024 + 512;

/// Connections that wait to be taken until the framework, which listens again, sets its own number.
const BACKLOG: u32 = 1024;

/// Why the process could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not sound; the problems were printed.
    #[error("{0} problems in the configuration")]
    Configuration(usize),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address of the configuration.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// Something else that the system refused.
    #[error("{0}: {1}")]
    System(&'static str, String),
}

/// Serves until a signal ends the process.
pub fn run(path: PathBuf) -> Result<(), StartError> {
    let clock = clock();
    let metrics = Arc::new(Metrics::new().map_err(|error| StartError::System("metrics", error.to_string()))?);
    let live = Arc::new(LiveState::default());
    let candidate = Candidate::read(&path, &System, &live, &metrics);
    let opened =
        candidate.result.and_then(|(config, snapshot)| open_stores(&config, &live, Occasion::Start, clock()).map(|()| (config, snapshot)));
    let (config, snapshot) = opened.map_err(|problems| {
        for problem in &problems {
            eprintln!("{problem}");
        }
        StartError::Configuration(problems.len())
    })?;
    snapshot.activate();
    let slot = Arc::new(Slot::new(snapshot));
    let access_log =
        AccessLog::start(Arc::clone(&clock), std::io::stdout()).map_err(|error| StartError::System("access log", error.to_string()))?;

    let mut server = Server::new_with_opt_and_conf(None, server_conf(&config));
    server.bootstrap();

    let echo = net::serve::bind().map_err(|error| StartError::System("echo", error.to_string()))?;
    let echo_address = echo.local_addr().map_err(|error| StartError::System("echo", error.to_string()))?;
    let oauth = net::serve::bind().map_err(|error| StartError::System("oauth", error.to_string()))?;
    let oauth_address = oauth.local_addr().map_err(|error| StartError::System("oauth", error.to_string()))?;
    let own = OwnServices { echo: echo_address, oauth: oauth_address };
    let pools = Arc::new(Pools::new(POOL));
    let gateway = Gateway::new(Arc::clone(&slot), Arc::clone(&metrics), access_log, Arc::clone(&clock), own, Arc::clone(&pools));
    let mut framework = pingora_proxy::http_proxy(&server.configuration, gateway.clone());
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(config.server.timeouts.idle);
    framework.server_options = Some(options);
    let mut service = Service::new("edgeward".to_owned(), Front::new(gateway, framework));
    let mut places = Vec::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        let place = Place::take(*listener.address)?;
        let address = place.address;
        if let Some(tls) = &listener.tls {
            let asks = tls.client_certificates.is_some();
            let settings =
                proxy::tls::settings(Arc::clone(&slot), index, asks).map_err(|error| StartError::System("tls", error.to_string()))?;
            let endpoint = ListenerConfig::tcp(address.to_string()).tcp_socket_options(TcpSocketOptions::default()).tls(settings);
            service.add_listener(endpoint.l4_buffer(L4BufferSettings::default().read(TLS_READ_BUFFER)));
        } else {
            // Who reads and who writes has buffers of its own: one more costs a copy, and 64 KiB for each connection.
            service.add_listener(ListenerConfig::tcp(address.to_string()).l4_buffer(L4BufferSettings::unbuffered()));
        }
        places.push(place);
    }
    let addresses = places.iter().map(|place| place.address).collect();
    let workers = Workers::start(threads(&config)).map_err(|error| StartError::System("worker threads", error.to_string()))?;
    let proxy_service = server.add_service(workers.run(service, places));

    let files = candidate.files;
    let reloader = Arc::new(Reloader::new(
        path,
        Box::new(System),
        (&config, files),
        Arc::clone(&live),
        Arc::clone(&slot),
        Arc::clone(&metrics),
        Arc::clone(&clock),
    ));
    let admin = match &config.admin {
        Some(admin) => {
            let listener = TcpListener::bind(*admin.address).map_err(|error| StartError::Listen { address: *admin.address, error })?;
            let address = listener.local_addr().map_err(|error| StartError::Listen { address: *admin.address, error })?;
            tracing::info!(%address, listener = "admin", "listening");
            let state = Admin::new(
                Arc::clone(&slot),
                Arc::clone(&live),
                Arc::clone(&metrics),
                Arc::clone(&reloader),
                admin.token.clone(),
                Arc::clone(&clock),
            );
            Some((listener, Arc::new(state)))
        }
        None => None,
    };
    let mut housekeeper = background_service(
        "housekeeper",
        Housekeeper { live: Arc::clone(&live), reloader, admin, echo, oauth, slot, pools, addresses, clock },
    );
    housekeeper.threads = Some(1);
    let housekeeper = server.add_service(housekeeper);
    // Nobody is served before upkeep has begun.
    proxy_service.add_dependency(&housekeeper);

    end_when_drained(&server, Arc::clone(&metrics), Arc::clone(&live));
    server.run(pingora::server::RunArgs::default());
    workers.end();
    finish(&live);
    Ok(())
}

/// How many threads serve callers.
fn threads(config: &Config) -> usize {
    match config.server.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// Pingora's own settings, made from ours: it never sees the operator's file.
fn server_conf(config: &Config) -> ServerConf {
    ServerConf {
        // No service runs on so many of the framework's threads; it sizes its pools and its shards by them.
        threads: threads(config),
        upstream_keepalive_pool_size: POOL,
        grace_period_seconds: Some(config.server.timeouts.drain.as_secs()),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    }
}

/// Where callers will be listened for. The socket holds the port and does not listen: whoever comes before the gateway serves is refused by the
/// system and knows to come again, where a connection that was taken would be reset.
struct Place {
    address: SocketAddr,
    socket: TcpSocket,
}

impl Place {
    /// Takes an address. Port 0 asks the system for a free one, and the framework would not tell which it got.
    fn take(address: SocketAddr) -> Result<Self, StartError> {
        let take = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // The connections of a process before this one may not have been forgotten yet.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            Ok(Self { address: socket.local_addr()?, socket })
        };
        take().map_err(|error| StartError::Listen { address, error })
    }

    /// The socket, which listens now. The system tells only here that another got ahead, or that two places overlap, such as `0.0.0.0` and `[::]`.
    fn listen(self) -> Result<RawFd, StartError> {
        let Self { address, socket } = self;
        let listening = socket.listen(BACKLOG).and_then(tokio::net::TcpListener::into_std);
        listening.map(IntoRawFd::into_raw_fd).map_err(|error| StartError::Listen { address, error })
    }
}

/// The one clock of the process. How far the time of people is from its own is looked up once in a second: it is set by hand and by NTP, and to
/// ask the system for both costs twice as much, several times for each request.
#[expect(clippy::disallowed_methods, reason = "the clock that all others are handed")]
pub fn clock() -> Clock {
    let started = Instant::now();
    let since_epoch = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // The second of the last look, and when in the epoch the process started, in nanoseconds.
    let (looked, began) = (AtomicU64::new(0), AtomicU64::new(nanoseconds(since_epoch())));
    Arc::new(move || {
        let monotonic = started.elapsed();
        let second = monotonic.as_secs();
        if looked.load(Ordering::Relaxed) != second && looked.swap(second, Ordering::Relaxed) != second {
            began.store(nanoseconds(since_epoch().saturating_sub(monotonic)), Ordering::Relaxed);
        }
        Now { monotonic, unix: Duration::from_nanos(began.load(Ordering::Relaxed)) + monotonic }
    })
}

/// Until the year 2554.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Pingora sleeps the whole grace period after `SIGTERM`, idle or not; this ends the process when the last request has.
fn end_when_drained(server: &Server, metrics: Arc<Metrics>, live: Arc<LiveState>) {
    let mut phases = server.watch_execution_phase();
    std::thread::spawn(move || {
        while let Ok(phase) = phases.blocking_recv() {
            if matches!(phase, ExecutionPhase::ShutdownGracePeriod) {
                break;
            }
        }
        // Connections that were accepted in the last moment get to send their request.
        std::thread::sleep(Duration::from_millis(200));
        while metrics.in_flight.get() > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        // The last answers are in the kernel's buffers; the access log's writer gets its turn.
        std::thread::sleep(Duration::from_millis(50));
        finish(&live);
        std::process::exit(0);
    });
}

/// What must not be lost when the process ends.
fn finish(live: &LiveState) {
    for (_, keys) in live.api_keys.living() {
        keys.flush();
    }
    for (_, ledger) in live.ledgers.living() {
        ledger.flush();
    }
}

/// Everything that happens without a request.
struct Housekeeper {
    live: Arc<LiveState>,
    reloader: Arc<Reloader>,
    admin: Option<(TcpListener, Arc<Admin>)>,
    echo: TcpListener,
    oauth: TcpListener,
    slot: Arc<Slot>,
    pools: Arc<Pools>,
    /// Where callers are listened for.
    addresses: Vec<SocketAddr>,
    clock: Clock,
}

#[async_trait]
impl BackgroundService for Housekeeper {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        if let Err(error) = self.serve_own() {
            tracing::error!(%error, "an own listener could not be served");
            std::process::exit(1);
        }
        let reloader = Arc::clone(&self.reloader);
        tokio::spawn(async move {
            if let Err(error) = reloader.watch().await {
                tracing::error!(%error, "the configuration is not watched");
            }
        });
        tokio::spawn(announce(self.addresses.clone(), self.admin.as_ref().map(|(_, admin)| Arc::clone(admin))));
        let mut rounds = tokio::time::interval(Duration::from_millis(200));
        loop {
            tokio::select! {
                _ = rounds.tick() => {
                    self.maintain();
                    self.pools.sweep((self.clock)().monotonic);
                }
                _ = shutdown.changed() => return,
            }
        }
    }
}

/// Says where callers are listened for, once they are: the framework listens after all services have started, and does not tell.
async fn announce(addresses: Vec<SocketAddr>, admin: Option<Arc<Admin>>) {
    for address in addresses {
        let reachable = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
            IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port()),
            _ => address,
        };
        while tokio::net::TcpStream::connect(reachable).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tracing::info!(%address, listener = "data", "listening");
    }
    tracing::info!("serving");
    if let Some(admin) = admin {
        admin.listening();
    }
}

impl Housekeeper {
    /// Starts the upkeep of facts that a new snapshot brought.
    fn maintain(&self) {
        for keys in self.live.key_sets.unmaintained() {
            tokio::spawn(key_set::KeySet::maintain(keys, Arc::clone(&self.clock)));
        }
        for keys in self.live.api_keys.unmaintained() {
            tokio::spawn(api_keys::ApiKeys::maintain(keys, Arc::clone(&self.clock)));
        }
        for limits in self.live.limits.unmaintained() {
            tokio::spawn(Limits::maintain(limits, Arc::clone(&self.clock)));
        }
        for redis in self.live.redis.unmaintained() {
            tokio::spawn(Redis::maintain(redis));
        }
        for leases in self.live.leases.unmaintained() {
            tokio::spawn(Hybrid::maintain(leases, Arc::clone(&self.clock)));
        }
        for ledger in self.live.ledgers.unmaintained() {
            tokio::spawn(Ledger::maintain(ledger, Arc::clone(&self.clock)));
        }
        for revocations in self.live.revocations.unmaintained() {
            tokio::spawn(Revocations::maintain(revocations, Arc::clone(&self.clock)));
        }
        for keys in self.live.signing_keys.unmaintained() {
            tokio::spawn(SigningKeys::maintain(keys, Arc::clone(&self.clock)));
        }
        for clients in self.live.oauth_clients.unmaintained() {
            tokio::spawn(OauthClients::maintain(clients, Arc::clone(&self.clock)));
        }
        for backends in self.live.backends.unmaintained() {
            tokio::spawn(backends::Backends::maintain(backends, Arc::clone(&self.clock)));
        }
    }

    fn serve_own(&self) -> std::io::Result<()> {
        if let Some((listener, admin)) = &self.admin {
            let admin = Arc::clone(admin);
            crate::net::serve::spawn(listener.try_clone()?, move |request| {
                let admin = Arc::clone(&admin);
                async move { admin.answer(request).await }
            })?;
        }
        let (slot, clock) = (Arc::clone(&self.slot), Arc::clone(&self.clock));
        net::serve::spawn(self.oauth.try_clone()?, move |request| {
            let (snapshot, now) = (slot.load(), clock());
            async move {
                match (snapshot.documents.answer(&request), &snapshot.issuer) {
                    (Some(document), _) => document,
                    (None, Some(issuer)) => issuer.answer(request, now, || fastrand::u128(..)).await,
                    (None, None) => crate::issuer::nobody(),
                }
            }
        })?;
        net::serve::spawn(self.echo.try_clone()?, echo::answer)
    }
}
