//! What a signed request costs: in a header and in a link, of a known key and of none, on the key's first request of a day and after.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that meets the unexpected stops there"
)]

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use edgeward::authenticators::Verdict;
use edgeward::authenticators::sigv4::Sigv4;
use edgeward::authenticators::sigv4::canonical::{self, Escapes, Signed};
use edgeward::config::{self, Replay, SigningKeyEntry};
use edgeward::live::LiveState;
use edgeward::request::{Client, Now, Request};
use edgeward::secret::Secret;
use http::{HeaderMap, HeaderValue, Method};

const SECRET: &[u8] = b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const TIME: &str = "20150830T123600Z";
const NOW: Now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_440_938_160) };
const SCOPE: &str = "20150830/us-east-1/service/aws4_request";
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn sigv4(id: &str) -> Sigv4 {
    let key = SigningKeyEntry {
        access_key_id: id.into(),
        secret: Secret::new(SECRET.to_vec()),
        session_token: None,
        consumer: "acme".into(),
        scopes: vec!["orders:read".into()],
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
        unsigned_payload: false,
        replay: Replay::Allow,
    };
    Sigv4::new("iam".into(), &config, &LiveState::default())
}

fn signature(query: &str, headers: &HeaderMap, names: &str) -> String {
    let (path, query) = ("/orders/7", Some(query));
    let signed = Signed { method: "GET", path, escapes: Escapes::Escaped, query, host: "api.example.com", headers, names, payload: EMPTY };
    let text = signed.canonical_request().expect("sound");
    let key = canonical::signing_key(SECRET, "20150830", "us-east-1", "service");
    canonical::hex(&canonical::signature(&key, &canonical::string_to_sign(TIME, SCOPE, &text)))
}

fn judge(sigv4: &Sigv4, query: &str, headers: &HeaderMap) -> bool {
    let client = Client { address: Ipv4Addr::LOCALHOST.into(), through_trusted_proxy: false };
    let request =
        Request { query: Some(query), body: Some(b""), ..Request::new(&Method::GET, "api.example.com", "/orders/7", headers, &client) };
    matches!(sigv4.authenticate(black_box(&request), NOW), Verdict::Accept(_))
}

fn bench(criterion: &mut Criterion) {
    let mut headers = HeaderMap::new();
    headers.insert("accept", HeaderValue::from_static("application/json"));
    let query = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKID%2F20150830%2Fus-east-1%2Fservice%2Faws4_request\
                 &X-Amz-Date=20150830T123600Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host";
    let link = format!("{query}&X-Amz-Signature={}", signature(query, &headers, "host"));
    let (known, unknown) = (sigv4("AKID"), sigv4("OTHER"));
    assert!(judge(&known, &link, &headers) && !judge(&unknown, &link, &headers));
    criterion.bench_function("sigv4/link", |bencher| bencher.iter(|| judge(&known, &link, &headers)));

    headers.insert("x-amz-date", HeaderValue::from_static(TIME));
    headers.insert("x-amz-content-sha256", HeaderValue::from_static(EMPTY));
    let names = "host;x-amz-content-sha256;x-amz-date";
    let line = format!("AWS4-HMAC-SHA256 Credential=AKID/{SCOPE}, SignedHeaders={names}, Signature={}", signature("a=1", &headers, names));
    headers.insert("authorization", HeaderValue::try_from(line).expect("visible"));
    assert!(judge(&known, "a=1", &headers) && !judge(&known, "a=2", &headers) && !judge(&unknown, "a=1", &headers));
    criterion.bench_function("sigv4/header", |bencher| bencher.iter(|| judge(&known, "a=1", &headers)));
    criterion.bench_function("sigv4/bad_signature", |bencher| bencher.iter(|| judge(&known, "a=2", &headers)));
    criterion.bench_function("sigv4/unknown_key", |bencher| bencher.iter(|| judge(&unknown, "a=1", &headers)));
    criterion.bench_function("sigv4/first_of_the_day", |bencher| {
        bencher.iter_batched_ref(|| sigv4("AKID"), |sigv4| judge(sigv4, "a=1", &headers), criterion::BatchSize::SmallInput);
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
