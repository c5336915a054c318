//! Issuers whose tokens are looked for in the same places: a token is read once, and its issuer says who judges it, however many there are.
//!
//! The answer is that of asking in turn. All of them find the same token, or the same fault of it; of those that find it sound each leaves a
//! token of another issuer alone, and the first of the token's own issuer has the last word.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Jwt, authenticate};
use crate::authenticators::{Authenticator, Verdict};
use crate::request::{Now, Request};

/// JWT authenticators that stand side by side and look in the same places.
#[derive(Debug)]
pub struct Issuers {
    members: Vec<Arc<Authenticator>>,
    /// Where among them the first of each issuer is.
    first: HashMap<Arc<str>, usize, ahash::RandomState>,
}

impl Issuers {
    /// This one alone; nothing where it is no authenticator of tokens.
    pub fn new(authenticator: &Arc<Authenticator>) -> Option<Self> {
        let issuer = Arc::clone(jwt(authenticator)?.issuer());
        Some(Self { members: vec![Arc::clone(authenticator)], first: [(issuer, 0)].into_iter().collect() })
    }

    /// Takes another one behind them; says whether it is one of them.
    pub fn take(&mut self, authenticator: &Arc<Authenticator>) -> bool {
        let Some(next) = jwt(authenticator).filter(|next| self.at(0).is_some_and(|first| first.from == next.from)) else { return false };
        self.first.entry(Arc::clone(next.issuer())).or_insert(self.members.len());
        self.members.push(Arc::clone(authenticator));
        true
    }

    /// What the first of them says that does not leave the token to another.
    pub async fn authenticate(&self, request: &Request<'_>, now: Now) -> Verdict {
        let Some(first) = self.at(0) else { return Verdict::Pass };
        authenticate(first, |issuer| self.at(*self.first.get(issuer)?), request, now).await
    }

    /// All of them, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Authenticator>> {
        self.members.iter()
    }

    fn at(&self, place: usize) -> Option<&Jwt> {
        self.members.get(place).and_then(|authenticator| jwt(authenticator))
    }
}

fn jwt(authenticator: &Authenticator) -> Option<&Jwt> {
    match authenticator {
        Authenticator::Jwt(jwt) => Some(jwt),
        _ => None,
    }
}
