//! What operators and their tools ask of a running gateway: is it alive, is it ready, what does it count.
//!
//! It stands on an address of its own; no path, host or target of the data listeners leads here.

mod gauges;
mod limits;
mod revocations;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Body;
use serde_json::{Value, json};

use crate::live::LiveState;
use crate::metrics::Metrics;
use crate::reload::Reloader;
use crate::request::Clock;
use crate::secret::Secret;
use crate::snapshot::Slot;

/// The administration of one process.
pub struct Admin {
    slot: Arc<Slot>,
    live: Arc<LiveState>,
    metrics: Arc<Metrics>,
    reloader: Arc<Reloader>,
    /// SHA-256 of the token, so that a comparison tells nothing of its length.
    token: Option<[u8; 32]>,
    /// Whether callers are listened for.
    listening: AtomicBool,
    clock: Clock,
}

impl Admin {
    /// An administration; with a token, everything but the two probes asks for it.
    pub fn new(
        slot: Arc<Slot>,
        live: Arc<LiveState>,
        metrics: Arc<Metrics>,
        reloader: Arc<Reloader>,
        token: Option<Secret>,
        clock: Clock,
    ) -> Self {
        let token = token.map(|token| openssl::sha::sha256(token.expose()));
        Self { slot, live, metrics, reloader, token, listening: AtomicBool::new(false), clock }
    }

    /// Callers are listened for from now on.
    pub fn listening(&self) {
        self.listening.store(true, Ordering::Relaxed);
    }

    /// Answers one request.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            "/healthz" if reads => text(StatusCode::OK, "ok\n"),
            "/readyz" if reads => self.ready(self.admits(&request)),
            "/metrics" | "/api/v1/limits" | "/api/v1/revocations" if !self.admits(&request) => {
                let mut refusal = text(StatusCode::UNAUTHORIZED, "a bearer token is required\n");
                refusal.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"edgeward admin\""));
                refusal
            }
            "/metrics" if reads => self.scrape(),
            "/api/v1/limits" if reads => {
                let (status, answer) = limits::answer(&self.slot.load(), request.uri().query().unwrap_or(""), (self.clock)());
                json(status, &answer)
            }
            "/api/v1/revocations" => {
                let (status, answer) = revocations::answer(self.slot.load().revocations.as_ref(), request, (self.clock)()).await;
                json(status, &answer)
            }
            "/healthz" | "/readyz" | "/metrics" | "/api/v1/limits" => text(StatusCode::METHOD_NOT_ALLOWED, "read only\n"),
            _ => text(StatusCode::NOT_FOUND, "there is /healthz, /readyz, /metrics, /api/v1/limits and /api/v1/revocations\n"),
        }
    }

    fn admits<B>(&self, request: &Request<B>) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        let presented = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let presented = match presented.split_at_checked(7) {
            Some((scheme, value)) if scheme.eq_ignore_ascii_case(b"bearer ") => value,
            _ => return false,
        };
        openssl::memcmp::eq(&openssl::sha::sha256(presented), token)
    }

    /// 200 once every dependency has been asked a first time; what is amiss is in the body, since a gateway that serves most of its
    /// routes must not be taken out of rotation for one.
    ///
    /// Names and errors of dependencies are for those who may read the metrics.
    fn ready(&self, admitted: bool) -> Response<Full<Bytes>> {
        let status = self.reloader.status();
        let (mut waiting, amiss) = gauges::dependencies(&self.live);
        if !self.listening.load(Ordering::Relaxed) {
            waiting.push("listeners".to_owned());
        }
        let config = if status.problems.is_empty() { "current" } else { "stale" };
        let word = match (waiting.is_empty(), amiss.is_empty() && status.problems.is_empty()) {
            (false, _) => "starting",
            (true, false) => "degraded",
            (true, true) => "ready",
        };
        let body = if admitted {
            json!({"status": word, "config": config, "generation": status.generation, "waiting": waiting, "amiss": amiss})
        } else {
            json!({"status": word, "config": config, "generation": status.generation})
        };
        json(if waiting.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &body)
    }

    fn scrape(&self) -> Response<Full<Bytes>> {
        let mut body = self.metrics.render();
        gauges::render(&mut body, &self.live, &self.slot.load(), (self.clock)());
        let mut answer = text(StatusCode::OK, &body);
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
        answer
    }
}

fn json(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut answer = text(status, &format!("{body}\n"));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}
