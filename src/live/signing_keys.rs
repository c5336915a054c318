//! The keys that edgeward signs with: one file each in a folder that several processes share, made when missing, replaced with overlap.
//!
//! A key's file names the moment from which it signs. The next key is made `overlap` before that moment and published at once; the one before
//! stays published for `overlap` after it. So a verifier that fetches the key set again within `overlap` always holds the key that it
//! needs, and every process on the folder reads the same files and signs with the same key, without talking to the others.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwapOption, Guard};
use bytes::Bytes;
use openssl::sha::sha256;
use serde_json::{Map, Value, json};

use super::database::beside;
use crate::jose::sign::SigningError;
use crate::jose::{Algorithm, JwkSet, SigningKey};
use crate::request::{Clock, Now};

/// How often the folder is looked at: far more often than the shortest `overlap`, so that no process misses a key that another has made.
const LOOK: Duration = Duration::from_secs(5);

/// What the operator may tune.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// What new keys are for.
    pub algorithm: Algorithm,
    /// How long a key signs.
    pub rotate: Duration,
    /// How long a key is published before it signs, and after it has signed.
    pub overlap: Duration,
}

/// Why there are no keys to sign with.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeysError {
    /// A file or the folder.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that holds no key of ours.
    #[error("{}: not a signing key: {what}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A key could not be made.
    #[error("{0}")]
    Signing(#[from] SigningError),
    /// Nothing was opened yet.
    #[error("no signing key is held")]
    Missing,
}

/// The signing keys of one folder.
#[derive(Debug)]
pub struct SigningKeys {
    directory: PathBuf,
    terms: Mutex<Option<Terms>>,
    held: ArcSwapOption<Held>,
}

/// The keys that are held now.
pub struct Held {
    /// By the second from which they sign; the first may sign before its own, for somebody must.
    keys: Vec<(u64, SigningKey)>,
    public: JwkSet,
    document: Bytes,
    generation: u64,
}

/// Without the keys.
impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl Held {
    /// The public keys.
    pub fn public(&self) -> &JwkSet {
        &self.public
    }

    /// The public keys as a JWK Set.
    pub fn document(&self) -> &Bytes {
        &self.document
    }

    /// The algorithms of the keys.
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> {
        let algorithms: std::collections::BTreeMap<_, _> =
            self.keys.iter().map(|(_, key)| (key.algorithm().label(), key.algorithm())).collect();
        algorithms.into_values()
    }

    /// A number of this very document: the same number means the same keys.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A compact JWS of a type, by the key whose turn it is.
    ///
    /// # Errors
    /// When OpenSSL refuses.
    pub fn sign(&self, typ: &str, claims: &Map<String, Value>, now: Now) -> Result<String, SigningKeysError> {
        let (_, key) = self.turn(now.unix.as_secs()).ok_or(SigningKeysError::Missing)?;
        Ok(key.sign_as(typ, claims)?)
    }

    fn turn(&self, now: u64) -> Option<&(u64, SigningKey)> {
        self.keys.iter().rev().find(|(from, _)| *from <= now).or(self.keys.first())
    }
}

impl SigningKeys {
    /// The keys of a folder, before it was opened.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, terms: Mutex::new(None), held: ArcSwapOption::empty() }
    }

    /// Reads the keys, makes those that are due and drops those that are over. Blocks.
    ///
    /// # Errors
    /// When the folder cannot be read or written; what was held before is held on.
    pub fn open(&self, terms: Terms, now: Now) -> Result<(), SigningKeysError> {
        *self.terms.lock().unwrap_or_else(PoisonError::into_inner) = Some(terms);
        let held = look_after(&self.directory, terms, now.unix.as_secs())?;
        if self.held.load().as_ref().is_none_or(|before| before.generation != held.generation) {
            self.held.store(Some(Arc::new(held)));
        }
        Ok(())
    }

    /// The keys that are held; absent before [`open`](Self::open).
    pub fn current(&self) -> Guard<Option<Arc<Held>>> {
        self.held.load()
    }

    /// Looks after the folder until nobody uses its keys.
    pub async fn maintain(this: Weak<Self>, clock: Clock) {
        while let Some(keys) = this.upgrade() {
            let now = clock();
            let round = tokio::task::spawn_blocking(move || {
                let terms = *keys.terms.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(Err(error)) = terms.map(|terms| keys.open(terms, now)) {
                    tracing::error!(%error, "the signing keys are not looked after; the last ones are used on");
                }
            });
            let _ = round.await;
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// One round, under the lock of the folder: two processes make one next key, not two.
fn look_after(directory: &Path, terms: Terms, now: u64) -> Result<Held, SigningKeysError> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(at(directory))?;
    let lock = File::open(directory).map_err(at(directory))?;
    lock.lock().map_err(at(directory))?;
    let mut keys = read(directory)?;
    let (rotate, overlap) = (terms.rotate.as_secs(), terms.overlap.as_secs());
    let next = match keys.last() {
        None => Some(now),
        // The one that is to come was made already.
        Some((from, _)) if *from > now => None,
        Some((from, key)) if key.algorithm() != terms.algorithm || now >= from.saturating_add(rotate).saturating_sub(overlap) => {
            // After a long sleep the moment has passed; those who hold the old set must get their time all the same.
            Some(from.saturating_add(rotate).max(now + overlap))
        }
        Some(_) => None,
    };
    if let Some(from) = next {
        let from = if keys.last().is_some_and(|(_, key)| key.algorithm() != terms.algorithm) { now + overlap } else { from };
        let key = SigningKey::generate(terms.algorithm, "")?.with_thumbprint()?;
        write(directory, from, &key)?;
        keys.push((from, key));
    }
    // A key is over when another has signed for `overlap`: no token lives longer (the grammar sees to it).
    let successors: Vec<u64> = keys.iter().skip(1).map(|(from, _)| *from).collect();
    let over = successors.iter().take_while(|from| from.saturating_add(overlap) <= now).count();
    for (from, key) in keys.drain(..over) {
        let path = path(directory, from, key.kid());
        std::fs::remove_file(&path).map_err(at(&path))?;
    }
    hold(keys)
}

fn hold(keys: Vec<(u64, SigningKey)>) -> Result<Held, SigningKeysError> {
    let public = keys.iter().map(|(_, key)| key.to_public_jwk()).collect::<Result<Vec<_>, _>>()?;
    let document = Bytes::from(json!({ "keys": public }).to_string());
    let public = JwkSet::parse(&document).map_err(|_| SigningKeysError::Missing)?;
    let [a, b, c, d, e, f, g, h, ..] = sha256(&document);
    Ok(Held { keys, public, generation: u64::from_be_bytes([a, b, c, d, e, f, g, h]), document })
}

/// Every key of the folder by its moment. A file that is not understood refuses all: somebody may still be verifying with its key.
fn read(directory: &Path) -> Result<Vec<(u64, SigningKey)>, SigningKeysError> {
    let mut keys = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(at(directory))? {
        let path = entry.map_err(at(directory))?.path();
        let Some(stem) = path.extension().filter(|extension| *extension == "jwk").and_then(|_| path.file_stem()?.to_str()) else {
            continue;
        };
        let refuse = |what: &str| SigningKeysError::File { path: path.clone(), what: what.to_owned() };
        let from: u64 = stem.split('-').next().and_then(|from| from.parse().ok()).ok_or_else(|| refuse("its name has no time"))?;
        let bytes = zeroize::Zeroizing::new(std::fs::read(&path).map_err(at(&path))?);
        let key = SigningKey::from_jwk(&bytes).map_err(|error| refuse(&error.to_string()))?;
        keys.insert((from, key.kid().to_owned()), key);
    }
    Ok(keys.into_iter().map(|((from, _), key)| (from, key)).collect())
}

/// A file is whole or not there: it is written beside its place and renamed.
fn write(directory: &Path, from: u64, key: &SigningKey) -> Result<(), SigningKeysError> {
    let path = path(directory, from, key.kid());
    let new = beside(&path, ".new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(at(&new)(error)),
        _ => {}
    }
    let text = zeroize::Zeroizing::new(key.to_private_jwk()?.to_string());
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(at(&new))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(at(&new))?;
    std::fs::rename(&new, &path).map_err(at(&path))
}

fn path(directory: &Path, from: u64, kid: &str) -> PathBuf {
    directory.join(format!("{from}-{kid}.jwk"))
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> SigningKeysError + '_ {
    |source| SigningKeysError::Io { path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::Jws;
    use std::os::unix::fs::PermissionsExt;

    const HOUR: u64 = 3600;
    const TERMS: Terms =
        Terms { algorithm: Algorithm::Es256, rotate: Duration::from_secs(10 * HOUR), overlap: Duration::from_secs(2 * HOUR) };
    const START: u64 = 1_800_000_000;

    fn at(seconds: u64) -> Now {
        Now { monotonic: Duration::from_secs(seconds), unix: Duration::from_secs(START + seconds) }
    }

    fn open(keys: &SigningKeys, seconds: u64) -> Arc<Held> {
        keys.open(TERMS, at(seconds)).unwrap();
        keys.current().clone().unwrap()
    }

    fn kids(set: &JwkSet) -> Vec<String> {
        set.keys().iter().filter_map(|key| key.kid().map(str::to_owned)).collect()
    }

    fn signed(held: &Held, seconds: u64) -> String {
        held.sign("JWT", &Map::new(), at(seconds)).unwrap()
    }

    fn verifies(set: &JwkSet, token: &str) -> bool {
        let jws = Jws::parse(token).unwrap();
        let signature = jws.signature().unwrap();
        set.candidates(&jws.header).any(|key| jws.is_signed_by(key, &signature))
    }

    #[test]
    fn a_folder_gets_its_first_key_which_nobody_else_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("data/signing");
        let keys = SigningKeys::new(directory.clone());
        assert!(keys.current().is_none());
        let held = open(&keys, 0);
        assert!(verifies(held.public(), &signed(&held, 0)));
        let files: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!std::str::from_utf8(held.document()).unwrap().contains("\"d\""));
        assert_eq!(open(&keys, 1).generation(), held.generation());
        assert_eq!(kids(open(&SigningKeys::new(directory), 5).public()), kids(held.public()), "a restart signs with the same key");
    }

    #[test]
    fn a_verifier_that_fetches_within_the_overlap_never_meets_an_unknown_key() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (SigningKeys::new(folder.path().into()), SigningKeys::new(folder.path().into()));
        let (mut cached, mut fetched, mut seen) = (Arc::new(JwkSet::parse(b"{\"keys\":[]}").unwrap()), None, BTreeMap::new());
        let mut outstanding: Vec<(u64, String)> = Vec::new();
        // Four rotations in steps of ten minutes; tokens live as long as they may.
        for step in 0..240 {
            let now = step * 600;
            let held = open(if step % 2 == 0 { &one } else { &two }, now);
            if fetched.is_none_or(|last| now - last >= 2 * HOUR - 600) {
                (cached, fetched) = (Arc::new(JwkSet::parse(held.document()).unwrap()), Some(now));
            }
            let token = signed(&held, now);
            assert!(verifies(&cached, &token), "a new token after {now} s");
            seen.insert(Jws::parse(&token).unwrap().header.kid.unwrap().to_string(), now);
            outstanding.push((now + 2 * HOUR, token));
            outstanding.retain(|(ends, _)| *ends > now);
            assert!(outstanding.iter().all(|(_, token)| verifies(held.public(), token)), "an old token after {now} s");
            assert!((1..=2).contains(&held.public().keys().len()), "{}", held.public().keys().len());
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
    }

    #[test]
    fn processes_on_one_folder_agree() {
        let folder = tempfile::tempdir().unwrap();
        for seconds in [0, 8 * HOUR, 10 * HOUR, 12 * HOUR, 100 * HOUR] {
            let found: Vec<_> = std::thread::scope(|scope| {
                let each = |_| scope.spawn(|| open(&SigningKeys::new(folder.path().into()), seconds));
                let running: Vec<_> = (0..4).map(each).collect();
                running.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(found.iter().all(|held| held.generation() == found[0].generation()), "{seconds}");
        }
    }

    #[test]
    fn another_algorithm_takes_over_with_the_same_notice() {
        let folder = tempfile::tempdir().unwrap();
        let keys = SigningKeys::new(folder.path().into());
        open(&keys, 0);
        let other = Terms { algorithm: Algorithm::EdDsa, ..TERMS };
        let algorithm = |seconds| {
            keys.open(other, at(seconds)).unwrap();
            let held = keys.current().clone().unwrap();
            (Jws::parse(&signed(&held, seconds)).unwrap().header.algorithm, held.public().keys().len())
        };
        assert_eq!(algorithm(HOUR), (Algorithm::Es256, 2));
        assert_eq!(algorithm(2 * HOUR + 3599), (Algorithm::Es256, 2));
        assert_eq!(algorithm(3 * HOUR), (Algorithm::EdDsa, 2));
        assert_eq!(algorithm(5 * HOUR), (Algorithm::EdDsa, 1));
    }

    #[test]
    fn after_a_long_sleep_the_next_key_still_gives_notice() {
        let folder = tempfile::tempdir().unwrap();
        let keys = SigningKeys::new(folder.path().into());
        let first = kids(open(&keys, 0).public());
        let held = open(&keys, 1000 * HOUR);
        assert_eq!(held.public().keys().len(), 2);
        assert_eq!(Jws::parse(&signed(&held, 1000 * HOUR)).unwrap().header.kid.as_deref(), Some(&*first[0]));
        let later = open(&keys, 1002 * HOUR);
        assert_ne!(Jws::parse(&signed(&later, 1002 * HOUR)).unwrap().header.kid.as_deref(), Some(&*first[0]));
    }

    #[test]
    fn a_file_that_is_no_key_refuses_and_the_keys_before_are_used_on() {
        let folder = tempfile::tempdir().unwrap();
        let keys = SigningKeys::new(folder.path().into());
        let held = open(&keys, 0);
        std::fs::write(folder.path().join("1800000001-x.jwk"), "{}").unwrap();
        let refused = keys.open(TERMS, at(1)).unwrap_err().to_string();
        assert!(refused.contains("1800000001-x.jwk: not a signing key"), "{refused}");
        assert_eq!(keys.current().clone().unwrap().generation(), held.generation());
    }
}
