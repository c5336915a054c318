"""What callers show: certificates, API keys, tokens. What takes long to make is kept below the target directory."""

import base64
import datetime
import hashlib
import json
import multiprocessing
import random
import secrets
import shutil
import sqlite3
import subprocess
import time
import zlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.x509.oid import NameOID
from machine import check

ISSUER = "https://login.test/"
AUDIENCE = "orders"
CLIENT = "acme-client"
DAY = 86400
MANY = 100_000

# Tokens are good for a month and made anew after two weeks.
LIFETIME = 30 * DAY
AGE = 14 * DAY


class Material:
    """Keys, and what they sign, in a folder that outlives the run."""

    def __init__(self, folder, edgeward):
        self.folder = folder
        self.edgeward = edgeward
        self.folder.mkdir(parents=True, exist_ok=True)
        made = folder / "made"
        if not made.exists() or time.time() - made.stat().st_mtime > AGE:
            shutil.rmtree(folder)
            folder.mkdir()
            self._make()
            made.touch()
        self.jwks = folder / "jwks.json"

    def path(self, name):
        return self.folder / name

    def public_key(self, algorithm):
        return self.path(f"{algorithm}.pub")

    def tokens(self, algorithm, count):
        """A file with this many tokens, one on each line: of `user-0`, `user-1` and so on."""
        file = self.path(f"{algorithm}.{count}.tokens")
        if not file.exists():
            print(f"signing {count} tokens with {algorithm}; they are kept", flush=True)
            # Both cores: signing with RSA takes most of a millisecond.
            step = max(1, count // 64)
            pieces = [(self.folder, algorithm, start, min(start + step, count)) for start in range(0, count, step)]
            with multiprocessing.Pool() as pool:
                lines = [line for piece in pool.imap(_sign_many, pieces) for line in piece]
            write(file, "\n".join(lines) + "\n")
        return file

    def token(self, algorithm):
        return self.tokens(algorithm, 1).read_text().strip()

    def expired(self, algorithm):
        return sign(private_key(self.folder, algorithm), algorithm, 0, int(time.time()) - 3600)

    def forged(self, algorithm):
        """A token whose claims are another's: everything holds but the signature."""
        head, _, signature = self.token(algorithm).split(".")
        _, payload, _ = sign(private_key(self.folder, algorithm), algorithm, 7, int(time.time()) + DAY).split(".")
        return f"{head}.{payload}.{signature}"

    def keys(self, count):
        """A file with this many API keys, one on each line: of `consumer-0`, `consumer-1` and so on."""
        file = self.path(f"{count}.keys")
        if not file.exists():
            write(file, "".join(f"{api_key(number)}\n" for number in range(count)))
        return file

    def some_keys(self, count):
        """A file with 100,000 of them, from all over, in turn. The first is of `consumer-0`.

        Always as many lines: wrk keeps its requests in memory, and what that takes of the caches is not what the number of keys costs.
        """
        file = self.path(f"{count}.lines.keys")
        if not file.exists():
            keys = self.keys(count).read_text().split()
            write(file, "".join(f"{keys[number * max(1, count // MANY) % count]}\n" for number in range(MANY)))
        return file

    def opaque(self, count):
        """A file with this many opaque tokens, one on each line."""
        file = self.path(f"{count}.opaque")
        if not file.exists():
            write(file, "".join(f"opaque-{secrets.token_hex(20)}\n" for _ in range(count)))
        return file

    def route_paths(self, count):
        """A file with a path below each route, in a shuffled order that is always the same."""
        file = self.path(f"{count}.paths")
        if not file.exists():
            paths = [f"/r{number}/orders/7" for number in range(count)]
            random.Random(count).shuffle(paths)
            write(file, "\n".join(paths) + "\n")
        return file

    def key_database(self, count):
        """The keys in edgeward's own store: the binary makes it, so that its schema is the binary's."""
        file = self.path(f"{count}.db")
        if file.exists():
            return file
        print(f"making a store of {count} keys; it is kept", flush=True)
        new = self.path(f"{count}.new.db")
        for left in self.folder.glob(f"{count}.new.db*"):
            left.unlink()
        config = self.path("keys.yaml")
        api_key = {"keys": {"database": str(new)}}
        route = {"name": "all", "path": "/", "policy": {"authenticate": "partners"}, "upstream": "demo"}
        listeners = [{"address": "127.0.0.1:0"}]
        upstreams = {"demo": {"builtin": "echo"}}
        whole = {
            "listeners": listeners,
            "upstreams": upstreams,
            "authenticators": {"partners": {"api_key": api_key}},
            "routes": [route],
        }
        write(config, json.dumps(whole))
        command = [self.edgeward, "keys", "create", "-c", config, "--consumer", "first"]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)
        check(done.returncode == 0, f"edgeward keys create: {done.stderr}")
        with sqlite3.connect(new) as store:
            revision = store.execute("SELECT revision FROM api_key_change").fetchone()[0] + 1
            rows = (
                (
                    key.split("_")[2],
                    hashlib.sha256(key.encode()).digest(),
                    f"consumer-{number}",
                    '["orders:read"]',
                    "[]",
                    "[]",
                    # As `keys create` makes them.
                    int(time.time()) + 90 * 86_400,
                    revision,
                )
                for number, key in enumerate(self.keys(count).read_text().split())
            )
            store.executemany(
                "INSERT INTO api_key (id, sha256, consumer, scopes, routes, allow, expires, revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
            )
            store.execute("UPDATE api_key_change SET revision = ?", (revision,))
            store.commit()
            store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        store.close()
        new.rename(file)
        return file

    def key_map(self, count, line, name):
        """The keys as the map file of a peer, each line made by `line` of the key and its consumer."""
        file = self.path(f"{count}.{name}")
        if not file.exists():
            keys = self.keys(count).read_text().split()
            write(file, "".join(line.format(key=key, consumer=f"consumer-{number}") + "\n" for number, key in enumerate(keys)))
        return file

    def _make(self):
        keys = {"RS256": rsa.generate_private_key(65537, 2048), "ES256": ec.generate_private_key(ec.SECP256R1())}
        for algorithm, key in keys.items():
            self._private(f"{algorithm}.key", key)
            public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            self.path(f"{algorithm}.pub").write_bytes(public)
        write(self.path("jwks.json"), json.dumps({"keys": [jwk(algorithm, key.public_key()) for algorithm, key in keys.items()]}))
        authority = ec.generate_private_key(ec.SECP256R1())
        ca = certificate("load authority", authority.public_key(), "load authority", authority, authority=True)
        self.path("ca.pem").write_bytes(ca)
        for name, host in [("server", "localhost"), ("client", CLIENT)]:
            key = ec.generate_private_key(ec.SECP256R1())
            issued = certificate(host, key.public_key(), "load authority", authority)
            self.path(f"{name}.pem").write_bytes(issued)
            self._private(f"{name}.key", key)
            # HAProxy and ab want both in one file.
            self.path(f"{name}.both.pem").write_bytes(issued + self.path(f"{name}.key").read_bytes())

    def _private(self, name, key):
        encoded = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self.path(name).write_bytes(encoded)


def write(file, text):
    beside = file.with_name(file.name + ".new")
    beside.write_text(text)
    beside.rename(file)


def encode(data):
    if not isinstance(data, bytes):
        data = json.dumps(data, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def private_key(folder, algorithm):
    return serialization.load_pem_private_key((folder / f"{algorithm}.key").read_bytes(), None)


def sign(key, algorithm, number, expires):
    """A token as issuers make them, of some 600 bytes with RS256."""
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": f"user-{number}",
        "client_id": "app",
        "scope": "orders:read orders:write",
        "iat": expires - LIFETIME,
        "exp": expires,
        "jti": f"{number:032x}",
    }
    signed = f"{encode({'alg': algorithm, 'kid': algorithm, 'typ': 'JWT'})}.{encode(claims)}"
    if algorithm == "RS256":
        signature = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    else:
        r, s = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return f"{signed}.{encode(signature)}"


def _sign_many(piece):
    folder, algorithm, start, stop = piece
    key = private_key(folder, algorithm)
    expires = int(time.time()) + LIFETIME
    return [sign(key, algorithm, number, expires) for number in range(start, stop)]


def jwk(algorithm, public):
    numbers = public.public_numbers()
    common = {"kid": algorithm, "alg": algorithm, "use": "sig"}
    if algorithm == "RS256":
        return common | {"kty": "RSA", "n": encode(numbers.n.to_bytes(256, "big")), "e": encode(numbers.e.to_bytes(3, "big"))}
    return common | {
        "kty": "EC",
        "crv": "P-256",
        "x": encode(numbers.x.to_bytes(32, "big")),
        "y": encode(numbers.y.to_bytes(32, "big")),
    }


DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def base62(number, width):
    digits = ""
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits = DIGITS[digit] + digits
    return digits


def api_key(number):
    """A key in edgeward's form, the checksum included; to the others it is a text like any other."""
    body = f"ck_live_{number:010x}_{base62(secrets.randbits(256), 43)}"
    return body + base62(zlib.crc32(body.encode()), 6)


def certificate(name, public, issuer, signer, authority=False):
    now = datetime.datetime.now(datetime.UTC)
    text = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who)]) for who in (name, issuer)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(text[0])
        .issuer_name(text[1])
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(authority, None), True)
    )
    if not authority:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
