"""Three gateways, one Redis, and wrk on each: what a fleet admits over ten windows, however its limit is counted."""

import collections
import datetime
import json
import re
import time

from harness import Stage, check, free_port, kill, listens, trial, within

NODES = 3
WINDOWS = 10
WINDOW = 2
LIMIT = 1000
CONNECTIONS = 8
# Begins and ends within the first and the last of ten windows.
LOAD = WINDOWS * WINDOW - 1
MARGIN = 0.3

# What a node admits at worst before Redis has heard of it: `edgeward check` says so.
CREDIT = LIMIT // 100


def redis(stage):
    port = free_port()
    stage.spawn("redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", log="redis.log")
    within(10, "Redis starts", lambda: listens(port))
    return port


def fleet(stage, store):
    """Gateways that share a limit, or do not."""
    # Where Redis cannot be reached in time the request does not count: how a limit does without it is tried elsewhere.
    shared = {} if store == "local" else {"store": store, "on_store_failure": "deny"}
    limit = {"per": "route", "rate": f"{LIMIT}/{WINDOW}s", "algorithm": "fixed_window"} | shared
    config = {
        "upstreams": {"echo": {"builtin": "echo"}},
        "limits": {"fleet": limit},
        "routes": [{"name": "all", "path": "/", "policy": {"authenticate": "public", "limits": ["fleet"]}, "upstream": "echo"}],
    }
    if shared:
        # A busy machine of two cores must not make this a trial of Redis being away.
        config["redis"] = {"url": f"redis://127.0.0.1:{redis(stage)}", "timeout": "2s"}
    nodes = []
    for number in range(NODES):
        # A folder for each: they are different machines.
        own = Stage(f"{stage.name}-{number}")
        stage.at_end(own.close)
        nodes.append(own.gateway(config))
    if store != "local":
        for node in nodes:
            within(10, "Redis is reached", lambda node=node: node.metric("edgeward_redis_up") == 1)
    return nodes


def load(stage, nodes, meanwhile):
    """Ten windows of wrk on each node; the number of requests that were admitted."""
    time.sleep(WINDOW - time.time() % WINDOW + MARGIN)
    began = time.time()
    for number, node in enumerate(nodes):
        command = ["wrk", "-t", 1, "-c", CONNECTIONS, "-d", LOAD, "--timeout", "5s", f"http://127.0.0.1:{node.port}/"]
        stage.spawn(*command, log=f"wrk-{number}.log")
    meanwhile()
    outputs = [stage.folder / f"wrk-{number}.log" for number in range(NODES)]
    within(3 * LOAD, "wrk ends", lambda: all("Requests/sec" in output.read_text() for output in outputs))
    check(time.time() - began < WINDOWS * WINDOW, "the load lasted into an eleventh window: this machine is too busy for this trial")
    return sum(admitted(output.read_text()) for output in outputs)


def admitted(told):
    requests = int(re.search(r"(\d+) requests in", told)[1])
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", told)
    return requests - int(refused[1] if refused else 0)


def fullest_window(nodes):
    """The most that the access logs show in one window of Redis: it counts them from the epoch."""
    windows = collections.Counter()
    for node in nodes:
        for line in (node.stage.folder / "access.json").read_text().splitlines():
            entry = json.loads(line)
            if entry["status"] == 200:
                windows[int(datetime.datetime.fromisoformat(entry["time"]).timestamp()) // WINDOW] += 1
    return max(windows.values())


def crash(node):
    """Kills a node in the middle of a window, and starts it again in the same."""

    def meanwhile():
        time.sleep(4 * WINDOW + WINDOW / 4)
        kill(node.process)
        node.start()

    return meanwhile


def tried(stage, store, killed, bound, at_least):
    nodes = fleet(stage, store)
    total = load(stage, nodes, crash(nodes[-1]) if killed else lambda: None)
    fullest = fullest_window(nodes)
    calls = 0 if store == "local" else round(sum(node.metric("edgeward_redis_calls_total") for node in nodes))
    with_kill = ", one node killed and started again" if killed else ""
    print(f"  {store}{with_kill}: {total} admitted, at most {bound}; fullest window {fullest}; {calls} calls of Redis", flush=True)
    check(at_least <= total <= bound, f"{total} admitted, wanted {at_least} to {bound}")
    return fullest


def check_windows(fullest, overshoot):
    # A request that is logged at the end of a window may have been counted in the next.
    check(fullest <= LIMIT + overshoot + NODES * CONNECTIONS, f"{fullest} in one window")


@trial
def a_local_limit_is_held_by_each_node_alone(stage):
    # Windows of a node begin when it does: ten of Redis' may touch eleven of its own.
    tried(stage, "local", False, NODES * LIMIT * (WINDOWS + 1), NODES * LIMIT * (WINDOWS - 1))


@trial
def a_local_limit_forgets_with_its_process(stage):
    tried(stage, "local", True, NODES * LIMIT * (WINDOWS + 1) + LIMIT, NODES * LIMIT * (WINDOWS - 2))


@trial
def a_redis_limit_is_exact_over_the_fleet(stage):
    check_windows(tried(stage, "redis", False, LIMIT * WINDOWS, LIMIT * WINDOWS * 99 // 100), 0)


@trial
def a_redis_limit_is_exact_though_a_node_is_killed(stage):
    check_windows(tried(stage, "redis", True, LIMIT * WINDOWS, LIMIT * WINDOWS * 98 // 100), 0)


@trial
def a_hybrid_limit_stays_within_its_stated_overshoot(stage):
    overshoot = NODES * CREDIT
    check_windows(tried(stage, "hybrid", False, (LIMIT + overshoot) * WINDOWS, LIMIT * WINDOWS * 9 // 10), overshoot)


@trial
def a_hybrid_limit_stays_within_its_stated_overshoot_though_a_node_is_killed(stage):
    overshoot = (NODES + 1) * CREDIT
    bound = (LIMIT + NODES * CREDIT) * WINDOWS + CREDIT
    check_windows(tried(stage, "hybrid", True, bound, LIMIT * WINDOWS * 85 // 100), overshoot)
