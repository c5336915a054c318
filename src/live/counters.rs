//! Rate-limit counters: one exact count per key, in a sliding window that blends the current and the previous fixed one.
//!
//! Keys are kept whole (or as their SHA-256 when long), so two callers never share a count by accident of a hash. Memory is bounded, see
//! [`KEYS`]; `docs/limits.md` says what is given up at the bound, and how far the blend can be from a log of every request.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::request::Clock;

/// How many keys of one limit are told apart in one window.
pub const KEYS: usize = SHARDS * SHARD_KEYS;

const SHARDS: usize = 64;

/// Seven eighths of a power of two: as much as a table of the standard library holds before it doubles.
const SHARD_KEYS: usize = 14_336;

/// How often windows are turned in which nobody asks any more, so that their memory comes back.
const UPKEEP: Duration = Duration::from_secs(10);

/// How much is allowed in which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests per window.
    pub limit: u64,
    /// The window; never zero.
    pub window: Duration,
}

/// Where a key stands in its window after a request was counted or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether the request was counted.
    pub admitted: bool,
    /// Requests left now.
    pub remaining: u64,
    /// Time until the whole allowance is back.
    pub reset: Duration,
    /// Time until one more request is admitted; zero while some remain.
    pub retry_after: Duration,
}

/// The counts of one limit. It is found by the limit's name alone: when the rate changes the counts stand.
#[derive(Debug)]
pub struct Counters {
    shards: Box<[Shard]>,
    shard_keys: usize,
    hasher: ahash::RandomState,
}

/// On cache lines of its own, so that threads at different shards do not disturb each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<Windows>);

impl Default for Counters {
    fn default() -> Self {
        Self::new(SHARDS, SHARD_KEYS)
    }
}

impl Counters {
    fn new(shards: usize, shard_keys: usize) -> Self {
        Self { shards: (0..shards).map(|_| Shard::default()).collect(), shard_keys, hasher: ahash::RandomState::new() }
    }

    /// Counts one request of `key` when its quota admits it; a request that is not admitted is not counted.
    ///
    /// `monotonic` may lag behind that of another thread: it is then taken for the beginning of the current window, the strict reading.
    pub fn charge(&self, key: &Key, quota: Quota, monotonic: Duration) -> Standing {
        let Some(mut windows) = self.windows(key) else { return Standing::refused(quota) };
        let elapsed = windows.turn_to(quota.window, monotonic);
        windows.charge(key, quota, elapsed, self.shard_keys)
    }

    /// Takes back what [`charge`](Self::charge) counted at `monotonic`, for a request that another limit refused.
    pub fn refund(&self, key: &Key, quota: Quota, monotonic: Duration) {
        if let Some(mut windows) = self.windows(key) {
            windows.refund(key, index_of(quota.window, monotonic));
        }
    }

    /// Turns windows in the background until nobody holds the counters any more.
    pub async fn maintain(this: Weak<Self>, clock: Clock) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            let Some(counters) = this.upgrade() else { return };
            counters.turn(clock().monotonic);
        }
    }

    /// How many keys are told apart in the current window.
    pub fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().current.len()).sum()
    }

    fn turn(&self, monotonic: Duration) {
        for shard in &self.shards {
            let mut windows = shard.lock();
            let window = windows.window;
            if !window.is_zero() {
                windows.turn_to(window, monotonic);
            }
        }
    }

    fn windows(&self, key: &Key) -> Option<MutexGuard<'_, Windows>> {
        // The table inside the shard takes its place from the lowest bits of the same hash and its tag from the highest.
        let hash = self.hasher.hash_one(key) >> 32;
        self.shards.get(hash as usize % self.shards.len().max(1)).map(Shard::lock)
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Windows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Standing {
    fn refused(quota: Quota) -> Self {
        Self { admitted: false, remaining: 0, reset: quota.window, retry_after: quota.window }
    }
}

/// The current and the previous window of the keys of one shard.
///
/// Old counts are never looked for: when the window ends, the current table becomes the previous one and the one before is cleared, which
/// costs no more than its control bytes.
#[derive(Debug, Default)]
struct Windows {
    window: Duration,
    index: u64,
    current: HashMap<Key, Count, ahash::RandomState>,
    previous: HashMap<Key, Count, ahash::RandomState>,
    /// How many of the current keys were there in the previous window.
    returned: usize,
    /// What all keys share that came when no room was left.
    overflow: Count,
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    current: u64,
    previous: u64,
}

impl Windows {
    /// Turns to the window in which `monotonic` lies, and says how many nanoseconds of it have passed.
    fn turn_to(&mut self, window: Duration, monotonic: Duration) -> u64 {
        let index = index_of(window, monotonic);
        if window != self.window {
            // Counts stand when the length of the window changes, as if they had been counted in the new one: nothing is given away.
            self.window = window;
            self.index = index;
        }
        match index.saturating_sub(self.index) {
            0 => {}
            1 => self.turn(),
            _ => {
                self.turn();
                self.turn();
            }
        }
        self.index = self.index.max(index);
        if index < self.index { 0 } else { nanos(monotonic) % nanos(window).max(1) }
    }

    fn turn(&mut self) {
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.clear();
        // After a flood the room goes back; a table of usual size is kept.
        if self.current.capacity() > 4 * self.previous.len() {
            self.current.shrink_to(2 * self.previous.len());
        }
        self.returned = 0;
        self.overflow = Count { current: 0, previous: self.overflow.current };
    }

    fn charge(&mut self, key: &Key, quota: Quota, elapsed: u64, shard_keys: usize) -> Standing {
        if let Some(count) = self.current.get_mut(key) {
            return count.charge(quota, elapsed);
        }
        let known = self.previous.get(key).map(|count| count.current);
        // A key of the previous window has its room kept: a flood of new keys cannot push out a count that stands.
        let newcomers = self.current.len() - self.returned;
        if known.is_none() && newcomers + self.previous.len() >= shard_keys {
            return self.overflow.charge(quota, elapsed);
        }
        // Who was not told apart in the previous window has all that was counted there in common.
        let mut count = Count { current: 0, previous: known.unwrap_or(self.overflow.previous) };
        let standing = count.charge(quota, elapsed);
        if standing.admitted {
            self.returned += usize::from(known.is_some());
            self.current.insert(*key, count);
        }
        standing
    }

    fn refund(&mut self, key: &Key, index: u64) {
        if index == self.index {
            let count = self.current.get_mut(key).unwrap_or(&mut self.overflow);
            count.current = count.current.saturating_sub(1);
        } else if index + 1 == self.index {
            if let Some(count) = self.current.get_mut(key) {
                count.previous = count.previous.saturating_sub(1);
            }
            match self.previous.get_mut(key) {
                Some(count) => count.current = count.current.saturating_sub(1),
                None => self.overflow.previous = self.overflow.previous.saturating_sub(1),
            }
        }
    }
}

impl Count {
    fn charge(&mut self, Quota { limit, window }: Quota, elapsed: u64) -> Standing {
        let window = nanos(window).max(1);
        let left = window - elapsed;
        // The share of the previous window that the sliding one still covers, rounded up: never in the caller's favour.
        let covered = match self.previous {
            0 => 0,
            previous => (u128::from(previous) * u128::from(left)).div_ceil(window.into()) as u64,
        };
        let used = self.current.saturating_add(covered);
        let admitted = used < limit;
        self.current += u64::from(admitted);
        let remaining = limit.saturating_sub(used.saturating_add(u64::from(admitted)));
        let reset = match (self.current, self.previous) {
            (0, 0) => 0,
            (0, _) => left,
            _ => left.saturating_add(window),
        };
        let retry_after = if remaining > 0 { 0 } else { self.wait_for_one(limit, window, left) };
        Standing { admitted, remaining, reset: Duration::from_nanos(reset), retry_after: Duration::from_nanos(retry_after) }
    }

    /// Nanoseconds until the used part is below the limit.
    fn wait_for_one(&self, limit: u64, window: u64, left: u64) -> u64 {
        let Some(below) = limit.checked_sub(1) else { return left.saturating_add(window) };
        // How much of a window may be left for no more than `spare` of `count` to be covered still.
        let may_be_left = |spare: u64, count: u64| {
            let may = u128::from(spare) * u128::from(window) / u128::from(count.max(1));
            u64::try_from(may).map_or(window, |may| may.min(window))
        };
        match below.checked_sub(self.current) {
            Some(spare) => left.saturating_sub(may_be_left(spare, self.previous)),
            None => left.saturating_add(window - may_be_left(below, self.current)),
        }
    }
}

fn index_of(window: Duration, monotonic: Duration) -> u64 {
    nanos(monotonic) / nanos(window).max(1)
}

/// Nanoseconds, of which 64 bits last for centuries: dividing 128 of them is what a charge would cost most.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// As much of a key as is kept as it is; a longer one is kept as its SHA-256. With its count, a key fills a cache line.
const KEY_BYTES: usize = 47;

/// Stands for the length of a key that is kept as its SHA-256.
const DIGEST: u8 = u8::MAX;

/// What is counted: the parts of a limit's key, never confused with those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    bytes: [u8; KEY_BYTES],
    length: u8,
}

impl Key {
    /// The key as it is written down. It never changes between versions: what was counted for it would be forgotten.
    pub fn to_bytes(self) -> Vec<u8> {
        let kept = self.bytes.get(..self.kept()).unwrap_or_default();
        std::iter::once(self.length).chain(kept.iter().copied()).collect()
    }

    /// The key that was written down as this.
    pub fn from_bytes(written: &[u8]) -> Option<Self> {
        let (length, kept) = written.split_first()?;
        let mut key = Self { bytes: [0; KEY_BYTES], length: *length };
        if kept.len() != key.kept() {
            return None;
        }
        key.bytes.get_mut(..kept.len())?.copy_from_slice(kept);
        Some(key)
    }

    fn kept(self) -> usize {
        if self.length == DIGEST { 32 } else { usize::from(self.length) }
    }
}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // The bytes beyond the length are zero; one write of a fixed size is what the hasher is fastest at.
        state.write(&self.bytes);
        state.write_u8(self.length);
    }
}

/// Puts a [`Key`] together without allocating.
pub struct KeyBuilder {
    bytes: [u8; KEY_BYTES],
    length: usize,
    digest: Option<openssl::sha::Sha256>,
}

impl Default for KeyBuilder {
    fn default() -> Self {
        Self { bytes: [0; KEY_BYTES], length: 0, digest: None }
    }
}

impl KeyBuilder {
    /// Adds a part; the tag tells parts of different kinds apart, and each part carries its length.
    pub fn part(&mut self, tag: u8, part: &[u8]) {
        self.write(&[tag]);
        self.write(&(part.len() as u32).to_le_bytes());
        self.write(part);
    }

    /// The key of all parts.
    pub fn finish(self) -> Key {
        let Some(digest) = self.digest else { return Key { bytes: self.bytes, length: self.length as u8 } };
        let mut bytes = [0; KEY_BYTES];
        bytes.iter_mut().zip(digest.finish()).for_each(|(byte, digest)| *byte = digest);
        Key { bytes, length: DIGEST }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.digest.is_none()
            && let Some(room) = self.bytes.get_mut(self.length..self.length + bytes.len())
        {
            room.copy_from_slice(bytes);
            self.length += bytes.len();
            return;
        }
        let written = self.bytes.get(..self.length).unwrap_or_default();
        let digest = self.digest.get_or_insert_with(|| {
            let mut digest = openssl::sha::Sha256::new();
            digest.update(written);
            digest
        });
        digest.update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    const SECOND: Duration = Duration::from_secs(1);

    fn key(text: impl AsRef<[u8]>) -> Key {
        let mut key = KeyBuilder::default();
        key.part(0, text.as_ref());
        key.finish()
    }

    fn number(number: u64) -> Key {
        key(number.to_le_bytes())
    }

    fn per_second(limit: u64) -> Quota {
        Quota { limit, window: SECOND }
    }

    fn admits(counters: &Counters, key: &Key, quota: Quota, millis: u64) -> bool {
        counters.charge(key, quota, Duration::from_millis(millis)).admitted
    }

    #[test]
    fn the_previous_window_counts_by_the_share_that_is_still_covered() {
        let counters = Counters::default();
        let quota = per_second(10);
        let admitted = |millis| (0..100).filter(|_| admits(&counters, &key("a"), quota, millis)).count();
        assert_eq!(admitted(900), 10);
        assert_eq!(admitted(1_000), 0);
        assert_eq!(admitted(1_099), 0);
        assert_eq!(admitted(1_100), 1);
        assert_eq!(admitted(1_500), 4);
        assert_eq!(admitted(1_999), 4);
        assert_eq!(admitted(5_000), 10);
    }

    #[test]
    fn a_refused_request_consumes_nothing() {
        let counters = Counters::default();
        let quota = per_second(2);
        let standings: Vec<Standing> = (0..1_000).map(|_| counters.charge(&key("a"), quota, Duration::ZERO)).collect();
        assert_eq!(standings.iter().filter(|standing| standing.admitted).count(), 2);
        assert!(standings.iter().skip(1).all(|standing| standing.remaining == 0));
        // Two were counted, not a thousand: half of the next window later one of them is out of sight.
        assert!(admits(&counters, &key("a"), quota, 1_500));
    }

    #[test]
    fn a_refund_takes_back_one_request_also_when_the_window_has_turned() {
        let counters = Counters::default();
        let quota = per_second(1);
        assert!(admits(&counters, &key("a"), quota, 900));
        counters.refund(&key("a"), quota, Duration::from_millis(900));
        assert!(admits(&counters, &key("a"), quota, 900));
        assert!(!admits(&counters, &key("a"), quota, 1_000));
        counters.refund(&key("a"), quota, Duration::from_millis(900));
        assert!(admits(&counters, &key("a"), quota, 1_000));
    }

    #[test]
    fn the_counts_stand_when_the_rate_changes() {
        let counters = Counters::default();
        assert!((0..50).all(|_| admits(&counters, &key("a"), per_second(100), 0)));
        assert!(!admits(&counters, &key("a"), per_second(50), 0));
        let longer = Quota { limit: 50, window: Duration::from_secs(60) };
        assert!(!admits(&counters, &key("a"), longer, 500));
        assert!(admits(&counters, &key("a"), Quota { limit: 51, ..longer }, 500));
    }

    #[test]
    fn a_clock_that_lags_gives_nothing_away() {
        let counters = Counters::default();
        let quota = per_second(10);
        assert!((0..10).all(|_| admits(&counters, &key("a"), quota, 1_999)));
        assert!((0..2).all(|_| admits(&counters, &key("b"), quota, 2_000)));
        assert!(!admits(&counters, &key("a"), quota, 1_500));
    }

    #[test]
    fn keys_of_any_length_are_told_apart() {
        let mut parts = vec![Key { bytes: [0; KEY_BYTES], length: 0 }];
        for length in 0..120 {
            parts.push(key(vec![0; length]));
            parts.push(key(vec![1; length + 1]));
        }
        let two = |first: &str, second: &str| {
            let mut key = KeyBuilder::default();
            key.part(0, first.as_bytes());
            key.part(0, second.as_bytes());
            key.finish()
        };
        parts.extend([two("ab", "c"), two("a", "bc"), two("abc", ""), two(&"a".repeat(60), "b"), two("a", &("a".repeat(59) + "b"))]);
        let mut tagged = KeyBuilder::default();
        tagged.part(1, b"abc");
        parts.extend([tagged.finish(), key("abc")]);
        for (at, part) in parts.iter().enumerate() {
            assert!(parts.iter().skip(at + 1).all(|other| other != part), "{at}");
        }
    }

    #[test]
    fn a_key_is_written_down_in_the_form_that_it_always_had() {
        let mut long = KeyBuilder::default();
        long.part(0, b"acme");
        long.part(1, &[7; 60]);
        let long = long.finish();
        assert_eq!(key("acme").to_bytes(), b"\x09\x00\x04\x00\x00\x00acme");
        let digest = "ff203c4f293f7334dca1f4137121c5c9886cb241643c54ecf056f9c0dbd09d08d0";
        let hex: String = long.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, digest);
        for key in [key(""), key("acme"), key([1; 42]), key([1; 43]), long] {
            assert_eq!(Key::from_bytes(&key.to_bytes()), Some(key));
        }
        for strange in [&b""[..], b"\x01", b"\x01ab", b"\x30abc", b"\xffshort"] {
            assert_eq!(Key::from_bytes(strange), None);
        }
        assert_eq!(Key::from_bytes(&[&[48][..], &[1; 48]].concat()), None);
    }

    #[test]
    fn threads_together_never_admit_more_than_the_limit() {
        let counters = Counters::default();
        let admitted = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        admitted.fetch_add(u64::from(admits(&counters, &key("a"), per_second(9_999), 500)), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(admitted.load(Ordering::Relaxed), 9_999);
    }

    #[test]
    fn a_flood_of_keys_is_bounded_and_neither_frees_a_key_nor_pushes_out_a_count() {
        let counters = Counters::new(4, 100);
        let quota = per_second(3);
        let known = number(u64::MAX);
        assert!((0..3).all(|_| admits(&counters, &known, quota, 0)));
        let mut strangers = 0;
        for (second, keys) in [(0, 0..400_000), (1, 400_000..800_000), (2, 800_000..1_200_000)] {
            for stranger in keys {
                strangers += u64::from(admits(&counters, &number(stranger), quota, second * 1_000 + 500));
            }
            assert!(counters.shards.iter().map(Shard::lock).all(|windows| windows.current.len() <= 100 && windows.previous.len() <= 100));
            // It comes back in each window, and its count stood all the while: two of three are still covered.
            let again = (0..3).filter(|_| admits(&counters, &known, quota, second * 1_000 + 1_500)).count();
            assert!((1..3).contains(&again), "{again}");
        }
        assert!(strangers < 3 * (400 + 4 * 3), "{strangers}");
        // One that had to share is held to the shared count when it gets room of its own.
        let late = number(1_199_999);
        assert!((0..10).filter(|_| admits(&counters, &late, quota, 3_000)).count() <= 3);
    }

    #[test]
    fn a_key_and_its_count_fill_a_cache_line_and_a_full_shard_its_table() {
        assert_eq!(size_of::<(Key, Count)>(), 64);
        let mut table = HashMap::<Key, Count>::new();
        table.extend((0..SHARD_KEYS as u64).map(|at| (number(at), Count::default())));
        assert_eq!(table.capacity(), SHARD_KEYS);
    }

    #[test]
    fn memory_comes_back_when_nobody_asks() {
        let counters = Counters::default();
        for stranger in 0..100_000 {
            admits(&counters, &number(stranger), per_second(1), 0);
        }
        let room = || {
            counters.shards.iter().map(Shard::lock).map(|windows| windows.current.capacity() + windows.previous.capacity()).sum::<usize>()
        };
        assert!(room() >= 100_000);
        counters.turn(Duration::from_secs(1));
        counters.turn(Duration::from_secs(2));
        counters.turn(Duration::from_secs(3));
        assert_eq!(room(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn upkeep_ends_with_the_counters() {
        let counters = Arc::new(Counters::default());
        let clock: Clock = Arc::new(|| crate::request::Now { monotonic: Duration::ZERO, unix: Duration::ZERO });
        let upkeep = tokio::spawn(Counters::maintain(Arc::downgrade(&counters), clock));
        tokio::time::sleep(3 * UPKEEP).await;
        assert!(!upkeep.is_finished());
        drop(counters);
        upkeep.await.unwrap();
    }

    /// The two counts of one key, as plainly as they can be written.
    fn reference(log: &[u64], limit: u64, window: u64, now: u64) -> bool {
        let index = now / window;
        let within = |wanted: u64| log.iter().filter(|at| **at / window == wanted).count() as u64;
        let previous = if index == 0 { 0 } else { within(index - 1) };
        within(index) + (previous * (window - now % window)).div_ceil(window) < limit
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_reference_and_stays_within_the_stated_distance_of_an_exact_log(
            limit in 0u64..20, window in 1u64..200, steps in proptest::collection::vec((0u64..60, 0usize..3), 1..300),
        ) {
            let counters = Counters::default();
            let quota = Quota { limit, window: Duration::from_nanos(window) };
            let keys = [key("a"), key("b"), key("c")];
            let mut logs = [vec![], vec![], vec![]];
            let mut now = 0;
            for (step, who) in steps {
                now += step / 10 * (step % 10);
                let expected = reference(&logs[who], limit, window, now);
                let standing = counters.charge(&keys[who], quota, Duration::from_nanos(now));
                prop_assert_eq!(standing.admitted, expected);
                if expected {
                    logs[who].push(now);
                    // An exact log would hold at most `limit` in any window; the blend at most the share of one more.
                    let exact = logs[who].iter().filter(|at| **at + window > now).count() as u64;
                    prop_assert!(exact <= limit + limit * (now % window) / window, "{} in a window at {}", exact, now);
                }
                prop_assert!(standing.remaining <= limit);
                prop_assert_eq!(standing.retry_after.is_zero(), standing.remaining > 0);
                prop_assert!(standing.reset <= 2 * quota.window);
            }
        }

        #[test]
        fn one_more_is_admitted_after_the_stated_wait_and_not_before(
            limit in 1u64..20, window in 1u64..200, steps in proptest::collection::vec(0u64..80, 1..60),
        ) {
            let counters = Counters::default();
            let quota = Quota { limit, window: Duration::from_nanos(window) };
            let mut log = vec![];
            let mut now = 0;
            for step in steps {
                now += step / 8;
                let standing = counters.charge(&key("a"), quota, Duration::from_nanos(now));
                if standing.admitted {
                    log.push(now);
                }
                let then = now + standing.retry_after.as_nanos() as u64;
                prop_assert!(reference(&log, limit, window, then));
                prop_assert!(then == now || !reference(&log, limit, window, then - 1));
                let reset = now + standing.reset.as_nanos() as u64;
                prop_assert!((0..limit).all(|_| reference(&log, limit, window, reset) ));
            }
        }
    }

    #[test]
    fn the_worst_difference_from_an_exact_log_is_one_allowance_less_the_grain() {
        // A burst at the very end of a window, then a caller that asks without pause.
        let counters = Counters::default();
        let quota = per_second(100);
        let mut log: Vec<u64> = (0..100).filter(|_| admits(&counters, &key("a"), quota, 999)).map(|_| 999).collect();
        log.extend((1_000..2_000).filter(|millis| admits(&counters, &key("a"), quota, *millis)));
        let worst = log.iter().map(|end| log.iter().filter(|at| **at <= *end && **at + 1_000 > *end).count()).max();
        assert_eq!(worst, Some(199));
        // A burst of two seconds across the edge of a window of ten: a tenth more.
        let counters = Counters::default();
        let quota = Quota { limit: 100, window: Duration::from_secs(10) };
        let burst = (9_000..11_000).filter(|millis| admits(&counters, &key("a"), quota, *millis)).count();
        assert_eq!(burst, 109);
    }
}
