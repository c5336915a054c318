//! The process and its sockets: what is fixed at start, listeners with their certificates, the admin socket, the log.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::decode::{Context, Fields, NonEmpty, grammar, words};
use super::values::{DAY, HOUR, HeaderName, Lasting, Networks, Share, Sized, Within};
use super::{At, File, Problem};
use crate::secret::Secret;

grammar! {
    /// The process. Fixed at start but for `token_cache`: a reload that changes it is refused.
    #[checked(check_server)]
    pub struct Server {
        /// Worker threads; `0` is one per core.
        threads: usize as Within<usize, 0, 1024> = "0",
        /// Proxies whose word on the client's address is believed. Default: nobody's.
        trusted_proxies: Vec<IpNet> as Networks = "[]",
        /// The header in which trusted proxies name the client. It is walked from the right, past trusted proxies.
        client_ip_header: http::HeaderName as HeaderName = "X-Forwarded-For",
        /// Client certificates that trusted proxies forward in `Client-Cert` and `Client-Cert-Chain` (RFC 9440), verified here again. Absent: these
        /// headers are believed from nobody.
        forwarded_certificates: Option<ForwardedCertificates> = absent,
        /// How much memory verified tokens may take, so that the signature of each is checked once. A reload changes it at once, and lets go only of what there is no room for.
        token_cache: u64 as Sized<16777216, 1099511627776> = "256MiB",
        /// How much a client may bring.
        limits: ServerLimits = "{}",
        /// How long a client may take.
        timeouts: ServerTimeouts = "{}",
    }

    /// How much a client may bring.
    pub struct ServerLimits {
        /// Request line and headers together.
        header_bytes: u64 as Sized<1024, 1048576> = "32KiB",
        /// The number of headers.
        headers: usize as Within<usize, 1, 1000> = "100",
        /// The body.
        body: u64 as Sized<1, 1099511627776> = "10MiB",
        /// Open connections of all clients together; `0` is any number. One more is closed at once.
        connections: u64 as Within<u64, 0, 10_000_000> = "0",
        /// Open connections of one address, or one IPv6 network of 64 bits; `0` is any number. Those of `trusted_proxies` are not counted here.
        connections_per_ip: u64 as Within<u64, 0, 10_000_000> = "0",
    }

    /// How long a client may take.
    pub struct ServerTimeouts {
        /// For all of a request's head, from its first byte. Then the answer is 408.
        header: Duration as Lasting<1, HOUR> = "10s",
        /// Between two pieces of a request's body; for each 16 KiB of one whose length is known, and of an answer, which has to be taken.
        body: Duration as Lasting<1, HOUR> = "30s",
        /// Between two requests on a connection, and before the first.
        idle: Duration as Lasting<1, DAY> = "60s",
        /// How long requests may go on after a graceful stop has begun.
        drain: Duration as Lasting<0, HOUR> = "30s",
    }

    /// A socket for callers.
    pub struct Listener {
        /// Where to listen; port `0` lets the system choose.
        address: At<SocketAddr>,
        /// TLS. Absent: plain text.
        tls: Option<ListenerTls> = absent,
    }

    /// TLS of a listener.
    pub struct ListenerTls {
        /// The certificates. The caller's SNI chooses; the first serves callers that name no host. A host that no certificate has is refused.
        certificates: Vec<Certificate> as NonEmpty<Vec<Certificate>>,
        /// The certificates that callers show. Absent: none is asked for. To add or remove it needs a restart.
        client_certificates: Option<ClientCertificates> = absent,
    }

    /// The certificates that callers show, and who vouches for them.
    pub struct ClientCertificates {
        /// Whether a caller may come without one. One that is not good is refused either way.
        mode: ClientCertificateMode,
        /// The authorities that vouch for callers, in PEM.
        ca: File,
        /// Their revocation lists, in PEM: one of each authority in `ca`, signed by it and in date. Absent: nothing is revoked.
        crl: Option<File> = absent,
        /// How many intermediate authorities may stand between a certificate and the authority that ends its chain.
        depth: u32 as Within<u32, 0, 16> = "4",
    }

    /// Client certificates that a trusted proxy forwards, and who vouches for them.
    pub struct ForwardedCertificates {
        /// The authorities that vouch for callers, in PEM.
        ca: File,
        /// Their revocation lists, in PEM: one of each authority in `ca`, signed by it and in date. Absent: nothing is revoked.
        crl: Option<File> = absent,
        /// How many intermediate authorities may stand between a certificate and the authority that ends its chain.
        depth: u32 as Within<u32, 0, 16> = "4",
    }

    /// A certificate chain and its private key, in PEM.
    pub struct Certificate {
        /// The chain, the server's own certificate first.
        chain: File,
        /// The private key.
        key: At<Secret>,
    }

    /// The admin socket: health, readiness, metrics.
    #[checked(check_admin)]
    pub struct Admin {
        /// Where to listen.
        address: At<SocketAddr>,
        /// The bearer token that the admin API asks for. Required unless the address is loopback.
        token: Option<Secret> = absent,
    }

    /// What is written down.
    pub struct Telemetry {
        /// The access log: JSON lines on stdout.
        access_log: AccessLog = "{}",
    }

    /// The access log.
    pub struct AccessLog {
        /// The share of allowed requests that is written; refusals always are.
        sample: f64 as Share = "1.0",
    }
}

words! {
    /// Whether callers must show a certificate.
    pub enum ClientCertificateMode {
        /// Without one there is no connection.
        Required = "required",
        /// Without one only what asks for none is open.
        Optional = "optional",
    }
}

fn check_server(server: &Server, fields: &Fields<'_>, context: &mut Context<'_>) {
    // RFC 7239 has a syntax of its own; read as a list of addresses it would name nobody.
    if let (Some(node), "forwarded") = (fields.written("client_ip_header"), server.client_ip_header.as_str()) {
        context.key("client_ip_header", |context| {
            context.refuse::<()>(
                node,
                "`Forwarded` (RFC 7239) is not understood",
                "a header with a list of addresses, such as `X-Forwarded-For`",
            )
        });
    }
}

fn check_admin(admin: &Admin, _: &Fields<'_>, context: &mut Context<'_>) {
    if admin.token.is_none() && !admin.address.ip().to_canonical().is_loopback() {
        let message = "an admin socket that others can reach needs a `token`";
        context.report(Problem::at(&admin.address.place, message).expected("a loopback address such as `127.0.0.1:9901`, or a token"));
    }
}
