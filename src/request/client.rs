//! Who is on the other end of the connection: one address, for rules, limits and logs alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{HeaderMap, HeaderName};

use super::cidr::CidrSet;

/// The caller's end of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// The address that rules, limits and logs speak of: the peer, or what trusted proxies said. IPv4-mapped IPv6 is IPv4.
    pub address: IpAddr,
    /// Whether the peer itself is a trusted proxy, so that its `X-Request-Id` and `X-Forwarded-*` are believed.
    pub through_trusted_proxy: bool,
}

/// The client behind `peer`, by the header in which each trusted proxy appended whom it heard.
///
/// The hops are walked from the right as long as the last one is a trusted proxy. The first that is not an address ends the walk: what
/// stands left of it was written by nobody that we trust.
pub fn resolve(peer: IpAddr, headers: &HeaderMap, header: &HeaderName, trusted: &CidrSet) -> Client {
    let mut address = peer.to_canonical();
    let through_trusted_proxy = trusted.contains(address);
    if through_trusted_proxy {
        let hops = headers.get_all(header).into_iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
        for hop in hops {
            let Some(hop) = parse_hop(hop) else { break };
            address = hop;
            if !trusted.contains(address) {
                break;
            }
        }
    }
    Client { address, through_trusted_proxy }
}

/// An address, with or without a port; IPv6 in brackets when it has one. Octal, hexadecimal and short forms are no addresses.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim_matches([' ', '\t']);
    if let Some(literal) = hop.strip_prefix('[') {
        let (address, port) = literal.split_once(']')?;
        if !port.is_empty() {
            parse_port(port.strip_prefix(':')?)?;
        }
        return Some(IpAddr::V6(address.parse::<Ipv6Addr>().ok()?).to_canonical());
    }
    if let Ok(address) = hop.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, port) = hop.split_once(':')?;
    parse_port(port)?;
    Some(IpAddr::V4(address.parse::<Ipv4Addr>().ok()?))
}

fn parse_port(port: &str) -> Option<u16> {
    // `parse` alone would take a sign.
    port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const HEADER: HeaderName = HeaderName::from_static("x-forwarded-for");

    fn client(peer: &str, lines: &[&str], trusted: &[&str]) -> Client {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(HEADER, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        let trusted = CidrSet::new(&trusted.iter().map(|network| network.parse().unwrap()).collect::<Vec<_>>());
        resolve(peer.parse().unwrap(), &headers, &HEADER, &trusted)
    }

    #[test]
    fn every_case_of_the_collection_names_the_expected_client() {
        #[derive(serde::Deserialize)]
        struct Case {
            id: String,
            peer: String,
            x_forwarded_for: Vec<String>,
            trusted_proxies: Vec<String>,
            expect_client: String,
        }
        let cases = include_str!("../../tests/data/xff/cases.jsonl");
        for line in cases.lines() {
            let case: Case = serde_json::from_str(line).unwrap();
            let lines: Vec<&str> = case.x_forwarded_for.iter().map(String::as_str).collect();
            let trusted: Vec<&str> = case.trusted_proxies.iter().map(String::as_str).collect();
            let found = client(&case.peer, &lines, &trusted);
            assert_eq!(found.address.to_string(), case.expect_client, "{}", case.id);
        }
        assert_eq!(cases.lines().count(), 16);
    }

    #[test]
    fn the_walk_ends_at_the_first_hop_that_nobody_trusted_wrote() {
        let trusted = &["10.0.0.0/8", "fd00::/8"];
        for (lines, expected) in [
            (&["1.2.3.4:5678"][..], "1.2.3.4"),
            (&["[2001:db8::1]:443"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            (&["[::ffff:1.2.3.4]"], "1.2.3.4"),
            (&["1.2.3.4:"], "10.0.0.5"),
            (&["1.2.3.4:99999"], "10.0.0.5"),
            (&["1.2.3.4:+80"], "10.0.0.5"),
            (&["[1.2.3.4]"], "10.0.0.5"),
            (&["[2001:db8::1"], "10.0.0.5"),
            (&["2001:db8::1%eth0"], "10.0.0.5"),
            (&["010.0.0.1"], "10.0.0.5"),
            (&["167772161"], "10.0.0.5"),
            (&["1.2.3.4, junk, 10.0.0.7"], "10.0.0.7"),
            (&["1.2.3.4,,10.0.0.7"], "10.0.0.7"),
            (&["1.2.3.4", "junk"], "10.0.0.5"),
            (&["junk, 1.2.3.4", "10.0.0.7, fd00::7"], "1.2.3.4"),
            (&["caf\u{e9}"], "10.0.0.5"),
            (&[], "10.0.0.5"),
        ] {
            assert_eq!(client("10.0.0.5", lines, trusted).address.to_string(), expected, "{lines:?}");
        }
        let many = vec!["10.0.0.9"; 1_000].join(", ");
        assert_eq!(client("10.0.0.5", &["6.6.6.6", &many], trusted).address.to_string(), "6.6.6.6");
    }

    #[test]
    fn nobody_is_trusted_by_default() {
        let found = client("127.0.0.1", &["1.2.3.4"], &[]);
        assert_eq!(found, Client { address: "127.0.0.1".parse().unwrap(), through_trusted_proxy: false });
        assert!(client("::ffff:10.0.0.5", &["1.2.3.4"], &["10.0.0.0/8"]).through_trusted_proxy);
    }

    proptest! {
        #[test]
        fn any_header_is_answered_and_an_untrusted_peer_is_itself(value in proptest::collection::vec(0x20u8..=0xff, 0..40)) {
            let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let headers = HeaderMap::from_iter([(HEADER, value)]);
            let peer: IpAddr = "203.0.113.9".parse().unwrap();
            prop_assert_eq!(resolve(peer, &headers, &HEADER, &CidrSet::default()).address, peer);
            resolve(peer, &headers, &HEADER, &CidrSet::new(&["0.0.0.0/0".parse().unwrap()]));
        }
    }
}
