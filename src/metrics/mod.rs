//! Counters and histograms that operators scrape; every label is a word of ours or a name of the operator's, never a caller's.

mod cells;
mod family;

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use prometheus::{Encoder, IntCounter, IntGauge, Registry, TextEncoder};

use cells::Cells;
pub use cells::{Counter, Histogram};
use family::{Counters, Gauge, Times};

use crate::request::rejection::CODES;

/// Nanoseconds; from a cached decision to a slow upstream.
const BUCKETS: &[u64] = &[
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// The process's metrics, made once in `server` and handed down.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Counters,
    refusals: Counters,
    authentications: Counters,
    retries: Counters,
    limit_refusals: Counters,
    filter_matches: Counters,
    connection_refusals: Counters,
    /// Time from the request's first look to its hand-over to the upstream, or to its refusal.
    pub own_time: Histogram,
    /// Time from the hand-over to the head of the upstream's answer.
    pub upstream_time: Histogram,
    /// Requests being served.
    pub in_flight: Counter,
    /// Connections of callers that are open.
    pub connections: Counter,
    /// Access log lines that were dropped because the reader of the log is slower than the traffic.
    pub access_log_dropped: IntCounter,
    /// Panics that were caught in a decision; each refused its request.
    pub panics: IntCounter,
    /// Calls of Redis.
    pub redis: RedisMetrics,
    /// Candidates that were applied.
    pub reloads_applied: IntCounter,
    /// Candidates that were refused.
    pub reloads_refused: IntCounter,
    /// 1 while the last candidate was applied, 0 while a refused one waits to be mended.
    pub config_current: IntGauge,
    /// The number of the configuration that serves, from 1.
    pub config_generation: IntGauge,
    /// When the configuration that serves was applied, seconds since the Unix epoch.
    pub config_applied: IntGauge,
}

impl Metrics {
    /// Registers every metric.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let cells = Arc::new(Cells::default());
        let counters = |name: &str, help: &str, labels: &'static [&'static str]| -> Result<Counters, prometheus::Error> {
            let metric = Counters::new(&cells, name, help, labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let histogram = |name: &str, help: &str| -> Result<Histogram, prometheus::Error> {
            let histogram = Histogram::new(&cells, BUCKETS);
            registry.register(Box::new(Times::new(name, help, &histogram)?))?;
            Ok(histogram)
        };
        let in_flight = Counter::new(&cells);
        registry.register(Box::new(Gauge::new("edgeward_requests_in_flight", "Requests being served.", &in_flight)?))?;
        let connections = Counter::new(&cells);
        registry.register(Box::new(Gauge::new("edgeward_connections", "Connections of callers that are open.", &connections)?))?;
        Ok(Self {
            requests: counters("edgeward_requests_total", "Requests by route, answer code and status class.", &["route", "code", "class"])?,
            refusals: counters(
                "edgeward_refusals_total",
                "Refused requests with the reason that the caller is not told.",
                &["route", "code", "reason"],
            )?,
            authentications: counters(
                "edgeward_authentications_total",
                "Accepted credentials by route and authenticator.",
                &["route", "authenticator", "method"],
            )?,
            retries: counters("edgeward_upstream_retries_total", "Tries after the first, by route.", &["route"])?,
            filter_matches: counters("edgeward_filter_matches_total", "Requests that a filter met.", &["filter", "action"])?,
            limit_refusals: counters(
                "edgeward_limit_refusals_total",
                "Requests that a limit refused, or with mode shadow would have.",
                &["limit", "mode"],
            )?,
            own_time: histogram("edgeward_own_seconds", "Time edgeward took before the upstream was asked or the request refused.")?,
            upstream_time: histogram("edgeward_upstream_seconds", "Time from asking the upstream to the head of its answer.")?,
            in_flight,
            connections,
            connection_refusals: counters(
                "edgeward_connections_refused_total",
                "Connections that were closed at once, by the bound that had no room for them.",
                &["bound"],
            )?,
            access_log_dropped: counter(
                "edgeward_access_log_dropped_total",
                "Access log lines dropped because stdout was slower than traffic.",
            )?,
            panics: counter("edgeward_panics_total", "Panics caught in a decision; each refused its request.")?,
            redis: RedisMetrics {
                calls: counters("edgeward_redis_calls_total", "Scripts that Redis was asked to run, by what became of it.", &["outcome"])?,
                time: histogram("edgeward_redis_seconds", "Time from asking Redis to its answer or to the deadline.")?,
            },
            reloads_applied: counter("edgeward_config_reloads_applied_total", "Configurations applied after the first.")?,
            reloads_refused: counter("edgeward_config_reloads_refused_total", "Candidate configurations refused.")?,
            config_current: gauge(
                "edgeward_config_current",
                "1 while what is on disk is what serves, 0 while a refused candidate stands there.",
            )?,
            config_generation: gauge("edgeward_config_generation", "The number of the configuration that serves, from 1.")?,
            config_applied: gauge("edgeward_config_applied_timestamp_seconds", "When the configuration that serves was applied.")?,
            registry,
        })
    }

    /// Counts a connection that was closed at once, by the bound that had no room for it.
    pub fn count_connection_refused(&self, bound: &str) {
        self.connection_refusals.of(&[bound]).inc();
    }

    /// The handles of one route, so that a request touches an atomic and no table.
    ///
    /// `authenticators` are those that the route accepts, with the label of their method.
    pub fn route(&self, name: &str, authenticators: impl Iterator<Item = (Arc<str>, &'static str)>) -> RouteMetrics {
        let accepted = authenticators.map(|(authenticator, method)| {
            let counter = self.authentications.of(&[name, &authenticator, method]);
            (authenticator, counter)
        });
        RouteMetrics {
            name: name.to_owned(),
            requests: self.requests.clone(),
            refusals: self.refusals.clone(),
            accepted: accepted.collect(),
            retries: self.retries.of(&[name]),
            served: Default::default(),
            refused: std::array::from_fn(|_| OnceLock::new()),
            reasons: ArcSwap::default(),
        }
    }

    /// How often a filter met a request; its name and its action.
    pub fn filter_matches(&self, filter: &str, action: &str) -> Counter {
        self.filter_matches.of(&[filter, action])
    }

    /// How often a limit refused; its name and its mode.
    pub fn limit_refusals(&self, limit: &str, mode: &str) -> Counter {
        self.limit_refusals.of(&[limit, mode])
    }

    /// Everything in the Prometheus text format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be rendered");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}

/// Calls of Redis; clones count together.
#[derive(Debug, Clone)]
pub struct RedisMetrics {
    calls: Counters,
    /// Time from asking to the answer or the deadline.
    pub time: Histogram,
}

impl RedisMetrics {
    /// Counts a call by why it failed; absent: it did not.
    pub fn count(&self, failure: Option<&'static str>) {
        self.calls.of(&[failure.unwrap_or("ok")]).inc();
    }
}

/// The metrics of one route.
#[derive(Debug)]
pub struct RouteMetrics {
    name: String,
    requests: Counters,
    refusals: Counters,
    accepted: Box<[(Arc<str>, Counter)]>,
    retries: Counter,
    served: [OnceLock<Counter>; 6],
    refused: [OnceLock<Counter>; CODES.len()],
    /// By code and reason: found without a lock, as a flood of refusals comes on all cores.
    reasons: ArcSwap<Vec<((&'static str, &'static str), Counter)>>,
}

impl RouteMetrics {
    /// Counts a request whose answer came from the upstream.
    pub fn count_served(&self, status: u16) {
        const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
        let class = usize::from(status / 100).min(5);
        if let (Some(slot), Some(label)) = (self.served.get(class), CLASSES.get(class)) {
            slot.get_or_init(|| self.requests.of(&[self.name.as_str(), "ok", label])).inc();
        }
    }

    /// Counts a refusal of ours.
    pub fn count_refused(&self, code: &'static str, status: u16, reason: Option<&'static str>) {
        let class = match status / 100 {
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        if let Some(slot) = CODES.iter().position(|known| *known == code).and_then(|at| self.refused.get(at)) {
            slot.get_or_init(|| self.requests.of(&[self.name.as_str(), code, class])).inc();
        }
        self.count_reason((code, reason.unwrap_or("")));
    }

    fn count_reason(&self, why: (&'static str, &'static str)) {
        let known = self.reasons.load();
        if let Some((_, counter)) = known.iter().find(|(known, _)| *known == why) {
            return counter.inc();
        }
        // The family gives the same counter to all who come at once.
        let counter = self.refusals.of(&[self.name.as_str(), why.0, why.1]);
        self.reasons
            .rcu(|known| known.iter().filter(|(known, _)| *known != why).cloned().chain([(why, counter.clone())]).collect::<Vec<_>>());
        counter.inc();
    }

    /// Counts a try after the first.
    pub fn count_retry(&self) {
        self.retries.inc();
    }

    /// Counts a credential that was accepted.
    pub fn count_accepted(&self, authenticator: &str) {
        if let Some((_, counter)) = self.accepted.iter().find(|(name, _)| **name == *authenticator) {
            counter.inc();
        }
    }
}
