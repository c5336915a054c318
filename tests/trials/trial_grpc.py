"""gRPC through the gateway: every kind of call, metadata, trailers and statuses, over TLS and in the clear."""

import json
import threading
from concurrent import futures
from queue import SimpleQueue

import grpc

import tokens
from certificates import Authority
from harness import check, equal, free_port, trial, within

LARGE = 2 * 1024 * 1024

# Set by the service when a caller that it waited for has gone.
GONE = threading.Event()


class Service(grpc.GenericRpcHandler):
    """Bytes in, bytes out; no generated code. Each call tells in its trailers who the gateway says is calling."""

    def service(self, call):
        handlers = {
            "/trial.Orders/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/trial.Orders/Count": grpc.unary_stream_rpc_method_handler(self.count),
            "/trial.Orders/Sum": grpc.stream_unary_rpc_method_handler(self.sum),
            "/trial.Orders/Talk": grpc.stream_stream_rpc_method_handler(self.talk),
            "/trial.Orders/Wait": grpc.unary_stream_rpc_method_handler(self.wait),
            "/trial.Orders/Fail": grpc.unary_unary_rpc_method_handler(self.fail),
        }
        return handlers.get(call.method)

    def unary(self, request, context):
        name_the_caller(context)
        return request

    def count(self, request, context):
        name_the_caller(context)
        for number in range(int(request)):
            yield str(number).encode()

    def sum(self, requests, context):
        name_the_caller(context)
        return str(sum(map(int, requests))).encode()

    def talk(self, requests, context):
        name_the_caller(context)
        for request in requests:
            yield request.upper()

    def wait(self, request, context):
        """Goes on until the caller has gone; a caller that goes at once keeps it from being asked to go on."""
        context.add_callback(GONE.set)
        yield b"here"
        GONE.wait(10)

    def fail(self, request, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "no order of this number")


def name_the_caller(context):
    seen = dict(context.invocation_metadata())
    caller = [("seen-" + name, seen[name]) for name in ("x-user-id", "x-scopes") if name in seen]
    context.set_trailing_metadata(caller)


def serve(stage, authority=None):
    """Starts the service; with an authority over TLS, as orders.internal."""
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Service()], options=[("grpc.max_receive_message_length", -1)])
    if authority:
        authority.issue("orders.internal", file="internal")
        pair = [(stage.folder / f"internal.{end}").read_bytes() for end in ("key", "pem")]
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([tuple(pair)]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    stage.at_end(lambda: server.stop(None).wait())
    return port


def world(stage, upstream):
    """A gateway with TLS in front of the upstream, a channel to it, and the metadata of a good caller."""
    keys = tokens.Keys()
    (stage.folder / "jwks.json").write_text(json.dumps(keys.public()))
    gateway = stage.gateway(
        {
            "tls": {"certificates": [{"chain": "edge.pem", "key": {"file": "edge.key"}}]},
            "upstreams": {"orders": upstream},
            "authenticators": {"issuer": {"jwt": {"issuer": tokens.ISSUER, "audiences": ["orders"], "keys": {"jwks_file": "jwks.json"}}}},
            "routes": [{"name": "grpc", "path": "/trial.Orders/{method}", "policy": {"authenticate": ["issuer"]}, "upstream": "orders"}],
        }
    )
    credentials = grpc.ssl_channel_credentials((stage.folder / "ca.pem").read_bytes())
    options = [
        ("grpc.ssl_target_name_override", "edge.test"),
        ("grpc.default_authority", "edge.test"),
        ("grpc.max_receive_message_length", -1),
        ("grpc.enable_http_proxy", 0),
    ]
    channel = grpc.secure_channel(f"127.0.0.1:{gateway.tls_port}", credentials, options)
    stage.at_end(channel.close)
    return channel, [("authorization", f"Bearer {tokens.by_pyjwt(keys, 'ES256', tokens.claims())}")]


def try_every_call(channel, good):
    unary = channel.unary_unary("/trial.Orders/Unary")
    answer, call = unary.with_call(b"hello", metadata=good + [("x-user-id", "mallory")], timeout=10)
    equal((answer, call.code()), (b"hello", grpc.StatusCode.OK), "unary")
    trailers = dict(call.trailing_metadata())
    equal((trailers.get("seen-x-user-id"), trailers.get("seen-x-scopes")), ("alice", "orders:read"), "who the service saw")
    large = bytes(range(256)) * (LARGE // 256)
    equal(unary(large, metadata=good, timeout=20), large, "a message larger than a flow-control window")
    stream = channel.unary_stream("/trial.Orders/Count")(b"1000", metadata=good, timeout=20)
    equal([int(number) for number in stream], list(range(1000)), "server streaming")
    equal(dict(stream.trailing_metadata()).get("seen-x-user-id"), "alice", "trailers of a stream")
    equal(channel.stream_unary("/trial.Orders/Sum")(iter([b"1", b"2", b"39"]), metadata=good, timeout=10), b"42", "client streaming")
    talk(channel, good)
    code, details = status(lambda: channel.unary_unary("/trial.Orders/Fail")(b"", metadata=good, timeout=10))
    equal((code, details), (grpc.StatusCode.NOT_FOUND, "no order of this number"), "the service's status")
    equal(status(lambda: unary(b"", timeout=10))[0], grpc.StatusCode.UNAUTHENTICATED, "without a credential")
    equal(status(lambda: unary(b"", metadata=[("authorization", "Bearer a.b.c")], timeout=10))[0], grpc.StatusCode.UNAUTHENTICATED, "with a bad one")
    equal(status(lambda: channel.unary_unary("/other/Unary")(b"", metadata=good, timeout=10))[0], grpc.StatusCode.UNIMPLEMENTED, "no route")
    GONE.clear()
    waiting = channel.unary_stream("/trial.Orders/Wait")(b"", metadata=good, timeout=20)
    equal(next(waiting), b"here", "a call that waits")
    waiting.cancel()
    check(GONE.wait(5), "a cancelled call does not reach the service")
    much = channel.stream_unary("/trial.Orders/Sum")
    equal(status(lambda: much(iter([b"1" * 60_000] * 50), timeout=10))[0], grpc.StatusCode.UNAUTHENTICATED, "much without a credential")
    many = [unary.future(b"%d" % number, metadata=good, timeout=20) for number in range(200)]
    equal([int(answer.result()) for answer in many], list(range(200)), "calls side by side on one connection")


def talk(channel, good):
    """Each answer is read before the next question is asked, so nothing on the way may wait for more."""
    questions = SimpleQueue()
    answers = channel.stream_stream("/trial.Orders/Talk")(iter(questions.get, None), metadata=good, timeout=20)
    for word in [b"one", b"two", b"three"]:
        questions.put(word)
        equal(next(answers), word.upper(), "a conversation")
    questions.put(None)
    equal(list(answers), [], "its end")
    equal(answers.code(), grpc.StatusCode.OK, "its status")


def status(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, None


@trial
def grpc_calls_of_every_kind_pass_over_tls_to_a_verified_upstream(stage):
    authority = Authority(stage.folder)
    authority.issue("edge.test", file="edge")
    port = serve(stage, authority)
    upstream = {"servers": [f"127.0.0.1:{port}"], "http2": True, "tls": {"server_name": "orders.internal", "ca": "ca.pem"}}
    channel, good = world(stage, upstream)
    try_every_call(channel, good)


@trial
def grpc_calls_of_every_kind_pass_to_an_upstream_in_the_clear(stage):
    authority = Authority(stage.folder)
    authority.issue("edge.test", file="edge")
    channel, good = world(stage, {"servers": [f"127.0.0.1:{serve(stage)}"], "http2": True})
    try_every_call(channel, good)


@trial
def a_grpc_upstream_with_another_name_or_authority_is_never_spoken_to(stage):
    authority = Authority(stage.folder)
    authority.issue("edge.test", file="edge")
    port = serve(stage, authority)
    (stage.folder / "other").mkdir()
    Authority(stage.folder / "other")
    for wrong in [{"server_name": "billing.internal", "ca": "ca.pem"}, {"server_name": "orders.internal", "ca": "other/ca.pem"}]:
        channel, good = world(stage, {"servers": [f"127.0.0.1:{port}"], "http2": True, "tls": wrong})
        unary = channel.unary_unary("/trial.Orders/Unary")
        equal(status(lambda: unary(b"secret", metadata=good, timeout=10))[0], grpc.StatusCode.UNAVAILABLE, str(wrong))


@trial
def a_grpc_service_that_dies_is_unavailable_and_is_found_again(stage):
    authority = Authority(stage.folder)
    authority.issue("edge.test", file="edge")
    port = free_port()
    channel, good = world(stage, {"servers": [f"127.0.0.1:{port}"], "http2": True})
    unary = channel.unary_unary("/trial.Orders/Unary")
    equal(status(lambda: unary(b"", metadata=good, timeout=10))[0], grpc.StatusCode.UNAVAILABLE, "before it starts")
    for _ in range(2):
        server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Service()])
        equal(server.add_insecure_port(f"127.0.0.1:{port}"), port, "the port")
        server.start()
        within(5, "it is found", lambda: status(lambda: unary(b"", metadata=good, timeout=10))[0] == grpc.StatusCode.OK)
        server.stop(None).wait()
        check(status(lambda: unary(b"", metadata=good, timeout=10))[0] == grpc.StatusCode.UNAVAILABLE, "after it ends")
