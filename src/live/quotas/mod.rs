//! Quotas: what a key may use in a day, a month or a rolling time, counted in memory and written behind to a database, so that a restart
//! forgets nothing.
//!
//! A charge never waits for the disk. What a process that is killed had not written yet, at most [`FLUSH`] of charges, is given away; that
//! and what a clock may do to a quota is told in `docs/limits.md`.

mod account;
mod period;
mod store;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

pub(crate) use account::Account;
pub use period::Period;
pub(crate) use store::QuotaStore;
pub use store::StoreError;

use self::account::Entry;
use self::store::Addition;
use super::api_keys::Failure;
use super::database::Opening;
use super::limits::{Key, KeyBuilder, Standing};
use crate::request::{Clock, Now};

/// How often what was charged is written down: what a crash can lose, and how late another process on the same database hears of it.
pub const FLUSH: Duration = Duration::from_secs(1);

/// How many keys of one quota are told apart.
pub const KEYS: usize = SHARDS * SHARD_KEYS;

const SHARDS: usize = 64;
/// Seven eighths of a power of two: as much as a table of the standard library holds before it doubles.
const SHARD_KEYS: usize = 14_336;

/// A database that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(5);
/// How often what is over is cleaned away.
const CLEAN: Duration = Duration::from_secs(600);
/// What is over is kept for so long, for a clock that goes back.
const MEMORY: u64 = 3_600;
/// Long enough for another process to write down very many keys.
const PATIENCE: Duration = Duration::from_secs(10);

/// For who asks too early.
const REFUSED: Standing = Standing { admitted: false, remaining: 0, reset: RETRY, retry_after: RETRY, wait: Duration::ZERO };

/// What an operator may tune of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaTerms {
    /// Units per period.
    pub limit: u64,
    /// The period.
    pub period: Period,
}

/// The counts of one quota, by the ledger that keeps them and the name.
#[derive(Debug)]
pub struct Quotas {
    counts: Arc<Counts>,
    ledger: Arc<Ledger>,
}

impl Quotas {
    /// The quota of a name: the same counts as any other of this name in the ledger.
    pub fn new(ledger: Arc<Ledger>, name: &Arc<str>) -> Self {
        Self { counts: ledger.counts(name), ledger }
    }

    /// Charges `cost` units to `key`, all or none, and says where it stands. Nothing is admitted before the ledger is open.
    pub fn charge(&self, key: &Key, terms: &QuotaTerms, cost: u64, now: Now) -> Standing {
        if !self.ledger.is_open() {
            return REFUSED;
        }
        self.counts.charge(key, terms, cost, now.unix).unwrap_or(REFUSED)
    }

    /// Takes back what [`charge`](Self::charge) charged at `now`.
    pub fn refund(&self, key: &Key, terms: &QuotaTerms, cost: u64, now: Now) {
        self.counts.refund(key, terms, cost, now.unix);
    }

    /// Where a key stands; `admitted` says whether one more unit would be.
    pub fn standing(&self, key: &Key, terms: &QuotaTerms, now: Now) -> Standing {
        self.counts.standing(key, terms, now.unix).unwrap_or(REFUSED)
    }

    /// How many keys are told apart.
    pub fn keys(&self) -> usize {
        self.counts.keys()
    }
}

/// The quotas that share a database; outlives every snapshot that uses it.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    open: AtomicBool,
    quotas: Mutex<HashMap<Arc<str>, Arc<Counts>>>,
    store: Mutex<Option<QuotaStore>>,
    failure: Mutex<Option<Failure>>,
}

impl Ledger {
    /// A ledger that is still to be [opened](Self::open).
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            open: AtomicBool::new(false),
            quotas: Mutex::default(),
            store: Mutex::default(),
            failure: Mutex::default(),
        }
    }

    /// Opens the database, or makes it, and reads what counts. Blocks; done once, before anybody is charged.
    ///
    /// # Errors
    /// When the database cannot be made, opened or read, or is not ours: then nobody is admitted.
    pub fn open(&self, now: Now) -> Result<(), StoreError> {
        let mut slot = lock(&self.store);
        if self.is_open() {
            return Ok(());
        }
        let store = QuotaStore::open(&self.path, Opening::Create, PATIENCE)?;
        let since = now.unix.as_secs().saturating_sub(MEMORY);
        store.read_all(since, |name, key, entry| self.counts(&name).merge(&key, entry))?;
        *slot = Some(store);
        self.open.store(true, Ordering::Release);
        Ok(())
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why charges are not written down at the moment, if so. Counting goes on in memory.
    pub fn failure(&self) -> Option<Failure> {
        lock(&self.failure).clone()
    }

    /// How many keys each quota tells apart.
    pub fn keys(&self) -> Vec<(Arc<str>, usize)> {
        lock(&self.quotas).iter().map(|(name, counts)| (name.clone(), counts.keys())).collect()
    }

    /// Writes behind and cleans, until nobody uses the ledger.
    pub async fn maintain(this: Weak<Self>, clock: Clock) {
        let mut next_clean = Duration::ZERO;
        while let Some(ledger) = this.upgrade() {
            let now = clock();
            let clean = now.monotonic >= next_clean;
            if clean {
                next_clean = now.monotonic + CLEAN;
            }
            let round = tokio::task::spawn_blocking(move || {
                let done = ledger.write().and_then(|()| if clean { ledger.clean(now.unix.as_secs()) } else { Ok(()) });
                let written = done.is_ok();
                ledger.report(done, now.unix);
                written
            });
            let written = round.await.unwrap_or(false);
            tokio::time::sleep(if written { FLUSH } else { RETRY }).await;
        }
    }

    /// Writes down now: at shutdown, so that nothing is lost.
    pub fn flush(&self) {
        if let Err(error) = self.write() {
            tracing::error!(database = %self.path.display(), %error, "what was used of quotas was not written");
        }
    }

    /// What cannot be written is kept for the next time.
    fn write(&self) -> Result<(), StoreError> {
        let mut slot = lock(&self.store);
        // Not opened: nobody was admitted, nothing was charged.
        let Some(store) = slot.as_mut() else { return Ok(()) };
        if !store.is_in_place() {
            return Err(StoreError::Replaced(self.path.clone()));
        }
        let quotas = lock(&self.quotas).clone();
        let additions: Vec<Addition> = quotas.values().flat_map(|counts| counts.take_unwritten()).collect();
        if additions.is_empty() {
            return Ok(());
        }
        let counts = |addition: &Addition| quotas.get(&addition.quota);
        let written = store.add(&additions, |addition, entry| {
            if let Some(counts) = counts(addition) {
                counts.merge(&addition.key, entry);
            }
        });
        if written.is_err() {
            for addition in &additions {
                if let Some(counts) = counts(addition) {
                    counts.give_back(&addition.key, addition.entry);
                }
            }
        }
        written
    }

    fn clean(&self, second: u64) -> Result<(), StoreError> {
        let mut quotas = lock(&self.quotas);
        quotas.retain(|_, counts| counts.forget(second) || Arc::strong_count(counts) > 1);
        drop(quotas);
        lock(&self.store).as_ref().map_or(Ok(()), |store| store.clean(second.saturating_sub(MEMORY)))
    }

    fn report(&self, round: Result<(), StoreError>, now: Duration) {
        let mut failure = lock(&self.failure);
        match (round, &*failure) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => {
                tracing::info!(database = %self.path.display(), "quotas are written down again");
                *failure = None;
            }
            (Err(error), None) => {
                tracing::error!(database = %self.path.display(), %error, "quotas are not written down; counting goes on in memory");
                *failure = Some(Failure { reason: error.to_string().into(), since: now });
            }
            (Err(error), Some(known)) => *failure = Some(Failure { reason: error.to_string().into(), since: known.since }),
        }
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn counts(&self, name: &Arc<str>) -> Arc<Counts> {
        lock(&self.quotas).entry(name.clone()).or_insert_with(|| Arc::new(Counts::new(name.clone(), SHARDS, SHARD_KEYS))).clone()
    }
}

impl Drop for Ledger {
    /// The last snapshot that used it is gone; what was charged under it still counts when another one comes.
    fn drop(&mut self) {
        self.flush();
    }
}

/// The counts of one quota.
#[derive(Debug)]
struct Counts {
    name: Arc<str>,
    shards: Box<[Shard]>,
    shard_keys: usize,
    hasher: ahash::RandomState,
}

/// On cache lines of its own, so that threads at different shards do not disturb each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<Accounts>);

#[derive(Debug, Default)]
struct Accounts {
    table: HashMap<Key, Account, ahash::RandomState>,
    /// The keys of which something is to be written down, each once.
    unwritten: Vec<Key>,
}

impl Counts {
    fn new(name: Arc<str>, shards: usize, shard_keys: usize) -> Self {
        Self { name, shards: (0..shards).map(|_| Shard::default()).collect(), shard_keys, hasher: ahash::RandomState::new() }
    }

    fn charge(&self, key: &Key, terms: &QuotaTerms, cost: u64, unix: Duration) -> Option<Standing> {
        self.with(key, |account| account.charge(terms, cost, unix))
    }

    fn refund(&self, key: &Key, terms: &QuotaTerms, cost: u64, unix: Duration) {
        self.with(key, |account| account.refund(terms.period, cost, unix));
    }

    fn standing(&self, key: &Key, terms: &QuotaTerms, unix: Duration) -> Option<Standing> {
        self.with(key, |account| account.standing(terms, unix))
    }

    fn merge(&self, key: &Key, entry: Entry) {
        self.with(key, |account| account.merge(entry));
    }

    fn give_back(&self, key: &Key, entry: Entry) {
        self.with(key, |account| account.give_back(entry));
    }

    fn take_unwritten(&self) -> Vec<Addition> {
        let mut additions = Vec::new();
        for shard in &self.shards {
            let mut accounts = shard.lock();
            for key in std::mem::take(&mut accounts.unwritten) {
                let entries = accounts.table.get_mut(&key).into_iter().flat_map(Account::take_unwritten);
                additions.extend(entries.map(|entry| Addition { quota: self.name.clone(), key, entry }));
            }
        }
        additions
    }

    /// Forgets what is over, and says whether anything is left.
    fn forget(&self, second: u64) -> bool {
        let mut left = false;
        for shard in &self.shards {
            let table = &mut shard.lock().table;
            table.retain(|_, account| account.forget(second, MEMORY));
            // After a flood the room goes back; a table of usual size is kept.
            if table.capacity() > 4 * table.len() {
                table.shrink_to(2 * table.len());
            }
            left |= !table.is_empty();
        }
        left
    }

    fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().table.len()).sum()
    }

    /// Works on the account of a key. All for whom there is no room share one, so that a flood of keys makes nobody free.
    fn with<T>(&self, key: &Key, work: impl FnOnce(&mut Account) -> T) -> Option<T> {
        let mut accounts = self.accounts(key)?;
        if accounts.table.len() < self.shard_keys || accounts.table.contains_key(key) {
            return Some(accounts.with(key, work));
        }
        drop(accounts);
        let everybody = KeyBuilder::default().finish();
        Some(self.accounts(&everybody)?.with(&everybody, work))
    }

    fn accounts(&self, key: &Key) -> Option<MutexGuard<'_, Accounts>> {
        // The table inside the shard takes its place from the lowest bits of the same hash and its tag from the highest.
        let hash = self.hasher.hash_one(key) >> 32;
        self.shards.get(hash as usize % self.shards.len().max(1)).map(Shard::lock)
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Accounts> {
        lock(&self.0)
    }
}

impl Accounts {
    fn with<T>(&mut self, key: &Key, work: impl FnOnce(&mut Account) -> T) -> T {
        let Some(account) = self.table.get_mut(key) else {
            let mut account = Account::default();
            let done = work(&mut account);
            if account.lists() {
                self.unwritten.push(*key);
            }
            if !account.is_empty() {
                self.table.insert(*key, account);
            }
            return done;
        };
        let done = work(account);
        if account.lists() {
            self.unwritten.push(*key);
        }
        done
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;
    /// 2026-11-23T00:00:00Z.
    const MONDAY: u64 = 1_795_392_000;
    const DAILY: QuotaTerms = QuotaTerms { limit: 10, period: Period::Day };

    fn key(text: &str) -> Key {
        let mut key = KeyBuilder::default();
        key.part(0, text.as_bytes());
        key.finish()
    }

    fn at(second: u64) -> Now {
        Now { monotonic: Duration::from_secs(second), unix: Duration::from_secs(second) }
    }

    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("data/quotas.db")
        }

        /// A process that opened the database at this second.
        fn start(&self, second: u64) -> (Arc<Ledger>, Quotas) {
            let ledger = Arc::new(Ledger::new(&self.path()));
            ledger.open(at(second)).unwrap();
            let quotas = Quotas::new(ledger.clone(), &"daily".into());
            (ledger, quotas)
        }
    }

    fn admits(quotas: &Quotas, terms: QuotaTerms, cost: u64, second: u64) -> bool {
        quotas.charge(&key("acme"), &terms, cost, at(second)).admitted
    }

    #[test]
    fn a_day_has_its_quota_and_the_next_one_has_it_again() {
        let host = Host::new();
        let (_ledger, quotas) = host.start(MONDAY);
        assert!((0..10).all(|_| admits(&quotas, DAILY, 1, MONDAY + DAY - 1)));
        let refused = quotas.charge(&key("acme"), &DAILY, 1, Now { unix: Duration::from_millis((MONDAY + DAY) * 1000 - 250), ..at(0) });
        let left = Duration::from_millis(250);
        assert_eq!((refused.admitted, refused.remaining, refused.reset, refused.retry_after), (false, 0, left, left));
        assert!(admits(&quotas, DAILY, 10, MONDAY + DAY));
        assert!(!admits(&quotas, DAILY, 1, MONDAY + DAY));
    }

    #[test]
    fn what_was_written_survives_a_restart_and_a_crash_gives_the_rest_away() {
        let host = Host::new();
        let (ledger, quotas) = host.start(MONDAY);
        assert!(admits(&quotas, DAILY, 4, MONDAY));
        ledger.flush();
        assert!(admits(&quotas, DAILY, 3, MONDAY));
        // As kill -9 does: nothing is dropped in order.
        std::mem::forget((ledger, quotas));
        let (ledger, quotas) = host.start(MONDAY + 5);
        assert_eq!(quotas.standing(&key("acme"), &DAILY, at(MONDAY + 5)).remaining, 6);
        assert!(admits(&quotas, DAILY, 6, MONDAY + 5));
        drop((ledger, quotas));
        let (_ledger, quotas) = host.start(MONDAY + 6);
        assert!(!admits(&quotas, DAILY, 1, MONDAY + 6));
        assert_eq!(quotas.keys(), 1);
    }

    #[test]
    fn nobody_is_admitted_before_the_ledger_is_open() {
        let host = Host::new();
        let quotas = Quotas::new(Arc::new(Ledger::new(&host.path())), &"daily".into());
        assert!(!admits(&quotas, DAILY, 1, MONDAY));
        assert!(!host.path().exists());
    }
}
