//! Questions to an OAuth2 server as one of its clients: a form and the proof of who we are (RFC 6749 section 2.3, RFC 7523).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde_json::json;

use crate::config::{self, At, ClientProof, Problem};
use crate::jose::SigningKey;
use crate::net::http::{Client, Limits, Tls};
use crate::request::Now;
use crate::secret::Secret;

/// How long a signed proof is good: as long as a slow request takes, and clocks may differ by.
const ASSERTION_SECONDS: u64 = 60;

/// What stands for itself in a form. The others of RFC 3986 do as well: some servers compare the parts of `Basic` without decoding them.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'*');

/// The longest answer that is read, in bytes.
pub const MAX_ANSWER: usize = 64 * 1024;

/// Something that can be asked: the real client, or the script of a test.
#[async_trait::async_trait]
pub trait Ask: std::fmt::Debug + Send + Sync {
    /// Asks once, without following redirects; the error is for the log.
    async fn ask(&self, request: Request<Bytes>, deadline: Duration) -> Result<Response<Bytes>, String>;
}

#[async_trait::async_trait]
impl Ask for Client {
    async fn ask(&self, request: Request<Bytes>, deadline: Duration) -> Result<Response<Bytes>, String> {
        self.send(request, Limits { deadline, body: MAX_ANSWER }).await.map_err(|error| error.to_string())
    }
}

/// The way to an endpoint, verified by these authorities or the system's.
///
/// # Errors
/// The authorities are none.
pub fn way_to(url: &At<Arc<str>>, ca: Option<&config::File>) -> Result<Arc<dyn Ask>, Problem> {
    let client = Client::new(&Tls { ca: ca.map(|file| file.bytes.to_vec()), ..Tls::default() });
    let client = client.map_err(|message| Problem::at(ca.map_or(&url.place, |file| &file.place), message))?;
    Ok(Arc::new(client))
}

/// One endpoint of a server, asked as one of its clients.
#[derive(Debug)]
pub struct OauthEndpoint {
    uri: Uri,
    client: OauthClient,
    ask: Arc<dyn Ask>,
    timeout: Duration,
}

impl OauthEndpoint {
    /// The endpoint of a server that is known by `audience`.
    ///
    /// # Errors
    /// What is wrong with the URL or the client's key.
    pub fn new(
        ask: Arc<dyn Ask>,
        url: &At<Arc<str>>,
        (client, audience): (&config::OauthClient, &Arc<str>),
        timeout: Duration,
    ) -> Result<Self, Problem> {
        let uri = url.value.parse().map_err(|_| Problem::at(&url.place, "not a URL"))?;
        Ok(Self { uri, client: OauthClient::new(client, audience)?, ask, timeout })
    }

    /// Asks once; whatever status the answer has, it is short. The error says nothing of the parameters.
    pub async fn post(&self, parameters: &[(&str, &str)], now: Now) -> Result<Response<Bytes>, String> {
        let response = self.ask.ask(self.client.request(&self.uri, parameters, now)?, self.timeout).await?;
        match response.body().len() {
            ..=MAX_ANSWER => Ok(response),
            _ => Err(format!("the body is longer than {MAX_ANSWER} bytes")),
        }
    }
}

/// One client of one server.
#[derive(Debug)]
pub struct OauthClient {
    id: Arc<str>,
    proof: Proof,
}

#[derive(Debug)]
enum Proof {
    Basic(HeaderValue),
    Post(Secret),
    PrivateKeyJwt { key: SigningKey, audience: Arc<str>, numbers: Numbers },
}

/// Numbers that no other process uses, for `jti`: a server may take each once (RFC 7523 section 3). They need not be hard to guess.
#[derive(Debug, Default)]
struct Numbers {
    seeds: ahash::RandomState,
    last: AtomicU64,
}

impl OauthClient {
    /// The client of the server that is known by `audience`.
    pub fn new(config: &config::OauthClient, audience: &Arc<str>) -> Result<Self, Problem> {
        let proof = match &config.proof {
            ClientProof::Basic(secret) => Proof::Basic(basic(&config.id, secret)),
            ClientProof::Post(secret) => Proof::Post(secret.clone()),
            ClientProof::PrivateKeyJwt { key, audience: own } => Proof::PrivateKeyJwt {
                key: SigningKey::from_jwk(key.value.expose()).map_err(|error| Problem::at(&key.place, error.to_string()))?,
                audience: own.as_ref().unwrap_or(audience).clone(),
                numbers: Numbers::default(),
            },
        };
        Ok(Self { id: config.id.clone(), proof })
    }

    /// A POST with these parameters. Whatever bytes a value has, it stays one parameter.
    ///
    /// # Errors
    /// The proof could not be signed.
    pub fn request(&self, uri: &Uri, parameters: &[(&str, &str)], now: Now) -> Result<Request<Bytes>, String> {
        let mut form = Form::default();
        for (name, value) in parameters {
            form.add(name, value.as_bytes());
        }
        let mut request = Request::post(uri.clone());
        match &self.proof {
            Proof::Basic(authorization) => request = request.header(AUTHORIZATION, authorization),
            Proof::Post(secret) => {
                form.add("client_id", self.id.as_bytes());
                form.add("client_secret", secret.expose());
            }
            Proof::PrivateKeyJwt { key, audience, numbers } => {
                form.add("client_assertion_type", b"urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
                form.add("client_assertion", self.assertion(key, audience, &numbers.next(now), now)?.as_bytes());
            }
        }
        request
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(Bytes::from(form.0))
            .map_err(|error| error.to_string())
    }

    fn assertion(&self, key: &SigningKey, audience: &str, number: &str, now: Now) -> Result<String, String> {
        let issued = now.unix.as_secs();
        let claims = json!({
            "iss": &*self.id,
            "sub": &*self.id,
            "aud": audience,
            "jti": number,
            "iat": issued,
            "exp": issued + ASSERTION_SECONDS,
        });
        key.sign(claims.as_object().unwrap_or(&serde_json::Map::new())).map_err(|error| error.to_string())
    }
}

impl Numbers {
    fn next(&self, now: Now) -> String {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{:016x}", self.seeds.hash_one((number, now.unix)), self.seeds.hash_one((now.unix, number)))
    }
}

#[derive(Default)]
struct Form(String);

impl Form {
    fn add(&mut self, name: &str, value: &[u8]) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(name);
        self.0.push('=');
        self.0.extend(percent_encode(value, FORM));
    }
}

/// RFC 6749 section 2.3.1: both parts are encoded as in a form first, so that a colon in the id does not move the border.
fn basic(id: &str, secret: &Secret) -> HeaderValue {
    let pair = format!("{}:{}", percent_encode(id.as_bytes(), FORM), percent_encode(secret.expose(), FORM));
    let line = format!("Basic {}", STANDARD.encode(pair));
    let mut value = HeaderValue::from_str(&line).unwrap_or(HeaderValue::from_static("Basic"));
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{At, Place};
    use crate::jose::{Algorithm, Claims, JwkSet, Jws};

    const NOW: Now = Now { monotonic: Duration::from_secs(1), unix: Duration::from_secs(1_800_000_000) };

    fn client(id: &str, proof: ClientProof) -> OauthClient {
        OauthClient::new(&config::OauthClient { id: id.into(), proof }, &"https://server.test/introspect".into()).unwrap()
    }

    fn request(client: &OauthClient, token: &str) -> (Option<String>, String) {
        let uri = Uri::from_static("https://server.test/introspect");
        let request = client.request(&uri, &[("token", token), ("token_type_hint", "access_token")], NOW).unwrap();
        assert_eq!(
            (request.method().as_str(), &request.headers()[CONTENT_TYPE]),
            ("POST", &HeaderValue::from_static("application/x-www-form-urlencoded"))
        );
        let authorization = request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
        (authorization, String::from_utf8(request.into_body().to_vec()).unwrap())
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text.into())
    }

    #[test]
    fn a_token_is_one_parameter_whatever_bytes_it_has() {
        let client = client("edgeward", ClientProof::Basic(secret("s")));
        for (token, encoded) in [
            ("abc-._~123", "abc-._~123"),
            ("a+b/c==", "a%2Bb%2Fc%3D%3D"),
            ("a&active=true", "a%26active%3Dtrue"),
            ("a%26b", "a%2526b"),
            ("a\r\nHost: evil", "a%0D%0AHost%3A%20evil"),
            ("a;b#c?d e", "a%3Bb%23c%3Fd%20e"),
            ("ä\0", "%C3%A4%00"),
        ] {
            assert_eq!(request(&client, token).1, format!("token={encoded}&token_type_hint=access_token"), "{token:?}");
        }
    }

    #[test]
    fn basic_encodes_both_parts_before_it_joins_them() {
        for (id, key, pair) in
            [("edgeward", "s3cret-._~*", "edgeward:s3cret-._~*"), ("a:b", "c d%&+", "a%3Ab:c%20d%25%26%2B"), ("a", "", "a:")]
        {
            let (authorization, body) = request(&client(id, ClientProof::Basic(secret(key))), "t");
            assert_eq!(authorization.unwrap(), format!("Basic {}", STANDARD.encode(pair)));
            assert_eq!(body, "token=t&token_type_hint=access_token");
        }
    }

    #[test]
    fn post_sends_id_and_secret_in_the_body() {
        let (authorization, body) = request(&client("edge ward", ClientProof::Post(secret("a&b=c"))), "t");
        assert_eq!(authorization, None);
        assert_eq!(body, "token=t&token_type_hint=access_token&client_id=edge%20ward&client_secret=a%26b%3Dc");
    }

    #[test]
    fn a_key_signs_a_proof_for_this_server_once() {
        let signing = SigningKey::generate(Algorithm::Es256, "k1").unwrap();
        let place = Place { file: "f".into(), line: 1, column: 1, path: "p".into() };
        let key = At { value: secret(&signing.to_private_jwk().unwrap().to_string()), place };
        let set = JwkSet::parse(json!({"keys": [signing.to_public_jwk().unwrap()]}).to_string().as_bytes()).unwrap();
        for (own, audience) in [(None, "https://server.test/introspect"), (Some(Arc::from("https://server.test")), "https://server.test")] {
            let client = client("edgeward", ClientProof::PrivateKeyJwt { key: key.clone(), audience: own });
            let numbers = [0, 1].map(|_| {
                let (authorization, body) = request(&client, "t");
                assert_eq!(authorization, None);
                let expected = "token=t&token_type_hint=access_token&client_assertion_type=\
                                urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion=";
                let jws = Jws::parse(body.strip_prefix(expected).unwrap()).unwrap();
                assert!(jws.is_signed_by(&set.keys()[0], &jws.signature().unwrap()));
                let Claims { registered, all } = Claims::parse(&jws.payload().unwrap()).unwrap();
                assert_eq!((registered.issuer.as_deref(), all["sub"].as_str()), (Some("edgeward"), Some("edgeward")));
                assert_eq!(*registered.audiences, [Arc::<str>::from(audience)]);
                assert_eq!(registered.expires.unwrap() - NOW.unix, Duration::from_secs(60));
                all["jti"].as_str().unwrap().to_owned()
            });
            assert_ne!(numbers[0], numbers[1]);
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        for proof in [ClientProof::Basic(secret("hush")), ClientProof::Post(secret("hush"))] {
            let client = client("edgeward", proof);
            let request = client.request(&Uri::from_static("https://server.test/"), &[], NOW).unwrap();
            let shown = format!("{client:?} {:?}", request.headers());
            assert!(!shown.contains("hush") && !shown.contains(&STANDARD.encode("edgeward:hush")), "{shown}");
        }
    }
}
