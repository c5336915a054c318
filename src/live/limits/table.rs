//! A bounded table of keys, which forgets the idle ones and then the least used, and never in favour of anybody.

use hashbrown::HashTable;

use super::{Key, Pace, Standing};

/// What stands of one key.
pub(super) trait Account: Copy + Default {
    /// As it stands at a time; the time may lag, and then nothing has changed.
    fn aged(self, pace: Pace, now: u64) -> Self;

    /// Whether nothing is left that tells it from a key that was never seen.
    fn is_idle(&self) -> bool;

    /// How much is used: the least is forgotten first.
    fn weight(&self, pace: Pace, now: u64) -> u128;

    /// What is at least as strict as either.
    fn stricter(self, other: Self, pace: Pace) -> Self;
}

/// The accounts of the keys of one shard.
#[derive(Debug)]
pub(super) struct Table<A> {
    entries: HashTable<Entry<A>>,
    /// At least as strict as each account that was forgotten before it was idle. A key that is not in the table may be one of those, so this
    /// is what it begins with.
    forgotten: A,
}

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Entry<A> {
    key: Key,
    account: A,
}

impl<A: Account> Default for Table<A> {
    fn default() -> Self {
        Self { entries: HashTable::new(), forgotten: A::default() }
    }
}

/// What a table needs to know to make room.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room<'a> {
    pub(super) hasher: &'a ahash::RandomState,
    /// The most keys that a table may hold.
    pub(super) most: usize,
    pub(super) pace: Pace,
    pub(super) now: u64,
}

impl<A: Account> Table<A> {
    /// The account of a key; absent when the key is not told apart.
    pub(super) fn find(&mut self, hash: u64, key: &Key) -> Option<&mut A> {
        self.entries.find_mut(hash, |entry| entry.key == *key).map(|entry| &mut entry.account)
    }

    /// A copy of the account of a key.
    pub(super) fn look(&self, hash: u64, key: &Key) -> A {
        self.entries.find(hash, |entry| entry.key == *key).map_or(self.forgotten, |entry| entry.account)
    }

    /// Charges the account of a key, which is held from then on when it was admitted.
    pub(super) fn charge(&mut self, hash: u64, key: &Key, room: Room<'_>, charge: impl FnOnce(&mut A) -> Standing) -> Standing {
        if let Some(account) = self.find(hash, key) {
            return charge(account);
        }
        let mut account = self.forgotten;
        let standing = charge(&mut account);
        if standing.admitted {
            if self.entries.len() == self.entries.capacity() {
                self.make_room(room);
            }
            self.entries.insert_unique(hash, Entry { key: *key, account }, |entry| room.hasher.hash_one(entry.key));
        }
        standing
    }

    /// Drops idle keys, and the memory that is not needed without them.
    pub(super) fn tidy(&mut self, room: Room<'_>) {
        self.forgotten = self.forgotten.aged(room.pace, room.now);
        if self.entries.capacity() > 0 {
            self.make_room(room);
        }
    }

    /// The same keys with other accounts.
    pub(super) fn map<B: Account>(&self, hasher: &ahash::RandomState, other: impl Fn(A) -> B) -> Table<B> {
        let entries = self.entries.iter().map(|entry| Entry { key: entry.key, account: other(entry.account) });
        Table { entries: table_of(entries, self.entries.len(), hasher), forgotten: other(self.forgotten) }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Keeps at most three quarters of the most that there may be. An entry is never removed alone: a table without gaps grows when it is
    /// full and at no other time, so its size is known, and what this costs is shared by at least a quarter as many newcomers.
    fn make_room(&mut self, Room { hasher, most, pace, now }: Room<'_>) {
        let aged = self.entries.iter().map(|entry| Entry { account: entry.account.aged(pace, now), ..*entry });
        let mut kept: Vec<Entry<A>> = aged.filter(|entry| !entry.account.is_idle()).collect();
        if let Some(excess) = kept.len().checked_sub(most - most / 4).filter(|excess| *excess > 0) {
            kept.select_nth_unstable_by_key(excess - 1, |entry| entry.account.weight(pace, now));
            let forgotten = kept.drain(..excess).map(|entry| entry.account);
            self.forgotten = forgotten.fold(self.forgotten.aged(pace, now), |all, one| all.stricter(one, pace));
        }
        let capacity = if kept.is_empty() { 0 } else { most.min(2 * kept.len()) };
        self.entries = table_of(kept, capacity, hasher);
    }
}

fn table_of<A>(entries: impl IntoIterator<Item = Entry<A>>, capacity: usize, hasher: &ahash::RandomState) -> HashTable<Entry<A>> {
    let hash = |entry: &Entry<A>| hasher.hash_one(entry.key);
    let mut table = HashTable::with_capacity(capacity);
    for entry in entries {
        table.insert_unique(hash(&entry), entry, hash);
    }
    table
}

#[cfg(test)]
impl<A> Table<A> {
    pub(super) const ENTRY: usize = size_of::<Entry<A>>();

    pub(super) fn capacity(&self) -> usize {
        self.entries.capacity()
    }
}
