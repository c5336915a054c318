//! Opaque tokens (RFC 7662): their issuer is asked once, and its answer is judged with every request.
//!
//! What is remembered are facts, never a verdict: issuer, audience and times are checked on each hit. While the issuer is away the
//! request ends as the operator said, and nothing that was said before ever counts for longer than the token itself.

mod endpoint;

use std::sync::Arc;
use std::time::Duration;

use openssl::sha::{Sha256, sha256};

pub use endpoint::{Said, read};

use self::endpoint::Endpoint;
use super::credential::{self, Found};
use super::dpop::{self, Proofs};
use super::oauth_client::{self, Ask};
use super::{Challenge, Proof, Verdict, confirmation};
use crate::config::{self, Location, OnFailure, Problem};
use crate::jose::claims::Registered;
use crate::jose::jws::{MAX_TOKEN, fingerprint};
use crate::live::answers::{Away, Question, Terms};
use crate::live::introspected::{Introspected, TokenAnswers};
use crate::live::oauth_endpoint::EndpointId;
use crate::live::{LiveState, breaker};
use crate::request::{Identity, Method, Now, Rejection, Request};

/// How far another clock may be ahead: the issuer has just said that the token is active, so only a gross `nbf` contradicts it. `exp` gets no
/// such grace. The clock of who makes a proof may differ either way.
const AHEAD: Duration = Duration::from_secs(30);

/// Accepts the tokens that one endpoint calls active.
#[derive(Debug)]
pub struct Introspection {
    name: Arc<str>,
    from: Vec<Location>,
    rules: Rules,
    on_failure: OnFailure,
    endpoint: Arc<Endpoint>,
    answers: Arc<TokenAnswers>,
    terms: Terms,
    entries: usize,
    /// What beside the token decides an answer, hashed.
    asker: [u8; 32],
    /// Where the token is, and where its proof.
    locations: Vec<Location>,
    proofs: Proofs,
}

/// What is judged with every request, asked or remembered.
#[derive(Debug)]
struct Rules {
    issuer: Option<Arc<str>>,
    audiences: Vec<Arc<str>>,
}

impl Introspection {
    /// Builds all that a request will need; everything that stands in the way is a problem.
    pub fn new(name: Arc<str>, config: &config::Introspection, live: &LiveState) -> Result<Self, Vec<Problem>> {
        let ask = oauth_client::way_to(&config.url, config.ca.as_ref());
        ask.and_then(|ask| Self::asking(ask, name, config, live)).map_err(|problem| vec![problem])
    }

    pub(super) fn asking(ask: Arc<dyn Ask>, name: Arc<str>, config: &config::Introspection, live: &LiveState) -> Result<Self, Problem> {
        let endpoint = Endpoint::new(&name, config, ask)?;
        let id = EndpointId {
            name: Arc::clone(&name),
            url: config.url.value.clone(),
            client: config.client.id.clone(),
            ca: config.ca.as_ref().map(|file| sha256(&file.bytes)),
        };
        let entries = config.cache.entries as usize;
        let party = || TokenAnswers::new(format!("introspection {name} at {}", id.url).into(), entries);
        Ok(Self {
            answers: live.introspected.find_or_create(&id, party),
            // Debug escapes what it quotes, so no two askers write the same text.
            asker: sha256(format!("{id:?} {:?}", config.claims).as_bytes()),
            from: config.from.clone(),
            locations: dpop::locations(&config.from),
            proofs: Proofs::new(&name, &config.dpop, AHEAD, live),
            rules: Rules { issuer: config.issuer.clone(), audiences: config.audiences.clone() },
            on_failure: config.on_failure,
            endpoint: Arc::new(endpoint),
            terms: Terms {
                timeout: config.timeout,
                breaker: breaker::Terms { failures: config.breaker.failures, open: config.breaker.open },
            },
            entries,
            name,
        })
    }

    /// Sets the cache to the size of this configuration; called once, when it takes effect.
    pub fn activate(&self) {
        self.answers.resize(self.entries);
    }

    /// Judges the token of a request. Whatever stands where a token may stand is ours: nothing tells an opaque token from another.
    pub async fn authenticate(&self, request: &Request<'_>, now: Now) -> Verdict {
        let token = match credential::find(&self.from, request) {
            Found::Absent => return Verdict::Pass,
            Found::One(token) if token.len() > MAX_TOKEN => return Verdict::Reject(Rejection::CredentialInvalid("too_large")),
            Found::One(token) => token,
            Found::Ambiguous(reason) => return Verdict::Reject(Rejection::BadRequest(reason)),
            Found::Malformed(reason) => return Verdict::Reject(Rejection::CredentialInvalid(reason)),
        };
        let question = self.question(&token);
        let judged = match self.answers.fresh(&question, now) {
            Some(answer) => self.judge(&answer.value, &token, request, now),
            // Boxed, so that the many requests whose answer is known do not carry the room that asking takes.
            None => Box::pin(self.ask(question, &token, request, now)).await,
        };
        match judged {
            Ok(proof) => Verdict::Accept(proof),
            Err(rejection) => Verdict::Reject(rejection),
        }
    }

    /// The name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where the token may be.
    pub fn locations(&self) -> &[Location] {
        &self.locations
    }

    /// What a caller is told to present.
    pub fn challenges(&self) -> Vec<Challenge> {
        self.proofs.challenges(&self.from)
    }

    /// The whole token, the endpoint, the client, and how an answer is read.
    fn question(&self, token: &str) -> Question {
        let mut hash = Sha256::new();
        hash.update(&self.asker);
        hash.update(token.as_bytes());
        hash.finish()
    }

    async fn ask(&self, question: Question, token: &str, request: &Request<'_>, now: Now) -> Result<Proof, Rejection> {
        let call = || Arc::clone(&self.endpoint).introspect(token.to_owned(), now);
        match self.answers.ask(question, self.terms, now, call).await {
            Ok(answer) => self.judge(&answer.value, token, request, now),
            Err(away) => self.judge_unanswered((&question, token), away, request, now),
        }
    }

    fn judge(&self, said: &Introspected, token: &str, request: &Request<'_>, now: Now) -> Result<Proof, Rejection> {
        match said {
            Introspected::Active { registered, identity } => {
                self.rules.check(registered, now)?;
                let nonce = confirmation::check((token, registered), &self.proofs, request, now)?;
                Ok(Proof { nonce, ..Arc::clone(identity).into() })
            }
            Introspected::Inactive(reason) => Err(Rejection::CredentialInvalid(reason)),
        }
    }

    /// What becomes of a request while the endpoint is away.
    fn judge_unanswered(
        &self,
        (question, token): (&Question, &str),
        away: Away,
        request: &Request<'_>,
        now: Now,
    ) -> Result<Proof, Rejection> {
        let unavailable = Rejection::DependencyUnavailable { dependency: "introspection", retry_after: away.retry_after };
        let last = self.answers.last(question);
        match (self.on_failure, last) {
            (OnFailure::AllowCached(beyond), Some(answer)) if answer.good && now.monotonic < answer.fresh_until + beyond => {
                let proof = self.judge(&answer.value, token, request, now)?;
                self.answers.excuse();
                Ok(proof)
            }
            // Whose key a bound token is of is not known: no proof of it can be good.
            (OnFailure::Allow, last) if !dpop::is_claimed(request) => {
                // What was heard against a token still stands: that it was not active, when it ends, or that it needs a proof.
                if let Some(answer) = last {
                    self.judge(&answer.value, token, request, now)?;
                }
                self.answers.excuse();
                Ok(Arc::new(Identity::new(Method::Introspection, Arc::clone(&self.name), fingerprint(token))).into())
            }
            _ => Err(unavailable),
        }
    }
}

impl Rules {
    fn check(&self, said: &Registered, now: Now) -> Result<(), Rejection> {
        let refuse = |reason| Err(Rejection::CredentialInvalid(reason));
        if self.issuer.is_some() && said.issuer.as_deref() != self.issuer.as_deref() {
            return refuse("issuer");
        }
        let named = |audience: &str| self.audiences.iter().any(|ours| **ours == *audience);
        if !self.audiences.is_empty() && !said.audiences.iter().any(|audience| named(audience)) {
            return refuse("audience");
        }
        if said.not_before.is_some_and(|not_before| not_before > now.unix + AHEAD) {
            return refuse("not_before");
        }
        if said.expires.is_some_and(|expires| now.unix >= expires) {
            return Err(Rejection::CredentialExpired);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
