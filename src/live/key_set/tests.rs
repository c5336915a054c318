//! Issuers that are slow, wrong, silent or away, and what becomes of their keys.

use super::script::{Answer, Issuer, URL, clock, id, upkeep};
use super::*;
use crate::jose::{Algorithm, SigningKey};
use serde_json::json;

fn document(kids: &[&str]) -> String {
    let keys: Vec<_> = kids.iter().map(|kid| SigningKey::generate(Algorithm::EdDsa, kid).unwrap().to_public_jwk().unwrap()).collect();
    json!({ "keys": keys }).to_string()
}

fn kids(set: &KeySet) -> Vec<String> {
    let held = set.current();
    held.as_ref().map(|held| held.keys().keys().iter().filter_map(|key| key.kid()).map(str::to_owned).collect()).unwrap_or_default()
}

struct Running {
    set: Arc<KeySet>,
    issuer: Arc<Issuer>,
    clock: Clock,
    task: tokio::task::JoinHandle<()>,
    _upkeep: Arc<Upkeep>,
}

async fn run(id: KeySetId, upkeep: Upkeep, answers: &[(&str, Answer)]) -> Running {
    let issuer = Arc::new(Issuer::default());
    for (url, answer) in answers {
        issuer.answers(url, answer.clone());
    }
    let (set, clock) = (Arc::new(KeySet::new(id, issuer.clone())), clock());
    let _upkeep = set.keep_up(upkeep);
    let task = tokio::spawn(KeySet::maintain(Arc::downgrade(&set), clock.clone()));
    set.started(Duration::from_secs(60)).await;
    Running { set, issuer, clock, task, _upkeep }
}

impl Running {
    async fn ask(&self) {
        self.set.ask_for_news((self.clock)(), Duration::from_secs(5)).await;
    }
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn five_hundred_callers_at_a_cold_start_cause_one_fetch_and_all_get_keys() {
    let issuer = Arc::new(Issuer::default());
    issuer.answers(URL, Answer::Slow(Duration::from_secs(2), document(&["a"])));
    let set = Arc::new(KeySet::new(id(), issuer.clone()));
    let _upkeep = set.keep_up(upkeep());
    let callers: Vec<_> = (0..500)
        .map(|_| {
            let set = set.clone();
            tokio::spawn(async move {
                set.started(Duration::from_secs(5)).await;
                kids(&set)
            })
        })
        .collect();
    tokio::spawn(KeySet::maintain(Arc::downgrade(&set), clock()));
    for caller in callers {
        assert_eq!(caller.await.unwrap(), ["a"]);
    }
    assert_eq!(issuer.count(URL), 1);
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_is_dead_at_the_start_is_asked_again_after_a_second_and_then_ever_slower() {
    let running = run(id(), upkeep(), &[(URL, Answer::Away)]).await;
    assert!(running.set.is_failing());
    assert_eq!(running.set.retry_after((running.clock)()), Duration::from_secs(1));
    // Waiting for the start is over: callers are answered at once while the issuer is away.
    let before = tokio::time::Instant::now();
    running.set.started(Duration::from_secs(5)).await;
    assert_eq!(before.elapsed(), Duration::ZERO);
    pass(60).await;
    let tries = running.issuer.count(URL);
    assert!((10..=20).contains(&tries), "{tries}");
    assert!(running.set.retry_after((running.clock)()) <= LAST_RETRY_EMPTY);
    let status = running.set.status();
    assert_eq!((status.keys, status.fetched_at, status.failures), (0, None, tries as u64));
    assert_eq!(status.last_error.as_deref(), Some("connection refused"));
    running.issuer.answers(URL, Answer::Document(document(&["a"])));
    pass(5).await;
    assert_eq!(kids(&running.set), ["a"]);
    assert_eq!((running.set.status().failures, running.set.is_failing()), (0, false));
}

#[tokio::test(start_paused = true)]
async fn a_bad_answer_keeps_the_keys_and_their_age_grows() {
    let good = document(&["a"]);
    let running = run(id(), upkeep(), &[(URL, Answer::Document(good.clone()))]).await;
    let cut: String = good.chars().take(40).collect();
    for bad in [
        Answer::Document("<html>maintenance</html>".into()),
        Answer::Document(String::new()),
        Answer::Document("{}".into()),
        Answer::Document(r#"{"keys":[]}"#.into()),
        Answer::Document(r#"{"keys":null}"#.into()),
        Answer::Document(r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#.into()),
        Answer::Document(cut),
        Answer::Document(format!("{good}{}", " ".repeat(MAX_BODY))),
        Answer::Document(json!({"keys": vec![1; 1001]}).to_string()),
        Answer::Status(500),
        Answer::Status(204),
        Answer::Status(302),
        Answer::Status(304),
        Answer::Away,
        Answer::Silent,
    ] {
        running.issuer.answers(URL, bad.clone());
        let before = running.set.status().failures;
        pass(310).await;
        assert_eq!(kids(&running.set), ["a"], "{bad:?}");
        assert!(running.set.status().failures > before, "{bad:?}");
        let tried = running.issuer.count(URL);
        pass(120).await;
        assert!(running.issuer.count(URL) - tried <= 5, "failures are not retried fast while keys are held");
    }
    let age = running.set.current().as_ref().unwrap().age((running.clock)());
    assert!(age > Duration::from_secs(6000), "{age:?}");
    running.issuer.answers(URL, Answer::Document(document(&["b"])));
    pass(70).await;
    assert_eq!(kids(&running.set), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_unknown_kids_causes_one_fetch_in_ten_seconds_and_a_rotation_after_it_is_seen() {
    let running = run(id(), upkeep(), &[(URL, Answer::Document(document(&["a"])))]).await;
    for _ in 0..60 {
        for _ in 0..100 {
            running.ask().await;
        }
        pass(1).await;
    }
    let asked = running.issuer.count(URL);
    assert!((6..=8).contains(&asked), "{asked}");
    running.issuer.answers(URL, Answer::Document(document(&["b"])));
    pass(10).await;
    running.ask().await;
    assert_eq!(kids(&running.set), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_rotation_right_after_the_first_fetch_is_seen_by_all_who_ask_with_one_fetch() {
    let running = run(id(), upkeep(), &[(URL, Answer::Document(document(&["a"])))]).await;
    running.issuer.answers(URL, Answer::Slow(Duration::from_secs(1), document(&["a", "b"])));
    let (now, set) = ((running.clock)(), &running.set);
    let asks: Vec<_> = (0..100)
        .map(|_| {
            let set = set.clone();
            tokio::spawn(async move {
                set.ask_for_news(now, Duration::from_secs(5)).await;
                kids(&set)
            })
        })
        .collect();
    for ask in asks {
        assert_eq!(ask.await.unwrap(), ["a", "b"]);
    }
    assert_eq!(running.issuer.count(URL), 2);
}

#[tokio::test(start_paused = true)]
async fn who_asks_while_an_older_fetch_is_under_way_waits_for_one_that_began_later() {
    let running = run(id(), upkeep(), &[(URL, Answer::Document(document(&["a"])))]).await;
    // The regular refresh is under way, and will bring what was true before the rotation.
    running.issuer.answers(URL, Answer::Slow(Duration::from_secs(3), document(&["a"])));
    while running.issuer.count(URL) < 2 {
        pass(1).await;
    }
    running.issuer.answers(URL, Answer::Document(document(&["b"])));
    running.ask().await;
    assert_eq!(kids(&running.set), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn asking_an_issuer_that_is_silent_ends_with_the_deadline() {
    let running = run(id(), upkeep(), &[(URL, Answer::Document(document(&["a"])))]).await;
    running.issuer.answers(URL, Answer::Silent);
    let before = tokio::time::Instant::now();
    running.ask().await;
    assert!(before.elapsed() <= Duration::from_millis(5100), "{:?}", before.elapsed());
    assert_eq!(kids(&running.set), ["a"]);
    pass(1).await;
    assert!(running.set.is_failing());
}

#[tokio::test(start_paused = true)]
async fn cache_headers_hasten_a_refresh_within_bounds_and_an_etag_saves_the_document() {
    for (headers, least, most) in [
        (vec![], 240, 300),
        (vec![("cache-control", "max-age=100")], 80, 100),
        (vec![("cache-control", "public, Max-Age=\"100\""), ("age", "20")], 64, 80),
        (vec![("cache-control", "max-age=1")], 24, 30),
        (vec![("cache-control", "no-store")], 24, 30),
        (vec![("cache-control", "max-age=999999999")], 240, 300),
        (vec![("cache-control", "max-age=-1")], 240, 300),
    ] {
        let headers = [headers, vec![("etag", "\"1\"")]].concat();
        let running = run(id(), upkeep(), &[(URL, Answer::WithHeaders(document(&["a"]), headers.clone()))]).await;
        let first = running.set.current().as_ref().unwrap().generation();
        pass(least - 1).await;
        assert_eq!(running.issuer.count(URL), 1, "{headers:?}");
        pass(most - least + 2).await;
        assert_eq!(running.issuer.count(URL), 2, "{headers:?}");
        let held = running.set.current().clone().unwrap();
        assert_eq!(held.generation(), first, "304 brings no new generation");
        assert!(held.age((running.clock)()) <= Duration::from_secs(most - least + 2), "and makes the keys young again");
    }
}

#[tokio::test(start_paused = true)]
async fn discovery_is_believed_only_about_its_own_issuer_and_not_out_of_tls() {
    let base = "https://login.test/realm/";
    let well_known = "https://login.test/realm/.well-known/openid-configuration";
    let discovery = |url: &str| KeySetId { source: Source::Discovery { url: url.into(), issuer: base.into() }, ca: None };
    let names = |issuer: &str, jwks: &str| Answer::Document(json!({"issuer": issuer, "jwks_uri": jwks}).to_string());
    let keys = Answer::Document(document(&["a"]));
    for (answer, good) in [
        (names(base, "https://keys.test/jwks"), true),
        (names("https://login.test/realm", "https://keys.test/jwks"), false),
        (names("https://evil.test/", "https://keys.test/jwks"), false),
        (names(base, "http://keys.test/jwks"), false),
        (names(base, "file:///etc/passwd"), false),
        (Answer::Document(json!({"issuer": base}).to_string()), false),
        (Answer::Document(json!({"issuer": [base], "jwks_uri": "https://keys.test/jwks"}).to_string()), false),
        (Answer::Document("[]".into()), false),
        (Answer::Status(302), false),
    ] {
        let answers = [(well_known, answer.clone()), ("https://keys.test/jwks", keys.clone()), ("http://keys.test/jwks", keys.clone())];
        let running = run(discovery(base), upkeep(), &answers).await;
        assert_eq!(kids(&running.set).len(), usize::from(good), "{answer:?}");
    }
    let answers = [
        ("http://local.test/.well-known/openid-configuration", names(base, "http://keys.test/jwks")),
        ("http://keys.test/jwks", keys.clone()),
    ];
    assert_eq!(kids(&run(discovery("http://local.test"), upkeep(), &answers).await.set), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn an_etag_is_of_one_url_and_says_nothing_about_the_next() {
    let base = "https://login.test";
    let well_known = "https://login.test/.well-known/openid-configuration";
    let (old, new) = ("https://login.test/old", "https://login.test/new");
    let names = |jwks: &str| Answer::Document(json!({"issuer": base, "jwks_uri": jwks}).to_string());
    let keys = |kid: &str| Answer::WithHeaders(document(&[kid]), vec![("etag", "\"1\"")]);
    let id = KeySetId { source: Source::Discovery { url: base.into(), issuer: base.into() }, ca: None };
    let running = run(id, upkeep(), &[(well_known, names(old)), (old, keys("a")), (new, keys("b"))]).await;
    assert_eq!(kids(&running.set), ["a"]);
    running.issuer.answers(well_known, names(new));
    running.ask().await;
    assert_eq!(kids(&running.set), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn the_last_good_keys_survive_a_restart_at_their_true_age_and_for_their_source_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let stored = Upkeep { store: Some(path.clone()), ..upkeep() };
    let before = run(id(), stored.clone(), &[(URL, Answer::Document(document(&["a"])))]).await;
    // Writing goes to another thread, which the paused clock does not wait for.
    before.ask().await;
    drop(before);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let text = std::fs::read_to_string(&path).unwrap();
    let mut at: Stored = serde_json::from_str(&text).unwrap();
    let at_age = |age: i64, at: &mut Stored| {
        at.fetched_at = 1_800_000_000u64.checked_add_signed(-age).unwrap();
        std::fs::write(&path, serde_json::to_vec(at).unwrap()).unwrap();
    };
    at_age(1000, &mut at);
    let after = run(id(), stored.clone(), &[(URL, Answer::Away)]).await;
    assert_eq!(kids(&after.set), ["a"]);
    let age = after.set.current().as_ref().unwrap().age((after.clock)());
    assert!((1000..=1005).contains(&age.as_secs()), "{age:?}");
    assert_eq!(after.set.status().fetched_at.map(|at| at.as_secs()), Some(1_799_999_000));

    at_age(-1000, &mut at);
    assert!(kids(&run(id(), stored.clone(), &[(URL, Answer::Away)]).await.set).is_empty(), "keys from the future");
    at_age(1000, &mut at);
    let other = KeySetId { source: Source::Jwks("https://other.test/jwks".into()), ca: None };
    assert!(kids(&run(other, stored.clone(), &[]).await.set).is_empty(), "keys of another issuer");
    for garbage in ["", "{", "null", &text.replace("EdDSA", "none"), text.get(..text.len() / 2).unwrap()] {
        std::fs::write(&path, garbage).unwrap();
        assert!(kids(&run(id(), stored.clone(), &[(URL, Answer::Away)]).await.set).is_empty(), "{garbage:.40}");
    }
}

#[tokio::test(start_paused = true)]
async fn upkeep_ends_with_the_set_and_follows_the_youngest_living_wish() {
    let running = run(id(), upkeep(), &[(URL, Answer::Document(document(&["a"])))]).await;
    let refused_candidate = running.set.keep_up(Upkeep { timeout: Duration::from_secs(1), ..upkeep() });
    assert_eq!(running.set.upkeep().map(|upkeep| upkeep.timeout), Some(Duration::from_secs(1)));
    drop(refused_candidate);
    assert_eq!(running.set.upkeep().map(|upkeep| upkeep.timeout), Some(Duration::from_secs(5)));
    let Running { set, task, .. } = running;
    drop(set);
    tokio::time::timeout(Duration::from_secs(1), task).await.unwrap().unwrap();
}
