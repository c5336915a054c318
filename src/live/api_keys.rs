//! API keys, as the hot path reads them.
