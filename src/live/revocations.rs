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
        let named = [(Kind::Token, token), (Kind::Jti, jti), (Kind::Subject, subject), (Kind::Client, client), (Kind::KeyId, key_id)];
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
        if table.len == 0 || !identity.parts().any(|part| table.revokes(part)) {
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

    /// How many values are revoked.
    pub fn len(&self) -> usize {
        self.table.load().as_ref().map_or(0, |table| table.len)
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
    /// How many values are revoked.
    len: usize,
}

/// The recent ones before they settle: copied with each change.
const RECENT: usize = if cfg!(test) { 8 } else { 1024 };

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
            let known = recent.of_mut(kind).remove(&value);
            let mut all = known.or_else(|| self.settled.of(kind).get(&value).cloned()).unwrap_or_default();
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
        let listed = |kind| all(kind).flat_map(move |(value, terms)| terms.iter().map(move |terms| shown(kind, value, terms)));
        let mut list: Vec<_> = Kind::ALL.into_iter().flat_map(listed).collect();
        // The order of the tables is another in each process.
        list.sort_by(|one, other| (one.revoked, &one.value, &one.issuer).cmp(&(other.revoked, &other.value, &other.issuer)));
        list
    }

    fn new(settled: Arc<Entries>, recent: Entries) -> Self {
        let hidden: usize =
            Kind::ALL.into_iter().map(|kind| recent.of(kind).keys().filter(|value| settled.of(kind).contains_key(*value)).count()).sum();
        let len = settled.len() + recent.len() - hidden;
        Self { settled, recent, len }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::{Algorithm, SigningKey};
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;

    fn identity(subject: &str, claims: Value) -> Identity {
        let mut identity = Identity::new(Method::Jwt, "customers".into(), [1; 32]);
        identity.subject = Some(subject.into());
        identity.client = Some("shop".into());
        identity.claims = claims.as_object().unwrap().clone();
        identity
    }

    fn order(json: Value) -> Result<Revocation, &'static str> {
        serde_json::from_value::<Order>(json).unwrap().revocation(NOW)
    }

    fn opened(folder: &tempfile::TempDir) -> Revocations {
        let revocations = Revocations::new(&folder.path().join("revoked.db"));
        revocations.open().unwrap();
        revocations
    }

    #[test]
    fn each_kind_meets_what_it_names_and_nothing_else() {
        let alice = identity("alice", json!({"iss": "https://a.test", "jti": "7", "iat": NOW}));
        let untimed = identity("alice", json!({"iss": "https://a.test"}));
        let elsewhere = identity("alice", json!({"iss": "https://b.test", "jti": "7", "iat": NOW}));
        for (asked, refused) in [
            (json!({"subject": "alice"}), [true, true, true]),
            (json!({"subject": "alic"}), [false, false, false]),
            (json!({"client": "alice"}), [false, false, false]),
            (json!({"client": "shop"}), [true, true, true]),
            (json!({"subject": "alice", "issuer": "https://b.test"}), [false, false, true]),
            (json!({"jti": "7"}), [true, false, true]),
            (json!({"jti": "7", "issuer": "https://a.test"}), [true, false, false]),
            (json!({"issuer": "https://a.test"}), [true, true, false]),
            // Not before: a credential that does not say when it was issued is refused.
            (json!({"subject": "alice", "before": "2027-01-15T08:00:00Z"}), [false, true, false]),
            (json!({"subject": "alice", "before": "2027-01-15T08:00:01Z"}), [true, true, true]),
            (json!({"issuer": "https://a.test", "before": "now"}), [true, true, false]),
            (json!({"key_id": "7"}), [false, false, false]),
        ] {
            let table = Table::default().with(vec![order(asked.clone()).unwrap()]);
            assert_eq!([&alice, &untimed, &elsewhere].map(|identity| table.revokes(identity)), refused, "{asked}");
        }
    }

    #[test]
    fn what_is_not_clear_is_not_guessed() {
        for (asked, expected) in [
            (json!({}), "none of"),
            (json!({"before": "now"}), "none of"),
            (json!({"subject": "a", "jti": "b"}), "more than one"),
            (json!({"token": "a", "issuer": "b"}), "an issuer stands alone"),
            (json!({"key_id": "a", "issuer": "b"}), "an issuer stands alone"),
            (json!({"subject": ""}), "empty or too long"),
            (json!({"subject": "a", "issuer": ""}), "empty or too long"),
            (json!({"subject": "x".repeat(5000)}), "empty or too long"),
            (json!({"jti": "a", "before": "now"}), "a time goes with"),
            (json!({"subject": "a", "before": "yesterday"}), "neither RFC 3339"),
            (json!({"subject": "a", "before": "1969-01-01T00:00:00Z"}), "before 1970"),
        ] {
            let refused = order(asked.clone()).unwrap_err();
            assert!(refused.contains(expected), "{asked}: {refused}");
        }
        assert!(serde_json::from_value::<Order>(json!({"subjct": "alice"})).is_err());
    }

    #[test]
    fn a_token_is_the_same_under_another_signature_and_forgotten_after_its_end() {
        let claims = json!({"exp": NOW + 60});
        let token = SigningKey::generate(Algorithm::Es256, "k").unwrap().sign(claims.as_object().unwrap()).unwrap();
        let (signed, _) = token.rsplit_once('.').unwrap();
        let revoked = order(json!({"token": token})).unwrap();
        assert_eq!(*revoked.value, openssl::sha::sha256(signed.as_bytes()));
        assert_eq!(order(json!({"token": format!("{signed}.AAAA")})).unwrap(), revoked);
        assert_eq!(revoked.expires, Some(NOW + 61 + MARGIN));
        assert_eq!(*order(json!({"token": "opaque"})).unwrap().value, openssl::sha::sha256(b"opaque"));
        let table = Table::default().with(vec![revoked]);
        assert_eq!((table.without_expired(NOW + 60 + MARGIN).len, table.without_expired(NOW + 61 + MARGIN).len), (1, 0));
    }

    #[test]
    fn the_answer_tells_nobody_whether_a_key_was_ever_known() {
        let folder = tempfile::tempdir().unwrap();
        let revocations = opened(&folder);
        revocations.add(&order(json!({"key_id": "7"})).unwrap()).unwrap();
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
        let path = folder.path().join("revoked.db");
        std::fs::write(&path, "no database".repeat(100)).unwrap();
        let revocations = Revocations::new(&path);
        assert!(revocations.open().is_err());
        let refused = revocations.check(&identity("alice", json!({}))).unwrap_err();
        assert_eq!((refused.code(), refused.reason()), ("dependency_unavailable", Some("revocations")));
        std::fs::remove_file(&path).unwrap();
        revocations.open().unwrap();
        assert_eq!(revocations.check(&identity("alice", json!({}))), Ok(()));
    }

    #[test]
    fn what_others_write_is_followed_and_what_is_known_outlasts_a_database_that_vanishes() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (opened(&folder), opened(&folder));
        let (alice, bob) = (order(json!({"subject": "alice"})).unwrap(), order(json!({"subject": "bob", "before": "now"})).unwrap());
        one.add(&alice).unwrap();
        one.add(&bob).unwrap();
        assert_eq!((one.len(), other.len()), (2, 0));
        other.refresh().unwrap();
        assert_eq!(other.list(), one.list());
        assert!(other.remove(&bob).unwrap() && !other.remove(&bob).unwrap());
        one.refresh().unwrap();
        assert_eq!((one.list(), other.list()), (vec![alice.clone()], vec![alice.clone()]));
        // What is added to something does not narrow it.
        one.add(&Revocation { before: Some(5), ..alice.clone() }).unwrap();
        assert_eq!(one.list(), std::slice::from_ref(&alice));
        other.refresh().unwrap();
        assert_eq!(other.list(), one.list());
        assert_eq!(RevocationStore::open(&one.path, Opening::Existing, PATIENCE).unwrap().read_all().unwrap(), one.list());

        std::fs::rename(folder.path().join("revoked.db"), folder.path().join("away.db")).unwrap();
        assert!(one.refresh().is_err() && one.add(&bob).is_err());
        assert_eq!(one.check(&identity("alice", json!({}))), Err(Rejection::CredentialRevoked));
        // Another database in its place adds what it knows; what it lacks nobody has taken back.
        RevocationStore::open(&one.path, Opening::Create, PATIENCE).unwrap().add(&bob).unwrap();
        one.refresh().unwrap();
        assert_eq!(one.len(), 2);
    }

    #[test]
    fn a_row_that_nobody_writes_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        opened(&folder).add(&order(json!({"subject": "alice"})).unwrap()).unwrap();
        let path = folder.path().join("revoked.db");
        rusqlite::Connection::open(&path).unwrap().execute("UPDATE revocation SET kind = 'planet'", []).unwrap();
        assert!(Revocations::new(&path).open().is_err());
    }

    fn any_revocation() -> impl Strategy<Value = Revocation> {
        let word = prop_oneof![Just("a"), Just("b"), Just("c")];
        let issuer = prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))];
        (0..6_usize, word, issuer, proptest::option::of(0..4_u64), proptest::option::of(0..9_u64)).prop_map(
            |(kind, word, issuer, before, expires)| Revocation {
                kind: Kind::ALL[kind],
                value: if kind == 0 { Box::new([word.as_bytes()[0]; 32]) } else { word.as_bytes().into() },
                issuer: issuer.map(Into::into),
                before,
                expires,
                revoked: NOW,
            },
        )
    }

    proptest! {
        #[test]
        fn the_table_says_what_a_list_of_all_revocations_says(
            batches in proptest::collection::vec(proptest::collection::vec(any_revocation(), 0..6), 0..8),
            words in proptest::collection::vec(proptest::option::of(prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")]), 6),
            iat in proptest::option::of(0..4_u64),
        ) {
            let mut identity = Identity::new(Method::Jwt, "x".into(), [words[0].unwrap_or("d").as_bytes()[0]; 32]);
            (identity.subject, identity.client, identity.key_id) = (words[1].map(Into::into), words[2].map(Into::into), words[3].map(Into::into));
            for (name, value) in [("jti", words[4].map(Value::from)), ("iss", words[5].map(Value::from)), ("iat", iat.map(Value::from))] {
                identity.claims.extend(value.map(|value| (name.to_owned(), value)));
            }
            let is = |revocation: &Revocation| {
                let value = match revocation.kind {
                    Kind::Token => Some(identity.credential.to_vec()),
                    Kind::Subject => words[1].map(Into::into),
                    Kind::Client => words[2].map(Into::into),
                    Kind::KeyId => words[3].map(Into::into),
                    Kind::Jti => words[4].map(Into::into),
                    Kind::Issuer => words[5].map(Into::into),
                };
                value.is_some_and(|value| *value == *revocation.value)
                    && (revocation.issuer.is_none() || revocation.issuer.as_deref() == words[5])
                    && (revocation.before.is_none() || iat.is_none() || iat < revocation.before)
            };
            let mut table = Table::default();
            for batch in &batches {
                table = table.with(batch.clone());
                prop_assert!(table.recent.len() <= RECENT);
            }
            prop_assert_eq!(table.revokes(&identity), batches.iter().flatten().any(is));
            prop_assert_eq!(table.len == 0, batches.iter().flatten().next().is_none());
        }
    }
}
