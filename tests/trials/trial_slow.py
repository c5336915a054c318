"""slowhttptest: hundreds of callers that hold on to their connections, and one that is in a hurry beside them."""

import json
import os
import threading
import time

from harness import check, equal, trial, within
from origins import Nginx

CALLERS = 300
# As fast as these callers come; a good one waits no longer than a second for an answer meanwhile.
RATE = 150


def world(stage):
    nginx = Nginx(stage)
    (nginx.folder / "files/big").write_bytes(b"x" * 20_000_000)
    gateway = stage.gateway(
        {
            "server": {"timeouts": {"header": "4s", "body": "4s"}, "limits": {"connections_per_ip": CALLERS + 20}},
            "upstreams": {"origin": {"servers": [nginx.address]}, "echo": {"builtin": "echo"}},
            "routes": [
                {"name": "files", "path": "/files/{*rest}", "policy": {"authenticate": "public"}, "upstream": "origin"},
                {"name": "echo", "path": "/echo", "policy": {"authenticate": "public"}, "upstream": "echo"},
            ],
        }
    )
    return gateway


def refusals(stage, code):
    lines = (stage.folder / "access.json").read_text().splitlines()
    return sum(json.loads(line)["code"] == code for line in lines if line.endswith("}"))


def attack(stage, gateway, code, path, *mode):
    """Has them come, and checks that each is let go by this code, and that a good caller is served all the while."""
    command = ["slowhttptest", "-c", CALLERS, "-r", RATE, "-l", 60, "-p", 3, "-u", f"http://127.0.0.1:{gateway.port}{path}", *mode]
    callers = threading.Thread(target=stage.attempt, args=command, kwargs={"timeout": 90, "env": os.environ | {"TERM": "dumb"}})
    callers.start()
    slowest = 0.0
    began = time.monotonic()
    while refusals(stage, code) < CALLERS:
        asked = time.monotonic()
        equal(gateway.get("/echo").status_code, 200, "a good caller beside them")
        slowest = max(slowest, time.monotonic() - asked)
        check(asked - began < 55, f"{refusals(stage, code)} of {CALLERS} were let go")
        time.sleep(0.05)
    check(slowest < 5, f"a good caller waited {slowest:.1f} s")
    within(20, "they hold no connection", lambda: gateway.metric("edgeward_connections") <= 1)
    callers.join()


@trial
def callers_with_slow_heads_are_told_and_let_go(stage):
    attack(stage, world(stage), "request_timeout", "/echo", "-H", "-i", 1)


@trial
def callers_with_slow_bodies_are_told_and_let_go(stage):
    attack(stage, world(stage), "request_timeout", "/echo", "-B", "-i", 1, "-s", 100_000)


@trial
def callers_that_read_slowly_are_let_go(stage):
    attack(stage, world(stage), "client_closed", "/files/big", "-X", "-w", 64, "-y", 128, "-n", 5, "-z", 32)
