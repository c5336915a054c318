//! The bytes of a connection: a request is cut off where every strict reader cuts it, and a backend's answer ends at one place however it comes.

use bytes::{Bytes, BytesMut};
use edgeward::proxy::parsers::{Body, Chunk, Parsed, read_answer, take_request};
use edgeward::request::framing;
use http::{HeaderMap, Method, Version};

/// `data` is what a caller sends, and what a backend sends.
pub fn run(data: &[u8]) {
    check_request(data);
    for method in [Method::GET, Method::HEAD] {
        let whole = answer(data, data.len().max(1), &method);
        for step in [1, 3, 64] {
            assert_eq!(answer(data, step, &method), whole, "in pieces of {step}");
        }
    }
}

fn check_request(data: &[u8]) {
    let (mut buffer, mut headers) = (BytesMut::from(data), HeaderMap::new());
    let parsed = take_request(&mut buffer, &mut headers);
    let Parsed::Head(head) = parsed else {
        assert_eq!(buffer, data);
        return assert!(headers.is_empty());
    };
    assert_eq!([&head.raw[..], &buffer[..]].concat(), data);
    let pieces = in_pieces(data);
    assert!(pieces.is_some_and(|raw| raw == head.raw), "the same head however it comes");
    assert!(head.raw.get(head.target.clone()).is_some_and(|target| target.first() == Some(&b'/')));
    // What is judged sound is one head for whoever splits at CR LF, and says one length of its body or none.
    if framing::check(head.version, &head.method, &headers, Some(&head.raw)).is_err() {
        return;
    }
    let text = String::from_utf8_lossy(&head.raw).to_ascii_lowercase();
    let lines: Vec<_> = text.split("\r\n").skip_while(|line| line.is_empty()).collect();
    assert!(lines.len() >= 3 && lines.iter().rev().take(2).all(|line| line.is_empty()), "{lines:?}");
    let said = |name: &str| lines.iter().filter_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim())).collect::<Vec<_>>();
    assert!(["upgrade", "te", "trailer"].iter().all(|name| said(name).is_empty()), "{text}");
    match (&said("content-length")[..], &said("transfer-encoding")[..], &head.body) {
        ([], [], Body::Length(0)) => {}
        ([said], [], Body::Length(length)) => assert_eq!(said.parse(), Ok(*length)),
        ([], ["chunked"], Body::Chunked(Chunk::Size)) => assert_eq!(head.version, Version::HTTP_11),
        framing => panic!("{framing:?}"),
    }
    let whole = body(head.body.clone(), &buffer, buffer.len().max(1));
    for step in [1, 3, 64] {
        assert_eq!(body(head.body.clone(), &buffer, step), whole, "a body in pieces of {step}");
    }
    let stays = if head.version == Version::HTTP_10 { said("connection") == ["keep-alive"] } else { said("connection") != ["close"] };
    assert_eq!(head.closes, !stays);
}

fn in_pieces(data: &[u8]) -> Option<Bytes> {
    let (mut buffer, mut headers) = (BytesMut::new(), HeaderMap::new());
    for piece in data.chunks(5) {
        buffer.extend_from_slice(piece);
        if let Parsed::Head(head) = take_request(&mut buffer, &mut headers) {
            return Some(head.raw);
        }
    }
    None
}

/// What of a body was read, whether it was whole or broken, and what of the bytes is left behind a whole one.
fn body(mut body: Body, data: &[u8], step: usize) -> (Vec<u8>, bool, bool, Vec<u8>) {
    let (mut buffer, mut read, mut broken) = (BytesMut::new(), Vec::new(), false);
    for piece in data.chunks(step) {
        buffer.extend_from_slice(piece);
        while !broken && !body.is_done() {
            match body.next(&mut buffer) {
                Ok(piece) if piece.is_empty() => break,
                Ok(piece) => read.extend_from_slice(&piece),
                Err(_) => broken = true,
            }
        }
    }
    let left = if body.is_done() { buffer.to_vec() } else { Vec::new() };
    (read, body.is_done(), broken, left)
}

/// What of an answer was read: its head as it is written for a caller, its body, whether it was whole or broken.
fn answer(data: &[u8], step: usize, method: &Method) -> Option<(Vec<u8>, Vec<u8>, bool, bool)> {
    let (mut buffer, mut head) = (BytesMut::new(), None);
    let (mut body, mut broken) = (Vec::new(), false);
    for piece in data.chunks(step) {
        buffer.extend_from_slice(piece);
        if head.is_none() {
            match read_answer(&mut buffer, method) {
                Ok(Some(read)) => head = Some(read),
                Ok(None) => continue,
                Err(_) => return None,
            }
        }
        let Some(head) = &mut head else { continue };
        while !broken && !head.body.is_done() {
            match head.body.next(&mut buffer) {
                Ok(piece) if piece.is_empty() => break,
                Ok(piece) => body.extend_from_slice(&piece),
                Err(_) => broken = true,
            }
        }
    }
    let head = head?;
    let mut written = Vec::new();
    head.answer.write(&mut written, head.answer.length);
    let text = String::from_utf8_lossy(&written);
    assert!(text.ends_with("\r\n") && !text.contains("\r\n\r\n"), "{text}");
    assert!(text.split("\r\n").all(|line| !line.contains(['\r', '\n'])), "{text}");
    if let Body::Length(left) = head.body {
        assert!(left == 0 || buffer.is_empty(), "nothing of a body is left lying");
    }
    Some((written, body, head.body.is_done(), broken))
}
