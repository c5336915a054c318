//! A caller that sends exactly the bytes it is told and reads answers strictly.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use openssl::pkey::PKey;
use openssl::ssl::{SslConnector, SslMethod, SslStream};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;

use super::PATIENCE;
use super::certificates::Certificate;

/// A connection on which requests are written and answers read.
pub struct Connection<S = TcpStream> {
    stream: S,
    /// What was read and belongs to no answer yet.
    read: Vec<u8>,
}

/// An answer as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// In the order of the wire, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// One request on a connection of its own.
#[track_caller]
pub fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> Answer {
    Connection::open(address).ask(request)
}

/// A GET on a connection of its own.
#[track_caller]
pub fn get(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Answer {
    ask(address, request("GET", target, headers, b""))
}

/// The bytes of a well-formed request; `Host` is `edgeward.test` unless the headers name another.
pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        bytes.push_str("Host: edgeward.test\r\n");
    }
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        bytes.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    bytes.push_str("\r\n");
    [bytes.as_bytes(), body].concat()
}

impl Connection {
    #[track_caller]
    pub fn open(address: SocketAddr) -> Self {
        Self::over(tcp(address))
    }
}

/// How a caller speaks TLS.
#[derive(Clone, Copy, Default)]
pub struct Tls<'a> {
    /// The only authority that is trusted.
    pub ca: &'a str,
    /// The name to ask for and verify.
    pub server_name: &'a str,
    pub client: Option<&'a Certificate>,
}

impl Connection<SslStream<TcpStream>> {
    /// Opens a verified connection, or says why there is none.
    pub fn open_tls(address: SocketAddr, tls: &Tls<'_>) -> Result<Self, String> {
        Self::open_alpn(address, tls, b"\x08http/1.1")
    }

    /// The same for a protocol, as it is written in ALPN.
    pub fn open_alpn(address: SocketAddr, tls: &Tls<'_>, protocol: &[u8]) -> Result<Self, String> {
        let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
        let mut store = X509StoreBuilder::new().unwrap();
        store.add_cert(X509::from_pem(tls.ca.as_bytes()).unwrap()).unwrap();
        builder.set_cert_store(store.build());
        builder.set_alpn_protos(protocol).unwrap();
        if let Some(client) = tls.client {
            // Whether a key is too weak is for the gateway to say.
            builder.set_security_level(0);
            let mut chain = X509::stack_from_pem(client.chain.as_bytes()).unwrap().into_iter();
            builder.set_certificate(&chain.next().unwrap()).unwrap();
            chain.for_each(|between| builder.add_extra_chain_cert(between).unwrap());
            builder.set_private_key(&PKey::private_key_from_pem(client.key.as_bytes()).unwrap()).unwrap();
        }
        builder.build().connect(tls.server_name, tcp(address)).map(Self::over).map_err(|error| error.to_string())
    }

    /// The cipher suite that was agreed on.
    pub fn cipher(&self) -> &'static str {
        self.stream.ssl().current_cipher().unwrap().name()
    }

    /// The common name of the certificate that the server showed.
    pub fn server_common_name(&self) -> String {
        let certificate = self.stream.ssl().peer_certificate().unwrap();
        let name = certificate.subject_name().entries_by_nid(openssl::nid::Nid::COMMONNAME).next().unwrap();
        name.data().to_string().unwrap()
    }
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

impl<S: Read + Write> Connection<S> {
    fn over(stream: S) -> Self {
        Self { stream, read: Vec::new() }
    }

    #[track_caller]
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        let request = request.as_ref();
        self.send(request);
        self.answer(request.starts_with(b"HEAD "))
    }

    /// Writes these bytes and nothing else. The peer may have closed already: what it said is still to be read.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).and_then(|()| self.stream.flush());
    }

    /// Reads one answer; that to HEAD has no body.
    #[track_caller]
    pub fn answer(&mut self, to_head: bool) -> Answer {
        let head_ends = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.fill(), "the connection ended before an answer: {:?}", String::from_utf8_lossy(&self.read));
        };
        let head: Vec<u8> = self.read.drain(..head_ends).collect();
        let head = std::str::from_utf8(&head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status_line = lines.next().unwrap();
        assert!(status_line.starts_with("HTTP/1."), "not a status line: {status_line}");
        let status = status_line.split(' ').nth(1).unwrap().parse().unwrap();
        let headers =
            lines.map(|line| line.split_once(':').unwrap()).map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
        let mut answer = Answer { status, headers: headers.collect(), body: Vec::new() };
        if !to_head && status >= 200 && status != 204 && status != 304 {
            answer.body = self.body(&answer);
        }
        answer
    }

    fn body(&mut self, head: &Answer) -> Vec<u8> {
        if head.header("transfer-encoding") == Some("chunked") {
            let mut body = Vec::new();
            loop {
                let size = self.line();
                let size = usize::from_str_radix(size.split(';').next().unwrap().trim(), 16).unwrap();
                if size == 0 {
                    while !self.line().is_empty() {}
                    return body;
                }
                body.extend(self.exactly(size));
                assert_eq!(self.line(), "", "a chunk ends with its line");
            }
        }
        match head.header("content-length") {
            Some(length) => self.exactly(length.parse().unwrap()),
            None => {
                while self.fill() {}
                std::mem::take(&mut self.read)
            }
        }
    }

    fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.read.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.read.drain(..at + 2).take(at).collect();
                return String::from_utf8(line).unwrap();
            }
            assert!(self.fill(), "the connection ended within a chunked body");
        }
    }

    fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            assert!(self.fill(), "the connection ended {} bytes before the body did", length - self.read.len());
        }
        self.read.drain(..length).collect()
    }

    /// Reads more; false at the end.
    fn fill(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(length) => {
                self.read.extend_from_slice(&bytes[..length]);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => panic!("nothing came within {PATIENCE:?}"),
            Err(_) => false,
        }
    }

    /// Everything that comes until the peer closes.
    pub fn rest(&mut self) -> String {
        String::from_utf8(self.rest_of_bytes()).unwrap()
    }

    /// The same, whatever it is.
    pub fn rest_of_bytes(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.read)
    }

    /// Whether the peer closes without another byte.
    pub fn is_closed(&mut self) -> bool {
        self.read.is_empty() && !self.fill()
    }
}

impl Answer {
    /// The one value of a header; several are the test's failure.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let first = values.next();
        assert_eq!(values.next(), None, "{name} comes more than once");
        first
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    /// The word of a refusal.
    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        self.json()["code"].as_str().unwrap().to_owned()
    }
}

/// A connection that speaks HTTP/2 frame by frame, so that it can say what no library would.
pub struct Http2(Connection<SslStream<TcpStream>>);

/// What came on a stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Came {
    /// 0 stands for none, and for one that this client does not read.
    pub status: u16,
    pub body: Vec<u8>,
    /// Whether fields stood behind the body.
    pub trailers: bool,
    /// Whether the stream was ended; otherwise it was reset, or the connection is gone.
    pub whole: bool,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was answered; 0 stands for a status that this client does not read.
    Answered(u16),
    /// The stream or the connection ended without an answer.
    Reset,
}

impl Http2 {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;

    #[track_caller]
    pub fn open(address: SocketAddr, tls: &Tls<'_>) -> Self {
        let mut connection = Connection::open_alpn(address, tls, b"\x02h2").unwrap();
        assert_eq!(connection.stream.ssl().selected_alpn_protocol(), Some(&b"h2"[..]));
        connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut http2 = Self(connection);
        http2.frame(Self::SETTINGS, 0, 0, b"");
        http2
    }

    /// One request, the first of its connection; with trailers, a piece of body stands before them.
    pub fn ask(mut self, fields: &[(&str, &str)], trailers: &[(&str, &str)]) -> Verdict {
        const END_STREAM: u8 = 1;
        const END_HEADERS: u8 = 4;
        let alone = if trailers.is_empty() { END_STREAM } else { 0 };
        self.frame(Self::HEADERS, END_HEADERS | alone, 1, &literals(fields));
        if !trailers.is_empty() {
            self.frame(Self::DATA, 0, 1, b"hello");
            self.frame(Self::HEADERS, END_HEADERS | END_STREAM, 1, &literals(trailers));
        }
        self.verdict()
    }

    /// A whole request without a body on a stream, whose answer nobody reads yet.
    pub fn begin(&mut self, fields: &[(&str, &str)], stream: u32) {
        self.begin_with(fields, stream, &[]);
    }

    /// A whole request with a body of these pieces, or none, on a stream, whose answer nobody reads yet.
    pub fn begin_with(&mut self, fields: &[(&str, &str)], stream: u32, pieces: &[&[u8]]) {
        self.frame(Self::HEADERS, 4 | u8::from(pieces.is_empty()), stream, &literals(fields));
        for (at, piece) in pieces.iter().enumerate() {
            self.frame(Self::DATA, u8::from(at + 1 == pieces.len()), stream, piece);
        }
    }

    /// The head of a request with a body, whose pieces are sent by themselves.
    pub fn begin_open(&mut self, fields: &[(&str, &str)], stream: u32) {
        self.frame(Self::HEADERS, 4, stream, &literals(fields));
    }

    /// A piece of a body.
    pub fn piece(&mut self, stream: u32, piece: &[u8], last: bool) {
        self.frame(Self::DATA, u8::from(last), stream, piece);
    }

    /// The next piece of an answer's body on a stream; what comes on others meanwhile is lost.
    pub fn next_piece(&mut self, stream: u32) -> Option<Vec<u8>> {
        loop {
            match self.heard()? {
                (Self::DATA, _, of, payload) if of == stream && !payload.is_empty() => return Some(payload),
                (Self::RST_STREAM, _, of, _) if of == stream => return None,
                _ => {}
            }
        }
    }

    /// All that comes on a stream; what comes on others meanwhile is lost.
    pub fn came(&mut self, stream: u32) -> Came {
        let mut came = Came { status: 0, body: Vec::new(), trailers: false, whole: false };
        let mut begun = false;
        while let Some((kind, flags, of, payload)) = self.heard() {
            match kind {
                _ if kind == Self::GOAWAY => break,
                _ if of != stream => continue,
                Self::HEADERS if begun => came.trailers = true,
                Self::HEADERS => (begun, came.status) = (true, status(&payload)),
                Self::DATA => came.body.extend(payload),
                Self::RST_STREAM => break,
                _ => continue,
            }
            if flags & 1 == 1 {
                came.whole = true;
                break;
            }
        }
        came
    }

    /// The frames of a whole answer on a stream: what each is, and whether it ends the stream. What comes on others meanwhile is lost.
    pub fn frames(&mut self, stream: u32) -> Vec<(&'static str, bool)> {
        let mut frames = Vec::new();
        while frames.last().is_none_or(|(_, last)| !last) {
            let (kind, flags, of, _) = self.heard().unwrap();
            match kind {
                Self::HEADERS if of == stream => frames.push(("HEADERS", flags & 1 == 1)),
                Self::DATA if of == stream => frames.push(("DATA", flags & 1 == 1)),
                Self::RST_STREAM if of == stream => frames.push(("RST_STREAM", true)),
                _ => {}
            }
        }
        frames
    }

    /// The same request on so many streams, sent at once; in how many pieces the answers came.
    pub fn pieces(&mut self, fields: &[(&str, &str)], streams: u32) -> usize {
        let head = literals(fields);
        let length = u8::try_from(head.len()).unwrap();
        let requests = (0..streams).flat_map(|at| [&[0, 0, length, Self::HEADERS, 5][..], &(2 * at + 1).to_be_bytes(), &head].concat());
        self.0.send(requests.collect::<Vec<u8>>());
        let (mut answered, mut pieces) = (0, 0);
        while answered < streams {
            // One record at a time.
            if self.0.read.len() < 9 {
                assert!(self.0.fill());
                pieces += 1;
                continue;
            }
            let (kind, ..) = self.heard().unwrap();
            answered += u32::from(kind == Self::HEADERS);
        }
        pieces
    }

    /// Gives up a stream (CANCEL).
    pub fn reset(&mut self, stream: u32) {
        self.frame(Self::RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    }

    /// The same request on so many streams at once.
    pub fn ask_often(mut self, fields: &[(&str, &str)], streams: u32) -> Vec<Verdict> {
        for stream in 0..streams {
            self.begin(fields, 2 * stream + 1);
        }
        let mut verdicts = Vec::new();
        while verdicts.len() < streams as usize {
            verdicts.push(self.verdict());
        }
        verdicts
    }

    /// What becomes of the next request of which something is heard.
    fn verdict(&mut self) -> Verdict {
        while let Some((kind, _, _, payload)) = self.heard() {
            match kind {
                Self::HEADERS => return Verdict::Answered(status(&payload)),
                Self::RST_STREAM | Self::GOAWAY => return Verdict::Reset,
                _ => {}
            }
        }
        Verdict::Reset
    }

    /// The next frame: kind, flags, stream and payload. None at the end of the connection.
    fn heard(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        while self.0.read.len() < 9 {
            if !self.0.fill() {
                return None;
            }
        }
        let head = self.0.exactly(9);
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, self.0.exactly(length)))
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.0.send([&head, payload].concat());
    }
}

/// Fields as literals that are neither indexed nor compressed (RFC 7541, 6.2.2).
fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    fn text(block: &mut Vec<u8>, text: &str) {
        match text.len() {
            length @ 0..127 => block.push(u8::try_from(length).unwrap()),
            mut length => {
                block.push(127);
                length -= 127;
                while length > 127 {
                    block.push(u8::try_from(length % 128).unwrap() | 128);
                    length /= 128;
                }
                block.push(u8::try_from(length).unwrap());
            }
        }
        block.extend_from_slice(text.as_bytes());
    }
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

/// A status that stands in HPACK's static table.
fn status(block: &[u8]) -> u16 {
    match block.first() {
        Some(0x88) => 200,
        Some(0x89) => 204,
        Some(0x8c) => 400,
        Some(0x8d) => 404,
        Some(0x8e) => 500,
        _ => 0,
    }
}
