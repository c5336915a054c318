//! The ways through a policy that are measured, each a route of one configuration and a caller of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use edgeward::authenticators::key_format;
use edgeward::jose::{Algorithm, SigningKey};
use edgeward::live::api_keys::KeyHash;
use edgeward::request::ClientCertificate;
use openssl::x509::X509;
use serde_json::json;

use super::{Caller, Gate, NOW};

/// One way through the gate.
pub struct Way {
    /// What it is called in tables and on command lines.
    pub name: &'static str,
    /// The policy of its route, as the configuration writes it.
    policy: &'static str,
    /// What becomes of the caller: the code of the refusal, or `ok`.
    pub ends: &'static str,
    caller: fn(&str) -> Caller,
}

/// Every way, the dearer ones last.
pub const WAYS: [Way; 15] = [
    Way { name: "public", policy: "{authenticate: public}", ends: "ok", caller: nobody },
    Way { name: "public-ip", policy: "{authenticate: public, allow: *some, deny: *others}", ends: "ok", caller: nobody },
    Way { name: "api-key", policy: "{authenticate: partners}", ends: "ok", caller: partner },
    Way { name: "api-key-limit", policy: "{authenticate: partners, limits: [fair]}", ends: "ok", caller: partner },
    Way { name: "jwt", policy: "{authenticate: customers}", ends: "ok", caller: customer },
    Way {
        name: "jwt-whole",
        policy: "{authenticate: customers, allow: *some, deny: *others, limits: [flood, fair], authorize: {scopes: [orders:read]}, \
                 forward: {headers: {X-Tenant: \"{claims.tenant}\"}}}",
        ends: "ok",
        caller: customer,
    },
    Way {
        name: "jwt-conditions",
        policy: "{authenticate: customers, filters: [scanners, trials], authorize: {when: \"claims.tenant == 'acme'\"}}",
        ends: "ok",
        caller: customer,
    },
    Way { name: "jwt-and-key", policy: "{authenticate: {all: [customers, partners]}}", ends: "ok", caller: both },
    Way { name: "certificate", policy: "{authenticate: mesh}", ends: "ok", caller: workload },
    Way { name: "basic", policy: "{authenticate: staff}", ends: "ok", caller: employee },
    Way { name: "introspection", policy: "{authenticate: opaque}", ends: "ok", caller: opaque },
    Way { name: "external", policy: "{authenticate: portal}", ends: "ok", caller: visitor },
    Way { name: "signature", policy: "{authenticate: signers}", ends: "ok", caller: signer },
    Way { name: "refused-missing", policy: "{authenticate: [customers, partners]}", ends: "credential_missing", caller: nobody },
    Way { name: "refused-key", policy: "{authenticate: partners}", ends: "credential_invalid", caller: stranger },
];

impl Way {
    /// The way of this name.
    pub fn named(name: &str) -> &'static Self {
        WAYS.iter().find(|way| way.name == name).unwrap_or_else(|| panic!("no way is called `{name}`"))
    }

    /// Who goes this way.
    pub fn caller(&self) -> Caller {
        (self.caller)(&format!("/{}/7", self.name))
    }
}

/// The gate that all ways lead through.
pub fn gate() -> Gate {
    let endpoint = answer_forever();
    let mut configuration = format!("{HEAD}{}", AUTHENTICATORS.replace("ENDPOINT", &endpoint.to_string()));
    for way in &WAYS {
        configuration += &format!("  - {{name: {0}, path: \"/{0}/{{id}}\", policy: {1}, upstream: demo}}\n", way.name, way.policy);
    }
    let key: String = KeyHash::of(&partner_key(7)).0.iter().map(|byte| format!("{byte:02x}")).collect();
    let keys = format!("keys:\n  - {{id: 7f3k2m9q, sha256: {key}, consumer: acme, scopes: [orders:read]}}\n");
    let user = format!("alice:{}\n", bcrypt::hash("correct horse", 4).expect("a hash"));
    let jwks = json!({"keys": [issuer().to_public_jwk().expect("a key")]}).to_string();
    Gate::new(
        &configuration,
        &[
            ("jwks.json", jwks.as_bytes()),
            ("keys.yaml", keys.as_bytes()),
            ("users", user.as_bytes()),
            ("signers.yaml", b"keys:\n  - {keyid: acme, secret: {file: secret}, consumer: acme, scopes: [orders:read]}\n"),
            ("secret", SIGNER),
            ("clients.pem", include_bytes!("../../tests/data/mtls-fixture/ca-root.pem")),
        ],
    )
}

const HEAD: &str = "\
listeners: [{address: 127.0.0.1:0}]
upstreams: {demo: {builtin: echo}}
server: {trusted_proxies: [10.0.0.0/8], forwarded_certificates: {ca: clients.pem}}
limits:
  flood: {per: client_ip, rate: 4000000000/s}
  fair: {per: consumer, rate: 4000000000/s, algorithm: token_bucket, burst: 4000000000}
filters:
  scanners: {when: \"request.headers['user-agent'].exists(agent, agent.matches('(?i)sqlmap|nikto'))\"}
  trials: {when: \"has(claims.plan) && claims.plan == 'trial' && request.method != 'GET'\"}
policies:
  networks:
    allow: &some [203.0.113.0/24, 198.51.100.0/24, 192.0.2.0/24, 10.1.0.0/16, 10.2.0.0/16, 10.3.0.0/16, 10.4.0.0/16, 10.5.0.0/16, 172.16.0.0/12]
    deny: &others [203.0.113.200/29, 203.0.113.128/29, 203.0.113.64/29, 203.0.113.32/29, 198.51.100.64/26, 10.1.1.0/24, 10.2.1.0/24]
    authenticate: public
";

const AUTHENTICATORS: &str = "\
authenticators:
  customers: {jwt: {issuer: \"https://issuer.test\", audiences: [\"api://gw\"], keys: {jwks_file: jwks.json}}}
  partners: {api_key: {from: [{header: X-API-Key}], prefix: ck_live_, keys: {file: keys.yaml}}}
  mesh: {client_certificate: {identity: san_uri, allow: [\"spiffe://test/*\"]}}
  staff: {basic: {users: {file: users}}}
  opaque: {introspection: {url: \"http://ENDPOINT/introspect\", client: {id: edgeward, secret: {file: secret}}, timeout: 10s, cache: {ttl: 1h}}}
  portal: {external: {url: \"http://ENDPOINT/check\", timeout: 10s, cache: {by: [credential, route], ttl: 1h}}}
  signers: {signature: {keys: {file: signers.yaml}, required: [\"@method\", \"@authority\", \"@path\"]}}
routes:
";

const SIGNER: &[u8] = b"a secret of more than thirty-two bytes";

fn partner_key(secret: u8) -> String {
    key_format::compose("ck_live_", "7f3k2m9q", &[secret; 32]).to_string()
}

/// The same key in every run, so that a count is of the same work.
fn issuer() -> SigningKey {
    let keys: serde_json::Value =
        serde_json::from_str(include_str!("../../tests/data/jwt-threats/private-keys-TEST-ONLY.json")).expect("JSON");
    SigningKey::from_pem(keys["rsa1"].as_str().expect("a key").as_bytes(), Algorithm::Rs256, "k").expect("a key")
}

fn customer_token() -> String {
    let claims = json!({
        "iss": "https://issuer.test", "aud": "api://gw", "sub": "alice", "iat": 1_799_999_000u64, "exp": 1_800_003_600u64,
        "client_id": "acme", "scope": "orders:read orders:write", "jti": "0a4c7d2e-5f3b-4b7e-9a51-3c1d2e4f5a6b", "tenant": "acme",
        "plan": "gold",
    });
    issuer().sign(claims.as_object().expect("claims")).expect("signed")
}

fn nobody(target: &str) -> Caller {
    Caller::new(target, &[])
}

fn partner(target: &str) -> Caller {
    Caller::new(target, &[("x-api-key", &partner_key(7))])
}

/// With a key as long and as sound as another, that nobody has.
fn stranger(target: &str) -> Caller {
    Caller::new(target, &[("x-api-key", &partner_key(8))])
}

fn customer(target: &str) -> Caller {
    Caller::new(target, &[("authorization", &format!("Bearer {}", customer_token()))])
}

fn both(target: &str) -> Caller {
    Caller::new(target, &[("authorization", &format!("Bearer {}", customer_token())), ("x-api-key", &partner_key(7))])
}

fn employee(target: &str) -> Caller {
    Caller::new(target, &[("authorization", &format!("Basic {}", STANDARD.encode("alice:correct horse")))])
}

fn opaque(target: &str) -> Caller {
    Caller::new(target, &[("authorization", "Bearer 3f8a1c0d5e7b4a6f9c2d1e0b8a7f6c5d")])
}

fn visitor(target: &str) -> Caller {
    Caller::new(target, &[("authorization", "Bearer 3f8a1c0d5e7b4a6f9c2d1e0b8a7f6c5d")])
}

fn signer(target: &str) -> Caller {
    let parameters = format!("(\"@method\" \"@authority\" \"@path\");created={};keyid=\"acme\"", NOW.unix.as_secs());
    let base = format!("\"@method\": GET\n\"@authority\": api.example.com\n\"@path\": {target}\n\"@signature-params\": {parameters}");
    let signature = STANDARD.encode(hmac_sha256::HMAC::mac(base.as_bytes(), SIGNER));
    Caller::new(target, &[("signature-input", &format!("sig1={parameters}")), ("signature", &format!("sig1=:{signature}:"))])
}

fn workload(target: &str) -> Caller {
    let read = |pem: &[u8]| X509::from_pem(pem).expect("a certificate");
    let leaf = read(include_bytes!("../../tests/data/mtls-fixture/san-uri-spiffe.pem"));
    let authority = read(include_bytes!("../../tests/data/mtls-fixture/ca-root.pem"));
    nobody(target).with_certificate(ClientCertificate::read(&leaf, &authority).expect("names"))
}

/// Answers every request as an introspection endpoint does that knows every token, which is also a good answer of an authorizer.
fn answer_forever() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let mut length = 0;
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).unwrap_or(0) <= 2 {
                    break;
                }
                if let Some((name, value)) = line.split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse().unwrap_or(0);
                }
            }
            let _ = stream.read_exact(&mut vec![0; length]);
            let body = r#"{"active": true, "sub": "alice", "client_id": "acme", "scope": "orders:read orders:write", "exp": 1900000000}"#;
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.get_mut().write_all((head + body).as_bytes());
        }
    });
    address
}
