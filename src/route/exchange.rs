//! `token: exchange`: in place of the caller's credential the upstream gets a token of ours that says who called.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use crate::live::identity_tokens::IdentityTokens;
use crate::request::{Identity, Now, Rejection};

/// For whom the tokens of a route are, and where they stand.
#[derive(Debug)]
pub struct Exchange {
    /// The mint.
    pub tokens: Arc<IdentityTokens>,
    /// The audience.
    pub audience: Arc<str>,
    /// The header.
    pub name: HeaderName,
}

impl Exchange {
    /// The header that tells the upstream who calls.
    ///
    /// # Errors
    /// When it cannot be signed: an upstream that was promised a token is not asked without one.
    pub fn header(
        &self,
        identity: &Arc<Identity>,
        now: Now,
        random: impl FnOnce() -> u128,
    ) -> Result<(HeaderName, HeaderValue), Rejection> {
        let value = self.tokens.token(identity, &self.audience, now, random).ok_or(Rejection::Internal("identity_token"))?;
        Ok((self.name.clone(), value))
    }
}
