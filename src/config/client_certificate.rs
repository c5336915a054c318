//! Client certificates as credentials: which of their names is an identity, and whose.

use std::sync::Arc;

use serde_json::{Map as Object, Value, json};

use super::decode::{Context, Decode, NonEmpty, Scalar, grammar, words};
use super::values::{Name, Scope, Text};
use super::yaml::{Kind, Node};
use super::{At, File};

grammar! {
    /// Certificates of TLS clients. A listener or `server.forwarded_certificates` says who vouches for them.
    pub struct ClientCertificate {
        /// Which name of the certificate is the caller's identity.
        identity: CertificateName,
        /// The identities that are accepted. `*` stands for a whole segment (see docs/mtls.md), and alone for every identity.
        allow: Vec<AllowedCertificate> as NonEmpty<Vec<AllowedCertificate>>,
        /// The authorities that may end a chain, in PEM, out of those that vouch for callers. Absent: every one of them.
        ca: Option<File> = absent,
    }

    /// Identities, and what they are to edgeward.
    struct WrittenAllowedCertificate {
        /// The identity, or a pattern of identities.
        identity: Arc<str> as Text,
        /// The accountable party. Absent: the identity itself.
        consumer: Option<Arc<str>> as Option<Text> = absent,
        /// The usage plan.
        plan: Option<Arc<str>> as Option<Name> = absent,
        /// What they are granted.
        scopes: Vec<Arc<str>> as Vec<Scope> = "[]",
    }
}

words! {
    /// A name in a certificate.
    pub enum CertificateName {
        /// A subject alternative name of the type URI, such as a SPIFFE id.
        SanUri = "san_uri",
        /// A subject alternative name of the type DNS.
        SanDns = "san_dns",
        /// A subject alternative name of the type email.
        SanEmail = "san_email",
        /// The common name of the subject.
        CommonName = "common_name",
    }
}

/// Identities that are accepted, and what they are to edgeward.
#[derive(Debug, Clone)]
pub struct AllowedCertificate {
    /// The identity, or a pattern of identities.
    pub identity: At<Arc<str>>,
    /// The accountable party; absent: the identity itself.
    pub consumer: Option<Arc<str>>,
    /// The usage plan.
    pub plan: Option<Arc<str>>,
    /// What they are granted.
    pub scopes: Vec<Arc<str>>,
}

impl Decode for AllowedCertificate {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let WrittenAllowedCertificate { identity, consumer, plan, scopes } = match &node.kind {
            Kind::Mapping(_) => WrittenAllowedCertificate::decode(node, context)?,
            _ => WrittenAllowedCertificate { identity: Text::decode(node, context)?, consumer: None, plan: None, scopes: Vec::new() },
        };
        Some(Self { identity: At { value: identity, place: context.place(node) }, consumer, plan, scopes })
    }

    fn expected() -> String {
        "an identity, or `{identity: IDENTITY, consumer: NAME, plan: NAME, scopes: [...]}`".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        json!({"anyOf": [<Text as Scalar>::schema(), WrittenAllowedCertificate::schema(definitions)]})
    }
}
