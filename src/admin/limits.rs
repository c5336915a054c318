//! `/api/v1/limits`: what each limit counts, and what one caller has left of a quota.

use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::{Value, json};

use crate::request::Now;
use crate::route::limit::RateLimit;
use crate::route::statement::{Statement, Used};
use crate::snapshot::Snapshot;

/// Every limit; with `limit=NAME` that one; and with the parts of a key (`consumer=acme`) what it has left.
pub(super) fn answer(snapshot: &Snapshot, query: &str, now: Now) -> (StatusCode, Value) {
    let Some(mut asked) = parameters(query) else { return refuse(StatusCode::BAD_REQUEST, "the query cannot be read") };
    let name = asked.iter().position(|(name, _)| name == "limit").map(|at| asked.swap_remove(at).1);
    let Some(name) = name else {
        if let Some((part, _)) = asked.first() {
            return refuse(StatusCode::BAD_REQUEST, &format!("`limit` is missing, to which `{part}` belongs"));
        }
        let limits: Vec<Value> = snapshot.limits.iter().map(|limit| json!(limit.statement())).collect();
        return (StatusCode::OK, json!({"limits": limits}));
    };
    match snapshot.limits.iter().find(|limit| limit.statement().limit.as_bytes() == name) {
        Some(limit) => of_one(limit, &asked, now),
        None => refuse(StatusCode::NOT_FOUND, "there is no such limit"),
    }
}

fn of_one(limit: &RateLimit, asked: &[(String, Vec<u8>)], now: Now) -> (StatusCode, Value) {
    let statement = limit.statement();
    if asked.is_empty() {
        return (StatusCode::OK, json!(statement));
    }
    if let Some((stranger, _)) = asked.iter().find(|(name, _)| !statement.per.contains(name)) {
        return refuse(StatusCode::BAD_REQUEST, &format!("the limit does not count by `{stranger}`"));
    }
    let part = |name: &str| {
        let (_, value) = asked.iter().find(|(known, _)| known == name)?;
        if name == "credential" { bytes_of(value) } else { Some(value.clone()) }
    };
    let key = match limit.key_of(part) {
        Ok(key) => key,
        Err(part) => return refuse(StatusCode::BAD_REQUEST, &format!("`{part}` is missing, or cannot be one")),
    };
    let Some(used) = limit.used(&key, now) else {
        return refuse(StatusCode::BAD_REQUEST, "the limit is no quota");
    };
    let Used { used, left, reset } = used;
    (StatusCode::OK, json!(OfCaller { limit: statement, used, left, reset_seconds: reset.as_secs_f64() }))
}

/// A quota, and what one caller has used of it.
#[derive(Serialize)]
struct OfCaller {
    #[serde(flatten)]
    limit: Statement,
    used: u64,
    left: u64,
    /// Until everything is back.
    reset_seconds: f64,
}

fn refuse(status: StatusCode, error: &str) -> (StatusCode, Value) {
    (status, json!({"error": error}))
}

fn parameters(query: &str) -> Option<Vec<(String, Vec<u8>)>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let name = percent_decode_str(name).decode_utf8().ok()?;
            Some((name.into_owned(), percent_decode_str(value).collect()))
        })
        .collect()
}

/// The SHA-256 of a credential, from its 64 hexadecimal digits.
fn bytes_of(hex: &[u8]) -> Option<Vec<u8>> {
    let digit = |digit: &u8| char::from(*digit).to_digit(16);
    let pair = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
        _ => None,
    };
    hex.chunks(2).map(pair).collect::<Option<Vec<u8>>>().filter(|bytes| bytes.len() == 32)
}
