//! What the claims of a credential say of its holder, by the names that the operator gave them.

use std::sync::Arc;

use serde_json::{Map, Value};
use smol_str::SmolStr;

use crate::config::ClaimNames;
use crate::request::{Identity, Rejection};

/// The longest value that a claim may give an identity, in bytes: it becomes a header, a key of a limit and a word of the log.
const MAX_VALUE: usize = 4 * 1024;

/// Which claims say what.
#[derive(Debug)]
pub struct ClaimPaths {
    subject: ClaimPath,
    scopes: Vec<ClaimPath>,
    roles: Vec<ClaimPath>,
    consumer: ClaimPath,
    client: ClaimPath,
    plan: ClaimPath,
}

/// A claim's name, or a dotted path to it. Names such as `https://acme.example/roles` have dots too, so the whole is tried first.
#[derive(Debug)]
struct ClaimPath {
    name: Arc<str>,
    parts: Vec<Box<str>>,
}

impl ClaimPaths {
    /// The claims of these names.
    pub fn new(names: &ClaimNames) -> Self {
        let all = |names: &[Arc<str>]| names.iter().map(ClaimPath::new).collect();
        Self {
            subject: ClaimPath::new(&names.subject),
            scopes: all(&names.scopes),
            roles: all(&names.roles),
            consumer: ClaimPath::new(&names.consumer),
            client: ClaimPath::new(&names.client),
            plan: ClaimPath::new(&names.plan),
        }
    }

    /// The identity with what these claims say of it.
    ///
    /// # Errors
    /// A value cannot stand in a header line: it was made to break one.
    pub fn fill_in(&self, identity: Identity, claims: Map<String, Value>) -> Result<Identity, Rejection> {
        Ok(Identity {
            subject: self.subject.text(&claims)?,
            consumer: self.consumer.text(&claims)?,
            client: self.client.text(&claims)?,
            // RFC 6749 section 3.3: a scope has no space, so an element with one is no scope, and must not become two upstream.
            scopes: words(&self.scopes, &claims, |text| text.split(' ').collect(), |scope| !scope.contains(' '))?,
            roles: words(&self.roles, &claims, |text| vec![text], |_| true)?,
            plan: self.plan.text(&claims)?,
            claims,
            ..identity
        })
    }
}

impl ClaimPath {
    fn new(name: &Arc<str>) -> Self {
        Self { name: name.clone(), parts: name.split('.').map(Into::into).collect() }
    }

    fn find<'c>(&self, claims: &'c Map<String, Value>) -> Option<&'c Value> {
        if let Some(value) = claims.get(&*self.name) {
            return Some(value);
        }
        let (last, way) = self.parts.split_last()?;
        let mut members = claims;
        for part in way {
            members = members.get(&**part)?.as_object()?;
        }
        members.get(&**last)
    }

    /// The claim as one word of an identity. A value that is not a string, or empty, says nothing.
    fn text(&self, claims: &Map<String, Value>) -> Result<Option<SmolStr>, Rejection> {
        match self.find(claims) {
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(sound(text)?.into())),
            _ => Ok(None),
        }
    }
}

/// The words of all these claims, each once: a string is `split`, a list gives its strings, anything else grants nothing.
fn words(
    paths: &[ClaimPath],
    claims: &Map<String, Value>,
    split: impl Fn(&str) -> Vec<&str>,
    is_one: impl Fn(&str) -> bool,
) -> Result<Arc<[Arc<str>]>, Rejection> {
    let mut words: Vec<Arc<str>> = Vec::new();
    for path in paths {
        let found: Vec<&str> = match path.find(claims) {
            Some(Value::String(text)) => split(text),
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).filter(|word| is_one(word)).collect(),
            _ => Vec::new(),
        };
        for word in found.into_iter().filter(|word| !word.is_empty()) {
            if !words.iter().any(|known| **known == *word) {
                words.push(sound(word)?.into());
            }
        }
    }
    Ok(words.into())
}

/// A value that can stand in a header line and a log line. One that cannot was made to break them: the token is refused.
fn sound(text: &str) -> Result<&str, Rejection> {
    if text.len() > MAX_VALUE {
        return Err(Rejection::CredentialInvalid("claim_too_long"));
    }
    if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return Err(Rejection::CredentialInvalid("claim_characters"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_dotted_path_walks_into_objects_and_a_whole_name_comes_first() {
        let claims = json!({"https://acme.test/roles": "x", "a": {"b": "y"}, "a.c": "z"});
        for (name, expected) in
            [("https://acme.test/roles", Some("x")), ("a.b", Some("y")), ("a.c", Some("z")), ("a", None), ("a.b.c", None)]
        {
            assert_eq!(ClaimPath::new(&name.into()).text(claims.as_object().unwrap()).unwrap().as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_value_that_could_break_a_header_line_or_fill_it_refuses_the_credential() {
        for (value, reason) in [
            ("a\nb".to_owned(), "claim_characters"),
            ("a\x7f".to_owned(), "claim_characters"),
            ("x".repeat(MAX_VALUE + 1), "claim_too_long"),
        ] {
            assert_eq!(sound(&value), Err(Rejection::CredentialInvalid(reason)));
        }
        assert_eq!(sound("Zoë"), Ok("Zoë"));
    }
}
