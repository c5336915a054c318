//! The filters of a policy: rules over requests that refuse, count, or only say that they would have refused.

use std::sync::Arc;

use super::rate_limits::Charge;
use crate::authorizers::expression::Expression;
use crate::config::FilterAction;
use crate::metrics::Counter;
use crate::request::{Identity, Rejection, Request};

/// The filters of one policy.
#[derive(Debug)]
pub struct Filters {
    before_identity: Box<[Filter]>,
    after_identity: Box<[Filter]>,
}

/// One filter.
#[derive(Debug)]
pub struct Filter {
    name: Arc<str>,
    when: Expression,
    action: FilterAction,
    matches: Counter,
}

impl Filter {
    /// A filter by its name, with the counter of the requests that it meets.
    pub fn new(name: &Arc<str>, when: Expression, action: FilterAction, matches: Counter) -> Self {
        Self { name: Arc::clone(name), when, action, matches }
    }
}

impl Filters {
    /// All of these, in order: those that are about the caller once the caller is known, the others before.
    pub fn new(filters: Vec<Filter>) -> Self {
        let (after_identity, before_identity): (Vec<_>, Vec<_>) = filters.into_iter().partition(|filter| filter.when.needs_identity());
        Self { before_identity: before_identity.into(), after_identity: after_identity.into() }
    }

    /// Asks those that need no identity. What a shadow would have refused is noted with the charge.
    pub fn check(&self, request: &Request<'_>, charge: &mut Charge<'_>) -> Result<(), Rejection> {
        check(&self.before_identity, request, None, charge)
    }

    /// Asks those that are about the caller.
    pub fn check_identity(&self, request: &Request<'_>, identity: Option<&Identity>, charge: &mut Charge<'_>) -> Result<(), Rejection> {
        check(&self.after_identity, request, identity, charge)
    }

    /// The path parameters that any of them speaks of.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.before_identity.iter().chain(&self.after_identity).flat_map(|filter| filter.when.parameters())
    }
}

fn check(filters: &[Filter], request: &Request<'_>, identity: Option<&Identity>, charge: &mut Charge<'_>) -> Result<(), Rejection> {
    for filter in filters {
        // A rule against a request of which it cannot be told is taken to be against it.
        let met = filter.when.holds(request, identity).unwrap_or(filter.action == FilterAction::Deny);
        if !met {
            continue;
        }
        filter.matches.inc();
        match filter.action {
            FilterAction::Deny => return Err(Rejection::Filtered(Arc::clone(&filter.name))),
            FilterAction::Shadow => charge.note_shadow(&filter.name),
            FilterAction::Count => {}
        }
    }
    Ok(())
}
