//! Answers of a token endpoint to an exchange: whatever it says, an upstream gets one bearer token of the kind that was asked for, or none.

use edgeward::config::TokenType;
use edgeward::request::Rejection;
use edgeward::route::exchange::{Said, read};
use http::{Response, StatusCode};
use serde_json::Value;

/// `data` is a byte, which chooses the status and the kind, and the body of an answer.
pub fn run(data: &[u8]) {
    let Some((first, body)) = data.split_first() else { return };
    let status = [200, 400, 403, 401, 500, 302][usize::from(*first) % 6];
    let wanted = [None, Some(TokenType::AccessToken), Some(TokenType::Jwt)][usize::from(*first) / 6 % 3];
    let answer = Response::builder().status(status).body(body.to_vec().into()).unwrap();
    let said = match read(&answer, wanted) {
        Ok(said) => said,
        Err(told) => {
            assert!(told.is_ascii() && told.len() < 100, "nothing of the answer is told");
            return;
        }
    };
    // serde_json lets the last of two members win, where we take neither: what we understood it must understand, and the same.
    let plain: Value = serde_json::from_slice(body).unwrap();
    match said {
        Said::Refused(rejection) => {
            assert!(status == 400 || status == 403);
            assert!(matches!(rejection, Rejection::CredentialInvalid(_) | Rejection::Forbidden(_)));
            assert_eq!(rejection.reason().unwrap().strip_prefix("exchange_"), plain["error"].as_str());
        }
        Said::Issued { authorization, expires_in } => {
            assert_eq!(status, StatusCode::OK.as_u16());
            let token = authorization.to_str().unwrap().strip_prefix("Bearer ").unwrap();
            assert_eq!(plain["access_token"].as_str(), Some(token));
            assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)));
            assert!(plain["token_type"].as_str().unwrap().eq_ignore_ascii_case("bearer"));
            let kind = plain["issued_token_type"].as_str().unwrap();
            let kinds = [TokenType::AccessToken, TokenType::Jwt].map(TokenType::urn);
            assert!(wanted.map_or(kinds.contains(&kind), |wanted| wanted.urn() == kind), "{kind}");
            assert_eq!(expires_in.is_some(), plain.get("expires_in").is_some(), "a time is read or the answer refused");
            assert!(expires_in.is_none_or(|left| !left.is_zero()));
        }
    }
}
