//! Whether a message has one beginning and one end, because a request that two servers cut in two places smuggles a third.

use http::{HeaderMap, Method, Version, header};

use super::Rejection;

/// Refuses a message whose framing, or whose meaning between two hops, is open to two readings.
///
/// `raw_head` is the head of an HTTP/1 message up to and including the empty line, as received; HTTP/2 has none. Where it is absent only
/// what survives parsing is checked.
pub fn check(version: Version, method: &Method, headers: &HeaderMap, raw_head: Option<&[u8]>) -> Result<(), Rejection> {
    // TRACE echoes credentials to scripts; CONNECT and what follows it would pass every check unseen.
    if *method == Method::TRACE || *method == Method::CONNECT {
        return Err(Rejection::BadRequest("method"));
    }
    let fields = Fields::read(headers)?;
    match version {
        Version::HTTP_11 if fields.hosts != 1 => return Err(Rejection::BadRequest("host_missing")),
        Version::HTTP_10 if fields.chunked => return Err(Rejection::AmbiguousFraming("transfer_encoding_1_0")),
        Version::HTTP_10 | Version::HTTP_11 => {}
        // RFC 9113, 8.2.2: these have no meaning in HTTP/2, and a meaning again once the request is HTTP/1 upstream.
        Version::HTTP_2 if fields.chunked || fields.upgrade || fields.connection => {
            return Err(Rejection::AmbiguousFraming("connection_header"));
        }
        Version::HTTP_2 if fields.te_beyond_trailers => return Err(Rejection::AmbiguousFraming("te")),
        Version::HTTP_2 => {}
        _ => return Err(Rejection::BadRequest("version")),
    }
    // Pingora drops the length from the parsed headers when both are there; the raw head still has it.
    if fields.chunked && (fields.content_length.is_some() || raw_head.is_some_and(names_content_length)) {
        return Err(Rejection::AmbiguousFraming("content_length_and_transfer_encoding"));
    }
    // Bytes after the head would be the body for one server and the new protocol for another (CVE-2026-2833).
    if fields.upgrade && (fields.chunked || fields.content_length.is_some_and(|length| length > 0)) {
        return Err(Rejection::AmbiguousFraming("upgrade_with_body"));
    }
    raw_head.map_or(Ok(()), check_lines)
}

/// What the headers say of framing.
#[derive(Default)]
struct Fields {
    hosts: usize,
    content_length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    connection: bool,
    te_beyond_trailers: bool,
}

impl Fields {
    /// One pass over the headers, however many there are.
    fn read(headers: &HeaderMap) -> Result<Self, Rejection> {
        let mut fields = Self::default();
        for (name, value) in headers {
            let value = value.as_bytes();
            match *name {
                header::HOST => {
                    fields.hosts += 1;
                    if fields.hosts > 1 {
                        return Err(Rejection::BadRequest("host_doubled"));
                    }
                }
                header::CONTENT_LENGTH => {
                    let length = parse_content_length(value).ok_or(Rejection::AmbiguousFraming("content_length"))?;
                    if fields.content_length.replace(length).is_some() {
                        return Err(Rejection::AmbiguousFraming("content_length_doubled"));
                    }
                }
                header::TRANSFER_ENCODING => {
                    if fields.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Rejection::AmbiguousFraming("transfer_encoding"));
                    }
                    fields.chunked = true;
                }
                header::UPGRADE => fields.upgrade = true,
                header::CONNECTION => fields.connection = true,
                header::TE => fields.te_beyond_trailers |= !value.eq_ignore_ascii_case(b"trailers"),
                header::EXPECT if !value.eq_ignore_ascii_case(b"100-continue") => return Err(Rejection::BadRequest("expect")),
                _ => fields.connection |= matches!(name.as_str(), "keep-alive" | "proxy-connection"),
            }
        }
        Ok(fields)
    }
}

/// Digits only: a sign, a list, a space or an empty value is read differently by different servers.
fn parse_content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn names_content_length(head: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length";
    let mut lines = head.split(|byte| *byte == b'\n');
    lines.any(|line| line.get(..NAME.len()).is_some_and(|start| start.eq_ignore_ascii_case(NAME)))
}

/// Every line ends in CR LF and begins with its name: a bare LF is a line ending to some (so `A: x\nX-User-Id: y` is two headers), and a
/// line that begins with a space continues the one before for some (RFC 9112, 2.2 and 5.2).
fn check_lines(head: &[u8]) -> Result<(), Rejection> {
    let mut ends = 0;
    for at in memchr::memchr_iter(b'\n', head) {
        match head.get(at.saturating_sub(1)..).unwrap_or_default() {
            [b'\r', b'\n', b' ' | b'\t', ..] => return Err(Rejection::AmbiguousFraming("folded_line")),
            [b'\r', b'\n', ..] => ends += 1,
            _ => return Err(Rejection::AmbiguousFraming("bare_lf")),
        }
    }
    // Counting is many times as fast as finding each.
    if memchr::memchr_iter(b'\r', head).count() == ends { Ok(()) } else { Err(Rejection::AmbiguousFraming("bare_cr")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn code(version: Version, method: &Method, lines: &[(&str, &str)]) -> Option<&'static str> {
        check(version, method, &headers(lines), None).err().and_then(|rejection| rejection.reason())
    }

    #[test]
    fn a_request_with_one_host_and_one_length_passes() {
        for lines in [
            &[("host", "a")][..],
            &[("host", "a"), ("content-length", "37")],
            &[("host", "a"), ("transfer-encoding", "Chunked")],
            &[("host", "a"), ("connection", "keep-alive"), ("te", "trailers")],
            &[("host", "a"), ("upgrade", "websocket"), ("connection", "upgrade")],
            &[("host", "a"), ("upgrade", "websocket"), ("connection", "upgrade"), ("content-length", "0")],
            &[("host", "a"), ("expect", "100-Continue")],
        ] {
            assert_eq!(code(Version::HTTP_11, &Method::POST, lines), None, "{lines:?}");
        }
        assert_eq!(code(Version::HTTP_10, &Method::GET, &[]), None);
        assert_eq!(code(Version::HTTP_2, &Method::GET, &[("te", "trailers"), ("content-length", "3")]), None);
    }

    #[test]
    fn a_request_that_can_be_cut_in_two_places_is_refused() {
        for (version, lines, reason) in [
            (Version::HTTP_11, &[][..], "host_missing"),
            (Version::HTTP_11, &[("host", "a"), ("host", "a")], "host_doubled"),
            (Version::HTTP_10, &[("host", "a"), ("host", "b")], "host_doubled"),
            (
                Version::HTTP_11,
                &[("host", "a"), ("content-length", "5"), ("transfer-encoding", "chunked")],
                "content_length_and_transfer_encoding",
            ),
            (Version::HTTP_11, &[("host", "a"), ("content-length", "5"), ("content-length", "5")], "content_length_doubled"),
            (Version::HTTP_11, &[("host", "a"), ("content-length", "5, 5")], "content_length"),
            (Version::HTTP_11, &[("host", "a"), ("content-length", "+5")], "content_length"),
            (Version::HTTP_11, &[("host", "a"), ("content-length", "-1")], "content_length"),
            (Version::HTTP_11, &[("host", "a"), ("content-length", "0x5")], "content_length"),
            (Version::HTTP_11, &[("host", "a"), ("content-length", "")], "content_length"),
            (Version::HTTP_11, &[("host", "a"), ("content-length", "5 ")], "content_length"),
            (Version::HTTP_11, &[("host", "a"), ("content-length", "18446744073709551616")], "content_length"),
            (Version::HTTP_11, &[("host", "a"), ("transfer-encoding", "gzip, chunked")], "transfer_encoding"),
            (Version::HTTP_11, &[("host", "a"), ("transfer-encoding", "identity")], "transfer_encoding"),
            (Version::HTTP_11, &[("host", "a"), ("transfer-encoding", "xchunked")], "transfer_encoding"),
            (Version::HTTP_11, &[("host", "a"), ("transfer-encoding", "")], "transfer_encoding"),
            (Version::HTTP_11, &[("host", "a"), ("transfer-encoding", "chunked, chunked")], "transfer_encoding"),
            (Version::HTTP_11, &[("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], "transfer_encoding"),
            (Version::HTTP_10, &[("host", "a"), ("transfer-encoding", "chunked")], "transfer_encoding_1_0"),
            (Version::HTTP_11, &[("host", "a"), ("upgrade", "websocket"), ("content-length", "5")], "upgrade_with_body"),
            (Version::HTTP_11, &[("host", "a"), ("upgrade", "h2c"), ("transfer-encoding", "chunked")], "upgrade_with_body"),
            (Version::HTTP_11, &[("host", "a"), ("expect", "200-ok")], "expect"),
            (Version::HTTP_2, &[("transfer-encoding", "chunked")], "connection_header"),
            (Version::HTTP_2, &[("connection", "close")], "connection_header"),
            (Version::HTTP_2, &[("keep-alive", "1")], "connection_header"),
            (Version::HTTP_2, &[("upgrade", "websocket")], "connection_header"),
            (Version::HTTP_2, &[("te", "gzip")], "te"),
            (Version::HTTP_2, &[("content-length", "1"), ("content-length", "1")], "content_length_doubled"),
            (Version::HTTP_09, &[], "version"),
            (Version::HTTP_3, &[], "version"),
        ] {
            assert_eq!(code(version, &Method::POST, lines), Some(reason), "{lines:?}");
        }
    }

    #[test]
    fn a_length_that_the_parser_dropped_is_found_in_the_raw_head() {
        let parsed = headers(&[("host", "a"), ("transfer-encoding", "chunked")]);
        let raw = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{lines}\r\n").into_bytes();
        for (lines, refused) in
            [("", false), ("X-Content-Length: 5\r\n", false), ("Content-Length: 5\r\n", true), ("CONTENT-LENGTH: 5\r\n", true)]
        {
            let verdict = check(Version::HTTP_11, &Method::POST, &parsed, Some(&raw(lines)));
            assert_eq!(verdict.is_err(), refused, "{lines:?}");
        }
    }

    #[test]
    fn methods_that_echo_or_tunnel_are_refused() {
        for method in [Method::TRACE, Method::CONNECT] {
            assert_eq!(code(Version::HTTP_11, &method, &[("host", "a")]), Some("method"));
            assert_eq!(code(Version::HTTP_2, &method, &[]), Some("method"));
        }
    }

    #[test]
    fn lines_end_in_cr_lf_and_are_never_folded() {
        let host = headers(&[("host", "a")]);
        for (head, reason) in [
            (&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], None),
            (b"", None),
            (b"GET / HTTP/1.1\nHost: a\r\n\r\n", Some("bare_lf")),
            (b"GET / HTTP/1.1\r\nHost: a\nX-User-Id: y\r\n\r\n", Some("bare_lf")),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\n", Some("bare_lf")),
            (b"GET / HTTP/1.1\r\nHost: a\rX-User-Id: y\r\n\r\n", Some("bare_cr")),
            (b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", Some("bare_cr")),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r", Some("bare_cr")),
            (b"GET / HTTP/1.1\r\nHost: a\r\n X-User-Id: y\r\n\r\n", Some("folded_line")),
            (b"GET / HTTP/1.1\r\n\tHost: a\r\n\r\n", Some("folded_line")),
        ] {
            let found = check(Version::HTTP_11, &Method::GET, &host, Some(head)).err().and_then(|rejection| rejection.reason());
            assert_eq!(found, reason, "{:?}", String::from_utf8_lossy(head));
        }
    }

    proptest! {
        #[test]
        fn a_head_passes_only_when_splitting_at_cr_lf_and_at_every_line_break_agree(pieces in proptest::collection::vec(
            proptest::sample::select(vec!["a", "b: c", "\r\n", "\r\n", "\r", "\n", " ", "\t"]), 0..12)
        ) {
            let head = pieces.concat();
            let strict: Vec<&str> = head.split("\r\n").collect();
            let sound = strict.iter().all(|line| !line.contains(['\r', '\n'])) && strict.iter().skip(1).all(|line| !line.starts_with([' ', '\t']));
            prop_assert_eq!(check_lines(head.as_bytes()).is_ok(), sound);
        }
    }
}
