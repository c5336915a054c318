//! A connection that is handed to the framework: what was read of it comes first, and what is written is gathered.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::deadline::Deadline;
use super::gathering::Gathering;

pub(super) struct HandedOver {
    read: BytesMut,
    connection: Gathering<Stream>,
    opening: Option<Opening>,
}

/// What a connection over HTTP/2 begins with: nothing else ends the wait for it.
#[derive(Debug)]
struct Opening {
    /// Bytes that are still to come.
    missing: usize,
    deadline: Deadline,
}

/// The preface and the head of the frame of settings that ends it (RFC 9113 section 3.4), in bytes.
const OPENING: usize = 24 + 9;

impl HandedOver {
    /// A connection over HTTP/1 of which this was read.
    pub(super) fn http1(stream: Stream, read: BytesMut) -> Self {
        Self { read, connection: Gathering::alone(stream), opening: None }
    }

    /// A connection over HTTP/2 of which nothing was read, and which has so long to begin.
    pub(super) fn http2(stream: Stream, patience: Duration) -> Self {
        let mut deadline = Deadline::default();
        deadline.begin(patience);
        Self { read: BytesMut::new(), connection: Gathering::shared(stream), opening: Some(Opening { missing: OPENING, deadline }) }
    }

    /// Takes back a connection over HTTP/1 of which the framework needs no more, and what is left of what was read of it.
    pub(super) fn take_back(stream: Stream) -> Option<(Stream, BytesMut)> {
        let mut this = stream.into_any().downcast::<Self>().ok()?;
        // All of an answer was flushed, or it has not ended.
        let sent = this.connection.poll_send(&mut Context::from_waker(Waker::noop()));
        matches!(sent, Poll::Ready(Ok(()))).then_some((this.connection.stream, this.read))
    }
}

impl AsyncRead for HandedOver {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            let before = room.filled().len();
            let read = Pin::new(&mut self.connection).poll_read(cx, room);
            let Some(opening) = &mut self.opening else { return read };
            if read.is_pending() {
                return opening.deadline.poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()));
            }
            opening.missing = opening.missing.saturating_sub(room.filled().len() - before);
            if opening.missing == 0 {
                self.opening = None;
            }
            return read;
        }
        let length = room.remaining().min(self.read.len());
        room.put_slice(self.read.get(..length).unwrap_or_default());
        self.read.advance(length);
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HandedOver {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for HandedOver {
    async fn shutdown(&mut self) {
        let _ = poll_fn(|cx| self.connection.poll_send(cx)).await;
        Shutdown::shutdown(&mut *self.connection.stream).await;
    }
}

impl UniqueID for HandedOver {
    fn id(&self) -> UniqueIDType {
        self.connection.stream.id()
    }
}

impl Ssl for HandedOver {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.connection.stream.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.connection.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.connection.stream.selected_alpn_proto()
    }
}

impl GetTimingDigest for HandedOver {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.connection.stream.get_timing_digest()
    }
}

impl GetProxyDigest for HandedOver {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.connection.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for HandedOver {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.connection.stream.get_socket_digest()
    }
}

/// Nobody peeks: cleartext HTTP/2 is not offered.
impl Peek for HandedOver {}

impl fmt::Debug for HandedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what was read: it may hold a credential.
        f.debug_struct("HandedOver").field("stream", &self.connection.stream.id()).finish_non_exhaustive()
    }
}
