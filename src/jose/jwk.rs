//! JWK Sets (RFC 7517): what of an issuer's document can verify a token. A key that cannot is skipped and counted, never fatal (section 5).

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::EcKey;
use openssl::error::ErrorStack;
use openssl::pkey::{Id, PKey, Public};
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

    /// The keys to try for a token: those whose algorithms and key id fit, a bounded number in a fixed order.
    ///
    /// A `kid` need not be unique (RFC 7517 section 4.5), so every key of that id is tried, in the order of the document. A key without id
    /// fits any token, after those that are named; a token without id fits any key.
    pub fn candidates<'s>(&'s self, header: &'s Header) -> impl Iterator<Item = &'s Key> {
        let fits = |key: &&Key| key.algorithms().contains(header.algorithm);
        let is_named = |key: &&Key| key.kid().is_some_and(|have| header.kid.as_deref().is_none_or(|want| have == want));
        let named = self.keys.iter().filter(fits).filter(is_named);
        named.chain(self.keys.iter().filter(fits).filter(|key| key.kid().is_none())).take(MAX_TRIES)
    }
}

/// The key of a public key in PEM, under any id; the same kinds are taken, and the same weak ones refused, as in a set.
///
/// # Errors
/// Why it cannot verify.
pub fn from_pem(pem: &[u8]) -> Result<Key, &'static str> {
    if std::str::from_utf8(pem).is_ok_and(|text| text.contains("PRIVATE KEY")) {
        return Err("private");
    }
    let public = PKey::public_key_from_pem(pem).map_err(|_| "malformed")?;
    let encode = |bytes: Vec<u8>| Value::String(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes));
    let members = match public.id() {
        Id::RSA | Id::RSA_PSS => {
            let rsa = public.rsa().map_err(|_| "malformed")?;
            vec![("kty", "RSA".into()), ("n", encode(rsa.n().to_vec())), ("e", encode(rsa.e().to_vec()))]
        }
        Id::EC => {
            let key = public.ec_key().map_err(|_| "malformed")?;
            let curve = key.group().curve_name().and_then(Curve::of).ok_or("curve")?;
            let (x, y) = coordinates(&key, curve).map_err(|_| "point")?;
            vec![("kty", "EC".into()), ("crv", curve.name().into()), ("x", encode(x)), ("y", encode(y))]
        }
        Id::ED25519 => {
            let point = public.raw_public_key().map_err(|_| "malformed")?;
            vec![("kty", "OKP".into()), ("crv", "Ed25519".into()), ("x", encode(point))]
        }
        _ => return Err("kty"),
    };
    parse_key(&Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()))
}

fn coordinates(key: &EcKey<Public>, curve: Curve) -> Result<(Vec<u8>, Vec<u8>), ErrorStack> {
    let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
    key.public_key().affine_coordinates(key.group(), &mut x, &mut y, &mut *BigNumContext::new()?)?;
    // At most 66.
    let length = curve.coordinate() as i32;
    Ok((x.to_vec_padded(length)?, y.to_vec_padded(length)?))
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
    if has_roca(&modulus) {
        return Err("weak");
    }
    Key::from_rsa(kid, algorithms, &modulus, &exponent).map_err(|_| "malformed")
}

/// Whether the modulus has the mark of the smart cards of CVE-2017-15361, whose keys can be factored: modulo each small prime it is a
/// power of 65537. A sound modulus looks so once in 2^27.
fn has_roca(modulus: &[u8]) -> bool {
    const PRIMES: [u32; 38] = [
        3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131,
        137, 139, 149, 151, 157, 163, 167,
    ];
    PRIMES.iter().all(|prime| {
        let residue = modulus.iter().fold(0, |residue, byte| (residue * 256 + u32::from(*byte)) % prime);
        std::iter::successors(Some(1), |power| Some(power * (65537 % prime) % prime)).take(*prime as usize).any(|power| power == residue)
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::SigningKey;
    use serde_json::json;

    fn public(algorithm: Algorithm) -> Value {
        SigningKey::generate(algorithm, "k").unwrap().to_public_jwk().unwrap()
    }

    fn with(mut jwk: Value, name: &str, value: Value) -> Value {
        jwk.as_object_mut().unwrap().insert(name.to_owned(), value);
        jwk
    }

    fn without(mut jwk: Value, name: &str) -> Value {
        jwk.as_object_mut().unwrap().remove(name);
        jwk
    }

    fn skipped(jwk: &Value) -> Option<&'static str> {
        let good = public(Algorithm::EdDsa);
        let set = JwkSet::parse(json!({"keys": [jwk, good]}).to_string().as_bytes()).unwrap();
        assert_eq!(
            set.keys().last().map(|key| key.algorithms()),
            Some([Algorithm::EdDsa].into_iter().collect()),
            "a bad key hides a good one"
        );
        set.skipped().keys().next().copied()
    }

    #[test]
    fn a_key_in_pem_is_the_key_of_the_set() {
        let rsa = PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap();
        let group = openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::X9_62_PRIME256V1).unwrap();
        let ec = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let okp = PKey::generate_ed25519().unwrap();
        for (key, algorithm) in [(&rsa, Algorithm::Ps512), (&rsa, Algorithm::Rs256), (&ec, Algorithm::Es256), (&okp, Algorithm::EdDsa)] {
            let read = from_pem(&key.public_key_to_pem().unwrap()).unwrap();
            assert!(read.algorithms().contains(algorithm));
            assert_eq!(from_pem(&key.private_key_to_pem_pkcs8().unwrap()).err(), Some("private"));
        }
        let weak = PKey::from_rsa(openssl::rsa::Rsa::generate(1024).unwrap()).unwrap().public_key_to_pem().unwrap();
        assert_eq!(from_pem(&weak).err(), Some("weak"));
        assert_eq!(from_pem(b"junk").err(), Some("malformed"));
    }

    #[test]
    fn a_key_that_cannot_verify_safely_is_skipped_and_says_why() {
        let (rsa, ec, okp) = (public(Algorithm::Rs256), public(Algorithm::Es256), public(Algorithm::EdDsa));
        let weak: Value = serde_json::from_slice(include_bytes!("../../tests/data/jwt-threats/jwks-weak-rsa-1024.json")).unwrap();
        let even = {
            let mut modulus = base64url(rsa["n"].as_str().unwrap().as_bytes()).unwrap();
            *modulus.last_mut().unwrap() &= 0xfe;
            use base64::Engine;
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(modulus)
        };
        for (jwk, reason) in [
            (json!(1), "malformed"),
            (json!({}), "malformed"),
            (json!({"kty": 1}), "malformed"),
            (json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"}), "kty"),
            (json!({"kty": "oct", "k": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "alg": "HS256"}), "symmetric"),
            (SigningKey::generate(Algorithm::Es256, "k").unwrap().to_private_jwk().unwrap(), "private"),
            (SigningKey::generate(Algorithm::EdDsa, "k").unwrap().to_private_jwk().unwrap(), "private"),
            (with(rsa.clone(), "use", json!("enc")), "use"),
            (with(rsa.clone(), "use", json!(["sig"])), "malformed"),
            (with(rsa.clone(), "key_ops", json!(["encrypt"])), "key_ops"),
            (with(rsa.clone(), "key_ops", json!("verify")), "key_ops"),
            (with(rsa.clone(), "alg", json!("RSA-OAEP")), "alg"),
            (with(rsa.clone(), "alg", json!("ES256")), "alg"),
            (with(rsa.clone(), "alg", json!("none")), "alg"),
            (with(rsa.clone(), "kid", json!(7)), "malformed"),
            (weak["keys"][0].clone(), "weak"),
            (with(rsa.clone(), "n", json!(even)), "weak"),
            (with(rsa.clone(), "n", json!("A".repeat(1400))), "weak"),
            (with(rsa.clone(), "n", json!("_".repeat(1400))), "weak"),
            (with(rsa.clone(), "e", json!("AQ")), "weak"),
            (with(rsa.clone(), "e", json!("AAAA")), "weak"),
            (with(rsa.clone(), "e", json!("AQAA")), "weak"),
            (with(rsa.clone(), "e", json!("_____________w")), "weak"),
            (with(rsa.clone(), "e", json!("AQAB=")), "malformed"),
            (without(rsa.clone(), "n"), "malformed"),
            (with(ec.clone(), "crv", json!("secp256k1")), "curve"),
            (with(ec.clone(), "crv", json!("P-384")), "alg"),
            (with(without(ec.clone(), "alg"), "crv", json!("P-384")), "malformed"),
            (with(ec.clone(), "x", ec["y"].clone()), "point"),
            (with(ec.clone(), "x", json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")), "point"),
            (with(okp.clone(), "crv", json!("X25519")), "curve"),
            (with(okp.clone(), "crv", json!("Ed448")), "curve"),
            (with(okp.clone(), "x", json!("AAAA")), "point"),
            // Of order 4: every signature by it can be made to fit many messages.
            (with(okp, "x", json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")), "point"),
        ] {
            assert_eq!(skipped(&jwk), Some(reason), "{jwk}");
        }
        assert_eq!(skipped(&with(rsa.clone(), "key_ops", json!(["sign", "verify"]))), None);
        assert_eq!(skipped(&with(rsa, "x5c", json!(["MIIB"]))), None);
        assert_eq!(skipped(&ec), None);
    }

    #[test]
    fn a_document_that_is_no_key_set_is_refused_whole() {
        let many = json!({"keys": vec![json!({}); MAX_KEYS + 1]}).to_string();
        for document in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"keys":null}"#,
            r#"{"keys":{}}"#,
            "<html></html>",
            r#"{"keys":[],"keys":[]}"#,
            r#"{"keys":["#,
            &many,
        ] {
            assert!(JwkSet::parse(document.as_bytes()).is_err(), "{document:.40}");
        }
        assert!(JwkSet::parse(br#"{"keys":[]}"#).unwrap().keys().is_empty());
    }

    #[test]
    fn a_key_without_alg_verifies_what_its_type_can_and_one_with_alg_only_that() {
        use Algorithm as A;
        let algorithms = |jwk: &Value| JwkSet::parse(json!({"keys": [jwk]}).to_string().as_bytes()).unwrap().keys()[0].algorithms();
        let rsa = public(A::Ps256);
        assert_eq!(algorithms(&rsa), [A::Ps256].into_iter().collect());
        assert_eq!(algorithms(&without(rsa, "alg")), [A::Rs256, A::Rs384, A::Rs512, A::Ps256, A::Ps384, A::Ps512].into_iter().collect());
        assert_eq!(algorithms(&without(public(A::Es512), "alg")), [A::Es512].into_iter().collect());
        assert_eq!(algorithms(&with(public(A::EdDsa), "alg", json!("Ed25519"))), [A::EdDsa].into_iter().collect());
    }

    #[test]
    fn every_key_of_a_doubled_id_is_tried_in_order_and_a_bounded_number_of_them() {
        let one = public(Algorithm::Es256);
        let set = JwkSet::parse(json!({"keys": vec![one.clone(); 100]}).to_string().as_bytes()).unwrap();
        let header = |kid: Option<&str>, algorithm| Header { algorithm, kid: kid.map(Into::into), typ: None };
        assert_eq!(set.candidates(&header(Some("k"), Algorithm::Es256)).count(), MAX_TRIES);
        assert_eq!(set.candidates(&header(None, Algorithm::Es256)).count(), MAX_TRIES);
        assert_eq!(set.candidates(&header(Some("other"), Algorithm::Es256)).count(), 0);
        assert_eq!(set.candidates(&header(Some("k"), Algorithm::Rs256)).count(), 0);
        let set = JwkSet::parse(json!({"keys": [one, without(public(Algorithm::Es256), "kid")]}).to_string().as_bytes()).unwrap();
        assert_eq!(set.candidates(&header(Some("k"), Algorithm::Es256)).count(), 2);
        assert_eq!(set.candidates(&header(Some("other"), Algorithm::Es256)).count(), 1);
        // Many keys without id must not keep the one that is named from being tried.
        let nameless = without(public(Algorithm::Es256), "kid");
        let mut many = vec![nameless; 2 * MAX_TRIES];
        many.push(public(Algorithm::Es256));
        let set = JwkSet::parse(json!({ "keys": many }).to_string().as_bytes()).unwrap();
        assert_eq!(set.candidates(&header(Some("k"), Algorithm::Es256)).next().and_then(|key| key.kid()), Some("k"));
    }

    #[test]
    fn the_fingerprint_changes_with_material_id_and_algorithms() {
        let fingerprint = |jwk: &Value| *JwkSet::parse(json!({"keys": [jwk]}).to_string().as_bytes()).unwrap().keys()[0].fingerprint();
        let jwk = public(Algorithm::Rs256);
        let all = [
            fingerprint(&jwk),
            fingerprint(&public(Algorithm::Rs256)),
            fingerprint(&with(jwk.clone(), "kid", json!("other"))),
            fingerprint(&without(jwk.clone(), "kid")),
            fingerprint(&with(jwk.clone(), "kid", json!(""))),
            fingerprint(&with(jwk.clone(), "alg", json!("PS256"))),
            fingerprint(&without(jwk.clone(), "alg")),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all.iter().skip(i + 1).all(|b| a != b), "{i}");
        }
        assert_eq!(all[0], fingerprint(&with(jwk, "x5t", json!("ignored"))));
    }

    #[test]
    fn a_modulus_of_powers_of_65537_is_that_of_a_broken_card() {
        use openssl::bn::{BigNum, BigNumContext};
        let mut marked = BigNum::new().unwrap();
        let (base, exponent) = (BigNum::from_u32(65537).unwrap(), BigNum::from_u32(128).unwrap());
        marked.exp(&base, &exponent, &mut BigNumContext::new().unwrap()).unwrap();
        assert!(has_roca(&marked.to_vec()));
        use base64::Engine;
        let modulus = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(marked.to_vec());
        assert_eq!(skipped(&with(public(Algorithm::Rs256), "n", json!(modulus))), Some("weak"));
        marked.add_word(2).unwrap();
        assert!(!has_roca(&marked.to_vec()));
    }

    #[test]
    fn the_length_of_a_number_ignores_leading_zeros() {
        for (bytes, length) in
            [(&[][..], 0), (&[0, 0], 0), (&[1], 1), (&[0, 1], 1), (&[3], 2), (&[0x80], 8), (&[1, 0], 9), (&[0, 0xff, 0, 0], 24)]
        {
            assert_eq!(bit_length(bytes), length, "{bytes:?}");
        }
    }
}
