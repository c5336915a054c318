//! Where it is kept which credentials were withdrawn before their time.

use super::decode::grammar;

grammar! {
    /// Credentials that are refused before their time.
    pub struct Revocation {
        /// The embedded store; made when it is not there.
        database: std::path::PathBuf,
    }
}
