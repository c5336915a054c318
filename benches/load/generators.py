"""The load: wrk for most, h2load for HTTP/2 and for a rate, ab where callers show certificates, which wrk cannot."""

import csv
import json
import re
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from machine import check

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Load:
    """What is sent."""

    connections: int = 64
    method: str = "GET"
    path: str = "/orders/7"
    headers: dict = field(default_factory=dict)
    # The length of the body.
    bytes: int = 0
    # A file with one credential on each line, which goes into this header behind this prefix.
    lines: Path | None = None
    header: str = ""
    prefix: str = ""
    # Or, where this is true, one path on each line.
    paths: bool = False
    # Each line is sent once, and then the run ends.
    once: bool = False
    tool: str = "wrk"
    # Spoken by h2load, which speaks HTTP/1.1 as well.
    http2: bool = False
    # A new connection for each request.
    close: bool = False
    streams: int = 8
    # Requests per second in all; without it, the next is sent when the one before is answered.
    pace: float | None = None

    def first(self):
        """The path and the headers of the first request."""
        headers, path = dict(self.headers), self.path
        if self.lines:
            with open(self.lines) as lines:
                line = lines.readline().strip()
            if self.paths:
                path = line
            else:
                headers[self.header] = self.prefix + line
        return path, headers


@dataclass
class Result:
    """What the generator counted. Latencies are in microseconds; None is what it does not say."""

    requests: int
    seconds: float
    refused: int
    errors: int
    bytes_each: float
    p50: float | None
    p99: float | None
    wrong: int = 0
    fault: str = ""
    spent: bool = False


def run(stage, core, scheme, port, load, seconds, material, expected=None, meanwhile=None):
    """One run; with `expected`, a status and a text, every answer is checked. `meanwhile` is called once a second with its number."""
    run_it = {"wrk": wrk, "h2load": h2load, "ab": ab}[load.tool]
    ended = threading.Event()

    def accompany():
        number = 0
        while not ended.wait(1.0):
            number += 1
            meanwhile(number)

    companion = threading.Thread(target=accompany) if meanwhile else None
    if companion:
        companion.start()
    try:
        return run_it(stage, core, f"{scheme}://localhost:{port}", load, seconds, material, expected)
    finally:
        ended.set()
        if companion:
            companion.join()


def wrk(stage, core, url, load, seconds, _, expected):
    status, text = expected or (0, "")
    spent = stage.folder / "spent"
    spent.unlink(missing_ok=True)
    headers = load.headers | ({"Connection": "close"} if load.close else {})
    plan = {
        "method": load.method,
        "path": load.path,
        "bytes": load.bytes,
        "lines": str(load.lines) if load.lines else None,
        "header": load.header,
        "prefix": load.prefix,
        "paths": load.paths,
        "once": load.once,
        "spent": str(spent),
        "check": expected is not None,
        "status": status,
        "text": text,
    }
    fields = [f"{name} = {json.dumps(value)}" for name, value in plan.items() if value is not None]
    pairs = ", ".join(f"[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items())
    stage.write("plan.lua", f"return {{ {', '.join(fields)}, headers = {{ {pairs} }} }}\n")
    command = ["wrk", "-t1", f"-c{load.connections}", f"-d{seconds}s", "--timeout", "10s", "--latency", "-s", HERE / "wrk.lua"]
    said = capture(stage, core, [*command, url, "--", stage.folder / "plan.lua"], seconds, spent if load.once else None)
    found = re.search(r"^RESULT (.*)$", said, re.M)
    check(found, f"wrk said no result: {said[-1000:]}")
    numbers = {name: int(value) for name, value in (pair.split("=") for pair in found[1].split())}
    check(numbers["requests"], f"wrk had no answer: {said[-600:]}")
    return Result(
        requests=numbers["requests"],
        seconds=numbers["micros"] / 1e6,
        refused=numbers["refused"],
        errors=numbers["connect"] + numbers["read"] + numbers["write"] + numbers["timeout"],
        bytes_each=numbers["bytes"] / numbers["requests"],
        p50=numbers["p50"],
        p99=numbers["p99"],
        wrong=numbers["wrong"],
        fault=re.search(r"^FAULT (.*)$", said, re.M)[1],
        spent=spent.exists(),
    )


def h2load(stage, core, url, load, seconds, _, expected):
    log = stage.folder / "h2load.log"
    log.unlink(missing_ok=True)
    path, headers = load.first()
    command = ["h2load", "-t1", f"-c{load.connections}", f"-D{seconds}", f"--log-file={log}"]
    # Without -m1 it would send the next over HTTP/1.1 before it has the answer.
    command += [f"-m{load.streams}"] if load.http2 else ["--h1", "-m1"]
    if load.pace:
        command += [f"--rps={load.pace / load.connections:.3f}"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    if load.bytes:
        command += ["-d", stage.write("h2load.body", "x" * load.bytes)]
    said = capture(stage, core, [*command, url + path], seconds)
    counts = re.search(r"^requests: .*?(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", said, re.M)
    statuses = re.search(r"^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", said, re.M)
    finished = re.search(r"^finished in ([\d.]+)(m?s)", said, re.M)
    check(counts and statuses and finished and int(statuses[1]), f"h2load said no result: {said[-1000:]}")
    traffic = re.search(r"\((\d+)\) data$", said, re.M)
    times = sorted(int(row[2]) for row in csv.reader(log.read_text().splitlines(), delimiter="\t"))
    requests = sum(int(statuses[group]) for group in range(1, 5))
    return Result(
        requests=requests,
        seconds=float(finished[1]) / (1000 if finished[2] == "ms" else 1),
        refused=requests - int(statuses[1]),
        errors=int(counts[4]) + int(counts[5]),
        bytes_each=int(traffic[1]) / requests if traffic else 0,
        p50=times[len(times) // 2] if times else None,
        p99=times[len(times) * 99 // 100] if times else None,
    )


def ab(stage, core, url, load, seconds, material, expected):
    path, headers = load.first()
    times = stage.folder / "ab.csv"
    command = [
        "ab",
        "-q",
        "-l",
        "-t",
        seconds,
        "-n",
        10_000_000,
        "-c",
        load.connections,
        "-E",
        material.path("client.both.pem"),
        "-e",
        times,
    ]
    if not load.close:
        command += ["-k"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    said = capture(stage, core, [*command, url + path], seconds)

    def number(what):
        found = re.search(rf"^{what}:\s+([\d.]+)", said, re.M)
        return float(found[1]) if found else 0

    requests = int(number("Complete requests"))
    check(requests, f"ab had no answer: {said[-1000:]}")
    if not load.close:
        check(number("Keep-Alive requests") >= requests * 0.99, f"connections were not kept: {said[-1500:]}")
    percentiles = {int(row[0]): float(row[1]) * 1000 for row in list(csv.reader(times.read_text().splitlines()))[1:]}
    return Result(
        requests=requests,
        seconds=number("Time taken for tests"),
        refused=int(number("Non-2xx responses")),
        errors=int(number("Failed requests")),
        bytes_each=number("Total transferred") / requests,
        p50=percentiles.get(50),
        p99=percentiles.get(99),
    )


def capture(stage, core, command, seconds, spent=None):
    """What a generator prints. One whose lines are spent is told to end early."""
    log = "generator.log"
    (stage.folder / log).unlink(missing_ok=True)
    process = stage.spawn(*command, core=core, log=log)
    deadline = time.monotonic() + seconds + 60
    while process.poll() is None:
        check(time.monotonic() < deadline, f"{command[0]} does not end")
        if spent and spent.exists():
            process.send_signal(signal.SIGINT)
            spent = None
        time.sleep(0.01)
    stage.stop(process)
    said = (stage.folder / log).read_text(errors="replace")
    check(process.returncode == 0, f"{command[0]} ended with {process.returncode}: {said[-600:]}")
    return said
