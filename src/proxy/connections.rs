//! How many connections callers may hold: each address, and all together. One more than that is closed before anything of it is read.
//!
//! Nothing of this is touched by a request: it is asked when a connection has come, and told when it has gone.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use ipnet::IpNet;

use crate::snapshot::Bounds;

/// An IPv6 network of this prefix is one address: whoever has one of its addresses has them all.
const IPV6_PREFIX: u8 = 64;

/// Those that are open.
#[derive(Debug, Default)]
pub(super) struct Connections {
    together: AtomicU64,
    /// Of the addresses that are counted.
    by_address: DashMap<IpAddr, u64, ahash::RandomState>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    connections: Arc<Connections>,
    address: Option<IpAddr>,
}

/// Which bound there is no room in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Together,
    Address,
}

impl Full {
    /// Its name in the metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Together => "connections",
            Self::Address => "connections_per_ip",
        }
    }
}

impl Connections {
    /// Takes one more; `address` is whose it counts as, where it does.
    pub(super) fn hold(self: &Arc<Self>, bounds: Bounds, address: Option<IpAddr>) -> Result<Held, Full> {
        let before = self.together.fetch_add(1, Ordering::Relaxed);
        // From here on it is given back, whatever becomes of it.
        let mut held = Held { connections: Arc::clone(self), address: None };
        if bounds.together > 0 && before >= bounds.together {
            return Err(Full::Together);
        }
        if let Some(address) = address.filter(|_| bounds.address > 0).map(network) {
            let mut own = self.by_address.entry(address).or_default();
            if *own >= bounds.address {
                return Err(Full::Address);
            }
            *own += 1;
            held.address = Some(address);
        }
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connections.together.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = self.address {
            self.connections.by_address.remove_if_mut(&address, |_, own| {
                *own = own.saturating_sub(1);
                *own == 0
            });
        }
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpNet::new(address.into(), IPV6_PREFIX).map_or(address.into(), |network| network.network()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn whose_it_is_decides_what_there_is_room_for() {
        for (bounds, held, next, expected) in [
            ((0, 0), &["192.0.2.1"; 9][..], address("192.0.2.1"), None),
            ((2, 0), &["192.0.2.1"], address("192.0.2.1"), None),
            ((2, 0), &["192.0.2.1", "192.0.2.2"], address("192.0.2.3"), Some(Full::Together)),
            ((2, 0), &["192.0.2.1", "192.0.2.2"], None, Some(Full::Together)),
            ((0, 2), &["192.0.2.1", "192.0.2.1"], address("192.0.2.1"), Some(Full::Address)),
            ((0, 2), &["192.0.2.1", "192.0.2.1"], address("::ffff:192.0.2.1"), Some(Full::Address)),
            ((0, 2), &["192.0.2.1", "192.0.2.1"], address("192.0.2.2"), None),
            ((0, 2), &["192.0.2.1", "192.0.2.1"], None, None),
            ((0, 1), &["2001:db8::1"], address("2001:db8::ffff:0:0:2"), Some(Full::Address)),
            ((0, 1), &["2001:db8::1"], address("2001:db8:0:1::1"), None),
            ((3, 1), &["192.0.2.1", "192.0.2.2"], address("192.0.2.1"), Some(Full::Address)),
        ] {
            let connections = Arc::new(Connections::default());
            let bounds = Bounds { together: bounds.0, address: bounds.1 };
            let open: Vec<_> = held.iter().map(|held| connections.hold(bounds, address(held)).unwrap()).collect();
            assert_eq!(connections.hold(bounds, next).err(), expected, "{bounds:?} {held:?} {next:?}");
            drop(open);
            assert!(connections.hold(bounds, next).is_ok(), "{bounds:?} {held:?} {next:?}: nothing is left of the others");
            assert!(connections.by_address.is_empty());
        }
    }

    proptest! {
        #[test]
        fn never_more_than_the_bounds_and_never_fewer_than_there_is_room_for(
            (together, each) in (0..6_u64, 0..4_u64),
            steps in prop::collection::vec((any::<bool>(), 0..3_u8, any::<prop::sample::Index>()), 0..200),
        ) {
            let connections = Arc::new(Connections::default());
            let bounds = Bounds { together, address: each };
            let mut open: Vec<(u8, Held)> = Vec::new();
            for (comes, who, which) in steps {
                if comes {
                    let own = open.iter().filter(|(whose, _)| *whose == who).count() as u64;
                    let room = (together == 0 || (open.len() as u64) < together) && (each == 0 || own < each);
                    let held = connections.hold(bounds, Some(IpAddr::from([192, 0, 2, who])));
                    prop_assert_eq!(held.is_ok(), room);
                    open.extend(held.map(|held| (who, held)));
                } else if !open.is_empty() {
                    open.swap_remove(which.index(open.len()));
                }
                let mut counted = HashMap::<u8, u64>::new();
                open.iter().for_each(|(whose, _)| *counted.entry(*whose).or_default() += 1);
                prop_assert_eq!(connections.together.load(Ordering::Relaxed), open.len() as u64);
                prop_assert_eq!(connections.by_address.len(), if each == 0 { 0 } else { counted.len() });
            }
        }
    }

    #[test]
    fn many_at_once_get_as_many_as_there_may_be() {
        let connections = Arc::new(Connections::default());
        let bounds = Bounds { together: 0, address: 100 };
        let held = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1000).filter_map(|_| connections.hold(bounds, address("192.0.2.1")).ok()).collect::<Vec<_>>()))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(held.len(), 100);
        drop(held);
        assert!(connections.by_address.is_empty() && connections.together.load(Ordering::Relaxed) == 0);
    }
}
