//! HTTP message signatures: whose keys sign, what a signature must cover, and how long it counts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map as Object, Value, json};

use super::decode::{Context, Decode, Fields, NonEmpty, Scalar, grammar, words};
use super::sigv4::Replay;
use super::values::{DAY, Lasting, MINUTE, SECOND, Scope, Text};
use super::yaml::Node;
use super::{File, Problem};
use crate::jose::{Algorithm, Key, jwk};
use crate::secret::Secret;

grammar! {
    /// Requests signed as RFC 9421 has it.
    pub struct Signature {
        /// The keys that sign.
        keys: Vec<SignatureKey> as SignatureKeysFile,
        /// What a signature must cover, a header where it is there; `content-digest` beside, where there is a body.
        required: Vec<Arc<str>> as NonEmpty<Vec<Component>> = "['@method', '@authority', '@path', '@query']",
        /// How long a signature counts from when it was created, its own `expires` or not.
        max_age: Duration as Lasting<SECOND, DAY> = "5m",
        /// How far clocks may differ.
        clock_skew: Duration as Lasting<0, {10 * MINUTE}> = "30s",
        /// What becomes of a signature that was seen before, on a request that changes something.
        replay: Replay = "refuse",
        /// The `tag` that a signature must have; those with another are not looked at. Absent: any or none.
        tag: Option<Arc<str>> as Option<QuotedText> = absent,
    }

    /// Where the keys are.
    struct WrittenSignatureKeys {
        /// A file of keys, read with the configuration.
        file: File,
    }

    /// A file of keys that sign messages.
    #[checked(check_keys)]
    struct SignatureKeyFile {
        /// The keys.
        keys: Vec<SignatureKey> as NonEmpty<Vec<SignatureKey>>,
    }

    /// A key that signs messages.
    #[one_of(secret, public_key)]
    struct WrittenSignatureKey {
        /// The `keyid` of its signatures.
        keyid: Arc<str> as QuotedText,
        /// A secret that both sides know, of at least 32 bytes: `hmac-sha256`.
        secret: Option<Secret> = absent,
        /// The signer's public key, in PEM.
        public_key: Option<PublicKeyFile> = absent,
        /// The algorithm. Absent: the one that the key has; an RSA key has two.
        algorithm: Option<SignatureAlgorithm> = absent,
        /// The accountable party.
        consumer: Arc<str> as Text,
        /// What the key may do.
        scopes: Vec<Arc<str>> as Vec<Scope> = "[]",
        /// The usage plan.
        plan: Option<Arc<str>> as Option<Text> = absent,
    }

    /// Where a public key is.
    struct PublicKeyFile {
        /// A file in PEM (`BEGIN PUBLIC KEY`).
        file: File,
    }
}

words! {
    /// How a message is signed (RFC 9421 section 3.3).
    pub enum SignatureAlgorithm {
        /// HMAC with SHA-256.
        HmacSha256 = "hmac-sha256",
        /// ECDSA on P-256 with SHA-256.
        EcdsaP256Sha256 = "ecdsa-p256-sha256",
        /// ECDSA on P-384 with SHA-384.
        EcdsaP384Sha384 = "ecdsa-p384-sha384",
        /// Ed25519.
        Ed25519 = "ed25519",
        /// RSASSA-PSS with SHA-512.
        RsaPssSha512 = "rsa-pss-sha512",
        /// RSASSA-PKCS1-v1_5 with SHA-256.
        RsaV15Sha256 = "rsa-v1_5-sha256",
    }
}

impl SignatureAlgorithm {
    const ALL: [Self; 6] =
        [Self::HmacSha256, Self::EcdsaP256Sha256, Self::EcdsaP384Sha384, Self::Ed25519, Self::RsaPssSha512, Self::RsaV15Sha256];

    /// The same signature in the words of JOSE.
    pub fn jose(self) -> Algorithm {
        match self {
            Self::HmacSha256 => Algorithm::Hs256,
            Self::EcdsaP256Sha256 => Algorithm::Es256,
            Self::EcdsaP384Sha384 => Algorithm::Es384,
            Self::Ed25519 => Algorithm::EdDsa,
            Self::RsaPssSha512 => Algorithm::Ps512,
            Self::RsaV15Sha256 => Algorithm::Rs256,
        }
    }

    /// The registered name.
    pub fn label(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            Self::EcdsaP384Sha384 => "ecdsa-p384-sha384",
            Self::Ed25519 => "ed25519",
            Self::RsaPssSha512 => "rsa-pss-sha512",
            Self::RsaV15Sha256 => "rsa-v1_5-sha256",
        }
    }
}

/// A key that signs messages, by its one algorithm.
#[derive(Debug, Clone)]
pub struct SignatureKey {
    /// The `keyid` of its signatures.
    pub keyid: Arc<str>,
    /// What verifies them.
    pub key: Arc<Key>,
    /// How they are made.
    pub algorithm: SignatureAlgorithm,
    /// The accountable party.
    pub consumer: Arc<str>,
    /// What the key may do.
    pub scopes: Vec<Arc<str>>,
    /// The usage plan.
    pub plan: Option<Arc<str>>,
}

impl Decode for SignatureKey {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let written = WrittenSignatureKey::decode(node, context)?;
        let read = match (&written.secret, &written.public_key) {
            (Some(secret), _) => Key::from_secret(secret.expose()).ok_or("the secret is too short"),
            (None, Some(public)) => jwk::from_pem(&public.file.bytes).map_err(|reason| match reason {
                "weak" => "a weak public key",
                "curve" => "a public key of a curve that nothing here signs with",
                "private" => "a private key",
                _ => "not a public key",
            }),
            (None, None) => return None,
        };
        let key = match read {
            Ok(key) => Arc::new(key),
            Err(problem) => return context.refuse(node, problem, "at least 32 bytes of secret, or a public key in PEM"),
        };
        let mut possible = SignatureAlgorithm::ALL.into_iter().filter(|algorithm| key.algorithms().contains(algorithm.jose()));
        let algorithm = match (written.algorithm, possible.next(), possible.next()) {
            (Some(algorithm), _, _) if key.algorithms().contains(algorithm.jose()) => algorithm,
            (None, Some(only), None) => only,
            (None, Some(_), Some(_)) => {
                return context.refuse(node, "an RSA key signs in two ways", "`algorithm: rsa-pss-sha512` or `rsa-v1_5-sha256`");
            }
            _ => return context.refuse(node, "the key does not sign so", "the algorithm of the key"),
        };
        let WrittenSignatureKey { keyid, consumer, scopes, plan, .. } = written;
        Some(Self { keyid, key, algorithm, consumer, scopes, plan })
    }

    fn expected() -> String {
        WrittenSignatureKey::expected()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        WrittenSignatureKey::schema(definitions)
    }
}

/// `{file: PATH}`, read and parsed.
struct SignatureKeysFile;

impl Decode for SignatureKeysFile {
    type Value = Vec<SignatureKey>;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self::Value> {
        let WrittenSignatureKeys { file } = WrittenSignatureKeys::decode(node, context)?;
        context.document::<SignatureKeyFile>(&file.path, &file.bytes).map(|file| file.keys)
    }

    fn expected() -> String {
        "`{file: PATH}`".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        WrittenSignatureKeys::schema(definitions)
    }
}

/// A part of a request that can be signed.
struct Component;

/// Those that are no header (RFC 9421 section 2.2) and have no parameters.
const DERIVED: [&str; 7] = ["@method", "@target-uri", "@authority", "@scheme", "@request-target", "@path", "@query"];

impl Scalar for Component {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        let header = || {
            let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
            // They hold the signature itself.
            lower && !["signature", "signature-input"].contains(&text) && http::HeaderName::from_bytes(text.as_bytes()).is_ok()
        };
        if DERIVED.contains(&text) || header() { Ok(text.into()) } else { Err("nothing that can be signed".to_owned()) }
    }

    fn expected() -> String {
        format!("a header in lower case, or one of {}", super::decode::listed(&DERIVED))
    }

    fn schema() -> Value {
        json!({"title": "signed part", "type": "string", "pattern": "^@?[a-z0-9!#$%&'*+.^_`|~-]+$"})
    }
}

/// A text that can stand in quotes in a header. Not quoted in problems: a secret may have been written here.
struct QuotedText;

impl Scalar for QuotedText {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        let sound = matches!(text.len(), 1..=256) && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\'));
        if sound { Ok(text.into()) } else { Err("not a text of a signature".to_owned()) }
    }

    fn expected() -> String {
        "at most 256 visible ASCII characters, without quotes and backslashes".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "text of a signature", "type": "string", "pattern": r"^[!#-\[\]-~]{1,256}$"})
    }
}

fn check_keys(file: &SignatureKeyFile, fields: &Fields<'_>, context: &mut Context<'_>) {
    let mut ids = HashMap::new();
    for (index, key) in file.keys.iter().enumerate() {
        if let Some(earlier) = ids.insert(&key.keyid, index) {
            let place = fields.item("keys", index, context);
            context.report(Problem::at(&place, format!("the keyid of keys[{earlier}] again")).expected("each key once"));
        }
    }
}
