//! What tells the endpoints of OAuth2 servers apart, whose answers are remembered.

use std::sync::Arc;

/// One endpoint, and who asks it: nothing that may be tuned, nor the secret, which is rotated.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointId {
    /// The name in the configuration of what asks it.
    pub name: Arc<str>,
    /// Where it is asked.
    pub url: Arc<str>,
    /// As which client; an answer may depend on who asks (RFC 7662 section 2.2).
    pub client: Arc<str>,
    /// SHA-256 of the authorities that it is verified by; absent: the system's.
    pub ca: Option<[u8; 32]>,
}
