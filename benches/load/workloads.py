"""What is measured: each workload is a chain of checks, what is sent, and what the answer and the origin must show."""

from collections.abc import Callable
from dataclasses import dataclass

from generators import Load
from material import CLIENT
from peers import Chain

SUBJECT = "subject=user-0 consumer=app token= key= "
CONSUMER = "consumer=consumer-0 token= key= "
ALONE = "subject=user-0 "
CERTIFICATE = f"{CLIENT} consumer="


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    chain: Chain
    # What is sent, of the material.
    load: Callable
    status: int = 200
    # What the origin saw, as its answer says: of the first credential where there are many. None: nothing was to be proven.
    saw: str | None = None
    # Headers that the caller may not set: each gateway sets them itself, so what came in under these names must be gone.
    forged: tuple = ()
    # How the caches begin: "warm" after a second of the same, "passed" after each credential was shown once, "cold" anew for each run.
    begins: str = "warm"
    # What the warm-up sends instead, where the load itself would spoil what is measured.
    before: Callable | None = None
    # How much of its core a gateway has. Less than all where the load cannot keep it at work: one that waits falls asleep, and to be
    # woken would be half of what is measured.
    share: float = 1
    # All are sent as many requests in a second: this part of what the slowest served while it was warmed up. For latency where not the
    # gateway is what limits.
    pace: float | None = None


def plain(**changes):
    return lambda material: Load(**changes)


def bearer(token, **changes):
    """One token; `token` takes it from the material."""
    return lambda material: Load(headers={"Authorization": f"Bearer {token(material)}"}, **changes)


def tokens(algorithm, count, **changes):
    def load(material):
        return Load(lines=material.tokens(algorithm, count), header="Authorization", prefix="Bearer ", **changes)

    return load


def keys(count):
    return lambda material: Load(lines=material.some_keys(count), header="X-API-Key")


def paths(count):
    return lambda material: Load(lines=material.route_paths(count), paths=True)


def one(algorithm):
    return lambda material: material.token(algorithm)


def opaque(count):
    """Opaque tokens: where each is asked about there are many, since those who ask about the same one at once may share the answer."""
    return lambda material: Load(lines=material.opaque(count), header="Authorization", prefix="Bearer ")


BOTH = ("X-User-Id", "X-Consumer-Id")
GUARDED = {"guarded": True}
MANY = 100_000

GRPC = {
    "tool": "h2load",
    "http2": True,
    "connections": 16,
    "method": "POST",
    "path": "/upload",
    "bytes": 64,
    "headers": {"content-type": "application/grpc", "te": "trailers"},
}
PROVEN = {"saw": SUBJECT, "forged": BOTH}
UPLOAD = {"method": "POST", "path": "/upload", "bytes": 64 * 1024}

WORKLOADS = [
    Workload("plain", "plain proxying, 100-byte answers", Chain(), plain()),
    Workload("ip_rules_limit", "IP allow-list and a limit per address", Chain(**GUARDED), plain()),
    *(
        Workload(
            f"api_key_{count}",
            f"+ API key among {count:,}",
            Chain(**GUARDED, credential="api_key", keys=count),
            keys(count),
            saw=CONSUMER,
            forged=BOTH[1:],
            begins="passed" if count > 10 else "warm",
        )
        for count in (10, 1_000_000)
    ),
    *(
        workload
        for algorithm in ("RS256", "ES256")
        for chain in [Chain(**GUARDED, credential="jwt", algorithm=algorithm)]
        for name in [f"jwt_{algorithm.lower()}"]
        for workload in (
            Workload(name, f"+ JWT {algorithm}, one token", chain, bearer(one(algorithm)), saw=SUBJECT, forged=BOTH),
            Workload(
                f"{name}_10000",
                f"+ JWT {algorithm}, 10,000 tokens",
                chain,
                tokens(algorithm, 10_000),
                saw=SUBJECT,
                forged=BOTH,
                begins="passed",
            ),
            Workload(
                f"{name}_100000",
                f"+ JWT {algorithm}, 100,000 tokens",
                chain,
                tokens(algorithm, MANY),
                saw=SUBJECT,
                forged=BOTH,
                begins="passed",
            ),
            Workload(
                f"{name}_cold",
                f"+ JWT {algorithm}, each token once",
                chain,
                tokens(algorithm, MANY, once=True),
                saw=SUBJECT,
                forged=BOTH,
                begins="cold",
                before=bearer(one(algorithm)),
            ),
        )
    ),
    *(
        Workload(f"refused_{name}", f"refused: {title}", Chain(**GUARDED, credential="jwt", refuses=401), load, status=401)
        for name, title, load in (
            ("missing", "no credential", plain()),
            ("expired", "expired JWT", bearer(lambda material: material.expired("RS256"))),
            ("signature", "JWT with a bad signature", bearer(lambda material: material.forged("RS256"))),
        )
    ),
    Workload("refused_limit", "refused: over the limit", Chain(exhausted=True, refuses=429), plain(), status=429),
    Workload("introspection", "introspection, remembered", Chain(credential="introspection"), opaque(1), saw=SUBJECT, forged=BOTH),
    Workload(
        "introspection_each",
        "introspection of each request",
        Chain(credential="introspection", cached=False),
        opaque(10_000),
        saw=SUBJECT,
        forged=BOTH,
    ),
    Workload("external", "external authorizer, remembered", Chain(credential="external"), opaque(1), saw=ALONE),
    Workload(
        "external_each",
        "external authorizer of each request",
        Chain(credential="external", cached=False),
        opaque(10_000),
        saw=ALONE,
    ),
    Workload("tls", "TLS, connections kept", Chain(tls="server"), plain()),
    Workload("tls_handshakes", "TLS, a handshake each", Chain(tls="server"), plain(tool="ab", close=True, connections=32), share=0.5),
    Workload(
        "mutual_tls",
        "mutual TLS, connections kept",
        Chain(tls="mutual", credential="certificate"),
        plain(tool="ab", connections=32),
        saw=CERTIFICATE,
        forged=BOTH[:1],
    ),
    Workload(
        "mutual_tls_handshakes",
        "mutual TLS, a handshake each",
        Chain(tls="mutual", credential="certificate"),
        plain(tool="ab", close=True, connections=32),
        saw=CERTIFICATE,
        forged=BOTH[:1],
        share=0.5,
    ),
    Workload("upload", "64 KiB up", Chain(), plain(**UPLOAD)),
    Workload("upload_long", "1 MiB up", Chain(), plain(method="POST", path="/upload", bytes=2**20, connections=16)),
    Workload("download", "1 MiB down", Chain(), plain(path="/big", connections=16)),
    Workload("http2", "HTTP/2 over TLS", Chain(tls="server"), plain(tool="h2load", http2=True, connections=16)),
    Workload("origin_tls", "TLS to the origin, whose name is verified", Chain(secured=True), plain()),
    Workload("grpc", "HTTP/2 to the origin as well, as gRPC", Chain(tls="server", http2=True), plain(**GRPC)),
    *(
        Workload(f"paced_{name}", f"{title}, at half the rate of the slowest", chain, load, pace=0.5, **proven)
        for name, title, chain, load, proven in (
            ("jwt", "+ JWT RS256", Chain(**GUARDED, credential="jwt"), bearer(one("RS256"), tool="h2load"), PROVEN),
            ("upload", "64 KiB up", Chain(), plain(**UPLOAD, tool="h2load"), {}),
            ("download", "1 MiB down", Chain(), plain(path="/big", tool="h2load", connections=16), {}),
            ("grpc", "gRPC", Chain(tls="server", http2=True), plain(**GRPC), {}),
        )
    ),
    *(
        Workload(
            f"connections_{count}",
            f"+ JWT RS256 on {count:,} connection{'s' if count > 1 else ''}",
            chain,
            bearer(one("RS256"), connections=count),
            saw=SUBJECT,
            forged=BOTH,
        )
        for chain in [Chain(**GUARDED, credential="jwt")]
        for count in (1, 1_000)
    ),
    *(Workload(f"routes_{count}", f"{count:,} routes", Chain(routes=count), paths(count)) for count in (10, 10_000)),
    Workload(
        "reload",
        "+ API key among 10, a reload each second",
        Chain(**GUARDED, credential="api_key", reloads=True),
        keys(10),
        saw=CONSUMER,
        forged=BOTH[1:],
    ),
]
