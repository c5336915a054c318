//! Where a fleet keeps what is revoked: one table in Redis that every node follows, and that the nodes who know it make whole again.
//!
//! Every change takes the next revision, so that a node that knows the last one reads only what is new. Redis may be emptied, replaced, or
//! lose its last moments when a replica takes over: over every new connection everything is read again, what it lacks nobody has taken back,
//! and a node writes it there anew.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::{FromRedisValue, ToRedisArgs};
use tokio::sync::Mutex;

use super::store::StoreError;
use super::table::{Change, Table};
use super::{Kind, Revocation};
use crate::net::redis::{CallError, Redis, Script, Server, Standing, TAG};

macro_rules! script {
    ($name:literal) => {
        LazyLock::new(|| Script::new(concat!(include_str!("shared/state.lua"), include_str!(concat!("shared/", $name, ".lua")))))
    };
}

static ADD: LazyLock<Script> = script!("add");
static REMOVE: LazyLock<Script> = script!("remove");
static READ: LazyLock<Script> = script!("read");
static FORGET: LazyLock<Script> = script!("forget");

/// How long one call may take. No request waits for it.
const DEADLINE: Duration = Duration::from_secs(1);
/// How many changes are read at once, and how many written: Redis serves nobody else meanwhile.
const PAGE: usize = 1000;
const BATCH: usize = 100;
/// For how long Redis tells that something was taken back, in seconds: a node that was away for longer goes on to refuse it.
const TOLD: u64 = 30 * 86_400;
/// Redis orders by numbers that are exact up to here; what ends later is never forgotten.
const EXACT: u64 = 1 << 53;

/// The revocations of one name in one Redis.
#[derive(Debug)]
pub(super) struct Shared {
    redis: Arc<Redis>,
    name: Arc<str>,
    keys: [Vec<u8>; 5],
    /// What is in force.
    pub(super) table: Arc<ArcSwapOption<Table>>,
    /// How far they were read. Held while something is changed: what comes of it is the last word until the next reading.
    position: Mutex<Option<Position>>,
}

#[derive(Debug, Clone)]
struct Position {
    connection: u64,
    /// When the table in Redis was begun, by its clock: another one is another table.
    born: u64,
    revision: u64,
    /// What Redis lacks and this node has still to write there.
    owed: Vec<Revocation>,
}

impl Position {
    /// Where nothing was revoked the table is begun with the first that is written. What becomes of it until the next reading is then news, and
    /// not another table, of which nobody knows what was taken back.
    fn is_written(&mut self, born: u64) {
        if self.born == 0 {
            self.born = born;
        }
    }
}

/// What was read in one go, each change with its revision.
#[derive(Debug, Default)]
struct News {
    born: u64,
    revision: u64,
    changes: Vec<(u64, Change)>,
}

impl Shared {
    pub(super) fn new(redis: Arc<Redis>, name: &str) -> Self {
        let keys = ["state", "entries", "taken_back", "changes", "expiries"];
        let keys = keys.map(|part| format!("{TAG}revocation:{name}:{part}").into_bytes());
        Self { redis, name: name.into(), keys, table: Arc::default(), position: Mutex::default() }
    }

    /// Works on a connection of its own, where no gateway keeps one, or none yet. Blocks.
    pub(super) fn once<T>(server: &Server, name: &str, work: impl AsyncFnOnce(&Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let redis = Arc::new(Redis::new(server.clone()).map_err(StoreError::Away)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StoreError::Interrupted)?;
        runtime.block_on(async {
            tokio::spawn(Redis::maintain(Arc::downgrade(&redis)));
            work(&Self::new(redis, name)).await
        })
    }

    /// Reads everything for the first time, before there is a connection that is kept. Blocks.
    pub(super) fn open(&self, most: usize, second: u64) -> Result<(), StoreError> {
        let (table, position) = Self::once(self.redis.server(), &self.name, async |other| {
            other.follow(most, second).await?;
            Ok((other.table.load_full(), other.position.lock().await.take()))
        })?;
        // No connection has this number: over the first one everything is read again.
        *self.position.blocking_lock() = position.map(|position| Position { connection: 0, ..position });
        self.table.store(table);
        Ok(())
    }

    /// Everything that is revoked.
    pub(super) async fn read_all(&self) -> Result<Vec<Revocation>, StoreError> {
        let revoked = self.read(0).await?.changes.into_iter().filter_map(|(_, change)| match change {
            Change::Add(revocation) | Change::Set(revocation) => Some(revocation),
            Change::Remove(_) => None,
        });
        Ok(revoked.collect())
    }

    /// Reads what changed since the last time into the table, and writes to Redis what it has lost.
    pub(super) async fn follow(&self, most: usize, second: u64) -> Result<(), StoreError> {
        let mut slot = self.position.lock().await;
        // Asked before reading: over a connection that is made meanwhile everything is read again.
        let connection = self.redis.connections();
        let known = slot.as_ref().filter(|known| known.connection == connection);
        let since = known.map_or(0, |known| known.revision);
        let mut news = self.read(since).await?;
        let continues = known.is_some_and(|known| known.born == news.born && known.revision <= news.revision);
        if since > 0 && !continues {
            news = self.read(0).await?;
        }
        let (born, revision, before) = (news.born, news.revision, self.table.load_full());
        let mut owed = slot.as_ref().map(|known| known.owed.clone()).unwrap_or_default();
        if !continues || !news.changes.is_empty() || before.is_none() {
            let known = slot.as_ref().map(|known| (known.born, known.revision));
            let work = move || {
                let before = before.as_deref();
                let (changes, lost) = if continues { (news.latest(), owed) } else { reconcile(news, known, before, second) };
                (before.unwrap_or(&Table::default()).with(changes), lost)
            };
            let (next, lost) = tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Interrupted(error.into()))?;
            if !continues && !lost.is_empty() {
                tracing::warn!(redis = %self.redis.server(), revocations = lost.len(), "Redis lacks what is revoked; it is written there anew");
            }
            self.table.store(Some(Arc::new(next)));
            owed = lost;
        }
        let position = slot.insert(Position { connection, born, revision, owed });
        while !position.owed.is_empty() {
            let batch = position.owed.len().saturating_sub(BATCH);
            let born = self.write(position.owed.get(batch..).unwrap_or_default(), most).await?;
            position.is_written(born);
            position.owed.truncate(batch);
        }
        Ok(())
    }

    /// Revokes, everywhere and in this table.
    pub(super) async fn add(&self, revocation: &Revocation, most: usize) -> Result<(), StoreError> {
        let mut slot = self.position.lock().await;
        let born = self.write(std::slice::from_ref(revocation), most).await?;
        if let Some(position) = &mut *slot {
            position.is_written(born);
        }
        self.apply(Change::Add(revocation.clone()));
        Ok(())
    }

    /// Takes a revocation back, everywhere and in this table, and says whether there was one.
    pub(super) async fn remove(&self, revocation: &Revocation) -> Result<bool, StoreError> {
        let mut slot = self.position.lock().await;
        let removed: u64 = self.change(&REMOVE, &[id(revocation), TOLD.to_string().into_bytes()]).await?;
        let mut existed = removed > 0;
        if let Some(position) = &mut *slot {
            let owed = position.owed.len();
            position.owed.retain(|owed| id(owed) != id(revocation));
            existed |= position.owed.len() < owed;
        }
        self.apply(Change::Remove(revocation.clone()));
        Ok(existed)
    }

    /// Forgets what could only meet credentials that ended before a second, and in Redis what is over by its clock.
    pub(super) async fn forget(&self, second: u64) -> Result<(), StoreError> {
        let _held = self.position.lock().await;
        let table = self.table.load_full();
        let next = tokio::task::spawn_blocking(move || table.and_then(|table| table.without_expired(second))).await;
        if let Some(next) = next.map_err(|error| StoreError::Interrupted(error.into()))? {
            self.table.store(Some(Arc::new(next)));
        }
        loop {
            let forgotten: usize = self.call(&FORGET, &[PAGE]).await?;
            if forgotten < PAGE {
                return Ok(());
            }
        }
    }

    fn apply(&self, change: Change) {
        if let Some(before) = self.table.load_full() {
            self.table.store(Some(Arc::new(before.with([change]))));
        }
    }

    /// Answers when the table in Redis was begun.
    async fn write(&self, revocations: &[Revocation], most: usize) -> Result<u64, StoreError> {
        let time = |time: Option<u64>| time.filter(|time| *time < EXACT).map(|time| time.to_string()).unwrap_or_default().into_bytes();
        let each = |revocation: &Revocation| {
            [id(revocation), time(revocation.before), time(revocation.expires), revocation.revoked.to_string().into_bytes()]
        };
        let arguments: Vec<Vec<u8>> = std::iter::once(most.to_string().into_bytes()).chain(revocations.iter().flat_map(each)).collect();
        match self.change(&ADD, &arguments).await? {
            0_u64 => Err(StoreError::Full(most)),
            born => Ok(born),
        }
    }

    async fn read(&self, since: u64) -> Result<News, StoreError> {
        let mut news = News { revision: since, ..News::default() };
        let mut last = since;
        for page in 0.. {
            let (born, revision, changes): (u64, u64, Vec<Vec<u8>>) = self.call(&READ, &[last, PAGE as u64]).await?;
            if page > 0 && born != news.born {
                return Err(StoreError::Interrupted(std::io::Error::other("Redis was emptied while it was read")));
            }
            (news.born, news.revision) = (born, revision);
            let (changes, []) = changes.as_chunks::<3>() else { return Err(StoreError::Foreign) };
            for [id, revision, entry] in changes {
                last = std::str::from_utf8(revision).ok().and_then(|text| text.parse().ok()).ok_or(StoreError::Foreign)?;
                news.changes.push((last, parse(id, entry).ok_or(StoreError::Foreign)?));
            }
            if changes.len() < PAGE {
                break;
            }
        }
        Ok(news)
    }

    async fn change<T: FromRedisValue>(&self, script: &Script, arguments: &[Vec<u8>]) -> Result<T, StoreError> {
        self.call(script, arguments).await.map_err(|error| match error {
            StoreError::Redis(error @ (CallError::Deadline(_) | CallError::Connection(_))) => StoreError::Unconfirmed(error),
            error => error,
        })
    }

    async fn call<T: FromRedisValue>(&self, script: &Script, arguments: &[impl ToRedisArgs]) -> Result<T, StoreError> {
        self.redis.run(script, &self.keys, arguments, DEADLINE).await.map_err(|error| match (error, self.redis.standing()) {
            (CallError::Away, Standing::Away(fault)) => StoreError::Away(fault),
            (error, _) => StoreError::Redis(error),
        })
    }
}

impl News {
    fn latest(self) -> Vec<Change> {
        self.changes.into_iter().map(|(_, change)| change).collect()
    }
}

/// What everything that Redis says adds to a table, and what of the table Redis lacks. `known` is when what was read the last time had been
/// born, and its revision.
fn reconcile(news: News, known: Option<(u64, u64)>, before: Option<&Table>, second: u64) -> (Vec<Change>, Vec<Revocation>) {
    // What another table says was taken back, or this one before what is known, was so before we heard that it is revoked.
    let is_news = |revision| known.is_some_and(|(born, last)| born == news.born && last < revision);
    let mut said = HashMap::new();
    let mut changes = Vec::new();
    for (revision, change) in news.changes {
        match change {
            Change::Add(revocation) | Change::Set(revocation) => {
                said.insert(id(&revocation), Some(revocation.clone()));
                changes.push(Change::Add(revocation));
            }
            Change::Remove(revocation) if is_news(revision) => {
                said.insert(id(&revocation), None);
                changes.push(Change::Remove(revocation));
            }
            Change::Remove(_) => {}
        }
    }
    let mut held = before.map(Table::list).unwrap_or_default();
    held.retain(|revocation| match said.get(&id(revocation)) {
        Some(Some(said)) => !said.covers(revocation),
        Some(None) => false,
        None => !revocation.is_over(second),
    });
    (changes, held)
}

/// `KIND:LENGTH:ISSUER` and the bytes of the value. No issuer is empty: none is.
fn id(Revocation { kind, value, issuer, .. }: &Revocation) -> Vec<u8> {
    let issuer = issuer.as_deref().unwrap_or_default();
    let mut id = format!("{}:{}:{issuer}", kind.label(), issuer.len()).into_bytes();
    id.extend_from_slice(value);
    id
}

/// What is said of an id; `None`: something that no edgeward of this version writes.
fn parse(id: &[u8], entry: &[u8]) -> Option<Change> {
    let mut parts = id.splitn(3, |byte| *byte == b':');
    let mut word = || std::str::from_utf8(parts.next()?).ok();
    let (kind, length) = (Kind::parse(word()?)?, word()?.parse().ok()?);
    let (issuer, value) = parts.next()?.split_at_checked(length)?;
    let issuer = std::str::from_utf8(issuer).ok()?;
    let issuer = (!issuer.is_empty()).then(|| issuer.into());
    let mut revocation = Revocation { kind, value: value.into(), issuer, before: None, expires: None, revoked: 0 };
    if entry.is_empty() {
        return Some(Change::Remove(revocation));
    }
    let mut times = std::str::from_utf8(entry).ok()?.split(' ');
    let mut time = || match times.next()? {
        "" => Some(None),
        time => time.parse().ok().map(Some),
    };
    (revocation.before, revocation.expires, revocation.revoked) = (time()?, time()?, time()??);
    Some(Change::Set(revocation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(value: &str, before: Option<u64>) -> Revocation {
        Revocation { kind: Kind::Subject, value: value.as_bytes().into(), issuer: None, before, expires: None, revoked: 7 }
    }

    #[test]
    fn an_id_is_read_as_it_was_written_and_nothing_else_is() {
        for (value, issuer) in [(&b"alice"[..], None), (b":1:", Some("https://a.test:8443/")), (&[0, 255, b':'], Some("1:2"))] {
            let revocation = Revocation { value: value.into(), issuer: issuer.map(Into::into), ..subject("", Some(5)) };
            assert_eq!(parse(&id(&revocation), b"5  7"), Some(Change::Set(revocation.clone())));
            let taken_back = Revocation { before: None, revoked: 0, ..revocation.clone() };
            assert_eq!(parse(&id(&revocation), b""), Some(Change::Remove(taken_back)));
        }
        for (id, entry) in [
            ("planet:0:a", "  7"),
            ("subject:9:a", "  7"),
            ("subject:a", "  7"),
            ("subject", "  7"),
            ("subject:0:a", "7"),
            ("subject:0:a", "x  7"),
            ("subject:0:a", "   "),
        ] {
            assert_eq!(parse(id.as_bytes(), entry.as_bytes()), None, "{id} {entry}");
        }
    }

    #[test]
    fn what_redis_lacks_nobody_has_taken_back() {
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|value| subject(value, None));
        let over = Revocation { expires: Some(10), ..subject("over", None) };
        let narrow = subject("d", Some(5));
        let held = Table::default().with([&a, &b, &c, &d, &over].map(|one| Change::Add(one.clone())));
        let news = |born| News {
            born,
            revision: 9,
            changes: vec![
                (3, Change::Remove(a.clone())),
                (7, Change::Remove(b.clone())),
                (8, Change::Set(narrow.clone())),
                (9, Change::Set(subject("e", None))),
            ],
        };
        let sorted = |mut owed: Vec<Revocation>| {
            owed.sort_by(|one, other| one.value.cmp(&other.value));
            owed
        };
        // Known up to 5: that `a` was taken back before says nothing of what is known since; that `b` was is news.
        let (changes, owed) = reconcile(news(1), Some((1, 5)), Some(&held), 10);
        assert_eq!(sorted(owed), [a.clone(), c.clone(), d.clone()]);
        let next = held.with(changes);
        assert_eq!((next.len, sorted(next.list())[2].before), (5, None), "narrowed: {next:?}");
        // Of another table nothing counts but what it revokes.
        let (changes, owed) = reconcile(news(2), Some((1, 5)), Some(&held), 10);
        assert_eq!(sorted(owed), [&a, &b, &c, &d].map(Clone::clone));
        assert_eq!(held.with(changes).len, 6);
        // The first reading takes it as it is.
        let (changes, owed) = reconcile(news(1), None, None, 10);
        assert_eq!((Table::default().with(changes).len, owed.len()), (2, 0));
    }
}
