//! `edgeward keys`: makes, shows and withdraws API keys in the store that the configuration names, while the gateway serves.
//!
//! A secret is printed once, when it is made. Hashes are printed by `export` alone.

use std::io::{Write, stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::ConfigFile;
use super::key_file::{self, KeyFile};
use super::key_quotas;
use crate::authenticators::key_format;
use crate::config::{self, Authenticator, Config, KeyStore as Configured, System};
use crate::live::api_keys::{KeyHash, Record, Source};
use crate::live::database::{OpenError, Opening};
use crate::live::key_store::{KeyStore, StoreError, UsageRow};

/// What to do with API keys.
#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Make a key and print it, alone on standard output and never again
    Create(Create),
    /// Print every key of the store, without secrets
    List(List),
    /// Print one key and how it was used
    Show(Show),
    /// Give a key a new secret and print it; the old one goes on for a while
    Rotate(Rotate),
    /// Withdraw a key, at once and for good
    Revoke(Revoke),
    /// Add the keys of a file, all or none; foreign keys by the SHA-256 of what their owners present
    Import(Import),
    /// Print every key with its hashes, as `import` takes them
    Export(Export),
}

#[derive(Debug, Args)]
pub(crate) struct Place {
    #[command(flatten)]
    config: ConfigFile,
    /// The `api_key` authenticator whose store is meant; may be left out when there is only one
    #[arg(long, value_name = "NAME")]
    authenticator: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    place: Place,
    /// Who answers for what is done with the key
    #[arg(long, value_parser = word)]
    consumer: Arc<str>,
    /// What the key is granted; may be given several times
    #[arg(long = "scope", value_parser = scope)]
    scopes: Vec<Arc<str>>,
    /// A route that the key opens; may be given several times [default: every route that accepts the authenticator]
    #[arg(long = "route", value_name = "NAME")]
    routes: Vec<Arc<str>>,
    /// Addresses that the key may come from; may be given several times [default: any]
    #[arg(long, value_name = "CIDR", value_parser = network)]
    allow: Vec<IpNet>,
    /// The usage plan
    #[arg(long, value_parser = word)]
    plan: Option<Arc<str>>,
    /// When the key ends: a time from now such as 90d, an RFC 3339 time, or `never`
    #[arg(long, value_name = "WHEN", default_value = "90d", value_parser = When::parse_end)]
    expires: When,
    /// When the key begins: a time from now, or an RFC 3339 time [default: now]
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    not_before: Option<When>,
    /// Print the key and its record in one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    place: Place,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    place: Place,
    /// The public id of the key
    id: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rotate {
    #[command(flatten)]
    place: Place,
    /// The public id of the key
    id: String,
    /// How long the old secret goes on
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    grace: Duration,
    /// When the key ends from now on [default: as before]
    #[arg(long, value_name = "WHEN", value_parser = When::parse_end)]
    expires: Option<When>,
    /// Print the key and its record in one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    place: Place,
    /// The public id of the key
    id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    #[command(flatten)]
    place: Place,
    /// A file of keys, in the form of `keys: {file: ...}`
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    place: Place,
}

/// A moment as it is written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Never,
    In(Duration),
    At(u64),
}

impl Keys {
    /// 0 when it was done, 1 when not.
    pub(crate) fn run(&self) -> ExitCode {
        #[expect(clippy::disallowed_methods, reason = "a command is a moment of its own: there is no Clock to take it from")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        match self.run_at(now, &mut stdout(), &mut stderr()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(Failure(lines)) => {
                lines.iter().for_each(|line| eprintln!("edgeward: {line}"));
                ExitCode::FAILURE
            }
        }
    }

    fn run_at(&self, now: u64, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(now, out, err),
            Self::List(list) => list.run(now, out),
            Self::Show(show) => show.run(now, out),
            Self::Rotate(rotate) => rotate.run(now, out, err),
            Self::Revoke(revoke) => revoke.run(now, err),
            Self::Import(import) => import.run(now, err),
            Self::Export(export) => export.run(out),
        }
    }
}

/// Why nothing was done, for the operator.
#[derive(Debug)]
pub(super) struct Failure(pub(super) Vec<String>);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(vec![error.to_string()])
    }
}

pub(super) fn fail<T>(message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure(vec![message.into()]))
}

impl Create {
    fn run(&self, now: u64, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), Failure> {
        let mut store = self.place.open(Opening::Create)?;
        store.check_routes(&self.routes)?;
        let not_before = self.not_before.and_then(|when| when.after(now));
        let expires = self.expires.after(now);
        if expires.is_some_and(|expires| expires <= not_before.unwrap_or(now)) {
            return fail("the key would end before it begins");
        }
        let id = key_format::compose_id(random()?);
        let key = key_format::compose(&store.prefix, &id, &random()?);
        let record = Record {
            id: id.into(),
            sha256: KeyHash::of(&key),
            previous: None,
            consumer: self.consumer.clone(),
            scopes: self.scopes.clone(),
            routes: self.routes.clone(),
            allow: self.allow.clone(),
            plan: self.plan.clone(),
            created: Some(now),
            not_before,
            expires,
            revoked: None,
        };
        store.insert(std::slice::from_ref(&record))?;
        hand_over(&key, &record, self.json, now, out, err)
    }
}

impl List {
    fn run(&self, now: u64, out: &mut dyn Write) -> Result<(), Failure> {
        let store = self.place.open(Opening::Existing)?;
        let mut keys = Vec::new();
        for record in store.records()? {
            let usage = store.usage(&record.id)?;
            keys.push(shown(&record, usage.as_ref(), now));
        }
        if self.json {
            return Ok(writeln!(out, "{:#}", keys.into_iter().map(object).collect::<Value>())?);
        }
        writeln!(out, "{:<16} {:<24} {:<8} {:<20} {:>12} LAST USED", "ID", "CONSUMER", "STATE", "EXPIRES", "REQUESTS")?;
        for key in &keys {
            let cell = |wanted| key.iter().find(|(name, _)| *name == wanted).map_or_else(|| "-".to_owned(), |(_, value)| plain(value));
            let [id, consumer, state, expires, requests, used] = ["id", "consumer", "state", "expires", "requests", "last_used"].map(cell);
            writeln!(out, "{id:<16} {consumer:<24} {state:<8} {expires:<20} {requests:>12} {used}")?;
        }
        Ok(())
    }
}

impl Show {
    fn run(&self, now: u64, out: &mut dyn Write) -> Result<(), Failure> {
        let config = self.place.load()?;
        let store = self.place.open_in(&config, Opening::Existing)?;
        let record = store.find(&self.id)?;
        let mut shown = shown(&record, store.usage(&self.id)?.as_ref(), now);
        let quotas = key_quotas::of(&config, &store.authenticator, &record, now)?;
        if self.json {
            shown.push(("quotas", json!(quotas)));
            return Ok(writeln!(out, "{:#}", object(shown))?);
        }
        write_lines(&shown, out)?;
        Ok(quotas.iter().try_for_each(|quota| writeln!(out, "{:<15}{quota}", "quota:"))?)
    }
}

impl Rotate {
    fn run(&self, now: u64, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), Failure> {
        let mut store = self.place.open(Opening::Existing)?;
        let key = key_format::compose(&store.prefix, &self.id, &random()?);
        let record = store.update(&self.id, |record| {
            if let Some(expires) = self.expires {
                record.expires = expires.after(now);
            }
            if record.revoked.is_some() {
                return Err(StoreError::Refused(format!("{} is revoked; create a new key", record.id)));
            }
            if record.expires.is_some_and(|expires| expires <= now) {
                return Err(StoreError::Refused(format!("{} has expired; --expires gives it more time", record.id)));
            }
            record.rotate(KeyHash::of(&key), now.saturating_add(self.grace.as_secs()));
            Ok(())
        })?;
        hand_over(&key, &record, self.json, now, out, err)
    }
}

impl Revoke {
    fn run(&self, now: u64, err: &mut dyn Write) -> Result<(), Failure> {
        let record = self.place.open(Opening::Existing)?.update(&self.id, |record| {
            record.revoked.get_or_insert(now);
            Ok(())
        })?;
        Ok(writeln!(err, "{} of {} is revoked since {}", record.id, record.consumer, rfc3339(record.revoked.unwrap_or(now)))?)
    }
}

impl Import {
    fn run(&self, now: u64, err: &mut dyn Write) -> Result<(), Failure> {
        let mut records = key_file::read(&self.file)?;
        let mut store = self.place.open(Opening::Create)?;
        for record in &mut records {
            store.check_routes(&record.routes)?;
            record.created.get_or_insert(now);
        }
        store.insert(&records)?;
        Ok(writeln!(err, "{} keys imported", records.len())?)
    }
}

impl Export {
    fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let records = self.place.open(Opening::Existing)?.records()?;
        Ok(out.write_all(key_file::written(&records).as_bytes())?)
    }
}

/// The store of an authenticator, and what the configuration says of its keys.
#[derive(Debug)]
struct OpenStore {
    authenticator: Arc<str>,
    prefix: Arc<str>,
    routes: Vec<Arc<str>>,
    place: StorePlace,
}

#[derive(Debug)]
enum StorePlace {
    Database(KeyStore),
    File(KeyFile),
}

/// Long enough for an import of many keys by somebody else.
const PATIENCE: Duration = Duration::from_secs(30);

impl Place {
    fn open(&self, opening: Opening) -> Result<OpenStore, Failure> {
        self.open_in(&self.load()?, opening)
    }

    fn load(&self) -> Result<Config, Failure> {
        config::load(&self.config.path(), &System).config.map_err(problems)
    }

    fn open_in(&self, config: &Config, opening: Opening) -> Result<OpenStore, Failure> {
        let stores: Vec<_> = config
            .authenticators
            .iter()
            .filter_map(|(name, authenticator)| match authenticator {
                Authenticator::ApiKey(api_key) => Some((&name.value, api_key)),
                _ => None,
            })
            .collect();
        let names = || stores.iter().map(|(name, _)| &***name);
        let (authenticator, api_key) = match (&self.authenticator, &*stores) {
            (_, []) => return fail("the configuration has no api_key authenticator"),
            (None, [only]) => only,
            (None, _) => {
                return fail(format!("which authenticator? --authenticator names one of {}", names().collect::<Vec<_>>().join(", ")));
            }
            (Some(wanted), _) => match stores.iter().find(|(name, _)| ***name == **wanted) {
                Some(found) => found,
                None => return fail(unknown("api_key authenticator", wanted, names())),
            },
        };
        let place = match &api_key.keys.value {
            Configured::Database(path) => StorePlace::Database(KeyStore::open(path, opening, PATIENCE)?),
            Configured::File { file, .. } => StorePlace::File(KeyFile::new(&file.path)),
        };
        let routes = config.routes.iter().map(|route| route.name.value.clone()).collect();
        Ok(OpenStore { authenticator: Arc::clone(authenticator), prefix: api_key.prefix.clone(), routes, place })
    }
}

impl OpenStore {
    /// A key for a route that does not exist opens nothing: most likely a slip.
    fn check_routes(&self, routes: &[Arc<str>]) -> Result<(), Failure> {
        match routes.iter().find(|route| !self.routes.contains(route)) {
            Some(missing) => fail(unknown("route", missing, self.routes.iter().map(|route| &**route))),
            None => Ok(()),
        }
    }

    fn records(&self) -> Result<Vec<Record>, Failure> {
        let store = match &self.place {
            StorePlace::File(file) => return file.read(),
            StorePlace::Database(store) => store,
        };
        let mut unreadable = Vec::new();
        let mut records = Vec::new();
        store.read_since(-1, |record| match record {
            Ok(record) => records.push(record),
            Err(id) => unreadable.push(format!("the record of {id} cannot be read")),
        })?;
        if unreadable.is_empty() { Ok(records) } else { Err(Failure(unreadable)) }
    }

    fn find(&self, id: &str) -> Result<Record, Failure> {
        match &self.place {
            StorePlace::Database(store) => Ok(store.find(id)?),
            StorePlace::File(file) => {
                Ok(file.read()?.into_iter().find(|record| *record.id == *id).ok_or_else(|| StoreError::Unknown(id.into()))?)
            }
        }
    }

    fn usage(&self, id: &str) -> Result<Option<UsageRow>, Failure> {
        match &self.place {
            StorePlace::Database(store) => Ok(store.usage(id)?),
            StorePlace::File(file) => match KeyStore::open(&Source::File(file.path().into()).usage_path(), Opening::Existing, PATIENCE) {
                Err(StoreError::Open(OpenError::Missing { .. })) => Ok(None),
                store => Ok(store?.usage(id)?),
            },
        }
    }

    fn insert(&mut self, records: &[Record]) -> Result<(), Failure> {
        match &mut self.place {
            StorePlace::Database(store) => Ok(store.insert(records)?),
            StorePlace::File(file) => file.insert(records),
        }
    }

    fn update(&mut self, id: &str, change: impl FnOnce(&mut Record) -> Result<(), StoreError>) -> Result<Record, Failure> {
        match &mut self.place {
            StorePlace::Database(store) => Ok(store.update(id, change)?),
            StorePlace::File(file) => file.update(id, change),
        }
    }
}

/// The only place that prints a secret.
fn hand_over(key: &str, record: &Record, json: bool, now: u64, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), Failure> {
    let record = shown(record, None, now);
    if json {
        writeln!(out, "{:#}", json!({"key": key, "record": object(record)}))?;
    } else {
        writeln!(out, "{key}")?;
        write_lines(&record, err)?;
    }
    Ok(out.flush()?)
}

/// A record as it is shown, in the order of reading.
type Shown = Vec<(&'static str, Value)>;

/// A record for people and programs: no hash, times in RFC 3339, what is not set left out.
fn shown(record: &Record, usage: Option<&UsageRow>, now: u64) -> Shown {
    let state = match record {
        Record { revoked: Some(_), .. } => "revoked",
        Record { expires: Some(expires), .. } if *expires <= now => "expired",
        Record { not_before: Some(start), .. } if *start > now => "not_yet",
        _ => "active",
    };
    let times = |time: Option<u64>| time.map(rfc3339);
    let words = |words: &[Arc<str>]| words.iter().map(|word| &**word).collect::<Value>();
    let fields = [
        ("id", json!(&*record.id)),
        ("consumer", json!(&*record.consumer)),
        ("state", json!(state)),
        ("scopes", words(&record.scopes)),
        ("routes", words(&record.routes)),
        ("allow", record.allow.iter().map(IpNet::to_string).collect()),
        ("plan", json!(record.plan.as_deref())),
        ("created", json!(times(record.created))),
        ("not_before", json!(times(record.not_before))),
        ("expires", json!(times(record.expires))),
        ("revoked", json!(times(record.revoked))),
        ("previous_ends", json!(times(record.previous.map(|previous| previous.ends).filter(|ends| *ends > now)))),
        ("requests", json!(usage.map(|usage| usage.requests))),
        ("last_used", json!(times(usage.map(|usage| usage.last_used)))),
        ("last_address", json!(usage.and_then(|usage| usage.last_address))),
    ];
    let is_set = |value: &Value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty());
    fields.into_iter().filter(|(_, value)| is_set(value)).collect()
}

fn object(shown: Shown) -> Value {
    shown.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn write_lines(shown: &Shown, to: &mut dyn Write) -> std::io::Result<()> {
    shown.iter().try_for_each(|(name, value)| writeln!(to, "{:<15}{}", format!("{name}:"), plain(value)))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

pub(super) fn problems(problems: Vec<config::Problem>) -> Failure {
    Failure(problems.iter().map(ToString::to_string).collect())
}

fn unknown<'a>(kind: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let hint = config::nearest(name, known).map_or_else(String::new, |nearest| format!(" (did you mean {nearest:?}?)"));
    format!("there is no {kind} {name:?}{hint}")
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = Zeroizing::new([0; N]);
    openssl::rand::rand_bytes(&mut *bytes)?;
    Ok(*bytes)
}

impl When {
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
            return u64::try_from(time.unix_timestamp()).map(Self::At).map_err(|_| "before 1970".to_owned());
        }
        duration(text).map(Self::In).map_err(|_| "neither a duration such as 90d nor a time such as 2027-02-21T00:00:00Z".to_owned())
    }

    fn parse_end(text: &str) -> Result<Self, String> {
        if text == "never" { Ok(Self::Never) } else { Self::parse(text) }
    }

    fn after(self, now: u64) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::In(duration) => Some(now.saturating_add(duration.as_secs())),
            Self::At(time) => Some(time),
        }
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let unit = |unit| match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3_600),
        "d" => Some(86_400),
        _ => None,
    };
    let split = text.find(|character: char| !character.is_ascii_digit()).and_then(|at| text.split_at_checked(at));
    let seconds = split.and_then(|(number, rest)| number.parse::<u64>().ok()?.checked_mul(unit(rest)?));
    // A century: more is a slip, and no RFC 3339 year must overflow.
    seconds
        .filter(|seconds| *seconds <= 36_525 * 86_400)
        .map(Duration::from_secs)
        .ok_or_else(|| "not a duration such as 10m, 24h or 90d".to_owned())
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse().ok().map(|address: std::net::IpAddr| IpNet::from(address.to_canonical()));
    text.parse().ok().or_else(address).ok_or_else(|| "not an address or a network such as 203.0.113.0/24".to_owned())
}

/// What becomes a header and a log field.
pub(super) fn word(text: &str) -> Result<Arc<str>, String> {
    let sound = (1..=256).contains(&text.len()) && text.trim() == text && !text.chars().any(char::is_control);
    if sound { Ok(text.into()) } else { Err("empty, too long, or with characters that are not to be seen".to_owned()) }
}

/// `scope-token` of RFC 6749 section 3.3.
pub(super) fn scope(text: &str) -> Result<Arc<str>, String> {
    let sound = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
    if sound { Ok(text.into()) } else { Err("a scope is one word of visible ASCII without quotes or backslashes".to_owned()) }
}

/// A time as people and YAML read it.
pub(super) fn rfc3339(unix: u64) -> String {
    let time = i64::try_from(unix).ok().and_then(|unix| OffsetDateTime::from_unix_timestamp(unix).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;
    use crate::authenticators::Verdict;
    use crate::authenticators::api_key::ApiKey;
    use crate::live::LiveState;
    use crate::request::{Client, Now, Request};

    const NOW: u64 = 1_800_000_000;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: Keys,
    }

    #[derive(Parser)]
    struct ConfigOnly {
        #[command(flatten)]
        config: ConfigFile,
    }

    /// A folder with a configuration that has one store of each kind.
    struct Operator {
        folder: tempfile::TempDir,
        now: u64,
    }

    impl Operator {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("keys.yaml"), "# Keys of partners.\n# Ask before you add one.\n\nkeys: []\n").unwrap();
            std::fs::write(
                folder.path().join("edgeward.yaml"),
                "listeners: [{address: 127.0.0.1:8080}]\n\
                 upstreams: {demo: {builtin: echo}}\n\
                 authenticators:\n  \
                   partners: {api_key: {keys: {database: data/keys.db}}}\n  \
                   staff: {api_key: {keys: {file: keys.yaml}, prefix: ck_staff_}}\n\
                 policies: {all: {authenticate: [partners, staff]}}\n\
                 routes:\n  \
                   - {name: orders, path: /orders, policy: all, upstream: demo}\n  \
                   - {name: invoices, path: /invoices, policy: all, upstream: demo}\n",
            )
            .unwrap();
            Self { folder, now: NOW }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// Runs one command; standard output, standard error, and why it failed.
        fn run(&self, store: &str, command: &str) -> (String, String, Result<(), String>) {
            let config = self.path("edgeward.yaml");
            let words = std::iter::once("keys").chain(command.split_whitespace());
            let line = words.map(str::to_owned).chain(["-c".into(), config.display().to_string(), "--authenticator".into(), store.into()]);
            let line = match Line::try_parse_from(line) {
                Ok(line) => line,
                Err(error) => return (String::new(), String::new(), Err(error.to_string())),
            };
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let done = line.command.run_at(self.now, &mut out, &mut err).map_err(|failure| failure.0.join("\n"));
            (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), done)
        }

        fn done(&self, store: &str, command: &str) -> (String, String) {
            let (out, err, done) = self.run(store, command);
            done.unwrap_or_else(|failure| panic!("{command}: {failure}"));
            (out, err)
        }

        fn refused(&self, store: &str, command: &str) -> String {
            let (out, _, done) = self.run(store, command);
            assert_eq!(out, "", "{command}");
            done.expect_err(command)
        }

        /// A new key and its id.
        fn create(&self, store: &str, options: &str) -> (String, String) {
            let (out, _) = self.done(store, &format!("create --consumer acme --json {options}"));
            let answer: Value = serde_json::from_str(&out).unwrap();
            (answer["key"].as_str().unwrap().to_owned(), answer["record"]["id"].as_str().unwrap().to_owned())
        }

        /// What the gateway says of a key: its id, or why not.
        fn present(&self, store: &str, key: &str, route: &str, now: u64) -> Result<String, &'static str> {
            let config = config::load(&self.path("edgeward.yaml"), &System).config.unwrap();
            let named = config.authenticators.iter().find(|(name, _)| *name.value == *store).unwrap();
            let Authenticator::ApiKey(api_key) = &named.1 else { panic!() };
            let live = LiveState::default();
            let api_key = ApiKey::new(store.into(), api_key, &live);
            for (_, keys) in live.api_keys.living() {
                keys.refresh().unwrap();
            }
            let headers = http::HeaderMap::from_iter([(http::HeaderName::from_static("x-api-key"), key.parse().unwrap())]);
            let client = Client { address: "203.0.113.9".parse().unwrap(), through_trusted_proxy: false };
            let request = Request { route, ..Request::new(&http::Method::GET, "h", "/", &headers, &client) };
            match api_key.authenticate(&request, Now { monotonic: Duration::ZERO, unix: Duration::from_secs(now) }) {
                Verdict::Accept(proof) => Ok(proof.identity.key_id.as_deref().unwrap().to_owned()),
                Verdict::Reject(rejection) => Err(rejection.reason().unwrap_or(rejection.code())),
                Verdict::Pass => Err("pass"),
            }
        }
    }

    #[test]
    fn a_new_key_stands_alone_on_standard_output_and_opens_what_it_was_made_for() {
        let operator = Operator::new();
        for store in ["partners", "staff"] {
            let options = "--consumer acme --scope orders:read --scope orders:write --route orders --plan gold \
                           --allow 203.0.113.0/24 --allow 192.0.2.7";
            let (out, err) = operator.done(store, &format!("create {options}"));
            let key = out.strip_suffix('\n').unwrap();
            assert!(key.lines().count() == 1 && key_format::checksum_holds(key), "{out}");
            assert!(!err.contains(&key[30..50]) && err.contains("scopes:        orders:read orders:write"), "{err}");
            let id = operator.present(store, key, "orders", NOW).unwrap();
            assert!(key.starts_with(&format!("ck_{}_{id}_", if store == "staff" { "staff" } else { "live" })));
            assert_eq!(operator.present(store, key, "invoices", NOW), Err("route"));
            assert_eq!(operator.present(store, key, "orders", NOW + 90 * 86_400), Err("expired"));
            assert!(operator.present(store, key, "orders", NOW + 90 * 86_400 - 1).is_ok());
        }
    }

    #[test]
    fn nothing_but_export_shows_a_hash_and_nothing_shows_a_secret_again() {
        let operator = Operator::new();
        for store in ["partners", "staff"] {
            let (key, id) = operator.create(store, "--expires never");
            let hash: String = KeyHash::of(&key).0.iter().map(|byte| format!("{byte:02x}")).collect();
            for command in ["list", "list --json", &format!("show {id}"), &format!("show {id} --json"), &format!("revoke {id}")] {
                let (out, err) = operator.done(store, command);
                let said = out + &err;
                assert!(said.contains(&id) && !said.contains(&hash[..16]) && !said.contains(&key[30..50]), "{command}: {said}");
            }
            let (exported, _) = operator.done(store, "export");
            assert!(exported.contains(&hash) && !exported.contains(&key[30..50]));
        }
    }

    #[test]
    fn a_rotated_key_works_beside_the_new_one_until_its_grace_ends() {
        let mut operator = Operator::new();
        for store in ["partners", "staff"] {
            operator.now = NOW;
            let (old, id) = operator.create(store, "");
            operator.now += 100;
            let (out, err) = operator.done(store, &format!("rotate {id} --grace 10s"));
            let new = out.trim_end();
            assert!(err.contains("previous_ends: 2027-01-15T08:01:50Z"), "{err}");
            assert_eq!(operator.present(store, new, "orders", NOW + 100).unwrap(), id);
            assert_eq!(operator.present(store, &old, "orders", NOW + 109).unwrap(), id);
            assert_eq!(operator.present(store, &old, "orders", NOW + 110), Err("rotated"));
            assert_eq!(operator.present(store, new, "orders", NOW + 110).unwrap(), id);

            operator.now = NOW + 90 * 86_400;
            assert!(operator.refused(store, &format!("rotate {id}")).contains("has expired; --expires"));
            let (out, _) = operator.done(store, &format!("rotate {id} --expires 1h"));
            assert_eq!(operator.present(store, out.trim_end(), "orders", operator.now + 3_599).unwrap(), id);
            operator.done(store, &format!("revoke {id}"));
            assert_eq!(operator.present(store, out.trim_end(), "orders", operator.now), Err("revoked"));
            assert!(operator.refused(store, &format!("rotate {id}")).contains("is revoked"));
        }
    }

    #[test]
    fn what_one_store_exports_another_imports_whole_or_not_at_all() {
        let operator = Operator::new();
        operator.create("partners", "--expires never");
        let (_, rotated) = operator.create("partners", "--scope a:b --route orders --allow 2001:db8::/32 --plan gold --not-before 1d");
        operator.done("partners", &format!("rotate {rotated}"));
        let (_, revoked) = operator.create("partners", "");
        operator.done("partners", &format!("revoke {revoked}"));
        let (exported, _) = operator.done("partners", "export");
        std::fs::write(operator.path("moved.yaml"), &exported).unwrap();
        let import = format!("import {}", operator.path("moved.yaml").display());
        let (_, said) = operator.done("staff", &import);
        assert_eq!(said, "3 keys imported\n");
        let sorted = |text: String| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(operator.done("staff", "export").0), sorted(exported));
        for store in ["partners", "staff"] {
            let refused = operator.refused(store, &import);
            assert!(refused.starts_with("already known: ") && refused.matches(", ").count() == 2, "{refused}");
        }
    }

    #[test]
    fn foreign_keys_come_in_by_their_hash() {
        let operator = Operator::new();
        // printf %s legacy-key-0001 | sha256sum
        let hash = "d91e74bdbdea5047882f23c282e665a6b358847dace6ef29a9b1d840397367d2";
        let file = operator.path("foreign.yaml");
        std::fs::write(&file, format!("keys:\n  - {{id: legacy-1, sha256: {hash}, consumer: acme}}\n")).unwrap();
        operator.done("partners", &format!("import {}", file.display()));
        assert_eq!(operator.present("partners", "legacy-key-0001", "orders", NOW).unwrap(), "legacy-1");
        let bad = operator.path("bad.yaml");
        std::fs::write(
            &bad,
            format!("keys:\n  - {{id: new, sha256: {}, consumer: acme}}\n  - {{id: worse, sha256: 12, consumer: acme}}\n", "0".repeat(64)),
        )
        .unwrap();
        assert!(operator.refused("partners", &format!("import {}", bad.display())).contains("bad.yaml:3:"));
        assert!(operator.refused("partners", "show new").contains("no key"));
    }

    #[test]
    fn a_key_file_keeps_its_head_its_mode_and_its_link() {
        let operator = Operator::new();
        let (link, target) = (operator.path("keys.yaml"), operator.path("target.yaml"));
        std::fs::rename(&link, &target).unwrap();
        std::fs::set_permissions(&target, PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        operator.create("staff", "");
        let text = std::fs::read_to_string(&target).unwrap();
        assert!(text.starts_with("# Keys of partners.\n# Ask before you add one.\n\nkeys:\n  - {id: \""), "{text}");
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(target.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        let left: Vec<_> = operator.folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "{left:?}");
    }

    #[test]
    fn usage_is_shown_as_far_as_it_was_written_down() {
        let operator = Operator::new();
        let (_, id) = operator.create("partners", "");
        let row = UsageRow { id: id.as_str().into(), requests: 41, last_used: NOW, last_address: Some("203.0.113.9".parse().unwrap()) };
        for (store, path) in [("partners", "data/keys.db"), ("staff", "keys.yaml.usage.db")] {
            KeyStore::open(&operator.path(path), Opening::Create, PATIENCE).unwrap().add_usage(std::slice::from_ref(&row)).unwrap();
            if store == "staff" {
                std::fs::write(operator.path("keys.yaml"), operator.done("partners", "export").0).unwrap();
            }
            let (out, _) = operator.done(store, &format!("show {id}"));
            assert!(out.contains("requests:      41\nlast_used:     2027-01-15T08:00:00Z\nlast_address:  203.0.113.9\n"), "{out}");
        }
    }

    #[test]
    fn a_slip_changes_nothing_and_names_what_was_meant() {
        let operator = Operator::new();
        operator.create("partners", "");
        operator.create("staff", "");
        let before = [operator.done("partners", "export"), operator.done("staff", "export")];
        let rows = [
            ("create --consumer acme --route order", r#"there is no route "order" (did you mean "orders"?)"#),
            ("create --consumer acme --not-before 2d --expires 1d", "would end before it begins"),
            ("create --consumer acme --expires 2020-01-01T00:00:00Z", "would end before it begins"),
            ("create --consumer acme --expires 90", "neither a duration"),
            ("create --consumer acme --not-before never", "neither a duration"),
            ("create --consumer acme --allow 203.0.113.0/33", "not an address"),
            ("create --consumer acme --scope a\"b", "a scope is one word"),
            ("create", "--consumer"),
            ("revoke 7f3k2m9q", r#"there is no key with the id "7f3k2m9q""#),
            ("import /does/not/exist", "/does/not/exist"),
        ];
        for (command, expected) in rows {
            for store in ["partners", "staff"] {
                let refused = operator.refused(store, command);
                assert!(refused.contains(expected), "{command}: {refused}");
            }
        }
        assert!(operator.refused("partner", "list").contains(r#"there is no api_key authenticator "partner" (did you mean "partners"?)"#));
        assert_eq!([operator.done("partners", "export"), operator.done("staff", "export")], before);
        let config = config::load(&operator.path("edgeward.yaml"), &System).config.unwrap();
        let place = Place { config: ConfigOnly::parse_from(["keys"]).config, authenticator: None };
        let Err(Failure(said)) = place.open_in(&config, Opening::Existing) else { panic!("chosen by chance") };
        assert_eq!(said, ["which authenticator? --authenticator names one of partners, staff"]);
    }

    #[test]
    fn two_operators_at_once_lose_nothing() {
        let operator = Operator::new();
        for store in ["partners", "staff"] {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| (0..5).for_each(|_| drop(operator.create(store, ""))));
                }
            });
            assert_eq!(operator.done(store, "export").0.lines().count(), 21);
        }
    }

    #[test]
    fn moments_are_read_as_the_grammar_has_them() {
        let rows = [
            ("90d", Ok(When::In(Duration::from_secs(7_776_000)))),
            ("0s", Ok(When::In(Duration::ZERO))),
            ("24h", Ok(When::In(Duration::from_secs(86_400)))),
            ("2027-01-15T08:00:00Z", Ok(When::At(NOW))),
            ("2027-01-15T09:00:00+01:00", Ok(When::At(NOW))),
            ("never", Ok(When::Never)),
            ("", Err(())),
            ("d", Err(())),
            ("90", Err(())),
            ("-1d", Err(())),
            ("1.5d", Err(())),
            ("1y", Err(())),
            ("1w", Err(())),
            ("99999999999999999999d", Err(())),
            ("1000000d", Err(())),
            ("1969-12-31T23:59:59Z", Err(())),
            ("2027-01-15", Err(())),
        ];
        for (text, expected) in rows {
            assert_eq!(When::parse_end(text).map_err(drop), expected, "{text}");
        }
        assert_eq!(rfc3339(NOW), "2027-01-15T08:00:00Z");
        assert_eq!(network("::ffff:192.0.2.7").unwrap(), "192.0.2.7/32".parse().unwrap());
    }
}
