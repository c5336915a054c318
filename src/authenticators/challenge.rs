//! What a refused caller is told to present: one way in, as `WWW-Authenticate` names it (RFC 9110 section 11.6.1).

use std::borrow::Cow;

use http::HeaderValue;

use super::dpop;

/// One way in. Each authenticator says its own; two that say the same are one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    scheme: &'static str,
    realm: Cow<'static, str>,
    names_error: bool,
    parameters: Vec<(&'static str, Cow<'static, str>)>,
}

impl Challenge {
    /// A challenge that reads the same whatever is wrong.
    pub fn new(scheme: &'static str) -> Self {
        Self { scheme, realm: "edgeward".into(), names_error: false, parameters: Vec::new() }
    }

    /// A challenge for a token, which says so when one was presented that is not good (RFC 6750 section 3).
    pub fn token(scheme: &'static str) -> Self {
        Self { names_error: true, ..Self::new(scheme) }
    }

    /// The same for another realm.
    #[must_use]
    pub fn of_realm(self, realm: &str) -> Self {
        Self { realm: realm.to_owned().into(), ..self }
    }

    /// The same with one more parameter, whose value holds no quote.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.parameters.push((name, value.into()));
        self
    }

    /// How it wants its credential presented.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// Whether it asks for a token that an authorization server gave.
    pub fn asks_for_token(&self) -> bool {
        self.names_error
    }

    /// When no credential came (RFC 6750 section 3: no error code then).
    pub fn missing(&self) -> HeaderValue {
        self.written("")
    }

    /// When one came and was not good.
    pub fn invalid(&self) -> HeaderValue {
        self.written(if self.names_error { ", error=\"invalid_token\"" } else { "" })
    }

    /// When a bound token came and the proof of its key was not good (RFC 9449 section 7.1).
    pub fn unproven(&self) -> HeaderValue {
        self.of_proof("invalid_dpop_proof")
    }

    /// When the proof lacked a nonce (RFC 9449 section 9).
    pub fn nonce_wanted(&self) -> HeaderValue {
        self.of_proof("use_dpop_nonce")
    }

    /// Those that ask for no proof say what they would say to nothing.
    fn of_proof(&self, error: &str) -> HeaderValue {
        self.written(&if self.scheme == dpop::SCHEME { format!(", error=\"{error}\"") } else { String::new() })
    }

    fn written(&self, error: &str) -> HeaderValue {
        let parameters: String = self.parameters.iter().map(|(name, value)| format!(", {name}=\"{value}\"")).collect();
        let written = HeaderValue::try_from(format!("{} realm=\"{}\"{error}{parameters}", self.scheme, self.realm));
        // The grammar takes nothing that cannot stand in a header; and the scheme alone is a challenge still.
        written.unwrap_or(HeaderValue::from_static(self.scheme))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_names_an_error_only_for_a_token_that_was_presented() {
        for (challenge, missing, invalid) in [
            (Challenge::new("Signature"), "Signature realm=\"edgeward\"", "Signature realm=\"edgeward\""),
            (Challenge::token("Bearer"), "Bearer realm=\"edgeward\"", "Bearer realm=\"edgeward\", error=\"invalid_token\""),
            (
                Challenge::token("DPoP").with("algs", "ES256 EdDSA"),
                "DPoP realm=\"edgeward\", algs=\"ES256 EdDSA\"",
                "DPoP realm=\"edgeward\", error=\"invalid_token\", algs=\"ES256 EdDSA\"",
            ),
            (
                Challenge::new("Basic").of_realm("the wiki").with("charset", "UTF-8"),
                "Basic realm=\"the wiki\", charset=\"UTF-8\"",
                "Basic realm=\"the wiki\", charset=\"UTF-8\"",
            ),
        ] {
            assert_eq!((challenge.missing(), challenge.invalid()), (missing.parse().unwrap(), invalid.parse().unwrap()));
        }
    }

    #[test]
    fn what_is_wrong_with_a_proof_is_said_by_the_challenge_that_asks_for_one() {
        let (bound, bearer) = (Challenge::token("DPoP").with("algs", "ES256"), Challenge::token("Bearer"));
        assert_eq!(bound.unproven(), "DPoP realm=\"edgeward\", error=\"invalid_dpop_proof\", algs=\"ES256\"");
        assert_eq!(bound.nonce_wanted(), "DPoP realm=\"edgeward\", error=\"use_dpop_nonce\", algs=\"ES256\"");
        assert_eq!((bearer.unproven(), bearer.nonce_wanted()), (bearer.missing(), bearer.missing()));
    }

    #[test]
    fn what_cannot_stand_in_a_header_leaves_a_challenge_all_the_same() {
        assert_eq!(Challenge::new("Basic").of_realm("a\r\nb").missing(), "Basic");
    }
}
