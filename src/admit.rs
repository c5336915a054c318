//! THE DECISION: one request, top to bottom, cheap before dear, local before remote.

use std::sync::Arc;

use crate::authenticators::Proof;
use crate::request::{BodyDigest, Identity, LimitState, Now, Rejection, Request};
use crate::route::Route;

/// The permit to forward one request. Only [`admit`] makes one, and the phases that reach an upstream ask for it.
#[derive(Debug)]
pub struct Admission {
    proof: Option<Proof>,
    limit: Option<LimitState>,
}

impl Admission {
    /// Who was let in; absent exactly on public routes.
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.proof.as_ref().map(|proof| &proof.identity)
    }

    /// What the body must hash to before any of it is forwarded.
    pub fn body(&self) -> &[BodyDigest] {
        self.proof.as_ref().map_or(&[], |proof| &proof.body)
    }

    /// The limit nearest to its end, for the answer's headers.
    pub fn limit(&self) -> Option<&LimitState> {
        self.limit.as_ref()
    }
}

/// A refusal, and who was refused where that is known: for the log.
#[derive(Debug)]
pub struct Refusal {
    /// Why.
    pub rejection: Rejection,
    /// Who, when the refusal came after identification.
    pub identity: Option<Arc<Identity>>,
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self { rejection, identity: None }
    }
}

/// Whether this request may go on, and as whom.
pub async fn admit(route: &Route, request: &Request<'_>, now: Now) -> Result<Admission, Refusal> {
    let policy = &*route.policy;
    policy.ip_rules.check(request.client.address)?;
    let charge = policy.rate_limits.check_client(request, now)?;
    let Some(authenticators) = &policy.authenticators else {
        let limit = policy.rate_limits.check_identity(request, None, charge, now)?;
        return Ok(Admission { proof: None, limit });
    };
    let proof = authenticators.identify(request, now).await?;
    let identity = &*proof.identity;
    let judged = policy.authorizers.authorize(identity);
    match judged.and_then(|()| policy.rate_limits.check_identity(request, Some(identity), charge, now)) {
        Ok(limit) => Ok(Admission { proof: Some(proof), limit }),
        Err(rejection) => Err(Refusal { rejection, identity: Some(proof.identity) }),
    }
}
