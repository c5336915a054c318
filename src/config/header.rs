//! Headers that are edgeward's own or the transport's, which no credential or limit may use.

use crate::request::header::folds_to;

/// Who the caller was proven to be: a caller can bring none of them, a policy may fill them otherwise.
const IDENTITY: [&str; 12] = [
    "x-user-id",
    "x-consumer-id",
    "x-client-id",
    "x-key-id",
    "x-scopes",
    "x-roles",
    "x-auth-method",
    "x-plan",
    "x-client-cert-cn",
    "x-client-cert-san",
    "x-client-cert-fingerprint",
    "x-identity-token",
];

/// Where the request came from, the connection (RFC 9110 section 7.6.1) and the framing: neither a caller's nor a policy's.
const TRANSPORT: [&str; 22] = [
    "x-request-id",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "forwarded",
    "traceparent",
    "tracestate",
    "host",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "content-length",
    "content-encoding",
    "expect",
    "via",
];

/// Whether a caller's word in this header is never heard, in any spelling that a server behind us may take for it.
pub(crate) fn is_reserved(name: &http::HeaderName) -> bool {
    is_transport(name) || IDENTITY.iter().any(|own| folds_to(name.as_str(), own))
}

/// Whether a header belongs to the transport of the request, in any such spelling.
pub(crate) fn is_transport(name: &http::HeaderName) -> bool {
    TRANSPORT.iter().any(|own| folds_to(name.as_str(), own))
}

/// A header's name as CGI-like servers see it: `X_Tenant` and `X-Tenant` are one.
pub(crate) fn folded(name: &http::HeaderName) -> String {
    name.as_str().replace('_', "-")
}
