//! edgeward as an issuer: a token from its endpoint opens a route, is introspected and revoked; upstreams get identity tokens that verify.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::harness::client::{self, Answer, request};
use super::harness::gateway::{Folder, Gateway, command};
use super::harness::redis::Redis;
use super::harness::until;

const CONFIG: &str = "
listeners: [{address: 127.0.0.1:0}]
admin: {address: 127.0.0.1:0}
upstreams: {orders: {builtin: echo}}
authenticators:
  own: {jwt: {issuer: \"https://edgeward.test\", audiences: [orders], keys: {issuer: true}}}
issuer:
  url: https://edgeward.test
  signing: {directory: data/signing, algorithm: ES256}
  oauth2: {clients: {database: data/keys.db}, limits: [attempts]}
limits: {attempts: {per: client_ip, rate: 1000/s}}
routes:
  - {name: orders, path: \"/orders/{*rest}\", policy: {authenticate: own, authorize: {scopes: [orders:read]}, forward: {token: exchange}}, upstream: orders}
  - {name: kept, path: /kept, policy: {authenticate: own, forward: {token: exchange, audience: \"https://kept.test\"}}, upstream: orders}
  - {name: all, path: \"/{*rest}\", policy: {authenticate: public}, upstream: orders}
";

/// A gateway, and a client of it.
fn start() -> (Gateway, String, String) {
    let folder = Folder::new();
    folder.write("edgeward.yaml", CONFIG);
    let (id, secret) = create(&folder, "app");
    (Gateway::start_in(folder, CONFIG), id, secret)
}

fn create(folder: &Folder, id: &str) -> (String, String) {
    let line = ["clients", "create", "-c", "edgeward.yaml", "--id", id, "--scope", "orders:read", "--scope", "orders:write", "--json"];
    let line = [&line[..], &["--audience", "orders", "--audience", "billing"]].concat();
    let made = command(&line).current_dir(folder.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    (made["client_id"].as_str().unwrap().to_owned(), made["client_secret"].as_str().unwrap().to_owned())
}

fn basic(id: &str, secret: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")))
}

#[track_caller]
fn post(gateway: &Gateway, path: &str, authorization: Option<&str>, form: &str) -> Answer {
    let mut headers = vec![("Content-Type", "application/x-www-form-urlencoded")];
    headers.extend(authorization.map(|value| ("Authorization", value)));
    gateway.ask(request("POST", path, &headers, form.as_bytes()))
}

#[track_caller]
fn token(gateway: &Gateway, id: &str, secret: &str, more: &str) -> String {
    let answer = post(gateway, "/oauth2/token", Some(&basic(id, secret)), &format!("grant_type=client_credentials{more}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["access_token"].as_str().unwrap().to_owned()
}

#[track_caller]
fn orders(gateway: &Gateway, token: &str) -> Answer {
    gateway.get("/orders/7", &[("Authorization", &format!("Bearer {token}"))])
}

fn part(token: &str, index: usize) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(index).unwrap()).unwrap()).unwrap()
}

#[test]
fn a_token_of_the_token_endpoint_opens_a_route_is_introspected_and_revoked() {
    let (gateway, id, secret) = start();
    let answer =
        post(&gateway, "/oauth2/token", Some(&basic(&id, &secret)), "grant_type=client_credentials&scope=orders%3Aread&audience=orders");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!((answer.header("cache-control"), answer.header("pragma")), (Some("no-store"), Some("no-cache")));
    let given = answer.json();
    assert_eq!((&given["token_type"], &given["expires_in"], &given["scope"]), (&json!("Bearer"), &json!(900), &json!("orders:read")));
    let token = given["access_token"].as_str().unwrap().to_owned();
    assert_eq!(part(&token, 0)["typ"], "at+jwt");
    let claims = part(&token, 1);
    assert_eq!((&claims["iss"], &claims["aud"], &claims["client_id"]), (&json!("https://edgeward.test"), &json!("orders"), &json!("app")));

    let opened = orders(&gateway, &token);
    assert_eq!(opened.status, 200, "{}", opened.text());
    assert_eq!(opened.json()["headers"]["x-client-id"], "app");

    let form = format!("token={token}");
    let asked = post(&gateway, "/oauth2/introspect", Some(&basic(&id, &secret)), &form);
    assert_eq!((asked.json()["active"].clone(), asked.json()["client_id"].clone()), (json!(true), json!("app")));
    assert_eq!(asked.header("cache-control"), Some("no-store"));
    assert_eq!(post(&gateway, "/oauth2/introspect", None, &form).status, 401, "only clients may ask");

    let (_, other) = create(gateway.folder(), "other");
    assert_eq!(post(&gateway, "/oauth2/revoke", Some(&basic("other", &other)), &form).json()["error"], "unauthorized_client");
    assert_eq!(orders(&gateway, &token).status, 200);
    assert_eq!(post(&gateway, "/oauth2/revoke", Some(&basic(&id, &secret)), &form).status, 200);
    assert_eq!(orders(&gateway, &token).json()["code"], "credential_revoked");
    assert_eq!(post(&gateway, "/oauth2/introspect", Some(&basic(&id, &secret)), &form).json(), json!({"active": false}));
    assert_eq!(post(&gateway, "/oauth2/revoke", Some(&basic(&id, &secret)), &form).status, 200, "revoked twice is revoked");
    assert!(!gateway.printed().contains(&secret) && !gateway.printed().contains(&token), "a secret in the log");

    // After a crash the keys are the same and what was revoked stays so.
    let fresh = self::token(&gateway, &id, &secret, "&scope=orders:read");
    let gateway = Gateway::start_in(gateway.kill(), CONFIG);
    assert_eq!(orders(&gateway, &token).status, 401);
    assert_eq!(orders(&gateway, &fresh).status, 200);

    // A client that is withdrawn takes its tokens with it.
    let revoked = command(&["clients", "revoke", "-c", "edgeward.yaml", "app"]).current_dir(gateway.folder().path()).output().unwrap();
    assert!(revoked.status.success());
    until("its tokens are refused", || orders(&gateway, &fresh).status == 401);
    assert_eq!(post(&gateway, "/oauth2/token", Some(&basic(&id, &secret)), "grant_type=client_credentials").status, 401);
}

#[test]
fn what_the_token_endpoint_refuses_it_refuses_in_the_words_of_the_standard() {
    let (gateway, id, secret) = start();
    let good = basic(&id, &secret);
    let both = format!("grant_type=client_credentials&client_id={id}&client_secret={secret}");
    for (authorization, form, status, error) in [
        (None, "grant_type=client_credentials", 401, "invalid_client"),
        (Some(&*basic(&id, "wrong")), "grant_type=client_credentials", 401, "invalid_client"),
        (Some(&*basic("nobody", &secret)), "grant_type=client_credentials", 401, "invalid_client"),
        (Some("Bearer x"), "grant_type=client_credentials", 401, "invalid_client"),
        (Some(&*good), &*both, 400, "invalid_request"),
        (Some(&*good), "", 400, "invalid_request"),
        (Some(&*good), "grant_type=client_credentials&grant_type=client_credentials", 400, "invalid_request"),
        (Some(&*good), "grant_type=password", 400, "unsupported_grant_type"),
        (Some(&*good), "grant_type=client_credentials&scope=admin", 400, "invalid_scope"),
        (Some(&*good), "grant_type=client_credentials&scope=orders:read+admin", 400, "invalid_scope"),
        (Some(&*good), "grant_type=client_credentials&audience=orders&resource=secrets", 400, "invalid_target"),
    ] {
        let answer = post(&gateway, "/oauth2/token", authorization, form);
        assert_eq!((answer.status, answer.json()["error"].as_str()), (status, Some(error)), "{authorization:?} {form}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{form}");
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401, "{form}");
    }
    let in_the_form = post(&gateway, "/oauth2/token", None, &both);
    assert_eq!(in_the_form.status, 200, "{}", in_the_form.text());
    let json = gateway.ask(request("POST", "/oauth2/token", &[("Content-Type", "application/json"), ("Authorization", &good)], b"{}"));
    assert_eq!(json.json()["error"], "invalid_request");
    assert_eq!(gateway.get("/oauth2/token", &[]).header("allow"), Some("POST"), "no catch-all of the operator's takes other methods");
    // A token for somebody else, and one with too little, open nothing here.
    assert_eq!(orders(&gateway, &token(&gateway, &id, &secret, "&audience=billing")).status, 401);
    assert_eq!(orders(&gateway, &token(&gateway, &id, &secret, "&scope=orders:write")).status, 403);
}

#[test]
fn the_upstream_gets_a_token_of_its_own_and_never_the_callers() {
    let (gateway, id, secret) = start();
    let token = token(&gateway, &id, &secret, "&scope=orders:read&audience=orders");
    let bearer = format!("Bearer {token}");
    let ask = |path: &str| gateway.get(path, &[("Authorization", &bearer), ("X-Identity-Token", "forged"), ("X_Identity_Token", "forged")]);
    let seen = ask("/orders/7").json()["headers"].clone();
    assert!(seen.get("authorization").is_none() && seen.get("x_identity_token").is_none(), "{seen}");
    let identity = seen["x-identity-token"].as_str().unwrap().to_owned();
    assert_ne!(identity, token);
    let claims = part(&identity, 1);
    for (name, value) in [
        ("iss", "https://edgeward.test"),
        ("aud", "orders"),
        ("sub", "app"),
        ("azp", "app"),
        ("scope", "orders:read"),
        ("auth_method", "jwt"),
    ] {
        assert_eq!(claims[name], value, "{claims}");
    }
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 60);
    assert_eq!(ask("/orders/8").json()["headers"]["x-identity-token"], identity, "signed once");
    let kept = ask("/kept").json()["headers"]["x-identity-token"].as_str().unwrap().to_owned();
    assert_eq!(part(&kept, 1)["aud"], "https://kept.test");
    // It proves nothing here, though it is signed by the same key for the same audience.
    assert_eq!(orders(&gateway, &identity).status, 401);
    assert_eq!(gateway.get("/other", &[("X-Identity-Token", "forged")]).json()["headers"].get("x-identity-token"), None);

    let found = gateway.get("/.well-known/openid-configuration", &[]).json();
    assert_eq!(found["jwks_uri"], "https://edgeward.test/.well-known/jwks.json");
    assert_eq!(found["token_endpoint"], "https://edgeward.test/oauth2/token");
    assert_eq!(gateway.get("/.well-known/oauth-authorization-server", &[]).json(), found);
    let keys = gateway.get("/.well-known/jwks.json", &[]);
    assert_eq!(keys.header("cache-control"), Some("public, max-age=3600"));
    let keys = keys.json();
    assert_eq!(keys["keys"][0]["kid"], part(&identity, 0)["kid"]);
    assert!(keys["keys"][0].get("d").is_none());
    // On another host these are paths like any other.
    let elsewhere = gateway.get("/.well-known/jwks.json", &[("Host", "elsewhere.test")]);
    assert!(elsewhere.json().get("keys").is_none(), "{}", elsewhere.text());
    // What is written another way is the same path, or refused.
    assert_eq!(gateway.get("/.well-known/%6awks.json", &[]).json(), keys);
}

#[test]
fn a_verifier_elsewhere_finds_the_keys_by_discovery() {
    // The issuer is known by its port before it serves.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let config = CONFIG.replace("https://edgeward.test", &url).replacen("127.0.0.1:0", &format!("127.0.0.1:{port}"), 1);
    let folder = Folder::new();
    folder.write("edgeward.yaml", &config);
    let (id, secret) = create(&folder, "app");
    let issuer = Gateway::start_in(folder, &config);
    let form = b"grant_type=client_credentials&audience=orders";
    let (authorization, host) = (basic(&id, &secret), format!("127.0.0.1:{port}"));
    let headers = [("Host", &*host), ("Content-Type", "application/x-www-form-urlencoded"), ("Authorization", &authorization)];
    let token = issuer.ask(request("POST", "/oauth2/token", &headers, form)).json()["access_token"].as_str().unwrap().to_owned();
    let verifier = Gateway::start(&format!(
        "listeners: [{{address: 127.0.0.1:0}}]\nadmin: {{address: 127.0.0.1:0}}\nupstreams: {{demo: {{builtin: echo}}}}\n\
         authenticators: {{far: {{jwt: {{issuer: \"{url}\", audiences: [orders], keys: {{discovery: \"{url}\"}}}}}}}}\n\
         routes: [{{name: r, path: /, policy: {{authenticate: far}}, upstream: demo}}]\n"
    ));
    let answer = verifier.get("/", &[("Authorization", &format!("Bearer {token}"))]);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn limits_hold_for_the_endpoints_and_a_reload_keeps_the_keys() {
    let folder = Folder::new();
    let config = CONFIG.replace("rate: 1000/s", "rate: 3/1h");
    folder.write("edgeward.yaml", &config);
    let (id, secret) = create(&folder, "app");
    let gateway = Gateway::start_in(folder, &config);
    let ask = || post(&gateway, "/oauth2/token", Some(&basic(&id, &secret)), "grant_type=client_credentials");
    let first = ask().json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!((ask().status, ask().status), (200, 200));
    assert_eq!(ask().json()["code"], "rate_limited");
    assert_eq!(orders(&gateway, &first).status, 200, "the limit is the endpoints' alone");

    gateway.rewrite(&CONFIG.replace("algorithm: ES256", "algorithm: EdDSA"));
    until("the change is applied", || gateway.metric("edgeward_config_generation", &[]) == 2.0);
    let keys = gateway.get("/.well-known/jwks.json", &[]).json();
    let algorithms: Vec<_> = keys["keys"].as_array().unwrap().iter().map(|key| key["alg"].as_str().unwrap()).collect();
    assert_eq!(algorithms, ["ES256", "EdDSA"], "the next key is published before it signs");
    let second = token(&gateway, &id, &secret, "");
    assert_eq!(part(&second, 0)["alg"], "ES256");
    assert_eq!((orders(&gateway, &first).status, orders(&gateway, &second).status), (200, 200));

    let without = CONFIG.replace("https://edgeward.test", "https://elsewhere.test");
    gateway.rewrite(&without);
    until("the issuer has moved", || gateway.metric("edgeward_config_generation", &[]) == 3.0);
    assert_eq!(orders(&gateway, &second).status, 401, "another issuer's token");
    assert!(gateway.get("/.well-known/jwks.json", &[]).json().get("keys").is_none());
    assert_eq!(gateway.get("/.well-known/jwks.json", &[("Host", "elsewhere.test")]).json(), keys);
}

#[test]
fn a_token_that_its_client_takes_back_is_revoked_on_every_node_and_route_of_a_fleet() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let config = CONFIG.replace("data/", &format!("{}/data/", folder.path().display()))
        + &format!("revocation: {{redis: fleet}}\nredis: {{url: \"{}\"}}\n", redis.url());
    folder.write("edgeward.yaml", &config);
    let (id, secret) = create(&folder, "app");
    let (one, other) = (Gateway::start_in(folder, &config), Gateway::start(&config));
    let [bad, good] = [(); 2].map(|()| token(&one, &id, &secret, "&audience=orders"));
    for node in [&one, &other] {
        assert_eq!((orders(node, &bad).status, orders(node, &good).status), (200, 200));
    }
    assert_eq!(post(&one, "/oauth2/revoke", Some(&basic(&id, &secret)), &format!("token={bad}")).status, 200);
    assert_eq!(orders(&one, &bad).json()["code"], "credential_revoked", "at once");
    let began = Instant::now();
    until("the other node refuses it", || orders(&other, &bad).status == 401);
    assert!(began.elapsed() < Duration::from_secs(1), "after {:?}", began.elapsed());
    let introspected = post(&other, "/oauth2/introspect", Some(&basic(&id, &secret)), &format!("token={bad}"));
    assert_eq!(introspected.json(), json!({"active": false}));
    assert_eq!((orders(&one, &good).status, orders(&other, &good).status), (200, 200));
    let listed = client::get(other.admin(), "/api/v1/revocations", &[]).json();
    assert_eq!((&listed["count"], &listed["revocations"][0]["issuer"]), (&json!(1), &json!("https://edgeward.test")));

    // What an operator revokes is inactive for those who ask, too.
    let line = ["revoke", "-c", "edgeward.yaml", "--client", "app"];
    assert!(command(&line).current_dir(one.folder().path()).status().unwrap().success());
    until("its tokens are refused", || orders(&other, &good).status == 401);
    let introspected = post(&other, "/oauth2/introspect", Some(&basic(&id, &secret)), &format!("token={good}"));
    assert_eq!(introspected.json(), json!({"active": false}));
}
