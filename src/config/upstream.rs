//! Where requests go: servers, how one is chosen, how they are watched, and how edgeward makes sure whom it talks to.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map as Object, Value, json};

use super::decode::{Context, Decode, Fields, NonEmpty, Scalar, grammar, unknown_word, words};
use super::server::Certificate;
use super::values::{HOUR, Host, HostAndPort, Lasting, MINUTE, Within};
use super::yaml::{Kind, Node};
use super::{At, File};

grammar! {
    /// A service behind the gateway.
    #[one_of(servers, builtin)]
    #[checked(check_upstream)]
    pub struct Upstream {
        /// Its servers: `host:port`, or a mapping with a weight.
        servers: Vec<UpstreamServer> as NonEmpty<Vec<UpstreamServer>> = absent,
        /// A service inside edgeward, in place of servers. It takes no other key.
        builtin: Option<Builtin> = absent,
        /// How a server is chosen. Each worker thread takes turns of its own.
        balance: Balance = "round_robin",
        /// TLS to the servers. Absent: plain text.
        tls: Option<UpstreamTls> = absent,
        /// Active health checks. Absent: none.
        health: Option<Health> = absent,
        /// How long the servers may take.
        timeouts: UpstreamTimeouts = "{}",
        /// Retries, for idempotent requests only. Absent: none.
        retries: Option<Retries> = absent,
        /// Speak HTTP/2 to the servers: by ALPN with `tls`, with prior knowledge without. To one that does not, nothing is sent.
        http2: bool = "false",
    }

    /// A server with a weight.
    struct WrittenWeightedServer {
        /// Its host and port.
        address: (Arc<str>, u16) as HostAndPort,
        /// Its share of the requests, in proportion to the other weights.
        weight: u32 as Within<u32, 1, 1000> = "1",
    }

    /// TLS to the servers, always verified.
    pub struct UpstreamTls {
        /// The name that the certificate must have, and the SNI. Without it nobody would be verified, so it is required.
        server_name: At<Arc<str>> as At<Host>,
        /// The authorities to trust, in PEM. Absent: the system's.
        ca: Option<File> = absent,
        /// The certificate that edgeward shows.
        client: Option<Certificate> = absent,
    }

    /// Active health checks.
    #[checked(check_health)]
    pub struct Health {
        /// What is asked for, with GET; a 2xx or 3xx answer is healthy.
        path: Arc<str> as RequestPath,
        /// The time between two checks.
        interval: Duration as Lasting<100, HOUR> = "5s",
        /// The time a check may take; at most the interval.
        timeout: Duration as Lasting<1, MINUTE> = "1s",
        /// Good checks in a row that bring a server back.
        healthy: u32 as Within<u32, 1, 100> = "2",
        /// Bad checks in a row that take a server out.
        unhealthy: u32 as Within<u32, 1, 100> = "3",
    }

    /// How long the servers may take.
    pub struct UpstreamTimeouts {
        /// To connect, TLS included.
        connect: Duration as Lasting<1, {10 * MINUTE}> = "1s",
        /// Until the head of the answer, and between two pieces of its body.
        response: Duration as Lasting<1, {24 * HOUR}> = "30s",
        /// How long an unused connection is kept.
        idle: Duration as Lasting<1, {24 * HOUR}> = "60s",
    }

    /// Retries. Only idempotent requests are ever sent twice, and those of which a server that speaks HTTP/2 says that it has not looked at them.
    pub struct Retries {
        /// Tries after the first.
        attempts: u32 as Within<u32, 1, 10> = "1",
        /// What is tried again.
        on: Vec<RetryOn> as NonEmpty<Vec<RetryOn>> = "[connect_failure]",
    }
}

words! {
    /// A service inside edgeward.
    pub enum Builtin {
        /// Answers with the request as an upstream would have seen it, in JSON.
        Echo = "echo",
    }

    /// How a server is chosen.
    pub enum Balance {
        /// In turn, by weight.
        RoundRobin = "round_robin",
        /// By chance, by weight.
        Random = "random",
        /// The one with the fewest requests under way, by weight.
        LeastRequests = "least_requests",
    }
}

/// A server of an upstream.
#[derive(Debug, Clone)]
pub struct UpstreamServer {
    /// A DNS name in lower case, an IPv4 address, or an IPv6 address without brackets.
    pub host: At<Arc<str>>,
    /// The port, never 0.
    pub port: u16,
    /// Its share of the requests, in proportion to the other weights; at least 1.
    pub weight: u32,
}

impl Decode for UpstreamServer {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let WrittenWeightedServer { address: (host, port), weight } = match &node.kind {
            Kind::Mapping(_) => WrittenWeightedServer::decode(node, context)?,
            _ => WrittenWeightedServer { address: HostAndPort::decode(node, context)?, weight: 1 },
        };
        Some(Self { host: At { value: host, place: context.place(node) }, port, weight })
    }

    fn expected() -> String {
        format!("{}, or `{{address: HOST:PORT, weight: N}}`", <HostAndPort as Scalar>::expected())
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        json!({"anyOf": [<HostAndPort as Scalar>::schema(), WrittenWeightedServer::schema(definitions)]})
    }
}

/// What is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOn {
    /// No connection, or none that took the request.
    ConnectFailure,
    /// An upstream answer with this status (502, 503 or 504).
    Status(u16),
}

impl Scalar for RetryOn {
    type Value = Self;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "connect_failure" => Ok(Self::ConnectFailure),
            "502" => Ok(Self::Status(502)),
            "503" => Ok(Self::Status(503)),
            "504" => Ok(Self::Status(504)),
            _ => Err(unknown_word(text, &["connect_failure", "502", "503", "504"])),
        }
    }

    fn expected() -> String {
        "one of `connect_failure`, `502`, `503`, `504`".to_owned()
    }

    fn schema() -> Value {
        json!({"enum": ["connect_failure", 502, 503, 504]})
    }
}

/// A path that is asked of a server, with a query if need be.
struct RequestPath;

impl Scalar for RequestPath {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        let sound = text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if sound && text.parse::<http::uri::PathAndQuery>().is_ok() { Ok(text.into()) } else { Err("not a path".to_owned()) }
    }

    fn expected() -> String {
        "a path such as `/healthz`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "path of a URL", "type": "string", "pattern": "^/"})
    }
}

fn check_upstream(upstream: &Upstream, fields: &Fields<'_>, context: &mut Context<'_>) {
    if upstream.builtin.is_none() {
        return;
    }
    for key in ["balance", "tls", "health", "timeouts", "retries", "http2"] {
        if let Some(node) = fields.written(key) {
            context.key(key, |context| context.refuse::<()>(node, "a built-in service has no servers", "`builtin` alone"));
        }
    }
}

fn check_health(health: &Health, fields: &Fields<'_>, context: &mut Context<'_>) {
    if health.timeout > health.interval {
        fields.refuse(context, "the timeout is longer than the interval", "checks that end before the next one begins");
    }
}
