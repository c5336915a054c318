//! What listeners hand their connections to: each is heard by us or by the framework, as it speaks.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Stream};
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;

use super::connections::{Connections, Held};
use super::handed_over::HandedOver;
use super::http2::Streams;
use super::{Gateway, http1};
use crate::metrics::Metrics;

/// The one of a process, shared by its listeners.
pub struct Front {
    gateway: Gateway,
    framework: Arc<HttpProxy<Gateway>>,
    streams: Arc<Streams>,
    connections: Arc<Connections>,
}

/// A connection that is open, as the metrics have it.
struct Open<'m> {
    metrics: &'m Metrics,
    _held: Held,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

impl Front {
    /// A front of a gateway, and of the framework that serves the rest by the same.
    pub fn new(gateway: Gateway, framework: HttpProxy<Gateway>) -> Self {
        let framework = Arc::new(framework);
        let streams = Arc::new(Streams::new(gateway.clone(), Arc::clone(&framework)));
        Self { gateway, framework, streams, connections: Arc::default() }
    }

    /// Lets a connection in, if there is room for it.
    fn admit(&self, stream: &Stream) -> Option<Open<'_>> {
        let (metrics, snapshot) = (&*self.gateway.metrics, self.gateway.slot.load());
        let rules = &snapshot.server;
        let peer = stream.get_socket_digest().and_then(|socket| Some(socket.peer_addr()?.as_inet()?.ip()));
        // One that speaks for many is not one caller.
        match self.connections.hold(rules.connections, peer.filter(|peer| !rules.trusts(*peer))) {
            Ok(held) => {
                metrics.connections.inc();
                Some(Open { metrics, _held: held })
            }
            Err(full) => {
                metrics.count_connection_refused(full.label());
                None
            }
        }
    }
}

#[async_trait]
impl ServerApp for Front {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let _open = self.admit(&stream)?;
        if stream.selected_alpn_proto() == Some(ALPN::H2) {
            let patience = self.gateway.slot.load().server.header_timeout;
            return self.streams.process_new(Box::new(HandedOver::http2(stream, patience)), shutdown).await;
        }
        let mut connection = (stream, BytesMut::new());
        loop {
            let rest = http1::serve(&self.gateway, connection, shutdown).await?;
            let mut session = ServerSession::new_http1(Box::new(rest));
            // For how long is said with the request. A process that ends keeps no connection.
            session.set_keepalive((!*shutdown.borrow()).then_some(1));
            let (stream, _) = self.framework.process_new_http(session, shutdown).await?.consume();
            connection = HandedOver::take_back(stream)?;
        }
    }

    async fn cleanup(&self) {
        self.framework.cleanup().await;
    }
}
