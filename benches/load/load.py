"""Runs the workloads: each peer in turn, round after round, every answer checked. `benches/load/run` starts this."""

import datetime
import http.client
import json
import os
import re
import signal
import ssl
import statistics
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import chart
import generators
import machine
import report
from machine import Failure, Stage, check, cores, free_port, listens, within
from material import Material
from peers import ALL, Ports, Unable, versions
from workloads import WORKLOADS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

# In per cent of a core: below it the gateway was not what limited, and its figures say less.
BUSY = 95


@dataclass(frozen=True)
class Tools:
    """The programs that are not the system's."""

    edgeward: Path
    bare: Path | None
    envoy: Path | None
    pingap: Path | None
    edgeward_pgo: Path | None

    @staticmethod
    def found():
        def path(name):
            value = os.environ.get(name)
            return Path(value) if value else None

        return Tools(path("EDGEWARD_BIN"), path("BARE_BIN"), path("ENVOY_BIN"), path("PINGAP_BIN"), path("EDGEWARD_PGO_BIN"))

    def have(self, peer):
        program = peer.program or peer.name
        return program in ("origin", "haproxy", "nginx") or getattr(self, program) is not None


@dataclass(frozen=True)
class Plan:
    rounds: int
    seconds: int
    core: str
    others: str
    only: list
    peers: list


def origin(stage, material, core):
    """Starts the origin, which is the introspection endpoint and the authorizer as well."""
    ports = Ports(free_port(), free_port(), free_port())
    text = (HERE / "origin.conf").read_text()
    places = {"HERE": stage.folder, "PORT": ports.plain, "H2": ports.http2, "SECURED": ports.tls, "BODIES": free_port()}
    for name, value in (places | {"CHAIN": material.path("server.pem"), "KEY": material.path("server.key")}).items():
        text = text.replace(name, str(value))
    with open(stage.folder / "big", "wb") as big:
        big.write(b"x" * 2**20)
    config = stage.write("origin.conf", text)
    process = stage.spawn("nginx", "-e", stage.folder / "origin.log", "-c", config, core=core, log="origin.log")
    within(machine.START, "the origin serves", lambda: process.poll() is None and listens(ports.plain))
    return ports


def ask(peer, workload, load, headers=None):
    """One request by ourselves: its status, and what the origin says that it saw."""
    path, shown = load.first()
    if peer.chain.tls:
        context = ssl.create_default_context(cafile=peer.material.path("ca.pem"))
        if peer.chain.tls == "mutual":
            context.load_cert_chain(peer.material.path("client.both.pem"))
        connection = http.client.HTTPSConnection("localhost", peer.port, timeout=10, context=context)
    else:
        connection = http.client.HTTPConnection("localhost", peer.port, timeout=10)
    connection.request(load.method, path, body="x" * load.bytes if load.bytes else None, headers=shown | (headers or {}))
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body.decode(errors="replace")


def ready(peer, workload, load):
    """Whether it answers what it will be asked; until then a connection may be refused or reset."""
    try:
        return ask(peer, workload, load)[0] != 503
    except OSError:
        return False


def prove(peer, workload, load):
    """Checks one answer, and that nobody but the gateway says who the caller is; of one that decides nothing, the status."""
    proven = workload.saw and peer.decides
    forged = dict.fromkeys(workload.forged, "mallory") if proven else {}
    status, body = ask(peer, workload, load, forged)
    check(status == workload.status, f"{peer.name} answered {status}, not {workload.status}: {body[:300]}")
    if proven:
        check(workload.saw in body, f"{peer.name}: the origin saw {body.strip()!r}, not {workload.saw!r}")


def expected(peer, workload):
    """The status and, as a Lua pattern, the text of every answer; of many callers any may have been meant."""
    text = workload.saw if workload.saw and peer.decides else ""
    return workload.status, text.replace("-", "%-").replace("%-0 ", "%-%d+ ")


class Run:
    """A peer that takes part in a workload."""

    def __init__(self, peer, workload, load, plan):
        self.peer, self.workload, self.load, self.plan = peer, workload, load, plan
        self.scheme = "https" if peer.chain.tls else "http"
        self.runs = []

    def begin(self):
        """Starts it and brings its caches to where the workload begins; every answer of this is checked."""
        peer, workload = self.peer, self.workload
        peer.start()
        load = workload.before(peer.material) if workload.before else self.load
        # A million keys are read after it listens; of a limit of one request this is the one.
        within(machine.START, f"{peer.name} is ready", lambda: ready(peer, workload, load))
        prove(peer, workload, load)
        # What is beside the others for its own sake has no credentials to be shown, or so few that they are known at once.
        passes = workload.begins == "passed" and peer.chain == workload.chain and peer.decides
        if passes:
            load = generators.Load(**(asdict(load) | {"once": True}))
        # A pass ends by itself; a thousand connections take their time to be made.
        result = self._generate(load, 300 if passes else 1 + load.connections // 500, expected(peer, workload))
        check(not result.wrong, f"{peer.name}: {result.wrong} wrong answers, such as {result.fault}")
        self.bytes_each, self.checked = result.bytes_each, result.requests
        self.served = result.requests / result.seconds

    def measure(self, number, pace):
        if self.workload.begins == "cold" and number > 0:
            self.peer.stop()
            self.begin()
        prove(self.peer, self.workload, self.load)
        seen = {}
        pid = self.peer.process.pid
        # The bare proxy has nothing to reload: it says what the same costs without.
        reloads = self.workload.chain.reloads and self.peer.name != "bare"
        serving = self.peer.serving() if reloads else None
        looking = threading.Timer(self.plan.seconds * 0.7, lambda: seen.update(machine.memory(pid)))
        looking.start()
        before = machine.cost(pid)
        load = replace(self.load, pace=pace) if pace else self.load
        result = self._generate(load, self.plan.seconds, None, self._meanwhile(number))
        cost = machine.cost(pid).since(before)
        looking.cancel()
        looking.join()
        prove(self.peer, self.workload, self.load)
        self._check(result)
        if reloads:
            within(10, f"{self.peer.name} reloads", lambda: self.peer.serving() != serving)
        if pace:
            rate = result.requests / result.seconds
            check(rate > 0.9 * pace, f"{self.peer.name} was sent {rate:.0f} requests per second and not {pace:.0f}")
        each = 1e6 / result.requests
        figures = {
            "requests": result.requests,
            "seconds": result.seconds,
            "cpu_us": cost.cpu * each,
            "user_us": cost.user * each,
            "system_us": cost.system * each,
            "per_core_second": result.requests / cost.cpu if cost.cpu else None,
            # Those of processes that ended are not told.
            "switches": None if reloads else cost.switches / result.requests,
            "busy": 100 * cost.cpu / result.seconds / self.workload.share,
            "p50_us": result.p50,
            "p99_us": result.p99,
            "refused": result.refused,
            "errors": result.errors,
            **(seen or machine.memory(pid)),
        }
        self.runs.append({name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()})

    def _generate(self, load, seconds, expected=None, meanwhile=None):
        peer = self.peer
        return generators.run(
            peer.stage, self.plan.others, self.scheme, peer.port, load, seconds, peer.material, expected, meanwhile
        )

    def _meanwhile(self, number):
        if not self.workload.chain.reloads:
            return None
        return lambda second: self.peer.reload(number * 100 + second)

    def _check(self, result):
        """What the generator counts itself must be what was checked before: the statuses, and the length of the answers."""
        peer, workload = self.peer, self.workload
        if workload.chain.reloads:
            return
        right = result.requests - result.refused if workload.status < 400 else result.refused
        # nginx lets one in each minute: it has no longer time.
        allowed = 1 if workload.chain.exhausted else 0
        check(
            result.requests - right <= allowed, f"{peer.name}: {result.requests - right} of {result.requests} with another status"
        )
        check(result.errors == 0, f"{peer.name}: {result.errors} connections failed")
        if not result.spent:
            off = abs(result.bytes_each / self.bytes_each - 1)
            # What was read of answers that nobody waited for is counted as well: at most one for each connection, in each of the two runs.
            partly = self.load.connections * (1 / result.requests + 1 / self.checked)
            check(
                off < 0.02 + partly,
                f"{peer.name}: answers of {result.bytes_each:.0f} bytes, where those that were checked had {self.bytes_each:.0f}",
            )

    def summary(self):
        first = self.runs[0]
        medians = {}
        for name in first:
            values = [run[name] for run in self.runs if run[name] is not None]
            medians[name] = statistics.median(values) if values else None
        medians["idle_rss_kib"] = self.peer.idle["rss_kib"]
        medians["idle_pss_kib"] = self.peer.idle["pss_kib"]
        medians["errors"] = sum(run["errors"] for run in self.runs)
        medians["refused"] = sum(run["refused"] for run in self.runs)
        medians["least_busy"] = min(run["busy"] for run in self.runs)
        return medians


def run(workload, plan, material, tools):
    """All peers of a workload in turn; what they cost, and who was left out and why."""
    left_out, runs = {}, []
    with Stage() as stage:
        ports = origin(stage, material, plan.others)
        if workload.share < 1:
            check(workload.share == 0.5, "one process that spins leaves half of a core")
            stage.spawn("sh", "-c", "while :; do :; done", core=plan.core, log="spinning.log")
        load = workload.load(material)
        for kind in ALL:
            if plan.peers and kind.name not in plan.peers or not kind.takes_part(workload):
                continue
            if not tools.have(kind):
                if kind.name not in ("pingap", "edgeward_pgo"):
                    left_out[kind.name] = "not here"
                continue
            try:
                peer = kind(stage, workload.chain, ports, material, plan.core, tools)
                runs.append(Run(peer, workload, peer.sends(load), plan))
            except Unable as reason:
                left_out[kind.name] = str(reason)
        for one in list(runs):
            attempt(one, runs, left_out, one.begin)
        pace = workload.pace and workload.pace * min((one.served for one in runs), default=0)
        for number in range(plan.rounds):
            for one in list(runs):
                attempt(one, runs, left_out, one.measure, number, pace)
    peers = {one.peer.name: {"runs": one.runs, "median": one.summary()} for one in runs}
    result = {"name": workload.name, "title": workload.title, "peers": peers, "left_out": left_out, "ratios": report.ratios(peers)}
    return result | ({"pace": round(pace)} if pace else {})


def attempt(one, runs, left_out, step, *arguments):
    """A peer that fails is left out and said, the others go on; that the gateway itself fails ends everything."""
    try:
        step(*arguments)
    except Failure as failure:
        if one.peer.name == "edgeward":
            raise
        runs.remove(one)
        left_out[one.peer.name] = f"failed: {failure}"


def chosen(only):
    """The workloads of which a chosen word is the name, or with a star its beginning; all without a word."""
    for word in only:
        check(any(matches(word, workload.name) for workload in WORKLOADS), f"no workload is called {word}; LIST=1 names them")
    return [workload for workload in WORKLOADS if not only or any(matches(word, workload.name) for word in only)]


def matches(word, name):
    return name.startswith(word[:-1]) if word.endswith("*") else name == word


def words(name):
    """What an environment variable lists."""
    return re.split(r"[ ,]+", os.environ.get(name, "").strip()) if os.environ.get(name, "").strip() else []


def main():
    if os.environ.get("LIST"):
        for workload in WORKLOADS:
            print(f"{workload.name:24} {workload.title}")
        return 0
    core, others = cores()
    plan = Plan(
        int(os.environ.get("ROUNDS") or 5), int(os.environ.get("LOAD_SECONDS") or 4), core, others, words("ONLY"), words("PEERS")
    )
    tools = Tools.found()
    folder = Path(os.environ["LOAD_FOLDER"])
    workloads = chosen(plan.only)
    material = Material(folder / "material", tools.edgeward)
    began = datetime.datetime.now(datetime.UTC)
    facts = {
        "date": began.date().isoformat(),
        "machine": machine.describe(),
        "versions": versions(tools),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip(),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
    }
    print(
        f"{len(workloads)} workloads, {plan.rounds} rounds of {plan.seconds} s; gateways on core {core}, origin and load on {others}",
        flush=True,
    )
    # Each peer starts, is warmed up and takes its turns; what is signed or stored for the first time comes on top.
    minutes = len(workloads) * 5 * (plan.rounds * (plan.seconds + 0.7) + 3) / 60
    print(f"about {minutes:.0f} minutes", flush=True)
    results, failed = [], []
    for workload in workloads:
        try:
            result = run(workload, plan, material, tools) | facts
        except (Failure, OSError) as failure:
            # The others have their results all the same.
            failed.append(workload.name)
            print(f"\n{workload.name}: FAILED: {failure}", flush=True)
            continue
        results.append(result)
        print("\n" + report.table(result, BUSY), flush=True)
    if results:
        keep(results, folder, began)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed or not results else 0


def keep(results, folder, began):
    """The results of this run, and its chart, below the target directory; with KEEP=1 also into the project, beside those that stand."""
    kept = folder / "results" / f"{began:%Y-%m-%dT%H%M%S}.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(results, indent=1) + "\n")
    kept.with_suffix(".svg").write_text(chart.draw(results))
    print(f"\n{kept}\n{kept.with_suffix('.svg')}")
    if os.environ.get("KEEP"):
        for path in report.keep(ROOT, results, [workload.name for workload in WORKLOADS], BUSY):
            print(path)


if __name__ == "__main__":
    # Whoever ends us ends what we started: an exception unwinds through the stages.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(main())
    except Failure as failure:
        print(f"bench-load: {failure}", file=sys.stderr)
        sys.exit(1)
