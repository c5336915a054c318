"""Against an OpenID provider and a client library that we did not write: tokens bound to the client's key, and its proofs (RFC 9449)."""

import base64
import json
import subprocess

from harness import HERE, bearer, check, equal, refused, served, trial, within
from trial_provider import Provider

FROM = [{"header": "Authorization", "scheme": "DPoP"}, {"header": "Authorization", "scheme": "Bearer"}]
SECRET = "a secret: with 100% &+ signs"


class Client:
    """npm oauth4webapi with a key of its own."""

    def __init__(self, stage, provider):
        self._process = stage.spawn(
            "node", "dpop.mjs", provider.url, cwd=HERE, log="client.log", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def obtain(self, token_format, audience="orders"):
        resource = f"https://orders.test/ES256?audience={audience}&ttl=300&format={token_format}"
        answer = self._command({"obtain": {"resource": resource, "scope": "orders:read"}})
        equal(answer["token_type"], "dpop", "the type of the token")
        return answer["access_token"]

    def ask(self, gateway, path, method="GET"):
        return self._command({"ask": f"{gateway.client.base_url}{path}", "method": method})

    def prove(self, gateway, path, method="GET"):
        """The headers of a request that nobody has sent."""
        return self._command({"prove": f"{gateway.client.base_url}{path}", "method": method})

    def _command(self, command):
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        check(line, "the client ended")
        return json.loads(line)


def config(provider, dpop):
    """The same provider's tokens, read by us and asked about."""
    jwt = {"issuer": provider.url, "audiences": ["orders"], "keys": {"discovery": provider.url}, "claims": {"subject": "client_id"}}
    opaque = {
        "url": f"{provider.url}/token/introspection",
        "client": {"id": "gateway-basic", "secret": {"file": "secret"}},
        "claims": {"subject": "client_id"},
    }
    more = {"from": FROM} | dpop

    def route(name, authenticator):
        return {"name": name, "path": f"/{name}/{{*rest}}", "policy": {"authenticate": [authenticator]}, "upstream": "echo"}

    return {
        "upstreams": {"echo": {"builtin": "echo"}},
        "authenticators": {"shops": {"jwt": jwt | more}, "opaque": {"introspection": opaque | more}},
        "routes": [route("jwt", "shops"), route("opaque", "opaque")],
    }


def start(stage, dpop):
    (stage.folder / "secret").write_text(SECRET)
    provider = Provider(stage).publish("ES256-1")
    return provider, stage.gateway(config(provider, dpop)), Client(stage, provider)


def claims(proof):
    return json.loads(base64.urlsafe_b64decode(proof.split(".")[1] + "=="))


@trial
def a_token_bound_to_a_key_of_its_client_is_good_with_its_proof_and_for_nothing_else(stage):
    provider, gateway, client = start(stage, {})
    for kind in ["jwt", "opaque"]:
        token = client.obtain(kind)
        equal(token.count("."), 2 if kind == "jwt" else 0, "the dots of the token")
        for method in ["GET", "POST", "DELETE"]:
            answer = client.ask(gateway, f"/{kind}/7?a=b", method)
            equal((answer["status"], len(answer["sent"])), (200, 1), f"{method} with a proof")
        answer = client.ask(gateway, f"/{kind}/7")
        sent = {name: answer["sent"][0][name] for name in ["authorization", "dpop"]}
        check(sent["authorization"].startswith("DPoP "), "the scheme")

        def again(path=f"/{kind}/7", method="GET", headers=sent):
            return gateway.client.request(method, path, headers=headers)

        def fresh():
            return {"dpop": client.prove(gateway, f"/{kind}/7")["dpop"]}

        challenge = refused_for(again(), "invalid_dpop_proof")
        check("Bearer" in challenge, "both ways are challenged")
        refused_for(again(headers=sent | fresh(), path=f"/{kind}/8"), "invalid_dpop_proof")
        refused_for(again(headers=sent | fresh(), method="PUT"), "invalid_dpop_proof")
        refused_for(again(headers={"authorization": sent["authorization"]}), "invalid_dpop_proof")
        refused_for(again(headers=bearer(token)), "invalid_token")
        refused_for(again(headers=bearer(token) | fresh()), "invalid_token")
        seen = served(again(headers=sent | fresh()))
        equal((seen.get("x-user-id"), seen.get("x-auth-method")), ("shop", "introspection" if kind == "opaque" else "jwt"), "the caller")
        check("authorization" not in seen and "dpop" not in seen, "token and proof stay here")

        unbound = provider.token("ES256", token_format=kind)
        served(gateway.get(f"/{kind}/7", headers=bearer(unbound)))
        refused_for(again(headers={"authorization": f"DPoP {unbound}"} | fresh()), "invalid_token")
        other = Client(stage, provider)
        other.obtain(kind)
        refused_for(again(headers=sent | {"dpop": other.prove(gateway, f"/{kind}/7")["dpop"]}), "invalid_token")
    required = {"dpop": {"required": True}}
    gateway.configure(config(provider, required))
    within(5, "unbound tokens are refused", lambda: gateway.get("/jwt/7", headers=bearer(provider.token("ES256"))).status_code == 401)
    for kind in ["jwt", "opaque"]:
        client.obtain(kind)
        equal(client.ask(gateway, f"/{kind}/7")["status"], 200, "with a proof")
        refused_for(gateway.get(f"/{kind}/7", headers=bearer(provider.token("ES256", token_format=kind))), "invalid_token")


@trial
def a_library_answers_our_nonces_by_itself(stage):
    _, gateway, client = start(stage, {"dpop": {"nonce": {"lifetime": "4s"}}})
    for kind in ["jwt", "opaque"]:
        client.obtain(kind)
    first = client.ask(gateway, "/opaque/7")
    equal((first["status"], len(first["sent"])), (200, 2), "the library is told a nonce once, and comes again with it")
    before, after = (claims(request["dpop"]).get("nonce") for request in first["sent"])
    check(before is None and after, "the second proof has the nonce")
    nonces = {after}

    def next_one():
        answer = client.ask(gateway, "/opaque/7")
        equal((answer["status"], len(answer["sent"])), (200, 1), "nobody who keeps coming is asked again")
        nonces.add(claims(answer["sent"][0]["dpop"])["nonce"])
        return len(nonces) == 4

    within(20, "nonces follow each other", next_one)


def refused_for(response, error):
    refused(response, 401, "credential_invalid")
    challenge = response.headers["www-authenticate"]
    check(f'DPoP realm="edgeward", error="{error}"' in challenge, f"wanted {error}: {challenge}")
    return challenge
