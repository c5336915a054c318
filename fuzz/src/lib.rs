//! What must hold for any bytes that a stranger or an operator hands us: one module per door, the same for the fuzzer and for `make test`.

pub mod basic;
pub mod client_certificate;
pub mod config;
pub mod credential;
pub mod dpop;
pub mod exchange;
pub mod external;
pub mod http1;
pub mod introspection;
pub mod jwks;
pub mod jwt;
pub mod request;
pub mod router;
pub mod signature;
pub mod sigv4;
