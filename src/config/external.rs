//! External authorizers: whom to ask, what to show, what to take over from the answer, and how long to remember it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map as Object, Value, json};

use super::authenticator::Location;
use super::decode::{Context, Decode, Fields, NonEmpty, OneOrMany, Scalar, grammar, unknown_word, words};
use super::dependency::{Breaker, OnFailure};
use super::limit::ClaimPath;
use super::values::{DAY, HeaderName, Lasting, MINUTE, SECOND, Sized, Text, Url, Within};
use super::yaml::{Kind, Node};
use super::{File, header};

grammar! {
    /// Another service that is asked who calls and whether they may.
    #[checked(check_external)]
    pub struct External {
        /// Where it is asked.
        url: Arc<str> as Url,
        /// How it is asked and how it answers.
        response: ExternalResponse = "forward_auth",
        /// How long an answer may take.
        timeout: Duration as Lasting<1, {30 * SECOND}> = "500ms",
        /// The authorities to trust for its TLS, in PEM. Absent: the system's.
        ca: Option<File> = absent,
        /// Where the credential sits that it judges; what sits there is not forwarded.
        from: Vec<Location> as NonEmpty<Vec<Location>> = "[{header: Authorization}]",
        /// What happens to a request with nothing in `from`.
        when_missing: WhenAbsent = "ask",
        /// Headers of the caller that it is shown, beside `Authorization`, `Cookie` and those in `from`.
        send: Vec<http::HeaderName> as Vec<HeaderName> = "[]",
        /// It is shown the body, which may be as long as this: a longer one is refused. Absent: it is shown none.
        body: Option<u64> as Option<Sized<1, {64 * 1024}>> = absent,
        /// With `forward_auth`: headers of its answer that replace the caller's. One that the answer lacks is removed.
        copy: Vec<http::HeaderName> as Vec<HeaderName> = "[]",
        /// Which parts of its answer say who calls.
        claims: ExternalClaims = "{}",
        /// With `lambda`: what the ARN of a request begins with; `/`, method and path follow.
        arn: Arc<str> as Text = "arn:aws:execute-api:local:000000000000:edgeward/$default",
        /// Remembers decisions. Absent: it is asked about every request.
        cache: Option<DecisionCache> = absent,
        /// When it is taken to be away.
        breaker: Breaker = "{}",
        /// What happens while it is away.
        on_failure: OnFailure = "deny",
    }

    /// Which parts of the answer say who calls: headers with `forward_auth`, members of the context with `lambda`.
    pub struct ExternalClaims {
        /// The user or service. With `lambda` and a policy document it is the `principalId` unless this names another.
        subject: Option<Arc<str>> as Option<ClaimPath> = absent,
        /// The accountable party.
        consumer: Option<Arc<str>> as Option<ClaimPath> = absent,
        /// The OAuth2 client.
        client: Option<Arc<str>> as Option<ClaimPath> = absent,
        /// Scopes: a list, or one text with spaces. All of these together.
        scopes: Vec<Arc<str>> as OneOrMany<ClaimPath> = "[]",
        /// Roles: a list, or one text with commas. All of these together.
        roles: Vec<Arc<str>> as OneOrMany<ClaimPath> = "[]",
        /// The usage plan.
        plan: Option<Arc<str>> as Option<ClaimPath> = absent,
    }

    /// How decisions are remembered.
    #[checked(check_cache)]
    pub struct DecisionCache {
        /// What makes two requests the same. Absent: everything that the authorizer is shown.
        by: Vec<DecisionKey> as NonEmpty<OneOrMany<DecisionKey>> = absent,
        /// How long who was let in is let in again.
        ttl: Duration as Lasting<SECOND, DAY> = "60s",
        /// How long who was refused is refused again; `0s`: not at all.
        deny_ttl: Duration as Lasting<0, {10 * MINUTE}> = "10s",
        /// How many decisions are kept.
        entries: u64 as Within<u64, 1, 1_000_000> = "10000",
    }

    /// A part of a request that is not a word of its own.
    struct WrittenDecisionKey {
        /// A request header.
        header: http::HeaderName as HeaderName,
    }
}

words! {
    /// How an external authorizer is asked and how it answers.
    pub enum ExternalResponse {
        /// As nginx and Traefik ask: a GET with the request in `X-Forwarded-*`; a status of 2xx lets in.
        ForwardAuth = "forward_auth",
        /// As API Gateway asks a Lambda authorizer: the request in JSON; `isAuthorized` or a policy document lets in.
        Lambda = "lambda",
    }

    /// What happens to a request without a credential.
    pub enum WhenAbsent {
        /// The authorizer is asked all the same: it may send the caller to a login page, or let anyone in.
        Ask = "ask",
        /// It is left to the next authenticator, and refused by us where there is none.
        Pass = "pass",
    }
}

/// A part of a request that tells decisions apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecisionKey {
    /// What sits in `from`, `Authorization` and the cookies.
    Credential,
    /// The route.
    Route,
    /// The method.
    Method,
    /// The host that was asked for.
    Host,
    /// The path.
    Path,
    /// The query.
    Query,
    /// The client's address.
    ClientIp,
    /// The body.
    Body,
    /// A request header.
    Header(http::HeaderName),
}

const WORDS: [&str; 8] = ["credential", "route", "method", "host", "path", "query", "client_ip", "body"];

impl Decode for DecisionKey {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let text = match &node.kind {
            Kind::Mapping(_) => return WrittenDecisionKey::decode(node, context).map(|written| Self::Header(written.header)),
            Kind::Scalar { text, .. } if !node.is_null() => text,
            _ => return context.refuse_kind(node, Self::expected()),
        };
        match text.as_str() {
            "credential" => Some(Self::Credential),
            "route" => Some(Self::Route),
            "method" => Some(Self::Method),
            "host" => Some(Self::Host),
            "path" => Some(Self::Path),
            "query" => Some(Self::Query),
            "client_ip" => Some(Self::ClientIp),
            "body" => Some(Self::Body),
            _ => context.refuse(node, unknown_word(text, &WORDS), Self::expected()),
        }
    }

    fn expected() -> String {
        format!("one of {}, `{{header: NAME}}`", super::decode::listed(&WORDS))
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        json!({"anyOf": [{"enum": WORDS}, WrittenDecisionKey::schema(definitions)]})
    }
}

fn check_cache(cache: &DecisionCache, fields: &Fields<'_>, context: &mut Context<'_>) {
    // One caller's decision would be every caller's.
    if !cache.by.is_empty() && !cache.by.contains(&DecisionKey::Credential) {
        fields.refuse(context, "decisions on different credentials would be one", "`credential` in `by`, or no `by`");
    }
}

fn check_external(external: &External, fields: &Fields<'_>, context: &mut Context<'_>) {
    for name in external.send.iter().filter(|name| header::is_reserved(name)) {
        fields.refuse(context, format!("a caller's `{name}` is never heard"), "in `send`, headers that are the caller's to set");
    }
    for name in external.copy.iter().filter(|name| header::is_reserved(name) || *name == http::header::SET_COOKIE) {
        let expected = "in `copy`, headers that are neither edgeward's nor the connection's; `claims` says who calls";
        fields.refuse(context, format!("`{name}` is not the authorizer's to set"), expected);
    }
    if external.response == ExternalResponse::ForwardAuth {
        let claims = &external.claims;
        let single = [&claims.subject, &claims.consumer, &claims.client, &claims.plan].into_iter().flatten();
        for name in single.chain(&claims.scopes).chain(&claims.roles).filter(|name| HeaderName::parse(name).is_err()) {
            fields.refuse(context, format!("`{name}` is no header"), "in `claims`, the names of headers of the answer");
        }
    }
    if let Some(cache) = &external.cache
        && external.body.is_some()
        && !cache.by.is_empty()
        && !cache.by.contains(&DecisionKey::Body)
    {
        fields.refuse(context, "decisions on different bodies would be one", "`body` in `by`, or no `by`");
    }
    if matches!(external.on_failure, OnFailure::AllowCached(_)) && external.cache.is_none() {
        fields.refuse(context, "nothing is cached that could be allowed", "`cache`, or another `on_failure`");
    }
    let (other, keys) = match external.response {
        ExternalResponse::ForwardAuth => ("lambda", ["arn"]),
        ExternalResponse::Lambda => ("forward_auth", ["copy"]),
    };
    for key in keys.into_iter().filter_map(|key| Some((key, fields.written(key)?))) {
        context.key(key.0, |context| {
            context.refuse::<()>(key.1, "means nothing with this `response`", format!("this key with `response: {other}` only"))
        });
    }
}
