//! Connections to backends over HTTP/2, each shared by many streams. A worker uses those that it has opened itself.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as Waiting, Poll, Waker};
use std::time::Duration;

use ahash::RandomState;
use bytes::Bytes;
use crossbeam_utils::CachePadded;
use h2::client::{Builder, SendRequest};
use hashbrown::HashMap;
use pingora::protocols::ALPN;
use pingora::{BError, Error, ErrorType};
use thread_local::ThreadLocal;

use super::super::deadline::Deadline;
use super::super::gathering::Gathering;
use super::super::peer::{self, Connector, Place};
use crate::route::Route;

/// Streams at a time on a connection at the most, as the framework is told for those that it opens.
pub(in super::super) const STREAMS: usize = 100;

/// What a backend may send on a stream before its caller has taken it. A connection has room for that of every stream, so that none waits for a
/// caller of another that does not read.
const WINDOW: u32 = 256 * 1024;

/// The longest head of an answer, as over HTTP/1.1.
const LONGEST_HEAD: u32 = 1024 * 1024;

/// The connections of all workers.
#[derive(Debug, Default)]
pub(in super::super) struct Pool {
    workers: ThreadLocal<CachePadded<Mutex<ByPlace>>>,
}

type ByPlace = HashMap<Place, Connections, RandomState>;

#[derive(Debug, Default)]
struct Connections {
    open: Vec<Connection>,
    /// Held by who opens one, for those who come meanwhile: how it failed, if so.
    opening: Arc<Opening>,
}

type Opening = tokio::sync::Mutex<Option<ErrorType>>;

#[derive(Debug)]
struct Connection {
    requests: SendRequest<Bytes>,
    shared: Arc<Shared>,
    /// When it is closed, if it has no stream then.
    until: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    streams: AtomicUsize,
    /// No stream is begun on it any more.
    spent: AtomicBool,
    /// Of streams that have ended: each keeps its timer.
    deadlines: Mutex<Vec<Deadline>>,
}

/// Room for a stream on a connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) requests: SendRequest<Bytes>,
    /// Of the wait for the backend.
    pub(super) deadline: Deadline,
    /// Whether the connection has had other streams.
    pub(super) reused: bool,
    shared: Arc<Shared>,
}

impl Pool {
    /// Room on a connection of this worker, kept or new, on which a stream can be begun now. One that is free of streams from then on is closed at
    /// `until`, or later.
    pub(super) async fn seat(
        &self,
        connector: &Connector,
        route: &Route,
        address: SocketAddr,
        until: Duration,
        may_be_kept: bool,
    ) -> Result<Seat, BError> {
        let (own, key) = (&**self.workers.get_or_default(), peer::place(route, address));
        if !may_be_kept {
            return open(connector, own, route, address, until).await;
        }
        loop {
            let opening = match lock(own).entry(key).or_default().take(until) {
                Ok(seat) => return Ok(seat),
                Err(opening) => opening,
            };
            // Those who come while one is opened would each open another: a thousand streams at once as many.
            let Ok(mut failure) = opening.try_lock() else {
                match &*opening.lock().await {
                    Some(kind) => return Err(Error::explain(kind.clone(), "as the connection that was waited for").into_up()),
                    None => continue,
                }
            };
            *failure = None;
            let opened = open(connector, own, route, address, until).await;
            *failure = opened.as_ref().err().map(|error| error.etype().clone());
            return opened;
        }
    }

    /// Closes what has had no stream for long, and forgets what is closed.
    pub(in super::super) fn sweep(&self, now: Duration) {
        for worker in &self.workers {
            lock(worker).retain(|_, connections| {
                connections.open.retain(|connection| {
                    let Shared { streams, spent, .. } = &*connection.shared;
                    !spent.load(Ordering::Relaxed) && (now < connection.until || streams.load(Ordering::Relaxed) > 0)
                });
                !connections.open.is_empty() || Arc::strong_count(&connections.opening) > 1
            });
        }
    }
}

impl Connections {
    /// Room on one of them, or what is held while another is opened.
    fn take(&mut self, until: Duration) -> Result<Seat, Arc<Opening>> {
        self.open.retain(|connection| !connection.shared.spent.load(Ordering::Relaxed));
        for connection in &mut self.open {
            let most = STREAMS.min(connection.requests.current_max_send_streams());
            if connection.shared.streams.load(Ordering::Relaxed) >= most {
                continue;
            }
            // Nobody waits for a stream on these handles: what cannot begin one at once is being closed.
            if let Poll::Ready(Ok(())) = connection.requests.poll_ready(&mut Waiting::from_waker(Waker::noop())) {
                connection.until = until;
                return Ok(Seat::take(connection, true));
            }
            connection.shared.spent.store(true, Ordering::Relaxed);
        }
        Err(Arc::clone(&self.opening))
    }
}

impl Seat {
    fn take(connection: &Connection, reused: bool) -> Self {
        let shared = Arc::clone(&connection.shared);
        shared.streams.fetch_add(1, Ordering::Relaxed);
        let deadline = lock(&shared.deadlines).pop().unwrap_or_default();
        Self { requests: connection.requests.clone(), deadline, reused, shared }
    }

    /// Begins no stream on the connection any more. Those that it has go on.
    pub(super) fn spend(&self) {
        self.shared.spent.store(true, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.shared.deadlines).push(std::mem::take(&mut self.deadline));
        self.shared.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn open(connector: &Connector, own: &Mutex<ByPlace>, route: &Route, address: SocketAddr, until: Duration) -> Result<Seat, BError> {
    let stream = connector.open(route, address).await?;
    if route.upstream.tls.is_some() && stream.selected_alpn_proto() != Some(ALPN::H2) {
        return Err(peer::no_http2());
    }
    let stream = Gathering::shared(stream);
    let mut builder = Builder::new();
    builder.enable_push(false).initial_max_send_streams(STREAMS).max_frame_size(64 * 1024).max_header_list_size(LONGEST_HEAD);
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW * STREAMS as u32);
    let (requests, driver) = builder.handshake(stream).await.map_err(|error| super::broken(error, ErrorType::HandshakeError))?;
    let shared = Arc::new(Shared::default());
    let connection = Connection { requests, shared: Arc::clone(&shared), until };
    tokio::spawn(async move {
        // Each of its streams hears how it ended.
        let _ = driver.await;
        shared.spent.store(true, Ordering::Relaxed);
    });
    let seat = Seat::take(&connection, false);
    lock(own).entry(peer::place(route, address)).or_default().open.push(connection);
    Ok(seat)
}

/// Nothing is left half done by a panic while one of these is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
