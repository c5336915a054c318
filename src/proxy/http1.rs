//! Callers over HTTP/1, heard by us: what a plain request costs is mostly what the framework does to hear it (docs/decisions/0014).
//!
//! A request that can take the short way is read, decided and answered here. For one that cannot, the connection is handed to the framework
//! as if nobody had read of it: upgrades, other forms of the target, bodies that could end in two places, backends over HTTP/2. Where it can go on
//! after that, it comes back: so each head is waited for here, and for no longer than it may take.

mod connection;
mod date;
pub(super) mod head;

use bytes::BytesMut;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use super::Gateway;
use super::context::Context;
use super::handed_over::HandedOver;
use connection::{Connection, Heard, Waits};

/// Serves a connection, of which this was read, as long as its requests are ours; all that is left of it, where one is not.
pub(super) async fn serve(gateway: &Gateway, (stream, read): (Stream, BytesMut), shutdown: &ShutdownWatch) -> Option<HandedOver> {
    let mut connection = Connection::new(stream, read, shutdown.clone());
    let mut waits = Waits::of(&gateway.slot.load().server);
    loop {
        let refused = match connection.hear(waits).await {
            Heard::Request => None,
            Heard::Refused(rejection) => Some(rejection),
            Heard::Other => return Some(connection.hand_over()),
            Heard::End => return None,
        };
        let now = (gateway.clock)();
        connection.at(now);
        let mut context = Context::new(gateway.slot.load(), now);
        match refused {
            Some(rejection) => gateway.refuse_unheard(&mut connection, &mut context, rejection).await,
            None if gateway.serve(&mut connection, &mut context).await => {}
            None => return Some(connection.hand_over()),
        }
        waits = Waits::of(&context.snapshot.server);
        drop(context);
        if !connection.end().await {
            return None;
        }
    }
}
