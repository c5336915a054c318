//! The answer of an HTTP/1 backend: its head, and where its body ends. What could end in two places is no answer (RFC 9112 section 6.3).

use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::{Method, StatusCode};

use super::super::answer_head::{AnswerHead, Length};
use super::super::framing::{Body, Chunk, Malformed};

/// Fields of a head at the most, as Pingora has it.
const FIELDS: usize = 256;

/// An answer's head, without what speaks of the connection it came over.
#[derive(Debug)]
pub struct Head {
    /// What the caller is told.
    pub answer: Box<AnswerHead>,
    /// Where its body ends.
    pub body: Body,
    /// Whether the connection may serve another request once the body has been read.
    pub persistent: bool,
}

/// Takes a whole head from the buffer, once it is there.
pub fn read(buffer: &mut BytesMut, method: &Method) -> Result<Option<Head>, Malformed> {
    let Some(end) = end_of_head(buffer) else { return Ok(None) };
    let bytes = buffer.split_to(end).freeze();
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut response = httparse::Response::new(&mut []);
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, &bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length == end => {}
        _ => return Err(Malformed("head")),
    }
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed("head"))?;
    // Boxed: it is moved from hand to hand, and larger than it looks.
    let mut answer = Box::new(AnswerHead::received(status, bytes.clone(), response.reason.unwrap_or_default()));
    let (mut framing, mut persistent) = (Framing::default(), response.version == Some(1));
    for field in response.headers.iter() {
        match About::field(field.name) {
            About::Closing => {
                let mut options = field.value.split(|byte| *byte == b',');
                persistent &= !options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"));
            }
            About::Coding => framing.chunked(field.value)?,
            About::Length => framing.length(field.value)?,
            About::Connection => {}
            About::Answer => answer.keep(field.name.as_bytes(), field.value),
        }
    }
    let (length, body) = framing.settle(status, method, &mut persistent);
    answer.length = length;
    Ok(Some(Head { answer, body, persistent }))
}

/// What a field is about.
enum About {
    /// Whether the connection closes.
    Closing,
    /// How the body is coded.
    Coding,
    /// How long it is.
    Length,
    /// Something else of the connection between the backend and us (RFC 9110 section 7.6.1).
    Connection,
    /// The answer itself.
    Answer,
}

impl About {
    fn field(name: &str) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            10 if is("connection") => Self::Closing,
            17 if is("transfer-encoding") => Self::Coding,
            14 if is("content-length") => Self::Length,
            2 if is("te") => Self::Connection,
            7 if is("upgrade") => Self::Connection,
            10 if is("keep-alive") => Self::Connection,
            16 if is("proxy-connection") => Self::Connection,
            _ => Self::Answer,
        }
    }
}

/// Behind the empty line that ends a head: both ends of line that the parser takes.
pub(in super::super) fn end_of_head(buffer: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'\n', buffer).find_map(|at| match buffer.get(at + 1..) {
        Some([b'\n', ..]) => Some(at + 2),
        Some([b'\r', b'\n', ..]) => Some(at + 3),
        _ => None,
    })
}

/// What a head says of the body's end.
#[derive(Default)]
struct Framing {
    chunked: bool,
    length: Option<u64>,
}

impl Framing {
    fn chunked(&mut self, value: &[u8]) -> Result<(), Malformed> {
        // Of another coding nobody here knows the end, and twice is another (RFC 9112 section 6.1).
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Malformed("transfer_encoding"));
        }
        self.chunked = true;
        Ok(())
    }

    /// The same length twice, also in one line, is one (RFC 9110 section 8.6).
    fn length(&mut self, value: &[u8]) -> Result<(), Malformed> {
        for part in value.split(|byte| *byte == b',') {
            let digits = part.trim_ascii();
            let length = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            let length = length.and_then(|digits| digits.parse().ok()).ok_or(Malformed("content_length"))?;
            if self.length.replace(length).is_some_and(|other| other != length) {
                return Err(Malformed("content_length"));
            }
        }
        Ok(())
    }

    /// Where the body ends (RFC 9112 section 6.3), and what the caller is told of that.
    fn settle(self, status: StatusCode, method: &Method, persistent: &mut bool) -> (Length, Body) {
        // A backend that says two things of the end may say a third: nothing after this answer is believed.
        *persistent &= !(self.chunked && self.length.is_some());
        let lengthless = matches!(status.as_u16(), 100..=199 | 204);
        let bodiless = lengthless || method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
        match self {
            Self { chunked: false, length: Some(length) } => {
                let said = if lengthless { Length::Unsaid } else { Length::Bytes(length) };
                (said, Body::Length(if bodiless { 0 } else { length }))
            }
            _ if bodiless => (Length::Unsaid, Body::Length(0)),
            Self { chunked, .. } => {
                *persistent &= chunked;
                (Length::Chunked, if chunked { Body::Chunked(Chunk::Size) } else { Body::UntilClose })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &Method, text: &str) -> Result<Option<(Head, BytesMut)>, Malformed> {
        let mut buffer = BytesMut::from(text);
        read(&mut buffer, method).map(|head| head.map(|head| (head, buffer)))
    }

    #[test]
    fn a_head_says_where_its_body_ends_and_whether_the_connection_goes_on() {
        for (method, text, body, persistent) in [
            ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Body::Length(5), true),
            ("GET", "HTTP/1.1 200 OK\nContent-Length: 5\n\n", Body::Length(5), true),
            ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5, 5\r\n\r\n", Body::Length(5), true),
            ("GET", "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 5\r\n\r\n", Body::Length(5), false),
            ("GET", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", Body::Length(5), false),
            ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", Body::Chunked(Chunk::Size), true),
            ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", Body::Chunked(Chunk::Size), false),
            ("GET", "HTTP/1.1 200 OK\r\n\r\n", Body::UntilClose, false),
            ("GET", "HTTP/1.1 204 No Content\r\n\r\n", Body::Length(0), true),
            ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Body::Length(0), true),
            ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Body::Length(0), true),
            ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Body::Length(0), true),
            ("GET", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", Body::Length(0), true),
        ] {
            let (head, _) = parse(&method.parse().unwrap(), text).unwrap().unwrap();
            assert_eq!((head.body, head.persistent), (body, persistent), "{text}");
        }
    }

    #[test]
    fn what_may_end_in_two_places_is_refused() {
        for (text, why) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "content_length"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n", "content_length"),
            ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", "content_length"),
            ("HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n", "content_length"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "content_length"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "transfer_encoding"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer_encoding"),
            ("HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n", "head"),
            ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "head"),
            ("HTTP/1.1 20 OK\r\n\r\n", "head"),
            ("HTTP/2 200\r\n\r\n", "head"),
            ("SSH-2.0-OpenSSH\r\n\r\n", "head"),
            ("\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "head"),
        ] {
            assert_eq!(parse(&Method::GET, text).unwrap_err(), Malformed(why), "{text}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(FIELDS + 1));
        assert_eq!(parse(&Method::GET, &many).unwrap_err(), Malformed("head"));
    }

    #[test]
    fn a_head_is_taken_whole_and_what_speaks_of_the_connection_stays_behind() {
        let text = "HTTP/1.1 200 Fine\r\nServer: x\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
                    X-Bytes: \u{e9}\r\nContent-Length: 2\r\n\r\n";
        for cut in 0..text.len() {
            if text.is_char_boundary(cut) {
                assert!(parse(&Method::GET, &text[..cut]).unwrap().is_none(), "{cut}");
            }
        }
        let (head, rest) = parse(&Method::GET, &format!("{text}ok")).unwrap().unwrap();
        let mut out = Vec::new();
        head.answer.write(&mut out, head.answer.length);
        let kept = "HTTP/1.1 200 Fine\r\nServer: x\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Bytes: \u{e9}\r\ncontent-length: 2\r\n";
        assert_eq!((std::str::from_utf8(&out).unwrap(), &rest[..]), (kept, &b"ok"[..]));
    }
}
