//! Servers that exchange tokens (RFC 8693): where they are asked, as which client, for what kind of token, and how long it is used.

use std::sync::Arc;
use std::time::Duration;

use super::decode::{Context, Fields, grammar, words};
use super::dependency::Breaker;
use super::introspection::OauthClient;
use super::values::{DAY, Lasting, MINUTE, SECOND, Url, Within};
use super::{At, File};
use crate::secret::Secret;

grammar! {
    /// A server that exchanges callers' tokens for tokens for upstreams (RFC 8693). While it is away, only tokens that it has exchanged lately
    /// are good; for all others the answer is 503.
    #[checked(check_exchange)]
    pub struct Exchange {
        /// Its token endpoint.
        url: At<Arc<str>> as At<Url>,
        /// Who we are to it.
        client: OauthClient,
        /// What the caller's token is said to be.
        subject_token_type: TokenType = "access_token",
        /// A token that says who acts for the caller, which is us: the issued token can name both. Absent: the server knows us by the client alone.
        actor_token: Option<At<Secret>> as Option<At<Secret>> = absent,
        /// What the `actor_token` is said to be.
        actor_token_type: TokenType = "access_token",
        /// What is asked for, and no other kind is taken. Absent: the server chooses between these two.
        requested_token_type: Option<TokenType> = absent,
        /// How long a request waits for an answer.
        timeout: Duration as Lasting<1, {30 * SECOND}> = "2s",
        /// The authorities to trust for its TLS, in PEM. Absent: the system's.
        ca: Option<File> = absent,
        /// How long answers count.
        cache: IssuedTokens = "{}",
        /// When it is taken to be away.
        breaker: Breaker = "{}",
    }

    /// How long what a server said to an exchange counts.
    pub struct IssuedTokens {
        /// The token that it issued, but never beyond the end of either token: the issued one is used until 10 s before.
        ttl: Duration as Lasting<0, DAY> = "5m",
        /// That it issues none.
        negative_ttl: Duration as Lasting<0, {10 * MINUTE}> = "10s",
        /// How many answers are kept of each kind.
        entries: u32 as Within<u32, 1, 10_000_000> = "100000",
    }
}

words! {
    /// What kind of token is spoken of (RFC 8693 section 3).
    pub enum TokenType {
        /// One to come in with, whatever its form.
        AccessToken = "access_token",
        /// A JWT.
        Jwt = "jwt",
    }
}

fn check_exchange(_: &Exchange, fields: &Fields<'_>, context: &mut Context<'_>) {
    if let Some(node) = fields.written("actor_token_type")
        && fields.written("actor_token").is_none()
    {
        context.key("actor_token_type", |context| context.refuse::<()>(node, "there is no token of that kind", "an `actor_token`"));
    }
}

impl TokenType {
    /// Its name on the wire.
    pub fn urn(self) -> &'static str {
        match self {
            Self::AccessToken => "urn:ietf:params:oauth:token-type:access_token",
            Self::Jwt => "urn:ietf:params:oauth:token-type:jwt",
        }
    }
}
