//! What one route asks.
