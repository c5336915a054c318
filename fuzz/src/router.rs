//! The router against the rule in plain words: the most specific pattern wins, found by trying every one.

use edgeward::request::{Rejection, host, path};
use edgeward::route::router::{Entry, Fault, ParametersBuffer, Router};
use http::Method;
use percent_encoding::percent_decode_str;

/// One route: `METHOD,METHOD host,host path`, `*` for any.
struct Written<'a> {
    methods: Vec<Method>,
    hosts: Vec<&'a str>,
    path: &'a str,
}

/// Routes by line, and after an empty line requests: `METHOD host path`.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (routes, requests) = text.split_once("\n\n").unwrap_or((text, ""));
    let Some(routes) = routes.lines().take(32).map(read_route).collect::<Option<Vec<_>>>() else { return };
    let entries = routes.iter().enumerate();
    let entries = entries.map(|(value, route)| Entry { hosts: route.hosts.clone(), path: route.path, methods: &route.methods, value });
    let router = match Router::compile(entries.collect()) {
        Ok(router) => router,
        Err(faults) => return check_faults(&routes, &faults),
    };
    for (later, route) in routes.iter().enumerate() {
        assert!(!routes[..later].iter().any(|earlier| conflict(earlier, route)), "a conflict was not reported: {}", route.path);
    }
    for request in requests.lines().take(32) {
        check_request(&routes, &router, request);
    }
}

fn read_route(line: &str) -> Option<Written<'_>> {
    let mut words = line.splitn(3, ' ');
    let (methods, hosts, path) = (words.next()?, words.next()?, words.next()?);
    let methods = methods.split(',').filter(|method| *method != "*").map(|method| Method::from_bytes(method.as_bytes()).ok());
    Some(Written { methods: methods.collect::<Option<_>>()?, hosts: hosts.split(',').filter(|host| *host != "*").collect(), path })
}

/// What a host in the file means: whether it is a wildcard, and the one form of its name.
fn read_host(host: &str) -> Option<(bool, String)> {
    let (wildcard, name) = host.strip_prefix("*.").map_or((false, host), |name| (true, name));
    let found = host::canonical(name).ok()?;
    found.eq_ignore_ascii_case(name).then(|| (wildcard, found.into_owned()))
}

#[derive(PartialEq)]
enum Segment {
    Literal(Vec<u8>),
    Parameter,
    Rest,
}

fn read_pattern(pattern: &str) -> Vec<(Segment, &str)> {
    let segments = pattern.strip_prefix('/').unwrap_or_default().split('/');
    let read = |segment: &'_ str| match segment {
        _ if segment.starts_with("{*") => Segment::Rest,
        _ if segment.starts_with('{') => Segment::Parameter,
        // `"` is written `%22` by whoever writes it plainly: both are the same byte.
        _ => Segment::Literal(percent_decode_str(segment).collect()),
    };
    segments.map(|segment| (read(segment), segment.trim_matches(['{', '}', '*']))).collect()
}

fn conflict(one: &Written<'_>, other: &Written<'_>) -> bool {
    let hosts = |route: &Written<'_>| -> Vec<_> { route.hosts.iter().map(|host| read_host(host)).collect() };
    let shape = |route: &Written<'_>| read_pattern(route.path).into_iter().map(|(segment, _)| segment).collect::<Vec<_>>();
    let same_host = one.hosts.is_empty() && other.hosts.is_empty() || hosts(one).iter().any(|host| hosts(other).contains(host));
    let same_method = one.methods.is_empty() || other.methods.is_empty() || one.methods.iter().any(|method| other.methods.contains(method));
    same_host && same_method && shape(one) == shape(other)
}

fn check_faults(routes: &[Written<'_>], faults: &[Fault]) {
    assert!(!faults.is_empty());
    for fault in faults {
        match fault {
            Fault::Host { entry, host, .. } => assert_eq!(read_host(routes[*entry].hosts[*host]), None),
            Fault::Path { entry, .. } => assert!(*entry < routes.len()),
            Fault::Conflict { entry, earlier } if entry == earlier => {
                let hosts: Vec<_> = routes[*entry].hosts.iter().map(|host| read_host(host)).collect();
                assert!(hosts.iter().enumerate().any(|(at, host)| hosts[..at].contains(host)), "a route against itself");
            }
            Fault::Conflict { entry, earlier } => {
                assert!(earlier < entry && conflict(&routes[*earlier], &routes[*entry]), "{} and {}", earlier, entry);
            }
        }
    }
}

fn check_request(routes: &[Written<'_>], router: &Router<usize>, line: &str) {
    let mut words = line.splitn(3, ' ');
    let (Some(method), Some(host), Some(target)) = (words.next(), words.next(), words.next()) else { return };
    let (Ok(method), Ok(host), Ok(target)) =
        (Method::from_bytes(method.as_bytes()), host::canonical(host), path::canonical(target.as_bytes()))
    else {
        return;
    };
    let mut buffer = ParametersBuffer::default();
    let found = router.find(&host, &target.path, &method, &mut buffer).copied();
    let expected = reference(routes, &host, &target.path);
    match (&found, expected.is_empty()) {
        (Err(Rejection::NoRoute), true) => {}
        (Err(Rejection::MethodNotAllowed(allow)), false) => {
            assert!(!expected.iter().any(|(route, _)| admits(&routes[*route], &method)), "{line} is allowed");
            for (route, _) in &expected {
                assert!(routes[*route].methods.iter().all(|method| allow.split(", ").any(|listed| listed == method.as_str())), "{allow}");
            }
        }
        (Ok(found), false) => {
            let Some((_, parameters)) = expected.iter().find(|(route, _)| route == found) else { panic!("{line} takes {found}") };
            assert!(admits(&routes[*found], &method), "{line} is not allowed");
            assert_eq!(buffer.parameters().0, parameters, "{line}");
        }
        _ => panic!("{line}: {found:?}, expected one of {expected:?}"),
    }
}

fn admits(route: &Written<'_>, method: &Method) -> bool {
    route.methods.is_empty() || route.methods.contains(method) || *method == Method::HEAD && route.methods.contains(&Method::GET)
}

type Matched<'a> = (usize, Pairs<'a>);

/// The routes of the most specific path of the most specific host, which differ in their methods.
fn reference<'a>(routes: &[Written<'a>], host: &str, path: &'a str) -> Vec<Matched<'a>> {
    // An exact host is 0, a wildcard the shorter the longer its name, any host last.
    let host_rank = |route: &Written<'_>| -> Option<usize> {
        if route.hosts.is_empty() {
            return Some(usize::MAX);
        }
        let ranks = route.hosts.iter().filter_map(|written| match read_host(written)? {
            (false, name) => (name == host).then_some(0),
            (true, name) => host.strip_suffix(&*name).is_some_and(|before| before.ends_with('.')).then(|| 1_000 - name.len()),
        });
        ranks.min()
    };
    // A route may stand under several of its hosts; the best that matches counts.
    let matches: Vec<_> = routes
        .iter()
        .enumerate()
        .filter_map(|(at, route)| {
            let (ranks, parameters) = match_path(route.path, path)?;
            Some(((host_rank(route)?, ranks), (at, parameters)))
        })
        .collect();
    let best = matches.iter().map(|(rank, _)| rank).min().cloned();
    matches.into_iter().filter(|(rank, _)| Some(rank) == best.as_ref()).map(|(_, matched)| matched).collect()
}

/// The names and values of the parameters.
type Pairs<'a> = Vec<(&'a str, &'a str)>;

fn match_path<'a>(pattern: &'a str, path: &'a str) -> Option<(Vec<u8>, Pairs<'a>)> {
    let (mut ranks, mut parameters) = (Vec::new(), Vec::new());
    let mut left = path.strip_prefix('/');
    for (segment, name) in read_pattern(pattern) {
        if segment == Segment::Rest {
            parameters.push((name, left.unwrap_or_default()));
            ranks.push(2);
            return Some((ranks, parameters));
        }
        let (given, after) = left?.split_once('/').map_or((left?, None), |(given, after)| (given, Some(after)));
        match segment {
            Segment::Literal(text) if percent_decode_str(given).eq(text.iter().copied()) => ranks.push(0),
            Segment::Parameter if !given.is_empty() => {
                ranks.push(1);
                parameters.push((name, given));
            }
            _ => return None,
        }
        left = after;
    }
    left.is_none().then_some((ranks, parameters))
}
