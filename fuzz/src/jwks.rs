//! Key sets: what is read of one verifies only what its private half signed, and reads the same in any spelling of the JSON.

use std::sync::LazyLock;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use edgeward::jose::jws::Header;
use edgeward::jose::{Algorithm, JwkSet, Jws, json};
use serde_json::Value;

/// Tokens of each kind of key, signed by the keys of `jwks-main.json`.
static TOKENS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let keys: Value = serde_json::from_str(include_str!("../../tests/data/jwt-threats/private-keys-TEST-ONLY.json")).unwrap();
    let names = [
        ("rsa1", Algorithm::Rs256),
        ("rsa2", Algorithm::Ps256),
        ("ec1", Algorithm::Es256),
        ("ec384", Algorithm::Es384),
        ("ed1", Algorithm::EdDsa),
    ];
    let sign = |(name, algorithm): (&str, Algorithm)| {
        let key = edgeward::jose::SigningKey::from_pem(keys[name].as_str().unwrap().as_bytes(), algorithm, name).unwrap();
        key.sign_parts(format!(r#"{{"alg":"{}","kid":"{name}"}}"#, algorithm.label()).as_bytes(), b"{}").unwrap()
    };
    names.into_iter().map(sign).collect()
});

/// `data` is a key set.
pub fn run(data: &[u8]) {
    let Ok(set) = JwkSet::parse(data) else { return };
    let members = json::object(data).unwrap();
    let listed = members["keys"].as_array().unwrap();
    assert_eq!(set.keys().len() + set.skipped().values().sum::<usize>(), listed.len());
    let again = JwkSet::parse(&serde_json::to_vec(&members).unwrap()).unwrap();
    assert!(
        set.keys().iter().map(|key| key.fingerprint()).eq(again.keys().iter().map(|key| key.fingerprint())),
        "another spelling, other keys"
    );
    assert_eq!(set.skipped(), again.skipped());
    // Enough of them; a set may have a thousand.
    for key in set.keys().iter().take(4) {
        assert!(!key.algorithms().is_empty());
        assert!(set.find(key.fingerprint()).is_some());
        for algorithm in Algorithm::ALL {
            assert!(!(algorithm.is_symmetric() && key.algorithms().contains(algorithm)), "a secret in a key set");
            // Signatures that broken arithmetic takes for good: nothing, all zeros, a one, all ones.
            for (length, byte) in [(0, 0), (64, 0), (64, 1), (96, 0), (132, 0), (256, 0), (256, 0xff)] {
                assert!(!key.verify(algorithm, &b"message"[..].into(), &vec![byte; length]), "{algorithm:?} {length} {byte}");
            }
        }
    }
    for token in &*TOKENS {
        check_token(&set, listed, token);
    }
}

fn check_token(set: &JwkSet, listed: &[Value], token: &str) {
    let jws = Jws::parse(token).unwrap();
    let signature = jws.signature().unwrap();
    let candidates: Vec<_> = set.candidates(&jws.header).collect();
    assert!(candidates.len() <= 8);
    for key in candidates {
        assert!(key.algorithms().contains(jws.header.algorithm));
        assert!(key.kid().is_none() || key.kid() == jws.header.kid.as_deref());
        if jws.is_signed_by(key, &signature) {
            assert!(listed.iter().any(is_main), "a stranger's key verifies {token}");
            assert!(!key.verify(jws.header.algorithm, &b"another message"[..].into(), &signature));
            let other = Header { kid: Some("another key".into()), ..jws.header.clone() };
            assert!(key.kid().is_none() || set.candidates(&other).all(|candidate| candidate.fingerprint() != key.fingerprint()));
        }
    }
}

/// Whether this is a public key of the signers, whatever else is said of it.
fn is_main(jwk: &Value) -> bool {
    static MAIN: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let set: Value = serde_json::from_str(include_str!("../../tests/data/jwt-threats/jwks-main.json")).unwrap();
        set["keys"].as_array().unwrap().iter().filter_map(number).collect()
    });
    number(jwk).is_some_and(|number| MAIN.contains(&number))
}

/// The modulus or the first coordinate, without leading zeros.
fn number(jwk: &Value) -> Option<Vec<u8>> {
    let text = jwk.get("n").or(jwk.get("x"))?.as_str()?;
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
    Some(bytes.into_iter().skip_while(|byte| *byte == 0).collect())
}
