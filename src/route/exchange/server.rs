//! An outside server that issues tokens for upstreams in exchange for those of callers (RFC 8693), asked once per token and target.
//!
//! The caller's token was judged before, with every request: that it was revoked or is over ends what is remembered of it. While the server
//! is away nothing but what it issued is good, and nobody is let through without a token.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use openssl::sha::{Sha256, sha256};
use serde_json::{Map, Value};

use super::answer::{Said, read};
use crate::authenticators::credential;
use crate::authenticators::oauth_client::{self, Ask, OauthEndpoint};
use crate::config::{self, At, Problem, TokenType};
use crate::jose::json;
use crate::jose::jws::{Jws, MAX_TOKEN};
use crate::live::answers::{Answer, Failure, Question, Terms};
use crate::live::exchanged::ExchangedTokens;
use crate::live::oauth_endpoint::EndpointId;
use crate::live::{LiveState, breaker};
use crate::net::http::retry_after;
use crate::request::{Identity, Now, Rejection};
use crate::secret::Secret;

/// A token is given out until so long before its end: it has to reach the upstream, and clocks differ.
const MARGIN: Duration = Duration::from_secs(10);

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// A server, and what it said.
#[derive(Debug)]
pub struct TokenServer {
    id: EndpointId,
    endpoint: OauthEndpoint,
    subject: TokenType,
    actor: Option<Actor>,
    requested: Option<TokenType>,
    ttl: Duration,
    negative_ttl: Duration,
    entries: usize,
    terms: Terms,
    answers: Arc<ExchangedTokens>,
}

/// Who acts for the callers (RFC 8693 section 1.1).
#[derive(Debug)]
struct Actor {
    token: Secret,
    kind: TokenType,
    /// When it is over, since the epoch; absent where it does not say.
    ends: Option<Duration>,
}

/// What the tokens of a route are asked for.
#[derive(Debug)]
pub struct Target {
    server: Arc<TokenServer>,
    /// The parameters of the request beside the caller's token.
    parameters: Arc<[(&'static str, Arc<str>)]>,
    /// What beside the token decides an answer, hashed.
    asker: [u8; 32],
}

impl TokenServer {
    /// Builds all that a request will need; everything that stands in the way is a problem.
    pub fn new(name: &Arc<str>, config: &config::Exchange, live: &LiveState) -> Result<Self, Vec<Problem>> {
        let ask = oauth_client::way_to(&config.url, config.ca.as_ref());
        ask.and_then(|ask| Self::asking(ask, name, config, live)).map_err(|problem| vec![problem])
    }

    fn asking(ask: Arc<dyn Ask>, name: &Arc<str>, config: &config::Exchange, live: &LiveState) -> Result<Self, Problem> {
        let id = EndpointId {
            name: Arc::clone(name),
            url: config.url.value.clone(),
            client: config.client.id.clone(),
            ca: config.ca.as_ref().map(|file| sha256(&file.bytes)),
        };
        let entries = config.cache.entries as usize;
        let party = || ExchangedTokens::new(format!("exchange {name} at {}", id.url).into(), entries);
        Ok(Self {
            answers: live.exchanged.find_or_create(&id, party),
            endpoint: OauthEndpoint::new(ask, &config.url, (&config.client, &config.url.value), config.timeout)?,
            subject: config.subject_token_type,
            actor: config.actor_token.as_ref().map(|token| Actor::new(token, config.actor_token_type)).transpose()?,
            requested: config.requested_token_type,
            ttl: config.cache.ttl,
            negative_ttl: config.cache.negative_ttl,
            entries,
            terms: Terms {
                timeout: config.timeout,
                breaker: breaker::Terms { failures: config.breaker.failures, open: config.breaker.open },
            },
            id,
        })
    }

    /// Sets the cache to the size of this configuration; called once, when it takes effect.
    pub fn activate(&self) {
        self.answers.resize(self.entries);
    }

    /// Asks for a token in exchange for `token`, whose own end is `ends`. The error says nothing of either.
    async fn exchange(
        &self,
        token: &str,
        ends: Option<Duration>,
        parameters: &[(&'static str, Arc<str>)],
        now: Now,
    ) -> Result<Answer<Result<HeaderValue, Rejection>>, Failure> {
        let mut given = vec![("grant_type", GRANT), ("subject_token", token)];
        if let Some(actor) = &self.actor {
            given.extend([("actor_token", actor.token(now)?), ("actor_token_type", actor.kind.urn())]);
        }
        given.extend(parameters.iter().map(|(name, value)| (*name, &**value)));
        let answer = self.endpoint.post(&given, now).await?;
        let said = read(&answer, self.requested).map_err(|why| Failure { why, retry_after: retry_after(&answer, now.unix) })?;
        let (authorization, expires_in) = match said {
            Said::Issued { authorization, expires_in } => (authorization, expires_in),
            Said::Refused(rejection) => {
                let fresh_until = now.monotonic + self.negative_ttl;
                return Ok(Answer { value: Err(rejection), good: false, fresh_until, size: 0 });
            }
        };
        // Under another name it would be the caller's own that the upstream gets.
        if authorization.as_bytes().strip_prefix(b"Bearer ") == Some(token.as_bytes()) {
            return Err("the caller's own token came back".into());
        }
        let left = [expires_in.map(|left| left.saturating_sub(MARGIN)), ends.map(|ends| ends.saturating_sub(now.unix))];
        Ok(Answer {
            good: true,
            // Counted from the question on: the token was made after it.
            fresh_until: now.monotonic + left.into_iter().flatten().fold(self.ttl, Duration::min),
            size: 256 + authorization.len(),
            value: Ok(authorization),
        })
    }
}

impl Actor {
    fn new(token: &At<Secret>, kind: TokenType) -> Result<Self, Problem> {
        let bytes = token.value.expose();
        if !credential::is_token68(bytes) || bytes.len() > MAX_TOKEN {
            return Err(Problem::at(
                &token.place,
                format!("this is no token, which has up to {MAX_TOKEN} bytes: letters, digits and `-._~+/=`"),
            ));
        }
        Ok(Self { ends: std::str::from_utf8(bytes).ok().and_then(says_its_end), token: token.value.clone(), kind })
    }

    /// The token, unless it is over: a server would find fault with it as if the caller's were bad (RFC 8693 section 2.2.2).
    fn token(&self, now: Now) -> Result<&str, String> {
        if self.ends.is_some_and(|ends| ends <= now.unix) {
            return Err("the actor_token is over".to_owned());
        }
        std::str::from_utf8(self.token.expose()).map_err(|error| error.to_string())
    }
}

/// The `exp` of a JWT that is ours to show and not to judge; none of another token.
fn says_its_end(token: &str) -> Option<Duration> {
    end(&json::object(&Jws::parse(token).ok()?.payload().ok()?)?)
}

impl Target {
    /// Tokens of this server for what a policy names, or for the upstream of this name.
    pub fn new(server: Arc<TokenServer>, forward: &config::Forward, upstream: &Arc<str>) -> Self {
        let audience = forward.audience.clone().or_else(|| forward.resource.is_none().then(|| Arc::clone(upstream)));
        let scope = (!forward.scopes.is_empty()).then(|| Arc::from(forward.scopes.join(" ")));
        let parameters: Arc<[_]> = [
            ("subject_token_type", Some(Arc::from(server.subject.urn()))),
            ("requested_token_type", server.requested.map(|requested| Arc::from(requested.urn()))),
            ("audience", audience),
            ("resource", forward.resource.clone()),
            ("scope", scope),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
        let actor = server.actor.as_ref().map(|actor| (sha256(actor.token.expose()), actor.kind));
        // Debug escapes what it quotes, so no two askers write the same text.
        Self { asker: sha256(format!("{:?} {parameters:?} {actor:?}", server.id).as_bytes()), server, parameters }
    }

    /// The upstream's `Authorization` for a caller that this token has proven.
    pub(super) async fn exchange(&self, proven: &Identity, token: &str, now: Now) -> Result<HeaderValue, Rejection> {
        let question = self.question(token);
        match self.server.answers.fresh(&question, now) {
            Some(answer) => answer.value.clone(),
            // Boxed, so that the many requests whose token is known do not carry the room that asking takes.
            None => Box::pin(self.ask(question, proven, token, now)).await,
        }
    }

    /// The whole token, the server, the client, who acts, and all that is asked for.
    fn question(&self, token: &str) -> Question {
        let mut hash = Sha256::new();
        hash.update(&self.asker);
        hash.update(token.as_bytes());
        hash.finish()
    }

    async fn ask(&self, question: Question, proven: &Identity, token: &str, now: Now) -> Result<HeaderValue, Rejection> {
        let call = || {
            let (server, parameters) = (Arc::clone(&self.server), Arc::clone(&self.parameters));
            let (token, ends) = (token.to_owned(), end(&proven.claims));
            async move { server.exchange(&token, ends, &parameters, now).await }
        };
        match self.server.answers.ask(question, self.server.terms, now, call).await {
            Ok(answer) => answer.value.clone(),
            Err(away) => Err(Rejection::DependencyUnavailable { dependency: "exchange", retry_after: away.retry_after }),
        }
    }
}

/// The `exp` of a token by its claims, as far as it is known.
fn end(claims: &Map<String, Value>) -> Option<Duration> {
    Duration::try_from_secs_f64(claims.get("exp").and_then(Value::as_f64)?).ok()
}

#[cfg(test)]
mod tests;
