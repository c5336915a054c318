//! What expressions speak of: the request, its client and its identity, converted only where an expression looks.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use cel::ExecutionError;
use cel::common::traits::{Container, Indexer};
use cel::common::types::{self, CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt, Type};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::context::VariableResolver;
use http::header;
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use regex::Regex;
use serde_json::Value;

use crate::config;
use crate::request::header::folds_to;
use crate::request::{Identity, Request};

/// The names that an expression may begin with.
pub(super) const ROOTS: [&str; 5] = ["claims", "request", "path", "client", "identity"];

/// What stands in the tree for a prepared literal; `@` cannot be written in an expression.
pub(super) const PATTERN: &str = "@pattern";
pub(super) const NETWORK: &str = "@network";

/// A list of a claim that is longer is an error: it bounds what walking it costs.
const LONGEST_LIST: usize = 1_000;

/// The most memory that one regular expression may take when it is compiled, in bytes.
const PATTERN_SIZE: usize = 256 * 1024;

/// A regular expression, compiled once.
#[derive(Debug, Clone)]
pub(super) struct Pattern(Regex);

impl Pattern {
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let pattern = regex::RegexBuilder::new(text).size_limit(PATTERN_SIZE).dfa_size_limit(PATTERN_SIZE).build();
        pattern.map(Self).map_err(|_| "`matches` takes a regular expression, and this is none or a very large one".to_owned())
    }
}

/// A network, parsed once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Network(IpNet);

impl Network {
    pub(super) fn read(text: &str) -> Result<Self, String> {
        config::network(text).map(Self).map_err(|problem| format!("`inNetwork` takes a network: {problem}"))
    }
}

macro_rules! opaque {
    ($name:ty) => {
        impl Val for $name {
            fn get_type(&self) -> &Type {
                &types::DYN_TYPE
            }

            fn cel_type() -> &'static Type {
                &types::DYN_TYPE
            }

            fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
                Box::new(self.clone())
            }

            fn as_any(&self) -> Option<&dyn std::any::Any> {
                Some(self)
            }
        }

        impl StaticVal for $name {}
    };
}

opaque!(Pattern);
opaque!(Network);

/// `text.matches(pattern)`: whether the pattern is found anywhere in the text. It takes time in proportion to both.
pub(super) fn matches<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [text, pattern] = arguments.as_slice() else { return Err(wrong("matches")) };
    match (text.downcast_ref::<CelString>(), pattern.downcast_ref::<Pattern>()) {
        (Some(text), Some(Pattern(pattern))) => Ok(CowVal::owned(CelBool::from(pattern.is_match(text.inner())))),
        _ => Err(wrong("matches")),
    }
}

/// `inNetwork(address, network)`. What is no address is an error, and not outside.
pub(super) fn in_network<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [address, network] = arguments.as_slice() else { return Err(wrong("inNetwork")) };
    let address = address.downcast_ref::<CelString>().and_then(|text| text.inner().parse::<IpAddr>().ok());
    match (address, network.downcast_ref::<Network>()) {
        (Some(address), Some(Network(network))) => Ok(CowVal::owned(CelBool::from(network.contains(&address.to_canonical())))),
        _ => Err(wrong("inNetwork")),
    }
}

fn wrong(function: &str) -> ExecutionError {
    ExecutionError::function_error(function, "not called with a text")
}

/// What the names of an expression stand for in one request.
pub(super) struct Scope<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) identity: Option<&'a Identity>,
    pub(super) patterns: &'a [Pattern],
    pub(super) networks: &'a [Network],
}

impl VariableResolver for Scope<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        let prepared = |prefix: &str| name.strip_prefix(prefix)?.parse::<usize>().ok();
        let root = match name {
            "claims" => Mapping::Claims(self.identity?),
            "identity" => Mapping::Identity(self.identity?),
            "request" => Mapping::Request(self.request),
            "path" => Mapping::Path(self.request),
            "client" => Mapping::Client(self.request),
            _ => {
                return match (prepared(PATTERN), prepared(NETWORK)) {
                    (Some(at), _) => self.patterns.get(at).map(|pattern| CowVal::Borrowed(pattern as &dyn Val)),
                    (_, Some(at)) => self.networks.get(at).map(|network| CowVal::Borrowed(network as &dyn Val)),
                    (None, None) => None,
                };
            }
        };
        Some(CowVal::owned(root))
    }
}

/// A mapping whose members are made when an expression asks for them.
#[derive(Debug, Clone, Copy)]
enum Mapping<'a> {
    Claims(&'a Identity),
    Identity(&'a Identity),
    Request(&'a Request<'a>),
    Headers(&'a Request<'a>),
    Query(&'a Request<'a>),
    Path(&'a Request<'a>),
    Client(&'a Request<'a>),
}

impl<'a> Mapping<'a> {
    /// A member; `None` when there is none.
    fn member(self, name: &str) -> Result<Option<Box<dyn Val + 'a>>, ExecutionError> {
        let text = |text: &'a str| -> Option<Box<dyn Val + 'a>> { Some(Box::new(CelString::from(text))) };
        let texts = |texts: &mut dyn Iterator<Item = Cow<'a, str>>| -> Option<Box<dyn Val + 'a>> {
            let texts: Vec<Box<dyn Val + 'a>> = texts.map(|text| -> Box<dyn Val + 'a> { Box::new(CelString::from(text)) }).collect();
            Some(Box::new(CelList::from(texts)))
        };
        Ok(match (self, name) {
            (Self::Claims(identity), _) => identity.claims.get(name).map(value).transpose()?,
            (Self::Identity(identity), "subject") => identity.subject.as_deref().and_then(text),
            (Self::Identity(identity), "consumer") => identity.consumer.as_deref().and_then(text),
            (Self::Identity(identity), "client") => identity.client.as_deref().and_then(text),
            (Self::Identity(identity), "key_id") => identity.key_id.as_deref().and_then(text),
            (Self::Identity(identity), "plan") => identity.plan.as_deref().and_then(text),
            (Self::Identity(identity), "method") => text(identity.method.label()),
            (Self::Identity(identity), "scopes") => texts(&mut identity.scopes.iter().map(|scope| Cow::Borrowed(&**scope))),
            (Self::Identity(identity), "roles") => texts(&mut identity.roles.iter().map(|role| Cow::Borrowed(&**role))),
            (Self::Request(request), "method") => text(request.method.as_str()),
            (Self::Request(request), "host") => text(request.host),
            (Self::Request(request), "path") => text(request.path),
            (Self::Request(request), "route") => text(request.route),
            (Self::Request(request), "size") => Some(Box::new(CelInt::from(size(request)))),
            (Self::Request(request), "headers") => Some(Box::new(Mapping::Headers(request))),
            (Self::Request(request), "query") => Some(Box::new(Mapping::Query(request))),
            // Each line is judged on its own: joined, two of them could be a third that no rule speaks of (CVE-2026-26308).
            (Self::Headers(request), _) => texts(&mut lines_of(request, name).map(|line| String::from_utf8_lossy(line.as_bytes()))),
            (Self::Query(request), _) => texts(&mut values_of(request.query.unwrap_or(""), name)),
            (Self::Path(request), _) => request.parameters.value(name).and_then(text),
            (Self::Client(request), "ip") => Some(Box::new(CelString::from(request.client.address.to_canonical().to_string()))),
            _ => None,
        })
    }
}

/// The lines of a header in every spelling that the service may take for it: a rule against `X-Debug` must not miss `X_Debug`.
fn lines_of<'a>(request: &'a Request<'a>, name: &str) -> impl Iterator<Item = &'a http::HeaderValue> {
    request.headers.iter().filter(move |(own, _)| folds_to(own.as_str(), name)).map(|(_, line)| line)
}

/// The length of the body as announced, in bytes. One of unknown length counts as the longest: a rule against long ones must not miss it.
fn size(request: &Request<'_>) -> i64 {
    if request.headers.contains_key(header::TRANSFER_ENCODING) {
        return i64::MAX;
    }
    request
        .headers
        .get(header::CONTENT_LENGTH)
        .map_or(0, |length| length.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(i64::MAX))
}

/// The decoded values of a parameter of the query, in order.
fn values_of<'a>(query: &'a str, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
    let decoded = |text: &'a str| -> Cow<'a, str> {
        if text.contains('+') {
            Cow::Owned(percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned())
        } else {
            percent_decode_str(text).decode_utf8_lossy()
        }
    };
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (!pair.is_empty() && decoded(key) == name).then(|| decoded(value))
    })
}

/// A claim as a value of the language.
fn value(claim: &Value) -> Result<Box<dyn Val + '_>, ExecutionError> {
    Ok(match claim {
        Value::Null => Box::new(CelNull),
        Value::Bool(truth) => Box::new(CelBool::from(*truth)),
        Value::String(text) => Box::new(CelString::from(text.as_str())),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), ..) => Box::new(CelInt::from(number)),
            (_, Some(number), _) => Box::new(CelUInt::from(number)),
            (.., Some(number)) => Box::new(CelDouble::from(number)),
            _ => return Err(wrong("claims")),
        },
        Value::Array(elements) if elements.len() > LONGEST_LIST => return Err(wrong("claims")),
        Value::Array(elements) => Box::new(CelList::from(elements.iter().map(value).collect::<Result<Vec<_>, _>>()?)),
        Value::Object(members) => {
            let members = members.iter().map(|(name, member)| Ok((CelMapKey::from(name.as_str()), value(member)?)));
            Box::new(CelMap::from(members.collect::<Result<HashMap<_, _>, ExecutionError>>()?))
        }
    })
}

impl Val for Mapping<'_> {
    fn get_type(&self) -> &Type {
        &types::MAP_TYPE
    }

    fn cel_type() -> &'static Type {
        &types::MAP_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(*self)
    }
}

impl Container for Mapping<'_> {
    fn contains(&self, key: &dyn Val) -> Result<bool, ExecutionError> {
        let name = key.downcast_ref::<CelString>().ok_or_else(|| wrong("in"))?;
        // Headers and parameters lead to a list also where there are none.
        match self {
            Mapping::Headers(request) => Ok(lines_of(request, name.inner()).next().is_some()),
            Mapping::Query(request) => Ok(values_of(request.query.unwrap_or(""), name.inner()).next().is_some()),
            _ => self.member(name.inner()).map(|member| member.is_some()),
        }
    }
}

impl Indexer for Mapping<'_> {
    fn get<'b, 'v>(&'b self, key: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let name = key.downcast_ref::<CelString>().ok_or_else(|| wrong("index"))?;
        match self.member(name.inner())? {
            Some(member) => Ok(CowVal::Owned(member)),
            None => Err(ExecutionError::NoSuchKey(std::sync::Arc::new(name.inner().to_owned()))),
        }
    }

    fn steal<'v>(self: Box<Self>, key: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(key).map(CowVal::into_owned)
    }
}
