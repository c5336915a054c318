//! Keys that sign: those of our own issuer, and of tools, demo and tests.
//!
//! OpenSSL signs: jwt-simple's RSA is not constant in time (RUSTSEC-2023-0071), and a signing key must not leak by that way.

use std::collections::BTreeMap;

use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcKey, EcPoint};
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::md_ctx::MdCtx;
use openssl::pkey::{Id, PKey, Private};
use openssl::rsa::{Padding, RsaPrivateKeyBuilder};
use openssl::sha::{sha256, sha384, sha512};
use openssl::sign::{RsaPssSaltlen, Signer};
use serde_json::{Map, Value, json};

use super::key::{Curve, digest};
use super::{Algorithm, base64url, json};

/// A private key with its algorithm and key id.
pub struct SigningKey {
    algorithm: Algorithm,
    kid: String,
    key: PKey<Private>,
}

/// Why a private key cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The algorithm's key is no key pair.
    #[error("{} has no key pair", .0.label())]
    Symmetric(Algorithm),
    /// Not a private JWK that we can sign with.
    #[error("not a private JWK: {0}")]
    Jwk(&'static str),
    /// OpenSSL refused.
    #[error("OpenSSL: {0}")]
    OpenSsl(#[from] ErrorStack),
}

impl SigningKey {
    /// A fresh key; RSA has 2048 bits.
    pub fn generate(algorithm: Algorithm, kid: &str) -> Result<Self, SigningError> {
        let key = match algorithm {
            Algorithm::Rs256 | Algorithm::Rs384 | Algorithm::Rs512 | Algorithm::Ps256 | Algorithm::Ps384 | Algorithm::Ps512 => {
                PKey::from_rsa(openssl::rsa::Rsa::generate(2048)?)?
            }
            Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 => {
                let curve = curve_of(algorithm).ok_or(SigningError::Symmetric(algorithm))?;
                let group = curve.group()?;
                PKey::from_ec_key(EcKey::generate(&group)?)?
            }
            Algorithm::EdDsa => PKey::generate_ed25519()?,
            Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => return Err(SigningError::Symmetric(algorithm)),
        };
        Ok(Self { algorithm, kid: kid.to_owned(), key })
    }

    /// A key in PEM (PKCS#8), for this algorithm.
    pub fn from_pem(pem: &[u8], algorithm: Algorithm, kid: &str) -> Result<Self, SigningError> {
        Ok(Self { algorithm, kid: kid.to_owned(), key: PKey::private_key_from_pem(pem)? })
    }

    /// A private JWK, which must name its `alg` and `kid`.
    pub fn from_jwk(jwk: &[u8]) -> Result<Self, SigningError> {
        let jwk = json::object(jwk).ok_or(SigningError::Jwk("not a JSON object"))?;
        let text = |name: &'static str| jwk.get(name).and_then(Value::as_str).ok_or(SigningError::Jwk(name));
        let bytes = |name: &'static str| base64url(text(name)?.as_bytes()).ok_or(SigningError::Jwk(name));
        let number = |name: &'static str| Ok::<_, SigningError>(BigNum::from_slice(&bytes(name)?)?);
        let algorithm = Algorithm::parse(text("alg")?).ok_or(SigningError::Jwk("alg"))?;
        let key = match algorithm {
            Algorithm::EdDsa => PKey::private_key_from_raw_bytes(&bytes("d")?, Id::ED25519)?,
            Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 => {
                let curve = curve_of(algorithm).filter(|curve| text("crv").is_ok_and(|crv| crv == curve.name()));
                let group = curve.ok_or(SigningError::Jwk("crv"))?.group()?;
                let mut point = EcPoint::new(&group)?;
                let (x, y) = (number("x")?, number("y")?);
                point.set_affine_coordinates(&group, &x, &y, &mut *BigNumContext::new()?)?;
                let secret = number("d")?;
                let key = EcKey::from_private_components(&group, &secret, &point)?;
                key.check_key()?;
                PKey::from_ec_key(key)?
            }
            _ if algorithm.is_symmetric() => return Err(SigningError::Symmetric(algorithm)),
            _ => PKey::from_rsa(
                RsaPrivateKeyBuilder::new(number("n")?, number("e")?, number("d")?)?
                    .set_factors(number("p")?, number("q")?)?
                    .set_crt_params(number("dp")?, number("dq")?, number("qi")?)?
                    .build(),
            )?,
        };
        Ok(Self { algorithm, kid: text("kid")?.to_owned(), key })
    }

    /// The private JWK: keep it.
    pub fn to_private_jwk(&self) -> Result<Value, SigningError> {
        let mut jwk = self.public_members()?;
        let secret: Vec<(&str, Vec<u8>)> = if let Ok(rsa) = self.key.rsa() {
            let part = |name, number: Option<&openssl::bn::BigNumRef>| Some((name, number?.to_vec()));
            let parts = [
                part("d", Some(rsa.d())),
                part("p", rsa.p()),
                part("q", rsa.q()),
                part("dp", rsa.dmp1()),
                part("dq", rsa.dmq1()),
                part("qi", rsa.iqmp()),
            ];
            parts.into_iter().flatten().collect()
        } else if let (Ok(ec), Some(curve)) = (self.key.ec_key(), curve_of(self.algorithm)) {
            vec![("d", padded(ec.private_key(), curve)?)]
        } else {
            vec![("d", self.key.raw_private_key()?)]
        };
        jwk.extend(secret.into_iter().map(|(name, bytes)| (name.to_owned(), encode(&bytes).into())));
        Ok(Value::Object(jwk))
    }

    /// The public JWK, as a key set lists it.
    pub fn to_public_jwk(&self) -> Result<Value, SigningError> {
        self.public_members().map(Value::Object)
    }

    /// The algorithm that it signs with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its key id.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The same key, named by its thumbprint (RFC 7638): no two keys have the same id, and nobody has to choose one.
    pub fn with_thumbprint(self) -> Result<Self, SigningError> {
        let members: BTreeMap<String, Value> =
            self.public_members()?.into_iter().filter(|(name, _)| !["alg", "kid", "use"].contains(&name.as_str())).collect();
        let text = serde_json::to_string(&members).map_err(|_| SigningError::Jwk("not JSON"))?;
        Ok(Self { kid: encode(&sha256(text.as_bytes())), ..self })
    }

    /// A compact JWS over `claims`.
    pub fn sign(&self, claims: &Map<String, Value>) -> Result<String, SigningError> {
        self.sign_as("JWT", claims)
    }

    /// A compact JWS over `claims` whose header says this `typ`.
    pub fn sign_as(&self, typ: &str, claims: &Map<String, Value>) -> Result<String, SigningError> {
        let header = json!({"alg": self.algorithm.label(), "kid": self.kid, "typ": typ});
        self.sign_parts(header.to_string().as_bytes(), Value::Object(claims.clone()).to_string().as_bytes())
    }

    /// A compact JWS over any header and payload, sound or not: what a test presents.
    pub fn sign_parts(&self, header: &[u8], payload: &[u8]) -> Result<String, SigningError> {
        let mut token = format!("{}.{}", encode(header), encode(payload));
        let signature = self.signature(token.as_bytes())?;
        token.push('.');
        token.push_str(&encode(&signature));
        Ok(token)
    }

    fn public_members(&self) -> Result<Map<String, Value>, SigningError> {
        let mut jwk = if let Ok(rsa) = self.key.rsa() {
            json!({"kty": "RSA", "n": encode(&rsa.n().to_vec()), "e": encode(&rsa.e().to_vec())})
        } else if let (Ok(ec), Some(curve)) = (self.key.ec_key(), curve_of(self.algorithm)) {
            let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
            ec.public_key().affine_coordinates(ec.group(), &mut x, &mut y, &mut *BigNumContext::new()?)?;
            json!({"kty": "EC", "crv": curve.name(), "x": encode(&padded(&x, curve)?), "y": encode(&padded(&y, curve)?)})
        } else {
            json!({"kty": "OKP", "crv": "Ed25519", "x": encode(&self.key.raw_public_key()?)})
        };
        for (name, value) in [("alg", self.algorithm.label()), ("kid", self.kid.as_str()), ("use", "sig")] {
            if let Value::Object(members) = &mut jwk {
                members.insert(name.to_owned(), value.into());
            }
        }
        match jwk {
            Value::Object(members) => Ok(members),
            _ => Err(SigningError::Jwk("not an object")),
        }
    }

    fn signature(&self, message: &[u8]) -> Result<Vec<u8>, SigningError> {
        if let Some(curve) = curve_of(self.algorithm) {
            let key = self.key.ec_key()?;
            let pair = match self.algorithm {
                Algorithm::Es256 => EcdsaSig::sign(&sha256(message), &key)?,
                Algorithm::Es384 => EcdsaSig::sign(&sha384(message), &key)?,
                _ => EcdsaSig::sign(&sha512(message), &key)?,
            };
            return Ok([padded(pair.r(), curve)?, padded(pair.s(), curve)?].concat());
        }
        let Some((digest, pss)) = digest(self.algorithm) else {
            return Ok(Signer::new_without_digest(&self.key)?.sign_oneshot_to_vec(message)?);
        };
        let mut context = MdCtx::new()?;
        let parameters = context.digest_sign_init(Some(digest), &self.key)?;
        if pss {
            parameters.set_rsa_padding(Padding::PKCS1_PSS)?;
            parameters.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
        }
        let mut signature = Vec::new();
        context.digest_sign_to_vec(message, &mut signature)?;
        Ok(signature)
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("algorithm", &self.algorithm).field("kid", &self.kid).finish_non_exhaustive()
    }
}

fn curve_of(algorithm: Algorithm) -> Option<Curve> {
    [Curve::P256, Curve::P384, Curve::P521].into_iter().find(|curve| curve.algorithm() == algorithm)
}

fn padded(number: &openssl::bn::BigNumRef, curve: Curve) -> Result<Vec<u8>, ErrorStack> {
    // At most 66.
    number.to_vec_padded(curve.coordinate() as i32)
}

fn encode(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}
