//! The service behind: it writes down every request byte by byte, and answers as a test tells it to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod, SslVerifyMode};
use openssl::x509::X509;

use super::certificates::Certificate;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Which connection it came on, counted from 0.
    pub connection: usize,
    /// Everything up to the empty line.
    pub head: String,
    /// The body, without the framing of chunks.
    pub body: Vec<u8>,
}

/// What a script says to a request.
pub enum Reply {
    /// These bytes, and the connection goes on.
    Bytes(Vec<u8>),
    /// These bytes, and the connection ends.
    Last(Vec<u8>),
    /// Nothing for this long, and the connection ends.
    Silence(Duration),
}

type Script = Box<dyn Fn(&Recorded) -> Reply + Send + Sync>;

/// A running service.
pub struct Origin {
    pub address: SocketAddr,
    records: Arc<Records>,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

struct Records {
    requests: Mutex<Vec<Recorded>>,
    /// What came on each connection, byte by byte.
    received: Mutex<Vec<Vec<u8>>>,
    script: Script,
    tls: Option<SslAcceptor>,
}

/// A whole answer.
pub fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    format!("{bytes}\r\n{body}").into_bytes()
}

/// The server's side of TLS; with an authority, callers must show a certificate of it.
pub fn acceptor(certificate: &Certificate, clients: Option<&str>) -> SslAcceptor {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    acceptor.set_certificate(&X509::from_pem(certificate.chain.as_bytes()).unwrap()).unwrap();
    acceptor.set_private_key(&PKey::private_key_from_pem(certificate.key.as_bytes()).unwrap()).unwrap();
    if let Some(clients) = clients {
        acceptor.cert_store_mut().add_cert(X509::from_pem(clients.as_bytes()).unwrap()).unwrap();
        acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        acceptor.set_session_id_context(b"origin").unwrap();
    }
    acceptor.build()
}

impl Origin {
    /// Answers 200 with the word `origin`.
    pub fn start() -> Self {
        Self::scripted(|_| Reply::Bytes(answer(200, &[], "origin")))
    }

    pub fn scripted(script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), None, Box::new(script))
    }

    /// The same over TLS ([`acceptor`]).
    pub fn tls(certificate: &Certificate, clients: Option<&str>, script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), Some(acceptor(certificate, clients)), Box::new(script))
    }

    fn on(listener: TcpListener, tls: Option<SslAcceptor>, script: Script) -> Self {
        let address = listener.local_addr().unwrap();
        let records = Arc::new(Records { requests: Mutex::default(), received: Mutex::default(), script, tls });
        let stop = Arc::new(AtomicBool::new(false));
        let accepting = std::thread::spawn({
            let (records, stop) = (records.clone(), stop.clone());
            move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    let records = records.clone();
                    std::thread::spawn(move || records.serve(stream));
                }
            }
        });
        Self { address, records, stop, accepting: Some(accepting) }
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.records.requests.lock().unwrap().clone()
    }

    /// The latest request.
    #[track_caller]
    pub fn last(&self) -> Recorded {
        self.requests().pop().expect("the origin was asked")
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        self.records.received.lock().unwrap().len()
    }

    /// What came on each connection so far, byte by byte.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.records.received.lock().unwrap().clone()
    }
}

impl Drop for Origin {
    /// Nobody listens afterwards: connections are refused. Those that are open end with their peers.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Records {
    fn serve(&self, stream: TcpStream) {
        let connection = {
            let mut received = self.received.lock().unwrap();
            received.push(Vec::new());
            received.len() - 1
        };
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => self.converse(connection, stream),
            Some(tls) => {
                if let Ok(stream) = tls.accept(stream) {
                    self.converse(connection, stream);
                }
            }
        }
    }

    fn converse(&self, connection: usize, mut stream: impl Read + Write) {
        let mut input = Input { stream: &mut stream, read: Vec::new(), connection, records: self };
        while let Some((head, body)) = input.request() {
            let recorded = Recorded { connection, head, body };
            self.requests.lock().unwrap().push(recorded.clone());
            match (self.script)(&recorded) {
                Reply::Bytes(bytes) => {
                    if input.stream.write_all(&bytes).and_then(|()| input.stream.flush()).is_err() {
                        return;
                    }
                }
                Reply::Last(bytes) => {
                    let _ = input.stream.write_all(&bytes).and_then(|()| input.stream.flush());
                    return;
                }
                Reply::Silence(time) => {
                    std::thread::sleep(time);
                    return;
                }
            }
        }
    }
}

struct Input<'a, S> {
    stream: &'a mut S,
    read: Vec<u8>,
    connection: usize,
    records: &'a Records,
}

impl<S: Read> Input<'_, S> {
    /// The next request, or nothing when the connection ends before a whole one.
    fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let head = String::from_utf8_lossy(&self.until(b"\r\n\r\n")?).into_owned();
        let header = |name: &str| header(&head, name).map(str::to_owned);
        if header("transfer-encoding").is_some() {
            let mut body = Vec::new();
            loop {
                let size = String::from_utf8(self.until(b"\r\n")?).ok()?;
                let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
                body.extend(self.exactly(size)?);
                if size == 0 {
                    while self.until(b"\r\n")? != b"\r\n" {}
                    return Some((head, body));
                }
                self.exactly(2)?;
            }
        }
        let length = header("content-length").map_or(Some(0), |length| length.parse().ok())?;
        Some((head, self.exactly(length)?))
    }

    fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end) {
                return Some(self.read.drain(..at + end.len()).collect());
            }
            self.fill()?;
        }
    }

    fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.read.len() < length {
            self.fill()?;
        }
        Some(self.read.drain(..length).collect())
    }

    fn fill(&mut self) -> Option<()> {
        let mut bytes = [0; 16 * 1024];
        let length = self.stream.read(&mut bytes).ok().filter(|length| *length > 0)?;
        self.records.received.lock().unwrap()[self.connection].extend_from_slice(&bytes[..length]);
        self.read.extend_from_slice(&bytes[..length]);
        Some(())
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

impl Recorded {
    pub fn request_line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    pub fn target(&self) -> &str {
        self.request_line().split(' ').nth(1).unwrap()
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// Every value of every header whose name is this one in any case and with any sign for `-`: as the laxest service would read it.
    pub fn headers_like(&self, name: &str) -> Vec<&str> {
        let alike = |known: &str| known.trim().replace(|c: char| !c.is_ascii_alphanumeric(), "-").eq_ignore_ascii_case(name);
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(known, _)| alike(known))
            .map(|(_, value)| value.trim())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::certificates::Authority;
    use super::super::client::{Connection, Tls, get, request};
    use super::*;

    #[test]
    fn the_origin_records_what_the_client_sends_and_the_client_reads_what_it_answers() {
        let origin = Origin::scripted(|request| match request.target() {
            "/chunks" => {
                Reply::Bytes(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n".to_vec())
            }
            "/empty" => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n".to_vec()),
            "/last" => Reply::Last(b"HTTP/1.1 200 OK\r\n\r\nuntil the end".to_vec()),
            _ => Reply::Bytes(answer(201, &[("X-Of", "origin")], "made")),
        });
        let mut connection = Connection::open(origin.address);
        let made = connection.ask(request("POST", "/things", &[("X_User", "mallory"), ("x-user", "alice")], b"body"));
        assert_eq!((made.status, made.header("x-of"), made.text()), (201, Some("origin"), "made"));
        assert_eq!(connection.ask("POST /chunks HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n").text(), "abcde");
        assert_eq!(connection.ask("HEAD /empty HTTP/1.1\r\n\r\n").body, b"", "an answer to HEAD has a length and no body");
        assert_eq!(connection.ask("GET /last HTTP/1.1\r\n\r\n").text(), "until the end");
        assert!(connection.is_closed());

        let requests = origin.requests();
        assert_eq!(requests.iter().map(Recorded::target).collect::<Vec<_>>(), ["/things", "/chunks", "/empty", "/last"]);
        assert_eq!((&requests[0].body[..], &requests[1].body[..]), (&b"body"[..], &b"body"[..]));
        assert_eq!(requests[0].headers_like("x-user"), ["mallory", "alice"]);
        assert_eq!((origin.connections(), origin.last().connection), (1, 0));

        let address = origin.address;
        drop(origin);
        assert!(TcpStream::connect(address).is_err(), "nobody listens afterwards");
    }

    #[test]
    fn the_tls_origin_and_client_verify_each_other() {
        let (authority, clients) = (Authority::new("authority"), Authority::new("clients"));
        let (server, client) = (authority.issue(&["origin.test"]), clients.issue(&["edgeward"]));
        let origin = Origin::tls(&server, Some(&clients.pem()), |_| Reply::Last(answer(200, &[], "secret")));
        let ca = authority.pem();
        let good = Tls { ca: &ca, server_name: "origin.test", client: Some(&client) };
        let mut connection = Connection::open_tls(origin.address, &good).unwrap();
        assert_eq!(connection.server_common_name(), "origin.test");
        assert_eq!(connection.ask(request("GET", "/", &[], b"")).text(), "secret");

        let other_name = Connection::open_tls(origin.address, &Tls { server_name: "evil.test", ..good });
        assert!(other_name.is_err_and(|error| error.contains("verify")));
        let anonymous = Connection::open_tls(origin.address, &Tls { client: None, ..good });
        // TLS 1.3 tells the caller only when it reads.
        assert!(anonymous.map_or(true, |mut connection| connection.is_closed()));
    }

    #[test]
    fn a_test_sees_the_answer_of_the_default_script() {
        assert_eq!(get(Origin::start().address, "/", &[]).text(), "origin");
    }
}
