//! What introspection endpoints said of tokens (RFC 7662): facts, which are judged again with every request.

use std::sync::Arc;

use super::answers::Answers;
use crate::jose::claims::Registered;
use crate::request::Identity;

/// What tells one endpoint from another: nothing that may be tuned, nor the secret, which is rotated.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointId {
    /// The name of the authenticator.
    pub authenticator: Arc<str>,
    /// Where it is asked.
    pub url: Arc<str>,
    /// As which client; an answer may depend on who asks (RFC 7662 section 2.2).
    pub client: Arc<str>,
    /// SHA-256 of the authorities that it is verified by; absent: the system's.
    pub ca: Option<[u8; 32]>,
}

/// The answers of one endpoint.
pub type TokenAnswers = Answers<Introspected>;

/// What was said of a token.
#[derive(Debug, Clone, PartialEq)]
pub enum Introspected {
    /// It is active.
    Active {
        /// What is judged with every request.
        registered: Registered,
        /// Who presents it.
        identity: Arc<Identity>,
    },
    /// It is not, or what is said of it cannot be used; the word is for the log.
    Inactive(&'static str),
}
