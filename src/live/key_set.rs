//! Key sets of token issuers: fetched in the background, kept while the issuer is away, refreshed when a token names a key that is new.
//!
//! All fetching is done by one task per set ([`KeySet::maintain`]); a request only asks for news and waits, with a deadline. So there is
//! one flight at a time whatever the callers do, and no caller can cut it short by going away.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwapOption, Guard};
use bytes::Bytes;
use http::header::{AGE, CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::sync::{Notify, watch};

use crate::jose::{JwkSet, json};
use crate::net::http::{Client, Limits};
use crate::request::{Clock, Now};

/// The longest key set or discovery document that is read, in bytes.
pub const MAX_BODY: usize = 512 * 1024;
/// Unknown key ids cause at most one fetch in this time, however many tokens name them.
pub const COOLDOWN: Duration = Duration::from_secs(10);
/// The first pause after a failure; it doubles with each that follows.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause while older keys still serve.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// The longest pause while there are no keys at all, and so no token can be judged.
const LAST_RETRY_EMPTY: Duration = Duration::from_secs(5);
/// A set is not fetched more often than this on its own, even if its `Cache-Control` says so.
const LEAST_REFRESH: Duration = Duration::from_secs(30);

/// What makes two key sets the same: where their keys come from, and whose word we take for it. Nothing that may be tuned.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeySetId {
    /// Where the keys come from.
    pub source: Source,
    /// SHA-256 of the certificate authorities that vouch for it; absent: the system's.
    pub ca: Option<[u8; 32]>,
}

/// Where the keys of an issuer come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A JWK Set.
    Jwks(Arc<str>),
    /// OpenID Connect Discovery: a document that names the set, and must name this issuer.
    Discovery {
        /// The base, to which `/.well-known/openid-configuration` is added.
        url: Arc<str>,
        /// What the document's `issuer` must be.
        issuer: Arc<str>,
    },
}

/// How a set is kept up; what the operator may tune without losing the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upkeep {
    /// For one refresh as a whole.
    pub timeout: Duration,
    /// Refresh at the latest after this.
    pub refresh: Duration,
    /// How long the last good keys serve without news.
    pub max_stale: Duration,
    /// Where the last good keys are kept for the next start.
    pub store: Option<PathBuf>,
}

/// Something that fetches: the real client, or the script of a test.
#[async_trait::async_trait]
pub trait Fetch: std::fmt::Debug + Send + Sync {
    /// One GET without redirects; the error is for the log.
    async fn get(&self, url: &str, etag: Option<&HeaderValue>, deadline: Duration) -> Result<http::Response<Bytes>, String>;
}

#[async_trait::async_trait]
impl Fetch for Client {
    async fn get(&self, url: &str, etag: Option<&HeaderValue>, deadline: Duration) -> Result<http::Response<Bytes>, String> {
        let mut headers = HeaderMap::new();
        if let Some(etag) = etag {
            headers.insert(IF_NONE_MATCH, etag.clone());
        }
        Client::get(self, url, &headers, Limits { deadline, body: MAX_BODY }).await.map_err(|error| error.to_string())
    }
}

/// The keys that are held now, and how old the issuer's word on them is.
#[derive(Debug)]
pub struct Held {
    keys: Arc<JwkSet>,
    generation: u64,
    /// The age at `since`; not zero for keys that were read from the store.
    age: Duration,
    since: Now,
    document: Bytes,
    etag: Option<(String, HeaderValue)>,
}

impl Held {
    /// The keys.
    pub fn keys(&self) -> &JwkSet {
        &self.keys
    }

    /// The number of the document; the same number means the same keys, also across sets: a token that is remembered must not meet the number
    /// of its key again in a set that was left out of the configuration, came back and lacks that key.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How long ago the issuer last confirmed these keys.
    pub fn age(&self, now: Now) -> Duration {
        self.age + now.monotonic.saturating_sub(self.since.monotonic)
    }
}

/// What operators may know of a set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeySetStatus {
    /// Usable keys.
    pub keys: usize,
    /// Keys of the document that are not used, by reason.
    pub skipped: BTreeMap<&'static str, usize>,
    /// When the issuer last confirmed the keys, since the Unix epoch; absent: never.
    pub fetched_at: Option<Duration>,
    /// Failed refreshes in a row.
    pub failures: u64,
    /// Why the last refresh failed; absent when it did not.
    pub last_error: Option<String>,
}

/// The key set of one issuer.
#[derive(Debug)]
pub struct KeySet {
    id: KeySetId,
    fetch: Arc<dyn Fetch>,
    held: ArcSwapOption<Held>,
    /// What the living snapshots ask for; the youngest counts, and a candidate that was refused takes its wish with it.
    wishes: Mutex<Vec<Weak<Upkeep>>>,
    asked: Mutex<Asked>,
    /// The number of the last ask that a finished refresh has answered.
    answered: watch::Sender<u64>,
    wake: Arc<Notify>,
    failure: Mutex<Option<Failure>>,
    next_attempt: AtomicU64,
}

/// Asks for news are numbered, so that each waits for a fetch that began after it. The first stands for the start itself.
#[derive(Debug)]
struct Asked {
    number: u64,
    last: Option<Duration>,
}

#[derive(Debug)]
struct Failure {
    in_a_row: u64,
    error: String,
}

/// Documents that were taken over by all sets of the process.
static GENERATIONS: AtomicU64 = AtomicU64::new(0);

fn next_generation() -> u64 {
    GENERATIONS.fetch_add(1, Ordering::Relaxed) + 1
}

enum News {
    Unchanged,
    Document { keys: JwkSet, document: Bytes, etag: Option<(String, HeaderValue)> },
}

impl KeySet {
    /// A set without keys yet; they come with [`maintain`](Self::maintain).
    pub fn new(id: KeySetId, fetch: Arc<dyn Fetch>) -> Self {
        Self {
            id,
            fetch,
            held: ArcSwapOption::empty(),
            wishes: Mutex::default(),
            asked: Mutex::new(Asked { number: 1, last: None }),
            answered: watch::Sender::new(0),
            wake: Arc::new(Notify::new()),
            failure: Mutex::default(),
            next_attempt: AtomicU64::new(0),
        }
    }

    /// What makes it this set and no other.
    pub fn id(&self) -> &KeySetId {
        &self.id
    }

    /// Asks for this upkeep as long as the returned value lives.
    pub fn keep_up(&self, upkeep: Upkeep) -> Arc<Upkeep> {
        let upkeep = Arc::new(upkeep);
        let mut wishes = lock(&self.wishes);
        wishes.retain(|wish| wish.strong_count() > 0);
        wishes.push(Arc::downgrade(&upkeep));
        upkeep
    }

    /// The keys that are held, if any. The guard must not be held across an await.
    pub fn current(&self) -> Guard<Option<Arc<Held>>> {
        self.held.load()
    }

    /// Waits until the first refresh has ended, well or badly. Later calls return at once.
    pub async fn started(&self, deadline: Duration) {
        if *self.answered.borrow() == 0 {
            self.wait_for(1, deadline).await;
        }
    }

    /// Asks whether the issuer has other keys, and waits for the answer. Within the cooldown of another ask it waits for that one's
    /// answer, if it is still to come, and returns.
    pub async fn ask_for_news(&self, now: Now, deadline: Duration) {
        let number = {
            let mut asked = lock(&self.asked);
            if asked.last.is_none_or(|last| now.monotonic.saturating_sub(last) >= COOLDOWN) {
                asked.last = Some(now.monotonic);
                asked.number += 1;
                self.wake.notify_one();
            }
            asked.number
        };
        self.wait_for(number, deadline).await;
    }

    /// Whether the last refresh failed, so that what we do not know may still be true.
    pub fn is_failing(&self) -> bool {
        lock(&self.failure).is_some()
    }

    /// When it is worth asking again: the next attempt, but not before a second.
    pub fn retry_after(&self, now: Now) -> Duration {
        let next = Duration::from_millis(self.next_attempt.load(Ordering::Relaxed));
        next.saturating_sub(now.monotonic).clamp(FIRST_RETRY, LAST_RETRY)
    }

    /// What operators may know.
    pub fn status(&self) -> KeySetStatus {
        let held = self.current();
        let failure = lock(&self.failure);
        KeySetStatus {
            keys: held.as_ref().map_or(0, |held| held.keys.keys().len()),
            skipped: held.as_ref().map(|held| held.keys.skipped().clone()).unwrap_or_default(),
            fetched_at: held.as_ref().map(|held| held.since.unix.saturating_sub(held.age)),
            failures: failure.as_ref().map_or(0, |failure| failure.in_a_row),
            last_error: failure.as_ref().map(|failure| failure.error.clone()),
        }
    }

    /// The upkeep in the background: reads the store, then fetches at the start, when the answer grows old, and when somebody asks.
    pub async fn maintain(this: Weak<Self>, clock: Clock) {
        let Some(set) = this.upgrade() else { return };
        set.restore(clock()).await;
        let wake = set.wake.clone();
        drop(set);
        loop {
            let Some(set) = this.upgrade() else { return };
            let pause = set.refresh(&clock).await;
            // Only the weak reference is held while waiting; the end of the set wakes us too.
            drop(set);
            let _ = tokio::time::timeout(pause, wake.notified()).await;
        }
    }

    async fn wait_for(&self, number: u64, deadline: Duration) {
        let mut answered = self.answered.subscribe();
        // Late or never makes no difference here: the caller looks at the keys again and judges by what it finds.
        let _ = tokio::time::timeout(deadline, answered.wait_for(|answered| *answered >= number)).await;
    }

    /// One attempt; returns the pause until the next.
    async fn refresh(&self, clock: &Clock) -> Duration {
        let number = lock(&self.asked).number;
        let Some(upkeep) = self.upkeep() else {
            // No snapshot wants the set any more; whoever still waits is told to look.
            self.answered.send_replace(number);
            return LAST_RETRY;
        };
        let outcome = tokio::time::timeout(upkeep.timeout, self.fetch(upkeep.timeout))
            .await
            .unwrap_or_else(|_| Err(format!("no complete answer within {:?}", upkeep.timeout)));
        let now = clock();
        let pause = match outcome {
            Ok((news, max_age)) => {
                self.take_over(news, now);
                if lock(&self.failure).take().is_some() {
                    tracing::info!(source = %self.id.source.url(), "the key set is fetched again");
                }
                self.save(&upkeep).await;
                early(max_age.map_or(upkeep.refresh, |age| age.max(LEAST_REFRESH)).min(upkeep.refresh))
            }
            Err(error) => {
                tracing::warn!(source = %self.id.source.url(), error, "the key set could not be fetched");
                let mut failure = lock(&self.failure);
                let in_a_row = failure.as_ref().map_or(0, |failure| failure.in_a_row) + 1;
                *failure = Some(Failure { in_a_row, error });
                let longest = if self.current().is_some() { LAST_RETRY } else { LAST_RETRY_EMPTY };
                let doubled = FIRST_RETRY * 2u32.pow(u32::try_from(in_a_row - 1).unwrap_or(u32::MAX).min(6));
                early(doubled.min(longest)).max(FIRST_RETRY)
            }
        };
        let next = (now.monotonic + pause).as_millis();
        self.next_attempt.store(u64::try_from(next).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.answered.send_replace(number);
        pause
    }

    fn upkeep(&self) -> Option<Arc<Upkeep>> {
        lock(&self.wishes).iter().rev().find_map(Weak::upgrade)
    }

    /// Asks the issuer. The keys count only when the whole document does: what is empty or garbage leaves the old ones in place.
    async fn fetch(&self, deadline: Duration) -> Result<(News, Option<Duration>), String> {
        let url = match &self.id.source {
            Source::Jwks(url) => url.to_string(),
            Source::Discovery { url, issuer } => self.discover(url, issuer, deadline).await?,
        };
        let known = self.current().as_ref().and_then(|held| held.etag.clone()).filter(|(of, _)| *of == url);
        let response = self.fetch.get(&url, known.as_ref().map(|(_, etag)| etag), deadline).await?;
        let max_age = max_age(response.headers());
        if response.status() == StatusCode::NOT_MODIFIED && known.is_some() {
            return Ok((News::Unchanged, max_age));
        }
        let (etag, document) = (response.headers().get(ETAG).cloned(), body(response)?);
        let keys = JwkSet::parse(&document).map_err(|reason| format!("not a key set: {reason}"))?;
        if keys.keys().is_empty() {
            return Err(format!("no usable key (skipped: {:?})", keys.skipped()));
        }
        Ok((News::Document { keys, document, etag: etag.map(|etag| (url, etag)) }, max_age))
    }

    /// OpenID Connect Discovery 1.0 section 4: where the issuer says its keys are.
    async fn discover(&self, base: &str, issuer: &str, deadline: Duration) -> Result<String, String> {
        let url = if base.contains("/.well-known/") {
            base.to_owned()
        } else {
            format!("{}/.well-known/openid-configuration", base.trim_end_matches('/'))
        };
        let document = json::object(&body(self.fetch.get(&url, None, deadline).await?)?).ok_or("discovery is not a JSON object")?;
        // Section 4.3: or a document for another issuer would lend that one's keys to this.
        if document.get("issuer").and_then(|name| name.as_str()) != Some(issuer) {
            return Err("discovery names another issuer".to_owned());
        }
        let jwks = document.get("jwks_uri").and_then(|uri| uri.as_str()).ok_or("discovery names no jwks_uri")?;
        // What was asked over TLS must not be answered in the clear.
        if !(jwks.starts_with("https://") || jwks.starts_with("http://") && url.starts_with("http://")) {
            return Err("discovery names a jwks_uri without TLS".to_owned());
        }
        Ok(jwks.to_owned())
    }

    fn take_over(&self, news: News, now: Now) {
        let before = self.current();
        let held = match (news, before.as_ref()) {
            (News::Document { keys, document, etag }, _) => {
                Held { keys: Arc::new(keys), generation: next_generation(), age: Duration::ZERO, since: now, document, etag }
            }
            (News::Unchanged, Some(held)) => Held {
                keys: held.keys.clone(),
                generation: held.generation,
                age: Duration::ZERO,
                since: now,
                document: held.document.clone(),
                etag: held.etag.clone(),
            },
            (News::Unchanged, None) => return,
        };
        self.held.store(Some(Arc::new(held)));
    }

    /// Takes over what the last process knew, at its true age.
    async fn restore(&self, now: Now) {
        let Some(path) = self.upkeep().and_then(|upkeep| upkeep.store.clone()) else { return };
        let source = self.id.source.label();
        let shown = path.display().to_string();
        match tokio::task::spawn_blocking(move || read_stored(&path, &source)).await {
            Ok(Ok(Some((fetched_at, document, keys)))) => {
                // Keys from the future have an unknown age, and an unknown age is too old.
                let Some(age) = now.unix.checked_sub(fetched_at) else {
                    tracing::warn!(path = shown, "the stored key set is from the future and not used");
                    return;
                };
                let generation = next_generation();
                self.held.store(Some(Arc::new(Held { keys: Arc::new(keys), generation, age, since: now, document, etag: None })));
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::warn!(path = shown, error, "the stored key set is not used"),
            Err(error) => tracing::warn!(path = shown, %error, "the stored key set is not used"),
        }
    }

    async fn save(&self, upkeep: &Upkeep) {
        let Some(path) = upkeep.store.clone() else { return };
        let Some(held) = self.current().clone() else { return };
        let source = self.id.source.label();
        let shown = path.display().to_string();
        let written = tokio::task::spawn_blocking(move || write_stored(&path, &source, &held)).await;
        if let Err(error) = written.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            tracing::warn!(path = shown, %error, "the key set could not be stored");
        }
    }
}

impl Drop for KeySet {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

impl Source {
    fn url(&self) -> &str {
        match self {
            Self::Jwks(url) | Self::Discovery { url, .. } => url,
        }
    }

    /// What a stored set must have been fetched for: one issuer's file must never become another's keys.
    fn label(&self) -> String {
        match self {
            Self::Jwks(url) => format!("jwks {url}"),
            Self::Discovery { url, issuer } => format!("discovery {url} issuer {issuer}"),
        }
    }
}

fn body(response: http::Response<Bytes>) -> Result<Bytes, String> {
    if response.status() != StatusCode::OK {
        return Err(format!("status {}", response.status().as_u16()));
    }
    if response.body().len() > MAX_BODY {
        return Err(format!("the body is longer than {MAX_BODY} bytes"));
    }
    Ok(response.into_body())
}

/// How long the answer says it is fresh (RFC 9111 section 4.2); nothing when it does not say.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let directives: Vec<String> = headers
        .get_all(CACHE_CONTROL)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|directive| directive.trim().to_ascii_lowercase())
        .collect();
    if directives.iter().any(|directive| directive == "no-cache" || directive == "no-store") {
        return Some(Duration::ZERO);
    }
    let seconds = |text: &str| text.trim_matches('"').parse().ok().map(Duration::from_secs);
    let fresh = directives.iter().find_map(|directive| seconds(directive.strip_prefix("max-age=")?))?;
    let age = headers.get(AGE).and_then(|age| seconds(age.to_str().ok()?)).unwrap_or_default();
    Some(fresh.saturating_sub(age))
}

/// Up to a fifth earlier, so that the nodes of a fleet do not ask together.
fn early(pause: Duration) -> Duration {
    let random = ahash::RandomState::new().hash_one(pause) as u32;
    pause.mul_f64(1.0 - 0.2 * f64::from(random) / f64::from(u32::MAX))
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    source: String,
    /// Seconds since the Unix epoch.
    fetched_at: u64,
    document: String,
}

fn read_stored(path: &Path, source: &str) -> Result<Option<(Duration, Bytes, JwkSet)>, String> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = Vec::new();
    // Escaped, a document can be twice as long as it was.
    file.take(3 * MAX_BODY as u64).read_to_end(&mut text).map_err(|error| error.to_string())?;
    let stored: Stored = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if stored.source != source {
        return Err(format!("it is of another source: {}", stored.source));
    }
    let keys = JwkSet::parse(stored.document.as_bytes())?;
    if keys.keys().is_empty() {
        return Err("no usable key".to_owned());
    }
    Ok(Some((Duration::from_secs(stored.fetched_at), stored.document.into(), keys)))
}

/// Whole or not at all: written beside, then renamed.
fn write_stored(path: &Path, source: &str, held: &Held) -> std::io::Result<()> {
    let document = String::from_utf8_lossy(&held.document).into_owned();
    let stored = Stored { source: source.to_owned(), fetched_at: held.since.unix.saturating_sub(held.age).as_secs(), document };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&serde_json::to_vec(&stored)?)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod script;
#[cfg(test)]
mod tests;
