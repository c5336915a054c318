//! AWS Signature Version 4: whose keys sign, for which region and service, and what a signature may leave open.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Map as Object, Value, json};

use super::decode::{Context, Decode, Fields, NonEmpty, Scalar, grammar, words};
use super::keys::Time;
use super::values::{Lasting, MINUTE, Name, Networks, SECOND, Scope, Text};
use super::yaml::Node;
use super::{File, Problem};
use crate::secret::Secret;

grammar! {
    /// Requests signed with AWS Signature Version 4.
    pub struct Sigv4 {
        /// The region that a signature must name.
        region: Arc<str> as ScopePart,
        /// The service that a signature must name, such as `execute-api`. `s3` signs paths as S3 does.
        service: Arc<str> as ScopePart,
        /// The keys that sign.
        keys: Vec<SigningKeyEntry> as KeysFile,
        /// How far the time of a signature may be from ours, either way.
        clock_skew: Duration as Lasting<SECOND, {15 * MINUTE}> = "5m",
        /// Whether a signature may leave the body out (`UNSIGNED-PAYLOAD`).
        unsigned_payload: bool = "false",
        /// What becomes of a signature that was seen before, on a request that changes something.
        replay: Replay = "allow",
    }

    /// Where the keys are.
    struct WrittenKeysFile {
        /// A file of keys, read with the configuration.
        file: File,
    }

    /// A file of signing keys.
    #[checked(check_keys)]
    struct SigningKeyFile {
        /// The keys.
        keys: Vec<SigningKeyEntry> as NonEmpty<Vec<SigningKeyEntry>>,
    }

    /// A key that signs requests.
    pub struct SigningKeyEntry {
        /// Its public id.
        access_key_id: Arc<str> as AccessKeyId,
        /// The secret access key.
        secret: Secret,
        /// The session token that must come with it, for temporary keys. Absent: a request with a session token is refused.
        session_token: Option<Secret> = absent,
        /// The accountable party.
        consumer: Arc<str> as Text,
        /// What the key may do.
        scopes: Vec<Arc<str>> as Vec<Scope> = "[]",
        /// The routes it opens, by name. Absent: all that accept its authenticator.
        routes: Vec<Arc<str>> as NonEmpty<Vec<Name>> = absent,
        /// The networks it may come from. Absent: all.
        allow: Vec<IpNet> as NonEmpty<Networks> = absent,
        /// The usage plan.
        plan: Option<Arc<str>> as Option<Text> = absent,
        /// It signs nothing from then on. Absent: it does not expire.
        expires: Option<u64> as Option<Time> = absent,
    }
}

words! {
    /// What becomes of a signature that was seen before.
    pub enum Replay {
        /// It counts as long as its time does.
        Allow = "allow",
        /// It counts once, save for `GET`, `HEAD` and `OPTIONS`.
        Refuse = "refuse",
    }
}

/// `{file: PATH}`, read and parsed.
struct KeysFile;

impl Decode for KeysFile {
    type Value = Vec<SigningKeyEntry>;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self::Value> {
        let WrittenKeysFile { file } = WrittenKeysFile::decode(node, context)?;
        context.document::<SigningKeyFile>(&file.path, &file.bytes).map(|file| file.keys)
    }

    fn expected() -> String {
        "`{file: PATH}`".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        WrittenKeysFile::schema(definitions)
    }
}

/// A part of the scope that a signature names: `/` separates them.
struct ScopePart;

impl Scalar for ScopePart {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        let sound =
            matches!(text.len(), 1..=64) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
        if sound { Ok(text.into()) } else { Err("not a region or a service".to_owned()) }
    }

    fn expected() -> String {
        "at most 64 of `a-z`, `0-9`, `-`, `_` and `.`, such as `eu-west-1`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "part of a scope", "type": "string", "pattern": "^[a-z0-9._-]{1,64}$"})
    }
}

/// The public id of a signing key. Not quoted in problems: its secret may have been written here.
struct AccessKeyId;

impl Scalar for AccessKeyId {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        let sound = matches!(text.len(), 1..=128) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if sound { Ok(text.into()) } else { Err("not the id of a key".to_owned()) }
    }

    fn expected() -> String {
        "at most 128 letters, digits, `-`, `_` and `.`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "access key id", "type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"})
    }
}

fn check_keys(file: &SigningKeyFile, fields: &Fields<'_>, context: &mut Context<'_>) {
    let mut ids = HashMap::new();
    for (index, key) in file.keys.iter().enumerate() {
        let place = fields.item("keys", index, context);
        if let Some(earlier) = ids.insert(&key.access_key_id, index) {
            context.report(Problem::at(&place, format!("the access_key_id of keys[{earlier}] again")).expected("each key once"));
        }
        // HMAC takes any key; a short one is found by trying.
        if key.secret.expose().len() < 16 {
            context.report(Problem::at(&place, "the secret is too short").expected("at least 16 bytes"));
        }
    }
}
