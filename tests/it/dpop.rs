//! Tokens that are bound to a key of their holder (RFC 9449): good with a proof made for the very request, and for nothing else.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use edgeward::jose::{Algorithm, SigningKey};
use openssl::sha::sha256;
use serde_json::{Value, json};

use crate::harness::certificates::Authority;
use crate::harness::client::{Answer, Connection, Http2, Tls, Verdict, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::{Origin, Recorded, Reply, answer};
use crate::harness::until;

const URL: &str = "http://edgeward.test/orders/7";
const BOTH: &str = "from: [{header: Authorization, scheme: DPoP}, {header: Authorization, scheme: Bearer}]";

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Who holds a key that tokens can be bound to.
struct Holder(SigningKey);

impl Holder {
    fn new() -> Self {
        Self(SigningKey::generate(Algorithm::Es256, "h").unwrap())
    }

    fn confirmation(&self) -> Value {
        let jwk = self.0.to_public_jwk().unwrap();
        let member = |name: &str| jwk[name].as_str().unwrap().to_owned();
        let text = format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, member("x"), member("y"));
        json!({"jkt": URL_SAFE_NO_PAD.encode(sha256(text.as_bytes()))})
    }

    fn proof(&self, id: &str, method: &str, url: &str, token: &str) -> String {
        self.proof_with(id, method, url, token, None)
    }

    fn proof_with(&self, id: &str, method: &str, url: &str, token: &str, nonce: Option<&str>) -> String {
        let jwk = self.0.to_public_jwk().unwrap();
        let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": {"kty": "EC", "crv": "P-256", "x": jwk["x"], "y": jwk["y"]}});
        let ath = URL_SAFE_NO_PAD.encode(sha256(token.as_bytes()));
        let mut claims = json!({"jti": id, "htm": method, "htu": url, "iat": seconds(), "ath": ath});
        if let Some(nonce) = nonce {
            claims["nonce"] = json!(nonce);
        }
        self.0.sign_parts(header.to_string().as_bytes(), claims.to_string().as_bytes()).unwrap()
    }
}

/// A gateway that takes the tokens of one issuer, and what stands behind it.
struct Scene {
    origin: Origin,
    issuer: SigningKey,
    holder: Holder,
    gateway: Gateway,
    /// The authority of its second listener, over TLS.
    ca: String,
}

fn config(origin: &Origin, fields: &str, more: &str) -> String {
    format!(
        r#"
listeners:
  - {{address: "127.0.0.1:0"}}
  - {{address: "127.0.0.1:0", tls: {{certificates: [{{chain: chain.pem, key: {{file: key.pem}}}}]}}}}
admin: {{address: "127.0.0.1:0"}}
upstreams: {{orders: {{servers: ["{}"]}}}}
authenticators:
  customers:
    jwt:
      issuer: https://login.test/
      audiences: [orders]
      keys: {{jwks_file: jwks.json}}
      {fields}
routes:
  - {{name: orders, path: "/orders/{{*rest}}", upstream: orders, policy: {{authenticate: [customers]}}}}
  - {{name: kept, path: "/kept", upstream: orders, policy: {{authenticate: [customers], forward: {{token: keep}}}}}}
  - {{name: scoped, path: "/scoped", upstream: orders, policy: {{authenticate: [customers], authorize: {{scopes: [admin]}}}}}}
{more}
"#,
        origin.address
    )
}

impl Scene {
    fn new(fields: &str, more: &str) -> Self {
        let (origin, issuer, folder) = (Origin::start(), SigningKey::generate(Algorithm::Es256, "issuer").unwrap(), Folder::new());
        let authority = Authority::new("dpop");
        let certificate = authority.issue(&["gw.test"]);
        folder.write("chain.pem", &certificate.chain);
        folder.write("key.pem", &certificate.key);
        folder.write("nonce.secret", "a secret that every gateway of the fleet has");
        folder.write("jwks.json", json!({"keys": [issuer.to_public_jwk().unwrap()]}).to_string());
        let gateway = Gateway::start_in(folder, &config(&origin, fields, more));
        Self { origin, issuer, holder: Holder::new(), gateway, ca: authority.pem() }
    }

    fn token(&self, confirmation: Option<Value>) -> String {
        let mut claims = json!({"iss": "https://login.test/", "aud": "orders", "sub": "ann", "exp": seconds() + 600});
        if let Some(confirmation) = confirmation {
            claims["cnf"] = confirmation;
        }
        self.issuer.sign(claims.as_object().unwrap()).unwrap()
    }

    fn bound(&self) -> String {
        self.token(Some(self.holder.confirmation()))
    }

    fn ask(&self, scheme: &str, token: &str, proofs: &[&str]) -> Answer {
        ask(&self.gateway, "/orders/7?x=1", scheme, token, proofs)
    }
}

fn ask(gateway: &Gateway, target: &str, scheme: &str, token: &str, proofs: &[&str]) -> Answer {
    let authorization = format!("{scheme} {token}");
    let mut headers = vec![("Authorization", authorization.as_str())];
    headers.extend(proofs.iter().map(|proof| ("DPoP", *proof)));
    gateway.ask(request("GET", target, &headers, b""))
}

fn outcome(answer: &Answer) -> (u16, String) {
    (answer.status, if answer.status == 200 { String::new() } else { answer.code() })
}

fn ok() -> (u16, String) {
    (200, String::new())
}

fn refused() -> (u16, String) {
    (401, "credential_invalid".to_owned())
}

/// What each challenge of an answer says is wrong, by its scheme.
fn errors(answer: &Answer) -> Vec<(&str, Option<&str>)> {
    let challenges = answer.headers.iter().filter(|(name, _)| name == "www-authenticate").map(|(_, value)| value.as_str());
    let error = |challenge: &'_ str| challenge.split_once("error=\"").map(|(_, rest)| rest.len());
    let read = challenges.map(|challenge| {
        let scheme = challenge.split(' ').next().unwrap();
        (scheme, error(challenge).map(|left| challenge[challenge.len() - left..].split('"').next().unwrap()))
    });
    read.collect()
}

#[test]
fn a_bound_token_is_good_with_its_proof_and_for_nothing_else() {
    let scene = Scene::new(BOTH, "");
    let (holder, thief) = (&scene.holder, Holder::new());
    let (bound, free) = (scene.bound(), scene.token(None));
    let good = |id: &str| holder.proof(id, "GET", URL, &bound);
    // The second time the token is known: the proof is judged all the same.
    for id in ["1", "2"] {
        assert_eq!(outcome(&scene.ask("DPoP", &bound, &[&good(id)])), ok());
        let seen = scene.origin.last();
        assert_eq!((seen.header("x-user-id"), seen.header("authorization"), seen.header("dpop")), (Some("ann"), None, None));
        assert_eq!(outcome(&scene.ask("DPoP", &bound, &[&good(id)])), refused(), "its jti was seen");
        assert_eq!(outcome(&scene.ask("DPoP", &bound, &[])), refused());
        assert_eq!(outcome(&scene.ask("Bearer", &bound, &[&good("b")])), refused());
        assert_eq!(outcome(&scene.ask("Bearer", &bound, &[])), refused());
        assert_eq!(outcome(&scene.ask("DPoP", &bound, &[&thief.proof("t", "GET", URL, &bound)])), refused());
        assert_eq!(outcome(&scene.ask("DPoP", &bound, &[&holder.proof("m", "POST", URL, &bound)])), refused());
        assert_eq!(outcome(&scene.ask("DPoP", &bound, &[&holder.proof("u", "GET", "http://edgeward.test/orders/8", &bound)])), refused());
        assert_eq!(outcome(&scene.ask("DPoP", &bound, &[&holder.proof("a", "GET", URL, &free)])), refused());
        assert_eq!(outcome(&scene.ask("DPoP", &free, &[&holder.proof("f", "GET", URL, &free)])), refused(), "nothing binds it");
        assert_eq!(scene.ask("DPoP", &bound, &[&good("c"), &good("d")]).status, 400);
    }
    assert_eq!(outcome(&scene.ask("Bearer", &free, &[])), ok());
    let kept = ask(&scene.gateway, "/kept", "DPoP", &bound, &[&holder.proof("k", "GET", "http://edgeward.test/kept", &bound)]);
    assert_eq!(outcome(&kept), ok());
    let seen = scene.origin.last();
    assert!(seen.header("authorization").is_some() && seen.header("dpop").is_none(), "a proof is for us alone");
}

#[test]
fn a_challenge_says_whether_the_token_is_not_good_or_its_proof() {
    let scene = Scene::new(BOTH, "");
    let (holder, thief) = (&scene.holder, Holder::new());
    let (bound, free) = (scene.bound(), scene.token(None));
    let unproven = vec![("DPoP", Some("invalid_dpop_proof")), ("Bearer", None)];
    let invalid = vec![("DPoP", Some("invalid_token")), ("Bearer", Some("invalid_token"))];
    for (what, answer, expected) in [
        ("nothing", scene.gateway.get("/orders/7", &[]), vec![("DPoP", None), ("Bearer", None)]),
        ("no proof", scene.ask("DPoP", &bound, &[]), unproven.clone()),
        ("junk", scene.ask("DPoP", &bound, &["junk"]), unproven.clone()),
        ("another method", scene.ask("DPoP", &bound, &[&holder.proof("1", "PUT", URL, &bound)]), unproven.clone()),
        ("another token", scene.ask("DPoP", &bound, &[&holder.proof("1", "GET", URL, &free)]), unproven.clone()),
        ("another key", scene.ask("DPoP", &bound, &[&thief.proof("1", "GET", URL, &bound)]), invalid.clone()),
        ("an unbound token", scene.ask("DPoP", &free, &[&holder.proof("1", "GET", URL, &free)]), invalid.clone()),
        ("as a bearer token", scene.ask("Bearer", &bound, &[&holder.proof("1", "GET", URL, &bound)]), invalid.clone()),
        ("a forged token", scene.ask("DPoP", &format!("{bound}A"), &[&holder.proof("1", "GET", URL, &bound)]), invalid),
    ] {
        assert_eq!((answer.status, errors(&answer)), (401, expected), "{what}");
        assert_eq!(answer.header("dpop-nonce"), None, "{what}");
    }
    let told = |answer: &Answer| answer.text().split("request_id").next().unwrap().to_owned();
    let (one, other) = (scene.ask("DPoP", &bound, &[]), scene.ask("DPoP", &bound, &[&holder.proof("2", "PUT", URL, &bound)]));
    assert_eq!(told(&one), told(&other), "which check failed is for the log");
    let logged = |word| scene.gateway.access_log().iter().any(|line| line["reason"] == word);
    until("the log says which", || ["dpop_missing", "dpop_method", "dpop_other_key"].into_iter().all(logged));
}

#[test]
fn a_nonce_is_asked_for_given_in_time_and_known_again_after_a_reload() {
    let fields = |lifetime: &str| format!("{BOTH}\n      dpop: {{nonce: {{lifetime: {lifetime}}}}}");
    let scene = Scene::new(&fields("1d"), "");
    let bound = scene.bound();
    let ask = |id: &str, nonce: Option<&str>| scene.ask("DPoP", &bound, &[&scene.holder.proof_with(id, "GET", URL, &bound, nonce)]);
    for _ in 0..2 {
        let wanted = ask("1", None);
        assert_eq!((outcome(&wanted), errors(&wanted)), (refused(), vec![("DPoP", Some("use_dpop_nonce")), ("Bearer", None)]));
    }
    let nonce = ask("1", Some("invented")).header("dpop-nonce").unwrap().to_owned();
    let given = ask("1", Some(&nonce));
    assert_eq!((outcome(&given), given.header("dpop-nonce")), (ok(), None), "it lasts");
    assert_eq!(errors(&ask("1", Some(&nonce))), [("DPoP", Some("invalid_dpop_proof")), ("Bearer", None)], "a nonce is no leave to repeat");
    // Who cannot prove anything is told none.
    let thief = Holder::new();
    assert_eq!(scene.ask("DPoP", &bound, &[&thief.proof("t", "GET", URL, &bound)]).header("dpop-nonce"), None);
    assert_eq!(outcome(&scene.ask("Bearer", &scene.token(None), &[])), ok(), "what nothing binds needs no nonce");

    let more = "  - {name: new, path: /new, upstream: orders, policy: {authenticate: public}}";
    scene.gateway.rewrite(&config(&scene.origin, &fields("1d"), more));
    until("the reload is in force", || scene.gateway.get("/new", &[]).status == 200);
    assert_eq!(outcome(&ask("2", Some(&nonce))), ok(), "the key of nonces outlives a reload");

    scene.gateway.rewrite(&config(&scene.origin, &fields("2s"), ""));
    until("the reload is in force", || scene.gateway.get("/new", &[]).status == 404);
    let mut nonce = ask("3", None).header("dpop-nonce").unwrap().to_owned();
    let mut id = 3;
    // A caller that comes often enough is never asked again: the next nonce comes with an answer that is no refusal.
    for _ in 0..2 {
        until("the next nonce comes", || {
            id += 1;
            let answer = ask(&id.to_string(), Some(&nonce));
            assert_eq!(outcome(&answer), ok());
            let next = answer.header("dpop-nonce").map(str::to_owned);
            assert_eq!(answer.header("cache-control"), next.as_ref().map(|_| "no-store"));
            let came = next.is_some();
            nonce = next.unwrap_or_else(|| nonce.clone());
            came
        });
    }
}

#[test]
fn gateways_with_one_secret_take_the_nonces_of_each_other() {
    for (secret, taken) in [(", secret: {file: nonce.secret}", ok()), ("", refused())] {
        let fields = format!("{BOTH}\n      dpop: {{nonce: {{lifetime: 1d{secret}}}}}");
        let (scene, folder) = (Scene::new(&fields, ""), Folder::new());
        for name in ["chain.pem", "key.pem", "jwks.json", "nonce.secret"] {
            folder.write(name, std::fs::read(scene.gateway.folder().path().join(name)).unwrap());
        }
        let other = Gateway::start_in(folder, &config(&scene.origin, &fields, ""));
        let bound = scene.bound();
        let wanted = scene.ask("DPoP", &bound, &[&scene.holder.proof("1", "GET", URL, &bound)]);
        let proof = scene.holder.proof_with("1", "GET", URL, &bound, wanted.header("dpop-nonce"));
        assert_eq!(outcome(&ask(&other, "/orders/7", "DPoP", &bound, &[&proof])), taken, "{fields}");
        assert_eq!(outcome(&scene.ask("DPoP", &bound, &[&proof])), ok(), "{fields}");
    }
}

#[test]
fn where_a_binding_is_required_nobody_comes_in_without() {
    let scene = Scene::new(&format!("{BOTH}\n      dpop: {{required: true}}"), "");
    let (bound, free) = (scene.bound(), scene.token(None));
    for id in ["1", "2"] {
        let answer = scene.ask("Bearer", &free, &[]);
        assert_eq!((outcome(&answer), errors(&answer)), (refused(), vec![("DPoP", Some("invalid_token"))]));
        assert_eq!(outcome(&scene.ask("DPoP", &free, &[&scene.holder.proof("f", "GET", URL, &free)])), refused());
        assert_eq!(outcome(&scene.ask("Bearer", &bound, &[])), refused());
        assert_eq!(outcome(&scene.ask("DPoP", &bound, &[&scene.holder.proof(id, "GET", URL, &bound)])), ok());
    }
    // It is told how a token with the scope is to be presented: not as one that anybody could use.
    let url = URL.replace("/orders/7", "/scoped");
    let lacking = ask(&scene.gateway, "/scoped", "DPoP", &bound, &[&scene.holder.proof("3", "GET", &url, &bound)]);
    assert_eq!(outcome(&lacking), (403, "insufficient_scope".to_owned()));
    assert_eq!(lacking.header("www-authenticate"), Some("DPoP error=\"insufficient_scope\", scope=\"admin\""));
}

#[test]
fn the_url_of_a_proof_is_the_one_that_the_caller_asked_for() {
    let trusting = "server: {trusted_proxies: [127.0.0.1/32]}";
    for (more, forwarded, good) in [
        ("", None, "http"),
        ("", Some("https"), "http"),
        (trusting, None, "http"),
        (trusting, Some("https"), "https"),
        (trusting, Some("http"), "http"),
    ] {
        let scene = Scene::new(BOTH, more);
        let bound = scene.bound();
        for (host, authority, works) in [
            ("api.test", "api.test", true),
            ("API.test.", "api.test", true),
            ("api.test", "api.test.", true),
            ("api.test:8443", "api.test:8443", true),
            ("api.test:8443", "api.test", false),
            ("api.test", "api.test:8443", false),
            ("[::1]:8443", "[::1]:8443", true),
        ] {
            for scheme in ["http", "https"] {
                let id = format!("{host} {authority} {scheme}");
                let (authorization, url) = (format!("DPoP {bound}"), format!("{scheme}://{authority}/orders/7"));
                let proof = scene.holder.proof(&id, "GET", &url, &bound);
                let mut headers = vec![("Host", host), ("Authorization", authorization.as_str()), ("DPoP", proof.as_str())];
                headers.extend(forwarded.map(|proto| ("X-Forwarded-Proto", proto)));
                let answer = scene.gateway.ask(request("GET", "/orders/x/../7?a=b", &headers, b""));
                let expected = if works && scheme == good { ok() } else { refused() };
                assert_eq!(outcome(&answer), expected, "{more} {forwarded:?} {host} {url}");
            }
        }
    }
}

#[test]
fn over_tls_the_url_is_https_in_both_protocols() {
    let scene = Scene::new(BOTH, "");
    let bound = scene.bound();
    let tls = Tls { ca: &scene.ca, server_name: "gw.test", client: None };
    let address = scene.gateway.addresses()[1];
    let port = address.port();
    let authorization = format!("DPoP {bound}");
    for (at, (authority, htu, expected)) in [
        ("gw.test".to_owned(), "https://gw.test/orders/7".to_owned(), 200),
        (format!("gw.test:{port}"), format!("https://gw.test:{port}/orders/7"), 200),
        ("gw.test:443".to_owned(), "https://gw.test/orders/7".to_owned(), 200),
        ("gw.test".to_owned(), "http://gw.test/orders/7".to_owned(), 401),
        (format!("gw.test:{port}"), "https://gw.test/orders/7".to_owned(), 401),
        ("gw.test".to_owned(), format!("https://gw.test:{port}/orders/7"), 401),
    ]
    .into_iter()
    .enumerate()
    {
        let proof = scene.holder.proof(&format!("1 {at}"), "GET", &htu, &bound);
        let headers = [("Host", authority.as_str()), ("Authorization", authorization.as_str()), ("DPoP", proof.as_str())];
        let answer = Connection::open_tls(address, &tls).unwrap().ask(request("GET", "/orders/7", &headers, b""));
        assert_eq!(answer.status, expected, "HTTP/1.1 {authority} {htu}");
        let proof = scene.holder.proof(&format!("2 {at}"), "GET", &htu, &bound);
        let fields = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/orders/7"),
            (":authority", authority.as_str()),
            ("authorization", authorization.as_str()),
            ("dpop", proof.as_str()),
        ];
        // This client reads no 401.
        let expected = Verdict::Answered(if expected == 200 { 200 } else { 0 });
        assert_eq!(Http2::open(address, &tls).ask(&fields, &[]), expected, "HTTP/2 {authority} {htu}");
    }
}

#[test]
fn an_opaque_token_that_is_bound_needs_its_proof_with_every_request() {
    let (origin, holder, thief) = (Origin::start(), Holder::new(), Holder::new());
    let said = json!({"active": true, "sub": "ann", "token_type": "DPoP", "cnf": holder.confirmation()}).to_string();
    let server = Origin::scripted(move |request: &Recorded| {
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let body = if form.contains("token=bound") { &*said } else { r#"{"active":true,"sub":"bob"}"# };
        Reply::Bytes(answer(200, &[("Content-Type", "application/json")], body))
    });
    let folder = Folder::new();
    folder.write("secret", "hush-hush");
    let config = format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{orders: {{servers: ["{}"]}}}}
authenticators:
  opaque:
    introspection:
      url: http://{}/introspect
      client: {{id: edgeward, secret: {{file: secret}}}}
      {BOTH}
      dpop: {{nonce: {{lifetime: 1d}}}}
routes: [{{name: orders, path: "/orders/{{*rest}}", upstream: orders, policy: {{authenticate: [opaque]}}}}]
"#,
        origin.address, server.address
    );
    let gateway = Gateway::start_in(folder, &config);
    let ask = |scheme: &str, token: &str, proofs: &[&str]| ask(&gateway, "/orders/7?x=1", scheme, token, proofs);
    let wanted = ask("DPoP", "bound", &[&holder.proof("1", "GET", URL, "bound")]);
    assert_eq!(errors(&wanted), [("DPoP", Some("use_dpop_nonce")), ("Bearer", None)]);
    let nonce = wanted.header("dpop-nonce").unwrap();
    let good = |id: &str| holder.proof_with(id, "GET", URL, "bound", Some(nonce));
    for id in ["1", "2"] {
        assert_eq!(outcome(&ask("DPoP", "bound", &[&good(id)])), ok());
        let seen = origin.last();
        assert_eq!((seen.header("x-user-id"), seen.header("authorization"), seen.header("dpop")), (Some("ann"), None, None));
        assert_eq!(outcome(&ask("DPoP", "bound", &[&good(id)])), refused(), "its jti was seen");
        assert_eq!(outcome(&ask("DPoP", "bound", &[])), refused());
        assert_eq!(outcome(&ask("Bearer", "bound", &[&good("b")])), refused());
        assert_eq!(outcome(&ask("DPoP", "bound", &[&thief.proof_with("t", "GET", URL, "bound", Some(nonce))])), refused());
        assert_eq!(outcome(&ask("DPoP", "free", &[&holder.proof_with("f", "GET", URL, "free", Some(nonce))])), refused());
        assert_eq!(outcome(&ask("Bearer", "free", &[])), ok());
    }
    assert_eq!(server.requests().len(), 2, "each token is asked about once");
}
