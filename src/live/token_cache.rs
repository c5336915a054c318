//! Verified tokens, so that a signature is checked once and not with every request.
//!
//! What is kept are facts (what the token says, and which key signed it), never a decision: issuer, audience, times, type and the
//! key's place in its set are judged again on each hit. Tokens that were refused are not kept: an attacker has more bad tokens than
//! we have room, and a refusal that is remembered could outlive its cause.
//!
//! A token is found by a keyed 64-bit hash, and what is found counts only after the whole token and its verifier were compared
//! (`docs/decisions/0004-token-cache.md`).

mod shared;
mod weight;

use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{Equivalent, Weighter};

use self::shared::Shared;
use crate::jose::Algorithm;
use crate::jose::claims::Registered;
use crate::jose::key::Fingerprint;
use crate::metrics::Counter;
use crate::request::Identity;

/// How much memory a cache has until a configuration says how much, in bytes.
const BYTES: u64 = 256 << 20;
/// What a small token takes. The cache remembers the places of half as many that it evicted as it could hold of these.
const SMALL: u64 = 2 * 1024;

/// What decides how a token becomes an identity: the authenticator, its keys and its claim names, hashed. Two verifiers never share an entry.
pub type VerifierId = [u8; 32];

/// A token whose signature was good, and what it says. In this order, what every request asks first, as it lies in main memory when there are many.
#[derive(Debug)]
#[repr(C)]
pub struct Verified {
    token: Box<str>,
    verifier: VerifierId,
    /// Who it proves.
    pub identity: Arc<Identity>,
    /// The newest generation of the key set that is known to hold the key.
    pub generation: AtomicU64,
    /// The claims that are judged with every request.
    pub registered: Registered,
    /// Its `typ`.
    pub typ: Option<Arc<str>>,
    /// The algorithm it was signed with.
    pub algorithm: Algorithm,
    weight: u64,
    /// The key that signed it.
    pub key: Fingerprint,
}

impl Verified {
    /// The facts of one token.
    pub fn new(
        verifier: VerifierId,
        token: &str,
        (algorithm, typ): (Algorithm, Option<Arc<str>>),
        registered: Registered,
        (key, generation): (Fingerprint, u64),
        identity: Identity,
    ) -> Self {
        let (identity, generation) = (Arc::new(identity), AtomicU64::new(generation));
        Self { token: token.into(), verifier, identity, generation, registered, typ, algorithm, weight: 0, key }
    }
}

/// The cache of verified tokens, bounded by the memory that they take.
pub struct TokenCache {
    entries: Cache<Key, Arc<Verified>, ByMemory, BuildHasherDefault<Hashed>>,
    seeds: ahash::RandomState,
    shared: Shared,
    hits: Counter,
    misses: Counter,
}

impl TokenCache {
    /// A cache of at most so many bytes.
    pub fn new(bytes: u64) -> Self {
        let expected = usize::try_from(bytes / SMALL).unwrap_or(usize::MAX);
        let [hits, misses] = Counter::apart();
        Self {
            entries: Cache::with(expected, bytes, ByMemory, BuildHasherDefault::default(), DefaultLifecycle::default()),
            seeds: ahash::RandomState::new(),
            shared: Shared::default(),
            hits,
            misses,
        }
    }

    /// From now on at most so many bytes. All is kept that there is room for.
    pub fn resize(&self, bytes: u64) {
        self.entries.set_capacity(bytes);
    }

    /// The facts of this very token as any verifier found them: what it says is the same for all.
    pub fn find(&self, token: &str) -> Option<Arc<Verified>> {
        // The hash only finds the place. Without this comparison a collision would be somebody else's identity.
        let found = self.entries.get(&AnyOf(self.hash(token))).filter(|entry| *entry.token == *token);
        if found.is_none() {
            self.misses.inc();
        }
        found
    }

    /// The facts of a known token as this verifier found them: without another look-up, unless others know it too.
    pub fn find_as(&self, verifier: &VerifierId, known: Arc<Verified>) -> Option<Arc<Verified>> {
        let own = if known.verifier == *verifier {
            Some(known)
        } else {
            let found = self.entries.get(&self.key(verifier, &known.token));
            found.filter(|entry| entry.verifier == *verifier && entry.token == known.token)
        };
        if own.is_some() {
            self.hits.inc()
        } else {
            self.misses.inc()
        }
        own
    }

    /// Keeps the facts of a token, in place of others when there is no room. Returns who it proves.
    pub fn insert(&self, mut verified: Verified) -> Arc<Identity> {
        self.shared.unite(&mut verified);
        verified.weight = weight::of(&verified);
        let identity = verified.identity.clone();
        self.entries.insert(self.key(&verified.verifier, &verified.token), Arc::new(verified));
        identity
    }

    /// How many tokens are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How much memory they take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.entries.weight()
    }

    /// Look-ups that found their token, and that did not, since the start.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits.get(), self.misses.get())
    }

    fn key(&self, verifier: &VerifierId, token: &str) -> Key {
        // As much of it as tells the few apart that verify the same token; what is found is compared with all of it.
        let [a, b, c, d, e, f, g, h, ..] = *verifier;
        Key { token: self.hash(token), verifier: u64::from_ne_bytes([a, b, c, d, e, f, g, h]) }
    }

    fn hash(&self, token: &str) -> u64 {
        let mut hasher = self.seeds.build_hasher();
        hasher.write(token.as_bytes());
        hasher.finish()
    }
}

/// The place of a token that was verified by one verifier. All of one token share a hash, so that it is found without asking who verified it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    token: u64,
    verifier: u64,
}

/// Finds a token whoever verified it.
struct AnyOf(u64);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        AnyOf(self.token).hash(state);
    }
}

impl Hash for AnyOf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

impl Equivalent<Key> for AnyOf {
    fn equivalent(&self, key: &Key) -> bool {
        self.0 == key.token
    }
}

impl Default for TokenCache {
    fn default() -> Self {
        Self::new(BYTES)
    }
}

impl std::fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCache").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Takes the hash of a [`Key`] for what it is. It was made with keys that nobody outside knows, so nobody chooses where tokens come to stand.
#[derive(Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    /// Keys write one number, and nothing else.
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }
}

#[derive(Debug, Clone)]
struct ByMemory;

impl Weighter<Key, Arc<Verified>> for ByMemory {
    fn weight(&self, _key: &Key, verified: &Arc<Verified>) -> u64 {
        verified.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Method;

    fn identity(subject: &str) -> Identity {
        Identity { subject: Some(subject.into()), ..Identity::new(Method::Jwt, "a".into(), [0; 32]) }
    }

    fn verified(verifier: u8, token: &str) -> Verified {
        Verified::new([verifier; 32], token, (Algorithm::Es256, None), Registered::default(), ([0; 32], 1), identity(token))
    }

    /// As a verifier finds it.
    fn find(cache: &TokenCache, verifier: u8, token: &str) -> Option<Arc<Verified>> {
        cache.find(token).and_then(|known| cache.find_as(&[verifier; 32], known))
    }

    #[test]
    fn a_token_is_found_by_its_verifier_and_by_no_other() {
        let cache = TokenCache::default();
        cache.insert(verified(1, "a.b.c"));
        assert_eq!(find(&cache, 1, "a.b.c").unwrap().identity.subject.as_deref(), Some("a.b.c"));
        assert!(find(&cache, 2, "a.b.c").is_none());
        assert!(find(&cache, 1, "a.b.d").is_none());
        assert!(find(&cache, 1, "a.b.").is_none());
        assert_eq!(cache.hits_and_misses(), (1, 3));
    }

    #[test]
    fn a_token_that_many_verified_is_found_by_each() {
        let cache = TokenCache::default();
        (0..9).for_each(|verifier| drop(cache.insert(verified(verifier, "a.b.c"))));
        for verifier in 0..9 {
            assert_eq!(find(&cache, verifier, "a.b.c").unwrap().verifier, [verifier; 32]);
        }
        assert!(find(&cache, 9, "a.b.c").is_none());
        assert_eq!(cache.len(), 9);
    }

    #[test]
    fn a_hash_that_collides_finds_nothing() {
        let cache = TokenCache::default();
        let place = cache.key(&[1; 32], "alice.b.c");
        cache.entries.insert(place.clone(), Arc::new(verified(1, "mallory.b.c")));
        assert!(cache.find("alice.b.c").is_none());
        // Also where a token of its own is known to another verifier.
        let mut elsewhere = verified(1, "alice.b.c");
        elsewhere.verifier[31] = 2;
        cache.entries.insert(place, Arc::new(elsewhere));
        let known = cache.find("alice.b.c").unwrap();
        assert!(cache.find_as(&[1; 32], known).is_none());
        cache.entries.insert(cache.key(&[3; 32], "alice.b.c"), Arc::new(verified(3, "mallory.b.c")));
        assert!(cache.find_as(&[3; 32], Arc::new(verified(1, "alice.b.c"))).is_none());
    }

    #[test]
    fn a_flood_of_tokens_is_bounded_by_bytes() {
        let cache = TokenCache::new(1 << 20);
        (0..5000).for_each(|i| drop(cache.insert(verified(1, &format!("{i}.{}.c", "x".repeat(2000))))));
        assert!((100..=400).contains(&cache.len()), "{}", cache.len());
    }

    #[test]
    fn a_cache_that_grows_keeps_all_and_one_that_shrinks_keeps_what_there_is_room_for() {
        let cache = TokenCache::new(1 << 20);
        (0..1000).for_each(|i| drop(cache.insert(verified(1, &format!("{i}.b.c")))));
        let before = cache.len();
        cache.resize(1 << 22);
        assert_eq!(cache.len(), before);
        (1000..4000).for_each(|i| drop(cache.insert(verified(1, &format!("{i}.b.c")))));
        assert!(cache.len() > 2 * before, "{}", cache.len());
        cache.resize(1 << 19);
        assert!((before / 4..=before).contains(&cache.len()), "{}", cache.len());
        assert!((0..4000).filter(|i| cache.find(&format!("{i}.b.c")).is_some()).count() == cache.len());
    }
}
