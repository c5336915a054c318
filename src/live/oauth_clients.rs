//! The clients of the token endpoint: a table beside the API keys, in one SQLite file for every process.
//!
//! A client is looked up where it is kept, so that a revocation on the command line holds from the next request on; it costs no route anything.
//! What routes ask with every request, whether a token's client was revoked, is held in memory and read again when the file changes. Tokens
//! are taken back by [`revocations`](super::revocations).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use super::api_keys::{KeyHash, Previous};
use super::database::{Database, Opening, integer, natural};
use super::key_store::{KIND, StoreError};
use crate::request::{Clock, Now};

/// How often the file is asked whether somebody else has written.
const LOOK: Duration = Duration::from_millis(250);
/// How long a call waits for another process that writes.
const PATIENCE: Duration = Duration::from_secs(2);

/// A client. Times are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRecord {
    /// The `client_id`.
    pub id: Arc<str>,
    /// The hash of its secret, which has 256 random bits.
    pub sha256: KeyHash,
    /// The hash before a rotation, until it ends.
    pub previous: Option<Previous>,
    /// What it may ask for.
    pub scopes: Vec<Arc<str>>,
    /// For whom it may ask.
    pub audiences: Vec<Arc<str>>,
    /// When it was made.
    pub created: u64,
    /// It was revoked then.
    pub revoked: Option<u64>,
}

impl ClientRecord {
    /// Whether a secret is this client's now.
    fn admits(&self, presented: &KeyHash, now: u64) -> bool {
        let same = |ours: &KeyHash| openssl::memcmp::eq(&ours.0, &presented.0);
        let previous = self.previous.is_some_and(|previous| now < previous.ends && same(&previous.sha256));
        self.revoked.is_none() && (same(&self.sha256) | previous)
    }
}

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS oauth_client (
        id              TEXT PRIMARY KEY NOT NULL,
        sha256          BLOB NOT NULL CHECK (length(sha256) = 32),
        previous_sha256 BLOB CHECK (length(previous_sha256) = 32),
        previous_ends   INTEGER,
        scopes          TEXT NOT NULL CHECK (json_type(scopes) = 'array'),
        audiences       TEXT NOT NULL CHECK (json_type(audiences) = 'array'),
        created         INTEGER NOT NULL,
        revoked         INTEGER,
        CHECK ((previous_sha256 IS NULL) = (previous_ends IS NULL))
    ) STRICT, WITHOUT ROWID;
";

const COLUMNS: &str = "id, sha256, previous_sha256, previous_ends, scopes, audiences, created, revoked";

/// An open store of clients. Every call blocks.
#[derive(Debug)]
pub struct ClientStore(Database);

impl ClientStore {
    /// Opens the store; it may be one of API keys.
    ///
    /// # Errors
    /// When it is missing, not ours, damaged, or may not be read and written.
    pub fn open(path: &Path, opening: Opening) -> Result<Self, StoreError> {
        let database = Database::open(path, &KIND, opening, PATIENCE)?;
        database.connection.execute_batch(SCHEMA)?;
        Ok(Self(database))
    }

    /// The client of this id.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn find(&self, id: &str) -> Result<Option<ClientRecord>, StoreError> {
        Ok(find(&self.0.connection, id)?)
    }

    /// Every client, by its id.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn list(&self) -> Result<Vec<ClientRecord>, StoreError> {
        let mut statement = self.0.connection.prepare_cached(&format!("SELECT {COLUMNS} FROM oauth_client ORDER BY id"))?;
        let rows = statement.query_map([], record)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Adds a client.
    ///
    /// # Errors
    /// When its id is taken, or the store cannot be written.
    pub fn insert(&mut self, client: &ClientRecord) -> Result<(), StoreError> {
        let transaction = self.0.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if find(&transaction, &client.id)?.is_some() {
            return Err(StoreError::Duplicates(vec![client.id.to_string()]));
        }
        write(&transaction, client)?;
        Ok(transaction.commit()?)
    }

    /// Changes a client, and returns it as it is then.
    ///
    /// # Errors
    /// When there is none of this id, the change refuses, or the store cannot be written.
    pub fn update(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut ClientRecord) -> Result<(), StoreError>,
    ) -> Result<ClientRecord, StoreError> {
        // From reading to writing nobody else writes: a rotation must not undo a revocation.
        let transaction = self.0.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut client = find(&transaction, id)?.ok_or_else(|| StoreError::Unknown(id.into()))?;
        change(&mut client)?;
        write(&transaction, &client)?;
        transaction.commit()?;
        Ok(client)
    }

    fn revoked(&self) -> Result<HashSet<Box<str>>, StoreError> {
        let mut statement = self.0.connection.prepare_cached("SELECT id FROM oauth_client WHERE revoked IS NOT NULL")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0).map(Into::into))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn data_version(&self) -> Result<i64, StoreError> {
        Ok(self.0.connection.pragma_query_value(None, "data_version", |row| row.get(0))?)
    }
}

fn find(connection: &Connection, id: &str) -> rusqlite::Result<Option<ClientRecord>> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM oauth_client WHERE id = ?1"))?;
    statement.query_row([id], record).optional()
}

fn write(connection: &Connection, client: &ClientRecord) -> rusqlite::Result<()> {
    let list = |words: &[Arc<str>]| serde_json::Value::from_iter(words.iter().map(|word| &**word)).to_string();
    let sql = format!("INSERT OR REPLACE INTO oauth_client ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)");
    connection.execute(
        &sql,
        params![
            client.id,
            client.sha256.0,
            client.previous.map(|previous| previous.sha256.0),
            client.previous.map(|previous| integer(previous.ends)),
            list(&client.scopes),
            list(&client.audiences),
            integer(client.created),
            client.revoked.map(integer),
        ],
    )?;
    Ok(())
}

fn record(row: &Row<'_>) -> rusqlite::Result<ClientRecord> {
    let time = |column: usize| row.get::<_, Option<i64>>(column).map(|time| time.map(natural));
    let list = |column: usize| {
        let words: Option<Vec<Arc<str>>> = row.get_ref(column)?.as_str().ok().and_then(|text| {
            let words: Vec<String> = serde_json::from_str(text).ok()?;
            Some(words.into_iter().map(Into::into).collect())
        });
        words.ok_or_else(|| rusqlite::Error::InvalidColumnType(column, "list".to_owned(), rusqlite::types::Type::Text))
    };
    Ok(ClientRecord {
        id: row.get::<_, String>(0)?.into(),
        sha256: KeyHash(row.get(1)?),
        previous: row.get::<_, Option<_>>(2)?.zip(time(3)?).map(|(sha256, ends)| Previous { sha256: KeyHash(sha256), ends }),
        scopes: list(4)?,
        audiences: list(5)?,
        created: natural(row.get(6)?),
        revoked: time(7)?,
    })
}

/// The clients of one database, as a running gateway uses them.
#[derive(Debug)]
pub struct OauthClients {
    path: PathBuf,
    store: Mutex<Option<(ClientStore, i64)>>,
    /// The ids of those that were revoked.
    revoked: ArcSwap<HashSet<Box<str>>>,
}

impl OauthClients {
    /// The clients of a database, before it was opened.
    pub fn new(path: PathBuf) -> Self {
        Self { path, store: Mutex::new(None), revoked: ArcSwap::default() }
    }

    /// Opens the database, made when missing, and reads what was revoked. Blocks.
    ///
    /// # Errors
    /// When it cannot be opened or read.
    pub fn open(&self) -> Result<(), StoreError> {
        self.with(|_| Ok(()))
    }

    /// The client of this id and secret. `None`: there is none, or it was revoked. Blocks.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn authenticate(&self, id: &str, secret: &str, now: Now) -> Result<Option<ClientRecord>, StoreError> {
        let presented = KeyHash::of(secret);
        let found = self.with(|store| store.find(id))?;
        Ok(found.filter(|client| client.admits(&presented, now.unix.as_secs())))
    }

    /// Whether a client was revoked, and every token with it that it was given.
    pub fn is_revoked(&self, id: &str) -> bool {
        self.revoked.load().contains(id)
    }

    /// Reads what others have revoked, until nobody uses the clients.
    pub async fn maintain(this: Weak<Self>, _: Clock) {
        let mut failed = false;
        while let Some(clients) = this.upgrade() {
            let path = clients.path.clone();
            let round = tokio::task::spawn_blocking(move || clients.open().map_err(|error| error.to_string()));
            if let Ok(Err(error)) = round.await {
                if !std::mem::replace(&mut failed, true) {
                    tracing::error!(database = %path.display(), error, "the OAuth2 clients cannot be read; what was revoked stays revoked");
                }
            } else {
                failed = false;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut ClientStore) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut slot = lock(&self.store);
        if slot.as_ref().is_none_or(|(store, _)| !store.0.is_in_place()) {
            // Version -1 is nobody's: what was revoked is read below.
            // Nor is a file that went away made anew: what it said was revoked would be good again.
            let opening = if slot.is_some() { Opening::Existing } else { Opening::Create };
            *slot = Some((ClientStore::open(&self.path, opening)?, -1));
        }
        let Some((store, seen)) = slot.as_mut() else { return Err(StoreError::Refused("the store is not open".to_owned())) };
        let version = store.data_version()?;
        if version != *seen {
            self.revoked.store(Arc::new(store.revoked()?));
            *seen = version;
        }
        work(store)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_800_000_000) };

    fn client(id: &str, secret: &str) -> ClientRecord {
        ClientRecord {
            id: id.into(),
            sha256: KeyHash::of(secret),
            previous: None,
            scopes: vec!["orders:read".into()],
            audiences: vec!["orders".into()],
            created: 1,
            revoked: None,
        }
    }

    #[test]
    fn a_client_is_admitted_by_its_secret_until_it_is_rotated_or_revoked_by_another_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let clients = OauthClients::new(path.clone());
        clients.open().unwrap();
        let mut store = ClientStore::open(&path, Opening::Existing).unwrap();
        store.insert(&client("app", "one")).unwrap();
        assert!(matches!(store.insert(&client("app", "two")), Err(StoreError::Duplicates(_))));
        let admitted = |secret: &str| clients.authenticate("app", secret, NOW).unwrap().is_some();
        assert!(admitted("one") && !admitted("two") && !admitted(""));
        assert!(clients.authenticate("nobody", "one", NOW).unwrap().is_none());
        store
            .update("app", |client| {
                client.previous = Some(Previous { sha256: client.sha256, ends: NOW.unix.as_secs() + 1 });
                client.sha256 = KeyHash::of("two");
                Ok(())
            })
            .unwrap();
        assert!(admitted("one") && admitted("two"));
        let later = Now { unix: NOW.unix + Duration::from_secs(1), ..NOW };
        assert!(clients.authenticate("app", "one", later).unwrap().is_none());
        assert!(!clients.is_revoked("app"));
        store
            .update("app", |client| {
                client.revoked = Some(2);
                Ok(())
            })
            .unwrap();
        assert!(!admitted("two"));
        assert!(clients.is_revoked("app"));
        assert_eq!(store.list().unwrap().len(), 1);
    }

    #[test]
    fn a_revoked_client_stays_so_after_a_restart_and_without_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let clients = OauthClients::new(path.clone());
        clients.open().unwrap();
        let revoked = ClientRecord { revoked: Some(2), ..client("app", "one") };
        ClientStore::open(&path, Opening::Existing).unwrap().insert(&revoked).unwrap();
        clients.open().unwrap();
        assert!(clients.is_revoked("app") && !clients.is_revoked("other"));
        let restarted = OauthClients::new(path.clone());
        restarted.open().unwrap();
        assert!(restarted.is_revoked("app"));
        // A file that goes away takes nothing back.
        std::fs::rename(&path, folder.path().join("away.db")).unwrap();
        assert!(clients.open().is_err() && clients.open().is_err());
        assert!(clients.is_revoked("app"));
    }
}
