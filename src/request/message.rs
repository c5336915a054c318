//! A message in its one canonical form, before anything is decided on it; what has two readings is refused here.

use std::borrow::Cow;

use http::{HeaderMap, Method, Version, header};

use super::{Rejection, framing, host, path};

/// A request head as a parser leaves it.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The protocol.
    pub version: Version,
    /// The method.
    pub method: &'a Method,
    /// `:authority` of HTTP/2.
    pub authority: Option<&'a str>,
    /// The target as received.
    pub target: &'a [u8],
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// The bytes of an HTTP/1 head, up to and including the empty line: parsers forgive what upstreams may not.
    pub raw: Option<&'a [u8]>,
}

/// How long a head may be.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Bytes.
    pub bytes: u64,
    /// Fields.
    pub fields: usize,
}

/// The parts of a head that a decision and the upstream are given.
#[derive(Debug)]
pub struct Message<'a> {
    /// The method.
    pub method: &'a Method,
    /// The canonical host.
    pub host: Cow<'a, str>,
    /// The port that stood behind the host.
    pub port: Option<&'a str>,
    /// The canonical path.
    pub path: Cow<'a, str>,
    /// The query as it came.
    pub query: Option<&'a str>,
    /// The header fields.
    pub headers: &'a HeaderMap,
}

impl<'a> Message<'a> {
    /// Brings a head to its one form, or refuses it.
    pub fn read(head: Head<'a>, limits: HeadLimits) -> Result<Self, Rejection> {
        let bytes = match head.raw {
            Some(raw) => raw.len(),
            // RFC 9113 section 6.5.2: the size of a field is its name, its value and 32.
            None => head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum(),
        };
        if head.headers.len() > limits.fields || bytes as u64 > limits.bytes {
            return Err(Rejection::HeadersTooLarge);
        }
        framing::check(head.version, head.method, head.headers, head.raw)?;
        let authority = match head.authority.filter(|_| head.version == Version::HTTP_2) {
            Some(authority) => authority,
            None => head.headers.get(header::HOST).and_then(|value| value.to_str().ok()).ok_or(Rejection::BadRequest("host"))?,
        };
        let target = head.raw.map_or(Ok(head.target), target_as_sent)?;
        let canonical = path::canonical(origin_form(target))?;
        Ok(Self {
            method: head.method,
            host: host::canonical(authority)?,
            port: host::port(authority),
            path: canonical.path,
            query: canonical.query,
            headers: head.headers,
        })
    }

    /// Refuses a body that says it is too long before anybody waits for it.
    pub fn check_length(&self, limit: u64) -> Result<(), Rejection> {
        let length = self.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > limit) { Err(Rejection::BodyTooLarge) } else { Ok(()) }
    }

    /// The canonical host, with the port that stood behind it.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) => [&*self.host, ":", port].concat(),
            None => self.host.clone().into_owned(),
        }
    }
}

/// The target between the two spaces of the request line: parsers drop a fragment, which a request has no business to carry (RFC 9112,
/// 3.2), and which another server may take for a part of the path.
fn target_as_sent(head: &[u8]) -> Result<&[u8], Rejection> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(_), Some(target), Some(_), None) => Ok(target),
        _ => Err(Rejection::BadRequest("request_line")),
    }
}

/// The origin-form of a target in absolute-form (RFC 9112 section 3.2.2), whose authority the parser has held against `Host`.
fn origin_form(target: &[u8]) -> &[u8] {
    let after = [&b"http://"[..], b"https://"].iter().find_map(|scheme| {
        let start = target.get(..scheme.len())?;
        if start.eq_ignore_ascii_case(scheme) { target.get(scheme.len()..) } else { None }
    });
    let Some(after) = after else {
        return target;
    };
    match after.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')) {
        // Without a path, `?` and `#` come first: refused for not beginning with `/`.
        Some(start) => after.get(start..).unwrap_or_default(),
        None => b"/",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 1_000, fields: 5 };

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))).collect()
    }

    fn head<'a>(target: &'a str, headers: &'a HeaderMap) -> Head<'a> {
        Head { version: Version::HTTP_11, method: &Method::GET, authority: None, target: target.as_bytes(), headers, raw: None }
    }

    #[test]
    fn a_target_in_absolute_form_is_matched_by_its_path() {
        let headers = headers(&[("host", "A.test.:80")]);
        for (target, path, query) in [
            ("/a", "/a", None),
            ("http://a.test/b/../c?d=/e", "/c", Some("d=/e")),
            ("HTTPS://a.test", "/", None),
            ("/x?http://other/", "/x", Some("http://other/")),
            ("/http://other/", "/http:/other/", None),
        ] {
            let message = Message::read(head(target, &headers), LIMITS).unwrap();
            assert_eq!((&*message.path, message.query, &*message.host), (path, query, "a.test"), "{target}");
            assert_eq!(message.authority(), "a.test:80");
        }
        for target in ["http://a.test?x", "http://a.test#x", "ftp://a.test/", "a.test/x", "*", ""] {
            assert!(matches!(Message::read(head(target, &headers), LIMITS), Err(Rejection::AmbiguousPath(_))), "{target}");
        }
    }

    #[test]
    fn the_target_is_read_as_it_was_sent_and_not_as_it_was_parsed() {
        let headers = headers(&[("host", "a.test")]);
        for (line, path) in [
            ("GET /a/../b HTTP/1.1", Ok("/b")),
            ("GET /a#b HTTP/1.1", Err("fragment")),
            ("GET /a?b#c HTTP/1.1", Err("fragment")),
            ("GET http://a.test/a#b HTTP/1.1", Err("fragment")),
            ("GET /a", Err("request_line")),
            ("GET  /a HTTP/1.1", Err("request_line")),
            ("GET /a b HTTP/1.1", Err("request_line")),
        ] {
            let raw = format!("{line}\r\nHost: a.test\r\n\r\n");
            let message = Message::read(Head { raw: Some(raw.as_bytes()), ..head("/a", &headers) }, LIMITS);
            let found = message.as_ref().map(|message| &*message.path).map_err(|rejection| rejection.reason().unwrap_or_default());
            assert_eq!(found, path, "{line}");
        }
    }

    #[test]
    fn a_head_over_a_limit_is_refused() {
        let many = headers(&[("host", "a"), ("a", ""), ("b", ""), ("c", ""), ("d", ""), ("e", "")]);
        assert_eq!(Message::read(head("/", &many), LIMITS).err(), Some(Rejection::HeadersTooLarge));
        let mut long = headers(&[("host", "a")]);
        long.insert("x", http::HeaderValue::from_str(&"x".repeat(1_000)).unwrap());
        assert_eq!(Message::read(head("/", &long), LIMITS).err(), Some(Rejection::HeadersTooLarge));
        let raw = [b'x'; 1_001];
        let few = headers(&[("host", "a")]);
        assert_eq!(Message::read(Head { raw: Some(&raw), ..head("/", &few) }, LIMITS).err(), Some(Rejection::HeadersTooLarge));
    }

    #[test]
    fn the_authority_of_http_2_counts_and_a_body_over_the_limit_is_refused_by_its_length() {
        let headers = headers(&[("host", "other"), ("content-length", "11")]);
        let http2 = Head { version: Version::HTTP_2, authority: Some("a.test:8443"), ..head("/", &headers) };
        let message = Message::read(http2, LIMITS).unwrap();
        assert_eq!((&*message.host, message.port), ("a.test", Some("8443")));
        assert_eq!(message.check_length(10), Err(Rejection::BodyTooLarge));
        assert_eq!(message.check_length(11), Ok(()));
    }
}
