//! API keys in a YAML file, changed whole: the gateway, which watches it, sees the old file or the new one.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::keys::{Failure, rfc3339};
use crate::config::{self, System};
use crate::live::api_keys::{KeyHash, Record};
use crate::live::database::beside;
use crate::live::key_store::StoreError;

/// Reads the keys of a file, strictly.
pub(super) fn read(path: &Path) -> Result<Vec<Record>, Failure> {
    match config::load_keys(path, &System) {
        Ok(entries) => Ok(entries.into_iter().map(Record::from).collect()),
        Err(problems) => Err(Failure(problems.iter().map(ToString::to_string).collect())),
    }
}

/// Keys as YAML, one on each line. JSON's strings and lists are YAML's, and its quotes leave nothing to be guessed.
pub(super) fn written(records: &[Record]) -> String {
    if records.is_empty() {
        return "keys: []\n".to_owned();
    }
    std::iter::once("keys:\n".to_owned()).chain(records.iter().map(line)).collect()
}

fn line(record: &Record) -> String {
    let mut fields = vec![("id", json!(&*record.id)), ("sha256", json!(hex(&record.sha256)))];
    if let Some(previous) = &record.previous {
        fields.push(("previous", json!({"sha256": hex(&previous.sha256), "ends": rfc3339(previous.ends)})));
    }
    fields.push(("consumer", json!(&*record.consumer)));
    for (name, list) in [("scopes", &record.scopes), ("routes", &record.routes)] {
        if !list.is_empty() {
            fields.push((name, list.iter().map(|item| &**item).collect()));
        }
    }
    if !record.allow.is_empty() {
        fields.push(("allow", record.allow.iter().map(ToString::to_string).collect()));
    }
    fields.extend(record.plan.as_ref().map(|plan| ("plan", json!(&**plan))));
    let times = [("created", record.created), ("not_before", record.not_before), ("expires", record.expires), ("revoked", record.revoked)];
    fields.extend(times.into_iter().filter_map(|(name, time)| Some((name, json!(rfc3339(time?))))));
    let fields: Vec<String> = fields.into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
    format!("  - {{{}}}\n", fields.join(", "))
}

fn hex(hash: &KeyHash) -> String {
    hash.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file of keys that the configuration names.
#[derive(Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn read(&self) -> Result<Vec<Record>, Failure> {
        read(&self.path)
    }

    /// Adds keys: all, or none when an id or a hash is already known.
    pub(super) fn insert(&self, records: &[Record]) -> Result<(), Failure> {
        self.edit(|known| {
            let mut duplicates = Vec::new();
            for record in records {
                match known.iter().find(|other| other.id == record.id || hashes(other).any(|hash| hashes(record).any(|own| own == hash))) {
                    Some(other) if other.id == record.id => duplicates.push(record.id.to_string()),
                    Some(other) => duplicates.push(format!("{} (its hash is that of {})", record.id, other.id)),
                    None => known.push(record.clone()),
                }
            }
            if duplicates.is_empty() { Ok(()) } else { Err(StoreError::Duplicates(duplicates)) }
        })
    }

    /// Changes one key, and returns it as it is then.
    pub(super) fn update(&self, id: &str, change: impl FnOnce(&mut Record) -> Result<(), StoreError>) -> Result<Record, Failure> {
        self.edit(|known| {
            let record = known.iter_mut().find(|record| *record.id == *id).ok_or_else(|| StoreError::Unknown(id.into()))?;
            change(record)?;
            Ok(record.clone())
        })
    }

    /// One change at a time: the folder is locked, because the file itself is replaced. What will not read back as it was meant is not put
    /// in place.
    fn edit<T>(&self, change: impl FnOnce(&mut Vec<Record>) -> Result<T, StoreError>) -> Result<T, Failure> {
        // The file, not a link to it: a rename would replace the link.
        let path = self.path.canonicalize()?;
        let folder = File::open(path.parent().unwrap_or(Path::new("/")))?;
        folder.lock()?;
        let head = head(&std::fs::read_to_string(&path)?);
        let mut records = read(&path)?;
        let done = change(&mut records)?;
        let new = beside(&path, ".new");
        let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        file.write_all(format!("{head}{}", written(&records)).as_bytes())?;
        file.sync_all()?;
        if read(&new)? != records {
            return Err(Failure(vec![format!("{} would not read back as it was meant; {} is unchanged", new.display(), path.display())]));
        }
        std::fs::rename(&new, &path)?;
        // Once in the folder's own record, the change outlasts a power cut.
        folder.sync_all()?;
        Ok(done)
    }
}

fn hashes(record: &Record) -> impl Iterator<Item = KeyHash> {
    std::iter::once(record.sha256).chain(record.previous.map(|previous| previous.sha256))
}

/// The comments before the first value.
fn head(text: &str) -> String {
    text.split_inclusive('\n').take_while(|line| line.trim_start().starts_with('#') || line.trim().is_empty()).collect()
}
