//! The one door to Redis: a pipelined connection that is kept in the background, so that no request waits for one to be made, nor longer
//! than its deadline for an answer.
//!
//! While Redis is away every call fails at once: what was a breaker's probe is made here, in the background, and costs no request anything.
//! A cluster is served by following it to the one node that holds our slot: every key of ours has the same [`TAG`].

use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hyper_openssl::SslStream;
use hyper_util::rt::TokioIo;
use openssl::ssl::SslConnector;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, RedisConnectionInfo, RedisError, ServerErrorKind, ToRedisArgs, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::http::{Tls, ssl_connector};
use crate::secret::Secret;

/// What every key begins with. A cluster places keys by what stands in the braces, and one script may touch the keys of one place only.
pub const TAG: &str = "{edgeward}:";

/// Time for a whole connection: name, TCP, TLS, login and proof. A Redis that stands still is tried again after it.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// How often a connection has to prove itself, and how soon at the latest one that nobody uses is found dead.
const PROVE_EVERY: Duration = Duration::from_secs(1);

/// Deadlines in a row after which nobody asks until the connection has proved itself again.
const STRIKES: u32 = 3;

/// Pauses between attempts, doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// A cluster that sends us from node to node more often is being rebuilt: it is asked again after a pause.
const HOPS: u32 = 5;

/// Connected is not enough: a replica, a full server or a user who may do nothing answers as well. This asks for all that scripts need.
const PROOF: &str =
    "return {redis.call('TIME')[1] * 1, redis.call('SET', KEYS[1], ARGV[1], 'PX', 1000) and redis.call('GET', KEYS[1]) * 1}";

/// Where Redis is, and as whom to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// A DNS name or an address; IPv6 without brackets.
    pub host: Arc<str>,
    /// The port.
    pub port: u16,
    /// Who logs in; absent: the default user.
    pub user: Option<Arc<str>>,
    /// With which password; absent: without logging in.
    pub password: Option<Secret>,
    /// The number of the database.
    pub database: u32,
    /// Present: over TLS, with the certificate verified for the host.
    pub tls: Option<Tls>,
}

/// As the log may show it.
impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}{close}:{}/{}", self.host, self.port, self.database)
    }
}

/// Without the secrets: what is equal hashes alike all the same.
impl Hash for Server {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.host, self.port, &self.user, self.database).hash(state);
    }
}

/// A Lua script, run by its digest.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    digest: String,
}

impl Script {
    /// The script of this text.
    pub fn new(text: &'static str) -> Self {
        // SHA-1 is how Redis names scripts; nothing rests on it being hard to collide.
        let digest = openssl::sha::sha1(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { text, digest }
    }

    fn command(&self, verb: &str, keys: &[Vec<u8>], arguments: &[impl ToRedisArgs]) -> Cmd {
        let mut command = redis::cmd(verb);
        command.arg(if verb == "EVALSHA" { self.digest.as_str() } else { self.text }).arg(keys.len()).arg(keys).arg(arguments);
        command
    }
}

/// Why there is no answer. The text may be logged: it holds no key and no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no connection that proved itself; no time was lost.
    #[error("away")]
    Away,
    /// No answer in time. Whether the script ran is unknown.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// The connection ended. Whether the script ran is unknown.
    #[error("{0}")]
    Connection(String),
    /// Redis answered with an error.
    #[error("{0}")]
    Answer(String),
}

impl CallError {
    /// One word for the cause, for logs and metric labels.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Deadline(_) => "deadline",
            Self::Connection(_) => "connection",
            Self::Answer(_) => "answer",
        }
    }
}

/// One Redis, kept connected by [`maintain`](Self::maintain).
#[derive(Debug)]
pub struct Redis {
    server: Server,
    tls: Option<TlsConnector>,
    line: ArcSwapOption<Line>,
    /// Wakes the upkeep: the connection has to prove itself before anybody uses it again.
    doubt: Arc<Notify>,
    standing: watch::Sender<Standing>,
    connections: AtomicU64,
}

/// How a Redis stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Standing {
    /// It was not tried yet.
    #[default]
    Untried,
    /// Calls are answered.
    Up,
    /// It is away, or not as it must be: what is wrong.
    Away(String),
}

/// A connection that proved itself.
#[derive(Debug)]
struct Line {
    connection: MultiplexedConnection,
    strikes: AtomicU32,
    /// The refusal that was logged last.
    refusal: Mutex<String>,
}

impl Line {
    /// Logs a refusal, but not again and again: a key that is not ours may be asked for by every request.
    fn tell(&self, server: &Server, error: &str) {
        let mut last = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != error {
            tracing::warn!(redis = %server, %error, "Redis refused a script");
            error.clone_into(&mut last);
        }
    }
}

/// Not shown: it may hold a private key.
struct TlsConnector(SslConnector);

impl std::fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsConnector(..)")
    }
}

/// Why a connection is not used.
enum Fault {
    Wrong(String),
    /// Our slot is on another node of the cluster.
    Moved(String, u16),
}

impl Redis {
    /// A Redis that is not connected yet, or what is wrong with its certificates or its password.
    pub fn new(server: Server) -> Result<Self, String> {
        let tls = server.tls.as_ref().map(ssl_connector).transpose()?.map(|builder| TlsConnector(builder.build()));
        if server.password.as_ref().is_some_and(|password| std::str::from_utf8(password.expose()).is_err()) {
            return Err("the password of Redis is not UTF-8".to_owned());
        }
        let (line, doubt, standing) = (ArcSwapOption::empty(), Arc::default(), watch::Sender::default());
        Ok(Self { server, tls, line, doubt, standing, connections: AtomicU64::new(0) })
    }

    /// Runs a script once and hands over its answer. Fails at once while Redis is known to be away, and otherwise by the deadline.
    ///
    /// After an error the script may have run all the same, but when [`CallError::Away`] is it.
    pub async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[Vec<u8>],
        arguments: &[impl ToRedisArgs],
        deadline: Duration,
    ) -> Result<T, CallError> {
        let until = Instant::now() + deadline;
        let line = match self.line.load_full() {
            Some(line) => line,
            None => self.first_line(until).await.ok_or(CallError::Away)?,
        };
        let exchange = async {
            match send(&line.connection, script.command("EVALSHA", keys, arguments)).await {
                // Redis was restarted, or its scripts were flushed: the text brings it back for everybody.
                Err(error) if kind(&error) == Some(ServerErrorKind::NoScript) => {
                    send(&line.connection, script.command("EVAL", keys, arguments)).await
                }
                answered => answered,
            }
        };
        match tokio::time::timeout_at(until, exchange).await {
            Ok(Ok(answer)) => {
                // Read before it is written: the line is shared by all cores.
                if line.strikes.load(Ordering::Relaxed) > 0 {
                    line.strikes.store(0, Ordering::Relaxed);
                }
                Ok(answer)
            }
            Ok(Err(error)) if error.is_connection_dropped() || error.is_io_error() => {
                let error = error.to_string();
                self.withdraw(&line, &error);
                Err(CallError::Connection(error))
            }
            Ok(Err(error)) => {
                let everybody = concerns_everybody(&error);
                let error = error.to_string();
                if everybody {
                    self.withdraw(&line, &error);
                } else {
                    line.tell(&self.server, &error);
                }
                Err(CallError::Answer(error))
            }
            Err(_) => {
                if line.strikes.fetch_add(1, Ordering::Relaxed) + 1 >= STRIKES {
                    self.withdraw(&line, &format!("no answer within {deadline:?}, {STRIKES} times"));
                }
                Err(CallError::Deadline(deadline))
            }
        }
    }

    /// The connection that is being made for the first time: a process that has just started is not without Redis yet.
    async fn first_line(&self, until: Instant) -> Option<Arc<Line>> {
        let mut standing = self.standing.subscribe();
        tokio::time::timeout_at(until, standing.wait_for(|standing| *standing != Standing::Untried)).await.ok()?.ok()?;
        self.line.load_full()
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// How many connections were made: over another one, another server may answer, or the same one without what it had.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Where it is.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Connects, proves the connection again and again, and connects anew when it is lost, until nobody holds it any more.
    pub async fn maintain(this: Weak<Self>) {
        let (mut pause, mut hops) = (FIRST_PAUSE, 0);
        let mut node = None;
        loop {
            let Some(redis) = this.upgrade() else { return };
            let opened = match tokio::time::timeout(CONNECT_LIMIT, redis.open(node.take())).await {
                Ok(opened) => opened,
                Err(_) => Err(Fault::Wrong(format!("no connection within {CONNECT_LIMIT:?}"))),
            };
            let fault = match opened {
                Ok((connection, driver)) => {
                    (pause, hops) = (FIRST_PAUSE, 0);
                    redis.connections.fetch_add(1, Ordering::Relaxed);
                    redis.publish(&connection);
                    let doubt = Arc::clone(&redis.doubt);
                    drop(redis);
                    let fault = keep(&this, connection, &doubt, driver).await;
                    let Some(fault) = fault else { return };
                    fault
                }
                Err(fault) => fault,
            };
            let Some(redis) = this.upgrade() else { return };
            redis.line.store(None);
            match fault {
                Fault::Moved(host, port) if hops < HOPS => {
                    hops += 1;
                    node = Some((host, port));
                    continue;
                }
                Fault::Moved(..) => redis.note(Standing::Away("the cluster sends us in circles".to_owned())),
                Fault::Wrong(what) => redis.note(Standing::Away(what)),
            }
            drop(redis);
            tokio::time::sleep(pause).await;
            (pause, hops) = ((pause * 2).min(LAST_PAUSE), 0);
        }
    }

    /// A connection that proved itself, and the task that moves its bytes.
    async fn open(&self, node: Option<(String, u16)>) -> Result<(MultiplexedConnection, Driver), Fault> {
        let (host, port) = match &node {
            // A node that does not know its own name means the host that it was asked by.
            Some((host, port)) if !host.is_empty() => (host.as_str(), *port),
            Some((_, port)) => (&*self.server.host, *port),
            None => (&*self.server.host, self.server.port),
        };
        let stream = TcpStream::connect((host, port)).await.map_err(|error| Fault::Wrong(format!("cannot connect: {error}")))?;
        stream.set_nodelay(true).map_err(|error| Fault::Wrong(error.to_string()))?;
        let (connection, driver) = match &self.tls {
            None => speak(stream, &self.login()).await?,
            Some(TlsConnector(connector)) => {
                let name = self.server.tls.as_ref().and_then(|tls| tls.server_name.as_deref()).unwrap_or(host);
                let failed = |error: &dyn std::fmt::Display| Fault::Wrong(format!("TLS failed: {error}"));
                let ssl = connector.configure().and_then(|configuration| configuration.into_ssl(name)).map_err(|error| failed(&error))?;
                let mut stream = SslStream::new(ssl, TokioIo::new(stream)).map_err(|error| failed(&error))?;
                Pin::new(&mut stream).connect().await.map_err(|error| failed(&error))?;
                speak(TokioIo::new(stream), &self.login()).await?
            }
        };
        prove(&connection).await?;
        Ok((connection, driver))
    }

    fn login(&self) -> RedisConnectionInfo {
        let mut login = RedisConnectionInfo::default().set_db(self.server.database.into()).set_skip_set_lib_name();
        if let Some(user) = &self.server.user {
            login = login.set_username(user);
        }
        if let Some(password) = self.server.password.as_ref().and_then(|password| std::str::from_utf8(password.expose()).ok()) {
            login = login.set_password(password);
        }
        login
    }

    fn publish(&self, connection: &MultiplexedConnection) {
        let line = Line { connection: connection.clone(), strikes: AtomicU32::new(0), refusal: Mutex::default() };
        self.line.store(Some(Arc::new(line)));
        self.note(Standing::Up);
    }

    /// Nobody uses this connection until it has proved itself again. What was slow on an earlier one says nothing of the one in use.
    fn withdraw(&self, line: &Arc<Line>, fault: &str) {
        let in_use = self.line.load();
        if in_use.as_ref().is_some_and(|in_use| Arc::ptr_eq(in_use, line)) {
            self.note(Standing::Away(fault.to_owned()));
            self.line.store(None);
            self.doubt.notify_one();
        }
    }

    fn note(&self, standing: Standing) {
        self.standing.send_if_modified(|noted| {
            if *noted == standing {
                return false;
            }
            match &standing {
                Standing::Away(fault) => tracing::warn!(redis = %self.server, %fault, "Redis is away"),
                Standing::Up | Standing::Untried => tracing::info!(redis = %self.server, "Redis is there"),
            }
            *noted = standing;
            true
        });
    }
}

/// The task that moves the bytes of a connection; with it the connection ends.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Logs in over a stream.
async fn speak<S>(stream: S, login: &RedisConnectionInfo) -> Result<(MultiplexedConnection, Driver), RedisError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Every call has a deadline of its own; the library's would be a second one.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let (connection, driver) = MultiplexedConnection::new_with_config(login, stream, config).await?;
    Ok((connection, Driver(tokio::spawn(driver))))
}

/// Proves a connection again and again until it fails; `None`: nobody holds the Redis any more.
async fn keep(this: &Weak<Redis>, connection: MultiplexedConnection, doubt: &Notify, mut driver: Driver) -> Option<Fault> {
    loop {
        tokio::select! {
            _ = &mut driver.0 => return Some(Fault::Wrong("the connection ended".to_owned())),
            () = doubt.notified() => {}
            () = tokio::time::sleep(PROVE_EVERY) => {}
        }
        let proved = match tokio::time::timeout(CONNECT_LIMIT, prove(&connection)).await {
            Ok(proved) => proved,
            Err(_) => Err(Fault::Wrong(format!("no answer within {CONNECT_LIMIT:?}"))),
        };
        let redis = this.upgrade()?;
        match proved {
            Ok(()) if redis.line.load().is_some() => redis.note(Standing::Up),
            Ok(()) => redis.publish(&connection),
            Err(fault) => return Some(fault),
        }
    }
}

/// Reads, writes, runs a script and asks for the time, as every call will.
async fn prove(connection: &MultiplexedConnection) -> Result<(), Fault> {
    let mut command = redis::cmd("EVAL");
    command.arg(PROOF).arg(1).arg(format!("{TAG}proof")).arg(1);
    match send::<Vec<i64>>(connection, command).await {
        Ok(answer) if answer.len() == 2 => Ok(()),
        Ok(_) => Err(Fault::Wrong("an answer that Redis would not give".to_owned())),
        Err(error) => Err(error.into()),
    }
}

async fn send<T: FromRedisValue>(connection: &MultiplexedConnection, command: Cmd) -> Result<T, RedisError> {
    let answer: Value = connection.clone().send_packed_command(&command).await?.extract_error()?;
    Ok(redis::from_redis_value(answer)?)
}

fn kind(error: &RedisError) -> Option<ServerErrorKind> {
    match error.kind() {
        redis::ErrorKind::Server(kind) => Some(kind),
        _ => None,
    }
}

/// Whether an error is about the server and not about one key: every other call would fail as well.
fn concerns_everybody(error: &RedisError) -> bool {
    use ServerErrorKind as Kind;
    match kind(error) {
        Some(Kind::ReadOnly | Kind::BusyLoading | Kind::MasterDown | Kind::ClusterDown | Kind::Moved | Kind::Ask | Kind::NoPerm) => true,
        _ => matches!(error.code(), Some("OOM" | "MISCONF" | "NOAUTH" | "NOREPLICAS" | "BUSY")),
    }
}

impl From<RedisError> for Fault {
    fn from(error: RedisError) -> Self {
        let moved = error.redirect_node().and_then(|(node, _)| node.rsplit_once(':'));
        match moved.and_then(|(host, port)| Some((host, port.parse().ok()?))) {
            Some((host, port)) => Self::Moved(host.trim_matches(['[', ']']).to_owned(), port),
            None => Self::Wrong(error.to_string()),
        }
    }
}
