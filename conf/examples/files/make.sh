#!/bin/sh
# Makes the files that the examples name. THROW-AWAY: these private keys are public and protect nothing; never use them.
set -eu
cd "$(dirname "$0")"

certificate() { # name, subject's name
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -sha256 \
        -subj "/O=edgeward examples, throw-away/CN=$2" -addext "subjectAltName=DNS:$2" -keyout "$1.key" -out "$1.pem" 2>/dev/null
}
certificate api api.example.com
certificate wildcard '*.example.com'
certificate client edgeward.example.com
certificate ca orders.internal
rm ca.key

# An authority for clients, a client of it, and its list of what it has revoked: nothing.
authority=$(mktemp -d)
cat >"$authority/openssl.cnf" <<CNF
[ca]
default_ca = clients
[clients]
database = $authority/index
default_md = sha256
CNF
: >"$authority/index"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -sha256 -subj "/O=edgeward examples, throw-away/CN=clients" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout "$authority/key" -out clients.pem 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/O=edgeward examples, throw-away/CN=web" \
    -keyout web.key -out "$authority/request" 2>/dev/null
printf 'subjectAltName=URI:spiffe://acme/ns/shop/sa/web\nextendedKeyUsage=clientAuth\nbasicConstraints=critical,CA:FALSE\n' >"$authority/extensions"
openssl x509 -req -in "$authority/request" -CA clients.pem -CAkey "$authority/key" -days 3650 -sha256 -extfile "$authority/extensions" \
    -out web.pem 2>/dev/null
openssl ca -gencrl -config "$authority/openssl.cnf" -cert clients.pem -keyfile "$authority/key" -crldays 3650 -out clients.crl 2>/dev/null
rm -r "$authority"

# An EC public key as a key set (RFC 7517): the last 64 bytes of its DER are x and y.
base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }
point() { openssl ec -in api.key -pubout -outform DER 2>/dev/null | tail -c 64; }
x=$(point | head -c 32 | base64url)
y=$(point | tail -c 32 | base64url)
printf '{"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "example", "x": "%s", "y": "%s"}]}\n' "$x" "$y" >jwks.json

echo 'throw-away secret of the examples: it is public and protects nothing, and is 64 bytes or longer' >hmac.secret

echo 'throw-away secret of the examples' >introspection.secret

# A private key as a JWK, which proves a client of an OAuth2 server (RFC 7523).
d=$(openssl ec -in api.key -outform DER 2>/dev/null | head -c 39 | tail -c 32 | base64url)
printf '{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "example", "x": "%s", "y": "%s", "d": "%s"}\n' "$x" "$y" "$d" >client.jwk

hash=$(printf 'ck_robot_example' | openssl dgst -sha256 -r | cut -d' ' -f1)
cat >keys.yaml <<YAML
# The key is \`ck_robot_example\`: public, and good for nothing.
keys:
  - {id: example, sha256: "$hash", consumer: acme, scopes: [orders:read], routes: [orders], allow: [127.0.0.0/8]}
YAML

cat >offices.txt <<TEXT
# One network or address per line.
198.51.100.0/24   # Berlin
2001:db8:8::/48   # Lisbon
TEXT

echo 'throw-away/secret+of+the+examples+it+is+public' >aws.secret
cat >sigv4.yaml <<YAML
# The secret is in a file beside this one: public, and good for nothing.
keys:
  - {access_key_id: AKIAEXAMPLE, secret: {file: files/aws.secret}, consumer: acme, scopes: [orders:read]}
YAML

openssl pkey -in api.key -pubout -out signer.pem
cat >signature-keys.yaml <<YAML
# A secret and a private key are in files beside this one: public, and good for nothing.
keys:
  - {keyid: acme, secret: {file: files/signature.secret}, consumer: acme, scopes: [orders:read]}
  - {keyid: umbrella, public_key: {file: files/signer.pem}, consumer: umbrella, scopes: [orders:read]}
YAML
echo 'throw-away secret of the examples: it is public' >signature.secret

# The password is throw-away; htpasswd is in Debian's apache2-utils.
htpasswd -nbB -C 10 alice throw-away | grep . >users.htpasswd
