//! What the upstream sees of a caller: nothing of what the caller says about itself, and what the gateway has proven instead.
//!
//! It runs after Pingora has removed what `Connection` names, so a caller can take nothing away that is set here.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, header};
use serde_json::Value;

use super::fields::Fields;
use crate::authenticators::credential;
use crate::config::{self, Location, TemplatePart, Token};
use crate::request::header::{fold, folds_to};
use crate::request::{ClientCertificate, HeaderChange, Identity, Method};
use crate::text::push_address;

/// Where a request came from, for the headers that say so.
#[derive(Debug)]
pub struct Connection<'a> {
    /// Who the gateway takes the caller to be.
    pub client: IpAddr,
    /// The other end of the connection, where it has an address.
    pub peer: Option<IpAddr>,
    /// Whether the peer's word is believed.
    pub through_trusted_proxy: bool,
    /// Whether the connection is TLS.
    pub secure: bool,
    /// The host that was asked for, with its port.
    pub host: &'a str,
    /// The id of the request.
    pub request_id: &'a HeaderValue,
    /// The certificate that was proven for the caller.
    pub certificate: Option<&'a ClientCertificate>,
}

/// What a route tells its upstream.
#[derive(Debug)]
pub struct Forward {
    credentials: Credentials,
    token: Token,
    reserved: Reserved,
    headers: Box<[(HeaderName, Box<[TemplatePart]>)]>,
}

impl Forward {
    /// Compiles what a policy says. `identity_headers` are the headers that any policy sets: a caller can bring none of them to any route.
    pub fn compile(forward: &config::Forward, credentials: Credentials, identity_headers: Arc<[HeaderName]>) -> Self {
        let own = forward.headers.iter().map(|(name, template)| (name.value.clone(), template.value.as_slice().into()));
        let standard = STANDARD.into_iter().map(|(name, part)| (HeaderName::from_static(name), Box::from([part])));
        let standard = standard.filter(|(name, _)| !forward.headers.iter().any(|(own, _)| own.value == *name));
        Self { credentials, token: forward.token, reserved: Reserved::new(identity_headers), headers: standard.chain(own).collect() }
    }

    /// The query without the credentials in it, save the accepted one where the policy keeps it.
    pub fn query<'q>(&self, query: &'q str, identity: Option<&Identity>) -> Cow<'q, str> {
        match identity.filter(|_| self.token == Token::Keep) {
            // A parameter beside any other credential of the same authenticator was refused, so the one that is there was accepted.
            Some(identity) => credential::strip_query(&self.credentials.of_others(identity), query),
            None => credential::strip_query(&self.credentials.all, query),
        }
    }

    /// Sets and removes what an authenticator decided on, after [`apply`](Self::apply): save what this policy or the gateway itself says.
    pub fn copy<'a>(&self, upstream: &mut impl Fields<'a>, changes: &'a [HeaderChange]) {
        for (name, value) in changes.iter().filter(|(name, _)| !self.headers.iter().any(|(own, _)| own == name)) {
            match value {
                Some(value) => upstream.set(name, value.as_bytes()),
                None => upstream.remove(name),
            }
        }
    }

    /// Removes what the caller says about itself and what it proved it with, then sets what the gateway knows.
    pub fn apply<'a>(&'a self, upstream: &mut impl Fields<'a>, identity: Option<&Identity>, connection: &Connection<'_>) {
        let kept = identity.filter(|_| self.token == Token::Keep);
        let accepted = kept.into_iter().flat_map(Identity::parts);
        let kept: Vec<_> = accepted.flat_map(|part| self.credentials.presented(part, &*upstream)).cloned().collect();
        self.credentials.strip(upstream, &kept);
        let origin = Origin::of(upstream, connection);
        self.reserved.strip(upstream);
        origin.set(upstream, connection);
        if let Some(certificate) = connection.certificate {
            set_certificate(upstream, certificate);
        }
        let mut text = String::with_capacity(128);
        for (name, template) in &self.headers {
            if fill(template, identity, &mut text).is_some() {
                upstream.set(name, text.as_bytes());
            }
        }
    }
}

/// Every place in which an authenticator of the route looks for its credential.
#[derive(Debug)]
pub struct Credentials {
    all: Vec<Location>,
    /// One bit for each length of a header among them, to pass over nearly every other at once.
    lengths: u64,
    by_authenticator: Vec<(Arc<str>, Box<[Location]>)>,
}

impl Credentials {
    /// The places of each authenticator by its name.
    pub fn new<'a>(authenticators: impl Iterator<Item = (&'a Arc<str>, &'a [Location])>) -> Self {
        let by_authenticator: Vec<(Arc<str>, Box<[Location]>)> =
            authenticators.map(|(name, locations)| (name.clone(), locations.into())).collect();
        let all: Vec<_> = by_authenticator.iter().flat_map(|(_, locations)| locations.iter().cloned()).collect();
        let lengths = headers(&all).fold(0, |lengths, name| lengths | length_bit(name.as_str()));
        Self { all, lengths, by_authenticator }
    }

    fn of(&self, authenticator: &str) -> &[Location] {
        self.by_authenticator.iter().find(|(name, _)| **name == *authenticator).map_or(&[], |(_, locations)| locations)
    }

    fn of_others(&self, identity: &Identity) -> Vec<Location> {
        let own = |location| identity.parts().any(|part| self.of(&part.authenticator).contains(location));
        self.all.iter().filter(|location| !own(*location)).cloned().collect()
    }

    /// The headers and cookies that an authenticator accepted: the first that holds something, or every part of a signature.
    fn presented<'a>(&self, accepted: &Identity, upstream: &impl Fields<'a>) -> impl Iterator<Item = &Location> {
        let holding = self.of(&accepted.authenticator).iter().filter(|location| match location {
            Location::Header { name, scheme } => upstream.lines(name).any(|line| holds(line, scheme.as_deref())),
            Location::Cookie(name) => upstream.lines(&header::COOKIE).any(|line| {
                let cookies = line.split(|byte| *byte == b';');
                cookies.filter_map(|cookie| cookie.split(|byte| *byte == b'=').next()).any(|given| given.trim_ascii() == name.as_bytes())
            }),
            Location::Query(_) => false,
        });
        holding.take(if matches!(accepted.method, Method::Sigv4 | Method::Signature) { usize::MAX } else { 1 })
    }

    fn strip<'a>(&self, upstream: &mut impl Fields<'a>, kept: &[Location]) {
        let aliases: Vec<HeaderName> = upstream.names().filter(|name| self.is_alias(name)).cloned().collect();
        for alias in &aliases {
            upstream.remove(alias);
        }
        let mut cookies = Vec::new();
        for location in self.all.iter().filter(|location| !kept.contains(location)) {
            match location {
                Location::Header { name, scheme } => {
                    if upstream.lines(name).any(|line| holds(line, scheme.as_deref())) {
                        upstream.remove(name);
                    }
                }
                Location::Cookie(_) => cookies.push(location.clone()),
                Location::Query(_) => {}
            }
        }
        if !cookies.is_empty() {
            strip_cookies(upstream, &cookies);
        }
    }

    /// Whether a server behind us may take this header for one that holds a credential: what was never checked would stand for what was.
    fn is_alias(&self, name: &HeaderName) -> bool {
        let own = || headers(&self.all);
        self.lengths & length_bit(name.as_str()) != 0
            && own().all(|own| own != name)
            && own().any(|own| folds_to(name.as_str(), own.as_str()))
    }
}

fn headers(locations: &[Location]) -> impl Iterator<Item = &HeaderName> {
    locations.iter().filter_map(|location| match location {
        Location::Header { name, .. } => Some(name),
        Location::Query(_) | Location::Cookie(_) => None,
    })
}

/// Whether a line holds a credential of a scheme, alone or behind others in a list; without a scheme every line does.
fn holds(line: &[u8], scheme: Option<&str>) -> bool {
    let Some(scheme) = scheme else { return true };
    let mut starts = std::iter::once(0).chain(memchr::memchr_iter(b',', line).map(|comma| comma + 1));
    starts.any(|start| {
        let word = line.get(start..).unwrap_or_default().trim_ascii_start().split_at_checked(scheme.len());
        word.is_some_and(|(word, rest)| {
            word.eq_ignore_ascii_case(scheme.as_bytes()) && rest.first().is_none_or(|next| !next.is_ascii_alphanumeric())
        })
    })
}

fn strip_cookies<'a>(upstream: &mut impl Fields<'a>, cookies: &[Location]) {
    let mut lines = upstream.lines(&header::COOKIE).peekable();
    if lines.peek().is_none() {
        return;
    }
    // What is not text cannot be searched, and is not sent.
    let kept: Vec<_> = lines.filter_map(|line| credential::strip_cookies(cookies, std::str::from_utf8(line).ok()?)).collect();
    match kept.join("; ") {
        none if none.is_empty() => upstream.remove(&header::COOKIE),
        kept => upstream.set(&COOKIE, kept.as_bytes()),
    }
}

/// Headers that only the gateway may write, in every spelling that a server behind it may take for them.
#[derive(Debug)]
struct Reserved {
    named: Arc<[HeaderName]>,
    /// One bit per length for each first letter, to pass over nearly every header at once.
    lengths: [u64; 32],
}

/// By which upstreams learn who calls, where from, and what was asked for, in the order of the alphabet.
const RESERVED: [&str; 55] = [
    "client-cert",
    "client-cert-chain",
    "forwarded",
    "remote-user",
    "x-anonymous-consumer",
    "x-auth-method",
    "x-auth-request-access-token",
    "x-auth-request-email",
    "x-auth-request-groups",
    "x-auth-request-preferred-username",
    "x-auth-request-user",
    "x-authenticated-scope",
    "x-authenticated-userid",
    "x-client-cert",
    "x-client-cert-cn",
    "x-client-cert-fingerprint",
    "x-client-cert-san",
    "x-client-id",
    "x-consumer-custom-id",
    "x-consumer-id",
    "x-consumer-username",
    "x-credential-identifier",
    "x-envoy-original-path",
    "x-forwarded-client-cert",
    "x-forwarded-email",
    "x-forwarded-for",
    "x-forwarded-groups",
    "x-forwarded-host",
    "x-forwarded-method",
    "x-forwarded-port",
    "x-forwarded-preferred-username",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-scheme",
    "x-forwarded-ssl",
    "x-forwarded-uri",
    "x-forwarded-user",
    "x-http-method",
    "x-http-method-override",
    "x-identity-token",
    "x-key-id",
    "x-method-override",
    "x-original-host",
    "x-original-method",
    "x-original-uri",
    "x-original-url",
    "x-plan",
    "x-real-ip",
    "x-remote-user",
    "x-request-id",
    "x-rewrite-url",
    "x-roles",
    "x-scopes",
    "x-user-id",
    "x-webauth-user",
];

/// `X-SSL-Client-Verify`, `-Cert`, `-S-DN`, `X-Client-Cert-Serial` and whatever else a terminator of TLS may add.
const RESERVED_FAMILIES: [&str; 2] = ["x-ssl-client-", "x-client-cert-"];

impl Reserved {
    fn new(named: Arc<[HeaderName]>) -> Self {
        let mut lengths = [0; 32];
        for name in RESERVED.into_iter().chain(named.iter().map(HeaderName::as_str)) {
            if let Some(lengths) = lengths.get_mut(first_letter(name)) {
                *lengths |= length_bit(name);
            }
        }
        Self { lengths, named }
    }

    fn strip<'a>(&self, upstream: &mut impl Fields<'a>) {
        let spoofed: Vec<HeaderName> = upstream.names().filter(|name| self.contains(name.as_str())).cloned().collect();
        for name in &spoofed {
            upstream.remove(name);
        }
    }

    fn contains(&self, name: &str) -> bool {
        let listed = self.lengths.get(first_letter(name)).is_some_and(|lengths| lengths & length_bit(name) != 0)
            && (RESERVED.iter().any(|reserved| folds_to(name, reserved))
                || self.named.iter().any(|reserved| folds_to(name, reserved.as_str())));
        listed || RESERVED_FAMILIES.iter().any(|family| name.get(..family.len()).is_some_and(|start| folds_to(start, family)))
    }
}

fn length_bit(name: &str) -> u64 {
    1 << (name.len() % 64)
}

fn first_letter(name: &str) -> usize {
    usize::from(name.bytes().next().map_or(0, fold) % 32)
}

/// How the caller speaks: as a trusted proxy heard it, or as we do. Two words are no word to believe.
pub fn scheme<'a>(headers: &impl Fields<'a>, trusted: bool, secure: bool) -> &'static str {
    let mut lines = headers.lines(&X_FORWARDED_PROTO);
    match (lines.next().filter(|_| trusted), lines.next()) {
        (Some(b"http"), None) => "http",
        (Some(b"https"), None) => "https",
        _ if secure => "https",
        _ => "http",
    }
}

static COOKIE: HeaderName = header::COOKIE;
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Where a request came from, as the upstream is told.
struct Origin {
    /// What trusted proxies wrote and the one we heard, or only whom we heard.
    forwarded_for: Vec<u8>,
    proto: &'static str,
    /// As a trusted proxy heard it; else it is the host that was asked for.
    host: Option<Vec<u8>>,
}

impl Origin {
    fn of<'a>(headers: &impl Fields<'a>, connection: &Connection<'_>) -> Self {
        let trusted = connection.through_trusted_proxy;
        // As long as the longest address, so that one caller that came directly takes one piece of memory.
        let mut forwarded_for = Vec::with_capacity(45);
        let mut host = None;
        if trusted {
            for line in headers.lines(&X_FORWARDED_FOR) {
                forwarded_for.extend_from_slice(line);
                forwarded_for.extend_from_slice(b", ");
            }
            // Two lines are no word to believe.
            let mut lines = headers.lines(&X_FORWARDED_HOST);
            host = lines.next().filter(|_| lines.next().is_none()).map(<[u8]>::to_vec);
        }
        push_address(&mut forwarded_for, connection.peer.unwrap_or(connection.client).to_canonical());
        Self { forwarded_for, proto: scheme(headers, trusted, connection.secure), host }
    }

    fn set<'a>(&self, upstream: &mut impl Fields<'a>, connection: &Connection<'_>) {
        upstream.set(&X_FORWARDED_PROTO, self.proto.as_bytes());
        upstream.set(&X_REQUEST_ID, connection.request_id.as_bytes());
        upstream.set(&X_FORWARDED_FOR, &self.forwarded_for);
        upstream.set(&X_FORWARDED_HOST, self.host.as_deref().unwrap_or(connection.host.as_bytes()));
    }
}

static X_CLIENT_CERT_CN: HeaderName = HeaderName::from_static("x-client-cert-cn");
static X_CLIENT_CERT_SAN: HeaderName = HeaderName::from_static("x-client-cert-san");
static X_CLIENT_CERT_FINGERPRINT: HeaderName = HeaderName::from_static("x-client-cert-fingerprint");

/// Says whose certificate came with the request, whoever it is taken for: each name with its type, for `alice` is another as a host.
fn set_certificate<'a>(upstream: &mut impl Fields<'a>, certificate: &ClientCertificate) {
    let typed = [("URI:", &certificate.uris), ("DNS:", &certificate.dns_names), ("email:", &certificate.emails)];
    let names = typed.into_iter().flat_map(|(kind, names)| names.iter().map(move |name| Cow::Owned(format!("{kind}{name}"))));
    let (mut common_name, mut alternative, mut fingerprint) = (String::new(), String::new(), String::new());
    certificate.common_name.iter().for_each(|name| escape(name, &mut common_name));
    escape_list(names, &mut alternative);
    certificate.fingerprint.iter().for_each(|byte| {
        let _ = write!(fingerprint, "{byte:02x}");
    });
    for (name, value) in [(&X_CLIENT_CERT_CN, common_name), (&X_CLIENT_CERT_SAN, alternative), (&X_CLIENT_CERT_FINGERPRINT, fingerprint)] {
        if !value.is_empty() {
            upstream.set(name, value.as_bytes());
        }
    }
}

/// What is set from every identity that has it, unless the policy sets the header otherwise.
const STANDARD: [(&str, TemplatePart); 8] = [
    ("x-user-id", TemplatePart::Subject),
    ("x-consumer-id", TemplatePart::Consumer),
    ("x-client-id", TemplatePart::Client),
    ("x-key-id", TemplatePart::KeyId),
    ("x-scopes", TemplatePart::Scopes),
    ("x-roles", TemplatePart::Roles),
    ("x-auth-method", TemplatePart::Method),
    ("x-plan", TemplatePart::Plan),
];

/// The value of a template, written into `text`; none when the identity, absent on public routes, lacks one of its parts, or when nothing is
/// left to say.
fn fill(template: &[TemplatePart], identity: Option<&Identity>, text: &mut String) -> Option<()> {
    text.clear();
    for part in template {
        match (part, identity) {
            (TemplatePart::Text(literal), _) => text.push_str(literal),
            (_, None) => return None,
            (TemplatePart::Subject, Some(identity)) => escape(identity.subject.as_deref()?, text),
            (TemplatePart::Consumer, Some(identity)) => escape(identity.consumer.as_deref()?, text),
            (TemplatePart::Client, Some(identity)) => escape(identity.client.as_deref()?, text),
            (TemplatePart::KeyId, Some(identity)) => escape(identity.key_id.as_deref()?, text),
            (TemplatePart::Plan, Some(identity)) => escape(identity.plan.as_deref()?, text),
            (TemplatePart::Method, Some(identity)) => {
                for (at, part) in identity.parts().enumerate() {
                    text.push_str(if at == 0 { "" } else { " " });
                    text.push_str(part.method.label());
                }
            }
            (TemplatePart::Scopes, Some(identity)) => escape_list(identity.scopes.iter().map(|scope| Cow::Borrowed(&**scope)), text)?,
            (TemplatePart::Roles, Some(identity)) => escape_list(identity.roles.iter().map(|role| Cow::Borrowed(&**role)), text)?,
            (TemplatePart::Claim(path), Some(identity)) => match identity.claim(path)? {
                Value::Array(elements) => escape_list(elements.iter().map(scalar).collect::<Option<Vec<_>>>()?.into_iter(), text)?,
                claim => escape(&scalar(claim)?, text),
            },
        }
    }
    (!text.is_empty()).then_some(())
}

fn scalar(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(_) | Value::Bool(_) => Some(Cow::Owned(value.to_string())),
        Value::Array(_) | Value::Object(_) | Value::Null => None,
    }
}

/// Writes text so that it stays one value in one line whatever is in it, and can be read back: bytes other than visible ASCII and inner
/// spaces are percent-encoded, and so is `%` itself, else `a%0A` would be two texts.
fn escape(text: &str, output: &mut String) {
    if text.bytes().all(stands_for_itself) {
        return output.push_str(text);
    }
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        let inner_space = byte == b' ' && at != 0 && at != last;
        push(byte, inner_space, output);
    }
}

/// The same for a list separated by spaces: a space inside an element is encoded, lest one role be read as two.
fn escape_list<'a>(elements: impl Iterator<Item = Cow<'a, str>>, output: &mut String) -> Option<()> {
    let mut separator = "";
    for element in elements.filter(|element| !element.is_empty()) {
        output.push_str(separator);
        if element.bytes().all(stands_for_itself) {
            output.push_str(&element);
        } else {
            element.bytes().for_each(|byte| push(byte, false, output));
        }
        separator = " ";
    }
    (!separator.is_empty()).then_some(())
}

fn stands_for_itself(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'%'
}

fn push(byte: u8, space_allowed: bool, output: &mut String) {
    if stands_for_itself(byte) || (byte == b' ' && space_allowed) {
        output.push(char::from(byte));
    } else {
        let _ = write!(output, "%{byte:02X}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{At, Place};
    use crate::request::{Method, framing};
    use crate::route::fields::FieldList;
    use http::HeaderMap;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::HashSet;

    fn identity() -> Identity {
        let claims = json!({"tenant": "acme", "level": 7, "groups": ["a b", "c"], "nested": {"x": true, "o": {}}, "mixed": ["a", null]});
        Identity {
            subject: Some("alice".into()),
            consumer: Some("acme".into()),
            scopes: ["orders:read".into(), "orders:write".into()].into(),
            plan: Some("gold".into()),
            claims: claims.as_object().unwrap().clone(),
            ..Identity::new(Method::Jwt, "customers".into(), [0; 32])
        }
    }

    fn at<T>(value: T) -> At<T> {
        At { value, place: Place { file: "f".into(), line: 1, column: 1, path: "p".into() } }
    }

    fn policy(headers: &[(&'static str, &[TemplatePart])], token: Token) -> config::Forward {
        let headers = headers.iter().map(|(name, template)| (at(HeaderName::from_static(name)), at(template.to_vec()))).collect();
        config::Forward { headers, ..config::Forward::of(token) }
    }

    fn header_location(name: &'static str, scheme: Option<&str>) -> Location {
        Location::Header { name: HeaderName::from_static(name), scheme: scheme.map(Arc::from) }
    }

    fn credentials() -> Credentials {
        let customers =
            [header_location("authorization", Some("Bearer")), Location::Cookie("session".into()), Location::Query("access_token".into())];
        let partners = [header_location("x-api-key", None), Location::Query("api_key".into())];
        Credentials::new([(&Arc::from("customers"), &customers[..]), (&Arc::from("partners"), &partners[..])].into_iter())
    }

    fn forward(headers: &[(&'static str, &[TemplatePart])], token: Token) -> Forward {
        Forward::compile(&policy(headers, token), credentials(), headers.iter().map(|(name, _)| HeaderName::from_static(name)).collect())
    }

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn filled(template: &[TemplatePart], identity: &Identity) -> Option<String> {
        let mut text = String::new();
        fill(template, Some(identity), &mut text).map(|()| text)
    }

    /// What the upstream sees, without the headers about the connection.
    fn seen(forward: &Forward, lines: &[(&str, &str)], identity: Option<&Identity>) -> Vec<(String, String)> {
        let (sent, id) = (headers(lines), HeaderValue::from_static("id"));
        let mut upstream = sent.clone();
        forward.apply(&mut upstream, identity, &connection(&id, false));
        let mut list = FieldList::new(&sent);
        forward.apply(&mut list, identity, &connection(&id, false));
        assert_eq!(list.names().collect::<HashSet<_>>(), upstream.keys().collect(), "by either way the same");
        for name in upstream.keys() {
            assert!(list.lines(name).eq(Fields::lines(&upstream, name)), "{name}");
        }
        let about_connection = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id"];
        let mut seen: Vec<_> = upstream
            .iter()
            .filter(|(name, _)| !about_connection.contains(&name.as_str()))
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        seen.sort();
        seen
    }

    fn connection(request_id: &HeaderValue, through_trusted_proxy: bool) -> Connection<'_> {
        let peer: IpAddr = "::ffff:10.0.0.5".parse().unwrap();
        Connection {
            client: "192.0.2.1".parse().unwrap(),
            peer: Some(peer),
            through_trusted_proxy,
            secure: true,
            host: "gw.test:8443",
            request_id,
            certificate: None,
        }
    }

    fn lines(lines: &[(&str, &str)]) -> Vec<(String, String)> {
        lines.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const PROVEN: &[(&str, &str)] = &[
        ("x-auth-method", "jwt"),
        ("x-consumer-id", "acme"),
        ("x-plan", "gold"),
        ("x-scopes", "orders:read orders:write"),
        ("x-user-id", "alice"),
    ];

    #[test]
    fn each_method_of_a_principal_with_several_credentials_is_named() {
        let key = Identity::new(Method::ApiKey, "partners".into(), [1; 32]);
        let both = Identity { beside: vec![Arc::new(key)], ..identity() };
        assert_eq!(filled(&[TemplatePart::Method], &both).as_deref(), Some("jwt api_key"));
    }

    #[test]
    fn the_upstream_sees_what_was_proven_and_nothing_that_the_caller_says() {
        let forward = forward(&[("x-tenant", &[TemplatePart::Claim("tenant".into())])], Token::Strip);
        let spoofed = &[
            ("x-user-id", "admin"),
            ("x-user-id", "root"),
            ("x_user_id", "admin"),
            ("x-user_id", "admin"),
            ("x.user.id", "admin"),
            ("x~user~id", "admin"),
            ("x-roles", ""),
            ("x-key-id", "k"),
            ("x-client-cert-cn", "admin"),
            ("x_client_cert_serial", "1"),
            ("x_tenant", "other"),
            ("x-ssl-client-verify", "SUCCESS"),
            ("x_ssl_client_s_dn", "CN=admin"),
            ("x-original-url", "/admin"),
            ("client-cert", ":AA==:"),
            ("forwarded", "for=10.0.0.1"),
        ];
        let mut expected = lines(PROVEN);
        expected.insert(4, ("x-tenant".to_owned(), "acme".to_owned()));
        assert_eq!(seen(&forward, spoofed, Some(&identity())), expected);
        assert_eq!(seen(&forward, spoofed, None), []);
    }

    #[test]
    fn a_public_route_sets_what_needs_no_identity() {
        let constant = [TemplatePart::Text("edge-1".into())];
        let named = [TemplatePart::Text("user ".into()), TemplatePart::Subject];
        let forward = forward(&[("x-edge", &constant), ("x-named", &named)], Token::Strip);
        let spoofed = &[("x-edge", "mine"), ("x-named", "user alice")];
        assert_eq!(seen(&forward, spoofed, None), lines(&[("x-edge", "edge-1")]));
    }

    #[test]
    fn headers_of_the_callers_own_pass() {
        let own = &[("accept", "*/*"), ("x-api-version", "2"), ("x-ssl", "1"), ("x-user-ids", "1"), ("xuserid", "x")];
        assert_eq!(seen(&forward(&[], Token::Strip), own, None), lines(own));
    }

    #[test]
    fn every_way_to_write_a_reserved_name_is_found() {
        let named: Arc<[HeaderName]> = [HeaderName::from_static("x-tenant")].into();
        let reserved = Reserved::new(named.clone());
        assert!(RESERVED.is_sorted());
        for name in RESERVED.into_iter().chain(named.iter().map(HeaderName::as_str)).chain(["x-ssl-client-cert"]) {
            for separator in ["-", "_", ".", "~", "!", "|"] {
                assert!(reserved.contains(&name.replace('-', separator)), "{name} {separator}");
            }
        }
        for name in ["host", "accept", "content-type", "x-ssl-client", "x-tenants", "", "x-tenan"] {
            assert!(!reserved.contains(name), "{name}");
        }
    }

    #[test]
    fn no_credential_of_the_route_goes_on_unless_it_was_accepted_and_is_kept() {
        let sent = &[("authorization", "bearer abc"), ("cookie", "a=1; session=s; b=2"), ("x-api-key", "ck")];
        let proven = |more: &[(&str, &str)]| {
            let mut all = lines(PROVEN);
            all.extend(lines(more));
            all.sort();
            all
        };
        assert_eq!(seen(&forward(&[], Token::Strip), sent, Some(&identity())), proven(&[("cookie", "a=1; b=2")]));
        let keep = forward(&[], Token::Keep);
        assert_eq!(seen(&keep, sent, Some(&identity())), proven(&[("authorization", "bearer abc"), ("cookie", "a=1; b=2")]));
        let by_cookie = &[("authorization", "Basic eDp5"), ("cookie", "a=1; session=s; b=2"), ("x-api-key", "ck")];
        let expected = proven(&[("authorization", "Basic eDp5"), ("cookie", "a=1; session=s; b=2")]);
        assert_eq!(seen(&keep, by_cookie, Some(&identity())), expected);
        let by_key = Identity { authenticator: "partners".into(), ..identity() };
        assert_eq!(seen(&keep, sent, Some(&by_key)), proven(&[("cookie", "a=1; b=2"), ("x-api-key", "ck")]));
        assert_eq!(seen(&keep, sent, None), lines(&[("cookie", "a=1; b=2")]));
        assert_eq!(seen(&keep, &[("cookie", "session=s")], None), []);
        let hidden = &[("authorization", "Basic eDp5, Bearer abc")];
        assert_eq!(seen(&keep, hidden, None), []);
        // To CGI these are the key that was checked, and nobody checked them.
        let aliases = &[("x-api-key", "ck"), ("x_api_key", "other"), ("x-api_key", "other"), ("x.api.key", "other")];
        assert_eq!(seen(&keep, aliases, Some(&by_key)), proven(&[("x-api-key", "ck")]));
        assert_eq!(seen(&forward(&[], Token::Strip), aliases, None), []);
    }

    #[test]
    fn credentials_leave_the_query_likewise() {
        let query = "a=1&access_token=t&api_key=k";
        let (strip, keep) = (forward(&[], Token::Strip), forward(&[], Token::Keep));
        assert_eq!(strip.query(query, Some(&identity())), "a=1");
        assert_eq!(keep.query(query, None), "a=1");
        assert_eq!(keep.query(query, Some(&identity())), "a=1&access_token=t");
        assert_eq!(keep.query(query, Some(&Identity { authenticator: "partners".into(), ..identity() })), "a=1&api_key=k");
        assert_eq!(keep.query(query, Some(&Identity { authenticator: "unknown".into(), ..identity() })), "a=1");
    }

    #[test]
    fn a_template_lacking_a_part_leaves_the_header_out() {
        use TemplatePart::*;
        let claim = |path: &str| Claim(path.into());
        for (template, expected) in [
            (&[Subject][..], Some("alice")),
            (&[Text("u=".into()), Subject, Text("; m=".into()), Method], Some("u=alice; m=jwt")),
            (&[Client], None),
            (&[Text("c=".into()), Client], None),
            (&[KeyId], None),
            (&[Roles], None),
            (&[Scopes], Some("orders:read orders:write")),
            (&[claim("tenant")], Some("acme")),
            (&[claim("level")], Some("7")),
            (&[claim("nested.x")], Some("true")),
            (&[claim("groups")], Some("a%20b c")),
            (&[claim("mixed")], None),
            (&[claim("nested")], None),
            (&[claim("none")], None),
        ] {
            let value = filled(template, &identity());
            assert_eq!(value.as_deref(), expected, "{template:?}");
        }
    }

    #[test]
    fn a_policy_may_set_a_standard_header_otherwise() {
        let forward = forward(&[("x-user-id", &[TemplatePart::Claim("tenant".into())]), ("x-plan", &[TemplatePart::KeyId])], Token::Strip);
        let mut expected = lines(PROVEN);
        expected.retain(|(name, _)| name != "x-plan");
        expected.iter_mut().filter(|(name, _)| name == "x-user-id").for_each(|(_, value)| "acme".clone_into(value));
        assert_eq!(seen(&forward, &[("x-plan", "gold")], Some(&identity())), expected);
    }

    #[test]
    fn no_text_can_end_its_header_or_be_taken_for_another() {
        for (subject, expected) in [
            ("alice", "alice"),
            ("a\r\nX-Admin: 1", "a%0D%0AX-Admin: 1"),
            ("a%0Ab", "a%250Ab"),
            ("caf\u{e9}", "caf%C3%A9"),
            (" a b ", "%20a b%20"),
            (" ", "%20"),
            ("\0\t\x7f", "%00%09%7F"),
            ("\u{202e}", "%E2%80%AE"),
        ] {
            let mut escaped = String::new();
            escape(subject, &mut escaped);
            assert_eq!(escaped, expected);
        }
        let roles = Identity { roles: ["user admin".into(), "ops".into(), "".into()].into(), ..identity() };
        assert_eq!(filled(&[TemplatePart::Roles], &roles).as_deref(), Some("user%20admin ops"));
        assert_eq!(filled(&[TemplatePart::Subject], &Identity { subject: Some("".into()), ..identity() }), None);
    }

    #[test]
    fn where_a_request_came_from_is_ours_to_say() {
        let request_id = HeaderValue::from_static("0123");
        let sent = &[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "public.test"),
            ("x-request-id", "theirs"),
        ];
        for (trusted, expected) in
            [(false, ["10.0.0.5", "https", "gw.test:8443"]), (true, ["1.1.1.1, 192.0.2.1, 10.0.0.5", "http", "public.test"])]
        {
            let mut upstream = headers(sent);
            forward(&[], Token::Strip).apply(&mut upstream, None, &connection(&request_id, trusted));
            assert_eq!(["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"].map(|name| upstream[name].to_str().unwrap()), expected);
            assert_eq!((upstream["x-request-id"].clone(), upstream.len()), (request_id.clone(), 4));
        }
        let mut upstream = headers(&[("x-forwarded-proto", "gopher"), ("x-forwarded-host", "a"), ("x-forwarded-host", "b")]);
        forward(&[], Token::Strip).apply(&mut upstream, None, &connection(&request_id, true));
        assert_eq!(
            (&upstream["x-forwarded-proto"], &upstream["x-forwarded-host"]),
            (&"https".parse().unwrap(), &"gw.test:8443".parse().unwrap())
        );
    }

    #[test]
    fn every_header_of_the_spoofing_collection_is_refused_or_changes_nothing() {
        #[derive(serde::Deserialize)]
        struct Row {
            id: String,
            header_block_b64: String,
            expect: String,
        }
        use base64::prelude::{BASE64_STANDARD, Engine};
        let forward = forward(&[], Token::Strip);
        let rows = include_str!("../../tests/data/header-spoof/headers.jsonl");
        for line in rows.lines() {
            let row: Row = serde_json::from_str(line).unwrap();
            let block = BASE64_STANDARD.decode(&row.header_block_b64).unwrap();
            let head = [b"GET / HTTP/1.1\r\nHost: gw.test\r\n", &block[..], b"\r\n"].concat();
            let parsed: Option<HeaderMap> = block
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
                .chain([&b"Host: gw.test"[..]])
                .map(|line| {
                    let colon = line.iter().position(|byte| *byte == b':')?;
                    let name = HeaderName::from_bytes(&line[..colon]).ok()?;
                    Some((name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?))
                })
                .collect();
            let sound = parsed.filter(|sent| framing::check(http::Version::HTTP_11, &http::Method::GET, sent, Some(&head)).is_ok());
            let Some(sent) = sound else {
                assert!(row.expect.contains("400"), "{}: refused, but {}", row.id, row.expect);
                continue;
            };
            assert_ne!(row.expect, "400", "{}", row.id);
            let mut upstream = sent.clone();
            let request_id = HeaderValue::from_static("id");
            let plain = Connection { secure: false, ..connection(&request_id, false) };
            forward.apply(&mut upstream, Some(&identity()), &plain);
            assert_eq!(upstream.get_all("x-user-id").iter().collect::<Vec<_>>(), ["alice"], "{}", row.id);
            if row.expect == "strip_or_400" {
                for (name, value) in &sent {
                    assert!(name == "host" || !upstream.get_all(name).iter().any(|passed| passed == value), "{}: {name}", row.id);
                }
            }
            if row.expect == "forward" {
                assert!(sent.iter().all(|(name, value)| upstream.get(name) == Some(value)), "{}", row.id);
            }
        }
        assert_eq!(rows.lines().count(), 37);
    }

    proptest! {
        #[test]
        fn any_text_is_one_value_that_can_be_read_back(text in "\\PC{0,12}|[ -~\r\n\t%]{0,12}") {
            let mut escaped = String::new();
            escape(&text, &mut escaped);
            let value = HeaderValue::from_str(&escaped).unwrap();
            prop_assert!(value.as_bytes().iter().all(|byte| (0x20..0x7f).contains(byte)) && value.as_bytes().trim_ascii() == value.as_bytes());
            prop_assert_eq!(percent_encoding::percent_decode_str(&escaped).decode_utf8().unwrap(), text);
        }

        #[test]
        fn any_headers_are_answered(lines in proptest::collection::vec(("[a-z_.~-]{1,20}", proptest::collection::vec(0x20u8..=0xff, 0..20)), 0..8), trusted: bool) {
            let mut upstream = HeaderMap::new();
            for (name, value) in lines.iter().chain([&("cookie".to_owned(), vec![0xff]), &("authorization".to_owned(), vec![0xff])]) {
                if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
                    upstream.append(name, value);
                }
            }
            forward(&[], Token::Keep).apply(&mut upstream, Some(&identity()), &connection(&HeaderValue::from_static("id"), trusted));
            prop_assert_eq!(upstream.get_all("x-user-id").iter().count(), 1);
        }
    }
}
