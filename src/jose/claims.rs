//! The registered claims of a JWT (RFC 7519 section 4.1), each of the type it must have or refused: a wrong type is never "absent".

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::{Fault, json};

/// The last second of the year 9999: no sound token speaks of a later time, and no arithmetic on an earlier one overflows.
const LAST_TIME: Duration = Duration::from_secs(253_402_300_799);

/// The claims of one token.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    /// Those whose meaning decides.
    pub registered: Registered,
    /// Every claim, those included.
    pub all: Map<String, Value>,
}

/// The claims that decide whether a token is good here and now. Times are since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Registered {
    /// `iss`.
    pub issuer: Option<Arc<str>>,
    /// `aud`; empty when absent.
    pub audiences: Arc<[Arc<str>]>,
    /// `exp`.
    pub expires: Option<Duration>,
    /// `nbf`.
    pub not_before: Option<Duration>,
    /// `iat`.
    pub issued: Option<Duration>,
    /// `cnf` (RFC 7800): what a holder must prove, whatever is said there. Boxed, as few tokens have it.
    pub confirmation: Option<Box<Value>>,
}

impl Claims {
    /// Reads a payload.
    pub fn parse(payload: &[u8]) -> Result<Self, Fault> {
        Self::of(json::object(payload).ok_or(Fault::Malformed)?)
    }

    /// The claims among the members of an object.
    pub fn of(all: Map<String, Value>) -> Result<Self, Fault> {
        let time = |name: &str, fault: Fault| all.get(name).map(|value| numeric_date(value).ok_or(fault)).transpose();
        let registered = Registered {
            issuer: match all.get("iss") {
                None => None,
                Some(Value::String(issuer)) => Some(issuer.as_str().into()),
                Some(_) => return Err(Fault::Issuer),
            },
            audiences: match all.get("aud") {
                None => Arc::default(),
                Some(Value::String(audience)) => [audience.as_str().into()].into(),
                Some(Value::Array(list)) => {
                    list.iter().map(|audience| audience.as_str().map(Into::into).ok_or(Fault::Audience)).collect::<Result<_, _>>()?
                }
                Some(_) => return Err(Fault::Audience),
            },
            expires: time("exp", Fault::Expiry)?,
            not_before: time("nbf", Fault::NotBefore)?,
            issued: time("iat", Fault::IssuedAt)?,
            confirmation: all.get("cnf").cloned().map(Box::new),
        };
        Ok(Self { registered, all })
    }
}

/// A NumericDate: a JSON number of seconds, not before the epoch and not after [`LAST_TIME`].
fn numeric_date(value: &Value) -> Option<Duration> {
    let time = match value.as_u64() {
        Some(seconds) => Duration::from_secs(seconds),
        None => Duration::try_from_secs_f64(value.as_f64()?).ok()?,
    };
    (time <= LAST_TIME).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_in_range_and_nothing_else() {
        let expires = |text: &str| Claims::parse(format!(r#"{{"exp":{text}}}"#).as_bytes()).map(|claims| claims.registered.expires);
        assert_eq!(expires("0"), Ok(Some(Duration::ZERO)));
        assert_eq!(expires("4102444800"), Ok(Some(Duration::from_secs(4_102_444_800))));
        assert_eq!(expires("1.5"), Ok(Some(Duration::from_millis(1500))));
        assert_eq!(expires("253402300799"), Ok(Some(LAST_TIME)));
        for text in [
            "\"4102444800\"",
            "null",
            "true",
            "[4102444800]",
            "{}",
            "-1",
            "-0.5",
            "1e300",
            "-1e300",
            "253402300800",
            "18446744073709551616",
        ] {
            assert_eq!(expires(text), Err(Fault::Expiry), "{text}");
        }
        assert_eq!(Claims::parse(b"{}").unwrap().registered.expires, None);
    }

    #[test]
    fn a_claim_of_the_wrong_type_is_refused_and_not_taken_for_absent() {
        for (payload, fault) in [
            (r#"{"iss":["a"]}"#, Fault::Issuer),
            (r#"{"iss":null}"#, Fault::Issuer),
            (r#"{"aud":null}"#, Fault::Audience),
            (r#"{"aud":5}"#, Fault::Audience),
            (r#"{"aud":["a",5]}"#, Fault::Audience),
            (r#"{"aud":[["a"]]}"#, Fault::Audience),
            (r#"{"nbf":null}"#, Fault::NotBefore),
            (r#"{"iat":"1"}"#, Fault::IssuedAt),
            (r#"["a"]"#, Fault::Malformed),
            (r#"{"sub":"a","sub":"b"}"#, Fault::Malformed),
        ] {
            assert_eq!(Claims::parse(payload.as_bytes()), Err(fault), "{payload}");
        }
    }

    #[test]
    fn an_audience_may_be_one_or_many() {
        let audiences = |payload: &str| Claims::parse(payload.as_bytes()).unwrap().registered.audiences;
        assert_eq!(*audiences(r#"{"aud":"a b"}"#), [Arc::<str>::from("a b")]);
        assert_eq!(*audiences(r#"{"aud":["a","b"]}"#), [Arc::<str>::from("a"), Arc::from("b")]);
        assert!(audiences(r#"{"aud":[]}"#).is_empty());
        assert!(audiences("{}").is_empty());
    }
}
