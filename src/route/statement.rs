//! What a limit says of itself, and of what one caller has left of a quota: for `edgeward keys show` and the administration.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use smol_str::SmolStr;

use super::Route;
use super::limit::{Holder, Own, PRESENT, RateLimit};
use crate::config::{self, LimitKey};
use crate::live::limits::{Algorithm, Key, KeyBuilder, Standing, Terms};
use crate::live::quotas::{Period, QuotaTerms, Quotas, StoreError};
use crate::request::{Identity, Now};

/// A limit, as operators read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Statement {
    /// The name in the configuration.
    pub limit: String,
    /// What is counted by: `consumer`, `header.x-tenant`.
    pub per: Vec<String>,
    /// Whether it is a `rate`, a `quota` or a `concurrency`.
    pub kind: &'static str,
    /// The terms as the configuration writes them: `100/s`, `100000/day`, `10`.
    pub terms: String,
    /// How a rate is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<&'static str>,
    /// `enforce`, or `shadow`: it refuses nobody.
    pub mode: &'static str,
    /// Who holds the counts: `local`, `redis` or `hybrid`.
    pub store: &'static str,
    /// How many keys this process tells apart; none where Redis holds them.
    pub keys: usize,
}

/// What one key has used of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Units charged in the period.
    pub used: u64,
    /// Units left of it.
    pub left: u64,
    /// Time until all of them are back.
    pub reset: Duration,
}

impl RateLimit {
    /// The limit, and what it counts now.
    pub fn statement(&self) -> Statement {
        let (store, keys) = match &self.holder {
            Holder::Own(own) => ("local", own.keys()),
            Holder::Redis(_) => ("redis", 0),
            Holder::Hybrid(leases, _) => ("hybrid", leases.keys()),
        };
        let (kind, terms, algorithm) = self.own().terms();
        Statement {
            limit: self.name.to_string(),
            per: self.per.iter().map(named).collect(),
            kind,
            terms,
            algorithm,
            mode: if self.shadow { "shadow" } else { "enforce" },
            store,
            keys,
        }
    }

    /// The key of which these are the parts, each by the name that [`Statement::per`] gives it.
    ///
    /// # Errors
    /// The name of a part that is absent, or is no address where one has to be.
    pub fn key_of(&self, part: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Key, String> {
        let mut key = KeyBuilder::default();
        for counted in &self.per {
            let name = named(counted);
            let Some(bytes) = part(&name) else { return Err(name) };
            if *counted == LimitKey::ClientIp {
                let address = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok());
                self.push_address(&mut key, address.ok_or(name)?);
            } else {
                key.part(PRESENT, &bytes);
            }
        }
        Ok(key.finish())
    }

    /// What a key has used, as this process counts; none when the limit is no quota.
    pub fn used(&self, key: &Key, now: Now) -> Option<Used> {
        let (quotas, terms) = self.quota()?;
        Some(Used::of(terms, quotas.standing(key, terms, now)))
    }

    fn quota(&self) -> Option<(&Quotas, &QuotaTerms)> {
        match self.own() {
            Own::Quota(quotas, terms) => Some((quotas, terms)),
            Own::Rate(..) | Own::Concurrency(..) => None,
        }
    }
}

impl Used {
    fn of(terms: &QuotaTerms, standing: Standing) -> Self {
        let Standing { remaining, reset, .. } = standing;
        Self { used: terms.limit.saturating_sub(remaining), left: remaining, reset }
    }
}

/// A quota that a caller meets.
#[derive(Debug)]
pub struct Met<'r> {
    /// The quota.
    pub limit: &'r Arc<RateLimit>,
    /// The route, where each has a count of its own.
    pub route: Option<Arc<str>>,
    /// The caller's key, or what only a request can say of it.
    pub key: Result<Key, String>,
    quotas: &'r Quotas,
    terms: &'r QuotaTerms,
}

impl Met<'_> {
    /// What a key has used, as far as it was written down. Blocks.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn written(&self, key: &Key, now: Now) -> Result<Used, StoreError> {
        Ok(Used::of(self.terms, self.quotas.written(key, self.terms, now)?))
    }
}

/// The quotas that a caller meets on these routes, its plan's among them, each once.
pub fn quotas<'r>(routes: impl Iterator<Item = &'r Route>, caller: &Identity) -> Vec<Met<'r>> {
    let mut met: Vec<Met<'r>> = Vec::new();
    for route in routes {
        for limit in route.policy.rate_limits.of_caller(caller) {
            let Some((quotas, terms)) = limit.quota() else { continue };
            let text = |text: &Option<SmolStr>| text.as_ref().map(|text| text.as_bytes().to_vec());
            let key = limit.key_of(|part| match part {
                "consumer" => text(&caller.consumer),
                "subject" => text(&caller.subject),
                "credential" => Some(caller.credential.to_vec()),
                "route" => Some(route.name.as_bytes().to_vec()),
                _ => None,
            });
            if !met.iter().any(|known| Arc::ptr_eq(known.limit, limit) && known.key == key) {
                let route = limit.per.contains(&LimitKey::Route).then(|| Arc::clone(&route.name));
                met.push(Met { limit, route, key, quotas, terms });
            }
        }
    }
    met
}

impl Own {
    fn keys(&self) -> usize {
        match self {
            Self::Rate(limits, _) => limits.keys(),
            Self::Quota(quotas, _) => quotas.keys(),
            Self::Concurrency(concurrency, _) => concurrency.keys(),
        }
    }

    fn terms(&self) -> (&'static str, String, Option<&'static str>) {
        match self {
            Self::Rate(_, Terms { limit, window, algorithm }) => {
                let algorithm = match algorithm {
                    Algorithm::FixedWindow => "fixed_window",
                    Algorithm::SlidingWindow => "sliding_window",
                    Algorithm::TokenBucket { .. } => "token_bucket",
                    Algorithm::LeakyBucket { .. } => "leaky_bucket",
                };
                ("rate", format!("{limit}/{}", each(*window)), Some(algorithm))
            }
            Self::Quota(_, QuotaTerms { limit, period }) => {
                let period = match period {
                    Period::Day => "day".to_owned(),
                    Period::Month => "month".to_owned(),
                    Period::Rolling(length) => each(*length),
                };
                ("quota", format!("{limit}/{period}"), None)
            }
            Self::Concurrency(_, limit) => ("concurrency", limit.to_string(), None),
        }
    }
}

/// A time as a rate has it: `s` and not `1s`.
fn each(time: Duration) -> String {
    let written = config::duration(time);
    match written.strip_prefix('1') {
        Some(unit) if unit.starts_with(char::is_alphabetic) => unit.to_owned(),
        _ => written,
    }
}

/// What a limit counts by, by name.
fn named(key: &LimitKey) -> String {
    match key {
        LimitKey::ClientIp => "client_ip".to_owned(),
        LimitKey::Consumer => "consumer".to_owned(),
        LimitKey::Subject => "subject".to_owned(),
        LimitKey::Credential => "credential".to_owned(),
        LimitKey::Route => "route".to_owned(),
        LimitKey::Host => "host".to_owned(),
        LimitKey::Header(name) => format!("header.{name}"),
        LimitKey::Claim(path) => format!("claim.{path}"),
        LimitKey::Path(parameter) => format!("path.{parameter}"),
    }
}
