//! Sockets that edgeward opens itself.

pub mod http;
