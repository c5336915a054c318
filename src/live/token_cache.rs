//! Verified tokens.
