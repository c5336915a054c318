//! The built-in demo upstream: answers with the request as an upstream sees it, for it is one, on a loopback port of its own.

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};

/// The request in JSON: method, path, query, headers, and how long its body was.
pub async fn answer(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, mut body) = request.into_parts();
    let mut length = 0;
    while let Some(Ok(frame)) = body.frame().await {
        length += frame.data_ref().map_or(0, Bytes::len);
    }
    let mut headers = Map::new();
    for name in head.headers.keys() {
        let mut values: Vec<Value> =
            head.headers.get_all(name).iter().map(|value| Value::from(String::from_utf8_lossy(value.as_bytes()))).collect();
        let value = if values.len() == 1 { values.remove(0) } else { Value::from(values) };
        headers.insert(name.to_string(), value);
    }
    let echo = json!({
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": head.uri.query(),
        "headers": headers,
        "body_bytes": length,
    });
    let mut text = serde_json::to_vec_pretty(&echo).unwrap_or_default();
    text.push(b'\n');
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
