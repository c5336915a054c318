//! Key sets of token issuers.
