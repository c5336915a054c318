//! May you: what the proven caller must hold.

pub mod expression;

use std::sync::Arc;

use serde_json::Value;

use crate::config::Authorize;
use crate::request::{Identity, Rejection, Request};
use expression::Expression;

/// The scopes, roles, claims and the condition that a policy asks for, all of them together.
#[derive(Debug)]
pub struct Authorizers {
    /// All of these.
    scopes: Box<[Arc<str>]>,
    /// The same, separated by spaces, for the challenge.
    scopes_asked: Arc<str>,
    /// Any one of these; empty: any or none.
    roles: Box<[Arc<str>]>,
    /// Each of these, with one of its values.
    claims: Box<[Claim]>,
    /// This.
    when: Option<Expression>,
}

/// A claim by its dotted path, and the values that are good.
#[derive(Debug)]
struct Claim {
    path: Arc<str>,
    values: Box<[Arc<str>]>,
}

impl Authorizers {
    /// Compiles what a policy asks for, with its condition already read.
    pub fn compile(authorize: &Authorize, when: Option<Expression>) -> Self {
        Self {
            scopes: authorize.scopes.as_slice().into(),
            scopes_asked: authorize.scopes.join(" ").into(),
            roles: authorize.roles.as_slice().into(),
            claims: authorize
                .claims
                .iter()
                .map(|(path, values)| Claim { path: path.value.clone(), values: values.as_slice().into() })
                .collect(),
            when,
        }
    }

    /// The scopes that are asked for, separated by spaces.
    pub fn scopes(&self) -> &str {
        &self.scopes_asked
    }

    /// Refuses an identity that lacks something: with [`Rejection::InsufficientScope`] when it is a scope, as its client can ask for more,
    /// else with [`Rejection::Forbidden`]. Nobody lacks whatever is asked for.
    pub fn authorize(&self, request: &Request<'_>, identity: Option<&Identity>) -> Result<(), Rejection> {
        let Some(identity) = identity else {
            let identity = self.when.as_ref().is_some_and(Expression::needs_identity);
            let asked = identity || !self.scopes.is_empty() || !self.roles.is_empty() || !self.claims.is_empty();
            return if asked { Err(Rejection::CredentialMissing) } else { self.check_condition(request, None) };
        };
        if !self.scopes.iter().all(|scope| identity.scopes.contains(scope)) {
            return Err(Rejection::InsufficientScope(self.scopes_asked.clone()));
        }
        if !self.roles.is_empty() && !self.roles.iter().any(|role| identity.roles.contains(role)) {
            return Err(Rejection::Forbidden("role_missing"));
        }
        let holds = |asked: &Claim| identity.claim(&asked.path).is_some_and(|claim| has_one_of(claim, &asked.values));
        if !self.claims.iter().all(holds) {
            return Err(Rejection::Forbidden("claim_mismatch"));
        }
        self.check_condition(request, Some(identity))
    }

    /// The path parameters that its condition speaks of.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.when.iter().flat_map(Expression::parameters)
    }

    fn check_condition(&self, request: &Request<'_>, identity: Option<&Identity>) -> Result<(), Rejection> {
        match self.when.as_ref().map(|when| when.holds(request, identity)) {
            None | Some(Ok(true)) => Ok(()),
            Some(Ok(false)) => Err(Rejection::Forbidden("condition")),
            Some(Err(reason)) => Err(Rejection::Forbidden(reason)),
        }
    }
}

/// Text as it is, numbers and booleans as JSON writes them, lists by any of their elements; objects and null are never a value.
fn has_one_of(claim: &Value, values: &[Arc<str>]) -> bool {
    let is_one_of = |text: &str| values.iter().any(|value| **value == *text);
    match claim {
        Value::String(text) => is_one_of(text),
        Value::Number(_) | Value::Bool(_) => is_one_of(&claim.to_string()),
        Value::Array(elements) => elements.iter().filter(|element| !element.is_array()).any(|element| has_one_of(element, values)),
        Value::Object(_) | Value::Null => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{At, Place};
    use crate::request::Method;
    use serde_json::json;

    fn names(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn identity(scopes: &[&str], roles: &[&str], claims: Value) -> Identity {
        let Value::Object(claims) = claims else { panic!("claims are an object") };
        Identity { scopes: names(scopes).into(), roles: names(roles).into(), claims, ..Identity::new(Method::Jwt, "a".into(), [0; 32]) }
    }

    impl Authorizers {
        fn may(&self, identity: Option<&Identity>) -> Result<(), Rejection> {
            let client = crate::request::Client { address: [192, 0, 2, 1].into(), through_trusted_proxy: false };
            self.authorize(&Request::new(&http::Method::GET, "h", "/", &http::HeaderMap::new(), &client), identity)
        }
    }

    fn claims(asked: &[(&str, &[&str])]) -> Authorizers {
        let place = Place { file: "f".into(), line: 1, column: 1, path: "p".into() };
        let named = |(name, values): &(&str, &[&str])| (At { value: Arc::from(*name), place: place.clone() }, names(values));
        Authorizers::compile(&Authorize { claims: asked.iter().map(named).collect(), ..Authorize::default() }, None)
    }

    #[test]
    fn all_scopes_are_asked_for_and_the_refusal_names_them() {
        let authorizers =
            Authorizers::compile(&Authorize { scopes: names(&["orders:read", "orders:write"]), ..Authorize::default() }, None);
        let refused = Err(Rejection::InsufficientScope("orders:read orders:write".into()));
        for (scopes, expected) in [
            (&["orders:write", "x", "orders:read"][..], Ok(())),
            (&["orders:read"], refused.clone()),
            (&["orders:read", "xorders:write"], refused.clone()),
            (&["orders:read", "ORDERS:WRITE"], refused.clone()),
            (&["orders:read orders:write"], refused.clone()),
            (&[], refused),
        ] {
            assert_eq!(authorizers.may(Some(&identity(scopes, &[], json!({})))), expected, "{scopes:?}");
        }
    }

    #[test]
    fn any_role_is_enough() {
        let authorizers = Authorizers::compile(&Authorize { roles: names(&["admin", "auditor"]), ..Authorize::default() }, None);
        for (roles, expected) in
            [(&["auditor"][..], true), (&["user", "admin"], true), (&["user"], false), (&["admins"], false), (&[], false)]
        {
            assert_eq!(authorizers.may(Some(&identity(&[], roles, json!({})))).is_ok(), expected, "{roles:?}");
        }
    }

    #[test]
    fn each_claim_must_have_one_of_its_values() {
        let authorizers = claims(&[("tenant", &["acme", "7", "true"]), ("org.level", &["1"])]);
        for (given, expected) in [
            (json!({"tenant": "acme", "org": {"level": 1}}), true),
            (json!({"tenant": 7, "org": {"level": "1"}}), true),
            (json!({"tenant": true, "org.level": [0, 1]}), true),
            (json!({"tenant": ["x", "acme"], "org": {"level": 1}}), true),
            (json!({"tenant": "acme"}), false),
            (json!({"tenant": "acme", "org": {"level": 1.0}}), false),
            (json!({"tenant": "acme2", "org": {"level": 1}}), false),
            (json!({"tenant": "ACME", "org": {"level": 1}}), false),
            (json!({"tenant": null, "org": {"level": 1}}), false),
            (json!({"tenant": {"acme": "acme"}, "org": {"level": 1}}), false),
            (json!({"tenant": [["acme"]], "org": {"level": 1}}), false),
            (json!({"tenant": [], "org": {"level": 1}}), false),
            (json!({}), false),
        ] {
            let expected = if expected { Ok(()) } else { Err(Rejection::Forbidden("claim_mismatch")) };
            assert_eq!(authorizers.may(Some(&identity(&[], &[], given.clone()))), expected, "{given}");
        }
    }

    #[test]
    fn a_claim_without_values_admits_nobody_and_a_policy_that_asks_nothing_everybody() {
        assert!(claims(&[("tenant", &[])]).may(Some(&identity(&[], &[], json!({"tenant": "acme"})))).is_err());
        assert!(claims(&[]).may(Some(&identity(&[], &[], json!({})))).is_ok());
    }
}
