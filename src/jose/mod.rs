//! JOSE as a gateway needs it: key sets, compact JWS, claims, and minting for our own tools. Encryption is deliberately not here.
//!
//! The algorithm of a verification comes from what the operator allows and what the key is for; the token's own `alg` only has to
//! agree with both (RFC 8725 section 3.1). Which library checks which signature, and why, is in `docs/decisions/0002-signatures.md`.

pub mod claims;
pub mod json;
pub mod jwk;
pub mod jws;
pub mod key;
pub mod message;
pub mod sign;
mod verifier;

pub use claims::Claims;
pub use jwk::JwkSet;
pub use jws::Jws;
pub use key::Key;
pub use message::Message;
pub use sign::SigningKey;

/// A signature algorithm of RFC 7518 and RFC 8037.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// Every algorithm, in the order of the RFCs.
    pub const ALL: [Self; 13] = [
        Self::Hs256,
        Self::Hs384,
        Self::Hs512,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    /// The algorithm of this name, exactly as registered: `none`, another case and stray blanks are no algorithm.
    pub fn parse(name: &str) -> Option<Self> {
        // RFC 9864 gives the same signature a second, fully specified name.
        if name == "Ed25519" {
            return Some(Self::EdDsa);
        }
        Self::ALL.into_iter().find(|algorithm| algorithm.label() == name)
    }

    /// The registered name.
    pub fn label(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
        }
    }

    /// Whether the verifier's key could also sign.
    pub fn is_symmetric(self) -> bool {
        matches!(self, Self::Hs256 | Self::Hs384 | Self::Hs512)
    }
}

/// A set of algorithms; the empty one allows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Algorithms(u16);

impl Algorithms {
    /// Whether this one is allowed.
    pub fn contains(self, algorithm: Algorithm) -> bool {
        self.0 & (1 << algorithm as u16) != 0
    }

    /// What both allow.
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether nothing is allowed.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn bits(self) -> u16 {
        self.0
    }
}

impl FromIterator<Algorithm> for Algorithms {
    fn from_iter<I: IntoIterator<Item = Algorithm>>(algorithms: I) -> Self {
        Self(algorithms.into_iter().fold(0, |bits, algorithm| bits | 1 << algorithm as u16))
    }
}

/// Why a token is not good, before anything was asked of its issuer or its times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Longer than any sound token.
    TooLarge,
    /// Not a compact JWS, not strict base64url, or not the JSON it must be.
    Malformed,
    /// `alg` is missing or none that we know.
    Algorithm,
    /// `crit` is there: it names an extension that we would have to understand, and we understand none.
    Critical,
    /// The header says that the payload is not plain claims (`b64`, `zip`, `enc`, `cty`).
    Encoding,
    /// `iss` is not a string.
    Issuer,
    /// `aud` is neither a string nor a list of strings.
    Audience,
    /// `exp` is not a time.
    Expiry,
    /// `nbf` is not a time.
    NotBefore,
    /// `iat` is not a time.
    IssuedAt,
}

impl Fault {
    /// The constant word for log and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Critical => "critical",
            Self::Encoding => "encoding",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Expiry => "expiry",
            Self::NotBefore => "not_before",
            Self::IssuedAt => "issued_at",
        }
    }
}

/// Strict base64url of RFC 7515 section 2: no padding, no white space, and one spelling only (trailing bits are zero).
pub(crate) fn base64url(text: &[u8]) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_algorithm_is_its_registered_name_and_nothing_like_it() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::parse(algorithm.label()), Some(algorithm));
        }
        for name in ["none", "None", "NONE", "", "rs256", "RS256 ", " RS256", "RS256\0", "ES256K", "HS1", "RSA-OAEP"] {
            assert_eq!(Algorithm::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_set_allows_what_it_was_made_of_and_an_empty_one_nothing() {
        let set: Algorithms = [Algorithm::Hs256, Algorithm::EdDsa].into_iter().collect();
        for algorithm in Algorithm::ALL {
            assert_eq!(set.contains(algorithm), matches!(algorithm, Algorithm::Hs256 | Algorithm::EdDsa));
            assert!(!Algorithms::default().contains(algorithm));
        }
        assert!(set.intersection([Algorithm::Rs256].into_iter().collect()).is_empty());
    }

    #[test]
    fn base64url_has_one_spelling() {
        assert_eq!(base64url(b"AA"), Some(vec![0]));
        for text in ["AA=", "AA==", "A", "AB", "A A", "AA\n", "+A", "/A", "A\u{e9}"] {
            assert_eq!(base64url(text.as_bytes()), None, "{text:?}");
        }
    }
}
