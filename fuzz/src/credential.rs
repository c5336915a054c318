//! Where credentials sit: nothing of one is forwarded or logged, wherever and however it was written.

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use edgeward::authenticators::credential::{self, Found};
use edgeward::config::Location;
use edgeward::request::{Client, Request};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use percent_encoding::percent_decode_str;

static LOCATIONS: LazyLock<[Location; 4]> = LazyLock::new(|| {
    [
        Location::Header { name: header::AUTHORIZATION, scheme: Some("Bearer".into()) },
        Location::Header { name: HeaderName::from_static("x-api-key"), scheme: None },
        Location::Query("access_token".into()),
        Location::Cookie("session".into()),
    ]
});

/// The low bits of the first byte choose the locations, the first line is a query, each other line a header.
pub fn run(data: &[u8]) {
    let Some((bits, text)) = data.split_first() else { return };
    let locations: Vec<_> =
        LOCATIONS.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1).map(|(_, location)| location.clone()).collect();
    let mut lines = text.split(|byte| *byte == b'\n');
    let query = std::str::from_utf8(lines.next().unwrap_or_default()).ok();
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii())) {
            headers.append(name, value);
        }
    }
    check_find(&locations, &headers, query);
    if let Some(query) = query {
        check_query(&locations, query);
    }
    let stripped = check_cookies(&locations, &headers);
    let query = query.map(|query| credential::strip_query(&locations, query));
    let left = with_request(&stripped, query.as_deref(), |request| !credential::is_present(&locations, request));
    assert!(left, "a credential is left");
}

fn with_request<T>(headers: &HeaderMap, query: Option<&str>, ask: impl FnOnce(&Request<'_>) -> T) -> T {
    let client = Client { address: Ipv4Addr::LOCALHOST.into(), through_trusted_proxy: false };
    ask(&Request { query, ..Request::new(&Method::GET, "gw.test", "/", headers, &client) })
}

fn check_find(locations: &[Location], headers: &HeaderMap, query: Option<&str>) {
    with_request(headers, query, |request| {
        let found = credential::find(locations, request);
        assert_eq!(credential::is_present(locations, request), found != Found::Absent);
        if let Found::One(value) = &found {
            assert!(!value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic()), "{value}");
        }
    });
}

/// Neither the upstream nor the log can tell one credential from another.
fn check_query(locations: &[Location], query: &str) {
    let looks = locations.iter().any(|location| matches!(location, Location::Query(_)));
    let is_ours = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default();
        looks && percent_decode_str(name).collect::<Vec<_>>() == b"access_token"
    };
    let kept: Vec<_> = query.split('&').filter(|pair| !is_ours(pair)).collect();
    assert_eq!(credential::strip_query(locations, query), kept.join("&"));
    let other: Vec<_> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, _)) if is_ours(&pair) => format!("{name}=other"),
            _ => pair.to_owned(),
        })
        .collect();
    assert_eq!(credential::redact_query(locations, query), credential::redact_query(locations, &other.join("&")));
    // Servers of old also split at `;`.
    let redacted = credential::redact_query(locations, query);
    let mut pieces = redacted.split(['&', ';']).filter(is_ours);
    assert!(pieces.all(|pair| pair.split_once('=').is_none_or(|(_, value)| value == "REDACTED")), "{redacted}");
    assert_eq!(credential::redact_query(locations, &redacted), redacted);
}

/// The headers as an upstream gets them: with no cookie of ours, and every other one as it was.
fn check_cookies(locations: &[Location], headers: &HeaderMap) -> HeaderMap {
    let looks = locations.iter().any(|location| matches!(location, Location::Cookie(_)));
    let mut stripped: HeaderMap =
        headers.iter().filter(|(name, _)| **name != header::COOKIE).map(|(name, value)| (name.clone(), value.clone())).collect();
    stripped.remove(header::AUTHORIZATION);
    stripped.remove("x-api-key");
    for line in headers.get_all(header::COOKIE) {
        let Ok(line) = std::str::from_utf8(line.as_bytes()) else { continue };
        let trimmed = |line: &str| -> Vec<String> {
            let pairs = line.split(';').map(|pair| pair.trim_matches(|c: char| c.is_ascii_whitespace()).to_owned());
            pairs.filter(|pair| !pair.is_empty()).collect()
        };
        let name = |pair: &str| pair.split('=').next().unwrap_or_default().trim_matches(|c: char| c.is_ascii_whitespace()) == "session";
        let expected: Vec<_> = trimmed(line).into_iter().filter(|pair| !(looks && name(pair))).collect();
        let found = credential::strip_cookies(locations, line);
        assert_eq!(trimmed(found.as_deref().unwrap_or_default()), expected);
        if let Some(value) = found.and_then(|line| HeaderValue::from_bytes(line.as_bytes()).ok()) {
            stripped.append(header::COOKIE, value);
        }
    }
    stripped
}
