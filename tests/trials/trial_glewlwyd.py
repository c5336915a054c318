"""Against Glewlwyd, a server that Debian ships: what it says of its tokens, who may ask, and its absences."""

import base64
import json
import signal
import sqlite3
import time
from pathlib import Path

import httpx

import tokens
from harness import GATEWAY, bearer, check, equal, free_port, kill, listens, refused, served, trial, within

SCHEMA = Path("/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3")
MODULES = "/usr/lib/glewlwyd"
ADMINISTRATOR = {"username": "admin", "password": "password"}

ORDERS = "https://orders.test/"
BILLING = "https://billing.test/"
PLAIN = "a-secret-that-needs-no-encoding"
OTHER = "a secret: with 100% &+ signs"


class Glewlwyd:
    """A server with two clients, of which each may ask about its own tokens, and one person."""

    def __init__(self, stage, ttl=300, jwks=None):
        self._stage = stage
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api/oidc"
        self._config = stage.folder / "glewlwyd.conf"
        database = stage.folder / "glewlwyd.db"
        with sqlite3.connect(database) as made:
            made.executescript(SCHEMA.read_text())
        made.close()
        # Its lines are those of libconfig, whose text and numbers are written as in JSON.
        settings = {
            "port": self.port,
            "bind_address": "127.0.0.1",
            "external_url": f"http://127.0.0.1:{self.port}",
            "log_mode": "console",
            "log_level": "DEBUG",
            "user_module_path": f"{MODULES}/user",
            "client_module_path": f"{MODULES}/client",
            "user_auth_scheme_module_path": f"{MODULES}/scheme",
            "plugin_module_path": f"{MODULES}/plugin",
            "hash_algorithm": "SHA512",
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        self._config.write_text("\n".join([*lines, f'database = {{ type = "sqlite3"; path = {json.dumps(str(database))}; }};\n']))
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}/api", timeout=10, trust_env=False)
        self.start()
        self._furnish(ttl, jwks)

    def start(self):
        """Starts it, also again: what it knew is in its database."""
        self._process = self._stage.spawn("glewlwyd", f"--config-file={self._config}", log="glewlwyd.log")
        within(20, "Glewlwyd starts", self._up)

    def stop(self):
        kill(self._process)
        check(not listens(self.port), "Glewlwyd is gone")

    def freeze(self):
        """It takes connections and says nothing, as a machine that swaps."""
        self._process.send_signal(signal.SIGSTOP)
        # A thread that runs on another core may still answer.
        threads = Path(f"/proc/{self._process.pid}/task")
        within(1, "every thread is stopped", lambda: all(self._is_stopped(thread) for thread in threads.iterdir()))

    @staticmethod
    def _is_stopped(thread):
        return (thread / "stat").read_text().rpartition(") ")[2].startswith("T")

    def thaw(self):
        self._process.send_signal(signal.SIGCONT)

    def grant(self, client="shop", secret=PLAIN, scope="orders:read", resource=ORDERS, **form):
        """What the token endpoint answers: a grant of the client itself, unless the form asks for another."""
        form = {"grant_type": "client_credentials", "scope": scope, "resource": resource} | form
        answer = self._client.post("/oidc/token", data=form, auth=(client, secret))
        check(answer.status_code == 200, f"Glewlwyd gave no token: {answer.status_code} {answer.text}")
        return answer.json()

    def token(self, *client, **form):
        return self.grant(*client, **form)["access_token"]

    def of_ann(self):
        """An access token of a person, and the refresh token beside it."""
        granted = self.grant(grant_type="password", username="ann", password="ann-password")
        return granted["access_token"], granted["refresh_token"]

    def revoke(self, token):
        answer = self._client.post("/oidc/revoke", data={"token": token}, auth=("shop", PLAIN))
        check(answer.status_code == 200, f"Glewlwyd did not revoke: {answer.status_code} {answer.text}")

    def _up(self):
        check(self._process.poll() is None, f"Glewlwyd ended at its start with {self._process.poll()}")
        return listens(self.port)

    def _furnish(self, ttl, jwks):
        """Makes all that a trial needs by its API, as its administrator."""
        self._post("/auth/", ADMINISTRATOR)
        for scope in ["orders:read", "orders:write"]:
            self._post("/scope/", {"name": scope, "display_name": scope, "password_required": False, "scheme": {}})
        client = {
            "enabled": True,
            "confidential": True,
            "scope": ["orders:read", "orders:write"],
            "authorization_type": ["client_credentials", "password", "refresh_token"],
            "token_endpoint_auth_method": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
            "resource": [ORDERS, BILLING],
        } | ({"jwks": jwks} if jwks else {})
        self._post("/client/", client | {"client_id": "shop", "name": "shop", "client_secret": PLAIN})
        self._post("/client/", client | {"client_id": "other", "name": "other", "client_secret": OTHER})
        self._post("/user/", {"username": "ann", "name": "Ann", "password": "ann-password", "scope": ["orders:read"], "enabled": True})
        parameters = {
            "iss": self.url,
            "jwt-type": "sha",
            "jwt-key-size": "256",
            "key": "a secret of the server alone",
            "access-token-duration": ttl,
            "refresh-token-duration": 3600,
            "code-duration": 60,
            "refresh-token-rolling": False,
            "allow-non-oidc": True,
            "auth-type-code-enabled": False,
            "auth-type-token-enabled": False,
            "auth-type-password-enabled": True,
            "auth-type-client-enabled": True,
            "auth-type-refresh-enabled": True,
            "introspection-revocation-allowed": True,
            "introspection-revocation-allow-target-client": True,
            "resource-allowed": True,
            "resource-scope": {},
            "resource-client-property": "resource",
            "request-parameter-allow": True,
            "client-jwks-parameter": "jwks",
            "subject-type": "public",
        }
        self._post("/mod/plugin/", {"module": "oidc", "name": "oidc", "display_name": "oidc", "order_rank": 0, "parameters": parameters})

    def _post(self, path, body):
        answer = self._client.post(path, json=body)
        check(answer.status_code == 200, f"Glewlwyd did not take {path}: {answer.status_code} {answer.text}")


def asking(server, **authenticators):
    """A configuration with a route for each of these ways to ask the server about a token, and one that asks for more than most have."""
    ways = {way: {"introspection": {"url": f"{server.url}/introspect"} | more} for way, more in authenticators.items()}

    def route(path, way, scope):
        policy = {"authenticate": [way], "authorize": {"scopes": [scope]}}
        return {"name": path, "path": f"/{path}", "policy": policy, "upstream": "echo"}

    return {
        "upstreams": {"echo": {"builtin": "echo"}},
        "authenticators": ways,
        "routes": [*(route(way, way, "orders:read") for way in ways), route("write", next(iter(ways)), "orders:write")],
    }


def client(stage, method="basic", name="shop", secret=PLAIN, file=None):
    file = f"{file or name}.secret"
    (stage.folder / file).write_text(secret)
    return {"id": name, "method": method, "secret": {"file": file}}


def keeps_its_secret(gateway, *said):
    """Checks that neither log has any of these; tokens are looked for at the end of every trial."""
    logs = gateway.log.read_text() + (gateway.stage.folder / "access.json").read_text()
    for secret in [PLAIN, OTHER, base64.b64encode(f"shop:{PLAIN}".encode()).decode(), *said]:
        check(secret not in logs, f"a log has {secret!r}")


def subject(token):
    """Who the token itself says that it is of."""
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"]


@trial
def a_token_is_what_glewlwyd_says_of_it(stage):
    server = Glewlwyd(stage)
    shop = client(stage)
    # It gives the tokens of a person no resource: their audience is their scopes.
    ways = {"orders": {"client": shop, "audiences": [ORDERS]}, "people": {"client": shop, "audiences": ["orders:read"]}}
    gateway = stage.gateway(asking(server, **ways))

    def ask(path, token):
        return gateway.get(path, headers=bearer(token))

    def identity(seen):
        return [seen.get(f"x-{name}") for name in ["user-id", "client-id", "scopes", "auth-method"]]

    token = server.token()
    seen = served(ask("/orders", token))
    equal(identity(seen), [None, "shop", "orders:read", "introspection"], "the client's identity")
    check("authorization" not in seen, "the token stays here")
    refused(ask("/write", token), 403, "insufficient_scope")
    seen = served(ask("/write", server.token(scope="orders:read orders:write")))
    equal(sorted(seen["x-scopes"].split(" ")), ["orders:read", "orders:write"], "both scopes")
    refused(ask("/orders", server.token(resource=BILLING)), 401, "credential_invalid")
    refused(ask("/orders", tokens.tampered(token)), 401, "credential_invalid")
    refused(ask("/orders", "invented"), 401, "credential_invalid")
    refused(gateway.get("/orders"), 401, "credential_missing")
    # It tells nobody of the tokens of another client.
    refused(ask("/orders", server.token("other", OTHER)), 401, "credential_invalid")

    persons, refresh = server.of_ann()
    equal(identity(served(ask("/people", persons))), [subject(persons), "shop", "orders:read", "introspection"], "the person's identity")
    refused(ask("/orders", persons), 401, "credential_invalid")
    refused(ask("/people", refresh), 401, "credential_invalid")
    keeps_its_secret(gateway, refresh)


@trial
def a_token_of_glewlwyd_ends_with_its_time(stage):
    server = Glewlwyd(stage, ttl=2)
    gateway = stage.gateway(asking(server, orders={"client": client(stage)}))
    token = bearer(server.token())
    served(gateway.get("/orders", headers=token))
    within(3, "the token ends", lambda: gateway.get("/orders", headers=token).status_code == 401)


@trial
def a_client_proves_itself_to_glewlwyd_in_each_of_three_ways(stage):
    stage.run(GATEWAY, "tokens", "keypair", "--out", stage.folder / "client", "--kid", "gateway")
    server = Glewlwyd(stage, jwks=json.loads((stage.folder / "client" / "jwks.json").read_text()))
    ways = {
        "basic": client(stage),
        "post": client(stage, "post"),
        "key": {"id": "shop", "method": "private_key_jwt", "key": {"file": "client/private.jwk"}},
        "encoded": client(stage, "post", "other", OTHER),
        "unproven": client(stage, "post", "shop", "not the secret", file="wrong"),
        # It does not decode what RFC 6749 has us encode, so it takes such a secret in the form alone.
        "undecoded": client(stage, "basic", "other", OTHER),
    }
    # A log that says all that we can say must not tell how a client proves itself.
    all_we_say = {"RUST_LOG": "trace"}
    gateway = stage.gateway(asking(server, **{way: {"client": proof} for way, proof in ways.items()}), env=all_we_say)
    mine, others = bearer(server.token()), bearer(server.token("other", OTHER))
    for way in ["basic", "post", "key"]:
        served(gateway.get(f"/{way}", headers=mine))
    served(gateway.get("/encoded", headers=others))
    refused(gateway.get("/unproven", headers=mine), 503, "dependency_unavailable")
    refused(gateway.get("/undecoded", headers=others), 503, "dependency_unavailable")
    keeps_its_secret(gateway)


@trial
def a_token_that_glewlwyd_revokes_is_refused_within_the_ttl(stage):
    server = Glewlwyd(stage)
    shop = client(stage)
    ways = {
        "remembered": {"client": shop, "cache": {"ttl": "2s", "negative_ttl": "1s"}},
        "asked": {"client": shop, "cache": {"ttl": "0s", "negative_ttl": "0s"}},
    }
    gateway = stage.gateway(asking(server, **ways))
    token = bearer(server.token())
    for path in ["/remembered", "/asked"] * 3:
        served(gateway.get(path, headers=token))
    server.revoke(token["authorization"].removeprefix("Bearer "))
    refused(gateway.get("/asked", headers=token), 401, "credential_invalid")
    within(2.2, "the revoked token ends", lambda: gateway.get("/remembered", headers=token).status_code == 401)
    served(gateway.get("/remembered", headers=bearer(server.token())))


@trial
def while_glewlwyd_is_frozen_or_gone_tokens_are_refused_and_the_same_ones_serve_when_it_is_back(stage):
    server = Glewlwyd(stage)
    more = {"cache": {"ttl": "0s"}, "timeout": "300ms", "breaker": {"failures": 3, "open": "1s"}}
    gateway = stage.gateway(asking(server, orders={"client": client(stage)} | more))
    token, revoked = server.token(), server.token()
    server.revoke(revoked)

    def ask():
        return gateway.get("/orders", headers=bearer(token))

    def is_away():
        for _ in range(20):
            began = time.monotonic()
            refused(ask(), 503, "dependency_unavailable")
            check(time.monotonic() - began < 1, "it is refused in time")

    def is_back():
        within(6, "it is asked again", lambda: ask().status_code == 200)
        refused(gateway.get("/orders", headers=bearer(revoked)), 401, "credential_invalid")

    is_back()
    server.freeze()
    is_away()
    server.thaw()
    is_back()
    server.stop()
    is_away()
    server.start()
    is_back()
    keeps_its_secret(gateway)
