//! What one request carries from phase to phase.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::body::Body;
use bytes::Bytes;
use pingora::{BError, Error, ErrorType};
use smallvec::SmallVec;

use crate::admit::Admission;
use crate::request::message::Message;
use crate::request::{Client, ClientCertificate, Identity, Now, Parameters, Rejection};
use crate::route::Route;
use crate::route::router::Place;
use crate::snapshot::Serving;
use crate::upstream::Chosen;

/// The state of one request.
pub struct Context {
    /// When the request head had been read. Times are since the start of the process.
    pub started: Now,
    /// The configuration that this request keeps, whatever is applied meanwhile.
    pub snapshot: Serving,
    /// Ours, unless a trusted proxy sent one.
    pub request_id: RequestId,
    /// The caller's end of the connection.
    pub client: Option<Client>,
    /// The certificate that was proven for the caller.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// Where the matched route stands in the snapshot.
    pub place: Option<Place>,
    /// The permit; without it nothing reaches an upstream.
    pub admission: Option<Admission>,
    /// Who was refused, for the log.
    pub refused: Option<Arc<Identity>>,
    /// The limits that would have refused it, were they enforced.
    pub shadowed: Vec<Arc<str>>,
    /// How long it waited for its turn.
    pub queued: Duration,
    /// What the upstream is asked for.
    pub target: Option<Target>,
    /// Why this request was refused or failed.
    pub rejection: Option<Rejection>,
    /// The backend that serves it.
    pub backend: Option<Chosen>,
    /// Backends that were tried.
    pub tried: SmallVec<[SocketAddr; 2]>,
    /// What is known of the body.
    pub body: Body,
    /// Body bytes that came from the caller.
    pub body_received: u64,
    /// When the upstream was asked.
    pub asked: Option<Duration>,
    /// When the head of its answer came.
    pub answered: Option<Duration>,
}

impl Context {
    /// A request that has just begun.
    pub fn new(snapshot: Serving, started: Now) -> Self {
        snapshot.in_flight.inc();
        Self {
            started,
            snapshot,
            request_id: RequestId::random(),
            client: None,
            certificate: None,
            place: None,
            admission: None,
            refused: None,
            shadowed: Vec::new(),
            queued: Duration::ZERO,
            target: None,
            rejection: None,
            backend: None,
            tried: SmallVec::new(),
            body: Body::default(),
            body_received: 0,
            asked: None,
            answered: None,
        }
    }

    /// The matched route.
    pub fn route(&self) -> Option<&Route> {
        self.snapshot.route(self.place)
    }

    /// Counts what came of the body, which may be so long and no longer.
    pub fn receive(&mut self, length: usize) -> Result<(), BError> {
        self.body_received += length as u64;
        if self.body_received > self.snapshot.server.body_limit {
            self.rejection = Some(Rejection::BodyTooLarge);
            return Err(Error::new_down(ErrorType::HTTPStatus(413)));
        }
        Ok(())
    }

    /// What of the body is passed on for this piece of it.
    pub fn pass(&mut self, piece: Bytes, last: bool) -> Result<Bytes, BError> {
        let mut piece = Some(piece);
        let passed = self.body.pass(&mut piece, last);
        passed.map_err(|rejection| self.refuse_body(rejection))?;
        Ok(piece.unwrap_or_default())
    }

    /// Ends a request whose body is not the one that was proven, and the permit that was given in expectation of it.
    pub fn refuse_body(&mut self, rejection: Rejection) -> BError {
        self.refused = self.admission.take().and_then(Admission::withdraw);
        let status = rejection.status().as_u16();
        self.rejection = Some(rejection);
        Error::new_down(ErrorType::HTTPStatus(status))
    }

    /// Counts the request as in flight no longer.
    pub fn land(&mut self) {
        if let Some(admission) = &mut self.admission {
            admission.land();
        }
    }
}

/// Served, or given up: a panic included.
impl Drop for Context {
    fn drop(&mut self) {
        self.snapshot.in_flight.dec();
    }
}

/// What the upstream is asked for, after normalisation, rewriting and the removal of credentials.
#[derive(Debug)]
pub struct Target {
    /// The canonical path that was matched, or the rewritten one, and the query.
    pub path_and_query: String,
    /// The canonical host, with the port the caller named.
    pub authority: String,
}

impl Target {
    /// The path that was matched or its rewrite, never what came in, and the query without credentials.
    pub fn new(
        message: &Message<'_>,
        route: &Route,
        parameters: Parameters<'_>,
        identity: Option<&Arc<Identity>>,
    ) -> Result<Self, Rejection> {
        let mut path_and_query = match &route.rewrite {
            Some(rewrite) => rewrite.apply(parameters)?,
            None => message.path.clone().into_owned(),
        };
        let query = message.query.map(|query| route.policy.forward.query(query, identity.map(|identity| &**identity)));
        if let Some(query) = query.filter(|query| !query.is_empty()) {
            path_and_query.push('?');
            path_and_query.push_str(&query);
        }
        Ok(Self { path_and_query, authority: message.authority() })
    }
}

/// A request id: what a trusted proxy sent, or 32 hexadecimal digits.
#[derive(Debug, Clone)]
pub struct RequestId(http::HeaderValue);

impl RequestId {
    /// A new id. It is a name, not a secret: speed over unpredictability.
    pub fn random() -> Self {
        let mut text = [0; 32];
        hexadecimal(fastrand::u128(..), &mut text);
        Self(http::HeaderValue::from_bytes(&text).unwrap_or_else(|_| http::HeaderValue::from_static("0")))
    }

    /// The id of a trusted proxy: visible ASCII, at most 128 bytes. Without what JSON would have to escape, as it stands in bodies as it is.
    pub fn received(value: &http::HeaderValue) -> Option<Self> {
        let bytes = value.as_bytes();
        let usable =
            !bytes.is_empty() && bytes.len() <= 128 && bytes.iter().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'));
        usable.then(|| Self(value.clone()))
    }

    /// For a header.
    pub fn value(&self) -> &http::HeaderValue {
        &self.0
    }

    /// For the log and the body.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or("")
    }
}

/// Writes a number in the last digits of a text that is at least as long.
pub(super) fn hexadecimal(mut number: u128, text: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in text.iter_mut().rev() {
        *byte = DIGITS.get((number & 15) as usize).copied().unwrap_or(b'0');
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_over_when_it_can_stand_in_json_as_it_is() {
        for (given, taken) in
            [("0af7-65:1/x", true), ("", false), ("a b", false), ("a\"b", false), ("ab\\", false), (&"x".repeat(129), false)]
        {
            assert_eq!(RequestId::received(&http::HeaderValue::from_str(given).unwrap()).is_some(), taken, "{given}");
        }
    }
}
