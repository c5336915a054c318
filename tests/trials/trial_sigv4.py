"""Requests signed by botocore and by curl: headers, links, session tokens, bodies, and the paths and queries that signers disagree about."""

import hashlib
import json

import httpx
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from certificates import Authority
from harness import check, equal, refused, served, trial

ID, SECRET, TOKEN = "AKIDTRIAL", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "AQoDYXdzEPT//////////wEXAMPLE=="
REGION = "eu-west-1"
PERMANENT, TEMPORARY = Credentials(ID, SECRET), Credentials("ASIATRIAL", SECRET, TOKEN)


def world(stage, **more):
    (stage.folder / "sigv4.yaml").write_text(
        json.dumps(
            {
                "keys": [
                    {"access_key_id": ID, "secret": {"env": "AWS_SECRET"}, "consumer": "acme"},
                    {"access_key_id": "ASIATRIAL", "secret": {"env": "AWS_SECRET"}, "session_token": {"env": "AWS_TOKEN"}, "consumer": "temp"},
                ]
            }
        )
    )

    def authenticator(service, **more):
        return {"sigv4": {"region": REGION, "service": service, "keys": {"file": "sigv4.yaml"}} | more}

    def route(name):
        return {"name": name, "path": f"/{name}/{{*rest}}", "policy": {"authenticate": [name]}, "upstream": "echo"}

    return stage.gateway(
        {
            "upstreams": {"echo": {"builtin": "echo"}},
            "authenticators": {"api": authenticator("execute-api"), "s3": authenticator("s3", unsigned_payload=True)},
            "routes": [route("api"), route("s3")],
        }
        | more,
        env={"AWS_SECRET": SECRET, "AWS_TOKEN": TOKEN},
    )


def send(gateway, request):
    """Sends what was signed, byte for byte."""
    prepared = request.prepare()
    headers = {name: value for name, value in prepared.headers.items()}
    raw = httpx.URL(prepared.url)
    return gateway.client.request(prepared.method, raw, headers=headers, content=prepared.body or b"")


def signed(gateway, auth, method, path, credentials=PERMANENT, service="execute-api", region=REGION, body=None, headers=None, **more):
    url = f"http://127.0.0.1:{gateway.port}{path}"
    request = AWSRequest(method=method, url=url, data=body, headers={"Host": f"127.0.0.1:{gateway.port}"} | (headers or {}))
    auth(credentials, service, region, **more).add_auth(request)
    return request


@trial
def botocore_signs_in_headers_and_in_links(stage):
    gateway = world(stage)
    for path in ["/api/7", "/api/a%20b", "/api/7?b=2&a=1", "/api/?a=%2F&a=&%E1%88%B4=x", "/api/%E1%88%B4", "/api/a~b-c._d", "/api/a:b@c"]:
        seen = served(send(gateway, signed(gateway, SigV4Auth, "GET", path)))
        equal(seen.get("x-consumer-id"), "acme", path)
        check("authorization" not in seen, "the signature is stripped")
        served(send(gateway, signed(gateway, SigV4QueryAuth, "GET", path, expires=60)))
    equal(served(send(gateway, signed(gateway, SigV4Auth, "GET", "/api/7", TEMPORARY)))["x-consumer-id"], "temp", "a session token")
    equal(served(send(gateway, signed(gateway, SigV4QueryAuth, "GET", "/api/7", TEMPORARY)))["x-consumer-id"], "temp", "in a link")
    for wrong in [
        signed(gateway, SigV4Auth, "GET", "/api/7", region="us-east-1"),
        signed(gateway, SigV4Auth, "GET", "/api/7", service="s3"),
        signed(gateway, SigV4Auth, "GET", "/api/7", Credentials(ID, SECRET + "x")),
        signed(gateway, SigV4Auth, "GET", "/api/7", Credentials("NOBODY", SECRET)),
        signed(gateway, SigV4Auth, "GET", "/api/7", Credentials(ID, SECRET, TOKEN)),
        signed(gateway, SigV4QueryAuth, "GET", "/api/7", expires=604801),
    ]:
        refused(send(gateway, wrong), 401, "credential_invalid")
    for was, becomes in [("/api/7", "/api/8"), ("/api/7?a=1", "/api/7?a=2"), ("/api/7", "/api/7?a=1")]:
        changed = signed(gateway, SigV4Auth, "GET", was)
        changed.url = changed.url.replace(was, becomes)
        refused(send(gateway, changed), 401, "credential_invalid")


@trial
def botocore_signs_bodies(stage):
    gateway = world(stage)
    for body in [b"x", b"a=1&b=2", b"z" * 60_000]:
        request = signed(gateway, SigV4Auth, "POST", "/api/", body=body, headers={"Content-Type": "text/plain"})
        served(send(gateway, request))
        request.data = body[:-1] + b"!"
        refused(send(gateway, request), 401, "credential_invalid")
    for body in [b"x", b"z" * 100_000, b"z" * 3_000_000]:
        # As for S3, where the hash of the body is in a header.
        request = signed(gateway, S3SigV4Auth, "PUT", "/s3/bucket/key%20with%20spaces", service="s3", body=body)
        if request.headers["X-Amz-Content-SHA256"] != "UNSIGNED-PAYLOAD":
            request.data = body[:-1] + b"!"
            refused(send(gateway, request), 401, "credential_invalid")
            request.data = body
        served(send(gateway, request))
    link = signed(gateway, S3SigV4QueryAuth, "PUT", "/s3/bucket/key", service="s3", expires=60)
    link.data = b"any"
    served(send(gateway, link))


@trial
def bodies_are_proven_over_http_2(stage):
    authority = Authority(stage.folder)
    authority.issue("a.test", file="a")
    gateway = world(stage, tls={"certificates": [{"chain": "a.pem", "key": {"file": "a.key"}}]})
    host = f"a.test:{gateway.tls_port}"

    def curl(body, declared=None, length=True):
        """The status, for a request that was signed for `declared` and sent with `body`."""
        request = AWSRequest(method="POST", url=f"https://{host}/s3/key", data=declared or body, headers={"Host": host})
        request.headers["X-Amz-Content-SHA256"] = hashlib.sha256(declared or body).hexdigest()
        SigV4Auth(PERMANENT, "s3", REGION).add_auth(request)
        names = {"x-amz-date", "x-amz-content-sha256", "authorization"}
        headers = [part for name, value in request.headers.items() if name.lower() in names for part in ["-H", f"{name}: {value}"]]
        (stage.folder / "sent").write_bytes(body)
        # From standard input curl sends no length.
        source = ["--data-binary", f"@{stage.folder / 'sent'}", "-H", "Content-Type:"] if length else ["-T", "-", "-X", "POST"]
        command = ["curl", "-sS", "--http2", "-o", "/dev/null", "-w", "%{http_code} %{http_version}", "--cacert", stage.folder / "ca.pem"]
        command += ["--resolve", f"{host}:127.0.0.1", *headers, *source, f"https://{host}/s3/key"]
        with open(stage.folder / "sent", "rb") as sent:
            return stage.run(*command, stdin=None if length else sent)

    for size in [1, 1000, 65_536, 65_537, 1_000_000]:
        body = b"z" * size
        for length in [True, False]:
            equal(curl(body, length=length), "200 2", f"{size} bytes, with a length: {length}")
            equal(curl(body[:-1] + b"!", body, length=length), "401 2", f"{size} bytes, one changed, with a length: {length}")


@trial
def curl_signs(stage):
    gateway = world(stage)

    def curl(*arguments, path="/api/7", user=f"{ID}:{SECRET}", service="execute-api"):
        target = f"http://127.0.0.1:{gateway.port}{path}"
        sign = ["--aws-sigv4", f"aws:amz:{REGION}:{service}", "--user", user]
        out = stage.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *sign, *arguments, target)
        return int(out)

    equal(curl(), 200, "GET")
    equal(curl(path="/api/7?a=1&b=2"), 200, "with a query")
    equal(curl("-X", "DELETE"), 200, "DELETE")
    equal(curl("-d", "a=1", "-H", "Content-Type: application/x-www-form-urlencoded"), 200, "with a body whose type is named")
    equal(curl(user=f"{ID}:{SECRET}x"), 401, "a wrong secret")
    equal(curl(service="s3"), 401, "another service")
