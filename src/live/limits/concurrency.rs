//! `concurrency`: how many requests of each key are in flight, held by permits that nobody can forget to return.
//!
//! A key is held while a request of it is in flight and no longer, so the memory is bounded by the requests that the listeners let in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::Key;

/// So many that threads hardly ever meet in one.
const SHARDS: usize = 256;

/// Tables up to this many keys are kept when they empty.
const KEPT: usize = 28;

/// The requests in flight of one limit.
#[derive(Debug)]
pub struct Concurrency {
    /// Each with a reference count of its own, so that permits of different keys do not contend for one.
    shards: Box<[Arc<Shard>]>,
    hasher: ahash::RandomState,
}

/// Counts its request as in flight until it is dropped, whichever way the request ends.
#[derive(Debug)]
#[must_use = "dropped at once, it limits nothing"]
pub struct Permit {
    shard: Arc<Shard>,
    hash: u64,
    key: Key,
    in_flight: u64,
}

/// On cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    counts: Mutex<HashTable<(Key, u64)>>,
    hasher: ahash::RandomState,
}

impl Default for Concurrency {
    fn default() -> Self {
        let hasher = ahash::RandomState::new();
        let shard = |_| Arc::new(Shard { counts: Mutex::default(), hasher: hasher.clone() });
        Self { shards: (0..SHARDS).map(shard).collect(), hasher }
    }
}

impl Concurrency {
    /// Lets a request in when fewer than `limit` of its key are in flight.
    pub fn enter(&self, key: &Key, limit: u64) -> Option<Permit> {
        let hash = self.hasher.hash_one(key);
        let shard = self.shards.get((hash >> 32) as usize % SHARDS)?;
        let in_flight = shard.enter(hash, key, limit)?;
        Some(Permit { shard: Arc::clone(shard), hash, key: *key, in_flight })
    }

    /// How many keys have requests in flight.
    pub fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

impl Permit {
    /// How many of the same key were in flight when this one was let in, itself among them.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shard.leave(self.hash, &self.key);
    }
}

impl Shard {
    fn enter(&self, hash: u64, key: &Key, limit: u64) -> Option<u64> {
        if limit == 0 {
            return None;
        }
        let mut counts = self.lock();
        match counts.entry(hash, |(held, _)| held == key, |(held, _)| self.hasher.hash_one(held)) {
            Entry::Occupied(mut held) => {
                let (_, count) = held.get_mut();
                if *count >= limit {
                    return None;
                }
                *count += 1;
                Some(*count)
            }
            Entry::Vacant(free) => {
                free.insert((*key, 1));
                Some(1)
            }
        }
    }

    fn leave(&self, hash: u64, key: &Key) {
        let mut counts = self.lock();
        let Ok(mut held) = counts.find_entry(hash, |(held, _)| held == key) else { return };
        let (_, count) = held.get_mut();
        if *count > 1 {
            *count -= 1;
            return;
        }
        held.remove();
        // What a flood took comes back when it is over.
        if counts.capacity() > KEPT && counts.len() < counts.capacity() / 8 {
            let twice = 2 * counts.len();
            counts.shrink_to(twice, |(held, _)| self.hasher.hash_one(held));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashTable<(Key, u64)>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::limits::KeyBuilder;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn key(number: u64) -> Key {
        let mut key = KeyBuilder::default();
        key.part(0, &number.to_le_bytes());
        key.finish()
    }

    #[test]
    fn no_more_than_the_limit_are_in_flight_and_each_that_ends_lets_one_in() {
        let concurrency = Concurrency::default();
        let first = concurrency.enter(&key(1), 2).unwrap();
        let second = concurrency.enter(&key(1), 2).unwrap();
        assert_eq!((first.in_flight(), second.in_flight()), (1, 2));
        assert!(concurrency.enter(&key(1), 2).is_none());
        assert!(concurrency.enter(&key(2), 2).is_some());
        drop(first);
        assert_eq!(concurrency.enter(&key(1), 2).map(|permit| permit.in_flight()), Some(2));
        assert!(concurrency.enter(&key(2), 0).is_none());
        drop(second);
        assert_eq!(concurrency.keys(), 0);
    }

    #[test]
    fn a_panic_and_a_task_that_is_aborted_return_their_permits() {
        let concurrency = Arc::new(Concurrency::default());
        let entered = Arc::clone(&concurrency);
        let unwound = std::thread::spawn(move || {
            let _permit = entered.enter(&key(1), 1).unwrap();
            panic!("a request that ends badly");
        });
        assert!(unwound.join().is_err());
        assert_eq!(concurrency.keys(), 0);

        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let permit = concurrency.enter(&key(1), 1).unwrap();
            let request = tokio::spawn(async move {
                let _permit = permit;
                std::future::pending::<()>().await;
            });
            tokio::task::yield_now().await;
            assert!(concurrency.enter(&key(1), 1).is_none());
            request.abort();
            assert!(request.await.is_err());
            assert!(concurrency.enter(&key(1), 1).is_some());
        });
    }

    #[test]
    fn a_lower_limit_holds_for_those_that_come() {
        let concurrency = Concurrency::default();
        let mut permits: Vec<Permit> = (0..10).map(|_| concurrency.enter(&key(1), 10).unwrap()).collect();
        assert!(concurrency.enter(&key(1), 5).is_none());
        permits.truncate(4);
        assert!(concurrency.enter(&key(1), 5).is_some());
    }

    #[test]
    fn a_permit_outlives_the_limit_that_gave_it() {
        let concurrency = Concurrency::default();
        let permit = concurrency.enter(&key(1), 1);
        drop(concurrency);
        drop(permit);
    }

    #[test]
    fn threads_together_are_never_more_than_the_limit_and_reach_it() {
        let concurrency = Concurrency::default();
        let (in_flight, most, entered) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if let Some(permit) = concurrency.enter(&key(1), 3) {
                            most.fetch_max(in_flight.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            entered.fetch_add(1, Ordering::SeqCst);
                            in_flight.fetch_sub(1, Ordering::SeqCst);
                            drop(permit);
                        }
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 3);
        assert!(entered.load(Ordering::SeqCst) > 0);
        assert_eq!(concurrency.keys(), 0);
        // All of it is there again, exactly.
        let permits: Vec<_> = (0..10).filter_map(|_| concurrency.enter(&key(1), 3)).collect();
        assert_eq!(permits.len(), 3);
    }

    #[test]
    fn the_memory_of_a_flood_comes_back() {
        let concurrency = Concurrency::default();
        let permits: Vec<Permit> = (0..100_000).map(|number| concurrency.enter(&key(number), 1).unwrap()).collect();
        assert_eq!(concurrency.keys(), 100_000);
        drop(permits);
        assert_eq!(concurrency.keys(), 0);
        assert!(concurrency.shards.iter().all(|shard| shard.lock().capacity() <= KEPT));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_list(limit in 0u64..4, steps in proptest::collection::vec((0u64..3, any::<bool>()), 1..200)) {
            let concurrency = Concurrency::default();
            let mut list: Vec<(u64, Permit)> = Vec::new();
            for (who, enters) in steps {
                let theirs = list.iter().filter(|(key, _)| *key == who).count() as u64;
                if enters {
                    let permit = concurrency.enter(&key(who), limit);
                    prop_assert_eq!(permit.is_some(), theirs < limit);
                    if let Some(permit) = permit {
                        prop_assert_eq!(permit.in_flight(), theirs + 1);
                        list.push((who, permit));
                    }
                } else if let Some(at) = list.iter().position(|(key, _)| *key == who) {
                    drop(list.swap_remove(at));
                }
            }
            let mut keys: Vec<u64> = list.iter().map(|(key, _)| *key).collect();
            keys.sort_unstable();
            keys.dedup();
            prop_assert_eq!(concurrency.keys(), keys.len());
        }
    }
}
