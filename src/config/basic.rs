//! Users and passwords: a file of `htpasswd`, of which only hashes that are slow enough are taken.

use std::collections::HashMap;
use std::sync::Arc;

use argon2::password_hash::phc;
use serde_json::{Map as Object, Value, json};

use super::decode::{Context, Decode, Scalar, grammar};
use super::yaml::Node;
use super::{File, Place, Problem};
use crate::secret::Secret;

grammar! {
    /// Users with passwords (RFC 7617).
    pub struct Basic {
        /// The users, and the hashes of their passwords.
        users: Vec<User> as UsersFile,
        /// What the challenge calls the place that the password opens: browsers show it.
        realm: Arc<str> as Realm = "edgeward",
    }

    /// Where the users are.
    struct WrittenUsersFile {
        /// A file as `htpasswd -B` writes it, read with the configuration.
        file: File,
    }
}

/// A user, and what is known of the password.
#[derive(Debug, Clone)]
pub struct User {
    /// The name.
    pub name: Arc<str>,
    /// The hash, with its salt and its cost.
    pub hash: PasswordHash,
}

/// A hash that takes long enough to guess against, and not so long that guessing stops others.
#[derive(Debug, Clone)]
pub enum PasswordHash {
    /// `$2y$`, `$2b$` or `$2a$`.
    Bcrypt(Secret),
    /// `$argon2id$`.
    Argon2id(Secret),
}

impl PasswordHash {
    /// Reads a hash, or says why it is not taken. The hash itself is not quoted: it is half a password.
    ///
    /// # Errors
    /// A scheme that is fast or broken, or a cost beyond the bounds.
    pub fn parse(text: &str) -> Result<Self, String> {
        if ["$2y$", "$2b$", "$2a$"].iter().any(|prefix| text.starts_with(prefix)) {
            let parts = text.parse::<bcrypt::HashParts>().map_err(|_| "not a bcrypt hash".to_owned())?;
            let cost = parts.get_cost();
            return match (4..=MOST_BCRYPT_COST).contains(&cost) {
                true => Ok(Self::Bcrypt(Secret::new(text.as_bytes().to_vec()))),
                false => Err(format!("a bcrypt cost of {cost} (4 to {MOST_BCRYPT_COST} are taken)")),
            };
        }
        if text.starts_with("$argon2id$") {
            let hash = phc::PasswordHash::new(text).map_err(|_| "not an argon2id hash".to_owned())?;
            let params = argon2::Params::try_from(&hash).map_err(|_| "not an argon2id hash".to_owned())?;
            let (memory, passes, lanes) = (params.m_cost(), params.t_cost(), params.p_cost());
            // As it is written, so that no cost stands there twice and another reader takes the other.
            let plain = text.split('$').nth(3) == Some(&*format!("m={memory},t={passes},p={lanes}"));
            let complete = hash.salt.is_some() && hash.hash.is_some_and(|hash| hash.len() >= 16);
            if !complete || !plain || hash.version.is_none_or(|version| version != 0x13) {
                return Err("an argon2id hash without a version 19, `m`, `t` and `p`, a salt or 16 bytes".to_owned());
            }
            if memory > MOST_ARGON2_MEMORY || passes > MOST_ARGON2_PASSES || lanes > MOST_ARGON2_LANES {
                let most = format!("m={MOST_ARGON2_MEMORY},t={MOST_ARGON2_PASSES},p={MOST_ARGON2_LANES}");
                return Err(format!("an argon2id cost beyond {most}"));
            }
            return Ok(Self::Argon2id(Secret::new(text.as_bytes().to_vec())));
        }
        Err("a hash that is neither bcrypt nor argon2id".to_owned())
    }

    /// The hash as it is written.
    pub fn text(&self) -> &Secret {
        match self {
            Self::Bcrypt(text) | Self::Argon2id(text) => text,
        }
    }
}

/// A second or so of one core.
const MOST_BCRYPT_COST: u32 = 14;
/// In KiB.
const MOST_ARGON2_MEMORY: u32 = 128 * 1024;
const MOST_ARGON2_PASSES: u32 = 10;
const MOST_ARGON2_LANES: u32 = 8;

/// `{file: PATH}`, read and parsed.
struct UsersFile;

impl Decode for UsersFile {
    type Value = Vec<User>;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self::Value> {
        let WrittenUsersFile { file } = WrittenUsersFile::decode(node, context)?;
        context.within(&file.path, |context| {
            let place = context.start();
            let Ok(text) = std::str::from_utf8(&file.bytes) else {
                context.report(Problem::at(&place, "not UTF-8").expected("a text"));
                return None;
            };
            let mut users: Vec<User> = Vec::new();
            let mut lines = HashMap::new();
            for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty() && !text.starts_with('#')) {
                let place = Place { line, ..place.clone() };
                let user = match user(text) {
                    Ok(user) => user,
                    Err(problem) => {
                        context
                            .report(Problem::at(&place, problem).expected("`name:hash` with a hash of bcrypt or argon2id (`htpasswd -B`)"));
                        continue;
                    }
                };
                if let Some(earlier) = lines.insert(Arc::clone(&user.name), line) {
                    context.report(Problem::at(&place, format!("the user of line {earlier} again")).expected("each user once"));
                }
                users.push(user);
            }
            if lines.is_empty() {
                context.report(Problem::at(&place, "no user that could be let in").expected("at least one `name:hash`"));
            }
            Some(users)
        })
    }

    fn expected() -> String {
        "`{file: PATH}`".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        WrittenUsersFile::schema(definitions)
    }
}

fn user(line: &str) -> Result<User, String> {
    let (name, hash) = line.split_once(':').ok_or("no `:`")?;
    if !matches!(name.len(), 1..=255) || name.chars().any(char::is_control) {
        return Err("not a user's name".to_owned());
    }
    Ok(User { name: name.into(), hash: PasswordHash::parse(hash.trim_end())? })
}

/// A text that can stand in quotes in a header.
struct Realm;

impl Scalar for Realm {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        let sound = matches!(text.len(), 1..=128) && text.bytes().all(|b| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\\'));
        if sound { Ok(text.into()) } else { Err("not a realm".to_owned()) }
    }

    fn expected() -> String {
        "at most 128 visible ASCII characters and spaces, without quotes and backslashes".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "realm", "type": "string", "pattern": r"^[ !#-\[\]-~]{1,128}$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hashes_that_are_slow_and_not_too_slow_are_taken() {
        let bcrypt = |prefix: &str, cost: &str| format!("{prefix}{cost}$L6Bc/AlTQHyd9liGgGEZyOFLPHNgyxeEPfgYfBCVxJ7JIlwxyVU3u");
        let argon2 =
            |scheme: &str, costs: &str| format!("${scheme}${costs}$c29tZXNhbHRzb21lc2FsdA$GpZ3sK/oH9p7VIiV56G/64Zo/8GaUw434IimaPqxwCo");
        for (hash, taken) in [
            (bcrypt("$2y$", "05"), true),
            (bcrypt("$2b$", "12"), true),
            (bcrypt("$2a$", "14"), true),
            (bcrypt("$2y$", "15"), false),
            (bcrypt("$2y$", "31"), false),
            (bcrypt("$2y$", "03"), false),
            (bcrypt("$2x$", "12"), false),
            (bcrypt("$2y$", "12").replace('u', ""), false),
            (argon2("argon2id", "v=19$m=65536,t=3,p=4"), true),
            (argon2("argon2id", "v=19$m=131072,t=10,p=8"), true),
            (argon2("argon2id", "v=19$m=131073,t=3,p=4"), false),
            (argon2("argon2id", "v=19$m=65536,t=11,p=4"), false),
            (argon2("argon2id", "v=19$m=65536,t=3,p=9"), false),
            (argon2("argon2id", "v=19$m=65536,t=3,p=4536,t=3,p=4"), false),
            (argon2("argon2id", "v=19$t=3,m=65536,p=4"), false),
            (argon2("argon2id", "v=19$m=65536,t=3"), false),
            (argon2("argon2id", "v=16$m=65536,t=3,p=4"), false),
            (argon2("argon2id", "m=65536,t=3,p=4"), false),
            (argon2("argon2i", "v=19$m=65536,t=3,p=4"), false),
            (argon2("argon2d", "v=19$m=65536,t=3,p=4"), false),
            ("$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHRzb21lc2FsdA".to_owned(), false),
            ("$apr1$lZL6V/ci$eIMz/iKDkbtys/uU7LEK00".to_owned(), false),
            ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=".to_owned(), false),
            ("$5$abc$def".to_owned(), false),
            ("$6$abc$def".to_owned(), false),
            ("rqXexS6ZhobKA".to_owned(), false),
            ("secret".to_owned(), false),
            (String::new(), false),
        ] {
            let read = PasswordHash::parse(&hash);
            assert_eq!(read.is_ok(), taken, "{hash}");
            assert!(hash.is_empty() || read.map_or_else(|problem| !problem.contains(&hash), |_| true), "{hash} is quoted");
        }
    }
}
