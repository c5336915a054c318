//! What introspection endpoints said of tokens (RFC 7662): facts, which are judged again with every request.

use std::sync::Arc;

use super::answers::Answers;
use crate::jose::claims::Registered;
use crate::request::Identity;

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
