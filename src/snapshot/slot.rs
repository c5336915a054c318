//! Where the serving snapshot stands: swapped in one store, and taken by each request without writing to what another core reads.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use crossbeam_utils::CachePadded;
use thread_local::ThreadLocal;

use super::Snapshot;

/// The snapshot that serves. Each thread holds it by a count of its own: counted in one place, every request of every core would write there twice.
#[derive(Debug)]
pub struct Slot {
    current: ArcSwap<Numbered>,
    number: AtomicU64,
    threads: ThreadLocal<CachePadded<Mutex<Option<Serving>>>>,
}

#[derive(Debug)]
struct Numbered {
    number: u64,
    snapshot: Arc<Snapshot>,
}

/// A snapshot as one request keeps it to its end.
#[derive(Debug, Clone)]
pub struct Serving(Arc<Numbered>);

impl Deref for Serving {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.0.snapshot
    }
}

impl Slot {
    /// A slot with its first snapshot.
    pub fn new(snapshot: Snapshot) -> Self {
        let first = Numbered { number: 0, snapshot: Arc::new(snapshot) };
        Self { current: ArcSwap::from_pointee(first), number: AtomicU64::new(0), threads: ThreadLocal::new() }
    }

    /// The snapshot that serves now.
    pub fn load(&self) -> Serving {
        let mut own = self.threads.get_or_default().lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.number.load(Ordering::Acquire);
        match &*own {
            Some(serving) if serving.0.number == number => serving.clone(),
            _ => {
                let current = self.current.load();
                let copy = Numbered { number: current.number, snapshot: Arc::clone(&current.snapshot) };
                own.insert(Serving(Arc::new(copy))).clone()
            }
        }
    }

    /// Serves another one from the next request on.
    pub fn store(&self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        let stored = self.current.rcu(|current| Numbered { number: current.number + 1, snapshot: Arc::clone(&snapshot) });
        // Never back: of two that store at once the later number counts, and its snapshot stands by now.
        self.number.fetch_max(stored.number + 1, Ordering::AcqRel);
        // A thread that serves nobody would keep the old one, and what lives by it.
        for own in &self.threads {
            own.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, System};
    use crate::live::LiveState;
    use crate::metrics::Metrics;
    use std::sync::mpsc::channel;

    fn snapshot(routes: usize) -> Snapshot {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edgeward.yaml");
        let mut text = "listeners: [{address: 127.0.0.1:0}]\nupstreams: {demo: {builtin: echo}}\nroutes:\n".to_owned();
        for at in 0..routes {
            text += &format!("  - {{name: r{at}, path: /{at}, policy: {{authenticate: public}}, upstream: demo}}\n");
        }
        std::fs::write(&path, text).unwrap();
        let config = config::load(&path, &System).config.unwrap();
        super::super::compile(&config, &LiveState::default(), &Metrics::new().unwrap()).unwrap()
    }

    #[test]
    fn a_thread_serves_the_newest_snapshot_and_keeps_no_other() {
        let slot = Slot::new(snapshot(1));
        let kept = slot.load();
        let first = Arc::downgrade(&kept.0.snapshot);
        let (ask, asked) = channel::<()>();
        let (tell, told) = channel();
        std::thread::scope(|scope| {
            scope.spawn({
                let slot = &slot;
                move || asked.iter().for_each(|()| tell.send(slot.load().routes.len()).unwrap())
            });
            let elsewhere = || {
                ask.send(()).unwrap();
                told.recv().unwrap()
            };
            assert_eq!(elsewhere(), 1);
            slot.store(snapshot(2));
            // A request keeps what it began with, whichever thread has served it.
            assert_eq!((kept.routes.len(), slot.load().routes.len(), elsewhere()), (1, 2, 2));
            drop(kept);
            assert!(first.upgrade().is_none());
            slot.store(snapshot(3));
            slot.store(snapshot(4));
            assert_eq!((elsewhere(), slot.load().routes.len()), (4, 4));
            drop(ask);
        });
    }
}
