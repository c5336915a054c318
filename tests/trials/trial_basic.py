"""Users and passwords whose hashes were made by Apache's htpasswd and by the reference program of argon2."""

from harness import check, equal, refused, served, trial


def gateway(stage, lines):
    (stage.folder / "users.htpasswd").write_text("".join(f"{line.strip()}\n" for line in lines))
    return stage.gateway(
        {
            "upstreams": {"echo": {"builtin": "echo"}},
            "authenticators": {"staff": {"basic": {"users": {"file": "users.htpasswd"}, "realm": "trial"}}},
            "routes": [{"name": "wiki", "path": "/wiki", "policy": {"authenticate": ["staff"]}, "upstream": "echo"}],
        }
    )


@trial
def users_of_htpasswd_and_of_argon2_are_let_in(stage):
    users = {"alice": "correct horse", "bob": "with:colon", "zoë": "pässword", "dave": "x" * 71}
    lines = [stage.run("htpasswd", "-nbB", "-C", "6", name, password) for name, password in users.items()]
    users["erin"] = "battery staple"
    lines.append("erin:" + stage.run("argon2", "somesaltsomesalt", "-id", "-t", "2", "-m", "12", "-p", "2", "-e", input="battery staple"))
    wiki = gateway(stage, lines)
    for name, password in users.items():
        for _ in range(2):
            seen = served(wiki.get("/wiki", auth=(name.encode(), password.encode())))
        equal(seen.get("x-auth-method"), "basic", name)
        check("authorization" not in seen, "the password is stripped")
        refused(wiki.get("/wiki", auth=(name.encode(), (password + "x").encode())), 401, "credential_invalid")
    refused(wiki.get("/wiki", auth=("mallory", "correct horse")), 401, "credential_invalid")
    asked = wiki.get("/wiki")
    refused(asked, 401, "credential_missing")
    equal(asked.headers["www-authenticate"], 'Basic realm="trial", charset="UTF-8"', "the challenge")
    url = f"http://127.0.0.1:{wiki.port}/wiki"
    equal(stage.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-u", "alice:correct horse", url), "200", "curl")
