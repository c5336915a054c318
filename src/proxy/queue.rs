//! The wait for a turn in a queue, and the look at whether its caller is still there.

use std::time::Duration;

use pingora::protocols::http::ServerSession;
use tokio::time::{Instant, sleep, sleep_until};

/// How often an HTTP/1 caller that waits is looked after.
const LOOK: Duration = Duration::from_millis(50);

/// States of a TCP connection (RFC 9293 section 3.3.2, by the numbers of Linux) in which nobody waits for an answer.
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;

/// Waits so long; whether the caller stayed.
pub(super) async fn stays(session: &mut ServerSession, wait: Duration) -> bool {
    let ends = Instant::now() + wait;
    if session.is_http2() {
        // Pending until the stream is reset; nothing of a body is read.
        return tokio::select! {
            () = sleep_until(ends) => true,
            _ = session.read_body_or_idle(true) => false,
        };
    }
    // Reading could tell as well, but would take what belongs to the body or to the next request. Whoever shuts down only its own direction
    // is taken for gone, as nginx does.
    while !is_gone(session) {
        let left = ends.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        sleep(left.min(LOOK)).await;
    }
    false
}

fn is_gone(session: &ServerSession) -> bool {
    let socket = session.digest().and_then(|digest| digest.socket_digest.as_ref());
    let state = socket.and_then(|socket| socket.tcp_info()).map(|connection| connection.tcpi_state);
    matches!(state, Some(CLOSE | CLOSE_WAIT))
}
