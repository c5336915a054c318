//! The strictest reading of what a service was sent: whoever sends more than one strict reader finds has smuggled it.

/// The request lines of one connection, or what no sender of whole requests would have written.
///
/// The last request may lack the end of its body: the connection ended before it, and no service answers such a request.
pub fn request_lines(mut bytes: &[u8]) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    while !bytes.is_empty() {
        let end = find(bytes, b"\r\n\r\n").ok_or_else(|| format!("half a head: {:?}", String::from_utf8_lossy(bytes)))?;
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "a head that is not text".to_owned())?;
        let body = body(head).map_err(|wrong| format!("{wrong}: {head:?}"))?;
        lines.push(head.lines().next().unwrap_or_default().to_owned());
        bytes = &bytes[end + 4..];
        let length = match body {
            Body::Length(length) => length.min(bytes.len()),
            Body::Chunked => chunked(bytes)?,
        };
        bytes = &bytes[length..];
    }
    Ok(lines)
}

enum Body {
    Length(usize),
    Chunked,
}

fn body(head: &str) -> Result<Body, &'static str> {
    let mut lines = head.split("\r\n");
    let request_line: Vec<_> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = request_line[..] else { return Err("not a request line") };
    if !is_token(method) || !target.starts_with('/') || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a request line of other characters");
    }
    let (mut hosts, mut lengths, mut encodings) = (0, Vec::new(), Vec::new());
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or("not a header")?;
        if !is_token(name) || value.trim() != value || value.contains(|c: char| c.is_control()) {
            return Err("a header of other characters");
        }
        match name.to_ascii_lowercase().as_str() {
            "host" => hosts += 1,
            "content-length" => lengths.push(value),
            "transfer-encoding" => encodings.push(value),
            _ => {}
        }
    }
    match (hosts, &lengths[..], &encodings[..]) {
        (1, [], []) => Ok(Body::Length(0)),
        (1, [length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => length.parse().map(Body::Length).map_err(|_| "a length"),
        (1, [], ["chunked"]) => Ok(Body::Chunked),
        _ => Err("not one host and one framing"),
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// The length of a chunked body without extensions and trailers, or of the part of it that is there.
fn chunked(bytes: &[u8]) -> Result<usize, String> {
    let mut at = 0;
    while let Some(end) = find(&bytes[at..], b"\r\n") {
        let size = std::str::from_utf8(&bytes[at..at + end]).unwrap_or("?");
        if size.is_empty() || size.len() > 16 || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("not the size of a chunk: {size:?}"));
        }
        let size = usize::from_str_radix(size, 16).map_err(|error| error.to_string())?;
        at += end + 2;
        let Some(after) = bytes.get(at + size..) else { return Ok(bytes.len()) };
        if !after.starts_with(&b"\r\n"[..after.len().min(2)]) {
            return Err("a chunk that does not end with its size".to_owned());
        }
        at = (at + size + 2).min(bytes.len());
        if size == 0 {
            return Ok(at);
        }
    }
    Ok(bytes.len())
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_requests_are_read_and_everything_else_is_named() {
        let head = "POST /a HTTP/1.1\r\nHost: a\r\n";
        for (rest, requests) in [
            ("\r\n", Some(1)),
            ("Content-Length: 3\r\n\r\nabc", Some(1)),
            ("Content-Length: 3\r\n\r\na", Some(1)),
            ("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", Some(1)),
            ("Transfer-Encoding: chunked\r\n\r\n3\r\nab", Some(1)),
            ("Content-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: a\r\n\r\n", Some(2)),
            ("Content-Length: 3\r\n\r\nabcGET", None),
            ("Content-Length: +3\r\n\r\nabc", None),
            ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", None),
            ("Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", None),
            ("Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n", None),
            ("X: a\nY: b\r\n\r\n", None),
            ("Host: b\r\n\r\n", None),
        ] {
            let read = request_lines(format!("{head}{rest}").as_bytes());
            assert_eq!(read.as_ref().ok().map(Vec::len), requests, "{rest:?}: {read:?}");
        }
    }
}
