//! Signed messages: what was signed is accepted, and what differs from it is not; nothing that a stranger writes is.

use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use edgeward::authenticators::Verdict;
use edgeward::authenticators::signature::{Signature, base, fields};
use edgeward::authenticators::sigv4::canonical;
use edgeward::config::{self, Replay, SignatureAlgorithm, SignatureKey};
use edgeward::jose::Key;
use edgeward::live::LiveState;
use edgeward::request::{Client, Now, Request};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

const SECRET: [u8; 32] = *b"a secret of the fuzzer, 32 bytes";
const NOW: Now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_618_884_473) };

static SIGNATURE: LazyLock<Signature> = LazyLock::new(|| {
    let key = SignatureKey {
        keyid: "k".into(),
        key: Arc::new(Key::from_secret(&SECRET).unwrap()),
        algorithm: SignatureAlgorithm::HmacSha256,
        consumer: "acme".into(),
        scopes: vec![],
        plan: None,
    };
    let config = config::Signature {
        keys: vec![key],
        required: ["@method", "@authority", "@path", "@query"].map(Into::into).into(),
        max_age: Duration::from_secs(300),
        clock_skew: Duration::from_secs(30),
        replay: Replay::Allow,
        tag: None,
    };
    Signature::new("partners".into(), &config, &LiveState::default())
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
    for line in headers.get_all("signature-input") {
        // What was read is written in a form that is read as the same.
        for (_, covered) in line.to_str().ok().and_then(fields::inputs).unwrap_or_default() {
            let written = covered.serialize();
            assert_eq!(fields::inputs(&format!("a={written}")), Some(vec![("a".to_owned(), covered)]), "{written}");
        }
    }
    check_signed(path, query, headers, *change);
}

/// Signs the request, the headers of which there is one line among it, and then changes one byte.
fn check_signed(path: &str, query: Option<&str>, mut headers: HeaderMap, change: u8) {
    for own in ["signature", "signature-input", "content-digest"] {
        headers.remove(own);
    }
    let names: String = headers.keys().take(32).map(|name| format!(" \"{name}\"")).collect();
    let input = format!("a=(\"@method\" \"@authority\" \"@path\" \"@query\"{names});created=1618884473;keyid=\"k\"");
    let Some(covered) = fields::inputs(&input) else { return };
    let client = Client { address: Ipv4Addr::LOCALHOST.into(), through_trusted_proxy: false };
    let request = Request { query, body: Some(b""), ..Request::new(&Method::GET, "gw.test", path, &headers, &client) };
    let Ok(base) = base(&covered[0].1, &request) else { return };
    // An HMAC is an HMAC.
    let tag = STANDARD.encode(canonical::signature(&SECRET, &base));
    headers.insert("signature-input", HeaderValue::from_str(&input).unwrap());
    headers.insert("signature", HeaderValue::from_str(&format!("a=:{tag}:")).unwrap());
    assert!(is_accepted(path, query, &headers), "{path} {query:?} {headers:?}");

    let other = |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        let length = bytes.len().max(1);
        let byte = bytes.get_mut(usize::from(change) % length)?;
        *byte = if *byte == b'x' { b'y' } else { b'x' };
        String::from_utf8(bytes).ok()
    };
    if let Some(path) = other(path) {
        assert!(!is_accepted(&path, query, &headers), "{path}");
    }
    if let Some(query) = query.and_then(other) {
        assert!(!is_accepted(path, Some(&query), &headers), "{query}");
    }
}

fn is_accepted(path: &str, query: Option<&str>, headers: &HeaderMap) -> bool {
    let client = Client { address: Ipv4Addr::LOCALHOST.into(), through_trusted_proxy: false };
    let request = Request { query, body: Some(b""), ..Request::new(&Method::GET, "gw.test", path, headers, &client) };
    matches!(SIGNATURE.authenticate(&request, NOW), Verdict::Accept(_))
}
