//! `token: exchange`: in place of the caller's credential the upstream gets a token that says who called, of ours or of an outside server's.

mod answer;
mod server;

use std::sync::Arc;

use http::{HeaderName, HeaderValue, header};

use crate::authenticators::Authenticators;
use crate::live::identity_tokens::IdentityTokens;
use crate::request::{Identity, Now, Rejection, Request};

pub use answer::{Said, read};
pub use server::{Target, TokenServer};

/// Where the tokens of a route come from, for whom they are, and where they stand.
#[derive(Debug)]
pub enum Exchange {
    /// Our own issuer signs them.
    Issuer {
        /// The mint.
        tokens: Arc<IdentityTokens>,
        /// The audience.
        audience: Arc<str>,
        /// The header.
        name: HeaderName,
    },
    /// An outside server issues them for the callers' own, and they stand where those stood by right: in `Authorization`.
    Server(Target),
}

impl Exchange {
    /// The header that tells the upstream who calls.
    ///
    /// # Errors
    /// When there is none: an upstream that was promised a token is not asked without one.
    pub async fn obtain(
        &self,
        identity: &Arc<Identity>,
        authenticators: &Authenticators,
        request: &Request<'_>,
        now: Now,
        random: fn() -> u128,
    ) -> Result<(HeaderName, HeaderValue), Rejection> {
        match self {
            Self::Issuer { tokens, audience, name } => {
                let value = tokens.token(identity, audience, now, random).ok_or(Rejection::Internal("identity_token"))?;
                Ok((name.clone(), value))
            }
            Self::Server(target) => {
                let (proven, token) = authenticators.token(identity, request).ok_or(Rejection::Forbidden("exchange_no_token"))?;
                Ok((header::AUTHORIZATION, target.exchange(proven, &token, now).await?))
            }
        }
    }
}
