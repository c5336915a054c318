//! One JSON line per request on stdout, never a credential; written by a thread of its own so that a slow reader slows nobody.

use std::fmt::Write as _;
use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use super::caller::Caller;
use super::context::Context;
use crate::metrics::Metrics;
use crate::request::{Clock, Now, Rejection};

/// Lines that may wait for the writer; more are dropped and counted.
const WAITING: usize = 16_384;

/// How long lines are gathered before they are written.
const GATHERING: Duration = Duration::from_millis(5);

/// Longest value that a caller can put into a line, in bytes.
const LONGEST: usize = 1_024;

/// The writing end of the log.
#[derive(Clone)]
pub struct AccessLog {
    lines: SyncSender<String>,
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
        let now = (self.clock)();
        let times = Times::of(context, now.monotonic);
        let status = caller.status().map_or(0, |status| status.as_u16());
        metrics.own_time.observe(times.own);
        if let Some(upstream) = times.upstream {
            metrics.upstream_time.observe(upstream);
        }
        let counters = context.route.as_ref().map_or(&context.snapshot.unrouted, |route| &route.metrics);
        match &context.rejection {
            Some(rejection) => counters.count_refused(rejection.code(), rejection.status().as_u16(), rejection.reason()),
            None => counters.count_served(status),
        }
        if let Some(identity) = context.admission.as_ref().and_then(|admission| admission.identity()) {
            identity.parts().for_each(|part| counters.count_accepted(&part.authenticator));
        }
        let sample = context.snapshot.access_log_sample;
        if context.rejection.is_none() && (sample <= 0.0 || (sample < 1.0 && fastrand::f64() >= sample)) {
            return;
        }
        let line = line(caller, context, status, &times, now);
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            metrics.access_log_dropped.inc();
        }
    }
}

fn line(caller: &impl Caller, context: &Context, status: u16, times: &Times, now: Now) -> String {
    let head = caller.head(None);
    let mut line = Line::new();
    line.time("time", now.unix);
    line.text("request_id", context.request_id.as_str());
    if let Some(client) = context.client {
        line.plain("client", format_args!("\"{}\"", client.address));
    }
    line.text("method", head.method.as_str());
    let host = head.authority.or_else(|| head.headers.get(http::header::HOST)?.to_str().ok());
    line.text("host", host.unwrap_or(""));
    let target = String::from_utf8_lossy(head.target);
    let (path, query) = target.split_once('?').map_or((&*target, None), |(path, query)| (path, Some(query)));
    line.text("path", path);
    if let Some(query) = query {
        line.text("query", &context.snapshot.redact_query(query));
    }
    line.text("protocol", protocol(head.version));
    line.number("status", u64::from(status));
    line.text("code", context.rejection.as_ref().map_or("ok", |rejection| rejection.code()));
    if let Some(reason) = context.rejection.as_ref().and_then(|rejection| rejection.reason()) {
        line.text("reason", reason);
    }
    if let Some(route) = &context.route {
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
        line.plain("upstream", format_args!("\"{upstream}\""));
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
        line.text("user_agent", &String::from_utf8_lossy(agent.as_bytes()));
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
struct Line(String);

impl Line {
    fn new() -> Self {
        let mut line = String::with_capacity(512);
        line.push('{');
        Self(line)
    }

    fn name(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push('"');
        self.0.push_str(name);
        self.0.push_str("\":");
    }

    /// What needs no escape.
    fn plain(&mut self, name: &str, value: std::fmt::Arguments<'_>) {
        self.name(name);
        let _ = self.0.write_fmt(value);
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.digits(value, 1);
    }

    /// A number of at least so many digits. The formatter of the standard library takes several times as long, for each refusal a dozen times.
    fn digits(&mut self, mut value: u64, least: usize) {
        let mut digits = [b'0'; 20];
        let mut first = digits.len();
        while let Some(digit) = first.checked_sub(1).and_then(|at| digits.get_mut(at)).filter(|_| value > 0 || 20 - first < least) {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
            first -= 1;
        }
        self.0.push_str(digits.get(first..).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or_default());
    }

    /// As RFC 3339 writes it, to the microsecond.
    fn time(&mut self, name: &str, unix: Duration) {
        let time = time::OffsetDateTime::UNIX_EPOCH + unix;
        let (year, month, day) = time.to_calendar_date();
        let (hour, minute, second, microsecond) = time.to_hms_micro();
        self.name(name);
        self.0.push('"');
        self.digits(u64::from(year.unsigned_abs()), 4);
        for (before, number) in [('-', u8::from(month)), ('-', day), ('T', hour), (':', minute), (':', second)] {
            self.0.push(before);
            self.digits(number.into(), 2);
        }
        self.0.push('.');
        self.digits(microsecond.into(), 6);
        self.0.push_str("Z\"");
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.0.push('"');
        // To the end in any case: a loop without a way out looks at many bytes at once.
        let plain = |byte: u8| (b' '..=b'~').contains(&byte) & (byte != b'"') & (byte != b'\\');
        if value.len() <= LONGEST && value.bytes().fold(true, |sound, byte| sound & plain(byte)) {
            self.0.push_str(value);
        } else {
            self.escape(value);
        }
        self.0.push('"');
    }

    fn escape(&mut self, value: &str) {
        for character in value.chars().scan(0, |length, character| {
            *length += character.len_utf8();
            (*length <= LONGEST).then_some(character)
        }) {
            match character {
                '"' => self.0.push_str("\\\""),
                '\\' => self.0.push_str("\\\\"),
                ' '..='~' => self.0.push(character),
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

    fn end(mut self) -> String {
        self.0.push_str("}\n");
        self.0
    }
}

/// Writes what waits, and flushes whenever nothing more does. Whoever sends a line to a thread that is not waiting for it need not wake it, which
/// costs more than the line: so it gathers for a moment first.
fn write_lines(waiting: &Receiver<String>, out: &mut impl Write) {
    let mut buffered = std::io::BufWriter::with_capacity(64 * 1024, out);
    while let Ok(first) = waiting.recv() {
        std::thread::sleep(GATHERING);
        let mut next = Some(first);
        while let Some(line) = next {
            // Nobody reads the log: requests are served all the same.
            let _ = buffered.write_all(line.as_bytes());
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
        let mut line = Line::new();
        line.time("time", Duration::new(1_800_000_000, 1_234_567));
        assert_eq!(line.end(), "{\"time\":\"2027-01-15T08:00:00.001234Z\"}\n");
    }

    #[test]
    fn a_number_is_written_in_full() {
        for (value, least, expected) in [
            (0, 1, "0"),
            (7, 1, "7"),
            (10, 1, "10"),
            (7, 2, "07"),
            (0, 6, "000000"),
            (123, 2, "123"),
            (u64::MAX, 1, "18446744073709551615"),
        ] {
            let mut line = Line(String::new());
            line.digits(value, least);
            assert_eq!(line.0, expected);
        }
    }

    #[test]
    fn a_line_stays_one_json_object_whatever_a_caller_writes() {
        for hostile in ["\r\n{\"a\":1}", "\u{1b}[2J", "\u{202e}evil", "\"},{\"", "\\", "\0", "\u{1f600}", &"x".repeat(5_000)] {
            let mut line = Line::new();
            line.text("path", hostile);
            line.number("status", 200);
            let line = line.end();
            assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\n'), "{line:?}");
            assert_eq!(line.matches('\n').count(), 1);
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            let expected: String = hostile.chars().take(LONGEST).collect();
            assert_eq!(parsed["path"], expected);
        }
    }
}
