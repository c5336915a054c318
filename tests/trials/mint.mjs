// Tokens made by jose (npm): reads {"claims": {...}, "keys": {alg: private JWK}} on stdin, prints {alg: token}.
import { text } from 'node:stream/consumers'

import { importJWK, SignJWT } from 'jose'

const { claims, keys } = JSON.parse(await text(process.stdin))
const tokens = {}
for (const [alg, jwk] of Object.entries(keys)) {
  tokens[alg] = await new SignJWT(claims).setProtectedHeader({ alg, kid: jwk.kid, typ: 'JWT' }).sign(await importJWK(jwk, alg))
}
console.log(JSON.stringify(tokens))
