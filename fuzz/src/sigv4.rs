//! Signed requests: what was signed is accepted, and what differs from it is not; nothing that a stranger writes is.

use std::net::Ipv4Addr;
use std::sync::LazyLock;
use std::time::Duration;

use edgeward::authenticators::Verdict;
use edgeward::authenticators::sigv4::Sigv4;
use edgeward::authenticators::sigv4::canonical::{self, Escapes, Signed};
use edgeward::config::{self, Replay, SigningKeyEntry};
use edgeward::live::LiveState;
use edgeward::request::{Client, Now, Request};
use edgeward::secret::Secret;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

const SECRET: &[u8] = b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const TIME: &str = "20150830T123600Z";
const NOW: Now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_440_938_160) };
const SCOPE: &str = "20150830/us-east-1/service/aws4_request";
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

static SIGV4: LazyLock<Sigv4> = LazyLock::new(|| {
    let key = SigningKeyEntry {
        access_key_id: "AKID".into(),
        secret: Secret::new(SECRET.to_vec()),
        session_token: None,
        consumer: "acme".into(),
        scopes: vec![],
        routes: vec![],
        allow: vec![],
        plan: None,
        expires: None,
    };
    let config = config::Sigv4 {
        region: "us-east-1".into(),
        service: "service".into(),
        keys: vec![key],
        clock_skew: Duration::from_secs(300),
        unsigned_payload: true,
        replay: Replay::Allow,
    };
    Sigv4::new("iam".into(), &config, &LiveState::default())
});

/// The first line is a path and a query, each other line a header; the first byte says which byte is changed after signing.
pub fn run(data: &[u8]) {
    let Some((change, text)) = data.split_first() else { return };
    let mut lines = text.split(|byte| *byte == b'\n');
    let Ok(target) = std::str::from_utf8(lines.next().unwrap_or_default()) else { return };
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii())) {
            headers.append(name, value);
        }
    }
    assert!(!is_accepted(path, query, &headers), "nobody signed this");
    check_signed(path, query, headers, *change);
}

/// Signs the request in a header, every header among it, and then changes one byte.
fn check_signed(path: &str, query: Option<&str>, mut headers: HeaderMap, change: u8) {
    headers.remove("host");
    headers.remove("authorization");
    for own in ["x-amz-content-sha256", "x-amz-security-token"] {
        headers.remove(own);
    }
    headers.insert("x-amz-date", HeaderValue::from_static(TIME));
    let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    names.push("host");
    names.sort_unstable();
    let names = names.join(";");
    let signed =
        Signed { method: "GET", path, escapes: Escapes::Escaped, query, host: "gw.test", headers: &headers, names: &names, payload: EMPTY };
    let Some(text) = signed.canonical_request() else { return };
    let key = canonical::signing_key(SECRET, "20150830", "us-east-1", "service");
    let signature = canonical::hex(&canonical::signature(&key, &canonical::string_to_sign(TIME, SCOPE, &text)));
    let line = format!("AWS4-HMAC-SHA256 Credential=AKID/{SCOPE}, SignedHeaders={names}, Signature={signature}");
    let Ok(line) = HeaderValue::from_bytes(line.as_bytes()) else { return };
    headers.insert("authorization", line);
    let in_query = query.is_some_and(|query| query.contains("X-Amz-"));
    assert!(in_query || is_accepted(path, query, &headers), "{path} {query:?} {headers:?}");

    let at = |length: usize| usize::from(change) % length.max(1);
    let other = |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        let byte = bytes.get_mut(at(text.len()))?;
        *byte = if *byte == b'x' { b'y' } else { b'x' };
        String::from_utf8(bytes).ok()
    };
    if let Some(path) = other(path) {
        assert!(!is_accepted(&path, query, &headers), "{path}");
    }
    if let Some(query) = query.and_then(other) {
        assert!(!is_accepted(path, Some(&query), &headers), "{query}");
    }
    let mut shorter = headers.clone();
    let (name, value) = shorter.iter_mut().nth(usize::from(change) % headers.len()).unwrap();
    if let Some(changed) = value.to_str().ok().and_then(other) {
        *value = HeaderValue::from_str(&changed).unwrap();
        let name = name.clone();
        assert!(!is_accepted(path, query, &shorter), "{name}: {changed}");
    }
}

fn is_accepted(path: &str, query: Option<&str>, headers: &HeaderMap) -> bool {
    let client = Client { address: Ipv4Addr::LOCALHOST.into(), through_trusted_proxy: false };
    let request = Request { query, body: Some(b""), ..Request::new(&Method::GET, "gw.test", path, headers, &client) };
    let _ = SIGV4.asks_for_body(&request);
    matches!(SIGV4.authenticate(&request, NOW), Verdict::Accept(_))
}
