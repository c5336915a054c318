//! Who are you: one credential, judged by the authenticator whose it is; `combination` says which of them a policy accepts together.

pub mod api_key;
pub mod basic;
pub mod challenge;
pub mod claims;
pub mod client_certificate;
mod combination;
pub mod confirmation;
pub mod credential;
pub mod dpop;
pub mod external;
pub mod introspection;
pub mod jwt;
pub mod key_format;
pub mod oauth_client;
pub mod signature;
pub mod sigv4;

use std::sync::Arc;

pub use challenge::Challenge;
pub use combination::{Accepted, Authenticators};

use http::HeaderValue;

use crate::config::Location;
use crate::request::{BodyDigest, HeaderChange, Identity, Method, Now, Rejection, Request};

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
    /// What the body must hash to, each of them: until it does, the proof is not complete and nothing of the body reaches the upstream.
    pub body: Vec<BodyDigest>,
    /// What becomes of the upstream's headers beside.
    pub headers: Option<Arc<[HeaderChange]>>,
    /// What the caller's next proof shall have in place of the nonce of this one (RFC 9449 section 8.2).
    pub nonce: Option<HeaderValue>,
}

impl From<Arc<Identity>> for Proof {
    fn from(identity: Arc<Identity>) -> Self {
        Self { identity, body: Vec::new(), headers: None, nonce: None }
    }
}

/// One way to prove an identity, as the configuration names it.
#[derive(Debug)]
pub enum Authenticator {
    /// JSON Web Tokens.
    Jwt(jwt::Jwt),
    /// API keys.
    ApiKey(api_key::ApiKey),
    /// Certificates of TLS clients.
    ClientCertificate(client_certificate::ClientCertificate),
    /// AWS Signature Version 4.
    Sigv4(sigv4::Sigv4),
    /// HTTP message signatures.
    Signature(signature::Signature),
    /// Users and passwords.
    Basic(basic::Basic),
    /// Another service.
    External(external::External),
    /// Opaque tokens.
    Introspection(introspection::Introspection),
}

impl Authenticator {
    async fn authenticate(&self, request: &Request<'_>, now: Now) -> Verdict {
        match self {
            Self::Jwt(jwt) => jwt.authenticate(request, now).await,
            Self::ApiKey(api_key) => api_key.authenticate(request, now),
            Self::ClientCertificate(client_certificate) => client_certificate.authenticate(request),
            Self::External(external) => external.authenticate(request, now).await,
            Self::Sigv4(sigv4) => sigv4.authenticate(request, now),
            Self::Signature(signature) => signature.authenticate(request, now),
            Self::Basic(basic) => basic.authenticate(request, now).await,
            Self::Introspection(introspection) => introspection.authenticate(request, now).await,
        }
    }

    fn asks_for_body(&self, request: &Request<'_>) -> bool {
        match self {
            Self::Sigv4(sigv4) => sigv4.asks_for_body(request),
            _ => false,
        }
    }

    /// The name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Jwt(jwt) => jwt.name(),
            Self::ApiKey(api_key) => api_key.name(),
            Self::ClientCertificate(client_certificate) => client_certificate.name(),
            Self::Sigv4(sigv4) => sigv4.name(),
            Self::Signature(signature) => signature.name(),
            Self::Basic(basic) => basic.name(),
            Self::External(external) => external.name(),
            Self::Introspection(introspection) => introspection.name(),
        }
    }

    /// What kind of credential it judges.
    pub fn method(&self) -> Method {
        match self {
            Self::Jwt(_) => Method::Jwt,
            Self::ApiKey(_) => Method::ApiKey,
            Self::ClientCertificate(_) => Method::ClientCertificate,
            Self::Sigv4(_) => Method::Sigv4,
            Self::Signature(_) => Method::Signature,
            Self::Basic(_) => Method::Basic,
            Self::External(_) => Method::External,
            Self::Introspection(_) => Method::Introspection,
        }
    }

    /// Where this authenticator looks for its credential.
    pub fn locations(&self) -> &[Location] {
        match self {
            Self::Jwt(jwt) => jwt.locations(),
            Self::ApiKey(api_key) => api_key.locations(),
            // It comes with the connection, or in headers that reach no upstream anyway.
            Self::ClientCertificate(_) => &[],
            Self::Sigv4(sigv4) => sigv4.locations(),
            Self::Signature(signature) => signature.locations(),
            Self::Basic(basic) => basic.locations(),
            Self::External(external) => external.locations(),
            Self::Introspection(introspection) => introspection.locations(),
        }
    }

    /// What a caller is told to present here.
    pub fn challenges(&self) -> Vec<Challenge> {
        match self {
            Self::Jwt(jwt) => jwt.challenges(),
            Self::ApiKey(api_key) => vec![api_key.challenge()],
            Self::ClientCertificate(client_certificate) => vec![client_certificate.challenge()],
            Self::Sigv4(sigv4) => vec![sigv4.challenge()],
            Self::Signature(signature) => vec![signature.challenge()],
            Self::Basic(basic) => vec![basic.challenge()],
            Self::External(external) => vec![external.challenge()],
            Self::Introspection(introspection) => introspection.challenges(),
        }
    }

    /// Where the token is that it judges; none where the credential is no token of another party's.
    fn token_locations(&self) -> Option<&[Location]> {
        match self {
            Self::Jwt(jwt) => Some(jwt.token_locations()),
            Self::Introspection(introspection) => Some(introspection.locations()),
            _ => None,
        }
    }

    /// How long a body it must be shown, in bytes; none when it looks at none.
    pub fn body_limit(&self) -> Option<usize> {
        match self {
            Self::External(external) => external.body_limit(),
            _ => None,
        }
    }

    /// Sets live facts to this configuration; called once, when it takes effect.
    pub fn activate(&self) {
        match self {
            Self::Introspection(introspection) => introspection.activate(),
            Self::External(external) => external.activate(),
            _ => {}
        }
    }
}
