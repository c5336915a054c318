//! Backends: where their names resolve to and which are well.
