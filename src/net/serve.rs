//! A small HTTP/1 server for what edgeward answers itself: the administration and the demo's echo. Never for the data path.

use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

/// Callers that may wait to be accepted. A worker opens more connections at once than the usual 128, and who does not fit is heard a second later,
/// when the gateway has given up.
const WAITING: u32 = 4096;

/// A listener for this machine alone, on a free port.
pub fn bind() -> std::io::Result<TcpListener> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    socket.listen(WAITING)?.into_std()
}

/// Serves a bound listener in the background of the current runtime.
pub fn spawn<F, A>(listener: TcpListener, answer: F) -> std::io::Result<()>
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors: give others time to close theirs instead of spinning.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let answer = answer.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answer = answer(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
                if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, "a connection ended early");
                }
            });
        }
    });
    Ok(())
}

/// A JSON document that anybody may keep for a while.
pub fn document(json: Bytes, max_age: Duration) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(json));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(value) = HeaderValue::try_from(format!("public, max-age={}", max_age.as_secs())) {
        response.headers_mut().insert(header::CACHE_CONTROL, value);
    }
    response
}
