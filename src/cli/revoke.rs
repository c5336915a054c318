//! `edgeward revoke`: refuses credentials before their time, in the store that the gateways of the configuration follow.

use std::io::{Read, Write, stderr, stdin, stdout};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::Value;
use zeroize::Zeroizing;

use super::ConfigFile;
use super::keys::{Failure, problems};
use crate::config::{self, System};
use crate::live::revocations::{Order, Source};
use crate::snapshot::revocation_source;

/// Which credentials.
#[derive(Debug, Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    config: ConfigFile,
    /// One credential, as it is presented, or a certificate in PEM; `-` reads it from standard input, where no list of processes shows it
    #[arg(long)]
    token: Option<String>,
    /// The id of a token
    #[arg(long)]
    jti: Option<String>,
    /// An end user or service
    #[arg(long)]
    subject: Option<String>,
    /// An `OAuth2` client
    #[arg(long)]
    client: Option<String>,
    /// The public id of a key, or the SHA-256 fingerprint of a client certificate in lower-case hexadecimal
    #[arg(long)]
    key_id: Option<String>,
    /// All tokens of an issuer; with --jti, --subject or --client: the issuer that is meant [default: any]
    #[arg(long)]
    issuer: Option<String>,
    /// Only what was issued before this RFC 3339 time, or `now` [default: whenever, the future included]
    #[arg(long, value_name = "TIME")]
    before: Option<String>,
    /// Take it back
    #[arg(long)]
    undo: bool,
    /// Print what is revoked, a JSON object on each line
    #[arg(long, conflicts_with_all = ["token", "jti", "subject", "client", "key_id", "issuer", "before", "undo"])]
    list: bool,
}

impl Revoke {
    /// 0 when it was done, 1 when not.
    pub(crate) fn run(&self) -> ExitCode {
        #[expect(clippy::disallowed_methods, reason = "a command is a moment of its own: there is no Clock to take it from")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        match self.run_at(now) {
            Ok(()) => ExitCode::SUCCESS,
            Err(Failure(lines)) => {
                lines.iter().for_each(|line| eprintln!("edgeward: {line}"));
                ExitCode::FAILURE
            }
        }
    }

    fn run_at(&self, now: u64) -> Result<(), Failure> {
        if self.list {
            let mut revoked = self.source()?.0.read_all()?;
            revoked.sort_by_key(|revocation| revocation.revoked);
            return Ok(revoked.iter().try_for_each(|revocation| writeln!(stdout(), "{}", revocation.shown()))?);
        }
        let revocation = self.order()?.revocation(now).map_err(failure)?;
        let (source, most) = self.source()?;
        if !self.undo {
            source.add(&revocation, most)?;
        } else if !source.remove(&revocation)? {
            return Err(failure("it is not revoked"));
        }
        let shown: Value = revocation.shown();
        Ok(writeln!(stderr(), "{}: {shown}", if self.undo { "taken back" } else { "revoked" })?)
    }

    fn order(&self) -> Result<Order, Failure> {
        let token = match self.token.as_deref() {
            Some("-") => {
                let mut read = Zeroizing::new(String::new());
                stdin().lock().take(1 << 16).read_to_string(&mut read)?;
                Some(read.trim().to_owned())
            }
            token => token.map(str::to_owned),
        };
        let Self { jti, subject, client, key_id, issuer, before, .. } = self;
        Ok(Order {
            token,
            jti: jti.clone(),
            subject: subject.clone(),
            client: client.clone(),
            key_id: key_id.clone(),
            issuer: issuer.clone(),
            before: before.clone(),
        })
    }

    /// Where they are kept, and how many at most.
    fn source(&self) -> Result<(Source, usize), Failure> {
        let path = self.config.path();
        let config = config::load(&path, &System).config.map_err(problems)?;
        revocation_source(&config).ok_or_else(|| failure(&format!("{} has no `revocation`", path.display())))
    }
}

fn failure(message: &str) -> Failure {
    Failure(vec![message.to_owned()])
}
