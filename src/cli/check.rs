//! `edgeward check`: everything that is wrong with a configuration, and, when it is sound, what it comes to.

mod limits;

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{ConfigFile, print};
use crate::config::{self, Accepted, Authenticate, Authenticator, Config, KeySource, OnFailure, Principals, System};
use crate::live::LiveState;
use crate::live::revocations::Source;
use crate::metrics::Metrics;
use crate::reload::Candidate;
use crate::snapshot::revocation_source;

#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    file: ConfigFile,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Check {
    /// 0 when sound, 1 on problems, 2 when it could not be read.
    pub(crate) fn run(&self) -> ExitCode {
        let path = self.file.path();
        let metrics = match Metrics::new() {
            Ok(metrics) => metrics,
            Err(error) => {
                eprintln!("edgeward: {error}");
                return ExitCode::from(2);
            }
        };
        let candidate = Candidate::read(&path, &System, &LiveState::default(), &metrics);
        match candidate.result {
            Ok((config, _)) => {
                let (routes, dependencies) = (routes(&config), dependencies(&config));
                match self.format {
                    Format::Text => print(&format!("{}: sound\n\n{}\n{}", path.display(), lines(&routes), lines(&dependencies))),
                    Format::Json => print(&format!("{:#}\n", json!({"sound": true, "routes": routes, "dependencies": dependencies}))),
                }
                ExitCode::SUCCESS
            }
            Err(problems) => {
                match self.format {
                    Format::Text => print(&problems.iter().map(|problem| format!("{problem}\n")).collect::<String>()),
                    Format::Json => print(&format!("{:#}\n", json!({"sound": false, "problems": problems}))),
                }
                ExitCode::from(if candidate.readable { 1 } else { 2 })
            }
        }
    }
}

fn lines(sentences: &[String]) -> String {
    sentences.iter().map(|sentence| format!("  {sentence}\n")).collect()
}

/// The effective policy of each route, in a sentence, and each plan.
fn routes(config: &Config) -> Vec<String> {
    config.routes.iter().map(|route| sentence(config, route)).chain(limits::plans(config)).collect()
}

fn sentence(config: &Config, route: &config::Route) -> String {
    let policy = config.policy_of(route);
    let methods = if route.methods.is_empty() { "any method".to_owned() } else { join(&route.methods, ", ") };
    let hosts = if route.hosts.is_empty() { "any host".to_owned() } else { join(route.hosts.iter().map(|host| &host.value), ", ") };
    let mut text = format!("{}: {methods} on {hosts} {}", *route.name, *route.path);
    // Writing to a string cannot fail.
    let _ = match policy.map(|policy| &policy.authenticate.value) {
        Some(Authenticate::By(accepted)) => write!(text, " asks for {}", asked_for(accepted)),
        Some(Authenticate::Public) | None => write!(text, " is open to ANYONE"),
    };
    if let Some(policy) = policy {
        let authorize = &policy.authorize;
        if !authorize.scopes.is_empty() {
            let _ = write!(text, " with scope {}", join(&authorize.scopes, " and "));
        }
        if !authorize.roles.is_empty() {
            let _ = write!(text, " with role {}", join(&authorize.roles, " or "));
        }
        for (name, values) in &authorize.claims {
            let _ = write!(text, " with claim {} = {}", name.value, join(values, " or "));
        }
        if let Some(allow) = &policy.allow {
            let _ = write!(text, ", from {} admitted networks only", allow.len());
        }
        if !policy.deny.is_empty() {
            let _ = write!(text, ", never from {} denied networks", policy.deny.len());
        }
        if !policy.limits.is_empty() {
            let _ = write!(text, ", within {}", join(policy.limits.iter().map(|name| limits::named(config, name)), " and "));
        }
        if matches!(policy.authenticate.value, Authenticate::By(_)) && !config.plans.is_empty() {
            let _ = write!(text, ", and within the caller's plan");
        }
        if *route.cost > 1 {
            let _ = write!(text, ", at a cost of {}", *route.cost);
        }
    }
    if let Some(resource) = &route.resource {
        let _ = write!(text, "; described at {}", resource.url.metadata_url());
    }
    if let Some(server) = policy.and_then(|policy| policy.forward.exchange.as_ref()) {
        let _ = write!(text, "; tokens are exchanged by {}, and who is proven by anything else is refused", server.value);
    }
    let _ = write!(text, "; served by {}", *route.upstream);
    text
}

/// Which credentials are enough, in words.
fn asked_for(accepted: &Accepted) -> String {
    let part = |part: &Accepted| match part {
        Accepted::Authenticator(_) => asked_for(part),
        _ => format!("({})", asked_for(part)),
    };
    match accepted {
        Accepted::Authenticator(name) => name.value.to_string(),
        Accepted::Any(parts) => join(parts.iter().map(part), " or "),
        Accepted::All(parts, Principals::Same) => join(parts.iter().map(part), " and "),
        Accepted::All(parts, Principals::Different) => {
            format!("{}, which may name different consumers", join(parts.iter().map(part), " and "))
        }
        Accepted::Optional(inner) => format!("{} or NOTHING", part(inner)),
    }
}

/// What happens when a dependency is away.
fn dependencies(config: &Config) -> Vec<String> {
    let mut plans = Vec::new();
    for (name, authenticator) in &config.authenticators {
        match authenticator {
            Authenticator::Jwt(jwt) => match &jwt.keys.value {
                KeySource::Discovery { url, fetch } | KeySource::JwksUrl { url, fetch } => plans.push(format!(
                    "{}: keys from {url}; while it is away the last good keys serve for {}, then 503",
                    name.value,
                    config::duration(fetch.max_stale)
                )),
                KeySource::JwksFile(_) | KeySource::Secret(_) | KeySource::Issuer => {}
            },
            Authenticator::ClientCertificate(_) => {}
            Authenticator::Introspection(introspection) => plans.push(introspection_plan(&name.value, introspection)),
            Authenticator::ApiKey(api_key) => {
                if let config::KeyStore::Database(path) = &api_key.keys.value {
                    plans.push(format!(
                        "{}: keys from {}; while it cannot be read the last known keys serve, before the first reading 503",
                        name.value,
                        path.display()
                    ));
                }
            }
            Authenticator::External(external) => plans.push(format!(
                "{}: {} decides; while it is away {}",
                name.value,
                external.url,
                match external.on_failure {
                    OnFailure::Deny => "503".to_owned(),
                    OnFailure::AllowCached(window) => {
                        format!("whom it let in last is let in for {} more, others get 503", config::duration(window))
                    }
                    OnFailure::Allow => "ANYONE is let in".to_owned(),
                }
            )),
            Authenticator::Sigv4(_) | Authenticator::Signature(_) | Authenticator::Basic(_) => {}
        }
    }
    plans.extend(config.exchanges.iter().map(|(name, exchange)| exchange_plan(&name.value, exchange)));
    if let Some(issuer) = &config.issuer {
        let folder = issuer.signing.directory.display();
        plans.push(format!("issuer: keys in {folder}; while it cannot be read or written the last keys are used on"));
        if let Some(oauth2) = &issuer.oauth2 {
            let database = oauth2.clients.database.display();
            plans.push(format!(
                "issuer: clients in {database}; without it 503 for those who ask for a token, and what was revoked stays revoked"
            ));
        }
    }
    plans.extend(revocation_plan(config));
    plans.extend(limits::dependencies(config));
    for (name, upstream) in &config.upstreams {
        let plan = match (&upstream.builtin, &upstream.health) {
            (Some(_), _) => continue,
            (None, Some(health)) => {
                format!("a server that fails {} checks of {} is left out; with none left, 503", health.unhealthy, health.path)
            }
            (None, None) => "no health checks: a server that is away answers 502".to_owned(),
        };
        plans.push(format!("{}: {plan}", name.value));
    }
    plans
}

fn exchange_plan(name: &str, exchange: &config::Exchange) -> String {
    let config::Exchange { url, cache, breaker, timeout, actor_token, .. } = exchange;
    let actor = if actor_token.is_some() { ", by the actor that its token names" } else { "" };
    format!(
        "{name}: tokens are exchanged at {}{actor}, and what was issued is used for {}; away after {} for a request, or after {} failures for {}; \
         then 503 for every token that is not remembered",
        **url,
        config::duration(cache.ttl),
        config::duration(*timeout),
        breaker.failures,
        config::duration(breaker.open)
    )
}

fn revocation_plan(config: &Config) -> Option<String> {
    let (source, most) = revocation_source(config)?;
    let away = match &source {
        Source::Database(path) => {
            format!(
                "in {}; while it cannot be read the last known ones hold; a start or a reload that cannot read it is refused",
                path.display()
            )
        }
        Source::Redis { server, name } => format!(
            "in redis {server} as {name}; while that is away the last known ones hold and none is added; a node that starts meanwhile answers \
             503 until it has read them, and a reload that brings them is refused"
        ),
    };
    Some(format!("revocations: at most {most} {away}"))
}

fn introspection_plan(name: &str, introspection: &config::Introspection) -> String {
    let config::Introspection { url, cache, breaker, timeout, on_failure, .. } = introspection;
    let plan = match on_failure {
        OnFailure::Deny => "503 for every token that is not remembered".to_owned(),
        OnFailure::AllowCached(beyond) => {
            let beyond = config::duration(*beyond);
            format!("a token that was active serves for {beyond} longer, never beyond its end; every other 503")
        }
        OnFailure::Allow => "WARNING: ANY TOKEN IS LET IN, also an invented one, as nobody and with no scopes".to_owned(),
    };
    format!(
        "{name}: tokens are introspected at {}, and what was said counts for {}; away after {} for a request, or after {} failures \
         for {}; then {plan}",
        **url,
        config::duration(cache.ttl),
        config::duration(*timeout),
        breaker.failures,
        config::duration(breaker.open)
    )
}

fn join<T: std::fmt::Display>(items: impl IntoIterator<Item = T>, separator: &str) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(separator)
}
