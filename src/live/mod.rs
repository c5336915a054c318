//! Facts that outlive a reload, keyed by identity only: never by anything an operator may tune.

pub mod answers;
pub mod api_keys;
pub mod backends;
pub mod breaker;
pub mod database;
pub mod decisions;
pub mod exchanged;
pub mod identity_tokens;
pub mod introspected;
pub mod key_set;
pub mod key_store;
pub mod leases;
pub mod limits;
pub mod nonce_key;
pub mod oauth_clients;
pub mod oauth_endpoint;
pub mod passwords;
pub mod quotas;
pub mod replays;
pub mod revocations;
pub mod shared_limits;
pub mod signing_keys;
pub mod token_cache;

use std::collections::HashMap;
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::net::redis;

/// Everything live, made once in `server` and handed down.
#[derive(Debug, Default)]
pub struct LiveState {
    /// Key sets of token issuers.
    pub key_sets: Registry<key_set::KeySetId, key_set::KeySet>,
    /// Verified tokens.
    pub tokens: Arc<token_cache::TokenCache>,
    /// Quotas, by their database.
    pub ledgers: Registry<PathBuf, quotas::Ledger>,
    /// What is used of rate limits, by the name of the limit.
    pub limits: Registry<Arc<str>, limits::Limits>,
    /// The requests in flight, by the name of the limit.
    pub concurrency: Registry<Arc<str>, limits::concurrency::Concurrency>,
    /// Connections to Redis, by where it is and who logs in.
    pub redis: Registry<redis::Server, redis::Redis>,
    /// Leases of limits that Redis counts, by the name of the limit and that Redis.
    pub leases: Registry<(Arc<str>, redis::Server), leases::Hybrid>,
    /// API keys, by their store.
    pub api_keys: Registry<api_keys::Source, api_keys::ApiKeys>,
    /// Passwords that were found right.
    pub passwords: Arc<passwords::Passwords>,
    /// Decisions of external authorizers.
    pub decisions: Registry<decisions::AuthorizerId, decisions::Decisions>,
    /// What may be used once, by the name of the authenticator.
    pub replays: Registry<Arc<str>, replays::Replays>,
    /// What nonces are made with, where no secret is configured.
    pub nonce_key: nonce_key::NonceKey,
    /// What was revoked, by where it is kept.
    pub revocations: Registry<revocations::Source, revocations::Revocations>,
    /// What is known of opaque tokens, by the endpoint that said it.
    pub introspected: Registry<oauth_endpoint::EndpointId, introspected::TokenAnswers>,
    /// Tokens that were issued in exchange for callers' own, by the endpoint that issued them.
    pub exchanged: Registry<oauth_endpoint::EndpointId, exchanged::ExchangedTokens>,
    /// The keys that edgeward signs with, by their folder.
    pub signing_keys: Registry<PathBuf, signing_keys::SigningKeys>,
    /// The clients of the token endpoint, by their database.
    pub oauth_clients: Registry<PathBuf, oauth_clients::OauthClients>,
    /// Identity tokens for upstreams, by who signs them and how long they live.
    pub identity_tokens: Registry<identity_tokens::MintId, identity_tokens::IdentityTokens>,
    /// Resolved and probed backends, by the name of the upstream.
    pub backends: Registry<Arc<str>, backends::Backends>,
}

/// Live facts by identity. A fact lives as long as a snapshot uses it: the next snapshot finds it while the last one still holds it.
#[derive(Debug)]
pub struct Registry<K, V>(Mutex<HashMap<K, Entry<V>>>);

#[derive(Debug)]
struct Entry<V> {
    value: Weak<V>,
    maintained: bool,
}

impl<K, V> Default for Registry<K, V> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Eq + Hash + Clone, V> Registry<K, V> {
    /// The living fact of this identity, or a new one.
    pub fn find_or_create(&self, key: &K, create: impl FnOnce() -> V) -> Arc<V> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| entry.value.strong_count() > 0);
        if let Some(found) = entries.get(key).and_then(|entry| entry.value.upgrade()) {
            return found;
        }
        let created = Arc::new(create());
        entries.insert(key.clone(), Entry { value: Arc::downgrade(&created), maintained: false });
        created
    }

    /// Every living fact.
    pub fn living(&self) -> Vec<(K, Arc<V>)> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().filter_map(|(key, entry)| Some((key.clone(), entry.value.upgrade()?))).collect()
    }

    /// The facts that nobody maintains yet; each is handed out once, to the housekeeper that starts its upkeep.
    pub fn unmaintained(&self) -> Vec<Weak<V>> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.values_mut().filter_map(|entry| (!std::mem::replace(&mut entry.maintained, true)).then(|| entry.value.clone())).collect()
    }
}
