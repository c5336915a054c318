//! edgeward as an issuer of tokens: what it signs with, what it tells upstreams, and who may ask it for an access token.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::At;
use super::decode::{Context, Fields, grammar, words};
use super::route::LiteralPath;
use super::values::{DAY, HOUR, HeaderName, Lasting, MINUTE, Name, SECOND, Url, UrlParts};
use crate::jose::Algorithm;

grammar! {
    /// edgeward as an issuer of tokens. It publishes its keys at `/.well-known/jwks.json` below `url`, and says so in its discovery documents.
    #[checked(check_issuer)]
    pub struct Issuer {
        /// The `iss` of its tokens. Its host and path are where discovery and keys are served, on every listener.
        url: At<Arc<str>> as At<Url>,
        /// What it signs with.
        signing: Signing,
        /// What `token: exchange` sends upstream.
        identity_token: IdentityToken = "{}",
        /// Access tokens for clients. Absent: none are given.
        oauth2: Option<Oauth2> = absent,
    }

    /// What it signs with. The next key is published `overlap` before it signs, and the one before for as long after.
    #[checked(check_signing)]
    pub struct Signing {
        /// The folder of the keys, made when missing. Several gateways may share it.
        directory: PathBuf,
        /// The algorithm of new keys.
        algorithm: SigningAlgorithm = "ES256",
        /// How long a key signs.
        rotate: Duration as Lasting<{2 * MINUTE}, {3650 * DAY}> = "30d",
        /// How long a key is published before it signs and after; whoever caches the keys must fetch them again within this time.
        overlap: Duration as Lasting<MINUTE, {365 * DAY}> = "2d",
    }

    /// What `token: exchange` sends upstream.
    pub struct IdentityToken {
        /// How long it lives; it is used for the first half of that time.
        ttl: Duration as Lasting<{10 * SECOND}, HOUR> = "60s",
        /// The header that holds it.
        header: http::HeaderName as HeaderName = "X-Identity-Token",
    }

    /// The token endpoint and its relatives: `token`, `introspect` and `revoke` below `path`.
    pub struct Oauth2 {
        /// Where they are, on the host of `url`.
        path: Arc<str> as LiteralPath = "/oauth2",
        /// Who may ask.
        clients: Clients,
        /// How long an access token lives.
        token_ttl: Duration as Lasting<MINUTE, DAY> = "15m",
        /// The limits that apply to them, by name.
        limits: Vec<At<Arc<str>>> as Vec<At<Name>> = "[]",
    }

    /// The clients of the token endpoint.
    pub struct Clients {
        /// The embedded store; it may be that of API keys. `edgeward clients create` fills it.
        database: PathBuf,
    }
}

words! {
    /// An algorithm that edgeward signs with.
    pub enum SigningAlgorithm {
        /// ECDSA on P-256.
        Es256 = "ES256",
        /// Ed25519.
        EdDsa = "EdDSA",
        /// RSA with 2048 bits.
        Rs256 = "RS256",
    }
}

impl From<SigningAlgorithm> for Algorithm {
    fn from(algorithm: SigningAlgorithm) -> Self {
        match algorithm {
            SigningAlgorithm::Es256 => Self::Es256,
            SigningAlgorithm::EdDsa => Self::EdDsa,
            SigningAlgorithm::Rs256 => Self::Rs256,
        }
    }
}

impl Issuer {
    /// The host of the URL, as requests name it.
    pub fn host(&self) -> &str {
        UrlParts::of(&self.url).host
    }

    /// The scheme and the authority of the URL.
    pub fn origin(&self) -> &str {
        UrlParts::of(&self.url).origin
    }

    /// The path of the URL, without a slash at its end.
    pub fn path(&self) -> &str {
        UrlParts::of(&self.url).path.trim_end_matches('/')
    }
}

fn check_issuer(issuer: &Issuer, fields: &Fields<'_>, context: &mut Context<'_>) {
    if issuer.url.contains('?') || issuer.url.bytes().any(|byte| matches!(byte, b'{' | b'}')) {
        fields.refuse(context, "the issuer's URL has a query or a pattern", "`https://HOST/PATH`");
    }
    // A token must not outlive the publication of the key that signed it.
    let longest = issuer.oauth2.as_ref().map_or(issuer.identity_token.ttl, |oauth2| oauth2.token_ttl.max(issuer.identity_token.ttl));
    if longest > issuer.signing.overlap {
        fields.refuse(
            context,
            "tokens live longer than `signing.overlap`, in which the key that signed them is published",
            "a longer overlap",
        );
    }
}

fn check_signing(signing: &Signing, fields: &Fields<'_>, context: &mut Context<'_>) {
    if signing.rotate < 2 * signing.overlap {
        fields.refuse(context, "three keys would overlap", "`rotate` of at least twice `overlap`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, System, load};

    fn issuer(section: &str) -> Result<Issuer, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edgeward.yaml");
        let text = format!(
            "listeners: [{{address: 127.0.0.1:0}}]\nupstreams: {{demo: {{builtin: echo}}}}\n\
             routes: [{{name: r, path: /, policy: {{authenticate: public}}, upstream: demo}}]\nissuer: {section}\n"
        );
        std::fs::write(&path, text).unwrap();
        let config: Result<Config, _> = load(&path, &System).config;
        config
            .map(|config| config.issuer.unwrap())
            .map_err(|problems| problems.iter().map(|problem| format!("{}: {}", problem.place.path, problem.message)).collect())
    }

    #[test]
    fn a_url_is_a_host_and_a_path() {
        for (url, host, origin, path) in [
            ("https://api.example.com", "api.example.com", "https://api.example.com", ""),
            ("https://api.example.com/", "api.example.com", "https://api.example.com", ""),
            ("http://127.0.0.1:8080", "127.0.0.1", "http://127.0.0.1:8080", ""),
            ("https://api.example.com:8443/auth/v1/", "api.example.com", "https://api.example.com:8443", "/auth/v1"),
        ] {
            let issuer = issuer(&format!("{{url: \"{url}\", signing: {{directory: s}}}}")).unwrap();
            assert_eq!((issuer.host(), issuer.origin(), issuer.path()), (host, origin, path), "{url}");
        }
    }

    #[test]
    fn what_a_verifier_would_trip_over_is_refused() {
        for section in [
            "{url: \"https://a\", signing: {directory: s, rotate: 3d}}",
            "{url: \"https://a?x=1\", signing: {directory: s}}",
            "{url: \"https://a\", signing: {directory: s, rotate: 1h, overlap: 5m}, oauth2: {clients: {database: k.db}}}",
            "{url: \"https://a\", signing: {directory: s, algorithm: HS256}}",
            "{url: \"https://a\", signing: {directory: s}, oauth2: {path: \"/o/{x}\", clients: {database: k.db}}}",
        ] {
            assert!(issuer(section).is_err(), "{section}");
        }
    }
}
