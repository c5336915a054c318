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

pub use period::Period;
pub use store::StoreError;

use self::account::{Account, Entry};
use self::store::{Addition, QuotaStore};
use super::api_keys::Failure;
use super::database::{OpenError, Opening};
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

/// How much is written in one transaction: other processes that write wait for no more than that.
const TOGETHER: usize = 10_000;

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
        self.counts().and_then(|counts| counts.charge(key, terms, cost, now.unix)).unwrap_or(REFUSED)
    }

    /// Takes back what [`charge`](Self::charge) charged at `now`.
    pub fn refund(&self, key: &Key, terms: &QuotaTerms, cost: u64, now: Now) {
        self.counts.refund(key, terms, cost, now.unix);
    }

    /// Where a key stands; `admitted` says whether one more unit would be.
    pub fn standing(&self, key: &Key, terms: &QuotaTerms, now: Now) -> Standing {
        self.counts().and_then(|counts| counts.standing(key, terms, now.unix)).unwrap_or(REFUSED)
    }

    /// Where a key stands by what is written down: for who looks on while another process counts. Blocks.
    ///
    /// # Errors
    /// When the database cannot be opened or read. One that is not there holds nothing.
    pub fn written(&self, key: &Key, terms: &QuotaTerms, now: Now) -> Result<Standing, StoreError> {
        let account = match QuotaStore::open(&self.ledger.path, Opening::Existing, PATIENCE) {
            Err(StoreError::Open(OpenError::Missing { .. })) => Account::default(),
            store => store?.read(&self.counts.name, key)?,
        };
        Ok(account.standing(terms, now.unix))
    }

    /// How many keys are told apart.
    pub fn keys(&self) -> usize {
        self.counts.keys()
    }

    /// The counts, once what was written down is among them.
    fn counts(&self) -> Option<&Counts> {
        self.ledger.is_open().then_some(&*self.counts)
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
        let mut additions: Vec<Addition> = quotas.values().flat_map(|counts| counts.take_unwritten()).collect();
        // In the order of the rows: neighbours share a page.
        additions.sort_unstable_by(|one, other| (&one.quota, one.key.as_bytes()).cmp(&(&other.quota, other.key.as_bytes())));
        let mut written = Ok(());
        for part in additions.chunks(TOGETHER) {
            if written.is_ok() {
                written = store.add(part, |addition, entry| {
                    if let Some(counts) = quotas.get(&addition.quota) {
                        counts.merge(&addition.key, entry);
                    }
                });
            }
            if written.is_err() {
                for Addition { quota, key, entry } in part {
                    if let Some(counts) = quotas.get(quota) {
                        counts.give_back(key, *entry);
                    }
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
    use proptest::prelude::*;

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
        assert_eq!(quotas.standing(&key("acme"), &DAILY, at(MONDAY)).remaining, 0);
        assert!(!host.path().exists());
    }

    #[test]
    fn quotas_of_one_name_share_their_counts_and_those_of_others_do_not() {
        let host = Host::new();
        let (ledger, quotas) = host.start(MONDAY);
        let (same, other) = (Quotas::new(ledger.clone(), &"daily".into()), Quotas::new(ledger.clone(), &"other".into()));
        assert!(admits(&quotas, DAILY, 10, MONDAY));
        assert!(!admits(&same, DAILY, 1, MONDAY));
        assert!(admits(&other, DAILY, 10, MONDAY));
        assert!(quotas.charge(&key("umbrella"), &DAILY, 10, at(MONDAY)).admitted);
        drop((ledger, quotas, same, other));
        let (ledger, _quotas) = host.start(MONDAY);
        let mut keys = ledger.keys();
        keys.sort();
        assert_eq!(keys, [("daily".into(), 2), ("other".into(), 1)]);
    }

    #[test]
    fn two_processes_on_one_database_add_up_and_hear_of_each_other_when_they_write() {
        let host = Host::new();
        let (one, first) = host.start(MONDAY);
        let (two, second) = host.start(MONDAY);
        assert!(admits(&first, DAILY, 4, MONDAY) && admits(&second, DAILY, 5, MONDAY));
        one.flush();
        two.flush();
        assert_eq!(second.standing(&key("acme"), &DAILY, at(MONDAY)).remaining, 1);
        assert!(admits(&first, DAILY, 1, MONDAY));
        one.flush();
        assert!(!admits(&first, DAILY, 1, MONDAY));
        let (_three, third) = host.start(MONDAY);
        assert!(!admits(&third, DAILY, 1, MONDAY));
    }

    #[test]
    fn a_database_that_goes_away_leaves_the_counting_in_memory_and_nothing_is_lost_when_it_is_back() {
        let host = Host::new();
        let (ledger, quotas) = host.start(MONDAY);
        assert!(admits(&quotas, DAILY, 2, MONDAY));
        let away = host.0.path().join("away.db");
        std::fs::rename(host.path(), &away).unwrap();
        let written = ledger.write();
        assert!(matches!(written, Err(StoreError::Replaced(_))), "{written:?}");
        ledger.report(written, Duration::from_secs(MONDAY));
        assert!(ledger.failure().is_some_and(|failure| failure.since.as_secs() == MONDAY));
        assert!(admits(&quotas, DAILY, 3, MONDAY));
        std::fs::rename(&away, host.path()).unwrap();
        ledger.report(ledger.write(), Duration::from_secs(MONDAY + 1));
        assert_eq!(ledger.failure(), None);
        let (_ledger, quotas) = host.start(MONDAY);
        assert_eq!(quotas.standing(&key("acme"), &DAILY, at(MONDAY)).remaining, 5);
    }

    #[test]
    fn what_cannot_be_written_is_written_later_and_once() {
        let host = Host::new();
        let (ledger, quotas) = host.start(MONDAY);
        assert!(admits(&quotas, DAILY, 2, MONDAY));
        let foreign = rusqlite::Connection::open(host.path()).unwrap();
        foreign.execute_batch("ALTER TABLE quota_use RENAME TO away").unwrap();
        assert!(ledger.write().is_err());
        assert!(admits(&quotas, DAILY, 2, MONDAY));
        foreign.execute_batch("ALTER TABLE away RENAME TO quota_use").unwrap();
        ledger.write().unwrap();
        ledger.write().unwrap();
        let used: i64 = foreign.query_row("SELECT sum(used) FROM quota_use", [], |row| row.get(0)).unwrap();
        assert_eq!(used, 4);
        assert_eq!(quotas.standing(&key("acme"), &DAILY, at(MONDAY)).remaining, 6);
    }

    #[test]
    fn a_database_that_is_not_ours_or_damaged_is_a_clear_error_and_admits_nobody() {
        let host = Host::new();
        std::fs::create_dir_all(host.path().parent().unwrap()).unwrap();
        std::fs::write(host.path(), "not a database".repeat(500)).unwrap();
        let ledger = Arc::new(Ledger::new(&host.path()));
        let error = ledger.open(at(MONDAY)).unwrap_err().to_string();
        assert!(error.ends_with("quotas.db: file is not a database"), "{error}");
        assert!(!admits(&Quotas::new(ledger, &"daily".into()), DAILY, 1, MONDAY));

        std::fs::remove_file(host.path()).unwrap();
        drop(host.start(MONDAY));
        let foreign = rusqlite::Connection::open(host.path()).unwrap();
        foreign.execute("INSERT INTO quota_use VALUES ('daily', x'00', 1, 1, 9223372036854775807, 1)", []).unwrap();
        let error = Ledger::new(&host.path()).open(at(MONDAY)).unwrap_err().to_string();
        assert!(error.contains("key"), "{error}");
    }

    #[test]
    fn what_is_over_is_cleaned_from_memory_and_from_the_database() {
        let host = Host::new();
        let (ledger, quotas) = host.start(MONDAY);
        for n in 0..1_000 {
            assert!(quotas.charge(&key(&n.to_string()), &DAILY, 1, at(MONDAY)).admitted);
        }
        let rows = || {
            let foreign = rusqlite::Connection::open(host.path()).unwrap();
            foreign.query_row("SELECT count(*) FROM quota_use", [], |row| row.get::<_, i64>(0)).unwrap()
        };
        ledger.clean(MONDAY + 2 * DAY).unwrap();
        assert_eq!(quotas.keys(), 1_000, "not forgotten before it is written down");
        ledger.flush();
        ledger.clean(MONDAY + DAY + MEMORY - 1).unwrap();
        assert_eq!((quotas.keys(), rows()), (1_000, 1_000));
        ledger.clean(MONDAY + DAY + MEMORY).unwrap();
        assert_eq!((quotas.keys(), rows()), (0, 0));
        let room: usize = quotas.counts.shards.iter().map(|shard| shard.lock().table.capacity()).sum();
        assert_eq!(room, 0);
    }

    #[test]
    fn a_flood_of_keys_is_bounded_frees_nobody_and_shares_one_quota() {
        let counts = Counts::new("daily".into(), 4, 100);
        let known = key("known");
        let unix = Duration::from_secs(MONDAY);
        assert!(counts.charge(&known, &DAILY, 10, unix).unwrap().admitted);
        let mut strangers = 0;
        for n in 0..100_000 {
            strangers += u64::from(counts.charge(&key(&n.to_string()), &DAILY, 10, unix).unwrap().admitted);
        }
        assert!(counts.keys() <= 4 * 100 + 1);
        // Those who have room of their own beside the one that is known, and one for all the others together.
        assert!((399..=400).contains(&strangers), "{strangers}");
        assert!(!counts.charge(&known, &DAILY, 1, unix).unwrap().admitted);
    }

    #[test]
    fn threads_together_admit_as_many_as_the_quota_has_while_it_is_written_down() {
        let host = Host::new();
        let (ledger, quotas) = host.start(MONDAY);
        let terms = QuotaTerms { limit: 9_999, ..DAILY };
        let admitted = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        admitted.fetch_add(u64::from(admits(&quotas, terms, 1, MONDAY)), Ordering::Relaxed);
                    }
                });
            }
            (0..20).for_each(|_| ledger.flush());
        });
        assert_eq!(admitted.into_inner(), 9_999);
        drop((ledger, quotas));
        let (_ledger, quotas) = host.start(MONDAY);
        assert_eq!(quotas.standing(&key("acme"), &QuotaTerms { limit: 10_000, ..terms }, at(MONDAY)).remaining, 1);
    }

    #[tokio::test]
    async fn upkeep_writes_behind_and_ends_with_the_ledger() {
        let host = Host::new();
        let (ledger, quotas) = host.start(MONDAY);
        assert!(admits(&quotas, DAILY, 10, MONDAY));
        let clock: Clock = Arc::new(|| at(MONDAY));
        let upkeep = tokio::spawn(Ledger::maintain(Arc::downgrade(&ledger), clock));
        let (_other, watcher) = loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (other, watcher) = host.start(MONDAY);
            if !admits(&watcher, DAILY, 1, MONDAY) {
                break (other, watcher);
            }
            std::mem::forget((other, watcher));
        };
        assert!(!upkeep.is_finished());
        drop((ledger, quotas, watcher));
        tokio::time::timeout(Duration::from_secs(30), upkeep).await.unwrap().unwrap();
    }

    /// One process: what it knows of each key, what of that it has not written, and the keys that it will write.
    #[derive(Default)]
    struct Model {
        known: HashMap<usize, u64>,
        unwritten: HashMap<usize, i64>,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Charge { process: usize, key: usize, cost: u64 },
        Refund { process: usize, key: usize },
        Flush { process: usize },
        Crash { process: usize },
        Restart { process: usize },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (0..100_u32, 0..2_usize, 0..3_usize, 1..5_u64).prop_map(|(dice, process, key, cost)| match dice {
            0..70 => Step::Charge { process, key, cost },
            70..80 => Step::Refund { process, key },
            80..92 => Step::Flush { process },
            92..96 => Step::Crash { process },
            _ => Step::Restart { process },
        });
        proptest::collection::vec(step, 1..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_flushed_crashed_and_restarted_no_more_is_admitted_than_the_quota_and_the_stated_loss(
            limit in 1_u64..40, steps in steps(), alone in any::<bool>(),
        ) {
            let host = Host::new();
            let terms = QuotaTerms { limit, period: Period::Day };
            let keys = [key("a"), key("b"), key("c")];
            let mut processes = [Some(host.start(MONDAY)), Some(host.start(MONDAY))];
            let mut models = [Model::default(), Model::default()];
            let mut database: HashMap<usize, u64> = HashMap::new();
            let (mut admitted, mut lost, mut last) = ([0_u64; 3], [0_u64; 3], [[0_u64; 3]; 2]);
            let write = |model: &mut Model, database: &mut HashMap<usize, u64>| {
                for (key, units) in model.unwritten.drain() {
                    let written = database.entry(key).or_default();
                    *written = written.saturating_add_signed(units);
                    let known = model.known.entry(key).or_default();
                    *known = (*known).max(*written);
                }
            };
            for step in steps {
                let process = match step {
                    _ if alone => 0,
                    Step::Charge { process, .. } | Step::Refund { process, .. } => process,
                    Step::Flush { process } | Step::Crash { process } | Step::Restart { process } => process,
                };
                let model = &mut models[process];
                let (ledger, quotas) = processes[process].take().unwrap();
                processes[process] = Some(match step {
                    Step::Charge { key, cost, .. } => {
                        let known = model.known.entry(key).or_default();
                        let standing = quotas.charge(&keys[key], &terms, cost, at(MONDAY));
                        prop_assert_eq!(standing.admitted, *known + cost <= limit);
                        if standing.admitted {
                            *known += cost;
                            *model.unwritten.entry(key).or_default() += cost as i64;
                            admitted[key] += cost;
                            last[process][key] = cost;
                        }
                        (ledger, quotas)
                    }
                    // A refund follows its charge at once: in the same process, once.
                    Step::Refund { key, .. } => {
                        let cost = std::mem::take(&mut last[process][key]);
                        if cost > 0 {
                            quotas.refund(&keys[key], &terms, cost, at(MONDAY));
                            *model.known.entry(key).or_default() -= cost;
                            *model.unwritten.entry(key).or_default() -= cost as i64;
                            admitted[key] -= cost;
                        }
                        (ledger, quotas)
                    }
                    Step::Flush { .. } => {
                        ledger.write().unwrap();
                        write(model, &mut database);
                        (ledger, quotas)
                    }
                    Step::Crash { .. } => {
                        std::mem::forget((ledger, quotas));
                        for (key, units) in model.unwritten.drain() {
                            lost[key] += u64::try_from(units).unwrap_or(0);
                        }
                        *model = Model { known: database.clone(), ..Model::default() };
                        last[process] = [0; 3];
                        host.start(MONDAY)
                    }
                    Step::Restart { .. } => {
                        drop((ledger, quotas));
                        write(model, &mut database);
                        *model = Model { known: database.clone(), ..Model::default() };
                        last[process] = [0; 3];
                        host.start(MONDAY)
                    }
                });
                if alone {
                    for key in 0..3 {
                        prop_assert!(admitted[key] <= limit + lost[key], "{} of {limit}, {} lost", admitted[key], lost[key]);
                    }
                }
            }
        }
    }
}
