//! The short way to a backend, for the plain request: nothing to send but a head, to a backend that speaks HTTP/1.1 in the clear.
//!
//! Pingora's way is made for two bodies that stream past each other, for TLS, HTTP/2, caches and upgrades, and costs two thirds of a request's
//! instructions (docs/decisions/0013). This one writes one head, reads one answer, and passes it on. Everything else takes Pingora's.

mod answer;
mod pool;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, StatusCode, Version, header};
use pingora::{BError, Error, ErrorSource, ErrorType};
use pingora_proxy::Session;
use pingora_timeout::fast_timeout::fast_timeout;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::context::Context;
use super::{Gateway, failure, may_retry, respond};
use crate::config::{RetryOn, UpstreamTimeouts};
use answer::{Body, Head, Malformed};

pub use pool::Pool;

/// The room for an answer's head and the start of its body.
const FIRST_READ: usize = 8 * 1024;

/// What is read of a long body at once.
const LONGEST_READ: usize = 64 * 1024;

/// The longest head of an answer, as Pingora has it.
const LONGEST_HEAD: usize = 1024 * 1024;

/// Interim answers (1xx) before the one that counts, at the most: a backend that sends them for ever answers never.
const INTERIM: usize = 16;

/// Whether a request that was admitted goes this way. Only what can be sent again does: a kept connection may close as we write to it.
pub(super) fn takes(session: &Session, context: &Context) -> bool {
    let (Some(route), Some(admission)) = (&context.route, &context.admission) else { return false };
    let upstream = &route.upstream;
    let head = session.req_header();
    upstream.builtin.is_none()
        && upstream.tls.is_none()
        && !upstream.http2
        && admission.body().is_empty()
        && head.version == Version::HTTP_11
        && head.method.is_idempotent()
        && session.as_http1().is_some()
        && is_plain(&head.headers)
}

/// Whether the head frames no body and asks nothing of the connection but to stay or to go.
fn is_plain(headers: &HeaderMap) -> bool {
    let asks = |name: &HeaderName| match *name {
        header::CONTENT_LENGTH | header::TRANSFER_ENCODING | header::UPGRADE | header::EXPECT | header::TE | header::TRAILER => true,
        _ => matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings"),
    };
    let mut connection = headers.get_all(header::CONNECTION).iter().map(http::HeaderValue::as_bytes);
    let stays = match (connection.next(), connection.next()) {
        (None, _) => true,
        (Some(option), None) => option.eq_ignore_ascii_case(b"keep-alive") || option.eq_ignore_ascii_case(b"close"),
        (Some(_), Some(_)) => false,
    };
    stays && !headers.keys().any(asks)
}

/// A connection to a backend, and what was read from it and not yet passed on.
struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    /// Whether it has served another request.
    kept: bool,
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
    pub(super) async fn exchange(&self, session: &mut Session, context: &mut Context) -> Result<(), BError> {
        let request = request(session, context)?;
        let mut may_be_kept = true;
        loop {
            let address = self.next_backend(context)?;
            let connection = self.connect(context, address, may_be_kept).await;
            let mut connection = match connection {
                Ok(connection) => connection,
                Err(_) if may_retry(session, context, RetryOn::ConnectFailure) => continue,
                Err(error) => return Err(error),
            };
            match self.ask(session, context, &mut connection, &request).await {
                Ok(head) if may_retry(session, context, RetryOn::Status(head.header.status.as_u16())) => {}
                Ok(head) => return self.pass_on(session, context, connection, address, head).await,
                Err(Broken::Stale) => {
                    context.tried.pop();
                    may_be_kept = false;
                }
                Err(Broken::Failed(error)) => {
                    let of_the_upstream = *error.esource() == ErrorSource::Upstream;
                    // It broke off before it answered, or was silent: the caller's 502 or 504 is retried as the upstream's own would be.
                    if !(of_the_upstream && may_retry(session, context, RetryOn::Status(failure(&error).status().as_u16()))) {
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn connect(&self, context: &Context, address: SocketAddr, may_be_kept: bool) -> Result<Connection, BError> {
        let kept = if may_be_kept { self.pool.take(address, (self.clock)().monotonic) } else { None };
        let (stream, kept) = match kept {
            Some(stream) => (stream, true),
            None => (open(address, timeouts(context).map(|timeouts| timeouts.connect).unwrap_or_default()).await?, false),
        };
        Ok(Connection { stream, buffer: BytesMut::new(), kept })
    }

    /// Sends the request and reads the head of its answer; interim ones are passed on.
    async fn ask(&self, session: &mut Session, context: &mut Context, connection: &mut Connection, request: &[u8]) -> Result<Head, Broken> {
        let patience = patience(context);
        let mut silent = connection.kept;
        connection.write(request, patience).await.map_err(|error| if silent { Broken::Stale } else { error.into() })?;
        let mut interim = 0;
        loop {
            if let Some(head) = answer::read(&mut connection.buffer, &session.req_header().method).map_err(malformed)? {
                if !head.header.status.is_informational() {
                    context.answered.get_or_insert_with(|| (self.clock)().monotonic);
                    return Ok(head);
                }
                interim += 1;
                // Nobody asked to switch protocols on this way.
                if head.header.status == StatusCode::SWITCHING_PROTOCOLS || interim > INTERIM {
                    return Err(malformed(Malformed("interim")).into());
                }
                session.write_response_header(head.header, false).await.map_err(|error| error.into_down())?;
                continue;
            }
            if connection.buffer.len() > LONGEST_HEAD {
                return Err(malformed(Malformed("head_length")).into());
            }
            match connection.read(session, FIRST_READ, patience).await {
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

    /// Passes an answer on, and keeps the connection when all of it was read and nothing came behind it.
    async fn pass_on(
        &self,
        session: &mut Session,
        context: &mut Context,
        mut connection: Connection,
        address: SocketAddr,
        head: Head,
    ) -> Result<(), BError> {
        let Head { mut header, mut body, persistent } = head;
        respond::decorate(&mut header, context)?;
        let patience = patience(context);
        session.write_response_header(header, body.is_done()).await.map_err(|error| error.into_down())?;
        loop {
            let piece = body.next(&mut connection.buffer).map_err(malformed)?;
            let mut ended = body.is_done();
            if piece.is_empty() && !ended {
                let room = usize::try_from(body.expected()).unwrap_or(LONGEST_READ).clamp(FIRST_READ, LONGEST_READ);
                if connection.read(session, room, patience).await? > 0 {
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
            session.write_response_body(Some(piece), ended).await.map_err(|error| error.into_down())?;
            if ended {
                break;
            }
        }
        if persistent && body.is_done() && connection.buffer.is_empty() {
            self.pool.keep(
                address,
                connection.stream,
                (self.clock)().monotonic + timeouts(context).map(|timeouts| timeouts.idle).unwrap_or_default(),
            );
        }
        Ok(())
    }
}

impl Connection {
    async fn write(&mut self, request: &[u8], patience: Duration) -> Result<(), BError> {
        // Nearly always the whole of it fits into the kernel's buffer.
        let written = self.stream.try_write(request).unwrap_or(0);
        match request.get(written..) {
            None | Some([]) => Ok(()),
            Some(rest) => match fast_timeout(patience, self.stream.write_all(rest)).await {
                Ok(written) => written.map_err(|error| Error::because(ErrorType::WriteError, "to a backend", error).into_up()),
                Err(_) => Err(Error::new_up(ErrorType::WriteTimedout)),
            },
        }
    }

    /// Reads more of the answer; 0 at its end. A caller that hangs up meanwhile ends it.
    async fn read(&mut self, session: &mut Session, room: usize, patience: Duration) -> Result<usize, BError> {
        self.buffer.reserve(room);
        let read = async {
            tokio::select! {
                biased;
                read = self.stream.read_buf(&mut self.buffer) => {
                    read.map_err(|error| Error::because(ErrorType::ReadError, "from a backend", error).into_up())
                }
                gone = session.as_mut().read_body_or_idle(true) => {
                    Err(gone.map_or_else(|error| error.into_down(), |_| Error::new_down(ErrorType::ConnectionClosed)))
                }
            }
        };
        fast_timeout(patience, read).await.unwrap_or_else(|_| Err(Error::new_up(ErrorType::ReadTimedout)))
    }
}

async fn open(address: SocketAddr, patience: Duration) -> Result<TcpStream, BError> {
    let stream = match tokio::time::timeout(patience, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Error::because(ErrorType::ConnectError, format!("{address}"), error).into_up()),
        Err(_) => return Err(Error::explain(ErrorType::ConnectTimedout, format!("{address}")).into_up()),
    };
    let no_delay = stream.set_nodelay(true);
    no_delay.map_err(|error| Error::because(ErrorType::SocketError, format!("{address}"), error).into_up())?;
    Ok(stream)
}

/// The whole request, as it is sent to whichever backend.
fn request(session: &Session, context: &Context) -> Result<BytesMut, BError> {
    let (Some(target), head) = (&context.target, session.req_header()) else {
        return Error::e_explain(ErrorType::HTTPStatus(500), "no permit");
    };
    // The canonical forms have no such byte. This is where one would begin a second request, so it is asked once more.
    if !target.path_and_query.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Error::e_explain(ErrorType::HTTPStatus(500), "the canonical target has a byte that no target has");
    }
    let mut headers = head.headers.clone();
    headers.remove(header::CONNECTION);
    let authority = http::HeaderValue::from_str(&target.authority);
    headers.insert(header::HOST, authority.map_err(|_| Error::explain(ErrorType::HTTPStatus(500), "the canonical host is no header"))?);
    super::session::introduce(session, &mut headers, context)?;
    let mut request = BytesMut::with_capacity(1024);
    for part in [head.method.as_str(), " ", &target.path_and_query, " HTTP/1.1\r\n"] {
        request.put_slice(part.as_bytes());
    }
    for (name, value) in &headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            request.put_slice(part);
        }
    }
    request.put_slice(b"\r\n");
    Ok(request)
}

fn timeouts(context: &Context) -> Option<&UpstreamTimeouts> {
    context.route.as_ref().map(|route| &route.upstream.timeouts)
}

fn patience(context: &Context) -> Duration {
    context.route.as_ref().map(|route| route.response_timeout).unwrap_or_default()
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
            (&[("content-length", "0")], false),
            (&[("transfer-encoding", "chunked")], false),
            (&[("upgrade", "h2c")], false),
            (&[("expect", "100-continue")], false),
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
