//! Which route a request takes: the most specific one, whatever the order in the file and however many there are.
//!
//! Host first (exact, then `*.suffix` from the longest, then any), then path (literal before `{name}` before `{*rest}`, segment by segment),
//! then method. A host whose paths do not match gives way to the next; a path whose methods do not match does not: the answer is 405 and
//! never a less specific route, which may be less protected.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use http::Method;

use crate::request::{Parameters, Rejection, host, path};

/// The most parameters that a path pattern may have.
pub const MOST_PARAMETERS: usize = 8;

/// A route as the router sees it.
#[derive(Debug, Clone)]
pub struct Entry<'a, T> {
    /// Exact hosts and `*.suffix` wildcards; empty: any host.
    pub hosts: Vec<&'a str>,
    /// Literal segments, `{name}`, and `{*rest}` at the end.
    pub path: &'a str,
    /// Empty: any method. `HEAD` is admitted wherever `GET` is.
    pub methods: &'a [Method],
    /// What is found.
    pub value: T,
}

/// What is wrong with an entry, by its place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A host, by its place in the entry's list, is none.
    Host {
        /// The entry.
        entry: usize,
        /// The host.
        host: usize,
        /// What was expected.
        expected: &'static str,
    },
    /// The path is no pattern.
    Path {
        /// The entry.
        entry: usize,
        /// What was expected.
        expected: &'static str,
    },
    /// An earlier entry has the same host and path and one of the methods.
    Conflict {
        /// The entry.
        entry: usize,
        /// The earlier entry.
        earlier: usize,
    },
}

/// Where a route stands in its router: kept by a request in place of a reference that all requests of the route would count in one place.
#[derive(Debug, Clone, Copy)]
pub struct Place(usize);

/// Finds the route of a request.
#[derive(Debug)]
pub struct Router<T> {
    exact: HashMap<Box<str>, Node, ahash::RandomState>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Node, ahash::RandomState>,
    any: Node,
    values: Vec<T>,
}

impl<T> Router<T> {
    /// Compiles the routes, or says everything that is wrong with them.
    pub fn compile(entries: Vec<Entry<'_, T>>) -> Result<Self, Vec<Fault>> {
        let mut router = Self { exact: HashMap::default(), wildcard: HashMap::default(), any: Node::default(), values: Vec::new() };
        let mut faults = Vec::new();
        for (entry, Entry { hosts, path, methods, value }) in entries.into_iter().enumerate() {
            router.values.push(value);
            let pattern = match parse_pattern(path) {
                Ok(pattern) => pattern,
                Err(expected) => {
                    faults.push(Fault::Path { entry, expected });
                    continue;
                }
            };
            if hosts.is_empty() {
                faults.extend(router.any.insert(&pattern, methods, entry));
            }
            for (place, host) in hosts.into_iter().enumerate() {
                match router.tree(host) {
                    Ok(tree) => faults.extend(tree.insert(&pattern, methods, entry)),
                    Err(expected) => faults.push(Fault::Host { entry, host: place, expected }),
                }
            }
        }
        if faults.is_empty() { Ok(router) } else { Err(faults) }
    }

    /// The route for a canonical host and path, and in `parameters` the values of its pattern, percent-encoded as they came.
    ///
    /// Refused with [`Rejection::NoRoute`] or [`Rejection::MethodNotAllowed`].
    pub fn find<'a>(
        &'a self,
        host: &str,
        path: &'a str,
        method: &Method,
        parameters: &mut ParametersBuffer<'a>,
    ) -> Result<&'a T, Rejection> {
        let place = self.locate(host, path, method, parameters)?;
        self.get(place).ok_or(Rejection::Internal("route_without_value"))
    }

    /// What stands at a place of this router.
    pub fn get(&self, place: Place) -> Option<&T> {
        self.values.get(place.0)
    }

    /// Where the route stands that [`find`](Self::find) finds.
    pub fn locate<'a>(
        &'a self,
        host: &str,
        path: &'a str,
        method: &Method,
        parameters: &mut ParametersBuffer<'a>,
    ) -> Result<Place, Rejection> {
        let segments = path.strip_prefix('/').ok_or(Rejection::NoRoute)?;
        let leaf = self.trees(host).find_map(|tree| {
            parameters.length = 0;
            tree.search(Some(segments), parameters)
        });
        let leaf = leaf.ok_or(Rejection::NoRoute)?;
        let endpoint = leaf.endpoint(method).ok_or_else(|| Rejection::MethodNotAllowed(leaf.allow.clone()))?;
        parameters.name(&endpoint.names);
        Ok(Place(endpoint.entry))
    }

    /// The trees that speak for a host, the most specific first.
    fn trees<'r>(&'r self, host: &str) -> impl Iterator<Item = &'r Node> {
        let suffixes = host.match_indices('.').filter_map(|(dot, _)| host.get(dot + 1..));
        let suffixes = suffixes.take(if self.wildcard.is_empty() { 0 } else { usize::MAX });
        self.exact.get(host).into_iter().chain(suffixes.filter_map(|suffix| self.wildcard.get(suffix))).chain([&self.any])
    }

    fn tree(&mut self, host: &str) -> Result<&mut Node, &'static str> {
        let (trees, name) = match host.strip_prefix("*.") {
            Some(suffix) => (&mut self.wildcard, suffix),
            None => (&mut self.exact, host),
        };
        match host::canonical(name) {
            // A port would be dropped in silence, and the route would answer on every port.
            Ok(canonical) if canonical.eq_ignore_ascii_case(name) => Ok(trees.entry(canonical.into()).or_default()),
            _ => Err("a host name without port, or `*.` and a host name"),
        }
    }
}

/// Room for the parameters of the route that is found; reused from search to search.
#[derive(Debug, Default)]
pub struct ParametersBuffer<'a> {
    pairs: [(&'a str, &'a str); MOST_PARAMETERS],
    length: usize,
}

impl<'a> ParametersBuffer<'a> {
    /// The parameters of the route that was found last.
    pub fn parameters(&self) -> Parameters<'_> {
        Parameters(self.pairs.get(..self.length).unwrap_or_default())
    }

    fn push(&mut self, value: &'a str) {
        if let Some(pair) = self.pairs.get_mut(self.length) {
            *pair = ("", value);
            self.length += 1;
        }
    }

    fn name(&mut self, names: &'a [Box<str>]) {
        for ((name, _), given) in self.pairs.iter_mut().zip(names) {
            *name = given;
        }
    }
}

/// The paths of one host as a tree of segments.
#[derive(Debug, Default)]
struct Node {
    /// By percent-decoded text, so that `%3A` does not take a request around the route that is written with `:`.
    literals: HashMap<Box<[u8]>, Node, ahash::RandomState>,
    parameter: Option<Box<Node>>,
    rest: Option<Leaf>,
    leaf: Option<Leaf>,
}

impl Node {
    fn insert(&mut self, pattern: &[Segment], methods: &[Method], entry: usize) -> Option<Fault> {
        let mut node = self;
        let mut names = Vec::new();
        for segment in pattern {
            match segment {
                Segment::Literal(text) => node = node.literals.entry(text.clone()).or_default(),
                Segment::Parameter(name) => {
                    names.push(name.clone());
                    node = node.parameter.get_or_insert_default();
                }
                Segment::Rest(name) => {
                    names.push(name.clone());
                    return node.rest.get_or_insert_default().insert(methods, names, entry);
                }
            }
        }
        node.leaf.get_or_insert_default().insert(methods, names, entry)
    }

    /// The most specific leaf for what is left of a path; `None` is left when the path ended without a slash.
    ///
    /// It goes as deep as the pattern tree, not as the path, and visits no node twice.
    fn search<'r, 'p>(&'r self, left: Option<&'p str>, values: &mut ParametersBuffer<'p>) -> Option<&'r Leaf> {
        let Some(left) = left else {
            if self.leaf.is_some() {
                return self.leaf.as_ref();
            }
            let rest = self.rest.as_ref()?;
            values.push("");
            return Some(rest);
        };
        let (segment, after) = match left.split_once('/') {
            Some((segment, after)) => (segment, Some(after)),
            None => (left, None),
        };
        let literal = self.literals.get(decoded(segment).as_ref());
        if let Some(leaf) = literal.and_then(|node| node.search(after, values)) {
            return Some(leaf);
        }
        if let Some(node) = self.parameter.as_ref().filter(|_| !segment.is_empty()) {
            let before = values.length;
            values.push(segment);
            if let Some(leaf) = node.search(after, values) {
                return Some(leaf);
            }
            values.length = before;
        }
        let rest = self.rest.as_ref()?;
        values.push(left);
        Some(rest)
    }
}

/// What stands at the end of a pattern: routes that differ in their methods.
#[derive(Debug, Default)]
struct Leaf {
    endpoints: Vec<Endpoint>,
    /// The value of `Allow`.
    allow: Arc<str>,
}

#[derive(Debug)]
struct Endpoint {
    methods: Box<[Method]>,
    names: Box<[Box<str>]>,
    entry: usize,
}

impl Leaf {
    fn insert(&mut self, methods: &[Method], names: Vec<Box<str>>, entry: usize) -> Option<Fault> {
        let overlaps = |other: &&Endpoint| {
            methods.is_empty() || other.methods.is_empty() || methods.iter().any(|method| other.methods.contains(method))
        };
        let conflict = self.endpoints.iter().find(overlaps).map(|other| Fault::Conflict { entry, earlier: other.entry });
        self.endpoints.push(Endpoint { methods: methods.into(), names: names.into(), entry });
        let mut allow: BTreeSet<&str> = self.endpoints.iter().flat_map(|endpoint| &endpoint.methods).map(Method::as_str).collect();
        if allow.contains("GET") {
            allow.insert("HEAD");
        }
        self.allow = allow.into_iter().collect::<Vec<_>>().join(", ").into();
        conflict
    }

    fn endpoint(&self, method: &Method) -> Option<&Endpoint> {
        let listed = |method: &Method| {
            let admits = |endpoint: &&Endpoint| endpoint.methods.is_empty() || endpoint.methods.contains(method);
            self.endpoints.iter().find(admits)
        };
        listed(method).or_else(|| if *method == Method::HEAD { listed(&Method::GET) } else { None })
    }
}

enum Segment {
    Literal(Box<[u8]>),
    Parameter(Box<str>),
    Rest(Box<str>),
}

fn parse_pattern(pattern: &str) -> Result<Vec<Segment>, &'static str> {
    let segments = pattern.strip_prefix('/').ok_or("a path that begins with `/`")?;
    let mut parsed = Vec::new();
    let mut names = BTreeSet::new();
    let mut segments = segments.split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        let parameter = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let Some(parameter) = parameter else {
            parsed.push(Segment::Literal(parse_literal(segment, last)?));
            continue;
        };
        let name = parameter.strip_prefix('*').unwrap_or(parameter);
        let first_is_letter = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !first_is_letter || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err("a parameter named by letters, digits and `_`, such as `{order_id}`");
        }
        if !names.insert(name) {
            return Err("parameters with different names");
        }
        parsed.push(match parameter.starts_with('*') {
            true if !last => return Err("`{*name}` at the end of the path only"),
            true => Segment::Rest(name.into()),
            false => Segment::Parameter(name.into()),
        });
    }
    if names.len() > MOST_PARAMETERS {
        return Err("at most 8 parameters");
    }
    Ok(parsed)
}

/// A literal segment that some canonical path has; any other would stand in the file and never match.
fn parse_literal(segment: &str, last: bool) -> Result<Box<[u8]>, &'static str> {
    if segment.contains(['{', '}', '*']) {
        return Err("a parameter that is a whole segment, such as `{name}`, or `{*rest}` at the end");
    }
    if segment.is_empty() {
        return if last { Ok(Box::default()) } else { Err("a path without empty segments") };
    }
    let absolute = format!("/{segment}");
    match path::canonical(absolute.as_bytes()) {
        Ok(path::Canonical { path, query: None }) if path.len() > 1 => Ok(decoded(path.trim_start_matches('/')).into()),
        _ => Err("a path without dot segments, `;`, `?`, `#`, spaces or doubtful escapes; what is not ASCII is percent-encoded"),
    }
}

fn decoded(segment: &str) -> Cow<'_, [u8]> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment.as_bytes());
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut decoded = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = match rest {
            [b'%', high, low, after @ ..] => digit(*high).zip(digit(*low)).map(|(high, low)| ((high * 16 + low) as u8, after)),
            _ => None,
        };
        let (byte, after) = escaped.unwrap_or((byte, after));
        decoded.push(byte);
        rest = after;
    }
    Cow::Owned(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANY: &[Method] = &[];

    fn entry<'a>(hosts: &[&'a str], path: &'a str, methods: &'a [Method], value: &'static str) -> Entry<'a, &'static str> {
        Entry { hosts: hosts.to_vec(), path, methods, value }
    }

    fn paths(patterns: &[&'static str]) -> Router<&'static str> {
        Router::compile(patterns.iter().map(|pattern| entry(&[], pattern, ANY, pattern)).collect()).unwrap()
    }

    /// The value of the route, then its parameters.
    fn find(router: &Router<&'static str>, host: &str, path: &str, method: Method) -> Result<String, Rejection> {
        let mut buffer = ParametersBuffer::default();
        let value = router.find(host, path, &method, &mut buffer)?;
        Ok(buffer.parameters().0.iter().fold((*value).to_owned(), |found, (name, value)| format!("{found} {name}={value}")))
    }

    #[test]
    fn the_most_specific_path_wins_whatever_the_order() {
        let mut patterns =
            ["/{*rest}", "/orders/{*rest}", "/orders/{id}", "/orders/{id}/lines", "/orders/new", "/{area}/new/{x}", "/orders", "/"];
        for _ in 0..2 {
            patterns.reverse();
            let router = paths(&patterns);
            for (path, expected) in [
                ("/", "/"),
                ("/orders", "/orders"),
                ("/orders/", "/orders/{*rest} rest="),
                ("/orders/new", "/orders/new"),
                ("/orders/7", "/orders/{id} id=7"),
                ("/orders/7/", "/orders/{*rest} rest=7/"),
                ("/orders/7/lines", "/orders/{id}/lines id=7"),
                ("/orders/new/lines", "/orders/{id}/lines id=new"),
                ("/orders/new/x", "/orders/{*rest} rest=new/x"),
                ("/carts/new/x", "/{area}/new/{x} area=carts x=x"),
                ("/carts/new", "/{*rest} rest=carts/new"),
                ("/a%20b", "/{*rest} rest=a%20b"),
            ] {
                assert_eq!(find(&router, "h", path, Method::GET).as_deref(), Ok(expected), "{path}");
            }
        }
    }

    #[test]
    fn rest_may_be_empty_and_a_parameter_may_not() {
        let router = paths(&["/a/{*rest}", "/b/{name}", "/c"]);
        assert_eq!(find(&router, "h", "/a", Method::GET).as_deref(), Ok("/a/{*rest} rest="));
        assert_eq!(find(&router, "h", "/a/", Method::GET).as_deref(), Ok("/a/{*rest} rest="));
        for path in ["/b", "/b/", "/b/x/", "/b/x/y", "/c/", "/C", "/ab", "/", ""] {
            assert_eq!(find(&router, "h", path, Method::GET), Err(Rejection::NoRoute), "{path}");
        }
    }

    #[test]
    fn an_escape_leads_around_no_literal() {
        let router = paths(&["/{*rest}", "/things:delete", "/a%20b", "/%C3%A9/x"]);
        assert_eq!(find(&router, "h", "/things%3Adelete", Method::GET).as_deref(), Ok("/things:delete"));
        assert_eq!(find(&router, "h", "/a%20b", Method::GET).as_deref(), Ok("/a%20b"));
        assert_eq!(find(&router, "h", "/%C3%A9/x", Method::GET).as_deref(), Ok("/%C3%A9/x"));
    }

    #[test]
    fn an_exact_host_precedes_a_wildcard_and_the_longest_wildcard_the_shorter() {
        let router = Router::compile(vec![
            entry(&[], "/{*rest}", ANY, "any"),
            entry(&["*.example.com"], "/{*rest}", ANY, "wide"),
            entry(&["*.eu.example.com"], "/{*rest}", ANY, "narrow"),
            entry(&["API.example.com", "[::1]"], "/v1", ANY, "exact"),
        ])
        .unwrap();
        for (host, path, expected) in [
            ("api.example.com", "/v1", "exact"),
            ("[::1]", "/v1", "exact"),
            ("api.example.com", "/v2", "wide rest=v2"),
            ("a.b.example.com", "/v1", "wide rest=v1"),
            ("a.eu.example.com", "/v1", "narrow rest=v1"),
            ("eu.example.com", "/v1", "wide rest=v1"),
            ("example.com", "/v1", "any rest=v1"),
            ("badexample.com", "/v1", "any rest=v1"),
            ("", "/v1", "any rest=v1"),
        ] {
            assert_eq!(find(&router, host, path, Method::GET).as_deref(), Ok(expected), "{host} {path}");
        }
    }

    #[test]
    fn the_path_is_chosen_before_the_method_so_that_a_wrong_method_never_reaches_a_weaker_route() {
        let router = Router::compile(vec![
            entry(&["h"], "/orders", &[Method::GET], "read"),
            entry(&["h"], "/orders", &[Method::POST, Method::PUT], "write"),
            entry(&["h"], "/{*rest}", ANY, "all"),
            entry(&[], "/orders", ANY, "any host"),
        ])
        .unwrap();
        assert_eq!(find(&router, "h", "/orders", Method::GET).as_deref(), Ok("read"));
        assert_eq!(find(&router, "h", "/orders", Method::HEAD).as_deref(), Ok("read"));
        assert_eq!(find(&router, "h", "/orders", Method::PUT).as_deref(), Ok("write"));
        for method in [Method::DELETE, Method::OPTIONS, Method::from_bytes(b"get").unwrap()] {
            let refused = find(&router, "h", "/orders", method);
            assert_eq!(refused, Err(Rejection::MethodNotAllowed("GET, HEAD, POST, PUT".into())));
        }
    }

    #[test]
    fn a_route_that_lists_head_is_taken_before_the_one_that_lists_get() {
        let routes = vec![entry(&[], "/", &[Method::GET], "get"), entry(&[], "/", &[Method::HEAD], "head")];
        assert_eq!(find(&Router::compile(routes).unwrap(), "h", "/", Method::HEAD).as_deref(), Ok("head"));
    }

    #[test]
    fn every_fault_is_reported_with_its_place() {
        let faults = Router::compile(vec![
            entry(&["a.test"], "/x/{id}", &[Method::GET, Method::POST], "0"),
            entry(&["A.test"], "/x/{name}", &[Method::POST], "1"),
            entry(&[], "/y", ANY, "2"),
            entry(&[], "/y", &[Method::GET], "3"),
            entry(&[], "/%79", &[Method::POST], "4"),
            entry(&["a.test:80", "*", "*.", "a b", "*.a.test"], "/z", ANY, "5"),
            entry(&[], "z", ANY, "6"),
        ])
        .err()
        .unwrap();
        let hosts: Vec<_> =
            faults.iter().filter_map(|fault| if let Fault::Host { entry: 5, host, .. } = fault { Some(*host) } else { None }).collect();
        assert_eq!(hosts, [0, 1, 2, 3]);
        for conflict in [(1, 0), (3, 2), (4, 2)] {
            assert!(faults.contains(&Fault::Conflict { entry: conflict.0, earlier: conflict.1 }), "{conflict:?} in {faults:?}");
        }
        assert!(matches!(faults.last(), Some(Fault::Path { entry: 6, .. })));
        assert_eq!(faults.len(), 8);
    }

    #[test]
    fn a_pattern_that_no_canonical_path_matches_is_refused() {
        for pattern in [
            "",
            "a",
            "//",
            "/a//b",
            "/./a",
            "/a/..",
            "/a;b",
            "/a%2fb",
            "/a%252e",
            "/a b",
            "/a?b",
            "/a#b",
            "/caf\u{e9}",
            "/*",
            "/a*",
            "/{a",
            "/a}",
            "/x{a}",
            "/{a}x",
            "/{a}{b}",
            "/{}",
            "/{*}",
            "/{1a}",
            "/{a-b}",
            "/{*a}/b",
            "/{a}/{a}",
            "/{a}/{*a}",
            "/{a}/{b}/{c}/{d}/{e}/{f}/{g}/{h}/{i}",
        ] {
            assert!(parse_pattern(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn whatever_some_upstream_reads_as_admin_is_refused_not_found_or_protected() {
        #[derive(serde::Deserialize)]
        struct Row {
            id: String,
            target_b64: String,
            reaches_admin_under: Vec<String>,
        }
        use base64::prelude::{BASE64_STANDARD, Engine};
        let router = Router::compile(vec![
            entry(&[], "/public/{*rest}", ANY, "public"),
            entry(&[], "/admin", ANY, "protected"),
            entry(&[], "/admin/{*rest}", ANY, "protected"),
        ])
        .unwrap();
        let rows = include_str!("../../tests/data/path-confusion/targets.jsonl");
        let mut dangerous = 0;
        for line in rows.lines() {
            let row: Row = serde_json::from_str(line).unwrap();
            let target = BASE64_STANDARD.decode(row.target_b64).unwrap();
            let outcome = path::canonical(&target).and_then(|canonical| {
                let mut buffer = ParametersBuffer::default();
                router.find("gw.test", &canonical.path, &Method::GET, &mut buffer).copied()
            });
            if !row.reaches_admin_under.is_empty() {
                dangerous += 1;
                assert_ne!(outcome, Ok("public"), "{}", row.id);
            }
            if row.id == "path-000" || row.id == "path-029" {
                assert_eq!(outcome, Ok("protected"), "{}", row.id);
            }
            if row.id == "path-110" {
                assert_eq!(outcome, Ok("public"));
            }
        }
        assert_eq!((rows.lines().count(), dangerous), (72, 56));
    }

    /// The rule of the first paragraph of this file, by trying every pattern.
    fn reference(patterns: &[String], path: &str) -> Option<usize> {
        let rank = |pattern: &str| -> Option<Vec<u8>> {
            let mut ranks = Vec::new();
            let mut left = path.strip_prefix('/');
            for segment in pattern.strip_prefix('/')?.split('/') {
                if segment.starts_with("{*") {
                    ranks.push(2);
                    return Some(ranks);
                }
                let (given, after) = left?.split_once('/').map_or((left?, None), |(given, after)| (given, Some(after)));
                match segment.starts_with('{') {
                    true if given.is_empty() => return None,
                    true => ranks.push(1),
                    false if segment != given => return None,
                    false => ranks.push(0),
                }
                left = after;
            }
            left.is_none().then_some(ranks)
        };
        let ranked = patterns.iter().enumerate().filter_map(|(at, pattern)| Some((rank(pattern)?, at)));
        ranked.min().map(|(_, at)| at)
    }

    proptest! {
        #[test]
        fn the_tree_agrees_with_trying_every_pattern(
            patterns in proptest::collection::vec(proptest::collection::vec(proptest::sample::select(vec!["a", "b", "{p}"]), 0..4), 1..12),
            ends in proptest::collection::vec(proptest::sample::select(vec!["", "/", "/{*rest}"]), 12),
            path in "(/[abc]){0,5}/?",
        ) {
            let mut written: Vec<String> = patterns.iter().zip(ends).map(|(segments, end)| {
                let path: String = segments.iter().enumerate().map(|(at, s)| if *s == "{p}" { format!("/{{p{at}}}") } else { format!("/{s}") }).collect();
                let path = path + end;
                if path.is_empty() { "/".to_owned() } else { path }
            }).collect();
            written.sort();
            written.dedup();
            let path = if path.is_empty() { "/".to_owned() } else { path };
            let entries = written.iter().enumerate().map(|(at, path)| Entry { hosts: vec![], path, methods: ANY, value: at }).collect();
            let router = Router::compile(entries).unwrap();
            let mut buffer = ParametersBuffer::default();
            let found = router.find("h", &path, &Method::GET, &mut buffer).ok().copied();
            prop_assert_eq!(found, reference(&written, &path));
        }

        #[test]
        fn any_pattern_and_any_path_are_answered(pattern in "[/{}*a-b%2;.]{0,16}|\\PC{0,12}", path in "\\PC{0,20}|[/a-b%2]{0,12}", host in "[a.*]{0,8}") {
            if let Ok(router) = Router::compile(vec![entry(&[&host], &pattern, ANY, ""), entry(&[], "/{*rest}", ANY, "")]) {
                let _ = find(&router, &host, &path, Method::GET);
            }
        }
    }
}
