//! The token endpoint (RFC 6749 section 4.4, client credentials), introspection (RFC 7662) and revocation (RFC 7009).
//!
//! Tokens are JWTs as RFC 9068 has them: their `typ` is `at+jwt`, so that no identity token of ours is ever one.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::{Map, Value, json};
use smol_str::SmolStr;

use super::answer;
use super::form::{self, Form};
use crate::jose::{Claims, Jws, jws};
use crate::live::oauth_clients::{ClientRecord, OauthClients};
use crate::live::revocations::{Revocation, Revocations};
use crate::live::signing_keys::SigningKeys;
use crate::request::{Identity, Method, Now, Rejection};

/// The `typ` of an access token.
const AT_JWT: &str = "at+jwt";
/// How long a client that did not prove itself waits for the answer. Its secret cannot be guessed; this keeps the attempts few.
const SLOWED: Duration = Duration::from_millis(300);

/// The endpoints below one path.
#[derive(Debug)]
pub(super) struct Oauth2 {
    pub(super) issuer: Arc<str>,
    pub(super) ttl: Duration,
    pub(super) clients: Arc<OauthClients>,
    pub(super) keys: Arc<SigningKeys>,
    pub(super) revocations: Arc<Revocations>,
}

/// Why a request is refused: the words of RFC 6749 section 5.2 and RFC 8707.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    InvalidRequest,
    InvalidClient,
    UnauthorizedClient,
    UnsupportedGrantType,
    InvalidScope,
    InvalidTarget,
    Unavailable,
}

impl Refusal {
    async fn answer(self) -> Response<Full<Bytes>> {
        let (status, error) = match self {
            Self::InvalidRequest => (StatusCode::BAD_REQUEST, "invalid_request"),
            Self::InvalidClient => (StatusCode::UNAUTHORIZED, "invalid_client"),
            Self::UnauthorizedClient => (StatusCode::BAD_REQUEST, "unauthorized_client"),
            Self::UnsupportedGrantType => (StatusCode::BAD_REQUEST, "unsupported_grant_type"),
            Self::InvalidScope => (StatusCode::BAD_REQUEST, "invalid_scope"),
            Self::InvalidTarget => (StatusCode::BAD_REQUEST, "invalid_target"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable"),
        };
        let mut response = answer(status, &json!({ "error": error }));
        if self == Self::InvalidClient {
            tokio::time::sleep(SLOWED).await;
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"edgeward\""));
        }
        response
    }
}

impl Oauth2 {
    pub(super) async fn token(&self, headers: &HeaderMap, body: &[u8], now: Now, random: u128) -> Response<Full<Bytes>> {
        let granted = async {
            let (client, form) = self.client(headers, body, now).await?;
            self.grant(&client, &form, now, random)
        };
        match granted.await {
            Ok(token) => answer(StatusCode::OK, &token),
            Err(refusal) => refusal.answer().await,
        }
    }

    pub(super) async fn introspect(&self, headers: &HeaderMap, body: &[u8], now: Now) -> Response<Full<Bytes>> {
        let found = async {
            let (_, form) = self.client(headers, body, now).await?;
            let token = form.value("token").ok_or(Refusal::InvalidRequest)?;
            self.read(token, now)
        };
        match found.await {
            Ok(Some(mut claims)) => {
                claims.extend([("active".to_owned(), json!(true)), ("token_type".to_owned(), json!("Bearer"))]);
                answer(StatusCode::OK, &Value::Object(claims))
            }
            // RFC 7662 section 2.2: nothing more is told of a token that is no longer good, or never was.
            Ok(None) => answer(StatusCode::OK, &json!({"active": false})),
            Err(refusal) => Refusal::answer(refusal).await,
        }
    }

    pub(super) async fn revoke(&self, headers: &HeaderMap, body: &[u8], now: Now) -> Response<Full<Bytes>> {
        let revoked = async {
            let (client, form) = self.client(headers, body, now).await?;
            let token = form.value("token").ok_or(Refusal::InvalidRequest)?;
            // RFC 7009 section 2.2: a token that is good for nothing needs no revocation.
            let Some(claims) = self.read(token, now)? else { return Ok(()) };
            let text = |name| claims.get(name).and_then(Value::as_str);
            if text("client_id") != Some(&*client.id) {
                return Err(Refusal::UnauthorizedClient);
            }
            let jti = text("jti").ok_or(Refusal::InvalidRequest)?;
            let expires = claims.get("exp").and_then(Value::as_u64).ok_or(Refusal::InvalidRequest)?;
            let revocation = Revocation::of_id(jti, &self.issuer, expires, now.unix.as_secs());
            self.revocations.add(revocation).await.map_err(|error| {
                tracing::error!(%error, "a token was not revoked");
                Refusal::Unavailable
            })
        };
        match revoked.await {
            Ok(()) => answer(StatusCode::OK, &json!({})),
            Err(refusal) => Refusal::answer(refusal).await,
        }
    }

    /// The client that proved itself, and what it sent.
    async fn client(&self, headers: &HeaderMap, body: &[u8], now: Now) -> Result<(ClientRecord, Form), Refusal> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Err(Refusal::InvalidRequest);
        }
        let form = Form::parse(body, &["audience", "resource"]).ok_or(Refusal::InvalidRequest)?;
        let (id, secret) = credentials(headers, &form)?;
        let clients = self.clients.clone();
        let found = tokio::task::spawn_blocking(move || clients.authenticate(&id, &secret, now)).await;
        match found {
            Ok(Ok(Some(client))) => Ok((client, form)),
            Ok(Ok(None)) => Err(Refusal::InvalidClient),
            Ok(Err(error)) => {
                tracing::error!(%error, "the OAuth2 clients cannot be read");
                Err(Refusal::Unavailable)
            }
            Err(_) => Err(Refusal::Unavailable),
        }
    }

    fn grant(&self, client: &ClientRecord, form: &Form, now: Now, random: u128) -> Result<Value, Refusal> {
        match form.value("grant_type") {
            Some("client_credentials") => {}
            Some(_) => return Err(Refusal::UnsupportedGrantType),
            None => return Err(Refusal::InvalidRequest),
        }
        let scopes = match form.value("scope") {
            None => client.scopes.iter().map(|scope| &**scope).collect::<Vec<_>>(),
            Some(wanted) => wanted.split(' ').filter(|scope| !scope.is_empty()).collect(),
        };
        if !scopes.iter().all(|scope| client.scopes.iter().any(|ours| **ours == **scope)) {
            return Err(Refusal::InvalidScope);
        }
        let mut audiences: Vec<&str> = form.values("audience").chain(form.values("resource")).collect();
        if !audiences.iter().all(|audience| client.audiences.iter().any(|ours| **ours == **audience)) {
            return Err(Refusal::InvalidTarget);
        }
        if audiences.is_empty() {
            audiences = client.audiences.iter().map(|audience| &**audience).collect();
        }
        let audience = match audiences.as_slice() {
            [] => return Err(Refusal::InvalidTarget),
            [one] => json!(one),
            many => json!(many),
        };
        let scope = scopes.join(" ");
        let issued = now.unix.as_secs();
        let claims = json!({
            "iss": &*self.issuer, "aud": audience, "sub": &*client.id, "client_id": &*client.id, "scope": scope,
            "iat": issued, "exp": issued + self.ttl.as_secs(), "jti": format!("{random:032x}"),
        });
        let Value::Object(claims) = claims else { return Err(Refusal::Unavailable) };
        let held = self.keys.current();
        let token = held.as_ref().and_then(|held| held.sign(AT_JWT, &claims, now).ok()).ok_or(Refusal::Unavailable)?;
        Ok(json!({"access_token": token, "token_type": "Bearer", "expires_in": self.ttl.as_secs(), "scope": scope}))
    }

    /// What an access token of ours says, if it is good now.
    fn read(&self, token: &str, now: Now) -> Result<Option<Map<String, Value>>, Refusal> {
        let Some(claims) = self.verify(token, now) else { return Ok(None) };
        let text = |name| claims.get(name).and_then(Value::as_str).map(SmolStr::new);
        let mut identity = Identity::new(Method::Jwt, Arc::clone(&self.issuer), jws::fingerprint(token));
        (identity.subject, identity.client, identity.claims) = (text("sub"), text("client_id"), claims);
        match self.revocations.check(&identity) {
            Ok(()) => Ok(Some(identity.claims)),
            Err(Rejection::DependencyUnavailable { .. }) => Err(Refusal::Unavailable),
            Err(_) => Ok(None),
        }
    }

    fn verify(&self, token: &str, now: Now) -> Option<Map<String, Value>> {
        let jws = Jws::parse(token).ok()?;
        let signature = jws.signature().ok()?;
        let held = self.keys.current();
        let held = held.as_ref()?;
        if jws.header.typ.as_deref() != Some(AT_JWT) || !held.public().candidates(&jws.header).any(|key| jws.is_signed_by(key, &signature))
        {
            return None;
        }
        let Claims { registered, all } = Claims::parse(&jws.payload().ok()?).ok()?;
        let text = |name| all.get(name).and_then(Value::as_str);
        let good = registered.issuer.as_deref() == Some(&*self.issuer)
            && registered.expires.is_some_and(|expires| now.unix < expires)
            && !text("client_id").is_some_and(|client| self.clients.is_revoked(client));
        good.then_some(all)
    }
}

/// The id and the secret that a client presents, in one way and not in two (RFC 6749 section 2.3).
fn credentials(headers: &HeaderMap, form: &Form) -> Result<(String, String), Refusal> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    match (lines.next(), lines.next()) {
        (_, Some(_)) => Err(Refusal::InvalidRequest),
        (Some(_), None) if form.value("client_secret").is_some() => Err(Refusal::InvalidRequest),
        (Some(line), None) => {
            let (id, secret) = basic(line.as_bytes()).ok_or(Refusal::InvalidClient)?;
            match form.value("client_id") {
                Some(other) if other != id => Err(Refusal::InvalidRequest),
                _ => Ok((id, secret)),
            }
        }
        (None, _) => {
            let id = form.value("client_id").ok_or(Refusal::InvalidClient)?;
            Ok((id.to_owned(), form.value("client_secret").ok_or(Refusal::InvalidClient)?.to_owned()))
        }
    }
}

/// RFC 6749 section 2.3.1: both are form-encoded before they are put together.
fn basic(line: &[u8]) -> Option<(String, String)> {
    let (scheme, rest) = line.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let plain = STANDARD.decode(rest.trim_ascii()).ok()?;
    let colon = plain.iter().position(|byte| *byte == b':')?;
    Some((form::decode(plain.get(..colon)?)?, form::decode(plain.get(colon + 1..)?)?))
}
