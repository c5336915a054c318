//! A connection that is handed to the framework: what was read of it comes first, and over HTTP/2 what is written is gathered.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::http2::Gathered;

pub(super) struct HandedOver {
    read: BytesMut,
    stream: Stream,
    gathered: Option<Gathered>,
}

impl HandedOver {
    /// A connection over HTTP/1 of which this was read.
    pub(super) fn http1(stream: Stream, read: BytesMut) -> Self {
        Self { read, stream, gathered: None }
    }

    /// A connection over HTTP/2 of which nothing was read.
    pub(super) fn http2(stream: Stream) -> Self {
        Self { read: BytesMut::new(), stream, gathered: Some(Gathered::default()) }
    }
}

impl AsyncRead for HandedOver {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, room);
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
        let Self { stream, gathered, .. } = &mut *self;
        match gathered {
            Some(gathered) => gathered.poll_write(stream, cx, bytes),
            None => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, gathered, .. } = &mut *self;
        match gathered {
            Some(gathered) => gathered.poll_flush(stream, cx),
            None => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, gathered, .. } = &mut *self;
        if let Some(gathered) = gathered {
            ready!(gathered.poll_send(stream, cx))?;
        }
        Pin::new(stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.gathered {
            // One piece, as a stream does that takes no more at once.
            Some(_) => self.poll_write(cx, pieces.iter().find(|piece| !piece.is_empty()).map_or(&[], |piece| piece)),
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.gathered.is_none() && self.stream.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for HandedOver {
    async fn shutdown(&mut self) {
        if let Some(gathered) = &mut self.gathered {
            let _ = poll_fn(|cx| gathered.poll_send(&mut self.stream, cx)).await;
        }
        Shutdown::shutdown(&mut *self.stream).await;
    }
}

impl UniqueID for HandedOver {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for HandedOver {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.stream.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl GetTimingDigest for HandedOver {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }
}

impl GetProxyDigest for HandedOver {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for HandedOver {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }
}

/// Nobody peeks: cleartext HTTP/2 is not offered.
impl Peek for HandedOver {}

impl fmt::Debug for HandedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what was read: it may hold a credential.
        f.debug_struct("HandedOver").field("stream", &self.stream.id()).finish_non_exhaustive()
    }
}
