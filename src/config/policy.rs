//! Who may enter a route, how often, and what the service behind it is told about them.

use std::collections::HashSet;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Map as Object, Value, json};

use super::decode::{Context, Decode, Fields, Map, NonEmpty, OneOrMany, Scalar, grammar, nearest_of, words};
use super::limit::{ClaimPath, refuse_twice};
use super::values::{HeaderName, Name, Networks, Scope, Text};
use super::yaml::{Kind, Node};
use super::{At, Named, Problem, header};

grammar! {
    /// What a request must be to enter.
    #[checked(check_policy)]
    pub struct Policy {
        /// Networks that may not enter, asked before `allow`: who is in one is refused, whatever `allow` says.
        deny: Vec<IpNet> as Networks = "[]",
        /// The only networks that may enter. Absent: all.
        allow: Option<Vec<IpNet>> as Option<NonEmpty<Networks>> = absent,
        /// The limits that apply, by name: one whose key needs the identity is checked after it, the others before. Those of the caller's
        /// plan apply as well.
        limits: Vec<At<Arc<str>>> as Vec<At<Name>> = "[]",
        /// Who proves the caller: authenticators by name, any one of which is enough; or `public`: anyone may enter.
        authenticate: Authenticate,
        /// What the proven caller must hold.
        authorize: Authorize = "{}",
        /// What the upstream is told.
        forward: Forward = "{}",
    }

    /// What the proven caller must hold: all of these keys together.
    #[derive(Default)]
    pub struct Authorize {
        /// All of these scopes.
        scopes: Vec<Arc<str>> as Vec<Scope> = "[]",
        /// Any one of these roles. None written: any role or none.
        roles: Vec<Arc<str>> as Vec<Text> = "[]",
        /// Each of these claims, with one of its values.
        claims: Named<Vec<Arc<str>>> as Map<ClaimPath, NonEmpty<OneOrMany<Text>>> = "{}",
    }

    /// What the upstream is told, beside the standard identity headers.
    #[checked(check_forward)]
    pub struct Forward {
        /// Headers that are set, each from a template. What the caller sent under these names is removed.
        headers: Vec<(At<http::HeaderName>, At<Vec<TemplatePart>>)> as Map<HeaderName, At<Template>> = "{}",
        /// What becomes of the credential that was accepted.
        token: Token = "strip",
    }

    /// Any one of these.
    struct WrittenAny {
        /// The authenticators, by name.
        any: Vec<At<Arc<str>>> as NonEmpty<Vec<At<AuthenticatorName>>>,
    }
}

words! {
    /// What becomes of the credential that was accepted.
    pub enum Token {
        /// It is removed.
        Strip = "strip",
        /// It goes on to the upstream.
        Keep = "keep",
    }
}

/// Who may prove the caller.
#[derive(Debug, Clone)]
pub enum Authenticate {
    /// The word `public`: anyone may enter.
    Public,
    /// Any one of these.
    Any(Vec<At<Arc<str>>>),
}

impl Decode for Authenticate {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        match &node.kind {
            Kind::Scalar { text, .. } if text == "public" => Some(Self::Public),
            Kind::Mapping(_) => WrittenAny::decode(node, context).map(|written| Self::Any(written.any)),
            Kind::Scalar { .. } if node.is_null() => context.refuse_kind(node, Self::expected()),
            _ => NonEmpty::<OneOrMany<At<AuthenticatorName>>>::decode(node, context).map(Self::Any),
        }
    }

    fn expected() -> String {
        "the word `public`, or the name of an authenticator, or a list of names".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        let mut schema = NonEmpty::<OneOrMany<At<AuthenticatorName>>>::schema(definitions);
        if let Some(Value::Array(forms)) = schema.get_mut("anyOf") {
            forms.insert(0, json!({"const": "public"}));
            forms.push(WrittenAny::schema(definitions));
        }
        schema
    }
}

/// The name of an authenticator. `public` is a word, not a name: beside a name it would say that anyone may enter after all.
pub(crate) struct AuthenticatorName;

impl Scalar for AuthenticatorName {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        match text {
            "public" => Err("`public` stands alone and names no authenticator".to_owned()),
            _ => Name::parse(text),
        }
    }

    fn expected() -> String {
        "the name of an authenticator".to_owned()
    }

    fn schema() -> Value {
        <Name as Scalar>::schema()
    }
}

/// A piece of a header's template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplatePart {
    /// Text as it stands: visible ASCII and spaces.
    Text(Arc<str>),
    /// `{subject}`
    Subject,
    /// `{consumer}`
    Consumer,
    /// `{client}`
    Client,
    /// `{key_id}`
    KeyId,
    /// `{plan}`
    Plan,
    /// `{scopes}`, separated by spaces.
    Scopes,
    /// `{roles}`, separated by spaces.
    Roles,
    /// `{method}`, the kind of credential.
    Method,
    /// `{claims.a.b}`: the dotted path `a.b`.
    Claim(Arc<str>),
}

const PLACEHOLDERS: [(&str, TemplatePart); 8] = [
    ("subject", TemplatePart::Subject),
    ("consumer", TemplatePart::Consumer),
    ("client", TemplatePart::Client),
    ("key_id", TemplatePart::KeyId),
    ("plan", TemplatePart::Plan),
    ("scopes", TemplatePart::Scopes),
    ("roles", TemplatePart::Roles),
    ("method", TemplatePart::Method),
];

/// The value of a header that is set for the upstream.
pub(crate) struct Template;

impl Scalar for Template {
    type Value = Vec<TemplatePart>;

    fn parse(text: &str) -> Result<Vec<TemplatePart>, String> {
        if text.trim() != text || text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err("not the value of a header".to_owned());
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at_checked(at).unwrap_or((rest, ""));
            literal.push_str(before);
            if let Some(after) = from.strip_prefix("{{") {
                literal.push('{');
                rest = after;
            } else if let Some(after) = from.strip_prefix("}}") {
                literal.push('}');
                rest = after;
            } else if let Some((name, after)) = from.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
                if !literal.is_empty() {
                    parts.push(TemplatePart::Text(std::mem::take(&mut literal).into()));
                }
                parts.push(placeholder(name)?);
                rest = after;
            } else {
                return Err("a brace that is not closed or not opened".to_owned());
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(TemplatePart::Text(literal.into()));
        }
        Ok(parts)
    }

    fn expected() -> String {
        let names: Vec<_> = PLACEHOLDERS.iter().map(|(name, _)| format!("`{{{name}}}`")).collect();
        format!("visible ASCII with {} or `{{claims.NAME}}` in it; `{{{{` and `}}}}` are the braces themselves", names.join(", "))
    }

    fn schema() -> Value {
        json!({"title": "template", "type": "string", "minLength": 1})
    }
}

fn placeholder(name: &str) -> Result<TemplatePart, String> {
    if let Some(claim) = name.strip_prefix("claims.") {
        return ClaimPath::parse(claim).map(TemplatePart::Claim);
    }
    match PLACEHOLDERS.iter().find(|(known, _)| *known == name) {
        Some((_, part)) => Ok(part.clone()),
        None => Err(format!("an unknown placeholder{}", nearest_of(name, &PLACEHOLDERS.map(|(known, _)| known)))),
    }
}

fn check_policy(policy: &Policy, _: &Fields<'_>, context: &mut Context<'_>) {
    refuse_twice(&policy.limits, "limit", context);
}

fn check_forward(forward: &Forward, _: &Fields<'_>, context: &mut Context<'_>) {
    let mut seen = HashSet::new();
    for (name, _) in &forward.headers {
        // `X_User_Id` beside our own `X-User-Id` would be two values of one name to some servers.
        let alias = header::is_reserved(name) && header::folded(name) != name.as_str();
        if alias || header::is_transport(name) || matches!(name.as_str(), "authorization" | "cookie") {
            context.report(
                Problem::at(&name.place, "this header is not a policy's to set")
                    .expected("an identity header, or one of your own such as `X-Tenant`"),
            );
        } else if !seen.insert(header::folded(name)) {
            context.report(Problem::at(&name.place, "the same header twice, but for case or `_`").expected("each header once"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_cut_into_its_parts() {
        let text = |text: &str| TemplatePart::Text(text.into());
        for (template, parts) in [
            ("plain", vec![text("plain")]),
            ("{subject}", vec![TemplatePart::Subject]),
            (
                "u:{subject} at {claims.org.id}!",
                vec![text("u:"), TemplatePart::Subject, text(" at "), TemplatePart::Claim("org.id".into()), text("!")],
            ),
            ("{{subject}}", vec![text("{subject}")]),
            ("{{{client}}}", vec![text("{"), TemplatePart::Client, text("}")]),
        ] {
            assert_eq!(Template::parse(template), Ok(parts), "{template}");
        }
        for template in [
            "",
            " a",
            "{",
            "}",
            "{subject",
            "{}",
            "{Subject}",
            "{claims}",
            "{claims.}",
            "{claims.a..b}",
            "{subject}}",
            "a\r\nX-Admin: 1",
            "\u{e9}",
        ] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
    }
}
