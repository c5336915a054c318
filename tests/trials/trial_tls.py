"""curl over HTTP/1.1 and HTTP/2, certificates by server name, and certificates that change while they are served."""

import json
import os
import socket
import ssl
import time

from cryptography import x509

import tokens
from certificates import Authority
from harness import Failure, check, equal, trial, within
from origins import Nginx

# Unchanged to the eye of a watcher after this time: no new candidate is on its way.
SETTLED = 2.0
MIB = 1024 * 1024


def world(stage, upstream={"builtin": "echo"}):
    """A gateway with a TLS listener for two names, one of them with a wildcard beside it."""
    authority = Authority(stage.folder)
    authority.issue("a.test", file="a")
    authority.issue("b.test", "*.b.test", file="b")
    keys = tokens.Keys()
    (stage.folder / "jwks.json").write_text(json.dumps(keys.public()))
    gateway = stage.gateway(
        {
            "tls": {"certificates": [{"chain": f"{name}.pem", "key": {"file": f"{name}.key"}} for name in ["a", "b"]]},
            "upstreams": {"origin": upstream},
            "authenticators": {"issuer": {"jwt": {"issuer": tokens.ISSUER, "audiences": ["orders"], "keys": {"jwks_file": "jwks.json"}}}},
            "routes": [{"name": "all", "path": "/{*rest}", "policy": {"authenticate": ["issuer"]}, "upstream": "origin"}],
        }
    )
    return authority, gateway, tokens.by_pyjwt(keys, "ES256", tokens.claims())


def curl(stage, gateway, host, *options, path="/"):
    """The answer of curl: its body, and what `--write-out` says."""
    url = f"https://{host}:{gateway.tls_port}{path}"
    command = ["curl", "--silent", "--max-time", "10", "--resolve", f"{host}:{gateway.tls_port}:127.0.0.1", "--cacert", stage.folder / "ca.pem"]
    command += ["--write-out", "%{json}", "--output", stage.folder / "body", *options, url]
    (stage.folder / "body").write_text("")
    return json.loads(stage.run(*command)), (stage.folder / "body").read_text(errors="replace")


def certificate(stage, gateway, host):
    """The certificate that a new handshake shows for a name."""
    context = ssl.create_default_context(cafile=stage.folder / "ca.pem")
    with socket.create_connection(("127.0.0.1", gateway.tls_port), 5) as plain, context.wrap_socket(plain, server_hostname=host) as secure:
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True))


@trial
def curl_is_served_and_refused_over_http_1_1_and_http_2_with_tls(stage):
    _, gateway, token = world(stage)
    for option, version in {"--http1.1": "1.1", "--http2": "2"}.items():
        said, body = curl(stage, gateway, "a.test", option, "-H", f"Authorization: Bearer {token}", path="/x/../y%7Ez?q=1")
        equal((said["http_code"], said["http_version"]), (200, version), "status and version")
        echo = json.loads(body)
        equal((echo["path"], echo["query"]), ("/y~z", "q=1"), "the canonical path")
        equal(echo["headers"].get("x-user-id"), "alice", "the caller")
        equal(echo["headers"].get("x-forwarded-proto"), "https", "the caller's protocol")
        equal(echo["headers"].get("host"), f"a.test:{gateway.tls_port}", "the host")
        said, body = curl(stage, gateway, "a.test", option)
        equal((said["http_code"], said["http_version"], said["content_type"]), (401, version, "application/problem+json"), "a refusal")
        equal(json.loads(body)["code"], "credential_missing", "its code")
        said, body = curl(stage, gateway, "a.test", option, "--head", "-H", f"Authorization: Bearer {token}")
        equal(said["http_code"], 200, "HEAD")
        said, body = curl(
            stage, gateway, "a.test", option, "-H", f"Authorization: Bearer {token}", "-X", "POST", "--data-binary", f"@{stage.folder / 'ca.pem'}"
        )
        equal(json.loads(body)["body_bytes"], (stage.folder / "ca.pem").stat().st_size, "a body")


@trial
def bodies_pass_whole_over_http_2_and_an_upload_that_is_refused_gets_its_answer(stage):
    nginx = Nginx(stage)
    _, gateway, token = world(stage, {"servers": [nginx.address]})
    file = stage.folder / "upload"
    file.write_bytes(os.urandom(8 * MIB))
    accepted = ["--http2", "-H", f"Authorization: Bearer {token}"]
    said, _ = curl(stage, gateway, "a.test", *accepted, "--upload-file", file, path="/files/up")
    equal((said["http_code"], (nginx.folder / "files/up").read_bytes() == file.read_bytes()), (201, True), "an upload")
    said, _ = curl(stage, gateway, "a.test", *accepted, path="/files/up")
    equal((said["http_code"], said["size_download"]), (200, 8 * MIB), "a download")
    equal((stage.folder / "body").read_bytes() == file.read_bytes(), True, "what was downloaded")
    # The answer comes while curl still sends. It is lost on curl when the stream is reset at once.
    for _ in range(10):
        said, body = curl(stage, gateway, "a.test", "--http2", "--upload-file", file, path="/files/refused")
        equal((said["http_code"], json.loads(body)["code"]), (401, "credential_missing"), "without a credential")
    with open(file, "ab") as more:
        more.write(bytes(3 * MIB))
    for length in [[], ["-H", "Content-Length:"]]:
        said, body = curl(stage, gateway, "a.test", *accepted, *length, "--upload-file", file, path="/files/large")
        equal((said["http_code"], json.loads(body)["code"]), (413, "body_too_large"), "a body over the limit")


@trial
def each_name_has_its_certificate_and_an_unknown_name_none(stage):
    _, gateway, token = world(stage)
    for host in ["a.test", "b.test", "deep.b.test"]:
        said, _ = curl(stage, gateway, host, "-H", f"Authorization: Bearer {token}")
        equal((said["http_code"], said["ssl_verify_result"]), (200, 0), host)
    for host in ["c.test", "b.test.evil.test", "x.deep.b.test"]:
        try:
            certificate(stage, gateway, host)
            raise Failure(f"a handshake for {host} succeeded")
        except (ssl.SSLError, ConnectionResetError):
            pass


@trial
def a_replaced_certificate_is_shown_within_two_seconds_and_open_connections_stay(stage):
    authority, gateway, token = world(stage)
    context = ssl.create_default_context(cafile=stage.folder / "ca.pem")
    with socket.create_connection(("127.0.0.1", gateway.tls_port), 5) as plain, context.wrap_socket(plain, server_hostname="a.test") as open_connection:
        before_b = certificate(stage, gateway, "b.test").serial_number
        for _ in range(3):
            new = authority.issue("a.test", file="a")
            _, took = within(2.0, "the new certificate is shown", lambda: certificate(stage, gateway, "a.test").serial_number == new)
            print(f"    shown after {took:.2f} s")
        equal(certificate(stage, gateway, "b.test").serial_number, before_b, "the other name's certificate")
        open_connection.sendall(f"GET / HTTP/1.1\r\nHost: a.test\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        check(open_connection.recv(4096).startswith(b"HTTP/1.1 200"), "the open connection still serves")


@trial
def a_certificate_without_its_key_changes_nothing(stage):
    authority, gateway, _ = world(stage)
    good = certificate(stage, gateway, "a.test").serial_number
    chain, key = (stage.folder / "a.pem").read_bytes(), (stage.folder / "a.key").read_bytes()
    for broken in [lambda: (stage.folder / "a.pem").write_text("garbage"), lambda: (stage.folder / "a.key").unlink()]:
        broken()
        time.sleep(SETTLED)
        equal(certificate(stage, gateway, "a.test").serial_number, good, "the certificate that serves")
        (stage.folder / "a.pem").write_bytes(chain)
        (stage.folder / "a.key").write_bytes(key)
    new = authority.issue("a.test", file="a")
    within(2.0, "a good pair is taken again", lambda: certificate(stage, gateway, "a.test").serial_number == new)
