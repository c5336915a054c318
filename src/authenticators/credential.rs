//! Where a credential sits in a request: found so that no two parties can read two different ones, and taken out before forwarding.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::config::Location;
use crate::request::Request;

/// What a request carries in the places where an authenticator looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<'r> {
    /// Nothing, or an `Authorization` of another scheme.
    Absent,
    /// Exactly one credential: visible ASCII, not empty.
    One(Cow<'r, str>),
    /// More than one, so that the upstream or a log might see another than we checked: a bad request (400).
    Ambiguous(&'static str),
    /// One that no issuer of ours can have written: an invalid credential (401).
    Malformed(&'static str),
}

/// The credential in the first of these locations that has one.
///
/// A query parameter beside any other credential is ambiguous (RFC 6750 section 2 allows one method per request): whoever makes
/// somebody follow a link can add a parameter, and must not choose the identity. A header beside a cookie is not, since browsers
/// send cookies unasked.
pub fn find<'r>(locations: &[Location], request: &Request<'r>) -> Found<'r> {
    let mut first: Option<(&Location, Found<'r>)> = None;
    for location in locations {
        match (look(location, request), &first) {
            (Found::Absent, _) => {}
            (found, None) => first = Some((location, found)),
            (_, Some((winner, _))) if [location, *winner].into_iter().any(|l| matches!(l, Location::Query(_))) => {
                return Found::Ambiguous(REPEATED);
            }
            (_, Some(_)) => {}
        }
    }
    first.map_or(Found::Absent, |(_, found)| found)
}

/// Whether any of these locations holds anything, good or not: the difference between a missing and an invalid credential.
///
/// An `Authorization` of another scheme is nothing: `Basic` on a route that asks for `Bearer` is a missing credential.
pub fn is_present(locations: &[Location], request: &Request<'_>) -> bool {
    find(locations, request) != Found::Absent
}

/// All that sits in these locations, as it came: what another party may take for a credential.
pub fn values<'r>(locations: &[Location], request: &Request<'r>) -> Vec<&'r [u8]> {
    let mut values = Vec::new();
    for location in locations {
        match location {
            Location::Header { name, .. } => values.extend(request.headers.get_all(name).iter().map(http::HeaderValue::as_bytes)),
            Location::Query(name) => {
                let pairs = request.query.into_iter().flat_map(|query| query.split('&')).map(split_pair);
                values.extend(pairs.filter(|(written, _)| names(written, name)).map(|(_, value)| value.as_bytes()));
            }
            Location::Cookie(name) => {
                let lines = request.headers.get_all(http::header::COOKIE).iter().map(http::HeaderValue::as_bytes);
                let pairs = lines.flat_map(|line| line.split(|&byte| byte == b';')).map(split_cookie);
                values.extend(pairs.filter(|(written, _)| *written == name.as_bytes()).map(|(_, value)| value));
            }
        }
    }
    values
}

/// The query without the parameters that hold credentials, for the upstream; empty when nothing else was there.
pub fn strip_query<'q>(locations: &[Location], query: &'q str) -> Cow<'q, str> {
    if !query.split('&').any(|pair| is_credential(locations, pair)) {
        return Cow::Borrowed(query);
    }
    Cow::Owned(query.split('&').filter(|pair| !is_credential(locations, pair)).collect::<Vec<_>>().join("&"))
}

/// The query with the values of credentials replaced by `REDACTED`, for logs.
///
/// Old servers also split at `;`. We never accept a credential from there, but one that was sent must not be logged either.
pub fn redact_query<'q>(locations: &[Location], query: &'q str) -> Cow<'q, str> {
    if !query.split(['&', ';']).any(|pair| is_credential(locations, pair)) {
        return Cow::Borrowed(query);
    }
    let mut redacted = String::with_capacity(query.len());
    for parameter in query.split_inclusive('&') {
        // What follows a `;` in the value of our own parameter is part of the credential.
        let ends = if is_credential(locations, parameter) { ['&', '&'] } else { ['&', ';'] };
        for piece in parameter.split_inclusive(ends) {
            let pair = piece.strip_suffix(ends).unwrap_or(piece);
            match pair.split_once('=') {
                Some((name, _)) if is_credential(locations, pair) => {
                    redacted.extend([name, "=REDACTED", piece.get(pair.len()..).unwrap_or_default()]);
                }
                _ => redacted.push_str(piece),
            }
        }
    }
    Cow::Owned(redacted)
}

/// A `Cookie` line without the cookies that hold credentials, for the upstream; none when nothing else was there.
pub fn strip_cookies<'c>(locations: &[Location], line: &'c str) -> Option<Cow<'c, str>> {
    let is_credential = |pair: &str| {
        let (name, _) = split_cookie(pair.as_bytes());
        locations.iter().any(|location| matches!(location, Location::Cookie(wanted) if wanted.as_bytes() == name))
    };
    if !line.split(';').any(is_credential) {
        return Some(Cow::Borrowed(line));
    }
    // ASCII only, as names are compared: without the U+00A0 before it, another cookie would become one of ours.
    let kept = line.split(';').filter(|pair| !is_credential(pair)).map(str::trim_ascii);
    let kept: Vec<_> = kept.filter(|pair| !pair.is_empty()).collect();
    (!kept.is_empty()).then(|| Cow::Owned(kept.join("; ")))
}

const REPEATED: &str = "credential_repeated";
const MALFORMED: &str = "malformed";

fn look<'r>(location: &Location, request: &Request<'r>) -> Found<'r> {
    match location {
        Location::Header { name, scheme } => {
            let mut lines = request.headers.get_all(name).iter();
            match (lines.next(), lines.next()) {
                (None, _) => Found::Absent,
                (Some(_), Some(_)) => Found::Ambiguous(REPEATED),
                (Some(line), None) => match scheme {
                    None => whole(line.as_bytes()),
                    Some(scheme) => after_scheme(scheme, line.as_bytes()),
                },
            }
        }
        Location::Query(name) => {
            let pairs = request.query.into_iter().flat_map(|query| query.split('&'));
            only(pairs.map(split_pair).filter(|(n, _)| names(n, name)).map(|(_, value)| value), |value| {
                // `+` stays `+`: no credential contains a space, and base64 of foreign keys contains `+`.
                match percent_decode_str(value).decode_utf8() {
                    Ok(value) if is_credential_text(value.as_bytes()) => Found::One(value),
                    _ => Found::Malformed(MALFORMED),
                }
            })
        }
        Location::Cookie(name) => {
            // HTTP/2 clients may send a line per cookie (RFC 9113 section 8.2.3). Bytes, because other cookies may be anything.
            let lines = request.headers.get_all(http::header::COOKIE).iter().map(http::HeaderValue::as_bytes);
            let pairs = lines.flat_map(|line| line.split(|&byte| byte == b';')).map(split_cookie);
            only(pairs.filter(|(n, _)| *n == name.as_bytes()).map(|(_, value)| value), whole)
        }
    }
}

fn only<'r, T>(mut values: impl Iterator<Item = T>, read: impl FnOnce(T) -> Found<'r>) -> Found<'r> {
    match (values.next(), values.next()) {
        (None, _) => Found::Absent,
        (Some(value), None) => read(value),
        (Some(_), Some(_)) => Found::Ambiguous(REPEATED),
    }
}

fn whole(value: &[u8]) -> Found<'_> {
    match std::str::from_utf8(value) {
        Ok(text) if is_credential_text(value) => Found::One(Cow::Borrowed(text)),
        _ => Found::Malformed(MALFORMED),
    }
}

/// `credentials = auth-scheme [ 1*SP ( token68 / ... ) ]` (RFC 9110 section 11.4); of the two forms, bearer tokens are `token68`.
fn after_scheme<'r>(scheme: &str, line: &'r [u8]) -> Found<'r> {
    let is_ours = |text: &[u8]| {
        text.split_at_checked(scheme.len()).is_some_and(|(name, rest)| {
            name.eq_ignore_ascii_case(scheme.as_bytes()) && rest.first().is_none_or(|&next| !is_scheme_character(next))
        })
    };
    if !is_ours(line) {
        // An intermediary joins repeated lines with commas: ours may hide behind another scheme.
        return match line.split(|&byte| byte == b',').skip(1).any(|part| is_ours(part.trim_ascii_start())) {
            true => Found::Ambiguous(REPEATED),
            false => Found::Absent,
        };
    }
    let rest = line.get(scheme.len()..).unwrap_or_default();
    if memchr::memchr(b',', rest).is_some() {
        return Found::Ambiguous(REPEATED);
    }
    let spaces = rest.iter().take_while(|&&byte| byte == b' ').count();
    let token = rest.get(spaces..).unwrap_or_default();
    match std::str::from_utf8(token) {
        Ok(text) if spaces > 0 && is_token68(token) => Found::One(Cow::Borrowed(text)),
        _ => Found::Malformed(MALFORMED),
    }
}

fn is_scheme_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether it can stand behind a scheme such as `Bearer` as it is (RFC 9110 section 11.2).
pub fn is_token68(token: &[u8]) -> bool {
    let padding = token.iter().rev().take_while(|&&byte| byte == b'=').count();
    let body = token.get(..token.len() - padding).unwrap_or_default();
    let stands_in_one = |byte: &u8| byte.is_ascii_alphanumeric() | matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/');
    !body.is_empty() && all(body, stands_in_one)
}

fn is_credential_text(value: &[u8]) -> bool {
    !value.is_empty() && all(value, u8::is_ascii_graphic)
}

/// To the end also when one is not: a loop without a way out looks at many bytes in one instruction, and tokens are long.
fn all(bytes: &[u8], is_good: impl Fn(&u8) -> bool) -> bool {
    bytes.iter().fold(true, |good, byte| good & is_good(byte))
}

fn split_pair(pair: &str) -> (&str, &str) {
    pair.split_once('=').unwrap_or((pair, ""))
}

/// Names are compared decoded: the upstream reads `api%5Fkey` as `api_key`.
fn names(written: &str, wanted: &str) -> bool {
    percent_decode_str(written).eq(wanted.bytes())
}

fn is_credential(locations: &[Location], pair: &str) -> bool {
    let (written, _) = split_pair(pair);
    locations.iter().any(|location| matches!(location, Location::Query(wanted) if names(written, wanted)))
}

fn split_cookie(pair: &[u8]) -> (&[u8], &[u8]) {
    let end = pair.iter().position(|&byte| byte == b'=');
    let (name, value) = end.and_then(|end| Some((pair.get(..end)?, pair.get(end + 1..)?))).unwrap_or((pair, b""));
    (name.trim_ascii(), value.trim_ascii())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use http::{HeaderMap, HeaderName, HeaderValue, Method};
    use proptest::prelude::*;

    use super::*;
    use crate::request::Client;

    fn look_for(locations: &[Location], lines: &[(&str, &[u8])], query: Option<&str>) -> (Found<'static>, bool) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
        }
        let client = Client { address: IpAddr::V4(Ipv4Addr::LOCALHOST), through_trusted_proxy: false };
        let request = Request { query, ..Request::new(&Method::GET, "api.example.com", "/", &headers, &client) };
        let found = match find(locations, &request) {
            Found::One(value) => Found::One(Cow::Owned(value.into_owned())),
            Found::Absent => Found::Absent,
            Found::Ambiguous(reason) => Found::Ambiguous(reason),
            Found::Malformed(reason) => Found::Malformed(reason),
        };
        (found, is_present(locations, &request))
    }

    fn bearer() -> Location {
        Location::Header { name: http::header::AUTHORIZATION, scheme: Some("Bearer".into()) }
    }

    fn header() -> Location {
        Location::Header { name: HeaderName::from_static("x-api-key"), scheme: None }
    }

    fn query() -> Location {
        Location::Query("api_key".into())
    }

    fn cookie() -> Location {
        Location::Cookie("session".into())
    }

    fn one(value: &'static str) -> Found<'static> {
        Found::One(Cow::Borrowed(value))
    }

    const TWICE: Found<'static> = Found::Ambiguous(REPEATED);
    const BAD: Found<'static> = Found::Malformed(MALFORMED);

    #[test]
    fn an_authorization_line_is_read_as_rfc_9110_writes_it() {
        let rows: &[(&str, &[u8], Found<'static>)] = &[
            ("the plain form", b"Bearer abc", one("abc")),
            ("the scheme in lower case", b"bearer abc", one("abc")),
            ("the scheme in mixed case", b"bEaReR abc", one("abc")),
            ("two spaces", b"Bearer  abc", one("abc")),
            ("base64 with padding", b"Bearer a+/b==", one("a+/b==")),
            ("a tab", b"Bearer\tabc", BAD),
            ("a space and a tab", b"Bearer \tabc", BAD),
            ("quotes", b"Bearer \"abc\"", BAD),
            ("a parameter", b"Bearer token=abc", BAD),
            ("something after the token", b"Bearer abc def", BAD),
            ("padding in the middle", b"Bearer a=b", BAD),
            ("padding only", b"Bearer ==", BAD),
            ("no token", b"Bearer", BAD),
            ("a colon for the space", b"Bearer:abc", BAD),
            ("bytes that are not ASCII", b"Bearer ab\xc3\xa9", BAD),
            ("two tokens joined with a comma", b"Bearer abc, Bearer def", TWICE),
            ("two tokens joined without a space", b"Bearer abc,def", TWICE),
            ("ours behind another scheme", b"Basic eDp5, bearer abc", TWICE),
            ("another scheme", b"Basic eDp5", Found::Absent),
            ("another scheme with parameters", b"Digest username=\"a\", realm=\"Bearer\"", Found::Absent),
            ("a longer scheme", b"BearerX abc", Found::Absent),
            ("a longer scheme with a dash", b"Bearer-X abc", Found::Absent),
            ("a shorter scheme", b"Bear", Found::Absent),
            ("nothing at all", b"", Found::Absent),
        ];
        for (name, line, expected) in rows {
            let (found, present) = look_for(&[bearer()], &[("authorization", line)], None);
            assert_eq!(found, *expected, "{name}");
            assert_eq!(present, *expected != Found::Absent, "{name}");
        }
    }

    #[test]
    fn a_credential_is_found_once_or_refused() {
        let all = [header(), bearer(), query(), cookie()];
        type Row<'a> = (&'a str, &'a [(&'a str, &'a [u8])], Option<&'a str>, Found<'static>);
        let rows: &[Row<'_>] = &[
            ("nothing", &[], None, Found::Absent),
            ("a header", &[("x-api-key", b"k1")], None, one("k1")),
            ("an empty header", &[("x-api-key", b"")], None, BAD),
            ("a header with a space inside", &[("x-api-key", b"k1 k2")], None, BAD),
            ("a header that is not ASCII", &[("x-api-key", b"k\xff")], None, BAD),
            ("the same header twice", &[("x-api-key", b"k1"), ("x-api-key", b"k1")], None, TWICE),
            ("two Authorization lines", &[("authorization", b"Bearer a"), ("authorization", b"Bearer b")], None, TWICE),
            ("two Authorization lines of two schemes", &[("authorization", b"Basic a"), ("authorization", b"Bearer b")], None, TWICE),
            ("a header before a bearer token", &[("authorization", b"Bearer b"), ("x-api-key", b"k1")], None, one("k1")),
            ("a header before a cookie", &[("cookie", b"session=s"), ("x-api-key", b"k1")], None, one("k1")),
            ("a bad header before a good token", &[("authorization", b"Bearer b"), ("x-api-key", b"")], None, BAD),
            ("a query parameter", &[], Some("a=1&api_key=k1&b"), one("k1")),
            ("a query parameter with an encoded name", &[], Some("api%5Fkey=k1"), one("k1")),
            ("an encoded value", &[], Some("api_key=k%31%2B+"), one("k1++")),
            ("a value cut at an encoded NUL", &[], Some("api_key=k1%00"), BAD),
            ("a trailing space", &[], Some("api_key=k1%20"), BAD),
            ("a value that is not UTF-8", &[], Some("api_key=%ff"), BAD),
            ("a parameter without a value", &[], Some("api_key"), BAD),
            ("a parameter twice", &[], Some("api_key=k1&api_key=k1"), TWICE),
            ("a parameter twice in two spellings", &[], Some("api_key=k1&%61pi_key=k2"), TWICE),
            ("a parameter in another case", &[], Some("API_KEY=k1"), Found::Absent),
            ("a header and a parameter", &[("x-api-key", b"k1")], Some("api_key=k1"), TWICE),
            ("a parameter and a cookie", &[("cookie", b"session=s")], Some("api_key=k1"), TWICE),
            ("a cookie", &[("cookie", b"a=b; session=s1; c=d")], None, one("s1")),
            ("a cookie without spaces", &[("cookie", b"a=b;session=s1;c=d")], None, one("s1")),
            ("a cookie on the second line", &[("cookie", b"a=b"), ("cookie", b"session=s1")], None, one("s1")),
            ("a cookie beside one that is not ASCII", &[("cookie", b"a=\xff; session=s1")], None, one("s1")),
            ("a cookie whose value has equals signs", &[("cookie", b"session=s1==")], None, one("s1==")),
            ("a cookie twice", &[("cookie", b"session=s1; session=s1")], None, TWICE),
            ("a cookie on two lines", &[("cookie", b"session=s1"), ("cookie", b"session=s2")], None, TWICE),
            ("a cookie of another case", &[("cookie", b"Session=s1")], None, Found::Absent),
            ("a cookie with a longer name", &[("cookie", b"xsession=s1; session2=s1")], None, Found::Absent),
        ];
        for (name, lines, query, expected) in rows {
            assert_eq!(look_for(&all, lines, *query).0, *expected, "{name}");
        }
    }

    #[test]
    fn a_header_is_found_without_allocating() {
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-api-key"), HeaderValue::from_static("k1"))]);
        let client = Client { address: IpAddr::V4(Ipv4Addr::LOCALHOST), through_trusted_proxy: false };
        let request = Request::new(&Method::GET, "h", "/", &headers, &client);
        assert!(matches!(find(&[bearer(), header()], &request), Found::One(Cow::Borrowed("k1"))));
    }

    #[test]
    fn credentials_leave_the_query_before_it_is_forwarded_or_logged() {
        let rows = [
            ("a=1&b=2", "a=1&b=2", "a=1&b=2"),
            ("api_key=s", "", "api_key=REDACTED"),
            ("a=1&api_key=s&b=2", "a=1&b=2", "a=1&api_key=REDACTED&b=2"),
            ("api%5Fkey=s&a", "a", "api%5Fkey=REDACTED&a"),
            ("api_key=s&api_key=t", "", "api_key=REDACTED&api_key=REDACTED"),
            ("api_key&a=1", "a=1", "api_key&a=1"),
            ("a=1;api_key=s;b=2", "a=1;api_key=s;b=2", "a=1;api_key=REDACTED;b=2"),
            ("api_key=s;t&a=1;b", "a=1;b", "api_key=REDACTED&a=1;b"),
            ("api_key=s;", "", "api_key=REDACTED"),
            ("xapi_key=s", "xapi_key=s", "xapi_key=s"),
            ("", "", ""),
        ];
        for (input, stripped, redacted) in rows {
            assert_eq!(strip_query(&[header(), query()], input), stripped, "{input}");
            assert_eq!(redact_query(&[header(), query()], input), redacted, "{input}");
        }
        assert!(matches!(strip_query(&[header()], "api_key=s"), Cow::Borrowed("api_key=s")));
    }

    #[test]
    fn credentials_leave_the_cookies_before_they_are_forwarded() {
        let rows = [
            ("a=1; b=2", Some("a=1; b=2")),
            ("session=s", None),
            ("session=s; ", None),
            ("a=1; session=s; b=2", Some("a=1; b=2")),
            ("a=1;session=s;b=2", Some("a=1; b=2")),
            (" session =s; a=1", Some("a=1")),
            ("session=s; session=t; a=1", Some("a=1")),
            ("session=s; \u{a0}session=t", Some("\u{a0}session=t")),
        ];
        for (input, expected) in rows {
            assert_eq!(strip_cookies(&[cookie()], input).as_deref(), expected, "{input}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_would_be_found_is_left_after_stripping(query_text in "(api_key|api%5[fF]key|a|%61pi_key|;|&|=|%|x){0,12}") {
            let stripped = strip_query(&[query()], &query_text).into_owned();
            prop_assert_eq!(look_for(&[query()], &[], Some(&stripped)).0, Found::Absent);
        }

        #[test]
        fn no_cookie_that_would_be_found_is_left_after_stripping(line in "(session|a|=|;| |x){0,12}") {
            let stripped = strip_cookies(&[cookie()], &line).unwrap_or_default().into_owned();
            prop_assert_eq!(look_for(&[cookie()], &[("cookie", stripped.as_bytes())], None).0, Found::Absent);
        }
    }
}
