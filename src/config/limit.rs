//! Rate limits: how many, in how long, counted per what.

use std::sync::Arc;

use serde_json::{Map as Object, Value, json};

use super::decode::{Context, Decode, Fields, NonEmpty, OneOrMany, Scalar, grammar, unknown_word, words};
use super::header;
use super::values::{HeaderName, Rate, Text, Within};
use super::yaml::{Kind, Node};

grammar! {
    /// A rate limit.
    #[checked(check_limit)]
    pub struct Limit {
        /// What is counted: one key, or several that are counted together.
        per: Vec<LimitKey> as NonEmpty<OneOrMany<LimitKey>>,
        /// How many in how long.
        rate: Rate,
        /// How it is counted.
        algorithm: LimitAlgorithm = "sliding_window",
        /// How much of an IPv6 client address counts as one caller.
        ipv6_prefix: u8 as Within<u8, 1, 128> = "64",
        /// What happens to a request that lacks what is counted.
        when_missing: WhenMissing = "deny",
    }

    /// A key that is not a word of its own.
    #[one_of(header, claim, path)]
    #[checked(check_key)]
    struct WrittenLimitKey {
        /// A request header.
        header: Option<http::HeaderName> as Option<HeaderName> = absent,
        /// A claim of the caller's credential; a dotted path walks into objects.
        claim: Option<Arc<str>> as Option<ClaimPath> = absent,
        /// A parameter of the route's path.
        path: Option<Arc<str>> as Option<Text> = absent,
    }
}

words! {
    /// How a limit is counted.
    pub enum LimitAlgorithm {
        /// The current window and the share of the previous one that still counts.
        SlidingWindow = "sliding_window",
    }

    /// What happens to a request that lacks what is counted.
    pub enum WhenMissing {
        /// It is refused.
        Deny = "deny",
        /// It is not counted.
        Skip = "skip",
        /// It is counted by its client address.
        ClientIp = "client_ip",
    }
}

/// What is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitKey {
    /// The client's address.
    ClientIp,
    /// The accountable party.
    Consumer,
    /// The user or service.
    Subject,
    /// The credential itself.
    Credential,
    /// The route.
    Route,
    /// The host that was asked for.
    Host,
    /// A request header.
    Header(http::HeaderName),
    /// A claim; a dotted path walks into objects.
    Claim(Arc<str>),
    /// A parameter of the route's path.
    Path(Arc<str>),
}

fn check_key(key: &WrittenLimitKey, fields: &Fields<'_>, context: &mut Context<'_>) {
    if let Some(name) = key.header.as_ref().filter(|name| header::is_reserved(name)) {
        fields.refuse(context, format!("a caller's `{name}` is never heard"), "a header that is the caller's to set");
    }
}

const WORDS: [&str; 6] = ["client_ip", "consumer", "subject", "credential", "route", "host"];

impl Decode for LimitKey {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let text = match &node.kind {
            Kind::Mapping(_) => {
                let WrittenLimitKey { header, claim, path } = WrittenLimitKey::decode(node, context)?;
                return header.map(Self::Header).or(claim.map(Self::Claim)).or(path.map(Self::Path));
            }
            Kind::Scalar { text, .. } if !node.is_null() => text,
            _ => return context.refuse_kind(node, Self::expected()),
        };
        match text.as_str() {
            "client_ip" => Some(Self::ClientIp),
            "consumer" => Some(Self::Consumer),
            "subject" => Some(Self::Subject),
            "credential" => Some(Self::Credential),
            "route" => Some(Self::Route),
            "host" => Some(Self::Host),
            _ => context.refuse(node, unknown_word(text, &WORDS), Self::expected()),
        }
    }

    fn expected() -> String {
        format!("one of {}, `{{header: NAME}}`, `{{claim: NAME}}`, `{{path: PARAMETER}}`", super::decode::listed(&WORDS))
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        json!({"anyOf": [{"enum": WORDS}, WrittenLimitKey::schema(definitions)]})
    }
}

/// The name of a claim, or a dotted path into objects.
pub(crate) struct ClaimPath;

impl Scalar for ClaimPath {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        if text.split('.').any(str::is_empty) {
            return Err("not the name of a claim".to_owned());
        }
        Text::parse(text)
    }

    fn expected() -> String {
        "the name of a claim, or a dotted path such as `realm_access.roles`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "claim", "type": "string", "minLength": 1})
    }
}

fn check_limit(limit: &Limit, fields: &Fields<'_>, context: &mut Context<'_>) {
    if limit.per.iter().enumerate().any(|(index, key)| limit.per.iter().take(index).any(|earlier| earlier == key)) {
        fields.refuse(context, "`per` names a key twice", "each key once");
    }
}
