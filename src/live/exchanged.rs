//! What token endpoints issued in exchange for callers' tokens (RFC 8693), and whom they refused.

use http::HeaderValue;

use super::answers::Answers;
use crate::request::Rejection;

/// The answers of one endpoint: the upstream's `Authorization`, or why the caller gets none.
pub type ExchangedTokens = Answers<Result<HeaderValue, Rejection>>;
