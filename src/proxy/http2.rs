//! Callers over HTTP/2: the framework hears the connection and tells its streams apart; a plain request to a backend over HTTP/1.1 is served by us,
//! and so is any stream to a backend over HTTP/2.
//!
//! Its phases, and the session that they share, are made for more than such a request needs, and are moved about in memory with each
//! (docs/decisions/0016). A stream of any other kind goes to them as it came.

use std::sync::Arc;

use async_trait::async_trait;
use http::Method;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;

use super::caller::Caller;
use super::context::Context;
use super::{Gateway, respond};

/// What is done with each stream of a connection.
pub(super) struct Streams {
    gateway: Gateway,
    framework: Arc<HttpProxy<Gateway>>,
}

/// One stream, as the framework hears it.
pub(super) struct Stream(ServerSession);

impl Streams {
    /// Streams of a gateway, and of the framework that serves the rest by the same.
    pub(super) fn new(gateway: Gateway, framework: Arc<HttpProxy<Gateway>>) -> Self {
        Self { gateway, framework }
    }

    /// Serves a stream; whether it was ours.
    async fn serve(&self, stream: &mut Stream) -> bool {
        // The framework answers a CONNECT before it asks us anything.
        if *stream.method() == Method::CONNECT {
            return false;
        }
        let mut context = Context::new(self.gateway.slot.load(), (self.gateway.clock)());
        if !self.gateway.serve(stream, &mut context).await {
            return false;
        }
        drop(context);
        respond::linger(&mut stream.0).await;
        // Of an answer that broke off, the stream must not end as if that had been all of it; nothing happens to one that is whole.
        stream.0.shutdown().await;
        true
    }
}

impl AsRef<ServerSession> for Stream {
    fn as_ref(&self) -> &ServerSession {
        &self.0
    }
}

impl AsMut<ServerSession> for Stream {
    fn as_mut(&mut self) -> &mut ServerSession {
        &mut self.0
    }
}

#[async_trait]
impl HttpServerApp for Streams {
    async fn process_new_http(self: &Arc<Self>, session: ServerSession, shutdown: &ShutdownWatch) -> Option<ReusedHttpStream> {
        let mut stream = Stream(session);
        if self.serve(&mut stream).await {
            return None;
        }
        self.framework.process_new_http(stream.0, shutdown).await
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.framework.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.framework.server_options()
    }
}
