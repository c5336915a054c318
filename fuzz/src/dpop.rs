//! Proofs of a holder's key: accepted is only what that key signed for this token and request, and only once.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use edgeward::authenticators::dpop::Proofs;
use edgeward::config;
use edgeward::jose::{Algorithm, SigningKey, jwk};
use edgeward::live::LiveState;
use edgeward::request::{Client, Now, Rejection, Request};
use http::{HeaderMap, HeaderValue, Method};
use percent_encoding::percent_decode_str;
use serde_json::Value;

const TOKEN: &str = "a.bound.token";
/// SHA-256 of the token.
const HASH: &str = "z3l4AcLgP2lfJP6QIEQwX9JDyooPqan-hecWVHEyx7o";
const NOW: u64 = 1_800_000_000;
const LEEWAY: u64 = 30;
const MAX_AGE: u64 = 60;

static HOLDER: LazyLock<SigningKey> = LazyLock::new(|| {
    let keys: Value = serde_json::from_str(include_str!("../../tests/data/jwt-threats/private-keys-TEST-ONLY.json")).unwrap();
    SigningKey::from_pem(keys["ec1"].as_str().unwrap().as_bytes(), Algorithm::Es256, "ec1").unwrap()
});

/// One line is a proof. Of more, the first is a header and the rest a payload, which the holder signs.
pub fn run(data: &[u8]) {
    let Some(at) = data.iter().position(|byte| *byte == b'\n') else {
        if let Ok(proof) = std::str::from_utf8(data) {
            assert!(judge(&proofs(), proof).is_err(), "a proof that the holder never signed: {proof}");
        }
        return;
    };
    let (header, payload) = (&data[..at], &data[at + 1..]);
    let proof = HOLDER.sign_parts(header, payload).unwrap();
    let (input, _) = proof.rsplit_once('.').unwrap();
    assert!(judge(&proofs(), &format!("{input}.")).is_err(), "a proof without a signature");
    assert!(judge(&proofs(), &format!("{input}.{}", "A".repeat(86))).is_err(), "a proof with a signature of nothing");
    let proofs = proofs();
    match judge(&proofs, &proof) {
        Ok(()) => {
            check_said(header, payload);
            assert_eq!(judge(&proofs, &proof), Err(Rejection::ProofInvalid("dpop_replayed")), "a proof that counts twice");
        }
        Err(rejection) => {
            assert_eq!(rejection.code(), "credential_invalid", "{rejection:?}");
            assert!(!says_all(header, payload), "{rejection:?}: {:?}", String::from_utf8_lossy(payload));
        }
    }
}

fn proofs() -> Proofs {
    let dpop = config::Dpop { required: false, max_age: Duration::from_secs(MAX_AGE), nonce: None };
    Proofs::new(&Arc::from("a"), &dpop, Duration::from_secs(LEEWAY), &LiveState::default())
}

fn judge(proofs: &Proofs, proof: &str) -> Result<(), Rejection> {
    let thumbprint = BASE64_URL_SAFE_NO_PAD.encode(jwk::thumbprint(&HOLDER.to_public_jwk().unwrap()).unwrap());
    let Ok(proof) = HeaderValue::from_str(proof) else { return Err(Rejection::ProofInvalid("header")) };
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_static("DPoP a.bound.token"));
    headers.insert("dpop", proof);
    let client = Client { address: [127, 0, 0, 1].into(), through_trusted_proxy: false };
    let request = Request { scheme: "https", ..Request::new(&Method::POST, "gw.test", "/a/b", &headers, &client) };
    let now = Now { monotonic: Duration::from_secs(100), unix: Duration::from_secs(NOW) };
    proofs.check(&thumbprint, TOKEN, &request, now).map(|next| assert_eq!(next, None, "nobody asked for a nonce"))
}

/// The rules again, for whoever trusts the JSON: an accepted proof keeps every one.
fn check_said(header: &[u8], payload: &[u8]) {
    let header: Value = serde_json::from_slice(header).unwrap();
    assert_eq!(header["alg"], "ES256");
    assert!(header["typ"].as_str().unwrap().eq_ignore_ascii_case("dpop+jwt"), "{header}");
    assert!(["crit", "b64", "enc", "zip", "cty"].iter().all(|name| header.get(name).is_none()), "{header}");
    let own = HOLDER.to_public_jwk().unwrap();
    assert!(["kty", "crv", "x", "y"].iter().all(|name| header["jwk"][name] == own[name]), "{header}");
    assert!(header["jwk"].get("d").is_none(), "a key that is nobody's secret any more: {header}");
    let claims: Value = serde_json::from_slice(payload).unwrap();
    assert_eq!((&claims["htm"], &claims["ath"]), (&Value::from("POST"), &Value::from(HASH)));
    assert!(claims["jti"].is_string());
    let issued = claims["iat"].as_f64().unwrap();
    assert!(issued <= (NOW + LEEWAY) as f64 && issued >= (NOW - MAX_AGE - LEEWAY) as f64, "{claims}");
    let url = claims["htu"].as_str().unwrap().split(['?', '#']).next().unwrap();
    let (origin, path) = url.split_at(url.match_indices('/').nth(2).unwrap().0);
    let origin = origin.to_ascii_lowercase();
    let host = origin.strip_prefix("https://").unwrap();
    assert_eq!(host.strip_suffix(":443").unwrap_or(host).trim_end_matches('.'), "gw.test", "{url}");
    // As any server would read it.
    let path = percent_decode_str(path).decode_utf8().unwrap();
    let mut segments = Vec::new();
    for segment in path.split('/').filter(|segment| !["", "."].contains(segment)) {
        if segment == ".." {
            segments.pop();
        } else {
            segments.push(segment);
        }
    }
    assert_eq!(segments, ["a", "b"], "{url}");
}

/// Whether this is the plainest sound proof, which must be accepted: a gateway that refuses everything proves nothing.
fn says_all(header: &[u8], payload: &[u8]) -> bool {
    let jwk = HOLDER.to_public_jwk().unwrap();
    let plain = format!(r#"{{"typ":"dpop+jwt","alg":"ES256","jwk":{{"kty":"EC","crv":"P-256","x":{},"y":{}}}}}"#, jwk["x"], jwk["y"]);
    header == plain.as_bytes()
        && payload == format!(r#"{{"jti":"1","htm":"POST","htu":"https://gw.test/a/b","iat":{NOW},"ath":"{HASH}"}}"#).as_bytes()
}
