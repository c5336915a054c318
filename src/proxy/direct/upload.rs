//! A request's body that is not read before a backend is asked, as it is long, or nobody knows how long: passed on piece by piece, whatever the backend
//! says meanwhile.

use std::io::{IoSlice, Write as _};
use std::task::{Context as Waiting, Poll, ready};

use bytes::buf::Chain;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use pingora::{BError, Error, ErrorType};

use super::super::context::Context;
use super::line::Line;

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// So many bytes.
    Bytes(u64),
    /// As long as it turns out to be: it is passed on in chunks.
    Unknown,
}

/// What of a body is still to be passed on.
#[derive(Debug)]
pub(super) struct Upload {
    /// What is still to come from the caller; nothing once all of it has.
    left: Option<Length>,
    /// What came of it and was not yet written: a piece within its frame.
    rest: Framed,
    /// Whether some of what was written was not yet sent.
    unsent: bool,
    /// Whether some of it has come, which no other backend can be sent again.
    begun: bool,
    /// Whether the backend has answered, or has closed, without all of it.
    stopped: bool,
}

type Framed = Chain<Chain<Bytes, Bytes>, Bytes>;

impl Upload {
    /// A body, if there is one.
    pub(super) fn new(length: Option<Length>) -> Self {
        Self { left: length, rest: alone(Bytes::new()), unsent: false, begun: false, stopped: false }
    }

    /// Whether it can be passed on to another backend, as nothing has come of it yet.
    pub(super) fn is_whole(&self) -> bool {
        !self.begun
    }

    /// Whether all of it was passed on.
    pub(super) fn is_done(&self) -> bool {
        self.left.is_none() && !self.waits() && !self.stopped
    }

    /// Whether the caller is to be asked for more.
    pub(super) fn wants(&self) -> bool {
        self.left.is_some() && !self.waits() && !self.stopped
    }

    /// Whether the backend is to take more.
    pub(super) fn waits(&self) -> bool {
        self.rest.has_remaining() || self.unsent
    }

    /// Passes nothing more on.
    pub(super) fn stop(&mut self) {
        self.rest = alone(Bytes::new());
        self.unsent = false;
        self.stopped = true;
    }

    /// Takes the next piece from the caller, or the end of its body. What is not as long as its head says reaches no backend as a whole: the next
    /// request would be taken for the rest of it, or the rest of it for the next request.
    pub(super) fn take(&mut self, context: &mut Context, piece: Option<Bytes>, last: bool, line: &Line) -> Result<(), BError> {
        let last = last || piece.is_none();
        let piece = piece.unwrap_or_default();
        let broken = || Error::new_down(ErrorType::ConnectionClosed);
        context.receive(piece.len())?;
        let last = match self.left.ok_or_else(broken)? {
            Length::Unknown => last,
            Length::Bytes(left) => {
                let left = left.checked_sub(piece.len() as u64).filter(|left| *left == 0 || !last).ok_or_else(broken)?;
                self.left = Some(Length::Bytes(left));
                left == 0
            }
        };
        self.begun = true;
        let piece = context.pass(piece, last)?;
        self.rest = if self.left == Some(Length::Unknown) { chunk(piece, last) } else { alone(piece) };
        if line.has_records() {
            self.rest = alone(self.rest.copy_to_bytes(self.rest.remaining()));
        }
        if last {
            self.left = None;
        }
        Ok(())
    }

    /// Writes what waits. A backend that takes no more says why in its answer.
    pub(super) fn poll(&mut self, cx: &mut Waiting<'_>, line: &mut Line) -> Poll<()> {
        while self.rest.has_remaining() {
            let mut slices = [IoSlice::new(&[]); 3];
            let count = self.rest.chunks_vectored(&mut slices);
            match ready!(line.poll_write(cx, slices.get(..count).unwrap_or_default())) {
                Ok(written) if written > 0 => self.rest.advance(written),
                _ => {
                    self.stop();
                    return Poll::Ready(());
                }
            }
            self.unsent = true;
        }
        match ready!(line.poll_flush(cx)) {
            Ok(()) => self.unsent = false,
            Err(_) => self.stop(),
        }
        Poll::Ready(())
    }
}

/// A piece as it is.
fn alone(piece: Bytes) -> Framed {
    Bytes::new().chain(piece).chain(Bytes::new())
}

/// A piece as a chunk (RFC 9112 section 7.1). An empty one would end the body, so only the end itself is one.
fn chunk(piece: Bytes, last: bool) -> Framed {
    let mut size = BytesMut::new();
    if !piece.is_empty() {
        // To write into memory never fails.
        let _ = write!((&mut size).writer(), "{:x}\r\n", piece.len());
    }
    let end: &'static [u8] = match (piece.is_empty(), last) {
        (false, false) => b"\r\n",
        (false, true) => b"\r\n0\r\n\r\n",
        (true, false) => b"",
        (true, true) => b"0\r\n\r\n",
    };
    size.freeze().chain(piece).chain(Bytes::from_static(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_chunk_ends_a_body() {
        for (piece, last, expected) in [
            (&b"hello"[..], false, &b"5\r\nhello\r\n"[..]),
            (b"hello", true, b"5\r\nhello\r\n0\r\n\r\n"),
            (b"", false, b""),
            (b"", true, b"0\r\n\r\n"),
            (&[b'x'; 26], false, b"1a\r\nxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n"),
        ] {
            let mut framed = chunk(Bytes::copy_from_slice(piece), last);
            assert_eq!(framed.copy_to_bytes(framed.remaining()), expected);
        }
    }
}
