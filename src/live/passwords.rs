//! Passwords that were found right, and the work of finding it out: slow on purpose, so it is done on few threads and for few at a time.

use std::sync::Arc;
use std::time::Duration;

use openssl::sha::Sha256;
use quick_cache::sync::Cache;
use tokio::sync::{Semaphore, TryAcquireError};

/// A password that was found right is right for so long without another look. Another hash in the file is another entry.
const TTL: Duration = Duration::from_secs(10 * 60);

/// At most so many are remembered.
const ENTRIES: usize = 10_000;

/// So many may wait for a thread: with a hash of 50 ms on one core, the last for three seconds.
const WAITING: usize = 64;

/// What is known of passwords in this process.
pub struct Passwords {
    /// So that what is kept in memory is worth nothing elsewhere. `None`: there was no randomness, and nothing is remembered.
    salt: Option<[u8; 32]>,
    right: Cache<[u8; 32], Duration>,
    admitted: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

/// Nobody looked at the password: too many wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

impl Default for Passwords {
    fn default() -> Self {
        // Half the cores: the others go on serving whoever needs no password.
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::new((cores / 2).max(1), WAITING)
    }
}

impl Passwords {
    /// So many at work at once, and so many waiting.
    pub fn new(running: usize, waiting: usize) -> Self {
        let mut salt = [0; 32];
        Self {
            salt: openssl::rand::rand_bytes(&mut salt).is_ok().then_some(salt),
            right: Cache::new(ENTRIES),
            admitted: Arc::new(Semaphore::new(running + waiting)),
            running: Arc::new(Semaphore::new(running)),
        }
    }

    /// Whether this password is right for this user and hash; `check` finds out where it is not remembered.
    ///
    /// # Errors
    /// [`Busy`] when it was not looked at. A check that panics answers "no".
    pub async fn is_right(
        &self,
        (hash, user, password): (&[u8], &str, &str),
        now: Duration,
        check: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<bool, Busy> {
        let key = self.salt.map(|salt| {
            let mut key = Sha256::new();
            key.update(&salt);
            for part in [hash, user.as_bytes(), password.as_bytes()] {
                key.update(&part.len().to_le_bytes());
                key.update(part);
            }
            key.finish()
        });
        if let Some(found) = key.and_then(|key| self.right.get(&key))
            && now.saturating_sub(found) < TTL
        {
            return Ok(true);
        }
        let admitted = match Arc::clone(&self.admitted).try_acquire_owned() {
            Ok(admitted) => admitted,
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => return Err(Busy),
        };
        let running = Arc::clone(&self.running).acquire_owned().await.map_err(|_| Busy)?;
        let checked = tokio::task::spawn_blocking(move || {
            // Held until the work is done, also when the caller has gone away meanwhile.
            let _held = (admitted, running);
            check()
        });
        let right = checked.await.unwrap_or(false);
        if let Some(key) = key.filter(|_| right) {
            self.right.insert(key, now);
        }
        Ok(right)
    }
}

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passwords").field("right", &self.right.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn a_right_password_is_looked_at_once_in_a_while_and_a_wrong_one_each_time() {
        let passwords = Passwords::new(1, 1);
        let looked = Arc::new(AtomicUsize::new(0));
        let rows: [(&str, &str, &str, u64, bool, usize); 8] = [
            ("h1", "alice", "right", 0, true, 1),
            ("h1", "alice", "right", 599, true, 1),
            ("h1", "alice", "right", 600, true, 2),
            ("h1", "alice", "wrong", 600, false, 3),
            ("h1", "alice", "wrong", 600, false, 4),
            ("h1", "bob", "right", 600, true, 5),
            ("h2", "alice", "right", 600, true, 6),
            ("h1", "alic", "eright", 600, false, 7),
        ];
        for (hash, user, password, seconds, right, times) in rows {
            let counter = Arc::clone(&looked);
            let owned = password.to_owned();
            let check = move || {
                counter.fetch_add(1, Ordering::Relaxed);
                owned == "right"
            };
            assert_eq!(passwords.is_right((hash.as_bytes(), user, password), at(seconds), check).await, Ok(right), "{user} {password}");
            assert_eq!(looked.load(Ordering::Relaxed), times, "{user} {password} {seconds}");
        }
    }

    #[tokio::test]
    async fn who_comes_when_all_places_are_taken_is_sent_away_and_the_places_are_free_again() {
        let passwords = Arc::new(Passwords::new(1, 1));
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let check = {
            let passwords = Arc::clone(&passwords);
            move |name: &'static str, check: Box<dyn FnOnce() -> bool + Send>| {
                let passwords = Arc::clone(&passwords);
                tokio::spawn(async move { passwords.is_right((b"h", name, "p"), at(0), check).await })
            }
        };
        let first = check("a", Box::new(move || wait.recv().is_ok()));
        tokio::task::yield_now().await;
        let second = check("b", Box::new(|| true));
        tokio::task::yield_now().await;
        assert_eq!(check("c", Box::new(|| true)).await.unwrap(), Err(Busy));
        release.send(()).unwrap();
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (Ok(true), Ok(true)));
        assert_eq!(check("d", Box::new(|| panic!("as a test"))).await.unwrap(), Ok(false));
        assert_eq!(check("e", Box::new(|| true)).await.unwrap(), Ok(true));
    }
}
