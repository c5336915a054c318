//! Limits: how many, in how long, counted per what; and the plans that bundle them for a caller.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map as Object, Value, json};

use super::decode::{Context, Decode, Fields, NonEmpty, OneOrMany, Scalar, grammar, unknown_word, words};
use super::values::{HeaderName, Lasting, MINUTE, Name, Quota, Rate, Text, Within};
use super::yaml::{Kind, Node};
use super::{At, Problem, header};

/// The most that a limit counts: a longer number would not survive the arithmetic of a sliding window, nor be meant.
const MOST: u64 = 1_000_000_000_000;

grammar! {
    /// A limit: so many per time, per day or month, or at once.
    #[one_of(rate, quota, concurrency)]
    #[checked(check_limit)]
    struct WrittenLimit {
        /// What is counted: one key, or several that are counted together.
        per: Vec<LimitKey> as NonEmpty<OneOrMany<LimitKey>>,
        /// How many in how long. Counted in memory: a restart forgets.
        rate: Option<Rate> = absent,
        /// How many in a calendar `day` or `month` (UTC), or in a rolling time such as `30d`. Survives a restart.
        quota: Option<Quota> = absent,
        /// How many at once.
        concurrency: Option<u64> as Option<Within<u64, 1, 1_000_000>> = absent,
        /// How `rate` is counted. Absent: `sliding_window`.
        algorithm: Option<AlgorithmName> = absent,
        /// How many a full bucket holds, with `token_bucket`. Absent: the count of `rate`.
        burst: Option<u64> as Option<Within<u64, 1, MOST>> = absent,
        /// How many may wait for their turn, with `leaky_bucket`.
        queue: Option<u64> as Option<Within<u64, 1, 100_000>> = absent,
        /// How long one may wait for its turn, with `leaky_bucket`.
        max_wait: Option<Duration> as Option<Lasting<1, {10 * MINUTE}>> = absent,
        /// How much one request takes, times the `cost` of its route.
        cost: u64 as Within<u64, 1, 1_000_000> = "1",
        /// Which requests count.
        on: LimitOn = "requests",
        /// What becomes of a request beyond the limit.
        mode: LimitMode = "enforce",
        /// Who holds the counts.
        store: At<StoreName> = "local",
        /// What holds while Redis is away, with `redis` and `hybrid`. Absent: `local`.
        on_store_failure: Option<OnStoreFailure> = absent,
        /// How much of an IPv6 client address counts as one caller.
        ipv6_prefix: u8 as Within<u8, 1, 128> = "64",
        /// What happens to a request that lacks what is counted.
        when_missing: WhenMissing = "deny",
    }

    /// A usage plan: the limits of those who have it, in every policy that asks who calls.
    #[checked(check_plan)]
    pub struct Plan {
        /// Its limits, by name; all are checked once the caller is known.
        limits: Vec<At<Arc<str>>> as NonEmpty<Vec<At<Name>>>,
        /// Consumers that have it, unless their credential names another.
        consumers: Vec<At<Arc<str>>> as NonEmpty<Vec<At<Text>>> = absent,
        /// Whether it is the plan of every caller who has no other.
        default: bool = "false",
    }

    /// The embedded store of `quota` limits.
    pub struct Quotas {
        /// Where it is; made when a limit needs it.
        database: std::path::PathBuf = "data/quotas.db",
    }

    /// A key that is not a word of its own.
    #[one_of(header, claim, path)]
    #[checked(check_key)]
    struct WrittenLimitKey {
        /// A request header.
        header: Option<http::HeaderName> as Option<HeaderName> = absent,
        /// A claim of the caller's credential; a dotted path walks into objects.
        claim: Option<Arc<str>> as Option<ClaimPath> = absent,
        /// A parameter of the route's path.
        path: Option<Arc<str>> as Option<Text> = absent,
    }
}

words! {
    /// How a rate is counted.
    enum AlgorithmName {
        /// Windows side by side.
        FixedWindow = "fixed_window",
        /// The current window and the share of the previous one that still counts.
        SlidingWindow = "sliding_window",
        /// A bucket that fills at the rate and may be emptied at once.
        TokenBucket = "token_bucket",
        /// One after the other at the rate; who comes early waits.
        LeakyBucket = "leaky_bucket",
    }

    /// Who holds the counts.
    enum StoreName {
        /// This process.
        Local = "local",
        /// Redis, asked for every request.
        Redis = "redis",
        /// Redis, which lends this process a share at a time.
        Hybrid = "hybrid",
    }

    /// Which requests count.
    pub enum LimitOn {
        /// All that come this far.
        Requests = "requests",
        /// Those whose credential was refused.
        Refused = "refused",
    }

    /// What becomes of a request beyond the limit.
    pub enum LimitMode {
        /// It is refused.
        Enforce = "enforce",
        /// It goes on, and is told of in the metrics and the access log.
        Shadow = "shadow",
    }

    /// What holds while Redis is away.
    pub enum OnStoreFailure {
        /// This process counts alone.
        Local = "local",
        /// The limit does not hold.
        Allow = "allow",
        /// The request is refused.
        Deny = "deny",
    }

    /// What happens to a request that lacks what is counted.
    pub enum WhenMissing {
        /// It is refused.
        Deny = "deny",
        /// It is not counted.
        Skip = "skip",
        /// It is counted by its client address.
        ClientIp = "client_ip",
    }
}

/// A limit.
#[derive(Debug, Clone)]
pub struct Limit {
    /// What is counted.
    pub per: Vec<LimitKey>,
    /// How many.
    pub allowance: Allowance,
    /// How much one request takes; 1 where only 1 makes sense.
    pub cost: u64,
    /// Which requests count.
    pub on: LimitOn,
    /// What becomes of a request beyond it.
    pub mode: LimitMode,
    /// Who holds the counts.
    pub store: At<LimitStore>,
    /// How much of an IPv6 client address counts as one caller.
    pub ipv6_prefix: u8,
    /// What happens to a request that lacks what is counted.
    pub when_missing: WhenMissing,
}

/// How many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// So many per time.
    Rate {
        /// How many in how long.
        rate: Rate,
        /// How they are counted.
        algorithm: LimitAlgorithm,
    },
    /// So many in a long time, which survives a restart.
    Quota(Quota),
    /// So many at once.
    Concurrency(u64),
}

/// How a rate is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitAlgorithm {
    /// Windows side by side.
    FixedWindow,
    /// The current window and the share of the previous one that still counts.
    SlidingWindow,
    /// A bucket that fills at the rate.
    TokenBucket {
        /// How many a full one holds.
        burst: u64,
    },
    /// One after the other at the rate.
    LeakyBucket {
        /// How many may wait.
        queue: u64,
        /// How long one may wait.
        max_wait: Duration,
    },
}

/// Who holds the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitStore {
    /// This process.
    Local,
    /// Redis, asked for every request.
    Redis(OnStoreFailure),
    /// Redis, which lends this process a share at a time.
    Hybrid(OnStoreFailure),
}

impl Limit {
    /// The most that one request may take and still be admitted at times.
    pub fn capacity(&self) -> u64 {
        match self.allowance {
            Allowance::Rate { algorithm: LimitAlgorithm::TokenBucket { burst }, .. } => burst,
            Allowance::Rate { algorithm: LimitAlgorithm::LeakyBucket { queue, .. }, .. } => queue,
            Allowance::Rate { rate, .. } => rate.count,
            Allowance::Quota(quota) => quota.count,
            Allowance::Concurrency(count) => count,
        }
    }

    /// Whether a request takes more the more its route costs: one in flight and one refused credential are always one.
    pub fn is_weighed(&self) -> bool {
        self.on == LimitOn::Requests && !matches!(self.allowance, Allowance::Concurrency(_))
    }
}

impl Decode for Limit {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let written = WrittenLimit::decode(node, context)?;
        let allowance = match (written.rate, written.quota) {
            (Some(rate), _) => Allowance::Rate { rate, algorithm: written.algorithm(rate)? },
            (None, Some(quota)) => Allowance::Quota(quota),
            (None, None) => Allowance::Concurrency(written.concurrency?),
        };
        let on_store_failure = written.on_store_failure.unwrap_or(OnStoreFailure::Local);
        let store = match written.store.value {
            StoreName::Local => LimitStore::Local,
            StoreName::Redis => LimitStore::Redis(on_store_failure),
            StoreName::Hybrid => LimitStore::Hybrid(on_store_failure),
        };
        let WrittenLimit { per, cost, on, mode, ipv6_prefix, when_missing, .. } = written;
        let store = At { value: store, place: written.store.place };
        let limit = Self { per, allowance, cost, on, mode, store, ipv6_prefix, when_missing };
        if limit.cost > limit.capacity() {
            return context.refuse(node, "a request costs more than the limit ever has", "a `cost` within the limit");
        }
        Some(limit)
    }

    fn expected() -> String {
        WrittenLimit::expected()
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        WrittenLimit::schema(definitions)
    }
}

impl WrittenLimit {
    /// How `rate` is counted; `None`: a key is missing, which was reported.
    fn algorithm(&self, rate: Rate) -> Option<LimitAlgorithm> {
        Some(match self.algorithm.unwrap_or(AlgorithmName::SlidingWindow) {
            AlgorithmName::FixedWindow => LimitAlgorithm::FixedWindow,
            AlgorithmName::SlidingWindow => LimitAlgorithm::SlidingWindow,
            AlgorithmName::TokenBucket => LimitAlgorithm::TokenBucket { burst: self.burst.unwrap_or(rate.count) },
            AlgorithmName::LeakyBucket => LimitAlgorithm::LeakyBucket { queue: self.queue?, max_wait: self.max_wait? },
        })
    }
}

/// What is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitKey {
    /// The client's address.
    ClientIp,
    /// The accountable party.
    Consumer,
    /// The user or service.
    Subject,
    /// The credential itself.
    Credential,
    /// The route.
    Route,
    /// The host that was asked for.
    Host,
    /// A request header.
    Header(http::HeaderName),
    /// A claim; a dotted path walks into objects.
    Claim(Arc<str>),
    /// A parameter of the route's path.
    Path(Arc<str>),
}

fn check_key(key: &WrittenLimitKey, fields: &Fields<'_>, context: &mut Context<'_>) {
    if let Some(name) = key.header.as_ref().filter(|name| header::is_reserved(name)) {
        fields.refuse(context, format!("a caller's `{name}` is never heard"), "a header that is the caller's to set");
    }
}

impl LimitKey {
    /// Whether it is known only once the caller is.
    pub fn needs_identity(&self) -> bool {
        match self {
            Self::Consumer | Self::Subject | Self::Credential | Self::Claim(_) => true,
            Self::ClientIp | Self::Route | Self::Host | Self::Header(_) | Self::Path(_) => false,
        }
    }
}

const WORDS: [&str; 6] = ["client_ip", "consumer", "subject", "credential", "route", "host"];

impl Decode for LimitKey {
    type Value = Self;

    fn decode(node: &Node, context: &mut Context<'_>) -> Option<Self> {
        let text = match &node.kind {
            Kind::Mapping(_) => {
                let WrittenLimitKey { header, claim, path } = WrittenLimitKey::decode(node, context)?;
                return header.map(Self::Header).or(claim.map(Self::Claim)).or(path.map(Self::Path));
            }
            Kind::Scalar { text, .. } if !node.is_null() => text,
            _ => return context.refuse_kind(node, Self::expected()),
        };
        match text.as_str() {
            "client_ip" => Some(Self::ClientIp),
            "consumer" => Some(Self::Consumer),
            "subject" => Some(Self::Subject),
            "credential" => Some(Self::Credential),
            "route" => Some(Self::Route),
            "host" => Some(Self::Host),
            _ => context.refuse(node, unknown_word(text, &WORDS), Self::expected()),
        }
    }

    fn expected() -> String {
        format!("one of {}, `{{header: NAME}}`, `{{claim: NAME}}`, `{{path: PARAMETER}}`", super::decode::listed(&WORDS))
    }

    fn schema(definitions: &mut Object<String, Value>) -> Value {
        json!({"anyOf": [{"enum": WORDS}, WrittenLimitKey::schema(definitions)]})
    }
}

/// The name of a claim, or a dotted path into objects.
pub(crate) struct ClaimPath;

impl Scalar for ClaimPath {
    type Value = Arc<str>;

    fn parse(text: &str) -> Result<Arc<str>, String> {
        if text.split('.').any(str::is_empty) {
            return Err("not the name of a claim".to_owned());
        }
        Text::parse(text)
    }

    fn expected() -> String {
        "the name of a claim, or a dotted path such as `realm_access.roles`".to_owned()
    }

    fn schema() -> Value {
        json!({"title": "claim", "type": "string", "minLength": 1})
    }
}

fn check_limit(limit: &WrittenLimit, fields: &Fields<'_>, context: &mut Context<'_>) {
    if limit.per.iter().enumerate().any(|(index, key)| limit.per.iter().take(index).any(|earlier| earlier == key)) {
        fields.refuse(context, "`per` names a key twice", "each key once");
    }
    let bucket = |name| limit.algorithm == Some(name);
    let leaky = bucket(AlgorithmName::LeakyBucket);
    let requests = limit.on == LimitOn::Requests;
    let local = limit.store.value == StoreName::Local;
    let needed: [(&str, bool, &str); 6] = [
        ("algorithm", limit.rate.is_some(), "`rate`"),
        ("burst", bucket(AlgorithmName::TokenBucket), "`algorithm: token_bucket`"),
        ("queue", leaky, "`algorithm: leaky_bucket`"),
        ("max_wait", leaky, "`algorithm: leaky_bucket`"),
        ("cost", requests && limit.concurrency.is_none(), "`on: requests` and `rate` or `quota`"),
        ("on_store_failure", !local, "`store: redis` or `hybrid`"),
    ];
    for (key, met, needs) in needed {
        if let (false, Some(node)) = (met, fields.written(key)) {
            context.key(key, |context| context.refuse::<()>(node, format!("goes with {needs} only"), "this key left out"));
        }
    }
    let lacks = match limit.store.value {
        StoreName::Local => None,
        StoreName::Redis | StoreName::Hybrid if limit.rate.is_none() || !requests => Some("Redis counts a `rate` of requests only"),
        StoreName::Hybrid if leaky => Some("a queue cannot be lent"),
        StoreName::Redis | StoreName::Hybrid => None,
    };
    if let Some(message) = lacks {
        context.report(Problem::at(&limit.store.place, message).expected("another store"));
    }
    for (key, written) in [("queue", limit.queue.is_some()), ("max_wait", limit.max_wait.is_some())] {
        if leaky && !written {
            fields.refuse(context, format!("missing key `{key}`"), "how many may wait and how long, with `leaky_bucket`");
        }
    }
    if !requests {
        if limit.per.iter().any(LimitKey::needs_identity) {
            fields.refuse(
                context,
                "a refused credential has no identity",
                "`per` of client_ip, header, host, route and path, with `on: refused`",
            );
        }
        if leaky || limit.concurrency.is_some() {
            fields.refuse(
                context,
                "what was refused neither waits nor goes on",
                "a `rate` without a queue or a `quota`, with `on: refused`",
            );
        }
    }
}

fn check_plan(plan: &Plan, _: &Fields<'_>, context: &mut Context<'_>) {
    refuse_twice(&plan.limits, "limit", context);
    refuse_twice(&plan.consumers, "consumer", context);
}

/// Reports names that stand twice in a list, where twice would count twice.
pub(crate) fn refuse_twice(names: &[At<Arc<str>>], what: &str, context: &mut Context<'_>) {
    for (index, name) in names.iter().enumerate() {
        if names.iter().take(index).any(|earlier| earlier.value == name.value) {
            context.report(Problem::at(&name.place, format!("the same {what} twice")).expected(format!("each {what} once")));
        }
    }
}
