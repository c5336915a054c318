//! External authorizers: another service is shown the request and decides, by a status (`forward_auth`) or in JSON (`lambda`).
//!
//! What it is shown is built from scratch, so a caller can neither add to it nor take anything away. A decision is remembered by all that
//! it was made on, unless the operator chose the parts. Whatever is not an answer is the authorizer's absence, and `on_failure` says
//! what becomes of the request then; an answer that is not understood refuses, whatever `on_failure` says.

pub mod forward_auth;
pub mod lambda;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, Uri, header};
use openssl::sha::{Sha256, sha256};
use serde_json::{Map, Value};
use smol_str::SmolStr;

use super::credential::{self, Found};
use super::{Challenge, Proof, Verdict};
use crate::config::{self, DecisionKey, ExternalResponse, Location, OnFailure, Problem, WhenAbsent};
use crate::live::LiveState;
use crate::live::answers::{Answer, Failure, Question, Terms};
use crate::live::breaker;
use crate::live::decisions::{AuthorizerId, Decision, Decisions, Grant};
use crate::net::http::{Client, Limits, Tls, retry_after};
use crate::request::{Identity, Method, Now, Rejection, Request};

/// The longest answer that is read, in bytes: a page that asks somebody to log in is shorter.
const MAX_ANSWER: usize = 64 * 1024;

/// The longest refusal that is remembered, in bytes.
const MAX_REMEMBERED: usize = 4 * 1024;

/// The longest value that an answer may give an identity, in bytes.
const MAX_VALUE: usize = 4 * 1024;

/// When it is worth trying again after an answer that was not understood.
const SOON: Duration = Duration::from_secs(1);

/// Asks another service.
#[derive(Debug)]
pub struct External {
    reader: Arc<Reader>,
    url: Uri,
    client: Client,
    terms: Terms,
    from: Vec<Location>,
    when_missing: WhenAbsent,
    /// The caller's headers that the authorizer is shown.
    shown: Box<[HeaderName]>,
    body: Option<usize>,
    memory: Memory,
    on_failure: OnFailure,
    decisions: Arc<Decisions>,
    entries: usize,
}

/// What makes two questions one.
#[derive(Debug)]
enum Memory {
    /// Nothing: every request is asked about.
    Nothing,
    /// All that the authorizer is shown.
    Everything,
    /// These parts.
    By(Box<[DecisionKey]>),
}

/// Turns answers into decisions.
#[derive(Debug)]
struct Reader {
    name: Arc<str>,
    protocol: Protocol,
    claims: config::ExternalClaims,
    /// How long an allowance and a refusal are repeated.
    ttl: Duration,
    deny_ttl: Duration,
    /// What tells its decisions from those that were read in another way.
    identity: [u8; 32],
}

#[derive(Debug)]
enum Protocol {
    ForwardAuth {
        copy: Box<[HeaderName]>,
        /// Headers that say who calls.
        named: Box<[HeaderName]>,
    },
    Lambda {
        arn: Arc<str>,
    },
}

impl External {
    /// Builds all that a request will need; everything that stands in the way is a problem.
    pub fn new(name: Arc<str>, config: &config::External, live: &LiveState) -> Result<Self, Vec<Problem>> {
        let ca = config.ca.as_ref();
        let client = Client::new(&Tls { ca: ca.map(|file| file.bytes.to_vec()), ..Tls::default() });
        let client = client.map_err(|message| ca.map(|file| Problem::at(&file.place, message)).into_iter().collect::<Vec<_>>())?;
        let url = config.url.parse().map_err(|_| Vec::new())?;
        let (protocol, claims) = match config.response {
            ExternalResponse::ForwardAuth => {
                let claims = in_lower_case(&config.claims);
                let named = claim_names(&claims).filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok());
                let named = named.collect();
                (Protocol::ForwardAuth { copy: config.copy.clone().into(), named }, claims)
            }
            ExternalResponse::Lambda => (Protocol::Lambda { arn: config.arn.clone() }, config.claims.clone()),
        };
        let headers = config.from.iter().filter_map(|location| match location {
            Location::Header { name, .. } => Some(name.clone()),
            Location::Query(_) | Location::Cookie(_) => None,
        });
        let mut shown: Vec<HeaderName> = [header::AUTHORIZATION, header::COOKIE].into_iter().chain(headers).collect();
        shown.extend(config.send.iter().chain(config.body.map(|_| &header::CONTENT_TYPE)).cloned());
        shown.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        shown.dedup();
        let id = AuthorizerId { name: name.clone(), url: config.url.clone(), ca: ca.map(|file| sha256(&file.bytes)) };
        let cache = config.cache.as_ref();
        let entries = cache.map_or(1, |cache| usize::try_from(cache.entries).unwrap_or(usize::MAX));
        Ok(Self {
            reader: Arc::new(Reader {
                // Debug escapes what it quotes, so no two readers write the same text.
                identity: sha256(format!("{protocol:?} {claims:?} {shown:?} {:?} {:?}", config.from, config.body).as_bytes()),
                name,
                protocol,
                claims,
                ttl: cache.map_or(Duration::ZERO, |cache| cache.ttl),
                deny_ttl: cache.map_or(Duration::ZERO, |cache| cache.deny_ttl),
            }),
            url,
            client,
            terms: Terms {
                timeout: config.timeout,
                breaker: breaker::Terms { failures: config.breaker.failures, open: config.breaker.open },
            },
            from: config.from.clone(),
            when_missing: config.when_missing,
            shown: shown.into(),
            body: config.body.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            memory: match cache {
                None => Memory::Nothing,
                Some(cache) if cache.by.is_empty() => Memory::Everything,
                Some(cache) => Memory::By(cache.by.clone().into()),
            },
            on_failure: config.on_failure,
            decisions: live.decisions.find_or_create(&id, || Decisions::new(id.name.clone(), entries)),
            entries,
        })
    }

    /// Asks about a request, or remembers what was answered.
    pub async fn authenticate(&self, request: &Request<'_>, now: Now) -> Verdict {
        match credential::find(&self.from, request) {
            Found::Ambiguous(reason) => return Verdict::Reject(Rejection::BadRequest(reason)),
            Found::Absent if self.when_missing == WhenAbsent::Pass => return Verdict::Pass,
            // It is the authorizer that says what is well formed.
            Found::Absent | Found::One(_) | Found::Malformed(_) => {}
        }
        match self.judge(request, now).await {
            Ok(Grant { identity, headers }) => Verdict::Accept(Proof { headers, ..Proof::from(identity) }),
            Err(rejection) => Verdict::Reject(rejection),
        }
    }

    /// The name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.reader.name
    }

    /// Where the credential may be.
    pub fn locations(&self) -> &[Location] {
        &self.from
    }

    /// What a caller is told to present, where the authorizer does not say so itself.
    pub fn challenge(&self) -> Challenge {
        match self.from.iter().any(|location| location.has_scheme("Bearer")) {
            true => Challenge::token("Bearer"),
            false => Challenge::new("External"),
        }
    }

    /// Keeps as many decisions as this configuration says.
    pub fn activate(&self) {
        self.decisions.resize(self.entries);
    }

    /// How much of a body it must be shown.
    pub fn body_limit(&self) -> Option<usize> {
        self.body
    }

    async fn judge(&self, request: &Request<'_>, now: Now) -> Result<Grant, Rejection> {
        if let Some(limit) = self.body
            && request.body.ok_or(Rejection::Internal("body_not_read"))?.len() > limit
        {
            return Err(Rejection::BodyTooLarge);
        }
        let resource = match &self.reader.protocol {
            Protocol::ForwardAuth { .. } => String::new(),
            Protocol::Lambda { arn } => lambda::resource(arn, request),
        };
        let (question, call) = match &self.memory {
            Memory::Nothing => (nobody_elses(), None),
            Memory::By(keys) => (self.question(keys, request), None),
            Memory::Everything => {
                let call = self.call(request, &resource)?;
                (everything(&self.reader.identity, &call), Some(call))
            }
        };
        if let Some(answer) = self.decisions.fresh(&question, now) {
            return answer.value.of(&resource).cloned();
        }
        let call = call.map_or_else(|| self.call(request, &resource), Ok)?;
        // Boxed: most requests do not get here, and need not carry its room.
        Box::pin(self.decide(question, &call, self.credential(request), &resource, now)).await
    }

    async fn decide(
        &self,
        mut question: Question,
        call: &http::Request<Bytes>,
        credential: [u8; 32],
        resource: &str,
        now: Now,
    ) -> Result<Grant, Rejection> {
        loop {
            let first = AtomicBool::new(false);
            let ask = || {
                first.store(true, Ordering::Relaxed);
                let (client, call, reader, resource) = (self.client.clone(), call.clone(), self.reader.clone(), resource.to_owned());
                let limits = Limits { deadline: self.terms.timeout, body: MAX_ANSWER };
                async move {
                    let answer = client.send(call, limits).await.map_err(|error| error.to_string())?;
                    reader.read(answer, credential, &resource, now)
                }
            };
            match self.decisions.ask(question, self.terms, now, ask).await {
                // It was made for another who asked the same at the same time: the login that was begun for one is nobody else's to end.
                Ok(answer) if matches!(answer.value, Decision::RefuseOnce(_)) && !first.into_inner() => question = nobody_elses(),
                Ok(answer) => return answer.value.of(resource).cloned(),
                Err(away) => return self.without(&question, credential, resource, now).ok_or(unavailable("external", away.retry_after)),
            }
        }
    }

    /// Whom the operator lets in while there is no answer.
    fn without(&self, question: &Question, credential: [u8; 32], resource: &str, now: Now) -> Option<Grant> {
        let grant = match self.on_failure {
            OnFailure::Deny => None,
            OnFailure::AllowCached(window) => {
                let last = self.decisions.last(question).filter(|last| now.monotonic < last.fresh_until + window);
                last.and_then(|last| last.value.of(resource).ok().cloned())
            }
            OnFailure::Allow => Some(self.reader.grant(Identity::new(Method::External, self.reader.name.clone(), credential), None)),
        };
        if grant.is_some() {
            self.decisions.excuse();
        }
        grant
    }

    /// The request to the authorizer.
    fn call(&self, request: &Request<'_>, resource: &str) -> Result<http::Request<Bytes>, Rejection> {
        let mut call = http::Request::new(Bytes::new());
        *call.uri_mut() = self.url.clone();
        match &self.reader.protocol {
            Protocol::ForwardAuth { .. } => {
                *call.headers_mut() = forward_auth::headers(request, &self.shown)?;
                if self.body.is_some() {
                    *call.body_mut() = Bytes::copy_from_slice(request.body.unwrap_or_default());
                }
            }
            Protocol::Lambda { .. } => {
                let request = Request { body: request.body.filter(|_| self.body.is_some()), ..*request };
                let credentials = credential::values(&self.from, &request);
                *call.method_mut() = http::Method::POST;
                *call.body_mut() = lambda::event(&request, &self.shown, &credentials, resource)?.into();
                call.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
        }
        Ok(call)
    }

    /// What stands for a request whose parts the operator chose.
    fn question(&self, keys: &[DecisionKey], request: &Request<'_>) -> Question {
        let mut parts = Parts::new(&self.reader.identity);
        for key in keys {
            match key {
                // All that the authorizer may know a caller by, or one caller's decision would be another's.
                DecisionKey::Credential => {
                    parts.list(credential::values(&self.from, request));
                    parts.list(lines(request, &header::AUTHORIZATION));
                    parts.list(lines(request, &header::COOKIE));
                }
                DecisionKey::Route => parts.add(request.route.as_bytes()),
                DecisionKey::Method => parts.add(request.method.as_str().as_bytes()),
                DecisionKey::Host => parts.add(request.authority().as_bytes()),
                DecisionKey::Path => parts.add(request.path.as_bytes()),
                DecisionKey::Query => parts.list(request.query.iter().map(|query| query.as_bytes()).collect()),
                DecisionKey::ClientIp => parts.add(request.client.address.to_canonical().to_string().as_bytes()),
                DecisionKey::Body => parts.add(request.body.unwrap_or_default()),
                DecisionKey::Header(name) => parts.list(lines(request, name)),
            }
        }
        parts.0.finish()
    }

    /// What stands for the credential in limits. A scheme is read in any case, so its case makes no other credential.
    fn credential(&self, request: &Request<'_>) -> [u8; 32] {
        let mut parts = Parts::new(&[]);
        for value in credential::values(&self.from, request) {
            let space = value.iter().position(|byte| *byte == b' ').unwrap_or(0);
            let (scheme, rest) = value.split_at_checked(space).unwrap_or((b"", value));
            parts.add(&scheme.to_ascii_lowercase());
            parts.add(rest.trim_ascii());
        }
        parts.0.finish()
    }
}

impl Reader {
    /// The decision that an answer is.
    ///
    /// # Errors
    /// It is none: the authorizer is not well.
    fn read(&self, answer: Response<Bytes>, credential: [u8; 32], resource: &str, asked: Now) -> Result<Answer<Decision>, Failure> {
        let status = answer.status();
        let retry_after = retry_after(&answer, asked.unix);
        let failed = || Failure { why: format!("answered {status}"), retry_after };
        let size = answer.body().len() + answer.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
        let decision = match &self.protocol {
            Protocol::ForwardAuth { copy, named } if status.is_success() => self
                .identity(claims(copy, named, &answer), None, credential)
                .map(|identity| Decision::Allow(self.grant(identity, Some(&answer)))),
            Protocol::ForwardAuth { .. } => {
                let relayed = forward_auth::refusal(answer).ok_or_else(failed)?;
                // What sets a cookie or leads somewhere was made for this caller.
                let once = status.is_redirection() || relayed.headers.contains_key(header::SET_COOKIE) || size > MAX_REMEMBERED;
                let rejection = Rejection::Relayed(Arc::new(relayed));
                Some(if once { Decision::RefuseOnce(rejection) } else { Decision::Refuse(rejection) })
            }
            Protocol::Lambda { .. } if status == StatusCode::OK => self.lambda(answer.body(), credential),
            Protocol::Lambda { .. } => return Err(failed()),
        };
        let Some(decision) = decision else {
            let value = Decision::Refuse(unavailable("external_answer", SOON));
            return Ok(Answer { value, good: false, fresh_until: Duration::ZERO, size: 0 });
        };
        let good = decision.of(resource).is_ok();
        let fresh_until = match decision {
            Decision::RefuseOnce(_) => Duration::ZERO,
            _ => asked.monotonic + if good { self.ttl } else { self.deny_ttl },
        };
        Ok(Answer { value: decision, good, fresh_until, size: 512 + size })
    }

    fn lambda(&self, body: &[u8], credential: [u8; 32]) -> Option<Decision> {
        Some(match lambda::Answer::parse(body)? {
            lambda::Answer::Simple { authorized: false, .. } => Decision::Refuse(Rejection::Forbidden("external")),
            lambda::Answer::Simple { authorized: true, context } => {
                Decision::Allow(self.grant(self.identity(Some(context), None, credential)?, None))
            }
            lambda::Answer::Policy { principal, policy, context } => {
                Decision::Policy(self.grant(self.identity(Some(context), Some(principal), credential)?, None), policy)
            }
            lambda::Answer::Unauthorized => Decision::Refuse(Rejection::CredentialInvalid("external")),
        })
    }

    /// What a caller is granted; without an answer, the headers that it would have set are removed.
    fn grant(&self, identity: Identity, answer: Option<&Response<Bytes>>) -> Grant {
        let headers = match &self.protocol {
            Protocol::ForwardAuth { copy, .. } if !copy.is_empty() => {
                let copied = |name: &HeaderName| answer.and_then(|answer| forward_auth::line(answer.headers(), name));
                Some(copy.iter().map(|name| (name.clone(), copied(name))).collect())
            }
            _ => None,
        };
        Grant { identity: Arc::new(identity), headers }
    }

    /// Who calls, by these claims; none when one of them cannot be a word of an identity.
    fn identity(&self, claims: Option<Map<String, Value>>, principal: Option<SmolStr>, credential: [u8; 32]) -> Option<Identity> {
        let mut identity = Identity { claims: claims?, ..Identity::new(Method::External, self.name.clone(), credential) };
        if principal.as_ref().is_some_and(|principal| word(principal).is_none()) {
            return None;
        }
        let names = &self.claims;
        let one = |name: &Option<Arc<str>>| match name.as_ref().and_then(|name| identity.claim(name)) {
            None | Some(Value::Null) => Some(None),
            Some(Value::String(text)) if text.is_empty() => Some(None),
            Some(Value::String(text)) => word(text).map(Some),
            Some(Value::Number(number)) => word(&number.to_string()).map(Some),
            Some(_) => None,
        };
        let (subject, consumer, client, plan) = (one(&names.subject)?, one(&names.consumer)?, one(&names.client)?, one(&names.plan)?);
        let (scopes, roles) = (words(&identity, &names.scopes, ' ')?, words(&identity, &names.roles, ',')?);
        identity.subject = if names.subject.is_some() { subject } else { principal };
        (identity.consumer, identity.client, identity.plan) = (consumer, client, plan);
        (identity.scopes, identity.roles) = (scopes, roles);
        Some(identity)
    }
}

/// Headers of an answer as claims; none when one that says who calls is no text. Others that are none are only copied.
fn claims(copied: &[HeaderName], named: &[HeaderName], answer: &Response<Bytes>) -> Option<Map<String, Value>> {
    let mut claims = Map::new();
    for name in copied.iter().chain(named) {
        let Some(line) = forward_auth::line(answer.headers(), name) else { continue };
        match std::str::from_utf8(line.as_bytes()) {
            Ok(text) => {
                claims.insert(name.as_str().to_owned(), text.into());
            }
            Err(_) if named.contains(name) => return None,
            Err(_) => {}
        }
    }
    Some(claims)
}

/// The words of all these claims, each once: a text is split, a list gives its texts.
fn words(identity: &Identity, names: &[Arc<str>], separator: char) -> Option<Arc<[Arc<str>]>> {
    let mut words: Vec<Arc<str>> = Vec::new();
    for claim in names.iter().filter_map(|name| identity.claim(name)) {
        let found: Vec<&str> = match claim {
            Value::String(text) => text.split(separator).map(str::trim).collect(),
            Value::Array(list) => list.iter().map(Value::as_str).collect::<Option<_>>()?,
            Value::Null => continue,
            _ => return None,
        };
        for found in found.into_iter().filter(|found| !found.is_empty()) {
            // One scope with a space in it would be two to the upstream.
            if separator == ' ' && found.contains(' ') {
                return None;
            }
            if !words.iter().any(|known| **known == *found) {
                words.push(word(found)?.into());
            }
        }
    }
    Some(words.into())
}

/// A value that can stand in a header line and a log line.
fn word(text: &str) -> Option<SmolStr> {
    (text.len() <= MAX_VALUE && !text.bytes().any(|byte| byte < 0x20 || byte == 0x7f)).then(|| text.into())
}

fn unavailable(dependency: &'static str, retry_after: Duration) -> Rejection {
    Rejection::DependencyUnavailable { dependency, retry_after }
}

/// Names of headers are compared in lower case.
fn in_lower_case(claims: &config::ExternalClaims) -> config::ExternalClaims {
    let lower = |name: &Arc<str>| -> Arc<str> { name.to_ascii_lowercase().into() };
    let one = |name: &Option<Arc<str>>| name.as_ref().map(lower);
    config::ExternalClaims {
        subject: one(&claims.subject),
        consumer: one(&claims.consumer),
        client: one(&claims.client),
        scopes: claims.scopes.iter().map(lower).collect(),
        roles: claims.roles.iter().map(lower).collect(),
        plan: one(&claims.plan),
    }
}

fn claim_names(claims: &config::ExternalClaims) -> impl Iterator<Item = &Arc<str>> {
    let single = [&claims.subject, &claims.consumer, &claims.client, &claims.plan];
    single.into_iter().flatten().chain(&claims.scopes).chain(&claims.roles)
}

fn lines<'r>(request: &Request<'r>, name: &HeaderName) -> Vec<&'r [u8]> {
    request.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect()
}

/// What stands for a request by all that the authorizer is shown of it.
fn everything(reader: &[u8; 32], call: &http::Request<Bytes>) -> Question {
    let mut parts = Parts::new(reader);
    for (name, value) in call.headers() {
        parts.add(name.as_str().as_bytes());
        parts.add(value.as_bytes());
    }
    parts.add(call.body());
    parts.0.finish()
}

/// A question that nobody else asks, and that is never asked again.
fn nobody_elses() -> Question {
    // Of the process, as the authorizers of two snapshots ask the same party for a while.
    static ASKED: AtomicU64 = AtomicU64::new(0);
    sha256(&ASKED.fetch_add(1, Ordering::Relaxed).to_be_bytes())
}

/// A hash over parts that cannot be taken for others: each is preceded by its length, each list by how many there are.
struct Parts(Sha256);

impl Parts {
    fn new(first: &[u8]) -> Self {
        let mut parts = Self(Sha256::new());
        parts.add(first);
        parts
    }

    fn add(&mut self, part: &[u8]) {
        self.0.update(&part.len().to_be_bytes());
        self.0.update(part);
    }

    fn list(&mut self, list: Vec<&[u8]>) {
        self.0.update(&list.len().to_be_bytes());
        list.into_iter().for_each(|part| self.add(part));
    }
}

#[cfg(test)]
mod tests;
