"""Against an OpenID provider that we did not write: opaque tokens, their revocation, and the provider away and back."""

import json
import time

from harness import bearer, check, equal, refused, served, trial, within
from trial_provider import Load, Provider

BASIC = {"id": "gateway-basic", "secret": {"file": "secret"}}


def asking(provider, client, **more):
    """A configuration that asks the provider about every token, beside a route that knows its JWTs itself."""
    opaque = {"url": f"{provider.url}/token/introspection", "client": client, "claims": {"subject": "client_id"}} | more
    jwt = {"issuer": provider.url, "audiences": ["orders"], "keys": {"discovery": provider.url}}

    def policy(**asked):
        return {"authenticate": ["opaque"], "authorize": asked}

    return {
        "upstreams": {"echo": {"builtin": "echo"}},
        "authenticators": {"opaque": {"introspection": opaque}, "shops": {"jwt": jwt}},
        "routes": [
            {"name": "orders", "path": "/orders", "policy": policy(scopes=["orders:read"]), "upstream": "echo"},
            {"name": "write", "path": "/write", "policy": policy(scopes=["orders:write"]), "upstream": "echo"},
            {"name": "jwt", "path": "/jwt", "policy": {"authenticate": ["shops"]}, "upstream": "echo"},
        ],
    }


def opaque(provider, **more):
    token = provider.token("ES256", token_format="opaque", **more)
    check(token.count(".") == 0, "the token says nothing itself")
    return token


def secrets(stage):
    (stage.folder / "secret").write_text("a secret: with 100% &+ signs")
    (stage.folder / "post").write_text("gateway-secret")


@trial
def an_opaque_token_is_what_the_provider_says_of_it(stage):
    secrets(stage)
    provider = Provider(stage).publish("ES256-1")
    gateway = stage.gateway(asking(provider, BASIC, issuer=provider.url, audiences=["orders"]))
    token = opaque(provider)
    seen = served(gateway.get("/orders", headers=bearer(token)))
    equal((seen.get("x-user-id"), seen.get("x-client-id"), seen.get("x-scopes")), ("shop", "shop", "orders:read"), "the identity")
    check("authorization" not in seen, "the token stays here")
    refused(gateway.get("/write", headers=bearer(token)), 403, "insufficient_scope")
    refused(gateway.get("/orders", headers=bearer(opaque(provider, audience="payments"))), 401, "credential_invalid")
    refused(gateway.get("/orders", headers=bearer("invented")), 401, "credential_invalid")
    refused(gateway.get("/orders"), 401, "credential_missing")
    short = opaque(provider, ttl=2)
    served(gateway.get("/orders", headers=bearer(short)))
    within(3, "the token ends", lambda: gateway.get("/orders", headers=bearer(short)).status_code == 401)


@trial
def a_client_proves_itself_in_each_of_three_ways(stage):
    secrets(stage)
    probe = Provider(stage).publish("ES256-1")
    maker = stage.gateway(asking(probe, BASIC))
    maker.command("tokens", "keypair", "--out", stage.folder / "client", "--kid", "gateway")
    probe.publish("ES256-1", gateway=json.loads((stage.folder / "client" / "jwks.json").read_text()))
    key = {"id": "gateway-key", "method": "private_key_jwt", "key": {"file": "client/private.jwk"}, "audience": probe.url}
    for client in [BASIC, {"id": "gateway-post", "method": "post", "secret": {"file": "post"}}, key]:
        maker.configure(asking(probe, client))
        token = opaque(probe)
        within(5, f"{client['id']} gets an answer", lambda: maker.get("/orders", headers=bearer(opaque(probe))).status_code == 200)
        served(maker.get("/orders", headers=bearer(token)))
    wrong = {"id": "gateway-post", "method": "post", "secret": {"file": "secret"}}
    maker.configure(asking(probe, wrong))
    answer = lambda: maker.get("/orders", headers=bearer(opaque(probe)))
    within(5, "a client that cannot prove itself gets no answer", lambda: answer().status_code == 503)


@trial
def a_revoked_token_is_refused_within_the_ttl(stage):
    secrets(stage)
    provider = Provider(stage).publish("ES256-1")
    gateway = stage.gateway(asking(provider, BASIC, cache={"ttl": "2s", "negative_ttl": "1s"}))
    for _ in range(3):
        token = opaque(provider)
        for _ in range(5):
            served(gateway.get("/orders", headers=bearer(token)))
        provider.revoke(token)
        _, took = within(2.2, "the revoked token ends", lambda: gateway.get("/orders", headers=bearer(token)).status_code == 401)
        print(f"   refused {took:.2f} s after its revocation, ttl 2 s", flush=True)


@trial
def a_frozen_provider_is_not_noticed_by_those_it_knows(stage):
    secrets(stage)
    provider = Provider(stage).publish("ES256-1")
    more = {
        "cache": {"ttl": "1s"},
        "timeout": "300ms",
        "breaker": {"failures": 3, "open": "1s"},
        "on_failure": {"allow_cached": "5m"},
    }
    gateway = stage.gateway(asking(provider, BASIC, **more))
    known = [opaque(provider) for _ in range(20)]
    for token in known:
        served(gateway.get("/orders", headers=bearer(token)))
    unseen = [opaque(provider) for _ in range(20)]
    itself = provider.token("ES256")
    within(5, "the keys are there", lambda: gateway.get("/jwt", headers=bearer(itself)).status_code == 200)
    load = Load(gateway, 100)
    load.use(known)
    for _ in range(3):
        provider.freeze()
        time.sleep(1.2)
        for token in unseen[:5]:
            began = time.monotonic()
            refused(gateway.get("/orders", headers=bearer(token)), 503, "dependency_unavailable")
            check(time.monotonic() - began < 1, "it is refused in time")
        served(gateway.get("/jwt", headers=bearer(itself)))
        time.sleep(2)
        provider.thaw()
        within(4, "it is asked again", lambda: gateway.get("/orders", headers=bearer(opaque(provider))).status_code == 200)
    provider.revoke(known[0])
    load.use(known[1:])
    within(3, "a revocation counts again", lambda: gateway.get("/orders", headers=bearer(known[0])).status_code == 401)
    load.stop()
    equal(load.wrong[:3], [], "requests that noticed")
    print(f"   {load.done} requests, none noticed three times 3 s without the provider", flush=True)


@trial
def a_provider_that_is_gone_refuses_at_once_and_counts_again_when_it_is_back(stage):
    secrets(stage)
    provider = Provider(stage).publish("ES256-1")
    gateway = stage.gateway(asking(provider, BASIC, cache={"ttl": "1s"}, breaker={"failures": 3, "open": "1s"}))
    token = opaque(provider)
    served(gateway.get("/orders", headers=bearer(token)))
    provider.stop()
    time.sleep(1)
    for _ in range(50):
        began = time.monotonic()
        refused(gateway.get("/orders", headers=bearer(token)), 503, "dependency_unavailable")
        check(time.monotonic() - began < 0.5, "it is refused at once")
    back = Provider(stage, provider.port).publish("ES256-1")
    within(4, "it is asked again", lambda: gateway.get("/orders", headers=bearer(opaque(back))).status_code == 200)
    # Its memory went with it: what it does not know any more is not active any more.
    refused(gateway.get("/orders", headers=bearer(token)), 401, "credential_invalid")
