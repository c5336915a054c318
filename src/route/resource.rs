//! Protected-resource metadata (RFC 9728): what clients that know no more than a URL are told of it. Made once, served as it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use serde_json::{Map, Value, json};

use crate::authenticators::dpop;
use crate::config::{self, AccessTokens, At, Location, ResourceUrl};
use crate::net::serve;
use crate::request::host;

/// Short, so that clients do not ask an issuer of yesterday for long.
const MAX_AGE: Duration = Duration::from_secs(300);

/// What the routes of one resource say of it.
#[derive(Debug, Clone)]
pub struct Metadata {
    /// The resource.
    pub url: ResourceUrl,
    name: Option<Arc<str>>,
    authorization_servers: Vec<Arc<str>>,
    scopes: Vec<Arc<str>>,
    bearer_methods: Vec<&'static str>,
    takes_bound: bool,
    asks_for_bound: bool,
    certificates: bool,
    /// The limits of its document.
    pub limits: Vec<At<Arc<str>>>,
}

impl Metadata {
    /// What a route says that asks for these scopes and takes these tokens. `certificates`: whether a caller can show any that a token could be
    /// bound to (RFC 8705).
    pub fn new(resource: &config::Resource, scopes: &[Arc<str>], tokens: &[AccessTokens<'_>], certificates: bool) -> Self {
        let issuers = tokens.iter().filter_map(|tokens| tokens.issuer);
        // Where a binding is required no token is taken without a proof, wherever it sits.
        let takes = |tokens: &AccessTokens<'_>, place: &Location| !tokens.bound || place.has_scheme("DPoP");
        let places: Vec<&Location> = tokens.iter().flat_map(|tokens| tokens.from.iter().filter(|place| takes(tokens, place))).collect();
        // RFC 6750 sections 2.1 and 2.3. A body is never looked into (section 2.2), and of other places the standard does not know.
        let in_header = |place: &&Location| {
            place.has_scheme("Bearer") && matches!(place, Location::Header { name, .. } if name == header::AUTHORIZATION)
        };
        let in_query = |place: &&Location| matches!(place, Location::Query(name) if &**name == "access_token");
        let ways = [("header", places.iter().any(in_header)), ("query", places.iter().any(in_query))];
        Self {
            url: resource.url.value.clone(),
            name: resource.name.clone(),
            authorization_servers: match &resource.authorization_servers[..] {
                [] => once_each(issuers),
                written => once_each(written),
            },
            scopes: once_each(scopes),
            bearer_methods: ways.iter().filter(|(_, taken)| *taken).map(|(name, _)| *name).collect(),
            takes_bound: places.iter().any(|place| place.has_scheme("DPoP")),
            asks_for_bound: places.iter().all(|place| place.has_scheme("DPoP")),
            certificates,
            limits: resource.limits.clone(),
        }
    }

    /// Adds what another route of the same resource says.
    ///
    /// # Errors
    /// What the two cannot both say: there is one document, and what it says of how to come by a token and how to present it holds of each
    /// route or misleads. Scopes are another matter: no document says which request needs which.
    pub fn merge(&mut self, other: Self) -> Result<(), &'static str> {
        if self.name.is_some() && other.name.is_some() && self.name != other.name {
            return Err("another name");
        }
        if self.authorization_servers != other.authorization_servers {
            return Err("other authorization servers");
        }
        let ways = |metadata: &Self| (metadata.bearer_methods.clone(), metadata.takes_bound, metadata.asks_for_bound);
        if ways(self) != ways(&other) {
            return Err("other places of a token");
        }
        self.name = self.name.take().or(other.name);
        self.scopes = once_each(self.scopes.iter().chain(&other.scopes));
        for limit in other.limits {
            if !self.limits.iter().any(|known| known.value == limit.value) {
                self.limits.push(limit);
            }
        }
        Ok(())
    }

    /// The members of RFC 9728 section 2.
    pub fn document(&self) -> Value {
        let mut document = Map::new();
        let mut say = |name: &str, value: Value| document.insert(name.to_owned(), value);
        say("resource", json!(self.url.as_str()));
        say("authorization_servers", texts(&self.authorization_servers));
        say("bearer_methods_supported", json!(self.bearer_methods));
        if let Some(name) = &self.name {
            say("resource_name", json!(**name));
        }
        if !self.scopes.is_empty() {
            say("scopes_supported", texts(&self.scopes));
        }
        if self.takes_bound {
            say("dpop_signing_alg_values_supported", json!(dpop::ALGORITHMS));
        }
        if self.asks_for_bound {
            say("dpop_bound_access_tokens_required", json!(true));
        }
        if self.certificates {
            say("tls_client_certificate_bound_access_tokens", json!(true));
        }
        Value::Object(document)
    }
}

fn texts(texts: &[Arc<str>]) -> Value {
    texts.iter().map(|text| Value::from(&**text)).collect()
}

/// The order stays: clients take the first that they can use. It is the policy's, so two routes with the same policy say the same.
fn once_each<'t>(texts: impl IntoIterator<Item = &'t Arc<str>>) -> Vec<Arc<str>> {
    let mut once: Vec<Arc<str>> = Vec::new();
    for text in texts {
        if !once.contains(text) {
            once.push(Arc::clone(text));
        }
    }
    once
}

/// The documents of every resource, by host and path.
#[derive(Debug, Default)]
pub struct Documents(HashMap<String, Bytes>);

impl Documents {
    /// The documents of these resources.
    pub fn new<'m>(resources: impl Iterator<Item = &'m Metadata>) -> Self {
        let place = |metadata: &Metadata| format!("{}{}", metadata.url.host(), metadata.url.metadata_path());
        Self(resources.map(|metadata| (place(metadata), Bytes::from(metadata.document().to_string()))).collect())
    }

    /// The answer where one of them was asked for.
    pub fn answer<B>(&self, request: &Request<B>) -> Option<Response<Full<Bytes>>> {
        let host = host::canonical(request.headers().get(header::HOST)?.to_str().ok()?).ok()?;
        let document = self.0.get(&format!("{host}{}", request.uri().path()))?;
        let mut answer = serve::document(document.clone(), MAX_AGE);
        // For clients in browsers: there is nothing in it that is not for everybody.
        answer.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://api.test/orders";

    fn location(name: &str, scheme: &str) -> Location {
        Location::Header { name: name.parse().unwrap(), scheme: Some(scheme.into()) }
    }

    /// What a route says that is written so, takes tokens of these issuers from these places, and asks for these scopes.
    fn metadata(written: &str, issuers: &[&str], from: &[Location], scopes: &[&str]) -> Metadata {
        let issuers: Vec<Arc<str>> = issuers.iter().map(|issuer| Arc::from(*issuer)).collect();
        let scopes: Vec<Arc<str>> = scopes.iter().map(|scope| Arc::from(*scope)).collect();
        let tokens: Vec<_> = issuers.iter().map(|issuer| AccessTokens { issuer: Some(issuer), from, bound: false }).collect();
        Metadata::new(&resource(written), &scopes, &tokens, false)
    }

    fn resource(written: &str) -> config::Resource {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edgeward.yaml");
        let text = format!(
            "listeners: [{{address: 127.0.0.1:0}}]\nupstreams: {{demo: {{builtin: echo}}}}\n\
             routes: [{{name: r, path: /, policy: {{authenticate: public}}, upstream: demo, resource: {written}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        config::load(&path, &config::System).config.unwrap().routes[0].resource.clone().unwrap()
    }

    #[test]
    fn a_document_says_whose_tokens_are_taken_and_how_and_nothing_that_is_not_so() {
        let bearer = || location("authorization", "Bearer");
        let bound = || location("Authorization", "dpop");
        let query = |name: &str| Location::Query(name.into());
        for (metadata, expected) in [
            (
                metadata(&format!("\"{URL}\""), &["https://a"], &[bearer()], &[]),
                json!({"resource": URL, "authorization_servers": ["https://a"], "bearer_methods_supported": ["header"]}),
            ),
            (
                metadata(
                    &format!("{{url: \"{URL}\", name: Orders}}"),
                    &["https://b", "https://a", "https://b"],
                    &[query("access_token"), bearer()],
                    &["r", "w"],
                ),
                json!({
                    "resource": URL, "resource_name": "Orders", "authorization_servers": ["https://b", "https://a"],
                    "bearer_methods_supported": ["header", "query"], "scopes_supported": ["r", "w"],
                }),
            ),
            // Places of which the standard does not know.
            (
                metadata(
                    &format!("\"{URL}\""),
                    &["https://a"],
                    &[location("x-token", "Bearer"), query("token"), Location::Cookie("access_token".into())],
                    &[],
                ),
                json!({"resource": URL, "authorization_servers": ["https://a"], "bearer_methods_supported": []}),
            ),
            (
                metadata(&format!("{{url: \"{URL}\", authorization_servers: [\"https://c\"]}}"), &["https://a"], &[bound(), bearer()], &[]),
                json!({
                    "resource": URL, "authorization_servers": ["https://c"], "bearer_methods_supported": ["header"],
                    "dpop_signing_alg_values_supported": dpop::ALGORITHMS,
                }),
            ),
            (
                metadata(&format!("\"{URL}\""), &["https://a"], &[bound()], &[]),
                json!({
                    "resource": URL, "authorization_servers": ["https://a"], "bearer_methods_supported": [],
                    "dpop_signing_alg_values_supported": dpop::ALGORITHMS, "dpop_bound_access_tokens_required": true,
                }),
            ),
            (
                Metadata::new(
                    &resource(&format!("\"{URL}\"")),
                    &[],
                    &[AccessTokens { issuer: Some(&"https://a".into()), from: &[bound(), bearer()], bound: true }],
                    false,
                ),
                json!({
                    "resource": URL, "authorization_servers": ["https://a"], "bearer_methods_supported": [],
                    "dpop_signing_alg_values_supported": dpop::ALGORITHMS, "dpop_bound_access_tokens_required": true,
                }),
            ),
            (
                Metadata { certificates: true, ..metadata(&format!("\"{URL}\""), &["https://a"], &[bearer()], &[]) },
                json!({
                    "resource": URL, "authorization_servers": ["https://a"], "bearer_methods_supported": ["header"],
                    "tls_client_certificate_bound_access_tokens": true,
                }),
            ),
        ] {
            assert_eq!(metadata.document(), expected);
        }
    }

    #[test]
    fn routes_of_one_resource_differ_in_their_scopes_only() {
        let bearer = [location("authorization", "Bearer")];
        let either = [location("authorization", "Bearer"), location("authorization", "DPoP")];
        let named = |name: &str| format!("{{url: \"{URL}\", name: {name}}}");
        let plain = format!("\"{URL}\"");
        let read = metadata(&plain, &["https://a"], &bearer, &["read"]);
        for (other, outcome) in [
            (metadata(&plain, &["https://a"], &bearer, &["write", "read"]), Ok(())),
            (metadata(&named("Orders"), &["https://a"], &bearer, &[]), Ok(())),
            (metadata(&plain, &["https://b"], &bearer, &["read"]), Err("other authorization servers")),
            (metadata(&plain, &["https://a", "https://b"], &bearer, &["read"]), Err("other authorization servers")),
            (metadata(&plain, &["https://a"], &either, &["read"]), Err("other places of a token")),
        ] {
            assert_eq!(read.clone().merge(other), outcome);
        }
        let mut all = read;
        all.merge(metadata(&named("Orders"), &["https://a"], &bearer, &["write", "read"])).unwrap();
        assert_eq!((&all.document()["scopes_supported"], &all.document()["resource_name"]), (&json!(["read", "write"]), &json!("Orders")));
        assert_eq!(all.merge(metadata(&named("Others"), &["https://a"], &bearer, &[])), Err("another name"));
    }

    #[test]
    fn a_document_is_found_by_its_host_and_path_alone() {
        let all = [metadata(&format!("\"{URL}\""), &["https://a"], &[], &[])];
        let documents = Documents::new(all.iter());
        let ask = |host: &str, path: &str| documents.answer(&Request::get(path).header("host", host).body(()).unwrap());
        let path = "/.well-known/oauth-protected-resource/orders";
        for host in ["api.test", "API.test:8443"] {
            let answer = ask(host, path).unwrap();
            assert_eq!(answer.headers()["cache-control"], "public, max-age=300");
            assert_eq!(
                (&answer.headers()["content-type"], &answer.headers()["access-control-allow-origin"]),
                (&"application/json".parse().unwrap(), &"*".parse().unwrap())
            );
        }
        for (host, path) in [("other.test", path), ("api.test", "/.well-known/oauth-protected-resource"), ("a b", path)] {
            assert!(ask(host, path).is_none(), "{host}{path}");
        }
    }
}
