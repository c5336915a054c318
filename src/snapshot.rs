//! The frozen whole: what the operator wants, compiled once, swapped in one store, kept by each request until its end.

mod limits;
mod own;
mod revocation;
mod slot;

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::authenticators::{
    Accepted, Authenticator, Authenticators, api_key, basic, client_certificate, credential, external, introspection, jwt, signature, sigv4,
};
use crate::authorizers::Authorizers;
use crate::authorizers::expression::{Expression, Language};
use crate::config::{self, At, Config, KeySource, Location, Named, Problem};
use crate::issuer::{self, Issuer};
use crate::live::LiveState;
use crate::live::revocations::Revocations;
use crate::live::token_cache::TokenCache;
use crate::metrics::{Counter, Metrics, RouteMetrics};
use crate::net::certificates::{Certificate, Certificates};
use crate::net::client_certificates::{self, ClientAuthorities, ForwardedCertificates, RevocationFile};
use crate::net::redis::Redis;
use crate::request::Client;
use crate::request::cidr::CidrSet;
use crate::request::message::HeadLimits;
use crate::route::exchange::{Exchange, Target, TokenServer};
use crate::route::filters::{Filter, Filters};
use crate::route::forward::{Credentials, Forward};
use crate::route::ip_rules::IpRules;
use crate::route::limit::RateLimit;
use crate::route::rate_limits::RateLimits;
use crate::route::resource::Documents;
use crate::route::rewrite::Rewrite;
use crate::route::router::{Entry, Fault, Place, Router};
use crate::route::{Challenges, Policy, Route};
use crate::upstream::Upstream;
use limits::Limits;
pub use revocation::revocation_source;
pub use slot::{Serving, Slot};

/// Everything a request meets.
#[derive(Debug)]
pub struct Snapshot {
    /// Which route a request belongs to.
    pub router: Router<Arc<Route>>,
    /// Every route, in the order of the configuration.
    pub routes: Vec<Arc<Route>>,
    /// What holds for every request.
    pub server: ServerRules,
    /// What each listener shows and asks for in TLS.
    pub listeners: Vec<ListenerTls>,
    /// The share of served requests that the access log writes.
    pub access_log_sample: f64,
    /// Counters of requests that matched no route.
    pub unrouted: RouteMetrics,
    /// Requests being served, of this snapshot and all others.
    pub in_flight: Counter,
    /// Every place of a credential, to be kept out of the log.
    credential_locations: Vec<Location>,
    /// Every limit, whether a policy names it or not.
    pub limits: Vec<Arc<RateLimit>>,
    /// Every upstream, whether a route uses it or not.
    pub upstreams: Vec<Arc<Upstream>>,
    /// What was revoked; absent where nothing ever is.
    pub revocations: Option<Arc<Revocations>>,
    /// How many revocations are kept.
    revocations_at_most: usize,
    /// Who signs tokens; absent where the configuration has no issuer.
    pub issuer: Option<Arc<Issuer>>,
    /// What clients are told of the resources.
    pub documents: Documents,
    /// Every authenticator, whether a route uses it or not.
    authenticators: Vec<Arc<Authenticator>>,
    /// Every server that exchanges tokens, whether a route uses it or not.
    token_servers: Vec<Arc<TokenServer>>,
    /// Verified tokens, and how much memory they may take.
    tokens: (Arc<TokenCache>, u64),
}

impl Snapshot {
    /// Sets the upkeep of live facts to this configuration; called once, when it takes effect.
    pub fn activate(&self) {
        for upstream in &self.upstreams {
            upstream.activate();
        }
        for authenticator in &self.authenticators {
            authenticator.activate();
        }
        for server in &self.token_servers {
            server.activate();
        }
        let (tokens, bytes) = &self.tokens;
        tokens.resize(*bytes);
        if let Some(revocations) = &self.revocations {
            revocations.keep_at_most(self.revocations_at_most);
        }
    }

    /// The route of a request.
    pub fn route(&self, place: Option<Place>) -> Option<&Route> {
        self.router.get(place?).map(|route| &**route)
    }

    /// A query as the log may show it.
    pub fn redact_query<'q>(&self, query: &'q str) -> Cow<'q, str> {
        credential::redact_query(&self.credential_locations, query)
    }
}

/// What a listener shows and asks for in TLS.
#[derive(Debug)]
pub struct ListenerTls {
    /// Its certificates; none where it serves no TLS.
    pub certificates: Certificates,
    /// The certificates that it asks callers for; absent where it asks for none.
    pub clients: Option<ClientCertificates>,
}

/// The certificates that a listener asks callers for.
#[derive(Debug)]
pub struct ClientCertificates {
    /// Whether a caller must show one.
    pub required: bool,
    /// Who vouches for callers.
    pub authorities: Arc<ClientAuthorities>,
}

/// How many connections there may be; `0` is any number.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of all callers together.
    pub together: u64,
    /// Of one address.
    pub address: u64,
}

/// What holds for every request, whatever its route.
#[derive(Debug)]
pub struct ServerRules {
    trusted: CidrSet,
    client_ip_header: HeaderName,
    /// Client certificates that trusted proxies forward; absent where they forward none.
    pub forwarded: Option<ForwardedCertificates>,
    /// How long a request head may be.
    pub head: HeadLimits,
    /// Longest body, in bytes.
    pub body_limit: u64,
    /// How many connections there may be.
    pub connections: Bounds,
    /// Longest wait for the rest of a head.
    pub header_timeout: Duration,
    /// Longest wait for the next piece of a body.
    pub body_timeout: Duration,
    /// Longest wait for the next request of a connection.
    pub idle: Duration,
}

impl ServerRules {
    fn compile(server: &config::Server, forwarded: Option<ForwardedCertificates>) -> Self {
        Self {
            forwarded,
            trusted: CidrSet::new(&server.trusted_proxies),
            client_ip_header: server.client_ip_header.clone(),
            head: HeadLimits { bytes: server.limits.header_bytes, fields: server.limits.headers },
            body_limit: server.limits.body,
            connections: Bounds { together: server.limits.connections, address: server.limits.connections_per_ip },
            header_timeout: server.timeouts.header,
            body_timeout: server.timeouts.body,
            idle: server.timeouts.idle,
        }
    }

    /// Whether this end of a connection is a proxy that speaks for others.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.contains(peer)
    }

    /// Who is on the other end.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Client {
        crate::request::client::resolve(peer, headers, &self.client_ip_header, &self.trusted)
    }
}

/// Compiles a configuration, or says everything that is wrong with it. Live facts are found or made by name; none is changed.
pub fn compile(config: &Config, live: &LiveState, metrics: &Metrics) -> Result<Snapshot, Vec<Problem>> {
    let language = Language::default();
    let mut compiler = Compiler { config, live, metrics, language, redis: None, revocations: None, problems: Vec::new() };
    let snapshot = compiler.snapshot();
    match snapshot {
        Some(snapshot) if compiler.problems.is_empty() => Ok(snapshot),
        _ => Err(compiler.problems),
    }
}

struct Compiler<'c> {
    config: &'c Config,
    live: &'c LiveState,
    metrics: &'c Metrics,
    language: Language,
    redis: Option<Arc<Redis>>,
    revocations: Option<Arc<Revocations>>,
    problems: Vec<Problem>,
}

/// Compiled things by their names.
type Table<T> = HashMap<Arc<str>, Arc<T>>;

impl Compiler<'_> {
    fn snapshot(&mut self) -> Option<Snapshot> {
        let config = self.config;
        self.redis = config.redis.as_ref().and_then(|redis| self.redis(redis));
        let revocations_at_most;
        (self.revocations, revocations_at_most) = self.revocations().unzip();
        let listeners = config.listeners.iter().map(|listener| self.listener(listener)).collect();
        let forwarded =
            config.server.forwarded_certificates.as_ref().and_then(|forwarded| {
                self.authorities(&forwarded.ca, forwarded.crl.as_ref(), forwarded.depth).map(ForwardedCertificates::new)
            });
        let authenticators =
            self.table(&config.authenticators, |compiler, name, authenticator| compiler.authenticator(name, authenticator));
        let token_servers = self.table(&config.exchanges, |compiler, name, exchange| TokenServer::new(name, exchange, compiler.live));
        let upstreams = self.table(&config.upstreams, |compiler, name, upstream| Upstream::compile(name, upstream, compiler.live));
        let limits = self.limits();
        let identity_headers = self.identity_headers();
        // Also those that no route uses: the next edit may bring the route.
        let policies = config.policies.iter().filter_map(|(name, policy)| {
            let policy = self.policy(policy, &authenticators, &limits, &identity_headers)?;
            Some((Arc::clone(&name.value), Arc::new(policy)))
        });
        let policies: Table<Policy> = policies.collect();
        let issuer = config.issuer.as_ref().map(|issuer| Issuer::new(issuer, self.live, self.revocations.as_ref()));
        let resources = self.resources();
        let own = self.own_routes(issuer.as_ref(), &resources);
        let own_upstream = match (!own.is_empty()).then(|| Upstream::oauth(self.live)).transpose() {
            Ok(upstream) => upstream.map(Arc::new),
            Err(problems) => {
                self.problems.extend(problems);
                None
            }
        };
        let routes: Vec<Option<Arc<Route>>> = config
            .routes
            .iter()
            .map(|route| {
                let policy = match &route.policy {
                    config::RoutePolicy::Named(name) => self.named("policy", name, &policies, &config.policies),
                    config::RoutePolicy::Inline(policy) => self.policy(policy, &authenticators, &limits, &identity_headers).map(Arc::new),
                };
                let upstream = self.named("upstream", &route.upstream, &upstreams, &config.upstreams);
                let exchange = self.exchange(route, issuer.as_ref(), &token_servers);
                self.route(route, policy, upstream, exchange)
            })
            .collect();
        let own_routes: Vec<Option<Arc<Route>>> = own
            .iter()
            .map(|route| {
                let config::RoutePolicy::Inline(policy) = &route.policy else { return None };
                let policy = self.policy(policy, &authenticators, &limits, &identity_headers).map(Arc::new);
                self.route(route, policy, own_upstream.clone(), None)
            })
            .collect();
        let own_routes: Vec<Arc<Route>> = own_routes.into_iter().collect::<Option<_>>()?;
        let routes: Vec<Arc<Route>> = routes.into_iter().collect::<Option<_>>()?;
        let router = self.router(&routes, (&own, &own_routes))?;
        let credential_locations = authenticators.values().flat_map(|authenticator| authenticator.locations().iter().cloned()).collect();
        Some(Snapshot {
            router,
            routes,
            server: ServerRules::compile(&config.server, forwarded),
            listeners,
            access_log_sample: config.telemetry.access_log.sample,
            unrouted: self.metrics.route("", std::iter::empty()),
            in_flight: self.metrics.in_flight.clone(),
            credential_locations,
            limits: config.limits.iter().filter_map(|(name, _)| limits.by_name.get(&name.value).cloned()).collect(),
            revocations: self.revocations.clone(),
            revocations_at_most: revocations_at_most.unwrap_or_default(),
            issuer: issuer.map(Arc::new),
            documents: Documents::new(resources.iter().map(|described| &described.metadata)),
            upstreams: upstreams.into_values().collect(),
            authenticators: authenticators.into_values().collect(),
            token_servers: token_servers.into_values().collect(),
            tokens: (Arc::clone(&self.live.tokens), config.server.token_cache),
        })
    }

    fn redis(&mut self, redis: &config::Redis) -> Option<Arc<Redis>> {
        let server = revocation::redis_server(redis);
        match Redis::new(server.clone()) {
            Ok(created) => Some(self.live.redis.find_or_create(&server, || created)),
            Err(message) => {
                self.problems.push(Problem::at(&redis.url.place, message));
                None
            }
        }
    }

    fn table<C, T>(&mut self, named: &Named<C>, mut compile: impl FnMut(&mut Self, &Arc<str>, &C) -> Result<T, Vec<Problem>>) -> Table<T> {
        let mut table = HashMap::with_capacity(named.len());
        for (name, item) in named {
            match compile(self, &name.value, item) {
                Ok(compiled) => {
                    table.insert(Arc::clone(&name.value), Arc::new(compiled));
                }
                Err(problems) => self.problems.extend(problems),
            }
        }
        table
    }

    fn listener(&mut self, listener: &config::Listener) -> ListenerTls {
        let asked = listener.tls.as_ref().and_then(|tls| tls.client_certificates.as_ref());
        let clients = asked.and_then(|asked| {
            let authorities = self.authorities(&asked.ca, asked.crl.as_ref(), asked.depth)?;
            let required = asked.mode == config::ClientCertificateMode::Required;
            Some(ClientCertificates { required, authorities: Arc::new(authorities) })
        });
        ListenerTls { certificates: self.certificates(listener), clients }
    }

    /// Who vouches for callers. `None`: a problem was reported, so that nobody is left unasked.
    fn authorities(&mut self, ca: &config::File, crl: Option<&config::File>, depth: u32) -> Option<ClientAuthorities> {
        let mut refuse = |file: &config::File, what: String| {
            self.problems.push(Problem::at(&file.place, format!("{}: {what}", file.path.display())));
        };
        let certificates = client_certificates::authorities(&ca.bytes).map_err(|what| refuse(ca, what)).ok()?;
        let revoked = crl.map(|file| RevocationFile { path: &file.path, bytes: &file.bytes });
        ClientAuthorities::new(certificates, revoked, depth).map_err(|what| refuse(crl.unwrap_or(ca), what)).ok()
    }

    fn certificates(&mut self, listener: &config::Listener) -> Certificates {
        let mut parsed = Vec::new();
        for certificate in listener.tls.iter().flat_map(|tls| &tls.certificates) {
            match Certificate::parse(&certificate.chain.bytes, certificate.key.value.expose()) {
                Ok(certificate) => parsed.push(certificate),
                Err(what) => {
                    self.problems.push(Problem::at(&certificate.chain.place, format!("{}: {what}", certificate.chain.path.display())))
                }
            }
        }
        Certificates::new(parsed)
    }

    fn authenticator(&mut self, name: &Arc<str>, authenticator: &config::Authenticator) -> Result<Authenticator, Vec<Problem>> {
        Ok(match authenticator {
            config::Authenticator::Jwt(jwt) => Authenticator::Jwt(self.jwt(name, jwt)?),
            config::Authenticator::ApiKey(api_key) => Authenticator::ApiKey(api_key::ApiKey::new(Arc::clone(name), api_key, self.live)),
            config::Authenticator::ClientCertificate(certificate) => {
                Authenticator::ClientCertificate(client_certificate::ClientCertificate::new(Arc::clone(name), certificate)?)
            }
            config::Authenticator::Basic(basic) => Authenticator::Basic(basic::Basic::new(Arc::clone(name), basic, self.live)),
            config::Authenticator::Signature(signature) => {
                Authenticator::Signature(signature::Signature::new(Arc::clone(name), signature, self.live))
            }
            config::Authenticator::Sigv4(sigv4) => Authenticator::Sigv4(sigv4::Sigv4::new(Arc::clone(name), sigv4, self.live)),
            config::Authenticator::External(external) => {
                Authenticator::External(external::External::new(Arc::clone(name), external, self.live)?)
            }
            config::Authenticator::Introspection(introspection) => {
                Authenticator::Introspection(introspection::Introspection::new(Arc::clone(name), introspection, self.live)?)
            }
        })
    }

    fn jwt(&self, name: &Arc<str>, jwt: &config::Jwt) -> Result<jwt::Jwt, Vec<Problem>> {
        let (KeySource::Issuer, Some(issuer)) = (&jwt.keys.value, &self.config.issuer) else {
            return jwt::Jwt::new(Arc::clone(name), jwt, self.live);
        };
        if jwt.issuer != issuer.url.value {
            let problem = Problem::at(&jwt.keys.place, "`issuer` is not that of these keys");
            return Err(vec![problem.expected(format!("`issuer: {}`", issuer.url.value))]);
        }
        let clients = issuer.oauth2.as_ref().map(|oauth2| issuer::clients(&oauth2.clients.database, self.live));
        Ok(jwt::Jwt::of_issuer(Arc::clone(name), jwt, issuer::signing_keys(issuer, self.live), clients, self.live))
    }

    /// What the upstream of a route is told in place of the credential. What stands in its way was reported of its policy.
    fn exchange(&self, route: &config::Route, issuer: Option<&Issuer>, servers: &Table<TokenServer>) -> Option<Exchange> {
        let forward = &self.config.policy_of(route)?.forward;
        match (forward.token, &forward.exchange) {
            (config::Token::Strip | config::Token::Keep, _) => None,
            (config::Token::Exchange, Some(server)) => {
                Some(Exchange::Server(Target::new(Arc::clone(servers.get(&server.value)?), forward, &route.upstream.value)))
            }
            (config::Token::Exchange, None) => Some(Exchange::Issuer {
                tokens: Arc::clone(&issuer?.identity_tokens),
                audience: forward.audience.clone().unwrap_or_else(|| Arc::clone(&route.upstream.value)),
                name: self.config.issuer.as_ref()?.identity_token.header.clone(),
            }),
        }
    }

    /// A token is promised to an upstream only where there can be one.
    fn check_exchange(&mut self, policy: &config::Policy) {
        if policy.forward.token != config::Token::Exchange {
            return;
        }
        let place = &policy.authenticate.place;
        let accepted = match &policy.authenticate.value {
            config::Authenticate::By(accepted) => accepted.names(),
            config::Authenticate::Public => {
                let what = "this policy is public, and nobody is proven whom `token: exchange` could speak of";
                self.problems.push(Problem::at(place, what).expected("an authenticator, or another `token`"));
                Vec::new()
            }
        };
        let Some(server) = &policy.forward.exchange else {
            if self.config.issuer.is_none() {
                let problem = Problem::at(place, "`token: exchange` without an issuer");
                self.problems.push(problem.expected("`issuer` beside `routes`, or `exchange`, the server that is asked"));
            }
            return;
        };
        self.known("exchange", server, &self.config.exchanges);
        let has_no_token = |name: &&At<Arc<str>>| {
            let found = self.config.authenticators.iter().find(|(known, _)| known.value == name.value);
            // One that there is not was reported.
            found.is_some_and(|(_, found)| !matches!(found, config::Authenticator::Jwt(_) | config::Authenticator::Introspection(_)))
        };
        if !accepted.is_empty() && accepted.iter().all(has_no_token) {
            let problem = Problem::at(place, "nobody proves himself here by a token, and nothing else can be exchanged");
            self.problems.push(problem.expected("`jwt` or `introspection`, or no `exchange`"));
        }
    }

    /// What a name stands for; a name that stands for nothing is a problem, with the nearest right one.
    fn known<'n, T>(&mut self, what: &str, name: &config::At<Arc<str>>, named: &'n Named<T>) -> Option<&'n T> {
        if let Some((_, found)) = named.iter().find(|(known, _)| known.value == name.value) {
            return Some(found);
        }
        let problem = Problem::at(&name.place, format!("there is no {what} `{}`", name.value));
        let nearest = config::nearest(&name.value, named.iter().map(|(known, _)| &*known.value));
        self.problems.push(match nearest {
            Some(nearest) => problem.expected(format!("did you mean `{nearest}`?")),
            None => problem.expected(format!("one of: {}", named.iter().map(|(known, _)| &*known.value).collect::<Vec<_>>().join(", "))),
        });
        None
    }

    /// What was compiled under a name. What failed to compile has been reported.
    fn named<C, T>(&mut self, what: &str, name: &config::At<Arc<str>>, compiled: &Table<T>, named: &Named<C>) -> Option<Arc<T>> {
        let found = compiled.get(&name.value).cloned();
        if found.is_none() {
            self.known(what, name, named);
        }
        found
    }

    fn policy(
        &mut self,
        policy: &config::Policy,
        authenticators: &Table<Authenticator>,
        compiled: &Limits,
        identity_headers: &Arc<[HeaderName]>,
    ) -> Option<Policy> {
        let config = self.config;
        let accepted = match &policy.authenticate.value {
            config::Authenticate::Public => Some(None),
            config::Authenticate::By(accepted) => {
                self.accepted(accepted, authenticators).map(|accepted| Some(Authenticators::new(accepted, self.revocations.clone())))
            }
        };
        let limits: Vec<_> = policy.limits.iter().map(|name| Some((name, self.known("limit", name, &config.limits)?))).collect();
        let (accepted, limits) = (accepted?, limits.into_iter().collect::<Option<Vec<_>>>()?);
        if accepted.is_none() && !policy.authorize.asks_nothing() {
            self.problems.push(
                Problem::at(
                    &policy.authenticate.place,
                    "this policy is public, and nobody is proven who could hold what `authorize` asks for",
                )
                .expected("an authenticator, or no `authorize`"),
            );
        }
        if accepted.is_none() {
            self.check_public_limits(&limits);
        }
        self.check_exchange(policy);
        let when = policy.authorize.when.as_ref().and_then(|when| self.condition(when));
        let filters = self.filters(policy, accepted.is_none());
        let limits = limits.iter().filter_map(|(name, _)| compiled.by_name.get(&name.value).cloned());
        let named = accepted.iter().flat_map(Authenticators::iter);
        let credentials = Credentials::new(named.map(|authenticator| (authenticator.name(), authenticator.locations())));
        Some(Policy {
            filters,
            ip_rules: IpRules::new(&policy.deny, policy.allow.as_deref()),
            rate_limits: RateLimits::new(limits.collect(), Arc::clone(&compiled.plans)),
            authenticators: accepted,
            authorizers: Authorizers::compile(&policy.authorize, when),
            forward: Forward::compile(&policy.forward, credentials, Arc::clone(identity_headers)),
        })
    }

    /// The filters of a policy. Where nobody is proven none can be about the caller.
    fn filters(&mut self, policy: &config::Policy, public: bool) -> Filters {
        let config = self.config;
        let mut filters = Vec::new();
        for name in &policy.filters {
            let Some(filter) = self.known("filter", name, &config.filters) else { continue };
            let Some(when) = self.condition(&filter.when) else { continue };
            if public && when.needs_identity() {
                let problem =
                    Problem::at(&name.place, format!("filter `{}` is about the caller's identity, and this policy is public", name.value));
                self.problems.push(problem.expected("a filter over `request`, `path` and `client`"));
            }
            let matches = self.metrics.filter_matches(&name.value, filter.action.label());
            filters.push(Filter::new(&name.value, when, filter.action, matches));
        }
        Filters::new(filters)
    }

    /// A condition that was not read is no condition that holds: its problem refuses the whole.
    fn condition(&mut self, condition: &config::At<Arc<str>>) -> Option<Expression> {
        let read = self.language.read(&condition.value);
        read.map_err(|what| self.problems.push(Problem::at(&condition.place, what))).ok()
    }

    /// Compiled as it stands. Every part is read before any is judged, so that every wrong name is reported.
    fn accepted(&mut self, accepted: &config::Accepted, authenticators: &Table<Authenticator>) -> Option<Accepted> {
        let mut each = |accepted: &[config::Accepted]| {
            let parts: Vec<_> = accepted.iter().map(|part| self.accepted(part, authenticators)).collect();
            parts.into_iter().collect::<Option<Box<[_]>>>()
        };
        match accepted {
            config::Accepted::Any(accepted) => {
                let parts = each(accepted).map(Accepted::Any);
                self.check_reachable(accepted);
                parts
            }
            config::Accepted::All(accepted, principals) => each(accepted).map(|parts| Accepted::All(parts, *principals)),
            config::Accepted::Optional(accepted) => self.accepted(accepted, authenticators).map(|part| Accepted::Optional(part.into())),
            config::Accepted::Authenticator(name) => {
                self.named("authenticator", name, authenticators, &self.config.authenticators).map(Accepted::Authenticator)
            }
        }
    }

    /// Whoever answers for every request leaves nothing to those behind it.
    fn check_reachable(&mut self, any: &[config::Accepted]) {
        let Some((_, before)) = any.split_last() else { return };
        for part in before {
            if let config::Accepted::Authenticator(name) = part
                && let Some((_, config::Authenticator::External(external))) =
                    self.config.authenticators.iter().find(|(known, _)| known.value == name.value)
                && external.when_missing == config::WhenAbsent::Ask
            {
                let what = format!("`{}` is asked about every request, so nobody behind it ever is", name.value);
                self.problems.push(Problem::at(&name.place, what).expected("it last, or `when_missing: pass`"));
            }
        }
    }

    fn route(
        &mut self,
        route: &config::Route,
        policy: Option<Arc<Policy>>,
        upstream: Option<Arc<Upstream>>,
        exchange: Option<Exchange>,
    ) -> Option<Arc<Route>> {
        let rewrite = route.rewrite.as_ref().map(|rewrite| Rewrite::compile(&rewrite.value, &parameters(&route.path.value)));
        if let (Some(rewrite), Some(Err(expected))) = (&route.rewrite, &rewrite) {
            self.problems.push(Problem::at(&rewrite.place, "is no rewrite of this route's path").expected(*expected));
        }
        self.check_route_limits(route);
        let (policy, upstream) = (policy?, upstream?);
        self.check_parameters(route, &policy);
        let accepted = policy.authenticators.iter().flat_map(Authenticators::iter);
        let accepted = accepted.map(|authenticator| (Arc::clone(authenticator.name()), authenticator.method().label()));
        let metrics = self.metrics.route(&route.name.value, accepted);
        let described = route.resource.as_ref().map(|resource| (resource.url.metadata_url(), policy.authorizers.scopes()));
        let challenges = policy.authenticators.as_ref().map(|accepted| Challenges::new(accepted, described)).unwrap_or_default();
        Some(Arc::new(Route {
            name: Arc::clone(&route.name.value),
            policy,
            challenges,
            rewrite: rewrite.transpose().ok()?,
            cost: *route.cost,
            exchange,
            websocket: route.websocket,
            response_timeout: route.timeouts.response.unwrap_or(upstream.timeouts.response),
            upstream,
            metrics,
        }))
    }

    /// Every header that any policy sets or any external authorizer, and the one that names the client, so that a caller can bring none of them
    /// to any route.
    fn identity_headers(&self) -> Arc<[HeaderName]> {
        let inline = self.config.routes.iter().filter_map(|route| match &route.policy {
            config::RoutePolicy::Inline(policy) => Some(&**policy),
            config::RoutePolicy::Named(_) => None,
        });
        let policies = self.config.policies.iter().map(|(_, policy)| policy).chain(inline);
        let headers = policies.flat_map(|policy| policy.forward.headers.iter().map(|(name, _)| name.value.clone()));
        let copied = self.config.authenticators.iter().filter_map(|(_, authenticator)| match authenticator {
            config::Authenticator::External(external) => Some(&external.copy),
            _ => None,
        });
        // These two are the caller's wherever no authorizer replaces them.
        let copied = copied.flatten().filter(|name| ![http::header::AUTHORIZATION, http::header::COOKIE].contains(name)).cloned();
        // Whose word on the client's address is not a trusted proxy's is not passed on as if it were.
        let token = self.config.issuer.iter().map(|issuer| issuer.identity_token.header.clone());
        headers.chain(copied).chain(token).chain([self.config.server.client_ip_header.clone()]).collect()
    }

    /// A condition over a path parameter holds of no request of a route without that parameter: better said now.
    fn check_parameters(&mut self, route: &config::Route, policy: &Policy) {
        let known = parameters(&route.path.value);
        for name in policy.authorizers.parameters().chain(policy.filters.parameters()).filter(|name| !known.contains(name)) {
            let what = format!("a condition of its policy speaks of `path.{name}`, which this path does not have");
            self.problems.push(Problem::at(&route.path.place, what).expected(format!("`{{{name}}}` in the path")));
        }
    }

    fn router(&mut self, routes: &[Arc<Route>], own: (&[config::Route], &[Arc<Route>])) -> Option<Router<Arc<Route>>> {
        let config = &self.config.routes;
        let entries = config.iter().zip(routes).chain(own.0.iter().zip(own.1)).map(|(route, compiled)| Entry {
            hosts: route.hosts.iter().map(|host| &*host.value).collect(),
            path: &route.path.value,
            methods: &route.methods,
            value: Arc::clone(compiled),
        });
        let faults = match Router::compile(entries.collect()) {
            Ok(router) => return Some(router),
            Err(faults) => faults,
        };
        let all: Vec<&config::Route> = config.iter().chain(own.0).collect();
        for fault in faults {
            let problem = match fault {
                Fault::Host { entry, host, expected } => all
                    .get(entry)
                    .and_then(|route| route.hosts.get(host))
                    .map(|host| Problem::at(&host.place, "is no host").expected(expected)),
                Fault::Path { entry, expected } => {
                    all.get(entry).map(|route| Problem::at(&route.path.place, "is no path pattern").expected(expected))
                }
                // A route in the place of one of ours was reported with what answers there.
                Fault::Conflict { entry, earlier } if (entry < config.len()) != (earlier < config.len()) => None,
                Fault::Conflict { entry, earlier } => all.get(entry).zip(all.get(earlier)).map(|(route, earlier)| {
                    Problem::at(&route.path.place, format!("route `{}` has this host, path and method already", *earlier.name))
                }),
            };
            self.problems.extend(problem);
        }
        None
    }
}

/// The names of a path pattern's parameters.
fn parameters(pattern: &str) -> Vec<&str> {
    pattern.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}')).map(|name| name.trim_start_matches('*')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::System;

    /// What is said of a configuration with these sections beside a demo upstream and a listener.
    fn problems(sections: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edgeward.yaml");
        let head = "listeners: [{address: 127.0.0.1:0}]\nupstreams: {demo: {builtin: echo}}\n";
        std::fs::write(&path, format!("{head}{sections}")).unwrap();
        let config = config::load(&path, &System).config.unwrap();
        match compile(&config, &LiveState::default(), &Metrics::new().unwrap()) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.iter().map(|problem| format!("{}: {}", problem.place.path, problem.message)).collect(),
        }
    }

    #[test]
    fn every_name_that_stands_for_nothing_is_reported_at_once() {
        let found = problems(
            "policies: {a: {authenticate: [nobody, noone], limits: [none]}}\n\
             routes:\n  - {name: x, path: /x, policy: b, upstream: demi}\n  - {name: y, path: /y, policy: {authenticate: nobody}, upstream: demo}\n",
        );
        assert_eq!(
            found,
            [
                "policies.a.authenticate[0]: there is no authenticator `nobody`",
                "policies.a.authenticate[1]: there is no authenticator `noone`",
                "policies.a.limits[0]: there is no limit `none`",
                "routes[0].policy: there is no policy `b`",
                "routes[0].upstream: there is no upstream `demi`",
                "routes[1].policy.authenticate: there is no authenticator `nobody`",
            ]
        );
    }

    #[test]
    fn what_can_be_seen_to_be_wrong_with_a_condition_is_reported_where_it_stands() {
        let found = problems(
            "authenticators: {k: {api_key: {keys: {database: k.db}}}}\n\
             filters: {who: {when: identity.plan == 'x'}}\n\
             routes:\n  - {name: x, path: /x, policy: {authenticate: k, authorize: {when: request.method}}, upstream: demo}\n  \
             - {name: y, path: /y, policy: {authenticate: public, filters: [who, whom]}, upstream: demo}\n  \
             - {name: z, path: \"/z/{id}\", policy: {authenticate: k, authorize: {when: path.it == 'a'}}, upstream: demo}\n",
        );
        assert_eq!(
            found,
            [
                "routes[0].policy.authorize.when: a condition is true or false, and this is a text",
                "routes[1].policy.filters[0]: filter `who` is about the caller's identity, and this policy is public",
                "routes[1].policy.filters[1]: there is no filter `whom`",
                "routes[2].path: a condition of its policy speaks of `path.it`, which this path does not have",
            ]
        );
    }

    #[test]
    fn what_could_only_refuse_everybody_is_reported() {
        let found = problems(
            "limits: {who: {per: consumer, rate: 1/s}, item: {per: {path: id}, rate: 1/s}}\n\
             routes:\n  - {name: x, path: /x, policy: {authenticate: public, limits: [who, item]}, upstream: demo}\n  \
             - {name: y, path: \"/y/{id}\", policy: {authenticate: public, limits: [item]}, upstream: demo}\n",
        );
        assert_eq!(
            found,
            [
                "routes[0].policy.limits[0]: limit `who` counts per identity, and this policy is public",
                "routes[0].path: limit `item` counts per `id`, which this path does not have",
            ]
        );
    }

    #[test]
    fn nobody_is_shadowed_by_the_issuer_or_promised_a_token_that_cannot_be() {
        let issuer = "issuer: {url: \"https://gw.test/a\", signing: {directory: s}, oauth2: {clients: {database: k.db}}}\n";
        let route = |(index, (host, path)): (usize, &(&str, &str))| {
            format!("  - {{name: r{index}, {host} path: \"{path}\", policy: {{authenticate: public}}, upstream: demo}}\n")
        };
        let routes = [
            ("hosts: [gw.test],", "/oauth2/token"),
            ("", "/a/.well-known/jwks.json"),
            ("hosts: [\"*.test\"],", "/oauth2/revoke"),
            ("hosts: [other.test],", "/oauth2/introspect"),
            ("", "/{*rest}"),
        ];
        assert_eq!(
            problems(&format!("{issuer}routes:\n{}", routes.iter().enumerate().map(route).collect::<String>())),
            [
                "routes[0].path: the `issuer` answers at this path",
                "routes[1].path: the `issuer` answers at this path",
                "routes[2].path: the `issuer` answers at this path",
            ]
        );
        let exchange = "routes: [{name: r, path: /, policy: {authenticate: public, forward: {token: exchange}}, upstream: demo}]\n";
        assert_eq!(
            problems(exchange),
            [
                "routes[0].policy.authenticate: this policy is public, and nobody is proven whom `token: exchange` could speak of",
                "routes[0].policy.authenticate: `token: exchange` without an issuer",
            ]
        );
        let other = "authenticators: {a: {jwt: {issuer: \"https://other\", audiences: [x], keys: {issuer: true}}}}\n";
        let public = "routes: [{name: r, path: /, policy: {authenticate: public}, upstream: demo}]\n";
        assert_eq!(problems(&format!("{other}{public}")), ["authenticators.a.jwt.keys: there is no `issuer` in this configuration"]);
        assert_eq!(problems(&format!("{other}{issuer}{public}")), ["authenticators.a.jwt.keys: `issuer` is not that of these keys"]);
    }

    #[test]
    fn a_resource_is_told_of_where_nobody_else_answers_and_only_what_is_true_of_it() {
        let head = "authenticators:\n  \
             a: {jwt: {issuer: \"https://a.test\", audiences: [x], keys: {jwks_url: \"https://a.test/k\"}}}\n  \
             b: {jwt: {issuer: \"https://b.test\", audiences: [x], keys: {jwks_url: \"https://b.test/k\"}}}\n  \
             named: {jwt: {issuer: login, audiences: [x], keys: {jwks_url: \"https://a.test/k\"}}}\n  \
             opaque: {introspection: {url: \"https://a.test/i\", client: {id: x, secret: {env: PATH}}}}\n  \
             key: {api_key: {from: [{header: Authorization, scheme: Bearer}], keys: {database: k.db}}}\nroutes:\n";
        let route = |(index, (path, policy, resource)): (usize, &(&str, &str, &str))| {
            format!("  - {{name: r{index}, path: \"{path}\", policy: {{{policy}}}, upstream: demo, resource: {resource}}}\n")
        };
        let found =
            |routes: &[(&str, &str, &str)]| problems(&format!("{head}{}", routes.iter().enumerate().map(route).collect::<String>()));
        let (a, url) = ("authenticate: a", "\"https://gw.test/x\"");
        type Routes<'a> = &'a [(&'a str, &'a str, &'a str)];
        let cases: [(Routes<'_>, &[&str]); 4] = [
            (
                &[
                    ("/x", "authenticate: [a, key], authorize: {scopes: [read]}", url),
                    ("/x/{id}", "authenticate: [key, a], authorize: {scopes: [write]}", url),
                    ("/y", a, "\"https://gw.test/y\""),
                    (
                        "/z",
                        "authenticate: {optional: [opaque, named]}",
                        "{url: \"https://gw.test/z\", authorization_servers: [\"https://c.test\"]}",
                    ),
                ],
                &[][..],
            ),
            (
                &[
                    ("/a", "authenticate: public", url),
                    ("/b", "authenticate: key", url),
                    ("/c", "authenticate: named", "\"https://gw.test/c\""),
                    ("/d", "authenticate: {all: [a, opaque]}", "\"https://gw.test/d\""),
                    ("/e", a, "{url: \"https://gw.test/e\", limits: [none]}"),
                ],
                &[
                    "routes[0].resource: no token of an authorization server opens this route",
                    "routes[1].resource: no token of an authorization server opens this route",
                    "routes[2].resource: the `issuer` of `named` is no URL that clients could ask",
                    "routes[3].resource: `opaque` has no `issuer` that clients could be told of",
                    "routes[4].resource.limits[0]: there is no limit `none`",
                ],
            ),
            (
                &[
                    ("/a", a, url),
                    ("/b", "authenticate: b", url),
                    ("/c", "authenticate: [b, a]", "{url: \"https://gw.test/x\", authorization_servers: [\"https://a.test\"], name: X}"),
                    ("/d", a, "{url: \"https://gw.test/x\", name: Y}"),
                    ("/e", a, "\"https://gw.test:8443/x\""),
                    ("/f", a, "\"https://other.test/x\""),
                ],
                &[
                    "routes[1].resource: route `r0` is the same resource with other authorization servers",
                    "routes[3].resource.url: route `r0` is the same resource with another name",
                    "routes[4].resource: its metadata would be where that of https://gw.test/x is, the resource of route `r0`",
                ],
            ),
            (
                &[("/.well-known/oauth-protected-resource/x", a, url)],
                &["routes[0].path: the metadata of the resource https://gw.test/x is at this path"],
            ),
        ];
        for (routes, expected) in cases {
            assert_eq!(found(routes), expected);
        }
        let issuer = "issuer: {url: \"https://gw.test/.well-known/oauth-protected-resource\", signing: {directory: s}}\n";
        assert_eq!(
            problems(&format!("{issuer}{head}{}", route((0, &("/x", a, "\"https://gw.test/.well-known/jwks.json\""))))),
            ["routes[0].resource: route `edgeward:issuer:jwks` has this host, path and method already"]
        );
    }

    #[test]
    fn an_exchange_is_promised_only_where_there_can_be_one() {
        let server = "exchanges: {sts: {url: \"https://sts.test/token\", client: {id: e, method: private_key_jwt, key: {env: HOME}}}}\n";
        let authenticators = "authenticators: {k: {api_key: {keys: {database: k.db}}}, m: {client_certificate: {identity: common_name, allow: [a]}}, \
                              t: {jwt: {issuer: i, audiences: [a], keys: {jwks_url: \"https://i.test/jwks\"}}}}\n";
        let policy = |index: usize, authenticate: &str, exchange: &str| {
            format!(
                "  - {{name: r{index}, path: /{index}, upstream: demo, policy: {{authenticate: {authenticate}, \
                 forward: {{token: exchange, exchange: {exchange}}}}}}}\n"
            )
        };
        let routes: String = [
            ("public", "sts"),
            ("k", "sts"),
            ("[k, {optional: m}]", "sts"),
            ("[k, t]", "sts"),
            ("{all: [k, t]}", "sts"),
            ("{optional: t}", "sts"),
            ("t", "stss"),
            ("nobody", "sts"),
        ]
        .into_iter()
        .enumerate()
        .map(|(index, (authenticate, exchange))| policy(index, authenticate, exchange))
        .collect();
        let nothing = "nobody proves himself here by a token, and nothing else can be exchanged";
        assert_eq!(
            problems(&format!("{server}{authenticators}routes:\n{routes}")),
            [
                "exchanges.sts.client.key: not a private JWK: not a JSON object",
                "routes[0].policy.authenticate: this policy is public, and nobody is proven whom `token: exchange` could speak of",
                &format!("routes[1].policy.authenticate: {nothing}"),
                &format!("routes[2].policy.authenticate: {nothing}"),
                "routes[6].policy.forward.exchange: there is no exchange `stss`",
                "routes[7].policy.authenticate: there is no authenticator `nobody`",
            ]
        );
    }

    #[test]
    fn a_limit_that_could_not_be_checked_or_paid_where_it_stands_is_reported() {
        let found = problems(
            "limits: {some: {per: host, rate: 5/s}, guesses: {per: client_ip, rate: 5/s, on: refused}, item: {per: {path: id}, rate: 5/s}}\n\
             plans: {gold: {limits: [some, guesses, item, none]}}\n\
             routes:\n  - {name: x, path: /x, cost: 6, policy: {authenticate: public, limits: [some, guesses]}, upstream: demo}\n",
        );
        assert_eq!(
            found,
            [
                "plans.gold.limits[1]: limit `guesses` counts refused credentials, of which nobody knows the plan",
                "plans.gold.limits[2]: limit `item` counts per parameter of the path, which not every route has",
                "plans.gold.limits[3]: there is no limit `none`",
                "routes[0].policy.limits[1]: limit `guesses` counts refused credentials, and this policy is public",
                "routes[0].cost: a request costs 6 of the limit `some`, which never has more than 5",
            ]
        );
    }

    #[test]
    fn two_routes_for_the_same_request_are_reported() {
        let route = |name: &str, path: &str, methods: &str| {
            format!("  - {{name: {name}, path: \"{path}\", methods: [{methods}], policy: {{authenticate: public}}, upstream: demo}}\n")
        };
        let found = problems(&format!(
            "routes:\n{}{}{}",
            route("a", "/x/{id}", "GET"),
            route("b", "/x/{name}", "GET, PUT"),
            route("c", "/x/{id}", "POST")
        ));
        assert_eq!(found, ["routes[1].path: route `a` has this host, path and method already"]);
    }

    #[test]
    fn routes_share_the_policy_they_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edgeward.yaml");
        let text = "listeners: [{address: 127.0.0.1:0}]\nupstreams: {demo: {builtin: echo}}\npolicies: {open: {authenticate: public}}\n\
                    routes:\n  - {name: a, path: /a, policy: open, upstream: demo}\n  - {name: b, path: /b, policy: open, upstream: demo}\n";
        std::fs::write(&path, text).unwrap();
        let config = config::load(&path, &System).config.unwrap();
        let snapshot = compile(&config, &LiveState::default(), &Metrics::new().unwrap()).unwrap();
        let [a, b] = &snapshot.routes[..] else { panic!("two routes") };
        // A list of 100,000 networks must not be held once per route.
        assert!(Arc::ptr_eq(&a.policy, &b.policy));
    }
}
