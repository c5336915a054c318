//! A caller that the framework hears, as the phases see it: its session, or a stream that was taken from it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, Version};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::HttpSession;
use pingora::protocols::tls::SslDigest;
use pingora::{BError, Error, ErrorType, Result};

use super::answer_head::AnswerHead;
use super::caller::{Caller, patience};
use super::{direct, queue};
use crate::request::message::Head;
use crate::snapshot::ServerRules;

/// What the framework reads of an answer at once, in bytes.
const LONGEST_PIECE: usize = 64 * 1024;

impl<S: AsRef<ServerSession> + AsMut<ServerSession> + Send + Sync> Caller for S {
    fn raw(&self) -> Option<Bytes> {
        self.as_ref().as_http1().map(|http1| http1.get_headers_raw_bytes())
    }

    fn head<'a>(&'a self, raw: Option<&'a [u8]>) -> Head<'a> {
        let header = self.as_ref().req_header();
        Head {
            version: header.version,
            method: &header.method,
            authority: header.uri.authority().map(http::uri::Authority::as_str),
            target: header.raw_path(),
            headers: &header.headers,
            raw,
        }
    }

    fn headers(&self) -> &HeaderMap {
        &self.as_ref().req_header().headers
    }

    fn method(&self) -> &http::Method {
        &self.as_ref().req_header().method
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.as_ref().client_addr().and_then(|address| address.as_inet()).copied()
    }

    fn tls(&self) -> Option<&SslDigest> {
        self.as_ref().digest().and_then(|digest| digest.ssl_digest.as_deref())
    }

    fn http2(&mut self) -> Option<&mut HttpSession> {
        match self.as_mut() {
            ServerSession::H2(stream) => Some(stream),
            _ => None,
        }
    }

    fn is_plain(&mut self) -> bool {
        let framed = match self.as_ref().req_header().version {
            // To ask whether it is still there takes the next byte of its body for more than was announced.
            Version::HTTP_11 => self.as_ref().as_http1().is_some() && direct::is_short(self.headers()),
            Version::HTTP_2 => true,
            _ => false,
        };
        framed && direct::is_plain(self.headers())
    }

    /// Pingora forgets the keep-alive time after the first request, so it is said on each.
    fn prepare(&mut self, rules: &ServerRules) {
        if self.as_ref().get_keepalive().is_some() {
            self.as_mut().set_keepalive(Some(rules.idle.as_secs().max(1)));
        }
        self.as_mut().set_read_timeout(Some(rules.body_timeout));
        // A piece of an answer at a time, so it has to be long enough for the longest.
        self.as_mut().set_write_timeout(Some(patience(rules.body_timeout, LONGEST_PIECE)));
    }

    fn is_body_empty(&mut self) -> bool {
        self.as_mut().is_body_empty()
    }

    fn is_body_done(&mut self) -> bool {
        self.as_mut().is_body_done()
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        self.as_mut().read_request_body().await.map_err(|error| error.into_down())
    }

    fn keep_body(&mut self) {
        self.as_mut().enable_retry_buffering();
    }

    fn may_repeat_body(&self) -> bool {
        !self.as_ref().retry_buffer_truncated()
    }

    async fn go_on(&mut self) -> Result<()> {
        self.as_mut().write_continue_response().await.map_err(|error| error.into_down())
    }

    async fn gone(&mut self) -> BError {
        let read = self.as_mut().read_body_or_idle(true).await;
        read.map_or_else(|error| error.into_down(), |_| Error::new_down(ErrorType::ConnectionClosed))
    }

    async fn stays(&mut self, wait: Duration) -> bool {
        queue::stays(self.as_mut(), wait).await
    }

    fn close(&mut self) {
        self.as_mut().set_keepalive(None);
    }

    fn keep_open(&mut self) {
        self.as_mut().set_close_on_response_before_downstream_finish(false);
        self.as_mut().set_total_drain_timeout(Some(Duration::from_secs(2)));
    }

    async fn write_head(&mut self, head: &AnswerHead, last: bool) -> Result<()> {
        let header = head.to_header()?;
        let written = match self.as_mut() {
            // The framework would end the stream with a frame of its own.
            ServerSession::H2(stream) => stream.write_response_header(header, last),
            session => session.write_response_header(header).await,
        };
        written.map_err(|error| error.into_down())
    }

    async fn write_body(&mut self, piece: Bytes, last: bool) -> Result<()> {
        self.as_mut().write_response_body(piece, last).await.map_err(|error| error.into_down())
    }

    /// The framework sends what could be waited for by itself.
    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn status(&self) -> Option<StatusCode> {
        self.as_ref().response_written().map(|answer| answer.status)
    }

    fn body_sent(&self) -> u64 {
        self.as_ref().body_bytes_sent() as u64
    }
}
