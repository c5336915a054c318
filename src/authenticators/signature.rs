//! HTTP Message Signatures (RFC 9421): requests signed with a key that the configuration knows, over the parts that it asks for.
//!
//! What is held against the signature is what is forwarded: the canonical path, host and query, and the headers as they came. A signature that
//! covers less than it must is refused, however good: what it leaves open anybody could change.

pub mod fields;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use openssl::sha::sha256;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};

use self::fields::{Covered, Item, Parameters};
use super::{Challenge, Proof, Verdict};
use crate::config::{self, Location, Replay, SignatureAlgorithm};
use crate::jose::{Key, Message};
use crate::live::LiveState;
use crate::live::replays::{Replays, Use};
use crate::request::{BodyDigest, Identity, Method, Now, Rejection, Request};

/// A `signature` authenticator, ready to judge.
#[derive(Debug)]
pub struct Signature {
    name: Arc<str>,
    locations: Vec<Location>,
    required: Vec<Arc<str>>,
    max_age: Duration,
    clock_skew: Duration,
    tag: Option<Arc<str>>,
    keys: HashMap<Arc<str>, Signer>,
    /// Verifies in the place of keys that nobody has, so that they take as long as a secret that somebody has.
    decoy: Option<Key>,
    replays: Option<Arc<Replays>>,
}

#[derive(Debug)]
struct Signer {
    key: Arc<Key>,
    algorithm: SignatureAlgorithm,
    identity: Arc<Identity>,
}

/// The signature of a request that is ours to judge.
struct Presented {
    keyid: String,
    covered: Covered,
    signature: Vec<u8>,
}

impl Signature {
    /// Compiles an authenticator.
    pub fn new(name: Arc<str>, config: &config::Signature, live: &LiveState) -> Self {
        let keys = config.keys.iter().map(|entry| (Arc::clone(&entry.keyid), Signer::new(&name, entry)));
        Self {
            locations: [SIGNATURE_INPUT, SIGNATURE].map(|name| Location::Header { name, scheme: None }).into(),
            required: config.required.clone(),
            max_age: config.max_age,
            clock_skew: config.clock_skew,
            tag: config.tag.clone(),
            keys: keys.collect(),
            decoy: Key::from_secret(&[0; 32]),
            replays: match config.replay {
                Replay::Allow => None,
                Replay::Refuse => Some(live.replays.find_or_create(&name, Replays::default)),
            },
            name,
        }
    }

    /// Judges the signature of a request. Signatures with another tag than ours are not ours.
    pub fn authenticate(&self, request: &Request<'_>, now: Now) -> Verdict {
        let judged = self.presented(request.headers).and_then(|presented| match presented {
            Some(presented) => self.judge(&presented, request, now).map(Some),
            None => Ok(None),
        });
        match judged {
            Ok(Some(proof)) => Verdict::Accept(proof),
            Ok(None) => Verdict::Pass,
            Err(rejection) => Verdict::Reject(rejection),
        }
    }

    /// The name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where a signature is.
    pub fn locations(&self) -> &[Location] {
        &self.locations
    }

    /// What a caller is told to present. RFC 9421 has no scheme of its own; its predecessors' drafts had this one.
    pub fn challenge(&self) -> Challenge {
        Challenge::new("Signature")
    }

    /// The one signature that is ours: the only one, or the only one by a key that we know. Which of two would count is nothing to guess.
    fn presented(&self, headers: &HeaderMap) -> Result<Option<Presented>, Rejection> {
        let (inputs, signatures) = match (combined(headers, &SIGNATURE_INPUT)?, combined(headers, &SIGNATURE)?) {
            (None, None) => return Ok(None),
            (Some(inputs), Some(signatures)) => (inputs, signatures),
            _ => return refuse("malformed"),
        };
        let inputs = fields::inputs(&inputs).ok_or(MALFORMED)?;
        let mut signatures: HashMap<_, _> = fields::byte_sequences(&signatures).ok_or(MALFORMED)?.into_iter().collect();
        if inputs.len() != signatures.len() || !inputs.iter().all(|(label, _)| signatures.contains_key(label)) {
            return refuse("malformed");
        }
        let mut ours = Vec::new();
        for (label, covered) in inputs {
            let tag = text(&covered, "tag")?;
            if self.tag.as_deref().is_none_or(|tag_of_ours| tag == Some(tag_of_ours)) {
                // RFC 9421 leaves it optional; without it every key would have to be tried.
                let keyid = text(&covered, "keyid")?.ok_or(MALFORMED)?.to_owned();
                ours.push(Presented { keyid, covered, signature: signatures.remove(&label).ok_or(MALFORMED)? });
            }
        }
        if ours.len() > 1 {
            ours.retain(|presented| self.keys.contains_key(presented.keyid.as_str()));
            if ours.len() != 1 {
                return refuse("ambiguous");
            }
        }
        Ok(ours.pop())
    }

    fn judge(&self, presented: &Presented, request: &Request<'_>, now: Now) -> Result<Proof, Rejection> {
        let covered = &presented.covered;
        if covered.parameters.iter().any(|(name, _)| !PARAMETERS.contains(&name.as_str())) {
            return refuse("parameter");
        }
        let (alg, nonce) = (text(covered, "alg")?, text(covered, "nonce")?);
        let ends = self.check_time(covered, now)?;
        self.check_coverage(covered, request)?;
        let body = content_digests(covered, request.headers)?;
        let base = base(covered, request)?;
        let signed = Message::from(base.as_bytes());
        let known = self.keys.get(presented.keyid.as_str());
        let good = match known {
            Some(signer) => {
                // The key's own algorithm decides; what the caller says has to agree (RFC 9421 section 3.2).
                let agrees = alg.is_none_or(|alg| alg == signer.algorithm.label());
                signer.key.verify(signer.algorithm.jose(), &signed, &presented.signature) && agrees
            }
            None => self.decoy.as_ref().is_some_and(|key| key.verify(HMAC, &signed, &presented.signature)),
        };
        let signer = match known {
            Some(signer) if good => signer,
            Some(_) => return refuse("signature"),
            None => return refuse("unknown"),
        };
        if !request.method.is_safe() {
            // Not the signature: of one by ECDSA anybody can make a second that is as good.
            let once = match nonce {
                Some(nonce) => sha256(format!("nonce {:?} {nonce:?}", presented.keyid).as_bytes()),
                None => *signed.sha256(),
            };
            self.refuse_replay(&once, ends, now)?;
        }
        Ok(Proof { body, ..Arc::clone(&signer.identity).into() })
    }

    /// When the signature ends, in seconds since the Unix epoch.
    fn check_time(&self, covered: &Covered, now: Now) -> Result<u64, Rejection> {
        let time = |name: &str| match covered.parameter(name) {
            None => Ok(None),
            Some(Item::Integer(seconds)) => u64::try_from(*seconds).map(Some).map_err(|_| MALFORMED),
            Some(_) => Err(MALFORMED),
        };
        let created = time("created")?.ok_or(Rejection::CredentialInvalid("created"))?;
        let (now, skew) = (now.unix.as_secs(), self.clock_skew.as_secs());
        if created > now.saturating_add(skew) {
            return refuse("not_yet_valid");
        }
        let oldest = created.saturating_add(self.max_age.as_secs());
        let ends = time("expires")?.map_or(oldest, |expires| expires.min(oldest)).saturating_add(skew);
        if now > ends { Err(Rejection::CredentialExpired) } else { Ok(ends) }
    }

    fn check_coverage(&self, covered: &Covered, request: &Request<'_>) -> Result<(), Rejection> {
        let covers = |wanted: &str| {
            covered.components.iter().any(|(name, parameters)| {
                parameters.is_empty() && (name == wanted || WHOLE.iter().any(|(whole, parts)| whole == name && parts.contains(&wanted)))
            })
        };
        let there = |name: &str| name.starts_with('@') || request.headers.contains_key(name);
        if !self.required.iter().all(|name| covers(name) || !there(name)) {
            return refuse("coverage");
        }
        // Unless it is known to be empty, somebody may have changed it.
        if request.body.is_none_or(|body| !body.is_empty()) && !covers(CONTENT_DIGEST) {
            return refuse("content_digest_missing");
        }
        Ok(())
    }

    fn refuse_replay(&self, once: &[u8; 32], ends: u64, now: Now) -> Result<(), Rejection> {
        let Some(replays) = &self.replays else { return Ok(()) };
        match replays.note(once, Duration::from_secs(ends), now.unix) {
            Use::First => Ok(()),
            Use::Again => refuse("replayed"),
            Use::Full => Err(Rejection::Overloaded("replays")),
        }
    }
}

impl Signer {
    fn new(authenticator: &Arc<str>, entry: &config::SignatureKey) -> Self {
        let identity = Identity {
            consumer: Some(Arc::clone(&entry.consumer).into()),
            key_id: Some(Arc::clone(&entry.keyid).into()),
            scopes: entry.scopes.as_slice().into(),
            plan: entry.plan.clone().map(Into::into),
            ..Identity::new(Method::Signature, Arc::clone(authenticator), sha256(entry.keyid.as_bytes()))
        };
        Self { key: Arc::clone(&entry.key), algorithm: entry.algorithm, identity: Arc::new(identity) }
    }
}

/// What is signed (RFC 9421 section 2.5), made of the request as it is forwarded.
///
/// # Errors
/// A part is not there, not one of a request, or asks for a form that is not understood.
pub fn base(covered: &Covered, request: &Request<'_>) -> Result<String, Rejection> {
    let mut base = String::new();
    for (name, parameters) in &covered.components {
        base.push_str(&fields::identifier(name, parameters));
        base.push_str(": ");
        base.push_str(&component(name, parameters, request)?);
        base.push('\n');
    }
    base.push_str("\"@signature-params\": ");
    base.push_str(&covered.serialize());
    Ok(base)
}

fn component<'r>(name: &str, parameters: &Parameters, request: &Request<'r>) -> Result<Cow<'r, str>, Rejection> {
    if name == "@query-param" {
        return query_parameter(parameters, request).map(Cow::Owned);
    }
    // `sf`, `key`, `bs`, `tr` and `req` ask for other forms or messages: one that is not understood must not pass for one that is.
    if !parameters.is_empty() {
        return refuse("component");
    }
    let with_query = |before: String| request.query.map_or_else(|| before.clone(), |query| format!("{before}?{query}"));
    Ok(match name {
        "@method" => request.method.to_string().into(),
        "@scheme" => request.scheme.into(),
        "@authority" => authority(request).into(),
        "@path" => request.path.into(),
        "@query" => format!("?{}", request.query.unwrap_or_default()).into(),
        "@request-target" => with_query(request.path.to_owned()).into(),
        "@target-uri" => with_query(format!("{}://{}{}", request.scheme, authority(request), request.path)).into(),
        header => {
            let lower = HeaderName::from_bytes(header.as_bytes()).is_ok_and(|name| name.as_str() == header);
            let value = if lower { combined(request.headers, header)? } else { None };
            value.ok_or(Rejection::CredentialInvalid("component"))?.into()
        }
    })
}

/// RFC 9421 section 2.2.3: without the port that the scheme has anyway.
fn authority(request: &Request<'_>) -> String {
    let default = if request.scheme == "https" { "443" } else { "80" };
    match request.port {
        Some(port) if port != default => format!("{}:{port}", request.host),
        _ => request.host.to_owned(),
    }
}

/// RFC 9421 section 2.2.8: read as a form, written in one way. A parameter that is there twice cannot be signed so.
fn query_parameter(parameters: &Parameters, request: &Request<'_>) -> Result<String, Rejection> {
    const UNESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_');
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode(spaced.as_bytes()).decode_utf8().ok().map(|decoded| utf8_percent_encode(&decoded, UNESCAPED).to_string())
    };
    let [(key, Item::Text(wanted))] = parameters.as_slice() else { return refuse("component") };
    let pairs = request.query.into_iter().flat_map(|query| query.split('&')).map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(name, _)| decode(name).as_deref() == Some(wanted)).map(|(_, value)| decode(value));
    match (values.next(), values.next()) {
        (Some(Some(value)), None) if key == "name" => Ok(value),
        _ => refuse("component"),
    }
}

/// Every line of a header as one (RFC 9421 section 2.1).
fn combined(headers: &HeaderMap, name: impl http::header::AsHeaderName) -> Result<Option<String>, Rejection> {
    let mut lines = headers.get_all(name).iter().map(|line| line.to_str().map(str::trim_ascii).map_err(|_| MALFORMED));
    let Some(first) = lines.next() else { return Ok(None) };
    lines.try_fold(first?.to_owned(), |before, line| Ok(format!("{before}, {}", line?))).map(Some)
}

/// What the body must hash to, where the signature says so: each digest that we know, and one of them at least (RFC 9530 section 2).
fn content_digests(covered: &Covered, headers: &HeaderMap) -> Result<Vec<BodyDigest>, Rejection> {
    const WRONG: Rejection = Rejection::CredentialInvalid("content_digest");
    if !covered.components.iter().any(|(name, _)| name == CONTENT_DIGEST) {
        return Ok(Vec::new());
    }
    let line = combined(headers, CONTENT_DIGEST)?.ok_or(WRONG)?;
    let mut digests = Vec::new();
    for (algorithm, digest) in fields::byte_sequences(&line).ok_or(WRONG)? {
        match algorithm.as_str() {
            "sha-256" => digests.push(BodyDigest::Sha256(digest.try_into().map_err(|_| WRONG)?)),
            "sha-512" => digests.push(BodyDigest::Sha512(digest.try_into().map_err(|_| WRONG)?)),
            _ => {}
        }
    }
    if digests.is_empty() { Err(WRONG) } else { Ok(digests) }
}

/// A parameter that must be a text.
fn text<'c>(covered: &'c Covered, name: &str) -> Result<Option<&'c str>, Rejection> {
    match covered.parameter(name) {
        None => Ok(None),
        Some(Item::Text(text)) => Ok(Some(text)),
        Some(_) => Err(MALFORMED),
    }
}

fn refuse<T>(reason: &'static str) -> Result<T, Rejection> {
    Err(Rejection::CredentialInvalid(reason))
}

const MALFORMED: Rejection = Rejection::CredentialInvalid("malformed");
const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
const SIGNATURE: HeaderName = HeaderName::from_static("signature");
const CONTENT_DIGEST: &str = "content-digest";
const HMAC: crate::jose::Algorithm = crate::jose::Algorithm::Hs256;
/// What a signature may say of itself; what we do not know could be a condition.
const PARAMETERS: [&str; 6] = ["created", "expires", "nonce", "keyid", "alg", "tag"];
/// What is signed along with a part.
const WHOLE: [(&str, &[&str]); 2] =
    [("@target-uri", &["@scheme", "@authority", "@path", "@query", "@request-target"]), ("@request-target", &["@path", "@query"])];

#[cfg(test)]
mod tests;
