//! The embedded store of API keys: one SQLite file that the gateway and the command line write at the same time.
//!
//! Every change of a key takes the next revision, so that a reader who knows the last one reads only what is new. Records are never
//! deleted: a revoked key stays, and with it the reason in the log. No secret is here, only hashes.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, named_params, params};
use smol_str::SmolStr;

use super::api_keys::{KeyHash, Previous, Record};
use super::database::{Database, Kind, OpenError, Opening, integer, natural};

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It was not opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Nobody has a key of this id.
    #[error("there is no key with the id {0:?}")]
    Unknown(Arc<str>),
    /// These ids are taken, or their hashes are.
    #[error("already known: {}", .0.join(", "))]
    Duplicates(Vec<String>),
    /// A change that makes no sense for this key.
    #[error("{0}")]
    Refused(String),
    /// SQLite.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// How a key was used: to be added to what is known, or what is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// The key.
    pub id: SmolStr,
    /// Requests that it opened.
    pub requests: u64,
    /// When last (seconds since the Unix epoch).
    pub last_used: u64,
    /// From where last.
    pub last_address: Option<IpAddr>,
}

/// An open store. Every call blocks.
#[derive(Debug)]
pub struct KeyStore(Database);

/// The number is "edgw".
pub(super) const KIND: Kind = Kind { name: "key store", application_id: 0x6564_6777, version: 1, schema: SCHEMA };

const SCHEMA: &str = "
    CREATE TABLE api_key (
        id              TEXT PRIMARY KEY NOT NULL,
        sha256          BLOB NOT NULL CHECK (length(sha256) = 32),
        previous_sha256 BLOB CHECK (length(previous_sha256) = 32),
        previous_ends   INTEGER,
        consumer        TEXT NOT NULL,
        scopes          TEXT NOT NULL CHECK (json_type(scopes) = 'array'),
        routes          TEXT NOT NULL CHECK (json_type(routes) = 'array'),
        allow           TEXT NOT NULL CHECK (json_type(allow) = 'array'),
        plan            TEXT,
        created         INTEGER,
        not_before      INTEGER,
        expires         INTEGER,
        revoked         INTEGER,
        revision        INTEGER NOT NULL,
        CHECK ((previous_sha256 IS NULL) = (previous_ends IS NULL))
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX api_key_sha256 ON api_key (sha256);
    CREATE UNIQUE INDEX api_key_previous_sha256 ON api_key (previous_sha256) WHERE previous_sha256 IS NOT NULL;
    CREATE INDEX api_key_revision ON api_key (revision);
    CREATE TABLE api_key_change (revision INTEGER NOT NULL) STRICT;
    INSERT INTO api_key_change VALUES (0);
    CREATE TABLE api_key_usage (
        id           TEXT PRIMARY KEY NOT NULL,
        requests     INTEGER NOT NULL,
        last_used    INTEGER NOT NULL,
        last_address TEXT
    ) STRICT, WITHOUT ROWID;
";

const COLUMNS: &str =
    "id, sha256, previous_sha256, previous_ends, consumer, scopes, routes, allow, plan, created, not_before, expires, revoked";

impl KeyStore {
    /// Opens a store; a call waits at most `patience` for another process that writes.
    ///
    /// # Errors
    /// When it is missing, not ours, damaged, or may not be read and written.
    pub fn open(path: &Path, opening: Opening, patience: Duration) -> Result<Self, StoreError> {
        Ok(Self(Database::open(path, &KIND, opening, patience)?))
    }

    /// Whether the path still leads to the file that is open; otherwise it was moved away, deleted or restored from a backup.
    pub fn is_in_place(&self) -> bool {
        self.0.is_in_place()
    }

    /// A number that changes whenever somebody else has written; SQLite reads it from shared memory.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn data_version(&self) -> Result<i64, StoreError> {
        Ok(self.0.connection.pragma_query_value(None, "data_version", |row| row.get(0))?)
    }

    /// The revision of the last change.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn revision(&self) -> Result<i64, StoreError> {
        Ok(self.0.connection.query_row("SELECT revision FROM api_key_change", [], |row| row.get(0))?)
    }

    /// Reads the keys that changed after a revision, in no order, and returns the latest revision among them. A negative one means all.
    /// Of a row that no edgeward of this version writes, `each` gets the id as an error.
    ///
    /// # Errors
    /// When the store cannot be read; what was read until then was handed over.
    pub fn read_since(&self, revision: i64, mut each: impl FnMut(Result<Record, Arc<str>>)) -> Result<i64, StoreError> {
        // A million keys in the order of the index would be a million searches of the table.
        let path = if revision < 0 { "NOT INDEXED" } else { "INDEXED BY api_key_revision" };
        let sql = format!("SELECT {COLUMNS}, revision FROM api_key {path} WHERE revision > ?1");
        let mut statement = self.0.connection.prepare_cached(&sql)?;
        let mut rows = statement.query([revision])?;
        let mut last = revision.max(0);
        while let Some(row) = rows.next()? {
            last = last.max(row.get("revision")?);
            match record(row) {
                Ok(record) => each(Ok(record)),
                Err(_) => each(Err(row.get("id")?)),
            }
        }
        Ok(last)
    }

    /// The key of this id.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn find(&self, id: &str) -> Result<Record, StoreError> {
        find(&self.0.connection, id)
    }

    /// Adds keys: all, or none when an id or a hash is already known.
    ///
    /// # Errors
    /// When one is known, each named, or the store cannot be written.
    pub fn insert(&mut self, records: &[Record]) -> Result<(), StoreError> {
        self.change(|transaction, revision| {
            let mut duplicates = Vec::new();
            for record in records {
                match known(transaction, record)? {
                    Some(id) if *id == *record.id => duplicates.push(id),
                    Some(id) => duplicates.push(format!("{} (its hash is that of {id})", record.id)),
                    None => write(transaction, record, revision)?,
                }
            }
            if duplicates.is_empty() { Ok(()) } else { Err(StoreError::Duplicates(duplicates)) }
        })
    }

    /// Changes one key, and returns it as it is then.
    ///
    /// # Errors
    /// When there is no such key, the change refuses, or the store cannot be written; then nothing changed.
    pub fn update(&mut self, id: &str, change: impl FnOnce(&mut Record) -> Result<(), StoreError>) -> Result<Record, StoreError> {
        self.change(|transaction, revision| {
            let mut record = find(transaction, id)?;
            change(&mut record)?;
            // Not INSERT OR REPLACE: it would silently delete another key that has the same hash.
            transaction.execute("DELETE FROM api_key WHERE id = ?1", [id])?;
            write(transaction, &record, revision)?;
            Ok(record)
        })
    }

    /// Adds to the usage of keys.
    ///
    /// # Errors
    /// When the store cannot be written; then nothing was added.
    pub fn add_usage<'r>(&mut self, rows: impl IntoIterator<Item = &'r UsageRow>) -> Result<(), StoreError> {
        let transaction = self.0.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            // Two gateways may share the store: counts add up, and the later use is the last one.
            let mut statement = transaction.prepare_cached(
                "INSERT INTO api_key_usage (id, requests, last_used, last_address) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (id) DO UPDATE SET
                    requests = requests + excluded.requests,
                    last_address = iif(excluded.last_used >= last_used, excluded.last_address, last_address),
                    last_used = max(last_used, excluded.last_used)",
            )?;
            for row in rows {
                let address = row.last_address.map(|address| address.to_string());
                statement.execute(params![row.id.as_str(), integer(row.requests), integer(row.last_used), address])?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// The usage of a key, as far as it was written down; none if it was never used.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn usage(&self, id: &str) -> Result<Option<UsageRow>, StoreError> {
        let mut statement =
            self.0.connection.prepare_cached("SELECT id, requests, last_used, last_address FROM api_key_usage WHERE id = ?1")?;
        let row = statement.query_row([id], |row| {
            Ok(UsageRow {
                id: SmolStr::new(row.get_ref(0)?.as_str()?),
                requests: natural(row.get(1)?),
                last_used: natural(row.get(2)?),
                last_address: row.get::<_, Option<String>>(3)?.and_then(|text| text.parse().ok()),
            })
        });
        Ok(row.optional()?)
    }

    /// One change under the next revision. SQLite lets one writer in at a time: no reader sees a later revision before an earlier one.
    fn change<T>(&mut self, work: impl FnOnce(&Transaction<'_>, i64) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let transaction = self.0.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = "UPDATE api_key_change SET revision = revision + 1 RETURNING revision";
        let revision = transaction.query_row(sql, [], |row| row.get(0))?;
        let done = work(&transaction, revision)?;
        transaction.commit()?;
        Ok(done)
    }
}

fn find(connection: &Connection, id: &str) -> Result<Record, StoreError> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM api_key WHERE id = ?1"))?;
    statement.query_row([id], record).optional()?.ok_or_else(|| StoreError::Unknown(id.into()))
}

/// The id of the key that has this record's id or one of its hashes.
fn known(connection: &Connection, record: &Record) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare_cached(
        "SELECT id FROM api_key WHERE id = ?1
         UNION ALL SELECT id FROM api_key WHERE sha256 IN (?2, ?3)
         UNION ALL SELECT id FROM api_key WHERE previous_sha256 IN (?2, ?3) LIMIT 1",
    )?;
    statement.query_row(params![record.id, record.sha256.0, record.previous.map(|previous| previous.sha256.0)], |row| row.get(0)).optional()
}

fn write(connection: &Connection, record: &Record, revision: i64) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(&format!(
        "INSERT INTO api_key ({COLUMNS}, revision) VALUES
         (:id, :sha256, :previous_sha256, :previous_ends, :consumer, :scopes, :routes, :allow, :plan,
          :created, :not_before, :expires, :revoked, :revision)"
    ))?;
    statement.execute(named_params! {
        ":id": record.id,
        ":sha256": record.sha256.0,
        ":previous_sha256": record.previous.map(|previous| previous.sha256.0),
        ":previous_ends": record.previous.map(|previous| integer(previous.ends)),
        ":consumer": record.consumer,
        ":scopes": serde_json::Value::from_iter(record.scopes.iter().map(|scope| &**scope)).to_string(),
        ":routes": serde_json::Value::from_iter(record.routes.iter().map(|route| &**route)).to_string(),
        ":allow": serde_json::Value::from_iter(record.allow.iter().map(IpNet::to_string)).to_string(),
        ":plan": record.plan,
        ":created": record.created.map(integer),
        ":not_before": record.not_before.map(integer),
        ":expires": record.expires.map(integer),
        ":revoked": record.revoked.map(integer),
        ":revision": revision,
    })?;
    Ok(())
}

/// A row of [`COLUMNS`], in their order: finding a column by its name costs more than reading it.
fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let time = |column: usize| row.get::<_, Option<i64>>(column).map(|time| time.map(natural));
    Ok(Record {
        id: row.get(0)?,
        sha256: KeyHash(row.get(1)?),
        previous: row.get::<_, Option<_>>(2)?.zip(time(3)?).map(|(sha256, ends)| Previous { sha256: KeyHash(sha256), ends }),
        consumer: row.get(4)?,
        scopes: list(row, 5, |text| Some(text.into()))?,
        routes: list(row, 6, |text| Some(text.into()))?,
        allow: list(row, 7, |text| text.parse().ok())?,
        plan: row.get(8)?,
        created: time(9)?,
        not_before: time(10)?,
        expires: time(11)?,
        revoked: time(12)?,
    })
}

/// A JSON array of strings. One member that is not understood spoils the list: an `allow` that lost its only member would allow all.
fn list<T>(row: &Row<'_>, column: usize, read: impl Fn(&str) -> Option<T>) -> rusqlite::Result<Vec<T>> {
    let text = row.get_ref(column)?.as_str()?;
    let members: Option<Vec<String>> = serde_json::from_str(text).ok();
    let values = members.and_then(|members| members.iter().map(|member| read(member)).collect());
    values.ok_or(rusqlite::Error::InvalidColumnType(column, "list".to_owned(), Type::Text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn sample(id: &str) -> Record {
        Record {
            id: id.into(),
            sha256: KeyHash::of(id),
            previous: None,
            consumer: "acme".into(),
            scopes: vec!["orders:read".into(), "orders:write".into()],
            routes: vec!["orders".into()],
            allow: vec!["203.0.113.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            plan: Some("gold".into()),
            created: Some(1_700_000_000),
            not_before: Some(1_700_000_001),
            expires: Some(1_800_000_000),
            revoked: None,
        }
    }

    fn changes(store: &KeyStore, since: i64) -> (Vec<Record>, i64) {
        let mut read = Vec::new();
        let last = store.read_since(since, |record| read.push(record.unwrap())).unwrap();
        (read, last)
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = KeyStore::open(&folder.path().join("keys.db"), Opening::Create, PATIENCE).unwrap();
        let bare = Record {
            scopes: vec![],
            routes: vec![],
            allow: vec![],
            plan: None,
            created: None,
            not_before: None,
            expires: None,
            revoked: Some(7),
            previous: Some(Previous { sha256: KeyHash::of("old"), ends: 9 }),
            ..sample("bare")
        };
        store.insert(&[sample("full"), bare.clone()]).unwrap();
        assert_eq!(store.find("full").unwrap(), sample("full"));
        assert_eq!(store.find("bare").unwrap(), bare);
        assert!(matches!(store.find("none"), Err(StoreError::Unknown(_))));
    }

    #[test]
    fn a_reader_gets_what_a_second_connection_changed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let mut writer = KeyStore::open(&path, Opening::Create, PATIENCE).unwrap();
        let reader = KeyStore::open(&path, Opening::Existing, PATIENCE).unwrap();
        let quiet = reader.data_version().unwrap();
        assert_eq!(reader.data_version().unwrap(), quiet, "nobody wrote");

        writer.insert(&[sample("a"), sample("b")]).unwrap();
        assert_ne!(reader.data_version().unwrap(), quiet, "somebody wrote");
        let (read, revision) = changes(&reader, -1);
        assert_eq!(read.len(), 2);

        let revoke = |record: &mut Record| {
            record.revoked = Some(5);
            Ok(())
        };
        writer.update("a", revoke).unwrap();
        let (read, later) = changes(&reader, revision);
        assert_eq!(read, [Record { revoked: Some(5), ..sample("a") }]);
        assert_eq!(changes(&reader, later), (vec![], later));
        assert_eq!(reader.revision().unwrap(), later);
    }

    #[test]
    fn a_change_that_refuses_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = KeyStore::open(&folder.path().join("keys.db"), Opening::Create, PATIENCE).unwrap();
        store.insert(&[sample("a")]).unwrap();
        let revision = store.revision().unwrap();
        let refused = store.update("a", |record| {
            record.revoked = Some(5);
            Err(StoreError::Refused("no".into()))
        });
        assert!(refused.is_err());
        assert_eq!((store.find("a").unwrap(), store.revision().unwrap()), (sample("a"), revision));
    }

    #[test]
    fn an_insert_names_every_duplicate_and_adds_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = KeyStore::open(&folder.path().join("keys.db"), Opening::Create, PATIENCE).unwrap();
        let old = Previous { sha256: KeyHash::of("old"), ends: 9 };
        store.insert(&[sample("a"), Record { previous: Some(old), ..sample("b") }]).unwrap();
        let batch = [
            sample("new"),
            sample("a"),
            Record { sha256: KeyHash::of("b"), ..sample("same-hash") },
            Record { sha256: KeyHash::of("old"), ..sample("same-as-a-previous") },
            Record { previous: Some(Previous { sha256: KeyHash::of("a"), ends: 9 }), ..sample("previous-is-a-current") },
            Record { sha256: KeyHash::of("new"), ..sample("same-in-the-batch") },
        ];
        let Err(StoreError::Duplicates(named)) = store.insert(&batch) else { panic!("accepted") };
        assert_eq!(
            named,
            [
                "a",
                "same-hash (its hash is that of b)",
                "same-as-a-previous (its hash is that of b)",
                "previous-is-a-current (its hash is that of a)",
                "same-in-the-batch (its hash is that of new)",
            ]
        );
        assert!(matches!(store.find("new"), Err(StoreError::Unknown(_))));
    }

    #[test]
    fn usage_adds_up_and_the_latest_use_is_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let mut one = KeyStore::open(&path, Opening::Create, PATIENCE).unwrap();
        let mut two = KeyStore::open(&path, Opening::Existing, PATIENCE).unwrap();
        let row = |requests, last_used, address: &str| UsageRow {
            id: "a".into(),
            requests,
            last_used,
            last_address: Some(address.parse().unwrap()),
        };
        one.add_usage(&[row(2, 100, "192.0.2.1")]).unwrap();
        two.add_usage(&[row(3, 90, "192.0.2.2")]).unwrap();
        assert_eq!(one.usage("a").unwrap(), Some(row(5, 100, "192.0.2.1")));
        two.add_usage(&[row(1, 101, "2001:db8::1")]).unwrap();
        assert_eq!(one.usage("a").unwrap(), Some(row(6, 101, "2001:db8::1")));
        assert_eq!(one.usage("b").unwrap(), None);
    }

    #[test]
    fn a_row_that_is_not_understood_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let mut store = KeyStore::open(&path, Opening::Create, PATIENCE).unwrap();
        store.insert(&[sample("a"), sample("b")]).unwrap();
        Connection::open(&path).unwrap().execute("UPDATE api_key SET allow = '[\"10.0.0.0/99\"]' WHERE id = 'a'", []).unwrap();
        let mut unreadable = Vec::new();
        store.read_since(-1, |record| unreadable.extend(record.err())).unwrap();
        assert_eq!(unreadable, [Arc::<str>::from("a")]);
    }
}
