//! Which backend serves, and what is learnt from it.
