//! Watch, load, compile, swap; on any error the configuration that serves keeps serving.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::{self, Config, Place, Problem, Source};
use crate::issuer;
use crate::live::LiveState;
use crate::metrics::Metrics;
use crate::request::{Clock, Now};
use crate::secret::Secret;
use crate::snapshot::{self, Slot, Snapshot};

/// How often the watched files are looked at. Two looks must agree before a change counts, so that a half-written file is not read:
/// a change is applied within a second and what it takes to compile.
const LOOK: Duration = Duration::from_millis(500);

/// A configuration that was read, and the files it was read from.
pub struct Candidate {
    /// The configuration with its snapshot, or everything that is wrong with it.
    pub result: Result<(Config, Snapshot), Vec<Problem>>,
    /// Every file that was read or could not be.
    pub files: Vec<PathBuf>,
    /// Whether the configuration itself could be read.
    pub readable: bool,
}

impl Candidate {
    /// Reads and compiles. `edgeward check`, start, reload and the tests all come through here.
    pub fn read(path: &Path, source: &dyn Source, live: &LiveState, metrics: &Metrics) -> Self {
        let loaded = config::load(path, source);
        let result = loaded.config.and_then(|config| {
            let snapshot = snapshot::compile(&config, live, metrics)?;
            Ok((config, snapshot))
        });
        Self { result, files: loaded.files, readable: loaded.readable }
    }
}

/// For whom a configuration is made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// For a process that serves nobody yet: a Redis that is away may come, and nobody is admitted until then.
    Start,
    /// For one that serves: what would admit nobody does not take over.
    Reload,
}

/// Opens the stores that must have been read before anybody is served under this configuration. Blocks.
///
/// # Errors
/// What could not be opened, as a problem of the configuration that names it.
pub fn open_stores(config: &Config, live: &LiveState, occasion: Occasion, now: Now) -> Result<(), Vec<Problem>> {
    let failed = live.ledgers.living().into_iter().filter_map(|(_, ledger)| ledger.open(now).err());
    let mut problems: Vec<_> = failed.map(|error| Problem::at(&place_in(config, "quotas.database"), error.to_string())).collect();
    for (_, revocations) in live.revocations.living() {
        match revocations.open(now) {
            Err(error) if occasion == Occasion::Reload || !revocations.may_come_later() => {
                problems.push(Problem::at(&place_in(config, "revocation"), error.to_string()));
            }
            _ => {}
        }
    }
    if let Some(config) = &config.issuer {
        let keys = issuer::signing_keys(config, live).open(issuer::terms(&config.signing), now);
        problems.extend(keys.err().map(|error| Problem::at(&config.url.place, format!("`signing`: {error}"))));
        let clients = config.oauth2.as_ref().and_then(|oauth2| issuer::clients(&oauth2.clients.database, live).open().err());
        problems.extend(clients.map(|error| Problem::at(&config.url.place, format!("`oauth2.clients`: {error}"))));
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// How the configuration that serves stands to what is on disk.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// The number of the configuration that serves, from 1.
    pub generation: u64,
    /// When it was applied, since the Unix epoch.
    pub applied: Duration,
    /// What is wrong with the candidate on disk; empty when it serves.
    pub problems: Vec<Problem>,
}

/// Applies candidates to the slot, one at a time.
pub struct Reloader {
    path: PathBuf,
    source: Box<dyn Source + Send + Sync>,
    live: Arc<LiveState>,
    slot: Arc<Slot>,
    metrics: Arc<Metrics>,
    clock: Clock,
    /// What cannot change without a restart.
    fixed: Fixed,
    state: Mutex<State>,
}

struct State {
    status: Status,
    files: BTreeSet<PathBuf>,
    /// The files as they were when they were last read.
    read: Fingerprint,
    /// The files as the last look found them.
    seen: Fingerprint,
}

impl Reloader {
    /// Takes over from the first configuration.
    pub fn new(
        path: PathBuf,
        source: Box<dyn Source + Send + Sync>,
        first: (&Config, Vec<PathBuf>),
        live: Arc<LiveState>,
        slot: Arc<Slot>,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let (config, files) = first;
        let files: BTreeSet<PathBuf> = files.into_iter().collect();
        let applied = clock().unix;
        let read = fingerprint(&files);
        metrics.config_current.set(1);
        metrics.config_generation.set(1);
        metrics.config_applied.set(i64::try_from(applied.as_secs()).unwrap_or(i64::MAX));
        let state = State { status: Status { generation: 1, applied, problems: Vec::new() }, files, seen: read.clone(), read };
        Self { path, source, live, slot, metrics, clock, fixed: Fixed::of(config), state: Mutex::new(state) }
    }

    /// How things stand.
    pub fn status(&self) -> Status {
        self.state().status.clone()
    }

    /// Reads the candidate and serves it, whole or not at all.
    pub fn reload(&self) {
        let mut state = self.state();
        // Taken before reading: what changes meanwhile is seen as a change again.
        let before = fingerprint(&state.files);
        let candidate = Candidate::read(&self.path, &*self.source, &self.live, &self.metrics);
        let result = candidate.result.and_then(|(config, snapshot)| match self.fixed.changed(&config) {
            changed if changed.is_empty() => open_stores(&config, &self.live, Occasion::Reload, (self.clock)()).map(|()| snapshot),
            changed => Err(changed),
        });
        match result {
            Ok(snapshot) => {
                snapshot.activate();
                self.slot.store(snapshot);
                let applied = (self.clock)().unix;
                state.status = Status { generation: state.status.generation + 1, applied, problems: Vec::new() };
                state.files = candidate.files.into_iter().collect();
                self.metrics.reloads_applied.inc();
                self.metrics.config_current.set(1);
                self.metrics.config_generation.set(i64::try_from(state.status.generation).unwrap_or(i64::MAX));
                self.metrics.config_applied.set(i64::try_from(applied.as_secs()).unwrap_or(i64::MAX));
                tracing::info!(generation = state.status.generation, "configuration applied");
            }
            Err(problems) => {
                for problem in &problems {
                    tracing::error!("{problem}");
                }
                tracing::error!(problems = problems.len(), "candidate configuration refused; the last good one keeps serving");
                state.status.problems = problems;
                // A file that only the refused candidate names may be the one that gets mended.
                state.files.extend(candidate.files);
                self.metrics.reloads_refused.inc();
                self.metrics.config_current.set(0);
            }
        }
        let known = before.0.len() == state.files.len();
        state.read = if known { before } else { fingerprint(&state.files) };
        state.seen = state.read.clone();
    }

    /// Whether the files differ from what was read, and two looks agree on how.
    fn changed(&self) -> bool {
        let mut state = self.state();
        let now = fingerprint(&state.files);
        let settled = now == state.seen;
        state.seen = now;
        settled && state.seen != state.read
    }

    /// Reloads on a change and on `SIGHUP`, for ever.
    pub async fn watch(self: Arc<Self>) -> std::io::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                _ = looks.tick() => false,
                _ = hangup.recv() => true,
            };
            let reloader = Arc::clone(&self);
            let work = tokio::task::spawn_blocking(move || {
                if asked || reloader.changed() {
                    reloader.reload();
                }
            });
            if let Err(error) = work.await {
                tracing::error!(%error, "a reload ended early; the last good configuration keeps serving");
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the process is built around: its sockets and its workers.
struct Fixed {
    server: String,
    listeners: Vec<String>,
    /// With the token: a new one that is not asked for would leave the old one good, and nobody told.
    admin: Option<(SocketAddr, Option<Secret>)>,
}

impl Fixed {
    fn of(config: &Config) -> Self {
        Self {
            // The room for tokens is live: it may change.
            server: format!("{:?}", config::Server { token_cache: 0, ..config.server.clone() }),
            listeners: config.listeners.iter().map(listener).collect(),
            admin: config.admin.as_ref().map(|admin| (*admin.address, admin.token.clone())),
        }
    }

    fn changed(&self, config: &Config) -> Vec<Problem> {
        let other = Self::of(config);
        let parts = [
            ("server", self.server != other.server),
            ("listeners", self.listeners != other.listeners),
            ("admin", self.admin != other.admin),
        ];
        let changed = parts.iter().filter(|(_, changed)| *changed);
        changed
            .map(|(path, _)| {
                Problem::at(&place_in(config, path), "changed, which needs a restart").expected("the values this process was started with")
            })
            .collect()
    }
}

/// The place of what the whole configuration is to blame for.
fn place_in(config: &Config, path: &str) -> Place {
    let file = config.listeners.first().map(|listener| Arc::clone(&listener.address.place.file)).unwrap_or_default();
    Place { file, line: 1, column: 1, path: path.into() }
}

/// The shape of a listener; its certificates may change, and whose it accepts, but not whether it asks for any.
fn listener(listener: &config::Listener) -> String {
    let tls = match &listener.tls {
        Some(tls) if tls.client_certificates.is_some() => "tls with client certificates",
        Some(_) => "tls",
        None => "plain",
    };
    format!("{} {tls}", *listener.address)
}

/// Which files stand there. Symbolic links are followed, so that an editor's rename and the swap of a mounted volume both show.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fingerprint(Vec<Option<Stat>>);

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stat {
    device: u64,
    inode: u64,
    length: u64,
    /// Seconds and nanoseconds: of the content, and of the inode, which no tool can set back.
    modified: (i64, i64),
    changed: (i64, i64),
}

fn fingerprint(files: &BTreeSet<PathBuf>) -> Fingerprint {
    use std::os::unix::fs::MetadataExt;
    let stat = |path: &PathBuf| {
        let found = std::fs::metadata(path).ok()?;
        Some(Stat {
            device: found.dev(),
            inode: found.ino(),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    };
    Fingerprint(files.iter().map(stat).collect())
}
