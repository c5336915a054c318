//! The embedded store as a running gateway follows it, beside the other processes of its host.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::lock;
use super::store::{Progress, RevocationStore, StoreError};
use super::table::{Change, Table};
use crate::live::database::Opening;

/// One database, and what of it is in force.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) path: PathBuf,
    pub(super) table: Arc<ArcSwapOption<Table>>,
    follower: Mutex<Option<Follower>>,
}

/// The open store and how far it was read.
#[derive(Debug)]
struct Follower {
    store: RevocationStore,
    data_version: Option<i64>,
    read: Option<Progress>,
}

/// How long another process that writes is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

impl Local {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, table: Arc::default(), follower: Mutex::default() }
    }

    /// Reads what changed since the last time. The first time, a database that is missing is made, empty.
    pub(super) fn follow(&self) -> Result<(), StoreError> {
        let mut slot = lock(&self.follower);
        // Only the first time: a database that vanishes under a running gateway is a fault, not a wish to revoke nothing.
        let opening = if self.table.load().is_some() { Opening::Existing } else { Opening::Create };
        // What cannot be read is opened anew the next time.
        let mut follower = match slot.take() {
            Some(follower) if follower.store.is_in_place() => follower,
            _ => Follower { store: RevocationStore::open(&self.path, opening, PATIENCE)?, data_version: None, read: None },
        };
        self.read(&mut follower)?;
        *slot = Some(follower);
        Ok(())
    }

    /// Changes the store, and what is in force with it.
    pub(super) fn write<T>(&self, work: impl FnOnce(&mut RevocationStore) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut slot = lock(&self.follower);
        let follower = slot.as_mut().filter(|follower| follower.store.is_in_place());
        let follower = follower.ok_or_else(|| StoreError::Replaced(self.path.clone()))?;
        let done = work(&mut follower.store)?;
        // SQLite tells a connection of what others wrote only.
        follower.data_version = None;
        self.read(follower)?;
        Ok(done)
    }

    /// Forgets what could only meet credentials that ended before a second.
    pub(super) fn forget(&self, second: u64) -> Result<(), StoreError> {
        let slot = lock(&self.follower);
        if let Some(next) = self.table.load_full().and_then(|table| table.without_expired(second)) {
            self.table.store(Some(Arc::new(next)));
        }
        slot.as_ref().map_or(Ok(()), |follower| follower.store.forget(second))
    }

    fn read(&self, follower: &mut Follower) -> Result<(), StoreError> {
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
        self.table.store(Some(Arc::new(before.as_deref().unwrap_or(&Table::default()).with(changes.into_iter().map(Change::Add)))));
        follower.data_version = Some(data_version);
        follower.read = Some(progress);
        Ok(())
    }
}
