//! A program that goes one way so many times, for tools that count what a program does: `scripts/bench-count` runs it.

use std::hint::black_box;

use super::ways::{WAYS, Way, gate};
use super::{Caller, Gate};

/// `list`, or the name of a way (or `head`) and how many times.
pub fn run() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.as_slice() {
        [list] if list == "list" => {
            println!("head");
            WAYS.iter().for_each(|way| println!("{}", way.name));
        }
        [name, times] => {
            let (gate, times) = (gate(), times.parse().expect("a number"));
            let way = if name == "head" { &WAYS[0] } else { Way::named(name) };
            let caller = way.caller();
            gate.warm(&caller, way.ends);
            if name == "head" {
                counted_copies(&caller, times);
            } else {
                counted_passes(&gate, &caller, times);
            }
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

#[inline(never)]
fn counted_copies(caller: &Caller, times: u64) {
    for _ in 0..times {
        black_box(black_box(caller).copy());
    }
}
