//! Every way in which a caller can be refused, closed so that `proxy::respond` must answer each.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

/// Where a limit stands after a request was counted or refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitState {
    /// The limit's name in the configuration.
    pub name: Arc<str>,
    /// Units allowed per window, or at once.
    pub limit: u64,
    /// Units left now.
    pub remaining: u64,
    /// Time until the whole allowance is back.
    pub reset: Duration,
    /// Time until one more request is admitted; zero while some remain.
    pub retry_after: Duration,
    /// The window; absent where it has no length of its own.
    pub window: Option<Duration>,
}

/// A refusal in the words of another service, which the caller is told as they are.
#[derive(Clone, PartialEq, Eq)]
pub struct Relayed {
    /// 401, 403 or a redirect.
    pub status: StatusCode,
    /// What is said beside it; nothing of the connection it came on.
    pub headers: HeaderMap,
    /// What is said.
    pub body: Bytes,
}

/// Without the headers: cookies are among them.
impl fmt::Debug for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relayed").field("status", &self.status).finish_non_exhaustive()
    }
}

/// A refusal. The outside sees [`code`](Rejection::code) and [`status`](Rejection::status); the log sees [`reason`](Rejection::reason) too.
#[derive(Debug, Clone, PartialEq)]
pub enum Rejection {
    /// 400: not HTTP as we accept it. The text is a constant word for the log.
    BadRequest(&'static str),
    /// 400: a path that two parties could read differently.
    AmbiguousPath(&'static str),
    /// 400: a message whose end two parties could see in different places.
    AmbiguousFraming(&'static str),
    /// 401: no accepted credential was presented.
    CredentialMissing,
    /// 401: a credential was presented and is not good. The reason stays inside.
    CredentialInvalid(&'static str),
    /// 401: the token may be good, and the proof of its holder's key is not (RFC 9449 section 7.1). The reason stays inside.
    ProofInvalid(&'static str),
    /// 401: nothing is wrong with token and proof but that the proof lacks a nonce that counts now, which is this (RFC 9449 section 9).
    NonceWanted(HeaderValue),
    /// 401: a token whose time is over; nothing else was found wrong with it.
    CredentialExpired,
    /// 401: a credential that was withdrawn.
    CredentialRevoked,
    /// 403: the client address is not admitted.
    AddressDenied,
    /// 403: the identity lacks one of the scopes that the policy asks for (space separated).
    InsufficientScope(Arc<str>),
    /// 403: the identity may not.
    Forbidden(&'static str),
    /// 403: a filter of this name meets the request.
    Filtered(Arc<str>),
    /// 401, 403 or a redirect, as an external authorizer says it.
    Relayed(Arc<Relayed>),
    /// 404: no route.
    NoRoute,
    /// 405: a route, but not for this method; the methods it has, comma separated.
    MethodNotAllowed(Arc<str>),
    /// 408: the request did not arrive in time.
    RequestTimeout,
    /// 421: the request does not belong on this connection: it asks for another host, or the connection's certificate is not good any more.
    Misdirected(&'static str),
    /// 413: the body is longer than allowed.
    BodyTooLarge,
    /// 431: the header section is longer than allowed.
    HeadersTooLarge,
    /// 429: a limit is used up.
    RateLimited(LimitState),
    /// 429: a quota is used up.
    QuotaExceeded(LimitState),
    /// 429: too many wait already, or one would wait too long.
    QueueFull(LimitState),
    /// 500: our own mistake; nothing was forwarded.
    Internal(&'static str),
    /// 502: the upstream could not be reached.
    UpstreamUnreachable,
    /// 502: the upstream's answer is not HTTP as we accept it.
    UpstreamInvalid,
    /// 504: the upstream did not answer in time.
    UpstreamTimeout,
    /// 503: what the decision depends on is away; try again after.
    DependencyUnavailable {
        /// What is away, for the log.
        dependency: &'static str,
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// 503: more of the same work waits already than this process takes on.
    Overloaded(&'static str),
    /// 503: every backend is unhealthy.
    NoHealthyUpstream,
    /// 499, in the log only: the caller went away before the answer.
    ClientClosed,
}

/// Every [`code`](Rejection::code), for tables that are indexed by it.
pub const CODES: [&str; 28] = [
    "bad_request",
    "ambiguous_path",
    "ambiguous_framing",
    "credential_missing",
    "credential_invalid",
    "credential_expired",
    "credential_revoked",
    "address_denied",
    "insufficient_scope",
    "forbidden",
    "redirected",
    "no_route",
    "method_not_allowed",
    "request_timeout",
    "misdirected_request",
    "body_too_large",
    "headers_too_large",
    "rate_limited",
    "quota_exceeded",
    "queue_full",
    "internal",
    "upstream_unreachable",
    "upstream_invalid",
    "upstream_timeout",
    "dependency_unavailable",
    "overloaded",
    "no_healthy_upstream",
    "client_closed",
];

impl Rejection {
    /// The stable word in the body, the access log and the metric label.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::AmbiguousPath(_) => "ambiguous_path",
            Self::AmbiguousFraming(_) => "ambiguous_framing",
            Self::CredentialMissing => "credential_missing",
            Self::CredentialInvalid(_) | Self::ProofInvalid(_) | Self::NonceWanted(_) => "credential_invalid",
            Self::CredentialExpired => "credential_expired",
            Self::CredentialRevoked => "credential_revoked",
            Self::AddressDenied => "address_denied",
            Self::InsufficientScope(_) => "insufficient_scope",
            Self::Forbidden(_) | Self::Filtered(_) => "forbidden",
            Self::Relayed(relayed) => match relayed.status {
                StatusCode::UNAUTHORIZED => "credential_invalid",
                status if status.is_redirection() => "redirected",
                _ => "forbidden",
            },
            Self::NoRoute => "no_route",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::Misdirected(_) => "misdirected_request",
            Self::BodyTooLarge => "body_too_large",
            Self::HeadersTooLarge => "headers_too_large",
            Self::RateLimited(_) => "rate_limited",
            Self::QuotaExceeded(_) => "quota_exceeded",
            Self::QueueFull(_) => "queue_full",
            Self::Internal(_) => "internal",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamInvalid => "upstream_invalid",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::DependencyUnavailable { .. } => "dependency_unavailable",
            Self::Overloaded(_) => "overloaded",
            Self::NoHealthyUpstream => "no_healthy_upstream",
            Self::ClientClosed => "client_closed",
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        use StatusCode as S;
        match self {
            Self::BadRequest(_) | Self::AmbiguousPath(_) | Self::AmbiguousFraming(_) | Self::ClientClosed => S::BAD_REQUEST,
            Self::CredentialMissing | Self::CredentialInvalid(_) | Self::CredentialExpired | Self::CredentialRevoked => S::UNAUTHORIZED,
            Self::ProofInvalid(_) | Self::NonceWanted(_) => S::UNAUTHORIZED,
            Self::AddressDenied | Self::InsufficientScope(_) | Self::Forbidden(_) | Self::Filtered(_) => S::FORBIDDEN,
            Self::Relayed(relayed) => relayed.status,
            Self::NoRoute => S::NOT_FOUND,
            Self::MethodNotAllowed(_) => S::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => S::REQUEST_TIMEOUT,
            Self::Misdirected(_) => S::MISDIRECTED_REQUEST,
            Self::BodyTooLarge => S::PAYLOAD_TOO_LARGE,
            Self::HeadersTooLarge => S::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::RateLimited(_) | Self::QuotaExceeded(_) | Self::QueueFull(_) => S::TOO_MANY_REQUESTS,
            Self::Internal(_) => S::INTERNAL_SERVER_ERROR,
            Self::UpstreamUnreachable | Self::UpstreamInvalid => S::BAD_GATEWAY,
            Self::UpstreamTimeout => S::GATEWAY_TIMEOUT,
            Self::DependencyUnavailable { .. } | Self::Overloaded(_) | Self::NoHealthyUpstream => S::SERVICE_UNAVAILABLE,
        }
    }

    /// Where the limit stands that refused.
    pub fn limit(&self) -> Option<&LimitState> {
        match self {
            Self::RateLimited(state) | Self::QuotaExceeded(state) | Self::QueueFull(state) => Some(state),
            _ => None,
        }
    }

    /// The filter that refused, for the log.
    pub fn filter(&self) -> Option<&Arc<str>> {
        match self {
            Self::Filtered(name) => Some(name),
            _ => None,
        }
    }

    /// What the operator may know and the caller may not: a constant word, so that it can be a metric label.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::BadRequest(reason)
            | Self::AmbiguousPath(reason)
            | Self::AmbiguousFraming(reason)
            | Self::CredentialInvalid(reason)
            | Self::ProofInvalid(reason)
            | Self::Forbidden(reason)
            | Self::Misdirected(reason)
            | Self::Internal(reason)
            | Self::Overloaded(reason)
            | Self::DependencyUnavailable { dependency: reason, .. } => Some(reason),
            Self::NonceWanted(_) => Some("dpop_nonce"),
            Self::Filtered(_) => Some("filter"),
            Self::Relayed(_) => Some("external"),
            _ => None,
        }
    }
}
