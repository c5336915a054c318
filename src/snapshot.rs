//! The frozen whole.
