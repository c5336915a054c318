//! Where the body of a message over HTTP/1 ends: after its length, behind its last chunk, or with the connection. Both sides are read by this.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes of the size of a chunk with its extensions, and of a trailer section, at the most.
const LINE: usize = 16 * 1024;

/// What ends a body in chunks that has nothing behind it.
const END: &[u8] = b"\r\n0\r\n\r\n";

/// A message that cannot be passed on; why, for the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

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
                    // To a reader that counts with a sign this is less than nothing.
                    if i64::try_from(size).is_err() {
                        return Err(Malformed("chunk_size"));
                    }
                    *self = if size == 0 { Self::Trailer } else { Self::Data(size) };
                }
                Self::Data(left) => {
                    let piece = take(left, buffer);
                    if *left == 0 {
                        // Nearly always the end is there with the last of the data, and can go with it.
                        let ended = buffer.starts_with(END);
                        *self = if ended { Self::Done } else { Self::End };
                        buffer.advance(if ended { END.len() } else { 0 });
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
        for text in [
            "x\r\n",
            "-1\r\n",
            "5\nhello",
            "5\r\nhelloX\r\n",
            "5\r\nhello\n",
            "11111111111111111\r\n",
            "ffffffffffffffff\r\n",
            "8000000000000000\r\n",
            "\r\n",
            " \r\n",
            "0\r\nA: b\n\r\n",
        ] {
            let (mut body, mut buffer) = (Body::Chunked(Chunk::Size), BytesMut::from(text));
            let refused = (0..4).any(|_| body.next(&mut buffer).is_err());
            assert!(refused, "{text:?}: {body:?}");
        }
        let mut endless = BytesMut::from(&b"1".repeat(LINE + 1)[..]);
        assert_eq!(Body::Chunked(Chunk::Size).next(&mut endless), Err(Malformed("line")));
    }
}
