"""Many streams on one connection (h2load), and connections that become WebSockets (websockets)."""

import json
import re
import socket
import ssl
import threading

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve

import tokens
from certificates import Authority
from harness import Failure, check, equal, free_port, trial

REQUESTS = 3000


def world(stage, upstream):
    """A gateway with a plain and a TLS listener, and the token of a good caller."""
    Authority(stage.folder).issue("edge.test", file="edge")
    keys = tokens.Keys()
    (stage.folder / "jwks.json").write_text(json.dumps(keys.public()))

    def route(name, **more):
        return {"name": name, "path": f"/{name}", "policy": {"authenticate": ["issuer"]}, "upstream": "origin"} | more

    gateway = stage.gateway(
        {
            "tls": {"certificates": [{"chain": "edge.pem", "key": {"file": "edge.key"}}]},
            "upstreams": {"origin": upstream},
            "authenticators": {
                "issuer": {
                    "jwt": {
                        "issuer": tokens.ISSUER,
                        "audiences": ["orders"],
                        "keys": {"jwks_file": "jwks.json"},
                        "from": [{"header": "Authorization", "scheme": "Bearer"}, {"query": "access_token"}],
                    }
                }
            },
            "routes": [route("talk", websocket=True), route("plain")],
        }
    )
    return gateway, tokens.by_pyjwt(keys, "ES256", tokens.claims()), keys


@trial
def h2load_gets_only_2xx_from_a_protected_route_over_tls(stage):
    gateway, token, _ = world(stage, {"builtin": "echo"})

    def load(*options):
        command = ["h2load", "-n", REQUESTS, "-c", 10, "-m", 20, f"--connect-to=127.0.0.1:{gateway.tls_port}"]
        said = stage.run(*command, *options, f"https://edge.test:{gateway.tls_port}/plain")
        return list(map(int, re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", said).groups())), said

    good = ["-H", f"authorization: Bearer {token}"]
    for options, wanted in [(good, [REQUESTS, 0, 0, 0]), ([], [0, 0, REQUESTS, 0]), ([*good, "--h1", "-m", 1], [REQUESTS, 0, 0, 0])]:
        codes, said = load(*options)
        check(codes == wanted, f"2xx to 5xx: wanted {wanted}, got {codes}: {said}")


class Origin:
    """A WebSocket service: it sends back what it gets, after telling the path and who the gateway says is calling."""

    def __init__(self, stage):
        self.port = free_port()
        self.opened = 0
        self._server = serve(self._serve, "127.0.0.1", self.port, max_size=None)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        stage.at_end(self._server.shutdown)

    def _serve(self, connection):
        self.opened += 1
        headers = connection.request.headers
        connection.send(json.dumps({"path": connection.request.path, "user": headers.get("X-User-Id"), "upgrade": headers.get("Upgrade")}))
        for message in connection:
            if message == "bye":
                connection.close(4001, "as you say")
                return
            connection.send(message)


def converse(stage, gateway, token, secure):
    """A whole conversation, from the handshake to the close."""
    scheme, port = ("wss", gateway.tls_port) if secure else ("ws", gateway.port)
    options = {"ssl": ssl.create_default_context(cafile=stage.folder / "ca.pem"), "server_hostname": "edge.test"} if secure else {}
    headers = {"Authorization": f"Bearer {token}", "X-User-Id": "mallory"}
    uri = f"{scheme}://edge.test:{port}/talk?room=7"
    options["sock"] = socket.create_connection(("127.0.0.1", port), 10)
    with connect(uri, additional_headers=headers, max_size=None, proxy=None, **options) as connection:
        seen = json.loads(connection.recv(10))
        equal(seen, {"path": "/talk?room=7", "user": "alice", "upgrade": "websocket"}, "what the service saw")
        for message in ["text", b"bytes", "long " * 50_000, bytes(1024 * 1024)]:
            connection.send(message)
            check(connection.recv(10) == message, f"the echo of {message[:10]!r}")
        check(connection.ping().wait(10), "a pong")
        connection.send("bye")
        try:
            connection.recv(10)
            raise Failure("the service closed, and the connection is open")
        except ConnectionClosed as closed:
            equal((closed.rcvd.code, closed.rcvd.reason), (4001, "as you say"), "the service's close")


@trial
def a_websocket_passes_messages_both_ways_with_and_without_tls(stage):
    origin = Origin(stage)
    gateway, token, _ = world(stage, {"servers": [f"127.0.0.1:{origin.port}"]})
    converse(stage, gateway, token, secure=False)
    converse(stage, gateway, token, secure=True)
    with connect(f"ws://127.0.0.1:{gateway.port}/talk?access_token={token}", proxy=None) as connection:
        seen = json.loads(connection.recv(10))
        equal((seen["user"], seen["path"]), ("alice", "/talk"), "a credential in the query, which a browser can send, and which is stripped")


@trial
def a_websocket_handshake_is_judged_as_any_request_is(stage):
    origin = Origin(stage)
    gateway, token, keys = world(stage, {"servers": [f"127.0.0.1:{origin.port}"]})
    expired = tokens.by_pyjwt(keys, "ES256", tokens.claims(exp=1_000_000_000))
    for path, credential, status in [
        ("talk", None, 401),
        ("talk", expired, 401),
        ("talk", tokens.tampered(token), 401),
        ("plain", None, 401),
        ("none", token, 404),
    ]:
        equal(handshake(gateway, path, credential), status, f"{path} with {credential}")
    equal(origin.opened, 0, "connections that the service saw")


@trial
def a_route_that_does_not_say_websocket_upgrades_nothing(stage):
    origin = Origin(stage)
    gateway, token, _ = world(stage, {"servers": [f"127.0.0.1:{origin.port}"]})
    # The service is asked without the upgrade, and says that it serves nothing else.
    equal(handshake(gateway, "plain", token), 426, "the service's answer")
    equal(origin.opened, 0, "connections that the service saw")


def handshake(gateway, path, token):
    """The status that a handshake is answered with."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with connect(f"ws://127.0.0.1:{gateway.port}/{path}", additional_headers=headers, proxy=None):
            return 101
    except InvalidStatus as refusal:
        return refusal.response.status_code
