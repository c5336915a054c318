//! The way of a stream to a backend over HTTP/2, as of gRPC: two bodies that pass each other, and what stands behind them.
//!
//! Pingora's way has a task and a queue for each direction, and sends the head and the body of a request with a system call each
//! (docs/decisions/0017). On this one whoever serves the stream moves both bodies, and what many streams have to send goes together.

mod pool;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context as Waiting, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, header};
use pingora::http::ResponseHeader;
use pingora::{BError, Error, ErrorSource, ErrorType};

use super::body::{READ_AHEAD, Rules};
use super::caller::{Caller, give};
use super::context::Context;
use super::direct::patience;
use super::{Gateway, failure, may_retry, respond, upstream_head};
use crate::config::RetryOn;
use crate::route::Route;

use pool::Seat;
pub(super) use pool::{Pool, STREAMS};

/// How often a request that was not looked at is asked again, each time on another connection: the last time on a new one of its own, before that on
/// any, as a hundred streams may have been on the one that was closed.
const UNHEARD: usize = 2;

/// Whether requests of a route go this way, where their caller can.
pub(super) fn leads(route: &Route) -> bool {
    route.upstream.http2
}

/// Whether a caller can, as far as the head says: who waits to be told to go on is not heard here.
pub(super) fn takes(caller: &mut impl Caller) -> bool {
    caller.http2().is_some() && !caller.headers().contains_key(header::EXPECT)
}

/// The caller's body, on its way to whichever backend.
struct Body {
    /// What was read of it, from its beginning, as long as it may be asked for again.
    kept: Vec<Bytes>,
    length: usize,
    /// Whether more was read than is kept.
    forgotten: bool,
    /// Whether all of it was read.
    ended: bool,
}

impl Body {
    fn new(caller: &mut impl Caller, context: &Context) -> Self {
        let kept = context.body.whole().cloned();
        let ended = kept.is_some() || caller.is_body_empty();
        Self { length: kept.as_ref().map_or(0, Bytes::len), kept: kept.into_iter().collect(), forgotten: false, ended }
    }

    /// Keeps a piece that was read, as long as all are few.
    fn keep(&mut self, piece: &Bytes) {
        self.length += piece.len();
        if self.length as u64 > READ_AHEAD {
            self.forget();
        }
        // Of empty ones there may be many.
        if !self.forgotten && !piece.is_empty() {
            self.kept.push(piece.clone());
        }
    }

    /// From here on nobody asks for it again.
    fn forget(&mut self) {
        self.kept = Vec::new();
        self.forgotten = true;
    }
}

/// The request's body in one try.
struct Upload {
    stream: SendStream<Bytes>,
    /// How many of the pieces that are kept were taken from there.
    taken: usize,
    /// What the backend has not made room for.
    rest: Bytes,
    /// Whether nothing comes behind the rest.
    last: bool,
    /// Whether there is nothing more to send, or nobody who would have it.
    done: bool,
}

impl Upload {
    fn put(&mut self, piece: Bytes, last: bool) {
        self.stream.reserve_capacity(piece.len());
        self.rest = piece;
        self.last = last;
        self.push();
    }

    /// Sends as much as there is room for.
    fn push(&mut self) {
        while !self.done && !self.rest.is_empty() {
            let room = self.stream.capacity().min(self.rest.len());
            if room == 0 {
                return;
            }
            let piece = self.rest.split_to(room);
            self.send(piece, self.last && self.rest.is_empty());
        }
        if self.last && !self.done {
            self.send(Bytes::new(), true);
        }
    }

    fn send(&mut self, piece: Bytes, last: bool) {
        match self.stream.send_data(piece, last) {
            Ok(()) => self.done = last,
            Err(_) => self.give_up(),
        }
    }

    /// A backend may answer without the rest of the body; if it does not, its answer says so.
    fn give_up(&mut self) {
        self.done = true;
        self.rest = Bytes::new();
    }

    /// Waits for room for what is left.
    fn poll(&mut self, cx: &mut Waiting<'_>) -> Poll<()> {
        match ready!(self.stream.poll_capacity(cx)) {
            Some(Ok(_)) => self.push(),
            _ => self.give_up(),
        }
        Poll::Ready(())
    }

    fn waits(&self) -> bool {
        !self.rest.is_empty()
    }

    fn wants(&self) -> bool {
        !self.done && !self.last && !self.waits()
    }
}

/// What is still to come of an answer.
enum Answer {
    Head(ResponseFuture),
    Body(RecvStream),
}

/// What came of it; `bool` where nothing follows.
enum Part {
    Head(Box<ResponseHeader>, bool),
    Piece(Bytes, bool),
    Trailers(Option<HeaderMap>),
}

impl Answer {
    fn poll(&mut self, cx: &mut Waiting<'_>) -> Poll<Result<Part, h2::Error>> {
        let body = match self {
            Self::Head(head) => {
                let (head, body) = ready!(Pin::new(head).poll(cx))?.into_parts();
                let ended = body.is_end_stream();
                *self = Self::Body(body);
                return Poll::Ready(Ok(Part::Head(Box::new(head.into()), ended)));
            }
            Self::Body(body) => body,
        };
        Poll::Ready(match ready!(body.poll_data(cx)) {
            Some(piece) => piece.map(|piece| Part::Piece(piece, body.is_end_stream())),
            None => ready!(body.poll_trailers(cx)).map(Part::Trailers),
        })
    }

    /// Lets the backend send as much again.
    fn took(&mut self, length: usize) {
        if let Self::Body(body) = self {
            // Refused only where the stream has ended.
            let _ = body.flow_control().release_capacity(length);
        }
    }
}

/// Why a try brought no answer.
enum Broken {
    /// The backend has not looked at the request: that says nothing about the backend.
    Unheard(BError),
    /// It answered what the configuration says to retry.
    Again,
    Failed(BError),
}

impl From<BError> for Broken {
    fn from(error: BError) -> Self {
        Self::Failed(error)
    }
}

impl Gateway {
    /// Asks backends until one has answered, as the upstream's retries allow, and passes both bodies on.
    pub(super) async fn duplex(&self, caller: &mut impl Caller, context: &mut Context) -> Result<(), BError> {
        let leads = context.route().is_some_and(leads);
        if !leads || !takes(caller) {
            return Err(super::no_permit(context));
        }
        let mut body = Body::new(caller, context);
        let mut unheard = 0;
        loop {
            let address = self.next_backend(context)?;
            if let Some(admission) = &context.admission {
                context.body.restart(admission.body());
            }
            let Some(route) = context.route() else { return Err(super::no_permit(context)) };
            let until = context.asked.unwrap_or_default() + route.upstream.timeouts.idle;
            let seat = match self.pools.http2.seat(&self.pools.connector, route, address, until, unheard < UNHEARD).await {
                Ok(seat) => seat,
                Err(_) if may_retry(caller, context, RetryOn::ConnectFailure) && !body.forgotten => continue,
                Err(error) => return Err(error),
            };
            match self.converse(caller, context, seat, &mut body).await {
                Ok(()) => return Ok(()),
                Err(Broken::Again) => {}
                Err(Broken::Unheard(_)) if unheard < UNHEARD => {
                    context.tried.pop();
                    unheard += 1;
                }
                Err(Broken::Unheard(error) | Broken::Failed(error)) => {
                    let silent = context.answered.is_none() && *error.esource() == ErrorSource::Upstream;
                    // It broke off before it answered, or was silent: the caller's 502 or 504 is retried as the upstream's own would be.
                    let status = failure(&error).status().as_u16();
                    if !(silent && !body.forgotten && may_retry(caller, context, RetryOn::Status(status))) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Sends the request and passes both bodies on, until the answer has ended.
    async fn converse(&self, caller: &mut impl Caller, context: &mut Context, mut seat: Seat, body: &mut Body) -> Result<(), Broken> {
        let request = request(caller, context)?;
        let bodiless = body.ended && body.length == 0;
        let idempotent = caller.method().is_idempotent();
        let (head, stream) = seat.requests.send_request(request, bodiless).map_err(|error| unanswered(error, &seat, idempotent))?;
        let mut answer = Answer::Head(head);
        let mut upload = Upload { stream, taken: 0, rest: Bytes::new(), last: bodiless, done: bodiless };
        let patience = patience(context);
        loop {
            while upload.wants()
                && let Some(piece) = body.kept.get(upload.taken).cloned()
            {
                upload.taken += 1;
                let last = body.ended && upload.taken == body.kept.len();
                let piece = context.pass(piece, last)?;
                upload.put(piece, last);
            }
            // Its end came behind the last piece, and is not told by a read.
            if upload.wants() && caller.is_body_done() {
                body.ended = true;
                upload.put(context.pass(Bytes::new(), true)?, true);
            }
            seat.deadline.begin(patience);
            let reads = upload.wants();
            let Some(caller_stream) = caller.http2() else { return Err(super::no_permit(context).into()) };
            let part = tokio::select! {
                biased;
                part = poll_fn(|cx| answer.poll(cx)) => part,
                piece = caller_stream.read_body_or_idle(!reads) => {
                    let piece = piece.map_err(|error| error.into_down())?;
                    body.ended = piece.is_none() || caller.is_body_done();
                    let piece = piece.unwrap_or_default();
                    context.receive(piece.len())?;
                    body.keep(&piece);
                    upload.taken = body.kept.len();
                    let piece = context.pass(piece, body.ended)?;
                    upload.put(piece, body.ended);
                    continue;
                }
                () = poll_fn(|cx| upload.poll(cx)), if upload.waits() => continue,
                () = poll_fn(|cx| seat.deadline.poll(cx)) => {
                    // It may hang, and every stream on it.
                    seat.spend();
                    return Err(Error::new_up(ErrorType::ReadTimedout).into());
                }
            };
            match part {
                Ok(Part::Head(head, last)) => {
                    context.answered.get_or_insert_with(|| (self.clock)().monotonic);
                    if context.body.is_withheld() {
                        // What is still to come of it is read to be proven, and not passed on.
                        body.forget();
                        upload.give_up();
                    }
                    self.answer(caller, context, head, last, body).await?;
                    body.forget();
                    if last {
                        return Ok(());
                    }
                }
                Ok(Part::Piece(piece, false)) if piece.is_empty() => {}
                Ok(Part::Piece(piece, last)) => {
                    let length = piece.len();
                    if last {
                        context.land();
                    }
                    give(caller, piece, last, &context.snapshot.server).await?;
                    if last {
                        return Ok(());
                    }
                    answer.took(length);
                }
                Ok(Part::Trailers(trailers)) => {
                    context.land();
                    return match (trailers, caller.http2()) {
                        (Some(trailers), Some(stream)) => stream.write_trailers(trailers).map_err(|error| error.into_down().into()),
                        _ => caller.write_body(Bytes::new(), true).await.map_err(Broken::Failed),
                    };
                }
                Err(error) if context.answered.is_none() && !body.forgotten => return Err(unanswered(error, &seat, idempotent)),
                Err(error) => return Err(broken(error, ErrorType::H2Error).into()),
            }
        }
    }

    /// Passes the head of an answer on, unless the configuration says to ask again.
    async fn answer(
        &self,
        caller: &mut impl Caller,
        context: &mut Context,
        mut head: Box<ResponseHeader>,
        last: bool,
        body: &Body,
    ) -> Result<(), Broken> {
        let settled = context.body.settle(caller, Rules::of(&context.snapshot.server)).await;
        settled.map_err(|rejection| context.refuse_body(rejection))?;
        if !body.forgotten && may_retry(caller, context, RetryOn::Status(head.status.as_u16())) {
            return Err(Broken::Again);
        }
        respond::decorate(&mut *head, context)?;
        if last {
            context.land();
        }
        let Some(stream) = caller.http2() else { return Err(super::no_permit(context).into()) };
        stream.write_response_header(head, last).map_err(|error| error.into_down().into())
    }
}

/// The request but for its body.
fn request(caller: &impl Caller, context: &Context) -> Result<http::Request<()>, BError> {
    let Some(target) = &context.target else {
        return Error::e_explain(ErrorType::HTTPStatus(500), "no permit");
    };
    let mut headers = caller.headers().clone();
    // The authority says it.
    headers.remove(header::HOST);
    upstream_head::introduce(caller, &mut headers, context)?;
    let secure = context.route().is_some_and(|route| route.upstream.tls.is_some());
    let uri = http::Uri::builder()
        .scheme(if secure { "https" } else { "http" })
        .authority(&*target.authority)
        .path_and_query(&*target.path_and_query)
        .build();
    let uri = uri.map_err(|_| Error::explain(ErrorType::HTTPStatus(500), "the canonical target is no URI"))?;
    let mut request = http::Request::new(());
    *request.method_mut() = caller.method().clone();
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Why there is no answer, and whether the backend can be asked on another connection as if it had not been.
fn unanswered(error: h2::Error, seat: &Seat, idempotent: bool) -> Broken {
    // What it says of a connection that it closes, and of a stream that it has not looked at (RFC 9113 sections 6.8 and 8.7).
    let refused = error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM);
    let closing = error.is_remote() && error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
    // A kept connection that the backend has closed meanwhile, as far as anybody knows.
    let stale = seat.reused && idempotent && error.is_io();
    if refused || closing || error.is_io() {
        seat.spend();
    }
    let error = broken(error, ErrorType::H2Error);
    if refused || closing || stale { Broken::Unheard(error) } else { Broken::Failed(error) }
}

fn broken(error: h2::Error, kind: ErrorType) -> BError {
    let kind = if error.is_io() { ErrorType::ConnectionClosed } else { kind };
    Error::because(kind, "from a backend", error).into_up()
}
