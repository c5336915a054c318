//! The words of a decision: what is asked, who asks, when, and how it is refused.

pub mod certificate;
pub mod cidr;
pub mod client;
pub mod digest;
pub mod framing;
pub mod header;
pub mod host;
pub mod identity;
pub mod message;
pub mod path;
pub mod rejection;

use std::time::Duration;

pub use certificate::ClientCertificate;
pub use cidr::CidrSet;
pub use client::Client;
pub use digest::{BodyCheck, BodyDigest};
pub use identity::{Identity, Method};
pub use rejection::{LimitState, Rejection, Relayed};

/// What a decision may look at: one request after normalisation and routing.
///
/// It borrows plain `http` types, so that a test, a benchmark or a fuzzer builds one in a line and no check can write an answer.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The request method.
    pub method: &'a http::Method,
    /// The canonical host: lower case, no port, no trailing dot; IPv6 literals in brackets.
    pub host: &'a str,
    /// The port that stood behind the host.
    pub port: Option<&'a str>,
    /// `https` or `http`, as the caller speaks.
    pub scheme: &'static str,
    /// The canonical path (see [`crate::request::path`]).
    pub path: &'a str,
    /// The query as it came, without `?`.
    pub query: Option<&'a str>,
    /// The headers as they came.
    pub headers: &'a http::HeaderMap,
    /// The whole body, where it is known already: an empty one always, another where an authenticator asked to see it.
    pub body: Option<&'a [u8]>,
    /// Who is on the other end of the connection.
    pub client: &'a Client,
    /// The certificate that was proven for the caller: that of the connection, or one that a trusted proxy forwarded. It has been verified.
    pub certificate: Option<&'a ClientCertificate>,
    /// The name of the matched route.
    pub route: &'a str,
    /// The path parameters of the matched route.
    pub parameters: Parameters<'a>,
}

impl<'a> Request<'a> {
    /// A request of which only this is known.
    pub fn new(method: &'a http::Method, host: &'a str, path: &'a str, headers: &'a http::HeaderMap, client: &'a Client) -> Self {
        let parameters = Parameters::default();
        Self {
            method,
            host,
            port: None,
            scheme: "http",
            path,
            query: None,
            headers,
            body: None,
            client,
            certificate: None,
            route: "",
            parameters,
        }
    }

    /// The canonical host, with the port that stood behind it.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) => [self.host, ":", port].concat(),
            None => self.host.to_owned(),
        }
    }
}

/// A header that is set, or removed where there is no value.
pub type HeaderChange = (http::HeaderName, Option<http::HeaderValue>);

/// The path parameters of a matched route: name and value, in the order of the pattern.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parameters<'a>(pub &'a [(&'a str, &'a str)]);

impl<'a> Parameters<'a> {
    /// The value of a parameter.
    pub fn value(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }
}

/// The time of a decision, read once per request in `proxy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since the process started; never goes back. For limits, breakers and ages.
    pub monotonic: Duration,
    /// Time since the Unix epoch. For `exp`, `nbf` and what is shown to people.
    pub unix: Duration,
}

/// Where upkeep in the background gets its [`Now`] from; a test passes its own.
pub type Clock = std::sync::Arc<dyn Fn() -> Now + Send + Sync>;
