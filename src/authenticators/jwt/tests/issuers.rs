//! A token that is judged by whoever is its issuer's, against one that is judged by asking everybody in turn.

use std::sync::atomic::AtomicUsize;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::authenticators::api_key::ApiKey;
use crate::authenticators::introspection::Introspection;
use crate::authenticators::key_format;
use crate::authenticators::oauth_client::Ask;
use crate::config::{Authenticator as Config, Principals, System};

/// Several of one issuer, in several places, with and without proofs, and beside them who takes what else stands there.
const AUTHENTICATORS: &str = r#"
  a: {jwt: {issuer: a, audiences: [gw], keys: {jwks_file: jwks.json}}}
  a-other: {jwt: {issuer: a, audiences: [other], keys: {jwks_file: jwks.json}}}
  b: {jwt: {issuer: b, audiences: [gw], keys: {jwks_file: jwks.json}}}
  b-typed: {jwt: {issuer: b, audiences: [gw], keys: {jwks_file: jwks.json}, typ: at+jwt}}
  b-stranger: {jwt: {issuer: b, audiences: [gw], keys: {jwks_file: stranger.json}}}
  c: {jwt: {issuer: c, audiences: [gw], keys: {jwks_file: jwks.json}, algorithms: [RS256, ES256]}}
  c-header: {jwt: {issuer: c, audiences: [gw], keys: {jwks_file: jwks.json}, from: [{header: X-Token}]}}
  a-header: {jwt: {issuer: a, audiences: [gw], keys: {jwks_file: jwks.json}, from: [{header: X-Token}]}}
  b-both: {jwt: {issuer: b, audiences: [gw], keys: {jwks_file: jwks.json}, from: [{header: X-Token}, {header: Authorization, scheme: Bearer}]}}
  a-proven: {jwt: {issuer: a, audiences: [gw], keys: {jwks_file: jwks.json}, from: [{header: Authorization, scheme: DPoP}], dpop: {required: true}}}
  b-proven: {jwt: {issuer: b, audiences: [gw], keys: {jwks_file: jwks.json}, from: [{header: Authorization, scheme: DPoP}], dpop: {required: false}}}
  key: {api_key: {from: [{header: X-API-Key}, {header: Authorization, scheme: Bearer}], prefix: ck_live_, keys: {file: keys.yaml}}}
  asked: {introspection: {url: "https://issuer.test/introspect", client: {id: gw, secret: {file: secret}}}}
"#;

/// One configuration for all: reading it is the dear part.
static CONFIGS: LazyLock<Vec<(Arc<str>, Config)>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("jwks.json", &set_of(&[&ES256]));
    write("stranger.json", &set_of(&[&SigningKey::generate(Algorithm::Es256, "e").unwrap()]));
    write("secret", "hush-hush");
    let hash: String = openssl::sha::sha256(key().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    write("keys.yaml", &format!("keys: [{{id: k, consumer: acme, sha256: \"{hash}\"}}]\n"));
    let names: Vec<_> = AUTHENTICATORS.lines().filter_map(|line| line.trim().split_once(':').map(|(name, _)| name)).collect();
    let text = format!(
        "listeners: [{{address: 127.0.0.1:0}}]\nupstreams: {{demo: {{builtin: echo}}}}\nauthenticators:{AUTHENTICATORS}\n\
         routes: [{{name: r, path: /, policy: {{authenticate: [{}]}}, upstream: demo}}]\n",
        names.join(", ")
    );
    write("edgeward.yaml", &text);
    let config = config::load(&folder.path().join("edgeward.yaml"), &System).config.unwrap();
    config.authenticators.into_iter().map(|(name, authenticator)| (name.value, authenticator)).collect()
});

fn key() -> String {
    key_format::compose("ck_live_", "7f3k2m9q", &[7; 32]).to_string()
}

/// A server that knows one opaque token, and one that looks like another's.
#[derive(Debug)]
struct Server;

#[async_trait::async_trait]
impl Ask for Server {
    async fn ask(&self, request: http::Request<Bytes>, _: Duration) -> Result<http::Response<Bytes>, String> {
        let knows = request.body().starts_with(b"token=opaque") || request.body().ends_with(b"token=opaque");
        Ok(http::Response::new(format!(r#"{{"active":{knows},"sub":"opaque"}}"#).into()))
    }
}

/// What a policy accepts, by the places of authenticators.
#[derive(Debug, Clone)]
enum Tree {
    One(usize),
    Any(Vec<Tree>),
    All(Vec<Tree>),
    Optional(Box<Tree>),
}

impl Tree {
    fn build(&self, pool: &[Arc<Authenticator>]) -> Accepted {
        let each = |parts: &[Self]| parts.iter().map(|part| part.build(pool)).collect();
        match self {
            Self::One(at) => Accepted::Authenticator(pool[at % pool.len()].clone()),
            Self::Any(parts) => Accepted::Any(each(parts)),
            Self::All(parts) => Accepted::All(each(parts), Principals::Different),
            Self::Optional(part) => Accepted::Optional(Box::new(part.build(pool))),
        }
    }
}

fn pool(live: &LiveState) -> Vec<Arc<Authenticator>> {
    let build = |(name, config): &(Arc<str>, Config)| match config {
        Config::Jwt(config) => Authenticator::Jwt(Jwt::new(name.clone(), config, live).unwrap()),
        Config::ApiKey(config) => Authenticator::ApiKey(ApiKey::new(name.clone(), config, live)),
        Config::Introspection(config) => {
            Authenticator::Introspection(Introspection::asking(Arc::new(Server), name.clone(), config, live).unwrap())
        }
        _ => panic!("another authenticator"),
    };
    let pool: Vec<_> = CONFIGS.iter().map(build).map(Arc::new).collect();
    pool.iter().for_each(|authenticator| authenticator.activate());
    pool
}

/// Sound and unsound tokens of issuers that somebody has, of one that nobody has, and what is no token.
static TOKENS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let of = |changes: Value| {
        let mut all = json!({"iss": "a", "aud": "gw", "sub": "alice", "exp": NOW + 600});
        for (name, value) in changes.as_object().unwrap() {
            all[name] = value.clone();
        }
        all
    };
    let mut tokens: Vec<String> = ["a", "b", "c", "d"]
        .into_iter()
        .flat_map(|issuer| {
            let good = sign(&of(json!({"iss": issuer})));
            let forged = format!("{}A", &good[..good.len() - 1]);
            let other = sign(&of(json!({"iss": issuer, "aud": "other"})));
            let expired = sign(&of(json!({"iss": issuer, "exp": NOW - 600})));
            let typed = sign_as(r#"{"alg":"ES256","kid":"e","typ":"at+jwt"}"#, &of(json!({"iss": issuer, "aud": ["gw", "other"]})));
            let bound = sign(&of(json!({"iss": issuer, "cnf": {"jkt": "x"}})));
            [good, forged, other, expired, typed, bound]
        })
        .collect();
    let mut anonymous = of(json!({}));
    anonymous.as_object_mut().unwrap().remove("iss");
    let payload = |text: &[u8]| format!("{}.{}.e30", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#), URL_SAFE_NO_PAD.encode(text));
    tokens.extend([sign(&anonymous), sign(&of(json!({"iss": ["a"]}))), sign(&of(json!({"iss": ""}))), sign(&of(json!({"aud": 1})))]);
    tokens.extend([
        payload(b"{"),
        payload(br#"{"iss":"a","iss":"b"}"#),
        format!("{}.e30.e30", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#)),
    ]);
    tokens.extend(["opaque", "a.b", "a.b.c", "a.b.c.d.e", ".e30.e30"].map(str::to_owned));
    tokens.extend([key(), format!("{}.e30.e30", "e".repeat(MAX_TOKEN))]);
    tokens
});

type Lines = Vec<(&'static str, String)>;

/// What stands in a request; most have one credential, some none or several.
fn lines() -> impl Strategy<Value = Lines> {
    let line = (0..TOKENS.len(), 0..12usize).prop_map(|(token, place)| {
        let token = &TOKENS[token];
        match place {
            0..6 => ("authorization", format!("Bearer {token}")),
            6 => ("authorization", format!("DPoP {token}")),
            7 => ("authorization", format!("Basic {token}")),
            8..11 => ("x-token", token.clone()),
            _ => ("x-api-key", token.clone()),
        }
    });
    prop_oneof![6 => prop::collection::vec(line.clone(), 1), 3 => prop::collection::vec(line, 0..4)]
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = (0..CONFIGS.len()).prop_map(Tree::One);
    let any = prop::collection::vec(leaf.clone(), 1..8).prop_map(Tree::Any);
    prop_oneof![leaf, any.clone(), any].prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            3 => prop::collection::vec(inner.clone(), 1..5).prop_map(Tree::Any),
            1 => prop::collection::vec(inner.clone(), 1..4).prop_map(Tree::All),
            1 => inner.prop_map(|part| Tree::Optional(Box::new(part))),
        ]
    })
}

async fn outcome(authenticators: &Authenticators, lines: &Lines) -> Result<Option<Arc<Identity>>, Rejection> {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    let client = Caller { address: [127, 0, 0, 1].into(), through_trusted_proxy: false };
    let request = Request { route: "r", ..Request::new(&http::Method::GET, "gw.test", "/", &headers, &client) };
    authenticators.identify(&request, now(NOW)).await.map(|proof| proof.map(|proof| proof.identity))
}

#[test]
fn whoever_is_found_by_the_issuer_says_what_asking_in_turn_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Of each kind of outcome, so that the cases are known to meet them.
    let counts = [const { AtomicUsize::new(0) }; 4];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 400, ..ProptestConfig::default() });
    let requests = prop::collection::vec(lines(), 1..6);
    runner
        .run(&(tree(), requests), |(tree, requests)| {
            let (live, other) = (LiveState::default(), LiveState::default());
            let indexed = Authenticators::new(tree.build(&pool(&live)), None);
            let in_turn = Authenticators::as_it_stands(tree.build(&pool(&other)), None);
            // The second time around, what was verified is known.
            for lines in requests.iter().chain(&requests) {
                let said = runtime.block_on(outcome(&indexed, lines));
                let kind = match &said {
                    Ok(Some(_)) => 0,
                    Ok(None) => 1,
                    Err(Rejection::CredentialMissing) => 2,
                    Err(_) => 3,
                };
                counts[kind].fetch_add(1, Ordering::Relaxed);
                prop_assert_eq!(said, runtime.block_on(outcome(&in_turn, lines)), "{:?}", lines);
            }
            Ok(())
        })
        .unwrap();
    let counts = counts.map(AtomicUsize::into_inner);
    assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
}

#[tokio::test]
async fn a_token_is_judged_by_the_first_of_its_own_issuer_and_what_names_none_by_the_first_of_all() {
    let live = LiveState::default();
    let pool = pool(&live);
    let named = |names: &[&str]| {
        let found = |name: &&str| pool.iter().find(|authenticator| **authenticator.name() == **name).unwrap().clone();
        Authenticators::new(Accepted::Any(names.iter().map(|name| Accepted::Authenticator(found(name))).collect()), None)
    };
    let claims = |changes: Value| {
        let mut all = json!({"iss": "a", "aud": "gw", "sub": "alice", "exp": NOW + 600});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        all
    };
    let (of_a, of_b, of_c, of_d) = (
        sign(&claims(json!({}))),
        sign(&claims(json!({"iss": "b"}))),
        sign(&claims(json!({"iss": "c"}))),
        sign(&claims(json!({"iss": "d"}))),
    );
    let for_other = sign(&claims(json!({"aud": "other"})));
    for (names, token, expected) in [
        (&["a", "b", "c"][..], &of_a, "a"),
        (&["a", "b", "c"], &of_b, "b"),
        (&["a", "b", "c"], &of_c, "c"),
        (&["a", "b", "c"], &of_d, "not_recognised"),
        // The second of one issuer is never asked: what the first has refused is refused.
        (&["a", "a-other"], &for_other, "audience"),
        (&["a-other", "a"], &for_other, "a-other"),
        (&["a-other", "a"], &of_a, "audience"),
        (&["c", "b-stranger", "b"], &of_b, "signature"),
        (&["c", "b", "b-stranger"], &of_b, "b"),
        // Whoever looks elsewhere is none of these.
        (&["c-header", "a", "b"], &of_c, "not_recognised"),
        (&["b-both", "b-typed", "a"], &of_b, "b-both"),
        (&["b-typed", "b-both", "a"], &of_b, "type"),
        (&["a", "key", "b"], &of_b, "b"),
        (&["a", "asked", "b"], &of_b, "inactive"),
        (&["a", "b"], &sign(&claims(json!({"iss": 7}))), "issuer"),
        (&["b-typed", "a"], &sign(&Value::Object(serde_json::Map::new())), "type"),
        (&["a", "b-typed"], &sign(&Value::Object(serde_json::Map::new())), "issuer"),
        (&["a", "b"], &"a.b.c".to_owned(), "malformed"),
        (&["a", "b"], &"a.b".to_owned(), "not_recognised"),
    ] {
        let authenticators = named(names);
        // The second time is the cache's.
        for _ in 0..2 {
            let said = outcome(&authenticators, &vec![("authorization", format!("Bearer {token}"))]).await;
            let said = said
                .map_or_else(|refused| refused.reason().unwrap_or(refused.code()).to_owned(), |who| who.unwrap().authenticator.to_string());
            assert_eq!(said, expected, "{names:?} {token}");
        }
    }
}

#[tokio::test]
async fn a_known_token_is_found_at_once_among_many_issuers() {
    let live = LiveState::default();
    let settings = config(file(set_of(&[&ES256]).as_bytes()));
    let issuers = (0..50).map(|at| {
        let of = config::Jwt { issuer: format!("issuer-{at}").into(), ..settings.clone() };
        Accepted::Authenticator(Arc::new(Authenticator::Jwt(Jwt::new(format!("a{at}").into(), &of, &live).unwrap())))
    });
    let authenticators = Authenticators::new(Accepted::Any(issuers.collect()), None);
    for at in [0, 23, 49] {
        let lines = vec![("authorization", format!("Bearer {}", sign(&with(json!({"iss": format!("issuer-{at}")})))))];
        let (hits, misses) = live.tokens.hits_and_misses();
        for _ in 0..3 {
            assert_eq!(&*outcome(&authenticators, &lines).await.unwrap().unwrap().authenticator, format!("a{at}"));
        }
        assert_eq!(live.tokens.hits_and_misses(), (hits + 2, misses + 1));
    }
}
