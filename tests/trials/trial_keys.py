"""`edgeward keys` while the gateway serves: each command takes effect within two seconds, and nothing is reloaded."""

import json
import time

from harness import GATEWAY, check, equal, refused, served, trial, within

EFFECT = 2.0


class Shop:
    """A gateway that takes API keys, and the commands on its store."""

    def __init__(self, stage, keys):
        self.stage = stage
        self.gateway = stage.gateway(
            {
                "upstreams": {"echo": {"builtin": "echo"}},
                "authenticators": {"partners": {"api_key": {"from": [{"header": "X-API-Key"}], "prefix": "ck_live_", "keys": keys}}},
                "routes": [
                    {"name": "orders", "path": "/orders", "policy": {"authenticate": ["partners"]}, "upstream": "echo"},
                    {"name": "stock", "path": "/stock", "policy": {"authenticate": ["partners"]}, "upstream": "echo"},
                    {
                        "name": "write",
                        "path": "/write",
                        "policy": {"authenticate": ["partners"], "authorize": {"scopes": ["orders:write"]}},
                        "upstream": "echo",
                    },
                ],
            }
        )

    def keys(self, command, *arguments):
        return self.gateway.command("keys", command, "-c", self.gateway.file, *arguments)

    def create(self, *arguments):
        """A new key, and its record."""
        made = json.loads(self.keys("create", "--authenticator", "partners", "--json", *arguments))
        return made["key"], made["record"]

    def show(self, identity):
        return json.loads(self.keys("show", identity, "--json"))

    def ask(self, key, path="/orders"):
        return self.gateway.get(path, headers={"X-API-Key": key})

    def takes_effect(self, key, status, path="/orders"):
        """The answer once its status is this one, which must be soon."""

        def attempt():
            answer = self.ask(key, path)
            return answer if answer.status_code == status else None

        return within(EFFECT, f"{path} answers {status}", attempt)[0]


def try_every_command(stage, keys):
    shop = Shop(stage, keys)
    key, record = shop.create("--consumer", "acme", "--scope", "orders:read", "--plan", "gold")
    check(key.startswith(f"ck_live_{record['id']}_"), f"the key names its type and its id: {key}")
    seen = served(shop.takes_effect(key, 200))
    wanted = {"x-consumer-id": "acme", "x-key-id": record["id"], "x-scopes": "orders:read", "x-plan": "gold", "x-auth-method": "api_key"}
    equal({name: seen.get(name) for name in wanted}, wanted, "who the upstream saw")
    check("x-api-key" not in seen, "the key is stripped")
    refused(shop.ask(key, "/write"), 403, "insufficient_scope")

    new = shop.keys("rotate", record["id"], "--grace", "3s").strip()
    rotated = time.time()
    check(new != key and new.startswith(f"ck_live_{record['id']}_"), "a rotated key keeps its id")
    served(shop.takes_effect(new, 200))
    check(time.time() - rotated > 3 or shop.ask(key).status_code == 200, "the old key goes on for its grace")
    within(3 + EFFECT, "the old key ends by itself", lambda: shop.ask(key).status_code == 401)
    served(shop.ask(new))

    shop.keys("revoke", record["id"])
    revoked = shop.takes_effect(new, 401)
    equal(shop.show(record["id"])["state"], "revoked", "what `show` says")
    # One that was never made here: the checksum is right, the key is unknown.
    foreign = new.replace(record["id"], record["id"][::-1]) if record["id"] != record["id"][::-1] else new[:-1]
    unknown = shop.ask(foreign)
    plain = [{name: value for name, value in answer.json().items() if name != "request_id"} for answer in (revoked, unknown)]
    equal(plain[0], plain[1], "a revoked key and an unknown one read the same")

    only_stock, _ = shop.create("--consumer", "acme", "--route", "stock")
    served(shop.takes_effect(only_stock, 200, "/stock"))
    check(shop.ask(only_stock).status_code in (401, 403), "a key for one route opens no other")
    elsewhere, _ = shop.create("--consumer", "acme", "--allow", "203.0.113.0/24")
    here, _ = shop.create("--consumer", "acme", "--allow", "127.0.0.0/8")
    served(shop.takes_effect(here, 200))
    check(shop.ask(elsewhere).status_code in (401, 403), "a key for other addresses does not open from here")
    short, _ = shop.create("--consumer", "acme", "--expires", "4s")
    served(shop.takes_effect(short, 200))
    within(5, "the key expires by itself", lambda: shop.ask(short).status_code == 401)
    return shop


@trial
def key_commands_on_the_embedded_store_take_effect_while_it_serves(stage):
    shop = try_every_command(stage, {"database": "keys.db"})
    equal(shop.gateway.metric("edgeward_config_generation"), 1, "configurations since the start: nothing was reloaded")


@trial
def key_commands_on_a_file_of_keys_take_effect_while_it_serves(stage):
    (stage.folder / "keys.yaml").write_text("keys: []\n")
    try_every_command(stage, {"file": "keys.yaml"})


@trial
def usage_is_counted_exactly_and_outlives_a_restart(stage):
    shop = Shop(stage, {"database": "keys.db"})
    key, record = shop.create("--consumer", "acme")
    shop.takes_effect(key, 200)
    before = time.time()
    base = within(10, "the first use is written down", lambda: shop.show(record["id"]).get("requests"))[0]
    for _ in range(50):
        served(shop.ask(key))
    stage.end(shop.gateway)
    shown = shop.show(record["id"])
    check(base <= shown["requests"] - 50 <= base + 5, f"requests: {shown['requests']} after {base} and 50")
    equal(shown["last_address"], "127.0.0.1", "the last address")
    check(abs(before - time.time()) < 60 and shown["last_used"].startswith(time.strftime("%Y-%m-%dT", time.gmtime())), shown["last_used"])
    again = Shop(stage, {"database": "keys.db"})
    served(again.takes_effect(key, 200))
    within(10, "counting goes on", lambda: again.show(record["id"])["requests"] > shown["requests"])


@trial
def keys_are_exported_and_imported_by_their_hashes(stage):
    shop = Shop(stage, {"database": "keys.db"})
    key, record = shop.create("--consumer", "acme", "--scope", "orders:write")
    exported = shop.keys("export")
    check(key not in exported and key.rsplit("_", 1)[1] not in exported, "no secret is exported")
    (stage.folder / "other").mkdir()
    (stage.folder / "exported.yaml").write_text(exported)
    other = Shop(stage, {"database": "other/keys.db"})
    refused(other.takes_effect(key, 401), 401, "credential_invalid")
    other.keys("import", stage.folder / "exported.yaml")
    equal(served(other.takes_effect(key, 200, "/write"))["x-key-id"], record["id"], "the imported key")
    check(record["id"] in other.keys("list"), "it is listed")


@trial
def a_wrong_command_changes_nothing_and_says_why(stage):
    shop = Shop(stage, {"database": "keys.db"})
    key, record = shop.create("--consumer", "acme")
    for arguments in [
        ["create", "--consumer", "acme", "--authenticator", "partner"],
        ["create", "--consumer", "acme", "--route", "order"],
        ["create", "--consumer", "acme", "--expires", "soon"],
        ["revoke", "nobody"],
        ["rotate", "nobody"],
    ]:
        done = stage.attempt(GATEWAY, "keys", arguments[0], "-c", shop.gateway.file, *arguments[1:])
        check(done.returncode != 0 and done.stdout == "" and done.stderr, f"{arguments}: {done}")
    served(shop.takes_effect(key, 200))
    equal([line["id"] for line in json.loads(shop.keys("list", "--json"))], [record["id"]], "the keys of the store")
