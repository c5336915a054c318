//! edgeward, an authentication gateway for the edge: the floors of the house, from the ground up.
//!
//! A room imports only from floors below its own; `tests/tidy.rs` keeps it so. Nothing below [`proxy`] names Pingora, reads
//! a clock or draws a random number.

// The ground: words and tools that know nothing of a gateway.
pub mod issuer;
pub mod jose;
pub mod metrics;
pub mod net;
pub mod request;
pub mod secret;
pub mod text;

// What the operator wants, and what the world has told us. Strangers to each other.
pub mod config;
pub mod live;

// One question each: who are you, may you, where to.
pub mod authenticators;
pub mod authorizers;
pub mod upstream;

// What one route asks, the decision, and the frozen whole.
pub mod admit;
pub mod route;
pub mod snapshot;

// The running process.
pub mod admin;
pub mod cli;
pub mod proxy;
pub mod reload;
pub mod server;
