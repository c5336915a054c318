//! The head of a request: it has one reading or is refused, and whoever reads what we forward reads the same.

use std::net::IpAddr;

use edgeward::request::cidr::CidrSet;
use edgeward::request::message::{Head, HeadLimits, Message};
use edgeward::request::{Rejection, client, framing, host, path};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use percent_encoding::percent_decode_str;

/// `data` is a head as it comes over the wire; `HTTP/2` in its first line stands for a request without lines.
pub fn run(data: &[u8]) {
    let raw = match data.windows(4).position(|four| four == b"\r\n\r\n") {
        Some(end) => &data[..end + 4],
        None => data,
    };
    let mut lines = raw.split(|byte| *byte == b'\n');
    let mut words = lines.next().unwrap_or_default().trim_ascii_end().split(|byte| *byte == b' ');
    let (method, target, version) = (words.next(), words.next().unwrap_or_default(), words.next());
    check_path(target);
    let Ok(method) = Method::from_bytes(method.unwrap_or_default()) else { return };
    let version = match version {
        Some(b"HTTP/2") => Version::HTTP_2,
        Some(b"HTTP/1.0") => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii())) {
            headers.append(name, value);
        }
    }
    for value in headers.get_all(header::HOST) {
        check_host(value);
    }
    check_client(&headers);
    let raw = (version != Version::HTTP_2).then_some(raw);
    if framing::check(version, &method, &headers, raw).is_ok() {
        check_framing(version, &headers, raw);
    }
    let authority = headers.get(header::HOST).and_then(|value| value.to_str().ok());
    let head = Head { version, method: &method, authority, target, headers: &headers, raw };
    match Message::read(head, HeadLimits { bytes: 64 * 1024, fields: 100 }) {
        Ok(message) => check_message(head, &message),
        Err(rejection) => assert!(matches!(rejection.status().as_u16(), 400 | 431), "{rejection:?}"),
    }
}

fn check_path(target: &[u8]) {
    let found = match path::canonical(target) {
        Ok(found) => found,
        Err(rejection) => return assert!(matches!(rejection, Rejection::AmbiguousPath(_)), "{rejection:?}"),
    };
    let path = &*found.path;
    assert!(path.starts_with('/') && !path.contains("//"), "{path}");
    assert!(path.split('/').all(|segment| segment != "." && segment != ".."), "{path}");
    assert!(path.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\;#?\"<>[]^`{|}".contains(&byte)), "{path}");
    for (at, _) in path.match_indices('%') {
        let digits = &path[at + 1..at + 3];
        assert!(digits.bytes().all(|digit| digit.is_ascii_digit() || (b'A'..=b'F').contains(&digit)), "{path}");
        let byte = u8::from_str_radix(digits, 16).unwrap();
        assert!(!byte.is_ascii_alphanumeric() && !byte.is_ascii_control() && !b"-._~/\\;".contains(&byte), "{path}");
    }
    let decoded = percent_decode_str(path).decode_utf8().unwrap();
    assert!(!decoded.contains(char::is_control), "{path}");
    assert_eq!(percent_decode_str(&decoded).decode_utf8_lossy(), decoded, "a second layer of encoding in {path}");
    let query = std::str::from_utf8(target).unwrap().split_once('?').map(|(_, query)| query);
    assert_eq!(found.query, query);
    let whole = query.map_or(path.to_owned(), |query| format!("{path}?{query}"));
    assert_eq!(path::canonical(whole.as_bytes()).as_ref(), Ok(&found), "not its own form");
}

fn check_host(value: &HeaderValue) {
    let Ok(authority) = value.to_str() else { return };
    let Ok(found) = host::canonical(authority) else { return };
    assert_eq!(host::canonical(&found).as_ref(), Ok(&found));
    assert!(!found.is_empty() && !found.ends_with('.') && found.len() <= 255, "{found}");
    let name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    match found.strip_prefix('[') {
        Some(address) => assert!(address.strip_suffix(']').is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()), "{found}"),
        None => assert!(found.bytes().all(name) && authority.to_ascii_lowercase().starts_with(&*found), "{found}"),
    }
}

fn check_client(headers: &HeaderMap) {
    const HEADER: HeaderName = HeaderName::from_static("x-forwarded-for");
    let trusted = CidrSet::new(&["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
    let (stranger, proxy, caller): (IpAddr, IpAddr, IpAddr) =
        ("203.0.113.9".parse().unwrap(), "10.0.0.5".parse().unwrap(), "198.51.100.7".parse().unwrap());
    assert_eq!(client::resolve(stranger, headers, &HEADER, &trusted).address, stranger, "believed a stranger");
    let found = client::resolve(proxy, headers, &HEADER, &trusted);
    assert_eq!(found.address, found.address.to_canonical());
    assert!(found.through_trusted_proxy);
    // What our own proxy heard is the answer, whatever the caller wrote before it.
    let mut more = headers.clone();
    more.append(HEADER, HeaderValue::from_static("198.51.100.7"));
    assert_eq!(client::resolve(proxy, &more, &HEADER, &trusted).address, caller);
    let mut more = headers.clone();
    more.append(HEADER, HeaderValue::from_static("unknown"));
    assert_eq!(client::resolve(proxy, &more, &HEADER, &trusted).address, proxy);
}

/// What was let through has one end, by rules that are simpler than those of the gateway.
fn check_framing(version: Version, headers: &HeaderMap, raw: Option<&[u8]>) {
    let lengths: Vec<_> = headers.get_all(header::CONTENT_LENGTH).iter().collect();
    let codings: Vec<_> = headers.get_all(header::TRANSFER_ENCODING).iter().collect();
    assert!(lengths.len() + codings.len() <= 1, "two framings");
    assert!(lengths.iter().all(|length| length.to_str().unwrap().bytes().all(|digit| digit.is_ascii_digit())));
    assert!(codings.iter().all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked") && version == Version::HTTP_11));
    assert!(headers.get_all(header::HOST).iter().count() <= 1);
    let Some(raw) = raw else { return };
    for (at, byte) in raw.iter().enumerate() {
        let (before, after) = (at.checked_sub(1).map(|before| raw[before]), raw.get(at + 1));
        match byte {
            b'\n' => assert!(before == Some(b'\r') && !matches!(after, Some(b' ' | b'\t'))),
            b'\r' => assert_eq!(after, Some(&b'\n')),
            _ => {}
        }
    }
}

/// An upstream that reads as we do reads what we read.
fn check_message(head: Head<'_>, message: &Message<'_>) {
    let target = message.query.map_or(message.path.to_string(), |query| format!("{}?{query}", message.path));
    let authority = message.authority();
    let mut headers = head.headers.clone();
    headers.insert(header::HOST, HeaderValue::from_str(&authority).unwrap());
    let forwarded = Head { authority: Some(&authority), target: target.as_bytes(), headers: &headers, raw: None, ..head };
    let again = Message::read(forwarded, HeadLimits { bytes: u64::MAX, fields: usize::MAX }).unwrap();
    assert_eq!((&again.path, again.query, &again.host, again.port), (&message.path, message.query, &message.host, message.port));
}
