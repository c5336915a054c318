//! One connection to a backend, as bytes: in the clear, or over TLS as the framework's connector opens and verifies it.

use std::io::{ErrorKind, IoSlice, Result};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use pingora::{BError, Error, ErrorType};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::unconstrained;

use super::super::deadline::Deadline;
use super::super::peer::Connector;
use super::super::reading;
use crate::route::Route;

/// A connection to a backend.
#[derive(Debug)]
pub(super) struct Line {
    stream: Stream,
    /// Of the wait for its answer; with the connection, it keeps its timer.
    pub(super) deadline: Deadline,
}

#[derive(Debug)]
enum Stream {
    Clear(TcpStream),
    Tls(pingora::protocols::Stream),
}

impl Line {
    /// A connection of a route to a backend, which has proven itself where the upstream asks for that.
    pub(super) async fn open(connector: &Connector, route: &Route, address: SocketAddr) -> std::result::Result<Self, BError> {
        if route.upstream.tls.is_some() {
            return Ok(Self { stream: Stream::Tls(connector.open(route, address).await?), deadline: Deadline::default() });
        }
        let stream = match tokio::time::timeout(route.upstream.timeouts.connect, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Error::because(ErrorType::ConnectError, format!("{address}"), error).into_up()),
            Err(_) => return Err(Error::explain(ErrorType::ConnectTimedout, format!("{address}")).into_up()),
        };
        let no_delay = stream.set_nodelay(true);
        no_delay.map_err(|error| Error::because(ErrorType::SocketError, format!("{address}"), error).into_up())?;
        Ok(Self::clear(stream))
    }

    pub(super) fn clear(stream: TcpStream) -> Self {
        Self { stream: Stream::Clear(stream), deadline: Deadline::default() }
    }

    /// Whether what is written goes out as records, each of which costs: what is small is better written at once.
    pub(super) fn has_records(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }

    /// Whether it is open and has said nothing that was not yet read. Asks the runtime, which has been told by the system already: a call of it only
    /// where there is something to read.
    pub(super) fn is_silent(&mut self) -> bool {
        match &mut self.stream {
            Stream::Clear(stream) => matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock),
            // By way of TLS: what speaks here may be its own, as the tickets behind a handshake are.
            Stream::Tls(stream) => {
                // A task that has done much would be told to wait, whatever there is to read.
                let read = unconstrained(async { stream.read(&mut [0]).await });
                pin!(read).poll(&mut Context::from_waker(Waker::noop())).is_pending()
            }
        }
    }

    /// Writes of these as much as goes at once.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        match (&mut self.stream, slices) {
            (Stream::Clear(stream), [one]) => Pin::new(stream).poll_write(cx, one),
            (Stream::Clear(stream), slices) => Pin::new(stream).poll_write_vectored(cx, slices),
            (Stream::Tls(stream), slices) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    /// Sends what was written.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.stream {
            Stream::Clear(_) => Poll::Ready(Ok(())),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Reads more into the buffer, of which so much is free then; 0 at the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut, room: usize) -> Poll<Result<usize>> {
        match &mut self.stream {
            Stream::Clear(stream) => reading::poll_read(cx, stream, buffer, room),
            Stream::Tls(stream) => reading::poll_read(cx, stream, buffer, room),
        }
    }

    /// Which of our ports it leaves from.
    #[cfg(test)]
    pub(super) fn local_port(&self) -> u16 {
        match &self.stream {
            Stream::Clear(stream) => stream.local_addr().map_or(0, |address| address.port()),
            Stream::Tls(_) => 0,
        }
    }
}
