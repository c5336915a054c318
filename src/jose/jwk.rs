//! JWK Sets (RFC 7517): what of an issuer's document can verify a token. A key that cannot is skipped and counted, never fatal (section 5).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::jws::Header;
use super::key::{Curve, Fingerprint};
use super::{Algorithm, Algorithms, Key, base64url, json};

/// More keys than this in one set are no key set.
pub const MAX_KEYS: usize = 1000;
/// At most so many keys are tried for one token: what an attacker can make us compute with one request is bounded.
const MAX_TRIES: usize = 8;

/// The keys of one issuer that can verify, in the order of the document.
#[derive(Debug, Default)]
pub struct JwkSet {
    keys: Vec<Key>,
    skipped: BTreeMap<&'static str, usize>,
}

impl JwkSet {
    /// Reads a JWK Set. The error says why the document as a whole is none.
    pub fn parse(document: &[u8]) -> Result<Self, &'static str> {
        let members = json::object(document).ok_or("not a JSON object with unique member names")?;
        let Some(Value::Array(keys)) = members.get("keys") else { return Err("no list named \"keys\"") };
        if keys.len() > MAX_KEYS {
            return Err("more than 1000 keys");
        }
        let mut set = Self::default();
        for key in keys {
            match parse_key(key) {
                Ok(key) => set.keys.push(key),
                Err(reason) => *set.skipped.entry(reason).or_default() += 1,
            }
        }
        Ok(set)
    }

    /// The set of one shared secret; nothing when it is too short for any HS* algorithm.
    pub fn from_secret(secret: &[u8]) -> Option<Self> {
        Some(Self { keys: vec![Key::from_secret(secret)?], skipped: BTreeMap::new() })
    }

    /// The usable keys.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// How many keys of the document are not used, by reason.
    pub fn skipped(&self) -> &BTreeMap<&'static str, usize> {
        &self.skipped
    }

    /// The key of this fingerprint, if the issuer still has it.
    pub fn find(&self, fingerprint: &Fingerprint) -> Option<&Key> {
        self.keys.iter().find(|key| key.fingerprint() == fingerprint)
    }

    /// The keys to try for a token: those whose algorithms and key id fit, first in the document first, a bounded number.
    ///
    /// A `kid` need not be unique (RFC 7517 section 4.5), so every key of that id is tried; a key without id fits any token, and a token
    /// without id any key.
    pub fn candidates<'s>(&'s self, header: &'s Header) -> impl Iterator<Item = &'s Key> {
        self.keys
            .iter()
            .filter(|key| key.algorithms().contains(header.algorithm))
            .filter(|key| match (key.kid(), header.kid.as_deref()) {
                (Some(have), Some(want)) => have == want,
                _ => true,
            })
            .take(MAX_TRIES)
    }
}

fn parse_key(jwk: &Value) -> Result<Key, &'static str> {
    let Value::Object(jwk) = jwk else { return Err("malformed") };
    // A set that tells a private key tells it to everybody: whoever signs with it proves nothing.
    if ["d", "p", "q", "dp", "dq", "qi", "oth", "priv"].iter().any(|member| jwk.contains_key(*member)) {
        return Err("private");
    }
    let kty = text(jwk, "kty")?.ok_or("malformed")?;
    if kty == "oct" {
        return Err("symmetric");
    }
    match text(jwk, "use")? {
        None | Some("sig") => {}
        Some(_) => return Err("use"),
    }
    match jwk.get("key_ops") {
        None => {}
        Some(Value::Array(operations)) if operations.iter().any(|operation| operation == "verify") => {}
        Some(_) => return Err("key_ops"),
    }
    let kid: Option<Arc<str>> = text(jwk, "kid")?.map(Into::into);
    match kty {
        "RSA" => parse_rsa(jwk, kid),
        "EC" => {
            let curve = text(jwk, "crv")?.and_then(Curve::parse).ok_or("curve")?;
            let algorithms = algorithms(jwk, &[curve.algorithm()])?;
            let (x, y) = (bytes(jwk, "x")?, bytes(jwk, "y")?);
            // RFC 7518 section 6.2.1.2: the full length of the curve, so that a point has one spelling.
            if x.len() != curve.coordinate() || y.len() != curve.coordinate() {
                return Err("malformed");
            }
            Key::from_ec(kid, algorithms, curve, &x, &y).map_err(|_| "point")
        }
        "OKP" => {
            if text(jwk, "crv")? != Some("Ed25519") {
                return Err("curve");
            }
            Key::from_ed25519(kid, algorithms(jwk, &[Algorithm::EdDsa])?, &bytes(jwk, "x")?).ok_or("point")
        }
        _ => Err("kty"),
    }
}

fn parse_rsa(jwk: &Map<String, Value>, kid: Option<Arc<str>>) -> Result<Key, &'static str> {
    use Algorithm as A;
    let algorithms = algorithms(jwk, &[A::Rs256, A::Rs384, A::Rs512, A::Ps256, A::Ps384, A::Ps512])?;
    let (modulus, exponent) = (bytes(jwk, "n")?, bytes(jwk, "e")?);
    // RFC 7518 section 3.3 asks for 2048 bits. The upper bounds keep one verification from costing milliseconds.
    if !(2048..=8192).contains(&bit_length(&modulus)) || modulus.last().is_none_or(|byte| byte % 2 == 0) {
        return Err("weak");
    }
    // e = 1 makes every number its own signature, an even e is no RSA.
    if !(2..=64).contains(&bit_length(&exponent)) || exponent.last().is_none_or(|byte| byte % 2 == 0) {
        return Err("weak");
    }
    Key::from_rsa(kid, algorithms, &modulus, &exponent).map_err(|_| "malformed")
}

/// What the key may verify: what its type can do, narrowed by its `alg`.
fn algorithms(jwk: &Map<String, Value>, possible: &[Algorithm]) -> Result<Algorithms, &'static str> {
    match text(jwk, "alg")? {
        None => Ok(possible.iter().copied().collect()),
        Some(name) => match Algorithm::parse(name) {
            Some(algorithm) if possible.contains(&algorithm) => Ok([algorithm].into_iter().collect()),
            _ => Err("alg"),
        },
    }
}

fn text<'j>(jwk: &'j Map<String, Value>, name: &str) -> Result<Option<&'j str>, &'static str> {
    match jwk.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err("malformed"),
    }
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Result<Vec<u8>, &'static str> {
    text(jwk, name)?.and_then(|text| base64url(text.as_bytes())).ok_or("malformed")
}

fn bit_length(number: &[u8]) -> usize {
    let significant = number.iter().skip_while(|byte| **byte == 0);
    let mut length = 0;
    for (index, byte) in significant.enumerate() {
        length = if index == 0 { 8 - byte.leading_zeros() as usize } else { length + 8 };
    }
    length
}
