//! One caller's connection: the request that it is at, and the answer as it is written.

use std::future::poll_fn;
use std::io::Write as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Version, header};
use pingora::protocols::http::v2::server::HttpSession;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{Shutdown, Stream};
use pingora::server::ShutdownWatch;
use pingora::{BError, Error, ErrorType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::answer_head::{AnswerHead, Length};
use super::super::caller::Caller;
use super::super::deadline::Deadline;
use super::super::framing::{Body, Malformed};
use super::super::handed_over::HandedOver;
use super::super::reading;
use super::date::Date;
use super::head::{self, Parsed};
use crate::request::Now;
use crate::request::message;
use crate::snapshot::ServerRules;

/// The room for a head and the start of a body.
const FIRST_READ: usize = 4 * 1024;

/// The room for the head of an answer and a short body.
const FIRST_WRITE: usize = 1024;

/// What is sent at once: one TLS record, one write.
const SEND: usize = 16 * 1024;

/// What a caller may send ahead while it waits for an answer.
const AHEAD: usize = 64 * 1024;

/// How long a head may take once its first byte is there, as Pingora waits for a piece of one.
const HEAD_TIME: Duration = Duration::from_secs(60);

/// How long the rest of a body is waited for once its request was answered.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// How long a caller that is still sending is heard before its connection ends: a reset would take the answer from it.
const LINGER: Duration = Duration::from_millis(500);

/// What was heard of a caller.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A request that we serve.
    Request,
    /// Something that is the framework's to answer.
    Other,
    /// Nothing more.
    End,
}

pub(super) struct Connection {
    stream: Stream,
    peer: Option<SocketAddr>,
    tls: Option<Arc<SslDigest>>,
    /// What was read and not yet taken.
    buffer: BytesMut,
    wait: Wait,
    date: Date,
    request: Request,
    answer: Answer,
}

/// The request that is served.
struct Request {
    raw: Bytes,
    version: Version,
    method: Method,
    target: Range<usize>,
    headers: HeaderMap,
    has_body: bool,
    /// What is still to be read of the body.
    body: Body,
    at: Duration,
}

/// The answer to it.
#[derive(Default)]
struct Answer {
    status: Option<StatusCode>,
    coding: Coding,
    /// What was written and not yet sent.
    out: Vec<u8>,
    sent: u64,
    /// Whether all of it was written.
    whole: bool,
    /// Whether the connection ends with it.
    closes: bool,
}

/// How the body of an answer is written.
#[derive(Default, PartialEq, Eq)]
enum Coding {
    /// Not at all.
    #[default]
    Absent,
    /// As it is.
    Plain,
    /// In chunks.
    Chunked,
}

impl Request {
    /// Before the first.
    fn none() -> Self {
        Self {
            raw: Bytes::new(),
            version: Version::HTTP_11,
            method: Method::GET,
            target: 0..0,
            headers: HeaderMap::new(),
            has_body: false,
            body: Body::Length(0),
            at: Duration::ZERO,
        }
    }
}

impl Connection {
    pub(super) fn new(stream: Stream, draining: ShutdownWatch) -> Self {
        let socket = stream.get_socket_digest();
        Self {
            peer: socket.and_then(|socket| socket.peer_addr()?.as_inet().copied()),
            tls: stream.get_ssl_digest(),
            stream,
            buffer: BytesMut::new(),
            wait: Wait::new(draining),
            date: Date::default(),
            request: Request::none(),
            answer: Answer::default(),
        }
    }

    /// Waits for the next request; not for ever, and not in a process that ends.
    pub(super) async fn hear(&mut self, idle: Duration) -> Heard {
        let begun = !self.buffer.is_empty();
        if !begun && !self.first_bytes(idle).await {
            return Heard::End;
        }
        match self.take_head() {
            Some(heard) => heard,
            None => tokio::time::timeout(HEAD_TIME, self.rest_of_head()).await.unwrap_or(Heard::End),
        }
    }

    async fn first_bytes(&mut self, idle: Duration) -> bool {
        self.wait.deadline.begin(idle);
        poll_fn(|cx| {
            if let Poll::Ready(read) = self.poll_fill(cx) {
                return Poll::Ready(read.is_ok_and(|read| read > 0));
            }
            self.wait.poll(cx).map(|()| false)
        })
        .await
    }

    async fn rest_of_head(&mut self) -> Heard {
        loop {
            match poll_fn(|cx| self.poll_fill(cx)).await {
                Ok(read) if read > 0 => {}
                _ => return Heard::End,
            }
            if let Some(heard) = self.take_head() {
                return heard;
            }
        }
    }

    fn take_head(&mut self) -> Option<Heard> {
        match head::take(&mut self.buffer, &mut self.request.headers) {
            Parsed::Part => None,
            Parsed::Other => Some(Heard::Other),
            Parsed::Head(head) => {
                self.request.raw = head.raw;
                self.request.version = head.version;
                self.request.method = head.method;
                self.request.target = head.target;
                self.request.has_body = !head.body.is_done();
                self.request.body = head.body;
                self.answer.closes = head.closes || self.wait.drains();
                Some(Heard::Request)
            }
        }
    }

    /// The time of the request, for `Date`.
    pub(super) fn at(&mut self, now: Now) {
        self.request.at = now.unix;
    }

    /// Ends a request; whether the connection can serve another.
    pub(super) async fn end(&mut self) -> bool {
        let sent = self.flush().await.is_ok();
        let short = self.request.body.is_done() || matches!(self.request.body, Body::Length(left) if left <= AHEAD as u64);
        let stays = sent && self.answer.whole && !self.answer.closes && short && self.drain(DRAIN_TIME).await;
        if stays {
            self.request.headers.clear();
            self.request.raw = Bytes::new();
            self.answer = Answer::default();
        } else {
            Shutdown::shutdown(&mut *self.stream).await;
            if sent && !self.request.body.is_done() {
                self.drain(LINGER).await;
            }
        }
        stays
    }

    /// The whole connection for the framework, the request that was just heard as if it had not been.
    pub(super) fn hand_over(mut self) -> Stream {
        self.request.headers.clear();
        head::put_back(self.request.raw, &mut self.buffer);
        Box::new(HandedOver::http1(self.stream, self.buffer))
    }

    /// Reads the rest of a body and throws it away.
    async fn drain(&mut self, patience: Duration) -> bool {
        if self.request.body.is_done() {
            return true;
        }
        let read = async {
            while !self.request.body.is_done() {
                if self.read_body().await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(patience, read).await.unwrap_or(false)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        reading::poll_read(cx, &mut self.stream, &mut self.buffer, FIRST_READ)
    }

    /// Pending as long as the caller is there. What it sends meanwhile is kept.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<BError> {
        while self.buffer.len() < AHEAD {
            match ready!(self.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(Error::new_down(ErrorType::ConnectionClosed)),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Error::because(ErrorType::ReadError, "from a caller", error).into_down()),
            }
        }
        Poll::Pending
    }

    /// Sends what was written, and this behind it.
    async fn send(&mut self, mut piece: &[u8]) -> Result<(), BError> {
        let out = &mut self.answer.out;
        let sent = async {
            if !out.is_empty() {
                let (with, rest) = piece.split_at_checked(SEND.saturating_sub(out.len())).unwrap_or((piece, &[]));
                out.extend_from_slice(with);
                piece = rest;
                self.stream.write_all(out).await?;
            }
            if !piece.is_empty() {
                self.stream.write_all(piece).await?;
            }
            self.stream.flush().await
        };
        let sent: std::io::Result<()> = sent.await;
        self.answer.out.clear();
        sent.map_err(|error| Error::because(ErrorType::WriteError, "to a caller", error).into_down())
    }
}

impl Caller for Connection {
    fn raw(&self) -> Option<Bytes> {
        None
    }

    fn head<'a>(&'a self, _: Option<&'a [u8]>) -> message::Head<'a> {
        message::Head {
            version: self.request.version,
            method: &self.request.method,
            authority: None,
            target: self.request.raw.get(self.request.target.clone()).unwrap_or_default(),
            headers: &self.request.headers,
            raw: Some(&self.request.raw),
        }
    }

    fn headers(&self) -> &HeaderMap {
        &self.request.headers
    }

    fn method(&self) -> &Method {
        &self.request.method
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    fn tls(&self) -> Option<&SslDigest> {
        self.tls.as_deref()
    }

    fn http2(&mut self) -> Option<&mut HttpSession> {
        None
    }

    fn is_plain(&mut self) -> bool {
        true
    }

    /// Whoever reads says how long it waits.
    fn prepare(&mut self, _: &ServerRules) {}

    fn is_body_empty(&mut self) -> bool {
        !self.request.has_body
    }

    fn is_body_done(&mut self) -> bool {
        self.request.body.is_done()
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, BError> {
        loop {
            let piece = self.request.body.next(&mut self.buffer);
            let piece = piece.map_err(|Malformed(what)| Error::explain(ErrorType::InvalidHTTPHeader, what).into_down())?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
            if self.request.body.is_done() {
                return Ok(None);
            }
            let expected = usize::try_from(self.request.body.expected()).unwrap_or(AHEAD);
            self.buffer.reserve(expected.clamp(FIRST_READ, AHEAD));
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(Error::new_down(ErrorType::ConnectionClosed)),
                Ok(_) => {}
                Err(error) => return Err(Error::because(ErrorType::ReadError, "from a caller", error).into_down()),
            }
        }
    }

    /// The short way sends what was read, from where it was read to.
    fn keep_body(&mut self) {}

    fn may_repeat_body(&self) -> bool {
        true
    }

    async fn go_on(&mut self) -> Result<(), BError> {
        self.send(b"HTTP/1.1 100 Continue\r\n\r\n").await
    }

    async fn gone(&mut self) -> BError {
        poll_fn(|cx| self.poll_gone(cx)).await
    }

    async fn stays(&mut self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.gone()).await.is_err()
    }

    fn close(&mut self) {
        self.answer.closes = true;
    }

    /// Whether the connection stays is asked when the answer is there.
    fn keep_open(&mut self) {}

    async fn write_head(&mut self, head: &AnswerHead, last: bool) -> Result<(), BError> {
        let old = self.request.version == Version::HTTP_10;
        if old && head.status.is_informational() {
            return Ok(());
        }
        self.answer.status = Some(head.status);
        // HTTP/1.0 knows no chunks: the end of the connection ends the body.
        let length = if old && head.length == Length::Chunked { Length::Unsaid } else { head.length };
        if self.answer.out.capacity() == 0 {
            self.answer.out = Vec::with_capacity(FIRST_WRITE);
        }
        let out = &mut self.answer.out;
        head.write(out, length);
        if head.status.is_informational() {
            out.extend_from_slice(b"\r\n");
            return self.flush().await;
        }
        if !head.has(&header::DATE) {
            out.extend_from_slice(b"date: ");
            out.extend_from_slice(self.date.of(self.request.at));
            out.extend_from_slice(b"\r\n");
        }
        self.answer.coding = match (head.status, length) {
            (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED, _) => Coding::Absent,
            _ if self.request.method == Method::HEAD => Coding::Absent,
            (_, Length::Chunked) => Coding::Chunked,
            _ => Coding::Plain,
        };
        // Whoever waits to be asked for its body may keep it back now: what comes next could be either (RFC 9110 section 10.1.1).
        self.answer.closes |= !self.request.body.is_done() && self.request.headers.contains_key(header::EXPECT);
        // Without a length it would end with the connection.
        self.answer.closes |= self.answer.coding == Coding::Plain && length == Length::Unsaid;
        out.extend_from_slice(if self.answer.closes { b"connection: close\r\n\r\n" } else { b"connection: keep-alive\r\n\r\n" });
        if last {
            // A chunked body that is empty has an end all the same.
            return self.write_body(Bytes::new(), true).await;
        }
        Ok(())
    }

    async fn write_body(&mut self, piece: Bytes, last: bool) -> Result<(), BError> {
        if self.answer.whole {
            return self.flush().await;
        }
        let mut piece = if self.answer.coding == Coding::Absent { Bytes::new() } else { piece };
        self.answer.sent += piece.len() as u64;
        if self.answer.coding == Coding::Chunked {
            let out = &mut self.answer.out;
            if !piece.is_empty() {
                let _ = write!(out, "{:x}\r\n", piece.len());
                if piece.len() <= SEND {
                    out.extend_from_slice(&piece);
                } else {
                    self.send(&piece).await?;
                }
                self.answer.out.extend_from_slice(b"\r\n");
                piece = Bytes::new();
            }
            if last {
                self.answer.out.extend_from_slice(b"0\r\n\r\n");
            }
        }
        self.answer.whole |= last;
        self.send(&piece).await
    }

    async fn flush(&mut self) -> Result<(), BError> {
        if self.answer.out.is_empty() { Ok(()) } else { self.send(&[]).await }
    }

    fn status(&self) -> Option<StatusCode> {
        self.answer.status
    }

    fn body_sent(&self) -> u64 {
        self.answer.sent
    }
}

/// The wait for a caller that has said nothing yet. To be told of the end is asked once for each connection and not for each request: who tells is
/// shared by all cores.
struct Wait {
    draining: ShutdownWatch,
    /// Told of the end of the process.
    told: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Whom it will wake.
    wakes: Option<Waker>,
    deadline: Deadline,
}

impl Wait {
    fn new(mut draining: ShutdownWatch) -> Self {
        if *draining.borrow() {
            draining.mark_changed();
        }
        let mut watched = draining.clone();
        let told = Box::pin(async move {
            // An error is a process without a main thread: over as well.
            let _ = watched.wait_for(|drains| *drains).await;
        });
        Self { draining, told, wakes: None, deadline: Deadline::default() }
    }

    fn drains(&self) -> bool {
        self.draining.has_changed().unwrap_or(true)
    }

    /// Ready when it has been long enough, or when the process ends.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let woken = !self.wakes.as_ref().is_some_and(|wakes| wakes.will_wake(cx.waker()));
        if self.drains() || (woken && self.told.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(());
        }
        if woken {
            self.wakes = Some(cx.waker().clone());
        }
        self.deadline.poll(cx)
    }
}
