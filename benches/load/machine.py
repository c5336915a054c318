"""The machine: which cores, free ports, child processes that end with us, and what they cost as the kernel accounts it."""

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")

# How long a peer may take to serve: a million keys are read first.
START = 300.0

# The longest that a gateway takes to write down what it was seen to do, in seconds.
PROFILE = 10.0


class Failure(Exception):
    """Something did otherwise than it should, and its figures would say nothing."""


def check(condition, what):
    if not condition:
        raise Failure(what)


def cores():
    """The core of the gateways, and those of the origin and the load, as `taskset -c` takes them."""
    free = sorted(os.sched_getaffinity(0))
    check(len(free) >= 2, "it takes two cores: one for the gateway, the others for the origin and the load")
    gateway = int(os.environ.get("GATEWAY_CORE") or free[-1])
    others = [core for core in free if core != gateway]
    return str(gateway), os.environ.get("LOAD_CORES") or ",".join(map(str, others))


handed_out = set()


def free_port():
    """A port that nobody listens on, another each time: the system may hand out the same one twice before it is bound again."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in handed_out:
            handed_out.add(port)
            return port


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def within(seconds, what, attempt):
    """The first true value of `attempt`, which must come within this time."""
    deadline = time.monotonic() + seconds
    while not (result := attempt()):
        check(time.monotonic() <= deadline, f"{what}: not within {seconds} s")
        time.sleep(0.02)
    return result


def environment():
    """Ours without what would change what is measured: backtraces made refusals nine times dearer once."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RUST_")}


class Stage:
    """The place of one workload: a folder of its own, and processes that end when it does."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="edgeward-load-")
        self.folder = Path(self._folder.name)
        self.folder.chmod(0o755)
        self._processes = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self._processes):
            end(process)
        self._folder.cleanup()

    def write(self, name, text):
        """Writes a file whole or not at all, as a gateway that watches it wants."""
        path = self.folder / name
        beside = path.with_name(path.name + ".new")
        beside.write_text(text)
        beside.rename(path)
        return path

    def spawn(self, *command, core, log, stdout=None):
        """Starts a process on these cores, in a group of its own; what it says goes to a log of the stage."""
        with open(self.folder / log, "ab") as output:
            command = ["taskset", "-c", core, *map(str, command)]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout or output, stderr=output, start_new_session=True, env=environment()
            )
        self._processes.append(process)
        return process

    def stop(self, process):
        self._processes.remove(process)
        end(process)

    def said(self, log):
        """The end of a log, for the report of a failure."""
        path = self.folder / log
        lines = path.read_text(errors="replace").splitlines()[-15:] if path.exists() else []
        return "\n".join(line[:400] for line in lines)


def end(process):
    """Ends a process and those it started, at once: they hold nothing that is worth keeping, but for a profile where one is asked for."""
    if "LLVM_PROFILE_FILE" in os.environ:
        process.terminate()
        try:
            process.wait(PROFILE)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


@dataclass(frozen=True)
class Cost:
    """What a tree of processes has cost so far."""

    user: float
    system: float
    switches: int

    def since(self, before):
        return Cost(self.user - before.user, self.system - before.system, self.switches - before.switches)

    @property
    def cpu(self):
        return self.user + self.system


def tree(pid):
    """The process and those that come from it."""
    found = [pid]
    for known in found:
        try:
            for task in os.listdir(f"/proc/{known}/task"):
                found += map(int, Path(f"/proc/{known}/task/{task}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def cost(pid):
    """Of all threads, those that ended included, and of children that ended and were waited for."""
    user = system = switches = 0
    for member in tree(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rsplit(")", 1)[1].split()
            statuses = [Path(f"/proc/{member}/task/{task}/status").read_text() for task in os.listdir(f"/proc/{member}/task")]
        except (FileNotFoundError, ProcessLookupError):
            continue
        # proc(5): utime, stime, cutime, cstime are the fields 14 to 17; the state, here the first, is the third.
        user += int(fields[11]) + int(fields[13])
        system += int(fields[12]) + int(fields[14])
        switches += sum(int(number) for status in statuses for number in re.findall(r"ctxt_switches:\s+(\d+)", status))
    return Cost(user / TICK, system / TICK, switches)


def memory(pid):
    """Resident and proportional memory of the tree, in KiB."""
    rss = pss = 0
    for member in tree(pid):
        try:
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        rss += int(re.search(r"^Rss:\s+(\d+)", rollup, re.M)[1])
        pss += int(re.search(r"^Pss:\s+(\d+)", rollup, re.M)[1])
    return {"rss_kib": rss, "pss_kib": pss}


def describe():
    """The machine, for the record."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    system = re.search(r'^PRETTY_NAME="?([^"\n]+)', Path("/etc/os-release").read_text(), re.M)
    return {
        "cpu": cpu[1] if cpu else os.uname().machine,
        "cores": os.cpu_count(),
        "kernel": os.uname().release,
        "system": system[1] if system else os.uname().sysname,
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
    }
