//! The chosen backend as Pingora wants it.

use std::net::SocketAddr;
use std::sync::Arc;

use pingora::protocols::ALPN;
use pingora::upstreams::peer::{HttpPeer, PeerOptions};
use pingora::utils::tls::CertKey;
use pingora::{BError, Error, ErrorType};

use super::duplex::STREAMS;
use crate::route::Route;

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
