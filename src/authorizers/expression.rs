//! Conditions in CEL, the Common Expression Language: read and checked when the configuration is, asked of each request.
//!
//! Names, members and kinds are checked at load as far as they can be known then. What only a request can show (a claim that is missing, or of
//! another kind) is an error of the evaluation, and whoever asks takes that for the refusing answer.

mod check;
mod values;

use std::sync::Arc;

use cel::common::ast::{Expr, IdedExpr, LiteralValue};
use cel::common::types::{self, CelBool};
use cel::context::VariableResolver;
use cel::{Context, Env, ExecutionError, Value};
use thread_local::ThreadLocal;

use crate::request::{Identity, Request};
use values::{Network, Pattern, Scope};

/// The longest expression, in nodes of its syntax tree: evaluation is at most this, times the elements of one list where a macro walks it.
const NODES: usize = 256;

/// How deep an expression may nest.
const DEPTH: u16 = 32;

/// A condition on a request.
pub struct Expression {
    tree: IdedExpr,
    /// What is written as a literal and worth preparing, by the name that stands for it in the tree.
    patterns: Vec<Pattern>,
    networks: Vec<Network>,
    language: Language,
    needs_identity: bool,
    parameters: Vec<String>,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Expression").field("needs_identity", &self.needs_identity).finish_non_exhaustive()
    }
}

/// What every expression of a configuration shares: the functions they may call, for each thread its own, as an evaluation counts itself there.
#[derive(Clone, Default)]
pub struct Language(Arc<ThreadLocal<Arc<Env>>>);

impl Language {
    fn environment(&self) -> Arc<Env> {
        Arc::clone(self.0.get_or(|| Arc::new(Self::functions())))
    }

    fn functions() -> Env {
        let mut environment = Env::stdlib();
        let added = environment
            .add_member_overload("matches", "text_matches_pattern", types::STRING_TYPE, vec![types::DYN_TYPE], values::matches)
            .and_then(|()| {
                environment.add_overload("inNetwork", "address_in_network", vec![types::STRING_TYPE, types::DYN_TYPE], values::in_network)
            });
        debug_assert!(added.is_ok(), "both names are free");
        environment
    }

    /// Reads an expression, or says what is wrong with it.
    pub fn read(&self, text: &str) -> Result<Expression, String> {
        let parser = cel::parser::Parser::new().max_recursion_depth(DEPTH);
        let mut tree = parser.parse(text).map_err(|errors| match errors.errors.first() {
            Some(error) => format!("column {} of the expression: {}", error.pos.1, error.msg),
            None => "is no expression".to_owned(),
        })?;
        let checked = check::check(&tree)?;
        let (mut patterns, mut networks) = (Vec::new(), Vec::new());
        prepare(&mut tree, &mut patterns, &mut networks)?;
        let language = self.clone();
        Ok(Expression { tree, patterns, networks, language, needs_identity: checked.needs_identity, parameters: checked.parameters })
    }
}

impl Expression {
    /// Whether it holds of this request. The error says in a word why that cannot be told.
    pub fn holds(&self, request: &Request<'_>, identity: Option<&Identity>) -> Result<bool, &'static str> {
        let scope = Scope { request, identity, patterns: &self.patterns, networks: &self.networks };
        let resolver: &dyn VariableResolver = &scope;
        let mut context = Context::with_env(self.language.environment());
        context.set_variable_resolver(resolver);
        match Value::resolve_val(&self.tree, &context) {
            Ok(value) => value.downcast_ref::<CelBool>().map(|value| *value.inner()).ok_or("expression_no_bool"),
            Err(ExecutionError::NoSuchKey(_)) => Err("expression_missing"),
            Err(_) => Err("expression_error"),
        }
    }

    /// Whether it speaks of the caller's identity, so that it cannot be asked before that is known.
    pub fn needs_identity(&self) -> bool {
        self.needs_identity
    }

    /// The path parameters it speaks of.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.parameters.iter().map(String::as_str)
    }
}

/// Compiles the literal patterns and networks once; in the tree a name stands for each that no expression can write.
fn prepare(tree: &mut IdedExpr, patterns: &mut Vec<Pattern>, networks: &mut Vec<Network>) -> Result<(), String> {
    match &mut tree.expr {
        Expr::Call(call) => {
            let last = call.args.last_mut().map(|last| &mut last.expr);
            match (call.func_name.as_str(), last) {
                ("matches", Some(argument)) => {
                    let Expr::Literal(LiteralValue::String(text)) = &*argument else {
                        return Err("`matches` takes a pattern written out".to_owned());
                    };
                    let name = format!("{}{}", values::PATTERN, patterns.len());
                    patterns.push(Pattern::read(text.inner())?);
                    *argument = Expr::Ident(name);
                }
                ("inNetwork", Some(argument)) => {
                    let Expr::Literal(LiteralValue::String(text)) = &*argument else {
                        return Err("`inNetwork` takes a network written out".to_owned());
                    };
                    let name = format!("{}{}", values::NETWORK, networks.len());
                    networks.push(Network::read(text.inner())?);
                    *argument = Expr::Ident(name);
                }
                _ => {}
            }
            for part in call.target.iter_mut().map(|target| &mut **target).chain(&mut call.args) {
                prepare(part, patterns, networks)?;
            }
        }
        Expr::Comprehension(comprehension) => {
            let parts = [
                &mut comprehension.iter_range,
                &mut comprehension.accu_init,
                &mut comprehension.loop_cond,
                &mut comprehension.loop_step,
                &mut comprehension.result,
            ];
            for part in parts {
                prepare(part, patterns, networks)?;
            }
        }
        Expr::List(list) => list.elements.iter_mut().try_for_each(|element| prepare(element, patterns, networks))?,
        Expr::Select(select) => prepare(&mut select.operand, patterns, networks)?,
        Expr::Literal(_) | Expr::Ident(_) | Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Client, Method, Parameters};
    use http::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::*;
    use serde_json::json;

    fn identity() -> Identity {
        let claims = json!({
            "tenant": "acme", "level": 3, "score": 2.5, "big": u64::MAX, "admin": true, "none": null, "amr": ["pwd", "otp"], "empty": [],
            "org": {"id": 7, "teams": [{"name": "red"}, {"name": "blue"}]}, "https://x.test/role": "r", "long": vec![1; 1001],
        });
        Identity {
            subject: Some("alice".into()),
            scopes: ["orders:read".into()].into(),
            claims: claims.as_object().unwrap().clone(),
            ..Identity::new(Method::Jwt, "a".into(), [0; 32])
        }
    }

    fn ask(text: &str, identity: Option<&Identity>) -> Result<bool, &'static str> {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("user-agent", &b"curl/8"[..]),
            ("x-role", b"user"),
            ("x-role", b"admin"),
            ("x-bytes", b"caf\xe9"),
            ("x_other", b"other"),
            ("content-length", b"12"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
        }
        let client = Client { address: "::ffff:10.1.2.3".parse().unwrap(), through_trusted_proxy: false };
        let request = Request {
            query: Some("a=1&b=x%20y&a=2&c&d=1+1"),
            route: "orders",
            parameters: Parameters(&[("tenant", "acme")]),
            ..Request::new(&http::Method::POST, "api.test", "/t/acme", &headers, &client)
        };
        Language::default().read(text).unwrap().holds(&request, identity)
    }

    #[test]
    fn a_condition_holds_as_the_language_says() {
        let identity = identity();
        for (text, expected) in [
            ("claims.tenant == path.tenant", Ok(true)),
            ("claims['tenant'] != 'acme'", Ok(false)),
            ("claims.level >= 3 && claims.score < 3.0 && claims.level > 2.5", Ok(true)),
            ("claims.big > 5", Ok(true)),
            ("claims.admin", Ok(true)),
            ("!claims.admin || claims.level == 3", Ok(true)),
            ("claims.none == null", Ok(true)),
            ("'otp' in claims.amr", Ok(true)),
            ("claims.amr.exists(m, m == 'hwk')", Ok(false)),
            ("claims.amr.all(m, m.startsWith('o') || m.endsWith('d'))", Ok(true)),
            ("claims.empty.exists(m, true)", Ok(false)),
            ("size(claims.amr) == 2 && claims.tenant.size() == 4", Ok(true)),
            ("claims.org.id == 7 && claims.org.teams[1].name == 'blue'", Ok(true)),
            ("claims['https://x.test/role'] == 'r'", Ok(true)),
            ("has(claims.tenant) && !has(claims.missing)", Ok(true)),
            ("claims.level == 3 ? claims.admin : false", Ok(true)),
            ("identity.subject == 'alice' && 'orders:read' in identity.scopes && identity.method == 'jwt'", Ok(true)),
            ("has(identity.consumer)", Ok(false)),
            ("request.method == 'POST' && request.host == 'api.test' && request.path == '/t/acme' && request.route == 'orders'", Ok(true)),
            ("request.headers['user-agent'][0].contains('curl') && 'admin' in request.headers['X-Role']", Ok(true)),
            ("'other' in request.headers['x-other'] && 'x-other' in request.headers && size(request.headers['x.other']) == 1", Ok(true)),
            ("request.headers['x-none'] == [] && size(request.headers['x-none']) == 0", Ok(true)),
            ("'x-role' in request.headers && !('x-none' in request.headers)", Ok(true)),
            ("request.headers['x-bytes'][0].startsWith('caf')", Ok(true)),
            ("request.query['a'] == ['1', '2'] && request.query['b'] == ['x y'] && request.query['d'] == ['1 1']", Ok(true)),
            ("'' in request.query['c'] && request.query['none'] == []", Ok(true)),
            ("request.size == 12", Ok(true)),
            ("inNetwork(client.ip, '10.0.0.0/8') && !inNetwork(client.ip, '2001:db8::/32')", Ok(true)),
            ("request.path.matches('^/t/[a-z]+$') && !claims.tenant.matches('^acm$')", Ok(true)),
            ("claims.amr.exists(m, m.matches('^o'))", Ok(true)),
            // What cannot be told is never the answer that was hoped for.
            ("claims.missing == 'x'", Err("expression_missing")),
            ("claims.missing != 'x'", Err("expression_missing")),
            ("!(claims.missing == 'x')", Err("expression_missing")),
            ("identity.consumer == 'x'", Err("expression_missing")),
            ("claims.tenant > 3", Err("expression_error")),
            ("claims.tenant.id == 3", Err("expression_missing")),
            ("claims.tenant", Err("expression_no_bool")),
            ("claims.level && true", Err("expression_error")),
            ("claims.long.exists(n, n == 1)", Err("expression_error")),
            ("claims.amr[7] == 'x'", Err("expression_error")),
            ("inNetwork(claims.tenant, '10.0.0.0/8')", Err("expression_error")),
            ("claims.level / 0 == 1", Err("expression_error")),
        ] {
            let told = ask(text, Some(&identity));
            assert_eq!(told.is_ok(), expected.is_ok(), "{text}: {told:?}");
            assert!(told == expected || expected.is_err(), "{text}: {told:?}");
        }
        assert_eq!(ask("claims.tenant == 'acme'", None), Err("expression_error"));
        assert_eq!(ask("request.method == 'POST'", None), Ok(true));
    }

    #[test]
    fn what_can_be_seen_to_be_wrong_is_said_when_it_is_read() {
        for (text, said) in [
            ("", "expression"),
            ("claims.tenant ==", "column"),
            ("claim.tenant == 'x'", "did you mean `claims`?"),
            ("tenant == 'x'", "an unknown name `tenant`"),
            ("request.methd == 'GET'", "did you mean `method`?"),
            ("request.method == 7", "a text is never equal to a number"),
            ("request.method", "a condition is true or false, and this is a text"),
            ("request.size + 1", "this is a number"),
            ("request.method && true", "`&&` joins"),
            ("!request.path", "`!` joins"),
            ("request.headers == 'x'", "never equal"),
            ("request.headers['x-user-id'] == ['root']", "a caller's `x-user-id` is never heard"),
            ("request.headers['X_Forwarded_For'] == ['::1']", "never heard"),
            ("'x' in request.method", "is never in"),
            ("7 in request.headers['a']", "is never in"),
            ("request.size < 'a'", "have no order"),
            ("request.method.starsWith('x')", "did you mean `startsWith`?"),
            ("request.method.startsWith(7)", "is not called like this"),
            ("request.method.matches(claims.pattern)", "written out"),
            ("request.method.matches('(')", "a regular expression"),
            ("request.method.matches('(a{1000}){1000}')", "a very large one"),
            ("inNetwork(client.ip, 'here')", "takes a network"),
            ("inNetwork(client.ip, claims.net)", "written out"),
            ("{'a': 1}.a == 1", "mappings are not written"),
            ("claims.a.exists(x, claims.b.exists(y, x == y))", "inside another"),
            ("claims.exists(c, true)", "is no list"),
            ("path[claims.x] == 'a'", "written out"),
            ("client.ip == b'x'", "bytes"),
            ("@pattern0", "column"),
            ("null", "null"),
        ] {
            let error = Language::default().read(text).map(|_| ()).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        let long = vec!["request.size == 1"; 100].join(" || ");
        assert!(Language::default().read(&long).unwrap_err().contains("256 parts"));
        let deep = format!("{}true{}", "(".repeat(200), ")".repeat(200));
        assert!(Language::default().read(&deep).is_err());
    }

    #[test]
    fn a_body_of_unknown_length_counts_as_the_longest() {
        let client = Client { address: [10, 0, 0, 1].into(), through_trusted_proxy: false };
        let long = Language::default().read("request.size > 1000000").unwrap();
        for (name, value, expected) in [("transfer-encoding", "chunked", true), ("content-length", "x", true), ("x", "", false)] {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))]);
            assert_eq!(long.holds(&Request::new(&http::Method::POST, "h", "/", &headers, &client), None), Ok(expected), "{name}");
        }
    }

    #[test]
    fn it_is_known_what_an_expression_speaks_of() {
        let read = |text: &str| Language::default().read(text).unwrap();
        assert!(!read("request.method == 'GET' && path.id == 'x' && path['b'] == 'y'").needs_identity());
        assert!(read("claims.a == 1").needs_identity() && read("request.size == 0 || has(identity.plan)").needs_identity());
        assert_eq!(read("path.id == 'x' && path['b'] == 'y' || has(path.c)").parameters().collect::<Vec<_>>(), ["id", "b", "c"]);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_answers(text in "[a-z.()\\[\\]'!&|=<> 0-9{},:@\"?+*/%-]{0,60}") {
            let language = Language::default();
            if let Ok(expression) = language.read(&text) {
                let (headers, client) = (HeaderMap::new(), Client { address: [10, 0, 0, 1].into(), through_trusted_proxy: false });
                let _ = expression.holds(&Request::new(&http::Method::GET, "h", "/", &headers, &client), Some(&identity()));
            }
        }
    }
}
