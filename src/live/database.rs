//! The embedded databases: SQLite files that several processes of one host open at the same time, each of a kind that it states.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// What to do about a database that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Make it, and its folder, for nobody else to read.
    Create,
    /// Say so.
    Existing,
}

/// Why a database was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no file.
    #[error("there is no {kind} at {}", .path.display())]
    Missing {
        /// What it would have been.
        kind: &'static str,
        /// Where it would have been.
        path: PathBuf,
    },
    /// The file is not ours, of another kind, or of a newer edgeward.
    #[error("{} is not a {kind} of this version of edgeward (schema {found}, expected {expected})", .path.display())]
    Schema {
        /// What it should be.
        kind: &'static str,
        /// The file.
        path: PathBuf,
        /// The version that it states.
        found: i64,
        /// The version that we know.
        expected: i64,
    },
    /// The file or its folder.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// SQLite.
    #[error("{}: {source}", .path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

/// What a database holds, and how a file says that it does.
#[derive(Debug)]
pub(super) struct Kind {
    /// What people call it.
    pub(super) name: &'static str,
    /// Tells our files from other people's, and one kind from another.
    pub(super) application_id: i64,
    /// Goes up with every change of the schema.
    pub(super) version: i64,
    /// What makes an empty one.
    pub(super) schema: &'static str,
}

/// An open database. Every call blocks.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) connection: Connection,
    path: PathBuf,
    file: (u64, u64),
}

impl Database {
    /// Opens a database; a call waits at most `patience` for another process that writes.
    pub(super) fn open(path: &Path, kind: &Kind, opening: Opening, patience: Duration) -> Result<Self, OpenError> {
        if opening == Opening::Create {
            create(path, kind)?;
        }
        let file = match std::fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(OpenError::Missing { kind: kind.name, path: path.into() }),
            metadata => identity(&metadata.map_err(at(path))?),
        };
        let (connection, version) = connect(path, kind, patience).map_err(sqlite(path))?;
        match version {
            Some(version) if version == kind.version => Ok(Self { connection, path: path.to_path_buf(), file }),
            found => {
                Err(OpenError::Schema { kind: kind.name, path: path.into(), found: found.unwrap_or_default(), expected: kind.version })
            }
        }
    }

    /// Whether the path still leads to the file that is open; otherwise it was moved away, deleted or restored from a backup.
    pub(super) fn is_in_place(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|metadata| identity(&metadata) == self.file)
    }
}

/// A connection, and the version of a file that is of this kind.
fn connect(path: &Path, kind: &Kind, patience: Duration) -> rusqlite::Result<(Connection, Option<i64>)> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(patience)?;
    // A foreign file must not run code of its own in our process.
    connection.pragma_update(None, "trusted_schema", false)?;
    // FULL: what was confirmed outlasts a power cut.
    connection.pragma_update(None, "synchronous", "FULL")?;
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let version = (number("application_id")? == kind.application_id).then(|| number("user_version")).transpose()?;
    Ok((connection, version))
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Makes an empty database unless there is something already. It is made beside its place and moved there whole, so that no other
/// process meets half of one; the lock on the folder lets one process at a time do so.
fn create(path: &Path, kind: &Kind) -> Result<(), OpenError> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at(folder))?;
    let lock = File::open(folder).map_err(at(folder))?;
    lock.lock().map_err(at(folder))?;
    if path.try_exists().map_err(at(path))? {
        return Ok(());
    }
    let new = beside(path, ".new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(at(&new)(error)),
        _ => {}
    }
    // Not made by SQLite, which would let the umask decide who reads it; its journals take the mode of the file.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(at(&new))?;
    write_schema(&new, kind).map_err(sqlite(&new))?;
    std::fs::rename(&new, path).map_err(at(path))
}

fn write_schema(path: &Path, kind: &Kind) -> rusqlite::Result<()> {
    let Kind { application_id, version, schema, .. } = kind;
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection
        .execute_batch(&format!("BEGIN; {schema} PRAGMA application_id = {application_id}; PRAGMA user_version = {version}; COMMIT;"))?;
    connection.close().map_err(|(_, error)| error)
}

/// A path in the same folder, whose name goes on with `suffix`.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> OpenError + '_ {
    |source| OpenError::Io { path: path.to_path_buf(), source }
}

fn sqlite(path: &Path) -> impl Fn(rusqlite::Error) -> OpenError + '_ {
    |source| OpenError::Sqlite { path: path.to_path_buf(), source }
}

/// SQLite has signed integers only; what does not fit was never meant.
pub(super) fn integer(natural: u64) -> i64 {
    i64::try_from(natural).unwrap_or(i64::MAX)
}

/// A negative number stands where zero is the least, as in times and counts.
pub(super) fn natural(integer: i64) -> u64 {
    u64::try_from(integer).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);
    const NOTES: Kind = Kind { name: "notebook", application_id: 77, version: 3, schema: "CREATE TABLE note (text TEXT) STRICT;" };

    fn open(path: &Path, opening: Opening) -> Result<Database, OpenError> {
        Database::open(path, &NOTES, opening, PATIENCE)
    }

    #[test]
    fn a_new_database_is_for_nobody_else_to_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/deep/notes.db");
        assert!(matches!(open(&path, Opening::Existing), Err(OpenError::Missing { .. })));
        assert!(!path.parent().unwrap().exists());
        let database = open(&path, Opening::Create).unwrap();
        database.connection.execute("INSERT INTO note VALUES ('a')", []).unwrap();
        for entry in std::fs::read_dir(path.parent().unwrap()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.path());
        }
    }

    #[test]
    fn what_is_of_no_such_kind_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text");
        std::fs::write(&text, "notes: []\n".repeat(200)).unwrap();
        let refused = open(&text, Opening::Create).unwrap_err().to_string();
        assert!(refused.contains("text: file is not a database"), "{refused}");
        assert_eq!(std::fs::read_to_string(&text).unwrap(), "notes: []\n".repeat(200));

        let truncated = folder.path().join("truncated.db");
        std::fs::write(&truncated, "").unwrap();
        assert!(matches!(open(&truncated, Opening::Create), Err(OpenError::Schema { .. })));

        let foreign = folder.path().join("foreign.db");
        Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        assert!(matches!(open(&foreign, Opening::Create), Err(OpenError::Schema { .. })));

        let other = folder.path().join("other.db");
        drop(open(&other, Opening::Create).unwrap());
        Connection::open(&other).unwrap().pragma_update(None, "application_id", 78).unwrap();
        assert!(matches!(open(&other, Opening::Create), Err(OpenError::Schema { found: 0, .. })));

        let newer = folder.path().join("newer.db");
        drop(open(&newer, Opening::Create).unwrap());
        Connection::open(&newer).unwrap().pragma_update(None, "user_version", 4).unwrap();
        assert!(matches!(open(&newer, Opening::Create), Err(OpenError::Schema { found: 4, expected: 3, .. })));
    }

    #[test]
    fn processes_that_create_the_same_database_at_once_all_get_it() {
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("notes.db");
            std::thread::scope(|scope| {
                for n in 0..6 {
                    let path = &path;
                    scope.spawn(move || {
                        let database = open(path, Opening::Create).unwrap();
                        database.connection.execute("INSERT INTO note VALUES (?1)", [n.to_string()]).unwrap();
                    });
                }
            });
            let database = open(&path, Opening::Existing).unwrap();
            let written: i64 = database.connection.query_row("SELECT count(*) FROM note", [], |row| row.get(0)).unwrap();
            assert_eq!(written, 6);
        }
    }

    #[test]
    fn a_file_that_was_moved_away_or_replaced_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.db");
        let database = open(&path, Opening::Create).unwrap();
        assert!(database.is_in_place());
        std::fs::rename(&path, folder.path().join("away.db")).unwrap();
        assert!(!database.is_in_place());
        drop(open(&path, Opening::Create).unwrap());
        assert!(!database.is_in_place());
    }
}
