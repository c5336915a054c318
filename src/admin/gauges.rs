//! What live facts look like from outside at the moment of asking: gauges for the scrape, words for readiness.

use std::fmt::Write;
use std::sync::Arc;

use crate::live::LiveState;
use crate::live::answers;
use crate::live::api_keys::{ApiKeys, Source as KeyStore};
use crate::live::breaker;
use crate::live::key_set::{KeySet, Source as KeySource};
use crate::live::revocations::Revocations;
use crate::net::redis::Standing;
use crate::request::Now;
use crate::snapshot::Snapshot;

/// The dependencies that were not asked yet, and those that do not answer.
pub(super) fn dependencies(live: &LiveState) -> (Vec<String>, Vec<String>) {
    let (mut waiting, mut amiss) = (Vec::new(), Vec::new());
    for (_, set) in live.key_sets.living() {
        let status = set.status();
        let name = format!("jwks {}", source(&set));
        match (status.last_error, status.fetched_at) {
            (Some(error), _) => amiss.push(format!("{name}: {error}")),
            (None, None) => waiting.push(name),
            (None, Some(_)) => {}
        }
    }
    for (_, keys) in live.api_keys.living() {
        match keys.failure() {
            Some(failure) => amiss.push(format!("api keys: {}", failure.reason)),
            None if !keys.is_loaded() => waiting.push("api keys".to_owned()),
            None => {}
        }
    }
    for (_, ledger) in live.ledgers.living() {
        amiss.extend(ledger.failure().map(|failure| format!("quotas: {}", failure.reason)));
    }
    for (_, revocations) in live.revocations.living() {
        if !revocations.is_read() {
            waiting.push("revocations".to_owned());
        }
        amiss.extend(revocations.failure().map(|failure| format!("revocations: {}", failure.reason)));
    }
    for (server, redis) in live.redis.living() {
        match redis.standing() {
            Standing::Away(fault) => amiss.push(format!("redis {server}: {fault}")),
            Standing::Untried => waiting.push(format!("redis {server}")),
            Standing::Up => {}
        }
    }
    let introspected = live.introspected.living().into_iter().map(|(id, answers)| ("introspection", id.name, answers.status()));
    let decided = live.decisions.living().into_iter().map(|(id, decisions)| ("external", id.name, decisions.status()));
    let exchanged = live.exchanged.living().into_iter().map(|(id, answers)| ("exchange", id.name, answers.status()));
    for (kind, name, status) in introspected.chain(decided).chain(exchanged) {
        if status.breaker != breaker::State::Closed {
            amiss.push(format!("{kind} {name}: {}", status.last_error.as_deref().unwrap_or("away")));
        }
    }
    for (name, backends) in live.backends.living() {
        let unwell = backends.status().iter().filter(|backend| !backend.healthy).count();
        if unwell > 0 {
            amiss.push(format!("upstream {name}: {unwell} backends are unwell"));
        }
    }
    (waiting, amiss)
}

/// Appends the gauges in the Prometheus text format.
pub(super) fn render(out: &mut String, live: &LiveState, snapshot: &Snapshot, now: Now) {
    let mut families = Families(out);
    families.add("edgeward_routes", "Routes of the configuration that serves.", &[(labels(&[]), snapshot.routes.len() as f64)]);
    key_sets(&mut families, live, now);
    let introspected = live.introspected.living().into_iter().map(|(id, answers)| (id.name, answers.status()));
    let decided = live.decisions.living().into_iter().map(|(id, decisions)| (id.name, decisions.status()));
    remote(&mut families, &introspected.chain(decided).collect::<Vec<_>>());
    exchanges(&mut families, live);
    let stores: Vec<_> = live.api_keys.living();
    let keys: Vec<_> = stores.iter().map(|(source, keys)| (labels(&[("store", &path(source))]), count(keys))).collect();
    families.add("edgeward_api_keys", "API keys held, by store.", &keys);
    let failing: Vec<_> =
        stores.iter().map(|(source, keys)| (labels(&[("store", &path(source))]), f64::from(u8::from(keys.failure().is_some())))).collect();
    families.add("edgeward_api_keys_failing", "1 while a store of API keys cannot be followed and the last known keys serve.", &failing);
    let backends: Vec<_> = live
        .backends
        .living()
        .into_iter()
        .flat_map(|(name, backends)| backends.status().into_iter().map(move |status| (name.clone(), status)))
        .map(|(name, status)| (labels(&[("upstream", &name), ("backend", &status.address.to_string())]), status))
        .collect();
    let healthy: Vec<_> = backends.iter().map(|(labels, status)| (labels.clone(), f64::from(u8::from(status.healthy)))).collect();
    families.add("edgeward_backend_healthy", "1 while requests are sent to a backend.", &healthy);
    let busy: Vec<_> = backends.iter().map(|(labels, status)| (labels.clone(), status.in_flight as f64)).collect();
    families.add("edgeward_backend_requests_in_flight", "Requests that a backend is answering.", &busy);
    let mut limits: Vec<_> =
        live.limits.living().into_iter().map(|(name, limits)| (labels(&[("limit", &name)]), limits.keys() as f64)).collect();
    let ledgers = live.ledgers.living();
    let quotas = ledgers.iter().flat_map(|(_, ledger)| ledger.keys());
    limits.extend(quotas.map(|(quota, keys)| (labels(&[("limit", &quota)]), keys as f64)));
    families.add("edgeward_limit_keys", "Keys that a limit counts.", &limits);
    let failing: Vec<_> = ledgers
        .iter()
        .map(|(path, ledger)| (labels(&[("database", &path.display().to_string())]), f64::from(u8::from(ledger.failure().is_some()))))
        .collect();
    families.add("edgeward_quotas_failing", "1 while quotas are not written down and counting goes on in memory.", &failing);
    revocations(&mut families, live);
    let redis: Vec<_> = live
        .redis
        .living()
        .into_iter()
        .map(|(server, redis)| (labels(&[("server", &server.to_string())]), f64::from(u8::from(redis.standing() == Standing::Up))))
        .collect();
    families.add("edgeward_redis_up", "1 while Redis answers and may be written to.", &redis);
    let leases: Vec<_> =
        live.leases.living().into_iter().map(|((name, _), leases)| (labels(&[("limit", &name)]), leases.keys() as f64)).collect();
    families.add("edgeward_limit_leases", "Keys of which this node holds a lease or a debt.", &leases);
    let (hits, misses) = live.tokens.hits_and_misses();
    families.add("edgeward_token_cache_entries", "Verified tokens that are remembered.", &[(labels(&[]), live.tokens.len() as f64)]);
    families.add(
        "edgeward_token_cache_bytes",
        "Memory that they take, of `server.token_cache`.",
        &[(labels(&[]), live.tokens.bytes() as f64)],
    );
    families.add("edgeward_token_cache_hits", "Tokens whose signature need not be checked again.", &[(labels(&[]), hits as f64)]);
    families.add("edgeward_token_cache_misses", "Tokens whose signature had to be checked.", &[(labels(&[]), misses as f64)]);
}

fn key_sets(families: &mut Families<'_>, live: &LiveState, now: Now) {
    let statuses: Vec<_> = live.key_sets.living().into_iter().map(|(_, set)| (source(&set), set.status())).collect();
    let keys: Vec<_> = statuses.iter().map(|(source, status)| (labels(&[("source", source)]), status.keys as f64)).collect();
    families.add("edgeward_jwks_keys", "Usable keys of an issuer.", &keys);
    let skipped: Vec<_> = statuses
        .iter()
        .flat_map(|(source, status)| {
            status.skipped.iter().map(move |(reason, count)| (labels(&[("source", source), ("reason", reason)]), *count as f64))
        })
        .collect();
    families.add("edgeward_jwks_skipped_keys", "Keys of an issuer that are not used, by reason.", &skipped);
    let ages: Vec<_> = statuses
        .iter()
        .filter_map(|(source, status)| Some((labels(&[("source", source)]), now.unix.saturating_sub(status.fetched_at?).as_secs_f64())))
        .collect();
    families.add("edgeward_jwks_age_seconds", "How long ago the issuer confirmed its keys.", &ages);
    let failures: Vec<_> = statuses.iter().map(|(source, status)| (labels(&[("source", source)]), status.failures as f64)).collect();
    families.add("edgeward_jwks_failures", "Failed refreshes in a row.", &failures);
}

fn revocations(families: &mut Families<'_>, live: &LiveState) {
    let living = live.revocations.living();
    let of_each = |value: fn(&Revocations) -> f64| -> Vec<_> {
        living.iter().map(|(source, revocations)| (labels(&[("store", &source.to_string())]), value(revocations))).collect()
    };
    families.add("edgeward_revocations", "Revocations in force.", &of_each(|revocations| revocations.len() as f64));
    let most = of_each(|revocations| revocations.most() as f64);
    families.add("edgeward_revocations_limit", "Revocations that are kept at most; further ones are refused.", &most);
    let failing = of_each(|revocations| f64::from(u8::from(revocations.failure().is_some())));
    families.add(
        "edgeward_revocations_failing",
        "1 while revocations of others do not arrive and the last known ones stay in force.",
        &failing,
    );
}

/// Parties that are asked about credentials.
fn remote(families: &mut Families<'_>, parties: &[(Arc<str>, answers::Status)]) {
    let states: Vec<_> = parties
        .iter()
        .flat_map(|(name, status)| breaker::State::ALL.map(|state| (name, state, status.breaker == state)))
        .map(|(name, state, is)| (labels(&[("authenticator", name), ("state", state.label())]), f64::from(u8::from(is))))
        .collect();
    families.add("edgeward_breaker_state", "1 for the state that the breaker of an authenticator's dependency is in.", &states);
    let kept: Vec<_> = parties
        .iter()
        .flat_map(|(name, status)| [(name, "good", status.good), (name, "bad", status.bad)])
        .map(|(name, kind, kept)| (labels(&[("authenticator", name), ("kind", kind)]), kept as f64))
        .collect();
    families.add("edgeward_answers", "Answers about credentials that are remembered: good, or bad for the caller.", &kept);
    type Counter = (&'static str, &'static str, fn(&answers::Status) -> u64);
    let counters: [Counter; 5] = [
        ("edgeward_answer_hits", "Requests that a remembered answer was good for.", |status| status.hits),
        ("edgeward_answer_misses", "Requests that none was good for.", |status| status.misses),
        ("edgeward_answer_calls", "Calls to ask about a credential.", |status| status.calls),
        ("edgeward_answer_failures", "Calls that brought no answer.", |status| status.failures),
        ("edgeward_answer_excused", "Requests let in without a fresh answer, as `on_failure` asks.", |status| status.excused),
    ];
    for (name, help, count) in counters {
        let samples: Vec<_> = parties.iter().map(|(name, status)| (labels(&[("authenticator", name)]), count(status) as f64)).collect();
        families.add(name, help, &samples);
    }
}

/// Servers that issue tokens for upstreams.
fn exchanges(families: &mut Families<'_>, live: &LiveState) {
    let servers: Vec<_> = live.exchanged.living().into_iter().map(|(id, answers)| (id.name, answers.status())).collect();
    let each = |values: fn(&answers::Status) -> Vec<(&'static str, &'static str, f64)>| -> Vec<_> {
        let of_server = |(name, status): &(Arc<str>, answers::Status)| {
            values(status).into_iter().map(|(label, word, value)| (labels(&[("exchange", name), (label, word)]), value)).collect::<Vec<_>>()
        };
        servers.iter().flat_map(of_server).collect()
    };
    let states = |status: &answers::Status| {
        breaker::State::ALL.map(|state| ("state", state.label(), f64::from(u8::from(status.breaker == state)))).to_vec()
    };
    families.add("edgeward_exchange_breaker_state", "1 for the state that the breaker of a token server is in.", &each(states));
    let kept = |status: &answers::Status| vec![("kind", "issued", status.good as f64), ("kind", "refused", status.bad as f64)];
    families.add("edgeward_exchange_answers", "Answers of a token server that are remembered.", &each(kept));
    let requests = |status: &answers::Status| vec![("answer", "remembered", status.hits as f64), ("answer", "asked", status.misses as f64)];
    families.add("edgeward_exchange_requests", "Requests whose token was exchanged, by where the answer came from.", &each(requests));
    let calls = |status: &answers::Status| {
        vec![("outcome", "answered", status.calls.saturating_sub(status.failures) as f64), ("outcome", "failed", status.failures as f64)]
    };
    families.add("edgeward_exchange_calls", "Calls to a token server, by what came of them.", &each(calls));
}

fn source(set: &KeySet) -> String {
    match &set.id().source {
        KeySource::Jwks(url) | KeySource::Discovery { url, .. } => url.to_string(),
    }
}

fn path(source: &KeyStore) -> String {
    match source {
        KeyStore::Database(path) | KeyStore::File(path) => path.display().to_string(),
    }
}

fn count(keys: &ApiKeys) -> f64 {
    keys.table().len() as f64
}

/// `{a="b"}`, with the operator's words escaped.
fn labels(pairs: &[(&str, &str)]) -> String {
    if pairs.is_empty() {
        return String::new();
    }
    let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    format!("{{{}}}", pairs.join(","))
}

struct Families<'o>(&'o mut String);

impl Families<'_> {
    fn add(&mut self, name: &str, help: &str, samples: &[(String, f64)]) {
        if samples.is_empty() {
            return;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }
}
