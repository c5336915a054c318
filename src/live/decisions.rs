//! What external authorizers said of requests, as facts that may be repeated: who calls, which headers go on, or what the caller is told.

use std::sync::Arc;

use super::answers::Answers;
use crate::request::{HeaderChange, Identity, Rejection};

/// What tells one authorizer from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AuthorizerId {
    /// The name of the authenticator.
    pub name: Arc<str>,
    /// Where it is asked.
    pub url: Arc<str>,
    /// SHA-256 of the authorities that it is verified by; absent: the system's.
    pub ca: Option<[u8; 32]>,
}

/// The decisions of one authorizer.
pub type Decisions = Answers<Decision>;

/// What an authorizer said.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// The request may go on.
    Allow(Grant),
    /// A request may go on where the policy allows what it asks for.
    Policy(Grant, Policy),
    /// It may not.
    Refuse(Rejection),
    /// The same, with an answer that was made for one caller and is nobody else's.
    RefuseOnce(Rejection),
}

impl Decision {
    /// The grant for a request for this resource, or its refusal.
    pub fn of(&self, resource: &str) -> Result<&Grant, Rejection> {
        match self {
            Self::Allow(grant) => Ok(grant),
            Self::Policy(grant, policy) if policy.allows(INVOKE, resource) => Ok(grant),
            Self::Policy(..) => Err(Rejection::Forbidden("external_policy")),
            Self::Refuse(rejection) | Self::RefuseOnce(rejection) => Err(rejection.clone()),
        }
    }
}

/// Whom an authorizer let in, and what it wants the upstream to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Grant {
    /// Who calls.
    pub identity: Arc<Identity>,
    /// What becomes of the upstream's headers.
    pub headers: Option<Arc<[HeaderChange]>>,
}

/// What a caller of an API asks for, in the words of IAM.
const INVOKE: &str = "execute-api:Invoke";

/// An IAM policy, as far as a request for an API can be judged by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy(pub Vec<Statement>);

/// One statement of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Whether it allows; otherwise it denies.
    pub allows: bool,
    /// What may or may not be done, with wildcards.
    pub actions: Vec<Box<str>>,
    /// To what, with wildcards.
    pub resources: Vec<Box<str>>,
}

impl Policy {
    /// Whether this may be done: some statement allows it, and none denies it.
    pub fn allows(&self, action: &str, resource: &str) -> bool {
        let mut allowed = false;
        for statement in self.0.iter().filter(|statement| statement.applies(action, resource)) {
            if !statement.allows {
                return false;
            }
            allowed = true;
        }
        allowed
    }
}

impl Statement {
    fn applies(&self, action: &str, resource: &str) -> bool {
        // IAM compares actions in any case, and resources to the letter.
        let action = action.to_ascii_lowercase();
        self.actions.iter().any(|pattern| matches(pattern.to_ascii_lowercase().as_bytes(), action.as_bytes()))
            && self.resources.iter().any(|pattern| matches(pattern.as_bytes(), resource.as_bytes()))
    }
}

/// Whether a text is what a pattern stands for: `*` is any text, also an empty one, and `?` any one byte.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // The last `*`, and how much of the text it stands for by now.
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(wanted) if wanted == byte || *wanted == b'?' => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, until)) = star else { return false };
                star = Some((at, until + 1));
                p = at + 1;
                t = until + 1;
            }
        }
    }
    pattern.iter().skip(p).all(|rest| *rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_any_text_and_any_byte() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("*", "a/b", true),
            ("a", "a", true),
            ("a", "b", false),
            ("a", "ab", false),
            ("ab", "a", false),
            ("a*", "a", true),
            ("a*c", "abbc", true),
            ("a*c", "abcb", false),
            ("a*b*c", "a-b-b-c", true),
            ("*/GET/*", "x/y/GET/orders/7", true),
            ("*/GET/*", "x/y/POST/orders/7", false),
            ("?", "a", true),
            ("?", "", false),
            ("a?c", "abc", true),
            ("**a**", "bab", true),
            ("*a", "aab", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
        let (pattern, text) = ("*a".repeat(1_000) + "b", "a".repeat(30_000));
        assert!(!matches(pattern.as_bytes(), text.as_bytes()), "and in no time");
    }

    #[test]
    fn a_policy_allows_what_it_allows_and_never_what_it_denies() {
        let statement = |allows, action: &str, resource: &str| Statement {
            allows,
            actions: vec![action.into()],
            resources: vec!["arn:other".into(), resource.into()],
        };
        let orders = "arn:api/$default/GET/orders/7";
        for (what, statements, expected) in [
            ("nothing said", vec![], false),
            ("allowed to the letter", vec![statement(true, "execute-api:Invoke", orders)], true),
            ("allowed with wildcards", vec![statement(true, "execute-api:*", "arn:api/*/GET/*")], true),
            ("an action in another case", vec![statement(true, "EXECUTE-API:invoke", "*")], true),
            ("a resource in another case", vec![statement(true, "*", "ARN:API/$default/GET/orders/7")], false),
            ("another action", vec![statement(true, "execute-api:ManageConnections", "*")], false),
            ("another method", vec![statement(true, "*", "arn:api/$default/POST/orders/7")], false),
            ("denied after it was allowed", vec![statement(true, "*", "*"), statement(false, "*", orders)], false),
            ("denied before it is allowed", vec![statement(false, "*", orders), statement(true, "*", "*")], false),
            ("another one denied", vec![statement(true, "*", "*"), statement(false, "*", "*/DELETE/*")], true),
            ("only denied", vec![statement(false, "*", "*/DELETE/*")], false),
        ] {
            assert_eq!(Policy(statements).allows(INVOKE, orders), expected, "{what}");
        }
    }
}
