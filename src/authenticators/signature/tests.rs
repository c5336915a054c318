//! The examples of RFC 9421, and all that looks like them.

use std::net::{IpAddr, Ipv4Addr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, Method as HttpMethod};
use jwt_simple::algorithms::{HS256Key, MACLike};
use proptest::prelude::*;

use super::*;
use crate::config::SignatureKey;
use crate::jose::jwk;
use crate::request::Client;

/// The keys of RFC 9421 appendix B.1.
const RSA_PSS: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAr4tmm3r20Wd/PbqvP1s2
+QEtvpuRaV8Yq40gjUR8y2Rjxa6dpG2GXHbPfvMs8ct+Lh1GH45x28Rw3Ry53mm+
oAXjyQ86OnDkZ5N8lYbggD4O3w6M6pAvLkhk95AndTrifbIFPNU8PPMO7OyrFAHq
gDsznjPFmTOtCEcN2Z1FpWgchwuYLPL+Wokqltd11nqqzi+bJ9cvSKADYdUAAN5W
Utzdpiy6LbTgSxP7ociU4Tn0g5I6aDZJ7A8Lzo0KSyZYoA485mqcO0GVAdVw9lq4
aOT9v6d+nb4bnNkQVklLQ3fVAvJm+xdDOp9LCNCN48V2pnDOkFV6+U9nV5oyc6XI
2wIDAQAB
-----END PUBLIC KEY-----
";
const P256: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqIVYZVLCrPZHGHjP17CTW0/+D9Lf
w0EkjqF7xB4FivAxzic30tMM4GF+hR6Dxh71Z50VGGdldkkDXZCnTNnoXQ==
-----END PUBLIC KEY-----
";
const ED25519: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=
-----END PUBLIC KEY-----
";
const SECRET: &str = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";
const NOW: u64 = 1_618_884_473;
const BODY: &[u8] = br#"{"hello": "world"}"#;
const DIGEST: &str = "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";

fn secret() -> Vec<u8> {
    STANDARD.decode(SECRET).unwrap()
}

fn key(keyid: &str, key: Key, algorithm: SignatureAlgorithm) -> SignatureKey {
    SignatureKey { keyid: keyid.into(), key: Arc::new(key), algorithm, consumer: "acme".into(), scopes: vec![], plan: None }
}

fn config() -> config::Signature {
    let pem = |text: &str| jwk::from_pem(text.as_bytes()).unwrap();
    config::Signature {
        keys: vec![
            key("test-key-rsa-pss", pem(RSA_PSS), SignatureAlgorithm::RsaPssSha512),
            key("test-key-ecc-p256", pem(P256), SignatureAlgorithm::EcdsaP256Sha256),
            key("test-key-ed25519", pem(ED25519), SignatureAlgorithm::Ed25519),
            key("test-shared-secret", Key::from_secret(&secret()).unwrap(), SignatureAlgorithm::HmacSha256),
        ],
        required: ["@method", "@authority", "@path", "@query"].map(Into::into).into(),
        max_age: Duration::from_secs(300),
        clock_skew: Duration::from_secs(30),
        replay: Replay::Allow,
        tag: None,
    }
}

fn signature(config: &config::Signature) -> Signature {
    Signature::new("partners".into(), config, &LiveState::default())
}

/// A request, and how it is signed.
#[derive(Clone)]
struct Call {
    method: HttpMethod,
    scheme: &'static str,
    host: String,
    port: Option<&'static str>,
    path: String,
    query: Option<String>,
    lines: Vec<(&'static str, String)>,
    body: Option<&'static [u8]>,
}

fn call() -> Call {
    let line = |name, value: &str| (name, value.to_owned());
    Call {
        method: HttpMethod::POST,
        scheme: "https",
        host: "example.com".into(),
        port: None,
        path: "/foo".into(),
        query: Some("param=Value&Pet=dog".into()),
        lines: vec![
            line("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
            line("content-type", "application/json"),
            line("content-digest", DIGEST),
            line("content-length", "18"),
        ],
        body: Some(BODY),
    }
}

const COVERED: &str = r#"("@method" "@authority" "@path" "@query" "content-digest");created=1618884473;keyid="test-shared-secret""#;

impl Call {
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn carrying(mut self, label: &str, input: &str, signature: &str) -> Self {
        self.lines.push(("signature-input", format!("{label}={input}")));
        self.lines.push(("signature", format!("{label}=:{signature}:")));
        self
    }

    fn signed(self, input: &str) -> Self {
        self.signed_as("sig", input)
    }

    fn signed_as(self, label: &str, input: &str) -> Self {
        let (_, covered) = fields::inputs(&format!("a={input}")).unwrap().remove(0);
        let base = self.asked(|request| base(&covered, request)).unwrap_or_default();
        let tag = HS256Key::from_bytes(&secret()).authentication_tag(base.as_bytes());
        self.carrying(label, input, &STANDARD.encode(tag))
    }

    fn asked<T>(&self, ask: impl FnOnce(&Request<'_>) -> T) -> T {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        let client = Client { address: IpAddr::V4(Ipv4Addr::LOCALHOST), through_trusted_proxy: false };
        let request = Request {
            port: self.port,
            scheme: self.scheme,
            query: self.query.as_deref(),
            body: self.body,
            ..Request::new(&self.method, &self.host, &self.path, &headers, &client)
        };
        ask(&request)
    }

    fn at(&self, signature: &Signature, seconds: u64) -> Verdict {
        let now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(seconds) };
        self.asked(|request| signature.authenticate(request, now))
    }

    fn outcome(&self, signature: &Signature) -> &'static str {
        outcome(&self.at(signature, NOW))
    }
}

fn outcome(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Accept(_) => "ok",
        Verdict::Pass => "pass",
        Verdict::Reject(rejection) => rejection.reason().unwrap_or(rejection.code()),
    }
}

#[test]
fn the_examples_of_the_rfc_are_good_and_with_another_byte_they_are_not() {
    for (label, input, signature_text) in [
        (
            "sig-b21",
            r#"();created=1618884473;keyid="test-key-rsa-pss";nonce="b3k2pp5k7z-50gnwp.yemd""#,
            "d2pmTvmbncD3xQm8E9ZV2828BjQWGgiwAaw5bAkgibUopemLJcWDy/lkbbHAve4cRAtx31Iq786U7it++wgGxbtRxf8Udx7zFZsckzXaJMkA7ChG52eSkFxykJeNqsrWH5S+oxNFlD4dzVuwe8DhTSja8xxbR/Z2cOGdCbzR72rgFWhzx2VjBqJzsPLMIQKhO4DGezXehhWwE56YCE+O6c0mKZsfxVrogUvA4HELjVKWmAvtl6UnCh8jYzuVG5WSb/QEVPnP5TmcAnLH1g+s++v6d4s8m0gCw1fV5/SITLq9mhho8K3+7EPYTU8IU1bLhdxO5Nyt8C8ssinQ98Xw9Q==",
        ),
        (
            "sig-b22",
            r#"("@authority" "content-digest" "@query-param";name="Pet");created=1618884473;keyid="test-key-rsa-pss";tag="header-example""#,
            "LjbtqUbfmvjj5C5kr1Ugj4PmLYvx9wVjZvD9GsTT4F7GrcQEdJzgI9qHxICagShLRiLMlAJjtq6N4CDfKtjvuJyE5qH7KT8UCMkSowOB4+ECxCmT8rtAmj/0PIXxi0A0nxKyB09RNrCQibbUjsLS/2YyFYXEu4TRJQzRw1rLEuEfY17SARYhpTlaqwZVtR8NV7+4UKkjqpcAoFqWFQh62s7Cl+H2fjBSpqfZUJcsIk4N6wiKYd4je2U/lankenQ99PZfB4jY3I5rSV2DSBVkSFsURIjYErOs0tFTQosMTAoxk//0RoKUqiYY8Bh0aaUEb0rQl3/XaVe4bXTugEjHSw==",
        ),
        (
            "sig-b23",
            r#"("date" "@method" "@path" "@query" "@authority" "content-type" "content-digest" "content-length");created=1618884473;keyid="test-key-rsa-pss""#,
            "bbN8oArOxYoyylQQUU6QYwrTuaxLwjAC9fbY2F6SVWvh0yBiMIRGOnMYwZ/5MR6fb0Kh1rIRASVxFkeGt683+qRpRRU5p2voTp768ZrCUb38K0fUxN0O0iC59DzYx8DFll5GmydPxSmme9v6ULbMFkl+V5B1TP/yPViV7KsLNmvKiLJH1pFkh/aYA2HXXZzNBXmIkoQoLd7YfW91kE9o/CCoC1xMy7JA1ipwvKvfrs65ldmlu9bpG6A9BmzhuzF8Eim5f8ui9eH8LZH896+QIF61ka39VBrohr9iyMUJpvRX2Zbhl5ZJzSRxpJyoEZAFL2FUo5fTIztsDZKEgM4cUA==",
        ),
        (
            "sig-b25",
            r#"("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret""#,
            "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=",
        ),
        (
            "sig-b26",
            r#"("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519""#,
            "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==",
        ),
        (
            "ttrp",
            r#"("@path" "@query" "@method" "@authority" "client-cert");created=1618884473;keyid="test-key-ecc-p256""#,
            "xVMHVpawaAC/0SbHrKRs9i8I3eOs5RtTMGCWXm/9nvZzoHsIg6Mce9315T6xoklyy0yzhD9ah4JHRwMLOgmizw==",
        ),
    ] {
        // What they cover is no more than what is asked for here; that too little is refused is another test.
        let lax = signature(&config::Signature { required: vec!["x-not-there".into()], ..config() });
        let body: &[u8] = if input.contains("content-digest") { BODY } else { b"" };
        let good = call().with(|call| call.body = Some(body)).carrying(label, input, signature_text);
        let good = good.with(|call| {
            if label == "ttrp" {
                call.host = "service.internal.example".into();
                call.lines.push(("client-cert", CLIENT_CERT.to_owned()));
            }
        });
        assert_eq!(good.outcome(&lax), "ok", "{label}");
        let forged = signature_text.replacen('x', "y", 1);
        let forged = good.clone().with(|call| {
            call.lines.iter_mut().filter(|(name, _)| *name == "signature").for_each(|line| line.1 = format!("{label}=:{forged}:"));
        });
        assert_eq!(forged.outcome(&lax), "signature", "{label}");
        if input.contains("@path") {
            assert_eq!(good.clone().with(|call| call.path = "/fop".into()).outcome(&lax), "signature", "{label}");
        }
        assert_eq!(
            good.outcome(&signature(&config())) == "ok",
            ["sig-b23", "ttrp"].contains(&label),
            "{label}: the others leave something open"
        );
    }
}

const CLIENT_CERT: &str = ":MIIBqDCCAU6gAwIBAgIBBzAKBggqhkjOPQQDAjA6MRswGQYDVQQKDBJMZXQncyBBdXRoZW50aWNhdGUxGzAZBgNVBAMMEkxBIEludGVybWVkaWF0ZSBDQTAeFw0yMDAxMTQyMjU1MzNaFw0yMTAxMjMyMjU1MzNaMA0xCzAJBgNVBAMMAkJDMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE8YnXXfaUgmnMtOXU/IncWalRhebrXmckC8vdgJ1p5Be5F/3YC8OthxM4+k1M6aEAEFcGzkJiNy6J84y7uzo9M6NyMHAwCQYDVR0TBAIwADAfBgNVHSMEGDAWgBRm3WjLa38lbEYCuiCPct0ZaSED2DAOBgNVHQ8BAf8EBAMCBsAwEwYDVR0lBAwwCgYIKwYBBQUHAwIwHQYDVR0RAQH/BBMwEYEPYmRjQGV4YW1wbGUuY29tMAoGCCqGSM49BAMCA0gAMEUCIBHda/r1vaL6G3VliL4/Di6YK0Q6bMjeSkC3dFCOOB8TAiEAx/kHSB4urmiZ0NX5r5XarmPk0wmuydBVoU4hBVZ1yhk=:";

#[test]
fn a_signature_that_covers_less_than_it_must_is_refused_however_good() {
    let ours = signature(&config());
    let covering =
        |components: &str| call().signed(&format!("({components});created=1618884473;keyid=\"test-shared-secret\"")).outcome(&ours);
    for (components, expected) in [
        (r#""@method" "@authority" "@path" "@query" "content-digest""#, "ok"),
        (r#""content-digest" "@query" "@path" "@authority" "@method" "date""#, "ok"),
        (r#""@method" "@target-uri" "content-digest""#, "ok"),
        (r#""@method" "@authority" "@request-target" "content-digest""#, "ok"),
        (r#""@method" "@authority" "@path" "@query""#, "content_digest_missing"),
        (r#""@authority" "@path" "@query" "content-digest""#, "coverage"),
        (r#""@method" "@path" "@query" "content-digest""#, "coverage"),
        (r#""@method" "@authority" "@query" "content-digest""#, "coverage"),
        (r#""@method" "@authority" "@path" "content-digest""#, "coverage"),
        (r#""@method" "@request-target" "content-digest""#, "coverage"),
        (r#""@method" "@authority" "@path" "@query-param";name="Pet" "content-digest""#, "coverage"),
        (r#""@method" "@authority" "@path" "@query";req "content-digest""#, "coverage"),
        (r#""@method" "@authority" "@path" "@query" "content-digest";sf"#, "content_digest_missing"),
        (r#""@method" "@authority" "@path" "@query" "content-digest" "date";bs"#, "component"),
        (r#""@method" "@authority" "@path" "@query" "content-digest" "x-not-there""#, "component"),
        (r#""@method" "@authority" "@path" "@query" "content-digest" "Date""#, "component"),
        (r#""@method" "@authority" "@path" "@query" "content-digest" "@status""#, "component"),
        (r#""@method" "@authority" "@path" "@query" "content-digest" "@query-param";name="x""#, "component"),
    ] {
        assert_eq!(covering(components), expected, "{components}");
    }
    assert_eq!(call().with(|call| call.body = None).signed(COVERED).outcome(&ours), "ok");
    let bare = r#"("@method" "@authority" "@path" "@query");created=1618884473;keyid="test-shared-secret""#;
    assert_eq!(call().with(|call| call.body = Some(b"")).signed(bare).outcome(&ours), "ok");
    assert_eq!(call().with(|call| call.body = None).signed(bare).outcome(&ours), "content_digest_missing");
    let typed = signature(&config::Signature { required: vec!["@method".into(), "content-type".into()], ..config() });
    assert_eq!(call().signed(COVERED).outcome(&typed), "coverage");
    let untyped = call().with(|call| call.lines.retain(|(name, _)| *name != "content-type"));
    assert_eq!(untyped.signed(COVERED).outcome(&typed), "ok", "nothing is there to be covered");
}

#[test]
fn the_body_must_have_every_digest_that_is_signed() {
    let ours = signature(&config());
    let sha256 = format!("sha-256=:{}:", STANDARD.encode(openssl::sha::sha256(BODY)));
    let digests = |line: &str| {
        let signed = call().with(|call| call.lines[2].1 = line.to_owned()).signed(COVERED);
        match signed.at(&ours, NOW) {
            Verdict::Accept(proof) => Ok(proof.body),
            verdict => Err(outcome(&verdict)),
        }
    };
    let (short, long) = (BodyDigest::Sha256(openssl::sha::sha256(BODY)), BodyDigest::Sha512(openssl::sha::sha512(BODY)));
    assert_eq!(digests(DIGEST), Ok(vec![long.clone()]));
    assert_eq!(digests(&format!("{sha256}, {DIGEST}")), Ok(vec![short.clone(), long]));
    assert_eq!(digests(&format!("md5=:AA==:, {sha256}")), Ok(vec![short]));
    for line in ["md5=:AA==:", "sha-256=:AA==:", "sha-256=AA", "", "sha-256=:AA", &format!("{sha256}, {sha256}")] {
        assert_eq!(digests(line), Err("content_digest"), "{line}");
    }
}

#[test]
fn a_signature_says_its_key_its_time_and_nothing_that_is_not_understood() {
    let ours = signature(&config());
    let saying = |parameters: &str| {
        call().signed(&format!(r#"("@method" "@authority" "@path" "@query" "content-digest"){parameters}"#)).outcome(&ours)
    };
    for (parameters, expected) in [
        (r#";created=1618884473;keyid="test-shared-secret";alg="hmac-sha256";nonce="n";tag="t";expires=1618884500"#, "ok"),
        (r#";created=1618884473;keyid="test-shared-secret";alg="ed25519""#, "signature"),
        (r#";created=1618884473;keyid="test-shared-secret";alg=hmac-sha256"#, "malformed"),
        (r#";created=1618884473;keyid="test-shared-secret";nonce=1"#, "malformed"),
        (r#";created=1618884473;keyid="test-key-ed25519""#, "signature"),
        (r#";created=1618884473;keyid="nobody""#, "unknown"),
        (r#";created=1618884473"#, "malformed"),
        (r#";created=1618884473;keyid=test-shared-secret"#, "malformed"),
        (r#";keyid="test-shared-secret""#, "created"),
        (r#";created="1618884473";keyid="test-shared-secret""#, "malformed"),
        (r#";created=-1;keyid="test-shared-secret""#, "malformed"),
        (r#";created=1618884473;keyid="test-shared-secret";if="x""#, "parameter"),
        (r#";created=1618884503;keyid="test-shared-secret""#, "ok"),
        (r#";created=1618884504;keyid="test-shared-secret""#, "not_yet_valid"),
        (r#";created=1618884143;keyid="test-shared-secret""#, "ok"),
        (r#";created=1618884142;keyid="test-shared-secret""#, "credential_expired"),
        (r#";created=1618884143;keyid="test-shared-secret";expires=1618884443"#, "ok"),
        (r#";created=1618884443;keyid="test-shared-secret";expires=1618884442"#, "credential_expired"),
        (r#";created=1618884142;keyid="test-shared-secret";expires=1718884443"#, "credential_expired"),
        (r#";created=999999999999999;keyid="test-shared-secret""#, "not_yet_valid"),
    ] {
        assert_eq!(saying(parameters), expected, "{parameters}");
    }
}

#[test]
fn of_several_signatures_the_one_by_our_key_counts_and_two_are_no_answer() {
    let ours = signature(&config());
    let others = COVERED.replace("test-shared-secret", "a-proxy");
    let tagged = COVERED.to_owned() + ";tag=\"app\"";
    assert_eq!(call().outcome(&ours), "pass");
    assert_eq!(call().signed(COVERED).signed_as("proxy", &others).outcome(&ours), "ok");
    assert_eq!(call().signed(COVERED).signed_as("two", COVERED).outcome(&ours), "ambiguous");
    assert_eq!(call().signed(&others).signed_as("two", &others).outcome(&ours), "ambiguous");
    assert_eq!(call().signed(COVERED).signed(COVERED).outcome(&ours), "malformed", "one label twice");
    let app = signature(&config::Signature { tag: Some("app".into()), ..config() });
    assert_eq!(call().signed(COVERED).outcome(&app), "pass");
    assert_eq!(call().signed(&tagged).outcome(&app), "ok");
    assert_eq!(call().signed(COVERED).signed_as("app", &tagged).outcome(&app), "ok");
    for missing in ["signature", "signature-input"] {
        let half = call().signed(COVERED).with(|call| call.lines.retain(|(name, _)| *name != missing));
        assert_eq!(half.outcome(&ours), "malformed", "{missing}");
    }
    let unsigned = call().signed(COVERED).with(|call| call.lines.push(("signature-input", format!("more={COVERED}"))));
    assert_eq!(unsigned.outcome(&ours), "malformed", "an input without its signature");
}

#[test]
fn what_changes_something_counts_once_by_nonce_or_by_what_was_signed() {
    let once = config::Signature { replay: Replay::Refuse, ..config() };
    let live = LiveState::default();
    let ours = Signature::new("partners".into(), &once, &live);
    let post = call().signed(COVERED);
    assert_eq!((post.outcome(&ours), post.outcome(&ours)), ("ok", "replayed"));
    assert_eq!(post.outcome(&Signature::new("partners".into(), &once, &live)), "replayed", "a reload forgets nothing");
    assert_eq!(outcome(&post.at(&ours, NOW + 330)), "replayed", "as long as it counts");
    let nonce = |nonce: &str, path: &str| call().with(|call| call.path = path.into()).signed(&format!("{COVERED};nonce=\"{nonce}\""));
    assert_eq!((nonce("a", "/a").outcome(&ours), nonce("b", "/a").outcome(&ours)), ("ok", "ok"));
    assert_eq!(nonce("a", "/b").outcome(&ours), "replayed", "a nonce is of one request");
    let get = call().with(|call| call.method = HttpMethod::GET).signed(COVERED);
    assert_eq!((get.outcome(&ours), get.outcome(&ours)), ("ok", "ok"));
    let forged = call().signed(&format!("{COVERED};nonce=\"c\"")).with(|call| call.path.push('x'));
    assert_eq!(forged.outcome(&ours), "signature");
    assert_eq!(nonce("c", "/foo").outcome(&ours), "ok", "what was refused is not noted");
}

#[test]
fn the_parts_of_a_request_are_written_as_the_rfc_writes_them() {
    let part = |call: &Call, identifier: &str| {
        let (_, covered) = fields::inputs(&format!("a=({identifier})")).unwrap().remove(0);
        let (name, parameters) = &covered.components[0];
        call.asked(|request| component(name, parameters, request).map(Cow::into_owned)).unwrap_or_else(|_| "refused".to_owned())
    };
    let query = "var=this%20is%20a%20big%0Amultiline%20value&bar=with+plus+whitespace&fa%C3%A7ade%22%3A%20=something&qux&two=1&two=2";
    let call = call().with(|call| {
        call.query = Some(query.to_owned());
        call.lines.push(("x-twice", " a ".to_owned()));
        call.lines.push(("x-twice", "b,  c".to_owned()));
        call.lines.push(("x-empty", String::new()));
    });
    for (identifier, expected) in [
        (r#""@method""#, "POST"),
        (r#""@authority""#, "example.com"),
        (r#""@scheme""#, "https"),
        (r#""@path""#, "/foo"),
        (r#""@query-param";name="var""#, "this%20is%20a%20big%0Amultiline%20value"),
        (r#""@query-param";name="bar""#, "with%20plus%20whitespace"),
        (r#""@query-param";name="fa%C3%A7ade%22%3A%20""#, "something"),
        (r#""@query-param";name="qux""#, ""),
        (r#""@query-param";name="two""#, "refused"),
        (r#""@query-param";value="qux""#, "refused"),
        (r#""@query-param""#, "refused"),
        (r#""x-twice""#, "a, b,  c"),
        (r#""x-empty""#, ""),
        (r#""@unknown""#, "refused"),
        (r#""@signature-params""#, "refused"),
    ] {
        assert_eq!(part(&call, identifier), expected, "{identifier}");
    }
    assert_eq!(part(&call, r#""@target-uri""#), format!("https://example.com/foo?{query}"));
    assert_eq!(part(&call, r#""@request-target""#), format!("/foo?{query}"));
    let bare = call.with(|call| call.query = None);
    assert_eq!((part(&bare, r#""@query""#), part(&bare, r#""@target-uri""#)), ("?".to_owned(), "https://example.com/foo".to_owned()));
    for (scheme, port, authority) in [
        ("https", "443", "example.com"),
        ("http", "80", "example.com"),
        ("http", "443", "example.com:443"),
        ("https", "8443", "example.com:8443"),
    ] {
        let call = bare.clone().with(|call| (call.scheme, call.port) = (scheme, Some(port)));
        assert_eq!(part(&call, r#""@authority""#), authority);
    }
}

proptest! {
    #[test]
    fn one_changed_byte_of_what_is_signed_fails(place in 0..6usize, at in any::<prop::sample::Index>(), to in 0x21..0x7fu8) {
        let ours = signature(&config());
        let good = call().signed(COVERED);
        prop_assert_eq!(good.outcome(&ours), "ok");
        let mut bad = good.clone();
        let mut method = bad.method.to_string();
        let target = match place {
            0 => &mut bad.path,
            1 => bad.query.as_mut().unwrap(),
            2 => &mut bad.host,
            3 => &mut method,
            4 => &mut bad.lines[2].1,
            _ => &mut bad.lines[4].1,
        };
        let mut bytes = target.clone().into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != to);
        bytes[at] = to;
        *target = String::from_utf8(bytes).unwrap();
        prop_assume!(HttpMethod::from_bytes(method.as_bytes()).is_ok());
        bad.method = HttpMethod::from_bytes(method.as_bytes()).unwrap();
        prop_assert_ne!(bad.outcome(&ours), "ok");
    }
}
