//! API keys by the hash of what is presented, laid out for a million of them: a look-up reads one cache line of the table, and the key.
//!
//! A table that keeps a byte of each hash apart from the ways to the keys, as is usual, is read in two places, and of so many keys each of them is in
//! main memory (docs/decisions/0005). Hashes are SHA-256, so any bytes of one are as good as a hash of it.

use std::sync::Arc;

use crossbeam_utils::CachePadded;
use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};

use super::api_keys::KeyHash;

/// So that on a server of many cores two requests rarely meet in one.
const SHARDS: usize = 64;

/// In a bucket.
const KEYS: usize = 7;

/// What is found by its hash.
pub(super) trait Hashed {
    /// The hash.
    fn hash(&self) -> &KeyHash;
}

/// The table. Reading takes one shard's lock for a moment; a change of one key touches that key alone.
#[derive(Debug)]
pub(super) struct KeyTable<K> {
    shards: Box<[CachePadded<RwLock<Shard<K>>>]>,
}

#[derive(Debug)]
struct Shard<K> {
    /// None, or a power of two.
    buckets: Vec<Bucket<K>>,
    keys: usize,
}

/// A cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Bucket<K> {
    /// A byte of each hash; 0 where there is no key.
    tags: [u8; KEYS],
    /// How many keys found no room here on their way to a later bucket. More than can be counted are so for ever.
    passed: u8,
    keys: [Option<Arc<K>>; KEYS],
}

const _: () = assert!(size_of::<Bucket<()>>() == 64);

impl<K> Default for KeyTable<K> {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| CachePadded::new(RwLock::new(Shard { buckets: Vec::new(), keys: 0 }))).collect() }
    }
}

impl<K: Hashed> KeyTable<K> {
    /// The key of this hash, which stays in the table while it is held.
    pub(super) fn find(&self, hash: &KeyHash) -> Option<MappedRwLockReadGuard<'_, Arc<K>>> {
        RwLockReadGuard::try_map(self.shard(hash)?.read(), |shard| shard.find(hash)).ok()
    }

    /// Adds a key, or puts it in the place of the one of the same hash.
    pub(super) fn insert(&self, key: Arc<K>) {
        if let Some(shard) = self.shard(key.hash()) {
            let replaced = shard.write().insert(key);
            // The last hold on it may be this one, and freeing takes its time.
            drop(replaced);
        }
    }

    /// Takes out this very key.
    pub(super) fn remove(&self, key: &Arc<K>) {
        if let Some(shard) = self.shard(key.hash()) {
            let removed = shard.write().remove(key);
            drop(removed);
        }
    }

    fn shard(&self, hash: &KeyHash) -> Option<&CachePadded<RwLock<Shard<K>>>> {
        let [first, ..] = hash.0;
        self.shards.get(usize::from(first) % SHARDS)
    }
}

/// A byte that the shard and the bucket do not depend on.
fn tag(KeyHash([_, tag, ..]): &KeyHash) -> u8 {
    (*tag).max(1)
}

impl<K: Hashed> Shard<K> {
    /// Where the way of a hash through the buckets begins; it goes on to the last one, and from the first.
    fn home(&self, KeyHash([.., a, b, c, d]): &KeyHash) -> usize {
        u32::from_le_bytes([*a, *b, *c, *d]) as usize & self.buckets.len().wrapping_sub(1)
    }

    fn way(&self, hash: &KeyHash) -> impl Iterator<Item = &Bucket<K>> {
        let (before, from) = self.buckets.split_at_checked(self.home(hash)).unwrap_or_default();
        from.iter().chain(before)
    }

    fn way_mut(&mut self, hash: &KeyHash) -> impl Iterator<Item = &mut Bucket<K>> {
        let home = self.home(hash);
        let (before, from) = self.buckets.split_at_mut_checked(home).unwrap_or_default();
        from.iter_mut().chain(before)
    }

    fn find(&self, hash: &KeyHash) -> Option<&Arc<K>> {
        let tag = tag(hash);
        for bucket in self.way(hash) {
            for (known, key) in bucket.tags.iter().zip(&bucket.keys) {
                if *known == tag
                    && let Some(key) = key
                    && key.hash() == hash
                {
                    return Some(key);
                }
            }
            if bucket.passed == 0 {
                break;
            }
        }
        None
    }

    fn insert(&mut self, key: Arc<K>) -> Option<Arc<K>> {
        if self.find(key.hash()).is_some() {
            let same = self.way_mut(key.hash()).flat_map(|bucket| &mut bucket.keys).flatten().find(|known| known.hash() == key.hash());
            return same.map(|same| std::mem::replace(same, key));
        }
        // At most three quarters full.
        if (self.keys + 1) * 4 > self.buckets.len() * KEYS * 3 {
            self.grow();
        }
        self.keys += 1;
        self.place(key);
        None
    }

    fn grow(&mut self) {
        let more = (2 * self.buckets.len()).max(1);
        let buckets = (0..more).map(|_| Bucket { tags: [0; KEYS], passed: 0, keys: [const { None }; KEYS] }).collect();
        for key in std::mem::replace(&mut self.buckets, buckets).into_iter().flat_map(|bucket| bucket.keys).flatten() {
            self.place(key);
        }
    }

    /// Puts a key into the first bucket of its way that has room.
    fn place(&mut self, key: Arc<K>) {
        let tag = tag(key.hash());
        let hash = *key.hash();
        for bucket in self.way_mut(&hash) {
            if let Some((known, room)) = bucket.tags.iter_mut().zip(&mut bucket.keys).find(|(known, _)| **known == 0) {
                (*known, *room) = (tag, Some(key));
                return;
            }
            bucket.passed = bucket.passed.saturating_add(1);
        }
    }

    fn remove(&mut self, key: &Arc<K>) -> Option<Arc<K>> {
        let is = |known: &Option<Arc<K>>| known.as_ref().is_some_and(|known| Arc::ptr_eq(known, key));
        if !self.find(key.hash()).is_some_and(|known| Arc::ptr_eq(known, key)) {
            return None;
        }
        let passed = self.way(key.hash()).position(|bucket| bucket.keys.iter().any(is))?;
        for bucket in self.way_mut(key.hash()).take(passed).filter(|bucket| bucket.passed < u8::MAX) {
            bucket.passed -= 1;
        }
        self.keys -= 1;
        let bucket = self.way_mut(key.hash()).nth(passed)?;
        let (known, room) = bucket.tags.iter_mut().zip(&mut bucket.keys).find(|(_, known)| is(known))?;
        *known = 0;
        room.take()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug)]
    struct Named(KeyHash, usize);

    impl Hashed for Named {
        fn hash(&self) -> &KeyHash {
            &self.0
        }
    }

    /// Few shards, tags and homes, so that keys meet in all of them.
    fn hash(number: u8) -> KeyHash {
        let mut bytes = [0; 32];
        (bytes[1], bytes[2], bytes[28]) = (number % 3, number, number % 4);
        KeyHash(bytes)
    }

    #[test]
    fn a_look_up_goes_on_only_where_a_key_has_passed() {
        let table = KeyTable::default();
        let keys: Vec<_> = (0..40).map(|number| Arc::new(Named(hash(4 * number), 0))).collect();
        keys.iter().for_each(|key| table.insert(Arc::clone(key)));
        let passed =
            |table: &KeyTable<Named>| table.shards[0].read().buckets.iter().map(|bucket| usize::from(bucket.passed)).sum::<usize>();
        assert!(passed(&table) > 0, "they have one home");
        assert!(keys.iter().all(|key| Arc::ptr_eq(&table.find(&key.0).unwrap(), key)));
        keys.iter().for_each(|key| table.remove(key));
        assert_eq!((passed(&table), table.shards[0].read().keys), (0, 0));
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_would(steps in prop::collection::vec((0..120_u8, 0..3_u8), 0..400)) {
            let (table, mut map) = (KeyTable::default(), HashMap::<u8, Arc<Named>>::new());
            for (at, (number, step)) in steps.into_iter().enumerate() {
                let key = Arc::new(Named(hash(number), at));
                match step {
                    0 => map.remove(&number).iter().for_each(|known| table.remove(known)),
                    // Another one of the same hash is not this one.
                    1 => table.remove(&key),
                    _ => {
                        table.insert(Arc::clone(&key));
                        map.insert(number, key);
                    }
                }
                for number in 0..120 {
                    let found = table.find(&hash(number)).map(|key| key.1);
                    prop_assert_eq!(found, map.get(&number).map(|key| key.1));
                }
                prop_assert_eq!(table.shards[0].read().keys, map.len());
            }
        }
    }
}
