//! Where it is kept which credentials were withdrawn before their time, and how many of them.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map as Object, Value};

use super::At;
use super::decode::{Context, Decode, grammar};
use super::values::{Name, Within};
use super::yaml::Node;

grammar! {
    /// Credentials that are refused before their time.
    #[one_of(database, redis)]
    struct WrittenRevocation {
        /// The embedded store, for the processes of one host; made when it is not there.
        database: Option<PathBuf> = absent,
        /// Redis, for a fleet: the name by which its nodes know their revocations there.
        redis: Option<At<Arc<str>>> as Option<At<Name>> = absent,
        /// How many are kept; further ones are refused.
        entries: usize as Within<usize, 1, 100_000_000> = "1000000",
    }
}

/// How many are kept where nothing is said of it.
pub const REVOCATIONS: usize = 1_000_000;

/// Credentials that are refused before their time.
#[derive(Debug, Clone)]
pub struct Revocation {
    /// Where they are kept.
    pub store: RevocationStore,
    /// How many are kept.
    pub entries: usize,
}

/// Where revocations are kept.
#[derive(Debug, Clone)]
pub enum RevocationStore {
    /// The embedded store.
    Database(PathBuf),
    /// Redis, under a name.
    Redis(At<Arc<str>>),
}

impl Decode for Revocation {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let WrittenRevocation { database, redis, entries } = WrittenRevocation::decode(node, context)?;
        let store = database.map(RevocationStore::Database).or(redis.map(RevocationStore::Redis))?;
        Some(Self { store, entries })
    }

    fn expected() -> String {
        WrittenRevocation::expected()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        WrittenRevocation::schema(definitions)
    }
}
