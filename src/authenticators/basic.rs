//! Users and passwords (RFC 7617), against the slow hashes of a file.
//!
//! A wrong user costs what a wrong password costs. How often somebody may be wrong is not decided here but by a limit with `on: refused`.

use std::collections::HashMap;
use std::sync::Arc;

use argon2::password_hash::{PasswordVerifier, phc};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header;
use openssl::sha::sha256;
use zeroize::Zeroizing;

use super::credential::{self, Found};
use super::{Challenge, Verdict};
use crate::config::{self, Location, PasswordHash};
use crate::live::LiveState;
use crate::live::passwords::{Busy, Passwords};
use crate::request::{Identity, Method, Now, Rejection, Request};

/// A `basic` authenticator, ready to judge.
#[derive(Debug)]
pub struct Basic {
    name: Arc<str>,
    realm: Arc<str>,
    from: [Location; 1],
    users: Vec<User>,
    by_name: HashMap<Arc<str>, usize>,
    /// Chooses whose hash an unknown name is held against: always the same, and nobody outside knows whose.
    decoys: ahash::RandomState,
    passwords: Arc<Passwords>,
}

#[derive(Debug)]
struct User {
    hash: PasswordHash,
    identity: Arc<Identity>,
}

impl Basic {
    /// Compiles an authenticator.
    pub fn new(name: Arc<str>, config: &config::Basic, live: &LiveState) -> Self {
        let users = config.users.iter().map(|user| User {
            hash: user.hash.clone(),
            identity: Arc::new(Identity {
                subject: Some(Arc::clone(&user.name).into()),
                consumer: Some(Arc::clone(&user.name).into()),
                ..Identity::new(Method::Basic, Arc::clone(&name), sha256(&[user.name.as_bytes(), b":", user.hash.text().expose()].concat()))
            }),
        });
        Self {
            realm: Arc::clone(&config.realm),
            from: [Location::Header { name: header::AUTHORIZATION, scheme: Some("Basic".into()) }],
            users: users.collect(),
            by_name: config.users.iter().enumerate().map(|(at, user)| (Arc::clone(&user.name), at)).collect(),
            decoys: ahash::RandomState::new(),
            passwords: Arc::clone(&live.passwords),
            name,
        }
    }

    /// Judges the user and the password that a request carries.
    pub async fn authenticate(&self, request: &Request<'_>, now: Now) -> Verdict {
        let presented = match credential::find(&self.from, request) {
            Found::Absent => return Verdict::Pass,
            Found::Ambiguous(reason) => return Verdict::Reject(Rejection::BadRequest(reason)),
            Found::Malformed(reason) => return refuse(reason),
            Found::One(presented) => presented,
        };
        let Some(pair) = read(&presented) else { return refuse("malformed") };
        let Some((name, password)) = pair.split_once(':').filter(|(name, _)| !name.is_empty()) else { return refuse("malformed") };
        let known = self.by_name.get(name).copied();
        let decoy = || self.decoys.hash_one(name) as usize % self.users.len().max(1);
        let Some(user) = self.users.get(known.unwrap_or_else(decoy)) else { return refuse("unknown") };
        let hash = user.hash.clone();
        let attempt = Zeroizing::new(password.to_owned());
        let check = move || matches(&hash, &attempt);
        match self.passwords.is_right((user.hash.text().expose(), name, password), now.monotonic, check).await {
            Ok(true) if known.is_some() => Verdict::Accept(Arc::clone(&user.identity).into()),
            Ok(_) => refuse(if known.is_some() { "password" } else { "unknown" }),
            Err(Busy) => Verdict::Reject(Rejection::Overloaded("passwords")),
        }
    }

    /// The name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where the user and the password are looked for.
    pub fn locations(&self) -> &[Location] {
        &self.from
    }

    /// What a caller is told to present (RFC 7617 section 2.1).
    pub fn challenge(&self) -> Challenge {
        Challenge::new("Basic").of_realm(&self.realm).with("charset", "UTF-8")
    }
}

/// Longer than any that a person has, and short enough that nobody makes us work.
const MAX_LENGTH: usize = 1024;

/// `user:password`, in UTF-8 and without control characters (RFC 7617 sections 2 and 2.1).
fn read(presented: &str) -> Option<Zeroizing<String>> {
    if presented.len() > MAX_LENGTH {
        return None;
    }
    let pair = Zeroizing::new(String::from_utf8(STANDARD.decode(presented).ok()?).ok()?);
    (!pair.chars().any(char::is_control)).then_some(pair)
}

/// bcrypt sees no more than 72 bytes: a longer password would be as good as its beginning, and is refused.
fn matches(hash: &PasswordHash, password: &str) -> bool {
    match hash {
        PasswordHash::Bcrypt(text) => {
            std::str::from_utf8(text.expose()).is_ok_and(|text| bcrypt::non_truncating_verify(password, text).unwrap_or(false))
        }
        PasswordHash::Argon2id(text) => std::str::from_utf8(text.expose())
            .ok()
            .and_then(|text| phc::PasswordHash::new(text).ok())
            .is_some_and(|hash| argon2::Argon2::default().verify_password(password.as_bytes(), &hash).is_ok()),
    }
}

fn refuse(reason: &'static str) -> Verdict {
    Verdict::Reject(Rejection::CredentialInvalid(reason))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue, Method as HttpMethod};

    use super::*;
    use crate::request::Client;

    fn bcrypt_of(password: &str) -> PasswordHash {
        let hash = bcrypt::hash_with_salt(password, 4, [7; 16]).unwrap();
        PasswordHash::parse(&hash.format_for_version(bcrypt::Version::TwoY)).unwrap()
    }

    fn argon2_of(password: &str) -> PasswordHash {
        use argon2::password_hash::PasswordHasher;
        let params = argon2::Params::new(64, 1, 1, None).unwrap();
        let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        PasswordHash::parse(&argon2.hash_password_with_salt(password.as_bytes(), b"saltsaltsaltsalt").unwrap().to_string()).unwrap()
    }

    fn basic(live: &LiveState) -> Basic {
        let user = |name: &str, hash| config::User { name: name.into(), hash };
        let users = vec![
            user("alice", bcrypt_of("correct horse")),
            user("bob", argon2_of("battery:staple")),
            user("zoë", bcrypt_of("pässword")),
            user("long", bcrypt_of(&"x".repeat(71))),
            user("empty", bcrypt_of("")),
        ];
        Basic::new("staff".into(), &config::Basic { users, realm: "edgeward".into() }, live)
    }

    async fn ask(basic: &Basic, line: &[u8]) -> Result<Option<String>, Rejection> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_bytes(line).unwrap());
        let client = Client { address: std::net::Ipv4Addr::LOCALHOST.into(), through_trusted_proxy: false };
        let request = Request::new(&HttpMethod::GET, "h", "/", &headers, &client);
        let now = Now { monotonic: Duration::from_secs(1), unix: Duration::from_secs(1) };
        match basic.authenticate(&request, now).await {
            Verdict::Accept(proof) => Ok(proof.identity.consumer.as_deref().map(str::to_owned)),
            Verdict::Pass => Ok(None),
            Verdict::Reject(rejection) => Err(rejection),
        }
    }

    #[tokio::test]
    async fn a_user_is_let_in_with_the_password_and_nothing_else() {
        let basic = basic(&LiveState::default());
        let invalid = |reason| Err(Rejection::CredentialInvalid(reason));
        let long = |length| format!("long:{}", "x".repeat(length)).into_bytes();
        let (longest, longer) = (long(71), long(72));
        type Row<'a> = (&'a str, &'a [u8], Result<Option<&'a str>, Rejection>);
        let rows: [Row<'_>; 18] = [
            ("a password of bcrypt", b"alice:correct horse", Ok(Some("alice"))),
            ("the same once more, from memory", b"alice:correct horse", Ok(Some("alice"))),
            ("a password of argon2id with a colon", b"bob:battery:staple", Ok(Some("bob"))),
            ("a name and a password in UTF-8", "zoë:pässword".as_bytes(), Ok(Some("zoë"))),
            ("the longest that bcrypt tells apart", &longest, Ok(Some("long"))),
            ("one that begins so", &longer, invalid("password")),
            ("an empty password where that is the password", b"empty:", Ok(Some("empty"))),
            ("an empty password", b"alice:", invalid("password")),
            ("another's password", b"alice:battery:staple", invalid("password")),
            ("a password cut at a colon", b"bob:battery", invalid("password")),
            ("a name in another case", b"Alice:correct horse", invalid("unknown")),
            ("a name that nobody has", b"mallory:correct horse", invalid("unknown")),
            ("no name", b":correct horse", invalid("malformed")),
            ("no colon", b"alice", invalid("malformed")),
            ("a NUL", b"alice:correct horse\0", invalid("malformed")),
            ("a line break", b"alice\n:correct horse", invalid("malformed")),
            ("no UTF-8", b"zo\xeb:p\xe4ssword", invalid("malformed")),
            ("nothing", b"", invalid("malformed")),
        ];
        for (name, pair, expected) in rows {
            let line = [b"Basic ", STANDARD.encode(pair).as_bytes()].concat();
            assert_eq!(ask(&basic, &line).await, expected.map(|name| name.map(str::to_owned)), "{name}");
        }
        for (line, expected) in [
            (&b"Bearer abc"[..], Ok(None)),
            (b"Basic", invalid("malformed")),
            (b"Basic !!!!", invalid("malformed")),
            (b"Basic YWxpY2U6Y29ycmVjdCBob3JzZQ==", Ok(Some("alice"))),
            (b"Basic YWxpY2U6Y29ycmVjdCBob3JzZQ", invalid("malformed")),
            (b"Basic YWxpY2U6Y29ycmVjdCBob3JzZQ==, Basic YTpi", Err(Rejection::BadRequest("credential_repeated"))),
        ] {
            let found = ask(&basic, line).await;
            assert_eq!(found, expected.map(|name| name.map(str::to_owned)), "{}", String::from_utf8_lossy(line));
        }
        let long = [b"Basic ", STANDARD.encode([b'x'; 4096]).as_bytes()].concat();
        assert_eq!(ask(&basic, &long).await, Err(Rejection::CredentialInvalid("malformed")));
    }

    #[tokio::test]
    async fn an_unknown_name_is_held_against_a_hash_as_a_known_one_is_and_is_never_let_in() {
        let basic = basic(&LiveState::default());
        // Whoever's hash is chosen, its password opens nothing.
        for name in 0..64 {
            for password in ["correct horse", "battery:staple", "pässword", ""] {
                let line = format!("Basic {}", STANDARD.encode(format!("nobody{name}:{password}")));
                assert_eq!(ask(&basic, line.as_bytes()).await, Err(Rejection::CredentialInvalid("unknown")));
            }
        }
    }
}
