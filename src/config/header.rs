//! Headers that are edgeward's own or the connection's, which neither a policy nor a credential may use.

/// Set by edgeward for the upstream, or by HTTP itself for the connection and the framing.
const RESERVED: [&str; 34] = [
    // Who the caller was proven to be.
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
    // Where the request came from.
    "x-request-id",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "forwarded",
    "traceparent",
    "tracestate",
    // The connection (RFC 9110 section 7.6.1) and the framing.
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

/// Whether a header is reserved, in any spelling that a server behind us may take for it (`_` for `-`).
pub(crate) fn is_reserved(name: &http::HeaderName) -> bool {
    let folded = folded(name);
    RESERVED.contains(&folded.as_str())
}

/// A header's name as CGI-like servers see it: `X_Tenant` and `X-Tenant` are one.
pub(crate) fn folded(name: &http::HeaderName) -> String {
    name.as_str().replace('_', "-")
}
