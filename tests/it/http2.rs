//! Callers over HTTP/2: what one connection may bring, how answers end, and that those which are ready together are sent together.

use std::time::Duration;

use crate::harness::certificates::Authority;
use crate::harness::client::{Came, Http2, Tls};
use crate::harness::gateway::{Folder, Gateway};
use crate::harness::origin::{Origin, Reply, answer};
use crate::harness::until;

/// A gateway that speaks TLS.
pub struct World {
    pub gateway: Gateway,
    ca: String,
}

impl World {
    fn new(origin: &Origin, more: &str) -> Self {
        Self::before(Folder::new(), &format!(r#"servers: ["{}"]"#, origin.address), "authenticate: public", more)
    }

    /// Before this upstream, which the policy protects.
    pub fn before(folder: Folder, upstream: &str, policy: &str, more: &str) -> Self {
        let route = format!(r#"{{name: all, path: "/all/{{*rest}}", upstream: all, policy: {{{policy}}}}}"#);
        Self::with(folder, &format!("upstreams: {{all: {{{upstream}}}}}\nroutes: [{route}]\n{more}"))
    }

    /// With all of this but a listener.
    pub fn with(folder: Folder, more: &str) -> Self {
        let authority = Authority::new("http2");
        let certificate = authority.issue(&["gw.test"]);
        folder.write("chain.pem", &certificate.chain);
        folder.write("key.pem", &certificate.key);
        let yaml = format!(
            r#"
listeners: [{{address: "127.0.0.1:0", tls: {{certificates: [{{chain: chain.pem, key: {{file: key.pem}}}}]}}}}]
admin: {{address: "127.0.0.1:0"}}
{more}
"#
        );
        Self { gateway: Gateway::start_in(folder, &yaml), ca: authority.pem() }
    }

    pub fn open(&self) -> Http2 {
        Http2::open(self.gateway.address(), &self.tls())
    }

    /// How its callers speak TLS.
    pub fn tls(&self) -> Tls<'_> {
        Tls { ca: &self.ca, server_name: "gw.test", client: None }
    }
}

pub fn head<'a>(method: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [(":method", method), (":scheme", "https"), (":path", path), (":authority", "gw.test")]
}

pub fn whole(status: u16, body: &str) -> Came {
    Came { status, body: body.into(), trailers: false, whole: true }
}

#[test]
fn one_connection_may_bring_what_we_serve_and_what_the_framework_serves() {
    let origin = Origin::scripted(|request| match request.target() {
        "/all/nothing" => Reply::Bytes(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        "/all/hints" => Reply::Bytes(
            [
                b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice(),
                b"5\r\nhello\r\n0\r\n\r\n",
            ]
            .concat(),
        ),
        _ if request.request_line().starts_with("HEAD ") => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_vec()),
        target => Reply::Bytes(answer(200, &[], &format!("{target} {}", String::from_utf8_lossy(&request.body)))),
    });
    let world = World::new(&origin, "");
    let mut connection = world.open();
    let with = |more: &'static [(&str, &str)], path| [&head("POST", path)[..], more].concat();
    let (plain, unknown, trailers) =
        (with(&[("content-length", "4")], "/all/2"), with(&[], "/all/3"), with(&[("content-length", "4"), ("te", "trailers")], "/all/4"));
    for (at, (fields, body, expected)) in [
        (&head("GET", "/all/1")[..], &[][..], whole(200, "/all/1 ")),
        (&plain, &[&b"bo"[..], b"dy"], whole(200, "/all/2 body")),
        (&unknown, &[b"bo", b"dy"], whole(200, "/all/3 body")),
        (&trailers, &[b"body"], whole(200, "/all/4 body")),
        (&head("HEAD", "/all/6"), &[], whole(200, "")),
        (&head("GET", "/all/nothing"), &[], whole(204, "")),
        (&head("GET", "/all/hints"), &[], whole(200, "hello")),
        (&head("GET", "/none"), &[], whole(404, "")),
        (&head("GET", "/all/7"), &[], whole(200, "/all/7 ")),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = 2 * at as u32 + 1;
        connection.begin_with(fields, stream, body);
        let came = connection.came(stream);
        // The body of a refusal is another test's.
        let came = if came.status == 404 { Came { body: Vec::new(), ..came } } else { came };
        assert_eq!(came, expected, "{fields:?}");
    }
    until("each is in the log once", || world.gateway.access_log().len() == 9);
}

#[test]
fn an_answer_that_breaks_off_is_reset_and_never_ended() {
    let origin = Origin::scripted(|request| match request.target() {
        "/all/length" => Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello".to_vec()),
        _ => Reply::Last(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".to_vec()),
    });
    let world = World::new(&origin, "");
    let mut connection = world.open();
    for (at, path) in ["/all/length", "/all/chunks"].into_iter().enumerate() {
        let (ours, framework) = (4 * at as u32 + 1, 4 * at as u32 + 3);
        connection.begin(&head("GET", path), ours);
        assert!(!connection.came(ours).whole, "{path}");
        // `TE` is the framework's.
        connection.begin_with(&[&head("POST", path)[..], &[("te", "trailers")]].concat(), framework, &[b"x"]);
        assert!(!connection.came(framework).whole, "{path}");
    }
    until("they are in the log", || world.gateway.access_log().iter().filter(|line| line["code"] != "ok").count() == 4);
}

#[test]
fn a_stream_that_its_caller_gives_up_ends_the_wait_for_the_backend() {
    let origin = Origin::scripted(|_| Reply::Silence(Duration::from_secs(20)));
    let world = World::new(&origin, "");
    let mut connection = world.open();
    connection.begin(&head("GET", "/all/silent"), 1);
    until("the backend is asked", || !origin.requests().is_empty());
    connection.reset(1);
    until("the caller is gone", || world.gateway.access_log().iter().any(|line| line["code"] == "client_closed"));
}

/// Counted, with one worker, which serves in a known order: each answer in a TLS record of its own would be forty.
#[test]
fn answers_that_are_ready_together_are_sent_together() {
    let world = World::new(&Origin::start(), "server: {threads: 1}");
    let mut connection = world.open();
    let pieces = connection.pieces(&head("GET", "/none"), 40);
    assert!(pieces <= 20, "{pieces}");
}
