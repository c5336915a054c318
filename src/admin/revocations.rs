//! `/api/v1/revocations`: what is revoked, revoking, and taking it back.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Body;
use serde_json::{Value, json};

use crate::live::revocations::{Order, Revocations, StoreError};
use crate::request::Now;

/// The longest order in bytes: one token, and room.
const MAX_ORDER: usize = 64 * 1024;
/// How many revocations one answer lists, the latest first.
const LISTED: usize = 1000;

/// GET lists; POST revokes and DELETE takes back what its body names in JSON. A token is never part of a URL, which is written down.
pub(super) async fn answer<B>(revocations: Option<&Arc<Revocations>>, request: Request<B>, now: Now) -> (StatusCode, Value)
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Some(revocations) = revocations else { return refuse(StatusCode::NOT_FOUND, "the configuration has no `revocation`") };
    let revokes = match *request.method() {
        Method::GET | Method::HEAD => return (StatusCode::OK, list(revocations)),
        Method::POST => true,
        Method::DELETE => false,
        _ => return refuse(StatusCode::METHOD_NOT_ALLOWED, "there is GET, POST and DELETE"),
    };
    // A page in the operator's browser can send other types across origins without asking first, to a loopback address as well.
    if !is_json(request.headers()) {
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body is application/json");
    }
    let Ok(body) = Limited::new(request.into_body(), MAX_ORDER).collect().await else {
        return refuse(StatusCode::BAD_REQUEST, "the body is incomplete or too long");
    };
    // What is wrong with it is not said in the parser's words: they may quote a token.
    let Ok(order) = serde_json::from_slice::<Order>(&body.to_bytes()) else {
        return refuse(StatusCode::BAD_REQUEST, "the body is not an object of token, jti, subject, client, key_id, issuer and before");
    };
    let revocation = match order.revocation(now.unix.as_secs()) {
        Ok(revocation) => revocation,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error),
    };
    let shown = revocation.shown();
    let existed = if revokes { revocations.add(revocation).await.map(|()| true) } else { revocations.remove(revocation).await };
    match existed {
        Ok(true) => (StatusCode::OK, shown),
        Ok(false) => refuse(StatusCode::NOT_FOUND, "it is not revoked"),
        Err(error @ StoreError::Full(_)) => refuse(StatusCode::INSUFFICIENT_STORAGE, &error.to_string()),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

fn list(revocations: &Revocations) -> Value {
    let all = revocations.list();
    let shown: Vec<Value> = all.iter().rev().take(LISTED).map(|revocation| revocation.shown()).collect();
    json!({"count": all.len(), "revocations": shown})
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    media_type.split(';').next().is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("application/json"))
}

fn refuse(status: StatusCode, error: &str) -> (StatusCode, Value) {
    (status, json!({"error": error}))
}
