//! An RSA key ready to verify: OpenSSL looks up by name what it needs for that, which takes a tenth of a verification, and so once and not each time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use openssl::error::ErrorStack;
use openssl::md::MdRef;
use openssl::pkey::{PKey, Public};
use openssl::pkey_ctx::PkeyCtx;
use openssl::rsa::Padding;
use openssl::sign::RsaPssSaltlen;

use super::Algorithm;
use super::key::digest;

/// What verifies with one RSA key.
pub(super) struct RsaVerifier {
    key: PKey<Public>,
    /// Those that nobody verifies with at the moment: at most one for each thread and algorithm. Held for a push or a search among a few.
    idle: Mutex<Vec<(Algorithm, PkeyCtx<Public>)>>,
}

impl RsaVerifier {
    pub(super) fn new(key: PKey<Public>) -> Self {
        Self { key, idle: Mutex::default() }
    }

    /// Whether the signature is good for what this is the hash of, by the algorithm's own hash.
    pub(super) fn verify(&self, algorithm: Algorithm, hash: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
        let Some((digest, pss)) = digest(algorithm) else { return Ok(false) };
        // RFC 8017 sections 8.1.2 and 8.2.2, step 1. OpenSSL takes PSS signatures whose leading zeros were left out: a second spelling of one signature.
        if signature.len() != self.key.size() {
            return Ok(false);
        }
        let idle = self.take(algorithm);
        let mut context = idle.map_or_else(|| self.prepare(digest, pss), Ok)?;
        let good = context.verify(hash, signature);
        // Also after a bad signature, which is an error to OpenSSL: a flood of them must not cost more than the good ones.
        self.idle().push((algorithm, context));
        good
    }

    fn prepare(&self, digest: &MdRef, pss: bool) -> Result<PkeyCtx<Public>, ErrorStack> {
        let mut context = PkeyCtx::new(&self.key)?;
        context.verify_init()?;
        if pss {
            context.set_rsa_padding(Padding::PKCS1_PSS)?;
            // RFC 7518 section 3.5: the salt is as long as the hash. Without this OpenSSL takes any.
            context.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
        } else {
            context.set_rsa_padding(Padding::PKCS1)?;
        }
        context.set_signature_md(digest)?;
        Ok(context)
    }

    fn take(&self, algorithm: Algorithm) -> Option<PkeyCtx<Public>> {
        let mut idle = self.idle();
        let place = idle.iter().position(|(prepared, _)| *prepared == algorithm)?;
        Some(idle.swap_remove(place).1)
    }

    /// A panic while it was held has left nothing half done.
    fn idle(&self) -> MutexGuard<'_, Vec<(Algorithm, PkeyCtx<Public>)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
