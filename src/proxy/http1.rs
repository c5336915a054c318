//! Callers over HTTP/1, heard by us: what a plain request costs is mostly what the framework does to hear it (docs/decisions/0014).
//!
//! A request that can take the short way is read, decided and answered here. At the first that cannot, the connection is handed to the framework
//! as if nobody had read of it: HTTP/2, upgrades, bodies that are long or of unknown length, backends behind TLS or HTTP/2, and
//! whatever is not understood.

mod connection;
mod date;
mod gathered;
mod handed_over;
pub(super) mod head;

use std::sync::Arc;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::{ALPN, Stream};
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;

use super::Gateway;
use super::context::Context;
use super::http2::Streams;
use connection::{Connection, Heard};
use handed_over::HandedOver;

/// What listeners hand their connections to.
pub struct Front {
    gateway: Gateway,
    framework: Arc<HttpProxy<Gateway>>,
    streams: Arc<Streams>,
}

impl Front {
    /// A front of a gateway, and of the framework that serves the rest by the same.
    pub fn new(gateway: Gateway, framework: HttpProxy<Gateway>) -> Self {
        let framework = Arc::new(framework);
        let streams = Arc::new(Streams::new(gateway.clone(), Arc::clone(&framework)));
        Self { gateway, framework, streams }
    }

    /// Serves a connection as long as its requests are ours; the rest of it, where one is not.
    async fn serve(&self, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let mut connection = Connection::new(stream, shutdown.clone());
        let mut idle = self.gateway.slot.load().server.idle;
        loop {
            match connection.hear(idle).await {
                Heard::Request => {}
                Heard::Other => return Some(connection.hand_over()),
                Heard::End => return None,
            }
            let now = (self.gateway.clock)();
            connection.at(now);
            let mut context = Context::new(self.gateway.slot.load(), now);
            if !self.gateway.serve(&mut connection, &mut context).await {
                return Some(connection.hand_over());
            }
            idle = context.snapshot.server.idle;
            drop(context);
            if !connection.end().await {
                return None;
            }
        }
    }
}

#[async_trait]
impl ServerApp for Front {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        if stream.selected_alpn_proto() == Some(ALPN::H2) {
            return self.streams.process_new(Box::new(HandedOver::http2(stream)), shutdown).await;
        }
        let rest = self.serve(stream, shutdown).await;
        self.framework.process_new(rest?, shutdown).await
    }

    async fn cleanup(&self) {
        self.framework.cleanup().await;
    }
}
