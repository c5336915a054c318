//! Signatures, keys and JSON against vectors that we did not write, read from the folder `EDGEWARD_SUITES` names: `make vectors`.
//!
//! The payloads of these vectors are no claims, so they are judged where the gateway judges signatures: outline, header, key, signature.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a vector that cannot be read has to fail"
)]

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use edgeward::authenticators::sigv4::canonical as sigv4;
use edgeward::jose::{Algorithm, Claims, JwkSet, Jws, Key};
use serde_json::{Value, json};

fn suites(folder: &str) -> PathBuf {
    let root = std::env::var_os("EDGEWARD_SUITES").expect("EDGEWARD_SUITES must name the folder of the suites");
    let folder = PathBuf::from(root).join("third-party").join(folder);
    assert!(folder.is_dir(), "there is no folder {}", folder.display());
    folder
}

fn read(folder: &str, file: &str) -> Value {
    let path = suites(folder).join(file);
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}"))
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn set(keys: &[Value]) -> JwkSet {
    JwkSet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

/// Whether the gateway would take this token's signature as made by a key of the set.
fn accepts(set: &JwkSet, token: &str) -> bool {
    if !Jws::has_shape(token) {
        return false;
    }
    let Ok(jws) = Jws::parse(token) else { return false };
    let (Ok(_), Ok(signature)) = (jws.payload(), jws.signature()) else { return false };
    set.candidates(&jws.header).any(|key| jws.is_signed_by(key, &signature))
}

/// The key set of a shared secret in a vector: the one key of the token's id, with its `alg`, as an operator would configure it.
fn accepts_with_secret(jwks: &[Value], token: &str) -> bool {
    let Ok(jws) = Jws::parse(token) else { return false };
    let named: Vec<_> = jwks.iter().filter(|jwk| jws.header.kid.as_deref().is_none_or(|kid| jwk["kid"] == *kid)).collect();
    let [jwk] = named.as_slice() else { return false };
    let secret = URL_SAFE_NO_PAD.decode(text(jwk, "k")).unwrap();
    Algorithm::parse(text(jwk, "alg")) == Some(jws.header.algorithm) && JwkSet::from_secret(&secret).is_some_and(|set| accepts(&set, token))
}

/// Where we judge otherwise than the vectors, and why.
const OTHERWISE: [(&str, &str); 8] = [
    ("json_web_signature_test-346", "PS384 by a key whose alg is PS256: RFC 8725 section 3.1 gives a key one algorithm"),
    ("json_web_signature_test-350", "the same"),
    ("json_web_signature_test-347", "the key's alg is ES521, which is no algorithm: a slip of the vectors"),
    ("json_web_signature_test-351", "the same"),
    ("json_web_signature_test-367", "the padding that it speaks of was lost on the way: the token is sound and valid"),
    ("json_web_signature_test-370", "the same"),
    ("json_web_signature_test-372", "`?` is no base64url (RFC 7515 section 2): other libraries skip it, we refuse"),
    ("json_web_signature_test-373", "the same"),
];

#[test]
#[ignore = "needs EDGEWARD_SUITES"]
fn wycheproof_json_web_signatures_and_keys() {
    let rows = std::fs::read_to_string(suites("wycheproof").join("gateway.jsonl")).unwrap();
    let (mut valid, mut invalid, mut wrong) = (0, 0, Vec::new());
    for row in rows.lines() {
        let row: Value = serde_json::from_str(row).unwrap();
        let (keys, token) = (list(&row["jwks"], "keys"), text(&row, "jws"));
        let symmetric = row["symmetric"] == true && keys.iter().all(|key| key["kty"] == "oct");
        let accepted = if symmetric { accepts_with_secret(keys, token) } else { accepts(&set(keys), token) };
        let otherwise = OTHERWISE.iter().any(|(id, _)| *id == text(&row, "id"));
        let expected = match text(&row, "result") {
            // A token signed with the group's own key: good exactly when the key is one that may be used.
            "control" => symmetric || !set(keys).keys().is_empty(),
            result => (result == "valid") != otherwise,
        };
        *(if expected { &mut valid } else { &mut invalid }) += 1;
        if accepted != expected {
            wrong.push(format!("{} {} is {}", text(&row, "id"), text(&row, "comment"), text(&row, "result")));
        }
    }
    assert_eq!(wrong, [""; 0], "{valid} valid, {invalid} invalid");
    assert!(valid >= 60 && invalid >= 370, "{valid} valid, {invalid} invalid");
}

/// Runs each group of a file with the key that `key` makes of it.
fn signatures(file: &str, algorithm: Algorithm, key: impl Fn(&Value) -> Value) {
    let document = read("wycheproof", file);
    let (mut judged, mut wrong) = (0, Vec::new());
    for group in list(&document, "testGroups") {
        let set = set(&[key(group)]);
        for test in list(group, "tests") {
            let accepted = set
                .keys()
                .first()
                .is_some_and(|key| key.verify(algorithm, &hex(text(test, "msg")).as_slice().into(), &hex(text(test, "sig"))));
            let expected = text(test, "result");
            if expected != "acceptable" && accepted != (expected == "valid") {
                wrong.push(format!("{} {} expected {expected}", test["tcId"], text(test, "comment")));
            }
            judged += 1;
        }
    }
    assert_eq!(wrong, [""; 0], "{file}");
    assert_eq!(json!(judged), document["numberOfTests"], "{file}");
}

fn rsa(group: &Value) -> Value {
    let number = |name| {
        let bytes = hex(text(&group["publicKey"], name));
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        URL_SAFE_NO_PAD.encode(&bytes[zeros..])
    };
    json!({"kty": "RSA", "n": number("modulus"), "e": number("publicExponent")})
}

fn ec(curve: &'static str, coordinate: usize) -> impl Fn(&Value) -> Value {
    move |group| {
        // 04, then both coordinates in full length.
        let point = hex(text(&group["publicKey"], "uncompressed"));
        let (x, y) = point[1..].split_at(coordinate);
        json!({"kty": "EC", "crv": curve, "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)})
    }
}

#[test]
#[ignore = "needs EDGEWARD_SUITES"]
fn wycheproof_ecdsa() {
    signatures("ecdsa_secp256r1_sha256_p1363_test.json", Algorithm::Es256, ec("P-256", 32));
    signatures("ecdsa_secp384r1_sha384_p1363_test.json", Algorithm::Es384, ec("P-384", 48));
    signatures("ecdsa_secp521r1_sha512_p1363_test.json", Algorithm::Es512, ec("P-521", 66));
    let koblitz = read("wycheproof", "ecdsa_secp256k1_sha256_p1363_test.json");
    for group in list(&koblitz, "testGroups") {
        // Neither under its own name nor under that of a curve that we know.
        for name in ["secp256k1", "P-256"] {
            assert!(set(&[ec(name, 32)(group)]).keys().is_empty(), "{name}");
        }
    }
}

#[test]
#[ignore = "needs EDGEWARD_SUITES"]
fn wycheproof_rsa() {
    signatures("rsa_signature_2048_sha256_test.json", Algorithm::Rs256, rsa);
    signatures("rsa_signature_2048_sha512_test.json", Algorithm::Rs512, rsa);
    signatures("rsa_pss_2048_sha256_mgf1_32_test.json", Algorithm::Ps256, rsa);
}

#[test]
#[ignore = "needs EDGEWARD_SUITES"]
fn wycheproof_ed25519() {
    signatures(
        "ed25519_test.json",
        Algorithm::EdDsa,
        |group| json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(hex(text(&group["publicKey"], "pk")))}),
    );
}

#[test]
#[ignore = "needs EDGEWARD_SUITES"]
fn wycheproof_hmac() {
    let document = read("wycheproof", "hmac_sha256_test.json");
    let mut judged = 0;
    for group in list(&document, "testGroups") {
        for test in list(group, "tests") {
            let Some(key) = Key::from_secret(&hex(text(test, "key"))) else {
                assert!(group["keySize"].as_u64() < Some(256), "{test}");
                continue;
            };
            let tag = hex(text(test, "tag"));
            // A cut tag is good elsewhere and never in JOSE.
            let expected = text(test, "result") == "valid" && tag.len() == 32;
            assert_eq!(key.verify(Algorithm::Hs256, &hex(text(test, "msg")).as_slice().into(), &tag), expected, "{test}");
            judged += 1;
        }
    }
    assert!(judged > 50, "{judged}");
}

#[test]
#[ignore = "needs EDGEWARD_SUITES"]
fn jose_cookbook() {
    let mut verified = 0;
    for entry in std::fs::read_dir(suites("jose-cookbook").join("jws")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let example = read("jose-cookbook", &format!("jws/{name}"));
        let Some(token) = example["output"]["compact"].as_str() else { continue };
        let key = &example["input"]["key"];
        // Detached content (4.5) leaves the payload out; put back, it is a token like another.
        let detached = token.contains("..");
        let whole = token.replace("..", &format!(".{}.", URL_SAFE_NO_PAD.encode(text(&example["input"], "payload"))));
        assert!(accepts_cookbook(key, &whole), "{name}");
        assert!(!detached || !accepts_cookbook(key, token), "{name}");
        verified += 1;
    }
    let example = read("jose-cookbook", "curve25519/jws.json");
    assert!(accepts_cookbook(&example["input"]["key"], text(&example["output"], "compact")));
    assert!(verified >= 5, "{verified}");

    // RFC 7797, an unencoded payload: refused for its `crit`, and would be for its `b64`.
    let example = read("jose-cookbook", "rfc7797/hmac-sha2_b64_false.json");
    assert!(!accepts_cookbook(&example["input"]["key"], text(&example["output"], "compact")));
    let example = read("jose-cookbook", "rfc7797/4.2.hmac-sha2_b64_false.json");
    let json = &example["output"]["json_flat"];
    assert!(!accepts_cookbook(
        &example["input"]["key"],
        &format!("{}.{}.{}", text(json, "protected"), text(json, "payload"), text(json, "signature"))
    ));
}

fn accepts_cookbook(key: &Value, token: &str) -> bool {
    if let Some(secret) = key["k"].as_str() {
        return JwkSet::from_secret(&URL_SAFE_NO_PAD.decode(secret).unwrap()).is_some_and(|set| accepts(&set, token));
    }
    let mut public = key.clone();
    for private in ["d", "p", "q", "dp", "dq", "qi"] {
        public.as_object_mut().unwrap().remove(private);
    }
    assert!(public == *key || set(std::slice::from_ref(key)).keys().is_empty(), "a private key verifies nothing");
    accepts(&set(&[public]), token)
}

#[test]
#[ignore = "needs EDGEWARD_SUITES"]
fn json_that_is_none_is_no_key_set_and_no_claims() {
    let (mut refused, mut read) = (0, 0);
    for folder in ["test_parsing", "test_transform"] {
        for entry in std::fs::read_dir(suites("json-test-suite").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let (name, body) = (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap());
            let (keys, claims) = (JwkSet::parse(&body), Claims::parse(&body));
            if name.starts_with("n_") {
                assert!(keys.is_err() && claims.is_err(), "{name}");
                refused += 1;
            }
            assert!(keys.is_err(), "{name} is no key set");
            // The same body as the value of a claim, and as a key of a set.
            let wrapped = |before: &str| [before.as_bytes(), &body, if before.ends_with('[') { b"]}" } else { b"}" }].concat();
            let inside = Claims::parse(&wrapped(r#"{"x":"#));
            assert!(!name.starts_with("n_") || inside.is_err() || name == "n_structure_no_data.json", "{name}");
            assert!(JwkSet::parse(&wrapped(r#"{"keys":["#)).map_or(true, |set| set.keys().is_empty()), "{name}");
            read += usize::from(claims.is_ok());
        }
    }
    assert!(refused >= 180 && read >= 10, "{refused} refused, {read} read");
}

/// A request of the AWS suite: the request line, the header fields in the order of the file, and the body.
struct AwsRequest {
    method: String,
    target: String,
    headers: http::HeaderMap,
    body: String,
}

fn aws_request(text: &str) -> AwsRequest {
    let (head, body) = text.split_once("\n\n").unwrap_or((text.trim_end_matches('\n'), ""));
    let mut lines = head.lines();
    let (method, rest) = lines.next().unwrap().split_once(' ').unwrap();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines {
        match line.strip_prefix(' ') {
            // A folded line: the gateway refuses it before it comes to this.
            Some(more) => fields.last_mut().unwrap().1.push_str(&format!(" {}", more.trim())),
            None => {
                let (name, value) = line.split_once(':').unwrap();
                fields.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    let mut headers = http::HeaderMap::new();
    for (name, value) in fields {
        headers.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    AwsRequest { method: method.to_owned(), target: rest.strip_suffix(" HTTP/1.1").unwrap().to_owned(), headers, body: body.to_owned() }
}

#[test]
#[ignore = "needs EDGEWARD_SUITES"]
fn aws_signature_version_4() {
    let rows = std::fs::read_to_string(suites("aws-sigv4").join("cases.jsonl")).unwrap();
    let (mut headers, mut links) = (0, 0);
    for row in rows.lines() {
        let row: Value = serde_json::from_str(row).unwrap();
        if text(&row, "suite") != "v4" {
            continue;
        }
        for form in ["header", "query"] {
            let part = |name: &str| text(&row, &format!("{form}-{name}.txt")).trim_end_matches('\n');
            let (context, name) = (&row["context.json"], text(&row, "name"));
            let (region, service) = (text(context, "region"), text(context, "service"));
            let request = aws_request(text(&row, &format!("{form}-signed-request.txt")));
            let canonical_request = part("canonical-request");
            let mut lines = canonical_request.lines().rev();
            let (payload, names) = (lines.next().unwrap(), lines.next().unwrap());
            // Said in the request, or the hash of its body: never something else.
            let declared = request.headers.get("x-amz-content-sha256").map(|value| value.to_str().unwrap().to_owned());
            let sign_body = context["sign_body"] == true;
            let hash = sigv4::hex(&openssl::sha::sha256(request.body.as_bytes()));
            assert!(payload == hash || (!sign_body && payload == sigv4::hex(&openssl::sha::sha256(b""))), "{name} {form}");
            assert!(declared.is_none_or(|declared| declared == payload), "{name} {form}");
            let (path, query) = request.target.split_once('?').map_or((&*request.target, None), |(path, query)| (path, Some(query)));
            // The gateway forwards one spelling of a path; what it never forwards (a space, bytes that are not ASCII) is signed as it came.
            let normal = edgeward::request::path::canonical(path.as_bytes()).map(|canonical| canonical.path.into_owned());
            let path = if context["normalize"] == true { normal.unwrap_or_else(|_| path.replace("//", "/")) } else { path.to_owned() };
            let host = request.headers["host"].to_str().unwrap().to_owned();
            // A token that is added to a link after it was signed is no part of it.
            let query = query.map(|query| {
                let signed = |pair: &&str| context["omit_session_token"] != true || !pair.starts_with("X-Amz-Security-Token=");
                query.split('&').filter(signed).collect::<Vec<_>>().join("&")
            });
            let signed = sigv4::Signed {
                method: &request.method,
                path: &path,
                escapes: sigv4::Escapes::Escaped,
                query: query.as_deref(),
                host: &host,
                headers: &request.headers,
                names,
                payload,
            };
            let ours = signed.canonical_request().unwrap();
            assert_eq!(String::from_utf8(ours.clone()).unwrap(), canonical_request, "{name} {form}");
            let string_to_sign = part("string-to-sign");
            let mut lines = string_to_sign.lines().skip(1);
            let (time, scope) = (lines.next().unwrap(), lines.next().unwrap());
            assert_eq!(sigv4::string_to_sign(time, scope, &ours), string_to_sign, "{name} {form}");
            let secret = text(&context["credentials"], "secret_access_key");
            let key = sigv4::signing_key(secret.as_bytes(), &time[..8], region, service);
            assert_eq!(sigv4::hex(&sigv4::signature(&key, string_to_sign)), part("signature"), "{name} {form}");
            *(if form == "header" { &mut headers } else { &mut links }) += 1;
        }
    }
    assert_eq!((headers, links), (38, 38));
}
