//! What may be used once: signatures and ids that were seen, until their time is over. Bounded, and full means "no": a forgotten one could
//! be used again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// At most so many at a time: some 100 MiB, and with five minutes' skew either way 1,700 new ones a second.
const ENTRIES: usize = 1 << 20;

/// One lock each, so that cores rarely wait for each other.
const SHARDS: usize = 64;

/// What was seen, by the first 128 bits of a hash or signature.
#[derive(Debug)]
pub struct Replays {
    shards: Box<[Mutex<Shard>]>,
    most: usize,
}

/// What became of something that may be used once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It was not seen before, and now it was.
    First,
    /// It was seen before.
    Again,
    /// Whether it was seen cannot be remembered.
    Full,
}

#[derive(Debug, Default)]
struct Shard {
    /// Until when, in seconds since the Unix epoch.
    seen: HashMap<u128, u64>,
    by_end: BTreeMap<u64, Vec<u128>>,
}

impl Default for Replays {
    fn default() -> Self {
        Self::new(ENTRIES)
    }
}

impl Replays {
    /// Room for so many.
    pub fn new(entries: usize) -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), most: entries / SHARDS }
    }

    /// Notes that this was used; it is remembered up to and including the second `until`. Both times are since the Unix epoch.
    pub fn note(&self, what: &[u8; 32], until: Duration, now: Duration) -> Use {
        let what = what.first_chunk().map_or(0, |chunk| u128::from_le_bytes(*chunk));
        let Some(shard) = self.shards.get(what as usize % SHARDS) else { return Use::Full };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.forget(now.as_secs());
        if shard.seen.contains_key(&what) {
            return Use::Again;
        }
        if shard.seen.len() >= self.most {
            return Use::Full;
        }
        shard.seen.insert(what, until.as_secs());
        shard.by_end.entry(until.as_secs()).or_default().push(what);
        Use::First
    }
}

impl Shard {
    fn forget(&mut self, now: u64) {
        while let Some(entry) = self.by_end.first_entry().filter(|entry| *entry.key() < now) {
            for what in entry.remove() {
                self.seen.remove(&what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_thing_is_first_once_until_its_time_is_over() {
        let replays = Replays::default();
        assert_eq!(replays.note(&[1; 32], at(110), at(100)), Use::First);
        assert_eq!(replays.note(&[1; 32], at(110), at(100)), Use::Again);
        assert_eq!(replays.note(&[2; 32], at(110), at(110)), Use::First);
        assert_eq!(replays.note(&[1; 32], at(130), at(110)), Use::Again);
        assert_eq!(replays.note(&[1; 32], at(130), at(111)), Use::First);
    }

    #[test]
    fn when_there_is_no_room_nothing_is_first_and_nothing_is_forgotten() {
        let replays = Replays::new(SHARDS * 2);
        // The low bits choose the shard: these share one.
        let thing = |n: u8| std::array::from_fn(|byte| if byte == 15 { n } else { 0 });
        assert_eq!(replays.note(&thing(1), at(110), at(100)), Use::First);
        assert_eq!(replays.note(&thing(2), at(120), at(100)), Use::First);
        assert_eq!(replays.note(&thing(3), at(120), at(100)), Use::Full);
        assert_eq!(replays.note(&thing(1), at(120), at(100)), Use::Again);
        assert_eq!(replays.note(&thing(3), at(120), at(111)), Use::First);
    }

    #[test]
    fn of_many_who_come_at_once_one_is_first() {
        let replays = Replays::default();
        let firsts: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..=255u8).filter(|n| replays.note(&[*n; 32], at(9), at(1)) == Use::First).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(firsts, 256);
    }
}
