//! What many tokens say alike, kept once: a request then finds it in the processor's caches, whoever calls.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use super::Verified;

/// How many of a kind are known: issuers say few, and one that says ever new ones must not fill the memory.
const MOST: usize = 1024;

/// The words of all tokens.
#[derive(Debug, Default)]
pub(super) struct Shared {
    words: Pool<str>,
    lists: Pool<[Arc<str>]>,
}

impl Shared {
    /// Has a token say with others what they say alike.
    pub(super) fn unite(&self, verified: &mut Verified) {
        let registered = &mut verified.registered;
        verified.typ.iter_mut().chain(&mut registered.issuer).for_each(|word| self.words.unite(word));
        self.lists.unite(&mut registered.audiences);
        if let Some(identity) = Arc::get_mut(&mut verified.identity) {
            self.lists.unite(&mut identity.scopes);
            self.lists.unite(&mut identity.roles);
        }
    }
}

/// Whether another token than this one says the same, beside the pool that knows it.
pub(super) fn is_shared<T: ?Sized>(value: &Arc<T>) -> bool {
    Arc::strong_count(value) > 2
}

#[derive(Debug)]
struct Pool<T: ?Sized>(Mutex<HashSet<Arc<T>>>);

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn unite(&self, value: &mut Arc<T>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&**value) {
            *value = known.clone();
            return;
        }
        // Those that are said again come back.
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_equal_becomes_one_and_what_is_not_stays_apart() {
        let pool = Pool::<[Arc<str>]>::default();
        let list = |words: &[&str]| {
            let mut list: Arc<[Arc<str>]> = words.iter().map(|word| Arc::from(*word)).collect();
            pool.unite(&mut list);
            list
        };
        let one = list(&["a", "b"]);
        assert!(!is_shared(&one));
        let (same, other) = (list(&["a", "b"]), list(&["b", "a"]));
        assert!(Arc::ptr_eq(&one, &same) && is_shared(&same) && !is_shared(&other));
        assert_eq!((&*one, &*other), (&["a".into(), "b".into()][..], &["b".into(), "a".into()][..]));
    }

    #[test]
    fn no_more_than_some_are_known_however_many_are_said() {
        let pool = Pool::<str>::default();
        for number in 0..5 * MOST {
            let mut word: Arc<str> = number.to_string().into();
            pool.unite(&mut word);
            assert_eq!(*word, *number.to_string());
            assert!(pool.0.lock().unwrap().len() <= MOST);
        }
    }
}
