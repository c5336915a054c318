//! What an operator asks to be revoked, and the one revocation that it comes to; what is not clear is not guessed.

use openssl::asn1::Asn1Time;
use openssl::x509::X509;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Kind, Revocation};
use crate::jose::{Claims, Jws, jws};

/// What an operator asks to be revoked: one of the six, and where it fits the issuer and the time beside it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Order {
    /// A credential as it is presented; a certificate in PEM. Of a signed token the signed part counts: anybody can make a second signature
    /// that is as good.
    pub token: Option<String>,
    /// The id of a token.
    pub jti: Option<String>,
    /// An end user or service.
    pub subject: Option<String>,
    /// An OAuth2 client.
    pub client: Option<String>,
    /// The public id of a key; of a client certificate its SHA-256 fingerprint in lower-case hexadecimal.
    pub key_id: Option<String>,
    /// An issuer; beside `jti`, `subject` or `client`: whose.
    pub issuer: Option<String>,
    /// Only what was issued before this RFC 3339 time; `now` includes the current second, since tokens tell no more.
    pub before: Option<String>,
}

/// How long a revocation outlasts the token: longer than any leeway that an operator can give, and than clocks usually jump.
pub(super) const MARGIN: u64 = 86_400;
/// The longest value in bytes: no identity has a longer one.
const MAX_VALUE: usize = 4 * 1024;
/// How a certificate in PEM begins; no other credential has a space in it.
const PEM: &str = "-----BEGIN CERTIFICATE-----";

impl Order {
    /// The revocation that is asked for.
    ///
    /// # Errors
    /// When it is not clear what is meant, in words for the operator that hold nothing of a token.
    pub fn revocation(&self, now: u64) -> Result<Revocation, &'static str> {
        let Self { token, jti, subject, client, key_id, issuer, before } = self;
        let named = [(Kind::Token, token), (Kind::Jti, jti), (Kind::Subject, subject), (Kind::Client, client), (Kind::KeyId, key_id)];
        let mut named = named.into_iter().filter_map(|(kind, value)| Some((kind, value.as_deref()?)));
        let (kind, value, issuer) = match (named.next(), named.next(), issuer.as_deref()) {
            (Some((kind @ (Kind::Jti | Kind::Subject | Kind::Client), value)), None, issuer) => (kind, value, issuer),
            (Some((kind, value)), None, None) => (kind, value, None),
            (Some(_), None, Some(_)) => return Err("an issuer stands alone, or beside a jti, a subject or a client"),
            (None, _, Some(issuer)) => (Kind::Issuer, issuer, None),
            (Some(_), Some(_), _) => return Err("more than one of token, jti, subject, client and key_id"),
            (None, _, None) => return Err("none of token, jti, subject, client, key_id and issuer"),
        };
        let longest = if kind == Kind::Token { jws::MAX_TOKEN } else { MAX_VALUE };
        if [Some(value), issuer].into_iter().flatten().any(|text| text.is_empty() || text.len() > longest) {
            return Err("a value is empty or too long");
        }
        let before = match (before.as_deref(), kind) {
            (None, _) => None,
            (Some(_), Kind::Token | Kind::Jti | Kind::KeyId) => return Err("a time goes with a subject, a client or an issuer"),
            (Some("now"), _) => Some(now + 1),
            (Some(time), _) => {
                let time = OffsetDateTime::parse(time, &Rfc3339).map_err(|_| "the time is neither RFC 3339 nor `now`")?;
                Some(u64::try_from(time.unix_timestamp()).map_err(|_| "the time is before 1970")?)
            }
        };
        let (value, expires) = match kind {
            Kind::Token if value.starts_with(PEM) => certificate(value).ok_or("the certificate cannot be read")?,
            Kind::Token => (jws::fingerprint(value).into(), end_of(value)),
            _ => (value.as_bytes().into(), None),
        };
        Ok(Revocation { kind, value, issuer: issuer.map(Into::into), before, expires, revoked: now })
    }
}

/// When a token and its revocation are over. Nobody vouches for the claim, and nobody need: with another one it is another token.
fn end_of(token: &str) -> Option<u64> {
    let claims = Claims::parse(&Jws::parse(token).ok()?.payload().ok()?).ok()?;
    Some(claims.registered.expires?.as_secs().saturating_add(1 + MARGIN))
}

/// The fingerprint of the one certificate in a PEM, and when its revocation is over.
fn certificate(pem: &str) -> Option<(Box<[u8]>, Option<u64>)> {
    let certificates = X509::stack_from_pem(pem.as_bytes()).ok()?;
    let [certificate] = &*certificates else { return None };
    let since_epoch = Asn1Time::from_unix(0).ok()?.diff(certificate.not_after()).ok()?;
    let ends = u64::try_from(i64::from(since_epoch.days) * 86_400 + i64::from(since_epoch.secs)).ok()?;
    Some((openssl::sha::sha256(&certificate.to_der().ok()?).into(), Some(ends + 1 + MARGIN)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::{Algorithm, SigningKey};
    use serde_json::{Value, json};

    const NOW: u64 = 1_800_000_000;

    fn order(json: Value) -> Result<Revocation, &'static str> {
        serde_json::from_value::<Order>(json).unwrap().revocation(NOW)
    }

    #[test]
    fn what_is_not_clear_is_not_guessed() {
        for (asked, expected) in [
            (json!({}), "none of"),
            (json!({"before": "now"}), "none of"),
            (json!({"subject": "a", "jti": "b"}), "more than one"),
            (json!({"token": "a", "issuer": "b"}), "an issuer stands alone"),
            (json!({"key_id": "a", "issuer": "b"}), "an issuer stands alone"),
            (json!({"subject": ""}), "empty or too long"),
            (json!({"subject": "a", "issuer": ""}), "empty or too long"),
            (json!({"subject": "x".repeat(5000)}), "empty or too long"),
            (json!({"token": format!("{PEM}\nAAAA\n-----END CERTIFICATE-----\n")}), "certificate cannot be read"),
            (json!({"jti": "a", "before": "now"}), "a time goes with"),
            (json!({"subject": "a", "before": "yesterday"}), "neither RFC 3339"),
            (json!({"subject": "a", "before": "1969-01-01T00:00:00Z"}), "before 1970"),
        ] {
            let refused = order(asked.clone()).unwrap_err();
            assert!(refused.contains(expected), "{asked}: {refused}");
        }
        assert!(serde_json::from_value::<Order>(json!({"subjct": "alice"})).is_err());
    }

    #[test]
    fn a_token_is_the_same_under_another_signature_and_forgotten_after_its_end() {
        let claims = json!({"exp": NOW + 60});
        let token = SigningKey::generate(Algorithm::Es256, "k").unwrap().sign(claims.as_object().unwrap()).unwrap();
        let (signed, _) = token.rsplit_once('.').unwrap();
        let revoked = order(json!({"token": token})).unwrap();
        assert_eq!(*revoked.value, openssl::sha::sha256(signed.as_bytes()));
        assert_eq!(order(json!({"token": format!("{signed}.AAAA")})).unwrap(), revoked);
        assert_eq!(revoked.expires, Some(NOW + 61 + MARGIN));
        assert_eq!(*order(json!({"token": "opaque"})).unwrap().value, openssl::sha::sha256(b"opaque"));
    }

    #[test]
    fn a_certificate_is_known_by_its_fingerprint_and_forgotten_after_its_end() {
        let pem =
            |name: &str| std::fs::read_to_string(format!("{}/tests/data/mtls-fixture/{name}.pem", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let certificate = X509::from_pem(pem("ca-root").as_bytes()).unwrap();
        let revoked = order(json!({"token": pem("ca-root")})).unwrap();
        assert_eq!((revoked.kind, &*revoked.value), (Kind::Token, &*certificate.digest(openssl::hash::MessageDigest::sha256()).unwrap()));
        let ends = Asn1Time::from_unix(i64::try_from(revoked.expires.unwrap() - 1 - MARGIN).unwrap()).unwrap();
        assert!(*certificate.not_after() == *ends);
        // Which of two is meant nobody can say.
        assert!(order(json!({"token": pem("ca-root") + &pem("ca-other")})).is_err());
    }
}
