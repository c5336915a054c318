"""nginx as the upstream: bodies both ways, connections that are kept, backends that die and come back."""

import hashlib
import os
import socket
import threading
import time
from concurrent import futures

import httpx

from harness import check, equal, free_port, refused, trial, within
from origins import Nginx

MIB = 1024 * 1024
BODY_LIMIT = 9 * MIB


def passing_to(origins, **upstream):
    """A configuration that passes everything on to these origins."""
    return {
        "server": {"limits": {"body": f"{BODY_LIMIT // MIB}MiB"}},
        "upstreams": {"origins": {"servers": [origin.address for origin in origins]} | upstream},
        "routes": [{"name": "all", "path": "/{*rest}", "policy": {"authenticate": "public"}, "upstream": "origins"}],
    }


@trial
def connections_to_nginx_are_kept_and_used_again(stage):
    nginx = Nginx(stage)
    gateway = stage.gateway(passing_to([nginx]))
    connections = set()
    for _ in range(100):
        answer = gateway.get("/who", headers={"X-User-Id": "mallory", "X-Forged": "kept"})
        equal((answer.status_code, answer.text), (200, "|||kept\n"), "what nginx saw")
        connections.add(answer.headers["x-connection"])
    check(len(connections) <= 4, f"{len(connections)} connections for 100 requests")


@trial
def a_mebibyte_comes_down_whole_with_a_length_and_in_chunks(stage):
    nginx = Nginx(stage)
    text = b"".join(os.urandom(24).hex().encode() for _ in range(MIB // 48 + 1))[:MIB]
    (nginx.folder / "files/big").write_bytes(text)
    gateway = stage.gateway(passing_to([nginx]))
    for encoding, header in {"identity": "content-length", "gzip": "transfer-encoding"}.items():
        answer = gateway.get("/files/big", headers={"accept-encoding": encoding})
        check(header in answer.headers, f"{header} with {encoding}")
        equal(digest(answer.content), digest(text), f"the body with {encoding}")
    part = gateway.get("/files/big", headers={"accept-encoding": "identity", "range": "bytes=1000-1999"})
    equal((part.status_code, part.content), (206, text[1000:2000]), "a range")
    began = time.monotonic()
    with gateway.client.stream("GET", "/slow/big") as answer:
        first = None
        for _ in answer.iter_raw():
            first = first or time.monotonic() - began
    check(first < 0.5 < time.monotonic() - began, f"the first bytes came after {first:.1f} s, not before the last")


@trial
def eight_mebibytes_go_up_whole_and_are_passed_on_while_they_come(stage):
    nginx = Nginx(stage)
    gateway = stage.gateway(passing_to([nginx]))
    body = os.urandom(8 * MIB)

    def pieces(pause=None):
        for start in range(0, len(body), 64 * 1024):
            if pause and start == len(body) // 2:
                pause()
            yield body[start : start + 64 * 1024]

    def half_is_there():
        received = sum(file.stat().st_size for file in (nginx.folder / "temporary").rglob("*"))
        return received >= len(body) // 2 - MIB

    sent = {
        "length": {"content": body},
        "chunked": {"content": pieces()},
        "streamed": {"content": pieces(lambda: within(5, "nginx has the first half before we send the second", half_is_there))},
    }
    for name, options in sent.items():
        equal(gateway.client.put(f"/files/{name}", **options).status_code, 201, name)
        equal(digest((nginx.folder / "files" / name).read_bytes()), digest(body), name)


@trial
def a_body_over_the_limit_is_refused_by_its_length_and_by_count(stage):
    nginx = Nginx(stage)
    gateway = stage.gateway(passing_to([nginx]))
    head = b"PUT /files/large HTTP/1.1\r\nHost: a\r\n"
    by_length = head + b"Content-Length: %d\r\n\r\n" % (BODY_LIMIT + 1)
    chunk = b"10000\r\n" + bytes(64 * 1024) + b"\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), 10) as connection:
        connection.sendall(by_length)
        body_too_large(connection, "by length, before any of the body")
    with socket.create_connection(("127.0.0.1", gateway.port), 10) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(BODY_LIMIT // len(chunk) + 2):
                connection.sendall(chunk)
        except OSError:
            pass  # Refused while we still sent.
        body_too_large(connection, "by count")
    check(not (nginx.folder / "files/large").exists(), "nothing was stored")
    equal(gateway.client.put("/files/just", content=bytes(BODY_LIMIT)).status_code, 201, "a body of exactly the limit")


def body_too_large(connection, what):
    answer = b""
    try:
        while chunk := connection.recv(65536):
            answer += chunk
    except ConnectionResetError:
        pass  # What we sent and was not read; the answer came before.
    check(answer.startswith(b"HTTP/1.1 413 ") and b'"code":"body_too_large"' in answer, f"{what}: {answer[:300]!r}")


@trial
def the_only_backend_dies_and_comes_back(stage):
    nginx = Nginx(stage)
    gateway = stage.gateway(passing_to([nginx]))
    equal(gateway.get("/who").status_code, 200, "before")
    nginx.kill()
    for _ in range(20):
        refused(gateway.get("/who"), 502, "upstream_unreachable")
    nginx.start()
    equal(gateway.get("/who").status_code, 200, "the first request after it is back")


@trial
def the_only_backend_is_found_dead_and_well_by_health_checks(stage):
    nginx = Nginx(stage)
    health = {"path": "/healthz", "interval": "200ms", "timeout": "200ms", "healthy": 2, "unhealthy": 2}
    gateway = stage.gateway(passing_to([nginx], health=health))
    within(3, "it is found well", lambda: gateway.get("/who").status_code == 200)
    nginx.kill()
    within(3, "it is found dead", lambda: gateway.get("/who").status_code == 503)
    began = time.monotonic()
    refused(gateway.get("/who"), 503, "no_healthy_upstream")
    check(time.monotonic() - began < 0.1, "the refusal takes no time")
    nginx.start()
    within(3, "it is found well again", lambda: gateway.get("/who").status_code == 200)


@trial
def a_dead_backend_is_left_out_and_idempotent_requests_do_not_notice(stage):
    one, two = Nginx(stage, "one"), Nginx(stage, "two")
    health = {"path": "/healthz", "interval": "500ms", "timeout": "400ms", "healthy": 2, "unhealthy": 2}
    retries = {"attempts": 2, "on": ["connect_failure"]}
    gateway = stage.gateway(passing_to([one, two], health=health, retries=retries))

    def asked(count, method="GET"):
        answers = [gateway.client.request(method, "/who") for _ in range(count)]
        return [answer.text for answer in answers if answer.status_code != 200], {answer.headers.get("x-origin") for answer in answers}

    def answered_by(count, method="GET"):
        wrong, origins = asked(count, method)
        equal(wrong, [], f"{method} requests that failed")
        return origins

    within(3, "both serve", lambda: asked(20) == ([], {"one", "two"}))
    one.kill()
    equal(answered_by(60), {"two"}, "GET as soon as one is dead")
    time.sleep(2)
    equal(answered_by(60, "POST"), {"two"}, "POST, which is never tried twice, once it is left out")
    one.start()
    within(3, "it serves again", lambda: asked(20) == ([], {"one", "two"}))


@trial
def a_backend_killed_under_load_fails_no_idempotent_request(stage):
    # Without kept connections, so that the request in flight is the first of its connection: nothing says that it was only stale.
    one, two = (Nginx(stage, name, {"keepalive_requests 100000": "keepalive_timeout 0"}) for name in ("one", "two"))
    health = {"path": "/healthz", "interval": "500ms", "timeout": "400ms", "healthy": 2, "unhealthy": 2}
    gateway = stage.gateway(passing_to([one, two], health=health, retries={"attempts": 2, "on": ["connect_failure", "502"]}))
    ended = threading.Event()

    def ask():
        answers = []
        with httpx.Client(base_url=gateway.client.base_url, trust_env=False) as client:
            while not ended.is_set():
                answers.append(client.get("/who").status_code)
        return answers

    with futures.ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask) for _ in range(8)]
        try:
            for _ in range(5):
                time.sleep(1.2)
                one.kill()
                time.sleep(0.3)
                one.start()
        finally:
            ended.set()
    answers = [answer for done in asking for answer in done.result()]
    check(len(answers) > 1000, f"only {len(answers)} requests")
    equal([answer for answer in answers if answer != 200], [], "failed requests")


@trial
def answers_that_the_configuration_names_are_retried_for_idempotent_requests_only(stage):
    well, busy = Nginx(stage, "well"), Nginx(stage, "busy", {"/who { return 200": "/who { return 503"})
    gateway = stage.gateway(passing_to([well, busy], retries={"attempts": 1, "on": ["503"]}))
    statuses = {method: [gateway.client.request(method, "/who").status_code for _ in range(20)] for method in ["GET", "POST"]}
    equal(set(statuses["GET"]), {200}, "GET")
    equal(set(statuses["POST"]), {200, 503}, "POST")
    answer = gateway.get("/busy")
    equal((answer.status_code, answer.text), (503, "busy\n"), "the answer when every backend says so")


@trial
def an_address_that_nobody_listens_on_is_a_502_and_a_silent_one_a_504(stage):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nobody = f"127.0.0.1:{free_port()}"
        config = passing_to([])
        config["upstreams"] = {
            "nobody": {"servers": [nobody]},
            "silent": {"servers": [f"127.0.0.1:{silent.getsockname()[1]}"], "timeouts": {"response": "500ms"}},
        }
        config["routes"] = [
            {"name": name, "path": f"/{name}", "policy": {"authenticate": "public"}, "upstream": name} for name in config["upstreams"]
        ]
        gateway = stage.gateway(config)
        refused(gateway.get("/nobody"), 502, "upstream_unreachable")
        began = time.monotonic()
        refused(gateway.get("/silent"), 504, "upstream_timeout")
        check(0.4 < time.monotonic() - began < 2, "it waits as long as it was told")


@trial
def a_connection_that_nginx_closed_in_the_pool_costs_no_request(stage):
    nginx = Nginx(stage, changes={"keepalive_requests 100000": "keepalive_requests 3; keepalive_timeout 300ms"})
    gateway = stage.gateway(passing_to([nginx]))
    with httpx.Client(base_url=gateway.client.base_url, trust_env=False) as client:
        for number in range(30):
            equal(client.get("/who").status_code, 200, f"request {number}")
            time.sleep(0.3 if number % 5 == 0 else 0)


def digest(content):
    return hashlib.sha256(content).hexdigest()
