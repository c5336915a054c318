//! A route as a protected resource of OAuth2 (RFC 9728): the URL under which its clients know it, and what they are told of it.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map as Object, Value, json};

use super::At;
use super::decode::{Context, Decode, Fields, NonEmpty, Scalar, grammar};
use super::limit::refuse_twice;
use super::route::LiteralPath;
use super::values::{Name, Text, Url, UrlParts, quoted};
use super::yaml::{Kind, Node};
use crate::request::host;

/// What goes between the host and the path of a resource's URL (RFC 9728 section 3).
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

grammar! {
    /// A route as a protected resource (RFC 9728): a document, open to anyone, says whose tokens it takes, and its challenges say where that
    /// document is.
    #[checked(check_resource)]
    pub struct Resource {
        /// Its identifier: the URL under which its clients know it.
        url: At<ResourceUrl>,
        /// Its name, for people.
        name: Option<Arc<str>> as Option<Text> = absent,
        /// Whose tokens it takes, each by its issuer URL. Absent: the issuers of the authenticators that the policy accepts.
        authorization_servers: Vec<Arc<str>> as NonEmpty<Vec<AuthorizationServer>> = absent,
        /// The limits that apply to the document, by name.
        limits: Vec<At<Arc<str>>> as Vec<At<Name>> = "[]",
    }
}

/// A resource, or its URL where nothing more is to be said.
pub(super) struct ResourceOrUrl;

impl Decode for ResourceOrUrl {
    type Value = Resource;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Resource> {
        if matches!(node.kind, Kind::Mapping(_)) {
            return Resource::decode(node, context);
        }
        let url = At::<ResourceUrl>::decode(node, context)?;
        Some(Resource { url, name: None, authorization_servers: Vec::new(), limits: Vec::new() })
    }

    fn expected() -> String {
        format!("{}, or `{{url: URL, ...}}`", <ResourceUrl as Scalar>::expected())
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        json!({"anyOf": [<ResourceUrl as Scalar>::schema(), Resource::schema(definitions)]})
    }
}

fn check_resource(resource: &Resource, _: &Fields<'_>, context: &mut Context<'_>) {
    refuse_twice(&resource.limits, "limit", context);
}

/// The identifier of a resource (RFC 9728 section 1.2). Clients compare it to the letter with what they make of a URL, so it has one form: that
/// which they make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceUrl(Arc<str>);

impl ResourceUrl {
    /// The URL, as the operator wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its host, as requests name it.
    pub fn host(&self) -> &str {
        UrlParts::of(&self.0).host
    }

    /// The path of its metadata. A slash that is all of the path goes (RFC 9728 section 3.1), and no other can end it.
    pub fn metadata_path(&self) -> String {
        format!("{WELL_KNOWN}{}", UrlParts::of(&self.0).path.trim_end_matches('/'))
    }

    /// Where its metadata is.
    pub fn metadata_url(&self) -> String {
        format!("{}{}", UrlParts::of(&self.0).origin, self.metadata_path())
    }
}

impl Scalar for ResourceUrl {
    type Value = Self;

    fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text)?;
        let UrlParts { origin, host, path } = UrlParts::of(&url);
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let is_loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        let (secure, plain) = (origin.strip_prefix("https://"), origin.strip_prefix("http://").filter(|_| is_loopback));
        let default_port = if secure.is_some() { ":443" } else { ":80" };
        match (secure.or(plain), host::canonical(host)) {
            (None, _) => return Err("a URL without TLS".to_owned()),
            (_, Ok(form)) if form != host => return Err(format!("the one form of its host is {}", quoted(&form))),
            (_, Err(_)) => return Err("a URL without a sound host".to_owned()),
            (Some(authority), _) if authority.ends_with(default_port) => return Err("the port that goes without saying".to_owned()),
            _ if url.contains('?') => return Err("a URL with a query".to_owned()),
            _ => {}
        }
        if !path.is_empty() {
            LiteralPath::parse(path)?;
        }
        Ok(Self(url))
    }

    fn expected() -> String {
        "an `https://` URL as clients write it, such as `https://api.example.com/orders`; `http://` on a loopback host only".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "resource URL", "type": "string", "format": "uri", "pattern": "^https?://[^?#]+$"})
    }
}

/// Whether clients could look an issuer up by this (RFC 8414 section 2).
pub fn is_issuer_url(text: &str) -> bool {
    Url::parse(text).is_ok() && !text.contains('?')
}

/// An authorization server, by its issuer URL.
struct AuthorizationServer;

impl Scalar for AuthorizationServer {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        match Url::parse(text)? {
            url if is_issuer_url(&url) => Ok(url),
            _ => Err("a URL with a query".to_owned()),
        }
    }

    fn expected() -> String {
        "the URL of an issuer, without a query".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "issuer URL", "type": "string", "format": "uri", "pattern": "^https?://[^?#]+$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_well_known_string_goes_between_the_host_and_the_path() {
        for (url, host, metadata) in [
            ("https://api.example.com", "api.example.com", "https://api.example.com/.well-known/oauth-protected-resource"),
            ("https://api.example.com/", "api.example.com", "https://api.example.com/.well-known/oauth-protected-resource"),
            ("https://api.example.com/a/b", "api.example.com", "https://api.example.com/.well-known/oauth-protected-resource/a/b"),
            ("https://a:8443/mcp", "a", "https://a:8443/.well-known/oauth-protected-resource/mcp"),
            ("https://a/caf%C3%A9", "a", "https://a/.well-known/oauth-protected-resource/caf%C3%A9"),
            ("http://localhost:8080/mcp", "localhost", "http://localhost:8080/.well-known/oauth-protected-resource/mcp"),
            ("http://127.0.0.1:8080", "127.0.0.1", "http://127.0.0.1:8080/.well-known/oauth-protected-resource"),
            ("http://[::1]:8080/x", "[::1]", "http://[::1]:8080/.well-known/oauth-protected-resource/x"),
        ] {
            let resource = ResourceUrl::parse(url).unwrap();
            assert_eq!((resource.as_str(), resource.host(), &*resource.metadata_url()), (url, host, metadata));
        }
    }

    #[test]
    fn a_url_that_no_client_would_come_to_or_that_could_be_read_twice_is_refused() {
        for url in [
            "",
            "/orders",
            "orders",
            "http://api.example.com/orders",
            "http://localhost.example.com/",
            "ftp://api.example.com/",
            "HTTPS://api.example.com/",
            "https://API.example.com/",
            "https://api.example.com./",
            "https://[0:0::1]/",
            "https://api.example.com:443/orders",
            "http://localhost:80/orders",
            "https://me@api.example.com/",
            "https://api.example.com/orders#x",
            "https://api.example.com/orders?x=1",
            "https://api.example.com?x=1",
            "https://api.example.com/orders/",
            "https://api.example.com//",
            "https://api.example.com/a//b",
            "https://api.example.com/a/../b",
            "https://api.example.com/%6frders",
            "https://api.example.com/orders/{id}",
            "https://api.example.com/a\"b",
            "https://api.example.com/a\\b",
            "https://api.example.com/a b",
        ] {
            assert!(ResourceUrl::parse(url).is_err(), "{url}");
        }
    }
}
