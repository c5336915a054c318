//! Who may say who the caller is: issuers of tokens and stores of API keys.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map as Object, Value, json};

use super::client_certificate::ClientCertificate;
use super::decode::{Context, Decode, Fields, NonEmpty, OneOrMany, Scalar, grammar, unknown_word};
use super::dpop::{self, Dpop};
use super::external::External;
use super::header;
use super::introspection::Introspection;
use super::keys::{KeyEntry, KeyFile};
use super::limit::ClaimPath;
use super::values::{DAY, HeaderName, Lasting, MINUTE, SECOND, Text, Token, Url};
use super::yaml::Node;
use super::{At, Basic, File, Problem, Signature, Sigv4};
use crate::jose::Algorithm;
use crate::secret::Secret;

/// One way to prove who calls.
#[derive(Debug, Clone)]
pub enum Authenticator {
    /// By a JSON Web Token.
    Jwt(Jwt),
    /// By an API key.
    ApiKey(ApiKey),
    /// By the certificate of a TLS client.
    ClientCertificate(ClientCertificate),
    /// By an AWS Signature Version 4.
    Sigv4(Sigv4),
    /// By a signature of the message.
    Signature(Signature),
    /// By a user and a password.
    Basic(Basic),
    /// By an opaque token.
    Introspection(Introspection),
    /// By another service's word.
    External(External),
}

grammar! {
    /// One way to prove who calls.
    #[one_of(jwt, api_key, introspection, client_certificate, sigv4, signature, basic, external)]
    struct WrittenAuthenticator {
        /// By a JSON Web Token (RFC 7519).
        jwt: Option<Jwt> = absent,
        /// By an API key.
        api_key: Option<ApiKey> = absent,
        /// By the certificate of a TLS client.
        client_certificate: Option<ClientCertificate> = absent,
        /// By an AWS Signature Version 4.
        sigv4: Option<Sigv4> = absent,
        /// By a signature of the message (RFC 9421).
        signature: Option<Signature> = absent,
        /// By a user and a password (RFC 7617).
        basic: Option<Basic> = absent,
        /// By an opaque token, about which its issuer is asked (RFC 7662).
        introspection: Option<Introspection> = absent,
        /// By the word of another service.
        external: Option<External> = absent,
    }

    /// Tokens of one issuer.
    #[checked(check_jwt)]
    pub struct Jwt {
        /// The `iss` that a token must have, to the letter.
        issuer: Arc<str> as Text,
        /// A token's `aud` must name one of these.
        audiences: Vec<Arc<str>> as NonEmpty<Vec<Text>>,
        /// The keys that sign.
        keys: At<KeySource>,
        /// The algorithms that may sign. Absent: every asymmetric one that the key itself allows; with `secret`, `HS256`, `HS384` and `HS512`.
        algorithms: Vec<At<Algorithm>> as NonEmpty<Vec<At<Algorithm>>> = absent,
        /// How far clocks may differ.
        leeway: Duration as Lasting<0, {10 * MINUTE}> = "30s",
        /// The longest time from `iat` to `exp`. Absent: any.
        max_lifetime: Option<Duration> as Option<Lasting<SECOND, {3650 * DAY}>> = absent,
        /// The `typ` that a token must have, without `application/`. Absent: `JWT`, `at+jwt` or none.
        typ: Option<Arc<str>> as Option<Typ> = absent,
        /// Where the token sits; the first place that holds something is the one that counts.
        from: Vec<Location> as NonEmpty<Vec<Location>> = "[{header: Authorization, scheme: Bearer}]",
        /// What is asked of tokens that are bound to a key of their holder, and of the proofs of it. `from` says where they are taken.
        dpop: Dpop = "{}",
        /// Which claims say what.
        claims: ClaimNames = "{}",
    }

    /// Where keys come from, and for a URL how they are fetched and how long they are trusted.
    #[one_of(discovery, jwks_url, jwks_file, secret, issuer)]
    #[checked(check_keys)]
    struct WrittenKeys {
        /// The issuer's URL: its discovery document names the key set.
        discovery: Option<Arc<str>> as Option<Url> = absent,
        /// The URL of a key set (RFC 7517).
        jwks_url: Option<Arc<str>> as Option<Url> = absent,
        /// A file with a key set.
        jwks_file: Option<File> = absent,
        /// A shared secret, for `HS256`, `HS384` and `HS512`: at least as long as the hash.
        secret: Option<Secret> = absent,
        /// `true`: the keys of this gateway's own `issuer`, without a way over the network.
        issuer: bool = "false",
        /// The authorities to trust for the issuer's TLS, in PEM. Absent: the system's.
        ca: Option<File> = absent,
        /// How long a fetch may take.
        timeout: Duration as Lasting<1, MINUTE> = "5s",
        /// The keys are fetched again after this at the latest, whatever the cache headers say.
        refresh: Duration as Lasting<{10 * SECOND}, {7 * DAY}> = "10m",
        /// How long the last good keys serve while the issuer is away.
        max_stale: Duration as Lasting<0, {30 * DAY}> = "24h",
        /// Where the last good keys are kept for the next start. Absent: nowhere.
        store: Option<PathBuf> = absent,
    }

    /// Which claims say what. A dotted path walks into objects.
    pub struct ClaimNames {
        /// The user or service.
        subject: Arc<str> as ClaimPath = "sub",
        /// Scopes: a list, or one text with spaces. All of these claims together.
        scopes: Vec<Arc<str>> as NonEmpty<OneOrMany<ClaimPath>> = "[scope, scp]",
        /// Roles. All of these claims together.
        roles: Vec<Arc<str>> as NonEmpty<OneOrMany<ClaimPath>> = "[roles, realm_access.roles]",
        /// The accountable party.
        consumer: Arc<str> as ClaimPath = "client_id",
        /// The OAuth2 client.
        client: Arc<str> as ClaimPath = "client_id",
        /// The usage plan.
        plan: Arc<str> as ClaimPath = "plan",
    }

    /// API keys of one store.
    pub struct ApiKey {
        /// Where the key sits; the first place that holds something is the one that counts.
        from: Vec<Location> as NonEmpty<Vec<Location>> = "[{header: X-API-Key}]",
        /// What new keys begin with.
        prefix: Arc<str> as KeyPrefix = "ck_live_",
        /// The store.
        keys: At<KeyStore>,
    }

    /// Where API keys are kept.
    #[one_of(database, file)]
    struct WrittenKeyStore {
        /// The embedded store; `edgeward keys create` makes it.
        database: Option<PathBuf> = absent,
        /// A file of keys, read with the configuration.
        file: Option<File> = absent,
    }

    /// Where a credential sits in a request.
    #[one_of(header, query, cookie)]
    #[checked(check_location)]
    struct WrittenLocation {
        /// In a header.
        header: Option<http::HeaderName> as Option<HeaderName> = absent,
        /// The authentication scheme before it, with `header`.
        scheme: Option<Arc<str>> as Option<Token> = absent,
        /// In a parameter of the query.
        query: Option<Arc<str>> as Option<Token> = absent,
        /// In a cookie.
        cookie: Option<Arc<str>> as Option<Token> = absent,
    }
}

impl Decode for Authenticator {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let written = WrittenAuthenticator::decode(node, context)?;
        let ways = [
            written.jwt.map(Self::Jwt),
            written.api_key.map(Self::ApiKey),
            written.introspection.map(Self::Introspection),
            written.client_certificate.map(Self::ClientCertificate),
            written.sigv4.map(Self::Sigv4),
            written.signature.map(Self::Signature),
            written.basic.map(Self::Basic),
            written.external.map(Self::External),
        ];
        ways.into_iter().flatten().next()
    }

    fn expected() -> String {
        WrittenAuthenticator::expected()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        WrittenAuthenticator::schema(definitions)
    }
}

/// The access tokens that an authenticator takes.
#[derive(Debug, Clone, Copy)]
pub struct AccessTokens<'c> {
    /// Who gives them, where that is known.
    pub issuer: Option<&'c Arc<str>>,
    /// Where they may sit.
    pub from: &'c [Location],
    /// Whether those are refused that no key of their holder binds.
    pub bound: bool,
}

impl Authenticator {
    /// What it takes of what authorization servers give; none for credentials of other kinds.
    pub fn access_tokens(&self) -> Option<AccessTokens<'_>> {
        match self {
            Self::Jwt(jwt) => Some(AccessTokens { issuer: Some(&jwt.issuer), from: &jwt.from, bound: jwt.dpop.required }),
            Self::Introspection(introspection) => {
                Some(AccessTokens { issuer: introspection.issuer.as_ref(), from: &introspection.from, bound: introspection.dpop.required })
            }
            Self::ApiKey(_) | Self::ClientCertificate(_) | Self::Sigv4(_) | Self::Signature(_) | Self::Basic(_) | Self::External(_) => None,
        }
    }
}

/// Where the keys of an issuer come from.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// The issuer's discovery document names the key set.
    Discovery {
        /// The issuer's URL.
        url: Arc<str>,
        /// How it is fetched.
        fetch: KeyFetch,
    },
    /// A key set at a URL.
    JwksUrl {
        /// The URL.
        url: Arc<str>,
        /// How it is fetched.
        fetch: KeyFetch,
    },
    /// A key set in a file.
    JwksFile(File),
    /// A shared secret of at least 32 bytes.
    Secret(Secret),
    /// Those of this gateway's own issuer.
    Issuer,
}

/// How a remote key set is fetched and how long it is trusted without news.
#[derive(Debug, Clone)]
pub struct KeyFetch {
    /// PEM bundle for the issuer's TLS; absent: the system's.
    pub ca: Option<File>,
    /// How long a fetch may take.
    pub timeout: Duration,
    /// Refresh at the latest after this, whatever the cache headers say.
    pub refresh: Duration,
    /// How long the last good keys serve while the issuer is away.
    pub max_stale: Duration,
    /// Where the last good keys are kept for the next start.
    pub store: Option<PathBuf>,
}

impl Decode for KeySource {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let WrittenKeys { discovery, jwks_url, jwks_file, secret, issuer, ca, timeout, refresh, max_stale, store } =
            WrittenKeys::decode(node, context)?;
        let fetch = KeyFetch { ca, timeout, refresh, max_stale, store };
        match (discovery, jwks_url) {
            (Some(url), _) => Some(Self::Discovery { url, fetch }),
            (_, Some(url)) => Some(Self::JwksUrl { url, fetch }),
            _ if issuer => Some(Self::Issuer),
            _ => jwks_file.map(Self::JwksFile).or(secret.map(Self::Secret)),
        }
    }

    fn expected() -> String {
        "one of `{discovery: URL}`, `{jwks_url: URL}`, `{jwks_file: PATH}`, `{secret: {env: NAME}}`, `{issuer: true}`".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        WrittenKeys::schema(definitions)
    }
}

/// Where API keys are kept.
#[derive(Debug, Clone)]
pub enum KeyStore {
    /// The embedded store.
    Database(PathBuf),
    /// A file of keys, already parsed.
    File {
        /// The file.
        file: File,
        /// Its keys.
        keys: Vec<KeyEntry>,
    },
}

impl Decode for KeyStore {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let WrittenKeyStore { database, file } = WrittenKeyStore::decode(node, context)?;
        match (database, file) {
            (Some(path), _) => Some(Self::Database(path)),
            (None, Some(file)) => {
                let KeyFile { keys } = context.document::<KeyFile>(&file.path, &file.bytes)?;
                Some(Self::File { file, keys })
            }
            (None, None) => None,
        }
    }

    fn expected() -> String {
        "`{database: PATH}` or `{file: PATH}`".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        WrittenKeyStore::schema(definitions)
    }
}

/// Where a credential sits in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In a header, after its scheme if one is given.
    Header {
        /// The header.
        name: http::HeaderName,
        /// The scheme, such as `Bearer`.
        scheme: Option<Arc<str>>,
    },
    /// In a parameter of the query.
    Query(Arc<str>),
    /// In a cookie.
    Cookie(Arc<str>),
}

impl Location {
    /// Whether the credential stands behind this scheme.
    pub fn has_scheme(&self, wanted: &str) -> bool {
        matches!(self, Self::Header { scheme: Some(scheme), .. } if scheme.eq_ignore_ascii_case(wanted))
    }
}

impl Decode for Location {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let WrittenLocation { header, scheme, query, cookie } = WrittenLocation::decode(node, context)?;
        header.map(|name| Self::Header { name, scheme }).or(query.map(Self::Query)).or(cookie.map(Self::Cookie))
    }

    fn expected() -> String {
        "one of `{header: NAME}`, `{header: NAME, scheme: SCHEME}`, `{query: NAME}`, `{cookie: NAME}`".to_owned()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        WrittenLocation::schema(definitions)
    }
}

const ALGORITHMS: [(&str, Algorithm); 13] = [
    ("RS256", Algorithm::Rs256),
    ("RS384", Algorithm::Rs384),
    ("RS512", Algorithm::Rs512),
    ("PS256", Algorithm::Ps256),
    ("PS384", Algorithm::Ps384),
    ("PS512", Algorithm::Ps512),
    ("ES256", Algorithm::Es256),
    ("ES384", Algorithm::Es384),
    ("ES512", Algorithm::Es512),
    ("EdDSA", Algorithm::EdDsa),
    ("HS256", Algorithm::Hs256),
    ("HS384", Algorithm::Hs384),
    ("HS512", Algorithm::Hs512),
];

impl Scalar for Algorithm {
    type Value = Self;

    fn parse(text: &str) -> Result<Self, String> {
        match ALGORITHMS.iter().find(|(name, _)| *name == text) {
            Some((_, algorithm)) => Ok(*algorithm),
            None if text.eq_ignore_ascii_case("none") => Err("`none` signs nothing".to_owned()),
            None => Err(unknown_word(text, &ALGORITHMS.map(|(name, _)| name))),
        }
    }

    fn expected() -> String {
        format!("one of {}", super::decode::listed(&ALGORITHMS.map(|(name, _)| name)))
    }

    fn schema() -> Value {
        json!({"enum": ALGORITHMS.map(|(name, _)| name)})
    }
}

/// The length of an HMAC key below which its algorithm is weaker than it says (RFC 7518 section 3.2); `None`: not an HMAC.
fn least_secret(algorithm: Algorithm) -> Option<usize> {
    match algorithm {
        Algorithm::Hs256 => Some(32),
        Algorithm::Hs384 => Some(48),
        Algorithm::Hs512 => Some(64),
        _ => None,
    }
}

fn check_jwt(jwt: &Jwt, fields: &Fields<'_>, context: &mut Context<'_>) {
    dpop::check(&jwt.from, fields, context);
    for algorithm in &jwt.algorithms {
        let problem = match (&jwt.keys.value, least_secret(algorithm.value)) {
            (KeySource::Secret(secret), Some(least)) if secret.expose().len() < least => {
                Some(("the secret is too short for this algorithm".to_owned(), format!("a secret of at least {least} bytes")))
            }
            (KeySource::Secret(_), None) => {
                Some(("a shared secret signs with HS* only".to_owned(), "`HS256`, `HS384`, `HS512`".to_owned()))
            }
            // The classic confusion: a public key taken for an HMAC secret.
            (_, Some(_)) if !matches!(jwt.keys.value, KeySource::Secret(_)) => {
                Some(("HS* needs a shared secret".to_owned(), "an asymmetric algorithm, or `keys: {secret: ...}`".to_owned()))
            }
            _ => None,
        };
        if let Some((message, expected)) = problem {
            context.report(Problem::at(&algorithm.place, message).expected(expected));
        }
    }
}

fn check_keys(keys: &WrittenKeys, fields: &Fields<'_>, context: &mut Context<'_>) {
    if fields.written("issuer").is_some() && !keys.issuer {
        fields.refuse(context, "no keys at all", "`issuer: true`");
    }
    if let Some(secret) = &keys.secret
        && secret.expose().len() < 32
    {
        fields.refuse(context, "the secret is too short", "at least 32 bytes");
    }
    if keys.discovery.is_none() && keys.jwks_url.is_none() {
        for key in ["ca", "timeout", "refresh", "max_stale", "store"] {
            if let Some(node) = fields.written(key) {
                context.key(key, |context| {
                    context.refuse::<()>(node, "nothing is fetched here", "this key with `discovery` or `jwks_url` only")
                });
            }
        }
    }
}

fn check_location(location: &WrittenLocation, fields: &Fields<'_>, context: &mut Context<'_>) {
    if location.scheme.is_some() && location.header.is_none() {
        fields.refuse(context, "a scheme without a header", "`{header: NAME, scheme: SCHEME}`");
    }
    let bound = location.scheme.as_ref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("dpop"));
    if bound && location.header.as_ref().is_some_and(|name| name != http::header::AUTHORIZATION) {
        fields.refuse(context, "tokens with a proof come in `Authorization` only", "`{header: Authorization, scheme: DPoP}`");
    }
    if let Some(name) = &location.header {
        if name == http::header::COOKIE {
            fields.refuse(context, "a cookie is named by `cookie`", "`{cookie: NAME}`");
        } else if header::is_reserved(name) {
            fields.refuse(context, format!("`{name}` never carries a credential"), "a header that is the caller's to set");
        }
    }
}

/// The `typ` of a token: `application/` is left out, as RFC 7515 section 4.1.9 has it.
struct Typ;

impl Scalar for Typ {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        Token::parse(text)
    }

    fn expected() -> String {
        "a type without `application/`, such as `at+jwt`".to_owned()
    }

    fn schema() -> Value {
        <Token as Scalar>::schema()
    }
}

/// What our API keys begin with.
struct KeyPrefix;

impl Scalar for KeyPrefix {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        let sound =
            text.len() <= 32 && text.len() > 1 && text.ends_with('_') && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if sound { Ok(text.into()) } else { Err("not a prefix".to_owned()) }
    }

    fn expected() -> String {
        "at most 32 letters, digits and `_`, the last a `_`, such as `ck_live_`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "prefix", "type": "string", "pattern": "^[A-Za-z0-9_]{1,31}_$"})
    }
}
