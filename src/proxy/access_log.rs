//! One JSON line per request on stdout, never a credential; written by a thread of its own so that a slow reader slows nobody.

use std::cell::RefCell;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use super::caller::Caller;
use super::context::Context;
use crate::metrics::Metrics;
use crate::request::{Clock, Now, Rejection};
use crate::text::{Digits, digits, push_address, push_number, push_socket};

/// Lines that may wait for the writer; more are dropped and counted.
const WAITING: usize = 16_384;

/// How long lines are gathered before they are written.
const GATHERING: Duration = Duration::from_millis(5);

/// Longest value that a caller can put into a line, in bytes.
const LONGEST: usize = 1_024;

/// The writing end of the log.
#[derive(Clone)]
pub struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    clock: Clock,
}

impl AccessLog {
    /// Starts the writer.
    pub fn start(clock: Clock, mut out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (lines, waiting) = sync_channel(WAITING);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write_lines(&waiting, &mut out))?;
        Ok(Self { lines, clock })
    }

    /// Counts the request, and writes its line: every refusal, and the configured share of the rest.
    pub(super) fn record(&self, metrics: &Metrics, caller: &impl Caller, context: &Context) {
        let sample = context.snapshot.access_log_sample;
        let written = context.rejection.is_some() || (sample > 0.0 && (sample >= 1.0 || fastrand::f64() < sample));
        // Of one that was answered and is not written down, everything is known.
        let known = context.answered.filter(|_| context.asked.is_some() && !written);
        let now = known.map_or_else(|| (self.clock)(), |answered| Now { monotonic: answered, ..context.started });
        let times = Times::of(context, now.monotonic);
        let status = caller.status().map_or(0, |status| status.as_u16());
        metrics.own_time.observe(times.own);
        if let Some(upstream) = times.upstream {
            metrics.upstream_time.observe(upstream);
        }
        let counters = context.route().map_or(&context.snapshot.unrouted, |route| &route.metrics);
        match &context.rejection {
            Some(rejection) => counters.count_refused(rejection.code(), rejection.status().as_u16(), rejection.reason()),
            None => counters.count_served(status),
        }
        if let Some(identity) = context.admission.as_ref().and_then(|admission| admission.identity()) {
            identity.parts().for_each(|part| counters.count_accepted(&part.authenticator));
        }
        if !written {
            return;
        }
        let line = line(caller, context, status, &times, now);
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            metrics.access_log_dropped.inc();
        }
    }
}

fn line(caller: &impl Caller, context: &Context, status: u16, times: &Times, now: Now) -> Vec<u8> {
    let head = caller.head(None);
    let mut line = Line::new();
    line.time("time", now.unix);
    line.text("request_id", context.request_id.as_str());
    if let Some(client) = context.client {
        line.address("client", client.address);
    }
    line.text("method", head.method.as_str());
    let host = head.authority.or_else(|| head.headers.get(http::header::HOST)?.to_str().ok());
    line.text("host", host.unwrap_or(""));
    let (path, query) = match memchr::memchr(b'?', head.target) {
        Some(at) => (head.target.get(..at).unwrap_or_default(), head.target.get(at + 1..)),
        None => (head.target, None),
    };
    line.bytes("path", path);
    if let Some(query) = query {
        line.text("query", &context.snapshot.redact_query(&String::from_utf8_lossy(query)));
    }
    line.text("protocol", protocol(head.version));
    line.number("status", u64::from(status));
    line.text("code", context.rejection.as_ref().map_or("ok", |rejection| rejection.code()));
    if let Some(reason) = context.rejection.as_ref().and_then(|rejection| rejection.reason()) {
        line.text("reason", reason);
    }
    if let Some(route) = context.route() {
        line.text("route", &route.name);
    }
    let admitted = context.admission.as_ref().and_then(|admission| admission.identity());
    if let Some(identity) = admitted.or(context.refused.as_ref()) {
        line.words("authenticator", identity.parts().map(|part| &*part.authenticator));
        line.words("auth_method", identity.parts().map(|part| part.method.label()));
        let named = [
            ("consumer", &identity.consumer),
            ("subject", &identity.subject),
            ("client_id", &identity.client),
            ("key_id", &identity.key_id),
        ];
        for (name, value) in named {
            if let Some(value) = value {
                line.text(name, value);
            }
        }
    }
    if let Some(upstream) = context.tried.last() {
        line.socket("upstream", *upstream);
        line.number("tries", context.tried.len() as u64);
    }
    if let Some(filter) = context.rejection.as_ref().and_then(Rejection::filter) {
        line.text("filter", filter);
    }
    if let Some(limit) = context.rejection.as_ref().and_then(Rejection::limit) {
        line.text("limit", &limit.name);
    }
    let shadowed = context.admission.as_ref().map_or(&*context.shadowed, |admission| admission.shadowed());
    if !shadowed.is_empty() {
        line.text("shadow_refusals", &shadowed.join(","));
    }
    if !context.queued.is_zero() {
        line.number("queued_us", micros(context.queued));
    }
    line.number("own_us", micros(times.own));
    if let Some(upstream) = times.upstream {
        line.number("upstream_us", micros(upstream));
    }
    line.number("total_us", micros(times.total));
    line.number("bytes_in", context.body_received);
    line.number("bytes_out", caller.body_sent());
    if let Some(agent) = head.headers.get(http::header::USER_AGENT) {
        line.bytes("user_agent", agent.as_bytes());
    }
    line.end()
}

/// Where the time of a request went.
struct Times {
    /// Until the upstream was asked, or until the end where it was not; without the wait in a queue.
    own: Duration,
    /// From asking to the head of the answer.
    upstream: Option<Duration>,
    total: Duration,
}

impl Times {
    fn of(context: &Context, now: Duration) -> Self {
        let started = context.started.monotonic;
        let total = now.saturating_sub(started);
        let own = context.asked.map_or(total, |asked| asked.saturating_sub(started)).saturating_sub(context.queued);
        let upstream = context.asked.map(|asked| context.answered.unwrap_or(now).saturating_sub(asked));
        Self { own, upstream, total }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_2 => "HTTP/2",
        http::Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// A JSON object on one line. Every byte that could steer a terminal or end a line is escaped, the bidirectional marks of Unicode too.
struct Line(Vec<u8>);

thread_local! {
    /// The last second that was written, and how: for each refusal it is the longest to write.
    static SECOND: RefCell<(u64, Vec<u8>)> = const { RefCell::new((0, Vec::new())) };
}

impl Line {
    fn new() -> Self {
        let mut line = Vec::with_capacity(768);
        line.push(b'{');
        Self(line)
    }

    fn name(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        push_number(&mut self.0, value);
    }

    fn address(&mut self, name: &str, address: IpAddr) {
        self.name(name);
        self.0.push(b'"');
        push_address(&mut self.0, address);
        self.0.push(b'"');
    }

    fn socket(&mut self, name: &str, address: SocketAddr) {
        self.name(name);
        self.0.push(b'"');
        push_socket(&mut self.0, address);
        self.0.push(b'"');
    }

    /// As RFC 3339 writes it, to the microsecond.
    fn time(&mut self, name: &str, unix: Duration) {
        self.name(name);
        self.0.push(b'"');
        SECOND.with_borrow_mut(|(second, text)| {
            if text.is_empty() || *second != unix.as_secs() {
                *second = unix.as_secs();
                write_second(text, unix);
            }
            self.0.extend_from_slice(text);
        });
        self.0.extend_from_slice(digits(&mut Digits::default(), unix.subsec_micros().into(), 6));
        self.0.extend_from_slice(b"Z\"");
    }

    fn text(&mut self, name: &str, value: &str) {
        self.bytes(name, value.as_bytes());
    }

    /// A text of which nobody knows whether it is one.
    fn bytes(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        self.0.push(b'"');
        // To the end in any case: a loop without a way out looks at many bytes at once.
        let plain = |byte: u8| (b' '..=b'~').contains(&byte) & (byte != b'"') & (byte != b'\\');
        if value.len() <= LONGEST && value.iter().fold(true, |sound, byte| sound & plain(*byte)) {
            self.0.extend_from_slice(value);
        } else {
            self.escape(&String::from_utf8_lossy(value));
        }
        self.0.push(b'"');
    }

    fn escape(&mut self, value: &str) {
        for character in value.chars().scan(0, |length, character| {
            *length += character.len_utf8();
            (*length <= LONGEST).then_some(character)
        }) {
            match character {
                '"' => self.0.extend_from_slice(b"\\\""),
                '\\' => self.0.extend_from_slice(b"\\\\"),
                ' '..='~' => self.0.push(character as u8),
                _ => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.0, "\\u{unit:04x}");
                    }
                }
            }
        }
    }

    fn words<'w>(&mut self, name: &str, words: impl Iterator<Item = &'w str>) {
        self.text(name, &words.collect::<Vec<_>>().join(" "));
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"}\n");
        self.0
    }
}

/// A time to the second, and the point behind it.
fn write_second(text: &mut Vec<u8>, unix: Duration) {
    let time = time::OffsetDateTime::UNIX_EPOCH + unix;
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second) = time.to_hms();
    text.clear();
    let _ = write!(text, "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.", u8::from(month));
}

/// Writes what waits, and flushes whenever nothing more does. Whoever sends a line to a thread that is not waiting for it need not wake it, which
/// costs more than the line: so it gathers for a moment first.
fn write_lines(waiting: &Receiver<Vec<u8>>, out: &mut impl Write) {
    let mut buffered = std::io::BufWriter::with_capacity(64 * 1024, out);
    while let Ok(first) = waiting.recv() {
        std::thread::sleep(GATHERING);
        let mut next = Some(first);
        while let Some(line) = next {
            // Nobody reads the log: requests are served all the same.
            let _ = buffered.write_all(&line);
            next = waiting.try_recv().ok();
        }
        let _ = buffered.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_rfc_3339_says() {
        for (second, text) in [(1_800_000_000, "2027-01-15T08:00:00"), (0, "1970-01-01T00:00:00"), (1_800_000_000, "2027-01-15T08:00:00")] {
            let mut line = Line::new();
            line.time("time", Duration::new(second, 1_234_567));
            assert_eq!(String::from_utf8(line.end()).unwrap(), format!("{{\"time\":\"{text}.001234Z\"}}\n"));
        }
    }

    #[test]
    fn a_line_stays_one_json_object_whatever_a_caller_writes() {
        for hostile in ["\r\n{\"a\":1}", "\u{1b}[2J", "\u{202e}evil", "\"},{\"", "\\", "\0", "\u{1f600}", &"x".repeat(5_000)] {
            let mut line = Line::new();
            line.text("path", hostile);
            line.number("status", 200);
            let line = String::from_utf8(line.end()).unwrap();
            assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\n'), "{line:?}");
            assert_eq!(line.matches('\n').count(), 1);
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            let expected: String = hostile.chars().take(LONGEST).collect();
            assert_eq!(parsed["path"], expected);
        }
    }
}
