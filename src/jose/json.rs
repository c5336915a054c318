//! JSON objects as security wants them: one object, unique member names at every depth, no trailing bytes.
//!
//! serde_json lets the last of two equal members win, where another party reads the first. Depth is bounded by serde_json itself
//! (128), numbers that no `f64` holds are refused by it, and so are a byte-order mark and anything that is not UTF-8.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The one object that `bytes` is, or nothing.
pub fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice::<Strict>(bytes).ok()?.0 {
        Value::Object(members) => Some(members),
        _ => None,
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON with unique member names")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = elements.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some((name, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("duplicate member"));
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_object_with_unique_names_is_read() {
        let members = object(br#" {"a":1,"b":[{"c":null},true,-1,1.5,"x"],"\u0063":{}} "#).unwrap();
        assert_eq!(serde_json::to_string(&members).unwrap(), r#"{"a":1,"b":[{"c":null},true,-1,1.5,"x"],"c":{}}"#);
    }

    #[test]
    fn what_two_parties_could_read_differently_is_refused() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
        let cases: &[&[u8]] = &[
            br#"{"a":1,"a":1}"#,
            br#"{"a":1,"\u0061":2}"#,
            br#"{"x":{"a":1,"a":2}}"#,
            br#"{"x":[{"a":1,"a":2}]}"#,
            b"[]",
            b"null",
            b"\"x\"",
            b"1",
            b"",
            b"{}{}",
            b"{} x",
            b"{\"a\":1,}",
            b"\xef\xbb\xbf{}",
            b"{\"a\":\"\xff\"}",
            b"{\"a\":NaN}",
            b"{\"a\":1e400}",
            b"{\"a\":1e999999999}",
            b"{\"a\":0x10}",
            b"{\"a\":+1}",
            b"{\"a\":01}",
            b"{\0\"\0a\0\"\0:\x001\0}",
            br#"{"a":"\ud800"}"#,
            b"{/**/}",
            deep.as_bytes(),
        ];
        for case in cases {
            assert_eq!(object(case), None, "{:?}", String::from_utf8_lossy(case.get(..40).unwrap_or(case)));
        }
    }
}
