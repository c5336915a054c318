//! Client certificates, from the handshake to the service behind: what is accepted, what it names, and how long a connection may rely on it.

use serde_json::Value;

use crate::harness::certificates::Certificate;
use crate::harness::client::{Answer, Connection, Tls, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::Origin;
use crate::harness::until;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/mtls-fixture");

fn fixture(name: &str) -> String {
    std::fs::read_to_string(format!("{FIXTURE}/{name}")).unwrap()
}

fn client(name: &str) -> Certificate {
    Certificate { chain: fixture(&format!("{name}.pem")), key: fixture(&format!("{name}.key")) }
}

/// The last of the certificates in a PEM file.
fn last(pem: &str) -> &str {
    &pem[pem.rfind("-----BEGIN CERTIFICATE-----").unwrap()..]
}

/// A folder with the server certificates of the collection, its root and intermediate as authorities, and a list of each.
fn folder() -> Folder {
    let folder = Folder::new();
    for name in ["gw.test", "open.gw.test", "mtls.gw.test"] {
        for kind in ["pem", "key"] {
            folder.write(&format!("{name}.{kind}"), fixture(&format!("server-{name}.{kind}")));
        }
    }
    folder.write("root.pem", fixture("ca-root.pem"));
    folder.write("ca.pem", fixture("ca-root.pem") + last(&fixture("ok.pem")));
    folder.write("crl.pem", fixture("crl-int.pem") + &fixture("crl-root-empty.pem"));
    folder
}

/// Listeners that require a certificate, that leave it to the caller, that know of no revocation, and that ask for none.
fn config(origin: &Origin) -> String {
    let listener = |clients: &str| {
        let certificates: Vec<_> = ["gw.test", "open.gw.test", "mtls.gw.test"]
            .iter()
            .map(|name| format!("{{chain: {name}.pem, key: {{file: {name}.key}}}}"))
            .collect();
        format!("  - {{address: \"127.0.0.1:0\", tls: {{certificates: [{}]{clients}}}}}\n", certificates.join(", "))
    };
    let asking = |mode: &str, ca: &str| listener(&format!(", client_certificates: {{mode: {mode}, {ca}}}"));
    format!(
        r#"
listeners:
{}{}{}{}
admin: {{address: "127.0.0.1:0"}}
upstreams: {{all: {{servers: ["{}"]}}}}
authenticators:
  hosts: {{client_certificate: {{identity: san_dns, allow: ["alice.client.test", {{identity: "*.client.test", consumer: acme, plan: gold}}]}}}}
  mesh: {{client_certificate: {{identity: san_uri, allow: ["spiffe://test/ns/*/sa/alice"]}}}}
  people: {{client_certificate: {{identity: san_email, allow: ["*@client.test"]}}}}
  names: {{client_certificate: {{identity: common_name, allow: [alice]}}}}
  anybody: {{client_certificate: {{identity: san_dns, allow: ["*"]}}}}
routes:
  - {{name: open, path: /open, upstream: all, policy: {{authenticate: public}}}}
  - {{name: hosts, path: /hosts, upstream: all, policy: {{authenticate: hosts}}}}
  - {{name: mesh, path: /mesh, upstream: all, policy: {{authenticate: mesh}}}}
  - {{name: people, path: /people, upstream: all, policy: {{authenticate: people}}}}
  - {{name: names, path: /names, upstream: all, policy: {{authenticate: names}}}}
  - {{name: anybody, path: /anybody, upstream: all, policy: {{authenticate: anybody}}}}
"#,
        asking("required", "ca: ca.pem, crl: crl.pem"),
        asking("optional", "ca: ca.pem, crl: crl.pem"),
        asking("required", "ca: root.pem"),
        listener(""),
        origin.address
    )
}

const REQUIRED: usize = 0;
const OPTIONAL: usize = 1;
const WITHOUT_LISTS: usize = 2;
const UNASKED: usize = 3;

/// One request on a connection of its own; none when there is no connection, which TLS 1.3 tells a client only when it reads.
fn ask(gateway: &Gateway, listener: usize, name: &str, certificate: Option<&Certificate>, path: &str) -> Option<Answer> {
    let root = fixture("ca-root.pem");
    let tls = Tls { ca: &root, server_name: name, client: certificate };
    let mut connection = Connection::open_tls(gateway.addresses()[listener], &tls).ok()?;
    connection.send(request("GET", path, &[("Host", name)], b""));
    (!connection.is_closed()).then(|| connection.answer(false))
}

#[test]
fn each_certificate_of_the_collection_gets_the_verdict_of_its_row() {
    let origin = Origin::start();
    let gateway = Gateway::start_in(folder(), &config(&origin));
    let cases: Vec<Value> = serde_json::from_str(&fixture("cases.json")).unwrap();
    let mut wrong = Vec::new();
    let mut counts = (0, 0);
    for case in &cases {
        let id = case["id"].as_str().unwrap();
        // Names that no authenticator may take for an identity: the certificate as such is in order.
        let path = match id {
            "san-dns-in-email" | "san-wildcard" => "/anybody",
            _ => "/open",
        };
        let certificate = client(id);
        for listener in [REQUIRED, OPTIONAL, WITHOUT_LISTS] {
            let status = ask(&gateway, listener, "gw.test", Some(&certificate), path).map(|answer| answer.status);
            let accepted = status == Some(200);
            let expected = match (id, listener) {
                // The authorities of these two listeners hold the intermediate.
                ("missing-intermediate", REQUIRED | OPTIONAL) => true,
                // Nobody tells the third of revocations.
                ("revoked", WITHOUT_LISTS) => true,
                // Each authority that a caller brings needs a list where there are lists.
                ("deep-3" | "nc-ok", REQUIRED | OPTIONAL) => false,
                ("eku-none" | "no-san-cn-only" | "two-cn" | "cn-rlo" | "cn-long" | "cn-comma" | "san-othername-nul", _) => true,
                _ => case["expect"] == "accept",
            };
            if accepted != expected {
                wrong.push(format!("{id} at {listener}: {status:?} ({})", case["why"]));
            }
            if accepted { counts.0 += 1 } else { counts.1 += 1 }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(cases.len(), 41);
    assert!(counts.0 > 30 && counts.1 > 60, "{counts:?}");
    until("no refused certificate reached the service", || origin.requests().len() == counts.0);
}
