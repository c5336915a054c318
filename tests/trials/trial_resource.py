"""oauth4webapi (npm), told a URL and nothing else, finds its way in: from the challenge to the metadata, the issuer, a token, and the resource."""

import json
import subprocess

from harness import HERE, check, equal, trial

# Without the port, which the stage chooses: requests are routed by the host alone.
ISSUER = "http://127.0.0.1"
RESOURCE = f"{ISSUER}/orders"


@trial
def a_client_that_knows_the_url_alone_finds_its_way_in(stage):
    gateway = stage.gateway(
        {
            "upstreams": {"orders": {"builtin": "echo"}},
            "issuer": {
                "url": ISSUER,
                "signing": {"directory": "signing"},
                "oauth2": {"clients": {"database": "keys.db"}},
            },
            "authenticators": {
                "own": {"jwt": {"issuer": ISSUER, "audiences": [RESOURCE], "keys": {"issuer": True}}},
                "keys": {"api_key": {"keys": {"database": "keys.db"}}},
            },
            "routes": [
                {
                    "name": "orders",
                    "path": "/orders",
                    "policy": {"authenticate": ["keys", "own"], "authorize": {"scopes": ["orders:read"]}},
                    "upstream": "orders",
                    "resource": {"url": RESOURCE, "name": "Orders"},
                }
            ],
        }
    )
    made = gateway.command(
        "clients", "create", "-c", gateway.file, "--scope", "orders:read", "--scope", "other", "--audience", RESOURCE, "--json"
    )
    made = json.loads(made)
    order = {"url": RESOURCE, "port": gateway.port, "client_id": made["client_id"], "client_secret": made["client_secret"]}
    done = subprocess.run(["node", "discover.mjs"], cwd=HERE, input=json.dumps(order), capture_output=True, text=True, timeout=60)
    check(done.returncode == 0, f"the client gave up: {done.stderr}")
    found = json.loads(done.stdout)
    metadata = f"{ISSUER}/.well-known/oauth-protected-resource/orders"
    equal(
        found["challenge"],
        {"realm": "edgeward", "error": "invalid_token", "scope": "orders:read", "resource_metadata": metadata},
        "the challenge",
    )
    equal(
        found["described"],
        {
            "resource": RESOURCE,
            "resource_name": "Orders",
            "authorization_servers": [ISSUER],
            "bearer_methods_supported": ["header"],
            "scopes_supported": ["orders:read"],
        },
        "the metadata",
    )
    equal(found["told"], found["described"], "what the challenge leads to")
    equal(found["status"], 200, "the way in")
    headers = found["seen"]["headers"]
    equal((headers["x-client-id"], headers["x-scopes"]), (made["client_id"], "orders:read"), "what the upstream is told")
