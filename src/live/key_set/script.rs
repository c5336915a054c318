//! An issuer that answers as a test tells it, and counts.

use super::*;
use std::collections::HashMap;

/// What an issuer does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Status(u16),
    Document(String),
    WithHeaders(String, Vec<(&'static str, &'static str)>),
    Slow(Duration, String),
    Away,
    Silent,
}

#[derive(Debug, Default)]
pub(crate) struct Issuer {
    answers: Mutex<HashMap<String, Answer>>,
    asked: Mutex<Vec<String>>,
}

impl Issuer {
    pub(crate) fn answers(&self, url: &str, answer: Answer) {
        lock(&self.answers).insert(url.to_owned(), answer);
    }

    /// How often this URL was asked for.
    pub(crate) fn count(&self, url: &str) -> usize {
        lock(&self.asked).iter().filter(|asked| *asked == url).count()
    }
}

#[async_trait::async_trait]
impl Fetch for Issuer {
    async fn get(&self, url: &str, etag: Option<&HeaderValue>, _deadline: Duration) -> Result<http::Response<Bytes>, String> {
        lock(&self.asked).push(url.to_owned());
        let answer = lock(&self.answers).get(url).cloned().unwrap_or(Answer::Status(404));
        let build = |status: u16, document: String| http::Response::builder().status(status).body(Bytes::from(document)).unwrap();
        match answer {
            Answer::Status(status) => Ok(build(status, String::new())),
            Answer::Document(document) => Ok(build(200, document)),
            Answer::WithHeaders(document, headers) => {
                let known = headers.iter().any(|(name, value)| *name == "etag" && etag.is_some_and(|etag| etag == value));
                let mut response = if known { build(304, String::new()) } else { build(200, document) };
                for (name, value) in headers {
                    response.headers_mut().insert(name, HeaderValue::from_static(value));
                }
                Ok(response)
            }
            Answer::Slow(pause, document) => {
                tokio::time::sleep(pause).await;
                Ok(build(200, document))
            }
            Answer::Away => Err("connection refused".to_owned()),
            Answer::Silent => std::future::pending().await,
        }
    }
}

/// A clock that follows tokio's paused time.
pub(crate) fn clock() -> Clock {
    let start = tokio::time::Instant::now();
    Arc::new(move || {
        let passed = start.elapsed();
        Now { monotonic: Duration::from_secs(100) + passed, unix: Duration::from_secs(1_800_000_000) + passed }
    })
}

pub(crate) const URL: &str = "https://issuer.test/jwks";

pub(crate) fn id() -> KeySetId {
    KeySetId { source: Source::Jwks(URL.into()), ca: None }
}

pub(crate) fn upkeep() -> Upkeep {
    Upkeep { timeout: Duration::from_secs(5), refresh: Duration::from_secs(300), max_stale: Duration::from_secs(3600), store: None }
}
