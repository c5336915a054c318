//! Client certificates, from the handshake to the service behind: what is accepted, what it names, and how long a connection may rely on it.

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use edgeward::jose::Algorithm;
use openssl::hash::MessageDigest;
use openssl::x509::X509;
use serde_json::{Value, json};

use crate::harness::certificates::Certificate;
use crate::harness::client::{Answer, Connection, Tls, get, request};
use crate::harness::gateway::{Folder, Gateway, command};
use crate::harness::issuer::Issuer;
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
fn one_certificate_is_revoked_by_its_fingerprint_or_by_itself() {
    let origin = Origin::start();
    let gateway = Gateway::start_in(folder(), &(config(&origin) + "revocation: {database: data/revoked.db}\n"));
    let code = |name: &str, path: &str| {
        let answer = ask(&gateway, WITHOUT_LISTS, "mtls.gw.test", Some(&client(name)), path).unwrap();
        if answer.status == 200 { "ok".to_owned() } else { answer.code() }
    };
    let api = |method: &str, body: &Value| {
        let headers = [("Content-Type", "application/json")];
        let request = request(method, "/api/v1/revocations", &headers, body.to_string().as_bytes());
        assert_eq!(crate::harness::client::ask(gateway.admin(), request).status, 200);
    };
    let hexadecimal: String = fingerprint(&client("ok")).iter().map(|byte| format!("{byte:02x}")).collect();
    let alone = String::from_utf8(X509::from_pem(fixture("ok.pem").as_bytes()).unwrap().to_pem().unwrap()).unwrap();
    for by in [json!({"key_id": hexadecimal}), json!({"token": alone})] {
        assert_eq!((code("ok", "/anybody"), code("not-revoked", "/anybody")), ("ok".to_owned(), "ok".to_owned()));
        api("POST", &by);
        assert_eq!((code("ok", "/anybody"), code("not-revoked", "/anybody")), ("credential_revoked".to_owned(), "ok".to_owned()), "{by}");
        // Where nobody is proven by it, nobody asks.
        assert_eq!(code("ok", "/open"), "ok");
        api("DELETE", &by);
    }
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

#[test]
fn the_service_is_told_whose_certificate_it_was_and_nothing_that_the_caller_says() {
    let origin = Origin::start();
    let gateway = Gateway::start_in(folder(), &config(&origin));
    let cases = [
        ("ok", "/hosts", "accept alice.client.test"),
        ("not-revoked", "/hosts", "accept good2.client.test"),
        ("cn-admin-san-alice", "/hosts", "accept alice.client.test"),
        // Two names that are both allowed: nobody can say which of them calls.
        ("san-multi", "/hosts", "certificate_identity_ambiguous"),
        ("san-uri-spiffe", "/mesh", "accept spiffe://test/ns/a/sa/alice"),
        ("san-uri-spiffe", "/hosts", "certificate_identity_missing"),
        ("san-email", "/people", "accept alice@client.test"),
        ("san-dns-in-email", "/hosts", "certificate_identity_missing"),
        ("ok", "/mesh", "certificate_identity_missing"),
        ("ok", "/names", "accept alice"),
        ("no-san-cn-only", "/names", "accept alice"),
        ("no-san-cn-only", "/anybody", "certificate_identity_missing"),
        ("cn-admin-san-alice", "/names", "certificate_identity"),
        ("cn-comma", "/names", "certificate_identity"),
        ("two-cn", "/names", "certificate_identity_missing"),
        ("san-othername-nul", "/anybody", "certificate_identity_missing"),
        ("san-wildcard", "/anybody", "certificate_identity"),
    ];
    for (name, path, expected) in cases {
        let answer = ask(&gateway, REQUIRED, "gw.test", Some(&client(name)), path).unwrap();
        let found = if answer.status == 200 {
            format!("accept {}", origin.last().header("x-user-id").unwrap())
        } else {
            assert_eq!((answer.status, answer.code().as_str()), (401, "credential_invalid"), "{name} at {path}");
            let mut reason = None;
            until("the refusal is in the access log", || {
                reason = gateway.access_log().iter().find(|line| Some(&line["request_id"]) == answer.json().get("request_id")).cloned();
                reason.is_some()
            });
            reason.unwrap()["reason"].as_str().unwrap().to_owned()
        };
        assert_eq!(found, expected, "{name} at {path}");
    }

    let root = fixture("ca-root.pem");
    let spoofed = [("Host", "gw.test"), ("X-Client-Cert-CN", "admin"), ("x_client_cert_san", "DNS:admin"), ("Client-Cert", ":AA==:")];
    for (name, path, common_name, alternative) in [
        ("ok", "/hosts", "alice", "DNS:alice.client.test"),
        ("san-uri-spiffe", "/open", "alice", "URI:spiffe://test/ns/a/sa/alice"),
        ("cn-comma", "/open", "alice,O=Admin", "DNS:alice.client.test"),
        ("cn-rlo", "/open", "alice%E2%80%AEnimda", "DNS:alice.client.test"),
        ("san-multi", "/open", "alice", "DNS:alice.client.test DNS:admin.client.test"),
    ] {
        let certificate = client(name);
        let tls = Tls { ca: &root, server_name: "gw.test", client: Some(&certificate) };
        let mut connection = Connection::open_tls(gateway.addresses()[OPTIONAL], &tls).unwrap();
        assert_eq!(connection.ask(request("GET", path, &spoofed, b"")).status, 200, "{name}");
        let seen = origin.last();
        assert_eq!(seen.headers_like("x-client-cert-cn"), [common_name], "{name}");
        assert_eq!(seen.headers_like("x-client-cert-san"), [alternative], "{name}");
        let fingerprint: String = fingerprint(&certificate).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(seen.headers_like("x-client-cert-fingerprint"), [fingerprint.as_str()], "{name}");
        assert!(seen.headers_like("client-cert").is_empty());
        let method = (path == "/hosts").then_some("client_certificate");
        assert_eq!((seen.header("x-auth-method"), seen.header("x-plan")), (method, None), "{name}: exact patterns come before");
    }
    ask(&gateway, REQUIRED, "gw.test", Some(&client("not-revoked")), "/hosts").unwrap();
    assert_eq!((origin.last().header("x-consumer-id"), origin.last().header("x-plan")), (Some("acme"), Some("gold")));
}

fn fingerprint(certificate: &Certificate) -> Vec<u8> {
    X509::from_pem(certificate.chain.as_bytes()).unwrap().digest(MessageDigest::sha256()).unwrap().to_vec()
}

#[test]
fn a_caller_without_a_certificate_enters_what_asks_for_none_and_only_where_the_listener_leaves_it_to_it() {
    let origin = Origin::start();
    let gateway = Gateway::start_in(folder(), &config(&origin));
    assert_eq!(ask(&gateway, REQUIRED, "gw.test", None, "/open"), None);
    for listener in [OPTIONAL, UNASKED] {
        assert_eq!(ask(&gateway, listener, "gw.test", None, "/open").unwrap().status, 200);
        let refused = ask(&gateway, listener, "gw.test", None, "/hosts").unwrap();
        assert_eq!((refused.status, refused.code().as_str()), (401, "credential_missing"));
        assert_eq!(refused.header("www-authenticate"), Some("ClientCertificate realm=\"edgeward\""));
        assert_eq!(origin.last().headers_like("x-client-cert-cn"), [""; 0]);
    }
    // A listener that asks for none takes none, whatever the client has.
    assert_eq!(ask(&gateway, UNASKED, "gw.test", Some(&client("ok")), "/hosts").unwrap().status, 401);
}

#[test]
fn a_connection_serves_the_host_that_it_was_opened_for() {
    let origin = Origin::start();
    let gateway = Gateway::start_in(folder(), &config(&origin));
    let (root, ok) = (fixture("ca-root.pem"), client("ok"));
    for (listener, server_name, host, status) in [
        (REQUIRED, "gw.test", "gw.test", 200),
        (REQUIRED, "gw.test", "GW.test.:8443", 200),
        (REQUIRED, "GW.TEST", "gw.test", 200),
        (REQUIRED, "open.gw.test", "mtls.gw.test", 421),
        (OPTIONAL, "open.gw.test", "mtls.gw.test", 421),
        (OPTIONAL, "gw.test", "127.0.0.1", 421),
        (UNASKED, "open.gw.test", "mtls.gw.test", 200),
    ] {
        let tls = Tls { ca: &root, server_name, client: Some(&ok) };
        let mut connection = Connection::open_tls(gateway.addresses()[listener], &tls).unwrap();
        let answer = connection.ask(request("GET", "/open", &[("Host", host)], b""));
        assert_eq!(answer.status, status, "{server_name} {host} at {listener}");
        if status == 421 {
            assert_eq!(answer.code(), "misdirected_request");
            assert!(connection.is_closed());
        }
    }
    // Without a server name there is the first certificate, and the rules of the listener.
    let pair = ["-cert", "ok.pem", "-key", "ok.key"];
    let named = |host: &str, arguments: &[&str]| s_client(&gateway, REQUIRED, host, &[&["-noservername"], arguments].concat());
    assert!(named("127.0.0.1", &pair).contains("HTTP/1.1 200"));
    assert!(named("gw.test", &pair).contains("HTTP/1.1 421"));
    assert!(!named("127.0.0.1", &[]).contains("HTTP/1.1"));
    // A name that no certificate of ours has.
    assert!(!s_client(&gateway, REQUIRED, "other.test", &[&["-servername", "other.test"][..], &pair].concat()).contains("HTTP/1.1"));
}

/// What `openssl s_client` says of one request, in the folder of the collection.
fn s_client(gateway: &Gateway, listener: usize, host: &str, arguments: &[&str]) -> String {
    let address = gateway.addresses()[listener].to_string();
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &address, "-CAfile", "ca-root.pem", "-ign_eof"]).args(arguments).current_dir(FIXTURE);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // A connection that is refused may be gone before we write.
    let _ = child.stdin.take().unwrap().write_all(format!("GET /open HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes());
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
}

#[test]
fn no_session_is_resumed_where_certificates_are_asked_for() {
    let origin = Origin::start();
    let gateway = Gateway::start_in(folder(), &config(&origin));
    for version in ["-tls1_2", "-tls1_3"] {
        for (listener, resumes) in [(REQUIRED, false), (OPTIONAL, false), (WITHOUT_LISTS, false), (UNASKED, true)] {
            let session = gateway.folder().path().join(format!("{listener}{version}"));
            let session = session.to_str().unwrap();
            let asked = |name: &str, more: &[&str]| {
                let arguments =
                    [&[version, "-servername", name, "-cert", "ok.pem", "-cert_chain", "ok.pem", "-key", "ok.key"], more].concat();
                s_client(&gateway, listener, name, &arguments)
            };
            assert!(asked("open.gw.test", &["-sess_out", session]).contains("HTTP/1.1 200"), "{version} at {listener}");
            if !std::path::Path::new(session).exists() {
                assert!(!resumes);
                continue;
            }
            for name in ["open.gw.test", "mtls.gw.test"] {
                let again = asked(name, &["-sess_in", session]);
                assert!(again.contains("HTTP/1.1 200"), "{version} at {listener}");
                // Where nothing is asked for, that shows that this client resumes what it can.
                assert!(again.contains("\nReused, ") == resumes || name == "mtls.gw.test" && resumes, "{version} at {listener} for {name}");
            }
        }
    }
}

#[test]
fn an_open_connection_loses_what_a_new_one_would_not_get() {
    let origin = Origin::start();
    let with_lists = config(&origin);
    let without_lists = with_lists.replace(", crl: crl.pem", "");
    let gateway = Gateway::start_in(folder(), &without_lists);
    let root = fixture("ca-root.pem");
    let (ok, revoked) = (client("ok"), client("revoked"));
    let open = |certificate| {
        let tls = Tls { ca: &root, server_name: "gw.test", client: Some(certificate) };
        Connection::open_tls(gateway.addresses()[OPTIONAL], &tls).unwrap()
    };
    let hosts = || request("GET", "/hosts", &[("Host", "gw.test")], b"");
    let (mut good, mut bad) = (open(&ok), open(&revoked));
    assert_eq!((good.ask(hosts()).status, bad.ask(hosts()).status), (200, 200));
    let generation = |at_least: f64| until("the change is applied", || gateway.metric("edgeward_config_generation", &[]) >= at_least);
    gateway.rewrite(&with_lists);
    generation(2.0);
    assert_eq!(good.ask(hosts()).status, 200);
    let refused = bad.ask(hosts());
    assert_eq!((refused.status, refused.code().as_str()), (421, "misdirected_request"));
    assert!(bad.is_closed());
    until("the reason is in the log", || gateway.access_log().iter().any(|line| line["reason"] == "certificate_revoked"));
    assert_eq!(ask(&gateway, OPTIONAL, "gw.test", Some(&revoked), "/open"), None);

    // A list that cannot be used changes nothing, whatever is wrong with it.
    for list in ["crl-garbage.pem", "crl-int-expired.pem", "crl-int-badsig.pem"] {
        gateway.folder().write("crl.pem", fixture(list) + &fixture("crl-root-empty.pem"));
        until("the candidate is refused", || gateway.metric("edgeward_config_current", &[]) == 0.0);
        assert_eq!(good.ask(hosts()).status, 200);
        assert_eq!(ask(&gateway, OPTIONAL, "gw.test", Some(&revoked), "/open"), None);
        gateway.folder().write("crl.pem", fixture("crl-int.pem") + &fixture("crl-root-empty.pem"));
        until("the sound one is current again", || gateway.metric("edgeward_config_current", &[]) == 1.0);
    }

    // The authority itself is revoked.
    let before = gateway.metric("edgeward_config_generation", &[]);
    gateway.folder().write("crl.pem", fixture("crl-int.pem") + &fixture("crl-root-revokes-int.pem"));
    generation(before + 1.0);
    assert_eq!(good.ask(hosts()).status, 421);
    // And another vouches for callers.
    gateway.folder().write("crl.pem", fixture("crl-int.pem") + &fixture("crl-root-empty.pem"));
    generation(before + 2.0);
    let mut good = open(&ok);
    assert_eq!(good.ask(hosts()).status, 200);
    gateway.folder().write("ca.pem", fixture("ca-other.pem"));
    gateway.rewrite(&without_lists);
    generation(before + 3.0);
    assert_eq!(good.ask(hosts()).status, 421);
    assert_eq!(ask(&gateway, OPTIONAL, "gw.test", Some(&ok), "/open"), None);

    // Whoever came without a certificate may not stay where one is required now.
    let tls = Tls { ca: &root, server_name: "gw.test", client: None };
    let mut anonymous = Connection::open_tls(gateway.addresses()[OPTIONAL], &tls).unwrap();
    let public = || request("GET", "/open", &[("Host", "gw.test")], b"");
    assert_eq!(anonymous.ask(public()).status, 200);
    gateway.rewrite(&without_lists.replace("mode: optional", "mode: required"));
    generation(before + 4.0);
    assert_eq!(anonymous.ask(public()).status, 421);
}

#[test]
fn what_cannot_be_judged_by_refuses_the_configuration() {
    let origin = Origin::start();
    let whole = config(&origin);
    let lists = |names: &[&str]| names.iter().map(|name| fixture(name)).collect::<String>();
    let intermediate_revoked = fixture("crl-int.pem");
    let cases = [
        ("ca.pem", Some(String::new()), "is empty"),
        ("ca.pem", Some("no certificate".to_owned()), "holds no certificate"),
        ("ca.pem", Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned()), "is not PEM"),
        ("ca.pem", None, "cannot read"),
        ("crl.pem", None, "cannot read"),
        ("crl.pem", Some(lists(&["ca-root.pem"])), "holds no revocation list"),
        ("crl.pem", Some(lists(&["crl-garbage.pem"])), "is not PEM"),
        ("crl.pem", Some(lists(&["crl-int-expired.pem", "crl-root-empty.pem"])), "list 1 ended at"),
        ("crl.pem", Some(lists(&["crl-root-empty.pem", "crl-int-badsig.pem"])), "list 2 is signed by none of the authorities"),
        ("crl.pem", Some(lists(&["crl-int.pem"])), "has no list of the 1. authority"),
        ("crl.pem", Some(intermediate_revoked[..200].to_owned()), "is not PEM"),
    ];
    for (file, content, expected) in cases {
        let folder = folder();
        folder.write("edgeward.yaml", &whole);
        match content {
            Some(content) => folder.write(file, content),
            None => std::fs::remove_file(folder.path().join(file)).unwrap(),
        }
        let checked = command(&["check", "-c", "edgeward.yaml"]).current_dir(folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert_eq!(checked.status.code(), Some(1), "{expected}: {said}");
        assert!(said.contains(expected) && said.contains(file), "{expected}: {said}");
    }
}

/// A certificate as RFC 9440 writes it.
fn item(pem: &str) -> String {
    format!(":{}:", STANDARD.encode(X509::from_pem(pem.as_bytes()).unwrap().to_der().unwrap()))
}

#[test]
fn a_forwarded_certificate_is_believed_from_trusted_proxies_and_judged_again() {
    let origin = Origin::start();
    let forwarding = |proxies: &str| {
        format!(
            "server: {{trusted_proxies: [{proxies}], forwarded_certificates: {{ca: ca.pem, crl: crl.pem}}}}{}",
            config(&origin).replacen("listeners:\n", "listeners:\n  - {address: \"127.0.0.1:0\"}\n", 1)
        )
    };
    let gateway = Gateway::start_in(folder(), &forwarding("127.0.0.0/8"));
    let asked = |headers: &[(&str, &str)]| {
        let answer = gateway.get("/hosts", headers);
        if answer.status == 200 { origin.last().header("x-user-id").unwrap().to_owned() } else { answer.code() }
    };
    let (ok, between) = (item(&fixture("ok.pem")), item(last(&fixture("ok.pem"))));
    let other = item(&fixture("other-ca.pem"));
    let [expired, revoked, server] = ["expired", "revoked", "eku-server-only"].map(|name| item(&fixture(&format!("{name}.pem"))));
    let nul = item(&fixture("cn-nul.pem"));
    let two = format!("{between}, {between}");
    let bare = ok.trim_matches(':').to_owned();
    let escaped = fixture("ok.pem").replace('\n', "%0A");
    for _ in 0..2 {
        // The second time is the cache's.
        for (headers, expected) in [
            (&[("Client-Cert", ok.as_str())][..], "alice.client.test"),
            (&[("Client-Cert", &ok), ("Client-Cert-Chain", &between)], "alice.client.test"),
            (&[("Client-Cert", &ok), ("Client-Cert-Chain", &two)], "alice.client.test"),
            (&[], "credential_missing"),
            (&[("Client-Cert", &other)], "credential_invalid"),
            (&[("Client-Cert", &expired)], "credential_expired"),
            (&[("Client-Cert", &revoked)], "credential_revoked"),
            (&[("Client-Cert", &server)], "credential_invalid"),
            (&[("Client-Cert", &nul)], "credential_invalid"),
            (&[("Client-Cert", &ok), ("Client-Cert", &ok)], "bad_request"),
            (&[("Client-Cert-Chain", &between)], "bad_request"),
            (&[("Client-Cert", &two)], "bad_request"),
            (&[("Client-Cert", &bare)], "bad_request"),
            (&[("Client-Cert", &escaped)], "bad_request"),
            (&[("Client-Cert", "")], "bad_request"),
            (&[("Client-Cert", &ok), ("Client-Cert-Chain", "")], "bad_request"),
        ] {
            assert_eq!(asked(headers), expected, "{headers:?}");
        }
    }
    assert!(origin.requests().iter().all(|seen| seen.headers_like("client-cert").is_empty()));

    // The proxy's own certificate is not that of a caller who has none.
    assert_eq!(ask(&gateway, REQUIRED + 1, "gw.test", Some(&client("ok")), "/hosts").unwrap().code(), "credential_missing");

    let stranger = Gateway::start_in(folder(), &forwarding("192.0.2.1"));
    assert_eq!(get(stranger.address(), "/hosts", &[("Client-Cert", &ok)]).code(), "credential_missing");
    assert_eq!(ask(&stranger, REQUIRED + 1, "gw.test", Some(&client("ok")), "/hosts").unwrap().status, 200);
}

#[test]
fn a_bound_token_is_good_on_connections_with_its_certificate_and_on_no_other() {
    let (issuer, origin) = (Issuer::start(Algorithm::Es256), Origin::start());
    let jwt = format!(
        "authenticators:\n  tokens: {{jwt: {{issuer: \"{}\", audiences: [orders], keys: {{jwks_url: \"{}\"}}}}}}\n",
        issuer.url(),
        issuer.jwks_url()
    );
    let route = "routes:\n  - {name: tokens, path: /tokens, upstream: all, policy: {authenticate: tokens}}\n";
    let yaml = config(&origin).replace("authenticators:\n", &jwt).replace("routes:\n", route);
    let gateway = Gateway::start_in(folder(), &yaml);
    let root = fixture("ca-root.pem");
    let [ok, other] = ["ok", "not-revoked"].map(client);
    let asked = |certificate: Option<&Certificate>, token: &str| {
        let tls = Tls { ca: &root, server_name: "gw.test", client: certificate };
        let mut connection = Connection::open_tls(gateway.addresses()[OPTIONAL], &tls).unwrap();
        let bearer = format!("Bearer {token}");
        connection.ask(request("GET", "/tokens", &[("Host", "gw.test"), ("Authorization", &bearer)], b"")).status
    };
    let free = issuer.token("orders", json!({}));
    until("the keys are there", || asked(None, &free) == 200);
    let thumbprint = URL_SAFE_NO_PAD.encode(fingerprint(&ok));
    let bound = issuer.token("orders", json!({"cnf": {"x5t#S256": thumbprint}}));
    let both = issuer.token("orders", json!({"cnf": {"x5t#S256": thumbprint, "jkt": "x"}}));
    for _ in 0..3 {
        // In this order: what the cache knows after the first must not help the others.
        assert_eq!(asked(Some(&ok), &bound), 200);
        assert_eq!(asked(Some(&other), &bound), 401);
        assert_eq!(asked(None, &bound), 401);
        assert_eq!(asked(Some(&ok), &both), 401);
        assert_eq!(asked(Some(&other), &free), 200);
    }
}
