//! One caller's connection: the request that it is at, and the answer as it is written.

use std::future::poll_fn;
use std::io::Write as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::{Pin, pin};
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
use tokio::time::Instant;

use super::super::answer_head::{AnswerHead, Length};
use super::super::caller::{Caller, patience};
use super::super::deadline::Deadline;
use super::super::framing::{Body, Malformed};
use super::super::handed_over::HandedOver;
use super::super::reading;
use super::date::Date;
use super::head::{self, Parsed};
use crate::request::Now;
use crate::request::{Rejection, message};
use crate::snapshot::ServerRules;

/// The room for a head and the start of a body.
const FIRST_READ: usize = 4 * 1024;

/// The room for the head of an answer and a short body.
const FIRST_WRITE: usize = 1024;

/// What is sent at once: one TLS record, one write.
const SEND: usize = 16 * 1024;

/// What a caller may send ahead while it waits for an answer.
const AHEAD: usize = 64 * 1024;

/// How long the rest of a body is waited for once its request was answered.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// How long a caller that is still sending is heard before its connection ends: a reset would take the answer from it.
const LINGER: Duration = Duration::from_millis(500);

/// What was heard of a caller.
#[derive(Debug)]
pub(super) enum Heard {
    /// A request that we serve.
    Request,
    /// Something that is the framework's to answer.
    Other,
    /// What is no head, or a part of one that is not waited for to its end.
    Refused(Rejection),
    /// Nothing more.
    End,
}

/// How long a caller is waited for that has said nothing, or not all, of its next request. A connection that is at rest keeps these, and not the
/// configuration that they are of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    idle: Duration,
    head: Duration,
    /// The longest head, in bytes.
    longest: u64,
}

impl Waits {
    pub(super) fn of(rules: &ServerRules) -> Self {
        Self { idle: rules.idle, head: rules.header_timeout, longest: rules.head.bytes }
    }
}

pub(super) struct Connection {
    stream: Stream,
    peer: Option<SocketAddr>,
    tls: Option<Arc<SslDigest>>,
    /// What was read and not yet taken.
    buffer: BytesMut,
    /// How long the caller may take for each portion of a body, its own or an answer's.
    patience: Duration,
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
    pace: Pace,
    at: Duration,
}

/// How fast a body comes.
#[derive(Default)]
struct Pace {
    /// Bytes that came.
    came: usize,
    /// How long they were waited for: while the backend takes no more, its caller is not to blame.
    waited: Duration,
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
            pace: Pace::default(),
            at: Duration::ZERO,
        }
    }
}

impl Connection {
    /// A connection of which this was read.
    pub(super) fn new(stream: Stream, buffer: BytesMut, draining: ShutdownWatch) -> Self {
        let socket = stream.get_socket_digest();
        Self {
            peer: socket.and_then(|socket| socket.peer_addr()?.as_inet().copied()),
            tls: stream.get_ssl_digest(),
            stream,
            buffer,
            patience: Duration::ZERO,
            wait: Wait::new(draining),
            date: Date::default(),
            request: Request::none(),
            answer: Answer::default(),
        }
    }

    /// Waits for the next request; not for ever, and not in a process that ends.
    pub(super) async fn hear(&mut self, waits: Waits) -> Heard {
        let begun = !self.buffer.is_empty();
        if !begun && !self.first_bytes(waits.idle).await {
            return Heard::End;
        }
        let heard = match self.take_head(waits.longest) {
            Some(heard) => heard,
            // For all of it, or a byte now and then would hold the connection.
            None => {
                let rest = tokio::time::timeout(waits.head, self.rest_of_head(waits.longest)).await;
                rest.unwrap_or(Heard::Refused(Rejection::RequestTimeout))
            }
        };
        if let Heard::Refused(_) = heard {
            self.take_part();
        }
        heard
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

    async fn rest_of_head(&mut self, longest: u64) -> Heard {
        loop {
            match poll_fn(|cx| self.poll_fill(cx)).await {
                Ok(read) if read > 0 => {}
                _ => return Heard::End,
            }
            if let Some(heard) = self.take_head(longest) {
                return heard;
            }
        }
    }

    fn take_head(&mut self, longest: u64) -> Option<Heard> {
        match head::take(&mut self.buffer, &mut self.request.headers) {
            Parsed::Part if self.buffer.len() as u64 > longest => Some(Heard::Refused(Rejection::HeadersTooLarge)),
            Parsed::Part => None,
            Parsed::Other => Some(Heard::Other),
            Parsed::Refused(rejection) => Some(Heard::Refused(rejection)),
            Parsed::Head(head) => {
                self.request.raw = head.raw;
                self.request.version = head.version;
                self.request.method = head.method;
                self.request.target = head.target;
                self.request.has_body = !head.body.is_done();
                self.request.body = head.body;
                self.request.pace = Pace::default();
                self.answer.closes = head.closes || self.wait.drains();
                Some(Heard::Request)
            }
        }
    }

    /// Takes what came of a head in place of a request: all that follows is no more than the rest of it.
    fn take_part(&mut self) {
        let raw = std::mem::take(&mut self.buffer).freeze();
        let (method, target) = head::begun(&raw);
        self.request = Request { method, target, raw, body: Body::UntilClose, ..Request::none() };
        self.answer.closes = true;
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
    pub(super) fn hand_over(mut self) -> HandedOver {
        self.request.headers.clear();
        head::put_back(self.request.raw, &mut self.buffer);
        HandedOver::http1(self.stream, self.buffer)
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
        let Self { stream, answer: Answer { out, .. }, wait: Wait { deadline, .. }, patience: portion, .. } = self;
        deadline.begin(patience(*portion, out.len() + piece.len()));
        let mut sent = pin!(async {
            if !out.is_empty() {
                let (with, rest) = piece.split_at_checked(SEND.saturating_sub(out.len())).unwrap_or((piece, &[]));
                out.extend_from_slice(with);
                piece = rest;
                stream.write_all(out).await?;
            }
            if !piece.is_empty() {
                stream.write_all(piece).await?;
            }
            stream.flush().await
        });
        let sent = poll_fn(|cx| match sent.as_mut().poll(cx) {
            Poll::Pending => deadline.poll(cx).map(|()| Err(std::io::ErrorKind::TimedOut.into())),
            sent => sent,
        });
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
    fn prepare(&mut self, rules: &ServerRules) {
        self.patience = rules.body_timeout;
    }

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
            let mut waits = None;
            let mut read = pin!(self.stream.read_buf(&mut self.buffer));
            let read = poll_fn(|cx| {
                let read = read.as_mut().poll(cx);
                if read.is_pending() {
                    waits.get_or_insert_with(Instant::now);
                }
                read
            });
            let read = read.await;
            match read {
                Ok(0) => return Err(Error::new_down(ErrorType::ConnectionClosed)),
                Ok(came) => self.request.pace.came += came,
                Err(error) => return Err(Error::because(ErrorType::ReadError, "from a caller", error).into_down()),
            }
            if let Some(since) = waits {
                self.request.pace.waited += since.elapsed();
                // One without a length may be told as it happens, and rest in between.
                let known = matches!(self.request.body, Body::Length(_));
                if known && self.request.pace.waited > patience(self.patience, self.request.pace.came) {
                    return Err(Error::new_down(ErrorType::ReadTimedout));
                }
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

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};
    use tokio::sync::watch;
    use tokio::time::sleep;

    use super::*;

    const PORTION: usize = 16 * 1024;

    /// A connection whose caller has ten seconds for each portion, and what that caller says and hears.
    fn connection(room: usize) -> (Connection, DuplexStream) {
        let (ours, theirs) = duplex(room);
        let (_, draining) = watch::channel(false);
        let connection = Connection::new(Box::new(ours), BytesMut::new(), draining);
        (Connection { patience: Duration::from_secs(10), ..connection }, theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_taken_in_its_time_or_not_at_all() {
        for (pause, taken) in [(Duration::ZERO, true), (Duration::from_millis(600), true), (Duration::from_millis(700), false)] {
            let (mut connection, mut theirs) = connection(1024);
            let reads = tokio::spawn(async move {
                let mut piece = [0; 1024];
                while theirs.read(&mut piece).await.is_ok_and(|read| read > 0) {
                    sleep(pause).await;
                }
            });
            let began = Instant::now();
            let sent = connection.send(&vec![b'x'; 4 * PORTION]).await;
            assert_eq!(sent.is_ok(), taken, "{pause:?}");
            if !taken {
                assert_eq!(began.elapsed().as_secs(), 40);
            }
            drop(connection);
            reads.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_known_length_comes_at_its_pace_or_not_at_all() {
        for (body, piece, pause, comes) in [
            (Body::Length(3 * PORTION as u64), PORTION, 9, true),
            (Body::Length(3 * PORTION as u64), PORTION / 2, 6, false),
            (Body::Length(PORTION as u64), 1, 3, false),
            (Body::UntilClose, 1, 3, true),
        ] {
            let (mut connection, mut theirs) = connection(1 << 20);
            let known = matches!(body, Body::Length(_));
            connection.request.body = body;
            tokio::spawn(async move {
                for _ in 0..5 {
                    sleep(Duration::from_secs(pause)).await;
                    let _ = theirs.write_all(&vec![b'x'; piece]).await;
                }
            });
            let mut read = Ok(());
            let mut length = 0;
            while read.is_ok() && length < (3 * PORTION).min(5 * piece) {
                read = connection.read_body().await.map(|piece| length += piece.unwrap().len());
            }
            assert_eq!(read.is_ok(), comes, "{piece} each {pause} s, known: {known}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_body_is_not_asked_for_its_time_stands_still() {
        let (mut connection, mut theirs) = connection(1 << 20);
        connection.request.body = Body::Length(2);
        theirs.write_all(b"x").await.unwrap();
        assert_eq!(connection.read_body().await.unwrap().unwrap(), "x");
        sleep(Duration::from_secs(3600)).await;
        theirs.write_all(b"y").await.unwrap();
        assert_eq!(connection.read_body().await.unwrap().unwrap(), "y");
    }
}
