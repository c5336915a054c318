"""What every trial stands on: child processes that end with it, free ports, the gateway, and checks that say what was expected."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import time
import traceback
from pathlib import Path

import httpx

HERE = Path(__file__).parent
GATEWAY = os.environ["EDGEWARD_BIN"]

# Trials end early when a check fails, so these only say how long a broken gateway may keep us waiting.
START = 20.0
STOP = 10.0

# How a JWT begins, and an API key up to where its secret begins.
CREDENTIAL = re.compile(r"eyJ[\w-]+\.|ck_live_\w+_")

TRIALS = []


def trial(function):
    """Registers a trial. It passes when it returns, and its name is the sentence that it proves."""
    TRIALS.append(function)
    return function


class Failure(Exception):
    """The gateway did otherwise than it should."""


def check(condition, what):
    if not condition:
        raise Failure(what)


def equal(got, wanted, what):
    check(got == wanted, f"{what}: wanted {wanted!r}, got {got!r}")


def refused(response, status, code):
    """Checks that an answer is the contract's refusal: the status, and problem details with the code and a request id."""
    got = f"{response.status_code} {response.text[:300]!r}"
    check(response.status_code == status, f"wanted {status} {code}, got {got}")
    equal(response.headers.get("content-type"), "application/problem+json", "content type of a refusal")
    problem = response.json()
    check(problem["code"] == code, f"wanted the code {code}, got {got}")
    equal(problem["status"], status, "status in the body")
    equal(problem["request_id"], response.headers.get("x-request-id"), "request id in the body")
    if status == 401:
        check("www-authenticate" in response.headers, "a 401 without a challenge")
    if status == 503:
        check("retry-after" in response.headers, "a 503 without Retry-After")
    return problem


def served(response):
    """Checks that the built-in echo answered, and returns the headers that it saw."""
    check(response.status_code == 200, f"wanted 200, got {response.status_code} {response.text[:300]!r}")
    return response.json()["headers"]


def within(seconds, what, attempt):
    """The first true value of `attempt`, and how long it took; it must come within this time."""
    began = time.monotonic()
    while True:
        result = attempt()
        took = time.monotonic() - began
        check(took <= seconds, f"{what}: not within {seconds} s")
        if result:
            return result, took
        time.sleep(0.02)


def bearer(token):
    return {"authorization": f"Bearer {token}"}


handed_out = set()


def free_port():
    """A port that nobody listens on, another each time. Below those that the system gives to outgoing connections, one of which could
    have it before it is bound again."""
    while True:
        port = random.randrange(15_000, 32_000)
        if port not in handed_out:
            handed_out.add(port)
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                    return port
                except OSError:
                    continue


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def holds(port):
    """Whether a connection is made and kept: until the gateway listens for good it holds its ports, and what reaches them is reset."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return False
        probe.settimeout(0.03)
        try:
            probe.recv(1)
        except TimeoutError:
            return True
        except OSError:
            pass
        return False


class Stage:
    """The place of one trial: a folder of its own, and processes that end when it does."""

    def __init__(self, name):
        self._folder = tempfile.TemporaryDirectory(prefix="edgeward-trial-")
        self.folder = Path(self._folder.name)
        self.name = name
        self._processes = []
        self._endings = []

    def spawn(self, *command, log, **options):
        """Starts a process whose output goes to a file of the trial's folder."""
        with open(self.folder / log, "ab") as output:
            options = {"stdout": output, "stderr": output, "start_new_session": True} | options
            process = subprocess.Popen([str(part) for part in command], **options)
        self._processes.append(process)
        return process

    def attempt(self, *command, **options):
        """Runs a command to its end, well or badly."""
        options = {"capture_output": True, "text": True, "timeout": 60} | options
        return subprocess.run([str(part) for part in command], check=False, **options)

    def run(self, *command, **options):
        """Runs a command to its end and returns what it printed; it must succeed."""
        done = self.attempt(*command, **options)
        check(done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def gateway(self, config, **options):
        gateway = Gateway(self, config, **options)
        self._endings.append(gateway.close)
        return gateway

    def at_end(self, action):
        """Has this done when the trial ends."""
        self._endings.append(action)

    def end(self, gateway):
        """Stops a gateway before the trial ends."""
        self._endings.remove(gateway.close)
        gateway.close()

    def close(self):
        """Ends everything, the last started first. A gateway that ends badly is a failure."""
        try:
            while self._endings:
                self._endings.pop()()
        finally:
            for process in self._processes:
                kill(process)
            self._folder.cleanup()

    def logs(self):
        """The ends of all logs, for the report of a failure."""
        parts = []
        for log in sorted(self.folder.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-40:]
            parts.append(f"--- {log.name}\n" + "\n".join(line[:400] for line in lines))
        return "\n".join(parts)


def kill(process):
    """Ends a process and those it started, at once."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Gateway:
    """A running `edgeward run`, with one plain listener unless the configuration brings its own."""

    def __init__(self, stage, config, env=None, log="edgeward.log"):
        self.stage = stage
        self.file = stage.folder / "edgeward.yaml"
        self.log = stage.folder / log
        self.port = free_port()
        self.tls_port = free_port()
        self.admin_port = free_port()
        self.environment = os.environ | {"RUST_BACKTRACE": "0"} | (env or {})
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10, trust_env=False)
        self.configure(config)
        self.start()

    def start(self):
        """Starts the process, or another one in its place when it was killed."""
        # The access log is a file of its own: it is long, and it is not what went wrong.
        with open(self.stage.folder / "access.json", "ab+") as access:
            self._drop_half_a_line(access)
            self.process = self.stage.spawn(GATEWAY, "run", "-c", self.file, log=self.log.name, stdout=access, env=self.environment)
        within(START, "the gateway starts", self._up)

    def configure(self, config):
        """Writes the configuration as JSON, which is YAML; in one rename, as careful editors do."""
        listeners = [{"address": f"127.0.0.1:{self.port}"}]
        self.ports = [self.port] + ([self.tls_port] if "tls" in config else [])
        if "tls" in config:
            listeners.append({"address": f"127.0.0.1:{self.tls_port}", "tls": config["tls"]})
        rest = {name: value for name, value in config.items() if name != "tls"}
        whole = {"listeners": listeners, "admin": {"address": f"127.0.0.1:{self.admin_port}"}} | rest
        self.write(json.dumps(whole, indent=1))

    def write(self, text):
        beside = self.file.with_suffix(".new")
        beside.write_text(text)
        beside.rename(self.file)

    def reload(self):
        self.process.send_signal(signal.SIGHUP)

    def command(self, *arguments):
        """What an `edgeward` command on this configuration prints."""
        return self.stage.run(GATEWAY, *arguments, env=self.environment)

    def get(self, path, **options):
        return self.client.get(path, **options)

    def metric(self, name):
        """The sum of a metric over its labels; fails where there is none of this name."""
        text = httpx.get(f"http://127.0.0.1:{self.admin_port}/metrics", trust_env=False).text
        values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        check(values, f"there is no metric {name}")
        return sum(map(float, values))

    def close(self):
        """Stops the process as an operator does, and checks how it went."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"the gateway still runs {STOP} s after SIGTERM") from error
        check(code == 0, f"the gateway ended with {code}")
        told = self.log.read_text(errors="replace")
        check("panicked" not in told, "the gateway panicked")
        with open(self.stage.folder / "access.json") as access:
            for line in access:
                json.loads(line)
                check(not CREDENTIAL.search(line), f"a credential in the access log: {line}")
        check(not CREDENTIAL.search(told), "a credential in the log")

    @staticmethod
    def _drop_half_a_line(access):
        """What a killed process was about to write when it was."""
        access.seek(0)
        access.truncate(access.read().rfind(b"\n") + 1)

    def _up(self):
        check(self.process.poll() is None, f"the gateway ended at its start with {self.process.poll()}")
        return listens(self.admin_port) and all(holds(port) for port in self.ports)


def run(chosen):
    """Runs the trials whose names contain one of the chosen words, or all; the exit code says whether all passed."""
    passed = failed = 0
    for function in TRIALS:
        words = function.__name__.replace("_", " ")
        if chosen and not any(word in f"{function.__module__} {words}" for word in chosen):
            continue
        began = time.monotonic()
        stage = Stage(function.__name__)
        problems = []
        try:
            function(stage)
        except Exception as error:
            problems.append(describe(error))
        logs = stage.logs() if problems else ""
        try:
            stage.close()
        except Exception as error:
            problems.append(describe(error))
        took = time.monotonic() - began
        if problems:
            failed += 1
            print(f"FAILED {words} ({took:.1f} s)\n{logs}\n" + "\n".join(f"  >> {problem}" for problem in problems), flush=True)
        else:
            passed += 1
            print(f"passed {words} ({took:.1f} s)", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


def describe(error):
    if isinstance(error, Failure):
        where = traceback.extract_tb(error.__traceback__)
        at = next((frame for frame in reversed(where) if frame.name not in CHECKS), where[-1])
        return f"{error} ({Path(at.filename).name}:{at.lineno})"
    return "".join(traceback.format_exception(error))


CHECKS = {"check", "equal", "refused", "served", "within"}
