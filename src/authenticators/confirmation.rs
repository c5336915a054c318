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
