"""wrk with mixed good and bad traffic, and h2load beside it, while the configuration is rewritten and reloaded every second."""

import json
import os
import re
import time

import tokens
from certificates import Authority
from harness import bearer, check, equal, trial, within
from origins import Nginx

SECONDS = int(os.environ.get("TRIALS_SECONDS", "60"))
# Each is one connection, so that an answer belongs to the request before it.
THREADS = 16
# Every so many rewrites one is broken, and must change nothing.
BROKEN_EVERY = 5


def configuration(nginx, generation):
    """One of many sound configurations: each tells its number in the path and in a header, and shuffles what it can."""
    forward = {"headers": {"X-Generation": str(generation)}}
    known = {"authenticate": ["issuer", "partners"], "forward": forward}

    def route(name, policy, upstream="echo", **more):
        return {"name": name, "path": f"/{name}/{{*rest}}", "policy": policy, "upstream": upstream} | more

    to_echo = {"rewrite": f"/g{generation}/{{rest}}"}
    routes = [
        route("orders", known, methods=["GET", "POST"], **to_echo),
        route("scoped", known | {"authorize": {"scopes": ["orders:write"]}}, **to_echo),
        route("open", {"authenticate": "public", "forward": forward}, **to_echo),
        route("denied", known | {"deny": ["127.0.0.0/8"]}),
        route("used-up", {"authenticate": "public", "limits": ["one"]}),
        route("origin", known, upstream="origin", rewrite="/{rest}"),
    ]
    return {
        "tls": {"certificates": [{"chain": "edge.pem", "key": {"file": "edge.key"}}]},
        "upstreams": {"echo": {"builtin": "echo"}, "origin": {"servers": [nginx.address], "health": {"path": "/healthz"}}},
        "limits": {"one": {"per": "client_ip", "rate": "1/30d"}, f"unused-{generation}": {"per": "client_ip", "rate": f"{generation}/s"}},
        "authenticators": {
            "issuer": {"jwt": {"issuer": tokens.ISSUER, "audiences": ["orders", f"unused-{generation}"], "keys": {"jwks_file": "jwks.json"}}},
            "partners": {"api_key": {"keys": {"database": "keys.db"}}},
        },
        "routes": routes[generation % len(routes) :] + routes[: generation % len(routes)],
        "telemetry": {"access_log": {"sample": generation % 2}},
    }


def traffic(keys, key, revoked):
    """What is asked, and what each answer must be."""
    alice = tokens.by_pyjwt(keys, "RS256", tokens.claims(sub="alice", exp=int(time.time()) + 3600))
    bob = tokens.by_joserfc(keys, "ES256", tokens.claims(sub="bob", scope="orders:read orders:write", exp=int(time.time()) + 3600))
    expired = tokens.by_pyjwt(keys, "ES256", tokens.claims(exp=int(time.time()) - 600))

    def case(name, path, status, headers=None, method="GET", present=(), absent=()):
        # What a caller says of itself must never arrive, whatever else is in the request.
        headers = {"X-User-Id": "mallory", "X-Consumer-Id": "mallory"} | (headers or {})
        forged = ["mallory"]
        return {"name": name, "method": method, "path": path, "headers": headers, "status": status, "present": list(present), "absent": forged + list(absent)}

    def is_refused(name, path, status, code, headers=None, **more):
        return case(name, path, status, headers, present=[f'"code":"{code}"'], **more)

    good = [
        case("RS256", "/orders/1", 200, bearer(alice), present=['"x-user-id": "alice"'], absent=["authorization"]),
        case("ES256", "/orders/2?q=1", 200, bearer(bob), "POST", present=['"x-user-id": "bob"', '"query": "q=1"']),
        case("API key", "/orders/3", 200, {"X-API-Key": key}, present=['"x-consumer-id": "acme"'], absent=["x-user-id", "x-api-key"]),
        case("scope", "/scoped/1", 200, bearer(bob), present=['"x-user-id": "bob"']),
        case("public", "/open/1", 200, present=['"x-generation"'], absent=["x-user-id", "x-consumer-id"]),
        case("nginx, JWT", "/origin/who", 200, bearer(alice), present=["alice|shop||"]),
        case("nginx, API key", "/origin/who", 200, {"X-API-Key": key}, present=["|acme||"]),
    ]
    bad = [
        is_refused("no credential", "/orders/1", 401, "credential_missing"),
        is_refused("forged claims", "/orders/1", 401, "credential_invalid", bearer(tokens.tampered(alice))),
        is_refused("expired", "/orders/1", 401, "credential_expired", bearer(expired)),
        is_refused("unknown key", "/orders/1", 401, "credential_invalid", {"X-API-Key": key[:-3] + "abc"}),
        case("revoked key", "/orders/1", 401, {"X-API-Key": revoked}),
        is_refused("forged on nginx", "/origin/who", 401, "credential_invalid", bearer(tokens.unsigned(tokens.claims()))),
        is_refused("scope missing", "/scoped/1", 403, "insufficient_scope", bearer(alice)),
        is_refused("denied address", "/denied/1", 403, "address_denied", bearer(alice)),
        is_refused("no route", "/elsewhere", 404, "no_route", bearer(alice)),
        is_refused("method", "/orders/1", 405, "method_not_allowed", bearer(alice), method="DELETE"),
        is_refused("path", "/open/%2e%2e%2forders/1", 400, "ambiguous_path"),
        is_refused("used up", "/used-up/1", 429, "rate_limited"),
    ]
    return good * 2 + bad


def lua(value):
    """The value as Lua writes it. A JSON string is a Lua string as long as it has no character outside ASCII."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{lua(name)}] = {lua(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(lua, value)) + "}"
    return json.dumps(value)


@trial
def a_reload_every_second_under_mixed_traffic_makes_no_wrong_answer_and_fails_no_good_request(stage):
    nginx = Nginx(stage)
    keys = tokens.Keys()
    (stage.folder / "jwks.json").write_text(json.dumps(keys.public()))
    Authority(stage.folder).issue("edge.test", file="edge")
    gateway = stage.gateway(configuration(nginx, 1))

    def make_key():
        made = json.loads(gateway.command("keys", "create", "-c", gateway.file, "--consumer", "acme", "--json"))
        return made["key"], made["record"]["id"]

    (key, _), (revoked, identity) = make_key(), make_key()
    gateway.command("keys", "revoke", "-c", gateway.file, identity)
    within(3, "the key is known", lambda: gateway.get("/orders/1", headers={"X-API-Key": key}).status_code == 200)
    within(3, "the revoked key is known", lambda: gateway.get("/orders/1", headers={"X-API-Key": revoked}).status_code == 401)
    equal(gateway.get("/used-up/1").status_code, 200, "the one request of the limit, which no reload gives back")
    (stage.folder / "cases.lua").write_text(f"return {lua(traffic(keys, key, revoked))}")

    command = ["wrk", "-t", THREADS, "-c", THREADS, "-d", f"{SECONDS}s", "--latency", "-s", "mixed.lua", f"http://127.0.0.1:{gateway.port}"]
    wrk = stage.spawn(*command, "--", stage.folder / "cases.lua", log="wrk.log")
    token = tokens.by_pyjwt(keys, "ES256", tokens.claims(exp=int(time.time()) + 3600))
    command = ["h2load", "-D", SECONDS, "-c", 4, "-m", 10, "--rps", 50, f"--connect-to=127.0.0.1:{gateway.tls_port}"]
    h2load = stage.spawn(*command, "-H", f"authorization: Bearer {token}", f"https://edge.test:{gateway.tls_port}/orders/1", log="h2load.log")
    began = time.monotonic()
    generation = broken = 1
    while wrk.poll() is None:
        time.sleep(max(0, began + generation - time.monotonic()))
        generation += 1
        if generation % BROKEN_EVERY == 0:
            broken += 1
            gateway.configure(configuration(nginx, generation) | {"rotues": []})
        else:
            gateway.configure(configuration(nginx, generation))
        gateway.reload()
        check(time.monotonic() - began < SECONDS + 20, "wrk does not end")

    said = (stage.folder / "wrk.log").read_text()
    result = re.search(r"RESULT right=(\d+) wrong=(\d+) connect=(\d+) read=(\d+) write=(\d+) timeout=(\d+) p99_us=(\d+)", said)
    check(result, f"wrk: {said}")
    right, wrong, *errors, p99 = map(int, result.groups())
    h2load.wait(20)
    streams = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout\nstatus codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", (stage.folder / "h2load.log").read_text())
    *fails, good, redirected, refused, broken_off = map(int, streams.groups())
    equal(fails + [redirected, refused, broken_off], [0] * 6, "HTTP/2 requests over TLS that failed, and answers 3xx, 4xx, 5xx")
    check(good > 100 * SECONDS, f"only {good} HTTP/2 requests")
    applied = gateway.metric("edgeward_config_generation")
    print(f"    {right} right answers in {SECONDS} s, p99 {p99 / 1000:.1f} ms, {good} over HTTP/2, {applied:.0f} configurations served")
    equal((wrong, errors), (0, [0, 0, 0, 0]), "wrong answers, and failures to connect, read, write and in time")
    check(right > 50 * SECONDS, f"only {right} answers")
    check(applied > SECONDS / 2, f"only {applied} configurations in {SECONDS} s")
    gateway.configure(configuration(nginx, generation + 1))
    last = f'"x-generation": "{generation + 1}"'
    within(2, "the last configuration is served", lambda: last in gateway.get("/open/1").text)
