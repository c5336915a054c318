//! The threads that serve callers, on a runtime of our own: the framework's has no setting for how fairly it takes connections in turn.

use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use tokio::runtime::{Builder, Handle, Runtime};

use super::Place;

/// Tasks that a worker runs before it looks again which connections have something to read. In rounds of 61, which are tokio's, who asks again at once
/// is served again while others wait, of a thousand connections some for 0.2 s (docs/decisions/0015).
const ROUND: u32 = 1024;

/// Connections that one look brings. tokio's 1,024 are more than the caches hold: a request that goes abreast with so many finds its own data gone
/// (docs/decisions/0018). Who is not among them comes first at the next look, as the system keeps them in a line.
const LOOK: usize = 64;

/// How long what is still at work after the drain time has left, as the framework has it.
const END: Duration = Duration::from_secs(1);

/// The threads.
#[derive(Debug)]
pub(super) struct Workers(Runtime);

/// A service of the framework that runs on them.
pub(super) struct OnWorkers<S> {
    service: Option<S>,
    name: String,
    places: Vec<Place>,
    workers: Handle,
}

impl Workers {
    /// Starts so many threads.
    pub(super) fn start(threads: usize) -> std::io::Result<Self> {
        Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("edgeward")
            .enable_all()
            .event_interval(ROUND)
            .max_io_events_per_tick(LOOK)
            .build()
            .map(Self)
    }

    /// Has a service that listens in these places run on these threads and not on those that the framework gives it.
    pub(super) fn run<S: Service>(&self, service: S, places: Vec<Place>) -> OnWorkers<S> {
        OnWorkers { name: service.name().to_owned(), service: Some(service), places, workers: self.0.handle().clone() }
    }

    /// Ends them. What they are still at is given up.
    pub(super) fn end(self) {
        self.0.shutdown_timeout(END);
    }
}

#[async_trait]
impl<S: Service + 'static> Service for OnWorkers<S> {
    async fn start_service(&mut self, fds: Option<ListenFds>, shutdown: ShutdownWatch, listeners_per_fd: usize) {
        let Some(mut service) = self.service.take() else { return };
        // As if another process had handed them over: the framework would bind a socket of its own, try that for half a minute, and panic.
        if let Some(fds) = &fds {
            let mut fds = fds.lock();
            for place in self.places.drain(..) {
                let address = place.address.to_string();
                match place.listen() {
                    Ok(listening) => fds.add(address, listening),
                    Err(error) => {
                        tracing::error!(%error, "not served");
                        std::process::exit(1);
                    }
                }
            }
        }
        let serving = self.workers.spawn(async move { service.start_service(fds, shutdown, listeners_per_fd).await });
        if let Err(error) = serving.await {
            tracing::error!(%error, service = self.name, "ended");
            // A process that goes on and serves nobody is found later than one that is gone.
            if error.is_panic() {
                std::process::exit(1);
            }
        }
    }

    fn name(&self) -> &str {
        &self.name
    }

    /// One, which only waits.
    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}
