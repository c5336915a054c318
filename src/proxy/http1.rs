//! Callers over HTTP/1, heard by us: what a plain request costs is mostly what the framework does to hear it (docs/decisions/0014).
//!
//! A request that can take the short way is read, decided and answered here. At the first that cannot, the connection is handed to the framework
//! as if nobody had read of it: upgrades, bodies that could end in two places, backends over HTTP/2, and whatever is
//! not understood.

mod connection;
mod date;
pub(super) mod head;

use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use super::Gateway;
use super::context::Context;
use connection::{Connection, Heard};

/// Serves a connection as long as its requests are ours; the rest of it, where one is not.
pub(super) async fn serve(gateway: &Gateway, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
    let mut connection = Connection::new(stream, shutdown.clone());
    let mut idle = gateway.slot.load().server.idle;
    loop {
        match connection.hear(idle).await {
            Heard::Request => {}
            Heard::Other => return Some(connection.hand_over()),
            Heard::End => return None,
        }
        let now = (gateway.clock)();
        connection.at(now);
        let mut context = Context::new(gateway.slot.load(), now);
        if !gateway.serve(&mut connection, &mut context).await {
            return Some(connection.hand_over());
        }
        idle = context.snapshot.server.idle;
        drop(context);
        if !connection.end().await {
            return None;
        }
    }
}
