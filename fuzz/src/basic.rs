//! Users and passwords: the right pair opens and no other, and no hash is taken that is too fast or too slow.

use std::net::Ipv4Addr;
use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use edgeward::authenticators::Verdict;
use edgeward::authenticators::basic::Basic;
use edgeward::config::{self, PasswordHash, User};
use edgeward::live::LiveState;
use edgeward::request::{Client, Now, Request};
use http::{HeaderMap, HeaderValue, Method, header};
use tokio::runtime::{Builder, Runtime};

/// Of `open sesame`, with the least cost.
const HASH: &str = "$2y$04$GUwInVttwQYahQUrKY02q.oCDtQ8tj8ubk3QhTHFg36MGwI2OuCHi";

static BASIC: LazyLock<Basic> = LazyLock::new(|| {
    let users = vec![User { name: "alice".into(), hash: PasswordHash::parse(HASH).unwrap() }];
    Basic::new("staff".into(), &config::Basic { users, realm: "fuzz".into() }, &LiveState::default())
});

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().unwrap());

/// The first line stands after `Basic `, or is encoded when it begins with a space; the second is read as a hash.
pub fn run(data: &[u8]) {
    let (line, hash) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len()));
    let credential = match line.strip_prefix(b" ") {
        Some(pair) => STANDARD.encode(pair).into_bytes(),
        None => line.to_vec(),
    };
    check_credential(&credential);
    if let Ok(hash) = std::str::from_utf8(hash.trim_ascii()) {
        check_hash(hash);
    }
}

fn check_credential(credential: &[u8]) {
    let Ok(line) = HeaderValue::from_bytes(&[b"Basic ", credential].concat()) else { return };
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, line)]);
    let client = Client { address: Ipv4Addr::LOCALHOST.into(), through_trusted_proxy: false };
    let now = Now { monotonic: Duration::ZERO, unix: Duration::ZERO };
    let verdict = RUNTIME.block_on(BASIC.authenticate(&Request::new(&Method::GET, "gw.test", "/", &headers, &client), now));
    let right = STANDARD.decode(credential.trim_ascii()).is_ok_and(|pair| pair == b"alice:open sesame");
    assert_eq!(matches!(verdict, Verdict::Accept(_)), right, "{}", String::from_utf8_lossy(credential));
    assert!(!matches!(verdict, Verdict::Pass));
}

fn check_hash(text: &str) {
    let Ok(hash) = PasswordHash::parse(text) else { return };
    assert_eq!(hash.text().expose(), text.as_bytes());
    match hash {
        PasswordHash::Bcrypt(_) => {
            assert!(["$2y$", "$2b$", "$2a$"].iter().any(|prefix| text.starts_with(prefix)));
            assert!((4..=14).contains(&text[4..6].parse::<u32>().unwrap()));
        }
        PasswordHash::Argon2id(_) => {
            let cost = |name: &str| {
                let costs = text.split('$').nth(3).unwrap();
                costs.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse::<u32>().ok())
            };
            assert!(text.starts_with("$argon2id$v=19$"));
            let within = |name, most| cost(name).is_none_or(|cost| cost <= most);
            assert!(within("m", 128 * 1024) && within("t", 10) && within("p", 8), "{text}");
        }
    }
}
