//! Credentials that were withdrawn before their time, as every request meets them: an exact table in memory that follows its store.
//!
//! A request that proves an identity asks here each time, cached or not, without a lock: one load and a branch while nothing is revoked, a
//! few look-ups otherwise. Nothing is admitted before the store was read; when it fails later, what is known stays in force.

mod local;
mod order;
mod shared;
mod store;
mod table;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use order::Order;
pub use store::{RevocationStore, StoreError};

use self::local::Local;
use self::shared::Shared;
use self::table::Table;
use super::api_keys::Failure;
use super::database::Opening;
use crate::net::redis::{Redis, Server};
use crate::request::{Clock, Identity, Method, Now, Rejection};

/// What a revocation goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One credential, by its hash.
    Token,
    /// The id that its issuer gave a token (`jti`).
    Jti,
    /// Everything of an end user or service.
    Subject,
    /// Everything that an OAuth2 client was given.
    Client,
    /// One key, by its public id.
    KeyId,
    /// Everything of an issuer.
    Issuer,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::Token, Self::Jti, Self::Subject, Self::Client, Self::KeyId, Self::Issuer];

    /// The one word for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Jti => "jti",
            Self::Subject => "subject",
            Self::Client => "client",
            Self::KeyId => "key_id",
            Self::Issuer => "issuer",
        }
    }

    fn parse(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.label() == label)
    }
}

/// One revocation. Times are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// What it goes by.
    pub kind: Kind,
    /// The value of that; of a token its SHA-256.
    pub value: Box<[u8]>,
    /// The issuer whose tokens alone are meant; absent: any credential.
    pub issuer: Option<Box<str>>,
    /// Only what was issued before; absent: whenever it was or will be.
    pub before: Option<u64>,
    /// When everything that it could meet is over and it may be forgotten, where that is known.
    pub expires: Option<u64>,
    /// When it was revoked.
    pub revoked: u64,
}

impl Revocation {
    /// The id of a token of this issuer, until it can meet nothing any more.
    pub fn of_id(jti: &str, issuer: &str, token_ends: u64, now: u64) -> Self {
        let expires = Some(token_ends.saturating_add(1 + order::MARGIN));
        Self { kind: Kind::Jti, value: jti.as_bytes().into(), issuer: Some(issuer.into()), before: None, expires, revoked: now }
    }

    /// Whether everything that it could meet ended before a second.
    fn is_over(&self, second: u64) -> bool {
        self.expires.is_some_and(|expires| expires <= second)
    }

    /// Whether one of the same id adds nothing to this one.
    fn covers(&self, other: &Self) -> bool {
        let covers = |ours: Option<u64>, theirs: Option<u64>| ours.is_none_or(|ours| theirs.is_some_and(|theirs| theirs <= ours));
        covers(self.before, other.before) && covers(self.expires, other.expires)
    }

    /// For people and programs: times in RFC 3339, what is not set left out. A token is shown by its hash.
    pub fn shown(&self) -> Value {
        let time = |time: u64| OffsetDateTime::from_unix_timestamp(i64::try_from(time).ok()?).ok()?.format(&Rfc3339).ok();
        let value = match self.kind {
            Kind::Token => self.value.iter().map(|byte| format!("{byte:02x}")).collect(),
            _ => String::from_utf8_lossy(&self.value).into_owned(),
        };
        let name = if self.kind == Kind::Token { "token_sha256" } else { self.kind.label() };
        let mut shown = json!({name: value, "revoked": time(self.revoked)});
        let others = [
            ("issuer", self.issuer.as_deref().map(str::to_owned)),
            ("before", self.before.and_then(time)),
            ("expires", self.expires.and_then(time)),
        ];
        for (name, value) in others {
            if let (Some(members), Some(value)) = (shown.as_object_mut(), value) {
                members.insert(name.to_owned(), value.into());
            }
        }
        shown
    }
}

/// Where revocations are kept. It names the live fact.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// The embedded store, for the processes of one host.
    Database(PathBuf),
    /// Redis, for a fleet.
    Redis {
        /// Where it is.
        server: Server,
        /// What tells these from others there.
        name: Arc<str>,
    },
}

/// As logs and metrics name it.
impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Database(path) => write!(f, "{}", path.display()),
            Self::Redis { server, name } => write!(f, "redis {server} {name}"),
        }
    }
}

impl Source {
    /// Revokes from outside a gateway. Blocks.
    ///
    /// # Errors
    /// When it cannot be written down, or more than `most` would be revoked.
    pub fn add(&self, revocation: &Revocation, most: usize) -> Result<(), StoreError> {
        match self {
            Self::Database(path) => RevocationStore::open(path, Opening::Create, PATIENCE)?.add(revocation, most),
            Self::Redis { server, name } => Shared::once(server, name, async |shared| shared.add(revocation, most).await),
        }
    }

    /// Takes a revocation back from outside a gateway, and says whether there was one. Blocks.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn remove(&self, revocation: &Revocation) -> Result<bool, StoreError> {
        match self {
            Self::Database(path) => RevocationStore::open(path, Opening::Create, PATIENCE)?.remove(revocation),
            Self::Redis { server, name } => Shared::once(server, name, async |shared| shared.remove(revocation).await),
        }
    }

    /// Everything that is revoked, in no order. Blocks.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_all(&self) -> Result<Vec<Revocation>, StoreError> {
        match self {
            Self::Database(path) => RevocationStore::open(path, Opening::Existing, PATIENCE)?.read_all(),
            Self::Redis { server, name } => Shared::once(server, name, async |shared| shared.read_all().await),
        }
    }
}

/// The revocations of one store; outlives every snapshot that asks for them.
#[derive(Debug)]
pub struct Revocations {
    source: Source,
    backing: Backing,
    /// `None` until the store was read.
    table: Arc<ArcSwapOption<Table>>,
    /// How many may be kept.
    most: AtomicUsize,
    failure: Mutex<Option<Failure>>,
}

/// What keeps them and changes the table.
#[derive(Debug)]
enum Backing {
    Database(Arc<Local>),
    Redis(Box<Shared>),
}

/// How often the store is asked for news: what another process revokes holds within a second.
const POLL: Duration = Duration::from_millis(250);
/// A database that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// How often what is over is forgotten.
const FORGET: Duration = Duration::from_secs(600);
/// How long a command waits for another process that writes: long enough for a gateway that reads very many revocations.
const PATIENCE: Duration = Duration::from_secs(30);
/// From which part on it is told that there is little room left.
const NEARLY_FULL: (usize, usize) = (9, 10);

impl Revocations {
    /// Revocations in a database, at most so many, that are still to be [opened](Self::open).
    pub fn in_database(path: &Path, most: usize) -> Self {
        let local = Local::new(path.into());
        let table = Arc::clone(&local.table);
        Self::new(Source::Database(path.into()), Backing::Database(Arc::new(local)), table, most)
    }

    /// Revocations of a name in Redis, at most so many, that are still to be [opened](Self::open).
    pub fn in_redis(redis: Arc<Redis>, name: &Arc<str>, most: usize) -> Self {
        let source = Source::Redis { server: redis.server().clone(), name: Arc::clone(name) };
        let shared = Shared::new(redis, name);
        let table = Arc::clone(&shared.table);
        Self::new(source, Backing::Redis(Box::new(shared)), table, most)
    }

    fn new(source: Source, backing: Backing, table: Arc<ArcSwapOption<Table>>, most: usize) -> Self {
        Self { source, backing, table, most: AtomicUsize::new(most), failure: Mutex::default() }
    }

    /// Opens the store, a database being made when it is missing, and reads it. Blocks; done once, before anybody is admitted.
    ///
    /// # Errors
    /// When the store cannot be made, opened or read, or is not ours: then nobody is admitted.
    pub fn open(&self, now: Now) -> Result<(), StoreError> {
        match &self.backing {
            _ if self.is_read() => Ok(()),
            Backing::Database(local) => local.follow(),
            Backing::Redis(shared) => shared.open(self.most(), now.unix.as_secs()),
        }
    }

    /// Whether a store that cannot be read may be there later: then nobody is admitted until it is.
    pub fn may_come_later(&self) -> bool {
        matches!(self.backing, Backing::Redis(..))
    }

    /// Whether a proven identity was revoked, in any of its parts.
    ///
    /// # Errors
    /// A refusal when it was, and before anybody knows. Of what is a shared secret the refusal is that of an unknown one.
    pub fn check(&self, identity: &Identity) -> Result<(), Rejection> {
        let table = self.table.load();
        let Some(table) = &*table else {
            return Err(Rejection::DependencyUnavailable { dependency: "revocations", retry_after: RETRY });
        };
        if table.len == 0 || !identity.parts().any(|part| table.revokes(part)) {
            return Ok(());
        }
        Err(match identity.method {
            Method::ApiKey | Method::Sigv4 | Method::Basic | Method::Signature => Rejection::CredentialInvalid("revoked"),
            _ => Rejection::CredentialRevoked,
        })
    }

    /// Revokes: in force here at once, elsewhere as soon as the store is read.
    ///
    /// # Errors
    /// When it cannot be written down, or there is no room for it; then it is not in force here.
    pub async fn add(&self, revocation: Revocation) -> Result<(), StoreError> {
        let most = self.most();
        let added = match &self.backing {
            Backing::Redis(shared) => shared.add(&revocation, most).await,
            Backing::Database(local) => blocking(local, move |local| local.write(|store| store.add(&revocation, most))).await,
        };
        if let Err(error @ StoreError::Full(_)) = &added {
            tracing::error!(store = %self.source, %error, "a revocation was refused");
        }
        added
    }

    /// Takes a revocation back, and says whether there was one.
    ///
    /// # Errors
    /// When it cannot be written down; then the revocation stays in force.
    pub async fn remove(&self, revocation: Revocation) -> Result<bool, StoreError> {
        match &self.backing {
            Backing::Redis(shared) => shared.remove(&revocation).await,
            Backing::Database(local) => blocking(local, move |local| local.write(|store| store.remove(&revocation))).await,
        }
    }

    /// Everything that is in force here, the latest last.
    pub fn list(&self) -> Vec<Revocation> {
        let mut list = self.table.load().as_ref().map(|table| table.list()).unwrap_or_default();
        list.sort_by(|one, other| (one.revoked, &one.value, &one.issuer).cmp(&(other.revoked, &other.value, &other.issuer)));
        list
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.load().as_ref().map_or(0, |table| table.len)
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many may be kept.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// Keeps at most so many from now on. Those that are there stay.
    pub fn keep_at_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Whether the store was read. Until then nobody is admitted.
    pub fn is_read(&self) -> bool {
        self.table.load().is_some()
    }

    /// Where they are kept.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Why revocations may be missing that others have written, if so.
    pub fn failure(&self) -> Option<Failure> {
        lock(&self.failure).clone()
    }

    /// Follows the store and forgets what is over, until nobody asks any more.
    pub async fn maintain(this: Weak<Self>, clock: Clock) {
        let (mut next_forget, mut warned) = (Duration::ZERO, false);
        while let Some(revocations) = this.upgrade() {
            let now = clock();
            let forget = now.monotonic >= next_forget;
            if forget {
                next_forget = now.monotonic + FORGET;
            }
            let round = revocations.round(forget, now).await;
            // Asking a Redis that is known to be away costs nothing; opening a damaged database again and again does.
            let pause = if round.is_ok() || revocations.may_come_later() { POLL } else { RETRY };
            revocations.report(round, now);
            revocations.warn_when_nearly_full(&mut warned);
            drop(revocations);
            tokio::time::sleep(pause).await;
        }
    }

    async fn round(&self, forget: bool, now: Now) -> Result<(), StoreError> {
        let second = now.unix.as_secs();
        match &self.backing {
            Backing::Redis(shared) => {
                shared.follow(self.most(), second).await?;
                if forget { shared.forget(second).await } else { Ok(()) }
            }
            Backing::Database(local) => {
                let work = move |local: &Local| local.follow().and_then(|()| if forget { local.forget(second) } else { Ok(()) });
                blocking(local, work).await
            }
        }
    }

    fn report(&self, round: Result<(), StoreError>, now: Now) {
        let mut failure = lock(&self.failure);
        match (round, &*failure) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => {
                tracing::info!(store = %self.source, "revocations are followed again");
                *failure = None;
            }
            (Err(error), known) => {
                let since = known.as_ref().map_or(now.unix, |known| known.since);
                if known.is_none() {
                    let meanwhile =
                        if self.is_read() { "the last known ones stay in force" } else { "nobody is admitted until they were read" };
                    tracing::error!(store = %self.source, %error, "revocations are not followed; {meanwhile}");
                }
                *failure = Some(Failure { reason: error.to_string().into(), since });
            }
        }
    }

    fn warn_when_nearly_full(&self, warned: &mut bool) {
        let (kept, most, (part, whole)) = (self.len(), self.most(), NEARLY_FULL);
        let nearly_full = kept.saturating_mul(whole) >= most.saturating_mul(part);
        if nearly_full && !*warned {
            tracing::warn!(store = %self.source, kept, entries = most, "there is little room left for revocations; none is dropped, further ones are refused");
        }
        *warned = nearly_full;
    }
}

/// Works with a database off the threads that serve.
async fn blocking<T: Send + 'static>(
    local: &Arc<Local>,
    work: impl FnOnce(&Local) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let local = Arc::clone(local);
    tokio::task::spawn_blocking(move || work(&local)).await.map_err(|error| StoreError::Interrupted(error.into()))?
}

/// A panic while one of these was held has left nothing half done that the next change would not set right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_800_000_000) };

    fn identity(subject: &str) -> Identity {
        Identity { subject: Some(subject.into()), ..Identity::new(Method::Jwt, "customers".into(), [1; 32]) }
    }

    fn order(json: Value) -> Revocation {
        serde_json::from_value::<Order>(json).unwrap().revocation(NOW.unix.as_secs()).unwrap()
    }

    fn at(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join("revoked.db")
    }

    fn opened(folder: &tempfile::TempDir) -> Revocations {
        let revocations = Revocations::in_database(&at(folder), 100);
        revocations.open(NOW).unwrap();
        revocations
    }

    fn follow(revocations: &Revocations) -> Result<(), StoreError> {
        let Backing::Database(local) = &revocations.backing else { panic!("not a database") };
        local.follow()
    }

    #[tokio::test]
    async fn the_answer_tells_nobody_whether_a_key_was_ever_known() {
        let folder = tempfile::tempdir().unwrap();
        let revocations = opened(&folder);
        revocations.add(order(json!({"key_id": "7"}))).await.unwrap();
        for (method, expected) in [
            (Method::Jwt, Rejection::CredentialRevoked),
            (Method::Introspection, Rejection::CredentialRevoked),
            (Method::ApiKey, Rejection::CredentialInvalid("revoked")),
            (Method::Sigv4, Rejection::CredentialInvalid("revoked")),
        ] {
            let identity = Identity { key_id: Some("7".into()), ..Identity::new(method, "a".into(), [0; 32]) };
            assert_eq!(revocations.check(&identity), Err(expected));
            let beside = Identity { beside: vec![Arc::new(identity)], ..Identity::new(Method::Jwt, "b".into(), [0; 32]) };
            assert_eq!(revocations.check(&beside), Err(Rejection::CredentialRevoked));
        }
    }

    #[test]
    fn nobody_is_admitted_before_the_database_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = at(&folder);
        std::fs::write(&path, "no database".repeat(100)).unwrap();
        let revocations = Revocations::in_database(&path, 100);
        assert!(revocations.open(NOW).is_err() && !revocations.is_read());
        let refused = revocations.check(&identity("alice")).unwrap_err();
        assert_eq!((refused.code(), refused.reason()), ("dependency_unavailable", Some("revocations")));
        std::fs::remove_file(&path).unwrap();
        revocations.open(NOW).unwrap();
        assert_eq!(revocations.check(&identity("alice")), Ok(()));
    }

    #[tokio::test]
    async fn what_others_write_is_followed_and_what_is_known_outlasts_a_database_that_vanishes() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (opened(&folder), opened(&folder));
        let (alice, bob) = (order(json!({"subject": "alice"})), order(json!({"subject": "bob", "before": "now"})));
        one.add(alice.clone()).await.unwrap();
        one.add(bob.clone()).await.unwrap();
        assert_eq!((one.len(), other.len()), (2, 0));
        follow(&other).unwrap();
        assert_eq!(other.list(), one.list());
        assert!(other.remove(bob.clone()).await.unwrap() && !other.remove(bob.clone()).await.unwrap());
        follow(&one).unwrap();
        assert_eq!((one.list(), other.list()), (vec![alice.clone()], vec![alice.clone()]));
        // What is added to something does not narrow it.
        one.add(Revocation { before: Some(5), ..alice.clone() }).await.unwrap();
        assert_eq!(one.list(), std::slice::from_ref(&alice));
        follow(&other).unwrap();
        assert_eq!(other.list(), one.list());
        assert_eq!(one.source().read_all().unwrap(), one.list());

        std::fs::rename(at(&folder), folder.path().join("away.db")).unwrap();
        assert!(follow(&one).is_err() && one.add(bob.clone()).await.is_err());
        assert_eq!(one.check(&identity("alice")), Err(Rejection::CredentialRevoked));
        // Another database in its place adds what it knows; what it lacks nobody has taken back.
        one.source().add(&bob, 100).unwrap();
        follow(&one).unwrap();
        assert_eq!(one.len(), 2);
    }

    #[tokio::test]
    async fn beyond_the_bound_a_revocation_is_refused_and_none_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let revocations = opened(&folder);
        revocations.keep_at_most(2);
        let over = Revocation { expires: Some(NOW.unix.as_secs() + 5), ..order(json!({"jti": "over soon"})) };
        for revocation in [order(json!({"subject": "alice", "before": "now"})), over] {
            revocations.add(revocation).await.unwrap();
        }
        let refused = revocations.add(order(json!({"subject": "bob"}))).await.unwrap_err();
        assert!(matches!(refused, StoreError::Full(2)) && refused.to_string().contains("`revocation.entries`"), "{refused}");
        assert!(matches!(revocations.source().add(&order(json!({"subject": "bob"})), 2), Err(StoreError::Full(2))));
        assert_eq!((revocations.len(), revocations.check(&identity("bob"))), (2, Ok(())));
        // What is there can be made wider, whatever the bound is by now.
        revocations.keep_at_most(1);
        revocations.add(order(json!({"subject": "alice"}))).await.unwrap();
        // What is over makes room.
        revocations.keep_at_most(2);
        let later = Revocation { revoked: NOW.unix.as_secs() + 5, ..order(json!({"subject": "bob"})) };
        revocations.add(later).await.unwrap();
        assert_eq!(revocations.check(&identity("bob")), Err(Rejection::CredentialRevoked));
    }

    #[tokio::test]
    async fn the_bound_is_exact_whoever_else_adds_and_takes_back() {
        let folder = tempfile::tempdir().unwrap();
        let nodes = [opened(&folder), opened(&folder)];
        nodes.iter().for_each(|node| node.keep_at_most(6));
        let nth = |n: usize| order(json!({"jti": n.to_string()}));
        for n in 0..6 {
            nodes[n % 2].add(nth(n)).await.unwrap();
        }
        for node in &nodes {
            assert!(matches!(node.add(nth(6)).await, Err(StoreError::Full(6))));
        }
        // One makes room that the other had not counted.
        assert!(nodes[0].remove(nth(0)).await.unwrap());
        nodes[1].add(nth(6)).await.unwrap();
        for node in &nodes {
            assert!(matches!(node.add(nth(7)).await, Err(StoreError::Full(6))));
        }
        assert_eq!(nodes[0].source().read_all().unwrap().len(), 6);
    }

    #[tokio::test]
    async fn a_row_that_nobody_writes_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        opened(&folder).add(order(json!({"subject": "alice"}))).await.unwrap();
        rusqlite::Connection::open(at(&folder)).unwrap().execute("UPDATE revocation SET kind = 'planet'", []).unwrap();
        assert!(Revocations::in_database(&at(&folder), 100).open(NOW).is_err());
    }
}
