//! The one table from refusals to HTTP: problem details (RFC 9457), challenges, limit headers.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use pingora::Result;
use pingora::protocols::http::ServerSession;

use super::answer_head::{AnswerFields, AnswerHead, Length};
use super::caller::Caller;
use super::context::{Context, RequestId};
use crate::request::{LimitState, Rejection};
use crate::text::{Digits, digits};

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
    let head = head(context, rejection, body.len());
    if closes(caller, rejection) {
        caller.close();
    } else {
        caller.keep_open();
    }
    let head_only = caller.method() == http::Method::HEAD;
    caller.write_head(&head, head_only).await?;
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
pub(super) async fn linger(session: &mut ServerSession) {
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

fn head(context: &Context, rejection: &Rejection, body: usize) -> AnswerHead {
    let mut head = AnswerHead::new(rejection.status(), Length::Bytes(body as u64));
    head.add(&header::CACHE_CONTROL, b"no-store");
    head.add(&X_REQUEST_ID, context.request_id.as_str().as_bytes());
    let challenges = context.route().map(|route| &route.challenges);
    if !matches!(rejection, Rejection::Relayed(_)) {
        head.add(&header::CONTENT_TYPE, b"application/problem+json");
    }
    match rejection {
        Rejection::Relayed(relayed) => {
            for (name, value) in &relayed.headers {
                head.add(name, value.as_bytes());
            }
            // RFC 9110 section 15.5.2: a 401 says how to do better.
            if rejection.status() == http::StatusCode::UNAUTHORIZED && !relayed.headers.contains_key(header::WWW_AUTHENTICATE) {
                challenge(&mut head, challenges.map(|challenges| &challenges.invalid));
            }
        }
        Rejection::CredentialMissing => challenge(&mut head, challenges.map(|challenges| &challenges.missing)),
        Rejection::CredentialInvalid(_) | Rejection::CredentialExpired | Rejection::CredentialRevoked => {
            challenge(&mut head, challenges.map(|challenges| &challenges.invalid));
        }
        Rejection::ProofInvalid(_) => challenge(&mut head, challenges.map(|challenges| &challenges.unproven)),
        Rejection::NonceWanted(nonce) => {
            head.add(&DPOP_NONCE, nonce.as_bytes());
            challenge(&mut head, challenges.map(|challenges| &challenges.nonce_wanted));
        }
        Rejection::InsufficientScope(scopes) => {
            if let Some(challenges) = challenges {
                head.add(&header::WWW_AUTHENTICATE, challenges.insufficient_scope(scopes).as_bytes());
            }
        }
        Rejection::MethodNotAllowed(allow) => head.add(&header::ALLOW, allow.as_bytes()),
        Rejection::RateLimited(state) | Rejection::QuotaExceeded(state) | Rejection::QueueFull(state) => {
            retry_after(&mut head, state.retry_after);
            // To add never fails.
            let _ = limit_headers(state, |name, value| {
                head.add(name, value);
                Ok(())
            });
        }
        Rejection::DependencyUnavailable { retry_after: wait, .. } => retry_after(&mut head, *wait),
        Rejection::Overloaded(_) | Rejection::NoHealthyUpstream => head.add(&header::RETRY_AFTER, b"1"),
        _ => {}
    }
    head
}

fn challenge(head: &mut AnswerHead, challenges: Option<&Vec<HeaderValue>>) {
    for value in challenges.into_iter().flatten() {
        head.add(&header::WWW_AUTHENTICATE, value.as_bytes());
    }
}

/// The limit nearest to its end: the usual three, and the two of draft-ietf-httpapi-ratelimit-headers.
fn limit_headers(state: &LimitState, mut set: impl FnMut(&HeaderName, &[u8]) -> Result<()>) -> Result<()> {
    let mut rooms = [Digits::default(); 4];
    let [limit, remaining, reset, window] = &mut rooms;
    let limit = digits(limit, state.limit, 1);
    let remaining = digits(remaining, state.remaining, 1);
    let reset = digits(reset, seconds(state.reset), 1);
    set(&X_RATELIMIT_LIMIT, limit)?;
    set(&X_RATELIMIT_REMAINING, remaining)?;
    set(&X_RATELIMIT_RESET, reset)?;
    let name = state.name.as_bytes();
    set(&RATELIMIT, &[b"\"", name, b"\";r=", remaining, b";t=", reset].concat())?;
    let (unit, window): (&[u8], _) = match state.window {
        Some(length) => (b";w=", digits(window, seconds(length), 1)),
        None => (b"", &[][..]),
    };
    set(&RATELIMIT_POLICY, &[b"\"", name, b"\";q=", limit, unit, window].concat())
}

fn retry_after(head: &mut AnswerHead, wait: Duration) {
    head.add(&header::RETRY_AFTER, digits(&mut Digits::default(), seconds(wait).max(1), 1));
}

/// Whole seconds, rounded up: a caller that waits as told is not refused again.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// The headers of an answer that came from the upstream.
pub(super) fn decorate(answer: &mut impl AnswerFields, context: &Context) -> Result<()> {
    answer.set(&X_REQUEST_ID, context.request_id.as_str().as_bytes())?;
    let Some(admission) = &context.admission else { return Ok(()) };
    if let Some(state) = admission.limit() {
        limit_headers(state, |name, value| answer.set(name, value))?;
    }
    if let Some(nonce) = admission.nonce() {
        answer.set(&DPOP_NONCE, nonce.as_bytes())?;
        // RFC 9449 section 8.2: from a cache the nonce would come when it counts no more.
        answer.set(&header::CACHE_CONTROL, b"no-store")?;
    }
    Ok(())
}

fn body(rejection: &Rejection, request_id: &RequestId) -> Bytes {
    let status = rejection.status();
    let title = status.canonical_reason().unwrap_or("Error");
    // Every part is a word of ours, and a request id has no quote or control character.
    let parts = [
        "{\"type\":\"about:blank\",\"title\":\"",
        title,
        "\",\"status\":",
        status.as_str(),
        ",\"code\":\"",
        rejection.code(),
        "\",\"detail\":\"",
        detail(rejection),
        "\",\"request_id\":\"",
        request_id.as_str(),
        "\"}\n",
    ];
    Bytes::from(parts.concat())
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
