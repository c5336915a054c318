//! Filters: rules over requests in the words of conditions, before and beside credentials.

use std::sync::Arc;

use super::At;
use super::decode::{grammar, words};
use super::policy::Condition;

grammar! {
    /// A rule over requests.
    pub struct Filter {
        /// A condition in CEL; the requests of which it is true are met. With `deny` also those of which it cannot be told.
        when: At<Arc<str>> as At<Condition>,
        /// What happens to them.
        action: FilterAction = "deny",
    }
}

words! {
    /// What happens to a request that a filter meets.
    pub enum FilterAction {
        /// It is refused.
        Deny = "deny",
        /// It is counted in the metrics.
        Count = "count",
        /// It is counted, and the access log says that it would have been refused.
        Shadow = "shadow",
    }
}

impl FilterAction {
    /// Its word.
    pub fn label(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Count => "count",
            Self::Shadow => "shadow",
        }
    }
}
