//! The YAML grammar: what the operator says, parsed once, each value with its place.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::jose::Algorithm;
use crate::secret::Secret;

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// The path of keys, such as `routes[2].policy`.
    pub path: Arc<str>,
}

/// A value and its place, so that what is found wrong with it later can be shown where it stands.
#[derive(Debug, Clone)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

impl<T> std::ops::Deref for At<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// A mapping from names to values, in the order of the file.
pub type Named<T> = Vec<(At<Arc<str>>, T)>;

/// A file that the configuration names: read when the configuration is read.
#[derive(Debug, Clone)]
pub struct File {
    /// The path, resolved against the configuration's folder.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Arc<[u8]>,
    /// Where it was named.
    pub place: Place,
}

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub server: Server,
    pub listeners: Vec<Listener>,
    pub admin: Option<Admin>,
    pub upstreams: Named<Upstream>,
    pub limits: Named<Limit>,
    pub authenticators: Named<Authenticator>,
    pub policies: Named<Policy>,
    pub routes: Vec<Route>,
    pub telemetry: Telemetry,
}

#[derive(Debug, Clone)]
pub struct Server {
    pub threads: usize,
    pub trusted_proxies: Vec<IpNet>,
    pub client_ip_header: http::HeaderName,
    pub limits: ServerLimits,
    pub timeouts: ServerTimeouts,
}

#[derive(Debug, Clone)]
pub struct ServerLimits {
    pub header_bytes: u64,
    pub headers: usize,
    pub body: u64,
}

#[derive(Debug, Clone)]
pub struct ServerTimeouts {
    pub body: Duration,
    pub idle: Duration,
    pub drain: Duration,
}

#[derive(Debug, Clone)]
pub struct Listener {
    pub address: At<SocketAddr>,
    pub tls: Option<ListenerTls>,
}

#[derive(Debug, Clone)]
pub struct ListenerTls {
    pub certificates: Vec<Certificate>,
}

/// A certificate chain in PEM, and its private key.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub chain: File,
    pub key: At<Secret>,
}

#[derive(Debug, Clone)]
pub struct Admin {
    pub address: At<SocketAddr>,
    pub token: Option<Secret>,
}

#[derive(Debug, Clone)]
pub struct Upstream {
    /// Empty exactly when `builtin` is set.
    pub servers: Vec<UpstreamServer>,
    pub builtin: Option<Builtin>,
    pub balance: Balance,
    pub tls: Option<UpstreamTls>,
    pub health: Option<Health>,
    pub timeouts: UpstreamTimeouts,
    pub retries: Option<Retries>,
    pub http2: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builtin {
    Echo,
}

#[derive(Debug, Clone)]
pub struct UpstreamServer {
    /// `host:port` or `address:port`.
    pub host: At<Arc<str>>,
    pub port: u16,
    pub weight: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    Random,
    LeastRequests,
}

#[derive(Debug, Clone)]
pub struct UpstreamTls {
    /// Required: without a name the peer would not be verified at all.
    pub server_name: At<Arc<str>>,
    pub ca: Option<File>,
    pub client: Option<Certificate>,
}

#[derive(Debug, Clone)]
pub struct Health {
    pub path: Arc<str>,
    pub interval: Duration,
    pub timeout: Duration,
    pub healthy: u32,
    pub unhealthy: u32,
}

#[derive(Debug, Clone)]
pub struct UpstreamTimeouts {
    pub connect: Duration,
    pub response: Duration,
    pub idle: Duration,
}

#[derive(Debug, Clone)]
pub struct Retries {
    /// Tries after the first.
    pub attempts: u32,
    pub on: Vec<RetryOn>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOn {
    ConnectFailure,
    /// An upstream answer with this status (502, 503 or 504).
    Status(u16),
}

#[derive(Debug, Clone)]
pub struct Limit {
    pub per: Vec<LimitKey>,
    pub rate: Rate,
    pub algorithm: LimitAlgorithm,
    pub ipv6_prefix: u8,
    pub when_missing: WhenMissing,
}

/// `sliding_window` is the only one yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitAlgorithm {
    SlidingWindow,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitKey {
    ClientIp,
    Consumer,
    Subject,
    Credential,
    Route,
    Host,
    Header(http::HeaderName),
    Claim(Arc<str>),
    Path(Arc<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub count: u64,
    pub window: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenMissing {
    Deny,
    Skip,
    ClientIp,
}

#[derive(Debug, Clone)]
pub enum Authenticator {
    Jwt(Jwt),
    ApiKey(ApiKey),
}

#[derive(Debug, Clone)]
pub struct Jwt {
    pub issuer: Arc<str>,
    pub audiences: Vec<Arc<str>>,
    pub keys: At<KeySource>,
    /// Empty: every asymmetric algorithm that the key itself allows (HS* with a secret).
    pub algorithms: Vec<At<Algorithm>>,
    pub leeway: Duration,
    pub max_lifetime: Option<Duration>,
    /// The `typ` a token must have, without `application/`; absent: `JWT`, `at+jwt` or none.
    pub typ: Option<Arc<str>>,
    pub from: Vec<Location>,
    pub claims: ClaimNames,
}

#[derive(Debug, Clone)]
pub enum KeySource {
    Discovery { url: Arc<str>, fetch: KeyFetch },
    JwksUrl { url: Arc<str>, fetch: KeyFetch },
    JwksFile(File),
    Secret(Secret),
}

/// How a remote key set is fetched and how long it is trusted without news.
#[derive(Debug, Clone)]
pub struct KeyFetch {
    /// PEM bundle for the issuer's TLS; absent: the system's.
    pub ca: Option<File>,
    pub timeout: Duration,
    /// Refresh at the latest after this, whatever the cache headers say.
    pub refresh: Duration,
    /// How long the last good keys serve while the issuer is away.
    pub max_stale: Duration,
    /// Where the last good keys are kept for the next start.
    pub store: Option<PathBuf>,
}

/// Where a credential sits in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    Header { name: http::HeaderName, scheme: Option<Arc<str>> },
    Query(Arc<str>),
    Cookie(Arc<str>),
}

/// Which claims say what; a dotted path walks into objects.
#[derive(Debug, Clone)]
pub struct ClaimNames {
    pub subject: Arc<str>,
    pub scopes: Vec<Arc<str>>,
    pub roles: Vec<Arc<str>>,
    pub consumer: Arc<str>,
    pub client: Arc<str>,
    pub plan: Arc<str>,
}

#[derive(Debug, Clone)]
pub struct ApiKey {
    pub from: Vec<Location>,
    pub prefix: Arc<str>,
    pub keys: At<KeyStore>,
}

#[derive(Debug, Clone)]
pub enum KeyStore {
    Database(PathBuf),
    /// The strict YAML file of `contract.md`, already parsed.
    File { file: File, keys: Vec<KeyEntry> },
}

/// One record of `keys.yaml`. Times are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyEntry {
    pub id: Arc<str>,
    pub sha256: [u8; 32],
    pub previous_sha256: Option<([u8; 32], u64)>,
    pub consumer: Arc<str>,
    pub scopes: Vec<Arc<str>>,
    pub routes: Vec<Arc<str>>,
    pub allow: Vec<IpNet>,
    pub plan: Option<Arc<str>>,
    pub created: Option<u64>,
    pub not_before: Option<u64>,
    pub expires: Option<u64>,
    pub revoked: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Policy {
    pub deny: Vec<IpNet>,
    pub allow: Option<Vec<IpNet>>,
    pub limits: Vec<At<Arc<str>>>,
    pub authenticate: Authenticate,
    pub authorize: Authorize,
    pub forward: Forward,
}

#[derive(Debug, Clone)]
pub enum Authenticate {
    /// The word `public`: anyone may enter.
    Public,
    /// Any one of these.
    Any(Vec<At<Arc<str>>>),
}

#[derive(Debug, Clone, Default)]
pub struct Authorize {
    /// All of these.
    pub scopes: Vec<Arc<str>>,
    /// Any one of these.
    pub roles: Vec<Arc<str>>,
    /// Each claim must have one of its values.
    pub claims: Named<Vec<Arc<str>>>,
}

#[derive(Debug, Clone)]
pub struct Forward {
    /// Header name and template, such as `{subject}` or `{claims.tenant}`.
    pub headers: Vec<(At<http::HeaderName>, At<Arc<str>>)>,
    pub token: Token,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    Strip,
    Keep,
}

#[derive(Debug, Clone)]
pub struct Route {
    pub name: At<Arc<str>>,
    /// Empty: any.
    pub hosts: Vec<At<Arc<str>>>,
    pub path: At<Arc<str>>,
    /// Empty: any.
    pub methods: Vec<http::Method>,
    pub policy: RoutePolicy,
    pub rewrite: Option<At<Arc<str>>>,
    pub upstream: At<Arc<str>>,
    pub websocket: bool,
    pub timeouts: RouteTimeouts,
}

#[derive(Debug, Clone)]
pub enum RoutePolicy {
    Named(At<Arc<str>>),
    Inline(Box<Policy>),
}

#[derive(Debug, Clone, Default)]
pub struct RouteTimeouts {
    pub response: Option<Duration>,
}

#[derive(Debug, Clone)]
pub struct Telemetry {
    pub access_log: AccessLog,
}

#[derive(Debug, Clone)]
pub struct AccessLog {
    /// The share of allowed requests that is written, 0.0 to 1.0; refusals always are.
    pub sample: f64,
}
