//! The words of a Lambda authorizer: a request event (payload format 2.0), and its two answers, the simple one and the policy document.
//!
//! An answer that is not entirely understood is none: a condition that was passed over would be a permission that nobody gave.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, header};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use crate::jose::json;
use crate::live::decisions::{Policy, Statement};
use crate::request::{Rejection, Request};

/// What a Lambda authorizer says.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The simple answer.
    Simple {
        /// Whether the request may go on.
        authorized: bool,
        /// What else it says of the caller.
        context: Map<String, Value>,
    },
    /// A policy document, which other requests can be judged by as well.
    Policy {
        /// Who calls.
        principal: Arc<str>,
        /// What they may.
        policy: Policy,
        /// What else it says of the caller.
        context: Map<String, Value>,
    },
    /// The function failed with the one word that stands for "this credential is not good".
    Unauthorized,
}

impl Answer {
    /// Reads an answer; none when it is not one of these to the last member.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut members = json::object(body)?;
        if let Some(authorized) = members.remove("isAuthorized") {
            let answer = Self::Simple { authorized: authorized.as_bool()?, context: context(&mut members)? };
            return members.is_empty().then_some(answer);
        }
        if let Some(document) = members.remove("policyDocument") {
            let principal = text(members.remove("principalId")?).filter(|principal| !principal.is_empty())?.into();
            let answer = Self::Policy { principal, policy: policy(document)?, context: context(&mut members)? };
            // The key of a usage plan of theirs says nothing here.
            let usage = members.remove("usageIdentifierKey").unwrap_or_default();
            return (members.is_empty() && (usage.is_null() || usage.is_string())).then_some(answer);
        }
        (members.get("errorMessage")? == "Unauthorized").then_some(Self::Unauthorized)
    }
}

fn context(members: &mut Map<String, Value>) -> Option<Map<String, Value>> {
    match members.remove("context") {
        None | Some(Value::Null) => Some(Map::new()),
        Some(Value::Object(context)) => Some(context),
        Some(_) => None,
    }
}

fn policy(document: Value) -> Option<Policy> {
    let Value::Object(mut document) = document else { return None };
    let version = document.remove("Version");
    let statements = list(document.remove("Statement")?);
    let known = version.is_none_or(|version| version == "2012-10-17" || version == "2008-10-17");
    document.remove("Id");
    (known && document.is_empty()).then_some(())?;
    statements.into_iter().map(statement).collect::<Option<Vec<_>>>().map(Policy)
}

/// `Condition`, `NotAction`, `NotResource` and whatever else narrows a statement is not understood here, so the whole answer is not.
fn statement(statement: Value) -> Option<Statement> {
    let Value::Object(mut members) = statement else { return None };
    let allows = match members.remove("Effect")?.as_str()? {
        "Allow" => true,
        "Deny" => false,
        _ => return None,
    };
    let mut texts = |name: &str| -> Option<Vec<Box<str>>> {
        let texts: Vec<Box<str>> = list(members.remove(name)?).into_iter().map(|value| Some(text(value)?.into())).collect::<Option<_>>()?;
        (!texts.is_empty()).then_some(texts)
    };
    let statement = Statement { allows, actions: texts("Action")?, resources: texts("Resource")? };
    members.remove("Sid");
    members.is_empty().then_some(statement)
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(elements) => elements,
        one => vec![one],
    }
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// The name of what a request asks for: `ARN/METHOD/PATH`.
pub fn resource(arn: &str, request: &Request<'_>) -> String {
    format!("{arn}/{}{}", request.method, request.path)
}

/// The event that tells of a request. It holds nothing but the request, so that the same request makes the same event.
///
/// # Errors
/// A header or a query that cannot be told in JSON as it is.
pub fn event(request: &Request<'_>, shown: &[HeaderName], credentials: &[&[u8]], resource: &str) -> Result<Vec<u8>, Rejection> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| Rejection::BadRequest("header_encoding"));
    let client = request.client.address.to_canonical().to_string();
    let mut headers = Map::new();
    for name in shown.iter().filter(|name| **name != header::COOKIE) {
        let lines: Vec<&[u8]> = request.headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect();
        if !lines.is_empty() {
            headers.insert(name.as_str().to_owned(), text(&lines.join(&b","[..]))?.into());
        }
    }
    headers.insert("host".to_owned(), request.authority().into());
    headers.insert("x-forwarded-for".to_owned(), client.as_str().into());
    headers.insert("x-forwarded-proto".to_owned(), request.scheme.into());
    let mut event = json!({
        "version": "2.0",
        "type": "REQUEST",
        "routeArn": resource,
        "routeKey": request.route,
        "rawPath": request.path,
        "rawQueryString": request.query.unwrap_or_default(),
        "headers": headers,
        "queryStringParameters": query_parameters(request.query.unwrap_or_default())?,
        "pathParameters": request.parameters.0.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect::<Map<_, _>>(),
        "identitySource": credentials.iter().map(|credential| text(credential)).collect::<Result<Vec<_>, _>>()?,
        "cookies": cookies(request.headers).map(text).collect::<Result<Vec<_>, _>>()?,
        "requestContext": {
            "domainName": request.host,
            "routeKey": request.route,
            "stage": "$default",
            "http": {
                "method": request.method.as_str(),
                "path": request.path,
                // What API Gateway says of every request.
                "protocol": "HTTP/1.1",
                "sourceIp": client,
                "userAgent": text(request.headers.get(header::USER_AGENT).map_or(b"", |agent| agent.as_bytes()))?,
            },
        },
    });
    if let (Some(body), Some(members)) = (request.body, event.as_object_mut()) {
        let as_text = std::str::from_utf8(body).ok();
        members.insert("body".to_owned(), as_text.map_or_else(|| STANDARD.encode(body), str::to_owned).into());
        members.insert("isBase64Encoded".to_owned(), as_text.is_none().into());
    }
    Ok(event.to_string().into_bytes())
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(header::COOKIE).iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';')).map(<[u8]>::trim_ascii).filter(|cookie| !cookie.is_empty())
}

/// Names and values decoded; several values of a name are joined by commas.
fn query_parameters(query: &str) -> Result<Map<String, Value>, Rejection> {
    let decoded = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8().map(|text| text.into_owned()).map_err(|_| Rejection::BadRequest("query_encoding"))
    };
    let mut parameters: Map<String, Value> = Map::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decoded(name)?, decoded(value)?);
        match parameters.get_mut(&name) {
            Some(Value::String(values)) => {
                values.push(',');
                values.push_str(&value);
            }
            _ => {
                parameters.insert(name, value.into());
            }
        }
    }
    Ok(parameters)
}
