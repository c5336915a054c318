//! Client certificates: which of the names in a verified certificate is the caller, and whether that caller is accepted.
//!
//! The handshake, or for a forwarded certificate `net::client_certificates`, has verified the chain by now; nothing here looks at signatures.

use std::sync::Arc;

use openssl::sha::sha256;
use quick_cache::sync::Cache;
use serde_json::{Map, Value, json};
use smol_str::SmolStr;

use super::{Challenge, Verdict};
use crate::config::{self, AllowedCertificate, CertificateName, Problem};
use crate::net::client_certificates::authorities;
use crate::request::{Identity, Method, Rejection, Request};

/// Certificates whose identity is remembered.
const REMEMBERED: usize = 10_000;

/// Accepts callers by the name in their certificate.
#[derive(Debug)]
pub struct ClientCertificate {
    name: Arc<str>,
    identity: CertificateName,
    allow: Vec<Allowed>,
    /// The fingerprints of the authorities that may end a chain; absent: any that the handshake accepts.
    anchors: Option<Vec<[u8; 32]>>,
    /// By the fingerprint of the certificate: the same bytes have the same names.
    known: Cache<[u8; 32], Arc<Identity>>,
}

#[derive(Debug)]
struct Allowed {
    pattern: Pattern,
    consumer: Option<Arc<str>>,
    plan: Option<SmolStr>,
    scopes: Arc<[Arc<str>]>,
}

impl ClientCertificate {
    /// Builds all that a request will need; everything that stands in the way is a problem.
    pub fn new(name: Arc<str>, config: &config::ClientCertificate) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let allow = config.allow.iter().filter_map(|allowed| {
            let AllowedCertificate { identity, consumer, plan, scopes } = allowed.clone();
            match Pattern::parse(config.identity, &identity) {
                Ok(pattern) => Some(Allowed { pattern, consumer, plan: plan.map(SmolStr::from), scopes: scopes.into() }),
                Err(expected) => {
                    problems.push(Problem::at(&identity.place, "is no identity of this kind").expected(expected));
                    None
                }
            }
        });
        let allow = allow.collect();
        let anchors = config.ca.as_ref().map(|file| {
            let fingerprints = authorities(&file.bytes)
                .and_then(|found| found.iter().map(|one| Ok(sha256(&one.to_der().map_err(|error| error.to_string())?))).collect());
            fingerprints.unwrap_or_else(|what| {
                problems.push(Problem::at(&file.place, format!("{}: {what}", file.path.display())));
                Vec::new()
            })
        });
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self { name, identity: config.identity, allow, anchors, known: Cache::new(REMEMBERED) })
    }

    /// Judges the certificate of a request. A caller that showed none is left to another authenticator, one that showed a wrong one is not.
    pub fn authenticate(&self, request: &Request<'_>) -> Verdict {
        let Some(certificate) = request.certificate else {
            return Verdict::Pass;
        };
        if self.anchors.as_ref().is_some_and(|anchors| !anchors.contains(&certificate.anchor)) {
            return Verdict::Reject(Rejection::CredentialInvalid("certificate_authority"));
        }
        if let Some(known) = self.known.get(&certificate.fingerprint) {
            return Verdict::Accept(known.into());
        }
        match self.identify(certificate) {
            Ok(identity) => {
                let identity = Arc::new(identity);
                self.known.insert(certificate.fingerprint, Arc::clone(&identity));
                Verdict::Accept(identity.into())
            }
            Err(reason) => Verdict::Reject(Rejection::CredentialInvalid(reason)),
        }
    }

    /// The name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What a caller is told: no scheme of HTTP asks for a certificate, but this says why the request is refused, and what a handshake must bring.
    pub fn challenge(&self) -> Challenge {
        Challenge::new("ClientCertificate")
    }

    /// Exactly one name of the chosen kind must be accepted: of two, neither we nor the upstream could say who calls.
    fn identify(&self, certificate: &crate::request::ClientCertificate) -> Result<Identity, &'static str> {
        let names = match self.identity {
            CertificateName::SanUri => &certificate.uris[..],
            CertificateName::SanDns => &certificate.dns_names[..],
            CertificateName::SanEmail => &certificate.emails[..],
            CertificateName::CommonName => certificate.common_name.as_slice(),
        };
        if names.is_empty() {
            return Err("certificate_identity_missing");
        }
        let mut accepted = names.iter().filter_map(|name| Some((name, self.allow.iter().find(|allowed| allowed.pattern.matches(name))?)));
        let (subject, allowed) = match (accepted.next(), accepted.next()) {
            (Some(one), None) => one,
            (Some(_), Some(_)) => return Err("certificate_identity_ambiguous"),
            (None, _) => return Err("certificate_identity"),
        };
        Ok(Identity {
            subject: Some(Arc::clone(subject).into()),
            consumer: Some(Arc::clone(allowed.consumer.as_ref().unwrap_or(subject)).into()),
            plan: allowed.plan.clone(),
            scopes: allowed.scopes.clone(),
            claims: claims(certificate),
            ..Identity::new(Method::ClientCertificate, Arc::clone(&self.name), certificate.fingerprint)
        })
    }
}

/// What a policy may ask of a certificate beside its identity.
fn claims(certificate: &crate::request::ClientCertificate) -> Map<String, Value> {
    let list = |names: &[Arc<str>]| -> Value { names.iter().map(|name| Value::from(&**name)).collect() };
    let claims = json!({
        "common_name": certificate.common_name.as_deref(),
        "uri": list(&certificate.uris),
        "dns": list(&certificate.dns_names),
        "email": list(&certificate.emails),
        "serial": &*certificate.serial,
    });
    match claims {
        Value::Object(claims) => claims,
        _ => Map::new(),
    }
}

/// Which identities are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    /// Every one.
    Any,
    /// This one, to the letter.
    Exactly(Box<str>),
    /// A DNS name, which has no upper and lower case.
    Host(Box<str>),
    /// The names below a domain.
    Below(Box<str>),
    /// The addresses of a domain.
    At(Box<str>),
    /// A URI in parts: up to its authority, and the segments of its path. `None` is one segment, at the end of the path one or more.
    Uri(Box<str>, Vec<Option<Box<str>>>),
}

impl Pattern {
    /// Reads a pattern for names of a kind, or says what would be right.
    fn parse(kind: CertificateName, text: &str) -> Result<Self, &'static str> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let wild = text.contains('*');
        match kind {
            CertificateName::CommonName if !wild => Ok(Self::Exactly(text.into())),
            CertificateName::CommonName => Err("a common name without `*`, or `*` alone"),
            CertificateName::SanDns => match text.strip_prefix("*.") {
                Some(domain) if is_host(domain) => Ok(Self::Below(domain.to_ascii_lowercase().into())),
                None if is_host(text) => Ok(Self::Host(text.to_ascii_lowercase().into())),
                _ => Err("a DNS name, `*.` and a domain for every name below it, or `*` alone"),
            },
            CertificateName::SanEmail => match text.split_once('@') {
                Some(("*", domain)) if is_host(domain) => Ok(Self::At(domain.to_ascii_lowercase().into())),
                Some((local, domain)) if !local.is_empty() && !local.contains('*') && is_host(domain) => Ok(Self::Exactly(text.into())),
                _ => Err("an email address, `*@` and a domain for every address of it, or `*` alone"),
            },
            CertificateName::SanUri => {
                let expected = "a URI, with `*` for a whole segment of its path, or `*` alone";
                let (root, path) = split_uri(text).ok_or(expected)?;
                if root.contains('*') || !text.is_ascii() {
                    return Err(expected);
                }
                if !wild {
                    return Ok(Self::Exactly(text.into()));
                }
                let segments = path.split('/').map(|segment| match segment {
                    "*" => Ok(None),
                    literal if is_segment(literal) => Ok(Some(literal.into())),
                    _ => Err(expected),
                });
                Ok(Self::Uri(root.into(), segments.collect::<Result<_, _>>()?))
            }
        }
    }

    /// Whether a name is meant. A name that is itself a pattern, such as the `*.acme.test` of a server, is nobody's.
    fn matches(&self, name: &str) -> bool {
        if name.contains('*') {
            return false;
        }
        match self {
            Self::Any => true,
            Self::Exactly(own) => **own == *name,
            Self::Host(own) => own.eq_ignore_ascii_case(name),
            Self::Below(domain) => {
                let cut = name.len().checked_sub(domain.len() + 1).and_then(|at| name.split_at_checked(at));
                cut.is_some_and(|(below, end)| end.strip_prefix('.').is_some_and(|end| end.eq_ignore_ascii_case(domain)) && is_host(below))
            }
            Self::At(domain) => name.rsplit_once('@').is_some_and(|(local, own)| {
                // A quoted local part may hold another `@`, and two readers two addresses.
                !local.is_empty() && !local.contains(['@', '"']) && own.eq_ignore_ascii_case(domain)
            }),
            Self::Uri(root, pattern) => split_uri(name).is_some_and(|(own, path)| {
                let segments: Vec<&str> = path.split('/').collect();
                let as_long = match pattern.last() {
                    Some(None) => segments.len() >= pattern.len(),
                    _ => segments.len() == pattern.len(),
                };
                // What a reader of URIs may normalise away, such as `..`, fits no pattern.
                own == &**root
                    && as_long
                    && segments.iter().all(|segment| is_segment(segment))
                    && pattern.iter().zip(&segments).all(|(wanted, segment)| wanted.as_ref().is_none_or(|wanted| **wanted == **segment))
            }),
        }
    }
}

/// A URI up to the end of its authority, and its path without the first slash.
fn split_uri(uri: &str) -> Option<(&str, &str)> {
    let authority = uri.find("://")? + 3;
    let end = uri.get(authority..)?.find('/').map(|at| authority + at)?;
    let (root, path) = uri.split_at_checked(end)?;
    (end > authority).then(|| (root, path.get(1..).unwrap_or_default()))
}

/// A segment that every reader reads the same: the characters of a SPIFFE id, and no dots alone.
fn is_segment(segment: &str) -> bool {
    !segment.is_empty()
        && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
        && segment.bytes().any(|byte| byte != b'.')
}

fn is_host(name: &str) -> bool {
    let label = |label: &str| {
        let edges_sound = !label.starts_with('-') && !label.ends_with('-');
        !label.is_empty()
            && label.len() <= 63
            && edges_sound
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{At, Place};
    use CertificateName::{CommonName, SanDns, SanEmail, SanUri};

    #[test]
    fn a_pattern_means_whole_segments_and_nothing_that_can_be_read_in_two_ways() {
        for (kind, pattern, name, matches) in [
            (SanUri, "spiffe://acme/web", "spiffe://acme/web", true),
            (SanUri, "spiffe://acme/web", "spiffe://acme/web/", false),
            (SanUri, "spiffe://acme/web", "spiffe://acme/Web", false),
            (SanUri, "spiffe://acme/*", "spiffe://acme/web", true),
            (SanUri, "spiffe://acme/*", "spiffe://acme/ns/prod/sa/web", true),
            (SanUri, "spiffe://acme/*", "spiffe://acme/", false),
            (SanUri, "spiffe://acme/*", "spiffe://acme", false),
            (SanUri, "spiffe://acme/*", "spiffe://acme.evil/web", false),
            (SanUri, "spiffe://acme/*", "spiffe://acme@evil/web", false),
            (SanUri, "spiffe://acme/*", "http://acme/web", false),
            (SanUri, "spiffe://acme/*", "spiffe://acme/../globex", false),
            (SanUri, "spiffe://acme/*", "spiffe://acme/./web", false),
            (SanUri, "spiffe://acme/*", "spiffe://acme//web", false),
            (SanUri, "spiffe://acme/*", "spiffe://acme/web?a", false),
            (SanUri, "spiffe://acme/*", "spiffe://acme/web#a", false),
            (SanUri, "spiffe://acme/*", "spiffe://acme/%77eb", false),
            (SanUri, "spiffe://acme/*", "spiffe://acme/*", false),
            (SanUri, "spiffe://acme/ns/*/sa/web", "spiffe://acme/ns/prod/sa/web", true),
            (SanUri, "spiffe://acme/ns/*/sa/web", "spiffe://acme/ns/a/b/sa/web", false),
            (SanUri, "spiffe://acme/ns/*/sa/web", "spiffe://acme/ns/prod/sa/web2", false),
            (SanUri, "spiffe://acme/ns/*/sa/*", "spiffe://acme/ns/prod/sa", false),
            (SanUri, "*", "anything", true),
            (SanUri, "*", "any*thing", false),
            (SanDns, "alice.acme.test", "Alice.ACME.test", true),
            (SanDns, "alice.acme.test", "alice.acme.test.", false),
            (SanDns, "*.acme.test", "alice.acme.test", true),
            (SanDns, "*.acme.test", "a.b.acme.test", true),
            (SanDns, "*.acme.test", "acme.test", false),
            (SanDns, "*.acme.test", ".acme.test", false),
            (SanDns, "*.acme.test", "evilacme.test", false),
            (SanDns, "*.acme.test", "*.acme.test", false),
            (SanDns, "*.acme.test", "a b.acme.test", false),
            (SanEmail, "alice@acme.test", "alice@acme.test", true),
            (SanEmail, "alice@acme.test", "Alice@acme.test", false),
            (SanEmail, "*@acme.test", "alice@ACME.test", true),
            (SanEmail, "*@acme.test", "@acme.test", false),
            (SanEmail, "*@acme.test", "alice@evil@acme.test", false),
            (SanEmail, "*@acme.test", "\"alice\"@acme.test", false),
            (SanEmail, "*@acme.test", "alice@sub.acme.test", false),
            (CommonName, "alice", "alice", true),
            (CommonName, "alice", "alice2", false),
        ] {
            assert_eq!(Pattern::parse(kind, pattern).unwrap().matches(name), matches, "{pattern} and {name}");
        }
    }

    #[test]
    fn a_pattern_that_nothing_sound_could_match_is_refused() {
        for (kind, pattern) in [
            (SanUri, "spiffe://*/web"),
            (SanUri, "spiffe://acme/w*"),
            (SanUri, "spiffe://acme/**"),
            (SanUri, "spiffe://acme/../*"),
            (SanUri, "spiffe://acme"),
            (SanUri, "acme/*"),
            (SanUri, "spiffe:///web"),
            (SanDns, "a*.acme.test"),
            (SanDns, "*.*.acme.test"),
            (SanDns, "alice.*"),
            (SanDns, "acme.test."),
            (SanEmail, "a*@acme.test"),
            (SanEmail, "*@*"),
            (SanEmail, "acme.test"),
            (CommonName, "al*"),
        ] {
            assert!(Pattern::parse(kind, pattern).is_err(), "{pattern}");
        }
    }

    fn certificate(dns_names: &[&str]) -> crate::request::ClientCertificate {
        crate::request::ClientCertificate {
            fingerprint: sha256(dns_names.join(" ").as_bytes()),
            anchor: [1; 32],
            common_name: Some("alice".into()),
            uris: Vec::new(),
            dns_names: dns_names.iter().map(|name| (*name).into()).collect(),
            emails: Vec::new(),
            serial: "1".into(),
            validity: Default::default(),
        }
    }

    #[test]
    fn one_accepted_name_is_an_identity_and_no_certificate_is_no_refusal() {
        let place = Place { file: "f".into(), line: 1, column: 1, path: "p".into() };
        let allowed = |identity: &str, consumer: Option<&str>| AllowedCertificate {
            identity: At { value: identity.into(), place: place.clone() },
            consumer: consumer.map(Into::into),
            plan: None,
            scopes: vec!["read".into()],
        };
        let config = config::ClientCertificate {
            identity: SanDns,
            allow: vec![allowed("alice.test", None), allowed("*.acme.test", Some("acme"))],
            ca: None,
        };
        let mut authenticator = ClientCertificate::new("mesh".into(), &config).unwrap();
        let headers = http::HeaderMap::new();
        let client = crate::request::Client { address: [127, 0, 0, 1].into(), through_trusted_proxy: false };
        let request = Request::new(&http::Method::GET, "h", "/", &headers, &client);
        let word = |verdict: Verdict| match verdict {
            Verdict::Accept(proof) => {
                format!("{} of {}", proof.identity.subject.as_deref().unwrap(), proof.identity.consumer.as_deref().unwrap())
            }
            Verdict::Pass => "pass".to_owned(),
            Verdict::Reject(rejection) => rejection.reason().unwrap().to_owned(),
        };
        assert_eq!(word(authenticator.authenticate(&request)), "pass");
        for (names, expected) in [
            (&["alice.test"][..], "alice.test of alice.test"),
            (&["web.acme.test"], "web.acme.test of acme"),
            (&["other.test", "web.acme.test"], "web.acme.test of acme"),
            (&["alice.test", "web.acme.test"], "certificate_identity_ambiguous"),
            (&["other.test"], "certificate_identity"),
            (&[], "certificate_identity_missing"),
        ] {
            let certificate = certificate(names);
            let request = Request { certificate: Some(&certificate), ..request };
            // The second time is the cache's.
            for _ in 0..2 {
                assert_eq!(word(authenticator.authenticate(&request)), expected, "{names:?}");
            }
        }
        let certificate = certificate(&["alice.test"]);
        authenticator.anchors = Some(vec![[2; 32]]);
        let request = Request { certificate: Some(&certificate), ..request };
        assert_eq!(word(authenticator.authenticate(&request)), "certificate_authority");
    }
}
