//! Who vouches for callers: the authorities whose client certificates are accepted, what they have revoked, and the verdict on a chain.
//!
//! OpenSSL judges the chains, with its own reading of the system's clock. Revocation lists are checked twice: here, when the
//! configuration is read, so that an unusable one refuses the candidate, and by OpenSSL with each chain, so that one that ends meanwhile
//! refuses the callers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::error::ErrorStack;
use openssl::sha::{Sha256, sha256};
use openssl::ssl::SslFiletype;
use openssl::stack::{Stack, StackRef};
use openssl::x509::store::{X509Lookup, X509Store, X509StoreBuilder, X509StoreRef};
use openssl::x509::verify::{X509VerifyFlags, X509VerifyParam};
use openssl::x509::{X509, X509Crl, X509PurposeId, X509Ref, X509StoreContext, X509VerifyResult};
use quick_cache::sync::Cache;

use crate::request::certificate::{self, ClientCertificate};
use crate::request::{Now, Rejection};

/// OpenSSL's level for keys and signatures of at least 112 bits: RSA from 2048, no SHA-1.
const SECURITY_LEVEL: i32 = 2;

/// Verified chains that are remembered for each forwarding configuration.
const FORWARDED: usize = 10_000;

/// The authorities of one listener, or of what trusted proxies forward.
pub struct ClientAuthorities {
    store: X509Store,
    certificates: Vec<X509>,
    /// When the first of the revocation lists ends, since the Unix epoch.
    lists_end: Option<Duration>,
    digest: [u8; 32],
}

/// A revocation file: its path, by which OpenSSL reads it, and its content.
#[derive(Debug, Clone, Copy)]
pub struct RevocationFile<'a> {
    /// Where it is.
    pub path: &'a Path,
    /// What was read there.
    pub bytes: &'a [u8],
}

/// A certificate whose chain was found good.
#[derive(Debug, Clone)]
pub struct Verified {
    /// Whom it names.
    pub certificate: Arc<ClientCertificate>,
    /// The first end of any certificate of its chain or of a revocation list, since the Unix epoch.
    pub good_until: Duration,
}

/// The authorities in a PEM file.
///
/// # Errors
/// What is wrong with the file, to follow its name.
pub fn authorities(pem: &[u8]) -> Result<Vec<X509>, String> {
    let certificates = X509::stack_from_pem(pem).map_err(|error| format!("is not PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    Ok(certificates)
}

impl ClientAuthorities {
    /// Builds the means to judge chains.
    ///
    /// # Errors
    /// What is wrong with the revocation file, to follow its name.
    pub fn new(certificates: Vec<X509>, revoked: Option<RevocationFile<'_>>, depth: u32) -> Result<Self, String> {
        let mut digest = Sha256::new();
        digest.update(&depth.to_be_bytes());
        for certificate in &certificates {
            digest.update(&sha256(&certificate.to_der().map_err(unusable)?));
        }
        digest.update(&sha256(revoked.map_or(&[], |file| file.bytes)));
        let lists_end = revoked.map(|file| check_lists(file.bytes, &certificates)).transpose()?;
        let store = store(&certificates, revoked, depth)?;
        Ok(Self { store, certificates, lists_end, digest: digest.finish() })
    }

    /// What a handshake verifies against.
    pub fn store(&self) -> &X509StoreRef {
        &self.store
    }

    /// The authorities, to tell callers which certificates are worth showing.
    pub fn certificates(&self) -> &[X509] {
        &self.certificates
    }

    /// Whether both would give the same verdict on every chain.
    pub fn same_as(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Judges a certificate, with those that may stand between it and an authority.
    ///
    /// # Errors
    /// The reason word of the refusal.
    pub fn verify(&self, leaf: &X509Ref, between: &[X509]) -> Result<Verified, &'static str> {
        let internal = |_: ErrorStack| UNVERIFIED;
        let mut untrusted = Stack::new().map_err(internal)?;
        for certificate in between {
            untrusted.push(certificate.clone()).map_err(internal)?;
        }
        let mut context = X509StoreContext::new().map_err(internal)?;
        let verdict = context.init(&self.store, leaf, &untrusted, |context| {
            Ok(match context.verify_cert()? {
                true => context.chain().ok_or(UNVERIFIED).and_then(|chain| self.read(chain)),
                false => Err(reason(context.error())),
            })
        });
        verdict.map_err(internal)?
    }

    /// Reads a chain that a handshake has verified against [`store`](Self::store), the caller's certificate first.
    ///
    /// # Errors
    /// The reason word of the refusal, for names that must not be believed.
    pub fn read(&self, chain: &StackRef<X509>) -> Result<Verified, &'static str> {
        let (leaf, anchor) = chain.iter().next().zip(chain.iter().last()).ok_or(UNVERIFIED)?;
        let ends = chain.iter().map(|link| certificate::unix(link.not_after()).unwrap_or_default());
        let good_until = ends.chain(self.lists_end).min().unwrap_or_default();
        Ok(Verified { certificate: Arc::new(ClientCertificate::read(leaf, anchor)?), good_until })
    }
}

impl std::fmt::Debug for ClientAuthorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientAuthorities").field("certificates", &self.certificates.len()).finish_non_exhaustive()
    }
}

/// Certificates that trusted proxies forward (RFC 9440), judged here again, and the verdicts that were good.
///
/// The verdicts go with the configuration: after a reload every chain is judged anew.
#[derive(Debug)]
pub struct ForwardedCertificates {
    authorities: ClientAuthorities,
    /// By the hash of the header lines.
    verified: Cache<[u8; 32], Verified>,
}

impl ForwardedCertificates {
    /// Judges by these authorities.
    pub fn new(authorities: ClientAuthorities) -> Self {
        Self { authorities, verified: Cache::new(FORWARDED) }
    }

    /// The caller's certificate as a trusted proxy forwards it; none when it forwards none. Whether the proxy is trusted was asked before.
    ///
    /// # Errors
    /// A header that is not what RFC 9440 says, and a chain that a handshake would not accept.
    pub fn certificate(&self, headers: &HeaderMap, now: Now) -> Result<Option<Arc<ClientCertificate>>, Rejection> {
        let mut hash = Sha256::new();
        for name in certificate::HEADERS {
            for line in headers.get_all(name) {
                hash.update(line.as_bytes());
                // No line has one.
                hash.update(b"\n");
            }
            hash.update(b"\n");
        }
        let key = hash.finish();
        let verified = match self.verified.get(&key) {
            Some(known) => known,
            None => {
                let certificates = certificate::forwarded(headers).map_err(Rejection::BadRequest)?;
                let Some((leaf, between)) = certificates.split_first() else {
                    return Ok(None);
                };
                let verified = self.authorities.verify(leaf, between).map_err(refused)?;
                self.verified.insert(key, verified.clone());
                verified
            }
        };
        match verified.good_until >= now.unix {
            true => Ok(Some(verified.certificate)),
            false => Err(Rejection::CredentialExpired),
        }
    }
}

fn refused(reason: &'static str) -> Rejection {
    match reason {
        "certificate_expired" => Rejection::CredentialExpired,
        "certificate_revoked" => Rejection::CredentialRevoked,
        reason => Rejection::CredentialInvalid(reason),
    }
}

const UNVERIFIED: &str = "certificate_chain";

/// The reason word of a verdict.
fn reason(verdict: X509VerifyResult) -> &'static str {
    // X509_V_ERR_CERT_HAS_EXPIRED and X509_V_ERR_CERT_REVOKED, which the bindings have no names for.
    match verdict.as_raw() {
        10 => "certificate_expired",
        23 => "certificate_revoked",
        _ => UNVERIFIED,
    }
}

fn unusable(error: ErrorStack) -> String {
    format!("cannot be used: {error}")
}

fn store(certificates: &[X509], revoked: Option<RevocationFile<'_>>, depth: u32) -> Result<X509Store, String> {
    let mut builder = X509StoreBuilder::new().map_err(unusable)?;
    for certificate in certificates {
        builder.add_cert(certificate.clone()).map_err(unusable)?;
    }
    let mut rules = X509VerifyParam::new().map_err(unusable)?;
    rules.set_purpose(X509PurposeId::SSL_CLIENT).map_err(unusable)?;
    rules.set_depth(i32::try_from(depth).map_err(|_| "too deep".to_owned())?);
    rules.set_auth_level(SECURITY_LEVEL);
    let mut flags = X509VerifyFlags::TRUSTED_FIRST;
    if let Some(file) = revoked {
        flags |= X509VerifyFlags::CRL_CHECK | X509VerifyFlags::CRL_CHECK_ALL;
        // The bindings take revocation lists from a path alone. What stands there by now must be what was checked, or the reload that the
        // change of the file brings about comes to another verdict.
        let path = file.path.to_str().filter(|path| !path.contains('\0')).ok_or("is not named in UTF-8")?;
        let lookup = builder.add_lookup(X509Lookup::file()).map_err(unusable)?;
        let read = lookup.load_crl_file(path, SslFiletype::PEM).map_err(unusable)?;
        if usize::try_from(read).ok() != Some(blocks(file.bytes).count()) {
            return Err("changed while it was read".to_owned());
        }
    }
    rules.set_flags(flags).map_err(unusable)?;
    builder.set_param(&rules).map_err(unusable)?;
    Ok(builder.build())
}

/// Each list of the file as PEM.
fn blocks(pem: &[u8]) -> impl Iterator<Item = &[u8]> {
    const BEGIN: &[u8] = b"-----BEGIN X509 CRL-----";
    memchr::memmem::find_iter(pem, BEGIN).map(|at| pem.get(at..).unwrap_or_default())
}

/// Checks that each list is in date and signed by an authority, and that each authority has one; answers when the first of them ends.
fn check_lists(pem: &[u8], authorities: &[X509]) -> Result<Duration, String> {
    let now = Asn1Time::days_from_now(0).map_err(unusable)?;
    let mut covered = vec![false; authorities.len()];
    let mut first_end = Duration::MAX;
    let mut lists = 0;
    for block in blocks(pem) {
        lists += 1;
        let list = X509Crl::from_pem(block).map_err(|error| format!("is not PEM: list {lists}: {error}"))?;
        let end = list.next_update().ok_or_else(|| format!("list {lists} does not say when the next one comes"))?;
        if !is_before(&now, end) {
            return Err(format!("list {lists} ended at {end}"));
        }
        if is_before(&now, list.last_update()) {
            return Err(format!("list {lists} begins at {}", list.last_update()));
        }
        let mut signed = false;
        for (authority, covered) in authorities.iter().zip(&mut covered) {
            let same_name = authority.subject_name().try_cmp(list.issuer_name()).is_ok_and(std::cmp::Ordering::is_eq);
            if same_name && authority.public_key().is_ok_and(|key| list.verify(&key).unwrap_or(false)) {
                *covered = true;
                signed = true;
            }
        }
        if !signed {
            return Err(format!("list {lists} is signed by none of the authorities in `ca`"));
        }
        first_end = first_end.min(certificate::unix(end).ok_or("has a time that is none")?);
    }
    if lists == 0 {
        return Err("holds no revocation list in PEM".to_owned());
    }
    // Without its list OpenSSL refuses all that an authority has signed.
    match covered.iter().position(|covered| !covered) {
        Some(at) => Err(format!("has no list of the {}. authority in `ca`", at + 1)),
        None => Ok(first_end),
    }
}

fn is_before(earlier: &Asn1TimeRef, later: &Asn1TimeRef) -> bool {
    earlier.compare(later).is_ok_and(std::cmp::Ordering::is_lt)
}
