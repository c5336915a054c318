//! Tokens that are bound to a key of their holder (RFC 9449): whether all must be, and what the proof of that key must say.

use std::time::Duration;

use super::authenticator::Location;
use super::decode::{Context, Fields, grammar};
use super::values::{DAY, Lasting, MINUTE, SECOND};
use crate::secret::Secret;

grammar! {
    /// Tokens that are bound to a key of their holder (RFC 9449).
    pub struct Dpop {
        /// `true`: a token that no such key binds is refused.
        required: bool = "false",
        /// How old a proof may be, the difference of clocks aside.
        max_age: Duration as Lasting<SECOND, {10 * MINUTE}> = "60s",
        /// Asks for a nonce of ours in each proof. Absent: none is asked for.
        nonce: Option<DpopNonce> = absent,
    }

    /// The nonces that callers are given for their proofs.
    #[checked(check_nonce)]
    pub struct DpopNonce {
        /// How long one counts at most; at least half as long.
        lifetime: Duration as Lasting<{2 * SECOND}, DAY> = "5m",
        /// What they are made with, at least 32 bytes: gateways with the same secret take each other's. Absent: random, and each process takes
        /// its own.
        secret: Option<Secret> = absent,
    }
}

fn check_nonce(nonce: &DpopNonce, fields: &Fields<'_>, context: &mut Context<'_>) {
    if let (Some(secret), Some(node)) = (&nonce.secret, fields.written("secret"))
        && secret.expose().len() < 32
    {
        context.key("secret", |context| context.refuse::<()>(node, "the secret is too short", "at least 32 bytes"));
    }
}

/// Refuses what is said of proofs where no token is taken that has one.
pub(crate) fn check(from: &[Location], fields: &Fields<'_>, context: &mut Context<'_>) {
    if let Some(node) = fields.written("dpop")
        && !from.iter().any(|location| location.has_scheme("DPoP"))
    {
        context.key("dpop", |context| {
            context.refuse::<()>(node, "no token with a proof is taken here", "`{header: Authorization, scheme: DPoP}` in `from`")
        });
    }
}
