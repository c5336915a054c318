//! API keys: a shared secret that a consumer sends with each request, known to us by its hash.
//!
//! The outside learns one thing of a key that is not good, whatever the reason; the log learns which. Rate limits, and scopes that a
//! route asks for, are judged later, by others.

use std::sync::Arc;
use std::time::Duration;

use super::credential::{self, Found};
use super::key_format;
use super::{Challenge, Verdict};
use crate::config::{self, KeyEntry, KeyStore, Location};
use crate::live::LiveState;
use crate::live::api_keys::{ApiKeys, Key, KeyHash, Previous, Record, Source, Table};
use crate::request::{Now, Rejection, Request};

/// An `api_key` authenticator, ready to judge.
#[derive(Debug)]
pub struct ApiKey {
    name: Arc<str>,
    from: Vec<Location>,
    prefix: Arc<str>,
    table: Arc<Table>,
    live: Arc<ApiKeys>,
}

impl ApiKey {
    /// Compiles an authenticator. The keys of a file are frozen in it; those of a database are followed by the live state, so that
    /// nothing is opened or created here.
    pub fn new(name: Arc<str>, config: &config::ApiKey, live: &LiveState) -> Self {
        let source = match &config.keys.value {
            KeyStore::Database(path) => Source::Database(path.clone()),
            KeyStore::File { file, .. } => Source::File(file.path.clone()),
        };
        let live = live.api_keys.find_or_create(&source, || ApiKeys::new(source.clone()));
        let table = match &config.keys.value {
            KeyStore::Database(_) => live.table().clone(),
            KeyStore::File { keys, .. } => Arc::new(keys.iter().cloned().map(Record::from).collect()),
        };
        Self { name, from: config.from.clone(), prefix: config.prefix.clone(), table, live }
    }

    /// Judges the key that a request carries.
    pub fn authenticate(&self, request: &Request<'_>, now: Now) -> Verdict {
        let presented = match credential::find(&self.from, request) {
            Found::Absent => return Verdict::Pass,
            Found::Ambiguous(reason) => return Verdict::Reject(Rejection::BadRequest(reason)),
            Found::Malformed(reason) => return refuse(reason),
            Found::One(presented) => presented,
        };
        let ours = presented.starts_with(&*self.prefix);
        if !ours && self.is_shared(request) && (presented.len() > MAX_LENGTH || !self.live.is_loaded()) {
            return Verdict::Pass;
        }
        if presented.len() > MAX_LENGTH {
            return refuse("malformed");
        }
        if ours && !key_format::checksum_holds(&presented) {
            return refuse("checksum");
        }
        if !self.live.is_loaded() {
            return Verdict::Reject(Rejection::DependencyUnavailable { dependency: "api_keys", retry_after: Duration::from_secs(1) });
        }
        let hash = KeyHash::of(&presented);
        match self.table.find(&hash) {
            Some(known) => {
                let (identity, now) = (known.identity(&self.name), now.unix.as_secs());
                if let Err(rejection) = judge(&known, &hash, request, now) {
                    return Verdict::Reject(rejection);
                }
                self.live.count(&known, request.client.address, now);
                let identity = identity.cloned();
                Verdict::Accept(identity.unwrap_or_else(|| self.table.introduce(known, &self.name)).into())
            }
            None if !ours && self.is_shared(request) => Verdict::Pass,
            None => refuse("unknown"),
        }
    }

    /// The name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where the key is looked for.
    pub fn locations(&self) -> &[Location] {
        &self.from
    }

    /// What a caller is told to present: keys have no scheme of their own, but where they stand in that of tokens.
    pub fn challenge(&self) -> Challenge {
        match self.from.iter().any(|location| location.has_scheme("Bearer")) {
            true => Challenge::token("Bearer"),
            false => Challenge::new("ApiKey"),
        }
    }

    /// Whether what was found stands where tokens of other kinds stand too, so that one without our prefix may be another's to judge.
    fn is_shared(&self, request: &Request<'_>) -> bool {
        let first = self.from.iter().find(|location| credential::is_present(std::slice::from_ref(location), request));
        matches!(first, Some(Location::Header { name: http::header::AUTHORIZATION, scheme: Some(_) }))
    }
}

/// Longer than any key that is known to us from elsewhere, and short enough that hashing it costs nothing.
const MAX_LENGTH: usize = 512;

fn judge(key: &Key, presented: &KeyHash, request: &Request<'_>, now: u64) -> Result<(), Rejection> {
    let reason = if !key.is_opened_by(presented, now) {
        "rotated"
    } else if key.is_revoked() {
        "revoked"
    } else if key.is_expired(now) {
        "expired"
    } else if !key.is_valid_yet(now) {
        "not_yet_valid"
    } else if !key.opens_route(request.route) {
        "route"
    } else if !key.allows_address(request.client.address) {
        return Err(Rejection::AddressDenied);
    } else {
        return Ok(());
    };
    Err(Rejection::CredentialInvalid(reason))
}

fn refuse(reason: &'static str) -> Verdict {
    Verdict::Reject(Rejection::CredentialInvalid(reason))
}

impl From<KeyEntry> for Record {
    fn from(entry: KeyEntry) -> Self {
        Self {
            id: entry.id,
            sha256: KeyHash(entry.sha256),
            previous: entry.previous_sha256.map(|(sha256, ends)| Previous { sha256: KeyHash(sha256), ends }),
            consumer: entry.consumer,
            scopes: entry.scopes,
            routes: entry.routes,
            allow: entry.allow,
            plan: entry.plan,
            created: entry.created,
            not_before: entry.not_before,
            expires: entry.expires,
            revoked: entry.revoked,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;

    use http::{HeaderMap, HeaderName, HeaderValue, Method};
    use proptest::prelude::*;

    use super::*;
    use crate::config::{At, File, Place};
    use crate::live::database::Opening;
    use crate::live::key_store;
    use crate::request::{Client, Identity};

    const NOW: u64 = 1_800_000_000;

    fn at(unix: u64) -> Now {
        Now { monotonic: Duration::ZERO, unix: Duration::from_secs(unix) }
    }

    fn place() -> Place {
        Place { file: "edgeward.yaml".into(), line: 1, column: 1, path: "authenticators.partners".into() }
    }

    fn header() -> Location {
        Location::Header { name: HeaderName::from_static("x-api-key"), scheme: None }
    }

    fn bearer() -> Location {
        Location::Header { name: http::header::AUTHORIZATION, scheme: Some("Bearer".into()) }
    }

    fn entry(id: &str, key: &str) -> KeyEntry {
        KeyEntry {
            id: id.into(),
            sha256: KeyHash::of(key).0,
            previous_sha256: None,
            consumer: "acme".into(),
            scopes: vec![],
            routes: vec![],
            allow: vec![],
            plan: None,
            created: None,
            not_before: None,
            expires: None,
            revoked: None,
        }
    }

    fn in_file(path: &Path, keys: Vec<KeyEntry>) -> config::ApiKey {
        let file = File { path: path.to_owned(), bytes: Arc::new([]), place: place() };
        let keys = At { value: KeyStore::File { file, keys }, place: place() };
        config::ApiKey { from: vec![header(), bearer()], prefix: "ck_live_".into(), keys }
    }

    fn in_database(path: &Path) -> config::ApiKey {
        let keys = At { value: KeyStore::Database(path.to_owned()), place: place() };
        config::ApiKey { from: vec![header(), bearer()], prefix: "ck_live_".into(), keys }
    }

    fn ask(api_key: &ApiKey, lines: &[(&str, &str)], route: &str, address: &str, now: u64) -> Result<Option<Arc<Identity>>, Rejection> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let client = Client { address: address.parse().unwrap(), through_trusted_proxy: false };
        let request = Request { route, ..Request::new(&Method::GET, "h", "/", &headers, &client) };
        match api_key.authenticate(&request, at(now)) {
            Verdict::Accept(proof) => Ok(Some(proof.identity)),
            Verdict::Pass => Ok(None),
            Verdict::Reject(rejection) => Err(rejection),
        }
    }

    fn key_of(n: u8) -> String {
        key_format::compose("ck_live_", "7f3k2m9q", &[n; 32]).to_string()
    }

    #[test]
    fn a_key_is_accepted_only_when_everything_about_it_holds() {
        let good = key_of(1);
        let (scopes, plan) = (vec!["orders:read".into()], Some("gold".into()));
        let keys = vec![
            KeyEntry { scopes, plan, ..entry("good", &good) },
            KeyEntry { revoked: Some(NOW + 1000), ..entry("revoked", &key_of(2)) },
            KeyEntry { expires: Some(NOW), ..entry("expired", &key_of(3)) },
            KeyEntry { expires: Some(NOW + 1), ..entry("expires-next-second", &key_of(4)) },
            KeyEntry { not_before: Some(NOW + 1), ..entry("not-yet", &key_of(5)) },
            KeyEntry { not_before: Some(NOW), ..entry("just-now", &key_of(6)) },
            KeyEntry { routes: vec!["a".into(), "b".into()], ..entry("on-b", &key_of(7)) },
            KeyEntry { routes: vec!["orders2".into()], ..entry("on-another", &key_of(8)) },
            KeyEntry { allow: vec!["192.0.2.0/25".parse().unwrap(), "::/0".parse().unwrap()], ..entry("near", &key_of(9)) },
            KeyEntry { allow: vec!["192.0.2.128/25".parse().unwrap()], ..entry("far", &key_of(10)) },
            KeyEntry { previous_sha256: Some((KeyHash::of(&key_of(12)).0, NOW + 1)), ..entry("in-grace", &key_of(11)) },
            KeyEntry { previous_sha256: Some((KeyHash::of(&key_of(14)).0, NOW)), ..entry("after-grace", &key_of(13)) },
            entry("foreign", "legacy-key-0001"),
            entry("foreign-dots", "a.b.c"),
            entry("foreign-long", &"x".repeat(512)),
        ];
        let api_key = ApiKey::new("partners".into(), &in_file(Path::new("keys.yaml"), keys), &LiveState::default());
        let invalid = |reason| Err(Rejection::CredentialInvalid(reason));
        let mut typo = good.clone();
        typo.pop();
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Result<Option<&'a str>, Rejection>);
        let rows: &[Row<'_>] = &[
            ("a good key", &[("x-api-key", &good)], Ok(Some("good"))),
            ("a good key as a bearer token", &[("authorization", &format!("Bearer {good}"))], Ok(Some("good"))),
            ("a key that expires in the next second", &[("x-api-key", &key_of(4))], Ok(Some("expires-next-second"))),
            ("a key that is valid from this second", &[("x-api-key", &key_of(6))], Ok(Some("just-now"))),
            ("a key for several routes", &[("x-api-key", &key_of(7))], Ok(Some("on-b"))),
            ("a key from an allowed address", &[("x-api-key", &key_of(9))], Ok(Some("near"))),
            ("the new key during the grace", &[("x-api-key", &key_of(11))], Ok(Some("in-grace"))),
            ("the old key during the grace", &[("x-api-key", &key_of(12))], Ok(Some("in-grace"))),
            ("the new key after the grace", &[("x-api-key", &key_of(13))], Ok(Some("after-grace"))),
            ("the old key after the grace", &[("x-api-key", &key_of(14))], invalid("rotated")),
            ("a foreign key", &[("x-api-key", "legacy-key-0001")], Ok(Some("foreign"))),
            ("a foreign key as a bearer token", &[("authorization", "Bearer legacy-key-0001")], Ok(Some("foreign"))),
            ("a foreign key that looks like a token", &[("authorization", "Bearer a.b.c")], Ok(Some("foreign-dots"))),
            ("a foreign key as long as may be", &[("x-api-key", &"x".repeat(512))], Ok(Some("foreign-long"))),
            ("a revoked key, whatever the time says", &[("x-api-key", &key_of(2))], invalid("revoked")),
            ("an expired key", &[("x-api-key", &key_of(3))], invalid("expired")),
            ("a key that is not valid yet", &[("x-api-key", &key_of(5))], invalid("not_yet_valid")),
            ("a key for a route with a longer name", &[("x-api-key", &key_of(8))], invalid("route")),
            ("a key from another address", &[("x-api-key", &key_of(10))], Err(Rejection::AddressDenied)),
            ("an unknown key", &[("x-api-key", &key_of(99))], invalid("unknown")),
            ("an unknown key as a bearer token", &[("authorization", &format!("Bearer {}", key_of(99)))], invalid("unknown")),
            ("a typo", &[("x-api-key", &typo)], invalid("checksum")),
            ("a typo in a bearer token", &[("authorization", &format!("Bearer {typo}"))], invalid("checksum")),
            ("the prefix alone", &[("x-api-key", "ck_live_")], invalid("checksum")),
            ("an unknown foreign key", &[("x-api-key", "legacy-key-0002")], invalid("unknown")),
            ("a token for somebody else", &[("authorization", "Bearer e30.e30.x")], Ok(None)),
            ("a long token for somebody else", &[("authorization", &format!("Bearer {}", "x".repeat(513)))], Ok(None)),
            ("something too long", &[("x-api-key", &"x".repeat(513))], invalid("malformed")),
            ("64 KiB with our prefix", &[("authorization", &format!("Bearer ck_live_{}", "x".repeat(1 << 16)))], invalid("malformed")),
            ("an empty key", &[("x-api-key", "")], invalid("malformed")),
            ("a key with something after it", &[("x-api-key", &format!("{good} x"))], invalid("malformed")),
            ("a key in the other case", &[("x-api-key", &good.to_uppercase())], invalid("unknown")),
            ("the hash for the key", &[("x-api-key", &good.bytes().map(|b| format!("{b:02x}")).collect::<String>())], invalid("unknown")),
            ("no key", &[], Ok(None)),
            ("another scheme", &[("authorization", "Basic eDp5")], Ok(None)),
            ("two keys", &[("x-api-key", &good), ("x-api-key", &good)], Err(Rejection::BadRequest("credential_repeated"))),
        ];
        for (name, lines, expected) in rows {
            let verdict = ask(&api_key, lines, "b", "192.0.2.1", NOW);
            let verdict = verdict.map(|identity| identity.map(|identity| identity.key_id.as_deref().unwrap().to_owned()));
            let expected = expected.clone().map(|id| id.map(str::to_owned));
            assert_eq!(verdict, expected, "{name}");
        }
    }

    #[test]
    fn an_address_list_means_every_address_in_it_and_no_other() {
        let nets: Vec<ipnet::IpNet> = ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7/32", "192.0.2.9/24", "2001:db8::/32", "0.0.0.0/32"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let table = Table::default();
        table.apply(Record { allow: nets.clone(), ..entry("a", "k").into() });
        let key = table.find(&KeyHash::of("k")).unwrap();
        for text in ["10.0.0.0", "10.255.255.255", "11.0.0.0", "9.255.255.255", "192.0.2.0", "192.0.2.255", "192.0.3.0", "0.0.0.0"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(key.allows_address(address), nets.iter().any(|net| net.contains(&address)), "{text}");
        }
        for (text, allowed) in [("2001:db8::1", true), ("2001:db9::", false), ("::", false), ("::ffff:10.0.0.1", false)] {
            assert_eq!(key.allows_address(text.parse().unwrap()), allowed, "{text}");
        }
    }

    #[test]
    fn an_identity_says_what_the_key_is_and_not_its_secret() {
        let secret = key_of(1);
        let keys = vec![KeyEntry { scopes: vec!["orders:read".into()], plan: Some("gold".into()), ..entry("7f3k2m9q", &secret) }];
        let live = LiveState::default();
        let one = ApiKey::new("partners".into(), &in_file(Path::new("k"), keys.clone()), &live);
        let identity = ask(&one, &[("x-api-key", &secret)], "r", "192.0.2.1", NOW).unwrap().unwrap();
        assert_eq!((identity.method.label(), &*identity.authenticator), ("api_key", "partners"));
        assert_eq!((identity.consumer.as_deref(), identity.key_id.as_deref()), (Some("acme"), Some("7f3k2m9q")));
        assert_eq!((identity.subject.as_deref(), identity.plan.as_deref()), (None, Some("gold")));
        assert_eq!((&*identity.scopes, identity.credential), (&["orders:read".into()][..], KeyHash::of(&secret).0));
        let again = ask(&one, &[("x-api-key", &secret)], "r", "192.0.2.1", NOW).unwrap().unwrap();
        assert!(Arc::ptr_eq(&identity, &again), "built once");

        let shown = format!("{one:?} {:?}", Record::from(keys[0].clone()));
        assert!(shown.contains("7f3k2m9q"));
        assert!(!shown.contains(&secret[20..40]) && !shown.contains(&format!("{:?}", &KeyHash::of(&secret).0[..4])[1..]), "{shown}");
    }

    #[test]
    fn until_the_store_was_read_nobody_knows_and_nothing_is_created() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/keys.db");
        let live = LiveState::default();
        let api_key = ApiKey::new("p".into(), &in_database(&path), &live);
        let refused = ask(&api_key, &[("x-api-key", &key_of(1))], "r", "192.0.2.1", NOW).unwrap_err();
        assert_eq!((refused.status().as_u16(), refused.reason()), (503, Some("api_keys")));
        assert_eq!(
            ask(&api_key, &[("authorization", "Bearer e30.e30.x")], "r", "192.0.2.1", NOW),
            Ok(None),
            "a token is not ours to judge"
        );
        assert_eq!(ask(&api_key, &[], "r", "192.0.2.1", NOW), Ok(None));
        drop(api_key);
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);

        let api_key = ApiKey::new("p".into(), &in_database(&path), &live);
        api_key.live.refresh().unwrap();
        assert!(path.exists());
        assert_eq!(
            ask(&api_key, &[("x-api-key", &key_of(1))], "r", "192.0.2.1", NOW),
            Err(Rejection::CredentialInvalid("unknown")),
            "an empty store opens nothing"
        );
    }

    #[test]
    fn a_candidate_that_is_thrown_away_changes_nothing() {
        let live = LiveState::default();
        let path = Path::new("keys.yaml");
        let serving = ApiKey::new("p".into(), &in_file(path, vec![entry("a", &key_of(1))]), &live);
        drop(ApiKey::new("p".into(), &in_file(path, vec![]), &live));
        assert!(ask(&serving, &[("x-api-key", &key_of(1))], "r", "192.0.2.1", NOW).unwrap().is_some());
    }

    #[test]
    fn the_usage_of_file_keys_survives_reloads_and_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        let usage = |id: &str| {
            let store = key_store::KeyStore::open(&folder.path().join("keys.yaml.usage.db"), Opening::Existing, Duration::ZERO).unwrap();
            store.usage(id).unwrap().map(|row| (row.requests, row.last_used, row.last_address.unwrap().to_string()))
        };
        for restart in 1..=2 {
            let live = LiveState::default();
            let one = ApiKey::new("p".into(), &in_file(&path, vec![entry("a", &key_of(1)), entry("b", &key_of(2))]), &live);
            ask(&one, &[("x-api-key", &key_of(1))], "r", "192.0.2.1", NOW).unwrap();
            let two = ApiKey::new("p".into(), &in_file(&path, vec![entry("a", &key_of(3)), entry("c", &key_of(4))]), &live);
            ask(&two, &[("x-api-key", &key_of(3))], "r", "192.0.2.2", NOW + restart).unwrap();
            ask(&two, &[("x-api-key", &key_of(1))], "r", "192.0.2.3", NOW + restart).unwrap_err();
            drop(one);
            two.live.flush();
            assert_eq!(usage("a"), Some((2 * restart, NOW + restart, "192.0.2.2".into())));
            assert_eq!(usage("b"), None);
        }
    }

    /// What may happen to the keys of a store, by another process than the one that judges.
    #[derive(Debug, Clone)]
    enum Step {
        Create { lifetime: Option<u64>, delay: Option<u64> },
        Rotate { which: usize, grace: u64 },
        Revoke { which: usize },
        Wait { seconds: u64 },
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (prop::option::of(0..20_u64), prop::option::of(0..10_u64)).prop_map(|(lifetime, delay)| Step::Create { lifetime, delay }),
            3 => (0..8_usize, 0..10_u64).prop_map(|(which, grace)| Step::Rotate { which, grace }),
            1 => (0..8_usize).prop_map(|which| Step::Revoke { which }),
            3 => (0..8_u64).prop_map(|seconds| Step::Wait { seconds }),
            1 => Just(Step::Reopen),
        ]
    }

    /// The same in plain words: each secret that was ever given out, and what is true of it.
    struct Given {
        key: String,
        id: usize,
        not_before: u64,
        expires: u64,
        ends: u64,
        revoked: bool,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_key_is_good_exactly_when_its_history_says_so(steps in prop::collection::vec(step(), 1..24)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("keys.db");
            let mut writer = key_store::KeyStore::open(&path, Opening::Create, Duration::from_secs(5)).unwrap();
            let mut live = LiveState::default();
            let mut api_key = ApiKey::new("p".into(), &in_database(&path), &live);
            let (mut now, mut ids, mut given) = (NOW, 0, Vec::<Given>::new());
            for (n, step) in steps.into_iter().enumerate() {
                let fresh = key_format::compose("ck_live_", "x", &[u8::try_from(n).unwrap(); 32]).to_string();
                match step {
                    Step::Create { lifetime, delay } => {
                        let (expires, not_before) = (lifetime.map(|l| now + l), delay.map(|d| now + d));
                        let record = Record { expires, not_before, ..entry(&ids.to_string(), &fresh).into() };
                        writer.insert(&[record]).unwrap();
                        let (not_before, expires) = (not_before.unwrap_or(0), expires.unwrap_or(u64::MAX));
                        given.push(Given { key: fresh, id: ids, not_before, expires, ends: u64::MAX, revoked: false });
                        ids += 1;
                    }
                    Step::Rotate { which, grace } if ids > 0 => {
                        let id = which % ids;
                        writer.update(&id.to_string(), |record| { record.rotate(KeyHash::of(&fresh), now + grace); Ok(()) }).unwrap();
                        let mut current = None;
                        for old in given.iter_mut().filter(|old| old.id == id) {
                            if old.ends == u64::MAX {
                                current = Some((old.not_before, old.expires, old.revoked));
                                old.ends = now + grace;
                            } else {
                                old.ends = 0; // only one old key has a grace
                            }
                        }
                        let (not_before, expires, revoked) = current.unwrap();
                        given.push(Given { key: fresh, id, not_before, expires, ends: u64::MAX, revoked });
                    }
                    Step::Revoke { which } if ids > 0 => {
                        let id = which % ids;
                        writer.update(&id.to_string(), |record| { record.revoked = Some(now); Ok(()) }).unwrap();
                        given.iter_mut().filter(|g| g.id == id).for_each(|g| g.revoked = true);
                    }
                    Step::Wait { seconds } => now += seconds,
                    Step::Reopen => {
                        live = LiveState::default();
                        api_key = ApiKey::new("p".into(), &in_database(&path), &live);
                    }
                    Step::Rotate { .. } | Step::Revoke { .. } => {}
                }
                api_key.live.refresh().unwrap();
                for g in &given {
                    let expected = !g.revoked && g.not_before <= now && now < g.expires && now < g.ends;
                    let verdict = ask(&api_key, &[("x-api-key", &g.key)], "r", "192.0.2.1", now);
                    prop_assert_eq!(verdict.as_ref().is_ok_and(Option::is_some), expected, "{:?}", verdict);
                    if let Err(rejection) = verdict {
                        prop_assert_eq!(rejection.code(), "credential_invalid");
                    }
                }
            }
            drop(live);
        }
    }

    #[test]
    fn a_key_that_rotates_is_never_refused_meanwhile() {
        let table = Arc::new(Table::default());
        let (first, second) = (KeyHash::of("1"), KeyHash::of("2"));
        let record = |now, before| Record { sha256: now, previous: Some(Previous { sha256: before, ends: NOW }), ..entry("a", "1").into() };
        table.apply(record(first, second));
        std::thread::scope(|scope| {
            let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let reader = {
                let (table, done) = (table.clone(), done.clone());
                scope.spawn(move || {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        for hash in [first, second] {
                            assert!(table.find(&hash).is_some_and(|key| key.is_opened_by(&hash, NOW - 1)));
                        }
                    }
                })
            };
            for round in 0..20_000 {
                table.apply(if round % 2 == 0 { record(second, first) } else { record(first, second) });
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            reader.join().unwrap();
        });
        assert_eq!(table.len(), 1);
    }
}
