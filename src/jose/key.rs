//! One verification key: what it may verify, and the check itself.
//!
//! OpenSSL, which is linked for TLS anyway, checks RSA and ECDSA; ed25519-compact and hmac-sha256/512, the engines inside
//! jwt-simple, check EdDSA and HS*. The figures are in `docs/decisions/0002-signatures.md`. All key parsing happens here and once.

use std::sync::Arc;

use jwt_simple::algorithms::{HS256Key, HS384Key, HS512Key, MACLike};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::md::{Md, MdRef};
use openssl::nid::Nid;
use openssl::pkey::{PKey, Public};
use openssl::rsa::Rsa;
use openssl::sha::{Sha256, Sha384, Sha512};

use super::verifier::RsaVerifier;
use super::{Algorithm, Algorithms, Message};

/// What tells one verification key from another, also across two fetches of its set: a hash of its material, id and uses.
pub type Fingerprint = [u8; 32];

/// A key that verifies.
pub struct Key {
    kid: Option<Arc<str>>,
    algorithms: Algorithms,
    material: Material,
    fingerprint: Fingerprint,
}

enum Material {
    Rsa(RsaVerifier),
    Ec { key: EcKey<Public>, coordinate: usize },
    Ed25519(ed25519_compact::PublicKey),
    Secret(Box<Secret>),
}

/// One secret, ready for each hash.
struct Secret {
    hs256: HS256Key,
    hs384: HS384Key,
    hs512: HS512Key,
}

/// The curves of RFC 7518 section 6.2.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "P-256" => Some(Self::P256),
            "P-384" => Some(Self::P384),
            "P-521" => Some(Self::P521),
            _ => None,
        }
    }

    pub(super) fn of(name: Nid) -> Option<Self> {
        match name {
            Nid::X9_62_PRIME256V1 => Some(Self::P256),
            Nid::SECP384R1 => Some(Self::P384),
            Nid::SECP521R1 => Some(Self::P521),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    pub(super) fn algorithm(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::Es256,
            Self::P384 => Algorithm::Es384,
            Self::P521 => Algorithm::Es512,
        }
    }

    /// The length of a coordinate, and of each half of a signature, in bytes.
    pub(super) fn coordinate(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    pub(super) fn group(self) -> Result<EcGroup, openssl::error::ErrorStack> {
        EcGroup::from_curve_name(match self {
            Self::P256 => Nid::X9_62_PRIME256V1,
            Self::P384 => Nid::SECP384R1,
            Self::P521 => Nid::SECP521R1,
        })
    }
}

impl Key {
    /// The key id, which is the issuer's word and not unique.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// What tells this key from another.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The algorithms that this key may verify.
    pub fn algorithms(&self) -> Algorithms {
        self.algorithms
    }

    /// The key of a shared secret: for each HS* whose hash it is at least as long as (RFC 7518 section 3.2), under any key id.
    pub fn from_secret(secret: &[u8]) -> Option<Self> {
        let long_enough = |(algorithm, bytes): (Algorithm, usize)| (secret.len() >= bytes).then_some(algorithm);
        let algorithms: Algorithms =
            [(Algorithm::Hs256, 32), (Algorithm::Hs384, 48), (Algorithm::Hs512, 64)].into_iter().filter_map(long_enough).collect();
        if algorithms.is_empty() {
            return None;
        }
        let keys = Secret { hs256: HS256Key::from_bytes(secret), hs384: HS384Key::from_bytes(secret), hs512: HS512Key::from_bytes(secret) };
        Some(Self::new(None, algorithms, Material::Secret(Box::new(keys)), secret))
    }

    pub(super) fn from_rsa(
        kid: Option<Arc<str>>,
        algorithms: Algorithms,
        modulus: &[u8],
        exponent: &[u8],
    ) -> Result<Self, openssl::error::ErrorStack> {
        let rsa = Rsa::from_public_components(BigNum::from_slice(modulus)?, BigNum::from_slice(exponent)?)?;
        let key = PKey::from_rsa(rsa)?;
        let der = key.public_key_to_der()?;
        Ok(Self::new(kid, algorithms, Material::Rsa(RsaVerifier::new(key)), &der))
    }

    /// Fails on a point that is not on the curve.
    pub(super) fn from_ec(
        kid: Option<Arc<str>>,
        algorithms: Algorithms,
        curve: Curve,
        x: &[u8],
        y: &[u8],
    ) -> Result<Self, openssl::error::ErrorStack> {
        let group = curve.group()?;
        let (x, y) = (BigNum::from_slice(x)?, BigNum::from_slice(y)?);
        let key = EcKey::from_public_key_affine_coordinates(&group, &x, &y)?;
        key.check_key()?;
        let point = key.public_key().to_bytes(&group, openssl::ec::PointConversionForm::UNCOMPRESSED, &mut *BigNumContext::new()?)?;
        Ok(Self::new(kid, algorithms, Material::Ec { key, coordinate: curve.coordinate() }, &point))
    }

    /// Nothing for a point that is not on the curve or of small order.
    pub(super) fn from_ed25519(kid: Option<Arc<str>>, algorithms: Algorithms, point: &[u8]) -> Option<Self> {
        let key = ed25519_compact::PublicKey::from_slice(point).ok()?;
        key.validate().ok()?;
        Some(Self::new(kid, algorithms, Material::Ed25519(key), point))
    }

    fn new(kid: Option<Arc<str>>, algorithms: Algorithms, material: Material, bytes: &[u8]) -> Self {
        let kind = match material {
            Material::Rsa(_) => b'R',
            Material::Ec { .. } => b'E',
            Material::Ed25519(_) => b'O',
            Material::Secret(_) => b'S',
        };
        let mut hash = Sha256::new();
        hash.update(&[kind]);
        hash.update(&algorithms.bits().to_be_bytes());
        // Each part that can be of any length is preceded by its length, so that no two keys write the same bytes.
        for part in [kid.as_deref().unwrap_or_default().as_bytes(), bytes] {
            hash.update(&part.len().to_be_bytes());
            hash.update(part);
        }
        hash.update(&[u8::from(kid.is_some())]);
        Self { kid, algorithms, material, fingerprint: hash.finish() }
    }

    /// Whether `signature` over `message` was made with this key by `algorithm`. An algorithm that is not this key's is a no, and so is every error.
    pub fn verify(&self, algorithm: Algorithm, message: &Message<'_>, signature: &[u8]) -> bool {
        if !self.algorithms.contains(algorithm) {
            return false;
        }
        match &self.material {
            Material::Rsa(key) => hashed(algorithm, message, |hash| key.verify(algorithm, hash, signature)).unwrap_or(false),
            Material::Ec { key, coordinate } => {
                hashed(algorithm, message, |hash| verify_ec(key, *coordinate, hash, signature)).unwrap_or(false)
            }
            Material::Ed25519(key) => {
                ed25519_compact::Signature::from_slice(signature).is_ok_and(|signature| key.verify(message.bytes(), &signature).is_ok())
            }
            Material::Secret(secret) => {
                let tag = match algorithm {
                    Algorithm::Hs256 => secret.hs256.authentication_tag(message.bytes()),
                    Algorithm::Hs384 => secret.hs384.authentication_tag(message.bytes()),
                    Algorithm::Hs512 => secret.hs512.authentication_tag(message.bytes()),
                    _ => return false,
                };
                // In constant time, and `eq` panics on unequal lengths.
                tag.len() == signature.len() && openssl::memcmp::eq(&tag, signature)
            }
        }
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}

pub(super) fn digest(algorithm: Algorithm) -> Option<(&'static MdRef, bool)> {
    match algorithm {
        Algorithm::Rs256 => Some((Md::sha256(), false)),
        Algorithm::Rs384 => Some((Md::sha384(), false)),
        Algorithm::Rs512 => Some((Md::sha512(), false)),
        Algorithm::Ps256 => Some((Md::sha256(), true)),
        Algorithm::Ps384 => Some((Md::sha384(), true)),
        Algorithm::Ps512 => Some((Md::sha512(), true)),
        _ => None,
    }
}

/// Asks with the message's hash, by the algorithm's own hash function; an algorithm without one is a no.
fn hashed<E>(algorithm: Algorithm, message: &Message<'_>, ask: impl FnOnce(&[u8]) -> Result<bool, E>) -> Result<bool, E> {
    match algorithm {
        Algorithm::Rs256 | Algorithm::Ps256 | Algorithm::Es256 => ask(message.sha256()),
        Algorithm::Rs384 | Algorithm::Ps384 | Algorithm::Es384 => {
            let mut hasher = Sha384::new();
            hasher.update(message.bytes());
            ask(&hasher.finish())
        }
        Algorithm::Rs512 | Algorithm::Ps512 | Algorithm::Es512 => {
            let mut hasher = Sha512::new();
            hasher.update(message.bytes());
            ask(&hasher.finish())
        }
        Algorithm::EdDsa | Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => Ok(false),
    }
}

/// RFC 7518 section 3.4: r and s, each as long as the curve's order and nothing else (no DER, no stripped zeros).
fn verify_ec(key: &EcKey<Public>, coordinate: usize, hash: &[u8], signature: &[u8]) -> Result<bool, openssl::error::ErrorStack> {
    if signature.len() != 2 * coordinate {
        return Ok(false);
    }
    let (r, s) = signature.split_at(coordinate);
    // r and s outside 1..n are refused by OpenSSL ("psychic signatures", CVE-2022-21449).
    EcdsaSig::from_private_components(BigNum::from_slice(r)?, BigNum::from_slice(s)?)?.verify(hash, key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use openssl::md_ctx::MdCtx;
    use openssl::rsa::Padding;
    use openssl::sign::RsaPssSaltlen;

    use crate::jose::{JwkSet, Jws, SigningKey};
    use jwt_simple::prelude::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::LazyLock;

    const ASYMMETRIC: [Algorithm; 10] = [
        Algorithm::Rs256,
        Algorithm::Rs384,
        Algorithm::Rs512,
        Algorithm::Ps256,
        Algorithm::Ps384,
        Algorithm::Ps512,
        Algorithm::Es256,
        Algorithm::Es384,
        Algorithm::Es512,
        Algorithm::EdDsa,
    ];

    static KEYS: LazyLock<Vec<(Algorithm, SigningKey, JwkSet)>> = LazyLock::new(|| {
        ASYMMETRIC
            .into_iter()
            .map(|algorithm| {
                let signing = SigningKey::generate(algorithm, "k").unwrap();
                let set = JwkSet::parse(json!({"keys": [signing.to_public_jwk().unwrap()]}).to_string().as_bytes()).unwrap();
                (algorithm, signing, set)
            })
            .collect()
    });

    #[test]
    fn a_leading_zero_of_an_rsa_signature_belongs_to_it() {
        for algorithm in [Algorithm::Rs256, Algorithm::Ps256] {
            let (_, signing, set) = KEYS.iter().find(|(key, ..)| *key == algorithm).unwrap();
            // One signature in 256 begins so.
            let beginning_with_zero = (0..10_000).find_map(|number| {
                let token = signing.sign(json!({"n": number}).as_object().unwrap()).unwrap();
                Jws::parse(&token).unwrap().signature().unwrap().starts_with(&[0]).then_some(token)
            });
            let token = beginning_with_zero.unwrap();
            let jws = Jws::parse(&token).unwrap();
            let signature = jws.signature().unwrap();
            assert!(set.keys()[0].verify(algorithm, &jws.signing_input().into(), &signature));
            assert!(!set.keys()[0].verify(algorithm, &jws.signing_input().into(), &signature[1..]), "{algorithm:?}");
        }
    }

    #[test]
    fn what_was_asked_before_changes_no_answer() {
        let rsa: Vec<_> = KEYS.iter().filter(|(_, _, set)| matches!(set.keys()[0].material, Material::Rsa(_))).collect();
        assert_eq!(rsa.len(), 6);
        // One key that may do all, as a set without `alg` has it.
        let all: Algorithms = rsa.iter().map(|(algorithm, ..)| *algorithm).collect();
        for (algorithm, signing, _) in &rsa {
            let mut jwk = signing.to_public_jwk().unwrap();
            jwk.as_object_mut().unwrap().remove("alg");
            let set = JwkSet::parse(json!({"keys": [jwk]}).to_string().as_bytes()).unwrap();
            let key = &set.keys()[0];
            assert_eq!(key.algorithms(), all);
            let token = signing.sign(json!({"sub": "a"}).as_object().unwrap()).unwrap();
            let jws = Jws::parse(&token).unwrap();
            let (message, signature) = (jws.signing_input(), jws.signature().unwrap());
            let mut broken = signature.clone();
            broken[100] ^= 1;
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..8 {
                            assert!(key.verify(*algorithm, &message.into(), &signature), "{algorithm:?}");
                            assert!(!key.verify(*algorithm, &message.into(), &broken), "{algorithm:?}");
                            assert!(!key.verify(*algorithm, &message[1..].into(), &signature), "{algorithm:?}");
                            assert!(!key.verify(*algorithm, &message.into(), &vec![0; signature.len()]), "{algorithm:?}");
                            assert!(!key.verify(*algorithm, &message.into(), &vec![0xff; signature.len()]), "{algorithm:?}");
                            for (other, ..) in rsa.iter().filter(|(other, ..)| other != algorithm) {
                                assert!(!key.verify(*other, &message.into(), &signature), "{algorithm:?} as {other:?}");
                            }
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn a_signature_is_good_for_its_message_its_key_and_its_algorithm_only() {
        for (algorithm, signing, set) in KEYS.iter() {
            let token = signing.sign(json!({"sub": "a"}).as_object().unwrap()).unwrap();
            let jws = Jws::parse(&token).unwrap();
            let signature = jws.signature().unwrap();
            assert_eq!(jws.header.algorithm, *algorithm);
            for (other, _, others) in KEYS.iter() {
                assert_eq!(jws.is_signed_by(&others.keys()[0], &signature), algorithm == other, "{algorithm:?} by {other:?}");
                assert_eq!(
                    set.keys()[0].verify(*other, &jws.signing_input().into(), &signature),
                    algorithm == other,
                    "{algorithm:?} as {other:?}"
                );
            }
            assert!(!set.keys()[0].verify(*algorithm, &b"another message"[..].into(), &signature));
            let longer = [&signature[..], &[0]].concat();
            let zero_first = [&[0], &signature[..]].concat();
            // For ECDSA the same two numbers, and so a second spelling of one signature.
            let (r, s) = signature.split_at(signature.len() / 2);
            let zero_between = [r, &[0], s].concat();
            for wrong in [
                &[][..],
                &signature[1..],
                &signature[..signature.len() - 1],
                &longer,
                &zero_first,
                &zero_between,
                &vec![0; signature.len()],
            ] {
                assert!(!set.keys()[0].verify(*algorithm, &jws.signing_input().into(), wrong), "{algorithm:?}");
            }
        }
    }

    #[test]
    fn a_private_jwk_signs_like_the_key_it_came_from() {
        for (algorithm, signing, set) in KEYS.iter() {
            let read = SigningKey::from_jwk(signing.to_private_jwk().unwrap().to_string().as_bytes()).unwrap();
            let token = read.sign(json!({"sub": "a"}).as_object().unwrap()).unwrap();
            let jws = Jws::parse(&token).unwrap();
            assert!(jws.is_signed_by(&set.keys()[0], &jws.signature().unwrap()), "{algorithm:?}");
        }
    }

    #[test]
    fn a_pss_signature_has_a_salt_as_long_as_its_hash() {
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let public = key.rsa().unwrap();
        let verifying = Key::from_rsa(None, [Algorithm::Ps256].into_iter().collect(), &public.n().to_vec(), &public.e().to_vec()).unwrap();
        for salt in [0, 20, 32, 64] {
            let mut context = MdCtx::new().unwrap();
            let parameters = context.digest_sign_init(Some(Md::sha256()), &key).unwrap();
            parameters.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
            parameters.set_rsa_pss_saltlen(RsaPssSaltlen::custom(salt)).unwrap();
            let mut signature = Vec::new();
            context.digest_sign_to_vec(b"m", &mut signature).unwrap();
            assert_eq!(verifying.verify(Algorithm::Ps256, &b"m"[..].into(), &signature), salt == 32, "{salt}");
        }
    }

    #[test]
    fn a_secret_signs_only_with_hashes_it_is_as_long_as() {
        assert!(Key::from_secret(&[7; 31]).is_none());
        let key = Key::from_secret(&[7; 48]).unwrap();
        assert_eq!(key.algorithms(), [Algorithm::Hs256, Algorithm::Hs384].into_iter().collect());
        let tag = HS384Key::from_bytes(&[7; 48]).authentication_tag(b"m");
        assert!(key.verify(Algorithm::Hs384, &b"m"[..].into(), &tag));
        assert!(!key.verify(Algorithm::Hs256, &b"m"[..].into(), &tag));
        assert!(!key.verify(Algorithm::Hs384, &b"n"[..].into(), &tag));
        assert!(!key.verify(Algorithm::Hs384, &b"m"[..].into(), &tag[1..]));
        assert!(!format!("{key:?}").contains('7'));
    }

    /// What jwt-simple says of a token: the other reader in the room.
    fn oracle(algorithm: Algorithm, jwk: &str, token: &str) -> bool {
        type Claims = serde_json::Map<String, serde_json::Value>;
        match algorithm {
            Algorithm::Rs256 => RS256PublicKey::from_jwk(jwk).unwrap().verify_token::<Claims>(token, None).is_ok(),
            Algorithm::Ps256 => PS256PublicKey::from_jwk(jwk).unwrap().verify_token::<Claims>(token, None).is_ok(),
            Algorithm::Es256 => ES256PublicKey::from_jwk(jwk).unwrap().verify_token::<Claims>(token, None).is_ok(),
            Algorithm::Es384 => ES384PublicKey::from_jwk(jwk).unwrap().verify_token::<Claims>(token, None).is_ok(),
            _ => Ed25519PublicKey::from_jwk(jwk).unwrap().verify_token::<Claims>(token, None).is_ok(),
        }
    }

    fn accepts(set: &JwkSet, token: &str) -> bool {
        let Ok(jws) = Jws::parse(token) else { return false };
        let Ok(signature) = jws.signature() else { return false };
        set.candidates(&jws.header).any(|key| jws.is_signed_by(key, &signature))
            && jws.payload().is_ok_and(|payload| crate::jose::Claims::parse(&payload).is_ok())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_altered_token_is_judged_as_jwt_simple_judges_it(
            which in prop::sample::select(vec![0usize, 3, 6, 7, 9]),
            subject in "[a-z]{0,20}",
            place in any::<prop::sample::Index>(),
            character in prop::sample::select("AZaz09-_.= +/".chars().collect::<Vec<_>>()),
            alter in 0..4u8,
        ) {
            let (algorithm, signing, set) = &KEYS[which];
            let good = signing.sign(json!({"sub": subject, "exp": 4102444800u64}).as_object().unwrap()).unwrap();
            let at = place.index(good.len());
            let token = match alter {
                0 => good.clone(),
                1 => format!("{}{character}{}", &good[..at], &good[at + 1..]),
                2 => format!("{}{character}{}", &good[..at], &good[at..]),
                _ => format!("{}{}", &good[..at], &good[at + 1..]),
            };
            let ours = accepts(set, &token);
            prop_assert_eq!(ours, oracle(*algorithm, &signing.to_public_jwk().unwrap().to_string(), &token), "{}", token);
            prop_assert_eq!(ours, token == good);
        }
    }
}
