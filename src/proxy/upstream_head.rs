//! The head that the upstream is sent: the canonical target, who calls, and nothing that the caller says of that itself.

use http::HeaderName;
use http::header;
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType, Result};

use super::caller::Caller;
use super::context::{Context, hexadecimal};
use crate::route::fields::Fields;

/// Rewrites the head for the upstream. Pingora has by now removed what `Connection` nominated, so nothing set here can be taken away.
pub(super) fn prepare(caller: &impl Caller, upstream: &mut RequestHeader, context: &Context) -> Result<()> {
    let Some(target) = &context.target else {
        return Error::e_explain(ErrorType::HTTPStatus(500), "no permit");
    };
    // An HTTP/2 URI carries an authority of its own; what the upstream is told comes from `Host` alone.
    if upstream.uri.authority().is_some() || upstream.raw_path() != target.path_and_query.as_bytes() {
        let uri = target.path_and_query.parse::<http::Uri>();
        upstream.set_uri(uri.map_err(|_| Error::explain(ErrorType::HTTPStatus(500), "the canonical path is no URI"))?);
    }
    if upstream.headers.get(header::HOST).map(http::HeaderValue::as_bytes) != Some(target.authority.as_bytes()) {
        upstream.insert_header(header::HOST, target.authority.as_str())?;
    }
    let websocket = context.route().is_some_and(|route| route.websocket);
    if !websocket && upstream.headers.contains_key(header::UPGRADE) {
        upstream.remove_header(&header::UPGRADE);
        upstream.remove_header(&header::CONNECTION);
    }
    if context.body.continued {
        upstream.remove_header(&header::EXPECT);
    }
    introduce(caller, upstream, context)
}

/// Tells the upstream who calls, and nothing that the caller says of that itself.
pub(super) fn introduce<'a>(caller: &impl Caller, upstream: &mut impl Fields<'a>, context: &'a Context) -> Result<()> {
    let (Some(route), Some(admission), Some(target), Some(client)) = (context.route(), &context.admission, &context.target, context.client)
    else {
        return Error::e_explain(ErrorType::HTTPStatus(500), "no permit");
    };
    merge_cookies(upstream);
    continue_trace(upstream);
    let connection = crate::route::forward::Connection {
        client: client.address,
        peer: caller.peer().map(|address| address.ip()),
        through_trusted_proxy: client.through_trusted_proxy,
        secure: caller.tls().is_some(),
        host: &target.authority,
        request_id: context.request_id.value(),
        certificate: context.certificate.as_deref(),
    };
    route.policy.forward.apply(upstream, admission.identity().map(|identity| &**identity), &connection);
    route.policy.forward.copy(upstream, admission.headers());
    if let Some((name, value)) = admission.token() {
        upstream.set(name, value.as_bytes());
    }
    Ok(())
}

static COOKIE: HeaderName = header::COOKIE;
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Passes on the caller's trace, or begins one (W3C Trace Context): without a sampling flag, for nobody here records spans.
fn continue_trace<'a>(upstream: &mut impl Fields<'a>) {
    if upstream.lines(&TRACEPARENT).next().is_some_and(is_trace_parent) {
        return;
    }
    // The state of a trace that was not understood must not be tied to another.
    upstream.remove(&TRACESTATE);
    let mut parent = *b"00-00000000000000000000000000000000-0000000000000000-00";
    // Zero would be no id.
    let ids = [(3..35, fastrand::u128(1..)), (36..52, u128::from(fastrand::u64(1..)))];
    for (place, id) in ids {
        hexadecimal(id, parent.get_mut(place).unwrap_or_default());
    }
    upstream.set(&TRACEPARENT, &parent);
}

/// `version-trace_id-parent_id-flags`, hexadecimal and lower case; ids of zeros and version `ff` are invalid (section 3.2.2).
fn is_trace_parent(value: &[u8]) -> bool {
    let hexadecimal =
        |part: &[u8], length: usize| part.len() == length && part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let mut parts = value.split(|byte| *byte == b'-');
    let (Some(version), Some(trace), Some(parent), Some(flags)) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let known = parts.next().is_none() || version != b"00";
    let zero = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    known
        && hexadecimal(version, 2)
        && version != b"ff"
        && hexadecimal(trace, 32)
        && !zero(trace)
        && hexadecimal(parent, 16)
        && !zero(parent)
        && hexadecimal(flags, 2)
}

/// HTTP/2 may split cookies over several fields; an HTTP/1 upstream is owed one (RFC 9113 section 8.2.3).
fn merge_cookies<'a>(upstream: &mut impl Fields<'a>) {
    let mut cookies = upstream.lines(&COOKIE);
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else {
        return;
    };
    let mut merged = first.to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        merged.extend_from_slice(b"; ");
        merged.extend_from_slice(cookie);
    }
    upstream.set(&COOKIE, &merged);
}

impl<'a> Fields<'a> for RequestHeader {
    fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.headers.keys()
    }

    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]> {
        Fields::lines(&self.headers, name)
    }

    fn remove(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }

    fn set(&mut self, name: &'a HeaderName, value: &[u8]) {
        if let Err(error) = self.insert_header(name.clone(), value) {
            tracing::error!(%error, %name, "a header could not be set");
            self.remove_header(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_continued_when_it_is_one_and_begun_otherwise() {
        let sound = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for (given, kept) in [
            (sound, true),
            ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", true),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", false),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false),
            ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", false),
            ("", false),
        ] {
            let mut upstream = RequestHeader::build("GET", b"/", None).unwrap();
            upstream.insert_header("traceparent", given).unwrap();
            upstream.insert_header("tracestate", "a=b").unwrap();
            continue_trace(&mut upstream);
            let now = upstream.headers.get("traceparent").unwrap();
            assert_eq!(now == given, kept, "{given}");
            assert!(is_trace_parent(now.as_bytes()));
            assert_eq!(upstream.headers.contains_key("tracestate"), kept, "{given}");
        }
    }

    #[test]
    fn cookies_of_several_fields_become_one() {
        let mut upstream = RequestHeader::build("GET", b"/", None).unwrap();
        for cookie in ["a=1", "b=2; c=3", "d=4"] {
            upstream.append_header(header::COOKIE, cookie).unwrap();
        }
        merge_cookies(&mut upstream);
        let cookies: Vec<_> = upstream.headers.get_all(header::COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; b=2; c=3; d=4"]);
    }
}
