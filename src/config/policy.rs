//! Who may enter a route, how often, and what the service behind it is told about them.

use std::collections::HashSet;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Map as Object, Value, json};

use super::decode::{Context, Decode, Fields, Map, NonEmpty, OneOrMany, Scalar, grammar, nearest_of, words};
use super::limit::{ClaimPath, refuse_twice};
use super::values::{HeaderName, Name, Networks, Scope, Text, Url};
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
        /// The filters that apply, by name, before any credential is looked at, but for those that are about the caller.
        filters: Vec<At<Arc<str>>> as Vec<At<Name>> = "[]",
        /// The limits that apply, by name: one whose key needs the identity is checked after it, the others before. Those of the caller's
        /// plan apply as well.
        limits: Vec<At<Arc<str>>> as Vec<At<Name>> = "[]",
        /// Who proves the caller: the name of an authenticator; a list, any one of which is enough; `{any: [...]}`, `{all: [...]}` and
        /// `{optional: [...]}` in any nesting; or `public`: anyone may enter.
        authenticate: At<Authenticate>,
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
        /// A condition in CEL over `claims`, `identity`, `request`, `path` (the parameters of the route's path) and `client`, which must be
        /// true. What it speaks of and the request lacks makes it not true.
        when: Option<At<Arc<str>>> as Option<At<Condition>> = absent,
    }

    /// What the upstream is told, beside the standard identity headers.
    #[checked(check_forward)]
    pub struct Forward {
        /// Headers that are set, each from a template. What the caller sent under these names is removed.
        headers: Vec<(At<http::HeaderName>, At<Vec<TemplatePart>>)> as Map<HeaderName, At<Template>> = "{}",
        /// What becomes of the credential that was accepted.
        token: Token = "strip",
        /// With `token: exchange`: the server in `exchanges` that issues the token. Absent: the `issuer` of this gateway signs one.
        exchange: Option<At<Arc<str>>> as Option<At<Name>> = absent,
        /// With `token: exchange`: for whom the token is. Absent: the `resource`, or where there is none the name of the route's upstream.
        audience: Option<Arc<str>> as Option<Text> = absent,
        /// With `exchange`: the URL of the service for which the token is (RFC 8707).
        resource: Option<Arc<str>> as Option<Url> = absent,
        /// With `exchange`: the scopes that are asked for. None written: what the server gives.
        scopes: Vec<Arc<str>> as Vec<Scope> = "[]",
    }

    /// Several credentials, or none.
    #[one_of(any, all, optional)]
    #[checked(check_combination)]
    struct WrittenCombination {
        /// Any one of these; the first that is presented counts.
        any: Vec<Accepted> as NonEmpty<Vec<Accepted>> = absent,
        /// All of these.
        all: Vec<Accepted> as NonEmpty<Vec<Accepted>> = absent,
        /// Any one of these, when it is presented; nobody, when none is. One that is presented and not good refuses.
        optional: Vec<Accepted> as NonEmpty<OneOrMany<Accepted>> = absent,
        /// With `all`: whether the credentials may name different consumers.
        principals: Principals = "same",
    }
}

impl Authorize {
    /// Whether everybody who is proven holds it.
    pub fn asks_nothing(&self) -> bool {
        self.scopes.is_empty() && self.roles.is_empty() && self.claims.is_empty() && self.when.is_none()
    }
}

words! {
    /// Whether several credentials must speak of one principal.
    pub enum Principals {
        /// Those that name a consumer name the same one.
        Same = "same",
        /// They may name different ones; the first counts.
        Different = "different",
    }

    /// What becomes of the credential that was accepted.
    pub enum Token {
        /// It is removed.
        Strip = "strip",
        /// It goes on to the upstream.
        Keep = "keep",
        /// It is removed, and a token for the upstream says who called.
        Exchange = "exchange",
    }
}

/// Who may prove the caller.
#[derive(Debug, Clone)]
pub enum Authenticate {
    /// The word `public`: anyone may enter.
    Public,
    /// Whoever presents this.
    By(Accepted),
}

/// Which credentials are enough.
#[derive(Debug, Clone)]
pub enum Accepted {
    /// One that this authenticator accepts.
    Authenticator(At<Arc<str>>),
    /// Any one of these.
    Any(Vec<Accepted>),
    /// All of these.
    All(Vec<Accepted>, Principals),
    /// This or none.
    Optional(Box<Accepted>),
}

impl Accepted {
    /// Any one of a list; of one there is no choice.
    fn any(mut accepted: Vec<Self>) -> Self {
        match (accepted.len(), accepted.pop()) {
            (1, Some(only)) => only,
            (_, last) => Self::Any(accepted.into_iter().chain(last).collect()),
        }
    }

    /// Every authenticator that is named.
    pub fn names(&self) -> Vec<&At<Arc<str>>> {
        match self {
            Self::Authenticator(name) => vec![name],
            Self::Any(accepted) | Self::All(accepted, _) => accepted.iter().flat_map(Self::names).collect(),
            Self::Optional(accepted) => accepted.names(),
        }
    }

    /// Whether a request without any credential is let through.
    pub fn admits_anonymous(&self) -> bool {
        match self {
            Self::Authenticator(_) => false,
            Self::Any(accepted) => accepted.iter().any(Self::admits_anonymous),
            Self::All(accepted, _) => accepted.iter().all(Self::admits_anonymous),
            Self::Optional(_) => true,
        }
    }
}

impl Forward {
    /// Nothing of a policy's own, and this for the credential.
    pub fn of(token: Token) -> Self {
        Self { headers: Vec::new(), token, exchange: None, audience: None, resource: None, scopes: Vec::new() }
    }
}

impl Decode for Accepted {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        match &node.kind {
            Kind::Mapping(_) => {
                let WrittenCombination { any, all, optional, principals } = WrittenCombination::decode(node, context)?;
                Some(match (all.is_empty(), optional.is_empty()) {
                    (false, _) => Self::All(all, principals),
                    (_, false) => Self::Optional(Self::any(optional).into()),
                    (true, true) => Self::Any(any),
                })
            }
            Kind::Scalar { .. } if !node.is_null() => At::<AuthenticatorName>::decode(node, context).map(Self::Authenticator),
            _ => context.refuse_kind(node, Self::expected()),
        }
    }

    fn expected() -> String {
        "the name of an authenticator, `{any: [...]}`, `{all: [...]}` or `{optional: [...]}`".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        json!({"anyOf": [<AuthenticatorName as Scalar>::schema(), WrittenCombination::schema(definitions)]})
    }
}

fn check_combination(combination: &WrittenCombination, fields: &Fields<'_>, context: &mut Context<'_>) {
    if combination.all.is_empty() && fields.written("principals").is_some() {
        fields.refuse(context, "`principals` speaks of several credentials", "`{all: [...], principals: different}`");
    }
}

impl Decode for Authenticate {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        match &node.kind {
            Kind::Scalar { text, .. } if text == "public" => Some(Self::Public),
            Kind::Scalar { .. } if node.is_null() => context.refuse_kind(node, Self::expected()),
            _ => NonEmpty::<OneOrMany<Accepted>>::decode(node, context).map(|accepted| Self::By(Accepted::any(accepted))),
        }
    }

    fn expected() -> String {
        format!("the word `public`, or {}", OneOrMany::<Accepted>::expected())
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        let mut schema = NonEmpty::<OneOrMany<Accepted>>::schema(definitions);
        if let Some(Value::Array(forms)) = schema.get_mut("anyOf") {
            forms.insert(0, json!({"const": "public"}));
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

/// A condition in CEL. Its names and kinds are checked when the whole is compiled.
pub(crate) struct Condition;

impl Scalar for Condition {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        match text.trim() {
            "" => Err("an empty condition".to_owned()),
            text if text.len() > 4096 => Err("a condition of more than 4096 bytes".to_owned()),
            text => Ok(text.into()),
        }
    }

    fn expected() -> String {
        "a condition in CEL, such as `claims.tenant == path.tenant`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "condition", "type": "string", "minLength": 1, "maxLength": 4096})
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

fn check_forward(forward: &Forward, fields: &Fields<'_>, context: &mut Context<'_>) {
    let (others, wanted): (&[&str], _) = match (forward.token, &forward.exchange) {
        (Token::Exchange, Some(_)) => (&[], ""),
        (Token::Exchange, None) => (&["resource", "scopes"], "`exchange`, the server that is asked"),
        (Token::Strip | Token::Keep, _) => (&["exchange", "audience", "resource", "scopes"], "`token: exchange`"),
    };
    for key in others {
        if let Some(node) = fields.written(key) {
            context.key(key, |context| context.refuse::<()>(node, "has no meaning here", wanted));
        }
    }
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
