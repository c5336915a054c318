//! Who the caller was proven to be.

use std::sync::Arc;

use smol_str::SmolStr;

/// The kind of credential that proved an identity; its [`label`](Method::label) is the YAML key, the log word and the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// A JSON Web Token (RFC 7519).
    Jwt,
    /// An API key.
    ApiKey,
    /// An opaque token that its issuer was asked about (RFC 7662).
    Introspection,
    /// A client certificate of the TLS connection, or one that a trusted balancer forwarded.
    ClientCertificate,
    /// An AWS Signature Version 4.
    Sigv4,
    /// A user and a password (RFC 7617).
    Basic,
    /// An HTTP message signature (RFC 9421).
    Signature,
    /// Another service was asked.
    External,
}

impl Method {
    /// The one word for this method.
    pub fn label(self) -> &'static str {
        match self {
            Self::Jwt => "jwt",
            Self::ApiKey => "api_key",
            Self::Introspection => "introspection",
            Self::ClientCertificate => "client_certificate",
            Self::Sigv4 => "sigv4",
            Self::Basic => "basic",
            Self::Signature => "signature",
            Self::External => "external",
        }
    }
}

/// A verified principal. Built by authenticators only, shared by caches, never changed.
///
/// In this order, what nearly every request asks first, and names of up to 23 bytes in place: of a million callers each is in main memory, where
/// every place to be visited is one more wait.
#[derive(Debug, Clone, PartialEq)]
#[repr(C)]
pub struct Identity {
    /// The name of the authenticator in the configuration.
    pub authenticator: Arc<str>,
    /// The paying or accountable party that limits and logs speak of.
    pub consumer: Option<SmolStr>,
    /// How it was proven.
    pub method: Method,
    /// The public id of the API key.
    pub key_id: Option<SmolStr>,
    /// What the credential was granted.
    pub scopes: Arc<[Arc<str>]>,
    /// The other identities that were proven with it, where a policy asks for several credentials.
    pub beside: Vec<Arc<Identity>>,
    /// The end user or service (`sub`).
    pub subject: Option<SmolStr>,
    /// The OAuth2 client (`client_id`, `azp`).
    pub client: Option<SmolStr>,
    /// The usage plan.
    pub plan: Option<SmolStr>,
    /// What the principal is.
    pub roles: Arc<[Arc<str>]>,
    /// Every claim of the credential; empty for API keys.
    pub claims: serde_json::Map<String, serde_json::Value>,
    /// SHA-256 of the credential, or of all of them: the key of `per: credential` limits.
    pub credential: [u8; 32],
}

impl Identity {
    /// A principal of whom nothing is known but how it was proven; an authenticator fills in the rest.
    pub fn new(method: Method, authenticator: Arc<str>, credential: [u8; 32]) -> Self {
        Self {
            method,
            authenticator,
            subject: None,
            consumer: None,
            client: None,
            key_id: None,
            scopes: Arc::default(),
            roles: Arc::default(),
            plan: None,
            claims: serde_json::Map::new(),
            credential,
            beside: Vec::new(),
        }
    }

    /// Every identity of the principal, each proven by one credential; the first is the one whose word goes first.
    pub fn parts(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.beside.iter().map(|identity| &**identity))
    }

    /// The claim at a dotted path, such as `realm_access.roles`. A claim whose own name has dots, such as a URL, is found first.
    pub fn claim(&self, path: &str) -> Option<&serde_json::Value> {
        claim(&self.claims, path)
    }
}

fn claim<'a>(claims: &'a serde_json::Map<String, serde_json::Value>, path: &str) -> Option<&'a serde_json::Value> {
    claims.get(path).or_else(|| {
        path.match_indices('.').find_map(|(dot, _)| {
            let inner = claims.get(path.get(..dot)?)?.as_object()?;
            claim(inner, path.get(dot + 1..)?)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_dotted_path_walks_into_objects_and_a_whole_name_comes_first() {
        let json = json!({"a": {"b": 1, "c.d": 2, "e": {"f": 3}}, "a.b": 4, "https://x.test/t": {"id": 5}, "s": "x"});
        let claims = json.as_object().unwrap();
        for (path, expected) in [
            ("a.b", Some(json!(4))),
            ("a.c.d", Some(json!(2))),
            ("a.e.f", Some(json!(3))),
            ("https://x.test/t.id", Some(json!(5))),
            ("s", Some(json!("x"))),
            ("s.x", None),
            ("a.", None),
            ("", None),
            (".", None),
            ("b", None),
        ] {
            assert_eq!(claim(claims, path), expected.as_ref(), "{path}");
        }
    }
}
