//! A message in its one canonical form, before anything is decided on it; what has two readings is refused here.

use std::borrow::Cow;

use http::header;
use pingora_proxy::Session;

use super::context::Target;
use crate::request::{Identity, Parameters, Rejection, framing, host, path};
use crate::route::Route;
use crate::snapshot::ServerRules;

/// The parts of a request head that a decision and the upstream are given.
pub(super) struct Message<'a> {
    pub(super) method: &'a http::Method,
    pub(super) host: Cow<'a, str>,
    authority: &'a str,
    pub(super) path: Cow<'a, str>,
    pub(super) query: Option<&'a str>,
    pub(super) headers: &'a http::HeaderMap,
}

impl<'a> Message<'a> {
    /// Reads the head that Pingora parsed, and the bytes it parsed it from.
    pub(super) fn read(session: &'a Session, rules: &ServerRules) -> Result<Self, Rejection> {
        let header = session.req_header();
        let raw = session.as_http1().map(|http1| http1.get_headers_raw_bytes());
        let bytes = match &raw {
            Some(raw) => raw.len(),
            // RFC 9113 section 6.5.2: the size of a field is its name, its value and 32.
            None => header.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum(),
        };
        if header.headers.len() > rules.headers || bytes as u64 > rules.header_bytes {
            return Err(Rejection::HeadersTooLarge);
        }
        framing::check(header.version, &header.method, &header.headers, raw.as_deref())?;
        let authority = match header.uri.authority().filter(|_| header.version == http::Version::HTTP_2) {
            Some(authority) => authority.as_str(),
            None => header.headers.get(header::HOST).and_then(|value| value.to_str().ok()).ok_or(Rejection::BadRequest("host"))?,
        };
        let canonical = path::canonical(origin_form(header.raw_path()))?;
        Ok(Self {
            method: &header.method,
            host: host::canonical(authority)?,
            authority,
            path: canonical.path,
            query: canonical.query,
            headers: &header.headers,
        })
    }

    /// Refuses a body that says it is too long before anybody waits for it.
    pub(super) fn check_length(&self, limit: u64) -> Result<(), Rejection> {
        let length = self.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > limit) { Err(Rejection::BodyTooLarge) } else { Ok(()) }
    }

    /// What the upstream is asked for: the path that was matched, never what came in.
    pub(super) fn target(&self, route: &Route, parameters: Parameters<'_>, identity: Option<&Identity>) -> Result<Target, Rejection> {
        let path = match &route.rewrite {
            Some(rewrite) => Cow::Owned(rewrite.apply(parameters)?),
            None => Cow::Borrowed(&*self.path),
        };
        let query = self.query.map(|query| route.forward.query(query, identity)).filter(|query| !query.is_empty());
        let mut path_and_query = path.into_owned();
        if let Some(query) = query {
            path_and_query.push('?');
            path_and_query.push_str(&query);
        }
        let authority = match self.authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit())) {
            Some((_, port)) if !port.is_empty() => format!("{}:{port}", self.host),
            _ => self.host.clone().into_owned(),
        };
        Ok(Target { path_and_query, authority })
    }
}

/// The origin-form of a target in absolute-form (RFC 9112 section 3.2.2); Pingora has held its authority against `Host`.
fn origin_form(target: &[u8]) -> &[u8] {
    let Some(scheme) = target.windows(3).position(|window| window == b"://").filter(|_| !target.starts_with(b"/")) else {
        return target;
    };
    let after = target.get(scheme + 3..).unwrap_or_default();
    match after.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')) {
        Some(start) if after.get(start) == Some(&b'/') => after.get(start..).unwrap_or_default(),
        // `http://host?query` and `http://host#x` have no path to match: refused as not starting with `/`.
        Some(start) => after.get(start..).unwrap_or_default(),
        None => b"/",
    }
}
