//! The short way to a backend, for the plain request: a head and perhaps a body, to a backend that speaks HTTP/1.1.
//!
//! Pingora's way is made for HTTP/2, caches and upgrades, and costs two thirds of a request's instructions (docs/decisions/0013). This one writes one
//! request, reads one answer, and passes it on, whoever hears the caller. Everything else takes Pingora's.

pub(super) mod answer;
mod line;
mod pool;
mod upload;

use std::future::poll_fn;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, StatusCode, header};
use pingora::{BError, Error, ErrorSource, ErrorType};
use pingora_timeout::fast_timeout::fast_timeout;
use smallvec::SmallVec;

use super::abreast::abreast;
use super::body::{READ_AHEAD, Rules};
use super::caller::{Caller, give};
use super::context::Context;
use super::framing::{Body, Malformed};
use super::reading::SHORT;
use super::{Gateway, failure, may_retry, peer, respond, upstream_head};
use crate::config::RetryOn;
use crate::route::fields::{FieldList, Fields};
use crate::text::{Digits, digits};
use answer::Head;
use line::Line;
use upload::{Length, Upload};

pub(super) use pool::Pool;

/// The room for an answer's head and the start of its body.
const FIRST_READ: usize = SHORT;

/// What is read of a long body at once.
const LONGEST_READ: usize = 64 * 1024;

/// The longest head of an answer, as Pingora has it.
const LONGEST_HEAD: usize = 1024 * 1024;

/// Interim answers (1xx) before the one that counts, at the most: a backend that sends them for ever answers never.
const INTERIM: usize = 16;

/// Whether a request that was admitted goes this way.
pub(super) fn takes(caller: &mut impl Caller, context: &Context) -> bool {
    let (Some(route), Some(_)) = (context.route(), &context.admission) else { return false };
    !route.upstream.http2 && caller.is_plain()
}

/// What a field asks of those who pass a request on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// To be passed on.
    Nothing,
    /// To pass on a body of this length.
    Body(u64),
    /// To pass on a body in chunks.
    Chunks,
    /// To say whether the body is wanted before it is sent.
    Continue,
    /// To keep the connection or to end it, and nothing else.
    Connection { close: bool },
    /// More than the short way does.
    More,
}

/// What a field asks.
pub(super) fn asks(name: &HeaderName, value: &http::HeaderValue) -> Ask {
    match *name {
        header::CONTENT_LENGTH => number(value).map_or(Ask::More, Ask::Body),
        header::TRANSFER_ENCODING if value.as_bytes().eq_ignore_ascii_case(b"chunked") => Ask::Chunks,
        header::CONNECTION if value.as_bytes().eq_ignore_ascii_case(b"keep-alive") => Ask::Connection { close: false },
        header::CONNECTION if value.as_bytes().eq_ignore_ascii_case(b"close") => Ask::Connection { close: true },
        header::EXPECT if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ask::Continue,
        header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE | header::EXPECT | header::TE | header::TRAILER => Ask::More,
        _ if matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings") => Ask::More,
        _ => Ask::Nothing,
    }
}

/// Whether the head frames a body in one way at most, and asks nothing of the connection but to stay or to go.
pub(super) fn is_plain(headers: &HeaderMap) -> bool {
    let (mut options, mut framings) = (0, 0);
    headers.iter().all(|(name, value)| {
        match asks(name, value) {
            Ask::Nothing | Ask::Continue => {}
            Ask::Body(_) | Ask::Chunks => framings += 1,
            Ask::Connection { .. } => options += 1,
            Ask::More => return false,
        }
        options <= 1 && framings <= 1
    })
}

/// Whether the head says that there is no body or a short one, which comes without more ado.
pub(super) fn is_short(headers: &HeaderMap) -> bool {
    headers.iter().all(|(name, value)| match asks(name, value) {
        Ask::Body(length) => length <= READ_AHEAD,
        Ask::Chunks | Ask::Continue => false,
        _ => true,
    })
}

/// A request, as it is sent to whichever backend.
struct Request {
    head: BytesMut,
    /// Its body as it was read, where that is short.
    body: SmallVec<[Bytes; 2]>,
    /// A body that is passed on as it comes, and how long that is.
    uploaded: Option<Length>,
    /// Whether it may be sent once more where nobody knows what became of it.
    repeatable: bool,
}

/// A connection to a backend, and what was read from it and not yet passed on.
struct Connection {
    line: Line,
    buffer: BytesMut,
    /// Whether it has served another request.
    kept: bool,
    /// Whether the head and a short body were written: a backend may answer before it has read them.
    written: bool,
    /// A body that is passed on as it comes.
    upload: Upload,
}

/// Why a connection brought no answer.
enum Broken {
    /// It was a kept one, and the backend had closed it: that says nothing about the backend.
    Stale,
    Failed(BError),
}

impl From<BError> for Broken {
    fn from(error: BError) -> Self {
        Self::Failed(error)
    }
}

impl Gateway {
    /// Asks backends until one has answered, as the upstream's retries allow, and passes the answer on.
    pub(super) async fn exchange(&self, caller: &mut impl Caller, context: &mut Context) -> Result<(), BError> {
        if !takes(caller, context) {
            return Err(super::no_permit(context));
        }
        // What the caller takes to send its body is not our time, as it is not on the long way.
        context.asked.get_or_insert_with(|| (self.clock)().monotonic);
        let length = match (context.body.whole(), caller.headers().get(header::CONTENT_LENGTH).map(number)) {
            (_, Some(length)) => Length::Bytes(length.unwrap_or(0)),
            (Some(whole), None) => Length::Bytes(whole.len() as u64),
            (None, None) if caller.is_body_empty() => Length::Bytes(0),
            (None, None) => Length::Unknown,
        };
        let (body, uploaded) = match length {
            Length::Bytes(length) if context.body.whole().is_some() || comes_short(caller, length) => {
                (body(caller, context, length).await?, None)
            }
            length => (SmallVec::new(), Some(length)),
        };
        let request = Request { body, uploaded, ..request(caller, context, length)? };
        let mut may_be_kept = true;
        loop {
            let address = self.next_backend(context)?;
            if let Some(admission) = &context.admission {
                context.body.restart(admission.body());
            }
            let mut connection = match self.connect(context, &request, address, may_be_kept).await {
                Ok(connection) => connection,
                Err(_) if may_retry(caller, context, RetryOn::ConnectFailure) => continue,
                Err(error) => return Err(error),
            };
            match self.ask(caller, context, &mut connection, &request).await {
                Ok(head) if connection.upload.is_whole() && may_retry(caller, context, RetryOn::Status(head.answer.status.as_u16())) => {}
                Ok(head) => {
                    let stays = self.pass_on(caller, context, &mut connection, head).await?;
                    if let Some(route) = context.route().filter(|_| stays) {
                        // Counted from the answer's beginning: no call of the clock for each.
                        let until = context.answered.unwrap_or_default() + route.upstream.timeouts.idle;
                        self.pools.http1.keep(peer::place(route, address), connection.line, until);
                    }
                    return Ok(());
                }
                Err(Broken::Stale) => {
                    context.tried.pop();
                    may_be_kept = false;
                }
                Err(Broken::Failed(error)) => {
                    let of_the_upstream = *error.esource() == ErrorSource::Upstream;
                    // It broke off before it answered, or was silent: the caller's 502 or 504 is retried as the upstream's own would be.
                    let repeatable = of_the_upstream && connection.upload.is_whole();
                    if !(repeatable && may_retry(caller, context, RetryOn::Status(failure(&error).status().as_u16()))) {
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn connect(&self, context: &Context, request: &Request, address: SocketAddr, may_be_kept: bool) -> Result<Connection, BError> {
        // A body may have taken its time since, and so may a try before this one.
        let asked = context.asked.filter(|_| request.body.is_empty() && context.tried.len() == 1);
        let now = asked.unwrap_or_else(|| (self.clock)().monotonic);
        let Some(route) = context.route() else { return Error::e_explain(ErrorType::HTTPStatus(500), "no permit") };
        let kept = if may_be_kept { self.pools.http1.take(peer::place(route, address), now) } else { None };
        let (line, kept) = match kept {
            Some(line) => (line, true),
            // Boxed: seldom needed, and as long as all the rest of what a request keeps while it waits.
            None => (Box::pin(Line::open(&self.pools.connector, route, address)).await?, false),
        };
        Ok(Connection { line, buffer: BytesMut::new(), kept, written: false, upload: Upload::new(request.uploaded) })
    }

    /// Sends the request and reads the head of its answer; interim ones are passed on.
    async fn ask(
        &self,
        caller: &mut impl Caller,
        context: &mut Context,
        connection: &mut Connection,
        request: &Request,
    ) -> Result<Head, Broken> {
        let patience = patience(context);
        abreast().await;
        connection.write(request, patience).await?;
        let mut silent = connection.kept && request.repeatable && connection.buffer.is_empty();
        if !connection.written {
            connection.upload.stop();
        }
        let mut interim = 0;
        loop {
            if let Some(head) = answer::read(&mut connection.buffer, caller.method()).map_err(malformed)? {
                if !head.answer.status.is_informational() {
                    context.answered.get_or_insert_with(|| (self.clock)().monotonic);
                    return Ok(head);
                }
                interim += 1;
                // Nobody asked to switch protocols on this way.
                if head.answer.status == StatusCode::SWITCHING_PROTOCOLS || interim > INTERIM {
                    return Err(malformed(Malformed("interim")).into());
                }
                caller.write_head(&head.answer, false).await?;
                continue;
            }
            if connection.buffer.len() > LONGEST_HEAD {
                return Err(malformed(Malformed("head_length")).into());
            }
            let read = connection.read(caller, context, FIRST_READ, patience).await;
            silent &= connection.upload.is_whole();
            match read {
                Ok(0) if silent => return Err(Broken::Stale),
                Ok(0) => return Err(Error::new_up(ErrorType::ConnectionClosed).into()),
                Ok(_) => silent = false,
                Err(error) if silent && *error.etype() == ErrorType::ReadError && *error.esource() == ErrorSource::Upstream => {
                    return Err(Broken::Stale);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Passes an answer on. The connection can be kept when all of it was read and nothing came behind it.
    async fn pass_on(
        &self,
        caller: &mut impl Caller,
        context: &mut Context,
        connection: &mut Connection,
        head: Head,
    ) -> Result<bool, BError> {
        let Head { mut answer, mut body, persistent } = head;
        if context.body.is_withheld() {
            // What is still to come of it is read to be proven, and not passed on.
            connection.upload.stop();
            let settled = context.body.settle(caller, Rules::of(&context.snapshot.server)).await;
            settled.map_err(|rejection| context.refuse_body(rejection))?;
        }
        respond::decorate(&mut *answer, context)?;
        let patience = patience(context);
        let mut ended = body.is_done();
        if ended {
            context.land();
        }
        abreast().await;
        caller.write_head(&answer, ended).await?;
        while !ended {
            let piece = body.next(&mut connection.buffer).map_err(malformed)?;
            ended = body.is_done();
            if piece.is_empty() && !ended {
                caller.flush().await?;
                let room = usize::try_from(body.expected()).unwrap_or(LONGEST_READ).clamp(FIRST_READ, LONGEST_READ);
                if connection.read(caller, context, room, patience).await? > 0 {
                    continue;
                }
                ended = body == Body::UntilClose;
                if !ended {
                    return Err(Error::new_up(ErrorType::ConnectionClosed));
                }
            }
            if ended {
                context.land();
            }
            give(caller, piece, ended, &context.snapshot.server).await?;
        }
        Ok(persistent && connection.written && connection.upload.is_done() && body.is_done() && connection.buffer.is_empty())
    }
}

impl Connection {
    /// Writes the request, until the backend answers or closes: why it did is for its answer to say.
    async fn write(&mut self, request: &Request, patience: Duration) -> Result<(), BError> {
        let pieces = || std::iter::once(&*request.head).chain(request.body.iter().map(|piece| &**piece));
        let joined;
        let mut slices = SmallVec::<[IoSlice<'_>; 3]>::new();
        if self.line.has_records() && !request.body.is_empty() {
            joined = pieces().collect::<Vec<_>>().concat();
            slices.push(IoSlice::new(&joined));
        } else {
            slices.extend(pieces().map(IoSlice::new));
        }
        let mut rest = slices.as_mut_slice();
        self.line.deadline.begin(patience);
        self.written = poll_fn(|cx| {
            loop {
                let written =
                    if rest.is_empty() { self.line.poll_flush(cx).map_ok(|()| None) } else { self.line.poll_write(cx, rest).map_ok(Some) };
                match written {
                    Poll::Ready(Ok(None)) => return Poll::Ready(Ok(true)),
                    Poll::Ready(Ok(Some(0)) | Err(_)) => return Poll::Ready(Ok(false)),
                    Poll::Ready(Ok(Some(more))) => {
                        IoSlice::advance_slices(&mut rest, more);
                        self.line.deadline.begin(patience);
                    }
                    Poll::Pending => {
                        if !self.hears_interim(cx) {
                            return Poll::Ready(Ok(false));
                        }
                        ready!(self.line.deadline.poll(cx));
                        return Poll::Ready(Err(Error::new_up(ErrorType::WriteTimedout)));
                    }
                }
            }
        })
        .await?;
        Ok(())
    }

    /// Hears a backend that speaks before it has the whole request. An interim answer does not end it.
    fn hears_interim(&mut self, cx: &mut std::task::Context<'_>) -> bool {
        const INTERIM: &[u8] = b"HTTP/1.1 1";
        loop {
            match self.line.poll_read(cx, &mut self.buffer, FIRST_READ) {
                Poll::Pending => return true,
                Poll::Ready(Ok(0) | Err(_)) => return false,
                Poll::Ready(Ok(_)) => {}
            }
            if self.buffer.len() >= FIRST_READ || self.buffer.iter().zip(INTERIM).any(|(heard, interim)| heard != interim) {
                return false;
            }
        }
    }

    /// Reads more of the answer; 0 at its end. Meanwhile a body that is uploaded goes on, and a caller that hangs up ends it.
    async fn read(&mut self, caller: &mut impl Caller, context: &mut Context, room: usize, patience: Duration) -> Result<usize, BError> {
        loop {
            self.line.deadline.begin(patience);
            if self.upload.wants() {
                let piece = tokio::select! {
                    biased;
                    read = poll_fn(|cx| self.poll_read(cx, room)) => return read,
                    piece = fast_timeout(context.snapshot.server.body_timeout, caller.read_body()) => piece,
                };
                let piece = piece.map_err(|_| Error::new_down(ErrorType::ReadTimedout))??;
                self.upload.take(context, piece, caller.is_body_done(), &self.line)?;
                continue;
            }
            let read = poll_fn(|cx| {
                if let Poll::Ready(read) = self.poll_read(cx, room) {
                    return Poll::Ready(Some(read));
                }
                if self.upload.waits() && self.upload.poll(cx, &mut self.line).is_ready() {
                    return Poll::Ready(None);
                }
                self.line.deadline.poll(cx).map(|()| Some(Err(Error::new_up(ErrorType::ReadTimedout))))
            });
            let read = tokio::select! {
                biased;
                read = read => read,
                gone = caller.gone() => return Err(gone),
            };
            if let Some(read) = read {
                return read;
            }
        }
    }

    fn poll_read(&mut self, cx: &mut std::task::Context<'_>, room: usize) -> Poll<Result<usize, BError>> {
        let read = ready!(self.line.poll_read(cx, &mut self.buffer, room));
        Poll::Ready(read.map_err(|error| Error::because(ErrorType::ReadError, "from a backend", error).into_up()))
    }
}

/// Whether a body of this length is short, and comes without more ado: whether another is wanted is the backend's to say.
fn comes_short(caller: &impl Caller, length: u64) -> bool {
    length == 0 || (length <= READ_AHEAD && !caller.headers().contains_key(header::EXPECT))
}

/// The body, which is short and of this length.
async fn body(caller: &mut impl Caller, context: &mut Context, length: u64) -> Result<SmallVec<[Bytes; 2]>, BError> {
    let mut pieces = SmallVec::<[Bytes; 2]>::new();
    match context.body.whole() {
        Some(whole) => pieces.push(whole.clone()),
        None => {
            while !caller.is_body_done() {
                let read = fast_timeout(context.snapshot.server.body_timeout, caller.read_body()).await;
                let Some(piece) = read.map_err(|_| Error::new_down(ErrorType::ReadTimedout))?? else { break };
                context.body_received += piece.len() as u64;
                pieces.push(piece);
            }
        }
    }
    // What the head says and what follows it must be the same, or the backend takes the next request for the rest of this one.
    if length == pieces.iter().map(|piece| piece.len() as u64).sum::<u64>() {
        Ok(pieces)
    } else {
        Err(Error::new_down(ErrorType::ConnectionClosed))
    }
}

/// The request but for its body, which has this length.
fn request(caller: &impl Caller, context: &Context, length: Length) -> Result<Request, BError> {
    let Some(target) = &context.target else {
        return Error::e_explain(ErrorType::HTTPStatus(500), "no permit");
    };
    // The canonical forms have no such byte. This is where one would begin a second request, so it is asked once more.
    if ![&target.path_and_query, &target.authority].iter().all(|part| part.bytes().all(|byte| byte.is_ascii_graphic())) {
        return Error::e_explain(ErrorType::HTTPStatus(500), "the canonical target has a byte that no target has");
    }
    let mut fields = FieldList::new(caller.headers());
    fields.remove(&header::CONNECTION);
    fields.set(&HOST, target.authority.as_bytes());
    upstream_head::introduce(caller, &mut fields, context)?;
    if context.body.continued {
        fields.remove(&EXPECT);
    }
    match (length, context.body.whole()) {
        (Length::Unknown, _) => fields.set(&TRANSFER_ENCODING, b"chunked"),
        // It came without a length, and was read to its end.
        (Length::Bytes(length), Some(_)) if length > 0 && !caller.headers().contains_key(&CONTENT_LENGTH) => {
            fields.remove(&TRANSFER_ENCODING);
            fields.set(&CONTENT_LENGTH, digits(&mut Digits::default(), length, 1));
        }
        (Length::Bytes(0), Some(_)) => fields.remove(&TRANSFER_ENCODING),
        (Length::Bytes(_), _) => {}
    }
    let mut written = BytesMut::with_capacity(1024);
    for part in [caller.method().as_str(), " ", &target.path_and_query, " HTTP/1.1\r\n"] {
        written.put_slice(part.as_bytes());
    }
    fields.write(&mut written);
    written.put_slice(b"\r\n");
    Ok(Request { head: written, body: SmallVec::new(), uploaded: None, repeatable: caller.method().is_idempotent() })
}

static HOST: HeaderName = header::HOST;
static EXPECT: HeaderName = header::EXPECT;
static TRANSFER_ENCODING: HeaderName = header::TRANSFER_ENCODING;
static CONTENT_LENGTH: HeaderName = header::CONTENT_LENGTH;

/// Digits only: `parse` alone would take a sign.
fn number(value: &http::HeaderValue) -> Option<u64> {
    let digits = value.to_str().ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

pub(super) fn patience(context: &Context) -> Duration {
    context.route().map(|route| route.response_timeout).unwrap_or_default()
}

fn malformed(Malformed(what): Malformed) -> BError {
    Error::explain(ErrorType::InvalidHTTPHeader, what).into_up()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_asks_anything_of_the_connection_takes_the_long_way() {
        for (lines, plain) in [
            (&[("accept", "*/*")][..], true),
            (&[("connection", "keep-alive")], true),
            (&[("connection", "Close")], true),
            (&[("connection", "keep-alive, x-user-id")], false),
            (&[("connection", "x-user-id")], false),
            (&[("connection", "close"), ("connection", "close")], false),
            (&[("connection", "")], false),
            (&[("content-length", "0")], true),
            (&[("content-length", "65536")], true),
            (&[("content-length", "65537")], true),
            (&[("content-length", "x")], false),
            (&[("content-length", "1"), ("transfer-encoding", "chunked")], false),
            (&[("transfer-encoding", "chunked"), ("content-length", "1")], false),
            (&[("content-length", "1"), ("content-length", "1")], false),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], false),
            (&[("transfer-encoding", "chunked")], true),
            (&[("transfer-encoding", "Chunked")], true),
            (&[("transfer-encoding", "gzip, chunked")], false),
            (&[("transfer-encoding", "chunked ")], false),
            (&[("transfer-encoding", "xchunked")], false),
            (&[("upgrade", "h2c")], false),
            (&[("expect", "100-continue"), ("content-length", "5")], true),
            (&[("expect", "200-ok")], false),
            (&[("te", "trailers")], false),
            (&[("trailer", "x")], false),
            (&[("keep-alive", "timeout=5")], false),
            (&[("proxy-connection", "keep-alive")], false),
            (&[("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA")], false),
        ] {
            let headers = lines.iter().map(|(name, value)| (HeaderName::from_static(name), http::HeaderValue::from_static(value)));
            assert_eq!(is_plain(&headers.collect::<HeaderMap>()), plain, "{lines:?}");
        }
    }
}
