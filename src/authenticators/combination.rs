//! Which credentials a policy accepts: any of several, all of them, or none, in any nesting.
//!
//! What is presented and not good refuses, wherever it stands: nobody becomes anonymous, or another principal, by presenting something bad.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;

use quick_cache::sync::Cache;
use smallvec::SmallVec;

use super::credential::{self, Found};
use super::jwt::Issuers;
use super::{Authenticator, Proof, Verdict};
use crate::config::Principals;
use crate::live::revocations::Revocations;
use crate::request::{HeaderChange, Identity, Method, Now, Rejection, Request};

/// The credentials that a policy accepts.
#[derive(Debug)]
pub struct Authenticators {
    accepted: Accepted,
    /// Every one that is named, once.
    named: Vec<Arc<Authenticator>>,
    revocations: Option<Arc<Revocations>>,
    joined: Joined,
}

/// Which credentials are enough.
#[derive(Debug)]
pub enum Accepted {
    /// One that this authenticator accepts.
    Authenticator(Arc<Authenticator>),
    /// Any one of these: the first that is presented counts.
    Any(Box<[Accepted]>),
    /// All of these.
    All(Box<[Accepted]>, Principals),
    /// This or none.
    Optional(Box<Accepted>),
    /// Any one of several issuers of tokens: neighbours in an `any`, put together when it is compiled.
    Issuers(Issuers),
}

/// What a request proves to a part of the combination.
enum Outcome {
    Proven(Proof),
    /// Nothing was presented, and nothing is asked for.
    Anonymous,
    /// Not all that is asked for was presented.
    Absent,
}

/// What was met on the way to an outcome.
struct Met<'p> {
    /// Who accepted a part of an `all`, by name.
    accepted: Vec<Arc<str>>,
    /// Who was asked, and need not have been answered.
    waived: Vec<&'p Arc<Authenticator>>,
    revocations: Option<&'p Revocations>,
    joined: &'p Joined,
}

/// Principals of several credentials, so that their claims are put together once and not with every request. What is kept are facts: each
/// credential is judged again, and only the very same identities find the principal that was made of them.
#[derive(Debug)]
struct Joined(Cache<Parts, Arc<Identity>>);

/// Identities told apart by their place in memory. They are held here, so that no other can come to stand there.
#[derive(Debug, Clone)]
struct Parts(SmallVec<[Arc<Identity>; 2]>);

/// At most so many of one policy.
const REMEMBERED: usize = 1_024;

impl Authenticators {
    /// Callers that present this, unless it was revoked.
    pub fn new(accepted: Accepted, revocations: Option<Arc<Revocations>>) -> Self {
        Self::as_it_stands(accepted.indexed(), revocations)
    }

    /// The same, asked one after the other: what tests hold the index against.
    pub(super) fn as_it_stands(accepted: Accepted, revocations: Option<Arc<Revocations>>) -> Self {
        let mut named = Vec::new();
        accepted.collect(&mut named);
        Self { accepted, named, revocations, joined: Joined(Cache::new(REMEMBERED)) }
    }

    /// What the request proves; `None`: nobody, where the policy asks for nothing. A credential that is present and not accepted refuses, also
    /// one that no authenticator takes for its own.
    pub async fn identify(&self, request: &Request<'_>, now: Now) -> Result<Option<Proof>, Rejection> {
        let revocations = self.revocations.as_deref();
        let mut met = Met { accepted: Vec::new(), waived: Vec::new(), revocations, joined: &self.joined };
        let outcome = match &self.accepted {
            // Neither boxes anything: the warm path allocates nothing.
            Accepted::Authenticator(authenticator) => proven(authenticator.authenticate(request, now).await, met.revocations)?,
            Accepted::Any(accepted) => any(accepted, request, now, &mut met).await?,
            accepted => judge(accepted, request, now, &mut met).await?,
        };
        let unrecognised = match outcome {
            Outcome::Proven(_) => self.leaves_unrecognised(met.waived.iter().copied(), &met.accepted, request),
            Outcome::Anonymous | Outcome::Absent => self.leaves_unrecognised(self.named.iter(), &met.accepted, request),
        };
        match outcome {
            _ if unrecognised => Err(Rejection::CredentialInvalid("not_recognised")),
            Outcome::Proven(proof) => Ok(Some(proof)),
            Outcome::Anonymous => Ok(None),
            Outcome::Absent => Err(Rejection::CredentialMissing),
        }
    }

    /// Whether something stands where one of these looks that none of those who accepted takes for its own: several may read `Authorization`.
    fn leaves_unrecognised<'a>(
        &self,
        mut asked: impl Iterator<Item = &'a Arc<Authenticator>>,
        accepted: &[Arc<str>],
        request: &Request<'_>,
    ) -> bool {
        let recognised = |location| {
            let accepting = self.named.iter().filter(|authenticator| accepted.contains(authenticator.name()));
            accepting.flat_map(|authenticator| authenticator.locations()).any(|own| own == location)
        };
        asked.any(|authenticator| {
            let mut open = authenticator.locations().iter().filter(|location| !recognised(*location));
            !accepted.contains(authenticator.name()) && open.any(|location| credential::is_present(std::slice::from_ref(location), request))
        })
    }

    /// The token that a proven caller came in with, and who it proved; of several the first. None where everything else did.
    pub fn token<'i, 'r>(&self, proven: &'i Identity, request: &Request<'r>) -> Option<(&'i Identity, Cow<'r, str>)> {
        proven.parts().find_map(|part| {
            let authenticator = self.named.iter().find(|authenticator| *authenticator.name() == part.authenticator)?;
            // Found as it was found when it was judged.
            match credential::find(authenticator.token_locations()?, request) {
                Found::One(token) => Some((part, token)),
                Found::Absent | Found::Ambiguous(_) | Found::Malformed(_) => None,
            }
        })
    }

    /// How much of a body must be read before they are asked, in bytes; none when nobody looks at it.
    pub fn body_limit(&self) -> Option<usize> {
        self.named.iter().filter_map(|authenticator| authenticator.body_limit()).max()
    }

    /// Whether the request presents anything that could be a credential here, good or not. Of what has no place of its own nobody can say
    /// without judging it.
    pub fn presents(&self, request: &Request<'_>) -> bool {
        self.named.iter().any(|authenticator| match (authenticator.method(), authenticator.locations()) {
            (Method::ClientCertificate, _) => request.certificate.is_some(),
            (_, []) => true,
            (_, locations) => credential::is_present(locations, request),
        })
    }

    /// Whether one of them has to see the body before it can judge.
    pub fn ask_for_body(&self, request: &Request<'_>) -> bool {
        request.body.is_none() && self.named.iter().any(|authenticator| authenticator.asks_for_body(request))
    }

    /// Every authenticator that is named, once, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Authenticator>> {
        self.named.iter()
    }
}

impl Accepted {
    /// The same, and whom a token concerns is found by its issuer and not by asking one after the other.
    fn indexed(self) -> Self {
        match self {
            Self::Authenticator(_) | Self::Issuers(_) => self,
            Self::Any(parts) => Self::Any(parts.into_iter().fold(Vec::new(), Self::gather).into()),
            Self::All(parts, principals) => Self::All(parts.into_iter().map(Self::indexed).collect(), principals),
            Self::Optional(accepted) => Self::Optional(Box::new(accepted.indexed())),
        }
    }

    fn gather(mut before: Vec<Self>, next: Self) -> Vec<Self> {
        if let Self::Authenticator(next) = &next
            && let Some(Self::Issuers(issuers)) = before.last_mut()
            && issuers.take(next)
        {
            return before;
        }
        before.push(match next {
            Self::Authenticator(authenticator) => Issuers::new(&authenticator).map_or(Self::Authenticator(authenticator), Self::Issuers),
            group => group.indexed(),
        });
        before
    }

    fn collect(&self, named: &mut Vec<Arc<Authenticator>>) {
        let mut name = |authenticator: &Arc<Authenticator>| {
            if !named.iter().any(|known| Arc::ptr_eq(known, authenticator)) {
                named.push(Arc::clone(authenticator));
            }
        };
        match self {
            Self::Authenticator(authenticator) => name(authenticator),
            Self::Issuers(issuers) => issuers.iter().for_each(name),
            Self::Any(accepted) | Self::All(accepted, _) => accepted.iter().for_each(|accepted| accepted.collect(named)),
            Self::Optional(accepted) => accepted.collect(named),
        }
    }

    fn waive<'p>(&'p self, met: &mut Met<'p>) {
        match self {
            Self::Authenticator(authenticator) => met.waived.push(authenticator),
            Self::Issuers(issuers) => met.waived.extend(issuers.iter()),
            Self::Any(accepted) | Self::All(accepted, _) => accepted.iter().for_each(|accepted| accepted.waive(met)),
            Self::Optional(accepted) => accepted.waive(met),
        }
    }
}

type Judging<'a> = Pin<Box<dyn Future<Output = Result<Outcome, Rejection>> + Send + 'a>>;

fn judge<'a, 'p: 'a>(accepted: &'p Accepted, request: &'a Request<'_>, now: Now, met: &'a mut Met<'p>) -> Judging<'a> {
    Box::pin(async move {
        match accepted {
            Accepted::Authenticator(authenticator) => proven(authenticator.authenticate(request, now).await, met.revocations),
            Accepted::Issuers(issuers) => proven(issuers.authenticate(request, now).await, met.revocations),
            Accepted::Any(accepted) => any(accepted, request, now, met).await,
            Accepted::All(accepted, principals) => {
                let mut proofs = Vec::new();
                let mut complete = true;
                // To the end also when one is absent: what is presented and not good refuses.
                for part in accepted {
                    match judge(part, request, now, met).await? {
                        Outcome::Proven(proof) => {
                            met.accepted.extend(proof.identity.parts().map(|identity| identity.authenticator.clone()));
                            proofs.push(proof);
                        }
                        Outcome::Anonymous => {}
                        Outcome::Absent => complete = false,
                    }
                }
                if complete { together(proofs, *principals, met.joined) } else { Ok(Outcome::Absent) }
            }
            Accepted::Optional(accepted) => match judge(accepted, request, now, met).await? {
                Outcome::Proven(proof) => Ok(Outcome::Proven(proof)),
                Outcome::Anonymous | Outcome::Absent => {
                    accepted.waive(met);
                    Ok(Outcome::Anonymous)
                }
            },
        }
    })
}

async fn any<'p>(accepted: &'p [Accepted], request: &Request<'_>, now: Now, met: &mut Met<'p>) -> Result<Outcome, Rejection> {
    let mut otherwise = Outcome::Absent;
    for part in accepted {
        let outcome = match part {
            Accepted::Authenticator(authenticator) => proven(authenticator.authenticate(request, now).await, met.revocations)?,
            Accepted::Issuers(issuers) => proven(issuers.authenticate(request, now).await, met.revocations)?,
            group => judge(group, request, now, met).await?,
        };
        match outcome {
            Outcome::Proven(proof) => return Ok(Outcome::Proven(proof)),
            Outcome::Anonymous => otherwise = Outcome::Anonymous,
            Outcome::Absent => {}
        }
    }
    Ok(otherwise)
}

/// What a verdict comes to. Every proof passes here, remembered or not: so none is spared the question whether it was revoked.
fn proven(verdict: Verdict, revocations: Option<&Revocations>) -> Result<Outcome, Rejection> {
    match verdict {
        Verdict::Accept(proof) => {
            revocations.map_or(Ok(()), |revocations| revocations.check(&proof.identity))?;
            Ok(Outcome::Proven(proof))
        }
        Verdict::Pass => Ok(Outcome::Absent),
        Verdict::Reject(rejection) => Err(rejection),
    }
}

/// One principal of several credentials.
fn together(proofs: Vec<Proof>, principals: Principals, joined: &Joined) -> Result<Outcome, Rejection> {
    let mut consumers = proofs.iter().filter_map(|proof| proof.identity.consumer.as_ref());
    if let Some(first) = consumers.next()
        && principals == Principals::Same
        && !consumers.all(|other| other == first)
    {
        return Err(Rejection::Forbidden("principals_differ"));
    }
    let (mut body, mut headers, mut nonce, mut parts) = (Vec::new(), None::<Arc<[HeaderChange]>>, None, Parts(SmallVec::new()));
    for proof in proofs {
        body.extend(proof.body);
        headers = match (headers, proof.headers) {
            (Some(before), Some(more)) => Some(before.iter().chain(&*more).cloned().collect()),
            (before, more) => before.or(more),
        };
        nonce = nonce.or(proof.nonce);
        parts.0.push(proof.identity);
    }
    let identity = joined.identity(parts);
    Ok(identity.map_or(Outcome::Anonymous, |identity| Outcome::Proven(Proof { identity, body, headers, nonce })))
}

impl Joined {
    fn identity(&self, parts: Parts) -> Option<Arc<Identity>> {
        let (first, others) = parts.0.split_first()?;
        if others.is_empty() {
            return Some(Arc::clone(first));
        }
        if let Some(known) = self.0.get(&parts) {
            return Some(known);
        }
        let identity = Arc::new(others.iter().fold(Identity::clone(first), join));
        self.0.insert(parts, Arc::clone(&identity));
        Some(identity)
    }
}

impl PartialEq for Parts {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(part, other)| Arc::ptr_eq(part, other))
    }
}

impl Eq for Parts {}

impl Hash for Parts {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.iter().for_each(|part| Arc::as_ptr(part).hash(state));
    }
}

/// Of what only one can be said the first word counts, what is granted is granted together.
fn join(mut identity: Identity, other: &Arc<Identity>) -> Identity {
    for (own, given) in [
        (&mut identity.subject, &other.subject),
        (&mut identity.consumer, &other.consumer),
        (&mut identity.client, &other.client),
        (&mut identity.key_id, &other.key_id),
        (&mut identity.plan, &other.plan),
    ] {
        if own.is_none() {
            own.clone_from(given);
        }
    }
    for (own, given) in [(&mut identity.scopes, &other.scopes), (&mut identity.roles, &other.roles)] {
        *own = own.iter().chain(given.iter().filter(|word| !own.contains(word))).cloned().collect();
    }
    for (name, claim) in &other.claims {
        identity.claims.entry(name).or_insert_with(|| claim.clone());
    }
    let mut credential = openssl::sha::Sha256::new();
    credential.update(&identity.credential);
    credential.update(&other.credential);
    identity.credential = credential.finish();
    identity.beside.push(Arc::clone(other));
    // An `all` within an `all`: whoever looks for a credential finds those of both.
    identity.beside.extend(other.beside.iter().cloned());
    identity
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(identities: &[&Arc<Identity>]) -> Parts {
        Parts(identities.iter().map(|identity| Arc::clone(identity)).collect())
    }

    fn identity(consumer: &str) -> Arc<Identity> {
        Arc::new(Identity { consumer: Some(consumer.into()), ..Identity::new(Method::ApiKey, "a".into(), [0; 32]) })
    }

    #[test]
    fn only_the_very_same_identities_find_the_principal_that_was_made_of_them() {
        let joined = Joined(Cache::new(REMEMBERED));
        let (acme, second, again) = (identity("acme"), identity("second"), identity("acme"));
        let first = joined.identity(parts(&[&acme, &second])).unwrap();
        assert!(Arc::ptr_eq(&first, &joined.identity(parts(&[&acme, &second])).unwrap()));
        // Equal, and proven by another key all the same.
        let other = joined.identity(parts(&[&again, &second])).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
        let turned = joined.identity(parts(&[&second, &acme])).unwrap();
        assert_eq!(turned.consumer.as_deref(), Some("second"));
        assert!(Arc::ptr_eq(&acme, &joined.identity(parts(&[&acme])).unwrap()));
        assert!(joined.identity(parts(&[])).is_none());
    }

    #[test]
    fn a_principal_of_principals_has_the_parts_of_all() {
        let joined = Joined(Cache::new(REMEMBERED));
        let named = |name: &str| Arc::new(Identity::new(Method::ApiKey, name.into(), [0; 32]));
        let inner = joined.identity(parts(&[&named("c"), &named("d")])).unwrap();
        let last = joined.identity(parts(&[&named("a"), &named("b"), &inner])).unwrap();
        let first = joined.identity(parts(&[&inner, &named("a"), &named("b")])).unwrap();
        for (principal, expected) in [(last, "abcd"), (first, "cdab")] {
            assert_eq!(principal.parts().map(|part| &*part.authenticator).collect::<String>(), expected);
        }
    }

    #[test]
    fn a_flood_of_principals_is_bounded() {
        let joined = Joined(Cache::new(REMEMBERED));
        let second = identity("second");
        (0..10_000).for_each(|_| assert!(joined.identity(parts(&[&identity("acme"), &second])).is_some()));
        assert!(joined.0.len() <= REMEMBERED);
    }
}
