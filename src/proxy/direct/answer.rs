//! The answer of an HTTP/1 backend: its head, and where its body ends. What could end in two places is no answer (RFC 9112 section 6.3).

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode};

use super::super::answer_head::{AnswerHead, Length};

/// Fields of a head at the most, as Pingora has it.
const FIELDS: usize = 256;

/// Bytes of the size of a chunk with its extensions, and of a trailer section, at the most.
const LINE: usize = 16 * 1024;

/// An answer that cannot be passed on; why, for the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

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

/// What is still to come of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// So many bytes.
    Length(u64),
    /// Chunks (RFC 9112 section 7.1).
    Chunked(Chunk),
    /// All until the connection closes.
    UntilClose,
}

/// Where in a chunked body the reader stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// Before a size.
    Size,
    /// Within data: so many bytes to go.
    Data(u64),
    /// Before the end of line behind data.
    End,
    /// Behind the last chunk.
    Trailer,
    /// Behind everything.
    Done,
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

impl Body {
    /// Whether all of it was read.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Done))
    }

    /// The next piece of the body that the buffer holds; empty when more must be read first, or when the body is done.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Bytes, Malformed> {
        match self {
            Self::Length(left) => Ok(take(left, buffer)),
            Self::UntilClose => Ok(buffer.split().freeze()),
            Self::Chunked(chunk) => chunk.next(buffer),
        }
    }

    /// How many bytes are known to come, as a hint for how much to read at once.
    pub fn expected(&self) -> u64 {
        match self {
            Self::Length(left) | Self::Chunked(Chunk::Data(left)) => *left,
            _ => 0,
        }
    }
}

impl Chunk {
    fn next(&mut self, buffer: &mut BytesMut) -> Result<Bytes, Malformed> {
        loop {
            match self {
                Self::Size => {
                    let Some(line) = line(buffer)? else { return Ok(Bytes::new()) };
                    // The parser takes a line without a digit for the size 0, which would end the body here.
                    let size = httparse::parse_chunk_size(&line).ok().filter(|_| line.first().is_some_and(u8::is_ascii_hexdigit));
                    let Some(httparse::Status::Complete((_, size))) = size else { return Err(Malformed("chunk_size")) };
                    *self = if size == 0 { Self::Trailer } else { Self::Data(size) };
                }
                Self::Data(left) => {
                    let piece = take(left, buffer);
                    if *left == 0 {
                        *self = Self::End;
                    }
                    return Ok(piece);
                }
                Self::End => match &buffer[..] {
                    [b'\r', b'\n', ..] => {
                        buffer.advance(2);
                        *self = Self::Size;
                    }
                    [] | [b'\r'] => return Ok(Bytes::new()),
                    _ => return Err(Malformed("chunk_end")),
                },
                Self::Trailer => match line(buffer)? {
                    None => return Ok(Bytes::new()),
                    // Fields behind the body are not passed on (RFC 9110 section 6.5.1 lets us).
                    Some(field) => {
                        if field.len() == 2 {
                            *self = Self::Done;
                        }
                    }
                },
                Self::Done => return Ok(Bytes::new()),
            }
        }
    }
}

/// Up to so many bytes.
fn take(left: &mut u64, buffer: &mut BytesMut) -> Bytes {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    *left -= length as u64;
    buffer.split_to(length).freeze()
}

/// A line with its end, once it is there. Only both characters end it: a lone one of them is read in two ways (RFC 9112 section 2.2).
fn line(buffer: &mut BytesMut) -> Result<Option<BytesMut>, Malformed> {
    match memchr::memchr(b'\n', buffer) {
        Some(at) if at > 0 && at < LINE && buffer.get(at - 1) == Some(&b'\r') => Ok(Some(buffer.split_to(at + 1))),
        Some(_) => Err(Malformed("line")),
        None if buffer.len() > LINE => Err(Malformed("line")),
        None => Ok(None),
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

    #[test]
    fn a_body_ends_where_it_says_however_it_is_cut() {
        let chunked = "5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: x\r\n\r\n";
        for (whole, text, expected) in [
            (Body::Length(11), "hello worldHTTP", ("hello world", "HTTP", true)),
            (Body::Length(12), "hello world", ("hello world", "", false)),
            (Body::UntilClose, "hello world", ("hello world", "", false)),
            (Body::Chunked(Chunk::Size), &format!("{chunked}HTTP")[..], ("hello world", "HTTP", true)),
            (Body::Chunked(Chunk::Size), "5\r\nhello\r\n6\r\n world\r\n0\r\n", ("hello world", "", false)),
        ] {
            for step in [1, 2, 3, 7, text.len()] {
                let mut body = whole.clone();
                let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
                for piece in text.as_bytes().chunks(step) {
                    buffer.extend_from_slice(piece);
                    loop {
                        let piece = body.next(&mut buffer).unwrap();
                        if piece.is_empty() {
                            break;
                        }
                        read.extend_from_slice(&piece);
                    }
                }
                assert_eq!(
                    (&read[..], &buffer[..], body.is_done()),
                    (expected.0.as_bytes(), expected.1.as_bytes(), expected.2),
                    "{text} {step}"
                );
            }
        }
    }

    #[test]
    fn chunks_that_two_readers_could_cut_differently_are_refused() {
        for text in
            ["x\r\n", "-1\r\n", "5\nhello", "5\r\nhelloX\r\n", "5\r\nhello\n", "11111111111111111\r\n", "\r\n", " \r\n", "0\r\nA: b\n\r\n"]
        {
            let (mut body, mut buffer) = (Body::Chunked(Chunk::Size), BytesMut::from(text));
            let refused = (0..4).any(|_| body.next(&mut buffer).is_err());
            assert!(refused, "{text:?}: {body:?}");
        }
        let mut endless = BytesMut::from(&b"1".repeat(LINE + 1)[..]);
        assert_eq!(Body::Chunked(Chunk::Size).next(&mut endless), Err(Malformed("line")));
    }
}
