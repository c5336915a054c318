//! What listeners hand their connections to: each is heard by us or by the framework, as it speaks.

use std::sync::Arc;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::{ALPN, Stream};
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;

use super::handed_over::HandedOver;
use super::http2::Streams;
use super::{Gateway, http1};

/// The one of a process, shared by its listeners.
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
}

#[async_trait]
impl ServerApp for Front {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        if stream.selected_alpn_proto() == Some(ALPN::H2) {
            return self.streams.process_new(Box::new(HandedOver::http2(stream)), shutdown).await;
        }
        let rest = http1::serve(&self.gateway, stream, shutdown).await;
        self.framework.process_new(rest?, shutdown).await
    }

    async fn cleanup(&self) {
        self.framework.cleanup().await;
    }
}
