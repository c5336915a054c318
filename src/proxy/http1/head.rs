//! A request's head as HTTP/1 writes it, where it is one that we serve: every other is left as it came, for the framework, and what is none is refused.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::EXPECT;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use super::super::direct::answer::end_of_head;
use super::super::direct::{Ask, asks};
use super::super::framing::{Body, Chunk};
use crate::request::Rejection;

/// Fields of a head at the most, as Pingora has it.
const FIELDS: usize = 256;

/// What a buffer holds.
#[derive(Debug)]
pub enum Parsed {
    /// A head, which was taken from the buffer.
    Head(Head),
    /// The beginning of one.
    Part,
    /// Another head, which was left in the buffer.
    Other,
    /// None, which was left in the buffer.
    Refused(Rejection),
}

/// A head but for its fields.
#[derive(Debug)]
pub struct Head {
    /// Its bytes, the empty line included.
    pub raw: Bytes,
    /// HTTP/1.1 or HTTP/1.0.
    pub version: Version,
    /// The method.
    pub method: Method,
    /// Where in the bytes the target stands.
    pub target: Range<usize>,
    /// Where its body ends.
    pub body: Body,
    /// Whether the caller wants to end the connection with this request.
    pub closes: bool,
}

/// Takes a head, and puts its fields into the empty table.
pub fn take(buffer: &mut BytesMut, headers: &mut HeaderMap) -> Parsed {
    // Empty lines before it are not its end (RFC 9112 section 2.2).
    let start = buffer.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(buffer.len());
    let Some(end) = end_of_head(buffer.get(start..).unwrap_or_default()) else { return Parsed::Part };
    let raw = buffer.split_to(start + end).freeze();
    let left = match read(&raw, headers) {
        Ok(Some(head)) => return Parsed::Head(Head { raw, ..head }),
        Ok(None) => Parsed::Other,
        Err(rejection) => Parsed::Refused(rejection),
    };
    headers.clear();
    put_back(raw, buffer);
    left
}

/// The method and where the target stands, of a head of which a part came: `-` and nowhere as long as they have not.
pub(super) fn begun(raw: &Bytes) -> (Method, Range<usize>) {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut request = httparse::Request::new(&mut []);
    // Whatever it says of the rest: these two come first.
    let _ = request.parse_with_uninit_headers(raw, &mut fields);
    let method = request.method.unwrap_or("-").parse().unwrap_or_default();
    (method, request.path.and_then(|target| place(raw, without_fragment(target))).unwrap_or_default())
}

/// Puts a head back before what follows it.
pub(super) fn put_back(raw: Bytes, buffer: &mut BytesMut) {
    let rest = std::mem::replace(buffer, BytesMut::from(raw));
    buffer.unsplit(rest);
}

/// A head without its bytes, or nothing where the framework has to say what becomes of it.
///
/// # Errors
/// It is no HTTP/1, or has more fields than anybody takes.
fn read(raw: &Bytes, headers: &mut HeaderMap) -> Result<Option<Head>, Rejection> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(raw, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length == raw.len() => Ok(ours(&request, raw, headers)),
        Ok(httparse::Status::Complete(_)) => Ok(None),
        Err(httparse::Error::TooManyHeaders) => Err(Rejection::HeadersTooLarge),
        Ok(httparse::Status::Partial) | Err(_) => Err(Rejection::BadRequest("head")),
    }
}

/// A head that we serve, without its bytes: not another form of the target, nor a body that could end in two places.
fn ours(request: &httparse::Request<'_, '_>, raw: &Bytes, headers: &mut HeaderMap) -> Option<Head> {
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else { return None };
    let target = without_fragment(target);
    let version = if version == 1 { Version::HTTP_11 } else { Version::HTTP_10 };
    if !target.starts_with('/') || method == "CONNECT" {
        return None;
    }
    // HTTP/1.0 ends the connection unless it is asked not to (RFC 9112 section 9.3).
    let (mut body, mut framings) = (Body::Length(0), 0);
    let (mut closes, mut options) = (version == Version::HTTP_10, 0);
    for field in request.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        let value = HeaderValue::from_maybe_shared(raw.slice_ref(field.value)).ok()?;
        match asks(&name, &value) {
            Ask::Nothing | Ask::Continue => {}
            Ask::Body(length) => {
                framings += 1;
                body = Body::Length(length);
            }
            Ask::Chunks => {
                framings += 1;
                body = Body::Chunked(Chunk::Size);
            }
            Ask::Connection { close } => {
                options += 1;
                closes = close;
            }
            Ask::More => return None,
        }
        headers.try_append(name, value).ok()?;
    }
    let target = place(raw, target)?;
    // HTTP/1.0 knows neither chunks nor interim answers.
    let framed = framings <= 1 && (version == Version::HTTP_11 || (matches!(body, Body::Length(_)) && !headers.contains_key(EXPECT)));
    (framed && options <= 1).then(|| Some(Head { raw: Bytes::new(), version, method: method.parse().ok()?, target, body, closes }))?
}

/// As other parsers leave it: who judges reads the bytes, and refuses a fragment; who logs must not take a credential from one.
fn without_fragment(target: &str) -> &str {
    target.split('#').next().unwrap_or_default()
}

/// Where in the bytes a part of them stands.
fn place(raw: &Bytes, part: &str) -> Option<Range<usize>> {
    let start = part.as_ptr().addr().checked_sub(raw.as_ptr().addr())?;
    Some(start..start + part.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> (Parsed, HeaderMap, BytesMut) {
        let (mut buffer, mut headers) = (BytesMut::from(text), HeaderMap::new());
        (take(&mut buffer, &mut headers), headers, buffer)
    }

    #[test]
    fn a_head_is_taken_whole_and_what_follows_it_stays() {
        let text = "POST /a/../b?c HTTP/1.1\r\nHost: a.test\r\nX-Two: 1\r\nx-two: 2\r\nConnection: Close\r\nContent-Length: 4\r\n\r\n";
        for cut in 0..text.len() {
            let (parsed, headers, left) = parse(&text[..cut]);
            assert!(matches!(parsed, Parsed::Part) && headers.is_empty() && left.len() == cut, "{cut}");
        }
        let (Parsed::Head(head), headers, left) = parse(&format!("{text}bodyGET /")) else { panic!() };
        assert_eq!((&head.raw[..], &left[..]), (text.as_bytes(), &b"bodyGET /"[..]));
        assert_eq!(
            (head.method, &head.raw[head.target.clone()], head.body, head.closes),
            (Method::POST, &b"/a/../b?c"[..], Body::Length(4), true)
        );
        assert_eq!(headers.get_all("x-two").iter().count(), 2);
        assert_eq!(headers.len(), 5);
    }

    #[test]
    fn a_caller_over_http_1_0_stays_only_where_it_says_so() {
        for (line, closes) in [("", true), ("Connection: keep-alive\r\n", false), ("Connection: close\r\n", true)] {
            let (Parsed::Head(head), ..) = parse(&format!("GET / HTTP/1.0\r\nHost: a\r\n{line}\r\n")) else { panic!() };
            assert_eq!((head.version, head.closes), (Version::HTTP_10, closes), "{line}");
        }
    }

    #[test]
    fn what_is_not_ours_is_left_as_it_came() {
        for text in [
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: close\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, x-user\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nbody",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 4\r\n\r\n",
        ] {
            let (parsed, headers, left) = parse(text);
            assert!(matches!(parsed, Parsed::Other) && headers.is_empty(), "{text}");
            assert_eq!(&left[..], text.as_bytes());
        }
    }

    #[test]
    fn what_is_no_head_is_refused() {
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(FIELDS + 1));
        for (text, rejection) in [
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Rejection::BadRequest("head")),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Rejection::BadRequest("head")),
            ("GET /\r\n\r\n", Rejection::BadRequest("head")),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Rejection::BadRequest("head")),
            ("GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", Rejection::BadRequest("head")),
            ("GET / HTTP/1.1\r\nHost: a\r\nA: \0\r\n\r\n", Rejection::BadRequest("head")),
            ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", Rejection::BadRequest("head")),
            ("\u{16}\u{3}\u{1}\n\n", Rejection::BadRequest("head")),
            (&*many, Rejection::HeadersTooLarge),
        ] {
            let (parsed, headers, left) = parse(text);
            let Parsed::Refused(found) = parsed else { panic!("{text}: {parsed:?}") };
            assert!(found == rejection && headers.is_empty(), "{text}: {found:?}");
            assert_eq!(&left[..], text.as_bytes());
        }
    }

    #[test]
    fn empty_lines_before_a_head_are_no_head() {
        for lines in ["\r\n", "\n", "\r\n\r\n", "\n\n\r\n\n"] {
            for begun in ["", "G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: a\r\n"] {
                assert!(matches!(parse(&format!("{lines}{begun}")).0, Parsed::Part), "{lines:?} {begun:?}");
            }
            let (Parsed::Head(head), ..) = parse(&format!("{lines}GET / HTTP/1.1\r\nHost: a\r\n\r\n")) else { panic!("{lines:?}") };
            assert_eq!(&head.raw[head.target.clone()], b"/");
        }
    }

    #[test]
    fn of_a_part_of_a_head_the_line_is_told() {
        for (text, method, target) in [
            ("", "-", ""),
            ("GE", "-", ""),
            ("GET", "-", ""),
            ("GET ", "GET", ""),
            ("GET /a?b", "GET", ""),
            ("GET /a?b#c HTTP/1.1\r\nHost", "GET", "/a?b"),
            ("\r\nPOST / HTTP/1.1\r\nA: b\r\n", "POST", "/"),
            ("GET / HTTP/1.1\r\nA : b\r\n", "GET", "/"),
            ("\u{16}\u{3}\u{1}", "-", ""),
        ] {
            let raw = Bytes::from(text);
            let (found, place) = begun(&raw);
            assert_eq!((found.as_str(), &raw[place]), (method, target.as_bytes()), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_of_what_came_is_lost(pieces in proptest::collection::vec(proptest::sample::select(vec![
            "GET / HTTP/1.1\r\n", "Host: a\r\n", "Content-Length: 3\r\n", "Connection: x\r\n", "\r\n", "\n", "\r", " ", "a: b", "\0"
        ]), 0..10)) {
            let text = pieces.concat();
            let (parsed, _, left) = parse(&text);
            let taken = if let Parsed::Head(head) = &parsed { head.raw.clone() } else { Bytes::new() };
            prop_assert_eq!([&taken[..], &left[..]].concat(), text.as_bytes());
        }
    }
}
