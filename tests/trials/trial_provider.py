"""Against an OpenID provider that we did not write: its tokens, its rotations, and its absences."""

import json
import signal
import subprocess
import threading
import time

import httpx

import tokens
from harness import HERE, Failure, bearer, check, equal, free_port, listens, refused, served, trial, within

ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]
ROTATIONS = 3
# The shortest time after which the gateway fetches by itself.
REFRESH = 10
RATE = 200


class Provider:
    """npm oidc-provider on a port of its own."""

    def __init__(self, stage, port=None):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = stage.spawn(
            "node", "provider.mjs", self.port, cwd=HERE, log="provider.log", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._client = httpx.Client(base_url=self.url, timeout=10, trust_env=False)

    def publish(self, *kids, **more):
        """Sets the key set; the last key of an algorithm is the one that signs."""
        signing = {kid.split("-")[0]: kid for kid in kids}
        self._process.stdin.write(json.dumps({"publish": kids, "sign": signing} | more) + "\n")
        self._process.stdin.flush()
        equal(self._process.stdout.readline(), "done\n", "the provider's answer")
        return self

    def token(self, algorithm, audience="orders", ttl=300, scope="orders:read", token_format="jwt"):
        form = {
            "grant_type": "client_credentials",
            "scope": scope,
            "resource": f"https://orders.test/{algorithm}?audience={audience}&ttl={ttl}&format={token_format}",
        }
        answer = self._client.post("/token", data=form, auth=("shop", "shop-secret"))
        check(answer.status_code == 200, f"the provider gave no token: {answer.text}")
        return answer.json()["access_token"]

    def revoke(self, token):
        answer = self._client.post("/token/revocation", data={"token": token}, auth=("shop", "shop-secret"))
        check(answer.status_code == 200, f"the provider did not revoke: {answer.text}")

    def freeze(self):
        """It takes connections and says nothing, as a machine that swaps."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self._process.send_signal(signal.SIGCONT)

    def stop(self):
        self._process.kill()
        self._process.wait()
        check(not listens(self.port), "the provider is gone")


def trusting(provider, **keys):
    """A configuration that trusts the provider, with a public route beside the protected ones."""
    return {
        "upstreams": {"echo": {"builtin": "echo"}},
        "authenticators": {
            "shops": {
                "jwt": {
                    "issuer": provider.url,
                    "audiences": ["orders"],
                    "keys": {"discovery": provider.url} | keys,
                    "leeway": "0s",
                }
            }
        },
        "routes": [
            {"name": "orders", "path": "/orders", "policy": {"authenticate": ["shops"]}, "upstream": "echo"},
            {
                "name": "write",
                "path": "/write",
                "policy": {"authenticate": ["shops"], "authorize": {"scopes": ["orders:write"]}},
                "upstream": "echo",
            },
            {"name": "open", "path": "/open", "policy": {"authenticate": "public"}, "upstream": "echo"},
        ],
    }


@trial
def tokens_of_a_real_provider_are_accepted_with_every_algorithm_and_name_the_caller(stage):
    provider = Provider(stage).publish(*(f"{algorithm}-1" for algorithm in ALGORITHMS))
    gateway = stage.gateway(trusting(provider))
    for algorithm in ALGORITHMS:
        seen = served(gateway.get("/orders", headers=bearer(provider.token(algorithm)) | {"X-User-Id": "mallory", "x_scopes": "admin"}))
        for header, value in {"x-user-id": "shop", "x-client-id": "shop", "x-scopes": "orders:read", "x-auth-method": "jwt"}.items():
            equal(seen.get(header), value, f"{header} with {algorithm}")
        check("x_scopes" not in seen, "a forged header in another spelling is stripped")


@trial
def tokens_that_a_real_provider_gave_for_something_else_are_refused(stage):
    provider = Provider(stage).publish("RS256-1", "ES256-1")
    other = Provider(stage).publish("RS256-1", "ES256-1")
    gateway = stage.gateway(trusting(provider))

    def ask(token, path="/orders"):
        return gateway.get(path, headers=bearer(token))

    refused(gateway.get("/orders"), 401, "credential_missing")
    served(ask(provider.token("RS256")))
    refused(ask(provider.token("RS256", audience="billing")), 401, "credential_invalid")
    refused(ask(other.token("RS256")), 401, "credential_invalid")
    refused(ask(tokens.tampered(provider.token("RS256"))), 401, "credential_invalid")
    refused(ask(tokens.tampered(provider.token("ES256"))), 401, "credential_invalid")
    refused(ask(provider.token("RS256"), "/write"), 403, "insufficient_scope")
    served(ask(provider.token("RS256", scope="orders:read orders:write"), "/write"))
    short = provider.token("ES256", ttl=2)
    served(ask(short))
    expired = first_refusal(gateway, short, 4)
    refused(expired, 401, "credential_expired")
    check('error="invalid_token"' in expired.headers["www-authenticate"], "the challenge of RFC 6750")


@trial
def keys_rotate_under_load_without_one_wrong_refusal(stage):
    provider = Provider(stage).publish("ES256-1")
    gateway = stage.gateway(trusting(provider, refresh=f"{REFRESH}s"))
    served(gateway.get("/orders", headers=bearer(provider.token("ES256"))))
    load = Load(gateway, rate=RATE)
    load.use([provider.token("ES256") for _ in range(20)])
    for number in range(1, 1 + ROTATIONS):
        old, new = f"ES256-{number}", f"ES256-{number + 1}"
        # A real rotation: the next key is published for longer than caches live, then it signs, then the old one is withdrawn.
        provider.publish(new, old)
        time.sleep(REFRESH + 1)
        provider.publish(old, new)
        of_old, of_new = load.tokens, [provider.token("ES256") for _ in range(20)]
        load.use(of_old + of_new)
        time.sleep(1)
        load.use(of_new)
        provider.publish(new)
        time.sleep(0.5)
    refused(first_refusal(gateway, of_old[0], REFRESH + 2), 401, "credential_invalid")
    load.stop()
    equal(load.wrong, [], "wrong refusals")
    check(load.done > 0.8 * RATE * load.seconds, f"only {load.done} requests in {load.seconds:.0f} s")


@trial
def a_key_that_is_used_as_soon_as_it_is_published_is_fetched_at_its_first_token(stage):
    provider = Provider(stage).publish("RS256-1")
    gateway = stage.gateway(trusting(provider))
    served(gateway.get("/orders", headers=bearer(provider.token("RS256"))))
    load = Load(gateway, rate=50)
    load.use([provider.token("RS256")])
    provider.publish("RS256-1", "RS256-2")
    load.use(load.tokens + [provider.token("RS256")])
    time.sleep(2)
    load.stop()
    equal(load.wrong, [], "wrong refusals")


@trial
def cached_keys_serve_while_the_provider_is_away_and_new_ones_come_when_it_is_back(stage):
    provider = Provider(stage).publish("RS256-1", "ES256-1")
    gateway = stage.gateway(trusting(provider, refresh=f"{REFRESH}s"))
    known = [provider.token("RS256") for _ in range(24)]
    served(gateway.get("/orders", headers=bearer(known[0])))
    provider.stop()
    for token in known:
        served(gateway.get("/orders", headers=bearer(token)))
        time.sleep(0.5)
    refused(gateway.get("/orders", headers=bearer(tokens.tampered(known[1]))), 401, "credential_invalid")
    back = Provider(stage, provider.port).publish("ES256-2")
    fresh = bearer(back.token("ES256"))
    within(12, "the new keys are accepted", lambda: gateway.get("/orders", headers=fresh).status_code == 200)


@trial
def a_gateway_that_starts_before_its_provider_says_503_and_recovers_by_itself(stage):
    port = free_port()
    provider = Provider(stage, port)
    provider.stop()
    gateway = stage.gateway(trusting(provider))
    any_token = tokens.by_pyjwt(tokens.Keys(), "RS256", tokens.claims(iss=provider.url))
    refused(gateway.get("/orders", headers=bearer(any_token)), 503, "dependency_unavailable")
    refused(gateway.get("/orders"), 401, "credential_missing")
    served(gateway.get("/open"))
    came = Provider(stage, port).publish("RS256-1")
    good = bearer(came.token("RS256"))
    within(8, "good tokens are accepted", lambda: gateway.get("/orders", headers=good).status_code == 200)


@trial
def keys_on_disk_serve_after_a_restart_while_the_provider_is_away(stage):
    provider = Provider(stage).publish("RS256-1")
    store = {"store": "keys/provider.json"}
    (stage.folder / "keys").mkdir()
    first = stage.gateway(trusting(provider, **store))
    good = bearer(provider.token("RS256"))
    served(first.get("/orders", headers=good))
    within(3, "the keys are stored", (stage.folder / "keys/provider.json").exists)
    stage.end(first)
    provider.stop()
    second = stage.gateway(trusting(provider, **store), log="second.log")
    within(2, "the stored keys are read", lambda: second.get("/orders", headers=good).status_code == 200)


def first_refusal(gateway, token, seconds):
    """The answer that ends a token, which must come within this time."""

    def ask():
        answer = gateway.get("/orders", headers=bearer(token))
        return answer if answer.status_code != 200 else None

    answer, _ = within(seconds, "the token ends", ask)
    return answer


class Load:
    """Requests at a steady rate with tokens in turn; everything but 200 with the right caller is wrong."""

    THREADS = 4

    def __init__(self, gateway, rate):
        self.tokens = []
        self.wrong = []
        self.done = 0
        self._gateway = gateway
        self._pause = self.THREADS / rate
        self._count = threading.Lock()
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(self.THREADS)]

    def use(self, tokens):
        """From the next request on. The list is replaced and never changed, so that no thread sees half of it."""
        self.tokens = tokens
        for thread in self._threads:
            if not thread.ident:
                thread.start()

    def stop(self):
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self.seconds = time.monotonic() - self._began

    def _ask(self):
        with httpx.Client(base_url=self._gateway.client.base_url, timeout=10, trust_env=False) as client:
            due = time.monotonic()
            turn = 0
            while not self._ended.is_set():
                tokens = self.tokens
                turn += 1
                wrong = attempt(client, tokens[turn % len(tokens)])
                with self._count:
                    self.done += 1
                    if wrong:
                        self.wrong.append(wrong)
                due += self._pause
                time.sleep(max(0, due - time.monotonic()))


def attempt(client, token):
    """What was wrong with the answer, or nothing."""
    try:
        seen = served(client.get("/orders", headers=bearer(token)))
        equal(seen.get("x-user-id"), "shop", "the caller")
    except (Failure, httpx.HTTPError) as error:
        return repr(error)
    return None
