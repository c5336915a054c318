//! What one route asks.

pub mod ip_rules;
pub mod rate_limits;
pub mod rewrite;
pub mod router;
