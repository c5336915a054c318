//! What an operator writes: read twice the same, refused with a reason and a place, and never with a secret in it.

use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use std::sync::Arc;

use edgeward::config::{self, Authenticator, Config, KeySource, KeyStore, Problem, Source};
use edgeward::live::{LiveState, token_cache::TokenCache};
use edgeward::metrics::Metrics;
use edgeward::snapshot;

const SECRET: &str = "hunter2-hunter2-hunter2-hunter2-hunter2-hunter2-hunter2-hunter2-hunter2";

/// Files by the last part of their name, in whatever folder, and an environment that knows one secret.
pub(super) struct Memory<'a>(pub(super) Vec<(&'static str, &'a [u8])>);

impl Source for Memory<'_> {
    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        let found = self.0.iter().find(|(name, _)| path.file_name().is_some_and(|given| given == *name));
        found.map(|(_, bytes)| bytes.to_vec()).ok_or_else(|| Error::from(ErrorKind::NotFound))
    }

    fn env(&self, name: &str) -> Option<String> {
        (name == "SECRET").then(|| SECRET.to_owned())
    }
}

/// Lines of `===` part the configuration, its `keys.yaml`, its `networks.txt`, its `sigv4.yaml` and its `users.htpasswd`.
pub fn run(data: &[u8]) {
    let parts: Vec<_> = split(data, b"\n===\n").collect();
    let part = |at: usize, default| parts.get(at).copied().unwrap_or(default);
    let (yaml, keys) = (part(0, b""), part(1, include_bytes!("../../tests/config/files/keys.yaml")));
    let source = Memory(vec![
        ("edgeward.yaml", yaml),
        ("keys.yaml", keys),
        ("networks.txt", part(2, b"192.0.2.0/24\n")),
        ("sigv4.yaml", part(3, b"keys: [{access_key_id: AKID, secret: {file: secret}, consumer: acme}]")),
        ("users.htpasswd", part(4, include_bytes!("../../tests/config/files/users.htpasswd"))),
        ("jwks.json", include_bytes!("../../tests/data/jwt-threats/jwks-main.json")),
        ("cert.pem", include_bytes!("../../conf/examples/files/api.pem")),
        ("key.pem", include_bytes!("../../conf/examples/files/api.key")),
        ("secret", SECRET.as_bytes()),
    ]);
    if let Err(problems) = config::load_keys("keys.yaml".as_ref(), &source) {
        check_problems(&problems, data);
    }
    let loaded = config::load("edgeward.yaml".as_ref(), &source);
    let again = config::load("edgeward.yaml".as_ref(), &source);
    assert_eq!(format!("{loaded:?}"), format!("{again:?}"), "read twice, in two ways");
    assert!(loaded.readable);
    assert_eq!(loaded.files.first().map(|file| &**file), Some("edgeward.yaml".as_ref()));
    match loaded.config {
        Err(problems) => {
            check_problems(&problems, data);
            for problem in problems {
                assert!(loaded.files.iter().any(|file| file.display().to_string() == *problem.place.file), "{problem}");
            }
        }
        Ok(config) => {
            assert!(!config.routes.is_empty() && !config.listeners.is_empty());
            check_secret(&format!("{config:?}"), data);
            if stays_in_memory(&config) {
                compile(&config, data);
            }
        }
    }
}

fn split<'a>(data: &'a [u8], line: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut left = Some(data);
    std::iter::from_fn(move || {
        let whole = left?;
        let at = whole.windows(line.len()).position(|window| window == line);
        left = at.map(|at| &whole[at + line.len()..]);
        Some(at.map_or(whole, |at| &whole[..at]))
    })
}

fn check_problems(problems: &[Problem], data: &[u8]) {
    assert!((1..=1_001).contains(&problems.len()), "{}", problems.len());
    for problem in problems {
        assert!(problem.place.line >= 1 && problem.place.column >= 1, "{problem}");
        assert!(!problem.message.is_empty());
        check_secret(&problem.to_string(), data);
        assert!(!problem.message.contains(|c: char| c.is_control()), "{:?}", problem.message);
    }
}

fn check_secret(shown: &str, data: &[u8]) {
    let written = data.windows(7).any(|window| window == b"hunter2");
    assert!(written || !shown.contains("hunter2"), "a secret in {shown}");
    // The body of the key in `key.pem`.
    assert!(!shown.contains("PRIVATE KEY") || data.windows(11).any(|window| window == b"PRIVATE KEY"), "{shown}");
}

/// Whether its compilation needs neither files nor the authorities of the system.
fn stays_in_memory(config: &Config) -> bool {
    // OpenSSL reads revocation lists by their path.
    let listeners = config.listeners.iter().filter_map(|listener| listener.tls.as_ref()?.client_certificates.as_ref()?.crl.as_ref());
    let forwarded = config.server.forwarded_certificates.iter().filter_map(|forwarded| forwarded.crl.as_ref());
    listeners.chain(forwarded).next().is_none()
        && config.authenticators.iter().all(|(_, authenticator)| match authenticator {
            Authenticator::Jwt(jwt) => matches!(jwt.keys.value, KeySource::JwksFile(_) | KeySource::Secret(_)),
            Authenticator::ApiKey(api_key) => matches!(api_key.keys.value, KeyStore::File { .. }),
            Authenticator::Introspection(_) => false,
            _ => true,
        })
}

fn compile(config: &Config, data: &[u8]) {
    let live = LiveState { tokens: Arc::new(TokenCache::new(1 << 16)), ..LiveState::default() };
    match snapshot::compile(config, &live, &Metrics::new().unwrap()) {
        Ok(snapshot) => check_secret(&format!("{snapshot:?}"), data),
        Err(problems) => check_problems(&problems, data),
    }
}
