//! What is written to a connection in one turn of its worker, gathered and sent together.
//!
//! Over HTTP/2 many answers share a connection. The runtime runs who was woken last at once, so the connection was asked to send after each of
//! them: a system call and a TLS record for every answer, where those that became ready together fit into one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// As much is sent together: what a TLS record holds.
const ROOM: usize = 16 * 1024;

/// What fills a packet does not wait for more.
const PACKET: usize = 1400;

/// A connection of which what is written is gathered.
#[derive(Debug)]
pub(super) struct Gathering<S> {
    pub(super) stream: S,
    gathered: Gathered,
    /// Whether what one of its users wants to be sent waits for what the others write.
    shared: bool,
}

/// Written, and not yet sent.
#[derive(Debug, Default)]
struct Gathered {
    bytes: Vec<u8>,
    /// How much of it was sent.
    sent: usize,
    /// Whether all others that are ready have had their turn since.
    waited: bool,
}

impl<S> Gathering<S> {
    /// A connection that many share.
    pub(super) fn shared(stream: S) -> Self {
        Self { stream, gathered: Gathered::default(), shared: true }
    }

    /// A connection that has one user, who knows when there is no more to come.
    pub(super) fn alone(stream: S) -> Self {
        Self { stream, gathered: Gathered::default(), shared: false }
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    /// Sends at once what was gathered.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.gathered.poll_send(&mut self.stream, cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, room)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, gathered, shared } = &mut *self;
        gathered.poll_write(stream, cx, bytes, if *shared { ROOM } else { PACKET })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, gathered, shared } = &mut *self;
        if *shared && gathered.waits(cx) {
            return Poll::Pending;
        }
        ready!(gathered.poll_send(stream, cx))?;
        Pin::new(stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Gathered {
    /// Takes what is to be written; the stream is asked when there is no room.
    fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        bytes: &[u8],
        room: usize,
    ) -> Poll<io::Result<usize>> {
        if self.bytes.len() + bytes.len() > room {
            ready!(self.poll_send(stream, cx))?;
        }
        if bytes.len() > room {
            return Pin::new(stream).poll_write(cx, bytes);
        }
        self.bytes.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// What is little waits, once, until those that are ready now have written theirs.
    fn waits(&mut self, cx: &mut Context<'_>) -> bool {
        let waits = !self.waited && (1..PACKET).contains(&self.bytes.len());
        if waits {
            self.waited = true;
            // Who wakes itself comes after all who were woken before.
            cx.waker().wake_by_ref();
        }
        waits
    }

    /// Sends it at once.
    fn poll_send<S: AsyncWrite + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut *stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        // Freed: of many connections most are at rest.
        *self = Self::default();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    /// A stream that takes so many bytes at a time, in turn; none is: not now.
    #[derive(Default)]
    struct Slow {
        takes: Vec<Option<usize>>,
        asked: usize,
        writes: Vec<Vec<u8>>,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let takes = if self.takes.is_empty() { Some(usize::MAX) } else { self.takes[self.asked % self.takes.len()] };
            self.asked += 1;
            let Some(takes) = takes else { return Poll::Pending };
            let taken = takes.min(bytes.len());
            self.writes.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write(connection: &mut Gathering<Slow>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(connection).poll_write(cx, bytes)
    }

    fn flush(connection: &mut Gathering<Slow>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(connection).poll_flush(cx)
    }

    #[test]
    fn what_is_little_waits_one_turn_and_goes_with_what_came_meanwhile() {
        let woken = Arc::new(Woken::default());
        let (waker, mut connection) = (Waker::from(woken.clone()), Gathering::shared(Slow::default()));
        let mut cx = Context::from_waker(&waker);
        for turn in 1..=2 {
            assert!(write(&mut connection, &mut cx, b"one").is_ready());
            assert!(flush(&mut connection, &mut cx).is_pending());
            assert_eq!(woken.0.load(Ordering::Relaxed), turn, "or nobody would ask again");
            assert!(write(&mut connection, &mut cx, b"two").is_ready());
            assert!(flush(&mut connection, &mut cx).is_ready());
            assert_eq!(connection.stream.writes, vec![b"onetwo".to_vec(); turn]);
        }
        assert!(flush(&mut connection, &mut cx).is_ready(), "nothing waits for nothing");
        assert_eq!(connection.gathered.bytes.capacity(), 0);
    }

    #[test]
    fn who_is_alone_waits_for_nobody_and_sends_what_was_written_together() {
        let (mut connection, mut cx) = (Gathering::alone(Slow::default()), Context::from_waker(Waker::noop()));
        assert!(write(&mut connection, &mut cx, b"one").is_ready());
        assert!(write(&mut connection, &mut cx, b"two").is_ready());
        assert!(flush(&mut connection, &mut cx).is_ready());
        assert!(write(&mut connection, &mut cx, &[3; PACKET + 1]).is_ready());
        assert_eq!(connection.stream.writes, [b"onetwo".to_vec(), vec![3; PACKET + 1]]);
    }

    #[test]
    fn what_fills_a_packet_goes_at_once_and_what_fills_a_record_without_a_copy() {
        let (mut connection, mut cx) = (Gathering::shared(Slow::default()), Context::from_waker(Waker::noop()));
        assert!(write(&mut connection, &mut cx, &[1; PACKET]).is_ready());
        assert!(flush(&mut connection, &mut cx).is_ready());
        assert!(write(&mut connection, &mut cx, &[2; 9]).is_ready());
        assert!(write(&mut connection, &mut cx, &[3; ROOM + 1]).is_ready());
        assert_eq!(connection.stream.writes.iter().map(Vec::len).collect::<Vec<_>>(), [PACKET, 9, ROOM + 1]);
    }

    #[test]
    fn a_stream_that_takes_nothing_is_an_error_and_no_endless_loop() {
        let mut connection = Gathering::shared(Slow { takes: vec![Some(0)], ..Slow::default() });
        let mut cx = Context::from_waker(Waker::noop());
        assert!(write(&mut connection, &mut cx, b"x").is_ready());
        assert!(matches!(connection.poll_send(&mut cx), Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::WriteZero));
    }

    proptest! {
        #[test]
        fn all_of_it_arrives_in_order_however_it_is_written_and_taken(
            pieces in prop::collection::vec((prop_oneof![0..40_usize, 1_300..1_500_usize, 16_000..17_000_usize], any::<bool>()), 1..20),
            mut takes in prop::collection::vec(prop::option::of(1..9_000_usize), 0..6),
            alone in any::<bool>(),
        ) {
            takes.push(Some(7_000));
            let stream = Slow { takes, ..Slow::default() };
            let mut connection = if alone { Gathering::alone(stream) } else { Gathering::shared(stream) };
            let mut cx = Context::from_waker(Waker::noop());
            let mut written = Vec::new();
            for (at, (length, flushed)) in pieces.into_iter().enumerate() {
                let piece = vec![at as u8; length];
                let mut rest = &piece[..];
                while !rest.is_empty() {
                    if let Poll::Ready(taken) = write(&mut connection, &mut cx, rest) {
                        rest = &rest[taken.unwrap()..];
                    }
                }
                written.extend(piece);
                if flushed {
                    let _ = flush(&mut connection, &mut cx);
                }
            }
            while flush(&mut connection, &mut cx).is_pending() {}
            prop_assert_eq!(connection.stream.writes.concat(), written);
        }
    }
}
