//! What is revoked, in memory, as every request meets it: exact, and one change costs the same whatever there is.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::{Kind, Revocation};
use crate::request::{Identity, Method};

/// What is revoked. The many that were there before are shared by one table and the next.
#[derive(Debug, Default)]
pub(super) struct Table {
    settled: Arc<Entries>,
    /// Replaces what is settled, value by value.
    recent: Entries,
    /// How many revocations there are.
    pub(super) len: usize,
}

/// What makes the next table of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Revoked, in addition to what is: nothing that is added narrows what there is.
    Add(Revocation),
    /// Revoked just so, whatever was.
    Set(Revocation),
    /// Taken back: what stands here beside its id says nothing.
    Remove(Revocation),
}

/// The recent ones before they settle: copied with each change.
const RECENT: usize = if cfg!(test) { 8 } else { 1024 };

/// What is said of one value. The whole value is compared: a filter with false positives would refuse the innocent.
type Values = HashMap<Box<[u8]>, Vec<Terms>, ahash::RandomState>;

#[derive(Debug, Default, Clone)]
struct Entries {
    tokens: Values,
    jtis: Values,
    subjects: Values,
    clients: Values,
    key_ids: Values,
    issuers: Values,
}

#[derive(Debug, Clone)]
struct Terms {
    issuer: Option<Box<str>>,
    before: Option<u64>,
    expires: Option<u64>,
    revoked: u64,
}

impl Table {
    /// Whether one identity is revoked, by any of its names.
    pub(super) fn revokes(&self, identity: &Identity) -> bool {
        let claim = |name: &str| identity.claims.get(name).and_then(Value::as_str);
        let issuer = claim("iss");
        let meets = |terms: &Terms| {
            let of_issuer = terms.issuer.as_deref().is_none_or(|of| issuer == Some(of));
            // A credential that does not say when it was issued may have been before.
            let issued = || identity.claims.get("iat").and_then(Value::as_f64);
            of_issuer && terms.before.is_none_or(|before| issued().is_none_or(|issued| issued < before as f64))
        };
        let revoked = |kind: Kind, value: &[u8]| self.find(kind, value).iter().any(meets);
        let named = |kind: Kind, value: Option<&str>| value.is_some_and(|value| revoked(kind, value.as_bytes()));
        revoked(Kind::Token, &identity.credential)
            || named(Kind::Jti, claim("jti"))
            || named(Kind::Subject, identity.subject.as_deref())
            || named(Kind::Client, identity.client.as_deref())
            || named(Kind::KeyId, identity.key_id.as_deref())
            || (identity.method == Method::ClientCertificate && revoked(Kind::KeyId, &hexadecimal(&identity.credential)))
            || named(Kind::Issuer, issuer)
    }

    /// The next table.
    pub(super) fn with(&self, changes: impl IntoIterator<Item = Change>) -> Self {
        let (mut recent, mut len) = (self.recent.clone(), self.len);
        for change in changes {
            let (Change::Add(revocation) | Change::Set(revocation) | Change::Remove(revocation)) = &change;
            let Revocation { kind, value, issuer, before, expires, revoked } = revocation.clone();
            let known = recent.of_mut(kind).remove(&value);
            let mut all = known.or_else(|| self.settled.of(kind).get(&value).cloned()).unwrap_or_default();
            let place = all.iter().position(|terms| terms.issuer == issuer);
            let terms = Terms { issuer, before, expires, revoked };
            match (&change, place.and_then(|place| all.get_mut(place))) {
                (Change::Add(_), Some(known)) => {
                    // `None` is the widest.
                    known.before = known.before.zip(before).map(|(one, other)| one.max(other));
                    known.expires = known.expires.zip(expires).map(|(one, other)| one.max(other));
                }
                (Change::Set(_), Some(known)) => *known = terms,
                (Change::Add(_) | Change::Set(_), None) => {
                    all.push(terms);
                    len += 1;
                }
                (Change::Remove(_), known) => {
                    len -= usize::from(known.is_some());
                    all.retain(|known| known.issuer != terms.issuer);
                }
            }
            // Also when nothing is left of it: it hides what is settled.
            recent.of_mut(kind).insert(value, all);
        }
        if recent.len() <= RECENT {
            return Self { settled: Arc::clone(&self.settled), recent, len };
        }
        let mut settled = Entries::clone(&self.settled);
        for kind in Kind::ALL {
            let values = settled.of_mut(kind);
            for (value, all) in std::mem::take(recent.of_mut(kind)) {
                if all.is_empty() {
                    values.remove(&value);
                } else {
                    values.insert(value, all);
                }
            }
        }
        Self { settled: Arc::new(settled), recent, len }
    }

    /// The table without what could only meet credentials that ended before a second; `None`: there is nothing of that kind.
    pub(super) fn without_expired(&self, second: u64) -> Option<Self> {
        let mut over = self.list();
        over.retain(|revocation| revocation.is_over(second));
        (!over.is_empty()).then(|| self.with(over.into_iter().map(Change::Remove)))
    }

    /// Everything that is revoked, in no order.
    pub(super) fn list(&self) -> Vec<Revocation> {
        let all = |kind: Kind| {
            let recent = self.recent.of(kind);
            recent.iter().chain(self.settled.of(kind).iter().filter(|(value, _)| !recent.contains_key(*value)))
        };
        let shown = |kind: Kind, value: &[u8], Terms { issuer, before, expires, revoked }: &Terms| Revocation {
            kind,
            value: value.into(),
            issuer: issuer.clone(),
            before: *before,
            expires: *expires,
            revoked: *revoked,
        };
        let listed = |kind| all(kind).flat_map(move |(value, terms)| terms.iter().map(move |terms| shown(kind, value, terms)));
        Kind::ALL.into_iter().flat_map(listed).collect()
    }

    fn find(&self, kind: Kind, value: &[u8]) -> &[Terms] {
        let found = self.recent.of(kind).get(value).or_else(|| self.settled.of(kind).get(value));
        found.map(Vec::as_slice).unwrap_or_default()
    }
}

impl Entries {
    fn of(&self, kind: Kind) -> &Values {
        match kind {
            Kind::Token => &self.tokens,
            Kind::Jti => &self.jtis,
            Kind::Subject => &self.subjects,
            Kind::Client => &self.clients,
            Kind::KeyId => &self.key_ids,
            Kind::Issuer => &self.issuers,
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut Values {
        match kind {
            Kind::Token => &mut self.tokens,
            Kind::Jti => &mut self.jtis,
            Kind::Subject => &mut self.subjects,
            Kind::Client => &mut self.clients,
            Kind::KeyId => &mut self.key_ids,
            Kind::Issuer => &mut self.issuers,
        }
    }

    fn len(&self) -> usize {
        Kind::ALL.into_iter().map(|kind| self.of(kind).len()).sum()
    }
}

/// A fingerprint as people and `X-Client-Cert-Fingerprint` write it.
fn hexadecimal(fingerprint: &[u8; 32]) -> [u8; 64] {
    let digit = |half: u8| half + if half < 10 { b'0' } else { b'a' - 10 };
    let mut text = [0; 64];
    for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(fingerprint) {
        *pair = [digit(byte >> 4), digit(byte & 15)];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::Order;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const NOW: u64 = 1_800_000_000;

    fn identity(subject: &str, claims: Value) -> Identity {
        let mut identity = Identity::new(Method::Jwt, "customers".into(), [1; 32]);
        identity.subject = Some(subject.into());
        identity.client = Some("shop".into());
        identity.claims = claims.as_object().unwrap().clone();
        identity
    }

    fn order(json: Value) -> Result<Revocation, &'static str> {
        serde_json::from_value::<Order>(json).unwrap().revocation(NOW)
    }

    #[test]
    fn each_kind_meets_what_it_names_and_nothing_else() {
        let alice = identity("alice", json!({"iss": "https://a.test", "jti": "7", "iat": NOW}));
        let untimed = identity("alice", json!({"iss": "https://a.test"}));
        let elsewhere = identity("alice", json!({"iss": "https://b.test", "jti": "7", "iat": NOW}));
        for (asked, refused) in [
            (json!({"subject": "alice"}), [true, true, true]),
            (json!({"subject": "alic"}), [false, false, false]),
            (json!({"client": "alice"}), [false, false, false]),
            (json!({"client": "shop"}), [true, true, true]),
            (json!({"subject": "alice", "issuer": "https://b.test"}), [false, false, true]),
            (json!({"jti": "7"}), [true, false, true]),
            (json!({"jti": "7", "issuer": "https://a.test"}), [true, false, false]),
            (json!({"issuer": "https://a.test"}), [true, true, false]),
            // Not before: a credential that does not say when it was issued is refused.
            (json!({"subject": "alice", "before": "2027-01-15T08:00:00Z"}), [false, true, false]),
            (json!({"subject": "alice", "before": "2027-01-15T08:00:01Z"}), [true, true, true]),
            (json!({"issuer": "https://a.test", "before": "now"}), [true, true, false]),
            (json!({"key_id": "7"}), [false, false, false]),
        ] {
            let table = Table::default().with([Change::Add(order(asked.clone()).unwrap())]);
            assert_eq!([&alice, &untimed, &elsewhere].map(|identity| table.revokes(identity)), refused, "{asked}");
        }
    }

    #[test]
    fn a_certificate_is_met_by_its_fingerprint_and_nothing_else_is() {
        let fingerprint = "ab01".repeat(16);
        let table = Table::default().with([Change::Add(order(json!({"key_id": fingerprint})).unwrap())]);
        let credential = [[0xab, 0x01]; 16].concat().try_into().unwrap();
        for (method, revoked) in [(Method::ClientCertificate, true), (Method::Jwt, false), (Method::ApiKey, false)] {
            assert_eq!(table.revokes(&Identity::new(method, "a".into(), credential)), revoked, "{method:?}");
        }
        assert!(!table.revokes(&Identity::new(Method::ClientCertificate, "a".into(), [0xab; 32])));
    }

    fn any_revocation() -> impl Strategy<Value = Revocation> {
        let word = prop_oneof![Just("a"), Just("b"), Just("c")];
        let issuer = prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))];
        (0..6_usize, word, issuer, proptest::option::of(0..4_u64), proptest::option::of(0..9_u64)).prop_map(
            |(kind, word, issuer, before, expires)| Revocation {
                kind: Kind::ALL[kind],
                value: if kind == 0 { Box::new([word.as_bytes()[0]; 32]) } else { word.as_bytes().into() },
                issuer: issuer.map(Into::into),
                before,
                expires,
                revoked: NOW,
            },
        )
    }

    fn any_change() -> impl Strategy<Value = Change> {
        (any_revocation(), 0..5).prop_map(|(revocation, what)| match what {
            0 => Change::Remove(revocation),
            1 => Change::Set(revocation),
            _ => Change::Add(revocation),
        })
    }

    fn key(revocation: &Revocation) -> (&'static str, Box<[u8]>, Option<Box<str>>) {
        (revocation.kind.label(), revocation.value.clone(), revocation.issuer.clone())
    }

    fn same(one: &Revocation, other: &Revocation) -> bool {
        key(one) == key(other)
    }

    proptest! {
        #[test]
        fn the_table_says_what_a_list_of_all_revocations_says(
            batches in proptest::collection::vec(proptest::collection::vec(any_change(), 0..6), 0..8),
            words in proptest::collection::vec(proptest::option::of(prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")]), 6),
            iat in proptest::option::of(0..4_u64),
        ) {
            let mut identity = Identity::new(Method::Jwt, "x".into(), [words[0].unwrap_or("d").as_bytes()[0]; 32]);
            (identity.subject, identity.client, identity.key_id) = (words[1].map(Into::into), words[2].map(Into::into), words[3].map(Into::into));
            for (name, value) in [("jti", words[4].map(Value::from)), ("iss", words[5].map(Value::from)), ("iat", iat.map(Value::from))] {
                identity.claims.extend(value.map(|value| (name.to_owned(), value)));
            }
            let is = |revocation: &Revocation| {
                let value = match revocation.kind {
                    Kind::Token => Some(identity.credential.to_vec()),
                    Kind::Subject => words[1].map(Into::into),
                    Kind::Client => words[2].map(Into::into),
                    Kind::KeyId => words[3].map(Into::into),
                    Kind::Jti => words[4].map(Into::into),
                    Kind::Issuer => words[5].map(Into::into),
                };
                value.is_some_and(|value| *value == *revocation.value)
                    && (revocation.issuer.is_none() || revocation.issuer.as_deref() == words[5])
                    && (revocation.before.is_none() || iat.is_none() || iat < revocation.before)
            };
            let (mut table, mut all) = (Table::default(), Vec::<Revocation>::new());
            for batch in &batches {
                table = table.with(batch.clone());
                prop_assert!(table.recent.len() <= RECENT);
                for change in batch {
                    match change {
                        Change::Add(one) => all.push(one.clone()),
                        Change::Set(one) => {
                            all.retain(|known| !same(known, one));
                            all.push(one.clone());
                        }
                        Change::Remove(one) => all.retain(|known| !same(known, one)),
                    }
                }
            }
            prop_assert_eq!(table.revokes(&identity), all.iter().any(is));
            all.sort_by_key(key);
            all.dedup_by(|one, other| same(one, other));
            let mut listed = table.list();
            prop_assert_eq!(table.len, listed.len());
            listed.sort_by_key(key);
            prop_assert_eq!(listed.iter().map(key).collect::<Vec<_>>(), all.iter().map(key).collect::<Vec<_>>());
            let later = table.without_expired(4);
            let left = later.as_ref().unwrap_or(&table).list();
            prop_assert_eq!(left.len(), listed.iter().filter(|one| one.expires.is_none_or(|expires| expires > 4)).count());
        }
    }
}
