//! The YAML grammar: what the operator says, parsed once, each value with its place.
//!
//! [`load`] reads a file and all it names and answers with a whole [`Config`] or with every [`Problem`] at once. What names refer to
//! (policies, upstreams, limits) is deliberately not resolved here: the compiler of the snapshot does.

mod authenticator;
mod basic;
mod client_certificate;
mod decode;
mod dependency;
mod dpop;
mod exchange;
mod external;
mod filter;
pub(crate) mod header;
mod introspection;
mod issuer;
mod keys;
mod limit;
mod policy;
mod problem;
mod redis;
mod resource;
mod revocation;
mod route;
mod server;
mod signature;
mod sigv4;
mod source;
mod upstream;
mod values;
mod yaml;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use authenticator::{AccessTokens, ApiKey, Authenticator, ClaimNames, Jwt, KeyFetch, KeySource, KeyStore, Location};
pub use basic::{Basic, PasswordHash, User};
pub use client_certificate::{AllowedCertificate, CertificateName, ClientCertificate};
use decode::{Context, Decode, Fields, Map, NonEmpty, grammar};
pub use dependency::{Breaker, OnFailure};
pub use dpop::{Dpop, DpopNonce};
pub use exchange::{Exchange, TokenType};
pub use external::{DecisionCache, DecisionKey, External, ExternalClaims, ExternalResponse, WhenAbsent};
pub use filter::{Filter, FilterAction};
pub use introspection::{ClientProof, Introspection, OauthClient, OauthClientMethod};
pub use issuer::{Issuer, Signing, SigningAlgorithm};
pub use keys::KeyEntry;
pub use limit::{Allowance, Limit, LimitAlgorithm, LimitKey, LimitMode, LimitOn, LimitStore, OnStoreFailure, Plan, Quotas, WhenMissing};
pub use policy::{Accepted, Authenticate, Authorize, Forward, Policy, Principals, TemplatePart, Token};
pub use problem::{At, Place, Problem, nearest};
pub use redis::{Redis, RedisUrl};
pub use resource::{Resource, ResourceUrl, is_issuer_url};
pub use revocation::{REVOCATIONS, Revocation, RevocationStore};
pub use route::{Route, RoutePolicy, RouteTimeouts};
pub use server::{
    AccessLog, Admin, Certificate, ClientCertificateMode, ClientCertificates, ForwardedCertificates, Listener, ListenerTls, Server,
    ServerLimits, ServerTimeouts, Telemetry,
};
pub use signature::{Signature, SignatureAlgorithm, SignatureKey};
pub use sigv4::{Replay, SigningKeyEntry, Sigv4};
pub use source::{Source, System};
pub use upstream::{Balance, Builtin, Health, Retries, RetryOn, Upstream, UpstreamServer, UpstreamTimeouts, UpstreamTls};
use values::Name;
pub(crate) use values::network;
pub use values::{Period, Quota, Rate, duration};

/// What became of reading a configuration.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration, or everything that is wrong with it: then at least one problem.
    pub config: Result<Config, Vec<Problem>>,
    /// Whether the file itself could be read; if not, that is the one problem.
    pub readable: bool,
    /// Every file that was named, the configuration first, also those that could not be read: a change of any may change the outcome.
    /// Databases are not among them; they change on their own.
    pub files: Vec<PathBuf>,
}

/// Reads the configuration at `path` and every file it names. Relative paths are relative to its folder.
pub fn load(path: &Path, source: &dyn Source) -> Loaded {
    let mut context = Context::new(path, source);
    let bytes = context.bytes(path, &context.start());
    let readable = bytes.is_some();
    let config = bytes.and_then(|bytes| context.document::<Config>(path, &bytes));
    let Context { problems, files, .. } = context;
    let mut problems = problems.into_vec();
    let config = match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => {
            // Operators read from the top, their own file first.
            let own = path.display().to_string();
            problems.sort_by_key(|problem| {
                let Place { file, line, column, .. } = &problem.place;
                (**file != *own, Arc::clone(file), *line, *column)
            });
            Err(problems)
        }
    };
    Loaded { config, readable, files }
}

/// Reads a file of API keys by itself, as the command line imports and edits it.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load_keys(path: &Path, source: &dyn Source) -> Result<Vec<KeyEntry>, Vec<Problem>> {
    let mut context = Context::new(path, source);
    let start = context.start();
    let file = context.bytes(path, &start).and_then(|bytes| context.document::<keys::KeyFile>(path, &bytes));
    let problems = context.problems.into_vec();
    match file {
        Some(keys::KeyFile { keys }) if problems.is_empty() => Ok(keys),
        _ => Err(problems),
    }
}

/// The JSON Schema (draft 2020-12) of the configuration.
pub fn schema() -> serde_json::Value {
    let mut definitions = serde_json::Map::new();
    let config = Config::schema(&mut definitions);
    serde_json::json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "edgeward",
        "$ref": config.get("$ref"),
        "$defs": definitions,
    })
}

/// A mapping from names to values, in the order of the file.
pub type Named<T> = Vec<(At<Arc<str>>, T)>;

/// A file that the configuration names: read when the configuration is read, never empty.
#[derive(Clone)]
pub struct File {
    /// The path, resolved against the configuration's folder.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Arc<[u8]>,
    /// Where it was named.
    pub place: Place,
}

/// Without the bytes: a key set may hold private keys.
impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("path", &self.path).finish_non_exhaustive()
    }
}

grammar! {
    /// The whole configuration.
    #[checked(check_config)]
    pub struct Config {
        /// The process. Fixed at start but for `token_cache`: a reload that changes it is refused.
        server: Server = "{}",
        /// The sockets for callers. Fixed at start but for certificates: a reload that changes them is refused.
        listeners: Vec<Listener> as NonEmpty<Vec<Listener>>,
        /// The admin socket. Absent: none.
        admin: Option<Admin> = absent,
        /// The services behind the gateway, by name.
        upstreams: Named<Upstream> as Map<Name, Upstream> = "{}",
        /// Redis, for limits with `store: redis` or `hybrid` and for `revocation: {redis: NAME}`.
        redis: Option<Redis> = absent,
        /// Limits, by name.
        limits: Named<Limit> as Map<Name, Limit> = "{}",
        /// The embedded store of limits with a `quota`.
        quotas: Quotas = "{}",
        /// Rules over requests, by name.
        filters: Named<Filter> as Map<Name, Filter> = "{}",
        /// Usage plans, by name: a caller's is named by its key or token, or by `consumers`.
        plans: Named<Plan> as Map<Name, Plan> = "{}",
        /// Ways to prove who calls, by name.
        authenticators: Named<Authenticator> as Map<policy::AuthenticatorName, Authenticator> = "{}",
        /// Servers that exchange tokens, by name.
        exchanges: Named<Exchange> as Map<Name, Exchange> = "{}",
        /// Who may enter, by name.
        policies: Named<Policy> as Map<Name, Policy> = "{}",
        /// Which credentials are refused before their time. Absent: those that this gateway's own issuer was told of.
        revocation: Option<Revocation> = absent,
        /// Which requests go where.
        routes: Vec<Route> as NonEmpty<Vec<Route>>,
        /// edgeward as an issuer of tokens. Absent: it signs none.
        issuer: Option<Issuer> = absent,
        /// What is written down.
        telemetry: Telemetry = "{}",
    }
}

impl Config {
    /// The policy of a route; none where its name stands for nothing.
    pub fn policy_of<'c>(&'c self, route: &'c Route) -> Option<&'c Policy> {
        match &route.policy {
            RoutePolicy::Inline(policy) => Some(policy),
            RoutePolicy::Named(name) => self.policies.iter().find(|(known, _)| known.value == name.value).map(|(_, policy)| policy),
        }
    }
}

fn check_config(config: &Config, _: &Fields<'_>, context: &mut Context<'_>) {
    let mut routes = HashMap::new();
    for Route { name, .. } in &config.routes {
        if let Some(first) = routes.insert(&*name.value, &name.place) {
            let message = format!("a second route `{}`; the first is at {}:{}", name.value, first.line, first.column);
            context.report(Problem::at(&name.place, message).expected("a name of its own"));
        }
    }
    check_limits(config, context);
    if let (Some(Revocation { store: RevocationStore::Redis(name), .. }), None) = (&config.revocation, &config.redis) {
        context.report(Problem::at(&name.place, "there is no Redis").expected("`redis: {url: ...}` beside `revocation`"));
    }
    let mut sockets = HashMap::new();
    // Port 0 is another port each time.
    let listeners = config.listeners.iter().map(|listener| &listener.address);
    for address in listeners.chain(config.admin.iter().map(|admin| &admin.address)).filter(|address| address.port() != 0) {
        if let Some(first) = sockets.insert(address.value, &address.place) {
            let message = format!("{} is taken; the first to listen there is at {}:{}", address.value, first.line, first.column);
            context.report(Problem::at(&address.place, message).expected("an address of its own"));
        }
    }
}

fn check_limits(config: &Config, context: &mut Context<'_>) {
    let shared = config.limits.iter().filter(|(_, limit)| *limit.store != LimitStore::Local);
    for (_, limit) in shared.filter(|_| config.redis.is_none()) {
        context.report(Problem::at(&limit.store.place, "there is no Redis").expected("`redis: {url: ...}` beside `limits`"));
    }
    let mut consumers = HashMap::new();
    for (plan, Plan { consumers: named, .. }) in &config.plans {
        for consumer in named {
            if let Some(other) = consumers.insert(&consumer.value, &plan.value).filter(|other| *other != &plan.value) {
                let message = format!("`{}` has the plan `{other}`", consumer.value);
                context.report(Problem::at(&consumer.place, message).expected("one plan for a consumer"));
            }
        }
    }
    let mut defaults = config.plans.iter().filter(|(_, plan)| plan.default);
    if let (Some((first, _)), Some((second, _))) = (defaults.next(), defaults.next()) {
        let message = format!("a second default plan; the first is `{}`", first.value);
        context.report(Problem::at(&second.place, message).expected("one default plan"));
    }
}
