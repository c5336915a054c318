//! A service behind that speaks HTTP/2 in the clear: it writes down what comes on each stream, and answers by the last word of its path.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};

use super::PATIENCE;

/// A stream as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which connection it came on, counted from 0.
    pub connection: usize,
    pub path: String,
    pub authority: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// What stood behind the body.
    pub trailers: Option<HeaderMap>,
    /// Whether its caller ended it.
    pub whole: bool,
    /// Why its caller gave it up.
    pub given_up: Option<Reason>,
}

/// A running service.
pub struct Streams {
    pub address: SocketAddr,
    records: Arc<Records>,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Default)]
struct Records {
    seen: Mutex<Vec<Seen>>,
    connections: Mutex<usize>,
    closed: Mutex<usize>,
}

impl Streams {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let (address, records) = (listener.local_addr().unwrap(), Arc::<Records>::default());
        runtime.spawn({
            let records = Arc::clone(&records);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(Arc::clone(&records).serve(stream));
                }
            }
        });
        Self { address, records, runtime: Some(runtime) }
    }

    /// Every stream so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.records.seen.lock().unwrap().clone()
    }

    /// The latest.
    #[track_caller]
    pub fn last(&self) -> Seen {
        self.seen().pop().expect("the service was asked")
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        *self.records.connections.lock().unwrap()
    }

    /// How many of them have ended.
    pub fn closed(&self) -> usize {
        *self.records.closed.lock().unwrap()
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // When it is gone it listens no more: one that still takes a connection and then drops it has not been unreachable.
        self.runtime.take().unwrap().shutdown_timeout(PATIENCE);
    }
}

impl Records {
    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let number = {
            let mut connections = self.connections.lock().unwrap();
            *connections += 1;
            *connections - 1
        };
        stream.set_nodelay(true).unwrap();
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, answer))) = connection.accept().await {
            let leaves = request.uri().path().ends_with("/leaves");
            let at = self.record(number, &request);
            tokio::spawn(Arc::clone(&self).answer(at, request, answer));
            if leaves {
                connection.graceful_shutdown();
            }
        }
        *self.closed.lock().unwrap() += 1;
    }

    fn record(&self, connection: usize, request: &Request<RecvStream>) -> usize {
        let mut seen = self.seen.lock().unwrap();
        seen.push(Seen {
            connection,
            path: request.uri().path().to_owned(),
            authority: request.uri().authority().map(ToString::to_string).unwrap_or_default(),
            headers: request.headers().clone(),
            body: Vec::new(),
            trailers: None,
            whole: request.body().is_end_stream(),
            given_up: None,
        });
        seen.len() - 1
    }

    fn note<T>(&self, at: usize, what: impl FnOnce(&mut Seen) -> T) -> T {
        what(&mut self.seen.lock().unwrap()[at])
    }

    async fn answer(self: Arc<Self>, at: usize, request: Request<RecvStream>, mut answer: SendResponse<Bytes>) {
        let word = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let times = self.seen.lock().unwrap().iter().filter(|seen| seen.path == request.uri().path()).count();
        let mut body = request.into_body();
        let head = |status: u16| Response::builder().status(status).header("x-from", "streams").body(()).unwrap();
        match word.as_str() {
            // Before it has the body, or any of it.
            "hasty" => drop(answer.send_response(head(200), true)),
            "resets" => answer.send_reset(Reason::INTERNAL_ERROR),
            "refuses" if times == 1 => answer.send_reset(Reason::REFUSED_STREAM),
            "always-refuses" => answer.send_reset(Reason::REFUSED_STREAM),
            "breaks" => {
                let mut out = answer.send_response(head(200), false).unwrap();
                out.send_data(Bytes::from_static(b"half"), false).unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                out.send_reset(Reason::INTERNAL_ERROR);
            }
            "silent" => {
                let reason = std::future::poll_fn(|cx| answer.poll_reset(cx)).await;
                self.note(at, |seen| seen.given_up = reason.ok());
            }
            // Piece by piece, as it comes.
            "talks" => {
                let mut out = answer.send_response(head(200), false).unwrap();
                while let Some(piece) = self.piece(at, &mut body).await {
                    // Refused when its caller has gone.
                    let _ = out.send_data(piece.to_ascii_uppercase().into(), false);
                }
                self.end(at, out);
            }
            _ => {
                while self.piece(at, &mut body).await.is_some() {}
                if word == "busy" && times == 1 {
                    return drop(answer.send_response(head(503), true));
                }
                let received = self.note(at, |seen| Bytes::from(seen.body.clone()));
                let Ok(mut out) = answer.send_response(head(200), false) else { return };
                let _ = out.send_data(received, false);
                self.end(at, out);
            }
        }
    }

    async fn piece(&self, at: usize, body: &mut RecvStream) -> Option<Bytes> {
        let piece = match body.data().await {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => {
                self.note(at, |seen| seen.given_up = error.reason());
                return None;
            }
            None => {
                let trailers = body.trailers().await.ok().flatten();
                self.note(at, |seen| (seen.whole, seen.trailers) = (true, trailers));
                return None;
            }
        };
        let _ = body.flow_control().release_capacity(piece.len());
        self.note(at, |seen| seen.body.extend_from_slice(&piece));
        Some(piece)
    }

    /// With fields behind the body, for those who want them.
    fn end(&self, at: usize, mut out: SendStream<Bytes>) {
        if self.note(at, |seen| seen.headers.contains_key("te")) {
            let _ = out.send_trailers([("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect());
        } else {
            let _ = out.send_data(Bytes::new(), true);
        }
    }
}
