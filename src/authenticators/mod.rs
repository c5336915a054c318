//! Who are you: one credential, judged by the authenticator whose it is; `combination` says which of them a policy accepts together.

pub mod api_key;
pub mod claims;
mod combination;
pub mod credential;
pub mod introspection;
pub mod jwt;
pub mod key_format;
pub mod oauth_client;

use std::sync::Arc;

pub use combination::{Accepted, Authenticators};

use crate::config::Location;
use crate::request::{Identity, Method, Now, Rejection, Request};

/// What an authenticator says of a request.
#[derive(Debug)]
pub enum Verdict {
    /// The credential is good, and this is what it proves.
    Accept(Proof),
    /// Not my credential: none there, or another shape. Never the answer to a check that failed.
    Pass,
    /// My credential, and not good; or what I need to judge it is away.
    Reject(Rejection),
}

/// What a good credential proves of one request.
#[derive(Debug, Clone)]
pub struct Proof {
    /// Who calls.
    pub identity: Arc<Identity>,
}

impl From<Arc<Identity>> for Proof {
    fn from(identity: Arc<Identity>) -> Self {
        Self { identity }
    }
}

/// One way to prove an identity, as the configuration names it.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a handful of them, each behind an Arc")]
pub enum Authenticator {
    /// JSON Web Tokens.
    Jwt(jwt::Jwt),
    /// API keys.
    ApiKey(api_key::ApiKey),
    /// Opaque tokens.
    Introspection(introspection::Introspection),
}

impl Authenticator {
    async fn authenticate(&self, request: &Request<'_>, now: Now) -> Verdict {
        match self {
            Self::Jwt(jwt) => jwt.authenticate(request, now).await,
            Self::ApiKey(api_key) => api_key.authenticate(request, now),
            Self::Introspection(introspection) => introspection.authenticate(request, now).await,
        }
    }

    /// The name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Jwt(jwt) => jwt.name(),
            Self::ApiKey(api_key) => api_key.name(),
            Self::Introspection(introspection) => introspection.name(),
        }
    }

    /// What kind of credential it judges.
    pub fn method(&self) -> Method {
        match self {
            Self::Jwt(_) => Method::Jwt,
            Self::ApiKey(_) => Method::ApiKey,
            Self::Introspection(_) => Method::Introspection,
        }
    }

    /// Where this authenticator looks for its credential.
    pub fn locations(&self) -> &[Location] {
        match self {
            Self::Jwt(jwt) => jwt.locations(),
            Self::ApiKey(api_key) => api_key.locations(),
            Self::Introspection(introspection) => introspection.locations(),
        }
    }

    /// Sets live facts to this configuration; called once, when it takes effect.
    pub fn activate(&self) {
        if let Self::Introspection(introspection) = self {
            introspection.activate();
        }
    }
}
