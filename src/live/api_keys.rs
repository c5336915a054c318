//! API keys, as the hot path reads them: a table in memory that follows its store key by key, and the usage on its way back.
//!
//! What a key may do is judged by the authenticator; how records are kept on disk is [`key_store`](super::key_store)'s matter.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use dashmap::mapref::one::Ref;
use ipnet::IpNet;
use smol_str::SmolStr;

use super::database::{OpenError, Opening, beside};
use super::key_store::{KIND, KeyStore, StoreError, UsageRow};
use crate::jose::message::sha256;
use crate::request::{Clock, Identity, Method};

/// The SHA-256 of a whole key as presented. Not printed: it is half of what an offline search for a weak foreign key needs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// The hash of a key as presented.
    pub fn of(key: &str) -> Self {
        Self(sha256(key.as_bytes()))
    }

    /// Whether two hashes are the same, in a time that does not tell where they differ.
    pub fn matches(&self, other: &Self) -> bool {
        openssl::memcmp::eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHash(..)")
    }
}

/// The hash that a key had before its last rotation, good until `ends` (seconds since the Unix epoch).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Previous {
    /// The hash.
    pub sha256: KeyHash,
    /// The first second in which it is no longer good.
    pub ends: u64,
}

/// Everything that is known of a key except its usage. Times are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The public name of the key.
    pub id: Arc<str>,
    /// The hash of the whole key.
    pub sha256: KeyHash,
    /// The hash before the last rotation.
    pub previous: Option<Previous>,
    /// Who answers for what is done with the key.
    pub consumer: Arc<str>,
    /// What the key was granted.
    pub scopes: Vec<Arc<str>>,
    /// The routes it opens; empty: any that accepts its authenticator.
    pub routes: Vec<Arc<str>>,
    /// The addresses it may come from; empty: any.
    pub allow: Vec<IpNet>,
    /// The usage plan.
    pub plan: Option<Arc<str>>,
    /// When it was made.
    pub created: Option<u64>,
    /// The first second in which it is good.
    pub not_before: Option<u64>,
    /// The first second in which it is no longer good.
    pub expires: Option<u64>,
    /// When it was withdrawn. A revoked key is never good again, whatever the time says.
    pub revoked: Option<u64>,
}

impl Record {
    /// Gives the key a new secret; the one it had is good until `ends`, the one before that is not any more.
    pub fn rotate(&mut self, sha256: KeyHash, ends: u64) {
        self.previous = Some(Previous { sha256: std::mem::replace(&mut self.sha256, sha256), ends });
    }
}

/// A secret of a key, as a decision meets it: the current one, or the one before the last rotation. Replaced whole when the record changes.
///
/// In this order, so that what a request asks lies together: what is used of a million keys comes from main memory, and each place that has to be
/// visited there is one more wait. Names of up to 23 bytes and the usage are in place for the same reason.
#[derive(Debug)]
#[repr(C)]
pub struct Key {
    hash: KeyHash,
    grants: Arc<Grants>,
    /// The first second in which it is no longer good.
    expires: u64,
    /// Absent where there is nothing more to say, as of most.
    terms: Option<Box<Terms>>,
    usage: Usage,
    id: SmolStr,
    consumer: SmolStr,
}

/// When a secret is good, but for its end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Terms {
    not_before: u64,
    revoked: bool,
    /// Of a secret that was rotated: the hash of the one that took its place, and the first second in which it is no longer good.
    rotated: Option<Box<(KeyHash, u64)>>,
}

/// How a key was used since this was last written down: what is to be added to what the store knows. So nothing is lost when the key is
/// replaced, and two snapshots that each have a key of this id count for both.
#[derive(Debug, Default)]
struct Usage {
    requests: AtomicU64,
    last_used: AtomicU64,
    last_address: Mutex<Option<IpAddr>>,
}

/// What many keys of a consumer have in common, held once for all of them.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Grants {
    scopes: Arc<[Arc<str>]>,
    routes: Vec<Arc<str>>,
    /// Disjoint and in order, so that one binary search finds the only candidate; `None`: any address.
    allow: Option<Vec<IpNet>>,
    plan: Option<SmolStr>,
}

impl Key {
    /// The secrets of a record: the current one, and the one before the last rotation.
    fn of(record: &Record, grants: &Arc<Grants>) -> (Arc<Self>, Option<Arc<Self>>) {
        let secret = |hash, rotated| {
            let terms = Terms { not_before: record.not_before.unwrap_or(0), revoked: record.revoked.is_some(), rotated };
            Arc::new(Self {
                hash,
                grants: Arc::clone(grants),
                expires: record.expires.unwrap_or(u64::MAX),
                terms: (terms != Terms::default()).then(|| Box::new(terms)),
                usage: Usage::default(),
                id: SmolStr::new(&record.id),
                consumer: SmolStr::new(&record.consumer),
            })
        };
        // The current one is good without an end, also where a record names it twice.
        let previous = record.previous.filter(|previous| previous.sha256 != record.sha256);
        let before = previous.map(|previous| secret(previous.sha256, Some(Box::new((record.sha256, previous.ends)))));
        (secret(record.sha256, None), before)
    }

    /// Whether this hash opens the key now: the current one, or the previous one during its grace.
    pub fn is_opened_by(&self, presented: &KeyHash, now: u64) -> bool {
        self.rotated().is_none_or(|&(_, ends)| now < ends) && self.hash.matches(presented)
    }

    /// Whether the key was withdrawn.
    pub fn is_revoked(&self) -> bool {
        self.terms.as_ref().is_some_and(|terms| terms.revoked)
    }

    /// Whether the key's time has passed.
    pub fn is_expired(&self, now: u64) -> bool {
        now >= self.expires
    }

    /// Whether the key's time has come.
    pub fn is_valid_yet(&self, now: u64) -> bool {
        self.terms.as_ref().is_none_or(|terms| now >= terms.not_before)
    }

    fn rotated(&self) -> Option<&(KeyHash, u64)> {
        self.terms.as_ref()?.rotated.as_deref()
    }

    /// Whether the key opens this route.
    pub fn opens_route(&self, route: &str) -> bool {
        self.grants.routes.is_empty() || self.grants.routes.iter().any(|name| &**name == route)
    }

    /// Whether the key may come from this address.
    pub fn allows_address(&self, address: IpAddr) -> bool {
        let Some(allow) = &self.grants.allow else { return true };
        let after = allow.partition_point(|net| net.network() <= address);
        after.checked_sub(1).and_then(|candidate| allow.get(candidate)).is_some_and(|net| net.contains(&address))
    }

    fn identity(&self, authenticator: &Arc<str>) -> Arc<Identity> {
        // Both secrets are one credential: a limit for each is not counted twice during the grace.
        let KeyHash(credential) = self.rotated().map_or(self.hash, |&(current, _)| current);
        Arc::new(Identity {
            consumer: Some(self.consumer.clone()),
            key_id: Some(self.id.clone()),
            scopes: self.grants.scopes.clone(),
            plan: self.grants.plan.clone(),
            ..Identity::new(Method::ApiKey, authenticator.clone(), credential)
        })
    }
}

/// Keys by the hash of what is presented. Reading takes one shard's read lock for a moment; adding or changing one key touches
/// that key alone.
#[derive(Debug)]
pub struct Table {
    by_hash: DashMap<ByHash, Option<Arc<Identity>>, ahash::RandomState>,
    writer: Mutex<Writer>,
}

/// A key that a table knows, and whom it proved before; its shard is locked for reading.
pub struct Known<'a>(Ref<'a, ByHash, Option<Arc<Identity>>>);

impl Known<'_> {
    /// Whom the key proves, if it did in the name of this authenticator before. The way to it lies in the table and not in the key, so that of a
    /// million the one is on its way from main memory while the other is. For that it must be asked before the key is judged, and before anything is
    /// counted: an atomic update waits for all that was asked for before it.
    pub fn identity(&self, authenticator: &Arc<str>) -> Option<&Arc<Identity>> {
        self.0.value().as_ref().filter(|identity| identity.authenticator == *authenticator)
    }
}

impl Deref for Known<'_> {
    type Target = Arc<Key>;

    fn deref(&self) -> &Arc<Key> {
        &self.0.key().0
    }
}

/// What only a change of the table needs.
#[derive(Debug, Default)]
struct Writer {
    by_id: HashSet<ById>,
    grants: HashSet<Arc<Grants>>,
    /// Grants that no key uses any more are swept when their number has doubled.
    sweep_at: usize,
}

impl Default for Table {
    fn default() -> Self {
        // 64 shards: on a server of many cores two requests rarely meet in one.
        Self { by_hash: DashMap::with_hasher_and_shard_amount(ahash::RandomState::new(), 64), writer: Mutex::default() }
    }
}

impl Table {
    /// The key that has, or had before its last rotation, this hash. Whether it is good is another question.
    pub fn find(&self, hash: &KeyHash) -> Option<Known<'_>> {
        self.by_hash.get(hash).map(Known)
    }

    /// Whom a key proves in the name of an authenticator, built and kept: most of a million keys are never used.
    pub fn introduce(&self, known: Known<'_>, authenticator: &Arc<str>) -> Arc<Identity> {
        let key = Arc::clone(&known);
        // Its lock would wait for itself.
        drop(known);
        let identity = key.identity(authenticator);
        self.keep(&key, identity.clone());
        identity
    }

    /// Only with the key that it was built of: another may have taken its place, and says something else.
    fn keep(&self, key: &Arc<Key>, identity: Arc<Identity>) {
        if let Some(mut place) = self.by_hash.get_mut(&key.hash).filter(|place| Arc::ptr_eq(&place.key().0, key)) {
            *place = Some(identity);
        }
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        lock(&self.writer).by_id.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a key or replaces the one of the same id.
    pub fn apply(&self, mut record: Record) {
        let mut writer = lock(&self.writer);
        let grants = writer.share(Grants {
            scopes: std::mem::take(&mut record.scopes).into(),
            routes: std::mem::take(&mut record.routes),
            allow: (!record.allow.is_empty()).then(|| IpNet::aggregate(&record.allow)),
            plan: record.plan.take().map(SmolStr::from),
        });
        let (current, before) = Key::of(&record, &grants);
        let known = ById { current, before };
        // New hashes go in before old ones go out: a key that is good before and after is good all the time.
        for secret in known.secrets() {
            match self.by_hash.entry(ByHash(Arc::clone(secret))) {
                // An insertion would leave the old key where it is, as both have the same hash.
                Entry::Occupied(entry) => drop(entry.replace_entry(None)),
                Entry::Vacant(entry) => drop(entry.insert(None)),
            }
        }
        if let Some(old) = writer.by_id.replace(known) {
            self.forget(&old);
        }
    }

    /// Takes a key out.
    pub fn remove(&self, id: &str) {
        if let Some(old) = lock(&self.writer).by_id.take(id) {
            self.forget(&old);
        }
    }

    /// Takes out every key whose id is not among these.
    pub fn retain(&self, ids: &HashSet<Arc<str>>) {
        let gone: Vec<SmolStr> =
            lock(&self.writer).by_id.iter().map(|known| &known.current.id).filter(|id| !ids.contains(id.as_str())).cloned().collect();
        gone.iter().for_each(|id| self.remove(id));
    }

    /// Takes out what still leads to a key that is no longer this one.
    fn forget(&self, old: &ById) {
        for secret in old.secrets() {
            self.by_hash.remove_if(&secret.hash, |ByHash(found), _| Arc::ptr_eq(found, secret));
        }
    }
}

impl Key {
    fn take_usage(&self) -> UsageRow {
        let usage = &self.usage;
        UsageRow {
            requests: usage.requests.swap(0, Ordering::Acquire),
            last_used: usage.last_used.load(Ordering::Relaxed),
            last_address: *lock(&usage.last_address),
            id: self.id.clone(),
        }
    }
}

impl Writer {
    fn share(&mut self, grants: Grants) -> Arc<Grants> {
        if let Some(shared) = self.grants.get(&grants) {
            return shared.clone();
        }
        if self.grants.len() >= self.sweep_at {
            self.grants.retain(|shared| Arc::strong_count(shared) > 1);
            self.sweep_at = (2 * self.grants.len()).max(1024);
        }
        let shared = Arc::new(grants);
        self.grants.insert(shared.clone());
        shared
    }
}

impl FromIterator<Record> for Table {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Self {
        let table = Self::default();
        records.into_iter().for_each(|record| table.apply(record));
        table
    }
}

/// A key in a map by its hash, without a second copy of the hash: of a million keys most of the map stays in the processor's cache.
#[derive(Debug)]
struct ByHash(Arc<Key>);

impl Borrow<KeyHash> for ByHash {
    fn borrow(&self) -> &KeyHash {
        &self.0.hash
    }
}

impl Hash for ByHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash.hash(state);
    }
}

impl PartialEq for ByHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.hash == other.0.hash
    }
}

impl Eq for ByHash {}

/// Both secrets of a key in a set by its id, without a second copy of the id.
#[derive(Debug)]
struct ById {
    current: Arc<Key>,
    before: Option<Arc<Key>>,
}

impl ById {
    fn secrets(&self) -> impl Iterator<Item = &Arc<Key>> {
        std::iter::once(&self.current).chain(&self.before)
    }
}

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        &self.current.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.current.id.as_str().hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.current.id == other.current.id
    }
}

impl Eq for ById {}

/// Where keys come from. It names the live fact: the same store after a reload is the same keys and the same usage.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// The embedded store; the gateway follows it while it runs.
    Database(PathBuf),
    /// A YAML file. Its keys are part of the configuration, frozen in the snapshot; only their usage is live, in a database beside it.
    File(PathBuf),
}

impl Source {
    /// The database that keeps the usage: the store itself, or `<file>.usage.db`.
    pub fn usage_path(&self) -> PathBuf {
        match self {
            Self::Database(path) => path.clone(),
            Self::File(path) => beside(path, ".usage.db"),
        }
    }
}

/// Why the store cannot be followed at the moment. The last known state goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong, for the operator.
    pub reason: Arc<str>,
    /// Since when (time since the Unix epoch).
    pub since: Duration,
}

/// The keys of one store and their usage; outlives every snapshot that uses it.
#[derive(Debug)]
pub struct ApiKeys {
    source: Source,
    table: Arc<Table>,
    loaded: AtomicBool,
    maintained: AtomicBool,
    failure: Mutex<Option<Failure>>,
    /// Keys whose usage is not written down yet, in shards. A key enters when its count leaves zero, so each is here at most once.
    used: [Mutex<Vec<Arc<Key>>>; 16],
    follower: Mutex<Option<Follower>>,
}

/// The open store and how far it was read.
#[derive(Debug)]
struct Follower {
    store: KeyStore,
    data_version: Option<i64>,
    revision: i64,
}

/// How often the store is asked for news: an answer costs two system calls, and what the command line changes must hold within 2 s.
const POLL: Duration = Duration::from_millis(500);
/// How often usage is written down: what a crash can lose, unless so many keys are used that writing takes long.
const FLUSH: Duration = Duration::from_secs(2);
/// Writing usage takes at most one part in so many of a core: with a hundred thousand keys in turn, every two seconds took a tenth.
const SHARE: u32 = 100;
/// However long writing takes, a crash loses no more.
const RARELY: Duration = Duration::from_secs(60);
/// A store that failed is tried again after this; reading a damaged one again and again would cost more than it brings.
const RETRY: Duration = Duration::from_secs(5);

/// How long usage waits after a writing that took so long.
fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE - 1).clamp(FLUSH, RARELY)
}

impl ApiKeys {
    /// The keys of a source; those of a database are there once [`maintain`](Self::maintain) or [`refresh`](Self::refresh) has read them.
    pub fn new(source: Source) -> Self {
        let loaded = AtomicBool::new(matches!(source, Source::File(_)));
        Self {
            source,
            table: Arc::default(),
            loaded,
            maintained: AtomicBool::new(false),
            failure: Mutex::default(),
            used: Default::default(),
            follower: Mutex::default(),
        }
    }

    /// The keys of the database; empty for a file.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Whether the keys were read at least once. Until then nobody knows which key is good.
    pub fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Why the keys may be older than their store, if so.
    pub fn failure(&self) -> Option<Failure> {
        lock(&self.failure).clone()
    }

    /// Counts a request that a key opened. One atomic add; the rest happens once a second per key.
    pub fn count(&self, key: &Arc<Key>, address: IpAddr, now: u64) {
        let usage = &key.usage;
        let last = usage.last_used.load(Ordering::Relaxed);
        if last != now && usage.last_used.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            *lock(&usage.last_address) = Some(address);
        }
        self.add(key, 1);
    }

    /// Follows the store and writes usage down, until nobody uses these keys.
    pub async fn maintain(this: Weak<Self>, clock: Clock) {
        let mut next_flush = clock().monotonic + FLUSH;
        while let Some(keys) = this.upgrade() {
            keys.maintained.store(true, Ordering::Relaxed);
            let now = clock();
            let flush = now.monotonic >= next_flush;
            let clock = clock.clone();
            let round = tokio::task::spawn_blocking(move || {
                let followed = keys.refresh();
                let readable = followed.is_ok();
                let begun = clock().monotonic;
                let flushed = if flush { keys.write_usage() } else { Ok(()) };
                let ended = clock().monotonic;
                let rest = if flushed.is_ok() { pause(ended.saturating_sub(begun)) } else { FLUSH };
                keys.report(followed.and(flushed), now.unix);
                (readable, ended + rest)
            });
            // Usage that could not be written must not make a revocation wait.
            let (readable, next) = round.await.unwrap_or((false, now.monotonic));
            if flush {
                next_flush = next;
            }
            tokio::time::sleep(if readable { POLL } else { RETRY }).await;
        }
    }

    /// Reads what changed in the store since the last time. The first time, a store that is missing is created, empty.
    ///
    /// # Errors
    /// When the store cannot be opened or read; the keys stay as they were.
    pub fn refresh(&self) -> Result<(), StoreError> {
        let Source::Database(path) = &self.source else { return Ok(()) };
        let mut slot = lock(&self.follower);
        // Only the first time: a store that vanishes under a running gateway is a fault, not a wish to refuse everybody.
        let opening = if self.is_loaded() { Opening::Existing } else { Opening::Create };
        // What cannot be read is opened anew the next time.
        let mut follower = match slot.take() {
            Some(follower) if follower.store.is_in_place() => follower,
            _ => Follower { store: KeyStore::open(path, opening, PATIENCE)?, data_version: None, revision: i64::MAX },
        };
        self.follow(&mut follower)?;
        *slot = Some(follower);
        self.loaded.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes usage down now: at shutdown, so that nothing is lost.
    pub fn flush(&self) {
        if let Err(error) = self.write_usage() {
            tracing::warn!(store = %self.place().display(), %error, "usage of API keys was not written");
        }
    }

    /// What cannot be written is kept for the next time.
    fn write_usage(&self) -> Result<(), StoreError> {
        let used = self.used.iter().flat_map(|shard| std::mem::take(&mut *lock(shard)));
        let mut taken: Vec<(UsageRow, Arc<Key>)> = used.map(|key| (key.take_usage(), key)).collect();
        if taken.is_empty() {
            return Ok(());
        }
        // In the order of the table, so that each of its pages is read and written once. By the rows, which lie together as the keys do not.
        taken.sort_unstable_by(|(one, _), (other, _)| one.id.cmp(&other.id));
        let written = self.write(taken.iter().map(|(row, _)| row));
        if written.is_err() {
            taken.iter().for_each(|(row, key)| self.add(key, row.requests));
        }
        written
    }

    fn add(&self, key: &Arc<Key>, requests: u64) {
        // Release, so that whoever takes the count sees the time and the address.
        if key.usage.requests.fetch_add(requests, Ordering::Release) == 0 {
            let [first, ..] = key.hash.0;
            if let Some(shard) = self.used.get(usize::from(first) % self.used.len()) {
                lock(shard).push(key.clone());
            }
        }
    }

    fn write<'r>(&self, rows: impl Iterator<Item = &'r UsageRow>) -> Result<(), StoreError> {
        let mut slot = lock(&self.follower);
        if slot.as_ref().is_none_or(|follower| !follower.store.is_in_place()) {
            // A database that is away is refresh's to open: what usage would create here, it would take for the keys.
            let path = self.source.usage_path();
            let Source::File(_) = &self.source else { return Err(OpenError::Missing { kind: KIND.name, path }.into()) };
            let store = KeyStore::open(&path, Opening::Create, PATIENCE)?;
            *slot = Some(Follower { store, data_version: None, revision: i64::MAX });
        }
        slot.as_mut().map_or(Ok(()), |follower| follower.store.add_usage(rows))
    }

    fn follow(&self, follower: &mut Follower) -> Result<(), StoreError> {
        // Asked before reading: what is written in between is news again the next time.
        let data_version = follower.store.data_version()?;
        if follower.data_version == Some(data_version) {
            return Ok(());
        }
        // A revision behind ours is another store in the same place (a restored backup): everything is read, and what it lacks is gone.
        let whole = follower.store.revision()? < follower.revision;
        let mut seen = (whole && !self.table.is_empty()).then(HashSet::new);
        let revision = follower.store.read_since(if whole { -1 } else { follower.revision }, |record| match record {
            Ok(record) => {
                if let Some(seen) = &mut seen {
                    seen.insert(record.id.clone());
                }
                self.table.apply(record);
            }
            // Fail closed: what it says now may be that the key is revoked.
            Err(id) => {
                tracing::error!(key_id = %id, "the record of an API key cannot be read; the key is refused");
                self.table.remove(&id);
            }
        })?;
        if let Some(seen) = seen {
            self.table.retain(&seen);
        }
        follower.data_version = Some(data_version);
        follower.revision = revision;
        Ok(())
    }

    fn report(&self, round: Result<(), StoreError>, now: Duration) {
        let mut failure = lock(&self.failure);
        match (round, &*failure) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => {
                tracing::info!(store = %self.place().display(), "the store of API keys is back");
                *failure = None;
            }
            (Err(error), None) => {
                tracing::error!(store = %self.place().display(), %error, "the store of API keys is away; the last known keys go on");
                *failure = Some(Failure { reason: error.to_string().into(), since: now });
            }
            (Err(error), Some(known)) => *failure = Some(Failure { reason: error.to_string().into(), since: known.since }),
        }
    }

    fn place(&self) -> &Path {
        match &self.source {
            Source::Database(path) | Source::File(path) => path,
        }
    }
}

/// How long the gateway waits for another process that writes. Short: keys that changed are waiting in the same queue.
const PATIENCE: Duration = Duration::from_millis(250);

impl Drop for ApiKeys {
    /// A store that a reload took out of the configuration keeps its last counts. A decision that was only tried leaves none.
    fn drop(&mut self) {
        if *self.maintained.get_mut() {
            self.flush();
        }
    }
}

/// A panic while one of these was held has left nothing half done that the next change would not set right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Now;

    fn record(id: &str) -> Record {
        Record {
            id: id.into(),
            sha256: KeyHash::of(id),
            previous: None,
            consumer: "acme".into(),
            scopes: vec![],
            routes: vec![],
            allow: vec![],
            plan: None,
            created: None,
            not_before: None,
            expires: None,
            revoked: None,
        }
    }

    fn writer(path: &Path) -> KeyStore {
        KeyStore::open(path, Opening::Create, Duration::from_secs(5)).unwrap()
    }

    fn revoke(store: &mut KeyStore, id: &str) {
        let revoke = |record: &mut Record| {
            record.revoked = Some(1);
            Ok(())
        };
        store.update(id, revoke).unwrap();
    }

    fn is_good(keys: &ApiKeys, id: &str) -> bool {
        keys.table().find(&KeyHash::of(id)).is_some_and(|key| !key.is_revoked())
    }

    fn use_once(keys: &ApiKeys, id: &str, now: u64) -> Arc<Identity> {
        let known = keys.table().find(&KeyHash::of(id)).unwrap();
        keys.count(&known, "192.0.2.1".parse().unwrap(), now);
        keys.table().introduce(known, &"p".into())
    }

    fn requests(path: &Path, id: &str) -> u64 {
        writer(path).usage(id).unwrap().map_or(0, |usage| usage.requests)
    }

    #[test]
    fn only_what_changed_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let mut store = writer(&path);
        store.insert(&[record("a"), record("b")]).unwrap();
        let keys = ApiKeys::new(Source::Database(path));
        keys.refresh().unwrap();
        let untouched = keys.table().find(&KeyHash::of("a")).unwrap().clone();
        store.insert(&[record("c")]).unwrap();
        revoke(&mut store, "b");
        keys.refresh().unwrap();
        assert!(Arc::ptr_eq(&untouched, &keys.table().find(&KeyHash::of("a")).unwrap()));
        assert_eq!([is_good(&keys, "a"), is_good(&keys, "b"), is_good(&keys, "c")], [true, false, true]);
    }

    #[test]
    fn a_store_that_goes_away_leaves_the_last_known_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        writer(&path).insert(&[record("a"), record("b")]).unwrap();
        let keys = ApiKeys::new(Source::Database(path.clone()));
        keys.refresh().unwrap();
        use_once(&keys, "a", 7);

        std::fs::rename(&path, folder.path().join("away.db")).unwrap();
        assert!(matches!(keys.refresh(), Err(StoreError::Open(OpenError::Missing { .. }))));
        assert!(keys.write_usage().is_err());
        assert!(is_good(&keys, "a") && keys.is_loaded());
        assert!(!path.exists(), "a running gateway makes no empty store");

        std::fs::write(&path, "damaged").unwrap();
        assert!(keys.refresh().is_err());
        assert!(is_good(&keys, "a"));

        std::fs::rename(folder.path().join("away.db"), &path).unwrap();
        revoke(&mut writer(&path), "b");
        keys.refresh().unwrap();
        keys.write_usage().unwrap();
        assert_eq!([is_good(&keys, "a"), is_good(&keys, "b")], [true, false]);
        assert_eq!(requests(&path, "a"), 1, "usage waited for the store");
    }

    #[test]
    fn another_store_in_the_same_place_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (path, backup) = (folder.path().join("keys.db"), folder.path().join("backup.db"));
        writer(&backup).insert(&[record("a")]).unwrap();
        let mut store = writer(&path);
        store.insert(&[record("a"), record("b")]).unwrap();
        store.insert(&[record("c")]).unwrap();
        let keys = ApiKeys::new(Source::Database(path.clone()));
        keys.refresh().unwrap();
        assert!(is_good(&keys, "b"));
        drop(store);
        // A journal belongs to its database: whoever restores one takes the other's away (docs/api-keys.md).
        for journal in ["keys.db-wal", "keys.db-shm"] {
            std::fs::remove_file(folder.path().join(journal)).unwrap();
        }
        std::fs::rename(&backup, &path).unwrap();
        keys.refresh().unwrap();
        assert_eq!([is_good(&keys, "a"), is_good(&keys, "b"), is_good(&keys, "c")], [true, false, false]);
    }

    #[test]
    fn a_record_that_cannot_be_read_any_more_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        writer(&path).insert(&[record("a"), record("b")]).unwrap();
        let keys = ApiKeys::new(Source::Database(path.clone()));
        keys.refresh().unwrap();
        let other = rusqlite::Connection::open(&path).unwrap();
        other.execute("UPDATE api_key SET scopes = '[1]', revision = 99 WHERE id = 'a'", []).unwrap();
        keys.refresh().unwrap();
        assert_eq!([is_good(&keys, "a"), is_good(&keys, "b")], [false, true]);
    }

    #[test]
    fn every_use_is_counted_once_however_many_threads_count_and_flush() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        writer(&path).insert(&[record("a"), record("b")]).unwrap();
        let keys = ApiKeys::new(Source::Database(path.clone()));
        keys.refresh().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5_000).for_each(|n| drop(use_once(&keys, if n % 5 == 0 { "b" } else { "a" }, n / 100))));
            }
            scope.spawn(|| (0..20).for_each(|_| keys.write_usage().unwrap()));
        });
        keys.write_usage().unwrap();
        assert_eq!((requests(&path, "a"), requests(&path, "b")), (16_000, 4_000));
    }

    #[test]
    fn a_key_is_found_by_what_it_has_and_by_what_it_had_before_and_by_nothing_older() {
        let table = Table::default();
        let found = |secret: &str| table.find(&KeyHash::of(secret)).map(|key| key.id.to_string());
        let mut key = record("a");
        table.apply(key.clone());
        key.rotate(KeyHash::of("a2"), 9);
        table.apply(key.clone());
        assert_eq!(["a", "a2", "a3"].map(found), [Some("a".into()), Some("a".into()), None]);
        key.rotate(KeyHash::of("a3"), 9);
        table.apply(key.clone());
        assert_eq!(["a", "a2", "a3"].map(found), [None, Some("a".into()), Some("a".into())]);

        table.apply(Record { previous: Some(Previous { sha256: key.sha256, ends: 9 }), ..key.clone() });
        assert!(table.find(&key.sha256).unwrap().is_opened_by(&key.sha256, 10), "what is current has no end");

        table.apply(Record { revoked: Some(1), ..key });
        assert!(table.find(&KeyHash::of("a3")).unwrap().is_revoked(), "the revoked one stands in the place of the good one");

        // What one key had and another gets is the other's, also when the one goes.
        table.apply(Record { sha256: KeyHash::of("a2"), ..record("b") });
        assert_eq!(["a2", "a3"].map(found), [Some("b".into()), Some("a".into())]);
        table.remove("a");
        assert_eq!(["a2", "a3"].map(found), [Some("b".into()), None]);
        table.remove("b");
        assert_eq!(["a", "a2", "a3"].map(found), [None, None, None]);
        assert!(table.is_empty() && table.by_hash.is_empty());
    }

    #[test]
    fn both_secrets_of_a_key_are_one_credential_and_one_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let mut rotated = record("a");
        rotated.rotate(KeyHash::of("a2"), 9);
        writer(&path).insert(&[rotated]).unwrap();
        let keys = ApiKeys::new(Source::Database(path.clone()));
        keys.refresh().unwrap();
        let identities = [("a", 7), ("a2", 8)].map(|(secret, now)| use_once(&keys, secret, now));
        assert_eq!(identities[0], identities[1]);
        assert_eq!(identities[0].credential, KeyHash::of("a2").0);
        keys.write_usage().unwrap();
        assert_eq!(requests(&path, "a"), 2);
        assert_eq!(keys.table().len(), 1);
    }

    #[test]
    fn an_identity_is_kept_with_the_key_it_was_built_of_and_for_who_asked_last() {
        let table = Table::default();
        let find = || table.find(&KeyHash::of("a")).unwrap();
        let [one, other] = ["one", "other"].map(Arc::<str>::from);
        table.apply(record("a"));
        assert!(find().identity(&one).is_none());
        let built = table.introduce(find(), &one);
        assert!(Arc::ptr_eq(&built, find().identity(&one).unwrap()));
        assert!(find().identity(&other).is_none());
        assert_eq!(table.introduce(find(), &other).authenticator, other);
        assert!(find().identity(&one).is_none());

        let before = Arc::clone(&find());
        table.apply(Record { consumer: "globex".into(), ..record("a") });
        assert!(find().identity(&other).is_none());
        table.keep(&before, built);
        assert!(find().identity(&one).is_none(), "what was built of the key before says nothing of this one");
        assert_eq!(table.introduce(find(), &one).consumer.as_deref(), Some("globex"));
    }

    #[test]
    fn what_a_request_asks_of_a_key_lies_together() {
        let counts_of_arc = 2 * size_of::<usize>();
        assert!(std::mem::offset_of!(Key, usage) + size_of::<Usage>() + counts_of_arc <= 128);
        assert_eq!(size_of::<Key>() + counts_of_arc, 160, "a size that the allocator has");
        assert_eq!(size_of::<(ByHash, Option<Arc<Identity>>)>(), 2 * size_of::<usize>());
    }

    #[test]
    fn shared_grants_do_not_pile_up() {
        let table = Table::default();
        for n in 0..10_000 {
            table.apply(Record { plan: Some(n.to_string().into()), ..record("a") });
        }
        assert!(lock(&table.writer).grants.len() <= 1025);
    }

    #[test]
    fn usage_is_written_every_two_seconds_and_less_often_where_that_takes_long() {
        let paused = |milliseconds| pause(Duration::from_millis(milliseconds));
        assert_eq!(paused(0), FLUSH);
        assert_eq!(paused(20), FLUSH);
        assert_eq!(paused(200), Duration::from_millis(19_800));
        assert_eq!(paused(3_000), RARELY);
        assert_eq!(pause(Duration::MAX), RARELY);
    }

    #[tokio::test]
    async fn upkeep_follows_another_process_and_ends_with_its_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/keys.db");
        let keys = Arc::new(ApiKeys::new(Source::Database(path.clone())));
        // Asked once before and three times in each round, which is a second by this clock, so that every other round writes usage.
        let asked = AtomicU64::new(2);
        let clock: Clock = Arc::new(move || Now {
            monotonic: Duration::from_secs(asked.fetch_add(1, Ordering::Relaxed) / 3),
            unix: Duration::from_secs(5),
        });
        let upkeep = tokio::spawn(ApiKeys::maintain(Arc::downgrade(&keys), clock));
        let until = async |what: &str, reached: &dyn Fn() -> bool| {
            let limit = tokio::time::timeout(Duration::from_secs(20), async {
                while !reached() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            limit.await.unwrap_or_else(|_| panic!("{what}"));
        };
        until("loaded", &|| keys.is_loaded()).await;
        writer(&path).insert(&[record("a")]).unwrap();
        until("the new key is known", &|| is_good(&keys, "a")).await;
        use_once(&keys, "a", 5);
        until("its usage is written", &|| requests(&path, "a") == 1).await;
        revoke(&mut writer(&path), "a");
        until("the revocation is known", &|| !is_good(&keys, "a")).await;
        assert_eq!(keys.failure(), None);
        use_once(&keys, "a", 5);
        let path = path.clone();
        drop(keys);
        tokio::time::timeout(Duration::from_secs(20), upkeep).await.unwrap().unwrap();
        assert_eq!(requests(&path, "a"), 2, "the last use was written when the keys went");
    }
}
