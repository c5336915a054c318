//! AWS Signature Version 4: requests signed with a secret that both sides know, in a header or in the URL.
//!
//! What is held against the signature is what is forwarded: the canonical path, the query as it came, the canonical host. A caller who
//! signed another spelling of the same request is refused, so that nobody can change a byte on the way to the upstream unnoticed.

pub mod canonical;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{HeaderName, Method as HttpMethod, header};
use openssl::sha::sha256;
use percent_encoding::percent_decode_str;
use time::{Date, Month, PrimitiveDateTime, Time};

use self::canonical::{ALGORITHM, Escapes, SIGNATURE, Signed};
use super::{Challenge, Proof, Verdict, credential};
use crate::config::{self, Location, Replay, SigningKeyEntry};
use crate::live::LiveState;
use crate::live::replays::{Replays, Use};
use crate::request::cidr::CidrSet;
use crate::request::{BodyDigest, Identity, Method, Now, Rejection, Request};
use crate::secret::Secret;

/// A `sigv4` authenticator, ready to judge.
#[derive(Debug)]
pub struct Sigv4 {
    name: Arc<str>,
    locations: Vec<Location>,
    region: Arc<str>,
    service: Arc<str>,
    escapes: Escapes,
    clock_skew: Duration,
    unsigned_payload: bool,
    keys: HashMap<Arc<str>, Key>,
    /// Signs in the place of keys that nobody has, so that they take as long as others.
    decoy: Daily,
    replays: Option<Arc<Replays>>,
}

#[derive(Debug)]
struct Key {
    daily: Daily,
    session_token: Option<Secret>,
    routes: Vec<Arc<str>>,
    allow: Option<CidrSet>,
    expires: Option<u64>,
    identity: Arc<Identity>,
}

impl Sigv4 {
    /// Compiles an authenticator.
    pub fn new(name: Arc<str>, config: &config::Sigv4, live: &LiveState) -> Self {
        let keys = config.keys.iter().map(|entry| (Arc::clone(&entry.access_key_id), Key::new(&name, entry)));
        let replays = match config.replay {
            Replay::Allow => None,
            Replay::Refuse => Some(live.replays.find_or_create(&name, Replays::default)),
        };
        Self {
            locations: locations(),
            region: Arc::clone(&config.region),
            service: Arc::clone(&config.service),
            escapes: if &*config.service == "s3" { Escapes::Kept } else { Escapes::Escaped },
            clock_skew: config.clock_skew,
            unsigned_payload: config.unsigned_payload,
            keys: keys.collect(),
            decoy: Daily::new(Secret::new(vec![0; 40])),
            replays,
            name,
        }
    }

    /// Judges the signature of a request.
    pub fn authenticate(&self, request: &Request<'_>, now: Now) -> Verdict {
        let judged = self.presented(request).and_then(|presented| match presented {
            Some(presented) => self.judge(&presented, request, now).map(Some),
            None => Ok(None),
        });
        match judged {
            Ok(Some(proof)) => Verdict::Accept(proof),
            Ok(None) => Verdict::Pass,
            Err(rejection) => Verdict::Reject(rejection),
        }
    }

    /// Whether the body itself must be hashed, as its signer did not say what it hashes to.
    pub fn asks_for_body(&self, request: &Request<'_>) -> bool {
        matches!(self.presented(request), Ok(Some(presented)) if self.declared(&presented).is_none())
    }

    /// The name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where a signature and its parts may be.
    pub fn locations(&self) -> &[Location] {
        &self.locations
    }

    /// What a caller is told to present.
    pub fn challenge(&self) -> Challenge {
        Challenge::new(ALGORITHM)
    }

    fn presented<'r>(&self, request: &Request<'r>) -> Result<Option<Presented<'r>>, Rejection> {
        let in_header = self.locations.get(..1).is_some_and(|header| credential::is_present(header, request));
        let in_query = request.query.is_some_and(|query| query.split('&').any(|pair| IN_QUERY.contains(&name_of(pair))));
        match (in_header, in_query) {
            (false, false) => Ok(None),
            (true, true) => Err(Rejection::BadRequest("credential_repeated")),
            (true, false) => Presented::from_headers(request).map(Some),
            (false, true) => Presented::from_query(request).map(Some),
        }
    }

    fn judge(&self, presented: &Presented<'_>, request: &Request<'_>, now: Now) -> Result<Proof, Rejection> {
        let credential = Credential::parse(&presented.credential).ok_or(MALFORMED)?;
        if (credential.region, credential.service) != (&*self.region, &*self.service) {
            return refuse("scope");
        }
        let signed_at = seconds(&presented.time).ok_or(Rejection::CredentialInvalid("date"))?;
        if presented.time.get(..8) != Some(credential.date) {
            return refuse("scope_date");
        }
        let ends = self.check_time(presented, signed_at, now)?;
        check_names(&presented.names, request)?;
        let (payload, body) = self.payload(presented, request)?;
        let known = self.keys.get(credential.access_key_id);
        let signer = known.map_or(&self.decoy, |key| &key.daily).key(credential.date, &self.region, &self.service);
        let host = match request.port {
            Some(port) => Cow::Owned(format!("{}:{port}", request.host)),
            None => Cow::Borrowed(request.host),
        };
        let signed = Signed {
            method: request.method.as_str(),
            path: request.path,
            escapes: self.escapes,
            query: request.query,
            host: &host,
            headers: request.headers,
            names: &presented.names,
            payload: &payload,
        };
        let text = signed.canonical_request().ok_or(Rejection::CredentialInvalid("query_escapes"))?;
        let signature = canonical::signature(&signer, &canonical::string_to_sign(&presented.time, credential.scope, &text));
        let good = openssl::memcmp::eq(&signature, &presented.signature);
        let key = match known {
            Some(key) if good => key,
            Some(_) => return refuse("signature"),
            None => return refuse("unknown"),
        };
        key.judge(presented, request, now)?;
        self.refuse_replay(&signature, ends, request.method, now)?;
        Ok(Proof { body: body.into_iter().collect(), ..Arc::clone(&key.identity).into() })
    }

    /// When the signature ends, in seconds since the Unix epoch.
    fn check_time(&self, presented: &Presented<'_>, signed_at: u64, now: Now) -> Result<u64, Rejection> {
        let (now, skew) = (now.unix.as_secs(), self.clock_skew.as_secs());
        if signed_at > now + skew {
            return refuse("not_yet_valid");
        }
        // A link says itself how long it lives; its end is exact, as AWS has it.
        let ends = signed_at + presented.expires.map_or(skew, |expires| expires.saturating_sub(1));
        if now > ends { Err(Rejection::CredentialExpired) } else { Ok(ends) }
    }

    /// What the signer says that the body is, if it says anything. Links to S3 say nothing and mean any body.
    fn declared<'p>(&self, presented: &'p Presented<'_>) -> Option<&'p str> {
        let unsigned = (presented.expires.is_some() && self.escapes == Escapes::Kept).then_some(UNSIGNED_PAYLOAD);
        presented.content_sha256.as_deref().or(unsigned)
    }

    /// What stands for the body in what was signed, and what the body must hash to.
    fn payload<'p>(&self, presented: &'p Presented<'_>, request: &Request<'_>) -> Result<(Cow<'p, str>, Option<BodyDigest>), Rejection> {
        match self.declared(presented) {
            Some(UNSIGNED_PAYLOAD) if self.unsigned_payload => Ok((UNSIGNED_PAYLOAD.into(), None)),
            Some(UNSIGNED_PAYLOAD) => refuse("unsigned_payload"),
            Some(declared) => match canonical::unhex(declared) {
                Some(digest) => Ok((declared.into(), Some(BodyDigest::Sha256(digest)))),
                // Bodies whose pieces are signed one by one (aws-chunked) would have to be rewritten for the upstream.
                None if declared.starts_with("STREAMING-") => refuse("streaming_payload"),
                None => refuse("payload_hash"),
            },
            None => match request.body {
                Some(body) => Ok((canonical::hex(&sha256(body)).into(), None)),
                None => refuse("payload_hash_missing"),
            },
        }
    }

    fn refuse_replay(&self, signature: &[u8; 32], ends: u64, method: &HttpMethod, now: Now) -> Result<(), Rejection> {
        let Some(replays) = &self.replays else { return Ok(()) };
        if method.is_safe() {
            return Ok(());
        }
        match replays.note(signature, Duration::from_secs(ends), now.unix) {
            Use::First => Ok(()),
            Use::Again => refuse("replayed"),
            Use::Full => Err(Rejection::Overloaded("replays")),
        }
    }
}

impl Key {
    fn new(authenticator: &Arc<str>, entry: &SigningKeyEntry) -> Self {
        let identity = Identity {
            consumer: Some(Arc::clone(&entry.consumer).into()),
            key_id: Some(Arc::clone(&entry.access_key_id).into()),
            scopes: entry.scopes.as_slice().into(),
            plan: entry.plan.clone().map(Into::into),
            ..Identity::new(Method::Sigv4, Arc::clone(authenticator), sha256(entry.access_key_id.as_bytes()))
        };
        Self {
            daily: Daily::new(entry.secret.clone()),
            session_token: entry.session_token.clone(),
            routes: entry.routes.clone(),
            allow: (!entry.allow.is_empty()).then(|| CidrSet::new(&entry.allow)),
            expires: entry.expires,
            identity: Arc::new(identity),
        }
    }

    /// The checks that a good signature does not answer.
    fn judge(&self, presented: &Presented<'_>, request: &Request<'_>, now: Now) -> Result<(), Rejection> {
        let token_matches = match (&self.session_token, presented.session_token.as_deref()) {
            (Some(ours), Some(theirs)) => ours.expose().len() == theirs.len() && openssl::memcmp::eq(ours.expose(), theirs.as_bytes()),
            (None, None) => true,
            _ => false,
        };
        if !token_matches {
            return refuse("session_token");
        }
        if self.expires.is_some_and(|expires| now.unix.as_secs() >= expires) {
            return refuse("expired");
        }
        if !self.routes.is_empty() && !self.routes.iter().any(|route| **route == *request.route) {
            return refuse("route");
        }
        if self.allow.as_ref().is_some_and(|allow| !allow.contains(request.client.address)) {
            return Err(Rejection::AddressDenied);
        }
        Ok(())
    }
}

/// A secret, and what it signs with on the newest day that was asked for: around midnight two days sign at once, and links live for a week.
#[derive(Debug)]
struct Daily {
    secret: Secret,
    newest: ArcSwapOption<Day>,
}

struct Day {
    date: [u8; 8],
    key: [u8; 32],
}

impl std::fmt::Debug for Day {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Day(..)")
    }
}

impl Daily {
    fn new(secret: Secret) -> Self {
        Self { secret, newest: ArcSwapOption::empty() }
    }

    fn key(&self, date: &str, region: &str, service: &str) -> [u8; 32] {
        let newest = self.newest.load();
        if let Some(day) = newest.as_ref().filter(|day| day.date == *date.as_bytes()) {
            return day.key;
        }
        let key = canonical::signing_key(self.secret.expose(), date, region, service);
        if let Ok(date) = <[u8; 8]>::try_from(date.as_bytes())
            && newest.as_ref().is_none_or(|day| day.date < date)
        {
            self.newest.store(Some(Arc::new(Day { date, key })));
        }
        key
    }
}

/// A signature and its parts, as a request carries them.
#[derive(Debug)]
struct Presented<'r> {
    credential: Cow<'r, str>,
    names: Cow<'r, str>,
    signature: [u8; 32],
    time: Cow<'r, str>,
    /// How long a link lives, in seconds; absent in a header.
    expires: Option<u64>,
    session_token: Option<Cow<'r, str>>,
    content_sha256: Option<Cow<'r, str>>,
}

impl<'r> Presented<'r> {
    /// `Authorization: AWS4-HMAC-SHA256 Credential=..., SignedHeaders=..., Signature=...` and its companions.
    fn from_headers(request: &Request<'r>) -> Result<Self, Rejection> {
        let line = only_line(request, &header::AUTHORIZATION)?.ok_or(MALFORMED)?;
        let fields = line.strip_prefix(ALGORITHM).and_then(|rest| rest.strip_prefix(' ')).ok_or(MALFORMED)?;
        let mut fields = fields.split(',').map(|field| field.trim_matches(' '));
        let mut field = |name: &str| fields.next().and_then(|field| field.strip_prefix(name)).ok_or(MALFORMED);
        let (credential, names, signature) = (field("Credential=")?, field("SignedHeaders=")?, field("Signature=")?);
        if fields.next().is_some() {
            return Err(MALFORMED);
        }
        Ok(Self {
            credential: credential.into(),
            names: names.into(),
            signature: canonical::unhex(signature).ok_or(MALFORMED)?,
            time: only_line(request, &X_AMZ_DATE)?.ok_or(Rejection::CredentialInvalid("date"))?.into(),
            expires: None,
            session_token: only_line(request, &X_AMZ_SECURITY_TOKEN)?.map(Cow::Borrowed),
            content_sha256: only_line(request, &X_AMZ_CONTENT_SHA256)?.map(Cow::Borrowed),
        })
    }

    /// `?X-Amz-Algorithm=...&X-Amz-Credential=...&...`.
    fn from_query(request: &Request<'r>) -> Result<Self, Rejection> {
        let parameter = |name: &'static str| only_parameter(request, name);
        let required = |name: &'static str| parameter(name)?.ok_or(MALFORMED);
        if required("X-Amz-Algorithm")? != ALGORITHM {
            return Err(MALFORMED);
        }
        let expires = required("X-Amz-Expires")?;
        let digits = matches!(expires.len(), 1..=6) && expires.bytes().all(|byte| byte.is_ascii_digit());
        let expires = expires.parse().ok().filter(|expires| digits && (1..=LONGEST_LINK).contains(expires));
        let in_header = only_line(request, &X_AMZ_CONTENT_SHA256)?.map(Cow::Borrowed);
        let in_query = parameter("X-Amz-Content-Sha256")?;
        if (in_header.is_some() && in_query.is_some()) || request.headers.contains_key(&X_AMZ_SECURITY_TOKEN) {
            return Err(Rejection::BadRequest("credential_repeated"));
        }
        Ok(Self {
            credential: required("X-Amz-Credential")?,
            names: required("X-Amz-SignedHeaders")?,
            signature: canonical::unhex(&required(SIGNATURE)?).ok_or(MALFORMED)?,
            time: required("X-Amz-Date")?,
            expires: Some(expires.ok_or(Rejection::CredentialInvalid("expires"))?),
            session_token: parameter("X-Amz-Security-Token")?,
            content_sha256: in_header.or(in_query),
        })
    }
}

/// `access_key_id/date/region/service/aws4_request`.
struct Credential<'p> {
    access_key_id: &'p str,
    date: &'p str,
    region: &'p str,
    service: &'p str,
    /// All but the id.
    scope: &'p str,
}

impl<'p> Credential<'p> {
    fn parse(text: &'p str) -> Option<Self> {
        let (access_key_id, scope) = text.split_once('/')?;
        let mut parts = scope.split('/');
        let credential = Self { access_key_id, date: parts.next()?, region: parts.next()?, service: parts.next()?, scope };
        (parts.next() == Some("aws4_request") && parts.next().is_none()).then_some(credential)
    }
}

const MALFORMED: Rejection = Rejection::CredentialInvalid("malformed");
const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
/// The longest life of a link, in seconds.
const LONGEST_LINK: u64 = 7 * 24 * 60 * 60;
/// Any of these makes a query one that was signed.
const IN_QUERY: [&str; 3] = ["X-Amz-Algorithm", "X-Amz-Credential", SIGNATURE];
const X_AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
const X_AMZ_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
const X_AMZ_CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");

fn refuse<T>(reason: &'static str) -> Result<T, Rejection> {
    Err(Rejection::CredentialInvalid(reason))
}

/// Where a signature and its parts may be, the header first.
fn locations() -> Vec<Location> {
    let authorization = Location::Header { name: header::AUTHORIZATION, scheme: Some(ALGORITHM.into()) };
    let session_token = Location::Header { name: X_AMZ_SECURITY_TOKEN, scheme: None };
    let others = ["X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Security-Token", "X-Amz-Content-Sha256"];
    let parameters = IN_QUERY.into_iter().chain(others).map(|name| Location::Query(name.into()));
    [authorization, session_token].into_iter().chain(parameters).collect()
}

/// The signed headers: sorted, each once and there; the host, the type of the body and all of AWS's own among them.
fn check_names(names: &str, request: &Request<'_>) -> Result<(), Rejection> {
    let mut last = "";
    let mut host = false;
    for name in names.split(';') {
        if name <= last || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return refuse("signed_headers");
        }
        host |= name == "host";
        if name != "host" && !request.headers.contains_key(name) {
            return refuse("signed_headers");
        }
        last = name;
    }
    let must = |name: &HeaderName| *name == header::CONTENT_TYPE || name.as_str().starts_with("x-amz-");
    let covers = |name: &HeaderName| names.split(';').any(|signed| signed == name.as_str());
    if !host || request.headers.keys().any(|name| must(name) && !covers(name)) { refuse("signed_headers") } else { Ok(()) }
}

/// `20150830T123600Z`, in seconds since the Unix epoch.
fn seconds(text: &str) -> Option<u64> {
    let digits = |from: usize, to: usize| {
        text.get(from..to)?.bytes().try_fold(0, |n: u16, b| Some(n * 10 + u16::from(b.checked_sub(b'0').filter(|d| *d < 10)?)))
    };
    let byte = |at: usize| text.as_bytes().get(at).copied();
    let small = |from, to| u8::try_from(digits(from, to)?).ok();
    if text.len() != 16 || byte(8) != Some(b'T') || byte(15) != Some(b'Z') {
        return None;
    }
    let date = Date::from_calendar_date(digits(0, 4)?.into(), Month::try_from(small(4, 6)?).ok()?, small(6, 8)?).ok()?;
    let time = Time::from_hms(small(9, 11)?, small(11, 13)?, small(13, 15)?).ok()?;
    u64::try_from(PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp()).ok()
}

/// The one line of a header, in visible ASCII; more than one could be read in two ways.
fn only_line<'r>(request: &Request<'r>, name: &HeaderName) -> Result<Option<&'r str>, Rejection> {
    let mut lines = request.headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Ok(None),
        (Some(line), None) => line.to_str().map(Some).map_err(|_| MALFORMED),
        (Some(_), Some(_)) => Err(Rejection::BadRequest("credential_repeated")),
    }
}

/// The one parameter of this name, decoded.
fn only_parameter<'r>(request: &Request<'r>, name: &str) -> Result<Option<Cow<'r, str>>, Rejection> {
    let mut pairs = request.query.into_iter().flat_map(|query| query.split('&')).filter(|pair| name_of(pair) == name);
    match (pairs.next(), pairs.next()) {
        (None, _) => Ok(None),
        (Some(pair), None) => {
            let value = pair.split_once('=').map_or("", |(_, value)| value);
            percent_decode_str(value).decode_utf8().map(Some).map_err(|_| MALFORMED)
        }
        (Some(_), Some(_)) => Err(Rejection::BadRequest("credential_repeated")),
    }
}

fn name_of(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

#[cfg(test)]
mod tests;
