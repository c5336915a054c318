//! The program whose allocations are counted: with the system's allocator, which valgrind's DHAT can watch.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a bench that cannot be set up has to fail"
)]

mod support;

fn main() {
    support::counted::run();
}
