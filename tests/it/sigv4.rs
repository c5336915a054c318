//! Requests signed with AWS Signature Version 4: what is forwarded is what was signed, body included.

use std::time::Duration;

use crate::harness::aws::{ACME, Aws, sha256};
use crate::harness::client::{Answer, Connection, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::{Origin, Reply, answer};

const KEYS: &str = "keys:\n  - {access_key_id: AKIDACME, secret: {file: acme.secret}, consumer: acme, scopes: [\"orders:read\"]}\n  \
                    - {access_key_id: ASIATEMP, secret: {file: acme.secret}, session_token: {file: token.secret}, consumer: temp}\n";

fn start(origin: &Origin, more: &str) -> Gateway {
    let folder = Folder::new();
    folder.write("sigv4.yaml", KEYS);
    folder.write("acme.secret", ACME.secret);
    folder.write("token.secret", "TOKEN==");
    let yaml = format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{orders: {{servers: ["{}"]}}}}
authenticators:
  iam: {{sigv4: {{region: eu-west-1, service: execute-api, keys: {{file: sigv4.yaml}}{more}}}}}
routes:
  - {{name: orders, path: "/orders/{{*rest}}", upstream: orders, policy: {{authenticate: [iam]}}}}
"#,
        origin.address
    );
    Gateway::start_in(folder, &yaml)
}

fn signed(aws: &Aws, method: &str, target: &str, headers: &[(&str, &str)], payload: &str, body: &[u8]) -> Vec<u8> {
    let headers = aws.sign(method, target, headers, payload);
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    request(method, target, &headers, body)
}

fn outcome(answer: &Answer) -> (u16, String) {
    (answer.status, if answer.status == 200 { String::new() } else { answer.code() })
}

fn refused() -> (u16, String) {
    (401, "credential_invalid".to_owned())
}

#[test]
fn a_signed_request_reaches_the_service_without_its_signature() {
    let origin = Origin::start();
    let gateway = start(&origin, "");
    let answer = gateway.ask(signed(&ACME, "GET", "/orders/7?b=2&a=1%2F2", &[], &sha256(b""), b""));
    assert_eq!(outcome(&answer), (200, String::new()));
    let seen = origin.last();
    assert_eq!((seen.target(), seen.header("x-consumer-id")), ("/orders/7?b=2&a=1%2F2", Some("acme")));
    assert_eq!((seen.header("x-key-id"), seen.header("x-auth-method")), (Some("AKIDACME"), Some("sigv4")));
    assert_eq!(seen.header("authorization"), None);

    let link = ACME.presign("GET", "/orders/7", "60", &sha256(b""));
    assert_eq!(gateway.get(&link, &[]).status, 200);
    assert_eq!(origin.last().target(), "/orders/7", "nothing of the signature is forwarded");
    assert!(!gateway.printed().contains(link.split("X-Amz-Signature=").nth(1).unwrap()));

    let missing = gateway.get("/orders/7", &[]);
    assert_eq!(
        (missing.code().as_str(), missing.header("www-authenticate")),
        ("credential_missing", Some("AWS4-HMAC-SHA256 realm=\"edgeward\""))
    );
}

#[test]
fn a_body_that_was_not_signed_reaches_nobody() {
    let origin = Origin::start();
    let gateway = start(&origin, "");
    for length in [1, 1_000, 65_536, 65_537, 300_000, 2_000_000] {
        let body = vec![b'a'; length];
        let mut changed = body.clone();
        changed[length - 1] = b'b';
        let hash = sha256(&body);
        let declared = [("X-Amz-Content-Sha256", hash.as_str())];
        assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &declared, &hash, &body))), (200, String::new()), "{length}");
        assert!(origin.last().body == body, "{length}");
        let before = origin.received().iter().map(Vec::len).sum::<usize>();
        assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &declared, &hash, &changed))), refused(), "{length}");
        let after = origin.received().iter().map(Vec::len).sum::<usize>();
        // Of a long one the head was passed on before its body was there.
        assert!(after == before || (length > 65_536 && after - before < 2_000), "{length}: {}", after - before);
        // What the signer does not say is hashed here, up to what the gateway reads before it has decided.
        let expected = if length <= 65_536 { (200, String::new()) } else { refused() };
        assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &[], &hash, &body))), expected, "{length}");
        assert_eq!(outcome(&gateway.ask(signed(&ACME, "POST", "/orders/", &[], &hash, &changed))), refused(), "{length}");
    }
}
