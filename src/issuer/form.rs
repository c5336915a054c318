//! `application/x-www-form-urlencoded` as RFC 6749 uses it: no parameter twice, save those that may be.

use percent_encoding::percent_decode;

/// More parameters than any sound request has.
const MOST: usize = 50;

/// The parameters of a form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    /// Reads a form; `repeatable` names may stand in it several times (RFC 8707 section 2). An empty value is none (RFC 6749 section 3.2).
    pub(super) fn parse(body: &[u8], repeatable: &[&str]) -> Option<Self> {
        let mut parameters: Vec<(String, String)> = Vec::new();
        for pair in body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let (name, value) = match pair.iter().position(|byte| *byte == b'=') {
                Some(at) => (pair.get(..at)?, pair.get(at + 1..)?),
                None => (pair, &[][..]),
            };
            let (name, value) = (decode(name)?, decode(value)?);
            let again = parameters.iter().any(|(known, _)| *known == name) && !repeatable.contains(&name.as_str());
            if again || parameters.len() == MOST {
                return None;
            }
            parameters.push((name, value));
        }
        parameters.retain(|(_, value)| !value.is_empty());
        Some(Self(parameters))
    }

    /// The value of a parameter.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values(name).next()
    }

    /// Every value of a parameter.
    pub(super) fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// One name or value; `None` when it is not UTF-8.
pub(super) fn decode(text: &[u8]) -> Option<String> {
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    Some(percent_decode(&spaced).decode_utf8().ok()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_form_of_distinct_names_or_none(body in "[ -~]{0,60}|(a|b|aud|=|&|%61|%|\\+){0,20}", more: Vec<u8>) {
            for body in [body.as_bytes(), &more] {
                if let Some(form) = Form::parse(body, &["aud"]) {
                    for (index, (name, value)) in form.0.iter().enumerate() {
                        prop_assert!(!value.is_empty());
                        prop_assert!(name == "aud" || form.0.iter().skip(index + 1).all(|(other, _)| other != name));
                    }
                }
            }
        }
    }

    #[test]
    fn a_parameter_stands_once_and_is_decoded_once() {
        let form = Form::parse(b"a=1%2B+2&b=%2525&c&aud=x&aud=y&&d=", &["aud"]).unwrap();
        assert_eq!((form.value("a"), form.value("b"), form.value("c"), form.value("d")), (Some("1+ 2"), Some("%25"), None, None));
        assert_eq!(form.values("aud").collect::<Vec<_>>(), ["x", "y"]);
        for body in [&b"a=1&a=1"[..], b"a=1&%61=2", b"a=&a=", b"a=%ff"] {
            assert_eq!(Form::parse(body, &["aud"]), None, "{body:?}");
        }
        assert!(Form::parse("aud=1&".repeat(MOST + 1).as_bytes(), &["aud"]).is_none());
    }
}
