//! What the nonces of this process are made with, where the configuration has no secret for them: it outlives a reload, and no restart.

/// A random key. `None`: there was no randomness, and no nonce can be made.
#[derive(Clone, Copy)]
pub struct NonceKey(pub Option<[u8; 32]>);

impl Default for NonceKey {
    fn default() -> Self {
        let mut key = [0; 32];
        Self(openssl::rand::rand_bytes(&mut key).is_ok().then_some(key))
    }
}

/// Without the key.
impl std::fmt::Debug for NonceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NonceKey(..)")
    }
}
