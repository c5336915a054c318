//! The texts that a Version 4 signature is made of, byte for byte as AWS documents them: pure, so that the vectors of others can judge them.

use hmac_sha256::HMAC;
use http::HeaderMap;
use openssl::sha::sha256;

/// The first line of what is signed, the scheme of the header and the value of `X-Amz-Algorithm`.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The parameter that is not part of what it signs.
pub const SIGNATURE: &str = "X-Amz-Signature";

/// The parts of a request that a signature covers.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// The method.
    pub method: &'a str,
    /// The path that is forwarded.
    pub path: &'a str,
    /// How its escapes are signed.
    pub escapes: Escapes,
    /// The query that is forwarded.
    pub query: Option<&'a str>,
    /// The host that is forwarded, with its port.
    pub host: &'a str,
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// The names of those that are signed, separated by `;`.
    pub names: &'a str,
    /// SHA-256 of the body in lower-case hexadecimal, or the word that stands for it.
    pub payload: &'a str,
}

/// How the escapes of a path are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escapes {
    /// Escaped once more, as every service but S3 has it.
    Escaped,
    /// As they are.
    Kept,
}

impl Signed<'_> {
    /// The canonical request. `None`: an escape of the query that no signer writes (lower case, needless, or none at all).
    pub fn canonical_request(&self) -> Option<Vec<u8>> {
        let mut text = Vec::with_capacity(512);
        text.extend_from_slice(self.method.as_bytes());
        text.push(b'\n');
        encode(self.path, b"/", self.escapes, &mut text)?;
        text.push(b'\n');
        push_query(self.query.unwrap_or_default(), &mut text)?;
        text.push(b'\n');
        for name in self.names.split(';') {
            text.extend_from_slice(name.as_bytes());
            text.push(b':');
            if name == "host" {
                text.extend_from_slice(self.host.as_bytes());
            } else {
                for (at, line) in self.headers.get_all(name).iter().enumerate() {
                    if at > 0 {
                        text.push(b',');
                    }
                    push_trimmed(line.as_bytes(), &mut text);
                }
            }
            text.push(b'\n');
        }
        text.push(b'\n');
        text.extend_from_slice(self.names.as_bytes());
        text.push(b'\n');
        text.extend_from_slice(self.payload.as_bytes());
        Some(text)
    }
}

/// The string to sign. `time` is the time of the signature, `scope` is `date/region/service/aws4_request`.
pub fn string_to_sign(time: &str, scope: &str, canonical_request: &[u8]) -> String {
    format!("{ALGORITHM}\n{time}\n{scope}\n{}", hex(&sha256(canonical_request)))
}

/// The key that signs one day's requests.
pub fn signing_key(secret: &[u8], date: &str, region: &str, service: &str) -> [u8; 32] {
    let secret = zeroize::Zeroizing::new([b"AWS4", secret].concat());
    let date = HMAC::mac(date, &*secret);
    let region = HMAC::mac(region, date);
    let service = HMAC::mac(service, region);
    HMAC::mac("aws4_request", service)
}

/// The signature.
pub fn signature(key: &[u8; 32], string_to_sign: &str) -> [u8; 32] {
    HMAC::mac(string_to_sign, key)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8; 32]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// 64 digits of lower-case hexadecimal; upper case is no signature, as one byte changed must not be.
pub fn unhex(text: &str) -> Option<[u8; 32]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let pairs: &[[u8; 2]; 32] = pairs.try_into().ok().filter(|_| rest.is_empty())?;
    let mut bytes = [0; 32];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let digit = |digit: u8| char::from(digit).to_digit(16).filter(|_| !digit.is_ascii_uppercase());
        *byte = u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?;
    }
    Some(bytes)
}

/// Every parameter but the signature, by name and then by value.
fn push_query(query: &str, text: &mut Vec<u8>) -> Option<()> {
    if query.is_empty() {
        return Some(());
    }
    let mut pairs = Vec::new();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name != SIGNATURE {
            let mut encoded = (Vec::with_capacity(name.len()), Vec::with_capacity(value.len()));
            encode(name, b"", Escapes::Kept, &mut encoded.0)?;
            encode(value, b"", Escapes::Kept, &mut encoded.1)?;
            pairs.push(encoded);
        }
    }
    pairs.sort_unstable();
    for (at, (name, value)) in pairs.iter().enumerate() {
        if at > 0 {
            text.push(b'&');
        }
        text.extend_from_slice(name);
        text.push(b'=');
        text.extend_from_slice(value);
    }
    Some(())
}

/// Escapes all but letters, digits, `-._~` and what is `spared`. An escape that is kept has the one form that signers write: two requests
/// whose upstreams read two different bytes must not have one signature.
fn encode(from: &str, spared: &[u8], escapes: Escapes, text: &mut Vec<u8>) -> Option<()> {
    let mut rest = from.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if is_unreserved(byte) || spared.contains(&byte) {
            text.push(byte);
        } else if byte == b'%' && escapes == Escapes::Kept {
            let ([high, low], after) = rest.split_first_chunk()?;
            let digit = |digit: u8| char::from(digit).to_digit(16).filter(|_| !digit.is_ascii_lowercase());
            let meant = u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?;
            if is_unreserved(meant) {
                return None;
            }
            text.extend_from_slice(&[byte, *high, *low]);
            rest = after;
        } else {
            let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0').to_ascii_uppercase() as u8;
            text.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    Some(())
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// A value without spaces around it, and with one for each run of them within.
fn push_trimmed(value: &[u8], text: &mut Vec<u8>) {
    let mut last = b' ';
    for &byte in value.trim_ascii() {
        if byte != b' ' || last != b' ' {
            text.push(byte);
        }
        last = byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Option<String> {
        let mut out = Vec::new();
        push_query(text, &mut out)?;
        Some(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_query_is_signed_in_order_with_every_parameter_in_one_form() {
        for (given, signed) in [
            ("", Some("")),
            ("b=2&a=1", Some("a=1&b=2")),
            ("a=2&a=1&a", Some("a=&a=1&a=2")),
            ("a-b=1&a=2", Some("a=2&a-b=1")),
            ("a=b=c", Some("a=b%3Dc")),
            ("p=/x:y", Some("p=%2Fx%3Ay")),
            ("p=%2Fx", Some("p=%2Fx")),
            ("a=1+1", Some("a=1%2B1")),
            ("a=%20", Some("a=%20")),
            ("&a=1&", Some("=&=&a=1")),
            ("X-Amz-Signature=00&a=1", Some("a=1")),
            ("x-amz-signature=00", Some("x-amz-signature=00")),
            ("a=%2f", None),
            ("a=%61", None),
            ("%7E=a", None),
            ("a=%", None),
            ("a=%4", None),
            ("a=%zz", None),
        ] {
            assert_eq!(query(given).as_deref(), signed, "{given}");
        }
    }

    #[test]
    fn a_path_is_escaped_once_more_save_for_s3() {
        for (given, escaped, kept) in [
            ("/", "/", Some("/")),
            ("/a/b", "/a/b", Some("/a/b")),
            ("/a%20b", "/a%2520b", Some("/a%20b")),
            ("/a:b!", "/a%3Ab%21", Some("/a%3Ab%21")),
            ("/%e1", "/%25e1", None),
        ] {
            let encoded = |escapes| {
                let mut out = Vec::new();
                encode(given, b"/", escapes, &mut out).map(|()| String::from_utf8(out).unwrap())
            };
            assert_eq!(encoded(Escapes::Escaped).as_deref(), Some(escaped), "{given}");
            assert_eq!(encoded(Escapes::Kept).as_deref(), kept, "{given}");
        }
    }

    #[test]
    fn a_value_keeps_one_space_of_each_run_and_every_other_byte() {
        for (given, signed) in [("a", "a"), ("  a   b  c ", "a b c"), ("a\tb", "a\tb"), ("\"a  b\"", "\"a b\""), ("", ""), (" ", "")] {
            let mut out = Vec::new();
            push_trimmed(given.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), signed, "{given}");
        }
    }

    #[test]
    fn hexadecimal_has_one_form() {
        let bytes = std::array::from_fn(|at| at as u8 * 7);
        assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        for wrong in ["", &hex(&bytes)[..63], &format!("{}0", hex(&bytes)), &hex(&bytes).to_uppercase(), &"g".repeat(64), &"+".repeat(64)] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }
}
