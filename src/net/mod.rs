//! Sockets that edgeward opens itself.

pub mod certificates;
pub mod client_certificates;
pub mod http;
pub mod redis;
pub mod serve;
