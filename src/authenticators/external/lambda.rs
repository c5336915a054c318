//! The words of a Lambda authorizer: a request event (payload format 2.0), and its two answers, the simple one and the policy document.
//!
//! An answer that is not entirely understood is none: a condition that was passed over would be a permission that nobody gave.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, header};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use smol_str::SmolStr;

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
        principal: SmolStr,
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
    let known = known && document.remove("Id").is_none_or(|id| id.is_string());
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
    let named = members.remove("Sid").is_none_or(|id| id.is_string());
    (named && members.is_empty()).then_some(statement)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Client, Parameters};
    use http::{HeaderValue, Method};

    const ALLOWED: &str =
        r#"{"Version": "2012-10-17", "Statement": [{"Action": "execute-api:Invoke", "Effect": "Allow", "Resource": "*"}]}"#;

    fn statement(text: &str) -> String {
        format!(r#"{{"principalId": "u", "policyDocument": {{"Statement": [{text}]}}}}"#)
    }

    #[test]
    fn the_two_answers_are_read() {
        let simple = Answer::parse(br#"{"isAuthorized": true, "context": {"tenant": "acme", "n": 7}}"#).unwrap();
        let Answer::Simple { authorized: true, context } = simple else { panic!("{simple:?}") };
        assert_eq!(Value::Object(context), json!({"tenant": "acme", "n": 7}));
        for (text, expected) in [
            (r#"{"isAuthorized": false}"#, false),
            (r#"{"isAuthorized": true}"#, true),
            (r#"{"isAuthorized": true, "context": null}"#, true),
        ] {
            assert_eq!(Answer::parse(text.as_bytes()), Some(Answer::Simple { authorized: expected, context: Map::new() }), "{text}");
        }
        let document =
            format!(r#"{{"principalId": "user", "policyDocument": {ALLOWED}, "context": {{"a": 1}}, "usageIdentifierKey": "k"}}"#);
        let Some(Answer::Policy { principal, policy, context }) = Answer::parse(document.as_bytes()) else { panic!("{document}") };
        assert_eq!((&*principal, policy.0.len(), context.len()), ("user", 1, 1));
        let several = statement(
            r#"{"Effect": "Allow", "Action": ["a", "b"], "Resource": ["c"], "Sid": "s"}, {"Effect": "Deny", "Action": "a", "Resource": "d"}"#,
        );
        let Some(Answer::Policy { policy, .. }) = Answer::parse(several.as_bytes()) else { panic!("{several}") };
        assert_eq!(policy.0.iter().map(|statement| statement.allows).collect::<Vec<_>>(), [true, false]);
        let thrown = br#"{"errorMessage": "Unauthorized", "errorType": "Error", "trace": []}"#;
        assert_eq!(Answer::parse(thrown), Some(Answer::Unauthorized));
    }

    #[test]
    fn an_answer_that_is_not_understood_to_the_last_member_is_none() {
        let full = |statement: &str| format!(r#"{{"principalId": "u", "policyDocument": {{"Statement": {statement}}}}}"#);
        for text in [
            "",
            "true",
            "[]",
            "{}",
            "OK",
            "<html>",
            r#"{"isAuthorized": "true"}"#,
            r#"{"isAuthorized": 1}"#,
            r#"{"isAuthorized": null}"#,
            r#"{"IsAuthorized": true}"#,
            r#"{"isAuthorized": true, "isAuthorized": false}"#,
            r#"{"isAuthorized": true, "context": []}"#,
            r#"{"isAuthorized": true, "context": "acme"}"#,
            r#"{"isAuthorized": true, "effect": "Deny"}"#,
            &format!(r#"{{"isAuthorized": true, "principalId": "u", "policyDocument": {ALLOWED}}}"#),
            &format!(r#"{{"policyDocument": {ALLOWED}}}"#),
            &format!(r#"{{"principalId": "", "policyDocument": {ALLOWED}}}"#),
            &format!(r#"{{"principalId": 7, "policyDocument": {ALLOWED}}}"#),
            &format!(r#"{{"principalId": "u", "policyDocument": {ALLOWED}, "usageIdentifierKey": 7}}"#),
            &format!(r#"{{"principalId": "u", "policyDocument": {ALLOWED}, "more": 7}}"#),
            r#"{"principalId": "u", "policyDocument": {}}"#,
            r#"{"principalId": "u", "policyDocument": {"Statement": [], "Version": "2020-01-01"}}"#,
            r#"{"principalId": "u", "policyDocument": {"Statement": [], "More": 1}}"#,
            &full("[7]"),
            &full("null"),
            &statement(r#"{"Effect": "allow", "Action": "*", "Resource": "*"}"#),
            &statement(r#"{"Action": "*", "Resource": "*"}"#),
            &statement(r#"{"Effect": "Allow", "Resource": "*"}"#),
            &statement(r#"{"Effect": "Allow", "Action": "*"}"#),
            &statement(r#"{"Effect": "Allow", "Action": [], "Resource": "*"}"#),
            &statement(r#"{"Effect": "Allow", "Action": [7], "Resource": "*"}"#),
            &statement(r#"{"Effect": "Allow", "NotAction": "x", "Resource": "*"}"#),
            &statement(r#"{"Effect": "Allow", "Action": "*", "Resource": "*", "NotResource": "x"}"#),
            &statement(r#"{"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {"IpAddress": {}}}"#),
            &statement(r#"{"Effect": "Allow", "Action": "*", "Resource": "*", "Principal": "*"}"#),
            r#"{"errorMessage": "Unauthorized."}"#,
            r#"{"errorMessage": ["Unauthorized"]}"#,
            r#"{"message": "Unauthorized"}"#,
        ] {
            assert_eq!(Answer::parse(text.as_bytes()), None, "{text}");
        }
    }

    fn headers(lines: &[(&'static str, &[u8])]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap())).collect()
    }

    const SHOWN: [HeaderName; 4] = [header::AUTHORIZATION, header::COOKIE, header::ACCEPT, HeaderName::from_static("x-absent")];

    #[test]
    fn an_event_tells_of_the_request_and_of_nothing_else() {
        let mut headers = headers(&[
            ("authorization", b"Bearer abc"),
            ("cookie", b"a=1; b=2"),
            ("accept", b"text/html"),
            ("user-agent", b"curl"),
            ("x-forwarded-for", b"127.0.0.1"),
            ("x-user-id", b"root"),
            ("host", b"forged"),
        ]);
        headers.append(header::ACCEPT, HeaderValue::from_static("*/*"));
        headers.append(header::COOKIE, HeaderValue::from_static("c=3"));
        let client = Client { address: "::ffff:192.0.2.7".parse().unwrap(), through_trusted_proxy: false };
        let request = Request {
            query: Some("a=1&a=2&b=x%20y+z&c&=d"),
            port: Some("8443"),
            scheme: "https",
            route: "orders",
            parameters: Parameters(&[("id", "7")]),
            body: Some(b"\xff"),
            ..Request::new(&Method::POST, "api.test", "/orders/7", &headers, &client)
        };
        let resource = resource("arn:api/$default", &request);
        let event: Value = serde_json::from_slice(&event(&request, &SHOWN, &[b"Bearer abc"], &resource).unwrap()).unwrap();
        let expected = json!({
            "version": "2.0",
            "type": "REQUEST",
            "routeArn": "arn:api/$default/POST/orders/7",
            "routeKey": "orders",
            "rawPath": "/orders/7",
            "rawQueryString": "a=1&a=2&b=x%20y+z&c&=d",
            "headers": {
                "authorization": "Bearer abc",
                "accept": "text/html,*/*",
                "host": "api.test:8443",
                "x-forwarded-for": "192.0.2.7",
                "x-forwarded-proto": "https",
            },
            "queryStringParameters": {"a": "1,2", "b": "x y z", "c": "", "": "d"},
            "pathParameters": {"id": "7"},
            "identitySource": ["Bearer abc"],
            "cookies": ["a=1", "b=2", "c=3"],
            "requestContext": {
                "domainName": "api.test",
                "routeKey": "orders",
                "stage": "$default",
                "http": {"method": "POST", "path": "/orders/7", "protocol": "HTTP/1.1", "sourceIp": "192.0.2.7", "userAgent": "curl"},
            },
            "body": "/w==",
            "isBase64Encoded": true,
        });
        assert_eq!(event, expected);
    }

    #[test]
    fn what_cannot_be_told_in_json_as_it_is_is_a_bad_request() {
        let client = Client { address: [192, 0, 2, 7].into(), through_trusted_proxy: false };
        for (lines, query, reason) in [
            (&[("authorization", &b"Bearer \xff"[..])][..], None, Some("header_encoding")),
            (&[("accept", b"\xe9")], None, Some("header_encoding")),
            (&[("cookie", b"a=\xff")], None, Some("header_encoding")),
            (&[("user-agent", b"\xff")], None, Some("header_encoding")),
            (&[("x-not-shown", b"\xff")], None, None),
            (&[], Some("a=%ff"), Some("query_encoding")),
            (&[], Some("%ff"), Some("query_encoding")),
            (&[], Some("a=%C3%A9&%zz"), None),
        ] {
            let headers = headers(lines);
            let request = Request { query, ..Request::new(&Method::GET, "api.test", "/", &headers, &client) };
            let refused = event(&request, &SHOWN, &[], "arn").err().map(|rejection| rejection.reason().unwrap());
            assert_eq!(refused, reason, "{lines:?} {query:?}");
        }
    }
}
