//! A Pingora proxy with no filters: what the framework costs before anything is decided, and so the floor of `make bench-load`.
//!
//! It has the allocator, the build profile, the threads and the pool of the gateway, and nothing else of it: no route, no deadline, no log.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use clap::Parser;
use pingora::http::ResponseHeader;
use pingora::listeners::TcpSocketOptions;
use pingora::listeners::tls::TlsSettings;
use pingora::modules::http::HttpModules;
use pingora::protocols::ALPN;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use pingora::tls::ssl::SslVerifyMode;
use pingora::tls::x509::X509;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, OrErr, Result};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// As in `src/server.rs` and `src/proxy/peer.rs`.
const POOL: usize = 1024;
const STREAMS: usize = 100;

/// A Pingora proxy with no filters.
#[derive(Parser)]
struct Bare {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// The one origin
    #[arg(long)]
    origin: SocketAddr,
    /// Speak HTTP/2 to the origin, with prior knowledge
    #[arg(long)]
    http2: bool,
    /// Speak TLS to the origin, which proves this name
    #[arg(long, requires = "origin_ca")]
    origin_name: Option<String>,
    /// The authority of its certificate
    #[arg(long, requires = "origin_name")]
    origin_ca: Option<PathBuf>,
    /// A certificate chain, to serve TLS
    #[arg(long, requires = "key")]
    chain: Option<PathBuf>,
    /// Its private key
    #[arg(long)]
    key: Option<PathBuf>,
    /// The authority of client certificates, which are then required
    #[arg(long, requires = "chain")]
    client_ca: Option<PathBuf>,
    /// Refuse everything with this status, without asking the origin
    #[arg(long)]
    refuse: Option<u16>,
    #[arg(skip)]
    trusted: Option<Arc<Box<[X509]>>>,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, (): &mut ()) -> Result<bool> {
        let Some(status) = self.refuse else { return Ok(false) };
        let mut answer = ResponseHeader::build(status, Some(1))?;
        answer.insert_header("content-length", "0")?;
        session.write_response_header(Box::new(answer), true).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        let mut peer = HttpPeer::new(self.origin, self.origin_name.is_some(), self.origin_name.clone().unwrap_or_default());
        peer.options.ca.clone_from(&self.trusted);
        if self.http2 {
            peer.options.alpn = ALPN::H2;
            peer.options.max_h2_streams = STREAMS;
        }
        Ok(Box::new(peer))
    }
}

impl Bare {
    fn trusted(&self) -> Result<Option<Arc<Box<[X509]>>>> {
        let Some(file) = &self.origin_ca else { return Ok(None) };
        let pem = std::fs::read(file).or_err(ErrorType::FileReadError, "the authority of the origin")?;
        let certificates = X509::stack_from_pem(&pem).or_err(ErrorType::InvalidCert, "the authority of the origin")?;
        Ok(Some(Arc::new(certificates.into_boxed_slice())))
    }

    /// TLS as the gateway serves it: 1.2 and 1.3, HTTP/2 and HTTP/1.1; with client certificates no session is resumed.
    fn tls(&self) -> Result<Option<TlsSettings>> {
        let (Some(chain), Some(key)) = (&self.chain, &self.key) else { return Ok(None) };
        let mut settings = TlsSettings::intermediate(&chain.to_string_lossy(), &key.to_string_lossy())?;
        settings.enable_h2();
        if let Some(ca) = &self.client_ca {
            let failed = |error| Error::because(ErrorType::InternalError, "client certificates could not be set up", error);
            settings.set_ca_file(ca).map_err(failed)?;
            settings.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
            settings.set_session_id_context(b"bare").map_err(failed)?;
            settings.set_num_tickets(0).map_err(failed)?;
        }
        Ok(Some(settings))
    }
}

fn main() -> Result<()> {
    let mut bare = Bare::parse();
    bare.trusted = bare.trusted()?;
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: POOL, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let listen = bare.listen.to_string();
    let tls = bare.tls()?;
    let mut service = http_proxy_service(&server.configuration, bare);
    match tls {
        Some(settings) => service.add_tls_with_settings(&listen, Some(TcpSocketOptions::default()), settings),
        None => service.add_tcp(&listen),
    }
    server.add_service(service);
    server.run(RunArgs::default());
    Ok(())
}
