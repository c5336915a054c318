//! Kept connections to backends. A worker takes one of its own first, another's only before it would open one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ahash::RandomState;
use crossbeam_utils::CachePadded;
use hashbrown::HashMap;
use thread_local::ThreadLocal;

use super::super::peer::Place;
use super::line::Line;

/// The kept connections of all workers.
#[derive(Debug)]
pub(in super::super) struct Pool {
    most: usize,
    workers: ThreadLocal<CachePadded<Mutex<Kept>>>,
}

#[derive(Debug, Default)]
struct Kept {
    count: usize,
    by_place: HashMap<Place, Vec<Idle>, RandomState>,
}

#[derive(Debug)]
struct Idle {
    line: Line,
    until: Duration,
}

impl Pool {
    /// A pool in which each worker keeps so many connections at the most.
    pub(in super::super) fn new(most: usize) -> Self {
        Self { most, workers: ThreadLocal::new() }
    }

    /// A connection that was silent to its last moment: what has closed, or said something unasked, is dropped.
    pub(super) fn take(&self, place: Place, now: Duration) -> Option<Line> {
        let own = lock(self.workers.get_or_default()).take(place, now);
        own.or_else(|| self.workers.iter().find_map(|other| other.try_lock().ok()?.take(place, now)))
    }

    /// Keeps a connection over which everything that was asked was answered.
    pub(super) fn keep(&self, place: Place, line: Line, until: Duration) {
        let mut own = lock(self.workers.get_or_default());
        if own.count < self.most {
            own.count += 1;
            own.by_place.entry(place).or_default().push(Idle { line, until });
        }
    }

    /// Drops what was kept for too long, and what the other side has closed.
    pub(in super::super) fn sweep(&self, now: Duration) {
        for worker in &self.workers {
            let mut kept = lock(worker);
            kept.by_place.retain(|_, idle| {
                idle.retain_mut(|idle| idle.is_good(now));
                !idle.is_empty()
            });
            kept.count = kept.by_place.values().map(Vec::len).sum();
        }
    }
}

impl Kept {
    fn take(&mut self, place: Place, now: Duration) -> Option<Line> {
        // The last one kept is the likeliest to be alive, and lets those that are not needed grow old.
        let idle = self.by_place.get_mut(&place)?;
        while let Some(mut last) = idle.pop() {
            self.count -= 1;
            if last.is_good(now) {
                return Some(last.line);
            }
        }
        None
    }
}

impl Idle {
    fn is_good(&mut self, now: Duration) -> bool {
        now < self.until && self.line.is_silent()
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    const SOON: Duration = Duration::from_secs(1);
    const LATER: Duration = Duration::from_secs(10);

    async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (ours.unwrap(), theirs.unwrap().0)
    }

    #[tokio::test]
    async fn a_connection_is_taken_once_while_it_is_fresh_and_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = (listener.local_addr().unwrap(), 0);
        let pool = Pool::new(3);
        assert!(pool.take(place, SOON).is_none());

        let (ours, _theirs) = pair(&listener).await;
        pool.keep(place, Line::clear(ours), LATER);
        let taken = pool.take(place, SOON).unwrap();
        assert!(pool.take(place, SOON).is_none());
        pool.keep(place, taken, LATER);
        assert!(pool.take(place, LATER).is_none());

        // One that has closed and one that speaks unasked; the runtime learns of it when it looks.
        let (closed, theirs) = pair(&listener).await;
        drop(theirs);
        closed.readable().await.unwrap();
        let (speaking, mut theirs) = pair(&listener).await;
        theirs.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
        speaking.readable().await.unwrap();
        let (quiet, _theirs) = pair(&listener).await;
        let expected = quiet.local_addr().unwrap().port();
        pool.keep(place, Line::clear(quiet), LATER);
        pool.keep(place, Line::clear(closed), LATER);
        pool.keep(place, Line::clear(speaking), LATER);
        let (more, _theirs) = pair(&listener).await;
        pool.keep(place, Line::clear(more), LATER);
        assert_eq!(pool.take(place, SOON).unwrap().local_port(), expected);
        assert!(pool.take(place, SOON).is_none());
    }

    #[tokio::test]
    async fn a_sweep_leaves_what_may_still_be_used() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = (listener.local_addr().unwrap(), 0);
        let pool = Pool::new(8);
        let (old, _old) = pair(&listener).await;
        let (young, _young) = pair(&listener).await;
        let (closed, theirs) = pair(&listener).await;
        drop(theirs);
        closed.readable().await.unwrap();
        let expected = young.local_addr().unwrap().port();
        for (stream, until) in [(young, LATER), (closed, LATER), (old, SOON)] {
            pool.keep(place, Line::clear(stream), until);
        }
        pool.sweep(SOON);
        assert_eq!(lock(pool.workers.get_or_default()).count, 1);
        assert_eq!(pool.take(place, SOON).unwrap().local_port(), expected);
        pool.sweep(SOON);
        assert!(lock(pool.workers.get_or_default()).by_place.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_another_worker_keeps_is_better_than_a_new_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = (listener.local_addr().unwrap(), 0);
        let pool = std::sync::Arc::new(Pool::new(8));
        let (ours, _theirs) = pair(&listener).await;
        let keeper = pool.clone();
        std::thread::spawn(move || keeper.keep(place, Line::clear(ours), LATER)).join().unwrap();
        assert!(pool.take(place, SOON).is_some());
    }
}
