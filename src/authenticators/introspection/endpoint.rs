//! One question to an introspection endpoint and its answer: the only place where an answer becomes facts.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value};

use crate::authenticators::claims::ClaimPaths;
use crate::authenticators::oauth_client::{Ask, OauthEndpoint};
use crate::config::{self, Problem};
use crate::jose::jws::fingerprint;
use crate::jose::{Claims, json};
use crate::live::answers::{Answer, Failure};
use crate::live::introspected::Introspected;
use crate::net::http::retry_after;
use crate::request::{Identity, Method, Now};

/// Where one authenticator asks, as whom, and how it reads what is said.
#[derive(Debug)]
pub(super) struct Endpoint {
    authenticator: Arc<str>,
    server: OauthEndpoint,
    claims: ClaimPaths,
    ttl: Duration,
    negative_ttl: Duration,
}

impl Endpoint {
    pub(super) fn new(authenticator: &Arc<str>, config: &config::Introspection, ask: Arc<dyn Ask>) -> Result<Self, Problem> {
        // An issuer's own name is what a proof should be made out to: a URL that somebody names could be another server's.
        let audience = config.issuer.as_ref().unwrap_or(&config.url.value);
        Ok(Self {
            authenticator: Arc::clone(authenticator),
            server: OauthEndpoint::new(ask, &config.url, (&config.client, audience), config.timeout)?,
            claims: ClaimPaths::new(&config.claims),
            ttl: config.cache.ttl,
            negative_ttl: config.cache.negative_ttl,
        })
    }

    /// Asks about a token. The error says nothing of it.
    pub(super) async fn introspect(self: Arc<Self>, token: String, now: Now) -> Result<Answer<Introspected>, Failure> {
        let response = self.server.post(&[("token", &token), ("token_type_hint", "access_token")], now).await?;
        if response.status() != StatusCode::OK {
            let retry_after = retry_after(&response, now.unix);
            return Err(Failure { why: format!("status {}", response.status().as_u16()), retry_after });
        }
        let said = read(response.body()).ok_or("the answer is not a JSON object")?;
        Ok(self.answer(said, fingerprint(&token), response.body().len(), now))
    }

    /// The facts of an answer, and for how long they are repeated.
    fn answer(&self, said: Said, credential: [u8; 32], length: usize, now: Now) -> Answer<Introspected> {
        let inactive =
            |reason| Answer { value: Introspected::Inactive(reason), good: false, fresh_until: now.monotonic + self.negative_ttl, size: 0 };
        let Claims { registered, all } = match said {
            Said::Active(claims) => claims,
            Said::Inactive(reason) => return inactive(reason),
        };
        let identity = Identity::new(Method::Introspection, Arc::clone(&self.authenticator), credential);
        let identity = match self.claims.fill_in(identity, all) {
            Ok(identity) => Arc::new(identity),
            Err(rejection) => return inactive(rejection.reason().unwrap_or("claims")),
        };
        let left = registered.expires.map_or(self.ttl, |expires| expires.saturating_sub(now.unix));
        Answer {
            value: Introspected::Active { registered, identity },
            good: true,
            fresh_until: now.monotonic + self.ttl.min(left),
            // The claims are held as a tree, each with an allocation of its own.
            size: 512 + 5 * length,
        }
    }
}

/// What an answer says of a token.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// It is active, and this is what it stands for.
    Active(Claims),
    /// It is not active, or not a token to come in with; the word is for the log.
    Inactive(&'static str),
}

/// Reads the body of an answer; nothing: the endpoint does not speak as RFC 7662 asks.
///
/// An object is an answer, and only the boolean `true` says that the token is active: whatever else stands there does not.
pub fn read(body: &[u8]) -> Option<Said> {
    let members = json::object(body)?;
    if members.get("active") != Some(&Value::Bool(true)) {
        return Some(Said::Inactive("inactive"));
    }
    if !is_access_token(&members) {
        return Some(Said::Inactive("token_type"));
    }
    // Of whose key such a token asks a proof must be said (RFC 9449 section 6.2): without it nobody could be asked for one.
    let bound = members.get("cnf").is_some_and(|confirmation| confirmation.get("jkt").is_some());
    if !bound
        && KINDS.iter().any(|(name, _)| members.get(*name).and_then(Value::as_str).is_some_and(|kind| kind.eq_ignore_ascii_case(DPOP)))
    {
        return Some(Said::Inactive("token_type"));
    }
    Some(match Claims::of(members) {
        Ok(claims) => Said::Active(claims),
        Err(fault) => Said::Inactive(fault.reason()),
    })
}

/// The members by which servers tell kinds of tokens apart, and what they say of one to come in with. Many call refresh tokens active as well.
const KINDS: [(&str, &[&str]); 3] = [
    ("token_type", &["Bearer", "access_token", DPOP]),
    ("token_use", &["access", "access_token"]),
    ("typ", &["Bearer", "JWT", "at+jwt", DPOP]),
];

/// What a token is called that is bound to a key of its holder.
const DPOP: &str = "DPoP";

fn is_access_token(members: &Map<String, Value>) -> bool {
    KINDS.iter().all(|(name, kinds)| match members.get(*name) {
        None | Some(Value::Null) => true,
        Some(Value::String(kind)) => kinds.iter().any(|good| good.eq_ignore_ascii_case(kind)),
        Some(_) => false,
    })
}
