//! Request bodies that are looked at before the upstream sees any of them: to judge them, or to hold them against the digest that was proven.
//!
//! Where `Content-Length` says at most 64 KiB, the body is read before the upstream is asked, and is at hand for whoever sends it on.
//! Any other is withheld piece by piece in memory, up to `server.limits.body`, and released when it is proven. Either way an upstream gets
//! the body that was proven or nothing of it, and its answer is passed on after that only.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header;

use super::caller::Caller;
use super::failure;
use crate::request::{BodyCheck, BodyDigest, Rejection};
use crate::snapshot::ServerRules;

/// What Pingora keeps of a body to send it again. Once more than this was read, it does not send even what it has not sent yet.
pub(super) const READ_AHEAD: u64 = 64 * 1024;

/// The body of one request.
#[derive(Debug, Default)]
pub struct Body {
    /// All of it, where it was read before the upstream was asked. Pingora has it too, and sends it as often as it takes.
    whole: Option<Bytes>,
    /// What came of another and was not passed on.
    withheld: BytesMut,
    checks: Vec<BodyCheck>,
    /// The caller was told to go on, so the upstream need not.
    pub continued: bool,
}

impl Body {
    /// The body, where all of it was read.
    pub(super) fn whole(&self) -> Option<&Bytes> {
        self.whole.as_ref()
    }

    /// Reads the whole of a body that is known to be short, and nothing of another. Where there is a bound, somebody decides by the body: it is
    /// read whatever is known of it, and one that is longer is refused.
    pub(super) async fn read_ahead(&mut self, caller: &mut impl Caller, rules: Rules, bound: Option<usize>) -> Result<(), Rejection> {
        let headers = caller.headers();
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let expects = headers.contains_key(header::EXPECT);
        let done = caller.is_body_done();
        let bound = bound.map(|bound| (bound as u64).min(READ_AHEAD));
        if bound.is_some_and(|bound| length.is_some_and(|length| length > bound)) {
            return Err(Rejection::BodyTooLarge);
        }
        if self.whole.is_some() || !(done || bound.is_some() || length.is_some_and(|length| length <= READ_AHEAD)) {
            return Ok(());
        }
        if expects && !done {
            caller.go_on().await.map_err(|error| failure(&error))?;
            self.continued = true;
        }
        caller.keep_body();
        let mut read = BytesMut::new();
        while !caller.is_body_done() {
            let Some(piece) = next(caller, rules.timeout).await? else { break };
            read.extend_from_slice(&piece);
            if bound.is_some_and(|bound| read.len() as u64 > bound) {
                return Err(Rejection::BodyTooLarge);
            }
        }
        self.whole = Some(read.freeze());
        Ok(())
    }

    /// Asks for a proof of the body: at once where it is short, from piece to piece where it is not.
    pub(super) async fn prove(&mut self, caller: &mut impl Caller, digests: &[BodyDigest], rules: Rules) -> Result<(), Rejection> {
        if digests.is_empty() {
            return Ok(());
        }
        self.read_ahead(caller, rules, None).await?;
        self.begin(digests);
        match self.whole.clone() {
            Some(whole) => {
                self.update(&whole);
                self.judge()
            }
            None => Ok(()),
        }
    }

    /// Whether nothing of it is passed on until it is proven.
    pub(super) fn is_withheld(&self) -> bool {
        !self.checks.is_empty()
    }

    /// Another try of the upstream is sent everything from the beginning, and until it was proven, it is proven from the beginning.
    pub(super) fn restart(&mut self, digests: &[BodyDigest]) {
        if !self.checks.is_empty() {
            self.begin(digests);
        }
    }

    /// One more piece on its way to the upstream: held back until the last one, and then let go if it is what was proven.
    pub(super) fn pass(&mut self, piece: &mut Option<Bytes>, last: bool) -> Result<(), Rejection> {
        if self.checks.is_empty() {
            return Ok(());
        }
        if let Some(piece) = piece {
            self.update(piece);
            self.withheld.extend_from_slice(piece);
        }
        if last {
            self.judge()?;
        }
        // An empty piece until then: none at all would say that the body is over.
        *piece = Some(if last { std::mem::take(&mut self.withheld).freeze() } else { Bytes::new() });
        Ok(())
    }

    /// Waits for the rest of a body whose upstream answers without having had it: no answer to a body that was not proven.
    pub(super) async fn settle(&mut self, caller: &mut impl Caller, rules: Rules) -> Result<(), Rejection> {
        if self.checks.is_empty() {
            return Ok(());
        }
        let mut length = self.withheld.len() as u64;
        self.withheld = BytesMut::new();
        while !caller.is_body_done() {
            let Some(piece) = next(caller, rules.timeout).await? else { break };
            length += piece.len() as u64;
            if length > rules.limit {
                return Err(Rejection::BodyTooLarge);
            }
            self.update(&piece);
        }
        self.judge()
    }

    fn begin(&mut self, digests: &[BodyDigest]) {
        self.checks = digests.iter().cloned().map(BodyCheck::new).collect();
        self.withheld.clear();
    }

    fn update(&mut self, piece: &[u8]) {
        self.checks.iter_mut().for_each(|check| check.update(piece));
    }

    fn judge(&mut self) -> Result<(), Rejection> {
        let proven = std::mem::take(&mut self.checks).into_iter().all(BodyCheck::holds);
        if proven { Ok(()) } else { Err(Rejection::CredentialInvalid("body_digest")) }
    }
}

/// How long a body may be and take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// The longest body, in bytes.
    pub(super) limit: u64,
    /// The longest wait for its next piece: HTTP/2 has none of its own.
    pub(super) timeout: Duration,
}

impl Rules {
    pub(super) fn of(server: &ServerRules) -> Self {
        Self { limit: server.body_limit, timeout: server.body_timeout }
    }
}

async fn next(caller: &mut impl Caller, timeout: Duration) -> Result<Option<Bytes>, Rejection> {
    match tokio::time::timeout(timeout, caller.read_body()).await {
        Ok(piece) => piece.map_err(|error| failure(&error)),
        Err(_) => Err(Rejection::RequestTimeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass_all(pieces: &[&'static [u8]], expected: &[u8]) -> (Vec<Vec<u8>>, Result<(), Rejection>) {
        let checks = vec![BodyCheck::new(BodyDigest::Sha256(openssl::sha::sha256(expected)))];
        let mut body = Body { checks, ..Body::default() };
        let mut passed = Vec::new();
        for (at, piece) in pieces.iter().enumerate() {
            let mut piece = Some(Bytes::from_static(piece));
            if let Err(rejection) = body.pass(&mut piece, at + 1 == pieces.len()) {
                return (passed, Err(rejection));
            }
            passed.push(piece.unwrap().to_vec());
        }
        (passed, Ok(()))
    }

    #[test]
    fn nothing_of_a_body_passes_before_its_last_piece_has_proven_it() {
        assert_eq!(pass_all(&[b"ab", b"", b"cd"], b"abcd"), (vec![vec![], vec![], b"abcd".to_vec()], Ok(())));
        let refused = Err(Rejection::CredentialInvalid("body_digest"));
        assert_eq!(pass_all(&[b"ab", b"ce"], b"abcd"), (vec![vec![]], refused.clone()));
        assert_eq!(pass_all(&[b"ab"], b"abcd"), (vec![], refused.clone()));
        assert_eq!(pass_all(&[b"abcd", b"e"], b"abcd"), (vec![vec![]], refused));
    }
}
