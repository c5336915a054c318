//! The certificates of a listener, chosen by server name (RFC 6066 section 3).

use std::collections::HashMap;
use std::sync::Arc;

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::SslRef;
use openssl::x509::X509;

/// A chain, leaf first, and the key of its leaf.
#[derive(Debug, Clone)]
pub struct Certificate {
    chain: Vec<X509>,
    key: PKey<Private>,
}

impl Certificate {
    /// Reads PEM, and holds the key against the leaf.
    pub fn parse(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let chain = X509::stack_from_pem(chain).map_err(|error| format!("is not a PEM certificate chain: {error}"))?;
        let leaf = chain.first().ok_or("holds no certificate")?;
        let key = PKey::private_key_from_pem(key).map_err(|_| "the private key is not PEM, or is encrypted")?;
        let public = leaf.public_key().map_err(|error| format!("has no usable public key: {error}"))?;
        if !public.public_eq(&key) {
            return Err("the private key does not belong to the first certificate".to_owned());
        }
        Ok(Self { chain, key })
    }

    /// The chain and the key, for a client that authenticates with them.
    pub fn into_parts(self) -> (Vec<X509>, PKey<Private>) {
        (self.chain, self.key)
    }

    /// Presents this certificate in a handshake.
    pub fn present(&self, ssl: &mut SslRef) -> Result<(), ErrorStack> {
        let mut chain = self.chain.iter();
        if let Some(leaf) = chain.next() {
            ssl.set_certificate(leaf)?;
        }
        ssl.set_private_key(&self.key)?;
        for intermediate in chain {
            ssl.add_chain_cert(intermediate.clone())?;
        }
        Ok(())
    }

    /// The names it is good for: DNS subject alternative names, or the common name where there are none.
    fn names(&self) -> Vec<String> {
        let Some(leaf) = self.chain.first() else {
            return Vec::new();
        };
        let alternative = leaf.subject_alt_names();
        let mut names: Vec<String> = alternative.iter().flatten().filter_map(|name| name.dnsname()).map(str::to_ascii_lowercase).collect();
        if names.is_empty() {
            let common = leaf.subject_name().entries_by_nid(openssl::nid::Nid::COMMONNAME);
            names.extend(common.filter_map(|entry| Some(entry.data().to_string().ok()?.to_ascii_lowercase())));
        }
        names
    }
}

/// The certificates of one listener.
#[derive(Debug, Default)]
pub struct Certificates {
    first: Option<Arc<Certificate>>,
    exact: HashMap<String, Arc<Certificate>>,
    /// By what stands behind `*.`
    wildcard: HashMap<String, Arc<Certificate>>,
}

impl Certificates {
    /// Files the certificates under their names; the first one that has a name keeps it.
    pub fn new(certificates: Vec<Certificate>) -> Self {
        let mut filed = Self::default();
        for certificate in certificates {
            let certificate = Arc::new(certificate);
            for name in certificate.names() {
                let (table, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut filed.wildcard, parent.to_owned()),
                    None => (&mut filed.exact, name),
                };
                table.entry(name).or_insert_with(|| Arc::clone(&certificate));
            }
            filed.first.get_or_insert(certificate);
        }
        filed
    }

    /// The certificate for a server name. A client that names none is served the first; a name that no certificate has is refused.
    pub fn find(&self, name: Option<&str>) -> Option<&Certificate> {
        let Some(name) = name else {
            return self.first.as_deref();
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        // A wildcard stands for one whole label (RFC 6125 section 6.4.3).
        let by_wildcard = || self.wildcard.get(name.split_once('.')?.1);
        self.exact.get(&name).or_else(by_wildcard).map(|certificate| &**certificate)
    }
}
