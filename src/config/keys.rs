//! A file of API keys beside the configuration, as strict as it is.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Map as Object, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Problem;
use super::decode::{Context, Decode, Fields, NonEmpty, Scalar, grammar};
use super::values::{Name, Networks, Scope, Text};
use super::yaml::Node;

grammar! {
    /// A file of API keys.
    #[checked(check_keys)]
    pub(crate) struct KeyFile {
        /// The keys.
        keys: Vec<KeyEntry>,
    }

    /// An API key: what is known of it at rest.
    struct WrittenKey {
        /// Its public id.
        id: Arc<str> as KeyId,
        /// The SHA-256 of the whole key as it is presented, in 64 hexadecimal digits.
        sha256: [u8; 32] as Sha256,
        /// The hash before a rotation, and when it ends.
        previous: Option<WrittenPrevious> = absent,
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
        /// When it was made.
        created: Option<u64> as Option<Time> = absent,
        /// It opens nothing before.
        not_before: Option<u64> as Option<Time> = absent,
        /// It opens nothing from then on. Absent: it does not expire.
        expires: Option<u64> as Option<Time> = absent,
        /// It was revoked then.
        revoked: Option<u64> as Option<Time> = absent,
    }

    /// The hash before a rotation.
    struct WrittenPrevious {
        /// The SHA-256 of the key before.
        sha256: [u8; 32] as Sha256,
        /// It opens nothing from then on.
        ends: u64 as Time,
    }
}

/// One record of a key file. Times are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyEntry {
    /// The public id.
    pub id: Arc<str>,
    /// The SHA-256 of the whole key as presented.
    pub sha256: [u8; 32],
    /// The hash before a rotation, and when it ends.
    pub previous_sha256: Option<([u8; 32], u64)>,
    /// The accountable party.
    pub consumer: Arc<str>,
    /// What the key may do.
    pub scopes: Vec<Arc<str>>,
    /// The routes it opens; empty: all that accept its authenticator.
    pub routes: Vec<Arc<str>>,
    /// The networks it may come from; empty: all.
    pub allow: Vec<IpNet>,
    /// The usage plan.
    pub plan: Option<Arc<str>>,
    /// When it was made.
    pub created: Option<u64>,
    /// It opens nothing before.
    pub not_before: Option<u64>,
    /// It opens nothing from then on.
    pub expires: Option<u64>,
    /// It was revoked then.
    pub revoked: Option<u64>,
}

impl Decode for KeyEntry {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let key = WrittenKey::decode(node, context)?;
        Some(Self {
            id: key.id,
            sha256: key.sha256,
            previous_sha256: key.previous.map(|previous| (previous.sha256, previous.ends)),
            consumer: key.consumer,
            scopes: key.scopes,
            routes: key.routes,
            allow: key.allow,
            plan: key.plan,
            created: key.created,
            not_before: key.not_before,
            expires: key.expires,
            revoked: key.revoked,
        })
    }

    fn expected() -> String {
        WrittenKey::expected()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        WrittenKey::schema(definitions)
    }
}

/// The public id of a key. Not quoted in problems: a whole key may have been written here.
struct KeyId;

impl Scalar for KeyId {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        let sound = matches!(text.len(), 1..=64) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if sound { Ok(text.into()) } else { Err("not the id of a key".to_owned()) }
    }

    fn expected() -> String {
        "at most 64 letters, digits, `-`, `_` and `.`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "key id", "type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"})
    }
}

/// A SHA-256 in hexadecimal. Not quoted in problems: a whole key may have been written here.
struct Sha256;

impl Scalar for Sha256 {
    type Value = [u8; 32];

    fn parse(text: &str) -> Result<[u8; 32], String> {
        let digest = || {
            let digits = text.as_bytes();
            let mut digest = [0; 32];
            if digits.len() != 64 {
                return None;
            }
            for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
                for digit in pair {
                    let value = char::from(*digit).to_digit(16)?;
                    *byte = *byte << 4 | u8::try_from(value).ok()?;
                }
            }
            Some(digest)
        };
        digest().ok_or_else(|| "not a SHA-256".to_owned())
    }

    fn expected() -> String {
        "64 hexadecimal digits".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "SHA-256", "type": "string", "pattern": "^[0-9A-Fa-f]{64}$"})
    }
}

/// A time of RFC 3339, as seconds since the Unix epoch.
pub(super) struct Time;

impl Scalar for Time {
    type Value = u64;

    fn parse(text: &str) -> Result<u64, String> {
        let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "not a time".to_owned())?;
        u64::try_from(time.unix_timestamp()).map_err(|_| "a time before 1970".to_owned())
    }

    fn expected() -> String {
        "a time of RFC 3339 such as `2027-02-21T00:00:00Z`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "time", "type": "string", "format": "date-time"})
    }
}

fn check_keys(file: &KeyFile, fields: &Fields<'_>, context: &mut Context<'_>) {
    let mut ids = HashMap::new();
    let mut hashes = HashMap::new();
    for (index, key) in file.keys.iter().enumerate() {
        let id = ids.insert(&key.id, index);
        let hash = hashes.insert(key.sha256, index);
        let previous = key.previous_sha256.and_then(|(previous, _)| hashes.insert(previous, index));
        // Two records of one key would leave it to chance which consumer pays, and a revocation of one would not end the other.
        for (earlier, what) in [(id, "id"), (hash, "sha256"), (previous, "sha256")] {
            if let Some(earlier) = earlier {
                let place = fields.item("keys", index, context);
                context.report(Problem::at(&place, format!("the {what} of keys[{earlier}] again")).expected("each key once"));
            }
        }
    }
}
