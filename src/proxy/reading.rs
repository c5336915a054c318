//! Reading into a buffer that is there only while something is in it.
//!
//! Of a thousand connections nearly all wait. What waits with each of them has left the processor's cache before it is read into; the stack is
//! always there, and to copy a head costs less than to take a buffer that it may not need and to give it back.

use std::io::Result;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

/// So much goes by way of the stack, in bytes; more is read to where it stays.
pub(super) const SHORT: usize = 8 * 1024;

/// Reads more into the buffer, so much at the most where there is no room for more; 0 at the end.
pub(super) fn poll_read(
    cx: &mut Context<'_>,
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    room: usize,
) -> Poll<Result<usize>> {
    if room > SHORT || !buffer.is_empty() {
        buffer.reserve(room);
        return pin!(stream.read_buf(buffer)).poll(cx);
    }
    let mut space = [const { MaybeUninit::uninit() }; SHORT];
    let mut space = ReadBuf::uninit(space.get_mut(..room).unwrap_or_default());
    let read = Pin::new(stream).poll_read(cx, &mut space);
    // What it once held is given back before it waits.
    *buffer = BytesMut::from(space.filled());
    ready!(read)?;
    Poll::Ready(Ok(buffer.len()))
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn what_waits_holds_what_was_read_or_nothing() {
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let mut cx = Context::from_waker(Waker::noop());
        for room in [1, 2, SHORT, SHORT + 1] {
            let mut buffer = BytesMut::with_capacity(16);
            assert!(poll_read(&mut cx, &mut ours, &mut buffer, room).is_pending());
            assert_eq!(buffer.capacity() == 0, room <= SHORT, "{room}");
            theirs.write_all(b"heard").await.unwrap();
            for end in 1..=5 {
                if buffer.len() < end {
                    assert!(matches!(poll_read(&mut cx, &mut ours, &mut buffer, room), Poll::Ready(Ok(1..))), "{room}");
                }
            }
            assert!(poll_read(&mut cx, &mut ours, &mut buffer, room).is_pending());
            assert_eq!(&buffer[..], b"heard", "{room}");
        }
        drop(theirs);
        for room in [SHORT, SHORT + 1] {
            assert!(matches!(poll_read(&mut cx, &mut ours, &mut BytesMut::new(), room), Poll::Ready(Ok(0))), "{room}");
        }
    }
}
