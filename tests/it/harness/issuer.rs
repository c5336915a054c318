//! An issuer of tokens: discovery, a key set that can change, and moods from well to dead. What it does not publish nobody may accept.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use edgeward::jose::{Algorithm, SigningKey};
use serde_json::{Map, Value, json};

use super::origin::{Origin, Reply, answer};

/// How the issuer answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Well, after this time.
    Slow(Duration),
    /// With this status.
    Failing(u16),
    /// Closes every connection without a word.
    Dead,
}

/// A running issuer; it signs with one key at a time and publishes a set.
pub struct Issuer {
    origin: Origin,
    state: Arc<State>,
}

struct State {
    signing: Mutex<Arc<SigningKey>>,
    published: Mutex<Vec<Value>>,
    mood: Mutex<Mood>,
    fetches: AtomicUsize,
}

impl Issuer {
    /// With one key of this algorithm, named `first`.
    pub fn start(algorithm: Algorithm) -> Self {
        let key = SigningKey::generate(algorithm, "first").unwrap();
        let state = Arc::new(State {
            published: Mutex::new(vec![key.to_public_jwk().unwrap()]),
            signing: Mutex::new(Arc::new(key)),
            mood: Mutex::new(Mood::Well),
            fetches: AtomicUsize::new(0),
        });
        let answering = state.clone();
        let origin = Origin::scripted(move |request| answering.answer(request.target(), request.header("host").unwrap_or_default()));
        Self { origin, state }
    }

    pub fn address(&self) -> SocketAddr {
        self.origin.address
    }

    /// The issuer's name, as in `iss`; discovery starts from it.
    pub fn url(&self) -> String {
        format!("http://{}/", self.origin.address)
    }

    pub fn jwks_url(&self) -> String {
        format!("{}jwks", self.url())
    }

    /// How often the key set was asked for, whatever was answered.
    pub fn fetches(&self) -> usize {
        self.state.fetches.load(Ordering::Relaxed)
    }

    pub fn is(&self, mood: Mood) {
        *self.state.mood.lock().unwrap() = mood;
    }

    /// Signs with another key from now on, and publishes it beside the old ones or, when the old ones are withdrawn, alone.
    pub fn rotate(&self, algorithm: Algorithm, kid: &str, withdraw: bool) {
        let key = SigningKey::generate(algorithm, kid).unwrap();
        let mut published = self.state.published.lock().unwrap();
        if withdraw {
            published.clear();
        }
        published.push(key.to_public_jwk().unwrap());
        *self.state.signing.lock().unwrap() = Arc::new(key);
    }

    /// A token for an audience, good for an hour, with more claims or others: `null` takes one away.
    pub fn token(&self, audience: &str, claims: Value) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let standard = json!({"iss": self.url(), "aud": audience, "sub": "alice", "iat": now, "exp": now + 3600});
        let mut all: Map<String, Value> = standard.as_object().unwrap().clone();
        all.extend(claims.as_object().unwrap().clone());
        all.retain(|_, value| !value.is_null());
        self.state.signing.lock().unwrap().sign(&all).unwrap()
    }
}

impl State {
    fn answer(&self, target: &str, host: &str) -> Reply {
        let (status, body) = match target {
            "/.well-known/openid-configuration" => {
                (200, json!({"issuer": format!("http://{host}/"), "jwks_uri": format!("http://{host}/jwks")}))
            }
            "/jwks" => {
                self.fetches.fetch_add(1, Ordering::Relaxed);
                (200, json!({"keys": *self.published.lock().unwrap()}))
            }
            _ => (404, json!({})),
        };
        let mood = self.mood.lock().unwrap().clone();
        let status = match mood {
            Mood::Well => status,
            Mood::Slow(time) => {
                std::thread::sleep(time);
                status
            }
            Mood::Failing(status) => status,
            Mood::Dead => return Reply::Last(Vec::new()),
        };
        Reply::Bytes(answer(status, &[("Content-Type", "application/json"), ("Cache-Control", "max-age=300")], &body.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::{Connection, get, request};
    use super::*;

    #[test]
    fn the_issuer_publishes_what_it_signs_with() {
        let issuer = Issuer::start(Algorithm::Es256);
        let host = issuer.address().to_string();
        let discovery = get(issuer.address(), "/.well-known/openid-configuration", &[("Host", &host)]).json();
        assert_eq!((discovery["issuer"].as_str(), discovery["jwks_uri"].as_str()), (Some(&*issuer.url()), Some(&*issuer.jwks_url())));
        let kids = || {
            get(issuer.address(), "/jwks", &[]).json()["keys"].as_array().unwrap().iter().map(|key| key["kid"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(kids(), ["first"]);
        issuer.rotate(Algorithm::Es256, "second", false);
        assert_eq!(kids(), ["first", "second"]);
        issuer.rotate(Algorithm::EdDsa, "third", true);
        assert_eq!((kids(), issuer.fetches()), (vec![Value::from("third")], 3));
        assert_eq!(issuer.token("orders", json!({"exp": null})).split('.').count(), 3);

        issuer.is(Mood::Failing(500));
        assert_eq!(get(issuer.address(), "/jwks", &[]).status, 500);
        issuer.is(Mood::Dead);
        let mut connection = Connection::open(issuer.address());
        connection.send(request("GET", "/jwks", &[], b""));
        assert!(connection.is_closed());
    }
}
