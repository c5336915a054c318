//! Pingora's phases.
