//! Answers of an introspection endpoint: whatever it says, a token is active only where one reader and another both read the boolean `true`.

use edgeward::authenticators::introspection::{Said, read};
use edgeward::jose::json;
use serde_json::Value;

/// `data` is the body of an answer.
pub fn run(data: &[u8]) {
    let Some(said) = read(data) else {
        assert!(json::object(data).is_none(), "an object is an answer");
        return;
    };
    // serde_json lets the last of two members win, where we take neither: what we understood it must understand, and the same.
    let plain: Value = serde_json::from_slice(data).unwrap();
    let Said::Active(claims) = &said else { return };
    assert_eq!(plain["active"], Value::Bool(true));
    assert_eq!(Value::Object(claims.all.clone()), plain);
    for name in ["token_type", "token_use", "typ"] {
        let kind = plain.get(name).filter(|kind| !kind.is_null()).map(|kind| kind.as_str().unwrap().to_ascii_lowercase());
        let other = ["refresh", "refresh_token", "id", "id_token", "offline", "mac"];
        assert!(kind.as_deref().is_none_or(|kind| !other.contains(&kind)), "a token of another kind comes in");
        assert!(kind.as_deref() != Some("dpop") || plain["cnf"].get("jkt").is_some(), "a token that is bound to nobody's key");
    }
    let whole = |name: &str| plain.get(name).and_then(Value::as_u64);
    for (name, read) in [("exp", claims.registered.expires), ("nbf", claims.registered.not_before)] {
        assert_eq!(plain.get(name).is_some(), read.is_some(), "{name} is read or the token refused");
        if let Some(seconds) = whole(name) {
            assert_eq!(read.unwrap().as_secs(), seconds);
        }
    }
    assert_eq!(plain.get("iss").is_some(), claims.registered.issuer.is_some());
    // In another spelling it says the same; a fraction may come back one bit away.
    let Some(Said::Active(again)) = read(&serde_json::to_vec_pretty(&plain).unwrap()) else { panic!("another spelling, another answer") };
    assert_eq!(
        (again.registered.issuer, again.registered.audiences),
        (claims.registered.issuer.clone(), claims.registered.audiences.clone())
    );
    assert!(again.all.keys().eq(claims.all.keys()));
}
