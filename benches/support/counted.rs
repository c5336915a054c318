//! A program that goes one way so many times, for tools that count what a program does: `scripts/bench-count` runs it.

use std::hint::black_box;

use super::ways::{WAYS, Way, gate};
use super::{Caller, Gate};

/// `list`, or the name of a way and how many times.
pub fn run() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.as_slice() {
        [list] if list == "list" => {
            WAYS.iter().for_each(|way| println!("{}", way.name));
        }
        [name, times] => {
            let (gate, times) = (gate(), times.parse().expect("a number"));
            let way = Way::named(name);
            let caller = way.caller();
            gate.warm(&caller, way.ends);
            counted_passes(&gate, &caller, times);
        }
        _ => panic!("usage: list | WAY TIMES"),
    }
}

/// Never inlined, for its name is where counting begins and ends.
#[inline(never)]
fn counted_passes(gate: &Gate, caller: &Caller, times: u64) {
    for _ in 0..times {
        black_box(gate.pass(black_box(caller))).ok();
    }
}
