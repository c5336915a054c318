//! What is said of a service that a decision depends on: when it is taken to be away, and what happens then.

use std::time::Duration;

use serde_json::{Map as Object, Value, json};

use super::decode::{Context, Decode, grammar};
use super::values::{DAY, Lasting, MINUTE, Within};
use super::yaml::{Kind, Node};

grammar! {
    /// When a service is taken to be away.
    pub struct Breaker {
        /// After so many failures in a row.
        failures: u32 as Within<u32, 1, 1_000> = "5",
        /// For this long; then one request tries it.
        open: Duration as Lasting<1, {10 * MINUTE}> = "10s",
    }

    /// Whom it has let in lately.
    struct WrittenAllowCached {
        /// For this long after the decision's time was over.
        allow_cached: Duration as Lasting<1, DAY>,
    }
}

/// What happens to a request while a service is away that the decision on it depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// It is refused.
    Deny,
    /// It is let in when the last decision was to let it in, and is not older than its time and this.
    AllowCached(Duration),
    /// It is let in.
    Allow,
}

impl Decode for OnFailure {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        match &node.kind {
            Kind::Scalar { text, .. } if text == "deny" => Some(Self::Deny),
            Kind::Scalar { text, .. } if text == "allow" => Some(Self::Allow),
            Kind::Mapping(_) => WrittenAllowCached::decode(node, context).map(|written| Self::AllowCached(written.allow_cached)),
            _ => context.refuse_kind(node, Self::expected()),
        }
    }

    fn expected() -> String {
        "`deny`, `{allow_cached: DURATION}` or `allow`".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        json!({"anyOf": [{"enum": ["deny", "allow"]}, WrittenAllowCached::schema(definitions)]})
    }
}
