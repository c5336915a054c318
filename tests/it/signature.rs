//! Signed messages (RFC 9421): what is forwarded is what was signed, body included.

use std::time::{SystemTime, UNIX_EPOCH};

use openssl::base64::encode_block as base64;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;

use crate::harness::client::{Answer, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::Origin;
use crate::harness::until;

const SECRET: &str = "a secret that both sides know, of 32 bytes and more";
const KEYS: &str = "keys:\n  - {keyid: acme, secret: {file: acme.secret}, consumer: acme, scopes: [\"orders:read\"]}\n  \
                    - {keyid: umbrella, public_key: {file: umbrella.pem}, consumer: umbrella}\n";

/// How a request is signed, written from the RFC and apart from the gateway's own reading of it.
struct By<'k> {
    keyid: &'k str,
    key: &'k PKey<Private>,
    hmac: bool,
    /// Seconds that the caller's clock is ahead.
    ahead: i64,
}

impl By<'_> {
    /// The bytes of a signed request; what is covered stands for itself, `target` is what is signed.
    fn signed(&self, method: &str, target: &str, body: &[u8], more: &str) -> Vec<u8> {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 + self.ahead;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let digest = format!("sha-256=:{}:", base64(&openssl::sha::sha256(body)));
        let covered = if body.is_empty() { "" } else { " \"content-digest\"" };
        let parameters = format!(r#"("@method" "@authority" "@path" "@query"{covered});created={created};keyid="{}"{more}"#, self.keyid);
        let mut base = format!("\"@method\": {method}\n\"@authority\": edgeward.test\n\"@path\": {path}\n\"@query\": ?{query}\n");
        if !body.is_empty() {
            base += &format!("\"content-digest\": {digest}\n");
        }
        base += &format!("\"@signature-params\": {parameters}");
        let mut signer = match self.hmac {
            true => Signer::new(MessageDigest::sha256(), self.key).unwrap(),
            false => Signer::new_without_digest(self.key).unwrap(),
        };
        let signature = base64(&signer.sign_oneshot_to_vec(base.as_bytes()).unwrap());
        let (input, signature) = (format!("sig={parameters}"), format!("sig=:{signature}:"));
        let mut headers = vec![("Signature-Input", input.as_str()), ("Signature", signature.as_str())];
        if !body.is_empty() {
            headers.push(("Content-Digest", digest.as_str()));
        }
        request(method, target, &headers, body)
    }
}

fn config(origin: &Origin, more: &str) -> String {
    format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{orders: {{servers: ["{}"]}}}}
authenticators:
  partners: {{signature: {{keys: {{file: signature-keys.yaml}}{more}}}}}
routes:
  - {{name: orders, path: "/orders/{{*rest}}", upstream: orders, policy: {{authenticate: [partners]}}}}
  - {{name: kept, path: "/kept", upstream: orders, policy: {{authenticate: [partners], forward: {{token: keep}}}}}}
"#,
        origin.address
    )
}

fn start(origin: &Origin, more: &str) -> (Gateway, PKey<Private>, PKey<Private>) {
    let folder = Folder::new();
    let pair = PKey::generate_ed25519().unwrap();
    folder.write("signature-keys.yaml", KEYS);
    folder.write("acme.secret", SECRET);
    folder.write("umbrella.pem", String::from_utf8(pair.public_key_to_pem().unwrap()).unwrap());
    (Gateway::start_in(folder, &config(origin, more)), PKey::hmac(SECRET.as_bytes()).unwrap(), pair)
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

#[test]
fn a_signed_message_reaches_the_service_without_its_signature() {
    let origin = Origin::start();
    let (gateway, secret, pair) = start(&origin, "");
    let acme = By { keyid: "acme", key: &secret, hmac: true, ahead: 0 };
    let umbrella = By { keyid: "umbrella", key: &pair, hmac: false, ahead: 0 };
    for (by, consumer) in [(&acme, "acme"), (&umbrella, "umbrella")] {
        assert_eq!(outcome(&gateway.ask(by.signed("GET", "/orders/7?b=2&a=1%2F2", b"", ""))), ok());
        let seen = origin.last();
        assert_eq!((seen.target(), seen.header("x-consumer-id")), ("/orders/7?b=2&a=1%2F2", Some(consumer)));
        assert_eq!((seen.header("x-key-id"), seen.header("x-auth-method")), (Some(consumer), Some("signature")));
        assert_eq!((seen.header("signature"), seen.header("signature-input")), (None, None));
        assert_eq!(outcome(&gateway.ask(by.signed("GET", "/kept", b"", ""))), ok());
        assert!(origin.last().header("signature").is_some() && origin.last().header("signature-input").is_some());
    }
    let missing = gateway.get("/orders/7", &[]);
    let challenge = Some("Signature realm=\"edgeward\"");
    assert_eq!((missing.code().as_str(), missing.header("www-authenticate")), ("credential_missing", challenge));
    let unknown = gateway.ask(By { keyid: "nobody", ..acme }.signed("GET", "/orders/7", b"", ""));
    let forged = gateway.ask(By { keyid: "umbrella", ..acme }.signed("GET", "/orders/7", b"", ""));
    let shown = |answer: &Answer| answer.text().split("request_id").next().unwrap().to_owned();
    assert_eq!((outcome(&unknown), shown(&unknown)), (refused(), shown(&forged)), "they look the same");
    gateway.folder().write("signature-keys.yaml", KEYS.replace("keyid: umbrella", "keyid: other"));
    until("the new keys serve", || gateway.ask(umbrella.signed("GET", "/orders/7", b"", "")).status == 401);
}

#[test]
fn what_was_not_signed_as_it_is_forwarded_is_refused() {
    let origin = Origin::start();
    let (gateway, secret, _) = start(&origin, "");
    let acme = By { keyid: "acme", key: &secret, hmac: true, ahead: 0 };
    for (sent, signed, expected) in [
        ("/orders/a/../7", "/orders/7", ok()),
        ("/orders/%37", "/orders/7", ok()),
        ("/orders/a/../7", "/orders/a/../7", refused()),
        ("/orders/7", "/orders/8", refused()),
        ("/orders/7?a=2", "/orders/7?a=1", refused()),
        ("/orders/7?a=1&b=2", "/orders/7?b=2&a=1", refused()),
        ("/orders/7", "/orders/7?a=1", refused()),
    ] {
        let bytes = String::from_utf8(acme.signed("GET", signed, b"", "")).unwrap();
        assert_eq!(outcome(&gateway.ask(bytes.replacen(signed, sent, 1))), expected, "{sent} for {signed}");
    }
    let bytes = String::from_utf8(acme.signed("GET", "/orders/7", b"", "")).unwrap();
    assert_eq!(outcome(&gateway.ask(bytes.replacen("GET", "DELETE", 1))), refused());
    assert_eq!(outcome(&gateway.ask(bytes.replacen("Host: edgeward.test", "Host: other.test", 1))), refused());
    for (ahead, status, code) in [(-320, 200, ""), (-340, 401, "credential_expired"), (40, 401, "credential_invalid")] {
        let answer = outcome(&gateway.ask(By { ahead, ..acme }.signed("GET", "/orders/7", b"", "")));
        assert_eq!(answer, (status, code.to_owned()), "{ahead}");
    }
}

#[test]
fn a_body_that_was_not_signed_reaches_nobody() {
    let origin = Origin::start();
    let (gateway, secret, _) = start(&origin, "");
    let acme = By { keyid: "acme", key: &secret, hmac: true, ahead: 0 };
    for length in [1, 1_000, 65_536, 65_537, 300_000] {
        let body = vec![b'a'; length];
        assert_eq!(outcome(&gateway.ask(acme.signed("POST", "/orders/", &body, ""))), ok(), "{length}");
        assert!(origin.last().body == body, "{length}");
        let mut changed = acme.signed("PUT", "/orders/", &body, "");
        *changed.last_mut().unwrap() = b'b';
        assert_eq!(outcome(&gateway.ask(changed)), refused(), "{length}");
        assert!(origin.requests().iter().all(|seen| !seen.body.contains(&b'b')), "{length}");
    }
    let mut undigested = acme.signed("POST", "/orders/", b"", "");
    undigested.truncate(undigested.len() - 2);
    undigested.extend_from_slice(b"Content-Length: 1\r\n\r\na");
    assert_eq!(outcome(&gateway.ask(undigested)), refused());
}

#[test]
fn a_signature_that_changes_something_counts_once() {
    let origin = Origin::start();
    let (gateway, secret, _) = start(&origin, "");
    let acme = By { keyid: "acme", key: &secret, hmac: true, ahead: 0 };
    let post = acme.signed("POST", "/orders/", b"x", "");
    assert_eq!((outcome(&gateway.ask(&post)), outcome(&gateway.ask(&post))), (ok(), refused()));
    let nonce = |nonce: &str| acme.signed("POST", "/orders/", b"x", &format!(";nonce=\"{nonce}\""));
    assert_eq!((outcome(&gateway.ask(nonce("a"))), outcome(&gateway.ask(nonce("b")))), (ok(), ok()));
    assert_eq!(outcome(&gateway.ask(nonce("a"))), refused());
    let get = acme.signed("GET", "/orders/", b"", "");
    assert_eq!((outcome(&gateway.ask(&get)), outcome(&gateway.ask(&get))), (ok(), ok()));
}
