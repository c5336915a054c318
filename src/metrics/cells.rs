//! Numbers that many threads count and few read: each thread adds to cells of its own, so that no two cores fight for a cache line, and who
//! reads sums over the threads.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use thread_local::ThreadLocal;

/// Cells in a thread's first chunk; each further chunk has as many as all before it together, so that cells never move and few are unused.
const FIRST: usize = 512;

/// Enough for half a billion cells.
const CHUNKS: usize = 21;

/// The cells of all threads.
#[derive(Debug, Default)]
pub(super) struct Cells {
    threads: ThreadLocal<Own>,
    used: AtomicUsize,
}

/// The cells of one thread. Only it writes to them: an addition is a load and a store, without a locked instruction. A thread that ends leaves
/// them to the next one that begins.
#[derive(Debug, Default)]
struct Own {
    chunks: [OnceLock<Box<[AtomicU64]>>; CHUNKS],
}

impl Cells {
    /// The number of the first of so many new cells in a row.
    fn claim(&self, count: usize) -> usize {
        self.used.fetch_add(count, Ordering::Relaxed)
    }

    fn add(&self, cell: usize, amount: u64) {
        if let Some(cell) = self.threads.get_or_default().cell(cell) {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
        }
    }

    fn sum(&self, cell: usize) -> u64 {
        self.threads.iter().filter_map(|own| own.read(cell)).fold(0, u64::wrapping_add)
    }
}

impl Own {
    fn cell(&self, cell: usize) -> Option<&AtomicU64> {
        let (chunk, at) = place(cell);
        self.chunks.get(chunk)?.get_or_init(|| (0..FIRST << chunk.saturating_sub(1)).map(|_| AtomicU64::new(0)).collect()).get(at)
    }

    fn read(&self, cell: usize) -> Option<u64> {
        let (chunk, at) = place(cell);
        Some(self.chunks.get(chunk)?.get()?.get(at)?.load(Ordering::Relaxed))
    }
}

/// In which chunk a cell is, and where there: chunk 0 has `FIRST` cells, chunk n has `FIRST << (n - 1)`.
fn place(cell: usize) -> (usize, usize) {
    let chunk = (cell / FIRST).checked_ilog2().map_or(0, |log| log as usize + 1);
    let before = if chunk == 0 { 0 } else { FIRST << (chunk - 1) };
    (chunk, cell - before)
}

/// A number that goes up, and down where it counts what is there now. Clones count together.
#[derive(Debug, Clone)]
pub struct Counter {
    cells: Arc<Cells>,
    cell: usize,
}

impl Counter {
    pub(super) fn new(cells: &Arc<Cells>) -> Self {
        Self { cells: Arc::clone(cells), cell: cells.claim(1) }
    }

    /// Counters of facts that are live and no family of the metrics has. They share the cells of a thread.
    pub fn apart<const COUNT: usize>() -> [Self; COUNT] {
        let cells = Arc::default();
        std::array::from_fn(|_| Self::new(&cells))
    }

    /// Counts one more.
    pub fn inc(&self) {
        self.cells.add(self.cell, 1);
    }

    /// Counts one less.
    pub fn dec(&self) {
        self.cells.add(self.cell, u64::MAX);
    }

    /// What all threads counted. While others count it may be one that never was as a whole.
    pub fn get(&self) -> u64 {
        self.cells.sum(self.cell)
    }
}

/// How often something took how long: a cell for each bucket, one for what was longer than all of them, one for the sum in nanoseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    cells: Arc<Cells>,
    first: usize,
    bounds: &'static [u64],
}

impl Histogram {
    /// `bounds` are the upper ends of the buckets in nanoseconds, in rising order.
    pub(super) fn new(cells: &Arc<Cells>, bounds: &'static [u64]) -> Self {
        Self { cells: Arc::clone(cells), first: cells.claim(bounds.len() + 2), bounds }
    }

    /// Counts one that took so long.
    pub fn observe(&self, time: std::time::Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.cells.add(self.first + self.bounds.partition_point(|bound| *bound < nanoseconds), 1);
        self.cells.add(self.first + self.bounds.len() + 1, nanoseconds);
    }

    /// The bucket's bounds in seconds with how many were within each, how many there were, and the sum in seconds.
    pub(super) fn read(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut count = 0;
        let mut within = |at: usize| {
            count += self.cells.sum(self.first + at);
            count
        };
        let buckets = self.bounds.iter().enumerate().map(|(at, bound)| (*bound as f64 / 1e9, within(at))).collect();
        let all = within(self.bounds.len());
        (buckets, all, self.cells.sum(self.first + self.bounds.len() + 1) as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_cell_has_a_place_of_its_own() {
        let mut expected = (0, 0);
        for cell in 0..FIRST * 9 {
            assert_eq!(place(cell), expected, "{cell}");
            let length = FIRST << expected.0.saturating_sub(1);
            expected = if expected.1 + 1 == length { (expected.0 + 1, 0) } else { (expected.0, expected.1 + 1) };
        }
    }

    #[test]
    fn threads_count_apart_and_are_read_together_also_after_they_ended() {
        let cells = Arc::new(Cells::default());
        let counters: Vec<Counter> = (0..FIRST * 3).map(|_| Counter::new(&cells)).collect();
        let (first, last, in_flight) = (&counters[0], &counters[FIRST * 3 - 1], &counters[FIRST]);
        for _ in 0..3 {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..10_000 {
                            first.inc();
                            last.inc();
                            in_flight.inc();
                        }
                    });
                }
            });
            // What one thread began another may end.
            (0..40_000).for_each(|_| in_flight.dec());
        }
        assert_eq!((first.get(), last.get(), in_flight.get()), (120_000, 120_000, 0));
        assert_eq!(counters[1].get(), 0);
    }

    #[test]
    fn a_time_is_in_the_bucket_whose_bound_it_does_not_pass() {
        let histogram = Histogram::new(&Arc::default(), &[1_000, 2_000, 1_000_000_000]);
        for nanoseconds in [0, 1_000, 1_001, 2_000, 5_000, 2_000_000_000] {
            histogram.observe(Duration::from_nanos(nanoseconds));
        }
        let (buckets, count, sum) = histogram.read();
        assert_eq!(buckets, [(1e-6, 2), (2e-6, 4), (1.0, 5)]);
        assert_eq!((count, sum), (6, 2.000_009_001));
    }
}
