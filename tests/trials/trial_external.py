"""nginx as a forward-auth server, and a function as a Lambda authorizer behind the runtime interface's HTTP."""

import http.server
import json
import threading

from harness import check, equal, refused, served, trial
from origins import Nginx

# What people put behind nginx's own auth_request: the answer by the credential, the caller by headers.
AUTH = """
        location = /auth {
            add_header X-Saw "$http_x_forwarded_method $http_x_forwarded_uri $http_x_forwarded_for $http_x_forwarded_host" always;
            if ($http_authorization = "Bearer good") { return 204; }
            if ($http_authorization = "") { return 302 http://127.0.0.1:PORT/login?rd=$http_x_forwarded_uri; }
            return 403 "no\\n";
        }
        location = /named {
            add_header Remote-User alice;
            add_header Remote-Groups "staff,admins";
            return 200;
        }
        location = /login { return 200 "log in\\n"; }
        location = /busy"""


def asking(authorizer, path, **settings):
    external = {"url": f"http://{authorizer}{path}", "timeout": "2s"} | settings
    return {
        "upstreams": {"demo": {"builtin": "echo"}},
        "authenticators": {"custom": {"external": external}},
        "routes": [{"name": "all", "path": "/{*rest}", "policy": {"authenticate": "custom"}, "upstream": "demo"}],
    }


@trial
def nginx_lets_in_sends_to_the_login_page_and_refuses(stage):
    nginx = Nginx(stage, changes={"location = /busy": AUTH.strip()})
    gateway = stage.gateway(asking(nginx.address, "/auth", copy=["X-Saw"]))
    seen = served(gateway.get("/orders/7?x=1", headers={"authorization": "Bearer good", "x-saw": "forged", "x-forwarded-uri": "/public"}))
    equal(seen["x-saw"], f"GET /orders/7?x=1 127.0.0.1 127.0.0.1:{gateway.port}", "what nginx was shown")
    check("authorization" not in seen, "the credential stays here")
    login = gateway.client.get("/orders/7", follow_redirects=False)
    equal((login.status_code, login.headers["location"]), (302, f"http://{nginx.address}/login?rd=/orders/7"), "without a credential")
    refusal = gateway.get("/orders/7", headers={"authorization": "Bearer bad"})
    equal((refusal.status_code, refusal.text), (403, "no\n"), "with a bad one")
    nginx.kill()
    refused(gateway.get("/orders/7", headers={"authorization": "Bearer good"}), 503, "dependency_unavailable")
    nginx.start()
    served(gateway.get("/orders/7", headers={"authorization": "Bearer good"}))


@trial
def nginx_names_the_caller(stage):
    nginx = Nginx(stage, changes={"location = /busy": AUTH.strip()})
    claims = {"subject": "Remote-User", "roles": "Remote-Groups"}
    gateway = stage.gateway(asking(nginx.address, "/named", copy=["Remote-User"], claims=claims, cache={"ttl": "60s"}))
    for _ in range(3):
        seen = served(gateway.get("/", headers={"remote-user": "root", "remote_user": "root", "x-user-id": "root"}))
        equal((seen["remote-user"], seen["x-user-id"], seen["x-roles"]), ("alice", "alice", "staff admins"), "who the upstream sees")
        check("remote_user" not in seen, "no other spelling passes")


def handler(event, _context):
    """An authorizer as AWS's own pages write it."""
    token = event["headers"].get("authorization", "")
    if token == "allow":
        effect = "Allow"
    elif token == "deny":
        effect = "Deny"
    elif token == "unauthorized":
        raise ValueError("Unauthorized")
    else:
        raise ValueError("Error: Invalid token")
    statement = {"Action": "execute-api:Invoke", "Effect": effect, "Resource": event["routeArn"]}
    context = {"stringKey": "value", "numberKey": 1, "booleanKey": True}
    return {"principalId": "me", "policyDocument": {"Version": "2012-10-17", "Statement": [statement]}, "context": context}


class Runtime(http.server.BaseHTTPRequestHandler):
    """Answers invocations as the runtime interface emulator does: a function that fails is an answer of 200."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        event = json.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            answer = handler(event, None)
        except ValueError as error:
            answer = {"errorMessage": str(error), "errorType": type(error).__name__, "requestId": "", "stackTrace": []}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@trial
def a_lambda_authorizer_lets_in_and_refuses(stage):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Runtime)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stage.at_end(server.server_close)
    stage.at_end(server.shutdown)
    path = "/2015-03-31/functions/function/invocations"
    settings = {"response": "lambda", "claims": {"plan": "stringKey"}, "cache": {"by": ["credential"]}}
    gateway = stage.gateway(asking(f"127.0.0.1:{server.server_port}", path, **settings))
    seen = served(gateway.get("/orders/7", headers={"authorization": "allow"}))
    equal((seen["x-user-id"], seen["x-plan"], seen["x-auth-method"]), ("me", "value", "external"), "who the upstream sees")
    refused(gateway.get("/orders/8", headers={"authorization": "allow"}), 403, "forbidden")
    refused(gateway.get("/orders/7", headers={"authorization": "deny"}), 403, "forbidden")
    refused(gateway.get("/orders/7", headers={"authorization": "unauthorized"}), 401, "credential_invalid")
    refused(gateway.get("/orders/7", headers={"authorization": "other"}), 503, "dependency_unavailable")
