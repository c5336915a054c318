//! The answer of a token endpoint to an exchange (RFC 8693 section 2.2): a token for the upstream, a word against the caller, or neither.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Map, Value};

use crate::authenticators::credential;
use crate::config::TokenType;
use crate::jose::json;
use crate::jose::jws::MAX_TOKEN;
use crate::request::Rejection;

/// What a server says to an exchange.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// This is the token for the upstream.
    Issued {
        /// The value of its `Authorization`.
        authorization: HeaderValue,
        /// How long it is good; absent where the server does not say.
        expires_in: Option<Duration>,
    },
    /// There is none for this caller.
    Refused(Rejection),
}

/// The words of a server that speak of the caller's token or of what may be had for it; all others speak of us or of the server.
///
/// A new token can cure the first two, so the caller is told that its own is not good. RFC 8693 section 2.2.2 has `invalid_request` for
/// a token that is invalid and for one that policy does not take alike, so that a caller told to fetch another might do so for ever.
const REFUSALS: [(&str, Rejection); 6] = [
    ("invalid_grant", Rejection::CredentialInvalid("exchange_invalid_grant")),
    ("invalid_token", Rejection::CredentialInvalid("exchange_invalid_token")),
    ("invalid_request", Rejection::Forbidden("exchange_invalid_request")),
    ("invalid_target", Rejection::Forbidden("exchange_invalid_target")),
    ("invalid_scope", Rejection::Forbidden("exchange_invalid_scope")),
    ("access_denied", Rejection::Forbidden("exchange_access_denied")),
];

/// What the server may say of us, to be told to the operator.
const COMPLAINTS: [&str; 3] = ["invalid_client", "unauthorized_client", "unsupported_grant_type"];

/// Reads an answer; `wanted` is the kind of token that was asked for.
///
/// # Errors
/// It is none that RFC 8693 knows, or speaks of us: the text is for the log, and holds nothing that was said but known words.
pub fn read(answer: &Response<Bytes>, wanted: Option<TokenType>) -> Result<Said, String> {
    let members = json::object(answer.body());
    let status = answer.status();
    if status == StatusCode::OK {
        return issued(&members.ok_or("the answer is not a JSON object")?, wanted).map_err(str::to_owned);
    }
    let error = members.as_ref().and_then(|members| members.get("error")).and_then(Value::as_str);
    // 401 says that we have not proven ourselves, whatever is said beside it (RFC 6749 section 5.2).
    if matches!(status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN)
        && let Some((_, rejection)) = REFUSALS.iter().find(|(word, _)| Some(*word) == error)
    {
        return Ok(Said::Refused(rejection.clone()));
    }
    let complaint = COMPLAINTS.iter().find(|word| Some(**word) == error);
    Err(format!("status {}{}", status.as_u16(), complaint.map(|word| format!(": {word}")).unwrap_or_default()))
}

fn issued(members: &Map<String, Value>, wanted: Option<TokenType>) -> Result<Said, &'static str> {
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    match text("token_type") {
        Some(kind) if kind.eq_ignore_ascii_case("Bearer") => {}
        // Section 2.2.1: what was issued is not to come in with.
        Some(kind) if kind.eq_ignore_ascii_case("N_A") => return Err("token_type is N_A: what was issued is no token to come in with"),
        _ => return Err("token_type is not Bearer"),
    }
    let kinds = wanted.map_or(vec![TokenType::AccessToken, TokenType::Jwt], |wanted| vec![wanted]);
    if !kinds.iter().any(|kind| text("issued_token_type") == Some(kind.urn())) {
        return Err("issued_token_type is not what was asked for");
    }
    let expires_in = match members.get("expires_in") {
        None => None,
        Some(seconds) => Some(lifetime(seconds).ok_or("expires_in is no time to live")?),
    };
    let token = text("access_token").filter(|token| token.len() <= MAX_TOKEN && credential::is_token68(token.as_bytes()));
    let token = token.ok_or("access_token is not a bearer token")?;
    let mut authorization = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| "access_token is not a bearer token")?;
    authorization.set_sensitive(true);
    Ok(Said::Issued { authorization, expires_in })
}

/// A number of seconds, and some are left.
fn lifetime(seconds: &Value) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds.as_f64()?).ok().filter(|lifetime| !lifetime.is_zero())
}
