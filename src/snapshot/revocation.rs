//! Where a configuration keeps what is revoked, as a gateway and the command line find it.

use std::sync::Arc;

use super::Compiler;
use crate::config::{self, Config, Revocation, RevocationStore};
use crate::live::database::beside;
use crate::live::revocations::{Revocations, Source};
use crate::net::http::Tls;
use crate::net::redis::Server;

/// What a configuration says of revocations. Without a word it keeps those that its own issuer is told of, beside the issuer's clients.
fn configured(config: &Config) -> Option<Revocation> {
    config.revocation.clone().or_else(|| {
        let clients = &config.issuer.as_ref()?.oauth2.as_ref()?.clients.database;
        Some(Revocation { store: RevocationStore::Database(beside(clients, ".revoked.db")), entries: config::REVOCATIONS })
    })
}

/// Where revocations are kept and how many at most; absent: nothing is ever revoked.
pub fn revocation_source(config: &Config) -> Option<(Source, usize)> {
    let Revocation { store, entries } = configured(config)?;
    let source = match store {
        RevocationStore::Database(path) => Source::Database(path),
        // A configuration without the one is refused for the other.
        RevocationStore::Redis(name) => Source::Redis { server: redis_server(config.redis.as_ref()?), name: name.value },
    };
    Some((source, entries))
}

/// The Redis of a configuration.
pub(super) fn redis_server(redis: &config::Redis) -> Server {
    let config::RedisUrl { tls, host, port, user, password, database } = redis.url.value.clone();
    let ca = redis.ca.as_ref().map(|file| file.bytes.to_vec());
    Server { host, port, user, password, database, tls: tls.then(|| Tls { ca, ..Tls::default() }) }
}

impl Compiler<'_> {
    /// Opened by whoever serves with them: compiling makes no database and asks no Redis.
    pub(super) fn revocations(&self) -> Option<(Arc<Revocations>, usize)> {
        let (source, most) = revocation_source(self.config)?;
        let new = match &source {
            Source::Database(path) => Revocations::in_database(path, most),
            // What is wrong with a Redis that there is not has been reported.
            Source::Redis { name, .. } => Revocations::in_redis(self.redis.clone()?, name, most),
        };
        Some((self.live.revocations.find_or_create(&source, || new), most))
    }
}
