//! What edgeward answers as an issuer: its keys, its discovery documents, and the endpoints that give access tokens.
//!
//! These are routes like any other, with a service inside edgeward behind them: requests for them are normalised, limited, logged and counted
//! as all requests are, and an operator's route in the same place is a conflict that the configuration's problems name.

mod form;
mod oauth2;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::config;
use crate::jose::Algorithm;
use crate::live::LiveState;
use crate::live::identity_tokens::{IdentityTokens, MintId};
use crate::live::oauth_clients::OauthClients;
use crate::live::signing_keys::{SigningKeys, Terms};
use crate::net::serve;
use crate::request::Now;
use oauth2::Oauth2;

/// The longest form that is read, in bytes.
const LONGEST_FORM: usize = 64 * 1024;

/// The issuer of a snapshot.
#[derive(Debug)]
pub struct Issuer {
    url: Arc<str>,
    /// The scheme and the authority of the URL.
    origin: Box<str>,
    keys: Arc<SigningKeys>,
    /// What upstreams are told.
    pub identity_tokens: Arc<IdentityTokens>,
    /// How long a verifier may hold the keys that it has fetched.
    max_age: Duration,
    endpoints: Vec<(Arc<str>, Endpoint)>,
    oauth2: Option<Oauth2>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Discovery,
    Keys,
    Token,
    Introspect,
    Revoke,
}

impl Issuer {
    /// Compiles an issuer. Its keys and clients are found or made, not opened.
    pub fn new(config: &config::Issuer, live: &LiveState) -> Self {
        let keys = signing_keys(config, live);
        let id = MintId { issuer: config.url.value.clone(), directory: config.signing.directory.clone(), ttl: config.identity_token.ttl };
        let identity_tokens = live.identity_tokens.find_or_create(&id, || IdentityTokens::new(id.clone(), keys.clone()));
        let path = config.path();
        let mut endpoints: Vec<(Arc<str>, Endpoint)> = vec![
            (format!("{path}/.well-known/openid-configuration").into(), Endpoint::Discovery),
            // RFC 8414 section 3.1: between the host and the issuer's path.
            (format!("/.well-known/oauth-authorization-server{path}").into(), Endpoint::Discovery),
            (format!("{path}/.well-known/jwks.json").into(), Endpoint::Keys),
        ];
        let oauth2 = config.oauth2.as_ref().map(|oauth2| {
            for (word, endpoint) in [("token", Endpoint::Token), ("introspect", Endpoint::Introspect), ("revoke", Endpoint::Revoke)] {
                endpoints.push((format!("{}/{word}", oauth2.path).into(), endpoint));
            }
            Oauth2 {
                issuer: config.url.value.clone(),
                ttl: oauth2.token_ttl,
                clients: clients(&oauth2.clients.database, live),
                keys: keys.clone(),
            }
        });
        let max_age = (config.signing.overlap / 4).min(Duration::from_secs(3600));
        Self { url: config.url.value.clone(), origin: config.origin().into(), keys, identity_tokens, max_age, endpoints, oauth2 }
    }

    /// What it answers: the name, the path, and the methods that it takes.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &Arc<str>, &'static [Method])> {
        self.endpoints.iter().map(|(path, endpoint)| {
            let (name, methods): (_, &[Method]) = match endpoint {
                Endpoint::Discovery => ("discovery", &[Method::GET, Method::HEAD]),
                Endpoint::Keys => ("jwks", &[Method::GET, Method::HEAD]),
                Endpoint::Token => ("token", &[Method::POST]),
                Endpoint::Introspect => ("introspect", &[Method::POST]),
                Endpoint::Revoke => ("revoke", &[Method::POST]),
            };
            (name, path, methods)
        })
    }

    /// Answers a request that the gateway has let through; `random` names a new token.
    pub async fn answer(&self, request: Request<Incoming>, now: Now, random: impl FnOnce() -> u128) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let endpoint = self.endpoints.iter().find(|(path, _)| **path == *head.uri.path()).map(|(_, endpoint)| *endpoint);
        let Ok(body) = Limited::new(body, LONGEST_FORM).collect().await else {
            return answer(StatusCode::PAYLOAD_TOO_LARGE, &json!({"error": "invalid_request"}));
        };
        let body = body.to_bytes();
        match (endpoint, &self.oauth2) {
            (Some(Endpoint::Discovery), _) => serve::document(Bytes::from(self.discovery().to_string()), self.max_age),
            (Some(Endpoint::Keys), _) => match self.keys.current().as_ref() {
                Some(held) => serve::document(held.document().clone(), self.max_age),
                None => answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": "temporarily_unavailable"})),
            },
            (Some(Endpoint::Token), Some(oauth2)) => oauth2.token(&head.headers, &body, now, random()).await,
            (Some(Endpoint::Introspect), Some(oauth2)) => oauth2.introspect(&head.headers, &body, now).await,
            (Some(Endpoint::Revoke), Some(oauth2)) => oauth2.revoke(&head.headers, &body, now).await,
            _ => nobody(),
        }
    }

    fn discovery(&self) -> Value {
        let origin = &self.origin;
        let path = |wanted| self.endpoints.iter().find(|(_, endpoint)| *endpoint == wanted).map(|(path, _)| format!("{origin}{path}"));
        let algorithms: Vec<&str> =
            self.keys.current().as_ref().map(|held| held.algorithms().map(Algorithm::label).collect()).unwrap_or_default();
        let methods = json!(["client_secret_basic", "client_secret_post"]);
        let mut document = json!({
            "issuer": &*self.url,
            "jwks_uri": path(Endpoint::Keys),
            // Required by OpenID Connect Discovery; nobody logs in here.
            "response_types_supported": [],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        });
        if let (Some(_), Value::Object(members)) = (&self.oauth2, &mut document) {
            members.extend([
                ("token_endpoint".to_owned(), json!(path(Endpoint::Token))),
                ("introspection_endpoint".to_owned(), json!(path(Endpoint::Introspect))),
                ("revocation_endpoint".to_owned(), json!(path(Endpoint::Revoke))),
                ("grant_types_supported".to_owned(), json!(["client_credentials"])),
                ("token_endpoint_auth_methods_supported".to_owned(), methods.clone()),
                ("introspection_endpoint_auth_methods_supported".to_owned(), methods.clone()),
                ("revocation_endpoint_auth_methods_supported".to_owned(), methods),
            ]);
        }
        document
    }
}

/// The answer where nothing is told any more.
pub fn nobody() -> Response<Full<Bytes>> {
    answer(StatusCode::NOT_FOUND, &json!({"error": "not_found"}))
}

/// The signing keys of an issuer.
pub fn signing_keys(config: &config::Issuer, live: &LiveState) -> Arc<SigningKeys> {
    let directory = &config.signing.directory;
    live.signing_keys.find_or_create(directory, || SigningKeys::new(directory.clone()))
}

/// What may be tuned of them.
pub fn terms(signing: &config::Signing) -> Terms {
    Terms { algorithm: signing.algorithm.into(), rotate: signing.rotate, overlap: signing.overlap }
}

/// The clients of a database.
pub fn clients(database: &std::path::PathBuf, live: &LiveState) -> Arc<OauthClients> {
    live.oauth_clients.find_or_create(database, || OauthClients::new(database.clone()))
}

/// An answer that nobody may keep (RFC 6749 section 5.1).
fn answer(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}
