//! Which requests go where, under which policy.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map as Object, Value, json};

use super::decode::{Context, Decode, Fields, NonEmpty, Scalar, grammar};
use super::policy::Policy;
use super::resource::{Resource, ResourceOrUrl};
use super::values::{self, HOUR, Lasting, Method, Name, Within};
use super::yaml::{Kind, Node};
use super::{At, Problem};
use crate::request::path;

grammar! {
    /// A route: the requests it takes and what becomes of them. The most specific one wins; the order of the file does not matter.
    #[checked(check_route)]
    pub struct Route {
        /// Its name, in logs and metrics.
        name: At<Arc<str>> as At<Name>,
        /// The hosts it takes: exact, or `*.example.com` for every name below. Absent: any.
        hosts: Vec<At<Arc<str>>> as NonEmpty<Vec<At<HostPattern>>> = absent,
        /// The path it takes: literal segments, `{name}` for one segment, `{*rest}` for what remains, which may be empty.
        path: At<Arc<str>> as At<PathPattern>,
        /// The methods it takes. Absent: any.
        methods: Vec<http::Method> as NonEmpty<Vec<Method>> = absent,
        /// The policy: its name, or the policy itself.
        policy: RoutePolicy,
        /// The path that the upstream sees, with the parameters of `path` in it. Absent: the path as it was matched.
        rewrite: Option<At<Arc<str>>> as Option<At<Rewrite>> = absent,
        /// The name of the upstream.
        upstream: At<Arc<str>> as At<Name>,
        /// What one request takes of the limits that it meets, times what a limit says.
        cost: At<u64> as At<Within<u64, 1, 1_000_000>> = "1",
        /// Whether connections may be upgraded to WebSocket.
        websocket: bool = "false",
        /// Timeouts that go before the upstream's.
        timeouts: RouteTimeouts = "{}",
        /// The protected resource that it is, or is a part of: told to clients by its metadata (RFC 9728). Absent: nothing is told.
        resource: Option<Resource> as Option<ResourceOrUrl> = absent,
    }

    /// Timeouts that go before the upstream's.
    #[derive(Default)]
    pub struct RouteTimeouts {
        /// Until the head of the answer, and between two pieces of its body.
        response: Option<Duration> as Option<Lasting<1, {24 * HOUR}>> = absent,
    }
}

/// The policy of a route.
#[derive(Debug, Clone)]
pub enum RoutePolicy {
    /// One of `policies`.
    Named(At<Arc<str>>),
    /// Written at the route.
    Inline(Box<Policy>),
}

impl Decode for RoutePolicy {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        match &node.kind {
            Kind::Mapping(_) => Policy::decode(node, context).map(|policy| Self::Inline(Box::new(policy))),
            Kind::Sequence(_) => context.refuse_kind(node, Self::expected()),
            Kind::Scalar { .. } => At::<Name>::decode(node, context).map(Self::Named),
        }
    }

    fn expected() -> String {
        "the name of a policy, or a policy".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        json!({"anyOf": [<Name as Scalar>::schema(), Policy::schema(definitions)]})
    }
}

/// A host, or `*.` and a domain: every name below it, at any depth.
struct HostPattern;

impl Scalar for HostPattern {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        if text == "*" {
            return Err("`*` is every host: leave `hosts` out".to_owned());
        }
        let domain = text.strip_prefix("*.");
        match values::host(domain.unwrap_or(text)) {
            Some(host) if domain.is_some() && !host.contains(':') => Ok(format!("*.{host}").into()),
            // Requests carry IPv6 hosts in brackets (RFC 3986 section 3.2.2).
            Some(host) if host.contains(':') && text.starts_with('[') => Ok(format!("[{host}]").into()),
            Some(host) if domain.is_none() && !host.contains(':') => Ok(host.into()),
            _ => Err(format!("{} is not a host", values::quoted(text))),
        }
    }

    fn expected() -> String {
        "a host such as `api.example.com` or `*.example.com`, without scheme, port and trailing dot".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "host pattern", "type": "string"})
    }
}

/// A piece of a path's pattern.
#[derive(Debug, PartialEq, Eq)]
enum Segment<'a> {
    Literal(&'a str),
    Parameter(&'a str),
    Rest(&'a str),
}

fn segments(pattern: &str) -> Result<Vec<Segment<'_>>, String> {
    let Some(path) = pattern.strip_prefix('/') else {
        return Err("a path begins with `/`".to_owned());
    };
    if path.is_empty() {
        return Ok(Vec::new());
    }
    path.split('/').map(segment).collect()
}

fn segment(text: &str) -> Result<Segment<'_>, String> {
    let parameter = text.strip_prefix('{').and_then(|inner| inner.strip_suffix('}'));
    match parameter {
        Some(inner) => match inner.strip_prefix('*') {
            Some(rest) if is_parameter(rest) => Ok(Segment::Rest(rest)),
            None if is_parameter(inner) => Ok(Segment::Parameter(inner)),
            _ => Err("the name of a parameter is of letters, digits and `_`".to_owned()),
        },
        None if text.is_empty() => Err("an empty segment (`//`, or `/` at the end)".to_owned()),
        None if matches!(text, "." | "..") => Err("a dot segment".to_owned()),
        None if text.contains(['{', '}']) => Err("a parameter is a whole segment".to_owned()),
        None => canonical(text).map(|()| Segment::Literal(text)),
    }
}

fn is_parameter(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A literal that no canonical path can hold would make a route that never matches.
fn canonical(segment: &str) -> Result<(), String> {
    let written = format!("/{segment}");
    match path::canonical(written.as_bytes()) {
        Ok(canonical) if canonical.path == written && canonical.query.is_none() => Ok(()),
        Ok(canonical) if canonical.query.is_none() => Err(format!("the canonical form of this is {}", values::quoted(&canonical.path))),
        _ => Err("a character that no canonical path holds".to_owned()),
    }
}

/// The path of a route.
struct PathPattern;

/// A path that is that path alone.
pub(super) struct LiteralPath;

impl Scalar for LiteralPath {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        match PathPattern::parse(text)? {
            path if path.contains('{') => Err("a pattern".to_owned()),
            path => Ok(path.trim_end_matches('/').into()),
        }
    }

    fn expected() -> String {
        "a path such as `/oauth2`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "literal path", "type": "string", "pattern": "^/[^{}]*$"})
    }
}

impl Scalar for PathPattern {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        let segments = segments(text)?;
        let mut names = HashSet::new();
        for (index, segment) in segments.iter().enumerate() {
            let name = match segment {
                Segment::Literal(_) => continue,
                Segment::Rest(_) if index + 1 < segments.len() => return Err("`{*...}` stands last".to_owned()),
                Segment::Parameter(name) | Segment::Rest(name) => name,
            };
            if !names.insert(*name) {
                return Err(format!("the parameter `{name}` twice"));
            }
        }
        Ok(text.into())
    }

    fn expected() -> String {
        "a canonical path such as `/orders/{id}` or `/orders/{*rest}`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "path pattern", "type": "string", "pattern": "^/"})
    }
}

/// The path that the upstream sees.
struct Rewrite;

impl Scalar for Rewrite {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        match segments(text)?.iter().any(|segment| matches!(segment, Segment::Rest(_))) {
            true => Err("`{*...}` belongs into `path`; here it is `{...}`".to_owned()),
            false => Ok(text.into()),
        }
    }

    fn expected() -> String {
        "a canonical path with the parameters of `path` as whole segments, such as `/v2/{rest}`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "path", "type": "string", "pattern": "^/"})
    }
}

fn check_route(route: &Route, _: &Fields<'_>, context: &mut Context<'_>) {
    let Some(rewrite) = &route.rewrite else { return };
    let (Ok(path), Ok(parts)) = (segments(&route.path.value), segments(&rewrite.value)) else { return };
    for (index, part) in parts.iter().enumerate() {
        let Segment::Parameter(name) = part else { continue };
        let problem = if path.contains(&Segment::Rest(name)) {
            // It may be empty and may hold `/`: anywhere else that would be a path with `//` in it.
            (index + 1 < parts.len()).then(|| (format!("`{{{name}}}` may be empty"), "it as the last segment"))
        } else {
            (!path.contains(&Segment::Parameter(name))).then(|| (format!("`path` has no parameter `{name}`"), "a parameter of `path`"))
        };
        if let Some((message, expected)) = problem {
            context.report(Problem::at(&rewrite.place, message).expected(expected));
        }
    }
}
