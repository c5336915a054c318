//! Tokens that are bound to a key of their holder (RFC 7800 `cnf`): worth nothing without proof of that key with the very request.
//!
//! A binding is checked with every request and never remembered: that a token was proven once says nothing about who sends it now.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::request::{Rejection, Request};

/// Checks what the claims of a token say about its holder's key; a token that says nothing is good in anybody's hands.
///
/// # Errors
/// The proof is missing or another's, or the token asks for one that is not understood: an unknown member is no lesser demand.
pub fn check(claims: &Map<String, Value>, request: &Request<'_>) -> Result<(), Rejection> {
    let Some(confirmation) = claims.get("cnf") else {
        return Ok(());
    };
    let members = confirmation.as_object().filter(|members| !members.is_empty()).ok_or(UNKNOWN)?;
    for (name, value) in members {
        match (name.as_str(), value) {
            ("x5t#S256", Value::String(thumbprint)) => certificate(thumbprint, request)?,
            _ => return Err(UNKNOWN),
        }
    }
    Ok(())
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
            (json!({"cnf": {"x5t#S256": own, "jkt": "x"}}), with, Some("bound_token")),
            (json!({"cnf": {"jwk": {}}}), with, Some("bound_token")),
            (json!({"cnf": {}}), with, Some("bound_token")),
            (json!({"cnf": null}), with, Some("bound_token")),
            (json!({"cnf": own}), with, Some("bound_token")),
        ] {
            let found = check(claims.as_object().unwrap(), &request).err().and_then(|rejection| rejection.reason());
            assert_eq!(found, expected, "{claims}");
        }
    }
}
