//! What a body has to hash to: for proofs that speak of a body before it has arrived.

use openssl::sha::{Sha256, Sha512};

/// A digest that a body must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyDigest {
    /// SHA-256.
    Sha256([u8; 32]),
    /// SHA-512.
    Sha512([u8; 64]),
}

/// A body held against its digest while it arrives.
pub struct BodyCheck(Running);

/// The hash as far as it got, and what has to come of it.
enum Running {
    Sha256(Sha256, [u8; 32]),
    Sha512(Sha512, [u8; 64]),
}

impl BodyCheck {
    /// Nothing has arrived yet.
    pub fn new(expected: BodyDigest) -> Self {
        Self(match expected {
            BodyDigest::Sha256(expected) => Running::Sha256(Sha256::new(), expected),
            BodyDigest::Sha512(expected) => Running::Sha512(Sha512::new(), expected),
        })
    }

    /// Some more of it arrived.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Running::Sha256(hash, _) => hash.update(bytes),
            Running::Sha512(hash, _) => hash.update(bytes),
        }
    }

    /// Whether what arrived is the whole body that was spoken of.
    pub fn holds(self) -> bool {
        match self.0 {
            Running::Sha256(hash, expected) => hash.finish() == expected,
            Running::Sha512(hash, expected) => hash.finish() == expected,
        }
    }
}

impl std::fmt::Debug for BodyCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BodyCheck(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_holds_when_it_is_the_one_whatever_its_pieces() {
        let body = b"Param1=value1";
        for digest in [BodyDigest::Sha256(openssl::sha::sha256(body)), BodyDigest::Sha512(openssl::sha::sha512(body))] {
            for (pieces, holds) in [
                (&[&b"Param1=value1"[..]][..], true),
                (&[b"Param1", b"", b"=value1"], true),
                (&[b"Param1=value2"], false),
                (&[b"Param1=value"], false),
                (&[b"Param1=value1", b"1"], false),
                (&[], false),
            ] {
                let mut check = BodyCheck::new(digest.clone());
                pieces.iter().for_each(|piece| check.update(piece));
                assert_eq!(check.holds(), holds, "{pieces:?}");
            }
        }
    }
}
