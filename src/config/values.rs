//! The words of the grammar, each parsed once: durations, sizes, rates, addresses, names, and secrets, which are never written down.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use serde_json::{Map as Object, Value, json};

use super::File;
use super::decode::{Context, Decode, Scalar, grammar};
use super::yaml::{Kind, Mark, Node};
use crate::secret::Secret;

/// One second, in the milliseconds that bound a [`Lasting`].
pub(crate) const SECOND: u64 = 1_000;
/// One minute in milliseconds.
pub(crate) const MINUTE: u64 = 60 * SECOND;
/// One hour in milliseconds.
pub(crate) const HOUR: u64 = 60 * MINUTE;
/// One day in milliseconds.
pub(crate) const DAY: u64 = 24 * HOUR;

/// A duration between two bounds in milliseconds, both included.
pub(crate) struct Lasting<const LEAST: u64, const MOST: u64>;

impl<const LEAST: u64, const MOST: u64> Scalar for Lasting<LEAST, MOST> {
    type Value = Duration;

    fn parse(text: &str) -> Result<Duration, String> {
        let (number, unit) = number_and_unit(text).ok_or_else(|| format!("{} is not a duration", quoted(text)))?;
        let milliseconds = match unit {
            "ms" => Some(1),
            unit => seconds(unit).map(|seconds| seconds * SECOND),
        };
        let unit = milliseconds.ok_or_else(|| format!("{} is not a duration", quoted(text)))?;
        match number.checked_mul(unit) {
            Some(total) if (LEAST..=MOST).contains(&total) => Ok(Duration::from_millis(total)),
            _ => Err(format!("{} is out of bounds", quoted(text))),
        }
    }

    fn expected() -> String {
        format!("a duration from {} to {} (units ms, s, m, h, d)", shown(LEAST), shown(MOST))
    }

    fn schema() -> Value {
        json!({"title": format!("duration, {} to {}", shown(LEAST), shown(MOST)), "type": "string", "pattern": "^(0|[1-9][0-9]*)(ms|s|m|h|d)$"})
    }
}

/// A duration as the grammar writes it, in the largest unit that divides it; less than a millisecond is left out.
pub fn duration(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    match milliseconds {
        0 => "0s".to_owned(),
        n if n % DAY == 0 => format!("{}d", n / DAY),
        n if n % HOUR == 0 => format!("{}h", n / HOUR),
        n if n % MINUTE == 0 => format!("{}m", n / MINUTE),
        n if n % SECOND == 0 => format!("{}s", n / SECOND),
        n => format!("{n}ms"),
    }
}

fn shown(milliseconds: u64) -> String {
    duration(Duration::from_millis(milliseconds))
}

fn seconds(unit: &str) -> Option<u64> {
    match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3_600),
        "d" => Some(86_400),
        _ => None,
    }
}

/// A size in bytes between two bounds, both included.
pub(crate) struct Sized<const LEAST: u64, const MOST: u64>;

impl<const LEAST: u64, const MOST: u64> Scalar for Sized<LEAST, MOST> {
    type Value = u64;

    fn parse(text: &str) -> Result<u64, String> {
        let sized = number_and_unit(text).and_then(|(number, unit)| {
            let shift = match unit {
                "B" => 0,
                "KiB" => 10,
                "MiB" => 20,
                "GiB" => 30,
                _ => return None,
            };
            Some(number.checked_mul(1 << shift))
        });
        match sized {
            None => Err(format!("{} is not a size", quoted(text))),
            Some(Some(bytes)) if (LEAST..=MOST).contains(&bytes) => Ok(bytes),
            Some(_) => Err(format!("{} is out of bounds", quoted(text))),
        }
    }

    fn expected() -> String {
        format!("a size from {} to {} (units B, KiB, MiB, GiB)", shown_size(LEAST), shown_size(MOST))
    }

    fn schema() -> Value {
        json!({"title": format!("size, {} to {}", shown_size(LEAST), shown_size(MOST)), "type": "string", "pattern": "^(0|[1-9][0-9]*)(B|KiB|MiB|GiB)$"})
    }
}

fn shown_size(bytes: u64) -> String {
    match bytes {
        0 => "0B".to_owned(),
        n if n % (1 << 30) == 0 => format!("{}GiB", n >> 30),
        n if n % (1 << 20) == 0 => format!("{}MiB", n >> 20),
        n if n % (1 << 10) == 0 => format!("{}KiB", n >> 10),
        n => format!("{n}B"),
    }
}

/// So many per so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many, at least 1.
    pub count: u64,
    /// In how long: whole seconds, 1 s to 366 days.
    pub window: Duration,
}

impl Scalar for Rate {
    type Value = Self;

    fn parse(text: &str) -> Result<Self, String> {
        let rate = text.split_once('/').and_then(|(count, window)| {
            let count = decimal(count)?;
            let unit_at = window.find(|c: char| !c.is_ascii_digit())?;
            let (number, unit) = window.split_at_checked(unit_at)?;
            let number = if number.is_empty() { 1 } else { decimal(number)? };
            Some((count, number.checked_mul(seconds(unit)?)))
        });
        match rate {
            None => Err(format!("{} is not a rate", quoted(text))),
            Some((0, _)) => Err(format!("{} never lets anything through", quoted(text))),
            // A longer number would not survive the arithmetic of a sliding window, nor be meant.
            Some((count @ 1..=1_000_000_000_000, Some(window @ 1..=31_622_400))) => Ok(Self { count, window: Duration::from_secs(window) }),
            Some(_) => Err(format!("{} is out of bounds", quoted(text))),
        }
    }

    fn expected() -> String {
        "a rate such as `100/s` or `50/15m`: a count from 1, and a window from 1s to 366d (units s, m, h, d)".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "rate", "type": "string", "pattern": "^[1-9][0-9]*/([1-9][0-9]*)?(s|m|h|d)$"})
    }
}

/// So many in a long time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// How many, at least 1.
    pub count: u64,
    /// In how long.
    pub period: Period,
}

/// The time of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// A calendar day, UTC.
    Day,
    /// A calendar month, UTC.
    Month,
    /// Whole seconds, 1 s to 366 days, up to now.
    Rolling(Duration),
}

impl Scalar for Quota {
    type Value = Self;

    fn parse(text: &str) -> Result<Self, String> {
        let calendar = [("/day", "/d", Period::Day), ("/month", "/30d", Period::Month)];
        let found = calendar.into_iter().find_map(|(suffix, length, period)| Some((text.strip_suffix(suffix)?, length, period)));
        let (rate, period) = match found {
            // Counted like a rate of that length, so that one reader knows all bounds.
            Some((count, length, period)) => (Rate::parse(&format!("{count}{length}")), Some(period)),
            None => (Rate::parse(text), None),
        };
        match rate {
            Ok(Rate { count, window }) => Ok(Self { count, period: period.unwrap_or(Period::Rolling(window)) }),
            Err(message) if found.is_none() => Err(message.replace("is not a rate", "is not a quota")),
            Err(_) => Err(format!("{} is not a quota", quoted(text))),
        }
    }

    fn expected() -> String {
        "a quota such as `100000/day`, `1000000/month` (calendar, UTC) or `1000000/30d` (rolling, 1s to 366d)".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "quota", "type": "string", "pattern": "^[1-9][0-9]*/(day|month|([1-9][0-9]*)?(s|m|h|d))$"})
    }
}

/// A whole number between two bounds, both included.
pub(crate) struct Within<T, const LEAST: u64, const MOST: u64>(std::marker::PhantomData<T>);

impl<T: TryFrom<u64>, const LEAST: u64, const MOST: u64> Scalar for Within<T, LEAST, MOST> {
    type Value = T;
    const PLAIN: bool = true;

    fn parse(text: &str) -> Result<T, String> {
        let number = decimal(text).ok_or_else(|| format!("{} is not a whole number", quoted(text)))?;
        match T::try_from(number) {
            Ok(value) if (LEAST..=MOST).contains(&number) => Ok(value),
            _ => Err(format!("{number} is out of bounds")),
        }
    }

    fn expected() -> String {
        format!("a whole number from {LEAST} to {MOST}")
    }

    fn schema() -> Value {
        json!({"type": "integer", "minimum": LEAST, "maximum": MOST})
    }
}

impl Scalar for bool {
    type Value = bool;
    const PLAIN: bool = true;

    fn parse(text: &str) -> Result<bool, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ if ["yes", "no", "on", "off", "y", "n"].iter().any(|word| text.eq_ignore_ascii_case(word)) => {
                Err(format!("{} is not a boolean since YAML 1.2", quoted(text)))
            }
            _ => Err(format!("{} is not a boolean", quoted(text))),
        }
    }

    fn expected() -> String {
        "`true` or `false`".to_owned()
    }

    fn schema() -> Value {
        json!({"type": "boolean"})
    }
}

/// A share of a whole, 0.0 to 1.0.
pub(crate) struct Share;

impl Scalar for Share {
    type Value = f64;
    const PLAIN: bool = true;

    fn parse(text: &str) -> Result<f64, String> {
        // `parse` would also take `inf`, `1e-3` and `+1`.
        match text.parse::<f64>() {
            Ok(share) if (0.0..=1.0).contains(&share) && text.chars().all(|c| c.is_ascii_digit() || c == '.') => Ok(share),
            _ => Err(format!("{} is not a share", quoted(text))),
        }
    }

    fn expected() -> String {
        "a number from 0.0 to 1.0".to_owned()
    }

    fn schema() -> Value {
        json!({"type": "number", "minimum": 0, "maximum": 1})
    }
}

/// A text of the operator's, shown as it is: not empty, no control characters.
pub(crate) struct Text;

impl Scalar for Text {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        match text {
            "" => Err("an empty text".to_owned()),
            _ if text.chars().any(char::is_control) => Err("a control character".to_owned()),
            _ if text.trim() != text => Err("a space at the beginning or the end".to_owned()),
            _ => Ok(text.into()),
        }
    }

    fn expected() -> String {
        "a text".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "text", "type": "string", "minLength": 1})
    }
}

/// The name of a thing: it becomes a metric label, a log word and a part of URLs.
pub(crate) struct Name;

impl Scalar for Name {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        let mut bytes = text.bytes();
        let starts = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if starts && text.len() <= 64 && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-')) {
            Ok(text.into())
        } else {
            Err(format!("{} is not a name", quoted(text)))
        }
    }

    fn expected() -> String {
        "a name of `a-z`, `0-9`, `_` and `-`, at most 64 long, that begins with a letter or a digit".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "name", "type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,63}$"})
    }
}

/// A token of HTTP (RFC 9110 section 5.6.2), such as a cookie's name or an authentication scheme.
pub(crate) struct Token;

impl Scalar for Token {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        if is_token(text) { Ok(text.into()) } else { Err("not a token of HTTP".to_owned()) }
    }

    fn expected() -> String {
        "letters, digits and `!#$%&'*+-.^_`|~`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "token", "type": "string", "pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"})
    }
}

pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A scope (RFC 6749 section 3.3): it is written into challenges, so it holds no quote and no space.
pub(crate) struct Scope;

impl Scalar for Scope {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\')) {
            Ok(text.into())
        } else {
            Err("not a scope".to_owned())
        }
    }

    fn expected() -> String {
        "a scope: visible ASCII without quotes, backslashes and spaces".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "scope", "type": "string", "pattern": r"^[!#-\[\]-~]+$"})
    }
}

/// A header's name (RFC 9110 section 5.1).
pub(crate) struct HeaderName;

impl Scalar for HeaderName {
    type Value = http::HeaderName;

    fn parse(text: &str) -> Result<http::HeaderName, String> {
        http::HeaderName::from_bytes(text.as_bytes()).map_err(|_| "not a header name".to_owned())
    }

    fn expected() -> String {
        "the name of a header, such as `X-Tenant`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "header name", "type": "string", "pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"})
    }
}

/// A method that may be routed: upper case as RFC 9110 section 9.1 has it, and none of those that a gateway never forwards.
pub(crate) struct Method;

impl Scalar for Method {
    type Value = http::Method;

    fn parse(text: &str) -> Result<http::Method, String> {
        match text {
            "TRACE" | "CONNECT" => Err(format!("{text} is never forwarded")),
            _ if text.len() <= 32 && is_token(text) && !text.bytes().any(|b| b.is_ascii_lowercase()) => {
                http::Method::from_bytes(text.as_bytes()).map_err(|_| "not a method".to_owned())
            }
            _ => Err(format!("{} is not a method", quoted(text))),
        }
    }

    fn expected() -> String {
        "a method in upper case, such as `GET`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "method", "type": "string", "pattern": "^[A-Z0-9!#$%&'*+.^_`|~-]+$"})
    }
}

/// An `http` or `https` URL without userinfo and fragment. Never quoted: a password may have been written into it.
pub(crate) struct Url;

impl Scalar for Url {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        let uri: http::Uri = text.parse().map_err(|_| "not a URL".to_owned())?;
        let Some(authority) = uri.authority() else { return Err("not an absolute URL".to_owned()) };
        match uri.scheme_str() {
            _ if text.contains('#') => Err("a URL with a fragment".to_owned()),
            _ if authority.as_str().contains('@') => Err("a URL with a user or a password in it".to_owned()),
            _ if host(authority.host()).is_none() => Err("a URL without a sound host".to_owned()),
            _ if authority.as_str().len() > authority.host().len() && authority.port_u16().is_none_or(|port| port == 0) => {
                Err("a URL without a sound port".to_owned())
            }
            Some("https" | "http") => Ok(text.into()),
            _ => Err("a URL of another scheme".to_owned()),
        }
    }

    fn expected() -> String {
        "an `https://` or `http://` URL".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "URL", "type": "string", "format": "uri", "pattern": "^https?://"})
    }
}

/// A URL of the grammar, cut where its parts meet, each as it was written.
pub(crate) struct UrlParts<'u> {
    /// The scheme and the authority.
    pub(crate) origin: &'u str,
    /// The host, an IPv6 address in its brackets.
    pub(crate) host: &'u str,
    /// What follows the authority: the path, and the query if there is one.
    pub(crate) path: &'u str,
}

impl<'u> UrlParts<'u> {
    pub(crate) fn of(url: &'u str) -> Self {
        let start = url.find("://").map_or(0, |at| at + "://".len());
        let end = url.get(start..).and_then(|rest| rest.find(['/', '?'])).map_or(url.len(), |at| start + at);
        let (origin, path) = url.split_at_checked(end).unwrap_or((url, ""));
        let authority = origin.get(start..).unwrap_or_default();
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => authority,
        };
        Self { origin, host, path }
    }
}

/// The address of a socket that we listen on.
impl Scalar for SocketAddr {
    type Value = SocketAddr;

    fn parse(text: &str) -> Result<SocketAddr, String> {
        text.parse().map_err(|_| format!("{} is not an address to listen on", quoted(text)))
    }

    fn expected() -> String {
        "`ADDRESS:PORT` such as `0.0.0.0:8080` or `[::]:8080`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "address and port", "type": "string"})
    }
}

/// A host: a DNS name in lower case, an IPv4 address, or an IPv6 address without its brackets.
pub(crate) struct Host;

impl Scalar for Host {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        host(text).map(Arc::from).ok_or_else(|| format!("{} is not a host", quoted(text)))
    }

    fn expected() -> String {
        "a DNS name or an IP address, without a port".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "host", "type": "string"})
    }
}

/// `host:port`.
pub(crate) struct HostAndPort;

impl Scalar for HostAndPort {
    type Value = (Arc<str>, u16);

    fn parse(text: &str) -> Result<(Arc<str>, u16), String> {
        let parsed = text.rsplit_once(':').and_then(|(name, port)| {
            // An IPv6 address needs its brackets here: without them its last group would be taken for the port.
            let name = if name.contains(':') && !name.starts_with('[') { None } else { host(name) };
            Some((Arc::from(name?), decimal(port).and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)?))
        });
        parsed.ok_or_else(|| format!("{} is not a host and a port", quoted(text)))
    }

    fn expected() -> String {
        "`HOST:PORT` such as `10.0.0.10:8080`, `orders.internal:8080` or `[::1]:8080`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "host and port", "type": "string", "pattern": "^.+:[0-9]+$"})
    }
}

/// The canonical form of a host, or `None` if it is none.
pub(crate) fn host(text: &str) -> Option<String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(text).parse::<Ipv6Addr>() {
        return Some(address.to_string());
    }
    let name = text.to_ascii_lowercase();
    let label = |label: &str| {
        matches!(label.len(), 1..=63)
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A name that ends in a number is an IPv4 address or nothing: `10.0.0.300` and `0x7f.1` must not reach a resolver.
    let numeric = name.rsplit('.').next().is_some_and(|last| last.starts_with(|c: char| c.is_ascii_digit()) && !last.contains('-'));
    let sound = if numeric { name.parse::<Ipv4Addr>().is_ok() } else { bare.is_none() && name.len() <= 253 && name.split('.').all(label) };
    sound.then_some(name)
}

/// A network, or a bare address as the network of itself. IPv4-mapped IPv6 is IPv4.
pub(crate) struct Network;

impl Scalar for Network {
    type Value = IpNet;

    fn parse(text: &str) -> Result<IpNet, String> {
        // The parser of `ipnet` reads `010.0.0.0/8` as 10, where others read octal; the standard library's refuses it.
        let parsed = match text.split_once('/') {
            None => text.parse::<IpAddr>().ok().map(IpNet::from),
            Some((address, prefix)) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => {
                address.parse::<IpAddr>().ok().and_then(|address| IpNet::new(address, prefix.parse().ok()?).ok())
            }
            Some(_) => None,
        };
        let network = unmapped(parsed.ok_or_else(|| format!("{} is not a network", quoted(text)))?);
        match network.trunc() {
            whole if whole.addr() == network.addr() => Ok(network),
            whole => Err(format!("{} has bits set beyond its prefix; the network is `{whole}`", quoted(text))),
        }
    }

    fn expected() -> String {
        "a network such as `203.0.113.0/24`, or an address".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "network", "type": "string"})
    }
}

fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(six) = network else { return network };
    match (six.addr().to_ipv4_mapped(), six.prefix_len().checked_sub(96)) {
        (Some(address), Some(prefix)) => Ipv4Net::new(address, prefix).map_or(network, IpNet::V4),
        _ => network,
    }
}

/// Reads a network as the configuration does.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    Network::parse(text)
}

/// Networks: written here, or one per line in `{file: PATH}`.
pub(crate) struct Networks;

impl Decode for Networks {
    type Value = Vec<IpNet>;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Vec<IpNet>> {
        let read = Vec::<NetworkOrFile>::decode(node, context)?;
        Some(read.into_iter().flatten().collect())
    }

    fn expected() -> String {
        "a list of networks".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        json!({"type": "array", "items": NetworkOrFile::schema(definitions)})
    }
}

struct NetworkOrFile;

impl Decode for NetworkOrFile {
    type Value = Vec<IpNet>;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Vec<IpNet>> {
        match &node.kind {
            Kind::Mapping(_) => {
                let File { path, bytes, place } = WrittenNetworkFile::decode(node, context)?.file;
                let networks = context.within(&path, |context| lines_of_networks(&bytes, context))?;
                if networks.is_empty() {
                    // A list that was cut off by a failed copy must not open what it closed.
                    context.report(super::Problem::at(&place, "the file names no network").expected("at least one network"));
                    return None;
                }
                Some(networks)
            }
            _ => Network::decode(node, context).map(|network| vec![network]),
        }
    }

    fn expected() -> String {
        format!("{}, or `{{file: PATH}}`", <Network as Scalar>::expected())
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        json!({"anyOf": [<Network as Scalar>::schema(), WrittenNetworkFile::schema(definitions)]})
    }
}

grammar! {
    /// A file of networks: one per line, `#` begins a comment.
    struct WrittenNetworkFile {
        /// The file.
        file: File,
    }
}

fn lines_of_networks(bytes: &[u8], context: &mut Context<'_>) -> Option<Vec<IpNet>> {
    let mut networks = Some(Vec::new());
    for (line, number) in bytes.split(|b| *b == b'\n').zip(1..) {
        let line = String::from_utf8_lossy(line);
        let text = line.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let node = Node { mark: Mark { line: number, column: 1 }, kind: Kind::Scalar { text: text.to_owned(), plain: true } };
        match (Network::decode(&node, context), &mut networks) {
            (Some(network), Some(networks)) => networks.push(network),
            _ => networks = None,
        }
    }
    networks
}

/// The path of a file, which is read with the configuration.
impl Decode for File {
    type Value = File;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<File> {
        let path = Text::decode(node, context)?;
        context.read(node, &path)
    }

    fn expected() -> String {
        "the path of a file".to_owned()
    }

    fn schema(_: &mut Object<String, Value>) -> Value {
        json!({"title": "file", "type": "string", "minLength": 1})
    }
}

/// The path of something that is not read with the configuration, such as a database.
impl Decode for std::path::PathBuf {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let path = Text::decode(node, context)?;
        Some(context.resolve(&path))
    }

    fn expected() -> String {
        "a path".to_owned()
    }

    fn schema(_: &mut Object<String, Value>) -> Value {
        json!({"title": "path", "type": "string", "minLength": 1})
    }
}

/// `{env: NAME}` or `{file: PATH}`. Nothing that is written here is ever quoted.
impl Decode for Secret {
    type Value = Secret;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Secret> {
        let entry = match &node.kind {
            Kind::Mapping(entries) => match entries.as_slice() {
                [(Node { kind: Kind::Scalar { text: key, .. }, .. }, value)] => match &value.kind {
                    Kind::Scalar { text, .. } if !value.is_null() => Some((key.as_str(), text.as_str(), value)),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        };
        match entry {
            Some(("env", name, value)) => context.key("env", |context| {
                if name.is_empty()
                    || name.starts_with(|c: char| c.is_ascii_digit())
                    || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                {
                    return context.refuse(value, "not the name of an environment variable", "letters, digits and `_`");
                }
                // Only what looks like a variable's name is quoted: the secret itself may have been written here.
                let variable = match name.bytes().any(|b| b.is_ascii_lowercase()) {
                    true => "the environment variable".to_owned(),
                    false => format!("the environment variable `{name}`"),
                };
                match context.env(name) {
                    Some(secret) if !secret.is_empty() => Some(Secret::new(secret.into_bytes())),
                    Some(_) => context.refuse(value, format!("{variable} is empty"), "a secret in it"),
                    None => context.refuse(value, format!("{variable} is not set"), "a secret in it"),
                }
            }),
            Some(("file", path, value)) => context.key("file", |context| {
                let path = context.resolve(path);
                let place = context.place(value);
                let mut bytes = context.bytes(&path, &place)?;
                // Editors and `echo` end a file with a newline that nobody means.
                if bytes.ends_with(b"\n") {
                    bytes.pop();
                }
                if bytes.ends_with(b"\r") {
                    bytes.pop();
                }
                let secret = Secret::new(bytes);
                if secret.expose().is_empty() {
                    return context.refuse(value, format!("`{}` is empty", path.display()), "a secret in it");
                }
                Some(secret)
            }),
            _ => context.refuse(node, "a secret is never written into the configuration", Self::expected()),
        }
    }

    fn expected() -> String {
        "`{env: NAME}` or `{file: PATH}`".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        definitions.insert(
            "Secret".to_owned(),
            json!({
                "description": "A secret, from the environment or a file; never written here. One newline at the end of the file is left out.",
                "type": "object",
                "properties": {
                    "env": {"title": "text", "type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$", "description": "The environment variable that holds it."},
                    "file": {"title": "file", "type": "string", "minLength": 1, "description": "The file that holds it."},
                },
                "additionalProperties": false,
                "oneOf": [{"required": ["env"]}, {"required": ["file"]}],
            }),
        );
        json!({"$ref": "#/$defs/Secret"})
    }
}

/// A decimal number as people write it: no sign, and no leading zero, which YAML 1.1 takes for octal.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let (number, unit) = text.split_at_checked(text.find(|c: char| !c.is_ascii_digit())?)?;
    Some((decimal(number)?, unit))
}

/// A word of the operator's for a message: short, and without anything that a terminal obeys.
pub(crate) fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    let more = if text.chars().nth(64).is_some() { "..." } else { "" };
    format!("`{shown}{more}`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type AnyDuration = Lasting<0, { u64::MAX }>;
    type AnySize = Sized<0, { u64::MAX }>;

    fn refuses<S: Scalar>(texts: &[&str]) {
        for text in texts {
            assert!(S::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn durations_sizes_and_rates_mean_what_they_say() {
        for (text, milliseconds) in
            [("250ms", 250), ("10s", 10_000), ("5m", 300_000), ("12h", 43_200_000), ("90d", 7_776_000_000), ("0s", 0)]
        {
            assert_eq!(AnyDuration::parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for (text, bytes) in [("0B", 0), ("64KiB", 65_536), ("10MiB", 10_485_760), ("2GiB", 2_147_483_648)] {
            assert_eq!(AnySize::parse(text), Ok(bytes), "{text}");
        }
        let rates = [
            ("100/s", 100, 1),
            ("5000/m", 5_000, 60),
            ("7/h", 7, 3_600),
            ("10000/d", 10_000, 86_400),
            ("50/15m", 50, 900),
            ("1/366d", 1, 31_622_400),
        ];
        for (text, count, seconds) in rates {
            assert_eq!(Rate::parse(text), Ok(Rate { count, window: Duration::from_secs(seconds) }), "{text}");
        }
        let days = |days: u64| Period::Rolling(Duration::from_secs(days * 86_400));
        for (text, count, period) in
            [("5/day", 5, Period::Day), ("1000000/month", 1_000_000, Period::Month), ("7/30d", 7, days(30)), ("7/d", 7, days(1))]
        {
            assert_eq!(Quota::parse(text), Ok(Quota { count, period }), "{text}");
        }
    }

    #[test]
    fn what_is_almost_a_duration_a_size_or_a_rate_is_refused() {
        refuses::<AnyDuration>(&["", "s", "10", "10 s", " 10s", "+1s", "-1s", "01s", "1e3s", "1us", "1S", "1s1s", "\u{661}s"]);
        refuses::<AnyDuration>(&["99999999999999999999s", "18446744073709551615d"]);
        refuses::<AnySize>(&["", "B", "1", "1K", "1kB", "1MB", "1 KiB", "01B", "18446744073709551615GiB"]);
        refuses::<Rate>(&["", "/", "1", "/s", "1/", "0/s", "01/s", "1/0s", "1/01s", "1/ms", "1/367d", "1//s", "1/s/s"]);
        refuses::<Rate>(&["1000000000001/s", "1/18446744073709551615d"]);
        refuses::<Quota>(&["", "day", "/day", "0/day", "01/month", "1/days", "1/2day", "1/week", "1/30", "1000000000001/month", "1 /day"]);
    }

    #[test]
    fn networks_are_folded_to_their_one_form() {
        for (text, network) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(Network::parse(text), Ok(network.parse().unwrap()), "{text}");
        }
        refuses::<Network>(&[
            "",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0",
            "010.0.0.1",
            "010.0.0.0/8",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "fe80::1%eth0",
            "a.example",
        ]);
    }

    #[test]
    fn hosts_have_one_form_and_nothing_that_a_resolver_takes_for_an_address() {
        let hosts = [
            ("API.Example.com", "api.example.com"),
            ("10.0.0.1", "10.0.0.1"),
            ("[2001:DB8:0::1]", "2001:db8::1"),
            ("::1", "::1"),
            ("a_b", "a_b"),
        ];
        for (text, form) in hosts {
            assert_eq!(host(text).as_deref(), Some(form), "{text}");
        }
        refuses::<Host>(&["", ".", "a.", ".a", "a..b", "-a", "a-", "a b", "a:80", "a/b", "a@b", "\u{e9}", "[a]", "[10.0.0.1]"]);
        refuses::<Host>(&["10.0.0.300", "0x7f.1", "127.1", "2130706433", "0x7f000001"]);
        assert_eq!(HostAndPort::parse("[::1]:80"), Ok(("::1".into(), 80)));
        refuses::<HostAndPort>(&["a", "a:", ":80", "a:0", "a:65536", "a:080", "::1:80", "[::1]", "a:b:80"]);
    }

    #[test]
    fn urls_are_absolute_and_hold_no_password() {
        for text in ["https://login.example.com/", "http://127.0.0.1:9000/jwks?x=1", "https://[::1]:8443/"] {
            assert_eq!(Url::parse(text), Ok(text.into()));
        }
        refuses::<Url>(&["", "/jwks", "login.example.com", "login.example.com:443", "ftp://a/", "https://", "https:///a", "https://a b/"]);
        refuses::<Url>(&["https://me@a/", "https://me:x@a/", "https://a/#b", "https://a:/", "https://a:0/", "https://a:99999/"]);
    }

    proptest! {
        #[test]
        fn a_duration_is_shown_as_it_would_be_written(milliseconds in 0..10_000_000_000_u64) {
            prop_assert_eq!(AnyDuration::parse(&shown(milliseconds)), Ok(Duration::from_millis(milliseconds)));
        }
    }
}
