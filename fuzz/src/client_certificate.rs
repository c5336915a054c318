//! Client certificates, and the headers in which a balancer forwards them: no name that a header, a log or a reader in C could take for another.

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use base64::prelude::{BASE64_STANDARD, Engine};
use edgeward::authenticators::Verdict;
use edgeward::authenticators::client_certificate::ClientCertificate as Authenticator;
use edgeward::config::{self, AllowedCertificate, At, CertificateName, Place};
use edgeward::request::certificate::{HEADERS, forwarded};
use edgeward::request::{Client, ClientCertificate, Request};
use http::{HeaderMap, HeaderValue, Method};

static MESH: LazyLock<Authenticator> = LazyLock::new(|| {
    let place = Place { file: "fuzz".into(), line: 1, column: 1, path: "".into() };
    let identity = At { value: "spiffe://acme/ns/*/sa/*".into(), place };
    let allowed = AllowedCertificate { identity, consumer: None, plan: None, scopes: Vec::new() };
    let config = config::ClientCertificate { identity: CertificateName::SanUri, allow: vec![allowed], ca: None };
    Authenticator::new("mesh".into(), &config).unwrap()
});

/// After a first byte `d`, a certificate in DER; after any other, lines of `Client-Cert`, an empty line, and lines of `Client-Cert-Chain`.
pub fn run(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let mut headers = HeaderMap::new();
    let [leaf, chain] = HEADERS;
    if *kind == b'd' {
        let line = format!(":{}:", BASE64_STANDARD.encode(data));
        headers.append(leaf, HeaderValue::from_str(&line).unwrap());
    } else {
        let mut name = &leaf;
        for line in data.split(|byte| *byte == b'\n') {
            match HeaderValue::from_bytes(line) {
                Ok(value) if !line.is_empty() => drop(headers.append(name, value)),
                _ => name = &chain,
            }
        }
    }
    let Ok(certificates) = forwarded(&headers) else { return };
    assert_eq!(certificates.is_empty(), headers.is_empty(), "a certificate is overlooked, or made up");
    for certificate in &certificates {
        if let Ok(read) = ClientCertificate::read(certificate, certificate) {
            check(&read);
        }
    }
}

fn check(certificate: &ClientCertificate) {
    let ia5 = || certificate.uris.iter().chain(&certificate.dns_names).chain(&certificate.emails);
    assert!(ia5().all(|name| name.is_ascii()), "{certificate:?}");
    let names = || ia5().chain(&certificate.common_name);
    assert!(names().all(|name| !name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_control())), "{certificate:?}");
    assert!(names().map(|name| name.len()).sum::<usize>() <= 4096 && names().count() <= 101, "{certificate:?}");
    assert!(certificate.serial.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'), "{certificate:?}");
    let headers = HeaderMap::new();
    let client = Client { address: Ipv4Addr::LOCALHOST.into(), through_trusted_proxy: false };
    let request = Request { certificate: Some(certificate), ..Request::new(&Method::GET, "gw.test", "/", &headers, &client) };
    match MESH.authenticate(&request) {
        Verdict::Accept(proof) => {
            let subject = proof.identity.subject.as_deref().unwrap();
            assert!(certificate.uris.iter().any(|uri| **uri == *subject));
            let segments: Vec<_> = subject.strip_prefix("spiffe://acme/ns/").unwrap().split('/').collect();
            assert!(segments.len() >= 3 && segments[1] == "sa", "{subject}");
            assert!(!segments.iter().any(|segment| segment.is_empty() || *segment == ".."), "{subject}");
        }
        Verdict::Pass => panic!("a certificate that is there is passed over"),
        Verdict::Reject(_) => {}
    }
}
