"""Authlib, a client library of others, gets a token from edgeward's token endpoint, uses it, introspects it and revokes it."""

import json

from authlib.integrations.httpx_client import OAuth2Client
from joserfc import jwt
from joserfc.jwk import KeySet

from harness import check, equal, refused, served, trial

# Without the port, which the stage chooses: requests are routed by the host alone.
ISSUER = "http://127.0.0.1"


def try_every_endpoint(stage, algorithm, method):
    gateway = stage.gateway(
        {
            "upstreams": {"orders": {"builtin": "echo"}},
            "issuer": {
                "url": ISSUER,
                "signing": {"directory": f"signing-{algorithm}", "algorithm": algorithm},
                "oauth2": {"clients": {"database": "keys.db"}},
            },
            "authenticators": {"own": {"jwt": {"issuer": ISSUER, "audiences": ["orders"], "keys": {"issuer": True}}}},
            "routes": [
                {
                    "name": "orders",
                    "path": "/orders",
                    "policy": {"authenticate": "own", "forward": {"token": "exchange"}},
                    "upstream": "orders",
                }
            ],
        }
    )
    made = gateway.command("clients", "create", "-c", gateway.file, "--scope", "orders:read", "--audience", "orders", "--json")
    made = json.loads(made)
    base = f"http://127.0.0.1:{gateway.port}"
    found = gateway.get("/.well-known/oauth-authorization-server").json()
    equal(found["token_endpoint"], f"{ISSUER}/oauth2/token", "the token endpoint by discovery")
    check(method in found["token_endpoint_auth_methods_supported"], "the client's method by discovery")
    keys = KeySet.import_key_set(gateway.get("/.well-known/jwks.json").json())

    client = OAuth2Client(
        made["client_id"],
        made["client_secret"],
        token_endpoint_auth_method=method,
        revocation_endpoint_auth_method=method,
        scope="orders:read",
        trust_env=False,
    )
    token = client.fetch_token(f"{base}/oauth2/token", grant_type="client_credentials", audience="orders")
    equal((token["token_type"], token["scope"], token["expires_in"]), ("Bearer", "orders:read", 900), "the token's particulars")
    access = jwt.decode(token["access_token"], keys, algorithms=[algorithm])
    equal(access.header["typ"], "at+jwt", "the type")
    equal(access.claims["sub"], made["client_id"], "the subject")

    seen = served(client.get(f"{base}/orders"))
    identity = jwt.decode(seen["x-identity-token"], keys, algorithms=[algorithm])
    equal((identity.claims["aud"], identity.claims["sub"]), ("orders", made["client_id"]), "what the upstream is told")
    check("authorization" not in seen, "the token of the client went on")

    asked = client.introspect_token(f"{base}/oauth2/introspect", token=token["access_token"])
    check(asked.json()["active"] is True, f"a good token: {asked.text}")
    equal(asked.json()["client_id"], made["client_id"], "whose token it is")
    equal(client.revoke_token(f"{base}/oauth2/revoke", token=token["access_token"]).status_code, 200, "the revocation")
    refused(client.get(f"{base}/orders"), 401, "credential_revoked")
    asked = client.introspect_token(f"{base}/oauth2/introspect", token=token["access_token"])
    equal(asked.json(), {"active": False}, "a revoked token")
    client.close()
    stage.end(gateway)


@trial
def authlib_gets_uses_introspects_and_revokes_a_token(stage):
    for algorithm, method in [("ES256", "client_secret_basic"), ("EdDSA", "client_secret_post"), ("RS256", "client_secret_basic")]:
        try_every_endpoint(stage, algorithm, method)
