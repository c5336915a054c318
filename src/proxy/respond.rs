//! The one table from refusals to HTTP: problem details (RFC 9457), challenges, limit headers.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora_proxy::Session;

use super::caller::Caller;
use super::context::{Context, RequestId};
use crate::request::{LimitState, Rejection};

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
static X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
static X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
static DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");
static RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
static RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// A body up to this is read and thrown away so that the connection can serve the next request; a longer one closes it.
const DRAINED_BODY: u64 = 64 * 1024;

/// How long an HTTP/2 stream that was answered early is kept for its body.
const LINGER: Duration = Duration::from_millis(500);

/// Answers a refused request.
pub(super) async fn refuse(caller: &mut impl Caller, context: &Context, rejection: &Rejection) -> Result<()> {
    let body = match rejection {
        Rejection::Relayed(relayed) => relayed.body.clone(),
        _ => body(rejection, &context.request_id),
    };
    let header = head(context, rejection, body.len())?;
    if closes(caller, rejection) {
        caller.close();
    } else {
        caller.keep_open();
    }
    let head_only = caller.method() == http::Method::HEAD;
    caller.write_head(Box::new(header), head_only).await?;
    if !head_only {
        caller.write_body(body, true).await?;
    }
    Ok(())
}

/// Whether the connection ends with this answer: always where the two sides may disagree on where the request ended.
fn closes(caller: &mut impl Caller, rejection: &Rejection) -> bool {
    if matches!(rejection.status().as_u16(), 400 | 408 | 413 | 421 | 431 | 500) {
        return true;
    }
    if caller.is_body_done() {
        return false;
    }
    let headers = caller.headers();
    // Whoever waits for 100 may keep the body back now that it is refused (RFC 9110, 10.1.1): what comes next could be either.
    if headers.contains_key(header::EXPECT) {
        return true;
    }
    let length = headers.get(header::CONTENT_LENGTH);
    length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok()).is_none_or(|length| length > DRAINED_BODY)
}

/// Waits after an early answer until the caller has ended its body or given it up. An HTTP/2 stream that is dropped before is reset (RFC 9113
/// section 8.1), and curl, for one, fails when the reset comes together with the answer. What is not read is not sent either: beyond
/// the first piece the flow-control window stays shut.
pub(super) async fn linger(session: &mut Session) {
    if !session.is_http2() || session.response_written().is_none() || session.is_body_done() {
        return;
    }
    let ended = async {
        let mut received = 0;
        while !session.is_body_done() {
            let Ok(Some(chunk)) = session.read_body_or_idle(received > DRAINED_BODY).await else { return };
            received += chunk.len() as u64;
        }
    };
    // Late or never makes no difference: the reset is due then.
    let _ = tokio::time::timeout(LINGER, ended).await;
}

fn head(context: &Context, rejection: &Rejection, body: usize) -> Result<ResponseHeader> {
    let mut header = ResponseHeader::build_no_case(rejection.status(), Some(12))?;
    header.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))?;
    header.insert_header(header::CONTENT_LENGTH, HeaderValue::from(body))?;
    header.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
    header.insert_header(&X_REQUEST_ID, context.request_id.value().clone())?;
    match rejection {
        Rejection::Relayed(relayed) => {
            header.remove_header(&header::CONTENT_TYPE);
            for (name, value) in &relayed.headers {
                header.append_header(name, value.clone())?;
            }
            // RFC 9110 section 15.5.2: a 401 says how to do better.
            if rejection.status() == http::StatusCode::UNAUTHORIZED && !relayed.headers.contains_key(header::WWW_AUTHENTICATE) {
                challenge(&mut header, context.route.as_ref().map(|route| &route.challenges.invalid))?;
            }
        }
        Rejection::CredentialMissing => challenge(&mut header, context.route.as_ref().map(|route| &route.challenges.missing))?,
        Rejection::CredentialInvalid(_) | Rejection::CredentialExpired | Rejection::CredentialRevoked => {
            challenge(&mut header, context.route.as_ref().map(|route| &route.challenges.invalid))?;
        }
        Rejection::ProofInvalid(_) => challenge(&mut header, context.route.as_ref().map(|route| &route.challenges.unproven))?,
        Rejection::NonceWanted(nonce) => {
            header.insert_header(&DPOP_NONCE, nonce.clone())?;
            challenge(&mut header, context.route.as_ref().map(|route| &route.challenges.nonce_wanted))?;
        }
        Rejection::InsufficientScope(scopes) => {
            if let Some(route) = &context.route {
                header.append_header(header::WWW_AUTHENTICATE, route.challenges.insufficient_scope(scopes))?;
            }
        }
        Rejection::MethodNotAllowed(allow) => {
            header.insert_header(header::ALLOW, &**allow)?;
        }
        Rejection::RateLimited(state) | Rejection::QuotaExceeded(state) | Rejection::QueueFull(state) => {
            header.insert_header(header::RETRY_AFTER, HeaderValue::from(seconds(state.retry_after).max(1)))?;
            limit_headers(&mut header, state)?;
        }
        Rejection::DependencyUnavailable { retry_after, .. } => {
            header.insert_header(header::RETRY_AFTER, HeaderValue::from(seconds(*retry_after).max(1)))?;
        }
        Rejection::Overloaded(_) | Rejection::NoHealthyUpstream => {
            header.insert_header(header::RETRY_AFTER, HeaderValue::from_static("1"))?;
        }
        _ => {}
    }
    Ok(header)
}

fn challenge(header: &mut ResponseHeader, challenges: Option<&Vec<HeaderValue>>) -> Result<()> {
    for value in challenges.into_iter().flatten() {
        header.append_header(header::WWW_AUTHENTICATE, value.clone())?;
    }
    Ok(())
}

/// The limit nearest to its end: the usual three, and the two of draft-ietf-httpapi-ratelimit-headers.
pub(super) fn limit_headers(header: &mut ResponseHeader, state: &LimitState) -> Result<()> {
    let reset = seconds(state.reset);
    header.insert_header(&X_RATELIMIT_LIMIT, HeaderValue::from(state.limit))?;
    header.insert_header(&X_RATELIMIT_REMAINING, HeaderValue::from(state.remaining))?;
    header.insert_header(&X_RATELIMIT_RESET, HeaderValue::from(reset))?;
    header.insert_header(&RATELIMIT, format!("\"{}\";r={};t={reset}", state.name, state.remaining))?;
    let mut policy = format!("\"{}\";q={}", state.name, state.limit);
    if let Some(window) = state.window {
        policy.push_str(&format!(";w={}", seconds(window)));
    }
    header.insert_header(&RATELIMIT_POLICY, policy)?;
    Ok(())
}

/// Whole seconds, rounded up: a caller that waits as told is not refused again.
fn seconds(duration: std::time::Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// The headers of an answer that came from the upstream.
pub(super) fn decorate(header: &mut ResponseHeader, context: &Context) -> Result<()> {
    header.insert_header(&X_REQUEST_ID, context.request_id.value().clone())?;
    let Some(admission) = &context.admission else { return Ok(()) };
    if let Some(state) = admission.limit() {
        limit_headers(header, state)?;
    }
    if let Some(nonce) = admission.nonce() {
        header.insert_header(&DPOP_NONCE, nonce.clone())?;
        // RFC 9449 section 8.2: from a cache the nonce would come when it counts no more.
        header.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
    }
    Ok(())
}

fn body(rejection: &Rejection, request_id: &RequestId) -> Bytes {
    let status = rejection.status();
    let title = status.canonical_reason().unwrap_or("Error");
    let (code, detail) = (rejection.code(), detail(rejection));
    // Every part is a word of ours, and a request id has no quote or control character.
    Bytes::from(format!(
        "{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{},\"code\":\"{code}\",\"detail\":\"{detail}\",\"request_id\":\"{}\"}}\n",
        status.as_u16(),
        request_id.as_str()
    ))
}

/// One sentence per code; an unknown, revoked, expired or misplaced API key reads the same.
fn detail(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::BadRequest(_) => "The request is not well formed.",
        Rejection::AmbiguousPath(_) => "The path can be read in more than one way.",
        Rejection::AmbiguousFraming(_) => "The end of the request can be read in more than one way.",
        Rejection::CredentialMissing => "No accepted credential was presented.",
        Rejection::CredentialInvalid(_) | Rejection::ProofInvalid(_) => "The credential was not accepted.",
        Rejection::NonceWanted(_) => "The proof must have the nonce of this answer.",
        Rejection::CredentialExpired => "The token has expired.",
        Rejection::CredentialRevoked => "The credential was revoked.",
        Rejection::AddressDenied => "The client address is not admitted.",
        Rejection::InsufficientScope(_) => "The credential lacks a scope that this resource asks for.",
        Rejection::Filtered(_) => "The request is not admitted.",
        Rejection::Forbidden(_) | Rejection::Relayed(_) => "The identity is not admitted to this resource.",
        Rejection::NoRoute => "There is nothing at this address.",
        Rejection::MethodNotAllowed(_) => "The resource does not have this method.",
        Rejection::RequestTimeout => "The request did not arrive in time.",
        Rejection::Misdirected(_) => "The request does not belong on this connection; open another one for this host.",
        Rejection::BodyTooLarge => "The request body is too long.",
        Rejection::HeadersTooLarge => "The request header section is too long.",
        Rejection::RateLimited(_) => "The rate limit is used up; try again later.",
        Rejection::QuotaExceeded(_) => "The quota is used up.",
        Rejection::QueueFull(_) => "Too many requests are waiting; try again later.",
        Rejection::Internal(_) | Rejection::ClientClosed => "The request could not be judged; it was not forwarded.",
        Rejection::UpstreamUnreachable => "The service could not be reached.",
        Rejection::UpstreamInvalid => "The service sent an answer that cannot be passed on.",
        Rejection::UpstreamTimeout => "The service did not answer in time.",
        Rejection::DependencyUnavailable { .. } => "What the decision depends on is away; try again later.",
        Rejection::Overloaded(_) => "The gateway is busy; try again later.",
        Rejection::NoHealthyUpstream => "No instance of the service is well; try again later.",
    }
}
