//! Who a client certificate names: read once, and refused rather than read halfway, for two readers must not see two names in it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName};
use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::nid::Nid;
use openssl::sha::sha256;
use openssl::x509::{X509, X509Ref};

/// At most so many subject alternative names of the kinds that are read. A caller has a few; hundreds are a server's, or an attack on headers.
const MAX_NAMES: usize = 100;

/// At most so many bytes in all names together: they become a header.
const MAX_NAME_BYTES: usize = 4 * 1024;

/// At most so many certificates in `Client-Cert-Chain`, and so many bytes of one in DER.
const MAX_CHAIN: usize = 16;
const MAX_DER: usize = 16 * 1024;

/// The names of a certificate whose chain was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// SHA-256 of its DER: `x5t#S256` of RFC 8705.
    pub fingerprint: [u8; 32],
    /// SHA-256 of the DER of the authority that ends its chain.
    pub anchor: [u8; 32],
    /// The one common name of its subject; none when there are several, of which nobody can say which counts.
    pub common_name: Option<Arc<str>>,
    /// Subject alternative names of the type URI, such as a SPIFFE id.
    pub uris: Vec<Arc<str>>,
    /// Subject alternative names of the type DNS.
    pub dns_names: Vec<Arc<str>>,
    /// Subject alternative names of the type email.
    pub emails: Vec<Arc<str>>,
    /// The serial number that its issuer gave it, in hexadecimal.
    pub serial: Arc<str>,
    /// The first and the last moment of its own validity, since the Unix epoch.
    pub validity: (Duration, Duration),
}

impl ClientCertificate {
    /// Reads the names of a certificate whose chain ends in an authority.
    ///
    /// # Errors
    /// The reason word of a certificate that must not be believed, whoever signed it: a name with a control character (a reader in C ends at
    /// NUL, a header at a line break), a name that is not of its ASCII type, or more names than a caller has.
    pub fn read(certificate: &X509Ref, anchor: &X509Ref) -> Result<Self, &'static str> {
        const MALFORMED: &str = "certificate_malformed";
        let malformed = |_| MALFORMED;
        let der = certificate.to_der().map_err(malformed)?;
        let mut read = Self {
            fingerprint: sha256(&der),
            anchor: sha256(&anchor.to_der().map_err(malformed)?),
            common_name: None,
            uris: Vec::new(),
            dns_names: Vec::new(),
            emails: Vec::new(),
            serial: certificate.serial_number().to_bn().and_then(|serial| serial.to_hex_str()).map_err(malformed)?.to_lowercase().into(),
            validity: (unix(certificate.not_before()).ok_or(MALFORMED)?, unix(certificate.not_after()).ok_or(MALFORMED)?),
        };
        let mut bytes = 0;
        let mut common_names = certificate.subject_name().entries_by_nid(Nid::COMMONNAME).map(|entry| entry.data().to_string());
        let (first, second) = (common_names.next(), common_names.next());
        for common_name in first.iter().chain(&second) {
            sound(common_name.as_ref().map_err(|_| MALFORMED)?, &mut bytes)?;
        }
        if let (Some(Ok(name)), None) = (first, second) {
            read.common_name = Some(name.into());
        }
        // OpenSSL holds a certificate whose extension cannot be decoded for invalid as a whole, so its names are not overlooked here.
        for (count, name) in certificate.subject_alt_names().into_iter().flatten().enumerate() {
            if count >= MAX_NAMES {
                return Err("certificate_names");
            }
            let (text, names) = if let Some(uri) = name.uri() {
                (uri, &mut read.uris)
            } else if let Some(dns_name) = name.dnsname() {
                (dns_name, &mut read.dns_names)
            } else if let Some(email) = name.email() {
                (email, &mut read.emails)
            } else {
                continue;
            };
            // All three are IA5Strings (RFC 5280 section 4.2.1.6). One that is not even UTF-8 has no text here, and is nobody's name.
            if !text.is_ascii() {
                return Err("certificate_characters");
            }
            sound(text, &mut bytes)?;
            names.push(text.into());
        }
        Ok(read)
    }
}

fn sound(name: &str, bytes: &mut usize) -> Result<(), &'static str> {
    *bytes += name.len();
    if *bytes > MAX_NAME_BYTES {
        return Err("certificate_names");
    }
    if name.is_empty() || name.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return Err("certificate_characters");
    }
    Ok(())
}

/// A time of a certificate since the Unix epoch; what was before counts as then.
pub fn unix(time: &Asn1TimeRef) -> Option<Duration> {
    let since = Asn1Time::from_unix(0).ok()?.diff(time).ok()?;
    let seconds = i64::from(since.days) * 86_400 + i64::from(since.secs);
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// `Client-Cert` and `Client-Cert-Chain` (RFC 9440), unverified: who sent them must be asked before.
pub const HEADERS: [HeaderName; 2] = [HeaderName::from_static("client-cert"), HeaderName::from_static("client-cert-chain")];

/// The certificates that a proxy forwards, the caller's first; empty when it forwards none.
///
/// # Errors
/// The reason word when the fields are not what RFC 9440 says: a proxy that writes them otherwise is not understood halfway.
pub fn forwarded(headers: &HeaderMap) -> Result<Vec<X509>, &'static str> {
    const MALFORMED: &str = "client_cert_header";
    let [leaf, chain] = HEADERS;
    let mut lines = headers.get_all(&leaf).iter();
    let links = headers.get_all(&chain).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let mut items = match (lines.next(), lines.next()) {
        (Some(line), None) => vec![line.as_bytes()],
        (None, _) if !headers.contains_key(&chain) => return Ok(Vec::new()),
        // Two certificates, or a chain that hangs on none.
        _ => return Err(MALFORMED),
    };
    items.extend(links.take(MAX_CHAIN + 1));
    if items.len() > MAX_CHAIN + 1 {
        return Err(MALFORMED);
    }
    items.into_iter().map(|item| certificate(item).ok_or(MALFORMED)).collect()
}

/// A byte sequence of RFC 8941 section 3.3.5, without parameters, that is one certificate in DER and nothing else.
fn certificate(item: &[u8]) -> Option<X509> {
    let text = item.trim_ascii().strip_prefix(b":")?.strip_suffix(b":")?;
    if text.len() > MAX_DER * 4 / 3 + 4 {
        return None;
    }
    let der = STANDARD.decode(text).ok()?;
    let certificate = X509::from_der(&der).ok()?;
    // The parser stops where the certificate ends: what follows would make two fingerprints of one.
    (certificate.to_der().ok()? == der).then_some(certificate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn fixture(name: &str) -> X509 {
        let path = format!("{}/tests/data/mtls-fixture/{name}.pem", env!("CARGO_MANIFEST_DIR"));
        X509::from_pem(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn names_are_read_with_their_type_and_whole_or_not_at_all() {
        for (name, expected) in [
            ("ok", Ok("cn=Some(\"alice\") uri=[] dns=[\"alice.client.test\"] email=[]")),
            ("san-uri-spiffe", Ok("cn=Some(\"alice\") uri=[\"spiffe://test/ns/a/sa/alice\"] dns=[] email=[]")),
            ("san-email", Ok("cn=Some(\"alice\") uri=[] dns=[] email=[\"alice@client.test\"]")),
            ("two-cn", Ok("cn=None uri=[] dns=[\"alice.client.test\"] email=[]")),
            ("cn-comma", Ok("cn=Some(\"alice,O=Admin\") uri=[] dns=[\"alice.client.test\"] email=[]")),
            ("san-othername-nul", Ok("cn=Some(\"alice\") uri=[] dns=[] email=[]")),
            ("cn-nul", Err("certificate_characters")),
            ("cn-newline", Err("certificate_characters")),
            ("san-500", Err("certificate_names")),
        ] {
            let certificate = fixture(name);
            let read = ClientCertificate::read(&certificate, &certificate)
                .map(|read| format!("cn={:?} uri={:?} dns={:?} email={:?}", read.common_name, read.uris, read.dns_names, read.emails));
            assert_eq!(read.as_deref().map_err(|reason| *reason), expected, "{name}");
        }
    }

    #[test]
    fn serials_times_and_fingerprints_are_those_that_others_show() {
        let read = ClientCertificate::read(&fixture("revoked"), &fixture("ca-root")).unwrap();
        assert_eq!(&*read.serial, "1001");
        assert_eq!(read.validity, (Duration::from_secs(1_767_225_600), Duration::from_secs(2_366_841_600)));
        let own = ClientCertificate::read(&fixture("ca-root"), &fixture("ca-root")).unwrap();
        assert_eq!((read.anchor, own.anchor), (own.fingerprint, own.fingerprint));
    }

    #[test]
    fn what_a_proxy_forwards_is_what_rfc_9440_says_or_refused() {
        let item = |name: &str| format!(":{}:", STANDARD.encode(fixture(name).to_der().unwrap()));
        let (leaf, link) = (item("ok"), item("ca-root"));
        let longer = format!(":{}:", STANDARD.encode([fixture("ok").to_der().unwrap(), vec![0]].concat()));
        let long = vec![link.as_str(); MAX_CHAIN].join(",");
        let too_long = format!("{long},{link}");
        let two = format!("{link}, {leaf}");
        let parameter = format!("{leaf};a=1");
        for (lines, count) in [
            (&[][..], Some(0)),
            (&[("client-cert", leaf.as_str())], Some(1)),
            (&[("client-cert", &leaf), ("client-cert-chain", &two)], Some(3)),
            (&[("client-cert", &leaf), ("client-cert-chain", &link), ("client-cert-chain", &two)], Some(4)),
            (&[("client-cert", &leaf), ("client-cert-chain", &long)], Some(1 + MAX_CHAIN)),
            (&[("client-cert", &leaf), ("client-cert-chain", &too_long)], None),
            (&[("client-cert", &leaf), ("client-cert-chain", "")], None),
            (&[("client-cert", &leaf), ("client-cert", &leaf)], None),
            (&[("client-cert-chain", &link)], None),
            (&[("client-cert", &two)], None),
            (&[("client-cert", &parameter)], None),
            (&[("client-cert", &longer)], None),
            (&[("client-cert", "::")], None),
            (&[("client-cert", ":")], None),
            (&[("client-cert", "")], None),
            (&[("client-cert", leaf.trim_matches(':'))], None),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
            }
            assert_eq!(forwarded(&headers).ok().map(|found| found.len()), count, "{lines:?}");
        }
    }
}
