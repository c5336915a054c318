//! The real binary as a child process, driven over real sockets; the modules mirror `src`.

mod harness;

mod cli;
mod upstream;
