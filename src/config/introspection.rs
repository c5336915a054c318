//! Opaque tokens: who is asked about them, as which client, how long the answer counts, and what happens while nobody answers.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map as Object, Value};

use super::authenticator::{ClaimNames, Location};
use super::decode::{Context, Decode, Fields, NonEmpty, grammar, words};
use super::dependency::{Breaker, OnFailure};
use super::dpop::{self, Dpop};
use super::values::{HOUR, Lasting, MINUTE, SECOND, Text, Url, Within};
use super::yaml::Node;
use super::{At, File};
use crate::secret::Secret;

grammar! {
    /// Tokens that say nothing themselves: their issuer is asked about each (RFC 7662).
    #[checked(check_introspection)]
    pub struct Introspection {
        /// Where it is asked.
        url: At<Arc<str>> as At<Url>,
        /// Who we are to it.
        client: OauthClient,
        /// The `iss` that an answer must have, to the letter. Absent: any or none.
        issuer: Option<Arc<str>> as Option<Text> = absent,
        /// An answer's `aud` must name one of these. Absent: any or none.
        audiences: Vec<Arc<str>> as NonEmpty<Vec<Text>> = absent,
        /// Where the token sits; the first place that holds something is the one that counts.
        from: Vec<Location> as NonEmpty<Vec<Location>> = "[{header: Authorization, scheme: Bearer}]",
        /// What is asked of tokens that are bound to a key of their holder, and of the proofs of it. `from` says where they are taken.
        dpop: Dpop = "{}",
        /// Which members of the answer say what.
        claims: ClaimNames = "{}",
        /// How long a request waits for an answer.
        timeout: Duration as Lasting<1, {30 * SECOND}> = "2s",
        /// The authorities to trust for its TLS, in PEM. Absent: the system's.
        ca: Option<File> = absent,
        /// How long answers count.
        cache: TokenAnswers = "{}",
        /// When it is taken to be away.
        breaker: Breaker = "{}",
        /// What happens while it is away.
        on_failure: OnFailure = "deny",
    }

    /// How long what was said of a token counts.
    pub struct TokenAnswers {
        /// That it is active, but never beyond its `exp`. A token that is revoked is refused after this at the latest.
        ttl: Duration as Lasting<0, HOUR> = "45s",
        /// That it is not.
        negative_ttl: Duration as Lasting<0, {10 * MINUTE}> = "10s",
        /// How many answers are kept of each kind.
        entries: u32 as Within<u32, 1, 10_000_000> = "100000",
    }

    /// A client of an OAuth2 server, and how it proves itself there (RFC 6749 section 2.3, RFC 7523).
    #[checked(check_client)]
    struct WrittenOauthClient {
        /// Its id.
        id: Arc<str> as Text,
        /// How it proves itself.
        method: OauthClientMethod = "basic",
        /// With `basic` and `post`: its secret.
        secret: Option<Secret> = absent,
        /// With `private_key_jwt`: a private JWK with `alg` and `kid`, which signs.
        key: Option<At<Secret>> as Option<At<Secret>> = absent,
        /// With `private_key_jwt`: the `aud` of what is signed. Absent: the `issuer`, or where there is none the URL.
        audience: Option<Arc<str>> as Option<Text> = absent,
    }
}

words! {
    /// How an OAuth2 client proves itself.
    pub enum OauthClientMethod {
        /// Its secret in an `Authorization` header.
        Basic = "basic",
        /// Its secret in the body.
        Post = "post",
        /// A token signed with its key.
        PrivateKeyJwt = "private_key_jwt",
    }
}

/// A client of an OAuth2 server.
#[derive(Debug, Clone)]
pub struct OauthClient {
    /// Its id.
    pub id: Arc<str>,
    /// How it proves itself.
    pub proof: ClientProof,
}

/// How an OAuth2 client proves itself.
#[derive(Debug, Clone)]
pub enum ClientProof {
    /// By a secret in an `Authorization` header.
    Basic(Secret),
    /// By a secret in the body.
    Post(Secret),
    /// By a token that it signs.
    PrivateKeyJwt {
        /// The private JWK.
        key: At<Secret>,
        /// The `aud` of the token; absent: what the server is known by.
        audience: Option<Arc<str>>,
    },
}

impl Decode for OauthClient {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let WrittenOauthClient { id, method, secret, key, audience } = WrittenOauthClient::decode(node, context)?;
        let proof = match method {
            OauthClientMethod::Basic => ClientProof::Basic(secret?),
            OauthClientMethod::Post => ClientProof::Post(secret?),
            OauthClientMethod::PrivateKeyJwt => ClientProof::PrivateKeyJwt { key: key?, audience },
        };
        Some(Self { id, proof })
    }

    fn expected() -> String {
        WrittenOauthClient::expected()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        WrittenOauthClient::schema(definitions)
    }
}

fn check_introspection(introspection: &Introspection, fields: &Fields<'_>, context: &mut Context<'_>) {
    dpop::check(&introspection.from, fields, context);
    if introspection.dpop.required
        && introspection.on_failure == OnFailure::Allow
        && let Some(node) = fields.written("on_failure")
    {
        context.key("on_failure", |context| {
            context.refuse::<()>(
                node,
                "nobody knows the key of a token that was not asked about",
                "another word, or no `dpop: {required: true}`",
            )
        });
    }
}

fn check_client(client: &WrittenOauthClient, fields: &Fields<'_>, context: &mut Context<'_>) {
    let signs = client.method == OauthClientMethod::PrivateKeyJwt;
    let (wanted, others): (_, &[&str]) = if signs { ("key", &["secret"]) } else { ("secret", &["key", "audience"]) };
    if fields.written(wanted).is_none() {
        let what = if signs { "a private JWK" } else { "a secret" };
        fields.refuse(context, format!("missing key `{wanted}`"), format!("{what}, as this `method` asks for"));
    }
    for key in others {
        if let Some(node) = fields.written(key) {
            context.key(key, |context| context.refuse::<()>(node, "has no meaning with this `method`", format!("`{wanted}`")));
        }
    }
}
