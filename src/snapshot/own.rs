//! The routes of edgeward itself, made as if the operator had written them: the issuer's endpoints, and the metadata of resources.
//!
//! So requests for them are normalised, limited, logged and counted as all requests are, and nobody's route is shadowed in silence.

use std::collections::HashMap;
use std::sync::Arc;

use http::Method;

use super::Compiler;
use crate::config::{self, At, Authenticate, Place, Problem, RoutePolicy};
use crate::issuer::Issuer;
use crate::route::resource::Metadata;
use crate::upstream::OAUTH;

/// A route of edgeward's own.
pub(super) struct Own {
    pub(super) route: config::Route,
    /// What answers there, for whoever has written a route in the same place.
    what: String,
}

/// Where it answers, and under which limits.
struct Endpoint<'e> {
    name: String,
    host: &'e str,
    path: Arc<str>,
    methods: &'e [Method],
    limits: &'e [At<Arc<str>>],
    /// What of the configuration it comes from.
    place: &'e Place,
}

/// A resource, the first route that is it, and where that says so.
pub(super) struct Described {
    pub(super) metadata: Metadata,
    route: Arc<str>,
    place: Place,
}

impl Endpoint<'_> {
    fn route(self) -> config::Route {
        let at = |value: Arc<str>| At { value, place: self.place.clone() };
        config::Route {
            name: at(self.name.into()),
            hosts: vec![at(self.host.into())],
            path: at(self.path),
            methods: self.methods.to_vec(),
            policy: RoutePolicy::Inline(Box::new(config::Policy {
                filters: Vec::new(),
                deny: Vec::new(),
                allow: None,
                limits: self.limits.to_vec(),
                authenticate: At { value: Authenticate::Public, place: self.place.clone() },
                authorize: config::Authorize::default(),
                forward: config::Forward { headers: Vec::new(), token: config::Token::Strip, audience: None },
            })),
            rewrite: None,
            upstream: at(OAUTH.into()),
            cost: At { value: 1, place: self.place.clone() },
            websocket: false,
            timeouts: config::RouteTimeouts::default(),
            resource: None,
        }
    }
}

impl Compiler<'_> {
    /// The issuer's endpoints and the metadata of the resources.
    pub(super) fn own_routes(&mut self, issuer: Option<&Issuer>, resources: &[Described]) -> Vec<config::Route> {
        let mut own = Vec::new();
        if let (Some(issuer), Some(config)) = (issuer, &self.config.issuer) {
            own.extend(issuer.paths().map(|(name, path, methods)| {
                Own {
                    what: "the `issuer` answers".to_owned(),
                    route: Endpoint {
                        name: format!("edgeward:issuer:{name}"),
                        host: config.host(),
                        path: Arc::clone(path),
                        methods,
                        limits: config.oauth2.as_ref().map_or(&[], |oauth2| &oauth2.limits),
                        place: &config.url.place,
                    }
                    .route(),
                }
            }));
        }
        own.extend(resources.iter().map(|Described { metadata, route, place }| {
            Own {
                what: format!("the metadata of the resource {} is", metadata.url.as_str()),
                route: Endpoint {
                    name: format!("edgeward:resource:{route}"),
                    host: metadata.url.host(),
                    path: metadata.url.metadata_path().into(),
                    methods: &[Method::GET, Method::HEAD],
                    limits: &metadata.limits,
                    place,
                }
                .route(),
            }
        }));
        self.check_shadowed(&own);
        own.into_iter().map(|own| own.route).collect()
    }

    /// Where edgeward itself answers, no other route may be written.
    fn check_shadowed(&mut self, own: &[Own]) {
        let mut by_path: HashMap<&str, Vec<&Own>> = HashMap::new();
        for own in own {
            by_path.entry(&own.route.path.value).or_default().push(own);
        }
        for route in &self.config.routes {
            let takes = |own: &At<Arc<str>>| route.hosts.is_empty() || route.hosts.iter().any(|host| takes(&host.value, &own.value));
            let here = by_path.get(&*route.path.value).into_iter().flatten();
            if let Some(own) = here.into_iter().find(|own| own.route.hosts.iter().any(takes)) {
                self.problems.push(Problem::at(&route.path.place, format!("{} at this path", own.what)).expected("another path"));
            }
        }
    }

    /// What each resource is told to be by the routes that are it.
    pub(super) fn resources(&mut self) -> Vec<Described> {
        let mut resources: Vec<Described> = Vec::new();
        let mut by_document = HashMap::new();
        for route in &self.config.routes {
            let Some((place, metadata)) =
                route.resource.as_ref().and_then(|resource| Some((&resource.url.place, self.metadata(route, resource)?)))
            else {
                continue;
            };
            let document = (metadata.url.host().to_owned(), metadata.url.metadata_path());
            let known = by_document.get(&document).and_then(|index: &usize| resources.get_mut(*index));
            let Some(known) = known else {
                by_document.insert(document, resources.len());
                resources.push(Described { metadata, route: Arc::clone(&route.name.value), place: place.clone() });
                continue;
            };
            let problem = if known.metadata.url != metadata.url {
                let what = format!(
                    "its metadata would be where that of {} is, the resource of route `{}`",
                    known.metadata.url.as_str(),
                    known.route
                );
                Some(Problem::at(place, what).expected("the same URL, or another path"))
            } else {
                let differs = known.metadata.merge(metadata).err();
                differs.map(|what| {
                    let problem = Problem::at(place, format!("route `{}` is the same resource with {what}", known.route));
                    problem.expected("the same, or a resource of its own")
                })
            };
            self.problems.extend(problem);
        }
        resources
    }

    /// What a route says of the resource that it is. `None`: a problem was reported, here or where a name stands for nothing.
    fn metadata(&mut self, route: &config::Route, resource: &config::Resource) -> Option<Metadata> {
        let config = self.config;
        let policy = config.policy_of(route)?;
        let names = match &policy.authenticate.value {
            Authenticate::Public => Vec::new(),
            Authenticate::By(accepted) => accepted.names(),
        };
        let mut tokens = Vec::new();
        for name in names {
            let (_, authenticator) = config.authenticators.iter().find(|(known, _)| known.value == name.value)?;
            let Some(taken) = authenticator.access_tokens() else { continue };
            let problem = match taken.issuer {
                _ if !resource.authorization_servers.is_empty() => None,
                None => Some(format!("`{}` has no `issuer` that clients could be told of", name.value)),
                Some(issuer) => {
                    (!config::is_issuer_url(issuer)).then(|| format!("the `issuer` of `{}` is no URL that clients could ask", name.value))
                }
            };
            if let Some(what) = problem {
                self.problems
                    .push(Problem::at(&resource.url.place, what).expected("`authorization_servers` beside the URL, or such an `issuer`"));
            }
            tokens.push(taken);
        }
        if tokens.is_empty() {
            let what = "no token of an authorization server opens this route";
            self.problems.push(Problem::at(&resource.url.place, what).expected("a `jwt` or `introspection` authenticator in its policy"));
            return None;
        }
        let asked = config.listeners.iter().any(|listener| listener.tls.as_ref().is_some_and(|tls| tls.client_certificates.is_some()));
        let certificates = asked || config.server.forwarded_certificates.is_some();
        Some(Metadata::new(resource, &policy.authorize.scopes, &tokens, certificates))
    }
}

/// Whether a route's host takes requests for this one.
fn takes(pattern: &str, host: &str) -> bool {
    pattern.strip_prefix('*').map_or(pattern == host, |suffix| host.ends_with(suffix))
}
