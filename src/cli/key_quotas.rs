//! What an API key has left of the quotas that it meets, as far as the gateway has written it down.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::keys::{Failure, problems, rfc3339};
use crate::config::Config;
use crate::live::LiveState;
use crate::live::api_keys::Record;
use crate::metrics::Metrics;
use crate::request::{Identity, Method, Now};
use crate::route::statement::{self, Met, Statement, Used};
use crate::snapshot;

/// One quota of a key.
#[derive(Debug, Serialize)]
pub(super) struct KeyQuota {
    /// The limit's name.
    limit: String,
    /// What it gives: `100000/day`.
    terms: String,
    /// `enforce`, or `shadow`.
    mode: &'static str,
    /// The route, where each has a count of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(flatten)]
    used: KeyUse,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum KeyUse {
    Known {
        used: u64,
        left: u64,
        /// When everything is back; absent: it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        reset: Option<String>,
    },
    /// Counted by what only a request has.
    Unknown { depends_on: String },
}

/// The quotas of the policies that accept the key, and of its plan.
///
/// # Errors
/// When the configuration is not sound, or a database cannot be read.
pub(super) fn of(config: &Config, authenticator: &Arc<str>, record: &Record, now: u64) -> Result<Vec<KeyQuota>, Failure> {
    let snapshot = snapshot::compile(config, &LiveState::default(), &Metrics::new()?).map_err(problems)?;
    let caller = Identity {
        consumer: Some(Arc::clone(&record.consumer).into()),
        plan: record.plan.clone().map(Into::into),
        ..Identity::new(Method::ApiKey, Arc::clone(authenticator), record.sha256.0)
    };
    let opens = |name: &Arc<str>| record.routes.is_empty() || record.routes.contains(name);
    let routes = snapshot.routes.iter().map(|route| &**route).filter(|route| {
        let mut accepted = route.policy.authenticators.iter().flat_map(|accepted| accepted.iter());
        opens(&route.name) && accepted.any(|accepted| accepted.name() == authenticator)
    });
    let now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(now) };
    statement::quotas(routes, &caller).iter().map(|met| quota(met, now)).collect()
}

fn quota(met: &Met<'_>, now: Now) -> Result<KeyQuota, Failure> {
    let Statement { limit, terms, mode, .. } = met.limit.statement();
    let used = match &met.key {
        Ok(key) => {
            let Used { used, left, reset } = met.written(key, now)?;
            KeyUse::Known { used, left, reset: (used > 0).then(|| rfc3339((now.unix + reset).as_secs())) }
        }
        Err(part) => KeyUse::Unknown { depends_on: part.clone() },
    };
    Ok(KeyQuota { limit, terms, mode, route: met.route.as_ref().map(ToString::to_string), used })
}

impl fmt::Display for KeyQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.limit, self.terms)?;
        if let Some(route) = &self.route {
            write!(f, " on {route}")?;
        }
        match &self.used {
            KeyUse::Known { used, left, reset } => {
                write!(f, ": {used} used, {left} left")?;
                reset.as_ref().map_or(Ok(()), |reset| write!(f, " until {reset}"))?;
            }
            KeyUse::Unknown { depends_on } => write!(f, ": counted by {depends_on}")?,
        }
        if self.mode == "shadow" { f.write_str(" (shadow)") } else { Ok(()) }
    }
}
