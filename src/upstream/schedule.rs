//! In which order backends are taken, by weight: made when one comes, goes, or changes its health, and read without a lock.

use std::sync::Arc;

use crate::live::backends::{Backend, Server};

/// The addresses of a name share its weight in whole parts of one; beyond this many parts the shares are rounded.
const MOST_PARTS: u64 = 1 << 20;

/// The backends that are well, laid side by side on a line: each as long as its weight.
///
/// Turn `n` takes the backend at `n * stride` on the line, wrapped. The stride has no divisor in common with the line, so each point is met once per
/// cycle and each backend exactly as often as its weight; and it is near the golden section of the line, so that the turns of one backend lie apart.
#[derive(Debug)]
pub(super) struct Schedule {
    changes: Option<u64>,
    backends: Vec<Arc<Backend>>,
    /// Where each backend's piece of the line ends.
    ends: Vec<u64>,
    stride: u64,
}

/// The number of a request: what makes one choice differ from the last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn(pub(super) u64);

impl Schedule {
    /// The schedule that is out of date at once.
    pub(super) fn unmade() -> Self {
        Self { changes: None, backends: Vec::new(), ends: Vec::new(), stride: 0 }
    }

    pub(super) fn new(changes: u64, servers: &[(Arc<Server>, u32)], is_well: impl Fn(&Backend) -> bool) -> Self {
        let resolved: Vec<_> = servers.iter().map(|(server, weight)| (server.backends(), u64::from(*weight))).collect();
        let parts = resolved.iter().fold(1, |parts, (backends, _)| {
            let count = (backends.len() as u64).max(1);
            (parts / gcd(parts, count) * count).min(MOST_PARTS)
        });
        // A name keeps its weight shared among all its addresses when some are unwell: the last one standing is not sent everything.
        let pieces: Vec<(Arc<Backend>, u64)> = resolved
            .iter()
            .flat_map(|(backends, weight)| {
                backends.iter().map(move |backend| (backend.clone(), weight * parts / (backends.len() as u64).max(1)))
            })
            .filter(|(backend, length)| *length > 0 && is_well(backend))
            .collect();
        let unit = pieces.iter().fold(0, |unit, (_, length)| gcd(unit, *length)).max(1);
        let mut line = 0;
        let ends = pieces.iter().map(|(_, length)| {
            line += length / unit;
            line
        });
        let ends: Vec<u64> = ends.collect();
        Self { changes: Some(changes), ends, stride: stride(line), backends: pieces.into_iter().map(|(backend, _)| backend).collect() }
    }

    pub(super) fn is_of(&self, changes: u64) -> bool {
        self.changes == Some(changes)
    }

    /// Weighted round robin.
    pub(super) fn next(&self, turn: Turn) -> Option<&Arc<Backend>> {
        let line = u128::from(self.line()?);
        self.at((u128::from(turn.0) % line * u128::from(self.stride) % line) as u64)
    }

    /// Weighted, with nothing to be read from the last choice.
    pub(super) fn random(&self, turn: Turn) -> Option<&Arc<Backend>> {
        self.at(turn.scattered() % self.line()?)
    }

    /// The one with fewer requests in flight of two that differ, drawn by weight: nearly as even as asking all of them, and no herd runs to the idlest.
    pub(super) fn less_busy(&self, turn: Turn, tried: &[std::net::SocketAddr]) -> Option<&Arc<Backend>> {
        let line = self.line()?;
        let first = self.at(turn.scattered() % line)?;
        let second = self.at(Turn(!turn.0).scattered() % line).filter(|second| !Arc::ptr_eq(first, second));
        let second = second.or_else(|| self.all_from(turn).find(|other| !Arc::ptr_eq(first, other)));
        let drawn = [Some(first), second].into_iter().flatten().filter(|backend| !tried.contains(&backend.address()));
        drawn.min_by_key(|backend| backend.in_flight())
    }

    /// Each backend once, beginning with another one each turn.
    pub(super) fn all_from(&self, turn: Turn) -> impl Iterator<Item = &Arc<Backend>> {
        let count = self.backends.len();
        let start = (turn.0 % count.max(1) as u64) as usize;
        self.backends.iter().cycle().skip(start).take(count)
    }

    fn line(&self) -> Option<u64> {
        self.ends.last().copied()
    }

    fn at(&self, point: u64) -> Option<&Arc<Backend>> {
        self.backends.get(self.ends.partition_point(|end| *end <= point))
    }
}

impl Turn {
    /// SplitMix64's last step: neighbours end far apart, and every number is met once.
    fn scattered(self) -> u64 {
        let mut z = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn stride(line: u64) -> u64 {
    let golden = u128::from(line) * 618_033_989 / 1_000_000_000;
    (golden as u64..=line).find(|stride| *stride > 0 && gcd(*stride, line) == 1).unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::live::backends::Backends;

    /// Servers at 10.0.0.0, 10.0.0.1 and so on with these weights.
    fn servers(backends: &Backends, weights: &[u32]) -> Vec<(Arc<Server>, u32)> {
        weights
            .iter()
            .enumerate()
            .map(|(i, weight)| (backends.server(&format!("10.0.{}.{}", i / 256, i % 256).into(), 80), *weight))
            .collect()
    }

    fn last_byte(backend: &Arc<Backend>) -> usize {
        match backend.address().ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3] as usize,
            std::net::IpAddr::V6(_) => unreachable!("only IPv4 here"),
        }
    }

    proptest! {
        #[test]
        fn round_robin_is_exact_over_a_cycle_wherever_it_begins(weights in prop::collection::vec(1u32..60, 1..20), start: u64) {
            let backends = Backends::default();
            let schedule = Schedule::new(0, &servers(&backends, &weights), |_| true);
            let cycle = schedule.line().unwrap();
            // Numbers that wrap around within the cycle would skip; that happens once in 2^64 requests.
            let start = start % (u64::MAX - cycle);
            let mut taken = vec![0; weights.len()];
            for turn in start..start + cycle {
                taken[last_byte(schedule.next(Turn(turn)).unwrap())] += 1;
            }
            let unit = weights.iter().fold(0, |unit, weight| gcd(unit, u64::from(*weight)));
            let expected: Vec<u64> = weights.iter().map(|weight| u64::from(*weight) / unit).collect();
            prop_assert_eq!(taken, expected);
        }

        #[test]
        fn equal_weights_take_turns(count in 1usize..50, weight in 1u32..1000, start in 0u64..u64::MAX / 2) {
            let backends = Backends::default();
            let schedule = Schedule::new(0, &servers(&backends, &vec![weight; count]), |_| true);
            let first: Vec<_> = (start..).take(count).map(|turn| last_byte(schedule.next(Turn(turn)).unwrap())).collect();
            let again: Vec<_> = (start..).skip(count).take(count).map(|turn| last_byte(schedule.next(Turn(turn)).unwrap())).collect();
            prop_assert_eq!(&first, &again);
            let mut all = first;
            all.sort_unstable();
            prop_assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_heavy_backend_does_not_come_in_one_burst() {
        let backends = Backends::default();
        // Four of the first stand together in nginx's order, too: a a b a c a a, a a b ...
        for (weights, longest) in [(vec![5, 1, 1], 4), (vec![1, 1, 1, 1], 1), (vec![3, 1], 3), (vec![50, 50], 1), (vec![90, 10], 10)] {
            let schedule = Schedule::new(0, &servers(&backends, &weights), |_| true);
            let order: Vec<_> = (0..400).map(|turn| last_byte(schedule.next(Turn(turn)).unwrap())).collect();
            let run = order.chunk_by(|a, b| a == b).map(<[_]>::len).max().unwrap();
            assert!(run <= longest, "{weights:?}: {run} in a row");
        }
    }

    #[test]
    fn random_follows_the_weights() {
        let backends = Backends::default();
        let schedule = Schedule::new(0, &servers(&backends, &[1, 2, 7]), |_| true);
        let mut taken: HashMap<usize, u32> = HashMap::new();
        (0..100_000).for_each(|turn| *taken.entry(last_byte(schedule.random(Turn(turn)).unwrap())).or_default() += 1);
        // Five standard deviations.
        for (backend, expected, tolerance) in [(0, 10_000, 475), (1, 20_000, 633), (2, 70_000, 725)] {
            assert!(taken[&backend].abs_diff(expected) < tolerance, "{backend}: {}", taken[&backend]);
        }
    }

    #[test]
    fn the_least_busy_of_two_is_taken_and_never_the_busiest_of_all() {
        let backends = Backends::default();
        let servers = servers(&backends, &[1, 1, 1]);
        let schedule = Schedule::new(0, &servers, |_| true);
        let busiest = servers[1].0.backends()[0].clone();
        let _held: Vec<_> = (0..3).map(|_| busiest.begin()).collect();
        for turn in 0..1000 {
            assert!(!Arc::ptr_eq(schedule.less_busy(Turn(turn), &[]).unwrap(), &busiest));
        }
    }

    #[test]
    fn what_is_unwell_or_weighs_nothing_is_not_in_the_schedule() {
        let backends = Backends::default();
        let servers = servers(&backends, &[2, 3, 0]);
        let schedule = Schedule::new(0, &servers, |backend| backend.address().to_string() != "10.0.0.0:80");
        for turn in 0..100 {
            for chosen in [schedule.next(Turn(turn)), schedule.random(Turn(turn)), schedule.less_busy(Turn(turn), &[])] {
                assert_eq!(last_byte(chosen.unwrap()), 1);
            }
        }
        let nothing = Schedule::new(0, &servers, |_| false);
        assert!(nothing.next(Turn(1)).is_none() && nothing.random(Turn(1)).is_none() && nothing.less_busy(Turn(1), &[]).is_none());
    }
}
