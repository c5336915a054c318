//! What a test of the whole needs: a gateway, something behind it, somebody in front of it, and an issuer of tokens beside it.
//!
//! All of it is plain threads and blocking sockets, so that a test reads from top to bottom; only the tokens are signed with code of ours.

pub mod aws;
pub mod certificates;
pub mod client;
pub mod framing;
pub mod gateway;
pub mod issuer;
pub mod origin;
pub mod redis;
pub mod streams;

use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until it is so.
#[track_caller]
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
