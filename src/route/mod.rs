//! What one route asks of a request, and where it sends it: everything compiled, nothing looked up.

pub mod exchange;
pub mod fields;
pub mod filters;
pub mod forward;
pub mod ip_rules;
pub mod limit;
pub mod plans;
pub mod rate_limits;
pub mod resource;
pub mod rewrite;
pub mod router;
pub mod statement;

use std::sync::Arc;
use std::time::Duration;

use crate::authenticators::{Authenticators, Challenge};
use crate::authorizers::Authorizers;
use crate::metrics::RouteMetrics;
use crate::upstream::Upstream;

use exchange::Exchange;
use filters::Filters;
use forward::Forward;
use ip_rules::IpRules;
use rate_limits::RateLimits;
use rewrite::Rewrite;

/// One compiled route.
#[derive(Debug)]
pub struct Route {
    /// The name in the configuration.
    pub name: Arc<str>,
    /// Who may enter, and as what; shared by every route that names it.
    pub policy: Arc<Policy>,
    /// What a refused caller is told to present.
    pub challenges: Challenges,
    /// Another path for the upstream.
    pub rewrite: Option<Rewrite>,
    /// What a request takes of its limits, times what they say.
    pub cost: u64,
    /// What the upstream is told in place of the credential.
    pub exchange: Option<Exchange>,
    /// Who serves.
    pub upstream: Arc<Upstream>,
    /// Whether an upgrade to WebSocket is passed on.
    pub websocket: bool,
    /// How long the upstream may take to answer.
    pub response_timeout: Duration,
    /// Counters.
    pub metrics: RouteMetrics,
}

/// One compiled policy.
#[derive(Debug)]
pub struct Policy {
    /// Which requests are refused or counted, whoever asks.
    pub filters: Filters,
    /// Which addresses may ask at all.
    pub ip_rules: IpRules,
    /// How often.
    pub rate_limits: RateLimits,
    /// Who may enter; absent only where the configuration says `public`.
    pub authenticators: Option<Authenticators>,
    /// What the identity must have.
    pub authorizers: Authorizers,
    /// What the upstream is told.
    pub forward: Forward,
}

/// `WWW-Authenticate` values, one per accepted method.
#[derive(Debug, Default)]
pub struct Challenges {
    /// When no credential came (RFC 6750 section 3: no error code then).
    pub missing: Vec<http::HeaderValue>,
    /// When one came and was not good.
    pub invalid: Vec<http::HeaderValue>,
    /// When the proof that came with a token was not good (RFC 9449 section 7.1).
    pub unproven: Vec<http::HeaderValue>,
    /// When the proof lacked a nonce (RFC 9449 section 9).
    pub nonce_wanted: Vec<http::HeaderValue>,
    /// How tokens are presented where none is taken as `Bearer`.
    otherwise: Option<&'static str>,
    /// Where the metadata of the resource is, as one more parameter; empty where there is none.
    described: Box<str>,
}

impl Challenges {
    /// One per accepted method (RFC 9110 section 11.6.1), and none twice. Where the route is a resource that is `described` at a URL and asks for
    /// scopes, those that ask for a token say so: whoever reads them knows where to get one, and for what (RFC 9728 section 5.1).
    pub fn new(accepted: &Authenticators, described: Option<(String, &str)>) -> Self {
        let mut challenges: Vec<Challenge> = Vec::new();
        for challenge in accepted.iter().flat_map(|authenticator| authenticator.challenges()) {
            if !challenges.contains(&challenge) {
                challenges.push(challenge);
            }
        }
        if let Some((url, scopes)) = &described {
            let describe = |challenge: Challenge| match challenge.asks_for_token() {
                true if scopes.is_empty() => challenge.with(RESOURCE_METADATA, url.clone()),
                true => challenge.with("scope", (*scopes).to_owned()).with(RESOURCE_METADATA, url.clone()),
                false => challenge,
            };
            challenges = challenges.into_iter().map(describe).collect();
        }
        let mut tokens = challenges.iter().filter(|challenge| challenge.asks_for_token()).map(Challenge::scheme);
        Self {
            otherwise: if tokens.clone().any(|scheme| scheme == BEARER) { None } else { tokens.next() },
            missing: challenges.iter().map(Challenge::missing).collect(),
            invalid: challenges.iter().map(Challenge::invalid).collect(),
            unproven: challenges.iter().map(Challenge::unproven).collect(),
            nonce_wanted: challenges.iter().map(Challenge::nonce_wanted).collect(),
            described: described.map(|(url, _)| format!(", {RESOURCE_METADATA}=\"{url}\"")).unwrap_or_default().into(),
        }
    }

    /// When the token lacks one of these scopes, separated by spaces (RFC 6750 section 3.1).
    pub fn insufficient_scope(&self, scopes: &str) -> String {
        format!("{} error=\"insufficient_scope\", scope=\"{scopes}\"{}", self.otherwise.unwrap_or(BEARER), self.described)
    }
}

const BEARER: &str = "Bearer";
const RESOURCE_METADATA: &str = "resource_metadata";
