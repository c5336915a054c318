"""Against an OpenID provider that we did not write, with the grant of RFC 8693: tokens for the service behind, and the provider away and back."""

import json
import time

import httpx
import jwt

from harness import bearer, check, equal, refused, served, trial, within
from trial_introspection import BASIC, opaque, secrets
from trial_provider import Load, Provider


def target(audience="orders-service", ttl=300, token_format="jwt"):
    return f"https://orders.test/ES256?audience={audience}&ttl={ttl}&format={token_format}"


def exchanging(provider, client, **more):
    """A configuration that exchanges the tokens of the provider there, JWTs and opaque ones."""
    login = {"url": f"{provider.url}/token", "client": client} | more

    def policy(resource, accepted="shops"):
        forward = {"token": "exchange", "exchange": "login", "resource": resource, "scopes": ["orders:read"]}
        return {"authenticate": accepted, "forward": forward}

    return {
        "upstreams": {"echo": {"builtin": "echo"}},
        "authenticators": {
            "shops": {"jwt": {"issuer": provider.url, "audiences": ["gateway"], "keys": {"discovery": provider.url}}},
            "opaque": {
                "introspection": {
                    "url": f"{provider.url}/token/introspection",
                    "client": BASIC,
                    "audiences": ["gateway"],
                    "claims": {"subject": "client_id"},
                }
            },
        },
        "exchanges": {"login": login},
        "routes": [
            {"name": "orders", "path": "/orders", "policy": policy(target()), "upstream": "echo"},
            {"name": "opaque", "path": "/opaque", "policy": policy(target(), "opaque"), "upstream": "echo"},
            {"name": "again", "path": "/again", "policy": policy(target("again"), "opaque"), "upstream": "echo"},
            {"name": "short", "path": "/short", "policy": policy(target(ttl=12)), "upstream": "echo"},
            {"name": "closed", "path": "/closed", "policy": policy(target(token_format="opaque")), "upstream": "echo"},
            {"name": "nobody", "path": "/nobody", "policy": policy(target("nobody")), "upstream": "echo"},
            {"name": "open", "path": "/open", "policy": {"authenticate": "public"}, "upstream": "echo"},
        ],
    }


def verified(provider, seen, audience="orders-service"):
    """What the service behind reads in the token that it got, verified with the provider's keys."""
    scheme, token = seen["authorization"].split(" ")
    equal(scheme, "Bearer", "the scheme")
    keys = jwt.PyJWKSet.from_dict(httpx.get(f"{provider.url}/jwks", trust_env=False).json())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["ES256"], audience=audience, issuer=provider.url)
    return token, claims


@trial
def the_service_behind_gets_a_token_of_the_provider_for_itself(stage):
    secrets(stage)
    provider = Provider(stage).publish("ES256-1")
    gateway = stage.gateway(exchanging(provider, BASIC))
    own = provider.token("ES256", audience="gateway")
    token, claims = verified(provider, served(gateway.get("/orders", headers=bearer(own))))
    check(token != own, "the token is another")
    equal((claims["client_id"], claims["exchanged_for"], claims["scope"]), ("gateway-basic", "shop", "orders:read"), "what it says")
    again, _ = verified(provider, served(gateway.get("/orders", headers=bearer(own))))
    equal(again, token, "the token of the second request")
    other, _ = verified(provider, served(gateway.get("/orders", headers=bearer(provider.token("ES256", audience="gateway")))))
    check(other != token, "another caller's token is another")
    seen = served(gateway.get("/closed", headers=bearer(own)))
    check(seen["authorization"].count(".") == 0, "a token that says nothing itself goes on as well")
    # A caller that brings the service's token here is no caller.
    refused(gateway.get("/orders", headers=bearer(token)), 401, "credential_invalid")
    closed = opaque(provider, audience="gateway")
    _, claims = verified(provider, served(gateway.get("/opaque", headers=bearer(closed))))
    equal(claims["exchanged_for"], "shop", "whose token was exchanged")
    short, _ = verified(provider, served(gateway.get("/short", headers=bearer(own))))
    time.sleep(3)
    fresh, _ = verified(provider, served(gateway.get("/short", headers=bearer(own))))
    check(short != fresh, "a token of 12 s is used for 2 s")


@trial
def a_client_of_the_exchange_proves_itself_in_each_of_three_ways(stage):
    secrets(stage)
    provider = Provider(stage).publish("ES256-1")
    gateway = stage.gateway(exchanging(provider, BASIC))
    gateway.command("tokens", "keypair", "--out", stage.folder / "client", "--kid", "gateway")
    provider.publish("ES256-1", gateway=json.loads((stage.folder / "client" / "jwks.json").read_text()))
    key = {"id": "gateway-key", "method": "private_key_jwt", "key": {"file": "client/private.jwk"}, "audience": provider.url}
    for client in [BASIC, {"id": "gateway-post", "method": "post", "secret": {"file": "post"}}, key]:
        gateway.configure(exchanging(provider, client))

        def asked_by():
            answer = gateway.get("/orders", headers=bearer(provider.token("ES256", audience="gateway")))
            return answer.status_code == 200 and verified(provider, served(answer))[1]["client_id"] == client["id"]

        within(5, f"{client['id']} gets a token", asked_by)
    gateway.configure(exchanging(provider, {"id": "gateway-post", "method": "post", "secret": {"file": "secret"}}))
    answer = lambda: gateway.get("/orders", headers=bearer(provider.token("ES256", audience="gateway")))
    within(5, "a client that cannot prove itself gets none", lambda: answer().status_code == 503)


@trial
def what_the_provider_refuses_to_exchange_is_refused(stage):
    secrets(stage)
    provider = Provider(stage).publish("ES256-1")
    gateway = stage.gateway(exchanging(provider, BASIC))
    token = provider.token("ES256", audience="gateway")
    refused(gateway.get("/nobody", headers=bearer(token)), 403, "forbidden")
    served(gateway.get("/orders", headers=bearer(token)))
    # The gateway has just heard that it is active, and the provider knows better by now.
    closed = opaque(provider, audience="gateway")
    served(gateway.get("/opaque", headers=bearer(closed)))
    provider.revoke(closed)
    refused(gateway.get("/again", headers=bearer(closed)), 401, "credential_invalid")


@trial
def a_frozen_provider_is_not_noticed_by_those_whose_tokens_it_has_exchanged(stage):
    secrets(stage)
    provider = Provider(stage).publish("ES256-1")
    gateway = stage.gateway(exchanging(provider, BASIC, timeout="300ms", breaker={"failures": 3, "open": "1s"}))
    tokens = [provider.token("ES256", audience="gateway") for _ in range(40)]
    known, unseen = tokens[:20], tokens[20:]
    for token in known:
        served(gateway.get("/orders", headers=bearer(token)))
    load = Load(gateway, 100)
    load.use(known)
    for _ in range(3):
        provider.freeze()
        for token in unseen[:8]:
            began = time.monotonic()
            refused(gateway.get("/orders", headers=bearer(token)), 503, "dependency_unavailable")
            check(time.monotonic() - began < 1, "it is refused in time")
        served(gateway.get("/open"))
        time.sleep(2)
        provider.thaw()
        fresh = unseen.pop()
        within(4, "it is asked again", lambda: gateway.get("/orders", headers=bearer(fresh)).status_code == 200)
    load.stop()
    equal(load.wrong[:3], [], "requests that noticed")
    print(f"   {load.done} requests, none noticed three times 2 s without the provider", flush=True)


@trial
def without_the_provider_no_request_goes_on_without_a_token_and_all_do_when_it_is_back(stage):
    secrets(stage)
    provider = Provider(stage).publish("ES256-1")
    gateway = stage.gateway(exchanging(provider, BASIC, cache={"ttl": "1s"}, breaker={"failures": 3, "open": "1s"}))
    token = provider.token("ES256", audience="gateway")
    served(gateway.get("/orders", headers=bearer(token)))
    provider.stop()
    time.sleep(1)
    for _ in range(50):
        began = time.monotonic()
        refused(gateway.get("/orders", headers=bearer(token)), 503, "dependency_unavailable")
        check(time.monotonic() - began < 0.5, "it is refused at once")
    # With a key of another name, for which its key set is fetched at once.
    back = Provider(stage, provider.port).publish("ES256-2")
    fresh = lambda: back.token("ES256", audience="gateway")
    within(15, "it is asked again", lambda: gateway.get("/orders", headers=bearer(fresh())).status_code == 200)
