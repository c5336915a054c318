"""HAProxy in front, which ends TLS and forwards the certificate of its caller; curl as the caller."""

import json
from pathlib import Path

from harness import equal, free_port, listens, trial, within

FIXTURE = Path(__file__).parent.parent / "data/mtls-fixture"


def haproxy(stage, gateway, port):
    (stage.folder / "server.pem").write_text((FIXTURE / "server-gw.test.pem").read_text() + (FIXTURE / "server-gw.test.key").read_text())
    (stage.folder / "haproxy.cfg").write_text(
        f"""
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
frontend callers
    bind 127.0.0.1:{port} ssl crt {stage.folder}/server.pem ca-file {FIXTURE}/ca-root.pem ca-verify-file {FIXTURE}/ca-root.pem verify optional
    http-request del-header Client-Cert
    http-request del-header Client-Cert-Chain
    http-request set-header Client-Cert ":%[ssl_c_der,base64]:" if {{ ssl_c_used }}
    http-request set-header Client-Cert-Chain ":%[ssl_c_chain_der,base64]:" if {{ ssl_c_chain_der -m found }}
    default_backend edgeward
backend edgeward
    server one 127.0.0.1:{gateway.port}
"""
    )
    stage.spawn("haproxy", "-db", "-f", stage.folder / "haproxy.cfg", log="haproxy.log")
    within(10, "HAProxy listens", lambda: listens(port))


def curl(stage, port, *options):
    command = ["curl", "--silent", "--max-time", "10", "--cacert", FIXTURE / "ca-root.pem", "--resolve", f"gw.test:{port}:127.0.0.1"]
    said = stage.run(*command, "--write-out", "\n%{http_code}", *options, f"https://gw.test:{port}/x").rsplit("\n", 1)
    return int(said[1]), json.loads(said[0])


def showing(name):
    return ["--cert", FIXTURE / f"{name}.pem", "--key", FIXTURE / f"{name}.key"]


def item(name):
    """A certificate as RFC 9440 writes it."""
    text = (FIXTURE / f"{name}.pem").read_text().split("-----BEGIN CERTIFICATE-----")[1].split("-----END")[0]
    return f":{''.join(text.split())}:"


@trial
def haproxy_forwards_the_certificate_of_its_caller(stage):
    intermediate = (FIXTURE / "ok.pem").read_text()
    authorities = (FIXTURE / "ca-root.pem").read_text() + intermediate[intermediate.rindex("-----BEGIN CERTIFICATE-----") :]
    (stage.folder / "ca.pem").write_text(authorities)
    (stage.folder / "crl.pem").write_text((FIXTURE / "crl-int.pem").read_text() + (FIXTURE / "crl-root-empty.pem").read_text())
    gateway = stage.gateway(
        {
            "server": {"trusted_proxies": ["127.0.0.1"], "forwarded_certificates": {"ca": "ca.pem", "crl": "crl.pem"}},
            "upstreams": {"origin": {"builtin": "echo"}},
            "authenticators": {"hosts": {"client_certificate": {"identity": "san_dns", "allow": ["*.client.test"]}}},
            "routes": [{"name": "all", "path": "/{*rest}", "policy": {"authenticate": ["hosts"]}, "upstream": "origin"}],
        }
    )
    port = free_port()
    haproxy(stage, gateway, port)
    for _ in range(2):
        status, echo = curl(stage, port, *showing("ok"))
        equal((status, echo["headers"].get("x-user-id")), (200, "alice.client.test"), "the caller of HAProxy")
        equal(echo["headers"].get("x-client-cert-san"), "DNS:alice.client.test", "its names")
        equal(echo["headers"].get("client-cert"), None, "what HAProxy said of it")
        for options, code in [
            ([], "credential_missing"),
            # HAProxy knows nothing of revocations here.
            (showing("revoked"), "credential_revoked"),
            # What a caller says itself does not pass HAProxy.
            (["-H", f"Client-Cert: {item('ok')}"], "credential_missing"),
        ]:
            status, problem = curl(stage, port, *options)
            equal((status, problem.get("code")), (401, code), f"{options}: {problem}")
    equal(gateway.get("/x", headers={"Client-Cert": item("ok")}).status_code, 200, "HAProxy's place taken by another trusted proxy")


@trial
def curl_shows_its_certificate_and_is_told_from_others(stage):
    for name in ["ca-root.pem", "server-gw.test.pem", "server-gw.test.key"]:
        (stage.folder / name).write_bytes((FIXTURE / name).read_bytes())
    gateway = stage.gateway(
        {
            "tls": {
                "certificates": [{"chain": "server-gw.test.pem", "key": {"file": "server-gw.test.key"}}],
                "client_certificates": {"mode": "required", "ca": "ca-root.pem"},
            },
            "upstreams": {"origin": {"builtin": "echo"}},
            "authenticators": {"mesh": {"client_certificate": {"identity": "san_uri", "allow": ["spiffe://test/*"]}}},
            "routes": [{"name": "all", "path": "/{*rest}", "policy": {"authenticate": ["mesh"]}, "upstream": "origin"}],
        }
    )
    for version in ["--http1.1", "--http2"]:
        status, echo = curl(stage, gateway.tls_port, version, *showing("san-uri-spiffe"))
        equal((status, echo["headers"].get("x-user-id")), (200, "spiffe://test/ns/a/sa/alice"), version)
        status, problem = curl(stage, gateway.tls_port, version, *showing("ok"))
        equal((status, problem["code"]), (401, "credential_invalid"), version)
        status, problem = curl(stage, gateway.tls_port, version, *showing("san-uri-spiffe"), "-H", "Host: other.test")
        equal((status, problem["code"]), (421, "misdirected_request"), version)
        for options in [[], showing("other-ca"), showing("expired")]:
            resolve = ["--resolve", f"gw.test:{gateway.tls_port}:127.0.0.1", f"https://gw.test:{gateway.tls_port}/x"]
            refused = stage.attempt("curl", "--silent", version, "--cacert", FIXTURE / "ca-root.pem", *options, *resolve)
            equal((refused.returncode != 0, refused.stdout), (True, ""), f"{version} {options}")
