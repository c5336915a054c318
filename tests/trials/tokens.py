"""Keys of every kind, and tokens that three libraries sign with them: PyJWT, joserfc and jose (npm)."""

import base64
import hmac
import json
import subprocess
import time
import warnings

import jwt
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from harness import HERE

# joserfc would rather have it called Ed25519 (RFC 9864); issuers still say EdDSA.
warnings.filterwarnings("ignore", message="EdDSA is deprecated")

ISSUER = "https://login.test/"
AUDIENCE = "orders"
SECRET = "a secret of sixty-four bytes, which is what HS512 asks for at least."

ASYMMETRIC = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
SYMMETRIC = ["HS256", "HS384", "HS512"]


class Keys:
    """One key of each kind: the RSA key serves six algorithms, as it does at many issuers."""

    def __init__(self):
        rsa = RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig"})
        self._keys = dict.fromkeys(ASYMMETRIC[:6], rsa) | {
            "ES256": ECKey.generate_key("P-256", {"kid": "p256", "use": "sig"}),
            "ES384": ECKey.generate_key("P-384", {"kid": "p384", "use": "sig"}),
            "ES512": ECKey.generate_key("P-521", {"kid": "p521", "use": "sig"}),
            "EdDSA": OKPKey.generate_key("Ed25519", {"kid": "ed25519", "use": "sig"}),
        }
        self._keys |= dict.fromkeys(SYMMETRIC, OctKey.import_key(SECRET, {"kid": "shared"}))

    def public(self):
        """The key set that an issuer publishes."""
        keys = {key.kid: key.as_dict(private=False) for algorithm, key in self._keys.items() if algorithm in ASYMMETRIC}
        return {"keys": list(keys.values())}

    def __getitem__(self, algorithm):
        return self._keys[algorithm]


def claims(**changes):
    """The claims of a good token; a change to None leaves the claim out."""
    now = int(time.time())
    whole = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "client_id": "shop", "scope": "orders:read", "iat": now, "exp": now + 600} | changes
    return {name: value for name, value in whole.items() if value is not None}


def by_pyjwt(keys, algorithm, claims, **header):
    key = keys[algorithm]
    secret = SECRET if algorithm in SYMMETRIC else key.private_key
    return jwt.encode(claims, secret, algorithm, headers={"kid": key.kid} | header)


def by_joserfc(keys, algorithm, claims):
    key = keys[algorithm]
    return joserfc_jwt.encode({"alg": algorithm, "kid": key.kid}, claims, key, algorithms=[algorithm])


def by_jose(keys, algorithms, claims):
    """A token for each algorithm, in one run of Node."""
    order = {"claims": claims, "keys": {algorithm: keys[algorithm].as_dict(private=True) for algorithm in algorithms}}
    done = subprocess.run(["node", "mint.mjs"], cwd=HERE, input=json.dumps(order), capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def tampered(token):
    """The token with its subject changed and its signature kept."""
    head, payload, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return f"{head}.{base64url(claims | {'sub': 'mallory'})}.{signature}"


def unsigned(claims):
    """A token that asks to be believed (RFC 8725 section 3.1)."""
    return f"{base64url({'alg': 'none'})}.{base64url(claims)}."


def base64url(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def hmac_with(text, claims, **header):
    """An HS256 token whose secret is a text that libraries refuse to take for one."""
    signed = f"{base64url({'alg': 'HS256'} | header)}.{base64url(claims)}"
    signature = hmac.digest(text.encode(), signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
