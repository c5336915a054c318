//! The one form of a host, matched by the router and sent upstream.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use super::Rejection;

/// The longest host of the DNS (RFC 1035, 2.3.4), with room for the brackets of an address.
const LONGEST: usize = 255;

/// Brings the value of `Host` or `:authority` to its one form: lower case, without port and final dot, IPv6 literals in brackets.
///
/// Refused with [`Rejection::BadRequest`]: what is not a host with an optional port from 1 to 65535, such as user information, lists and
/// zone ids. Labels of internationalised names (`xn--`) are taken as they are.
pub fn canonical(authority: &str) -> Result<Cow<'_, str>, Rejection> {
    parse(authority).ok_or(Rejection::BadRequest("host"))
}

/// The port that stands behind a host.
pub fn port(authority: &str) -> Option<&str> {
    let (_, port) = authority.rsplit_once(':')?;
    (!port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(port)
}

fn parse(authority: &str) -> Option<Cow<'_, str>> {
    if let Some(literal) = authority.strip_prefix('[') {
        let (address, port) = literal.split_once(']')?;
        if !port.is_empty() {
            check_port(port.strip_prefix(':')?)?;
        }
        let one_form = format!("[{}]", address.parse::<Ipv6Addr>().ok()?);
        let as_it_came = authority.get(..address.len() + 2)?;
        return Some(if one_form == as_it_came { Cow::Borrowed(as_it_came) } else { Cow::Owned(one_form) });
    }
    let name = match authority.split_once(':') {
        Some((name, port)) => {
            check_port(port)?;
            name
        }
        None => authority,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut lower_case = true;
    let mut after_dot = true;
    for byte in name.bytes() {
        match byte {
            b'.' if after_dot => return None,
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {}
            b'A'..=b'Z' => lower_case = false,
            _ => return None,
        }
        after_dot = byte == b'.';
    }
    if after_dot || name.len() > LONGEST {
        return None;
    }
    Some(if lower_case { Cow::Borrowed(name) } else { Cow::Owned(name.to_ascii_lowercase()) })
}

fn check_port(port: &str) -> Option<()> {
    // `parse` alone would take a sign.
    let digits = (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    (digits && port.parse::<u16>().is_ok_and(|port| port > 0)).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_host_has_one_form() {
        for (authority, expected) in [
            ("gw.test", "gw.test"),
            ("GW.TEST", "gw.test"),
            ("gw.test.", "gw.test"),
            ("gw.test:80", "gw.test"),
            ("gw.test.:65535", "gw.test"),
            ("my_service", "my_service"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("192.0.2.1:8080", "192.0.2.1"),
            ("[::1]", "[::1]"),
            ("[::1]:8080", "[::1]"),
            ("[0:0::1]", "[::1]"),
            ("[2001:DB8::A]", "[2001:db8::a]"),
        ] {
            assert_eq!(canonical(authority).as_deref(), Ok(expected), "{authority}");
        }
        assert!(matches!(canonical("gw.test:80"), Ok(Cow::Borrowed(_))));
        assert!(matches!(canonical("[::1]:80"), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn a_port_stands_behind_the_host_and_not_within() {
        for (authority, expected) in
            [("gw.test", None), ("gw.test:80", Some("80")), ("[::1]", None), ("[::1]:8080", Some("8080")), ("gw.test:", None)]
        {
            assert_eq!(port(authority), expected, "{authority}");
        }
    }

    #[test]
    fn what_is_not_one_host_is_refused() {
        let long = "a".repeat(300);
        for authority in [
            "",
            ".",
            "..",
            ":",
            ":80",
            "gw.test:",
            "gw.test:0",
            "gw.test:65536",
            "gw.test:+80",
            "gw.test:080000",
            "gw.test:80:80",
            "a,b",
            "a b",
            " a",
            "a\tb",
            "a/b",
            "u@h",
            "u:p@h",
            "a..b",
            ".a",
            "a..",
            "%67w",
            "a?b",
            "a#b",
            "a\\b",
            "caf\u{e9}",
            "[",
            "[]",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]:",
            "[::1]:x",
            "[fe80::1%eth0]",
            "[1.2.3.4]",
            "[v1.a]",
            "a[::1]",
            "gw.test\0",
            "*.gw.test",
            &long,
        ] {
            assert_eq!(canonical(authority), Err(Rejection::BadRequest("host")), "{authority}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered_and_the_one_form_is_its_own(authority in "\\PC{0,20}|[a-zA-Z0-9._:\\[\\]-]{0,12}") {
            if let Ok(first) = canonical(&authority) {
                prop_assert_eq!(canonical(&first), Ok(first.clone()));
            }
        }
    }
}
