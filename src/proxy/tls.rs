//! Certificates by server name, from the configuration that serves: a reload changes them without touching a listener.

use std::sync::Arc;

use async_trait::async_trait;
use openssl::ssl::{NameType, SslRef};
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::TlsSettings;
use pingora::{Error, ErrorType, Result};

use crate::snapshot::Slot;

/// The TLS settings of one listener: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
pub fn settings(slot: Arc<Slot>, listener: usize) -> Result<TlsSettings> {
    let mut settings = TlsSettings::with_callbacks(Box::new(CertificatesByName { slot, listener }))?;
    settings.enable_h2();
    // Sessions of one listener must not resume on another, whose rules may differ (CVE-2025-23419).
    let context = format!("edgeward-{listener}");
    settings
        .set_session_id_context(context.as_bytes())
        .map_err(|error| Error::because(ErrorType::InternalError, "the session id context could not be set", error))?;
    Ok(settings)
}

struct CertificatesByName {
    slot: Arc<Slot>,
    listener: usize,
}

#[async_trait]
impl TlsAccept for CertificatesByName {
    async fn certificate_callback(&self, ssl: &mut SslRef) {
        let snapshot = self.slot.load();
        let Some(certificates) = snapshot.certificates.get(self.listener) else {
            return;
        };
        // Without a certificate the handshake fails: an unknown name is never served as another.
        let Some(certificate) = certificates.find(ssl.servername(NameType::HOST_NAME)) else {
            return;
        };
        if let Err(error) = certificate.present(ssl) {
            tracing::error!(%error, "a certificate could not be used");
        }
    }
}
