//! Usage plans: the limits that a caller brings along, found by the plan's name, by the consumer, or because there is no other.

use std::collections::HashMap;
use std::sync::Arc;

use super::limit::RateLimit;
use crate::request::{Identity, Rejection};

/// Every plan of a configuration.
#[derive(Debug, Default)]
pub struct Plans {
    by_name: HashMap<Arc<str>, Plan, ahash::RandomState>,
    by_consumer: HashMap<Arc<str>, Plan, ahash::RandomState>,
    default: Option<Plan>,
}

/// The limits of one plan.
pub type Plan = Arc<[Arc<RateLimit>]>;

impl Plans {
    /// Adds a plan: its name, the consumers that have it, and whether it is that of all who have no other.
    pub fn add<'a>(&mut self, name: &Arc<str>, limits: Plan, consumers: impl Iterator<Item = &'a Arc<str>>, default: bool) {
        self.by_consumer.extend(consumers.map(|consumer| (Arc::clone(consumer), Arc::clone(&limits))));
        if default {
            self.default = Some(Arc::clone(&limits));
        }
        self.by_name.insert(Arc::clone(name), limits);
    }

    /// The limits of a caller's plan: the one that its credential names, else that of its consumer, else the default.
    ///
    /// # Errors
    /// [`Rejection::Forbidden`] when its credential names a plan that is not here: nobody can say what it may use.
    pub(super) fn of(&self, identity: &Identity) -> Result<&[Arc<RateLimit>], Rejection> {
        if self.by_name.is_empty() {
            return Ok(&[]);
        }
        if let Some(name) = &identity.plan {
            return self.by_name.get(name.as_str()).map(|plan| &**plan).ok_or(Rejection::Forbidden("plan_unknown"));
        }
        let of_consumer = identity.consumer.as_ref().and_then(|consumer| self.by_consumer.get(consumer.as_str()));
        Ok(of_consumer.or(self.default.as_ref()).map_or(&[], |plan| &**plan))
    }
}
