//! Watch, load, compile, swap.
