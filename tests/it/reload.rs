//! Configurations that change while the gateway serves: whole or not at all, and for every connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use edgeward::jose::Algorithm;
use serde_json::json;

use crate::harness::client::{Connection, get, request};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::issuer::Issuer;
use crate::harness::origin::Origin;
use crate::harness::until;

/// The version stands in four places that must agree: what is matched, the path and a header of what is forwarded, the answer.
fn versioned(version: usize, origin: &Origin) -> String {
    format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{all: {{servers: ["{}"]}}}}
authenticators: {{partners: {{api_key: {{keys: {{file: keys.yaml}}}}}}}}
limits: {{limit-{version}: {{per: client_ip, rate: {}/h}}}}
routes:
  - name: route-{version}
    path: "/at/{{*rest}}"
    upstream: all
    rewrite: "/{version}/{{rest}}"
    policy: {{authenticate: partners, limits: [limit-{version}], forward: {{headers: {{X-Version: "{version}"}}}}}}
"#,
        origin.address,
        1_000_000 + version,
    )
}

fn key_file(keys: &[&str]) -> String {
    let mut file = String::from("keys:\n");
    for (at, key) in keys.iter().enumerate() {
        let hash: String = openssl::sha::sha256(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        file.push_str(&format!("  - {{id: key{at}, sha256: \"{hash}\", consumer: acme}}\n"));
    }
    if keys.is_empty() { "keys: []\n".to_owned() } else { file }
}

fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("keys.yaml", key_file(&["alpha"]));
    folder
}

/// Applies what is on disk, and waits until it serves.
fn apply(gateway: &Gateway) {
    let generation = gateway.metric("edgeward_config_generation", &[]);
    gateway.signal("HUP");
    until("the candidate is applied", || gateway.metric("edgeward_config_generation", &[]) > generation);
}

#[test]
fn every_request_under_load_meets_one_configuration_and_none_meets_two() {
    let origin = Origin::start();
    let gateway = Gateway::start_in(folder(), &versioned(1, &origin));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|caller| {
                let (gateway, stop) = (&gateway, &stop);
                scope.spawn(move || {
                    let mut connection = Connection::open(gateway.address());
                    let mut versions = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let path = format!("/at/{caller}/{}", versions.len());
                        let answer = connection.ask(request("GET", &path, &[("X-API-Key", "alpha")], b""));
                        assert_eq!(answer.status, 200, "{answer:?}");
                        let limit = answer.header("ratelimit").unwrap().split('"').nth(1).unwrap().to_owned();
                        let version: usize = limit.strip_prefix("limit-").unwrap().parse().unwrap();
                        assert_eq!(answer.header("x-ratelimit-limit"), Some(&*(1_000_000 + version).to_string()));
                        versions.push(version);
                    }
                    versions
                })
            })
            .collect();
        for version in 2..=31 {
            gateway.rewrite(&versioned(version, &origin));
            apply(&gateway);
        }
        stop.store(true, Ordering::Relaxed);
        for (caller, versions) in callers.into_iter().enumerate() {
            let versions = versions.join().unwrap();
            assert!(versions.is_sorted() && versions.len() > 30, "{} answers", versions.len());
            let forwarded: std::collections::BTreeSet<_> = origin.requests().iter().map(|seen| seen.target().to_owned()).collect();
            for (at, version) in versions.iter().enumerate() {
                assert!(forwarded.contains(&format!("/{version}/{caller}/{at}")), "answered as {version}, forwarded as another");
            }
        }
    });
    let mut versions = std::collections::BTreeSet::new();
    for seen in origin.requests() {
        let version = seen.target().split('/').nth(1).unwrap().to_owned();
        assert_eq!(seen.header("x-version"), Some(&*version), "{}", seen.head);
        versions.insert(version);
    }
    assert!(versions.len() > 15, "{} versions served", versions.len());
}

#[test]
fn whatever_is_wrong_with_a_candidate_the_last_good_configuration_serves() {
    let origin = Origin::start();
    let sound = versioned(7, &origin);
    let mut gateway = Gateway::start_in(folder(), &sound);
    let serves = |gateway: &Gateway| {
        assert_eq!(gateway.get("/at/1", &[("X-API-Key", "alpha")]).status, 200);
        assert_eq!(origin.last().header("x-version"), Some("7"));
        assert_eq!(gateway.get("/at/1", &[]).status, 401, "and nothing is open that was closed");
    };
    serves(&gateway);
    let bomb = (0..12).fold("a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned(), |bomb, level| {
        let more = level + 1;
        format!("{bomb}a{more}: &a{more} [{}]\n", vec![format!("*a{level}"); 8].join(", "))
    });
    let candidates: Vec<(&str, Vec<u8>)> = vec![
        ("an empty file", Vec::new()),
        ("half of it", sound.as_bytes()[..sound.len() / 2].to_vec()),
        ("all but its last line", sound.trim_end().rsplit_once('\n').unwrap().0.into()),
        ("no YAML", "{[}".into()),
        ("another format", "<config/>".into()),
        ("bytes that are no text", vec![0xff, 0xfe, 0, 1]),
        ("a NUL", format!("{sound}\0").into()),
        ("only null", "null\n".into()),
        ("a list", "[]\n".into()),
        ("two documents", format!("{sound}---\n{sound}").into()),
        ("an unknown key", format!("{sound}listener: []\n").into()),
        ("a slip in `authenticate`", sound.replace("authenticate:", "atuhenticate:").into()),
        ("`authenticate` left out", sound.replace("authenticate: partners, ", "").into()),
        ("`authenticate` without a value", sound.replace("authenticate: partners", "authenticate:").into()),
        ("`policy` without a value", sound.replace("policy: {", "policy:\n    other: {").into()),
        ("a doubled key", format!("{sound}routes: []\n").into()),
        ("a doubled route", format!("{sound}{}", sound.split_once("routes:\n").unwrap().1).into()),
        ("an authenticator nobody knows", sound.replace("authenticate: partners", "authenticate: partner").into()),
        ("an upstream nobody knows", sound.replace("upstream: all", "upstream: none").into()),
        ("a limit nobody knows", sound.replace("limits: [limit-7]", "limits: [limit-8]").into()),
        ("a key file that is not there", sound.replace("keys.yaml", "no-keys.yaml").into()),
        ("a key file that is a folder", sound.replace("keys.yaml", ".").into()),
        ("a path in two readings", sound.replace("/at/", "/%61t/").into()),
        ("another address", sound.replacen("127.0.0.1:0", "127.0.0.2:0", 1).into()),
        ("aliases that multiply", format!("{bomb}{sound}").into()),
        ("lists without an end", format!("listeners: {}", "[".repeat(100_000)).into()),
        ("5 MiB", format!("{sound}# {}\n", "x".repeat(5 << 20)).into()),
    ];
    let refused = |gateway: &Gateway| gateway.metric("edgeward_config_reloads_refused_total", &[]);
    for (name, candidate) in &candidates {
        let before = refused(&gateway);
        gateway.folder().write("edgeward.yaml", candidate);
        gateway.signal("HUP");
        until(name, || refused(&gateway) > before);
        serves(&gateway);
        assert_eq!(gateway.metric("edgeward_config_current", &[]), 0.0, "{name}");
    }
    let readiness = get(gateway.admin(), "/readyz", &[]);
    assert_eq!((readiness.status, readiness.json()["config"].as_str()), (200, Some("stale")));

    // What is wrong with the file itself, and not with what stands in it.
    let path = gateway.folder().path().join("edgeward.yaml");
    for (name, spoil) in [
        ("deleted", Box::new(|| {}) as Box<dyn Fn()>),
        ("a folder", Box::new(|| std::fs::create_dir(&path).unwrap())),
        ("a link to nothing", Box::new(|| std::os::unix::fs::symlink("nothing", &path).unwrap())),
        ("a link to itself", Box::new(|| std::os::unix::fs::symlink("edgeward.yaml", &path).unwrap())),
    ] {
        let before = refused(&gateway);
        std::fs::remove_file(&path).unwrap();
        spoil();
        gateway.signal("HUP");
        until(name, || refused(&gateway) > before);
        serves(&gateway);
        let _ = std::fs::remove_dir(&path);
        let _ = std::fs::remove_file(&path);
        gateway.rewrite(&sound);
    }
    apply(&gateway);
    serves(&gateway);
    assert_eq!(get(gateway.admin(), "/readyz", &[]).json()["config"], "current");
    assert!(gateway.is_alive());
}

#[test]
fn what_is_taken_away_is_gone_on_connections_that_are_open() {
    let (issuer, origin) = (Issuer::start(Algorithm::EdDsa), Origin::start());
    let folder = Folder::new();
    folder.write("keys.yaml", key_file(&["alpha", "beta"]));
    let route = |name: &str, authenticator: &str| {
        format!("  - {{name: {name}, path: \"/{name}\", upstream: all, policy: {{authenticate: {authenticator}}}}}\n")
    };
    let head = format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{all: {{servers: ["{}"]}}}}
authenticators:
  partners: {{api_key: {{keys: {{file: keys.yaml}}}}}}
  staff: {{jwt: {{issuer: "{}", audiences: [all], keys: {{jwks_url: "{}"}}}}}}
routes:
"#,
        origin.address,
        issuer.url(),
        issuer.jwks_url()
    );
    let all =
        [head.clone(), route("keep", "partners"), route("other", "partners"), route("token", "staff"), route("open", "public")].concat();
    let gateway = Gateway::start_in(folder, &all);
    let bearer = format!("Bearer {}", issuer.token("all", json!({})));
    until("the issuer's keys are there", || gateway.get("/token", &[("Authorization", &bearer)]).status == 200);
    let mut connection = Connection::open(gateway.address());
    let mut statuses = || -> Vec<u16> {
        [("/keep", "alpha"), ("/keep", "beta"), ("/other", "alpha"), ("/token", ""), ("/open", "")]
            .map(|(path, key)| {
                let headers = if path == "/token" { [("Authorization", &*bearer)] } else { [("X-API-Key", key)] };
                connection.ask(request("GET", path, &headers, b"")).status
            })
            .to_vec()
    };
    assert_eq!(statuses(), [200, 200, 200, 200, 200]);

    gateway.folder().write("keys.yaml", key_file(&["alpha"]));
    apply(&gateway);
    assert_eq!(statuses(), [200, 401, 200, 200, 200], "a key");

    gateway.rewrite(&[head.clone(), route("keep", "partners"), route("token", "staff"), route("open", "partners")].concat());
    apply(&gateway);
    assert_eq!(statuses(), [200, 401, 404, 200, 401], "a route, and the freedom to enter another");

    gateway
        .rewrite(&[head.replace("audiences: [all]", "audiences: [nobody]"), route("keep", "partners"), route("token", "staff")].concat());
    apply(&gateway);
    assert_eq!(statuses(), [200, 401, 404, 401, 404], "an audience, though the token is remembered");

    gateway.folder().write("keys.yaml", key_file(&[]));
    // By itself: an operator who withdraws a key need not remember a signal.
    until("the last key is gone", || statuses()[0] == 401);
}

#[test]
fn a_request_that_has_begun_ends_under_the_configuration_it_began_with() {
    let origin = Origin::scripted(|_| {
        std::thread::sleep(Duration::from_millis(500));
        crate::harness::origin::Reply::Bytes(crate::harness::origin::answer(200, &[], "slow"))
    });
    let gateway = Gateway::start_in(folder(), &versioned(1, &origin));
    let mut connection = Connection::open(gateway.address());
    connection.send(request("GET", "/at/1", &[("X-API-Key", "alpha")], b""));
    until("the service has been asked", || !origin.requests().is_empty());
    gateway.folder().write("keys.yaml", key_file(&[]));
    gateway.rewrite(&versioned(2, &origin).replace("/at/", "/elsewhere/"));
    apply(&gateway);
    let answer = connection.answer(false);
    assert_eq!((answer.status, answer.header("x-ratelimit-limit")), (200, Some("1000001")));
    assert_eq!(connection.ask(request("GET", "/at/1", &[("X-API-Key", "alpha")], b"")).status, 404);
}

/// A volume of Kubernetes: the file is a link through `..data`, and an update swaps that link alone.
#[test]
fn a_swap_of_the_link_of_a_mounted_volume_is_applied() {
    let text = |path: &str| {
        format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]\nadmin: {{address: \"127.0.0.1:0\"}}\nupstreams: {{demo: {{builtin: echo}}}}\n\
             routes: [{{name: all, path: {path}, policy: {{authenticate: public}}, upstream: demo}}]\n"
        )
    };
    let gateway = Gateway::start(&text("/zero"));
    let folder = gateway.folder();
    let link = |to: &str, at: &str| {
        let beside = folder.path().join("link.new");
        std::os::unix::fs::symlink(to, &beside).unwrap();
        std::fs::rename(beside, folder.path().join(at)).unwrap();
    };
    let serves = |path: &str| gateway.get(path, &[]).status == 200;
    folder.write("..first/edgeward.yaml", text("/first"));
    link("..first", "..data");
    link("..data/edgeward.yaml", "edgeward.yaml");
    until("the mounted configuration serves", || serves("/first"));
    folder.write("..second/edgeward.yaml", text("/second"));
    link("..second", "..data");
    until("the swapped configuration serves", || serves("/second"));
    assert!(!serves("/first"));
}

#[test]
fn the_room_for_verified_tokens_changes_without_a_restart_and_keeps_them() {
    let issuer = Issuer::start(Algorithm::Es256);
    let configuration = |server: &str| {
        format!(
            r#"
server: {{{server}}}
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{demo: {{builtin: echo}}}}
authenticators: {{staff: {{jwt: {{issuer: "{}", audiences: [gw], keys: {{jwks_url: "{}"}}}}}}}}
routes: [{{name: all, path: "/{{*rest}}", policy: {{authenticate: staff}}, upstream: demo}}]
"#,
            issuer.url(),
            issuer.jwks_url()
        )
    };
    let gateway = Gateway::start(&configuration("threads: 2"));
    let bearer = format!("Bearer {}", issuer.token("gw", json!({})));
    let get = || gateway.get("/x", &[("Authorization", &bearer)]).status;
    let misses = || gateway.metric("edgeward_token_cache_misses", &[]);
    until("the issuer's keys are there", || get() == 200);
    let verified = misses();
    for room in ["16MiB", "1GiB"] {
        gateway.rewrite(&configuration(&format!("threads: 2, token_cache: {room}")));
        apply(&gateway);
        assert_eq!((get(), misses()), (200, verified), "{room}");
    }
    let refused = gateway.metric("edgeward_config_reloads_refused_total", &[]);
    gateway.rewrite(&configuration("threads: 3, token_cache: 1GiB"));
    gateway.signal("HUP");
    until("the rest of the process is fixed", || gateway.metric("edgeward_config_reloads_refused_total", &[]) > refused);
}
