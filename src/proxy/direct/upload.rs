//! A request's body that is too long to be read before a backend is asked: passed on piece by piece, whatever the backend says meanwhile.

use std::io::IoSlice;
use std::task::{Context as Waiting, Poll, ready};

use bytes::{Buf, Bytes};
use pingora::{BError, Error, ErrorType};

use super::super::context::Context;
use super::line::Line;

/// What of a body is still to be passed on.
#[derive(Debug)]
pub(super) struct Upload {
    /// Bytes that are still to come from the caller.
    left: u64,
    /// What came of them and was not yet written.
    rest: Bytes,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Nothing has come of it yet, and so it can be passed on to another backend.
    Whole,
    /// Some of it has come.
    Begun,
    /// Some of what was written was not yet sent.
    Unsent,
    /// The backend has answered, or has closed, without all of it.
    Stopped,
}

impl Upload {
    /// A body of so many bytes.
    pub(super) fn new(length: u64) -> Self {
        Self { left: length, rest: Bytes::new(), state: State::Whole }
    }

    /// Whether nothing has come of it yet.
    pub(super) fn is_whole(&self) -> bool {
        self.state == State::Whole
    }

    /// Whether all of it was passed on.
    pub(super) fn is_done(&self) -> bool {
        self.left == 0 && self.rest.is_empty() && matches!(self.state, State::Whole | State::Begun)
    }

    /// Whether the caller is to be asked for more.
    pub(super) fn wants(&self) -> bool {
        self.left > 0 && self.rest.is_empty() && self.state != State::Stopped
    }

    /// Whether the backend is to take more.
    pub(super) fn waits(&self) -> bool {
        !self.rest.is_empty() || self.state == State::Unsent
    }

    /// Passes nothing more on.
    pub(super) fn stop(&mut self) {
        self.rest = Bytes::new();
        self.state = State::Stopped;
    }

    /// Takes the next piece from the caller. What is not as long as its head says reaches no backend as a whole: the next request would be taken for
    /// the rest of it, or the rest of it for the next request.
    pub(super) fn take(&mut self, context: &mut Context, piece: Option<Bytes>) -> Result<(), BError> {
        let taken = piece.and_then(|piece| Some((self.left.checked_sub(piece.len() as u64)?, piece)));
        let Some((left, piece)) = taken else { return Err(Error::new_down(ErrorType::ConnectionClosed)) };
        context.receive(piece.len())?;
        self.left = left;
        self.state = State::Begun;
        self.rest = context.pass(piece, left == 0)?;
        Ok(())
    }

    /// Writes what waits. A backend that takes no more says why in its answer.
    pub(super) fn poll(&mut self, cx: &mut Waiting<'_>, line: &mut Line) -> Poll<()> {
        while !self.rest.is_empty() {
            match ready!(line.poll_write(cx, &[IoSlice::new(&self.rest)])) {
                Ok(written) if written > 0 => self.rest.advance(written),
                _ => {
                    self.stop();
                    return Poll::Ready(());
                }
            }
            self.state = State::Unsent;
        }
        match ready!(line.poll_flush(cx)) {
            Ok(()) => self.state = State::Begun,
            Err(_) => self.stop(),
        }
        Poll::Ready(())
    }
}
