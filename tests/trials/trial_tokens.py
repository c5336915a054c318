"""Tokens by three libraries that we did not write, with every algorithm, against a key set in a file and a shared secret."""

import json
import time

import tokens
from harness import bearer, check, equal, free_port, refused, served, trial
from tokens import ASYMMETRIC, SYMMETRIC, by_jose, by_joserfc, by_pyjwt, claims, tampered

# Pairs of a name that the failure shows and what makes the tokens of a list of algorithms.
LIBRARIES = {
    "PyJWT": lambda keys, algorithms, claims: {algorithm: by_pyjwt(keys, algorithm, claims) for algorithm in algorithms},
    "joserfc": lambda keys, algorithms, claims: {algorithm: by_joserfc(keys, algorithm, claims) for algorithm in algorithms},
    "jose": by_jose,
}


def world(stage):
    """Keys, and a gateway that takes their tokens: /asymmetric by a key set in a file, /symmetric by the shared secret."""
    keys = tokens.Keys()
    (stage.folder / "jwks.json").write_text(json.dumps(keys.public()))

    def authenticator(**more):
        return {"jwt": {"issuer": tokens.ISSUER, "audiences": [tokens.AUDIENCE], "leeway": "5s"} | more}

    gateway = stage.gateway(
        {
            "upstreams": {"echo": {"builtin": "echo"}},
            "authenticators": {
                "issuer": authenticator(keys={"jwks_file": "jwks.json"}),
                "partner": authenticator(keys={"secret": {"env": "SHARED_SECRET"}}, algorithms=SYMMETRIC),
            },
            "routes": [
                {"name": "asymmetric", "path": "/asymmetric", "policy": {"authenticate": ["issuer"]}, "upstream": "echo"},
                {"name": "symmetric", "path": "/symmetric", "policy": {"authenticate": ["partner"]}, "upstream": "echo"},
            ],
        },
        env={"SHARED_SECRET": tokens.SECRET},
    )

    def ask(algorithm, token):
        return gateway.get("/symmetric" if algorithm in SYMMETRIC else "/asymmetric", headers=bearer(token))

    return keys, ask


@trial
def tokens_of_three_libraries_are_accepted_with_every_algorithm(stage):
    keys, ask = world(stage)
    for library, mint in LIBRARIES.items():
        made = mint(keys, ASYMMETRIC + SYMMETRIC, claims(sub=f"made by {library}", scope="a b"))
        equal(len(made), 13, f"tokens by {library}")
        for algorithm, token in made.items():
            seen = served(ask(algorithm, token))
            equal(seen.get("x-user-id"), f"made by {library}", f"subject of {library}'s {algorithm}")
            equal(seen.get("x-scopes"), "a b", f"scopes of {library}'s {algorithm}")
            check("authorization" not in seen, "the token is stripped")


@trial
def a_changed_signature_or_claim_is_refused_with_every_algorithm_of_three_libraries(stage):
    keys, ask = world(stage)
    for mint in LIBRARIES.values():
        for algorithm, token in mint(keys, ASYMMETRIC + SYMMETRIC, claims()).items():
            refused(ask(algorithm, tampered(token)), 401, "credential_invalid")
            head, payload, signature = token.split(".")
            changed = ("A" if signature[10] != "A" else "B").join([signature[:10], signature[11:]])
            refused(ask(algorithm, f"{head}.{payload}.{changed}"), 401, "credential_invalid")
            refused(ask(algorithm, f"{head}.{payload}."), 401, "credential_invalid")
            served(ask(algorithm, token))


@trial
def times_audience_and_issuer_are_enforced_for_well_signed_tokens(stage):
    keys, ask = world(stage)
    now = int(time.time())
    cases = [
        (claims(exp=now - 60), "credential_expired"),
        (claims(exp=None), "credential_invalid"),
        (claims(nbf=now + 60), "credential_invalid"),
        (claims(iat=now + 60), "credential_invalid"),
        (claims(aud="billing"), "credential_invalid"),
        (claims(aud=None), "credential_invalid"),
        (claims(aud=["billing", "shipping"]), "credential_invalid"),
        (claims(iss="https://other.test/"), "credential_invalid"),
        (claims(iss=None), "credential_invalid"),
    ]
    for algorithm in ["RS256", "ES256", "HS256"]:
        for wrong, code in cases:
            refused(ask(algorithm, by_pyjwt(keys, algorithm, wrong)), 401, code)
        served(ask(algorithm, by_pyjwt(keys, algorithm, claims(aud=["billing", "orders"]))))
        served(ask(algorithm, by_pyjwt(keys, algorithm, claims(exp=now - 1))))


@trial
def a_token_never_chooses_how_it_is_judged(stage):
    keys, ask = world(stage)
    mine = tokens.Keys()
    public = keys["RS256"].as_pem(private=False).decode()
    cases = {
        "no signature at all": tokens.unsigned(claims()),
        "the public key as an HMAC secret": tokens.hmac_with(public, claims(), kid="rsa"),
        "the shared secret on a route of key pairs": by_pyjwt(keys, "HS256", claims()),
        "another's key under a known key id": by_pyjwt(mine, "RS256", claims()),
        "a key that the token brings": by_pyjwt(mine, "RS256", claims(), jwk=mine["RS256"].as_dict(private=False), kid="mine"),
        "a key that the token points to": by_pyjwt(mine, "RS256", claims(), jku="http://127.0.0.1:1/jwks", kid="mine"),
        "a critical extension": by_pyjwt(keys, "RS256", claims(), crit=["exp"]),
        "the key of another algorithm": by_pyjwt(keys, "ES256", claims(), kid="rsa"),
    }
    for what, token in cases.items():
        answer = ask("RS256", token)
        check(answer.status_code == 401, f"{what}: {answer.status_code} {answer.text}")
        refused(answer, 401, "credential_invalid")


@trial
def a_token_in_the_query_is_in_no_log_though_its_upstream_fails_again_and_again(stage):
    keys = tokens.Keys()
    (stage.folder / "jwks.json").write_text(json.dumps(keys.public()))
    accepted = {"issuer": tokens.ISSUER, "audiences": ["orders"], "keys": {"jwks_file": "jwks.json"}, "from": [{"query": "access_token"}]}
    dead = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    gateway = stage.gateway(
        {
            "upstreams": {"dead": {"servers": dead, "retries": {"attempts": 2, "on": ["connect_failure"]}}},
            "authenticators": {"issuer": {"jwt": accepted}},
            "routes": [{"name": "all", "path": "/", "policy": {"authenticate": ["issuer"]}, "upstream": "dead"}],
        }
    )
    token = by_pyjwt(keys, "ES256", claims())
    for credential in [token, tampered(token)]:
        answer = gateway.get("/", params={"before": "1", "access_token": credential, "after": "2"})
        check(answer.status_code in (401, 502), f"{answer.status_code} {answer.text}")
    # The end of every trial reads the logs; here it is known that they have something to tell.
    stage.end(gateway)
    check("after=2" in (stage.folder / "access.json").read_text(), "the rest of the query is logged")
