//! Pingora's phases, a few lines each: normalise, find the route, ask [`admit`], forward with what the permit says.
//!
//! ```text
//! request_filter           normalise -> route -> admit          -> a permit, or a refusal is answered
//!                          wait for its turn in a queue
//!                          plain, to a backend over HTTP/1.1   -> `direct`, and none of the next five
//! upstream_peer            permit? -> choose a backend
//! upstream_request_filter  permit? -> strip, then set           (after Pingora's Connection hygiene, so it cannot be undone)
//! request_body_filter      count; withhold what is not proven
//! upstream_response_filter body proven? retry?
//! response_filter          request id, limits
//! response_body_filter     no longer in flight
//! fail_to_proxy            the failure's answer
//! logging                  metrics, access log
//! ```
//!
//! A plain request is heard by `http1`, or taken by `http2` from the framework that hears it, and goes through the same steps in `Gateway::serve`;
//! so does a stream that `duplex` takes to a backend over HTTP/2.

mod abreast;
mod access_log;
mod answer_head;
mod body;
mod caller;
mod connections;
mod context;
mod deadline;
mod direct;
mod duplex;
mod framing;
mod front;
mod gathering;
mod handed_over;
mod http1;
mod http2;
mod peer;
mod queue;
mod reading;
mod respond;
mod session;
pub mod tls;
mod upstream_head;

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Version;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::upstreams::peer::HttpPeer;
use pingora::{BError, Error, ErrorSource, ErrorType};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use prometheus::IntCounter;

use crate::admit::{Admission, Refusal, admit};
use crate::config::RetryOn;
use crate::metrics::Metrics;
use crate::request::message::Message;
use crate::request::{Clock, Rejection};
use crate::route::{Route, forward};
use crate::snapshot::Slot;
use crate::upstream::{Chosen, Service, Upstream};

pub use access_log::AccessLog;
use caller::Caller;
use context::{Context, RequestId, Target};
pub use front::Front;

/// What reads the bytes of strangers in this room, for the fuzzer.
pub mod parsers {
    pub use super::answer_head::{AnswerFields, AnswerHead, Length};
    pub use super::direct::answer::{Head as Answer, read as read_answer};
    pub use super::framing::{Body, Chunk, Malformed};
    pub use super::http1::head::{Head as Request, Parsed, take as take_request};
}

/// The proxy: shared by every listener.
#[derive(Clone)]
pub struct Gateway {
    slot: Arc<Slot>,
    metrics: Arc<Metrics>,
    access_log: AccessLog,
    clock: Clock,
    own: OwnServices,
    pools: Arc<Pools>,
}

/// Kept connections to backends, by how they are spoken to.
#[derive(Debug)]
pub struct Pools {
    connector: peer::Connector,
    http1: direct::Pool,
    http2: duplex::Pool,
}

impl Pools {
    /// Each worker keeps so many connections over HTTP/1.1 at the most. Of those over HTTP/2 there are no more than their streams need.
    pub fn new(most: usize) -> Self {
        Self { connector: peer::Connector::new(), http1: direct::Pool::new(most), http2: duplex::Pool::default() }
    }

    /// Drops what was kept for too long, and what the other side has closed.
    pub fn sweep(&self, now: Duration) {
        self.http1.sweep(now);
        self.http2.sweep(now);
    }
}

/// Where the services inside edgeward listen.
#[derive(Debug, Clone, Copy)]
pub struct OwnServices {
    /// The demo upstream.
    pub echo: SocketAddr,
    /// The issuer's endpoints and the metadata of resources.
    pub oauth: SocketAddr,
}

impl Gateway {
    /// A gateway that serves what stands in the slot.
    pub fn new(slot: Arc<Slot>, metrics: Arc<Metrics>, access_log: AccessLog, clock: Clock, own: OwnServices, pools: Arc<Pools>) -> Self {
        Self { slot, metrics, access_log, clock, own, pools }
    }

    /// Everything between the request's head and the permit to forward it, for routes that can be served this way.
    async fn decide(&self, caller: &mut impl Caller, context: &mut Context, ways: Ways) -> Result<Decided, Refusal> {
        let now = context.started;
        let Context { snapshot, client, certificate, request_id, place, admission, target, body, body_received, .. } = context;
        let body_rules = body::Rules::of(&snapshot.server);
        caller.prepare(&snapshot.server);
        let peer = caller.peer().ok_or(Rejection::Internal("no_peer_address"))?.ip();
        let found = snapshot.server.client(peer, caller.headers());
        *client = Some(found);
        if found.through_trusted_proxy {
            let received = caller.headers().get("x-request-id").and_then(RequestId::received);
            *request_id = received.unwrap_or_else(|| request_id.clone());
        }
        let raw = caller.raw();
        let bodiless = caller.is_body_empty();
        let mut read_ahead = false;
        loop {
            let message = Message::read(caller.head(raw.as_deref()), snapshot.server.head)?;
            let mut parameters = crate::route::router::ParametersBuffer::default();
            let found_at = snapshot.router.locate(&message.host, &message.path, message.method, &mut parameters)?;
            let route = snapshot.route(Some(found_at)).ok_or(Rejection::Internal("route_without_value"))?;
            if !ways.lead(route) {
                return Ok(Decided::Left);
            }
            *place = Some(found_at);
            message.check_length(snapshot.server.body_limit)?;
            *certificate = tls::certificate(caller, snapshot, &message, &found, now)?;
            let request = crate::request::Request {
                method: message.method,
                host: &message.host,
                port: message.port,
                scheme: forward::scheme(message.headers, found.through_trusted_proxy, caller.tls().is_some()),
                path: &message.path,
                query: message.query,
                headers: message.headers,
                body: if bodiless { Some(&[]) } else { body.whole().map(|whole| &**whole) },
                client: &found,
                certificate: certificate.as_deref(),
                route: &route.name,
                parameters: parameters.parameters(),
            };
            let (bound, asked) = match &route.policy.authenticators {
                Some(authenticators) if request.body.is_none() => (authenticators.body_limit(), authenticators.ask_for_body(&request)),
                _ => (None, false),
            };
            if !read_ahead && (bound.is_some() || asked) {
                // From where nobody may come, nothing is read.
                route.policy.ip_rules.check(found.address)?;
                // Reading wants the session for itself, so what was read of the head is read again: rare, and cheaper than a copy for all.
                body.read_ahead(caller, body_rules, bound).await?;
                read_ahead = true;
                continue;
            }
            let permit = admit(route, &request, now, || fastrand::u128(..)).await?;
            *target = Some(Target::new(&message, route, request.parameters, permit.identity())?);
            let proven = body.prove(caller, permit.body(), body_rules).await;
            *body_received = body.whole().map_or(0, |whole| whole.len() as u64);
            return match proven {
                Ok(()) => {
                    *admission = Some(permit);
                    Ok(Decided::Admitted)
                }
                Err(rejection) => Err(Refusal { rejection, shadowed: permit.shadowed().to_vec(), identity: permit.withdraw() }),
            };
        }
    }

    /// Where the next try goes.
    fn next_backend(&self, context: &mut Context) -> Result<SocketAddr, BError> {
        let Context { snapshot, place, admission: Some(_), tried, backend, asked, rejection, .. } = &mut *context else {
            return Err(no_permit(context));
        };
        let Some(route) = snapshot.route(*place) else { return Err(no_permit(context)) };
        if !tried.is_empty() {
            route.metrics.count_retry();
        }
        let address = match route.upstream.builtin {
            Some(Service::Echo) => self.own.echo,
            Some(Service::Oauth) => self.own.oauth,
            None => match choose(&route.upstream, tried) {
                Ok(chosen) => backend.insert(chosen).address,
                Err(refused) => {
                    *rejection = Some(refused);
                    return Err(Error::new_in(ErrorType::HTTPStatus(503)));
                }
            },
        };
        asked.get_or_insert_with(|| (self.clock)().monotonic);
        tried.push(address);
        Ok(address)
    }

    /// Waits for the turn of a request that everything else has admitted; a caller that hangs up leaves the queue.
    async fn wait(&self, caller: &mut impl Caller, context: &mut Context) -> Result<(), BError> {
        let Some(turn) = context.admission.as_mut().and_then(Admission::take_turn) else { return Ok(()) };
        let began = (self.clock)().monotonic;
        let stayed = caller.stays(turn.at.saturating_sub(began)).await;
        context.queued = (self.clock)().monotonic.saturating_sub(began);
        if stayed {
            return Ok(());
        }
        turn.give_up();
        context.admission = None;
        context.rejection = Some(Rejection::ClientClosed);
        Err(Error::new_down(ErrorType::ConnectionClosed))
    }

    /// One request of a caller that we hear ourselves, to its line in the log; whether it was ours.
    async fn serve(&self, caller: &mut impl Caller, context: &mut Context) -> bool {
        let ways = Ways { direct: caller.is_plain(), duplex: duplex::takes(caller), framework: false };
        if !(ways.direct || ways.duplex) {
            return false;
        }
        let decided = refuse_on_panic(pin!(self.decide(caller, context, ways)), &self.metrics.panics).await;
        let served = match decided {
            Ok(Decided::Left) => return false,
            Ok(Decided::Admitted) => self.forward(caller, context).await,
            Err(refusal) => refuse(caller, context, refusal).await,
        };
        if let Err(error) = served {
            fail(caller, &error, context).await;
        }
        context.land();
        self.access_log.record(&self.metrics, caller, context);
        true
    }

    /// Answers a caller that is not heard to the end of its head, to the line in the log.
    async fn refuse_unheard(&self, caller: &mut impl Caller, context: &mut Context, rejection: Rejection) {
        let rules = &context.snapshot.server;
        caller.prepare(rules);
        context.client = caller.peer().map(|peer| rules.client(peer.ip(), caller.headers()));
        if let Err(error) = refuse(caller, context, rejection.into()).await {
            fail(caller, &error, context).await;
        }
        self.access_log.record(&self.metrics, caller, context);
    }

    async fn forward(&self, caller: &mut impl Caller, context: &mut Context) -> Result<(), BError> {
        self.wait(caller, context).await?;
        if context.route().is_some_and(duplex::leads) { self.duplex(caller, context).await } else { self.exchange(caller, context).await }
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    /// Boxed: it is moved from phase to phase.
    type CTX = Box<Context>;

    fn new_ctx(&self) -> Box<Context> {
        Box::new(Context::new(self.slot.load(), (self.clock)()))
    }

    /// None: the compression module that Pingora would add costs every request and serves none of ours.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, context: &mut Box<Context>) -> Result<bool, BError> {
        let decided = refuse_on_panic(pin!(self.decide(session, context, Ways::ALL)), &self.metrics.panics).await;
        if let Err(refusal) = decided {
            return refuse(session, context, refusal).await.map(|()| true);
        }
        self.wait(session, context).await?;
        if !direct::takes(session, context) {
            return Ok(false);
        }
        self.exchange(session, context).await.map(|()| true)
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        last: bool,
        context: &mut Box<Context>,
    ) -> Result<(), BError> {
        context.receive(body.as_ref().map_or(0, Bytes::len))?;
        let last = last || body.is_none();
        let passed = context.body.pass(body, last);
        passed.map_err(|rejection| context.refuse_body(rejection))
    }

    async fn upstream_peer(&self, _: &mut Session, context: &mut Box<Context>) -> Result<Box<HttpPeer>, BError> {
        let address = self.next_backend(context)?;
        // What a try has read of the body is read again by the next.
        context.body_received = 0;
        let Context { snapshot, place, admission: Some(admission), body, .. } = &mut **context else { return Err(no_permit(context)) };
        let Some(route) = snapshot.route(*place) else { return Err(no_permit(context)) };
        body.restart(admission.body());
        Ok(peer::build(route, address))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        context: &mut Box<Context>,
    ) -> Result<(), BError> {
        // It would be spoken to over HTTP/1.1, as nobody has asked for.
        if context.route().is_some_and(|route| route.upstream.http2) && upstream.version != Version::HTTP_2 {
            return Err(peer::no_http2());
        }
        upstream_head::prepare(session, upstream, context)
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        answer: &mut ResponseHeader,
        context: &mut Box<Context>,
    ) -> Result<(), BError> {
        context.answered.get_or_insert_with(|| (self.clock)().monotonic);
        let status = answer.status.as_u16();
        if status >= 200 || status == 101 {
            let settled = context.body.settle(session, body::Rules::of(&context.snapshot.server)).await;
            settled.map_err(|rejection| context.refuse_body(rejection))?;
        }
        // The framework refuses a switch to what was not passed on, and takes one that nobody asked for as one more hint.
        if status == 101 && !session.req_header().headers.contains_key(http::header::UPGRADE) {
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "switches protocols unasked").into_up());
        }
        if !may_retry(session, context, RetryOn::Status(status)) {
            return Ok(());
        }
        let mut error = Error::explain(ErrorType::HTTPStatus(status), "an answer that the configuration says to retry").into_up();
        error.set_retry(true);
        Err(error)
    }

    async fn response_filter(&self, _: &mut Session, answer: &mut ResponseHeader, context: &mut Box<Context>) -> Result<(), BError> {
        respond::decorate(answer, context)
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        _: &mut Option<Bytes>,
        end_of_stream: bool,
        context: &mut Box<Context>,
    ) -> Result<Option<Duration>, BError> {
        if end_of_stream {
            context.land();
        }
        Ok(None)
    }

    fn fail_to_connect(&self, session: &mut Session, _: &HttpPeer, context: &mut Box<Context>, mut error: Box<Error>) -> Box<Error> {
        error.set_retry(may_retry(session, context, RetryOn::ConnectFailure));
        error
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        context: &mut Box<Context>,
        reused: bool,
    ) -> Box<Error> {
        if matches!(error.etype(), ErrorType::HTTPStatus(_)) {
            // An answer to retry was checked where it came in; our own refusals are final.
            return error;
        }
        let repeatable = session.req_header().method.is_idempotent() && !session.as_ref().retry_buffer_truncated();
        if repeatable && reused && context.answered.is_none() {
            // A pooled connection that the upstream had closed: the try says nothing about the backend.
            error.retry.decide_reuse(reused);
            if error.retry() {
                context.tried.pop();
                return error;
            }
        }
        // It broke off before it answered, or was silent: the caller's 502 or 504 is retried as the upstream's own would be.
        let status = failure(&error).status().as_u16();
        error.set_retry(context.answered.is_none() && may_retry(session, context, RetryOn::Status(status)));
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut Box<Context>) -> FailToProxy {
        FailToProxy { error_code: fail(session, error, context).await, can_reuse_downstream: false }
    }

    /// Every failure is in the access log with its code, and upstream failures are logged once in `fail_to_proxy`.
    fn suppress_error_log(&self, _: &Session, _: &Box<Context>, _: &Error) -> bool {
        true
    }

    /// A try that is repeated is counted. Pingora's line would quote an answer that was not understood.
    fn suppress_proxy_warn_log(&self, _: &Session, _: &Box<Context>, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut Box<Context>) {
        context.land();
        if context.rejection.is_none() {
            context.rejection = error.map(failure);
        }
        self.access_log.record(&self.metrics, session, context);
        respond::linger(session.as_mut()).await;
    }

    /// What Pingora calls a request in its own log lines; its default shows the query, which may hold a credential.
    fn request_summary(&self, _: &Session, context: &Box<Context>) -> String {
        format!("request {}", context.request_id.as_str())
    }
}

/// The ways to a backend that a request can take from whoever hears its caller.
#[derive(Clone, Copy)]
struct Ways {
    direct: bool,
    duplex: bool,
    framework: bool,
}

impl Ways {
    const ALL: Self = Self { direct: true, duplex: true, framework: true };

    /// Whether one of them leads to the backends of this route: requests of others are somebody else's.
    fn lead(self, route: &Route) -> bool {
        self.framework || (self.direct && !route.upstream.http2) || (self.duplex && duplex::leads(route))
    }
}

/// How a decision ended that refused nothing.
enum Decided {
    /// The permit is in the context.
    Admitted,
    /// Nothing was asked of the policy: somebody else serves requests of this route.
    Left,
}

/// Answers a request that was refused.
async fn refuse(caller: &mut impl Caller, context: &mut Context, refusal: Refusal) -> Result<(), BError> {
    context.admission = None;
    context.refused = refusal.identity;
    context.shadowed = refusal.shadowed;
    let answered = respond::refuse(caller, context, &refusal.rejection).await;
    context.rejection = Some(refusal.rejection);
    answered
}

/// Answers a request that was admitted and failed, where that can still be done, with the status that is returned.
async fn fail(caller: &mut impl Caller, error: &Error, context: &mut Context) -> u16 {
    let rejection = context.rejection.take().unwrap_or_else(|| failure(error));
    if *error.esource() == ErrorSource::Upstream {
        let upstream = context.tried.last().map(ToString::to_string);
        tracing::warn!(request_id = context.request_id.as_str(), upstream, error = shown(error), "the upstream failed");
    }
    // The connection closes after a failure; unannounced, the caller's next request would be lost with it.
    caller.close();
    let answered = caller.status().is_some_and(|status| !status.is_informational());
    context.land();
    let answerable = rejection != Rejection::ClientClosed && !answered;
    let answered = answerable && respond::refuse(caller, context, &rejection).await.is_ok();
    let status = if answered { rejection.status().as_u16() } else { 0 };
    context.rejection = Some(rejection);
    status
}

/// A phase was reached without a permit: a mistake of ours, which forwards nothing.
fn no_permit(context: &mut Context) -> BError {
    context.rejection = Some(Rejection::Internal("no_permit"));
    Error::new_in(ErrorType::HTTPStatus(500))
}

/// A panic in a decision refuses this request and no other, and still reaches the log. The decision stays where it is: moving it costs more
/// than all its checks.
async fn refuse_on_panic<D>(mut decision: Pin<&mut impl Future<Output = Result<D, Refusal>>>, panics: &IntCounter) -> Result<D, Refusal> {
    let caught = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| decision.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    });
    caught.await.unwrap_or_else(|_| {
        panics.inc();
        Err(Rejection::Internal("panic").into())
    })
}

/// Whether the upstream may be asked once more: the configuration says so, the method is idempotent, the body can be sent again.
fn may_retry(caller: &impl Caller, context: &Context, cause: RetryOn) -> bool {
    let Some(retries) = context.route().and_then(|route| route.upstream.retries.as_ref()) else {
        return false;
    };
    retries.on.contains(&cause)
        && context.tried.len() as u64 <= u64::from(retries.attempts)
        && caller.method().is_idempotent()
        && caller.may_repeat_body()
}

/// A backend that is well, rather one that was not tried: where there is no other, the same one is asked again.
fn choose(upstream: &Upstream, tried: &[SocketAddr]) -> Result<Chosen, Rejection> {
    upstream.choose(tried).or_else(|_| upstream.choose(&[]))
}

/// What went wrong, for the log. A message that was not understood is quoted by Pingora's errors, cookies and bodies included, so of such a one
/// only the kind is said.
fn shown(error: &Error) -> String {
    match failure(error) {
        Rejection::UpstreamUnreachable | Rejection::UpstreamTimeout => error.to_string(),
        _ => format!("{} {}", error.esource().as_str(), error.etype().as_str()),
    }
}

/// What went wrong, in our words.
fn failure(error: &Error) -> Rejection {
    use ErrorType::{
        AcceptError, BindError, ConnectError, ConnectNoRoute, ConnectProxyFailure, ConnectRefused, ConnectTimedout, ConnectionClosed,
        H2Error, HTTPStatus, HandshakeError, InternalError, InvalidCert, ReadError, ReadTimedout, SocketError, TLSHandshakeFailure,
        TLSHandshakeTimedout, TLSWantX509Lookup, WriteError, WriteTimedout,
    };
    match (error.esource(), error.etype()) {
        (ErrorSource::Downstream, ReadTimedout) => Rejection::RequestTimeout,
        // A stream that its caller resets, among others.
        (ErrorSource::Downstream, ReadError | WriteError | WriteTimedout | ConnectionClosed | H2Error) => Rejection::ClientClosed,
        (ErrorSource::Downstream, _) => Rejection::BadRequest("message"),
        (ErrorSource::Upstream, ConnectTimedout | TLSHandshakeTimedout | ReadTimedout | WriteTimedout) => Rejection::UpstreamTimeout,
        (
            ErrorSource::Upstream,
            ConnectError | ConnectRefused | ConnectNoRoute | ConnectProxyFailure | SocketError | BindError | AcceptError
            | TLSHandshakeFailure | HandshakeError | TLSWantX509Lookup | InvalidCert,
        ) => Rejection::UpstreamUnreachable,
        (ErrorSource::Upstream, InternalError) => Rejection::Internal("upstream"),
        (ErrorSource::Upstream, HTTPStatus(_)) => Rejection::UpstreamUnreachable,
        (ErrorSource::Upstream, _) => Rejection::UpstreamInvalid,
        _ => Rejection::Internal("proxy"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_refuses_and_is_counted() {
        let panics = IntCounter::new("panics", "panics").unwrap();
        let panicking = async { if panics.get() == 0 { panic!("as a test") } else { Ok(()) } };
        let refusal = refuse_on_panic(pin!(panicking), &panics).await.unwrap_err();
        assert_eq!(refusal.rejection, Rejection::Internal("panic"));
        assert_eq!(panics.get(), 1);
        assert!(refuse_on_panic(pin!(async { Ok(()) }), &panics).await.is_ok());
        assert_eq!(panics.get(), 1);
    }
}
