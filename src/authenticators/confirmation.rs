//! Tokens that are bound to a key of their holder (RFC 7800 `cnf`): worth nothing without proof of that key with the very request.
//!
//! A binding is checked with every request and never remembered: that a token was proven once says nothing about who sends it now.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use serde_json::Value;

use super::dpop::{self, Proofs};
use crate::jose::claims::Registered;
use crate::request::{Now, Rejection, Request};

/// Checks what a token says about its holder's key; a token that says nothing is good in anybody's hands, unless `proofs` asks for more. Answers
/// with the nonce for the caller's next proof, where that is another.
///
/// # Errors
/// The proof is missing or another's, or the token asks for one that is not understood: an unknown member is no lesser demand.
pub fn check(
    (token, claims): (&str, &Registered),
    proofs: &Proofs,
    request: &Request<'_>,
    now: Now,
) -> Result<Option<HeaderValue>, Rejection> {
    let members = match &claims.confirmation {
        None => None,
        Some(confirmation) => Some(confirmation.as_object().filter(|members| !members.is_empty()).ok_or(UNKNOWN)?),
    };
    if !members.is_some_and(|members| members.contains_key("jkt")) {
        // Whoever says `DPoP` means a bound token (RFC 9449 section 7.1).
        if dpop::is_claimed(request) {
            return Err(Rejection::CredentialInvalid("dpop_unbound"));
        }
        if proofs.required {
            return Err(Rejection::CredentialInvalid("dpop_required"));
        }
    }
    let mut nonce = None;
    for (name, value) in members.into_iter().flatten() {
        match (name.as_str(), value) {
            ("x5t#S256", Value::String(thumbprint)) => certificate(thumbprint, request)?,
            ("jkt", Value::String(thumbprint)) => nonce = proofs.check(thumbprint, token, request, now)?,
            _ => return Err(UNKNOWN),
        }
    }
    Ok(nonce)
}

const UNKNOWN: Rejection = Rejection::CredentialInvalid("bound_token");

/// RFC 8705 section 3.1: the certificate of the connection that brings the token.
fn certificate(thumbprint: &str, request: &Request<'_>) -> Result<(), Rejection> {
    let shown = request.certificate.ok_or(Rejection::CredentialInvalid("bound_token_certificate_missing"))?;
    let wanted = URL_SAFE_NO_PAD.decode(thumbprint).map_err(|_| UNKNOWN)?;
    if wanted.len() == shown.fingerprint.len() && openssl::memcmp::eq(&wanted, &shown.fingerprint) {
        Ok(())
    } else {
        Err(Rejection::CredentialInvalid("bound_token_certificate"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::claims::Claims;
    use crate::request::{Client, ClientCertificate};
    use serde_json::json;

    #[test]
    fn a_binding_asks_for_its_own_key_and_one_that_is_not_understood_for_more_than_anybody_has() {
        let shown = ClientCertificate {
            fingerprint: [7; 32],
            anchor: [0; 32],
            common_name: None,
            uris: Vec::new(),
            dns_names: Vec::new(),
            emails: Vec::new(),
            serial: "1".into(),
            validity: Default::default(),
        };
        let own = URL_SAFE_NO_PAD.encode([7; 32]);
        let other = URL_SAFE_NO_PAD.encode([8; 32]);
        let short = URL_SAFE_NO_PAD.encode([7; 31]);
        let headers = http::HeaderMap::new();
        let client = Client { address: [127, 0, 0, 1].into(), through_trusted_proxy: false };
        let bare = Request::new(&http::Method::GET, "h", "/", &headers, &client);
        let with = Request { certificate: Some(&shown), ..bare };
        for (claims, request, expected) in [
            (json!({}), bare, None),
            (json!({"cnf": {"x5t#S256": own}}), with, None),
            (json!({"cnf": {"x5t#S256": own}}), bare, Some("bound_token_certificate_missing")),
            (json!({"cnf": {"x5t#S256": other}}), with, Some("bound_token_certificate")),
            (json!({"cnf": {"x5t#S256": short}}), with, Some("bound_token_certificate")),
            (json!({"cnf": {"x5t#S256": format!("{own}=")}}), with, Some("bound_token")),
            (json!({"cnf": {"x5t#S256": ""}}), with, Some("bound_token_certificate")),
            (json!({"cnf": {"x5t#S256": [own]}}), with, Some("bound_token")),
            (json!({"cnf": {"x5t#s256": own}}), with, Some("bound_token")),
            (json!({"cnf": {"x5t#S256": own, "jkt": 1}}), with, Some("bound_token")),
            (json!({"cnf": {"jkt": "x"}}), with, Some("dpop_as_bearer")),
            (json!({"cnf": {"jwk": {}}}), with, Some("bound_token")),
            (json!({"cnf": {}}), with, Some("bound_token")),
            (json!({"cnf": null}), with, Some("bound_token")),
            (json!({"cnf": own}), with, Some("bound_token")),
        ] {
            assert_eq!(outcome(&claims, false, &request), expected, "{claims}");
        }
    }

    fn outcome(claims: &Value, required: bool, request: &Request<'_>) -> Option<&'static str> {
        let dpop = crate::config::Dpop { required, max_age: Default::default(), nonce: None };
        let proofs = Proofs::new(&"a".into(), &dpop, Default::default(), &Default::default());
        let now = Now { monotonic: Default::default(), unix: Default::default() };
        let claims = Claims::of(claims.as_object().unwrap().clone()).unwrap();
        check(("t", &claims.registered), &proofs, request, now).err().and_then(|rejection| rejection.reason())
    }

    #[test]
    fn where_a_binding_is_required_a_token_without_one_is_refused_however_it_comes() {
        let client = Client { address: [127, 0, 0, 1].into(), through_trusted_proxy: false };
        for (scheme, required, claims, expected) in [
            ("Bearer", false, json!({}), None),
            ("Bearer", true, json!({}), Some("dpop_required")),
            ("DPoP", false, json!({}), Some("dpop_unbound")),
            ("DPoP", true, json!({}), Some("dpop_unbound")),
            ("dpop", false, json!({}), Some("dpop_unbound")),
            // Another key than that of a proof is not what is asked for.
            ("Bearer", true, json!({"cnf": {"x5t#S256": "x"}}), Some("dpop_required")),
            ("DPoP", false, json!({"cnf": {"x5t#S256": "x"}}), Some("dpop_unbound")),
            ("Bearer", true, json!({"cnf": {"jkt": "x"}}), Some("dpop_as_bearer")),
            ("DPoP", true, json!({"cnf": {"jkt": "x"}}), Some("dpop_missing")),
            ("DPoP", true, json!({"cnf": {}}), Some("bound_token")),
        ] {
            let headers = [(http::header::AUTHORIZATION, format!("{scheme} t").parse().unwrap())].into_iter().collect();
            let request = Request::new(&http::Method::GET, "h", "/", &headers, &client);
            assert_eq!(outcome(&claims, required, &request), expected, "{scheme} {required} {claims}");
        }
    }
}
