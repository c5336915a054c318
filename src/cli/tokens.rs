//! `edgeward tokens`: throw-away keys and tokens for the demo and for trying a configuration. A real issuer's keys do not belong here.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::jose::{Algorithm, SigningKey};

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum Tokens {
    /// Make a key: private.jwk to sign with, jwks.json for `jwks_file`
    Keypair(Keypair),
    /// Sign a token, and print it alone
    Sign(Sign),
}

/// A new key.
#[derive(Debug, Args)]
pub(crate) struct Keypair {
    /// RS256, PS256, ES256, EdDSA and their longer relatives
    #[arg(long, default_value = "ES256", value_parser = algorithm)]
    algorithm: Algorithm,
    /// The key id
    #[arg(long, default_value = "demo")]
    kid: String,
    /// The folder for both files
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// A new token.
#[derive(Debug, Args)]
pub(crate) struct Sign {
    /// The private.jwk of `tokens keypair`
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The claim iss
    #[arg(long)]
    issuer: String,
    /// The claim aud; several make a list
    #[arg(long, required = true)]
    audience: Vec<String>,
    /// The claim sub
    #[arg(long)]
    subject: String,
    /// One word of the claim scope
    #[arg(long)]
    scope: Vec<String>,
    /// Another claim, `name=value`; a value that is JSON stays what it is, any other is a string
    #[arg(long, value_name = "NAME=VALUE", value_parser = claim)]
    claim: Vec<(String, Value)>,
    /// How long it is good, such as 90s, 15m, 1h or 7d
    #[arg(long, default_value = "1h", value_parser = lifetime)]
    expires: Duration,
}

impl Tokens {
    /// Does it; what goes wrong goes to stderr.
    pub(crate) fn run(self) -> ExitCode {
        let done = match self {
            Self::Keypair(keypair) => keypair.run(),
            Self::Sign(sign) => sign.run().map(|token| println!("{token}")),
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("edgeward: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

impl Keypair {
    fn run(&self) -> Result<(), Box<dyn std::error::Error>> {
        let key = SigningKey::generate(self.algorithm, &self.kid)?;
        std::fs::create_dir_all(&self.out)?;
        write(self.out.join("private.jwk"), 0o600, &key.to_private_jwk()?)?;
        write(self.out.join("jwks.json"), 0o644, &json!({"keys": [key.to_public_jwk()?]}))?;
        Ok(())
    }
}

impl Sign {
    #[expect(clippy::disallowed_methods, reason = "a command has no request whose time it could be handed")]
    fn run(&self) -> Result<String, Box<dyn std::error::Error>> {
        let key = std::fs::read(&self.key).map_err(|error| format!("{}: {error}", self.key.display()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        Ok(SigningKey::from_jwk(&key)?.sign(&self.claims(now))?)
    }

    fn claims(&self, now: Duration) -> Map<String, Value> {
        let mut claims = Map::new();
        claims.insert("iss".to_owned(), self.issuer.as_str().into());
        claims.insert(
            "aud".to_owned(),
            match self.audience.as_slice() {
                [one] => one.as_str().into(),
                many => many.into(),
            },
        );
        claims.insert("sub".to_owned(), self.subject.as_str().into());
        claims.insert("iat".to_owned(), now.as_secs().into());
        claims.insert("exp".to_owned(), (now + self.expires).as_secs().into());
        if !self.scope.is_empty() {
            claims.insert("scope".to_owned(), self.scope.join(" ").into());
        }
        claims.extend(self.claim.iter().cloned());
        claims
    }
}

/// A private file is private from its first byte, and one that was there before with wider access is made anew.
fn write(path: PathBuf, mode: u32, document: &Value) -> Result<(), String> {
    let shown = |error: std::io::Error| format!("{}: {error}", path.display());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(shown(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).map_err(shown)?;
    writeln!(file, "{document:#}").map_err(shown)
}

fn algorithm(name: &str) -> Result<Algorithm, String> {
    Algorithm::parse(name).filter(|algorithm| !algorithm.is_symmetric()).ok_or_else(|| {
        let names: Vec<&str> = Algorithm::ALL.into_iter().filter(|algorithm| !algorithm.is_symmetric()).map(Algorithm::label).collect();
        format!("expected one of {}", names.join(", "))
    })
}

fn claim(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected name=value")?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let expected = || "expected a number and s, m, h or d".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(expected)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    // A thousand years: beyond, no verifier believes the time.
    number.checked_mul(seconds).filter(|total| *total <= 1000 * 365 * 86_400).map(Duration::from_secs).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::{Claims, JwkSet, Jws};
    use clap::Parser;
    use std::os::unix::fs::PermissionsExt;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        tokens: Tokens,
    }

    fn parse(line: &[&str]) -> Result<Tokens, clap::Error> {
        Line::try_parse_from(["tokens"].iter().chain(line)).map(|line| line.tokens)
    }

    #[test]
    fn a_key_that_was_made_signs_a_token_that_its_set_verifies() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new");
        let shown = out.to_str().unwrap();
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join("private.jwk"), "older, and open to all").unwrap();
        std::fs::set_permissions(out.join("private.jwk"), std::fs::Permissions::from_mode(0o666)).unwrap();
        for algorithm in ["ES256", "RS256", "EdDSA"] {
            let Ok(Tokens::Keypair(keypair)) = parse(&["keypair", "--algorithm", algorithm, "--kid", "k", "--out", shown]) else {
                panic!()
            };
            keypair.run().unwrap();
            let private = out.join("private.jwk");
            assert_eq!(std::fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
            let line = ["sign", "--key", private.to_str().unwrap(), "--issuer", "https://i", "--audience", "a", "--subject", "alice"];
            let more = ["--scope", "r", "--scope", "w", "--claim", "tenant=acme", "--claim", "n=7", "--expires", "15m"];
            let Ok(Tokens::Sign(sign)) = parse(&[&line[..], &more[..]].concat()) else { panic!() };
            let token = sign.run().unwrap();
            let set = JwkSet::parse(&std::fs::read(out.join("jwks.json")).unwrap()).unwrap();
            let jws = Jws::parse(&token).unwrap();
            let signature = jws.signature().unwrap();
            assert!(set.candidates(&jws.header).any(|key| jws.is_signed_by(key, &signature)), "{algorithm}");
            let claims = Claims::parse(&jws.payload().unwrap()).unwrap();
            assert_eq!(claims.registered.expires.unwrap() - claims.registered.issued.unwrap(), Duration::from_secs(900));
            assert_eq!(claims.all.get("scope"), Some(&json!("r w")));
            assert_eq!(claims.all.get("tenant"), Some(&json!("acme")));
            assert_eq!(claims.all.get("n"), Some(&json!(7)));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for line in [
            &["keypair", "--out", "x", "--algorithm", "HS256"][..],
            &["keypair", "--out", "x", "--algorithm", "none"],
            &["keypair"],
            &["sign", "--key", "k", "--issuer", "i", "--subject", "s"],
            &["sign", "--key", "k", "--issuer", "i", "--subject", "s", "--audience", "a", "--expires", "soon"],
            &["sign", "--key", "k", "--issuer", "i", "--subject", "s", "--audience", "a", "--expires", "é"],
            &["sign", "--key", "k", "--issuer", "i", "--subject", "s", "--audience", "a", "--expires", "99999999999d"],
            &["sign", "--key", "k", "--issuer", "i", "--subject", "s", "--audience", "a", "--claim", "x"],
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }
}
