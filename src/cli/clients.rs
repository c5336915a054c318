//! `edgeward clients`: makes, shows and withdraws clients of the token endpoint, while the gateway serves.
//!
//! A secret is printed once, when it is made.

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::ConfigFile;
use super::keys::{Failure, duration, fail, problems, random, rfc3339, scope, word};
use crate::authenticators::key_format;
use crate::config::{self, System};
use crate::live::api_keys::{KeyHash, Previous};
use crate::live::database::Opening;
use crate::live::key_store::StoreError;
use crate::live::oauth_clients::{ClientRecord, ClientStore};

/// What new secrets begin with, so that a scanner knows them.
const PREFIX: &str = "cs_live_";

/// What to do with clients.
#[derive(Debug, Subcommand)]
pub(crate) enum Clients {
    /// Make a client and print its secret, alone on standard output and never again
    Create(Create),
    /// Print every client, without secrets
    List(List),
    /// Give a client a new secret and print it; the old one goes on for a while
    Rotate(Rotate),
    /// Withdraw a client and the tokens it was given, at once and for good
    Revoke(Revoke),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    config: ConfigFile,
    /// The client_id [default: a random one]
    #[arg(long, value_parser = word)]
    id: Option<Arc<str>>,
    /// A scope that it may ask for; may be given several times
    #[arg(long = "scope", value_parser = scope)]
    scopes: Vec<Arc<str>>,
    /// For whom it may ask; may be given several times
    #[arg(long = "audience", value_parser = word, required = true)]
    audiences: Vec<Arc<str>>,
    /// Print the id, the secret and the record in one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    config: ConfigFile,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rotate {
    #[command(flatten)]
    config: ConfigFile,
    /// The client_id
    id: String,
    /// How long the old secret goes on
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    grace: Duration,
    /// Print the id, the secret and the record in one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    config: ConfigFile,
    /// The client_id
    id: String,
}

impl Clients {
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
            Self::List(list) => list.run(out),
            Self::Rotate(rotate) => rotate.run(now, out, err),
            Self::Revoke(revoke) => revoke.run(now, err),
        }
    }
}

impl Create {
    fn run(&self, now: u64, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), Failure> {
        let mut store = open(&self.config, Opening::Create)?;
        let id = match &self.id {
            Some(id) => id.clone(),
            None => key_format::compose_id(random()?).into(),
        };
        // RFC 6749 appendix A.1: visible ASCII; a colon would end it in a Basic header that is not encoded.
        if !id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
            return fail("a client_id is visible ASCII without spaces and colons");
        }
        let secret = key_format::compose(PREFIX, &id, &random()?);
        let client = ClientRecord {
            id,
            sha256: KeyHash::of(&secret),
            previous: None,
            scopes: self.scopes.clone(),
            audiences: self.audiences.clone(),
            created: now,
            revoked: None,
        };
        store.insert(&client)?;
        hand_over(&secret, &client, self.json, out, err)
    }
}

impl List {
    fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let clients = open(&self.config, Opening::Existing)?.list()?;
        if self.json {
            return Ok(writeln!(out, "{:#}", clients.iter().map(shown).collect::<Value>())?);
        }
        writeln!(out, "{:<24} {:<8} {:<24} SCOPES", "ID", "STATE", "AUDIENCES")?;
        for client in &clients {
            let state = if client.revoked.is_some() { "revoked" } else { "active" };
            writeln!(out, "{:<24} {state:<8} {:<24} {}", client.id, client.audiences.join(" "), client.scopes.join(" "))?;
        }
        Ok(())
    }
}

impl Rotate {
    fn run(&self, now: u64, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), Failure> {
        let secret = key_format::compose(PREFIX, &self.id, &random()?);
        let client = open(&self.config, Opening::Existing)?.update(&self.id, |client| {
            if client.revoked.is_some() {
                return Err(StoreError::Refused(format!("{} is revoked; create a new client", client.id)));
            }
            client.previous = Some(Previous { sha256: client.sha256, ends: now.saturating_add(self.grace.as_secs()) });
            client.sha256 = KeyHash::of(&secret);
            Ok(())
        })?;
        hand_over(&secret, &client, self.json, out, err)
    }
}

impl Revoke {
    fn run(&self, now: u64, err: &mut dyn Write) -> Result<(), Failure> {
        let client = open(&self.config, Opening::Existing)?.update(&self.id, |client| {
            client.revoked.get_or_insert(now);
            Ok(())
        })?;
        Ok(writeln!(err, "{} is revoked since {}", client.id, rfc3339(client.revoked.unwrap_or(now)))?)
    }
}

/// The store that the configuration names.
fn open(config: &ConfigFile, opening: Opening) -> Result<ClientStore, Failure> {
    let config = config::load(&config.path(), &System).config.map_err(problems)?;
    let oauth2 = config.issuer.as_ref().and_then(|issuer| issuer.oauth2.as_ref());
    match oauth2 {
        Some(oauth2) => Ok(ClientStore::open(&oauth2.clients.database, opening)?),
        None => fail("the configuration has no `issuer.oauth2`, so there are no clients"),
    }
}

/// The only place that prints a secret.
fn hand_over(secret: &str, client: &ClientRecord, json: bool, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), Failure> {
    if json {
        writeln!(out, "{:#}", json!({"client_id": &*client.id, "client_secret": secret, "record": shown(client)}))?;
    } else {
        writeln!(out, "{secret}")?;
        writeln!(err, "client_id: {}\naudiences: {}\nscopes:    {}", client.id, client.audiences.join(" "), client.scopes.join(" "))?;
    }
    Ok(out.flush()?)
}

fn shown(client: &ClientRecord) -> Value {
    let words = |words: &[Arc<str>]| words.iter().map(|word| &**word).collect::<Value>();
    json!({
        "id": &*client.id,
        "state": if client.revoked.is_some() { "revoked" } else { "active" },
        "scopes": words(&client.scopes),
        "audiences": words(&client.audiences),
        "created": rfc3339(client.created),
        "revoked": client.revoked.map(rfc3339),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        clients: Clients,
    }

    #[test]
    fn a_client_is_made_listed_rotated_and_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edgeward.yaml");
        let text = "listeners: [{address: 127.0.0.1:0}]\nupstreams: {demo: {builtin: echo}}\n\
                    issuer: {url: \"https://gw.test\", signing: {directory: signing}, oauth2: {clients: {database: keys.db}}}\n\
                    routes: [{name: r, path: /, policy: {authenticate: public}, upstream: demo}]\n";
        std::fs::write(&path, text).unwrap();
        let run = |line: &[&str]| {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let whole = [&["clients"], line, &["-c", path.to_str().unwrap()]].concat();
            let done = Line::try_parse_from(whole).unwrap().clients.run_at(1_800_000_000, &mut out, &mut err);
            done.map(|()| String::from_utf8(out).unwrap()).map_err(|Failure(lines)| lines.join("\n"))
        };
        let first = run(&["create", "--id", "app", "--scope", "orders:read", "--audience", "orders"]).unwrap();
        assert!(first.starts_with("cs_live_app_") && first.lines().count() == 1, "{first}");
        assert!(run(&["create", "--id", "app", "--audience", "orders"]).unwrap_err().contains("already known: app"));
        assert!(run(&["create", "--id", "a:b", "--audience", "orders"]).is_err());
        let second = run(&["rotate", "app", "--grace", "1h"]).unwrap();
        let store = ClientStore::open(&folder.path().join("keys.db"), Opening::Existing).unwrap();
        let client = store.find("app").unwrap().unwrap();
        assert_eq!(client.sha256, KeyHash::of(second.trim()));
        assert_eq!(client.previous, Some(Previous { sha256: KeyHash::of(first.trim()), ends: 1_800_003_600 }));
        let listed = run(&["list"]).unwrap();
        assert!(listed.contains("app") && !listed.contains("cs_live_"), "{listed}");
        run(&["revoke", "app"]).unwrap();
        assert!(run(&["rotate", "app"]).unwrap_err().contains("is revoked"));
        let listed: Value = serde_json::from_str(&run(&["list", "--json"]).unwrap()).unwrap();
        assert_eq!(listed[0]["state"], "revoked");
        assert!(run(&["revoke", "nobody"]).is_err());
    }
}
