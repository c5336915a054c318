//! What the phases ask of the caller's side of a request, whether the framework hears it or we do ([`http1`](super::http1)).

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use pingora::protocols::http::v2::server::HttpSession;
use pingora::protocols::tls::SslDigest;
use pingora::{BError, Error, ErrorType};
use pingora_timeout::fast_timeout::fast_timeout;

use super::answer_head::AnswerHead;
use crate::request::message::Head;
use crate::snapshot::ServerRules;

/// So much of a body a caller has to send or to take in the time that it is given for a piece, in bytes. Who takes longer holds on to a connection, and
/// mostly to a backend, for next to nothing.
const PORTION: usize = 16 * 1024;

/// How long a caller may take for so many bytes, where `portion` is for each portion of them.
pub(super) fn patience(portion: Duration, length: usize) -> Duration {
    portion.saturating_mul(u32::try_from(length.div_ceil(PORTION)).unwrap_or(u32::MAX).max(1))
}

/// Writes a piece of an answer's body. A connection over HTTP/1 has deadlines of its own; over HTTP/2 the window that a caller keeps shut is waited for here.
pub(super) async fn give(caller: &mut impl Caller, piece: Bytes, last: bool, rules: &ServerRules) -> Result<(), BError> {
    if caller.http2().is_none() {
        return caller.write_body(piece, last).await;
    }
    let patience = patience(rules.body_timeout, piece.len());
    fast_timeout(patience, caller.write_body(piece, last)).await.unwrap_or_else(|_| Err(Error::new_down(ErrorType::WriteTimedout)))
}

/// A caller, one request of it, and the answer to that. Errors are the caller's: downstream.
pub(super) trait Caller: Send {
    /// The bytes of an HTTP/1 head, where [`head`](Self::head) must be given them.
    fn raw(&self) -> Option<Bytes>;

    /// The head as it was parsed, and for HTTP/1 the bytes it was parsed from.
    fn head<'a>(&'a self, raw: Option<&'a [u8]>) -> Head<'a>;

    /// Its fields.
    fn headers(&self) -> &HeaderMap;

    /// The method.
    fn method(&self) -> &http::Method;

    /// The other end of the connection.
    fn peer(&self) -> Option<SocketAddr>;

    /// What the handshake settled, where the connection is TLS.
    fn tls(&self) -> Option<&SslDigest>;

    /// The stream, where the caller speaks HTTP/2.
    fn http2(&mut self) -> Option<&mut HttpSession>;

    /// Whether an admitted request can take the short way, as far as its head says.
    fn is_plain(&mut self) -> bool;

    /// Takes over the deadlines of the configuration that serves this request.
    fn prepare(&mut self, rules: &ServerRules);

    /// Whether the request has no body.
    fn is_body_empty(&mut self) -> bool;

    /// Whether all of the body was read.
    fn is_body_done(&mut self) -> bool;

    /// The next piece of the body.
    fn read_body(&mut self) -> impl Future<Output = Result<Option<Bytes>, BError>> + Send;

    /// Keeps what is read of the body from now on, for whoever sends it on.
    fn keep_body(&mut self);

    /// Whether a body that was read can be sent once more.
    fn may_repeat_body(&self) -> bool;

    /// Tells a caller that waits for it to send its body.
    fn go_on(&mut self) -> impl Future<Output = Result<(), BError>> + Send;

    /// Waits until the caller hangs up, which it may never do.
    fn gone(&mut self) -> impl Future<Output = BError> + Send;

    /// Waits so long, or until the caller has gone; whether it stayed.
    fn stays(&mut self, wait: Duration) -> impl Future<Output = bool> + Send;

    /// Ends the connection with this answer.
    fn close(&mut self);

    /// Keeps the connection, though a short body may not have been read when the answer is there.
    fn keep_open(&mut self);

    /// Writes a head; `last` where nothing follows it.
    fn write_head(&mut self, head: &AnswerHead, last: bool) -> impl Future<Output = Result<(), BError>> + Send;

    /// Writes a piece of the body; `last` where nothing follows it.
    fn write_body(&mut self, piece: Bytes, last: bool) -> impl Future<Output = Result<(), BError>> + Send;

    /// Sends what was written, before a wait for more.
    fn flush(&mut self) -> impl Future<Output = Result<(), BError>> + Send;

    /// The status of the answer, once it was written; interim ones too.
    fn status(&self) -> Option<StatusCode>;

    /// Bytes of the answer's body that were written.
    fn body_sent(&self) -> u64;
}
