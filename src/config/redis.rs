//! Where Redis is: a URL, which may hold a password and is then a secret.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::{Map as Object, Value, json};

use super::decode::{Context, Decode, Fields, Scalar, grammar};
use super::values::{HostAndPort, Lasting, SECOND, decimal};
use super::yaml::{Kind, Node};
use super::{At, File};
use crate::secret::Secret;

grammar! {
    /// Redis. A server, or a cluster that is reached through any of its nodes.
    #[checked(check_redis)]
    pub struct Redis {
        /// `redis://HOST:PORT/DATABASE`, or `rediss://` for TLS; from the environment or a file when it holds a user and a password.
        url: At<RedisUrl>,
        /// The authorities to trust for TLS, in PEM. Absent: the system's.
        ca: Option<File> = absent,
        /// How long an answer may take, connecting included; then `on_store_failure` holds.
        timeout: Duration as Lasting<1, {10 * SECOND}> = "50ms",
    }
}

/// A URL of Redis, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// Whether to speak TLS.
    pub tls: bool,
    /// A DNS name in lower case, an IPv4 address, or an IPv6 address without brackets.
    pub host: Arc<str>,
    /// The port, never 0.
    pub port: u16,
    /// Who logs in; absent: the default user.
    pub user: Option<Arc<str>>,
    /// With which password; absent: without logging in.
    pub password: Option<Secret>,
    /// The number of the database.
    pub database: u32,
}

/// As the log may show it.
impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}/{}", self.host, self.port, self.database)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl RedisUrl {
    /// Nothing of the text is in the message: it may be a password in the wrong place.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (tls, rest) = match text.split_once("://") {
            Some(("redis", rest)) => (false, rest),
            Some(("rediss", rest)) => (true, rest),
            _ => return Err("not a URL of Redis"),
        };
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        let (host, database) = rest.split_once('/').unwrap_or((rest, ""));
        let database = if database.is_empty() { Some(0) } else { decimal(database).and_then(|number| u32::try_from(number).ok()) };
        let has_port = host.rsplit_once(':').is_some_and(|(before, _)| !before.starts_with('[') || before.ends_with(']'));
        let with_port = if has_port { host.to_owned() } else { format!("{host}:6379") };
        let (host, port) = HostAndPort::parse(&with_port).map_err(|_| "a URL without a sound host and port")?;
        let (user, password) = login.map_or(Ok((None, None)), Self::login)?;
        Ok(Self { tls, host, port, user, password, database: database.ok_or("a URL without a sound number of a database")? })
    }

    fn login(text: &str) -> Result<(Option<Arc<str>>, Option<Secret>), &'static str> {
        let (user, password) = text.split_once(':').ok_or("a URL with a user and no password")?;
        let user = percent_decode_str(user).decode_utf8().map_err(|_| "a URL with a user that is not UTF-8")?;
        let password: Vec<u8> = percent_decode_str(password).collect();
        if password.is_empty() {
            return Err("a URL with an empty password");
        }
        Ok(((!user.is_empty()).then(|| user.into()), Some(Secret::new(password))))
    }
}

impl Decode for RedisUrl {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let parsed = match &node.kind {
            Kind::Mapping(_) => {
                let secret = Secret::decode(node, context)?;
                std::str::from_utf8(secret.expose()).map_err(|_| "not a URL of Redis").and_then(Self::parse)
            }
            Kind::Scalar { text, .. } if !node.is_null() => match Self::parse(text) {
                Ok(url) if url.password.is_some() => Err("a password is never written into the configuration"),
                parsed => parsed,
            },
            _ => return context.refuse_kind(node, Self::expected()),
        };
        match parsed {
            Ok(url) => Some(url),
            Err(message) => context.refuse(node, message, Self::expected()),
        }
    }

    fn expected() -> String {
        "`redis://HOST:PORT/DATABASE` or `rediss://...`; `{env: NAME}` or `{file: PATH}` when it holds a password".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        let url = json!({"title": "URL of Redis", "type": "string", "pattern": "^rediss?://"});
        json!({"anyOf": [url, Secret::schema(definitions)]})
    }
}

fn check_redis(redis: &Redis, fields: &Fields<'_>, context: &mut Context<'_>) {
    if redis.ca.is_some() && !redis.url.tls {
        fields.refuse(context, "authorities without TLS", "`ca` with `rediss://` only");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_shown_without_its_password() {
        for (text, shown, user, password) in [
            ("redis://127.0.0.1", "redis://127.0.0.1:6379/0", None, None),
            ("redis://Redis.internal:7000/3", "redis://redis.internal:7000/3", None, None),
            ("rediss://[::1]", "rediss://[::1]:6379/0", None, None),
            ("redis://[2001:db8::1]:7000/", "redis://[2001:db8::1]:7000/0", None, None),
            ("redis://:p%40ss@a", "redis://a:6379/0", None, Some("p@ss")),
            ("redis://gate:a@b:c@a:1/2", "redis://a:1/2", Some("gate"), Some("a@b:c")),
        ] {
            let url = RedisUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), shown, "{text}");
            assert_eq!(format!("{url:?}"), shown, "{text}");
            assert_eq!(url.user.as_deref(), user, "{text}");
            assert_eq!(url.password.map(|password| password.expose().to_vec()), password.map(|text| text.as_bytes().to_vec()), "{text}");
        }
        for text in [
            "",
            "127.0.0.1:6379",
            "http://a",
            "redis:a",
            "redis://",
            "redis:///0",
            "redis://a:0",
            "redis://a:99999",
            "redis://a/x",
            "redis://a/-1",
            "redis://a/0/1",
            "redis://a?x=1",
            "redis://a#0",
            "redis://user@a",
            "redis://user:@a",
            "redis://a:b:c",
            "redis+unix://a",
        ] {
            assert!(RedisUrl::parse(text).is_err(), "{text}");
        }
    }
}
