//! Tokens that are bound to a key of their holder (RFC 9449): good with a proof made for the very request, and for nothing else.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use edgeward::jose::{Algorithm, SigningKey};
use openssl::sha::sha256;
use serde_json::{Value, json};

use crate::harness::client::{Answer, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::Origin;

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn thumbprint(key: &SigningKey) -> String {
    let jwk = key.to_public_jwk().unwrap();
    let member = |name: &str| jwk[name].as_str().unwrap().to_owned();
    let text = format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, member("x"), member("y"));
    URL_SAFE_NO_PAD.encode(sha256(text.as_bytes()))
}

fn proof(key: &SigningKey, id: &str, method: &str, url: &str, token: &str) -> String {
    let jwk = key.to_public_jwk().unwrap();
    let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": {"kty": "EC", "crv": "P-256", "x": jwk["x"], "y": jwk["y"]}});
    let ath = URL_SAFE_NO_PAD.encode(sha256(token.as_bytes()));
    let claims = json!({"jti": id, "htm": method, "htu": url, "iat": seconds(), "ath": ath});
    key.sign_parts(header.to_string().as_bytes(), claims.to_string().as_bytes()).unwrap()
}

fn outcome(answer: &Answer) -> (u16, String) {
    (answer.status, if answer.status == 200 { String::new() } else { answer.code() })
}

#[test]
fn a_bound_token_is_good_with_its_proof_and_for_nothing_else() {
    let origin = Origin::start();
    let issuer = SigningKey::generate(Algorithm::Es256, "issuer").unwrap();
    let (holder, thief) = (SigningKey::generate(Algorithm::Es256, "h").unwrap(), SigningKey::generate(Algorithm::Es256, "t").unwrap());
    let folder = Folder::new();
    folder.write("jwks.json", json!({"keys": [issuer.to_public_jwk().unwrap()]}).to_string());
    let config = format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{orders: {{servers: ["{}"]}}}}
authenticators:
  customers:
    jwt:
      issuer: https://login.test/
      audiences: [orders]
      keys: {{jwks_file: jwks.json}}
      from: [{{header: Authorization, scheme: DPoP}}, {{header: Authorization, scheme: Bearer}}]
routes: [{{name: orders, path: "/orders/{{*rest}}", upstream: orders, policy: {{authenticate: [customers]}}}}]
"#,
        origin.address
    );
    let gateway = Gateway::start_in(folder, &config);
    let token = |confirmation: Option<Value>| {
        let mut claims = json!({"iss": "https://login.test/", "aud": "orders", "sub": "ann", "exp": seconds() + 600});
        if let Some(confirmation) = confirmation {
            claims["cnf"] = confirmation;
        }
        issuer.sign(claims.as_object().unwrap()).unwrap()
    };
    let (bound, free) = (token(Some(json!({"jkt": thumbprint(&holder)}))), token(None));
    let ask = |scheme: &str, token: &str, proofs: &[&str]| {
        let authorization = format!("{scheme} {token}");
        let mut headers = vec![("Authorization", authorization.as_str())];
        headers.extend(proofs.iter().map(|proof| ("DPoP", *proof)));
        gateway.ask(request("GET", "/orders/7?x=1", &headers, b""))
    };
    let url = "http://edgeward.test/orders/7";
    let (ok, refused) = ((200, String::new()), (401, "credential_invalid".to_owned()));
    let good = |id: &str| proof(&holder, id, "GET", url, &bound);
    // The second time the token is known: the proof is judged all the same.
    for id in ["1", "2"] {
        assert_eq!(outcome(&ask("DPoP", &bound, &[&good(id)])), ok);
        let seen = origin.last();
        assert_eq!((seen.header("x-user-id"), seen.header("authorization"), seen.header("dpop")), (Some("ann"), None, None));
        assert_eq!(outcome(&ask("DPoP", &bound, &[&good(id)])), refused, "its jti was seen");
        assert_eq!(outcome(&ask("DPoP", &bound, &[])), refused);
        assert_eq!(outcome(&ask("Bearer", &bound, &[&good("b")])), refused);
        assert_eq!(outcome(&ask("Bearer", &bound, &[])), refused);
        assert_eq!(outcome(&ask("DPoP", &bound, &[&proof(&thief, "t", "GET", url, &bound)])), refused);
        assert_eq!(outcome(&ask("DPoP", &bound, &[&proof(&holder, "m", "POST", url, &bound)])), refused);
        assert_eq!(outcome(&ask("DPoP", &bound, &[&proof(&holder, "u", "GET", "http://edgeward.test/orders/8", &bound)])), refused);
        assert_eq!(outcome(&ask("DPoP", &bound, &[&proof(&holder, "a", "GET", url, &free)])), refused);
        assert_eq!(outcome(&ask("DPoP", &free, &[&proof(&holder, "f", "GET", url, &free)])), refused, "nothing binds it");
        assert_eq!(ask("DPoP", &bound, &[&good("c"), &good("d")]).status, 400);
    }
    assert_eq!(outcome(&ask("Bearer", &free, &[])), ok);
    let missing = gateway.get("/orders/7", &[]);
    assert!(missing.headers.iter().any(|(name, value)| name == "www-authenticate" && value.starts_with("DPoP ")), "{}", missing.text());
}
