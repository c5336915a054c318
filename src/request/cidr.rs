//! Sets of addresses given as CIDRs. IPv4-mapped IPv6 is IPv4, in the set and in the question.
//!
//! A set only answers "is it in": so it is kept as sorted disjoint ranges, which a hundred thousand prefixes leave as fast as ten.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// A set of addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CidrSet {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl CidrSet {
    /// The addresses that any of the networks contains.
    pub fn new(networks: &[IpNet]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match (network.network(), network.broadcast()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((u32::from(first), u32::from(last))),
                (IpAddr::V6(first), IpAddr::V6(last)) => {
                    let (first, last) = (u128::from(first), u128::from(last));
                    // A wider network, such as `::/0`, speaks of IPv6: who allows it has not allowed all of IPv4.
                    if first >= MAPPED_FIRST && last <= MAPPED_LAST {
                        v4.push((first as u32, last as u32));
                    } else {
                        v6.push((first, last));
                    }
                }
                _ => {}
            }
        }
        Self { v4: Ranges::new(v4), v6: Ranges::new(v6) }
    }

    /// Whether the address is in the set.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.contains(u32::from(address)),
            IpAddr::V6(address) => self.v6.contains(u128::from(address)),
        }
    }
}

const MAPPED_FIRST: u128 = u128::from_be_bytes(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0).octets());
const MAPPED_LAST: u128 = MAPPED_FIRST | 0xffff_ffff;

/// Disjoint inclusive ranges in order: the first addresses apart from the last ones, as only the former are searched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ranges<T> {
    first: Box<[T]>,
    last: Box<[T]>,
}

impl<T: Ord + Copy> Ranges<T> {
    fn new(mut ranges: Vec<(T, T)>) -> Self {
        ranges.sort_unstable();
        ranges.dedup_by(|next, kept| {
            let overlap = next.0 <= kept.1;
            if overlap {
                kept.1 = kept.1.max(next.1);
            }
            overlap
        });
        let (first, last): (Vec<T>, Vec<T>) = ranges.into_iter().unzip();
        Self { first: first.into(), last: last.into() }
    }

    fn contains(&self, address: T) -> bool {
        let after = self.first.partition_point(|first| *first <= address);
        after.checked_sub(1).and_then(|at| self.last.get(at)).is_some_and(|last| address <= *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(networks: &[&str]) -> CidrSet {
        CidrSet::new(&networks.iter().map(|network| network.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn an_address_is_in_the_set_when_a_network_holds_it() {
        let set = set(&["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32", "0.0.0.0/32"]);
        for (address, expected) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("0.0.0.0", true),
            ("::ffff:10.0.0.1", true),
            ("::10.0.0.1", false),
            ("2002:a00:1::", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
            ("::", false),
        ] {
            assert_eq!(set.contains(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn a_mapped_network_holds_the_ipv4_addresses_it_maps() {
        assert!(set(&["::ffff:10.0.0.0/104"]).contains("10.1.2.3".parse().unwrap()));
        assert!(!set(&["::ffff:10.0.0.0/104"]).contains("11.1.2.3".parse().unwrap()));
        assert!(!set(&["::/0"]).contains("10.1.2.3".parse().unwrap()));
        assert!(set(&["::/0"]).contains("2001:db8::1".parse().unwrap()));
        assert!(!set(&["0.0.0.0/0"]).contains("::1".parse().unwrap()));
    }

    #[test]
    fn the_empty_set_holds_nobody() {
        assert!(!CidrSet::default().contains("127.0.0.1".parse().unwrap()));
        assert!(!CidrSet::new(&[]).contains("::1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn the_set_agrees_with_asking_each_network(
            networks in proptest::collection::vec((any::<u32>(), 0u8..=32).prop_map(|(bits, length)| IpNet::new(IpAddr::V4(bits.into()), length).unwrap()), 0..40),
            networks6 in proptest::collection::vec((prop_oneof![any::<u128>(), any::<u32>().prop_map(|low| MAPPED_FIRST | u128::from(low))], 0u8..=128).prop_map(|(bits, length)| IpNet::new(IpAddr::V6(bits.into()), length).unwrap()), 0..20),
            chosen in any::<proptest::sample::Index>(), offset in -1i64..=1, random in any::<u32>(),
        ) {
            let all: Vec<IpNet> = networks.iter().chain(&networks6).copied().collect();
            let set = CidrSet::new(&all);
            let mut asked = vec![IpAddr::V4(random.into())];
            if !all.is_empty() {
                for edge in [all[chosen.index(all.len())].network(), all[chosen.index(all.len())].broadcast()] {
                    asked.push(match edge {
                        IpAddr::V4(edge) => IpAddr::V4(u32::from(edge).wrapping_add_signed(offset as i32).into()),
                        IpAddr::V6(edge) => IpAddr::V6(u128::from(edge).wrapping_add_signed(offset.into()).into()),
                    });
                }
            }
            for address in asked {
                let address = address.to_canonical();
                let expected = all.iter().any(|network| match (network, address) {
                    (IpNet::V6(network), IpAddr::V4(address)) => network.prefix_len() >= 96 && network.contains(&address.to_ipv6_mapped()),
                    _ => network.contains(&address),
                });
                prop_assert_eq!(set.contains(address), expected, "{}", address);
            }
        }
    }
}
