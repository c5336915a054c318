//! The path that a route sends upstream instead of the one that was matched.

use std::borrow::Cow;

use crate::request::{Parameters, Rejection, path};

/// A compiled template such as `/v2/{rest}`.
#[derive(Debug)]
pub struct Rewrite(Vec<Part>);

#[derive(Debug)]
enum Part {
    Literal(Box<str>),
    Parameter(Box<str>),
}

impl Rewrite {
    /// Compiles a template whose placeholders are parameters of the route's path; says what was expected when it is none.
    pub fn compile(template: &str, parameters: &[&str]) -> Result<Self, &'static str> {
        if !template.starts_with('/') {
            return Err("a path that begins with `/`");
        }
        let mut parts = Vec::new();
        let mut left = template;
        while let Some((literal, placeholder)) = left.split_once('{') {
            let (name, after) = placeholder.split_once('}').ok_or("a `}` for each `{`")?;
            if !parameters.contains(&name) {
                return Err("parameters of the route's path only, without `*`");
            }
            parts.push(Part::Literal(literal.into()));
            parts.push(Part::Parameter(name.into()));
            left = after;
        }
        parts.push(Part::Literal(left.into()));
        let rewrite = Self(parts);
        // With harmless values, only the literals can be at fault.
        match rewrite.fill(|_| Some("x")) {
            Some(sample) if is_canonical(&sample) => Ok(rewrite),
            _ => Err("a path without empty or dot segments, `;`, `?`, `#`, spaces or needless escapes"),
        }
    }

    /// The path to send. What is not canonical once it is put together is refused with [`Rejection::AmbiguousPath`], as the check that the
    /// request passed was of another path.
    pub fn apply(&self, parameters: Parameters<'_>) -> Result<String, Rejection> {
        let path = self.fill(|name| parameters.value(name)).ok_or(Rejection::Internal("rewrite_without_parameter"))?;
        if is_canonical(&path) { Ok(path) } else { Err(Rejection::AmbiguousPath("rewritten")) }
    }

    fn fill<'a>(&'a self, value: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
        let mut path = String::new();
        for part in &self.0 {
            path.push_str(match part {
                Part::Literal(literal) => literal,
                Part::Parameter(name) => value(name)?,
            });
        }
        Some(path)
    }
}

fn is_canonical(path: &str) -> bool {
    matches!(path::canonical(path.as_bytes()), Ok(path::Canonical { path: Cow::Borrowed(same), query: None }) if same == path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parameters_stand_where_the_template_says() {
        for (template, expected) in [
            ("/v2/{rest}", "/v2/a/b%20c"),
            ("/{id}", "/7"),
            ("/v2", "/v2"),
            ("/v2/{id}.json", "/v2/7.json"),
            ("/{id}/{rest}/{id}", "/7/a/b%20c/7"),
        ] {
            let rewrite = Rewrite::compile(template, &["id", "rest"]).unwrap();
            assert_eq!(rewrite.apply(Parameters(&[("id", "7"), ("rest", "a/b%20c")])).as_deref(), Ok(expected), "{template}");
        }
        assert_eq!(Rewrite::compile("/v2/{rest}", &["rest"]).unwrap().apply(Parameters(&[("rest", "")])).as_deref(), Ok("/v2/"));
    }

    #[test]
    fn a_path_that_becomes_ambiguous_by_rewriting_is_refused() {
        for (template, value) in
            [("/v2/{rest}/x", ""), ("/v2/.{rest}", "."), ("/v2/{rest}", "/x"), ("/v2/{rest}", "../x"), ("/%25{rest}", "2e")]
        {
            let rewrite = Rewrite::compile(template, &["rest"]).unwrap();
            assert_eq!(rewrite.apply(Parameters(&[("rest", value)])), Err(Rejection::AmbiguousPath("rewritten")), "{template} {value}");
        }
        let rewrite = Rewrite::compile("/{rest}", &["rest"]).unwrap();
        assert_eq!(rewrite.apply(Parameters::default()), Err(Rejection::Internal("rewrite_without_parameter")));
    }

    #[test]
    fn a_template_that_could_never_be_sent_is_refused() {
        for template in [
            "",
            "v2",
            "{rest}",
            "/{other}",
            "/{*rest}",
            "/{rest",
            "/rest}",
            "/a//b",
            "/../a",
            "/a?b",
            "/a;b",
            "/a#b",
            "/%2f{rest}",
            "/%61",
            "/a b",
        ] {
            assert!(Rewrite::compile(template, &["rest"]).is_err(), "{template}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_is_canonical(template in "/[a{}%2./]{0,12}", value in "[a%2./;?]{0,8}") {
            if let Ok(rewrite) = Rewrite::compile(&template, &["a"]) && let Ok(path) = rewrite.apply(Parameters(&[("a", &value)])) {
                prop_assert!(is_canonical(&path));
            }
        }
    }
}
