//! Tokens of a live issuer, from the caller to the service behind, the access log and the metrics.

use std::time::Duration;

use edgeward::jose::Algorithm;
use serde_json::json;

use crate::harness::client::request;
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::issuer::{Issuer, Mood};
use crate::harness::origin::Origin;
use crate::harness::until;

fn config(issuer: &Issuer, origin: &Origin) -> String {
    format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}, {{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{orders: {{servers: ["{}"]}}}}
authenticators:
  customers:
    jwt: {{issuer: "{}", audiences: [orders], keys: {{jwks_url: "{}"}}}}
routes:
  - name: orders
    path: "/orders/{{*rest}}"
    upstream: orders
    policy: {{authenticate: [customers], authorize: {{scopes: ["orders:read"]}}}}
"#,
        origin.address,
        issuer.url(),
        issuer.jwks_url()
    )
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[test]
fn a_good_token_reaches_the_service_as_an_identity_and_others_do_not() {
    let (issuer, origin) = (Issuer::start(Algorithm::Es256), Origin::start());
    let gateway = Gateway::start(&config(&issuer, &origin));
    let good = issuer.token("orders", json!({"scope": "orders:read"}));
    until("the keys are there", || gateway.get("/orders/7", &[("Authorization", &bearer(&good))]).status == 200);

    let forged = [("Authorization", &*bearer(&good)), ("X-User-Id", "mallory"), ("x_user_id", "mallory"), ("Connection", "X-User-Id")];
    assert_eq!(gateway.ask(request("GET", "/orders/7", &forged, b"")).status, 200);
    let seen = origin.last();
    assert_eq!((seen.target(), seen.headers_like("x-user-id")), ("/orders/7", vec!["alice"]));
    assert_eq!(seen.header("authorization"), None, "the token stays here");

    let stranger = Issuer::start(Algorithm::Es256);
    let cases = [
        (None, 401, "credential_missing"),
        (Some(good[..good.len() - 4].to_owned()), 401, "credential_invalid"),
        (Some(issuer.token("payments", json!({"scope": "orders:read"}))), 401, "credential_invalid"),
        (Some(issuer.token("orders", json!({"scope": "orders:read", "exp": 1_000_000_000}))), 401, "credential_expired"),
        (Some(stranger.token("orders", json!({"scope": "orders:read", "iss": issuer.url()}))), 401, "credential_invalid"),
        (Some(issuer.token("orders", json!({"scope": "profile"}))), 403, "insufficient_scope"),
    ];
    let asked = origin.requests().len();
    for (token, status, code) in &cases {
        let token = token.as_deref().map(bearer);
        let headers: Vec<_> = token.iter().map(|token| ("Authorization", token.as_str())).collect();
        let answer = gateway.get("/orders/7", &headers);
        assert_eq!((answer.status, answer.code().as_str()), (*status, *code));
        assert!(answer.header("www-authenticate").is_some(), "{code}");
    }
    assert_eq!(origin.requests().len(), asked, "no refused request is forwarded");

    until("each refusal is in the access log", || gateway.access_log().iter().filter(|line| line["code"] != "ok").count() >= cases.len());
    for (_, status, code) in &cases {
        assert!(gateway.access_log().iter().any(|line| line["code"] == *code && line["status"] == *status), "{code}");
        assert!(gateway.metric("edgeward_requests_total", &["route=\"orders\"", &format!("code=\"{code}\"")]) >= 1.0, "{code}");
    }
    assert!(!gateway.printed().contains(&good[..20]), "no credential is ever written down");
}

#[test]
fn tokens_are_good_on_every_listener_and_after_the_issuer_died_and_the_gateway_did_not() {
    let (issuer, origin) = (Issuer::start(Algorithm::EdDsa), Origin::start());
    let gateway = Gateway::start(&config(&issuer, &origin));
    let ask = |gateway: &Gateway, listener: usize, token: &str| {
        let request = request("GET", "/orders/7", &[("Authorization", &bearer(token))], b"");
        crate::harness::client::ask(gateway.addresses()[listener], request).status
    };
    let token = |name: &str| issuer.token("orders", json!({"scope": "orders:read", "jti": name}));
    until("the keys are there", || ask(&gateway, 0, &token("a")) == 200);
    assert_eq!(ask(&gateway, 1, &token("b")), 200);
    issuer.is(Mood::Dead);
    assert_eq!(ask(&gateway, 0, &token("c")), 200, "the last good keys serve");

    let unknowing = Gateway::start_in(gateway.kill(), &config(&issuer, &origin));
    assert_eq!(ask(&unknowing, 0, &token("d")), 503, "a new process has no keys to judge by, and does not guess");
    issuer.is(Mood::Slow(Duration::from_millis(200)));
    until("the keys come when the issuer does", || ask(&unknowing, 0, &token("e")) == 200);
}

#[test]
fn a_broken_candidate_changes_nothing_and_shows_in_a_metric() {
    let (issuer, origin) = (Issuer::start(Algorithm::Es256), Origin::start());
    let sound = config(&issuer, &origin);
    let gateway = Gateway::start_in(Folder::new(), &sound);
    until("the sound one serves", || gateway.metric("edgeward_config_current", &[]) == 1.0);
    gateway.rewrite(&sound.replace("authenticate: [customers]", "authenticate: [customer]"));
    until("the broken one is refused", || gateway.metric("edgeward_config_current", &[]) == 0.0);
    assert_eq!(gateway.get("/orders/7", &[]).code(), "credential_missing");
    gateway.rewrite(&sound);
    until("the sound one is current again", || gateway.metric("edgeward_config_current", &[]) == 1.0);
}
