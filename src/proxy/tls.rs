//! What a TLS handshake settles, by the configuration that serves: our certificate by server name, and the caller's certificate.
//!
//! A listener that asks for client certificates resumes no session: a resumed handshake shows no certificate, and a ticket from before a
//! change of the authorities would carry rights that a full handshake does not give any more (CVE-2025-23419).

use std::any::Any;
use std::net::Ipv4Addr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{NameType, Ssl, SslMode, SslOptions, SslRef, SslSessionCacheMode, SslVerifyMode};
use openssl::x509::{X509, X509VerifyResult};
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::TlsSettings;
use pingora::tls::ext::ssl_set_verify_cert_store;
use pingora::{Error, ErrorType, Result};

use super::caller::Caller;
use crate::net::client_certificates::{ClientAuthorities, Verified};
use crate::request::message::Message;
use crate::request::{ClientCertificate, Now, Rejection};
use crate::snapshot::{ClientCertificates, Slot, Snapshot};

/// The TLS settings of one listener: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
pub fn settings(slot: Arc<Slot>, listener: usize, asks_for_certificates: bool) -> Result<TlsSettings> {
    let failed = |error| Error::because(ErrorType::InternalError, "TLS could not be set up", error);
    let judged_by = Ssl::new_ex_index().map_err(failed)?;
    let mut settings = TlsSettings::with_callbacks(Box::new(Handshake { slot, listener, judged_by }))?;
    settings.enable_h2();
    // AES-128 with SHA-256 comes first in our list, and half the clients name AES-256 with SHA-384 first: a handshake hashes more than it signs, and
    // processors have instructions for SHA-256. Who prefers ChaCha20 has none for AES, and gets what it prefers.
    settings.set_options(SslOptions::CIPHER_SERVER_PREFERENCE | SslOptions::PRIORITIZE_CHACHA);
    // What is shown is what is configured: without a chain of ours OpenSSL would look for one among those it trusts, in each handshake.
    settings.set_mode(SslMode::NO_AUTO_CHAIN);
    // One ticket is enough for one connection (RFC 8446 section 4.6.1), and each is a tenth of a handshake.
    settings.set_num_tickets(1).map_err(failed)?;
    // Sessions of one listener must not resume on another, whose rules may differ (CVE-2025-23419).
    let context = format!("edgeward-{listener}");
    settings.set_session_id_context(context.as_bytes()).map_err(failed)?;
    if asks_for_certificates {
        settings.set_options(SslOptions::NO_TICKET);
        settings.set_num_tickets(0).map_err(failed)?;
        settings.set_session_cache_mode(SslSessionCacheMode::OFF);
    }
    Ok(settings)
}

struct Handshake {
    slot: Arc<Slot>,
    listener: usize,
    /// Where a handshake keeps the authorities that judge the caller's certificate: a reload may change them before it is complete.
    judged_by: Index<Ssl, Arc<ClientAuthorities>>,
}

impl Handshake {
    fn ask_for_certificate(&self, ssl: &mut SslRef, clients: &ClientCertificates) -> Result<(), ErrorStack> {
        let mode = match clients.required {
            true => SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT,
            false => SslVerifyMode::PEER,
        };
        ssl.set_verify_callback(mode, |good, context| {
            let of_caller = good && context.error_depth() == 0;
            if of_caller && context.current_cert().is_none_or(|leaf| ClientCertificate::read(leaf, leaf).is_err()) {
                context.set_error(X509VerifyResult::APPLICATION_VERIFICATION);
                return false;
            }
            good
        });
        ssl_set_verify_cert_store(ssl, clients.authorities.store())?;
        for authority in clients.authorities.certificates() {
            ssl.add_client_ca(authority)?;
        }
        ssl.set_ex_data(self.judged_by, Arc::clone(&clients.authorities));
        Ok(())
    }

    fn client(&self, ssl: &SslRef) -> Option<Client> {
        let leaf = ssl.peer_certificate()?;
        // Without them there was no full handshake, and nothing was verified.
        let authorities = Arc::clone(ssl.ex_data(self.judged_by)?);
        let chain = ssl.verified_chain().filter(|_| ssl.verify_result() == X509VerifyResult::OK && !ssl.session_reused())?;
        let verified = authorities.read(chain).ok()?;
        let between = ssl.peer_cert_chain().into_iter().flatten().map(|link| link.to_owned()).collect();
        Some(Client { leaf, between, judged: ArcSwap::from_pointee(Judged { authorities, verified }) })
    }
}

#[async_trait]
impl TlsAccept for Handshake {
    async fn certificate_callback(&self, ssl: &mut SslRef) {
        let snapshot = self.slot.load();
        let Some(listener) = snapshot.listeners.get(self.listener) else {
            return;
        };
        // Without a certificate of ours the handshake fails: an unknown name is never served as another, nor a caller left unasked.
        let Some(certificate) = listener.certificates.find(ssl.servername(NameType::HOST_NAME)) else {
            return;
        };
        let asked = listener.clients.as_ref().map_or(Ok(()), |clients| self.ask_for_certificate(ssl, clients));
        if let Err(error) = asked.and_then(|()| certificate.present(ssl)) {
            tracing::error!(%error, "a certificate could not be used");
        }
    }

    async fn handshake_complete_callback(&self, ssl: &SslRef) -> Option<Arc<dyn Any + Send + Sync>> {
        let server_name = ssl.servername(NameType::HOST_NAME);
        let server_name = server_name.map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase().into());
        Some(Arc::new(TlsConnection { listener: self.listener, server_name, client: self.client(ssl) }))
    }
}

/// What the handshake of a connection settled.
pub(super) struct TlsConnection {
    /// The index of its listener.
    pub listener: usize,
    /// The name that the caller asked for, in the form of a request's host.
    server_name: Option<Box<str>>,
    client: Option<Client>,
}

/// The caller's certificate, kept so that it can be judged anew.
struct Client {
    leaf: X509,
    between: Vec<X509>,
    judged: ArcSwap<Judged>,
}

/// By whom a chain was found good.
struct Judged {
    authorities: Arc<ClientAuthorities>,
    verified: Verified,
}

impl TlsConnection {
    /// The certificate of the caller, for a request to this host, by the rules that serve now: a connection has no more rights than a
    /// new one would get.
    pub(super) fn certificate(
        &self,
        clients: &ClientCertificates,
        host: &str,
        now: Now,
    ) -> Result<Option<Arc<ClientCertificate>>, Rejection> {
        let asked_for = match &self.server_name {
            Some(name) => **name == *host,
            // An address cannot be a server name (RFC 6066 section 3), so who asks for one names none.
            None => host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok(),
        };
        if !asked_for {
            return Err(Rejection::Misdirected("server_name"));
        }
        match &self.client {
            Some(client) => client.holds(&clients.authorities, now).map(Some).map_err(Rejection::Misdirected),
            None if clients.required => Err(Rejection::Misdirected("certificate_missing")),
            None => Ok(None),
        }
    }
}

impl Client {
    fn holds(&self, authorities: &Arc<ClientAuthorities>, now: Now) -> Result<Arc<ClientCertificate>, &'static str> {
        let judged = self.judged.load();
        let verified = if Arc::ptr_eq(&judged.authorities, authorities) {
            judged.verified.clone()
        } else {
            let verified = match judged.authorities.same_as(authorities) {
                true => judged.verified.clone(),
                false => authorities.verify(&self.leaf, &self.between)?,
            };
            self.judged.store(Arc::new(Judged { authorities: Arc::clone(authorities), verified: verified.clone() }));
            verified
        };
        match verified.good_until >= now.unix {
            true => Ok(verified.certificate),
            false => Err("certificate_expired"),
        }
    }
}
/// The certificate that was proven for the caller: the connection's own, or, where the configuration says that they forward them, the one that
/// a trusted proxy forwards. Such a proxy's own certificate never stands for the caller that it forwards none of.
pub(super) fn certificate(
    caller: &impl Caller,
    snapshot: &Snapshot,
    message: &Message<'_>,
    client: &crate::request::Client,
    now: Now,
) -> Result<Option<Arc<ClientCertificate>>, Rejection> {
    let own = match caller.tls() {
        None => None,
        Some(tls) => {
            let connection = tls.extension.get::<TlsConnection>().ok_or(Rejection::Internal("no_handshake"))?;
            let listener = snapshot.listeners.get(connection.listener).ok_or(Rejection::Internal("no_listener"))?;
            let clients = listener.clients.as_ref();
            clients.map(|clients| connection.certificate(clients, &message.host, now)).transpose()?.flatten()
        }
    };
    match &snapshot.server.forwarded {
        Some(forwarded) if client.through_trusted_proxy => forwarded.certificate(message.headers, now),
        _ => Ok(own),
    }
}
