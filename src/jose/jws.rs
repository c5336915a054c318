//! The compact JWS (RFC 7515 section 7.1), taken apart by the strictest reading. What a header offers as a key is never obeyed.

use super::{Algorithm, Fault, Key, Message, base64url, json};

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;
/// The longest header that is parsed, in bytes as decoded.
pub const MAX_HEADER: usize = 4 * 1024;

/// What of a header decides anything.
///
/// `jwk`, `jku`, `x5u`, `x5c` and `x5t` may stand there and are not read: a key comes from the issuer's set alone (RFC 8725 section 3.10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the token says it was signed with; to be compared, never to choose by.
    pub algorithm: Algorithm,
    /// The key id.
    pub kid: Option<Box<str>>,
    /// The media type, as written.
    pub typ: Option<Box<str>>,
}

/// A token in three parts; only the header is decoded yet.
#[derive(Debug)]
pub struct Jws<'t> {
    /// The header.
    pub header: Header,
    message: Message<'t>,
    payload: &'t str,
    signature: &'t str,
}

impl<'t> Jws<'t> {
    /// Whether `credential` has the outline of a compact JWS: three parts, the first not empty. What has not is another kind of credential.
    pub fn has_shape(credential: &str) -> bool {
        let mut parts = credential.split('.');
        parts.next().is_some_and(|header| !header.is_empty()) && parts.by_ref().take(3).count() == 2
    }

    /// Takes a token apart and reads its header.
    pub fn parse(token: &'t str) -> Result<Self, Fault> {
        if token.len() > MAX_TOKEN {
            return Err(Fault::TooLarge);
        }
        let (signing_input, signature) = token.rsplit_once('.').ok_or(Fault::Malformed)?;
        let (header, payload) = signing_input.split_once('.').ok_or(Fault::Malformed)?;
        if payload.contains('.') {
            return Err(Fault::Malformed);
        }
        if header.len() > MAX_HEADER * 4 / 3 {
            return Err(Fault::TooLarge);
        }
        Ok(Self { header: parse_header(header)?, message: signing_input.as_bytes().into(), payload, signature })
    }

    /// The payload's bytes. Nothing vouches for them before [`is_signed_by`](Self::is_signed_by).
    pub fn payload(&self) -> Result<Vec<u8>, Fault> {
        base64url(self.payload.as_bytes()).ok_or(Fault::Malformed)
    }

    /// The signature's bytes.
    pub fn signature(&self) -> Result<Vec<u8>, Fault> {
        base64url(self.signature.as_bytes()).ok_or(Fault::Malformed)
    }

    /// What the signature is over: the encoded header and payload.
    pub fn signing_input(&self) -> &'t [u8] {
        self.message.bytes()
    }

    /// SHA-256 of [`signing_input`](Self::signing_input).
    pub fn fingerprint(&self) -> [u8; 32] {
        *self.message.sha256()
    }

    /// Whether `key` made `signature` for this token, with the algorithm that both name.
    pub fn is_signed_by(&self, key: &Key, signature: &[u8]) -> bool {
        key.verify(self.header.algorithm, &self.message, signature)
    }
}

/// SHA-256 of what the signature of a token is over; of the whole where it is no JWS.
///
/// Of an ECDSA signature anybody can make a second one that is as good: the same token with that one must not count as another.
pub fn fingerprint(token: &str) -> [u8; 32] {
    Jws::parse(token).map_or_else(|_| *Message::from(token.as_bytes()).sha256(), |jws| jws.fingerprint())
}

fn parse_header(encoded: &str) -> Result<Header, Fault> {
    let members = json::object(&base64url(encoded.as_bytes()).ok_or(Fault::Malformed)?).ok_or(Fault::Malformed)?;
    // RFC 7515 section 4.1.11: an extension that is not understood refuses the token; we understand none, so any `crit` does.
    if members.contains_key("crit") {
        return Err(Fault::Critical);
    }
    // `b64` (RFC 7797) outside `crit` would have two readings; `enc` and `zip` belong to JWE; `cty` tells of a nested token.
    if ["b64", "enc", "zip", "cty"].iter().any(|name| members.contains_key(*name)) {
        return Err(Fault::Encoding);
    }
    let text = |name: &str| match members.get(name) {
        None => Ok(None),
        Some(serde_json::Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(Fault::Malformed),
    };
    let algorithm = text("alg").ok().flatten().and_then(Algorithm::parse).ok_or(Fault::Algorithm)?;
    Ok(Header { algorithm, kid: text("kid")?.map(Into::into), typ: text("typ")?.map(Into::into) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;

    fn token(header: &str) -> String {
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", encode(header), encode("{}"), encode("s"))
    }

    #[test]
    fn a_header_says_its_algorithm_key_and_type() {
        let token = token(r#"{"alg":"ES256","kid":"k","typ":"at+jwt","jwk":{"kty":"oct"},"jku":"http://x","x5c":[],"x5u":1}"#);
        let jws = Jws::parse(&token).unwrap();
        assert_eq!(jws.header, Header { algorithm: Algorithm::Es256, kid: Some("k".into()), typ: Some("at+jwt".into()) });
        assert_eq!(jws.payload().unwrap(), b"{}");
        assert_eq!(jws.signature().unwrap(), b"s");
        assert_eq!(Some(jws.signing_input()), token.rsplit_once('.').map(|(input, _)| input.as_bytes()));
    }

    #[test]
    fn a_header_that_could_mean_something_else_is_refused() {
        for (header, fault) in [
            (r#"{}"#, Fault::Algorithm),
            (r#"{"alg":null}"#, Fault::Algorithm),
            (r#"{"alg":["RS256"]}"#, Fault::Algorithm),
            (r#"{"alg":"none"}"#, Fault::Algorithm),
            (r#"{"alg":"RS256","alg":"RS256"}"#, Fault::Malformed),
            (r#"{"alg":"RS256","kid":1}"#, Fault::Malformed),
            (r#"{"alg":"RS256","kid":null}"#, Fault::Malformed),
            (r#"{"alg":"RS256","typ":null}"#, Fault::Malformed),
            (r#"{"alg":"RS256","crit":["exp"],"exp":1}"#, Fault::Critical),
            (r#"{"alg":"RS256","crit":[]}"#, Fault::Critical),
            (r#"{"alg":"RS256","crit":null}"#, Fault::Critical),
            (r#"{"alg":"RS256","b64":true}"#, Fault::Encoding),
            (r#"{"alg":"RS256","zip":"DEF"}"#, Fault::Encoding),
            (r#"{"alg":"RS256","enc":"A128GCM"}"#, Fault::Encoding),
            (r#"{"alg":"RS256","cty":"JWT"}"#, Fault::Encoding),
            (r#"["RS256"]"#, Fault::Malformed),
        ] {
            assert_eq!(Jws::parse(&token(header)).unwrap_err(), fault, "{header}");
        }
    }

    #[test]
    fn a_header_or_token_over_its_limit_is_not_decoded() {
        let long = token(&format!(r#"{{"alg":"RS256","x":"{}"}}"#, "a".repeat(MAX_HEADER)));
        assert_eq!(Jws::parse(&long).unwrap_err(), Fault::TooLarge);
        assert_eq!(Jws::parse(&format!("{}{}", token(r#"{"alg":"RS256"}"#), "A".repeat(MAX_TOKEN))).unwrap_err(), Fault::TooLarge);
    }

    #[test]
    fn only_three_parts_with_a_header_have_the_shape() {
        for (text, shape) in [
            ("a.b.c", true),
            ("a..", true),
            ("a.b.", true),
            ("", false),
            ("a", false),
            ("a.b", false),
            (".b.c", false),
            ("a.b.c.d", false),
            ("a.b.c.d.e", false),
            ("ck_live_7f3k2m9q_x", false),
        ] {
            assert_eq!(Jws::has_shape(text), shape, "{text}");
        }
    }
}
