//! Which client addresses a policy admits.
//!
//! A denied address is refused even when a longer prefix allows it: a list of denials is then a promise that no other line can undo.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::request::{CidrSet, Rejection};

/// The `deny` and `allow` lists of a policy.
#[derive(Debug)]
pub struct IpRules {
    deny: CidrSet,
    /// Absent: everyone who is not denied.
    allow: Option<CidrSet>,
}

impl IpRules {
    /// Compiles the lists. An `allow` list that is there and empty admits nobody.
    pub fn new(deny: &[IpNet], allow: Option<&[IpNet]>) -> Self {
        Self { deny: CidrSet::new(deny), allow: allow.map(CidrSet::new) }
    }

    /// Refuses an address with [`Rejection::AddressDenied`].
    pub fn check(&self, address: IpAddr) -> Result<(), Rejection> {
        let allowed = self.allow.as_ref().is_none_or(|allow| allow.contains(address));
        if allowed && !self.deny.contains(address) { Ok(()) } else { Err(Rejection::AddressDenied) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(deny: &[&str], allow: Option<&[&str]>, address: &str) -> bool {
        let parse = |networks: &[&str]| networks.iter().map(|network| network.parse().unwrap()).collect::<Vec<IpNet>>();
        IpRules::new(&parse(deny), allow.map(parse).as_deref()).check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn who_is_denied_is_refused_and_who_is_not_allowed_as_well() {
        for (deny, allow, address, expected) in [
            (&[][..], None, "192.0.2.1", true),
            (&[], Some(&[][..]), "192.0.2.1", false),
            (&["192.0.2.0/24"], None, "192.0.2.1", false),
            (&["192.0.2.0/24"], None, "::ffff:192.0.2.1", false),
            (&["192.0.2.0/24"], None, "198.51.100.1", true),
            (&[], Some(&["192.0.2.0/24"]), "192.0.2.1", true),
            (&[], Some(&["192.0.2.0/24"]), "2001:db8::1", false),
            (&["192.0.2.0/24"], Some(&["192.0.2.0/24"]), "192.0.2.1", false),
            (&["192.0.2.0/24"], Some(&["192.0.2.1/32"]), "192.0.2.1", false),
            (&["192.0.2.1/32"], Some(&["192.0.2.0/24"]), "192.0.2.1", false),
            (&["192.0.2.1/32"], Some(&["192.0.2.0/24"]), "192.0.2.2", true),
        ] {
            assert_eq!(admits(deny, allow, address), expected, "deny {deny:?} allow {allow:?} {address}");
        }
    }
}
