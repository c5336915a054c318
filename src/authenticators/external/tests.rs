//! What an authorizer's answers come to, and which requests are the same to it.

use std::net::TcpListener;

use http::{HeaderMap, Method as HttpMethod};
use serde_json::json;

use super::*;
use crate::config::System;
use crate::request::Client as Caller;

const CREDENTIAL: [u8; 32] = [7; 32];
const NOW: Now = Now { monotonic: Duration::from_secs(1_000), unix: Duration::from_secs(1_800_000_000) };

/// An authorizer that is configured like this, at a port where nobody listens.
fn external(settings: &str) -> External {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edgeward.yaml");
    let text = format!(
        "listeners: [{{address: 127.0.0.1:0}}]\nupstreams: {{demo: {{builtin: echo}}}}\n\
         authenticators: {{custom: {{external: {{url: \"http://{nobody}/check\", {settings}}}}}}}\n\
         routes: [{{name: a, path: /, policy: {{authenticate: custom}}, upstream: demo}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    let config = config::load(&path, &System).config.unwrap();
    let config::Authenticator::External(external) = &config.authenticators[0].1 else { panic!("another authenticator") };
    External::new("custom".into(), external, &LiveState::default()).unwrap()
}

fn answer(status: u16, lines: &[(&str, &[u8])], body: &str) -> Response<Bytes> {
    let mut answer = Response::new(Bytes::from(body.to_owned()));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in lines {
        answer.headers_mut().append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
    }
    answer
}

fn read(external: &External, answer: Response<Bytes>) -> Result<Answer<Decision>, Failure> {
    external.reader.read(answer, CREDENTIAL, "arn/GET/orders/7", NOW)
}

/// How an answer is judged: the code of its refusal or `ok`, whether it may be said to another, and for how long it is repeated.
fn judged(external: &External, answer: Response<Bytes>) -> (String, bool, u64) {
    match read(external, answer) {
        Err(_) => ("away".to_owned(), true, 0),
        Ok(answer) => {
            let code = answer.value.of("arn/GET/orders/7").map_or_else(|rejection| rejection.code(), |_| "ok");
            let left = answer.fresh_until.saturating_sub(NOW.monotonic).as_secs();
            (code.to_owned(), !matches!(answer.value, Decision::RefuseOnce(_)), left)
        }
    }
}

#[test]
fn a_status_lets_in_or_refuses_in_its_own_words_or_is_no_answer() {
    let external = external("cache: {ttl: 60s, deny_ttl: 5s}");
    let login: &[(&str, &[u8])] = &[("location", b"https://login.test/")];
    let cookie: &[(&str, &[u8])] = &[("set-cookie", b"login=1")];
    for (status, lines, body, expected) in [
        (200, &[][..], "", ("ok", true, 60)),
        (204, &[], "", ("ok", true, 60)),
        (206, &[], "", ("ok", true, 60)),
        (299, &[], "", ("ok", true, 60)),
        (401, &[], "who?", ("credential_invalid", true, 5)),
        (403, &[], "no", ("forbidden", true, 5)),
        (401, cookie, "", ("credential_invalid", false, 0)),
        (403, &[], &"x".repeat(5_000), ("forbidden", false, 0)),
        (302, login, "", ("redirected", false, 0)),
        (307, login, "", ("redirected", false, 0)),
        (302, &[], "", ("away", true, 0)),
        (304, login, "", ("away", true, 0)),
        (400, &[], "", ("away", true, 0)),
        (404, &[], "", ("away", true, 0)),
        (429, &[], "", ("away", true, 0)),
        (500, &[], "", ("away", true, 0)),
        (503, &[], "", ("away", true, 0)),
        (101, &[], "", ("away", true, 0)),
    ] {
        let (code, shared, left) = judged(&external, answer(status, lines, body));
        assert_eq!((code.as_str(), shared, left), expected, "{status} {lines:?}");
    }
}

#[test]
fn a_lambda_answer_lets_in_or_refuses_and_what_is_not_understood_refuses() {
    let external = external("response: lambda, cache: {ttl: 60s, deny_ttl: 5s}");
    let policy = |effect: &str, resource: &str| {
        let statement = json!({"Effect": effect, "Action": "execute-api:Invoke", "Resource": resource});
        json!({"principalId": "u", "policyDocument": {"Statement": [statement]}}).to_string()
    };
    for (status, body, expected) in [
        (200, r#"{"isAuthorized": true}"#.to_owned(), ("ok", true, 60)),
        (200, r#"{"isAuthorized": false}"#.to_owned(), ("forbidden", true, 5)),
        (200, policy("Allow", "arn/GET/*"), ("ok", true, 60)),
        (200, policy("Allow", "arn/POST/*"), ("forbidden", true, 5)),
        (200, policy("Deny", "*"), ("forbidden", true, 5)),
        (200, r#"{"errorMessage": "Unauthorized"}"#.to_owned(), ("credential_invalid", true, 5)),
        (200, "{}".to_owned(), ("dependency_unavailable", true, 0)),
        (200, "<html>".to_owned(), ("dependency_unavailable", true, 0)),
        (200, r#"{"isAuthorized": "true"}"#.to_owned(), ("dependency_unavailable", true, 0)),
        (201, r#"{"isAuthorized": true}"#.to_owned(), ("away", true, 0)),
        (204, String::new(), ("away", true, 0)),
        (302, r#"{"isAuthorized": true}"#.to_owned(), ("away", true, 0)),
        (403, r#"{"isAuthorized": true}"#.to_owned(), ("away", true, 0)),
        (500, r#"{"isAuthorized": true}"#.to_owned(), ("away", true, 0)),
    ] {
        let (code, shared, left) = judged(&external, answer(status, &[], &body));
        assert_eq!((code.as_str(), shared, left), expected, "{status} {body}");
    }
}

#[test]
fn a_policy_is_read_anew_for_each_request() {
    let external = external("response: lambda");
    let document = json!({"principalId": "u", "policyDocument": {"Statement": [
        {"Effect": "Allow", "Action": "*", "Resource": "arn/GET/*"},
        {"Effect": "Deny", "Action": "*", "Resource": "arn/GET/admin*"},
    ]}});
    let decision = read(&external, answer(200, &[], &document.to_string())).unwrap().value;
    for (resource, allowed) in [("arn/GET/orders", true), ("arn/POST/orders", false), ("arn/GET/admin", false), ("arn/GET/adminX", false)] {
        assert_eq!(decision.of(resource).is_ok(), allowed, "{resource}");
    }
}

fn granted(external: &External, answer: Response<Bytes>) -> Option<Grant> {
    read(external, answer).unwrap().value.of("arn/GET/orders/7").ok().cloned()
}

#[test]
fn what_an_answer_says_of_the_caller_becomes_its_identity() {
    let claims = "claims: {subject: Remote-User, consumer: X-Org, scopes: [X-Scope, X-More], roles: Remote-Groups, plan: X-Plan}";
    let external = external(&format!("copy: [X-Tenant], {claims}"));
    let lines: &[(&str, &[u8])] = &[
        ("Remote-User", b"alice"),
        ("X-Org", b"acme"),
        ("X-Scope", b"a b"),
        ("X-More", b"b c"),
        ("Remote-Groups", b"staff, on call"),
        ("Remote-Groups", b"admins"),
        ("X-Tenant", b"t1"),
        ("X-Plan", b""),
        ("X-Other", b"ignored"),
    ];
    let Identity { method, authenticator, subject, consumer, scopes, roles, plan, claims, credential, .. } =
        Identity::clone(&granted(&external, answer(200, lines, "")).unwrap().identity);
    assert_eq!((method, &*authenticator, credential), (Method::External, "custom", CREDENTIAL));
    assert_eq!((subject.as_deref(), consumer.as_deref(), plan), (Some("alice"), Some("acme"), None));
    assert_eq!((scopes.join("|"), roles.join("|")), ("a|b|c".to_owned(), "staff|on call|admins".to_owned()));
    let expected = json!({"remote-user": "alice", "x-org": "acme", "x-scope": "a b", "x-more": "b c",
        "remote-groups": "staff, on call, admins", "x-tenant": "t1"});
    assert_eq!(Value::Object(claims), expected);

    let nobody = granted(&external, answer(200, &[], "")).unwrap().identity;
    assert_eq!((nobody.subject.as_deref(), nobody.claims.len()), (None, 0));
    for bad in [&b"al\xffice"[..], "x".repeat(5_000).as_bytes()] {
        assert!(granted(&external, answer(200, &[("remote-user", bad)], "")).is_none(), "{bad:?}");
    }
}

#[test]
fn a_context_becomes_claims_and_the_principal_the_subject() {
    let lambda = external("response: lambda, claims: {consumer: org.name, scopes: scope, roles: groups, client: n}");
    let context = json!({"org": {"name": "acme"}, "scope": "a b", "groups": ["x, y", "z"], "n": 7, "more": true});
    let policy = json!({"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}});
    let document = json!({"principalId": "alice", "policyDocument": policy, "context": context});
    let identity = granted(&lambda, answer(200, &[], &document.to_string())).unwrap().identity;
    assert_eq!(
        (identity.subject.as_deref(), identity.consumer.as_deref(), identity.client.as_deref()),
        (Some("alice"), Some("acme"), Some("7"))
    );
    assert_eq!((identity.scopes.join("|"), identity.roles.join("|")), ("a|b".to_owned(), "x, y|z".to_owned()));
    assert_eq!(Value::Object(identity.claims.clone()), context);

    let named = external("response: lambda, claims: {subject: sub}");
    let document = json!({"principalId": "alice", "policyDocument": policy, "context": {"sub": "bob"}});
    assert_eq!(granted(&named, answer(200, &[], &document.to_string())).unwrap().identity.subject.as_deref(), Some("bob"));

    for context in [
        json!({"org": {"name": ["acme"]}}),
        json!({"org": {"name": "ac\nme"}}),
        json!({"org": {"name": true}}),
        json!({"scope": ["a b"]}),
        json!({"scope": 7}),
        json!({"groups": [7]}),
    ] {
        let simple = json!({"isAuthorized": true, "context": context});
        assert!(granted(&lambda, answer(200, &[], &simple.to_string())).is_none(), "{context}");
    }
}

#[test]
fn copied_headers_are_those_of_the_answer_and_an_absent_one_is_removed() {
    let external = external("copy: [X-Tenant, Authorization, X-Absent]");
    let lines: &[(&str, &[u8])] = &[("x-tenant", b"t1"), ("x-tenant", b"t\xe9"), ("authorization", b"Bearer inner"), ("x-other", b"no")];
    let headers = granted(&external, answer(200, lines, "")).unwrap().headers.unwrap();
    let shown: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_ref().map(HeaderValue::as_bytes))).collect();
    assert_eq!(shown, [("x-tenant", Some(&b"t1, t\xe9"[..])), ("authorization", Some(b"Bearer inner")), ("x-absent", None)]);
}

struct Said {
    method: HttpMethod,
    headers: HeaderMap,
    caller: Caller,
}

impl Said {
    fn new(lines: &[(&'static str, &[u8])]) -> Self {
        let headers = lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap())).collect();
        Self { method: HttpMethod::GET, headers, caller: Caller { address: [192, 0, 2, 7].into(), through_trusted_proxy: false } }
    }

    fn request(&self) -> Request<'_> {
        Request { route: "orders", ..Request::new(&self.method, "api.test", "/orders/7", &self.headers, &self.caller) }
    }
}

#[test]
fn two_requests_are_one_question_when_nothing_that_counts_differs() {
    let keyed = external("from: [{header: X-Key}, {query: key}], cache: {by: [credential, route, {header: X-Tenant}]}");
    let all = external("send: [Accept], cache: {}");
    let question = |external: &External, request: &Request<'_>| match &external.memory {
        Memory::By(keys) => external.question(keys, request),
        _ => everything(&external.reader.identity, &external.call(request, "").unwrap()),
    };
    let base = Said::new(&[("x-key", b"k"), ("authorization", b"a"), ("cookie", b"c=1"), ("accept", b"x"), ("x-tenant", b"t")]);
    let other = |name: &'static str, value: &'static str| {
        let mut said = Said::new(&[]);
        said.headers = base.headers.clone();
        said.headers.append(name, HeaderValue::from_static(value));
        said
    };
    let appended: Vec<(&str, Said, bool, bool)> = vec![
        ("another key", other("x-key", "k2"), true, false),
        ("more in authorization", other("authorization", "a"), true, true),
        ("one more cookie", other("cookie", "d=2"), true, true),
        ("a header that is keyed on", other("x-tenant", "u"), true, false),
        ("a header that is shown", other("accept", "y"), false, true),
        ("a header that is neither", other("x-other", "y"), false, false),
    ];
    for (what, said, by_parts, by_all) in &appended {
        assert_eq!(question(&keyed, &said.request()) != question(&keyed, &base.request()), *by_parts, "{what}");
        assert_eq!(question(&all, &said.request()) != question(&all, &base.request()), *by_all, "{what}");
    }
    let caller = Caller { address: [192, 0, 2, 8].into(), through_trusted_proxy: true };
    let request = base.request();
    for (what, changed, by_parts, by_all) in [
        ("the same", request, false, false),
        ("another method", Request { method: &HttpMethod::POST, ..request }, false, true),
        ("another path", Request { path: "/orders/8", ..request }, false, true),
        ("a query", Request { query: Some("a"), ..request }, false, true),
        ("another credential in the query", Request { query: Some("key=z"), ..request }, true, true),
        ("another host", Request { host: "b.test", ..request }, false, true),
        ("another port", Request { port: Some("81"), ..request }, false, true),
        ("another scheme", Request { scheme: "https", ..request }, false, true),
        ("another client", Request { client: &caller, ..request }, false, true),
        ("another route", Request { route: "items", ..request }, true, false),
    ] {
        assert_eq!(question(&keyed, &changed) != question(&keyed, &request), by_parts, "{what}");
        assert_eq!(question(&all, &changed) != question(&all, &request), by_all, "{what}");
    }
    let (one, two) = (Said::new(&[("x-key", b"a"), ("x-tenant", b"b")]), Said::new(&[("x-key", b"ab"), ("x-tenant", b"")]));
    assert_ne!(question(&keyed, &one.request()), question(&keyed, &two.request()), "where a part ends is a part of the question");
    assert_ne!(all.reader.identity, external("send: [Accept], copy: [X-Tenant], cache: {}").reader.identity);
    assert_ne!(nobody_elses(), nobody_elses());
}

#[test]
fn the_case_of_a_scheme_makes_no_other_credential() {
    let external = external("");
    let credential = |value: &[u8]| external.credential(&Said::new(&[("authorization", value)]).request());
    assert_eq!(credential(b"Bearer abc"), credential(b"bEARER  abc"));
    assert_ne!(credential(b"Bearer abc"), credential(b"Bearer Abc"));
    assert_ne!(credential(b"Bearer abc"), credential(b"Basic abc"));
    let with_cookie = Said::new(&[("authorization", b"Bearer abc"), ("cookie", b"any=1")]);
    assert_eq!(external.credential(&with_cookie.request()), credential(b"Bearer abc"), "a cookie buys no other budget");
}

#[tokio::test]
async fn while_nobody_answers_the_operator_decides() {
    let said = Said::new(&[("authorization", b"Bearer abc")]);
    for (settings, expected) in [
        ("on_failure: deny", Err("dependency_unavailable")),
        ("on_failure: {allow_cached: 5m}, cache: {}", Err("dependency_unavailable")),
        ("on_failure: allow, copy: [X-Tenant]", Ok(None)),
        ("on_failure: allow, response: lambda", Ok(None)),
    ] {
        match external(settings).authenticate(&said.request(), NOW).await {
            Verdict::Accept(proof) => {
                assert_eq!(Ok(proof.identity.subject.clone()), expected, "{settings}");
                assert_eq!(
                    proof.headers.is_some_and(|headers| headers.iter().all(|(_, value)| value.is_none())),
                    settings.contains("copy")
                );
            }
            Verdict::Reject(rejection) => assert_eq!(Err(rejection.code()), expected, "{settings}"),
            Verdict::Pass => panic!("{settings}"),
        }
    }
}

#[tokio::test]
async fn what_was_let_in_is_let_in_for_a_while_longer_and_what_was_refused_is_not() {
    let external = external("on_failure: {allow_cached: 5m}, cache: {by: credential, ttl: 60s, deny_ttl: 5s}");
    let at = |seconds| Now { monotonic: NOW.monotonic + Duration::from_secs(seconds), ..NOW };
    for (token, status, seconds, expected) in [
        (&b"good"[..], 200, 0, Ok(())),
        (b"good", 200, 59, Ok(())),
        (b"good", 200, 61, Ok(())),
        (b"good", 200, 359, Ok(())),
        (b"good", 200, 361, Err("dependency_unavailable")),
        (b"bad", 403, 0, Err("forbidden")),
        (b"bad", 403, 4, Err("forbidden")),
        (b"bad", 403, 6, Err("dependency_unavailable")),
        (b"new", 0, 0, Err("dependency_unavailable")),
    ] {
        let said = Said::new(&[("authorization", token)]);
        let Memory::By(keys) = &external.memory else { panic!("no keys") };
        let question = external.question(keys, &said.request());
        if status != 0 && external.decisions.last(&question).is_none() {
            let known = read(&external, answer(status, &[], ""));
            external.decisions.ask(question, external.terms, NOW, || std::future::ready(known)).await.unwrap();
        }
        let verdict = match external.authenticate(&said.request(), at(seconds)).await {
            Verdict::Accept(_) => Ok(()),
            Verdict::Reject(rejection) => Err(rejection.code()),
            Verdict::Pass => Err("pass"),
        };
        assert_eq!(verdict, expected, "{} after {seconds} s", String::from_utf8_lossy(token));
    }
}

#[tokio::test]
async fn what_is_not_there_is_passed_on_where_the_operator_says_so_and_two_are_refused() {
    let asks = external("from: [{header: X-Key}]");
    let passes = external("from: [{header: X-Key}], when_missing: pass");
    let none = Said::new(&[("authorization", b"Bearer abc")]);
    assert!(matches!(asks.authenticate(&none.request(), NOW).await, Verdict::Reject(Rejection::DependencyUnavailable { .. })));
    assert!(matches!(passes.authenticate(&none.request(), NOW).await, Verdict::Pass));
    let two = Said::new(&[("x-key", b"a"), ("x-key", b"b")]);
    for external in [&asks, &passes] {
        assert!(matches!(external.authenticate(&two.request(), NOW).await, Verdict::Reject(Rejection::BadRequest(_))));
    }
    let odd = Said::new(&[("x-key", b"\xff")]);
    assert!(matches!(passes.authenticate(&odd.request(), NOW).await, Verdict::Reject(Rejection::DependencyUnavailable { .. })));
}

#[tokio::test]
async fn a_body_that_was_not_read_or_is_too_long_is_not_judged() {
    let external = external("body: 4B, on_failure: allow");
    let said = Said::new(&[]);
    for (body, expected) in
        [(None, Some("internal")), (Some(&b"12345"[..]), Some("body_too_large")), (Some(b"1234"), None), (Some(b""), None)]
    {
        let code = match external.authenticate(&Request { body, ..said.request() }, NOW).await {
            Verdict::Accept(_) => None,
            Verdict::Reject(rejection) => Some(rejection.code()),
            Verdict::Pass => Some("pass"),
        };
        assert_eq!(code, expected, "{body:?}");
    }
}
