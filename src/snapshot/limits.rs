//! The limits and plans of a configuration: compiled once each, and held against the policies and routes that they apply to.

use std::sync::Arc;

use super::{Compiler, Table};
use crate::config::{self, Limit, LimitKey, LimitOn, Problem, WhenMissing};
use crate::live::shared_limits::SharedLimits;
use crate::net::http::Tls;
use crate::net::redis::{Redis, Server};
use crate::route::limit::{RateLimit, Stores};
use crate::route::plans::Plans;

/// What policies take their limits from.
pub(super) struct Limits {
    pub(super) by_name: Table<RateLimit>,
    pub(super) plans: Arc<Plans>,
}

impl Compiler<'_> {
    pub(super) fn limits(&mut self) -> Limits {
        let config = self.config;
        let redis = config.redis.as_ref().and_then(|redis| self.redis(redis));
        let stores = Stores { live: self.live, quotas: &config.quotas.database, redis };
        let by_name = self.table(&config.limits, |compiler, name, limit| {
            RateLimit::compile(name, limit, &stores, compiler.metrics)
                .ok_or_else(|| vec![Problem::at(&limit.store.place, "there is no such store")])
        });
        let mut plans = Plans::default();
        for (name, plan) in &config.plans {
            let limits: Vec<_> = plan.limits.iter().map(|limit| self.of_plan(limit, &by_name)).collect();
            if let Some(limits) = limits.into_iter().collect() {
                plans.add(&name.value, limits, plan.consumers.iter().map(|consumer| &consumer.value), plan.default);
            }
        }
        Limits { by_name, plans: Arc::new(plans) }
    }

    fn redis(&mut self, redis: &config::Redis) -> Option<(Arc<Redis>, SharedLimits)> {
        let config::RedisUrl { tls, host, port, user, password, database } = redis.url.value.clone();
        let ca = redis.ca.as_ref().map(|file| file.bytes.to_vec());
        let server = Server { host, port, user, password, database, tls: tls.then(|| Tls { ca, ..Tls::default() }) };
        match Redis::new(server.clone()) {
            Ok(created) => {
                let redis = (self.live.redis.find_or_create(&server, || created), redis.timeout);
                let limits = SharedLimits::new(Arc::clone(&redis.0), redis.1, self.metrics.redis.clone());
                Some((redis.0, limits))
            }
            Err(message) => {
                self.problems.push(Problem::at(&redis.url.place, message));
                None
            }
        }
    }

    /// A limit of a plan, unless it could never be checked there.
    fn of_plan(&mut self, name: &config::At<Arc<str>>, limits: &Table<RateLimit>) -> Option<Arc<RateLimit>> {
        let config = self.config;
        let limit = self.known("limit", name, &config.limits)?;
        let amiss = if limit.on == LimitOn::Refused {
            Some("counts refused credentials, of which nobody knows the plan")
        } else if limit.when_missing == WhenMissing::Deny && limit.per.iter().any(|key| matches!(key, LimitKey::Path(_))) {
            Some("counts per parameter of the path, which not every route has")
        } else {
            None
        };
        if let Some(amiss) = amiss {
            let problem = Problem::at(&name.place, format!("limit `{}` {amiss}", name.value));
            self.problems.push(problem.expected("a limit that holds wherever its caller goes"));
        }
        limits.get(&name.value).cloned()
    }

    /// A policy that lets in whom nobody knows cannot count them.
    pub(super) fn check_public_limits(&mut self, limits: &[(&config::At<Arc<str>>, &Limit)]) {
        for (name, limit) in limits {
            let needs_identity = limit.when_missing == WhenMissing::Deny && limit.per.iter().any(LimitKey::needs_identity);
            let (what, expected) = match limit.on {
                LimitOn::Refused => ("refused credentials", "a limit on requests"),
                LimitOn::Requests if needs_identity => {
                    ("per identity", "a limit per client_ip, header, host, route or path, or `when_missing: skip` or `client_ip`")
                }
                LimitOn::Requests => continue,
            };
            let problem = Problem::at(&name.place, format!("limit `{}` counts {what}, and this policy is public", name.value));
            self.problems.push(problem.expected(expected));
        }
    }

    /// A limit that would refuse every request of a route: better said now.
    pub(super) fn check_route_limits(&mut self, route: &config::Route) {
        let config = self.config;
        let Some(policy) = config.policy_of(route) else { return };
        let known = |name: &config::At<Arc<str>>| config.limits.iter().find(|(known, _)| known.value == name.value);
        for (name, limit) in policy.limits.iter().filter_map(known).filter(|(_, limit)| limit.when_missing == WhenMissing::Deny) {
            for key in &limit.per {
                if let LimitKey::Path(parameter) = key
                    && !super::parameters(&route.path.value).contains(&&**parameter)
                {
                    let what = format!("limit `{}` counts per `{parameter}`, which this path does not have", name.value);
                    self.problems.push(Problem::at(&route.path.place, what).expected(format!("`{{{parameter}}}` in the path")));
                }
            }
        }
        let is_public = matches!(policy.authenticate.value, config::Authenticate::Public);
        let of_plans = config.plans.iter().filter(|_| !is_public).flat_map(|(_, plan)| &plan.limits).filter_map(known);
        let mut told: Vec<&str> = Vec::new();
        for (name, limit) in policy.limits.iter().filter_map(known).chain(of_plans) {
            let cost = limit.cost.saturating_mul(*route.cost);
            if limit.is_weighed() && cost > limit.capacity() && !told.contains(&&*name.value) {
                told.push(&name.value);
                let what = format!("a request costs {cost} of the limit `{}`, which never has more than {}", name.value, limit.capacity());
                self.problems.push(Problem::at(&route.cost.place, what).expected("a cost within every limit that applies"));
            }
        }
    }
}
