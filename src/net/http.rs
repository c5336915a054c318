//! The one door for HTTP requests of our own (key sets, health checks): whatever stands at the other end, an answer or an error comes in time.
//!
//! Deliberately not here: redirects (a key set that moves is a key set that somebody moved), proxies from the environment, cookies, decompression.

use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper_openssl::SslStream;
use hyper_openssl::client::legacy::MaybeHttpsStream;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslVersion};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509, X509VerifyResult};
use tokio::net::TcpStream;
use tower_service::Service;

use crate::secret::Secret;

/// The head of an answer is read into a buffer of this size and no larger: neither key sets nor health checks have long heads.
const HEAD_LIMIT: usize = 64 * 1024;

/// A connection may be finished in the background for the next request, out of reach of the deadline of the one that began it; this bounds it.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Idle connections are short-lived: most peers close theirs after a minute, and a request on a dead one has to be sent twice. There are as many
/// as calls that `live::answers` makes at one time, so that a busy party is not connected to for every call.
const IDLE_LIMIT: Duration = Duration::from_secs(20);
const IDLE_CONNECTIONS: usize = 64;

/// The longest wait that is passed on from a server that asks for one.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// Whom a client trusts and who it is. The peer is always verified; the default trusts the authorities of the system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// A PEM bundle that replaces the authorities of the system.
    pub ca: Option<Vec<u8>>,
    /// Our own certificate chain and private key, in PEM.
    pub client: Option<(Vec<u8>, Secret)>,
    /// The name to ask for and verify; absent: the host of the URL.
    pub server_name: Option<String>,
    /// Connect here, whatever the URL's host resolves to.
    pub connect_to: Option<SocketAddr>,
}

/// What one request may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time for everything: resolution, connection, TLS, head and body.
    pub deadline: Duration,
    /// Bytes of the body.
    pub body: usize,
}

/// Why there is no answer. The text never holds a header, a body or a query, so it may be logged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The URL is not one that we ask.
    #[error("unusable URL: {0}")]
    Url(&'static str),
    /// The host does not resolve, or nobody listens there.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The peer could not be verified, or does not speak TLS as we do.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// What came is not HTTP, or ended too early.
    #[error("broken answer: {0}")]
    Answer(String),
    /// The body is longer than the limit, in bytes.
    #[error("the body is longer than {0} bytes")]
    Body(usize),
    /// It took too long.
    #[error("no complete answer within {0:?}")]
    Deadline(Duration),
}

impl FetchError {
    /// One word for the cause, for logs and metric labels.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Url(_) => "url",
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::Answer(_) => "answer",
            Self::Body(_) => "body",
            Self::Deadline(_) => "deadline",
        }
    }
}

/// How long a server that is overloaded or away asks to be left alone, in either form (RFC 9110 section 10.2.3), an hour at the most;
/// `now` is the time since the epoch.
pub fn retry_after<B>(answer: &Response<B>, now: Duration) -> Option<Duration> {
    if !matches!(answer.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let text = answer.headers().get(RETRY_AFTER)?.to_str().ok()?;
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Too many digits for a number are a long time.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let until = httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        until.saturating_sub(now)
    };
    Some(wait.min(LONGEST_WAIT))
}

/// An HTTP/1.1 client with one identity and one trust. It is cheap to clone, and clones share their idle connections.
#[derive(Clone)]
pub struct Client(hyper_util::client::legacy::Client<Connector, Full<Bytes>>);

impl Client {
    /// A client, or what is wrong with its certificates.
    pub fn new(tls: &Tls) -> Result<Self, String> {
        let connector = Connector::new(tls)?;
        let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .http1_max_buf_size(HEAD_LIMIT)
            .build(connector);
        Ok(Self(client))
    }

    /// Asks once. Every answer is an answer: the caller judges the status, and a redirect is not followed.
    pub async fn get(&self, url: &str, headers: &HeaderMap, limits: Limits) -> Result<Response<Bytes>, FetchError> {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = url.parse().map_err(|_| FetchError::Url("not a URL"))?;
        *request.headers_mut() = headers.clone();
        self.send(request, limits).await
    }

    /// Asks once, with a method and a body of the caller's.
    ///
    /// # Errors
    /// There is no whole answer in time.
    pub async fn send(&self, mut request: Request<Bytes>, limits: Limits) -> Result<Response<Bytes>, FetchError> {
        check(request.uri())?;
        request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static(concat!("edgeward/", env!("CARGO_PKG_VERSION"))));
        request.headers_mut().entry(ACCEPT_ENCODING).or_insert(HeaderValue::from_static("identity"));

        let exchange = async {
            let (head, body) = self.0.request(request.map(Full::new)).await.map_err(|error| cause(&error))?.into_parts();
            Ok(Response::from_parts(head, read(body, limits.body).await?))
        };
        tokio::time::timeout(limits.deadline, exchange).await.unwrap_or(Err(FetchError::Deadline(limits.deadline)))
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client(..)")
    }
}

fn check(uri: &Uri) -> Result<(), FetchError> {
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(FetchError::Url("neither http nor https"));
    }
    let authority = uri.authority().ok_or(FetchError::Url("no host"))?;
    // `https://good.example@evil.example/` reads like the first and asks the second.
    if authority.as_str().contains('@') {
        return Err(FetchError::Url("a user name or password in it"));
    }
    Ok(())
}

async fn read(mut body: hyper::body::Incoming, limit: usize) -> Result<Bytes, FetchError> {
    if body.size_hint().lower() > limit as u64 {
        return Err(FetchError::Body(limit));
    }
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| FetchError::Answer(chain(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > limit - bytes.len() {
            return Err(FetchError::Body(limit));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// Opens connections: TCP, then TLS with the peer verified when the scheme asks for it.
#[derive(Clone)]
struct Connector {
    tcp: HttpConnector,
    tls: SslConnector,
    server_name: Option<String>,
    connect_to: Option<Uri>,
}

impl Connector {
    fn new(tls: &Tls) -> Result<Self, String> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connect_to =
            tls.connect_to.map(|address| Uri::builder().scheme("http").authority(address.to_string()).path_and_query("/").build());
        let mut ssl = ssl_connector(tls)?;
        ssl.set_alpn_protos(b"\x08http/1.1").map_err(|error| format!("TLS: {error}"))?;
        Ok(Self {
            tcp,
            tls: ssl.build(),
            server_name: tls.server_name.clone(),
            connect_to: connect_to.transpose().map_err(|error| error.to_string())?,
        })
    }

    async fn connect(mut self, uri: Uri) -> Result<MaybeHttpsStream<TokioIo<TcpStream>>, FetchError> {
        let encrypted = uri.scheme_str() == Some("https");
        let name = self.server_name.take().or_else(|| uri.host().map(|host| host.trim_matches(['[', ']']).to_owned()));
        let target = self.connect_to.take().unwrap_or(uri);
        let stream = self.tcp.call(target).await.map_err(|error| FetchError::Connect(chain(&error)))?;
        if !encrypted {
            return Ok(MaybeHttpsStream::Http(stream));
        }
        let name = name.ok_or(FetchError::Url("no host"))?;
        let ssl =
            self.tls.configure().and_then(|configuration| configuration.into_ssl(&name)).map_err(|error| FetchError::Tls(chain(&error)))?;
        let mut stream = SslStream::new(ssl, stream).map_err(|error| FetchError::Tls(chain(&error)))?;
        let handshake = Pin::new(&mut stream).connect().await;
        match (handshake, stream.ssl().verify_result()) {
            (Ok(()), _) => Ok(MaybeHttpsStream::Https(stream)),
            (Err(error), X509VerifyResult::OK) => Err(FetchError::Tls(chain(&error))),
            (Err(_), refused) => Err(FetchError::Tls(refused.error_string().to_owned())),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = FetchError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, FetchError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), FetchError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = tokio::time::timeout(CONNECT_LIMIT, self.clone().connect(uri));
        Box::pin(async { connecting.await.unwrap_or(Err(FetchError::Deadline(CONNECT_LIMIT))) })
    }
}

/// TLS that verifies its peer, for every protocol of ours.
pub(super) fn ssl_connector(tls: &Tls) -> Result<SslConnectorBuilder, String> {
    let unusable = |what: &'static str| move |error: ErrorStack| format!("{what}: {error}");
    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(unusable("TLS"))?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2)).map_err(unusable("TLS"))?;
    let mut store = X509StoreBuilder::new().map_err(unusable("TLS"))?;
    // The operator's bundle is the anchor, whether it holds roots or intermediates.
    store.set_flags(X509VerifyFlags::PARTIAL_CHAIN).map_err(unusable("TLS"))?;
    match &tls.ca {
        Some(pem) => {
            let authorities = X509::stack_from_pem(pem).map_err(unusable("the CA bundle"))?;
            if authorities.is_empty() {
                return Err("the CA bundle holds no certificate".to_owned());
            }
            for authority in authorities {
                store.add_cert(authority).map_err(unusable("the CA bundle"))?;
            }
            builder.set_cert_store(store.build());
        }
        // Our OpenSSL is compiled in and looks for authorities where no system has them. Where there are none, nobody is trusted.
        None => {
            let found = openssl_probe::probe();
            if found.cert_file.is_some() || found.cert_dir.is_some() {
                builder
                    .load_verify_locations(found.cert_file.as_deref(), found.cert_dir.as_deref())
                    .map_err(unusable("the system's CA bundle"))?;
            }
        }
    }
    if let Some((chain, key)) = &tls.client {
        let mut chain = X509::stack_from_pem(chain).map_err(unusable("the client certificate"))?.into_iter();
        let certificate = chain.next().ok_or("the client certificate: no certificate in the chain")?;
        builder.set_certificate(&certificate).map_err(unusable("the client certificate"))?;
        for intermediate in chain {
            builder.add_extra_chain_cert(intermediate).map_err(unusable("the client certificate"))?;
        }
        let key =
            PKey::private_key_from_pem(key.expose()).map_err(|_| "the client key: not an unencrypted private key in PEM".to_owned())?;
        builder
            .set_private_key(&key)
            .and_then(|()| builder.check_private_key())
            .map_err(|_| "the client key does not belong to the certificate".to_owned())?;
    }
    Ok(builder)
}

/// The error of our own connector when it is one, and otherwise that of the exchange.
fn cause(error: &hyper_util::client::legacy::Error) -> FetchError {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(ours) = inner.downcast_ref::<FetchError>() {
            return ours.clone();
        }
        source = inner.source();
    }
    FetchError::Answer(chain(error))
}

/// An error with what it says of its sources.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use openssl::ssl::{SslAcceptor, SslVerifyMode};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_server_says_when_to_come_again_in_either_form() {
        // Sun, 06 Nov 1994 08:49:37 GMT.
        let now = Duration::from_secs(784_111_777);
        for (status, text, expected) in [
            (503, "120", Some(120)),
            (429, "0", Some(0)),
            (503, "Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            (503, "Sunday, 06-Nov-94 08:50:07 GMT", Some(30)),
            (503, "Sun, 06 Nov 1994 08:49:07 GMT", Some(0)),
            (503, "Sun, 06 Nov 2033 08:49:37 GMT", Some(3600)),
            (503, "99999999999999999999999", Some(3600)),
            (503, "", None),
            (503, "-1", None),
            (503, "1.5", None),
            (503, "soon", None),
            (503, "Tue, 06 Nov 1894 08:49:37 GMT", None),
            (500, "120", None),
            (200, "120", None),
        ] {
            let answer = Response::builder().status(status).header(RETRY_AFTER, text).body(()).unwrap();
            assert_eq!(retry_after(&answer, now), expected.map(Duration::from_secs), "{status} {text}");
        }
        assert_eq!(retry_after(&Response::builder().status(503).body(()).unwrap(), now), None);
    }

    const SHORT: Limits = Limits { deadline: Duration::from_millis(300), body: 1000 };
    const AMPLE: Limits = Limits { deadline: Duration::from_secs(10), body: 1000 };

    /// Answers each connection's first request with these bytes and closes; counts the connections.
    async fn origin(answer: impl Into<Vec<u8>>) -> (SocketAddr, Arc<AtomicUsize>) {
        let (listener, address) = listen().await;
        let (answer, connections) = (answer.into(), Arc::new(AtomicUsize::new(0)));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(&answer).await;
            }
        });
        (address, connections)
    }

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    async fn get(address: SocketAddr, limits: Limits) -> Result<Response<Bytes>, FetchError> {
        Client::new(&Tls::default()).unwrap().get(&format!("http://{address}/keys?token=hidden"), &HeaderMap::new(), limits).await
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn an_answer_comes_with_status_headers_and_body() {
        let (address, _) = origin("HTTP/1.1 404 Not Found\r\nCache-Control: max-age=60\r\nContent-Length: 3\r\n\r\nno!").await;
        let answer = get(address, AMPLE).await.unwrap();
        assert_eq!(answer.status(), 404);
        assert_eq!(answer.headers()["cache-control"], "max-age=60");
        assert_eq!(answer.body().as_ref(), b"no!");
    }

    #[tokio::test]
    async fn a_redirect_is_returned_and_not_followed() {
        let (elsewhere, visits) = origin(ok("trap")).await;
        let (address, _) = origin(format!("HTTP/1.1 302 Found\r\nLocation: http://{elsewhere}/\r\nContent-Length: 0\r\n\r\n")).await;
        assert_eq!(get(address, AMPLE).await.unwrap().status(), 302);
        assert_eq!(visits.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_peer_that_never_answers_is_left_at_the_deadline() {
        let (listener, address) = listen().await;
        let held = tokio::spawn(async move { listener.accept().await });
        assert_eq!(get(address, SHORT).await.unwrap_err(), FetchError::Deadline(SHORT.deadline));
        held.abort();
    }

    #[tokio::test]
    async fn a_body_that_drips_is_left_at_the_deadline() {
        let (listener, address) = listen().await;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n").await.unwrap();
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert_eq!(get(address, SHORT).await.unwrap_err(), FetchError::Deadline(SHORT.deadline));
    }

    #[tokio::test]
    async fn a_body_without_end_is_left_at_the_limit() {
        let (listener, address) = listen().await;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
            while stream
                .write_all(
                    b"64\r\n0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\r\n",
                )
                .await
                .is_ok()
            {}
        });
        assert_eq!(get(address, AMPLE).await.unwrap_err(), FetchError::Body(1000));
    }

    #[tokio::test]
    async fn the_body_limit_is_exact() {
        for (length, expected) in [(1000, Ok(1000)), (1001, Err(FetchError::Body(1000)))] {
            let (address, _) = origin(ok(&"x".repeat(length))).await;
            assert_eq!(get(address, AMPLE).await.map(|answer| answer.body().len()), expected);
        }
    }

    #[tokio::test]
    async fn what_is_not_whole_http_is_an_error() {
        let long_head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD_LIMIT));
        for broken in ["", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", &long_head] {
            let (address, _) = origin(broken).await;
            let error = get(address, AMPLE).await.unwrap_err();
            assert_eq!(error.cause(), "answer", "{error}");
            assert!(!error.to_string().contains("hidden"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_a_connect_error() {
        let (listener, address) = listen().await;
        drop(listener);
        let error = get(address, AMPLE).await.unwrap_err();
        assert_eq!(error.cause(), "connect");
        assert!(error.to_string().contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn only_plain_http_urls_are_asked() {
        let client = Client::new(&Tls::default()).unwrap();
        for url in [
            "",
            "/path",
            "ftp://example.com/",
            "file:///etc/passwd",
            "https://good.example@evil.example/",
            "http://u:p@example.com/",
            "http://",
        ] {
            let error = client.get(url, &HeaderMap::new(), AMPLE).await.unwrap_err();
            assert_eq!(error.cause(), "url", "{url}");
        }
    }

    /// An authority, and a server under it that answers `ok` over TLS on every connection, with a certificate for `name`.
    async fn tls_origin(name: &str, client_authority: Option<&Authority>) -> (SocketAddr, Authority) {
        let authority = Authority::new();
        let (chain, key) = authority.issue(name);
        let mut acceptor = SslAcceptor::mozilla_modern_v5(SslMethod::tls_server()).unwrap();
        acceptor.set_certificate(&X509::from_pem(chain.as_bytes()).unwrap()).unwrap();
        acceptor.set_private_key(&PKey::private_key_from_pem(key.as_bytes()).unwrap()).unwrap();
        if let Some(clients) = client_authority {
            acceptor.cert_store_mut().add_cert(X509::from_pem(clients.pem().as_bytes()).unwrap()).unwrap();
            acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        }
        let acceptor = acceptor.build();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            use std::io::{Read, Write};
            for stream in listener.incoming().map_while(Result::ok) {
                let Ok(mut stream) = acceptor.accept(stream) else { continue };
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(ok("ok").as_bytes());
                let _ = stream.shutdown();
            }
        });
        (address, authority)
    }

    struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

    impl Authority {
        fn new() -> Self {
            let mut parameters = rcgen::CertificateParams::default();
            parameters.distinguished_name.push(rcgen::DnType::CommonName, "authority");
            parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            Self(rcgen::CertifiedIssuer::self_signed(parameters, rcgen::KeyPair::generate().unwrap()).unwrap())
        }

        fn pem(&self) -> String {
            self.0.as_ref().pem()
        }

        fn issue(&self, name: &str) -> (String, String) {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = rcgen::CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
            (certificate.pem(), key.serialize_pem())
        }
    }

    async fn get_tls(url: &str, tls: &Tls) -> Result<u16, FetchError> {
        let answer = Client::new(tls).unwrap().get(url, &HeaderMap::new(), AMPLE).await?;
        Ok(answer.status().as_u16())
    }

    #[tokio::test]
    async fn a_certificate_counts_only_from_the_authority_and_for_the_name() {
        let (address, authority) = tls_origin("keys.example", None).await;
        let (port, ca) = (address.port(), || Some(authority.pem().into_bytes()));
        let connect_to = Some(address);
        let url = "https://keys.example/";

        assert_eq!(get_tls(url, &Tls { ca: ca(), connect_to, ..Tls::default() }).await, Ok(200), "the name of the URL");
        let named = Tls { ca: ca(), server_name: Some("keys.example".to_owned()), ..Tls::default() };
        assert_eq!(get_tls(&format!("https://127.0.0.1:{port}/"), &named).await, Ok(200), "the name of the configuration");

        let other_authority = Tls { ca: Some(Authority::new().pem().into_bytes()), connect_to, ..Tls::default() };
        let refused: [(&str, &str, Tls); 4] = [
            ("the system's authorities do not know it", url, Tls { connect_to, ..Tls::default() }),
            ("another authority", url, other_authority),
            ("another name in the URL", "https://evil.example/", Tls { ca: ca(), connect_to, ..Tls::default() }),
            (
                "another name in the configuration",
                url,
                Tls { ca: ca(), connect_to, server_name: Some("evil.example".to_owned()), ..Tls::default() },
            ),
        ];
        for (case, url, tls) in refused {
            let error = get_tls(url, &tls).await.unwrap_err();
            assert_eq!(error.cause(), "tls", "{case}: {error}");
        }
    }

    #[tokio::test]
    async fn an_address_in_the_url_is_verified_as_an_address() {
        let (address, authority) = tls_origin("127.0.0.1", None).await;
        let tls = Tls { ca: Some(authority.pem().into_bytes()), ..Tls::default() };
        assert_eq!(get_tls(&format!("https://{address}/"), &tls).await, Ok(200));
        let error = get_tls(&format!("https://localhost:{}/", address.port()), &tls).await.unwrap_err();
        assert_eq!(error.cause(), "tls", "{error}");
    }

    #[tokio::test]
    async fn a_client_certificate_is_shown_when_there_is_one() {
        let clients = Authority::new();
        let (address, authority) = tls_origin("keys.example", Some(&clients)).await;
        let (chain, key) = clients.issue("edgeward");
        let client = Some((chain.into_bytes(), Secret::new(key.into_bytes())));
        let with = Tls { ca: Some(authority.pem().into_bytes()), connect_to: Some(address), client, ..Tls::default() };
        assert_eq!(get_tls("https://keys.example/", &with).await, Ok(200));
        let without = Tls { client: None, ..with };
        assert!(get_tls("https://keys.example/", &without).await.is_err());
    }

    #[test]
    fn unusable_certificates_are_named_and_keys_are_not_printed() {
        let (chain, _) = Authority::new().issue("a");
        let (_, other_key) = Authority::new().issue("b");
        let client = |chain: &str, key: &str| Tls { client: Some((chain.into(), Secret::new(key.into()))), ..Tls::default() };
        let cases = [
            (Tls { ca: Some(b"not PEM".to_vec()), ..Tls::default() }, "the CA bundle"),
            (client("", ""), "the client certificate"),
            (client(&chain, "secret words"), "the client key"),
            (client(&chain, &other_key), "the client key does not belong to the certificate"),
        ];
        for (tls, expected) in cases {
            let error = Client::new(&tls).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
