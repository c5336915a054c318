//! Protected-resource metadata (RFC 9728): a refused caller is told where it is, and it says whose token opens the route.

use edgeward::jose::{Algorithm, SigningKey};
use serde_json::{Value, json};

use std::time::{SystemTime, UNIX_EPOCH};

use super::harness::client::{Answer, request};
use super::harness::gateway::{Folder, Gateway, command};
use super::harness::until;

const CONFIG: &str = r#"
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
upstreams: {orders: {builtin: echo}}
limits: {documents: {per: host, rate: 1000/h}}
authenticators:
  customers: {jwt: {issuer: "https://login.test", audiences: ["https://api.test/orders"], keys: {jwks_file: jwks.json}}}
  either:
    jwt:
      issuer: https://login.test
      audiences: [bound]
      keys: {jwks_file: jwks.json}
      from: [{header: Authorization, scheme: DPoP}, {header: Authorization, scheme: Bearer}, {query: access_token}]
  keys: {api_key: {keys: {database: keys.db}}}
  opaque:
    introspection: {url: "http://127.0.0.1:1/introspect", issuer: "https://opaque.test", client: {id: x, secret: {file: secret}}}
routes:
  - name: read
    path: "/orders/{id}"
    methods: [GET]
    policy: {authenticate: [customers, keys], authorize: {scopes: ["orders:read"]}}
    upstream: orders
    resource: {url: "https://api.test/orders", name: Orders, limits: [documents]}
  - name: write
    path: "/orders/{id}"
    methods: [PUT]
    policy: {authenticate: [keys, customers], authorize: {scopes: ["orders:write", "orders:admin"]}}
    upstream: orders
    resource: https://api.test/orders
  - {name: bound, path: /bound, policy: {authenticate: either}, upstream: orders, resource: "https://api.test:8443"}
  - {name: opaque, path: /opaque, policy: {authenticate: opaque}, upstream: orders, resource: "https://opaque.test/opaque"}
  - {name: plain, path: /plain, policy: {authenticate: customers}, upstream: orders}
  - {name: all, path: "/{*rest}", policy: {authenticate: public}, upstream: orders}
"#;

const ORDERS: &str = "/.well-known/oauth-protected-resource/orders";

fn start() -> (Gateway, SigningKey) {
    let key = SigningKey::generate(Algorithm::Es256, "k").unwrap();
    let folder = Folder::new();
    folder.write("jwks.json", json!({"keys": [key.to_public_jwk().unwrap()]}).to_string());
    folder.write("secret", "secret");
    (Gateway::start_in(folder, CONFIG), key)
}

fn token(key: &SigningKey, scope: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({"iss": "https://login.test", "aud": "https://api.test/orders", "sub": "ann", "scope": scope, "exp": now + 600});
    format!("Bearer {}", key.sign(claims.as_object().unwrap()).unwrap())
}

fn told(gateway: &Gateway, method: &str, host: &str, path: &str) -> Answer {
    gateway.ask(request(method, path, &[("Host", host)], b""))
}

fn challenges(answer: &Answer) -> Vec<&str> {
    answer.headers.iter().filter(|(name, _)| name == "www-authenticate").map(|(_, value)| value.as_str()).collect()
}

#[test]
fn whoever_is_refused_is_told_where_it_is_written_what_opens_the_route() {
    let (gateway, key) = start();
    let ask = |method: &str, path: &str, headers: &[(&str, &str)]| gateway.ask(request(method, path, headers, b""));
    let metadata = format!("resource_metadata=\"https://api.test{ORDERS}\"");
    let missing = ask("GET", "/orders/7", &[]);
    assert_eq!(missing.code(), "credential_missing");
    assert_eq!(
        challenges(&missing),
        [format!("Bearer realm=\"edgeward\", scope=\"orders:read\", {metadata}").as_str(), "ApiKey realm=\"edgeward\""]
    );
    let invalid = ask("PUT", "/orders/7", &[("Authorization", "Bearer a.b.c")]);
    assert_eq!((invalid.status, invalid.code().as_str()), (401, "credential_invalid"));
    let written = format!("Bearer realm=\"edgeward\", error=\"invalid_token\", scope=\"orders:write orders:admin\", {metadata}");
    assert_eq!(challenges(&invalid), ["ApiKey realm=\"edgeward\"", &written]);

    let reader = token(&key, "orders:read");
    assert_eq!(ask("GET", "/orders/7", &[("Authorization", &reader)]).status, 200);
    let lacking = ask("PUT", "/orders/7", &[("Authorization", &reader)]);
    assert_eq!((lacking.status, lacking.code().as_str()), (403, "insufficient_scope"));
    assert_eq!(challenges(&lacking), [format!("Bearer error=\"insufficient_scope\", scope=\"orders:write orders:admin\", {metadata}")]);

    let root = "resource_metadata=\"https://api.test:8443/.well-known/oauth-protected-resource\"";
    let algorithms = "algs=\"ES256 EdDSA RS256 PS256\"";
    assert_eq!(
        challenges(&ask("GET", "/bound", &[])),
        [format!("DPoP realm=\"edgeward\", {algorithms}, {root}"), format!("Bearer realm=\"edgeward\", {root}")]
    );
    assert_eq!(challenges(&ask("GET", "/plain", &[])), ["Bearer realm=\"edgeward\""], "a route that does not say so tells nothing");
}

#[test]
fn the_document_is_there_for_anyone_on_the_host_of_its_resource() {
    let (gateway, _) = start();
    let orders = told(&gateway, "GET", "api.test", ORDERS);
    assert_eq!((orders.status, orders.header("content-type")), (200, Some("application/json")));
    assert_eq!((orders.header("cache-control"), orders.header("access-control-allow-origin")), (Some("public, max-age=300"), Some("*")));
    assert_eq!(
        orders.json(),
        json!({
            "resource": "https://api.test/orders",
            "resource_name": "Orders",
            "authorization_servers": ["https://login.test"],
            "bearer_methods_supported": ["header"],
            "scopes_supported": ["orders:read", "orders:write", "orders:admin"],
        })
    );
    assert!(orders.header("x-ratelimit-limit").is_some(), "its limits hold");
    assert_eq!(
        told(&gateway, "GET", "api.test", "/.well-known/oauth-protected-resource").json(),
        json!({
            "resource": "https://api.test:8443",
            "authorization_servers": ["https://login.test"],
            "bearer_methods_supported": ["header", "query"],
            "dpop_signing_alg_values_supported": ["ES256", "EdDSA", "RS256", "PS256"],
        })
    );
    let opaque = told(&gateway, "GET", "opaque.test", "/.well-known/oauth-protected-resource/opaque").json();
    assert_eq!(opaque["authorization_servers"], json!(["https://opaque.test"]));

    // What is written another way is the same path; the port and the query say nothing here.
    for (host, path) in [("API.test:9000", ORDERS), ("api.test", "/.well-known/%6fauth-protected-resource/orders?x=1")] {
        assert_eq!(told(&gateway, "GET", host, path).json(), orders.json(), "{host}{path}");
    }
    let mut connection = super::harness::client::Connection::open(gateway.address());
    connection.send(request("HEAD", ORDERS, &[("Host", "api.test")], b""));
    let head = connection.answer(true);
    assert_eq!((head.status, head.header("content-length")), (200, orders.header("content-length")));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = told(&gateway, method, "api.test", ORDERS);
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "no catch-all of the operator's takes {method}");
    }
    // On another host, and below it, these are paths like any other.
    for (host, path) in [("other.test", ORDERS.to_owned()), ("api.test", format!("{ORDERS}/7"))] {
        let elsewhere = told(&gateway, "GET", host, &path).json();
        assert_eq!((elsewhere.get("resource"), &elsewhere["path"]), (None, &json!(path)));
    }
    let logged = |line: &Value| line["route"] == "edgeward:resource:read";
    until("it is logged as any request is", || gateway.access_log().iter().any(logged));
}

#[test]
fn a_reload_brings_another_document_and_check_says_where_it_is() {
    let (gateway, _) = start();
    let checked = command(&["check", "-c", "edgeward.yaml"]).current_dir(gateway.folder().path()).output().unwrap();
    let checked = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.contains(&format!("described at https://api.test{ORDERS}; served by orders")), "{checked}");

    gateway.rewrite(&CONFIG.replace("https://api.test/orders\", name: Orders", "https://api.test/v2\", name: Orders"));
    until("the change is applied", || gateway.metric("edgeward_config_generation", &[]) == 2.0);
    let moved = told(&gateway, "GET", "api.test", "/.well-known/oauth-protected-resource/v2").json();
    assert_eq!((&moved["resource"], &moved["scopes_supported"]), (&json!("https://api.test/v2"), &json!(["orders:read"])));
    assert_eq!(told(&gateway, "GET", "api.test", ORDERS).json()["scopes_supported"], json!(["orders:write", "orders:admin"]));

    let taken = format!("  - {{name: taken, path: \"{ORDERS}\", policy: {{authenticate: public}}, upstream: orders}}\n");
    gateway.rewrite(&format!("{CONFIG}{taken}"));
    until("the change is refused", || gateway.log().iter().any(|line| line.to_string().contains("is at this path")));
    assert_eq!(
        told(&gateway, "GET", "api.test", ORDERS).json()["scopes_supported"],
        json!(["orders:write", "orders:admin"]),
        "the old one serves"
    );
}
