//! What is accepted, and that nothing next to it is.

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::request::Client;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const TIME: &str = "20150830T123600Z";
/// The same.
const NOW: u64 = 1_440_938_160;
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn entry(id: &str) -> SigningKeyEntry {
    SigningKeyEntry {
        access_key_id: id.into(),
        secret: Secret::new(SECRET.as_bytes().to_vec()),
        session_token: None,
        consumer: "acme".into(),
        scopes: vec!["orders:read".into()],
        routes: vec![],
        allow: vec![],
        plan: Some("gold".into()),
        expires: None,
    }
}

fn config() -> config::Sigv4 {
    config::Sigv4 {
        region: "us-east-1".into(),
        service: "service".into(),
        keys: vec![
            entry("AKID"),
            SigningKeyEntry { session_token: Some(Secret::new(b"TOKEN==".to_vec())), ..entry("ASIA") },
            SigningKeyEntry { expires: Some(NOW), ..entry("EXPIRED") },
            SigningKeyEntry { routes: vec!["other".into()], ..entry("ELSEWHERE") },
            SigningKeyEntry { allow: vec!["192.0.2.0/24".parse().unwrap()], ..entry("FAR") },
        ],
        clock_skew: Duration::from_secs(300),
        unsigned_payload: false,
        replay: Replay::Allow,
    }
}

fn sigv4(config: &config::Sigv4) -> Sigv4 {
    Sigv4::new("iam".into(), config, &LiveState::default())
}

/// A request, and how it is signed before it is tampered with.
#[derive(Clone)]
struct Call {
    id: &'static str,
    secret: &'static str,
    method: HttpMethod,
    path: String,
    query: Option<String>,
    host: String,
    port: Option<String>,
    lines: Vec<(&'static str, String)>,
    names: String,
    time: String,
    /// Of the scope.
    date: String,
    region: &'static str,
    service: &'static str,
    payload: String,
    body: Option<&'static [u8]>,
}

fn call() -> Call {
    Call {
        id: "AKID",
        secret: SECRET,
        method: HttpMethod::POST,
        path: "/orders/7%20a".to_owned(),
        query: Some("b=2&a=1%2F".to_owned()),
        host: "api.example.com".to_owned(),
        port: None,
        lines: vec![("x-amz-date", TIME.to_owned()), ("content-type", "text/plain".to_owned()), ("x-unsigned", "1".to_owned())],
        names: "content-type;host;x-amz-date".to_owned(),
        time: TIME.to_owned(),
        date: "20150830".to_owned(),
        region: "us-east-1",
        service: "service",
        payload: EMPTY.to_owned(),
        body: Some(b""),
    }
}

impl Call {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn scope(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }

    fn signature(&self) -> String {
        let host = self.port.as_ref().map_or(self.host.clone(), |port| format!("{}:{port}", self.host));
        let text = Signed {
            method: self.method.as_str(),
            path: &self.path,
            escapes: if self.service == "s3" { Escapes::Kept } else { Escapes::Escaped },
            query: self.query.as_deref(),
            host: &host,
            headers: &self.headers(),
            names: &self.names,
            payload: &self.payload,
        };
        let text = text.canonical_request().unwrap();
        let key = canonical::signing_key(self.secret.as_bytes(), &self.date, self.region, self.service);
        canonical::hex(&canonical::signature(&key, &canonical::string_to_sign(&self.time, &self.scope(), &text)))
    }

    fn authorization(&self) -> String {
        format!("AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={}, Signature={}", self.id, self.scope(), self.names, self.signature())
    }

    fn signed(mut self) -> Self {
        let authorization = self.authorization();
        self.lines.push(("authorization", authorization));
        self
    }

    /// Signed in the URL.
    fn presigned(mut self, expires: &str) -> Self {
        self.lines.retain(|(name, _)| *name != "x-amz-date");
        self.names = self.names.replace(";x-amz-date", "");
        let escape = |text: &str| text.replace('/', "%2F").replace(';', "%3B");
        let parameters = [
            self.query.take().unwrap_or_default(),
            "X-Amz-Algorithm=AWS4-HMAC-SHA256".to_owned(),
            format!("X-Amz-Credential={}%2F{}", self.id, escape(&self.scope())),
            format!("X-Amz-Date={}", self.time),
            format!("X-Amz-Expires={expires}"),
            format!("X-Amz-SignedHeaders={}", escape(&self.names)),
        ];
        self.query = Some(parameters.join("&"));
        self.query = Some(format!("{}&X-Amz-Signature={}", parameters.join("&"), self.signature()));
        self
    }

    fn ask_at(&self, sigv4: &Sigv4, now: u64) -> Result<Option<Proof>, Rejection> {
        let headers = self.headers();
        let client = Client { address: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), through_trusted_proxy: false };
        let request = Request {
            port: self.port.as_deref(),
            query: self.query.as_deref(),
            body: self.body,
            route: "orders",
            ..Request::new(&self.method, &self.host, &self.path, &headers, &client)
        };
        match sigv4.authenticate(&request, Now { monotonic: Duration::ZERO, unix: Duration::from_secs(now) }) {
            Verdict::Accept(proof) => Ok(Some(proof)),
            Verdict::Pass => Ok(None),
            Verdict::Reject(rejection) => Err(rejection),
        }
    }

    fn ask(&self, sigv4: &Sigv4) -> Result<Option<Proof>, Rejection> {
        self.ask_at(sigv4, NOW)
    }

    /// `ok`, `pass`, or why not.
    fn outcome(&self, sigv4: &Sigv4) -> &'static str {
        outcome(&self.ask(sigv4))
    }
}

fn outcome(result: &Result<Option<Proof>, Rejection>) -> &'static str {
    match result {
        Ok(Some(_)) => "ok",
        Ok(None) => "pass",
        Err(rejection) => rejection.reason().unwrap_or(rejection.code()),
    }
}

fn with(change: impl FnOnce(&mut Call)) -> Call {
    let mut call = call();
    change(&mut call);
    call
}

/// Signed, then changed.
fn tampered(change: impl FnOnce(&mut Call)) -> Call {
    let mut call = call().signed();
    change(&mut call);
    call
}

fn line(call: &mut Call, name: &'static str, value: &str) {
    call.lines.retain(|(known, _)| *known != name);
    call.lines.push((name, value.to_owned()));
}

#[test]
fn a_good_signature_is_an_identity() {
    let proof = call().signed().ask(&sigv4(&config())).unwrap().unwrap();
    let identity = &proof.identity;
    assert_eq!(
        (identity.consumer.as_deref(), identity.key_id.as_deref(), identity.plan.as_deref()),
        (Some("acme"), Some("AKID"), Some("gold"))
    );
    assert_eq!((identity.method, &*identity.scopes), (Method::Sigv4, &["orders:read".into()][..]));
    assert_eq!(proof.body, [], "the empty body was hashed here");
}

#[test]
fn only_what_was_signed_is_accepted() {
    let sigv4 = sigv4(&config());
    let rows: Vec<(&str, Call, &str)> = vec![
        ("as it was signed", call().signed(), "ok"),
        ("with a port", with(|call| call.port = Some("8443".to_owned())).signed(), "ok"),
        ("with an unsigned header changed", tampered(|call| line(call, "x-unsigned", "2")), "ok"),
        ("with an unsigned header added", tampered(|call| line(call, "x-more", "2")), "ok"),
        ("nothing", call(), "pass"),
        ("another scheme", with(|call| line(call, "authorization", "Bearer abc")), "pass"),
        ("another method", tampered(|call| call.method = HttpMethod::PUT), "signature"),
        ("another path", tampered(|call| call.path.push('x')), "signature"),
        ("a path in another spelling", tampered(|call| call.path = "/orders/%37%20a".to_owned()), "signature"),
        ("another query", tampered(|call| call.query = Some("b=2&a=2".to_owned())), "signature"),
        ("no query", tampered(|call| call.query = None), "signature"),
        ("an escape in another spelling", tampered(|call| call.query = Some("b=2&a=1%2f".to_owned())), "query_escapes"),
        ("another host", tampered(|call| call.host = "other.example.com".to_owned()), "signature"),
        ("another port", tampered(|call| call.port = Some("81".to_owned())), "signature"),
        ("another type of body", tampered(|call| line(call, "content-type", "text/html")), "signature"),
        ("no type of body", tampered(|call| call.lines.retain(|(name, _)| *name != "content-type")), "signed_headers"),
        ("a second line of a signed header", tampered(|call| call.lines.push(("content-type", "text/html".to_owned()))), "signature"),
        ("a body", tampered(|call| call.body = Some(b"x")), "signature"),
        ("a body that nobody hashed", tampered(|call| call.body = None), "payload_hash_missing"),
        ("an unknown key", with(|call| call.id = "NOBODY").signed(), "unknown"),
        // Of two keys with one secret, the id says whose record counts: it is not part of what is signed.
        ("another's id with the same secret", tampered(|call| replace(call, "AKID/", "FAR/")), "address_denied"),
        ("a wrong secret", with(|call| call.secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEX").signed(), "signature"),
        ("another region", with(|call| call.region = "eu-west-1").signed(), "scope"),
        ("another service", with(|call| call.service = "other").signed(), "scope"),
        ("another terminator", tampered(|call| replace(call, "aws4_request", "aws4_requesT")), "malformed"),
        ("another algorithm", tampered(|call| replace(call, "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA512")), "pass"),
        ("the asymmetric algorithm", tampered(|call| replace(call, "AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256")), "pass"),
        ("the scheme in lower case", tampered(|call| replace(call, "AWS4-HMAC-SHA256", "aws4-hmac-sha256")), "malformed"),
        ("a signature in upper case", tampered(upper_signature), "malformed"),
        ("a signature cut short", tampered(shorten), "malformed"),
        ("a part too many", tampered(|call| replace(call, "Signature=", "Extra=1, Signature=")), "malformed"),
        ("two Authorization lines", tampered(|call| call.lines.push(("authorization", call.authorization()))), "credential_repeated"),
        ("in the header and in the URL", tampered(|call| call.query = Some("X-Amz-Signature=00".to_owned())), "credential_repeated"),
        ("an expired key", with(|call| call.id = "EXPIRED").signed(), "expired"),
        ("a key of other routes", with(|call| call.id = "ELSEWHERE").signed(), "route"),
        ("a key of other networks", with(|call| call.id = "FAR").signed(), "address_denied"),
    ];
    for (name, call, expected) in rows {
        assert_eq!(call.outcome(&sigv4), expected, "{name}");
    }
}

fn replace(call: &mut Call, from: &str, to: &str) {
    for (_, value) in call.lines.iter_mut().filter(|(name, _)| *name == "authorization") {
        *value = value.replacen(from, to, 1);
    }
}

fn upper_signature(call: &mut Call) {
    for (_, value) in call.lines.iter_mut().filter(|(name, _)| *name == "authorization") {
        let (head, signature) = value.rsplit_once('=').unwrap();
        *value = format!("{head}={}", signature.to_uppercase());
    }
}

fn shorten(call: &mut Call) {
    for (_, value) in call.lines.iter_mut().filter(|(name, _)| *name == "authorization") {
        value.pop();
    }
}

#[test]
fn signed_headers_are_sorted_once_each_and_there_and_cover_what_they_must() {
    let sigv4 = sigv4(&config());
    for (names, expected) in [
        ("content-type;host;x-amz-date", "ok"),
        ("content-type;host;x-amz-date;x-unsigned", "ok"),
        ("content-type;x-amz-date", "signed_headers"),
        ("host;x-amz-date", "signed_headers"),
        ("content-type;host", "signed_headers"),
        ("host;content-type;x-amz-date", "signed_headers"),
        ("content-type;host;host;x-amz-date", "signed_headers"),
        ("content-type;host;x-absent;x-amz-date", "signed_headers"),
        ("Content-Type;host;x-amz-date", "signed_headers"),
        ("content-type;host;x-amz-date;", "signed_headers"),
        (";content-type;host;x-amz-date", "signed_headers"),
        ("content-type;;host;x-amz-date", "signed_headers"),
        ("content-type; host;x-amz-date", "signed_headers"),
        ("", "signed_headers"),
    ] {
        assert_eq!(with(|call| call.names = names.to_owned()).signed().outcome(&sigv4), expected, "{names}");
    }
    let added = tampered(|call| line(call, "x-amz-meta-owner", "mallory"));
    assert_eq!(added.outcome(&sigv4), "signed_headers", "one of AWS's own, added after signing");
}

#[test]
fn a_signature_is_good_around_its_time_only() {
    let sigv4 = sigv4(&config());
    for (now, expected) in [
        (NOW, "ok"),
        (NOW + 300, "ok"),
        (NOW + 301, "credential_expired"),
        (NOW + 960, "credential_expired"),
        (NOW - 300, "ok"),
        (NOW - 301, "not_yet_valid"),
        (NOW - 960, "not_yet_valid"),
        (0, "not_yet_valid"),
        (u64::MAX / 2, "credential_expired"),
    ] {
        assert_eq!(outcome(&call().signed().ask_at(&sigv4, now)), expected, "{now}");
    }
    let dated = |time: &str| with(|call| line(call, "x-amz-date", time));
    for (time, expected) in [
        ("20150830T123600Z", "ok"),
        ("20150830T123600", "date"),
        ("20150830t123600Z", "date"),
        ("2015083 T123600Z", "date"),
        ("+0150830T123600Z", "date"),
        ("20150231T123600Z", "date"),
        ("20150830T240000Z", "date"),
        ("Sun, 30 Aug 2015 12:36:00 GMT", "date"),
        ("19691231T235959Z", "date"),
        ("", "date"),
    ] {
        let mut call = dated(time);
        call.time = time.to_owned();
        assert_eq!(call.signed().outcome(&sigv4), expected, "{time}");
    }
    let missing = with(|call| call.lines.retain(|(name, _)| *name != "x-amz-date"));
    assert_eq!(missing.signed().outcome(&sigv4), "date");
    assert_eq!(tampered(|call| call.lines.push(("x-amz-date", TIME.to_owned()))).outcome(&sigv4), "credential_repeated");
    assert_eq!(with(|call| call.date = "20150829".to_owned()).signed().outcome(&sigv4), "scope_date");
}

#[test]
fn a_link_lives_as_long_as_it_says_and_a_week_at_most() {
    let sigv4 = sigv4(&config());
    for (expires, now, expected) in [
        ("60", NOW, "ok"),
        ("60", NOW + 59, "ok"),
        ("60", NOW + 60, "credential_expired"),
        ("60", NOW - 300, "ok"),
        ("60", NOW - 301, "not_yet_valid"),
        ("1", NOW, "ok"),
        ("1", NOW + 1, "credential_expired"),
        ("604800", NOW + 604_799, "ok"),
        ("604800", NOW + 604_800, "credential_expired"),
        ("604801", NOW, "expires"),
        ("691200", NOW, "expires"),
        ("0", NOW, "expires"),
        ("-1", NOW, "expires"),
        ("+60", NOW, "expires"),
        ("60.5", NOW, "expires"),
        ("", NOW, "expires"),
        ("99999999999999999999", NOW, "expires"),
    ] {
        assert_eq!(outcome(&call().presigned(expires).ask_at(&sigv4, now)), expected, "{expires} at {now}");
    }
    let changed = |from: &str, to: &str| {
        let mut call = call().presigned("60");
        call.query = call.query.map(|query| query.replacen(from, to, 1));
        call.outcome(&sigv4)
    };
    for (from, to, expected) in [
        ("X-Amz-Expires=60", "X-Amz-Expires=61", "signature"),
        ("a=1", "a=2", "signature"),
        ("&X-Amz-Expires=60", "", "malformed"),
        ("&X-Amz-Algorithm=AWS4-HMAC-SHA256", "", "malformed"),
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1", "malformed"),
        ("&X-Amz-Expires=60", "&X-Amz-Expires=60&X-Amz-Expires=60", "credential_repeated"),
        ("&X-Amz-Signature=", "&X-Amz-Signature=00&X-Amz-Signature=", "credential_repeated"),
        ("&X-Amz-Signature=", "&more=1&X-Amz-Signature=", "signature"),
    ] {
        assert_eq!(changed(from, to), expected, "{from} to {to}");
    }
}

#[test]
fn a_session_token_comes_with_the_key_it_was_given_with_and_no_other() {
    let sigv4 = sigv4(&config());
    let token = |id: &'static str, token: Option<&str>| {
        with(|call| {
            call.id = id;
            if let Some(token) = token {
                line(call, "x-amz-security-token", token);
                call.names.push_str(";x-amz-security-token");
            }
        })
        .signed()
        .outcome(&sigv4)
    };
    assert_eq!(token("ASIA", Some("TOKEN==")), "ok");
    assert_eq!(token("ASIA", Some("TOKEN=")), "session_token");
    assert_eq!(token("ASIA", None), "session_token");
    assert_eq!(token("AKID", Some("TOKEN==")), "session_token");
    let link = |id: &'static str, parameter: &str| {
        with(|call| {
            call.id = id;
            call.query = Some(parameter.to_owned());
        })
        .presigned("60")
    };
    assert_eq!(link("ASIA", "X-Amz-Security-Token=TOKEN%3D%3D").outcome(&sigv4), "ok");
    assert_eq!(link("ASIA", "a=1").outcome(&sigv4), "session_token");
    assert_eq!(link("AKID", "X-Amz-Security-Token=TOKEN%3D%3D").outcome(&sigv4), "session_token");
    let unsigned = tampered(|call| line(call, "x-amz-security-token", "TOKEN=="));
    assert_eq!(unsigned.outcome(&sigv4), "signed_headers", "added after signing");
}

#[test]
fn what_stands_for_the_body_is_a_hash_of_it_or_allowed() {
    let declared = |payload: &str, config: &config::Sigv4| {
        let call = with(|call| {
            line(call, "x-amz-content-sha256", payload);
            call.names = "content-type;host;x-amz-content-sha256;x-amz-date".to_owned();
            call.payload = payload.to_owned();
            call.body = None;
        });
        let result = call.signed().ask(&sigv4(config));
        (outcome(&result), result.ok().flatten().map_or(0, |proof| proof.body.len()))
    };
    let open = config::Sigv4 { unsigned_payload: true, ..config() };
    assert_eq!(declared(EMPTY, &config()), ("ok", 1));
    assert_eq!(declared(EMPTY, &open), ("ok", 1));
    assert_eq!(declared("UNSIGNED-PAYLOAD", &config()), ("unsigned_payload", 0));
    assert_eq!(declared("UNSIGNED-PAYLOAD", &open), ("ok", 0));
    for payload in ["STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"] {
        assert_eq!(declared(payload, &open), ("streaming_payload", 0));
    }
    for payload in ["", "unsigned-payload", &EMPTY[1..], &EMPTY.to_uppercase()] {
        assert_eq!(declared(payload, &open), ("payload_hash", 0), "{payload}");
    }
    // Links to S3 leave the body open without saying so.
    let s3 = |unsigned_payload| config::Sigv4 { service: "s3".into(), unsigned_payload, ..config() };
    let link = with(|call| {
        call.service = "s3";
        call.payload = "UNSIGNED-PAYLOAD".to_owned();
        call.body = None;
    });
    assert_eq!(link.clone().presigned("60").outcome(&sigv4(&s3(true))), "ok");
    assert_eq!(link.presigned("60").outcome(&sigv4(&s3(false))), "unsigned_payload");
}

#[test]
fn the_body_is_asked_for_where_its_hash_is_not_there() {
    let sigv4 = sigv4(&config());
    let asks = |call: &Call| {
        let headers = call.headers();
        let client = Client { address: IpAddr::V4(Ipv4Addr::LOCALHOST), through_trusted_proxy: false };
        let request = Request { query: call.query.as_deref(), ..Request::new(&call.method, &call.host, &call.path, &headers, &client) };
        sigv4.asks_for_body(&request)
    };
    assert!(asks(&call().signed()));
    assert!(asks(&call().presigned("60")));
    assert!(!asks(&call()), "no credential of ours");
    assert!(!asks(&tampered(|call| line(call, "x-amz-content-sha256", EMPTY))));
}

#[test]
fn a_signature_counts_once_where_it_changes_something_and_replays_are_refused() {
    let once = config::Sigv4 { replay: Replay::Refuse, ..config() };
    let live = LiveState::default();
    let sigv4 = Sigv4::new("iam".into(), &once, &live);
    let post = call().signed();
    assert_eq!((post.outcome(&sigv4), post.outcome(&sigv4)), ("ok", "replayed"));
    let reloaded = Sigv4::new("iam".into(), &once, &live);
    assert_eq!(post.outcome(&reloaded), "replayed", "a reload forgets nothing");
    let get = with(|call| call.method = HttpMethod::GET).signed();
    assert_eq!((get.outcome(&sigv4), get.outcome(&sigv4)), ("ok", "ok"));
    let link = call().presigned("604800");
    assert_eq!(link.outcome(&sigv4), "ok");
    assert_eq!(outcome(&link.ask_at(&sigv4, NOW + 604_799)), "replayed", "as long as it lives");
    let forged = tampered(|call| call.path.push('x'));
    assert_eq!((forged.outcome(&sigv4), forged.outcome(&sigv4)), ("signature", "signature"), "what was refused is not noted");
}

#[test]
fn the_key_of_the_day_is_the_right_one_around_midnight_and_in_two_regions() {
    let at = |time: &str, region: &'static str| {
        with(|call| {
            line(call, "x-amz-date", time);
            call.time = time.to_owned();
            call.date = time[..8].to_owned();
            call.region = region;
        })
        .signed()
    };
    let here = sigv4(&config());
    let there = sigv4(&config::Sigv4 { region: "eu-west-1".into(), ..config() });
    let midnight = 1_440_979_200;
    for (time, now) in [
        ("20150830T235930Z", midnight - 30),
        ("20150831T000030Z", midnight + 30),
        ("20150830T235959Z", midnight + 40),
        ("20150831T000040Z", midnight - 10),
        ("20150830T235959Z", midnight),
    ] {
        assert_eq!(outcome(&at(time, "us-east-1").ask_at(&here, now)), "ok", "{time}");
        assert_eq!(outcome(&at(time, "eu-west-1").ask_at(&there, now)), "ok", "{time}");
        assert_eq!(outcome(&at(time, "eu-west-1").ask_at(&here, now)), "scope", "{time}");
    }
}

proptest! {
    #[test]
    fn one_changed_byte_anywhere_fails(place in 0..7usize, at in any::<prop::sample::Index>(), to in 0x21..0x7fu8, in_url in any::<bool>()) {
        let good = if in_url { call().presigned("60") } else { call().signed() };
        let mut bad = good.clone();
        let mut changed = true;
        let mut change = |text: &mut String| {
            let mut bytes = text.clone().into_bytes();
            let at = at.index(bytes.len());
            changed = bytes[at] != to;
            bytes[at] = to;
            *text = String::from_utf8(bytes).unwrap();
        };
        match place {
            0 => change(&mut bad.path),
            1 => change(bad.query.as_mut().unwrap()),
            2 => change(&mut bad.host),
            3 => {
                let mut method = bad.method.to_string();
                change(&mut method);
                prop_assume!(HttpMethod::from_bytes(method.as_bytes()).is_ok());
                bad.method = HttpMethod::from_bytes(method.as_bytes()).unwrap();
            }
            _ => {
                let signed: Vec<_> = (0..bad.lines.len()).filter(|line| bad.lines[*line].0 != "x-unsigned").collect();
                let line = signed[place % signed.len()];
                change(&mut bad.lines[line].1);
            }
        }
        let sigv4 = sigv4(&config());
        prop_assert_eq!(good.outcome(&sigv4), "ok");
        if changed {
            prop_assert!(bad.outcome(&sigv4) != "ok", "{:?} {:?} {:?}", bad.path, bad.query, bad.lines);
        }
    }
}
