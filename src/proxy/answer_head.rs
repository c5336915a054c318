//! The head of an answer to a caller: lines that are written out as they are, and a table only where the framework wants one.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::{ErrorType, OrErr, Result};
use smallvec::SmallVec;

use crate::route::fields::mark;
use crate::text::push_number;

/// What is set in an answer, whoever writes it.
pub trait AnswerFields {
    /// Sets a name to one line, whatever the upstream said of it; each name once.
    fn set(&mut self, name: &HeaderName, value: &[u8]) -> Result<()>;
}

impl AnswerFields for ResponseHeader {
    fn set(&mut self, name: &HeaderName, value: &[u8]) -> Result<()> {
        self.insert_header(name, value)
    }
}

/// What a head says of its body's end (RFC 9112 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Nothing.
    Unsaid,
    /// So many bytes; an answer to HEAD, and a 304, may say so and have none.
    Bytes(u64),
    /// It comes in chunks.
    Chunked,
}

/// A head but for what speaks of the connection.
#[derive(Debug)]
pub struct AnswerHead {
    /// The status.
    pub status: StatusCode,
    /// Where the body ends.
    pub length: Length,
    /// The bytes of the upstream's head, and where in them things stand.
    received: Bytes,
    reason: Place,
    lines: SmallVec<[Line; 16]>,
    /// The [`mark`] of each name that was received: most that are set were not, and need not be looked for.
    marks: u64,
    /// The lines that were set, each with its end.
    own: Vec<u8>,
}

#[derive(Debug)]
struct Line {
    name: Place,
    value: Place,
}

/// From and to, in bytes of which there are at most 4 GiB.
type Place = Range<u32>;

impl AnswerHead {
    /// A head of ours.
    pub fn new(status: StatusCode, length: Length) -> Self {
        Self { status, length, received: Bytes::new(), reason: 0..0, lines: SmallVec::new(), marks: 0, own: Vec::with_capacity(512) }
    }

    /// An upstream's head, without its lines.
    pub fn received(status: StatusCode, received: Bytes, reason: &str) -> Self {
        let reason = place(&received, reason.as_bytes());
        Self { received, reason, ..Self::new(status, Length::Unsaid) }
    }

    /// Takes over a line of the upstream's head, of whose bytes name and value are a part and were found sound by its parser.
    pub fn keep(&mut self, name: &[u8], value: &[u8]) {
        self.marks |= mark(name);
        self.lines.push(Line { name: place(&self.received, name), value: place(&self.received, value) });
    }

    /// Adds a line. One whose value is none is left out: what ends its line would begin another.
    pub fn add(&mut self, name: &HeaderName, value: &[u8]) {
        // To the end in any case: a loop without a way out looks at many bytes at once.
        if value.iter().fold(true, |sound, byte| sound & (*byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f))) {
            for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
                self.own.extend_from_slice(part);
            }
        }
    }

    /// Whether the upstream said something of this name.
    pub fn has(&self, name: &HeaderName) -> bool {
        self.marks & mark(name.as_str().as_bytes()) != 0 && self.lines.iter().any(|line| is(&self.received, line, name))
    }

    fn bytes(&self, place: &Place) -> &[u8] {
        part(&self.received, place)
    }

    /// Writes the status line and every line, with what is said of the body's end, but for the empty line at the end.
    pub fn write(&self, out: &mut Vec<u8>, length: Length) {
        let reason = match self.bytes(&self.reason) {
            [] => self.status.canonical_reason().unwrap_or_default().as_bytes(),
            reason => reason,
        };
        for part in [b"HTTP/1.1 ", self.status.as_str().as_bytes(), b" ", reason, b"\r\n"] {
            out.extend_from_slice(part);
        }
        for line in &self.lines {
            for part in [self.bytes(&line.name), b": ", self.bytes(&line.value), b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        out.extend_from_slice(&self.own);
        match length {
            Length::Unsaid => {}
            Length::Bytes(length) => {
                out.extend_from_slice(b"content-length: ");
                push_number(out, length);
                out.extend_from_slice(b"\r\n");
            }
            Length::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        }
    }

    /// The table that the framework writes from.
    pub fn to_header(&self) -> Result<Box<ResponseHeader>> {
        let mut header = ResponseHeader::build_no_case(self.status, Some(self.lines.len() + 12))?;
        if let Some(reason) = std::str::from_utf8(self.bytes(&self.reason)).ok().filter(|reason| !reason.is_empty()) {
            header.set_reason_phrase(Some(reason))?;
        }
        for line in &self.lines {
            append(&mut header, self.bytes(&line.name), self.bytes(&line.value))?;
        }
        for line in self.own.split(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\r")) {
            if let Some(at) = memchr::memchr(b':', line) {
                append(&mut header, line.get(..at).unwrap_or_default(), line.get(at + 2..).unwrap_or_default())?;
            }
        }
        match self.length {
            Length::Unsaid => {}
            Length::Bytes(length) => header.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length))?,
            Length::Chunked => header.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?,
        }
        Ok(Box::new(header))
    }
}

impl AnswerFields for AnswerHead {
    fn set(&mut self, name: &HeaderName, value: &[u8]) -> Result<()> {
        if self.has(name) {
            self.lines.retain(|line| !is(&self.received, line, name));
        }
        self.add(name, value);
        Ok(())
    }
}

fn append(header: &mut ResponseHeader, name: &[u8], value: &[u8]) -> Result<()> {
    let name = HeaderName::from_bytes(name).or_err(ErrorType::InvalidHTTPHeader, "a name")?;
    header.append_header(name, value).map(|_| ())
}

fn is(received: &[u8], line: &Line, name: &HeaderName) -> bool {
    line.name.len() == name.as_str().len() && part(received, &line.name).eq_ignore_ascii_case(name.as_str().as_bytes())
}

fn part<'w>(whole: &'w [u8], place: &Place) -> &'w [u8] {
    whole.get(place.start as usize..place.end as usize).unwrap_or_default()
}

/// Where in the whole a part of it stands.
fn place(whole: &[u8], part: &[u8]) -> Place {
    let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
    // What is no part of it is at no place in it.
    let at = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    at(start)..at(start.wrapping_add(part.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> AnswerHead {
        let received = Bytes::from_static(b"HTTP/1.1 200 Fine\r\nSet-Cookie: a=1\r\nX-Request-ID: theirs\r\nset-cookie: b=2\r\n\r\n");
        let mut head = AnswerHead::received(StatusCode::OK, received.clone(), std::str::from_utf8(&received[13..17]).unwrap());
        for (name, value) in [(19..29, 31..34), (36..48, 50..56), (58..68, 70..73)] {
            head.keep(&received[name], &received[value]);
        }
        head
    }

    #[test]
    fn lines_are_written_as_they_came_and_what_is_set_takes_the_place_of_what_came() {
        let (mut head, id) = (head(), HeaderName::from_static("x-request-id"));
        assert!(head.has(&id) && !head.has(&header::DATE));
        head.set(&id, b"ours").unwrap();
        assert!(!head.has(&id));
        head.length = Length::Bytes(12);
        let mut out = Vec::new();
        head.write(&mut out, head.length);
        let text = "HTTP/1.1 200 Fine\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nx-request-id: ours\r\ncontent-length: 12\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), text);

        let header = head.to_header().unwrap();
        assert_eq!((header.status, header.get_reason_phrase()), (StatusCode::OK, Some("Fine")));
        let lines: Vec<_> = header.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        assert_eq!(lines, ["set-cookie: a=1", "set-cookie: b=2", "x-request-id: ours", "content-length: 12"]);
    }

    #[test]
    fn no_value_begins_another_line() {
        for value in ["a\r\nSet-Cookie: b", "a\n", "\r", "\0", "\u{7f}"] {
            let mut head = AnswerHead::new(StatusCode::UNAUTHORIZED, Length::Chunked);
            head.add(&header::WWW_AUTHENTICATE, value.as_bytes());
            let mut out = Vec::new();
            head.write(&mut out, head.length);
            assert_eq!(out, b"HTTP/1.1 401 Unauthorized\r\ntransfer-encoding: chunked\r\n");
        }
    }
}
