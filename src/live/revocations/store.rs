//! Where revocations survive a restart: one SQLite file that gateways follow and the command line writes at the same time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::Type;
use rusqlite::{Row, Transaction, TransactionBehavior, params};

use super::{Kind, Revocation};
use crate::live::database::{self, Database, OpenError, Opening, integer, natural};
use crate::net::redis::CallError;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It was not opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file that was followed is not there any more.
    #[error("{} was moved away or replaced", .0.display())]
    Replaced(PathBuf),
    /// SQLite.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    /// There is no room for another one.
    #[error("nothing was revoked: {0} revocations are kept, which is all that `revocation.entries` allows")]
    Full(usize),
    /// Redis cannot be asked; nothing was changed.
    #[error("Redis is away: {0}")]
    Away(String),
    /// Redis was asked, and did not say.
    #[error("Redis: {0}")]
    Redis(CallError),
    /// Redis was told, and did not say whether it was done.
    #[error("Redis did not confirm it: {0}; whether it was done is unknown, and doing it again does no harm")]
    Unconfirmed(CallError),
    /// What stands in Redis is nothing that this version writes.
    #[error("Redis holds revocations that no edgeward of this version writes")]
    Foreign,
    /// The work ended early.
    #[error("{0}")]
    Interrupted(std::io::Error),
}

/// An open store. Every call blocks.
#[derive(Debug)]
pub struct RevocationStore {
    database: Database,
    /// A revision, and how many rows there were: each later one has added one at most, so that they need not be counted each time.
    counted: Option<(i64, i64)>,
}

/// The number is "edgr". `issuer` is empty where it does not matter which.
const KIND: database::Kind = database::Kind {
    name: "revocation store",
    application_id: 0x6564_6772,
    version: 1,
    schema: "
        CREATE TABLE revocation (
            kind     TEXT NOT NULL,
            value    BLOB NOT NULL CHECK (length(value) > 0),
            issuer   TEXT NOT NULL,
            before   INTEGER,
            expires  INTEGER,
            revoked  INTEGER NOT NULL,
            revision INTEGER NOT NULL,
            PRIMARY KEY (kind, value, issuer)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX revocation_revision ON revocation (revision);
        CREATE TABLE revocation_change (revision INTEGER NOT NULL, taken_back INTEGER NOT NULL) STRICT;
        INSERT INTO revocation_change VALUES (0, 0);
    ",
};

const FORGET: &str = "DELETE FROM revocation WHERE expires <= ?1";

/// How far a store has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// The revision of the last change.
    pub(super) revision: i64,
    /// How often something was taken back: of that no row is left to tell.
    pub(super) taken_back: i64,
}

impl RevocationStore {
    /// Opens a store; a call waits at most `patience` for another process that writes.
    ///
    /// # Errors
    /// When it is missing, not ours, damaged, or may not be read and written.
    pub fn open(path: &Path, opening: Opening, patience: Duration) -> Result<Self, StoreError> {
        Ok(Self { database: Database::open(path, &KIND, opening, patience)?, counted: None })
    }

    /// Everything that is revoked.
    ///
    /// # Errors
    /// When the store cannot be read, or holds a row that no edgeward of this version writes: what it stands for is unknown.
    pub fn read_all(&self) -> Result<Vec<Revocation>, StoreError> {
        self.read_since(-1)
    }

    /// Revokes, in addition to what is revoked: what was stays at least as wide.
    ///
    /// # Errors
    /// When there would be more than `most`, or the store cannot be written; then nothing was.
    pub fn add(&mut self, revocation: &Revocation, most: usize) -> Result<(), StoreError> {
        let mut counted = self.counted;
        // A file that was overwritten in its place may be an older one.
        let since = |then: i64, revision: i64| (revision > then).then(|| revision - 1 - then);
        let added = self.change(|transaction, revision| {
            let Revocation { kind, value, issuer, before, expires, revoked } = revocation;
            let issuer = issuer.as_deref().unwrap_or_default();
            let sql = "SELECT EXISTS (SELECT 1 FROM revocation WHERE kind = ?1 AND value = ?2 AND issuer = ?3)";
            let is_known = transaction.query_row(sql, params![kind.label(), value, issuer], |row| row.get::<_, bool>(0))?;
            let at_most = counted.and_then(|(then, rows)| Some(rows + since(then, revision)?));
            if !is_known && at_most.is_none_or(|rows| natural(rows) >= most as u64) {
                transaction.execute(FORGET, [integer(*revoked)])?;
                let rows = transaction.query_row("SELECT count(*) FROM revocation", [], |row| row.get(0))?;
                counted = Some((revision - 1, rows));
                if natural(rows) >= most as u64 {
                    return Err(StoreError::Full(most));
                }
            }
            // max() of anything and NULL is NULL, which is the widest: whatever its time, and never forgotten.
            transaction.execute(
                "INSERT INTO revocation (kind, value, issuer, before, expires, revoked, revision) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (kind, value, issuer) DO UPDATE SET
                    before = max(before, excluded.before), expires = max(expires, excluded.expires), revision = excluded.revision",
                params![kind.label(), value, issuer, before.map(integer), expires.map(integer), integer(*revoked), revision],
            )?;
            Ok(())
        });
        if added.is_ok() {
            self.counted = counted;
        }
        added
    }

    /// Takes a revocation back, and says whether there was one.
    ///
    /// # Errors
    /// When the store cannot be written; then nothing was.
    pub fn remove(&mut self, revocation: &Revocation) -> Result<bool, StoreError> {
        self.change(|transaction, _| {
            let Revocation { kind, value, issuer, .. } = revocation;
            let sql = "DELETE FROM revocation WHERE kind = ?1 AND value = ?2 AND issuer = ?3";
            let removed = transaction.execute(sql, params![kind.label(), value, issuer.as_deref().unwrap_or_default()])? > 0;
            if removed {
                transaction.execute("UPDATE revocation_change SET taken_back = taken_back + 1", [])?;
            }
            Ok(removed)
        })
    }

    /// Deletes what could only meet credentials that ended before a second. Every reader forgets these by itself.
    pub(super) fn forget(&self, second: u64) -> Result<(), StoreError> {
        self.database.connection.execute(FORGET, [integer(second)])?;
        Ok(())
    }

    pub(super) fn is_in_place(&self) -> bool {
        self.database.is_in_place()
    }

    /// A number that changes whenever somebody else has written; SQLite reads it from shared memory.
    pub(super) fn data_version(&self) -> Result<i64, StoreError> {
        Ok(self.database.connection.pragma_query_value(None, "data_version", |row| row.get(0))?)
    }

    pub(super) fn progress(&self) -> Result<Progress, StoreError> {
        let sql = "SELECT revision, taken_back FROM revocation_change";
        Ok(self.database.connection.query_row(sql, [], |row| Ok(Progress { revision: row.get(0)?, taken_back: row.get(1)? }))?)
    }

    /// What was revoked after a revision; a negative one means all.
    pub(super) fn read_since(&self, revision: i64) -> Result<Vec<Revocation>, StoreError> {
        let sql = "SELECT kind, value, issuer, before, expires, revoked FROM revocation WHERE revision > ?1";
        let mut statement = self.database.connection.prepare_cached(sql)?;
        let rows = statement.query_map([revision], read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// One change under the next revision. SQLite lets one writer in at a time: no reader sees a later revision before an earlier one.
    fn change<T>(&mut self, work: impl FnOnce(&Transaction<'_>, i64) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let transaction = self.database.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = "UPDATE revocation_change SET revision = revision + 1 RETURNING revision";
        let revision = transaction.query_row(sql, [], |row| row.get(0))?;
        let done = work(&transaction, revision)?;
        transaction.commit()?;
        Ok(done)
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Revocation> {
    let kind = row.get_ref(0)?.as_str()?;
    let issuer: String = row.get(2)?;
    let time = |column: usize| row.get::<_, Option<i64>>(column).map(|time| time.map(natural));
    Ok(Revocation {
        kind: Kind::parse(kind).ok_or_else(|| rusqlite::Error::InvalidColumnType(0, kind.to_owned(), Type::Text))?,
        value: row.get::<_, Vec<u8>>(1)?.into(),
        issuer: (!issuer.is_empty()).then(|| issuer.into()),
        before: time(3)?,
        expires: time(4)?,
        revoked: natural(row.get(5)?),
    })
}
