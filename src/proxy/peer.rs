//! The chosen backend as Pingora wants it, and connections to it as Pingora opens and verifies them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use pingora::connectors::TransportConnector;
use pingora::protocols::{ALPN, Stream};
use pingora::upstreams::peer::{HttpPeer, PeerOptions};
use pingora::utils::tls::CertKey;
use pingora::{BError, Error, ErrorType};

use super::duplex::STREAMS;
use crate::route::Route;

/// Where a kept connection leads: an address, and the group key of the upstream, which covers whom it trusts. One that was verified for an upstream
/// must not serve another.
pub(super) type Place = (SocketAddr, u64);

/// Where connections of a route to a backend lead.
pub(super) fn place(route: &Route, address: SocketAddr) -> Place {
    (address, route.upstream.group_key)
}

/// Opens connections to backends that are kept and spoken over by us, as the framework opens its own: what is verified is said in one place.
pub(super) struct Connector(TransportConnector);

impl Connector {
    pub(super) fn new() -> Self {
        Self(TransportConnector::new(None))
    }

    /// A connection of a route to a backend, which has proven itself where the upstream asks for that.
    pub(super) async fn open(&self, route: &Route, address: SocketAddr) -> Result<Stream, BError> {
        self.0.new_stream(&*build(route, address)).await.map_err(|error| error.into_up())
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// A server of an upstream that asks for HTTP/2, which did not agree to it.
pub(super) fn no_http2() -> BError {
    Error::explain(ErrorType::HandshakeError, "the server does not speak HTTP/2").into_up()
}

/// A peer with every deadline set: Pingora has none by itself.
pub(super) fn build(route: &Route, address: SocketAddr) -> Box<HttpPeer> {
    let upstream = &route.upstream;
    let tls = upstream.tls.as_ref();
    // An empty server name would switch verification off (pingora-core, connectors/tls); the grammar refuses one.
    let mut peer = HttpPeer::new(address, tls.is_some(), tls.map(|tls| tls.server_name.to_string()).unwrap_or_default());
    let timeouts = &upstream.timeouts;
    let options: &mut PeerOptions = &mut peer.options;
    options.connection_timeout = Some(timeouts.connect);
    options.total_connection_timeout = Some(timeouts.connect);
    options.read_timeout = Some(route.response_timeout);
    options.write_timeout = Some(route.response_timeout);
    options.idle_timeout = Some(timeouts.idle);
    if upstream.http2 {
        options.alpn = ALPN::H2;
        // Pingora's default of one makes a connection per request.
        options.max_h2_streams = STREAMS;
    }
    if let Some(tls) = tls {
        options.ca = tls.ca.clone();
        peer.client_cert_key = tls.client.as_ref().map(|(chain, key)| Arc::new(CertKey::new(chain.clone(), key.clone())));
        // Neither the CA nor the whole client certificate is part of Pingora's pool key.
        peer.group_key = upstream.group_key;
    }
    Box::new(peer)
}
