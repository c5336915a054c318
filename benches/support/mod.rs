//! What the benches share: a gateway without its sockets, and the ways in which work is timed.

#![allow(dead_code, unreachable_pub, reason = "a module of every bench, none of which needs all of it")]

pub mod counted;
pub mod ways;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use edgeward::admit::{Refusal, admit};
use edgeward::config::{self, System};
use edgeward::jose::Algorithm;
use edgeward::jose::claims::Registered;
use edgeward::live::LiveState;
use edgeward::live::token_cache::Verified;
use edgeward::metrics::Metrics;
use edgeward::request::message::{Head, Message};
use edgeward::request::{ClientCertificate, Identity, Now, Request};
use edgeward::route::Route;
use edgeward::route::fields::FieldList;
use edgeward::route::forward::{self, Connection};
use edgeward::route::router::ParametersBuffer;
use edgeward::snapshot::{Snapshot, compile};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use tempfile::TempDir;

/// The moment at which everything here happens.
pub const NOW: Now = Now { monotonic: Duration::from_secs(100), unix: Duration::from_secs(1_800_000_000) };

/// A configuration, compiled: all that a request meets between Pingora's parser and Pingora's connection to the upstream.
pub struct Gate {
    pub snapshot: Snapshot,
    pub live: LiveState,
    request_id: HeaderValue,
    _folder: TempDir,
}

/// What one request brings.
pub struct Caller {
    method: Method,
    target: String,
    headers: HeaderMap,
    /// The head as it stood on the connection.
    raw: Vec<u8>,
    pub address: IpAddr,
    certificate: Option<Arc<ClientCertificate>>,
}

impl Gate {
    /// Compiles a configuration that stands beside these files.
    pub fn new(configuration: &str, files: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).expect("a file");
        }
        let path = folder.path().join("edgeward.yaml");
        std::fs::write(&path, configuration).expect("a file");
        let config = config::load(&path, &System).config.unwrap_or_else(|problems| panic!("{problems:?}"));
        let live = LiveState::default();
        let snapshot = compile(&config, &live, &Metrics::new().expect("metrics")).unwrap_or_else(|problems| panic!("{problems:?}"));
        snapshot.activate();
        Self { snapshot, live, request_id: HeaderValue::from_static("0a4c7d2e5f3b4b7e9a513c1d2e4f5a6b"), _folder: folder }
    }

    /// What a caller's head comes to: one canonical form, and the route that it belongs to.
    pub fn request<T>(&self, caller: &Caller, with: impl FnOnce(&Route, &Request<'_>) -> T) -> T {
        let head = Head {
            version: Version::HTTP_11,
            method: &caller.method,
            authority: None,
            target: caller.target.as_bytes(),
            headers: &caller.headers,
            raw: Some(&caller.raw),
        };
        let message = Message::read(head, self.snapshot.server.head).expect("a sound head");
        let mut parameters = ParametersBuffer::default();
        let route = self.snapshot.router.find(&message.host, &message.path, message.method, &mut parameters).expect("a route");
        let client = self.snapshot.server.client(caller.address, message.headers);
        let request = Request {
            method: message.method,
            host: &message.host,
            port: message.port,
            scheme: forward::scheme(message.headers, client.through_trusted_proxy, false),
            path: &message.path,
            query: message.query,
            headers: message.headers,
            body: Some(&[]),
            client: &client,
            certificate: caller.certificate.as_deref(),
            route: &route.name,
            parameters: parameters.parameters(),
        };
        with(route, &request)
    }

    /// The fields that the upstream is sent, as the short way writes them.
    pub fn forward(&self, route: &Route, caller: &Caller, identity: Option<&Identity>) -> BytesMut {
        let mut upstream = FieldList::new(&caller.headers);
        let connection = Connection {
            client: caller.address,
            peer: Some(caller.address),
            through_trusted_proxy: false,
            secure: false,
            host: "api.example.com",
            request_id: &self.request_id,
            certificate: caller.certificate.as_deref(),
        };
        route.policy.forward.apply(&mut upstream, identity, &connection);
        let mut head = BytesMut::with_capacity(1024);
        upstream.write(&mut head);
        head
    }

    /// The whole way of a request that waits for nobody: decided, and where it is admitted with the head that the upstream is sent.
    pub fn pass(&self, caller: &Caller) -> Result<BytesMut, Refusal> {
        self.request(caller, |route, request| {
            let decided = admit(route, request, NOW, || 0).now_or_never().expect("a warm way waits for nobody");
            decided.map(|admission| self.forward(route, caller, admission.identity().map(|identity| &**identity)))
        })
    }

    /// Sends a caller its way, so that what can be known is known: the first request may wait for others, the next may not.
    ///
    /// # Panics
    /// It ends otherwise than with this code, or `ok`.
    pub fn warm(&self, caller: &Caller, ends: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        for _ in 0..2 {
            let decided = self.request(caller, |route, request| runtime.block_on(admit(route, request, NOW, || 0)));
            let ended = decided.as_ref().map_or_else(|refusal| refusal.rejection.code(), |_| "ok");
            assert_eq!(ended, ends, "{decided:?}");
        }
    }
}

impl Caller {
    /// A `GET` with what clients send anyway, and these headers.
    pub fn new(target: &str, headers: &[(&'static str, &str)]) -> Self {
        let usual = [
            ("host", "api.example.com"),
            ("user-agent", "curl/8.5.0"),
            ("accept", "application/json"),
            ("accept-encoding", "gzip, br"),
            ("accept-language", "en"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
        ];
        let mut raw = format!("GET {target} HTTP/1.1\r\n");
        let mut map = HeaderMap::new();
        for (name, value) in usual.iter().chain(headers) {
            raw += &format!("{name}: {value}\r\n");
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"));
        }
        raw += "\r\n";
        Self {
            method: Method::GET,
            target: target.to_owned(),
            headers: map,
            raw: raw.into_bytes(),
            address: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)),
            certificate: None,
        }
    }

    /// The same with this certificate, proven.
    pub fn with_certificate(self, certificate: ClientCertificate) -> Self {
        Self { certificate: Some(Arc::new(certificate)), ..self }
    }
}

/// The time in which each of the threads does it `rounds` times at once. `each` is told which thread it is, and the turn.
pub fn together(threads: usize, rounds: u64, each: impl Fn(usize, u64) + Sync) -> Duration {
    let start = Barrier::new(threads);
    let run = |thread: usize| {
        start.wait();
        let began = Instant::now();
        (0..rounds).for_each(|round| each(thread, round));
        began.elapsed()
    };
    std::thread::scope(|scope| {
        let run = &run;
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        running.into_iter().map(|thread| thread.join().expect("a thread that ends")).max().unwrap_or_default()
    })
}

/// The resident memory of a process in bytes; `self` is this one.
pub fn resident(process: &str) -> usize {
    let statm = std::fs::read_to_string(format!("/proc/{process}/statm")).expect("Linux");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).map_or(0, |pages| pages * 4096)
}

/// The verifier of [`verified`].
pub const VERIFIER: [u8; 32] = [7; 32];

/// Text as long as a token, another for each number.
pub fn token(number: usize) -> String {
    format!("eyJhbGciOiJSUzI1NiIsImtpZCI6ImsifQ.{number:0>360}.{:0>342}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// What the token cache keeps of a token.
pub fn verified(token: &str) -> Verified {
    let identity = Identity::new(edgeward::request::Method::Jwt, "customers".into(), [0; 32]);
    Verified::new(VERIFIER, token, (Algorithm::Rs256, None), Registered::default(), ([0; 32], 1), identity)
}
