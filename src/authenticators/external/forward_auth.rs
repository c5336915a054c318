//! A subrequest as nginx and Traefik make it: the request in `X-Forwarded-*`, the answer a status, and headers for the upstream or the caller.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::request::{Rejection, Relayed, Request};

const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The headers of a subrequest: the request as it was matched, in words of ours, and what of the caller's is `shown`. Whatever the caller
/// says of itself beside that is left behind, and so is how its body was framed.
///
/// # Errors
/// Something of the request cannot stand in a header.
pub(super) fn headers(request: &Request<'_>, shown: &[HeaderName]) -> Result<HeaderMap, Rejection> {
    let mut headers = HeaderMap::with_capacity(5 + shown.len());
    for name in shown {
        for line in request.headers.get_all(name) {
            headers.append(name, line.clone());
        }
    }
    // HTTP/2 may split cookies over several fields; an HTTP/1 server is owed one (RFC 9113 section 8.2.3).
    let cookies: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1 {
        let merged = HeaderValue::from_bytes(&cookies.join(&b"; "[..])).map_err(|_| Rejection::BadRequest("header_encoding"))?;
        headers.insert(header::COOKIE, merged);
    }
    let mut uri = request.path.to_owned();
    if let Some(query) = request.query {
        uri.push('?');
        uri.push_str(query);
    }
    for (name, value) in [
        (X_FORWARDED_METHOD, request.method.as_str()),
        (X_FORWARDED_PROTO, request.scheme),
        (X_FORWARDED_HOST, &request.authority()),
        (X_FORWARDED_URI, &uri),
        (X_FORWARDED_FOR, &request.client.address.to_canonical().to_string()),
    ] {
        headers.insert(name, HeaderValue::from_str(value).map_err(|_| Rejection::BadRequest("header_encoding"))?);
    }
    Ok(headers)
}

/// A header of an answer as one line; several lines become a list (RFC 9110 section 5.3). An empty one is none.
pub(super) fn line(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    let rest: Vec<&[u8]> = lines.map(HeaderValue::as_bytes).collect();
    let line = match rest.as_slice() {
        [] => first.clone(),
        rest => HeaderValue::from_bytes(&[&[first.as_bytes()], rest].concat().join(&b", "[..])).ok()?,
    };
    (!line.is_empty()).then_some(line)
}

/// The refusal that an answer is: "log in", "go there first", or "you may not". Any other status is none.
pub(super) fn refusal(answer: Response<Bytes>) -> Option<Relayed> {
    use StatusCode as S;
    let status = answer.status();
    let redirects = matches!(status, S::MOVED_PERMANENTLY | S::FOUND | S::SEE_OTHER | S::TEMPORARY_REDIRECT | S::PERMANENT_REDIRECT);
    let refuses = matches!(status, S::UNAUTHORIZED | S::FORBIDDEN) || (redirects && answer.headers().contains_key(header::LOCATION));
    refuses.then(|| {
        let (head, body) = answer.into_parts();
        Relayed { status, headers: end_to_end(head.headers), body }
    })
}

/// Without what belongs to the connection to the authorizer (RFC 9110 section 7.6.1), to the length of its answer, and to us.
fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    let nominated: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in nominated.iter().chain(&OURS) {
        headers.remove(name);
    }
    headers
}

const OURS: [HeaderName; 16] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::CONTENT_LENGTH,
    header::CACHE_CONTROL,
    header::SERVER,
    header::DATE,
    header::VIA,
    header::ALT_SVC,
    HeaderName::from_static("x-request-id"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Client;
    use http::Method;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).unwrap();
        lines.iter().map(|(of, value)| (name(of), HeaderValue::from_bytes(value.as_bytes()).unwrap())).collect()
    }

    fn answer(status: u16, lines: &[(&str, &str)]) -> Response<Bytes> {
        let mut answer = Response::new(Bytes::from_static(b"body"));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in lines {
            answer.headers_mut().append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        answer
    }

    #[test]
    fn a_subrequest_tells_of_the_request_in_words_of_ours_whatever_the_caller_says() {
        let mut said = map(&[
            ("authorization", "Bearer abc"),
            ("cookie", "a=1"),
            ("x-forwarded-method", "GET"),
            ("x-forwarded-uri", "/public"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-original-uri", "/public"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("connection", "x-tenant"),
            ("x-tenant", "acm\u{e9}"),
            ("x-user-id", "root"),
        ]);
        said.append(header::COOKIE, HeaderValue::from_static("b=2"));
        let client = Client { address: "::ffff:192.0.2.7".parse().unwrap(), through_trusted_proxy: false };
        let request = Request {
            query: Some("a=b&c"),
            port: Some("8443"),
            scheme: "https",
            ..Request::new(&Method::POST, "api.test", "/orders/7", &said, &client)
        };
        let shown = [header::AUTHORIZATION, header::COOKIE, HeaderName::from_static("x-tenant"), HeaderName::from_static("x-absent")];
        let told = headers(&request, &shown).unwrap();
        let expected = map(&[
            ("authorization", "Bearer abc"),
            ("cookie", "a=1; b=2"),
            ("x-tenant", "acm\u{e9}"),
            ("x-forwarded-method", "POST"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "api.test:8443"),
            ("x-forwarded-uri", "/orders/7?a=b&c"),
            ("x-forwarded-for", "192.0.2.7"),
        ]);
        assert_eq!(told, expected);
    }

    #[test]
    fn a_refusal_is_told_without_what_belongs_to_the_connection() {
        for (status, lines, told) in [
            (401, &[("www-authenticate", "Basic"), ("www-authenticate", "Bearer"), ("set-cookie", "a=1")][..], true),
            (403, &[], true),
            (302, &[("location", "https://login.test/")], true),
            (307, &[("location", "/login")], true),
            (302, &[], false),
            (304, &[("location", "/login")], false),
            (300, &[("location", "/login")], false),
            (400, &[], false),
            (404, &[], false),
            (407, &[], false),
            (429, &[], false),
            (500, &[], false),
            (503, &[], false),
        ] {
            let relayed = refusal(answer(status, lines));
            assert_eq!(relayed.is_some(), told, "{status}");
            if let Some(relayed) = relayed {
                assert_eq!(
                    (relayed.status.as_u16(), &relayed.headers, &*relayed.body),
                    (status, answer(200, lines).headers(), &b"body"[..])
                );
            }
        }
        let connected = [("connection", "close, X-Hop"), ("x-hop", "1"), ("transfer-encoding", "chunked"), ("keep-alive", "5")];
        let more = [("content-length", "4"), ("x-request-id", "theirs"), ("cache-control", "public"), ("x-kept", "1")];
        let relayed = refusal(answer(403, &[&connected[..], &more[..]].concat())).unwrap();
        assert_eq!(relayed.headers, map(&[("x-kept", "1")]));
        assert!(!format!("{relayed:?}").contains("x-kept"));
    }

    #[test]
    fn a_header_of_an_answer_is_one_line() {
        let headers = map(&[("x-empty", ""), ("x-one", "1"), ("x-two", "1")]);
        let mut headers = headers;
        headers.append("x-two", HeaderValue::from_static("2"));
        for (name, expected) in [("x-one", Some("1")), ("x-two", Some("1, 2")), ("x-empty", None), ("x-absent", None)] {
            assert_eq!(line(&headers, &HeaderName::from_static(name)).as_ref().map(|line| line.to_str().unwrap()), expected, "{name}");
        }
    }
}
