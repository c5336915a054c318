//! What one route asks.

pub mod ip_rules;
pub mod rewrite;
pub mod router;
