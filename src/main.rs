//! The `edgeward` binary: an allocator and the command line.

use std::process::ExitCode;

/// jemalloc: nearly mimalloc's instruction count at glibc's memory (docs/decisions/0007-allocator.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    edgeward::cli::main()
}
