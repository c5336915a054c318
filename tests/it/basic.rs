//! Users and passwords, from the caller to the service behind, and what a flood of wrong ones does to the others.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::Origin;
use crate::harness::until;

fn user(name: &str, password: &str, cost: u32) -> String {
    format!("{name}:{}\n", bcrypt::hash_with_salt(password, cost, [7; 16]).unwrap().format_for_version(bcrypt::Version::TwoY))
}

fn start(origin: &Origin, users: &str) -> Gateway {
    let folder = Folder::new();
    folder.write("users.htpasswd", users);
    let yaml = format!(
        r#"
listeners: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
upstreams: {{wiki: {{servers: ["{}"]}}}}
authenticators:
  staff: {{basic: {{users: {{file: users.htpasswd}}, realm: the wiki}}}}
routes:
  - {{name: wiki, path: /wiki, upstream: wiki, policy: {{authenticate: [staff]}}}}
  - {{name: open, path: /open, upstream: wiki, policy: {{authenticate: public}}}}
"#,
        origin.address
    );
    Gateway::start_in(folder, &yaml)
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[test]
fn a_user_with_the_password_reaches_the_service_and_nobody_else_does() {
    let origin = Origin::start();
    let gateway = start(&origin, &user("alice", "pass:word", 6));
    let ask = |user: &str, password: &str| gateway.get("/wiki", &[("Authorization", &basic(user, password))]);
    assert_eq!(ask("alice", "pass:word").status, 200);
    let seen = origin.last();
    assert_eq!((seen.header("x-user-id"), seen.header("x-consumer-id")), (Some("alice"), Some("alice")));
    assert_eq!((seen.header("x-auth-method"), seen.header("authorization")), (Some("basic"), None));

    let missing = gateway.get("/wiki", &[]);
    let challenge = Some("Basic realm=\"the wiki\", charset=\"UTF-8\"");
    assert_eq!((missing.code().as_str(), missing.header("www-authenticate")), ("credential_missing", challenge));
    let (wrong, unknown) = (ask("alice", "password"), ask("bob", "pass:word"));
    assert_eq!((wrong.status, wrong.code().as_str(), wrong.header("www-authenticate")), (401, "credential_invalid", challenge));
    let shown = |text: &str| text.split("request_id").next().unwrap().to_owned();
    assert_eq!((unknown.status, shown(unknown.text())), (401, shown(wrong.text())), "they look the same");

    gateway.folder().write("users.htpasswd", user("alice", "another", 6));
    until("the new password opens", || ask("alice", "another").status == 200);
    assert_eq!(ask("alice", "pass:word").status, 401, "the old one was remembered for another hash");
    assert!(!gateway.printed().contains("another") && !gateway.printed().contains(&basic("alice", "another")[6..]));
}

#[test]
fn a_flood_of_wrong_passwords_stops_nobody_who_needs_none() {
    let origin = Origin::start();
    let gateway = start(&origin, &user("alice", "right", 8));
    let good = basic("alice", "right");
    assert_eq!(gateway.get("/wiki", &[("Authorization", &good)]).status, 200);
    let flood: Vec<_> = (0..100)
        .map(|guess| {
            let address = gateway.address();
            std::thread::spawn(move || {
                crate::harness::client::get(address, "/wiki", &[("Authorization", &basic("alice", &format!("guess{guess}")))]).status
            })
        })
        .collect();
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let asked = Instant::now();
        assert_eq!(gateway.get("/open", &[]).status, 200);
        assert_eq!(gateway.get("/wiki", &[("Authorization", &good)]).status, 200, "who is known is let in");
        slowest = slowest.max(asked.elapsed());
    }
    assert!(slowest < Duration::from_secs(5), "{slowest:?} of {:?}", started.elapsed());
    let statuses: Vec<_> = flood.into_iter().map(|guess| guess.join().unwrap()).collect();
    assert!(statuses.iter().all(|status| matches!(status, 401 | 503)), "{statuses:?}");
    assert!(statuses.contains(&401) && statuses.contains(&503), "some are looked at, and not all: {statuses:?}");
    until("they are over", || gateway.get("/wiki", &[("Authorization", &basic("alice", "wrong"))]).status == 401);
}
