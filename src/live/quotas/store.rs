//! Where quotas survive a restart: one SQLite file that every process of a host adds to.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::Type;
use rusqlite::{Connection, Row, TransactionBehavior, params};

use super::account::{Account, Entry};
use crate::live::database::{Database, Kind, OpenError, Opening, integer, natural};
use crate::live::limits::Key;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It was not opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file is another one than the counts in memory were read from.
    #[error("{} was moved away or replaced; a restart goes on with what is there then", .0.display())]
    Replaced(PathBuf),
    /// SQLite.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// An open store. Every call blocks.
#[derive(Debug)]
pub(super) struct QuotaStore(Database);

/// The number is "edgq".
const KIND: Kind = Kind {
    name: "quota store",
    application_id: 0x6564_6771,
    version: 1,
    schema: "
        CREATE TABLE quota_use (
            quota  TEXT NOT NULL,
            key    BLOB NOT NULL,
            begins INTEGER NOT NULL,
            last   INTEGER NOT NULL,
            until  INTEGER NOT NULL,
            used   INTEGER NOT NULL CHECK (used >= 0),
            PRIMARY KEY (quota, key, begins)
        ) STRICT, WITHOUT ROWID;
    ",
};

/// What is to be added for one key of a quota.
#[derive(Debug)]
pub(super) struct Addition {
    pub(super) quota: Arc<str>,
    pub(super) key: Key,
    pub(super) entry: Entry,
}

impl QuotaStore {
    /// Opens a store; a call waits at most `patience` for another process that writes.
    pub(super) fn open(path: &Path, opening: Opening, patience: Duration) -> Result<Self, StoreError> {
        Ok(Self(Database::open(path, &KIND, opening, patience)?))
    }

    pub(super) fn is_in_place(&self) -> bool {
        self.0.is_in_place()
    }

    /// Everything that counts after a second. A row that no edgeward of this version writes is an error: what it stands for is unknown.
    pub(super) fn read_all(&self, second: u64, mut each: impl FnMut(Arc<str>, Key, Entry)) -> Result<(), StoreError> {
        let mut statement = self.0.connection.prepare("SELECT begins, last, until, used, quota, key FROM quota_use WHERE until > ?1")?;
        let mut rows = statement.query([integer(second)])?;
        while let Some(row) = rows.next()? {
            each(row.get(4)?, key(row, 5)?, entry(row)?);
        }
        Ok(())
    }

    /// What one key has used of a quota.
    pub(super) fn read(&self, quota: &str, key: &Key) -> Result<Account, StoreError> {
        let mut account = Account::default();
        each_entry(&self.0.connection, quota, key, |entry| account.merge(entry))?;
        Ok(account)
    }

    /// Adds in one transaction, and hands over what is then known of each key: other processes add as well.
    pub(super) fn add(&mut self, additions: &[Addition], mut each: impl FnMut(&Addition, Entry)) -> Result<(), StoreError> {
        let transaction = self.0.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for addition in additions {
            let Addition { quota, key, entry: Entry { begins, last, until, units } } = addition;
            // Never below nothing: a refund may meet a row that was cleaned away.
            transaction
                .prepare_cached(
                    "INSERT INTO quota_use (quota, key, begins, last, until, used) VALUES (?1, ?2, ?3, ?4, ?5, max(?6, 0))
                     ON CONFLICT (quota, key, begins) DO UPDATE SET
                        used = max(used + ?6, 0), last = max(last, excluded.last), until = max(until, excluded.until)",
                )?
                .execute(params![quota, key.as_bytes(), integer(*begins), integer(*last), integer(*until), units])?;
        }
        // Before the commit: an error after it would have the same units added once more.
        for addition in additions {
            each_entry(&transaction, &addition.quota, &addition.key, |entry| each(addition, entry))?;
        }
        Ok(transaction.commit()?)
    }

    /// Deletes what has counted no longer since a second.
    pub(super) fn clean(&self, second: u64) -> Result<(), StoreError> {
        self.0.connection.execute("DELETE FROM quota_use WHERE until <= ?1", [integer(second)])?;
        Ok(())
    }
}

fn each_entry(connection: &Connection, quota: &str, key: &Key, mut each: impl FnMut(Entry)) -> Result<(), StoreError> {
    let sql = "SELECT begins, last, until, used FROM quota_use WHERE quota = ?1 AND key = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![quota, key.as_bytes()])?;
    while let Some(row) = rows.next()? {
        each(entry(row)?);
    }
    Ok(())
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { begins: natural(row.get(0)?), last: natural(row.get(1)?), until: natural(row.get(2)?), units: row.get(3)? })
}

fn key(row: &Row<'_>, column: usize) -> rusqlite::Result<Key> {
    let written = row.get_ref(column)?.as_blob()?;
    Key::from_bytes(written).ok_or_else(|| rusqlite::Error::InvalidColumnType(column, "key".to_owned(), Type::Blob))
}
