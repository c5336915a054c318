//! The real binary as a child process, driven over real sockets; the modules mirror `src`.

#![allow(unreachable_pub, reason = "a test target is nobody's library")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::type_complexity,
    reason = "a test that meets the unexpected stops there, and lives in real time"
)]

mod harness;

mod authenticators;
mod basic;
mod cli;
mod client_certificate;
mod direct;
mod dpop;
mod duplex;
mod exchange;
mod external;
mod http1;
mod http2;
mod introspection;
mod issuer;
mod limits;
mod proxy;
mod quotas;
mod redis;
mod reload;
mod request;
mod resource;
mod revocation;
mod revocation_fleet;
mod route;
mod server;
mod signature;
mod sigv4;
mod slow;
mod upload;
mod upstream;
