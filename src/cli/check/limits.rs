//! Limits and plans in words: what each comes to, and what holds while its store is away.

use std::sync::Arc;

use super::join;
use crate::config::{
    self, Allowance, At, Config, Limit, LimitAlgorithm, LimitKey, LimitMode, LimitOn, LimitStore, OnStoreFailure, Period, Quota, Rate,
};
use crate::live::leases::{worst_idle, worst_overshoot};
use crate::route::limit::terms;

/// A limit by its name, and what it allows.
pub(super) fn named(config: &Config, name: &At<Arc<str>>) -> String {
    match config.limits.iter().find(|(known, _)| known.value == name.value) {
        Some((_, limit)) => format!("{} ({})", name.value, words(limit)),
        None => name.value.to_string(),
    }
}

/// Each plan in a sentence.
pub(super) fn plans(config: &Config) -> Vec<String> {
    let sentence = |(name, plan): &(At<Arc<str>>, config::Plan)| {
        let mut text = format!("plan {}: within {}", name.value, join(plan.limits.iter().map(|limit| named(config, limit)), " and "));
        if !plan.consumers.is_empty() {
            text += &format!("; that of {}", join(plan.consumers.iter().map(|consumer| &consumer.value), ", "));
        }
        if plan.default {
            text += "; that of every caller who has no other";
        }
        text
    };
    config.plans.iter().map(sentence).collect()
}

/// What holds while Redis is away or the database of quotas cannot be written.
pub(super) fn dependencies(config: &Config) -> Vec<String> {
    let mut plans = Vec::new();
    for (name, limit) in &config.limits {
        let (on_failure, lent) = match *limit.store {
            LimitStore::Local => continue,
            LimitStore::Redis(on_failure) => (on_failure, None),
            LimitStore::Hybrid(on_failure) => match limit.allowance {
                Allowance::Rate { rate, algorithm } => (on_failure, Some(terms(rate, algorithm))),
                Allowance::Quota(_) | Allowance::Concurrency(_) => (on_failure, None),
            },
        };
        let redis = config.redis.as_ref().map(|redis| redis.url.value.to_string()).unwrap_or_default();
        let away = match on_failure {
            OnStoreFailure::Local => "each node counts alone",
            OnStoreFailure::Allow => "it does NOT hold",
            OnStoreFailure::Deny => "503",
        };
        let lent = lent.map_or(", exactly".to_owned(), |terms| {
            let (over, idle) = (worst_overshoot(1, terms), worst_idle(1, terms));
            format!(" and lent to the nodes: each may admit {over} beyond the {} at worst and leave {idle} unused", terms.limit)
        });
        plans.push(format!("{}: counted in {redis}{lent}; while that is away {away}", name.value));
    }
    if config.limits.iter().any(|(_, limit)| matches!(limit.allowance, Allowance::Quota(_))) {
        let path = config.quotas.database.display();
        plans.push(format!(
            "quotas: kept in {path}; while it cannot be written the counts go on in memory; a start or a reload that cannot read it is refused"
        ));
    }
    plans
}

fn words(limit: &Limit) -> String {
    let (count, period) = match limit.allowance {
        Allowance::Rate { rate: Rate { count, window }, .. } => match window.as_secs() {
            1 => (count, "per second".to_owned()),
            60 => (count, "per minute".to_owned()),
            3_600 => (count, "per hour".to_owned()),
            _ => (count, format!("per {}", config::duration(window))),
        },
        Allowance::Quota(Quota { count, period }) => match period {
            Period::Day => (count, "per day".to_owned()),
            Period::Month => (count, "per month".to_owned()),
            Period::Rolling(length) => (count, format!("in any {}", config::duration(length))),
        },
        Allowance::Concurrency(count) => (count, "at once".to_owned()),
    };
    let what = if limit.on == LimitOn::Refused { "refused credentials " } else { "" };
    let mut text = format!("{count} {what}{period} for each {}", join(limit.per.iter().map(key), " and "));
    if let Allowance::Rate { algorithm, .. } = limit.allowance {
        text += &match algorithm {
            LimitAlgorithm::FixedWindow => ", fixed window".to_owned(),
            LimitAlgorithm::SlidingWindow => ", sliding window".to_owned(),
            LimitAlgorithm::TokenBucket { burst } => format!(", {burst} of them in a burst"),
            LimitAlgorithm::LeakyBucket { queue, max_wait } => {
                format!(", one after the other while up to {queue} wait {} at most", config::duration(max_wait))
            }
        };
    }
    if limit.cost > 1 {
        text += &format!(", {} for a request", limit.cost);
    }
    if limit.mode == LimitMode::Shadow {
        text += ", NOT enforced";
    }
    text
}

fn key(key: &LimitKey) -> String {
    match key {
        LimitKey::ClientIp => "client address".to_owned(),
        LimitKey::Consumer => "consumer".to_owned(),
        LimitKey::Subject => "subject".to_owned(),
        LimitKey::Credential => "credential".to_owned(),
        LimitKey::Route => "route".to_owned(),
        LimitKey::Host => "host".to_owned(),
        LimitKey::Header(name) => format!("header {name}"),
        LimitKey::Claim(path) => format!("claim {path}"),
        LimitKey::Path(name) => format!("{{{name}}}"),
    }
}
