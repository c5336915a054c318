//! Nonces of ours (RFC 9449 section 9): each is a hash of the time under a key, so that none is kept and no flood of callers fills anything.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac_sha256::HMAC;
use http::HeaderValue;
use openssl::sha::sha256;

use crate::config;
use crate::live::nonce_key::NonceKey;
use crate::request::{Now, Rejection};

/// What gives nonces and knows them again. There is a new one for each half of their lifetime, and it counts for that half and the next.
pub(super) struct Nonces {
    key: Option<[u8; 32]>,
    half: Duration,
}

impl Nonces {
    /// Made with the secret of the configuration, else with the process's own.
    pub(super) fn new(config: &config::DpopNonce, own: &NonceKey) -> Self {
        let key = match &config.secret {
            Some(secret) => Some(sha256(secret.expose())),
            None => own.0,
        };
        Self { key, half: config.lifetime / 2 }
    }

    /// Judges the nonce of a proof, and answers with the next one when it is in the second half of its time.
    ///
    /// # Errors
    /// It is none that counts now; the rejection has one that does.
    pub(super) fn check(&self, given: Option<&str>, now: Now) -> Result<Option<HeaderValue>, Rejection> {
        let key = self.key.as_ref().ok_or(Rejection::Internal("no_randomness"))?;
        let turn = u64::try_from(now.unix.as_millis() / self.half.as_millis().max(1)).unwrap_or(u64::MAX);
        let current = self.nonce(key, turn);
        let is =
            |nonce: &str| given.is_some_and(|given| given.len() == nonce.len() && openssl::memcmp::eq(given.as_bytes(), nonce.as_bytes()));
        if is(&current) {
            return Ok(None);
        }
        let next = HeaderValue::try_from(current).map_err(|_| Rejection::Internal("nonce"))?;
        if is(&self.nonce(key, turn.saturating_sub(1))) { Ok(Some(next)) } else { Err(Rejection::NonceWanted(next)) }
    }

    /// The nonce of a turn. The length of turns is in it: numbers of others are other times.
    fn nonce(&self, key: &[u8; 32], turn: u64) -> String {
        URL_SAFE_NO_PAD.encode(HMAC::mac(format!("edgeward DPoP nonce {} {turn}", self.half.as_millis()), key))
    }
}

/// Without the key.
impl std::fmt::Debug for Nonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nonces").field("half", &self.half).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn nonces(lifetime: u64, secret: Option<&str>, own: u8) -> Nonces {
        let secret = secret.map(|secret| Secret::new(secret.into()));
        Nonces::new(&config::DpopNonce { lifetime: Duration::from_secs(lifetime), secret }, &NonceKey(Some([own; 32])))
    }

    fn at(seconds: u64) -> Now {
        Now { monotonic: Duration::ZERO, unix: Duration::from_secs(seconds) }
    }

    /// The nonce that a caller without one is told.
    fn told(nonces: &Nonces, seconds: u64) -> String {
        match nonces.check(None, at(seconds)) {
            Err(Rejection::NonceWanted(nonce)) => nonce.to_str().unwrap().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_nonce_counts_for_its_half_and_the_next_and_is_followed_before_it_ends() {
        let nonces = nonces(100, None, 1);
        let first = told(&nonces, 1_000);
        assert_eq!(told(&nonces, 1_049), first);
        let second = told(&nonces, 1_050);
        assert_ne!(second, first);
        for (seconds, next) in [(1_000, None), (1_049, None), (1_050, Some(&second)), (1_099, Some(&second))] {
            let found = nonces.check(Some(&first), at(seconds)).unwrap();
            assert_eq!(found.as_ref().map(|next| next.to_str().unwrap()), next.map(String::as_str), "{seconds}");
        }
        for seconds in [0, 949, 999, 1_100, 5_000] {
            assert!(matches!(nonces.check(Some(&first), at(seconds)), Err(Rejection::NonceWanted(_))), "{seconds}");
        }
    }

    #[test]
    fn a_nonce_of_another_key_lifetime_or_mouth_is_none() {
        let secret = "a secret of thirty-two bytes, and more";
        let ours = nonces(100, Some(secret), 1);
        let nonce = told(&ours, 1_000);
        assert!(nonces(100, Some(secret), 2).check(Some(&nonce), at(1_000)).is_ok(), "a fleet shares its secret");
        for (which, other) in [
            ("another secret", nonces(100, Some("another secret of thirty-two bytes, and more"), 1)),
            ("no secret", nonces(100, None, 1)),
            ("another lifetime", nonces(200, Some(secret), 1)),
        ] {
            assert!(matches!(other.check(Some(&nonce), at(1_000)), Err(Rejection::NonceWanted(_))), "{which}");
        }
        let (shorter, longer) = (&nonce[..nonce.len() - 1], format!("{nonce}A"));
        for given in ["", "x", shorter, &longer, &nonce.to_lowercase()] {
            assert!(matches!(ours.check(Some(given), at(1_000)), Err(Rejection::NonceWanted(_))), "{given}");
        }
    }

    #[test]
    fn without_randomness_there_is_no_nonce_and_nobody_comes_in() {
        let none = Nonces::new(&config::DpopNonce { lifetime: Duration::from_secs(100), secret: None }, &NonceKey(None));
        for given in [None, Some("")] {
            assert_eq!(none.check(given, at(1_000)), Err(Rejection::Internal("no_randomness")));
        }
    }
}
