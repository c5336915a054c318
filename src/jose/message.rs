//! What a signature is over, hashed once however many ask: each key that may have made it, and whoever counts by credential.

use std::sync::OnceLock;

use openssl::sha::Sha256;

/// The bytes that were signed.
#[derive(Debug)]
pub struct Message<'m> {
    bytes: &'m [u8],
    sha256: OnceLock<[u8; 32]>,
}

impl<'m> Message<'m> {
    /// The bytes themselves.
    pub fn bytes(&self) -> &'m [u8] {
        self.bytes
    }

    /// Their SHA-256.
    pub fn sha256(&self) -> &[u8; 32] {
        self.sha256.get_or_init(|| sha256(self.bytes))
    }
}

impl<'m> From<&'m [u8]> for Message<'m> {
    fn from(bytes: &'m [u8]) -> Self {
        Self { bytes, sha256: OnceLock::new() }
    }
}

/// SHA-256. The one-shot function of OpenSSL 3 looks the algorithm up by its name first, which takes as long as the hash of a short text.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(bytes);
    hasher.finish()
}
