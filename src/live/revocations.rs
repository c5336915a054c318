//! Credentials that were withdrawn before their time, as every request meets them: an exact table in memory that follows its database.
//!
//! A request that proves an identity asks here each time, cached or not, without a lock: one load and a branch while nothing is revoked, a
//! few look-ups otherwise. Nothing is admitted before the database was read; when it fails later, what is known stays in force.

mod store;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use store::{RevocationStore, StoreError};

use self::store::Progress;
use super::api_keys::Failure;
use super::database::Opening;
use crate::jose::{Claims, Jws, jws};
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

/// What an operator asks to be revoked: one of the six, and where it fits the issuer and the time beside it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Order {
    /// A credential as it is presented. Of a signed token the signed part counts: anybody can make a second signature that is as good.
    pub token: Option<String>,
    /// The id of a token.
    pub jti: Option<String>,
    /// An end user or service.
    pub subject: Option<String>,
    /// An OAuth2 client.
    pub client: Option<String>,
    /// The public id of a key.
    pub key_id: Option<String>,
    /// An issuer; beside `jti`, `subject` or `client`: whose.
    pub issuer: Option<String>,
    /// Only what was issued before this RFC 3339 time; `now` includes the current second, since tokens tell no more.
    pub before: Option<String>,
}

/// How long a revocation outlasts the token: longer than any leeway that an operator can give, and than clocks usually jump.
const MARGIN: u64 = 86_400;
/// The longest value in bytes: no identity has a longer one.
const MAX_VALUE: usize = 4 * 1024;

impl Order {
    /// The revocation that is asked for.
    ///
    /// # Errors
    /// When it is not clear what is meant, in words for the operator that hold nothing of a token.
    pub fn revocation(&self, now: u64) -> Result<Revocation, &'static str> {
        let Self { token, jti, subject, client, key_id, issuer, before } = self;
        let named = [
            (Kind::Token, token),
            (Kind::Jti, jti),
            (Kind::Subject, subject),
            (Kind::Client, client),
            (Kind::KeyId, key_id),
        ];
        let mut named = named.into_iter().filter_map(|(kind, value)| Some((kind, value.as_deref()?)));
        let (kind, value, issuer) = match (named.next(), named.next(), issuer.as_deref()) {
            (Some((kind @ (Kind::Jti | Kind::Subject | Kind::Client), value)), None, issuer) => (kind, value, issuer),
            (Some((kind, value)), None, None) => (kind, value, None),
            (Some(_), None, Some(_)) => return Err("an issuer stands alone, or beside a jti, a subject or a client"),
            (None, _, Some(issuer)) => (Kind::Issuer, issuer, None),
            (Some(_), Some(_), _) => return Err("more than one of token, jti, subject, client and key_id"),
            (None, _, None) => return Err("none of token, jti, subject, client, key_id and issuer"),
        };
        let longest = if kind == Kind::Token { jws::MAX_TOKEN } else { MAX_VALUE };
        if [Some(value), issuer].into_iter().flatten().any(|text| text.is_empty() || text.len() > longest) {
            return Err("a value is empty or too long");
        }
        let before = match (before.as_deref(), kind) {
            (None, _) => None,
            (Some(_), Kind::Token | Kind::Jti | Kind::KeyId) => return Err("a time goes with a subject, a client or an issuer"),
            (Some("now"), _) => Some(now + 1),
            (Some(time), _) => {
                let time = OffsetDateTime::parse(time, &Rfc3339).map_err(|_| "the time is neither RFC 3339 nor `now`")?;
                Some(u64::try_from(time.unix_timestamp()).map_err(|_| "the time is before 1970")?)
            }
        };
        let (value, expires) = match kind {
            Kind::Token => (jws::fingerprint(value).into(), end_of(value)),
            _ => (value.as_bytes().into(), None),
        };
        Ok(Revocation { kind, value, issuer: issuer.map(Into::into), before, expires, revoked: now })
    }
}

/// When a token and its revocation are over. Nobody vouches for the claim, and nobody need: with another one it is another token.
fn end_of(token: &str) -> Option<u64> {
    let claims = Claims::parse(&Jws::parse(token).ok()?.payload().ok()?).ok()?;
    Some(claims.registered.expires?.as_secs() + 1 + MARGIN)
}

/// The revocations of one database; outlives every snapshot that asks for them.
#[derive(Debug)]
pub struct Revocations {
    path: PathBuf,
    /// `None` until the database was read.
    table: ArcSwapOption<Table>,
    follower: Mutex<Option<Follower>>,
    failure: Mutex<Option<Failure>>,
}

/// The open store and how far it was read.
#[derive(Debug)]
struct Follower {
    store: RevocationStore,
    data_version: Option<i64>,
    read: Option<Progress>,
}

/// How often the database is asked for news: what another process revokes holds within a second.
const POLL: Duration = Duration::from_millis(250);
/// A database that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// How often what is over is forgotten.
const FORGET: Duration = Duration::from_secs(600);
/// How long another process that writes is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

impl Revocations {
    /// Revocations that are still to be [opened](Self::open).
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), table: ArcSwapOption::empty(), follower: Mutex::default(), failure: Mutex::default() }
    }

    /// Opens the database, or makes it, and reads it. Blocks; done once, before anybody is admitted.
    ///
    /// # Errors
    /// When the database cannot be made, opened or read, or is not ours: then nobody is admitted.
    pub fn open(&self) -> Result<(), StoreError> {
        if self.table.load().is_some() { Ok(()) } else { self.refresh() }
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
        if table.is_empty || !identity.parts().any(|part| table.revokes(part)) {
            return Ok(());
        }
        Err(match identity.method {
            Method::ApiKey | Method::Sigv4 | Method::Basic | Method::Signature => Rejection::CredentialInvalid("revoked"),
            _ => Rejection::CredentialRevoked,
        })
    }

    /// Revokes: in force here at once, elsewhere as soon as the database is read. Blocks.
    ///
    /// # Errors
    /// When it cannot be written down; then it is not in force.
    pub fn add(&self, revocation: &Revocation) -> Result<(), StoreError> {
        self.write(|store| store.add(revocation))
    }

    /// Takes a revocation back, and says whether there was one. Blocks.
    ///
    /// # Errors
    /// When it cannot be written down; then the revocation stays in force.
    pub fn remove(&self, revocation: &Revocation) -> Result<bool, StoreError> {
        self.write(|store| store.remove(revocation))
    }

    /// Everything that is in force here.
    pub fn list(&self) -> Vec<Revocation> {
        self.table.load().as_ref().map(|table| table.list()).unwrap_or_default()
    }

    /// Why revocations may be missing that others have written, if so.
    pub fn failure(&self) -> Option<Failure> {
        lock(&self.failure).clone()
    }

    /// Follows the database and forgets what is over, until nobody asks any more.
    pub async fn maintain(this: Weak<Self>, clock: Clock) {
        let mut next_forget = Duration::ZERO;
        while let Some(revocations) = this.upgrade() {
            let now = clock();
            let forget = now.monotonic >= next_forget;
            if forget {
                next_forget = now.monotonic + FORGET;
            }
            let round = tokio::task::spawn_blocking(move || {
                let done = revocations.refresh().and_then(|()| if forget { revocations.forget(now.unix.as_secs()) } else { Ok(()) });
                let followed = done.is_ok();
                revocations.report(done, now);
                followed
            });
            let followed = round.await.unwrap_or(false);
            tokio::time::sleep(if followed { POLL } else { RETRY }).await;
        }
    }

    /// Reads what changed since the last time. The first time, a database that is missing is made, empty.
    ///
    /// # Errors
    /// When it cannot be opened or read; what is known stays in force.
    pub fn refresh(&self) -> Result<(), StoreError> {
        let mut slot = lock(&self.follower);
        // Only the first time: a database that vanishes under a running gateway is a fault, not a wish to revoke nothing.
        let opening = if self.table.load().is_some() { Opening::Existing } else { Opening::Create };
        // What cannot be read is opened anew the next time.
        let mut follower = match slot.take() {
            Some(follower) if follower.store.is_in_place() => follower,
            _ => Follower { store: RevocationStore::open(&self.path, opening, PATIENCE)?, data_version: None, read: None },
        };
        self.follow(&mut follower)?;
        *slot = Some(follower);
        Ok(())
    }

    fn write<T>(&self, work: impl FnOnce(&mut RevocationStore) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut slot = lock(&self.follower);
        let follower = slot.as_mut().filter(|follower| follower.store.is_in_place());
        let follower = follower.ok_or_else(|| StoreError::Replaced(self.path.clone()))?;
        let done = work(&mut follower.store)?;
        // SQLite tells a connection of what others wrote only.
        follower.data_version = None;
        self.follow(follower)?;
        Ok(done)
    }

    fn follow(&self, follower: &mut Follower) -> Result<(), StoreError> {
        // Asked before reading: what is written in between is news again the next time.
        let data_version = follower.store.data_version()?;
        if follower.data_version == Some(data_version) {
            return Ok(());
        }
        let progress = follower.store.progress()?;
        let known = follower.read.filter(|read| read.revision <= progress.revision && read.taken_back == progress.taken_back);
        let changes = follower.store.read_since(known.map_or(-1, |read| read.revision))?;
        let taken_back = follower.read.is_some_and(|read| read.taken_back < progress.taken_back);
        // Nothing else forgets: of a database that was replaced or restored nobody knows what it lacks.
        let before = if taken_back { None } else { self.table.load_full() };
        self.table.store(Some(Arc::new(before.as_deref().unwrap_or(&Table::default()).with(changes))));
        follower.data_version = Some(data_version);
        follower.read = Some(progress);
        Ok(())
    }

    fn forget(&self, second: u64) -> Result<(), StoreError> {
        let slot = lock(&self.follower);
        if let Some(table) = self.table.load_full() {
            self.table.store(Some(Arc::new(table.without_expired(second))));
        }
        slot.as_ref().map_or(Ok(()), |follower| follower.store.forget(second))
    }

    fn report(&self, round: Result<(), StoreError>, now: Now) {
        let mut failure = lock(&self.failure);
        match (round, &*failure) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => {
                tracing::info!(database = %self.path.display(), "revocations are followed again");
                *failure = None;
            }
            (Err(error), known) => {
                let since = known.as_ref().map_or(now.unix, |known| known.since);
                if known.is_none() {
                    tracing::error!(database = %self.path.display(), %error, "revocations are not followed; the last known ones stay in force");
                }
                *failure = Some(Failure { reason: error.to_string().into(), since });
            }
        }
    }
}

/// What is revoked. The many that were there before are shared by one table and the next, so that one more costs the same whatever there is.
#[derive(Debug, Default)]
struct Table {
    settled: Arc<Entries>,
    /// Replaces what is settled, value by value.
    recent: Entries,
    is_empty: bool,
}

/// The recent ones before they settle: copied with each change.
const RECENT: usize = 1024;

/// What is said of one value. The whole value is compared: a filter with false positives would refuse the innocent.
type Values = HashMap<Box<[u8]>, Vec<Terms>, ahash::RandomState>;

#[derive(Debug, Default, Clone)]
struct Entries {
    tokens: Values,
    jtis: Values,
    subjects: Values,
    clients: Values,
    key_ids: Values,
    issuers: Values,
}

#[derive(Debug, Clone)]
struct Terms {
    issuer: Option<Box<str>>,
    before: Option<u64>,
    expires: Option<u64>,
    revoked: u64,
}

impl Table {
    fn revokes(&self, identity: &Identity) -> bool {
        let claim = |name: &str| identity.claims.get(name).and_then(Value::as_str);
        let issuer = claim("iss");
        let meets = |terms: &Terms| {
            let of_issuer = terms.issuer.as_deref().is_none_or(|of| issuer == Some(of));
            // A credential that does not say when it was issued may have been before.
            let issued = || identity.claims.get("iat").and_then(Value::as_f64);
            of_issuer && terms.before.is_none_or(|before| issued().is_none_or(|issued| issued < before as f64))
        };
        let revoked = |kind: Kind, value: &[u8]| self.find(kind, value).iter().any(meets);
        let named = |kind: Kind, value: Option<&str>| value.is_some_and(|value| revoked(kind, value.as_bytes()));
        revoked(Kind::Token, &identity.credential)
            || named(Kind::Jti, claim("jti"))
            || named(Kind::Subject, identity.subject.as_deref())
            || named(Kind::Client, identity.client.as_deref())
            || named(Kind::KeyId, identity.key_id.as_deref())
            || named(Kind::Issuer, issuer)
    }

    fn find(&self, kind: Kind, value: &[u8]) -> &[Terms] {
        let found = self.recent.of(kind).get(value).or_else(|| self.settled.of(kind).get(value));
        found.map(Vec::as_slice).unwrap_or_default()
    }

    fn with(&self, changes: Vec<Revocation>) -> Self {
        let mut recent = self.recent.clone();
        for Revocation { kind, value, issuer, before, expires, revoked } in changes {
            let settled = || self.settled.of(kind).get(&value).cloned().unwrap_or_default();
            let all = match recent.of(kind).get(&value) {
                Some(known) => known.clone(),
                None => settled(),
            };
            let mut all: Vec<Terms> = all;
            match all.iter_mut().find(|terms| terms.issuer == issuer) {
                // `None` is the widest, and nothing that is added narrows what there is.
                Some(known) => {
                    known.before = known.before.zip(before).map(|(one, other)| one.max(other));
                    known.expires = known.expires.zip(expires).map(|(one, other)| one.max(other));
                }
                None => all.push(Terms { issuer, before, expires, revoked }),
            }
            recent.of_mut(kind).insert(value, all);
        }
        if recent.len() <= RECENT {
            return Self::new(Arc::clone(&self.settled), recent);
        }
        let mut settled = Entries::clone(&self.settled);
        for kind in Kind::ALL {
            settled.of_mut(kind).extend(std::mem::take(recent.of_mut(kind)));
        }
        Self::new(Arc::new(settled), recent)
    }

    fn without_expired(&self, second: u64) -> Self {
        let over = |revocation: &Revocation| revocation.expires.is_some_and(|expires| expires <= second);
        Self::default().with(self.list().into_iter().filter(|revocation| !over(revocation)).collect())
    }

    fn list(&self) -> Vec<Revocation> {
        let all = |kind: Kind| {
            let recent = self.recent.of(kind);
            recent.iter().chain(self.settled.of(kind).iter().filter(|(value, _)| !recent.contains_key(*value)))
        };
        let shown = |kind: Kind, value: &[u8], Terms { issuer, before, expires, revoked }: &Terms| Revocation {
            kind,
            value: value.into(),
            issuer: issuer.clone(),
            before: *before,
            expires: *expires,
            revoked: *revoked,
        };
        Kind::ALL
            .into_iter()
            .flat_map(|kind| all(kind).flat_map(move |(value, terms)| terms.iter().map(move |terms| shown(kind, value, terms))))
            .collect()
    }

    fn new(settled: Arc<Entries>, recent: Entries) -> Self {
        let is_empty = settled.len() + recent.len() == 0;
        Self { settled, recent, is_empty }
    }
}

impl Entries {
    fn of(&self, kind: Kind) -> &Values {
        match kind {
            Kind::Token => &self.tokens,
            Kind::Jti => &self.jtis,
            Kind::Subject => &self.subjects,
            Kind::Client => &self.clients,
            Kind::KeyId => &self.key_ids,
            Kind::Issuer => &self.issuers,
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut Values {
        match kind {
            Kind::Token => &mut self.tokens,
            Kind::Jti => &mut self.jtis,
            Kind::Subject => &mut self.subjects,
            Kind::Client => &mut self.clients,
            Kind::KeyId => &mut self.key_ids,
            Kind::Issuer => &mut self.issuers,
        }
    }

    fn len(&self) -> usize {
        Kind::ALL.into_iter().map(|kind| self.of(kind).len()).sum()
    }
}

/// A panic while one of these was held has left nothing half done that the next change would not set right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
